"""The command `hf-deit report`."""

import argparse
from typing import Any

from .common import add_data_of_run, add_teacher_cache, add_teacher_details


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="look at a model: a page with its mistakes, confusions, calibration, probably wrong labels and duplicates",
        description="Write a report about a model: one HTML file that loads nothing from outside. It contains photographs of the data and is "
        "never uploaded.",
    )
    add = report.add_argument
    add("model", help="folder or Hub name of the model")
    add("--data", required=True, help="data, as for train")
    add("--out", required=True, metavar="DIR", help="folder of the report; an earlier report in it is replaced")
    add(
        "--split",
        help="split to look at: train, validation, test, or the name of a split in the data (default: validation, or test if there is "
        "no validation split)",
    )
    add(
        "--teacher", help="folder, Hub name or package.module:factory of a teacher, for a second opinion on every image"
    )
    add_teacher_cache(report)
    add_teacher_details(report)
    add("--unlabelled", action="store_true", help="no image has a label: show only what needs none")
    add(
        "--out_of_fold",
        metavar="TABLE",
        help="table that hf-deit predict wrote with models that were not trained on these images, to find more wrong labels",
    )
    add(
        "--train_images",
        type=int,
        default=20_000,
        help="largest number of training images that are searched for wrong labels and duplicates; 0 for none (default: %(default)s)",
    )
    add_data_of_run(report)
    add("--batch_size", type=int, default=64, help="images per batch (default: %(default)s)")
    add("--title", help="title of the report (default: the name of the model)")


def _report(options: argparse.Namespace, fields: list[str]) -> None:
    from tqdm import tqdm

    from ..inspection.report import ReportArguments, make_report
    from ..recipes.data import columns_of, selection_of
    from .console import messages

    names = ("model", "data", "out", "teacher", "teacher_cache", "teacher_view_size", "teacher_problem_type", "split")
    names += ("class_names", "unlabelled", "out_of_fold", "train_images", "batch_size", "title")
    arguments = ReportArguments(
        **{name: getattr(options, name) for name in names}, columns=columns_of(options), selection=selection_of(options)
    )
    hidden = True if options.quiet else None  # None: shown on a terminal only
    with messages(options.quiet):
        found = make_report(arguments, show=lambda rows: tqdm(rows, unit=" images", disable=hidden, leave=False))
    print(f"Report: {found.path}")
    others = [str(file) for file in found.files if file != found.path]
    print(f"Beside it: {', '.join(file.rsplit('/', 1)[-1] for file in others)}")
    if found.beside_the_model:
        print(f"In {options.model}: {', '.join(file.name for file in found.beside_the_model)}")
    print("The report contains photographs of your data. It is never uploaded.")
