"""Tests of the losses, compared with their formulas in float64 NumPy, and of the terms for each head."""

import copy
import functools
import json
import pickle

import numpy as np
import pytest
import torch

from hf_deit.losses import (
    DEFAULT_ALPHA,
    ProblemType,
    balanced_weights,
    base_loss,
    distillation_terms,
    hard_distillation_loss,
    soft_distillation_loss,
    supervised_loss,
)
from hf_deit.models.configuration_deit import DeiTConfig

BATCH, CLASSES = 6, 5


def random_logits(seed, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64)).to(dtype)


def random_classes(seed=0):
    return torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(seed))


def random_soft_labels(seed=0):
    """Return soft labels with up to two classes per image, as for mixed images."""
    first, second = random_classes(seed), random_classes(seed + 1)
    one_hot = torch.eye(CLASSES)
    return 0.7 * one_hot[first] + 0.3 * one_hot[second]


# The formulas, in float64


def float64(tensor):
    return tensor.detach().double().numpy()


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def naive_soft(student, teacher, tau):
    log_p, log_q = log_softmax(float64(teacher) / tau), log_softmax(float64(student) / tau)
    return tau**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def naive_hard(student, teacher):
    return -log_softmax(float64(student))[np.arange(len(student)), float64(teacher).argmax(axis=-1)]


def naive_cross_entropy(logits, targets, smoothing=0.0):
    targets = (1 - smoothing) * targets + smoothing / targets.shape[-1]
    return -(targets * log_softmax(float64(logits))).sum(axis=-1)


def naive_binary_cross_entropy(logits, targets):
    z = float64(logits)
    # -t·log σ(z) - (1-t)·log(1-σ(z)), where logaddexp computes -log σ without overflow.
    return (targets * np.logaddexp(0, -z) + (1 - targets) * np.logaddexp(0, z)).mean(axis=-1)


def one_hot(labels):
    return np.eye(CLASSES)[labels.numpy()]


# Soft distillation


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0, 20.0])
def test_soft_distillation_is_tau_squared_times_the_kl_divergence_of_each_image(tau):
    student, teacher = random_logits(0), random_logits(1)
    loss = soft_distillation_loss(student, teacher, tau)
    assert loss.shape == (BATCH,)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, naive_soft(student, teacher, tau), rtol=1e-4, atol=1e-6)


def test_the_official_reduction_divides_by_the_number_of_classes():
    student, teacher, tau = random_logits(0), random_logits(1), 3.0
    ours = soft_distillation_loss(student, teacher, tau, reduction="official")
    np.testing.assert_allclose(ours, naive_soft(student, teacher, tau) / CLASSES, rtol=1e-4)
    # facebookresearch/deit losses.py: a sum over batch and classes, divided by the number of elements.
    log_probs = [torch.log_softmax(logits / tau, dim=1) for logits in (student, teacher)]
    official = torch.nn.functional.kl_div(*log_probs, reduction="sum", log_target=True) * tau**2 / student.numel()
    torch.testing.assert_close(ours.mean(), official)


def test_the_default_temperature_and_weights_are_those_of_the_paper():
    student, teacher = random_logits(0), random_logits(1)
    np.testing.assert_allclose(soft_distillation_loss(student, teacher), naive_soft(student, teacher, 3.0), rtol=1e-4)
    assert DEFAULT_ALPHA == {"none": 0.0, "soft": 0.1, "hard": 0.5}


