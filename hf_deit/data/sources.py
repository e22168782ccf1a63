"""From folders and tables to rows: which images there are, their labels, class names and a fingerprint.

Nothing is augmented or batched here (views.py). Tables are read in tables.py, images in images.py; here is which splits there
are, how a validation share is split off, and what is left out because it cannot be read.
"""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from .images import find_unreadable, listed, read_image, scan_images
from .sampling import permutation
from .tables import Label

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


@dataclass(frozen=True)
class Source:
    """Images with labels.

    Args:
        items: A path for each image, or a `datasets` column of undecoded images (`{"bytes", "path"}`).
        labels: Class index of each image; for several classes an image a row of zeros and ones `(classes,)`.
        class_names: Name of each class, in index order.
        fingerprint: Changes when an image, a label, their order or a class changes. Of a file its name, size and first
            16 KiB count (above 50,000 files: of an even selection of them).
        name: For messages.
        problem_type: "single_label_classification" or "multi_label_classification".
        left_out: What could not be read as an image and is not among the items, with the reason.
    """

    items: Sequence[Any]
    labels: Sequence[Label]
    class_names: tuple[str, ...]
    fingerprint: str
    name: str
    problem_type: str = "single_label_classification"
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Reads an image as upright 8-bit RGB.

        Raises:
            DataError: It cannot be decoded; the message names it.
        """
        return read_image(self.items[index], f"Image {index} of {self.name}")

    def subset(self, indices: Iterable[int], name: str) -> "Source":
        """Gives the images at `indices`, in that order."""
        indices = list(indices)
        items = self.items.select(indices) if hasattr(self.items, "select") else [self.items[i] for i in indices]
        digest = hashlib.sha256(f"{self.fingerprint}:{indices}".encode()).hexdigest()
        return replace(self, items=items, labels=[self.labels[i] for i in indices], fingerprint=digest, name=name)

    def split(self, share: float, seed: int) -> tuple["Source", "Source"]:
        """Splits off `share` of every class (at least one image) for validation, as a function of the seed.

        Of images with several classes `share` of all is split off.

        Returns:
            The rest and the split-off part.

        Raises:
            DataError: A class has a single image.
        """
        order = permutation(seed, 0, len(self), purpose="split").tolist()
        if self.problem_type == "multi_label_classification":
            return self._parted(order[: min(max(round(share * len(self)), 1), len(self) - 1)])
        validation: list[int] = []
        for label, name in enumerate(self.class_names):
            members = [index for index in order if self.labels[index] == label]
            if len(members) == 1:
                raise DataError(
                    f"Class {name!r} of {self.name} has one image and cannot be split: add images, or give a validation "
                    "folder of your own."
                )
            validation += members[: max(round(share * len(members)), 1)] if members else []
        return self._parted(validation)

    def _parted(self, validation: Sequence[int]) -> tuple["Source", "Source"]:
        held_out = set(validation)
        train = [index for index in range(len(self)) if index not in held_out]
        name = self.name.removesuffix(" (train)")
        return self.subset(train, f"{name} (train)"), self.subset(sorted(validation), f"{name} (validation)")


def without_unreadable(source: Source, broken_images: str = "skip") -> Source:
    """Decodes every image once and leaves out, with a warning, those that cannot be decoded.

    Args:
        source: The images.
        broken_images: "skip", or "raise" to refuse them.

    Raises:
        DataError: The policy is "raise" and there is one, or all are broken.
    """
    return _without(source, find_unreadable(source.items), broken_images)


def _checked(source: Source, broken_images: str, names: Sequence[str]) -> Source:
    """Looks at the beginnings of the images, says what is unusual, and gives the source its fingerprint."""
    scan = scan_images(source.items)
    lines = [f"{name}\t{label}" for name, label in zip(names, source.labels, strict=True)]
    digest = hashlib.sha256("\n".join([*source.class_names, *lines, scan.digest]).encode()).hexdigest()
    for note in scan.notes:
        logger.info("%s: %s.", source.name, note)
    return _without(replace(source, fingerprint=digest), scan.broken, broken_images)


def _without(source: Source, broken: dict[int, str], broken_images: str) -> Source:
    if not broken:
        return source
    reasons = tuple(broken.values())
    if broken_images == "raise":
        raise DataError(
            f"{len(broken)} file(s) of {source.name} cannot be read as images; repair or remove them, or leave them out "
            f"(broken_images: skip):{listed(reasons)}"
        )
    if len(broken) == len(source):
        raise DataError(f"None of the {len(source)} images of {source.name} can be read:{listed(reasons)}")
    logger.warning(
        "%d of %d images of %s cannot be read and are left out:%s",
        *(len(broken), len(source), source.name, listed(reasons)),
    )
    rest = source.subset([index for index in range(len(source)) if index not in broken], source.name)
    return replace(rest, left_out=(*source.left_out, *reasons))
