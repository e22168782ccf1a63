"""Opening of table files, data sets saved by `datasets`, and data sets on the Hub, as `datasets` data sets.

This module also detects the separator and the encoding of CSV files, and the column that names the split of each row. tables.py
reads images and labels from the rows, and layouts.py knows the names of splits.
"""

import codecs
import contextlib
import csv
import glob
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, listed
from ..hub_access import check_hub_name, without_network
from .layouts import BUILDERS, NO_SPLIT, SPLITS, TEST, TRAIN, VALIDATION, Selection, chosen_splits, is_table, split_of
from .layouts import split_tables as _split_tables
from .tables import LABEL_NAMES, Columns, text_columns

logger = logging.getLogger(__name__)

_SEPARATORS = (",", ";", "\t", "|")
_SNIFFED_ROWS = 200
# Names of columns of splits, without spaces, underscores and upper case.
_SPLIT_COLUMNS = frozenset(
    [
        "split",
        "splits",
        "splitname",
        "datasplit",
        "datasetsplit",
        "dataset",
        "subset",
        "datasubset",
        "set",
        "settype",
        "partition",
        "phase",
        "usage",
        "fold",
        "traintest",
        "trainval",
        "trainvaltest",
        "trainvalidtest",
        "traintestsplit",
        "trainvalsplit",
    ]
)
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


# ---- files ----


def table_files(path: Path) -> dict[str, list[str]]:
    """Return the table files of each split.

    If `path` is a file, it is the split `train`. If it is a folder, see `layouts.split_tables`. The result is empty if
    there are no tables.
    """
    if path.is_file():
        return {TRAIN: [str(path)]} if is_table(path) else {}
    return _split_tables(path) if path.is_dir() else {}


