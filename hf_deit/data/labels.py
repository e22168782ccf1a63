"""Labels in the columns of a table: one class per image, several classes, or zeros and ones (multi-hot).

`read_labels` finds out once what the cells of the label columns mean, and returns a `LabelReader` that converts the
cells of a row. The kinds are listed in docs/data.md. tables.py finds the columns and reads the rows. models/label_names.py
compares class names with those of a model.
"""

import ast
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError, listed
from ..losses import UNLABELLED, ProblemType
from ..models.label_names import normal_form

logger = logging.getLogger(__name__)

Label = int | tuple[int, ...]
# Texts that often stand for a missing label; they are classes if they are written out.
_NAMES_OF_MISSING = ("nan", "null")
# Zeros and ones as people write them. True, 1 and 1.0 are the same key.
FLAGS = {0: 0, 1: 1}
FLAGS |= {text: flag for flag in (0, 1) for text in (str(flag), f"{flag}.0", f"{flag}.")}
FLAGS |= {text: flag for flag, word in enumerate(("false", "true")) for text in (word, word.title(), word.upper())}
# Names of two classes that mean "absent" and "present" in lists of ClassLabel.
_FLAG_NAMES = (("0", "1"), ("false", "true"), ("no", "yes"), ("absent", "present"), ("negative", "positive"))
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_FLOATS = ("float16", "float32", "float64")
_CLASS_TYPES = ("string", "large_string", "bool", *_INTEGERS)
_PEEKED_ROWS = 100  # of a stream of ClassLabel lists, which is not read in advance


def has_label(label: Any) -> bool:
    """Return whether the label of an image is one: neither `losses.UNLABELLED` nor a sequence of that number."""
    if isinstance(label, int):
        return label != UNLABELLED
    values = np.asarray(label)
    return not (values.size and bool((values == UNLABELLED).all()))


@dataclass(frozen=True)
class LabelReader:
    """Reader of the labels of rows.

    Args:
        convert: Function that converts the cells of the label columns of a row to the label. It raises a `_CellError`.
        class_names: Name of each class, in index order.
        problem_type: Problem type: single-label or multi-label.
        name: Name of the data in messages.
        row_count: Number of rows, if they were counted.
        unlabelled_rows: Number of rows without a label, if all cells were read.
    """

    convert: Callable[[Mapping[str, Any]], Label]
    class_names: tuple[str, ...]
    problem_type: ProblemType
    name: str
    row_count: int | None = None
    unlabelled_rows: int | None = None

    def label(self, row: Mapping[str, Any], number: int) -> Label:
        """Return the label of a row: a class index or, for multi-label data, zeros and ones `(classes,)`.

        The label of a row without a label is `losses.UNLABELLED`, for multi-label data for each class.

        Args:
            row: Values of the row by column name.
            number: Number of the row, for messages.

        Raises:
            DataError: The row has an unknown class, a label that looks like a mistake, or a value that is neither 0 nor 1
                where one is expected.
        """
        try:
            return self.convert(row)
        except _NoLabel:
            single = self.problem_type == ProblemType.SINGLE_LABEL
            return UNLABELLED if single else (UNLABELLED,) * len(self.class_names)
        except _CellError as error:
            if error.problem is None:
                raise unlabelled(self.name, number) from error
            raise DataError(f"Row {number} of {self.name} {error.problem}") from error


class _CellError(Exception):
    """A cell that cannot be converted. `problem` ends a sentence that begins with the row; None: there is no label."""

    def __init__(self, problem: str | None = None):
        super().__init__(problem)
        self.problem = problem


class _NoLabel(Exception):
    """A row whose cells are empty: the image has no label."""


def unlabelled(name: str, number: int, in_list: bool = False) -> DataError:
    """Return the error about a row without a label, or with an entry without a label in a list."""
    remedy = (
        "In lists of one number per class, write 0 for a class that the image does not have."
        if in_list
        else "If -1 is a class, give it another name, such as 'negative'. If it stands for a missing label, leave the "
        "cells empty."
    )
    return DataError(
        f"{name} has images without a label (-1, null or empty); the first one is in row {number}. Give each image a "
        f"label, or choose a labelled split. {remedy}"
    )


