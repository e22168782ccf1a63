"""Searches fields of a recipe: trials in processes of their own, chosen and cut short by optuna, kept in a file.

optuna's TPE chooses, its median pruner ends a trial that is behind, its journal file keeps all of them; so a killed sweep goes
on, and the trials that were under way begin again. Space and report are sweep.py's business, processes
worker_processes.py's, teacher caches shared_caches.py's.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from .checkpointing import staged_files, write_json
from .recipe import Recipe, given_names, load_recipe
from .shared_caches import build_shared_cache, cache_folder
from .sweep import (
    Parameter,
    SweepError,
    TrialRecord,
    asks_teacher,
    best_of,
    default_space,
    own_values,
    read_space,
    render_report,
    standard_error,
    suggest_fields,
)
from .worker_processes import Task, alone_in, run_tasks, time_left

SWEEP_FILE, STUDY_FILE = "sweep.json", "study.journal"
_STUDY = "sweep"


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
        data: Fingerprint of the training images.
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
        told["overrides"] = list(self.overrides)
        return json.loads(json.dumps(told, default=str))


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
    given = given_names(overrides)
    recipe = load_recipe(fields, list(overrides))
    has_teacher = recipe.teacher.teacher is not None
    if recipe.data.streaming:
        raise SweepError("A sweep compares trials epoch by epoch, and a stream has none: leave streaming out.")
    if recipe.teacher.teacher_cache is not None:
        raise SweepError("teacher_cache holds the answers to one set of views: give --teacher, caches are made here.")
    own_type = recipe.training.distillation_type
    if not has_teacher and space is None and "distillation_type" not in given:
        own_type = "none"
    if space is None:
        chosen = default_space(recipe, has_teacher, given)
    else:
        chosen = read_space(space, fields, given)
    if asks_teacher(chosen, own_type) and not has_teacher:
        raise SweepError("distillation_type may be soft or hard here: give --teacher, or only none.")
    data = load_run_data(recipe)
    if data.train.problem_type != "single_label_classification":
        raise SweepError(
            f"{data.train.name} has several classes an image: a sweep compares accuracies, of one class each."
        )
    teacher = build_teacher(recipe.teacher).fingerprint() if asks_teacher(chosen, own_type) else None
    sizes = (Path(out), trials, jobs, seed, teacher, len(data.validation), data.train.fingerprint)
    return Sweep(dict(fields), tuple(overrides), tuple(chosen), own_type, *sizes)


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
        study = _study(sweep, sweep.seed)
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
            report = write_report(sweep)
    return report


def _check_same(sweep: Sweep) -> None:
    file, present = sweep.out / SWEEP_FILE, sweep.describe()
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in present if stored.get(name) != present[name]]
        if changed:
            rows = "\n".join(f"  {name}: {stored.get(name)!r} there, {present[name]!r} now" for name in changed)
            raise SweepError(
                f"{sweep.out} holds another sweep:\n{rows}\nSet them back to go on, or choose another --out."
            )
        return
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

    from .errors import UserError
    from .runs import train
    from .terms import NonFiniteLossError

    study = _study(sweep, sweep.seed + 1000 * (number + 1))
    trial = study.ask()
    start = time.monotonic()
    out = sweep.out / "work" / "runs" / f"trial-{trial.number}"
    fields = suggest_fields(trial, sweep.space, sweep.own_type)
    trial.set_user_attr("fields", fields)
    try:
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
    quiet = {"report_to": "none", "disable_tqdm": True, "push_to_hub": False, "load_best_model_at_end": False}
    quiet |= {"eval_strategy": "epoch", "save_strategy": "no", "output_dir": str(out)}
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


# ---- the report ----


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


def write_report(sweep: Sweep) -> dict[str, Any]:
    """Writes report.md, report.json and, if a trial was trained to its end, best.yaml; gives what report.json holds."""
    study = _study(sweep, sweep.seed)
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
