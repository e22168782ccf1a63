"""One image: a random resized crop and a flip, drawn from the view's own generator.

What is drawn comes from a `random.Random` that sampling.py seeds from the view's key; this module holds no state. Pixels are
Pillow's (8-bit RGB, bicubic), normalisation is left to the trainer. Other operations belong here too, one function each.

Paper: arXiv:2012.12877, Table 9; the crop is that of Szegedy et al., arXiv:1409.4842, section 6.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image

Box = tuple[int, int, int, int]


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
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = generator.randint(0, width - box_width)
            upper = generator.randint(0, height - box_height)
            return left, upper, left + box_width, upper + box_height
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    box_width, box_height = max(box_width, 1), max(box_height, 1)
    left, upper = (width - box_width) // 2, (height - box_height) // 2
    return left, upper, left + box_width, upper + box_height


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image before it is a canonical view of `view_size`.

    Args:
        view_size: `(height, width)` of the view, in pixels.
        crop_scale: Share of the image's area a crop covers, smallest and largest (paper: 0.08 to 1).
        crop_aspect: Width / height of a crop before it is resized to the view, smallest and largest.
        flip_probability: Of mirroring left and right.

    Raises:
        ValueError: A range is not within its limits.
    """

    view_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale}: give two shares of the area, 0 < smallest <= largest <= 1."
            )
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise ValueError(
                f"crop_aspect={self.crop_aspect}: give two ratios width / height, 0 < smallest <= largest."
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability={self.flip_probability}: it must lie in [0, 1].")

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Gives the view of an upright RGB image that `generator` names."""
        box = random_resized_crop_box(*image.size, self.crop_scale, self.crop_aspect, generator)
        height, width = self.view_size
        # reducing_gap lets Pillow halve a large crop cheaply first; still at least twice the size of the view.
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if generator.random() < self.flip_probability:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return view
