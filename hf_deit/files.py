"""Files: written under a temporary name and renamed, paths checked before the work is done, YAML read."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

# The underscore keeps it out of the Trainer's uploads, which leave out "_*".
STAGING_PREFIX = "_incomplete-"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    temporary = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")  # its own: two may write
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    """Makes sure that what was written survives a power cut, before a rename says it is there."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_folder(staging: Path, target: Path) -> None:
    """Renames a finished folder to its name; what stood there before goes once the new one is in place."""
    _sync(staging)
    old = target.with_name(f"{STAGING_PREFIX}old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def staged_files(target: Path) -> Iterator[Path]:
    """Gives an empty folder; at the end its files replace their namesakes in `target`, each in one step.

    The folder is the caller's own: others may write into `target` at the same time, and what a killed one left is removed by
    `remove_staging`, by a run whose folder it is.
    """
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{STAGING_PREFIX}save-", dir=target))
    try:
        yield staging
        _sync(staging)
        for path in sorted(staging.iterdir()):
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder that takes the place of `target`, which is new or empty, at the end, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{STAGING_PREFIX}{target.name}-", dir=target.parent))
    staging = aside / target.name
    staging.mkdir()  # with the usual permissions, which a folder of tempfile's has not
    try:
        yield staging
        publish_folder(staging, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes the last of several values of one key, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parsed_yaml(path: Path, error: type[UserError]) -> Any:
    """Gives what a YAML file holds.

    Args:
        path: Of the file.
        error: What to raise.

    Raises:
        UserError: It cannot be read, is not valid YAML, or gives one key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}.") from reason
    except (yaml.YAMLError, ValueError) as reason:  # PyYAML's own of a date that is none
        raise error(f"{path} is not valid YAML: {reason}") from reason


def check_place(path: str | Path, error: type[UserError] = UserError) -> None:
    """Checks that a file or a folder can be made at a path; nothing is made.

    Args:
        path: Of what is to be made.
        error: What to raise.

    Raises:
        UserError: The folder it would be in is a file, or may not be written to.
    """
    _check_holder(path, Path(path).absolute().parents, error)


def _check_holder(path: str | Path, folders: Sequence[Path], error: type[UserError]) -> None:
    """Checks that something can be made in the first of these folders that is there."""
    there = next(folder for folder in folders if os.path.lexists(folder))
    if not there.is_dir():
        raise error(
            f"{path} cannot be made: {there} is {'a file' if there.is_file() else 'no folder'}. Give another place."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise error(
            f"{path} cannot be made: {there} may not be written to. Give another place, or correct its permissions."
        )


def check_folder(path: str | Path, error: type[UserError] = UserError) -> None:
    """Checks that files can be written into a folder, which is there or can be made; nothing is made.

    Args:
        path: Of the folder.
        error: What to raise.

    Raises:
        UserError: It is a file, or may not be written to, or cannot be made.
    """
    absolute = Path(path).absolute()
    _check_holder(path, (absolute, *absolute.parents), error)


def new_folder(path: str | Path, error: type[UserError] = UserError) -> Path:
    """Gives the folder, its links followed, that is to be written at a path: one that is not there yet, or is empty.

    Raises:
        UserError: A file or a folder in use is there, or none can be made.
    """
    folder = Path(path).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise error(
            f"{path} is there already and {'not empty' if folder.is_dir() else 'is a file'}: give a new or an empty folder."
        )
    if os.path.ismount(folder):
        raise error(f"{path} is a mount point, which cannot be replaced in one step: give a new folder in it.")
    check_place(folder, error)
    return folder
