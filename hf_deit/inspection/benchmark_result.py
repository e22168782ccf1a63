"""Result of a benchmark: its models, its rows, and what the distillation token costs."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .benchmark_models import DISTILLED, PLAIN, ModelFacts, PaperAccuracy, same_size


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Accuracy of a model on the data, computed in float32 as by `evaluate`.

    Args:
        metric: "top-1" or "mean average precision".
        percent: The accuracy in percent.
        interval: Its 95 % interval in percent (Wilson); None for mean average precision.
        heads: Accuracy of each head in percent, for a model with two heads.
        split: The split that was evaluated.
        images: Number of images; None for multi-label data.
    """

    metric: str
    percent: float
    interval: tuple[float, float] | None
    heads: dict[str, float]
    split: str
    images: int | None


@dataclass(frozen=True)
class BenchmarkModel(ModelFacts):
    """A model of a benchmark.

    Args:
        name: Its name in tables and figures.
        path: Folder or Hub name, as it was given; None for an architecture of the paper, with random weights.
        paper: What the paper reports for the architecture.
        accuracy: What was measured; None without data.
    """

    name: str = ""
    path: str | None = None
    paper: PaperAccuracy | None = None
    accuracy: MeasuredAccuracy | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """A model in one configuration. Numbers are None if it could not be run.

    Args:
        model: Name of the model.
        backend: "eager", "compiled" or "onnx".
        dtype: Data type of weights and activations.
        batch_size: Number of images per batch.
        images_per_second: Median of the rounds.
        images_per_second_rounds: Each round. Position k of all rows is the same round, if no row has a `problem`.
        latency_ms_p50: Median time of a batch in milliseconds.
        latency_ms_p95: 95th percentile of these times; None for less than 20 batches.
        batches: Number of timed batches.
        peak_memory_bytes: Peak memory; None if it was not measured.
        problem: Why the configuration could not be run.
        memory_problem: Why the peak memory could not be measured.
    """

    model: str
    backend: str
    dtype: str
    batch_size: int
    images_per_second: float | None = None
    images_per_second_rounds: list[float] = field(default_factory=list)
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    batches: int = 0
    peak_memory_bytes: int | None = None
    problem: str | None = None
    memory_problem: str | None = None

    @property
    def setting(self) -> tuple[str, str, int]:
        """Return backend, data type and batch size."""
        return self.backend, self.dtype, self.batch_size

    @property
    def title(self) -> str:
        """Return the configuration as text."""
        return f"{self.model} ({self.backend}, {self.dtype}, batch {self.batch_size})"


@dataclass(frozen=True)
class TokenCost:
    """What the distillation token and its head cost: a distilled model beside a plain one of the same size.

    Args:
        plain: Name of the plain model.
        distilled: Name of the distilled model.
        backend: "eager", "compiled" or "onnx".
        dtype: Data type.
        batch_size: Number of images per batch.
        parameters: Additional parameters.
        gflops_ratio: GFLOPs of the distilled model, as a share of those of the plain one.
        throughput_ratio: Images per second of the distilled model, as a share of those of the plain one: median of the rounds.
        throughput_range: Smallest and largest ratio of a round.
        percent: Accuracy of the distilled model minus that of the plain one, in percentage points: measured, or the paper's.
    """

    plain: str
    distilled: str
    backend: str
    dtype: str
    batch_size: int
    parameters: int
    gflops_ratio: float
    throughput_ratio: float
    throughput_range: tuple[float, float]
    percent: float | None


def token_costs(models: Sequence[BenchmarkModel], rows: Sequence[BenchmarkRow]) -> list[TokenCost]:
    """Compare each distilled model with each plain one that differs only in tokens and heads, in every configuration that both ran.

    A published architecture and a saved model are not compared: they have other classes and weights.
    """
    found = []
    for plain in (model for model in models if model.kind == PLAIN):
        for other in (model for model in models if model.kind == DISTILLED):
            if not same_size(plain, other) or (plain.path is None) != (other.path is None):
                continue
            settings = {row.setting: row for row in rows if row.model == plain.name and row.problem is None}
            for row in rows:
                base = settings.get(row.setting)
                if row.model == other.name and row.problem is None and base is not None:
                    found.append(_cost(plain, other, base, row))
    return found


def _cost(plain: BenchmarkModel, other: BenchmarkModel, base: BenchmarkRow, row: BenchmarkRow) -> TokenCost:
    pairs = zip(base.images_per_second_rounds, row.images_per_second_rounds, strict=True)
    ratios = [distilled / alone for alone, distilled in pairs]
    return TokenCost(
        plain=plain.name,
        distilled=other.name,
        backend=row.backend,
        dtype=row.dtype,
        batch_size=row.batch_size,
        parameters=other.parameters - plain.parameters,
        gflops_ratio=other.gflops / plain.gflops,
        throughput_ratio=statistics.median(ratios),
        throughput_range=(min(ratios), max(ratios)),
        percent=_gain(plain, other),
    )


def _gain(plain: BenchmarkModel, other: BenchmarkModel) -> float | None:
    if plain.paper is not None and other.paper is not None:
        return other.paper.top1 - plain.paper.top1
    if plain.accuracy is None or other.accuracy is None:
        return None
    return other.accuracy.percent - plain.accuracy.percent


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of a benchmark.

    Args:
        models: The models.
        rows: A row for each model, backend, data type and batch size, also for those that could not be run.
        token_costs: Distilled models beside plain ones of the same size.
        environment: Device, processor, threads, versions and settings.
    """

    models: list[BenchmarkModel]
    rows: list[BenchmarkRow]
    token_costs: list[TokenCost]
    environment: dict[str, Any]

    @property
    def saved(self) -> list[BenchmarkModel]:
        """Return the models that were read from folders or the Hub."""
        return [model for model in self.models if model.path is not None]

    @property
    def published(self) -> list[BenchmarkModel]:
        """Return the architectures of the paper, with random weights."""
        return [model for model in self.models if model.path is None]

    @property
    def shown_setting(self) -> tuple[str, str, int]:
        """Return backend, data type and batch size of the figure: the first backend and data type, and the largest batch."""
        settings = self.environment
        return settings["backends"][0], settings["dtypes"][0], max(settings["batch_sizes"])

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `benchmark.json`."""
        return asdict(self)

    def __repr__(self) -> str:
        failed = sum(row.problem is not None for row in self.rows)
        text = f"BenchmarkResult({len(self.models)} models, {len(self.rows)} configurations"
        return f"{text}, {failed} of them could not be run)" if failed else f"{text})"


def threads_text(result: BenchmarkResult) -> str:
    """Return the number of threads as text, such as `1 thread`."""
    threads = result.environment["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}"
