"""Benchmarks: operations against a formula, the paper's numbers, turns of a fake clock, memory, files, and what is refused."""

import itertools
import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from torch import nn

import hf_deit
from hf_deit.cli import main
from hf_deit.errors import UserError
from hf_deit.inspection import benchmark_memory, benchmark_timing
from hf_deit.inspection.benchmark_memory import MemoryTask, cpu_peaks
from hf_deit.inspection.benchmark_models import (
    facts_of,
    flops,
    published_sources,
    random_pixels,
    saved_sources,
    significant,
)
from hf_deit.inspection.benchmark_result import BenchmarkModel, BenchmarkRow, token_costs
from hf_deit.inspection.benchmark_timing import Configuration, Rounds, many_compiled_models
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from tests.helpers import tiny
from tests.inspection.test_explain import save


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    for split, count in (("train", 4), ("validation", 8)):
        for number, pixels in enumerate(tiny.pixels_of(count, seed=count)):
            place = folder / "data" / split / tiny.NAMES[number % 4]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
    save(folder / "plain", False)
    save(folder / "distilled")
    return folder


# ---- arithmetic ----


def operations(tokens, patches, width, mlp, layers, patch, classes, heads):
    """Return the operations of a transformer by hand: 2 per multiply-add. The last layer computes the tokens of the heads only."""
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    last = 2 * (tokens + heads) * width**2 + 2 * heads * tokens * width + 2 * heads * width * mlp
    return 2 * (patches * 3 * patch**2 * width + (layers - 1) * layer + last + heads * width * classes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("two_heads", [False, True])
def test_operations_are_those_of_the_formula_with_any_attention(two_heads, attention):
    model = tiny.student(two_heads, image_size=(16, 24)).eval()
    model.set_attn_implementation(attention)
    found = flops(model, random_pixels(model, (16, 24), 1))
    assert found == operations(6 + 1 + two_heads, 6, 32, 64, 2, 8, 4, 1 + two_heads)
    assert flops(model, random_pixels(model, (16, 24), 3)) == 3 * found


def test_published_architectures_have_the_size_and_accuracy_of_the_paper():
    found = {}
    for source in published_sources(["tiny", "small", "base", "base_384"]):
        with torch.device("meta"):
            model = source.load()
        found[source.name] = (sum(weight.numel() for weight in model.parameters()), source.paper.top1)
        assert (source.kind == "distilled") == (type(model).__name__ == "DeiTForImageClassificationWithTeacher")
        assert "ImageNet" in source.paper.source
    assert found == {
        "DeiT-Ti": (5_717_416, 72.2),
        "DeiT-Ti distilled": (5_910_800, 74.5),
        "DeiT-S": (22_050_664, 79.8),
        "DeiT-S distilled": (22_436_432, 81.2),
        "DeiT-B": (86_567_656, 81.8),
        "DeiT-B distilled": (87_338_192, 83.4),
        "DeiT-B↑384": (86_859_496, 83.1),
        "DeiT-B↑384 distilled": (87_630_032, 84.5),
    }


def test_random_weights_leave_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    facts = facts_of(source := published_sources(["tiny"])[0], source.load())
    assert torch.equal(torch.rand(2), expected)
    assert facts.gflops == pytest.approx(operations(197, 196, 192, 768, 12, 16, 1000, 1) / 1e9)


def test_models_in_folders_of_one_name_are_named_by_their_paths(tmp_path):
    paths = [tmp_path / "a" / "best", tmp_path / "b" / "best", tmp_path / "DeiT-Ti", tmp_path / "other"]
    for path in paths:
        path.mkdir(parents=True)
    assert [source.name for source in saved_sources([str(path) for path in paths])] == [*map(str, paths[:3]), "other"]
    with pytest.raises(UserError, match="twice"):
        saved_sources([str(paths[3]), f"{paths[3]}/."])


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (0.01234, "0.0123"), (99.96, "100.0"), (0, "0")]
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert significant(value) == text


# ---- times ----


