"""The documents: their links and anchors exist, their Python runs, their commands are ones that the parsers accept.

A Python block runs in a folder with a small data set, teacher and student, and its trainings stop after two steps; the blocks of one
page share their names. A comment `<!-- not run: REASON -->` on the line above a block keeps it from being run; it must be valid
Python all the same.
"""

import ast
import contextlib
import dataclasses
import os
import re
import shlex
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version
from PIL import Image

import hf_deit
from hf_deit.cli.commands import COMMANDS, build_parser
from hf_deit.errors import RecipeError
from hf_deit.recipes.reading import AUTO, load_recipe, recipe_names, recipe_parser
from hf_deit.trainer.training_args import DistillationTrainingArguments

from .helpers.images import folder_of
from .helpers.tiny import student

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("model_cards", "training")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
WITH_FIELDS = ("train", "show-augmentations", "cache-teacher", "sweep")  # they take the fields of recipes too
OMISSIONS = ("…", "...")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(text):
    """Return the text without its code blocks."""
    return FENCE.sub("", text)


def blocks(text, *languages):
    """Return line number, mark and code of each block in these languages."""
    found = []
    for match in FENCE.finditer(text):
        if match[2] in languages:
            above = text[: match.start()].rstrip("\n").rpartition("\n")[2].strip()
            code = "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())
            found.append((text.count("\n", 0, match.start()) + 1, above, code))
    return found


# ---- links ----


def anchors(path):
    """Return the anchors of a page: its headings as GitHub and the site name them, and what is named by hand."""
    text = path.read_text(encoding="utf-8")
    names, seen = set(re.findall(r'(?:id|name)="([^"]+)"', text)) | set(re.findall(r"\{#([\w-]+)\}", text)), {}
    names |= set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(text), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"\{#[\w-]+\}", "", heading)).strip()
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = seen[name] = seen.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def links(text):
    text = re.sub(r"`[^`\n]*`", "`code`", prose(text))
    found = re.findall(r"\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    found += re.findall(r"<(?:a|img)\b[^>]*(?:href|src)=\"([^\"]+)\"", text)
    found += re.findall(r"^\[[^\]]+\]: +(\S+)", text, re.MULTILINE)
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:", link)]


@pages
def test_relative_links_lead_to_files_and_anchors_that_exist(page):
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in (target, *target.parents), f"{link} leaves the repository"
        if anchor:
            assert target.suffix == ".md" and anchor in anchors(target), link


def test_the_navigation_of_the_site_names_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r"[\w-]+\.md", text)
    from_outside = {"contributing.md", "changelog.md"}  # docs/_hooks.py takes them from the repository's root
    assert len(set(named)) == len(named)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} | from_outside == set(named)


def test_the_reference_documents_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: hf_deit\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sorted({*hf_deit.__all__, "errors"})
    assert all(hasattr(hf_deit, name) for name in hf_deit.__all__)


# ---- messages ----

PLACEHOLDER = re.compile(r"'[^']*'|\b[XYN]\b|H×W|\bDATA\b|…|\d+")
OF_OTHER_PACKAGES = {"CUDA out of memory"}


