"""A teacher cache in a training: is it this training's, how many epochs of views has it, and its answers in the batches.

The answers are looked up where batches are made, in the data workers. The trainer (trainer.py) brings collators and data
sets that are made here to its loaders; what is done with an answer is in losses.py, the files in cache.py.
"""

import logging
import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from ..data.sampling import ViewSampler
from ..data.views import EvaluationDataset
from ..errors import TeacherCacheError
from ..losses import teacher_decisions
from .cache import TeacherCache
from .teacher import Teacher
from .view_schedule import ViewSchedule, describe_validation, describe_views, view_answers

logger = logging.getLogger(__name__)


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
    cache: TeacherCache, teacher: Teacher, views: ViewSchedule, count: int, seed: int | None = None
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
            now = cache.record_format.encode(logits)
            stored = cache.outputs(epoch, batch)
            live = cache.record_format.decode(now)
            same += int((teacher_decisions(stored) == teacher_decisions(live)).sum())
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


# Of the records looked at again, what share may have another decision than the teacher's of now: other batches and devices
# round otherwise. Refused is what such a share does not explain.
_ROUNDED = 0.02
_IMPROBABLE = 0.001


class CachedCollator:
    """Adds to a batch the stored answers to its rows.

    Args:
        collator: Makes the batch of the rows.
        cache: Has the answers; of rows with a `view_key` those to that view, of rows with a `validation_index` those to
            that validation image.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], cache: TeacherCache):
        self.collator = collator
        self.cache = cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        if "validation_index" in rows[0]:
            return batch | self.cache.validation_outputs([row["validation_index"] for row in rows])
        keys = [row["view_key"] for row in rows]  # of one epoch: the sampler begins each with a new batch
        return batch | self.cache.outputs(keys[0].epoch, [key.position for key in keys])


class CachedSampler(ViewSampler):
    """Has an epoch's file checked once, before the data workers that read it are started.

    Args:
        cache: Has the answers.
        **fields: As `ViewSampler`.
    """

    def __init__(self, cache: TeacherCache, **fields: Any):
        super().__init__(**fields)
        self.cache = cache

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of every epoch, before it makes an iterator."""
        super().set_epoch(epoch)
        shown = epoch if self.num_views is None else epoch % self.num_views
        if shown < self.cache.epochs:  # behind the last epoch no row is asked for
            self.cache.check_epoch_file(shown)


