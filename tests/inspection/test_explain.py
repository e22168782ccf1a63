"""Explanations of images in Python and on the command line: arrays, files, classes, odd images, and what is refused."""

import json
import math
import os

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hf_deit
from hf_deit.cli import main
from hf_deit.errors import DataError, UserError
from hf_deit.inspection.explain import chosen_classes
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from tests.helpers import tiny


def save(folder, two_heads=True, size=16, **changes):
    model = tiny.student(two_heads, image_size=size, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    model.save_pretrained(folder)
    DeiTImageProcessor.for_image_size(size).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "distilled")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(tiny.pixels_of(5)):
        (folder / tiny.NAMES[number % 4]).mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((30 + number, 24)).save(folder / tiny.NAMES[number % 4] / f"{number}.png")
    return folder


def test_the_arrays_have_the_documented_shapes_and_values(model, photos):
    found = hf_deit.explain(model, photos, method=["rollout", "relevance", "last_layer"], classes=["dog", "bee"])
    assert len(found) == 5 and found.failures == {}
    network, processor = load_model(model).eval(), DeiTImageProcessor.from_pretrained(model)
    for entry in found:
        assert entry.last_layer.shape == entry.rollout.shape == (2, 2, 2) and entry.relevance.shape == (2, 2, 2, 2)
        assert entry.tokens == ("class token", "distillation token") and entry.classes == ("dog", "bee")
        assert entry.pixels.shape == (16, 16, 3) and entry.pixels.dtype == np.uint8
        with torch.no_grad():
            output = network(**processor(Image.open(entry.image), return_tensors="pt"))
        scores = output.logits.softmax(-1)[0].numpy()
        assert entry.prediction == tiny.NAMES[scores.argmax()] and entry.score == pytest.approx(scores.max(), abs=1e-5)
        assert np.allclose(entry.scores, scores[[3, 1]], atol=1e-5)
        for head, row in zip((output.cls_logits, output.distillation_logits), entry.token_scores, strict=True):
            assert np.allclose(row, head.softmax(-1)[0].numpy()[[3, 1]], atol=1e-5)
        assert entry.label == os.path.basename(os.path.dirname(entry.image))
        for maps in (entry.rollout, entry.last_layer, entry.relevance):
            assert maps.dtype == np.float32 and np.allclose(maps.sum((-1, -2)), 1, atol=1e-5)


def test_a_class_has_the_same_maps_alone_and_beside_others_and_in_every_batch_size(model, photos):
    both = hf_deit.explain(model, photos, classes=["dog", "bee"], batch_size=5)
    alone = hf_deit.explain(model, photos, classes=1, batch_size=1)
    for one, other in zip(both, alone, strict=True):
        assert other.classes == ("bee",) and np.allclose(one.relevance[1], other.relevance[0], atol=1e-5)
        assert np.allclose(one.rollout, other.rollout, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "patch", "grid"), [((16, 32), 8, (2, 4)), ((24, 8), (4, 8), (6, 1)), ((24, 24), 12, (2, 2))]
)
def test_models_of_any_size_have_maps_of_their_grid_over_the_pixels_that_they_see(tmp_path, photos, size, patch, grid):
    found = hf_deit.explain(save(tmp_path / "model", False, size, patch_size=patch), photos)
    assert {entry.rollout.shape for entry in found} == {(1, *grid)}
    assert {entry.relevance.shape for entry in found} == {(1, 1, *grid)}
    assert {entry.pixels.shape for entry in found} == {(*size, 3)}


def test_the_pixels_are_those_that_patches_cover(tmp_path, photos):
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = transformers.DeiTConfig(
        image_size=20, patch_size=8, **{name: getattr(tiny.student().config, name) for name in fields}
    )
    transformers.DeiTForImageClassification(config).save_pretrained(tmp_path / "model")
    processor = DeiTImageProcessor.for_image_size(20, 1.0)
    processor.save_pretrained(tmp_path / "model")
    entry = hf_deit.explain(tmp_path / "model", photos / "ant" / "0.png")[0]
    seen = processor(Image.open(photos / "ant" / "0.png"), return_tensors="pt", do_normalize=False, do_rescale=False)
    assert entry.tokens == ("class token",) and entry.rollout.shape == (1, 2, 2)
    expected = seen["pixel_values"][0].permute(1, 2, 0).numpy()[:16, :16]
    assert np.abs(entry.pixels.astype(int) - expected.astype(int)).max() <= 1


def test_one_row_per_image_is_drawn_and_the_maps_are_beside_it(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    given = [str(photos / "ant"), str(photos / "bee" / "1.png")]
    assert (
        main(["explain", model, "--out", str(out), "--classes", "cat", "0", "--method", "relevance", "--", *given]) == 0
    )
    rows = [json.loads(line) for line in (out / "maps.jsonl").read_text().splitlines()]
    assert [os.path.basename(row["image"]) for row in rows] == ["0.png", "4.png", "1.png"]
    expected = hf_deit.explain(model, given, method="relevance", classes=["cat", "ant"])
    for number, (row, entry) in enumerate(zip(rows, expected, strict=True)):
        assert np.allclose(row["relevance"], entry.relevance, atol=1e-5) and row["classes"] == ["cat", "ant"]
        assert row["rollout"] is None and (row["sheet"], row["row"]) == ("maps-001.png", number + 1)
    assert sorted(path.name for path in out.iterdir()) == ["maps-001.png", "maps.jsonl"]
    with Image.open(out / "maps-001.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"), dtype=int)
    columns = (np.ptp(pixels, axis=2) > 30).any(axis=0)  # the coloured columns: photograph, and 2 classes × 3 pictures
    assert np.count_nonzero(np.diff(columns.astype(int)) == 1) == 7
    assert "3 image(s)" in capsys.readouterr().out


