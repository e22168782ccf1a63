"""The table of a model's predictions: labels and probabilities of every image as arrays, from which all figures are computed.

recipes/predict.py computes the predictions, and writes the same rows to files.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.labels import has_label
from ..data.sources import Source
from ..recipes.inputs import Failure, InputImage
from ..recipes.predict import Prediction, Predictor

logger = logging.getLogger(__name__)

# Names of the columns of probabilities, in the order in which they are shown.
PREDICTION, TEACHER = "prediction", "teacher"
HEAD_TITLES = {
    PREDICTION: "prediction",
    "cls": "class head",
    "distillation": "distillation head",
    TEACHER: "teacher",
}
_NO_LABEL = -1


@dataclass
class ImageTable:
    """The predictions of one split.

    Args:
        class_names: Names of the classes, in index order, each different.
        split: Name of the split.
        items: The images, as a `Source` holds them.
        files: Name of each image.
        labels: Class index of each image, -1 for none, `(images,)`; for multi-label data zeros and ones, -1 for none,
            `(images, classes)`.
        probabilities: Probability of each class by "prediction", "cls", "distillation" and "teacher", each `(images, classes)` in
            float64.
        embeddings: Embedding of each image in float16, `(images, width)`, or None.
        failures: Images without a prediction.
        all_images: Number of images of the split, of which the table may hold a part.
        seconds: Time that the predictions took.
    """

    class_names: list[str]
    split: str
    items: list[Any]
    files: list[str]
    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    embeddings: np.ndarray | None = None
    failures: list[Failure] = field(default_factory=list)
    all_images: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.files)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several classes."""
        return self.labels.ndim == 2

    @property
    def labelled(self) -> np.ndarray:
        """Whether each image has a label, `(images,)`."""
        return (self.labels[:, 0] if self.multi_label else self.labels) != _NO_LABEL

    @property
    def heads(self) -> list[str]:
        """Names of the heads of the model: "prediction" and, for two heads, "cls" and "distillation"."""
        return [name for name in self.probabilities if name != TEACHER]

    def predicted(self, name: str = PREDICTION) -> np.ndarray:
        """Return the most probable class of each image, `(images,)`."""
        return self.probabilities[name].argmax(axis=1)

    def confidence(self, name: str = PREDICTION) -> np.ndarray:
        """Return the probability of the most probable class of each image, `(images,)`."""
        return self.probabilities[name].max(axis=1)

    def rows(self, chosen: np.ndarray) -> "ImageTable":
        """Return the table of some images, by their indices."""
        chosen = np.asarray(chosen, dtype=int)
        return ImageTable(
            self.class_names,
            self.split,
            [self.items[index] for index in chosen],
            [self.files[index] for index in chosen],
            self.labels[chosen],
            {name: values[chosen] for name, values in self.probabilities.items()},
            None if self.embeddings is None else self.embeddings[chosen],
            self.failures,
            self.all_images,
            self.seconds,
        )


def evenly(count: int, most: int | None) -> list[int]:
    """Return the indices of at most `most` of `count` things, evenly spaced."""
    if most is None or most >= count:
        return list(range(count))
    return [number * count // most for number in range(most)]


def label_text(label: Any, class_names: Sequence[str]) -> str | None:
    """Return a label of a `Source` as text, with `;` between several classes; None if the image has no label."""
    if not has_label(label):
        return None
    if isinstance(label, int):
        return class_names[label]
    return ";".join(name for name, flag in zip(class_names, label, strict=True) if flag)


def predict_source(
    predictor: Predictor,
    source: Source,
    class_names: Sequence[str],
    *,
    batch_size: int,
    most_images: int | None = None,
    seconds: float | None = None,
    add_row: Callable[[Prediction], None] | None = None,
    show: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> ImageTable:
    """Predict the images of a source.

    Args:
        predictor: The model.
        source: Images whose labels are class indices of the model.
        class_names: Names of the classes, each different.
        batch_size: Number of images at a time.
        most_images: Largest number of images, which are then evenly spaced. None for all.
        seconds: Time after which no further image is predicted. None for no limit. The images are then predicted in a shuffled order,
            so that those that are reached are a fair sample.
        add_row: Function that gets each `Prediction`.
        show: Function that shows the progress of an iterable.

    Returns:
        The table, in the order of the source.
    """
    started = time.monotonic()
    order = np.asarray(evenly(len(source), most_images), dtype=int)
    if seconds is not None:
        order = np.random.default_rng(0).permutation(order)
    inputs = (_input(source, int(index), class_names) for index in order)
    kept: list[int] = []
    files: list[str] = []
    values: dict[str, list[np.ndarray]] = {}
    embeddings: list[np.ndarray] = []
    failures: list[Failure] = []
    predictions = show(_limited(predictor.predictions(inputs, batch_size), started, seconds))
    for index, prediction in zip(order, predictions, strict=False):
        if isinstance(prediction, Failure):
            failures.append(prediction)
            continue
        kept.append(int(index))
        files.append(prediction.file)
        for name, row in {PREDICTION: prediction.probabilities, **prediction.others}.items():
            values.setdefault(name, []).append(
                np.asarray(row, dtype=np.float32)
            )  # exact: the model computes in float32
        if prediction.embedding is not None:
            embeddings.append(prediction.embedding)
        if add_row is not None:
            add_row(prediction)
    places = np.argsort(kept, kind="stable")
    probabilities = {name: np.stack(rows)[places] for name, rows in values.items()}
    kept = [kept[place] for place in places]
    return ImageTable(
        list(class_names),
        source.split_name or "images",
        [source.items[index] for index in kept],
        [files[place] for place in places],
        _labels(source, kept, len(class_names) if predictor.multi_label else None),
        {name: rows.astype(_dtype(rows)) for name, rows in probabilities.items()},
        np.stack(embeddings)[places] if embeddings else None,
        failures,
        len(source),
        time.monotonic() - started,
    )


# Above this number of probabilities, they stay in float32.
_MANY = 20_000_000


def _dtype(rows: np.ndarray) -> type:
    return np.float32 if rows.size > _MANY else np.float64


def _limited(found: Iterable[Any], started: float, seconds: float | None) -> Iterator[Any]:
    for prediction in found:
        yield prediction
        if seconds is not None and time.monotonic() - started > seconds:
            return


def _input(source: Source, index: int, class_names: Sequence[str]) -> InputImage:
    item = source.items[index]
    if isinstance(item, str):
        file = item
    else:
        file = f"{source.name}, row {index}" + (f": {item['path']}" if item.get("path") else "")
    return InputImage(item, file, label_text(source.labels[index], class_names))


def _labels(source: Source, kept: Sequence[int], classes: int | None) -> np.ndarray:
    if classes is None:
        labels = np.asarray([source.labels[index] for index in kept], dtype=np.int64)
    else:
        none = (_NO_LABEL,) * classes
        rows = [source.labels[index] if has_label(source.labels[index]) else none for index in kept]
        labels = np.asarray(rows, dtype=np.int64).reshape(len(rows), classes)
    labels[labels < 0] = _NO_LABEL
    return labels
