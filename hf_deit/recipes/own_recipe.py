"""What a saved model was trained on: its own recipe.yaml, and the data, the split and the teacher that it names.

A model is evaluated, and looked at, on the images that its own run did not train on. evaluate.py and predict.py use these functions.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.layouts import Selection
from ..data.loading import is_image_folder
from ..data.tables import Columns
from ..errors import RecipeError
from ..hub.facts import RECIPE_FILE
from ..sizes import as_pair
from ..trainer.checkpoints import EMA_FOLDER
from .arguments import Recipe, TeacherArguments
from .data import columns_of, selection_of
from .reading import load_recipe

logger = logging.getLogger(__name__)


def class_names_file(own: Recipe | None) -> str | None:
    """Return the file of class names of the model's own run. None if it named none, or if the file no longer exists."""
    file = None if own is None else own.data.class_names
    if file is not None and not Path(file).is_file():
        logger.warning("class_names=%r of the model's own recipe does not exist. The names of the data are used.", file)
        return None
    return file


def teacher_view(own: Recipe | None, side: int | None) -> dict[str, Any]:
    """Return the arguments of `EvaluationDataset` for the view of the teacher; as in the model's own run by default."""
    given = {} if side is None else {"view_size": as_pair(side)}
    if own is None:
        return given
    return {"view_size": own.augmentation.view_size, "crop_ratio": own.data.evaluation_crop_ratio, **given}


def recipe_of(name_or_path: str) -> Recipe | None:
    """Return the recipe that a model in a local folder was trained by; None if it is missing or cannot be read."""
    folder = Path(name_or_path)
    if folder.name == EMA_FOLDER and folder.parent.name.startswith("checkpoint-"):
        folder = folder.parent
    file = (folder.parent if folder.name.startswith("checkpoint-") else folder) / RECIPE_FILE
    if not file.is_file():
        return None
    try:
        return load_recipe(file, [])
    except RecipeError as error:
        logger.warning(
            "%s cannot be read (%s). The evaluation may therefore include images that the model was trained on.",
            file,
            error,
        )
        return None


def same_path(one: str | None, other: str | None) -> bool:
    """Return whether two names are equal or are paths of the same file or folder; False if one of them is None."""
    if one is None or other is None:
        return False
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def split_of_run(own: Recipe | None, data: str) -> tuple[float | None, int]:
    """Return the share and seed with which the model's own run split the data; (None, 0) if it was not trained on them."""
    if own is None or not same_path(own.data.data, data):
        return None, 0
    return own.data.validation_share, own.training.seed


def columns_of_run(own: Recipe | None, data: str) -> Columns | None:
    """Return the table columns that the model's own run read, also for other tables; None without a recipe or table."""
    if own is None or (is_image_folder(data) and not same_path(own.data.data, data)):
        return None
    return columns_of(own.data)


def selection_of_run(own: Recipe | None, data: str) -> Selection | None:
    """Return the names of splits that the model's own run read; None if it was not trained on these data."""
    return selection_of(own.data) if own is not None and same_path(own.data.data, data) else None


def teacher_arguments(own: Recipe | None, teacher: str | None, problem_type: str | None) -> TeacherArguments:
    """Return the fields of a teacher: those of the model's own run if it is the teacher of that run."""
    given = TeacherArguments(teacher=teacher, teacher_problem_type=problem_type)
    if own is None or not same_path(own.teacher.teacher, given.teacher):
        return given
    return own.teacher if problem_type is None else replace(own.teacher, teacher_problem_type=problem_type)
