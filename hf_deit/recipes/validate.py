"""Validation of a recipe before training: all problems at once, without reading weights and without writing a file.

The data are read as for the training: files are listed, and validation images are decoded to find unreadable ones. The
configurations of student and teacher are read too. `train` validates its recipe first; sweeps and ablations validate every
variant before the first run. Problems that only the weights can show (a damaged file, a teacher cache of another teacher) are
found when the weights are loaded, which is also before the first step.
"""

import contextlib
import copy
import dataclasses
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.sources import Source
from ..distillation.cache import TeacherCache
from ..distillation.teacher import Teacher
from ..errors import Problems, RecipeError, ResumeError, UserError
from ..files import check_folder
from ..losses import ProblemType
from ..trainer.checkpoints import checkpoints, newest_checkpoint
from ..trainer.checks import publishing_problems
from ..trainer.trainer import DistillationTrainer
from .arguments import DataArguments, ModelArguments, Recipe, TeacherArguments
from .build import build_processor, build_trainer, image_size_of, student_of, teacher_of
from .data import RunData, load_run_data, without_unlabelled

# Size of the placeholder for data that cannot be read, with which the other fields are checked. It has so many images that
# their number causes no problem.
_IMAGES, _CLASSES = 1_000_000, tuple(map(str, range(1000)))


def validate(recipe: Recipe, data: RunData | None = None, teacher: Teacher | None = None) -> list[UserError]:
    """Return all problems of a recipe; an empty list if it can be trained.

    A part that cannot be built is replaced by a placeholder that is compatible with everything, so that it hides no other
    problem. If `output_dir` holds an earlier run or cannot be written, the data are not read.

    Args:
        recipe: Recipe to check.
        data: Data of the recipe, if they are already loaded.
        teacher: Teacher of the recipe, if it is already loaded. Otherwise the configuration of the teacher is read.
    """
    return _validated(recipe, data, teacher)[0]


def load_validated(recipe: Recipe, teacher: Teacher | None = None) -> RunData:
    """Load the data of a recipe, and raise all problems of the recipe together.

    Raises:
        UserError: The recipe has problems, as `validate` finds them.
    """
    errors, data = _validated(recipe, None, teacher)
    problems = Problems()
    problems.extend(errors)
    problems.raise_all()
    return data


def _validated(recipe: Recipe, data: RunData | None, teacher: Teacher | None) -> tuple[list[UserError], RunData | None]:
    problems, in_use, resumable = Problems(), False, recipe.run.continues
    try:
        _check_output_dir(recipe)
    except UserError as error:
        problems.extend([error])
        resumable = False
        in_use = not isinstance(error, ResumeError)  # report it without delay: reading many images takes long
    if data is None and not in_use:
        with problems.gathered():
            data = load_run_data(recipe)
    with _without_traces():
        usable, shown, teacher = _usable(recipe, None if in_use else data, teacher, problems)
        if shown is not None:
            with problems.gathered():
                compared = resumable and usable is recipe and data is not None
                _check_trainer(usable, shown, teacher, problems, compared)
    return problems.errors, data


def _check_output_dir(recipe: Recipe) -> None:
    folder = Path(recipe.training.output_dir)
    check_folder(folder)
    if recipe.run.continues:
        newest_checkpoint(folder)
    elif checkpoints(folder) or any(folder.glob("model.safetensors*")):
        raise RecipeError(
            f"output_dir={str(folder)!r} holds an earlier run. Add --resume (in Python resume=True) to continue from "
            "its newest checkpoint, or choose another output_dir."
        )