def refuse_unlabelled(name: str, labels: Sequence[Label], remedy: str) -> None:
    """Check that all images have labels.

    Args:
        name: Name of the data in messages.
        labels: Label of each image.
        remedy: How to fix it, as a sentence.

    Raises:
        DataError: An image has no label.
    """
    missing = [number for number, label in enumerate(labels) if not has_label(label)]
    if missing:
        raise DataError(
            f"{name} has {len(missing)} image(s) without a label (null, empty or {UNLABELLED}); the first one is in row "
            f"{missing[0]}. {remedy}"
        )


def read_labels(
    features: Mapping[str, Any],
    columns: Sequence[str],
    cells: Callable[[str], Iterable[Any]],
    *,
    name: str,
    separator: str | None = None,
    class_names: Sequence[str] | None = None,
    is_stream: bool = False,
) -> LabelReader:
    """Find out what the cells of the label columns mean.

    Args:
        features: Type of each column of the table.
        columns: One column of labels, or several columns of 0 and 1.
        cells: Function that returns the cells of a column from the first row on. If the type of the column does not tell
            the classes, all cells are read once.
        name: Name of the data in messages.
        separator: Text that separates the classes of an image in a column of texts.
        class_names: Class names of the training split, if this is another split of the same data.
        is_stream: Whether reading all cells takes a pass over the images.

    Raises:
        DataError: A column has an unsupported type, a label is missing or invalid, or the classes do not fit `class_names`.
    """
    column, several = columns[0], len(columns) > 1
    for one in columns:
        _check_type(one, features, name, scalar=several or separator is not None)
    feature = features[column]
    if separator is not None and "string" not in str(getattr(feature, "dtype", "")):
        raise DataError(
            f"label_separator={separator!r} needs a label column of texts, and {column!r} has the type "
            f"{getattr(feature, 'dtype', type(feature).__name__)}: choose another label_column, or leave label_separator out."
        )
    if several:
        reader = LabelReader(_FlagColumns(tuple(columns)), tuple(columns), ProblemType.MULTI_LABEL, name)
    elif isinstance(feature, Mapping):
        keys = tuple(feature)
        reader = LabelReader(_FlagColumns(keys, column), keys, ProblemType.MULTI_LABEL, name)
    else:
        scan = _Scan(column, name, separator, class_names)
        reader = scan.reader(feature, cells, is_stream)
    if class_names is not None and tuple(class_names) != reader.class_names:
        raise DataError(
            f"{name} has the classes {listed(reader.class_names)}, and the training images have the classes "
            f"{listed(class_names)}: both must have the same names in the same order. Use dataset.cast_column."
        )
    return reader


def is_label_type(feature: Any) -> bool:
    """Return whether a column can hold labels: texts, whole numbers, lists of them, or lists of zeros and ones."""
    if isinstance(feature, Mapping):
        return bool(feature) and all(_dtype(entry) in (*_CLASS_TYPES, *_FLOATS) for entry in feature.values())
    types = (*_CLASS_TYPES, *_FLOATS) if _holds_lists(feature) else _CLASS_TYPES
    return _dtype(feature) in types


def _inner(feature: Any) -> Any:
    """Return the type of the entries of a column of lists. None for another column, and for an array."""
    inner = getattr(feature, "feature", None)
    while getattr(inner, "feature", None) is not None:  # lists in lists
        inner = inner.feature
    return inner


def _holds_lists(feature: Any) -> bool:
    return _inner(feature) is not None or getattr(feature, "shape", None) is not None


def _dtype(feature: Any) -> str | None:
    return getattr(_inner(feature) or feature, "dtype", None)


def _check_type(column: str, features: Mapping[str, Any], name: str, scalar: bool) -> None:
    feature = features[column]
    fits = (
        _dtype(feature) in (*_CLASS_TYPES, *_FLOATS) and not _holds_lists(feature) if scalar else is_label_type(feature)
    )
    if fits:
        return
    kinds = ", ".join(f"{name}: {describe_type(feature)}" for name, feature in features.items())
    raise DataError(
        f"Column {column!r} of {name} cannot be used as a label column: it must hold texts, whole numbers, lists of them, or "
        "lists of 0 and 1 (no lists with several label columns or a label_separator), all of one type and none missing. "
        f"Correct it, or choose another label_column. The columns are {kinds}."
    )