def test_soft_distillation_is_zero_if_the_logits_differ_only_by_a_constant():
    teacher = random_logits(1, dtype=torch.float64)
    loss = soft_distillation_loss(teacher + 7.0, teacher)
    torch.testing.assert_close(loss, torch.zeros(BATCH, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_gradient_of_soft_distillation_is_tau_times_the_difference_of_the_distributions():
    tau = 4.0
    student, teacher = random_logits(0, dtype=torch.float64).requires_grad_(), random_logits(1, dtype=torch.float64)
    soft_distillation_loss(student, teacher, tau).sum().backward()
    q, p = (np.exp(log_softmax(float64(logits) / tau)) for logits in (student, teacher))
    np.testing.assert_allclose(student.grad, tau * (q - p), rtol=1e-9, atol=1e-12)


def test_at_a_small_temperature_soft_distillation_is_tau_squared_times_hard_at_that_temperature():
    """For small τ, softmax(teacher/τ) becomes one-hot, so τ²·KL becomes τ²·CE(student/τ, arg max teacher)."""
    tau = 0.02
    student = random_logits(0, dtype=torch.float64)
    teacher = 3.0 * torch.eye(CLASSES, dtype=torch.float64)[random_classes()]
    soft = soft_distillation_loss(student, teacher, tau)
    torch.testing.assert_close(soft, tau**2 * hard_distillation_loss(student / tau, teacher), rtol=1e-9, atol=1e-12)


def test_at_a_large_temperature_soft_distillation_is_the_squared_distance_of_the_centred_logits():
    """Hinton et al., arXiv:1503.02531, section 2.1: τ²·KL → ‖student - teacher‖² / (2·classes), both with mean 0."""
    student, teacher = random_logits(0, dtype=torch.float64), random_logits(1, dtype=torch.float64)
    difference = float64(student - teacher)
    difference -= difference.mean(axis=-1, keepdims=True)
    expected = (difference**2).sum(axis=-1) / (2 * CLASSES)
    np.testing.assert_allclose(soft_distillation_loss(student, teacher, tau=1e4), expected, rtol=2e-3)


# Hard distillation


def test_hard_distillation_is_the_cross_entropy_with_the_teachers_decision():
    student, teacher = random_logits(2), random_logits(3)
    loss = hard_distillation_loss(student, teacher)
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, naive_hard(student, teacher), rtol=1e-5)


def test_hard_distillation_depends_only_on_the_arg_max_of_the_teacher():
    student, teacher = random_logits(2), random_logits(3)
    torch.testing.assert_close(
        hard_distillation_loss(student, teacher), hard_distillation_loss(student, 0.01 * teacher + 5.0)
    )


# The loss on the labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_accepts_class_indices_and_smooths_them(smoothing):
    logits, labels = random_logits(4), random_classes()
    loss = base_loss(logits, labels, label_smoothing=smoothing)
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, naive_cross_entropy(logits, one_hot(labels), smoothing), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cross_entropy_accepts_soft_labels(smoothing, dtype):
    logits, labels = random_logits(4), random_soft_labels().to(dtype)
    expected = naive_cross_entropy(logits, float64(labels), smoothing)
    np.testing.assert_allclose(base_loss(logits, labels, label_smoothing=smoothing), expected, rtol=1e-5)


def test_one_hot_soft_labels_give_the_same_loss_as_their_class_indices():
    logits, labels = random_logits(4), random_classes()
    for kind in ("cross_entropy", "binary_cross_entropy"):
        from_indices, from_soft = base_loss(logits, labels, kind), base_loss(logits, torch.eye(CLASSES)[labels], kind)
        torch.testing.assert_close(from_indices, from_soft)


def test_binary_cross_entropy_accepts_class_indices():
    logits, labels = random_logits(5), random_classes()
    loss = base_loss(logits, labels, "binary_cross_entropy")
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, naive_binary_cross_entropy(logits, one_hot(labels)), rtol=1e-5)


def test_binary_cross_entropy_counts_every_class_of_a_mixed_label_as_present():
    logits, labels = random_logits(5), random_soft_labels()
    assert set(labels.unique().tolist()) - {0.0, 1.0}, "the labels should be mixed"
    expected = naive_binary_cross_entropy(logits, float64(labels) > 0)
    np.testing.assert_allclose(base_loss(logits, labels, "binary_cross_entropy"), expected, rtol=1e-5)


# Labels of every problem type


WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 0.25, 1.5, 1.0, 1.0, 4.0])


