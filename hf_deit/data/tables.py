"""Tables of images with labels, as `datasets` data sets.

`TableReader` finds the columns of images and labels, and converts rows to items (images.py) and labels (labels.py).
sources.py and streams.py build data sets from the items and labels. loading.py finds and opens tables; `datasets` parses them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, listed
from ..losses import ProblemType
from .images import as_item
from .labels import Label, describe_type, is_label_type, read_labels

# Default names of the columns. They are used if no name is given and no column has the right type.
_IMAGE_NAMES = ("image", "file_name", "file", "path")
LABEL_NAMES = ("label", "labels", "class")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of images and labels.

    Args:
        image: Column of paths or embedded images. None for the only image column, or the column called image,
            file_name, file or path.
        labels: A column of classes, or several columns of 0 and 1, one per class. Empty for the only ClassLabel column,
            or the column called label, labels or class.
        separator: Text that separates the classes of an image in a single text column.

    Raises:
        DataError: The separator is empty, or it is given together with several label columns.
    """

    image: str | None = None
    labels: tuple[str, ...] = ()
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and (not self.separator or len(self.labels) > 1):
            raise DataError(
                f"label_separator={self.separator!r} with label_column={' '.join(self.labels) or None}: the separator "
                "must be a text such as ';' that separates the classes within a single label column. Correct it, or "
                "leave it out."
            )


def text_columns(files: Mapping[str, Sequence[str]], options: Mapping[str, Any]) -> Any:
    """Return features that read every column of CSV files as text, because a number would lose text: 001 would become 1.

    Args:
        files: CSV files by split.
        options: Options of pandas.read_csv, among others. Only those of the format are used.

    Returns:
        The features, or None if the files have different columns, which `datasets` then reports.
    """
    import datasets
    import pandas as pd

    names = ("sep", "encoding", "quotechar", "engine")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    headers = [list(pd.read_csv(file, nrows=0, **chosen).columns) for found in files.values() for file in found]
    if any(set(header) != set(headers[0]) for header in headers):
        return None
    return datasets.Features({str(name): datasets.Value("string") for name in headers[0]})


