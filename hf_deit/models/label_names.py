"""Class names: those of a configuration, those in a file, and the classes of data among those of a model.

Names are compared in Unicode normal form. No names are invented: classes without a name stay `LABEL_0`, `LABEL_1` …, as in
transformers. data/labels.py finds the class names of a table, and data/loading.py those of folders.
"""

import csv
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, listed

logger = logging.getLogger(__name__)

_WORDNET = r"n\d{8}"
_KEY_HEADS = ("id", "key", "index", "idx", "number", "folder", "wnid", "synset", "class_id", "class_idx", "label_id")
_NAME_HEADS = ("name", "class_name", "label_name", "class", "label", "words", "description", "names", "classes")


# ---- names ----


def normal_form(name: str) -> str:
    """Return a class name in the form in which names are compared: two ways to write é are the same name."""
    return unicodedata.normalize("NFC", name)


def normal_forms(names: Iterable[str] | None) -> list[str] | None:
    """Return the normal form of each name; None for None."""
    return None if names is None else [normal_form(name) for name in names]


def class_names(id2label: Mapping[Any, str] | Sequence[str] | None) -> list[str] | None:
    """Return the class names in index order.

    Args:
        id2label: Name by index, or names in index order.

    Returns:
        The names without outer spaces. None if there are no names, or only those of transformers (`LABEL_0`).
    """
    if not id2label:
        return None
    by_index = id2label if isinstance(id2label, Mapping) else dict(enumerate(id2label))
    names = [str(name).strip() for _, name in sorted((int(index), name) for index, name in by_index.items())]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names for a table: a name that several classes have is followed by the index of its class."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def class_indices(names: Sequence[str]) -> list[int] | None:
    """Return the numbers that the names spell, or None if a name is not a whole number from 0 (001 is none)."""
    if not all(re.fullmatch(r"0|[1-9]\d*", name) for name in names):
        return None
    return [int(name) for name in names]


# ---- files of class names ----


@dataclass(frozen=True)
class ClassNames:
    """Class names of a file.

    Args:
        path: The file, for messages.
        names: Names in index order. None if the file gives names to other keys than the indices from 0.
        by_key: Name of each key: a folder, a number or an id. Empty if the file lists names only.
    """

    path: Path
    names: tuple[str, ...] | None
    by_key: Mapping[str, str] = field(default_factory=dict)

    def rename(self, classes: Sequence[str], multi_label: bool = False) -> tuple[str, ...]:
        """Return the name of each class of the data.

        A file of keys names the class with that key. A file of names in index order names the class that is called by its
        index, from 0 or, if the numbers are 1 to the number of names, from 1. If the classes are no numbers, and as many as
        the names, the n-th name is that of the n-th class. A class that already has one of the names keeps it.

        Args:
            classes: Class names of the data, in index order.
            multi_label: Whether the data are multi-label, where numbers are positions in lists of 0 and 1.

        Raises:
            UserError: A class gets no name.
        """
        renamed = self._renamed(classes, multi_label)
        if list(renamed) != list(classes):
            pairs = [f"{old} → {new}" for old, new in zip(classes, renamed, strict=True)]
            logger.info("%s names the classes: %s.", self.path, listed(pairs, str))
        repeated = sorted({name for name in renamed if renamed.count(name) > 1})
        if repeated:
            logger.warning(
                "%s gives one name to several classes (%s). They stay separate classes, counted by their index.",
                self.path,
                listed(repeated),
            )
        return renamed

    def _renamed(self, classes: Sequence[str], multi_label: bool) -> tuple[str, ...]:
        values = self.names if self.names is not None else tuple(self.by_key.values())
        known = set(normal_forms(values))
        own = normal_forms(classes)
        if all(name in known for name in own) and not any(name in self.by_key for name in own):
            return tuple(classes)
        if self.by_key and any(name in self.by_key for name in own):
            missing = [name for name in own if name not in self.by_key and name not in known]
            if missing:
                raise UserError(
                    f"class_names={str(self.path)!r} has no name for the class(es) {listed(missing)}. It names "
                    f"{listed(self.by_key)}: add the missing classes."
                )
            return tuple(self.by_key.get(name, name) for name in own)
        if self.names is not None:
            indices = class_indices(own)
            fits = len(self.names) == len(own) if multi_label else indices is None or max(indices) < len(self.names)
            if indices is not None and fits:
                return tuple(self.names[index] for index in indices)
            if indices is not None and sorted(indices) == list(range(1, len(self.names) + 1)):
                return tuple(self.names[index - 1] for index in indices)  # numbered from 1
            if indices is None and len(self.names) == len(own) and not known & set(own):
                return self.names
        raise UserError(
            f"class_names={str(self.path)!r} has the {len(values)} names {listed(values)}, which cannot be assigned to the "
            f"{len(own)} classes of the data, {listed(own)}. Give one name per class in their order, or a mapping of each "
            "class to its name (CSV, JSON or YAML), such as n01440764: tench."
        )

    def names_of_model(self, own: Sequence[str]) -> list[str]:
        """Return the names of a model's classes: its own names, or those of the file for `LABEL_n` and for keys.

        Args:
            own: Name of each class in the configuration of the model, in index order.
        """
        count = len(own)
        if class_names(own) is None:
            if self.names is not None and len(self.names) == count:
                return list(self.names)
            keys = list(self.by_key)
            # Without indices, the order of the classes is known only if both usual orders are the same.
            in_order = len(keys) == count and keys == sorted(keys)
            return list(self.by_key.values()) if in_order and self.names is None else list(own)
        keys = normal_forms(name.strip() for name in own)
        return [self.by_key[key] for key in keys] if all(key in self.by_key for key in keys) else list(own)


