"""`hf-deit sweep` end to end: all outcomes of trials; sweeps that are killed, resumed or extended; and seeds."""

import json
import shutil
import sys

import optuna
import pytest
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hf_deit.experiments import sweep as sweep_module
from hf_deit.experiments.search_space import Parameter, Sweep, suggest_fields
from hf_deit.experiments.sweep import _importance, plan_sweep, records_of, search
from hf_deit.recipes.cache_teacher import build_shared_cache
from hf_deit.recipes.reading import load_recipe
from tests.helpers import tiny
from tests.helpers.processes import prepared_workers
from tests.helpers.runs import FACTORY, TEACHER_LABELS, hf_deit, kill_when, refused, write_images

# With this seed, the first five trials have all learning rates of SPACE.
SEED = "4"
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
# The first trial has the values of the recipe; trials with the other learning rates do not learn and are worse.
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
    """Return whether a trial has ended and the next has begun."""
    try:
        states = {trial.state for trial in trials_of(out)}
    except (KeyError, OSError):  # the journal is just being created
        return False
    return {TrialState.COMPLETE, TrialState.RUNNING} <= states


def test_a_sweep_that_was_killed_resumes_and_reports_all_trials(files, data, capfd):
    words = command(files, data, "--space", files / "space.yaml", "--teacher", FACTORY)
    words += ["--epochs", "3", "--seed", SEED, "--trials"]
    out = files / "out"
    kill_when(lambda: (out / "study.journal").exists() and is_under_way(out), *words, "5")
    before = trials_of(out)
    (broken,) = [trial for trial in before if trial.state == TrialState.RUNNING]
    capfd.readouterr()

    with prepared_workers():
        assert hf_deit(*words, "5", "--jobs", 2) == 0
    printed = capfd.readouterr().out
    done = [trial for trial in before if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert f"{5 - len(done)} trials to do, {len(done)} done" in printed
    after = trials_of(out)
    assert [after[trial.number].value for trial in done] == [trial.value for trial in done]
    assert after[broken.number].state == TrialState.FAIL
    again = after[len(before)]
    # The trial may have been killed before its last field was chosen.
    assert broken.params.items() <= again.params.items() and again.state != TrialState.FAIL

    report = json.loads((out / "report.json").read_text())
    trials = {trial["number"]: trial for trial in report["trials"]}
    # If two processes end a trial at the same moment, both count four trials, and each starts another one.
    assert len(trials) in (5, 6) and broken.number not in trials
    assert set(trials) | {broken.number} == set(range(len(after)))
    assert trials[0]["fields"] == {"learning_rate": 3e-3, "distillation_type": "none"}  # the values of the recipe
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
    assert len(list(work.glob("caches/*/manifest.json"))) <= 1  # with two processes, the draws depend on their speed

    # The same command has nothing to do, and a changed recipe is refused as another sweep.
    assert hf_deit(*words, "5") == 0
    assert f"0 trials to do, {len(trials)} done" in capfd.readouterr().out
    (files / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "num_hidden_layers": 3}))
    assert "num_hidden_layers" in refused(capfd, *words, "5")


# ---- seeds, and the number of trials ----


def searched(out, *totals, seed=3, jobs=1, process=0, score=lambda fields: fields["learning_rate"], prepares=False):
    """Return the parameters of the trials of a sweep that is extended to each number in `totals`, without training."""
    out.mkdir(exist_ok=True)
    space = (Parameter("learning_rate", low=1e-4, high=1e-2, log=True), Parameter("mixup_alpha", (0.0, 0.8)))
    for total in totals:
        sweep = Sweep(
            fields=RECIPE,
            overrides=(),
            space=space,
            own_type="none",
            out=out,
            trials=total,
            jobs=jobs,
            seed=seed,
            teacher=None,
            images=40,
            data="data",
        )
        if prepares:
            sweep_module._prepare_study(sweep_module._open_study(sweep), sweep)
        search(sweep, process, total, lambda trial: score(suggest_fields(trial, space, "none")))
    return [trial.params for trial in trials_of(out)]


