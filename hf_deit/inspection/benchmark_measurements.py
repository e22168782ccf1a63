"""Configurations of a benchmark: how each model is run, with its times and its peak memory, or the reason why it cannot be run."""

import copy
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import UserError
from ..models.export import export_onnx, onnx_runner
from .benchmark_memory import MemoryTask, cpu_peaks
from .benchmark_models import ModelFacts, ModelSource, random_pixels
from .benchmark_result import BenchmarkRow
from .benchmark_timing import (
    CALLS_OF_P95,
    COMPILED,
    ONNX,
    Configuration,
    Rounds,
    Timing,
    compiled_runner,
    eager_runner,
    first_line,
)

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Runnable:
    """A model that is ready to run with one backend and data type.

    Args:
        run: Function that returns, for a batch size, a function that runs a batch.
        onnx_file: The exported file, if any.
        weights: Bytes of the weights on a GPU.
    """

    run: Callable[[int], Callable[[], Any]]
    onnx_file: str | None = None
    weights: int = 0


class Measurements:
    """Times and peak memory of all configurations.

    Args:
        backends: Some of `BACKENDS`.
        dtypes: Some of `DTYPES`.
        batch_sizes: Numbers of images per batch.
        threads: Number of threads on the CPU.
        device: Device of the models.
        memory: Whether peak memory is measured.
        place: Empty folder for exported files.
        begin: Function that is called with a text when a configuration is prepared.

    Attributes:
        rounds: The configurations that can be run.
        seconds_per_round: Estimated time of a round.
    """

    def __init__(
        self,
        *,
        backends: Sequence[str],
        dtypes: Sequence[str],
        batch_sizes: Sequence[int],
        threads: int,
        device: torch.device,
        memory: bool,
        place: Path,
        begin: Callable[[str], None],
    ):
        self._backends, self._dtypes, self._batch_sizes = backends, dtypes, batch_sizes
        self._threads, self._device, self._memory = threads, device, memory
        self._place, self._begin = place, begin
        self._on_gpu = device.type == "cuda"
        self.rounds = Rounds(torch.cuda.synchronize if self._on_gpu else None)
        self.seconds_per_round = 0.0
        self._keys: list[Configuration] = []
        self._problems: dict[Configuration, str] = {}
        self._peaks: dict[Configuration, int] = {}
        self._memory_problems: dict[Configuration, str] = {}

    def prepare(self, source: ModelSource, facts: ModelFacts) -> None:
        """Load a model, warm up its configurations, and measure their memory.

        Raises:
            UserError: The model cannot be loaded.
        """
        model = source.load()
        networks: dict[str, _Network] = {}
        for backend in self._backends:
            for dtype in self._dtypes:
                keys = [Configuration(source.name, backend, dtype, size) for size in self._batch_sizes]
                self._keys += keys
                self._prepare(source, model, facts, keys, networks)

    def _prepare(
        self,
        source: ModelSource,
        model: PreTrainedModel,
        facts: ModelFacts,
        keys: Sequence[Configuration],
        networks: "dict[str, _Network]",
    ) -> None:
        backend, dtype = keys[0].backend, keys[0].dtype
        self._begin(f"{source.name}: {backend}, {dtype}")
        try:
            if backend == ONNX:
                runnable = self._in_onnxruntime(source, model, facts, dtype)
            else:
                if dtype not in networks:
                    networks[dtype] = self._on_device(model, dtype)
                runnable = self._in_torch(networks[dtype], facts, backend)
        except Exception as error:  # exporters and devices raise errors of any class
            self._problems |= dict.fromkeys(keys, str(error) if isinstance(error, UserError) else first_line(error))
            return
        for number, key in enumerate(keys):
            if number:
                self._begin(f"{source.name}: {backend}, {dtype}, batch {key.batch_size}")
            self._warm_up(key, runnable)
        if self._memory and not self._on_gpu:
            self._measure_memory(source, facts, keys, runnable.onnx_file)

    # ---- ways to run a model ----

    def _on_device(self, model: PreTrainedModel, dtype: str) -> "_Network":
        before = torch.cuda.memory_allocated() if self._on_gpu else 0
        network = model
        if self._on_gpu or dtype != "float32":
            network = copy.deepcopy(model).to(self._device, getattr(torch, dtype))
        return _Network(network, torch.cuda.memory_allocated() - before if self._on_gpu else 0)

    def _in_torch(self, network: "_Network", facts: ModelFacts, backend: str) -> _Runnable:
        build = compiled_runner if backend == COMPILED else eager_runner

        def run(size: int) -> Callable[[], Any]:
            pixels = random_pixels(network.model, facts.image_size, size).to(self._device, network.model.dtype)
            return build(network.model, pixels)

        return _Runnable(run, weights=network.weights)

    def _in_onnxruntime(self, source: ModelSource, model: PreTrainedModel, facts: ModelFacts, dtype: str) -> _Runnable:
        if self._on_gpu:
            raise UserError("ONNX files are timed on the CPU only: choose the device cpu.")
        if dtype != "float32":
            raise UserError(f"ONNX files are exported in float32 only, not in {dtype}.")
        folder = self._place / str(len(list(self._place.iterdir())))
        folder.mkdir()
        file = folder / "model.onnx"
        with _without_messages():
            export_onnx(source.folder(model, folder / "model"), file)
        session = onnx_runner(file, self._threads)

        def run(size: int) -> Callable[[], Any]:
            pixels = random_pixels(model, facts.image_size, size)
            return lambda: session(pixels)

        return _Runnable(run, onnx_file=str(file))

    # ---- times and memory ----

    def _warm_up(self, key: Configuration, runnable: _Runnable) -> None:
        try:
            run = runnable.run(key.batch_size)
        except Exception as error:  # such as too little memory for the pixels
            self._problems[key] = first_line(error)
            return
        self.seconds_per_round += self.rounds.add(key, run)
        if key in self.rounds.timings and self._memory and self._on_gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with torch.inference_mode():
                run()
            torch.cuda.synchronize()
            self._peaks[key] = runnable.weights + torch.cuda.max_memory_allocated() - before

    def _measure_memory(
        self, source: ModelSource, facts: ModelFacts, keys: Sequence[Configuration], file: str | None
    ) -> None:
        by_size = {key.batch_size: key for key in keys if key in self.rounds.timings}
        if not by_size:
            return
        task = MemoryTask(
            source=asdict(source),
            backend=keys[0].backend,
            dtype=keys[0].dtype,
            batch_sizes=tuple(sorted(by_size)),
            image_size=facts.image_size,
            threads=self._threads,
            onnx_file=file,
        )
        peaks, problem = cpu_peaks(task)
        for size, key in by_size.items():
            if size in peaks:
                self._peaks[key] = peaks[size]
            else:
                self._memory_problems[key] = problem

    def rows(self) -> list[BenchmarkRow]:
        """Return a row for each configuration, in the order of models and settings."""
        problems = self._problems | self.rounds.problems
        return [self._row(key, self.rounds.timings.get(key), problems.get(key)) for key in self._keys]

    def _row(self, key: Configuration, timing: Timing | None, problem: str | None) -> BenchmarkRow:
        found: dict[str, Any] = {}
        if timing is not None:
            many = len(timing.seconds) >= CALLS_OF_P95
            found = {
                "images_per_second": statistics.median(timing.rates),
                "images_per_second_rounds": timing.rates,
                "latency_ms_p50": 1000 * float(np.quantile(timing.seconds, 0.5)),
                "latency_ms_p95": 1000 * float(np.quantile(timing.seconds, 0.95)) if many else None,
                "batches": len(timing.seconds),
                "peak_memory_bytes": self._peaks.get(key),
                "memory_problem": self._memory_problems.get(key),
            }
        return BenchmarkRow(**asdict(key), **found, problem=problem)


@dataclass(frozen=True)
class _Network:
    model: PreTrainedModel
    weights: int


@contextmanager
def _without_messages() -> Iterator[None]:
    """Silence the messages of an export, which concern a file that is not kept."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)
