"""Ablations from definition to table, also after a kill; caches that runs share; errors before the first run."""

import contextlib
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from hf_deit.errors import NonFiniteLossError
from hf_deit.experiments import recipe_checks
from hf_deit.experiments.ablation import read_ablation
from hf_deit.experiments.run_ablation import Place, _do_run, plan_ablation
from hf_deit.experiments.workers import alone_in
from hf_deit.files import STAGING_PREFIX
from hf_deit.recipes.build import build_teacher
from hf_deit.recipes.cache_teacher import cache_folder
from hf_deit.recipes.reading import load_recipe
from tests.helpers import tiny
from tests.helpers.processes import prepared_workers
from tests.helpers.runs import FACTORY, TEACHER_LABELS, hf_deit, kill_when, write_images

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "run_ablation.py"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
FIELDS = {
    **SHAPE,
    "view_size": 16,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "num_views": 1,
    "bf16": False,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 4,
    "warmup_steps": 0,
    "logging_steps": 1,
    "use_cpu": True,
    "teacher_labels": list(TEACHER_LABELS),
}
WITHOUT = {"student": "plain", "distillation_type": "none"}
VARIANTS = {
    "plain": WITHOUT,
    "wild": {**WITHOUT, "learning_rate": 1e30, "max_grad_norm": 0},
    "hard": {"student": "distilled", "distillation_type": "hard"},
}
ROWS = [{"title": name, "variant": name} for name in VARIANTS]
ROWS.append({"title": "class head of hard", "variant": "hard", "metric": "cls_accuracy"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", tiny.NAMES, per_class=6)
    write_images(folder / "validation", tiny.NAMES, per_class=5, seed=7)
    return folder


def write(path, variants=VARIANTS, rows=ROWS, seeds=(0, 1), **fields):
    content = {"title": "Tiny", "recipe": "clothing10_64", "fields": {**FIELDS, **fields}, "seeds": list(seeds)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**content, "variants": variants, "rows": rows}, sort_keys=False))
    return path


def arguments(definition, data, *more):
    command = (definition, "--data", data, "--teacher", FACTORY, "--work", definition.parent / "work", *more)
    return [str(word) for word in command]