def test_images_come_before_or_after_the_options_and_a_full_sheet_is_followed_by_another(
    model, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_deit.inspection.map_sheets.ROWS_PER_SHEET", 2)
    many = [str(photos / "ant" / "0.png")] * 3
    assert main(["explain", model, *many, "--out", str(tmp_path / "a"), "--batch_size", "3"]) == 0
    assert main(["explain", model, "--out", str(tmp_path / "b"), many[0]]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["maps-001.png", "maps-002.png", "maps.jsonl"]
    rows = (tmp_path / "a" / "maps.jsonl").read_text().splitlines()
    assert (json.loads(rows[2])["sheet"], json.loads(rows[2])["row"]) == ("maps-002.png", 1)


def test_unreadable_images_are_listed_and_the_others_are_explained(model, photos, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [str(tmp_path / "broken.png"), str(photos / "ant" / "0.png"), str(tmp_path / "missing.png")]
    assert main(["explain", model, *given, "--out", str(tmp_path / "out")]) == 2
    assert len((tmp_path / "out" / "maps.jsonl").read_text().splitlines()) == 1
    error = capsys.readouterr().err
    assert "broken.png" in error and "missing.png" in error
    assert main(["explain", model, given[0], "--out", str(tmp_path / "none")]) == 2 and not (tmp_path / "none").exists()
    with pytest.raises(DataError, match=r"broken\.png"):
        hf_deit.explain(model, given)
    found = hf_deit.explain(model, given, broken_images="skip")
    assert len(found) == 1 and set(found.failures) == {given[0], given[2]}


def test_odd_images_and_names_are_drawn(model, tmp_path, capsys):
    for name, image in (
        ("grey $x_1$ ü.png", Image.new("L", (300, 4), 70)),
        ("palette.gif", Image.new("P", (5, 80), 3)),
        ("long" + "g" * 90 + ".png", Image.new("RGBA", (16, 16), (1, 2, 3, 0))),
        ("black\n.png", Image.new("RGB", (16, 16))),
    ):
        image.save(tmp_path / name)
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    assert main(["explain", model, *names, "--out", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "maps.jsonl").read_text().splitlines()) == 4


def test_a_model_without_finite_outputs_has_a_failure_and_no_picture(photos, tmp_path, capsys):
    network = tiny.student()
    torch.nn.init.constant_(network.cls_classifier.weight, math.inf)
    network.save_pretrained(tmp_path / "model")
    DeiTImageProcessor.for_image_size(16).save_pretrained(tmp_path / "model")
    assert main(["explain", str(tmp_path / "model"), str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "finite" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_multi_label_model_has_sigmoids(tmp_path, photos):
    folder = save(tmp_path / "model", problem_type="multi_label_classification")
    entry = hf_deit.explain(folder, photos / "ant" / "0.png", classes=list(tiny.NAMES))[0]
    pixels = DeiTImageProcessor.from_pretrained(folder)(Image.open(photos / "ant" / "0.png"), return_tensors="pt")
    with torch.no_grad():
        assert np.allclose(entry.scores, load_model(folder).eval()(**pixels).logits[0].sigmoid(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--classes", "wolf"], "'wolf'"),
        (["--classes", "4"], "'4'"),
        (["--classes", "bee", "1"], "bee, 1"),
        (["--classes", "bee", "--method", "rollout"], "classes=bee"),
        (["--method", "gradcam"], "'gradcam'"),
        (["--batch_size", "0"], "batch_size=0"),
        (["--data", "photos"], "--data photos"),
        (["--label_column", "x"], "--label_column"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(model, photos, tmp_path, capsys, options, named):
    assert main(["explain", model, str(photos / "ant" / "0.png"), "--out", str(tmp_path / "out"), *options]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_no_images_and_a_full_folder_are_refused(model, photos, tmp_path, capsys):
    assert main(["explain", model, "--out", str(tmp_path / "out")]) == 2
    assert main(["explain", model, "--out", str(tmp_path / "out"), "--classes", "bee", "photo.png"]) == 2
    assert "before --classes" in capsys.readouterr().err
    (tmp_path / "notes").write_text("mine")
    assert main(["explain", model, str(photos), "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_another_architecture_is_refused_before_its_weights_are_read(tmp_path, photos):
    transformers.SwinConfig(architectures=["SwinForImageClassification"]).save_pretrained(tmp_path)  # without weights
    with pytest.raises(UserError, match="'swin'.*deit and vit"):
        hf_deit.explain(tmp_path, photos)
    config = tiny.student(False).config
    config.architectures = ["ViTMAEForPreTraining"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="ViTMAEForPreTraining"):
        hf_deit.explain(tmp_path, photos)


def test_without_matplotlib_the_command_gives_the_line_that_installs_it(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_deit.trainer.environment.is_installed", lambda name: False)
    assert main(["explain", model, str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "pip install matplotlib\n" in capsys.readouterr().err


def test_classes_are_names_first_and_indices_else():
    names = ["zero", "2", "crane", "crane", "e\u0301"]
    assert chosen_classes(["2", "0", 4], names) == [1, 0, 4]
    assert chosen_classes(["\u00e9", 3], names) == [4, 3]  # two ways to write é
    for wrong in (["crane"], [5], [-1], [], ["zero", 0]):
        with pytest.raises(UserError, match="classes"):
            chosen_classes(wrong, names)
