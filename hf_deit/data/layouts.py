"""Names of splits, and the layouts of folders: which folders and which files hold which split.

This module knows how people name splits (`split_of`, `split_names`) and finds folders and files. It reads no image and no
table: loading.py decides between folders and tables, table_files.py opens tables, and images.py recognises images.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, listed
from .images import has_image_extension, is_image_file, is_unsupported_image, kind_of_file

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
# If the data has several validation splits with these exact names, the first of them is used.
VALIDATION_NAMES = ("validation", "val", "valid", "dev")
_EXACT_NAMES = {TRAIN: ("train",), VALIDATION: VALIDATION_NAMES, TEST: ("test",)}
# Values of train_split and validation_split with a meaning of their own.
WHOLE_FOLDER, NO_SPLIT = ".", "none"

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development", "eval", "evaluation"),
        VALIDATION,
    ),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
# Words that may surround the word of a split, as in "seg_train", "train_set", "images_train" and "train-labels".
_NEUTRAL_WORDS = frozenset(
    [
        "set",
        "sets",
        "split",
        "splits",
        "data",
        "dataset",
        "datasets",
        "image",
        "images",
        "img",
        "imgs",
        "pic",
        "pics",
        "picture",
        "pictures",
        "photo",
        "photos",
        "seg",
        "segmented",
        "crop",
        "crops",
        "cropped",
        "resized",
        "raw",
        "original",
        "orig",
        "augmented",
        "aug",
        "jpg",
        "jpeg",
        "png",
        "folder",
        "folders",
        "dir",
        "file",
        "files",
        "part",
        "parts",
        "subset",
        "partition",
        "sample",
        "samples",
        "label",
        "labels",
        "labeled",
        "labelled",
        "annotation",
        "annotations",
        "list",
        "metadata",
        "meta",
        "df",
        "csv",
        "info",
        "public",
        "private",
        "final",
        "official",
        "full",
        "all",
        "the",
        "of",
        "for",
        "class",
        "classes",
        "classification",
        "shard",
        "shards",
        "new",
        "my",
        "x",
    ]
)
_NEUTRAL = "|".join(sorted(_NEUTRAL_WORDS, key=len, reverse=True))
_COMPACT = re.compile(rf"(?:{_NEUTRAL})?({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?:{_NEUTRAL})?")
_PART = re.compile(r"(?:fold|part|shard|batch|split|set|chunk|group|k)?[\W_]*\d+", re.IGNORECASE)
# Folders that systems and programs make.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
# Builder of `datasets` for each extension of a table.
BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
# Kind of the files that are left out without a remark on their format.
HIDDEN = "hidden files and folders of the system"
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Selection:
    """Which part of the data is used, where the names in the data do not show it.

    Args:
        config: Configuration of a data set on the Hub. None for the default configuration.
        revision: Branch, tag or commit of a data set on the Hub. None for the main branch.
        split_column: Column that names the split of each row. None to find it by usual names. "none" to use no column.
        train_split: Name of the training split in the data: of a folder, a table, a split of a data set, or a value of the
            split column. None to find it by usual names. ".": the folder itself holds the class folders of the training
            images.
        validation_split: Name of the validation split, likewise. "none": split off a validation share.
    """

    config: str | None = None
    revision: str | None = None
    split_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None


# ---- names of splits ----


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: "trainSet_2017" has the words train and set. Numbers are left out."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]


def _split_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that a name contains, or None, and its words that say nothing about splits."""
    found, rest = [], []
    for word in _words(name):
        compact = _COMPACT.fullmatch(word)
        if compact is not None:
            found.append(_SPLIT_WORDS[compact[1]])
        elif word not in _NEUTRAL_WORDS:
            rest.append(word)
    kinds = set(found)
    if len(kinds) == 1:
        return found[0], tuple(rest)
    if kinds == {TRAIN, VALIDATION}:  # "train_val": both are training images, beside a test split
        return TRAIN, tuple(rest)
    return (TEST if kinds == {VALIDATION, TEST} else None), tuple(rest)


def split_of(name: str) -> str | None:
    """Return the split that a name stands for: "train", "validation" or "test", or None if it stands for no split.

    Upper and lower case do not matter. Words such as "set" and "images", and numbers, may surround the name of the split:
    `Training`, `seg_train`, `train_set`, `testSet`, `images_val`, `train2017`.
    """
    split, rest = _split_and_rest(name)
    return None if rest else split


