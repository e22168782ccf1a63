"""Find the images of a data set in image folders, tables, folders saved by `datasets`, or on the Hub.

The result is a `Source` (sources.py) for each split, or the reader of a stream (streams.py). layouts.py knows names of splits and
of folders, table_files.py opens tables and data sets, and tables.py reads their rows.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from .images import check_policy, is_image_file, is_unsupported_image, kind_of_file, listed
from .layouts import (
    NO_SPLIT,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    VALIDATION_NAMES,
    WHOLE_FOLDER,
    Listing,
    Selection,
    chosen_splits,
    content_root,
    inverted_splits,
    is_table,
    list_files,
    other_tables,
    shortened,
    split_names,
    split_of,
    split_root,
    subfolders,
)
from .sources import (
    Source,
    check_class_names,
    check_classes,
    check_files_exist,
    path_of,
    warn_of_shared_files,
    with_fingerprint,
)
from .table_files import (
    BUILDERS,
    divided,
    is_saved_dataset,
    joined,
    no_training_split,
    open_all,
    open_splits,
    open_tables,
    table_files,
    uses_path_splits,
)
from .tables import Columns, TableReader

__all__ = [
    "BUILDERS",
    "VALIDATION_NAMES",
    "Selection",
    "is_image_folder",
    "is_saved_dataset",
    "load_splits",
    "load_stream",
    "load_training",
    "load_validation",
    "open_splits",
    "table_files",
    "table_root",
    "validation_name",
]

logger = logging.getLogger(__name__)


# ---- what a split is read from ----


@dataclass(frozen=True)
class _Read:
    """Images of a split before their headers are read.

    Args:
        source: The images, without a fingerprint.
        skipped: Paths that were left out, by kind.
    """

    source: Source
    skipped: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Split:
    """A split that can be read.

    Args:
        read: Function that reads the split, given the class names of the training images, or None for the training split.
        root: Folder of the paths in the fingerprint. None for the working folder.
        is_unlabelled: Function that returns whether the split has no labels, as test splits of competitions.
    """

    read: Callable[[Sequence[str] | None], _Read]
    root: Path | None
    is_unlabelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Layout:
    """The splits of some data.

    Args:
        data: Name of the data in messages.
        splits: Splits by their name in the data.
        chosen: Name in the data of the splits "train", "validation" and "test", as far as they exist.
    """

    data: str
    splits: Mapping[str, _Split]
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


def _finished(split: _Split, read: _Read, split_name: str, broken_images: str) -> Source:
    """Read the headers of the images, report what is left out, and return the source with its fingerprint."""
    source = read.source
    _report(source.name, read.skipped)
    if source.left_out and broken_images == "raise":
        raise DataError(
            f"{len(source.left_out)} image(s) of {source.name} have a format that Pillow does not read: convert them to JPEG or "
            f"PNG, or set broken_images: skip to leave them out.{listed(source.left_out)}"
        )
    return replace(with_fingerprint(source, broken_images, split.root), split_name=split_name)


def _report(name: str, skipped: Mapping[str, list[str]]) -> None:
    """Log what is left out of a folder, once: the number of files of each kind and the first of them."""
    if not skipped:
        return
    lines = [f"{len(paths)} {kind}; the first one is {sorted(paths)[0]}" for kind, paths in sorted(skipped.items())]
    harmless = all(kind in _HARMLESS for kind in skipped)
    logger.log(
        logging.INFO if harmless else logging.WARNING,
        "%s: files and folders that are left out, because they are not images that can be read:%s%s",
        name,
        listed(lines),
        "" if harmless else "\nConvert images of other formats, such as .heic, to JPEG or PNG to use them.",
    )


_HIDDEN = "hidden files and folders of the system"
_HARMLESS = {_HIDDEN, *(f"{ending} files" for ending in (".txt", ".md", ".csv", ".json", ".xml", ".db", ".ini", ".py"))}


# ---- loading ----


def load_splits(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
    selection: Selection | None = None,
) -> tuple[Source, Source]:
    """Find the training and the validation images of a path or of a data set on the Hub.

    Args:
        data: A folder with `train/CLASS/…` and `validation/CLASS/…`, where the splits may have other usual names; a folder
            with `CLASS/…`, from which a validation share is split off; a folder of images with a table of their labels, such
            as `metadata.csv`; a table (CSV, TSV, JSON lines, parquet), or a folder with `train.*` and `validation.*`; a
            folder saved by `datasets`; or the name of a data set on the Hub.
        validation_share: Share in (0, 1) of each class to split off if there is neither a validation split nor a labelled
            test split.
        seed: Seed for splitting off the validation share.
        columns: The columns of images and labels in a table or data set. None to find them by type or default name.
        broken_images: What to do with a file whose header is not that of an image. "skip": leave it out and log a
            warning. "raise": raise a DataError.
        selection: Configuration, revision, split column and names of splits. None to find them by usual names.

    Returns:
        The training source and the validation source. Both have the same classes.

    Raises:
        DataError: No data or no image is found, an argument is invalid, the labels are missing or invalid, single-label
            data has only one class, a class has no training image, or it is unclear which folders are splits.
    """
    if not 0 < validation_share < 1:
        raise DataError(
            f"validation_share={validation_share}: it must be between 0 and 1 (exclusive), for example 0.1."
        )
    selection = selection or Selection()
    layout = _find(data, columns, broken_images, selection)
    train = _load(layout, TRAIN, broken_images)
    held_out = layout.held_out(selection)
    validation = None if held_out is None else _load(layout, held_out, broken_images, train.class_names)
    check_classes(train.name, train.labels, train.class_names, train.problem_type)
    if validation is None:
        train, validation = train.split(validation_share, seed)
        validation = replace(validation, left_out=())  # the training source already lists them
    elif held_out == TEST:
        logger.info("%s has no validation split: the test split %r is used for validation.", data, layout.chosen[TEST])
    warn_of_shared_files(train.items, validation.items, data)
    return train, validation


def _load(layout: _Layout, split: str, broken_images: str, class_names: Sequence[str] | None = None) -> Source:
    """Load a split, by "train", "validation" or "test" or else by its name in the data."""
    name = layout.train() if split == TRAIN else layout.chosen.get(split, split)
    return _finished(layout.splits[name], layout.splits[name].read(class_names), split, broken_images)


def load_training(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
    selection: Selection | None = None,
) -> Source:
    """Find the training images in order to display them.

    The result is the training source of `load_splits` or, if no validation share can be split off, a source of all
    images. The arguments are those of `load_splits`.

    Raises:
        DataError: As in `load_splits`, but a single class or image is allowed.
    """
    selection = selection or Selection()
    layout = _find(data, columns, broken_images, selection)
    train = _load(layout, TRAIN, broken_images)
    if layout.held_out(selection) is not None or len(train) < 2:
        return train
    try:
        return train.split(validation_share, seed)[0]
    except DataError:  # a class has only one image, which cannot be split off
        return train


def load_validation(
    data: str,
    validation_share: float | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
    selection: Selection | None = None,
    split: str | None = None,
) -> Source:
    """Find the images for an evaluation. `split_name` of the source is the split that they are.

    The result is the validation split or, if the data has none, a labelled test split. If the data has neither, the result
    is the validation share that the run split off; if `validation_share` is None, it is all images. The arguments are those
    of `load_splits`, with the share and the seed of the run.

    Args:
        data: As in `load_splits`. It needs no training split.
        validation_share: Share that the run split off. None if the model was not trained on this data.
        seed: As in `load_splits`.
        columns: As in `load_splits`.
        broken_images: As in `load_splits`.
        selection: As in `load_splits`.
        split: Split to use instead: train, validation or test, under any of their usual names, or the name of a split in
            the data.

    Raises:
        DataError: As in `load_splits`, but a single class is allowed; or the data has no such split, or it has no labels.
    """
    selection = selection or Selection()
    layout = _find(data, columns, broken_images, selection)
    wanted = _wanted(layout, split, selection)
    known = TRAIN in layout.chosen and wanted not in (None, TRAIN)
    class_names = layout.splits[layout.train()].read(None).source.class_names if known else None
    if wanted not in (None, TRAIN):
        return _load(layout, wanted, broken_images, class_names)
    held_out = layout.held_out(selection)
    train = _load(layout, TRAIN, broken_images)
    if wanted == TRAIN and held_out is not None:
        return train
    if validation_share is not None:
        parts = train.split(validation_share, seed)
        return parts[0] if wanted == TRAIN else parts[1]
    if split is not None and split_of(split) == VALIDATION:
        raise DataError(f"split={split!r}: {data} has no validation split. Leave the split out to evaluate all images.")
    return replace(train, split_name="all" if len(layout.splits) == 1 and held_out is None else TRAIN)


def _wanted(layout: _Layout, split: str | None, selection: Selection) -> str | None:
    """Return the split to evaluate, or None for the validation share of the training images or all of them."""
    if split is None:
        held_out = layout.held_out(selection)
        if held_out is None and TRAIN not in layout.chosen:
            raise no_training_split(layout.data, layout.splits)
        return held_out
    kind = next((kind for kind, name in layout.chosen.items() if name == split), split_of(split) or split)
    if kind in layout.chosen:
        if kind != TRAIN and layout.splits[layout.chosen[kind]].is_unlabelled():
            raise DataError(f"split={split!r}: this split of {layout.data} has no labels. Choose a labelled split.")
        return kind
    if split in layout.splits:
        return split
    if kind == VALIDATION and TRAIN in layout.chosen and layout.held_out(selection) is None:
        return None
    raise DataError(f"split={split!r}: {layout.data} has no such split. Its splits are {shortened(layout.splits)}.")


def validation_name(
    splits: Mapping[str, Any], selection: Selection | None = None, data: str = "The data"
) -> str | None:
    """Return the name of the validation split, the test split if there is no validation split, or None."""
    selection = selection or Selection()
    chosen = chosen_splits(splits, selection, data)
    rest = None if selection.validation_split == NO_SPLIT else chosen.get(TEST)
    return chosen.get(VALIDATION, rest)


def load_stream(
    data: str, columns: Columns | None = None, broken_images: str = "skip", selection: Selection | None = None
) -> tuple[TableReader, Source]:
    """Open the training images of a table or data set as a stream, and find the validation images.

    Args:
        data: As in `load_splits`, except for folders of class folders, which cannot be streamed.
        columns: As in `load_splits`.
        broken_images: What to do with unreadable validation images, as in `load_splits`.
        selection: As in `load_splits`.

    Returns:
        The reader of the stream, and the validation source. The validation images of a data set on the Hub are held in
        memory, undecoded.

    Raises:
        DataError: As in `load_splits`, or the data has no validation split.
    """
    check_policy(broken_images)
    columns, selection = columns or Columns(), selection or Selection()
    splits = divided(open_all(data, streaming=True, selection=selection), data, columns, selection)
    chosen = chosen_splits(splits, _names_only(selection, splits), data)
    if TRAIN not in chosen:
        raise no_training_split(data, splits)
    validation = validation_name(splits, _names_only(selection, splits), data)
    if validation is None:
        raise DataError(
            f"{data} has no validation split, and a stream cannot be split: add a validation split (such as "
            f"validation.csv or validation.parquet; its name may be {', '.join(VALIDATION_NAMES)} or test), or set "
            "streaming: false."
        )
    train, root = splits[chosen[TRAIN]], table_root(data)
    train = train.to_iterable_dataset() if hasattr(train, "__len__") else train
    reader = TableReader(train, columns, f"{data} (train)", root)
    check_class_names(reader.name, reader.class_names, reader.problem_type)
    if Path(data).expanduser().exists():
        held_out = divided(open_all(data), data, columns, selection)[validation]
    else:  # a data set on the Hub: without streaming, `datasets` would download all splits
        held_out = _in_memory(splits[validation])
    read = _read_table(held_out, f"{data} ({validation})", columns, root, reader.class_names)
    split = _Split(lambda names: read, root)
    return reader, _finished(split, read, split_of(validation) or VALIDATION, broken_images)


def _names_only(selection: Selection, splits: Mapping[str, Any]) -> Selection:
    """Return the selection without names that are values of the split column: their rows are now in named splits."""
    given = {"train_split": selection.train_split, "validation_split": selection.validation_split}
    divided_by_value = {name: value for name, value in given.items() if value not in splits and value != NO_SPLIT}
    if selection.split_column in (None, NO_SPLIT):
        return selection
    return replace(selection, **dict.fromkeys(divided_by_value))


def _in_memory(stream: Any) -> Any:
    import datasets

    for column, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    return datasets.Dataset.from_list(list(stream), features=stream.features)


# ---- layouts ----


def is_image_folder(data: str) -> bool:
    """Return whether `data` is a folder of class folders, and not a table, a saved data set or a name on the Hub."""
    path = Path(data).expanduser()
    if not path.is_dir() or is_saved_dataset(path):
        return False
    tables = table_files(path)
    return not any(split_of(name) == TRAIN for name in tables) or _training_folder_has_classes(path)


def _training_folder_has_classes(path: Path) -> bool:
    return any(split_of(name) == TRAIN and subfolders(path / name) for name in subfolders(path))


def _find(data: str, columns: Columns | None, broken_images: str, selection: Selection) -> _Layout:
    """Find the splits of the data. Nothing is read yet, unless a folder holds both class folders and a table."""
    check_policy(broken_images)
    columns = columns or Columns()
    path = Path(data).expanduser()
    if path.is_dir() and not is_saved_dataset(path):
        _refuse_fields_of_datasets(data, selection)
        return _folder_layout(data, path, columns, selection)
    if path.exists() and not path.is_dir() and not table_files(path):
        raise DataError(
            f"{data} is a file of an unknown format: give a folder with a subfolder for each class, a table (.csv, "
            ".tsv, .jsonl, .parquet), or the name of a data set on the Hub."
        )
    return _dataset_layout(open_all(data, selection=selection), data, columns, table_root(data), selection)


def _refuse_fields_of_datasets(data: str, selection: Selection) -> None:
    for name, value in (("data_config", selection.config), ("data_revision", selection.revision)):
        if value is not None:
            raise DataError(f"{name}={value!r}: {data} is a folder, and {name} is only for data sets on the Hub.")


def _dataset_layout(
    splits: dict[str, Any], data: str, columns: Columns, root: Path | None, selection: Selection
) -> _Layout:
    """Return the layout of tables or of a data set."""
    found = divided(splits, data, columns, selection)
    selection = _names_only(selection, found)
    single = len(found) == 1 and TRAIN in found
    chosen = {TRAIN: TRAIN} if single else chosen_splits(found, selection, data)
    readers = {name: _table_split(dataset, data, name, columns, root) for name, dataset in found.items()}
    unused = [name for name in found if name not in chosen.values()]
    if unused:
        logger.info("%s: the splits %s are not used.", data, shortened(unused))
    return _Layout(data, readers, chosen)


def _table_split(dataset: Any, data: str, name: str, columns: Columns, root: Path | None) -> _Split:
    return _Split(
        lambda class_names: _read_table(dataset, f"{data} ({name})", columns, root, class_names),
        root,
        lambda: _is_unlabelled(dataset, columns),
    )


def table_root(data: str) -> Path | None:
    """Return the folder that the paths in a table are relative to, or None if `data` is not a table."""
    path = Path(data).expanduser()
    files = table_files(path) if path.exists() and not is_saved_dataset(path) else {}
    return Path(next(iter(files.values()))[0]).parent if files else None


def _read_table(
    dataset: Any, name: str, columns: Columns, root: Path | None, class_names: Sequence[str] | None = None
) -> _Read:
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows: it must have a row for each image.")
    reader = TableReader(dataset, columns, name, root, class_names)
    items = reader.items()
    if isinstance(items, list):
        items = _in_image_folder(reader, items, root)
        check_files_exist(items, name, reader.image_column, root)
    return _Read(Source(items, reader.labels(), reader.class_names, "", name, reader.problem_type))


def _in_image_folder(reader: TableReader, items: list[Any], root: Path | None) -> list[Any]:
    """Return the items, with paths from a folder beside the table if there are none from the folder of the table.

    A table often names the files of `train/` or `images/` without that folder.
    """
    paths = [path for path in map(path_of, items) if path is not None]
    if root is None or not paths or any(map(os.path.exists, paths)):
        return items
    relative = [os.path.relpath(path, root) for path in paths]
    counts = {
        name: sum(os.path.exists(root / name / path) for path in relative)
        for name in subfolders(root)
        if split_of(name) is not None or split_names([f"{name}_train"]) or len(subfolders(root)) == 1
    }
    best = max(counts, key=counts.__getitem__, default=None)
    if best is None or counts[best] == 0:
        return items
    logger.info("%s: the images are in the folder %s.", reader.name, root / best)
    reader.root = root / best
    return list(reader.items())


def _is_unlabelled(dataset: Any, columns: Columns) -> bool:
    """Return whether a test split has no labels, as is common in competitions."""
    import datasets

    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in columns.labels if name in dataset.features]
    if columns.labels and not named:
        return True
    return any(set(dataset[name]) <= {-1, None} for name in named or typed)


# ---- folders ----


def _folder_layout(data: str, path: Path, columns: Columns, selection: Selection) -> _Layout:
    tables = table_files(path)
    has_classes = _training_folder_has_classes(path)
    named = columns != Columns()
    if any(split_of(name) == TRAIN for name in tables) and (named or not has_classes):
        return _dataset_layout(open_tables(tables, data), data, columns, table_root(data), selection)
    root = content_root(path)
    if root != path:
        logger.info("%s: the splits are in the folder %s.", data, root)
        return _folder_layout(data, root, columns, selection)
    if not tables:
        beside = [file for file in other_tables(path) if file.parent == path]
        tables = {TRAIN: [str(beside[0])]} if len(beside) == 1 else {}
    if not tables:
        return _class_layout(data, path, columns, selection)
    return _table_or_folders(data, path, tables, columns, selection)


def _table_or_folders(
    data: str, path: Path, tables: dict[str, list[str]], columns: Columns, selection: Selection
) -> _Layout:
    """Return the layout of the tables in a folder, or that of its class folders if the tables do not list their images."""
    names = ", ".join(file for files in tables.values() for file in files)
    try:
        folders = _class_layout(data, path, Columns(), selection)
        by_folder = folders.splits[folders.train()].read(None).source if TRAIN in folders.chosen else None
    except DataError as error:
        folders, by_folder, reason = None, None, error
    try:
        found = open_tables(tables, data)
        layout = _dataset_layout(_by_path(found, columns, path, selection), data, columns, path, selection)
        by_table = layout.splits[layout.train()].read(None).source
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
    return layout if _table_wins(by_table, by_folder, names) else folders


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


def _table_wins(table: Source, folders: Source, names: str) -> bool:
    """Return whether a table is used instead of the class folders that it lists.

    Raises:
        DataError: The table lists only some of the images of the class folders, and gives them the classes of their folders.
    """
    listed_labels = _labels_by_file(table)
    folder_labels = _labels_by_file(folders)
    if listed_labels == folder_labels:
        logger.info("%s agrees with the class folders of %s.", names, folders.name)
        return False
    same = listed_labels is not None and all(folder_labels.get(file) == label for file, label in listed_labels.items())
    if same:
        raise DataError(
            f"{names} lists {len(table)} images of {folders.name} with the names of their folders as the classes, and the folders "
            f"hold {len(folders)} images. To use only the listed images, give the table itself as the data. To use all images, "
            "add them to the table."
        )
    logger.warning(
        "%s lists %d images with the classes %s: the table is used, and the names of the folders (%s) are not the classes.",
        names,
        len(table),
        shortened(table.class_names),
        shortened(folders.class_names),
    )
    if listed_labels is not None and (missing := folder_labels.keys() - listed_labels.keys()):
        logger.warning(
            "%s: %d images in the folders are not listed and are left out; the first one is %s.",
            names,
            len(missing),
            sorted(missing)[0],
        )
    return True


def _labels_by_file(source: Source) -> dict[str, str] | None:
    """Return the class name of each existing file, or None for embedded images and multi-label data."""
    if not isinstance(source.items, list) or any(not isinstance(label, int) for label in source.labels):
        return None
    pairs = zip(source.items, source.labels, strict=True)
    found = {path_of(item): source.class_names[label] for item, label in pairs if path_of(item) is not None}
    return {os.path.realpath(path): name for path, name in found.items() if os.path.exists(path)}


def _class_layout(data: str, path: Path, columns: Columns, selection: Selection) -> _Layout:
    """Return the layout of a folder of class folders or of split folders."""
    names = subfolders(path)
    given = {selection.train_split, selection.validation_split} - {None, NO_SPLIT, WHOLE_FOLDER}
    if selection.train_split == WHOLE_FOLDER:
        chosen = chosen_splits([*given], replace(selection, train_split=None), data) if given <= set(names) else {}
        classes = [name for name in names if name not in given]
        splits = {WHOLE_FOLDER: _folder_split(path, columns, classes)}
        splits |= {name: _folder_split(path / name, columns) for name in given & set(names)}
        return _Layout(data, splits, {TRAIN: WHOLE_FOLDER, **{k: v for k, v in chosen.items() if k != TRAIN}})
    known = {*split_names(names, str(path)), *(given & set(names))}
    if given or known:
        return _split_layout(data, path, columns, selection, known)
    inverted = inverted_splits(path, names)
    if inverted:
        logger.info("%s: the class folders hold the folders of the splits %s.", data, shortened(inverted))
        splits = {split: _inverted_split(path, split, folders) for split, folders in inverted.items()}
        return _Layout(data, splits, {split: split for split in inverted})
    if given:
        raise DataError(f"train_split and validation_split: {path} has no folder {shortened(given)}.")
    return _Layout(data, {TRAIN: _folder_split(path, columns)}, {TRAIN: TRAIN})


def _split_layout(data: str, path: Path, columns: Columns, selection: Selection, known: set[str]) -> _Layout:
    names = subfolders(path)
    chosen = chosen_splits(names, selection, str(path))
    others = [name for name in names if name not in known]
    remedy = (
        f"If they are splits, arrange the images as {path}/train/CLASS/… and {path}/validation/CLASS/…. If all folders are "
        f"classes, set train_split: {WHOLE_FOLDER!r}, or move the class folders into a folder {path}/train."
    )
    if TRAIN not in chosen and others:
        raise DataError(
            f"{path} has the folder(s) {shortened(sorted(known))}, which look like splits, beside {shortened(others)}. It is "
            f"unclear whether they are splits or classes. {remedy}"
        )
    if TRAIN in chosen:
        folder = split_root(path / chosen[TRAIN])
        if not subfolders(folder) and not other_tables(folder) and list_files(folder).files:
            beside = (
                f", beside the folder(s) {shortened(n for n in names if n != chosen[TRAIN])}" if len(names) > 1 else ""
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
            shortened(unused),
            shortened(chosen.values()),
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
    return _Layout(data, splits, chosen)


def _no_table(name: str) -> DataError:
    return DataError(
        f"{name} is a folder of class folders: image_column, label_column and label_separator are only for "
        "tables and data sets. Leave them out."
    )


def _folder_split(path: Path, columns: Columns, classes: Sequence[str] | None = None) -> _Split:
    folder = path if classes is not None else split_root(path)
    return _Split(lambda class_names: _read_folder(folder, columns, classes, class_names), folder)


def _inverted_split(path: Path, split: str, folders: Mapping[str, Path]) -> _Split:
    def read(class_names: Sequence[str] | None) -> _Read:
        names = sorted(folders) if class_names is None else list(class_names)
        _check_known(f"{path} ({split})", folders, names)
        return _scan(f"{path} ({split})", path, {name: folders[name] for name in names if name in folders}, names)

    return _Split(read, path)


def _check_known(name: str, folders: Sequence[str] | Mapping[str, Any], class_names: Sequence[str]) -> None:
    unknown = sorted(set(folders) - set(class_names))
    if unknown:
        raise DataError(
            f"{name} has the class(es) {shortened(unknown)}, which the training images do not have (their classes are "
            f"{shortened(class_names)}): the names of the class folders must agree. Rename the folders, or add training images."
        )


def _read_folder(
    folder: Path, columns: Columns, classes: Sequence[str] | None, class_names: Sequence[str] | None
) -> _Read:
    """Read a folder of class folders, or of images with a table."""
    names = subfolders(folder) if classes is None else list(classes)
    tables = other_tables(folder) if classes is None else []
    if columns != Columns() and not tables:
        raise _no_table(str(folder))
    if len(tables) > 1 and tables[0].parent == folder and tables[0].stem != "metadata":
        if not names or columns != Columns():
            raise DataError(
                f"{folder} has several tables ({shortened(file.name for file in tables)}): it is unclear which one lists the "
                "images. Give one of them as the data, or call it metadata.csv."
            )
        tables = []
    if tables:
        read = _listed_images(folder, tables, columns, names, class_names)
        if read is not None:
            return read
    if class_names is not None:
        _check_known(str(folder), names, class_names)
    by_name = {name: folder / name for name in names}
    return _scan(str(folder), folder, by_name, names if class_names is None else class_names)


def _listed_images(
    folder: Path, tables: Sequence[Path], columns: Columns, names: Sequence[str], class_names: Sequence[str] | None
) -> _Read | None:
    """Return the images that the tables in a folder list, or None if the class folders are used."""
    shown = ", ".join(map(str, tables[:3]))
    try:
        if len(tables) == 1:
            dataset, root = open_tables({TRAIN: [str(tables[0])]}, str(tables[0]))[TRAIN], tables[0].parent
        else:
            opened = [(file.parent, open_tables({TRAIN: [str(file)]}, str(file))[TRAIN]) for file in tables]
            dataset, root = joined(opened, folder, columns.image or "file_name"), folder
        read = _read_table(dataset, f"{folder} ({tables[0].name})", columns, root)
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
        if scanned is not None and not _table_wins(read.source, scanned, shown):
            return None
    return read if class_names is None else _read_table(dataset, read.source.name, columns, root, class_names)


def _scan(name: str, root: Path, folders: Mapping[str, Path], class_names: Sequence[str]) -> _Read:
    """List the images of class folders."""
    if not class_names:
        raise DataError(f"{root} holds no folders: it must have a folder for each class, for example {root}/cat/1.jpg.")
    items, labels, unsupported = [], [], []
    skipped: dict[str, list[str]] = {}
    for label, class_name in enumerate(class_names):
        folder = folders.get(class_name)
        listing = list_files(folder) if folder is not None and folder.is_dir() else Listing()
        for kind, paths in listing.skipped.items():
            skipped.setdefault(kind, []).extend(paths)
        for file in listing.files:
            if is_image_file(file):
                items.append(str(file))
                labels.append(label)
                continue
            skipped.setdefault(f"{kind_of_file(file)} files", []).append(str(file))
            if is_unsupported_image(file):
                unsupported.append(f"{file}: Pillow does not read files of this format")
    outside = [
        file for file in root.iterdir() if file.is_file() and not file.name.startswith(".") and not is_table(file)
    ]
    outside = [str(file) for file in outside if is_image_file(file)]
    if outside:
        skipped["images outside of the class folders"] = outside
    if not items:
        kinds = Counter({kind: len(paths) for kind, paths in skipped.items()})
        found = f" It has {', '.join(f'{count} {kind}' for kind, count in kinds.most_common(10))}." if kinds else ""
        raise DataError(
            f"{root} has no images: put image files, such as .jpg and .png, into its folders {', '.join(class_names)}.{found}"
        )
    source = Source(items, labels, tuple(class_names), "", name, left_out=tuple(unsupported))
    return _Read(source, skipped)
