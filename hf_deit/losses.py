"""Losses: pure functions of tensors that return one value per image.

Every loss has the shape `(batch,)` and is in float32 (float64 for float64 logits), so that a caller can average it over
any number of images, batches and processes. `distillation_terms` combines the losses into the named terms that the
trainer logs. The averaging itself is in trainer/.

Paper: Touvron et al., arXiv:2012.12877, section 4 (soft: eq. 2, hard: eq. 3); soft distillation: Hinton et al.,
arXiv:1503.02531; binary cross-entropy: DeiT III, arXiv:2204.07118, section 3; guidance by patch features: locality
guidance, Li et al., arXiv:2207.10026.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BASE_LOSSES = ("cross_entropy", "binary_cross_entropy")
# Apart from "none", these are the keys of DISTILLATION_LOSSES at the end of this file.
DISTILLATION_TYPES = ("none", "soft", "hard")
DISTILLATION_TARGETS = ("token", "class")
DISTILLATION_REDUCTIONS = ("image", "official")
# Apart from "none", these are the keys of GUIDANCE_LOSSES at the end of this file.
GUIDANCE_KINDS = ("none", "features", "similarity")
# Temperature of the softmax over the other patches in the guidance by similarities.
SIMILARITY_TEMPERATURE = 0.1
# The label of an image without a label: this number or, for multi-label data, one for each class.
UNLABELLED = -100
# The `ignore_index` of the cross-entropy. PyTorch ignores labels of -100 by default. Here `split_labels` replaces them
# first, and an invalid label that reaches a loss must raise an error and must not give a loss of 0.
_NOTHING = torch.iinfo(torch.int64).min
# Weight of the teacher's term for an image without a label. False: α, as for other images, so that the loss of the image
# is α · teacher term. True: 1, because the teacher's term takes the weight of the missing label term.
UNLABELLED_TEACHER_TERM_WEIGHS_ONE = False
# Default weight α of the distillation term for each type, from the paper.
DEFAULT_ALPHA = {"none": 0.0, "soft": 0.1, "hard": 0.5}


class ProblemType(StrEnum):
    """Kind of the labels: the values of `config.problem_type` in transformers.

    A member equals its string, and is written as this string in messages, JSON files and format strings.

    Raises:
        ValueError: The value given to `ProblemType(value)` is unknown.
    """

    SINGLE_LABEL = "single_label_classification"
    MULTI_LABEL = "multi_label_classification"
    REGRESSION = "regression"

    __repr__ = str.__repr__  # so that messages show it like any other string

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"problem_type={value!r}: choose one of {', '.join(cls)}.")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student logits are {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}: both "
            "must be (batch, num_labels) over the same classes. Align the classes of the teacher first, for example "
            "with Teacher.align."
        )


def _check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(
            f"tau={tau}: the temperature must be above 0 (paper: 3.0). For the limit τ → 0, use hard distillation."
        )


def soft_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, tau: float = 3.0, reduction: str = "image"
) -> Tensor:
    """Compute the soft distillation loss τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ)), arXiv:2012.12877 eq. 2.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: `(batch, num_labels)`.
        tau: Softmax temperature τ > 0. A value above 1 softens both distributions.
        reduction: "image": the KL divergence of each image, summed over the classes. "official": this sum divided by
            the number of classes, as in the official code.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ, τ is not positive, or the reduction is unknown.
    """
    _check_pair(student_logits, teacher_logits)
    _check_tau(tau)
    student_log_probs = F.log_softmax(_at_least_float32(student_logits) / tau, dim=-1)
    teacher_log_probs = F.log_softmax(_at_least_float32(teacher_logits) / tau, dim=-1)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=-1)
    return tau**2 * _reduced(divergence, reduction, student_logits.shape[-1])


def multi_label_soft_distillation_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float = 3.0) -> Tensor:
    """Compute the soft distillation loss of independent classes, as a teacher with a sigmoid per class predicts them.

    The loss is the mean over the classes of τ² · KL(Bernoulli(σ(teacher/τ)) ‖ Bernoulli(σ(student/τ))). For a single
    class it is the loss of eq. 2 (arXiv:2012.12877) between the two outcomes "present" and "absent".

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: `(batch, num_labels)`.
        tau: Temperature τ > 0. A value above 1 moves all probabilities towards 0.5.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ, or τ is not positive.
    """
    _check_pair(student_logits, teacher_logits)
    _check_tau(tau)
    student, teacher = (_at_least_float32(logits) / tau for logits in (student_logits, teacher_logits))
    divergence = sum(
        F.kl_div(F.logsigmoid(sign * student), F.logsigmoid(sign * teacher), reduction="none", log_target=True)
        for sign in (1, -1)  # the class is present, the class is absent
    )
    return tau**2 * divergence.mean(dim=-1)


def _reduced(divergence: Tensor, reduction: str, num_labels: int) -> Tensor:
    if reduction not in DISTILLATION_REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: choose one of {', '.join(DISTILLATION_REDUCTIONS)}.")
    return divergence / num_labels if reduction == "official" else divergence


def hard_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the cross-entropy with the teacher's decision, arXiv:2012.12877 eq. 3, without smoothing or temperature.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: Logits `(batch, num_labels)`, of which only the arg max is used, or the decisions themselves as
            integer class indices `(batch,)`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ.
    """
    if teacher_logits.ndim == 1 and not teacher_logits.is_floating_point():
        decisions = teacher_logits.long()
    else:
        _check_pair(student_logits, teacher_logits)
        decisions = teacher_logits.argmax(dim=-1)
    return F.cross_entropy(_at_least_float32(student_logits), decisions, reduction="none")