def is_neutral(name: str) -> bool:
    """Return whether a name says only that there are images or files, as "images" and "photos_resized" do."""
    words = _words(name)
    return bool(words) and all(word in _NEUTRAL_WORDS for word in words)


def split_names(names: Iterable[str], where: str = "The data") -> dict[str, str]:
    """Return the names that stand for splits, with the split of each.

    In addition to the names of `split_of`, names with one common word are recognised, such as `pets_train` and `pets_test`.

    Args:
        names: Names of folders, or of splits.
        where: What has these names, for messages.

    Raises:
        DataError: Names contain words for splits, and it is unclear whether they are splits or classes.
    """
    names = list(names)
    found = {name: split for name in names if (split := split_of(name)) is not None}
    if found:
        return found
    families: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        split, rest = _split_and_rest(name)
        if split is not None:
            families[rest][name] = split
    families = {rest: family for rest, family in families.items() if len(set(family.values())) > 1}
    if not families:
        return {}
    members = [name for family in families.values() for name in family]
    if len(families) > 1 or len(members) < len(names):
        raise DataError(
            f"{where} has the names {listed(members)}, which look like splits"
            + (f", beside {listed([n for n in names if n not in members])}. " if len(members) < len(names) else ". ")
            + "It is unclear whether they are splits or classes. Arrange the images as train/CLASS/… and validation/CLASS/…, or, "
            f"if all of them are classes, set train_split: {WHOLE_FOLDER!r}."
        )
    return next(iter(families.values()))


def choose(names: Mapping[str, str], split: str, where: str, field_name: str | None = None) -> str | None:
    """Return the name of one split, or None if no name stands for it.

    Args:
        names: Names in the data, with the split of each.
        split: "train", "validation" or "test".
        where: What has these names, for messages.
        field_name: Field that can name the split, for messages. None if there is no such field.

    Raises:
        DataError: Several names stand for the split, and none of them is one of the exact names `train`, `validation`,
            `val`, `valid`, `dev` and `test`.
    """
    candidates = [name for name, kind in names.items() if kind == split]
    exact = next((name for name in _EXACT_NAMES[split] if name in candidates), None)
    if exact is not None or len(candidates) < 2:
        return exact or next(iter(candidates), None)
    remedy = f"set {field_name} to one of them" if field_name else f"give one of them the name {split!r}"
    raise DataError(f"{where} has several {split} splits: {listed(candidates)}. Combine them, or {remedy}.")


def chosen_splits(names: Iterable[str], selection: Selection, where: str) -> dict[str, str]:
    """Return the name in the data of each split that is used, by "train", "validation" and "test".

    Args:
        names: Names of the splits in the data.
        selection: Names that the user gave.
        where: What has these splits, for messages.

    Raises:
        DataError: A given name does not exist, or several names stand for one split.
    """
    names = list(names)
    given = {TRAIN: selection.train_split, VALIDATION: selection.validation_split}
    given = {split: name for split, name in given.items() if name is not None}
    for split, name in given.items():
        if name not in names and name != NO_SPLIT:
            raise DataError(
                f"{split}_split={name!r}: {where} has no such split. Its splits are {listed(names) or 'none'}."
            )
    if len(set(given.values()) & set(names)) < len([name for name in given.values() if name in names]):
        raise DataError(
            f"train_split={selection.train_split!r} and validation_split={selection.validation_split!r} are the same split "
            f"of {where}: give two different splits."
        )
    by_name = {name: split for name, split in split_names(names, where).items() if name not in given.values()}
    chosen = {
        split: given.get(split) or choose(by_name, split, where, None if split == TEST else f"{split}_split")
        for split in SPLITS
    }
    return {split: name for split, name in chosen.items() if name is not None and name != NO_SPLIT}


# ---- folders ----


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_loop(folder: Path) -> bool:
    """Return whether a folder is a link to a folder that contains it."""
    return folder.is_symlink() and folder.resolve() in folder.parent.resolve().joinpath("x").parents


def subfolders(path: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, except hidden folders, folders of the system and loops.

    A folder without permission has none; `list_files` records it.
    """
    try:
        entries = list(path.iterdir())
    except PermissionError:
        return []
    return sorted(
        entry.name
        for entry in entries
        if entry.is_dir()
        and not entry.name.startswith(".")
        and entry.name not in SYSTEM_FOLDERS
        and not _is_loop(entry)
    )


@dataclass
class Listing:
    """Files of a folder and of the folders in it.

    Args:
        files: Files in sorted order. Files behind links to folders are included.
        skipped: What was not followed or not opened, by kind.
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, kind: str, path: str | Path) -> None:
        """Record a path that is left out."""
        self.skipped.setdefault(kind, []).append(str(path))


