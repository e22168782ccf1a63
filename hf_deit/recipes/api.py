"""Python functions for the commands: `hf_deit.train_teacher`, `train`, `evaluate`, `predict`, `cache_teacher` and `card`.

Each function runs the same code as the command of the same name, and returns an object whose `repr` is a table. The fields of
a recipe are keyword arguments: `--learning_rate 1e-3` becomes `learning_rate=1e-3`.
"""

import html
import logging
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import DataError, RecipeError
from .metric_titles import METRIC_TITLES

if TYPE_CHECKING:
    import datasets
    from torch import Tensor, nn

    from ..data.tables import Columns
    from ..distillation.teacher import Teacher
    from .arguments import Recipe
    from .inputs import Failure
    from .predict import Prediction

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike

# Metrics that the table of a result shows, in this order. All metrics are in `metrics`.
_SHOWN = (
    "accuracy",
    "cls_accuracy",
    "distillation_accuracy",
    "balanced_accuracy",
    "teacher_accuracy",
    "teacher_agreement",
    "mean_average_precision",
    "f1_macro",
    "f1_micro",
    "precision_macro",
    "recall_macro",
    "teacher_mean_average_precision",
    "teacher_f1_macro",
)


def _shown(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(METRIC_TITLES[name], f"{100 * metrics[name]:.2f} %") for name in _SHOWN if metrics.get(name) is not None]
    return rows + ([("loss", f"{metrics['loss']:.4f}")] if metrics.get("loss") is not None else [])


class _Table:
    """Base class of results: shows `_rows` as a text table, and as an HTML table in a notebook."""

    def _rows(self) -> list[tuple[str, ...]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([type(self).__name__, *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._rows())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


@dataclass(repr=False)
class TrainingResult(_Table):
    """Result of a training.

    Args:
        output_dir: Folder of the saved model, its image processor, the recipe, the results and the model card.
        metrics: Validation metrics of the saved weights, as in `results.json` without the prefix `eval_`; empty in processes
            other than the first.
        broken_images: Number of unreadable images, by how they were handled.
        split: The split of the validation images: "validation", or "test" if the data has no validation split.
    """

    output_dir: Path
    metrics: dict[str, float]
    broken_images: dict[str, int] = field(default_factory=dict)
    split: str = "validation"

    def _rows(self) -> list[tuple[str, ...]]:
        return [("output_dir", str(self.output_dir)), ("split", self.split), *_shown(self.metrics)]


@dataclass(repr=False)
class TeacherTrainingResult(_Table):
    """Result of training a teacher.

    Args:
        output_dir: Folder of the saved teacher, for `teacher=`.
        metrics: Metrics on the validation images.
    """

    output_dir: Path
    metrics: dict[str, float]

    def _rows(self) -> list[tuple[str, ...]]:
        return [("output_dir", str(self.output_dir)), *_shown(self.metrics)]


@dataclass(repr=False)
class EvaluationResult(_Table):
    """Result of an evaluation.

    Args:
        metrics: Metrics by name.
        per_class: `accuracy` (multi-label: `average_precision`, `f1`, `precision` and `recall`) and number of `images` of
            each class, by class name.
        broken_images: Number of unreadable images, by the stage at which they were left out.
        split: The split that was evaluated; "all" for all images of data without splits.
        loss_on: What the losses were computed on: "labels and teacher", as in the training of a distilled model, or "labels".
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    broken_images: dict[str, int]
    split: str = "validation"
    loss_on: str = "labels"

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [("split", self.split), *_shown(self.metrics)]
        return [(f"loss ({self.loss_on})", *row[1:]) if row[0] == "loss" else row for row in rows]


@dataclass(frozen=True)
class ImagePrediction:
    """The most probable classes of one image.

    Args:
        image: Path of the image file.
        labels: Class names, the most probable first.
        scores: Probabilities of these classes.
        label: Label of the image as text, with `;` between several; None if it is not known. Folders named like classes of the
            model, tables and data sets have labels.
        prediction: The answer as text: the most probable class, for a multi-label model all classes above 0.5 with `;` between them;
            "unknown" if it is below the threshold that was given.
    """

    image: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    label: str | None = None
    prediction: str = ""

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Iterate over pairs of class name and probability."""
        return iter(zip(self.labels, self.scores, strict=True))


class Predictions(_Table, list):
    """List of `ImagePrediction`, in the order of the images.

    `failures` is the reason for each image or input without a prediction, by its name. It is empty unless
    `broken_images="skip"` was given.
    """

    failures: Mapping[str, str] = MappingProxyType({})

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                prediction.image,
                ", ".join(f"{name} {100 * score:.1f} %" for name, score in prediction),
            )
            for prediction in self
        ]


