"""The commands as Python functions: `hf_deit.train`, `hf_deit.evaluate`, `hf_deit.predict`, `hf_deit.cache_teacher`.

Each does what the command of the same name does, with the same code, and returns an object whose `repr` is a table. Fields are
those of the command line: `--learning_rate 1e-3` becomes `learning_rate=1e-3`.
"""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..distillation.teacher import Teacher
    from .arguments import Recipe

StrPath = str | os.PathLike

# Metrics of a result's table, in this order; the others are in `metrics`.
_SHOWN = {
    "accuracy": "top-1 accuracy",
    "cls_accuracy": "top-1 accuracy, class head",
    "distillation_accuracy": "top-1 accuracy, distillation head",
    "balanced_accuracy": "balanced accuracy",
    "teacher_accuracy": "top-1 accuracy, teacher",
    "teacher_agreement": "agreement with the teacher",
    "mean_average_precision": "mean average precision",
    "loss": "loss",
}


def _shown(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(title, metrics[name], name) for name, title in _SHOWN.items() if metrics.get(name) is not None]
    return [(title, f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %") for title, value, name in rows]


class _Table:
    """Shows `_rows` as text, and as an HTML table in a notebook."""

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
    """What a training gives.

    Args:
        output_dir: Folder of the saved model, with image processor, recipe, results and card.
        metrics: Validation metrics of the saved weights, as in `results.json` without the prefix `eval_`; empty in processes
            other than the first.
        broken_images: Number of images that could not be read, by what was done with them.
    """

    output_dir: Path
    metrics: dict[str, float]
    broken_images: dict[str, int] = field(default_factory=dict)

    def _rows(self) -> list[tuple[str, ...]]:
        return [("output_dir", str(self.output_dir)), *_shown(self.metrics)]


@dataclass(repr=False)
class EvaluationResult(_Table):
    """What an evaluation gives.

    Args:
        metrics: Metrics by name.
        per_class: For each class its `accuracy` (multi-label: `average_precision`) and its number of `images`.
        broken_images: Number of images that could not be read, by where they were left out.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    broken_images: dict[str, int]

    def _rows(self) -> list[tuple[str, ...]]:
        return _shown(self.metrics)


@dataclass(frozen=True)
class ImagePrediction:
    """The most probable classes of one image.

    Args:
        image: The image file.
        labels: Class names, the most probable first.
        scores: Their probabilities.
    """

    image: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]


class Predictions(_Table, list):
    """A list of `ImagePrediction`, in the order of the images."""

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                prediction.image,
                ", ".join(
                    f"{name} {100 * score:.1f} %"
                    for name, score in zip(prediction.labels, prediction.scores, strict=True)
                ),
            )
            for prediction in self
        ]


@dataclass(repr=False)
class CacheResult(_Table):
    """What building a teacher cache gives.

    Args:
        folder: The cache.
        summary: Its record format, epochs of views, bytes of a view, and the teacher's accuracy; empty in processes other than
            the first.
    """

    folder: Path
    summary: dict[str, Any]

    def _rows(self) -> list[tuple[str, ...]]:
        return [("folder", str(self.folder)), *((name, str(value)) for name, value in self.summary.items())]


def _recipe(recipe: StrPath | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> "Recipe":
    from .reading import load_recipe, read_fields, recipe_names, recipe_path

    if recipe is None or isinstance(recipe, Mapping):
        own = dict(recipe or {})
    else:
        packaged = str(recipe) in recipe_names() and not Path(recipe).is_file()
        own = read_fields(recipe_path(str(recipe)) if packaged else Path(recipe))
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in fields.items()}
    return load_recipe(own | {name: value for name, value in given.items() if value is not None}, [])


def train(
    data: StrPath | None = None,
    *,
    output_dir: StrPath,
    teacher: "StrPath | Teacher | nn.Module | Callable[[Tensor], Any] | None" = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    **fields: Any,
) -> TrainingResult:
    """Train a student and save it: what `hf-deit train` does, with the same weights bit for bit.

    Args:
        data: Folder, table, saved data set or Hub name of the images; default: that of the recipe.
        output_dir: Folder that the student is saved in.
        teacher: Folder, Hub name or `package.module:factory` of a teacher; or a `Teacher`, or a model, which becomes one.
            Default: that of the recipe, or none.
        recipe: Name of a recipe of the package (`hf-deit recipes` lists them), a YAML file, or a mapping of fields.
        **fields: Fields of the recipe; they replace those of `recipe`.

    Raises:
        UserError: A field is unknown, has an invalid value, or does not go with another.
        NonFiniteLossError: Training diverged.
    """
    from . import train as training

    given = {"data": data, "output_dir": output_dir, **fields}
    if teacher is not None and not isinstance(teacher, str | os.PathLike):
        from ..distillation.teacher import Teacher

        loaded = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        given.setdefault("distillation_type", "hard")  # the default, which is "none" for a recipe that names no teacher
    else:
        loaded, given["teacher"] = None, teacher
    loaded_recipe = _recipe(recipe, given)
    if loaded is not None:
        if loaded_recipe.teacher.teacher_cache is not None:
            raise RecipeError(
                f"teacher_cache={loaded_recipe.teacher.teacher_cache!r} with a teacher that is an object: give the teacher's folder, "
                "or leave one of them out."
            )
        loaded_recipe = loaded_recipe.replace(teacher=None)  # that of the recipe is not used
    metrics = dict(training.train(loaded_recipe, teacher=loaded) or {})
    broken = metrics.pop("broken_images", {})
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return TrainingResult(Path(loaded_recipe.training.output_dir), named, broken)


def evaluate(
    model: StrPath,
    data: StrPath,
    *,
    teacher: StrPath | None = None,
    batch_size: int = 64,
    bf16: bool = False,
) -> EvaluationResult:
    """Evaluate a saved model on the validation images of `data`: what `hf-deit evaluate` does.

    Args:
        model: Folder or Hub name of the model.
        data: Folder, table, saved data set or Hub name of the images.
        teacher: Folder, Hub name or factory of a teacher, whose accuracy and agreement are then measured too.
        batch_size: Number of images at a time.
        bf16: Compute in bfloat16 (autocast).

    Raises:
        UserError: Model, data or teacher do not exist, or do not go together.
    """
    from . import evaluate as evaluation

    teacher = None if teacher is None else os.fspath(teacher)
    return EvaluationResult(
        **evaluation.evaluate(os.fspath(model), os.fspath(data), teacher, batch_size=batch_size, bf16=bf16)
    )


def predict(model: StrPath, images: StrPath | Sequence[StrPath], *, top_k: int = 5) -> Predictions:
    """Return the most probable classes of images: what `hf-deit predict` does.

    Args:
        model: Folder or Hub name of the model.
        images: Image files, or one of them.
        top_k: Number of classes for each image.

    Raises:
        UserError: The model or an image cannot be read.
    """
    from . import predict as prediction

    files = [images] if isinstance(images, str | os.PathLike) else list(images)
    files = [os.fspath(file) for file in files]
    found = prediction.predict(os.fspath(model), files, top_k)
    rows = (tuple(zip(*answer, strict=True)) for answer in found)
    return Predictions(ImagePrediction(file, *row) for file, row in zip(files, rows, strict=True))


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
    """Store a teacher's outputs for the views of a recipe: what `hf-deit cache-teacher` does.

    Args:
        data: As `train`.
        out: Folder of the cache; new, or a cache of the same views, which is resumed or extended.
        teacher: Folder, Hub name or factory of the teacher; default: that of the recipe.
        recipe: As `train`.
        views: Number of epochs of views; default: those that the training shows.
        first_view: The first of them, above 0 for a part that is merged later.
        kind: "hard" (classes) or "soft" (logits); default: the recipe's `distillation_type`.
        top_k: Keep the K largest logits only.
        answer_dtype: "float32" or "float16", of stored logits.
        **fields: As `train`.

    Raises:
        UserError: A field is invalid, or the folder holds another cache.
    """
    from . import cache_teacher as caching

    for name in ("teacher_cache", "verify_teacher_cache"):
        if name in fields:
            raise RecipeError(
                f"{name}={fields[name]!r}: this is a field of a training. The cache is written to out={str(out)!r}."
            )
    # Nothing is written to output_dir; a training needs one.
    loaded = _recipe(recipe, {"output_dir": "unused", **fields, "data": data, "teacher": teacher})
    summary = caching.cache_teacher(
        loaded, out, epochs=views, first=first_view, kind=kind, top_k=top_k, dtype=answer_dtype
    )
    return CacheResult(Path(out), summary or {})
