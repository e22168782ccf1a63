"""Writes a teacher cache so that a kill or a full disk at any moment leaves only whole files, and merges caches.

What is written appears under its name complete and synced, or not at all. The records of an epoch of views come in the
order in which a training asks for them; they are kept in parts (`incomplete/`), of which a killed build loses the last,
and laid in the order of their positions when all are there. So the finished file does not depend on batches or kills.
What the files are is in teacher_cache.py, where the answers come from in cache_building.py.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from .checkpointing import STAGING_PREFIX, changed_fields
from .teacher_cache import (
    MANIFEST_FILE,
    VALIDATION,
    Layout,
    TeacherCacheError,
    cache_id,
    description_of,
    differences,
    digest_of,
    epoch_name,
    file_digest,
    is_finished,
    read_json,
    read_manifest,
)

logger = logging.getLogger(__name__)

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
        manifest: Of the cache, see teacher_cache.py.
        part_records: Records of a part, about.

    Raises:
        TeacherCacheError: The folder holds another cache, or the disk is full.
    """

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], part_records: int = PART_RECORDS):
        self.folder = Path(folder)
        self.manifest = dict(manifest)
        self.layout = Layout(**manifest["layout"])
        self.part_records = part_records
        self._id = cache_id(manifest)
        if (self.folder / MANIFEST_FILE).exists():
            self.manifest = self._same_manifest()
            return
        # A build that was killed as it began leaves an unfinished manifest.
        if self.folder.exists() and (not self.folder.is_dir() or _foreign_files(self.folder)):
            raise TeacherCacheError(
                f"{self.folder} exists and is no teacher cache: choose a new or empty folder for --out."
            )
        with self._room():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / MANIFEST_FILE, self.manifest)

    def _same_manifest(self) -> dict[str, Any]:
        stored = read_manifest(self.folder)
        changed = changed_fields(description_of(stored), description_of(self.manifest))
        if changed:
            raise TeacherCacheError(
                f"{self.folder} is another cache:\n{differences(changed)}\nSet them back to go on with it, or choose another "
                "--out."
            )
        return stored

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            finished = len(list(self.folder.glob("epoch-*.json")))
            raise TeacherCacheError(
                f"No room left for {self.folder} ({error.strerror}). Its {finished} finished epoch(s) of views are whole and can "
                "be used (num_views); make room and run the same command again, it goes on from the last part."
            ) from error

    def note(self, **facts: Any) -> None:
        """Adds to the manifest what describes the cache and does not identify it, such as the teacher's accuracy."""
        self.manifest |= facts
        with self._room():
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
        if is_finished(self.folder, name):
            self._remove_parts(name)  # of a build that was killed just before
            return 0
        step = max(1, self.part_records // max(len(batches[0]), 1))
        groups = [batches[start : start + step] for start in range(0, len(batches), step)]
        lengths = [step, *map(len, batches)]
        plan = hashlib.sha256(np.concatenate([np.asarray(lengths), *batches], dtype=np.int64).tobytes()).hexdigest()
        parts = self.folder / PARTS_FOLDER / f"{name}-{plan[:12]}"  # other batches have other parts
        with self._room():
            parts.mkdir(parents=True, exist_ok=True)
            missing = [number for number in range(len(groups)) if self._part(parts, number, groups[number]) is None]
            answers = iter(ask([batch for number in missing for batch in groups[number]]))
            for number in missing:
                records = np.concatenate([next(answers) for _ in groups[number]])
                with _published(parts / f"{number:06}.npy") as file:
                    _write_header(file, records, len(records))
                    file.write(records.tobytes())
            self._assemble(name, parts, groups)
        self._remove_parts(name)
        return sum(len(batch) for number in missing for batch in groups[number])

    def _remove_parts(self, name: str) -> None:
        for old in (self.folder / PARTS_FOLDER).glob(f"{name}-*"):
            shutil.rmtree(old)
        with contextlib.suppress(OSError):  # there are others
            (self.folder / PARTS_FOLDER).rmdir()

    def _part(self, parts: Path, number: int, group: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Reads a part that an earlier build finished; None if it has to be asked for."""
        try:
            records = np.load(parts / f"{number:06}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        wanted = self.layout.empty(0)
        fits = records.dtype == wanted.dtype and records.shape[1:] == wanted.shape[1:]
        return records if fits and len(records) == sum(map(len, group)) else None

    def _assemble(self, name: str, parts: Path, groups: Sequence[Sequence[Sequence[int]]]) -> None:
        count = sum(len(batch) for group in groups for batch in group)
        target, empty = self.folder / f"{name}.npy", self.layout.empty(0)
        with _published(target) as file:
            _write_header(file, empty, count)
            start, size = file.tell(), count * self.layout.record.itemsize
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

    def take(self, part: Path, name: str) -> None:
        """Copies a finished file of another folder of the same cache, checking it on the way.

        Raises:
            TeacherCacheError: It is damaged, or the disk is full.
        """
        sidecar = read_json(part / f"{name}.json")
        with self._room():
            with _published(self.folder / f"{name}.npy") as file, (part / f"{name}.npy").open("rb") as source:
                shutil.copyfileobj(source, file, 2**22)
            if (sidecar["cache"], sidecar["name"]) != (self._id, name) or file_digest(
                self.folder / f"{name}.npy"
            ) != sidecar["sha256"]:
                (self.folder / f"{name}.npy").unlink()
                raise TeacherCacheError(f"{part / name}.npy is damaged or of another cache: build it again.")
            _write_json(self.folder / f"{name}.json", sidecar)


def _foreign_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(STAGING_PREFIX)]


def finished_epochs(folder: Path) -> list[int]:
    """Gives the numbers of the epochs of views that are finished in a folder."""
    numbers = (path.stem.removeprefix("epoch-") for path in sorted(folder.glob("epoch-*.json")))
    return [int(number) for number in numbers if number.isdigit() and is_finished(folder, epoch_name(int(number)))]


def merge_caches(folder: str | Path, parts: Sequence[str | Path]) -> list[int]:
    """Brings together epochs of views that were built in several folders, perhaps on several machines.

    Args:
        folder: New, or a cache to be added to.
        parts: Folders of the same cache; what `folder` has already is not copied.

    Returns:
        The epochs of views that `folder` now holds.

    Raises:
        TeacherCacheError: The parts differ in teacher, layout or views, or a file is damaged.
    """
    writer = None
    for part in map(Path, parts):
        manifest = read_manifest(part)
        writer = writer or CacheWriter(folder, manifest)
        changed = changed_fields(description_of(writer.manifest), description_of(manifest))
        if changed:
            raise TeacherCacheError(f"{part} is no part of {folder}:\n{differences(changed)}")
        names = [epoch_name(epoch) for epoch in finished_epochs(part)]
        for name in [*names, *([VALIDATION] if is_finished(part, VALIDATION) else [])]:
            if not is_finished(writer.folder, name):
                writer.take(part, name)
        if "teacher_accuracy" in manifest and "teacher_accuracy" not in writer.manifest:
            writer.note(teacher_accuracy=manifest["teacher_accuracy"])
    if writer is None:
        raise TeacherCacheError("No caches to merge were given: name their folders.")
    return finished_epochs(writer.folder)
