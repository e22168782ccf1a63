"""The runs of an ablation: teacher caches first, then trainings, several at a time, in other processes.

A killed run resumes from its last checkpoint, a run that has a result is not repeated, and a run that diverges is a result too.
ablation.py reads the definition and makes the table; workers.py runs the processes.
"""

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
from ..recipes.data import RunData, load_run_data
from ..recipes.reading import load_recipe
from ..recipes.train import train
from ..trainer.checkpoints import checkpoints
from ..trainer.metrics import metric_names
from .ablation import Ablation, Run, check_origin, read_result, result_file
from .recipe_checks import RecipeChecks
from .workers import Task, alone_in, run_tasks, time_left, use_share_of_cores

logger = logging.getLogger(__name__)

# Metrics that only a student with two heads has.
_OF_TWO_HEADS = ("cls_accuracy", "distillation_accuracy")
# Fields that decide which images there are, and how they are split and read.
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
    """What an ablation reads, and where it writes.

    Args:
        data: As `hf-deit train --data`.
        teacher: As `hf-deit train --teacher`; None if no variant has one.
        results: Folder of the results, small JSON files to keep.
        work: Folder of caches, unfinished trainings, and logs.
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
        file: File of its result.
        cache: Folder of the teacher's outputs; None if it has no teacher.
    """

    run: Run
    file: Path
    cache: Path | None


@dataclass(frozen=True)
class Plan:
    """What an ablation has to do.

    Args:
        runs: The trainings, in their order.
        caches: The caches they need, each with the run it is built for.
        finished: Number of runs that have a result.
    """

    runs: Sequence[PlannedRun]
    caches: dict[Path, Run]
    finished: int


def _loaded(place: Place, run: Run, **fields: Any) -> Recipe:
    """Return the recipe of a run; it names the teacher unless a cache is given."""
    own = {"data": place.data, "output_dir": str(place.work / "runs" / run.key), "report_to": "none"}
    if run.distils and "teacher_cache" not in fields:
        own["teacher"] = place.teacher
    return load_recipe({**run.fields, **own, "disable_tqdm": True, **fields}, [])


def _loaded_variant(place: Place, run: Run) -> Recipe:
    """Return the recipe of a run; an error names the variant."""
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
        The result: `variant`, `fields`, `metrics` (None: it diverged), `seconds`, `resumed` (the seconds are those since
        then), `steps`, `epochs`, `run` (versions, images, parameters).
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
        if not checkpoints(out):  # there is nothing to resume from
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
    """Find out what there is to do, and check recipes, data, teacher and earlier results before the first run.

    Args:
        ablation: The definition.
        place: Data, teacher and folders.
        seeds: Seeds to run. Default: all of the definition.

    Raises:
        RecipeError: A variant distils and there is no teacher, a row names an unknown metric, a seed is not one of the
            definition, there are results on other data, or one that cannot be read.
        UserError: A field, the data or the teacher is invalid.
    """
    for folder in (place.results, place.work):
        check_folder(folder, RecipeError)
    seeds = ablation.seeds if seeds is None else seeds
    for seed in seeds:
        if seed not in ablation.seeds:
            raise RecipeError(
                f"seed {seed} is not one of the definition, which has {', '.join(map(str, ablation.seeds))}."
            )
    runs: dict[str, Run] = {}
    for run in ablation.runs():
        if run.fields["seed"] in seeds:
            runs.setdefault(run.key, run)
    distilling = [run for run in runs.values() if run.distils]
    if distilling and place.teacher is None:
        raise RecipeError(f"The variant {distilling[0].variant!r} learns from a teacher: give --teacher.")
    recipes = {key: _loaded_variant(place, run) for key, run in runs.items()}
    _check_metrics(ablation)
    _check_same_data(runs, recipes)
    checks = RecipeChecks(_load_data(ablation, place))
    teacher = checks.teacher(recipes[distilling[0].key]) if distilling else None
    fingerprint = None if teacher is None else teacher.fingerprint()
    _check_variants(ablation, recipes, checks, seeds[0])
    todo = []
    for key, run in runs.items():
        file = result_file(place.results, run, checks.data.name, fingerprint)
        check_origin(place.results, run, file)
        if file.exists():
            read_result(file)
            continue
        cache = (
            None
            if fingerprint is None or not run.distils
            else cache_folder(place.work / "caches", recipes[key], fingerprint)
        )
        todo.append(PlannedRun(run, file, cache))
    longest: dict[Path, Run] = {}
    for planned in sorted(todo, key=lambda planned: length_of(recipes[planned.run.key])):
        if planned.cache is not None:
            longest[planned.cache] = planned.run  # the longest run comes last and needs the most views
    order = dict.fromkeys(planned.cache for planned in todo if planned.cache is not None)
    return Plan(todo, {cache: longest[cache] for cache in order}, len(runs) - len(todo))


