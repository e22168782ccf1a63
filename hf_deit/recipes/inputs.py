"""The images that `hf-deit predict` is given: files, folders, patterns, tables, data sets, and names on standard input.

`find_inputs` yields the images one by one, in the order in which they are given, each with a name for the result and with its label
if one is known. An input that cannot be used becomes a `Failure` in its place, so that the others can be predicted. Nothing is decoded
here: predict.py reads the images. `datasets` is imported only for tables and data sets, because the command must start quickly
(tests/test_import_graph.py holds this).
"""

import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..data.images import RAW_EXTENSIONS, as_item
from ..data.labels import FLAGS, looks_like_list, parsed_list
from ..data.layouts import SYSTEM_FOLDERS, is_table, split_of
from ..data.splits import table_root
from ..data.table_files import is_saved_dataset, open_splits, table_files
from ..data.tables import LABEL_NAMES, Columns
from ..errors import DataError, UserError
from ..files import STAGING_PREFIX
from ..models.label_names import class_indices, normal_form

logger = logging.getLogger(__name__)

# Names of columns that are used if none is given and no column has the type.
_IMAGE_NAMES = ("image", "file_name", "filename", "file", "path", "image_path", "filepath")
_NO_LABEL = ("", "-1")
_SHOWN_KINDS = 10
_SPLITS_FILE = "dataset_dict.json"


@dataclass(frozen=True)
class InputImage:
    """An image to predict.

    Args:
        item: A path, or `{"bytes", "path"}` as `datasets` stores an image.
        file: Name of the image in the result.
        label: Its label as text, with `;` between several; None if it is not known.
    """

    item: Any
    file: str
    label: str | None = None


@dataclass(frozen=True)
class Failure:
    """An image or an input without a prediction.

    Args:
        file: Name of the image, or the input as it was given.
        reason: Why there is no prediction.
    """

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def names_on(stream: BinaryIO) -> list[str]:
    """Read names of inputs from a stream: one per line, or separated by null bytes, as `find -print0` writes them.

    Args:
        stream: A binary stream, such as `sys.stdin.buffer`. A name that is not valid UTF-8 is kept as it is.
    """
    content = stream.read()
    lines = content.split(b"\0") if b"\0" in content else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(line) for line in lines if line]


def find_inputs(
    inputs: Iterable[str | os.PathLike | Mapping[str, Any]],
    class_names: Sequence[str],
    split: str | None = None,
    columns: Columns | None = None,
) -> Iterator[InputImage | Failure]:
    """Yield the images of the inputs, and a `Failure` for each input that cannot be used.

    Args:
        inputs: Image files; folders, which are searched; patterns such as `photos/*.jpg`, if no file has that name; tables; folders
            that `datasets` saved; with `split`, names of data sets on the Hub; and items `{"bytes", "path"}`.
        class_names: Class names of the model, in index order: a folder of such a name is the label of the images in it, and a whole
            number in a table is the index of a class.
        split: Split of the folders and data sets among the inputs. None for all images of a folder, and the only split of a data set.
        columns: Columns of images and labels in tables and data sets. None to find them by type and usual names.

    Raises:
        UserError: `split` is given, and no input has splits.
    """
    inputs = [given if isinstance(given, Mapping) else os.fspath(given) for given in inputs]
    if split is not None and all(isinstance(given, Mapping) or os.path.isfile(_path(given)) for given in inputs):
        tables = [given for given in inputs if not isinstance(given, Mapping) and is_table(_path(given))]
        if not tables:
            raise UserError(
                f"split={split!r}: it is for folders, tables and data sets, and only image files are given."
            )
    return _Finder(class_names, split, columns or Columns()).images(inputs)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _same_split(one: str, other: str) -> bool:
    return one.casefold() == other.casefold() or (split_of(one) is not None and split_of(one) == split_of(other))


