"""Searches fields of a recipe: trials in processes of their own, chosen and cut short by optuna, kept in a file.

optuna's TPE chooses, its median pruner ends a trial that is behind, its journal file keeps all of them; so a killed sweep goes
on, and the trials that were under way begin again. Spaces are search_space.py's business, the report sweep.py's, processes
workers.py's, teacher caches cache_teacher.py's.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from ..errors import NonFiniteLossError, RecipeError, UserError
from ..files import check_folder, staged_files, write_json
from ..recipes.arguments import Recipe
from ..recipes.cache_teacher import build_shared_cache, cache_folder
from ..recipes.data import RunData
from ..recipes.recipe import given_names, load_recipe
from .search_space import (
    Sweep,
    asks_teacher,
    check_space,
    default_space,
    own_values,
    read_space,
    suggest_fields,
    types_where_it_counts,
)
from .workers import Task, alone_in, run_tasks, time_left

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


SWEEP_FILE, STUDY_FILE = "sweep.json", "study.journal"
_STUDY = "sweep"
# What a trial does besides training.
_QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RecipeError("hf-deit sweep needs optuna: pip install 'hf-deit[sweep]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def plan_sweep(
    fields: Mapping[str, Any],
    overrides: Sequence[str],
    out: str | Path,
    space: str | Path | None = None,
    trials: int = 20,
    jobs: int = 1,
    seed: int = 0,
) -> Sweep:
    """Reads and checks everything before the first trial.

    Args:
        fields: Of the recipe.
        overrides: Fields of the command line, data and teacher too.
        out: Folder; new, or of this sweep.
        space: A YAML (`read_space`); None: `default_space`.
        trials: Number.
        jobs: At a time.
        seed: Of the search.

    Raises:
        UserError: Something given is not allowed.
    """
    from ..recipes.build import build_teacher
    from ..recipes.data import load_run_data

    _require_optuna()
    if trials < 1 or jobs < 1:
        raise RecipeError(f"--trials {trials}, --jobs {jobs}: both at least 1.")
    check_folder(out, RecipeError)
    recipe, given = load_recipe(fields, list(overrides)), given_names(overrides)
    _check_length(recipe)
    has_teacher = recipe.teacher.teacher is not None
    if recipe.teacher.teacher_cache is not None:
        raise RecipeError("teacher_cache holds the answers to one set of views: give --teacher, caches are made here.")
    own_type = recipe.training.distillation_type
    if not has_teacher and "distillation_type" not in given:
        own_type = "none"
    if space is None:
        chosen = default_space(recipe, has_teacher, given)
        chosen = [parameter for parameter in chosen if types_where_it_counts(parameter, chosen, own_type)]
    else:
        chosen = read_space(space, fields, given)
    check_space(chosen, own_type, has_teacher)
    data = load_run_data(recipe)
    data.check_one_class_an_image(RecipeError)
    teacher = build_teacher(recipe.teacher).fingerprint() if asks_teacher(chosen, own_type) else None
    sizes = (Path(out), trials, jobs, seed, teacher, len(data.validation), data.name)
    sweep = Sweep(dict(fields), tuple(overrides), tuple(chosen), own_type, *sizes)
    _check_choices(sweep, data)
    return sweep


def _check_length(recipe: Recipe) -> None:
    """Refuses what cannot be compared epoch by epoch."""
    if recipe.data.streaming:
        raise RecipeError("A sweep compares trials epoch by epoch, and a stream has none: leave streaming out.")
    if recipe.training.max_steps > 0:
        raise RecipeError(
            f"max_steps={recipe.training.max_steps}: a sweep compares trials epoch by epoch. Give --epochs in its place."
        )
    epochs = recipe.training.num_train_epochs
    if not epochs >= 1 or not float(epochs).is_integer():
        raise RecipeError(f"A trial of {epochs:g} epochs: give a whole number, at least 1 (--epochs).")


def _check_choices(sweep: Sweep, data: RunData) -> None:
    """Has the trainer of each value of the space built once, beside the recipe's others where it counts; not of each pair."""
    from ..recipes.train import check_recipe

    quiet = {**_QUIET, "output_dir": str(sweep.out)}
    check_recipe(sweep.recipe(**quiet), data)
    for parameter in sweep.space:
        kind = types_where_it_counts(parameter, sweep.space, sweep.own_type)[0]
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                check_recipe(sweep.recipe(**{"distillation_type": kind, **quiet, parameter.name: value}), data)
            except UserError as error:
                raise RecipeError(f"{parameter.name}={value!r}, which the sweep may try: {error}") from error


def run_sweep(sweep: Sweep, say: Callable[[str], None]) -> dict[str, Any]:
    """Does the trials that are still to be done, and writes report.md, report.json and best.yaml.

    Returns:
        What report.json holds.

    Raises:
        UserError: Trials failed, or another process works in the folder; the report is written all the same.
        RecipeError: The folder holds another sweep.
    """
    with alone_in(sweep.out):
        _check_same(sweep)
        try:
            study = _study(sweep, sweep.seed)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:  # optuna checks nothing of its own
            raise RecipeError(f"{sweep.out / STUDY_FILE} cannot be read ({error}): choose another --out.") from error
        done = _prepare_study(study, sweep)
        todo = max(0, sweep.trials - done)
        say(f"{todo} trials to do, {done} done; what they print: {sweep.out / 'work' / 'logs'}")
        seconds: list[float] = []

        def ended(task: Task, result: Any) -> None:
            if isinstance(result, Exception):
                say(f"{task.name} failed, the others go on: {result} (log: {task.log})")
                return
            seconds.append(result["seconds"])
            left = time_left(seconds, todo - len(seconds), sweep.jobs)
            say(f"{len(seconds)}/{todo}  trial {result['number']}: {result['told']} in {result['seconds']:.0f} s{left}")

        # Numbers that no earlier trial had: the same ones would draw the same fields again.
        first = len(study.get_trials(deepcopy=False))
        logs = sweep.out / "work" / "logs"
        tasks = [
            Task(f"task {number}", do_trial, (sweep, number), logs / f"task-{number}.log")
            for number in range(first, first + todo)
        ]
        try:
            if tasks:
                run_tasks(tasks, sweep.jobs, ended)
        finally:
            report = write_report(sweep, study)
    return report


