"""Proposals: each rule, odd inputs, `--recipe auto` with its resume and caches, and the line about poor defaults."""

import logging
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

import hf_deit as package
from hf_deit.cli.commands import build_parser
from hf_deit.data.sources import Source
from hf_deit.errors import DataError, RecipeError, ResumeError, TeacherError
from hf_deit.experiments.ablation import read_ablation
from hf_deit.losses import ProblemType
from hf_deit.recipes import advice
from hf_deit.recipes.advice import RULES, load_proposed, propose, propose_recipe, warn_of_defaults
from hf_deit.recipes.data import RunData
from hf_deit.recipes.reading import load_recipe, proposal_in, proposal_line, recipe_path, stated_cost
from hf_deit.recipes.validate import validate
from tests.helpers.images import folder_of
from tests.helpers.runs import (
    FACTORY,
    QUIET,
    STUDENT,
    TEACHER_LABELS,
    TWO_STEPS,
    hf_deit,
    refused,
    resnet_folder,
    results,
    train,
    write_splits,
)
from tests.helpers.tables import lines, write

ROOT = Path(__file__).resolve().parents[2]
SMALL = (*STUDENT, "--view_size", 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


def vit_folder(path, patch_size=16, image_size=32):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=patch_size, image_size=image_size
    )
    ViTForImageClassification(config).save_pretrained(path)
    return path


@pytest.fixture
def many(monkeypatch, tmp_path):
    """Function that replaces the data by any number of labelled images, of which there is a single file."""
    Image.new("L", (300, 200)).save(tmp_path / "gray.png")

    def replace(counts, held_out=True, problem_type=ProblemType.SINGLE_LABEL):
        names = tuple(f"c{number}" for number in range(len(counts)))
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        if problem_type == ProblemType.MULTI_LABEL:
            labels = [tuple(int(index == label) for index in range(len(counts))) for label in labels]
        items = [str(tmp_path / "gray.png")] * len(labels)
        source = Source(items, labels, names, "", "the data", problem_type)
        monkeypatch.setattr(advice, "list_training", lambda *unused: (source, held_out))
        return source

    return replace


# ---- rules ----


def test_few_images_without_weights_get_the_small_student_from_scratch(data):
    found = propose_recipe(data)
    assert found.recipe == "from_scratch_64"
    assert found.fields == {
        "distillation_type": "none",
        "guidance": "none",
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 24,
    }
    assert "24 images" in found.reason and "89.7" in found.reason
    assert found.cost == stated_cost(recipe_path("from_scratch_64").read_text(encoding="utf-8"))
    assert "24 labelled training images of 3 classes" in str(found) and f"\n  {found.command}" in str(found)


def test_with_a_teacher_the_teacher_runs_once_for_each_distinct_view(data):
    found = propose({"data": str(data), "teacher": "t", "seed": 3})
    assert "distillation_type" not in found.fields
    (cache,) = found.preparation
    assert shlex.split(cache)[:2] == ["hf-deit", "cache-teacher"] and "--teacher t" in cache and "--seed 3" in cache
    assert "--teacher_cache cache" in found.command and "--teacher t" not in found.command
    cached = propose({"data": str(data), "teacher_cache": "c"})
    assert cached.preparation == [] and "--teacher_cache c" in cached.command
    alone = propose({"data": str(data), "teacher": "t", "distillation_type": "none"})
    assert alone.preparation == [] and alone.command.count("--distillation_type none") == 1


def test_weights_get_the_recipe_for_fine_tuning(data, tmp_path):
    found = propose_recipe(data, model=vit_folder(tmp_path / "vit"))
    assert (found.recipe, found.fields["distillation_type"]) == ("finetune_96", "none")
    assert f"--model {tmp_path / 'vit'}" in found.command and "image_size" not in found.fields
    assert propose_recipe(data, model=vit_folder(tmp_path / "14", 14, 28)).fields["image_size"] == 98
    with pytest.raises(RecipeError, match="model=.*resnet"):
        propose_recipe(data, model=resnet_folder(tmp_path / "resnet"))


