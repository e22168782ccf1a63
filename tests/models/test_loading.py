"""Tests of loading: foreign code is never run, no pickle of the Hub is read, and incomplete models are refused."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from hf_deit.cli import main
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import UserError
from hf_deit.hub.space import make_space
from hf_deit.models.convert import load_checkpoint
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from hf_deit.recipes.arguments import ModelArguments
from hf_deit.recipes.build import build_student
from tests.helpers import environment, tiny
from tests.helpers.hub import Hub
from tests.helpers.processes import run_python

# Program that loads a folder or name in every way, and prints the error message of each way as JSON.
PROGRAM = """
import importlib.util, json, sys
from hf_deit.cli import main
from hf_deit.distillation.teacher import Teacher
from hf_deit.hub.space import TEMPLATE
from hf_deit.models.convert import load_checkpoint
from hf_deit.models.loading import load_model, load_processor
from hf_deit.recipes.arguments import ModelArguments
from hf_deit.recipes.build import build_student
from hf_deit.recipes.data import view_size_of
from hf_deit.recipes.reading import load_recipe
given, out, kinds = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
sys.modules["attention_maps"] = importlib.import_module("hf_deit.models.attention_maps")  # a Space has a copy
spec = importlib.util.spec_from_file_location("app", TEMPLATE / "app.py")
app = importlib.util.module_from_spec(spec); spec.loader.exec_module(app)
student = ModelArguments(model=given)
def run_command(*words):
    from hf_deit.cli.commands import COMMANDS, build_parser
    COMMANDS[words[0]](build_parser().parse_args(words), [])
ways = {
    "model": lambda: load_model(given),
    "processor": lambda: load_processor(given),
    "student": lambda: build_student(student, ["a", "b", "c", "d"]),
    "size": lambda: view_size_of(load_recipe(None, ["--model", given, "--output_dir", out])),
    "teacher": lambda: Teacher.from_pretrained(given),
    "checkpoint": lambda: load_checkpoint(given),
    "app": lambda: app.load(given),
    "export": lambda: run_command("export", given, out + "/e.onnx", "--format", "onnx"),
}
messages = {}
for kind in kinds:
    try:
        ways[kind]()
        messages[kind] = None
    except ValueError as error:
        messages[kind] = str(error)
    except OSError as error:
        messages[kind] = "OSError " + str(error)
print(json.dumps(messages))
"""


def messages_of(given, out, kinds, **variables):
    """Load a folder or name in several ways in a new process, and return the error message of each, or None.

    With `variables`, which libraries read when they are imported, the process is an interpreter of its own.
    """
    arguments, answers = (str(given), str(out), ",".join(kinds)), "y\n" * 50
    if variables:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, input=answers, env=environment(**variables), capture_output=True, text=True)
    else:
        done = run_python(PROGRAM, *arguments, stdin=answers)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "evil"
class Model(PreTrainedModel):
    config_class = Config
class Processor: ...
"""