@dataclass
class ImageFiles:
    """The image files of one or more folders, and what was left out.

    Args:
        images: Paths of the image files.
        skipped: Paths that were left out, by kind.
        recognised: Number of images that were recognised by their content, by kind of file.
        unsupported: Image files that Pillow does not read, each with the reason.
    """

    images: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    recognised: Counter[str] = field(default_factory=Counter)
    unsupported: list[str] = field(default_factory=list)

    def add(self, listing: Listing) -> int:
        """Add the files of a listing, and return the number of image files among them."""
        before = len(self.images)
        for kind, paths in listing.skipped.items():
            self.skipped.setdefault(kind, []).extend(paths)
        for file in listing.files:
            if is_image_file(file):
                self.images.append(str(file))
                if not has_image_extension(file):
                    self.recognised[kind_of_file(file)] += 1
                continue
            self.skipped.setdefault(kind_of_file(file), []).append(str(file))
            if is_unsupported_image(file):
                self.unsupported.append(f"{file}: Pillow does not read files of this format")
        return len(self.images) - before


def list_files(folder: Path) -> Listing:
    """List the files of a folder and its subfolders. Links are followed, except loops.

    Hidden files and folders, folders of the system, loops, broken links and folders without permission are left out and
    recorded.
    """
    listing = Listing()
    # A link to any folder above this one is a loop, too.
    above = {_identity(parent) for place in (folder.absolute(), folder.resolve()) for parent in (place, *place.parents)}
    _list_into(listing, folder, frozenset(above))
    listing.files.sort()
    return listing


def _list_into(listing: Listing, folder: Path, ancestors: frozenset[tuple[int, int]]) -> None:
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        listing.skip("folders that cannot be opened (no permission)", folder)
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
            listing.skip(HIDDEN, path)
        elif entry.is_dir():
            identity = _identity(path)
            if identity in ancestors:
                listing.skip("links to a folder that contains them (loops)", path)
            else:
                _list_into(listing, path, ancestors | {identity})
        elif entry.is_file():
            listing.files.append(path)
        elif entry.is_symlink():
            listing.skip("broken links", path)


def _holds_files(folder: Path) -> bool:
    return any(entry.is_file() and not entry.name.startswith(".") for entry in folder.iterdir())


def content_root(path: Path) -> Path:
    """Return the folder that holds the folders of splits: the folder itself, or one within folders that hold nothing else.

    Archives are often unpacked into one more folder, as in `photos/photos/train`.
    """
    names = subfolders(path)
    files = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    if len(names) != 1 or split_of(names[0]) is not None or any(is_table(f) or is_image_file(f) for f in files):
        return path
    inner = path / names[0]
    if split_names(subfolders(inner), str(inner)):
        return inner
    deeper = content_root(inner)
    return path if deeper == inner else deeper


def split_root(folder: Path) -> Path:
    """Return the folder of a split, or the only folder in it if its name stands for the same split.

    Archives are often unpacked into one more folder, as in `seg_train/seg_train/CLASS`.
    """
    names = subfolders(folder)
    if len(names) != 1 or _holds_files(folder):
        return folder
    inner, split = folder / names[0], split_of(folder.name)
    same = inner.name == folder.name or (split is not None and split_of(inner.name) == split)
    return inner if same and (subfolders(inner) or other_tables(inner)) else folder


def check_not_parts(path: Path, class_names: Sequence[str]) -> None:
    """Check that class folders are not parts of a data set, each of which holds the same class folders.

    If the folders hold the same folders but have names of their own, such as those of patients, a warning is logged.

    Raises:
        DataError: The folders have names such as `fold1` and `part_2`, and the same folders in them.
    """
    if len(class_names) < 2:
        return
    inside = {tuple(subfolders(path / name)) for name in class_names}
    if len(inside) != 1 or len(next(iter(inside))) < 2:
        return
    if not all(_PART.fullmatch(name) for name in class_names):
        logger.warning(
            "%s: the classes are the folders %s. Each of them has the folders %s. If those inner folders are the classes, "
            "combine the folders of each class in one folder, or name the outer folders train, validation and test.",
            path,
            listed(class_names),
            listed(next(iter(inside))),
        )
    else:
        raise DataError(
            f"{path} holds the folders {listed(class_names)}, which look like parts of the data: each of them has the folders "
            f"{listed(next(iter(inside)))}. Combine the class folders of all parts in one folder. If the parts are the "
            f"classes, set train_split: {WHOLE_FOLDER!r}."
        )


