"""What the student learns from: a batch is prepared for student and teacher, the teacher's outputs are found, losses computed.

`DistillationObjective` takes no `Trainer` and no arguments object. The trainer calls it in each step, the cache builder and
`train-teacher` use its first half, so what a teacher sees is written once. The formulas are in losses.py, the teacher's own
size and normalisation in teacher.py, and cached outputs get into a batch in cached_teacher.py.

Paper: Touvron et al., arXiv:2012.12877, section 4.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch_ops import mix_labels, mix_pixels, normalize, resize, to_unit_range
from ..losses import (
    TEACHER_OUTPUTS,
    ProblemType,
    base_loss,
    distillation_terms,
    supervised_loss,
    teacher_loss,
)
from .teacher import Teacher

# What a batch holds beside the inputs that a student takes.
_NOT_FOR_THE_STUDENT = ("pixel_values", "labels", "mixes")


class PreparedBatch(NamedTuple):
    """A batch as student, teacher and losses take it.

    Attributes:
        student_pixels: `(batch, channels, height, width)`, mixed, of the student's size, normalised for the student.
        teacher_pixels: `(batch, channels, height, width)` in [0, 1], mixed; the teacher resizes and normalises them itself.
            None where no live teacher will see them.
        labels: `(batch,)`, or mixed `(batch, num_labels)`; None where the batch has none.
    """

    student_pixels: Tensor | None
    teacher_pixels: Tensor | None
    labels: Tensor | None


class DistillationObjective:
    """Computes the loss terms of labels and of a teacher's outputs, live or cached.

    Args:
        num_labels: Number of classes.
        problem_type: Of the student's labels, as in a configuration of transformers.
        teacher: A live teacher on the device of the batches, aligned to the student's classes; None without one.
        learns_from_teacher: Whether a loss term is computed on the teacher's outputs; else they only serve metrics.
        distillation_type: "soft" or "hard".
        alpha: Weight α in [0, 1] of the teacher's term (the paper's λ).
        tau: Softmax temperature τ > 0 of soft distillation.
        reduction: "image" or "official", as `losses.soft_distillation_loss`.
        label_loss: "cross_entropy" or "binary_cross_entropy", for single-label students.
        label_smoothing: Share in [0, 1) of a label that is spread over all classes, for "cross_entropy".
        class_weights: `(num_labels,)`, how much each class counts in the label loss; None: all alike.
        image_size: `(height, width)` that the student takes, in pixels; None: any.
        image_mean: Mean of each channel that the student's pixels are normalised with, for pixels in [0, 1].
        image_std: Standard deviation, likewise.
    """

    def __init__(
        self,
        *,
        num_labels: int,
        problem_type: str = ProblemType.SINGLE_LABEL,
        teacher: Teacher | None = None,
        learns_from_teacher: bool = False,
        distillation_type: str = "soft",
        alpha: float = 0.0,
        tau: float = 3.0,
        reduction: str = "image",
        label_loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        image_size: tuple[int, int] | None = None,
        image_mean: float | Sequence[float] = 0.0,
        image_std: float | Sequence[float] = 1.0,
    ):
        self.num_labels = num_labels
        self.problem_type = problem_type
        self.teacher = teacher
        self.learns_from_teacher = learns_from_teacher
        self.distillation_type = distillation_type
        self.alpha = alpha
        self.tau = tau
        self.reduction = reduction
        self.label_loss = label_loss
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.image_size = image_size
        self.image_mean = image_mean
        self.image_std = image_std

    # ---- the batch ----

    def prepare(self, batch: Mapping[str, Any], *, for_student: bool = True, for_teacher: bool = True) -> PreparedBatch:
        """Mix partners, and bring the pixels to what student and teacher take.

        Args:
            batch: `pixel_values` `(batch, channels, height, width)`, a view in uint8, or floats that were normalised with the
                student's mean and std; where the teacher sees another size, `teacher_pixel_values`; where partners are
                mixed, `mixes`; and `labels`, if there are any. It is not changed.
            for_student: Whether the student's pixels are wanted.
            for_teacher: Whether the teacher's pixels are wanted.
        """
        pixel_values, mixes = batch["pixel_values"], batch.get("mixes")
        own_view = batch.get("teacher_pixel_values")
        student_pixels = view = teacher_pixels = None
        if for_student and mixes is None and self._is_ready(pixel_values):
            student_pixels = pixel_values
        elif for_student or own_view is None and for_teacher:
            view = self._view(pixel_values, mixes)
            student_pixels = self._normalized(view) if for_student else None
        if for_teacher:
            if own_view is not None:
                teacher_pixels = self._view(own_view, mixes)
            else:
                teacher_pixels = view if view is not None else self._view(pixel_values, mixes)
        return PreparedBatch(student_pixels, teacher_pixels, self._labels(batch))

    def _is_ready(self, pixel_values: Tensor) -> bool:
        """Whether these are floats of the student's size, which are normalised already."""
        fits = self.image_size is None or tuple(pixel_values.shape[-2:]) == self.image_size
        return pixel_values.is_floating_point() and fits

    def _view(self, pixel_values: Tensor, mixes: Tensor | None) -> Tensor:
        """Return the view with values in [0, 1], mixed with its partner's."""
        view = to_unit_range(pixel_values, self.image_mean, self.image_std)
        return view if mixes is None else mix_pixels(view, mixes)

    def _normalized(self, view: Tensor) -> Tensor:
        if self.image_size is not None and tuple(view.shape[-2:]) != self.image_size:
            view = resize(view, self.image_size)
        return normalize(view, self.image_mean, self.image_std)

    def _labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        labels, mixes = batch.get("labels"), batch.get("mixes")
        if labels is None or mixes is None:
            return labels
        return mix_labels(labels, mixes, self.num_labels, tuple(batch["pixel_values"].shape[-2:]))

    @staticmethod
    def other_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what else a batch holds for the student, beside its pixels."""
        return {
            name: value
            for name, value in batch.items()
            if name not in _NOT_FOR_THE_STUDENT and not name.startswith("teacher_")
        }

    # ---- the teacher ----

    def needs_live_teacher(self, batch: Mapping[str, Any]) -> bool:
        """Whether the teacher has to be run on this batch: there is one, and the batch holds no cached outputs."""
        return self.teacher is not None and not any(name in batch for name in TEACHER_OUTPUTS)

    def teacher_outputs(self, batch: Mapping[str, Any], teacher_pixels: Tensor | None) -> dict[str, Tensor]:
        """Return the teacher's outputs for a batch: the cached ones that it holds, else those of the live teacher.

        Args:
            batch: As `prepare`; a cached teacher's outputs are in it under the names of `losses.TEACHER_OUTPUTS`.
            teacher_pixels: From `prepare`; used by a live teacher only.

        Returns:
            `teacher_logits` `(batch, num_labels)` of a live teacher or a dense cache; `teacher_labels` `(batch,)` of a hard
            cache; `teacher_top_logits`, `teacher_top_indices` `(batch, K)` and `teacher_rest` `(batch,)` of a top-K cache;
            empty without a teacher.
        """
        if self.needs_live_teacher(batch):
            return {"teacher_logits": self.teacher(teacher_pixels)}
        return {name: batch[name] for name in TEACHER_OUTPUTS if name in batch}

    # ---- the losses ----

    def terms(
        self, student_outputs: Mapping[str, Tensor], teacher_outputs: Mapping[str, Tensor], labels: Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss of each image and its named parts.

        Args:
            student_outputs: `logits` `(batch, num_labels)`, and of a student with two heads `cls_logits` and
                `distillation_logits`; other entries are not used.
            teacher_outputs: As `teacher_outputs` returns them.
            labels: From `prepare`.

        Returns:
            `loss`, `cls_loss` and, where it exists, `distillation_loss`, each `(batch,)` in float32 and not reduced
            (`losses.distillation_terms` says what learns from what).
        """
        names = ("logits", "cls_logits", "distillation_logits")
        heads = {name: student_outputs[name] for name in names if name in student_outputs}
        learns = None
        if self.learns_from_teacher:
            learns = teacher_loss(
                teacher_outputs,
                distillation_type=self.distillation_type,
                tau=self.tau,
                reduction=self.reduction,
            )
            if learns is None:  # an evaluation of images for which no outputs are cached
                heads = {"logits": heads.get("cls_logits", heads["logits"])}
        return distillation_terms(heads, self._label_loss(labels), learns, self.alpha)

    def _label_loss(self, labels: Tensor) -> functools.partial:
        if self.problem_type != ProblemType.SINGLE_LABEL:
            return functools.partial(supervised_loss, labels=labels, problem_type=self.problem_type)
        return functools.partial(
            base_loss,
            labels=labels,
            kind=self.label_loss,
            label_smoothing=self.label_smoothing,
            weight=self.class_weights,
        )


@torch.no_grad()
def live_teacher_logits(objective: DistillationObjective, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the live teacher's logits `(batch, num_labels)` for a batch of views, moved to the teacher's device."""
    view = "teacher_pixel_values" if "teacher_pixel_values" in batch else "pixel_values"
    used = {"pixel_values": batch[view], "mixes": batch.get("mixes")}
    batch = {name: value.to(objective.teacher.device) for name, value in used.items() if value is not None}
    prepared = objective.prepare(batch, for_student=False)
    return objective.teacher_outputs(batch, prepared.teacher_pixels)["teacher_logits"]


def view_logits(teacher: Teacher, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """Yield the teacher's logits `(batch, num_labels)` for batches of `ViewSchedule.loader`."""
    objective = DistillationObjective(num_labels=0, teacher=teacher)
    for batch in batches:
        yield live_teacher_logits(objective, batch)
