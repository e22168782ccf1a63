"""Operations on one 8-bit RGB image, and the policies that draw them: RandAugment, TrivialAugment, 3-Augment, colour jitter.

Drawing and applying are apart: a policy draws steps from the view's own `random.Random`, `apply_steps` carries them out
with Pillow. Each operation's range stands in the tables below as its argument at strength 0 and what is added up to
strength 1. Which policy a view gets, crops and erased boxes are left to augmentation.py; this module only makes the noise
that fills such a box. A leaf.

Papers: RandAugment arXiv:1909.13719 (with the op set and the sampling known as `rand-m9-mstd0.5-inc1`, as in
arXiv:2012.12877, Table 9), TrivialAugment arXiv:2103.10158, 3-Augment arXiv:2204.07118 (section 4), random erasing
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

# What a geometric operation puts where it shows more than the image: ImageNet's mean, grey to a normalised network.
FILL = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
SOLARIZE_ADD_THRESHOLD = 128
MAX_MAGNITUDE = 10.0
TRIVIALAUGMENT_BINS = 31
Pixels = Callable[[Image.Image, float], Image.Image]


def identity(image: Image.Image, unused: float = 0) -> Image.Image:
    """Gives the image itself."""
    return image


def autocontrast(image: Image.Image, unused: float = 0) -> Image.Image:
    """Stretches each channel so that its darkest value becomes 0 and its brightest 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, unused: float = 0) -> Image.Image:
    """Makes the histogram of each channel as even as it can be."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, unused: float = 0) -> Image.Image:
    """Gives the negative: 255 - value."""
    return ImageOps.invert(image)


def grayscale(image: Image.Image, unused: float = 0) -> Image.Image:
    """Puts the luma (ITU-R 601) into all three channels."""
    return image.convert("L").convert("RGB")


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keeps the highest `bits` of the 8 bits of each value, 0 (black) to 8 (unchanged)."""
    # Not by Pillow's function: Pillow 13 refuses 0 bits, which a magnitude of 10 asks for (one in 44 of the paper's).
    mask = 256 - 2 ** (8 - int(bits))
    return image.point([value & mask for value in range(256)] * 3)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts the values from `threshold` on, 0 (all) to 256 (none)."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, added: float) -> Image.Image:
    """Adds `added` grey levels, up to 255, to the values below 128."""
    levels = [min(255, value + int(added)) if value < SOLARIZE_ADD_THRESHOLD else value for value in range(256)]
    return image.point(levels * 3)