def test_as_many_images_as_the_paper_needs_get_the_recipe_of_the_paper(many, tmp_path):
    many([60_000, 60_000])
    plain, taught = propose({"data": "d"}), propose({"data": "d", "teacher": "t"})
    assert (plain.recipe, taught.recipe) == ("deit_tiny_plain_300ep", "deit_tiny_hard_300ep")
    assert plain.fields == taught.fields == {} and taught.preparation == []
    assert taught.command.startswith("accelerate launch --num_processes 8 -m hf_deit.cli train --recipe ")
    weights = propose({"data": "d", "model": str(vit_folder(tmp_path / "vit"))})
    assert weights.recipe == "finetune_96" and "deit_base_384_finetune" in " ".join(weights.hints)
    many([60_000, 50_000], held_out=False)  # a tenth of them is split off
    assert propose({"data": "d"}).recipe == "from_scratch_64"
    assert propose({"data": "d", "validation_share": 0.05}).recipe == "deit_tiny_plain_300ep"


def test_classes_of_different_size_lead_to_class_weights(many):
    for smallest, hinted in ((100, True), (101, False)):
        many([500, 1000, smallest])
        assert any("class_weights" in hint for hint in propose({"data": "d"}).hints) == hinted
        assert propose({"data": "d", "class_weights": "balanced"}).hints == propose({"data": "d"}).hints[hinted:]


