"""Recipes as files and on the command line: a YAML of fields, perhaps with a `base`, and command-line words on top of it.

The header of a recipe is the comment lines that the file begins with. Its first line describes the recipe, one line may give
the paper's accuracy, and the commands that launch it are indented by three blanks. The fields are in arguments.py.
"""

import argparse
import copy
import dataclasses
import difflib
import logging
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..errors import RecipeError
from ..files import parsed_yaml
from .arguments import Recipe, check_names, field_groups, similar_name

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "configs"
_ACCURACY = "# The paper's accuracy: "


def recipe_names() -> list[str]:
    """Return the names of the package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe of the package.

    Raises:
        RecipeError: The name is unknown; the message names similar ones.
    """
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    similar = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RecipeError(
        f"No recipe is called {name!r}.{similar} `hf-deit recipes` lists them; pass a file of your own with --config."
    )


def read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a recipe; where it names a `base`, the fields of that recipe are added to its own.

    Raises:
        RecipeError: The file does not exist or holds no fields, or its base is invalid.
    """
    fields = _read_yaml(path)
    if "base" not in fields:
        return fields
    return _base_fields(path, fields["base"]) | {name: value for name, value in fields.items() if name != "base"}


def _base_fields(path: Path, base: Any) -> dict[str, Any]:
    if not isinstance(base, str):
        raise RecipeError(
            f"{path}: base: {base!r} is not allowed; give the name of a recipe that `hf-deit recipes` lists."
        )
    try:
        fields = _read_yaml(recipe_path(base))
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from error
    # One step and no chain: two files hold all fields, and there can be no circle.
    if "base" in fields:
        raise RecipeError(
            f"{path}: base: {base} is itself a recipe with a base, {fields['base']}: name that one, and the fields that differ."
        )
    return fields


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(
            f"No recipe at {path}. Choose a recipe of the package by its name: --recipe NAME (`hf-deit recipes` lists them)."
        )
    content = parsed_yaml(path, RecipeError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} must hold fields and values (learning_rate: 1.0e-3), but it holds a {type(content).__name__}."
        )
    return content


def whole_text(name: str) -> str:
    """Return a recipe of the package as one file, with the fields of its base in place of the `base` line.

    Raises:
        RecipeError: As `recipe_path` and `read_fields`.
    """
    path = recipe_path(name)
    text, own = path.read_text(encoding="utf-8"), _read_yaml(path)
    if "base" not in own:
        return text
    base = own["base"]
    rest = {field: value for field, value in read_fields(path).items() if field not in own}
    lines = [line for line in text.splitlines() if not line.startswith("base:")]
    return "\n".join([*lines, f"# The other fields are those of {base}:", yaml.safe_dump(rest, sort_keys=False)])


def header(text: str) -> list[str]:
    """Return the comment lines that a recipe begins with."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def launch_commands(text: str) -> list[str]:
    """Return the commands of a recipe's header, one on each line."""
    indented = [line[1:].strip() for line in header(text) if line.startswith("#   ")]
    return "\n".join(indented).replace("\\\n", "").splitlines()


def listed_recipes() -> list[tuple[str, str, str]]:
    """Return name, description and the paper's accuracy ("–" if the paper has none) of every recipe of the package."""
    rows = []
    for name in recipe_names():
        lines = header(recipe_path(name).read_text(encoding="utf-8"))
        found = [line.removeprefix(_ACCURACY) for line in lines if line.startswith(_ACCURACY)]
        accuracy = found[0].partition(" top-1")[0] if found else "–"
        what = lines[0].removeprefix("# ").rstrip(".") if lines else ""
        rows.append((name, what, accuracy))
    return rows


class _Parser(HfArgumentParser):
    """The parser of transformers, which also takes tuples, and raises where argparse would exit."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        kinds = [kind for kind in (field.type, *typing.get_args(field.type)) if typing.get_origin(kind) is tuple]
        if kinds:  # on a command line a tuple is a list, whose length its dataclass checks
            field = copy.copy(field)
            field.type = list[typing.get_args(kinds[0])[0]]
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str) -> typing.NoReturn:
        raise RecipeError(f"{message}. `hf-deit train --help` and --help-all list the fields.")


def recipe_parser() -> HfArgumentParser:
    """Return the parser of all fields. Its help lists every field of TrainingArguments; the command line shows a shorter one."""
    groups = list(field_groups().values())
    return _Parser(groups, prog="hf-deit train", add_help=False, allow_abbrev=False, argument_default=None)


def given_names(overrides: Sequence[str]) -> list[str]:
    """Return the names of the fields among command-line words: `["--seed", "1", "--bf16=true"]` → `["seed", "bf16"]`."""
    return [word.removeprefix("--").partition("=")[0] for word in overrides if word.startswith("--")]


def load_recipe(config: str | Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> Recipe:
    """Read a recipe.

    Args:
        config: YAML file of fields, which may name a `base`; or the fields themselves; None for the defaults.
        overrides: Command-line words (`["--learning_rate", "1e-3"]`), which replace fields of the file.

    Raises:
        RecipeError: The file is unreadable, a field is unknown, or a value is not allowed.
    """
    if config is None or isinstance(config, Mapping):
        fields, where = dict(config or {}), "The recipe"
    else:
        fields, where = read_fields(Path(config)), str(config)
    check_names(fields, where)
    fields |= _parsed_words(overrides)
    if not fields.keys() & {"distillation_type", "teacher", "teacher_cache"}:
        logger.warning("Neither a teacher nor a distillation_type is given: the student learns from the labels alone.")
    return Recipe.from_fields(fields)


def _parsed_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields that command-line words give, in the types of argparse."""
    parser = recipe_parser()
    not_given = object()
    names = [entry.name for group in field_groups().values() for entry in dataclasses.fields(group)]
    parsed, rest = parser.parse_known_args(list(words), argparse.Namespace(**dict.fromkeys(names, not_given)))
    if rest:
        raise RecipeError(f"Unknown field {rest[0]}.{similar_name(rest[0].lstrip('-').partition('=')[0])}")
    return {name: value for name, value in vars(parsed).items() if value is not not_given}