def multi_label_hard_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the binary cross-entropy with the teacher's decision for each class, as a mean over the classes.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: Logits `(batch, num_labels)`, where a class is present if its logit is above 0 (its probability
            is above 0.5); or the decisions themselves as integers or booleans `(batch, num_labels)`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ.
    """
    _check_pair(student_logits, teacher_logits)
    student_logits = _at_least_float32(student_logits)
    present = (teacher_logits > 0).to(student_logits.dtype)
    return F.binary_cross_entropy_with_logits(student_logits, present, reduction="none").mean(dim=-1)


def top_k_distillation_loss(
    student_logits: Tensor,
    top_logits: Tensor,
    top_indices: Tensor,
    rest: Tensor,
    tau: float = 3.0,
    reduction: str = "image",
) -> Tensor:
    """Compute the soft distillation loss from the teacher's K largest logits.

    The loss is τ² · KL over K + 1 outcomes: the K classes, and all other classes joined into one outcome, for teacher
    and student. Joining outcomes never increases a KL divergence, so this loss is at most the loss on all logits. The
    two are equal if student and teacher distribute the remaining probability over the other classes in the same
    proportions. The loss does not constrain how the student distributes it.

    Args:
        student_logits: `(batch, num_labels)`.
        top_logits: The teacher's K largest logits `(batch, K)`, K < num_labels.
        top_indices: The classes of these logits `(batch, K)`.
        rest: log Σ exp(logit / τ) over the teacher's other classes `(batch,)`, computed with the same τ.
        tau: Softmax temperature τ > 0.
        reduction: See `soft_distillation_loss`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: K is not below the number of classes, τ is not positive, or the reduction is unknown.
    """
    if not top_logits.shape[-1] < student_logits.shape[-1]:
        raise ValueError(
            f"The teacher gives its {top_logits.shape[-1]} largest logits and the student has "
            f"{student_logits.shape[-1]}: K must be below the number of classes. If all logits are given, use "
            "soft_distillation_loss."
        )
    scaled = _at_least_float32(student_logits) / tau
    student_rest = scaled.scatter(-1, top_indices, -torch.inf).logsumexp(dim=-1, keepdim=True)
    student = torch.cat([scaled.gather(-1, top_indices), student_rest], dim=-1) * tau
    teacher = torch.cat([_at_least_float32(top_logits), tau * rest[:, None].to(scaled.dtype)], dim=-1)
    # The divergence is over K + 1 outcomes. The last one joins all other classes.
    divergence = soft_distillation_loss(student, teacher, tau)
    return _reduced(divergence, reduction, student_logits.shape[-1])


def base_loss(
    logits: Tensor,
    labels: Tensor,
    kind: str = "cross_entropy",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the loss of one head on single-label targets.

    Args:
        logits: `(batch, num_labels)`.
        labels: Class indices `(batch,)`, or soft labels `(batch, num_labels)`.
        kind: "cross_entropy", or "binary_cross_entropy": a mean over the classes in which every label above 0 counts as
            1, as in the official code. Both classes of a mixed image are then present.
        label_smoothing: Share in [0, 1) of the label that is distributed evenly over the classes. For cross-entropy
            only.
        weight: Weight of each class `(num_labels,)`. Cross-entropy multiplies the share of each class in the label by
            it, binary cross-entropy the terms of the classes that are present. Default: all 1.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shape or type of the labels is invalid, the kind is unknown, the smoothing is outside [0, 1), or
            smoothing is combined with binary cross-entropy.
    """
    _check_labels(logits, labels)
    _check_kind(kind, label_smoothing)
    logits = _at_least_float32(logits)
    weight = None if weight is None else weight.to(logits)
    if kind == "cross_entropy":
        if labels.ndim == 2:
            labels = labels.to(logits.dtype)
        else:
            labels = labels.long()
        return F.cross_entropy(
            logits, labels, weight, ignore_index=_NOTHING, reduction="none", label_smoothing=label_smoothing
        )
    present = labels > 0 if labels.ndim == 2 else F.one_hot(labels.long(), logits.shape[-1])
    present = present.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, present, reduction="none", pos_weight=weight).mean(dim=-1)


