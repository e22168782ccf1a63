"""The errors of this package. The command line prints their message without a traceback.

A `UserError` means that an input cannot be used; it ends a command with exit code 2. A `NonFiniteLossError` ends a
command with exit code 1.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence


class UserError(ValueError):
    """Error for an input that cannot be used. The message states what was given, what is allowed, and how to fix it."""


class DataError(UserError):
    """Error for data that cannot be used. The message names the file, class or column, and how to fix it."""


class RecipeError(UserError):
    """Error for fields or arguments that are unknown, missing or invalid, or that contradict each other.

    Attributes:
        problems: One error for each problem, if the message lists several problems; otherwise empty.
    """

    problems: tuple[UserError, ...] = ()


class TeacherError(UserError):
    """Error for a teacher that cannot teach this student. The message states what differs and how to fix it."""


class TeacherCacheError(UserError):
    """Error for a teacher cache that is damaged, unfinished or made for another run. The message names what differs."""


class ResumeError(UserError):
    """Error for a checkpoint that the current run cannot resume from. The message names the field that differs."""


class PublishError(UserError):
    """Error for a model, card or Space that cannot be published, or that the Hub refused."""


class NonFiniteLossError(RuntimeError):
    """Error for training that diverged. The message contains the step, the loss terms and the learning rate."""


LISTED = 10  # entries of a list in a message


def listed(values: Iterable[object], show: Callable[[object], str] = repr) -> str:
    """Return the entries of a list for a message: at most ten, and the number of all if there are more.

    Args:
        values: The entries.
        show: Function that returns the text of an entry. Names that a person chose, such as those of classes, are quoted
            (`repr`).
    """
    values = list(values)
    shown = ", ".join(map(show, values[:LISTED]))
    return shown if len(values) <= LISTED else f"{shown}, … ({len(values)} in all)"


def listed_lines(texts: Sequence[str]) -> str:
    """Return a list for the end of a message, one line per entry: at most ten, and the number of the others."""
    rest = f"\n  … and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "\n  ".join(["", *texts[:LISTED]]) + rest


def numbered(problems: Sequence[str]) -> str:
    """Return one message that lists all problems. A single problem is returned unchanged."""
    if len(problems) == 1:
        return problems[0]
    rows = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
    return f"{len(problems)} things do not work:\n{rows}"


class Problems:
    """Collection of errors that a user can fix, so that all of them are raised together."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def add(self, messages: Iterator[str]) -> None:
        """Add an error for each message."""
        self._errors += [RecipeError(message) for message in messages]

    @property
    def errors(self) -> list[UserError]:
        """The collected errors, in the order in which they were added."""
        return list(self._errors)

    def extend(self, errors: Iterable[UserError]) -> None:
        """Add errors. An error that lists several problems is added as one error per problem."""
        for error in errors:
            self._errors += problems_of(error)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Catch and collect a `UserError` that the block raises; execution continues after the block."""
        try:
            yield
        except UserError as error:
            self.extend([error])

    def raise_all(self) -> None:
        """Raise the collected errors; do nothing if there are none.

        Raises:
            UserError: One error was collected; this error is raised unchanged.
            RecipeError: Several errors were collected; its `problems` contain them.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            several = RecipeError(numbered([str(error) for error in self._errors]))
            several.problems = tuple(self._errors)
            raise several


def problems_of(error: UserError) -> list[UserError]:
    """Return the problems that an error lists, one error each. An error that lists none is returned itself."""
    return list(getattr(error, "problems", ())) or [error]


def own_message(error: UserError) -> str:
    """Return the message that an error was originally raised with.

    When a worker of a data loader raises an error, PyTorch raises it again in the main process, and its text becomes
    the traceback of the worker. The original message is at the end of this text.
    """
    text = str(error)
    if not (text.startswith("Caught ") and "Traceback (most recent call last)" in text):
        return text
    return text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2].rstrip("\n")
