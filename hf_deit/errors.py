"""The errors of this package. The command line prints their message without a traceback.

A `UserError` ends a command with exit code 2: something given cannot be used. A `NonFiniteLossError` ends it with 1.
"""


class UserError(ValueError):
    """Something given to the package cannot be used; the message says what was given, what is allowed, and how to fix it."""


class DataError(UserError):
    """Data that cannot be trained on; the message names the file, class or column and the remedy."""


class RecipeError(UserError):
    """Fields or arguments that are unknown, missing or impossible, or that do not go together.

    Attributes:
        problems: Where the message numbers several problems, an error for each.
    """

    problems: tuple[UserError, ...] = ()


class TeacherError(UserError):
    """A teacher that cannot teach this student; the message says what differs and how to fix it."""


class TeacherCacheError(UserError):
    """A teacher cache that is damaged, unfinished or made for something else; the message names what differs."""


class ResumeError(UserError):
    """A checkpoint that the present run cannot resume from; the message names the field that differs."""


class PublishError(UserError):
    """A model, card or Space that cannot be published, or that the Hub did not take."""


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message holds the step, the loss terms and the learning rate."""


def own_message(error: UserError) -> str:
    """Return the message that an error was raised with.

    A data loader raises the error of a worker again with the worker's traceback as its text, the message at the end.
    """
    text = str(error)
    if not (text.startswith("Caught ") and "Traceback (most recent call last)" in text):
        return text
    return text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2].rstrip("\n")
