"""Near-duplicates: the same photograph twice, also compressed again, resized or cropped.

Two steps: hashes of 64 bits (pHash and dHash) of the image and of five crops of 90 % of it propose pairs; each proposed pair is then
compared pixel by pixel at 64 × 64, at the best of several scales and offsets. Hashes alone confuse product photographs on a white
ground, which have the same outline.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import read_image
from ..errors import DataError

MOST_IMAGES = 50_000
SIDE = 64  # of the grey image that is kept of each photograph
_HASH_SIDE, _KEPT = 32, 8  # pHash: a cosine transform of 32 × 32, of which 8 × 8 coefficients are kept
_P_BITS, _D_BITS = 11, 15  # hashes that differ in at most so many of 64 bits propose a pair
_CROPS = ((0.05, 0.05), (0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.1))  # left and top of a crop of 90 %
_BLOCK = 512  # rows of images whose hashes are compared at a time
# A pair is the same photograph if the correlation of grey values and that of their details (high pass) are at least this.
_GREY, _DETAIL = 0.85, 0.92
# The same for the windows that are compared first, which need not be placed well.
_COARSE_GREY, _PROMISING = 0.7, 0.5
_MOST_PROPOSED = 20_000  # pairs that are compared pixel by pixel, those with the most similar hashes first
_COMPARED = 32  # pixels of a side at which images are compared
_STEP = 3.2  # pixels of 64 between the windows that are compared first
_SCALES = (1.0, 0.95, 0.9, 0.86)  # of the windows that are compared, in each direction


# How two images that show the same photograph differ.
BYTE_EQUAL, SAVED_AGAIN, RESIZED = "byte-equal", "saved again", "resized or cropped"


@dataclass(frozen=True)
class Pair:
    """Two images that show the same photograph.

    Args:
        first: Index of the one image, the smaller of the two.
        second: Index of the other image.
        similarity: Correlation of their details at the best scale and offset, at most 1.
    """

    first: int
    second: int
    similarity: float


def grey_images(items: Sequence[Any]) -> np.ndarray:
    """Return the images in grey at 64 × 64 pixels, whatever their shape, `(images, 64, 64)` in uint8; NaN-free, unreadable ones are 0."""

    def grey(item: Any) -> np.ndarray:
        try:
            image = read_image(item, "An image")
        except DataError:
            return np.zeros((SIDE, SIDE), np.uint8)
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0))

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as threads:
        return np.stack(list(threads.map(grey, items))) if items else np.zeros((0, SIDE, SIDE), np.uint8)


def find_pairs(images: np.ndarray) -> list[Pair]:
    """Return the pairs of images that show the same photograph, the most similar first.

    Args:
        images: As `grey_images` returns them.
    """
    if len(images) < 2:
        return []
    hashes = _Hashes.of(images)
    found = []
    for first, second in _proposed(hashes):
        similarity = similarity_of(images[first], images[second])
        if similarity is not None:
            found.append(Pair(first, second, similarity))
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def groups_of(pairs: Iterable[Pair]) -> list[list[int]]:
    """Return the groups of images that are linked by pairs, each in order, the group of the smallest index first."""
    group: dict[int, set[int]] = {}
    for pair in pairs:
        joined = group.get(pair.first, {pair.first}) | group.get(pair.second, {pair.second})
        for index in joined:
            group[index] = joined
    return sorted({min(members): sorted(members) for members in group.values()}.values())


def kind_of_copy(one: Any, other: Any) -> str:
    """Return how two images that show the same photograph differ: "byte-equal", "saved again" or "resized or cropped".

    Args:
        one: An image, as a `Source` holds it.
        other: The other image.
    """
    first, second = _content(one), _content(other)
    if first is not None and first == second:
        return BYTE_EQUAL
    try:
        same_size = read_image(one, "An image").size == read_image(other, "An image").size
    except DataError:
        return SAVED_AGAIN
    return SAVED_AGAIN if same_size else RESIZED


def _content(item: Any) -> bytes | None:
    if isinstance(item, Mapping) and item.get("bytes") is not None:
        return bytes(item["bytes"])
    path = item.get("path") if isinstance(item, Mapping) else item
    try:
        return Path(path).read_bytes() if isinstance(path, str) else None
    except OSError:
        return None


# ---- hashes ----


@dataclass(frozen=True)
class _Hashes:
    """pHash and dHash of each image, and of its crops.

    Args:
        whole: `(images, 2)` in uint64.
        crops: `(crops, images, 2)` in uint64.
        flat: Whether an image has hardly any contrast, so that its hash is noise.
    """

    whole: np.ndarray
    crops: np.ndarray
    flat: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray) -> "_Hashes":
        whole = _hashes(images)
        crops = np.stack([_hashes(_cropped(images, left, top)) for left, top in _CROPS])
        return cls(whole, crops, images.reshape(len(images), -1).std(axis=1) < 2)


def _cropped(images: np.ndarray, left: float, top: float) -> np.ndarray:
    size = round(0.9 * SIDE)
    column, row = round(left * SIDE), round(top * SIDE)
    return images[:, row : row + size, column : column + size]


def _resized(images: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return square images at another size, by the mean of the pixels under each new pixel, `(images, height, width)` in float32."""
    values = images.astype(np.float32)
    values = np.einsum("yr,nrc->nyc", _weights(images.shape[1], height), values, optimize=True)
    return np.einsum("xc,nyc->nyx", _weights(images.shape[2], width), values, optimize=True)


