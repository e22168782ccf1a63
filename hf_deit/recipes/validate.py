"""Checks a recipe before anything is trained: all problems at once, without reading weights and without writing a file.

Listings of the data and the configurations of student and teacher are read. `train` calls this first, sweeps and ablations call
it for every variant before the first run. What only the weights can show (a damaged file, a teacher cache that belongs to another
teacher) is found when they are loaded, also before the first step.
"""

import contextlib
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..distillation.teacher import Teacher
from ..errors import RecipeError, UserError
from ..files import check_folder
from ..losses import ProblemType
from ..trainer.checkpoints import checkpoints, newest_checkpoint
from ..trainer.trainer import DistillationTrainer
from ..trainer.validation import Problems, publishing_problems
from .arguments import Recipe
from .build import build_processor, build_trainer, image_size_of, student_of, teacher_of
from .data import RunData, load_run_data

# Stands for the classes of data that cannot be read, so that the other fields are checked all the same.
_UNKNOWN_CLASSES = ("0", "1")


def validate(recipe: Recipe, data: RunData | None = None, teacher: Teacher | None = None) -> list[UserError]:
    """Return all problems of a recipe; an empty list if it can be trained.

    Args:
        recipe: Recipe to check.
        data: Its data, if they are loaded already.
        teacher: Its teacher, if it is loaded already; else the teacher's configuration is read.
    """
    problems = Problems()
    if data is None:
        with problems.gathered():
            data = load_run_data(recipe)
    with _without_traces():
        with problems.gathered():
            _check_output_dir(recipe)
        if data is None:
            _check_models(recipe, teacher, problems)
        else:
            with problems.gathered():
                _check_trainer(recipe, data, teacher, problems)
    return problems.errors


def load_validated(recipe: Recipe, teacher: Teacher | None = None) -> RunData:
    """Load the data of a recipe, and raise all problems of the recipe together.

    Raises:
        UserError: There are problems, see `validate`.
    """
    data, problems = None, Problems()
    try:
        data = load_run_data(recipe)
    except UserError:
        problems.extend(validate(recipe, teacher=teacher))  # it reads the data again, and finds the other problems too
    else:
        problems.extend(validate(recipe, data, teacher))
    problems.raise_all()
    return data


def _check_output_dir(recipe: Recipe) -> None:
    folder = Path(recipe.training.output_dir)
    check_folder(folder)
    if recipe.run.resume:
        newest_checkpoint(folder)
    elif checkpoints(folder) or any(folder.glob("model.safetensors*")):
        raise RecipeError(
            f"output_dir={str(folder)!r} holds an earlier run. Add --resume to continue from its newest checkpoint, or choose "
            "another --output_dir."
        )


def _check_models(recipe: Recipe, teacher: Teacher | None, problems: Problems) -> None:
    """Check what does not depend on the data."""
    student = None
    with problems.gathered():
        student = student_of(recipe, _UNKNOWN_CLASSES, ProblemType.SINGLE_LABEL, with_weights=False)
    if teacher is None:
        with problems.gathered():
            teacher_of(recipe.teacher, with_weights=False)
    with problems.gathered():
        build_processor(recipe.model.model, image_size_of(recipe, student), recipe.data.evaluation_crop_ratio)


def _check_trainer(recipe: Recipe, data: RunData, teacher: Teacher | None, problems: Problems) -> None:
    """Build the trainer with arbitrary weights; it finds what does not go together."""
    # An existing folder in place of output_dir, which the Trainer would make; and no repository on the Hub.
    tried = recipe.replace(output_dir=tempfile.gettempdir(), push_to_hub=False)
    try:
        trainer = build_trainer(tried, data, teacher, with_weights=False)
        if recipe.training.push_to_hub:
            problems.add(publishing_problems(trainer.model, trainer.processing_class))
        _check_optimizer(trainer)
    except UserError:
        raise
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        # transformers says so of a tracker (report_to) or an optimizer (optim) whose package is missing.
        raise RecipeError(f"A package is missing: {error}") from error


def _check_optimizer(trainer: DistillationTrainer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # it is made for the sharded parameters
    updates = trainer.args.planned_updates(trainer.train_dataset) or 1
    try:
        trainer.create_optimizer_and_scheduler(updates)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"optim={str(trainer.args.optim)!r}, lr_scheduler_type={str(trainer.args.lr_scheduler_type)!r}, "
            f"lr_scheduler_kwargs={trainer.args.lr_scheduler_kwargs!r}: {error}"
        ) from error


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Restore the state of all random generators afterwards, and log nothing: a training repeats these messages."""
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
