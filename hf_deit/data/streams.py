"""Training images that come one after the other: a data set read from its beginning, shuffled in a buffer, as views.

For data that are too large to index or too far away to copy. The rows come from tables.py, a view is made as in views.py;
which of the promises of keyed views a stream cannot keep is said in `NOT_PROMISED`.
"""

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from ..errors import DataError
from .augmentation import Augmentation
from .images import check_policy, read_image
from .sampling import ViewKey, buffer_generator
from .tables import TableReader
from .views import view_row

logger = logging.getLogger(__name__)

NOT_PROMISED = (
    "The training images are streamed. A stream does not promise an exact resume (it cannot be resumed at all), repeated views "
    "of an image, the same views for another number of workers, nor that a stored teacher answer fits a view again."
)
_MAX_WORKERS = 256
_Row = TypeVar("_Row")


def shuffled(rows: Iterable[_Row], size: int, generator: random.Random) -> Iterator[_Row]:
    """Gives the rows in an order drawn from `generator`: each takes a random place in a buffer of `size` rows.

    A row comes at most `size - 1` places before its own; of a buffer of one row the order is kept.
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
    """Gives the rows in their order without the last ones that do not fill a batch of `size`.

    It runs `size - 1` rows behind, so that none is held longer than needed and none of an unfilled batch is ever given.
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
    """Training views of a stream, as rows of `pixel_values` `(3, height, width)` uint8 and `labels`.

    The key of a view has as index the row's position before the shuffle buffer, as position its place after it. Workers
    share the rows: the stream's files where `datasets` shards them, and count in steps of their number.

    Args:
        reader: Of the streamed data set.
        augmentation: What makes a view.
        seed: Of the run.
        shuffle_buffer: Undecoded images held to be shuffled; 1 keeps the order.
        batch_size: Rows of one optimizer step over all processes and accumulation steps; a worker's rows at the end of a
            pass that do not fill as many are left out, so that no step takes gradients of two passes.
        broken_images: "skip" leaves out and reports an image that cannot be decoded; "raise" stops.

    Raises:
        DataError: A number is below 1, or the policy is none.
    """

    # The Trainer brings no sampler; partners stand side by side in whole batches all the same.
    makes_view_keys = True

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
            raise DataError(f"shuffle_buffer={shuffle_buffer}, batch_size={batch_size}: both are at least 1.")
        augmentation.require_view_size()
        self.reader = reader
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.batch_size = batch_size
        self.broken_images = broken_images
        # Shared, for workers that live on from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        # Of each worker the pass it has ended, counted from 1, and how many rows it gave in it.
        self._ended = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        self._given = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self.reader.class_names

    @property
    def view_size(self) -> tuple[int, int]:
        """`(height, width)` of a view, in pixels."""
        return self.augmentation.require_view_size()

    @property
    def broken_count(self) -> int:
        """Number of images that could not be decoded in the first pass, up to now."""
        return int(self._broken.sum())

    def describe(self) -> dict[str, Any]:
        """What two runs must have in common to be the same."""
        return {
            "stream": self.reader.name,
            "classes": list(self.class_names),
            "augmentation": asdict(self.augmentation),
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "broken_images": self.broken_images,
        }

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of every pass; order and views depend on it."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Gives one pass, or this worker's share of it.

        Raises:
            DataError: A row has no label, an image cannot be decoded and the policy is "raise", or no worker can fill a batch.
        """
        epoch = int(self._epoch)
        worker = torch.utils.data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        given = 0
        for row in whole_batches(self._views(epoch, number, count), self.batch_size):
            yield row
            given += 1
        self._check_given(given, epoch, number, count)

    def _views(self, epoch: int, number: int, count: int) -> Iterator[dict[str, Any]]:
        """Gives the views of worker `number` of `count`."""
        # `datasets` gives a worker a part of the files by itself, so a worker numbers what it is given.
        rows = ((count * place + number, row) for place, row in enumerate(self.reader.rows()))
        running = 0
        for index, (item, label) in shuffled(rows, self.shuffle_buffer, buffer_generator(self.seed, epoch, number)):
            try:
                image = read_image(item, f"Image {index} of {self.reader.name}")
            except DataError as error:
                if self.broken_images == "raise":
                    raise
                self._report(error, epoch, number)
                continue
            # Partners stay side by side in a worker's batch, and no two workers give a position twice.
            position = 2 * (count * (running // 2) + number) + running % 2
            key = ViewKey(epoch, index, 0, position)
            yield view_row(image, label, self.augmentation, self.seed, key)
            running += 1

    def _check_given(self, given: int, epoch: int, number: int, count: int) -> None:
        """Refuses a pass in which no worker filled a batch; the last worker to end finds it out."""
        self._given[number % _MAX_WORKERS] = given
        self._ended[number % _MAX_WORKERS] = epoch + 1
        if bool((self._ended[:count] == epoch + 1).all()) and int(self._given[:count].sum()) == 0:
            raise DataError(
                f"A pass over {self.reader.name} fills no batch of {self.batch_size} images (per-device batch × processes × "
                f"gradient accumulation steps) in any of {count} worker(s), each of which reads a part; {self.broken_count} "
                "image(s) cannot be read. Use a smaller per_device_train_batch_size or gradient_accumulation_steps, fewer "
                "dataloader_num_workers, or leave streaming out."
            )

    def _report(self, error: DataError, epoch: int, worker: int) -> None:
        if epoch == 0:  # a later pass meets the same images again
            self._broken[worker % _MAX_WORKERS] += 1
            logger.warning("%s It is left out.", error)
