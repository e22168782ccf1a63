"""What only an author can say of a model: licences, and names on the Hub; checked before it gets into a page for others.

How it is worded there is the business of card_rows.py.
"""

import re
from dataclasses import astuple, dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .run_facts import TOKEN, CardError, is_path

UNKNOWN = "unknown"
# huggingface_hub knows no list of the licences; this is what the identifiers of its website are made of.
_LICENSE = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_NAMES = ("base_model", "dataset")
_LICENCES = ("license", "data_license", "base_model_license")


def is_repo_name(text: str) -> bool:
    """Whether a text can be a name on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return not is_path(text)


def check_license(text: str, what: str = "license") -> None:
    """Checks an identifier of a licence.

    Raises:
        CardError: The Hub has none that looks like it.
    """
    if not _LICENSE.fullmatch(text):
        raise CardError(
            f"{what}={TOKEN.sub('(removed)', text)!r} is no identifier of a licence on the Hub: it takes small letters, digits, "
            "- and ., such as apache-2.0, mit, cc-by-nc-4.0, other; unknown takes one back that was stated."
        )


def check_line(text: str, what: str) -> None:
    """Checks a text for others: one line, no token of the Hub.

    Raises:
        CardError: It is not.
    """
    if TOKEN.search(text):
        raise CardError(f"{what} holds what looks like a token of the Hub (hf_…): leave it out.")
    if not text.strip() or not text.isprintable():
        raise CardError(f"{what}={text!r}: give one line of text, without line breaks.")


def _names_a_path(text: str) -> bool:
    words = [word for word in text.split() if len(word) > 1]
    absolute = any(path(word).is_absolute() for path in (PurePosixPath, PureWindowsPath) for word in words)
    return absolute or any(word.startswith(("~/", "./", "../")) for word in words)


@dataclass(frozen=True)
class Statements:
    """What only the author can say; None: not said.

    Args:
        license: The Hub's identifier, such as "apache-2.0"; "unknown" takes back what was stated before, as it does for
            the other licences.
        base_model: Hub name of the weights the run began with.
        dataset: Hub name of the data.
        data_license: Of the data, in words or as the Hub's identifier.
        base_model_license: Of the weights the run began with, likewise.

    Raises:
        CardError: A text is no such name or identifier, or holds a path, a token or a line break.
    """

    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    data_license: str | None = None
    base_model_license: str | None = None

    def __post_init__(self) -> None:
        for name in (*_LICENCES, *_NAMES):
            text = getattr(self, name)
            if text is None:
                continue
            check_line(text, name)
            if name in _NAMES and not is_repo_name(text):
                raise CardError(
                    f"{name}={text!r} is no name on the Hub: give owner/name; a path is nothing for others."
                )
            if name in _LICENCES and _names_a_path(text):
                raise CardError(f"{name}={text!r} holds a path, which is nothing for others: name the licence.")
        if self.license is not None:
            check_license(self.license)

    def or_else(self, other: "Statements") -> "Statements":
        """Gives these, and where one is missing the other's."""
        return Statements(*(mine or theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def without_withdrawn(self) -> "Statements":
        """Gives these without the licences that are "unknown", which is as good as not said."""
        return replace(self, **{name: None for name in _LICENCES if getattr(self, name) == UNKNOWN})

    def metadata(self) -> dict[str, object]:
        """The fields of the Hub's metadata; also those that it has no field for, to be known when a card is rendered again."""
        return {
            "license": self.license or UNKNOWN,
            "base_model": self.base_model,
            "datasets": None if self.dataset is None else [self.dataset],
            "data_license": self.data_license,
            "base_model_license": self.base_model_license,
        }
