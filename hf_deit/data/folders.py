"""Layouts of folders: class folders, folders of splits, and images with a table that lists them.

layouts.py knows the names; loading.py loads the splits that are found here.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, listed
from ..losses import ProblemType
from ..models.label_names import normal_form
from .images import is_image_file
from .labels import has_label
from .layouts import (
    NO_SPLIT,
    SPLITS,
    TEST,
    TRAIN,
    WHOLE_FOLDER,
    ImageFiles,
    Listing,
    Selection,
    check_not_parts,
    chosen_splits,
    content_root,
    inverted_splits,
    is_table,
    list_files,
    other_tables,
    split_names,
    split_of,
    split_root,
    subfolders,
)
from .sources import Source, check_class_names, path_of
from .splits import Layout, Read, Split, dataset_layout, read_table, table_root
from .table_files import joined, open_tables, table_files, uses_path_splits
from .tables import Columns, TableReader

logger = logging.getLogger(__name__)


def training_folder_has_classes(path: Path) -> bool:
    """Return whether a folder has a folder of training images with folders in it."""
    return any(split_of(name) == TRAIN and subfolders(path / name) for name in subfolders(path))


def folder_layout(data: str, path: Path, columns: Columns, selection: Selection) -> Layout:
    """Return the splits of a folder of images, of tables, or of both.

    Args:
        data: Name of the data in messages.
        path: The folder.
        columns: Columns of images and labels in tables.
        selection: Split column and names of splits that the user gave.

    Raises:
        DataError: It is unclear which folders are splits and which are classes, or whether a table or the folders name the
            classes; or a table cannot be read.
    """
    tables = table_files(path)
    has_classes = training_folder_has_classes(path)
    named = columns != Columns()
    if any(split_of(name) == TRAIN for name in tables) and (named or not has_classes):
        return dataset_layout(open_tables(tables, data), data, columns, table_root(data), selection)
    root = content_root(path)
    if root != path:
        logger.info("%s: the splits are in the folder %s.", data, root)
        return folder_layout(data, root, columns, selection)
    if not tables:
        beside = [file for file in other_tables(path) if file.parent == path]
        tables = {TRAIN: [str(beside[0])]} if len(beside) == 1 else {}
    if not tables:
        return _class_layout(data, path, columns, selection)
    return _table_or_folders(data, path, tables, columns, selection)


def _table_or_folders(
    data: str, path: Path, tables: dict[str, list[str]], columns: Columns, selection: Selection
) -> Layout:
    """Return the layout of the tables in a folder, or that of its class folders if the tables do not list their images."""
    names = ", ".join(file for files in tables.values() for file in files)
    try:
        folders = _class_layout(data, path, Columns(), selection, with_tables=False)
        by_folder = _images_of(folders)
    except DataError as error:
        folders, by_folder, reason = None, None, error
    try:
        found = open_tables(tables, data)
        layout = dataset_layout(_by_path(found, columns, path, selection), data, columns, path, selection)
        layout.train()  # raises an error if there is no training split
        by_table = _images_of(layout)
    except DataError as error:
        if folders is None:
            # The problem of the table is the closer one, unless there are class folders whose problem is known.
            raise (reason if _has_classes(path) and columns == Columns() else error) from error
        if columns != Columns():
            raise
        logger.warning("%s: the class folders are used, and not the table %s (%s).", data, names, error)
        return folders
    if by_folder is None or columns != Columns():
        return layout
    if len(folders.chosen) > 1:
        unlisted = [name for split, name in folders.chosen.items() if split not in by_table]
        by_folder = {split: source for split, source in by_folder.items() if split in by_table}
        wins = not by_folder or _table_wins([*by_table.values()], [*by_folder.values()], names, same_splits=True)
        if wins and unlisted:
            logger.warning("%s: the folder(s) %s are not listed in a table and are not used.", data, listed(unlisted))
    else:
        wins = _table_wins([*by_table.values()], [*by_folder.values()], names, same_splits=len(by_table) == 1)
    return layout if wins else folders


def _images_of(layout: Layout) -> dict[str, Source]:
    """Return the images of each labelled split."""
    found = {}
    class_names = None
    for kind, name in layout.chosen.items():
        if kind == TEST and layout.splits[name].is_unlabelled():
            continue
        found[kind] = layout.splits[name].read(class_names).source
        class_names = found[TRAIN].class_names if TRAIN in found else None
    return found


def _has_classes(path: Path) -> bool:
    return any(subfolders(path / name) for name in subfolders(path)) or len(subfolders(path)) > 1


def _by_path(splits: dict[str, Any], columns: Columns, root: Path, selection: Selection) -> dict[str, Any]:
    """Divide the rows of a table by the folders of splits in the paths of the images, if all paths have one."""
    if len(splits) != 1 or selection.split_column is not None:
        return splits
    ((name, dataset),) = splits.items()
    reader = TableReader(dataset, columns, str(root), root)
    items = reader.items()
    if not isinstance(items, list) or any(path_of(item) is None for item in items):
        return splits
    rows = uses_path_splits([os.path.relpath(item, root) for item in items])
    if rows is None or (name == TRAIN and set(rows) == {TRAIN}):
        return splits
    counts = ", ".join(f"{len(rows[split])} {split}" for split in SPLITS if split in rows)
    logger.info("%s: the folders in the paths of the table name the splits: %s.", root, counts)
    return {split: dataset.select(rows[split]) for split in SPLITS if split in rows}


def _table_wins(table: Sequence[Source], folders: Sequence[Source], names: str, same_splits: bool) -> bool:
    """Return whether a table is used instead of the class folders that it lists.

    Args:
        table: Images of each split of the table.
        folders: Images of the same splits of the folders.
        names: Files of the table, for messages.
        same_splits: Whether table and folders have the same splits. If they have not, the table divides the images.

    Raises:
        DataError: The table lists only some of the images of the class folders, and gives them the classes of their folders.
    """
    by_table, by_folder = _labels_by_file(table), _labels_by_file(folders)
    if by_table == by_folder:
        logger.info("%s agrees with the class folders of %s.", names, folders[0].name)
        return not same_splits
    if by_table is not None and all(by_folder.get(file) == label for file, label in by_table.items()):
        raise DataError(
            f"{names} lists {len(by_table)} images of {folders[0].name} with the names of their folders as the classes, and the "
            f"folders hold {len(by_folder or ())} images. To use only the listed images, give the table itself as the data. To use "
            "all images, add them to the table."
        )
    logger.warning(
        "%s lists %d images with the classes %s: the table is used, and the names of the folders (%s) are not the classes.",
        names,
        sum(map(len, table)),
        listed(table[0].class_names),
        listed(folders[0].class_names),
    )
    missing = set() if by_table is None or by_folder is None else by_folder.keys() - by_table.keys()
    if missing:
        logger.warning(
            "%s: %d images in the folders are not listed and are left out; the first one is %s.",
            names,
            len(missing),
            min(missing),
        )
    return True


def _labels_by_file(sources: Sequence[Source]) -> dict[str, str] | None:
    """Return the class name of each existing file, or None for embedded images and multi-label data."""
    found: dict[str, str] = {}
    for source in sources:
        if not isinstance(source.items, list) or any(not isinstance(label, int) for label in source.labels):
            return None
        for item, label in zip(source.items, source.labels, strict=True):
            path = path_of(item)
            if path is not None and has_label(label) and os.path.exists(path):
                found[os.path.realpath(path)] = source.class_names[label]
    return found


def _class_layout(data: str, path: Path, columns: Columns, selection: Selection, with_tables: bool = True) -> Layout:
    """Return the layout of a folder of class folders or of split folders.

    Args:
        data: Name of the data in messages.
        path: The folder.
        columns: Columns of tables.
        selection: Names of splits that the user gave.
        with_tables: Whether a table in a folder without splits is read.
    """
    names = subfolders(path)
    given = {selection.train_split, selection.validation_split} - {None, NO_SPLIT, WHOLE_FOLDER}
    if selection.train_split == WHOLE_FOLDER:
        chosen = chosen_splits([*(given & set(names))], replace(selection, train_split=None), data)
        classes = [name for name in names if name not in given]
        splits = {WHOLE_FOLDER: _folder_split(path, columns, classes)}
        splits |= {name: _folder_split(path / name, columns) for name in given & set(names)}
        return Layout(data, splits, {TRAIN: WHOLE_FOLDER, **{k: v for k, v in chosen.items() if k != TRAIN}})
    known = {*split_names(names, str(path)), *(given & set(names))}
    if given or known:
        return _split_layout(data, path, columns, selection, known)
    inverted = inverted_splits(path, names)
    if inverted:
        logger.info("%s: the class folders hold the folders of the splits %s.", data, listed(inverted))
        splits = {split: _inverted_split(path, split, folders) for split, folders in inverted.items()}
        return Layout(data, splits, {split: split for split in inverted})
    check_not_parts(path, names)
    return Layout(data, {TRAIN: _folder_split(path, columns, None if with_tables else names)}, {TRAIN: TRAIN})


def _split_layout(data: str, path: Path, columns: Columns, selection: Selection, known: set[str]) -> Layout:
    names = subfolders(path)
    chosen = chosen_splits(names, selection, str(path))
    others = [name for name in names if name not in known]
    remedy = (
        f"If they are splits, arrange the images as {path}/train/CLASS/… and {path}/validation/CLASS/…. If all folders are "
        f"classes, set train_split: {WHOLE_FOLDER!r}, or move the class folders into a folder {path}/train."
    )
    if TRAIN not in chosen and others:
        raise DataError(
            f"{path} has the folder(s) {listed(sorted(known))}, which look like splits, beside {listed(others)}. It is "
            f"unclear whether they are splits or classes. {remedy}"
        )
    if TRAIN in chosen:
        folder = split_root(path / chosen[TRAIN])
        if not subfolders(folder) and not other_tables(folder) and list_files(folder).files:
            beside = (
                f", beside the folder(s) {listed(n for n in names if n != chosen[TRAIN])}" if len(names) > 1 else ""
            )
            raise DataError(
                f"{folder} looks like the training split{beside}, but it holds images and neither class folders nor a table of "
                f"labels (such as {folder}/metadata.csv with the columns file_name and label). {remedy}"
            )
    unused = [name for name in names if name not in chosen.values()]
    if unused:
        logger.warning(
            "%s: the folders %s are left out, because the folder(s) %s are the splits.",
            path,
            listed(unused),
            listed(chosen.values()),
        )
    splits = {name: _folder_split(path / name, columns) for name in dict.fromkeys([*chosen.values(), *sorted(known)])}
    if columns != Columns() and not any(other_tables(split_root(path / name)) for name in splits):
        raise _no_table(str(path))
    classes: list[str] = []
    if TRAIN in chosen and TEST in chosen:
        classes = subfolders(split_root(path / chosen[TRAIN]))
        test = split_root(path / chosen[TEST])
        splits[chosen[TEST]] = replace(
            splits[chosen[TEST]], is_unlabelled=lambda: not other_tables(test) and not {*subfolders(test)} & {*classes}
        )
    return Layout(data, splits, chosen)


def _no_table(name: str) -> DataError:
    return DataError(
        f"{name} is a folder of class folders: image_column, label_column and label_separator are only for "
        "tables and data sets. Leave them out."
    )


def _folder_split(path: Path, columns: Columns, classes: Sequence[str] | None = None) -> Split:
    folder = path if classes is not None else split_root(path)
    return Split(lambda class_names: _read_folder(folder, columns, classes, class_names), folder)


def _inverted_split(path: Path, split: str, folders: Mapping[str, Path]) -> Split:
    def read(class_names: Sequence[str] | None) -> Read:
        names = sorted(folders) if class_names is None else list(class_names)
        by_name = _by_class(f"{path} ({split})", folders, names)
        return _scan(f"{path} ({split})", path, by_name, names)

    return Split(read, path)


def _by_class(name: str, folders: Mapping[str, Path], class_names: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each class of the training images. Names are compared in Unicode normal form.

    Raises:
        DataError: A folder is none of these classes, or two folders are the same class.
    """
    known = {normal_form(class_name): class_name for class_name in class_names}
    unknown = sorted(folder for folder in folders if normal_form(folder) not in known)
    if unknown:
        raise DataError(
            f"{name} has the class(es) {listed(unknown)}, which the training images do not have (their classes are "
            f"{listed(class_names)}): the names of the class folders must agree. Rename the folders, or add training images."
        )
    found = {known[normal_form(folder)]: path for folder, path in folders.items()}
    if len(found) < len(folders):
        check_class_names(name, list(folders), ProblemType.MULTI_LABEL)  # raises an error with the names
    return found


