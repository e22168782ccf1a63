"""Use of a teacher cache in a training run: checks that the cache fits the run, and adds the cached outputs to the
batches.

The outputs are looked up in the data workers, where the batches are made. The trainer passes the collators, samplers
and data sets of this module to its data loaders. The losses on the outputs are in `losses.py`, the files of a cache in
`cache.py`.
"""

import logging
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.sampling import ViewSampler
from ..data.views import EvaluationDataset
from ..errors import TeacherCacheError
from ..fingerprints import changed_fields, differences
from ..losses import ProblemType, teacher_decisions
from .cache import CACHE_AND_NOW, GUIDANCE, TeacherCache
from .guidance import Guidance, MapShape, TeacherLayers, name_of
from .objective import view_outputs
from .teacher import Teacher
from .view_schedule import ViewSchedule, describe_validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureAgreement:
    """The agreement of the cached features of a layer with those that the teacher computes now.

    Args:
        layer: Name of the teacher's layer.
        same: Share of the records that are the same except for rounding, in [0, 1].
        difference: Largest distance of a record, as a share of its length.
    """

    layer: str
    same: float
    difference: float


@dataclass(frozen=True)
class Agreement:
    """The agreement of cached outputs with those that the teacher computes now.

    Args:
        records: Number of compared records.
        same_decision: Share of the records for which the teacher predicts the cached class or, for multi-label data,
            exactly the cached classes, in [0, 1].
        equal: Share of the records that are equal to the last bit, with guidance including their features.
        features: Agreement of the features that are cached for guidance, by the name of the array.
        logits_difference: Largest difference between a cached logit and the present one; None if the cache has no logits.
    """

    records: int
    same_decision: float
    equal: float
    features: Mapping[str, FeatureAgreement]
    logits_difference: float | None = None

    @property
    def differing(self) -> dict[str, int]:
        """Number of records that differ by more than rounding, by what differs in words; only what differs."""
        by = "" if self.logits_difference is None else f", whose logits differ by up to {self.logits_difference:.3g}"
        shares = {f"the predicted class{by}": self.same_decision}
        for name, found in self.features.items():
            kind = "similarities" if name.startswith("similarity") else "features"
            text = (
                f"the {kind} of layer {found.layer} ({name}), by up to {100 * found.difference:.1f} % of their length"
            )
            shares[text] = found.same
        counts = {text: round(self.records * (1 - same)) for text, same in shares.items()}
        return {text: count for text, count in counts.items() if count}


