"""Losses: pure functions of tensors that give one value an image.

Every function returns `(batch,)` in float32 (float64 for float64 logits), so that a caller can average over any number of
images, batches and processes; `distillation_terms` puts them together to the named terms the trainer logs. What is
averaged and when is the trainer's business.

Paper: Touvron et al., arXiv:2012.12877, section 4 (soft: eq. 2, hard: eq. 3); soft distillation: Hinton et al.,
arXiv:1503.02531; binary cross-entropy: DeiT III, arXiv:2204.07118, section 3.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BASE_LOSSES = ("cross_entropy", "binary_cross_entropy")
# Beside "none" these are the keys of DISTILLATION_LOSSES, at the end of this file.
DISTILLATION_TYPES = ("none", "soft", "hard")
DISTILLATION_TARGETS = ("token", "class")
DISTILLATION_REDUCTIONS = ("image", "official")
# Torch leaves out labels of -100 by default; here every image has a label, and one that is none must not count as learned.
_NOTHING = torch.iinfo(torch.int64).min
# The paper's weight of the distillation term for each type.
DEFAULT_ALPHA = {"none": 0.0, "soft": 0.1, "hard": 0.5}


class ProblemType(StrEnum):
    """What the labels of an image are: the values of `config.problem_type` in transformers.

    A member equals its text, and is written as its text in messages, JSON files and format strings.

    Raises:
        ValueError: `ProblemType(text)` of an unknown text.
    """

    SINGLE_LABEL = "single_label_classification"
    MULTI_LABEL = "multi_label_classification"
    REGRESSION = "regression"

    __repr__ = str.__repr__  # in messages, as any other text

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"problem_type={value!r}: choose one of {', '.join(cls)}.")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student logits are {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}: both must "
            "be (batch, num_labels) over the same classes. Align the teacher's classes first (Teacher does, by name)."
        )


def soft_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, tau: float = 3.0, reduction: str = "image"
) -> Tensor:
    """τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ)), arXiv:2012.12877 eq. 2.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: `(batch, num_labels)`.
        tau: Softmax temperature τ > 0; above 1 it softens both distributions.
        reduction: "image": the KL of each image, summed over the classes. "official": divided by the number of classes
            as well, as the official code does (`num_labels` times smaller).

    Returns:
        `(batch,)`.

    Raises:
        ValueError: Shapes differ, τ is not positive or the reduction is unknown.
    """
    _check_pair(student_logits, teacher_logits)
    if not tau > 0:
        raise ValueError(
            f"tau={tau}: the temperature must be above 0 (paper: 3.0). For the limit τ → 0 use hard distillation."
        )
    student_log_probs = F.log_softmax(_at_least_float32(student_logits) / tau, dim=-1)
    teacher_log_probs = F.log_softmax(_at_least_float32(teacher_logits) / tau, dim=-1)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=-1)
    return tau**2 * _reduced(divergence, reduction, student_logits.shape[-1])


def _reduced(divergence: Tensor, reduction: str, num_labels: int) -> Tensor:
    if reduction not in DISTILLATION_REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: choose one of {', '.join(DISTILLATION_REDUCTIONS)}.")
    return divergence / num_labels if reduction == "official" else divergence


def hard_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision, arXiv:2012.12877 eq. 3; neither smoothed nor tempered.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: `(batch, num_labels)`, of which only the arg max counts; or the decisions themselves, class indices
            `(batch,)`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: Shapes differ.
    """
    if teacher_logits.ndim == 1 and not teacher_logits.is_floating_point():
        decisions = teacher_logits.long()
    else:
        _check_pair(student_logits, teacher_logits)
        decisions = teacher_logits.argmax(dim=-1)
    return F.cross_entropy(_at_least_float32(student_logits), decisions, reduction="none")