def _read_folder(
    folder: Path, columns: Columns, classes: Sequence[str] | None, class_names: Sequence[str] | None
) -> Read:
    """Read a folder of class folders, or of images with a table."""
    names = subfolders(folder) if classes is None else list(classes)
    tables = other_tables(folder) if classes is None else []
    if columns != Columns() and not tables:
        raise _no_table(str(folder))
    if len(tables) > 1 and tables[0].parent == folder and tables[0].stem != "metadata":
        if not names or columns != Columns():
            raise DataError(
                f"{folder} has several tables ({listed(file.name for file in tables)}): it is unclear which one lists the "
                "images. Give one of them as the data, or call it metadata.csv."
            )
        tables = []
    if tables:
        read = _listed_images(folder, tables, columns, names, class_names)
        if read is not None:
            return read
    by_name = {name: folder / name for name in names}
    if class_names is not None:
        by_name = _by_class(str(folder), by_name, class_names)
    return _scan(str(folder), folder, by_name, names if class_names is None else class_names)


def _listed_images(
    folder: Path, tables: Sequence[Path], columns: Columns, names: Sequence[str], class_names: Sequence[str] | None
) -> Read | None:
    """Return the images that the tables in a folder list, or None if the class folders are used."""
    shown = ", ".join(map(str, tables[:3]))
    try:
        if len(tables) == 1:
            dataset, root = open_tables({TRAIN: [str(tables[0])]}, str(tables[0]))[TRAIN], tables[0].parent
        else:
            opened = [(file.parent, open_tables({TRAIN: [str(file)]}, str(file))[TRAIN]) for file in tables]
            dataset, root = joined(opened, folder, columns.image or "file_name"), folder
        read = read_table(dataset, f"{folder} ({tables[0].name})", columns, root)
    except (DataError, ValueError) as error:  # several tables whose columns do not fit
        if not names or columns != Columns():
            raise (
                error if isinstance(error, DataError) else DataError(f"{shown} cannot be combined: {error}.")
            ) from error
        logger.warning("%s: the class folders are used, and not the table %s (%s).", folder, shown, error)
        return None
    if names and columns == Columns():
        by_name = {name: folder / name for name in names}
        try:
            scanned = _scan(str(folder), folder, by_name, names).source
        except DataError:  # the folders hold no images
            scanned = None
        if scanned is not None and not _table_wins([read.source], [scanned], shown, same_splits=True):
            return None
    return read if class_names is None else read_table(dataset, read.source.name, columns, root, class_names)


