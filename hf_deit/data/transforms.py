"""Image operations and the augmentation policies that draw them: RandAugment, TrivialAugment, 3-Augment, colour jitter.

The operations take and return an 8-bit RGB image. Drawing and applying are separate: a policy draws steps from the
view's `random.Random`, and `apply_steps` applies them with Pillow. The tables below specify the range of each operation
by its argument at strength 0 and the change up to strength 1. This module also generates the noise of random erasing.
augmentation.py chooses the policy, the crop and the box to erase. This module imports no other module of the package.

Papers: RandAugment, arXiv:1909.13719 (with the operations and the sampling known as `rand-m9-mstd0.5-inc1`, as in
arXiv:2012.12877, Table 9); TrivialAugment, arXiv:2103.10158; 3-Augment, arXiv:2204.07118, section 4; random erasing,
arXiv:1708.04896.
"""

import functools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

# Geometric operations fill the area outside the image with this colour. It is ImageNet's mean, which normalisation maps
# to about 0.
FILL = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
SOLARIZE_ADD_THRESHOLD = 128
MAX_MAGNITUDE = 10.0
TRIVIALAUGMENT_BINS = 31
Pixels = Callable[[Image.Image, float], Image.Image]


def identity(image: Image.Image, unused: float = 0) -> Image.Image:
    """Return the image unchanged."""
    return image


def autocontrast(image: Image.Image, unused: float = 0) -> Image.Image:
    """Stretch each channel so that its darkest value becomes 0 and its brightest value 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, unused: float = 0) -> Image.Image:
    """Equalise the histogram of each channel."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, unused: float = 0) -> Image.Image:
    """Invert each value: 255 - value."""
    return ImageOps.invert(image)


