"""A contact sheet: each row shows an image and many of its views, to look at an augmentation before training with it.

The views are the exact views of a training in epochs 0, 1, 2 …, made by data/augmentation.py. Mixing is not shown.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..data.augmentation import Augmentation
from ..data.loading import load_training
from ..data.sampling import ViewKey, view_generator
from ..data.sources import Source
from ..errors import DataError, UserError
from ..files import STAGING_PREFIX
from .arguments import Recipe
from .data import columns_of, view_size_of

logger = logging.getLogger(__name__)

GAP = 4
BACKGROUND = (255, 255, 255)
MAX_PIXELS = 400_000_000


def draw_sheet(
    source: Source, indices: Sequence[int], augmentation: Augmentation, seed: int, views: int
) -> Image.Image:
    """Draw the sheet: in each row the original image, fitted into its cell, then its views of epochs 0, 1 …

    Args:
        source: Images to choose from.
        indices: Indices of the images that are shown, from the top.
        augmentation: Makes a view; its `view_size` is the size of a cell.
        seed: Seed of the run.
        views: Number of columns after the first.

    Returns:
        RGB image with cells 4 pixels apart on white.

    Raises:
        DataError: An image cannot be read.
        UserError: The sheet would have more than 400 megapixels.
    """
    height, width = augmentation.require_view_size()
    size = (GAP + (views + 1) * (width + GAP), GAP + len(indices) * (height + GAP))
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"The sheet would be {size[0]}×{size[1]} pixels, more than {MAX_PIXELS // 1_000_000} megapixels: show fewer "
            "images or views, or use a smaller view_size."
        )
    sheet = Image.new("RGB", size, BACKGROUND)
    for row, index in enumerate(indices):
        image = source.image(index)
        keys = [ViewKey(epoch=epoch, index=index, view=0, position=0) for epoch in range(views)]
        cells = [_fitted(image, (width, height))]
        cells += [augmentation(image, view_generator(seed, key)) for key in keys]
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the whole image, scaled into the middle of a cell of `(width, height)`; each side has at least one pixel."""
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(round(side * scale), 1) for side in image.size)
    cell = Image.new("RGB", size, BACKGROUND)
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    cell.paste(small, ((size[0] - width) // 2, (size[1] - height) // 2))
    return cell


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image under a temporary name and rename it, so that the file at `path` is always complete.

    Raises:
        UserError: The folder does not exist, or the file name extension is not an image format that can be written.
    """
    _check_path(path)
    temporary = path.with_name(f"{STAGING_PREFIX}{path.name}")
    try:
        image.save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_path(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file, for example {path / 'sheet.png'}.")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(f"{path}: {path.suffix or 'no extension'} is not a supported image format; use .png or .jpg.")


def show_augmentations(recipe: Recipe, out: str | Path, images: int = 8, views: int = 8) -> list[int]:
    """Write the contact sheet of a recipe.

    Args:
        recipe: Its data, augmentation, view or image size and seed are used. The default size is that of the weights it
            starts from, or 224 pixels.
        out: Image file to write; its extension is the format.
        images: Number of rows, spread evenly over the training images; fewer if there are fewer images.
        views: Number of views of each image.

    Returns:
        The indices of the images shown, from the top. With `broken_images` "skip" the next readable image is shown in place
        of one that cannot be decoded.

    Raises:
        UserError: The data or the file cannot be used, or a number is below 1.
    """
    for name, number in (("images", images), ("views", views)):
        if number < 1:
            raise UserError(f"{name}={number}: at least 1.")
    out = Path(out)
    _check_path(out)  # before the data are read
    augmentation = replace(recipe.augmentation, view_size=view_size_of(recipe))
    seed = recipe.training.seed
    data = recipe.data
    source = load_training(data.data, data.validation_share, seed, columns_of(data), data.broken_images)
    rows = min(images, len(source))
    indices = [row * len(source) // rows for row in range(rows)]
    if data.broken_images == "skip":
        indices = _readable(source, indices)
    save_image(draw_sheet(source, indices, augmentation, seed, views), out)
    return indices


def _readable(source: Source, wanted: Sequence[int]) -> list[int]:
    """Return for each index the first one from there on that can be decoded and is not shown yet; fewer if too few can."""
    broken: set[int] = set()
    shown: list[int] = []
    for start in wanted:
        for index in (*range(start, len(source)), *range(start)):
            if index in broken or index in shown:
                continue
            try:
                source.image(index)
            except DataError as error:
                logger.warning("%s The next image is shown in its place.", error)
                broken.add(index)
                continue
            shown.append(index)
            break
    if not shown:
        raise DataError(f"None of the {len(source)} images of {source.name} can be decoded: replace the files.")
    return shown
