"""The report of a search: every trial that ended, the best one, how much to believe of it, and a recipe to train by.

Spaces are sweep.py's business, doing trials sweep_runs.py's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from .checkpointing import staged_files, write_json
from .recipe import given_names
from .sweep import Sweep

_OUTCOMES = ("finished", "pruned", "diverged", "failed")


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


def records_of(study: Any) -> list[TrialRecord]:
    """The trials that have ended; those that a kill broke off are not among them, for they began again."""
    from optuna.trial import TrialState

    records = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        outcome = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}.get(trial.state)
        outcome = "diverged" if "diverged" in attributes else "failed" if "error" in attributes else outcome
        if outcome is not None:
            values = trial.intermediate_values
            accuracy = trial.value if outcome == "finished" else values[max(values)] if values else None
            fields = attributes.get("fields", {})
            records.append(TrialRecord(trial.number, outcome, accuracy, attributes.get("epochs", 0), fields))
    return records


def _importance(study: Any, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """optuna's PED-ANOVA; empty where there are too few finished trials, or all are equally good."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    finished = [trial.accuracy for trial in trials if trial.outcome == "finished"]
    if len(finished) < 4 or len(set(finished)) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def write_report(sweep: Sweep, study: Any) -> dict[str, Any]:
    """Writes report.md, report.json and, if a trial was trained to its end, best.yaml; gives what report.json holds."""
    trials = records_of(study)
    names, best = [parameter.name for parameter in sweep.space], best_of(trials)
    importance = _importance(study, trials)
    report: dict[str, Any] = {"trials": [vars(trial) for trial in trials], "importance": importance}
    report |= {"validation_images": sweep.images, "space": sweep.describe()["space"], "best": None}
    title = f"Sweep of {len(names)} fields: {', '.join(names)}"
    with staged_files(sweep.out) as folder:
        if best is not None:
            error = standard_error(best.accuracy, sweep.images)
            report["best"] = {**vars(best), "standard_error": error}
            text = f"# Trial {best.number} of a sweep, the best of {len(trials)} by {sweep.images} validation images: {100 * best.accuracy:.1f} %,\n"
            text += "# which is too high by selection (report.md). hf-deit train --config best.yaml --data DATA"
            text += f" --output_dir OUT{' --teacher TEACHER' * (_type(sweep, best) != 'none')}\n"
            (folder / "best.yaml").write_text(text + yaml.safe_dump(_best_fields(sweep, best)), encoding="utf-8")
        (folder / "report.md").write_text(
            render_report(title, trials, names, importance, sweep.images), encoding="utf-8"
        )
        write_json(folder / "report.json", report)
    return report


def _type(sweep: Sweep, trial: TrialRecord) -> str:
    return trial.fields.get("distillation_type", sweep.own_type)


def _best_fields(sweep: Sweep, best: TrialRecord) -> dict[str, Any]:
    """The recipe's own fields, those of the command line and those found; nothing that says where files lie."""
    names = {*sweep.fields, *given_names(sweep.overrides), *best.fields, "distillation_type"} - {
        "data",
        "teacher",
        "output_dir",
    }
    values = {**sweep.fields, **sweep.recipe(**best.fields).to_dict()}
    return {name: values[name] for name in sorted(names)}
