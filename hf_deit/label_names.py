"""Names of classes for weights that bring none: from a file, or ImageNet-1k's from a package that is installed.

Nothing is invented: without a source the classes stay `LABEL_0`, `LABEL_1` …, as transformers calls them.

Paper: none.
"""

import json
import logging
from pathlib import Path
from typing import Any

from .errors import UserError

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


class LabelNamesError(UserError):
    """A file of class names that is none, or is for another number of classes."""


def read_label_names(path: str | Path) -> list[str]:
    """Reads class names in index order.

    Args:
        path: A text of one name a line; a JSON list; or a JSON object of indices to names (`id2label`, alone or as a
            field, as in a `config.json`).

    Raises:
        LabelNamesError: It cannot be read, an index is missing, or a name is empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise LabelNamesError(
            f"{path} is no file of class names ({error}): give one name a line, or JSON, a list or indices to names."
        ) from error
    while names and path.suffix != ".json" and not names[-1].strip():
        names.pop()
    empty = [index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
    if empty or not names:
        raise LabelNamesError(f"{path}: class {empty[0] if empty else 0} has no name. Every class needs one, in order.")
    return [name.strip() for name in names]


def _from_json(content: Any) -> list[str]:
    if isinstance(content, list):
        return content
    by_index = {int(index): name for index, name in content.get("id2label", content).items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"the indices are not 0 to {len(by_index) - 1}")
    return [by_index[index] for index in range(len(by_index))]


def imagenet_names() -> tuple[list[str], str] | None:
    """ImageNet-1k's class names and the package they are from; None where no installed package brings them."""
    for package, read in (("timm", _from_timm), ("torchvision", _from_torchvision)):
        try:
            names = list(read())
        except (ImportError, AttributeError):
            continue
        if len(names) == IMAGENET_CLASSES:
            return names, package
    return None


def _from_timm() -> list[str]:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()


def _from_torchvision() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.DEFAULT.meta["categories"]


def label_fields(num_labels: int, labels: str | Path | None) -> dict[str, Any]:
    """The fields of a configuration that name its classes; empty where nothing names them, which is logged.

    Args:
        num_labels: Classes of the weights.
        labels: File of names (see `read_label_names`); None: ImageNet-1k's for 1,000 classes, where a package has them.

    Raises:
        LabelNamesError: The file names another number of classes.
    """
    if labels is not None:
        names = read_label_names(labels)
        if len(names) != num_labels:
            raise LabelNamesError(f"{labels} names {len(names)} classes and the weights have {num_labels}.")
    else:
        found = imagenet_names() if num_labels == IMAGENET_CLASSES else None
        if found is None:
            hint = ", and ImageNet-1k's names need timm or torchvision" if num_labels == IMAGENET_CLASSES else ""
            logger.warning(
                "The classes stay LABEL_0 to LABEL_%d: the weights name none%s. A file of names mends that (labels).",
                num_labels - 1,
                hint,
            )
            return {}
        names, package = found
        logger.info("1,000 classes: named as ImageNet-1k's, from %s.", package)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        logger.warning("Several classes have one name (%s): label2id knows the first of each.", ", ".join(repeated[:5]))
    label2id = {name: index for index, name in reversed(list(enumerate(names)))}
    return {"id2label": dict(enumerate(names)), "label2id": label2id}
