"""From folders and tables to rows: which images there are, their labels, class names and a fingerprint.

Nothing is augmented or batched here (data.py). Tables are read in tables.py, images in images.py; here is which splits there
are, how a validation share is split off, and what is left out because it cannot be read.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .data_checks import check_class_names, check_classes, check_files_exist, path_of, warn_of_shared_files
from .errors import DataError
from .images import check_policy, find_unreadable, listed, read_image, scan_images
from .sampling import permutation
from .tables import (
    VALIDATION_NAMES,
    Columns,
    Label,
    TableReader,
    is_saved_dataset,
    open_splits,
    table_files,
    validation_name,
)

logger = logging.getLogger(__name__)


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


def load_splits(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
) -> tuple[Source, Source]:
    """Finds the training and the validation images behind a path or a Hub name.

    Args:
        data: A folder with `train/CLASS/…` and `validation/CLASS/…` (or `val`, `valid`, `dev`); a folder `CLASS/…`, of
            which a share is split off; a table (CSV, TSV, JSON lines, parquet), or a folder with `train.*` and
            `validation.*`; a folder saved by `datasets`; or the name of a data set on the Hub.
        validation_share: Share in (0, 1) of each class to split off where there is no validation split.
        seed: Of that split.
        columns: Which columns of a table or data set hold images and labels; None: found by type and usual names.
        broken_images: "skip" leaves out and reports what is no image by its header; "raise" refuses it.

    Returns:
        The training and the validation source, with the same classes.

    Raises:
        DataError: Nothing there, no images, one class only, or a class missing from the training split.
    """
    if not 0 < validation_share < 1:
        raise DataError(f"validation_share={validation_share}: it must lie between 0 and 1, for example 0.1.")
    train, validation = _load(data, columns, broken_images)
    check_classes(train.name, train.labels, train.class_names, train.problem_type)
    if validation is None:
        train, validation = train.split(validation_share, seed)
        validation = replace(validation, left_out=())  # they are among those of the other part
    warn_of_shared_files(train.items, validation.items, data)
    return train, validation


def load_training(
    data: str,
    validation_share: float = 0.1,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
) -> Source:
    """Finds the training images to look at: those of `load_splits`, or all where nothing can be split off.

    Args:
        data: As `load_splits`.
        validation_share: As `load_splits`.
        seed: As `load_splits`.
        columns: As `load_splits`.
        broken_images: As `load_splits`.

    Raises:
        DataError: As `load_splits`; here a single class or image is allowed.
    """
    train, validation = _load(data, columns, broken_images)
    if validation is not None or len(train) < 2:
        return train
    try:
        return train.split(validation_share, seed)[0]
    except DataError:  # a class of one image: nothing can be held out
        return train


def load_validation(
    data: str,
    validation_share: float | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    broken_images: str = "skip",
) -> Source:
    """Finds the images to evaluate on: the validation split; without one the share a run split off, or all images.

    Args:
        data: As `load_splits`.
        validation_share: Of the run whose held-out part is wanted; None: all images.
        seed: Of that run.
        columns: As `load_splits`.
        broken_images: As `load_splits`.

    Raises:
        DataError: As `load_splits`; here a single class is allowed.
    """
    rest, validation = _load(data, columns, broken_images)
    if validation is None:
        validation = rest if validation_share is None else rest.split(validation_share, seed)[1]
    return validation


def load_stream(data: str, columns: Columns | None = None, broken_images: str = "skip") -> tuple[TableReader, Source]:
    """Opens the training images of a table or data set as a stream, and finds the validation images.

    Args:
        data: As `load_splits`, but no folder of class folders.
        columns: As `load_splits`.
        broken_images: As `load_splits`, for the validation images.

    Returns:
        The reader of the stream, and the validation source (in memory, undecoded, if it comes from the Hub).

    Raises:
        DataError: As `load_splits`; or there is no validation split.
    """
    check_policy(broken_images)
    columns = columns or Columns()
    splits = open_splits(data, streaming=True)
    validation = validation_name(splits)
    if validation is None:
        raise DataError(
            f"{data} has no validation split, and of a stream none can be split off: add one (validation.csv, "
            f"validation.parquet; one of {', '.join(VALIDATION_NAMES)}), or leave streaming out."
        )
    reader = TableReader(splits["train"], columns, f"{data} (train)", table_root(data))
    check_class_names(reader.name, reader.class_names, reader.problem_type)
    if Path(data).expanduser().exists():
        held_out = open_splits(data, only=(validation,))[validation]
    else:  # by name: `datasets` would copy all splits here to index one
        held_out = _in_memory(splits[validation])
    return reader, _table_source(held_out, data, validation, columns, broken_images, reader.class_names)


def _in_memory(stream: Any) -> Any:
    import datasets

    for column, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    return datasets.Dataset.from_list(list(stream), features=stream.features)


def without_unreadable(source: Source, broken_images: str = "skip") -> Source:
    """Decodes every image once and leaves out, with a warning, those that cannot be decoded.

    Args:
        source: The images.
        broken_images: "skip", or "raise" to refuse them.

    Raises:
        DataError: The policy is "raise" and there is one, or all are broken.
    """
    return _without(source, find_unreadable(source.items), broken_images)


def is_image_folder(data: str) -> bool:
    """Whether `data` is a folder of class folders, and not a table, a saved data set or a name."""
    path = Path(data).expanduser()
    if not path.is_dir() or is_saved_dataset(path):
        return False
    return not table_files(path) or bool((path / "train").is_dir() and _subfolders(path / "train"))


def _load(data: str, columns: Columns | None, broken_images: str) -> tuple[Source, Source | None]:
    check_policy(broken_images)
    path = Path(data).expanduser()
    if is_image_folder(data):
        if columns not in (None, Columns()) and not table_files(path):
            raise DataError(
                f"{data} is a folder of class folders: columns go with tables and data sets, leave them out."
            )
        if columns in (None, Columns()):
            return _load_folders(path, broken_images)
    if path.exists() and not path.is_dir() and not table_files(path):
        raise DataError(
            f"{data} is a file of an unknown kind. Give a folder with a folder per class, a table (.csv, .tsv, .jsonl, "
            ".parquet), or the name of a data set."
        )
    return _load_tables(data, columns or Columns(), broken_images)


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


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _load_folders(path: Path, broken_images: str) -> tuple[Source, Source | None]:
    names = _subfolders(path)
    if "train" not in names:
        return _scan_folder(path, names, broken_images), None
    train = _scan_folder(path / "train", _subfolders(path / "train"), broken_images)
    for name in VALIDATION_NAMES:
        if name in names:
            unknown = sorted(set(_subfolders(path / name)) - set(train.class_names))
            if unknown:
                raise DataError(
                    f"Class(es) {', '.join(map(repr, unknown))} are in {path / name} and not in {path / 'train'}, which "
                    f"has {', '.join(map(repr, train.class_names))}: the names of the class folders must agree."
                )
            return train, _scan_folder(path / name, train.class_names, broken_images)
    return train, None


def _scan_folder(path: Path, class_names: Sequence[str], broken_images: str) -> Source:
    if not class_names:
        raise DataError(f"{path} holds no folders. Expected a folder per class, for example {path}/cat/1.jpg.")
    extensions = set(Image.registered_extensions())
    items, labels = [], []
    for label, name in enumerate(class_names):
        for file in sorted((path / name).rglob("*")) if (path / name).is_dir() else ():
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if not hidden and file.suffix.lower() in extensions and file.is_file():
                items.append(str(file))
                labels.append(label)
    if not items:
        raise DataError(f"No images in {path}: looked for files such as .jpg and .png in {', '.join(class_names)}.")
    source = Source(items, labels, tuple(class_names), "", str(path))
    return _checked(source, broken_images, _names(items, path))


def _names(items: Sequence[Any], root: Path | None) -> list[str]:
    """What a fingerprint keeps of a path: where it is from the data's folder, and its size; of embedded images nothing."""
    if not isinstance(items, list):
        return [""] * len(items)
    start = root if root is not None else Path.cwd()
    paths = map(path_of, items)
    return [
        ""
        if path is None
        else f"{os.path.relpath(path, start)}\t{os.path.getsize(path) if os.path.exists(path) else -1}"
        for path in paths
    ]


