"""Cards of recipes nobody trained here: the paper's figures are said to be the paper's, and are no result of the Hub's."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import hf_deit
from hf_deit.cli import main
from hf_deit.recipe_card import FIGURES, render_recipe_card

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
RECIPES = Path(hf_deit.__file__).parent / "recipes"
NAMES = sorted(yaml.safe_load(FIGURES.read_text()))
# Parameters by the papers' architectures with 1,000 classes, and ImageNet top-1 as design notes of the papers have them.
KNOWN = {
    "deit_tiny_hard_300ep": ("5,910,800", ["74.5", "73.9", "74.6", "72.2"]),
    "deit_base_384_finetune": ("87,630,032", ["84.5", "84.2", "84.4"]),
    "deit3_small_800ep": ("22,050,664", ["81.4"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_card_of_a_recipe_is_what_the_code_renders(name):
    assert (RECIPES / f"{name}.yaml").is_file()
    assert (CARDS / f"{name}.md").read_text(encoding="utf-8") == str(render_recipe_card(RECIPES / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_a_recipe_says_that_nothing_was_trained_and_has_no_result_for_the_hub(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    assert card.data.eval_results is None and "model-index" not in card.content
    assert "**Not trained here.**" in card.text
    assert re.search(r"The (paper|authors' code) reports [\d.]+ % \(.+\); not re-measured\.", card.text)
    assert card.data.license == "unknown" and card.data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_figures_and_size_are_those_of_the_paper(name):
    parameters, figures = KNOWN[name]
    text = ModelCard.load(CARDS / f"{name}.md").text
    assert f"| parameters | {parameters} |" in text
    assert re.findall(r"^\| .* \| ([\d.]+) % \| .* \|$", text, re.MULTILINE) == figures


def test_a_changed_recipe_of_a_known_name_does_not_get_the_papers_figures(tmp_path, capsys):
    other = tmp_path / "deit_tiny_hard_300ep.yaml"
    other.write_text("base: deit_tiny_hard_300ep\nnum_train_epochs: 3\npreset: small\n")
    assert main(["card", str(other), "--out", str(tmp_path / "card.md")]) == 2
    said = capsys.readouterr().err
    assert "num_train_epochs: 3" in said and "300" in said and "preset: 'small', and 'tiny' there" in said
    assert not (tmp_path / "card.md").exists()
    other.write_text("base: deit_tiny_hard_300ep\n")  # the same fields
    assert main(["card", str(other), "--out", str(tmp_path / "card.md")]) == 0


def test_a_recipe_goes_by_its_name_as_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["card", "deit_tiny_hard_300ep", "--out", "c.md"]) == 0
    assert (tmp_path / "c.md").read_text(encoding="utf-8") == (CARDS / "deit_tiny_hard_300ep.md").read_text("utf-8")


def test_all_that_is_stated_of_a_recipe_is_shown_and_kept_until_it_is_taken_back(tmp_path):
    out = tmp_path / "card.md"
    stated = ["--dataset", "ILSVRC/imagenet-1k", "--data_license", "ImageNet's own", "--base_model_license", "mit"]
    assert main(["card", "deit_base_384_finetune", "--out", str(out), "--license", "mit", *stated]) == 0
    assert main(["card", "deit_base_384_finetune", "--out", str(out)]) == 0
    card = ModelCard.load(out)
    assert card.data.datasets == ["ILSVRC/imagenet-1k"] and card.data.license == "mit"
    for row in ("licence of the data | ImageNet's own", "licence of the base model | mit", "data | ILSVRC/imagenet-1k"):
        assert f"| {row} |" in card.text
    taken = ["--license", "unknown", "--data_license", "unknown"]
    assert main(["card", "deit_base_384_finetune", "--out", str(out), *taken]) == 0
    card = ModelCard.load(out)
    assert card.data.license == "unknown" and "ImageNet's own" not in card.content and "licence | unknown" in card.text


def test_a_recipes_card_is_rendered_from_the_command_line_and_one_by_hand_is_kept(tmp_path, capsys):
    recipe, out = str(RECIPES / "deit_tiny_hard_300ep.yaml"), tmp_path / "card.md"
    assert main(["card", recipe, "--out", str(out), "--license", "mit"]) == 0
    assert main(["card", recipe, "--out", str(out)]) == 0
    assert ModelCard.load(out).data.license == "mit"
    out.write_text("mine")
    assert main(["card", recipe, "--out", str(out)]) == 2
    assert out.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert "move it away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([str(RECIPES / "deit_tiny_hard_300ep.yaml")], "--out CARD.md"),
        ([str(RECIPES / "finetune_96.yaml"), "--out", "card.md"], "deit_tiny_hard_300ep"),
        ([str(RECIPES / "deit_tiny_hard_300ep.yaml"), "--out", "."], "is a folder"),
        (["nowhere/my_own.yaml", "--out", "card.md"], "No recipe at nowhere/my_own.yaml"),
        (["some_folder", "--out", "card.md"], "goes with a recipe"),
    ],
)
def test_what_no_card_can_be_made_of_is_told(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["card", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said and "site-packages" not in said and "paper_figures.yaml" not in said
    assert not list(tmp_path.iterdir())
