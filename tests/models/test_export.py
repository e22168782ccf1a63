"""Tests of exported files: they are run by onnxruntime and torch.export and compared with stock transformers."""

import contextlib
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import save_file

from hf_deit.cli import main
from hf_deit.errors import UserError
from hf_deit.models import export
from hf_deit.models.export import export_onnx, export_program
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers.timm_weights import official_twin

NAMES = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}
HEADS = ["logits", "cls_logits", "distillation_logits"]


@pytest.fixture(scope="module")
def stock(tiny_config, tmp_path_factory):
    """Return a distilled DeiT of stock transformers, and its folder, which has its own image processor."""
    folder = tmp_path_factory.mktemp("stock")
    config = tiny_config(transformers.DeiTConfig, layer_norm_eps=1e-6, **NAMES)
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    DeiTImageProcessor.for_image_size((32, 32), image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        folder
    )
    return model, folder


@pytest.fixture(scope="module")
def plain(tiny_student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    model = tiny_student("plain")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def exported(stock, tmp_path_factory):
    """Return the .onnx file of the stock model and the result of its export."""
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return out, export_onnx(stock[1], out)


@pytest.fixture(scope="module", params=["int8", "int8-dynamic"])
def quantised(request, stock, tmp_path_factory):
    """Return a file that the command quantised: its kind, its path, the result of the export, and what was printed."""
    file, results, printed = tmp_path_factory.mktemp("quantised") / "q.onnx", [], io.StringIO()

    def recorded(*arguments):
        results.append(export_onnx(*arguments))
        return results[-1]

    command = ["export", str(stock[1]), str(file), "--format", "onnx", "--quantize", request.param]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(export, "export_onnx", recorded)
        assert main(command) == 0
    return SimpleNamespace(kind=request.param, file=file, written=results[0], printed=printed.getvalue())


def images(batch, size=32, seed=3):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def run(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pixels.numpy()}), strict=True))


def assert_same_logits(found, expected, tolerance=1e-4):
    for name in found:
        np.testing.assert_allclose(np.asarray(found[name]), expected[name].numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 2, 7])
@torch.no_grad()
def test_the_onnx_file_of_a_stock_distilled_model_gives_its_logits_for_any_batch_size(stock, exported, batch):
    model, _ = stock
    expected = model(images(batch))
    assert expected.logits.abs().max() > 0.5
    found = run(exported[0], images(batch))
    assert list(found) == HEADS
    assert_same_logits(found, expected)


@torch.no_grad()
def test_official_names_give_the_same_onnx(tiny_config, tmp_path):
    # The width must be a published one, because the file does not contain the number of attention heads.
    fields = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "layer_norm_eps": 1e-6}
    torch.manual_seed(0)
    model = transformers.DeiTForImageClassificationWithTeacher(tiny_config(transformers.DeiTConfig, **fields)).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "stock")
    save_file(official_twin(tmp_path / "stock"), tmp_path / "official.safetensors")
    export_onnx(tmp_path / "official.safetensors", tmp_path / "twin.onnx")
    assert_same_logits(run(tmp_path / "twin.onnx", images(4)), model(images(4)))


def test_the_metadata_of_the_file_contain_classes_size_mean_and_std(exported):
    path, _ = exported
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cat"]
    assert json.loads(metadata["image_size"]) == [32, 32]
    assert (json.loads(metadata["image_mean"]), json.loads(metadata["image_std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert json.loads(metadata["preprocessor"])["crop_size"] == {"height": 32, "width": 32}
    assert metadata["problem_type"] == "single_label_classification"


@torch.no_grad()
def test_the_reported_difference_is_small_and_not_zero(exported):
    _, measured = exported
    assert 0 < measured.difference < 1e-4
    assert measured.largest_logit > 0.5


@torch.no_grad()
def test_a_quantised_file_is_smaller_and_gives_similar_logits(stock, exported, quantised):
    model, kind = stock[0], quantised.kind
    operator, allowed = {"int8": ("MatMulNBits", 0.05), "int8-dynamic": ("MatMulInteger", 0.25)}[kind]
    written = onnx.load(quantised.file)
    operators = {node.op_type for node in written.graph.node}
    assert operator in operators
    assert "Conv" in operators  # the patch projection is not quantised
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert (metadata["quantization"], json.loads(metadata["class_names"])) == (kind, ["ant", "bee", "cat"])
    weights = [
        sum(np.prod(t.dims) * (4 if t.data_type == 1 else 1) for t in onnx.load(path).graph.initializer)
        for path in (quantised.file, exported[0])
    ]
    assert weights[0] < 0.7 * weights[1]
    expected = model(images(5))
    assert_same_logits(run(quantised.file, images(5)), expected, allowed * expected.logits.abs().max().item())


def test_a_model_without_weights_to_quantise_is_refused_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "m"
    config = resnet()
    config.num_labels = 3
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    assert main(["export", str(folder), str(tmp_path / "q.onnx"), "--format", "onnx", "--quantize", "int8"]) == 2
    message = capsys.readouterr().err
    assert "--quantize int8" in message and str(folder) in message
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_share_of_weights_in_eight_bits_is_reported(stock, quantised):
    model = stock[0]
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "classifier" not in name)
    heads = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "classifier" in name)
    eight = matrices + (heads if quantised.kind == "int8-dynamic" else 0)
    share = quantised.written.eight_bits
    assert share == pytest.approx(eight / model.num_parameters(), abs=0.01)
    assert f"{100 * share:.1f} % of the weights are in 8 bits" in quantised.printed


def resnet():
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **NAMES)