def run(*arguments):
    with prepared_workers():
        return hf_deit("ablation", *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """Return the definition of a finished ablation (3 variants × 2 seeds), and the texts printed to stdout and stderr.

    The runs are those of another definition with one more variant, which fails. So both cases are tested with the same
    trainings.
    """
    definition = write(tmp_path_factory.mktemp("whole") / "tiny.yaml")
    variants = {"broken": {**WITHOUT, "optimizer_class": "tests.helpers.tiny:RefusingSGD"}, **VARIANTS}
    rows = [{"title": name, "variant": name} for name in variants]
    more = write(definition.with_name("more.yaml"), variants, rows)
    printed, message = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(message):
        assert run(*arguments(more, data)) == 2
    return definition, printed.getvalue(), message.getvalue()


@pytest.fixture
def whole(finished, data):
    """Return the folder of that ablation, with its table."""
    definition = finished[0]
    if not (definition.parent / "results" / "tiny.md").exists():
        assert run(*arguments(definition, data)) == 0
    return definition.parent


def results_in(folder):
    """Return the files of the results, without files that a killed run left unfinished (`write_json`)."""
    return [path for path in folder.glob("*.json") if not path.name.startswith(STAGING_PREFIX)]


def files(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in results_in(folder)}


def metrics_of(folder):
    """Return the metrics of each result, without times."""
    found = {}
    for path in results_in(folder):
        metrics = json.loads(path.read_text())["metrics"] or {}
        found[path.name] = {
            name: value for name, value in metrics.items() if "second" not in name and "time" not in name
        }
    return found


def test_a_run_that_fails_does_not_affect_the_others(finished):
    definition, printed, message = finished
    assert "8 runs to do, 0 finished" in printed
    assert "broken, seed 0 failed" in printed
    assert "wild, seed 1: diverged" in printed and "6/8  hard, seed 1: " in printed
    assert "2 failed" in message and "RefusingSGD takes no step" in message
    assert "Traceback" not in message
    assert len(files(definition.parent / "results")) == 6


def test_the_table_shows_the_metrics_of_the_runs(whole):
    results = whole / "results"
    rows = [line.split("|")[1:-1] for line in (results / "tiny.md").read_text().splitlines()[2:]]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    contents = [json.loads(path.read_text()) for path in results.glob("*.json")]
    for title, metric in (("plain", "accuracy"), ("hard", "accuracy"), ("class head of hard", "cls_accuracy")):
        own = [content for content in contents if content["variant"] == title.rpartition(" ")[2]]
        first, second = (100 * content["metrics"][f"eval_{metric}"] for content in own)
        assert cells[title][0] == f"{(first + second) / 2:.1f} ± {abs(first - second) / 2**0.5:.1f}"
        assert cells[title][1] == "2"
        assert {content["run"]["validation_images"] for content in own} == {20}
    assert cells["wild"] == ["–", "0, 2 diverged", "–"]
    assert all(content["fields"]["learning_rate"] == 1e30 for content in contents if content["metrics"] is None)
    assert (results / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert str(whole) not in "".join(path.read_text() for path in results.glob("*.json"))


def test_runs_of_one_seed_share_a_cache_and_finished_runs_leave_only_logs(whole):
    work = whole / "work"
    assert len(list((work / "caches").iterdir())) == 2
    assert list((work / "runs").iterdir()) == []
    assert len(list((work / "logs").iterdir())) == 2 + 8
    assert "The loss is not finite" in "".join(path.read_text() for path in (work / "logs").iterdir())


def test_the_same_command_does_nothing_more(whole, data, capfd):
    before = files(whole / "results")
    assert run(*arguments(whole / "tiny.yaml", data)) == 0
    printed, noise = capfd.readouterr()
    assert "0 runs to do, 6 finished" in printed and "0, 2 diverged" in printed
    assert noise == ""
    assert files(whole / "results") == before


def test_the_script_that_the_definitions_name_does_the_same_as_the_command(whole, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(whole / "tiny.yaml"), "--report"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 0 and (whole / "results" / "tiny.md").read_text() in capfd.readouterr().out


def test_a_killed_ablation_resumes_and_ends_with_the_same_table(whole, data, tmp_path, capfd):
    definition = write(tmp_path / "tiny.yaml")
    results = tmp_path / "results"
    kill_when(lambda: files(results), "ablation", *arguments(definition, data))
    before = files(results)
    assert 1 <= len(before) < 6
    capfd.readouterr()
    assert run(*arguments(definition, data)) == 0
    printed, noise = capfd.readouterr()
    assert f"{6 - len(before)} runs to do, {len(before)} finished" in printed
    assert f"{6 - len(before)}/{6 - len(before)}  " in printed
    assert noise == ""  # no progress bars, no "Writing model shards"
    after = files(results)
    assert {name: after[name] for name in before} == before
    assert (results / "tiny.md").read_bytes() == (whole / "results" / "tiny.md").read_bytes()
    assert metrics_of(results) == metrics_of(whole / "results")


# ---- refused before the first run ----


def refused(capfd, *words):
    assert run(*words) == 2
    message = capfd.readouterr().err
    assert message.startswith("hf-deit ablation: ") and "Traceback" not in message
    return message


# Fields of a variant that are refused before the first run, and a text that the message must contain.
IMPOSSIBLE = (
    ({"num_attention_heads": 5}, "num_attention_heads=5"),
    ({"auto_augment": "rand"}, "auto_augment='rand'"),
    ({"crop_scale": [0.5, 0.1]}, "crop_scale="),
    ({"distillation_type": "hard", "distillation_target": "token"}, "distillation_target"),
    ({"mixup_alpha": 0.8, "per_device_train_batch_size": 7}, "per_device_train_batch_size=7"),
    ({"optimizer_class": "torch.optim:Nothing"}, "torch.optim:Nothing"),
    ({"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs=0"),
)


def test_multi_label_data_are_refused_before_the_first_run(tmp_path, capfd):
    for split in ("train", "validation"):
        write_images(tmp_path / "images" / split, ("a", "b"), per_class=8)
        paths = sorted((tmp_path / "images" / split).rglob("*.png"))
        rows = [
            f"images/{path.relative_to(tmp_path / 'images')},{('a|b', 'a', 'b')[number % 3]}"
            for number, path in enumerate(paths)
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,label", *rows]))
    definition = write(tmp_path / "tiny.yaml", {"plain": WITHOUT}, ROWS[:1], label_separator="|")
    assert run(*arguments(definition, tmp_path / "train.csv")) == 2
    assert "multi_label_classification" in capfd.readouterr().err


def test_what_cannot_be_run_is_refused_before_the_first_run(data, tmp_path, capfd):
    definition = write(tmp_path / "tiny.yaml")
    message = refused(capfd, definition, "--data", data)
    assert "'hard'" in message and "--teacher" in message
    assert "no.such:thing" in refused(capfd, *arguments(definition, data), "--teacher", "no.such:thing")
    assert "nowhere" in refused(capfd, *arguments(definition, "nowhere"))
    assert str(tmp_path / "results") in refused(capfd, definition, "--report")
    unknown = write(tmp_path / "unknown.yaml", {"plain": {**WITHOUT, "weight_dekay": 1}}, ROWS[:1])
    assert "weight_dekay" in refused(capfd, *arguments(unknown, data))
    for fields, named in IMPOSSIBLE:
        impossible = write(tmp_path / "impossible.yaml", {"plain": {**WITHOUT, **fields}}, ROWS[:1])
        message = refused(capfd, *arguments(impossible, data))
        assert "Variant 'plain'" in message and named in message
    shares = {"plain": WITHOUT, "other": {**WITHOUT, "validation_share": 0.5}}
    other = write(tmp_path / "shares.yaml", shares, [{"title": name, "variant": name} for name in shares])
    assert "'other' has validation_share=0.5" in refused(capfd, *arguments(other, data))
    metric = write(tmp_path / "metric.yaml", rows=[*ROWS[:3], {"title": "x", "variant": "hard", "metric": "acuracy"}])
    assert "'acuracy'" in refused(capfd, *arguments(metric, data))
    for variant, name, word in (("plain", "cls_accuracy", "two heads"), ("hard", "ema_accuracy", "ema_epochs")):
        row = {"title": "x", "variant": variant, "metric": name}
        other = write(tmp_path / f"{name}.yaml", rows=[*ROWS[:3], row])
        assert word in refused(capfd, *arguments(other, data))
    (tmp_path / "file").write_text("")
    for option in ("--results", "--work"):
        assert "is a file" in refused(capfd, *arguments(definition, data), option, tmp_path / "file")
    with alone_in(tmp_path / "work"):
        assert "Another process works in" in refused(capfd, *arguments(definition, data))
    assert not list((tmp_path / "results").glob("*.json")) and not (tmp_path / "work" / "runs").exists()


def test_data_jobs_and_seeds_are_checked_before_the_first_run(data, tmp_path, capfd):
    definition = write(tmp_path / "tiny.yaml")
    assert "--data" in refused(capfd, definition)
    assert "--jobs 0" in refused(capfd, *arguments(definition, data), "--jobs", 0)
    assert "seed 7" in refused(capfd, *arguments(definition, data), "--seeds", 0, 7)


def test_other_data_with_the_same_results_are_refused_before_the_first_run(whole, data, tmp_path, capfd):
    others = write_images(tmp_path / "others", tiny.NAMES, per_class=4, seed=3)
    names = [path.name for path in results_in(whole / "results")]
    message = refused(capfd, *arguments(whole / "tiny.yaml", others))
    assert any(name in message for name in names) and "--results" in message
    shutil.copytree(data / "train", tmp_path / "same" / "train")
    write_images(tmp_path / "same" / "validation", tiny.NAMES, per_class=10, seed=8)
    message = refused(capfd, *arguments(whole / "tiny.yaml", tmp_path / "same"))
    assert any(name in message for name in names) and "--results" in message


def test_a_damaged_result_is_refused_before_the_first_run(whole, data, tmp_path, capfd):
    shutil.copytree(whole / "results", tmp_path / "results")
    file = next(iter(results_in(tmp_path / "results")))
    file.write_text("{")
    message = refused(capfd, *arguments(whole / "tiny.yaml", data), "--results", tmp_path / "results")
    assert str(file) in message and "--results" in message


# ---- what is shared ----


def plan(tmp_path, data, variants, seeds=(0,), only=None, **fields):
    rows = [{"title": name, "variant": name} for name in variants]
    definition = write(tmp_path / "tiny.yaml", variants, rows, seeds, **fields)
    place = Place(str(data), FACTORY, tmp_path / "results", tmp_path / "work")
    return plan_ablation(read_ablation(definition), place, only)


def test_variants_with_the_same_views_share_a_cache(data, tmp_path):
    hard = VARIANTS["hard"]
    variants = {
        "hard": hard,
        "soft": {**hard, "distillation_type": "soft", "distillation_tau": 2.0, "learning_rate": 2e-3},
        "small": {**hard, "image_size": 8, "hidden_size": 48},  # the views depend on view_size, not on image_size
        "twice as long": {**hard, "num_train_epochs": 4},
        "other crops": {**hard, "crop_scale": [0.5, 1.0]},
        "other evaluation": {**hard, "evaluation_crop_ratio": 1.0},
        "alone": WITHOUT,
    }
    planned = plan(tmp_path, data, variants)
    caches = {entry.run.variant: entry.cache for entry in planned.runs}
    assert caches.pop("alone") is None
    shared = {caches[name] for name in ("hard", "soft", "small", "twice as long")}
    assert len(shared) == 1 and len(set(caches.values())) == 3
    assert planned.caches[shared.pop()].variant == "twice as long"  # this variant needs the most views


def test_without_repeated_views_trainings_of_different_length_do_not_share_a_cache(data, tmp_path):
    variants = {"short": VARIANTS["hard"], "long": {**VARIANTS["hard"], "num_train_epochs": 4}}
    assert len(plan(tmp_path, data, variants, num_views=None).caches) == 2


def test_a_run_gets_the_number_of_concurrent_runs_because_they_share_memory(data, tmp_path, monkeypatch):
    def train(recipe, **options):
        assert options == {"concurrent_trainings": 3}
        raise NonFiniteLossError("the end of this test")

    (run,) = plan(tmp_path, data, {"alone": WITHOUT}).runs
    monkeypatch.setattr("hf_deit.experiments.run_ablation.train", train)
    place = Place(str(data), None, tmp_path / "results", tmp_path / "work", jobs=3)
    assert _do_run(place, run)["metrics"] is None


def test_variants_with_the_same_fields_are_one_run(data, tmp_path):
    planned = plan(tmp_path, data, {"one": WITHOUT, "other": dict(WITHOUT), "third": {**WITHOUT, "save_steps": 9}})
    assert [entry.run.variant for entry in planned.runs] == ["one"]


def test_unlabelled_images_are_known_by_their_content_and_not_by_their_folder(data, tmp_path):
    first = write_images(tmp_path / "first", ["any"], per_class=8, seed=5)
    second = write_images(tmp_path / "second", ["any"], per_class=8, seed=6)
    hard = VARIANTS["hard"]
    variants = {
        "none": hard,
        "first": {**hard, "unlabelled": str(first)},
        "second": {**hard, "unlabelled": str(second)},
    }
    before = {entry.run.variant: entry.file.name for entry in plan(tmp_path, data, variants).runs}
    assert len(set(before.values())) == 3
    shutil.copytree(first, tmp_path / "copy")
    moved = {name: {**fields} for name, fields in variants.items()}
    moved["first"]["unlabelled"] = str(tmp_path / "copy")
    assert {entry.run.variant: entry.file.name for entry in plan(tmp_path, data, moved).runs} == before
    # The same images in two folders are one run.
    moved["second"]["unlabelled"] = str(first)
    planned = plan(tmp_path, data, moved)
    assert [entry.run.variant for entry in planned.runs] == ["none", "first"]
    assert planned.files["second", 0] == planned.files["first", 0]
    write_images(first, ["more"], per_class=2, seed=9)
    changed = {entry.run.variant: entry.file.name for entry in plan(tmp_path, data, variants).runs}
    assert changed["first"] != before["first"] and changed["second"] == before["second"]


def test_a_part_of_the_seeds_can_be_run(data, tmp_path):
    planned = plan(
        tmp_path, data, {"one": WITHOUT, "other": {**WITHOUT, "learning_rate": 1e-3}}, (0, 1, 2), only=[2, 0]
    )
    assert [entry.run.name for entry in planned.runs] == [
        "one, seed 0",
        "other, seed 0",
        "one, seed 2",
        "other, seed 2",
    ]


def test_variants_that_share_a_teacher_load_it_once(data, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(recipe_checks, "teacher_of", lambda fields: loaded.append(fields) or build_teacher(fields))
    hard = VARIANTS["hard"]
    hard = {**hard, "teacher_dtype": "bfloat16"}
    variants = {f"rate {rate}": {**hard, "learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)}
    plan(tmp_path, data, {"alone": WITHOUT, **variants, "half": {**hard, "teacher_dtype": "float16"}}, seeds=(0, 1))
    assert [fields.teacher_dtype for fields in loaded] == ["bfloat16", "float16"]


def test_the_name_of_the_data_does_not_depend_on_the_first_seed(tmp_path):
    folder = write_images(
        tmp_path / "flat", tiny.NAMES, per_class=6
    )  # no validation split: the split depends on a seed
    names = {}
    for seeds in ((0, 1), (1, 0)):
        planned = plan(tmp_path, folder, {"plain": WITHOUT}, seeds)
        names[seeds] = {entry.run.fields["seed"]: entry.file.name for entry in planned.runs}
    assert names[0, 1] == names[1, 0]


def test_the_cache_folder_depends_on_the_size_of_the_views_and_not_on_its_spelling(data, tmp_path):
    fields = {"data": str(data), "distillation_type": "hard", "output_dir": str(tmp_path), "image_size": 16}
    folders = [
        cache_folder(tmp_path, load_recipe({**fields, **more}, []), "teacher")
        for more in ({}, {"view_size": 16}, {"view_size": [16, 16]}, {"view_size": [16, 24]})
    ]
    assert folders[0] == folders[1] == folders[2] != folders[3]
