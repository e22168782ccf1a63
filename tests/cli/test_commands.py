"""The command line: invalid arguments, exit codes, help, and printed output."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_deit.cli import training
from hf_deit.cli.commands import COMMANDS as HANDLERS
from hf_deit.cli.commands import build_parser
from hf_deit.cli.common import _recipe_file, load_given, metric_rows, print_table
from hf_deit.models.configuration_deit import DeiTConfig
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher
from hf_deit.recipes.arguments import DataArguments, ModelArguments, RunArguments, TeacherArguments
from hf_deit.recipes.reading import load_recipe, recipe_names, whole_text
from hf_deit.recipes.train_teacher import TeacherTrainingArguments
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers.processes import run_python
from tests.helpers.runs import (
    FACTORY,
    NAMES,
    QUIET,
    STUDENT,
    TWO_STEPS,
    hf_deit,
    predict,
    refused,
    train,
    write_images,
    write_splits,
)

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "demo",
    "recipes",
    "train",
    "train-teacher",
    "evaluate",
    "sweep",
    "ablation",
    "show-augmentations",
    "predict",
    "convert",
    "export",
)
PLAIN = ("--distillation_type", "none")
LABELLED = ("--teacher", FACTORY, "--teacher_labels", "dog", "ant", "bee", "cat")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the folder of a saved student with random weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    student = DeiTForImageClassificationWithTeacher(DeiTConfig(image_size=16, patch_size=8, **shape, **names))
    for head in (student.cls_classifier, student.distillation_classifier):
        torch.nn.init.normal_(head.weight)
    student.save_pretrained(folder)
    DeiTImageProcessor.for_image_size(16).save_pretrained(folder)
    return folder


def in_a_new_process(*command):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)


# ---- arguments that are refused before anything is written ----


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        # the student
        (["--student", "foo", *PLAIN], ["student='foo'", "distilled", "plain"]),
        (["--preset", "huge", *PLAIN], ["'huge'", "tiny, small, base"]),
        (["--num_attention_heads", 3, *PLAIN], ["num_attention_heads=3", "hidden_size=32", "Use 2 or 4"]),
        (["--image_size", 20, *PLAIN], ["patch_size=8", "image_size=20", "16 or 24"]),
        (["--image_size", 16, 16, 16, *PLAIN], ["image_size=[16, 16, 16]", "height and width"]),
        (["--patch_size", 0, *PLAIN], ["patch_size=0", "positive"]),
        (["--drop_path_rate", 1.5, *PLAIN], ["drop_path_rate=1.5", "[0, 1)"]),
        (["--num_hidden_layers", 0, *PLAIN], ["num_hidden_layers=0", "at least 1"]),
        (["--model", "no/where/at/all", *PLAIN], ["No model", "no/where/at/all"]),
        # the views
        (["--view_size", 0, *PLAIN], ["view_size=[0]"]),
        (["--crop_scale", 0.5, *PLAIN], ["crop_scale", "two numbers"]),
        (["--crop_scale", 0.9, 0.1, *PLAIN], ["crop_scale=(0.9, 0.1)", "smallest <= largest"]),
        (["--flip_probability", 2, *PLAIN], ["flip_probability=2"]),
        (["--evaluation_crop_ratio", 2, *PLAIN], ["crop_ratio=2"]),
        (["--validation_share", 1, *PLAIN], ["validation_share=1"]),
        # the teacher
        (["--distillation_type", "soft"], ["distillation_type='soft'", "needs a teacher", "distillation_type='none'"]),
        (["--distillation_type", "hard"], ["distillation_type='hard'", "needs a teacher"]),
        (["--teacher", "no/where/at/all"], ["No teacher", "no/where/at/all", "package.module:factory"]),
        (["--teacher", "no.where:at_all"], ["no.where:at_all", "package.module:factory"]),
        (["--teacher", "tests.helpers.tiny:no_network"], ["tests.helpers.tiny:no_network", "torch.nn.Module"]),
        (["--teacher", "tests.helpers.tiny:nothing"], ["tests.helpers.tiny:nothing"]),
        (["--teacher", FACTORY], ["4 classes", "the student 3", "id2label"]),
        (["--teacher", FACTORY, "--teacher_labels", "ant", "bee", "cat", "elk"], ["does not know 'dog'", "'elk'"]),
        (["--teacher", FACTORY, "--teacher_labels", "bee", "cat", "dog"], ["4 logits", "3 class names"]),
        ([*LABELLED, "--teacher_weights", "no/where.pth"], ["No weights at no/where.pth"]),
        ([*LABELLED, "--teacher_dtype", "int8"], ["teacher_dtype='int8'", "bfloat16"]),
        ([*LABELLED, "--teacher_image_size", 1, 2, 3], ["teacher_image_size=[1, 2, 3]"]),
        ([*LABELLED, "--distillation_target", "class"], ["distillation_target='class'", "two"]),
        ([*LABELLED, "--student", "plain", "--distillation_target", "token"], ["distillation_target='token'"]),
        # the training
        (["--per_device_train_batch_size", 7, "--mixup_alpha", 0.8, *PLAIN], ["per_device_train_batch_size=7", "even"]),
        (["--per_device_train_batch_size", 0, *PLAIN], ["per_device_train_batch_size=0"]),
        (["--learning_rate", -1, *PLAIN], ["learning_rate=-1"]),
        (["--learning_rate", "fast", *PLAIN], ["learning_rate", "'fast'"]),
        (["--report_to", "nobody", *PLAIN], ["nobody"]),
        (["--distillation_alpha", 2, *PLAIN], ["distillation_alpha=2"]),
        (["--base_loss", "binary_cross_entropy", "--label_smoothing_factor", 0.1, *PLAIN], ["label_smoothing_factor"]),
        # unknown fields
        (["--learning_rat", 1], ["--learning_rat", "Did you mean learning_rate?"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else None,
)
def test_invalid_fields_are_refused_by_name_before_anything_is_written(tmp_path, capsys, data, fields, named):
    out = tmp_path / "out"
    command = ("train", "--data", data, "--output_dir", out, *QUIET, *TWO_STEPS, *STUDENT, *fields)
    message = refused(capsys, *command)
    assert [text for text in named if text not in message] == []
    assert not list(out.glob("*"))  # the Trainer may have created the folder, but it must be empty


def no_data(folder):
    return folder / "nowhere"


def an_empty_folder(folder):
    folder.mkdir()
    return folder


def folders_without_images(folder):
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("no image")
    return folder


def one_class(folder):
    return write_images(folder, ("bee",))


def a_class_without_training_images(folder):
    write_splits(folder)
    for file in (folder / "train" / "cat").iterdir():
        file.unlink()
    return folder


def a_class_in_validation_only(folder):
    write_splits(folder)
    (folder / "validation" / "cat").rename(folder / "validation" / "kitten")
    return folder


def a_file(folder):
    folder.write_text("no folder")
    return folder


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (no_data, ["No data at"]),
        (an_empty_folder, ["holds no folders", "folder for each class"]),
        (folders_without_images, ["no images", ".png"]),
        (one_class, ["'bee'", "at least 2"]),
        (a_class_without_training_images, ["no training image", "'cat'"]),
        (a_class_in_validation_only, ["'kitten'", "must agree"]),
        (a_file, ["is a file"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "train-teacher"])
def test_data_that_cannot_be_used_for_training_are_refused_by_name(tmp_path, capsys, command, make, named):
    folder = make(tmp_path / "pictures")
    fields = [*QUIET, *TWO_STEPS, *STUDENT, *PLAIN] if command == "train" else ["--network", FACTORY]
    message = refused(capsys, command, "--data", folder, "--output_dir", tmp_path / "out", *fields)
    assert [text for text in ("pictures", *named) if text not in message] == []
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_refused_by_name_with_broken_images_raise(tmp_path, capsys):
    """The header of the image is valid, so the error is found only during training."""
    folder = write_images(tmp_path / "pictures")
    broken = folder / "cat" / "broken.png"
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    fields = (*QUIET, *STUDENT, *PLAIN, "--num_train_epochs", 1, "--broken_images", "raise")
    message = refused(capsys, "train", "--data", folder, "--output_dir", tmp_path / "out", *fields)
    assert "broken.png" in message


def test_a_training_without_data_is_refused(tmp_path, capsys):
    assert "(--data)" in refused(capsys, "train", "--output_dir", tmp_path / "out", *STUDENT, *PLAIN)
    assert not (tmp_path / "out").exists()


def test_an_unknown_field_of_the_recipe_is_refused_by_name(tmp_path, capsys, data):
    (tmp_path / "my.yaml").write_text("learnin_rate: 1")
    message = refused(capsys, "train", "--config", tmp_path / "my.yaml", "--data", data, "--output_dir", tmp_path / "o")
    assert [text for text in ("my.yaml", "learnin_rate", "learning_rate?") if text not in message] == []
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["evaluate", "no/where", "--data", "DATA"], ["No model", "no/where"]),
        (["evaluate", "MODEL", "--data", "no/where"], ["No data", "no/where"]),
        (["evaluate", "MODEL", "--data", "DATA", "--batch_size", 0], ["batch_size=0"]),
        (["evaluate", "MODEL", "--data", "DATA", "--json", "no/where/e.json"], ["no/where/e.json"]),
        (["evaluate", "MODEL", "--data", "DATA", "--teacher", "no/where"], ["No teacher", "no/where"]),
        (["evaluate", "MODEL", "--data", "DATA", "--teacher", FACTORY], ["4 classes", "3"]),
        (["predict", "no/where", "IMAGE"], ["No model", "no/where"]),
        (["predict", "DATA", "IMAGE"], ["No model", "DATA"]),
        (["predict", "MODEL", "no/where.png"], ["no/where.png", "cannot be read"]),
        (["predict", "MODEL", "IMAGE", "--top_k", 0], ["top_k=0"]),
    ],
)
def test_other_commands_refuse_invalid_arguments_by_name(capsys, data, model, command, named):
    places = {"DATA": data, "MODEL": model, "IMAGE": next((data / "train" / "bee").iterdir())}
    message = refused(capsys, *(places.get(part, part) for part in command))
    assert [text for text in named if str(places.get(text, text)) not in message] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train-student"], "invalid choice: 'train-student'"),
        (["predict"], "model"),
        (["predict", "folder"], "images"),
        (["evaluate", "folder"], "--data"),
        (["evaluate", "folder", "--data", "x", "--foo", "1"], "unrecognized arguments: --foo 1"),
        (["train-teacher", "--data", "x", "--network", "y"], "--output_dir"),
        (["train-teacher", "--data", "x", "--network", "y", "--output_dir", "z", "--mode", "deep"], "'deep'"),
    ],
)
def test_a_command_line_that_does_not_parse_exits_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        hf_deit(*arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


# ---- exit codes ----


def test_a_diverged_training_exits_with_1_and_names_the_step(tmp_path, capsys, data):
    fields = (*STUDENT, *PLAIN, "--learning_rate", 1e30, "--max_steps", 6, "--warmup_steps", 0)
    capsys.readouterr()
    assert train(data, tmp_path, *fields) == 1
    message = capsys.readouterr().err
    assert "not finite at step" in message
    # A cosine of 6 updates: 1e30 · (1 + cos(π/6)) / 2 in the first, 1e30 · (1 + cos(2π/6)) / 2 in the second.
    assert "learning rate 9.33013e+29" in message or "learning rate 7.5e+29" in message
    assert "lower learning_rate" in message
    assert "Traceback" not in message
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_interrupted_run_exits_with_130_and_names_what_continues_it(tmp_path, monkeypatch, capsys, caplog, data):
    fields = (*STUDENT, "--distillation_type", "none", "--max_steps", 3, "--save_strategy", "steps", "--save_steps", 2)
    step = DistillationTrainer.training_step

    def interrupted(trainer, *arguments, **kwargs):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return step(trainer, *arguments, **kwargs)

    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(DistillationTrainer, "training_step", interrupted)
        assert train(data, tmp_path, *fields) == 130
        assert "Interrupted at step 2." in caplog.text
    message = capsys.readouterr().err
    assert "--resume" in message and str(tmp_path / "checkpoint-2") in message and "Traceback" not in message
    with caplog.at_level("INFO"):
        assert train(data, tmp_path, *fields, "--resume") == 0
    assert f"Resuming from {tmp_path / 'checkpoint-2'}." in caplog.text


def test_a_run_interrupted_before_its_first_checkpoint_is_not_told_to_resume(tmp_path, monkeypatch, capsys, data):
    def interrupted(recipe, prepare, finish):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_deit.recipes.train.train", interrupted)
    assert train(data, tmp_path, *STUDENT) == 130
    assert "--resume" not in (message := capsys.readouterr().err) and "interrupted" in message


@pytest.mark.parametrize(("words", "value"), [((), False), (("true",), True), (("false",), False), (None, True)])
def test_a_switch_can_have_a_value_as_a_field_of_a_recipe_can(monkeypatch, words, value):
    seen = []
    monkeypatch.setitem(HANDLERS, "evaluate", lambda options, fields: seen.append(options))
    given = ["--bf16"] if words is None else ["--bf16", *words] if words else []
    for order in (("model", *given), (*given, "model")):
        assert hf_deit("evaluate", *order, "--data", "photos") == 0
    assert [(options.bf16, options.model) for options in seen] == [(value, "model")] * 2


def test_the_overview_names_only_fields_that_differ_from_their_defaults(tmp_path, caplog, data):
    with caplog.at_level("INFO"):
        assert (
            train(data, tmp_path, *STUDENT, "--max_steps", 1, "--learning_rate", 5e-4, "--distillation_type", "none")
            == 0
        )
    (logged,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("data:")]
    changed = " ".join(logged.partition("changed:")[2].partition("output:")[0].split())
    assert "num_attention_heads 2" in changed
    assert not any(name in changed for name in ("learning_rate", "weight_decay", "flip_probability"))
    assert str(tmp_path) in logged.partition("output:")[2] and "recipe.yaml" in logged


def test_an_error_of_the_program_has_a_traceback_and_an_exit_code_of_its_own(tmp_path, monkeypatch, capsys, data):
    def faulty(recipe, prepare, finish):
        raise RuntimeError("a fault")

    monkeypatch.setattr("hf_deit.recipes.train.train", faulty)
    assert train(data, tmp_path, *STUDENT) == 3
    assert "RuntimeError: a fault" in capsys.readouterr().err


def test_only_the_main_process_prints_a_table(tmp_path, monkeypatch, capsys, data):
    monkeypatch.setattr("hf_deit.recipes.train.train", lambda recipe, prepare, finish: None)
    assert train(data, tmp_path, *STUDENT) == 0
    assert capsys.readouterr().out == ""


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_describes_every_option(capsys, command):
    with pytest.raises(SystemExit) as left:
        hf_deit(command, "--help")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: hf-deit {command}")
    options = [action for action in subparser(command)._actions if action.option_strings]
    assert options
    assert [action.dest for action in options if action.option_strings[-1] not in printed or not action.help] == []


def subparser(command):
    (choices,) = (action.choices for action in build_parser()._actions if action.choices)
    return choices[command]


def test_the_help_of_train_lists_every_field_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        hf_deit("train", "--help")
    lines = capsys.readouterr().out.splitlines()
    described = {line.split()[0] for line in lines if line.startswith("  --") and len(line.split()) > 1}
    groups = (ModelArguments, DataArguments, TeacherArguments, RunArguments)
    fields = [entry.name for group in groups for entry in dataclasses.fields(group)]
    fields += ["output_dir", "num_train_epochs", *DistillationTrainingArguments.__annotations__]
    hidden = {"remove_unused_columns", "logging_nan_inf_filter"}  # users need not set these fields
    assert [name for name in fields if f"--{name}" not in described | {f"--{one}" for one in hidden}] == []
    assert any("--help-all" in line for line in lines)


def test_every_training_field_that_the_help_of_train_lists_exists():
    names = {entry.name for entry in dataclasses.fields(DistillationTrainingArguments)}
    assert [name for name in training._COMMON_TRAINING_FIELDS if name not in names] == []


@pytest.mark.parametrize("flags", [["--help-all"], ["--config", "no/where.yaml", "--help-all"]])
def test_help_all_also_lists_every_field_of_the_trainer(capsys, flags):
    assert hf_deit("train", *flags) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: hf-deit train")
    fields = [entry.name for entry in dataclasses.fields(DistillationTrainingArguments) if entry.init]
    assert len(fields) > 100
    assert [name for name in fields if f"--{name}" not in printed] == []
    assert "--view_size" in printed


def test_every_command_of_the_parser_has_a_handler():
    (choices,) = (action.choices for action in build_parser()._actions if action.choices)
    assert set(choices) == set(HANDLERS)


def test_the_options_of_train_teacher_are_its_fields_with_their_defaults():
    required = ["--data", "a", "--network", "b", "--output_dir", "c"]
    options = vars(subparser("train-teacher").parse_args(required))
    assert options == {**dataclasses.asdict(TeacherTrainingArguments("a", "b", "c")), "quiet": False}


def test_help_imports_no_large_packages():
    heavy = ("torch", "transformers", "datasets", "numpy", "PIL")
    program = f"""