def describe_type(feature: Any) -> str:
    """Return the type of a column in words: its class and, for plain values, their type."""
    dtype, name = getattr(feature, "dtype", None), type(feature).__name__
    return f"{name} {dtype}" if name == "Value" and dtype else name


# ---- several columns of 0 and 1 ----


@dataclass(frozen=True)
class _FlagColumns:
    """Converter of several columns of 0 and 1 or, with `column`, of a mapping of class names to 0 and 1."""

    keys: tuple[str, ...]
    column: str | None = None

    def __call__(self, row: Mapping[str, Any]) -> Label:
        cells = row if self.column is None else row[self.column]
        if cells is None or all(_is_empty(cells[key]) or _is_unlabelled_text(cells[key]) for key in self.keys):
            raise _NoLabel
        return tuple(_flag(cells[key], f"label column {key!r}") for key in self.keys)


def _flag(value: Any, where: str) -> int:
    try:
        return FLAGS[value.strip() if isinstance(value, str) else value]
    except (KeyError, TypeError) as error:
        raise _CellError(f"holds {value!r} in {where}, which must hold 0 or 1 for each class: correct it.") from error


# ---- one column ----


@dataclass(frozen=True)
class _Classes:
    """Converter of cells that hold a class or, if `count` is given, a list of classes.

    Args:
        column: Name of the column.
        entries: Function that returns the values in a cell.
        index: Class index of each value.
        count: Number of classes of multi-label data. None for one class per image.
    """

    column: str
    entries: Callable[[Any], list[Any]]
    index: Mapping[Any, int]
    count: int | None

    def __call__(self, row: Mapping[str, Any]) -> Label:
        cell = row[self.column]
        if _lacks_label(cell, self.entries) or (_is_unlabelled_text(cell) and cell not in self.index):
            raise _NoLabel
        values = self.entries(cell)
        unknown = [value for value in values if value not in self.index]
        if unknown and _is_missing(unknown[0]):
            raise _CellError
        if unknown:
            raise _CellError(f"has the unknown class {unknown[0]!r}: correct it, or add training images of this class.")
        indices = [self.index[value] for value in values]
        return indices[0] if self.count is None else tuple(int(number in indices) for number in range(self.count))


@dataclass(frozen=True)
class _MultiHot:
    """Converter of cells that hold a 0 or 1 for each of `count` classes. The other arguments are those of `_Classes`."""

    column: str
    entries: Callable[[Any], list[Any]]
    count: int

    def __call__(self, row: Mapping[str, Any]) -> Label:
        cell = row[self.column]
        if _is_empty(cell):
            raise _NoLabel
        values = self.entries(cell)
        if len(values) != self.count:
            raise _CellError(
                f"has a list of {len(values)} entries for {self.count} classes: give a 0 or 1 for each class."
            )
        return tuple(_flag(value, f"its list in column {self.column!r}") for value in values)


@dataclass(frozen=True)
class _Separated:
    """Function that returns the classes in a text, in which a separator is between them."""

    separator: str

    def __call__(self, cell: str) -> list[str]:
        return [text.strip() for text in cell.split(self.separator) if text.strip()]


def _is_empty(cell: Any) -> bool:
    """Return whether a cell says that the image has no label: null, an empty text, or `losses.UNLABELLED` as a number.

    A list of that number for each class says it, too.
    """
    if cell is None or isinstance(cell, str):
        return not cell
    if isinstance(cell, list):
        return bool(cell) and all(isinstance(value, int | float) and value == UNLABELLED for value in cell)
    return isinstance(cell, int | np.integer | np.ndarray) and not has_label(cell)


# The text of a label of -100 in a table whose cells are texts.
_TEXT_OF_UNLABELLED = str(UNLABELLED)


def _is_unlabelled_text(cell: Any) -> bool:
    return isinstance(cell, str) and cell == _TEXT_OF_UNLABELLED


