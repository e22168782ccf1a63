"""Runs a teacher over the very views of a training and stores its answers; looks some of them up again.

The views come as in training: keys of sampling.py, pixels of views.py, mixed as in trainer.py. An epoch's views are asked for
in the training's own batches and order first, which makes the answers equal to the last bit on one machine; then what
that training leaves out (the tail, repeats), so that a cache serves other batch sizes too. Files are written by cache_writer.py.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

from ..data.views import EvaluationDataset, ViewDataset, collate
from ..errors import TeacherCacheError
from ..losses import ProblemType, teacher_decisions
from .cache import FORMAT, FORMAT_VERSION, TEACHER_FACTS, VALIDATION, RecordFormat, epoch_name, is_finished
from .cache_writer import PART_RECORDS, CacheWriter
from .teacher import Teacher
from .view_schedule import ViewSchedule, describe_validation, describe_views, view_answers

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 20.0


class _Progress:
    """Logs how many views a second there are, and how long the rest will take."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._start = self._reported = time.monotonic()

    def expect(self, count: int) -> None:
        """Takes views on that will be asked for; below 0: that will not be, after all."""
        self.total += count

    def add(self, count: int) -> None:
        """Counts views that were asked for."""
        self.done += count
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            rate = self.done / max(now - self._start, 1e-9)
            left = (self.total - self.done) / rate / 60
            logger.info("%d of %d views, %.0f a second, %.1f minutes left.", self.done, self.total, rate, left)

    def say_total(self) -> None:
        seconds = time.monotonic() - self._start
        logger.info("%d views asked in %.1f s, %.0f a second.", self.done, seconds, self.done / max(seconds, 1e-9))


def build_teacher_cache(
    folder: str | Path,
    teacher: Teacher,
    views: ViewSchedule,
    record_format: RecordFormat,
    epochs: Sequence[int],
    validation: EvaluationDataset | None = None,
    part_records: int = PART_RECORDS,
    share: tuple[int, int] = (0, 1),
    teacher_name: str | None = None,
) -> CacheWriter:
    """Builds a cache, goes on with one, or adds epochs of views to it.

    Args:
        folder: New, or of the same cache.
        teacher: On its device, aligned to the data's classes (`Teacher.align`).
        views: Of the training.
        record_format: What a record holds.
        epochs: Epochs of views, from 0.
        validation: Images whose answers are kept too, for accuracy and agreement; their teacher view counts.
        part_records: Records a killed build asks for again, at most about.
        share: Rank of this process and number of processes: each builds epochs of its own.
        teacher_name: As others may read it; kept to be told, as the class and the size of a model are.

    Raises:
        TeacherCacheError: The folder holds another cache, the disk is full, or an answer is not finite.
    """
    _check_classes(views.dataset)
    manifest = _manifest(teacher, views, record_format, validation, teacher_name)
    rank, processes = share
    # The first process makes the folder, the others find it.
    with contextlib.nullcontext() if processes == 1 else PartialState().main_process_first():
        writer = CacheWriter(folder, manifest, part_records)
    own = list(epochs)[rank::processes]
    progress = _Progress()
    progress.expect(views.records * sum(not is_finished(writer.folder, epoch_name(epoch)) for epoch in own))
    if validation is not None and rank == 0:
        _store_validation(writer, teacher, validation, views, progress)
    for epoch in own:

        def ask(batches: Sequence[Sequence[int]], epoch: int = epoch) -> Iterator[np.ndarray]:
            progress.expect(sum(map(len, batches)) - views.records)  # an earlier build's parts are not asked again
            for logits in view_answers(teacher, views.loader(epoch, batches)):
                progress.add(len(logits))
                yield record_format.encode(logits)

        writer.fill(epoch_name(epoch), views.batches(epoch), ask)
    progress.say_total()
    return writer


def _check_classes(dataset: ViewDataset) -> None:
    if dataset.problem_type != ProblemType.SINGLE_LABEL:
        raise TeacherCacheError(
            f"The images of {dataset.name} have several classes each, and a teacher's answers are learned from with "
            "one class an image only: train with distillation_type='none'."
        )


def _manifest(
    teacher: Teacher,
    views: ViewSchedule,
    record_format: RecordFormat,
    validation: EvaluationDataset | None,
    teacher_name: str | None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": {"fingerprint": teacher.fingerprint(), "class": type(teacher.model).__name__},
        "layout": asdict(record_format),
        "views": {**describe_views(views.dataset, views.mixing), "records": views.records},
        "validation": None if validation is None else describe_validation(validation),
        TEACHER_FACTS: _teacher_facts(teacher, teacher_name),
    }


def _teacher_facts(teacher: Teacher, name: str | None) -> dict[str, Any]:
    """What describes a teacher and does not identify it."""
    weights = teacher.model.parameters() if isinstance(teacher.model, torch.nn.Module) else ()
    count = sum(weight.numel() for weight in weights)
    return {"name": name, "class": type(teacher.model).__name__, "parameters": count or None}


def _store_validation(
    writer: CacheWriter, teacher: Teacher, dataset: EvaluationDataset, views: ViewSchedule, progress: _Progress
) -> None:
    indices = range(len(dataset))
    batches = [list(indices[start : start + views.batch_size]) for start in indices[:: views.batch_size]]

    def ask(wanted: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        loader = DataLoader(dataset, batch_sampler=list(wanted), collate_fn=collate, num_workers=views.workers)
        progress.expect(sum(map(len, wanted)))
        for logits in view_answers(teacher, loader):
            progress.add(len(logits))
            yield writer.record_format.encode(logits)

    writer.fill(VALIDATION, batches, ask)
    if "teacher_accuracy" not in writer.manifest:
        records = np.load(writer.folder / f"{VALIDATION}.npy", mmap_mode="r", allow_pickle=False)
        answers = teacher_decisions(writer.record_format.decode(records[:])).numpy()
        writer.add_to_manifest(teacher_accuracy=float(np.mean(answers == np.asarray(dataset.labels))))
