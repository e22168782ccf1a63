"""Writing and merging of teacher caches, safe against kills and full disks.

If a build is killed or the disk is full, only the records since the last progress file are lost. While an epoch of
views is built, its records are written to their final places in a preallocated file, `_incomplete-epoch-00001.npy`. The
file `_incomplete-epoch-00001.progress.json` next to it holds the number of complete batches. It is written after the
records of these batches have reached the disk, and a later build resumes after these batches. When all batches are
complete, the file gets its final name, and the sidecar is written last. A finished file therefore does not depend on
whether builds were killed, and every record is written once.

This module also merges caches that were built in several folders. It uses `filelock` to keep two processes from writing
the same file. `cache.py` describes the files, and `cache_builder.py` computes the records.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ..errors import TeacherCacheError
from ..files import STAGING_PREFIX
from ..fingerprints import changed_fields, differences, digest_of, file_digest
from .cache import (
    CACHE_AND_NOW,
    MANIFEST_FILE,
    OUTPUTS,
    VALIDATION,
    RecordFormat,
    cache_id,
    checked_sidecar,
    damaged,
    description_of,
    epoch_name,
    file_name,
    files_of,
    finished_epochs,
    is_finished,
    missing_epochs,
    read_json,
    read_manifest,
)

logger = logging.getLogger(__name__)

# Approximate number of records between two writes of the progress, and so the maximum that a killed build computes
# again. The records are held in memory until they are written, so `_PART_BYTES` limits the number of large ones.
PART_RECORDS = 8192
_PART_BYTES = 2**26
# The data workers of a killed build live a few seconds longer than the build and may hold its lock.
LOCK_TIMEOUT_SECONDS = 12.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Raised on file systems that cannot lock files, such as some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_NOT_PREALLOCATED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Folder in which older versions stored the parts of unfinished epochs.
_OLD_PARTS_FOLDER = "incomplete"

Batches = Sequence[Sequence[int]]
Records = Mapping[str, np.ndarray]


def _sync_folder(folder: Path) -> None:
    """Sync the renames in a folder to the disk. Do nothing on Windows, where a folder cannot be opened for this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON and its checksum to a temporary file, sync the file, and give it its final name."""
    content = json.loads(json.dumps(content, default=str))
    text = json.dumps({**content, "checksum": digest_of(content)}, indent=1, sort_keys=True)
    temporary = path.with_name(f"{STAGING_PREFIX}{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(f"{text}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _header(dtype: np.dtype, count: int) -> bytes:
    """Return the header of a NumPy file of `count` entries."""
    empty, header = np.zeros(0, dtype), io.BytesIO()
    fields = {**np.lib.format.header_data_from_array_1_0(empty), "shape": (count, *empty.shape[1:])}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _preallocate(path: Path, header: bytes, size: int) -> None:
    """Create a file of `size` bytes that begins with `header`. Reserve its disk space if the system supports this."""
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # macOS, Windows
            file.truncate(size)
        except OSError as error:
            if error.errno not in _NOT_PREALLOCATED:
                raise
            file.truncate(size)


def _write_entries(path: Path, start: int, places: np.ndarray, entries: np.ndarray) -> None:
    """Write entries of an array to their places in its file and sync the file.

    The function does not write to a memory map, because a full disk would not raise an OSError there.

    Args:
        path: File of the array.
        start: Number of bytes before the first entry.
        places: Place of each entry in ascending order, `(count,)`.
        entries: Entries to write, `(count, …)`.
    """
    ends = np.append(np.flatnonzero(np.diff(places) != 1) + 1, len(places)).tolist()
    size = entries.nbytes // len(entries)
    with path.open("r+b") as file:
        first = 0
        for end in ends:  # entries at consecutive places are written with one call
            file.seek(start + int(places[first]) * size)
            file.write(entries[first:end].tobytes())
            first = end
        file.flush()
        os.fsync(file.fileno())


class _Unfinished:
    """The preallocated files of an unfinished epoch of views, and the number of its complete batches."""

    def __init__(self, folder: Path, name: str, record_format: RecordFormat, batches: Batches, identity: str):
        self.folder, self.name = folder, name
        self.arrays = record_format.arrays_of(name)
        count = sum(map(len, batches))
        self.headers = {array: _header(dtype, count) for array, dtype in self.arrays.items()}
        self.sizes = {array: len(self.headers[array]) + count * dtype.itemsize for array, dtype in self.arrays.items()}
        order = np.concatenate([np.asarray([len(batches), *map(len, batches)]), *batches], dtype=np.int64)
        self.plan = hashlib.sha256(identity.encode() + order.tobytes()).hexdigest()
        self.total = len(batches)
        self.progress = folder / f"{STAGING_PREFIX}{name}.progress.json"
        self.done = 0

    def path(self, array: str) -> Path:
        """Return the path of the unfinished file of an array."""
        return self.folder / f"{STAGING_PREFIX}{file_name(self.name, array)}"

    def open(self) -> None:
        """Find the progress of an earlier build; if there is none, preallocate the files."""
        self.done = self._recorded()
        if self.done:
            return
        if self.progress.exists():
            self.progress.unlink()
            _sync_folder(self.folder)  # the progress must be gone before the files that it describes are overwritten
        for array in self.arrays:
            _preallocate(self.path(array), self.headers[array], self.sizes[array])

    def _recorded(self) -> int:
        """Return the number of complete batches of an earlier build with the same batches, or 0 if there is none."""
        try:
            content = read_json(self.progress)
        except TeacherCacheError:
            return 0
        if content["plan"] != self.plan:
            logger.warning(
                "%s: an earlier build of %s had another batch size or another order of the images, so its %d complete "
                "batch(es) are computed again.",
                self.folder,
                self.name,
                content["batches"],
            )
            return 0
        # If the build was killed between the last batch and the sidecar, an array may already have its final name.
        has_all_batches = content["batches"] == self.total
        found = (
            self._fits(array, self.path(array)) or (has_all_batches and self._fits(array, self._final(array)))
            for array in self.arrays
        )
        return content["batches"] if all(found) else 0

    def _final(self, array: str) -> Path:
        return self.folder / file_name(self.name, array)

    def _fits(self, array: str, path: Path) -> bool:
        header = self.headers[array]
        if not path.is_file() or path.stat().st_size != self.sizes[array]:
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header

    def write(self, batches: Batches, records: Sequence[Records]) -> None:
        """Write the records of the next batches. Write the progress after the records have reached the disk."""
        places = np.concatenate([np.asarray(batch) for batch in batches])
        order = np.argsort(places)
        for array, dtype in self.arrays.items():
            entries = np.zeros(len(places), dtype)
            np.concatenate([part[array] for part in records], out=entries, casting="equiv")
            _write_entries(self.path(array), len(self.headers[array]), places[order], entries[order])
        _write_json(self.progress, {"plan": self.plan, "batches": self.done + len(batches)})
        self.done += len(batches)

    def publish(self, identity: str) -> None:
        """Give the complete files their final names and write the sidecar."""
        stated = {}
        for array in self.arrays:
            if self.path(array).exists():
                os.replace(self.path(array), self._final(array))
            stated[array] = {"bytes": self.sizes[array], "sha256": file_digest(self._final(array))}
        _sync_folder(self.folder)
        sidecar = {"cache": identity, "name": self.name, **stated.pop(OUTPUTS)}
        _write_json(self.folder / f"{self.name}.json", {**sidecar, "arrays": stated} if stated else sidecar)

    def discard_unless_begun(self) -> None:
        """Remove the files if they hold no complete batch, so that they do not take up disk space."""
        if not self.done:
            for array in self.arrays:
                self.path(array).unlink(missing_ok=True)


class CacheWriter:
    """Writer of the outputs of one teacher for one set of views to a folder.

    Args:
        folder: New or empty folder, or a folder of the same cache. In a folder of the same cache, the build is resumed
            or epochs of views are added.
        manifest: Manifest of the cache, see `cache.py`.
        part_records: Approximate number of records between two writes of the progress.

    Raises:
        TeacherCacheError: If the folder holds another cache or other files, cannot be written, or the disk is full.
    """

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], part_records: int = PART_RECORDS):
        self.folder = Path(folder)
        self.manifest = dict(manifest)
        self.record_format = RecordFormat.from_manifest(manifest["layout"])
        self.part_records = part_records
        self._id = cache_id(manifest)
        check_cache_folder(folder)
        path = self.folder / MANIFEST_FILE
        if path.exists() and not self._lock_file("manifest").exists():
            self.manifest = self._same_manifest()
            return
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock("manifest"):
                if path.exists():  # another process that started at the same time has written it
                    self.manifest = self._same_manifest()
                else:
                    _write_json(path, self.manifest)

    def _same_manifest(self) -> dict[str, Any]:
        stored = read_manifest(self.folder)
        changed = changed_fields(description_of(stored), description_of(self.manifest))
        if changed:
            raise TeacherCacheError(
                f"{self.folder} holds another cache:\n{differences(changed, *CACHE_AND_NOW)}\nTo resume or extend "
                "that cache, set these fields to the values in the cache. Otherwise choose another folder for --out."
            )
        return stored

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Convert an OSError to a TeacherCacheError that names the folder, the cause and a solution."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise _not_writable(self.folder, error) from error
            finished = finished_epochs(self.folder)
            missing = missing_epochs(finished)
            count = missing[0] if missing else len(finished)  # only epochs before the first missing one can be used
            usable = (
                f" The first {count} epoch(s) of views in it are complete and can be used (num_views={count})."
                if count
                else ""
            )
            raise TeacherCacheError(
                f"No space left for {self.folder} ({error.strerror}).{usable} Free some disk space and run the same "
                "command again: the build resumes where it stopped."
            ) from error

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Keep other processes from writing the same file.

        The lock file is removed at the end; it remains only if the process is killed.

        Raises:
            TeacherCacheError: If another process holds the lock.
        """
        path = self._lock_file(name)
        with self._disk_errors():
            lock = _acquire(path, f"{name} of {self.folder}")
        try:
            yield
        finally:
            # A process that waits for the removed file notices this and starts over. The file of a SoftFileLock is the
            # lock itself, and `release` removes it.
            if not isinstance(lock, filelock.SoftFileLock):
                with contextlib.suppress(OSError):  # Windows cannot remove the open file; there the lock removes it
                    path.unlink(missing_ok=True)
            lock.release()

    def _lock_file(self, name: str) -> Path:
        return self.folder / f"{STAGING_PREFIX}{name}.lock"

    def reserved_bytes(self, name: str) -> int:
        """Return the disk space in bytes that an unfinished build of an epoch of views has already taken."""
        files = self.folder.glob(f"{STAGING_PREFIX}{name}*.npy")
        # A sparse file takes less than its size; Windows does not tell.
        return sum(min(file.stat().st_size, 512 * getattr(file.stat(), "st_blocks", 0)) for file in files)

    def add_to_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest that do not identify the cache, such as the teacher's accuracy."""
        path = self.folder / MANIFEST_FILE
        with self._disk_errors(), self._lock("manifest"):
            self.manifest = read_manifest(self.folder) | facts
            _write_json(path, self.manifest)

    def fill(self, name: str, batches: Batches, outputs_of: Callable[[Batches], Iterable[Records]]) -> int:
        """Compute and write the records of an epoch of views, or of the validation images, unless they are complete.

        Args:
            name: Name of the epoch of views (`epoch_name`), or `VALIDATION`.
            batches: Place of every record in the file, each exactly once, in the order in which the records are
                computed.
            outputs_of: Function that takes some of the batches and yields the records (`RecordFormat.encode`) of each.

        Returns:
            Number of records that were computed by this call.

        Raises:
            TeacherCacheError: If another process is writing this file, the folder cannot be written, or the disk is
                full.
        """
        if is_finished(self.folder, name) and not self._leftovers(name):
            return 0
        with self._lock(name):
            computed = 0 if is_finished(self.folder, name) else self._fill(name, batches, outputs_of)
            with self._disk_errors():
                self._remove_leftovers(name)
        return computed

    def _fill(self, name: str, batches: Batches, outputs_of: Callable[[Batches], Iterable[Records]]) -> int:
        files = _Unfinished(self.folder, name, self.record_format, batches, self._id)
        try:
            with self._disk_errors():
                files.open()
            rest = batches[files.done :]
            outputs = iter(outputs_of(rest))
            records = min(self.part_records, _PART_BYTES // self.record_format.bytes_per_view)
            step = max(1, records // max(len(batches[0]), 1))
            for start in range(0, len(rest), step):
                part = rest[start : start + step]
                computed = [next(outputs) for _ in part]
                with self._disk_errors():
                    files.write(part, computed)
        finally:
            files.discard_unless_begun()
        with self._disk_errors():
            files.publish(self._id)
        return sum(map(len, rest))

    def _leftovers(self, name: str) -> list[Path]:
        """Return the files that an earlier build left behind: the progress, the lock, and parts of older versions."""
        return [
            *self.folder.glob(f"*{STAGING_PREFIX}{name}.*"),
            *(self.folder / _OLD_PARTS_FOLDER).glob(f"{name}-*"),
        ]

    def _remove_leftovers(self, name: str) -> None:
        for path in self._leftovers(name):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix not in (".lock", ".softlock"):  # this process holds the lock
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder does not exist, or holds parts of other epochs
            (self.folder / _OLD_PARTS_FOLDER).rmdir()

    def copy(self, name: str, parts: Sequence[Path]) -> None:
        """Copy an epoch of views, or the outputs for the validation images, from another folder of the same cache.

        Args:
            name: Name of the epoch of views (`epoch_name`), or `VALIDATION`.
            parts: Folders that have it. The first folder whose files are undamaged is used.

        Raises:
            TeacherCacheError: If the files are damaged in all folders, another process is writing them, the folder
                cannot be written, or the disk is full.
        """
        with self._disk_errors(), self._lock(name):
            errors = []
            for part in parts if not is_finished(self.folder, name) else ():
                try:
                    self._copy(name, part)
                    self._remove_leftovers(name)
                    return
                except TeacherCacheError as error:
                    logger.warning("%s", error)
                    errors.append(error)
            if errors:
                raise errors[0]

    def _copy(self, name: str, part: Path) -> None:
        sidecar = checked_sidecar(part, name, self._id)
        # The temporary names differ from those of an unfinished build, because its progress does not apply to these
        # files.
        copies = {file: self.folder / f"{STAGING_PREFIX * 2}{file}" for file in files_of(sidecar)}
        try:
            for file, copy in copies.items():
                shutil.copyfile(part / file, copy)
                with copy.open("r+b") as target:
                    os.fsync(target.fileno())
                if file_digest(copy) != files_of(sidecar)[file]["sha256"]:
                    raise damaged(part / file, "its SHA-256 differs from the one in its sidecar")
            for file, copy in copies.items():
                os.replace(copy, self.folder / file)
        finally:
            for copy in copies.values():
                copy.unlink(missing_ok=True)
        _sync_folder(self.folder)
        _write_json(self.folder / f"{name}.json", sidecar)


def _acquire(path: Path, what: str) -> filelock.BaseFileLock:
    """Acquire a lock, which does not block other processes any longer once this process has ended.

    Args:
        path: File of the lock.
        what: What is written under the lock, for the message.

    Raises:
        TeacherCacheError: If another process holds the lock.
    """
    lock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            lock = filelock.SoftFileLock(path.with_suffix(".softlock"))
            lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
    except filelock.Timeout as error:
        raise TeacherCacheError(
            f"Another process{_holder(lock)} is writing {what} (lock file {lock.lock_file}). Wait until it has "
            "finished, stop it, or build other epochs of views in another folder (--out, --first_view, --views) and "
            "merge the folders later (hf-deit merge-teacher-caches)."
        ) from error
    if not isinstance(lock, filelock.SoftFileLock):  # a SoftFileLock writes the process and the host to its file itself
        with contextlib.suppress(OSError):  # on Windows the locked file cannot be written
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    return lock


def _holder(lock: filelock.BaseFileLock) -> str:
    """Return the process id and the host of the holder of a lock, for a message.

    Returns:
        The text for the message, or "" if the lock file does not state them.
    """
    with contextlib.suppress(OSError, ValueError):
        pid, host = Path(lock.lock_file).read_text().split()[:2]
        return f", {int(pid)} on {host},"
    return ""


def _not_writable(folder: Path, error: OSError) -> TeacherCacheError:
    return TeacherCacheError(f"--out {folder} cannot be written ({error.strerror or error}): choose another folder.")


def check_cache_folder(folder: str | Path) -> None:
    """Check that a cache can be written to a folder. If the folder already holds a cache, do not read it.

    Raises:
        TeacherCacheError: If the path is empty or is a file, or the folder holds other files or cannot be created or
            written.
    """
    path = Path(folder)
    if not str(folder):
        raise TeacherCacheError("--out is empty: give a new folder, or the folder of a cache to resume or extend.")
    try:
        if (path / MANIFEST_FILE).exists():
            return
        above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        if not above.is_dir():
            raise TeacherCacheError(
                f"--out {path} cannot be created, because {above} is a file: choose a new or empty folder."
            )
        # A build that was killed before it finished the manifest leaves temporary files only.
        if path.exists() and any(not found.name.startswith(STAGING_PREFIX) for found in path.iterdir()):
            raise TeacherCacheError(
                f"--out {path} is not empty and does not hold a teacher cache: choose a new or empty folder."
            )
        if not os.access(above, os.W_OK | os.X_OK):
            raise TeacherCacheError(
                f"--out {path} cannot be written, because {above} is not writable: choose another folder."
            )
    except OSError as error:
        raise _not_writable(path, error) from error


def merge_caches(folder: str | Path, parts: Sequence[str | Path]) -> list[int]:
    """Copy epochs of views that were built in several folders into one folder.

    Args:
        folder: New or empty folder, or a cache to add to. Epochs of views that it already holds are not copied.
        parts: Folders of the same cache. If a file is damaged in one folder, it is taken from another.

    Returns:
        Numbers of the epochs of views that `folder` now holds.

    Raises:
        TeacherCacheError: If no part is given, the parts differ in teacher, record format, views or validation images
            (in these cases nothing is written), a file is damaged in all parts that have it, or `folder` cannot be
            written.
    """
    if not parts or not all(map(str, parts)):
        raise TeacherCacheError(
            f"The caches to merge are {list(map(str, parts))}: give at least one folder, and no empty name."
        )
    check_cache_folder(folder)
    folder, parts = Path(folder), [Path(part) for part in parts]
    manifests = {part: read_manifest(part) for part in parts}
    _check_same(folder if (folder / MANIFEST_FILE).exists() else parts[0], manifests)
    epochs = sorted({epoch for part in parts for epoch in finished_epochs(part)})
    sources = {name: _undamaged(name, manifests) for name in (*map(epoch_name, epochs), VALIDATION)}
    writer = CacheWriter(folder, manifests[parts[0]])
    for name, found in sources.items():
        if found and not is_finished(folder, name):
            writer.copy(name, found)
    for metric in ("teacher_accuracy", "teacher_f1_micro"):
        values = [manifest[metric] for manifest in manifests.values() if metric in manifest]
        if values and metric not in writer.manifest:
            writer.add_to_manifest(**{metric: values[0]})
    return finished_epochs(folder)


def _undamaged(name: str, manifests: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """Return the folders whose files of this name are complete and undamaged as far as their sizes and the sidecar
    show.

    Raises:
        TeacherCacheError: If the files are damaged in all folders that have them. Nothing has been written at this
            point.
    """
    found, errors = [], []
    for part, manifest in manifests.items():
        if is_finished(part, name):
            try:
                checked_sidecar(part, name, cache_id(manifest))
                found.append(part)
            except TeacherCacheError as error:
                errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


def _check_same(first: Path, manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    expected = description_of(manifests.get(first) or read_manifest(first))
    for part, manifest in manifests.items():
        changed = changed_fields(expected, description_of(manifest))
        if changed:
            named = differences(changed, f"in {first}", f"in {part}")
            raise TeacherCacheError(
                f"{first} and {part} are not parts of the same cache:\n{named}\nNothing was written. Merge only "
                "folders that were built with the same recipe and teacher."
            )