def weights_of(logits):
    return WEIGHT[: logits.shape[-1]].double().numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_class_weights_multiply_the_share_of_each_class_in_the_label(soft, smoothing):
    logits = random_logits(0)
    labels = random_soft_labels() if soft else random_classes()
    targets = float64(labels) if soft else one_hot(labels)
    classes = logits.shape[-1]
    targets = targets * (1 - smoothing) + smoothing / classes
    expected = -(targets * weights_of(logits) * log_softmax(float64(logits))).sum(-1)
    value = base_loss(logits, labels, label_smoothing=smoothing, weight=WEIGHT[:classes])
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_class_weights_multiply_the_present_classes_of_binary_cross_entropy(soft):
    logits = random_logits(0)
    labels = random_soft_labels() if soft else random_classes()
    present = (float64(labels) > 0).astype(float) if soft else one_hot(labels)
    x = float64(logits)
    terms = present * weights_of(logits) * np.log1p(np.exp(-x)) + (1 - present) * np.log1p(np.exp(x))
    value = base_loss(logits, labels, "binary_cross_entropy", weight=WEIGHT[: logits.shape[-1]])
    np.testing.assert_allclose(value.numpy(), terms.mean(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_weights_of_1_do_not_change_the_loss_of_half_precision_logits(kind):
    logits, labels = random_logits(0, dtype=torch.bfloat16), random_classes()
    weight = torch.ones(logits.shape[-1], dtype=torch.float64)
    assert torch.equal(base_loss(logits, labels, kind, weight=weight), base_loss(logits, labels, kind))


def test_balanced_weights_give_all_classes_the_same_total_and_images_a_mean_of_1():
    labels = [0] * 6 + [1] * 3 + [3] * 1
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 0.0, 10 / 4])  # a class without images has the weight 0
    even = balanced_weights([0, 0, 0, 1, 2, 2], 3)
    assert [even[index].item() * count for index, count in ((0, 3), (1, 1), (2, 2))] == pytest.approx([2, 2, 2])
    assert even[torch.tensor([0, 0, 0, 1, 2, 2])].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_classification_accepts_indices_and_soft_labels(problem_type):
    logits, labels, soft = random_logits(6), random_classes(), random_soft_labels()
    expected = naive_cross_entropy(logits, one_hot(labels))
    np.testing.assert_allclose(supervised_loss(logits, labels, problem_type), expected, rtol=1e-5)
    expected = naive_cross_entropy(logits, float64(soft))
    np.testing.assert_allclose(supervised_loss(logits, soft, problem_type), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.long, torch.bool])
def test_multi_label_classification_accepts_zeros_and_ones_of_any_type(dtype):
    logits = random_logits(6)
    labels = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    loss = supervised_loss(logits, labels, "multi_label_classification")
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, naive_binary_cross_entropy(logits, labels.double().numpy()), rtol=1e-5)


def test_multi_label_targets_are_not_rounded_up_like_mixed_labels():
    logits, labels = random_logits(6), random_soft_labels()
    expected = naive_binary_cross_entropy(logits, float64(labels))
    np.testing.assert_allclose(supervised_loss(logits, labels, "multi_label_classification"), expected, rtol=1e-5)


def test_regression_is_the_mean_squared_error_of_each_image():
    logits, labels = random_logits(6), random_logits(7)
    loss = supervised_loss(logits, labels, "regression")
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, ((float64(logits) - float64(labels)) ** 2).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("problem_type", [None, "regression"])
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1)])
def test_a_single_output_is_a_regression_and_accepts_labels_with_or_without_its_axis(problem_type, shape):
    logits, labels = random_logits(6)[:, :1], random_logits(7)[:, 0]
    loss = supervised_loss(logits, labels.reshape(shape), problem_type)
    assert loss.shape == (BATCH,)
    np.testing.assert_allclose(loss, (float64(logits)[:, 0] - float64(labels)) ** 2, rtol=1e-5)


# Numerical properties


