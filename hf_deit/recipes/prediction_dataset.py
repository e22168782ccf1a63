"""Predictions as a `datasets.Dataset`, with the columns of the parquet file that `hf-deit predict` writes."""

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from .predict import EMBEDDING, TEACHER_VIEWS, Prediction, Predictor, shown

_TEXTS = ("file", "label", "prediction")


def prediction_dataset(predictor: Predictor, predictions: Iterable[Prediction]) -> datasets.Dataset:
    """Write the rows of predictions to a temporary Arrow file, and return it as a data set.

    The memory does not grow with the number of rows. The file is deleted when the process ends.

    Args:
        predictor: The predictor, which knows the columns.
        predictions: Predictions of this predictor.
    """
    features = {name: datasets.Value("string" if name in _TEXTS else "float64") for name in predictor.columns}
    if TEACHER_VIEWS in features:
        features[TEACHER_VIEWS] = datasets.Value("int64")
    if EMBEDDING in features:
        features[EMBEDDING] = datasets.List(datasets.Value("float16"))
    folder = tempfile.mkdtemp(prefix="hf_deit-predictions-")
    try:
        path = str(Path(folder) / "predictions.arrow")
        with ArrowWriter(path=path, features=datasets.Features(features)) as writer:
            for prediction in predictions:
                writer.write({**predictor.row(prediction), "file": shown(prediction.file)})
            count, _ = writer.finalize()
        empty = {name: [] for name in features}
        dataset = (
            datasets.Dataset.from_file(path)
            if count
            else datasets.Dataset.from_dict(empty, features=datasets.Features(features))
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Not earlier: a data set that is derived from this one reads the file too, and keeps its own files beside it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return dataset