def _weights(old: int, new: int) -> np.ndarray:
    """Return the share of each old pixel in each new pixel, `(new, old)`."""
    edges = np.arange(new + 1) * old / new
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    overlap = np.clip(overlap, 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _hashes(images: np.ndarray) -> np.ndarray:
    small = _resized(images, _HASH_SIDE, _HASH_SIDE)
    steps = np.arange(_HASH_SIDE)
    cosines = np.cos(np.pi * (2 * steps[None] + 1) * np.arange(_KEPT)[:, None] / (2 * _HASH_SIDE)).astype(np.float32)
    frequencies = np.einsum("ur,nrc,vc->nuv", cosines, small, cosines, optimize=True).reshape(len(images), -1)
    above = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
    steps_right = _resized(images, 9, 8)
    brighter = (steps_right[:, :, 1:] > steps_right[:, :, :-1]).reshape(len(images), -1)
    return np.stack([_packed(above), _packed(brighter)], axis=1)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def _proposed(hashes: _Hashes) -> list[tuple[int, int]]:
    """Return the pairs whose hashes are similar: image and image, or image and crop of the other. The most similar are first."""
    count = len(hashes.whole)
    found: list[np.ndarray] = []
    for start in range(0, count, _BLOCK):
        rows = slice(start, min(start + _BLOCK, count))
        distance = _distance(hashes.whole[rows], hashes.whole)
        for crops in hashes.crops:
            np.minimum(distance, _distance(hashes.whole[rows], crops), out=distance)
            np.minimum(distance, _distance(crops[rows], hashes.whole), out=distance)
        distance[hashes.flat[rows, None] | hashes.flat[None]] = _FAR
        distance[np.arange(start, rows.stop)[:, None] >= np.arange(count)] = _FAR  # each pair once
        first, second = np.nonzero(distance < _FAR)
        found.append(np.stack([distance[first, second], first + start, second], axis=1).astype(np.int64))
    pairs = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
    order = np.argsort(pairs[:, 0], kind="stable")[:_MOST_PROPOSED]
    return [(int(first), int(second)) for _, first, second in pairs[order]]


_FAR = np.uint8(255)


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the number of different bits of both hashes; 255 if one of the hashes differs in too many."""
    bits = [np.bitwise_count(one[:, None, kind] ^ other[None, :, kind]) for kind in (0, 1)]
    near = (bits[0] <= _P_BITS) & (bits[1] <= _D_BITS)
    return np.where(near, bits[0] + bits[1], _FAR)


# ---- comparison of pixels ----


def similarity_of(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return how similar the details of two grey images are at the best scale and offset; None if they are different photographs.

    Args:
        one: Grey image `(64, 64)`.
        other: Grey image `(64, 64)`.
    """
    best = max(_best(one, other), _best(other, one))
    return best if best >= _DETAIL else None


def _best(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest correlation of the details of an image with those of a window of another; 0 if it is clearly too small."""
    best, place = 0.0, None
    own = _resized(one[None], _COMPARED, _COMPARED)
    for scale in _SCALES:
        spans = [(start, scale * SIDE) for start in _starts((1 - scale) * SIDE)]
        found, where = _search(own, other, spans, spans, _COARSE_GREY)
        if place is None or found > best:
            best, place = found, where
    if best < _PROMISING:
        return 0.0
    # Closer to the best window, which need not have the shape of the image.
    rows, columns = (_around(*span) for span in place)
    return _search(own, other, rows, columns, _GREY)[0]


def _starts(free: float) -> np.ndarray:
    return np.linspace(0, free, 1 + round(free / _STEP))


def _around(start: float, size: float) -> list[tuple[float, float]]:
    found = []
    for longer in (-0.03 * SIDE, 0.0, 0.03 * SIDE):
        for moved in np.linspace(-_STEP / 2, _STEP / 2, 5):
            low, high = max(start + moved, 0.0), min(start + moved + size + longer, SIDE)
            found.append((low, high - low))
    return list(dict.fromkeys(found))


def _search(
    own: np.ndarray,
    other: np.ndarray,
    rows: Sequence[tuple[float, float]],
    columns: Sequence[tuple[float, float]],
    least: float,
) -> tuple[float, tuple[tuple[float, float], tuple[float, float]]]:
    """Return the largest correlation of details with the windows of rows × columns, and the best window.

    The correlation of grey values of these windows is at least `least`.
    """
    down, across = (np.stack([_window(*span) for span in spans]) for spans in (rows, columns))
    windows = np.einsum("ayr,rc->ayc", down, other.astype(np.float32), optimize=True)
    windows = np.einsum("ayc,bxc->abyx", windows, across, optimize=True).reshape(-1, _COMPARED, _COMPARED)
    detail = _correlation(_details(own), _details(windows))
    detail = np.where(_correlation(own, windows) >= least, detail, 0.0)
    best = int(detail.argmax())
    return float(detail[best]), (rows[best // len(columns)], columns[best % len(columns)])


@lru_cache(maxsize=4096)
def _window(start: float, size: float) -> np.ndarray:
    """Return the share of each row of an image in each row of a window of it, `(32, 64)`."""
    edges = start + np.arange(_COMPARED + 1) * size / _COMPARED
    overlap = np.minimum(edges[1:, None], np.arange(1, SIDE + 1)) - np.maximum(edges[:-1, None], np.arange(SIDE))
    overlap = np.clip(overlap, 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _details(images: np.ndarray) -> np.ndarray:
    """Return the images without their mean over 5 × 5 pixels."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)), mode="edge")
    sums = np.pad(padded.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    mean = (sums[:, 5:, 5:] - sums[:, :-5, 5:] - sums[:, 5:, :-5] + sums[:, :-5, :-5]) / 25
    return images - mean


def _correlation(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    one, others = (values.reshape(len(values), -1) for values in (one, others))
    one, others = one - one.mean(axis=1, keepdims=True), others - others.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(others, axis=1)
    return (others @ one[0]) / np.maximum(lengths, 1e-6)
