"""The pixel values of an image processor, bit for bit, without its conversions between images and arrays.

An image processor of transformers converts an image to an array and back several times. For the usual fields (resize, centre
crop, rescale, normalise) the same numbers follow from Pillow alone and a table of the 256 values of each channel. The table is
made by the processor itself, so its rounding is that of the processor.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .image_processing_deit import DeiTImageProcessor, upright_rgb
from .pixel_rules import processor_fields

# Sizes (width, height) of the images on which another class of processor is compared: narrow, wide, odd and square.
_COMPARED_SIZES = ((301, 200), (200, 301), (97, 97), (640, 33))


def pixel_function(processor: Any) -> Callable[[Image.Image], Tensor]:
    """Return a function that computes the pixel values of an upright RGB image as the processor does, faster where possible.

    Args:
        processor: Image processor of transformers.

    Returns:
        A function of an image (`upright_rgb`) that returns `(channels, height, width)`, bit-identical to
        `processor(image, return_tensors="pt")["pixel_values"][0]`.
    """
    by_processor = partial(_by_processor, processor)
    try:
        quick = _QuickPixels(processor)
    except _NotPossible:
        return by_processor
    if type(processor) is DeiTImageProcessor:  # tests compare it
        return quick
    random = np.random.default_rng(0)
    for width, height in _COMPARED_SIZES:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            if not torch.equal(quick(image), by_processor(image)):
                return by_processor
        except Exception:  # of any class of processor; it is reported where the processor is used
            return by_processor
    return quick


def _by_processor(processor: Any, image: Image.Image) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


class _NotPossible(Exception):
    """The fields of a processor have an effect that `_QuickPixels` does not have."""


class _QuickPixels:
    """Function of a Pillow image that returns the pixel values of a processor."""

    def __init__(self, processor: Any):
        fields = processor_fields(processor)
        if not fields.get("do_convert_rgb", True) and type(processor) is DeiTImageProcessor:
            raise _NotPossible
        if any(fields.get(name) for name in ("do_pad", "do_flip_channel_order", "do_reduce_labels", "crop_pct")):
            raise _NotPossible
        self.size = _size_of(fields, "do_resize", "size", shortest_edge=True)
        self.crop = _size_of(fields, "do_center_crop", "crop_size", shortest_edge=False)
        self.resample = fields.get("resample")
        if self.size is not None and not isinstance(self.resample, int):
            raise _NotPossible
        ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
        try:
            values = processor(
                Image.fromarray(ramp), do_resize=False, do_center_crop=False, return_tensors="pt", do_convert_rgb=False
            )["pixel_values"][0]
        except Exception as error:  # of any class of processor
            raise _NotPossible from error
        if values.shape != (3, 1, 256) or values.dtype != torch.float32:
            raise _NotPossible
        self.table = values[:, 0].numpy()

    def __call__(self, image: Image.Image) -> Tensor:
        image = upright_rgb(image)
        if self.size is not None:
            size = self.size
            if isinstance(size, int):
                shorter = min(image.size)
                size = tuple(size * side // shorter for side in image.size)
            if size != image.size:
                image = image.resize(size, self.resample)
        if self.crop is not None:
            (width, height), (crop_width, crop_height) = image.size, self.crop
            left, top = (width - crop_width) // 2, (height - crop_height) // 2
            # Pillow fills what is outside of the image with 0, as the processor does before it normalises.
            image = image.crop((left, top, left + crop_width, top + crop_height))
        pixels = np.asarray(image)
        values = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel in range(3):
            np.take(self.table[channel], pixels[..., channel], out=values[channel], mode="clip")
        return torch.from_numpy(values)


def _size_of(fields: Mapping[str, Any], switch: str, name: str, shortest_edge: bool) -> int | tuple[int, int] | None:
    """Return `(width, height)` or the length of the shortest edge; None if the processor does not do this.

    Raises:
        _NotPossible: The field has another form.
    """
    if not fields.get(switch):
        return None
    try:
        size = dict(fields[name])
    except (KeyError, TypeError, ValueError) as error:
        raise _NotPossible from error
    given = {side: value for side, value in size.items() if value is not None}
    if set(given) == {"height", "width"}:
        return given["width"], given["height"]
    if shortest_edge and set(given) == {"shortest_edge"}:
        return given["shortest_edge"]
    raise _NotPossible