class _Finder:
    """Finds the images of inputs; the arguments are those of `find_inputs`."""

    def __init__(self, class_names: Sequence[str], split: str | None, columns: Columns):
        self.class_names, self.split, self.columns = tuple(class_names), split, columns
        # Class names by their Unicode normal form; of several classes with one name, the first.
        self._known = {normal_form(name): name for name in reversed(self.class_names)}
        self._named: set[str] = set()  # files that were given by name
        self._found: set[str] = set()  # files that were found in folders and by patterns

    def images(self, inputs: Iterable[Any]) -> Iterator[InputImage | Failure]:
        for given in inputs:
            if isinstance(given, Mapping):
                yield InputImage(given, given.get("path") or "embedded")
            else:
                yield from self._of_one(given)

    def _of_one(self, given: str, by_name: bool = True) -> Iterator[InputImage | Failure]:
        try:
            yield from self._of_kind(given, by_name)
        except DataError as error:
            yield Failure(given, str(error))

    def _of_kind(self, given: str, by_name: bool) -> Iterator[InputImage | Failure]:
        path = _path(given)
        if not given:
            yield Failure(repr(given), "cannot be read: the name is empty")
        elif path.is_dir():
            yield from self._of_folder(path)
        elif is_table(path):
            yield from self._of_data_set(str(path))
        elif path.exists():
            yield from self._of_file(path, given, (path.absolute().parent.name,), by_name)
        elif glob.has_magic(given):
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise DataError("no file or folder matches this pattern")
            for name in found:
                yield from self._of_one(name, by_name=False)
        elif self.split is not None and path.suffix.lower() not in _extensions():
            yield from self._of_data_set(given)
        else:
            broken_link = " (the file that it links to is missing)" if path.is_symlink() else ""
            hint = "" if path.suffix else ". A data set on the Hub needs a split (--split)"
            yield Failure(given, f"cannot be read: there is no such file or folder{broken_link}{hint}")

    def _of_file(self, path: Path, name: str, folders: Sequence[str], by_name: bool) -> Iterator[InputImage]:
        """Yield the image, unless it was found already. A file that is given twice by its name is predicted twice."""
        place = os.path.abspath(path)
        if place in self._found or (place in self._named and not by_name):
            return
        (self._named if by_name else self._found).add(place)
        yield InputImage(str(path), name, self._folder_label(folders))

    # ---- folders ----

    def _of_folder(self, folder: Path) -> Iterator[InputImage | Failure]:
        if is_saved_dataset(folder):
            yield from self._of_data_set(str(folder))
            return
        if self.split is not None:
            parts = [
                entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _same_split(entry.name, self.split)
            ]
            if not parts:
                yield from self._of_data_set(str(folder))
                return
        else:
            parts = [folder]
        left_out: Counter[str] = Counter()
        found = 0
        for part in parts:
            for path in _image_files(part, left_out):
                found += 1
                if isinstance(path, Failure):
                    yield path
                    continue
                inside = path.relative_to(part).parts[:-1]
                yield from self._of_file(path, str(path), (*inside, part.absolute().name), by_name=False)
        if not found and table_files(folder):
            yield from self._of_data_set(str(folder))
            return
        if left_out:
            logger.warning("%s: %d files are left out: %s.", folder, left_out.total(), _counted(left_out))
        if not found:
            raise DataError(
                f"no images are in this folder and the folders in it{f' ({_counted(left_out)})' if left_out else ''}. Images are "
                "recognised by their extension, such as .jpg, or by their content"
            )

    def _folder_label(self, folders: Sequence[str]) -> str | None:
        """Return the first of these folder names that is a class of the model."""
        names = (self._known.get(normal_form(name)) for name in folders)
        return next((name for name in names if name is not None), None)

    # ---- tables and data sets ----

    def _of_data_set(self, data: str) -> Iterator[InputImage | Failure]:
        import datasets

        dataset, name = self._open(data)
        features = dataset.features
        image_column = _image_column(features, self.columns.image, name)
        labels = _label_columns(features, self.columns.labels, name)
        if isinstance(features[image_column], datasets.Image):
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        spells_numbers = len(labels) == 1 and _holds_texts(features[labels[0]]) and _are_numbers(dataset[labels[0]])
        root = table_root(data)
        for number, row in enumerate(dataset.select_columns([image_column, *labels])):
            item = as_item(row[image_column], root, number)
            cells = [_number(row[column]) if spells_numbers else row[column] for column in labels]
            label = self._table_label(cells, labels, features)
            place = f"{name}, row {number}"
            if isinstance(item, str):
                yield InputImage(item, item, label)
            elif item["bytes"] is not None:  # many images of a data set can have one name, such as 1.png
                yield InputImage(item, f"{place}: {item['path']}" if item["path"] else place, label)
            elif item["path"] is not None:
                yield InputImage(item, item["path"], label)
            else:
                yield Failure(place, "cannot be read: the row has no image")

    def _open(self, data: str) -> tuple[Any, str]:
        """Return the data set of the split, and its name."""
        names = _split_names(data)
        if names is None:  # a single data set that `datasets` saved, or a name on the Hub
            is_here = _path(data).exists()
            if is_here and self.split is not None:
                raise DataError(f"has no splits, and split={self.split!r} was given: leave it out")
            chosen = None if is_here else self.split
        elif self.split is None:
            if len(names) > 1:
                raise DataError(f"has the splits {', '.join(names)}: choose one (--split)")
            chosen = names[0]
        else:
            same = [name for name in names if name == self.split] or [n for n in names if _same_split(n, self.split)]
            if not same:
                raise DataError(f"has no split {self.split!r}. What it has: {', '.join(names) or 'nothing'}")
            chosen = same[0]
        splits = open_splits(data, only=None if chosen is None else (chosen,))
        if chosen is not None and chosen not in splits:
            raise DataError(f"has no split {chosen!r}")
        is_single = chosen is None or is_table(_path(data))
        return next(iter(splits.values())), data if is_single else f"{data} ({chosen})"

    def _table_label(self, cells: Sequence[Any], columns: Sequence[str], features: Mapping[str, Any]) -> str | None:
        if len(cells) > 1:  # a column of zeros and ones for each class
            return ";".join(column for column, cell in zip(columns, cells, strict=True) if _is_one(cell))
        if not cells or cells[0] is None:
            return None
        cell, feature = cells[0], features[columns[0]]
        feature_names = getattr(getattr(feature, "feature", None) or feature, "names", None)
        if isinstance(cell, str) and self._label_text(cell, None) not in self._known and looks_like_list(cell):
            cell = parsed_list(cell) or cell
        if not isinstance(cell, list | tuple):
            return self._label_text(cell, feature_names)
        names = self.class_names if feature_names is None else feature_names
        # A list of classes never holds a class twice.
        is_flags = feature_names is None or len(set(cell)) < len(cell)
        if is_flags and len(cell) == len(names) and all(entry in FLAGS for entry in cell):
            return ";".join(name for name, flag in zip(names, cell, strict=True) if _is_one(flag))
        return ";".join(text for text in (self._label_text(entry, feature_names) for entry in cell) if text is not None)

    def _label_text(self, value: Any, feature_names: Sequence[str] | None) -> str | None:
        """Return a label as text: the name of a class if it is the index of one, None if it is empty or -1."""
        if value is None or value == "" or value == -1 or value != value:
            return None
        if isinstance(value, float) and value.is_integer():  # a column of whole numbers, some of which are missing
            value = int(value)
        names = self.class_names if feature_names is None else feature_names
        is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
        if is_index and (feature_names is not None or str(value) not in self._known):
            value = names[value]
        text = self._known.get(normal_form(str(value)))
        return None if text is None and value == "-1" else text or str(value)


