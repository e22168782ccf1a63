"""Prediction of the most probable classes of images by a saved model, as `hf-deit predict` does it.

Which images are meant by folders, patterns, tables and data sets is the subject of inputs.py; calibration.json is that of
calibration_file.py, what a teacher sees that of prediction_teacher.py, and a cached teacher that of cached_prediction_teacher.py. The command starts faster than a pipeline of transformers, because it imports no data set, no metric and no trainer (tests/test_import_graph.py holds this;
benchmarks/bench_startup.py measures it).
"""

import contextlib
import csv
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from ..data.images import read_image
from ..errors import DataError, RecipeError, UserError
from ..files import check_place, staged_files
from ..losses import ProblemType
from ..models.loading import load_model, load_processor, refuse_other_channels
from ..models.processor_pixels import pixel_function
from .calibration_file import read_temperatures
from .inputs import Failure, InputImage

if TYPE_CHECKING:
    from .cached_prediction_teacher import CachedPredictionTeacher
    from .prediction_teacher import PredictionTeacher

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
# A class of a multi-label model is predicted above this probability.
THRESHOLD = 0.5
_FIRST_COLUMNS = ("file", "label", "prediction", "score")
# Column of the embeddings, and the answer for an image whose score is below the threshold.
EMBEDDING, UNKNOWN = "embedding", "unknown"
# Column of the number of cached views of which the probabilities of a cached teacher are the mean.
TEACHER_VIEWS = "teacher_views"
# Prefixes of the heads of a model with two heads.
HEADS = ("cls", "distillation")
_CLASSIFIERS = ("cls_classifier", "classifier")
_PARQUET_MAGIC = b"PAR1"
_MAX_THREADS = 8
_ROWS_PER_GROUP = 1000


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image.

    Args:
        file: Name of the image.
        label: Its label as text, with `;` between several; None if it is not known.
        probabilities: Probability of each class, in index order.
        others: The same of each head of a model with two heads ("cls", "distillation") and of the teacher ("teacher"), if there are any.
        embedding: What the class head sees of the image, for a distilled or plain student the class token, in float16, `(width,)`. None
            if it was not requested.
        teacher_views: Number of cached views of which the teacher's probabilities are the mean; None without a cached teacher.
    """

    file: str
    label: str | None
    probabilities: tuple[float, ...]
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    embedding: np.ndarray | None = None
    teacher_views: int | None = None

    def best(self, class_names: Sequence[str], top_k: int) -> list[tuple[str, float]]:
        """Return names and probabilities of the `top_k` most probable classes, the most probable first."""
        probabilities = torch.tensor(self.probabilities)
        found = probabilities.topk(min(top_k, len(probabilities)))
        return [(class_names[index], self.probabilities[index]) for index in found.indices.tolist()]


class Predictor:
    """A saved model with its image processor.

    `class_names` are its classes in index order. `multi_label` is whether an image can have several classes: the probabilities are
    then sigmoids, one for each class.

    Args:
        name_or_path: Folder or Hub name of the model, as for `load_model`.
        teacher: Teacher whose probabilities are given too, for the classes of the model: one that is run, or a cached one. None for no
            teacher.
        embeddings: Whether to keep the embedding of each image.
        calibrated: Whether to divide the logits of the model by the temperatures in calibration.json beside it.
        threshold: Probability below which the prediction is "unknown". None: the prediction is the most probable class and, for a
            multi-label model, all classes above 0.5.
        bf16: Whether to compute in bfloat16 (autocast): faster on most GPUs, slower on many CPUs. The probabilities change,
            mostly by less than 0.01.
        device: Device of the model and the teacher.

    Raises:
        UserError: The model or its image processor cannot be read, or the model does not take images with 3 channels; or an option
            cannot be used with this model.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        teacher: "PredictionTeacher | CachedPredictionTeacher | None" = None,
        embeddings: bool = False,
        calibrated: bool = False,
        threshold: float | None = None,
        bf16: bool = False,
        device: str | torch.device = "cpu",
    ):
        check_threshold(threshold)
        self.model, self.processor = load_model(name_or_path).eval(), load_processor(name_or_path)
        refuse_other_channels(self.model, f"The model {name_or_path}")
        config = self.model.config
        self.class_names = [config.id2label[index] for index in range(config.num_labels)]
        self.multi_label = config.problem_type == ProblemType.MULTI_LABEL
        self.heads = tuple(name for name in HEADS if hasattr(self.model, f"{name}_classifier"))
        self.teacher = teacher
        self.threshold = threshold
        self.bf16 = bf16
        self.device = torch.device(device)
        self.model.to(self.device)
        self._own_pixels = pixel_function(self.processor)
        if teacher is not None:
            teacher.prepare(self.model, self.processor, self.device)
        self.temperatures = read_temperatures(name_or_path, self.heads) if calibrated else {}
        self._embeddings = _EmbeddingHook(self.model) if embeddings else None
        if threshold is not None and UNKNOWN in self.class_names:
            logger.warning(
                "The model has a class %r. With threshold=%s, images below the threshold get the same prediction; the column score "
                "tells them apart.",
                UNKNOWN,
                threshold,
            )

    def predictions(
        self, inputs: Iterable[InputImage | Failure], batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction | Failure]:
        """Yield a `Prediction` for each image that can be read, in order, and a `Failure` for each other input.

        Images are read in threads, the next batch while the model computes. The probabilities are those of plain transformers up
        to rounding: below 1e-6 for an image alone, below 1e-5 in a batch.

        Args:
            inputs: The images, as `find_inputs` yields them.
            batch_size: Number of images at a time, at least 1.

        Raises:
            RecipeError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise RecipeError(f"batch_size={batch_size}: it must be at least 1.")
        return self._predictions(iter(inputs), batch_size)

    def _predictions(self, inputs: Iterator[InputImage | Failure], batch_size: int) -> Iterator[Prediction | Failure]:
        for batch, read in self._read(inputs, batch_size):
            rows = iter(self._outputs([pixels for pixels in read if not isinstance(pixels, Failure)]))
            for image, pixels in zip(batch, read, strict=True):
                if isinstance(image, Failure) or isinstance(pixels, Failure):
                    yield pixels
                else:
                    found = _prediction(image.file, image.label, *next(rows))
                    if self._counts_views and isinstance(found, Prediction):
                        found = replace(found, teacher_views=pixels.view.views)
                    yield found

    def _read(
        self, inputs: Iterator[InputImage | Failure], batch_size: int
    ) -> Iterator[tuple[list[InputImage | Failure], "list[_Pixels | Failure]"]]:
        """Yield batches of inputs with their pixels. While one batch is used, the next is read in threads."""
        waiting: deque[tuple[list[InputImage | Failure], list[Future]]] = deque()
        threads = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS))
        try:
            for batch in iter(lambda: list(islice(inputs, batch_size)), []):
                waiting.append((batch, [threads.submit(self._pixels, image) for image in batch]))
                if len(waiting) > 1:
                    ready, pixels = waiting.popleft()
                    yield ready, [future.result() for future in pixels]
            while waiting:
                ready, pixels = waiting.popleft()
                yield ready, [future.result() for future in pixels]
        finally:  # also if the caller stops early
            threads.shutdown(cancel_futures=True)

    def pixels(self, image: InputImage | Failure) -> Tensor | Failure:
        """Return the pixel values of an image, `(1, channels, height, width)`; a `Failure` if it cannot be read."""
        read = self._pixels(image)
        return read if isinstance(read, Failure) else read.own

    def _pixels(self, image: InputImage | Failure) -> "_Pixels | Failure":
        """Return the pixel values of an image, `(1, channels, height, width)`, for the model and for the teacher."""
        if isinstance(image, Failure):
            return image
        try:
            upright = read_image(image.item, image.file)
        except DataError as error:
            cause = error.__cause__
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
            if isinstance(cause, UnidentifiedImageError):
                reason = "it is not an image in a format that Pillow reads"
            return Failure(image.file, f"cannot be read: {reason}")
        try:
            own = self._own_pixels(upright)[None]
        except Exception as error:  # the image processor of any model
            return Failure(image.file, f"cannot be prepared by the model's image processor: {error}")
        try:
            view = None if self.teacher is None else self.teacher.view(upright, image)
        except UserError:
            raise
        except Exception as error:  # as above: an image with which Pillow fails
            return Failure(image.file, f"cannot be prepared for the teacher: {error}")
        return view if isinstance(view, Failure) else _Pixels(own, view)

    @torch.inference_mode()
    def _outputs(self, read: "Sequence[_Pixels]") -> Iterator[tuple[dict[str, list[float]], np.ndarray | None]]:
        """Yield the probabilities of each image, by name ("" for the prediction), and its embedding."""
        if not read:
            return
        # A processor that neither crops nor resizes to one size gives images of several sizes.
        same_size = len({pixels.own.shape for pixels in read}) == 1
        batches = [read] if same_size else [[pixels] for pixels in read]
        found: dict[str, list[Tensor]] = {}
        embeddings: list[Tensor] = []
        for batch in batches:
            pixels = torch.cat([one.own for one in batch]).to(self.device)
            for name, logits in self._logits(pixels, [one.view for one in batch]).items():
                found.setdefault(name, []).append(logits)
            if self._embeddings is not None:
                embeddings.append(self._embeddings.read())
        columns = {name: self._probabilities(name, torch.cat(logits)) for name, logits in found.items()}
        kept = torch.cat(embeddings).cpu().numpy() if embeddings else [None] * len(read)
        for number in range(len(read)):
            yield {name: rows[number] for name, rows in columns.items()}, kept[number]

    def _logits(self, pixels: Tensor, views: Sequence[Any]) -> dict[str, Tensor]:
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                outputs = self.model(pixel_values=pixels)
        except ValueError as error:  # of models that take images of one size
            raise unusable_size(pixels, error) from error
        logits = {"": outputs.logits} | {name: outputs[f"{name}_logits"] for name in self.heads}
        if self.teacher is not None:
            logits["teacher"] = self.teacher.logits(pixels, views)
        return logits

    def _probabilities(self, name: str, logits: Tensor) -> list[list[float]]:
        logits = logits.float()
        if name in self.temperatures:
            logits = logits / self.temperatures[name]
        return (logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)).tolist()

    # ---- rows of a table ----

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the rows: file, label, prediction, score, and a probability for each class.

        The same probabilities of each head and of the teacher follow, with the prefixes `cls_`, `distillation_` and `teacher_`, for a
        cached teacher `teacher_views`, and the `embedding`.
        """
        counts = Counter(self.class_names)
        names: dict[str, None] = {}
        for prefix in ("", *(f"{name}_" for name in self._others)):
            for index, name in enumerate(self.class_names):
                column = f"{prefix}p_{name}" if counts[name] == 1 else f"{prefix}p_{name}_{index}"
                while column in names:
                    column += "_"
                names[column] = None
        return [*_FIRST_COLUMNS, *names, *self._last_columns]

    @property
    def _last_columns(self) -> list[str]:
        views = [TEACHER_VIEWS] if self._counts_views else []
        return [*views, *([EMBEDDING] if self._embeddings is not None else [])]

    @property
    def _counts_views(self) -> bool:
        return self.teacher is not None and self.teacher.counts_views

    @property
    def _others(self) -> tuple[str, ...]:
        return (*self.heads, *(["teacher"] if self.teacher is not None else []))

    def decided(self, found: Prediction) -> str:
        """Return the prediction of an image as text: see `row`."""
        best = found.best(self.class_names, len(self.class_names))
        if not self.multi_label:
            return best[0][0] if self.threshold is None or best[0][1] >= self.threshold else UNKNOWN
        if self.threshold is None:
            return ";".join(name for name, probability in best if probability > THRESHOLD)
        return ";".join(name for name, probability in best if probability >= self.threshold) or UNKNOWN

    def row(self, found: Prediction) -> dict[str, Any]:
        """Return the row of a prediction.

        `prediction` is the most probable class and `score` its probability. For a multi-label model `prediction` holds all classes
        above 0.5, the most probable first, with `;` between them; `score` is the largest probability, whether or not above 0.5.
        With a `threshold`, `prediction` is "unknown" if `score` is below it, and that of a multi-label model holds the classes that
        reach it.
        """
        others = [probability for name in self._others for probability in found.others[name]]
        values = [found.file, found.label, self.decided(found), max(found.probabilities), *found.probabilities, *others]
        last = {TEACHER_VIEWS: found.teacher_views, EMBEDDING: found.embedding}
        return dict(zip(self.columns, [*values, *(last[name] for name in self._last_columns)], strict=True))


