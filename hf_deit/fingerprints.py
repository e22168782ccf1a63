"""Digests of values and files, and which fields differ between two descriptions."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def digest_of(content: Any) -> str:
    """Return the SHA-256 of the JSON form of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def short_digest_of(content: Any) -> str:
    """Return a short name for plain values: 12 hexadecimal digits of their digest."""
    return digest_of(content)[:12]


def describe_fields(instance: Any, always: Collection[str]) -> dict[str, Any]:
    """Return the fields of a dataclass for a description that is kept in files and compared later.

    A field that a later version adds is left out while it has its default, so that files written before it still match.

    Args:
        instance: A dataclass.
        always: Names of the fields that are always there: those of the first version.
    """
    defaults = {entry.name: entry.default for entry in dataclasses.fields(instance)}
    fields = dataclasses.asdict(instance)
    return {name: value for name, value in fields.items() if name in always or value != defaults[name]}


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
    shown = {field: ["nothing" if value is None else repr(value) for value in pair] for field, pair in changed.items()}
    return "\n".join(f"  {field}: {was} {one}, {now} {other}" for field, (was, now) in shown.items())


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
