"""View keys, random generators and the training sampler.

This module determines which images an epoch shows, which views of them, and which images are mixed, from integers
alone. A view is one augmented version of an image. It is a function of (seed, epoch, index, view). It does not depend
on the global random generators, the batch size, the worker or the process. Therefore a resumed run sees the same
pixels, and teacher outputs can be cached for each view.

The sampler yields view keys instead of indices, so the data set needs no state. The two images that are mixed with each
other are called partners. Partners are at the positions 2k and 2k + 1 of the epoch's list of views. Which images are
partners depends on (seed, epoch mod number of distinct views); the order of the pairs depends on (seed, epoch). Two
views of one image are never partners. All views of an image are in the same global batch, as in the repeated
augmentation of the official code (arXiv:2012.12877, section 6; Hoffer et al., arXiv:1901.09335).

With a set of unlabelled images beside the labelled ones, a share of each global batch is unlabelled (`BatchShares`). An
epoch is one pass over the unlabelled images. The labelled images repeat within it with new views and new partners.

This module does not read images; views.py computes the pixels of a view, and batch_ops.py mixes partners.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class ViewKey(NamedTuple):
    """Key of one view of one image.

    `epoch` is the epoch of the view: the training epoch modulo the number of distinct views. `index` is the row in the
    data set. `view` is the number of the view among the views of the image in this epoch, counted from 0. `position` is
    the position in the epoch's list of views: the partner has the position `position ^ 1`, and the number of the pair
    is `position // 2`.
    """

    epoch: int
    index: int
    view: int
    position: int


def _digest(purpose: str, numbers: tuple[int, ...]) -> int:
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def view_generator(seed: int, key: ViewKey) -> random.Random:
    """Return the random generator of one view. It depends on (seed, epoch, index, view), and not on the position.

    `random.Random` seeded with an integer generates the same numbers on every platform and Python version.
    """
    return random.Random(_digest("view", (seed, key.epoch, key.index, key.view)))


def pair_generator(seed: int, epoch: int, pair: int) -> random.Random:
    """Return the random generator for mixing two partners (λ and box).

    Args:
        seed: Seed of the run.
        epoch: Epoch of the view, as in `ViewKey`.
        pair: Number of the pair: position // 2.
    """
    return random.Random(_digest("pair", (seed, epoch, pair)))


def buffer_generator(seed: int, epoch: int, worker: int) -> random.Random:
    """Return the random generator of a worker's shuffle buffer for one pass over a stream."""
    return random.Random(_digest("buffer", (seed, epoch, worker)))


def permutation(seed: int, epoch: int, size: int, purpose: str = "images") -> np.ndarray:
    """Return a random order of `size` items, `(size,)` int64, which depends only on the arguments.

    The order is obtained by sorting the raw output of the Philox bit generator. NumPy guarantees that this output does
    not change, and gives no such guarantee for `numpy.random.Generator.permutation`. Therefore teacher caches stay
    valid after an upgrade of NumPy.
    """
    raw = np.random.Philox(key=_digest(purpose, (seed, epoch))).random_raw(size)
    return np.argsort(raw, kind="stable")