@dataclass(repr=False)
class CacheResult(_Table):
    """Result of building a teacher cache.

    Args:
        folder: Folder of the cache.
        summary: Record format, number of epochs of views, bytes per view, and accuracy of the teacher; empty in processes other
            than the first.
    """

    folder: Path
    summary: dict[str, Any]

    def _rows(self) -> list[tuple[str, ...]]:
        from .cache_teacher import summary_rows

        return [("folder", str(self.folder)), *summary_rows(self.summary)]


def _recipe(recipe: StrPath | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> "Recipe":
    from .reading import AUTO, load_recipe, recipe_names, recipe_path

    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in fields.items()}
    if recipe == AUTO and not Path(AUTO).is_file():
        from .advice import load_proposed

        return load_proposed([], {name: value for name, value in given.items() if value is not None})
    if isinstance(recipe, Mapping):
        recipe, fields = None, {**recipe, **fields}
    elif recipe is not None:
        packaged = str(recipe) in recipe_names() and not Path(recipe).is_file()
        recipe = recipe_path(str(recipe)) if packaged else Path(recipe)
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in fields.items()}
    return load_recipe(recipe, [], {name: value for name, value in given.items() if value is not None})


def train(
    data: StrPath | None = None,
    *,
    output_dir: StrPath,
    teacher: "StrPath | Teacher | nn.Module | Callable[[Tensor], Any] | None" = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    finish: "Callable[[Recipe], Any] | None" = None,
    **fields: Any,
) -> TrainingResult:
    """Train a student and save it, without a report: `hf_deit.train` (inspection/api.py) adds one.

    Args:
        data: Folder, table, saved data set or Hub name of the images. Default: the data of the recipe.
        output_dir: Folder in which the student is saved.
        teacher: Folder, Hub name or `package.module:factory` of a teacher; or a `Teacher`; or a model, which is
            wrapped in a `Teacher`. Default: the teacher of the recipe, if it has one.
        recipe: Name of a recipe of the package (`hf-deit recipes` lists them), path of a YAML file, or mapping of fields; or
            "auto" for the recipe that `propose_recipe` proposes for the data.
        finish: As in recipes/train.py.
        **fields: Fields that replace those of `recipe`.

    Raises:
        UserError: A field is unknown, has an invalid value, or contradicts another field.
        NonFiniteLossError: The training diverged.
    """
    from . import train as training
    from .advice import warn_of_defaults

    given = {"data": data, "output_dir": output_dir, **fields}
    if teacher is not None and not isinstance(teacher, str | os.PathLike):
        from ..distillation.teacher import Teacher

        loaded = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        # Until the recipe is loaded, a name stands for the teacher: the defaults are those of a recipe with a teacher.
        given["teacher"] = type(teacher).__name__
    else:
        loaded, given["teacher"] = None, teacher
    loaded_recipe = _recipe(recipe, given)
    if loaded is not None:
        if loaded_recipe.teacher.teacher_cache is not None:
            raise RecipeError(
                f"teacher_cache={loaded_recipe.teacher.teacher_cache!r} cannot be combined with a teacher that is an "
                "object. Give the teacher as a folder, or leave out the teacher or the teacher_cache."
            )
        # The given object is used instead.
        loaded_recipe = loaded_recipe.replace(teacher=None, distillation_type=loaded_recipe.training.distillation_type)
    prepare = partial(warn_of_defaults, loaded_recipe) if recipe is None else None
    last = {} if finish is None else {"finish": finish}
    metrics = dict(training.train(loaded_recipe, prepare=prepare, teacher=loaded, **last) or {})
    broken, split = metrics.pop("broken_images", {}), metrics.pop("split", "validation")
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return TrainingResult(Path(loaded_recipe.training.output_dir), named, broken, split)


