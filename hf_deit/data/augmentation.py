"""Augmentation of one image: crop, flip, automatic augmentation, colour jitter and random erasing, in this order.

The result is called a view. All random numbers come from a `random.Random` that sampling.py seeds from the view's key.
This module has no state. Pixels are computed with Pillow (8-bit RGB, bicubic). transforms.py contains the operations of
the policies; it is imported only when it is needed, so that the fields can be listed without NumPy and Pillow.
batch_ops.py normalises and mixes.

Papers: DeiT, arXiv:2012.12877, Table 9; crop: Szegedy et al., arXiv:1409.4842, section 6; random erasing: Zhong et al.,
arXiv:1708.04896.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..fingerprints import describe_fields
from ..sizes import as_size

if TYPE_CHECKING:
    from PIL import Image

    from .transforms import Step

Box = tuple[int, int, int, int]
AUTO_AUGMENTS = ("none", "randaugment", "trivialaugment", "three_augment")
# Fields of hf_deit 0.1. Every description of views contains them; a field that was added later is contained only if it
# does not have its default value.
_FIELDS_OF_0_1 = (
    "view_size",
    "crop_scale",
    "crop_aspect",
    "flip_probability",
    "auto_augment",
    "randaugment_magnitude",
    "randaugment_magnitude_std",
    "randaugment_probability",
    "randaugment_num_ops",
    "color_jitter",
    "erasing_probability",
)
ERASED_SHARE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def _drawn_sides(
    area: int, share: tuple[float, float], aspect: tuple[float, float], generator: random.Random
) -> tuple[int, int]:
    """Draw width and height of a box. `share` is the range of its share of the area, `aspect` of its aspect ratio."""
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
    """Draw the box of a random resized crop.

    The box covers a share of the image's area that is uniform in `scale`, and its aspect ratio is log-uniform in
    `aspect`. If ten drawn boxes do not fit into the image, the largest central box with an allowed aspect ratio is
    used, as in torchvision.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        scale: Smallest and largest share of the image's area, in (0, 1].
        aspect: Smallest and largest width / height of the box.
        generator: Random generator of the view.

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
    """Draw the box to erase.

    The box covers a share of the area that is uniform in [0.02, 1/3], and its aspect ratio is log-uniform in
    [0.3, 1/0.3].

    Args:
        width: Width of the view, in pixels.
        height: Height of the view, in pixels.
        generator: Random generator of the view.

    Returns:
        `(left, upper, right, lower)` in pixels. The box is narrower and lower than the view. None if all of ten drawn
        boxes are too large or empty.
    """
    for _ in range(10):
        sides = _drawn_sides(width * height, ERASED_SHARE, ERASED_ASPECT, generator)
        if 0 < sides[0] < width and 0 < sides[1] < height:
            return _place(width, height, sides, generator)
    return None


def _erase(view: "Image.Image", generator: random.Random) -> None:
    """Fill a random box of the view with noise, in place. Do nothing if no box fits."""
    from PIL import Image

    from .transforms import normal_noise

    box = erasing_box(*view.size, generator)
    if box is not None:
        left, upper, right, lower = box
        noise = normal_noise(lower - upper, right - left, generator.getrandbits(128))
        view.paste(Image.fromarray(noise), (left, upper))


