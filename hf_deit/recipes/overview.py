"""Overview of a run before its first step: the data, the student, the teacher, what is learned, and the steps.

`train.py` logs it. cli/console.py shows the progress of the training below it.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..data.sources import Source
from ..hub.facts import RECIPE_FILE, RESULTS_FILE
from ..sizes import as_pair
from ..trainer.trainer import DistillationTrainer
from .arguments import Recipe
from .data import RunData

_INDENT = 11
# Fields that other lines show.
_SHOWN = {
    *("data", "unlabelled", "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("model", "student", "image_size", "patch_size", "hidden_size", "num_hidden_layers"),
    *("teacher", "teacher_cache", "distillation_type", "distillation_alpha", "distillation_tau"),
    *("guidance", "guidance_weight", "bf16", "fp16"),
}


def overview(recipe: Recipe, data: RunData, trainer: DistillationTrainer) -> list[tuple[str, str]]:
    """Return titles and texts that describe a run before its first step.

    Args:
        recipe: Recipe of the run.
        data: Data of the run.
        trainer: Trainer of the run.
    """
    rows = [("data", _data(data)), ("student", _student(recipe, trainer)), ("teacher", _teacher(recipe, trainer))]
    rows += [("learns", _learned(trainer)), ("steps", _steps(trainer)), ("device", _device(trainer))]
    changed = {name: value for name, value in recipe.changed().items() if name not in _SHOWN}
    rows += [("changed", _fields(changed))] if changed else []
    rows += [("output", f"{recipe.training.output_dir} ({RECIPE_FILE} in it has all fields)")]
    return rows


def as_text(rows: list[tuple[str, str]], width: int = 100) -> str:
    """Return the rows of an overview as lines of text of at most `width` characters."""
    lines = (
        textwrap.fill(
            text,
            width,
            initial_indent=f"{title}:".ljust(_INDENT),
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for title, text in rows
    )
    return "\n".join(lines)


def _data(data: RunData) -> str:
    train = data.train
    if not isinstance(train, Source):
        count = "a stream" if train.row_count is None else f"a stream of {train.row_count:,} rows"
        text = f"{train.name}: {count}"
    else:
        labelled = len(train) - len(train.unlabelled_indices)
        text = f"{train.name}: {labelled:,} training images"
        own = len(train.unlabelled_indices)
        text += f" with labels and {own:,} without" if own else ""
    text += f", {len(data.validation):,} validation images, {len(train.class_names):,} classes"
    if data.unlabelled is not None:
        text += f"; {len(data.unlabelled):,} images without labels ({data.unlabelled.name})"
    return text


def _student(recipe: Recipe, trainer: DistillationTrainer) -> str:
    student = trainer.accelerator.unwrap_model(trainer.model)
    parts = list(_shape(student))
    every, trained = student.num_parameters(), student.num_parameters(only_trainable=True)
    parts.append(
        f"{_millions(every)} parameters" + ("" if every == trained else f", {_millions(trained)} of them trained")
    )
    start = recipe.model.model
    parts.append("from scratch" if start is None else f"starts from the weights of {start}")
    return ", ".join(parts)


def _shape(model: Any) -> Iterator[str]:
    """Yield the class of a model, and its number of layers, its width, its image and patch size as far as it has them."""
    config = getattr(model, "config", None)
    yield type(model).__name__
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if isinstance(layers, int) and isinstance(width, int):
        yield f"{layers} layers of width {width}"
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is not None:
        in_patches = "" if patch is None else f" in patches of {_pixels(patch)}"
        yield f"images of {_pixels(size)} px{in_patches}"


def _pixels(size: Any) -> str:
    height, width = as_pair(size)
    return f"{height}" if height == width else f"{height} × {width}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def _teacher(recipe: Recipe, trainer: DistillationTrainer) -> str:
    name, cache = recipe.teacher.teacher, recipe.teacher.teacher_cache
    if name is None and cache is None:
        return "none"
    parts = [] if name is None else [str(name)]
    if trainer.teacher is not None:
        model = trainer.teacher.model
        parts += [type(model).__name__] + ([_count(model)] if hasattr(model, "parameters") else [])
    accuracy = None if name is None else _known_accuracy(Path(name))
    if accuracy is not None:
        parts.append(f"{100 * accuracy:.1f} % top-1 accuracy on its own validation images")
    if cache is not None:
        parts.append(f"its stored outputs in {cache}")
    return ", ".join(parts)


def _count(model: Any) -> str:
    return f"{_millions(sum(parameter.numel() for parameter in model.parameters()))} parameters"


def _known_accuracy(folder: Path) -> float | None:
    """Return the accuracy in the results.json of a teacher's folder; None if it has none."""
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    accuracy = results.get("eval_accuracy") if isinstance(results, Mapping) else None
    return accuracy if isinstance(accuracy, float) else None


def _learned(trainer: DistillationTrainer) -> str:
    args = trainer.args
    parts = []
    kind, alpha = args.distillation_type, args.distillation_alpha
    if trainer.distillation_target is None:
        parts.append("labels")
    else:
        if alpha < 1:
            parts.append(f"labels (weight {1 - alpha:.4g})")
        temperature = f", temperature {args.distillation_tau:g}" if kind == "soft" else ""
        parts.append(
            f"the teacher's {'labels' if kind == 'hard' else 'logits'} ({kind}, weight {alpha:g}{temperature})"
        )
    if args.guidance != "none":
        parts.append(f"the teacher's patches (guidance by {args.guidance}, weight {args.guidance_weight:g})")
    if trainer.mixing.is_on:
        parts.append("from images mixed in pairs")
    return ", ".join(parts)


def _steps(trainer: DistillationTrainer) -> str:
    args = trainer.args
    images = f"of {args.global_batch_size:,} images"
    if args.max_steps > 0:
        return f"{args.max_steps:,} {images}"
    per_epoch = trainer.steps_per_epoch  # the data are no stream, which needs max_steps
    return f"{round(per_epoch * args.num_train_epochs):,} {images}: {args.num_train_epochs:g} epochs of {per_epoch:,}"


def _device(trainer: DistillationTrainer) -> str:
    args = trainer.args
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    text = f"{args.device}, {dtype}"
    workers = args.dataloader_num_workers
    text += f", {workers} data worker{'s' if workers > 1 else ''}" if workers else ""
    return text if args.world_size == 1 else f"{text}, {args.world_size} processes"


def _fields(fields: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=1_000).removesuffix("\n...\n").strip()

    return ", ".join(f"{name} {shown(value)}" for name, value in fields.items())