def top_k_distillation_loss(
    student_logits: Tensor,
    top_logits: Tensor,
    top_indices: Tensor,
    rest: Tensor,
    tau: float = 3.0,
    reduction: str = "image",
) -> Tensor:
    """Soft distillation from the teacher's K largest logits: all other classes count as one, for teacher and student.

    τ² · KL over K + 1 outcomes. Joining outcomes never raises a KL, so this is at most the loss of all logits, and it is that
    loss where student and teacher share the rest out alike; how the student shares it out is left free.

    Args:
        student_logits: `(batch, num_labels)`.
        top_logits: The teacher's K largest logits `(batch, K)`, K < num_labels.
        top_indices: Their classes `(batch, K)`.
        rest: log Σ exp(logit / τ) over the teacher's other classes `(batch,)`, made for this very τ.
        tau: Softmax temperature τ > 0.
        reduction: As `soft_distillation_loss`.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: K is not below the number of classes; τ or the reduction as `soft_distillation_loss`.
    """
    if not top_logits.shape[-1] < student_logits.shape[-1]:
        raise ValueError(
            f"{top_logits.shape[-1]} of {student_logits.shape[-1]} logits are no top-K: with all of them use "
            "soft_distillation_loss."
        )
    scaled = _at_least_float32(student_logits) / tau
    student_rest = scaled.scatter(-1, top_indices, -torch.inf).logsumexp(dim=-1, keepdim=True)
    student = torch.cat([scaled.gather(-1, top_indices), student_rest], dim=-1) * tau
    teacher = torch.cat([_at_least_float32(top_logits), tau * rest[:, None].to(scaled.dtype)], dim=-1)
    divergence = soft_distillation_loss(student, teacher, tau)  # of K + 1 outcomes, the rest being the last
    return _reduced(divergence, reduction, student_logits.shape[-1])


def base_loss(
    logits: Tensor,
    labels: Tensor,
    kind: str = "cross_entropy",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss of one head on the labels.

    Args:
        logits: `(batch, num_labels)`.
        labels: Class indices `(batch,)`, or soft labels `(batch, num_labels)`.
        kind: "cross_entropy", or "binary_cross_entropy": a mean over the classes in which every label above 0 counts as
            1 (both classes of a mixed image are present), as the official code.
        label_smoothing: Share in [0, 1) of the label that is spread evenly over the classes; cross-entropy only.
        weight: `(num_labels,)`, how much the presence of each class counts: cross-entropy multiplies each class's share of
            the label, binary cross-entropy the terms of the classes that are present. Default: all 1.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: Labels of another shape, an unknown kind, or smoothing together with binary cross-entropy.
    """
    _check_labels(logits, labels)
    logits = _at_least_float32(logits)
    weight = None if weight is None else weight.to(logits)
    if kind == "cross_entropy":
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: a share in [0, 1) (paper: 0.1).")
        if labels.ndim == 2:
            labels = labels.to(logits.dtype)
        else:
            labels = labels.long()
        return F.cross_entropy(
            logits, labels, weight, ignore_index=_NOTHING, reduction="none", label_smoothing=label_smoothing
        )
    if kind != "binary_cross_entropy":
        raise ValueError(f"base loss {kind!r}: choose one of {', '.join(BASE_LOSSES)}.")
    if label_smoothing:
        raise ValueError(
            f"label_smoothing={label_smoothing} with binary_cross_entropy: every smoothed label is above 0 and would "
            "count as present. Set the smoothing to 0 or use cross_entropy."
        )
    present = labels > 0 if labels.ndim == 2 else F.one_hot(labels.long(), logits.shape[-1])
    present = present.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, present, reduction="none", pos_weight=weight).mean(dim=-1)


def balanced_weights(labels: Sequence[int], num_labels: int) -> Tensor:
    """Gives each class the weight n / (C · count), so that all classes count alike and an image 1 on average.

    Args:
        labels: Class index of each of the n training images.
        num_labels: Number of classes C.

    Returns:
        `(num_labels,)` float32; 0 for a class without images.
    """
    counts = torch.bincount(torch.as_tensor(labels, dtype=torch.long), minlength=num_labels)
    weights = len(labels) / (num_labels * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 0.0).float()


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    integers = not labels.is_floating_point() and labels.dtype != torch.bool
    indices = labels.ndim == 1 and integers and labels.shape[0] == logits.shape[0]
    soft = labels.shape == logits.shape and labels.is_floating_point()
    if not indices and not soft:
        raise ValueError(
            f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} for logits {tuple(logits.shape)}: give class "
            "indices (batch,) as integers or soft labels (batch, num_labels) as floats. For multi-label 0/1 or regression "
            'set config.problem_type to "multi_label_classification" or "regression".'
        )


def supervised_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """The loss of one head on labels of any `problem_type` of transformers.

    Args:
        logits: `(batch, num_labels)`.
        labels: As `base_loss`; multi-label 0/1 `(batch, num_labels)`; regression `(batch, num_labels)` or, for one
            output, `(batch,)`.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None: regression
            for a single output, else classification. Unlike stock transformers, float labels then mean soft labels.

    Returns:
        `(batch,)`.

    Raises:
        ValueError: Labels of another shape.
    """
    if problem_type is None:
        problem_type = ProblemType.REGRESSION if logits.shape[-1] == 1 else ProblemType.SINGLE_LABEL
    problem_type = ProblemType(problem_type)
    if problem_type is ProblemType.SINGLE_LABEL:
        return base_loss(logits, labels)
    logits = _at_least_float32(logits)
    if labels.numel() != logits.numel() or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{problem_type} takes labels {tuple(logits.shape)}, one a logit, and got {tuple(labels.shape)}."
        )
    labels = labels.reshape(logits.shape).to(logits.dtype)
    elementwise: Callable = F.mse_loss if problem_type is ProblemType.REGRESSION else F.binary_cross_entropy_with_logits
    return elementwise(logits, labels, reduction="none").mean(dim=-1)


def distillation_terms(
    heads: dict[str, Tensor],
    label_loss: Callable[[Tensor], Tensor],
    teacher_loss: Callable[[Tensor], Tensor] | None = None,
    alpha: float = 0.0,
) -> dict[str, Tensor]:
    """The training loss and its parts, by name: what learns from what.

    | student | teacher | cls_loss | distillation_loss | loss |
    |---|---|---|---|---|
    | two heads | yes | class head on labels | distillation head on the teacher | (1-α)·cls + α·dist |
    | two heads | no | class head on labels | distillation head on labels | mean of both |
    | one head | yes | head on labels | head on the teacher | (1-α)·cls + α·dist |
    | one head | no | head on labels | – | cls |

    Args:
        heads: `logits`, and for two heads `cls_logits` and `distillation_logits`, each `(batch, num_labels)`.
        label_loss: Gives `(batch,)` for a head's logits and the labels.
        teacher_loss: Gives `(batch,)` for a head's logits and the teacher's; None without a teacher.
        alpha: Weight α in [0, 1] of the teacher's term, in every mode (the paper's λ).

    Returns:
        `loss`, `cls_loss` and, where it exists, `distillation_loss`, each `(batch,)`.
    """
    cls_loss = label_loss(heads.get("cls_logits", heads["logits"]))
    distillation_head = heads.get("distillation_logits", heads["logits"])
    if teacher_loss is not None:
        distillation_loss = teacher_loss(distillation_head)
        loss = (1 - alpha) * cls_loss + alpha * distillation_loss
    elif "distillation_logits" in heads:
        distillation_loss = label_loss(distillation_head)
        loss = (cls_loss + distillation_loss) / 2
    else:
        return {"loss": cls_loss, "cls_loss": cls_loss}
    return {"loss": loss, "cls_loss": cls_loss, "distillation_loss": distillation_loss}


# Names of a teacher's outputs in a batch. A live teacher or a dense cache gives `teacher_logits` `(batch, num_labels)`; a hard
# cache `teacher_labels` `(batch,)`; a top-K cache `teacher_top_logits` and `teacher_top_indices` `(batch, K)`, and
# `teacher_rest` `(batch,)`.
TEACHER_OUTPUTS = ("teacher_logits", "teacher_labels", "teacher_top_logits", "teacher_top_indices", "teacher_rest")


def teacher_decisions(teacher_outputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return the class `(batch,)` that a teacher decides for; None where there are no outputs of a teacher."""
    if "teacher_logits" in teacher_outputs:
        return teacher_outputs["teacher_logits"].argmax(dim=-1)
    if "teacher_top_indices" in teacher_outputs:
        return teacher_outputs["teacher_top_indices"][:, 0]
    return teacher_outputs.get("teacher_labels")