def _as_range(name: str, values: Sequence[float]) -> tuple[float, float]:
    values = tuple(values)
    if len(values) != 2:
        raise RecipeError(f"{name}={values}: give two numbers, the smallest and the largest value.")
    return values


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images. `hf-deit show-augmentations` shows its effect.

    By default, only crop and flip are on. The paper's recipe is `auto_augment="randaugment"` with the defaults of the
    other fields, and `erasing_probability=0.25`. Call an instance with an upright RGB image and the random generator of
    a view.

    Raises:
        RecipeError: The value of a field is invalid or out of range.
    """

    view_size: tuple[int, int] | None = field(
        default=None,
        metadata={
            "help": "Size in pixels of the augmented view, which student and teacher each resize to their own input "
            "size: one number, or height and width. Default in a recipe: image_size."
        },
    )
    crop_scale: tuple[float, float] = field(
        default=(0.08, 1.0),
        metadata={"help": "Smallest and largest share of the image's area that the random crop covers, in (0, 1]."},
    )
    crop_aspect: tuple[float, float] = field(
        default=(3 / 4, 4 / 3),
        metadata={"help": "Smallest and largest width / height of the random crop, before it is resized to view_size."},
    )
    flip_probability: float = field(
        default=0.5, metadata={"help": "Probability of a horizontal flip, which swaps left and right."}
    )
    auto_augment: str = field(
        default="none",
        metadata={"help": f"Policy of automatic augmentation: {', '.join(AUTO_AUGMENTS)} (paper: randaugment)."},
    )
    randaugment_magnitude: float = field(default=9.0, metadata={"help": "Mean magnitude of RandAugment, 0 to 10."})
    randaugment_magnitude_std: float = field(
        default=0.5,
        metadata={"help": "Standard deviation of RandAugment's magnitude, which is drawn for each operation."},
    )
    randaugment_probability: float = field(
        default=0.5, metadata={"help": "Probability that an operation chosen by RandAugment is applied."}
    )
    randaugment_num_ops: int = field(
        default=2, metadata={"help": "Number of operations that RandAugment chooses per view, at least 1."}
    )
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Strength of colour jitter, 0 to 1: brightness, contrast and saturation are each scaled by a "
            "random factor within 1 ± this value. 0 turns it off (DeiT III: 0.3)."
        },
    )
    erasing_probability: float = field(
        default=0.0,
        metadata={"help": "Probability of random erasing, which fills one box of the view with noise (paper: 0.25)."},
    )

    def __post_init__(self) -> None:
        from .transforms import MAX_MAGNITUDE

        object.__setattr__(self, "view_size", as_size("view_size", self.view_size))
        for name in ("crop_scale", "crop_aspect"):
            object.__setattr__(self, name, _as_range(name, getattr(self, name)))
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise RecipeError(
                f"crop_scale={self.crop_scale}: give two shares of the area, 0 < smallest <= largest <= 1."
            )
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1] < math.inf:
            raise RecipeError(
                f"crop_aspect={self.crop_aspect}: give two ratios width / height, 0 < smallest <= largest."
            )
        if self.auto_augment not in AUTO_AUGMENTS:
            raise RecipeError(f"auto_augment={self.auto_augment!r}: choose one of {', '.join(AUTO_AUGMENTS)}.")
        limits = {"randaugment_magnitude": MAX_MAGNITUDE, "randaugment_magnitude_std": MAX_MAGNITUDE}
        shares = ("flip_probability", "randaugment_probability", "color_jitter", "erasing_probability")
        for name, limit in {**dict.fromkeys(shares, 1), **limits}.items():
            if not 0 <= getattr(self, name) <= limit:
                raise RecipeError(f"{name}={getattr(self, name)}: it must be in [0, {limit:g}].")
        if type(self.randaugment_num_ops) is not int or self.randaugment_num_ops < 1:
            raise RecipeError(
                f"randaugment_num_ops={self.randaugment_num_ops}: it must be a whole number, at least 1. To turn "
                "RandAugment off, set auto_augment to none."
            )

    def require_view_size(self) -> tuple[int, int]:
        """Return `view_size`, or raise an error if it is not set.

        Raises:
            RecipeError: `view_size` is None.
        """
        if self.view_size is None:
            raise RecipeError(
                "view_size is not set: give (height, width) in pixels, for example Augmentation((224, 224))."
            )
        return self.view_size

    def describe(self) -> dict[str, Any]:
        """Return the fields that describe the views. The description is written to files and compared later."""
        return describe_fields(self, always=_FIELDS_OF_0_1)

    def __call__(self, image: "Image.Image", generator: random.Random) -> "Image.Image":
        """Return a view of an upright RGB image. All random choices are drawn from `generator`.

        Raises:
            RecipeError: `view_size` is None.
        """
        from PIL import Image

        from .transforms import apply_steps

        height, width = self.require_view_size()
        box = random_resized_crop_box(*image.size, self.crop_scale, self.crop_aspect, generator)
        # With reducing_gap, Pillow first shrinks a large crop by a fast method, to no less than twice the size of the
        # view.
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if generator.random() < self.flip_probability:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = apply_steps(view, self.draw_steps(generator))
        # If a field is off, no random number is drawn for it, so that views are the same as in versions without the
        # field.
        if self.erasing_probability and generator.random() < self.erasing_probability:
            _erase(view, generator)  # in place; resize always returns a new image, never the caller's
        return view

    def draw_steps(self, generator: random.Random) -> "list[Step]":
        """Draw the operations between flip and erasing: first those of the policy, then colour jitter."""
        from .transforms import draw_color_jitter, draw_randaugment, draw_three_augment, draw_trivialaugment

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
