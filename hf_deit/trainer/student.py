"""What the trainer must know about a student, found by running it once: heads, classes, image size, kind of problem.

Any image classifier that returns `logits` can be a student. What is impossible with the given one is refused here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError
from ..losses import ProblemType
from ..models.label_names import class_names
from ..sizes import as_pair
from .training_args import DistillationTrainingArguments


@dataclass(frozen=True)
class StudentInfo:
    """Facts about a student.

    Args:
        image_size: `(height, width)` it takes, in pixels; None if it takes any.
        num_labels: Number of outputs of a head.
        two_heads: Whether it has a distillation head.
        class_names: In index order; None if it has none.
        problem_type: What its outputs are trained on.
    """

    image_size: tuple[int, int] | None
    num_labels: int
    two_heads: bool
    class_names: list[str] | None
    problem_type: ProblemType


@torch.no_grad()
def inspect_student(model: nn.Module, image_size: Any = None) -> StudentInfo:
    """Runs a student on one black image and reads its configuration.

    Args:
        model: The student.
        image_size: Number or (height, width) to try; default: `config.image_size`, else 224.

    Raises:
        RecipeError: It fails, or returns no `logits` of shape `(batch, num_labels)`.
    """
    config = getattr(model, "config", None)
    fixed_size = getattr(config, "image_size", None)
    height, width = as_pair(fixed_size or image_size or 224)
    parameter = next(model.parameters())
    pixels = torch.zeros(1, getattr(config, "num_channels", 3), height, width, device=parameter.device)
    was_training = model.training
    model.eval()
    try:
        outputs = model(pixel_values=pixels.to(parameter.dtype))
        logits = outputs["logits"]
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"The student ({type(model).__name__}) must take pixel_values {tuple(pixels.shape)} and return an output with "
            f"'logits': {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(was_training)
    if logits.ndim != 2:
        raise RecipeError(
            f"The student's logits are {tuple(logits.shape)} for one image: expected (batch, num_labels)."
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
    """Decides which head learns from the teacher, and refuses what cannot be.

    Returns:
        "token", "class", or None without distillation.

    Raises:
        RecipeError: The arguments, the student and the teacher do not go together.
    """
    if args.distillation_type == "none":
        return None
    if not has_teacher:
        raise RecipeError(
            f"distillation_type={args.distillation_type!r} needs a teacher and none was given: pass one, or set "
            "distillation_type='none'."
        )
    if student.problem_type != ProblemType.SINGLE_LABEL:
        raise RecipeError(
            f"distillation_type={args.distillation_type!r} compares distributions over classes, and the student's problem_type "
            f"is {student.problem_type!r}: train it with distillation_type='none'."
        )
    target = args.distillation_target or ("token" if student.two_heads else "class")
    if target == "token" and not student.two_heads:
        raise RecipeError(
            "distillation_target='token' needs a student with a distillation head, and this one returns logits only: use "
            "DeiTForImageClassificationWithTeacher, or distillation_target='class' (labels and teacher on the one head)."
        )
    if target == "class" and student.two_heads:
        raise RecipeError(
            "distillation_target='class' trains one head on labels and teacher, and this student has two: the other would "
            "learn nothing. Use distillation_target='token', or the plain student (ViTForImageClassification)."
        )
    return target
