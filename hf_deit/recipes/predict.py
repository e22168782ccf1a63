"""Prediction of the most probable classes of images by a saved model, as `hf-deit predict` does it.

Which images are meant by folders, patterns, tables and data sets is the subject of inputs.py. The command starts faster than a
pipeline of transformers, because it imports no data set, no metric and no trainer (tests/test_import_graph.py holds this;
benchmarks/bench_startup.py measures it).
"""

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from ..data.images import read_image
from ..errors import DataError, RecipeError, UserError
from ..files import check_place, staged_files
from ..losses import ProblemType
from ..models.loading import load_model, load_processor, refuse_other_channels
from .inputs import Failure, InputImage

BATCH_SIZE = 32
# A class of a multi-label model is predicted above this probability.
THRESHOLD = 0.5
_FIRST_COLUMNS = ("file", "label", "prediction", "score")
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
    """

    file: str
    label: str | None
    probabilities: tuple[float, ...]

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

    Raises:
        UserError: The model or its image processor cannot be read, or the model does not take images with 3 channels.
    """

    def __init__(self, name_or_path: str):
        self.model, self.processor = load_model(name_or_path).eval(), load_processor(name_or_path)
        refuse_other_channels(self.model, f"The model {name_or_path}")
        config = self.model.config
        self.class_names = [config.id2label[index] for index in range(config.num_labels)]
        self.multi_label = config.problem_type == ProblemType.MULTI_LABEL

    def predictions(
        self, inputs: Iterable[InputImage | Failure], batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction | Failure]:
        """Yield a `Prediction` for each image that can be read, in order, and a `Failure` for each other input.

        Images are read in threads. An image that is predicted alone has the same bits as one that the model is called with by hand;
        another batch size changes its probabilities in the last bits only (below 1e-5).

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
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS)) as threads:
            while batch := list(islice(inputs, batch_size)):
                read = list(threads.map(self.pixels, batch))
                tensors = [pixels for pixels in read if not isinstance(pixels, Failure)]
                rows = iter(self._probabilities(tensors))
                for image, pixels in zip(batch, read, strict=True):
                    if isinstance(image, Failure) or isinstance(pixels, Failure):
                        yield pixels
                    else:
                        yield _prediction(image.file, image.label, next(rows))

    def pixels(self, image: InputImage | Failure) -> Tensor | Failure:
        """Return the pixel values of an image, `(1, channels, height, width)`; a `Failure` if it cannot be read."""
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
            return self.processor(upright, return_tensors="pt")["pixel_values"]
        except Exception as error:  # the image processor of any model
            return Failure(image.file, f"cannot be prepared by the model's image processor: {error}")

    @torch.no_grad()
    def _probabilities(self, tensors: Sequence[Tensor]) -> list[list[float]]:
        if not tensors:
            return []
        # A processor that neither crops nor resizes to one size gives images of several sizes.
        same_size = len({pixels.shape for pixels in tensors}) == 1
        batches = [torch.cat(list(tensors))] if same_size else list(tensors)
        try:
            logits = torch.cat([self.model(pixel_values=pixels).logits.float() for pixels in batches])
        except ValueError as error:  # of models that take images of one size
            raise unusable_size(tensors[0], error) from error
        return (logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)).tolist()

    # ---- rows of a table ----

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the rows: file, label, prediction, score, and a probability for each class."""
        counts = Counter(self.class_names)
        names: dict[str, None] = {}
        for index, name in enumerate(self.class_names):
            column = f"p_{name}" if counts[name] == 1 else f"p_{name}_{index}"
            while column in names:
                column += "_"
            names[column] = None
        return [*_FIRST_COLUMNS, *names]

    def row(self, found: Prediction) -> dict[str, Any]:
        """Return the row of a prediction.

        `prediction` is the most probable class and `score` its probability. For a multi-label model `prediction` holds all classes
        above 0.5, the most probable first, with `;` between them; `score` is the largest probability, whether or not above 0.5.
        """
        best = found.best(self.class_names, len(self.class_names))
        above = [name for name, probability in best if probability > THRESHOLD]
        prediction = ";".join(above) if self.multi_label else best[0][0]
        return dict(
            zip(self.columns, [found.file, found.label, prediction, best[0][1], *found.probabilities], strict=True)
        )


def _prediction(file: str, label: str | None, probabilities: list[float]) -> Prediction | Failure:
    if not all(0 <= probability <= 1 for probability in probabilities):  # NaN fails as well
        return Failure(file, "has no prediction: the outputs of the model are not finite")
    return Prediction(file, label, tuple(probabilities))


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


# ---- files ----


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
        csv_file: CSV with a header, in UTF-8; an unknown label is empty. None to write none.
        parquet_file: The same columns as parquet: texts, and probabilities as float64. None to write none.
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
        writer.writerow(columns)
        yield lambda row: writer.writerow([row[column] for column in columns])


@contextlib.contextmanager
def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    texts = _FIRST_COLUMNS[:3]
    schema = pyarrow.schema([(name, pyarrow.string() if name in texts else pyarrow.float64()) for name in columns])
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
