"""Operations on a batch: mixup and cutmix with soft labels, normalising and resizing.

Partners, the two images that are mixed with each other, are next to each other in the batch (rows 2k and 2k + 1).
sampling.py determines them. The worker that collates the batch draws λ and the box as five numbers per image, from the
random generator of the pair, which depends on seed, epoch and pair (sampling.py). The pixels are mixed on the device.
Therefore a mixed image does not depend on the batch size, the workers or the processes.

mixup: Zhang et al., arXiv:1710.09412; cutmix: Yun et al., arXiv:1905.04899; both in DeiT: arXiv:2012.12877, section 6.
"""

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..fingerprints import describe_fields

# Columns of a batch's `mixes`: the share of the image itself outside the box, and the sides of the box as shares of the
# height or width of the view.
MIX_COLUMNS = ("share", "top", "bottom", "left", "right")
# Fields of hf_deit 0.1. Every description of views contains them.
_FIELDS_OF_0_1 = ("mixup_alpha", "cutmix_alpha", "probability", "switch_probability")
_UNMIXED = (1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Mixing:
    """Settings of mixup and cutmix. If both are on, each pair is mixed by one of them.

    Args:
        mixup_alpha: α of λ ~ Beta(α, α) for mixup. 0 turns mixup off (paper: 0.8).
        cutmix_alpha: α of λ ~ Beta(α, α) for cutmix, where λ is the share of the image that stays. 0 turns cutmix off
            (paper: 1.0).
        probability: Probability that a pair is mixed (paper: 1).
        switch_probability: Probability of cutmix instead of mixup if both are on (paper: 0.5).

    Raises:
        ValueError: A value is out of range.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)}: it must be finite and at least 0; 0 turns it off (paper: "
                    "mixup_alpha 0.8, cutmix_alpha 1.0)."
                )
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mix_{name}={getattr(self, name)}: it must be in [0, 1].")

    def describe(self) -> dict[str, Any]:
        """Return the fields that describe the views. The description is written to files and compared later.

        If no pair can be mixed, the description is that of `Mixing()`.
        """
        return describe_fields(self if self.is_on else Mixing(), always=_FIELDS_OF_0_1)

    @property
    def is_on(self) -> bool:
        """Return whether any pair can be mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def draw(self, generator: random.Random, height: int, width: int) -> tuple[float, ...]:
        """Draw how two partners are mixed.

        Args:
            generator: Random generator of the pair.
            height: Height of the view, in pixels.
            width: Width of the view, in pixels.

        Returns:
            The values of `MIX_COLUMNS`. For mixup, the box is empty. For cutmix, the share outside the box is 1.
        """
        if not self.is_on or generator.random() >= self.probability:
            return _UNMIXED
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cuts = generator.random() < self.switch_probability if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        share = generator.betavariate(alpha, alpha)
        if not cuts:
            return share, 0.0, 0.0, 0.0, 0.0
        top, bottom, left, right = _box(share, height, width, generator)
        return 1.0, top / height, bottom / height, left / width, right / width


def _box(share: float, height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Draw a box that covers 1 - share of the area around a uniform centre. Clip it at the borders. Unit: pixels."""
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    centre_y, centre_x = generator.randrange(height), generator.randrange(width)
    top, left = centre_y - box_height // 2, centre_x - box_width // 2
    return max(top, 0), min(top + box_height, height), max(left, 0), min(left + box_width, width)


def _partners(batch: Tensor) -> Tensor:
    """Return the partner of each row of `(batch, …)`. The batch must be even."""
    return batch.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _inside(mixes: Tensor, height: int, width: int) -> Tensor:
    """Return whether each pixel is in the box of its image, `(batch, 1, height, width)`."""
    _, top, bottom, left, right = mixes[:, :, None].unbind(1)  # each (batch, 1)
    # Compare the centres of pixels: they are at least half a pixel away from the borders of the box, so rounding errors
    # do not matter.
    rows = (torch.arange(height, device=mixes.device) + 0.5) / height
    columns = (torch.arange(width, device=mixes.device) + 0.5) / width
    in_rows = (rows >= top) & (rows < bottom)  # (batch, height)
    in_columns = (columns >= left) & (columns < right)  # (batch, width)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def mix_pixels(pixel_values: Tensor, mixes: Tensor) -> Tensor:
    """Mix every image with its partner.

    Args:
        pixel_values: `(batch, channels, height, width)` floats with an even batch; partners are rows 2k and 2k + 1.
        mixes: `(batch, 5)`, the columns of `MIX_COLUMNS`.

    Returns:
        Mixed pixels with the shape of `pixel_values`: inside the box the pixels of the partner, outside the box
        share · image + (1 - share) · partner.
    """
    partners = _partners(pixel_values)
    share = mixes[:, 0, None, None, None]
    mixed = pixel_values * share + partners * (1 - share)
    return torch.where(_inside(mixes, *pixel_values.shape[-2:]), partners, mixed)


def own_share(mixes: Tensor, height: int, width: int) -> Tensor:
    """Return the share of the image itself after mixing, `(batch,)`, computed from the area of the clipped box."""
    pasted = _inside(mixes, height, width).float().mean(dim=(1, 2, 3))
    return mixes[:, 0] * (1 - pasted)


def mix_labels(labels: Tensor, mixes: Tensor, num_labels: int, size: tuple[int, int]) -> Tensor:
    """Mix the labels in the same proportions as the pixels.

    Args:
        labels: Class indices `(batch,)`, or soft or multi-hot labels `(batch, num_labels)`.
        mixes: `(batch, 5)`, the columns of `MIX_COLUMNS`.
        num_labels: Number of classes.
        size: `(height, width)` of the mixed views, in pixels.

    Returns:
        Soft labels `(batch, num_labels)` float32. Smoothing them is equivalent to smoothing both labels before mixing.
    """
    soft = F.one_hot(labels.long(), num_labels).float() if labels.ndim == 1 else labels.float()
    share = own_share(mixes, *size)[:, None]
    return soft * share + _partners(soft) * (1 - share)


def mix_partial_labels(
    labels: Tensor, labelled: Tensor, mixes: Tensor, num_labels: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Mix the labels of a batch in which images may have no label.

    A mixed image of a labelled and an unlabelled one has the label of the labelled one alone, and its share as the weight.

    Args:
        labels: As in `mix_labels`, with any valid value for an image without a label.
        labelled: 1 for each image with a label, else 0, `(batch,)`.
        mixes: As in `mix_labels`.
        num_labels: As in `mix_labels`.
        size: As in `mix_labels`.

    Returns:
        Soft labels `(batch, num_labels)` float32, and the labelled share of each mixed image `(batch,)` float32. If all
        images have labels, the soft labels are those of `mix_labels` and the shares are exactly 1.
    """
    soft = F.one_hot(labels.long(), num_labels).float() if labels.ndim == 1 else labels.float()
    share, own, other = own_share(mixes, *size), labelled.float(), _partners(labelled.float())
    both = own * other > 0
    mixed = soft * share[:, None] + _partners(soft) * (1 - share[:, None])
    alone = soft * own[:, None] + _partners(soft) * other[:, None]  # of at most one labelled partner
    weights = torch.where(both, torch.ones_like(share), own * share + other * (1 - share))
    return torch.where(both[:, None], mixed, alone), weights


def draw_mixes(mixing: Mixing, generators: list[random.Random], height: int, width: int) -> Tensor:
    """Draw the mixes of a batch from one random generator per pair.

    Returns:
        `(2 · pairs, 5)` float32 with the columns of `MIX_COLUMNS`. Both partners have the same row.
    """
    rows = [mixing.draw(generator, height, width) for generator in generators]
    return torch.tensor(rows, dtype=torch.float32).repeat_interleave(2, dim=0)


def _channels(values: float | Sequence[float], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


def to_unit_range(pixel_values: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Convert a batch to float32 in [0, 1].

    Args:
        pixel_values: `(batch, channels, height, width)`, uint8 in [0, 255] or normalised floats.
        mean: Mean with which floats were normalised, one number or one per channel. It is not used for uint8.
        std: Standard deviation with which floats were normalised, one number or one per channel. It is not used for
            uint8.
    """
    if pixel_values.dtype == torch.uint8:
        return pixel_values.float().div_(255)  # in place is safe, because float() makes a copy
    pixel_values = pixel_values.float()
    return pixel_values * _channels(std, pixel_values) + _channels(mean, pixel_values)


def normalize(pixels: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Normalise `(batch, channels, height, width)` in [0, 1]. Mean and std are one number or one per channel."""
    return (pixels - _channels(mean, pixels)) / _channels(std, pixels)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(batch, channels, height, width)` in [0, 1] to `size` = (height, width), bicubic with antialiasing."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def resize_as_pillow(pixels: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    """Resize as Pillow resizes 8-bit images, and image processors with it: one axis, then the other, each rounded to 8
    bits.

    It computes with Pillow's own weights in Pillow's fixed-point numbers, so the result is the same on every device.

    Args:
        pixels: `(batch, channels, height, width)` in [0, 1]; rounded to 8 bits first.
        size: `(height, width)` in pixels.
        resample: Name of a filter of Pillow, such as "bilinear".
    """
    before, size = tuple(pixels.shape[-2:]), tuple(size)
    if before == size:
        return pixels
    levels = pixels.float().mul(255).add_(0.5).floor_().clamp_(0, 255).to(torch.int32)
    return _resize_levels(levels, size, resample, _pillow_order(before, size, resample)).float().div_(255)


def _resize_levels(levels: Tensor, size: tuple[int, int], resample: str, axes: tuple[int, int]) -> Tensor:
    """Resize whole numbers from 0 to 255, axis -2 (height) and axis -1 (width) in the given order."""
    for axis in axes:
        if levels.shape[axis] != size[axis]:
            levels = _resize_axis(levels, axis, size[axis], resample)
    return levels


@functools.lru_cache(maxsize=16)
def _pillow_order(before: tuple[int, int], after: tuple[int, int], resample: str) -> tuple[int, int]:
    """Return the order of Pillow's two passes, which depends on its version and on the sizes: it is found by trying."""
    noise = np.random.default_rng(0).integers(0, 256, before, dtype=np.uint8)
    found = np.array(Image.fromarray(noise).resize(after[::-1], Image.Resampling[resample.upper()]), dtype=np.int32)

    def difference(axes: tuple[int, int]) -> float:
        levels = _resize_levels(torch.from_numpy(noise.astype(np.int32)), after, resample, axes)
        return np.abs(levels.numpy() - found).mean()

    return min((-1, -2), (-2, -1), key=difference)


# Bits behind the point in Pillow's weights of 8-bit images, and in weights that are read from Pillow here.
_WEIGHT_BITS, _READ_BITS = 22, 30
_HALF = 1 << (_WEIGHT_BITS - 1)


def _resize_axis(levels: Tensor, axis: int, length: int, resample: str) -> Tensor:
    if axis == -1:  # rows are copied several times faster than columns
        turned = levels.transpose(-1, -2).contiguous()
        return _resize_axis(turned, -2, length, resample).transpose(-1, -2).contiguous()
    tables = _pillow_taps(levels.shape[-2], length, resample)
    taps, weights = (torch.from_numpy(table).to(levels.device) for table in tables)
    total = levels.new_full((*levels.shape[:-2], length, levels.shape[-1]), _HALF)  # so that the shift rounds
    for tap, weight in zip(taps, weights[..., None], strict=True):
        total.addcmul_(levels.index_select(-2, tap), weight)
    return (total >> _WEIGHT_BITS).clamp_(0, 255)


@functools.lru_cache(maxsize=16)
def _pillow_taps(before: int, after: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `before` pixels of a row count for each of `after`, and how much: two tables `(taps, after)`.

    The row of one bright pixel, resized, shows how much that pixel counts. PyTorch has the two common filters with
    Pillow's weights and in double precision; the others are read from Pillow itself.
    """
    if resample in ("bilinear", "bicubic"):
        bright = torch.eye(before, dtype=torch.float64)[None, None]
        counted = F.interpolate(bright, (before, after), mode=resample, antialias=True, align_corners=False)[
            0, 0
        ].numpy()
    else:
        image = Image.fromarray(np.eye(before, dtype=np.int32) << _READ_BITS)
        counted = np.array(image.resize((after, before), Image.Resampling[resample.upper()])) / 2.0**_READ_BITS
    counted = counted * 2.0**_WEIGHT_BITS
    counted = np.trunc(counted + np.copysign(0.5, counted)).astype(np.int32)  # (before, after)
    first = (counted != 0).argmax(axis=0)
    last = before - 1 - (counted != 0)[::-1].argmax(axis=0)
    taps = first + np.arange((last - first).max() + 1)[:, None]
    inside, taps = taps <= last, np.minimum(taps, before - 1)
    weights = np.where(inside, np.take_along_axis(counted, taps, axis=0), 0)
    return np.ascontiguousarray(taps), np.ascontiguousarray(weights.astype(np.int32))