def _lacks_label(cell: Any, entries: Callable[[Any], list[Any]]) -> bool:
    """Return whether a cell of one label column is that of an image without a label.

    In a column of texts with a separator, an empty text is that of an image that has none of the classes.
    """
    return _is_empty(cell) and not (isinstance(cell, str) and isinstance(entries, _Separated))


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (value == -1 and not isinstance(value, bool))


@dataclass
class _Scan:
    """One label column, and what was seen in its cells.

    Args:
        column: Name of the column.
        name: Name of the data in messages.
        separator: As in `read_labels`.
        training_names: Class names of the training split, if this is another split.
    """

    column: str
    name: str
    separator: str | None
    training_names: Sequence[str] | None
    distinct: set[Any] = field(default_factory=set)
    lengths: dict[int, int] = field(default_factory=dict)  # the first row of each length
    repeating: int | None = None  # the first row that lists a value twice
    minus_one: int | None = None  # the first row with the text -1
    rows: int = 0
    unlabelled_rows: int = 0

    def reader(self, feature: Any, cells: Callable[[str], Iterable[Any]], is_stream: bool) -> LabelReader:
        """Return the reader of the column."""
        names = getattr(_inner(feature) or feature, "names", None)
        if _holds_lists(feature):
            return self._reader_of_lists(feature, names, cells, is_stream)
        if names is not None:
            return self._reader_of_indices(names, _single)
        if self.separator is not None:
            return self._reader_of_lists(feature, None, cells, is_stream)
        self._read(cells(self.column), _single)
        if _dtype(feature) not in ("string", "large_string"):
            return self._reader_of_classes({value: str(value) for value in sorted(self.distinct)}, _single)
        if all(map(looks_like_list, self.distinct)) and None not in map(parsed_list, self.distinct):
            self.distinct.clear()
            return self._reader_of_lists(feature, None, cells, is_stream)
        self._check_minus_one()
        return self._reader_of_classes(self._texts(), _single)

    def _read(self, cells: Iterable[Any], entries: Callable[[Any], list[Any]]) -> None:
        """Look at cells. Raise a DataError if a label looks like a mistake, or if no row has a label."""
        self.rows, self.lengths, self.repeating, self.minus_one = 0, {}, None, None
        self.unlabelled_rows, unlabelled_row = 0, None
        for number, cell in enumerate(cells):
            self.rows += 1
            if _lacks_label(cell, entries) or _is_unlabelled_text(cell):
                unlabelled_row = number if unlabelled_row is None else unlabelled_row
                if _is_unlabelled_text(cell):
                    self.distinct.add(cell)
                self.unlabelled_rows += 1
                continue
            values = entries(cell)
            if any(map(_is_missing, values)):
                raise unlabelled(self.name, number, in_list=len(values) > 1)
            if self.minus_one is None and "-1" in values:
                self.minus_one = number
            self.distinct.update(values)
            self.lengths.setdefault(len(values), number)
            if self.repeating is None and len(set(values)) < len(values):
                self.repeating = number
        if _TEXT_OF_UNLABELLED in self.distinct and not self._has_signs():
            self.distinct.remove(_TEXT_OF_UNLABELLED)
        if not self.lengths and unlabelled_row is not None and self.training_names is None:
            raise unlabelled(self.name, unlabelled_row)

    def _check_minus_one(self) -> None:
        """Check that no text is -1, which means that there is no label unless another text has a sign too (+1)."""
        if self.minus_one is not None and "-1" not in (self.training_names or ()) and not self._has_signs():
            raise unlabelled(self.name, self.minus_one)

    def _has_signs(self) -> bool:
        """Return whether -100 is a class, because the texts are numbers with signs, or a class of the training images."""
        return _TEXT_OF_UNLABELLED in (self.training_names or ()) or any(
            isinstance(text, str) and text.startswith("+") for text in self.distinct
        )

    # ---- values that are classes ----

    def _texts(self) -> dict[str, str]:
        """Return the class name of each text of a column, in class order: numbers are sorted as numbers."""
        numbers = _whole_numbers(self.distinct)
        if numbers is not None:
            return {text: str(numbers[text]) for text in sorted(numbers, key=numbers.__getitem__)}
        if self.training_names is None and _spell_fractions(self.distinct):
            raise DataError(
                f"Column {self.column!r} of {self.name} holds numbers of the type float64 ({listed(sorted(self.distinct))}), "
                "which are no classes: give whole numbers, or names of classes such as 'v1.5'. Regression is not supported "
                "for tables."
            )
        for text in sorted(self.distinct):
            if _is_structured(text):
                raise DataError(
                    f"Column {self.column!r} of {self.name} holds the text {text[:80]!r}, which looks like a list or a mapping "
                    "and is not a class name. For several classes per image, write texts with a separator "
                    "(label_separator), a JSON list in each row, or a column of 0 and 1 for each class."
                )
        doubtful = sorted(text for text in self.distinct if text.casefold() in _NAMES_OF_MISSING)
        if doubtful:
            logger.warning(
                "Column %r of %s: the text(s) %s are classes of their own. If they mean that the label is missing, leave the "
                "cells empty.",
                self.column,
                self.name,
                listed(doubtful),
            )
        return {text: text for text in sorted(self.distinct)}

    def _reader_of_indices(self, names: Sequence[str], entries: Callable[[Any], list[Any]]) -> LabelReader:
        """Return the reader of values that are indices into `names`."""
        return self._reader(tuple(names), {number: number for number in range(len(names))}, entries)

    def _reader_of_classes(self, texts: Mapping[Any, str], entries: Callable[[Any], list[Any]]) -> LabelReader:
        """Return the reader of values that are classes. Names of the same Unicode normal form are one class.

        Args:
            texts: Class name of each distinct value, in class order.
            entries: Function that returns the values in a cell.
        """
        spellings: dict[str, set[str]] = {}
        for text in texts.values():
            spellings.setdefault(normal_form(text), set()).add(text)
        # A name that is written in one way only is kept as it is written.
        own = dict.fromkeys(
            text if len(spellings[normal_form(text)]) == 1 else normal_form(text) for text in texts.values()
        )
        names = tuple(own) if self.training_names is None else tuple(self.training_names)
        place = {normal_form(name): number for number, name in enumerate(names)}
        unknown = [text for text in own if normal_form(text) not in place]
        if unknown:
            raise DataError(
                f"{self.name} has the class(es) {listed(unknown)}, which the training images do not have: add training "
                "images of these classes, or correct the labels."
            )
        return self._reader(names, {value: place[normal_form(text)] for value, text in texts.items()}, entries)

    def _reader(
        self, names: tuple[str, ...], index: Mapping[Any, int], entries: Callable[[Any], list[Any]]
    ) -> LabelReader:
        single = entries is _single
        convert = _Classes(self.column, entries, index, None if single else len(names))
        problem_type = ProblemType.SINGLE_LABEL if single else ProblemType.MULTI_LABEL
        return self._label_reader(convert, names, problem_type)

    def _label_reader(
        self, convert: Callable[[Mapping[str, Any]], Label], names: tuple[str, ...], problem_type: ProblemType
    ) -> LabelReader:
        counted = (self.rows, self.unlabelled_rows) if self.rows else (None, None)
        return LabelReader(convert, names, problem_type, self.name, *counted)

    # ---- several classes per image ----

    def _reader_of_lists(
        self, feature: Any, names: Sequence[str] | None, cells: Callable[[str], Iterable[Any]], is_stream: bool
    ) -> LabelReader:
        """Return the reader of lists of classes, or of lists of zeros and ones.

        Args:
            feature: Type of the column: lists, arrays, texts with a separator, or lists that were written as text.
            names: Name of each class if the type names them.
            cells: As in `read_labels`.
            is_stream: As in `read_labels`.
        """
        if self.separator is not None:
            entries = _Separated(self.separator)
        else:
            entries = _listed_values if _holds_lists(feature) else _parsed_values
        read = cells(self.column)
        if names is not None and is_stream:
            self._read(itertools.islice(read, _PEEKED_ROWS), entries)
            self.rows = 0  # not all rows were counted
        else:
            self._read(read, entries)
        count = self._multi_hot_count(feature, names)
        if count is not None:
            return self._reader_of_flags(count, names, entries)
        if names is not None:
            return self._reader_of_indices(names, entries)
        self._check_minus_one()
        return self._reader_of_classes({value: str(value) for value in _sorted(self.distinct)}, entries)

    def _multi_hot_count(self, feature: Any, names: Sequence[str] | None) -> int | None:
        """Return the number of classes if the lists hold a 0 or 1 for each class, and None if they hold classes.

        Lists of zeros and ones of one length are multi-hot, because a list of classes seldom has the length of all others and
        never holds a class twice.
        """
        length = next(iter(self.lengths), None) if len(self.lengths) == 1 else None
        flags = bool(self.distinct) and all(value in FLAGS for value in self.distinct)
        no_classes = any(isinstance(value, bool | float) for value in self.distinct)  # only flags can be of these types
        if no_classes and not flags:
            shown = listed(sorted((value for value in self.distinct if value not in FLAGS), key=str))
            raise self._error(f"lists that hold {shown}: lists of such numbers must hold 0 or 1 for each class")
        if not flags:
            if length is not None and length > 1 and self.repeating is not None and self._are_numbers():
                raise self._error(
                    f"lists of {length} numbers each, and row {self.repeating} holds a number twice: this is neither a list "
                    "of classes nor a list of 0 and 1"
                )
            return None
        if length is None:
            if self.repeating is None and not no_classes:
                return None  # classes that are called 0 and 1
            (first, _), (other, row) = list(self.lengths.items())[:2]
            raise self._error(
                f"lists of 0 and 1 of different lengths, {first} in row 0 and {other} in row {row}: each list must have one "
                "entry per class"
            )
        return self._constant_length(feature, names, length, no_classes)

    def _constant_length(self, feature: Any, names: Sequence[str] | None, length: int, no_classes: bool) -> int | None:
        """Return `_multi_hot_count` of lists of 0 and 1 that all have this length."""
        known = self.training_names if self.training_names is not None else names
        if known is not None and not _are_flag_names(known):
            if length == len(known):
                return length
            if no_classes or self.repeating is not None or (length > 1 and names is None):
                raise self._error(
                    f"lists of {length} zeros and ones for {len(known)} classes ({listed(known)}): each list must have one "
                    "entry per class"
                )
            return None
        fixed = getattr(feature, "length", -1) > 0 or getattr(feature, "shape", None) is not None
        if length == 1 and not (no_classes or fixed):
            raise self._error(
                "lists of one number each, 0 or 1, which may be the number of the class or may say whether the image has the "
                "only class: write the class itself instead of a list, or true and false instead of 1 and 0"
            )
        return length

    def _are_numbers(self) -> bool:
        return all(isinstance(value, int) for value in self.distinct)

    def _reader_of_flags(
        self, count: int, names: Sequence[str] | None, entries: Callable[[Any], list[Any]]
    ) -> LabelReader:
        """Return the reader of lists of 0 and 1. Classes without names are called 0, 1, 2 …"""
        known = self.training_names if self.training_names is not None else names
        named = known is not None and len(known) == count and not (known is names and _are_flag_names(known))
        class_names = tuple(known) if named else tuple(map(str, range(count)))

        convert = _MultiHot(self.column, entries, count)
        return self._label_reader(convert, class_names, ProblemType.MULTI_LABEL)

    def _error(self, what: str) -> DataError:
        return DataError(
            f"Column {self.column!r} of {self.name} holds {what}. Correct it, or use one column of 0 and 1 per class "
            "(label_column with several names), or lists of class names."
        )


