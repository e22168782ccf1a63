"""A recipe as a file: by name, from a base, as one text; and what its header says."""

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
    """A package of recipes that are not as they should be."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr("hf_deit.recipes.reading.FOLDER", folder)
    for name, text in {
        "whole": "student: plain\npreset: tiny\n",
        "derived": "# What it is.\nbase: whole\npreset: small\n",
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


def test_a_base_gives_its_fields_and_the_files_own_win(package):
    assert read_fields(package / "derived.yaml") == {"student": "plain", "preset": "small"}


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("chained", ["chained.yaml", "derived is itself a recipe with a base", "whole"]),
        ("one", ["one.yaml", "two is itself", "one"]),  # a circle
        ("self", ["self.yaml", "self is itself"]),
        ("lost", ["lost.yaml", "No recipe is called 'whale'", "Did you mean whole"]),
        ("numbered", ["numbered.yaml", "base: 3 is not allowed", "hf-deit recipes"]),
        ("listing", ["listing.yaml", "['whole'] is not allowed"]),
        ("empty", ["empty.yaml", "None is not allowed"]),
    ],
)
def test_a_base_that_is_none_is_refused_by_name(package, name, named):
    with pytest.raises(RecipeError) as refused:
        read_fields(package / f"{name}.yaml")
    assert [text for text in named if text not in str(refused.value)] == []


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    with pytest.raises(RecipeError, match=f"'deit_tiny_hard_300'. Did you mean {HARD}") as refused:
        recipe_path("deit_tiny_hard_300")
    assert "`hf-deit recipes` lists them" in str(refused.value)
    assert "--config" in str(refused.value)
    with pytest.raises(RecipeError) as refused:
        recipe_path("qqqq")
    assert "Did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", ["../recipe", f"{HARD}.yaml", "", "."])
def test_a_path_is_no_name(name):
    with pytest.raises(RecipeError, match="No recipe is called"):
        recipe_path(name)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_printed_whole_is_one_file_with_the_same_fields_and_header(name):
    text = whole_text(name)
    fields = yaml.safe_load(text)
    assert "base" not in fields
    assert fields == read_fields(recipe_path(name))
    assert launch_commands(text) == launch_commands(recipe_path(name).read_text())
    own_lines = [line.partition(":")[0] for line in text.splitlines() if ":" in line and line[0] not in "# -"]
    assert sorted(own_lines) == sorted(fields)  # no field twice


def test_a_base_of_the_package_has_none_itself():
    # Two files say all there is of a recipe.
    bases = {yaml.safe_load(recipe_path(name).read_text()).get("base") for name in recipe_names()} - {None}
    assert HARD in bases
    assert [base for base in bases if "base" in yaml.safe_load(recipe_path(base).read_text())] == []


def test_what_a_recipe_with_a_base_says_differs_from_the_base():
    for name in recipe_names():
        own = yaml.safe_load(recipe_path(name).read_text())
        if "base" in own:
            base = read_fields(recipe_path(own.pop("base")))
            assert [field for field, value in own.items() if field in base and base[field] == value] == []


def test_the_header_ends_where_the_fields_begin():
    text = "# What it is.\n#   hf-deit train --recipe x \\\n#     --data d\n#   hf-deit evaluate out\nseed: 0\n#   no command\n"
    assert header(text) == text.splitlines()[:4]
    assert [line.split() for line in launch_commands(text)] == [
        ["hf-deit", "train", "--recipe", "x", "--data", "d"],
        ["hf-deit", "evaluate", "out"],
    ]


def test_the_list_has_a_row_a_recipe(package):
    rows = {name: (what, accuracy) for name, what, accuracy in listed_recipes() if name == "derived"}
    assert rows == {"derived": ("What it is", "–")}
