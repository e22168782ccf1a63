"""Does the runs of an ablation: teacher caches first, then trainings, several at a time, in other processes.

A run that was killed goes on from its last checkpoint; one that has its result is left alone; one that diverges is a result
too. Which runs there are, and the table, is the business of ablation.py; processes that of workers.py.
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
from ..recipes.arguments import Recipe
from ..recipes.cache_teacher import build_shared_cache, cache_folder, length_of
from ..recipes.data import RunData
from ..recipes.recipe import load_recipe
from ..trainer.checkpoints import checkpoints
from .ablation import Ablation, Run, check_origin, read_result, result_file
from .workers import Task, alone_in, run_tasks, time_left

logger = logging.getLogger(__name__)

# Metrics that a student with one head has not.
_OF_TWO_HEADS = ("cls_accuracy", "distillation_accuracy")


@dataclass(frozen=True)
class Place:
    """Where an ablation reads and writes.

    Args:
        data: As `hf-deit train --data`.
        teacher: As `--teacher`; None: no variant has one.
        results: Folder of the results, small JSON files to be kept.
        work: Folder of caches, trainings that are under way, and logs.
        jobs: Runs at a time; the cores are shared out.
    """

    data: str
    teacher: str | None
    results: Path
    work: Path
    jobs: int = 1


@dataclass(frozen=True)
class PlannedRun:
    """A training to be done.

    Args:
        run: It.
        file: Of its result.
        cache: Of the teacher's answers; None: it has no teacher.
    """

    run: Run
    file: Path
    cache: Path | None

    def folder(self, place: Place) -> Path:
        """Where it trains; data and teacher are in the name."""
        return place.work / "runs" / self.file.stem


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order, and for each cache the run to build it for."""

    runs: Sequence[PlannedRun]
    caches: dict[Path, Run]
    finished: int


def _loaded(place: Place, run: Run, **fields: Any) -> Recipe:
    """The recipe of a run; without a cache it names the teacher."""
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


def build_cache(place: Place, run: Run, folder: Path) -> None:
    """Builds the cache of a run, or goes on with it."""
    build_shared_cache(_loaded(place, run, distillation_type="soft"), folder)


def do_run(place: Place, planned: PlannedRun) -> dict[str, Any]:
    """Trains one run, or goes on with it, and writes its result.

    Returns:
        The result: `variant`, `fields`, `metrics` (None: it diverged), `seconds`, `resumed` (the seconds are those since
        then), `steps`, `epochs`, `run` (versions, images, parameters).
    """
    from ..hub.facts import read_facts
    from ..recipes.train import train

    run, out = planned.run, planned.folder(place)
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
        if not checkpoints(out):  # nothing to go on from
            shutil.rmtree(out, ignore_errors=True)
        raise
    result = {"variant": run.variant, "fields": dict(run.fields), "metrics": metrics}
    result |= {"seconds": round(time.monotonic() - start, 1), "resumed": resume}
    result |= {name: results[name] for name in ("steps", "epochs", "run") if name in results}
    planned.file.parent.mkdir(parents=True, exist_ok=True)
    write_json(planned.file, result)
    shutil.rmtree(out, ignore_errors=True)
    return result


def plan_ablation(ablation: Ablation, place: Place) -> Plan:
    """Says what is to be done; recipes, data, teacher and earlier results are read and checked before the first run.

    Raises:
        RecipeError: A variant distils and there is no teacher, a row names no metric, there are results on other data, or
            one that cannot be read.
        UserError: A field, the data or the teacher are not allowed.
    """
    from ..recipes.build import build_teacher

    for folder in (place.results, place.work):
        check_folder(folder, RecipeError)
    runs: dict[str, Run] = {}
    for run in ablation.runs():
        runs.setdefault(run.key, run)
    distilling = [run for run in runs.values() if run.distils]
    if distilling and place.teacher is None:
        raise RecipeError(f"The variant {distilling[0].variant!r} learns from a teacher: give --teacher.")
    recipes = {key: _loaded_variant(place, run) for key, run in runs.items()}
    _check_metrics(ablation)
    data = _load_data(ablation, place, recipes)
    teacher = build_teacher(recipes[distilling[0].key].teacher).fingerprint() if distilling else None
    _check_variants(ablation, recipes, data)
    todo, finished = [], 0
    for key, run in runs.items():
        file = result_file(place.results, run, data.name, teacher)
        check_origin(place.results, run, file)
        if file.exists():
            read_result(file)
            finished += 1
            continue
        cache = cache_folder(place.work / "caches", recipes[key], teacher) if run.distils else None
        todo.append(PlannedRun(run, file, cache))
    caches: dict[Path, Run] = {}
    for planned in sorted(todo, key=lambda planned: length_of(recipes[planned.run.key])):
        if planned.cache is not None:
            caches[planned.cache] = planned.run  # in the end the longest run's
    order = dict.fromkeys(planned.cache for planned in todo if planned.cache is not None)
    return Plan(todo, {cache: caches[cache] for cache in order}, finished)