class Clock:
    """A clock that only runs when a function says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(benchmark_timing.time, "perf_counter", lambda: self.now)

    def run(self, *seconds):
        times = itertools.cycle(seconds)

        def run():
            self.now += next(times)

        return run


def test_throughput_is_the_images_of_a_round_by_its_time_and_every_round_has_all_configurations(monkeypatch):
    clock, rounds, order = Clock(monkeypatch), Rounds(), []
    slow, fast = (Configuration(name, "eager", "float32", 4) for name in ("slow", "fast"))
    assert rounds.add(slow, clock.run(0.5)) == pytest.approx(0.5)
    assert rounds.add(fast, clock.run(0.05)) == pytest.approx(0.2)
    for number in range(6):
        turn = list(rounds.measure(number))
        assert sorted(turn, key=str) == sorted([slow, fast], key=str)
        order.append(turn[0])
    assert set(order) == {slow, fast}  # no configuration is always the first
    assert rounds.timings[slow].rates == pytest.approx([8.0] * 6)
    assert rounds.timings[fast].rates == pytest.approx([80.0] * 6)
    assert len(rounds.timings[slow].seconds) == 6 and len(rounds.timings[fast].seconds) == 24


def test_the_first_call_is_no_measure_and_a_wait_for_the_device_belongs_to_the_time(monkeypatch):
    clock = Clock(monkeypatch)
    rounds = Rounds(synchronise=clock.run(0.1))
    key = Configuration("m", "compiled", "float32", 2)
    times = iter([60.0])
    rounds.add(key, lambda: clock.run(next(times, 0.3))())
    list(rounds.measure(0))
    assert rounds.timings[key].seconds == pytest.approx([0.4])  # 0.3 and the wait
    assert rounds.timings[key].rates == pytest.approx([2 / 0.4])


def test_a_configuration_that_fails_has_a_reason_and_the_others_go_on(monkeypatch):
    clock, rounds = Clock(monkeypatch), Rounds()
    good, bad, late = (Configuration(name, "eager", "float32", 1) for name in ("good", "bad", "late"))

    def fail():
        raise RuntimeError("no memory\nand a long trace")

    calls = iter(range(4))
    rounds.add(good, clock.run(1.0))
    assert rounds.add(bad, fail) == 0.0
    rounds.add(late, lambda: clock.run(1.0)() if next(calls, 9) < 2 else fail())
    for number in range(2):
        list(rounds.measure(number))
    assert rounds.problems == {bad: "RuntimeError: no memory", late: "RuntimeError: no memory"}
    assert rounds.timings.keys() == {good} and len(rounds.timings[good].rates) == 2


class Doubled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, pixels):
        return 2 * self.layer(pixels)


def test_more_than_eight_models_of_one_class_are_compiled():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    with many_compiled_models(), torch.inference_mode():
        for width in range(2, 12):
            torch.compile(Doubled(width), backend=backend, dynamic=False)(torch.ones(1, width))
    assert len(compiled) == 10


# ---- memory ----


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be reset on Linux only")
def test_peak_memory_holds_the_weights_and_grows_with_the_batch(tmp_path, capsys):
    # Tensors above 32 MB are always new memory for malloc, so that this process, which runs other tests, can measure them too.
    width = 300_000
    with torch.device("meta"):
        model = tiny.student(intermediate_size=width, num_hidden_layers=2)
    model.to_empty(device="cpu").requires_grad_(False).save_pretrained(tmp_path)
    source = {"name": "wide", "path": str(tmp_path)}
    task = MemoryTask(source, "eager", "float32", (1, 8), (16, 16), torch.get_num_threads())
    benchmark_memory.main(json.dumps(asdict(task)))
    one, eight = (json.loads(line)["bytes"] for line in capsys.readouterr().out.splitlines())
    weights, activation = (
        2 * 2 * 32 * width * 4,
        8 * 6 * width * 4,
    )  # bytes: both matrices of the MLP of 2 layers; the widest activation of the first one
    assert weights < one < 1.3 * weights
    assert activation < eight - one < 3 * activation


def test_the_process_that_measures_finds_the_package_and_reports_its_error():
    peaks, problem = cpu_peaks(MemoryTask({"name": "m"}, "eager", "float32", (1,), None, 1))
    assert peaks == {} and problem.startswith("TypeError")


@pytest.mark.parametrize(("code", "reason"), [(-9, "signal 9"), (1, "MemoryError: too large"), (3, "MemoryError")])
def test_a_process_that_ends_early_leaves_what_it_measured_and_a_reason(monkeypatch, code, reason):
    done = subprocess.CompletedProcess(
        [], code, '{"batch_size": 1, "bytes": 7}\n', "Traceback\nMemoryError: too large\n"
    )
    monkeypatch.setattr(benchmark_memory.subprocess, "run", lambda *unused, **named: done)
    peaks, problem = cpu_peaks(MemoryTask({"name": "m"}, "eager", "float32", (1, 2), (16, 16), 1))
    assert peaks == {1: 7} and reason in problem


# ---- comparison ----


def test_the_cost_of_the_token_is_the_median_of_the_ratios_round_by_round():
    fields = {"architecture": "A", "image_size": (16, 16), "classes": 4, "path": "x", "shape": (32, 2)}
    models = [
        BenchmarkModel(**fields, kind="plain", parameters=100, gflops=2.0, name="p"),
        BenchmarkModel(**fields, kind="distilled", parameters=110, gflops=2.2, name="d"),
        BenchmarkModel(**{**fields, "shape": (64, 2)}, kind="distilled", parameters=110, gflops=2.2, name="wider"),
        BenchmarkModel(**{**fields, "path": None}, kind="distilled", parameters=110, gflops=2.2, name="published"),
    ]
    rows = [
        BenchmarkRow(model.name, "eager", "float32", 1, 10.0, rates, 1.0, None, 3)
        for model, rates in zip(models, ([10.0, 20.0, 10.0], [9.0, 10.0, 8.0], [1.0] * 3, [1.0] * 3), strict=True)
    ]
    rows.append(BenchmarkRow("d", "compiled", "float32", 1, problem="no compiler"))
    (cost,) = token_costs(models, rows)
    assert (cost.plain, cost.distilled, cost.parameters, cost.percent) == ("p", "d", 10, None)
    assert (cost.throughput_ratio, cost.throughput_range) == (0.8, (0.5, 0.9))
    assert cost.gflops_ratio == pytest.approx(1.1)


# ---- commands ----


def accuracy_by_hand(folder, data):
    model, processor = load_model(folder).eval(), DeiTImageProcessor.from_pretrained(folder)
    right = []
    for file in sorted((data / "validation").rglob("*.png")):
        with torch.no_grad():
            logits = model(**processor(Image.open(file), return_tensors="pt")).logits
        right.append(tiny.NAMES[logits.argmax()] == file.parent.name)
    return sum(right) / len(right)


def test_the_command_writes_and_prints_every_configuration_and_the_reason_of_those_not_run(
    room, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def broken(*unused, **named):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    models = [str(room / "plain"), str(room / "distilled")]
    options = [
        "--batch_sizes",
        "1",
        "2",
        "--dtypes",
        "float32",
        "bfloat16",
        "--rounds",
        "2",
        "--no_memory",
        "--threads",
        "1",
    ]
    words = ["benchmark", *models, "--data", str(room / "data"), "--out", str(tmp_path / "out"), *options, "--quiet"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert not any(ord(letter) < 32 for letter in printed.replace("\n", ""))
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = content["rows"]
    assert len(rows) == 2 * 3 * 2 * 2
    for row in rows:
        if row["backend"] == "eager":
            assert row["problem"] is None and len(row["images_per_second_rounds"]) == 2
            assert row["images_per_second"] > 0 and row["latency_ms_p95"] >= row["latency_ms_p50"] > 0
        else:
            reason = "C++" if row["backend"] == "compiled" else "pip install onnx"
            reason = "float32" if (row["backend"], row["dtype"]) == ("onnx", "bfloat16") else reason
            assert row["images_per_second"] is None and reason in row["problem"] and reason in printed
    for model in content["models"]:
        assert model["accuracy"]["percent"] == pytest.approx(100 * accuracy_by_hand(model["path"], room / "data"))
        assert (model["accuracy"]["images"], model["accuracy"]["split"], model["paper"]) == (8, "validation", None)
    assert len(content["token_costs"]) == 4 and content["environment"]["threads"] == 1
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert "| plain | eager | bfloat16 | 2 |" in page and "| distilled | compiled | float32 | 1 | not run |" in page
    assert (tmp_path / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "out" / "benchmark.svg").read_text()
    assert "plain" in svg and "top-1 on the data" in svg and "eager, float32, batch 2" in svg


def test_python_takes_single_values_and_states_the_paper_beside_random_weights(room, tmp_path):
    found = hf_deit.benchmark(
        room / "plain",
        published="tiny",
        batch_sizes=1,
        dtypes="float32",
        backends="eager",
        rounds=1,
        memory=False,
        out=tmp_path,
    )
    assert [model.name for model in found.models] == ["plain", "DeiT-Ti", "DeiT-Ti distilled"]
    assert [model.paper and model.paper.top1 for model in found.models] == [None, 72.2, 74.5]
    assert all(model.accuracy is None for model in found.models)
    assert [(cost.plain, cost.parameters, round(cost.percent, 1)) for cost in found.token_costs] == [
        ("DeiT-Ti", 193_384, 2.3)
    ]
    page = (tmp_path / "benchmark.md").read_text()
    assert "not measured here" in page and "random weights" in page
    assert "ImageNet top-1 of the paper" in (tmp_path / "benchmark.svg").read_text()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dtypes": "float64"}, "float64"),
        ({"dtypes": []}, "dtypes"),
        ({"backends": ["eager", "eager"]}, "backends"),
        ({"backends": "tensorrt"}, "tensorrt"),
        ({"batch_sizes": [8, 0]}, "batch_sizes=8, 0"),
        ({"batch_sizes": [2, 2]}, "batch_sizes=2, 2"),
        ({"rounds": 0}, "rounds=0"),
        ({"threads": 0}, "threads=0"),
        ({"device": "tpu"}, "device=tpu"),
        ({"models": []}, "No models"),
        ({"models": ["no/such/model"]}, "no/such/model"),
        ({"published": "huge"}, "huge"),
        ({"published": ["tiny", "tiny"]}, "twice"),
        ({"split": "test"}, "split=test"),
        ({"image_column": "photo"}, "photo"),
        ({"models": [], "published": "tiny", "data": "photos"}, "data=photos"),
        ({"data": "no/such/data"}, "no/such/data"),
    ],
)
def test_invalid_values_are_refused_before_anything_is_measured(room, monkeypatch, fields, named):
    monkeypatch.setattr("hf_deit.inspection.benchmark.facts_of", lambda *unused: pytest.fail("measured"))
    with pytest.raises(UserError, match=named):
        hf_deit.benchmark(**{"models": room / "plain", **fields})


def test_data_of_other_classes_and_a_folder_with_files_are_refused_early(room, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_deit.inspection.benchmark.facts_of", lambda *unused: pytest.fail("measured"))
    for name in ("wasp", "fly"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(tiny.pixels_of(1)[0]).save(tmp_path / "data" / name / "a.png")
    with pytest.raises(UserError, match=r"(?s)wasp|fly"):
        hf_deit.benchmark(room / "plain", data=tmp_path / "data")
    assert main(["benchmark", str(room / "plain"), "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_if_nothing_runs_the_command_fails_and_writes_nothing(room, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *unused, **named: 1 / 0)
    with pytest.raises(UserError, match=r"plain \(compiled, float32, batch 1\).*ZeroDivisionError"):
        hf_deit.benchmark(room / "plain", backends="compiled", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
