"""Find the images of a data set in image folders, tables, folders saved by `datasets`, or on the Hub.

The result is a `Source` (sources.py) for each split, or the reader of a stream (streams.py). folders.py finds the splits of folders,
table_files.py opens tables and data sets, and tables.py reads their rows.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, listed
from .folders import folder_layout, training_folder_has_classes
from .images import check_policy
from .labels import refuse_unlabelled
from .layouts import NO_SPLIT, TEST, TRAIN, VALIDATION, VALIDATION_NAMES, Selection, chosen_splits, split_of
from .sources import Source, check_class_names, check_classes, warn_of_shared_files
from .splits import Layout, Split, dataset_layout, finished, move_to_image_folder, names_only, read_table, table_root
from .table_files import divided, is_saved_dataset, no_training_split, open_all, refuse_hub_fields, table_files
from .tables import Columns, TableReader

logger = logging.getLogger(__name__)


# What to do with images without a label (empty cells of a table).
REFUSE, KEEP, LEAVE_OUT = UNLABELLED_ROWS = ("refuse", "keep", "leave_out")


def load_splits(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
    selection: Selection | None = None,
    unlabelled_rows: str = REFUSE,
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
        unlabelled_rows: What to do with training images without a label, which tables and data sets may have. "refuse":
            raise a DataError. "keep": keep them. "leave_out": leave them out and log their number. Validation images
            always need labels.

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
    if unlabelled_rows != LEAVE_OUT:
        train = _with_labels(train, unlabelled_rows)
    held_out = layout.held_out(selection)
    validation = None if held_out is None else _load(layout, held_out, broken_images, train.class_names)
    if validation is not None:
        refuse_unlabelled(validation.name, validation.labels, "Validation images always need labels: add them.")
    check_classes(train.name, train.labels, train.class_names, train.problem_type)
    if validation is None:
        train, validation = train.split(validation_share, seed)
        validation = replace(validation, left_out=())  # the training source already lists them
    elif held_out == TEST:
        logger.info("%s has no validation split: the test split %r is used for validation.", data, layout.chosen[TEST])
    if unlabelled_rows == LEAVE_OUT:  # after the split, so that the validation images are those of KEEP
        train = _with_labels(train, unlabelled_rows)
    warn_of_shared_files(train.items, validation.items, data)
    return train, validation


def _with_labels(source: Source, unlabelled_rows: str) -> Source:
    """Treat the images without a label as `unlabelled_rows` says, see `load_splits`."""
    if unlabelled_rows == KEEP:
        return source
    if unlabelled_rows != LEAVE_OUT:
        refuse_unlabelled(
            source.name,
            source.labels,
            "Give each image a label, or choose a labelled split. A student learns from images without a label if it has a "
            "teacher or a teacher cache.",
        )
        return source
    labelled = source.labelled_part()
    if not len(labelled):
        refuse_unlabelled(source.name, source.labels, "No image has one: give labels, or choose a labelled split.")
    if len(labelled) < len(source):
        logger.warning(
            "%s: %d of %d images have no label and are left out.",
            source.name,
            len(source) - len(labelled),
            len(source),
        )
    return labelled


def _load(layout: Layout, split: str, broken_images: str, class_names: Sequence[str] | None = None) -> Source:
    """Load a split, by "train", "validation" or "test" or else by its name in the data."""
    name = layout.train() if split == TRAIN else layout.chosen.get(split, split)
    return finished(layout.splits[name], layout.splits[name].read(class_names), split, broken_images)


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
    images. Images without a label are kept. The arguments are those of `load_splits`.

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


def list_training(
    data: str, columns: Columns | None = None, broken_images: str = "skip", selection: Selection | None = None
) -> tuple[Source, bool]:
    """List the training images and their labels without reading the images.

    The arguments are those of `load_splits`.

    Returns:
        The training source, without a fingerprint and with unreadable images; and whether the data has a validation split
        or a labelled test split. If not, `load_splits` takes its validation images from this source.

    Raises:
        DataError: As in `load_splits`, as far as this shows without reading images.
    """
    selection = selection or Selection()
    layout = _find(data, columns, broken_images, selection)
    source = layout.splits[layout.train()].read(None).source
    check_classes(source.name, source.labels, source.class_names, source.problem_type)
    return source, layout.held_out(selection) is not None


def load_validation(
    data: str,
    validation_share: float | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
    selection: Selection | None = None,
    split: str | None = None,
    unlabelled_rows: str = REFUSE,
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
        unlabelled_rows: What to do with images without a label: "refuse" or "leave_out", as in `load_splits`.

    Raises:
        DataError: As in `load_splits`, but a single class is allowed; or the data has no such split, or it has no labels.
    """
    selection = selection or Selection()
    layout = _find(data, columns, broken_images, selection)
    wanted = _wanted(layout, split, selection)
    known = TRAIN in layout.chosen and wanted not in (None, TRAIN)
    class_names = layout.splits[layout.train()].read(None).source.class_names if known else None
    if wanted not in (None, TRAIN):
        return _with_labels(_load(layout, wanted, broken_images, class_names), unlabelled_rows)
    held_out = layout.held_out(selection)
    train = _load(layout, TRAIN, broken_images)
    if held_out is None and validation_share is not None:
        parts = train.split(validation_share, seed)
        return _with_labels(parts[0] if wanted == TRAIN else parts[1], unlabelled_rows)
    train = _with_labels(train, unlabelled_rows)
    if wanted == TRAIN and held_out is not None:
        return train
    if split is not None and split_of(split) == VALIDATION:
        raise DataError(f"split={split!r}: {data} has no validation split. Leave the split out to evaluate all images.")
    return replace(train, split_name="all" if len(layout.splits) == 1 and held_out is None else TRAIN)