LOSSES = {
    "soft": lambda z: soft_distillation_loss(z, random_logits(1, dtype=torch.float64), 2.0),
    "soft, official": lambda z: soft_distillation_loss(z, random_logits(1, dtype=torch.float64), 2.0, "official"),
    "hard": lambda z: hard_distillation_loss(z, random_logits(1, dtype=torch.float64)),
    "cross-entropy": lambda z: base_loss(z, random_classes(), label_smoothing=0.1),
    "cross-entropy, soft labels": lambda z: base_loss(z, random_soft_labels()),
    "binary cross-entropy": lambda z: base_loss(z, random_soft_labels(), "binary_cross_entropy"),
    "multi-label": lambda z: supervised_loss(z, random_soft_labels().round(), "multi_label_classification"),
    "regression": lambda z: supervised_loss(z, random_logits(1, dtype=torch.float64), "regression"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences_and_the_loss_stays_in_float64(name):
    logits = random_logits(8, dtype=torch.float64).requires_grad_()
    assert LOSSES[name](logits).dtype == torch.float64
    assert torch.autograd.gradcheck(LOSSES[name], logits)


def extreme_logits(dtype):
    """Return very large logits: student and teacher agree, disagree, or are uniform."""
    student = torch.tensor([[1e4, -1e4, 0], [1e4, -1e4, 0], [0, 0, 0], [-1e4, -1e4, -1e4]], dtype=dtype)
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [-1e4, 0, 1e4], [1e4, 1e4, 1e4]], dtype=dtype)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss_function", "naive"),
    [
        (functools.partial(soft_distillation_loss, tau=1.0), functools.partial(naive_soft, tau=1.0)),
        (functools.partial(soft_distillation_loss, tau=3.0), functools.partial(naive_soft, tau=3.0)),
        (functools.partial(soft_distillation_loss, tau=0.01), functools.partial(naive_soft, tau=0.01)),
        (hard_distillation_loss, naive_hard),
    ],
    ids=["soft 1", "soft 3", "soft 0.01", "hard"],
)
def test_extreme_logits_of_student_and_teacher_give_finite_values_and_gradients(dtype, loss_function, naive):
    student, teacher = extreme_logits(dtype)
    loss = loss_function(student, teacher)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.detach(), naive(student, teacher), rtol=1e-5, atol=1e-5)
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_extreme_logits_on_the_labels_give_finite_values_and_gradients(dtype, kind):
    naive = naive_cross_entropy if kind == "cross_entropy" else naive_binary_cross_entropy
    for labels in (torch.tensor([0, 1, 2, 0]), torch.tensor([[0.6, 0.4, 0], [0, 1, 0], [0.5, 0, 0.5], [1, 0, 0]])):
        logits, _ = extreme_logits(dtype)
        loss = base_loss(logits, labels, kind)
        assert loss.dtype == torch.float32
        targets = np.eye(3)[labels.numpy()] if labels.ndim == 1 else labels.numpy().astype(np.float64)
        targets = targets if kind == "cross_entropy" else targets > 0
        np.testing.assert_allclose(loss.detach(), naive(logits, targets), rtol=1e-5)
        loss.sum().backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_logits_is_computed_in_float32(dtype):
    """Compare the loss of rounded logits with the float64 loss of the same rounded logits."""
    student, teacher, labels = random_logits(0, dtype=dtype), random_logits(1, dtype=dtype), random_classes()
    np.testing.assert_allclose(soft_distillation_loss(student, teacher), naive_soft(student, teacher, 3.0), rtol=1e-3)
    hard, cross_entropy = hard_distillation_loss(student, teacher), base_loss(student, labels)
    np.testing.assert_allclose(hard, naive_hard(student, teacher), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cross_entropy, naive_cross_entropy(student, one_hot(labels)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_an_image_does_not_depend_on_the_other_images(name):
    logits = random_logits(8, dtype=torch.float64)
    other = torch.cat([logits[:1], random_logits(9, dtype=torch.float64)[1:]])
    assert LOSSES[name](logits)[0] == LOSSES[name](other)[0]


# What each head learns from


def heads_of(num_heads):
    """Return the logits of each head as leaf tensors, so that each has its own gradient.

    The combined logits of two heads are also a separate leaf.
    """
    names = ("logits",) if num_heads == 1 else ("logits", "cls_logits", "distillation_logits")
    return {name: random_logits(seed, dtype=torch.float64).requires_grad_() for seed, name in enumerate(names)}


def terms_of(heads, with_teacher, alpha=0.3):
    teacher = random_logits(99, dtype=torch.float64)
    terms = distillation_terms(
        heads,
        functools.partial(base_loss, labels=random_classes()),
        functools.partial(soft_distillation_loss, teacher_logits=teacher) if with_teacher else None,
        alpha,
    )
    return terms, teacher


def label_gradient(logits):
    return np.exp(log_softmax(float64(logits))) - one_hot(random_classes())


def teacher_gradient(logits, teacher, tau=3.0):
    return tau * (np.exp(log_softmax(float64(logits) / tau)) - np.exp(log_softmax(float64(teacher) / tau)))


def assert_gradients(heads, expected):
    """Check that exactly the heads in `expected` have a gradient, with the expected values."""
    assert {name for name, head in heads.items() if head.grad is not None} == set(expected)
    for name, gradient in expected.items():
        np.testing.assert_allclose(heads[name].grad, gradient, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_with_two_heads_the_class_head_learns_from_labels_and_the_distillation_head_from_the_teacher(alpha):
    heads = heads_of(2)
    terms, teacher = terms_of(heads, with_teacher=True, alpha=alpha)
    cls_loss = naive_cross_entropy(heads["cls_logits"], one_hot(random_classes()))
    distillation_loss = naive_soft(heads["distillation_logits"], teacher, 3.0)
    np.testing.assert_allclose(terms["cls_loss"].detach(), cls_loss)
    np.testing.assert_allclose(terms["distillation_loss"].detach(), distillation_loss)
    np.testing.assert_allclose(terms["loss"].detach(), (1 - alpha) * cls_loss + alpha * distillation_loss)
    terms["loss"].sum().backward()
    expected = {
        "cls_logits": (1 - alpha) * label_gradient(heads["cls_logits"]),
        "distillation_logits": alpha * teacher_gradient(heads["distillation_logits"], teacher),
    }
    assert_gradients(heads, expected)


def test_with_two_heads_and_no_teacher_both_heads_learn_from_the_labels():
    heads = heads_of(2)
    terms, _ = terms_of(heads, with_teacher=False)
    cls_loss, distillation_loss = (
        naive_cross_entropy(heads[name], one_hot(random_classes())) for name in ("cls_logits", "distillation_logits")
    )
    np.testing.assert_allclose(terms["cls_loss"].detach(), cls_loss)
    np.testing.assert_allclose(terms["distillation_loss"].detach(), distillation_loss)
    np.testing.assert_allclose(terms["loss"].detach(), (cls_loss + distillation_loss) / 2)
    terms["loss"].sum().backward()
    assert_gradients(heads, {name: label_gradient(heads[name]) / 2 for name in ("cls_logits", "distillation_logits")})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_with_one_head_the_head_learns_from_labels_and_teacher(alpha):
    heads = heads_of(1)
    terms, teacher = terms_of(heads, with_teacher=True, alpha=alpha)
    cls_loss = naive_cross_entropy(heads["logits"], one_hot(random_classes()))
    distillation_loss = naive_soft(heads["logits"], teacher, 3.0)
    np.testing.assert_allclose(terms["cls_loss"].detach(), cls_loss)
    np.testing.assert_allclose(terms["distillation_loss"].detach(), distillation_loss)
    np.testing.assert_allclose(terms["loss"].detach(), (1 - alpha) * cls_loss + alpha * distillation_loss)
    terms["loss"].sum().backward()
    both = (1 - alpha) * label_gradient(heads["logits"]) + alpha * teacher_gradient(heads["logits"], teacher)
    assert_gradients(heads, {"logits": both})


def test_with_one_head_and_no_teacher_the_loss_is_that_on_the_labels():
    heads = heads_of(1)
    terms, _ = terms_of(heads, with_teacher=False)
    assert list(terms) == ["loss", "cls_loss"]
    np.testing.assert_allclose(terms["loss"].detach(), naive_cross_entropy(heads["logits"], one_hot(random_classes())))
    terms["loss"].sum().backward()
    assert_gradients(heads, {"logits": label_gradient(heads["logits"])})


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_loss_is_the_first_term_and_every_term_has_one_value_per_image(num_heads, with_teacher):
    terms, _ = terms_of(heads_of(num_heads), with_teacher)
    assert next(iter(terms)) == "loss"
    assert all(term.shape == (BATCH,) for term in terms.values())


# Errors


@pytest.mark.parametrize("loss_function", [soft_distillation_loss, hard_distillation_loss])
@pytest.mark.parametrize("shape", [(6, 7), (5, 5), (5,), (1, 5)])
def test_logits_of_other_shapes_are_refused_with_both_shapes(loss_function, shape):
    with pytest.raises(ValueError) as error:
        loss_function(random_logits(0), torch.zeros(shape))
    assert str((BATCH, CLASSES)) in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("tau", [0, 0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused_with_its_value(tau):
    with pytest.raises(ValueError, match=rf"tau={tau}.*above 0"):
        soft_distillation_loss(random_logits(0), random_logits(1), tau)


def test_an_unknown_reduction_raises_an_error_that_lists_the_reductions():
    with pytest.raises(ValueError, match="reduction='mean'.*image.*official"):
        soft_distillation_loss(random_logits(0), random_logits(1), reduction="mean")


def test_an_unknown_base_loss_raises_an_error_that_lists_the_losses():
    with pytest.raises(ValueError, match="'focal'.*cross_entropy.*binary_cross_entropy"):
        base_loss(random_logits(0), random_classes(), "focal")


def test_smoothing_with_binary_cross_entropy_raises_an_error_with_a_fix():
    with pytest.raises(ValueError, match="label_smoothing=0.1 .*binary_cross_entropy.*to 0.*'cross_entropy'"):
        base_loss(random_logits(0), random_classes(), "binary_cross_entropy", label_smoothing=0.1)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(BATCH + 1, dtype=torch.long),
        torch.zeros(BATCH),
        torch.zeros(BATCH, CLASSES, dtype=torch.long),
        torch.zeros(BATCH, CLASSES + 1),
        torch.zeros(BATCH, 1, dtype=torch.long),
        torch.tensor(1),
    ],
    ids=["too many", "floats", "0/1 integers", "too many classes", "a column", "a scalar"],
)
@pytest.mark.parametrize("loss_function", [base_loss, supervised_loss])
def test_labels_of_an_invalid_shape_or_type_raise_an_error_with_the_valid_ones(loss_function, labels):
    with pytest.raises(ValueError, match="class indices.*soft labels") as error:
        loss_function(random_logits(0), labels)
    assert str(tuple(labels.shape)) in str(error.value)
    assert str(labels.dtype) in str(error.value)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, CLASSES - 1), (CLASSES, BATCH)])
