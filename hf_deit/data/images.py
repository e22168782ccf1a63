"""Reading images from files and tables, and finding unreadable images.

An item is an undecoded image: a path, or a dict `{"bytes", "path"}` as `datasets` stores an image, with its `"row"` if
that is known. loading.py and tables.py find images and labels. sources.py (before training) and views.py and streams.py
(during training) determine what happens to an unreadable image.
"""

import hashlib
import io
import mimetypes
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..models.image_processing_deit import upright_rgb

BROKEN_IMAGE_POLICIES = ("skip", "raise")
# The headers of at most this many images are read before training, so that unreadable images are reported early.
MAX_CHECKED_FILES = 50_000
HEAD_BYTES = 16_384
_TINY_SIDE, _LARGE_PIXELS = 8, 25_000_000
# Files of cameras. Pillow opens some of them as TIFF, but reads only a small preview.
RAW_EXTENSIONS = frozenset(
    [".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"]
)
# Extensions of images that Pillow alone does not read.
_UNREADABLE_EXTENSIONS = RAW_EXTENSIONS | {".heic", ".heif", ".avif", ".jxl", ".svg"}


def check_policy(policy: str) -> None:
    """Check the value of the field `broken_images`, which specifies what to do with unreadable images.

    Raises:
        DataError: The value is neither "skip" nor "raise".
    """
    if policy not in BROKEN_IMAGE_POLICIES:
        raise DataError(f"broken_images={policy!r}: choose one of {', '.join(BROKEN_IMAGE_POLICIES)}.")


def as_item(value: Any, root: Path | None, row: int) -> Any:
    """Return the item for a cell of a table.

    Args:
        value: A path, bytes, or a mapping with `path` and `bytes`. None if the cell has no image.
        root: Folder that a relative path is relative to. None for the working folder.
        row: Number of the row, for messages.
    """
    if isinstance(value, str) and value:
        return value if root is None else str(root / value)
    cell = value if isinstance(value, Mapping) else {"bytes": value or None}
    content, path = cell.get("bytes"), cell.get("path") or None
    if content is None and path is not None:
        path = as_item(path, root, row)
    return {"bytes": content, "path": path, "row": row}


def _path_and_bytes(item: Any) -> tuple[str | None, bytes | None]:
    item = {"path": os.fspath(item), "bytes": None} if isinstance(item, str | os.PathLike) else item or {}
    return item.get("path"), item.get("bytes")


def _open_item(item: Any) -> Image.Image:
    path, content = _path_and_bytes(item)
    if path is None and content is None:
        raise ValueError("it is missing")
    return Image.open(path if content is None else io.BytesIO(content))


def describe_item(item: Any) -> str:
    """Return the name of an item for messages.

    The name is the path of a file. If the image is embedded or missing, the name includes the row, if it is known.
    """
    path, content = _path_and_bytes(item)
    row = item.get("row") if isinstance(item, dict) else None
    name = path or ("embedded" if content is not None else "no image")
    return name if row is None or (path is not None and content is None) else f"{name} in row {row}"