def grayscale(image: Image.Image, unused: float = 0) -> Image.Image:
    """Replace all three channels by the luma (ITU-R 601)."""
    return image.convert("L").convert("RGB")


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keep the highest `bits` of the 8 bits of each value, from 0 (black) to 8 (unchanged)."""
    # ImageOps.posterize is not used, because Pillow 13 refuses 0 bits. A magnitude of 10 needs 0 bits; with the paper's
    # fields, one magnitude in 44 is 10.
    mask = 256 - 2 ** (8 - int(bits))
    return image.point([value & mask for value in range(256)] * 3)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Invert the values that are at least `threshold`, from 0 (all values) to 256 (none)."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, added: float) -> Image.Image:
    """Add `added` grey levels to the values below 128, and clip at 255."""
    levels = [min(255, value + int(added)) if value < SOLARIZE_ADD_THRESHOLD else value for value in range(256)]
    return image.point(levels * 3)


def color(image: Image.Image, factor: float) -> Image.Image:
    """Scale the saturation: 0 returns a greyscale image, 1 the image itself."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Scale the distance of each value from the mean grey level: 0 returns that grey, 1 the image itself."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Scale each value: 0 returns black, 1 the image itself."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Scale the distance from a smoothed copy: 0 returns that copy, 1 the image itself, 2 a sharpened image."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blur with a Gaussian whose standard deviation is `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate the image counter-clockwise about its centre. The size of the image does not change."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=FILL
    )


def shear_x(image: Image.Image, factor: float) -> Image.Image:
    """Shift each row to the left by `factor` times its distance from the top."""
    return _affine(image, 1, factor, 0, 0, 1, 0)


def shear_y(image: Image.Image, factor: float) -> Image.Image:
    """Shift each column up by `factor` times its distance from the left."""
    return _affine(image, 1, 0, 0, factor, 1, 0)


def translate_x(image: Image.Image, pixels: float) -> Image.Image:
    """Shift the image to the left by `pixels` pixels."""
    return _affine(image, 1, 0, pixels, 0, 1, 0)


def translate_y(image: Image.Image, pixels: float) -> Image.Image:
    """Shift the image up by `pixels` pixels."""
    return _affine(image, 1, 0, 0, 0, 1, pixels)


def translate_x_by_share(image: Image.Image, share: float) -> Image.Image:
    """Shift the image to the left by a share of its width."""
    return translate_x(image, share * image.width)


def translate_y_by_share(image: Image.Image, share: float) -> Image.Image:
    """Shift the image up by a share of its height."""
    return translate_y(image, share * image.height)


class Step(NamedTuple):
    """Operation drawn by a policy: its name in the policy, the function, and the drawn argument."""

    name: str
    apply: Pixels
    argument: float


class Operation(NamedTuple):
    """Operation with the range of its argument.

    The argument is `start` at strength 0 and `start + change` at strength 1. If `signed`, the change is added or
    subtracted with equal probability. If `whole`, the change is truncated to a whole number.
    """

    apply: Pixels
    start: float = 0
    change: float = 0
    signed: bool = False
    whole: bool = False

    def argument(self, strength: float, generator: random.Random) -> float:
        """Return the argument for a strength in [0, 1]. If `signed`, draw the sign with one random number."""
        change = self.change * strength
        if self.whole:
            change = int(change)
        if self.signed and generator.random() < 0.5:
            change = -change
        return self.start + change


# All operations get stronger with the magnitude. "share" means a share of the side of the view.
RANDAUGMENT: Mapping[str, Operation] = {
    "AutoContrast": Operation(autocontrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(invert),
    "Rotate": Operation(rotate, 0, 30, signed=True),  # degrees
    "Posterize": Operation(posterize, 4, -4, whole=True),  # bits
    "Solarize": Operation(solarize, 256, -256, whole=True),  # threshold
    "SolarizeAdd": Operation(solarize_add, 0, 110, whole=True),  # grey levels
    "Color": Operation(color, 1, 0.9, signed=True),
    "Contrast": Operation(contrast, 1, 0.9, signed=True),
    "Brightness": Operation(brightness, 1, 0.9, signed=True),
    "Sharpness": Operation(sharpness, 1, 0.9, signed=True),
    "ShearX": Operation(shear_x, 0, 0.3, signed=True),
    "ShearY": Operation(shear_y, 0, 0.3, signed=True),
    "TranslateX": Operation(translate_x_by_share, 0, 0.45, signed=True),  # share
    "TranslateY": Operation(translate_y_by_share, 0, 0.45, signed=True),  # share
}
# The wide search space of the paper. Unlike the paper, which fills with black and takes the nearest pixel, the
# geometric operations here fill with FILL and interpolate bicubically, as for all policies.
TRIVIALAUGMENT: Mapping[str, Operation] = {
    "Identity": Operation(identity),
    "AutoContrast": Operation(autocontrast),
    "Equalize": Operation(equalize),
    "Rotate": Operation(rotate, 0, 135, signed=True, whole=True),  # degrees
    "Solarize": Operation(solarize, 256, -256, whole=True),  # threshold
    "Posterize": Operation(posterize, 8, -6, whole=True),  # bits
    "Color": Operation(color, 0.01, 1.99),
    "Contrast": Operation(contrast, 0.01, 1.99),
    "Brightness": Operation(brightness, 0.01, 1.99),
    "Sharpness": Operation(sharpness, 0.01, 1.99),
    "ShearX": Operation(shear_x, 0, 0.99, signed=True),
    "ShearY": Operation(shear_y, 0, 0.99, signed=True),
    "TranslateX": Operation(translate_x, 0, 32, signed=True, whole=True),  # pixels, independent of the size of the view
    "TranslateY": Operation(translate_y, 0, 32, signed=True, whole=True),  # pixels
}
THREE_AUGMENT: Mapping[str, Operation] = {
    "Grayscale": Operation(grayscale),
    "Solarize": Operation(solarize, 128),  # threshold
    "GaussianBlur": Operation(gaussian_blur, 0.1, 1.9),  # radius in pixels
}


def _step(operations: Mapping[str, Operation], name: str, strength: float, generator: random.Random) -> Step:
    operation = operations[name]
    return Step(name, operation.apply, operation.argument(strength, generator))


def draw_randaugment(
    generator: random.Random, magnitude: float, magnitude_std: float, probability: float, num_ops: int
) -> list[Step]:
    """Draw the steps of RandAugment.

    Args:
        generator: Random generator of the view.
        magnitude: Mean of the normal distribution of the magnitude. Drawn magnitudes are clipped to [0, 10].
        magnitude_std: Standard deviation of that distribution.
        probability: Probability that a chosen operation is applied.
        num_ops: Number of operations to choose. Each is chosen from all 15, so an operation can occur more than once.

    Returns:
        The operations to apply, between 0 and `num_ops`.
    """
    names, steps = list(RANDAUGMENT), []
    for _ in range(num_ops):
        name = generator.choice(names)
        if generator.random() < probability:
            drawn = min(max(generator.gauss(magnitude, magnitude_std), 0.0), MAX_MAGNITUDE)
            steps.append(_step(RANDAUGMENT, name, drawn / MAX_MAGNITUDE, generator))
    return steps


def draw_trivialaugment(generator: random.Random) -> list[Step]:
    """Draw the single step of TrivialAugment: any operation, at any of 31 evenly spaced strengths from 0 to 1."""
    name = generator.choice(list(TRIVIALAUGMENT))
    strength = generator.randrange(TRIVIALAUGMENT_BINS) / (TRIVIALAUGMENT_BINS - 1)
    return [_step(TRIVIALAUGMENT, name, strength, generator)]


def draw_three_augment(generator: random.Random) -> list[Step]:
    """Draw the single step of 3-Augment: greyscale, solarise, or blur with a radius uniform in [0.1, 2] pixels."""
    name = generator.choice(list(THREE_AUGMENT))
    return [_step(THREE_AUGMENT, name, generator.random(), generator)]


def draw_color_jitter(generator: random.Random, strength: float) -> list[Step]:
    """Draw brightness, contrast and saturation in random order, each with a factor uniform in 1 ± `strength`."""
    operations: list[tuple[str, Pixels]] = [("Brightness", brightness), ("Contrast", contrast), ("Color", color)]
    generator.shuffle(operations)
    return [Step(name, apply, generator.uniform(1 - strength, 1 + strength)) for name, apply in operations]


def apply_steps(image: Image.Image, steps: Sequence[Step]) -> Image.Image:
    """Apply drawn steps one after the other. The given image is not changed."""
    for step in steps:
        image = step.apply(image, step.argument)
    return image


@functools.lru_cache(maxsize=1)
def _noise_levels() -> np.ndarray:
    """Return the 8-bit values `(3, 65536)` at 65,536 evenly spaced quantiles of each channel's normal distribution."""
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((number + 0.5) / 65536) for number in range(65536)])
    mean, std = np.array(IMAGENET_DEFAULT_MEAN)[:, None], np.array(IMAGENET_DEFAULT_STD)[:, None]
    return np.clip(np.rint(255 * (mean + std * quantiles)), 0, 255).astype(np.uint8)


def normal_noise(height: int, width: int, seed: int) -> np.ndarray:
    """Return random pixels that follow N(0, 1) per channel after normalisation with ImageNet's mean and std.

    The values are rounded and clipped to 0 to 255. The raw output of the Philox bit generator is mapped to the normal
    distribution by a table of quantiles. NumPy guarantees that this raw output does not change, and gives no such
    guarantee for `numpy.random.Generator.normal`. Therefore a view is the same on every platform and after an upgrade.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        seed: Seed from 0 to 2¹²⁸ - 1.

    Returns:
        `(height, width, 3)` uint8.
    """
    count = height * width * 3
    raw = np.random.Philox(key=seed).random_raw(-(-count // 4))  # 64 bits are four draws of 16 bits
    draws = raw.astype("<u8").view("<u2")[:count].reshape(height, width, 3)
    return np.stack([_noise_levels()[channel][draws[..., channel]] for channel in range(3)], axis=-1)
