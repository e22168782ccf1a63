"""Images without labels: found in folders of any nesting, tables, saved data sets and on the Hub.

The names of folders and the label columns of tables are ignored. `duplicates` finds images that are also in another
source, for example among the validation images. views.py makes training views of the images, and sampling.py decides
which share of a batch they have.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, listed
from ..losses import UNLABELLED
from .images import check_policy, is_image_file
from .layouts import TEST, ImageFiles, list_files, split_of
from .sources import Source, check_files_exist
from .splits import Read, Split, finished, move_to_image_folder, table_root
from .table_files import is_saved_dataset, open_all, table_files
from .tables import ImageReader

logger = logging.getLogger(__name__)

# Value of `unlabelled_split` that takes the images of all splits.
ALL_SPLITS = "all"
_SPLIT_NAMES = ("unlabelled", "unlabeled", "unsupervised")


def load_unlabelled(
    data: str, image_column: str | None = None, split: str | None = None, broken_images: str = "skip"
) -> Source:
    """Find images without labels.

    Args:
        data: A folder, whose images are found in all folders in it; a table (CSV, TSV, JSON lines, parquet), or a folder of
            tables and no images; a folder saved by `datasets`; or the name of a data set on the Hub.
        image_column: Column of images. If the data has no such column, it is found by type, because the name is that of the
            column in the labelled data.
        split: Split of a table folder or data set, or "all". Default: the split called "unlabelled" ("unlabeled",
            "unsupervised"), else the training split, else the only split.
        broken_images: What to do with a file whose header is not that of an image, as in `load_splits`.

    Returns:
        The images, each with the label `losses.UNLABELLED`, and no class names.

    Raises:
        DataError: No data or no image is found, the split does not exist, or an image cannot be read and `broken_images` is
            "raise".
    """
    check_policy(broken_images)
    path = Path(data).expanduser()
    if path.is_dir() and not is_saved_dataset(path):
        read = _folder(data, path)
        if read.source.items:
            if split is not None:
                raise DataError(
                    f"unlabelled_split={split!r}: {data} is a folder of images, all of which are used. Give the folder of "
                    "the split as unlabelled, and leave out unlabelled_split."
                )
            return finished(Split(lambda names: read, path), read, "", broken_images)
        if not table_files(path):
            kinds = ", ".join(f"{len(paths)} {kind}" for kind, paths in read.skipped.items())
            raise DataError(
                f"unlabelled={data!r}: this folder and the folders in it have no images"
                f"{f' ({kinds})' if kinds else ''}. Give a folder with image files, such as .jpg and .png, or a table."
            )
    elif path.is_file() and not table_files(path):
        raise DataError(
            f"unlabelled={data!r} is a file, but not a table (.csv, .tsv, .jsonl, .parquet). Give a folder of images, a table, "
            "or the name of a data set on the Hub."
        )
    return _table(data, image_column, split, broken_images)


def count_unlabelled(data: str, split: str | None = None) -> int:
    """Return the number of images that `load_unlabelled` would find, without reading them.

    The arguments are those of `load_unlabelled`.

    Raises:
        DataError: No data or no image is found, or the split does not exist.
    """
    path = Path(data).expanduser()
    count = 0
    if path.is_dir() and not is_saved_dataset(path):
        count = sum(map(is_image_file, list_files(path).files))
    if not count and (not path.is_dir() or is_saved_dataset(path) or table_files(path)):
        splits = open_all(data)
        count = sum(len(splits[name]) for name in _chosen(data, list(splits), split))
    if not count:
        raise DataError(f"unlabelled={data!r} has no images. Give a folder, a table or a data set with images.")
    return count


def _source(items: Sequence[Any], name: str, left_out: Iterable[str] = ()) -> Source:
    return Source(items, [UNLABELLED] * len(items), (), "", name, left_out=tuple(left_out))


def _folder(data: str, path: Path) -> Read:
    found = ImageFiles()
    found.add(list_files(path))
    tests = [
        image
        for image in found.images
        if any(split_of(part) == TEST for part in Path(image).relative_to(path).parts[:-1])
    ]
    if tests:
        logger.warning(
            "%s: %d of the unlabelled images are in folders of a test split; the first one is %s. The student sees them in "
            "training (without their labels). For a test with new images, give folders without them.",
            data,
            len(tests),
            tests[0],
        )
    return Read(_source(found.images, f"{data} (unlabelled)", found.unsupported), found.skipped, found.recognised)


def _table(data: str, image_column: str | None, split: str | None, broken_images: str) -> Source:
    splits = open_all(data)
    names = _chosen(data, list(splits), split)
    if len(names) == 1:
        dataset = splits[names[0]]
    else:
        import datasets

        columns = set.intersection(*(set(splits[name].features) for name in names))
        image = _image_column(splits[names[0]].features, image_column)
        kept = [image] if image in columns else sorted(columns)
        try:
            dataset = datasets.concatenate_datasets([splits[name].select_columns(kept) for name in names])
        except ValueError as error:
            raise DataError(
                f"unlabelled_split={split!r}: the splits {listed(names)} of {data} cannot be combined: {error}"
            ) from error
    name = f"{data} (unlabelled)"
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows: it must have a row for each image.")
    root = table_root(data)
    reader = ImageReader(dataset, _image_column(dataset.features, image_column), name, root)
    reader.check()
    items = reader.items()
    if isinstance(items, list):
        if move_to_image_folder(reader, items, root, None):
            items = reader.items()
        check_files_exist(items, name, reader.column, root)
    read = Read(_source(items, name))
    return finished(Split(lambda names: read, root), read, "", broken_images)


def _image_column(features: Any, given: str | None) -> str | None:
    return given if given in features else None


def _chosen(data: str, names: Sequence[str], split: str | None) -> list[str]:
    """Return the names of the splits whose images are used."""
    if split == ALL_SPLITS:
        return list(names)
    if split is not None:
        if split not in names:
            raise DataError(
                f"unlabelled_split={split!r}: {data} has no such split. Its splits are {listed(names)}; {ALL_SPLITS!r} takes "
                "all of them."
            )
        return [split]
    usual = [name for name in _SPLIT_NAMES if name in names] or [name for name in names if split_of(name) == "train"]
    if not usual and len(names) > 1:
        raise DataError(
            f"unlabelled={data!r} has the splits {listed(names)}: set unlabelled_split to one of them, or to {ALL_SPLITS!r}."
        )
    chosen = (usual or list(names))[:1]
    if len(names) > 1:
        logger.info("%s: the split %r is used as unlabelled images (unlabelled_split).", data, chosen[0])
    return chosen


# ---- the same images in two sources ----


def duplicates(items: Sequence[Any], others: Sequence[Any]) -> list[int]:
    """Return the indices of the items that have the same content as one of `others`.

    Two files are the same if they are one file, or have the same size and the same content, whatever their names are. Files
    are read only if another one has the same size. Embedded images are compared with files and with each other by their
    bytes. A picture that was saved again, in another format or size, is not found.

    Args:
        items: Items, see images.py.
        others: Items to compare with.
    """
    places, sizes = _places_and_sizes(others)
    own_places, own_sizes = _places_and_sizes(items)
    common = {size for size in sizes if size is not None} & set(own_sizes)
    content = {_digest(others[index]) for index, size in enumerate(sizes) if size in common} - {None}
    known = {place for place in places if place is not None}
    return [
        index
        for index, (place, size) in enumerate(zip(own_places, own_sizes, strict=True))
        if place in known or (size in common and _digest(items[index]) in content)
    ]


def _places_and_sizes(items: Sequence[Any]) -> tuple[list[str | None], list[int | None]]:
    """Return the real path of each item, None for an embedded image; and its size in bytes, None if it cannot be read."""
    places: list[str | None] = []
    sizes: list[int | None] = []
    for index in range(len(items)):
        path, content = _path_and_content(items[index])
        places.append(None if path is None else os.path.realpath(path))
        if content is not None:
            sizes.append(len(content))
            continue
        try:
            sizes.append(None if path is None else os.path.getsize(path))
        except OSError:  # it is reported as unreadable elsewhere
            sizes.append(None)
    return places, sizes


def _path_and_content(item: Any) -> tuple[str | None, bytes | None]:
    """Return the path of a file, or the bytes of an embedded image."""
    if isinstance(item, str | os.PathLike):
        return os.fspath(item), None
    content = None if item is None else item["bytes"]
    return (None if item is None or content is not None else item["path"]), content


def _digest(item: Any) -> bytes | None:
    """Return the digest of an item's content; None if the file cannot be read, which is reported elsewhere."""
    path, content = _path_and_content(item)
    if content is not None:
        return hashlib.sha256(content).digest()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
