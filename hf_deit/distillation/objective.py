"""The training objective: preparation of a batch for student and teacher, the teacher's outputs, and the loss terms.

`DistillationObjective` depends neither on a `Trainer` nor on training arguments. The trainer calls it in each step. The
cache builder and `train-teacher` use only its first half, so the preparation of the teacher's pixels is written in one
place. The formulas of the losses are in `losses.py`. `teacher.py` resizes and normalises the pixels for the teacher,
and `cached_teacher.py` adds cached outputs to a batch.

Paper: Touvron et al., arXiv:2012.12877, section 4.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch_ops import mix_labels, mix_partial_labels, mix_pixels, resize
from ..data.pixel_pipeline import UNCHANGED, PixelPipeline
from ..errors import TeacherError
from ..losses import (
    TEACHER_OUTPUTS,
    ProblemType,
    distillation_terms,
    split_labels,
    supervised_loss,
    teacher_loss,
)
from .guidance import Guidance
from .teacher import Teacher

# Entries of a batch that are not passed to the student as they are.
_NOT_FOR_THE_STUDENT = ("pixel_values", "labels", "mixes")


class PreparedBatch(NamedTuple):
    """A batch in the form that the student, the teacher and the losses take.

    Attributes:
        student_pixels: `(batch, channels, height, width)`, mixed, resized to the student's size and normalised for the
            student. None if they were not requested.
        teacher_pixels: `(batch, channels, height, width)` in [0, 1], mixed. The teacher itself resizes and normalises
            them. None if they were not requested.
        labels: `(batch,)`, or mixed `(batch, num_labels)`. None if the batch has no labels.
        label_weights: Share of each image that has a label, `(batch,)` in [0, 1]. None if the objective allows no images
            without a label, or the batch has no labels.
    """

    student_pixels: Tensor | None
    teacher_pixels: Tensor | None
    labels: Tensor | None
    label_weights: Tensor | None = None


class DistillationObjective:
    """The loss terms of the labels and of a live or cached teacher.

    Args:
        num_labels: Number of classes.
        problem_type: Problem type of the student's labels, as in a configuration of transformers.
        teacher: Live teacher on the device of the batches, aligned with the student's classes. None if there is no live
            teacher.
        learns_from_teacher: Whether a loss term is computed on the teacher's outputs. If False, they are used only for
            metrics.
        distillation_type: "soft" or "hard".
        alpha: Weight α in [0, 1] of the teacher's term (the paper's λ).
        tau: Softmax temperature τ > 0 of soft distillation.
        reduction: "image" or "official", see `losses.soft_distillation_loss`. For single-label students.
        label_loss: "cross_entropy" or "binary_cross_entropy", see `losses.supervised_loss`.
        label_smoothing: Share in [0, 1) of a label that is smoothed, for "cross_entropy", see
            `losses.supervised_loss`.
        class_weights: Weight of each class in the label loss, `(num_labels,)`. If None, all classes have the same
            weight.
        image_size: `(height, width)` of the student's images, in pixels. If None, the student takes any size.
        pixels: What the student's image processor does to pixels. Default: nothing.
        guidance: How the student's patches learn from those of the teacher. None: they do not.
        guidance_weight: Weight of the guidance loss, which is added to the loss.
        projections: Projections of the student's features for the guidance, see `Guidance.loss`.
        allows_unlabelled: Whether images may have no label (`losses.UNLABELLED`). They have no label term.
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
        pixels: PixelPipeline = UNCHANGED,
        guidance: Guidance | None = None,
        guidance_weight: float = 1.0,
        projections: Sequence[Callable[[Tensor], Tensor]] = (),
        allows_unlabelled: bool = False,
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
        self.pixels = pixels
        self.guidance = guidance
        self.guidance_weight = guidance_weight
        self.projections = projections
        self.allows_unlabelled = allows_unlabelled

    # ---- the batch ----

    def prepare(self, batch: Mapping[str, Any], *, for_student: bool = True, for_teacher: bool = True) -> PreparedBatch:
        """Mix partners, and convert the pixels to the forms that the student and the teacher take.

        Args:
            batch: A dictionary with the entries below. It is not changed.

                - `pixel_values` `(batch, channels, height, width)`: views in uint8, or floats that the student's image
                  processor made.
                - `teacher_pixel_values`: the teacher's pixels, if the teacher sees another size.
                - `mixes`: the parameters of the mixing, if partners are mixed.
                - `labels`, if there are any.
            for_student: Whether to prepare the student's pixels.
            for_teacher: Whether to prepare the teacher's pixels.
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
        return PreparedBatch(student_pixels, teacher_pixels, *self._labels(batch))

    def _is_ready(self, pixel_values: Tensor) -> bool:
        """Return whether the pixels are floats of the student's size. Such pixels are already normalised."""
        fits = self.image_size is None or tuple(pixel_values.shape[-2:]) == self.image_size
        return pixel_values.is_floating_point() and fits

    def _view(self, pixel_values: Tensor, mixes: Tensor | None) -> Tensor:
        """Return the views with values in [0, 1]. If there are `mixes`, mix each view with that of its partner."""
        view = self.pixels.undo(pixel_values)
        return view if mixes is None else mix_pixels(view, mixes)

    def _normalized(self, view: Tensor) -> Tensor:
        if self.image_size is not None and tuple(view.shape[-2:]) != self.image_size:
            view = resize(view, self.image_size)
        return self.pixels(view)

    def _labels(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """Return the labels, mixed if there are `mixes`, and the share of each image that has a label."""
        labels, mixes, weights = batch.get("labels"), batch.get("mixes"), None
        if labels is not None and self.allows_unlabelled:
            labels, weights = split_labels(labels)
        if labels is None or mixes is None:
            return labels, weights
        size = tuple(batch["pixel_values"].shape[-2:])
        if weights is None:
            return mix_labels(labels, mixes, self.num_labels, size), None
        return mix_partial_labels(labels, weights, mixes, self.num_labels, size)

    @staticmethod
    def other_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a batch that the student takes in addition to its pixels."""
        return {
            name: value
            for name, value in batch.items()
            if name not in _NOT_FOR_THE_STUDENT and not name.startswith("teacher_")
        }

    # ---- the teacher ----

    def needs_live_teacher(self, batch: Mapping[str, Any]) -> bool:
        """Return whether the teacher must be run: there is a live teacher, and the batch holds no cached outputs."""
        return self.teacher is not None and not any(name in batch for name in TEACHER_OUTPUTS)

    def teacher_outputs(
        self, batch: Mapping[str, Any], teacher_pixels: Tensor | None, *, guides: bool = False
    ) -> dict[str, Tensor]:
        """Return the cached outputs in a batch; if it holds none, return the outputs of the live teacher.

        Args:
            batch: Batch as for `prepare`. Cached outputs are in it under the names of `losses.TEACHER_OUTPUTS`.
            teacher_pixels: The teacher's pixels from `prepare`. Only a live teacher uses them.
            guides: Whether the records for the guidance are needed too. Without `guidance` there are none.

        Returns:
            Outputs by name. A live teacher or a dense cache: `teacher_logits` `(batch, num_labels)`. A hard cache:
            `teacher_labels`, `(batch,)` or, for multi-label data, `(batch, num_labels)`. A top-K cache:
            `teacher_top_logits` and `teacher_top_indices` `(batch, K)`, and `teacher_rest` `(batch,)`. The dictionary is empty if there is neither a teacher nor a cached output.
            For a guidance also its records, under the names of its arrays with the prefix `teacher_`.
        """
        guidance = self.guidance if guides else None
        if self.needs_live_teacher(batch):
            if guidance is None:
                return {"teacher_logits": self.teacher(teacher_pixels)}
            logits, maps = self.teacher.logits_and_maps(teacher_pixels, guidance.teacher.layers)
            return {"teacher_logits": logits} | _checked_records(guidance.records(maps))
        arrays = () if guidance is None else (f"teacher_{array.name}" for array in guidance.arrays)
        return {name: batch[name] for name in (*TEACHER_OUTPUTS, *arrays) if name in batch}

    # ---- the losses ----

    def terms(
        self,
        student_outputs: Mapping[str, Tensor],
        teacher_outputs: Mapping[str, Tensor],
        labels: Tensor,
        label_weights: Tensor | None = None,
        student_maps: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of each image and its named parts.

        Args:
            student_outputs: `logits` `(batch, num_labels)`. A student with two heads also has `cls_logits` and
                `distillation_logits`. Other entries are not used.
            teacher_outputs: The teacher's outputs, as the method `teacher_outputs` returns them.
            labels: The labels from `prepare`.
            label_weights: The label weights from `prepare`.
            student_maps: Map `(batch, channels, height, width)` of each layer of the student that is guided. Default:
                no guidance term.

        Returns:
            `loss`, `cls_loss` and, where they exist, `distillation_loss` and `guidance_loss` (not weighted), each
            `(batch,)` in float32 and not reduced.
            The table in `losses.distillation_terms` lists which head learns from the labels and which from the teacher.
        """
        names = ("logits", "cls_logits", "distillation_logits")
        heads = {name: student_outputs[name] for name in names if name in student_outputs}
        loss_on_teacher = None
        if self.learns_from_teacher:
            loss_on_teacher = teacher_loss(
                teacher_outputs,
                distillation_type=self.distillation_type,
                tau=self.tau,
                reduction=self.reduction,
                problem_type=self.problem_type,
            )
            if loss_on_teacher is None:  # an evaluation of images for which no outputs are cached
                heads = {"logits": heads.get("cls_logits", heads["logits"])}
        terms = distillation_terms(heads, self._label_loss(labels), loss_on_teacher, self.alpha, label_weights)
        return terms if student_maps is None else self._guided(terms, teacher_outputs, student_maps)

    def _guided(
        self, terms: dict[str, Tensor], teacher_outputs: Mapping[str, Tensor], student_maps: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Add the guidance loss to the terms and, weighted, to the loss. Every image counts the same."""
        loss = self.guidance.loss(student_maps, teacher_outputs, self.projections)
        return {**terms, "loss": terms["loss"] + self.guidance_weight * loss, "guidance_loss": loss}

    def _label_loss(self, labels: Tensor) -> functools.partial:
        return functools.partial(
            supervised_loss,
            labels=labels,
            problem_type=self.problem_type,
            kind=self.label_loss,
            label_smoothing=self.label_smoothing,
            weight=self.class_weights,
        )


def _checked_records(records: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the records of a live teacher under the names that they have in a batch."""
    for name, values in records.items():
        if not bool(values.isfinite().all()):
            raise TeacherError(
                f"The teacher's features for guidance ({name}) are not finite in {values.dtype}, in which they are "
                "compared: choose other layers (guidance_teacher_layers), or guidance='similarity'."
            )
    return {f"teacher_{name}": values for name, values in records.items()}


@torch.no_grad()
def live_teacher_outputs(objective: DistillationObjective, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move a batch of views to the teacher's device and return the outputs of the live teacher, with its records."""
    view = "teacher_pixel_values" if "teacher_pixel_values" in batch else "pixel_values"
    used = {"pixel_values": batch[view], "mixes": batch.get("mixes")}
    batch = {name: value.to(objective.teacher.device) for name, value in used.items() if value is not None}
    prepared = objective.prepare(batch, for_student=False)
    return objective.teacher_outputs(batch, prepared.teacher_pixels, guides=objective.guidance is not None)


def live_teacher_logits(objective: DistillationObjective, batch: Mapping[str, Tensor]) -> Tensor:
    """Move a batch of views to the teacher's device and return the live teacher's logits `(batch, num_labels)`."""
    return live_teacher_outputs(objective, batch)["teacher_logits"]


def view_outputs(
    teacher: Teacher, batches: Iterable[Mapping[str, Tensor]], guidance: Guidance | None = None
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the teacher's logits `(batch, num_labels)` and its records by name, for batches of `ViewSchedule.loader`.

    Args:
        teacher: Teacher on its device.
        batches: Batches of views.
        guidance: What is recorded besides the logits. None: nothing.
    """
    objective = DistillationObjective(num_labels=0, teacher=teacher, guidance=guidance)
    names = [] if guidance is None else [array.name for array in guidance.arrays]
    for batch in batches:
        outputs = live_teacher_outputs(objective, batch)
        yield outputs["teacher_logits"], {name: outputs[f"teacher_{name}"] for name in names}
