"""Predicted classes of images, compared with plain transformers on the same pixels."""

import re
import threading
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_deit.data.loading import load_splits
from hf_deit.errors import DataError, UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.recipes.inputs import find_inputs
from hf_deit.recipes.predict import Predictor
from tests.helpers import tiny
from tests.helpers.runs import NAMES, by_hand, predict, write_splits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    return load_splits(str(write_splits(tmp_path_factory.mktemp("data"))))[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A student whose probabilities differ clearly from class to class and from image to image."""
    folder = tmp_path_factory.mktemp("model")
    student = tiny.student(names=NAMES)
    for head in (student.cls_classifier, student.distillation_classifier):
        nn.init.normal_(head.weight, std=0.5)
    student.save_pretrained(folder)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(folder)
    return folder


def test_predictions_are_those_of_plain_transformers_in_order(validation, model):
    _, _, heads = by_hand(model, validation)
    predictions = predict(str(model), list(validation.items), top_k=2)
    assert len(predictions) == len(validation)
    for prediction, logits in zip(predictions, heads["logits"], strict=True):
        best = logits.softmax(-1).sort(descending=True)
        assert [name for name, _ in prediction] == [NAMES[index] for index in best.indices[:2]]
        assert [probability for _, probability in prediction] == pytest.approx(best.values[:2].tolist(), abs=1e-5)


def test_a_top_k_above_the_number_of_classes_returns_all_classes(validation, model):
    (prediction,) = predict(str(model), [validation.items[0]], top_k=50)
    assert sorted(name for name, _ in prediction) == list(NAMES)
    probabilities = [probability for _, probability in prediction]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)


def colour(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def opaque(image):
    return image.convert("RGBA"), image


def grey(image):
    return image.convert("L"), image.convert("L").convert("RGB")


def deep_grey(image):
    eight = np.asarray(image.convert("L"))
    return Image.fromarray(eight.astype(np.uint16) * 257), Image.fromarray(eight).convert("RGB")


def palette(image):
    return image.quantize(16), image.quantize(16).convert("RGB")


def turned(image):
    """Return an image that is stored rotated, with an EXIF tag for its orientation, and the upright image."""
    stored = image.transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6  # rotate by 90° clockwise
    return stored, image


@pytest.mark.parametrize("make", [opaque, grey, deep_grey, palette, turned])
def test_an_image_of_another_mode_is_predicted_as_its_upright_rgb(tmp_path, validation, model, make):
    # The upper half shows one class and the lower half another, so that a rotated image differs.
    image = colour(validation.items[0]).resize((30, 40))
    image.paste(colour(validation.items[-1]).resize((30, 20)), (0, 20))
    odd, plain = make(image)
    odd.save(tmp_path / "odd.png", **({"exif": odd.getexif()} if make is turned else {}))
    plain.save(tmp_path / "plain.png")
    odd_prediction, plain_prediction = predict(str(model), [str(tmp_path / "odd.png"), str(tmp_path / "plain.png")])
    assert dict(odd_prediction) == pytest.approx(dict(plain_prediction), abs=1e-6)
    if make is turned:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png")
        (rotated,) = predict(str(model), [str(tmp_path / "rotated.png")])
        assert dict(rotated) != pytest.approx(dict(plain_prediction), abs=1e-3)


@pytest.mark.skipif(
    Version(version("transformers")) < Version("5.18") and find_spec("torchvision") is None,
    reason="AutoImageProcessor of transformers 5.17 needs torchvision",
)
@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_documented_snippet_sees_a_phone_photograph_as_a_prediction_does(
    tmp_path, monkeypatch, capsys, validation, model, page
):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    (snippet,) = (block for block in blocks if "AutoImageProcessor.from_pretrained" in block)
    # Upper half of one class, lower half of another: turned, it is another image.
    image = colour(validation.items[0]).resize((30, 40))
    image.paste(colour(validation.items[-1]).resize((30, 20)), (0, 20))
    stored, _ = turned(image)
    monkeypatch.chdir(tmp_path)
    stored.save("photo.jpg", exif=stored.getexif(), quality=95)
    Image.open("photo.jpg").save("stored.png", exif=Image.Exif())
    (tmp_path / "out").symlink_to(model)
    names: dict = {}
    exec(snippet, names)
    documented = dict(zip(NAMES, names["logits"].softmax(-1)[0].tolist(), strict=True))
    seen, lying = predict("out", ["photo.jpg", "stored.png"])
    assert documented == pytest.approx(dict(seen), abs=1e-3)
    assert documented != pytest.approx(dict(lying), abs=1e-2)
    assert capsys.readouterr().out.strip() == seen[0][0]


def test_fewer_than_one_class_is_refused(model, validation):
    with pytest.raises(UserError, match="top_k=0"):
        predict(str(model), [validation.items[0]], top_k=0)


def test_an_image_that_cannot_be_read_is_named(tmp_path, model):
    with pytest.raises(DataError, match=r"nowhere\.png"):
        predict(str(model), [str(tmp_path / "nowhere.png")])


def test_probabilities_are_those_of_plain_transformers_up_to_rounding(validation, model):
    _, _, heads = by_hand(model, validation)
    expected = heads["logits"].softmax(-1)
    predictor = Predictor(str(model))
    printed = []
    for batch_size, tolerance in ((1, 1e-6), (4, 1e-5), (100, 1e-5)):
        found = list(predictor.predictions(find_inputs(validation.items, NAMES), batch_size))
        assert [one.file for one in found] == list(validation.items)
        for one, row in zip(found, expected, strict=True):
            assert one.probabilities == pytest.approx(row.tolist(), abs=tolerance, rel=0)
        printed.append([[(name, f"{100 * score:.1f} %") for name, score in one.best(NAMES, 3)] for one in found])
    assert printed[0] == printed[1] == printed[2]


def test_outputs_that_are_not_finite_are_no_prediction(tmp_path, validation):
    student = tiny.student(names=NAMES)
    student.cls_classifier.bias.data[1] = float("nan")
    student.save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="not finite"):
        predict(str(tmp_path), [validation.items[0]])


def test_a_processor_that_keeps_the_size_of_images_is_asked_image_by_image(tmp_path, validation):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    DeiTImageProcessor(do_resize=False, do_center_crop=False).save_pretrained(tmp_path)
    assert len({colour(item).size for item in validation.items}) > 1
    together = predict(str(tmp_path), validation.items)
    assert together == [predict(str(tmp_path), [item])[0] for item in validation.items]


def test_a_processor_that_does_not_fit_the_model_is_named(tmp_path, validation):
    tiny.student(names=NAMES).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE + 8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{tiny.SIZE + 8} × {tiny.SIZE + 8}.*preprocessor_config.json"):
        predict(str(tmp_path), [validation.items[0]])


def test_bfloat16_gives_nearly_the_same_probabilities(validation, model):
    exact = Predictor(str(model)).predictions(find_inputs(validation.items, NAMES))
    rounded = Predictor(str(model), bf16=True).predictions(find_inputs(validation.items, NAMES))
    pairs = [(one.probabilities, other.probabilities) for one, other in zip(exact, rounded, strict=True)]
    differences = np.abs(np.subtract(*map(np.array, zip(*pairs, strict=True))))
    assert 0 < differences.max() < 0.01


def test_the_next_batch_is_read_while_the_model_computes(validation, model, monkeypatch):
    predictor = Predictor(str(model))
    begun = {str(item): threading.Event() for item in validation.items[:6]}
    order, original, seen = list(begun), predictor._pixels, []

    def pixels(image):
        begun[str(image.file)].set()
        return original(image)

    def wait(*unused):  # the model is at batch number len(seen); the next one must be read meanwhile
        following = order[2 * len(seen) + 2 : 2 * len(seen) + 4]
        seen.append([begun[name].wait(timeout=30) for name in following])
        ahead = order[2 * len(seen) + 2 :]
        seen[-1] += [not begun[name].is_set() for name in ahead]  # and no more than that one

    predictor.model.register_forward_hook(wait)
    monkeypatch.setattr(predictor, "_pixels", pixels)
    names = [one.file for one in predictor.predictions(find_inputs(order, NAMES), batch_size=2)]
    assert names == order
    assert seen == [[True] * 4, [True] * 2, []]
