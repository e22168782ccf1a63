"""Digests of values and files, and which fields differ between two descriptions."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest_of(content: Any) -> str:
    """The SHA-256 of what JSON makes of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def short_digest_of(content: Any) -> str:
    """A short name for plain values: 12 hexadecimal digits of their digest."""
    return digest_of(content)[:12]


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


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
