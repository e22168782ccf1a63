"""A search space over the fields of a recipe, and the report of what a search found.

A space maps the name of a field to a list of choices, or to `{low, high}`, with `log: true` on a logarithmic scale. The search
itself is optuna's; trials, storage and processes are sweep_runs.py's business.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .recipe import Recipe, load_recipe, recipe_parser

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
    **dict.fromkeys(("eval_strategy", "save_strategy", "resume", "streaming"), "the sweep sets it itself"),
}


class SweepError(UserError):
    """A search space that is impossible, or a search that cannot be done or gone on with."""


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
            return json.dumps(value) if value in self.choices else None
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None

    def describe(self) -> dict[str, Any]:
        """Plain values, to be compared and shown."""
        if self.choices is not None:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Sequence[Parameter]


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
        SweepError: It is no such YAML, or names a field that cannot be searched or is fixed.
        RecipeError: A field or a value is not allowed.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"--space {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content:
        raise SweepError(f"--space {path} must map fields to [choices] or {{low, high, log}}, and holds {content!r}.")
    kinds = {action.dest: action.type for action in recipe_parser()._actions}
    space = []
    for name, entry in content.items():
        if name in _REFUSED:
            raise SweepError(f"--space {path}: {name} cannot be searched: {_REFUSED[name]}.")
        if name in fixed:
            raise SweepError(f"--space {path} searches {name}, and --{name} is given too: leave out one of them.")
        parameter = _parameter(f"--space {path}: {name}", str(name), entry, kinds.get(name) is int)
        for value in parameter.choices or (parameter.low, parameter.high):
            load_recipe({"distillation_type": "none", **fields, name: value}, [])
        space.append(parameter)
    return sorted(space, key=lambda parameter: parameter.name != "distillation_type")  # others depend on it


def _parameter(where: str, name: str, entry: Any, whole: bool) -> Parameter:
    if isinstance(entry, list) and entry:
        if any(isinstance(value, dict) for value in entry) or len({json.dumps(value) for value in entry}) < len(entry):
            raise SweepError(f"{where}: {entry!r}: each choice once, and plain.")
        return Parameter(name, tuple(entry))
    if not isinstance(entry, dict) or not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise SweepError(f"{where}: {entry!r}: a list of choices, or {{low: …, high: …}}, perhaps with log: true.")
    try:
        low, high = (float(entry[end]) for end in ("low", "high"))  # 1e-4 is a text in YAML
    except (TypeError, ValueError) as error:
        raise SweepError(f"{where}: low={entry['low']!r}, high={entry['high']!r}: two numbers.") from error
    log = entry.get("log", False)
    if not isinstance(log, bool) or not -math.inf < low < high < math.inf or (log and low <= 0):
        raise SweepError(f"{where}: {entry!r}: low must be below high, and above 0 with log: true.")
    if whole and not (low.is_integer() and high.is_integer()):
        raise SweepError(f"{where}: {entry!r}: whole numbers.")
    return Parameter(name, None, int(low) if whole else low, int(high) if whole else high, log, whole)


def asks_teacher(space: Space, own_type: str) -> bool:
    """Whether any trial may listen to a teacher; `own_type` is the recipe's distillation_type."""
    types = [parameter.choices for parameter in space if parameter.name == "distillation_type"]
    return any(kind != "none" for kind in (types[0] if types else (own_type,)))


def suggest_fields(trial: Any, space: Space, own_type: str) -> dict[str, Any]:
    """Asks an optuna trial for the fields that count; tau and alpha only where there is something to weigh."""
    fields: dict[str, Any] = {}
    for parameter in space:
        if fields.get("distillation_type", own_type) in _NEEDS.get(parameter.name, ("none", "soft", "hard")):
            fields[parameter.name] = parameter.suggest(trial)
    return fields


def own_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own values as optuna holds them, of the fields where the space has them."""
    stored = {parameter.name: parameter.stored(values.get(parameter.name)) for parameter in space}
    return {name: value for name, value in stored.items() if value is not None}


# ---- the report ----


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended.

    Args:
        number: Its number.
        outcome: "finished", "pruned", "diverged" or "failed".
        accuracy: Of the validation images after its last epoch, in [0, 1]; None: there was none.
        epochs: That it trained.
        fields: That were searched.
    """

    number: int
    outcome: str
    accuracy: float | None
    epochs: int
    fields: Mapping[str, Any]


def best_of(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the highest accuracy, the first of equals."""
    finished = [trial for trial in trials if trial.outcome == "finished"]
    return max(finished, key=lambda trial: (trial.accuracy, -trial.number), default=None)


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy measured on so many images, both as shares: √(p (1 − p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')


def render_report(
    title: str, trials: Sequence[TrialRecord], names: Sequence[str], importance: Mapping[str, float], images: int
) -> str:
    """Gives the report in Markdown: what was found, how much to believe of it, every trial, and what mattered.

    Args:
        title: Its first line.
        trials: That have ended.
        names: Of the fields that were searched.
        importance: Of fields, adding up to 1; empty: not known.
        images: Number of validation images.
    """
    counts = {outcome: sum(trial.outcome == outcome for trial in trials) for outcome in _OUTCOMES}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    lines = [f"# {title}", "", f"{len(trials)} trials: {told}."]
    best = best_of(trials)
    if best is None:
        lines.append("None of them was trained to its end: there is no best one.")
    else:
        error = 100 * standard_error(best.accuracy, images)
        lines += [
            f"Best: trial {best.number}, {100 * best.accuracy:.1f} % (± {error:.1f} points, the standard error of {images} "
            "validation images); its fields are in best.yaml.",
            "",
            f"**This figure is too high by selection**: it is the best of {len(trials)} trials, chosen by the same {images} images it "
            "was measured on, with one seed. Trials within about two standard errors of it are not told apart. Train best.yaml "
            "with other seeds, and measure on images that the sweep has not seen, before you believe it.",
        ]
    lines += ["", f"| trial | accuracy, % | epochs | {' | '.join(names)} |", f"|---:|---:|---:|{'---|' * len(names)}"]
    order = {outcome: place for place, outcome in enumerate(_OUTCOMES)}
    for trial in sorted(trials, key=lambda trial: (order[trial.outcome], -(trial.accuracy or 0), trial.number)):
        accuracy = "–" if trial.accuracy is None else f"{100 * trial.accuracy:.1f}"
        accuracy += "" if trial.outcome == "finished" else f" ({trial.outcome})"
        cells = [_shown(trial.fields[name]) if name in trial.fields else "" for name in names]
        lines.append(f"| {trial.number} | {accuracy} | {trial.epochs} | {' | '.join(cells)} |")
    if importance:
        lines += ["", "What mattered (optuna's PED-ANOVA, over the finished trials):", ""]
        lines += [f"- {name}: {100 * share:.0f} %" for name, share in importance.items()]
    return "\n".join(lines) + "\n"


_OUTCOMES = ("finished", "pruned", "diverged", "failed")
