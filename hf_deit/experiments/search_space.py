"""A search over the fields of a recipe: what is tried, and what a search is made of.

A space maps the name of a field to a list of choices, or to `{low, high}`, with `log: true` on a logarithmic scale. The search
itself is optuna's; trials, storage and processes are sweep.py's business, the report is sweep.py's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import parsed_yaml
from ..recipes.arguments import Recipe
from ..recipes.recipe import load_recipe, recipe_parser

# Searched only where a teacher is listened to in one of these ways.
_NEEDS = {
    "distillation_tau": ("soft",),
    "distillation_reduction": ("soft",),
    "distillation_alpha": ("soft", "hard"),
    "distillation_target": ("soft", "hard"),
}
_REFUSED = {
    "seed": "a seed is luck and no setting",
    **dict.fromkeys(
        ("num_train_epochs", "max_steps"), "trials are compared epoch by epoch (--epochs sets their number)"
    ),
    **dict.fromkeys(
        ("data", "teacher", "teacher_cache", "output_dir", "validation_share"), "it is the same for all trials"
    ),
    **dict.fromkeys(
        ("eval_strategy", "save_strategy", "resume", "streaming", "report_to", "disable_tqdm", "push_to_hub")
        + ("load_best_model_at_end",),
        "the sweep sets it itself",
    ),
}


@dataclass(frozen=True)
class Parameter:
    """What is tried of one field.

    Args:
        name: Of the field.
        choices: To choose from; None: a range.
        low: Of the range.
        high: Of the range.
        log: Whether the range is logarithmic.
        whole: Whether its numbers are whole.
    """

    name: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> Any:
        """Asks an optuna trial for a value; choices go there as JSON, for optuna takes no lists."""
        if self.choices is not None:
            return json.loads(trial.suggest_categorical(self.name, [json.dumps(value) for value in self.choices]))
        ask = trial.suggest_int if self.whole else trial.suggest_float
        return ask(self.name, self.low, self.high, log=self.log)

    def stored(self, value: Any) -> Any:
        """How optuna holds a value; None if it is not in the space."""
        if self.choices is not None:
            # As it is spelled there: 0.8 and 0 may stand beside each other.
            return json.dumps(self.choices[self.choices.index(value)]) if value in self.choices else None
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None

    def describe(self) -> dict[str, Any]:
        """Plain values, to be compared and shown."""
        if self.choices is not None:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Sequence[Parameter]


@dataclass(frozen=True)
class Sweep:
    """A search, checked.

    Args:
        fields: Of the recipe.
        overrides: Recipe fields of the command line; data, teacher and number of epochs among them.
        space: What is tried.
        own_type: The recipe's distillation_type, where the space has none.
        out: Folder of everything.
        trials: Number to be finished or cut short.
        jobs: At a time.
        seed: Of the search.
        teacher: Fingerprint of the teacher; None: none is asked.
        images: Number of validation images.
        data: Sign of the training and the validation images.
    """

    fields: Mapping[str, Any] = field(hash=False)
    overrides: tuple[str, ...]
    space: tuple[Parameter, ...] = field(hash=False)
    own_type: str
    out: Path
    trials: int
    jobs: int
    seed: int
    teacher: str | None
    images: int
    data: str

    def recipe(self, **fields: Any) -> Recipe:
        """The recipe with these fields."""
        return load_recipe({**self.fields, "distillation_type": self.own_type, **fields}, list(self.overrides))

    def describe(self) -> dict[str, Any]:
        """What a sweep that goes on must have in common with the one before."""
        told = {name: getattr(self, name) for name in ("fields", "own_type", "teacher", "images", "data")}
        told["space"] = {parameter.name: parameter.describe() for parameter in self.space}
        words = list(self.overrides)
        for name in ("--data", "--teacher"):  # what they are is told, not where they lie
            if name in words:
                del words[words.index(name) : words.index(name) + 2]
        told["overrides"] = words
        return json.loads(json.dumps(told, default=str))


def default_space(recipe: Recipe, has_teacher: bool, fixed: Sequence[str]) -> Space:
    """The space that is searched where none is given: the learning rate, the views, and how the teacher is listened to.

    Args:
        recipe: Whose learning rate is the middle of what is tried.
        has_teacher: Whether there is one.
        fixed: Fields that were given, which are not searched.
    """
    rate = recipe.training.learning_rate
    own = list(recipe.augmentation.crop_scale)
    crops = [own, *(scale for scale in ([0.08, 1.0], [0.35, 1.0]) if scale != own)][:2]
    space = [Parameter("distillation_type", ("none", "soft", "hard"))] if has_teacher else []
    space += [
        Parameter("distillation_tau", low=1.0, high=5.0),
        Parameter("distillation_alpha", low=0.1, high=0.9),
    ] * has_teacher
    space += [
        Parameter("learning_rate", low=rate / 4, high=rate * 4, log=True),
        Parameter("crop_scale", tuple(crops)),
        Parameter("auto_augment", ("none", "randaugment", "trivialaugment")),
        Parameter("mixup_alpha", (0.0, 0.8)),
    ]
    return [parameter for parameter in space if parameter.name not in fixed]


def read_space(path: str | Path, fields: Mapping[str, Any], fixed: Sequence[str]) -> Space:
    """Reads a space and has the recipe look at every choice and both ends of every range.

    Args:
        path: Of the YAML.
        fields: Of the recipe, whose values the space replaces.
        fixed: Fields that were given on the command line.

    Raises:
        RecipeError: It is no such YAML, or names a field that cannot be searched or is fixed.
        RecipeError: A field or a value is not allowed.
    """
    path = Path(path)
    content = parsed_yaml(path, RecipeError)
    if not isinstance(content, dict) or not content:
        raise RecipeError(f"--space {path} must map fields to [choices] or {{low, high, log}}, and holds {content!r}.")
    kinds = {action.dest: action.type for action in recipe_parser()._actions}
    space = []
    for name, entry in content.items():
        if name in _REFUSED:
            raise RecipeError(f"--space {path}: {name} cannot be searched: {_REFUSED[name]}.")
        if name in fixed:
            raise RecipeError(f"--space {path} searches {name}, and --{name} is given too: leave out one of them.")
        parameter = _parameter(f"--space {path}: {name}", str(name), entry, kinds.get(name))
        for value in parameter.choices or (parameter.low, parameter.high):
            load_recipe({"distillation_type": "none", **fields, name: value}, [])
        space.append(parameter)
    return sorted(space, key=lambda parameter: parameter.name != "distillation_type")  # others depend on it


def _parameter(where: str, name: str, entry: Any, kind: Any) -> Parameter:
    if isinstance(entry, list) and entry:
        try:
            texts = {json.dumps(value) for value in entry}
        except (TypeError, ValueError) as error:  # YAML has dates, and lists that hold themselves
            raise RecipeError(f"{where}: {entry!r}: texts, numbers, true and false, and lists of them.") from error
        twice = len(texts) < len(entry) or any(value in entry[:place] for place, value in enumerate(entry))
        if twice or any(isinstance(value, dict) for value in entry):
            raise RecipeError(f"{where}: {entry!r}: each choice once, and plain.")
        return Parameter(name, tuple(entry))
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise RecipeError(f"{where}: {entry!r}: a list of choices, or {{low: …, high: …}}, perhaps with log: true.")
    try:
        low, high = (float(entry[end]) for end in ("low", "high"))  # 1e-4 is a text in YAML
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: low={entry['low']!r}, high={entry['high']!r}: two numbers.") from error
    if kind is not None and kind not in (int, float):
        raise RecipeError(f"{where} is no number: give its values as a list, and not {entry!r}.")
    log, whole = entry.get("log", False), kind is int
    if not isinstance(log, bool) or not -math.inf < low < high < math.inf or (log and low <= 0):
        raise RecipeError(f"{where}: {entry!r}: low must be below high, and above 0 with log: true.")
    if whole and not (low.is_integer() and high.is_integer()):
        raise RecipeError(f"{where}: {entry!r}: whole numbers.")
    return Parameter(name, None, int(low) if whole else low, int(high) if whole else high, log, whole)


def _types(space: Space, own_type: str) -> tuple[Any, ...]:
    """The distillation types that trials may have."""
    searched = [parameter.choices for parameter in space if parameter.name == "distillation_type"]
    return searched[0] if searched else (own_type,)


def asks_teacher(space: Space, own_type: str) -> bool:
    """Whether any trial may listen to a teacher; `own_type` is the recipe's distillation_type."""
    return any(kind != "none" for kind in _types(space, own_type))