def test_with_one_process_the_same_seed_gives_the_same_trials_in_one_sweep_and_in_an_extended_one(tmp_path):
    found = searched(tmp_path / "at-once", 12)
    assert len(found) == 12 and searched(tmp_path / "extended", 2, 3, 12) == found
    assert searched(tmp_path / "other", 1, seed=4)[0] != found[0]


def test_an_extended_sweep_and_a_second_process_draw_other_fields(tmp_path):
    found = searched(tmp_path / "out", 2, 3, 4)
    found += searched(tmp_path / "out", 6, jobs=2, process=1)[4:]
    found += searched(tmp_path / "other", 2, jobs=2, process=1)
    rates = [fields["learning_rate"] for fields in found]
    assert len(found) == 8 and len(set(rates)) == 8


def test_the_first_trials_differ_if_the_values_of_the_recipe_are_outside_the_space(tmp_path, monkeypatch):
    # The first trial would have the values of the recipe. As none of them is in the space, it draws like the others.
    monkeypatch.setattr(sweep_module, "own_values", lambda space, fields: {})
    found = searched(tmp_path / "out", 3, prepares=True)
    assert len({fields["learning_rate"] for fields in found}) == 3


def test_failed_trials_count_so_that_a_search_in_which_all_fail_ends(tmp_path):
    def fail(fields):
        raise RuntimeError("out of memory")

    assert len(searched(tmp_path / "out", 3, score=fail)) == 3
    assert len(searched(tmp_path / "out", 3)) == 3  # another process may have reached the number already
    assert {trial.state for trial in trials_of(tmp_path / "out")} == {TrialState.FAIL}


# ---- the outcomes of trials ----


@pytest.fixture
def in_this_process(monkeypatch):
    """Train trials in this process, which saves the seconds that another process needs to start."""

    def run_tasks(tasks, jobs, ended, watch):
        for task in tasks:
            task.function(*task.arguments)
        watch()

    monkeypatch.setattr(sweep_module, "run_tasks", run_tasks)
    monkeypatch.setattr(sweep_module, "log_to", lambda file: None)
    monkeypatch.setattr(sweep_module, "use_share_of_cores", lambda jobs: None)


def test_trials_finish_or_are_pruned_or_diverge(files, data, capfd, in_this_process):
    words = command(files, data, "--space", files / "space.yaml", "--teacher", FACTORY, "--seed", SEED)
    assert hf_deit(*words, "--epochs", 3, "--trials", 5) == 0
    trials = json.loads((files / "out" / "report.json").read_text())["trials"]
    outcomes = [(trial["fields"]["learning_rate"], trial["outcome"]) for trial in trials]
    assert outcomes[0] == (3e-3, "finished") and len(outcomes) == 5
    assert {(1e-9, "pruned"), (1e30, "diverged")} <= set(outcomes)
    assert all((rate == 1e30) == (outcome == "diverged") for rate, outcome in outcomes)
    assert len(list((files / "out" / "work").glob("caches/*/manifest.json"))) == 1
    printed = capfd.readouterr().out
    assert "5/5  trial 4: " in printed and "pruned after epoch" in printed and "diverged in" in printed


def test_the_cache_of_a_set_of_views_is_built_once(files, data, in_this_process, monkeypatch):
    built = []
    monkeypatch.setattr(
        sweep_module, "build_shared_cache", lambda *args: built.append(args[1]) or build_shared_cache(*args)
    )
    (files / "space.yaml").write_text(yaml.safe_dump({"learning_rate": [1e-3, 2e-3, 3e-3]}))
    words = command(files, data, "--space", files / "space.yaml", "--teacher", FACTORY)
    assert hf_deit(*words, "--distillation_type", "hard", "--epochs", 1, "--trials", 3) == 0
    assert len(built) == 1 and (built[0] / "manifest.json").exists()


