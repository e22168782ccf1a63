"""Sizes of images in pixels: `(height, width)` from what configurations hold and from what a user gives."""

from collections.abc import Iterable, Sequence

from .errors import RecipeError


def as_pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Return `(height, width)` in pixels for a number or a pair, as configurations hold it."""
    if isinstance(size, Iterable):
        height, width = size
        return height, width
    return size, size


def as_size(name: str, value: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return `(height, width)` for one number of pixels, or for two; None stays None.

    Args:
        name: Field that the value belongs to, for the message.
        value: Pixels: one number, alone or in a sequence, or height and width.

    Raises:
        RecipeError: There are more than two numbers, or none, or one is not a whole number above 0.
    """
    if value is None:
        return None
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 for side in sides):
        raise RecipeError(f"{name}={sides}: give one whole number of pixels above 0, or height and width.")
    return sides[0], sides[-1]
