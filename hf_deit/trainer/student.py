"""Facts about a student: heads, classes, image size and problem type, found by running the student once.

Any image classifier that returns `logits` can be a student. This module also raises an error if a distillation setting
is impossible with the given student.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError
from ..losses import ProblemType
from ..models.label_names import class_names
from ..models.loading import refuse_other_channels
from ..sizes import as_pair
from .training_args import DistillationTrainingArguments


@dataclass(frozen=True)
class StudentInfo:
    """Facts about a student.

    Args:
        image_size: `(height, width)` of its images, in pixels; None if the configuration does not fix it.
        num_labels: Number of outputs of each head.
        two_heads: Whether it has a distillation head.
        class_names: Class names in index order; None if it has no class names.
        problem_type: Kind of its labels: single-label, multi-label or regression.
    """

    image_size: tuple[int, int] | None
    num_labels: int
    two_heads: bool
    class_names: list[str] | None
    problem_type: ProblemType


@torch.no_grad()
def inspect_student(model: nn.Module, image_size: Any = None) -> StudentInfo:
    """Return the facts about a student: run it on one black image and read its configuration.

    Args:
        model: The student.
        image_size: Size of the black image if the configuration has no `image_size`: one number, or `(height, width)`.
            Default: 224.

    Raises:
        RecipeError: The student fails on the image, or does not return `logits` of shape `(batch, num_labels)`.
    """
    refuse_other_channels(model, f"The student ({type(model).__name__})")
    config = getattr(model, "config", None)
    fixed_size = getattr(config, "image_size", None)
    height, width = as_pair(fixed_size or image_size or 224)
    parameter = next(model.parameters())
    pixels = torch.zeros(1, 3, height, width, device=parameter.device)
    was_training = model.training
    model.eval()
    try:
        outputs = model(pixel_values=pixels.to(parameter.dtype))
        logits = outputs["logits"]
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"The student ({type(model).__name__}) must take pixel_values of shape {tuple(pixels.shape)} and return an "
            f"output with 'logits', but it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(was_training)
    if logits.ndim != 2:
        raise RecipeError(
            f"The student's logits for one image have the shape {tuple(logits.shape)}, but must have the shape (batch, "
            "num_labels). Give an image classifier."
        )
    problem_type = getattr(config, "problem_type", None)
    if problem_type is None:
        problem_type = ProblemType.REGRESSION if logits.shape[-1] == 1 else ProblemType.SINGLE_LABEL
    return StudentInfo(
        image_size=None if fixed_size is None else (height, width),
        num_labels=logits.shape[-1],
        two_heads="distillation_logits" in outputs,
        class_names=class_names(getattr(config, "id2label", None)),
        problem_type=ProblemType(problem_type),
    )


def distillation_target(args: DistillationTrainingArguments, student: StudentInfo, has_teacher: bool) -> str | None:
    """Return the distillation target: which head learns from the teacher.

    Args:
        args: Arguments of the run.
        student: Facts about the student.
        has_teacher: Whether there is a teacher or a teacher cache.

    Returns:
        "token" (the distillation head), "class" (the only head), or None without distillation.

    Raises:
        RecipeError: `distillation_type` or `guidance` needs a teacher and there is none; the student's labels are numbers, or
            `distillation_reduction` is not for its labels; or the student does not have the heads that
            `distillation_target` needs.
    """
    if has_teacher and student.problem_type == ProblemType.REGRESSION:
        raise RecipeError(
            f"The student's problem_type is {str(student.problem_type)!r}, but a teacher teaches classes (distillation_type="
            f"{args.distillation_type!r}), and numbers are learned from the labels only. Set distillation_type='none', and "
            "leave out the teacher and the teacher cache."
        )
    if args.guidance != "none" and not has_teacher:
        raise RecipeError(
            f"guidance={args.guidance!r} needs a teacher and none was given. Give a teacher, or a teacher cache that was "
            "built with guidance, or set guidance='none'."
        )
    if args.distillation_type == "none":
        return None
    if not has_teacher:
        raise RecipeError(
            f"distillation_type={args.distillation_type!r} needs a teacher and none was given. Give a teacher or a "
            "teacher cache, or set distillation_type='none'."
        )
    if student.problem_type == ProblemType.MULTI_LABEL and args.distillation_reduction != "image":
        raise RecipeError(
            f"distillation_reduction={args.distillation_reduction!r} with problem_type={str(student.problem_type)!r}: the "
            "distillation loss of multi-label data is always the mean over the classes. Leave out distillation_reduction."
        )
    target = args.distillation_target or ("token" if student.two_heads else "class")
    if target == "token" and not student.two_heads:
        raise RecipeError(
            "distillation_target='token' needs a student with a distillation head, but this student has one head. Use "
            "DeiTForImageClassificationWithTeacher, or set distillation_target='class', with which the only head "
            "learns from labels and teacher."
        )
    if target == "class" and student.two_heads:
        raise RecipeError(
            "distillation_target='class' trains one head on labels and teacher, but this student has two heads: the "
            "other head would not be trained. Use distillation_target='token', or the plain student "
            "(ViTForImageClassification)."
        )
    return target