def verify_teacher_cache(
    cache: TeacherCache,
    teacher: Teacher,
    schedule: ViewSchedule,
    count: int,
    seed: int | None = None,
    guidance: Guidance | None = None,
) -> Agreement:
    """Compute the teacher's outputs again for randomly drawn records and compare them with the cached outputs.

    Args:
        cache: Cache to verify. The caller has already checked that it was built for the views of `schedule`.
        teacher: Teacher on its device, aligned with the classes of the data (`Teacher.align`).
        schedule: Views of the training run.
        count: Number of records. An odd number is rounded up, because partners, which may be mixed, are drawn together.
            If the cache has fewer records, all records are compared.
        seed: Seed of the draw. If None, each call draws other records.
        guidance: What the cache stores for guidance. None: only the logits are compared.

    Raises:
        TeacherCacheError: If `count` is below 1.
    """
    if count < 1:
        raise TeacherCacheError(f"verify_teacher_cache={count}: give a number of records from 1, or 0 to verify none.")
    pairs = cache.records_per_epoch // 2
    total = min(math.ceil(count / 2), cache.epochs * pairs)
    drawn: dict[int, list[int]] = {}
    for number in random.Random(seed).sample(range(cache.epochs * pairs), total):
        position = 2 * (number % pairs)
        drawn.setdefault(number // pairs, []).extend((position, position + 1))
    record_format = cache.record_format
    if guidance is None:
        record_format, cache = replace(record_format, extra_arrays=()), cache.reading(())
    same, equal, distances = [], [], {}
    gaps: list[float] = []
    for epoch, positions in sorted(drawn.items()):
        size = schedule.batch_size
        batches = [positions[start : start + size] for start in range(0, len(positions), size)]
        views = view_outputs(teacher, schedule.loader(epoch, batches), guidance)
        for batch, (logits, extra) in zip(batches, views, strict=True):
            live, stored = record_format.decode(record_format.encode(logits, **extra)), cache.outputs(epoch, batch)
            decisions = [teacher_decisions(outputs, record_format.problem_type) for outputs in (stored, live)]
            same.append(torch.eq(*decisions).reshape(len(batch), -1).all(dim=1).numpy())
            gaps += [(stored[name] - live[name]).abs().max().item() for name in _LOGITS if name in live]
            for name in extra:
                distances.setdefault(name, []).append(_distance(stored[f"teacher_{name}"], live[f"teacher_{name}"]))
            equal.append(
                np.all([(stored[name] == live[name]).reshape(len(batch), -1).all(1).numpy() for name in live], axis=0)
            )
    same, equal = np.concatenate(same), np.concatenate(equal)
    features = {}
    for (name, parts), layer in zip(
        distances.items(), () if guidance is None else guidance.teacher.layers, strict=True
    ):
        distance = torch.cat(parts)
        rounded = (distance <= _SAME_FEATURES).double().mean().item()
        features[name] = FeatureAgreement(name_of(layer), rounded, distance.max().item())
    return Agreement(len(same), same.mean().item(), equal.mean().item(), features, max(gaps, default=None))


_LOGITS = ("teacher_logits", "teacher_top_logits")
# Largest distance between stored and computed features, as a share of their length, that rounding explains.
_SAME_FEATURES = 0.02


def _distance(stored: Tensor, live: Tensor) -> Tensor:
    """Return the distance of each record's features from the stored ones `(batch,)`, as a share of their length."""
    stored, live = (values.float().flatten(1) for values in (stored, live))
    distance = (stored - live).norm(dim=1)
    return torch.where(distance == 0, 0.0, distance / stored.norm(dim=1))


# Share of the records whose predicted class may differ from the cached one, because results are rounded differently in
# other batches and on other devices.
_ROUNDED = 0.02


def most_by_rounding(records: int) -> float:
    """Return the largest number of differing decisions among `records` that rounding may explain.

    If each of n decisions differs with the probability p = `_ROUNDED`, the number of differing decisions has the mean
    pn and a standard deviation of about √(pn). The limit is the mean plus three standard deviations plus 1, so that a
    single differing decision is always allowed.
    """
    expected = _ROUNDED * records
    return expected + 3 * math.sqrt(expected) + 1


class CachedCollator:
    """Collator that adds the cached teacher outputs to a batch.

    Args:
        collator: Collator that makes the batch from the rows.
        cache: Cache with the outputs. For a row with a `validation_index`, the output for this validation image is
            added; for a row with a `view_key`, the output for this view.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], cache: TeacherCache):
        self.collator = collator
        self.cache = cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        if "validation_index" in rows[0]:
            return batch | self.cache.validation_outputs([row["validation_index"] for row in rows])
        keys = [row["view_key"] for row in rows]  # all of one epoch: the sampler begins each epoch with a new batch
        return batch | self.cache.outputs(keys[0].epoch, [key.position for key in keys])


class CachedSampler(ViewSampler):
    """Sampler that checks the files of each epoch once, before the data workers that read them are started.

    Args:
        cache: Cache with the outputs.
        **fields: Arguments of `ViewSampler`.
    """

    def __init__(self, cache: TeacherCache, **fields: Any):
        super().__init__(**fields)
        self.cache = cache

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch and check its files.

        The Trainer calls this method at the start of every epoch, before it creates an iterator.
        """
        super().set_epoch(epoch)
        shown = epoch if self.num_views is None else epoch % self.num_views
        if shown < self.cache.epochs:  # an epoch after the last one may be set, but none of its rows is read
            self.cache.check_epoch_file(shown)


class _Indexed(Dataset):
    """Data set that adds to each row of another data set its index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "validation_index": index}


class CachedTeacher:
    """The teacher cache of one training run, used instead of a live teacher.

    Args:
        cache: A `TeacherCache`, or its folder.
        schedule: Views of the training run. None for an evaluation, or for a run that does not learn from a teacher.
        eval_dataset: Data set that the run evaluates, or several by name. If it has `EvaluationDataset`s, at least one
            of them must have the validation images of the cache.
        distillation_type: `distillation_type` of the run.
        tau: Temperature of soft distillation.
        problem_type: Problem type of the student's labels.
        is_main_process: Whether this is the process that verifies records, if records are to be verified.
        guided: Shape of the map of each guided layer of the student. None: the run has no guidance, and what a cache
            stores for it is not read.
        guidance: `guidance` of the run.
        teacher_layers: Layers of the teacher that the run names. None: those of the cache.

    Raises:
        TeacherCacheError: If the cache is damaged or was built for other data, views or settings. The message names
            each differing field.
    """

    def __init__(
        self,
        cache: TeacherCache | str | os.PathLike,
        schedule: ViewSchedule | None,
        eval_dataset: Any,
        distillation_type: str,
        tau: float,
        problem_type: str = ProblemType.SINGLE_LABEL,
        is_main_process: bool = True,
        guided: Sequence[MapShape] | None = None,
        guidance: str = "none",
        teacher_layers: Sequence[str] | None = None,
    ):
        arrays = () if guided is None else None
        if isinstance(cache, TeacherCache):
            self.cache = cache if arrays is None else cache.reading(arrays)
        else:
            self.cache = TeacherCache(cache, arrays)
        self.guidance = None if guided is None else _guidance_of(self.cache, guided, guidance, teacher_layers)
        self.num_views = None
        self._verifies = is_main_process
        self._schedule = schedule
        _check_problem_type(self.cache, problem_type)
        _check_record_format(self.cache, distillation_type, tau)
        if schedule is not None:
            self.cache.check("views", schedule.describe())
            self.num_views = schedule.num_views
            self._check_length(schedule)
        self._check_validation(eval_dataset)

    def _check_validation(self, eval_dataset: Any) -> None:
        """Check that an evaluation data set has the validation images of the cache.

        If there are several data sets by name, one of them must have these images. The others are named in a warning.
        """
        named = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
        named = {name: dataset for name, dataset in named.items() if isinstance(dataset, EvaluationDataset)}
        if not named:
            return
        if self.cache.manifest["validation"] is None:
            raise TeacherCacheError(
                f"eval_dataset is given, but {self.cache.folder} was built without validation images: leave "
                "eval_dataset out, or build the cache with validation images."
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
                "%s has no outputs for the images of %s: the evaluation of these images reports no teacher metrics, "
                "and its loss is computed from the labels alone.",
                self.cache.folder,
                ", ".join(map(repr, refused)),
            )

    def _check_length(self, schedule: ViewSchedule) -> None:
        """Compare the numbers of views, and repeat the epochs of views of the cache if the run has more epochs."""
        stored, needed = self.cache.epochs, schedule.epochs_shown
        if schedule.records > self.cache.records_per_epoch:
            raise TeacherCacheError(
                f"{self.cache.folder} has {self.cache.records_per_epoch} views per epoch, but this run needs up to "
                f"{schedule.records} ({schedule.per_epoch}): {schedule.advice(self.cache.records_per_epoch)}build a cache in "
                "another folder for this run (hf-deit cache-teacher)."
            )
        if schedule.num_views is not None and needed > stored:
            raise TeacherCacheError(
                f"num_views={schedule.num_views} is given, but {self.cache.folder} has only {stored} epoch(s) of "
                f"views: set num_views={stored}, or extend the cache (hf-deit cache-teacher --views {needed})."
            )
        if needed > stored:
            logger.warning(
                "%s has %d epoch(s) of views, but the run has %d epochs: the views repeat every %d epochs, as with "
                "num_views=%d. To give every epoch its own views, extend the cache (hf-deit cache-teacher --views "
                "%d).",
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
        """The teacher's part of the description that a resumed run must have in common with the run before it.

        If the cached outputs are exact, it is the same as with the live teacher.
        """
        teacher: dict[str, Any] = {"fingerprint": self.cache.manifest["teacher"]["fingerprint"]}
        if not self.cache.record_format.is_exact:
            # The records of guidance are exact, and a run with another guidance is refused by its fields.
            layout = self.cache.manifest["layout"]
            teacher["stored"] = {name: value for name, value in layout.items() if name != "extra_arrays"}
        return teacher

    def check_teacher(self, teacher: Teacher, count: int) -> Agreement | None:
        """Check that a live teacher is the one of the cache, and verify `count` records with it if `count` is above 0.

        Returns:
            The agreement. None if `count` is 0, or if another process verifies the records.

        Raises:
            TeacherCacheError: If it is another teacher, its outputs differ from the cached outputs by more than
                rounding explains, or records are to be verified in a run that does not use the views.
        """
        self.cache.check_teacher(teacher.fingerprint())
        if count and self._schedule is None:
            raise TeacherCacheError(
                f"verify_teacher_cache={count} computes outputs for training views again, but this run does not learn "
                "from the cached outputs (it is an evaluation, or distillation_type='none'): leave "
                "verify_teacher_cache out."
            )
        if not count or not self._verifies:
            return None
        if self.guidance is not None:
            self._check_layers(teacher)
        found = verify_teacher_cache(self.cache, teacher, self._schedule, count, guidance=self.guidance)
        logger.info(
            "%d stored outputs verified: for %.2f %% of them the teacher predicts the same class, and %.2f %% are "
            "equal to the last bit.",
            found.records,
            100 * found.same_decision,
            100 * found.equal,
        )
        for name, features in found.features.items():
            logger.info(
                "%s (layer %s of the teacher): %.2f %% of the stored values are the same except for rounding; the largest "
                "distance is %.2f %% of their length.",
                name,
                features.layer,
                100 * features.same,
                100 * features.difference,
            )
        differing = [f"{text}, for {count} of them" for text, count in found.differing.items()]
        most = max(found.differing.values(), default=0)
        if most > most_by_rounding(found.records):
            raise TeacherCacheError(
                f"verify_teacher_cache: of {found.records} stored outputs in {self.cache.folder}, the teacher now gives other "
                f"values for {'; and '.join(differing)} (rounding may change {100 * _ROUNDED:.0f} %). Either images were "
                "changed while their names and sizes stayed the same, or this device computes differently. Build the cache "
                "again in another folder."
            )
        if most > _ROUNDED * found.records:
            logger.warning(
                "verify_teacher_cache: of %d stored outputs, the teacher now gives other values for %s. This number of "
                "outputs is too small to be evidence of an error: verify more (for example verify_teacher_cache=1000).",
                found.records,
                "; and ".join(differing),
            )
        return found

    def _check_layers(self, teacher: Teacher) -> None:
        """Check that the teacher has the layers of the cache, with maps of the same shapes."""
        stored = self.guidance.teacher
        names = stored.names(stored.layers)
        functions = {name_of(function): function for function in teacher.feature_maps}
        layers = [functions.get(name, name) for name in names]
        found = teacher.find_layers(layers, [shape.grid for shape in self.guidance.student], teacher.view_size)
        self.guidance = replace(self.guidance, teacher=found)
        stated, present = ({GUIDANCE: part} for part in (self.cache.manifest[GUIDANCE], self.guidance.describe()))
        changed = changed_fields(stated, present)
        if changed:
            raise TeacherCacheError(
                f"{self.cache.folder} holds other features of the teacher:\n{differences(changed, *CACHE_AND_NOW)}\nBuild "
                "the cache again in another folder."
            )

    def training_collator(self, collator: Callable) -> CachedCollator:
        """Return a collator of training rows that adds the cached outputs.

        Its copies in the data workers share the record of checked files, so they do not check a file again.
        """
        return CachedCollator(collator, self.cache)

    def evaluation(self, dataset: Any, collator: Callable) -> tuple[Any, Callable]:
        """Return the data set and the collator of an evaluation.

        The collator adds the cached outputs if the data set has the validation images of the cache.
        """
        stored = self.cache.manifest["validation"]
        if not isinstance(dataset, EvaluationDataset) or stored is None:
            return dataset, collator
        try:
            self.cache.check("validation", describe_validation(dataset))
        except TeacherCacheError:
            logger.warning(
                "%s has no outputs for these images, so the evaluation reports no teacher metrics.", self.cache.folder
            )
            return dataset, collator
        self.cache.check_validation_file()
        return _Indexed(dataset), CachedCollator(collator, self.cache)


def _guidance_of(
    cache: TeacherCache,
    guided: Sequence[MapShape],
    kind: str,
    layers: Sequence[str] | None,
) -> Guidance:
    """Return the guidance of a run from what its cache stores.

    Raises:
        TeacherCacheError: If the cache stores nothing for guidance, or something else than the run compares.
    """
    described = cache.manifest.get(GUIDANCE)
    if described is None:
        raise TeacherCacheError(
            f"{cache.folder} holds no features of the teacher:\n  guidance: none in the cache, {kind!r} now\nBuild a cache "
            "with the guidance of this recipe (hf-deit cache-teacher), train with the live teacher, or set "
            "guidance='none'."
        )
    stored = TeacherLayers.from_description(described)
    names = stored.names(layers) if layers is not None else list(stored.layers)
    if names != list(stored.layers) or len(names) != len(guided):
        raise TeacherCacheError(
            f"{cache.folder} holds the features of other layers:\n  guidance.layers: {list(stored.layers)} in the cache, "
            f"{names} now, for {len(guided)} layer(s) of the student\nSet guidance_teacher_layers and "
            "guidance_student_layers as for the cache, or build a cache for this recipe (hf-deit cache-teacher)."
        )
    guidance = Guidance(kind, tuple(guided), stored)
    changed = changed_fields({GUIDANCE: described}, {GUIDANCE: guidance.describe()})
    if changed:
        raise TeacherCacheError(
            f"{cache.folder} was built for another guidance:\n{differences(changed, *CACHE_AND_NOW)}\nUse the kind of "
            "guidance and the student (image_size, patch_size, layers) of the cache, or build a cache for this recipe "
            "(hf-deit cache-teacher)."
        )
    return guidance


def _check_problem_type(cache: TeacherCache, problem_type: str) -> None:
    stored = cache.record_format.problem_type
    if stored != problem_type:
        raise TeacherCacheError(
            f"{cache.folder} holds teacher outputs for other labels:\n  problem_type: {str(stored)!r} in the cache, "
            f"{str(problem_type)!r} now\nTrain on the data of the cache, or build a cache for these data (hf-deit "
            "cache-teacher)."
        )


def _check_record_format(cache: TeacherCache, distillation_type: str, tau: float) -> None:
    stored = cache.record_format
    if distillation_type != "soft":
        return
    if stored.kind == "hard":
        raise TeacherCacheError(
            f"{cache.folder} holds only the classes that the teacher predicts (kind='hard'), but "
            "distillation_type='soft' needs the teacher's logits: set distillation_type='hard', or build a cache "
            "with --kind soft."
        )
    if stored.kind == "top_k" and stored.tau != tau:
        raise TeacherCacheError(
            f"{cache.folder} holds the {stored.top_k} largest logits, and the log-sum-exp of the others at "
            f"tau={stored.tau}, but distillation_tau={tau}: set distillation_tau={stored.tau}, or build a cache for "
            f"{tau} (a cache of all logits serves every tau)."
        )