def is_saved_dataset(path: Path) -> bool:
    """Return whether the folder was saved by `datasets`."""
    return (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()


def open_splits(data: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Open the splits of tables or of a data set, with their names in the data.

    Args:
        data: A table, a folder with train.* and possibly validation.*, a folder saved by `datasets`, or the name of a
            data set on the Hub.
        only: Names of the splits to open. None for all splits, of which one must be the training split.

    Returns:
        A `datasets` data set for each split, by name.

    Raises:
        DataError: No data is found, the training split is missing, a table is an empty file, or `datasets` cannot read
            the data.
    """
    splits = open_all(data, only=only)
    if only is None and TRAIN not in chosen_splits(splits, Selection(), data):
        raise no_training_split(data, splits)
    if only is not None and TRAIN in only and TRAIN not in splits:
        raise no_training_split(data, splits)
    return {name: split for name, split in splits.items() if only is None or name in only}


def no_training_split(data: str, splits: Sequence[str] | Mapping[str, Any]) -> DataError:
    """Return the error for data without a training split."""
    return DataError(
        f"{data} has no split 'train', only {', '.join(splits)}: give the split of the training images the name 'train', or "
        "set train_split to its name."
    )


def open_all(
    data: str, streaming: bool = False, only: Sequence[str] | None = None, selection: Selection | None = None
) -> dict[str, Any]:
    """Open the splits of tables or of a data set as `open_splits` does, but do not require a training split."""
    import datasets

    selection = selection or Selection()
    path = Path(data).expanduser()
    if path.exists():
        refuse_hub_fields(data, selection)
    files = table_files(path)
    if files:
        return open_tables(files, data, streaming, only)
    if path.is_dir():
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # errors of many classes
            raise _no_data(data, error) from error
    else:
        loaded = _load_from_hub(data, streaming, selection)
    return dict(loaded) if isinstance(loaded, Mapping) else {TRAIN: loaded}


def open_tables(
    files: dict[str, list[str]], data: str, streaming: bool = False, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Open table files.

    Args:
        files: The files of each split.
        data: Name of the data in messages.
        streaming: Whether to return `IterableDataset`s.
        only: Names of the splits to open. None for all splits.

    Raises:
        DataError: A file is empty or cannot be read, or the files have different formats or columns.
    """
    files = {name: found for name, found in files.items() if only is None or name in only}
    if not files:
        return {}
    try:
        return dict(_load_files(files, streaming))
    except DataError:
        raise
    except Exception as error:  # the builders raise errors of many classes
        if TEST in files and len(files) > 1:  # a test table without labels has other columns
            rest = {name: found for name, found in files.items() if name != TEST}
            return open_tables(rest, data, streaming) | open_tables({TEST: files[TEST]}, data, streaming)
        cause = error.__cause__ or error
        raise DataError(
            f"{data} cannot be read as a table ({type(cause).__name__}: {cause}). All rows and all splits must "
            "have the same columns, and a column must have the same type in all rows."
        ) from error


def _load_files(files: dict[str, list[str]], streaming: bool) -> Mapping[str, Any]:
    import datasets

    for split, names in files.items():
        for name in names:
            if os.path.getsize(name) == 0:
                raise DataError(f"{name} (the split {split!r}) is an empty file: it must have a row for each image.")
    all_names = [name for names in files.values() for name in names]
    suffixes = {Path(name).suffix.lower() for name in all_names}
    if len({(BUILDERS[suffix], suffix == ".tsv") for suffix in suffixes}) > 1:
        raise DataError(
            f"The tables have different formats ({', '.join(sorted(suffixes))}): use the same format for all splits."
        )
    # `datasets` takes names of files for patterns: "[1]" would stand for "1".
    escaped = {split: [glob.escape(name) for name in names] for split, names in files.items()}
    options: dict[str, Any] = {"data_files": escaped, "streaming": streaming}
    if BUILDERS[next(iter(suffixes))] == "csv":
        # A class may be called "NA" or "None". Only an empty cell is a missing label.
        options |= {"keep_default_na": False, **_csv_options(all_names)}
        options["features"] = text_columns(files, options)
    return datasets.load_dataset(BUILDERS[next(iter(suffixes))], **options)


def refuse_hub_fields(data: str, selection: Selection) -> None:
    """Check that no field of a data set on the Hub is given for data on this machine.

    Raises:
        DataError: A configuration or a revision is given.
    """
    for name, value in (("data_config", selection.config), ("data_revision", selection.revision)):
        if value is not None:
            raise DataError(
                f"{name}={value!r}: {data} is a path on this machine, and {name} is only for data sets on the Hub."
            )


def _no_data(data: str, error: Exception) -> DataError:
    return DataError(
        f"No data at {data!r}: it is neither a folder or a table here nor a data set that `datasets` can load "
        f"({type(error).__name__}: {error}). Check the path, or the name and the network connection."
    )


def _load_from_hub(data: str, streaming: bool, selection: Selection) -> Any:
    import datasets

    online = check_hub_name(data, "dataset", selection.revision, DataError)
    try:
        with contextlib.nullcontext() if online else without_network():
            return datasets.load_dataset(data, selection.config, revision=selection.revision, streaming=streaming)
    except ValueError as error:
        if "config" not in str(error).lower():
            raise _no_data(data, error) from error
        given = "" if selection.config is None else f"data_config={selection.config!r}: "
        raise DataError(
            f"{given}set data_config to the name of a configuration of {data} ({type(error).__name__}: {error})."
        ) from error
    except Exception as error:  # the Hub, the disk and the builders raise errors of many classes
        raise _no_data(data, error) from error


# ---- separator and encoding of CSV files ----


def _csv_options(names: Sequence[str]) -> dict[str, Any]:
    """Return the separator and the encoding of CSV files, as pandas takes them.

    Raises:
        DataError: The separator or the encoding is uncertain, or the files have different ones.
    """
    encodings: dict[str, str] = {}
    separators: dict[str, str] = {}
    for name in names:
        content = Path(name).read_bytes()
        encoding = _encoding_of(name, content)
        if encoding is not None:
            encodings.setdefault(encoding, name)
        text = content.decode(encoding or "ascii")
        separators.setdefault(_separator_of(name, text), name)
    for what, found in (("encodings", encodings), ("separators", separators)):
        if len(found) > 1:
            listed = ", ".join(f"{value!r} in {name}" for value, name in found.items())
            raise DataError(f"The tables have different {what} ({listed}): save them with the same one.")
    options: dict[str, Any] = {"sep": next(iter(separators))}
    encoding = next(iter(encodings), "utf-8")
    if encoding not in ("utf-8", "utf-8-sig"):
        options["encoding"] = encoding
    usual = "\t" if names[0].lower().endswith(".tsv") else ","
    if options["sep"] != usual:
        logger.info("%s is read with the separator %r.", separators[options["sep"]], options["sep"])
    return options


def _encoding_of(name: str, content: bytes) -> str | None:
    """Return the encoding of a CSV file, or None if it has only ASCII characters.

    Raises:
        DataError: The encoding is uncertain.
    """
    if content.isascii():
        return None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    with contextlib.suppress(UnicodeDecodeError):
        content.decode("utf-8-sig")
        return "utf-8-sig"
    word = _western_word(content)
    if word is None:
        sample = next(line for line in content.splitlines() if not line.isascii())
        raise DataError(
            f"The encoding of {name} is neither UTF-8 nor recognised; the first line with special characters is {sample[:80]!r}. "
            "Save the table with the encoding UTF-8."
        )
    logger.warning(
        "%s is not encoded in UTF-8. It is read as Western European text (cp1252, Latin-1), for example %r. If this text is "
        "wrong, save the table with the encoding UTF-8.",
        name,
        word,
    )
    return "cp1252"


def _western_word(content: bytes) -> str | None:
    """Return a word with special characters of a text in cp1252 (of which Latin-1 is a part), or None if it is in another encoding.

    In a text of Western Europe, letters with accents are rare, and stand in words of plain letters.
    """
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    words = [word for word in re.findall(r"[^\s,;|\"'/\\.()0-9_-]+", text) if not word.isascii()]
    marks = "".join(char for word in words for char in word if not char.isascii())
    # The bytes of other encodings decode to symbols and to rare letters, or to words without plain letters.
    if not words or any(
        not (char in "ŒœŸ€’‘“”–…" or "\xc0" <= char <= "\xff" and char not in "×÷þÞðÐ") for char in marks
    ):
        return None
    letters = sum(map(len, words))
    if len(marks) > letters / 2:
        return None
    return words[0]


def _separator_of(name: str, text: str) -> str:
    """Return the separator of a CSV file.

    Raises:
        DataError: Several separators fit equally.
    """
    usual = "\t" if name.lower().endswith(".tsv") else ","
    consistent, possible = [], []
    for separator in (usual, *(other for other in _SEPARATORS if other != usual)):
        reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=separator)
        try:
            widths = [len(row) for row, _ in zip(reader, range(_SNIFFED_ROWS), strict=False) if row]
        except csv.Error:
            continue
        if widths and widths[0] > 1:
            possible.append(separator)
            if set(widths) == {widths[0]}:
                consistent.append(separator)
    if usual in consistent:
        return usual
    for candidates in (consistent, possible):
        if usual in candidates or not candidates:
            continue
        if len(candidates) > 1:
            raise DataError(
                f"{name} can be read with the separators {' and '.join(map(repr, candidates))}: save it with the separator "
                f"{usual!r}."
            )
        return candidates[0]
    return usual


# ---- columns that name the split of each row ----


def divided(splits: dict[str, Any], data: str, columns: Columns, selection: Selection) -> dict[str, Any]:
    """Divide the training rows by the column that names the split of each row, if there is such a column.

    Args:
        splits: A `datasets` data set for each split, by its name in the data.
        data: Name of the data in messages.
        columns: Columns of images and labels, which are not columns of splits.
        selection: The split column and the names of splits that the user gave.

    Returns:
        The splits. If a column divides the training rows, its splits are called "train", "validation" and "test", and the
        training split has the other name "train" too.

    Raises:
        DataError: The column does not exist, is ambiguous, or holds other values than names of splits.
    """
    if selection.split_column == NO_SPLIT:
        return splits
    names = [name for name in splits if split_of(name) == TRAIN] if len(splits) > 1 else list(splits)
    names = [selection.train_split] if selection.train_split in splits else names
    if len(names) != 1:
        return splits
    dataset = splits[names[0]]
    column = _split_column(dataset, data, columns, selection)
    if column is None:
        return splits
    values = _values(dataset, column)
    kinds = _kinds_of_values(sorted(set(values)), column, data, selection)
    if set(kinds.values()) == {TRAIN} and selection.validation_split is None:
        return splits
    parts = {split: _rows_of(dataset, column, values, kinds, split) for split in SPLITS if split in kinds.values()}
    counts = Counter(values)
    logger.info(
        "%s: column %r names the split of each row: %s.",
        data,
        column,
        listed((f"{counts[value]} rows {value!r} ({kind or 'left out'})" for value, kind in kinds.items()), str),
    )
    others = {name: split for name, split in splits.items() if name != names[0]}
    taken = {split_of(name) for name in others} & set(parts)
    if taken:
        raise DataError(
            f"{data} has the splits {listed(others)}, and column {column!r} of the training rows names the split "
            f"{listed(taken)} too. Use one of the two: set split_column: none to ignore the column, or correct it."
        )
    if TRAIN not in parts:
        raise DataError(
            f"Column {column!r} of {data} names no training rows; its values are {listed(counts)}. Set train_split to one of "
            "them, or set split_column: none to ignore the column."
        )
    return {**parts, **others}


def _values(dataset: Any, column: str) -> list[str]:
    rows = dataset.select_columns([column])
    cells = rows[column] if hasattr(rows, "__len__") else (row[column] for row in rows)
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _rows_of(dataset: Any, column: str, values: Sequence[str], kinds: Mapping[str, str | None], split: str) -> Any:
    if hasattr(dataset, "__len__"):
        return dataset.select([row for row, value in enumerate(values) if kinds[value] == split])
    return dataset.filter(_RowOf(column, kinds, split))


class _RowOf:
    """Test whether a row belongs to a split, for a stream."""

    def __init__(self, column: str, kinds: Mapping[str, str | None], split: str):
        self.column, self.values = column, {value for value, kind in kinds.items() if kind == split}

    def __call__(self, row: Mapping[str, Any]) -> bool:
        cell = row[self.column]
        return ("" if cell is None else str(cell).strip()) in self.values


def _plain_name(column: str) -> str:
    return re.sub(r"[\W_]+", "", column.lower())


def _flag_of(column: str) -> str | None:
    """Return the split of the rows whose flag is set in a column such as `is_valid` or `is_training_image`, or None."""
    plain = re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)).strip().lower()
    return split_of(plain.removeprefix("is ")) if plain.startswith("is ") else None


