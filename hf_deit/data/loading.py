"""Find the images of a data set in image folders, tables, folders saved by `datasets`, or on the Hub.

The result is a `Source` (sources.py) for each split, or the reader of a stream (streams.py). tables.py reads tables.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from .images import check_policy
from .sources import (
    Source,
    check_class_names,
    check_classes,
    check_files_exist,
    warn_of_shared_files,
    with_fingerprint,
)
from .tables import Columns, TableReader

BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
VALIDATION_NAMES = ("validation", "val", "valid", "dev")


def table_files(path: Path) -> dict[str, list[str]]:
    """Return the table files of each split.

    If `path` is a file, it is the split `train`. If it is a folder, a file such as train.csv or train-0.parquet belongs
    to the split that its name begins with. The files are in the folder itself or in its subfolder `data`. The result is
    empty if there are no tables.
    """
    if path.is_file():
        return {"train": [str(path)]} if path.suffix.lower() in BUILDERS else {}
    files: dict[str, list[str]] = {}
    for folder in (path, path / "data"):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            split = entry.stem.split("-")[0]
            if entry.suffix.lower() in BUILDERS and entry.is_file() and split in ("train", *VALIDATION_NAMES, "test"):
                files.setdefault(split, []).append(str(entry))
        if "train" in files:
            return files
    return {}


def is_saved_dataset(path: Path) -> bool:
    """Return whether the folder was saved by `datasets`."""
    return (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()


def open_splits(data: str, streaming: bool = False, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Open the splits of tables or of a data set.

    Args:
        data: A table, a folder with train.* and possibly validation.*, a folder saved by `datasets`, or the name of a
            data set on the Hub.
        streaming: Whether to return `IterableDataset`s, which read the rows later.
        only: Names of the splits to open. None for all splits.

    Returns:
        A `datasets` data set for each split, by name.

    Raises:
        DataError: No data is found, the split `train` is missing, a table is an empty file, or `datasets` cannot read
            the data.
    """
    import datasets

    path = Path(data).expanduser()
    files = table_files(path)
    try:
        if files:
            files = {name: found for name, found in files.items() if only is None or name in only}
            loaded = _load_files(files, streaming) if files else {}
        elif path.is_dir():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(data, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # the Hub, the disk and the builders raise errors of many classes
        cause = error.__cause__ or error
        if files:
            raise DataError(
                f"{data} cannot be read as a table ({type(cause).__name__}: {cause}). All rows and all splits must "
                "have the same columns, and a column must have the same type in all rows."
            ) from error
        raise DataError(
            f"No data at {data!r}: it is neither a folder or a table here nor a data set that `datasets` can load "
            f"({type(error).__name__}: {error}). Check the path, or the name and the network connection."
        ) from error
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    if "train" not in splits and (only is None or "train" in only):
        raise DataError(
            f"{data} has no split 'train', only {', '.join(splits)}: give the split of the training images the name "
            "'train'."
        )
    if streaming and not files and path.is_dir():
        splits = {name: split.to_iterable_dataset() for name, split in splits.items()}
    return {name: split for name, split in splits.items() if only is None or name in only}


def _load_files(files: dict[str, list[str]], streaming: bool) -> Mapping[str, Any]:
    import datasets

    for split, names in files.items():
        for name in names:
            if os.path.getsize(name) == 0:
                raise DataError(f"{name} (the split {split!r}) is an empty file: it must have a row for each image.")
    suffixes = {Path(name).suffix.lower() for names in files.values() for name in names}
    if len({(BUILDERS[suffix], suffix == ".tsv") for suffix in suffixes}) > 1:
        raise DataError(
            f"The tables have different formats ({', '.join(sorted(suffixes))}): use the same format for all splits."
        )
    options: dict[str, Any] = {"data_files": files, "streaming": streaming}
    if BUILDERS[next(iter(suffixes))] == "csv":
        # A class may be called "NA" or "None". Only an empty cell is a missing label.
        options |= {"keep_default_na": False, "sep": "\t" if ".tsv" in suffixes else ","}
    return datasets.load_dataset(BUILDERS[next(iter(suffixes))], **options)


def validation_name(splits: Mapping[str, Any]) -> str | None:
    """Return the name of the validation split, `test` if there is no validation split, or None if there is neither."""
    return next((name for name in (*VALIDATION_NAMES, "test") if name in splits), None)


def load_splits(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
) -> tuple[Source, Source]:
    """Find the training and the validation images of a path or of a data set on the Hub.

    Args:
        data: A folder with `train/CLASS/…` and `validation/CLASS/…` (or `val`, `valid`, `dev`); a folder with
            `CLASS/…`, from which a validation share is split off; a table (CSV, TSV, JSON lines, parquet), or a folder
            with `train.*` and `validation.*`; a folder saved by `datasets`; or the name of a data set on the Hub.
        validation_share: Share in (0, 1) of each class to split off if there is no validation split.
        seed: Seed for splitting off the validation share.
        columns: The columns of images and labels in a table or data set. None to find them by type or default name.
        broken_images: What to do with a file whose header is not that of an image. "skip": leave it out and log a
            warning. "raise": raise a DataError.

    Returns:
        The training source and the validation source. Both have the same classes.

    Raises:
        DataError: No data or no image is found, an argument is invalid, the labels are missing or invalid, single-label
            data has only one class, or a class has no training image.
    """
    if not 0 < validation_share < 1:
        raise DataError(
            f"validation_share={validation_share}: it must be between 0 and 1 (exclusive), for example 0.1."
        )
    train, validation = _load(data, columns, broken_images)
    check_classes(train.name, train.labels, train.class_names, train.problem_type)
    if validation is None:
        train, validation = train.split(validation_share, seed)
        validation = replace(validation, left_out=())  # the training source already lists them
    warn_of_shared_files(train.items, validation.items, data)
    return train, validation


def load_training(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
) -> Source:
    """Find the training images in order to display them.

    The result is the training source of `load_splits` or, if no validation share can be split off, a source of all
    images. The arguments are those of `load_splits`.

    Raises:
        DataError: As in `load_splits`, but a single class or image is allowed.
    """
    train, validation = _load(data, columns, broken_images)
    if validation is not None or len(train) < 2:
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
) -> Source:
    """Find the images for an evaluation.

    The result is the validation split. If the data has no validation split, the result is the validation share that the
    run split off; if `validation_share` is None, it is all images. The arguments are those of `load_splits`, with the
    share and the seed of the run.

    Raises:
        DataError: As in `load_splits`, but a single class is allowed.
    """
    source, validation = _load(data, columns, broken_images)
    if validation is not None:
        return validation
    return source if validation_share is None else source.split(validation_share, seed)[1]


