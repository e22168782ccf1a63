"""From rows to uint8 views, from views to batches.

`ViewDataset` turns a key of sampling.py into one augmented view of a source's image, `EvaluationDataset` an index into the
evaluation protocol's pixels. Images stay 8-bit until they are on the device: the trainer normalises them, for the student
and for the teacher each in its own way. Where images come from is in sources.py.

A training image that turns out to be broken when it is decoded is replaced by the next of its class, reported once and
counted; nothing becomes black.
"""

import logging
import math
import mmap
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from ..errors import DataError
from ..models.image_processing_deit import evaluation_view
from .augmentation import Augmentation
from .batch_ops import Mixing, draw_mixes
from .images import check_policy
from .sampling import ViewKey, pair_generator, view_generator
from .sources import Source

logger = logging.getLogger(__name__)

# Of the memory that is free when a training starts.
_SHARE_OF_MEMORY = 1 / 2
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_trainings = 1


def share_memory(trainings: int) -> None:
    """Says that this process trains beside others: the views of each get their part of the memory.

    Args:
        trainings: At a time, this one among them.
    """
    global _trainings
    _trainings = trainings


class KeptViews:
    """Memory for views by key; pages are taken as they are filled.

    Args:
        num_views: Epochs with distinct views.
        images: Number of images.
        repeats: Views of an image in an epoch.
        view_size: `(height, width)` of a view in pixels.
    """

    def __init__(self, num_views: int, images: int, repeats: int, view_size: tuple[int, int]):
        self.shape = (num_views, images, repeats)
        count = math.prod(self.shape)
        # Not share_memory_(): /dev/shm is small in containers, and what does not fit there ends the process.
        memory = mmap.mmap(-1, _size(self.shape, view_size))
        self._known = torch.frombuffer(memory, dtype=torch.uint8, count=count).view(self.shape)
        pixels = torch.frombuffer(memory, dtype=torch.uint8, offset=count)
        self._pixels = pixels.view(*self.shape, 3, *view_size)

    def get(self, key: ViewKey) -> torch.Tensor | None:
        """Gives a copy of a view, `(3, height, width)` uint8; None if it is not there."""
        place = key.epoch, key.index, key.view
        return self._pixels[place].clone() if self._known[place] else None

    def keep(self, key: ViewKey, pixels: torch.Tensor) -> None:
        """Keeps a view; workers that do so at the same time write the same bytes, and the mark after them."""
        place = key.epoch, key.index, key.view
        self._pixels[place] = pixels
        self._known[place] = 1

    def __reduce__(self) -> Any:
        # Workers that are not forked have no part in it, and memory of their own would be too much.
        return type(None), ()


def _size(shape: tuple[int, int, int], view_size: tuple[int, int]) -> int:
    """Bytes of so many views with their marks."""
    return math.prod(shape) * (1 + 3 * math.prod(view_size))