import sys
from hf_deit.cli import main
for arguments in (["--help"], ["predict", "--help"], ["evaluate", "-h"], ["train-teacher", "--help"], ["demo", "--help"]):
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code == 0
print("loaded:", [name for name in {heavy} if name in sys.modules])
"""
    done = in_a_new_process("-c", program)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert [command for command in COMMANDS if command not in done.stdout] == []


# ---- what is printed ----


def test_predictions_are_printed_one_line_per_image(capsys, data, model):
    images = sorted((data / "validation" / "dog").iterdir())[:2]
    assert hf_deit("predict", model, *images, "--top_k", 2) == 0
    printed = capsys.readouterr().out.splitlines()
    predictions = predict(str(model), [str(image) for image in images], top_k=2)
    assert printed == [
        f"{image}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best)
        for image, best in zip(images, predictions, strict=True)
    ]


def test_the_output_of_predict_with_json_is_valid_json(capsys, data, model):
    images = sorted((data / "validation" / "dog").iterdir())[:2]
    assert hf_deit("predict", model, *images, "--json", "--top_k", 9) == 0
    printed = json.loads(capsys.readouterr().out)
    predictions = predict(str(model), [str(image) for image in images], top_k=9)
    assert [row["image"] for row in printed] == [str(image) for image in images]
    assert [[tuple(pair) for pair in row["predictions"]] for row in printed] == predictions
    assert [len(row["predictions"]) for row in printed] == [3, 3]


def test_evaluate_prints_the_path_of_its_json_file(tmp_path, capsys, data, model):
    assert hf_deit("evaluate", model, "--data", data, "--json", tmp_path / "e.json") == 0
    assert f"Written to {tmp_path / 'e.json'}" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "e.json").read_text())) == {
        "split",
        "metrics",
        "loss_on",
        "per_class",
        "broken_images",
    }


def test_a_table_is_aligned(capsys):
    print_table([["class", "top-1"], ["a", "100.0 %"], ["longer", "5.0 %"]])
    assert capsys.readouterr().out.splitlines() == [
        "class     top-1",
        "------  -------",
        "a       100.0 %",
        "longer    5.0 %",
    ]


def test_metrics_are_shown_in_percent_and_losses_are_not():
    rows = metric_rows({"eval_accuracy": 0.5, "eval_cls_loss": 1.25, "eval_runtime": 3.0, "epoch": 1.0})
    assert rows == [["validation", ""], ["top-1 accuracy", "50.00 %"], ["cls loss", "1.2500"]]


def test_the_recipes_are_listed_and_one_is_printed_completely(capsys):
    assert hf_deit("recipes") == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.split(" ")[0] in recipe_names()]) == len(recipe_names()) > 20
    assert any(line.split()[:3] == ["deit_tiny_hard_300ep", "74.5", "%"] for line in printed)
    assert hf_deit("recipes", "deit_small_hard_300ep") == 0
    assert capsys.readouterr().out == whole_text("deit_small_hard_300ep")
    message = refused(capsys, "recipes", "deit_smal_hard_300ep")
    assert "'deit_smal_hard_300ep'" in message and "deit_small_hard_300ep" in message


RECIPE_COMMANDS = [
    ("train", "--output_dir", "o"),
    ("cache-teacher", "--out", "o"),
    ("show-augmentations", "DATA", "--out", "o"),
]


@pytest.mark.parametrize("command", RECIPE_COMMANDS, ids=lambda command: command[0])
def test_a_recipe_is_given_by_name_or_as_a_file_and_not_both(capsys, command):
    message = refused(capsys, *command, "--recipe", "deit_tiny_hard_300", "--data", "d")
    assert "'deit_tiny_hard_300'" in message and "deit_tiny_hard_300ep" in message
    message = refused(capsys, *command, "--recipe", "deit_tiny_hard_300ep", "--config", "my.yaml")
    assert "--recipe deit_tiny_hard_300ep" in message and "--config my.yaml" in message
    message = refused(capsys, *command, "--config", "deit_tiny_hard_300ep")  # a name where a file is expected
    assert "deit_tiny_hard_300ep" in message and "--recipe NAME" in message


@pytest.mark.parametrize("command", RECIPE_COMMANDS, ids=lambda command: command[0])
def test_a_recipe_by_name_is_found_from_every_working_directory(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    options, fields = build_parser().parse_known_args([*command, "--recipe", "deit_tiny_soft_300ep"])
    recipe = load_recipe(_recipe_file(options), fields)
    assert (recipe.training.distillation_type, recipe.augmentation.auto_augment) == ("soft", "randaugment")


# ---- the script ----


def test_the_script_does_the_same_as_the_command(tmp_path, data):
    script = ROOT / "training" / "run_distillation.py"
    assert len(script.read_text().splitlines()) <= 150
    (tmp_path / "r.yaml").write_text("distillation_type: soft\nmax_steps: 9\nlearning_rate: 1e-3\n")
    fields = ("--config", tmp_path / "r.yaml", "--data", data, "--output_dir", tmp_path / "out")
    fields += (*QUIET, *STUDENT, *PLAIN, "--max_steps", 1, "--save_strategy", "no", "--eval_strategy", "no")
    done = run_python(script, *fields)
    assert done.returncode == 0, done.stderr
    assert "top-1 accuracy, distillation head" in done.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["steps"] == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "learning_rate 0.001" in " ".join(done.stderr.split())  # a field that differs from its default


def test_errors_of_student_teacher_and_processor_are_reported_together(tmp_path, capsys, data):
    fields = ("--image_size", 30, "--teacher", "no.such:network", "--evaluation_crop_ratio", 3)
    message = refused(
        capsys, "train", "--data", data, "--output_dir", tmp_path / "out", *QUIET, *TWO_STEPS, *STUDENT, *fields
    )
    for number, named in enumerate(("image_size", "no.such", "crop_ratio"), start=1):
        assert f"{number}." in message
        assert named in message


@pytest.mark.parametrize(
    ("device", "given", "processes", "workers"),
    [
        ("cpu", (), 1, 0),
        ("cuda", (), 1, 6),
        ("cuda", (), 4, 1),
        ("cuda", (), 12, 1),
        ("cuda", ("3",), 1, 3),
        ("cuda", ("0",), 1, 0),
    ],
)
def test_data_workers_of_a_command_depend_on_device_and_cores(monkeypatch, tmp_path, device, given, processes, workers):
    monkeypatch.setattr(DistillationTrainingArguments, "device", torch.device(device))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    fields = ["--data", "photos", "--output_dir", str(tmp_path)]
    fields += [word for number in given for word in ("--dataloader_num_workers", number)]
    options = argparse.Namespace(recipe=None, config=None)
    recipe = load_given(options, fields)
    assert recipe.training.dataloader_num_workers == workers
    # What a command sets for its machine is not saved for others, and a stream depends on the number of workers.
    assert recipe.to_dict()["dataloader_num_workers"] == (int(given[0]) if given else 0)
    streamed = load_given(options, [*fields, "--streaming", "true", "--max_steps", "2"])
    assert streamed.training.dataloader_num_workers == (int(given[0]) if given else 0)
