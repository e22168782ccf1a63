"""Functions that write files and folders safely, check output paths before long work, and read YAML.

Files are written under a temporary name and then renamed, so that a reader never sees a file that is only partly
written.
"""

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

# The underscore keeps these files out of the uploads of the Trainer, which ignore "_*".
STAGING_PREFIX = "_incomplete-"


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename the file to `path`."""
    # The temporary name is unique, because two processes may write at the same time.
    temporary = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    """Flush the files of a folder to the disk, so that they survive a power cut before a rename makes them visible."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_folder(staging: Path, target: Path) -> None:
    """Rename a finished folder to `target`. A previous folder of that name is deleted once the new one is in place."""
    _sync(staging)
    old = target.with_name(f"{STAGING_PREFIX}old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def staged_files(target: Path) -> Iterator[Path]:
    """Yield an empty folder. When the block ends, each of its files replaces the file of that name in `target`.

    Each file is replaced in one step. The folder is unique to the caller, so other processes may write into `target` at
    the same time. If the process is killed, the folder is left behind; `trainer.checkpoints.remove_staging` deletes it
    when a run starts in `target`.
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
    """Yield an empty folder. When the block ends, it becomes `target`, which must be new or empty, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{STAGING_PREFIX}{target.name}-", dir=target.parent))
    staging = aside / target.name
    staging.mkdir()  # mkdir sets the usual permissions; mkdtemp does not
    try:
        yield staging
        publish_folder(staging, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys. PyYAML itself would silently use the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parsed_yaml(path: Path, error: type[UserError]) -> Any:
    """Return the content of a YAML file.

    Args:
        path: Path of the file.
        error: Class of the error to raise.

    Raises:
        UserError: The file cannot be read, is not valid YAML, or contains a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}.") from reason
    except (yaml.YAMLError, ValueError) as reason:  # PyYAML raises ValueError for an invalid date
        raise error(f"{path} is not valid YAML: {reason}") from reason


def check_place(path: str | Path, error: type[UserError] = UserError) -> None:
    """Check that a file or folder can be created at a path. Nothing is created.

    Args:
        path: Path of the file or folder to create.
        error: Class of the error to raise.

    Raises:
        UserError: The nearest existing parent of `path` is not a folder or is not writable.
    """
    _check_holder(path, Path(path).absolute().parents, error)


def _check_holder(path: str | Path, folders: Sequence[Path], error: type[UserError]) -> None:
    """Check that files can be created in the first of these folders that exists."""
    there = next(folder for folder in folders if os.path.lexists(folder))
    if not there.is_dir():
        raise error(
            f"{path} cannot be created: {there} is {'a file, not' if there.is_file() else 'not'} a folder. "
            "Choose another path."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise error(
            f"{path} cannot be created: {there} is not writable. Choose another path, or change its permissions."
        )


def check_folder(path: str | Path, error: type[UserError] = UserError) -> None:
    """Check that files can be written into a folder that exists or can be created. Nothing is created.

    Args:
        path: Path of the folder.
        error: Class of the error to raise.

    Raises:
        UserError: `path`, or its nearest existing parent, is not a folder or is not writable.
    """
    absolute = Path(path).absolute()
    _check_holder(path, (absolute, *absolute.parents), error)


def new_folder(path: str | Path, error: type[UserError] = UserError) -> Path:
    """Check that a new folder can be written at a path, and return the path with its symbolic links resolved.

    The folder must not exist yet, or it must be empty.

    Raises:
        UserError: The path is a file, a folder that is not empty, or a mount point, or no folder can be created there.
    """
    folder = Path(path).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise error(
            f"{path} already exists and is {'not empty' if folder.is_dir() else 'a file'}. Choose a new or an empty "
            "folder."
        )
    if os.path.ismount(folder):
        raise error(f"{path} is a mount point, which cannot be replaced in one step. Choose a new folder inside it.")
    check_place(folder, error)
    return folder
