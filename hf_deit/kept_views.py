"""Views that come again, kept in memory: what was decoded and augmented once need not be made a second time.

With `num_views` the same views come every so many epochs, and making one costs more than a small student's step on it. They
are kept as they are, 8-bit, in memory that data workers forked later share; so what a training sees does not change.
"""

import logging
import math
import mmap
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch

from .sampling import ViewKey

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
