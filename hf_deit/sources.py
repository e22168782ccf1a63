"""From folders and `datasets` to rows: which images there are, their labels, class names and a fingerprint.

Nothing is augmented or batched here (data.py), and no image is decoded before it is asked for.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import UserError
from .image_processing_deit import upright_rgb
from .sampling import permutation

VALIDATION_NAMES = ("validation", "val", "valid", "dev")
# Headers are read before training up to this many files, so that a broken file is named at once.
MAX_CHECKED_FILES = 50_000
HEAD_BYTES = 16_384


class DataError(UserError):
    """Data that cannot be trained on; the message names the file, class or column and the remedy."""


@dataclass(frozen=True)
class Source:
    """Images with labels.

    Args:
        items: A path for each image, or a `datasets` column of undecoded images (`{"bytes", "path"}`).
        labels: Class index of each image.
        class_names: Name of each class, in index order.
        fingerprint: Changes when an image, a label, their order or a class changes. Of a file its name, size and first
            16 KiB count (above 50,000 files: of an even selection of them).
        name: For messages.
    """

    items: Sequence[Any]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    fingerprint: str
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Reads an image as upright 8-bit RGB.

        Raises:
            DataError: It cannot be decoded; the message names it.
        """
        item = self.items[index]
        item = {"path": item, "bytes": None} if isinstance(item, str | os.PathLike) else item or {}
        path, content = item.get("path"), item.get("bytes")
        try:
            if path is None and content is None:
                raise ValueError("it is missing")
            file = path if content is None else io.BytesIO(content)
            with Image.open(file) as image:
                return upright_rgb(image)
        except Exception as error:  # Pillow's plugins raise what they like: RuntimeError, DecompressionBombError, …
            raise DataError(
                f"Image {index} of {self.name} ({path or 'embedded'}) cannot be read: {error}. Repair or remove it."
            ) from error

    def subset(self, indices: Iterable[int], name: str) -> "Source":
        """Gives the images at `indices`, in that order."""
        indices = list(indices)
        items = self.items.select(indices) if hasattr(self.items, "select") else [self.items[i] for i in indices]
        digest = hashlib.sha256(f"{self.fingerprint}:{indices}".encode()).hexdigest()
        return replace(self, items=items, labels=[self.labels[i] for i in indices], fingerprint=digest, name=name)

    def split(self, share: float, seed: int) -> tuple["Source", "Source"]:
        """Splits off `share` of every class (at least one image) for validation, as a function of the seed.

        Returns:
            The rest and the split-off part.

        Raises:
            DataError: A class has a single image.
        """
        order = permutation(seed, 0, len(self), purpose="split").tolist()
        validation: list[int] = []
        for label, name in enumerate(self.class_names):
            members = [index for index in order if self.labels[index] == label]
            if len(members) == 1:
                raise DataError(
                    f"Class {name!r} of {self.name} has one image and cannot be split: add images, or give a validation "
                    "folder of your own."
                )
            validation += members[: max(round(share * len(members)), 1)] if members else []
        held_out = set(validation)
        train = [index for index in range(len(self)) if index not in held_out]
        return self.subset(train, f"{self.name} (train)"), self.subset(sorted(validation), f"{self.name} (validation)")


def load_splits(data: str, validation_share: float = 0.1, seed: int = 0) -> tuple[Source, Source]:
    """Finds the training and the validation images behind a path or a Hub name.

    Args:
        data: A folder with `train/CLASS/…` and `validation/CLASS/…` (or `val`, `valid`, `dev`); a folder `CLASS/…`, of
            which a share is split off; a folder saved by `datasets`; or the name of a data set on the Hub. A `datasets`
            data set needs one `Image` and one `ClassLabel` column.
        validation_share: Share in (0, 1) of each class to split off where there is no validation split.
        seed: Of that split.

    Returns:
        The training and the validation source, with the same classes.

    Raises:
        DataError: Nothing there, no images, one class only, or a class missing from the training split.
    """
    if not 0 < validation_share < 1:
        raise DataError(f"validation_share={validation_share}: it must lie between 0 and 1, for example 0.1.")
    train, validation = _load(data)
    _check_classes(train)
    if validation is None:
        train, validation = train.split(validation_share, seed)
    return train, validation


def load_validation(data: str, validation_share: float | None = None, seed: int = 0) -> Source:
    """Finds the images to evaluate on: the validation split; without one the share a run split off, or all images.

    Args:
        data: As `load_splits`.
        validation_share: Of the run whose held-out part is wanted; None: all images.
        seed: Of that run.

    Raises:
        DataError: As `load_splits`; here a single class is allowed.
    """
    rest, validation = _load(data)
    if validation is None:
        validation = rest if validation_share is None else rest.split(validation_share, seed)[1]
    return validation


def _load(data: str) -> tuple[Source, Source | None]:
    path = Path(data).expanduser()
    if path.is_dir() and not _is_saved_dataset(path):
        return _load_folders(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"{data} is a file. Give a folder with a folder per class, or the name of a data set.")
    return _load_datasets(path if path.is_dir() else data)


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()