class _Pixels(NamedTuple):
    """Pixel values of an image, `(1, channels, height, width)`, and what its teacher makes of it, if it does not see the same pixels."""

    own: Tensor
    view: Any


class _EmbeddingHook:
    """Keeps the input of a model's classifier, which for a student is its class token after the last normalisation.

    Raises:
        UserError: The model has no classifier of a usual name.
    """

    def __init__(self, model: torch.nn.Module):
        heads = (getattr(model, name, None) for name in _CLASSIFIERS)
        head = next((head for head in heads if isinstance(head, torch.nn.Module)), None)
        if head is None:
            raise UserError(
                f"The embeddings of a {type(model).__name__} are unknown: it has no module {' or '.join(_CLASSIFIERS)}. Leave out "
                "the embeddings."
            )
        self._name = type(model).__name__
        self._seen: Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: Any) -> None:
        self._seen = inputs[0].detach()

    def read(self) -> Tensor:
        """Return the embeddings of the last batch in float16, `(batch, width)`."""
        seen = self._seen
        if seen.ndim == 4:  # a feature map before the classifier pools it
            seen = seen.mean(dim=(2, 3))
        if seen.ndim != 2:
            raise UserError(f"The embeddings of a {self._name} are unknown: its classifier takes {tuple(seen.shape)}.")
        return seen.half()