def swin():
    return transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, **NAMES)  # fmt: skip


@pytest.mark.parametrize(("config", "size"), [(resnet, 224), (swin, 32)])
@torch.no_grad()
def test_onnx_files_of_other_families_give_their_logits(tmp_path, config, size):
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config()).eval()
    model.save_pretrained(tmp_path / "m")
    export_onnx(tmp_path / "m", tmp_path / "m.onnx")
    found = run(tmp_path / "m.onnx", images(4, size))
    assert list(found) == ["logits"]
    assert_same_logits(found, model(images(4, size)))


@torch.no_grad()
def test_a_torch_program_gives_the_logits_for_any_batch_size_and_contains_the_metadata(stock, plain, tmp_path):
    for name, (model, folder) in {"distilled": stock, "plain": plain}.items():
        assert export_program(folder, tmp_path / f"{name}.pt2").difference < 1e-4
        extra_files = {"metadata.json": ""}
        program = torch.export.load(tmp_path / f"{name}.pt2", extra_files=extra_files).module()
        for batch in (1, 6):
            found = program(images(batch))
            assert list(found) == (HEADS if name == "distilled" else ["logits"])
            assert_same_logits(found, model(images(batch)))
        assert json.loads(json.loads(extra_files["metadata.json"])["image_size"]) == [32, 32]


def test_weights_that_are_too_large_for_the_file_are_written_to_a_second_file(stock, tmp_path, monkeypatch):
    model, folder = stock
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    written = export_onnx(folder, tmp_path / "big.onnx").files
    assert [file.name for file in written] == ["big.onnx", "big.onnx.data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    with torch.no_grad():
        assert_same_logits(run(tmp_path / "big.onnx", images(2)), model(images(2)))


def test_a_file_that_computes_different_logits_is_refused_and_not_left_behind(plain, tmp_path, monkeypatch):
    right = export.onnx_runner
    monkeypatch.setattr(
        export,
        "onnx_runner",
        lambda path: lambda pixels: {name: logits + 0.01 for name, logits in right(path)(pixels).items()},
    )
    with pytest.raises(UserError, match=r"largest difference is 0\.01"):
        export_onnx(plain[1], tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_raises_an_error_with_the_command_that_installs_it(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        export_onnx(plain[1], tmp_path / "m.onnx")


def test_existing_files_and_other_suffixes_are_refused(plain, tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(UserError, match=r"m\.onnx .*exists"):
        export_onnx(plain[1], tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m\.bin.*\.pt2"):
        export_program(plain[1], tmp_path / "m.bin")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_a_mean_of_three_numbers_for_one_channel_is_refused(tiny_student, tmp_path):
    tiny_student("plain", num_channels=1).save_pretrained(tmp_path / "m")
    DeiTImageProcessor.for_image_size((32, 32)).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"1 channel\(s\).*mean of 3"):
        export_program(tmp_path / "m", tmp_path / "m.pt2")


@pytest.mark.parametrize("broken", ["probe", "export"])
def test_an_error_while_a_model_is_run_or_exported_is_reported(plain, tmp_path, monkeypatch, broken):
    def fails(*arguments, **options):
        raise RuntimeError("no such operator")

    if broken == "probe":
        monkeypatch.setattr(export._Heads, "forward", fails)
    else:
        monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(UserError, match="RuntimeError: no such operator"):
        export_onnx(plain[1], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_image_processor_in_the_folder_of_a_file_of_weights_is_used(stock, tmp_path):
    _, folder = stock
    for given in (folder, folder / "model.safetensors"):
        export_program(given, tmp_path / f"{given.name}.pt2")
        extra_files = {"metadata.json": ""}
        torch.export.load(tmp_path / f"{given.name}.pt2", extra_files=extra_files)
        assert json.loads(json.loads(extra_files["metadata.json"])["image_mean"]) == [0.1, 0.2, 0.3]


def test_the_command_prints_the_difference_and_refuses_to_quantise_other_formats(plain, tmp_path, capsys):
    _, folder = plain
    assert main(["export", str(folder), str(tmp_path / "m.pt2"), "--format", "torch"]) == 0
    assert "largest difference of a logit is" in capsys.readouterr().out
    command = ["export", str(folder), str(tmp_path / "m.pth"), "--format", "timm", "--quantize", "int8"]
    assert main(command) == 2
    assert "--format onnx" in capsys.readouterr().err
