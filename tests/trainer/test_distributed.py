"""Two processes (gloo, on the CPU) compared with one process with the same global batch."""

import re

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from tests.helpers import SCRIPTS
from tests.helpers.processes import run_distributed
from tests.helpers.two_processes import EVALUATION_SIZES, GLOBAL_BATCH, RUNS, STEPS, measure


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of the two processes."""
    folder = tmp_path_factory.mktemp("two")
    for done in run_distributed(SCRIPTS / "two_processes.py", folder):
        assert done.returncode == 0, done.stderr[-3000:]
    assert '"world_size": 2' in (folder / "summary.json").read_text()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of the same measurements in this one process."""
    folder = tmp_path_factory.mktemp("one")
    return {name: measure(folder, name) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_losses_equal_those_of_one_process(both, alone, name):
    for term, expected in alone[name]["terms"].items():
        assert len(expected) == STEPS
        for rank in (0, 1):
            rounding = 1e-5 if term == "grad_norm" else 0  # it is large
            np.testing.assert_allclose(both[rank][name]["terms"][term], expected, rtol=rounding, atol=1e-5)
    # Without distillation the teacher is not run in training.
    assert ("teacher_agreement" in alone[name]["terms"]) == (name != "none")
    losses = alone[name]["terms"]["loss"]
    assert max(losses) - min(losses) > 0.05


@pytest.mark.parametrize("name", RUNS)
def test_gradients_of_the_first_update_equal_those_of_one_process(both, alone, name):
    expected = alone[name]["gradients"]
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for rank in (0, 1):
        found = both[rank][name]["gradients"]
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", EVALUATION_SIZES)
@pytest.mark.parametrize("name", RUNS)
def test_metrics_equal_those_of_one_process_for_any_number_of_images(both, alone, name, count):
    expected = alone[name]["evaluations"][count]
    names = {metric for metric in expected if "loss" in metric or "accuracy" in metric or "agreement" in metric}
    assert len(names) >= 5
    for rank in (0, 1):
        for metric in names:
            found = both[rank][name]["evaluations"][count][metric]
            assert found == pytest.approx(expected[metric], rel=1e-4, abs=1e-5), metric


@pytest.mark.parametrize("name", RUNS)
def test_predictions_equal_those_of_one_process(both, alone, name):
    for rank in (0, 1):
        torch.testing.assert_close(both[rank][name]["predictions"], alone[name]["predictions"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["hard", "soft", "one-head", "accumulated"])
def test_each_process_runs_its_own_teacher_on_its_own_images(both, alone, name):
    teachers = [both[rank][name]["teacher"] for rank in (0, 1)]
    assert teachers[0]["pid"] != teachers[1]["pid"]
    assert alone[name]["teacher"]["images"] == STEPS * GLOBAL_BATCH
    assert [teacher["images"] for teacher in teachers] == [alone[name]["teacher"]["images"] // 2] * 2
    assert {teacher["fingerprint"] for teacher in teachers} == {alone[name]["teacher"]["fingerprint"]}


def test_the_projection_of_guidance_is_the_same_in_all_processes_and_equals_that_of_one_process(both, alone):
    assert alone["guided"]["projection"].keys() == {"0.weight", "0.bias"}
    for name, expected in alone["guided"]["projection"].items():
        assert torch.equal(both[0]["guided"]["projection"][name], both[1]["guided"]["projection"][name])
        torch.testing.assert_close(both[0]["guided"]["projection"][name], expected, rtol=0, atol=1e-4)
    assert alone["guided"]["terms"]["guidance_loss"][-1] < alone["guided"]["terms"]["guidance_loss"][0]


def test_two_processes_resume_exactly_and_refuse_another_run(both):
    if both[0]["resume"] is None and Version(transformers.__version__) < Version("5.24"):
        pytest.skip(f"transformers {transformers.__version__} itself cannot resume in several processes on the CPU")
    for rank in (0, 1):
        (uninterrupted, resumed), refusal = both[rank]["resume"]
        assert resumed == uninterrupted
        for part in ("recipe.learning_rate", "0.0005", "0.001"):
            assert part in refusal


def test_a_non_finite_loss_in_one_process_stops_both(both):
    for rank in (0, 1):
        assert re.search(r"at step 3: loss nan, cls_loss nan, distillation_loss \d", both[rank]["diverge"])


def test_the_first_process_alone_makes_the_report_of_a_saved_model_and_its_failure_ends_neither(both):
    # Both processes ended with exit code 0, which `both` checks.
    assert both[0]["report"] == {"made": [True], "has_metrics": True}
    assert both[1]["report"] == {"made": [], "has_metrics": False}
