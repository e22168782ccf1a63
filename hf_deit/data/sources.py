"""Sources: images with labels, class names and a fingerprint.

This module leaves out unreadable images, splits off a validation share, and checks the labels. loading.py finds the
images, tables.py reads tables, images.py reads images, and views.py augments them.
"""

import glob
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, listed, listed_lines
from ..losses import ProblemType
from ..models.label_names import normal_form
from .images import find_unreadable, read_image, scan_images
from .labels import constant_classes, contradictory_files, has_label
from .sampling import permutation
from .tables import Label

logger = logging.getLogger(__name__)


def check_class_names(name: str, class_names: Sequence[str], problem_type: ProblemType) -> None:
    """Check that there are at least two classes, and that their names differ.

    Warn if class names differ only in case or in outer spaces.

    Args:
        name: Name of the data in messages.
        class_names: Class names of the training images.
        problem_type: Problem type. Multi-label data may have a single class.

    Raises:
        DataError: The data is single-label and has fewer than two classes, or class names differ only in their Unicode
            normal form.
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for class_name in class_names:
        forms[normal_form(class_name)].add(class_name)
    alike = [form for form, found in forms.items() if len(found) > 1]
    if alike:
        raise DataError(
            f"{name} has class names that differ only in their Unicode normal form (composed or decomposed characters): "
            f"{listed(alike)}. They would be learned as separate classes: give them the same name, or different names."
        )
    if len(class_names) < 2 and problem_type != ProblemType.MULTI_LABEL:
        raise DataError(
            f"{name} has only one class ({listed(class_names)}): a classifier needs at least 2. Add images of "
            "another class, with their own folder or label."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for class_name in class_names:
        alike[class_name.strip().casefold()].append(class_name)
    for names in alike.values():
        if len(names) > 1:
            logger.warning(
                "%s has %d classes whose names differ only in upper and lower case or in spaces at their ends: %s. Each name "
                "is learned as a separate class. If they are the same class, give them the same name.",
                name,
                len(names),
                listed(names),
            )


def check_classes(name: str, labels: Sequence[Any], class_names: Sequence[str], problem_type: ProblemType) -> None:
    """Check that a classifier can be trained on these labels.

    Args:
        name: Name of the data in messages.
        labels: Label of each image: a class index or, for multi-label data, zeros and ones `(classes,)`. Images without a
            label are not counted.
        class_names: Name of each class, in index order.
        problem_type: Problem type: single-label or multi-label.

    Raises:
        DataError: The data is single-label and has fewer than two classes, a class has no image, or the data is multi-label
            and a class is in every image.
    """
    check_class_names(name, class_names, problem_type)
    labels = [label for label in labels if has_label(label)]
    counts = Counter(labels)
    if problem_type == ProblemType.MULTI_LABEL:
        counts = Counter({label: sum(row[label] for row in labels) for label in range(len(class_names))})
    missing = [class_name for label, class_name in enumerate(class_names) if not counts[label]]
    if missing:
        raise DataError(
            f"{name} has no training image of the class(es) {listed(missing)}: add images of every class that has none."
        )
    constant = constant_classes(labels, class_names) if problem_type == ProblemType.MULTI_LABEL else []
    if constant:
        raise DataError(
            f"All {len(labels)} training images of {name} have the class(es) {listed(constant)}, so that these cannot be "
            "learned: add images without them, or leave their column or entries out. Check also that the labels are read "
            "as you mean them."
        )


def path_of(item: Any) -> str | None:
    """Return the path if the item is a path, or None if the image is embedded or missing."""
    return item if isinstance(item, str) else None


def check_files_exist(items: Sequence[Any], name: str, column: str, root: Path | None) -> None:
    """Check that at least one path of a table exists.

    Args:
        items: Items, see images.py. Embedded and missing images are ignored.
        name: Name of the table in messages.
        column: Name of the column of paths.
        root: Folder that the paths are relative to. None for the working folder.

    Raises:
        DataError: The table has paths, and none of them exists.
    """
    paths = [path for path in map(path_of, items) if path is not None]
    if not paths or any(map(os.path.exists, paths)):
        return
    # On systems whose separator is /, a backslash is an ordinary character of a file name.
    windows = os.sep == "/" and any("\\" in path for path in paths)
    hint = (
        " The paths contain backslashes, as on Windows. On this system the separator is /: write the paths with /."
        if windows
        else ""
    )
    if any("//" in path or ":/" in path[2:] for path in paths):
        hint = " Addresses of the network are not downloaded: download the images first."
    endings = sorted({file.suffix for file in Path(paths[0]).parent.glob(glob.escape(Path(paths[0]).name) + ".*")})
    if endings:
        hint = f" The file {paths[0]}{endings[0]} exists: add the extension {endings[0]} to the names in the column."
    raise DataError(
        f"None of the {len(paths)} files of {name} exist; the first one is {paths[0][:200]}. Correct the paths in column "
        f"{column!r}: they must be relative to the folder of the table, {root}.{hint}"
    )


def warn_of_shared_files(train: Sequence[Any], validation: Sequence[Any], name: str) -> None:
    """Warn if files are used both for training and for validation. Embedded images are not compared.

    Args:
        train: Items of the training images.
        validation: Items of the validation images.
        name: Name of the data in the message.
    """
    if not isinstance(train, list) or not isinstance(validation, list):
        return  # embedded images: all of them would have to be read
    seen = {os.path.normpath(path) for path in map(path_of, train) if path is not None}
    shared = [path for path in map(path_of, validation) if path is not None and os.path.normpath(path) in seen]
    if shared:
        logger.warning(
            "%d of %d validation images of %s are also training images; the first one is %s. The accuracy on these "
            "images does not show how well the model classifies new images: use each file in one split only.",
            len(shared),
            len(validation),
            name,
            shared[0],
        )


@dataclass(frozen=True)
class Source:
    """Images with labels, class names and a fingerprint.

    Args:
        items: Undecoded images, see images.py: a list of paths, or a sequence that reads a `datasets` column on access.
        labels: Label of each image: a class index or, for multi-label data, zeros and ones `(classes,)`. The label of an
            image without a label is `losses.UNLABELLED`, for multi-label data for each class.
        class_names: Name of each class, in index order.
        fingerprint: Digest that changes when an image, a label, their order or a class changes. For a file it covers
            the name, the size and the first 16 KiB. If there are more than 50,000 images, it covers the first 16 KiB of
            only 50,000 of them, evenly spaced.
        name: Name of the data in messages.
        problem_type: Problem type: single-label or multi-label. A text is converted to a `ProblemType`.
        left_out: Unreadable images that were left out of the items, each with the reason.
        split_name: The split that the images are: "train", "validation" or "test", the name of another split, or "all" for
            all images of data without splits. Empty if it is unknown.

    Raises:
        ValueError: `problem_type` is unknown.
    """

    items: Sequence[Any]
    labels: Sequence[Label]
    class_names: tuple[str, ...]
    fingerprint: str
    name: str
    problem_type: ProblemType = ProblemType.SINGLE_LABEL
    left_out: tuple[str, ...] = ()
    split_name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem_type", ProblemType(self.problem_type))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Read an image as upright 8-bit RGB.

        Raises:
            DataError: The image cannot be decoded. The message names it.
        """
        return read_image(self.items[index], f"Image {index} of {self.name}")

    def subset(self, indices: Iterable[int], name: str) -> "Source":
        """Return a source of the images at `indices`, in that order."""
        indices = list(indices)
        items = self.items.select(indices) if hasattr(self.items, "select") else [self.items[i] for i in indices]
        digest = hashlib.sha256(f"{self.fingerprint}:{indices}".encode()).hexdigest()
        return replace(self, items=items, labels=[self.labels[i] for i in indices], fingerprint=digest, name=name)

    @property
    def unlabelled_indices(self) -> list[int]:
        """Indices of the images without a label."""
        return [index for index, label in enumerate(self.labels) if not has_label(label)]

    def labelled_part(self) -> "Source":
        """Return a source of the images with a label; the source itself if all images have one."""
        missing = set(self.unlabelled_indices)
        if not missing:
            return self
        return self.subset([index for index in range(len(self)) if index not in missing], self.name)

    def split(self, share: float, seed: int) -> tuple["Source", "Source"]:
        """Split off `share` of every class (at least one image) for validation. The seed determines the split.

        For multi-label data, `share` of all images is split off, regardless of their classes. Images without a label are
        not split off.

        Returns:
            The remaining images, and the images that are split off.

        Raises:
            DataError: The data is single-label, and a class has only one image.
        """
        order = permutation(seed, 0, len(self), purpose="split").tolist()
        if self.problem_type == ProblemType.MULTI_LABEL:
            order = [index for index in order if has_label(self.labels[index])]
            return self._split_at(order[: min(max(round(share * len(order)), 1), len(order) - 1)])
        validation: list[int] = []
        for label, name in enumerate(self.class_names):
            members = [index for index in order if self.labels[index] == label]
            if len(members) == 1:
                raise DataError(
                    f"Class {name!r} of {self.name} has only one image and cannot be split into training and "
                    "validation images: add images of this class, or provide a validation split."
                )
            validation += members[: max(round(share * len(members)), 1)] if members else []
        return self._split_at(validation)

    def _split_at(self, validation: Sequence[int]) -> tuple["Source", "Source"]:
        """Return the training source and the validation source, for the indices of the validation images."""
        held_out = set(validation)
        train = [index for index in range(len(self)) if index not in held_out]
        name = self.name.removesuffix(" (train)")
        return (
            replace(self.subset(train, f"{name} (train)"), split_name="train"),
            replace(self.subset(sorted(validation), f"{name} (validation)"), split_name="validation"),
        )