def _describe_columns(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{column}: {describe_type(feature)}" for column, feature in features.items())


def _is_embedded(feature: Any) -> bool:
    """Return whether a column without the type Image holds images: bytes, or structures of bytes and path."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} >= set(feature) and "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _lists_classes(feature: Any) -> bool:
    """Return whether a column holds lists of ClassLabel."""
    return hasattr(getattr(feature, "feature", None), "names")


def _check_columns(columns: Iterable[str], features: Mapping[str, Any], name: str, field: str) -> list[str]:
    """Return the columns. Raise a DataError if one of them does not exist."""
    missing = [column for column in columns if column not in features]
    if missing:
        raise DataError(
            f"{name} has no column {listed(missing)}: set {field} to one of its columns, which are "
            f"{_describe_columns(features)}."
        )
    return list(columns)


def _find_column(
    features: Mapping[str, Any], kind: type, is_similar: Any, names: Sequence[str], field: str, table: str
) -> str:
    """Return the only column of the type or, if there is none, of a similar type or with a default name."""
    typed = [column for column, feature in features.items() if isinstance(feature, kind)]
    similar = [column for column, feature in features.items() if is_similar(feature)]
    by_name = [column for column in names if column in features and is_label_type(features[column])]
    # If no column has a suitable type, one with a default name is chosen, whose type is then refused by name.
    candidates = typed or similar or by_name or [column for column in names if column in features]
    if len(candidates) != 1:
        raise DataError(
            f"{table} needs exactly one {kind.__name__} column and has {len(candidates)} "
            f"({', '.join(candidates) or 'none'}): set {field} to the name of the column. Its columns are "
            f"{_describe_columns(features)}."
        )
    return candidates[0]


class ImageReader:
    """Reader of the images of a data set, whatever its other columns are.

    Args:
        dataset: A `datasets` data set whose columns are known.
        column: Column of images. None for the only image column, or one with a default name.
        name: Name of the data in messages.
        root: Folder that relative paths are relative to. None for the working folder.

    Raises:
        DataError: The column is missing or ambiguous.
    """

    def __init__(self, dataset: Any, column: str | None, name: str, root: Path | None = None):
        import datasets

        features = dataset.features
        self.name, self.root = name, root
        self.column = (
            _check_columns([column], features, name, "image_column")[0]
            if column is not None
            else _find_column(features, datasets.Image, _is_embedded, _IMAGE_NAMES, "image_column", name)
        )
        self._feature = features[self.column]
        self._is_image = isinstance(self._feature, datasets.Image)
        self._holds_paths = getattr(self._feature, "dtype", None) in ("string", "large_string")
        if self._is_image:
            dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        self.dataset = dataset

    @property
    def image_column(self) -> str:
        """Column of images."""
        return self.column

    def check(self) -> None:
        """Check the type of the column.

        Raises:
            DataError: The column holds neither paths nor images.
        """
        if not (self._holds_paths or _is_embedded(self._feature) or self._is_image):
            raise DataError(
                f"Column {self.column!r} of {self.name} holds neither paths nor images: set image_column to another "
                f"column. Its columns are {_describe_columns(self.dataset.features)}."
            )

    def items(self) -> Sequence[Any]:
        """Return the undecoded images of all rows: a list of items, or a sequence that reads the column on access."""
        if self._holds_paths:
            return [as_item(value, self.root, number) for number, value in enumerate(self.dataset[self.column])]
        column = self.dataset.select_columns([self.column])
        return _ImageColumn(column, self.column, self.root, range(len(column)))


class TableReader:
    """Reader that converts the rows of a data set to items and labels.

    `class_names` and `problem_type` are those of the data set. `row_count` is the number of rows. It is None for a
    stream whose labels need not be read in advance.

    Args:
        dataset: A `datasets` data set, indexed or streamed. If its only label column is not of the type ClassLabel, all
            labels are read once when the reader is created.
        columns: The columns of images and labels.
        name: Name of the data in messages.
        root: Folder that relative paths are relative to. None for the working folder.
        class_names: Class names of the training split, if this is another split of the same data. None for a training
            split.

    Raises:
        DataError: A column is missing or ambiguous, or has an unsupported type; or a label that is read here is empty;
            or the classes do not fit `class_names`.
    """

    def __init__(
        self,
        dataset: Any,
        columns: Columns,
        name: str,
        root: Path | None = None,
        class_names: Sequence[str] | None = None,
    ):
        import datasets

        features = dataset.features
        if features is None:  # the columns of a streamed CSV or JSON file are not known before it is read
            dataset = dataset._resolve_features()
            features = dataset.features or {}
        self.name = name
        # If the labels of a stream have to be read, its rows are counted.
        self.row_count: int | None = len(dataset) if hasattr(dataset, "__len__") else None
        images = ImageReader(dataset, columns.image, name, root)
        self.image_column = images.column
        self.label_columns = (
            _check_columns(columns.labels, features, name, "label_column")
            if columns.labels
            else [_find_column(features, datasets.ClassLabel, _lists_classes, LABEL_NAMES, "label_column", name)]
        )
        images.check()
        self._images, self.dataset = images, images.dataset
        self._labels = read_labels(
            features,
            self.label_columns,
            self._cells,
            name=name,
            separator=columns.separator,
            class_names=class_names,
            is_stream=self.row_count is None,
        )
        if self.row_count is None:
            self.row_count = self._labels.row_count

    @property
    def root(self) -> Path | None:
        """Folder that relative paths are relative to. None for the working folder."""
        return self._images.root

    @root.setter
    def root(self, folder: Path | None) -> None:
        self._images.root = folder

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self._labels.class_names

    @property
    def problem_type(self) -> ProblemType:
        """Problem type: single-label or multi-label."""
        return self._labels.problem_type

    @property
    def unlabelled_rows(self) -> int | None:
        """Number of rows without a label. None if the labels were not read when the reader was created."""
        return self._labels.unlabelled_rows

    def rename_classes(self, names: Sequence[str]) -> None:
        """Give the classes other names, in index order."""
        self._labels = replace(self._labels, class_names=tuple(names))

    def _cells(self, column: str) -> Iterable[Any]:
        rows = self.dataset.select_columns([column])
        return rows[column] if hasattr(rows, "__len__") else (row[column] for row in rows)

    def label(self, row: Mapping[str, Any], number: int) -> Label:
        """Return the label of a row: a class index or, for multi-label data, zeros and ones `(classes,)`.

        A row without a label gets `losses.UNLABELLED`, for multi-label data for each class.

        Args:
            row: Values of the row by column name.
            number: Number of the row, for messages.

        Raises:
            DataError: The row has an unknown class or a label of -1, or a value that must be 0 or 1 is neither.
        """
        return self._labels.label(row, number)

    def labels(self) -> list[Label]:
        """Return the labels of all rows.

        Raises:
            DataError: The label of a row is invalid, see `label`.
        """
        columns = [self.dataset[column] for column in self.label_columns]
        rows = zip(*columns, strict=True)
        return [self.label(dict(zip(self.label_columns, row, strict=True)), number) for number, row in enumerate(rows)]

    def items(self) -> Sequence[Any]:
        """Return the undecoded images of all rows: a list of items, or a sequence that reads the column on access."""
        return self._images.items()

    def rows(self) -> Iterator[tuple[Any, Label]]:
        """Yield the item and the label of each row, for a stream."""
        selected = self.dataset.select_columns([self.image_column, *self.label_columns])
        for number, row in enumerate(selected):
            yield as_item(row[self.image_column], self.root, number), self.label(row, number)


@dataclass(frozen=True)
class _ImageColumn:
    """Sequence of the undecoded images in a column of a `datasets` data set."""

    dataset: Any
    column: str
    root: Path | None
    rows: Sequence[int]  # row numbers in the table, for messages

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return as_item(self.dataset[index][self.column], self.root, self.rows[index])

    def select(self, indices: list[int]) -> "_ImageColumn":
        rows = [self.rows[index] for index in indices]
        return _ImageColumn(self.dataset.select(indices), self.column, self.root, rows)
