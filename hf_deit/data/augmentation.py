"""One image becomes one view: crop, flip, automatic augmentation, colour jitter, random erasing, in this order.

What is drawn comes from a `random.Random` that sampling.py seeds from the view's key; this module holds no state. Pixels are
Pillow's (8-bit RGB, bicubic). The operations of the policies are in transforms.py; normalisation is left to the trainer, and
so is what needs two images.

Paper: arXiv:2012.12877, Table 9; the crop is that of Szegedy et al., arXiv:1409.4842, section 6; erasing that of Zhong et
al., arXiv:1708.04896.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image

from .transforms import (
    MAX_MAGNITUDE,
    Step,
    apply_steps,
    draw_color_jitter,
    draw_randaugment,
    draw_three_augment,
    draw_trivialaugment,
    normal_noise,
)

Box = tuple[int, int, int, int]
AUTO_AUGMENTS = ("none", "randaugment", "trivialaugment", "three_augment")
ERASED_SHARE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def _drawn_sides(
    area: int, share: tuple[float, float], aspect: tuple[float, float], generator: random.Random
) -> tuple[int, int]:
    """Width and height of a box with a share of the area uniform in `share` and an aspect ratio log-uniform in `aspect`."""
    area = area * generator.uniform(*share)
    ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


def _place(width: int, height: int, sides: tuple[int, int], generator: random.Random) -> Box:
    left = generator.randint(0, width - sides[0])
    upper = generator.randint(0, height - sides[1])
    return left, upper, left + sides[0], upper + sides[1]


def random_resized_crop_box(
    width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float], generator: random.Random
) -> Box:
    """Draws a box with a share of the area uniform in `scale` and an aspect ratio log-uniform in `aspect`.

    After ten boxes that do not fit, the largest central box with an allowed aspect ratio is taken, as torchvision does.

    Args:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        scale: Smallest and largest share of the image's area, in (0, 1].
        aspect: Smallest and largest width / height of the box.
        generator: Of the view.

    Returns:
        `(left, upper, right, lower)` in pixels, within the image.
    """
    for _ in range(10):
        box_width, box_height = _drawn_sides(width * height, scale, aspect, generator)
        if 0 < box_width <= width and 0 < box_height <= height:
            return _place(width, height, (box_width, box_height), generator)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    box_width, box_height = max(box_width, 1), max(box_height, 1)
    left, upper = (width - box_width) // 2, (height - box_height) // 2
    return left, upper, left + box_width, upper + box_height


def erasing_box(width: int, height: int, generator: random.Random) -> Box | None:
    """Draws the box to erase: a share of 0.02 to 1/3 of the area, an aspect ratio log-uniform in 0.3 to 1/0.3.

    Args:
        width: Of the view, in pixels.
        height: Of the view, in pixels.
        generator: Of the view.

    Returns:
        `(left, upper, right, lower)` in pixels, smaller than the view on both sides; None if none of ten boxes is.
    """
    for _ in range(10):
        sides = _drawn_sides(width * height, ERASED_SHARE, ERASED_ASPECT, generator)
        if 0 < sides[0] < width and 0 < sides[1] < height:
            return _place(width, height, sides, generator)
    return None


def _erase(view: Image.Image, generator: random.Random) -> None:
    """Fills a box of the view, in place, if one fits."""
    box = erasing_box(*view.size, generator)
    if box is not None:
        left, upper, right, lower = box
        noise = normal_noise(lower - upper, right - left, generator.getrandbits(128))
        view.paste(Image.fromarray(noise), (left, upper))


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image before it is a canonical view of `view_size`.

    Beyond crop and flip all is off by default; the paper's recipe is `auto_augment="randaugment"` as it stands here and
    `erasing_probability=0.25`.

    Args:
        view_size: `(height, width)` of the view, in pixels.
        crop_scale: Share of the image's area a crop covers, smallest and largest (paper: 0.08 to 1).
        crop_aspect: Width / height of a crop before it is resized to the view, smallest and largest.
        flip_probability: Of mirroring left and right.
        auto_augment: Policy: none, randaugment, trivialaugment or three_augment (ranges: transforms.py).
        randaugment_magnitude: Mean magnitude of RandAugment, 0 to 10.
        randaugment_magnitude_std: Standard deviation of the magnitude, drawn anew for each operation.
        randaugment_probability: Of carrying out each operation chosen.
        randaugment_num_ops: Operations chosen for a view, at least 1.
        color_jitter: Brightness, contrast and saturation are scaled by 1 ± this, 0 to 1; 0: not at all.
        erasing_probability: Of filling one box with noise.

    Raises:
        ValueError: A field is not within its limits.
    """

    view_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    auto_augment: str = "none"
    randaugment_magnitude: float = 9.0
    randaugment_magnitude_std: float = 0.5
    randaugment_probability: float = 0.5
    randaugment_num_ops: int = 2
    color_jitter: float = 0.0
    erasing_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale}: give two shares of the area, 0 < smallest <= largest <= 1."
            )
        size = self.view_size
        if not (
            isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        ):
            raise ValueError(f"view_size={size!r}: give (height, width) in whole pixels, both above 0.")
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1] < math.inf:
            raise ValueError(
                f"crop_aspect={self.crop_aspect}: give two ratios width / height, 0 < smallest <= largest."
            )
        if self.auto_augment not in AUTO_AUGMENTS:
            raise ValueError(f"auto_augment={self.auto_augment!r}: choose one of {', '.join(AUTO_AUGMENTS)}.")
        limits = {"randaugment_magnitude": MAX_MAGNITUDE, "randaugment_magnitude_std": MAX_MAGNITUDE}
        shares = ("flip_probability", "randaugment_probability", "color_jitter", "erasing_probability")
        for name, limit in {**dict.fromkeys(shares, 1), **limits}.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}={getattr(self, name)}: it must lie in [0, {limit:g}].")
        if type(self.randaugment_num_ops) is not int or self.randaugment_num_ops < 1:
            raise ValueError(
                f"randaugment_num_ops={self.randaugment_num_ops}: at least 1; to do without, set auto_augment to none."
            )

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Gives the view of an upright RGB image that `generator` names."""
        box = random_resized_crop_box(*image.size, self.crop_scale, self.crop_aspect, generator)
        height, width = self.view_size
        # reducing_gap lets Pillow halve a large crop cheaply first; still at least twice the size of the view.
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if generator.random() < self.flip_probability:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = apply_steps(view, self.draw_steps(generator))
        # What is off draws nothing: a view without it stays what it was before there was such a field.
        if self.erasing_probability and generator.random() < self.erasing_probability:
            _erase(view, generator)  # never the caller's image: the crop has made a new one, whatever its size
        return view

    def draw_steps(self, generator: random.Random) -> list[Step]:
        """Draws the operations between flip and erasing: those of the policy, then the colour jitter."""
        steps: list[Step] = []
        if self.auto_augment == "randaugment":
            steps += draw_randaugment(
                generator,
                self.randaugment_magnitude,
                self.randaugment_magnitude_std,
                self.randaugment_probability,
                self.randaugment_num_ops,
            )
        elif self.auto_augment == "trivialaugment":
            steps += draw_trivialaugment(generator)
        elif self.auto_augment == "three_augment":
            steps += draw_three_augment(generator)
        if self.color_jitter:
            steps += draw_color_jitter(generator, self.color_jitter)
        return steps
