"""Checkpoint folders: find the complete ones, clean up unfinished ones, and compare a checkpoint with the resumed run.

The files in a checkpoint are written by resumable_trainer.py. The functions that write a folder completely or not at
all are in files.py.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ResumeError
from ..files import STAGING_PREFIX
from ..fingerprints import changed_fields, differences

# Folder in a checkpoint that holds the averaged model; the raw weights are in the checkpoint itself.
EMA_FOLDER = "ema"
# File in each checkpoint with the weights that are trained beside the model and are not part of it, if there are any.
AUXILIARY_FILE = "auxiliary.safetensors"
# File in each checkpoint that describes the run (model, recipe, data); see `changed_fields`.
RUN_FILE = "hf_deit_run.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_STATE = "trainer_state.json"
# Fields of the recipe that earlier versions did not have. In their run files they count as the default.
_ADDED = (
    "class_weights_power",
    "guidance",
    "guidance_weight",
    "guidance_student_layers",
    "guidance_teacher_layers",
)


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


def saved_run(checkpoint: Path) -> dict[str, Any]:
    """Return the description of the run that wrote a checkpoint; empty if a stock Trainer wrote it."""
    file = checkpoint / RUN_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer state in a checkpoint.

    Raises:
        ResumeError: The folder is not a complete checkpoint.
    """
    if not _is_complete(checkpoint):
        raise ResumeError(f"{checkpoint} is not a complete checkpoint. Correct the path.")
    return json.loads((checkpoint / _STATE).read_text())


def check_complete(checkpoint: Path) -> None:
    """Check that a checkpoint holds the state of optimizer and schedule, without which a resumed run is another run.

    Raises:
        ResumeError: The folder is not a complete checkpoint, or the state is missing (save_only_model).
    """
    saved_state(checkpoint)
    found = {path.name.partition(".")[0] for path in checkpoint.iterdir()}
    missing = [name for name in ("optimizer", "scheduler") if name not in found]
    if missing:
        raise ResumeError(
            f"{checkpoint} holds no state of {' and '.join(missing)} (it was saved with save_only_model=True): a resumed run "
            "would not be the run that it continues. Start a new run from its weights: --model CHECKPOINT, new output_dir."
        )


# Fields that an extended run may change.
_LENGTH = ("recipe.max_steps", "recipe.num_train_epochs")


def check_same_run(
    checkpoint: Path,
    present: Mapping[str, Any],
    *,
    extend: bool = False,
    defaults: Mapping[str, Any] | None = None,
    unused: Collection[str] = (),
) -> None:
    """Check that a checkpoint was written by a run with the same data, recipe, teacher and model.

    Args:
        checkpoint: Folder of the checkpoint. A checkpoint without a run file (written by a stock Trainer) is not
            checked.
        present: Description of the present run, with the fields of the run file. A part that it does not have
            ("teacher") is not compared.
        extend: Whether the length of the run may differ.
        defaults: Defaults of the fields of the recipe. A field that the run file does not have counts as its default.
        unused: Fields of the recipe whose saved value had no effect. They may have their defaults now.

    Raises:
        ResumeError: A field differs. The message names each such field with both values.
    """
    saved = saved_run(checkpoint)
    if not saved:
        return
    saved = {name: part for name, part in saved.items() if name in present}
    own = {name: value for name, value in (defaults or {}).items() if name in present.get("recipe", {})}
    saved["recipe"] = {name: value for name, value in own.items() if name in _ADDED} | saved.get("recipe", {})
    present = {name: part for name, part in present.items() if name != "extensions"}
    saved.pop("extensions", None)
    changed = changed_fields(saved, present)
    idle = {f"recipe.{name}" for name in unused if name in own and present["recipe"][name] == own[name]}
    changed = {field: values for field, values in changed.items() if field not in idle}
    if extend:
        changed = {field: values for field, values in changed.items() if field not in _LENGTH}
        was, now = changed.get("recipe.num_views", (0, None))
        if was is None and now is not None and now >= saved_state(checkpoint)["epoch"]:
            del changed["recipe.num_views"]  # a cache whose views repeat from here on: those so far are the same
    if changed:
        rows = differences(changed, "in the checkpoint", "now")
        if any(field.startswith("teacher.stored") for field in changed):
            rows += (
                "\n(A cache of top-K or float16 outputs counts as another teacher than exact outputs, for which the "
                "field teacher.stored is missing.)"
            )
        if not changed.keys() - set(_LENGTH):
            rows += "\nTo resume into a longer schedule, use --extend (in Python: extend=True) instead of --resume."
        raise ResumeError(
            f"{checkpoint} belongs to another run:\n{rows}\nSet these fields back to resume, or start a new run in "
            "another output_dir. The new run can start from these weights: give the checkpoint as the model."
        )