def test_images_without_labels_are_counted_at_any_depth_and_need_a_teacher(data, tmp_path):
    folder_of(tmp_path / "more" / "deep", {"a": 2, "b": 3})
    (tmp_path / "more" / "notes.txt").write_text("no image")
    found = propose_recipe(data, unlabelled=tmp_path / "more", validation_share=0.2, broken_images="raise")
    assert "5 images without labels" in found.situation and "11.1" in found.reason
    program, *words = shlex.split(found.preparation[0])
    options, rest = build_parser().parse_known_args(words)
    assert (program, options.command, rest) == ("hf-deit", "train-teacher", [])
    assert (options.data, options.validation_share, options.bf16) == (str(data), 0.2, True)
    assert "--unlabelled" not in found.preparation[0] and "--teacher teacher" in found.preparation[1]
    assert f"--unlabelled {tmp_path / 'more'}" in found.command and "distillation_type" not in found.command
    with pytest.raises(DataError, match="nowhere"):
        propose_recipe(data, unlabelled="/nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none"):
        propose_recipe(data, unlabelled=tmp_path / "none")


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "fields", "batch"),
    [
        (24, 200, {}, None),  # labelled images repeat within an epoch
        (3, 64, {}, None),
        (24, 20, {}, 42),  # 21 pairs, of which round(10.5) = 10 are unlabelled
        (24, 20, {"unlabelled_share": 0.25}, None),
        (24, 20, {"unlabelled_share": 0.75}, 28),  # 14 pairs, of which round(10.5) = 10 are unlabelled
        (24, 20, {"gradient_accumulation_steps": 2}, 20),  # mixing needs an even number
        (500, 4, {}, 10),  # 5 pairs, of which round(2.5) = 2 are unlabelled
        (24, 1, {}, None),  # no batch size helps
    ],
)
def test_with_unlabelled_images_the_batch_is_as_large_as_their_number_allows(
    many, monkeypatch, labelled, unlabelled, fields, batch
):
    many([labelled - 1, 1])
    monkeypatch.setattr(advice, "count_unlabelled", lambda *unused: unlabelled)
    given = {"data": "d", "teacher": "t", "unlabelled": "u", **fields}
    assert propose(given).fields.get("per_device_train_batch_size") == batch
    without = propose({name: value for name, value in given.items() if not name.startswith("unlabelled")})
    assert without.fields.get("per_device_train_batch_size") == (labelled // 2 * 2 if labelled < 64 else None)


def test_images_without_a_label_in_the_data_count_for_the_batch(many):
    source = many([30, 40])
    source.labels[:] = [-100] * 20 + source.labels[20:]
    assert "per_device_train_batch_size" not in propose({"data": "d", "teacher": "t"}).fields


def test_auto_trains_on_few_labelled_and_more_unlabelled_images(data, tmp_path, monkeypatch):
    folder_of(tmp_path / "more", {"a": 40})
    given = {"data": str(data), "unlabelled": str(tmp_path / "more"), "teacher": FACTORY, "use_cpu": True}
    given |= {"teacher_labels": list(TEACHER_LABELS), "output_dir": str(tmp_path / "out")}
    recipe = load_proposed([], given)
    assert recipe.training.per_device_train_batch_size == 64
    assert validate(recipe) == []


def test_the_teacher_is_trained_on_the_split_of_the_student(data, tmp_path):
    folder_of(tmp_path / "more", {"a": 2})
    for weights in ({}, {"model": vit_folder(tmp_path / "vit")}):
        found = propose_recipe(data, unlabelled=tmp_path / "more", seed=3, **weights)
        assert all("--seed 3" in command for command in (*found.preparation, found.command))


def test_a_given_teacher_that_guides_is_kept_and_its_logits_stay_unused(data, tmp_path):
    folder_of(tmp_path / "more", {"a": 2})
    guided = {"distillation_type": "none", "guidance": "features", "unlabelled": tmp_path / "more"}
    found = propose_recipe(data, teacher=FACTORY, teacher_labels=list(TEACHER_LABELS), **guided)
    (caching,) = found.preparation
    assert f"--teacher {FACTORY}" in caching and "teacher: given" in found.situation
    assert "--teacher_cache cache" in found.command and "--distillation_type none" in found.command
    from_cache = propose_recipe(data, teacher_cache="somewhere", **guided)
    assert not from_cache.preparation and "--teacher_cache somewhere" in from_cache.command
    alone = propose_recipe(data, **guided)
    assert "train-teacher" in alone.preparation[0] and "--distillation_type none" in alone.command


def test_a_teacher_is_compared_with_the_class_names_that_are_given(data, tmp_path):
    names = tmp_path / "names.yaml"
    names.write_text("".join(f"{name}: {name} of mine\n" for name in TEACHER_LABELS))
    with pytest.raises(TeacherError, match="of mine"):
        propose_recipe(data, teacher=FACTORY, teacher_labels=list(TEACHER_LABELS), class_names=str(names))
    renamed = [f"{name} of mine" for name in TEACHER_LABELS]
    assert propose_recipe(data, teacher=FACTORY, teacher_labels=renamed, class_names=str(names)).recipe


@pytest.mark.parametrize("problem_type", [ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL])
def test_training_images_without_a_label_are_counted_apart(many, problem_type):
    source = many([30, 20], problem_type=problem_type)
    missing = -100 if problem_type == ProblemType.SINGLE_LABEL else (-100, -100)
    source.labels[:] = [*source.labels[:25], *[missing] * 5, *source.labels[30:]]
    found = propose({"data": "d"})
    assert "45 labelled training images" in found.situation and "5 images without labels" in found.situation
    assert "largest class: 25 images, smallest: 20" in found.situation
    assert found.preparation[0].startswith("hf-deit train-teacher ") and "11.1" in found.reason
    assert propose({"data": "d", "teacher_cache": "c"}).preparation == []


def test_the_size_of_the_images_chooses_among_recipes_of_a_kind(data, tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name, size in (("finetune_16", 16), ("finetune_24", 24), ("finetune_99", 99)):
        (folder / f"{name}.yaml").write_text(f"# One.\nimage_size: {size}\ndistillation_type: none\n")
    weights = vit_folder(tmp_path / "vit", patch_size=1)
    monkeypatch.setattr("hf_deit.recipes.reading.FOLDER", folder)
    sides = [min(Image.open(path).size) for path in (data / "train").rglob("*.png")]
    assert 24 <= np.median(sides) < 99
    assert propose_recipe(data, model=weights).recipe == "finetune_24"
    (folder / "finetune_24.yaml").write_text("image_size: 24\nview_size: 41\n")  # larger than the images
    assert propose_recipe(data, model=weights).recipe == "finetune_16"
    (folder / "finetune_16.yaml").write_text("image_size: [50, 60]\n")
    assert propose_recipe(data, model=weights).recipe == "finetune_24"  # the smallest of those that are too large


@pytest.mark.parametrize("problem_type", [ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL])
@pytest.mark.parametrize("counts", [[40, 30], [60_000, 50_000]])
def test_a_proposed_recipe_can_be_trained(many, tmp_path, counts, problem_type):
    source = many(counts, problem_type=problem_type)
    recipe = load_proposed([], {"data": "d", "output_dir": str(tmp_path / "out"), "use_cpu": True})
    held_out = source.subset(range(0, len(source), 7), "held out")
    assert validate(recipe, RunData(source, held_out, recipe.data, 0, 0)) == []


def test_the_figures_of_the_reasons_are_those_of_the_documentation():
    pages = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("results.md", "method.md", "recipes.md")
    )
    for rule in RULES:
        figures = re.findall(r"\d+\.\d(?: ± \d+\.\d)?(?= %)", rule.reason + rule.reason_of_teacher)
        assert figures and [figure for figure in figures if figure not in pages] == []


def test_the_rules_in_the_documentation_name_the_recipes_of_the_code():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.partition("## A proposal for your images")[2].partition("\n## ")[0]
    assert [rule.recipes for rule in RULES if f"`{rule.recipes}`" not in section] == []
    for number in (advice.MANY_IMAGES, advice.SAMPLED_IMAGES, advice.IMBALANCE, advice.FEW_IMAGES):
        assert f" {number:,} " in section


def test_the_command_gives_the_recipe_of_auto(data, tmp_path):
    fields = {"data": str(data), "label_smoothing_factor": 0.1, "crop_scale": [0.5, 1.0]}
    words = shlex.split(propose(fields).command)
    assert words[:4] == ["hf-deit", "train", "--recipe", "from_scratch_64"]
    by_command = load_recipe(recipe_path(words[3]), words[4:])
    by_auto = load_proposed([], {**fields, "output_dir": "out"})
    assert by_auto.to_dict() == by_command.to_dict() and by_auto.proposal["recipe"] == "from_scratch_64"
    assert by_command.proposal is None and by_auto.replace(seed=3).proposal == by_auto.proposal


# ---- what is read ----


def test_no_image_is_decoded_and_no_fingerprint_is_computed(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "cut")
    for path in (tmp_path / "cut").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])  # only the header remains
    monkeypatch.setattr("hf_deit.data.sources.scan_images", None)
    monkeypatch.setattr("hf_deit.data.images.read_image", None)
    assert propose_recipe(tmp_path / "cut").situation == propose_recipe(data).situation


