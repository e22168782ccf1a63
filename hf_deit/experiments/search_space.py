"""Space of a search over the fields of a recipe, and the description of a sweep.

A space maps the name of a field to a list of choices, or to `{low, high}`, with `log: true` for a logarithmic scale.
experiments/sweep.py runs the search.
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
from ..recipes.reading import load_recipe, recipe_parser

# Fields that are searched only with these distillation types.
_NEEDS = {
    "distillation_tau": ("soft",),
    "distillation_reduction": ("soft",),
    "distillation_alpha": ("soft", "hard"),
    "distillation_target": ("soft", "hard"),
}
_REFUSED = {
    "seed": "a seed is not a setting to optimise",
    **dict.fromkeys(
        ("num_train_epochs", "max_steps"),
        "trials are compared epoch by epoch, and --epochs sets the number of epochs of all trials",
    ),
    **dict.fromkeys(
        ("data", "teacher", "teacher_cache", "output_dir", "validation_share"), "it must be the same for all trials"
    ),
    **dict.fromkeys(
        ("eval_strategy", "save_strategy", "resume", "streaming", "report_to", "disable_tqdm", "push_to_hub")
        + ("load_best_model_at_end",),
        "the sweep sets it",
    ),
}


@dataclass(frozen=True)
class Parameter:
    """A field that is searched, and its possible values.

    Args:
        name: Name of the field.
        choices: The possible values; None if they are a range.
        low: Lower end of the range.
        high: Upper end of the range.
        log: Whether the range is logarithmic.
        whole: Whether the range contains only integers.
    """

    name: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> Any:
        """Return the value that an optuna trial suggests. Choices are passed as JSON: optuna accepts no lists."""
        if self.choices is not None:
            return json.loads(trial.suggest_categorical(self.name, [json.dumps(value) for value in self.choices]))
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.log)

    def stored(self, value: Any) -> Any:
        """Return a value as optuna stores it; None if it is not in the space."""
        if self.choices is not None:
            # The spelling of the space counts: 0 and 0.0 are equal, but their JSON texts differ.
            return json.dumps(self.choices[self.choices.index(value)]) if value in self.choices else None
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None

    def describe(self) -> dict[str, Any]:
        """Return plain values, for comparison and for the report."""
        if self.choices is not None:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Sequence[Parameter]


@dataclass(frozen=True)
class Sweep:
    """A search that has passed its checks.

    Args:
        fields: Fields of the recipe.
        overrides: Fields of the command line, including data, teacher and number of epochs.
        space: The fields that are searched.
        own_type: The distillation_type of the recipe, which is used if distillation_type is not searched.
        out: Folder of all files.
        trials: Number of trials to finish or prune.
        jobs: Number of processes.
        seed: Seed of the search.
        teacher: Fingerprint of the teacher; None if no trial distils.
        images: Number of validation images.
        data: Digest of the training and the validation images.
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
        """Return the recipe of the sweep with `fields` changed."""
        return load_recipe({**self.fields, "distillation_type": self.own_type, **fields}, list(self.overrides))

    def describe(self) -> dict[str, Any]:
        """Return the description of the sweep, which must be equal when the sweep is resumed."""
        common = {name: getattr(self, name) for name in ("fields", "own_type", "teacher", "images", "data")}
        common["space"] = {parameter.name: parameter.describe() for parameter in self.space}
        words = list(self.overrides)
        for name in ("--data", "--teacher"):  # data and teacher are compared by their digests instead of their paths
            if name in words:
                del words[words.index(name) : words.index(name) + 2]
        common["overrides"] = words
        return json.loads(json.dumps(common, default=str))


