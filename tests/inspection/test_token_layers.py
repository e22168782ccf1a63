"""Numbers per layer over a data set: against the hidden states and weights of each image, in batches, and as files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hf_deit
from hf_deit.cli import main
from hf_deit.errors import UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from tests.helpers import tiny
from tests.inspection.test_explain import save


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("validation", 7)):
        for number, pixels in enumerate(tiny.pixels_of(count, seed=count)):
            place = folder / split / tiny.NAMES[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "distilled")


def test_the_numbers_are_the_means_over_the_validation_images(model, data):
    found = hf_deit.explain_layers(model, data, batch_size=3)
    network = load_model(model, attn_implementation="eager").eval()
    processor = DeiTImageProcessor.from_pretrained(model)
    cosines, distances = [], []
    centres = np.array([(8 * row, 8 * column) for row in range(2) for column in range(2)], dtype=float)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    for file in sorted((data / "validation").rglob("*.png")):
        with torch.no_grad():
            output = network.deit(
                **processor(Image.open(file), return_tensors="pt"), output_hidden_states=True, output_attentions=True
            )
        pairs = [state[0, :2].double().numpy() for state in (*output.hidden_states[1:], output.last_hidden_state)]
        cosines.append([one @ other / np.linalg.norm(one) / np.linalg.norm(other) for one, other in pairs])
        weights = torch.cat(output.attentions).double().numpy()[:, :, 2:, 2:]
        distances.append((weights / weights.sum(-1, keepdims=True) * apart).sum(-1).mean(-1))
    assert (found.images, found.split, found.image_size, found.patch_size) == (7, "validation", (16, 16), (8, 8))
    assert np.allclose([*found.cosine, found.final_cosine[0]], np.mean(cosines, axis=0), atol=1e-5)
    assert np.allclose([*found.cosine_std, found.final_cosine[1]], np.std(cosines, axis=0), atol=1e-5)
    assert np.allclose(found.attention_distance, np.mean(distances, axis=0), atol=1e-4)
    assert np.allclose(found.attention_distance_std, np.std(distances, axis=0), atol=1e-4)
    assert found.uniform_distance == pytest.approx(apart.mean())


def test_the_batch_size_changes_nothing(model, data):
    one, all_at_once = (hf_deit.explain_layers(model, data, batch_size=size).to_dict() for size in (1, 64))
    for name, value in one.items():
        if name.startswith(("cosine", "attention")):
            assert np.allclose(value, all_at_once[name], atol=1e-4)


def test_a_plain_model_has_distances_and_no_cosines(tmp_path, data):
    found = hf_deit.explain_layers(save(tmp_path / "plain", False, (16, 24)), data, split="train")
    assert (found.images, found.split, found.image_size, found.tokens) == (4, "train", (16, 24), ("class token",))
    assert found.cosine is found.learned_cosine is found.final_cosine is None
    assert np.shape(found.attention_distance) == (2, 2)


@pytest.mark.parametrize("two_heads", [True, False])
def test_the_figure_and_the_json_are_written(tmp_path, data, two_heads, capsys):
    folder, out = save(tmp_path / "model", two_heads), tmp_path / "out"
    assert main(["explain", folder, "--data", str(data), "--layers", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "layers.png"]
    content = json.loads((out / "layers.json").read_text())
    expected = hf_deit.explain_layers(folder, data)
    assert np.allclose(content["attention_distance"], expected.attention_distance)
    assert (content["paper"]["learned"], content["paper"]["last_layer"]) == (0.06, 0.93)
    with Image.open(out / "layers.png") as figure:
        assert figure.width > 500 * (1 + two_heads) and np.asarray(figure.convert("L")).min() < 100
    printed = capsys.readouterr().out
    assert (f"{expected.cosine[1]:.4f}" in printed) if two_heads else ("cosine" not in printed)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--layers"], "--data"),
        (["photo.png", "--layers", "--data", "DATA"], "photo.png"),
        (["--layers", "--data", "DATA", "--classes", "bee"], "--classes"),
        (["--layers", "--data", "DATA", "--method", "rollout"], "--method"),
        (["--layers", "--data", "DATA", "--batch_size", "0"], "batch_size=0"),
        (["--layers", "--data", "DATA", "--split", "holdout"], "holdout"),
        (["--layers", "--data", "no_such_folder"], "no_such_folder"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(model, data, tmp_path, capsys, options, named):
    options = [str(data) if option == "DATA" else option for option in options]
    assert main(["explain", model, *options, "--out", str(tmp_path / "out")]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_processor_that_makes_several_sizes_is_refused(tmp_path, data):
    folder = save(tmp_path / "model")
    processor = DeiTImageProcessor(size={"shortest_edge": 16}, do_center_crop=False)
    processor.save_pretrained(folder)
    wide = data / "validation" / "ant" / "wide.png"
    Image.new("RGB", (60, 20)).save(wide)
    try:
        with pytest.raises(UserError, match=r"preprocessor_config\.json"):
            hf_deit.explain_layers(folder, data)
    finally:
        wide.unlink()


def test_a_model_whose_outputs_are_not_finite_is_refused(tmp_path, data):
    network = tiny.student()
    torch.nn.init.constant_(network.deit.embeddings.cls_token, float("nan"))
    network.save_pretrained(tmp_path / "model")
    DeiTImageProcessor.for_image_size(16).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="finite"):
        hf_deit.explain_layers(tmp_path / "model", data)
