"""What several commands use: the options that name a recipe, tables, and a quick start."""

import argparse
import contextlib
import gc
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
    from ..recipes.recipe import recipe_path

    if options.recipe is None:
        return options.config
    if options.config is not None:
        raise RecipeError(
            f"--recipe {options.recipe} and --config {options.config}: give one of them; a file that says "
            f"base: {options.recipe} takes that recipe's fields."
        )
    return recipe_path(options.recipe)
