"""Metrics compared with values computed by hand or with NumPy; no metric accesses the network."""

import socket

import numpy as np
import pytest
import torch

from hf_deit.trainer.accuracy import TeacherAgreement, TopOneAccuracy
from hf_deit.trainer.metrics import (
    average_precision,
    metric_names,
    per_class,
    reduce_batch,
    reduce_multi_label_batch,
    summarize,
    teacher_agreement,
    to_arrays,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def random_heads(images, classes, names=("logits", "cls_logits", "distillation_logits", "teacher_logits"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = {name: torch.randn(images, classes, generator=generator) for name in names}
    return heads, torch.randint(classes, (images,), generator=generator)


def kept_of(heads, labels, batch=7):
    """Reduce the images batch by batch; the last batch may be partial."""
    starts = range(0, len(labels), batch)
    batches = [
        reduce_batch({name: logits[i : i + batch] for name, logits in heads.items()}, labels[i : i + batch])
        for i in starts
    ]
    return to_arrays(batches)


def test_all_metrics_equal_those_of_numpy_for_any_batch_size():
    heads, labels = random_heads(53, 8)
    predictions = {name: logits.numpy().argmax(axis=1) for name, logits in heads.items()}
    truth = labels.numpy()
    hits = predictions["logits"] == truth
    ranks = (heads["logits"].numpy() > np.take_along_axis(heads["logits"].numpy(), truth[:, None], 1)).sum(axis=1)
    expected = {
        "accuracy": hits.mean(),
        "balanced_accuracy": np.mean([hits[truth == label].mean() for label in range(8)]),
        "cls_accuracy": (predictions["cls_logits"] == truth).mean(),
        "distillation_accuracy": (predictions["distillation_logits"] == truth).mean(),
        "teacher_accuracy": (predictions["teacher_logits"] == truth).mean(),
        "teacher_agreement": (predictions["logits"] == predictions["teacher_logits"]).mean(),
        "top5_accuracy": (ranks < 5).mean(),
        "majority_accuracy": max((truth == label).mean() for label in range(8)),
    }
    assert set(truth) == set(range(8))
    for batch in (1, 7, 53):
        assert summarize(kept_of(heads, labels, batch)) == pytest.approx(expected)


def test_metrics_of_a_small_case_computed_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # 0 1 0 2
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])  # 0 2 0 0
    labels = torch.tensor([0, 1, 2, 2])
    summary = summarize(kept_of({"logits": logits, "teacher_logits": teacher}, labels))
    assert summary == {
        "accuracy": 3 / 4,
        "balanced_accuracy": (1 + 1 + 1 / 2) / 3,
        "teacher_accuracy": 1 / 4,
        "teacher_agreement": 2 / 4,
        "majority_accuracy": 2 / 4,
    }


def test_balanced_accuracy_leaves_out_classes_without_images():
    kept = {"prediction": np.array([0, 0, 0, 3]), "label": np.array([0, 0, 0, 5])}
    assert summarize(kept) == {"accuracy": 3 / 4, "balanced_accuracy": 1 / 2, "majority_accuracy": 3 / 4}


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True), (10, True)])
def test_top5_is_computed_only_for_more_than_five_classes(classes, has_top5):
    heads, labels = random_heads(20, classes, names=("logits",))
    kept = kept_of(heads, labels)
    assert ("top5" in kept) == has_top5
    assert ("top5_accuracy" in summarize(kept)) == has_top5


def test_top5_includes_labels_of_rank_one_to_five_only():
    logits = torch.arange(7.0).flip(0).repeat(7, 1)  # class 0 first, class 6 last
    assert kept_of({"logits": logits}, torch.arange(7))["top5"].tolist() == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("classes", [4, 9])
def test_the_largest_soft_label_is_the_label(classes):
    heads, labels = random_heads(30, classes)
    soft = 0.6 * torch.eye(classes)[labels] + 0.4 / classes
    from_soft, from_indices = kept_of(heads, soft), kept_of(heads, labels)
    assert from_soft.keys() == from_indices.keys()
    for name in from_soft:
        np.testing.assert_array_equal(from_soft[name], from_indices[name])


def test_only_a_few_numbers_per_image_are_kept():
    heads, labels = random_heads(12, 100)
    kept = kept_of(heads, labels)
    assert set(kept) == {
        "label",
        "prediction",
        "cls_prediction",
        "distillation_prediction",
        "teacher_prediction",
        "top5",
    }
    assert all(array.shape == (12,) and isinstance(array, np.ndarray) for array in kept.values())


def test_a_single_head_without_a_teacher_has_no_other_metrics():
    heads, labels = random_heads(20, 3, names=("logits",))
    assert set(summarize(kept_of(heads, labels))) == {"accuracy", "balanced_accuracy", "majority_accuracy"}


def test_each_class_has_its_accuracy_and_its_number_of_images():
    kept = {"prediction": np.array([0, 1, 1, 0, 2]), "label": np.array([0, 0, 1, 0, 1])}
    rows = per_class(kept, ["cat", "dog", "eel"])
    assert list(rows) == ["cat", "dog", "eel"]
    assert rows["cat"] == {"accuracy": pytest.approx(2 / 3), "images": 3}
    assert rows["dog"] == {"accuracy": 1 / 2, "images": 2}
    assert rows["eel"] == {"accuracy": None, "images": 0}