def inverted_splits(path: Path, class_names: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return the splits of a folder `CLASS/train/…`, `CLASS/test/…`: for each split, the folder of each class.

    The result is empty if the class folders hold no folders of splits.

    Raises:
        DataError: Some class folders hold folders of several splits, and others do not, or they hold other files too.
    """
    inside = {name: subfolders(path / name) for name in class_names}
    splits = {name: split_names(folders, str(path / name)) for name, folders in inside.items()}
    several = [name for name in class_names if len(set(splits[name].values())) > 1]
    if not several:
        return {}
    if all(map(is_neutral, class_names)):
        raise DataError(
            f"{path} holds the folders {listed(class_names)}, which are not classes, and folders of splits in them, as data sets for "
            "detection and segmentation do. Arrange the images as train/CLASS/… and validation/CLASS/…."
        )
    plain = [name for name in class_names if len(splits[name]) < len(inside[name]) or not splits[name]]
    plain += [name for name in class_names if name not in plain and _holds_files(path / name)]
    repeated = [name for name in several if max(Counter(splits[name].values()).values()) > 1]
    if plain or repeated:
        raise DataError(
            f"{path / several[0]} holds the folders {listed(splits[several[0]])}, which look like splits, but "
            f"{path / (plain or repeated)[0]} has another layout. Arrange the images as train/CLASS/… and validation/CLASS/…."
        )
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for name in class_names:
        for folder, split in splits[name].items():
            found[split][name] = path / name / folder
    return dict(found)


# ---- tables in folders ----


def is_table(path: Path) -> bool:
    """Return whether the extension of a file is that of a table."""
    return path.suffix.lower() in BUILDERS and path.is_file() and not path.name.startswith(".")


def split_tables(path: Path) -> dict[str, list[str]]:
    """Return the table files of each split, in a folder or in its subfolder `data`.

    A file such as train.csv or train-0.parquet belongs to the split `train`. Other names of splits are recognised too,
    such as Training.csv and train_labels.csv; they get the name "train", "validation" or "test".

    Raises:
        DataError: Several tables of different names stand for the same split.
    """
    first: dict[str, list[str]] = {}
    for folder in (path, path / "data"):
        entries = [entry for entry in sorted(folder.iterdir()) if is_table(entry)] if folder.is_dir() else []
        files: dict[str, list[str]] = {}
        others: dict[str, list[Path]] = {}
        for entry in entries:
            split = entry.stem.split("-")[0]
            if split in (TRAIN, *VALIDATION_NAMES, TEST):
                files.setdefault(split, []).append(str(entry))
            elif (kind := split_of(entry.stem)) is not None:
                others.setdefault(kind, []).append(entry)
        for kind, found in others.items():
            if any(split_of(name) == kind for name in files):
                continue
            if len({re.sub(r"\d+", "", entry.name) for entry in found}) > 1:
                raise DataError(
                    f"{folder} has several tables that stand for the split {kind!r}: {listed(e.name for e in found)}. Give the "
                    f"name {kind}{found[0].suffix} to the one that lists the images and labels."
                )
            files[kind] = [str(entry) for entry in found]
        if TRAIN in files:
            return files
        first = first or files
    return first


def other_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder that list its images, as far as their names show it.

    These are the metadata files of an image folder of `datasets`, in the folder or else in its subfolders. Without such
    files, it is the only other table in the folder whose name names no split.
    """
    if not folder.is_dir():
        return []
    for pattern in ("", "*", "*/*"):
        found = [file for place in sorted(folder.glob(pattern) if pattern else [folder]) for file in _metadata(place)]
        if found:
            return found
    tables = [entry for entry in sorted(folder.iterdir()) if is_table(entry)]
    return [entry for entry in tables if "submission" not in entry.stem.lower() and entry.name != "dataset_info.json"]


def _metadata(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.name.startswith("."):
        return []
    return [folder / name for name in METADATA_FILES if os.path.isfile(folder / name)][:1]
