"""Data sets of training views and evaluation images, and collators that make batches of them.

`ViewDataset` returns the augmented view for a view key (sampling.py). `EvaluationDataset` returns the pixels of the
evaluation protocol for an index. Images stay 8-bit until they are on the device, where the trainer normalises them for
the student and for the teacher. loading.py and sources.py find the images.

If a training image cannot be decoded, the next readable image of its class is used instead. This is logged once per
image and counted. An unreadable image is never replaced by a black image.
"""

import functools
import logging
import math
import mmap
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import DataError
from ..losses import UNLABELLED, ProblemType
from ..models.image_processing_deit import evaluation_view
from ..models.processor_pixels import pixel_function
from .augmentation import Augmentation
from .batch_ops import Mixing, draw_mixes
from .images import check_policy
from .labels import has_label
from .sampling import ViewKey, pair_generator, view_generator
from .sources import Source
from .tables import Label

logger = logging.getLogger(__name__)

# Views may take this share of the memory that is free when training starts.
_SHARE_OF_MEMORY = 1 / 2
# In bytes. This is far below the memory limit of containers and batch jobs for training. There is no way to read such a
# limit that works on all systems.
DEFAULT_MEMORY_LIMIT = 4_000_000_000
_MEMORY_FILE = Path("/proc/meminfo")


class KeptViews:
    """Memory for views, indexed by view key. The system allocates memory pages only when views are written to them.

    Args:
        num_views: Number of epochs with distinct views.
        images: Number of images.
        repeats: Number of views per image in an epoch.
        view_size: `(height, width)` of a view, in pixels.
        shown_once: Number of further images, after the others, that have one view in an epoch.
    """

    def __init__(self, num_views: int, images: int, repeats: int, view_size: tuple[int, int], shown_once: int = 0):
        self.shape = (num_views, images, repeats, view_size, shown_once)
        places = (num_views, images * repeats + shown_once)
        count = math.prod(places)
        # share_memory_() is not used: it needs /dev/shm, which is small in containers, and a process that exceeds it is
        # killed.
        memory = mmap.mmap(-1, self.bytes_for(*self.shape))
        self._known = torch.frombuffer(memory, dtype=torch.uint8, count=count).view(places)
        pixels = torch.frombuffer(memory, dtype=torch.uint8, offset=count)
        self._pixels = pixels.view(*places, 3, *view_size)

    @staticmethod
    def bytes_for(num_views: int, images: int, repeats: int, view_size: tuple[int, int], shown_once: int = 0) -> int:
        """Return the number of bytes needed: the pixels and one byte per view that marks it as stored."""
        return num_views * (images * repeats + shown_once) * (1 + 3 * math.prod(view_size))

    def _place(self, key: ViewKey) -> tuple[int, int]:
        _, images, repeats, _, _ = self.shape
        if key.index < images:
            return key.epoch, key.index * repeats + key.view
        return key.epoch, images * repeats + key.index - images

    def get(self, key: ViewKey) -> torch.Tensor | None:
        """Return a copy of a view, `(3, height, width)` uint8, or None if it has not been stored."""
        place = self._place(key)
        return self._pixels[place].clone() if self._known[place] else None

    def keep(self, key: ViewKey, pixels: torch.Tensor) -> None:
        """Store a view.

        Several workers may store a view at the same time: they write the same pixels, and mark the view as stored
        afterwards.
        """
        place = self._place(key)
        self._pixels[place] = pixels
        self._known[place] = 1

    def __reduce__(self) -> Any:
        # Workers that are not forked do not share this memory, and a copy per worker would take too much memory.
        return type(None), ()


def free_memory() -> int | None:
    """Return the number of bytes of available memory, or None if /proc/meminfo does not state it.

    The file cache counts as available, because the system frees it when memory is needed. The memory limit of a
    container or of a batch job is not considered. /proc/meminfo exists only on Linux.
    """
    try:
        lines = _MEMORY_FILE.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def memory_for_views(allowed: int, *shape: Any) -> KeptViews | None:
    """Return memory for all views of a run, or log a message and return None if they do not fit.

    Args:
        allowed: Largest number of bytes that the views may take.
        shape: The arguments of `KeptViews`.
    """
    size, num_views = KeptViews.bytes_for(*shape), shape[0]
    if size > allowed:
        logger.info(
            "The %d views of each image would take %.1f GB of memory, and %.1f GB are allowed (half of the free "
            "memory, at most memory_limit, divided by the number of processes and concurrent runs). The views are "
            "computed again each time.",
            num_views,
            size / 1e9,
            allowed / 1e9,
        )
        return None
    logger.info(
        "The %d views of each image are kept in memory after they are computed: %.2f GB.", num_views, size / 1e9
    )
    return KeptViews(*shape)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, height, width) uint8


