"""Recipe files: loading by name, the fields of a base, the text as one file, and the header."""

import pytest
import yaml

from hf_deit.errors import RecipeError
from hf_deit.recipes.reading import (
    header,
    launch_commands,
    listed_recipes,
    read_fields,
    recipe_names,
    recipe_path,
    whole_text,
)

HARD = "deit_tiny_hard_300ep"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Folder that replaces the recipes of the package, with valid and invalid ones."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr("hf_deit.recipes.reading.FOLDER", folder)
    for name, text in {
        "whole": "student: plain\npreset: tiny\n",
        "derived": "# A recipe.\nbase: whole\npreset: small\n",
        "chained": "base: derived\n",
        "one": "base: two\n",
        "two": "base: one\n",
        "self": "base: self\n",
        "lost": "base: whale\n",
        "numbered": "base: 3\n",
        "listing": "base: [whole]\n",
        "empty": "base:\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_fields_of_a_file_override_those_of_its_base(package):
    assert read_fields(package / "derived.yaml") == {"student": "plain", "preset": "small"}


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("chained", ["chained.yaml", "base: derived", "whole"]),
        ("one", ["one.yaml", "base: two", "one"]),  # a cycle
        ("self", ["self.yaml", "base: self"]),
        ("lost", ["lost.yaml", "'whale'", "Did you mean whole"]),
        ("numbered", ["numbered.yaml", "base: 3", "hf-deit recipes"]),
        ("listing", ["listing.yaml", "base: ['whole']", "hf-deit recipes"]),
        ("empty", ["empty.yaml", "base: None", "hf-deit recipes"]),
    ],
)
def test_an_invalid_base_is_refused_with_its_file_and_value(package, name, named):
    with pytest.raises(RecipeError) as refused:
        read_fields(package / f"{name}.yaml")
    assert [text for text in named if text not in str(refused.value)] == []


def test_an_unknown_name_is_refused_with_similar_names():
    with pytest.raises(RecipeError, match=f"'deit_tiny_hard_300'. Did you mean {HARD}") as refused:
        recipe_path("deit_tiny_hard_300")
    assert "hf-deit recipes" in str(refused.value)
    assert "--config" in str(refused.value)
    with pytest.raises(RecipeError) as refused:
        recipe_path("qqqq")
    assert "Did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", ["../recipe", f"{HARD}.yaml", "", "."])
def test_a_path_is_not_a_recipe_name(name):
    with pytest.raises(RecipeError) as refused:
        recipe_path(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", recipe_names())
def test_the_printed_recipe_is_one_file_with_the_same_fields_and_header(name):
    text = whole_text(name)
    fields = yaml.safe_load(text)
    assert "base" not in fields
    assert fields == read_fields(recipe_path(name))
    assert launch_commands(text) == launch_commands(recipe_path(name).read_text())
    own_lines = [line.partition(":")[0] for line in text.splitlines() if ":" in line and line[0] not in "# -"]
    assert sorted(own_lines) == sorted(fields)  # no field twice


def test_a_base_in_the_package_has_no_base_itself():
    bases = {yaml.safe_load(recipe_path(name).read_text()).get("base") for name in recipe_names()} - {None}
    assert HARD in bases
    assert [base for base in bases if "base" in yaml.safe_load(recipe_path(base).read_text())] == []


def test_a_recipe_repeats_no_field_of_its_base():
    for name in recipe_names():
        own = yaml.safe_load(recipe_path(name).read_text())
        if "base" in own:
            base = read_fields(recipe_path(own.pop("base")))
            assert [field for field, value in own.items() if field in base and base[field] == value] == []


def test_the_header_ends_where_the_fields_begin():
    text = "# A recipe.\n#   hf-deit train --recipe x \\\n#     --data d\n#   hf-deit evaluate out\nseed: 0\n#   no command\n"
    assert header(text) == text.splitlines()[:4]
    assert [line.split() for line in launch_commands(text)] == [
        ["hf-deit", "train", "--recipe", "x", "--data", "d"],
        ["hf-deit", "evaluate", "out"],
    ]


def test_the_list_has_one_row_per_recipe(package):
    rows = {name: (what, accuracy) for name, what, accuracy in listed_recipes() if name == "derived"}
    assert rows == {"derived": ("A recipe", "–")}
