"""Tests of conversion and export: results are compared with stock transformers and with real ImageNet weights."""

import argparse
import json
import os
import pathlib

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import hf_deit
from hf_deit.cli import main
from hf_deit.errors import UserError
from hf_deit.models.convert import export_timm
from tests.helpers.timm_weights import naive_logits, official_twin, timm_weights

STOCK = {
    "distilled": (transformers.DeiTConfig, transformers.DeiTForImageClassificationWithTeacher),
    "plain": (transformers.ViTConfig, transformers.ViTForImageClassification),
}
KINDS = pytest.mark.parametrize("kind", list(STOCK))


@pytest.fixture
def stock_model(tiny_config):
    def build(kind):
        config_class, model_class = STOCK[kind]
        names = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}
        model = model_class(tiny_config(config_class, layer_norm_eps=1e-6, num_labels=3, **names)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


def pixels(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits_of(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert {name: found[name].dtype for name in found} == {name: expected[name].dtype for name in expected}
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_near(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def stock_processor(folder):
    try:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder)
    except ImportError:  # before transformers 5.18, the auto class requires torchvision
        return transformers.DeiTImageProcessorPil.from_pretrained(folder)


def refused(capsys, *command):
    assert main([str(part) for part in command]) == 2
    return capsys.readouterr().err


# ---- acceptance ----


def test_converted_imagenet_weights_give_the_recorded_logits_and_are_exported_bit_for_bit(shared_data, tmp_path):
    source = shared_data / "vit_tiny_imagenet" / "vit_tiny_patch16_224.pth"
    if not source.is_file():
        pytest.skip(f"there is no {source}")
    golden = np.load(source.parent / "golden.npz")
    half = (0.5, 0.5, 0.5)
    hf_deit.convert(source, tmp_path / "out", image_mean=half, image_std=half, crop_ratio=224 / 248)
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert type(stock) is transformers.ViTForImageClassification
    assert_near(logits_of(stock, torch.from_numpy(golden["pixel_values"])), torch.from_numpy(golden["logits"]), 1e-4)
    processor = stock_processor(tmp_path / "out")
    photos = [Image.open(shared_data / str(name)) for name in golden["files"]]
    seen = processor(photos, return_tensors="pt").pixel_values
    assert logits_of(stock, seen).argmax(-1).tolist() == golden["logits"].argmax(-1).tolist() == [630, 610]
    assert export_timm(tmp_path / "out", tmp_path / "back.pth") == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_same(back, torch.load(source, weights_only=True)["model"])


@KINDS
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_stock_model_and_its_official_twin_convert_both_ways(tmp_path, stock_model, kind, suffix):
    stock = stock_model(kind)
    stock.save_pretrained(tmp_path / "stock")
    twin = official_twin(tmp_path / "stock")
    # official → this package → stock transformers
    source = tmp_path / f"twin.{suffix}"
    torch.save({"model": twin}, source) if suffix == "pth" else save_file(twin, source)
    hf_deit.convert(source, tmp_path / "out", num_attention_heads=2)
    loaded, info = STOCK[kind][1].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(loaded.state_dict(), stock.state_dict())
    assert_near(logits_of(loaded, pixels()), logits_of(stock, pixels()))
    # stock transformers → official
    assert export_timm(tmp_path / "stock", tmp_path / f"back.{suffix}") == 0
    path = tmp_path / f"back.{suffix}"
    assert_same(torch.load(path)["model"] if suffix == "pth" else load_file(path), twin)


@pytest.mark.parametrize("which", ["model", "model_ema"])
def test_a_self_trained_checkpoint_with_namespace_and_path_loads(tmp_path, which):
    weights = {"model": timm_weights(distilled=True), "model_ema": timm_weights(distilled=True, seed=9)}
    wrapped = {name: {f"module.{key}": value for key, value in part.items()} for name, part in weights.items()}
    options = argparse.Namespace(output_dir=pathlib.PosixPath("/tmp/run"), model="deit_tiny_distilled_patch16_224")
    torch.save({**wrapped, "epoch": 3, "args": options}, tmp_path / "checkpoint.pth")
    model = hf_deit.load_checkpoint(tmp_path / "checkpoint.pth", weights=which, num_attention_heads=2)
    assert isinstance(model, hf_deit.DeiTForImageClassificationWithTeacher) and not model.training
    assert_near(logits_of(model.double(), pixels().double()), naive_logits(weights[which], pixels()), 1e-9)


# ---- folders of transformers ----


@KINDS
@pytest.mark.parametrize("how", [{}, {"save_original_format": False}, {"max_shard_size": "20KB"}])
def test_folders_of_transformers_4_and_5_load_with_their_configuration(tmp_path, stock_model, kind, how):
    stock = stock_model(kind)
    stock.config.layer_norm_eps = 1e-3
    stock = STOCK[kind][1].from_pretrained(None, config=stock.config, state_dict=stock.state_dict()).eval()
    stock.save_pretrained(tmp_path, **how)
    model = hf_deit.load_checkpoint(tmp_path)
    assert type(model).__module__.startswith("hf_deit.")
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    assert_near(logits_of(model, pixels()), logits_of(stock, pixels()))


def test_a_pooler_is_left_out_and_a_backbone_is_refused_because_its_head_is_missing(tmp_path, stock_model):
    stock = stock_model("plain")
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    pooler = {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    save_file(weights | pooler, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_near(logits_of(hf_deit.load_checkpoint(tmp_path), pixels()), logits_of(stock, pixels()))
    stock.vit.save_pretrained(tmp_path / "backbone")
    with pytest.raises(UserError, match="2 missing: classifier.bias, classifier.weight"):
        hf_deit.load_checkpoint(tmp_path / "backbone")


def test_a_folder_of_another_family_is_refused(tmp_path, stock_model):
    stock_model("plain").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "beit"}))
    with pytest.raises(UserError, match="config.json.*'beit'.*'vit'"):
        hf_deit.load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"patch_size": 5}))
    with pytest.raises(UserError, match="patch_size=5"):
        hf_deit.load_checkpoint(tmp_path)


