"""Reads a recipe: a YAML file of fields, perhaps with a `base`, and the command line on top of it.

A header is the comment lines that a file begins with: its first line says what the recipe is; one may give the paper's
accuracy; the commands that launch it are indented by three blanks.
"""

import argparse
import difflib
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..errors import RecipeError
from ..files import parsed_yaml
from .arguments import GROUPS, Recipe

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "configs"
_ACCURACY = "# The paper's accuracy: "


def recipe_names() -> list[str]:
    """The names of the package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Gives the file of a recipe of the package.

    Raises:
        RecipeError: There is none of this name; the message names the nearest.
    """
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    nearest = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RecipeError(
        f"No recipe is called {name!r}.{nearest} `hf-deit recipes` lists them; a file of your own goes with --config."
    )


def read_fields(path: Path) -> dict[str, Any]:
    """Reads the fields of a recipe; where it names a `base`, they are those of that recipe with its own on top.

    Raises:
        RecipeError: There is no such file, it holds no fields, or its base is none.
    """
    fields = _read_yaml(path)
    if "base" not in fields:
        return fields
    return _base_fields(path, fields["base"]) | {name: value for name, value in fields.items() if name != "base"}


def _base_fields(path: Path, base: Any) -> dict[str, Any]:
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: {base!r} is not allowed; it takes the name of one of `hf-deit recipes`.")
    try:
        fields = _read_yaml(recipe_path(base))
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from error
    # One step and no chain: two files say all there is, and there can be no circle.
    if "base" in fields:
        raise RecipeError(
            f"{path}: base: {base} is itself a recipe with a base, {fields['base']}: name that one, and the differences."
        )
    return fields


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"No recipe at {path}. Those of the package go by name: --recipe NAME (`hf-deit recipes`).")
    content = parsed_yaml(path, RecipeError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} must hold fields and values (learning_rate: 1.0e-3), and holds a {type(content).__name__}."
        )
    return content


def whole_text(name: str) -> str:
    """Gives a recipe of the package as one file: as it stands, and in place of its `base` line that recipe's other fields.

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
    return "\n".join([*lines, f"# The rest is that of {base}:", yaml.safe_dump(rest, sort_keys=False)])


def header(text: str) -> list[str]:
    """The comment lines a recipe begins with."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def launch_commands(text: str) -> list[str]:
    """The commands of a recipe's header, a line each."""
    indented = [line[1:].strip() for line in header(text) if line.startswith("#   ")]
    return "\n".join(indented).replace("\\\n", "").splitlines()


def listed_recipes() -> list[tuple[str, str, str]]:
    """Gives name, what it is, and the paper's accuracy ("–": the paper has none) of every recipe of the package."""
    rows = []
    for name in recipe_names():
        lines = header(recipe_path(name).read_text(encoding="utf-8"))
        found = [line.removeprefix(_ACCURACY) for line in lines if line.startswith(_ACCURACY)]
        accuracy = found[0].partition(" top-1")[0] if found else "–"
        what = lines[0].removeprefix("# ").rstrip(".") if lines else ""
        rows.append((name, what, accuracy))
    return rows


class _Parser(HfArgumentParser):
    """Raises where argparse would exit, so that one place decides what a user sees."""

    def error(self, message: str) -> typing.NoReturn:
        raise RecipeError(f"{message}. `hf-deit train --help` and --help-all list the fields.")


def recipe_parser() -> HfArgumentParser:
    """The parser of all fields; its help is long, the command line shows a short one."""
    return _Parser(GROUPS, prog="hf-deit train", add_help=False, allow_abbrev=False, argument_default=None)


def given_names(overrides: Sequence[str]) -> list[str]:
    """The names of the fields among command-line words: `["--seed", "1", "--bf16=true"]` → `["seed", "bf16"]`."""
    return [word.removeprefix("--").partition("=")[0] for word in overrides if word.startswith("--")]


def load_recipe(config: str | Path | Mapping[str, Any] | None, overrides: list[str]) -> Recipe:
    """Reads a recipe.

    Args:
        config: A YAML file of fields, which may name a `base` (recipe.py); or the fields; None: defaults.
        overrides: Command-line fields (`["--learning_rate", "1e-3"]`), which win over the file.

    Raises:
        RecipeError: The file is unreadable, a field is unknown, or a value is not allowed.
    """
    parser = recipe_parser()
    given_fields = config is None or isinstance(config, Mapping)
    fields = dict(config or {}) if given_fields else read_fields(Path(config))
    known: dict[str, argparse.Action] = {}
    for action in parser._actions:
        known.setdefault(action.dest, action)  # a flag that is true by default has a second action, --no_…
    unknown = sorted(str(name) for name in fields if name not in known)
    if unknown:
        raise RecipeError(
            f"{'The recipe' if given_fields else config} has unknown field(s) {', '.join(unknown)}.{_nearest(unknown[0], known)}"
        )
    hints = {name: hint for group in GROUPS for name, hint in typing.get_type_hints(group).items()}
    parser.set_defaults(**{name: _to_type(known[name], hints[name], value) for name, value in fields.items()})
    given = {*fields, *given_names(overrides)}
    if not given & {"distillation_type", "teacher", "teacher_cache"}:
        logger.warning("Neither a teacher nor a distillation_type is given: the student learns from the labels alone.")
        parser.set_defaults(distillation_type="none")
    try:
        *groups, rest = parser.parse_args_into_dataclasses(
            args=overrides, look_for_args_file=False, return_remaining_strings=True
        )
    except RecipeError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error
    if rest:
        raise RecipeError(f"Unknown field {rest[0]}.{_nearest(rest[0].lstrip('-'), known)}")
    return Recipe(*groups)


def _nearest(name: str, known: dict[str, argparse.Action]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else " `hf-deit train --help` and --help-all list the fields."


def _to_type(action: argparse.Action, hint: Any, value: Any) -> Any:
    """Brings a YAML value to its field's type as argparse would bring its text: 1e-4 is a text in YAML."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    allowed = {type(None): value is None, dict: isinstance(value, dict), list: isinstance(value, list)}
    for kind, given in allowed.items():
        if given and kind not in origins:
            what = "no value" if value is None else f"{value!r}"
            raise RecipeError(f"{action.dest}: {what} is not allowed; it takes {_described(origins)}.")
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list):
        return [_scalar(action, item) for item in value]
    return [_scalar(action, value)] if action.nargs in ("+", "*") else _scalar(action, value)


def _described(origins: set[Any]) -> str:
    names = {
        list: "a list",
        dict: "a mapping",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return " or ".join(sorted(names[kind] for kind in origins if kind in names)) or "one of its choices"


def _scalar(action: argparse.Action, value: Any) -> Any:
    if value is None or isinstance(value, list | dict):
        raise RecipeError(f"{action.dest}: {value!r} is not allowed as an entry of a list.")
    if action.type is None:
        return value
    try:
        converted = action.type(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise RecipeError(f"{action.dest}: {value!r} is not allowed ({error}).") from error
    if action.choices is not None and converted not in action.choices:
        raise RecipeError(
            f"{action.dest}: {value!r} is not allowed; choose from {', '.join(map(str, action.choices))}."
        )
    return converted
