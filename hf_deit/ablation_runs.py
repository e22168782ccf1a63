"""Does the runs of an ablation: teacher caches first, then trainings, several at a time, each in a process of its own.

A run that was killed goes on from its last checkpoint; one that has its result is left alone; one that diverges is a result
too. Which runs there are, and the table, is the business of ablation.py.
"""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ablation import Ablation, AblationError, Run, result_file, sign
from .checkpointing import checkpoints, write_json
from .recipe import Recipe, load_recipe

logger = logging.getLogger(__name__)

# What the teacher's answers depend on; everything else may differ between runs that share a cache.
_VIEW_FIELDS = ("view_size", "crop_scale", "crop_aspect", "flip_probability", "auto_augment", "randaugment_magnitude")
_VIEW_FIELDS += ("randaugment_magnitude_std", "randaugment_probability", "randaugment_num_ops", "color_jitter")
_VIEW_FIELDS += ("erasing_probability", "mixup_alpha", "cutmix_alpha", "mix_probability", "mix_switch_probability")
_VIEW_FIELDS += ("repeated_augmentation", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
_VIEW_FIELDS += ("num_views", "num_train_epochs", "max_steps", "teacher_dtype", "validation_share")


@dataclass(frozen=True)
class Place:
    """Where an ablation reads and writes.

    Args:
        data: As `hf-deit train --data`.
        teacher: As `--teacher`; None: no variant has one.
        results: Folder of the results, small JSON files to be kept.
        work: Folder of caches and trainings that are under way.
        jobs: Runs at a time; the cores are shared out.
    """

    data: str
    teacher: str | None
    results: Path
    work: Path
    jobs: int = 1

    @property
    def threads(self) -> int:
        """Of each run."""
        return max(1, (os.cpu_count() or 1) // self.jobs)


def _loaded(place: Place, run: Run, **fields: Any) -> Recipe:
    """The recipe of a run; without a cache it names the teacher."""
    own = {"data": place.data, "output_dir": str(place.work / "runs" / run.key), "report_to": "none"}
    if run.distils and "teacher_cache" not in fields:
        own["teacher"] = place.teacher
    given = Run(run.variant, {**run.fields, **own, "disable_tqdm": True, **fields})
    return load_recipe(None, given.overrides)


def _cache_folder(place: Place, recipe: Recipe, teacher: str) -> Path:
    fields = recipe.to_dict()
    told = {name: fields[name] for name in _VIEW_FIELDS}
    told["view_size"] = fields["view_size"] or fields["image_size"]
    if told["num_views"]:  # the views come again: how long the training is does not matter
        told["num_train_epochs"] = told["max_steps"] = None
    return place.work / "caches" / sign([told, str(Path(place.data).resolve()), teacher])


def build_cache(place: Place, run: Run, folder: Path) -> None:
    """Builds the cache of a run, or goes on with it; in a process of its own."""
    import torch

    from .cache_runs import cache_teacher

    torch.set_num_threads(place.threads)
    cache_teacher(_loaded(place, run, distillation_type="soft"), folder, kind="soft")


def do_run(place: Place, run: Run, file: Path, cache: Path | None) -> dict[str, Any]:
    """Trains one run, or goes on with it, and writes its result; in a process of its own.

    Returns:
        The result: `variant`, `fields`, `metrics` (None: it diverged), `seconds`, `run` (versions, images, parameters).
    """
    import torch

    from .run_facts import RESULTS_FILE, read_facts
    from .runs import train
    from .terms import NonFiniteLossError

    torch.set_num_threads(place.threads)
    out = place.work / "runs" / run.key
    resume = bool(checkpoints(out))
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    fields: dict[str, Any] = {"resume": resume} | ({} if cache is None else {"teacher_cache": str(cache)})
    start = time.monotonic()
    try:
        train(_loaded(place, run, **fields))
        results = read_facts(out).results
        metrics: dict[str, Any] | None = {key: value for key, value in results.items() if key.startswith("eval_")}
    except NonFiniteLossError as error:
        logger.warning("%s, seed %s: %s", run.variant, run.fields["seed"], error)
        metrics, results = None, {}
    result = {"variant": run.variant, "fields": dict(run.fields), "metrics": metrics}
    result |= {"seconds": round(time.monotonic() - start, 1), "resumed": resume}
    result |= {name: results[name] for name in ("steps", "epochs", "run") if name in results}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    shutil.rmtree(out, ignore_errors=True)
    logger.debug("%s written beside %s", file, RESULTS_FILE)
    return result


@dataclass(frozen=True)
class Plan:
    """What is to be done: each run with its result's file and its cache, and the first run that needs each cache."""

    runs: Sequence[tuple[Run, Path, Path | None]]
    finished: int

    @property
    def caches(self) -> dict[Path, Run]:
        """The caches, each with a run to build it for."""
        found: dict[Path, Run] = {}
        for run, _, cache in self.runs:
            if cache is not None:
                found.setdefault(cache, run)
        return found


def plan_ablation(ablation: Ablation, place: Place) -> Plan:
    """Says what is to be done; everything is read and checked before the first run.

    Raises:
        AblationError: A variant distils and there is no teacher.
        UserError: A field, the data or the teacher are not allowed.
    """
    from .building import build_teacher
    from .run_data import load_run_data

    runs = {run.key: run for run in ablation.runs()}
    distilling = [run for run in runs.values() if run.distils]
    if distilling and place.teacher is None:
        raise AblationError(f"The variant {distilling[0].variant!r} learns from a teacher: give --teacher.")
    recipes = {key: _loaded(place, run) for key, run in runs.items()}
    data = load_run_data(next(iter(recipes.values()))).train.fingerprint
    teacher = None
    if distilling:
        teacher = build_teacher(recipes[distilling[0].key].teacher).fingerprint()
    plan, finished = [], 0
    for key, run in runs.items():
        file = result_file(place.results, run, data, teacher)
        if file.is_file():
            finished += 1
            continue
        plan.append((run, file, _cache_folder(place, recipes[key], teacher) if run.distils else None))
    return Plan(plan, finished)


def do_ablation(plan: Plan, place: Place, say: Callable[[str], None]) -> None:
    """Builds the caches and does the runs; a run starts as soon as its cache is there.

    Args:
        plan: Of `plan_ablation`.
        place: Likewise.
        say: Gets a line for each that ends.

    Raises:
        UserError: Of the first run that something was wrong with; those that had begun end first.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(place.jobs, mp_context=context) as pool:
        waiting: dict[Future, Path | None] = {
            pool.submit(build_cache, place, run, cache): cache for cache, run in plan.caches.items()
        }
        pending = list(plan.runs)
        built: set[Path | None] = {None}
        try:
            while pending or waiting:
                for run, file, cache in [entry for entry in pending if entry[2] in built]:
                    waiting[pool.submit(do_run, place, run, file, cache)] = None
                pending = [entry for entry in pending if entry[2] not in built]
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    cache, result = waiting.pop(future), future.result()
                    built.add(cache)
                    say(f"cache {cache.name} built" if cache is not None else _line(result))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _line(result: dict[str, Any]) -> str:
    metrics = result["metrics"]
    shown = "diverged" if metrics is None else f"{100 * metrics['eval_accuracy']:.1f} %"
    return f"{result['variant']}, seed {result['fields']['seed']}: {shown} in {result['seconds']:.0f} s"
