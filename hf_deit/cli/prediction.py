"""The command `hf-deit predict`."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .common import add_teacher_cache, add_teacher_details, input_names, quick_imports

_DESCRIPTION = """\
Predict the classes of images. Give one or more of:

  FILE          an image
  FOLDER        all images in it and in the folders in it, or with --split those of one split
  'PATTERN'     such as 'photos/**/*.jpg'
  TABLE         .csv, .tsv, .jsonl or .parquet with a column of images
  DATASET       a folder saved by datasets, or with --split a name on the Hub
  -             names on standard input, one per line (or from find -print0)

Every readable image is predicted. Inputs that cannot be read are listed last, and the exit code is then 2."""


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="the most probable classes of images (several per image: above 50 %% it has the class)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("model", help="folder or Hub name of the model")
    predict.add_argument("images", nargs="+", help="images, folders, patterns, tables, data sets, or -")
    predict.add_argument(
        "--top_k", type=int, default=5, help="number of classes printed per image (default: %(default)s)"
    )
    predict.add_argument(
        "--split",
        help="split of the folders and data sets to predict (default: all images of a folder, the only split)",
    )
    predict.add_argument(
        "--image_column", help="column of images in tables and data sets (default: found by type or usual name)"
    )
    predict.add_argument(
        "--label_column",
        nargs="+",
        help="column of labels, or one column of 0 and 1 for each class (default: found by type or usual name, if there is one)",
    )
    predict.add_argument("--batch_size", type=int, default=32, help="number of images at a time (default: %(default)s)")
    predict.add_argument("--csv", metavar="FILE", help="write the predictions to a CSV file instead of printing them")
    predict.add_argument(
        "--parquet", metavar="FILE", help="write the predictions to a parquet file instead of printing them"
    )
    predict.add_argument(
        "--teacher",
        help="folder, Hub name or package.module:factory of a teacher, whose probabilities are written beside those of the model",
    )
    add_teacher_cache(predict)
    add_teacher_details(predict)
    predict.add_argument(
        "--embeddings", action="store_true", help="write the class token of each image to the parquet file too"
    )
    predict.add_argument(
        "--calibrated",
        action="store_true",
        help="probabilities that match how often they are right, by calibration.json beside the model (hf-deit report makes it)",
    )
    predict.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help='answer "unknown" if the probability of the prediction is below P (a multi-label model predicts the classes that reach P)',
    )
    predict.add_argument(
        "--bf16",
        action="store_true",
        help="compute in bfloat16: faster on most GPUs, slower on many CPUs; probabilities change, mostly by less than 0.01",
    )
    predict.add_argument("--json", action="store_true", help="print JSON, also if a file is written")


def _predict(options: argparse.Namespace, fields: list[str]) -> None:
    with quick_imports():
        from ..data.tables import Columns
        from ..recipes.inputs import Failure, find_inputs
        from ..recipes.predict import (
            EMBEDDING,
            UNKNOWN,
            Predictor,
            check_embeddings,
            check_files,
            check_threshold,
            check_top_k,
            failed,
            prediction_files,
        )

    check_top_k(options.top_k)
    check_threshold(options.threshold)
    check_embeddings(options.embeddings, options.parquet)
    inputs = input_names(options.images)
    check_files(options.csv, options.parquet, inputs)
    columns = Columns(options.image_column, tuple(options.label_column or ()))
    predictor = Predictor(
        options.model,
        teacher=_teacher(options, inputs, columns),
        embeddings=options.embeddings,
        calibrated=options.calibrated,
        threshold=options.threshold,
        bf16=options.bf16,
    )
    found = predictor.predictions(
        find_inputs(inputs, predictor.class_names, options.split, columns), options.batch_size
    )

    failures, objects, predicted = [], [], 0
    to_files = options.csv is not None or options.parquet is not None
    with prediction_files(options.csv, options.parquet, predictor.columns) as add:
        for prediction in _with_progress(found, options.quiet) if to_files else found:
            if isinstance(prediction, Failure):
                failures.append(prediction)
                continue
            predicted += 1
            best = prediction.best(predictor.class_names, options.top_k)
            if not (options.json or to_files):
                unknown = options.threshold is not None and predictor.decided(prediction) == UNKNOWN
                _print_prediction(prediction.file, best, unknown)
                continue
            row = predictor.row(prediction)
            add(row)
            if options.json:
                embedding = {} if prediction.embedding is None else {EMBEDDING: prediction.embedding.tolist()}
                objects.append({"image": prediction.file, **row, **embedding, "predictions": best})
        if to_files and failures and not predicted:
            raise failed(failures, predicted)  # files of the same name keep earlier predictions
    if options.json:
        print(json.dumps(objects))
    for file in (options.csv, options.parquet):
        if file is not None:
            print(f"Written to {file}: {predicted} predictions", file=sys.stderr if options.json else sys.stdout)
    if failures:
        sys.stdout.flush()  # the predictions come before the failures also where both go to one file
        raise failed(failures, predicted)


def _teacher(options: argparse.Namespace, inputs: list[Any], columns: Any) -> Any:
    """Return the teacher or the cached teacher that the options name; None if they name none.

    Raises:
        UserError: The teacher cannot be used, or an option has no effect without a teacher.
    """
    names = ("teacher", "teacher_cache", "teacher_view_size", "teacher_problem_type")
    if all(getattr(options, name) is None for name in names):
        return None
    from ..recipes.cached_prediction_teacher import load_teacher

    return load_teacher(
        options.model,
        teacher=options.teacher,
        teacher_cache=options.teacher_cache,
        view_size=options.teacher_view_size,
        problem_type=options.teacher_problem_type,
        inputs=inputs,
        columns=columns,
    )


def _print_prediction(file: str, best: list[tuple[str, float]], unknown: bool) -> None:
    from ..recipes.predict import UNKNOWN, shown

    named = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best)
    print(f"{shown(file)}: " + (f"{UNKNOWN} ({named})" if unknown else named))


def _with_progress(predictions: Iterable[Any], quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    hidden = True if quiet else None  # None: shown on a terminal only
    return iter(tqdm(predictions, unit=" images", disable=hidden, leave=False))
