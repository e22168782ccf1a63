"""Small copies of photographs as data URIs, so that a report is one file. They are limited in number by their bytes."""

import base64
import io
from typing import Any

from PIL import Image

from ..data.images import read_image
from ..errors import DataError

_SIDE, _QUALITY = 160, 68


class Thumbnails:
    """Maker of thumbnails with a limit of bytes for all of them together.

    Args:
        bytes_left: Number of bytes of text that all thumbnails may take.
    """

    def __init__(self, bytes_left: int):
        self.bytes_left = bytes_left
        self.left_out = 0
        self._made: dict[int, str | None] = {}

    def __call__(self, item: Any) -> str | None:
        """Return a photograph as a data URI; None if it cannot be read, or if there is no room for it.

        Args:
            item: The image, as a `Source` holds it.
        """
        key = hash(item) if isinstance(item, str) else id(item)
        if key not in self._made:
            self._made[key] = self._encoded(item)
        uri = self._made[key]
        if uri is None:
            return None
        if len(uri) > self.bytes_left:
            self.left_out += 1
            return None
        self.bytes_left -= len(uri)
        return uri

    def _encoded(self, item: Any) -> str | None:
        try:
            image = read_image(item, "An image")
        except DataError:
            return None
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