def message_texts():
    """Return all texts in the code of the package; a NUL replaces each value that is inserted."""
    texts = set()
    for path in (ROOT / "hf_deit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"%\w", "\0", node.value))
    return texts


def quoted_messages():
    """Return the messages in the first column of the tables of troubleshooting.md."""
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return {
        quote for line in lines if line.startswith("| `") for quote in re.findall("`([^`]+)`", line.split(" | ")[0])
    }


def test_the_page_on_troubleshooting_quotes_messages_that_the_package_has():
    texts, missing = message_texts(), set()
    for quote in quoted_messages() - OF_OTHER_PACKAGES:
        parts = [part.strip(" .,:=()") for part in PLACEHOLDER.split(quote)]
        pattern = re.compile(".*".join(re.escape(part) for part in parts if re.search(r"\w", part)), re.DOTALL)
        if not any(pattern.search(text) for text in texts):
            missing.add(quote)
    assert len(quoted_messages()) > 50
    assert not missing


# ---- commands ----

PARSERS = next(action.choices for action in build_parser()._actions if action.dest == "command")
FIELDS = {option for action in recipe_parser()._actions for option in action.option_strings}


SHELL = re.compile(
    r"""\#[^\n]* | (?P<end>[;|&()\n]+) | [<>]+ | (?P<word>(?:"(?:\\.|[^"\\])*" | '[^']*' | \\. | [^\s;|&()<>"'\\])+)""",
    re.VERBOSE | re.DOTALL,
)


def simple_commands(script):
    """Return the commands of a script as lists of words; comments are dropped, `…` stays."""
    commands = [[]]
    for token in SHELL.finditer(script.replace("\\\n", " ")):
        if token["end"]:
            commands.append([])
        elif token["word"]:
            commands[-1] += shlex.split(token["word"])
    return [words for words in commands if words]


def test_a_script_is_read_as_a_shell_reads_it():
    script = "A=1 x --sep ';' 'a b' \\\n  --y # ; z\n(cd \"$D\" && y \"two\nlines\") | z"
    assert simple_commands(script) == [
        ["A=1", "x", "--sep", ";", "a b", "--y"],
        ["cd", "$D"],
        ["y", "two\nlines"],
        ["z"],
    ]


def hf_deit_words(words):
    """Return what follows `hf-deit`, however it is launched; None for another command."""
    while words and (re.match(r"\w+=", words[0]) or words[0] in ("time", "$")):
        words = words[1:]
    if words[:1] == ["hf-deit"]:
        return words[1:]
    for number, word in enumerate(words):
        if word == "training/run_distillation.py":
            return ["train", *words[number + 1 :]]
        if words[number : number + 2] == ["-m", "hf_deit.cli"]:
            return words[number + 2 :]
    return None


def check_names(words):
    """Check the command's name, and the names of its options and fields."""
    command, *rest = words
    assert command in COMMANDS, f"no command {command}"
    known = set(PARSERS[command]._option_string_actions) | (FIELDS if command in WITH_FIELDS else set())
    for number, word in enumerate(rest):
        if word.startswith("--") and word != "--":
            assert word.partition("=")[0] in known, f"hf-deit {command} has no {word}"
        if word == "--recipe" and number + 1 < len(rest) and re.fullmatch(r"[a-z0-9_]+", rest[number + 1]):
            known_recipes = (*recipe_names(), AUTO) if command != "sweep" else recipe_names()
            assert rest[number + 1] in known_recipes, f"no recipe {rest[number + 1]}"


def check_command(words, capsys):
    """Check a command with the parsers that run it; where something is left out (…), its names only."""
    open_ended = any(word in OMISSIONS for word in words)
    words = [word.strip("[]") if "[" in word or "]" in word else word for word in words if word not in OMISSIONS]
    if not words or words[0].startswith("-"):
        return
    check_names(words)
    stand_ins = any(re.fullmatch(r"[A-Z][A-Z_0-9]*", word) for word in words)
    if open_ended or stand_ins or {"-h", "--help", "--help-all"} & {*words}:
        return
    try:
        options, fields = build_parser().parse_known_args(words)
    except SystemExit:
        pytest.fail(f"hf-deit {shlex.join(words)}: {capsys.readouterr().err}")
    if options.command not in WITH_FIELDS:
        assert fields == [], shlex.join(words)
        return
    try:
        load_recipe({"output_dir": "out"}, fields)
    except RecipeError as error:
        pytest.fail(f"hf-deit {shlex.join(words)}: {error}")


@pages
def test_commands_of_blocks_are_accepted_by_the_parsers(page, capsys):
    for line, _, script in blocks(page.read_text(encoding="utf-8"), "bash", "sh", "console"):
        for words in simple_commands(script):
            command = hf_deit_words(words)
            if command is not None:
                check_command(command, capsys)
            for word in words:
                if re.fullmatch(r"(training|benchmarks|tests|hf_deit)/[\w./-]+\.(py|sbatch|yaml)", word):
                    assert (ROOT / word).exists(), f"line {line}: {word}"


@pages
def test_commands_in_the_text_name_options_that_exist(page):
    for code in re.findall(r"`(hf-deit [^`\n]+)`", prose(page.read_text(encoding="utf-8"))):
        with contextlib.suppress(ValueError):  # an apostrophe: no whole command
            words = [word.strip("[]") for word in shlex.split(code)[1:] if word not in OMISSIONS]
            if words and not words[0].startswith("-") and words[0] != "COMMAND":
                check_names(words)


@pages
def test_extras_that_are_installed_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for names in re.findall(r"(?:hf[-_]deit|[\"' ]\.)\[([\w,]+)\]", page.read_text(encoding="utf-8")):
        assert set(names.split(",")) <= set(extras), names


def test_the_migration_page_names_fields_that_exist_and_the_defaults_they_have():
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    others, stock = text.split("## From the stock")
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", others, re.MULTILINE)]
    named = {name for row in rows for name in re.findall(r"`([a-z]\w+)`", row[1])}
    assert len(named) > 40
    assert {f"--{name}" for name in named} <= FIELDS
    defaults = {entry.name: entry.default for entry in dataclasses.fields(DistillationTrainingArguments)}
    defaults["eval_strategy"] = "epoch"  # with an evaluation set
    table = stock.split("| you have")[0]
    for name, here in re.findall(r"^\| `(\w+)` \| [^|]* \| ([^\s,:|]+)", table, re.MULTILINE):
        default = defaults[name]
        assert (here == str(default).lower()) if isinstance(default, bool | str) else float(here) == default, name


# ---- Python ----


@pages
def test_python_blocks_compile(page):
    for line, _, code in blocks(page.read_text(encoding="utf-8"), "python", "py"):
        compile("\n" * line + code, str(page), "exec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the pages assume one: photos/, photo.jpg, a teacher and a student, out/. Trainings are cut to two steps."""
    place = tmp_path_factory.mktemp("docs")
    names = ("ant", "bee", "cat")
    for split, count in (("train", 8), ("validation", 2)):
        folder_of(place / "photos" / split, dict.fromkeys(names, count))
    Image.new("RGB", (40, 30), "olive").save(place / "photo.jpg")
    for name, two_heads in (("out", True), ("teacher", False)):
        student(two_heads, names=names).save_pretrained(place / name)
        hf_deit.DeiTImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}).save_pretrained(
            place / name
        )

    def short(arguments):
        arguments.max_steps, arguments.report_to, arguments.disable_tqdm = 2, "none", True
        arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = 4
        arguments.gradient_accumulation_steps = 1
        checked(arguments)

    checked = DistillationTrainingArguments.__post_init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainingArguments, "__post_init__", short)
        patch.chdir(place)
        yield place