def test_the_mean_over_the_classes_is_the_balanced_accuracy():
    heads, labels = random_heads(80, 6, names=("logits",))
    kept = kept_of(heads, labels)
    rows = per_class(kept, [str(label) for label in range(6)])
    assert summarize(kept)["balanced_accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in rows.values()]))


def test_the_metrics_can_be_used_like_any_evaluate_metric():
    accuracy = TopOneAccuracy(keep_in_memory=True)
    accuracy.add_batch(predictions=[0, 1], references=[0, 2])
    accuracy.add(prediction=2, reference=2)
    assert accuracy.compute() == {"accuracy": pytest.approx(2 / 3), "balanced_accuracy": 3 / 4}
    agreement = TeacherAgreement(keep_in_memory=True)
    assert agreement.compute(predictions=np.array([1, 2]), references=np.array([1, 0])) == {"teacher_agreement": 0.5}


def test_all_correct_is_one_and_all_wrong_is_zero():
    labels = np.array([0, 1, 2])
    for prediction, share in ((labels, 1.0), ((labels + 1) % 3, 0.0)):
        summary = summarize({"label": labels, "prediction": prediction})
        assert (summary["accuracy"], summary["balanced_accuracy"]) == (share, share)


# ---- multi-label images ----


def multi_label(images=40, classes=5, seed=0, ties=False):
    """Return labels in which the last class does not occur, and the logits of two heads."""
    generator = np.random.default_rng(seed)
    present = (generator.random((images, classes)) < 0.3).astype(np.uint8)
    present[:, -1] = 0
    scores = {name: generator.normal(size=(images, classes)) for name in ("logits", "cls_logits")}
    if ties:
        scores = {name: np.round(values) for name, values in scores.items()}
    return present, {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.items()}


def kept_of_multi_label(heads, present):
    """Return the arrays of an evaluation in two batches."""
    parts = (slice(0, 7), slice(7, len(present)))
    rows = [
        reduce_multi_label_batch({name: values[part] for name, values in heads.items()}, torch.tensor(present[part]))
        for part in parts
    ]
    return to_arrays(rows)


def decisions_of_sklearn(metrics, present, decided, prefix=""):
    """Return F1, precision and recall as sklearn computes them; the macro means are over the classes that occur."""
    occurring = np.flatnonzero(present.any(axis=0))
    return {
        f"{prefix}{name}_{average}": function(present, decided, average=average, labels=labels, zero_division=0)
        for name, function in (
            ("f1", metrics.f1_score),
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
        )
        for average, labels in (("macro", occurring), ("micro", None))
    }


@pytest.mark.parametrize("ties", [False, True])
def test_multi_label_metrics_equal_those_of_sklearn_over_the_classes_that_occur(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    present, heads = multi_label(ties=ties)
    heads["cls_logits"][:, 0] = -1.0  # a class that is never predicted
    kept = kept_of_multi_label(heads, present)
    expected = {
        name: np.mean([metrics.average_precision_score(present[:, c], logits[:, c].numpy()) for c in range(4)])
        for name, logits in heads.items()
    }
    assert summarize(kept) == pytest.approx(
        {
            "mean_average_precision": expected["logits"],
            "cls_mean_average_precision": expected["cls_logits"],
            "chance_mean_average_precision": np.mean([present[:, c].sum() / 40 for c in range(4)]),
            **decisions_of_sklearn(metrics, present, heads["logits"].numpy() > 0),
            **decisions_of_sklearn(metrics, present, heads["cls_logits"].numpy() > 0, "cls_"),
        }
    )
    rows = per_class(kept, list("abcde"))
    for label, (name, row) in enumerate(rows.items()):
        truth, scores = present[:, label], heads["logits"][:, label].numpy()
        figures = dict.fromkeys(("average_precision", "f1", "precision", "recall"))
        if truth.any():
            figures = {
                "average_precision": metrics.average_precision_score(truth, scores),
                "f1": metrics.f1_score(truth, scores > 0, zero_division=0),
                "precision": metrics.precision_score(truth, scores > 0, zero_division=0),
                "recall": metrics.recall_score(truth, scores > 0, zero_division=0),
            }
        assert row == {**{key: pytest.approx(figure) for key, figure in figures.items()}, "images": truth.sum()}, name


@pytest.mark.parametrize("hard", [False, True], ids=["logits", "decisions"])
def test_the_metrics_of_a_multi_label_teacher_and_the_agreement_equal_those_by_hand(hard):
    metrics = pytest.importorskip("sklearn.metrics")
    present, heads = multi_label()
    teacher = multi_label(seed=1)[1]["logits"]
    outputs = {"teacher_labels": teacher > 0} if hard else {"teacher_logits": teacher}
    summary = summarize(kept_of_multi_label(heads | outputs, present))
    for name, value in decisions_of_sklearn(metrics, present, teacher.numpy() > 0, "teacher_").items():
        assert summary[name] == pytest.approx(value), name
    agrees = (heads["logits"].numpy() > 0) == (teacher.numpy() > 0)
    assert summary["teacher_agreement"] == pytest.approx(agrees.mean())
    np.testing.assert_allclose(
        teacher_agreement(heads | outputs, "multi_label_classification"), agrees.mean(axis=1), rtol=1e-6
    )
    assert ("teacher_mean_average_precision" in summary) is not hard  # decisions have no order
    assert set(summary) - {"chance_mean_average_precision"} <= set(metric_names("multi_label_classification"))


def test_without_any_label_there_are_no_multi_label_metrics():
    present, heads = multi_label()
    assert summarize(kept_of_multi_label(heads, np.zeros_like(present))) == {}


def test_average_precision_of_a_small_case_computed_by_hand():
    # In order of score: yes, no, yes, no: precision 1 at the first hit, 2/3 at the second.
    assert average_precision(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.3, 0.7])) == pytest.approx((1 + 2 / 3) / 2)


def test_equal_scores_give_the_average_precision_of_chance():
    present = np.array([1, 0, 0, 0, 0])
    for order in (present, present[::-1]):
        assert average_precision(order, np.zeros(5)) == pytest.approx(0.2)
