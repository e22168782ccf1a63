"""Helpers that several commands share: options for recipes, options made from a dataclass, tables, and fast imports."""

import argparse
import contextlib
import dataclasses
import gc
import os
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, UserError
from ..recipes.metric_titles import METRIC_TITLES

if TYPE_CHECKING:
    from ..recipes.arguments import Recipe


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="a recipe of the package (`hf-deit recipes` lists them); auto follows `hf-deit recipes --for DATA`",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of fields, instead of --recipe (base: NAME in it takes the fields of a recipe)",
    )


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
    """Return the help text of a dataclass field, including its default."""
    text = entry.metadata.get("help") or ""
    text = text[0] if isinstance(text, (list, tuple)) else text  # transformers has a field whose help is a tuple
    if entry.default in (dataclasses.MISSING, None):
        return text
    default = " ".join(map(str, entry.default)) if isinstance(entry.default, tuple) else entry.default
    return f"{text.rstrip('.')} (default: {default})."


def add_fields(parser: argparse.ArgumentParser, group: type) -> None:
    """Add an option for each field of a dataclass; HfArgumentParser does the same, but imports PyTorch.

    Args:
        parser: Parser to which the options are added.
        group: Dataclass whose fields are strings, numbers, tuples or optional lists of them, or booleans that are False
            by default.
    """
    hints = typing.get_type_hints(group)
    for entry in dataclasses.fields(group):
        kinds = [kind for kind in typing.get_args(hints[entry.name]) if kind is not types.NoneType]
        kind = hints[entry.name]
        settings: dict[str, Any] = {"help": field_help(entry).replace("%", "%%")}
        if kind is bool:
            settings |= {"action": "store_true"}
        elif kinds and typing.get_origin(kinds[0]) is list:
            settings |= {"type": typing.get_args(kinds[0])[0], "nargs": "+", "default": entry.default}
        elif typing.get_origin(kind) is tuple:
            settings |= {"type": kinds[0], "nargs": len(kinds), "default": entry.default}
        else:
            required = entry.default is dataclasses.MISSING
            settings |= {"type": kinds[0] if kinds else kind, "choices": entry.metadata.get("choices")}
            settings |= {"required": True} if required else {"default": entry.default}
        parser.add_argument(f"--{entry.name}", **settings)


def add_teacher_cache(parser: argparse.ArgumentParser) -> None:
    """Add the option of a teacher cache to a command that looks at a saved model."""
    parser.add_argument(
        "--teacher_cache",
        metavar="DIR",
        help="take the teacher's probabilities from a cache of all logits that was made for a training on the same data, instead of "
        "running a teacher (training images: mean over their cached views)",
    )


def add_teacher_details(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the teacher of a command that looks at a saved model."""
    parser.add_argument(
        "--teacher_view_size",
        type=int,
        help="side of the view that the teacher sees, in pixels (default: the view_size that the model was trained with)",
    )
    parser.add_argument(
        "--teacher_problem_type",
        choices=("single_label_classification", "multi_label_classification"),
        help="what the logits of the teacher were trained for (default: as the files of the teacher state)",
    )


def add_data_of_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of data whose defaults are those of the run that trained the model."""
    trained = "(default: as in the training of the model)"
    parser.add_argument("--image_column", help=f"image column of a table {trained}")
    parser.add_argument("--label_column", nargs="+", help=f"label columns of a table, one or several {trained}")
    parser.add_argument("--label_separator", help=f"text between the labels of a cell of a table {trained}")
    for name, text in (
        ("data_config", "configuration of a data set on the Hub"),
        ("data_revision", "branch, tag or commit of a data set on the Hub"),
        ("split_column", "column of a table that names the split of each row, or none"),
        ("train_split", "name of the training split in the data"),
        ("validation_split", "name of the validation split in the data, or none"),
    ):
        parser.add_argument(f"--{name}", help=f"{text} (default: as in the training of the model, if on the same data)")
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help="file that names the classes, as for train (default: that of the model's run)",
    )


def input_names(words: Sequence[str]) -> list[str]:
    """Return the images that a command names; `-` stands for the names on standard input.

    Raises:
        UserError: There are no names on standard input.
    """
    from ..recipes.inputs import names_on

    names = [name for word in words for name in (names_on(sys.stdin.buffer) if word == "-" else [word])]
    if not names:
        raise UserError("There are no names on standard input: give at least one image.")
    return names


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells. The first row is the header. The first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def metric_rows(metrics: dict[str, Any], split: str = "validation", loss_on: str | None = None) -> list[list[str]]:
    """Return the rows of the final table: available metrics in percent, losses, and numbers of unreadable images.

    `loss_on` is added to the names of the losses that depend on the teacher.
    """
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    rows = [[{"all": "all images"}.get(split, split), ""]]
    rows += [[title, f"{100 * metrics[name]:.2f} %"] for name, title in METRIC_TITLES.items() if name in metrics]
    for name in sorted(name for name in metrics if name.endswith("loss")):
        note = f" ({loss_on})" if loss_on is not None and name != "cls_loss" else ""
        rows.append([name.replace("_", " ") + note, f"{metrics[name]:.4f}"])
    unreadable = metrics.get("broken_images", {})
    rows += [[f"unreadable images, {name.replace('_', ' ')}", str(count)] for name, count in unreadable.items()]
    return rows


def _recipe_file(options: argparse.Namespace) -> str | Path | None:
    """Return the file that --recipe or --config names; None if neither is given.

    Raises:
        RecipeError: Both are given, or the recipe is unknown.
    """
    from ..recipes.reading import recipe_path

    if options.recipe is None:
        return options.config
    if options.config is not None:
        raise RecipeError(
            f"--recipe {options.recipe} and --config {options.config} are both given. Give only one of them. A file "
            "with a line such as `base: finetune_96` takes the fields of that recipe."
        )
    return recipe_path(options.recipe)


def load_given(options: argparse.Namespace, fields: Sequence[str]) -> "Recipe":
    """Load the recipe that --recipe or --config names, with the fields that are given; --recipe auto proposes one.

    Raises:
        UserError: Both are given, the recipe is unknown, or as in `load_recipe` and `load_proposed`.
    """
    from ..recipes.reading import AUTO, load_recipe

    if options.recipe == AUTO and options.config is None:
        from ..recipes.advice import load_proposed

        recipe = load_proposed(fields)
    else:
        recipe = load_recipe(_recipe_file(options), fields)
    _set_workers(recipe)
    return recipe


# Largest number of data workers of a process that is set by default.
_MOST_WORKERS = 8


def _set_workers(recipe: "Recipe") -> None:
    """Set the number of data workers for an accelerator, if the recipe does not give one.

    On a CPU the student itself needs all cores, so the images are read in its process. From Python the default stays 0,
    because worker processes that are spawned need a script with `if __name__ == "__main__"`.
    """
    from ..trainer.environment import local_processes

    args = recipe.training
    # What a stream shows depends on the number of workers, each of which drops its own incomplete batch.
    if "dataloader_num_workers" in recipe.given or args.device.type == "cpu" or recipe.data.streaming:
        return
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    args.dataloader_num_workers = max(1, min(_MOST_WORKERS, cores // local_processes()))