def load_stream(data: str, columns: Columns | None = None, broken_images: str = "skip") -> tuple[TableReader, Source]:
    """Open the training images of a table or data set as a stream, and find the validation images.

    Args:
        data: As in `load_splits`, except for folders of class folders, which cannot be streamed.
        columns: As in `load_splits`.
        broken_images: What to do with unreadable validation images, as in `load_splits`.

    Returns:
        The reader of the stream, and the validation source. The validation images of a data set on the Hub are held in
        memory, undecoded.

    Raises:
        DataError: As in `load_splits`, or the data has no validation split.
    """
    check_policy(broken_images)
    columns = columns or Columns()
    splits = open_splits(data, streaming=True)
    validation = validation_name(splits)
    if validation is None:
        raise DataError(
            f"{data} has no validation split, and a stream cannot be split: add a validation split (such as "
            f"validation.csv or validation.parquet; its name may be {', '.join(VALIDATION_NAMES)} or test), or set "
            "streaming: false."
        )
    reader = TableReader(splits["train"], columns, f"{data} (train)", table_root(data))
    check_class_names(reader.name, reader.class_names, reader.problem_type)
    if Path(data).expanduser().exists():
        held_out = open_splits(data, only=(validation,))[validation]
    else:  # a data set on the Hub: without streaming, `datasets` would download all splits
        held_out = _in_memory(splits[validation])
    return reader, _table_source(held_out, data, validation, columns, broken_images, reader.class_names)


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
    return not table_files(path) or bool((path / "train").is_dir() and _subfolders(path / "train"))