def default_space(recipe: Recipe, has_teacher: bool, fixed: Sequence[str]) -> Space:
    """Return the space that is searched by default: the learning rate, the augmentation, and how the teacher is used.

    Args:
        recipe: The recipe. Its learning rate is the middle of the range.
        has_teacher: Whether there is a teacher.
        fixed: Fields of the command line, which are not searched.
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
    """Read a space, and check that a recipe accepts each choice and both ends of each range.

    Args:
        path: Path of the YAML file.
        fields: Fields of the recipe.
        fixed: Fields of the command line, which cannot be searched.

    Raises:
        RecipeError: The file is not a valid space, names a field that cannot be searched, or contains an invalid value.
    """
    path = Path(path)
    content = parsed_yaml(path, RecipeError)
    if not isinstance(content, dict) or not content:
        raise RecipeError(
            f"--space {path} contains {content!r}. It must map fields to [choices] or {{low, high, log}}."
        )
    kinds = {action.dest: action.type for action in recipe_parser()._actions}
    space = []
    for name, entry in content.items():
        if name in _REFUSED:
            raise RecipeError(f"--space {path}: {name} cannot be searched: {_REFUSED[name]}.")
        if name in fixed:
            raise RecipeError(f"--space {path} searches {name}, and --{name} is given too. Leave one of them out.")
        parameter = _parameter(f"--space {path}: {name}", str(name), entry, kinds.get(name))
        for value in parameter.choices or (parameter.low, parameter.high):
            load_recipe({"distillation_type": "none", **fields, name: value}, [])
        space.append(parameter)
    # distillation_type comes first, because other fields depend on it.
    return sorted(space, key=lambda parameter: parameter.name != "distillation_type")


def _parameter(where: str, name: str, entry: Any, kind: Any) -> Parameter:
    if isinstance(entry, list) and entry:
        try:
            texts = {json.dumps(value) for value in entry}
        except (TypeError, ValueError) as error:  # YAML can express dates, and lists that contain themselves
            raise RecipeError(
                f"{where}={entry!r} is invalid. Choices must be texts, numbers, true, false, or lists of these."
            ) from error
        twice = len(texts) < len(entry) or any(value in entry[:place] for place, value in enumerate(entry))
        if twice or any(isinstance(value, dict) for value in entry):
            raise RecipeError(f"{where}={entry!r} is invalid. Give each choice once; a choice cannot be a mapping.")
        return Parameter(name, tuple(entry))
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise RecipeError(
            f"{where}={entry!r} is invalid. Give a list of choices, or {{low: …, high: …}}, with log: true for a "
            "logarithmic scale."
        )
    try:
        low, high = (float(entry[end]) for end in ("low", "high"))  # 1e-4 is a text in YAML
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: low={entry['low']!r} and high={entry['high']!r} must both be numbers.") from error
    if kind is not None and kind not in (int, float):
        raise RecipeError(f"{where}={entry!r} is a range, but the field is not a number. Give a list of choices.")
    log, whole = entry.get("log", False), kind is int
    if not isinstance(log, bool) or not -math.inf < low < high < math.inf or (log and low <= 0):
        raise RecipeError(
            f"{where}={entry!r} is invalid. low and high must be finite and low below high; log is true or false, and "
            "with log: true, low must be above 0."
        )
    if whole and not (low.is_integer() and high.is_integer()):
        raise RecipeError(f"{where}={entry!r} is invalid. low and high must be integers, because the field is one.")
    return Parameter(name, None, int(low) if whole else low, int(high) if whole else high, log, whole)


def _types(space: Space, own_type: str) -> tuple[Any, ...]:
    """Return the distillation types that trials may have."""
    searched = [parameter.choices for parameter in space if parameter.name == "distillation_type"]
    return searched[0] if searched else (own_type,)


def asks_teacher(space: Space, own_type: str, own_guidance: str = "none") -> bool:
    """Return whether any trial may use a teacher.

    Args:
        space: The space.
        own_type: The distillation_type of the recipe.
        own_guidance: The guidance of the recipe.
    """
    searched = [parameter.choices for parameter in space if parameter.name == "guidance"]
    guidance = searched[0] if searched else (own_guidance,)
    return any(kind != "none" for kind in (*_types(space, own_type), *guidance))


def types_where_it_counts(parameter: Parameter, space: Space, own_type: str) -> list[str]:
    """Return those distillation types of the trials with which a parameter has an effect."""
    return [kind for kind in _types(space, own_type) if kind in _NEEDS.get(parameter.name, (kind,))]


def check_space(space: Space, own_type: str, has_teacher: bool) -> None:
    """Check that a teacher is given if trials distil, and that each field of a space has an effect.

    Args:
        space: The space.
        own_type: The distillation_type of all trials if distillation_type is not searched.
        has_teacher: Whether there is a teacher.

    Raises:
        RecipeError: A trial would distil without a teacher, or a field has no effect in any trial.
    """
    types = _types(space, own_type)
    if asks_teacher(space, own_type) and not has_teacher:
        raise RecipeError(
            f"distillation_type is {' or '.join(map(str, types))}, and no teacher is given. Give --teacher, or allow "
            "only distillation_type none."
        )
    for parameter in space:
        if not types_where_it_counts(parameter, space, own_type):
            raise RecipeError(
                f"The search space contains {parameter.name}, which has an effect only if distillation_type is "
                f"{' or '.join(_NEEDS[parameter.name])}. Here, distillation_type is {' or '.join(map(str, types))}. "
                f"{'Change distillation_type' if has_teacher else 'Give --teacher and that distillation_type'}, or leave "
                f"{parameter.name} out of the search space."
            )


def suggest_fields(trial: Any, space: Space, own_type: str) -> dict[str, Any]:
    """Return the fields that an optuna trial suggests, except those that its distillation type does not use."""
    fields: dict[str, Any] = {}
    for parameter in space:
        kind = fields.get("distillation_type", own_type)
        if kind in _NEEDS.get(parameter.name, (kind,)):
            fields[parameter.name] = parameter.suggest(trial)
    return fields


def own_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the recipe that are in the space, as optuna stores them."""
    stored = {parameter.name: parameter.stored(values.get(parameter.name)) for parameter in space}
    return {name: value for name, value in stored.items() if value is not None}
