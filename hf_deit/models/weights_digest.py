"""Digest of the weights of a saved model, by which a file beside it is known to be about these weights."""

import json
from pathlib import Path

from ..fingerprints import file_digest
from .loading import WHOLE_FILES


def file_of(name_or_path: str, name: str) -> Path | None:
    """Return a file of a model in a folder or on the Hub; None if the model has no such file."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        name_or_path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def weights_digest(name_or_path: str) -> str | None:
    """Return the SHA-256 of the weights of a model, by which a file beside it is known to be about these weights.

    Args:
        name_or_path: Folder or full Hub name of the model.

    Returns:
        The digest of its safetensors files; None if it has none.
    """
    weights, index = (file_of(name_or_path, name) for name in WHOLE_FILES)
    files = [weights]
    if index is not None:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [file_of(name_or_path, shard) for shard in shards]
    if None in files:
        return None
    return file_digest(*files)
