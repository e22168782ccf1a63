"""Brings teacher caches together that were built in parts, perhaps on several machines.

All parts are compared before anything is written; how a file is copied whole or not at all is in cache_writing.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cache_writing import CacheWriter, check_folder
from .checkpointing import changed_fields, differences
from .teacher_cache import (
    MANIFEST_FILE,
    VALIDATION,
    TeacherCacheError,
    cache_id,
    checked_sidecar,
    description_of,
    epoch_name,
    finished_epochs,
    is_finished,
    read_manifest,
)


def merge_caches(folder: str | Path, parts: Sequence[str | Path]) -> list[int]:
    """Brings together epochs of views that were built in several folders.

    Args:
        folder: New, or a cache to be added to.
        parts: Folders of the same cache; what `folder` has already is not copied. Of a file that is damaged in one of them
            another's is taken.

    Returns:
        The epochs of views that `folder` now holds.

    Raises:
        TeacherCacheError: The parts differ in teacher, layout or views (then nothing was written), or a file is damaged in all.
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
        writer.note(teacher_accuracy=told[0])
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
