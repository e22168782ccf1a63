"""A recipe as a file: the package's own by name, what a file takes from its `base`, and what its header says.

A header is the comment lines a file begins with: its first line says what the recipe is; one may give the paper's accuracy; the
commands that launch it are indented by three blanks. What the fields mean is the business of recipe.py.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

FOLDER = Path(__file__).parent / "recipes"
_ACCURACY = "# The paper's accuracy: "


class RecipeError(UserError):
    """A recipe with unknown, missing or impossible fields."""


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


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes the last of several values of one key, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parsed_yaml(path: Path, error: type[UserError]) -> Any:
    """Gives what a YAML file holds.

    Args:
        path: Of the file.
        error: What to raise.

    Raises:
        UserError: It cannot be read, is not valid YAML, or gives one key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}.") from reason
    except (yaml.YAMLError, ValueError) as reason:  # PyYAML's own of a date that is none
        raise error(f"{path} is not valid YAML: {reason}") from reason


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