def train_teacher(
    data: StrPath,
    *,
    network: StrPath,
    output_dir: StrPath,
    **fields: Any,
) -> TeacherTrainingResult:
    """Train a teacher from a pretrained network and save it, as `hf-deit train-teacher` does.

    Args:
        data: Folder, table, saved data set or Hub name of the images.
        network: `package.module:factory`, or folder or Hub name of a transformers classifier.
        output_dir: Folder in which the teacher is saved.
        **fields: Further options of the command, such as `image_size=128` or `mode="finetune"`; see [teachers](teachers.md).

    Raises:
        UserError: An option is unknown, or the data, the network or a value cannot be used.
    """
    from . import train_teacher as training
    from .arguments import typed_value
    from .teacher_arguments import TeacherTrainingArguments

    given = {"data": data, "network": network, "output_dir": output_dir, **fields}
    hints = typing.get_type_hints(TeacherTrainingArguments)
    known, values = list(hints), {}
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" The options are {', '.join(known)}."
            raise RecipeError(f"train_teacher has no option {name}={value!r}.{hint}")
        values[name] = typed_value(name, os.fspath(value) if isinstance(value, os.PathLike) else value, hints[name])
    metrics = training.train_teacher(TeacherTrainingArguments(**values))
    return TeacherTrainingResult(Path(output_dir), metrics)


def given_columns(
    image_column: str | None, label_column: str | Sequence[str] | None, label_separator: str | None = None
) -> "Columns":
    """Return the columns of a table that the arguments of a function name."""
    from ..data.tables import Columns

    labels = (label_column,) if isinstance(label_column, str) else tuple(label_column or ())
    return Columns(image_column, labels, label_separator)


def evaluate(
    model: StrPath,
    data: StrPath,
    *,
    teacher: StrPath | None = None,
    teacher_view_size: int | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    data_config: str | None = None,
    data_revision: str | None = None,
    split_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    teacher_problem_type: str | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    class_names: StrPath | None = None,
) -> EvaluationResult:
    """Evaluate a saved model on one split of `data`, as `hf-deit evaluate` does.

    Args:
        model: Folder or Hub name of the model.
        data: Folder, table, saved data set or Hub name of the images.
        teacher: Folder, Hub name or factory of a teacher. If it is given, the accuracy of the teacher and the agreement of the
            model with it are measured too.
        teacher_view_size: Side in pixels of the view that the teacher gets. Default: the `view_size` that the model was trained
            with.
        split: Split to evaluate: train, validation, test, or the name of a split in the data. Default: validation, or test if
            there is no validation split.
        image_column: Image column of a table. The default of this and of the next two: as in the training of the model.
        label_column: Label column of a table, or several columns.
        label_separator: Text between the labels of a cell.
        data_config: Configuration of a data set on the Hub. The default of this and of the next four: as in the training of the
            model, if it was trained on the same data.
        data_revision: Branch, tag or commit of a data set on the Hub.
        split_column: Column of a table that names the split of each row, or "none".
        train_split: Name of the training split in the data.
        validation_split: Name of the validation split in the data, or "none".
        teacher_problem_type: What the logits of the teacher were trained for, "single_label_classification" or
            "multi_label_classification". Default: as the files of the teacher state.
        class_names: File that names the classes of the data, as the field of `train`. Default: that of the model's own run.
        batch_size: Number of images per batch.
        bf16: Compute in bfloat16 (autocast).

    Raises:
        UserError: The model, the data or the teacher does not exist, or they do not match.
    """
    from ..data.layouts import Selection
    from . import evaluate as evaluation

    teacher = None if teacher is None else os.fspath(teacher)
    return EvaluationResult(
        **evaluation.evaluate(
            os.fspath(model),
            os.fspath(data),
            teacher,
            teacher_view_size,
            batch_size,
            bf16,
            columns=given_columns(image_column, label_column, label_separator),
            split=split,
            selection=Selection(data_config, data_revision, split_column, train_split, validation_split),
            class_names=class_names,
            teacher_problem_type=teacher_problem_type,
        )
    )


