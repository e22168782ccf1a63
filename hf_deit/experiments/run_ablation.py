"""Runs of an ablation: teacher caches and trainings, several at a time, in other processes.

A killed run resumes from its last checkpoint. A run that has a result is not repeated; that a run diverged is also a
result. experiments/ablation.py reads the definition and makes the table; experiments/workers.py runs the processes.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NonFiniteLossError, RecipeError, UserError
from ..files import check_folder, write_json
from ..hub.facts import read_facts
from ..losses import ProblemType
from ..recipes.arguments import Recipe
from ..recipes.cache_teacher import build_shared_cache, cache_folder, length_of
from ..recipes.data import RunData, load_run_data, view_size_of
from ..recipes.reading import load_recipe
from ..recipes.train import train
from ..trainer.checkpoints import checkpoints
from ..trainer.metrics import metric_names
from .ablation import Ablation, Run, check_origin, read_result, result_file
from .recipe_checks import RecipeChecks
from .workers import Task, alone_in, rest_of_tasks, run_tasks, use_share_of_cores

logger = logging.getLogger(__name__)

# Metrics that only a student with two heads has.
_OF_TWO_HEADS = ("cls_accuracy", "distillation_accuracy")
# Fields that decide which images are used, and how they are split and read.
_ABOUT_DATA = (
    "image_column",
    "label_column",
    "label_separator",
    "validation_share",
    "broken_images",
    "streaming",
    "shuffle_buffer",
)


@dataclass(frozen=True)
class Place:
    """Data, teacher and folders of an ablation.

    Args:
        data: Data, as for `hf-deit train --data`.
        teacher: Teacher, as for `hf-deit train --teacher`; None if no variant has one.
        results: Folder of the results: small JSON files to keep.
        work: Folder of the teacher caches, the unfinished trainings and the logs.
        jobs: Number of runs at a time, which share the cores.
    """

    data: str
    teacher: str | None
    results: Path
    work: Path
    jobs: int = 1


@dataclass(frozen=True)
class PlannedRun:
    """A training that has no result yet.

    Args:
        run: The run.
        file: File to which the result is written.
        cache: Folder of the teacher cache; None if the run has no teacher.
    """

    run: Run
    file: Path
    cache: Path | None


@dataclass(frozen=True)
class Plan:
    """Work that an ablation still has to do.

    Args:
        runs: The trainings without a result, in order.
        caches: Folders of the teacher caches that they need; for each, the run from which the cache is built.
        finished: Number of runs that already have a result.
        files: Files of the results, the present and the future ones, by variant and seed.
    """

    runs: Sequence[PlannedRun]
    caches: dict[Path, Run]
    finished: int
    files: Mapping[tuple[str, int], Path]


def _loaded(place: Place, run: Run, **fields: Any) -> Recipe:
    """Return the recipe of a run. It names the teacher unless `fields` name a teacher cache."""
    own = {"data": place.data, "output_dir": str(place.work / "runs" / run.key), "report_to": "none"}
    if run.distils and "teacher_cache" not in fields:
        own["teacher"] = place.teacher
    return load_recipe({**run.fields, **own, "disable_tqdm": True, **fields}, [])


def _loaded_variant(place: Place, run: Run) -> Recipe:
    """Return the recipe of a run. An error message names the variant."""
    try:
        return _loaded(place, run)
    except RecipeError as error:
        raise RecipeError(f"Variant {run.variant!r}: {error}") from error


def _build_cache(place: Place, run: Run, folder: Path) -> None:
    use_share_of_cores(place.jobs)
    build_shared_cache(_loaded(place, run, distillation_type="soft"), folder)


def _do_run(place: Place, planned: PlannedRun) -> dict[str, Any]:
    """Train one run, or resume it, and write its result.

    Returns:
        The result: `variant`, `fields`, `metrics` (None if the run diverged), `seconds`, `resumed` (whether the run was
        resumed; `seconds` then counts from the resume), `steps`, `epochs`, `run` (versions, images, parameters).
    """
    use_share_of_cores(place.jobs)
    run, out = planned.run, place.work / "runs" / planned.file.stem
    resume = bool(checkpoints(out))
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    fields: dict[str, Any] = {"resume": resume, "output_dir": str(out)}
    fields |= {} if planned.cache is None else {"teacher_cache": str(planned.cache)}
    start = time.monotonic()
    try:
        train(_loaded(place, run, **fields), concurrent_trainings=place.jobs)
        results = read_facts(out).results
        metrics: dict[str, Any] | None = {key: value for key, value in results.items() if key.startswith("eval_")}
    except NonFiniteLossError as error:
        logger.warning("%s: %s", run.name, error)
        metrics, results = None, {}
    except UserError:
        if not checkpoints(out):  # without a checkpoint, the folder is of no use for a resume
            shutil.rmtree(out, ignore_errors=True)
        raise
    result = {"variant": run.variant, "fields": dict(run.fields), "metrics": metrics}
    result |= {"seconds": round(time.monotonic() - start, 1), "resumed": resume}
    result |= {name: results[name] for name in ("steps", "epochs", "run") if name in results}
    planned.file.parent.mkdir(parents=True, exist_ok=True)
    write_json(planned.file, result)
    shutil.rmtree(out, ignore_errors=True)
    return result


def plan_ablation(ablation: Ablation, place: Place, seeds: Sequence[int] | None = None) -> Plan:
    """List the runs without a result, and check recipes, data, teacher and earlier results before the first run.

    Args:
        ablation: The definition.
        place: Data, teacher and folders.
        seeds: Seeds to run. Default: all seeds of the definition.

    Raises:
        RecipeError: A variant distils and no teacher is given, a row names an unknown metric, a seed is not in the
            definition, or an earlier result cannot be read or is on other data or of another teacher.
        UserError: A field, the data or the teacher is invalid.
    """
    for folder in (place.results, place.work):
        check_folder(folder, RecipeError)
    seeds = ablation.seeds if seeds is None else seeds
    for seed in seeds:
        if seed not in ablation.seeds:
            raise RecipeError(
                f"seed {seed} is not in the definition, whose seeds are {', '.join(map(str, ablation.seeds))}."
            )
    runs = [run for run in ablation.runs() if run.fields["seed"] in seeds]
    distilling = [run for run in runs if run.distils]
    if distilling and place.teacher is None:
        raise RecipeError(
            f"Variant {distilling[0].variant!r} learns from a teacher, and no teacher is given. Give --teacher."
        )
    recipes = {run.name: _loaded_variant(place, run) for run in runs}
    _check_metrics(ablation)
    _check_same_data(runs, recipes)
    checks = RecipeChecks(_load_data(ablation, place))
    teacher = checks.teacher(recipes[distilling[0].name]) if distilling else None
    fingerprint = None if teacher is None else teacher.fingerprint(view_size_of(recipes[distilling[0].name]))
    _check_variants(ablation, recipes, checks, seeds[0])
    files, todo = {}, {}
    for run in runs:
        recipe = recipes[run.name]
        file = result_file(place.results, run, checks.data.name, fingerprint, checks.unlabelled_digest(recipe))
        check_origin(place.results, run, file)
        files[run.variant, run.fields["seed"]] = file
        if file.exists():
            read_result(file)
            continue
        distils = fingerprint is not None and run.distils
        cache = cache_folder(place.work / "caches", recipe, fingerprint) if distils else None
        todo.setdefault(file, PlannedRun(run, file, cache))  # variants with the same fields and images are one run
    planned_runs = list(todo.values())
    longest: dict[Path, Run] = {}
    for planned in sorted(planned_runs, key=lambda planned: length_of(recipes[planned.run.name])):
        if planned.cache is not None:
            longest[planned.cache] = planned.run  # the longest run comes last and needs the most views
    order = dict.fromkeys(planned.cache for planned in planned_runs if planned.cache is not None)
    finished = len(set(files.values())) - len(todo)
    return Plan(planned_runs, {cache: longest[cache] for cache in order}, finished, files)


def _check_same_data(runs: Sequence[Run], recipes: Mapping[str, Recipe]) -> None:
    """Check that all variants use the same images. A table cannot compare variants on different images."""
    first = next(iter(recipes.values())).data
    for run in runs:
        for name in _ABOUT_DATA:
            own, other = getattr(recipes[run.name].data, name), getattr(first, name)
            if own != other:
                raise RecipeError(
                    f"Variant {run.variant!r} has {name}={own!r}, and the first variant has {name}={other!r}. Variants "
                    "on different images cannot be compared; give the same value for all."
                )


def _load_data(ablation: Ablation, place: Place) -> RunData:
    """Load the data of all runs, split with seed 0, so that the name of the data does not depend on the runs' seeds.

    The unlabelled images are a field of each variant, and are not part of the name.
    """
    recipe = _loaded(place, ablation.run(next(iter(ablation.variants)), 0))
    labelled = dataclasses.replace(recipe.data, unlabelled=None, unlabelled_split=None)
    data = load_run_data(dataclasses.replace(recipe, data=labelled))
    data.check_one_class_an_image(RecipeError)
    return data


def _check_variants(ablation: Ablation, recipes: Mapping[str, Recipe], checks: RecipeChecks, seed: int) -> None:
    for variant in ablation.variants:
        try:
            checks.check(recipes[ablation.run(variant, seed).name])
        except UserError as error:
            raise RecipeError(f"Variant {variant!r}: {error}") from error


def _check_metrics(ablation: Ablation) -> None:
    """Check before the trainings that the runs of each row will have the metric of the row."""
    known = [name for name in metric_names(ProblemType.SINGLE_LABEL) if not name.endswith("loss")]
    for row in ablation.rows:
        fields = {**ablation.fields, **ablation.variants[row.variant]}
        metric = row.metric.removeprefix("ema_")
        problem = None
        if metric not in known:
            problem = f"Choose one of {', '.join(known)}."
        elif metric != row.metric and not fields.get("ema_epochs"):
            problem = f"It requires averaged weights: set ema_epochs in the variant {row.variant!r}."
        elif metric in _OF_TWO_HEADS and fields.get("student") == "plain":
            problem = f"It requires a student with two heads, and the variant {row.variant!r} has student=plain."
        if problem is not None:
            raise RecipeError(f"Row {row.title!r}: metric={row.metric!r} is not available. {problem}")


def do_ablation(plan: Plan, place: Place, say: Callable[[str], None]) -> None:
    """Build the teacher caches and train the runs. A run starts as soon as its cache is complete.

    A failure is reported at once, and the other runs continue.

    Args:
        plan: The result of `plan_ablation`.
        place: Data, teacher and folders.
        say: Function that is called with a line of text for each cache and each run that has ended.

    Raises:
        UserError: Some runs failed, or another ablation works in the same folder.
    """
    logs = place.work / "logs"
    caches = {cache: f"cache {cache.name}" for cache in plan.caches}
    tasks = [
        Task(caches[cache], _build_cache, (place, run, cache), logs / f"cache-{cache.name}.log")
        for cache, run in plan.caches.items()
    ]
    tasks += [
        Task(
            planned.run.name,
            _do_run,
            (place, planned),
            logs / f"{planned.file.stem}.log",
            None if planned.cache is None else caches[planned.cache],
        )
        for planned in plan.runs
    ]
    seconds: list[float] = []

    def ended(task: Task, result: Any) -> None:
        if isinstance(result, Exception):
            say(f"{task.name} failed, the others continue: {result} (log: {task.log})")
        elif result is None:
            say(f"{task.name} is built")
        else:
            seconds.append(result["seconds"])
            left = rest_of_tasks(seconds, len(plan.runs) - len(seconds), place.jobs)
            say(f"{len(seconds)}/{len(plan.runs)}  {_line(result)}{left}")

    with alone_in(place.work):
        run_tasks(tasks, place.jobs, ended)


def _line(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    shown = "diverged" if metrics is None else f"{100 * metrics['eval_accuracy']:.1f} %"
    return f"{result['variant']}, seed {result['fields']['seed']}: {shown} in {result['seconds']:.0f} s"
