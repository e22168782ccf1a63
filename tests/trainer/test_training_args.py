"""Training arguments: defaults of the paper, and values that are refused without a model."""

import json

import pytest
from transformers import HfArgumentParser

from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers.tiny import arguments


@pytest.mark.parametrize(("mode", "alpha"), [("soft", 0.1), ("hard", 0.5), ("none", 0.0)])
def test_alpha_has_a_default_for_each_mode(tmp_path, mode, alpha):
    assert arguments(tmp_path, distillation_type=mode).distillation_alpha == alpha
    if mode != "none":
        assert arguments(tmp_path, distillation_type=mode, distillation_alpha=0.3).distillation_alpha == 0.3


def test_an_alpha_of_zero_is_not_replaced_by_the_default(tmp_path):
    assert arguments(tmp_path, distillation_type="soft", distillation_alpha=0.0).distillation_alpha == 0.0


def test_defaults_are_those_of_the_paper(tmp_path):
    args = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.distillation_type == "hard"
    assert args.distillation_tau == 3.0
    assert args.distillation_target is None
    assert args.base_loss == "cross_entropy"
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (5e-4, 0.05, 0.0)
    assert args.lr_scheduler_type == "cosine"
    assert (args.warmup_learning_rate, args.min_learning_rate) == (1e-6, 1e-5)
    assert (args.layer_decay, args.scale_learning_rate, args.optimizer_class, args.ema_epochs) == (
        1.0,
        False,
        None,
        0.0,
    )
    assert args.get_warmup_steps(1000) == 50
    assert not args.logging_nan_inf_filter
    assert not args.remove_unused_columns


@pytest.mark.parametrize(
    ("changes", "given", "remedy"),
    [
        ({"distillation_type": "Hard"}, "'Hard'", "none, soft, hard"),
        ({"distillation_target": "both"}, "'both'", "token, class"),
        ({"distillation_reduction": "sum"}, "'sum'", "image, official"),
        ({"base_loss": "mse"}, "'mse'", "cross_entropy, binary_cross_entropy"),
        ({"distillation_alpha": -0.1}, "distillation_alpha=-0.1", r"\[0, 1\]"),
        ({"distillation_alpha": 1.01}, "distillation_alpha=1.01", r"\[0, 1\]"),
        ({"distillation_alpha": float("nan")}, "distillation_alpha=nan", r"\[0, 1\]"),
        ({"distillation_tau": 0.0}, "distillation_tau=0.0", "above 0"),
        ({"distillation_tau": -3.0}, "distillation_tau=-3.0", "above 0"),
        ({"distillation_tau": float("nan")}, "distillation_tau=nan", "above 0"),
        ({"distillation_tau": float("inf")}, "distillation_tau=inf", "finite"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor=1.5", r"\[0, 1\)"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor=-0.1", r"\[0, 1\)"),
        ({"num_views": 0}, "num_views=0", "at least 1"),
        ({"class_weights": "equal"}, "'equal'", "none, balanced"),
        ({"counted_weights": "both"}, "'both'", "raw, ema"),
        ({"layer_decay": 0.0}, "layer_decay=0.0", r"\(0, 1\]"),
        ({"layer_decay": 1.1}, "layer_decay=1.1", r"\(0, 1\]"),
        ({"learning_rate": float("nan")}, "learning_rate=nan", "finite"),
        ({"warmup_learning_rate": -1e-6}, "warmup_learning_rate=-1e-06", "finite"),
        ({"min_learning_rate": float("inf")}, "min_learning_rate=inf", "finite"),
        (
            {"base_loss": "binary_cross_entropy", "label_smoothing_factor": 0.1},
            "label_smoothing_factor=0.1",
            "base_loss='cross_entropy'",
        ),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "hub_strategy='checkpoint'", "'every_save'"),
        ({"push_to_hub": True, "hub_strategy": "all_checkpoints"}, "hub_strategy='all_checkpoints'", "'end'"),
    ],
)
def test_impossible_arguments_are_refused_with_the_value_and_a_fix(tmp_path, changes, given, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        arguments(tmp_path, **changes)
    assert given in str(caught.value)


def test_all_impossible_arguments_are_in_one_error(tmp_path):
    changes = {"distillation_tau": 0.0, "layer_decay": 2.0, "base_loss": "mse", "ema_epochs": -1.0}
    changes |= {"push_to_hub": True, "hub_strategy": "all_checkpoints"}
    with pytest.raises(ValueError, match="5 things do not work") as caught:
        arguments(tmp_path, **changes)
    message = str(caught.value)
    for given in ("distillation_tau=0.0", "layer_decay=2.0", "base_loss='mse'", "ema_epochs=-1.0", "'all_checkpoints'"):
        assert given in message
    assert [line[:5] for line in message.splitlines()[1:]] == [f"  {number}. " for number in range(1, 6)]


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation_alpha": 0},
        {"distillation_alpha": 1},
        {"distillation_tau": 0.5, "distillation_type": "soft"},
        {"base_loss": "binary_cross_entropy"},
        {"label_smoothing_factor": 0.1},
        {"num_views": 1},
        {"layer_decay": 0.65},
        {
            "learning_rate": 0.0,
            "warmup_learning_rate": 0.0,
            "min_learning_rate": 0.0,
            "warmup_steps": 0.05,
            "lr_scheduler_type": "cosine",
        },
        {"ema_epochs": 0.5, "counted_weights": "ema"},
        {"class_weights": "balanced"},
        {"push_to_hub": True, "hub_strategy": "every_save"},
        {"push_to_hub": True, "hub_strategy": "end"},
        {"hub_strategy": "checkpoint"},  # nothing is pushed
    ],
    ids=str,
)
def test_values_at_the_limits_pass(tmp_path, changes):
    args = arguments(tmp_path, **changes)
    assert {name: getattr(args, name) for name in changes} == changes


def test_the_default_metric_for_the_best_model_is_chosen_later(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    args = arguments(tmp_path, load_best_model_at_end=True, **steps)
    assert args.metric_for_best_model is None  # set from the student's problem type, see test_checks.py
    args = arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", **steps)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_a_parser_reads_the_fields_from_a_command_line_and_from_yaml(tmp_path):
    parser = HfArgumentParser(DistillationTrainingArguments)
    line = f"--output_dir {tmp_path} --use_cpu true --distillation_type soft --distillation_tau 2 --num_views 4"
    (args,) = parser.parse_args_into_dataclasses(line.split())
    assert (args.distillation_type, args.distillation_alpha, args.distillation_tau) == ("soft", 0.1, 2.0)
    assert args.num_views == 4

    (tmp_path / "run.yaml").write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\ndistillation_type: none\nlearning_rate: 1.0e-4\n"
    )
    (args,) = parser.parse_yaml_file(str(tmp_path / "run.yaml"))
    assert (args.distillation_type, args.distillation_alpha, args.learning_rate) == ("none", 0.0, 1e-4)
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--distillation_type", "firm"])


def test_the_arguments_survive_json_without_the_token(tmp_path):
    content = json.loads(arguments(tmp_path, hub_token="hf_very_secret", distillation_type="soft").to_json_string())
    assert content["distillation_alpha"] == 0.1
    assert "hf_very_secret" not in json.dumps(content)
