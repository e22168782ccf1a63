"""Running sums of loss terms: means over images, and the step of the first non-finite loss."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_deit.errors import NonFiniteLossError
from hf_deit.trainer.metrics import RunningTerms

CPU = torch.device("cpu")


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def terms_of(loss, **others):
    return {"loss": torch.tensor(loss), **{name: torch.tensor(values) for name, values in others.items()}}


def test_means_are_over_images_so_a_partial_batch_counts_less(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([1.0, 2.0, 3.0, 4.0], cls_loss=[0.5, 0.5, 0.5, 0.5]), step=1, learning_rate=0.1)
    running.add(terms_of([10.0], cls_loss=[3.0]), step=2, learning_rate=0.1)
    # Over five images; the mean of the two batch means would be 6.25 and 1.75.
    assert running.read(accelerator) == pytest.approx({"loss": 20 / 5, "cls_loss": 5 / 5})


def test_boolean_terms_become_shares(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([1.0, 1.0, 1.0, 1.0], teacher_agreement=[True, False, True, True]), 1, 0.1)
    assert running.read(accelerator)["teacher_agreement"] == 0.75


def test_half_precision_terms_are_summed_in_float32(accelerator):
    running = RunningTerms(CPU)
    for step in range(300):
        running.add({"loss": torch.ones(10, dtype=torch.bfloat16)}, step, 0.1)
    # In bfloat16 the sum would stop growing at 256.
    assert running.read(accelerator) == {"loss": 1.0}


def test_reading_resets_the_sums(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([5.0, 5.0]), 1, 0.1)
    assert running.read(accelerator) == {"loss": 5.0}
    assert running.read(accelerator) == {}
    running.add(terms_of([1.0], cls_loss=[2.0]), 2, 0.1)
    assert running.read(accelerator) == {"loss": 1.0, "cls_loss": 2.0}


def test_reading_and_checking_before_the_first_step_do_nothing(accelerator):
    running = RunningTerms(CPU)
    running.check(accelerator)
    assert running.read(accelerator) == {}


def test_a_check_does_not_reset_the_sums(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([1.0, 3.0]), 1, 0.1)
    running.check(accelerator)
    assert running.read(accelerator) == {"loss": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_found_with_its_step_terms_and_learning_rate(accelerator, bad):
    running = RunningTerms(CPU)
    running.add(terms_of([1.0, 1.0], cls_loss=[1.0, 1.0]), step=11, learning_rate=0.011)
    running.add(terms_of([1.0, bad], cls_loss=[2.0, 3.0]), step=12, learning_rate=0.012)
    running.add(terms_of([1.0, 1.0], cls_loss=[1.0, 1.0]), step=13, learning_rate=0.013)
    with pytest.raises(NonFiniteLossError) as error:
        running.check(accelerator)
    message = str(error.value)
    assert f"at step 12: loss {bad:g}, cls_loss 2.5; learning rate 0.012" in message
    for remedy in ("learning_rate", "warmup_steps", "max_grad_norm", "bf16"):
        assert remedy in message


def test_the_first_non_finite_loss_is_kept(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([math.inf], cls_loss=[4.0]), step=3, learning_rate=0.03)
    running.add(terms_of([math.nan], cls_loss=[5.0]), step=3, learning_rate=0.03)  # the next accumulation step
    running.add(terms_of([math.nan], cls_loss=[6.0]), step=4, learning_rate=0.04)
    with pytest.raises(NonFiniteLossError, match="at step 3: loss inf, cls_loss 4; learning rate 0.03"):
        running.check(accelerator)


def test_a_non_finite_loss_is_found_until_the_terms_are_read(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([math.nan]), 1, 0.1)
    for _ in range(2):
        with pytest.raises(NonFiniteLossError):
            running.check(accelerator)
    assert math.isnan(running.read(accelerator)["loss"])
    running.check(accelerator)
    running.add(terms_of([1.0]), 2, 0.1)
    running.check(accelerator)
    running.add(terms_of([math.nan]), 3, 0.3)
    with pytest.raises(NonFiniteLossError, match="at step 3: loss nan; learning rate 0.3"):
        running.check(accelerator)


def test_only_the_loss_is_checked_and_not_the_other_terms(accelerator):
    running = RunningTerms(CPU)
    running.add(terms_of([1.0], distillation_loss=[math.nan]), 1, 0.1)
    running.check(accelerator)


def test_the_autograd_graph_of_a_step_is_not_kept(accelerator):
    running = RunningTerms(CPU)
    loss = torch.ones(2, requires_grad=True) * 2
    running.add({"loss": loss}, 1, 0.1)
    assert not running._sums.requires_grad
    assert running.read(accelerator) == {"loss": 2.0}


def test_adding_reads_nothing_from_the_device():
    """Tensors on the meta device of torch have no values, so reading one raises an error."""
    running = RunningTerms(torch.device("meta"))
    for step in range(3):
        running.add({"loss": torch.ones(4, device="meta"), "cls_loss": torch.ones(4, device="meta")}, step, 0.1)


# ---- two processes: `gather` returns the records of both processes to each ----


class OtherProcess:
    """Stands for the accelerator of another process; it keeps the tensor that this process sends."""

    def gather(self, tensor):
        self.sent = tensor
        return tensor


def together_with(other, read):
    process = OtherProcess()
    with contextlib.suppress(NonFiniteLossError):
        read(other, process)
    return SimpleNamespace(gather=lambda tensor: torch.cat([tensor, process.sent]))


def test_means_are_over_the_images_of_all_processes():
    mine, other = RunningTerms(CPU), RunningTerms(CPU)
    mine.add(terms_of([1.0, 2.0, 3.0]), 1, 0.1)
    other.add(terms_of([10.0]), 1, 0.1)
    assert mine.read(together_with(other, RunningTerms.read)) == {"loss": 4.0}


def test_a_non_finite_loss_of_another_process_is_found():
    mine, other = RunningTerms(CPU), RunningTerms(CPU)
    for step in (7, 8):
        mine.add(terms_of([1.0]), step, step / 100)
        other.add(terms_of([1.0 if step == 7 else math.nan]), step, step / 100)
    with pytest.raises(NonFiniteLossError, match="at step 8: loss nan; learning rate 0.08"):
        mine.check(together_with(other, RunningTerms.check))