def read_image(item: Any, what: str) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    Args:
        item: A path, or a dict `{"bytes", "path"}`.
        what: Name of the image in messages, such as "Image 3 of photos".

    Raises:
        DataError: The image cannot be decoded. The message names it.
    """
    try:
        with _open_item(item) as image:
            return upright_rgb(image)
    except Exception as error:  # Pillow's plugins raise errors of many classes: RuntimeError, DecompressionBombError, …
        raise DataError(
            f"{what} ({describe_item(item)}) cannot be read: {error}. Repair the image, or leave it out of the data."
        ) from error


@cache
def _known_types() -> mimetypes.MimeTypes:
    """Return the types of files that Python itself knows: those of the system differ between machines."""
    return mimetypes.MimeTypes()


def has_image_extension(path: Path) -> bool:
    """Return whether a file has the extension of an image format that Pillow knows."""
    return path.suffix.lower() in Image.registered_extensions()


def is_image_file(path: Path) -> bool:
    """Return whether a file is an image that Pillow can open.

    A file with the extension of an image format of Pillow is one, whatever its content: if it cannot be read, it is reported
    as an unreadable image. A file with the extension of another known format is not an image. All other files, and files without an
    extension, are opened to recognise their content.
    """
    if has_image_extension(path):
        return True
    suffix = path.suffix.lower()
    kind = _known_types().guess_type("file" + suffix)[0] or ""
    if suffix in RAW_EXTENSIONS or (kind and not kind.startswith("image/") and kind != "application/octet-stream"):
        return False
    try:
        with Image.open(path):
            return True
    except Exception:  # of many classes, as in read_image
        return False


def kind_of_file(path: Path) -> str:
    """Return the kind of a file, for messages: its extension, or "files without an extension"."""
    return f"{path.suffix.lower()} files" if path.suffix else "files without an extension"


def is_unsupported_image(path: Path) -> bool:
    """Return whether a file has the extension of an image format that Pillow alone does not read, such as .heic."""
    return path.suffix.lower() in _UNREADABLE_EXTENSIONS


@dataclass(frozen=True)
class Scan:
    """Result of reading the beginnings of images.

    Args:
        broken: Index of each item that is not an image, with the reason.
        digest: Digest of the first 16 KiB of the images that were read and, for embedded images, their size.
        notes: Unusual properties of the images and how such images are treated, one sentence each.
        warnings: The same, for what may change the meaning of the pixels.
    """

    broken: dict[int, str]
    digest: str
    notes: list[str]
    warnings: list[str]


def scan_images(items: Sequence[Any]) -> Scan:
    """Open the images without decoding them.

    If there are more than `MAX_CHECKED_FILES` images, only that many, evenly spaced, are opened.
    """
    broken: dict[int, str] = {}
    unusual: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    count = min(len(items), MAX_CHECKED_FILES)
    for index in (number * len(items) // count for number in range(count)):
        item = items[index]
        path, content = _path_and_bytes(item)
        try:
            if content is None and path is not None:
                with open(path, "rb") as file:
                    digest.update(file.read(HEAD_BYTES))
            elif content is not None:
                digest.update(b"%d:" % len(content) + content[:HEAD_BYTES])
            with _open_item(item) as image:
                for kind in _unusual(image):
                    unusual.setdefault(kind, []).append(describe_item(item))
        except Exception as error:  # of many classes, as in read_image
            broken[index] = f"{describe_item(item)}: {error}"
    notes, warnings = [], []
    for kind, found in sorted(unusual.items()):
        (warnings if kind in _OF_GUESSED_RANGE else notes).append(f"{kind}: {len(found)}, the first {found[0]}")
    return Scan(broken, digest.hexdigest(), notes, warnings)


_OF_GUESSED_RANGE = [
    f"images of 32 bits (mode {mode}), whose range is guessed for each image from its largest value; if they share "
    "another range, convert them to 8 or 16 bits first"
    for mode in ("I", "F")
]


def _unusual(image: Image.Image) -> list[str]:
    kinds = []
    if image.mode in ("I", "F"):
        kinds.append(_OF_GUESSED_RANGE["IF".index(image.mode)])
    elif image.mode != "RGB":
        kinds.append(f"{image.mode} images, converted to 8-bit RGB")
    if min(image.size) < _TINY_SIDE:
        kinds.append(f"images with a side under {_TINY_SIDE} pixels, enlarged")
    if image.size[0] * image.size[1] > _LARGE_PIXELS:
        kinds.append(
            f"images of more than {_LARGE_PIXELS // 1_000_000} megapixels, resized each time they are read (slow)"
        )
    return kinds


def shorter_edges(items: Sequence[Any], count: int) -> list[int]:
    """Return the shorter edges in pixels of at most `count` images, evenly spaced, from their headers.

    Images whose header cannot be read are left out.
    """
    edges = []
    count = min(len(items), count)
    for index in (number * len(items) // count for number in range(count)):
        try:
            with _open_item(items[index]) as image:
                edges.append(min(image.size))
        except Exception:  # of many classes, as in read_image
            continue
    return edges


def find_unreadable(items: Sequence[Any]) -> dict[int, str]:
    """Decode all images once, in threads. Return the index of each image that cannot be decoded, with the reason."""

    def reason(index: int) -> str | None:
        try:
            read_image(items[index], f"Image {index}")
        except DataError as error:
            return f"{describe_item(items[index])}: {error.__cause__}"
        return None

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as threads:
        found = enumerate(threads.map(reason, range(len(items))))
        return {index: text for index, text in found if text is not None}