def teacher_loss(
    teacher_outputs: Mapping[str, Tensor], *, distillation_type: str, tau: float, reduction: str
) -> Callable[[Tensor], Tensor] | None:
    """Return the function that gives the loss `(batch,)` of a head's logits on a teacher's outputs.

    Args:
        teacher_outputs: By the names of `TEACHER_OUTPUTS`; other entries are not used.
        distillation_type: "hard" or "soft".
        tau: Temperature of soft distillation.
        reduction: As `soft_distillation_loss`.

    Returns:
        A function of `(batch, num_labels)`; None where there are no outputs of a teacher.

    Raises:
        ValueError: The type is unknown, or "none".
    """
    if distillation_type not in DISTILLATION_LOSSES:
        raise ValueError(f"distillation_type={distillation_type!r}: choose one of {', '.join(DISTILLATION_LOSSES)}.")
    if teacher_decisions(teacher_outputs) is None:
        return None
    return DISTILLATION_LOSSES[distillation_type](teacher_outputs, tau=tau, reduction=reduction)


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


# The losses on a teacher's outputs, by `distillation_type`: functions of the outputs, tau and reduction that return the loss
# `(batch,)` of a head's logits. A new loss is added here, with its default weight in DEFAULT_ALPHA.
DISTILLATION_LOSSES = {"soft": _soft_loss, "hard": _hard_loss}
