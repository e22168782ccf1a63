"""`hf-deit sweep` end to end: real trials, one of them cut short, one diverged; killed in the middle and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hf_deit.experiments.search_space import Parameter
from hf_deit.experiments.sweep import _importance, plan_sweep, records_of
from hf_deit.recipes.recipe import load_recipe
from tests.helpers import tiny
from tests.helpers.runs import FACTORY, TEACHER_LABELS, hf_deit, refused, write_images

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "student": "distilled",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "learning_rate": 3e-3,
    "distillation_type": "none",
    "teacher_labels": list(TEACHER_LABELS),
    "num_views": 1,
    "use_cpu": True,
}
# The recipe's own values come first, so what learns nothing is behind them.
SPACE = {"learning_rate": [3e-3, 1e-9, 1e30], "distillation_type": ["none", "hard"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", tiny.NAMES, per_class=12)
    write_images(folder / "validation", tiny.NAMES, per_class=10, seed=7)
    return folder


@pytest.fixture
def files(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return tmp_path


def command(files, data, *more):
    words = ("sweep", "--config", files / "recipe.yaml", "--data", data, "--out", files / "out", *more)
    return [str(word) for word in words]


def trials_of(out):
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name="sweep", storage=storage).get_trials()


def is_under_way(out):
    """Whether a trial has ended and the next has begun."""
    try:
        states = {trial.state for trial in trials_of(out)}
    except (KeyError, OSError):  # its file is being made
        return False
    return {TrialState.COMPLETE, TrialState.RUNNING} <= states


def test_a_sweep_that_was_killed_goes_on_and_reports_what_was_found(files, data, capfd):
    words = command(files, data, "--space", files / "space.yaml", "--teacher", FACTORY)
    words += ["--trials", "5", "--epochs", "3", "--seed", "17"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_deit.cli", *words],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    out, end = files / "out", time.monotonic() + 150
    try:
        while process.poll() is None and time.monotonic() < end and not (out.exists() and is_under_way(out)):
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = trials_of(out)
    (broken,) = [trial for trial in before if trial.state == TrialState.RUNNING]
    capfd.readouterr()

    assert hf_deit(*words) == 0
    printed = capfd.readouterr().out
    done = [trial for trial in before if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert f"{5 - len(done)} trials to do, {len(done)} done" in printed
    after = trials_of(out)
    assert [after[trial.number].value for trial in done] == [trial.value for trial in done]
    assert after[broken.number].state == TrialState.FAIL
    again = after[len(before)]  # its fields, anew
    # the kill may have come before the last of its fields was chosen
    assert broken.params.items() <= again.params.items() and again.state != TrialState.FAIL

    report = json.loads((out / "report.json").read_text())
    trials = {trial["number"]: trial for trial in report["trials"]}
    assert len(trials) == 5 and broken.number not in trials
    assert trials[0]["fields"] == {"learning_rate": 3e-3, "distillation_type": "none"}  # the recipe's own
    outcomes = {trial["outcome"] for trial in trials.values()}
    assert outcomes == {"finished", "pruned", "diverged"}
    for trial in trials.values():
        rate, epochs = trial["fields"]["learning_rate"], trial["epochs"]
        assert (trial["outcome"] == "diverged") == (rate == 1e30)
        if trial["outcome"] == "pruned":
            assert 1 <= epochs < 3 and trial["accuracy"] < report["best"]["accuracy"]
        if trial["outcome"] == "finished":
            assert epochs == 3 and (trial["accuracy"] * 40) == pytest.approx(round(trial["accuracy"] * 40))
    best = report["best"]
    assert best["accuracy"] == max(t["accuracy"] for t in trials.values() if t["outcome"] == "finished")
    assert best["standard_error"] == pytest.approx((best["accuracy"] * (1 - best["accuracy"]) / 40) ** 0.5)
    text = (out / "report.md").read_text()
    assert "too high by selection" in text and text in printed

    fields = yaml.safe_load((out / "best.yaml").read_text())
    assert {name: fields[name] for name in best["fields"]} == best["fields"]
    assert fields["num_train_epochs"] == 3 and not {"data", "teacher", "output_dir"} & set(fields)
    assert set(RECIPE) <= set(fields)
    assert load_recipe(out / "best.yaml", []).training.learning_rate == best["fields"]["learning_rate"]
    work = out / "work"
    assert not any((work / "runs").glob("*"))
    assert len([path for path in (work / "caches").iterdir() if (path / "manifest.json").exists()]) == 1

    # The same command has nothing to do; another recipe is another sweep.
    assert hf_deit(*words) == 0
    assert "0 trials to do, 5 done" in capfd.readouterr().out
    (files / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "num_hidden_layers": 3}))
    assert "holds another sweep" in refused(capfd, *words)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--trials", 0], ["--trials 0"]),
        (["--jobs", 0], ["--jobs 0"]),
        (["--space", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--distillation_type", "hard"], ["give --teacher"]),
        (["--teacher", "no.such:thing"], ["no.such:thing"]),
        (["--teacher_cache", "x"], ["teacher_cache"]),
        (["--max_steps", 3], ["max_steps=3", "--epochs"]),
        (["--epochs", 0], ["0 epochs", "at least 1"]),
        (["--num_train_epochs", 1.5], ["1.5 epochs"]),
        (["--num_train_epochs", "nan"], ["nan epochs"]),
        (["--num_train_epochs", "inf"], ["inf epochs"]),
        (["--student", "plain", "--teacher", FACTORY, "--space", "target.yaml"], ["distillation_target='token'"]),
        (["--drop_path_rate", 1.5], ["drop_path_rate"]),
        (["--space", "bad.yaml"], ["num_attention_heads=5, which the sweep may try"]),
        (["--out", "recipe.yaml/out"], ["is a file"]),
        (["--streaming", "true", "--max_steps", 3], ["streaming"]),
        (["--learning_rat", 3], ["learning_rat"]),
        (["--recipe", "finetune_96"], ["--recipe finetune_96 and --config"]),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_first(files, data, capfd, monkeypatch, more, named):
    monkeypatch.chdir(files)
    (files / "bad.yaml").write_text("num_attention_heads: [2, 5]")
    (files / "target.yaml").write_text("distillation_type: [hard]\ndistillation_target: [class, token]")
    message = refused(capfd, *command(files, data, *more))
    assert [text for text in named if text not in message] == []
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sweep.json", "{no JSON"),
        ("sweep.json", "[[1, 2]]"),
        ("study.journal", "{no JSON\n{neither\n"),
        ("study.journal", '{"op_code": 99, "worker_id": "x"}\n'),
    ],
)
def test_a_folder_whose_files_are_damaged_is_refused(files, data, capfd, name, content):
    (files / "out").mkdir()
    if name == "study.journal":
        sweep = plan_sweep(RECIPE, ["--data", str(data)], files / "out")
        (files / "out" / "sweep.json").write_text(json.dumps(sweep.describe()))
    (files / "out" / name).write_text(content)
    message = refused(capfd, *command(files, data))
    assert name in message and "another --out" in message


def test_trials_without_the_word_of_what_they_are_are_refused(files, data, capfd):
    (files / "out").mkdir()
    (files / "out" / "study.journal").write_text("")
    assert "sweep.json, which says of what, is missing" in refused(capfd, *command(files, data))


def test_of_the_default_space_only_what_counts_is_searched(data, tmp_path):
    given = ["--data", str(data), "--teacher", FACTORY]
    names = {}
    for kind in ("none", "hard", "soft"):
        sweep = plan_sweep(RECIPE, [*given, "--distillation_type", kind], tmp_path / "out")
        names[kind] = {parameter.name for parameter in sweep.space} & {"distillation_tau", "distillation_alpha"}
    assert names == {"none": set(), "hard": {"distillation_alpha"}, "soft": {"distillation_tau", "distillation_alpha"}}


def test_a_value_is_stored_as_it_is_spelled_in_the_space():
    parameter = Parameter("mixup_alpha", (0, 0.8))
    assert parameter.stored(0.0) == "0" and parameter.stored(0.8) == "0.8" and parameter.stored(0.5) is None


def test_the_same_data_elsewhere_are_the_same_sweep(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    sweeps = [plan_sweep(RECIPE, ["--data", str(folder)], tmp_path / "out") for folder in (data, tmp_path / "link")]
    assert sweeps[0].describe() == sweeps[1].describe()


def test_other_validation_images_make_another_sweep(files, data, tmp_path):
    others = tmp_path / "others"
    shutil.copytree(data / "train", others / "train")
    write_images(others / "validation", tiny.NAMES, per_class=10, seed=8)
    one, other = (plan_sweep(RECIPE, ["--data", str(folder)], files / "out") for folder in (data, others))
    assert one.describe() != other.describe() and one.images == other.images


def test_data_that_are_not_there_are_refused_first(files, capfd):
    assert "nowhere" in refused(capfd, *command(files, "nowhere"))


def test_without_optuna_the_extra_is_named(files, data, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'hf-deit[sweep]'" in refused(capfd, *command(files, data))


def finished_study(count):
    """Trials whose accuracy is that of one of their two fields, and one that has a field of its own."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        trial = study.ask()
        good, noise = trial.suggest_float("good", 0, 1), trial.suggest_float("noise", 0, 1)
        if number % 2:
            trial.suggest_float("sometimes", 0, 1)
        trial.set_user_attr("fields", {"good": good, "noise": noise})
        study.tell(trial, good)
    return study


def test_the_field_that_makes_the_accuracy_is_told_as_what_mattered():
    study = finished_study(20)
    importance = _importance(study, records_of(study))
    assert next(iter(importance)) == "good" and importance["good"] > 0.5 and importance["noise"] < 0.2
    assert sum(importance.values()) == pytest.approx(1)
    study = finished_study(3)
    assert _importance(study, records_of(study)) == {}  # too few to say
    assert [(record.outcome, record.accuracy) for record in records_of(study)] == [
        ("finished", trial.params["good"]) for trial in study.trials
    ]