def _single(cell: Any) -> list[Any]:
    return [cell.item() if hasattr(cell, "item") else cell]


def _listed_values(cell: Any) -> list[Any]:
    """Return the entries of a list or array, from which dimensions of size 1 are removed."""
    values = cell.tolist() if hasattr(cell, "tolist") else list(cell)
    while len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if values and all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if any(isinstance(value, list) for value in values):
        raise DataError(
            f"A label column holds arrays of more than one dimension, such as {str(cell)[:80]}: give a list with one entry per "
            "class for each image."
        )
    return values


def _parsed_values(cell: str) -> list[Any]:
    """Return the entries of a list that was written as text. A text of another kind counts as one entry."""
    values = parsed_list(cell)
    return [cell] if values is None else values


def _sorted(values: Collection[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # texts and numbers in lists that were written as text
        return sorted(values, key=str)


def _are_flag_names(names: Sequence[str]) -> bool:
    return tuple(str(name).strip().casefold() for name in names) in _FLAG_NAMES


# ---- texts ----


def _whole_numbers(texts: Collection[str]) -> dict[str, int] | None:
    """Return the number that each text spells exactly, or None if a text does not: 001, 1.0 and +1 stay texts."""
    numbers = {}
    for text in texts:
        digits = text.strip()
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,19}", digits) or not -(2**63) <= int(digits) < 2**64:
            return None
        numbers[text] = int(digits)
    return numbers


def _spell_fractions(texts: Collection[str]) -> bool:
    """Return whether all texts are numbers as Python writes them and one has a fraction. A text such as 1.10 has not."""

    def spelt(text: str) -> bool:
        try:
            return math.isfinite(float(text)) and text.strip() in (repr(float(text)), str(int(float(text))))
        except (ValueError, OverflowError):
            return False

    return bool(texts) and all(map(spelt, texts))


_FLAG_TEXT = r"[01](?:\.0*)?"
_TEXT_OF_FLAGS = re.compile(rf"{_FLAG_TEXT}(?:\s*[\s,;|]\s*{_FLAG_TEXT})+")


def _is_structured(text: str) -> bool:
    """Return whether a text is a list, a mapping or a set in the notation of JSON, Python or NumPy."""
    text = text.strip()
    in_brackets = text[:1] + text[-1:] == "[]" and "," in text
    return in_brackets or text[:1] + text[-1:] == "{}" or re.fullmatch(r"array\(.*\)", text, re.DOTALL) is not None


def looks_like_list(text: str) -> bool:
    """Return whether a text is in brackets, or consists of several zeros and ones."""
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "()") or _TEXT_OF_FLAGS.fullmatch(text) is not None


