"""Resuming into a longer schedule, and early stopping that is kept over a resume."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_deit.errors import RecipeError, ResumeError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import arguments, evaluation_data, logged, student, training_data


def trainer_of(folder, steps, eval_dataset=None, seed=0, compute_metrics=None, **changes):
    fields = {
        "distillation_type": "none",
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 9,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.25,
        **changes,
    }
    return DistillationTrainer(
        student(seed=seed),
        None,
        arguments(folder, **fields),
        train_dataset=training_data(32),
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )


SCHEDULES = [
    {},
    {"lr_scheduler_type": "linear"},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}},
    {"layer_decay": 0.5},
]


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_an_extended_run_follows_the_schedule_of_the_new_length_from_the_checkpoint_on(tmp_path, changes):
    whole = trainer_of(tmp_path / "whole", 8, **changes)
    whole.train()
    trainer_of(tmp_path / "out", 4, **changes).train()
    extended = trainer_of(tmp_path / "out", 8, seed=1, **changes)
    extended.train(resume_from_checkpoint=True, extend=True)
    assert extended.state.global_step == 8
    assert logged(extended, "learning_rate")[4:] == pytest.approx(logged(whole, "learning_rate")[4:])
    assert extended.extensions == [{"at_step": 4, "from_steps": 4, "to_steps": 8}]
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert [group["lr"] for group in extended.optimizer.param_groups] == pytest.approx(rates)
    assert extended.summary().results["extensions"] == extended.extensions
    assert "extensions" not in whole.summary().results


def test_an_extended_run_can_be_resumed_and_still_records_the_extension(tmp_path):
    trainer_of(tmp_path, 2).train()
    trainer_of(tmp_path, 4).train(resume_from_checkpoint=True, extend=True)
    run = json.loads((tmp_path / "checkpoint-4" / "hf_deit_run.json").read_text())
    assert run["extensions"] == [{"at_step": 2, "from_steps": 2, "to_steps": 4}]
    for extend in (False, True):
        resumed = trainer_of(tmp_path, 4)
        resumed.train(resume_from_checkpoint=True, extend=extend)
        assert resumed.extensions == run["extensions"]
    again = trainer_of(tmp_path, 6)
    again.train(resume_from_checkpoint=True, extend=True)
    assert [entry["to_steps"] for entry in again.extensions] == [4, 6]


@pytest.mark.parametrize(
    ("steps", "changes", "extend", "word"),
    [
        (6, {}, False, "--extend"),
        (2, {}, True, "2"),
        (6, {"learning_rate": 1e-3}, True, "recipe.learning_rate"),
        (6, {"learning_rate": 1e-3}, False, "recipe.max_steps"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused(tmp_path, steps, changes, extend, word):
    trainer_of(tmp_path, 4).train()
    with pytest.raises(ResumeError) as caught:
        trainer_of(tmp_path, steps, **changes).train(resume_from_checkpoint=True, extend=extend)
    assert word in str(caught.value)


def test_a_checkpoint_without_the_state_of_the_optimizer_is_not_resumed(tmp_path):
    trainer_of(tmp_path, 2, save_only_model=True).train()
    with pytest.raises(ResumeError, match="save_only_model"):
        trainer_of(tmp_path, 2).train(resume_from_checkpoint=True)


def test_a_field_that_a_checkpoint_of_yesterday_does_not_have_counts_as_its_default(tmp_path):
    trainer_of(tmp_path, 2, class_weights="balanced").train()
    file = tmp_path / "checkpoint-2" / "hf_deit_run.json"
    run = json.loads(file.read_text())
    del run["recipe"]["class_weights_power"], run["recipe"]["class_weights"]
    run["recipe"]["class_weights"] = "balanced"
    file.write_text(json.dumps(run))
    trainer_of(tmp_path, 2, class_weights="balanced").train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="class_weights_power: 1.0 in the checkpoint, 0.5 now"):
        softened = trainer_of(tmp_path, 2, class_weights="balanced", class_weights_power=0.5)
        softened.train(resume_from_checkpoint=True)


# ---- early stopping ----

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}


def stopping(folder, metrics, patience=2, steps=8, **changes):
    """Return a trainer whose evaluations give these metrics, by step."""
    fields = {**EVERY_STEP, "early_stopping_patience": patience, **changes}
    trainer = trainer_of(folder, steps, eval_dataset=evaluation_data(4), **fields)
    evaluate = trainer._evaluate_weights

    def given(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_accuracy"] = metrics[trainer.state.global_step - 1]
        return output

    trainer._evaluate_weights = given
    return trainer


@pytest.mark.parametrize(
    ("metrics", "threshold", "stops"),
    [
        ([0.1, 0.2, 0.2, 0.1, 0.9, 0.9, 0.9, 0.9], 0.0, 4),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.4, 0.3, 0.5], 0.0, 8),
        ([0.1, 0.2, 0.25, 0.26, 0.9, 0.9, 0.9, 0.9], 0.09, 4),
    ],
)
def test_a_run_stops_after_evaluations_without_a_better_metric(tmp_path, metrics, threshold, stops):
    trainer = stopping(tmp_path, metrics, early_stopping_threshold=threshold)
    trainer.train()
    assert trainer.state.global_step == stops


def test_the_end_of_a_run_that_stopped_early_is_in_its_summary(tmp_path):
    trainer = stopping(
        tmp_path, [0.1, 0.2, 0.2, 0.1, 0.9, 0.9, 0.9, 0.9], load_best_model_at_end=True, save_total_limit=9
    )
    assert trainer.ending == {}
    trainer.train()
    stopped = {"at_step": 4, "planned_steps": 8, "patience": 2, "metric": "accuracy"}
    best = {"step": 2, "epoch": 0.5, "metric": "accuracy", "value": 0.2}
    assert trainer.ending == {"stopped_early": stopped, "best_checkpoint": best}
    results = trainer.summary().results
    assert (results["stopped_early"], results["best_checkpoint"]) == (stopped, best)
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    own = trainer.model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in own if name in weights)


@pytest.mark.parametrize(
    ("metrics", "fields"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], {}),  # the metric always gets better
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.7, 0.8], {}),  # patience ends with the last step
        ([0.5] * 8, {"early_stopping_patience": None}),
    ],
)
def test_a_run_of_the_planned_length_has_no_further_facts(tmp_path, metrics, fields):
    trainer = stopping(tmp_path, metrics, **fields)
    trainer.train()
    assert trainer.ending == {} and trainer.state.global_step == 8
    assert not {"stopped_early", "best_checkpoint"} & set(trainer.summary().results)


def sets(**fields):
    fields = {**EVERY_STEP, "early_stopping_patience": 1, "early_stopping_threshold": 1.0, **fields}
    return {"eval_dataset": {"first": evaluation_data(4), "second": evaluation_data(6)}, **fields}


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        ({"metric_for_best_model": "second_accuracy"}, "second_accuracy"),
        ({"metric_for_best_model": "eval_first_loss", "early_stopping_threshold": 9.0}, "first_loss"),
        (
            {"metric_for_best_model": "second_accuracy", "ema_epochs": 0.5, "counted_weights": "ema"},
            "second_ema_accuracy",
        ),
        ({"metric_for_best_model": "first_ema_accuracy", "ema_epochs": 0.5}, "first_ema_accuracy"),
    ],
    ids=str,
)
def test_one_of_several_evaluation_sets_can_stop_a_run(tmp_path, caplog, fields, metric):
    trainer = trainer_of(tmp_path, 6, **sets(**fields))
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.ending["stopped_early"]["metric"] == metric
    assert "disabled" not in caplog.text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "metric_for_best_model='accuracy'"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model='loss'"),
        ({"metric_for_best_model": "third_accuracy"}, "metric_for_best_model='third_accuracy'"),
        ({"metric_for_best_model": "first_nonsense"}, "metric_for_best_model='first_nonsense'"),
        ({"metric_for_best_model": "first_ema_accuracy"}, "metric_for_best_model='first_ema_accuracy'"),
        (
            {"early_stopping_patience": None, "early_stopping_threshold": 0.0, "load_best_model_at_end": True},
            "='accuracy'",
        ),
        (
            {"compute_metrics": lambda found: {"own": 1.0}, "metric_for_best_model": "own"},
            "metric_for_best_model='own'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_metric_that_no_evaluation_set_has_is_refused_with_those_that_exist(tmp_path, fields, named):
    with pytest.raises(RecipeError) as refused:
        trainer_of(tmp_path, 6, **sets(**fields))
    assert all(text in str(refused.value) for text in (named, "'first'", "'second'"))
    assert "compute_metrics" in fields or "first_accuracy" in str(refused.value)


def test_no_evaluation_set_among_none_is_an_evaluation_set(tmp_path):
    with pytest.raises(RecipeError, match="early_stopping_patience=1"):
        trainer_of(tmp_path, 6, **{**sets(), "eval_dataset": {}})


@pytest.mark.parametrize("interrupted_at", [3, 4])
def test_a_resumed_run_counts_on_and_does_not_pass_its_stop(tmp_path, interrupted_at):
    metrics = [0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    stopping(tmp_path, metrics).train()
    if interrupted_at == 3:  # as if the run had been killed before its last save
        shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = stopping(tmp_path, metrics)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_patience_may_change_on_a_resume(tmp_path):
    metrics = [0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    stopping(tmp_path, metrics).train()
    resumed = stopping(tmp_path, metrics, patience=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
