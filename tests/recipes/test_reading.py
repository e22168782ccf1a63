"""Recipes from YAML files and the command line: every field has its type, and invalid fields are named."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_deit
from hf_deit.data.augmentation import Augmentation
from hf_deit.errors import RecipeError
from hf_deit.recipes.arguments import (
    GROUPS,
    OTHER_TOOLS,
    DataArguments,
    ModelArguments,
    RunArguments,
    TeacherArguments,
    field_groups,
)
from hf_deit.recipes.reading import given_names, load_recipe, read_fields, recipe_path
from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers import environment

RECIPES = sorted((Path(hf_deit.__file__).parent / "recipes" / "configs").glob("*.yaml"))

# A value for every field that is not its default, in a recipe in which all of them have an effect.
VALUES = {
    "model": "some/folder",
    "student": "plain",
    "preset": "tiny",
    "image_size": (48, 64),
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "drop_path_rate": 0.25,
    "layer_scale_init_value": 0.5,
    "data": "some/data",
    "class_names": "names.csv",
    "data_config": "small",
    "data_revision": "v2",
    "split_column": "part",
    "train_split": "most",
    "validation_split": "rest",
    "validation_share": 0.2,
    "image_column": "photo",
    "label_column": ["kind", "colour"],
    "label_separator": ";",
    "broken_images": "raise",
    "views_memory": 2.5,
    "unlabelled": "more/photos",
    "unlabelled_split": "all",
    "unlabelled_share": 0.75,
    "view_size": (96, 128),
    "crop_scale": (0.3, 0.9),
    "crop_aspect": (0.5, 2.0),
    "flip_probability": 0.125,
    "auto_augment": "randaugment",
    "randaugment_magnitude": 7.0,
    "randaugment_magnitude_std": 0.25,
    "randaugment_probability": 0.75,
    "randaugment_num_ops": 3,
    "color_jitter": 0.3,
    "erasing_probability": 0.25,
    "evaluation_crop_ratio": 1.0,
    "teacher": "package.module:factory",
    "teacher_weights": "weights.pth",
    "teacher_image_mean": [0.5, 0.25, 0.125],
    "teacher_image_std": [0.25, 0.5, 0.75],
    "teacher_image_size": (160, 160),
    "teacher_labels": ["a dog", "cat", "1"],
    "teacher_dtype": "float16",
    "teacher_problem_type": "multi_label_classification",
    "teacher_cache": "cache",
    "verify_teacher_cache": 100,
    "resume": True,
    "report": False,
    "extend": True,
    # fields of DistillationTrainingArguments, and inherited fields whose defaults it changes
    "distillation_type": "soft",
    "distillation_target": "class",
    "distillation_alpha": 0.75,
    "distillation_tau": 2.5,
    "distillation_reduction": "official",
    "base_loss": "binary_cross_entropy",
    "num_views": 7,
    "distillation_token_decay": False,
    "repeated_augmentation": 3,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "mix_probability": 0.75,
    "mix_switch_probability": 0.25,
    "trainable": "head",
    "class_weights": "balanced",
    "class_weights_power": 0.5,
    "guidance": "features",
    "guidance_weight": 12.0,
    "guidance_student_layers": ["-2"],
    "guidance_teacher_layers": ["blocks.5"],
    "early_stopping_patience": 3,
    "early_stopping_threshold": 0.01,
    "scale_learning_rate": True,
    "warmup_learning_rate": 2e-6,
    "min_learning_rate": 3e-5,
    "layer_decay": 0.75,
    "optimizer_class": "torch.optim:RAdam",
    "ema_epochs": 1.5,
    "counted_weights": "ema",
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "warmup_steps": 12.0,
    "max_grad_norm": 1.0,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 5,
    "metric_for_best_model": "ema_loss",
    # fields of TrainingArguments, one of each type
    "output_dir": "some/out",
    "per_device_train_batch_size": 6,
    "num_train_epochs": 2.5,
    "seed": 11,
    "logging_first_step": True,
    "push_to_hub": True,
    "report_to": ["tensorboard"],
    "lr_scheduler_kwargs": {"power": 2},
    "hub_strategy": "end",
}
# Fields that have no effect together with others in VALUES, and what they need.
ALONE = {
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "streaming": {"streaming": True},
    "shuffle_buffer": {"shuffle_buffer": 77, "streaming": True},
}
# Fields of which every other value is refused.
ONE_VALUE = {"remove_unused_columns", "logging_nan_inf_filter"}


def written(path, content):
    """Write these fields, or text as it is, to a YAML file and return its path."""
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def as_yaml(fields):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def given(recipe, names=VALUES):
    """Return the values of fields of a recipe by name, with enum members as plain values."""
    fields = {}
    for group in (recipe.model, recipe.data, recipe.augmentation, recipe.teacher, recipe.run, recipe.training):
        for entry in dataclasses.fields(group):
            value = getattr(group, entry.name, None)
            fields[entry.name] = getattr(value, "value", value)  # the value of an enum member
    return {name: fields[name] for name in names}


def on_the_command_line(fields):
    arguments = []
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{name}", *(yaml.safe_dump(v, default_flow_style=True) if v != str(v) else v for v in values)]
    return [str(argument).removesuffix("\n").removesuffix("\n...") for argument in arguments]


# ---- every field, from YAML and the command line ----


def test_values_contains_every_field_with_a_value_that_is_not_its_default():
    own = [entry.name for group in GROUPS.values() for entry in dataclasses.fields(group)]
    own += DistillationTrainingArguments.__annotations__
    assert set(own) - ONE_VALUE <= set(VALUES) | set(ALONE)
    defaults = given(load_recipe(None, []))
    assert [name for name in VALUES if defaults[name] == VALUES[name]] == []


def test_every_field_is_read_from_yaml(tmp_path):
    assert given(load_recipe(written(tmp_path / "r.yaml", as_yaml(VALUES)), [])) == VALUES


@pytest.mark.parametrize("name", ALONE)
def test_fields_that_exclude_others_are_read_from_yaml_and_the_command_line(tmp_path, name):
    fields = ALONE[name]
    assert given(load_recipe(written(tmp_path / "r.yaml", as_yaml(fields)), []), fields) == fields
    assert given(load_recipe(None, on_the_command_line(fields)), fields) == fields


def test_every_field_is_read_from_the_command_line():
    fields = {**VALUES, "lr_scheduler_kwargs": '{"power": 2}'}
    assert given(load_recipe(None, on_the_command_line(fields))) == VALUES


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("learning_rate", ["1e-5"], 1e-5),
        ("student", ["distilled"], "distilled"),
        ("image_size", ["32"], (32, 32)),
        ("crop_scale", ["0.1", "0.2"], (0.1, 0.2)),
        ("teacher_labels", ["x", "y"], ["x", "y"]),
        ("logging_first_step", ["false"], False),
        ("resume", ["false"], False),
        ("distillation_token_decay", ["true"], True),
        ("num_views", ["3"], 3),
    ],
)
def test_the_command_line_overrides_the_file(tmp_path, name, arguments, value):
    recipe = load_recipe(written(tmp_path / "r.yaml", as_yaml(VALUES)), [f"--{name}", *arguments])
    assert given(recipe) == {**VALUES, name: value}


def test_a_value_is_not_read_as_the_name_of_a_field():
    words = ["--output_dir", "teacher_cache", "--bf16=true", "--crop_scale", "0.1", "-1"]
    assert given_names(words) == ["output_dir", "bf16", "crop_scale"]


def test_flags_need_no_value():
    recipe = load_recipe(None, ["--resume", "--use_cpu", "--no_distillation_token_decay", "--image_size", "8"])
    assert given(recipe, ["resume", "use_cpu", "distillation_token_decay", "image_size"]) == {
        "resume": True,
        "use_cpu": True,
        "distillation_token_decay": False,
        "image_size": (8, 8),
    }


# ---- types of YAML ----


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 1e-4", 1e-4),  # text in YAML 1.1
        ("learning_rate: '1e-4'", 1e-4),
        ("learning_rate: 1", 1.0),
        ("num_train_epochs: 1e1", 10.0),
        ("patch_size: '8'", 8),
        ("image_size: 64", (64, 64)),
        ("image_size: [64]", (64, 64)),
        ("image_size: [64, 1_28]", (64, 128)),
        ("crop_scale: [1e-2, 1]", (0.01, 1.0)),
        ("teacher_labels: dog", ["dog"]),
        ("teacher_labels: [1, 2]", ["1", "2"]),
        ("model: 2021", "2021"),
        ("optim_args: 1e-4", "1e-4"),  # text stays text, as --optim_args 1e-4 writes it
        ("use_cpu: yes", True),
        ("use_cpu: 'true'", True),
        ("distillation_token_decay: 'false'", False),
        ("lr_scheduler_kwargs: {power: 2.0}", {"power": 2.0}),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", {"min_lr": 1e-6}),
        ("distillation_alpha: null", 0.5),
        ("save_total_limit: null", None),
        ("hidden_size: null", None),
        ("image_size: null", None),
        ("teacher_image_mean: ~", None),
        ("teacher_labels:", None),
    ],
)
def test_a_yaml_value_is_converted_to_the_type_of_its_field(tmp_path, line, value):
    name = line.partition(":")[0]
    hard = "distillation_type: hard"  # without a teacher, the default would be "none"
    found = given(load_recipe(written(tmp_path / "r.yaml", f"{hard}\n{line}"), []), [name])[name]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list | tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("learning_rate: fast", ["learning_rate", "fast"]),
        ("learning_rate: [1e-3, 1e-4]", ["learning_rate"]),
        ("learning_rate: {a: 1}", ["learning_rate"]),
        ("learning_rate: null", ["learning_rate"]),
        ("patch_size: 8.5", ["patch_size", "8.5"]),
        ("patch_size: true", ["patch_size", "True"]),
        ("patch_size: null", ["patch_size"]),
        ("image_size: [16, x]", ["image_size", "x"]),
        ("image_size: {height: 16}", ["image_size", "height"]),
        ("crop_scale: [0.5, null]", ["crop_scale"]),
        ("output_dir: [a, b]", ["output_dir"]),
        ("use_cpu: maybe", ["use_cpu", "maybe"]),
        ("distillation_token_decay: maybe", ["distillation_token_decay", "maybe"]),
        ("distillation_token_decay: 7", ["distillation_token_decay", "7"]),
        ("distillation_type: medium", ["distillation_type", "medium", "none, soft, hard"]),
        ("base_loss: hinge", ["base_loss", "hinge", "cross_entropy"]),
        ("hub_strategy: never", ["hub_strategy", "never", "every_save"]),
        ("distillation_reduction: sum", ["distillation_reduction", "sum", "official"]),
        ("distillation_alpha: 1.5", ["distillation_alpha", "1.5", "[0, 1]"]),
        ("distillation_tau: 0", ["distillation_tau", "0"]),
        ("num_views: 0", ["num_views", "0"]),
        ("eval_strategy: sometimes", ["sometimes", "epoch"]),
        ("lr_scheduler_type: sine", ["sine", "cosine"]),
    ],
)
def test_an_invalid_yaml_value_is_named_with_its_field(tmp_path, line, named):
    with pytest.raises(RecipeError) as refused:
        load_recipe(written(tmp_path / "r.yaml", line), [])
    assert [text for text in named if text not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--learning_rate", "fast"], ["learning_rate", "fast", "--help"]),
        (["--learning_rate"], ["learning_rate", "--help"]),
        (["--image_size", "16", "x"], ["image_size", "x"]),
        (["--distillation_type", "medium"], ["distillation_type", "medium", "soft"]),
        (["--use_cpu", "maybe"], ["use_cpu", "maybe"]),
        (["--learning_rat", "1"], ["--learning_rat", "Did you mean learning_rate?"]),
        (["--learning_rat=1"], ["--learning_rat", "Did you mean learning_rate?"]),
        (["--epochs", "3"], ["--epochs", "Did you mean num_train_epochs?"]),
        (["--batch-size=3"], ["--batch-size", "Did you mean per_device_train_batch_size?"]),
        (["--lr", "1"], ["--lr", "Did you mean learning_rate?"]),
        (["--learn", "1"], ["--learn"]),  # abbreviations are not allowed: a field added later could make them ambiguous
        (["--qqqq", "1"], ["--qqqq", "--help"]),
        (["stray"], ["stray", "--help"]),
    ],
)
def test_an_invalid_command_line_argument_is_named(arguments, named):
    with pytest.raises(RecipeError) as refused:
        load_recipe(None, arguments)
    assert [text for text in named if text not in str(refused.value)] == []


def test_names_of_other_tools_lead_to_fields_that_exist_and_are_no_fields_themselves():
    fields = {entry.name for group in field_groups().values() for entry in dataclasses.fields(group)}
    assert [name for name, field in OTHER_TOOLS.items() if field not in fields or name in fields] == []


# ---- files ----


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("learnin_rate: 1", ["learnin_rate", "Did you mean learning_rate?"]),
        ("imagesize: 16\npatchsize: 8", ["imagesize", "patchsize", "Did you mean image_size?"]),
        ("qqqq: 1", ["qqqq", "hf-deit train --help"]),
        ("1: 2", ["1"]),
        ("on: 5\nzzzz: 1", ["True", "zzzz"]),  # YAML 1.1 reads on, off, yes and no as truth values
        ("- student: plain", ["fields", "list"]),
        ("plain", ["fields", "str"]),
        ("student: [plain", ["not valid YAML", "line 1"]),
        ("student: plain\n\tpreset: tiny", ["not valid YAML", "line 2"]),
        ("learning_rate: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    ],
)
def test_an_invalid_recipe_file_is_refused_with_its_name(tmp_path, content, named):
    with pytest.raises(RecipeError) as refused:
        load_recipe(written(tmp_path / "my recipe.yaml", content), [])
    assert [text for text in ["my recipe.yaml", *named] if text not in str(refused.value)] == []


def test_a_missing_recipe_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml", [])
    with pytest.raises(RecipeError, match=str(tmp_path)):
        load_recipe(tmp_path, [])


def test_a_file_that_is_not_text_is_refused_with_its_name(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml", [])


def test_an_empty_file_has_the_default_fields(tmp_path):
    recipe = load_recipe(written(tmp_path / "r.yaml", "# nothing yet\n"), [])
    assert (recipe.model, recipe.data, recipe.augmentation, recipe.teacher, recipe.run) == (
        ModelArguments(),
        DataArguments(),
        Augmentation(),
        TeacherArguments(),
        RunArguments(),
    )


# ---- recipes as plain fields ----


def test_tokens_are_left_out_of_the_plain_fields():
    fields = load_recipe(None, ["--push_to_hub", "--hub_token", "hf_secret", "--hub_model_id", "me/student"]).to_dict()
    assert "hf_secret" not in yaml.safe_dump(fields)
    assert not [name for name in fields if name.endswith("_token")]
    assert fields["hub_model_id"] == "me/student"
    assert "distillation_token_decay" in fields


@pytest.mark.parametrize(
    "fields",
    [{}, {**as_yaml(VALUES), "resume": False, "extend": False, "report": True}],
    ids=["defaults", "every field"],
)
def test_a_saved_recipe_is_a_recipe_of_the_same_run(tmp_path, fields):
    first = load_recipe(written(tmp_path / "first.yaml", fields), [])
    again = load_recipe(written(tmp_path / "again.yaml", first.to_dict()), [])
    assert again.to_dict() == first.to_dict()
    assert (again.model, again.data, again.teacher) == (first.model, first.data, first.teacher)
    assert again.training.to_dict() == first.training.to_dict()
    if fields:
        assert given(again) == {**VALUES, "resume": False, "extend": False, "report": True}


def test_there_are_recipes_in_the_package():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_all_fields_of_a_recipe_of_the_package_are_read(path):
    fields = read_fields(path)
    assert "base" not in fields and len(fields) > 15
    recipe = load_recipe(path, [])
    plain = recipe.to_dict()
    assert {name: plain[name] for name in fields} == {
        name: [value] if name in ("image_size", "view_size", "label_column") and not isinstance(value, list) else value
        for name, value in fields.items()
    }


def test_a_file_with_a_base_differs_from_the_base_only_in_its_own_fields(tmp_path):
    path = written(tmp_path / "r.yaml", "base: deit_tiny_hard_300ep\npreset: small\nnum_train_epochs: 7\n")
    base, own = load_recipe(recipe_path("deit_tiny_hard_300ep"), []).to_dict(), load_recipe(path, []).to_dict()
    changed = {name for name in base if base[name] != own[name]} - {"logging_dir"}
    assert changed == {"preset", "num_train_epochs"}
    assert (own["preset"], own["num_train_epochs"], own["mixup_alpha"]) == ("small", 7, 0.8)
    assert load_recipe(path, ["--preset", "base"]).model.preset == "base"


# ---- values are normalised when they are read ----


@pytest.mark.parametrize(
    ("values", "size"), [(None, None), (16, (16, 16)), ([16], (16, 16)), ([16, 24], (16, 24)), ((16, 24), (16, 24))]
)
def test_a_size_is_one_number_or_height_and_width(values, size):
    assert ModelArguments(image_size=values).image_size == size
    assert Augmentation(values).view_size == size
    assert TeacherArguments(teacher_image_size=values).teacher_image_size == size


@pytest.mark.parametrize("values", [[], [0], [16, -1], [1, 2, 3], [1.5], "16", True])
def test_an_invalid_size_is_refused_with_its_name(values):
    for name, group in (("image_size", ModelArguments), ("view_size", Augmentation)):
        with pytest.raises(RecipeError, match=f"{name}=.*height and width"):
            group(**{name: values})


def test_short_names_become_full_names_unless_a_folder_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"model": "deit-tiny", "teacher": "regnety_160"}
    recipe = load_recipe(fields, [])
    assert recipe.model.model == "facebook/deit-tiny-patch16-224"
    assert recipe.teacher.teacher == "facebook/regnet-y-160"
    (tmp_path / "deit-tiny").mkdir()
    recipe = load_recipe(fields, [])
    assert recipe.model.model == "deit-tiny"
    assert recipe.to_dict()["model"] == str(tmp_path / "deit-tiny")


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("model", "data", "teacher", "teacher_weights", "teacher_cache", "output_dir")
    recipe = load_recipe({name: f"~/{name}" for name in names}, [])
    assert given(recipe, names) == {name: os.path.join(tmp_path, name) for name in names}


def test_an_empty_string_counts_as_no_teacher():
    names = ("teacher", "teacher_weights", "teacher_cache")
    assert given(load_recipe(dict.fromkeys(names, ""), []), names) == dict.fromkeys(names)


# ---- replaced fields ----


def test_a_recipe_cannot_be_changed():
    recipe = load_recipe(VALUES, [])
    for group, name in ((recipe, "model"), *((getattr(recipe, attribute), None) for attribute in GROUPS)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, name or dataclasses.fields(group)[0].name, None)


@pytest.mark.parametrize(("name", "value"), [*VALUES.items()])
def test_any_field_can_be_replaced_and_the_others_stay(name, value):
    before = load_recipe({"distillation_type": "hard", "ema_epochs": 1.0, "seed": 5}, [])
    if name == "ema_epochs":
        value = 2.5
    changed = before.replace(**{name: value})
    assert given(changed, [name]) == {name: value}
    differ = {one for one, new in given(changed).items() if new != given(before)[one]}
    assert differ <= {name, *({"distillation_alpha"} if name == "distillation_type" else ())}
    assert given(before, ["seed", "ema_epochs"]) == {"seed": 5, "ema_epochs": 1.0}


def test_defaults_that_depend_on_a_replaced_field_follow_it():
    hard = load_recipe({"distillation_type": "hard", "teacher": "some/teacher"}, [])
    assert (hard.training.distillation_alpha, hard.training.do_eval) == (0.5, True)
    changed = hard.replace(distillation_type="soft", eval_strategy="no", output_dir="elsewhere")
    assert (changed.training.distillation_alpha, changed.training.do_eval) == (0.1, False)
    assert (changed.training.output_dir, changed.teacher.teacher) == ("elsewhere", "some/teacher")
    explicit = hard.replace(distillation_alpha=0.9).replace(distillation_type="soft")
    assert explicit.training.distillation_alpha == 0.9


def test_unknown_fields_and_invalid_values_cannot_be_replaced():
    recipe = load_recipe({"distillation_type": "none"}, [])
    with pytest.raises(RecipeError, match="learning_rat.*Did you mean learning_rate"):
        recipe.replace(learning_rat=1.0)
    with pytest.raises(RecipeError, match="patch_size='large'"):
        recipe.replace(patch_size="large")


def test_problems_of_several_groups_are_named_together():
    fields = {"image_size": [1, 2, 3], "crop_scale": [0.9, 0.1], "distillation_type": "hard", "layer_decay": 2.0}
    with pytest.raises(RecipeError) as refused:
        load_recipe(fields, [])
    assert [name for name in ("image_size", "crop_scale", "layer_decay") if f"{name}=" not in str(refused.value)] == []
    with pytest.raises(RecipeError) as refused:
        load_recipe({"patch_size": "x", "seed": "y"}, [])
    assert [name for name in ("patch_size='x'", "seed='y'") if name not in str(refused.value)] == []


def test_the_fields_can_be_listed_without_heavy_imports():
    program = "import sys, hf_deit.recipes.arguments as a; assert a.GROUPS; print(*sys.modules)"
    loaded = in_a_new_process(program)
    assert "hf_deit.data.augmentation" in loaded
    assert not {"torch", "transformers", "numpy", "PIL"} & set(loaded)


def in_a_new_process(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_field_of_a_recipe_is_documented():
    for group in GROUPS.values():
        assert [entry.name for entry in dataclasses.fields(group) if not entry.metadata.get("help")] == []
    own = DistillationTrainingArguments.__annotations__
    entries = {entry.name: entry for entry in dataclasses.fields(DistillationTrainingArguments)}
    assert [name for name in own if not entries[name].metadata.get("help")] == []


def test_a_saved_recipe_with_a_field_that_is_refused_now_is_read_without_it(tmp_path):
    saved = load_recipe(None, ["--preset", "tiny"]).to_dict() | {"average_tokens_across_devices": False}
    written(tmp_path / "recipe.yaml", as_yaml(saved))
    recipe = load_recipe(tmp_path / "recipe.yaml", [])
    assert recipe.model.preset == "tiny" and recipe.training.average_tokens_across_devices


@pytest.mark.parametrize(
    ("base", "own", "top", "guidance"),
    [
        ("guided", {}, {"distillation_type": "none"}, "none"),
        ("guided", {"distillation_type": "none"}, {}, "none"),
        ("guided", {}, {"distillation_type": "none", "teacher": "t"}, "features"),
        ("guided", {"teacher": "t"}, {"distillation_type": "none"}, "features"),
        ("guided", {"teacher_cache": "c", "distillation_type": "none"}, {}, "features"),
        ("guided", {}, {"distillation_type": "none", "guidance": "similarity"}, "similarity"),
        ("guided", {"guidance": "similarity", "distillation_type": "none"}, {}, "similarity"),
        ("guided", {"distillation_type": "none"}, {"guidance": "features"}, "features"),
        ("plain", {}, {"distillation_type": "none"}, "none"),
    ],
)
def test_without_a_teacher_distillation_type_none_ends_the_guidance_of_the_recipe(tmp_path, base, own, top, guidance):
    recipes = {"guided": "from_scratch_64", "plain": "finetune_96"}
    recipe = load_recipe(written(tmp_path / "own.yaml", {"base": recipes[base], **own}), [], top)
    assert recipe.training.guidance == guidance
