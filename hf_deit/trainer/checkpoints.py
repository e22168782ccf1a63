"""Checkpoints: written whole or not at all, found again, and compared with the run that wants to go on from one.

What is in a checkpoint is the Trainer's business; this module moves folders, and knows which are complete.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ResumeError
from ..files import STAGING_PREFIX
from ..fingerprints import changed_fields, differences

# Beside the raw weights of a checkpoint: the averaged model.
EMA_FOLDER = "ema"
# Written into each checkpoint: model, recipe and data of the run, see `changed_fields`.
RUN_FILE = "hf_deit_run.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_STATE = "trainer_state.json"


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