def _split_column(dataset: Any, data: str, columns: Columns, selection: Selection) -> str | None:
    features = dataset.features or (dataset._resolve_features().features if not hasattr(dataset, "__len__") else {})
    if selection.split_column is not None:
        if selection.split_column not in features:
            raise DataError(
                f"split_column={selection.split_column!r}: {data} has no such column. Its columns are {listed(features)}."
            )
        return selection.split_column
    dtypes = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    excluded = {*columns.labels, columns.image, *LABEL_NAMES}  # never taken for a column of splits
    free = [name for name in features if name not in excluded and not hasattr(features[name], "names")]
    texts = [name for name in free if "string" in dtypes[name]]
    flags = [
        name for name in free if _flag_of(name) and ("string" in dtypes[name] or dtypes[name] in ("bool", "int64"))
    ]
    found = [name for name in texts if _plain_name(name) in _SPLIT_COLUMNS and _names_splits(dataset, name, data)]
    found = found or [name for name in flags if set(map(str.lower, _values(dataset, name))) <= set(_FLAGS)]
    if not found and hasattr(dataset, "__len__"):
        found = [name for name in texts if _holds_only_splits(dataset, name)]
    if len(found) > 1:
        raise DataError(
            f"{data} has several columns that may name the split of each row: {listed(found)}. Set split_column to one of "
            "them, or to none."
        )
    if not found:
        for name in free:
            if _plain_name(name) in ("split", "partition", "fold", "phase", "subset"):
                logger.warning(
                    "%s: the values of column %r are not names of splits, so it is not used to separate training, validation "
                    "and test images. Set split_column, train_split and validation_split to use it.",
                    data,
                    name,
                )
    return found[0] if found else None