def test_a_trial_that_fails_is_reported_with_its_fields_and_the_others_finish(files, data, capfd, in_this_process):
    (files / "space.yaml").write_text(yaml.safe_dump({"optim_args": ["momentum=0.9", "momentum=0.8"]}))
    (files / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "optimizer_class": f"{__name__}:FailingSGD"}))
    message = refused(capfd, *command(files, data, "--space", files / "space.yaml", "--epochs", 1, "--trials", 5))
    report = json.loads((files / "out" / "report.json").read_text())
    outcomes = [(trial["outcome"], trial["fields"]["optim_args"]) for trial in report["trials"]]
    assert set(outcomes) == {("finished", "momentum=0.9"), ("failed", "momentum=0.8")} and len(outcomes) == 5
    failed = [trial["number"] for trial in report["trials"] if trial["outcome"] == "failed"]
    assert f"{len(failed)} trials failed" in message and "momentum=0.8" in message and "out of memory" in message
    assert all(f"trial-{number}.log" in message for number in failed)


class FailingSGD(torch.optim.SGD):
    """Optimizer that runs out of memory for one value of its momentum."""

    def step(self, closure=None):
        if self.defaults["momentum"] == 0.8:
            raise RuntimeError("out of memory")
        return super().step(closure)


# ---- what is refused before the first trial ----


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--trials", 0], ["--trials 0"]),
        (["--jobs", 0], ["--jobs 0"]),
        (["--space", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--seed", -1], ["--seed -1"]),
        (["--distillation_type", "hard"], ["--teacher"]),
        (["--teacher", "no.such:thing"], ["no.such:thing"]),
        (["--guidance", "features"], ["guidance is 'features'", "--teacher"]),
        (["--unlabelled_share", 0.3], ["unlabelled_share=0.3", "unlabelled"]),
        (["--unlabelled", "images", "--distillation_type", "none"], ["unlabelled='images'", "'none'"]),
        (["--teacher_cache", "x"], ["teacher_cache"]),
        (["--max_steps", 3], ["max_steps=3", "--epochs"]),
        (["--epochs", 0], ["0", "epochs", "above 0"]),
        (["--num_train_epochs", 1.5], ["1.5 epochs"]),
        (["--num_train_epochs", "nan"], ["num_train_epochs=nan"]),
        (["--num_train_epochs", "inf"], ["num_train_epochs=inf"]),
        (["--student", "plain", "--teacher", FACTORY, "--space", "target.yaml"], ["distillation_target='token'"]),
        (["--drop_path_rate", 1.5], ["drop_path_rate"]),
        (["--space", "bad.yaml"], ["num_attention_heads=5"]),
        (["--out", "recipe.yaml/out"], ["is a file"]),
        (["--streaming", "true", "--max_steps", 3], ["streaming"]),
        (["--learning_rat", 3], ["learning_rat"]),
        (["--recipe", "finetune_96"], ["--recipe finetune_96 and --config"]),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_before_the_first_trial(files, data, capfd, monkeypatch, more, named):
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
    assert name in message and "--out" in message


def test_trials_without_the_description_of_their_sweep_are_refused(files, data, capfd):
    (files / "out").mkdir()
    (files / "out" / "study.journal").write_text("")
    assert "sweep.json" in refused(capfd, *command(files, data))


def test_only_fields_of_the_default_space_that_have_an_effect_are_searched(data, tmp_path):
    given = ["--data", str(data), "--teacher", FACTORY]
    names = {}
    for kind in ("none", "hard", "soft"):
        sweep = plan_sweep(RECIPE, [*given, "--distillation_type", kind], tmp_path / "out")
        names[kind] = {parameter.name for parameter in sweep.space} & {"distillation_tau", "distillation_alpha"}
    assert names == {"none": set(), "hard": {"distillation_alpha"}, "soft": {"distillation_tau", "distillation_alpha"}}


@pytest.mark.parametrize("words", [(), ("--distillation_type", "none")])
def test_without_a_teacher_a_guided_recipe_is_searched_without_guidance(data, tmp_path, words):
    sweep = plan_sweep({**RECIPE, "guidance": "features"}, ["--data", str(data), *words], tmp_path / "out")
    assert sweep.own["guidance"] == "none"
    assert sweep.teacher is None
    assert sweep.recipe().training.guidance == "none"


def test_a_value_is_stored_with_its_spelling_in_the_space():
    parameter = Parameter("mixup_alpha", (0, 0.8))
    assert parameter.stored(0.0) == "0" and parameter.stored(0.8) == "0.8" and parameter.stored(0.5) is None


def test_the_same_data_at_another_path_are_the_same_sweep(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    sweeps = [plan_sweep(RECIPE, ["--data", str(folder)], tmp_path / "out") for folder in (data, tmp_path / "link")]
    assert sweeps[0].describe() == sweeps[1].describe()


def test_the_same_unlabelled_images_at_another_path_are_the_same_sweep_and_others_are_another(data, tmp_path):
    images = write_images(tmp_path / "images", ["any"], per_class=8, seed=5)
    (tmp_path / "link").symlink_to(images)
    others = write_images(tmp_path / "others", ["any"], per_class=8, seed=6)
    given = ["--data", str(data), "--teacher", FACTORY, "--distillation_type", "hard"]
    sweeps = [
        plan_sweep(RECIPE, [*given, *words], tmp_path / "out").describe()
        for words in (
            ["--unlabelled", str(images)],
            [f"--unlabelled={tmp_path / 'link'}"],
            ["--unlabelled", str(others)],
        )
    ]
    assert sweeps[0] == sweeps[1] != sweeps[2]


def test_a_sweep_over_guidance_uses_a_teacher_only_in_guided_trials(files, data, in_this_process):
    space = {"guidance_weight": [1.0, 5.0], "guidance": ["none", "similarity"], "guidance_teacher_layers": [["norm"]]}
    (files / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    words = command(files, data, "--space", files / "space.yaml", "--teacher", FACTORY, "--epochs", 1, "--trials", 4)
    assert hf_deit(*words, "--seed", 1) == 0
    trials = json.loads((files / "out" / "report.json").read_text())["trials"]
    assert {trial["fields"]["guidance"] for trial in trials} == {"none", "similarity"}
    assert all(
        trial["outcome"] in ("finished", "pruned")
        and ("guidance_weight" in trial["fields"]) == (trial["fields"]["guidance"] != "none")
        for trial in trials
    )
    assert len(list((files / "out" / "work").glob("caches/*/manifest.json"))) == 1


def test_other_validation_images_make_another_sweep(files, data, tmp_path):
    others = tmp_path / "others"
    shutil.copytree(data / "train", others / "train")
    write_images(others / "validation", tiny.NAMES, per_class=10, seed=8)
    one, other = (plan_sweep(RECIPE, ["--data", str(folder)], files / "out") for folder in (data, others))
    assert one.describe() != other.describe() and one.images == other.images


def test_missing_data_are_refused_before_the_first_trial(files, capfd):
    assert "nowhere" in refused(capfd, *command(files, "nowhere"))


def test_without_optuna_the_message_names_the_extra_to_install(files, data, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in refused(capfd, *command(files, data))


def finished_study(count):
    """Return a study whose accuracy equals one of two fields. Every second trial has a third field."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        trial = study.ask()
        good, noise = trial.suggest_float("good", 0, 1), trial.suggest_float("noise", 0, 1)
        if number % 2:
            trial.suggest_float("sometimes", 0, 1)
        trial.set_user_attr("fields", {"good": good, "noise": noise})
        study.tell(trial, good)
    return study


def test_the_field_that_decides_the_accuracy_has_the_highest_importance():
    study = finished_study(20)
    importance = _importance(study, records_of(study))
    assert next(iter(importance)) == "good" and importance["good"] > 0.5 and importance["noise"] < 0.2
    assert sum(importance.values()) == pytest.approx(1)
    study = finished_study(3)
    assert _importance(study, records_of(study)) == {}  # too few
    assert [(record.outcome, record.accuracy) for record in records_of(study)] == [
        ("finished", trial.params["good"]) for trial in study.trials
    ]
