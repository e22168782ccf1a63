"""Contact sheets, which show images and their augmented views, to inspect an augmentation before training with it.

Each row shows one image and its views. They are exactly the views that a training shows in epochs 0, 1, 2 …, and
data/augmentation.py computes them. Mixing is not shown.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.augmentation import Augmentation
from ..data.labels import has_label
from ..data.loading import load_training
from ..data.sampling import ViewKey, view_generator
from ..data.sources import Source
from ..data.unlabelled import load_unlabelled
from ..data.views import ViewDataset
from ..errors import DataError, UserError, listed
from ..files import STAGING_PREFIX
from .arguments import Recipe
from .data import columns_of, selection_of, view_size_of

logger = logging.getLogger(__name__)

GAP = 4
BACKGROUND = (255, 255, 255)
MAX_PIXELS = 400_000_000
# Titles of the rows of training images, and of those of unlabelled images beside them.
_TITLES = ("training images", "unlabelled images")


def draw_sheet(
    source: Source | ViewDataset,
    indices: Sequence[int],
    augmentation: Augmentation,
    seed: int,
    views: int,
    titles: Mapping[int, str] | None = None,
) -> Image.Image:
    """Draw a contact sheet. Each row shows the original image, fitted into its cell, and then its views of epochs 0, 1 …

    Args:
        source: Images to choose from.
        indices: Indices of the images to show, from the top.
        augmentation: Augmentation that computes a view; its `view_size` is the size of a cell.
        seed: Seed of the run.
        views: Number of views per image.
        titles: Titles of rows, by the number of the row from 0. Each is written above its row.

    Returns:
        RGB image with a white background and cells that are 4 pixels apart.

    Raises:
        DataError: An image cannot be read.
        UserError: The sheet would have more than 400 megapixels.
    """
    height, width = augmentation.require_view_size()
    drawn = {row: _title(text) for row, text in (titles or {}).items()}
    size = (
        max(GAP + (views + 1) * (width + GAP), *(title.width + 2 * GAP for title in drawn.values()), 0),
        GAP + len(indices) * (height + GAP) + sum(title.height + GAP for title in drawn.values()),
    )
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"The sheet would be {size[0]}×{size[1]} pixels, more than {MAX_PIXELS // 1_000_000} megapixels: show fewer "
            "images or views, or use a smaller view_size."
        )
    sheet, top = Image.new("RGB", size, BACKGROUND), GAP
    for row, index in enumerate(indices):
        if row in drawn:
            sheet.paste(drawn[row], (GAP, top))
            top += drawn[row].height + GAP
        image = source.image(index)
        keys = [ViewKey(epoch=epoch, index=index, view=0, position=0) for epoch in range(views)]
        cells = [_fitted(image, (width, height))]
        cells += [augmentation(image, view_generator(seed, key)) for key in keys]
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP + column * (width + GAP), top))
        top += height + GAP
    return sheet


def _title(text: str) -> Image.Image:
    """Return a line of black text on white."""
    font = ImageFont.load_default()
    left, upper, right, lower = map(round, font.getbbox(text))
    title = Image.new("RGB", (right - left, lower - upper), BACKGROUND)
    ImageDraw.Draw(title).text((-left, -upper), text, fill=(0, 0, 0), font=font)
    return title


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a cell of `(width, height)` with the entire image scaled to fit in its centre, at least one pixel on each side."""
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(round(side * scale), 1) for side in image.size)
    cell = Image.new("RGB", size, BACKGROUND)
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    cell.paste(small, ((size[0] - width) // 2, (size[1] - height) // 2))
    return cell


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image to a temporary file and rename it, so that the file at `path` is always complete.

    Raises:
        UserError: The folder does not exist, `path` is a folder, the file name extension is not that of an image format that
            can be written, or writing fails.
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
        raise UserError(
            f"{path} cannot be written, because its folder {path.parent} does not exist. Create the folder, or give another path."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file, for example {path / 'sheet.png'}.")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        extension = f"the extension {path.suffix}" if path.suffix else "no extension"
        raise UserError(f"{path} has {extension}: use the extension of an image format, such as .png or .jpg.")


def show_augmentations(recipe: Recipe, out: str | Path, images: int = 8, views: int = 8) -> list[int]:
    """Write the contact sheet of a recipe.

    Args:
        recipe: Recipe whose data, augmentation, seed and view size (or image size) are used. The default size is that of the
            weights that the student starts from, or 224 pixels.
        out: Image file to write; its extension determines the format.
        images: Number of rows, spread evenly over the training images; fewer if there are fewer images. If the recipe names
            unlabelled images, they have the last rows, `unlabelled_share` of them, below a title.
        views: Number of views per image.

    Returns:
        The indices of the images shown, from the top; the indices of unlabelled images follow those of the others. With
        `broken_images` "skip", the next readable image replaces an image that cannot be decoded.

    Raises:
        UserError: The data cannot be read, the file cannot be written, or a number is below 1.
    """
    for name, number in (("images", images), ("views", views)):
        if number < 1:
            raise UserError(f"{name}={number}: it must be at least 1.")
    out = Path(out)
    _check_path(out)  # before the data are read
    augmentation = replace(recipe.augmentation, view_size=view_size_of(recipe))
    seed = recipe.training.seed
    data = recipe.data
    source = load_training(
        data.data, data.validation_share, seed, columns_of(data), data.broken_images, selection_of(data)
    )
    titles = {}
    if data.unlabelled is None:
        shown, indices = source, _chosen(source, images, data.broken_images)
    else:
        unlabelled = load_unlabelled(data.unlabelled, data.image_column, data.unlabelled_split, data.broken_images)
        count = min(max(round(images * data.unlabelled_share), 1), max(images - 1, 1))
        indices = _chosen(source, images - count, data.broken_images)
        titles = {0: _TITLES[0]} if indices else {}
        titles[len(indices)] = _TITLES[1]
        indices += [len(source) + index for index in _chosen(unlabelled, count, data.broken_images)]
        shown = ViewDataset(source, augmentation, seed, unlabelled=unlabelled, unlabelled_share=data.unlabelled_share)
    without = [row for row, index in enumerate(indices, 1) if not has_label(shown.labels[index])]
    if without:
        logger.info("Images without a label are in row(s) %s from the top.", listed(without, str))
    save_image(draw_sheet(shown, indices, augmentation, seed, views, titles), out)
    return indices


def _chosen(source: Source, images: int, broken_images: str) -> list[int]:
    """Return the indices of up to `images` images, spread evenly over a source."""
    rows = min(images, len(source))
    indices = [row * len(source) // rows for row in range(rows)]
    return _readable(source, indices) if broken_images == "skip" and rows else indices


def _readable(source: Source, wanted: Sequence[int]) -> list[int]:
    """Return for each wanted index the next index, from it on, of an image that can be decoded and is not shown yet.

    If too few images can be decoded, fewer indices are returned.
    """
    broken: set[int] = set()
    shown: list[int] = []
    for start in wanted:
        for index in (*range(start, len(source)), *range(start)):
            if index in broken or index in shown:
                continue
            try:
                source.image(index)
            except DataError as error:
                logger.warning("%s The next image is shown instead.", error)
                broken.add(index)
                continue
            shown.append(index)
            break
    if not shown:
        raise DataError(f"None of the {len(source)} images of {source.name} can be decoded: check the files.")
    return shown