def _check_kind(kind: str, label_smoothing: float) -> None:
    if kind not in BASE_LOSSES:
        raise ValueError(f"base_loss={kind!r}: choose one of {', '.join(BASE_LOSSES)}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: it must be in [0, 1) (paper: 0.1).")
    if kind == "binary_cross_entropy" and label_smoothing:
        raise ValueError(
            f"label_smoothing={label_smoothing} with base_loss='binary_cross_entropy': this loss counts each class whose "
            "label is above 0 as present, and smoothing makes all labels greater than 0. Set label_smoothing to 0, or "
            "use base_loss='cross_entropy'."
        )


def balanced_weights(labels: Sequence[int] | Sequence[Sequence[int]], num_labels: int) -> Tensor:
    """Compute weights with which rare and frequent classes count equally.

    For single-label data, the weight of a class is n / (C · count), so that all classes count equally and the mean per
    image is 1. For multi-label data, it is (n - count) / count, so that in each class the images that have the class
    count as much as those that do not.

    Args:
        labels: Class indices of the n training images; for multi-label data, zeros and ones `(n, C)`.
        num_labels: Number of classes C.

    Returns:
        `(num_labels,)` in float32. For a class without images, the weight is 0 for single-label data. For multi-label
        data, it is 1 for a class that no image has, and for one that all images have.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim == 2:
        counts, total = (labels > 0).sum(dim=0).double(), len(labels)
        varies = (counts > 0) & (counts < total)
        return torch.where(varies, (total - counts) / counts.clamp(min=1), 1.0).float()
    counts = torch.bincount(labels.long(), minlength=num_labels)
    weights = len(labels) / (num_labels * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 0.0).float()


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    indices = labels.ndim == 1 and integers and labels.shape[0] == logits.shape[0]
    soft = labels.shape == logits.shape and labels.is_floating_point()
    if not indices and not soft:
        raise ValueError(
            f"The labels have the shape {tuple(labels.shape)} and the type {labels.dtype}, and the logits have the "
            f"shape {tuple(logits.shape)}. Give class indices (batch,) as integers or soft labels (batch, num_labels) "
            "as floats. "
            'For multi-label 0/1 targets, set config.problem_type to "multi_label_classification"; for numbers, set it '
            'to "regression".'
        )


def is_labelled(labels: Tensor) -> Tensor:
    """Return whether each image has a label, `(batch,)` in bool.

    Args:
        labels: Class indices `(batch,)`, or soft or multi-hot labels `(batch, num_labels)`. The label of an image
            without a label is `UNLABELLED`, in each column.
    """
    present = labels != UNLABELLED
    return present.any(dim=1) if labels.ndim == 2 else present


def split_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Separate the labels of a batch from the information which images have one.

    Args:
        labels: As in `is_labelled`.

    Returns:
        The labels, with a valid value in place of each missing label; and 1 for each image with a label, else 0,
        `(batch,)` in float32. The label loss of an image must be multiplied by this weight.
    """
    labelled = is_labelled(labels)
    known = labelled[:, None] if labels.ndim == 2 else labelled
    return torch.where(known, labels, torch.zeros_like(labels)), labelled.float()