def _prediction(
    file: str, label: str | None, probabilities: dict[str, list[float]], embedding: np.ndarray | None
) -> Prediction | Failure:
    for row in probabilities.values():
        if not all(0 <= probability <= 1 for probability in row):  # NaN fails as well
            return Failure(file, "has no prediction: the outputs of the model are not finite")
    others = {name: tuple(row) for name, row in probabilities.items() if name}
    return Prediction(file, label, tuple(probabilities[""]), others, embedding)


def unusable_size(pixels: Tensor, error: ValueError) -> UserError:
    """Return the error for a model that takes images of one size, and whose image processor makes images of another.

    Args:
        pixels: Pixel values of an image, `(…, height, width)`.
        error: Error of the model.
    """
    return UserError(
        f"The model cannot use images of {' × '.join(map(str, pixels.shape[-2:]))} pixels (height × width), as its "
        f"image processor makes them: {error} Correct size and crop_size in preprocessor_config.json."
    )


def failed(
    failures: Sequence[Failure], predicted: int, missing: str = "prediction", done: str = "predicted"
) -> DataError:
    """Return the error that lists the inputs without a prediction.

    Args:
        failures: These inputs, in order.
        predicted: Number of images with a prediction.
        missing: What the inputs do not have.
        done: What happened to the other images.
    """
    rows = "".join(f"\n  {shown(str(failure))}" for failure in failures)
    others = f"All others were {done}." if predicted else f"No image was {done}."
    return DataError(
        f"{len(failures)} of {len(failures) + predicted} image(s) and input(s) have no {missing}. {others}{rows}"
    )


