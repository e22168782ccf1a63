"""Validation of bad recipes: it finds every problem without reading weights or writing files, and `train` raises the same."""

import logging
import random
import tempfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

import hf_deit.models.weights
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import DataError, RecipeError, UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.recipes.build import build_trainer
from hf_deit.recipes.data import load_run_data
from hf_deit.recipes.reading import load_recipe
from hf_deit.recipes.train import train
from hf_deit.recipes.validate import validate
from tests.helpers import tiny
from tests.helpers.runs import FACTORY, NAMES, TEACHER_LABELS, resnet_folder, swin_folder, write_splits

QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
SCRATCH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 16,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "distillation_type": "none",
}
HARD = {"distillation_type": "hard", "teacher": FACTORY, "teacher_labels": list(TEACHER_LABELS)}
PLAIN = {
    "model": "PLAIN",
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "patch_size": 16,
}

# Fields that override SCRATCH (None leaves a field out), and a part of the message of each problem.
BAD = {
    "an unknown kind of student": ({"student": "large"}, ["student='large'"]),
    "no size": ({"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None}, ["hidden_size"]),
    "heads that do not divide the width": ({"num_attention_heads": 5}, ["num_attention_heads=5"]),
    "an image size that is not a multiple of the patch size": ({"image_size": 20}, ["image_size", "patch_size", "20"]),
    "a drop path above 1": ({"drop_path_rate": 1.5}, ["drop_path_rate"]),
    "a crop ratio of 0": ({"evaluation_crop_ratio": 0.0}, ["crop_ratio=0.0"]),
    "weights that do not exist": ({**PLAIN, "model": "nowhere/at_all"}, ["nowhere/at_all"]),
    "weights that are a file": ({**PLAIN, "model": "FILE"}, ["hf-deit convert"]),
    "a folder without weights": ({**PLAIN, "model": "CONFIG"}, ["config.json"]),
    "a shape beside weights": ({**PLAIN, "hidden_size": 32}, ["hidden_size"]),
    "a plain student from two heads": ({**PLAIN, "model": "DISTILLED", "student": "plain"}, ["student='plain'"]),
    "another image size for a Swin": ({**PLAIN, "model": "SWIN", "image_size": 48}, ["image_size"]),
    "a token for a ResNet": ({**PLAIN, "model": "RESNET", "student": "distilled", "image_size": None}, ["student='distilled'"]),
    "no teacher to learn from": ({"distillation_type": "hard"}, ["distillation_type='hard'", "teacher"]),
    "a teacher that does not exist": ({"distillation_type": "hard", "teacher": "nowhere/teacher"}, ["nowhere/teacher"]),
    "a factory that does not exist": ({**HARD, "teacher": "nowhere:network"}, ["nowhere:network"]),
    "weights without a factory": ({"teacher_weights": "w.pth"}, ["teacher_weights"]),
    "weights beside a folder": ({**HARD, "teacher": "PLAIN", "teacher_weights": "w.pth"}, ["teacher_weights"]),
    "weights of a factory that do not exist": ({**HARD, "teacher_weights": "nowhere.pth"}, ["nowhere.pth"]),
    "an unknown type of the teacher": ({**HARD, "teacher_dtype": "int8"}, ["teacher_dtype='int8'"]),
    "a teacher of other classes": ({**HARD, "teacher_labels": ["ant", "bee", "cat", "eel"]}, ["'dog'"]),
    "a teacher with fewer class names than logits": ({**HARD, "teacher_labels": ["bee", "cat"]}, ["4 logits", "2 class names"]),
    "a teacher folder of other classes": ({"distillation_type": "soft", "teacher": "SWIN"}, ["2 classes"]),
    "a token for a plain student": ({**HARD, "student": "plain", "distillation_target": "token"}, ["'token'"]),
    "a class target for a student with two heads": ({**HARD, "distillation_target": "class"}, ["'class'"]),
    "a cache that does not exist": ({**HARD, "teacher_cache": "nowhere"}, ["nowhere"]),
    "nothing to verify": ({**HARD, "verify_teacher_cache": 8}, ["verify_teacher_cache=8"]),
    "averaged weights without enough steps": ({"ema_epochs": 0.1}, ["ema_epochs=0.1"]),
    "a cache and a teacher of other classes": (
        {**HARD, "teacher_cache": "nowhere", "teacher_labels": ["ant", "bee", "cat", "eel"]}, ["'dog'"],
    ),
    "an odd batch": ({"per_device_train_batch_size": 7, "mixup_alpha": 0.8}, ["per_device_train_batch_size=7"]),
    "adapters instead of weights": ({**PLAIN, "model": "ADAPTER"}, ["LoRA"]),
    "a warm-up without an end": ({"warmup_steps": 2}, ["warmup_steps=2"]),
    "an optimizer that does not exist": ({"optimizer_class": "nowhere:Lamb"}, ["nowhere:Lamb"]),
    "an unknown argument of the optimizer": ({"optimizer_class": "torch.optim:SGD", "optim_args": "pace=2"}, ["pace"]),
    "an optimizer of another package": ({"optim": "galore_adamw"}, ["galore"]),
    "an unknown argument of the schedule": ({"lr_scheduler_kwargs": {"pace": 2}}, ["pace"]),
    "an unknown metric": ({"load_best_model_at_end": True, "metric_for_best_model": "f1"}, ["f1"]),
    "top-5 of three classes": ({"load_best_model_at_end": True, "metric_for_best_model": "top5_accuracy"}, ["top5"]),
    "a stream of a folder": ({"streaming": True}, ["streaming: false"]),
    "data that do not exist": ({"data": "NOWHERE"}, ["no_such_data"]),
    "a folder of an earlier run": ({"output_dir": "USED"}, ["USED", "--resume"]),
    "nothing to resume": ({"resume": True}, ["resume"]),
    "a column without a table": ({"label_column": ["kind"]}, ["label_column"]),
    "a tracker that is not installed": ({"report_to": "clearml"}, ["clearml"]),
    "four things at once": (
        {**HARD, "distillation_target": "class", "per_device_train_batch_size": 7, "mixup_alpha": 0.8, "warmup_steps": 2, "layer_decay": 0.5,
         "optimizer_class": "nowhere:Lamb"},
        ["'class'", "per_device_train_batch_size=7", "warmup_steps=2", "nowhere:Lamb"],
    ),
    "student and batch": ({"num_attention_heads": 5, "per_device_train_batch_size": 7, "mixup_alpha": 0.8}, ["num_attention_heads=5", "size=7"]),
    "teacher and batch": (
        {"distillation_type": "hard", "teacher": "nowhere/teacher", "per_device_train_batch_size": 7, "cutmix_alpha": 1},
        ["nowhere/teacher", "size=7"],
    ),
    "data, student, teacher and schedule": (
        {"data": "NOWHERE", "student": "large", "distillation_type": "hard", "teacher": "nowhere/teacher", "warmup_steps": 2},
        ["no_such_data", "student='large'", "nowhere/teacher", "warmup_steps=2"],
    ),
    "no image to train on": ({"data": "TRAIN", "validation_share": 0.999}, ["validation_share"]),
    "data and student": ({"data": "NOWHERE", "student": "large"}, ["no_such_data", "student='large'"]),
}  # fmt: skip


SEVERAL = (
    "four things at once",
    "data and student",
    "student and batch",
    "teacher and batch",
    "data, student, teacher and schedule",
)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Folder with data, models and an earlier run, which no check may change."""
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    for name, two_heads in (("PLAIN", False), ("DISTILLED", True)):
        tiny.student(two_heads).save_pretrained(room / name)
        DeiTImageProcessor.for_image_size((16, 16)).save_pretrained(room / name)
    resnet_folder(room / "RESNET")
    swin_folder(room / "SWIN")
    (room / "CONFIG").mkdir()
    (room / "CONFIG" / "config.json").write_bytes((room / "PLAIN" / "config.json").read_bytes())
    (room / "ADAPTER").mkdir()
    (room / "ADAPTER" / "adapter_config.json").write_text("{}")
    (room / "FILE").write_bytes(b"0")
    (room / "USED").mkdir()
    (room / "USED" / "model.safetensors").write_bytes(b"0")
    return room


def recipe_of(room, fields):
    fields = {**QUIET, **SCRATCH, "data": str(room / "data"), "output_dir": str(room / "out"), **fields}
    for name in ("model", "teacher", "output_dir"):
        if fields.get(name) in ("PLAIN", "DISTILLED", "SWIN", "RESNET", "CONFIG", "ADAPTER", "FILE", "USED"):
            fields[name] = str(room / fields[name])
    if fields["data"] == "NOWHERE":
        fields["data"] = str(room / "no_such_data")
    if fields["data"] == "TRAIN":
        fields["data"] = str(room / "data" / "train")
    return load_recipe({name: value for name, value in fields.items() if value is not None}, [])


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def messages(errors):
    return [str(error) for error in errors]


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_recipe_is_refused_by_the_check_and_by_the_training_with_the_same_words(
    room, name, tmp_path, monkeypatch
):
    fields, words = BAD[name]
    for folder in (tmp_path / "temporary", tmp_path / "here"):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    recipe, before = recipe_of(room, fields), contents(room)
    problems = validate(recipe)
    assert len(problems) == (len(words) if name in SEVERAL else 1)
    text = "\n".join(messages(problems))
    assert [word for word in words if word not in text] == []
    with pytest.raises(UserError) as refused:
        train(recipe)
    assert messages(getattr(refused.value, "problems", ()) or [refused.value]) == messages(problems)
    assert contents(room) == before, "something was written"
    assert len(list(tmp_path.rglob("*"))) == 2, "something was written elsewhere"


# Recipes that a trainer with real weights, built in Python, refuses too. The others have problems of folders, or of optimizers
# and schedules, which the trainer creates later.
ALSO_BY_THE_TRAINER = [
    name
    for name, (fields, _) in BAD.items()
    if not {"output_dir", "resume", "optim", "optim_args", "lr_scheduler_kwargs", "report_to"} & fields.keys()
    and "data" not in fields
    # In these, the trainer finds the missing cache too, or fails before it can find the other problems.
    and name
    not in (
        "a folder without weights",
        "a cache and a teacher of other classes",
        "student and batch",
        "teacher and batch",
    )
]


def test_the_trainer_with_real_weights_refuses_the_same_recipes_with_the_same_words(room):
    assert len(ALSO_BY_THE_TRAINER) > 30
    for name in ALSO_BY_THE_TRAINER:
        recipe = recipe_of(room, BAD[name][0])
        recipe = recipe.replace(output_dir=str(room.parent / "made_by_the_trainer"))
        with pytest.raises(UserError) as refused:
            build_trainer(recipe)
        assert messages(getattr(refused.value, "problems", ()) or [refused.value]) == messages(validate(recipe)), name


def test_a_valid_recipe_has_no_problems_and_its_validation_has_no_side_effects(room, caplog):
    recipe, before = recipe_of(room, HARD), contents(room)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        data = load_run_data(recipe)
        caplog.clear()
        assert validate(recipe, data) == []
    assert not caplog.records
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert contents(room) == before


def test_no_weights_are_read(room, monkeypatch):
    opened = []

    def watched(*arguments, **options):
        opened.append(arguments[0])
        return safe_open(*arguments, **options)

    monkeypatch.setattr("transformers.modeling_utils.safe_open", watched)
    monkeypatch.setattr(hf_deit.models.weights, "load_file", watched)
    fields = {**PLAIN, "model": "DISTILLED", "distillation_type": "soft", "teacher": "DISTILLED"}
    recipe = recipe_of(room, {**fields, "teacher_labels": [*NAMES, "ant"]})
    assert validate(recipe) == []
    assert opened == []
    build_trainer(recipe)
    assert len(opened) >= 2, "the test cannot detect that weights are read"


def test_data_that_fail_to_load_in_the_validation_are_not_trained_on(room, tmp_path, monkeypatch):
    # A network file system may fail once and then work.
    failures = [DataError("the first time")]

    def load(recipe):
        if failures:
            raise failures.pop()
        return load_run_data(recipe)

    monkeypatch.setattr("hf_deit.recipes.validate.load_run_data", load)
    with pytest.raises(DataError, match="the first time"):
        train(recipe_of(room, {"output_dir": str(tmp_path / "out")}))
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_loaded_already_is_used(room):
    teacher = Teacher(tiny.conv_network(), id2label=dict(enumerate(TEACHER_LABELS)))
    recipe = recipe_of(room, {"distillation_type": "hard", "teacher": "nowhere/teacher"})
    assert validate(recipe, teacher=teacher) == []
    other = Teacher(tiny.conv_network(), id2label=dict(enumerate(("ant", "bee", "cat", "eel"))))
    (problem,) = validate(recipe, teacher=other)
    assert "'dog'" in str(problem)


def test_several_problems_are_raised_as_one_error_that_lists_them(room):
    with pytest.raises(RecipeError) as refused:
        train(recipe_of(room, BAD["four things at once"][0]))
    assert len(refused.value.problems) == 4
    assert all(str(problem) in str(refused.value) for problem in refused.value.problems)