def color(image: Image.Image, factor: float) -> Image.Image:
    """Scales the saturation: 0 gives greys, 1 the image."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance of each value from the mean grey: 0 gives that grey, 1 the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Scales each value: 0 gives black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from a smoothed copy: 0 gives that copy, 1 the image, 2 a sharpened one."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurs with a standard deviation of `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turns the image counter-clockwise about its centre, within its frame."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=FILL
    )


def shear_x(image: Image.Image, factor: float) -> Image.Image:
    """Moves each row to the left by `factor` times its distance from the top."""
    return _affine(image, 1, factor, 0, 0, 1, 0)


def shear_y(image: Image.Image, factor: float) -> Image.Image:
    """Moves each column up by `factor` times its distance from the left."""
    return _affine(image, 1, 0, 0, factor, 1, 0)


def translate_x(image: Image.Image, pixels: float) -> Image.Image:
    """Moves the image to the left by so many pixels."""
    return _affine(image, 1, 0, pixels, 0, 1, 0)


def translate_y(image: Image.Image, pixels: float) -> Image.Image:
    """Moves the image up by so many pixels."""
    return _affine(image, 1, 0, 0, 0, 1, pixels)


def translate_x_by_share(image: Image.Image, share: float) -> Image.Image:
    """Moves the image to the left by a share of its width."""
    return translate_x(image, share * image.width)


def translate_y_by_share(image: Image.Image, share: float) -> Image.Image:
    """Moves the image up by a share of its height."""
    return translate_y(image, share * image.height)


class Step(NamedTuple):
    """One operation of a policy as drawn: its name there, what it does, and with which argument."""

    name: str
    apply: Pixels
    argument: float


class Operation(NamedTuple):
    """An operation with its range: `start` at strength 0, `start + change` (signed: or `start - change`) at strength 1.

    Of a `whole` argument the fraction of the change is dropped.
    """

    apply: Pixels
    start: float = 0
    change: float = 0
    signed: bool = False
    whole: bool = False

    def argument(self, strength: float, generator: random.Random) -> float:
        """Gives the argument for a strength in [0, 1]; a signed one takes one number, its sign, from the generator."""
        change = self.change * strength
        if self.whole:
            change = int(change)
        if self.signed and generator.random() < 0.5:
            change = -change
        return self.start + change


# Severity increases with the magnitude in all of them; "share" is of the side of the view.
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
# The paper's wide space. Its geometric operations fill with black and take the nearest pixel; here all are alike.
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
    "TranslateX": Operation(translate_x, 0, 32, signed=True, whole=True),  # pixels, whatever the size of the view
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
    """Draws the steps of RandAugment.

    Args:
        generator: Of the view.
        magnitude: Mean of the normal distribution a magnitude is drawn from, then clipped to [0, 10].
        magnitude_std: Its standard deviation.
        probability: Of carrying out each operation chosen.
        num_ops: Operations chosen, each from all 15 (one can come twice).

    Returns:
        The operations to carry out, 0 to `num_ops`.
    """
    names, steps = list(RANDAUGMENT), []
    for _ in range(num_ops):
        name = generator.choice(names)
        if generator.random() < probability:
            drawn = min(max(generator.gauss(magnitude, magnitude_std), 0.0), MAX_MAGNITUDE)
            steps.append(_step(RANDAUGMENT, name, drawn / MAX_MAGNITUDE, generator))
    return steps


def draw_trivialaugment(generator: random.Random) -> list[Step]:
    """Draws the one step of TrivialAugment: any operation, at any of 31 even strengths from 0 to 1."""
    name = generator.choice(list(TRIVIALAUGMENT))
    strength = generator.randrange(TRIVIALAUGMENT_BINS) / (TRIVIALAUGMENT_BINS - 1)
    return [_step(TRIVIALAUGMENT, name, strength, generator)]


def draw_three_augment(generator: random.Random) -> list[Step]:
    """Draws the one step of 3-Augment: greyscale, solarise, or blur with a radius uniform in 0.1 to 2 pixels."""
    name = generator.choice(list(THREE_AUGMENT))
    return [_step(THREE_AUGMENT, name, generator.random(), generator)]


def draw_color_jitter(generator: random.Random, strength: float) -> list[Step]:
    """Draws brightness, contrast and saturation, each by a factor uniform in 1 ± `strength`, in random order."""
    operations: list[tuple[str, Pixels]] = [("Brightness", brightness), ("Contrast", contrast), ("Color", color)]
    generator.shuffle(operations)
    return [Step(name, apply, generator.uniform(1 - strength, 1 + strength)) for name, apply in operations]


def apply_steps(image: Image.Image, steps: Sequence[Step]) -> Image.Image:
    """Carries out drawn steps one after the other; the image given stays as it is."""
    for step in steps:
        image = step.apply(image, step.argument)
    return image


@functools.lru_cache(maxsize=1)
def _noise_levels() -> np.ndarray:
    """The 8-bit value `(3, 65536)` at each of 65,536 even quantiles of a channel's normal distribution."""
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((number + 0.5) / 65536) for number in range(65536)])
    mean, std = np.array(IMAGENET_DEFAULT_MEAN)[:, None], np.array(IMAGENET_DEFAULT_STD)[:, None]
    return np.clip(np.rint(255 * (mean + std * quantiles)), 0, 255).astype(np.uint8)


def normal_noise(height: int, width: int, seed: int) -> np.ndarray:
    """Makes pixels that are N(0, 1) per channel after ImageNet's normalisation, as far as 0 to 255 allows.

    Raw output of the Philox bit generator goes through a table of quantiles: NumPy guarantees that stream, and not that of
    `normal`, so that a view stays the same on every platform and after an upgrade.

    Args:
        height: In pixels.
        width: In pixels.
        seed: 0 to 2¹²⁸ - 1.

    Returns:
        `(height, width, 3)` uint8.
    """
    count = height * width * 3
    raw = np.random.Philox(key=seed).random_raw(-(-count // 4))  # 64 bits make four draws
    draws = raw.astype("<u8").view("<u2")[:count].reshape(height, width, 3)
    return np.stack([_noise_levels()[channel][draws[..., channel]] for channel in range(3)], axis=-1)