def check_top_k(top_k: int) -> None:
    """Check the number of classes to show.

    Raises:
        UserError: It is below 1.
    """
    if top_k < 1:
        raise UserError(f"top_k={top_k}: it must be at least 1.")


def check_threshold(threshold: float | None) -> None:
    """Check the probability below which the prediction is "unknown".

    Raises:
        UserError: It is not between 0 and 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold}: it must be a probability between 0 and 1, for example 0.8.")


# ---- files ----


def check_embeddings(embeddings: bool, parquet_file: str | None) -> None:
    """Check that embeddings, which only a parquet file can hold, are written to one.

    Raises:
        UserError: No parquet file is given.
    """
    if embeddings and parquet_file is None:
        raise UserError(
            "embeddings: they are lists of numbers, which only a parquet file holds. Give --parquet FILE, or in Python "
            "as_dataset=True."
        )


def check_files(csv_file: str | None, parquet_file: str | None, inputs: Sequence[str]) -> None:
    """Check that the files of predictions can be written, and replace nothing but earlier predictions. Nothing is written.

    Raises:
        UserError: A file cannot be written, exists and holds anything but predictions, is one of the inputs, or is named twice.
    """
    given = {name: Path(file) for name, file in (("csv", csv_file), ("parquet", parquet_file)) if file is not None}
    for name, file in given.items():
        check_place(file)
        if not os.path.lexists(file):
            continue
        if not _holds_predictions(file):
            raise UserError(
                f"{name}={str(file)!r} exists, and is not a file of predictions that could be replaced: give the name of a new file."
            )
        if any(os.path.exists(text) and os.path.samefile(text, file) for text in inputs):
            raise UserError(f"{name}={str(file)!r} is one of the inputs and would be replaced: give another name.")
    if len({file.absolute() for file in given.values()}) < len(given):
        raise UserError(f"csv and parquet are both {csv_file!r}: give two names.")


def _holds_predictions(file: Path) -> bool:
    """Whether a file is empty, or holds predictions as CSV or parquet."""
    if not file.is_file():
        return False
    with open(file, "rb") as content:
        start = content.read(1024)
    if start.startswith(_PARQUET_MAGIC):
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import read_schema

        with contextlib.suppress(ArrowException):
            return tuple(read_schema(file).names[: len(_FIRST_COLUMNS)]) == _FIRST_COLUMNS
    return not start or start.startswith(",".join(_FIRST_COLUMNS).encode())


@contextlib.contextmanager
def prediction_files(
    csv_file: str | None, parquet_file: str | None, columns: Sequence[str]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that adds a row to the files. They are written under temporary names and renamed at the end.

    Args:
        csv_file: CSV with a header, in UTF-8, without embeddings; an unknown label is empty. None to write none.
        parquet_file: The same columns as parquet: texts, probabilities as float64, and the embedding as a list of float16. None to
            write none.
        columns: Names of the columns, those of `Predictor.columns`.
    """
    with contextlib.ExitStack() as stack:
        writers = []
        for file, writer in ((csv_file, _csv_rows), (parquet_file, _parquet_rows)):
            if file is not None:
                staging = stack.enter_context(staged_files(Path(file).absolute().parent))
                writers.append(stack.enter_context(writer(staging / Path(file).name, columns)))

        def add(row: Mapping[str, Any]) -> None:
            for write in writers:
                write(row)

        yield add


@contextlib.contextmanager
def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    # A file name that is not valid UTF-8 keeps its bytes.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        columns = [column for column in columns if column != EMBEDDING]
        writer.writerow(columns)
        yield lambda row: writer.writerow([row[column] for column in columns])


@contextlib.contextmanager
def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = dict.fromkeys(_FIRST_COLUMNS[:3], pyarrow.string())
    kinds |= {EMBEDDING: pyarrow.list_(pyarrow.float16()), TEACHER_VIEWS: pyarrow.int64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        rows.clear()

    def add(row: Mapping[str, Any]) -> None:
        rows.append({**row, "file": shown(row["file"])})
        if len(rows) == _ROWS_PER_GROUP:
            flush()

    with ParquetWriter(path, schema) as writer:
        yield add
        flush()


def shown(name: str) -> str:
    """Return a file name as text that can be printed: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