def _wanted(layout: Layout, split: str | None, selection: Selection) -> str | None:
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
    raise DataError(f"split={split!r}: {layout.data} has no such split. Its splits are {listed(layout.splits)}.")


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
    opened = open_all(data, streaming=True, selection=selection)
    splits = divided(opened, data, columns, selection)
    named = names_only(selection, opened, splits)
    chosen = chosen_splits(splits, named, data)
    if TRAIN not in chosen:
        raise no_training_split(data, splits)
    validation = validation_name(splits, named, data)
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
    if root is not None:
        move_to_image_folder(reader, [item for item, _ in islice(reader.rows(), 100)], root, TRAIN)
    if Path(data).expanduser().exists():
        held_out = divided(open_all(data), data, columns, selection)[validation]
    else:  # a data set on the Hub: without streaming, `datasets` would download all splits
        held_out = _in_memory(splits[validation])
    read = read_table(held_out, f"{data} ({validation})", columns, root, reader.class_names, split_of(validation))
    refuse_unlabelled(read.source.name, read.source.labels, "Validation images always need labels: add them.")
    split = Split(lambda names: read, root)
    return reader, finished(split, read, split_of(validation) or VALIDATION, broken_images)


def _in_memory(stream: Any) -> Any:
    import datasets

    for column, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    return datasets.Dataset.from_list(list(stream), features=stream.features)


def is_image_folder(data: str) -> bool:
    """Return whether `data` is a folder of class folders, and not a table, a saved data set or a name on the Hub."""
    path = Path(data).expanduser()
    if not path.is_dir() or is_saved_dataset(path):
        return False
    tables = table_files(path)
    return not any(split_of(name) == TRAIN for name in tables) or training_folder_has_classes(path)


def _find(data: str, columns: Columns | None, broken_images: str, selection: Selection) -> Layout:
    """Find the splits of the data. Nothing is read yet, unless a folder holds both class folders and a table."""
    check_policy(broken_images)
    columns = columns or Columns()
    path = Path(data).expanduser()
    if path.is_dir() and not is_saved_dataset(path):
        refuse_hub_fields(data, selection)
        return folder_layout(data, path, columns, selection)
    if path.exists() and not path.is_dir() and not table_files(path):
        raise DataError(
            f"{data} is a file of an unknown format: give a folder with a subfolder for each class, a table (.csv, "
            ".tsv, .jsonl, .parquet), or the name of a data set on the Hub."
        )
    return dataset_layout(open_all(data, selection=selection), data, columns, table_root(data), selection)