def _load_tables(data: str, columns: Columns, broken_images: str) -> tuple[Source, Source | None]:
    splits = open_splits(data)
    train = _table_source(splits["train"], data, "train", columns, broken_images)
    validation = validation_name(splits)
    if validation is None or validation == "test" and _is_unlabelled(splits[validation], columns):
        return train, None
    return train, _table_source(splits[validation], data, validation, columns, broken_images, train.class_names)


def table_root(data: str) -> Path | None:
    """Gives the folder that the paths in a table start from; None for what `datasets` keeps itself."""
    path = Path(data).expanduser()
    files = table_files(path) if path.exists() else {}
    return Path(files["train"][0]).parent if files else None


def _table_source(
    dataset: Any,
    data: str,
    split: str,
    columns: Columns,
    broken_images: str,
    class_names: Sequence[str] | None = None,
) -> Source:
    name, root = f"{data} ({split})", table_root(data)
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows: give a table with a row for each image.")
    reader = TableReader(dataset, columns, name, root, class_names)
    items = reader.items()
    source = Source(items, reader.labels(), reader.class_names, "", name, reader.problem_type)
    if isinstance(items, list):
        check_files_exist(items, name, reader.image_column, root)
    return _checked(source, broken_images, _names(items, root))


def _is_unlabelled(dataset: Any, columns: Columns) -> bool:
    """Whether a test split withholds its labels, as those of competitions do."""
    import datasets

    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    asked = [name for name in columns.labels if name in dataset.features]
    return bool(columns.labels) and not asked or any(set(dataset[name]) <= {-1, None} for name in asked or typed)