# Fields that say which images there are, and how they are split and read.
_ABOUT_DATA = (
    *("image_column", "label_column", "label_separator", "validation_share", "broken_images"),
    *("streaming", "shuffle_buffer"),
)


def _load_data(ablation: Ablation, place: Place, recipes: Mapping[str, Recipe]) -> RunData:
    """Loads the data that all runs have; split off by one seed, so that they have one name whatever the seeds of the runs.

    Raises:
        RecipeError: Variants would not have the same data, or several classes an image.
    """
    from ..recipes.data import load_run_data

    first = next(iter(recipes.values())).data
    for run in ablation.runs():
        for name in _ABOUT_DATA:
            own, other = getattr(recipes[run.key].data, name), getattr(first, name)
            if own != other:
                raise RecipeError(
                    f"Variant {run.variant!r} has {name}={own!r}, and the first has {other!r}: variants on other images cannot be compared."
                )
    data = load_run_data(_loaded(place, ablation.run(next(iter(ablation.variants)), 0)))
    data.check_one_class_an_image(RecipeError)
    return data


def _check_variants(ablation: Ablation, recipes: Mapping[str, Recipe], data: RunData) -> None:
    """Has the trainer of each variant built once."""
    from ..recipes.train import check_recipe

    for variant in ablation.variants:
        try:
            check_recipe(recipes[ablation.run(variant, ablation.seeds[0]).key], data)
        except UserError as error:
            raise RecipeError(f"Variant {variant!r}: {error}") from error


def _check_metrics(ablation: Ablation) -> None:
    from ..losses import ProblemType
    from ..trainer.validation import metric_names

    known = metric_names(ProblemType.SINGLE_LABEL)
    for row in ablation.rows:
        if row.metric.removeprefix("ema_") not in known or row.metric.endswith("loss"):
            shares = ", ".join(name for name in known if not name.endswith("loss"))
            raise RecipeError(f"Row {row.title!r}: metric {row.metric!r} is not one of {shares}.")
        fields = {**ablation.fields, **ablation.variants[row.variant]}
        averaged = row.metric.startswith("ema_")
        if averaged and not fields.get("ema_epochs"):
            raise RecipeError(
                f"Row {row.title!r}: {row.metric} is of averaged weights, and its variant keeps none (ema_epochs)."
            )
        of_a_head = row.metric.removeprefix("ema_") in _OF_TWO_HEADS
        if of_a_head and fields.get("student") == "plain":
            raise RecipeError(
                f"Row {row.title!r}: {row.metric} is of a student with two heads, and its variant's has one."
            )


def do_ablation(plan: Plan, place: Place, say: Callable[[str], None]) -> None:
    """Builds the caches and does the runs; a run starts as soon as its cache is there.

    What fails is said at once, and the others go on.

    Args:
        plan: Of `plan_ablation`.
        place: Likewise.
        say: Gets a line for each that ends.

    Raises:
        UserError: Something was wrong with some runs, or another ablation works in the same folder.
    """
    logs = place.work / "logs"
    caches = {cache: f"cache {cache.name}" for cache in plan.caches}
    tasks = [
        Task(caches[cache], build_cache, (place, run, cache), logs / f"cache-{cache.name}.log")
        for cache, run in plan.caches.items()
    ]
    tasks += [
        Task(planned.run.name, do_run, (place, planned), logs / f"{planned.file.stem}.log", caches.get(planned.cache))
        for planned in plan.runs
    ]
    seconds: list[float] = []
    count = 0

    def ended(task: Task, result: Any) -> None:
        nonlocal count
        if isinstance(result, Exception):
            say(f"{task.name} failed, the others go on: {result} (log: {task.log})")
        elif result is None:
            say(f"{task.name} is built")
        else:
            count += 1
            seconds.append(result["seconds"])
            left = len(plan.runs) - count
            say(f"{count}/{len(plan.runs)}  {_line(result)}{time_left(seconds, left, place.jobs)}")

    with alone_in(place.work):
        run_tasks(tasks, place.jobs, ended)


def _line(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    shown = "diverged" if metrics is None else f"{100 * metrics['eval_accuracy']:.1f} %"
    return f"{result['variant']}, seed {result['fields']['seed']}: {shown} in {result['seconds']:.0f} s"
