"""Readers of recipes: a YAML file of fields, optionally with a `base`, and command-line arguments that override its fields.

The header of a recipe consists of the comment lines at the beginning of the file. Its first line describes the recipe, one line
may state the accuracy in the paper, and the launch commands are indented by three spaces. arguments.py defines the fields.
"""

import argparse
import copy
import dataclasses
import difflib
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..errors import RecipeError
from ..files import parsed_yaml
from .arguments import Recipe, check_names, field_entries, field_groups, similar_name
from .unused_fields import check_layers, is_saved, without_refused

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "configs"
_ACCURACY, _COST = "# The paper's accuracy: ", "# Cost: "
# Begins the line of a saved recipe that names the recipe which was proposed for the data.
_PROPOSAL = "# proposal: "
# Stands for the recipe that advice.py proposes, where a recipe is named for a training.
AUTO = "auto"


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the path of a recipe of the package.

    Raises:
        RecipeError: No recipe has this name. The message names similar recipes, if there are any.
    """
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    if name == AUTO:
        raise RecipeError(
            f"{AUTO!r} is not the name of a recipe. With train, cache-teacher and show-augmentations, --recipe {AUTO} (in "
            f'Python recipe="{AUTO}") follows what `hf-deit recipes --for DATA` proposes. Everywhere else, name the proposed '
            "recipe, so that results name their recipe."
        )
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    similar = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RecipeError(
        f"No recipe is called {name!r}.{similar} `hf-deit recipes` lists all recipes; pass your own file with --config."
    )


def read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a recipe file. If it names a `base`, add the fields of the base that the file does not set.

    Raises:
        RecipeError: The file does not exist or does not hold fields, or its base is invalid.
    """
    base, own = read_layers(path)
    return base | own


