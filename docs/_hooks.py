"""Hooks of mkdocs: links to files outside docs/ work on the site, no page requests anything from other hosts, and figures do not break.

Pages link to other files as they do on a disk or a code host (`../CONTRIBUTING.md`, `../training/accelerate/ddp.yaml`). Markdown files
become pages of the site; other files are copied beside the pages, under `repository/`. A link to a folder becomes plain text.
"""

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

logger = logging.getLogger("mkdocs.hooks.docs")  # a warning fails a strict build

ROOT = Path(__file__).resolve().parents[1]
NAMED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # pages of the navigation
# [text](target) or ![text](target "title"), where target is relative; a `#anchor` may follow it.
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s:#]+)(#[^()\s]*)?((?:\s+\"[^\"]*\")?)\)")
# What a browser loads with a page; the theme would fetch the script of mermaid diagrams from another host.
REQUEST = re.compile(
    r"<(?:link|script|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]+)|class=[\"']?(mermaid)"
)
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def _site_path(path: str) -> str:
    """Return the place on the site of a file, by its path in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return NAMED.get(path, f"repository/{path}")


def _target(page: str, link: str) -> str:
    """Return the path in the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _repository_path(site_path: str) -> str:
    names = {place: path for path, place in NAMED.items()}
    if site_path in names:
        return names[site_path]
    return site_path.removeprefix("repository/") if site_path.startswith("repository/") else f"docs/{site_path}"


def _outside(text: str) -> str:
    """Return the text without its code."""
    return CODE.sub("", text)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files that pages link to, and those that they link to in turn."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path in NAMED:
        files.append(File.generated(config, NAMED[path], abs_src_path=str(ROOT / path)))
        waiting.append(path)
    while waiting:
        page = waiting.pop()
        for found in LINK.finditer(_outside((ROOT / page).read_text(encoding="utf-8"))):
            path = _target(page, found[3])
            if not (ROOT / path).is_file() or files.get_file_from_path(_site_path(path)) is not None:
                continue
            if path.startswith(("../", "docs/")):
                continue  # not of the repository; or a page that is missing, which mkdocs reports
            added = File.generated(config, _site_path(path), abs_src_path=str(ROOT / path))
            added.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(added)
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links to files of the repository into links to their copies on the site."""
    source = _repository_path(page.file.src_uri)

    def rewritten(found: re.Match) -> str:
        mark, text, link, anchor, title = found.groups()
        path = _target(source, link)
        if (ROOT / path).is_dir():
            return text
        place = _site_path(path)
        if files.get_file_from_path(place) is None:
            return found[0]
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"{mark}[{text}]({os.path.relpath(place, start).replace(os.sep, '/')}{anchor or ''}{title})"

    kept: list[str] = []  # code, which is not changed; marks stand for it meanwhile, since a link's text may hold code

    def keep(found: re.Match) -> str:
        kept.append(found[0])
        return f"\x00{len(kept) - 1}\x00"

    return re.sub(r"\x00(\d+)\x00", lambda mark: kept[int(mark[1])], LINK.sub(rewritten, CODE.sub(keep, markdown)))


# A figure and its unit or error stay on one line: "63.5 ± 1.9 %", "96 px".
SPACE_IN_FIGURE = re.compile(r"(?<=\d) (?=(?:±|×|%|px|GB|MB|GiB|MiB|KiB|ms|s)(?!\w))|(?<=[±×]) (?=\d)")
# Code in a line or a cell breaks at spaces, and after these signs.
INLINE_CODE = re.compile(r"(<code>)([^<]*)(</code>)")
BLOCK = re.compile(r"(<pre\b.*?</pre>)", re.DOTALL)
PIECE = re.compile(r"[^\s_/=,:]*[_/=,:]*|\s+")
TAG_OR_CODE = re.compile(r"(<(pre|code|script|style)\b.*?</\2>|<[^>]*>)", re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Put no-break spaces into figures, and let code break between the words of a name but not in a word or after `--`."""

    def pieces_of(code: re.Match) -> str:
        words = (word for word in PIECE.findall(code[2]) if word)
        marked = "<wbr>".join(word if word.isspace() else f"<span>{word}</span>" for word in words)
        return f"{code[1]}{marked}{code[3]}"

    blocks = BLOCK.split(html)
    html = "".join(text if number % 2 else INLINE_CODE.sub(pieces_of, text) for number, text in enumerate(blocks))
    pieces, end = [], 0
    for found in TAG_OR_CODE.finditer(html):
        pieces += [SPACE_IN_FIGURE.sub("\N{NO-BREAK SPACE}", html[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*pieces, SPACE_IN_FIGURE.sub("\N{NO-BREAK SPACE}", html[end:])])


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn of anything that a page would load from another host."""
    for found in REQUEST.finditer(output):
        logger.warning("%s would load %s from another host.", page.file.src_uri, found[1] or found[2])
    return output