def test_code_in_a_folder_is_not_run_even_if_the_user_would_confirm_it(tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    classes = {"AutoConfig": "x.Config", "AutoModelForImageClassification": "x.Model"}
    (evil / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    processor = {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "x.Processor"}}
    (evil / "preprocessor_config.json").write_text(json.dumps(processor))
    (evil / "x.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    ways = ("model", "processor", "student", "size", "teacher", "app", "export")
    messages = messages_of(evil, tmp_path, ways)
    assert not list(tmp_path.rglob("ran"))
    for way in ("model", "student", "size", "teacher", "export"):
        assert str(evil) in messages[way] and "auto_map" in messages[way], messages
    assert None not in messages.values()


def test_no_pickle_of_the_hub_is_downloaded_or_read(tmp_path):
    hub = Hub("none")
    model = tiny.student()
    model.save_pretrained(tmp_path / "model")
    torch.save(torch.load, tmp_path / "pickle")  # this pickle would be refused only when it is read
    files = {"config.json": (tmp_path / "model" / "config.json").read_bytes()}
    files["pytorch_model.bin"] = (tmp_path / "pickle").read_bytes()
    hub.repos["me/old"] = {"private": False, "branches": {"main": files}, "tags": {}}
    places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    ways = ("model", "student", "teacher", "checkpoint", "export")
    try:
        messages = messages_of("me/old", tmp_path, ways, HF_HUB_OFFLINE="0", **places)
    finally:
        hub.close()
    for way in ways:
        assert "me/old" in messages[way] and "model.safetensors" in messages[way], messages
    requested = [path for _, path, _ in hub.received]
    assert any("config.json" in path for path in requested) and not any(path.endswith(".bin") for path in requested)


def test_a_pickle_in_the_cache_of_the_hub_is_not_read(tmp_path, monkeypatch):
    repo = tmp_path / "models--facebook--deit-tiny-patch16-224"
    tiny.student(two_heads=False).save_pretrained(repo / "snapshots" / "abc")
    (repo / "snapshots" / "abc" / "model.safetensors").unlink()
    torch.save(tiny.student(two_heads=False).state_dict(), repo / "snapshots" / "abc" / "pytorch_model.bin")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"facebook/deit-tiny-patch16-224 .*model\.safetensors.*pickles"):
        load_checkpoint("deit-tiny")


# ---- incomplete models ----


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Return the folder of a ViT without classifier, written by `ViTModel.save_pretrained`."""
    folder = tmp_path_factory.mktemp("backbone")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    DeiTImageProcessor.for_image_size((16, 16)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "use",
    [
        lambda folder, out: load_model(str(folder)),
        lambda folder, out: Teacher.from_pretrained(folder),
        lambda folder, out: make_space(str(folder), out / "space"),
    ],
    ids=["model", "teacher", "space"],
)
def test_a_backbone_without_classifier_is_refused_for_predictions(backbone, tmp_path, use):
    with pytest.raises(ValueError, match=r"classifier\.bias, classifier\.weight"):
        use(backbone, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["export", "FOLDER", "OUT/m.onnx", "--format", "onnx"],
        ["predict", "FOLDER", "photo.jpg"],
        ["push", "FOLDER", "me/x", "--dry-run"],
    ],
    ids=["export", "predict", "push"],
)
def test_a_command_with_a_backbone_names_the_missing_weights(backbone, tmp_path, capsys, command):
    command = [word.replace("FOLDER", str(backbone)).replace("OUT", str(tmp_path)) for word in command]
    assert main(command) == 2
    assert "classifier.weight" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ({"1": "ant", "2": "bee", "3": "cat", "4": "dog"}, ["id2label", "0 to 3"]),
        (None, ["shapes", "config.json"]),
        (["ant", "bee"], []),
    ],
)
def test_class_names_that_do_not_fit_the_weights_are_refused(tmp_path, capsys, names, parts):
    folder = tmp_path / "model"
    tiny.student().save_pretrained(folder)
    DeiTImageProcessor.for_image_size((16, 16)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names, "label2id": None}))
    for command in (
        ["predict", str(folder), "photo.jpg"],
        ["export", str(folder), str(tmp_path / "m.pt2"), "--format", "torch"],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert all(part in message for part in [str(folder), *parts]), message


def test_training_can_start_from_a_backbone(backbone):
    student = build_student(ModelArguments(model=str(backbone)), ["ant", "bee", "cat"])
    assert student.config.num_labels == 3
    assert Teacher.from_pretrained(backbone, needs_head=False)


def test_weights_below_the_heads_that_are_missing_or_of_another_model_are_reported(tmp_path, caplog):
    student = tiny.student()
    weights = student.state_dict()
    lost = next(name for name in weights if "layers.1" in name or "layer.1" in name)
    del weights[lost]
    student.save_pretrained(tmp_path, state_dict=weights)
    build_student(ModelArguments(model=str(tmp_path)), ["other", "classes"])
    (record,) = [
        record for record in caplog.records if record.levelname == "WARNING" and "missing" in record.getMessage()
    ]
    assert str(tmp_path) in record.getMessage() and "1 weights" in record.getMessage()
    assert "classifier" not in record.getMessage()
    assert "LOAD REPORT" not in caplog.text


def test_new_heads_for_other_classes_are_no_warning(tmp_path, caplog):
    tiny.student().save_pretrained(tmp_path)
    build_student(ModelArguments(model=str(tmp_path)), ["other", "classes"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