def _check_same(sweep: Sweep) -> None:
    file, present = sweep.out / SWEEP_FILE, sweep.describe()
    if file.exists():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(stored, dict):
                raise ValueError(f"a {type(stored).__name__}")
        except (OSError, ValueError) as error:
            raise RecipeError(f"{file} cannot be read ({error}): choose another --out.") from error
        changed = [name for name in present if stored.get(name) != present[name]]
        if changed:
            rows = "\n".join(f"  {name}: {stored.get(name)!r} there, {present[name]!r} now" for name in changed)
            raise RecipeError(
                f"{sweep.out} holds another sweep:\n{rows}\nSet them back to go on, or choose another --out."
            )
        return
    if (sweep.out / STUDY_FILE).exists():
        raise RecipeError(
            f"{sweep.out} holds the trials of a sweep ({STUDY_FILE}), and {SWEEP_FILE}, which says of what, is missing: choose another --out."
        )
    write_json(file, present)


class _JournalLock:
    """A lock as optuna wants it, the system's own: a kill releases it, where optuna's would be waited for half a minute."""

    def __init__(self, path: Path):
        self.lock = FileLock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


def _study(sweep: Sweep, seed: int) -> Any:
    optuna = _require_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = str(sweep.out / STUDY_FILE)
    backend = JournalFileBackend(journal, lock_obj=_JournalLock(sweep.out / ".journal.lock"))
    epochs = int(sweep.recipe().training.num_train_epochs)
    return optuna.create_study(
        study_name=_STUDY,
        storage=JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=sweep.jobs > 1),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=max(1, min(5, sweep.trials // 4)), n_warmup_steps=max(1, epochs // 5)
        ),
        direction="maximize",
        load_if_exists=True,
    )


def _prepare_study(study: Any, sweep: Sweep) -> int:
    """Has trials that a kill broke off begin again, and the recipe's own values first of all; gives the number done."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    if not trials:
        study.enqueue_trial(own_values(sweep.space, sweep.recipe().to_dict()))
    for trial in trials:
        if trial.state == TrialState.RUNNING:  # nobody else is in the folder
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def do_trial(sweep: Sweep, number: int) -> dict[str, Any]:
    """Does one trial, in a process of its own.

    Args:
        sweep: Of `plan_sweep`.
        number: Makes its draws others than those of other calls.

    Returns:
        `number` of the trial, what is `told` of it, `seconds`.

    Raises:
        RecipeError: Its fields do not work together.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    from ..recipes.train import train

    study = _study(sweep, sweep.seed + 1000 * (number + 1))
    trial = study.ask()
    start = time.monotonic()
    out = sweep.out / "work" / "runs" / f"trial-{trial.number}"
    fields: dict[str, Any] = {}
    try:
        fields = suggest_fields(trial, sweep.space, sweep.own_type)
        trial.set_user_attr("fields", fields)
        reporter = _reporter(trial)
        trained = _trial_recipe(sweep, fields, out)
        metrics = train(trained, lambda trainer: trainer.add_callback(reporter), concurrent_trainings=sweep.jobs)
        study.tell(trial, metrics["eval_accuracy"])
        told = f"{100 * metrics['eval_accuracy']:.1f} %"
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        told = f"cut short after epoch {reporter.epoch}, {100 * reporter.accuracy:.1f} %"
    except NonFiniteLossError:
        trial.set_user_attr("diverged", True)
        study.tell(trial, state=TrialState.PRUNED)
        told = "diverged"
    except Exception as error:  # told, or the next sweep would take it for one that a kill broke off
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        if not isinstance(error, UserError):
            raise
        raise RecipeError(f"trial {trial.number} with {fields}: {error}") from error
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {"number": trial.number, "told": told, "seconds": time.monotonic() - start}


def _trial_recipe(sweep: Sweep, fields: Mapping[str, Any], out: Path) -> Recipe:
    """The recipe of a trial; one that listens to the teacher does so by the cache of its views, which is built if need be."""
    quiet = {**_QUIET, "output_dir": str(out)}
    recipe = sweep.recipe(**fields, **quiet)
    if recipe.training.distillation_type == "none":
        return recipe.replace(teacher=None)  # it would not be used
    folder = cache_folder(sweep.out / "work" / "caches", recipe, sweep.teacher)
    with alone_in(folder.with_name(f"{folder.name}.building"), wait=True):
        build_shared_cache(sweep.recipe(**{**fields, **quiet, "distillation_type": "soft"}), folder)
    return recipe.replace(teacher=None, teacher_cache=str(folder))


def _reporter(trial: Any) -> Any:
    """Tells optuna the accuracy after every epoch, and ends a training that the pruner calls poor."""
    from optuna import TrialPruned
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        epoch, accuracy = 0, 0.0

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            if round(state.epoch) <= self.epoch:  # the evaluation after the training
                return
            averaged = args.ema_epochs and args.counted_weights == "ema"
            self.epoch = round(state.epoch)
            self.accuracy = metrics["eval_ema_accuracy" if averaged else "eval_accuracy"]
            trial.report(self.accuracy, self.epoch)
            trial.set_user_attr("epochs", self.epoch)
            if state.global_step < state.max_steps and trial.should_prune():
                raise TrialPruned

    return Reporter()
