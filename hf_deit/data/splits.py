"""Splits of some data that are found and not yet read, and the splits of tables and data sets.

loading.py loads them. folders.py finds the splits of folders, and table_files.py opens tables.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, listed, listed_lines
from .layouts import (
    HIDDEN,
    NO_SPLIT,
    TEST,
    TRAIN,
    VALIDATION,
    Selection,
    chosen_splits,
    is_neutral,
    split_of,
    subfolders,
)
from .sources import Source, check_files_exist, path_of, with_fingerprint
from .table_files import divided, is_saved_dataset, no_training_split, table_files
from .tables import LABEL_NAMES, Columns, TableReader

logger = logging.getLogger(__name__)

_HARMLESS = {
    HIDDEN,
    *(f"{extension} files" for extension in (".txt", ".md", ".csv", ".json", ".xml", ".db", ".ini", ".py")),
}


@dataclass(frozen=True)
class Read:
    """Images of a split before their headers are read.

    Args:
        source: The images, without a fingerprint.
        skipped: Paths that were left out, by kind.
        recognised: Number of images that were recognised by their content, by kind of file.
    """

    source: Source
    skipped: Mapping[str, list[str]] = field(default_factory=dict)
    recognised: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A split that can be read.

    Args:
        read: Function that reads the split, given the class names of the training images, or None for the training split.
        root: Folder of the paths in the fingerprint. None for the working folder.
        is_unlabelled: Function that returns whether the split has no labels, as test splits of competitions.
    """

    read: Callable[[Sequence[str] | None], Read]
    root: Path | None
    is_unlabelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Layout:
    """The splits of some data.

    Args:
        data: Name of the data in messages.
        splits: Splits by their name in the data.
        chosen: Name in the data of the splits "train", "validation" and "test", as far as they exist.
    """

    data: str
    splits: Mapping[str, Split]
    chosen: Mapping[str, str]

    def train(self) -> str:
        """Return the name of the training split."""
        if TRAIN not in self.chosen:
            raise no_training_split(self.data, self.splits)
        return self.chosen[TRAIN]

    def held_out(self, selection: Selection) -> str | None:
        """Return the split for validation: "validation", or a labelled "test" if there is no other, or None."""
        if VALIDATION in self.chosen:
            return VALIDATION
        if TEST not in self.chosen or selection.validation_split == NO_SPLIT:
            return None
        if self.splits[self.chosen[TEST]].is_unlabelled():
            logger.info("%s: the split %r has no labels and is not used.", self.data, self.chosen[TEST])
            return None
        return TEST


def finished(split: Split, read: Read, split_name: str, broken_images: str) -> Source:
    """Read the headers of the images, report what is left out, and return the source with its fingerprint."""
    source = read.source
    _report(source.name, read.skipped)
    if read.recognised:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(read.recognised.items()))
        logger.info("%s: images that are recognised by their content: %s.", source.name, counts)
    if source.left_out and broken_images == "raise":
        raise DataError(
            f"{len(source.left_out)} image(s) of {source.name} have a format that Pillow does not read: convert them to JPEG or "
            f"PNG, or set broken_images: skip to leave them out.{listed_lines(source.left_out)}"
        )
    return replace(with_fingerprint(source, broken_images, split.root), split_name=split_name)


def _report(name: str, skipped: Mapping[str, list[str]]) -> None:
    """Log what is left out of a folder, once: the number of files of each kind and the first of them."""
    if not skipped:
        return
    lines = [f"{len(paths)} {kind}; the first one is {sorted(paths)[0]}" for kind, paths in sorted(skipped.items())]
    harmless = all(kind in _HARMLESS for kind in skipped)
    unread = any(kind.endswith(" files") and kind not in _HARMLESS for kind in skipped)
    logger.log(
        logging.INFO if harmless else logging.WARNING,
        "%s: files and folders that are left out:%s%s",
        name,
        listed_lines(lines),
        "" if not unread else "\nConvert images of other formats, such as .heic, to JPEG or PNG to use them.",
    )