def test_images_without_a_readable_header_are_not_in_the_median(data, tmp_path):
    folder = folder_of(tmp_path / "odd", {"a": 2, "b": 2})
    (folder / "a" / "00.png").write_bytes(b"no image")
    Image.new("L", (90, 7000)).save(folder / "a" / "01.png")
    Image.new("1", (90, 3)).save(folder / "b" / "00.png")
    Image.new("RGBA", (50, 60)).save(folder / "b" / "01.png")
    assert "Median of the shorter edges: 50 px" in propose_recipe(folder).situation
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "Median of the shorter edges: unknown" in propose_recipe(folder).situation


def test_tables_and_several_labels_per_image_are_read_by_their_columns(tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.new("L", (12, 10)).save(path)
    rows = zip([path.name for path in paths], ["a;b", "a", "b", "b;c", "c", "a"], strict=True)
    write(tmp_path / "t.csv", lines(("file", "tags"), *rows))
    words = ("--for", tmp_path / "t.csv", "--image_column", "file", "--label_column", "tags", "--label_separator", ";")
    assert hf_deit("recipes", *words) == 0
    shown = capsys.readouterr().out
    assert "5 labelled training images of 3 classes, of which an image may have several" in shown
    assert "--label_column tags --label_separator ';'" in shown


# ---- odd inputs ----


ODD = {
    "data that do not exist": (["--for", "/nowhere"], "/nowhere"),
    "an unknown name on the Hub": (["--for", "owner/photos"], "owner/photos"),
    "a folder without images": (["--for", "EMPTY"], "EMPTY"),
    "one class": (["--for", "ONE"], "only one class"),
    "data given twice": (["--for", "DATA", "--for", "ONE"], "ONE"),
    "data given with another option": (["--for", "DATA", "--data", "ONE"], "--data"),
    "the name of a recipe": (["finetune_96", "--for", "DATA"], "finetune_96"),
    "weights on the Hub without a network": (["--for", "DATA", "--model", "owner/model"], "owner/model"),
    "a teacher that does not exist": (["--for", "DATA", "--teacher", "/nowhere"], "/nowhere"),
    "an unknown field": (["--for", "DATA", "--lr", "3"], "learning_rate"),
    "a stream": (["--for", "DATA", "--streaming", "true"], "streaming"),
    "weights without data": (["--model", "owner/model"], "--for"),
    "a field without data": (["--seed", "3"], "--for"),
    "auto as a name": (["auto"], "'auto'"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_inputs_are_refused_by_name(data, tmp_path, capsys, kind):
    (tmp_path / "empty").mkdir()
    places = {"DATA": data, "EMPTY": tmp_path / "empty", "ONE": folder_of(tmp_path / "one", {"cat": 2})}
    words, named = ODD[kind]
    message = refused(capsys, "recipes", *(str(places.get(word, word)) for word in words))
    assert str(places.get(named, named)) in message


def test_a_teacher_of_other_classes_is_refused(data):
    with pytest.raises(TeacherError, match="'dog'"):
        propose_recipe(data, teacher=FACTORY, teacher_labels=["ant", "bee", "cat", "eel"])
    assert propose_recipe(data, teacher=FACTORY, teacher_labels=list(TEACHER_LABELS)).recipe == "from_scratch_64"


def test_auto_is_not_the_name_of_a_recipe_in_definitions_sweeps_and_bases(data, tmp_path, capsys):
    rows = {"seeds": [0], "variants": {"a": {}}, "rows": [{"title": "a", "variant": "a"}]}
    (tmp_path / "definition.yaml").write_text(yaml.safe_dump({"title": "t", "recipe": "auto", **rows}))
    with pytest.raises(RecipeError, match="'auto'"):
        read_ablation(tmp_path / "definition.yaml")
    assert "'auto'" in refused(capsys, "sweep", "--recipe", "auto", "--data", data, "--out", tmp_path / "sweep")
    (tmp_path / "own.yaml").write_text("base: auto\n")
    with pytest.raises(RecipeError, match="'auto'"):
        load_recipe(tmp_path / "own.yaml", [])
    both = ("--recipe", "auto", "--config", tmp_path / "own.yaml")
    assert "--config" in refused(capsys, "train", *both, "--data", data)


# ---- trainings that follow a proposal ----


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_auto_trains_and_names_the_recipe_and_the_reason(data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train(data, tmp_path / "auto", "--recipe", "auto", *SMALL) == 0
    found = [record.message for record in caplog.records if "from_scratch_64" in record.message]
    assert len(found) == 1 and RULES[-1].reason in found[0]
    proposal = results(tmp_path / "auto")["proposal"]
    assert proposal["recipe"] == "from_scratch_64" and RULES[-1].reason in proposal["reason"]
    saved = (tmp_path / "auto" / "recipe.yaml").read_text(encoding="utf-8")
    assert proposal_in(saved) == proposal
    assert (
        load_recipe(tmp_path / "auto" / "recipe.yaml", []).training.learning_rate == 5e-4
    )  # as proposed without a teacher
    words = ("--recipe", "from_scratch_64", "--distillation_type", "none")
    assert train(data, tmp_path / "named", *words, *SMALL) == 0
    assert "proposal" not in results(tmp_path / "named")
    ours, theirs = weights_of(tmp_path / "auto"), weights_of(tmp_path / "named")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_a_resumed_run_keeps_its_recipe_and_proposes_nothing(data, tmp_path, monkeypatch, caplog):
    words = ("--recipe", "auto", *SMALL, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 9)
    assert train(data, tmp_path / "whole", *words, "--max_steps", 4, "--learning_rate", 3e-3) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("checkpoint-4", "model.safetensors", "results.json"):
        path = tmp_path / "killed" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fail(*unused, **named):
        raise AssertionError("a resumed run proposes a recipe")

    monkeypatch.setattr(advice, "propose", fail)
    # The learning rate of the start need not be given again: it is part of the recipe of the run.
    with caplog.at_level(logging.INFO):
        assert train(data, tmp_path / "killed", *words, "--max_steps", 4, "--resume") == 0
    assert [record.message for record in caplog.records if "killed/recipe.yaml, from_scratch_64" in record.message]
    ours, theirs = weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert results(tmp_path / "killed")["proposal"] == results(tmp_path / "whole")["proposal"]
    assert train(data, tmp_path / "killed", *words, "--max_steps", 6, "--extend") == 0
    assert results(tmp_path / "killed")["proposal"] == results(tmp_path / "whole")["proposal"]


def test_a_run_whose_recipe_is_missing_is_not_resumed_by_auto(data, tmp_path):
    fields = {"data": str(data), "resume": True}
    with pytest.raises(RecipeError, match="output_dir"):
        load_proposed([], fields)
    with pytest.raises(ResumeError, match="out"):
        load_proposed([], {**fields, "output_dir": str(tmp_path / "out")})
    assert train(data, tmp_path / "run", *STUDENT, "--save_strategy", "steps", "--save_steps", 2) == 0
    recipe = load_proposed([], {**fields, "output_dir": str(tmp_path / "run")})
    assert recipe.proposal is None and recipe.model.image_size == (16, 16)  # the run was started without auto
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_proposed([], {**fields, "output_dir": str(tmp_path / "run")})


def test_a_cache_and_a_training_by_auto_agree_and_python_does_the_same(data, tmp_path):
    taught = ("--teacher_labels", *TEACHER_LABELS, "--distillation_type", "soft", "--num_views", 1)
    words = ("--recipe", "auto", "--data", data, *SMALL, *TWO_STEPS, *QUIET, *taught)
    assert hf_deit("cache-teacher", *words, "--teacher", FACTORY, "--out", tmp_path / "cache") == 0
    for name, source in (("cached", ("--teacher_cache", tmp_path / "cache")), ("live", ("--teacher", FACTORY))):
        assert hf_deit("train", *words, *source, "--output_dir", tmp_path / name) == 0
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 16}
    fields |= {
        "view_size": 16,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "report_to": "none",
        "report": False,
    }
    fields |= {"distillation_type": "soft", "num_views": 1, "disable_tqdm": True}
    fields |= {"teacher": FACTORY, "teacher_labels": list(TEACHER_LABELS)}
    package.train(data, output_dir=tmp_path / "python", recipe="auto", **fields)
    ours = weights_of(tmp_path / "live")
    for other in ("cached", "python"):
        theirs = weights_of(tmp_path / other)
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert results(tmp_path / "python")["proposal"] == results(tmp_path / "live")["proposal"]
    sheet = ("--recipe", "auto", "--out", tmp_path / "sheet.png", "--images", 2, "--views", 2)
    assert hf_deit("show-augmentations", data, *sheet) == 0


def test_a_file_called_auto_is_a_recipe_in_python(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("auto").write_text("learning_rate: 0.25\ndistillation_type: none\n")
    seen = []
    monkeypatch.setattr("hf_deit.recipes.train.train", lambda recipe, prepare, teacher, finish: seen.append(recipe))
    package.train(data, output_dir="out", recipe="auto")
    assert seen[0].training.learning_rate == 0.25 and seen[0].proposal is None


# ---- trainings without a recipe ----


def lines_about_defaults(caplog):
    return [
        record for record in caplog.records if record.levelno == logging.WARNING and "poor choice" in record.message
    ]


SHAPE = ("--hidden_size", 8, "--num_hidden_layers", 1, "--num_attention_heads", 1, "--patch_size", 112)
NO_EVALUATION = ("--eval_strategy", "no", "--distillation_type", "none")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*SHAPE, *TWO_STEPS), ["image_size 224 px (64 px", "24 training images", "from_scratch_64", "--recipe auto"]),
        ((*STUDENT, "--num_train_epochs", 1), []),
        ((*STUDENT, *TWO_STEPS), []),
        (("--recipe", "clothing10_64", *STUDENT, *TWO_STEPS), []),
        (("--config", "OWN", *SHAPE, *TWO_STEPS), []),
        (("--model", "WEIGHTS", *TWO_STEPS), []),
    ],
)
def test_a_training_without_a_recipe_says_in_one_line_that_its_defaults_are_poor(data, tmp_path, caplog, words, named):
    (tmp_path / "own.yaml").write_text("learning_rate: 0.001\n")
    places = {"OWN": tmp_path / "own.yaml", "WEIGHTS": tmp_path / "vit"}
    if "WEIGHTS" in words:
        vit_folder(tmp_path / "vit")
    words = [places.get(word, word) for word in words]
    assert hf_deit("train", "--data", data, "--output_dir", tmp_path / "out", *QUIET, *NO_EVALUATION, *words) == 0
    found = lines_about_defaults(caplog)
    assert len(found) == bool(named)
    assert [text for text in named if text not in found[0].message] == []