def supervised_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    *,
    kind: str = "cross_entropy",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the loss of one head on labels of any `problem_type` of transformers.

    Args:
        logits: `(batch, num_labels)`.
        labels: For single-label classification, see `base_loss`. For multi-label classification, 0 and 1 as
            `(batch, num_labels)`, or shares between them for mixed images. For regression, `(batch, num_labels)` or,
            with one output, `(batch,)`.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None. None means
            regression if the head has a single output, and single-label classification otherwise. Float labels are then
            soft labels; stock transformers would treat them as multi-label targets.
        kind: For single-label classification, see `base_loss`. For multi-label classification, the loss is the mean
            over the classes of the binary cross-entropy: "cross_entropy" keeps the shares of mixed images, and
            "binary_cross_entropy" counts every label above 0 as 1. Not used for regression.
        label_smoothing: Share in [0, 1) of a label that is replaced: by an even distribution over the classes
            (single-label), or by 0.5 for each class (multi-label). Not used for regression.
        weight: Weight of each class `(num_labels,)`, see `base_loss`. For multi-label classification, it multiplies the
            term of the class being present. Not used for regression. Default: all 1.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shape of the labels does not match the logits, or the problem type is unknown; or for a kind or
            a smoothing as in `base_loss`.
    """
    if problem_type is None:
        problem_type = ProblemType.REGRESSION if logits.shape[-1] == 1 else ProblemType.SINGLE_LABEL
    problem_type = ProblemType(problem_type)
    if problem_type is ProblemType.SINGLE_LABEL:
        return base_loss(logits, labels, kind, label_smoothing, weight)
    logits = _at_least_float32(logits)
    if labels.numel() != logits.numel() or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"problem_type={str(problem_type)!r} needs one label per logit: labels of the shape {tuple(logits.shape)}, "
            f"but they have the shape {tuple(labels.shape)}."
        )
    labels = labels.reshape(logits.shape).to(logits.dtype)
    if problem_type is ProblemType.REGRESSION:
        return F.mse_loss(logits, labels, reduction="none").mean(dim=-1)
    _check_kind(kind, label_smoothing)
    if kind == "binary_cross_entropy":
        labels = (labels > 0).to(logits.dtype)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
    weight = None if weight is None else weight.to(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=weight).mean(dim=-1)


def distillation_terms(
    heads: dict[str, Tensor],
    label_loss: Callable[[Tensor], Tensor],
    teacher_loss: Callable[[Tensor], Tensor] | None = None,
    alpha: float = 0.0,
    label_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the training loss and its terms, by name. The table shows what each head learns from.

    | student | teacher | cls_loss | distillation_loss | loss |
    |---|---|---|---|---|
    | two heads | yes | class head on labels | distillation head on the teacher | (1-α)·cls + α·dist |
    | two heads | no | class head on labels | distillation head on labels | mean of both |
    | one head | yes | head on labels | head on the teacher | (1-α)·cls + α·dist |
    | one head | no | head on labels | – | cls |

    For an image without a label, cls_loss is 0: a class head of two learns nothing from it. α in the table is then that
    of `teacher_weights`. A mean over a batch divides by all images, so it does not depend on how images with and without
    a label are distributed over batches and processes.

    Args:
        heads: `logits`, and for two heads `cls_logits` and `distillation_logits`, each `(batch, num_labels)`.
        label_loss: Function that returns the loss `(batch,)` of a head's logits on the labels.
        teacher_loss: Function that returns the loss `(batch,)` of a head's logits on the teacher outputs; None without
            a teacher.
        alpha: Weight α in [0, 1] of the distillation term, for soft and hard distillation (the paper's λ).
        label_weights: Share of each image that has a label, in [0, 1], `(batch,)`: 1 or 0, or a share if an image with
            and an image without a label are mixed. None if all images have labels.

    Returns:
        `loss`, `cls_loss` and, except for one head without a teacher, `distillation_loss`, each `(batch,)`.
    """
    cls_loss = _weighted(label_loss(heads.get("cls_logits", heads["logits"])), label_weights)
    distillation_head = heads.get("distillation_logits", heads["logits"])
    if teacher_loss is not None:
        distillation_loss = teacher_loss(distillation_head)
        loss = (1 - alpha) * cls_loss + teacher_weights(alpha, label_weights) * distillation_loss
    elif "distillation_logits" in heads:
        distillation_loss = _weighted(label_loss(distillation_head), label_weights)
        loss = (cls_loss + distillation_loss) / 2
    else:
        return {"loss": cls_loss, "cls_loss": cls_loss}
    return {"loss": loss, "cls_loss": cls_loss, "distillation_loss": distillation_loss}


def _weighted(loss: Tensor, weights: Tensor | None) -> Tensor:
    return loss if weights is None else weights.to(loss) * loss


def teacher_weights(alpha: float, label_weights: Tensor | None) -> Tensor | float:
    """Return the weight of the teacher's term, one number or one per image `(batch,)`.

    Args:
        alpha: Weight α in [0, 1] of the distillation term of an image with a label.
        label_weights: As in `distillation_terms`.
    """
    if label_weights is None or not UNLABELLED_TEACHER_TERM_WEIGHS_ONE:
        return alpha
    return alpha + (1 - alpha) * (1 - label_weights)


