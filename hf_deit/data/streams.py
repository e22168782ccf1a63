"""Streamed training images: views of a data set that is read sequentially and shuffled in a buffer.

Streaming is for data sets that are too large to index or to download. tables.py reads the rows, and views.py computes
the views. `NOT_PROMISED` lists the features of an indexed data set that a stream does not support.
"""

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from ..errors import DataError
from ..losses import ProblemType
from .augmentation import Augmentation
from .images import check_policy, read_image
from .sampling import ViewKey, buffer_generator
from .tables import TableReader
from .views import view_row

logger = logging.getLogger(__name__)

NOT_PROMISED = (
    "The training images are streamed. A streamed run cannot be resumed, cannot show several views of an image in an "
    "epoch, and cannot use cached teacher outputs. Its views depend on the number of workers."
)
_MAX_WORKERS = 256
_Row = TypeVar("_Row")


def shuffled(rows: Iterable[_Row], size: int, generator: random.Random) -> Iterator[_Row]:
    """Yield the rows in an order drawn from `generator`, through a buffer of `size` rows.

    A row is yielded at most `size - 1` positions earlier than in the data. A buffer of one row keeps the order.
    """
    buffer: list[_Row] = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        place = generator.randrange(size)
        yield buffer[place]
        buffer[place] = row
    generator.shuffle(buffer)
    yield from buffer


def whole_batches(rows: Iterable[_Row], size: int) -> Iterator[_Row]:
    """Yield the rows in their order, without the last rows if they do not fill a batch of `size`.

    At most `size - 1` rows are held back, and no row of an incomplete batch is ever yielded.
    """
    held: deque[_Row] = deque()
    count = 0
    for row in rows:
        held.append(row)
        count += 1
        if count >= size:
            yield held.popleft()
    for _ in range(len(held) - count % size if count >= size else 0):
        yield held.popleft()


class ViewStream(torch.utils.data.IterableDataset):
    """Iterable data set of training views of a stream.

    A row holds `pixel_values` `(3, height, width)` uint8, `labels` and the `view_key`. In the key of a view, `index` is
    the number of the row before shuffling, and `position` is its position after shuffling. The workers share the rows:
    `datasets` assigns each worker a part of the files, and a worker counts its rows in steps of the number of workers.

    Args:
        reader: Reader of the streamed data set.
        augmentation: The augmentation that computes a view.
        seed: Seed of the run.
        shuffle_buffer: Number of undecoded images in the shuffle buffer. 1 keeps the order of the data.
        batch_size: Number of rows per optimizer step, over all processes and accumulation steps. If the last rows that
            a worker reads in a pass do not fill a batch, they are left out, so that no step has gradients of two
            passes.
        broken_images: What to do if an image cannot be decoded. "skip": leave it out and log a warning. "raise": raise
            a DataError.

    Raises:
        DataError: `shuffle_buffer` or `batch_size` is below 1, or `broken_images` is unknown.
        RecipeError: The augmentation has no `view_size`.
    """

    # The Trainer uses no sampler for a stream. The stream itself yields view keys, with partners next to each other.
    makes_view_keys = True
    # The labels are not known before the rows are read.
    labels = None

    def __init__(
        self,
        reader: TableReader,
        augmentation: Augmentation,
        seed: int,
        shuffle_buffer: int = 1000,
        batch_size: int = 1,
        broken_images: str = "skip",
    ):
        check_policy(broken_images)
        if shuffle_buffer < 1 or batch_size < 1:
            raise DataError(f"shuffle_buffer={shuffle_buffer}, batch_size={batch_size}: both must be at least 1.")
        augmentation.require_view_size()
        self.reader = reader
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.batch_size = batch_size
        self.broken_images = broken_images
        # These tensors are shared with the workers, which may persist from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        # For each worker: the last pass that it completed, counted from 1, and the number of rows that it yielded in
        # that pass.
        self._ended = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        self._yielded = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self.reader.class_names

    @property
    def problem_type(self) -> ProblemType:
        """Problem type: single-label or multi-label."""
        return self.reader.problem_type

    @property
    def unlabelled_images(self) -> int | None:
        """Number of images without a label. None if it is not known before the rows are read."""
        return self.reader.unlabelled_rows

    @property
    def view_size(self) -> tuple[int, int]:
        """`(height, width)` of a view, in pixels."""
        return self.augmentation.require_view_size()

    @property
    def broken_count(self) -> int:
        """Number of images that could not be decoded in the first pass, so far."""
        return int(self._broken.sum())

    def describe(self) -> dict[str, Any]:
        """Return the properties of the data that two runs must have in common to be the same run."""
        return {
            "stream": self.reader.name,
            "classes": list(self.class_names),
            "augmentation": self.augmentation.describe(),
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "broken_images": self.broken_images,
        }

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines order and views. The Trainer calls this at the start of every pass."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of one pass or, in a worker, the worker's share of them.

        Raises:
            DataError: The label of a row is invalid, an image cannot be decoded and `broken_images` is
                "raise", or no worker can fill a batch.
        """
        epoch = int(self._epoch)
        worker = torch.utils.data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        yielded = 0
        for row in whole_batches(self._views(epoch, number, count), self.batch_size):
            yield row
            yielded += 1
        self._check_yielded(yielded, epoch, number, count)

    def _views(self, epoch: int, number: int, count: int) -> Iterator[dict[str, Any]]:
        """Yield the views of the worker with this number, of `count` workers."""
        # `datasets` distributes the files among the workers, so a worker sees and numbers only its own rows.
        rows = ((count * place + number, row) for place, row in enumerate(self.reader.rows()))
        place_after = 0
        for index, (item, label) in shuffled(rows, self.shuffle_buffer, buffer_generator(self.seed, epoch, number)):
            try:
                image = read_image(item, f"Image {index} of {self.reader.name}")
            except DataError as error:
                if self.broken_images == "raise":
                    raise
                self._report(error, epoch, number)
                continue
            # Partners are next to each other in a worker's batch, and no two workers use the same position.
            position = 2 * (count * (place_after // 2) + number) + place_after % 2
            key = ViewKey(epoch, index, 0, position)
            yield view_row(image, label, self.augmentation, self.seed, key)
            place_after += 1

    def _check_yielded(self, yielded: int, epoch: int, number: int, count: int) -> None:
        """Raise a DataError if no worker filled a batch in this pass. The last worker to finish raises it."""
        self._yielded[number % _MAX_WORKERS] = yielded
        self._ended[number % _MAX_WORKERS] = epoch + 1
        if bool((self._ended[:count] == epoch + 1).all()) and int(self._yielded[:count].sum()) == 0:
            raise DataError(
                f"No worker could fill a batch of {self.batch_size} images (per-device batch × processes × gradient "
                f"accumulation steps) in a pass over {self.reader.name}. Each of {count} worker(s) reads a part of the "
                f"rows, and {self.broken_count} image(s) cannot be read. Use a smaller per_device_train_batch_size, "
                "fewer gradient_accumulation_steps or fewer dataloader_num_workers, or set streaming: false."
            )

    def _report(self, error: DataError, epoch: int, worker: int) -> None:
        if epoch == 0:  # later passes read the same images again
            self._broken[worker % _MAX_WORKERS] += 1
            logger.warning("%s It is left out.", error)