def _check_classes(train: Source) -> None:
    if len(train.class_names) < 2:
        raise DataError(
            f"{train.name} has one class only ({', '.join(train.class_names)}): a classifier needs at least 2, each a folder "
            "of its own."
        )
    counts = Counter(train.labels)
    missing = [name for label, name in enumerate(train.class_names) if not counts[label]]
    if missing:
        raise DataError(f"No training image in {train.name} for class(es) {', '.join(map(repr, missing))}: add some.")


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _load_folders(path: Path) -> tuple[Source, Source | None]:
    names = _subfolders(path)
    if "train" not in names:
        return _scan_folder(path, names), None
    train = _scan_folder(path / "train", _subfolders(path / "train"))
    for name in VALIDATION_NAMES:
        if name in names:
            unknown = sorted(set(_subfolders(path / name)) - set(train.class_names))
            if unknown:
                raise DataError(
                    f"Class(es) {', '.join(map(repr, unknown))} are in {path / name} and not in {path / 'train'}, which "
                    f"has {', '.join(map(repr, train.class_names))}: the names of the class folders must agree."
                )
            return train, _scan_folder(path / name, train.class_names)
    return train, None


def _scan_folder(path: Path, class_names: Sequence[str]) -> Source:
    if not class_names:
        raise DataError(f"{path} holds no folders. Expected a folder per class, for example {path}/cat/1.jpg.")
    extensions = set(Image.registered_extensions())
    items, labels, sizes = [], [], []
    for label, name in enumerate(class_names):
        for file in sorted((path / name).rglob("*")) if (path / name).is_dir() else ():
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if not hidden and file.suffix.lower() in extensions and file.is_file():
                items.append(str(file))
                labels.append(label)
                sizes.append(file.stat().st_size)
    if not items:
        raise DataError(f"No images in {path}: looked for files such as .jpg and .png in {', '.join(class_names)}.")
    heads = _check_heads(items)
    lines = [
        f"{os.path.relpath(item, path)}\t{label}\t{size}"
        for item, label, size in zip(items, labels, sizes, strict=True)
    ]
    digest = hashlib.sha256("\n".join([*class_names, *lines, heads]).encode()).hexdigest()
    return Source(items, labels, tuple(class_names), digest, str(path))


def _check_heads(paths: Sequence[str]) -> str:
    """Opens the files, up to a number, as images, and gives a digest of how they begin."""
    step = max(len(paths) // MAX_CHECKED_FILES, 1)
    broken = []
    digest = hashlib.sha256()
    for path in paths[::step]:
        try:
            with open(path, "rb") as file:
                digest.update(file.read(HEAD_BYTES))
            with Image.open(path):
                pass
        except Exception as error:  # as above
            broken.append(f"{path}: {error}")
    if broken:
        listed = "\n  ".join(broken[:10])
        raise DataError(f"{len(broken)} file(s) cannot be read as images; repair or remove them:\n  {listed}")
    return digest.hexdigest()


def _load_datasets(data: str | Path) -> tuple[Source, Source | None]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(data)) if isinstance(data, Path) else datasets.load_dataset(data)
    except Exception as error:  # whatever the Hub, the disk or a builder raises, the user needs the same three facts
        raise DataError(
            f"No data at {str(data)!r}: it is neither a folder here nor a data set that `datasets` can load "
            f"({type(error).__name__}: {error}). Check the path, or the name and the connection."
        ) from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if "train" not in splits:
        raise DataError(f"{data} has no split 'train', only {', '.join(splits)}.")
    validation = next((name for name in (*VALIDATION_NAMES, "test") if name in splits), None)
    train = _dataset_source(splits["train"], f"{data} (train)")
    if validation is None or validation == "test" and _is_unlabelled(splits[validation]):
        return train, None
    held_out = _dataset_source(splits[validation], f"{data} ({validation})")
    if held_out.class_names != train.class_names:
        raise DataError(
            f"{held_out.name} has the classes {', '.join(held_out.class_names)}, {train.name} "
            f"{', '.join(train.class_names)}: both need the same names in the same order (dataset.cast_column)."
        )
    return train, held_out


def _is_unlabelled(dataset: Any) -> bool:
    """Whether a test split withholds its labels, as those of competitions do."""
    import datasets

    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    return any(set(dataset[name]) <= {-1, None} for name in columns)


def _dataset_source(dataset: Any, name: str) -> Source:
    import datasets

    columns = {}
    for kind in (datasets.Image, datasets.ClassLabel):
        found = [column for column, feature in dataset.features.items() if isinstance(feature, kind)]
        if len(found) != 1:
            raise DataError(
                f"{name} needs exactly one {kind.__name__} column and has {len(found)} ({', '.join(found) or 'none'}); its "
                f"columns: {', '.join(f'{c}: {type(f).__name__}' for c, f in dataset.features.items())}."
            )
        columns[kind] = found[0]
    labels = list(dataset[columns[datasets.ClassLabel]])
    if None in labels or -1 in labels:
        raise DataError(f"{name} has images without a label (-1 or null): choose a labelled split.")
    items = dataset.select_columns([columns[datasets.Image]]).cast_column(
        columns[datasets.Image], datasets.Image(decode=False)
    )
    class_names = tuple(dataset.features[columns[datasets.ClassLabel]].names)
    return Source(_ImageColumn(items, columns[datasets.Image]), labels, class_names, dataset._fingerprint, name)


@dataclass(frozen=True)
class _ImageColumn:
    """The undecoded image column of a `datasets` data set as a sequence."""

    dataset: Any
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index][self.column]

    def select(self, indices: list[int]) -> "_ImageColumn":
        return _ImageColumn(self.dataset.select(indices), self.column)
