"""Accuracy against throughput: models timed side by side on one machine, as `hf-deit benchmark` does it.

benchmark_models.py knows the models, benchmark_measurements.py runs all configurations (benchmark_timing.py: times,
benchmark_memory.py: memory on a CPU), benchmark_result.py is the result, and benchmark_files.py writes it.
"""

import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback

from ..data.layouts import Selection
from ..data.tables import Columns
from ..errors import UserError, listed
from ..models.loading import load_model
from ..recipes.api import given_columns
from ..recipes.evaluate import check_evaluation, evaluate
from ..trainer.environment import is_installed
from .benchmark_files import check_out, write_benchmark
from .benchmark_measurements import DTYPES, Measurements
from .benchmark_models import ModelSource, facts_of, published_sources, saved_sources
from .benchmark_result import BenchmarkModel, BenchmarkResult, MeasuredAccuracy, token_costs
from .benchmark_timing import BACKENDS, COMPILED, ONNX, many_compiled_models
from .measures import wilson_interval

if TYPE_CHECKING:
    from ..recipes.api import StrPath

logger = logging.getLogger(__name__)

BATCH_SIZES, ROUNDS = (1, 32), 7
_DATA_FIELDS = ("split", "columns", "selection", "class_names")
# A function that shows progress: steps that are done, all steps, and what is measured now.
Show = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What a benchmark measures; see `benchmark`."""

    models: Sequence[str] = ()
    data: str | None = None
    published: Sequence[str] = ()
    batch_sizes: Sequence[int] = BATCH_SIZES
    dtypes: Sequence[str] = DTYPES[:1]
    backends: Sequence[str] = BACKENDS
    rounds: int = ROUNDS
    threads: int | None = None
    device: str | None = None
    memory: bool = True
    split: str | None = None
    columns: Columns = field(default_factory=Columns)
    selection: Selection = field(default_factory=Selection)
    class_names: str | None = None

    def check(self) -> list[ModelSource]:
        """Check all fields and models, before anything is measured, and return the sources of the models.

        Raises:
            UserError: A value is invalid, a model cannot be read, or the data do not match a model.
        """
        _check_choices("dtypes", self.dtypes, DTYPES)
        _check_choices("backends", self.backends, BACKENDS)
        sizes = list(self.batch_sizes)
        if not sizes or len(set(sizes)) < len(sizes) or any(type(size) is not int or size < 1 for size in sizes):
            raise UserError(f"batch_sizes={listed(sizes, str)}: give whole numbers of at least 1, each once.")
        for name in ("rounds", "threads"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"{name}={value}: give a whole number of at least 1.")
        self._check_device()
        sources = saved_sources(self.models) + published_sources(self.published)
        if not sources:
            raise UserError("No models are given. Name at least one model, or give published architectures.")
        self._check_data()
        for source in sources:
            self._check_model(source)
        return sources

    def _check_device(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise UserError(f"device={self.device}: choose cpu or cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: PyTorch finds no CUDA device here. Choose cpu, or leave the device out.")

    def _check_data(self) -> None:
        defaults = BenchmarkSettings()
        if self.data is None:
            unused = [name for name in _DATA_FIELDS if getattr(self, name) != getattr(defaults, name)]
            if unused:
                raise UserError(
                    f"{unused[0]}={getattr(self, unused[0])}: this concerns the data, and no data are given. Give data too, "
                    "or leave it out."
                )
        elif not self.models:
            raise UserError(
                f"data={self.data}: no trained model is given whose accuracy could be measured. The published architectures have "
                "random weights here. Name a model, or leave the data out."
            )

    def _check_model(self, source: ModelSource) -> None:
        if source.path is None:
            return
        if self.data is None:
            load_model(source.path, with_weights=False)
        else:
            check_evaluation(source.path, self.data, **self.data_fields())

    def data_fields(self) -> dict[str, Any]:
        """Return the fields that concern the data, as keyword arguments of `evaluate`."""
        return {name: getattr(self, name) for name in _DATA_FIELDS}


def _check_choices(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    wrong = [value for value in given if value not in known]
    if wrong or not given or len(set(given)) < len(given):
        problem = f"{wrong[0]!r} is unknown" if wrong else "each value is given once, and at least one"
        raise UserError(f"{name}={' '.join(given)}: {problem}. Choose from {', '.join(known)}.")


class Benchmark:
    """A benchmark whose settings are checked.

    Args:
        settings: What is measured.
        show: Function that shows progress.

    Raises:
        UserError: As `BenchmarkSettings.check`.
    """

    def __init__(self, settings: BenchmarkSettings, show: Show | None = None):
        self.settings = settings
        self.sources = settings.check()
        self.device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.threads = settings.threads or torch.get_num_threads()
        self._show = show or (lambda done, steps, text: None)
        self._done = 0
        keys = len(self.sources) * len(settings.backends) * len(settings.dtypes) * len(settings.batch_sizes)
        evaluated = 0 if settings.data is None else len(settings.models)
        self._steps = evaluated + keys * (1 + settings.rounds)

    def run(self) -> BenchmarkResult:
        """Measure everything.

        Raises:
            UserError: A model cannot be loaded or evaluated, or no configuration can be run.
        """
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        if load is not None and load > 0.5 * (os.cpu_count() or 1):
            logger.warning(
                "The machine is busy (load %.1f on %d processors): times are longer than on an idle machine, and vary more.",
                load,
                os.cpu_count() or 1,
            )
        # A model that does not run at all is refused before the others are measured.
        facts = {source.name: facts_of(source, source.load()) for source in self.sources}
        accuracies = {source.name: self._accuracy(source) for source in self.sources}
        compiling = many_compiled_models() if COMPILED in self.settings.backends else nullcontext()
        with _threads(self.threads), tempfile.TemporaryDirectory() as place, compiling:
            measured = self._measurements(Path(place))
            for source in self.sources:
                measured.prepare(source, facts[source.name])
            self._run_rounds(measured)
        models = [
            BenchmarkModel(
                **asdict(facts[source.name]),
                name=source.name,
                path=source.path,
                paper=source.paper,
                accuracy=accuracies[source.name],
            )
            for source in self.sources
        ]
        rows = measured.rows()
        if all(row.problem for row in rows):
            raise UserError(f"No configuration could be run. The first one, {rows[0].title}: {rows[0].problem}")
        return BenchmarkResult(models, rows, token_costs(models, rows), self._environment(load))

    def _step(self, text: str) -> None:
        self._show(self._done, self._steps, text)
        self._done += 1

    def _measurements(self, place: Path) -> Measurements:
        settings = self.settings
        return Measurements(
            backends=settings.backends,
            dtypes=settings.dtypes,
            batch_sizes=settings.batch_sizes,
            threads=self.threads,
            device=self.device,
            memory=settings.memory,
            place=place,
            begin=self._step,
        )

    def _run_rounds(self, measured: Measurements) -> None:
        rounds, count = self.settings.rounds, len(measured.rounds.timings)
        self._steps = self._done + rounds * count
        logger.info(
            "%d configuration(s) in %d rounds, about %.0f s.", count, rounds, rounds * measured.seconds_per_round
        )
        for number in range(rounds):
            for key in measured.rounds.measure(number):
                self._step(f"round {number + 1} of {rounds}: {key.model}")

    def _accuracy(self, source: ModelSource) -> MeasuredAccuracy | None:
        if self.settings.data is None or source.path is None:
            return None
        self._step(f"{source.name}: accuracy")

        def silence(trainer: Any) -> None:
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)

        result = evaluate(source.path, self.settings.data, **self.settings.data_fields(), prepare=silence)
        metrics = result["metrics"]
        images = sum(entry["images"] for entry in result["per_class"].values())
        single = "accuracy" in metrics
        name = "accuracy" if single else "mean_average_precision"
        value, heads = metrics[name], (f"cls_{name}", f"distillation_{name}")
        return MeasuredAccuracy(
            metric="top-1" if single else "mean average precision",
            percent=100 * value,
            interval=tuple(100 * end for end in wilson_interval(round(value * images), images)) if single else None,
            heads={head.removesuffix(f"_{name}"): 100 * metrics[head] for head in heads if head in metrics},
            split=result["split"],
            images=images if single else None,
        )

    def _environment(self, load: float | None) -> dict[str, Any]:
        settings = self.settings
        packages = ["torch", "transformers"]
        packages += ["onnxruntime"] if ONNX in settings.backends and is_installed("onnxruntime") else []
        return {
            "device": str(self.device),
            "processor": torch.cuda.get_device_name() if self.device.type == "cuda" else _processor(),
            "threads": self.threads,
            "load_average_at_start": load,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            "rounds": settings.rounds,
            "batch_sizes": list(settings.batch_sizes),
            "dtypes": list(settings.dtypes),
            "backends": list(settings.backends),
            "data": settings.data,
            "memory": _memory_method(self.device, settings.memory),
        }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_method(device: torch.device, measured: bool) -> str | None:
    if not measured:
        return None
    if device.type == "cuda":
        return "largest memory that PyTorch's allocator gave out: weights and activations"
    return (
        "largest resident memory of a process of its own while it runs batches, minus that of the same process before it loaded "
        "the model: weights, activations and what the libraries keep"
    )


def benchmark(
    models: "StrPath | Sequence[StrPath]" = (),
    *,
    data: "StrPath | None" = None,
    published: str | Sequence[str] = (),
    out: "StrPath | None" = None,
    batch_sizes: int | Sequence[int] = BATCH_SIZES,
    dtypes: str | Sequence[str] = DTYPES[:1],
    backends: str | Sequence[str] = BACKENDS,
    rounds: int = ROUNDS,
    threads: int | None = None,
    device: str | None = None,
    memory: bool = True,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    data_config: str | None = None,
    data_revision: str | None = None,
    split_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    class_names: "StrPath | None" = None,
) -> BenchmarkResult:
    """Measure throughput, latency, memory and accuracy of models side by side, as `hf-deit benchmark` does.

    A configuration that cannot be run (for example because a package is missing) has a row that states the reason.

    Args:
        models: Folders or Hub names of image classifiers, one or several.
        data: Data on which the accuracy of the models is measured, as for `evaluate`. Default: no accuracy is measured.
        published: Architectures of the paper that are timed too, plain and distilled, with random weights: "tiny", "small", "base",
            "base_384". The paper's ImageNet accuracy is stated beside them.
        out: New or empty folder for benchmark.md, benchmark.json, and the figure as benchmark.png and benchmark.svg. Default: nothing
            is written.
        batch_sizes: Numbers of images per batch.
        dtypes: Data types of weights and activations: "float32", "bfloat16", "float16".
        backends: Ways to run a model: "eager" (PyTorch), "compiled" (`torch.compile`), "onnx" (an exported file in onnxruntime). The figure
            shows the first one, with the first data type and the largest batch.
        rounds: Number of rounds. Every configuration takes its turn in each round.
        threads: Number of threads on the CPU. Default: that of PyTorch.
        device: "cpu" or "cuda". Default: "cuda" if there is one.
        memory: Whether peak memory is measured. On a CPU this starts a process for each model, backend and data type.
        split: Split of the data, as for `evaluate`. This and the following arguments need `data`.
        image_column: Image column of a table. The default of this and of the next two: as in the training of the model.
        label_column: Label column of a table, or several columns.
        label_separator: Text between the labels of a cell.
        data_config: Configuration of a data set on the Hub. The default of this and of the next four: as in the training of the
            model, if it was trained on the same data.
        data_revision: Branch, tag or commit of a data set on the Hub.
        split_column: Column of a table that names the split of each row, or "none".
        train_split: Name of the training split in the data.
        validation_split: Name of the validation split in the data, or "none".
        class_names: File that names the classes of the data. Default: that of the model's own run.

    Raises:
        UserError: A value is invalid, a model or the data cannot be read, they do not match, or no configuration can be run.
    """

    def several(value: Any, kinds: Any = str) -> tuple:
        return (value,) if isinstance(value, kinds) else tuple(value)

    settings = BenchmarkSettings(
        models=tuple(map(os.fspath, several(models, str | os.PathLike))),
        data=None if data is None else os.fspath(data),
        published=several(published),
        batch_sizes=several(batch_sizes, int),
        dtypes=several(dtypes),
        backends=several(backends),
        rounds=rounds,
        threads=threads,
        device=device,
        memory=memory,
        split=split,
        columns=given_columns(image_column, label_column, label_separator),
        selection=Selection(data_config, data_revision, split_column, train_split, validation_split),
        class_names=None if class_names is None else os.fspath(class_names),
    )
    target = None if out is None else check_out(os.fspath(out))
    result = Benchmark(settings).run()
    if target is not None:
        write_benchmark(target, result)
    return result