# Names of the teacher outputs in a batch. A live teacher and a dense cache provide `teacher_logits` `(batch,
# num_labels)`. A hard cache provides `teacher_labels`, `(batch,)` for single-label and `(batch, num_labels)` for
# multi-label data. A top-K cache provides `teacher_top_logits` and `teacher_top_indices` `(batch, K)`, and
# `teacher_rest` `(batch,)`.
TEACHER_OUTPUTS = ("teacher_logits", "teacher_labels", "teacher_top_logits", "teacher_top_indices", "teacher_rest")


def teacher_decisions(
    teacher_outputs: Mapping[str, Tensor], problem_type: str = ProblemType.SINGLE_LABEL
) -> Tensor | None:
    """Return the teacher's decisions, or None if there are no teacher outputs.

    Args:
        teacher_outputs: Tensors under the names of `TEACHER_OUTPUTS`. Other entries are ignored.
        problem_type: Problem type of the labels.

    Returns:
        For single-label data, the class `(batch,)`. For multi-label data, whether each class is present
        `(batch, num_labels)` in bool: its logit is above 0.
    """
    if problem_type == ProblemType.MULTI_LABEL:
        outputs = teacher_outputs.get("teacher_logits", teacher_outputs.get("teacher_labels"))
        return None if outputs is None else outputs > 0
    if "teacher_logits" in teacher_outputs:
        return teacher_outputs["teacher_logits"].argmax(dim=-1)
    if "teacher_top_indices" in teacher_outputs:
        return teacher_outputs["teacher_top_indices"][:, 0]
    return teacher_outputs.get("teacher_labels")


def teacher_loss(
    teacher_outputs: Mapping[str, Tensor],
    *,
    distillation_type: str,
    tau: float,
    reduction: str,
    problem_type: str = ProblemType.SINGLE_LABEL,
) -> Callable[[Tensor], Tensor] | None:
    """Return a function that computes the loss `(batch,)` of a head's logits on the teacher outputs.

    Args:
        teacher_outputs: Tensors under the names of `TEACHER_OUTPUTS`. Other entries are ignored.
        distillation_type: "hard" or "soft".
        tau: Temperature of soft distillation.
        reduction: See `soft_distillation_loss`. The losses of multi-label data are always a mean over the classes.
        problem_type: Problem type of the labels, single-label or multi-label.

    Returns:
        A function of the logits `(batch, num_labels)`, or None if there are no teacher outputs.

    Raises:
        ValueError: The distillation type is unknown or "none".
    """
    losses = MULTI_LABEL_DISTILLATION_LOSSES if problem_type == ProblemType.MULTI_LABEL else DISTILLATION_LOSSES
    if distillation_type not in losses:
        raise ValueError(f"distillation_type={distillation_type!r}: choose one of {', '.join(losses)}.")
    if teacher_decisions(teacher_outputs, problem_type) is None:
        return None
    return losses[distillation_type](teacher_outputs, tau=tau, reduction=reduction)


def _soft_loss(teacher_outputs: Mapping[str, Tensor], *, tau: float, reduction: str) -> Callable[[Tensor], Tensor]:
    if "teacher_top_logits" in teacher_outputs:
        top = ("top_logits", "top_indices", "rest")
        cached = {name: teacher_outputs[f"teacher_{name}"] for name in top}
        return functools.partial(top_k_distillation_loss, **cached, tau=tau, reduction=reduction)
    return functools.partial(
        soft_distillation_loss, teacher_logits=teacher_outputs["teacher_logits"], tau=tau, reduction=reduction
    )


def _hard_loss(teacher_outputs: Mapping[str, Tensor], **unused: Any) -> Callable[[Tensor], Tensor]:
    return functools.partial(hard_distillation_loss, teacher_logits=teacher_decisions(teacher_outputs))


def _multi_label_soft_loss(
    teacher_outputs: Mapping[str, Tensor], *, tau: float, **unused: Any
) -> Callable[[Tensor], Tensor]:
    return functools.partial(
        multi_label_soft_distillation_loss, teacher_logits=teacher_outputs["teacher_logits"], tau=tau
    )


def _multi_label_hard_loss(teacher_outputs: Mapping[str, Tensor], **unused: Any) -> Callable[[Tensor], Tensor]:
    decisions = teacher_decisions(teacher_outputs, ProblemType.MULTI_LABEL)
    return functools.partial(multi_label_hard_distillation_loss, teacher_logits=decisions)


