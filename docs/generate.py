"""Write the generated parts of recipes.md and fields.md: the recipes, their fields with defaults, and the use of every field.

The texts come from the headers of the recipes, from the `metadata["help"]` of the dataclasses, and from
hf_deit/trainer/fields.py, and are edited there. A part
stands between `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`; everything else on the page stays as it is.

    python docs/generate.py
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("recipes.md")
FIELDS_PAGE = Path(__file__).with_name("fields.md")
# Headings of the groups of fields, by attribute of `Recipe`.
HEADINGS = {
    "model": "Student",
    "data": "Images",
    "augmentation": "Augmentation of one image",
    "teacher": "Teacher",
    "run": "Run",
    "training": "Distillation, views and optimisation",
}


def generated(text: str) -> str:
    """Return the text of a page with all of its generated parts as the code has them today.

    Raises:
        ValueError: A part is unknown, or its end is missing.
    """
    names = re.findall(r"<!-- generated: (\w+) -->", text)
    for name in names:
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of generated: {name} -->"
        if name not in PARTS or text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"Part {name!r}: use one of {', '.join(PARTS)}, once, with one begin and one end.")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n\n{PARTS[name]()}\n\n{end}{after}"
    return text


def recipes_table() -> str:
    """Return a table of the recipes of the package, with the accuracy that the paper reports."""
    from hf_deit.recipes.reading import listed_recipes

    rows = [(f"`{name}`", what, accuracy) for name, what, accuracy in listed_recipes()]
    return table(("recipe", "what it trains", "the paper's top-1, not measured here"), rows)


def fields_tables() -> str:
    """Return a table for each group of fields of a recipe: field, default, meaning.

    Of the training arguments only the fields that this package defines or documents are listed. The others are stock
    fields of transformers, whose help depends on the installed version.
    """
    from hf_deit.recipes.arguments import field_groups

    parts = []
    for attribute, group in field_groups().items():
        rows = [(f"`{entry.name}`", default_of(entry), meaning_of(entry)) for entry in own_fields(group)]
        parts += [f"### {HEADINGS[attribute]}", table(("field", "default", "meaning"), rows)]
    return "\n\n".join(parts)


def uses_table() -> str:
    """Return a table of the fields of `TrainingArguments`: whether they have an effect, what reads them, on what they depend."""
    from hf_deit.trainer.fields import CONDITIONS, PYTHON_FIELDS, STOCK_FIELDS

    needs = {name: condition.text for condition in CONDITIONS for name in condition.names}
    rows = []
    for name, use in STOCK_FIELDS.items():
        how = use.text if use.kind == "refused" else f"`{use.text}`"
        commands = f"refused: {PYTHON_FIELDS[name]}" if name in PYTHON_FIELDS else ""
        rows.append((f"`{name}`", use.kind, how, needs.get(name, ""), commands))
    return table(("field", "use", "read by, or why it is refused", "only with", "in the commands"), rows)


def own_uses_table() -> str:
    """Return a table of the fields of this package that have an effect only together with others."""
    from hf_deit.recipes.arguments import field_groups
    from hf_deit.recipes.unused_fields import RECIPE_CONDITIONS
    from hf_deit.trainer.fields import CONDITIONS, STOCK_FIELDS

    own = {entry.name for group in field_groups().values() for entry in own_fields(group)}
    rows = [
        (f"`{name}`", condition.text)
        for condition in (*CONDITIONS, *RECIPE_CONDITIONS)
        for name in condition.names
        if (name in own and name not in STOCK_FIELDS) or condition in RECIPE_CONDITIONS
    ]
    return table(("field", "only with"), rows)


def uses_counts() -> str:
    """Return the numbers of fields by their use."""
    from hf_deit.recipes.arguments import field_groups
    from hf_deit.trainer.fields import CONDITIONS, PYTHON_FIELDS, STOCK_FIELDS

    kinds = [use.kind for use in STOCK_FIELDS.values()]
    own = {entry.name for group in field_groups().values() for entry in own_fields(group)} - STOCK_FIELDS.keys()
    dependent = {name for condition in CONDITIONS for name in condition.names if name in STOCK_FIELDS}
    rows = [
        (
            "`TrainingArguments`",
            str(len(kinds)),
            *(str(kinds.count(kind)) for kind in ("effect", "refused", "other hardware")),
        ),
        ("this package", str(len(own)), str(len(own)), "0", "0"),
    ]
    counts = table(("fields of", "number", "effect", "refused", "other hardware"), rows)
    return (
        f"{counts}\n\nOf the fields of `TrainingArguments`, {len(dependent)} have an effect only together with others, and "
        f"{len(PYTHON_FIELDS)} only in Python, so that the commands refuse them."
    )


def own_fields(group: type) -> Iterator[dataclasses.Field]:
    """Return the fields that a dataclass defines itself, in its order and without inherited ones."""
    entries = {entry.name: entry for entry in dataclasses.fields(group) if entry.init}
    return (entries[name] for name in inspect.get_annotations(group) if name in entries)


def default_of(entry: dataclasses.Field) -> str:
    """Return the default of a field as a recipe writes it; empty where the meaning explains the default."""
    value: Any = entry.default
    if value is None or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    values = value if isinstance(value, tuple) else (value,)
    text = ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in values)
    return f"`[{text}]`" if isinstance(value, tuple) else f"`{text}`"


def meaning_of(entry: dataclasses.Field) -> str:
    """Return the help of a field, with its choices where the help does not name them all."""
    text, choices = entry.metadata["help"], entry.metadata.get("choices") or ()
    if not all(choice in text for choice in choices):
        text = f"{text.rstrip('.')}. One of {', '.join(choices)}."
    return text


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "recipes": recipes_table,
    "fields": fields_tables,
    "counts": uses_counts,
    "uses": uses_table,
    "conditions": own_uses_table,
}


if __name__ == "__main__":
    for page in (PAGE, FIELDS_PAGE):
        page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")
