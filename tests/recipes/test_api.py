"""Python functions for the commands: the same weights and metrics as the command line, and printable results."""

import inspect
import json

import pytest
from safetensors.torch import load_file

import hf_deit
from hf_deit.errors import RecipeError, UserError
from hf_deit.recipes.predict import predict as predict_of_the_command
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
    monkeypatch.setattr("hf_deit.recipes.train.train", lambda recipe, teacher=None: seen.append(recipe))
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
    expected = predict_of_the_command(str(room / "python"), [str(image) for image in images], 2)
    assert [list(zip(one.labels, one.scores, strict=True)) for one in predictions] == expected
    assert [one.image for one in predictions] == [str(image) for image in images]
    assert [list(one) for one in predictions] == expected
    assert hf_deit.predict(room / "python", images[0], top_k=2)[0] == predictions[0]


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
    for function in (hf_deit.train, hf_deit.evaluate, hf_deit.predict, hf_deit.cache_teacher):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())
