"""Whether something can be written where it is asked for, told before the work is done.

What is written, and how it appears whole or not at all, is the business of checkpointing.py and of those who write.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


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
            f"{path} cannot be made: {there} may not be written to. Give another place, or mend its permissions."
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
