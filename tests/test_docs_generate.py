"""The generated parts of docs/recipes.md against the dataclasses and recipes they are made of."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_deit.recipes.arguments import GROUPS
from hf_deit.recipes.reading import recipe_names

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["PAGE", "FIELDS_PAGE"])
def test_a_generated_page_is_up_to_date(generate, page):
    text = getattr(generate, page).read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run python docs/generate.py"


def test_every_field_of_training_arguments_has_a_row_with_its_use(generate):
    text = generate.FIELDS_PAGE.read_text(encoding="utf-8")
    names = [entry.name for entry in dataclasses.fields(TrainingArguments)]
    assert [name for name in names if f"\n| `{name}` | " not in text] == []


def test_a_changed_default_or_help_is_noticed(generate):
    text = generate.PAGE.read_text(encoding="utf-8")
    for old, new in (
        ("| `distillation_tau` | `3` |", "| `distillation_tau` | `2` |"),
        ("Number of layers.", "Layers."),
    ):
        assert old in text
        assert generate.generated(text.replace(old, new)) == text


def test_every_recipe_and_every_field_of_the_package_has_a_row(generate):
    text = generate.PAGE.read_text(encoding="utf-8")
    names = [name for group in GROUPS.values() for name in group.__dataclass_fields__] + [
        "distillation_tau",
        "ema_epochs",
    ]
    assert [name for name in [*recipe_names(), *names] if f"\n| `{name}` |" not in text] == []


@pytest.mark.parametrize("text", ["<!-- generated: other -->", "<!-- generated: fields -->"])
def test_an_unknown_part_and_one_without_an_end_raise(generate, text):
    with pytest.raises(ValueError, match=text.split()[2]):
        generate.generated(text)
