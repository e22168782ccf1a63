"""Reads weights from files of any origin into a dictionary of tensors."""

import argparse
import hashlib
import json
import logging
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads a `.safetensors` or a pickled `.pth`/`.bin` of tensors (nothing else is unpickled) into a network.

    Raises:
        UserError: The file is missing or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No weights at {path}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state_dict = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no readable safetensors file: {error}") from error
    else:
        try:
            # What training scripts (the official one among them) put beside the weights: plain data, never code.
            with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
                state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise UserError(f"{path} holds no tensors that can be loaded safely: {error}") from error
    if not isinstance(state_dict, dict):
        raise UserError(f"{path} holds a {type(state_dict).__name__} and no dictionary of tensors.")
    for key in ("model", "state_dict"):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {type(network).__name__}: {error}") from error


# Where the weights are in a file that holds more: the official code's two names, then timm's.
_CONTAINERS = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema")}
# Wrappers that put their name before every parameter: DataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# Python 3.13 moved the classes to pathlib._local: files name them by the module of the Python that wrote them.
_SAFE_CLASSES = [
    argparse.Namespace,
    *(
        (path, f"{module}.{path.__name__}")
        for path in (pathlib.PosixPath, pathlib.PurePosixPath)
        for module in ("pathlib", "pathlib._local")
    ),
]
# The files of the official release carry the beginning of their SHA-256 behind the model's name.
_OFFICIAL_FILE = re.compile(r"deit_(?:tiny|small|base)_(?:distilled_)?patch16_(?:224|384)-([0-9a-f]{8})\.pth")
# In a folder, the first that is there.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(path: str | Path, which: str | None = None) -> dict[str, torch.Tensor]:
    """Reads the weights of a file, of an index of shards, or of a folder that holds either.

    Args:
        path: `.safetensors`, `.pth` (any torch pickle), `….index.json`, or a folder. The content counts, not the suffix.
        which: Of a training checkpoint "model" or "model_ema" (the averaged weights). None: "model" where there are
            both, else what there is.

    Returns:
        Names as in the file, without the prefix of DataParallel or torch.compile, to tensors on the CPU.

    Raises:
        UserError: There is no such file, it is damaged, is no checkpoint, would run code, holds no weights of
            the kind asked for, or is an official file whose SHA-256 does not begin as its name says.
    """
    path = _file_of(Path(path))
    if path.name.endswith(".index.json"):
        content = _read_shards(path)
    else:
        check_official_hash(path)
        content = _read_one(path)
    return _unwrapped(_chosen(content, which, path), path)


def check_official_hash(path: Path) -> None:
    """Compares the SHA-256 of a file with its beginning in an official file name; other names are not checked.

    Raises:
        UserError: They differ.
    """
    match = _OFFICIAL_FILE.fullmatch(path.name)
    if match is None:
        return
    found = _sha256(path)
    if not found.startswith(match[1]):
        raise UserError(
            f"{path}: by its name the SHA-256 begins with {match[1]}, and it begins with {found[: len(match[1])]}. The file "
            "is damaged or another one: download it again; if it is your own, give it a name without those digits."
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
        raise UserError(f"There is no file or folder {path}. Give a .safetensors, a .pth or a folder that holds one.")
    usual = [path / name for name in FOLDER_FILES if (path / name).is_file()]
    found = usual or sorted(
        entry for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth") and entry.is_file()
    )
    if not found:
        raise UserError(f"{path} holds no weights: there is none of {', '.join(FOLDER_FILES)}, and no .pth.")
    if not usual and len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} files of weights ({', '.join(file.name for file in found[:5])}): name the one you mean."
        )
    return found[0]


def _read_one(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"{path} is empty: the download or copy failed. Fetch it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights. Fetch them with: git lfs pull")
    # A safetensors file begins with the length of its header in 8 bytes, then JSON.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no readable safetensors file ({error}): fetch it again.") from error
    return _read_pickle(path, start)


def _read_pickle(path: Path, start: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no pickle, torch's unpickler raises nearly anything
        wanted = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if wanted is not None:
            raise UserError(
                f"{path} wants to run {wanted[1]} while it is read, which weights do not need; nothing was run. Only "
                "tensors, argparse.Namespace and PosixPath are read from a pickle. If you trust its origin, load it there and "
                "save its state dict as safetensors."
            ) from error
        # A zip archive has its table at the end: without one it is cut off, with one it may be anybody's.
        cut_off = start.startswith(b"PK") and not zipfile.is_zipfile(path)
        reason = (
            "is damaged or cut off: fetch it again"
            if cut_off
            else "is damaged, or no checkpoint of torch or safetensors"
        )
        raise UserError(f"{path} {reason} ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    # torch puts advice to load without weights_only, which nobody should follow, before what is wrong.
    lines = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines() or str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of shards: it needs a weight_map of names to files.") from error
    outside = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if outside:
        raise UserError(f"{index} names files outside its folder ({outside[0]!r}): shards lie beside the index.")
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise UserError(f"{index} names {len(absent)} files that are not there: {', '.join(absent[:5])}.")
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        weights |= _read_one(index.parent / shard)
    if set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))
        raise UserError(f"{index} and its shards hold different names: {', '.join(odd[:5])}. Fetch all again.")
    return weights


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _chosen(content: Any, which: str | None, path: Path) -> Mapping[str, torch.Tensor]:
    """The weights asked for, out of a training checkpoint or bare."""
    if which not in (None, *_CONTAINERS):
        raise UserError(f"weights={which!r}: choose one of {', '.join(_CONTAINERS)}.")
    if _is_weights(content):
        if which == "model_ema":
            raise UserError(f"{path} holds one bare set of weights, no model_ema: leave weights out.")
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
        held = ", ".join(map(repr, list(entries)[:8])) if entries else f"a {type(content).__name__}"
        raise UserError(f"{path} holds no weights under {wanted}; it holds {held}.")
    if which is None and len(found) > 1:
        logger.info("%s: 'model' is taken; it holds averaged weights too (weights='model_ema').", path)
    return found[kind]


def _unwrapped(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Takes wrappers' prefixes off, and refuses tensors that are no plain floating-point weights."""
    weights = dict(weights)
    while prefix := next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in weights)), None):
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    odd = [
        name
        for name, weight in weights.items()
        if not weight.is_floating_point() or weight.is_quantized or weight.layout is not torch.strided
    ]
    if odd:
        raise UserError(
            f"{path} holds {len(odd)} tensors that are no plain floating-point weights ({', '.join(odd[:3])}): quantised files "
            "are not converted; take the float32, float16 or bfloat16 one."
        )
    return weights
