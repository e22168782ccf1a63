"""Fields without an effect are refused in the layer that gives them, and commands extend, stop early and weight classes."""

import json

import pytest
import yaml

from hf_deit.cli import commands
from hf_deit.errors import RecipeError
from hf_deit.recipes.reading import load_recipe
from tests.helpers.runs import STUDENT, hf_deit, refused, train, write_splits

SOFT = {"distillation_type": "soft", "distillation_tau": 2.0, "distillation_alpha": 0.4}


def written(path, fields):
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--do_train", "false"], "hf-deit evaluate"),
        (["--do_eval", "true"], "eval_strategy"),
        (["--resume_from_checkpoint", "somewhere"], "--resume"),
        (["--local_rank", "0"], "accelerate launch"),
        (["--prediction_loss_only", "true"], "prediction_loss_only"),
        (["--data_seed", "1"], "Set seed"),
        (["--eval_accumulation_steps", "2"], "eval_accumulation_steps=2"),
        (["--teacher_dtype", "bfloat16"], "a teacher"),
        (["--teacher_labels", "a", "b"], "a teacher"),
        (["--randaugment_num_ops", "3"], "auto_augment='randaugment'"),
        (["--shuffle_buffer", "5"], "streaming"),
        (["--streaming", "true", "--num_views", "3"], "num_views=3"),
        (["--hub_model_id", "me/mine"], "push_to_hub"),
        (["--restore_callback_states_from_checkpoint", "true"], "--resume"),
        (["--distillation_tau", "3.5"], "distillation_type='soft'"),
    ],
    ids=" ".join,
)
def test_a_field_that_a_command_cannot_use_is_refused_with_what_to_do(words, named):
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, words)
    message = str(caught.value)
    assert named in message
    assert words[-2 if words[-2].startswith("--") else 0].removeprefix("--") + "=" in message


def test_a_file_alone_is_checked_and_an_override_of_its_fields_is_not(tmp_path):
    file = written(tmp_path / "r.yaml", SOFT)
    assert load_recipe(file, ["--distillation_type", "none"]).training.distillation_tau == 2.0
    with pytest.raises(RecipeError, match="distillation_tau=2.0"):
        load_recipe(written(tmp_path / "hard.yaml", {**SOFT, "distillation_type": "hard"}), [])
    with pytest.raises(RecipeError, match="distillation_tau=5.0"):
        load_recipe(file, ["--distillation_type", "none", "--distillation_tau", "5"])


def test_a_file_for_a_teacher_may_be_used_without_one(tmp_path):
    file = written(tmp_path / "r.yaml", {"teacher_dtype": "bfloat16", "distillation_alpha": 0.3})
    assert load_recipe(file, []).training.distillation_type == "none"
    assert load_recipe(file, ["--teacher", "some/teacher"]).training.distillation_alpha == 0.3


def test_fields_of_a_base_may_have_no_effect_in_a_file_of_its_own(tmp_path):
    file = {"base": "clothing10_64", "distillation_type": "none"}
    assert load_recipe(written(tmp_path / "r.yaml", file), []).training.distillation_type == "none"


def test_a_saved_recipe_keeps_values_without_effect(tmp_path):
    recipe = load_recipe(written(tmp_path / "r.yaml", SOFT), ["--distillation_type", "none"])
    again = load_recipe(written(tmp_path / "saved.yaml", recipe.to_dict()), [])
    assert again.to_dict() == recipe.to_dict()
    del recipe  # a person's own file with one of these fields is not a saved one
    with pytest.raises(RecipeError, match="do_train=False"):
        load_recipe(written(tmp_path / "own.yaml", {"do_train": False}), [])


def test_an_empty_teacher_is_not_the_same_as_none():
    assert load_recipe(None, ["--teacher", ""]).training.distillation_type == "hard"


@pytest.mark.parametrize("name", ["teacher", "teacher_cache", "teacher_weights", "model", "unlabelled", "class_names"])
@pytest.mark.parametrize("value", ["none", "None", "null"])
def test_a_name_that_means_nothing_is_refused_unless_it_exists(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "r.yaml", {"distillation_type": "none", name: value})
    for config, words in ((None, [f"--{name}", value, "--distillation_type", "none"]), (file, [])):
        with pytest.raises(RecipeError, match=f"{name}='{value}' .*leave {name} out"):
            load_recipe(config, words)
    (tmp_path / value).mkdir()
    group = "model" if name == "model" else "teacher" if name.startswith("teacher") else "data"
    assert getattr(getattr(load_recipe(file, []), group), name) == value


# ---- commands ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


LABELS = (*STUDENT, "--distillation_type", "none")


