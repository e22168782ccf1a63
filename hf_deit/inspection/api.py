"""Python functions for looking at a model: `hf_deit.report`, and `hf_deit.train`, which makes a report of what it trained."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..recipes import api
from ..recipes.api import StrPath, TrainingResult, given_columns
from .after_training import report_after_training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..distillation.teacher import Teacher
    from .report import ReportResult


def train(
    data: StrPath | None = None,
    *,
    output_dir: StrPath,
    teacher: "StrPath | Teacher | nn.Module | Callable[[Tensor], Any] | None" = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    **fields: Any,
) -> TrainingResult:
    """Train a student and save it, as `hf-deit train` does. The saved weights are identical bit for bit.

    If the extra `report` is installed, a report about the model is written into `output_dir`/report; `report=False` turns it off.

    Args:
        data: Folder, table, saved data set or Hub name of the images. Default: the data of the recipe.
        output_dir: Folder in which the student is saved.
        teacher: Folder, Hub name or `package.module:factory` of a teacher; or a `Teacher`; or a model, which is
            wrapped in a `Teacher`. Default: the teacher of the recipe, if it has one.
        recipe: Name of a recipe of the package (`hf-deit recipes` lists them), path of a YAML file, or mapping of fields; or
            "auto" for the recipe that `propose_recipe` proposes for the data.
        **fields: Fields that replace those of `recipe`.

    Raises:
        UserError: A field is unknown, has an invalid value, or contradicts another field.
        NonFiniteLossError: The training diverged.
    """
    return api.train(
        data, output_dir=output_dir, teacher=teacher, recipe=recipe, finish=report_after_training, **fields
    )


def report(
    model: StrPath,
    data: StrPath,
    *,
    out: StrPath,
    teacher: StrPath | None = None,
    teacher_cache: StrPath | None = None,
    teacher_view_size: int | None = None,
    teacher_problem_type: str | None = None,
    split: str | None = None,
    unlabelled: bool = False,
    out_of_fold: StrPath | None = None,
    train_images: int = 20_000,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    data_config: str | None = None,
    data_revision: str | None = None,
    split_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    class_names: StrPath | None = None,
    batch_size: int = 64,
    title: str | None = None,
) -> "ReportResult":
    """Look at a model and write a report, as `hf-deit report` does: one HTML file, which contains photographs of the data.

    Args:
        model: Folder or Hub name of the model.
        data: Folder, table, saved data set or Hub name of the images.
        out: Folder of the report. An earlier report in it is replaced.
        teacher: Folder, Hub name or factory of a teacher, for a second opinion on every image.
        teacher_cache: Folder of a teacher cache that was made for a training on these data: the teacher's opinions are taken from it.
        teacher_view_size: Side in pixels of the view that the teacher gets. Default: the `view_size` that the model was trained
            with.
        teacher_problem_type: What the logits of the teacher were trained for. Default: as the files of the teacher state.
        split: Split to look at: train, validation, test, or the name of a split in the data. Default: validation, or test if there is
            no validation split.
        unlabelled: Whether no image has a label; the report then shows what needs none.
        out_of_fold: Table that `predict` wrote with models that were not trained on these images, to find more wrong labels.
        train_images: Largest number of training images that are searched for wrong labels and duplicates; 0 for none.
        image_column: Image column of a table. The default of this and of the next two: as in the training of the model.
        label_column: Label column of a table, or several columns.
        label_separator: Text between the labels of a cell.
        data_config: Configuration of a data set on the Hub. The default of this and of the next four: as in the training of the
            model, if it was trained on the same data.
        data_revision: Branch, tag or commit of a data set on the Hub.
        split_column: Column of a table that names the split of each row, or "none".
        train_split: Name of the training split in the data.
        validation_split: Name of the validation split in the data, or "none".
        class_names: File that names the classes of the data. Default: that of the model's own run.
        batch_size: Number of images per batch.
        title: Title of the report. Default: the name of the model.

    Raises:
        UserError: The extra `report` is not installed; a value is invalid; or the model, the data or the teacher cannot be loaded, or
            they do not match.
    """
    from ..data.layouts import Selection
    from .report import ReportArguments, make_report

    def text(path: StrPath | None) -> str | None:
        return None if path is None else os.fspath(path)

    return make_report(
        ReportArguments(
            model=os.fspath(model),
            data=os.fspath(data),
            out=os.fspath(out),
            teacher=text(teacher),
            teacher_cache=text(teacher_cache),
            teacher_view_size=teacher_view_size,
            teacher_problem_type=teacher_problem_type,
            split=split,
            columns=given_columns(image_column, label_column, label_separator),
            selection=Selection(data_config, data_revision, split_column, train_split, validation_split),
            class_names=text(class_names),
            unlabelled=unlabelled,
            out_of_fold=text(out_of_fold),
            train_images=train_images,
            batch_size=batch_size,
            title=title,
        )
    )