def free_memory() -> int:
    """The bytes that are free for this process: of the machine, or of the container or batch job if that has a limit (cgroup v2)."""
    free = psutil.virtual_memory().available
    try:
        own = next(line for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")).removeprefix("0::/")
    except (OSError, StopIteration):
        return free
    for folder in (PurePosixPath(own), *PurePosixPath(own).parents):
        try:
            limit, used = (int((_CGROUPS / folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
        free = min(free, max(limit - used + _reclaimable(_CGROUPS / folder / "memory.stat"), 0))
    return free


def _reclaimable(file: Path) -> int:
    """Bytes of a cgroup's `memory.current` that hold files read before, and are given back when something needs them."""
    try:
        counts = dict(line.split() for line in file.read_text().splitlines())
        return int(counts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def memory_for_views(
    num_views: int, images: int, repeats: int, view_size: tuple[int, int], processes: int = 1
) -> KeptViews | None:
    """Gives memory for all views of a training; None, with a word on it, if they would take more than half of what is free.

    Args:
        num_views: As `KeptViews`, and so are the next three.
        processes: That keep as much each.
    """
    size = _size((num_views, images, repeats), view_size)
    allowed = int(_SHARE_OF_MEMORY * free_memory() / (processes * _trainings))
    if size > allowed:
        logger.info(
            "%d views of each image would take %.1f GB, and half of the free memory, shared by the processes, is %.1f GB: they are made anew each time.",
            *(num_views, size / 1e9, allowed / 1e9),
        )
        return None
    logger.info("The %d views of each image are kept in memory as they are made: %.2f GB.", num_views, size / 1e9)
    return KeptViews(num_views, images, repeats, view_size)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, height, width) uint8


def view_row(
    image: Image.Image, label: int | tuple[int, ...], augmentation: Augmentation, seed: int, key: ViewKey
) -> dict[str, Any]:
    """Gives the row of one view: `pixel_values` `(3, height, width)` uint8, `labels` and the `view_key`."""
    pixels = _to_tensor(augmentation(image, view_generator(seed, key)))
    return {"pixel_values": pixels, "labels": label, "view_key": key}


class ViewDataset(torch.utils.data.Dataset):
    """Training images by view key: `dataset[key]` is that view, in any process and at any time.

    Args:
        source: The images.
        augmentation: What makes a view.
        seed: Of the run.
        broken_images: What happens if an image cannot be decoded. "skip": the next readable image with the same label, in
            index order, takes its place, drawn with the generator of the key that was asked for. "raise": DataError.

    Raises:
        DataError: The policy is unknown.
        RecipeError: The augmentation has no `view_size`.
    """

    # The trainer then brings the sampler that yields keys.
    takes_view_keys = True

    def __init__(self, source: Source, augmentation: Augmentation, seed: int, broken_images: str = "skip"):
        check_policy(broken_images)
        augmentation.require_view_size()
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.broken_images = broken_images
        # Which images were found broken, 1 each; shared, so that of several workers one reports and all are counted.
        self.broken = torch.zeros(len(source), dtype=torch.uint8).share_memory_()
        self._kept: KeptViews | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self.source.class_names

    @property
    def view_size(self) -> tuple[int, int]:
        """`(height, width)` of a view, in pixels."""
        return self.augmentation.require_view_size()

    def keep_views(self, num_views: int, repeats: int, processes: int = 1) -> None:
        """Keeps views in memory from now on, if all of them fit there: for trainings in which they come again.

        Args:
            num_views: Epochs with distinct views.
            repeats: The most views of an image in an epoch.
            processes: Of the training on this machine, each of which keeps its own.
        """
        if self._kept is None or self._kept.shape != (num_views, len(self), repeats):
            self._kept = memory_for_views(num_views, len(self), repeats, self.view_size, processes)

    def describe(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before it."""
        return {
            "fingerprint": self.source.fingerprint,
            "images": len(self.source),
            "classes": list(self.class_names),
            "augmentation": asdict(self.augmentation),
            "seed": self.seed,
            "broken_images": self.broken_images,
        }

    def __getitem__(self, key: ViewKey) -> dict[str, Any]:
        """Gives `pixel_values` `(3, height, width)` uint8 and `labels`, the class index, or zeros and ones a class,
        and the `view_key` itself.

        Raises:
            TypeError: `key` is no ViewKey: an index alone would give the same view in every epoch.
            DataError: The image cannot be read, and the policy is "raise" or no other image has its label.
        """
        if not isinstance(key, ViewKey):
            raise TypeError(
                f"ViewDataset takes keys of hf_deit.sampling.ViewSampler and got {key!r}. DistillationTrainer brings the "
                "sampler; to look at one view use dataset[ViewKey(epoch=0, index=…, view=0, position=0)]."
            )
        kept = None if self._kept is None else self._kept.get(key)
        if kept is not None:
            return {"pixel_values": kept, "labels": self.source.labels[key.index], "view_key": key}
        if self.broken_images == "raise":
            image, index = self.source.image(key.index), key.index
        else:
            image, index = self._readable(key.index)
        row = view_row(image, self.source.labels[index], self.augmentation, self.seed, key)
        if self._kept is not None and index == key.index:  # a substitute brings its own label
            self._kept.keep(key, row["pixel_values"])
        return row

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        """Reads the image, or its substitute; which one that is depends on the files alone, so a resumed run has it too."""
        for candidate in self._candidates(index):
            if self.broken[candidate]:
                continue
            try:
                return self.source.image(candidate), candidate
            except DataError as error:
                self.broken[candidate] = 1
                logger.warning("%s In training the next image with the same label takes its place.", error)
        label = self.source.labels[index]
        which = f"of class {self.class_names[label]!r} " if isinstance(label, int) else ""
        raise DataError(
            f"None of the images {which}of {self.source.name} can be decoded: repair them, or remove the class."
        )

    def _candidates(self, index: int) -> Iterator[int]:
        labels = self.source.labels
        yield index
        following = [(index + step) % len(labels) for step in range(1, len(labels))]
        yield from (other for other in following if labels[other] == labels[index])
        if not isinstance(labels[index], int):  # a set of classes may be the only one of its kind
            yield from (other for other in following if labels[other] != labels[index])


class EvaluationDataset(torch.utils.data.Dataset):
    """Images by index, as the saved image processor will show them to the student.

    Args:
        source: The images.
        image_size: `(height, width)` of the student, in pixels.
        crop_ratio: Share of the resized image the centre crop keeps.
        view_size: `(height, width)` for the teacher where it sees another size than the student.
    """

    def __init__(
        self,
        source: Source,
        image_size: tuple[int, int],
        crop_ratio: float = 0.875,
        view_size: tuple[int, int] | None = None,
    ):
        self.source = source
        self.image_size = image_size
        self.crop_ratio = crop_ratio
        self.view_size = None if view_size == image_size else view_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gives `pixel_values` uint8, `labels`, and `teacher_pixel_values` uint8 if the teacher's size differs."""
        image = self.source.image(index)
        item = {
            "pixel_values": _to_tensor(evaluation_view(image, self.image_size, self.crop_ratio)),
            "labels": self.source.labels[index],
        }
        if self.view_size is not None:
            item["teacher_pixel_values"] = _to_tensor(evaluation_view(image, self.view_size, self.crop_ratio))
        return item


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks rows to a batch; takes `label` for `labels`, numbers, lists, arrays and tensors.

    Raises:
        KeyError: A row has no `pixel_values`.
    """
    rows = [{("labels" if name == "label" else name): value for name, value in row.items()} for row in rows]
    if "pixel_values" not in rows[0]:
        raise KeyError(
            f"The training rows have {', '.join(rows[0])} and no 'pixel_values': give the data set a transform that makes "
            "them (dataset.with_transform), or a data collator of your own."
        )
    wanted = [name for name in rows[0] if name in ("pixel_values", "teacher_pixel_values", "labels")]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in wanted}


class MixingCollator:
    """Adds to a batch what its partners share: `mixes` `(batch, 5)`, see batch_ops.py.

    It is drawn from the keys of the rows; without keys from the global generator of `random`, which torch seeds in every
    worker. Pixels and labels are mixed by the trainer, on the device. Batches must be even.

    Args:
        collator: Makes the batch of the rows.
        mixing: How to mix.
        seed: Of the run.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], mixing: Mixing, seed: int):
        self.collator = collator
        self.mixing = mixing
        self.seed = seed

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collator(rows)
        keys = [row.get("view_key") for row in rows[::2]] if isinstance(rows[0], dict) else [None]
        if None in keys:
            generators = [random.Random(random.getrandbits(64)) for _ in rows[::2]]
        else:
            generators = [pair_generator(self.seed, key.epoch, key.position // 2) for key in keys]
        batch["mixes"] = draw_mixes(self.mixing, generators, *batch["pixel_values"].shape[-2:])
        return batch


def known_labels(dataset: Any) -> list[Any] | None:
    """Gives the labels of a keyed data set without opening an image; None where they are not known."""
    return getattr(getattr(dataset, "source", None), "labels", None)
