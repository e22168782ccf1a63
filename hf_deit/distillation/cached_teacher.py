"""Uses a teacher cache in a training: checks that it belongs to the training, and adds the stored outputs to the batches.

The outputs are looked up in the data workers, where batches are made. The trainer gives its loaders the collators, samplers and
data sets that are made here. What is learned from the outputs is in `losses.py`, the files are in `cache.py`.
"""

import logging
import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..data.sampling import ViewSampler
from ..data.views import EvaluationDataset
from ..errors import TeacherCacheError
from ..losses import teacher_decisions
from .cache import TeacherCache
from .objective import view_logits
from .teacher import Teacher
from .view_schedule import ViewSchedule, describe_validation, describe_views

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """The agreement of stored outputs with the teacher's present ones.

    Args:
        records: Number of records compared.
        same_decision: Share of them with the class that the teacher predicts now, in [0, 1].
        equal: Share of them that are equal to the last bit.
    """

    records: int
    same_decision: float
    equal: float


def verify_teacher_cache(
    cache: TeacherCache, teacher: Teacher, schedule: ViewSchedule, count: int, seed: int | None = None
) -> Agreement:
    """Compute the teacher's outputs again for randomly drawn records.

    Args:
        cache: Whose views have been compared with `schedule`.
        teacher: Aligned, on its device.
        schedule: Views of the training.
        count: Number of records. Partners are drawn together, as they may be mixed.
        seed: Of the draw; None: another draw each time.

    Raises:
        TeacherCacheError: If `count` is below 1.
    """
    if count < 1:
        raise TeacherCacheError(f"verify_teacher_cache={count}: give at least 1 record, or 0 to verify nothing.")
    pairs = cache.records_per_epoch // 2
    total = min(math.ceil(count / 2), cache.epochs * pairs)
    drawn: dict[int, list[int]] = {}
    for number in random.Random(seed).sample(range(cache.epochs * pairs), total):
        position = 2 * (number % pairs)
        drawn.setdefault(number // pairs, []).extend((position, position + 1))
    record_format = replace(cache.record_format, extra_arrays=())  # the teacher gives logits only
    same, equal = [], []
    for epoch, positions in sorted(drawn.items()):
        size = schedule.batch_size
        batches = [positions[start : start + size] for start in range(0, len(positions), size)]
        for batch, logits in zip(batches, view_logits(teacher, schedule.loader(epoch, batches)), strict=True):
            live, stored = record_format.decode(record_format.encode(logits)), cache.outputs(epoch, batch)
            same.append((teacher_decisions(stored) == teacher_decisions(live)).numpy())
            equal.append(
                np.all([(stored[name] == live[name]).reshape(len(batch), -1).all(1).numpy() for name in live], axis=0)
            )
    same, equal = np.concatenate(same), np.concatenate(equal)
    return Agreement(len(same), same.mean().item(), equal.mean().item())


# Share of the records whose predicted class may differ from the stored one because other batches and devices round otherwise.
_ROUNDED = 0.02


def most_by_rounding(records: int) -> float:
    """Return the number of differing decisions among `records` up to which rounding may explain them.

    If each decision differs with the probability p = `_ROUNDED`, their number has the mean pn and a standard deviation of
    about √(pn). The limit is three of these above the mean, and one more, so that a single one is never too many.
    """
    expected = _ROUNDED * records
    return expected + 3 * math.sqrt(expected) + 1


class CachedCollator:
    """Adds the stored teacher outputs to a batch.

    Args:
        collator: Makes the batch of the rows.
        cache: Provides the outputs: for rows with a `view_key` those for that view, for rows with a `validation_index`
            those for that validation image.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], cache: TeacherCache):
        self.collator = collator
        self.cache = cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        if "validation_index" in rows[0]:
            return batch | self.cache.validation_outputs([row["validation_index"] for row in rows])
        keys = [row["view_key"] for row in rows]  # of one epoch: the sampler begins each epoch with a new batch
        return batch | self.cache.outputs(keys[0].epoch, [key.position for key in keys])


class CachedSampler(ViewSampler):
    """Checks the files of an epoch once, before the data workers that read them are started.

    Args:
        cache: Provides the outputs.
        **fields: As for `ViewSampler`.
    """

    def __init__(self, cache: TeacherCache, **fields: Any):
        super().__init__(**fields)
        self.cache = cache

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this at the start of every epoch, before it makes an iterator."""
        super().set_epoch(epoch)
        shown = epoch if self.num_views is None else epoch % self.num_views
        if shown < self.cache.epochs:  # after the last epoch no row is read
            self.cache.check_epoch_file(shown)


class _Indexed(Dataset):
    """Adds its index to each row of a data set."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "validation_index": index}


class CachedTeacher:
    """The teacher cache of one training, in place of its teacher.

    Args:
        cache: A `TeacherCache`, or its folder.
        schedule: Views of the training; None for an evaluation, or a training that does not learn from a teacher.
        eval_dataset: Of the training. An `EvaluationDataset` must be the cache's; of several by name at least one must be.
        distillation_type: Of the training.
        tau: Temperature of soft distillation.
        is_main_process: Whether this process verifies records, if some are to be verified.

    Raises:
        TeacherCacheError: If the cache is damaged or was built for something else; each differing field is named.
    """

    def __init__(
        self,
        cache: TeacherCache | str | os.PathLike,
        schedule: ViewSchedule | None,
        eval_dataset: Any,
        distillation_type: str,
        tau: float,
        is_main_process: bool = True,
    ):
        self.cache = cache if isinstance(cache, TeacherCache) else TeacherCache(cache)
        self.num_views = None
        self._verifies = is_main_process
        self._schedule = schedule
        _check_record_format(self.cache, distillation_type, tau)
        if schedule is not None:
            self.cache.check("views", describe_views(schedule.dataset, schedule.mixing))
            self.num_views = schedule.num_views
            self._check_length(schedule)
        self._check_validation(eval_dataset)

    def _check_validation(self, eval_dataset: Any) -> None:
        """Check that the validation images are the cache's; of several sets by name one must be, and others are reported."""
        named = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
        named = {name: dataset for name, dataset in named.items() if isinstance(dataset, EvaluationDataset)}
        if not named:
            return
        if self.cache.manifest["validation"] is None:
            raise TeacherCacheError(
                f"{self.cache.folder} was built without validation images: leave eval_dataset out, or build the cache with them."
            )
        refused = {}
        for name, dataset in named.items():
            try:
                self.cache.check("validation", describe_validation(dataset))
            except TeacherCacheError as error:
                refused[name] = error
        if len(refused) == len(named):
            raise next(iter(refused.values()))
        if refused:
            logger.warning(
                "%s has no outputs for the images of %s: their evaluation has no figures of the teacher, and their loss is that "
                "of the labels alone.",
                self.cache.folder,
                ", ".join(map(repr, refused)),
            )

    def _check_length(self, schedule: ViewSchedule) -> None:
        """Compare the numbers of views, and repeat the stored epochs of views where there are too few."""
        stored, needed = self.cache.epochs, schedule.epochs_shown
        if schedule.records > self.cache.records_per_epoch:
            raise TeacherCacheError(
                f"{self.cache.folder} has {self.cache.records_per_epoch} views an epoch, and this training shows up to "
                f"{schedule.records} (repeated_augmentation={schedule.repeats}, global batch {schedule.global_batch_size}): "
                "lower one of them, or build a cache for it."
            )
        if schedule.num_views is not None and needed > stored:
            raise TeacherCacheError(
                f"num_views={schedule.num_views}, and {self.cache.folder} has {stored} epoch(s) of views: set num_views={stored}, "
                f"or extend the cache (hf-deit cache-teacher --views {needed})."
            )
        if needed > stored:
            logger.warning(
                "%s has %d epoch(s) of views and the training %d epochs: the views repeat every %d epochs (as with "
                "num_views=%d). To give every epoch its own views, extend the cache (hf-deit cache-teacher --views %d).",
                self.cache.folder,
                stored,
                needed,
                stored,
                stored,
                needed,
            )
            self.num_views = stored

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run before it; for exact outputs that of the live teacher."""
        teacher: dict[str, Any] = {"fingerprint": self.cache.manifest["teacher"]["fingerprint"]}
        if not self.cache.record_format.is_exact:
            teacher["stored"] = self.cache.manifest["layout"]
        return teacher

    def check_teacher(self, teacher: Teacher, count: int) -> Agreement | None:
        """Check that a live teacher is the one of the cache, and verify `count` records with it if that is above 0.

        Returns:
            The agreement; None if no record is verified, or not in this process.

        Raises:
            TeacherCacheError: If it is another teacher, or its outputs differ from the stored ones.
        """
        self.cache.check_teacher(teacher.fingerprint())
        if count and self._schedule is None:
            raise TeacherCacheError(
                f"verify_teacher_cache={count} computes views of the training again, and this run does not learn from stored "
                "outputs (it is an evaluation, or distillation_type='none'): leave it out."
            )
        if not count or not self._verifies:
            return None
        found = verify_teacher_cache(self.cache, teacher, self._schedule, count)
        logger.info(
            "%d stored outputs verified: for %.2f %% the teacher predicts the same class, %.2f %% are equal to the last bit.",
            found.records,
            100 * found.same_decision,
            100 * found.equal,
        )
        differing = round(found.records * (1 - found.same_decision))
        if differing > most_by_rounding(found.records):
            raise TeacherCacheError(
                f"verify_teacher_cache: for only {100 * found.same_decision:.1f} % of {found.records} stored outputs in "
                f"{self.cache.folder} the teacher predicts the same class (rounding may change {100 * _ROUNDED:.0f} %). Images "
                "were changed while their names and sizes stayed the same, or the device computes differently: build the cache "
                "again in another folder."
            )
        if differing > _ROUNDED * found.records:
            logger.warning(
                "verify_teacher_cache: of %d stored outputs %d have another class than the teacher predicts. So few are little "
                "evidence: verify more (verify_teacher_cache=1000).",
                found.records,
                differing,
            )
        return found

    def training_collator(self, collator: Callable) -> CachedCollator:
        """Return a collator of training rows that adds the stored outputs; its copies in workers check no file again."""
        return CachedCollator(collator, self.cache)

    def evaluation(self, dataset: Any, collator: Callable) -> tuple[Any, Callable]:
        """Return data set and collator of an evaluation, with stored outputs if these are the cache's validation images."""
        stored = self.cache.manifest["validation"]
        if not isinstance(dataset, EvaluationDataset) or stored is None:
            return dataset, collator
        try:
            self.cache.check("validation", describe_validation(dataset))
        except TeacherCacheError:
            logger.warning(
                "%s has no outputs for these images: there are no figures of the teacher.", self.cache.folder
            )
            return dataset, collator
        self.cache.check_validation_file()
        return _Indexed(dataset), CachedCollator(collator, self.cache)


def _check_record_format(cache: TeacherCache, distillation_type: str, tau: float) -> None:
    stored = cache.record_format
    if distillation_type != "soft":
        return
    if stored.kind == "hard":
        raise TeacherCacheError(
            f"{cache.folder} holds the teacher's predicted classes only (kind 'hard'), and distillation_type='soft' needs its "
            "logits: set distillation_type='hard', or build a cache with --kind soft."
        )
    if stored.kind == "top_k" and stored.tau != tau:
        raise TeacherCacheError(
            f"{cache.folder} holds the {stored.top_k} largest logits and the rest at tau={stored.tau}, and distillation_tau is "
            f"{tau}: set it to {stored.tau}, or build a cache for it (a cache of all logits serves every tau)."
        )
