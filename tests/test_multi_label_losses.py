"""Tests of the multi-label losses, compared with loops over images and classes in float64 Python."""

import itertools
import math

import numpy as np
import pytest
import torch

from hf_deit.losses import (
    DISTILLATION_TYPES,
    MULTI_LABEL_DISTILLATION_LOSSES,
    ProblemType,
    balanced_weights,
    multi_label_hard_distillation_loss,
    multi_label_soft_distillation_loss,
    soft_distillation_loss,
    supervised_loss,
    teacher_decisions,
    teacher_loss,
)

MULTI = ProblemType.MULTI_LABEL
BATCH, CLASSES = 6, 5


def logits(seed, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64)).to(dtype)


def labels(seed=0):
    return (torch.rand(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def log_sigmoid(z):
    return -math.log1p(math.exp(-z)) if z >= 0 else z - math.log1p(math.exp(z))


def per_image(student, other, of_class):
    """Return the mean of `of_class(student, other, class)` over the classes of each image."""
    rows = zip(student.double().tolist(), other.double().tolist(), strict=True)
    return [sum(of_class(s, t, c) for c, (s, t) in enumerate(zip(*row, strict=True))) / len(row[0]) for row in rows]


def naive_soft(student, teacher, tau):
    def of_class(s, t, _):
        p_log, q_log = (log_sigmoid(z / tau) for z in (t, s))
        p_not, q_not = (log_sigmoid(-z / tau) for z in (t, s))
        return tau**2 * (math.exp(p_log) * (p_log - q_log) + math.exp(p_not) * (p_not - q_not))

    return per_image(student, teacher, of_class)


def naive_cross_entropy(student, targets, weight=None):
    weight = [1.0] * student.shape[-1] if weight is None else weight.tolist()
    return per_image(student, targets, lambda s, y, c: -weight[c] * y * log_sigmoid(s) - (1 - y) * log_sigmoid(-s))


# ---- soft distillation ----


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_soft_loss_is_the_mean_kl_divergence_of_two_bernoullis_per_class(tau, dtype):
    student, teacher = logits(0, dtype=dtype), logits(1, dtype=dtype)
    loss = multi_label_soft_distillation_loss(student, teacher, tau)
    assert loss.shape == (BATCH,)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(loss, naive_soft(student, teacher, tau), rtol=1e-4, atol=1e-6)


def test_for_one_class_the_soft_loss_is_that_of_two_softmax_outcomes():
    student, teacher = logits(0)[:, :1], logits(1)[:, :1]
    pairs = [torch.cat([z, torch.zeros_like(z)], dim=1) for z in (student, teacher)]  # σ(z) = softmax(z, 0)
    torch.testing.assert_close(
        multi_label_soft_distillation_loss(student, teacher, 2.0), soft_distillation_loss(*pairs, tau=2.0)
    )


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_an_ideal_student_has_no_soft_loss_and_no_gradient_and_any_other_student_has_both(tau):
    teacher = logits(1, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = multi_label_soft_distillation_loss(student, teacher, tau)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
    other = logits(2, dtype=torch.float64).requires_grad_()
    loss = multi_label_soft_distillation_loss(other, teacher, tau)
    (gradient,) = torch.autograd.grad(loss.sum(), other)
    expected = tau * (torch.sigmoid(other / tau) - torch.sigmoid(teacher / tau)) / CLASSES
    torch.testing.assert_close(gradient, expected.detach())
    assert (loss > 0).all()


@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_extreme_logits_give_finite_soft_and_hard_losses_and_gradients(tau):
    values = (-1e4, -30.0, 0.0, 30.0, 1e4)
    pairs = torch.tensor(list(itertools.product(values, values)))
    student, teacher = pairs[:, :1].clone().requires_grad_(), pairs[:, 1:]
    for loss, expected in (
        (multi_label_soft_distillation_loss(student, teacher, tau), naive_soft_large(pairs, tau)),
        (multi_label_hard_distillation_loss(student, teacher), naive_hard_large(pairs)),
    ):
        np.testing.assert_allclose(loss.detach(), expected, rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert gradient.isfinite().all()


def naive_soft_large(pairs, tau):
    def log_one_plus_exp(z):
        return max(z, 0.0) + math.log1p(math.exp(-abs(z)))

    rows = []
    for s, t in pairs.double().tolist():
        p = 1 / (1 + math.exp(-t / tau)) if t > 0 else math.exp(max(t / tau, -700)) / (1 + math.exp(max(t / tau, -700)))
        cross = p * log_one_plus_exp(-s / tau) + (1 - p) * log_one_plus_exp(s / tau)
        own = p * log_one_plus_exp(-t / tau) + (1 - p) * log_one_plus_exp(t / tau)
        rows.append(tau**2 * (cross - own))
    return rows


def naive_hard_large(pairs):
    rows = []
    for s, t in pairs.double().tolist():
        z = -s if t > 0 else s
        rows.append(max(z, 0.0) + math.log1p(math.exp(-abs(z))))
    return rows


def test_invalid_temperatures_and_shapes_are_refused():
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"tau={tau}"):
            multi_label_soft_distillation_loss(logits(0), logits(1), tau)
    for loss in (multi_label_soft_distillation_loss, multi_label_hard_distillation_loss):
        with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
            loss(logits(0), logits(1)[:, :4])


# ---- hard distillation ----


def test_the_hard_loss_is_the_cross_entropy_with_the_thresholded_teacher():
    student, teacher = logits(0), logits(1)
    teacher[0, 0] = 0.0  # a probability of exactly 0.5 is absent, as in `predict`
    expected = naive_cross_entropy(student, (torch.sigmoid(teacher) > 0.5).float())
    np.testing.assert_allclose(multi_label_hard_distillation_loss(student, teacher), expected, rtol=1e-5)
    for decisions in ((teacher > 0), (teacher > 0).long()):
        np.testing.assert_allclose(multi_label_hard_distillation_loss(student, decisions), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["teacher_logits", "teacher_labels"])
def test_the_loss_on_teacher_outputs_is_that_of_the_distillation_type(name):
    student, teacher = logits(0), logits(1)
    outputs = {name: teacher if name == "teacher_logits" else teacher > 0}
    assert torch.equal(teacher_decisions(outputs, MULTI), teacher > 0)
    types = {"hard": multi_label_hard_distillation_loss(student, teacher)}
    if name == "teacher_logits":
        types["soft"] = multi_label_soft_distillation_loss(student, teacher, 2.0)
    for distillation_type, expected in types.items():
        loss = teacher_loss(
            outputs, distillation_type=distillation_type, tau=2.0, reduction="image", problem_type=MULTI
        )
        assert torch.equal(loss(student), expected)


def test_without_teacher_outputs_there_is_no_multi_label_loss_on_them():
    assert teacher_decisions({}, MULTI) is None
    fields = {"tau": 1.0, "reduction": "image", "problem_type": MULTI}
    assert teacher_loss({}, distillation_type="soft", **fields) is None
    with pytest.raises(ValueError, match="distillation_type='none'"):
        teacher_loss({"teacher_logits": logits(0)}, distillation_type="none", **fields)
    assert ("none", *MULTI_LABEL_DISTILLATION_LOSSES) == DISTILLATION_TYPES


# ---- the loss on labels ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_on_labels_is_the_weighted_cross_entropy_with_smoothed_labels(smoothing, weighted):
    student, targets = logits(0), labels()
    weight = torch.tensor([0.5, 1.0, 2.0, 7.0, 0.0]) if weighted else None
    loss = supervised_loss(student, targets, MULTI, label_smoothing=smoothing, weight=weight)
    smooth = targets * (1 - smoothing) + 0.5 * smoothing
    np.testing.assert_allclose(loss, naive_cross_entropy(student, smooth, weight), rtol=1e-5)


def test_smoothing_the_labels_of_both_partners_equals_smoothing_the_mixed_labels():
    student, first, second, share = logits(0), labels(0), labels(1), 0.3
    mixed = supervised_loss(student, share * first + (1 - share) * second, MULTI, label_smoothing=0.2)
    parts = [supervised_loss(student, part, MULTI, label_smoothing=0.2) for part in (first, second)]
    torch.testing.assert_close(mixed, share * parts[0] + (1 - share) * parts[1])


def test_with_binary_cross_entropy_both_classes_of_a_mixed_image_count_as_present():
    student, mixed = logits(0), 0.3 * labels(0) + 0.7 * labels(1)
    loss = supervised_loss(student, mixed, MULTI, kind="binary_cross_entropy")
    np.testing.assert_allclose(loss, naive_cross_entropy(student, (mixed > 0).float()), rtol=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 with base_loss=.binary_cross_entropy"):
        supervised_loss(student, mixed, MULTI, kind="binary_cross_entropy", label_smoothing=0.1)
    for field, value in (("kind", "focal"), ("label_smoothing", 1.0)):
        with pytest.raises(ValueError, match=str(value)):
            supervised_loss(student, mixed, MULTI, **{field: value})


def test_balanced_weights_of_multi_label_data_give_presence_and_absence_the_same_total():
    rows = [(1, 0, 1, 0), (0, 0, 1, 0), (0, 1, 1, 0), (0, 1, 1, 0), (0, 1, 1, 0)]
    weights = balanced_weights(rows, 4)
    assert weights.dtype == torch.float32
    present = np.array(rows).sum(axis=0)
    np.testing.assert_allclose((weights.numpy() * present)[:2], (len(rows) - present)[:2], rtol=1e-6)
    assert weights[2:].tolist() == [1.0, 1.0]  # a class that all images have, and one that none has
