"""Checkpoints: written whole or not at all, found again, and compared with the run that wants to go on from one.

What is in a checkpoint is the Trainer's business; this module moves folders, and knows which are complete.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

# Written into each checkpoint: model, recipe and data of the run, see `changed_fields`.
RUN_FILE = "hf_deit_run.json"
# The underscore keeps it out of the Trainer's uploads, which leave out "_*".
STAGING_PREFIX = "_incomplete-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_STATE = "trainer_state.json"


class ResumeError(UserError):
    """A checkpoint that the present run cannot go on from; the message names the field that differs."""


def digest_of(content: Any) -> str:
    """The SHA-256 of what JSON makes of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def short_digest_of(content: Any) -> str:
    """A short name for plain values: 12 hexadecimal digits of their digest."""
    return digest_of(content)[:12]


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


def remove_staging(output_dir: Path) -> None:
    """Removes what a killed run left half-written."""
    if output_dir.is_dir():
        for old in output_dir.glob(f"{STAGING_PREFIX}old-*"):  # killed between the two renames: the old one is whole
            target = output_dir / old.name.removeprefix(f"{STAGING_PREFIX}old-")
            if not target.exists():
                os.replace(old, target)
        for path in output_dir.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoints(output_dir: Path) -> list[Path]:
    """Gives the complete checkpoints, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found) if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    return (path / _STATE).is_file() and any((path / name).is_file() for name in _WEIGHTS)


def newest_checkpoint(output_dir: Path) -> Path:
    """Gives the newest complete checkpoint.

    Raises:
        ResumeError: There is none.
    """
    found = checkpoints(output_dir)
    if not found:
        raise ResumeError(
            f"No complete checkpoint in {output_dir} to resume from: start without resume, or check the path."
        )
    return found[-1]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value
    return rows


def changed_fields(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Gives `{field: (saved value, present value)}` of what differs between two runs.

    Fields that only one side has (another version of transformers wrote the other) are not compared, except the model's,
    the data's and the teacher's own.
    """
    both = saved.get("recipe", {}).keys() & present.get("recipe", {}).keys()
    saved, present = (
        _flat(json.loads(json.dumps(saved, default=str))),
        _flat(json.loads(json.dumps(present, default=str))),
    )
    return {
        field: (saved.get(field), present.get(field))
        for field in sorted(saved.keys() | present.keys())
        if saved.get(field) != present.get(field) and (not field.startswith("recipe.") or field.split(".")[1] in both)
    }


def differences(changed: Mapping[str, tuple[Any, Any]], one: str, other: str) -> str:
    """The lines that name what differs; `one` and `other` say where the two values are from."""
    told = {field: ["nothing" if value is None else repr(value) for value in pair] for field, pair in changed.items()}
    return "\n".join(f"  {field}: {was} {one}, {now} {other}" for field, (was, now) in told.items())


def check_same_run(checkpoint: Path, present: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of a run with other data, recipe, teacher or model.

    Args:
        checkpoint: Its folder; one without a run file (a stock Trainer's) is taken on trust.
        present: What the run file would hold now.

    Raises:
        ResumeError: Something differs; each field is named with both values.
    """
    file = checkpoint / RUN_FILE
    if not file.is_file():
        return
    changed = changed_fields(json.loads(file.read_text()), present)
    if changed:
        rows = differences(changed, "in the checkpoint", "now")
        if any(field.startswith("teacher.stored") for field in changed):
            rows += "\n(Stored answers in top-K or float16 are another teacher than the exact ones; these have no teacher.stored.)"
        raise ResumeError(
            f"{checkpoint} belongs to another run:\n{rows}\nSet them back to resume, or train into a new output_dir "
            "(to start from these weights, give the checkpoint as the model)."
        )
