"""The views that a training run shows its teacher: their order, their batches and their description in a manifest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from ..data.batch_ops import Mixing
from ..data.dataset_info import inspect_dataset
from ..data.sampling import ViewKey, ViewSampler, keys_at
from ..data.views import EvaluationDataset, MixingCollator, ViewDataset, collate
from ..errors import TeacherCacheError


@dataclass(frozen=True)
class ViewSchedule:
    """The views that a training run shows its teacher, and their batches.

    Args:
        dataset: The training images.
        mixing: How partners are mixed.
        batch_size: Number of images in a batch of one process; even if partners are mixed.
        global_batch_size: Number of images in an optimizer step.
        repeats: Number of views of each image per epoch.
        workers: Number of data worker processes that render views.
        num_views: Number of epochs with distinct views. If None, every epoch of the run has its own views.
        updates: Number of optimizer steps of the run. None if no training is planned.
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
        """Number of distinct epochs of views that the run shows. It requires `updates`."""
        epochs = math.ceil(self.updates / self.sampler(0).num_batches)
        return epochs if self.num_views is None else min(self.num_views, epochs)

    def sampler(self, epoch: int) -> ViewSampler:
        """Return the sampler of the run, set to an epoch of views.

        Raises:
            ValueError: If the global batch size is odd with repeats, or the data set has fewer than two images.
        """
        sampler = ViewSampler(
            len(self.dataset),
            self.global_batch_size,
            self.dataset.seed,
            num_views=None,
            repeats=self.repeats,
            **inspect_dataset(self.dataset).sampler_fields,
        )
        sampler.set_epoch(epoch)
        return sampler

    @property
    def records(self) -> int:
        """Number of views per epoch of views that get a record: those of all pairs and all repeats."""
        return self.sampler(0).records

    @property
    def per_epoch(self) -> str:
        """The fields that decide the number of views per epoch, for messages."""
        shares = self.sampler(0).shares
        field = f"repeated_augmentation={self.repeats}" if shares is None else f"unlabelled_share={shares.share:g}"
        return f"{field}, global batch size {self.global_batch_size}"

    def advice(self, records: int) -> str:
        """Return how to need at most `records` views per epoch, as the beginning of a sentence; empty if it is impossible."""
        shares = self.sampler(0).shares
        if shares is not None:
            # Labelled images repeat, and how often depends on their share of a batch.
            share = shares.share_within(records)
            return "" if share is None else f"set unlabelled_share={share:g}, or "
        images = 2 * (len(self.dataset) // 2)
        views = records // images  # per image
        changes = []
        if self.repeats > views:
            changes.append(f"set repeated_augmentation={views}")
        if self.global_batch_size > views * images:
            changes.append(f"use a global batch of at most {views * images} images (per_device_train_batch_size)")
        return f"{' and '.join(changes)}, or " if views and changes else ""

    def describe(self) -> dict[str, Any]:
        """Return `describe_views` of these views."""
        has_shares = bool(inspect_dataset(self.dataset).extra_unlabelled)
        return describe_views(self.dataset, self.mixing, self.sampler(0).shares.rounds if has_shares else 1)

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the positions of an epoch of views in batches: first those of the run, then the remaining ones."""
        shown = [key.position for key in self.sampler(epoch)]
        rest = sorted(set(range(self.records)) - set(shown))
        return [
            part[start : start + self.batch_size]
            for part in (shown, rest)
            for start in range(0, len(part), self.batch_size)
        ]

    def loader(self, epoch: int, batches: Sequence[Sequence[int]]) -> DataLoader:
        """Return a loader of the batches at these positions. The batches are equal to those of the run's own loader."""
        positions = [position for batch in batches for position in batch]
        shares = self.sampler(epoch).shares
        flat = iter(keys_at(self.dataset.seed, len(self.dataset), epoch, positions, shares))
        keys: list[list[ViewKey]] = [[next(flat) for _ in batch] for batch in batches]
        collator = MixingCollator(collate, self.mixing, self.dataset.seed) if self.mixing.is_on else collate
        return DataLoader(self.dataset, batch_sampler=keys, collate_fn=collator, num_workers=self.workers)


def describe_views(dataset: ViewDataset, mixing: Mixing, rounds: int = 1) -> dict[str, Any]:
    """Return everything that determines the pixels of the views and their order, and nothing else.

    Settings that a run may change while it uses the same cache are therefore not included.

    Args:
        dataset: The training images.
        mixing: How partners are mixed.
        rounds: Number of epochs for which labelled partners stay together, see `sampling.BatchShares`.

    Raises:
        TeacherCacheError: If the data set is a stream, or does not take view keys for another reason.
    """
    if not inspect_dataset(dataset).takes_view_keys:
        raise TeacherCacheError(
            f"A teacher cache needs views that can be rendered again, but {type(dataset).__name__} does not take view "
            "keys: its images have no index, or are augmented with a global random generator. Use a ViewDataset "
            "(streaming: false)."
        )
    data = dataset.describe()
    if "unlabelled" in data:
        # The share decides how many of the views a run shows, but not which pixels they have.
        unlabelled = {name: value for name, value in data["unlabelled"].items() if name != "share"}
        data["unlabelled"] = unlabelled | ({"labelled_pass_epochs": rounds} if rounds > 1 else {})
    return {"data": data, "mixing": mixing.describe()}


def describe_validation(dataset: EvaluationDataset) -> dict[str, Any]:
    """Return everything that determines the pixels of the validation images that the teacher sees."""
    return {
        "fingerprint": dataset.fingerprint,
        "images": len(dataset),
        "crop_ratio": dataset.crop_ratio,
        "view_size": dataset.view_size or dataset.image_size,
    }
