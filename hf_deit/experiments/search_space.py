"""Space of a search over the fields of a recipe, and the description of a sweep.

A space maps the name of a field to a list of choices, or to `{low, high}`, with `log: true` for a logarithmic scale.
A field that has no effect in a trial, because of the value of another field, gets no value in this trial; recipes/unused_fields.py
states these conditions. experiments/sweep.py runs the search.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import parsed_yaml
from ..recipes.arguments import Recipe, field_entries, typed_value
from ..recipes.reading import load_recipe, parsed_words, recipe_parser
from ..recipes.unused_fields import condition_values, unmet_condition
from ..trainer.fields import PUSH_FIELDS, PYTHON_FIELDS, SCRIPT_FIELDS, Condition

# A trial is only trained and evaluated, without checkpoints, trackers, progress bars or pushes.
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}
# Fields that name images or a teacher. A sweep is described by digests of their content instead.
PATHS = ("data", "teacher", "unlabelled")
_REFUSED = {
    "seed": "a seed is not a setting to optimise",
    **dict.fromkeys(
        ("num_train_epochs", "max_steps"),
        "trials are compared epoch by epoch, and --epochs sets the number of epochs of all trials",
    ),
    **dict.fromkeys(
        (*PATHS, "teacher_weights", "teacher_cache", "output_dir", "class_names", "broken_images", "validation_share")
        + ("data_config", "data_revision", "split_column", "train_split", "validation_split", "unlabelled_split")
        + ("image_column", "label_column", "label_separator"),
        "it must be the same for all trials",
    ),
    **dict.fromkeys((*QUIET, "resume", "extend", "streaming"), "the sweep sets it"),
    **dict.fromkeys(("eval_steps", "save_steps", "save_only_model", "save_total_limit"), "the sweep sets its strategy"),
    **dict.fromkeys((*PUSH_FIELDS, "run_name"), "a trial is neither published nor tracked"),
    **{name: reason.partition(".")[0] for name, reason in PYTHON_FIELDS.items()},
    **dict.fromkeys(SCRIPT_FIELDS, "only a Python script of your own can read it"),
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

    @property
    def checked(self) -> tuple[Any, ...]:
        """The values that are checked before the first trial: all choices, or both ends of the range."""
        return self.choices if self.choices is not None else (self.low, self.high)

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

    @cached_property
    def own(self) -> Mapping[str, Any]:
        """The values of the fields in a trial, apart from those that are searched; see `own_fields`."""
        return own_fields(self.fields, self.overrides, self.own_type)

    def describe(self) -> dict[str, Any]:
        """Return the description of the sweep, which must be equal when the sweep is resumed."""
        common = {name: getattr(self, name) for name in ("fields", "own_type", "teacher", "images", "data")}
        common["space"] = {parameter.name: parameter.describe() for parameter in self.space}
        words = list(self.overrides)
        for name in (f"--{path}" for path in PATHS):  # these are compared by their digests
            if name in words:
                del words[words.index(name) : words.index(name) + 2]
        common["overrides"] = [word for word in words if not word.startswith("--unlabelled=")]
        return json.loads(json.dumps(common, default=str))


def own_fields(fields: Mapping[str, Any], overrides: Sequence[str], own_type: str) -> Mapping[str, Any]:
    """Return the values of the fields in a trial, apart from those that are searched.

    Args:
        fields: Fields of the recipe.
        overrides: Fields of the command line.
        own_type: The distillation_type of all trials if distillation_type is not searched.
    """
    values = condition_values({**fields, **parsed_words(overrides), **QUIET, "distillation_type": own_type})
    # A trial has a teacher only if it distils or is guided.
    return {**values, "teacher": None, "teacher_cache": None}


class TrialFields:
    """Fields of a trial, as attributes. A field that is searched gets its value when it, or a condition on it, is decided.

    Args:
        space: The fields that are searched.
        own: The values of all other fields, see `own_fields`.
        choose: Function that returns the value of a parameter.

    Attributes:
        values: The values of the searched fields that have an effect in this trial.
        unmet: The conditions of those that have none.
        read: Names of the fields that conditions have read.
    """

    def __init__(self, space: Space, own: Mapping[str, Any], choose: Callable[[Parameter], Any]):
        self.values: dict[str, Any] = {}
        self.unmet: dict[str, Condition] = {}
        self.read: dict[str, None] = {}
        self._open = {parameter.name: parameter for parameter in space}
        self._own = own
        self._choose = choose

    def __getattr__(self, name: str) -> Any:
        if name not in field_entries():
            raise AttributeError(name)
        self.decide(name)
        self.read[name] = None
        if name in self.values:
            return typed_value(name, self.values[name], field_entries()[name][1])
        return self._own[name]

    def decide(self, name: str) -> None:
        """Choose the value of a field, unless it is not searched, is decided already, or has no effect."""
        parameter = self._open.pop(name, None)
        if parameter is None:
            return
        for value in parameter.checked:  # a condition may depend on the field itself
            self.values[name] = value
            condition = unmet_condition(name, self)
            if condition is not None:
                del self.values[name]
                self.unmet[name] = condition
                return
        self.values[name] = self._choose(parameter)


def suggest_fields(trial: Any, space: Space, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that an optuna trial suggests, except those that have no effect in it.

    Args:
        trial: The trial.
        space: The fields that are searched.
        own: The values of all other fields, see `own_fields`.
    """
    fields = TrialFields(space, own, lambda parameter: parameter.suggest(trial))
    for parameter in space:
        fields.decide(parameter.name)
    return {parameter.name: fields.values[parameter.name] for parameter in space if parameter.name in fields.values}


