"""Errors a user can mend: the command line prints their message without a traceback and exits with 2."""


class UserError(ValueError):
    """Something given to the package is not allowed; the message says what was given, what is allowed, how to mend it."""


def own_message(error: UserError) -> str:
    """Gives the message an error was raised with.

    A data loader raises the error of a worker again with the worker's traceback as its text, the message at the end.
    """
    text = str(error)
    if not (text.startswith("Caught ") and "Traceback (most recent call last)" in text):
        return text
    return text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2].rstrip("\n")


class DataError(UserError):
    """Data that cannot be trained on; the message names the file, class or column and the remedy."""


class RecipeError(UserError):
    """A recipe with unknown, missing or impossible fields."""
