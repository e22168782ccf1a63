"""Preparation of what a `DistillationTrainer` is given: the teacher, its cached outputs, and the image processor."""

import os
from typing import Any

from ..data.dataset_info import inspect_dataset
from ..data.pixel_pipeline import PixelPipeline
from ..distillation.cache import TeacherCache
from ..distillation.cached_teacher import CachedTeacher
from ..distillation.teacher import Teacher
from ..errors import RecipeError
from ..losses import ProblemType
from ..models.image_processing_deit import DeiTImageProcessor
from ..models.pixel_rules import PixelRules, pixel_rules, processor_fields
from ..sizes import as_pair
from .guided_student import GuidedStudent
from .student import StudentInfo
from .training_args import DistillationTrainingArguments


def default_processor(student: StudentInfo) -> DeiTImageProcessor | None:
    """Return an image processor for the student's image size; None if the student has none."""
    return DeiTImageProcessor.for_image_size(student.image_size) if student.image_size is not None else None


def pixels_of(processing_class: Any, trains: bool) -> PixelPipeline:
    """Return what the student's image processor does to pixels.

    Raises:
        RecipeError: The student is trained, and the processor does more than a scaling of each channel.
    """
    if processing_class is None:
        return PixelPipeline(PixelRules())
    if isinstance(processing_class, DeiTImageProcessor):  # its fields state everything
        return PixelPipeline(pixel_rules(processor_fields(processing_class)), processing_class)
    pixels = PixelPipeline.from_processor(processing_class, "The student's")
    if trains and pixels.by_processor:
        raise RecipeError(
            f"processing_class is a {type(processing_class).__name__}, which does more to the pixels than a student can "
            f"be trained with here: {', '.join(pixels.rules.beyond) or 'its pixels differ from those of its fields'}. "
            "Use another image processor, such as DeiTImageProcessor."
        )
    return pixels


def prepare_teacher(teacher: Any, student: StudentInfo, train_dataset: Any, device: Any) -> Teacher | None:
    """Load or wrap a teacher, and align it with the classes of the student.

    Args:
        teacher: As for `DistillationTrainer`.
        student: Facts about the student.
        train_dataset: The training data, or None.
        device: Device of the training.

    Raises:
        TeacherError: The classes of the teacher do not match those of the student, or the teacher cannot be loaded.
    """
    if teacher is None:
        return None
    if isinstance(teacher, str | os.PathLike):
        teacher = Teacher.from_pretrained(teacher)
    elif not isinstance(teacher, Teacher):
        teacher = Teacher(teacher)
    if student.problem_type != ProblemType.REGRESSION:  # for which `distillation_target` refuses any teacher
        teacher.check_problem_type(student.problem_type)
    teacher.to(device)
    info = inspect_dataset(train_dataset)
    view_size = info.view_size or student.image_size or teacher.image_size or (224, 224)
    names = student.class_names
    if names is None and info.class_names is not None and len(info.class_names) == student.num_labels:
        # The student is trained on these labels, so its outputs will stand for these classes.
        names = [name.strip() for name in info.class_names]
    teacher.align(names, student.num_labels, as_pair(view_size))
    return teacher


def prepare_cache(
    cache: TeacherCache | str | os.PathLike | None,
    *,
    verified: int,
    args: DistillationTrainingArguments,
    student: StudentInfo,
    guided: GuidedStudent | None,
    teacher: Teacher | None,
    learns: bool,
    train_dataset: Any,
    eval_dataset: Any,
) -> CachedTeacher | None:
    """Open a teacher cache, and check that it fits the run.

    Args:
        cache: Cached teacher outputs, or their folder; None if there are none.
        verified: Number of cached outputs to compute again with the teacher.
        args: Arguments of the run.
        student: Facts about the student.
        guided: Guided layers of the student; None without guidance.
        teacher: The teacher, if one is given besides the cache.
        learns: Whether the training learns from the teacher. Otherwise the cached outputs serve evaluations only.
        train_dataset: The training data, or None.
        eval_dataset: The validation data, or None.

    Raises:
        TeacherCacheError: The cache is damaged, or was made for other data or another teacher.
        RecipeError: Outputs are to be verified without a cache or without a teacher.
    """
    if cache is None:
        if verified:
            raise RecipeError(
                f"verify_teacher_cache={verified} needs a teacher cache. Give its folder as teacher_cache, or "
                "leave verify_teacher_cache at 0."
            )
        return None
    cached = CachedTeacher(
        cache,
        args.view_schedule(train_dataset) if learns and train_dataset is not None else None,
        eval_dataset,
        distillation_type=args.distillation_type,
        tau=args.distillation_tau,
        problem_type=student.problem_type,
        is_main_process=args.process_index == 0,
        guided=None if guided is None else guided.shapes,
        guidance=args.guidance,
        teacher_layers=args.guidance_teacher_layers,
    )
    if teacher is not None:
        cached.check_teacher(teacher, verified)
    elif verified:
        raise RecipeError(
            f"verify_teacher_cache={verified} computes cached outputs again with the teacher. Give the teacher as "
            "well, or leave verify_teacher_cache at 0."
        )
    return cached