def test_the_line_is_logged_by_the_first_process_only_and_not_for_a_resumed_run(data, tmp_path, caplog):
    fields = {"data": str(data), "output_dir": str(tmp_path), "preset": "tiny", "use_cpu": True}
    source = Source([None] * 2000, [0, 1] * 1000, ("a", "b"), "", "the data")

    def trainer(is_first):
        return SimpleNamespace(train_dataset=SimpleNamespace(source=source), is_world_process_zero=lambda: is_first)

    warn_of_defaults(load_recipe(None, [], fields), trainer(is_first=False))
    warn_of_defaults(load_recipe(None, [], {**fields, "resume": True}), trainer(is_first=True))
    assert lines_about_defaults(caplog) == []
    warn_of_defaults(load_recipe(None, [], fields), trainer(is_first=True))
    (line,) = lines_about_defaults(caplog)
    assert "2,000" in line.message and "num_train_epochs 3 (100" in line.message and "\n" not in line.message
    caplog.clear()
    large = Source([None] * 120_000, [0, 1] * 60_000, ("a", "b"), "", "the data")
    warn_of_defaults(
        load_recipe(None, [], {**fields, "num_train_epochs": 300}),
        SimpleNamespace(train_dataset=SimpleNamespace(source=large), is_world_process_zero=lambda: True),
    )
    assert lines_about_defaults(caplog) == []  # 224 px are the paper's


def test_python_says_it_too_unless_a_recipe_is_given(data, tmp_path, caplog):
    fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 112, "use_cpu": True}
    fields |= {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "report": False,
        "disable_tqdm": True,
    }
    package.train(data, output_dir=tmp_path / "fields", recipe=fields, eval_strategy="no")
    assert lines_about_defaults(caplog) == []
    package.train(data, output_dir=tmp_path / "none", eval_strategy="no", **fields)
    assert len(lines_about_defaults(caplog)) == 1


def test_the_proposal_survives_in_the_header_of_a_saved_recipe():
    for reason in ("plain", "a: b # c", "quotes \"and\" 'more'", "± 1.9 % " * 60, "- a\n- b"):
        proposal = {"recipe": "from_scratch_64", "reason": reason}
        line = proposal_line(proposal)
        assert line.startswith("#") and line.count("\n") == 1
        assert proposal_in(line + "seed: 0\n") == proposal
        assert yaml.safe_load(line.removeprefix("# "))["proposal"] == proposal
    assert proposal_in("# A recipe.\nseed: 0\n# proposal: {}\n") is None


def test_a_proposal_needs_data():
    with pytest.raises(RecipeError, match="data"):
        propose({"model": None, "data": None})
