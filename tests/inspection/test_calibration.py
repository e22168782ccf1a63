"""Calibration: temperatures that are known in advance are found, and no image is judged by a temperature fitted on it."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from torch import nn

import hf_deit as package
from hf_deit.errors import UserError
from hf_deit.inspection import calibration
from hf_deit.inspection.calibration import cross_fitted, fit_temperature, reliability, scaled
from hf_deit.inspection.measures import coverage_curve, wilson_interval
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers import tiny
from tests.helpers.runs import NAMES, hf_deit, refused, write_images, write_splits


def drawn_labels(images=4000, classes=5, seed=0):
    """Return logits that are calibrated, and labels drawn from their probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (images, classes))
    probabilities = softmax(logits, axis=1)
    labels = (probabilities.cumsum(1) > generator.random((images, 1))).argmax(1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature):
    logits, labels = drawn_labels()
    spoiled = softmax(logits / temperature, axis=1)
    assert fit_temperature(labels, spoiled) == pytest.approx(1 / temperature, rel=0.06)
    assert scaled(spoiled, 1 / temperature, multi_label=False) == pytest.approx(softmax(logits, axis=1), abs=1e-9)


def test_the_temperature_of_multi_label_logits_is_found():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (3000, 3))
    labels = (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    spoiled = 1 / (1 + np.exp(-2.5 * logits))
    assert fit_temperature(labels, spoiled) == pytest.approx(2.5, rel=0.06)


def test_overconfident_answers_are_better_calibrated_after_the_fit():
    logits, labels = drawn_labels(1500)
    spoiled = softmax(2.5 * logits, axis=1)
    after = cross_fitted(labels, spoiled)
    errors = [reliability(one.argmax(1) == labels, one.max(1)).error for one in (spoiled, after)]
    assert errors[0] > 0.1 and errors[1] < 0.04
    assert (after.argmax(1) == spoiled.argmax(1)).all()


def test_no_image_is_judged_by_a_temperature_that_was_fitted_on_it(monkeypatch):
    logits, labels = drawn_labels(200)
    probabilities = softmax(logits, axis=1)
    seen = []

    def spy(own_labels, own_probabilities):
        seen.append({row.tobytes() for row in own_probabilities})
        return 1.0 + len(seen)

    monkeypatch.setattr(calibration, "fit_temperature", spy)
    after = cross_fitted(labels, probabilities)
    for row, result in zip(probabilities, after, strict=True):
        (temperature,) = [t for t in range(2, 7) if np.allclose(scaled(row[None], t, False)[0], result)]
        assert row.tobytes() not in seen[temperature - 2]


def test_the_expected_calibration_error_is_that_of_its_definition():
    generator = np.random.default_rng(1)
    confidence, correct = generator.random(999), generator.random(999) < 0.6
    edges = np.linspace(0, 1, 16)
    bins = np.clip(np.digitize(confidence, edges) - 1, 0, 14)
    expected = sum(
        abs(correct[bins == one].mean() - confidence[bins == one].mean()) * (bins == one).mean() for one in range(15)
    )
    found = reliability(correct, confidence)
    assert found.error == pytest.approx(expected) and found.images.sum() == 999


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_the_interval_is_that_of_wilson(hits, images, low, high):
    # The last row: Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson_interval(hits, images) == pytest.approx((low, high), abs=1e-4)


def test_the_coverage_curve_counts_equal_confidences_together():
    thresholds, share, accuracy = coverage_curve(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.8, 0.3]))
    assert thresholds.tolist() == [0.9, 0.8, 0.3]
    assert share.tolist() == [0.25, 0.75, 1.0] and accuracy.tolist() == pytest.approx([1.0, 2 / 3, 0.5])


# ---- predictions ----


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    write_images(room / "data" / "validation", per_class=12, seed=7)
    student = tiny.student(names=NAMES)
    for head in (student.cls_classifier, student.distillation_classifier):
        nn.init.normal_(head.weight, std=0.5)
    student.save_pretrained(room / "model")
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(room / "model")
    package.report(room / "model", room / "data", out=room / "out", train_images=0)
    return room


def test_calibrated_predictions_divide_the_logits_by_the_temperature_of_their_head(room):
    content = json.loads((room / "model" / "calibration.json").read_text())
    plain, calibrated = (
        package.predict(room / "model", room / "data", split="val", as_dataset=True, calibrated=flag).to_pandas()
        for flag in (False, True)
    )
    for prefix, head in (("", "prediction"), ("cls_", "cls"), ("distillation_", "distillation")):
        columns = [f"{prefix}p_{name}" for name in NAMES]
        powers = plain[columns].to_numpy() ** (1 / content["temperatures"][head])
        assert calibrated[columns].to_numpy() == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-5)
    assert list(plain["prediction"]) == list(calibrated["prediction"])


def test_calibration_of_other_weights_is_refused(room, tmp_path, capsys):
    student = tiny.student(names=NAMES, seed=5)
    student.save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    images = room / "data" / "validation" / "cat"
    assert "calibration.json" in refused(capsys, "predict", tmp_path, images, "--calibrated")
    for content in ((room / "model" / "calibration.json").read_text(), "{}", "[1]", "{"):
        (tmp_path / "calibration.json").write_text(content)
        assert "calibration.json" in refused(capsys, "predict", tmp_path, images, "--calibrated")


def test_below_the_threshold_the_answer_is_unknown(room, capsys):
    images = room / "data" / "validation"
    plain = package.predict(room / "model", images, as_dataset=True).to_pandas()
    threshold = sorted(plain["score"])[10]  # an image that has exactly this score is answered
    rows = package.predict(room / "model", images, as_dataset=True, threshold=threshold).to_pandas()
    below = plain["score"] < threshold
    assert below.any() and not below.all()
    assert (rows["prediction"] == np.where(below, "unknown", plain["prediction"])).all()
    assert (rows["score"] == plain["score"]).all()
    listed = package.predict(room / "model", images, threshold=threshold)
    assert [one.prediction for one in listed] == list(rows["prediction"])
    capsys.readouterr()
    assert hf_deit("predict", room / "model", images, "--threshold", threshold) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [": unknown (" in line for line in lines] == list(below)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(room, threshold, capsys):
    assert "threshold=" in refused(capsys, "predict", room / "model", room / "data", "--threshold", threshold)
    with pytest.raises(UserError, match="threshold="):
        package.predict(room / "model", room / "data", threshold=threshold)


def test_a_class_called_unknown_is_pointed_out(tmp_path, room, caplog):
    tiny.student(names=("unknown", "cat", "dog")).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    package.predict(tmp_path, room / "data" / "validation" / "cat", threshold=0.5)
    assert "unknown" in caplog.text and "threshold=0.5" in caplog.text


def test_a_multi_label_model_answers_the_classes_that_reach_the_threshold(tmp_path, room):
    student = tiny.student(names=NAMES, problem_type="multi_label_classification")
    for head in (student.cls_classifier, student.distillation_classifier):
        head.weight.data.zero_()
        head.bias.data = nn.Parameter(head.bias.new_tensor([1.0, -1.0, 2.0]))  # 73 %, 27 %, 88 %
    student.save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    image = next((room / "data" / "validation" / "cat").iterdir())
    for threshold, expected in ((None, "dog;bee"), (0.8, "dog"), (0.2, "dog;bee;cat"), (0.95, "unknown")):
        assert package.predict(tmp_path, image, threshold=threshold)[0].prediction == expected
