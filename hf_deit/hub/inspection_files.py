"""Files that a report leaves beside a model for its card: figures without photographs, and the facts that the card states."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..models.weights_digest import weights_digest

INSPECTION_FILE = "inspection.json"
CONFUSION_PICTURE, RELIABILITY_PICTURE, TOKENS_PICTURE = "confusion.png", "reliability.png", "tokens.png"
# Figures that a card shows and a push uploads: none of them holds a photograph.
PICTURES = (CONFUSION_PICTURE, RELIABILITY_PICTURE, TOKENS_PICTURE)
CALIBRATION_FILE = "calibration.json"
# What a report writes: it holds photographs, or names and labels of single images.
PRIVATE_FILES = ("report.html", "predictions.parquet", "mislabelled.csv", "duplicates.csv")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_inspection(folder: str | Path) -> dict[str, Any]:
    """Return what a report found out about the weights in a folder; empty if there is no report, or it is about other weights."""
    file = Path(folder) / INSPECTION_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if content["weights"] == weights_digest(str(folder)) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def published_pictures(folder: str | Path) -> list[str]:
    """Return the names of the figures of the last report about the weights in a folder.

    inspection.json states the SHA-256 of each figure. A figure of an earlier report, or one that was replaced, is left out.
    """
    folder = Path(folder)
    stated = read_inspection(folder).get("pictures")
    if not isinstance(stated, dict):
        return []
    return [
        name for name in PICTURES if (folder / name).is_file() and stated.get(name) == _digest_of_png(folder / name)
    ]


def _digest_of_png(file: Path) -> str | None:
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest() if content.startswith(_PNG) else None


def private_files(folder: str | Path) -> list[str]:
    """Return the files of reports in a folder of a model and the folders in it, which a push leaves out, relative to the folder."""
    folder = Path(folder)
    return sorted(
        str(path.relative_to(folder)) for name in PRIVATE_FILES for path in folder.rglob(name) if path.is_file()
    )
