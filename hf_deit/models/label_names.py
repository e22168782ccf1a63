"""Names of classes for weights that bring none: from a file.

Nothing is invented: without a source the classes stay `LABEL_0`, `LABEL_1` …, as transformers calls them.

Paper: none.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

logger = logging.getLogger(__name__)


def class_names(id2label: Mapping[Any, str] | None) -> list[str] | None:
    """Gives the class names in index order; None where there are none or they only are transformers' LABEL_n."""
    if not id2label:
        return None
    names = [str(name).strip() for _, name in sorted((int(index), name) for index, name in id2label.items())]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def read_label_names(path: str | Path) -> list[str]:
    """Reads class names in index order.

    Args:
        path: A text of one name a line; a JSON list; or a JSON object of indices to names (`id2label`, alone or as a
            field, as in a `config.json`).

    Raises:
        UserError: It cannot be read, an index is missing, or a name is empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} is no file of class names ({error}): give one name a line, or JSON, a list or indices to names."
        ) from error
    while names and path.suffix != ".json" and not names[-1].strip():
        names.pop()
    empty = [index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
    if empty or not names:
        raise UserError(f"{path}: class {empty[0] if empty else 0} has no name. Every class needs one, in order.")
    return [name.strip() for name in names]


def _from_json(content: Any) -> list[str]:
    if isinstance(content, list):
        return content
    by_index = {int(index): name for index, name in content.get("id2label", content).items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"the indices are not 0 to {len(by_index) - 1}")
    return [by_index[index] for index in range(len(by_index))]


def label_fields(num_labels: int, labels: str | Path | None) -> dict[str, Any]:
    """The fields of a configuration that name its classes; empty where nothing names them.

    Args:
        num_labels: Classes of the weights.
        labels: File of names (see `read_label_names`); None: the classes get no names, which is logged.

    Raises:
        UserError: The file names another number of classes.
    """
    if labels is None:
        logger.warning(
            "The classes stay LABEL_0 to LABEL_%d, because the weights name none. Name them with a file (labels).",
            num_labels - 1,
        )
        return {}
    names = read_label_names(labels)
    if len(names) != num_labels:
        raise UserError(f"{labels} names {len(names)} classes and the weights have {num_labels}.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        logger.warning("Several classes have one name (%s): label2id knows the first of each.", ", ".join(repeated[:5]))
    label2id = {name: index for index, name in reversed(list(enumerate(names)))}
    return {"id2label": dict(enumerate(names)), "label2id": label2id}
