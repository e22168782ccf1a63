"""Images as they lie in files and tables: read one, look at the beginnings of many, find those that cannot be read.

An item is a path, or `{"bytes", "path"}` as `datasets` keeps an image, with its `"row"` where that is known. Which
images and labels there are is in sources.py and tables.py, what becomes of a broken one in sources.py (before training) and views.py (during it).
"""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..models.image_processing_deit import upright_rgb

BROKEN_IMAGE_POLICIES = ("skip", "raise")
# Headers are read before training up to this many images, so that a broken one is named at once.
MAX_CHECKED_FILES = 50_000
HEAD_BYTES = 16_384
_TINY_SIDE, _LARGE_PIXELS = 8, 25_000_000
_LISTED = 100


def check_policy(policy: str) -> None:
    """Checks the policy for images that cannot be read.

    Raises:
        DataError: It is none.
    """
    if policy not in BROKEN_IMAGE_POLICIES:
        raise DataError(f"broken_images={policy!r}: choose one of {', '.join(BROKEN_IMAGE_POLICIES)}.")


def as_item(value: Any, root: Path | None, row: int) -> Any:
    """Gives the item of a cell of a table.

    Args:
        value: A path, bytes, or both by name; None where there is no image.
        root: Folder that a relative path starts from; None: the working folder.
        row: Its number, for messages.
    """
    if isinstance(value, str) and value:
        return value if root is None else str(root / value)
    cell = value if isinstance(value, Mapping) else {"bytes": value or None}
    content, path = cell.get("bytes"), cell.get("path") or None
    if content is None and path is not None:
        path = as_item(path, root, row)
    return {"bytes": content, "path": path, "row": row}


def _parts(item: Any) -> tuple[str | None, bytes | None]:
    item = {"path": os.fspath(item), "bytes": None} if isinstance(item, str | os.PathLike) else item or {}
    return item.get("path"), item.get("bytes")


def _opened(item: Any) -> Image.Image:
    path, content = _parts(item)
    if path is None and content is None:
        raise ValueError("it is missing")
    return Image.open(path if content is None else io.BytesIO(content))


def describe_item(item: Any) -> str:
    """Names an item in messages: its path; of one that is embedded or missing also the row, where it is known."""
    path, content = _parts(item)
    row = item.get("row") if isinstance(item, dict) else None
    name = path or ("embedded" if content is not None else "no image")
    return name if row is None or (path is not None and content is None) else f"{name} in row {row}"


def read_image(item: Any, what: str) -> Image.Image:
    """Reads an image as upright 8-bit RGB.

    Args:
        item: A path, or `{"bytes", "path"}`.
        what: Its name in messages, as "Image 3 of photos".

    Raises:
        DataError: It cannot be decoded; the message names it.
    """
    try:
        with _opened(item) as image:
            return upright_rgb(image)
    except Exception as error:  # Pillow's plugins raise what they like: RuntimeError, DecompressionBombError, …
        raise DataError(f"{what} ({describe_item(item)}) cannot be read: {error}. Repair or remove it.") from error


@dataclass(frozen=True)
class Scan:
    """What the beginnings of images say.

    Args:
        broken: What is wrong, by index, of those that are no images.
        digest: Changes with size and first 16 KiB of the images looked at.
        notes: What is unusual and how it is treated, one sentence each.
    """

    broken: dict[int, str]
    digest: str
    notes: list[str]


def scan_images(items: Sequence[Any]) -> Scan:
    """Opens the images, up to a number evenly chosen, without decoding them."""
    broken: dict[int, str] = {}
    unusual: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    count = min(len(items), MAX_CHECKED_FILES)
    for index in (number * len(items) // count for number in range(count)):
        item = items[index]
        path, content = _parts(item)
        try:
            if content is None and path is not None:
                with open(path, "rb") as file:
                    digest.update(file.read(HEAD_BYTES))
            elif content is not None:
                digest.update(b"%d:" % len(content) + content[:HEAD_BYTES])
            with _opened(item) as image:
                for kind in _unusual(image):
                    unusual.setdefault(kind, []).append(describe_item(item))
        except Exception as error:  # as above
            broken[index] = f"{describe_item(item)}: {error}"
    notes = [f"{kind}: {len(found)}, the first {found[0]}" for kind, found in sorted(unusual.items())]
    return Scan(broken, digest.hexdigest(), notes)


def _unusual(image: Image.Image) -> list[str]:
    kinds = []
    if image.mode != "RGB":
        kinds.append(f"{image.mode} images, converted to 8-bit RGB")
    if min(image.size) < _TINY_SIDE:
        kinds.append(f"images with a side under {_TINY_SIDE} pixels, enlarged")
    if image.size[0] * image.size[1] > _LARGE_PIXELS:
        kinds.append(f"images of more than {_LARGE_PIXELS // 1_000_000} megapixels, reduced at every reading (slow)")
    return kinds


def find_unreadable(items: Sequence[Any]) -> dict[int, str]:
    """Decodes all images once, in threads; gives what is wrong, by index, with those that cannot be decoded."""

    def trouble(index: int) -> str | None:
        try:
            read_image(items[index], f"Image {index}")
        except DataError as error:
            return f"{describe_item(items[index])}: {error.__cause__}"
        return None

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as threads:
        found = enumerate(threads.map(trouble, range(len(items))))
        return {index: text for index, text in found if text is not None}


def listed(texts: Sequence[str]) -> str:
    """Lists what is broken, a line each; very many are cut short."""
    rest = f"\n  … and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return "\n  ".join(["", *texts[:_LISTED]]) + rest
