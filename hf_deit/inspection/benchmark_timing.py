"""Timing of models side by side: every configuration takes its turn in every round, so that a change of load reaches all of them.

A configuration is a model with a way to run it, a data type and a batch size. benchmark.py chooses the configurations.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

EAGER, COMPILED, ONNX = "eager", "compiled", "onnx"
BACKENDS = (EAGER, COMPILED, ONNX)
# Fewer times have no 95th percentile.
CALLS_OF_P95 = 20
_SECONDS_PER_ROUND, _MOST_CALLS = 0.2, 50
_WARM_UP_SECONDS, _WARM_UP_CALLS = 1.0, 3


@dataclass(frozen=True)
class Configuration:
    """A model with a way to run it.

    Args:
        model: Name of the model.
        backend: One of `BACKENDS`.
        dtype: Name of the data type of weights and activations.
        batch_size: Number of images per batch.
    """

    model: str
    backend: str
    dtype: str
    batch_size: int


@dataclass
class Timing:
    """Times of a configuration.

    Args:
        calls_per_round: Number of timed batches per round.
        rates: Images per second, of each round.
        seconds: Time of each batch.
    """

    calls_per_round: int
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def eager_runner(model: PreTrainedModel, pixels: Tensor) -> Callable[[], Any]:
    """Return a function that runs a model on a batch of pixels, as it is."""
    return lambda: model(pixel_values=pixels)


def compiled_runner(model: PreTrainedModel, pixels: Tensor) -> Callable[[], Any]:
    """Return a function that runs a model on a batch of pixels, compiled for this batch size. The first call compiles."""
    compiled = torch.compile(model, dynamic=False)
    return lambda: compiled(pixel_values=pixels)


@contextmanager
def many_compiled_models() -> Iterator[None]:
    """Let every configuration be compiled.

    By default, PyTorch compiles the same code for eight shapes or models only, and then runs it as it is without an error.
    """
    import torch._dynamo

    settings = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    with settings.patch({limit: 10_000, f"accumulated_{limit}": 10_000}):
        yield


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Rounds:
    """Times of several configurations, measured in turns, without gradients (`torch.inference_mode`).

    Args:
        synchronise: Function that waits until the device has finished; None on a CPU, where a call returns when it has.

    Attributes:
        timings: Times, by configuration that can be run.
        problems: Reason, by configuration that cannot be run.
    """

    def __init__(self, synchronise: Callable[[], None] | None = None):
        self._runs: dict[Configuration, Callable[[], Any]] = {}
        self._synchronise = synchronise
        self.timings: dict[Configuration, Timing] = {}
        self.problems: dict[Configuration, str] = {}

    def add(self, key: Configuration, run: Callable[[], Any]) -> float:
        """Add a configuration. It is run until its time is steady, to choose the number of batches per round.

        Args:
            key: The configuration.
            run: Function that runs one batch.

        Returns:
            The estimated seconds per round; 0 if the configuration cannot be run.
        """
        self._runs[key] = run
        taken: list[float] = []
        try:
            with torch.inference_mode():
                self._timed(run)  # this call may compile, and is no measure
                while not taken or (len(taken) < _WARM_UP_CALLS and sum(taken) < _WARM_UP_SECONDS):
                    taken.append(self._timed(run))
        except Exception as error:  # compilers, runtimes and models raise errors of any class
            self._drop(key, error)
            return 0.0
        seconds = max(min(taken), 1e-9)
        self.timings[key] = Timing(min(_MOST_CALLS, max(1, math.ceil(_SECONDS_PER_ROUND / seconds))))
        return seconds * self.timings[key].calls_per_round

    def measure(self, number: int) -> Iterator[Configuration]:
        """Measure one round. The order of the configurations is another one in each round.

        Args:
            number: Number of the round, which decides the order.

        Yields:
            Each configuration after it was measured.
        """
        order = list(self.timings)
        random.Random(number).shuffle(order)
        for key in order:
            try:
                with torch.inference_mode():
                    self._measure(self._runs[key], self.timings[key], key.batch_size)
            except Exception as error:
                self._drop(key, error)
            yield key

    def _measure(self, run: Callable[[], Any], timing: Timing, batch_size: int) -> None:
        calls = timing.calls_per_round
        if calls > 1:
            self._timed(run)  # the caches of the processor hold the model that was measured before
        seconds = [self._timed(run) for _ in range(calls)]
        total = sum(seconds)
        if self._synchronise is not None:  # without a wait after each batch, as in a loop over many images
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            self._synchronise()
            total = time.perf_counter() - begin
        timing.seconds += seconds
        timing.rates.append(batch_size * calls / total)

    def _timed(self, run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        if self._synchronise is not None:
            self._synchronise()
        return time.perf_counter() - begin

    def _drop(self, key: Configuration, error: Exception) -> None:
        self.timings.pop(key, None)
        self._runs.pop(key)
        self.problems[key] = first_line(error)