def read_class_names(path: str | Path) -> ClassNames:
    """Read a file of class names.

    Args:
        path: A text with one name per line in index order; a CSV or TSV file of names, or of keys and names; or a JSON or
            YAML file with a list of names, or a mapping of keys to names (also as `id2label` in a `config.json`), or of
            names to indices. A key is an index, a folder, a number or an id such as n01440764.

    Raises:
        UserError: The file cannot be read, a name is empty, or a key has two names.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            content = json.loads(text, object_pairs_hook=_pairs)
        elif suffix in (".yaml", ".yml"):
            content = _from_yaml(text)
        elif suffix in (".csv", ".tsv"):
            content = _from_rows(text, "\t" if suffix == ".tsv" else None)
        else:
            content = _from_lines(text)
        return _checked(path, content)
    except UserError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as a file of class names ({error}). Give one name per line in index order, a CSV file of "
            "names or of keys and names, or a JSON or YAML file with a list of names or a mapping of keys to names."
        ) from error


def read_label_names(path: str | Path) -> list[str]:
    """Read class names in index order.

    Args:
        path: As for `read_class_names`.

    Raises:
        UserError: As for `read_class_names`, or an index has no name.
    """
    found = read_class_names(path)
    if found.names is None:
        raise UserError(
            f"{path} gives names to {listed(found.by_key)}, not to the indices 0 to {len(found.by_key) - 1}: give the name of "
            "each class in index order."
        )
    return list(found.names)


_Pairs = list[tuple[str, Any]]


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs | dict[str, Any]:
    """Return a JSON object as a dictionary, or as its pairs if a key occurs twice."""
    return dict(pairs) if len({key for key, _ in pairs}) == len(pairs) else pairs


def _from_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # every value is a text: 001 and no stay as they are
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _from_lines(text: str) -> list[str] | _Pairs:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    for key in (_WORDNET, r"\d+"):
        found = [re.fullmatch(rf"({key})(?:\s*[:,;\t]\s*|\s+)(\S.*)", line) for line in lines]
        if lines and all(found):
            pairs = [(match[1], match[2]) for match in found]
            if key == _WORDNET or [number for number, _ in pairs] == list(map(str, range(len(pairs)))):
                return pairs
    return lines


def _from_rows(text: str, delimiter: str | None) -> list[str] | _Pairs:
    first = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=first.count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    if not rows:
        return []
    width = len(rows[0])
    odd = next((number for number, row in enumerate(rows, start=1) if len(row) != width), None)
    if odd is not None:
        raise ValueError(
            f"row {odd} has {len(rows[odd - 1])} cells and row 1 has {width}; quote a name that contains {delimiter!r}"
        )
    heads = [cell.casefold() for cell in rows[0]]
    has_head = all(head in (*_KEY_HEADS, *_NAME_HEADS) for head in heads)
    body = rows[1:] if has_head else rows
    if width == 1:
        return [row[0] for row in body]
    place = _name_column(body, heads if has_head else [])
    return [(row[column], row[place]) for column in range(width) if column != place for row in body]


def _name_column(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> int:
    """Return the column of the names: by its head, else the first that holds no numbers or ids, from the right."""
    for head in _NAME_HEADS:
        if head in heads:
            return heads.index(head)
    width = len(rows[0]) if rows else 1
    keys = [all(re.fullmatch(rf"\d+|{_WORDNET}", row[column]) for row in rows) for column in range(width)]
    return next((column for column in reversed(range(width)) if not keys[column]), width - 1)


def _checked(path: Path, content: Any) -> ClassNames:
    """Return the class names of a list, of a mapping, or of pairs of a key and a name."""
    for key in ("id2label", "names"):  # a config.json, and a data.yaml of YOLO
        if isinstance(content, dict) and isinstance(content.get(key), dict | list):
            content = content[key]
    if isinstance(content, dict):
        content = list(content.items())
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} holds no class names: give one name for each class.")
    if not all(isinstance(entry, tuple) for entry in content):
        return ClassNames(path, _complete(path, content))
    return _keyed(path, _by_key(path, content))


def _complete(path: Path, names: Sequence[Any]) -> tuple[str, ...]:
    empty = next((index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()), None)
    if empty is not None:
        raise UserError(f"{path}: class {empty} has no name ({names[empty]!r}). Every class needs one, in index order.")
    return tuple(name.strip() for name in names)


def _by_key(path: Path, pairs: _Pairs) -> dict[str, str]:
    """Return the name of each key. A value may be an id and a name; names with an index each are turned around."""
    if all(isinstance(value, list) and len(value) == 2 for _, value in pairs):  # {"0": ["n01440764", "tench"]}
        pairs = [(key, name) for key, (_, name) in pairs] + [(other, name) for _, (other, name) in pairs]
    numbers = class_indices([str(value) for _, value in pairs])
    if numbers is not None and class_indices([str(key) for key, _ in pairs]) is None:  # {"tench": 0}
        if sorted(numbers) != list(range(len(pairs))):
            raise UserError(
                f"{path}: the indices of the names are {listed(sorted(numbers))}, not 0 to {len(pairs) - 1}."
            )
        pairs = [(str(number), name) for number, (name, _) in sorted(zip(numbers, pairs, strict=True))]
    found: dict[str, str] = {}
    for key, name in pairs:
        key = normal_form(str(key).strip())
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: {key!r} has no name ({name!r}). Every class needs one.")
        if found.setdefault(key, name.strip()) != name.strip():
            raise UserError(
                f"{path} gives the two names {found[key]!r} and {name.strip()!r} to {key!r}: keep one of them."
            )
    return found


def _keyed(path: Path, by_key: Mapping[str, str]) -> ClassNames:
    """Return names in index order if the keys are the indices from 0, and the names of the other keys."""
    indices = {int(key): name for key, name in by_key.items() if class_indices([key]) is not None}
    others = {key: name for key, name in by_key.items() if class_indices([key]) is None}
    if sorted(indices) == list(range(len(indices))) and indices:
        return ClassNames(path, tuple(indices[index] for index in range(len(indices))), others)
    return ClassNames(path, None, by_key)


def label_fields(num_labels: int, labels: str | Path | None) -> dict[str, Any]:
    """Return the fields `id2label` and `label2id` of a configuration, or an empty dictionary without a file.

    Args:
        num_labels: Number of classes of the weights.
        labels: File of class names (see `read_label_names`). None leaves the classes without names, and logs a warning.

    Raises:
        UserError: The file cannot be read, or it names another number of classes than the weights have.
    """
    if labels is None:
        logger.warning(
            "The weights have no class names, so the classes are called LABEL_0 to LABEL_%d. To name them, give a file "
            "of class names (labels).",
            num_labels - 1,
        )
        return {}
    names = read_label_names(labels)
    if len(names) != num_labels:
        raise UserError(
            f"{labels} names {len(names)} classes, but the weights have {num_labels}. Give one name for each class."
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        logger.warning(
            "Several classes have the same name (%s): label2id contains only the first class of each name.",
            listed(repeated),
        )
    label2id = {name: index for index, name in reversed(list(enumerate(names)))}
    return {"id2label": dict(enumerate(names)), "label2id": label2id}


# ---- classes of data among those of a model ----


@dataclass(frozen=True)
class ClassMatch:
    """Classes of data among those of a model.

    Args:
        indices: Index in the model of each class of the data.
        same: Groups of indices of the model that have the name of one class of the data, so that each of them is right.
        by_index: Whether the classes were taken as indices.
    """

    indices: list[int]
    same: list[list[int]] = field(default_factory=list)
    by_index: bool = False


def match_classes(
    classes: Sequence[str], names: Sequence[str], refuse: Callable[[str], Exception], multi_label: bool = False
) -> ClassMatch:
    """Find the classes of data among the classes of a model: by name or, if they are numbers, by index.

    Args:
        classes: Class names of the data.
        names: Name of each class of the model, in index order.
        refuse: Function that makes an error from the end of a message.
        multi_label: Whether the data are multi-label, where numbers are positions in lists of 0 and 1.

    Raises:
        Exception: What `refuse` returns: the model does not know a class, or two classes have the same name.
    """
    own, known = normal_forms(classes), normal_forms(names)
    if own == known:
        return ClassMatch(list(range(len(own))))  # even if a name occurs twice
    stripped = [name.strip() for name in known]
    if not all(name in known for name in own) and all(name.strip() in stripped for name in own):
        own, known = [name.strip() for name in own], stripped  # class_names removes outer spaces
    places: dict[str, list[int]] = {}
    for index, name in enumerate(known):
        places.setdefault(name, []).append(index)
    if all(name in places for name in own):
        twice = sorted({name for name in own if own.count(name) > 1})
        if twice:
            raise refuse(
                f"several classes called {listed(twice)}, which names do not distinguish: use whole-number labels"
            )
        same = [places[name] for name in own if len(places[name]) > 1]
        if same and multi_label:
            raise refuse(
                f"the class(es) {listed(name for name in own if len(places[name]) > 1)}, a name that several classes of the "
                "model have: use lists of 0 and 1 in the order of the model's classes"
            )
        return ClassMatch([places[name][0] for name in own], same)
    indices = class_indices(own)
    complete = not multi_label or len(own) == len(known)
    if indices is not None and not any(name in places for name in own) and max(indices) < len(known) and complete:
        return ClassMatch(indices, by_index=True)
    unknown = [name for name in own if name not in places]
    numbers = (
        f" Numbers are taken as indices if all of them are from 0 to {len(known) - 1}"
        + (", one for each class." if multi_label else ".")
        if indices is not None
        else ""
    )
    raise refuse(
        f"the class(es) {listed(unknown)}, which the model does not know. Its classes are {listed(names)}.{numbers} Use images "
        "of these classes, or give a file that names the classes of the data (class_names)"
    )