def predict(
    model: StrPath,
    images: StrPath | Iterable[StrPath],
    *,
    top_k: int = 5,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    batch_size: int = 32,
    broken_images: str = "raise",
    teacher: StrPath | None = None,
    teacher_cache: StrPath | None = None,
    teacher_view_size: int | None = None,
    teacher_problem_type: str | None = None,
    embeddings: bool = False,
    calibrated: bool = False,
    threshold: float | None = None,
    bf16: bool = False,
    as_dataset: bool = False,
) -> "Predictions | datasets.Dataset":
    """Return the most probable classes of images, as `hf-deit predict` does.

    Args:
        model: Folder or Hub name of the model.
        images: One or several inputs: image files, folders, patterns such as `photos/**/*.jpg`, tables, and data sets.
        top_k: Number of classes per image.
        split: Split of the folders and data sets; required for a data set on the Hub. Default: all images of a folder, and the only
            split of a data set.
        image_column: Column of the images of a table or data set; default: found by type or usual name.
        label_column: Column of the labels, or several columns of 0 and 1, one for each class; default: found likewise, if there is
            one.
        batch_size: Number of images at a time. It changes the probabilities by less than 1e-5.
        broken_images: What to do with an image or input that cannot be read. "raise": raise an error, so that there is a prediction
            for each image. "skip": return the others, and the reasons in `failures` (with `as_dataset`, they are logged).
        teacher: Folder, Hub name or factory of a teacher, whose probabilities are in the data set too. Needs `as_dataset`.
        teacher_cache: Folder of a teacher cache that was made for a training on these images: the teacher's probabilities are taken from it.
            Needs `as_dataset`.
        teacher_view_size: Side in pixels of the view that the teacher gets. Default: the `view_size` that the model was trained with.
        teacher_problem_type: What the logits of the teacher were trained for. Default: as the files of the teacher state.
        embeddings: Whether the data set has the class token of each image. Needs `as_dataset`.
        calibrated: Whether to use calibration.json beside the model, see [looking at a model](inspection.md#calibration).
        threshold: Probability below which the answer is "unknown". A multi-label model predicts the classes that reach it.
        bf16: Whether to compute in bfloat16: faster on most GPUs, slower on many CPUs. Probabilities change, mostly by less than 0.01.
        as_dataset: Whether to return a `datasets.Dataset` with the columns of the file that `hf-deit predict --parquet` writes, instead
            of a list. The data set is on the disk, so that memory does not grow with the number of images.

    Returns:
        A list of `ImagePrediction`, or a `datasets.Dataset`. With a `threshold`, the answer is `prediction` of an `ImagePrediction`,
        and the column of this name.

    Raises:
        UserError: The model cannot be read, or a value is invalid.
        DataError: An image or input cannot be read and `broken_images` is "raise", or none can be read.
    """
    from ..data.images import check_policy
    from .inputs import Failure, find_inputs
    from .predict import Predictor, check_top_k, failed

    check_policy(broken_images)
    check_top_k(top_k)
    given = [images] if isinstance(images, str | os.PathLike) else list(images)
    for name, value in (("teacher", teacher), ("teacher_cache", teacher_cache), ("embeddings", embeddings)):
        if value and not as_dataset:
            raise RecipeError(f"{name}={value!r} has an effect only with as_dataset=True: add it, or leave out {name}.")
    columns = given_columns(image_column, label_column)
    loaded = None
    if not (teacher is teacher_cache is teacher_view_size is teacher_problem_type is None):
        from .cached_prediction_teacher import load_teacher

        loaded = load_teacher(
            os.fspath(model),
            teacher=None if teacher is None else os.fspath(teacher),
            teacher_cache=None if teacher_cache is None else os.fspath(teacher_cache),
            view_size=teacher_view_size,
            problem_type=teacher_problem_type,
            inputs=given,
            columns=columns,
        )
    predictor = Predictor(
        os.fspath(model),
        teacher=loaded,
        embeddings=embeddings,
        calibrated=calibrated,
        threshold=threshold,
        bf16=bf16,
    )
    found = find_inputs(map(os.fspath, given), predictor.class_names, split, columns)
    failures: list[Failure] = []
    readable = _readable(predictor.predictions(found, batch_size), failures, broken_images)
    if as_dataset:
        from .prediction_dataset import prediction_dataset

        dataset = prediction_dataset(predictor, readable)
        if failures and not len(dataset):
            raise failed(failures, 0)
        if failures:
            logger.warning("%s", failed(failures, len(dataset)))
        return dataset
    predictions = Predictions()
    for prediction in readable:
        names, scores = zip(*prediction.best(predictor.class_names, top_k), strict=True)
        answer = predictor.decided(prediction)
        predictions.append(ImagePrediction(prediction.file, names, scores, prediction.label, answer))
    if failures and not predictions:
        raise failed(failures, 0)
    predictions.failures = {failure.file: failure.reason for failure in failures}
    return predictions


