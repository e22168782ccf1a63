"""Checkpoint folders: find the complete ones, clean up unfinished ones, and compare a checkpoint with the resumed run.

The files in a checkpoint are written by resumable_trainer.py. The functions that write a folder completely or not at
all are in files.py.
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

# Folder in a checkpoint that holds the averaged model; the raw weights are in the checkpoint itself.
EMA_FOLDER = "ema"
# File in each checkpoint that describes the run (model, recipe, data); see `changed_fields`.
RUN_FILE = "hf_deit_run.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_STATE = "trainer_state.json"


def remove_staging(output_dir: Path) -> None:
    """Remove the unfinished files and folders of a killed run, and restore a checkpoint that was being replaced."""
    if output_dir.is_dir():
        for old in output_dir.glob(f"{STAGING_PREFIX}old-*"):  # killed between the two renames: the old one is complete
            target = output_dir / old.name.removeprefix(f"{STAGING_PREFIX}old-")
            if not target.exists():
                os.replace(old, target)
        for path in output_dir.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints in the order of their steps."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found) if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    return (path / _STATE).is_file() and any((path / name).is_file() for name in _WEIGHTS)


def newest_checkpoint(output_dir: Path) -> Path:
    """Return the complete checkpoint with the highest step.

    Raises:
        ResumeError: The folder holds no complete checkpoint.
    """
    found = checkpoints(output_dir)
    if not found:
        raise ResumeError(
            f"No complete checkpoint in {output_dir} to resume from. Start without resume, or correct output_dir."
        )
    return found[-1]


def check_same_run(checkpoint: Path, present: Mapping[str, Any]) -> None:
    """Check that a checkpoint was written by a run with the same data, recipe, teacher and model.

    Args:
        checkpoint: Folder of the checkpoint. A checkpoint without a run file (written by a stock Trainer) is not
            checked.
        present: Description of the present run, with the fields of the run file.

    Raises:
        ResumeError: A field differs. The message names each such field with both values.
    """
    file = checkpoint / RUN_FILE
    if not file.is_file():
        return
    changed = changed_fields(json.loads(file.read_text()), present)
    if changed:
        rows = differences(changed, "in the checkpoint", "now")
        if any(field.startswith("teacher.stored") for field in changed):
            rows += (
                "\n(A cache of top-K or float16 outputs counts as another teacher than exact outputs, for which the "
                "field teacher.stored is missing.)"
            )
        raise ResumeError(
            f"{checkpoint} belongs to another run:\n{rows}\nSet these fields back to resume, or start a new run in "
            "another output_dir. The new run can start from these weights: give the checkpoint as the model."
        )