def _load(data: str, columns: Columns | None, broken_images: str) -> tuple[Source, Source | None]:
    check_policy(broken_images)
    path = Path(data).expanduser()
    if is_image_folder(data):
        if columns not in (None, Columns()) and not table_files(path):
            raise DataError(
                f"{data} is a folder of class folders: image_column, label_column and label_separator are only for "
                "tables and data sets. Leave them out."
            )
        if columns in (None, Columns()):
            return _load_folders(path, broken_images)
    if path.exists() and not path.is_dir() and not table_files(path):
        raise DataError(
            f"{data} is a file of an unknown format: give a folder with a subfolder for each class, a table (.csv, "
            ".tsv, .jsonl, .parquet), or the name of a data set on the Hub."
        )
    return _load_tables(data, columns or Columns(), broken_images)


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _load_folders(path: Path, broken_images: str) -> tuple[Source, Source | None]:
    names = _subfolders(path)
    if "train" not in names:
        return _scan_folder(path, names, broken_images), None
    train = _scan_folder(path / "train", _subfolders(path / "train"), broken_images)
    for name in VALIDATION_NAMES:
        if name in names:
            unknown = sorted(set(_subfolders(path / name)) - set(train.class_names))
            if unknown:
                raise DataError(
                    f"{path / name} has the class(es) {', '.join(map(repr, unknown))}, which {path / 'train'} does not "
                    f"have (its classes are {', '.join(map(repr, train.class_names))}): the names of the class folders "
                    "must agree. Rename the folders, or add training images."
                )
            return train, _scan_folder(path / name, train.class_names, broken_images)
    return train, None


def _scan_folder(path: Path, class_names: Sequence[str], broken_images: str) -> Source:
    if not class_names:
        raise DataError(f"{path} holds no folders: it must have a folder for each class, for example {path}/cat/1.jpg.")
    extensions = set(Image.registered_extensions())
    items, labels = [], []
    for label, name in enumerate(class_names):
        for file in sorted((path / name).rglob("*")) if (path / name).is_dir() else ():
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if not hidden and file.suffix.lower() in extensions and file.is_file():
                items.append(str(file))
                labels.append(label)
    if not items:
        raise DataError(
            f"{path} has no images: put image files, such as .jpg and .png, into its folders {', '.join(class_names)}."
        )
    source = Source(items, labels, tuple(class_names), "", str(path))
    return with_fingerprint(source, broken_images, path)


def _load_tables(data: str, columns: Columns, broken_images: str) -> tuple[Source, Source | None]:
    splits = open_splits(data)
    train = _table_source(splits["train"], data, "train", columns, broken_images)
    validation = validation_name(splits)
    if validation is None or validation == "test" and _is_unlabelled(splits[validation], columns):
        return train, None
    return train, _table_source(splits[validation], data, validation, columns, broken_images, train.class_names)


def table_root(data: str) -> Path | None:
    """Return the folder that the paths in a table are relative to, or None if `data` is not a table."""
    path = Path(data).expanduser()
    files = table_files(path) if path.exists() else {}
    return Path(files["train"][0]).parent if files else None


def _table_source(
    dataset: Any,
    data: str,
    split: str,
    columns: Columns,
    broken_images: str,
    class_names: Sequence[str] | None = None,
) -> Source:
    name, root = f"{data} ({split})", table_root(data)
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows: it must have a row for each image.")
    reader = TableReader(dataset, columns, name, root, class_names)
    items = reader.items()
    source = Source(items, reader.labels(), reader.class_names, "", name, reader.problem_type)
    if isinstance(items, list):
        check_files_exist(items, name, reader.image_column, root)
    return with_fingerprint(source, broken_images, root)


def _is_unlabelled(dataset: Any, columns: Columns) -> bool:
    """Return whether a test split has no labels, as is common in competitions."""
    import datasets

    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in columns.labels if name in dataset.features]
    if columns.labels and not named:
        return True
    return any(set(dataset[name]) <= {-1, None} for name in named or typed)