def _readable(
    found: "Iterable[Prediction | Failure]", failures: "list[Failure]", policy: str
) -> "Iterator[Prediction]":
    """Yield the predictions, and add the failures to a list, or raise an error for the first of them."""
    from .inputs import Failure

    for prediction in found:
        if not isinstance(prediction, Failure):
            yield prediction
            continue
        failures.append(prediction)
        if policy == "raise":
            raise DataError(
                f'{str(prediction).removesuffix(".")}. Give broken_images="skip" for the predictions of the other images.'
            )


def cache_teacher(
    data: StrPath | None = None,
    *,
    out: StrPath,
    teacher: StrPath | None = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    views: int | None = None,
    first_view: int = 0,
    kind: str | None = None,
    top_k: int | None = None,
    answer_dtype: str = "float32",
    **fields: Any,
) -> CacheResult:
    """Cache a teacher's outputs for the views of a recipe, as `hf-deit cache-teacher` does.

    Args:
        data: As in `train`.
        out: Folder of the cache. It is new, or holds a cache of the same views, which is resumed or extended.
        teacher: Folder, Hub name or factory of the teacher. Default: the teacher of the recipe.
        recipe: As in `train`. With "auto", the training must name the same data and weights.
        views: Number of epochs of views. Default: up to the last one that the training shows.
        first_view: Number of the first epoch of views; above 0 to build a part that is merged later.
        kind: "hard" (classes) or "soft" (logits). Default: the `distillation_type` of the recipe.
        top_k: Number of largest logits to keep. Default: all logits.
        answer_dtype: Data type of cached logits, "float32" or "float16".
        **fields: As in `train`.

    Raises:
        UserError: A field is invalid, or the folder holds a different cache.
    """
    from . import cache_teacher as caching

    for name in ("teacher_cache", "verify_teacher_cache"):
        if name in fields:
            raise RecipeError(
                f"{name}={fields[name]!r} is a field of a training, and cache_teacher does not use it. Leave it out; the cache "
                f"is written to out={str(out)!r}."
            )
    # A recipe has an output_dir, but nothing is written there.
    loaded = _recipe(recipe, {"output_dir": "unused", **fields, "data": data, "teacher": teacher})
    summary = caching.cache_teacher(
        loaded, out, epochs=views, first=first_view, kind=kind, top_k=top_k, dtype=answer_dtype
    )
    return CacheResult(Path(out), summary or {})


def card(
    model: StrPath,
    *,
    license: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    data_license: str | None = None,
    base_model_license: str | None = None,
) -> Path:
    """Render the card of a model (README.md) again from the files in its folder, as `hf-deit card` does.

    Args:
        model: Folder of the model.
        license: Licence identifier of the Hub, such as "apache-2.0"; "unknown" withdraws a licence. The default of this and of the
            following: as in the present card.
        base_model: Hub name of the weights that training started from.
        dataset: Hub name of the data.
        data_license: Licence of the data.
        base_model_license: Licence of the weights that training started from.

    Returns:
        The path of the card.

    Raises:
        PublishError: The folder contains no model, or a README.md that was written or changed by hand.
    """
    from ..hub.facts import CardMetadata
    from ..hub.model_card import render_model_card

    metadata = CardMetadata(
        license=license,
        base_model=base_model,
        dataset=dataset,
        data_license=data_license,
        base_model_license=base_model_license,
    )
    return render_model_card(model, metadata)
