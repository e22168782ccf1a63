"""Model cards show the facts in the files of a run; checked against the files, the Hub's metadata and transformers."""

import json
import re
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import TrainerCallback

from hf_deit.cli import main
from hf_deit.hub.facts import (
    CardMetadata,
    RunSummary,
    is_path,
    public_recipe,
    read_facts,
    without_machine,
)
from hf_deit.hub.model_card import MARKER, hub_name, read_metadata, render_card
from hf_deit.trainer.hub_mixin import HubMixin
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny
from tests.helpers.processes import run_python

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
PUBLISHED = Path(__file__).resolve().parents[1] / "fixtures" / "published"
# Class: number of training images, number of validation images.
COUNTS = {"ant": (3, 2), "bee": (4, 3), "cat": (5, 1)}
TOKEN = "hf_" + "a1B2" * 8


def write_images(folder, counts):
    pixels = tiny.pixels_of(60, 0, len(counts))
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels[index + len(counts) * number]).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run of the command line. Its path has a name that the tests look for in cards."""
    home = tmp_path_factory.mktemp("secret-user")
    for split, column in (("train", 0), ("validation", 1)):
        write_images(home / "insects" / split, {name: count[column] for name, count in COUNTS.items()})
    shape = ("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--patch_size", "8")
    steps = ("--max_steps", "2", "--per_device_train_batch_size", "4", "--image_size", "16", "--hub_token", TOKEN)
    quiet = ("--use_cpu", "--report", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no")
    teacher = ("--teacher", "tests.helpers.tiny:conv_network", "--teacher_labels", "ant", "bee", "cat", "dog")
    mean = ("--teacher_image_mean", *"000", "--teacher_image_std", *"111", "--distillation_type", "soft")
    out = home / "student"
    places = ("--data", str(home / "insects"), "--output_dir", str(out))
    assert main(["train", *places, *shape, *steps, *quiet, *teacher, *mean]) == 0
    return out


def cell(card, name, table=""):
    """Return the text to the right of `name` in a table of a card."""
    found = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", card, re.MULTILINE)
    assert len(found) == 1, (name, found)
    return found[0]


def test_the_card_of_a_run_shows_the_results_of_the_run(run):
    card = (run / "README.md").read_text()
    results = json.loads((run / "results.json").read_text())
    shown = [f"{100 * results[f'eval_{head}accuracy']:.2f} %" for head in ("", "cls_", "distillation_")]
    assert cell(card, "top-1 accuracy") == " | ".join(shown)
    losses = [f"{results[f'eval_{head}loss']:.4f}" for head in ("", "cls_", "distillation_")]
    assert cell(card, "loss") == " | ".join(losses)
    assert f"agree on {100 * results['eval_teacher_agreement']:.2f} %" in card
    assert "the 6 validation images of `insects`" in card
    for name, (train, validation) in COUNTS.items():
        assert cell(card, name) == f"{train} | {validation}"
    assert cell(card, "training images") == "12"
    weights = 0
    for tensor in torch_weights(run).values():
        weights += tensor.numel()
    assert cell(card, "parameters") == f"{weights:,}"
    assert cell(card, "torch") == version("torch")
    assert cell(card, "optimizer steps") == "2"
    assert "`tests.helpers.tiny:conv_network` (Python factory), ConvTeacher with" in cell(card, "teacher")


def torch_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_metadata_have_the_form_of_the_hub(run):
    data = ModelCard.load(run / "README.md").data
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-classification", "transformers", "unknown")
    assert data.get("base_model") is None and data.get("datasets") is None  # neither is on the Hub
    results = json.loads((run / "results.json").read_text())
    measured = {entry.metric_name: entry.metric_value for entry in data.eval_results}
    assert measured["top-1 accuracy, class head"] == results["eval_cls_accuracy"]
    assert measured["top-1 accuracy, distillation head"] == results["eval_distillation_accuracy"]
    assert measured["balanced accuracy, prediction"] == results["eval_balanced_accuracy"]
    assert {entry.dataset_name for entry in data.eval_results} == {"insects"}
    assert {entry.dataset_split for entry in data.eval_results} == {"validation"}


def test_a_card_contains_no_path_of_the_authors_machine_and_no_token(run):
    card = (run / "README.md").read_text()
    assert "secret-user" in (run / "recipe.yaml").read_text()  # recipe.yaml of the run contains the path
    assert "secret-user" not in card and str(run.parent) not in card and TOKEN not in card
    assert Path.home().as_posix() + "/" not in card


def test_the_code_block_of_a_card_runs_in_the_folder_without_this_package(run):
    block = re.search(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)[1]
    Image.fromarray(tiny.pixels_of(1)[0]).save(run / "photo.jpg")
    forbidden = "import sys\nsys.modules['hf_deit'] = None\n"
    try:
        done = run_python(forbidden + block, cwd=run)
    finally:
        (run / "photo.jpg").unlink()
    assert done.returncode == 0, done.stderr
    scores = dict(line.split(": ") for line in done.stdout.splitlines())
    assert set(scores) == set(COUNTS)
    assert sum(map(float, scores.values())) == pytest.approx(1, abs=0.01)


def test_a_card_rendered_again_is_the_same_and_keeps_the_metadata_of_the_author(run):
    before = (run / "README.md").read_text()
    assert main(["card", str(run)]) == 0
    assert (run / "README.md").read_text() == before
    assert main(["card", str(run), "--license", "mit", "--base_model", "some/base", "--dataset", "some/insects"]) == 0
    assert main(["card", str(run)]) == 0
    data = ModelCard.load(run / "README.md").data
    assert (data.license, data.base_model, data.datasets) == ("mit", "some/base", ["some/insects"])
    (run / "README.md").write_text(before)


def test_a_card_written_by_hand_is_never_overwritten(capsys, run):
    before = (run / "README.md").read_text()
    mine = before.replace(MARKER, "mine")
    (run / "README.md").write_text(mine)
    assert main(["card", str(run)]) == 2
    assert str(run / "README.md") in capsys.readouterr().err
    assert (run / "README.md").read_text() == mine
    (run / "README.md").write_text(before)


def test_a_folder_without_a_model_is_refused(capsys, tmp_path):
    assert main(["card", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_facts_are_shown_as_unknown():
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "id2label": {"0": "a", "1": "b"}}
    card = render_card(RunSummary(config), "bare")
    text = str(card)
    for name in ("training images", "validation images", "data", "parameters", "base model", "device"):
        assert cell(text, name) == "unknown"
    assert cell(text, "licence").startswith("unknown")
    assert "no evaluation of these weights was recorded" in text
    assert "None" not in text and "nan" not in text
    assert "model-index" not in card.data.to_dict() and "%" not in text


def test_names_of_the_hub_are_metadata_and_paths_are_not():
    recipe = {"model": "facebook/deit-tiny-patch16-224", "data": "food101", "teacher": "/home/me/teachers/best"}
    card = render_card(RunSummary({"id2label": {"0": "a"}}, recipe), "student")
    assert (card.data.base_model, card.data.datasets) == ("facebook/deit-tiny-patch16-224", ["food101"])
    assert "`best` (local" in str(card) and "/home/me" not in str(card)
    for path in ("/a/b", "./a", "../a", "~/a", "C:\\a\\b", "photos.csv", "a/b/c", "module:factory", None):
        assert hub_name(path) is None


def test_a_short_name_is_shown_as_the_full_name_on_the_hub():
    recipe = {"model": "deit-tiny-distilled", "teacher": "regnet-y-160", "distillation_type": "hard"}
    card = render_card(RunSummary({"id2label": {"0": "a"}}, recipe), "student")
    assert card.data.base_model == "facebook/deit-tiny-distilled-patch16-224"
    assert cell(str(card), "teacher") == "`facebook/regnet-y-160` on the Hub"


def test_licences_of_data_and_base_model_are_shown_and_kept(run):
    before = (run / "README.md").read_text()
    assert cell(before, "licence of the data") == "unknown: not recorded"
    assert "licence of the base model" not in before  # the model was trained from scratch
    stated = ["--data_license", "CC0 1.0", "--base_model", "some/base", "--base_model_license", "apache-2.0"]
    assert main(["card", str(run), *stated]) == 0
    assert main(["card", str(run)]) == 0
    card = (run / "README.md").read_text()
    assert cell(card, "licence of the data") == "CC0 1.0" and cell(card, "licence of the base model") == "apache-2.0"
    assert ModelCard.load(run / "README.md").data.license == "unknown"  # no licence of the model itself was given
    (run / "README.md").write_text(before)


def test_names_with_markdown_characters_do_not_break_a_table():
    names = {"0": "a|b", "1": "<script>", "2": "x\ny"}
    run = {"classes": {name: {"train": 1, "validation": 1} for name in names.values()}}
    card = str(render_card(RunSummary({"id2label": names}, {}, {"run": run}), "od|d*"))
    assert cell(card, "a\\|b") == cell(card, "\\<script\\>") == cell(card, "x y") == "1 | 1"


def test_a_value_that_is_not_finite_is_not_published():
    facts = RunSummary({"id2label": {"0": "a"}}, {}, {"eval_accuracy": 0.5, "eval_loss": float("nan")})
    card = render_card(facts, "broken")
    assert [entry.metric_value for entry in card.data.eval_results] == [0.5]
    assert "| loss |" not in str(card)


def test_the_card_of_a_multi_label_model_shows_multi_label_metrics_only():
    config = {"id2label": {"0": "red", "1": "wide"}, "problem_type": "multi_label_classification"}
    results = {"eval_mean_average_precision": 0.41, "eval_cls_mean_average_precision": 0.39}
    card = render_card(RunSummary(config, {"distillation_type": "none", "distillation_alpha": 0.5}, results), "many")
    assert cell(str(card), "mean average precision") == "41.00 % | 39.00 %"
    assert "multi-label" in str(card) and "single-label" not in str(card) and "above 0.5" in str(card)
    assert "weight of the distillation term" not in str(card)
    assert {entry.metric_type for entry in card.data.eval_results} == {"mean_average_precision"}


def test_a_published_recipe_contains_no_path_of_the_author_and_no_token():
    recipe = {
        "data": "/home/me/photos",
        "model": "some/model",
        "output_dir": "/home/me/out",
        "hub_token": TOKEN,
        "report_to": ["C:\\me\\x", TOKEN],
        "learning_rate": 1e-3,
        "teacher_labels": ["/m/0k4j", ".net"],
        "label_separator": "/",
    }
    public = public_recipe(recipe)
    assert public == {
        "data": "./photos",
        "model": "some/model",
        "output_dir": "./out",
        "report_to": ["./x", "(removed)"],
        "learning_rate": 1e-3,
        "teacher_labels": ["/m/0k4j", ".net"],
        "label_separator": "/",
    }
    assert public_recipe(public) == public
    assert is_path("./photos") and without_machine({"deep": [{"path": "/a/b.json"}]}) == {
        "deep": [{"path": "./b.json"}]
    }


@pytest.mark.parametrize(
    ("outputs", "shown"),
    [
        ({"kind": "hard", "view_epochs": 3}, ["predicted classes", "3 epochs"]),
        ({"kind": "dense", "dtype": "float32", "view_epochs": 1}, ["float32", "1 epoch of"]),
        (
            {"kind": "top_k", "dtype": "float16", "top_k": 5, "tau": 2.5, "view_epochs": 2},
            ["the 5 largest", "float16", "τ = 2.5", "2 epochs"],
        ),
    ],
)
def test_a_card_describes_the_teacher_cache(outputs, shown):
    teacher = {"name": "regnet-y-160", "class": "RegNet", "parameters": 1234567}
    run = {"teacher": teacher, "stored_answers": outputs}
    card = str(render_card(RunSummary({}, {"distillation_type": "soft"}, {"run": run}), "cached"))
    assert cell(card, "teacher") == "`facebook/regnet-y-160` on the Hub, RegNet with 1,234,567 parameters"
    for value in shown:
        assert value in cell(card, "teacher outputs")


def test_class_names_without_counts_are_listed_up_to_fifty():
    config = {"id2label": {str(index): f"kind_{index}" for index in range(60)}}
    card = str(render_card(RunSummary(config), "many"))
    assert "kind\\_49" in card and "kind\\_50" not in card and "(60 in all" in card


@pytest.mark.parametrize("name", ["plain", "distilled", "layer_scale"])
def test_a_folder_of_an_earlier_version_renders_with_the_same_metadata(name, tmp_path):
    folder = shutil.copytree(PUBLISHED / name, tmp_path / name)
    before = ModelCard.load(folder / "README.md").data.to_dict()
    assert main(["card", str(folder), "--license", "mit"]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {**before, "license": "mit"}
    results = json.loads((folder / "results.json").read_text())
    assert cell(str(card), "parameters") == f"{results['run']['parameters']:,}"
    assert cell(str(card), "optimizer steps") == str(results["steps"])


# ---- the Trainer ----


def trainer_in(folder, **changes):
    data = {"train_dataset": tiny.training_data(16), "eval_dataset": tiny.evaluation_data(6)}
    return DistillationTrainer(
        tiny.student(), tiny.conv_teacher(), tiny.arguments(folder, distillation_type="hard", **changes), **data
    )


def test_create_model_card_of_the_trainer_writes_this_card(tmp_path):
    trainer = trainer_in(tmp_path / "mine")
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(license="mit", finetuned_from="some/base", dataset="some/data")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    logged = trainer.state.log_history[-1]
    measured = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert measured["top-1 accuracy, class head"] == logged["eval_cls_accuracy"]
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "some/base", ["some/data"])
    assert cell(str(card), "validation images") == "6" and cell(str(card), "distillation") == "`hard`"
    assert str(tmp_path) not in str(card)
    assert str(
        render_card(read_facts(tmp_path / "mine"), "mine", ".", CardMetadata("mit", "some/base", "some/data"))
    ) == str(card)


def test_the_summary_of_a_trainer_has_plain_values_and_counts_parameters_and_images(tmp_path):
    trainer = trainer_in(tmp_path)
    summary = trainer.summary()
    assert json.loads(json.dumps(asdict(summary))) == asdict(summary)
    weights = sum(tensor.numel() for tensor in trainer.model.state_dict().values())
    teacher = sum(tensor.numel() for tensor in trainer.teacher.model.parameters())
    assert summary.run["parameters"] == weights
    assert summary.run["teacher"] == {"class": "ConvTeacher", "parameters": teacher}
    assert (summary.run["train_images"], summary.run["validation_images"]) == (16, 6)
    assert (summary.results["steps"], summary.recipe["distillation_type"]) == (0, "hard")
    assert summary.config["id2label"] == {str(index): name for index, name in enumerate(tiny.NAMES)}


def test_a_trainer_without_a_summary_gets_no_card():
    class Publishing(HubMixin):
        pass

    with pytest.raises(NotImplementedError, match="Publishing"):
        Publishing().summary()


def test_an_evaluation_of_earlier_weights_is_not_reported_for_the_present_weights(tmp_path):
    trainer = trainer_in(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert "eval_accuracy" in trainer.summary().results
    trainer.state.global_step += 1  # as after another step without an evaluation
    assert not [name for name in trainer.summary().results if name.startswith("eval_")]


def test_the_best_model_has_the_metrics_of_the_best_step(tmp_path):
    trainer = trainer_in(
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="cls_loss",
        greater_is_better=True,  # so that the "best" step is the worst one, which is an early step
        learning_rate=1e-2,
    )
    shown = {}

    class Recorder(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            shown[state.global_step] = trainer.summary().results["eval_cls_loss"]

    trainer.add_callback(Recorder)
    trainer.train()
    logged = {entry["step"]: entry["eval_cls_loss"] for entry in trainer.state.log_history if "eval_cls_loss" in entry}
    assert shown == logged and len(logged) == 3  # during training, the model has the weights of the present step
    best = max(
        (entry for entry in trainer.state.log_history if "eval_cls_loss" in entry), key=lambda e: e["eval_cls_loss"]
    )
    assert best["step"] < 3
    assert trainer.summary().results["eval_cls_loss"] == best["eval_cls_loss"]
    measured = trainer.evaluate()
    assert trainer.summary().results["eval_cls_loss"] == pytest.approx(measured["eval_cls_loss"])


# ---- the cards in the checkout ----


@pytest.mark.parametrize("folder", sorted((CARDS / "facts").iterdir()), ids=lambda folder: folder.name)
def test_a_committed_card_is_equal_to_the_rendered_card(folder):
    card = CARDS / f"{folder.name}.md"
    stated = read_metadata(card)
    assert card.read_text(encoding="utf-8") == str(render_card(read_facts(folder), folder.name, ".", stated))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert public_recipe(recipe) == recipe