def view_tensor(image: Image.Image, size: tuple[int, int], crop_ratio: float) -> torch.Tensor:
    """Return the evaluation view of an image before normalisation, `(3, height, width)` in uint8."""
    return _to_tensor(evaluation_view(image, size, crop_ratio))


def view_row(image: Image.Image, label: Label, augmentation: Augmentation, seed: int, key: ViewKey) -> dict[str, Any]:
    """Return the row of one view: `pixel_values` `(3, height, width)` uint8, `labels` and the `view_key`."""
    pixels = _to_tensor(augmentation(image, view_generator(seed, key)))
    return {"pixel_values": pixels, "labels": label, "view_key": key}


class _SourceDataset(torch.utils.data.Dataset):
    """Base class of data sets of the images of a source, with the properties that are known without reading an image.

    Args:
        source: The images.
    """

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Sequence[Label]:
        """Label of each image: a class index or, for multi-label data, zeros and ones `(classes,)`."""
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self.source.class_names

    @property
    def problem_type(self) -> ProblemType:
        """Problem type: single-label or multi-label."""
        return self.source.problem_type

    @property
    def fingerprint(self) -> str:
        """Digest of the images, the labels, their order and the class names."""
        return self.source.fingerprint

    @property
    def name(self) -> str:
        """Name of the data in messages."""
        return self.source.name