# The losses on the teacher outputs, by `distillation_type`. Each entry is a function of the teacher outputs, tau and
# reduction; it returns a function that computes the loss `(batch,)` of a head's logits. A new loss is added here, to
# DISTILLATION_TYPES, and with its default weight to DEFAULT_ALPHA.
DISTILLATION_LOSSES = {"soft": _soft_loss, "hard": _hard_loss}
# The same for multi-label data. A type that is missing here is refused for them.
MULTI_LABEL_DISTILLATION_LOSSES = {"soft": _multi_label_soft_loss, "hard": _multi_label_hard_loss}


# ---- guidance: the features of the patches ----


def _normalized(features: Tensor) -> Tensor:
    return F.layer_norm(_at_least_float32(features), features.shape[-1:])


def _check_patches(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"Student features are {tuple(student.shape)}, teacher features {tuple(teacher.shape)}: both must be (batch, "
            "patches, channels) with the same images and patches. Resize the teacher's grid of patches first."
        )


def feature_guidance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the difference between the features of student and teacher, patch by patch.

    Both are normalised over the channels of each patch (a layer norm without parameters). The loss is the smooth L1
    distance with β = 1 as a mean over patches and channels.

    Args:
        student: Features `(batch, patches, channels)`, projected to the number of channels of the teacher.
        teacher: Features `(batch, patches, channels)`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ.
    """
    _check_patches(student, teacher)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"Student features have {student.shape[-1]} channels, teacher features {teacher.shape[-1]}: project the "
            "student's features to the channels of the teacher first."
        )
    difference = F.smooth_l1_loss(_normalized(student), _normalized(teacher), reduction="none")
    return difference.flatten(1).mean(dim=-1)


def patch_similarities(features: Tensor) -> Tensor:
    """Compute the cosine similarity of each pair of patches of an image.

    Args:
        features: `(batch, patches, channels)`.

    Returns:
        `(batch, patches, patches)` in [-1, 1], in float32 (float64 for float64 features).
    """
    unit = F.normalize(_at_least_float32(features), dim=-1)
    with torch.autocast(features.device.type, enabled=False):  # a matrix product, which autocast would round
        return unit @ unit.transpose(1, 2)


def similarity_guidance_loss(student: Tensor, teacher: Tensor, temperature: float = SIMILARITY_TEMPERATURE) -> Tensor:
    """Compute the difference between the similarities of patches in student and teacher.

    For each patch, the cosine similarities to all other patches are divided by the temperature and turned into a
    distribution (softmax). The loss is KL(teacher ‖ student) as a mean over the patches.

    Args:
        student: Cosine similarities `(batch, patches, patches)` of the student's features, see `patch_similarities`.
        teacher: The same for the teacher. The numbers of channels of the two may differ.
        temperature: Temperature of the softmax, above 0.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: The shapes differ, or there are fewer than two patches.
    """
    _check_patches(student, teacher)
    if student.shape != teacher.shape or student.shape[-1] < 2:
        raise ValueError(
            f"Similarities of the student are {tuple(student.shape)}, those of the teacher {tuple(teacher.shape)}: both "
            "must be (batch, patches, patches) with at least two patches."
        )
    itself = torch.eye(student.shape[-1], dtype=torch.bool, device=student.device)

    def log_shares(similarities: Tensor) -> Tensor:
        # The lowest float instead of -inf, whose gradient would be NaN.
        scaled = _at_least_float32(similarities) / temperature
        return F.log_softmax(scaled.masked_fill(itself, torch.finfo(scaled.dtype).min), dim=-1)

    ours, theirs = log_shares(student), log_shares(teacher)
    divergence = (theirs.exp() * (theirs - ours)).masked_fill(itself, 0.0)
    return divergence.sum(dim=-1).mean(dim=-1)


# The losses on the patches, by `guidance`. Each entry is a function of the student's and of the teacher's features
# `(batch, patches, channels)`, or of their similarities `(batch, patches, patches)` for an entry of
# `GUIDED_BY_SIMILARITY`; it returns the loss `(batch,)`. A new loss is added here and to GUIDANCE_KINDS.
GUIDANCE_LOSSES = {"features": feature_guidance_loss, "similarity": similarity_guidance_loss}
# Kinds that compare similarities, and so need no projection of the student's features.
GUIDED_BY_SIMILARITY = frozenset({"similarity"})