def _is_one(cell: Any) -> bool:
    return FLAGS.get(cell.strip() if isinstance(cell, str) else cell) == 1


def _holds_texts(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _are_numbers(cells: Sequence[str | None]) -> bool:
    """Return whether all texts of a column are whole numbers; all cells of a CSV file are texts."""
    texts = {*cells} - {None, *_NO_LABEL}
    return bool(texts) and class_indices(sorted(texts)) is not None


def _number(cell: str | None) -> str | int | None:
    return cell if cell is None or cell in _NO_LABEL else int(cell)


def _split_names(data: str) -> list[str] | None:
    """Return the names of the splits that are here; None for a single data set, and for a name on the Hub."""
    path = _path(data)
    if not path.exists():
        return None
    files = table_files(path)
    if files:
        return list(files)
    if is_saved_dataset(path):
        return json.loads((path / _SPLITS_FILE).read_text())["splits"] if (path / _SPLITS_FILE).exists() else None
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_column(features: Mapping[str, Any], given: str | None, name: str) -> str:
    import datasets

    if given is not None:
        if given not in features:
            raise DataError(f"{name} has no column {given!r} (image_column). Its columns are {', '.join(features)}")
        return given

    def is_embedded(feature: Any) -> bool:
        fields = feature if isinstance(feature, Mapping) else ()
        return "bytes" in fields or getattr(feature, "dtype", None) in ("binary", "large_binary")

    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [column for column, feature in features.items() if is_embedded(feature)]
    found = found or [column for column in features if column.casefold() in _IMAGE_NAMES]
    if len(found) != 1:
        raise DataError(
            f"{name} needs one column of images, and {len(found)} columns can be it ({', '.join(found) or 'none'}): name the column "
            f"(image_column). Its columns are {', '.join(features)}"
        )
    return found[0]


def _label_columns(features: Mapping[str, Any], given: Sequence[str], name: str) -> list[str]:
    missing = [column for column in given if column not in features]
    if missing:
        raise DataError(
            f"{name} has no column {', '.join(map(repr, missing))} (label_column). Its columns are {', '.join(features)}"
        )
    if given:
        return list(given)
    typed = [
        column for column, feature in features.items() if hasattr(getattr(feature, "feature", None) or feature, "names")
    ]
    found = typed or [column for column in features if column.casefold() in LABEL_NAMES]
    return found if len(found) == 1 else []  # no label, or no way to tell which: the column `label` stays empty


def _extensions() -> set[str]:
    """Return the extensions of files that Pillow reads; some of the extensions it knows are only written."""
    return {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _image_files(folder: Path, left_out: Counter[str]) -> Iterator[Path | Failure]:
    """Yield the images in a folder and the folders in it, in order of their names, and count the other files by kind.

    Links are followed. Each folder is searched once, so that links which form a loop end.
    """
    extensions = _extensions()
    seen = set(map(str, Path(os.path.realpath(folder)).parents))  # a link to one of them is a loop
    failures: list[OSError] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=failures.append):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        left_out["hidden"] += sum(name.startswith(".") for name in files)
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", STAGING_PREFIX)) and name not in SYSTEM_FOLDERS
        )
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(place, name)
            if path.suffix.lower() in extensions or _looks_like_an_image(path):
                yield path
            else:
                left_out[path.suffix.lower() or "without extension"] += 1
    left_out += Counter()  # removes a count of 0
    for error in failures:
        yield Failure(str(error.filename), f"cannot be read: {error.strerror}")


def _looks_like_an_image(path: Path) -> bool:
    if not path.is_file() or path.suffix.lower() in RAW_EXTENSIONS:
        return False
    try:
        with Image.open(path):
            return True
    except Exception as error:  # Pillow's plugins raise errors of many classes
        return isinstance(error, Image.DecompressionBombError)


def _counted(kinds: Mapping[str, int]) -> str:
    rows = sorted(kinds.items(), key=lambda row: (-row[1], row[0]))
    more = f", {len(rows) - _SHOWN_KINDS} more kinds" if len(rows) > _SHOWN_KINDS else ""
    return ", ".join(f"{count} {kind}" for kind, count in rows[:_SHOWN_KINDS]) + more
