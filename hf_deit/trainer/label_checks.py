"""Checks of the labels of a batch, before they reach the loss.

The data sets of this package have valid labels. A user's own data set may hold anything, and PyTorch reports a class that
does not exist without naming it, on a GPU as an unrelated error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, listed
from ..losses import UNLABELLED, ProblemType, is_labelled

# End of messages about images without a label where they cannot be used.
NEEDS_TEACHER = (
    f"The label {UNLABELLED} is that of an image without a label. A student learns from such images only in training, from a "
    "teacher or a teacher cache; validation images always need labels. Give a teacher, or leave these images out."
)


@dataclass(frozen=True)
class LabelChecker:
    """Collator that checks the labels of the batches of another collator.

    Args:
        collator: Function that makes a batch of a list of rows.
        num_labels: Number of classes of the student.
        problem_type: Problem type of the student.
        allows_unlabelled: Whether an image may have no label (`losses.UNLABELLED`): in a training with a teacher.
    """

    collator: Callable[[list[Any]], Any]
    num_labels: int
    problem_type: ProblemType
    allows_unlabelled: bool = False

    def __call__(self, rows: list[Any]) -> Any:
        """Return the batch of the collator.

        Raises:
            DataError: The labels do not fit the student.
        """
        batch = self.collator(rows)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor):
            if self.allows_unlabelled and self.problem_type != ProblemType.REGRESSION and labels.ndim in (1, 2):
                labels = labels[is_labelled(labels)]
            check_labels(labels, self.num_labels, self.problem_type)
        return batch


def check_labels(labels: Tensor, num_labels: int, problem_type: ProblemType) -> None:
    """Check that labels fit a student.

    Args:
        labels: Labels of a batch: for single-label data class indices `(batch,)` or soft labels `(batch, num_labels)`; for
            multi-label data zeros and ones `(batch, num_labels)`.
        num_labels: Number of classes of the student.
        problem_type: Problem type of the student. Labels of a regression are not checked.

    Raises:
        DataError: The labels have another shape or type, or a label is out of range.
    """
    if problem_type == ProblemType.SINGLE_LABEL:
        _check_single_label(labels, num_labels)
    elif problem_type == ProblemType.MULTI_LABEL:
        _check_multi_label(labels, num_labels)


def _check_single_label(labels: Tensor, num_labels: int) -> None:
    is_soft = labels.is_floating_point() and labels.ndim == 2
    if is_soft and labels.shape[1] == num_labels:
        return
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"The labels of a batch have the shape {tuple(labels.shape)} and the type {labels.dtype}, but the student has "
            f"{num_labels} classes and one class per image: give class indices (batch,) as whole numbers, or soft labels "
            f"(batch, {num_labels}) as floats. For labels of 0 and 1 per class, build the student with "
            "problem_type='multi_label_classification'."
        )
    wrong = labels[(labels < 0) | (labels >= num_labels)].unique().tolist()
    if wrong:
        missing = (
            f" {NEEDS_TEACHER}"
            if UNLABELLED in wrong
            else " A negative label stands for an image without a label: leave these images out, or give them the label "
            f"{UNLABELLED} and train with a teacher."
            if wrong[0] < 0
            else ""
        )
        raise DataError(
            f"Labels out of range in a batch: {listed(wrong)}. The student has num_labels={num_labels}, so a label must be a "
            f"class index from 0 to {num_labels - 1}. Correct the labels, or build the student with more classes.{missing}"
        )


def _check_multi_label(labels: Tensor, num_labels: int) -> None:
    if labels.ndim != 2 or labels.shape[1] != num_labels:
        raise DataError(
            f"The labels of a batch have the shape {tuple(labels.shape)}, but the student is multi-label with "
            f"num_labels={num_labels}: give one 0 or 1 per class, (batch, {num_labels})."
        )
    wrong = labels[~((labels >= 0) & (labels <= 1))].unique().tolist()
    if wrong:
        raise DataError(
            f"Labels out of range in a batch: {listed(wrong)}. The student is multi-label, so each label must be 0 or 1 (or "
            f"a number in between).{f' {NEEDS_TEACHER}' if UNLABELLED in wrong else ''}"
        )