def test_multi_label_and_regression_labels_need_the_shape_of_the_logits(problem_type, shape):
    with pytest.raises(ValueError, match=f"problem_type='{problem_type}'") as error:
        supervised_loss(random_logits(0), torch.zeros(shape), problem_type)
    assert str(shape) in str(error.value)
    assert str((BATCH, CLASSES)) in str(error.value)


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_outside_the_classes_raises_an_error_and_is_not_ignored(label):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        base_loss(torch.zeros(2, 3), torch.tensor([0, label]))


# ---- the problem type ----


def test_a_problem_type_is_written_and_compared_as_its_string():
    text = "multi_label_classification"
    kind = ProblemType(text)
    assert kind is ProblemType.MULTI_LABEL and kind == text and hash(kind) == hash(text)
    assert [str(kind), f"{kind}", "%s" % kind, "{:s}".format(kind), ", ".join([kind])] == [text] * 5  # noqa: UP031, UP032
    assert f"{kind!r}" == repr(text) and json.dumps({"type": kind}) == json.dumps({"type": text})
    assert pickle.loads(pickle.dumps(kind)) is copy.deepcopy(kind) is kind
    with pytest.raises(ValueError, match=f"problem_type='many'.*{', '.join(ProblemType)}"):
        ProblemType("many")


def test_a_problem_type_is_saved_in_a_configuration_as_its_string(tmp_path):
    for name, kind in (("a", ProblemType.REGRESSION), ("b", "regression")):
        DeiTConfig(problem_type=kind).save_pretrained(tmp_path / name)
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_every_distillation_type_except_none_has_a_loss_and_all_have_a_default_weight():
    from hf_deit import losses

    assert ("none", *losses.DISTILLATION_LOSSES) == losses.DISTILLATION_TYPES
    assert losses.DEFAULT_ALPHA.keys() == set(losses.DISTILLATION_TYPES)
    with pytest.raises(ValueError, match="distillation_type='none'"):
        losses.teacher_loss({"teacher_labels": None}, distillation_type="none", tau=1.0, reduction="image")
