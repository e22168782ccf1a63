"""Functions that read weights from files of any origin, without running code that a file may contain."""

import argparse
import hashlib
import json
import logging
import pathlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError, listed

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a network.

    The file is a `.safetensors`, or a `.pth` or `.bin` pickle that contains only tensors and plain data: a state dict,
    or a training checkpoint with one. Prefixes of DataParallel and torch.compile are removed from the names.

    Raises:
        UserError: The file is missing, cannot be read, or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No weights at {path}.")
    state_dict = _without_wrappers(_chosen(_read_one(path), None, path))
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit {type(network).__name__}. Give the weights of this network. {error}"
        ) from error


# Keys of the weights in a training checkpoint: the key of the official code, then that of timm.
_CONTAINERS = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema")}
# Prefixes that DataParallel and torch.compile add to every parameter name.
_WRAPPERS = ("module.", "_orig_mod.")
# Python 3.13 moved these classes to pathlib._local. A file names the module of the Python version that wrote it.
_SAFE_CLASSES = [
    argparse.Namespace,
    *(
        (path, f"{module}.{path.__name__}")
        for path in (pathlib.PosixPath, pathlib.PurePosixPath)
        for module in ("pathlib", "pathlib._local")
    ),
]
# The file names of the official release end with the first eight digits of the SHA-256.
_OFFICIAL_FILE = re.compile(r"deit_(?:tiny|small|base)_(?:distilled_)?patch16_(?:224|384)-([0-9a-f]{8})\.pth")
# Files of weights in a folder; the first one that exists is read.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(path: str | Path, which: str | None = None) -> dict[str, torch.Tensor]:
    """Read the weights of a file, of an index of shards, or of a folder that contains either.

    Args:
        path: A `.safetensors`, a `.pth` (any torch pickle), an `….index.json`, or a folder. The kind of a file is
            recognised by its content, not by its suffix.
        which: Weights to read from a training checkpoint: "model" or "model_ema" (the averaged weights). None reads
            "model" if the checkpoint contains both, and otherwise the only ones that it contains.

    Returns:
        A dictionary from parameter names to tensors on the CPU. The names are those in the file, without the prefixes
        of DataParallel and torch.compile.

    Raises:
        UserError: The file does not exist, is damaged, is not a checkpoint, would run code, does not contain the
            requested weights, or is an official file whose SHA-256 does not match its name.
    """
    path = _file_of(Path(path))
    if path.name.endswith(".index.json"):
        content = _read_shards(path)
    else:
        check_official_hash(path)
        content = _read_one(path)
    weights = _without_wrappers(_chosen(content, which, path))
    _check_dense(weights, path)
    return weights


def check_official_hash(path: Path) -> None:
    """Check that the SHA-256 of a file begins with the digits in its official file name.

    Files with other names are not checked.

    Raises:
        UserError: The SHA-256 begins with other digits than the file name states.
    """
    match = _OFFICIAL_FILE.fullmatch(path.name)
    if match is None:
        return
    found = _sha256(path)
    if not found.startswith(match[1]):
        raise UserError(
            f"{path}: the file name states a SHA-256 that begins with {match[1]}, but the SHA-256 of the file begins "
            f"with {found[: len(match[1])]}. The file is damaged, or it is another file. Download it again. If it is "
            "your own file, give it a name without these digits."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"There is no file or folder {path}. Give a .safetensors, a .pth, or a folder that contains one."
        )
    usual = [path / name for name in FOLDER_FILES if (path / name).is_file()]
    found = usual or sorted(
        entry for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth") and entry.is_file()
    )
    if not found:
        raise UserError(
            f"{path} holds no weights. Give a folder that contains one of {', '.join(FOLDER_FILES)}, or a file that "
            "ends in .safetensors or .pth."
        )
    if not usual and len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} files of weights ({listed((file.name for file in found), str)}). Give the path "
            "of one of them."
        )
    return found[0]


def _read_one(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"{path} is empty: the download or copy failed. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights. Download the weights with: git lfs pull")
    # A safetensors file begins with the length of its header in 8 bytes, then JSON.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}). Download it again.") from error
    return _read_pickle(path, start)


def _read_pickle(path: Path, start: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for invalid bytes, the unpickler of torch raises almost any error
        wanted = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if wanted is not None:
            raise UserError(
                f"{path} would run {wanted[1]} while it is read, which weights never require; nothing was run. Only "
                "tensors, argparse.Namespace and PosixPath are read from a pickle. If you trust the file, load it "
                "where it was made, and save its state dict as safetensors."
            ) from error
        # The table of a zip archive is at its end. Without the table the file is cut off; with it, the archive may be
        # of any program.
        cut_off = start.startswith(b"PK") and not zipfile.is_zipfile(path)
        reason = (
            "is damaged or cut off. Download it again"
            if cut_off
            else "is damaged, or is not a checkpoint of torch or safetensors"
        )
        raise UserError(f"{path} {reason} ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    # Before the cause, torch prints the unsafe advice to load without weights_only.
    lines = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines() or str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not an index of shards: it must contain a weight_map, which maps each parameter name to a file name."
        ) from error
    outside = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if outside:
        raise UserError(
            f"{index} names files outside its folder ({outside[0]!r}). All shards must be in the folder of the index."
        )
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise UserError(
            f"{index} names {len(absent)} file(s) that do not exist: {listed(absent, str)}. Download them again."
        )
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        weights |= _read_one(index.parent / shard)
    if set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))
        raise UserError(
            f"{index} and its shards hold different parameter names: {listed(odd, str)}. Download all files again."
        )
    return weights


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _chosen(content: Any, which: str | None, path: Path) -> Mapping[str, torch.Tensor]:
    """Return the requested weights of a training checkpoint, or the weights of a file that contains nothing else."""
    if which not in (None, *_CONTAINERS):
        raise UserError(f"weights={which!r}: choose one of {', '.join(_CONTAINERS)}.")
    if _is_weights(content):
        if which == "model_ema":
            raise UserError(f"{path} holds a single set of weights and no model_ema. Leave out weights={which!r}.")
        return content
    entries = content if isinstance(content, Mapping) else {}
    found = {
        kind: entries[name]
        for kind, names in _CONTAINERS.items()
        for name in reversed(names)
        if _is_weights(entries.get(name))
    }
    kind = which or next(iter(found), None)
    if kind not in found:
        wanted = which or " or ".join(name for names in _CONTAINERS.values() for name in names)
        held = listed(entries) if entries else f"a {type(content).__name__}"
        raise UserError(f"{path} holds no weights under {wanted}. It holds {held}.")
    if which is None and len(found) > 1:
        logger.info("%s: reading 'model'. The file also holds averaged weights (weights='model_ema').", path)
    return found[kind]


def _without_wrappers(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefixes that wrappers add to all parameter names."""
    weights = dict(weights)
    while prefix := next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in weights)), None):
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def _check_dense(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    odd = [
        name
        for name, weight in weights.items()
        if not weight.is_floating_point() or weight.is_quantized or weight.layout is not torch.strided
    ]
    if odd:
        raise UserError(
            f"{path} holds {len(odd)} tensors that are not dense floating-point weights ({listed(odd, str)}). "
            "Quantised files cannot be converted. Give the file in float32, float16 or bfloat16."
        )
