"""Sentences of a report as HTML: commands in code font, and words that must not be broken at the end of a line."""

import re

from markupsafe import Markup, escape

_CODE = re.compile(r"`([^`\n]+)`")
# A word with hyphens, such as "t-shirt", of a length that fits into any line.
_HYPHENATED = re.compile(r"(?<![\w&-])\w+(?:-\w+)+(?![\w-])")
_LONGEST = 24


def prose(text: object) -> Markup:
    """Return a text as HTML. What is between backticks is code; short words with a hyphen stay on one line."""
    parts = _CODE.split(str(text))
    return Markup("").join(_code(part) if place % 2 else _words(part) for place, part in enumerate(parts))


def _code(text: str) -> Markup:
    words = (_unbroken(word) for word in text.split(" "))
    return Markup("<code>{}</code>").format(Markup(" ").join(words))


def _words(text: str) -> Markup:
    found, end = Markup(""), 0
    for match in _HYPHENATED.finditer(text):
        found += escape(text[end : match.start()]) + _unbroken(match[0])
        end = match.end()
    return found + escape(text[end:])


def _unbroken(word: str) -> Markup:
    if len(word) > _LONGEST or "-" not in word:
        return escape(word)
    return Markup('<span class="nb">{}</span>').format(word)