def test_an_extended_run_is_recorded_in_its_results_and_card(data, tmp_path, capsys):
    steps = ("--save_strategy", "steps", "--save_steps", 1)
    assert train(data, tmp_path / "out", *LABELS, *steps) == 0
    words = (
        "train",
        "--data",
        data,
        "--output_dir",
        tmp_path / "out",
        "--use_cpu",
        "--report_to",
        "none",
        *LABELS,
        *steps,
    )
    words += ("--per_device_train_batch_size", 8, "--max_steps")
    assert "--extend" in refused(capsys, *words, 4, "--resume")
    assert "max_steps" in refused(capsys, *words, 1, "--extend")
    assert hf_deit(*words, 4, "--extend") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["extensions"] == [{"at_step": 2, "from_steps": 2, "to_steps": 4}]
    assert results["steps"] == 4
    assert "extended from 2 to 4" in (tmp_path / "out" / "README.md").read_text()


def test_a_resume_that_does_not_fit_is_reported_with_the_other_problems(data, tmp_path, capsys):
    assert train(data, tmp_path / "out", *LABELS) == 0
    message = refused(
        capsys,
        *("train", "--data", data, "--output_dir", tmp_path / "out", "--use_cpu", *LABELS, "--max_steps", 2),
        *("--per_device_train_batch_size", 8, "--learning_rate", 1e-2, "--resume", "--optim", "adamw_anyprecision"),
    )
    assert "adamw_anyprecision" in message or "recipe.learning_rate" in message


def test_a_run_stops_early_and_weights_its_classes_by_a_file(data, tmp_path):
    (tmp_path / "weights.csv").write_text("bee,1\ncat,2\ndog,4\n")
    fields = (
        "--early_stopping_patience",
        1,
        "--early_stopping_threshold",
        1.0,
        "--class_weights",
        tmp_path / "weights.csv",
    )
    fields += ("--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 6)
    assert train(data, tmp_path / "out", *LABELS, *fields) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["steps"] == 2 and "best_checkpoint" not in found
    assert found["stopped_early"] == {"at_step": 2, "planned_steps": 6, "patience": 1, "metric": "accuracy"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "after 2 of 6 planned optimizer steps" in card and "`accuracy`" in card and "were chosen" not in card
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert saved["class_weights"] == {"bee": 1.0, "cat": 2.0, "dog": 4.0}


def test_the_checkpoint_that_was_chosen_is_in_results_and_card(data, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", 1, "--eval_strategy", "steps", "--eval_steps", 1)
    # The learning rate grows until the weights are useless, so the first evaluation is the best.
    rates = ("--learning_rate", 0.3, "--warmup_steps", 3, "--metric_for_best_model", "loss", "--max_steps", 4)
    assert train(data, tmp_path / "out", *LABELS, *saving, *rates, "--load_best_model_at_end", "true") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry and entry["step"] < 4}
    best = min(losses, key=losses.get)
    assert found["best_checkpoint"] == {
        "step": best,
        "epoch": pytest.approx(best / 3),
        "metric": "loss",
        "value": pytest.approx(losses[best]),
    }
    assert found["eval_loss"] == pytest.approx(losses[best], rel=1e-5) and "stopped_early" not in found
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        f"after step {best} (epoch {best / 3:.3g}), of 4 steps" in card and "`loss`" in card and "stopped" not in card
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--report_to", "wandb"], "wandb"),
        (["--use_liger_kernel", "true"], "torch_compile"),
        (["--deepspeed", "x.json"], "deepspeed"),
        (["--optim", "adamw_bnb_8bit"], "bitsandbytes"),
        (["--fp16", "true"], "bf16=True"),
        (["--fsdp", "full_shard"], "fsdp"),
        (["--torch_compile_backend", "nowhere"], "nowhere"),
        (["--accelerator_config", "nowhere.json"], "nowhere.json"),
    ],
    ids=" ".join,
)
def test_what_is_missing_is_named_before_the_run_begins(data, tmp_path, capsys, words, named):
    message = refused(capsys, "train", "--data", data, "--output_dir", tmp_path / "out", *LABELS, *words)
    assert named in message
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_is_not_a_diverged_training(monkeypatch, capsys):
    def fault(options, fields):
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setitem(commands.COMMANDS, "recipes", fault)
    assert hf_deit("recipes") == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_fields_of_the_other_mode_of_train_teacher_are_refused(data, tmp_path, capsys):
    words = ("train-teacher", "--data", data, "--network", "nowhere:x", "--output_dir", tmp_path / "t")
    assert "epochs=9" in refused(capsys, *words, "--epochs", 9)
    assert "--teacher" in refused(capsys, "evaluate", tmp_path, "--data", data, "--teacher_view_size", 32)
