"""Resuming into a longer schedule, and early stopping that is kept over a resume."""

import json
import shutil

import pytest

from hf_deit.errors import ResumeError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import arguments, evaluation_data, logged, student, training_data


def trainer_of(folder, steps, eval_dataset=None, seed=0, **changes):
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
