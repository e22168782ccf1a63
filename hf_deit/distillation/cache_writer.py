"""Writes a teacher cache so that a kill or a full disk at any moment leaves only whole files.

What is written appears under its name complete and synced, or not at all. The records of an epoch of views come in the
order in which a training asks for them; they are kept in parts (`incomplete/`), of which a killed build loses the last,
and laid in the order of their positions when all are there. So the finished file does not depend on batches or kills.
What the files are is in cache.py, where the answers come from in cache_builder.py, who may write in cache_writer.py;
caches are merged in cache_writer.py.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import TeacherCacheError
from ..files import STAGING_PREFIX
from ..fingerprints import changed_fields, differences, digest_of, file_digest
from .cache import (
    CACHE_AND_NOW,
    MANIFEST_FILE,
    VALIDATION,
    RecordFormat,
    cache_id,
    checked_sidecar,
    description_of,
    epoch_name,
    finished_epochs,
    is_finished,
    read_json,
    read_manifest,
)

logger = logging.getLogger(__name__)

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


PARTS_FOLDER = "incomplete"
# Records of a part, about: what a killed build asks the teacher again.
PART_RECORDS = 8192
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write; at the end it is synced and gets its name, after an error it is gone."""
    temporary = path.with_name(f"{STAGING_PREFIX}{path.name}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    content = json.loads(json.dumps(content, default=str))
    with _published(path) as file:
        text = json.dumps({**content, "checksum": digest_of(content)}, indent=1, sort_keys=True)
        file.write(f"{text}\n".encode())


def _write_header(file: IO[bytes], empty: np.ndarray, count: int) -> None:
    header = {**np.lib.format.header_data_from_array_1_0(empty), "shape": (count, *empty.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


class CacheWriter:
    """Fills a folder with the answers of one teacher to one set of views.

    Args:
        folder: New, or of the same cache: then it goes on, or adds further epochs of views.
        manifest: Of the cache, see cache.py.
        part_records: Records of a part, about.

    Raises:
        TeacherCacheError: The folder holds another cache, or the disk is full.
    """

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], part_records: int = PART_RECORDS):
        self.folder = Path(folder)
        self.manifest = dict(manifest)
        self.record_format = RecordFormat(**manifest["layout"])
        self.part_records = part_records
        self._id = cache_id(manifest)
        check_folder(folder)
        with self._room():
            self.folder.mkdir(parents=True, exist_ok=True)
            with turn(self.folder):  # of two that begin at once the second finds the first one's
                if (self.folder / MANIFEST_FILE).exists():
                    self.manifest = self._same_manifest()
                else:
                    _write_json(self.folder / MANIFEST_FILE, self.manifest)

    def _same_manifest(self) -> dict[str, Any]:
        stored = read_manifest(self.folder)
        changed = changed_fields(description_of(stored), description_of(self.manifest))
        if changed:
            raise TeacherCacheError(
                f"{self.folder} is another cache:\n{differences(changed, *CACHE_AND_NOW)}\nSet them back to go on with it, or choose another "
                "--out."
            )
        return stored

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise _not_writable(self.folder, error) from error
            finished = len(list(self.folder.glob("epoch-*.json")))
            raise TeacherCacheError(
                f"No room left for {self.folder} ({error.strerror}). Its {finished} finished epoch(s) of views are whole and can "
                "be used (num_views); make room and run the same command again, it goes on from the last part."
            ) from error

    def add_to_manifest(self, **facts: Any) -> None:
        """Adds to the manifest what describes the cache and does not identify it, such as the teacher's accuracy."""
        with self._room(), turn(self.folder):
            self.manifest = read_manifest(self.folder) | facts
            _write_json(self.folder / MANIFEST_FILE, self.manifest)

    def fill(
        self,
        name: str,
        batches: Sequence[Sequence[int]],
        ask: Callable[[Sequence[Sequence[int]]], Iterable[np.ndarray]],
    ) -> int:
        """Writes one file of records, unless it is there.

        Args:
            name: Without ending.
            batches: The places of all records in the file, each once, in the order in which they are asked for.
            ask: Gives the records of some of the batches, batch by batch.

        Returns:
            Number of records that were asked for now.

        Raises:
            TeacherCacheError: The disk is full.
        """
        lock = self._lock(name)
        if is_finished(self.folder, name) and not lock.exists() and not self._parts_of(name):
            return 0
        with contextlib.ExitStack() as stack:
            with self._room():
                stack.enter_context(held(lock, name))
            stack.callback(self._remove_empty_parts, name)
            asked = 0 if is_finished(self.folder, name) else self._fill(name, batches, ask)
            self._remove_parts(name)  # perhaps of a build that was killed just before
        return asked

    def _fill(
        self,
        name: str,
        batches: Sequence[Sequence[int]],
        ask: Callable[[Sequence[Sequence[int]]], Iterable[np.ndarray]],
    ) -> int:
        step = max(1, self.part_records // max(len(batches[0]), 1))
        groups = [batches[start : start + step] for start in range(0, len(batches), step)]
        lengths = [step, *map(len, batches)]
        plan = hashlib.sha256(np.concatenate([np.asarray(lengths), *batches], dtype=np.int64).tobytes()).hexdigest()
        parts = self.folder / PARTS_FOLDER / f"{name}-{plan[:12]}"  # other batches have other parts
        with self._room():
            _make_folder(parts)
        missing = [number for number in range(len(groups)) if self._part(parts, number, groups[number]) is None]
        answers = iter(ask([batch for number in missing for batch in groups[number]]))
        for number in missing:
            records = np.concatenate([next(answers) for _ in groups[number]])
            with self._room(), _published(parts / f"{number:06}.npy") as file:
                _write_header(file, records, len(records))
                file.write(records.tobytes())
        with self._room():
            self._assemble(name, parts, groups)
        return sum(len(batch) for number in missing for batch in groups[number])

    def _lock(self, name: str) -> Path:
        return self.folder / f"{STAGING_PREFIX}{name}.lock"

    def _parts_of(self, name: str) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):  # another process has removed the last of them
            return list((self.folder / PARTS_FOLDER).glob(f"{name}-*"))
        return []

    def _remove_parts(self, name: str) -> None:
        for old in self._parts_of(name):
            shutil.rmtree(old)

    def _remove_empty_parts(self, name: str) -> None:
        for path in (*self._parts_of(name), self.folder / PARTS_FOLDER):
            with contextlib.suppress(OSError):  # it holds parts, to go on from or of others
                path.rmdir()

    def _part(self, parts: Path, number: int, group: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Reads a part that an earlier build finished; None if it has to be asked for."""
        try:
            records = np.load(parts / f"{number:06}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        wanted = self.record_format.empty(0)
        fits = records.dtype == wanted.dtype and records.shape[1:] == wanted.shape[1:]
        return records if fits and len(records) == sum(map(len, group)) else None

    def _assemble(self, name: str, parts: Path, groups: Sequence[Sequence[Sequence[int]]]) -> None:
        count = sum(len(batch) for group in groups for batch in group)
        target, empty = self.folder / f"{name}.npy", self.record_format.empty(0)
        with _published(target) as file:
            _write_header(file, empty, count)
            start, size = file.tell(), count * self.record_format.record.itemsize
            if hasattr(os, "posix_fallocate"):
                file.flush()
                # Writing to a map of a file that the disk has no room for would kill the process: the room is taken before.
                os.posix_fallocate(file.fileno(), 0, start + size)
            else:
                file.truncate(start + size)
            file.flush()
            records = np.memmap(file, dtype=empty.dtype, mode="r+", offset=start, shape=(count, *empty.shape[1:]))
            for number, group in enumerate(groups):
                records[np.concatenate([np.asarray(batch) for batch in group])] = self._part(parts, number, group)
            records.flush()
        self._write_sidecar(name)

    def _write_sidecar(self, name: str) -> None:
        path = self.folder / f"{name}.npy"
        _write_json(
            self.folder / f"{name}.json",
            {"cache": self._id, "name": name, "bytes": path.stat().st_size, "sha256": file_digest(path)},
        )

    def take(self, parts: Sequence[Path], name: str) -> None:
        """Copies a finished file of another folder of the same cache, checking it on the way.

        Args:
            parts: Folders that have it; the first whose file is whole gives it.
            name: Without ending.

        Raises:
            TeacherCacheError: It is damaged in all of them, another process writes it, or the disk is full.
        """
        with self._room(), held(self._lock(name), name):
            damaged = []
            for part in parts:
                if is_finished(self.folder, name) or self._took(part, name):
                    return
                damaged.append(f"{part / name}.npy")
        raise TeacherCacheError(
            f"{' and '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} damaged: build that epoch again."
        )

    def _took(self, part: Path, name: str) -> bool:
        sidecar, digest = read_json(part / f"{name}.json"), hashlib.sha256()
        with contextlib.suppress(_DamagedError):
            with _published(self.folder / f"{name}.npy") as file, (part / f"{name}.npy").open("rb") as source:
                while block := source.read(2**22):
                    digest.update(block)
                    file.write(block)
                if digest.hexdigest() != sidecar["sha256"]:
                    raise _DamagedError
            _write_json(self.folder / f"{name}.json", sidecar)
            return True
        logger.warning("%s is damaged.", part / f"{name}.npy")
        return False


class _DamagedError(Exception):
    """A file that is not to be published."""


def _make_folder(path: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed the empty folder around it
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def _foreign_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(STAGING_PREFIX)]


def _not_writable(folder: Path, error: OSError) -> TeacherCacheError:
    return TeacherCacheError(f"--out {folder} cannot be written ({error.strerror or error}): choose another folder.")


def check_folder(folder: str | Path) -> None:
    """Refuses a folder that no cache can be written into; of a cache that is there already nothing is looked at.

    Raises:
        TeacherCacheError: It is none, holds other things, or cannot be made.
    """
    path = Path(folder)
    if not str(folder):
        raise TeacherCacheError("--out is empty: name a new folder, or the cache to go on with.")
    try:
        if (path / MANIFEST_FILE).exists():
            return
        above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        if not above.is_dir():
            raise TeacherCacheError(f"--out {path}: {above} is a file. Choose a new or empty folder.")
        # A build that was killed as it began leaves an unfinished manifest.
        if path.exists() and _foreign_files(path):
            raise TeacherCacheError(f"{path} exists and is no teacher cache: choose a new or empty folder for --out.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise TeacherCacheError(f"--out {path}: nothing can be written in {above}. Choose another folder.")
    except OSError as error:
        raise _not_writable(path, error) from error


def merge_caches(folder: str | Path, parts: Sequence[str | Path]) -> list[int]:
    """Brings together epochs of views that were built in several folders.

    Args:
        folder: New, or a cache to be added to.
        parts: Folders of the same cache; what `folder` has already is not copied. Of a file that is damaged in one of them
            another's is taken.

    Returns:
        The epochs of views that `folder` now holds.

    Raises:
        TeacherCacheError: The parts differ in teacher, record format or views (then nothing was written), or a file is damaged in all.
    """
    if not parts or not all(map(str, parts)):
        raise TeacherCacheError("No caches to merge were given, or one without a name: name their folders.")
    check_folder(folder)
    folder, parts = Path(folder), [Path(part) for part in parts]
    manifests = {part: read_manifest(part) for part in parts}
    first = folder if (folder / MANIFEST_FILE).exists() else parts[0]
    _check_same(first, manifests)
    names = [epoch_name(epoch) for epoch in sorted({epoch for part in parts for epoch in finished_epochs(part)})]
    sources = {name: _sources(folder, name, manifests) for name in [*names, VALIDATION]}
    writer = CacheWriter(folder, manifests[parts[0]])
    for name, found in sources.items():
        if found:
            writer.take(found, name)
    told = [manifest["teacher_accuracy"] for manifest in manifests.values() if "teacher_accuracy" in manifest]
    if told and "teacher_accuracy" not in writer.manifest:
        writer.add_to_manifest(teacher_accuracy=told[0])
    return finished_epochs(folder)


def _check_same(first: Path, manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    expected = description_of(manifests.get(first) or read_manifest(first))
    for part, manifest in manifests.items():
        changed = changed_fields(expected, description_of(manifest))
        if changed:
            named = differences(changed, f"in {first}", f"in {part}")
            raise TeacherCacheError(f"{first} and {part} are no parts of one cache:\n{named}\nNothing was written.")


def _sources(folder: Path, name: str, manifests: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """The parts that have a file which `folder` lacks, as far as that can be told without reading it."""
    if is_finished(folder, name):
        return []
    found, errors = [], []
    for part, manifest in manifests.items():
        if not is_finished(part, name):
            continue
        try:
            checked_sidecar(part, name, cache_id(manifest))
        except TeacherCacheError as error:
            errors.append(error)
        else:
            found.append(part)
    if errors and not found:
        raise errors[0]
    return found
