"""Keeps two builds from one file of a teacher cache: a lock that a process holds while it writes, and loses when it dies.

What is written meanwhile is in cache_writing.py. Where the system or the file system knows no locks there are none.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .teacher_cache import TeacherCacheError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# A killed build's data workers live a few seconds longer, and with them its lock.
_PATIENCE_SECONDS = 12.0
_SECONDS_BETWEEN_TRIES = 0.05


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds a lock, as a file that is there only meanwhile (or after a kill, and then means nothing).

    Args:
        path: The file; its folder exists.
        what: Is written meanwhile, for the message.

    Raises:
        TeacherCacheError: Another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = _acquired(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # first, so that nobody takes a file that is about to go
        os.close(descriptor)


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Waits for this process's turn in a folder, for something that takes a moment; leaves no file."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquired(path: Path, what: str) -> int:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            if _is_alive(holder) or time.monotonic() > deadline:
                raise TeacherCacheError(_message(path, what, holder)) from None
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        except OSError:
            pass  # a file system without locks
        if _is_there(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)  # its holder has removed it meanwhile


def _is_alive(holder: str) -> bool:
    """Whether a process of this machine is there; what another machine's holder is called tells nothing."""
    if not holder.isdigit():
        return False
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _message(path: Path, what: str, holder: str) -> str:
    who = f"process {holder}" if holder else "another process"
    return (
        f"{who} is writing {what} of {path.parent} now: wait for it, stop it, or build other epochs of views in another --out "
        "(--first_view, --views) and bring them together (hf-deit merge-teacher-caches)."
    )