def without_unreadable(source: Source, broken_images: str = "skip") -> Source:
    """Decode every image once. Return the source without the images that cannot be decoded, and warn about them.

    Args:
        source: The images.
        broken_images: "skip" to leave unreadable images out, or "raise" to raise a DataError.

    Raises:
        DataError: An image cannot be decoded and `broken_images` is "raise", or no image can be decoded.
    """
    return _without(source, find_unreadable(source.items), broken_images)


def with_fingerprint(source: Source, broken_images: str, root: Path | None) -> Source:
    """Read the beginning of every image, and return the source with its fingerprint and without unreadable images.

    Args:
        source: The images. The fingerprint of this source is ignored.
        broken_images: "skip" to leave unreadable images out, or "raise" to raise a DataError.
        root: Folder of the data. None for the working folder. The fingerprint contains the paths relative to this
            folder.

    Raises:
        DataError: An image cannot be opened and `broken_images` is "raise", or no image can be opened.
    """
    _warn_of_contradictions(source)
    scan = scan_images(source.items)
    lines = [f"{name}\t{label}" for name, label in zip(_names(source.items, root), source.labels, strict=True)]
    digest = hashlib.sha256("\n".join([*source.class_names, *lines, scan.digest]).encode()).hexdigest()
    for note in scan.notes:
        logger.info("%s: %s.", source.name, note)
    for note in scan.warnings:
        logger.warning("%s: %s.", source.name, note)
    return _without(replace(source, fingerprint=digest), scan.broken, broken_images)


