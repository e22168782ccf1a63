"""What several commands use: options that name a recipe, options made of a dataclass, tables, and a quick start."""

import argparse
import contextlib
import dataclasses
import gc
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="NAME", help="one of `hf-deit recipes`")
    parser.add_argument("--config", metavar="FILE", help="in its place: a YAML of fields (base: NAME takes a recipe's)")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import large packages without the garbage collector, which costs a short command a quarter of its time.

    The imports of torch and transformers create 600,000 objects that live until the process ends. The collector would
    examine them several times during the imports, and again afterwards and when the process ends.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def field_help(entry: dataclasses.Field) -> str:
    """Return the documentation of a dataclass field, its default included."""
    text = entry.metadata.get("help") or ""
    text = text[0] if isinstance(text, (list, tuple)) else text  # transformers has a field whose help is a tuple
    if entry.default in (dataclasses.MISSING, None):
        return text
    default = " ".join(map(str, entry.default)) if isinstance(entry.default, tuple) else entry.default
    return f"{text.rstrip('.')} (default: {default})."


def add_fields(parser: argparse.ArgumentParser, group: type) -> None:
    """Add an option for each field of a dataclass; HfArgumentParser does the same, but imports PyTorch.

    Args:
        parser: Gets the options.
        group: Dataclass whose fields are text, numbers, tuples of them, or False by default.
    """
    hints = typing.get_type_hints(group)
    for entry in dataclasses.fields(group):
        kinds = [kind for kind in typing.get_args(hints[entry.name]) if kind is not types.NoneType]
        kind = hints[entry.name]
        settings: dict[str, Any] = {"help": field_help(entry).replace("%", "%%")}
        if kind is bool:
            settings |= {"action": "store_true"}
        elif typing.get_origin(kind) is tuple:
            settings |= {"type": kinds[0], "nargs": len(kinds), "default": entry.default}
        else:
            required = entry.default is dataclasses.MISSING
            settings |= {"type": kinds[0] if kinds else kind, "choices": entry.metadata.get("choices")}
            settings |= {"required": True} if required else {"default": entry.default}
        parser.add_argument(f"--{entry.name}", **settings)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells; the first row is the head, the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


_METRIC_TITLES = {
    "accuracy": "top-1, fused",
    "cls_accuracy": "top-1, class head",
    "distillation_accuracy": "top-1, distillation head",
    "top5_accuracy": "top-5, fused",
    "balanced_accuracy": "balanced accuracy, fused",
    "teacher_accuracy": "top-1, teacher",
    "teacher_agreement": "agreement with the teacher",
    "majority_accuracy": "most frequent class",
    "mean_average_precision": "mean average precision, fused",
    "cls_mean_average_precision": "mean average precision, class head",
    "distillation_mean_average_precision": "mean average precision, distillation head",
    "chance_mean_average_precision": "mean average precision, chance",
}


def metric_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The rows of the final table: the metrics that exist, in percent, the losses, and the numbers of broken images."""
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    rows = [["validation", ""]]
    rows += [[title, f"{100 * metrics[name]:.2f} %"] for name, title in _METRIC_TITLES.items() if name in metrics]
    rows += [[name.replace("_", " "), f"{metrics[name]:.4f}"] for name in sorted(metrics) if name.endswith("loss")]
    broken = metrics.get("broken_images", {})
    rows += [[f"broken images, {name.replace('_', ' ')}", str(count)] for name, count in broken.items()]
    return rows


def _recipe_file(options: argparse.Namespace) -> str | Path | None:
    """The file that --recipe or --config names; None: neither is given."""
    from ..recipes.reading import recipe_path

    if options.recipe is None:
        return options.config
    if options.config is not None:
        raise RecipeError(
            f"--recipe {options.recipe} and --config {options.config}: give one of them; a file that says "
            f"base: {options.recipe} takes that recipe's fields."
        )
    return recipe_path(options.recipe)
