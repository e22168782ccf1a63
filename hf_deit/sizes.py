"""Image sizes in pixels, as `(height, width)`, from the values in configurations and from the input of users."""

from collections.abc import Iterable, Sequence

from .errors import RecipeError


def as_pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Return `(height, width)` in pixels for one number or a pair, the two forms in a configuration."""
    if isinstance(size, Iterable):
        height, width = size
        return height, width
    return size, size


def as_size(name: str, value: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return `(height, width)` for one or two numbers of pixels. None is returned unchanged.

    Args:
        name: Name of the field, for the error message.
        value: One number (alone or in a sequence), or a sequence of height and width.

    Raises:
        RecipeError: The value is not one or two numbers, or a number is not a whole number above 0.
    """
    if value is None:
        return None
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 for side in sides):
        raise RecipeError(f"{name}={sides}: give one whole number of pixels above 0, or height and width.")
    return sides[0], sides[-1]
