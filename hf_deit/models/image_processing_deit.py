"""The official evaluation protocol as an image processor: shorter edge bicubic → centre crop → ImageNet mean and std.

`DeiTImageProcessor` differs from the stock one in its defaults and in which images it can read; what it saves is a
stock file, so that `AutoImageProcessor` reloads it without this package. `upright_rgb` makes any Pillow image upright
8-bit RGB (the data path calls it too), `evaluation_view` gives the processor's view before mean and std. Training views
are made in augmentation.py.

Paper: Touvron et al., arXiv:2012.12877, section 6; the numbers are those of the official `datasets.py`, whose
`int(256 / 224 * size)` is `int(size / 0.875)`.
"""

import os
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

DEFAULT_CROP_RATIO = 0.875
# What undoes each EXIF orientation; 1 and anything unknown is upright.
_UPRIGHTING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DeiTImageProcessor(DeiTImageProcessorPil):
    """Resizes the shorter edge to 256, crops the central 224 × 224, and normalises with the ImageNet mean and std.

    Takes the keyword arguments of the stock processor and reads its files, with their values; what a file leaves out
    has the defaults here. As in stock, `size=256` means a squash to 256 × 256: write `size={"shortest_edge": 256}` for
    the shorter edge, or build with `for_image_size`.

    Every Pillow image is first made upright RGB, see `upright_rgb`; with `do_convert_rgb=False` it is only made
    upright. A string is a local file (read the same way), or whatever stock takes (a URL, base64). NumPy arrays and
    tensors go the stock way: they carry no orientation and no mode, and a uint16 array must be scaled to 8 bits before.

    The pixels of upright 8-bit images are the stock Pillow processor's, bit by bit. The stock torchvision processor may
    crop one pixel off where resized length − crop is odd (it rounds the offset, which is floored here).
    """

    size = {"shortest_edge": 256}
    resample = Image.Resampling.BICUBIC
    crop_size = {"height": 224, "width": 224}
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True

    @classmethod
    def for_image_size(
        cls, image_size: int | Sequence[int], crop_ratio: float = DEFAULT_CROP_RATIO, **kwargs: Any
    ) -> "DeiTImageProcessor":
        """Builds the evaluation processor of a model that sees images of `image_size`.

        The shorter edge becomes `int(longer side of image_size / crop_ratio)`: 256 for 224, 438 for 384. For an oblong
        `image_size` its longer side counts, so that the crop fits into every image without padding.

        Args:
            image_size: What the model sees, in pixels: one number for a square or `(height, width)`.
            crop_ratio: Crop over shorter edge, above 0 up to 1 (nothing but the longer edge is cropped).
            **kwargs: Further arguments of the processor, without `size` and `crop_size`.

        Raises:
            ValueError: If `image_size` or `crop_ratio` is out of range, or `kwargs` sets a size as well.
        """
        clash = sorted({"size", "crop_size"} & kwargs.keys())
        if clash:
            raise ValueError(
                f"for_image_size was given {' and '.join(clash)}: it works them out from image_size={image_size!r} and "
                f"crop_ratio={crop_ratio!r}. Leave them out, or call {cls.__name__}(size=..., crop_size=...)."
            )
        height, width, shortest_edge = _resize_and_crop(image_size, crop_ratio)
        return cls(size={"shortest_edge": shortest_edge}, crop_size={"height": height, "width": width}, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens file names and URLs, alone or in lists; images pass through."""
        # Stock's loader converts on the way, which whitens 16-bit files before process_image could see them.
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            with Image.open(image_url_or_urls) as image:
                image.load()
            return image
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """Gives one image as an array `(channels, height, width)`, Pillow images upright."""
        if isinstance(image, Image.Image):
            image = upright_rgb(image) if do_convert_rgb else _upright(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


def evaluation_view(
    image: Image.Image, image_size: int | Sequence[int], crop_ratio: float = DEFAULT_CROP_RATIO
) -> Image.Image:
    """Gives what `DeiTImageProcessor.for_image_size` sees of an image, before rescaling and mean and std.

    Plain Pillow, bit-equal to the processor (the tests hold it) and up to twice as fast: no detour over arrays.

    Args:
        image: A Pillow image of any mode, orientation and size.
        image_size: What the model sees, in pixels: one number for a square or `(height, width)`.
        crop_ratio: Crop over shorter edge, above 0 up to 1.

    Returns:
        The resized and centre-cropped image: upright 8-bit RGB of `image_size`.

    Raises:
        TypeError: If `image` is not a Pillow image.
        ValueError: If `image_size` or `crop_ratio` is out of range, or `upright_rgb` cannot read the image.
    """
    crop_height, crop_width, shortest_edge = _resize_and_crop(image_size, crop_ratio)
    image = upright_rgb(image)
    shorter = min(image.size)
    width, height = (shortest_edge * side // shorter for side in image.size)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + crop_width, top + crop_height))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Makes an image of any mode and EXIF orientation upright 8-bit RGB.

    8-bit modes are converted as the installed transformers converts them, so that the pixels are its own. That includes
    transparency: transformers 5.17 drops the alpha channel, 5.24 lays the image on white.

    Deeper modes, which Pillow would clip to white, are scaled to 8 bits and rounded:

    - `I;16` and its kin: from 0…65535. A transparent grey value is ignored.
    - `I`: from 0…65535, or from 0…255 if nothing is above 255.
    - `F`: from 0…1, or from 0…255 (as Pillow itself fills it) if anything is above 1.

    Args:
        image: A Pillow image; it is loaded, and not changed otherwise.

    Returns:
        The same object if it was upright RGB already, else a new image without metadata.

    Raises:
        TypeError: If `image` is not a Pillow image.
        ValueError: If an `I` or `F` image holds values outside these ranges.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"upright_rgb was given a {type(image).__module__}.{type(image).__qualname__}; it takes a PIL.Image.Image. "
            "Open a file with PIL.Image.open(path), wrap a uint8 array with PIL.Image.fromarray(array)."
        )
    image = _upright(image)
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit_grey(image)
    elif image.mode in ("La", "RGBa"):  # premultiplied alpha: Pillow only converts it to its straight twin
        image = image.convert(image.mode.upper())
    # An image on 5.17, an array on 5.24. The plain function is passed over: it warns of its own change on 5.24.
    return Image.fromarray(np.asarray(_stock_processor().convert_to_rgb(image)))


@cache
def _stock_processor() -> DeiTImageProcessorPil:
    return DeiTImageProcessorPil()


def _upright(image: Image.Image) -> Image.Image:
    # A TIFF is turned by Pillow while it loads, and only then loses its tag.
    image.load()
    # Not ImageOps.exif_transpose: it copies upright images, and encodes the EXIF block again, which can fail.
    try:
        method = _UPRIGHTING.get(image.getexif().get(ExifTags.Base.Orientation))
    except (SyntaxError, TypeError, ValueError, struct.error):  # what Pillow raises on a damaged EXIF block
        method = None
    if method is None:
        return image
    upright = image.transpose(method)
    # A surviving orientation tag would turn it a second time. The transparent colour belongs to the pixels.
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white, allowed = (1 if high <= 1 else 255), "0…1 or 0…255"
    elif image.mode == "I":
        white, allowed = (255 if high <= 255 else 65535), "0…255 or 0…65535"
    else:
        white, allowed = 65535, "0…65535"
    if not (low >= 0 and high <= white):  # written so that NaN fails as well
        raise ValueError(
            f"An image of mode {image.mode} holds values from {low:g} to {high:g}, so its white is not known. "
            f"Allowed is {allowed}: scale the values before, for example to uint8 with PIL.Image.fromarray."
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _resize_and_crop(image_size: int | Sequence[int], crop_ratio: float) -> tuple[int, int, int]:
    """Gives `(crop height, crop width, shortest edge)` in pixels, all checked."""
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side is not True and side > 0 for side in sides):
        raise ValueError(
            f"image_size={image_size!r}: it must be a positive number of pixels or a (height, width) pair of them, "
            "for example image_size=224 or image_size=(96, 160)."
        )
    if not (isinstance(crop_ratio, int | float) and 0 < crop_ratio <= 1):
        raise ValueError(
            f"crop_ratio={crop_ratio!r}: it must be above 0 and at most 1, the part of the shorter edge that the crop "
            f"keeps. The official value is crop_ratio={DEFAULT_CROP_RATIO}; crop_ratio=1.0 keeps all of it."
        )
    return *sides, int(max(sides) / crop_ratio)
