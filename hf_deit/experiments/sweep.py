"""Sweep: a search for the best fields of a recipe. Worker processes run trials, which optuna chooses and prunes.

Each process runs `study.optimize` of optuna on one journal file, which contains all trials. The TPE sampler chooses the
fields, and the median pruner ends a trial that is worse than the median of the others at the same epoch. A sweep that
was killed can be resumed from the journal; the trials that were running then start again. experiments/search_space.py
defines the fields that are searched, and experiments/workers.py runs the processes.

Seeds: the values that a trial draws depend on the seed of the sweep, the number of the process, and the number of
earlier trials. With one process, the same seed therefore gives the same trials, whether the sweep runs at once or is
extended later. With several processes, the trials also depend on which process is faster.
"""

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock

from ..errors import NonFiniteLossError, RecipeError, UserError
from ..files import check_folder, staged_files, write_json
from ..recipes.arguments import Recipe
from ..recipes.cache_teacher import build_shared_cache, cache_folder
from ..recipes.data import load_run_data, view_size_of
from ..recipes.reading import given_names, load_recipe
from ..recipes.train import train
from .recipe_checks import RecipeChecks
from .search_space import (
    PATHS,
    QUIET,
    TEACHING,
    Parameter,
    Sweep,
    TrialFields,
    asks_teacher,
    check_space,
    combinations,
    default_space,
    has_effect,
    own_fields,
    own_values,
    read_space,
    suggest_fields,
)
from .workers import Task, alone_in, log_to, rest_of_tasks, run_tasks, use_share_of_cores