def read_layers(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the fields of a recipe file.

    Returns:
        The fields of its base, empty if it names none, and its own fields.

    Raises:
        RecipeError: As in `read_fields`.
    """
    own = _read_yaml(path)
    if "base" not in own:
        return {}, own
    return _base_fields(path, own["base"]), {name: value for name, value in own.items() if name != "base"}


def _base_fields(path: Path, base: Any) -> dict[str, Any]:
    if not isinstance(base, str):
        raise RecipeError(
            f"{path}: base: {base!r} is not the name of a recipe. Give a name that `hf-deit recipes` lists."
        )
    try:
        fields = _read_yaml(recipe_path(base))
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from error
    # A base must not have a base itself, so that two files hold all fields and bases cannot form a cycle.
    if "base" in fields:
        raise RecipeError(
            f"{path}: base: {base} has a base itself, {fields['base']}. Name that one as base, and add the fields that differ."
        )
    return fields


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(
            f"No recipe at {path}: there is no such file. For a recipe of the package use --recipe NAME (`hf-deit recipes` "
            "lists them)."
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
    """Return the text of a recipe of the package as one file, in which the fields of its base replace the `base` line.

    Raises:
        RecipeError: As in `recipe_path` and `read_fields`.
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
    """Return the comment lines at the beginning of a recipe."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def launch_commands(text: str) -> list[str]:
    """Return the launch commands in the header of a recipe, each as one line."""
    indented = [line[1:].strip() for line in header(text) if line.startswith("#   ")]
    return "\n".join(indented).replace("\\\n", "").splitlines()


def stated_cost(text: str) -> str | None:
    """Return the sentence about the cost in the header of a recipe, or None if there is none."""
    lines = header(text)
    start = next((number for number, line in enumerate(lines) if line.startswith(_COST)), None)
    if start is None:
        return None
    words = [lines[start].removeprefix(_COST)]
    for line in lines[start + 1 :]:
        if words[-1].endswith(".") or line.startswith("#   "):
            break
        words.append(line.removeprefix("# "))
    return " ".join(words)


def proposal_line(proposal: Mapping[str, str]) -> str:
    """Return the line of a saved recipe that names the recipe which was proposed for the data, and the reason."""
    return f"{_PROPOSAL}{json.dumps(dict(proposal), ensure_ascii=False)}\n"  # JSON is YAML in one line


def proposal_in(text: str) -> dict[str, str] | None:
    """Return what `proposal_line` wrote into a saved recipe; None if its recipe was not proposed."""
    lines = [line.removeprefix(_PROPOSAL) for line in header(text) if line.startswith(_PROPOSAL)]
    return json.loads(lines[0]) if lines else None


def listed_recipes() -> list[tuple[str, str, str]]:
    """Return name, description and the paper's accuracy ("–" if the header states none) of every recipe of the package."""
    rows = []
    for name in recipe_names():
        lines = header(recipe_path(name).read_text(encoding="utf-8"))
        found = [line.removeprefix(_ACCURACY) for line in lines if line.startswith(_ACCURACY)]
        accuracy = found[0].partition(" top-1")[0] if found else "–"
        what = lines[0].removeprefix("# ").rstrip(".") if lines else ""
        rows.append((name, what, accuracy))
    return rows


class _Parser(HfArgumentParser):
    """`HfArgumentParser` that also accepts fields of type tuple, and raises a RecipeError instead of exiting."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        kinds = [kind for kind in (field.type, *typing.get_args(field.type)) if typing.get_origin(kind) is tuple]
        if kinds:  # parse a tuple as a list; its dataclass checks the length
            field = copy.copy(field)
            field.type = list[typing.get_args(kinds[0])[0]]
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str) -> typing.NoReturn:
        raise RecipeError(f"{message}. `hf-deit train --help` and --help-all list the fields.")


def recipe_parser() -> HfArgumentParser:
    """Return a parser of all fields. `--help-all` prints its help, which lists every field of TrainingArguments."""
    groups = list(field_groups().values())
    return _Parser(groups, prog="hf-deit train", add_help=False, allow_abbrev=False, argument_default=None)


def given_names(overrides: Sequence[str]) -> list[str]:
    """Return the names of the fields that command-line arguments set: `["--seed", "1", "--bf16=true"]` → `["seed", "bf16"]`."""
    return [word.removeprefix("--").partition("=")[0] for word in overrides if word.startswith("--")]


def load_recipe(
    config: str | Path | Mapping[str, Any] | None, overrides: Sequence[str], given: Mapping[str, Any] | None = None
) -> Recipe:
    """Load a recipe from a file or from fields, and apply the fields that are given with the command.

    Args:
        config: YAML file of fields, which may name a `base`; or the fields themselves; or None for the defaults.
        overrides: Command-line arguments (`["--learning_rate", "1e-3"]`), which override fields of `config`.
        given: Fields by name, which override fields of `config` too.

    Raises:
        RecipeError: The file cannot be read, a field is unknown or has no effect, or a value is not allowed.
    """
    if config is None or isinstance(config, Mapping):  # fields that were put together from several sources
        base, own, where = dict(config or {}), {}, "The recipe"
    else:
        (base, own), where = read_layers(Path(config)), str(config)
    check_names({**base, **own}, where)
    if is_saved(own):
        own = without_refused(own)
    top = parsed_words(overrides) | dict(given or {})
    check_names(top)
    fields = {**base, **own, **top}
    if _leaves_teacher_out(base, own, top):
        logger.info("distillation_type is none and no teacher is given: guidance of the recipe becomes none too.")
        top["guidance"] = "none"
        fields |= top
    if not fields.keys() & {"distillation_type", "teacher", "teacher_cache"}:
        logger.warning("Neither a teacher nor a distillation_type is given: the student learns from the labels alone.")
    recipe = Recipe.from_fields(fields, tolerated=fields)
    check_layers(base, own, top)
    return recipe


def _leaves_teacher_out(base: Mapping[str, Any], own: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    """Return whether a layer sets distillation_type to none over the guidance of a lower layer, and no layer gives a teacher."""
    if any(layer.get(name) for layer in (base, own, top) for name in ("teacher", "teacher_cache")):
        return False
    for layer, lower in ((top, {**base, **own}), (own, base)):
        if layer.get("distillation_type") == "none":
            return "guidance" not in top and ends_guidance(lower, layer)
    return False


def ends_guidance(lower: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    """Return whether a layer of fields sets distillation_type to none over the guidance of a lower layer, which it does not give itself."""
    return (
        layer.get("distillation_type") == "none" and "guidance" not in layer and lower.get("guidance", "none") != "none"
    )


def parsed_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields that command-line arguments set, with the types that argparse gives them.

    Raises:
        RecipeError: A field is unknown, or a value is not allowed.
    """
    parser = recipe_parser()
    not_given = object()
    parsed, rest = parser.parse_known_args(list(words), argparse.Namespace(**dict.fromkeys(field_entries(), not_given)))
    if rest:
        raise RecipeError(f"Unknown field {rest[0]}.{similar_name(rest[0].lstrip('-').partition('=')[0])}")
    return {name: value for name, value in vars(parsed).items() if value is not not_given}