def types_where_it_counts(parameter: Parameter, space: Space, own_type: str) -> list[str]:
    """The distillation types, of those that trials may have, with which a parameter changes anything."""
    return [kind for kind in _types(space, own_type) if kind in _NEEDS.get(parameter.name, (kind,))]


def check_space(space: Space, own_type: str, has_teacher: bool) -> None:
    """Checks a space against the teacher there is, or is not.

    Args:
        space: To be searched.
        own_type: The distillation_type of trials where the space has none.
        has_teacher: Whether there is one.

    Raises:
        RecipeError: Trials would listen to a teacher and there is none, or a field is searched that no trial would use.
    """
    types = _types(space, own_type)
    if asks_teacher(space, own_type) and not has_teacher:
        told = " or ".join(map(str, types))
        raise RecipeError(f"distillation_type is {told} here: give --teacher, or only none.")
    for parameter in space:
        if not types_where_it_counts(parameter, space, own_type):
            raise RecipeError(
                f"{parameter.name} is searched and counts only where distillation_type is {' or '.join(_NEEDS[parameter.name])}, "
                f"and here it is {' or '.join(map(str, types))}: {'set that' if has_teacher else 'give --teacher'}, or leave "
                f"{parameter.name} out."
            )


def suggest_fields(trial: Any, space: Space, own_type: str) -> dict[str, Any]:
    """Asks an optuna trial for the fields that count; tau and alpha only where there is something to weigh."""
    fields: dict[str, Any] = {}
    for parameter in space:
        kind = fields.get("distillation_type", own_type)
        if kind in _NEEDS.get(parameter.name, (kind,)):
            fields[parameter.name] = parameter.suggest(trial)
    return fields


def own_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own values as optuna holds them, of the fields where the space has them."""
    stored = {parameter.name: parameter.stored(values.get(parameter.name)) for parameter in space}
    return {name: value for name, value in stored.items() if value is not None}
