"""Class names for weights that have none, read from a file.

Without a file, the classes keep the names `LABEL_0`, `LABEL_1` … of transformers.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

logger = logging.getLogger(__name__)


def normal_form(name: str) -> str:
    """Return a class name in the form in which names are compared: two ways to write é are the same name."""
    return unicodedata.normalize("NFC", name)


def class_names(id2label: Mapping[Any, str] | None) -> list[str] | None:
    """Return the class names in index order, or None if there are no names other than the `LABEL_n` of transformers."""
    if not id2label:
        return None
    names = [str(name).strip() for _, name in sorted((int(index), name) for index, name in id2label.items())]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def read_label_names(path: str | Path) -> list[str]:
    """Read the class names of a file, in index order.

    Args:
        path: A text file with one name per line, a JSON list of names, or a JSON object that maps indices to names. The
            object may also be the field `id2label` of a larger object, as in a `config.json`.

    Raises:
        UserError: The file cannot be read, an index is missing, or a name is missing or empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as class names ({error}). Give a text file with one name per line, a JSON list of "
            "names, or a JSON object that maps indices to names."
        ) from error
    while names and path.suffix != ".json" and not names[-1].strip():
        names.pop()
    empty = [index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
    if empty or not names:
        raise UserError(
            f"{path}: class {empty[0] if empty else 0} has no name. Give a name for each class, in index order."
        )
    return [name.strip() for name in names]


def _from_json(content: Any) -> list[str]:
    if isinstance(content, list):
        return content
    by_index = {int(index): name for index, name in content.get("id2label", content).items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"the indices must be 0 to {len(by_index) - 1}")
    return [by_index[index] for index in range(len(by_index))]


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
            ", ".join(repeated[:5]),
        )
    label2id = {name: index for index, name in reversed(list(enumerate(names)))}
    return {"id2label": dict(enumerate(names)), "label2id": label2id}
