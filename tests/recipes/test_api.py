"""Python functions for the commands: the same weights and metrics as the command line, and printable results."""

import argparse
import dataclasses
import inspect
import json
import re

import pytest
from safetensors.torch import load_file

import hf_deit
from hf_deit.cli.commands import build_parser
from hf_deit.errors import RecipeError, UserError
from hf_deit.recipes.teacher_arguments import TeacherTrainingArguments
from tests.helpers import tiny
from tests.helpers.runs import FACTORY, TEACHER_LABELS, write_splits
from tests.helpers.runs import hf_deit as command

FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 16,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "mixup_alpha": 0.8,
    "use_cpu": True,
    "report": False,
    "report_to": "none",
    "disable_tqdm": True,
    "teacher_labels": list(TEACHER_LABELS),
}
WORDS = [
    str(word)
    for name, value in FIELDS.items()
    for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    return room


@pytest.fixture(scope="module")
def result(room):
    return hf_deit.train(room / "data", output_dir=room / "python", teacher=FACTORY, distillation_type="hard", **FIELDS)


def test_a_training_in_python_and_the_command_save_identical_weights(room, result):
    words = [
        "--data",
        room / "data",
        "--output_dir",
        room / "command",
        "--teacher",
        FACTORY,
        "--distillation_type",
        "hard",
    ]
    assert command("train", *words, *WORDS) == 0
    ours, theirs = (load_file(room / name / "model.safetensors") for name in ("python", "command"))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    figures = json.loads((room / "command" / "results.json").read_text())
    assert {f"eval_{name}": value for name, value in result.metrics.items() if name.endswith("accuracy")} == {
        name: value for name, value in figures.items() if name.endswith("accuracy")
    }
    assert result.output_dir == room / "python" and result.broken_images == figures["broken_images"]


def test_a_teacher_can_be_an_object(room, result):
    teacher = hf_deit.Teacher(tiny.conv_network(), id2label=dict(enumerate(TEACHER_LABELS)))
    fields = {name: value for name, value in FIELDS.items() if name != "teacher_labels"}
    hf_deit.train(room / "data", output_dir=room / "object", teacher=teacher, recipe=fields)
    ours, theirs = (load_file(room / name / "model.safetensors") for name in ("object", "python"))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    with pytest.raises(RecipeError, match="teacher_cache"):
        hf_deit.train(room / "data", output_dir=room / "x", teacher=teacher, teacher_cache="cache")


def test_a_recipe_is_a_name_a_file_or_fields_and_keyword_fields_override_it(room, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("hf_deit.recipes.train.train", lambda recipe, prepare, teacher, finish: seen.append(recipe))
    (tmp_path / "own.yaml").write_text("base: clothing10_64\nlearning_rate: 1e-3\n")
    for recipe in ("clothing10_64", tmp_path / "own.yaml", {"learning_rate": 2e-3}):
        hf_deit.train(room / "data", output_dir=tmp_path / "out", recipe=recipe, seed=7, distillation_type="none")
    assert [recipe.training.learning_rate for recipe in seen] == [5e-4, 1e-3, 2e-3]
    assert {recipe.training.seed for recipe in seen} == {7}
    for wrong in ("clothing_64", tmp_path / "nowhere.yaml"):
        with pytest.raises(RecipeError, match=str(wrong)):
            hf_deit.train(room / "data", output_dir=tmp_path / "out", recipe=wrong)
    with pytest.raises(RecipeError, match="learning_rat"):
        hf_deit.train(room / "data", output_dir=tmp_path / "out", learning_rat=1e-3)


def test_evaluation_and_prediction_equal_those_of_the_commands(room, result, capsys):
    found = hf_deit.evaluate(room / "python", room / "data")
    assert command("evaluate", room / "python", "--data", room / "data", "--json", room / "evaluation.json") == 0
    recorded = json.loads((room / "evaluation.json").read_text())
    assert found.per_class == recorded["per_class"] and found.broken_images == recorded["broken_images"]
    assert found.metrics["accuracy"] == recorded["metrics"]["accuracy"] == result.metrics["accuracy"]
    images = sorted((room / "data" / "validation").rglob("*.png"))[:2]
    predictions = hf_deit.predict(room / "python", images, top_k=2)
    capsys.readouterr()
    assert command("predict", room / "python", *images, "--top_k", 2, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    expected = [[tuple(pair) for pair in row["predictions"]] for row in rows]
    assert [list(zip(one.labels, one.scores, strict=True)) for one in predictions] == expected
    assert [one.image for one in predictions] == [str(image) for image in images]
    assert [list(one) for one in predictions] == expected
    assert hf_deit.predict(room / "python", images[0], top_k=2)[0] == predictions[0]


def close(ours, theirs):
    speed = ("runtime", "per_second", "preparation_time", "epoch")
    names = [name for name in theirs if not name.endswith(speed)]
    return {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-5)


OTHER_LOSSES = [
    {"distillation_type": "soft", "distillation_tau": 2.0, "distillation_alpha": 0.7, "label_smoothing_factor": 0.1},
    {"distillation_type": "hard", "base_loss": "binary_cross_entropy", "view_size": 24},
    {"distillation_type": "soft", "distillation_target": "class", "student": "plain", "evaluation_crop_ratio": 0.6},
]


@pytest.mark.parametrize("loss", OTHER_LOSSES, ids=str)
def test_an_evaluation_with_the_teacher_equals_that_of_the_training(room, tmp_path, capsys, loss):
    run = hf_deit.train(room / "data", output_dir=tmp_path / "run", teacher=FACTORY, **FIELDS, **loss)
    found = hf_deit.evaluate(tmp_path / "run", room / "data", teacher=FACTORY)
    assert close(found.metrics, run.metrics) and {"loss", "teacher_agreement"} <= run.metrics.keys()
    assert found.loss_on == "labels and teacher" and "loss (labels and teacher)" in repr(found)
    words = ("--data", room / "data", "--teacher", FACTORY, "--json", tmp_path / "evaluation.json")
    capsys.readouterr()
    assert command("evaluate", tmp_path / "run", *words) == 0
    assert f"\nloss (labels and teacher) {run.metrics['loss']:.4f}\n" in re.sub(" +", " ", capsys.readouterr().out)
    recorded = json.loads((tmp_path / "evaluation.json").read_text())
    assert close(found.metrics, recorded["metrics"]) and recorded["loss_on"] == found.loss_on


def test_an_evaluation_without_the_teacher_has_a_loss_on_the_labels_and_says_so(room, result):
    found = hf_deit.evaluate(room / "python", room / "data")
    assert found.loss_on == "labels" and "loss (labels)" in repr(found)
    assert found.metrics["cls_loss"] == pytest.approx(result.metrics["cls_loss"], rel=1e-5)
    assert found.metrics["loss"] != pytest.approx(result.metrics["loss"], rel=1e-3)


def test_a_view_size_other_than_that_of_the_training_changes_what_the_teacher_sees(room, result):
    own, other = (
        hf_deit.evaluate(room / "python", room / "data", teacher=FACTORY, teacher_view_size=size) for size in (16, 5)
    )
    assert own.metrics["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert other.metrics["loss"] != own.metrics["loss"] and other.metrics["cls_loss"] == own.metrics["cls_loss"]
    with pytest.raises(RecipeError, match="teacher_view_size=0"):
        hf_deit.evaluate(room / "python", room / "data", teacher=FACTORY, teacher_view_size=0)


def test_a_teacher_trained_in_python_equals_that_of_the_command(room):
    fields = {"image_size": 16, "batch_size": 8, "views": 1}
    made = hf_deit.train_teacher(room / "data", network=FACTORY, output_dir=room / "teacher", **fields)
    words = ["--image_size", 16, "--batch_size", 8, "--views", 1, "--bf16", "false", "--output_dir", room / "teacher2"]
    assert command("train-teacher", "--data", room / "data", "--network", FACTORY, *words) == 0
    files = {path.name: path.read_bytes() for path in made.output_dir.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (room / "teacher2").iterdir()}
    assert f"{100 * made.metrics['accuracy']:.2f} %" in repr(made) and str(room / "teacher") in repr(made)
    for wrong, named in (({"image_sise": 16}, "image_size"), ({"xyz": 1}, "crop_scale")):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}.*{named}"):
            hf_deit.train_teacher(room / "data", network=FACTORY, output_dir=room / "teacher3", **wrong)
    for wrong in ({"image_size": "big"}, {"bf16": "maybe"}, {"views": 0}, {"mode": "fine"}, {"crop_scale": [2, "x"]}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            hf_deit.train_teacher(room / "data", network=FACTORY, output_dir=room / "teacher3", **wrong)


def test_a_card_rendered_in_python_equals_that_of_the_command(room, result):
    path = hf_deit.card(room / "python", license="apache-2.0", dataset="owner/photos")
    ours = path.read_text()
    assert path == room / "python" / "README.md" and "license: apache-2.0" in ours and "owner/photos" in ours
    assert command("card", room / "python", "--license", "mit") == 0
    assert path.read_text() == ours.replace("license: apache-2.0", "license: mit").replace("apache-2.0", "mit")
    assert command("card", room / "python", "--license", "apache-2.0") == 0
    assert path.read_text() == ours


# Options that only one side has: where the command prints, and what fields a function of Python has by **fields.
ONLY_COMMAND = {"evaluate": {"json"}, "predict": {"csv", "parquet", "json"}, "cache-teacher": {"config"}}
ONLY_PYTHON = {"predict": {"broken_images", "as_dataset"}, "cache-teacher": {"data", "teacher"}}
FUNCTIONS = {
    "train-teacher": hf_deit.train_teacher,
    "evaluate": hf_deit.evaluate,
    "predict": hf_deit.predict,
    "cache-teacher": hf_deit.cache_teacher,
    "card": hf_deit.card,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_and_its_function_have_the_same_parameters(name):
    parsers = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = {action.dest: action for action in parsers.choices[name]._actions if action.dest != "help"}
    parameters = dict(inspect.signature(FUNCTIONS[name]).parameters)
    parameters.pop("fields", None)
    if name == "train-teacher":
        parameters |= dict.fromkeys(entry.name for entry in dataclasses.fields(TeacherTrainingArguments))
    assert set(options) - ONLY_COMMAND.get(name, set()) - {"quiet"} == set(parameters) - ONLY_PYTHON.get(name, set())
    if name != "train-teacher":
        for option, action in options.items():
            if option in parameters and not action.required:
                assert action.default == parameters[option].default, option


def test_a_cache_built_in_python_equals_that_of_the_command(room):
    fields = {name: value for name, value in FIELDS.items() if name != "mixup_alpha"}
    words = [
        word
        for name, value in fields.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    built = hf_deit.cache_teacher(room / "data", out=room / "cache", teacher=FACTORY, kind="soft", views=1, **fields)
    own = ["--data", room / "data", "--teacher", FACTORY, "--kind", "soft", "--views", 1, "--output_dir", "unused"]
    assert command("cache-teacher", "--out", room / "cache2", *own, *words) == 0
    files = {path.name: path.read_bytes() for path in (room / "cache").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (room / "cache2").iterdir()}
    assert built.summary["view_epochs"] == 1 and built.folder == room / "cache"
    assert "all logits, float32 (soft)" in repr(built) and "epochs of views" in repr(built)
    assert f"{100 * built.summary['teacher_accuracy']:.2f} %" in repr(built)
    with pytest.raises(RecipeError, match="verify_teacher_cache=3"):
        hf_deit.cache_teacher(room / "data", out=room / "cache", teacher=FACTORY, verify_teacher_cache=3)


def test_results_show_their_metrics_as_text_and_in_a_notebook(room, result):
    shown = f"{100 * result.metrics['accuracy']:.2f} %"
    for text in (repr(result), result._repr_html_()):
        assert shown in text and str(room / "python") in text
    predictions = hf_deit.predict(room / "python", sorted((room / "data" / "validation").rglob("*.png"))[:1], top_k=1)
    assert predictions[0].labels[0] in repr(predictions)
    assert "<b>" not in hf_deit.recipes.api.Predictions([predictions[0].__class__("<b>", ("a",), (1.0,))])._repr_html_()


def test_invalid_input_raises_a_user_error(room, tmp_path):
    with pytest.raises(UserError):
        hf_deit.train(tmp_path / "nowhere", output_dir=tmp_path / "out", **FIELDS)
    with pytest.raises(UserError):
        hf_deit.predict(room / "python", tmp_path / "nowhere.png")


def test_the_functions_are_typed():
    for function in (hf_deit.train, *FUNCTIONS.values()):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())