def _names_splits(dataset: Any, column: str, data: str) -> bool:
    """Return whether all values of a column with a usual name are names of splits.

    Raises:
        DataError: Only some of them are.
    """
    values = sorted(set(_values(dataset, column)))
    known = [value for value in values if split_of(value) is not None]
    if known and len(known) < len(values):
        unknown = [value for value in values if value not in known]
        raise DataError(
            f"Column {column!r} of {data} names splits ({listed(known)}), but also holds {listed(unknown)}. Correct "
            f"these values; or set split_column: {column} with train_split and validation_split, and the rows of other values "
            "are left out; or set split_column: none to ignore the column."
        )
    return bool(known)


def _holds_only_splits(dataset: Any, column: str) -> bool:
    """Return whether a column of an unusual name holds the names of at least two splits and nothing else."""
    first = dataset.select_columns([column])[:100][column]
    # A path such as train/1.jpg is no name of a split.
    if any(cell is None or re.search(r"[/\\.]", str(cell)) or split_of(str(cell)) is None for cell in first):
        return False
    kinds = {split_of(value) for value in set(_values(dataset, column))}
    return None not in kinds and TRAIN in kinds and len(kinds) > 1


def _kinds_of_values(values: Sequence[str], column: str, data: str, selection: Selection) -> dict[str, str | None]:
    """Return the split of each value of a split column. None for values whose rows are left out."""
    flag = _flag_of(column)
    if flag is not None and set(map(str.lower, values)) <= set(_FLAGS):
        rest = TEST if flag == TRAIN else TRAIN
        kinds: dict[str, str | None] = {value: flag if _FLAGS[value.lower()] else rest for value in values}
    else:
        kinds = {value: split_of(value) for value in values}
    given = {TRAIN: selection.train_split, VALIDATION: selection.validation_split}
    for split, value in given.items():
        if value is None or value == NO_SPLIT:
            continue
        if value not in kinds:
            if split == TRAIN and value == TRAIN:
                continue
            raise DataError(
                f"{split}_split={value!r}: column {column!r} of {data} has no such value. Its values are {listed(values)}."
            )
        kinds = {name: None if kind == split else kind for name, kind in kinds.items()} | {value: split}
    if selection.validation_split is not None and selection.train_split is None and TRAIN not in kinds.values():
        kinds = {value: kind or TRAIN for value, kind in kinds.items()}
    if selection.validation_split == NO_SPLIT:
        kinds = {value: None if kind == VALIDATION else kind for value, kind in kinds.items()}
    if not any(kinds.values()) or (
        None in kinds.values() and not (selection.train_split or selection.validation_split)
    ):
        unknown = [value for value, kind in kinds.items() if kind is None]
        raise DataError(
            f"Column {column!r} of {data} holds {listed(unknown)}, which name no split: name the splits train, validation "
            "and test, or set train_split and validation_split to values of the column."
        )
    return kinds


def uses_path_splits(paths: Sequence[str]) -> dict[str, list[int]] | None:
    """Return the row numbers of each split if the path of every image has a folder that stands for a split, else None."""
    found: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        kinds = [kind for part in Path(path).parts[:-1] if (kind := split_of(part)) is not None]
        if not kinds:
            return None
        found.setdefault(kinds[0], []).append(row)
    return found


def joined(datasets_of_folders: Sequence[tuple[Path, Any]], root: Path, column: str) -> Any:
    """Return the rows of several tables as one data set, with paths relative to one folder.

    Args:
        datasets_of_folders: Folder and data set of each table.
        root: Folder that the paths are relative to afterwards.
        column: Column of paths.
    """
    import datasets

    parts = []
    for folder, dataset in datasets_of_folders:
        prefix = os.path.relpath(folder, root)
        paths = [None if path is None else os.path.normpath(os.path.join(prefix, path)) for path in dataset[column]]
        parts.append(dataset.remove_columns([column]).add_column(column, paths))
    return datasets.concatenate_datasets(parts)
