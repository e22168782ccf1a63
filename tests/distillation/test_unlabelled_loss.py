"""The loss of batches in which images have no label, against a naive computation image by image from its formula."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from hf_deit import losses
from hf_deit.distillation.objective import DistillationObjective
from hf_deit.losses import UNLABELLED, distillation_terms

CLASSES, BATCH = 4, 8
ALPHA, TAU = 0.3, 2.0
# The first pair has two labels, the second one, the third the other one, and the last none.
LABELS = torch.tensor([2, 0, 3, UNLABELLED, UNLABELLED, 1, UNLABELLED, UNLABELLED])
# mixup of the share 0.7 and of 0.25; cutmix of a box of 1/4; no mixing
MIXES = torch.tensor(
    [[0.7, 0, 0, 0, 0], [0.7, 0, 0, 0, 0], [0.25, 0, 0, 0, 0], [0.25, 0, 0, 0, 0]] + [[1.0, 0.0, 0.5, 0.0, 0.5]] * 4
)
SHARES = (0.7, 0.7, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75)


def heads_of(two_heads):
    torch.manual_seed(0)
    names = ("cls_logits", "distillation_logits") if two_heads else ("logits",)
    heads = {name: torch.randn(BATCH, CLASSES, requires_grad=True) for name in names}
    if two_heads:
        heads["logits"] = (heads["cls_logits"] + heads["distillation_logits"]) / 2
    return heads


def teacher_logits():
    return torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1))


def batch_of(labels, mixes):
    batch = {"pixel_values": torch.rand(BATCH, 3, 8, 8), "labels": labels}
    return batch if mixes is None else {**batch, "mixes": mixes}


def terms_of(heads, labels, mixes, **fields):
    fields = {"distillation_type": "soft", "alpha": ALPHA, "tau": TAU, **fields}
    objective = DistillationObjective(num_labels=CLASSES, learns_from_teacher=True, allows_unlabelled=True, **fields)
    prepared = objective.prepare(batch_of(labels, mixes))
    return objective.terms(heads, {"teacher_logits": teacher_logits()}, prepared.labels, prepared.label_weights)


def naive_target(labels, shares, index, one_hot):
    """Return the renormalised target and the labelled share of one image, from the formula of the docs."""
    target, weight = torch.zeros(CLASSES), 0.0
    for member, share in ((index, shares[index]), (index ^ 1, 1 - shares[index])):
        if (labels[member] != UNLABELLED).any():
            target += share * one_hot(labels[member])
            weight += share
    return (target / weight if weight else target), weight


def single_label_term(logits, target, kind, smoothing, weight):
    if kind == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(logits, (target > 0).float(), pos_weight=weight)
    target = (1 - smoothing) * target + smoothing / CLASSES
    return -(target * weight * logits.log_softmax(-1)).sum()


SETTINGS = [
    ("cross_entropy", 0.0, None),
    ("cross_entropy", 0.1, torch.tensor([0.5, 2.0, 1.0, 0.7])),
    ("binary_cross_entropy", 0.0, None),
]


@pytest.mark.parametrize(("kind", "smoothing", "weights"), SETTINGS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("two_heads", "distillation_type"), itertools.product((False, True), ("soft", "hard")))
def test_single_label_losses_follow_the_formula(two_heads, distillation_type, mixed, kind, smoothing, weights):
    heads, shares = heads_of(two_heads), SHARES if mixed else (1.0,) * BATCH
    found = terms_of(
        heads,
        LABELS,
        MIXES if mixed else None,
        distillation_type=distillation_type,
        label_loss=kind,
        label_smoothing=smoothing,
        class_weights=weights,
    )
    for index, teacher in enumerate(teacher_logits()):
        target, share = naive_target(LABELS, shares, index, lambda label: F.one_hot(label, CLASSES).float())
        student = heads.get("distillation_logits", heads["logits"])[index]
        if distillation_type == "hard":
            term = -student.log_softmax(-1)[teacher.argmax()]
        else:
            teacher = (teacher / TAU).softmax(-1)
            term = TAU**2 * (teacher * (teacher.log() - (student / TAU).log_softmax(-1))).sum()
        label = heads.get("cls_logits", heads["logits"])[index]
        own = single_label_term(label, target, kind, smoothing, torch.ones(CLASSES) if weights is None else weights)
        expected = (1 - ALPHA) * share * own + ALPHA * term
        torch.testing.assert_close(found["loss"][index], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["cls_loss"][index], share * own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_multi_label_losses_follow_the_formula(mixed):
    labels = torch.tensor(
        [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0], [-100] * 4, [-100] * 4, [1, 1, 0, 0], *[[-100] * 4] * 2]
    )
    heads, shares = heads_of(False), SHARES if mixed else (1.0,) * BATCH
    found = terms_of(heads, labels, MIXES if mixed else None, problem_type="multi_label_classification")
    for index, teacher in enumerate(teacher_logits()):
        target, share = naive_target(labels, shares, index, lambda label: label.float())
        student = heads["logits"][index]
        wanted, given = (teacher / TAU).sigmoid(), (student / TAU).sigmoid()
        both = wanted * (wanted / given).log() + (1 - wanted) * ((1 - wanted) / (1 - given)).log()
        expected = (1 - ALPHA) * share * F.binary_cross_entropy_with_logits(
            student, target
        ) + ALPHA * TAU**2 * both.mean()
        torch.testing.assert_close(found["loss"][index], expected, rtol=1e-5, atol=1e-6)


def test_the_class_head_of_two_learns_nothing_from_an_unlabelled_image():
    heads = heads_of(True)
    terms_of(heads, LABELS, None)["loss"].sum().backward()
    missing = LABELS == UNLABELLED
    assert heads["cls_logits"].grad[missing].abs().max() == 0
    assert heads["cls_logits"].grad[~missing].abs().amin(dim=0).min() > 0
    assert heads["distillation_logits"].grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("mixes", [None, MIXES])
def test_a_batch_in_which_all_images_have_labels_has_the_same_bits_as_before(mixes):
    heads, labels = heads_of(True), torch.tensor([2, 0, 3, 1, 1, 1, 0, 2])
    found = terms_of(heads, labels, mixes, label_smoothing=0.1)
    objective = DistillationObjective(
        num_labels=CLASSES,
        learns_from_teacher=True,
        distillation_type="soft",
        alpha=ALPHA,
        tau=TAU,
        label_smoothing=0.1,
    )
    prepared = objective.prepare(batch_of(labels, mixes))
    assert prepared.label_weights is None
    expected = objective.terms(heads, {"teacher_logits": teacher_logits()}, prepared.labels)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_weight_of_an_unlabelled_images_teacher_term_is_one_switch(monkeypatch):
    ones, weights = torch.ones(3), torch.tensor([1.0, 0.0, 0.4])

    def loss():
        return distillation_terms(
            {"logits": torch.zeros(3, CLASSES)}, lambda _: ones, lambda _: 2 * ones, 0.3, weights
        )["loss"].tolist()

    assert loss() == pytest.approx([0.7 + 0.6, 0.6, 0.28 + 0.6])
    monkeypatch.setattr(losses, "UNLABELLED_TEACHER_TERM_WEIGHS_ONE", True)
    assert loss() == pytest.approx([0.7 + 0.6, 2.0, 0.28 + 2 * (0.3 + 0.7 * 0.6)])
