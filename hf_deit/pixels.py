"""Pixels on the device: 8-bit or normalised to [0, 1], to a size, to a model's mean and standard deviation.

Student and teacher look at one canonical view and want it in their own size and normalisation; both get it from here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _channels(values: float | Sequence[float], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


def to_unit_range(pixel_values: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Brings a batch to float32 in [0, 1].

    Args:
        pixel_values: `(batch, channels, height, width)`; uint8 in [0, 255], or floats that were normalised.
        mean: That floats were normalised with, one a channel; not used for uint8.
        std: Likewise.
    """
    if pixel_values.dtype == torch.uint8:
        return pixel_values.float().div_(255)  # in place: the copy is ours
    pixel_values = pixel_values.float()
    return pixel_values * _channels(std, pixel_values) + _channels(mean, pixel_values)


def normalize(pixels: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Normalises `(batch, channels, height, width)` in [0, 1] with a mean and a standard deviation a channel."""
    return (pixels - _channels(mean, pixels)) / _channels(std, pixels)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes `(batch, channels, height, width)` in [0, 1] to `size` = (height, width), bicubic and antialiased."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