SWEEP_FILE, STUDY_FILE = "sweep.json", "study.journal"
_STUDY = "sweep"
_OUTCOMES = ("finished", "pruned", "diverged", "failed")


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended.

    Args:
        number: Number of the trial.
        outcome: "finished", "pruned", "diverged" or "failed".
        accuracy: Accuracy on the validation images after the last epoch of the trial, in [0, 1]; None if it finished no
            epoch.
        epochs: Number of epochs for which the trial was trained.
        fields: Values of the fields that are searched.
    """

    number: int
    outcome: str
    accuracy: float | None
    epochs: int
    fields: Mapping[str, Any]


def best_of(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the finished trial with the highest accuracy, the first of equal ones; None if no trial finished."""
    finished = [trial for trial in trials if trial.outcome == "finished"]
    return max(finished, key=lambda trial: (trial.accuracy, -trial.number), default=None)


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy on a number of images, both as shares: √(p (1 − p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')


def render_report(
    title: str, trials: Sequence[TrialRecord], names: Sequence[str], importance: Mapping[str, float], images: int
) -> str:
    """Return the report in Markdown: the best trial, how reliable it is, all trials, and which fields mattered.

    Args:
        title: First line of the report.
        trials: The trials that have ended.
        names: Names of the fields that are searched.
        importance: Importance of the fields, which adds up to 1; empty if it is unknown.
        images: Number of validation images.
    """
    counts = {outcome: sum(trial.outcome == outcome for trial in trials) for outcome in _OUTCOMES}
    counted = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    lines = [f"# {title}", "", f"{len(trials)} trials: {counted}."]
    best = best_of(trials)
    if best is None:
        lines.append("No trial finished, so there is no best trial.")
    else:
        error = 100 * standard_error(best.accuracy, images)
        lines += [
            f"Best: trial {best.number}, {100 * best.accuracy:.1f} % (± {error:.1f} points, the standard error of "
            f"{images} validation images); its fields are in best.yaml.",
            "",
            f"**This figure is too high by selection**: it is the best of {len(trials)} trials, chosen on the same "
            f"{images} images on which it was measured, with one seed. Trials within about two standard errors of it "
            "cannot be distinguished from it. Before you rely on it, train best.yaml with other seeds, and measure on "
            "images that the sweep has not used.",
        ]
    lines += ["", f"| trial | accuracy, % | epochs | {' | '.join(names)} |", f"|---:|---:|---:|{'---|' * len(names)}"]
    order = {outcome: place for place, outcome in enumerate(_OUTCOMES)}
    for trial in sorted(trials, key=lambda trial: (order[trial.outcome], -(trial.accuracy or 0), trial.number)):
        accuracy = "–" if trial.accuracy is None else f"{100 * trial.accuracy:.1f}"
        accuracy += "" if trial.outcome == "finished" else f" ({trial.outcome})"
        cells = [_shown(trial.fields[name]) if name in trial.fields else "" for name in names]
        lines.append(f"| {trial.number} | {accuracy} | {trial.epochs} | {' | '.join(cells)} |")
    if importance:
        lines += ["", "Importance of the fields for the accuracy (optuna's PED-ANOVA over the finished trials):", ""]
        lines += [f"- {name}: {100 * share:.0f} %" for name, share in importance.items()]
    return "\n".join(lines) + "\n"


def _record_of(trial: Any) -> TrialRecord | None:
    """Return the record of an optuna trial; None if it has not ended, or if it was killed and started again."""
    from optuna.trial import TrialState

    attributes, values = trial.user_attrs, trial.intermediate_values
    outcome = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}.get(trial.state)
    outcome = "diverged" if "diverged" in attributes else "failed" if "error" in attributes else outcome
    if outcome is None:
        return None
    accuracy = trial.value if outcome == "finished" else values[max(values)] if values else None
    return TrialRecord(trial.number, outcome, accuracy, attributes.get("epochs", 0), attributes.get("fields", {}))


def records_of(study: Any) -> list[TrialRecord]:
    """Return the records of the trials that have ended."""
    records = (_record_of(trial) for trial in study.get_trials(deepcopy=False))
    return [record for record in records if record is not None]


def _importance(study: Any, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the importance of the fields by PED-ANOVA; empty if fewer than 4 trials finished or all are equal."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    finished = [trial.accuracy for trial in trials if trial.outcome == "finished"]
    if len(finished) < 4 or len(set(finished)) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def write_report(sweep: Sweep, study: Any) -> dict[str, Any]:
    """Write report.md, report.json and, if a trial finished, best.yaml; return the content of report.json."""
    trials = records_of(study)
    names, best = [parameter.name for parameter in sweep.space], best_of(trials)
    importance = _importance(study, trials)
    report: dict[str, Any] = {"trials": [vars(trial) for trial in trials], "importance": importance}
    report |= {"validation_images": sweep.images, "space": sweep.describe()["space"], "best": None}
    title = f"Sweep of {len(names)} fields: {', '.join(names)}"
    text = render_report(title, trials, names, importance, sweep.images)
    with staged_files(sweep.out) as folder:
        if best is not None:
            error = standard_error(best.accuracy, sweep.images)
            report["best"] = {**vars(best), "standard_error": error}
            trained = sweep.recipe(**best.fields).training
            words = " --teacher TEACHER" * (trained.distillation_type != "none" or trained.guidance != "none")
            words += " --unlabelled IMAGES" * (sweep.own["unlabelled"] is not None)
            comment = (
                f"# Trial {best.number} of a sweep, the best of {len(trials)} trials: {100 * best.accuracy:.1f} % on "
                f"{sweep.images} validation images.\n# This figure is too high by selection; see report.md.\n"
                f"# hf-deit train --config best.yaml --data DATA --output_dir OUT{words}\n"
            )
            (folder / "best.yaml").write_text(comment + yaml.safe_dump(_best_fields(sweep, best)), encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        write_json(folder / "report.json", report)
    return report


def _best_fields(sweep: Sweep, best: TrialRecord) -> dict[str, Any]:
    """Return the fields of the recipe, of the command line and of the best trial, without those that name files."""
    recipe = sweep.recipe(**best.fields)
    # to_dict leaves out tokens and fields that depend on the machine, such as use_cpu.
    values = {**sweep.fields, **recipe.to_dict()}
    names = {*recipe.given, "distillation_type"} & values.keys()
    return {name: values[name] for name in sorted(names - {*PATHS, "output_dir"})}


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "hf-deit sweep needs the package optuna, which is not installed. Install it: pip install optuna."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def plan_sweep(
    fields: Mapping[str, Any],
    overrides: Sequence[str],
    out: str | Path,
    *,
    space: str | Path | None = None,
    trials: int = 20,
    jobs: int = 1,
    seed: int = 0,
) -> Sweep:
    """Read recipe, space, data and teacher, and check them before the first trial.

    Args:
        fields: Fields of the recipe.
        overrides: Fields of the command line, including data and teacher.
        out: Folder of the sweep: new, or the folder of the same sweep.
        space: Path of a YAML file (see `read_space`). Default: the space of `default_space`.
        trials: Number of trials to finish or prune.
        jobs: Number of processes.
        seed: Seed of the search.

    Raises:
        UserError: An argument is invalid.
    """
    _require_optuna()
    if trials < 1 or jobs < 1 or seed < 0:
        raise RecipeError(
            f"--trials {trials}, --jobs {jobs}, --seed {seed}: --trials and --jobs must be at least 1, and --seed at "
            "least 0."
        )
    check_folder(out, RecipeError)
    recipe, given = load_recipe(fields, list(overrides)), given_names(overrides)
    _check_length(recipe)
    has_teacher = recipe.teacher.teacher is not None
    if recipe.teacher.teacher_cache is not None:
        raise RecipeError(
            f"teacher_cache={recipe.teacher.teacher_cache!r} contains the teacher outputs for one set of views only. "
            "Give --teacher instead; the sweep builds the caches that it needs."
        )
    own_type = recipe.training.distillation_type
    if not has_teacher and "distillation_type" not in given:
        own_type = "none"
    if not has_teacher and "guidance" not in given:  # that of a recipe, which needs a teacher too
        fields = {**fields, "guidance": "none"}
    own = own_fields(fields, overrides, own_type)
    if space is None:
        chosen = default_space(recipe, has_teacher, given)
        chosen = [parameter for parameter in chosen if has_effect(parameter, chosen, own)]
    else:
        chosen = read_space(space, fields, given)
    check_space(chosen, own, has_teacher)
    checks = RecipeChecks(load_run_data(recipe))
    checks.data.check_one_class_an_image(RecipeError)
    teacher = checks.teacher(recipe) if asks_teacher(chosen, own) else None
    sweep = Sweep(
        fields=dict(fields),
        overrides=tuple(overrides),
        space=tuple(chosen),
        own_type=own_type,
        out=Path(out),
        trials=trials,
        jobs=jobs,
        seed=seed,
        teacher=None if teacher is None else teacher.fingerprint(view_size_of(recipe)),
        images=len(checks.data.validation),
        data=checks.data.name,
    )
    _check_choices(sweep, checks)
    return sweep


def _check_length(recipe: Recipe) -> None:
    """Check that the trainings can be compared epoch by epoch."""
    if recipe.data.streaming:
        raise RecipeError(
            "streaming=True cannot be used: a sweep compares trials epoch by epoch, and a stream has no epochs. Leave "
            "streaming out."
        )
    if recipe.training.max_steps > 0:
        raise RecipeError(
            f"max_steps={recipe.training.max_steps} cannot be used: a sweep compares trials epoch by epoch. Give "
            "--epochs instead."
        )
    epochs = recipe.training.num_train_epochs
    if not epochs >= 1 or not float(epochs).is_integer():
        raise RecipeError(f"A trial cannot have {epochs:g} epochs. Give an integer of at least 1 (--epochs).")


def _check_choices(sweep: Sweep, checks: RecipeChecks) -> None:
    """Check the recipes of trials that have, between them, each value of the space and each way to learn from the teacher.

    Other pairs of values are not checked.
    """
    usual, space = own_values(sweep.space, sweep.recipe().to_dict()), sweep.space
    checked = set()
    for names in ([], TEACHING, *([parameter.name] for parameter in space)):
        for some in combinations(names, space, sweep.own):
            shown = {name: some.values[name] for name in names if name in some.values}
            if names and not shown:
                continue
            choose = functools.partial(_usual_value, usual=usual, given=some.values)
            fields = TrialFields(space, sweep.own, choose)
            for parameter in space:
                fields.decide(parameter.name)
            text = json.dumps(fields.values, sort_keys=True)
            if text not in checked:
                checked.add(text)
                _check_trial(sweep, checks, fields.values, shown)


def _usual_value(parameter: Parameter, *, usual: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return a given value of a parameter, else the value of the recipe if it is in the space, else the first value."""
    if parameter.name in given:
        return given[parameter.name]
    stored = usual.get(parameter.name)
    if stored is None:
        return parameter.checked[0]
    return stored if parameter.choices is None else json.loads(stored)


def _check_trial(sweep: Sweep, checks: RecipeChecks, fields: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    try:
        checks.check(sweep.recipe(**fields, **QUIET, output_dir=str(sweep.out)))
    except UserError as error:
        if not shown:
            raise
        values = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        raise RecipeError(f"{values}, which the sweep may try, is invalid: {error}") from error


def run_sweep(sweep: Sweep, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the trials that are missing, and write report.md, report.json and best.yaml.

    Args:
        sweep: The result of `plan_sweep`.
        say: Function that is called with a line of text at the start and for each trial that has ended.

    Returns:
        The content of report.json.

    Raises:
        UserError: Trials failed (the report is written nevertheless), or another process works in the folder.
        RecipeError: The folder contains another sweep, or its files are damaged.
    """
    with alone_in(sweep.out):
        _check_same(sweep)
        try:
            study = _open_study(sweep)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:  # optuna does not check the file
            raise RecipeError(f"{sweep.out / STUDY_FILE} cannot be read ({error}). Choose another --out.") from error
        done, ended = _prepare_study(study, sweep)
        todo, logs = max(0, sweep.trials - done), sweep.out / "work" / "logs"
        say(f"{todo} trials to do, {done} done; logs: {logs}")
        progress = _Progress(study, todo, sweep.jobs, say)
        tasks = [
            Task(f"process {number}", _run_trials, (sweep, number, ended + todo), logs / f"process-{number}.log")
            for number in range(min(sweep.jobs, todo))
        ]
        try:
            if tasks:
                run_tasks(tasks, sweep.jobs, lambda *unused: None, watch=progress.update)
        finally:
            report = write_report(sweep, study)
        if progress.failed:
            lines = "\n".join(f"{line} (log: {_log(sweep, number)})" for number, line in progress.failed.items())
            raise UserError(f"{len(progress.failed)} trials failed; the results of the others are kept:\n{lines}")
    return report


class _Progress:
    """Reporter of the trials of a study that end after it was created."""

    def __init__(self, study: Any, todo: int, jobs: int, say: Callable[[str], None]):
        self.study, self.todo, self.jobs, self.say = study, todo, jobs, say
        self.seen = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
        self.seconds: list[float] = []
        self.failed: dict[int, str] = {}

    def update(self) -> None:
        """Report the trials that have ended since the last call."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number in self.seen or not trial.state.is_finished():
                continue
            self.seen.add(trial.number)
            record, seconds = _record_of(trial), trial.duration.total_seconds()
            if record is None or record.outcome == "failed":
                error = trial.user_attrs.get("error", "it returned no accuracy")
                self.failed[trial.number] = f"trial {trial.number} with {trial.user_attrs.get('fields', {})}: {error}"
                self.say(f"{self.failed[trial.number]}; the others continue")
                continue
            self.seconds.append(seconds)
            shown = "diverged" if record.outcome == "diverged" else f"{100 * record.accuracy:.1f} %"
            shown += f", pruned after epoch {record.epochs}" * (record.outcome == "pruned")
            left = rest_of_tasks(self.seconds, self.todo - len(self.seconds), self.jobs)
            self.say(f"{len(self.seconds)}/{self.todo}  trial {trial.number}: {shown} in {seconds:.0f} s{left}")


def _check_same(sweep: Sweep) -> None:
    """Check that the folder is new or contains the same sweep. A new folder gets the description of the sweep."""
    file, present = sweep.out / SWEEP_FILE, sweep.describe()
    if not file.exists():
        if (sweep.out / STUDY_FILE).exists():
            raise RecipeError(
                f"{sweep.out} contains the trials of a sweep ({STUDY_FILE}), but its description {SWEEP_FILE} is "
                "missing. Choose another --out."
            )
        write_json(file, present)
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"a {type(stored).__name__}")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file} cannot be read ({error}). Choose another --out.") from error
    changed = [name for name in present if stored.get(name) != present[name]]
    if changed:
        rows = "\n".join(f"  {name}: {stored.get(name)!r} in the folder, {present[name]!r} now" for name in changed)
        raise RecipeError(
            f"{sweep.out} contains another sweep:\n{rows}\nTo resume that sweep, use its values again. Otherwise, "
            "choose another --out."
        )


def _open_study(sweep: Sweep, process: int = 0) -> Any:
    """Open or create the study in the journal of a sweep, with the pruner and with the sampler of a process."""
    optuna = _require_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # The system releases this lock when a process is killed; optuna's own lock would block the others for half a
    # minute.
    lock = FileLock(sweep.out / ".journal.lock")
    storage = JournalStorage(JournalFileBackend(str(sweep.out / STUDY_FILE), lock_obj=lock))
    epochs = int(sweep.recipe().training.num_train_epochs)
    study = optuna.create_study(
        study_name=_STUDY,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=max(1, min(5, sweep.trials // 4)), n_warmup_steps=max(1, epochs // 5)
        ),
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = _sampler(sweep, process, study)
    return study


def _sampler(sweep: Sweep, process: int, study: Any) -> Any:
    """Return a sampler whose random draws differ from those of other processes and of earlier trials."""
    import optuna
    from optuna.trial import TrialState

    # A waiting trial is not counted: it has drawn nothing yet, and its draws must differ from those of the next trial.
    trials = sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    (seed,) = np.random.SeedSequence([sweep.seed, process, trials]).generate_state(1)
    return optuna.samplers.TPESampler(seed=int(seed), constant_liar=sweep.jobs > 1)


def _prepare_study(study: Any, sweep: Sweep) -> tuple[int, int]:
    """Enqueue the trials that a kill interrupted and, in a new study, a trial with the values of the recipe.

    Returns:
        The number of trials that are finished or pruned, and the number of trials that have ended in any way.
    """
    from optuna.trial import TrialState

    trials = study.get_trials()
    if not trials:
        study.enqueue_trial(own_values(sweep.space, sweep.recipe().to_dict()))
    for trial in trials:
        if trial.state == TrialState.RUNNING:  # it was killed: no other process works in the folder
            study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})
            study.tell(trial.number, state=TrialState.FAIL)
    done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    return done, sum(trial.state != TrialState.WAITING for trial in trials)


def _run_trials(sweep: Sweep, process: int, limit: int) -> None:
    """Run trials; this is the task of a worker process."""
    use_share_of_cores(sweep.jobs)
    search(sweep, process, limit, _Objective(sweep))


def search(sweep: Sweep, process: int, limit: int, objective: Callable[[Any], float]) -> None:
    """Run trials until the study has `limit` of them.

    Failed trials count, so that a search in which every trial fails comes to an end. Trials that other processes are
    running count as well. If two trials end at the same moment, one trial too many may still be started.

    Args:
        sweep: The sweep.
        process: Number of this process.
        limit: Number of trials, including those of earlier calls.
        objective: Function that returns the accuracy of an optuna trial.
    """
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    study = _open_study(sweep, process)
    if len(study.get_trials(deepcopy=False, states=counted)) >= limit:  # the callback runs only after a trial
        return

    def reseed(study: Any, trial: Any) -> None:
        study.sampler = _sampler(sweep, process, study)

    callbacks = [MaxTrialsCallback(limit, counted), reseed]
    study.optimize(objective, catch=(Exception,), callbacks=callbacks, gc_after_trial=True)


def _log(sweep: Sweep, number: int) -> Path:
    return sweep.out / "work" / "logs" / f"trial-{number}.log"


class _Objective:
    """Objective of optuna: it trains with the fields that a trial suggests and returns the validation accuracy."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self.caches: set[Path] = set()  # complete caches; checking one again would load the teacher again

    def __call__(self, trial: Any) -> float:
        from optuna import TrialPruned

        log_to(_log(self.sweep, trial.number))
        out = self.sweep.out / "work" / "runs" / f"trial-{trial.number}"
        try:
            fields = suggest_fields(trial, self.sweep.space, self.sweep.own)
            trial.set_user_attr("fields", fields)
            metrics = train(
                self._recipe(fields, out),
                lambda trainer: trainer.add_callback(_reporter(trial)),
                concurrent_trainings=self.sweep.jobs,
            )
            return metrics["eval_accuracy"]
        except TrialPruned:
            raise
        except NonFiniteLossError as error:
            trial.set_user_attr("diverged", True)
            raise TrialPruned from error
        except Exception as error:  # without this attribute, the trial would look as if it had been killed
            trial.set_user_attr(
                "error", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            raise
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def _recipe(self, fields: Mapping[str, Any], out: Path) -> Recipe:
        """Return the recipe of a trial. If it has a teacher, it uses the teacher cache of its views, built here if missing."""
        quiet = {**QUIET, "output_dir": str(out)}
        recipe = self.sweep.recipe(**fields, **quiet)
        if recipe.training.distillation_type == "none" and recipe.training.guidance == "none":
            return recipe.replace(teacher=None)  # the teacher would not be used
        folder = cache_folder(self.sweep.out / "work" / "caches", recipe, self.sweep.teacher)
        if folder not in self.caches:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                build_shared_cache(self.sweep.recipe(**{**fields, **quiet, "distillation_type": "soft"}), folder)
            self.caches.add(folder)
        return recipe.replace(teacher=None, teacher_cache=str(folder))  # the teacher outputs are in the cache


def _reporter(trial: Any) -> Any:
    """Return a trainer callback that reports the accuracy after each epoch and ends the training of a pruned trial."""
    from optuna import TrialPruned
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        epoch = 0

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            if round(state.epoch) <= self.epoch:  # the evaluation after the training repeats the last epoch
                return
            averaged = args.ema_epochs and args.counted_weights == "ema"
            self.epoch = round(state.epoch)
            trial.report(metrics["eval_ema_accuracy" if averaged else "eval_accuracy"], self.epoch)
            trial.set_user_attr("epochs", self.epoch)
            if state.global_step < state.max_steps and trial.should_prune():
                raise TrialPruned

    return Reporter()
