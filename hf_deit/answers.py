"""What a teacher said about a batch, live or stored: its decision, and the loss that learns from it.

A live teacher, or a dense cache, gives `teacher_logits` `(batch, num_labels)`; a hard cache `teacher_labels` `(batch,)`; a
top-K cache `teacher_top_logits` `(batch, K)`, `teacher_top_indices` `(batch, K)` and `teacher_rest` `(batch,)`. The formulas
are in losses.py, the stored answers in teacher_cache.py.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .losses import hard_distillation_loss, soft_distillation_loss, top_k_distillation_loss

ANSWERS = ("teacher_logits", "teacher_labels", "teacher_top_logits", "teacher_top_indices", "teacher_rest")


def take_answers(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Takes stored answers out of a batch; empty where there are none."""
    return {name: inputs.pop(name) for name in ANSWERS if name in inputs}


def decisions(answers: Mapping[str, Tensor]) -> Tensor | None:
    """Gives the teacher's class of each image `(batch,)`; None where no teacher was asked."""
    if "teacher_logits" in answers:
        return answers["teacher_logits"].argmax(dim=-1)
    if "teacher_top_indices" in answers:
        return answers["teacher_top_indices"][:, 0]
    return answers.get("teacher_labels")


def teacher_loss(
    answers: Mapping[str, Tensor], distillation_type: str, tau: float, reduction: str
) -> Callable[[Tensor], Tensor] | None:
    """Gives the loss `(batch,)` of a head's logits on the teacher's answers; None where no teacher was asked.

    Args:
        answers: As above; other entries are not looked at.
        distillation_type: "hard" or "soft".
        tau: Of soft distillation.
        reduction: Likewise.
    """
    said = decisions(answers)
    if said is None:
        return None
    if distillation_type == "hard":
        return functools.partial(hard_distillation_loss, teacher_logits=said)
    if "teacher_top_logits" in answers:
        top = ("top_logits", "top_indices", "rest")
        stored = {name: answers[f"teacher_{name}"] for name in top}
        return functools.partial(top_k_distillation_loss, **stored, tau=tau, reduction=reduction)
    return functools.partial(
        soft_distillation_loss, teacher_logits=answers["teacher_logits"], tau=tau, reduction=reduction
    )