# transformers 5.17 has no AutoImageProcessor without torchvision.
NEEDS_TORCHVISION = Version(version("transformers")) < Version("5.18") and find_spec("torchvision") is None


@pages
def test_python_blocks_run(page, request, capsys):
    found = blocks(page.read_text(encoding="utf-8"), "python", "py")
    to_run = [(line, code) for line, above, code in found if not NOT_RUN.fullmatch(above)]
    if not to_run:
        return
    request.getfixturevalue("folder")
    names = {"__name__": "__main__"}
    for line, code in to_run:
        if "AutoImageProcessor" in code and NEEDS_TORCHVISION:
            continue
        exec(compile("\n" * line + code, os.fspath(page), "exec"), names)


def test_a_mark_keeps_a_block_from_being_run_only_with_a_reason_on_the_line_above():
    text = "<!-- not run: it waits for a Hub -->\n```python\n1 / 0\n```\n\n<!-- not run -->\n\n```python\n2\n```\n"
    marks = [bool(NOT_RUN.fullmatch(above)) for _, above, _ in blocks(text, "python")]
    assert marks == [True, False]
    assert [line for line, _, _ in blocks(text, "python")] == [2, 8]


def test_the_architecture_lists_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", text.partition("```\nhf_deit/")[2].partition("```")[0]))
    modules = {path.stem for path in (ROOT / "hf_deit").rglob("*.py") if "space_template" not in path.parts}
    forwarding = {"networks"}  # kept for files of users that name it
    assert modules - forwarding - {"__main__"} <= listed