@dataclass(frozen=True)
class BatchShares:
    """Which images an epoch shows if a share of each global batch is unlabelled, as numbers alone.

    The labelled images have the indices from 0, and the unlabelled images follow them. Partners are two labelled or two
    unlabelled images. An epoch is one pass over the pairs of unlabelled images, rounded down to complete global batches.
    Its labelled pairs come from as many passes over the labelled images as are needed, each with its own partners. The
    number of the pass is the `view` of a key, so an image never has one key twice in an epoch.

    If an epoch needs fewer labelled pairs than there are, the same partners stay together for `rounds` epochs, and each
    of these epochs shows other pairs, so that all of them get their turn.

    Args:
        labelled: Number of labelled images.
        unlabelled: Number of unlabelled images.
        global_batch_size: Number of images per optimizer step, over all processes and accumulation steps.
        share: Share in (0, 1) of the images of a global batch that are unlabelled. It is rounded to whole pairs.

    Raises:
        ValueError: There are fewer than two images of a kind, the global batch is odd or holds no pair of each kind, the
            share is not in (0, 1), or there are fewer unlabelled pairs than a global batch holds.
    """

    labelled: int
    unlabelled: int
    global_batch_size: int
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"unlabelled_share={self.share}: it must be between 0 and 1 (exclusive), for example 0.5.")
        if self.labelled < 2 or self.unlabelled < 2:
            raise ValueError(
                f"There are {self.labelled} labelled and {self.unlabelled} unlabelled training images, but at least 2 of "
                "each kind are needed, because images are paired. Add images, or leave out unlabelled."
            )
        if self.global_batch_size % 2 or self.global_batch_size < 4:
            raise ValueError(
                f"The global batch (per-device batch × processes × accumulation steps) is {self.global_batch_size} images. "
                "With unlabelled images it must be even and at least 4, because a batch holds pairs of both kinds: change "
                "per_device_train_batch_size."
            )
        if not 0 < self.unlabelled_pairs < self.pairs:
            raise ValueError(
                f"unlabelled_share={self.share} of a global batch of {self.global_batch_size} images is "
                f"{2 * self.unlabelled_pairs} images in whole pairs, but a batch needs at least one pair of each kind: use a "
                "share nearer to 0.5, or a larger per_device_train_batch_size."
            )
        if self.unlabelled // 2 < self.unlabelled_pairs:
            raise ValueError(
                f"unlabelled_share={self.share}: a global batch of {self.global_batch_size} images takes "
                f"{2 * self.unlabelled_pairs} unlabelled images, but only {self.unlabelled} are given. Use a smaller "
                "unlabelled_share or per_device_train_batch_size, or give more images."
            )

    @property
    def pairs(self) -> int:
        """Number of pairs in a global batch."""
        return self.global_batch_size // 2

    @property
    def unlabelled_pairs(self) -> int:
        """Number of pairs of unlabelled images in a global batch."""
        return round(self.share * self.pairs)

    @property
    def num_batches(self) -> int:
        """Number of global batches in an epoch."""
        return self.unlabelled // 2 // self.unlabelled_pairs

    @property
    def labelled_pairs_per_epoch(self) -> int:
        """Number of pairs of labelled images in an epoch."""
        return self.num_batches * (self.pairs - self.unlabelled_pairs)

    @property
    def passes(self) -> int:
        """Number of passes over the labelled images in an epoch, of which the last one may be incomplete."""
        return -(-self.labelled_pairs_per_epoch // (self.labelled // 2))

    @property
    def rounds(self) -> int:
        """Number of epochs after which each pair of labelled images was shown; 1 if each epoch shows all of them."""
        return max(1, -(-(self.labelled // 2) // self.labelled_pairs_per_epoch))

    @property
    def records(self) -> int:
        """Number of positions in the list of views of an epoch: those of all pairs in all passes."""
        return 2 * (self.unlabelled // 2) + 2 * (self.labelled // 2) * self.passes

    def share_within(self, records: int) -> float | None:
        """Return the next larger share with which an epoch has at most `records` positions, and the same partners.

        Returns:
            The share; None if there is none for this global batch.
        """
        for unlabelled_pairs in range(self.unlabelled_pairs + 1, min(self.pairs, self.unlabelled // 2 + 1)):
            share = unlabelled_pairs / self.pairs
            # A short text is easier to type. It must be the same number of pairs.
            share = next(
                value
                for digits in (2, 3, 17)
                if round((value := round(share, digits)) * self.pairs) == unlabelled_pairs
            )
            other = replace(self, share=share)
            if other.records <= records and other.rounds == self.rounds:
                return share
        return None

    def keys_of_pair(self, seed: int, epoch: int, number: int) -> tuple[ViewKey, ViewKey]:
        """Return the keys of the two partners of a pair.

        The positions of the unlabelled pairs come first. Neither they nor the positions of the labelled pairs depend on
        the batch size or on the share.

        Args:
            seed: Seed of the run.
            epoch: Epoch of the views.
            number: Number of the pair: position // 2.
        """
        count = self.unlabelled // 2
        if number < count:
            order, place, view, offset = self._partners(seed, epoch, None), number, 0, self.labelled
        else:
            view, place = divmod(number - count, self.labelled // 2)
            order, offset = self._partners(seed, epoch // self.rounds, view), 0
        first, second = (offset + int(index) for index in order[2 * place : 2 * place + 2])
        return ViewKey(epoch, first, view, 2 * number), ViewKey(epoch, second, view, 2 * number + 1)

    def _partners(self, seed: int, epoch: int, labelled_pass: int | None) -> np.ndarray:
        """Return an order of the images of one kind, in which partners are next to each other."""
        if labelled_pass is None:
            return _kept_permutation(seed, epoch, self.unlabelled, "unlabelled")
        return _kept_permutation(seed, epoch, self.labelled, f"labelled {labelled_pass}")

    def order(self, seed: int, epoch: int) -> Iterator[int]:
        """Yield the numbers of the pairs that a training epoch shows, in order. Each global batch has the same shares.

        Args:
            seed: Seed of the run.
            epoch: Epoch of the training.
        """
        unlabelled = iter(permutation(seed, epoch, self.unlabelled // 2, "order of unlabelled").tolist())
        labelled = self._labelled_order(seed, epoch)
        for slot in range(self.num_batches * self.pairs):
            # The pairs of the two kinds are spread evenly over the batch, so that its parts have similar shares.
            place = slot % self.pairs
            before, after = (self.unlabelled_pairs * number // self.pairs for number in (place, place + 1))
            yield next(unlabelled) if after > before else self.unlabelled // 2 + next(labelled)

    def _labelled_order(self, seed: int, epoch: int) -> Iterator[int]:
        count = self.labelled // 2
        turn, place = divmod(epoch, self.rounds)
        for number in range(self.passes):
            order = permutation(seed, turn, count, f"order of labelled {number}").tolist()
            start = place * count // self.rounds
            yield from (number * count + pair for pair in (*order[start:], *order[:start]))


def check_repeats(repeats: int) -> None:
    """Check that views are not repeated in an epoch that has unlabelled images beside the labelled ones.

    Raises:
        ValueError: `repeats` is above 1.
    """
    if repeats > 1:
        raise ValueError(
            f"repeated_augmentation={repeats} with unlabelled images: an epoch already shows several views of the labelled "
            "images. Set repeated_augmentation=1, or leave out unlabelled."
        )


@functools.lru_cache(maxsize=8)
def _kept_permutation(seed: int, epoch: int, size: int, purpose: str) -> np.ndarray:
    return permutation(seed, epoch, size, purpose)


def keys_at(
    seed: int, size: int, epoch: int, positions: Iterable[int], shares: BatchShares | None = None
) -> list[ViewKey]:
    """Return the view keys at the given positions of an epoch's list of views, as `ViewSampler` yields them.

    Args:
        seed: Seed of the run.
        size: Number of images.
        epoch: Epoch of the views.
        positions: Numbers from 0 to 2 · (size // 2) · views per image - 1 or, with `shares`, to its `records` - 1.
        shares: Labelled and unlabelled images, if a share of each batch is unlabelled.
    """
    if shares is not None:
        return [shares.keys_of_pair(seed, epoch, position // 2)[position % 2] for position in positions]
    images, num_pairs = permutation(seed, epoch, size).tolist(), size // 2
    return [
        ViewKey(epoch, images[position % (2 * num_pairs)], position // (2 * num_pairs), position)
        for position in positions
    ]


class ViewSampler(Sampler[ViewKey]):
    """Sampler that yields the keys of an epoch's views in complete global batches, with partners next to each other.

    An epoch has as many views as the data set has images, rounded down to complete global batches. With `repeats` = r,
    an image that is chosen for the epoch appears r times, so about one in r images is chosen (as in the official code).
    If the data set is smaller than a global batch, the epoch is one global batch, which is filled with further views of
    the images. If the number of images is odd, one image has no partner and is left out of that epoch.

    Args:
        size: Number of images.
        global_batch_size: Number of images per optimizer step, over all processes and accumulation steps. It must be
            even with `repeats`. (Mixing also needs even batches; the trainer checks that.)
        seed: Seed of the run.
        num_views: Number N of epochs with distinct views: epoch e shows the views of epoch e mod N. None if every epoch
            has new views.
        repeats: Number of views per image in an epoch (repeated augmentation; paper: 3).
        unlabelled: Number of images of the data set, the last ones, that are a set of unlabelled images beside the
            others. 0 if there is none.
        unlabelled_share: Share of each global batch that these images have, see `BatchShares`.

    Raises:
        ValueError: There are fewer than two images, the global batch is below 1, or odd with `repeats` above 1, or
            `repeats` or `num_views` is below 1; with `unlabelled`, also as in `BatchShares`, or `repeats` is not 1.
    """

    def __init__(
        self,
        size: int,
        global_batch_size: int,
        seed: int,
        num_views: int | None = None,
        repeats: int = 1,
        unlabelled: int = 0,
        unlabelled_share: float | None = None,
    ) -> None:
        if size < 2:
            raise ValueError(f"The training set has {size} image(s). It needs at least 2: add images.")
        if global_batch_size < 1 or (global_batch_size % 2 and repeats > 1):
            raise ValueError(
                f"The global batch (per-device batch × processes × accumulation steps) is {global_batch_size}. It must "
                "be at least 1, and even with repeated views (repeated_augmentation), which come in pairs: use an even "
                "per_device_train_batch_size."
            )
        if repeats < 1 or (num_views is not None and num_views < 1):
            raise ValueError(
                f"repeats={repeats}, num_views={num_views}: both must be at least 1. num_views may also be None, for "
                "new views in every epoch."
            )
        if unlabelled:
            check_repeats(repeats)
        self.size = size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.num_views = num_views
        self.shares = (
            BatchShares(size - unlabelled, unlabelled, global_batch_size, unlabelled_share) if unlabelled else None
        )
        self.num_batches = (
            max(2 * (size // 2) // global_batch_size, 1) if self.shares is None else self.shares.num_batches
        )
        self.repeats = repeats
        self.epoch = 0

    @property
    def views_per_image(self) -> int:
        """Largest number of views per image in an epoch: `repeats`, or more if the data set is smaller than a batch.

        With unlabelled images beside the others, it is the number of views of a labelled image.
        """
        if self.shares is not None:
            return self.shares.passes
        return max(self.repeats, -(-self.global_batch_size // (2 * (self.size // 2))))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines order and views. The Trainer calls this at the start of every epoch."""
        self.epoch = epoch

    @property
    def records(self) -> int:
        """Number of positions in the list of views of an epoch: those of all pairs and all views."""
        return 2 * (self.size // 2) * self.views_per_image if self.shares is None else self.shares.records

    def __len__(self) -> int:
        return self.num_batches * self.global_batch_size

    def __iter__(self) -> Iterator[ViewKey]:
        # The pairs of an odd batch go on in the next one, and the last pair may have one image too many.
        return itertools.islice(self._keys(), len(self))

    def _keys(self) -> Iterator[ViewKey]:
        epoch = self.epoch  # set_epoch may be called for the next epoch before this one has ended
        view_epoch = epoch if self.num_views is None else epoch % self.num_views
        if self.shares is not None:
            for number in self.shares.order(self.seed, epoch):
                yield from self.shares.keys_of_pair(self.seed, view_epoch, number)
            return
        num_pairs = self.size // 2
        images = permutation(self.seed, view_epoch, self.size).tolist()
        for pair, view in self._pairs_of_views(permutation(self.seed, epoch, num_pairs, purpose="order").tolist()):
            # Positions are numbered view by view, so that they do not depend on the batch size or on repeats.
            position = 2 * (view * num_pairs + pair)
            yield ViewKey(view_epoch, images[2 * pair], view, position)
            yield ViewKey(view_epoch, images[2 * pair + 1], view, position + 1)

    def _pairs_of_views(self, pairs: list[int]) -> Iterator[tuple[int, int]]:
        """Yield (pair of images, view). All views of a pair are in the same global batch if that is even."""
        slots = -(-self.global_batch_size // 2)
        if self.repeats * len(pairs) < slots:  # a small data set: further views fill the only batch
            views, extra = divmod(slots, len(pairs))
            for rank, pair in enumerate(pairs):
                yield from ((pair, view) for view in range(views + (rank < extra)))
            return
        remaining = iter(pairs)
        for _ in range(self.num_batches):
            room = slots
            while room:
                pair = next(remaining)
                taken = min(self.repeats, room)  # the last pair of a batch may get fewer views than the others
                yield from ((pair, view) for view in range(taken))
                room -= taken
