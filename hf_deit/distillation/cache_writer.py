"""Writes a teacher cache so that a kill or a full disk at any moment loses only the records of the last moments.

While an epoch of views is built, its records are written to their final places in preallocated files,
`_incomplete-epoch-00001.npy`. Beside them `_incomplete-epoch-00001.progress.json` holds how many batches are complete; it is
written after their records have reached the disk. A later build resumes after these batches. Complete files get their names,
and last their sidecar. So a finished file does not depend on kills, and every record is written once.

`cache.py` describes the files, `cache_builder.py` computes the records. Caches that were built in several folders are merged
here. Two builders of one file are kept apart by `filelock`.
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

# Number of records, about, between two writes of the progress: what a killed build computes again at most. Of large
# records there are fewer, as they are held in memory until then.
PART_RECORDS = 8192
_PART_BYTES = 2**26
# A killed build's data workers live a few seconds longer, and may hold its lock.
LOCK_TIMEOUT_SECONDS = 12.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems that cannot lock, as some network ones
_NOT_PREALLOCATED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Older versions kept unfinished epochs in this folder, in parts.
_OLD_PARTS_FOLDER = "incomplete"

Batches = Sequence[Sequence[int]]
Records = Mapping[str, np.ndarray]


def _sync_folder(folder: Path) -> None:
    """Write the renames in a folder to the disk, where a folder can be opened for this (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its checksum under a temporary name, synced, and rename it."""
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
    """Make a file of `size` bytes that begins with `header`; its space is reserved where the system can do so."""
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
    """Write entries of an array to their places and sync the file.

    A full disk raises an OSError here, which writing to a memory map would not.

    Args:
        path: Of the array's file.
        start: Number of bytes before the first entry.
        places: Of the entries, ascending, `(count,)`.
        entries: `(count, …)`.
    """
    ends = np.append(np.flatnonzero(np.diff(places) != 1) + 1, len(places)).tolist()
    size = entries.nbytes // len(entries)
    with path.open("r+b") as file:
        first = 0
        for end in ends:  # consecutive places are written in one go
            file.seek(start + int(places[first]) * size)
            file.write(entries[first:end].tobytes())
            first = end
        file.flush()
        os.fsync(file.fileno())


class _Unfinished:
    """The preallocated files of an epoch of views that is being built, and the number of its complete batches."""

    def __init__(self, folder: Path, name: str, record_format: RecordFormat, batches: Batches, identity: str):
        self.folder, self.name = folder, name
        self.arrays = record_format.dtypes
        count = sum(map(len, batches))
        self.headers = {array: _header(dtype, count) for array, dtype in self.arrays.items()}
        self.sizes = {array: len(self.headers[array]) + count * dtype.itemsize for array, dtype in self.arrays.items()}
        order = np.concatenate([np.asarray([len(batches), *map(len, batches)]), *batches], dtype=np.int64)
        self.plan = hashlib.sha256(identity.encode() + order.tobytes()).hexdigest()
        self.total = len(batches)
        self.progress = folder / f"{STAGING_PREFIX}{name}.progress.json"
        self.done = 0

    def path(self, array: str) -> Path:
        """Return where the array is written."""
        return self.folder / f"{STAGING_PREFIX}{file_name(self.name, array)}"

    def open(self) -> None:
        """Find the progress of an earlier build, or preallocate the files."""
        self.done = self._recorded()
        if self.done:
            return
        if self.progress.exists():
            self.progress.unlink()
            _sync_folder(self.folder)  # before the files that it counts are overwritten
        for array in self.arrays:
            _preallocate(self.path(array), self.headers[array], self.sizes[array])

    def _recorded(self) -> int:
        """Return the number of complete batches of an earlier build of the same batches, 0 if there is none."""
        try:
            content = read_json(self.progress)
        except TeacherCacheError:
            return 0
        if content["plan"] != self.plan:
            logger.warning(
                "%s: an earlier build of %s used other batches; its %d complete batch(es) are computed again.",
                self.folder,
                self.name,
                content["batches"],
            )
            return 0
        # Between the last batch and the sidecar an array may have its final name already.
        whole = content["batches"] == self.total
        found = (
            self._fits(array, self.path(array)) or (whole and self._fits(array, self._final(array)))
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
        """Write the records of the next batches, and the progress once they have reached the disk."""
        places = np.concatenate([np.asarray(batch) for batch in batches])
        order = np.argsort(places)
        for array, dtype in self.arrays.items():
            entries = np.zeros(len(places), dtype)
            np.concatenate([part[array] for part in records], out=entries, casting="equiv")
            _write_entries(self.path(array), len(self.headers[array]), places[order], entries[order])
        _write_json(self.progress, {"plan": self.plan, "batches": self.done + len(batches)})
        self.done += len(batches)

    def publish(self, identity: str) -> None:
        """Give the complete files their names and write the sidecar."""
        stated = {}
        for array in self.arrays:
            if self.path(array).exists():
                os.replace(self.path(array), self._final(array))
            stated[array] = {"bytes": self.sizes[array], "sha256": file_digest(self._final(array))}
        _sync_folder(self.folder)
        sidecar = {"cache": identity, "name": self.name, **stated.pop(OUTPUTS)}
        _write_json(self.folder / f"{self.name}.json", {**sidecar, "arrays": stated} if stated else sidecar)

    def discard_unless_begun(self) -> None:
        """Remove the files if they hold no complete batch, so that they take no space."""
        if not self.done:
            for array in self.arrays:
                self.path(array).unlink(missing_ok=True)


class CacheWriter:
    """Writes the outputs of one teacher for one set of views to a folder.

    Args:
        folder: New or empty folder, or one of the same cache, whose build is resumed or which gets further epochs of views.
        manifest: Of the cache, see `cache.py`.
        part_records: Number of records, about, between two writes of the progress.

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
            with self._lock(
                "manifest"
            ):  # of two processes that begin at once the second finds the manifest of the first
                if path.exists():
                    self.manifest = self._same_manifest()
                else:
                    _write_json(path, self.manifest)

    def _same_manifest(self) -> dict[str, Any]:
        stored = read_manifest(self.folder)
        changed = changed_fields(description_of(stored), description_of(self.manifest))
        if changed:
            raise TeacherCacheError(
                f"{self.folder} holds another cache:\n{differences(changed, *CACHE_AND_NOW)}\nSet these fields back to resume it, or "
                "choose another folder for --out."
            )
        return stored

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a TeacherCacheError that names the folder, the cause and the remedy."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise _not_writable(self.folder, error) from error
            finished = finished_epochs(self.folder)
            missing = missing_epochs(finished)
            count = missing[0] if missing else len(finished)  # those before the first missing one
            usable = (
                f" Its first {count} epoch(s) of views are complete and can be used (num_views={count})."
                if count
                else ""
            )
            raise TeacherCacheError(
                f"No space left for {self.folder} ({error.strerror}).{usable} Free some space and run the same command again: the "
                "build resumes where it stopped."
            ) from error

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Keep other processes from writing the same file; the lock's file is there only meanwhile, or after a kill.

        Raises:
            TeacherCacheError: If another process holds the lock.
        """
        path = self._lock_file(name)
        with self._disk_errors():
            lock = _acquire(path, f"{name} of {self.folder}")
        try:
            yield
        finally:
            # A process that waits for the removed file notices this and starts over. A SoftFileLock is its file.
            if not isinstance(lock, filelock.SoftFileLock):
                with contextlib.suppress(OSError):  # Windows, where the lock removes the open file itself
                    path.unlink(missing_ok=True)
            lock.release()

    def _lock_file(self, name: str) -> Path:
        return self.folder / f"{STAGING_PREFIX}{name}.lock"

    def add_to_manifest(self, **facts: Any) -> None:
        """Add to the manifest what describes the cache without identifying it, such as the teacher's accuracy."""
        path = self.folder / MANIFEST_FILE
        with self._disk_errors(), self._lock("manifest"):
            self.manifest = read_manifest(self.folder) | facts
            _write_json(path, self.manifest)

    def fill(self, name: str, batches: Batches, outputs_of: Callable[[Batches], Iterable[Records]]) -> int:
        """Write the records of an epoch of views, or of the validation, unless they are complete.

        Args:
            name: Of the epoch of views (`epoch_name`), or `VALIDATION`.
            batches: Places of all records in the file, each once, in the order in which they are computed.
            outputs_of: Returns the records (`RecordFormat.encode`) of some of the batches, batch by batch.

        Returns:
            Number of records that were computed now.

        Raises:
            TeacherCacheError: If another process writes it, or the disk is full.
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
        """Return what an earlier build left of a file: the progress, the lock, and parts of older versions."""
        return [
            *self.folder.glob(f"*{STAGING_PREFIX}{name}.*"),
            *(self.folder / _OLD_PARTS_FOLDER).glob(f"{name}-*"),
        ]

    def _remove_leftovers(self, name: str) -> None:
        for path in self._leftovers(name):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix not in (".lock", ".softlock"):  # held now
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or it holds parts of other epochs
            (self.folder / _OLD_PARTS_FOLDER).rmdir()

    def copy(self, name: str, parts: Sequence[Path]) -> None:
        """Copy an epoch of views, or the validation, from another folder of the same cache.

        Args:
            name: Of the epoch of views (`epoch_name`), or `VALIDATION`.
            parts: Folders that have it; the first one whose files are undamaged is used.

        Raises:
            TeacherCacheError: If it is damaged in all of them, another process writes it, or the disk is full.
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
        # Not the names of an unfinished build, whose progress does not hold for these files.
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
    """Acquire a lock that ends with the process.

    Raises:
        TeacherCacheError: If another process holds it.
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
            f"Another process{_holder(lock)} is writing {what} ({lock.lock_file}): wait until it has finished, stop it, or build "
            "other epochs of views in another folder (--out, --first_view, --views) and merge them later (hf-deit "
            "merge-teacher-caches)."
        ) from error
    if not isinstance(lock, filelock.SoftFileLock):  # which holds this already
        with contextlib.suppress(OSError):  # Windows, where the file is locked for writing too
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    return lock


def _holder(lock: filelock.BaseFileLock) -> str:
    """Return the number and the host of the process that holds a lock, as far as its file has them."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = Path(lock.lock_file).read_text().split()[:2]
        return f", {int(pid)} on {host},"
    return ""


def _not_writable(folder: Path, error: OSError) -> TeacherCacheError:
    return TeacherCacheError(f"--out {folder} cannot be written ({error.strerror or error}): choose another folder.")


def check_cache_folder(folder: str | Path) -> None:
    """Check that a cache can be written into a folder; a cache that is there already is not read.

    Raises:
        TeacherCacheError: If it is a file, holds other files, or cannot be made or written.
    """
    path = Path(folder)
    if not str(folder):
        raise TeacherCacheError("--out is empty: give a new folder, or the folder of a cache to resume or extend.")
    try:
        if (path / MANIFEST_FILE).exists():
            return
        above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        if not above.is_dir():
            raise TeacherCacheError(f"--out {path}: {above} is a file. Choose a new or empty folder.")
        # A build that was killed at its very beginning leaves an unfinished manifest.
        if path.exists() and any(not found.name.startswith(STAGING_PREFIX) for found in path.iterdir()):
            raise TeacherCacheError(
                f"{path} is not empty and holds no teacher cache: choose a new or empty folder for --out."
            )
        if not os.access(above, os.W_OK | os.X_OK):
            raise TeacherCacheError(f"--out {path}: {above} is not writable. Choose another folder.")
    except OSError as error:
        raise _not_writable(path, error) from error


def merge_caches(folder: str | Path, parts: Sequence[str | Path]) -> list[int]:
    """Copy epochs of views that were built in several folders into one.

    Args:
        folder: New or empty folder, or a cache to add to; what it has already is not copied.
        parts: Folders of the same cache. A file that is damaged in one of them is taken from another.

    Returns:
        The epochs of views that `folder` now holds.

    Raises:
        TeacherCacheError: If the parts differ in teacher, record format, views or validation images (then nothing is
            written), or a file is damaged in all of them.
    """
    if not parts or not all(map(str, parts)):
        raise TeacherCacheError("No caches to merge were given, or one has an empty name: give their folders.")
    check_cache_folder(folder)
    folder, parts = Path(folder), [Path(part) for part in parts]
    manifests = {part: read_manifest(part) for part in parts}
    _check_same(folder if (folder / MANIFEST_FILE).exists() else parts[0], manifests)
    epochs = sorted({epoch for part in parts for epoch in finished_epochs(part)})
    sources = {name: _whole(name, manifests) for name in (*map(epoch_name, epochs), VALIDATION)}
    writer = CacheWriter(folder, manifests[parts[0]])
    for name, found in sources.items():
        if found and not is_finished(folder, name):
            writer.copy(name, found)
    accuracies = [manifest["teacher_accuracy"] for manifest in manifests.values() if "teacher_accuracy" in manifest]
    if accuracies and "teacher_accuracy" not in writer.manifest:
        writer.add_to_manifest(teacher_accuracy=accuracies[0])
    return finished_epochs(folder)


def _whole(name: str, manifests: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """Return the folders whose file of this name is whole, as far as its size and sidecar show.

    Raises:
        TeacherCacheError: If it is damaged in all of them; nothing was written yet.
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
                f"{first} and {part} are not parts of one cache:\n{named}\nNothing was written. Merge only folders that were built "
                "with the same recipe and teacher."
            )
