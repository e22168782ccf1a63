"""What stands against training on images, said before the first of them is decoded: too few classes, names that are almost
one, files that are not there, images on both sides of the split.

Reading is the business of tables.py and images.py, which images there are that of sources.py.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import DataError

logger = logging.getLogger(__name__)

MULTI_LABEL = "multi_label_classification"


def check_class_names(name: str, class_names: Sequence[str], problem_type: str) -> None:
    """Checks that there is something to tell apart, and warns of classes that differ in case or outer blanks only.

    Args:
        name: Of the data, for messages.
        class_names: Of the training images.
        problem_type: "multi_label_classification" may have one class.

    Raises:
        DataError: There is one class only.
    """
    if len(class_names) < 2 and problem_type != MULTI_LABEL:
        raise DataError(
            f"{name} has one class only ({', '.join(class_names)}): a classifier needs at least 2, each a folder "
            "of its own or a label of its own."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for class_name in class_names:
        alike[class_name.strip().casefold()].append(class_name)
    for names in alike.values():
        if len(names) > 1:
            logger.warning(
                "%s has %d classes whose names differ in upper and lower case or outer blanks only: %s. Each is learned as a "
                "class of its own; if they are one, give them one name.",
                *(name, len(names), ", ".join(map(repr, names))),
            )


def check_classes(name: str, labels: Sequence[Any], class_names: Sequence[str], problem_type: str) -> None:
    """Checks that a classifier can be trained on these labels.

    Args:
        name: Of the data, for messages.
        labels: Class index of each image, or zeros and ones `(classes,)`.
        class_names: Name of each class.
        problem_type: "single_label_classification" or "multi_label_classification".

    Raises:
        DataError: There is one class only, or no image of a class.
    """
    check_class_names(name, class_names, problem_type)
    counts = Counter(labels)
    if problem_type == MULTI_LABEL:
        counts = Counter({label: sum(row[label] for row in labels) for label in range(len(class_names))})
    missing = [class_name for label, class_name in enumerate(class_names) if not counts[label]]
    if missing:
        raise DataError(f"No training image in {name} for class(es) {', '.join(map(repr, missing))}: add some.")


def path_of(item: Any) -> str | None:
    """Gives the path of an item that is a file here; None of one that is embedded or missing."""
    return item if isinstance(item, str) else None


def check_files_exist(items: Sequence[Any], name: str, column: str, root: Path | None) -> None:
    """Checks that not all paths of a table lead nowhere.

    Args:
        items: As images.py says; embedded and missing images are passed over.
        name: Of the table, for messages.
        column: The paths are in.
        root: Folder the paths start from; None: the working folder.

    Raises:
        DataError: There are paths, and none is a file.
    """
    paths = [path for path in map(path_of, items) if path is not None]
    if not paths or any(map(os.path.exists, paths)):
        return
    # A backslash is a letter like any other where paths have slashes.
    windows = os.sep == "/" and any("\\" in path for path in paths)
    hint = (
        " The paths have backslashes, as on Windows: here the separator is /, so write them with /." if windows else ""
    )
    raise DataError(
        f"None of the {len(paths)} files of {name} exist, the first: {paths[0]}. Column {column!r} holds paths from the "
        f"folder of the table, {root}.{hint}"
    )


def check_not_empty(files: dict[str, list[str]]) -> None:
    """Checks that no table is an empty file.

    Args:
        files: Of each split.

    Raises:
        DataError: One has no content; the message names it.
    """
    for split, paths in files.items():
        for path in paths:
            if os.path.getsize(path) == 0:
                raise DataError(
                    f"{path} (the split {split!r}) is an empty file: give it a row for each image, or remove it."
                )


def warn_of_shared_files(train: Sequence[Any], validation: Sequence[Any], name: str) -> None:
    """Warns if image files are both among the training and the validation images; embedded images are not compared.

    Args:
        train: Items.
        validation: Items.
        name: Of the data, for the message.
    """
    if not isinstance(train, list) or not isinstance(validation, list):
        return  # a column of embedded images, which would have to be read
    seen = {os.path.normpath(path) for path in map(path_of, train) if path is not None}
    shared = [path for path in map(path_of, validation) if path is not None and os.path.normpath(path) in seen]
    if shared:
        logger.warning(
            "%d of %d validation images of %s are training images too, the first: %s. Their accuracy says nothing about new "
            "images: remove the repeated rows.",
            *(len(shared), len(validation), name, shared[0]),
        )