def test_a_folder_of_transformers_keeps_its_own_processor(tmp_path, stock_model):
    stock_model("plain").save_pretrained(tmp_path / "stock")
    own = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    own.save_pretrained(tmp_path / "stock")
    hf_deit.convert(tmp_path / "stock", tmp_path / "out", image_std=[0.1, 0.1, 0.1])
    before, after = (
        json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("stock", "out")
    )
    assert after == before | {"image_std": [0.1, 0.1, 0.1]}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    squashed = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = ((squashed - [0.1, 0.2, 0.3]) / 0.1).transpose(2, 0, 1)
    again = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    seen = again(image, return_tensors="pt").pixel_values[0]
    assert_near(seen.double(), torch.from_numpy(expected), 1e-4)


# ---- files without a configuration ----


@pytest.mark.parametrize("names", ["official", "timm"])
def test_layer_scale_of_deit_3_is_folded_by_default_and_kept_on_request(tmp_path, names):
    weights = timm_weights(gamma=names, class_position=False)
    save_file(weights, tmp_path / "w.safetensors")
    hf_deit.convert(tmp_path / "w.safetensors", tmp_path / "folded", num_attention_heads=2)
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folded")
    assert_near(logits_of(stock, pixels()).double(), naive_logits(weights, pixels()), 1e-4)
    hf_deit.convert(tmp_path / "w.safetensors", tmp_path / "kept", num_attention_heads=2, keep_layer_scale=True)
    assert export_timm(tmp_path / "kept", tmp_path / "back.pth", official=names == "official") == 0
    assert_same(torch.load(tmp_path / "back.pth")["model"], weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_converted_to_float32_or_keep_their_type(tmp_path, dtype):
    weights = {name: weight.to(dtype) for name, weight in timm_weights().items()}
    save_file(weights, tmp_path / "w.safetensors")
    model = hf_deit.load_checkpoint(tmp_path / "w.safetensors", num_attention_heads=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_near(logits_of(model.double(), pixels().double()), naive_logits(weights, pixels()), 1e-9)
    hf_deit.convert(tmp_path / "w.safetensors", tmp_path / "out", num_attention_heads=2, dtype=None)
    assert export_timm(tmp_path / "out", tmp_path / "back.safetensors") == 0
    assert_same(load_file(tmp_path / "back.safetensors"), weights)


def test_mean_std_and_crop_ratio_are_read_from_a_folder_of_timm(tmp_path):
    (tmp_path / "timm").mkdir()
    save_file(timm_weights(), tmp_path / "timm" / "model.safetensors")
    cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop_pct": 1.0}
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": cfg}))
    hf_deit.convert(tmp_path / "timm", tmp_path / "out", num_attention_heads=2)
    stored = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (stored["image_mean"], stored["image_std"]) == (cfg["mean"], cfg["std"])
    assert (stored["size"]["shortest_edge"], stored["crop_size"]) == (32, {"height": 32, "width": 32})


def test_class_names_come_from_a_file(tmp_path):
    torch.save(timm_weights(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    model = hf_deit.load_checkpoint(tmp_path / "w.pth", num_attention_heads=2, labels=tmp_path / "names.txt")
    assert (model.config.id2label, model.config.label2id["cat"]) == ({0: "ant", 1: "bee", 2: "cat"}, 2)


def test_an_oblong_model_is_converted_if_its_image_size_is_given(tmp_path):
    torch.save(timm_weights(rows=(2, 5)), tmp_path / "w.pth")
    hf_deit.convert(tmp_path / "w.pth", tmp_path / "out", num_attention_heads=2, image_size=(16, 40))
    processor = stock_processor(tmp_path / "out")
    seen = processor(Image.new("RGB", (90, 60)), return_tensors="pt").pixel_values
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert logits_of(stock, seen).shape == (1, 3)


# ---- weights and options that are refused ----


def damaged(change):
    weights = timm_weights(distilled=True)
    if change == "missing":
        del weights["blocks.1.mlp.fc1.bias"]
    elif change == "unknown":
        weights["blocks.1.attn.relative"] = torch.zeros(3)
    else:
        weights["blocks.1.mlp.fc1.bias"] = torch.zeros(63)
    return weights


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "1 missing: blocks.1.mlp.fc1.bias"),
        ("unknown", "1 unknown: blocks.1.attn.relative"),
        ("misshapen", "1 misshapen: blocks.1.mlp.fc1.bias (63,) instead of (64,)"),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_refused_unless_partial_is_given(tmp_path, caplog, change, problem):
    weights = damaged(change)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        hf_deit.convert(tmp_path / "w.pth", tmp_path / "out", num_attention_heads=2)
    assert problem in str(caught.value) and "--partial" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    model = hf_deit.load_checkpoint(tmp_path / "w.pth", num_attention_heads=2, partial=True)
    assert problem in caplog.text
    assert torch.equal(model.deit.layers[1].mlp.fc2.weight, weights["blocks.1.mlp.fc2.weight"])


def test_weights_without_a_head_get_a_new_head_for_given_class_names(tmp_path):
    weights = {name: weight for name, weight in timm_weights().items() if not name.startswith("head.")}
    torch.save(weights, tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="class head.*labels.*partial"):
        hf_deit.load_checkpoint(tmp_path / "w.pth", num_attention_heads=2)
    fields = {"num_attention_heads": 2, "labels": tmp_path / "names.txt", "partial": True}
    model = hf_deit.load_checkpoint(tmp_path / "w.pth", **fields)
    assert model.classifier.weight.shape == (2, 32)


class Hostile:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_the_command_refuses_bad_files_and_writes_nothing(tmp_path, capsys):
    torch.save({"model": timm_weights(), "args": Hostile(tmp_path / "evil")}, tmp_path / "evil.pth")
    torch.save(timm_weights(), tmp_path / "cut.pth")
    content = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "page.pth").write_text("<html>")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "a" / "out"
    assert "nothing was run" in refused(capsys, "convert", tmp_path / "evil.pth", out)
    assert "cut off" in refused(capsys, "convert", tmp_path / "cut.pth", out)
    assert "not a checkpoint" in refused(capsys, "convert", tmp_path / "page.pth", out)
    assert str(tmp_path / "none.pth") in refused(capsys, "convert", tmp_path / "none.pth", out)
    message = refused(capsys, "convert", "deit-small-distilled", out)
    assert "'facebook/deit-small-distilled-patch16-224'" in message and "Hub" in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--image_mean", 0.5], "image_mean=[0.5]: give 3"),
        (["--image_std", 0.5, 0.5, 0], "above 0"),
        (["--image_std", 0.5, "nan", 0.5], "finite"),
        (["--image_mean", "inf", 0.5, 0.5], "finite"),
        (["--crop_ratio", 2], "crop_ratio=2"),
        (["--image_size", 32, 32, 32], "image_size=[32, 32, 32]"),
        (["--image_size", 64], "positions of 16"),
        (["--labels", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(tmp_path, capsys, options, part):
    torch.save(timm_weights(), tmp_path / "w.pth")
    heads = ("--num_attention_heads", 2)
    assert part in refused(capsys, "convert", tmp_path / "w.pth", tmp_path / "out", *heads, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_existing_files_and_folders_are_not_overwritten(tmp_path, tiny_student):
    torch.save(timm_weights(), tmp_path / "w.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out .*not empty"):
        hf_deit.convert(tmp_path / "w.pth", tmp_path / "out", num_attention_heads=2)
    tiny_student("plain").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"w\.pth .*exists"):
        export_timm(tmp_path / "model", tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.bin.*\.safetensors or \.pth"):
        export_timm(tmp_path / "model", tmp_path / "w.bin")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_link_to_an_empty_folder_is_kept_and_the_files_are_written_into_that_folder(tmp_path):
    torch.save(timm_weights(), tmp_path / "w.pth")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    hf_deit.convert(tmp_path / "w.pth", tmp_path / "out", num_attention_heads=2)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out", "w.pth"]


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"id2label": [1]}, "half", [1]])
def test_an_invalid_configuration_raises_an_error_that_names_the_model(tmp_path, tiny_student, capsys, change):
    tiny_student("plain").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    text = "{" if change == "half" else change
    file.write_text(
        text
        if isinstance(text, str)
        else json.dumps(json.loads(file.read_text()) | text if isinstance(text, dict) else text)
    )
    for command in (["convert", tmp_path / "model", tmp_path / "out"], ["card", tmp_path / "model"]):
        if command[0] == "convert" or change != {"hidden_size": "wide"}:  # hf-deit card does not check hidden_size
            assert str(tmp_path / "model") in refused(capsys, *command)
    for kind, name in (("timm", "o.pth"), ("onnx", "o.onnx")):
        assert str(tmp_path / "model") in refused(
            capsys, "export", tmp_path / "model", tmp_path / name, "--format", kind
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_is_refused_only_if_its_file_name_ends_with_a_hash(tmp_path, tiny_student):
    tiny_student("plain").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"-a1b2c3d4\.pth.*SHA-256"):
        export_timm(tmp_path / "model", tmp_path / "deit_tiny_patch16_224-a1b2c3d4.pth", official=True)
    assert export_timm(tmp_path / "model", tmp_path / "mine-224.pth", official=True) == 0


def test_an_export_logs_that_it_does_not_restore_folded_layer_scale(tmp_path, caplog, tiny_student):
    tiny_student("plain", layer_scale_init_value=0.1).save_pretrained(tmp_path / "kept")
    tiny_student("plain").save_pretrained(tmp_path / "without")
    with caplog.at_level("INFO"):
        export_timm(tmp_path / "kept", tmp_path / "kept.pth")
        assert "--keep_layer_scale" not in caplog.text
        export_timm(tmp_path / "without", tmp_path / "without.pth")
    assert str(tmp_path / "without") in caplog.text and "--keep_layer_scale" in caplog.text


def test_a_distilled_model_with_one_head_is_refused_without_offering_partial_loading(tmp_path, tiny_config, capsys):
    model = transformers.DeiTForImageClassification(tiny_config(transformers.DeiTConfig))
    model.save_pretrained(tmp_path / "model")
    for command in (["convert", "OUT"], ["export", "OUT.pth", "--format", "timm"]):
        given = [str(part).replace("OUT", str(tmp_path / "out")) for part in command[1:]]
        message = refused(capsys, command[0], tmp_path / "model", *given)
        assert "DeiTForImageClassification" in message and "one head" in message and "partial" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_commands_convert_and_export(tmp_path, capsys):
    weights = timm_weights(gamma="official", class_position=False)
    torch.save({"model": weights}, tmp_path / "w.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    options = ["--num_attention_heads", 2, "--keep_layer_scale", "--labels", tmp_path / "names.txt", "--crop_ratio", 1]
    command = ["convert", tmp_path / "w.pth", tmp_path / "out", *options, "--image_mean", 0.5, 0.5, 0.5]
    assert main([str(part) for part in command]) == 0
    assert f'from_pretrained("{tmp_path / "out"}")' in capsys.readouterr().out
    command = ["export", tmp_path / "out", tmp_path / "b.pth", "--format", "official"]
    assert main([str(part) for part in command]) == 0
    assert "largest difference of a logit is 0" in capsys.readouterr().out
    assert_same(torch.load(tmp_path / "b.pth")["model"], weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pth", "names.txt", "out", "w.pth"]
