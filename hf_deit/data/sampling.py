"""Which image, which view, which partner: everything random about a training image, from integers alone.

A view is one augmented rendering of an image. It is a function of (seed, epoch, index, view) and of nothing else: not of the
global generator, the batch size, the worker or the process. So a resumed run sees the same pixels, and a teacher's output for
a view can be stored and used again.

The sampler yields keys in place of indices, so the data set needs no state. Partners (for mixing) are the positions 2k and
2k+1 of the epoch's list of views. The list of partners depends on (seed, epoch mod number of distinct views), the order of the
pairs on (seed, epoch). Two views of one image are never partners and always stay in one global batch, as in the official code's
repeated augmentation (arXiv:2012.12877, section 6; Hoffer et al., arXiv:1901.09335).

This module knows no images, no tensors of images and no trainer.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class ViewKey(NamedTuple):
    """The name of one view of one image, and its place among the epoch's partners.

    `epoch` is the epoch of the view: the training epoch modulo the number of distinct views. `index` is the row in
    the data set, `view` counts the views of the image within the epoch from 0. `position` is the place in the epoch's list
    of views: the partner's is `position ^ 1`, the pair's number `position // 2`.
    """

    epoch: int
    index: int
    view: int
    position: int


def _digest(purpose: str, numbers: tuple[int, ...]) -> int:
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def view_generator(seed: int, key: ViewKey) -> random.Random:
    """Return the generator from which one view is drawn: a function of (seed, epoch, index, view), not of the position.

    `random.Random` seeded with an integer gives the same numbers on every platform and Python version.
    """
    return random.Random(_digest("view", (seed, key.epoch, key.index, key.view)))


def pair_generator(seed: int, epoch: int, pair: int) -> random.Random:
    """Return the generator for the mixing of two partners (λ, box): `epoch` as in `ViewKey`, `pair` = position // 2."""
    return random.Random(_digest("pair", (seed, epoch, pair)))


def buffer_generator(seed: int, epoch: int, worker: int) -> random.Random:
    """Return the generator for the order of a worker's shuffle buffer in one pass over a stream."""
    return random.Random(_digest("buffer", (seed, epoch, worker)))


def permutation(seed: int, epoch: int, size: int, purpose: str = "images") -> np.ndarray:
    """Return a random order of `size` items, `(size,)` int64, as a function of its arguments.

    It sorts raw output of the Philox bit generator, whose stream NumPy guarantees not to change (the guarantee does not
    include `permutation`), so that stored teacher outputs stay valid after an upgrade.
    """
    raw = np.random.Philox(key=_digest(purpose, (seed, epoch))).random_raw(size)
    return np.argsort(raw, kind="stable")


def keys_at(seed: int, size: int, epoch: int, positions: Iterable[int]) -> list[ViewKey]:
    """Return the keys at some positions of an epoch's list of views, as `ViewSampler` yields them.

    Args:
        seed: Seed of the run.
        size: Number of images.
        epoch: Epoch of the views.
        positions: Numbers from 0 to 2 · (size // 2) · views of an image - 1.
    """
    images, num_pairs = permutation(seed, epoch, size).tolist(), size // 2
    return [
        ViewKey(epoch, images[position % (2 * num_pairs)], position // (2 * num_pairs), position)
        for position in positions
    ]


class ViewSampler(Sampler[ViewKey]):
    """Yields the keys of an epoch's views, partners side by side, in whole global batches.

    An epoch has as many views as the data set has images, without the last ones that do not fill a global batch. With
    `repeats` r a chosen image appears r times, so about one in r images is chosen (as in the official code). A data set
    smaller than a global batch gives one batch, filled with further views of its images. If the number of images is odd, one
    image has no partner and is left out of that epoch.

    Args:
        size: Number of images.
        global_batch_size: Number of images of one optimizer step over all processes and accumulation steps; even.
        seed: Seed of the run.
        num_views: Number N of epochs with distinct views: epoch e shows the views of epoch e mod N again. None if every epoch
            has views of its own.
        repeats: Number of views of an image in an epoch (repeated augmentation: 3 in the paper).

    Raises:
        ValueError: There are fewer than two images, the batch is odd, or a count is below one.
    """

    def __init__(
        self, size: int, global_batch_size: int, seed: int, num_views: int | None = None, repeats: int = 1
    ) -> None:
        if size < 2:
            raise ValueError(f"The training set has {size} image(s): at least 2 are needed.")
        if global_batch_size < 2 or global_batch_size % 2:
            raise ValueError(
                f"The global batch (per-device batch × processes × accumulation steps) is {global_batch_size}: it must be "
                "even, because images are paired. Use an even per_device_train_batch_size."
            )
        if repeats < 1 or (num_views is not None and num_views < 1):
            raise ValueError(
                f"repeats={repeats}, num_views={num_views}: both must be at least 1 (num_views may also be None)."
            )
        self.size = size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.num_views = num_views
        self.num_batches = max(size // global_batch_size, 1)
        self.repeats = repeats
        self.epoch = 0

    @property
    def views_per_image(self) -> int:
        """Largest number of views of one image in an epoch: the repeats, or more if a small data set has to fill a batch."""
        return max(self.repeats, -(-self.global_batch_size // (2 * (self.size // 2))))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which order and views depend. The Trainer calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.global_batch_size

    def __iter__(self) -> Iterator[ViewKey]:
        epoch = self.epoch  # the next epoch may be set before this one has ended
        view_epoch = epoch if self.num_views is None else epoch % self.num_views
        num_pairs = self.size // 2
        images = permutation(self.seed, view_epoch, self.size).tolist()
        for pair, view in self._pairs_of_views(permutation(self.seed, epoch, num_pairs, purpose="order").tolist()):
            # View by view, so that the meaning of a position does not depend on batch size and repeats.
            position = 2 * (view * num_pairs + pair)
            yield ViewKey(view_epoch, images[2 * pair], view, position)
            yield ViewKey(view_epoch, images[2 * pair + 1], view, position + 1)

    def _pairs_of_views(self, pairs: list[int]) -> Iterator[tuple[int, int]]:
        """Yield (pair of images, view). All views of a pair of images are in one global batch."""
        slots = self.global_batch_size // 2
        if self.repeats * len(pairs) < slots:  # a small data set: further views of its images fill the single batch
            views, extra = divmod(slots, len(pairs))
            for rank, pair in enumerate(pairs):
                yield from ((pair, view) for view in range(views + (rank < extra)))
            return
        remaining = iter(pairs)
        for _ in range(self.num_batches):
            room = slots
            while room:
                pair = next(remaining)
                taken = min(self.repeats, room)  # the last pair of a batch may have fewer views than the others
                yield from ((pair, view) for view in range(taken))
                room -= taken
