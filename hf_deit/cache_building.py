"""Runs a teacher over the very views of a training and stores its answers; looks some of them up again.

The views come as in training: keys of sampling.py, pixels of data.py, mixed as in trainer.py. An epoch's views are asked for
in the training's own batches and order first, which makes the answers equal to the last bit on one machine; then what
that training leaves out (the tail, repeats), so that a cache serves other batch sizes too. Files are written by cache_writing.py.
"""

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from .answers import decisions
from .cache_writing import PART_RECORDS, CacheWriter
from .data import EvaluationDataset, MixingCollator, ViewDataset, collate
from .mixing import Mixing, mix_pixels
from .pixels import to_unit_range
from .sampling import ViewKey, ViewSampler, keys_at
from .teacher import Teacher
from .teacher_cache import (
    FORMAT,
    FORMAT_VERSION,
    TEACHER_FACTS,
    VALIDATION,
    Layout,
    TeacherCache,
    TeacherCacheError,
    epoch_name,
    is_finished,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 20.0


@dataclass(frozen=True)
class Views:
    """The views a training shows its teacher, and how it asks for them.

    Args:
        dataset: The training images.
        mixing: Of the training.
        batch_size: Images at a time, of one process; even.
        global_batch_size: Images of an optimizer step.
        repeats: Views of an image in an epoch.
        workers: Processes that make pixels.
        num_views: Epochs with distinct views; None: every epoch of the training has views of its own.
        updates: Optimizer steps of the training; None where no training is planned.
    """

    dataset: ViewDataset
    mixing: Mixing
    batch_size: int
    global_batch_size: int
    repeats: int = 1
    workers: int = 0
    num_views: int | None = None
    updates: int | None = None

    @property
    def epochs_shown(self) -> int:
        """Number of epochs with distinct views that the training shows."""
        epochs = math.ceil(self.updates / self.sampler(0).num_batches)
        return epochs if self.num_views is None else min(self.num_views, epochs)

    def sampler(self, epoch: int) -> ViewSampler:
        """The sampler of the training, at an epoch of views.

        Raises:
            ValueError: An odd batch, or fewer than two images.
        """
        sampler = ViewSampler(
            len(self.dataset), self.global_batch_size, self.dataset.seed, num_views=None, repeats=self.repeats
        )
        sampler.set_epoch(epoch)
        return sampler

    @property
    def records(self) -> int:
        """Number of views of an epoch that get a record: all pairs, all repeats."""
        return 2 * (len(self.dataset) // 2) * self.sampler(0).views_per_image

    def batches(self, epoch: int) -> list[list[int]]:
        """Gives the positions of an epoch of views: the training's own batches, then the rest."""
        shown = [key.position for key in self.sampler(epoch)]
        rest = sorted(set(range(self.records)) - set(shown))
        return [
            part[start : start + self.batch_size]
            for part in (shown, rest)
            for start in range(0, len(part), self.batch_size)
        ]

    def loader(self, epoch: int, batches: Sequence[Sequence[int]]) -> DataLoader:
        """Gives the batches at these positions as the training's loader would."""
        flat = iter(
            keys_at(self.dataset.seed, len(self.dataset), epoch, [position for batch in batches for position in batch])
        )
        keys: list[list[ViewKey]] = [[next(flat) for _ in batch] for batch in batches]
        collator = MixingCollator(collate, self.mixing, self.dataset.seed) if self.mixing.is_on else collate
        return DataLoader(self.dataset, batch_sampler=keys, collate_fn=collator, num_workers=self.workers)


def describe_views(dataset: ViewDataset, mixing: Mixing) -> dict[str, Any]:
    """What changes pixels or their order; without what a training may change freely.

    Raises:
        TeacherCacheError: The data are a stream, or others without views by key.
    """
    if not getattr(dataset, "takes_view_keys", False):
        raise TeacherCacheError(
            f"A teacher cache needs views that come again, and {type(dataset).__name__} has none: its images have no index, or "
            "are augmented by a global generator. Use a ViewDataset (streaming: false)."
        )
    return {"data": dataset.describe(), "mixing": asdict(mixing if mixing.is_on else Mixing())}


def describe_validation(dataset: EvaluationDataset) -> dict[str, Any]:
    """What changes the pixels that a teacher sees of the validation images."""
    return {
        "fingerprint": dataset.source.fingerprint,
        "images": len(dataset),
        "crop_ratio": dataset.crop_ratio,
        "view_size": dataset.view_size or dataset.image_size,
    }


def view_answers(teacher: Teacher, batches: Iterable[dict[str, Tensor]]) -> Iterator[Tensor]:
    """Gives the teacher's logits `(batch, num_labels)` for batches of views as `Views.loader` has them."""
    for batch in batches:
        view = to_unit_range(batch.get("teacher_pixel_values", batch["pixel_values"]).to(teacher.device), 0.0, 1.0)
        yield teacher(mix_pixels(view, batch["mixes"].to(teacher.device)) if "mixes" in batch else view)


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
    views: Views,
    layout: Layout,
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
        layout: What a record holds.
        epochs: Epochs of views, from 0.
        validation: Images whose answers are kept too, for accuracy and agreement; their teacher view counts.
        part_records: Records a killed build asks for again, at most about.
        share: Rank of this process and number of processes: each builds epochs of its own.
        teacher_name: As others may read it; kept to be told, as the class and the size of a model are.

    Raises:
        TeacherCacheError: The folder holds another cache, the disk is full, or an answer is not finite.
    """
    _check_classes(views.dataset)
    manifest = _manifest(teacher, views, layout, validation, teacher_name)
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
                yield layout.encode(logits)

        writer.fill(epoch_name(epoch), views.batches(epoch), ask)
    progress.say_total()
    return writer


def _check_classes(dataset: ViewDataset) -> None:
    if dataset.source.problem_type != "single_label_classification":
        raise TeacherCacheError(
            f"The images of {dataset.source.name} have several classes each, and a teacher's answers are learned from with "
            "one class an image only: train with distillation_type='none'."
        )


def _manifest(
    teacher: Teacher, views: Views, layout: Layout, validation: EvaluationDataset | None, teacher_name: str | None
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": {"fingerprint": teacher.fingerprint(), "class": type(teacher.model).__name__},
        "layout": asdict(layout),
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
    writer: CacheWriter, teacher: Teacher, dataset: EvaluationDataset, views: Views, progress: _Progress
) -> None:
    indices = range(len(dataset))
    batches = [list(indices[start : start + views.batch_size]) for start in indices[:: views.batch_size]]

    def ask(wanted: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        loader = DataLoader(dataset, batch_sampler=list(wanted), collate_fn=collate, num_workers=views.workers)
        progress.expect(sum(map(len, wanted)))
        for logits in view_answers(teacher, loader):
            progress.add(len(logits))
            yield writer.layout.encode(logits)

    writer.fill(VALIDATION, batches, ask)
    if "teacher_accuracy" not in writer.manifest:
        records = np.load(writer.folder / f"{VALIDATION}.npy", mmap_mode="r", allow_pickle=False)
        answers = decisions(writer.layout.decode(records[:])).numpy()
        writer.note(teacher_accuracy=float(np.mean(answers == np.asarray(dataset.source.labels))))


@dataclass(frozen=True)
class Agreement:
    """What a second look at some records gave.

    Args:
        records: Number of records looked at.
        same_decision: Share of them with the teacher's decision of now, in [0, 1].
        equal: Share of them that are the same to the last bit.
    """

    records: int
    same_decision: float
    equal: float


def verify_teacher_cache(
    cache: TeacherCache, teacher: Teacher, views: Views, count: int, seed: int | None = None
) -> Agreement:
    """Asks the teacher again for randomly drawn records.

    Args:
        cache: Whose views have been compared with `views`.
        teacher: Aligned, on its device.
        views: Of the training.
        count: Number of records; partners are drawn together, as they may be mixed.
        seed: Of the draw; None: another one each time.

    Raises:
        TeacherCacheError: `count` is below one.
    """
    if count < 1:
        raise TeacherCacheError(f"verify_teacher_cache={count}: at least 1 record, or 0 to verify nothing.")
    generator = random.Random(seed)
    pairs = cache.records_per_epoch // 2
    drawn: dict[int, list[int]] = {}
    for number in generator.sample(range(cache.epochs * pairs), min(math.ceil(count / 2), cache.epochs * pairs)):
        position = 2 * (number % pairs)
        drawn.setdefault(number // pairs, []).extend((position, position + 1))
    same = equal = total = 0
    for epoch, positions in sorted(drawn.items()):
        batches = [positions[start : start + views.batch_size] for start in range(0, len(positions), views.batch_size)]
        for batch, logits in zip(batches, view_answers(teacher, views.loader(epoch, batches)), strict=True):
            now = cache.layout.encode(logits)
            stored = cache.answers(epoch, batch)
            live = cache.layout.decode(now)
            same += int((decisions(stored) == decisions(live)).sum())
            equal += int(
                torch.stack(
                    [
                        (stored[name] == live[name]).flatten(1).all(1)
                        if live[name].ndim > 1
                        else stored[name] == live[name]
                        for name in live
                    ]
                )
                .all(0)
                .sum()
            )
            total += len(batch)
    return Agreement(total, same / total, equal / total)