def _check_same_data(runs: Mapping[str, Run], recipes: Mapping[str, Recipe]) -> None:
    """Refuse variants on other images, which no table can compare."""
    first = next(iter(recipes.values())).data
    for key, run in runs.items():
        for name in _ABOUT_DATA:
            own, other = getattr(recipes[key].data, name), getattr(first, name)
            if own != other:
                raise RecipeError(
                    f"Variant {run.variant!r} has {name}={own!r}, and the first has {other!r}: variants on other images cannot be compared."
                )


def _load_data(ablation: Ablation, place: Place) -> RunData:
    """Load the data of all runs, split with one seed, so that they have one name whatever the seeds of the runs."""
    data = load_run_data(_loaded(place, ablation.run(next(iter(ablation.variants)), 0)))
    data.check_one_class_an_image(RecipeError)
    return data


def _check_variants(ablation: Ablation, recipes: Mapping[str, Recipe], checks: RecipeChecks, seed: int) -> None:
    for variant in ablation.variants:
        try:
            checks.check(recipes[ablation.run(variant, seed).key])
        except UserError as error:
            raise RecipeError(f"Variant {variant!r}: {error}") from error


def _check_metrics(ablation: Ablation) -> None:
    """Check that the runs of each row will have its metric, before they are trained."""
    known = [name for name in metric_names(ProblemType.SINGLE_LABEL) if not name.endswith("loss")]
    for row in ablation.rows:
        fields = {**ablation.fields, **ablation.variants[row.variant]}
        metric = row.metric.removeprefix("ema_")
        problem = None
        if metric not in known:
            problem = f"it is not one of {', '.join(known)}"
        elif metric != row.metric and not fields.get("ema_epochs"):
            problem = f"it needs averaged weights, and {row.variant!r} keeps none (ema_epochs)"
        elif metric in _OF_TWO_HEADS and fields.get("student") == "plain":
            problem = f"it needs a student with two heads, and that of {row.variant!r} is plain"
        if problem is not None:
            raise RecipeError(f"Row {row.title!r}, metric={row.metric!r}: {problem}.")


def do_ablation(plan: Plan, place: Place, say: Callable[[str], None]) -> None:
    """Build the caches and train the runs; a run starts as soon as its cache is complete.

    A failure is reported at once, and the other runs continue.

    Args:
        plan: The result of `plan_ablation`.
        place: Data, teacher and folders.
        say: Gets a line for each cache and run that has ended.

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
            left = time_left(seconds, len(plan.runs) - len(seconds), place.jobs)
            say(f"{len(seconds)}/{len(plan.runs)}  {_line(result)}{left}")

    with alone_in(place.work):
        run_tasks(tasks, place.jobs, ended)


def _line(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    shown = "diverged" if metrics is None else f"{100 * metrics['eval_accuracy']:.1f} %"
    return f"{result['variant']}, seed {result['fields']['seed']}: {shown} in {result['seconds']:.0f} s"