def names_only(selection: Selection, splits: Mapping[str, Any], found: Mapping[str, Any]) -> Selection:
    """Return the selection without names that are values of the split column: their rows are now in named splits.

    Args:
        selection: Names that the user gave.
        splits: The splits before `divided`.
        found: The result of `divided`.
    """
    if found is splits and selection.split_column in (None, NO_SPLIT):
        return selection
    given = {"train_split": selection.train_split, "validation_split": selection.validation_split}
    return replace(selection, **dict.fromkeys(name for name, value in given.items() if value != NO_SPLIT))


def dataset_layout(
    splits: dict[str, Any], data: str, columns: Columns, root: Path | None, selection: Selection
) -> Layout:
    """Return the layout of tables or of a data set."""
    found = divided(splits, data, columns, selection)
    chosen = chosen_splits(found, names_only(selection, splits, found), data)
    readers = {name: _table_split(dataset, data, name, columns, root) for name, dataset in found.items()}
    unused = [name for name in found if name not in chosen.values()]
    if unused:
        logger.info("%s: the splits %s are not used.", data, listed(unused))
    return Layout(data, readers, chosen)


def _table_split(dataset: Any, data: str, name: str, columns: Columns, root: Path | None) -> Split:
    kind = split_of(name)
    return Split(
        lambda class_names: read_table(dataset, f"{data} ({name})", columns, root, class_names, kind),
        root,
        lambda: _is_unlabelled(dataset, columns),
    )


def table_root(data: str) -> Path | None:
    """Return the folder that the paths in a table are relative to, or None if `data` is not a table."""
    path = Path(data).expanduser()
    files = table_files(path) if path.exists() and not is_saved_dataset(path) else {}
    return Path(next(iter(files.values()))[0]).parent if files else None


def read_table(
    dataset: Any,
    name: str,
    columns: Columns,
    root: Path | None,
    class_names: Sequence[str] | None = None,
    split: str | None = None,
) -> Read:
    """Read the images and labels of a table.

    Args:
        dataset: The rows, as a `datasets` data set.
        name: Name of the table in messages.
        columns: Columns of images and labels.
        root: Folder that relative paths are relative to. None for the working folder.
        class_names: Class names of the training images. None for the training split.
        split: The split of all rows, whose folder may lie beside the table. None if it is unknown.

    Raises:
        DataError: The table has no rows, a column or label is missing or invalid, or no image file exists.
    """
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows: it must have a row for each image.")
    reader = TableReader(dataset, columns, name, root, class_names)
    items = reader.items()
    if isinstance(items, list):
        if move_to_image_folder(reader, items, root, split):
            items = list(reader.items())
        check_files_exist(items, name, reader.image_column, root)
    return Read(Source(items, reader.labels(), reader.class_names, "", name, reader.problem_type))


def move_to_image_folder(reader: TableReader, items: Sequence[Any], root: Path | None, split: str | None) -> bool:
    """Let the reader start its paths from a folder beside the table if no file exists from the folder of the table.

    A table often names the files of `train/` or `images/` without that folder. The items are the first ones, or all.
    Returns whether the folder was changed.

    Raises:
        DataError: Several folders hold files of these names.
    """
    paths = [path for path in map(path_of, items) if path is not None]
    if root is None or not paths or any(map(os.path.exists, paths)):
        return False
    relative = [os.path.relpath(path, root) for path in paths]
    folders = subfolders(root)
    for candidates in ([n for n in folders if split_of(n) == split is not None], [n for n in folders if is_neutral(n)]):
        found = [name for name in candidates if any(os.path.exists(root / name / path) for path in relative)]
        if len(found) > 1:
            raise DataError(
                f"{reader.name}: the folders {listed(found)} hold images of the names in column {reader.image_column!r}, and it "
                f"is unclear which are listed. Write the paths from the folder of the table, {root}."
            )
        if found:
            logger.info("%s: the images are in the folder %s.", reader.name, root / found[0])
            reader.root = root / found[0]
            return True
    return False


def _is_unlabelled(dataset: Any, columns: Columns) -> bool:
    """Return whether a test split has no labels, as is common in competitions."""
    import datasets

    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in columns.labels if name in dataset.features]
    if not named and (columns.labels or not ({*dataset.features} & {*LABEL_NAMES} or len(typed) == 1)):
        return True
    usual = [name for name in dataset.features if name in LABEL_NAMES]
    return any(all(cell in (-1, None, "-1", "") for cell in dataset[name]) for name in named or typed or usual)
