"""The errors of this package. The command line prints their message without a traceback.

A `UserError` ends a command with exit code 2: something given cannot be used. A `NonFiniteLossError` ends it with 1.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence


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


def numbered(problems: Sequence[str]) -> str:
    """Return one message for several problems, or the only one unchanged."""
    if len(problems) == 1:
        return problems[0]
    rows = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
    return f"{len(problems)} things do not work:\n{rows}"


class Problems:
    """Collects errors that a user can fix, so that they are raised together."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def add(self, messages: Iterator[str]) -> None:
        """Add an error for each message."""
        self._errors += [RecipeError(message) for message in messages]

    @property
    def errors(self) -> list[UserError]:
        """What was collected, in this order."""
        return list(self._errors)

    def extend(self, errors: Iterable[UserError]) -> None:
        """Add errors, each of several problems as one by one."""
        for error in errors:
            self._errors += problems_of(error)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep an error that is raised inside, and continue after the block."""
        try:
            yield
        except UserError as error:
            self.extend([error])

    def raise_all(self) -> None:
        """Raise what was collected.

        Raises:
            UserError: There was one problem; it is raised as it is.
            RecipeError: There were several; its `problems` are the errors.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            several = RecipeError(numbered([str(error) for error in self._errors]))
            several.problems = tuple(self._errors)
            raise several


def problems_of(error: UserError) -> list[UserError]:
    """Return the problems that an error names: several of a `RecipeError` that has several, else the error itself."""
    return list(getattr(error, "problems", ())) or [error]


def own_message(error: UserError) -> str:
    """Return the message that an error was raised with.

    A data loader raises the error of a worker again with the worker's traceback as its text, the message at the end.
    """
    text = str(error)
    if not (text.startswith("Caught ") and "Traceback (most recent call last)" in text):
        return text
    return text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2].rstrip("\n")