def _scan(name: str, root: Path, folders: Mapping[str, Path], class_names: Sequence[str]) -> Read:
    """List the images of class folders."""
    if not class_names:
        raise DataError(f"{root} holds no folders: it must have a folder for each class, for example {root}/cat/1.jpg.")
    found, labels = ImageFiles(), []
    for label, class_name in enumerate(class_names):
        folder = folders.get(class_name)
        listing = list_files(folder) if folder is not None and folder.is_dir() else Listing()
        labels += [label] * found.add(listing)
    outside = [
        file for file in root.iterdir() if file.is_file() and not file.name.startswith(".") and not is_table(file)
    ]
    outside = [str(file) for file in outside if is_image_file(file)]
    if outside:
        found.skipped["images outside of the class folders"] = outside
    if not found.images:
        kinds = Counter({kind: len(paths) for kind, paths in found.skipped.items()})
        contents = f" It has {', '.join(f'{count} {kind}' for kind, count in kinds.most_common(10))}." if kinds else ""
        raise DataError(
            f"{root} has no images: put image files, such as .jpg and .png, into its folders {listed(class_names, str)}.{contents}"
        )
    source = Source(found.images, labels, tuple(class_names), "", name, left_out=tuple(found.unsupported))
    return Read(source, found.skipped, found.recognised)
