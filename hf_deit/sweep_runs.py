"""Searches fields of a recipe: trials in processes of their own, chosen and cut short by optuna, kept in a file.

optuna's TPE chooses, its median pruner ends a trial that is behind, its journal file keeps all of them; so a killed sweep goes
on, and the trials that were under way begin again. Spaces are sweep.py's business, the report sweep_report.py's, processes
worker_processes.py's, teacher caches shared_caches.py's.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from .checkpointing import write_json
from .errors import UserError
from .places import check_folder
from .recipe import Recipe, given_names, load_recipe
from .run_data import RunData
from .shared_caches import build_shared_cache, cache_folder
from .sweep import (
    Sweep,
    SweepError,
    asks_teacher,
    check_space,
    default_space,
    own_values,
    read_space,
    suggest_fields,
    types_where_it_counts,
)
from .sweep_report import write_report
from .worker_processes import Task, alone_in, run_tasks, time_left

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
        raise SweepError("hf-deit sweep needs optuna: pip install 'hf-deit[sweep]'.") from error
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
    from .building import build_teacher
    from .run_data import load_run_data

    _require_optuna()
    if trials < 1 or jobs < 1:
        raise SweepError(f"--trials {trials}, --jobs {jobs}: both at least 1.")
    check_folder(out, SweepError)
    recipe, given = load_recipe(fields, list(overrides)), given_names(overrides)
    _check_length(recipe)
    has_teacher = recipe.teacher.teacher is not None
    if recipe.teacher.teacher_cache is not None:
        raise SweepError("teacher_cache holds the answers to one set of views: give --teacher, caches are made here.")
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
    data.check_one_class_an_image(SweepError)
    teacher = build_teacher(recipe.teacher).fingerprint() if asks_teacher(chosen, own_type) else None
    sizes = (Path(out), trials, jobs, seed, teacher, len(data.validation), data.name)
    sweep = Sweep(dict(fields), tuple(overrides), tuple(chosen), own_type, *sizes)
    _check_choices(sweep, data)
    return sweep


def _check_length(recipe: Recipe) -> None:
    """Refuses what cannot be compared epoch by epoch."""
    if recipe.data.streaming:
        raise SweepError("A sweep compares trials epoch by epoch, and a stream has none: leave streaming out.")
    if recipe.training.max_steps > 0:
        raise SweepError(
            f"max_steps={recipe.training.max_steps}: a sweep compares trials epoch by epoch. Give --epochs in its place."
        )
    epochs = recipe.training.num_train_epochs
    if not epochs >= 1 or not float(epochs).is_integer():
        raise SweepError(f"A trial of {epochs:g} epochs: give a whole number, at least 1 (--epochs).")


def _check_choices(sweep: Sweep, data: RunData) -> None:
    """Has the trainer of each value of the space built once, beside the recipe's others where it counts; not of each pair."""
    from .runs import check_recipe

    quiet = {**_QUIET, "output_dir": str(sweep.out)}
    check_recipe(sweep.recipe(**quiet), data)
    for parameter in sweep.space:
        kind = types_where_it_counts(parameter, sweep.space, sweep.own_type)[0]
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                check_recipe(sweep.recipe(**{"distillation_type": kind, **quiet, parameter.name: value}), data)
            except UserError as error:
                raise SweepError(f"{parameter.name}={value!r}, which the sweep may try: {error}") from error


def run_sweep(sweep: Sweep, say: Callable[[str], None]) -> dict[str, Any]:
    """Does the trials that are still to be done, and writes report.md, report.json and best.yaml.

    Returns:
        What report.json holds.

    Raises:
        WorkError: Trials failed, or another process works in the folder; the report is written all the same.
        SweepError: The folder holds another sweep.
    """
    with alone_in(sweep.out):
        _check_same(sweep)
        try:
            study = _study(sweep, sweep.seed)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:  # optuna checks nothing of its own
            raise SweepError(f"{sweep.out / STUDY_FILE} cannot be read ({error}): choose another --out.") from error
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
            raise SweepError(f"{file} cannot be read ({error}): choose another --out.") from error
        changed = [name for name in present if stored.get(name) != present[name]]
        if changed:
            rows = "\n".join(f"  {name}: {stored.get(name)!r} there, {present[name]!r} now" for name in changed)
            raise SweepError(
                f"{sweep.out} holds another sweep:\n{rows}\nSet them back to go on, or choose another --out."
            )
        return
    if (sweep.out / STUDY_FILE).exists():
        raise SweepError(
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
        SweepError: Its fields do not work together.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    from .runs import train
    from .terms import NonFiniteLossError

    study = _study(sweep, sweep.seed + 1000 * (number + 1))
    trial = study.ask()
    start = time.monotonic()
    out = sweep.out / "work" / "runs" / f"trial-{trial.number}"
    fields: dict[str, Any] = {}
    try:
        fields = suggest_fields(trial, sweep.space, sweep.own_type)
        trial.set_user_attr("fields", fields)
        reporter = _reporter(trial)
        metrics = train(_trial_recipe(sweep, fields, out), lambda trainer: trainer.add_callback(reporter))
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
        raise SweepError(f"trial {trial.number} with {fields}: {error}") from error
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {"number": trial.number, "told": told, "seconds": time.monotonic() - start}


def _trial_recipe(sweep: Sweep, fields: Mapping[str, Any], out: Path) -> Recipe:
    """The recipe of a trial; one that listens to the teacher does so by the cache of its views, which is built if need be."""
    quiet = {**_QUIET, "output_dir": str(out)}
    recipe = sweep.recipe(**fields, **quiet)
    if recipe.training.distillation_type == "none":
        recipe.teacher.teacher = None  # nobody asks it
        return recipe
    folder = cache_folder(sweep.out / "work" / "caches", recipe, sweep.teacher)
    with alone_in(folder.with_name(f"{folder.name}.building"), wait=True):
        build_shared_cache(sweep.recipe(**{**fields, **quiet, "distillation_type": "soft"}), folder)
    recipe.teacher.teacher, recipe.teacher.teacher_cache = None, str(folder)
    return recipe


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
