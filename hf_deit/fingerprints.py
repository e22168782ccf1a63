"""Digests (SHA-256) of values and files, and descriptions of objects as dictionaries of fields.

Descriptions are saved in checkpoints and caches. When such a file is used again, two descriptions are compared field by
field, and a message names the fields that differ.
"""

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
    """Return the fields of a dataclass, for a description that is saved in files and compared later.

    A field that a later version of this package adds is left out while it has its default value, so that files of
    earlier versions still match.

    Args:
        instance: A dataclass instance.
        always: Names of the fields that are always included: those of the first version.
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
    """Return the fields that differ between two runs, as `{field: (saved value, present value)}`.

    A field of the recipe that only one side has is not compared, because another version of transformers may have
    written the other side. All other fields (of the model, the data and the teacher) are always compared.
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
    """Return one line per field that differs. `one` and `other` describe where the two values come from."""
    shown = {field: ["nothing" if value is None else repr(value) for value in pair] for field, pair in changed.items()}
    return "\n".join(f"  {field}: {was} {one}, {now} {other}" for field, (was, now) in shown.items())


def file_digest(*paths: Path) -> str:
    """Return the SHA-256 of a file, or of the contents of several files one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()