def combinations(names: Sequence[str], space: Space, own: Mapping[str, Any]) -> Iterator[TrialFields]:
    """Yield the fields of trials with all checked values of some fields and of the fields on which these depend.

    Args:
        names: Names of the fields.
        space: The fields that are searched.
        own: The values of all other fields, see `own_fields`.
    """
    pending: list[tuple[Any, ...]] = [()]
    while pending:
        choices = _Choices(pending.pop(0), pending)
        fields = TrialFields(space, own, choices.choose)
        for name in names:
            fields.decide(name)
        yield fields


class _Choices:
    """Chooser of planned values, and then of the first value of each parameter; it adds the other values to a list.

    Args:
        planned: The first values to choose.
        pending: List of plans, which grows.
    """

    def __init__(self, planned: Sequence[Any], pending: list[tuple[Any, ...]]):
        self.planned = planned
        self.pending = pending
        self.made: list[Any] = []

    def choose(self, parameter: Parameter) -> Any:
        """Return the value of the next parameter."""
        if len(self.made) < len(self.planned):
            value = self.planned[len(self.made)]
        else:
            value, *others = parameter.checked
            self.pending.extend((*self.made, other) for other in others)
        self.made.append(value)
        return value


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
    # Without a teacher, nothing is learned from unlabelled images.
    labels_alone = recipe.data.unlabelled is None or recipe.training.guidance != "none"
    types = ("none", "soft", "hard") if labels_alone else ("soft", "hard")
    space = [Parameter("distillation_type", types)] if has_teacher else []
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
        for value in parameter.checked:
            load_recipe({"distillation_type": "none", **fields, name: value}, [])
        space.append(parameter)
    # distillation_type is drawn first, as earlier versions did, so that an extended sweep draws the same values.
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


# A trial that has a value other than "none" for one of these fields learns from the teacher.
TEACHING = ("distillation_type", "guidance")


def asks_teacher(space: Space, own: Mapping[str, Any]) -> bool:
    """Return whether any trial may use a teacher.

    Args:
        space: The fields that are searched.
        own: The values of all other fields, see `own_fields`.
    """
    return any(value != "none" for name in TEACHING for value in _values(name, space, own))


def _values(name: str, space: Space, own: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values of a field in the trials."""
    return next((parameter.checked for parameter in space if parameter.name == name), (own[name],))


def _shown(names: Sequence[str], space: Space, own: Mapping[str, Any]) -> str:
    return " and ".join(f"{name} is {' or '.join(map(repr, _values(name, space, own)))}" for name in names)


def has_effect(parameter: Parameter, space: Space, own: Mapping[str, Any]) -> bool:
    """Return whether a parameter has an effect in any trial."""
    return any(parameter.name in fields.values for fields in combinations([parameter.name], space, own))


def check_space(space: Space, own: Mapping[str, Any], has_teacher: bool) -> None:
    """Check that a teacher is given if trials learn from one, and that each field of a space has an effect.

    Args:
        space: The fields that are searched.
        own: The values of all other fields, see `own_fields`.
        has_teacher: Whether there is a teacher.

    Raises:
        RecipeError: A trial would learn from a teacher that is missing, or nothing from unlabelled images; or a field has
            no effect in any trial.
    """
    learning = [name for name in TEACHING if any(value != "none" for value in _values(name, space, own))]
    if learning and not has_teacher:
        raise RecipeError(
            f"{_shown(learning, space, own)}, and no teacher is given. Give --teacher, or allow only "
            f"{' and '.join(f'{name} none' for name in learning)}."
        )
    idle = any(
        all(getattr(fields, name) == "none" for name in TEACHING) for fields in combinations(TEACHING, space, own)
    )
    if own["unlabelled"] is not None and idle:
        remedy = (
            "Let no trial have the value none for both"
            if has_teacher
            else "Give --teacher, and a value for one of both"
        )
        raise RecipeError(
            f"unlabelled={own['unlabelled']!r}, but {_shown(TEACHING, space, own)}: a trial with neither learns nothing from "
            f"unlabelled images. {remedy}, or leave out unlabelled."
        )
    for parameter in space:
        if has_effect(parameter, space, own):
            continue
        found = list(combinations([parameter.name], space, own))
        condition = found[0].unmet[parameter.name]
        read = dict.fromkeys(name for fields in found for name in fields.read if name != parameter.name)
        raise RecipeError(
            f"The search space contains {parameter.name}, which has an effect only with {condition.text}. In all trials, "
            f"{_shown(list(read), space, own)}. Leave {parameter.name} out of the search space, or change these fields."
        )


def own_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the recipe that are in the space, as optuna stores them."""
    stored = {parameter.name: parameter.stored(values.get(parameter.name)) for parameter in space}
    return {name: value for name, value in stored.items() if value is not None}