def _warn_of_contradictions(source: Source) -> None:
    """Warn if a file is listed more than once with different labels."""
    files = contradictory_files(source.items, source.labels)
    if not files:
        return

    def name(label: Label) -> str:
        present = [label] if isinstance(label, int) else [index for index, flag in enumerate(label) if flag]
        return "+".join(source.class_names[index] for index in present) or "no class"

    shown = [f"{path} ({listed(map(name, labels))})" for path, labels in files.items()]
    logger.warning(
        "%d file(s) of %s are listed with different labels: %s. Each row counts as an image. Correct the labels or, if images "
        "have several classes, list them in one row (label_separator).",
        len(files),
        source.name,
        listed(shown, str),
    )


def _names(items: Sequence[Any], root: Path | None) -> list[str]:
    """Return the text of each image in the fingerprint: its path relative to `root`, and the size of the file."""
    if not isinstance(items, list):
        return [""] * len(items)  # embedded images have no path
    start = root if root is not None else Path.cwd()
    paths = map(path_of, items)
    return [
        ""
        if path is None
        else f"{os.path.relpath(path, start)}\t{os.path.getsize(path) if os.path.exists(path) else -1}"
        for path in paths
    ]


def _without(source: Source, broken: dict[int, str], broken_images: str) -> Source:
    if not broken:
        return source
    reasons = tuple(broken.values())
    if broken_images == "raise":
        raise DataError(
            f"{len(broken)} file(s) of {source.name} cannot be read as images: repair them, or set broken_images: skip "
            f"to leave them out.{listed_lines(reasons)}"
        )
    if len(broken) == len(source):
        raise DataError(
            f"None of the {len(source)} images of {source.name} can be read. Repair or replace them:{listed_lines(reasons)}"
        )
    logger.warning(
        "%d of %d images of %s cannot be read and are left out:%s",
        len(broken),
        len(source),
        source.name,
        listed_lines(reasons),
    )
    rest = source.subset([index for index in range(len(source)) if index not in broken], source.name)
    return replace(rest, left_out=(*source.left_out, *reasons))