class ViewDataset(_SourceDataset):
    """Data set of training views, indexed by view key: `dataset[key]` is the same view in any process and at any time.

    Args:
        source: The images.
        augmentation: The augmentation that computes a view.
        seed: Seed of the run.
        broken_images: What to do if an image cannot be decoded. "skip": use the next readable image with the same
            label, in index order, with the random numbers of the requested key; in multi-label data, if there is none,
            the next readable image with other labels. An image without a label is replaced by the next one without a
            label. "raise": raise a DataError.
        concurrent_trainings: Number of runs that train on this machine at the same time and share its memory, including
            this run.
        memory_limit: Largest number of bytes in which all these runs together keep views that are shown again. Views
            never take more than half of the memory that is free on the machine. Lower the limit in a container or batch
            job of less than 8 GB; raise it for a large data set on a machine with much memory.
        unlabelled: Images without labels beside those of `source`. Their indices follow those of `source`. They need a
            teacher, and `unlabelled_share`. The images of `source` may lack labels too; these belong to an ordinary epoch.
        unlabelled_share: Share in (0, 1) of each global batch that is taken from `unlabelled`.

    Raises:
        DataError: `broken_images` is unknown, `concurrent_trainings` is below 1, `memory_limit` is negative, or only one
            of `unlabelled` and `unlabelled_share` is given.
        RecipeError: The augmentation has no `view_size`.
    """

    # The trainer then creates the sampler that yields the keys.
    takes_view_keys = True

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        seed: int,
        broken_images: str = "skip",
        *,
        concurrent_trainings: int = 1,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        unlabelled: Source | None = None,
        unlabelled_share: float | None = None,
    ):
        check_policy(broken_images)
        if (unlabelled is None) != (unlabelled_share is None):
            raise DataError(
                f"unlabelled={getattr(unlabelled, 'name', None)!r}, unlabelled_share={unlabelled_share}: give both, the images "
                "and their share of each batch, or neither."
            )
        augmentation.require_view_size()
        if concurrent_trainings < 1 or memory_limit < 0:
            raise DataError(
                f"concurrent_trainings={concurrent_trainings}, memory_limit={memory_limit}: concurrent_trainings must "
                "be at least 1. memory_limit must be a number of bytes, at least 0; 0 keeps no views."
            )
        super().__init__(source)
        self.augmentation = augmentation
        self.seed = seed
        self.broken_images = broken_images
        self.concurrent_trainings = concurrent_trainings
        self.memory_limit = memory_limit
        self.unlabelled = unlabelled
        self.unlabelled_share = unlabelled_share
        # 1 for each image that was found unreadable. The tensor is shared with the workers, so that only one worker
        # logs an image and the images of all workers are counted.
        self.broken = torch.zeros(len(self), dtype=torch.uint8).share_memory_()
        self._kept: KeptViews | None = None

    def __len__(self) -> int:
        return len(self.source) + (0 if self.unlabelled is None else len(self.unlabelled))

    @functools.cached_property
    def labels(self) -> Sequence[Label]:
        """Label of each image, see `Source`. An image without a label has `losses.UNLABELLED`."""
        return self.source.labels if self.unlabelled is None else [*self.source.labels, *self._no_labels()]

    def _no_labels(self) -> list[Label]:
        single = self.problem_type == ProblemType.SINGLE_LABEL
        label = UNLABELLED if single else (UNLABELLED,) * len(self.class_names)
        return [label] * len(self.unlabelled)

    @functools.cached_property
    def unlabelled_images(self) -> int:
        """Number of images without a label."""
        return len(self.source.unlabelled_indices) + (0 if self.unlabelled is None else len(self.unlabelled))

    def image(self, index: int) -> Image.Image:
        """Read an image as upright 8-bit RGB.

        Raises:
            DataError: The image cannot be decoded. The message names it.
        """
        if index < len(self.source):
            return self.source.image(index)
        return self.unlabelled.image(index - len(self.source))

    @property
    def view_size(self) -> tuple[int, int]:
        """`(height, width)` of a view, in pixels."""
        return self.augmentation.require_view_size()

    def keep_views(self, num_views: int, repeats: int, processes: int = 1) -> None:
        """Keep computed views in memory from now on, if all of them fit, for runs that show views more than once.

        Args:
            num_views: Number of epochs with distinct views.
            repeats: Largest number of views per image in an epoch; with `unlabelled`, per image of `source`.
            processes: Number of training processes on this machine. Each process keeps its own views.
        """
        shown_once = 0 if self.unlabelled is None else len(self.unlabelled)
        shape = (num_views, len(self.source), repeats, self.view_size, shown_once)
        if self._kept is None or self._kept.shape != shape:
            free = free_memory()
            limit = self.memory_limit if free is None else min(self.memory_limit, int(_SHARE_OF_MEMORY * free))
            allowed = limit // (processes * self.concurrent_trainings)
            self._kept = memory_for_views(allowed, *shape)

    def describe(self) -> dict[str, Any]:
        """Return the properties of the data that must be the same when a run is resumed."""
        described = {
            "fingerprint": self.fingerprint,
            "images": len(self.source),
            "classes": list(self.class_names),
            "augmentation": self.augmentation.describe(),
            "seed": self.seed,
            "broken_images": self.broken_images,
        }
        if self.unlabelled is not None:
            described["unlabelled"] = {
                "fingerprint": self.unlabelled.fingerprint,
                "images": len(self.unlabelled),
                "share": self.unlabelled_share,
            }
        return described

    def __getitem__(self, key: ViewKey) -> dict[str, Any]:
        """Return `pixel_values` `(3, height, width)` uint8, `labels` (a class index, or zeros and ones `(classes,)`)
        and the `view_key` itself.

        Raises:
            TypeError: `key` is not a ViewKey. With an index alone, every epoch would show the same view.
            DataError: The image cannot be read, and `broken_images` is "raise" or no image can replace it.
        """
        if not isinstance(key, ViewKey):
            raise TypeError(
                f"ViewDataset is indexed by the keys of hf_deit.data.sampling.ViewSampler, but got {key!r}. "
                "DistillationTrainer creates this sampler. To get a single view, use dataset[ViewKey(epoch=0, index=…, "
                "view=0, position=0)]."
            )
        kept = None if self._kept is None else self._kept.get(key)
        if kept is not None:
            return {"pixel_values": kept, "labels": self.labels[key.index], "view_key": key}
        if self.broken_images == "raise":
            image, index = self.image(key.index), key.index
        else:
            image, index = self._readable(key.index)
        row = view_row(image, self.labels[index], self.augmentation, self.seed, key)
        if self._kept is not None and index == key.index:  # a substitute may have another label
            self._kept.keep(key, row["pixel_values"])
        return row

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        """Read the image or its substitute. The substitute depends only on the files, so a resumed run uses it too."""
        for candidate in self._candidates(index):
            if self.broken[candidate]:
                continue
            try:
                return self.image(candidate), candidate
            except DataError as error:
                self.broken[candidate] = 1
                kind = "with the same label" if has_label(self.labels[candidate]) else "without a label"
                logger.warning("%s In training, the next readable image %s takes its place.", error, kind)
        label = self.labels[index]
        which = f"of class {self.class_names[label]!r} " if isinstance(label, int) and has_label(label) else ""
        which = which if has_label(label) else "without a label "
        raise DataError(
            f"None of the images {which}of {self.name} can be decoded: repair the images, or leave the class out."
        )

    def _candidates(self, index: int) -> Iterator[int]:
        labels = self.labels
        yield index
        following = [(index + step) % len(labels) for step in range(1, len(labels))]
        yield from (other for other in following if labels[other] == labels[index])
        # Multi-label: it is possible that no other image has this combination.
        if not isinstance(labels[index], int) and has_label(labels[index]):
            yield from (other for other in following if labels[other] != labels[index] and has_label(labels[other]))


