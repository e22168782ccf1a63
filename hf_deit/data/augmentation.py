"""One image becomes one view: crop, flip, automatic augmentation, colour jitter, random erasing, in this order.

Everything random comes from a `random.Random` that sampling.py seeds from the view's key; this module holds no state. Pixels
are Pillow's (8-bit RGB, bicubic). The operations of the policies are in transforms.py, which is imported with the first view:
the fields can be listed without NumPy and Pillow. Normalisation and mixing are left to batch_ops.py.

Paper: arXiv:2012.12877, Table 9; the crop is that of Szegedy et al., arXiv:1409.4842, section 6; erasing that of Zhong et
al., arXiv:1708.04896.
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
# Fields of hf_deit 0.1, which every description of views has. A later field is described only where it is not at its default.
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
    """Return width and height of a box with a share of the area uniform in `share` and an aspect ratio log-uniform in `aspect`."""
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
    """Draw a box with a share of the area uniform in `scale` and an aspect ratio log-uniform in `aspect`.

    After ten boxes that do not fit, the largest central box with an allowed aspect ratio is used, as torchvision does.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        scale: Smallest and largest share of the image's area, in (0, 1].
        aspect: Smallest and largest width / height of the box.
        generator: Generator of the view.

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
    """Draw the box to erase: a share of 0.02 to 1/3 of the area, an aspect ratio log-uniform in 0.3 to 1/0.3.

    Args:
        width: Width of the view, in pixels.
        height: Height of the view, in pixels.
        generator: Generator of the view.

    Returns:
        `(left, upper, right, lower)` in pixels, smaller than the view on both sides; None if none of ten drawn boxes is that small.
    """
    for _ in range(10):
        sides = _drawn_sides(width * height, ERASED_SHARE, ERASED_ASPECT, generator)
        if 0 < sides[0] < width and 0 < sides[1] < height:
            return _place(width, height, sides, generator)
    return None


def _erase(view: "Image.Image", generator: random.Random) -> None:
    """Fill a box of the view with noise, in place, if one fits."""
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
        raise RecipeError(f"{name}={values}: give two numbers, the smallest and the largest.")
    return values


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image before it is a view; `hf-deit show-augmentations` shows it.

    Beyond crop and flip everything is off by default; the paper's recipe is `auto_augment="randaugment"` with the defaults
    below and `erasing_probability=0.25`. An instance is called with an upright RGB image and the generator of a view.

    Raises:
        RecipeError: A field is not within its limits.
    """

    view_size: tuple[int, int] | None = field(
        default=None,
        metadata={
            "help": "Pixels of the view that student and teacher see, before each resizes it: one number, or height and "
            "width. Default in a recipe: image_size."
        },
    )
    crop_scale: tuple[float, float] = field(
        default=(0.08, 1.0),
        metadata={"help": "Smallest and largest share of the image's area that a crop covers, in (0, 1]."},
    )
    crop_aspect: tuple[float, float] = field(
        default=(3 / 4, 4 / 3),
        metadata={"help": "Smallest and largest width / height of a crop, before it is resized to the view."},
    )
    flip_probability: float = field(
        default=0.5, metadata={"help": "Probability of a horizontal flip (left and right swapped)."}
    )
    auto_augment: str = field(
        default="none",
        metadata={"help": f"Policy of automatic augmentation: {', '.join(AUTO_AUGMENTS)} (paper: randaugment)."},
    )
    randaugment_magnitude: float = field(default=9.0, metadata={"help": "Mean magnitude of RandAugment, 0 to 10."})
    randaugment_magnitude_std: float = field(
        default=0.5, metadata={"help": "Standard deviation of the magnitude, which is drawn for each operation."}
    )
    randaugment_probability: float = field(
        default=0.5, metadata={"help": "Probability that an operation chosen by RandAugment is applied."}
    )
    randaugment_num_ops: int = field(
        default=2, metadata={"help": "Number of operations that RandAugment chooses for a view, at least 1."}
    )
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "Brightness, contrast and saturation are scaled by 1 ± this value, 0 to 1; 0 turns it off "
            "(DeiT III: 0.3)."
        },
    )
    erasing_probability: float = field(
        default=0.0, metadata={"help": "Probability that one box of the view is filled with noise (paper: 0.25)."}
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
                raise RecipeError(f"{name}={getattr(self, name)}: it must lie in [0, {limit:g}].")
        if type(self.randaugment_num_ops) is not int or self.randaugment_num_ops < 1:
            raise RecipeError(
                f"randaugment_num_ops={self.randaugment_num_ops}: it must be a whole number, at least 1. To turn RandAugment "
                "off, set auto_augment to none."
            )

    def require_view_size(self) -> tuple[int, int]:
        """Return `view_size`.

        Raises:
            RecipeError: It is None, so no view can be made.
        """
        if self.view_size is None:
            raise RecipeError(
                "view_size is not set: give (height, width) in pixels, for example Augmentation((224, 224))."
            )
        return self.view_size

    def describe(self) -> dict[str, Any]:
        """Return the fields for descriptions of views, which are kept in files and compared later."""
        return describe_fields(self, always=_FIELDS_OF_0_1)

    def __call__(self, image: "Image.Image", generator: random.Random) -> "Image.Image":
        """Return the view of an upright RGB image that `generator` determines.

        Raises:
            RecipeError: `view_size` is None.
        """
        from PIL import Image

        from .transforms import apply_steps

        height, width = self.require_view_size()
        box = random_resized_crop_box(*image.size, self.crop_scale, self.crop_aspect, generator)
        # reducing_gap lets Pillow halve a large crop cheaply first; still at least twice the size of the view.
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if generator.random() < self.flip_probability:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = apply_steps(view, self.draw_steps(generator))
        # A field that is off draws nothing: pixels of earlier versions, which lacked the field, stay the same.
        if self.erasing_probability and generator.random() < self.erasing_probability:
            _erase(view, generator)  # never the caller's image: the crop has made a new one, whatever its size
        return view

    def draw_steps(self, generator: random.Random) -> "list[Step]":
        """Draw the operations between flip and erasing: those of the policy, then the colour jitter."""
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
