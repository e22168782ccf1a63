"""Image processor for the official evaluation protocol: bicubic resize, centre crop, ImageNet mean and std.

`DeiTImageProcessor` differs from the processor of stock transformers in its defaults and in the kinds of images that it
can read. It saves a stock file, so that `AutoImageProcessor` loads it without this package. `upright_rgb` converts any
Pillow image to upright 8-bit RGB; data/ uses it as well. `evaluation_view` returns the image as the processor sees it,
before it is rescaled and normalised. Training views are made in data/augmentation.py.

Paper: Touvron et al., arXiv:2012.12877, section 6. The sizes are those of the official `datasets.py`, where
`int(256 / 224 * size)` equals `int(size / 0.875)`.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

DEFAULT_CROP_RATIO = 0.875
# Written into preprocessor_config.json. Stock classes keep an unknown field and ignore it.
OWN_CLASS_FIELD = "hf_deit_image_processor"
# The stock class that others load. It reads the same fields as DeiTImageProcessor in every version of transformers, and
# DeiTImageProcessor of transformers 4 requires a height and a width where this file states the shorter edge.
STOCK_CLASS = "BitImageProcessor"
# Operation that undoes each EXIF orientation. Orientation 1 and unknown orientations are upright.
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
    """Image processor that resizes the shorter edge to 256, crops the central 224 × 224 pixels, and normalises them.

    The mean and std are those of ImageNet. The processor accepts the keyword arguments of the stock processor and reads
    its files. Values that are missing in a file have the defaults of this class. As in stock transformers, `size=256`
    resizes an image to 256 × 256 and does not keep its aspect ratio. To resize the shorter edge, use
    `size={"shortest_edge": 256}` or `for_image_size`.

    Every Pillow image is first converted to upright RGB (see `upright_rgb`); with `do_convert_rgb=False` it is only
    made upright. A string is a local file, which is read in the same way, or a URL or base64, as in stock transformers.
    NumPy arrays and tensors are processed as in stock transformers, because they have no orientation and no mode. Scale
    a uint16 array to 8 bits before you pass it.

    The pixels of upright 8-bit images are bit-identical to those of the stock Pillow processor. The stock torchvision
    processor may crop one pixel further if the resized length minus the crop is odd: it rounds the offset, and this
    class rounds it down.
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
        """Build the evaluation processor for a model with inputs of `image_size`.

        The shorter edge is resized to `int(longer side of image_size / crop_ratio)`: 256 for 224, and 438 for 384. The
        longer side of `image_size` is used so that the crop fits into every image without padding.

        Args:
            image_size: Image size of the model in pixels, one number for a square or `(height, width)`.
            crop_ratio: Crop size divided by the shorter edge, above 0 and at most 1. With 1, only the longer edge is
                cropped.
            **kwargs: Further arguments of the processor, except `size` and `crop_size`.

        Raises:
            ValueError: `image_size` or `crop_ratio` is out of range, or `kwargs` contains `size` or `crop_size`.
        """
        clash = sorted({"size", "crop_size"} & kwargs.keys())
        if clash:
            raise ValueError(
                f"for_image_size does not accept {' and '.join(clash)}: it computes them from "
                f"image_size={image_size!r} and crop_ratio={crop_ratio!r}. Leave them out, or call "
                f"{cls.__name__}(size=..., crop_size=...)."
            )
        height, width, shortest_edge = _resize_and_crop(image_size, crop_ratio)
        return cls(size={"shortest_edge": shortest_edge}, crop_size={"height": height, "width": width}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of preprocessor_config.json: a stock class for others, and this class for this package."""
        return super().to_dict() | {"image_processor_type": STOCK_CLASS, OWN_CLASS_FIELD: type(self).__name__}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open files and URLs, given alone or in lists. Images are returned unchanged."""
        # The stock loader converts images to RGB, which makes 16-bit files white before process_image receives them.
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            with Image.open(image_url_or_urls) as image:
                image.load()
            return image
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """Convert one image to an array `(channels, height, width)`. Pillow images are first made upright."""
        if isinstance(image, Image.Image):
            image = upright_rgb(image) if do_convert_rgb else _upright(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


def is_own_processor(fields: Mapping[str, Any]) -> bool:
    """Whether `DeiTImageProcessor` reads a preprocessor_config.json with the protocol that the file states.

    It does if this package saved the file, and if the file names DeiT's stock class, as files of earlier versions do.

    Args:
        fields: Content of the file.
    """
    return _names_deit(fields) or (OWN_CLASS_FIELD in fields and _stored_class(fields).startswith(STOCK_CLASS))


def _stored_class(fields: Mapping[str, Any]) -> str:
    return fields.get("image_processor_type") or fields.get("feature_extractor_type") or ""


def _names_deit(fields: Mapping[str, Any]) -> bool:
    return _stored_class(fields).startswith("DeiT")


def published_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a preprocessor_config.json in the form that every version of transformers reads.

    A file that names DeiT's stock class, as files of version 0.1.0 do, becomes what `DeiTImageProcessor` saves today, with the same
    protocol. Other files are returned unchanged.

    Args:
        fields: Content of the file.

    Raises:
        ValueError: The file names DeiT's stock class and a value is invalid.
    """
    if not _names_deit(fields):
        return dict(fields)
    try:
        return json.loads(DeiTImageProcessor.from_dict(dict(fields)).to_json_string())
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"preprocessor_config.json has an invalid value: {error}") from error


def evaluation_view(
    image: Image.Image, image_size: int | Sequence[int], crop_ratio: float = DEFAULT_CROP_RATIO
) -> Image.Image:
    """Resize and crop an image as `DeiTImageProcessor.for_image_size` does, without rescaling and normalisation.

    This function uses only Pillow. Its pixels are bit-identical to those of the processor, and it is up to twice as
    fast because it does not convert between images and arrays.

    Args:
        image: A Pillow image of any mode, orientation and size.
        image_size: Image size of the model in pixels, one number for a square or `(height, width)`.
        crop_ratio: Crop size divided by the shorter edge, above 0 and at most 1.

    Returns:
        The resized and centre-cropped image in upright 8-bit RGB.

    Raises:
        TypeError: `image` is not a Pillow image.
        ValueError: `image_size` or `crop_ratio` is out of range, or `upright_rgb` cannot convert the image.
    """
    crop_height, crop_width, shortest_edge = _resize_and_crop(image_size, crop_ratio)
    image = upright_rgb(image)
    shorter = min(image.size)
    width, height = (shortest_edge * side // shorter for side in image.size)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + crop_width, top + crop_height))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode and EXIF orientation to upright 8-bit RGB.

    8-bit modes are converted by the installed version of transformers, so that the pixels are identical. This includes
    transparency: transformers 5.17 drops the alpha channel, and 5.24 pastes the image onto a white background.

    Modes with more than 8 bits, which Pillow would clip to white, are scaled to 8 bits and rounded:

    - `I;16` and its variants: from 0…65535. A transparent grey value is ignored.
    - `I`: from 0…65535, or from 0…255 if no value is above 255.
    - `F`: from 0…1, or from 0…255 (the range in which Pillow itself converts to `F`) if a value is above 1.

    Args:
        image: A Pillow image. It is loaded, but not changed otherwise.

    Returns:
        The same object if it is already upright RGB, or else a new image without metadata.

    Raises:
        TypeError: `image` is not a Pillow image.
        ValueError: An `I` or `F` image contains values outside these ranges.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"upright_rgb needs a PIL.Image.Image, but got a {type(image).__module__}.{type(image).__qualname__}. Open "
            "a file with PIL.Image.open(path), or convert a uint8 array with PIL.Image.fromarray(array)."
        )
    image = _upright(image)
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit_grey(image)
    elif image.mode in ("La", "RGBa"):  # Pillow converts premultiplied alpha only to LA and RGBA
        image = image.convert(image.mode.upper())
    # The method returns an image in transformers 5.17 and an array in 5.24. The function convert_to_rgb is not used
    # because it logs a warning in 5.24.
    return Image.fromarray(np.asarray(_stock_processor().convert_to_rgb(image)))


@cache
def _stock_processor() -> DeiTImageProcessorPil:
    return DeiTImageProcessorPil()


def _upright(image: Image.Image) -> Image.Image:
    # Pillow applies the orientation of a TIFF when it loads the image, and removes the tag only then.
    image.load()
    # ImageOps.exif_transpose is not used: it copies upright images, and encodes the EXIF block again, which can fail.
    try:
        method = _UPRIGHTING.get(image.getexif().get(ExifTags.Base.Orientation))
    except (SyntaxError, TypeError, ValueError, struct.error):  # Pillow raises these errors for a damaged EXIF block
        method = None
    if method is None:
        return image
    upright = image.transpose(method)
    # The orientation tag must not be kept, or the image would be turned again. The transparent colour is still valid.
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
    if not (low >= 0 and high <= white):  # in this form, NaN also fails
        raise ValueError(
            f"The image of mode {image.mode} has values from {low:g} to {high:g}, but the values must be in {allowed}. "
            "Scale them first, for example to a uint8 array, and convert this with PIL.Image.fromarray."
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _resize_and_crop(image_size: int | Sequence[int], crop_ratio: float) -> tuple[int, int, int]:
    """Check the arguments, and return `(crop height, crop width, shortest edge)` in pixels."""
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side is not True and side > 0 for side in sides):
        raise ValueError(
            f"image_size={image_size!r}: it must be a positive number of pixels or a (height, width) pair of them, "
            "for example image_size=224 or image_size=(96, 160)."
        )
    if not (isinstance(crop_ratio, int | float) and 0 < crop_ratio <= 1):
        raise ValueError(
            f"crop_ratio={crop_ratio!r}: it must be above 0 and at most 1. It is the share of the shorter edge that "
            f"the crop keeps. The official value is crop_ratio={DEFAULT_CROP_RATIO}; crop_ratio=1.0 keeps the entire "
            "shorter edge."
        )
    return *sides, int(max(sides) / crop_ratio)