class EvaluationDataset(_SourceDataset):
    """Data set of images for an evaluation, indexed by number.

    The student's pixels are computed in one of two ways. With `image_size`, they are the 8-bit pixels (before
    normalisation) that the image processor of the student in training will compute. With `processor`, the saved image
    processor of a model computes them.

    Args:
        source: The images.
        image_size: `(height, width)` of the student, in pixels.
        crop_ratio: Share of the resized image that the centre crop keeps. With `processor`, it is used only for the
            teacher's view.
        view_size: `(height, width)` of the teacher's view, in pixels. None if the teacher sees the student's pixels.
        processor: Image processor of the model, instead of `image_size`.

    Raises:
        DataError: Both `image_size` and `processor` are given, or neither.
    """

    def __init__(
        self,
        source: Source,
        image_size: tuple[int, int] | None = None,
        crop_ratio: float = 0.875,
        view_size: tuple[int, int] | None = None,
        processor: Any = None,
    ):
        if (image_size is None) == (processor is None):
            given = "neither" if processor is None else "both"
            raise DataError(
                f"EvaluationDataset takes either image_size or processor, but {given} of them were given: give "
                "image_size to evaluate a student in training, or processor to evaluate a saved model."
            )
        super().__init__(source)
        self.image_size = image_size
        self.crop_ratio = crop_ratio
        self.view_size = None if view_size == image_size else view_size
        self.processor = processor
        self._own_pixels = None if processor is None else pixel_function(processor)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `pixel_values` `(3, height, width)`, `labels` and, if `view_size` is set, `teacher_pixel_values`.

        The pixels are uint8. With `processor`, `pixel_values` are what the processor returns, usually normalised
        floats.
        """
        image = self.source.image(index)
        if self.processor is None:
            pixels = self._evaluation_pixels(image, self.image_size)
        else:
            pixels = self._own_pixels(image)
        row = {"pixel_values": pixels, "labels": self.labels[index]}
        if self.view_size is not None:
            row["teacher_pixel_values"] = self._evaluation_pixels(image, self.view_size)
        return row

    def _evaluation_pixels(self, image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        return view_tensor(image, size, self.crop_ratio)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows into a batch. Labels may be called `label`. Values may be numbers, lists, arrays or tensors.

    Raises:
        KeyError: A row has no `pixel_values`.
    """
    rows = [{("labels" if name == "label" else name): value for name, value in row.items()} for row in rows]
    if "pixel_values" not in rows[0]:
        raise KeyError(
            f"The training rows have the columns {', '.join(rows[0])} and no 'pixel_values': give the data set a "
            "transform that computes 'pixel_values' (dataset.with_transform), or pass your own data collator."
        )
    columns = [name for name in rows[0] if name in ("pixel_values", "teacher_pixel_values", "labels")]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in columns}


class MixingCollator:
    """Collator that adds `mixes` `(batch, 5)` to a batch, which specify how partners are mixed (batch_ops.py).

    The mixes are drawn from random generators that are seeded by the view keys of the rows. If the rows have no keys,
    the generators are seeded from the global generator of `random`, which torch seeds in every worker. The trainer
    mixes pixels and labels on the device. The size of a batch must be even.

    Args:
        collator: Collator that makes a batch of the rows.
        mixing: Settings of mixup and cutmix.
        seed: Seed of the run.
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