def _usable(
    recipe: Recipe, data: RunData | None, teacher: Teacher | None, problems: Problems
) -> tuple[Recipe, RunData | None, Teacher | None]:
    """Check student, teacher and processor one by one, and replace those that cannot be used.

    Returns:
        Recipe, data and teacher to check together. The data are None if a stream cannot be read.
    """
    known = data is not None
    if not known and not recipe.data.streaming:
        data = _unknown_data(recipe)
    names = data.train.class_names if data is not None else _CLASSES
    problem_type = data.train.problem_type if data is not None else ProblemType.SINGLE_LABEL
    student, changes = None, {}
    with problems.gathered():
        student = student_of(recipe, names, problem_type, with_weights=False)
    if student is None:
        changes["model"] = _any_student(recipe)
    fails = len(problems.errors)
    with problems.gathered():
        build_processor(recipe.model.model, image_size_of(recipe, student), recipe.data.evaluation_crop_ratio)
    if len(problems.errors) > fails:
        changes["data"] = dataclasses.replace(recipe.data, evaluation_crop_ratio=DataArguments.evaluation_crop_ratio)
    own, fails = recipe.teacher, len(problems.errors)
    named = teacher is not None or own.teacher is not None or own.teacher_cache is not None
    if teacher is None:
        with problems.gathered():
            teacher_of(own, with_weights=False)
    if not known and own.teacher_cache is not None:
        with problems.gathered():
            TeacherCache(own.teacher_cache)  # its views cannot be compared with those of unknown data
    if len(problems.errors) > fails or (named and not known):
        cache = own.teacher_cache if known else None
        changes["teacher"] = TeacherArguments(teacher_cache=cache)
        if named and cache is None:
            teacher = _any_teacher(names, problem_type)
    if changes.keys() & {"model", "teacher"} and recipe.training.guidance != "none":
        # A placeholder does not have the layers of the student or of the teacher.
        changes["training"] = copy.copy(recipe.training)
        changes["training"].guidance = "none"
        if recipe.training.distillation_type == "none" and data is not None:
            # Without guidance, images without labels would be reported as ones from which nothing is learned.
            data = without_unlabelled(data)
            if isinstance(data.train, Source):
                data = dataclasses.replace(data, train=data.train.labelled_part())
    return dataclasses.replace(recipe, **changes) if changes else recipe, data, teacher


def _unknown_data(recipe: Recipe) -> RunData:
    labels = [number % len(_CLASSES) for number in range(_IMAGES)]
    source = Source([None] * _IMAGES, labels, _CLASSES, "", "the data")
    return RunData(source, source, recipe.data, left_out_at_scan=0, left_out_of_validation=0)


def _any_teacher(names: Sequence[str], problem_type: ProblemType) -> Teacher:
    return Teacher(
        lambda pixels: torch.zeros(len(pixels), len(names)),
        id2label=dict(enumerate(names)),
        problem_type=problem_type,
    )


def _any_student(recipe: Recipe) -> ModelArguments:
    """Return the fields of a small student that has as many heads as the other fields require."""
    training = recipe.training
    metric = (training.metric_for_best_model or "").removeprefix("eval_").removeprefix("ema_")
    heads = metric.startswith(("cls_", "distillation_")) or training.distillation_target == "token"
    plain = not heads and (training.distillation_target == "class" or recipe.model.student == "plain")
    return ModelArguments(
        student="plain" if plain else "distilled",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=(32, 32),
    )


def _check_trainer(recipe: Recipe, data: RunData, teacher: Teacher | None, problems: Problems, compared: bool) -> None:
    """Build the trainer with arbitrary weights, which finds fields that contradict each other.

    Args:
        recipe: Recipe, in which parts that cannot be used were replaced.
        data: Data to check the recipe with.
        teacher: Teacher to check the recipe with.
        problems: Collection of the problems that are found.
        compared: Whether to compare the run with the checkpoint that it resumes from. No part was replaced.
    """
    # The arguments are copied, not created again: with DeepSpeed, transformers keeps global state about the newest ones.
    args = copy.copy(recipe.training)
    # The Trainer would create output_dir and a repository on the Hub: give it an existing folder, and do not push.
    args.output_dir, args.push_to_hub = tempfile.gettempdir(), False
    tried = dataclasses.replace(recipe, training=args)
    try:
        trainer = build_trainer(tried, data, teacher, with_weights=False)
        if recipe.training.push_to_hub:
            problems.add(publishing_problems(trainer.model, trainer.processing_class))
        _check_optimizer(trainer)
        if compared:
            checkpoint = newest_checkpoint(Path(recipe.training.output_dir))
            # The teacher is compared when its weights are loaded, which is also before the first step.
            trainer.check_resumable(checkpoint, extend=recipe.run.extend, with_teacher=False)
    except UserError:
        raise
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        # transformers raises this for a tracker (report_to) or an optimizer (optim) whose package is missing.
        raise RecipeError(f"A package is missing: {error}") from error


def _check_optimizer(trainer: DistillationTrainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # the optimizer is created later, for the sharded parameters
    updates, args = trainer.args.planned_updates(trainer.train_dataset) or 1, trainer.args
    for create, names in (
        (trainer.create_optimizer, ("optim", "optim_args", "weight_decay", "learning_rate")),
        (lambda: trainer.create_scheduler(updates), ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")),
    ):
        try:
            create()
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            given = ", ".join(f"{name}={_value(getattr(args, name))!r}" for name in names)
            what = "optimizer" if "optim" in names else "schedule of the learning rate"
            raise RecipeError(f"{given}: the {what} cannot be created. {error}") from error


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)  # name a member of an enum by its value


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Suppress log messages, which a training repeats, and restore the state of all random generators afterwards."""
    level = logging.root.manager.disable
    states = random.getstate(), np.random.get_state()
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        logging.disable(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
