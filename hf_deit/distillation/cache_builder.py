"""Building of a teacher cache: runs a teacher on the exact views of a training run and stores its outputs.

The views are made as in training: the keys are those of `data/sampling.py`, the pixels those of `data/views.py`, and
partners are mixed as the trainer mixes them. For each epoch, the teacher first sees the views of the training run, in
the same batches and order. On one machine the outputs are therefore equal to those of the live teacher to the last bit.
After that it sees the views that this training run leaves out (the tail of an epoch, repeats), so that the cache also
serves other batch sizes. `cache_writer.py` writes the files.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.views import EvaluationDataset, ViewDataset, collate
from ..errors import TeacherCacheError
from ..losses import teacher_decisions
from .cache import (
    FORMAT,
    FORMAT_VERSION,
    GUIDANCE,
    OUTPUTS,
    TEACHER_FACTS,
    VALIDATION,
    RecordFormat,
    epoch_name,
    is_finished,
)
from .cache_writer import PART_RECORDS, Batches, CacheWriter, Records
from .guidance import Guidance
from .objective import view_outputs
from .teacher import Teacher
from .view_schedule import ViewSchedule, describe_validation

logger = logging.getLogger(__name__)


def build_teacher_cache(
    folder: str | Path,
    teacher: Teacher,
    schedule: ViewSchedule,
    record_format: RecordFormat,
    epochs: Sequence[int],
    *,
    validation: EvaluationDataset | None = None,
    part_records: int = PART_RECORDS,
    share: tuple[int, int] = (0, 1),
    teacher_name: str | None = None,
    guidance: Guidance | None = None,
    disable_tqdm: bool = False,
) -> CacheWriter:
    """Build a teacher cache, resume its build, or add epochs of views to it.

    Args:
        folder: New or empty folder, or a folder of the same cache.
        teacher: Teacher on its device, aligned with the classes of the data (`Teacher.align`).
        schedule: Views of the training run.
        record_format: What is stored for each view. Its extra arrays must be those of the guidance.
        epochs: Numbers of the epochs of views to build, counted from 0.
        validation: Images whose outputs are stored too, for the teacher's accuracy and the agreement with the teacher.
        part_records: Approximate maximum number of records that are computed again after a build was killed.
        share: Rank of this process and number of processes. Each process builds different epochs.
        teacher_name: Name of the teacher for reports and model cards; it is not part of the identity of the cache.
        guidance: What is stored of the teacher's features for each view, if anything.
        disable_tqdm: Whether to hide the progress bar. Only the first process shows one, on a terminal.

    Returns:
        The writer of the cache.

    Raises:
        TeacherCacheError: If the folder holds another cache, the data set and the record format have different problem
            types, the extra arrays are not those of the guidance, the folder cannot be written, the disk has too little
            space, or an output of the teacher is not finite.
        TeacherError: If the teacher has another problem type than the data.
    """
    _check_problem_type(schedule.dataset, record_format)
    teacher.check_problem_type(schedule.dataset.problem_type)
    if record_format.extra_arrays != (() if guidance is None else guidance.arrays):
        names = ", ".join(array.name for array in record_format.extra_arrays) or "none"
        raise TeacherCacheError(
            f"extra_arrays={names}: build_teacher_cache computes the teacher's logits and the arrays of `guidance`. Give "
            "the record format exactly those (Guidance.arrays), or leave both out."
        )
    manifest = _manifest(teacher, schedule, record_format, validation, teacher_name)
    if guidance is not None:
        manifest[GUIDANCE] = guidance.describe()
    rank, processes = share
    # The first process creates the folder and the manifest; the others find them.
    with contextlib.nullcontext() if processes == 1 else PartialState().main_process_first():
        writer = CacheWriter(folder, manifest, part_records)
        if rank == 0:
            _check_space(writer, schedule.records, [epoch_name(epoch) for epoch in epochs])
    own = list(epochs)[rank::processes]
    total = schedule.records * sum(not is_finished(writer.folder, epoch_name(epoch)) for epoch in own)
    if validation is not None and rank == 0 and not is_finished(writer.folder, VALIDATION):
        total += len(validation)
    start = time.monotonic()
    with tqdm(total=total, unit="view", disable=True if disable_tqdm or rank > 0 else None) as progress:
        count = 0
        if validation is not None and rank == 0:
            count += _store_validation(writer, teacher, validation, schedule, progress)
        for epoch in own:

            def outputs_of(batches: Batches, epoch: int = epoch) -> Iterator[Records]:
                progress.total -= schedule.records - sum(map(len, batches))  # records that an earlier build computed
                return _records(teacher, schedule.loader(epoch, batches), record_format, progress, guidance)

            count += writer.fill(epoch_name(epoch), schedule.batches(epoch), outputs_of)
    seconds = time.monotonic() - start
    logger.info(
        "Stored the teacher's outputs for %d views in %.1f s (%.0f per second).",
        count,
        seconds,
        count / max(seconds, 1e-9),
    )
    return writer


def _records(
    teacher: Teacher,
    loader: Iterable,
    record_format: RecordFormat,
    progress: tqdm,
    guidance: Guidance | None = None,
) -> Iterator[Records]:
    for logits, extra in view_outputs(teacher, loader, guidance):
        progress.update(len(logits))
        yield record_format.encode(logits, **extra)


def _check_space(writer: CacheWriter, records: int, names: Sequence[str]) -> None:
    """State the size of the epochs of views that are not built yet, and refuse to begin if the disk cannot hold them.

    Args:
        writer: Writer of the cache.
        records: Number of views per epoch.
        names: Names of the epochs of views to build.

    Raises:
        TeacherCacheError: If the free disk space is too small.
    """
    per_view = writer.record_format.bytes_per_view
    missing = [name for name in names if not is_finished(writer.folder, name)]
    total = len(missing) * records * per_view
    reserved = sum(writer.reserved_bytes(name) for name in missing)
    free = shutil.disk_usage(writer.folder).free
    logger.info(
        "The cache has %d bytes per view: %s for the %d views to build.",
        per_view,
        _size(total),
        len(missing) * records,
    )
    if total - reserved > free:
        raise TeacherCacheError(
            f"{len(missing)} epoch(s) of {records} views with {per_view} bytes each need {_size(total - reserved)}, but the "
            f"disk of {writer.folder} has {_size(free)} free. Free some space, build fewer epochs of views (--views, with "
            "num_views in the training), or choose another folder."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _check_problem_type(dataset: ViewDataset, record_format: RecordFormat) -> None:
    if dataset.problem_type != record_format.problem_type:
        raise TeacherCacheError(
            f"The data set {dataset.name} has problem_type={str(dataset.problem_type)!r}, but the record format has "
            f"problem_type={str(record_format.problem_type)!r}: give the record format that of the data."
        )


def _manifest(
    teacher: Teacher,
    schedule: ViewSchedule,
    record_format: RecordFormat,
    validation: EvaluationDataset | None,
    teacher_name: str | None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": {"fingerprint": teacher.fingerprint(), "class": type(teacher.model).__name__},
        "layout": record_format.describe(),
        "views": {**schedule.describe(), "records": schedule.records},
        "validation": None if validation is None else describe_validation(validation),
        TEACHER_FACTS: _teacher_facts(teacher, teacher_name),
    }


def _teacher_facts(teacher: Teacher, name: str | None) -> dict[str, Any]:
    """Return facts about a teacher that do not identify the cache."""
    weights = teacher.model.parameters() if isinstance(teacher.model, torch.nn.Module) else ()
    count = sum(weight.numel() for weight in weights)
    return {"name": name, "class": type(teacher.model).__name__, "parameters": count or None}


def _store_validation(
    writer: CacheWriter, teacher: Teacher, dataset: EvaluationDataset, schedule: ViewSchedule, progress: tqdm
) -> int:
    """Store the outputs for the validation images and the teacher's accuracy or, for multi-label data, its F1.

    Returns:
        Number of images whose outputs were computed by this call.
    """
    indices = range(len(dataset))
    batches = [list(indices[start : start + schedule.batch_size]) for start in indices[:: schedule.batch_size]]

    def outputs_of(missing: Batches) -> Iterator[Records]:
        progress.total -= len(dataset) - sum(map(len, missing))
        loader = DataLoader(dataset, batch_sampler=list(missing), collate_fn=collate, num_workers=schedule.workers)
        return _records(teacher, loader, replace(writer.record_format, extra_arrays=()), progress)

    count = writer.fill(VALIDATION, batches, outputs_of)
    metric = "teacher_f1_micro" if writer.record_format.is_multi_label else "teacher_accuracy"
    if metric not in writer.manifest:
        records = np.load(writer.folder / f"{VALIDATION}.npy", mmap_mode="r", allow_pickle=False)
        outputs = writer.record_format.decode({OUTPUTS: records[:]})
        predicted = teacher_decisions(outputs, writer.record_format.problem_type).numpy()
        labels = np.asarray(dataset.labels)
        writer.add_to_manifest(
            **{metric: _f1_micro(predicted, labels) if predicted.ndim == 2 else _accuracy(predicted, labels)}
        )
    return count


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def _f1_micro(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 over all images and classes; 0 if no class is present or predicted."""
    present = labels > 0
    return float(2 * (predicted & present).sum() / max(predicted.sum() + present.sum(), 1))