def parsed_list(text: str) -> list[Any] | None:
    """Return the entries of a list that was written as text, by Python, JSON or NumPy. None if it is another text.

    Raises:
        DataError: NumPy shortened the list.
    """
    text = text.strip()
    if _TEXT_OF_FLAGS.fullmatch(text):
        return re.findall(_FLAG_TEXT, text)
    if re.search(r"""['"]\s+['"]""", text) is None:  # Python would join the texts of NumPy, which have no commas
        for parse in (json.loads, ast.literal_eval):
            try:
                values = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            flat = isinstance(values, list | tuple) and all(isinstance(value, str | int | float) for value in values)
            return list(values) if flat else None
    words = re.findall(r"""'[^']*'|"[^"]*"|[^\s'"]+""", text[1:-1])
    if "..." in words:
        raise DataError(
            f"A label is the text {text[:40]!r}, a list that NumPy shortened, so that its values are lost: write the "
            "complete list."
        )
    try:
        return [ast.literal_eval(word) for word in words]
    except (ValueError, SyntaxError):
        return None


# ---- contradictions ----


def contradictory_files(items: Sequence[Any], labels: Sequence[Label]) -> dict[str, list[Label]]:
    """Return the files that are listed more than once with different labels, and these labels.

    Args:
        items: Items, see images.py. Only paths are compared.
        labels: Label of each item.
    """
    if not isinstance(items, list):
        return {}  # embedded images: all of them would have to be read
    seen: dict[str, list[Label]] = {}
    for item, label in zip(items, labels, strict=True):
        if isinstance(item, str) and has_label(label):
            found = seen.setdefault(os.path.normpath(item), [])
            if label not in found:
                found.append(label)
    return {path: found for path, found in seen.items() if len(found) > 1}


def constant_classes(labels: Sequence[Label], class_names: Sequence[str]) -> list[str]:
    """Return the classes of multi-label data that every image has, from which nothing can be learned."""
    labels = [label for label in labels if has_label(label)]
    if not labels:
        return []
    return [name for index, name in enumerate(class_names) if all(row[index] for row in labels)]