class _Indexed(Dataset):
    """Rows of a data set that know their index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "validation_index": index}


class CachedTeacher:
    """The cache of one training, which fits it.

    Args:
        cache: A `TeacherCache`, or its folder.
        schedule: The views of the training; None: an evaluation, or a training that learns from no answer.
        eval_dataset: Of the training; an `EvaluationDataset` must be the cache's, of several by name one.
        distillation_type: Of the training.
        tau: Likewise, of soft distillation.
        is_main_process: Whether this process asks the teacher again, where that is wanted.

    Raises:
        TeacherCacheError: The cache is damaged, or holds answers to something else; every field is named.
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
        self._views = schedule
        _check_record_format(self.cache, distillation_type, tau)
        if schedule is not None:
            self.cache.check("views", describe_views(schedule.dataset, schedule.mixing))
            self.num_views = schedule.num_views
            self._check_length()
        self._check_validation(eval_dataset)

    def _check_validation(self, eval_dataset: Any) -> None:
        """Refuses validation images that are not the cache's; of several sets by name one must be, the others are said."""
        named = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
        named = {name: dataset for name, dataset in named.items() if isinstance(dataset, EvaluationDataset)}
        if not named:
            return
        if self.cache.manifest["validation"] is None:
            raise TeacherCacheError(
                f"{self.cache.folder} was built without validation images: leave eval_dataset out, or build it with them."
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
                "%s has no answers to the images of %s: their evaluation says nothing of the teacher, and its loss is that of "
                "their labels alone.",
                *(self.cache.folder, ", ".join(map(repr, refused))),
            )

    def _check_length(self) -> None:
        """Compares the numbers of views, and has the stored ones come again where there are too few."""
        stored, views = self.cache.epochs, self._views
        if views.records > self.cache.records_per_epoch:
            raise TeacherCacheError(
                f"{self.cache.folder} has {self.cache.records_per_epoch} views an epoch, and this training shows up to "
                f"{views.records} (repeated_augmentation={views.repeats}, global batch {views.global_batch_size}): "
                "lower one of them, or build a cache for it."
            )
        wanted = views.epochs_shown
        if views.num_views is not None and wanted > stored:
            raise TeacherCacheError(
                f"num_views={views.num_views}, and {self.cache.folder} has {stored} epoch(s) of views: set num_views={stored}, or "
                f"extend the cache (hf-deit cache-teacher --views {wanted})."
            )
        if wanted > stored:
            logger.warning(
                "%s has %d epoch(s) of views and the training %d epochs: the views come again every %d epochs (as with "
                "num_views=%d). Extend the cache for views of their own (hf-deit cache-teacher --views %d).",
                *(self.cache.folder, stored, wanted, stored, stored, wanted),
            )
            self.num_views = stored

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before it; of exact answers the live teacher's."""
        teacher: dict[str, Any] = {"fingerprint": self.cache.manifest["teacher"]["fingerprint"]}
        if not self.cache.record_format.is_exact:
            teacher["stored"] = self.cache.manifest["layout"]
        return teacher

    def check_teacher(self, teacher: Teacher, count: int) -> Agreement | None:
        """Compares a live teacher with the one of the cache, and asks it again for `count` records if that is above 0.

        Raises:
            TeacherCacheError: It is another one, or its answers are others.
        """
        self.cache.check_teacher(teacher.fingerprint())
        if count and self._views is None:
            raise TeacherCacheError(
                f"verify_teacher_cache={count} asks the teacher again for views of the training, and this one learns from no stored "
                "answer (an evaluation, or distillation_type='none'): leave it out."
            )
        if not count or not self._verifies:
            return None
        found = verify_teacher_cache(self.cache, teacher, self._views, count)
        logger.info(
            "%d stored answers asked again: %.2f %% have the teacher's decision of now, %.2f %% are equal to the last bit.",
            *(found.records, 100 * found.same_decision, 100 * found.equal),
        )
        differing = round(found.records * (1 - found.same_decision))
        if _chance(differing, found.records) < _IMPROBABLE:
            raise TeacherCacheError(
                f"verify_teacher_cache: of {found.records} stored answers in {self.cache.folder} only "
                f"{100 * found.same_decision:.1f} % have the teacher's decision of now (rounding may change "
                f"{100 * _ROUNDED:.0f} %): the images have changed behind their names and sizes, or the device computes otherwise. "
                "Build the cache again."
            )
        if differing > _ROUNDED * found.records:
            logger.warning(
                "verify_teacher_cache: of %d stored answers %d are not the teacher's decision of now. So few tell little: ask for "
                "more (verify_teacher_cache=1000).",
                *(found.records, differing),
            )
        return found

    def training_collator(self, collator: Callable) -> CachedCollator:
        """Gives a collator of training rows that adds the stored answers; workers that it is copied to check no file again."""
        return CachedCollator(collator, self.cache)

    def evaluation(self, dataset: Any, collator: Callable) -> tuple[Any, Callable]:
        """Gives data set and collator of an evaluation, with stored answers where these are the cache's images."""
        stored = self.cache.manifest["validation"]
        if not isinstance(dataset, EvaluationDataset) or stored is None:
            return dataset, collator
        try:
            self.cache.check("validation", describe_validation(dataset))
        except TeacherCacheError:
            logger.warning("%s has no answers to these images: nothing is said of the teacher.", self.cache.folder)
            return dataset, collator
        self.cache.check_validation_file()
        return _Indexed(dataset), CachedCollator(collator, self.cache)


def _chance(differing: int, records: int) -> float:
    """The probability of at least as many differing records, if each differs with probability `_ROUNDED`."""

    def log_of(count: int) -> float:
        ways = math.lgamma(records + 1) - math.lgamma(count + 1) - math.lgamma(records - count + 1)
        return ways + count * math.log(_ROUNDED) + (records - count) * math.log(1 - _ROUNDED)

    return 1 - math.fsum(math.exp(log_of(count)) for count in range(differing))


def _check_record_format(cache: TeacherCache, distillation_type: str, tau: float) -> None:
    record_format = cache.record_format
    if distillation_type != "soft":
        return
    if record_format.kind == "hard":
        raise TeacherCacheError(
            f"{cache.folder} holds the teacher's decisions only (kind 'hard'), and distillation_type='soft' needs its logits: set "
            "distillation_type='hard', or build a cache with --kind soft."
        )
    if record_format.kind == "top_k" and record_format.tau != tau:
        raise TeacherCacheError(
            f"{cache.folder} holds the {record_format.top_k} largest logits and the rest at tau={record_format.tau}, and distillation_tau is "
            f"{tau}: set it to {record_format.tau}, or build a cache for it (one of all logits serves every tau)."
        )
