"""The report of a model: one self-contained HTML file, with the table of predictions and lists of suspects and duplicates beside it.

sections.py writes the sections, and report.html.jinja the page. The command `hf-deit report`, `hf_deit.report`, and every training make one.
"""

import copy
import csv
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from ..data.layouts import Selection
from ..data.loading import KEEP
from ..data.sources import Source, without_unreadable
from ..data.tables import Columns
from ..data.unlabelled import load_unlabelled
from ..distillation.teacher import Teacher
from ..errors import DataError, PublishError, RecipeError, UserError
from ..files import check_folder, staged_files
from ..fingerprints import file_digest
from ..hub.facts import LOG_FILE, RunSummary, last_part, read_facts
from ..hub.inspection_files import (
    CONFUSION_PICTURE,
    INSPECTION_FILE,
    PRIVATE_FILES,
    RELIABILITY_PICTURE,
    TOKENS_PICTURE,
)
from ..hub.model_card import render_again_if_ours
from ..models.label_names import unique_names
from ..models.weights_digest import weights_digest
from ..recipes.cached_prediction_teacher import CachedPredictionTeacher, check_teacher_fields, load_teacher
from ..recipes.evaluate import evaluation_images
from ..recipes.predict import Prediction, Predictor, prediction_files
from ..trainer.environment import require_packages
from . import figures
from .calibration import Calibration, calibrate, calibration_content, write_calibration
from .duplicates import MOST_IMAGES, Pair, find_pairs, grey_images
from .explain import refuse_loaded
from .layer_figures import cosine_figure
from .measures import best_thresholds, class_rows, confused_order, confusions, headline
from .mislabelled import ClassSuspect, Suspect, class_suspects, csv_rows, file_key, ranked, read_out_of_fold, suspects
from .page_text import prose
from .quality_sections import MOST_CLASSES
from .section_parts import ComparedImages, Findings, counted, number
from .sections import build_sections
from .style import as_png, css_variables, drawn
from .table import PREDICTION, ImageTable, evenly, predict_source
from .thumbnails import Thumbnails
from .token_layers import TokenLayers, measure_layers

logger = logging.getLogger(__name__)

REPORT_FILE, TABLE_FILE, SUSPECTS_FILE, PAIRS_FILE = PRIVATE_FILES
MARKER = "hf_deit report"
# Bytes of all photographs together; the file stays below 5 MB.
_PHOTO_BYTES = 3_000_000
_TOKEN_IMAGES = 32  # over which both tokens are compared
TRAIN_IMAGES = 20_000  # training images that are looked at by default
PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}
_TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass
class ReportResult:
    """What a report wrote and found.

    Args:
        path: The HTML file. It contains photographs of the data.
        files: All files in its folder.
        beside_the_model: Files that were written into the folder of the model: calibration.json, and what its card shows.
        headline: The main figures, such as `accuracy` and its `interval`, see `measures.headline`; empty without labels.
        suspects: Number of images of which a label is probably wrong.
        duplicates: Number of pairs of near-duplicates; None if they were not looked for.
    """

    path: Path
    files: list[Path]
    beside_the_model: list[Path] = field(default_factory=list)
    headline: dict[str, Any] = field(default_factory=dict)
    suspects: int = 0
    duplicates: int | None = None


@dataclass(frozen=True)
class ReportArguments:
    """What a report is made of.

    Args:
        model: Folder or Hub name of the model.
        data: Data as for `evaluate`.
        out: Folder of the report, which may hold an earlier report.
        teacher: Folder, Hub name or factory of a teacher, or a loaded one; None for no teacher.
        teacher_cache: Folder of a teacher cache that was made for a training on these data; None for no cache.
        teacher_view_size: As for `evaluate`.
        teacher_problem_type: As for `evaluate`.
        split: Split to look at, as for `evaluate`.
        columns: Columns of a table, as for `evaluate`.
        selection: Configuration and names of splits, as for `evaluate`.
        class_names: File of class names, as for `evaluate`.
        unlabelled: Whether no image of `data` has a label.
        out_of_fold: Table of predictions of models that were not trained on the images, for the list of suspects.
        train_images: Largest number of training images to look at; 0 leaves them out.
        batch_size: Number of images at a time.
        seconds: Time for the predictions and the comparison of images; what is not reached is left out and named. None: no limit.
        title: Title of the report. Default: the name of the model.
        compares_images: Whether near-duplicates are looked for.
    """

    model: str
    data: str
    out: str
    teacher: str | Teacher | None = None
    teacher_cache: str | None = None
    teacher_view_size: int | None = None
    teacher_problem_type: str | None = None
    split: str | None = None
    columns: Columns | None = None
    selection: Selection | None = None
    class_names: str | None = None
    unlabelled: bool = False
    out_of_fold: str | None = None
    train_images: int = TRAIN_IMAGES
    batch_size: int = 64
    seconds: float | None = None
    title: str | None = None
    compares_images: bool = True


def check_arguments(arguments: ReportArguments) -> None:
    """Check what can be checked before the model is loaded.

    Raises:
        UserError: A package is missing, a value is invalid, or the folder of the report holds a file of this name that is no report.
    """
    require_packages("A report", PACKAGES)
    if arguments.train_images < 0:
        raise RecipeError(f"train_images={arguments.train_images}: give a number of images, at least 0.")
    if arguments.batch_size < 1:
        raise RecipeError(f"batch_size={arguments.batch_size}: it must be at least 1.")
    check_teacher_fields(
        arguments.teacher, arguments.teacher_cache, arguments.teacher_view_size, arguments.teacher_problem_type
    )
    if arguments.unlabelled and (arguments.out_of_fold or arguments.class_names or arguments.split):
        raise RecipeError(
            "unlabelled=True with out_of_fold, class_names or split: these are for labelled data. Leave them out, or leave out unlabelled."
        )
    check_folder(arguments.out)
    report = Path(arguments.out) / REPORT_FILE
    if report.exists() and MARKER not in _head(report):
        raise UserError(f"{report} exists, and hf_deit did not make it: give another folder (--out).")


def _head(file: Path) -> str:
    with open(file, encoding="utf-8", errors="replace") as content:
        return content.read(2000)


def make_report(arguments: ReportArguments, show: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> ReportResult:
    """Look at a model, and write what is found.

    Besides the files in `out`, calibration.json, the figures of the model card and the facts for it are written into the folder of
    the model, if it is a folder and the images were not its training images. The card is rendered again if it is one of this package.

    Args:
        arguments: What the report is made of.
        show: Function that shows the progress of an iterable.

    Raises:
        UserError: An argument is invalid, or the model, the data or the teacher cannot be loaded, or they do not match.
    """
    check_arguments(arguments)
    started = time.monotonic()
    maker = _Maker(arguments, show, None if arguments.seconds is None else started + arguments.seconds)
    with staged_files(Path(arguments.out)) as staging:
        written = maker.write(staging)
    written.path = Path(arguments.out) / REPORT_FILE
    written.files = [Path(arguments.out) / file.name for file in written.files]
    written.beside_the_model = maker.write_beside_the_model()
    return written


class _Maker:
    """Makes one report. `deadline` is the time at which predictions stop, or None."""

    def __init__(self, arguments: ReportArguments, show: Callable, deadline: float | None):
        self.arguments, self.show, self.deadline = arguments, show, deadline
        self.notes: list[str] = []
        teacher = load_teacher(
            arguments.model,
            teacher=arguments.teacher,
            teacher_cache=arguments.teacher_cache,
            view_size=arguments.teacher_view_size,
            problem_type=arguments.teacher_problem_type,
            inputs=[arguments.data],
            columns=arguments.columns,
            selection=arguments.selection,
            names_file=arguments.class_names,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.predictor = Predictor(arguments.model, teacher=teacher, embeddings=True, device=device)
        except UserError:
            self.predictor = Predictor(arguments.model, teacher=teacher, device=device)
            self.notes.append("The embeddings of this kind of model are not known, so there is no map of the images.")
        self.source = self._source()
        # A file of class names may have renamed the classes of the model.
        config = self.predictor.model.config
        self.predictor.class_names = [str(config.id2label[index]) for index in range(config.num_labels)]
        self.names = unique_names(self.predictor.class_names)

    def _seconds(self, share: float = 1.0) -> float | None:
        return None if self.deadline is None else max(share * (self.deadline - time.monotonic()), 1.0)

    # ---- images ----

    def _source(self) -> Source:
        arguments = self.arguments
        if arguments.unlabelled:
            image_column = None if arguments.columns is None else arguments.columns.image
            return without_unreadable(load_unlabelled(arguments.data, image_column))
        try:
            return self._images(arguments.split)
        except (DataError, RecipeError) as error:
            raise type(error)(
                f"{error} If no image of {arguments.data} has a label, give --unlabelled (in Python unlabelled=True)."
            ) from error

    def _images(self, split: str | None) -> Source:
        arguments = self.arguments
        found = evaluation_images(
            self.predictor.model,
            arguments.model,
            arguments.data,
            columns=arguments.columns,
            split=split,
            selection=arguments.selection,
            class_names=arguments.class_names,
            unlabelled_rows=KEEP,
        )
        unreadable = sum(found.broken_images.values())
        if unreadable:
            self.notes.append(
                f"{counted(unreadable)} of the split “{found.source.split_name}” cannot be read and are left out."
            )
        return found.source

    def _training_source(self) -> Source | None:
        """Return the training images, if the data have some beside the images of the report."""
        if self.arguments.unlabelled or not self.arguments.train_images or self.source.split_name in ("train", "all"):
            return None
        try:
            source = self._images("train")
        except UserError as error:
            self.notes.append(f"The training images were not looked at: {error}")
            return None
        return source if source.split_name == "train" else None

    # ---- what is found ----

    def write(self, folder: Path) -> ReportResult:
        """Write the files of the report into a folder."""
        self.table = self._predicted(folder / TABLE_FILE)
        labelled = self.table.rows(np.flatnonzero(self.table.labelled))
        self.labelled = labelled
        self.calibration: dict[str, Calibration] = calibrate(labelled) if len(labelled) else {}
        self.facts = self._facts()
        tables, found = self._suspects()
        pairs, compared = self._pairs(tables)
        self.tokens, teacher = self._tokens(), self.predictor.teacher
        self._add_general_notes()
        findings = Findings(
            table=self.table,
            labelled=labelled,
            calibration=self.calibration,
            suspects=found,
            tables=tables,
            pairs=pairs,
            compared=compared,
            facts=self.facts,
            log=self._log(),
            notes=self.notes,
            out_of_fold=self.arguments.out_of_fold is not None,
            tokens=self.tokens,
            teacher=teacher.describe() if isinstance(teacher, CachedPredictionTeacher) else "",
        )
        (folder / REPORT_FILE).write_text(self._page(findings), encoding="utf-8", errors="replace")
        files = [folder / REPORT_FILE, folder / TABLE_FILE]
        order = ranked(found)
        if len(labelled):
            rows = csv_rows(order, self.names, self.table.multi_label)
            files.append(_write_csv(folder / SUSPECTS_FILE, rows))
        if pairs is not None:
            files.append(_write_csv(folder / PAIRS_FILE, _pair_rows(pairs, compared.files, compared.splits)))
        content = self._calibration_content()
        if content is not None:
            files.append(write_calibration(folder, content))
        figures_of_head = headline(labelled) if len(labelled) else {}
        return ReportResult(
            folder / REPORT_FILE,
            files,
            headline=figures_of_head,
            suspects=len({(one.split, one.index) for one in order}),
            duplicates=None if pairs is None else len(pairs),
        )

    def _predicted(self, file: Path) -> ImageTable:
        with prediction_files(None, str(file), self.predictor.columns) as add:

            def add_row(prediction: Prediction) -> None:
                add(self.predictor.row(prediction))

            table = predict_source(
                self.predictor,
                self.source,
                self.names,
                batch_size=self.arguments.batch_size,
                seconds=self._seconds(0.5),
                add_row=add_row,
                show=self.show,
            )
        if not len(table):
            reasons = "; ".join(str(failure) for failure in table.failures[:3])
            raise DataError(f"No image of {self.source.name} could be predicted. {reasons}")
        return table

    def _suspects(self) -> tuple[dict[str, ImageTable], dict[str, Sequence[Suspect | ClassSuspect]]]:
        tables = {self.table.split: self.table}
        held_out = None
        if self.arguments.out_of_fold is not None:
            columns = self.predictor.columns[4 : 4 + len(self.names)]
            held_out = read_out_of_fold(self.arguments.out_of_fold, columns)
        source = self._training_source()
        if source is not None:
            source, predictor = self._with_opinions(source)
            table = predict_source(
                predictor,
                source,
                self.names,
                batch_size=self.arguments.batch_size,
                most_images=self.arguments.train_images,
                seconds=self._seconds(0.6),
                show=self.show,
            )
            if len(table) + len(table.failures) < len(source):
                self.notes.append(f"{number(len(table))} of {counted(len(source), 'training image')} were looked at.")
            if len(table):
                tables[table.split] = table
        if held_out is not None:
            self._check_out_of_fold(held_out, tables)
        find = class_suspects if self.table.multi_label else suspects
        found = {split: find(table, held_out) for split, table in tables.items() if table.labelled.any()}
        return tables, found

    def _with_opinions(self, source: Source) -> tuple[Source, Predictor]:
        """Return the training images that a cached teacher has an opinion on; if there is none, all of them, and no teacher."""
        teacher = self.predictor.teacher
        if not isinstance(teacher, CachedPredictionTeacher):
            return source, self.predictor
        known = teacher.known(source.items)
        if not known:
            self.notes.append(
                "The teacher has no opinion on the training images: they are not those of its cache, or all of their views in it are mixed. "
                "Their labels are judged by the student."
            )
            alone = copy.copy(self.predictor)
            alone.teacher = None
            return source, alone
        if len(known) < len(source):
            left_out = counted(len(source) - len(known), "training image")
            self.notes.append(f"{left_out} without an opinion in the cache of the teacher were not looked at.")
            source = source.subset(known, source.name)
        return source, self.predictor

    def _check_out_of_fold(self, held_out: dict[str, np.ndarray], tables: dict[str, ImageTable]) -> None:
        known = sum(file_key(file) in held_out for table in tables.values() for file in table.files)
        if not known:
            raise DataError(
                f"out_of_fold={self.arguments.out_of_fold!r}: none of its {len(held_out)} files is one of the images that are looked at. "
                "Make the table in the same folder, or with the same paths."
            )
        self.notes.append(f"Predictions of models that were not trained on the image are known for {counted(known)}.")

    def _pairs(self, tables: dict[str, ImageTable]) -> tuple[list[Pair] | None, ComparedImages]:
        rows = [
            (item, file, split, index)
            for split, table in tables.items()
            for index, (item, file) in enumerate(zip(table.items, table.files, strict=True))
        ]
        if len(rows) > MOST_IMAGES:
            rows = [rows[index] for index in evenly(len(rows), MOST_IMAGES)]
            self.notes.append(f"Near-duplicates were looked for among {number(MOST_IMAGES)} of the images.")
        compared = ComparedImages(*(list(column) for column in zip(*rows, strict=True)))
        if not self.arguments.compares_images:
            self.notes.append("Near-duplicates were not looked for in this report.")
            return None, compared
        left = self._seconds()
        # Reading an image takes about 3 ms on one core.
        if left is not None and 0.003 * len(rows) > left:
            self.notes.append(
                "Near-duplicates were not looked for: the time for this report is limited. `hf-deit report` has no limit."
            )
            return None, compared
        return find_pairs(grey_images(compared.items)), compared

    def _tokens(self) -> TokenLayers | None:
        """Return the cosine of both tokens over a few images; None for other models than a DeiT with two heads."""
        network = self.predictor.model
        if not self.predictor.heads:
            return None
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.notes.append("The tokens were not compared: the time for this report is limited.")
            return None
        images = replace(self.source, items=self.table.items, labels=list(self.table.labels))
        few = images.subset(evenly(len(self.table), _TOKEN_IMAGES), self.source.name)
        try:
            refuse_loaded(network)
            names = (self.arguments.model, self.arguments.data, self.table.split)
            return measure_layers(network, self.predictor.processor, few, names=names)
        except UserError as error:
            self.notes.append(f"The tokens were not compared: {error}")
            return None

    def _facts(self) -> RunSummary:
        folder = Path(self.arguments.model)
        if folder.is_dir():
            try:
                return read_facts(folder)
            except PublishError as error:
                self.notes.append(f"The facts of the run could not be read: {error}")
        return RunSummary(self.predictor.model.config.to_dict())

    def _log(self) -> list[dict[str, Any]] | None:
        file = Path(self.arguments.model) / LOG_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else None

    def _add_general_notes(self) -> None:
        if self.facts.run.get("validation_images") is not None and self.table.split != "train":
            self.notes.append(
                "These images may have been used to choose settings of the training. A test set that was never looked at gives an "
                "honest figure."
            )
        if self.table.split == "train":
            self.notes.append(
                "These are training images, if the model was trained on these data: new images will be answered less well."
            )
        self.notes += [
            "This is one model of one training with one seed; another seed gives somewhat other figures.",
            "How the model does on images of other cameras, places or groups of people was not measured.",
            "What it answers for images that show none of its classes was not measured.",
        ]
        if not any(name != PREDICTION for name in self.table.heads):
            self.notes.append("The model has one head, so there is no second opinion of a distillation head.")

    # ---- files ----

    def _page(self, findings: Findings) -> str:
        from importlib.metadata import PackageNotFoundError, version

        import sklearn

        try:
            own_version = version("hf_deit")
        except PackageNotFoundError:  # used from a checkout
            own_version = ""
        thumbnails = Thumbnails(_PHOTO_BYTES)
        sections = list(build_sections(findings, thumbnails))
        if thumbnails.left_out:
            sections[-1].blocks[-1]["texts"].append(
                f"{counted(thumbnails.left_out, 'photograph')} are left out of this page to keep the file small."
            )
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
            undefined=jinja2.StrictUndefined,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["prose"] = prose
        name = self.arguments.title or Path(self.arguments.model).resolve().name
        where = Path(self.arguments.data).name or self.arguments.data
        return environment.get_template(_TEMPLATE.name).render(
            title=name,
            subtitle=f"An image classifier for {counted(len(self.names), 'class', 'classes')}, tested on images of {where}",
            marker=MARKER,
            light=css_variables(dark=False),
            dark=css_variables(dark=True),
            sections=sections,
            version=own_version,
            sklearn=sklearn.__version__,
        )

    def _calibration_content(self) -> dict[str, Any] | None:
        if not self.calibration:
            return None
        thresholds = best_thresholds(self.labelled) if self.table.multi_label else None
        return calibration_content(
            self.calibration,
            self.labelled,
            data=last_part(self.arguments.data),
            weights=weights_digest(self.arguments.model),
            thresholds=thresholds,
        )

    def write_beside_the_model(self) -> list[Path]:
        """Write calibration.json and what the model card shows into the folder of the model; nothing for training images."""
        folder = Path(self.arguments.model)
        if not folder.is_dir() or not len(self.labelled) or self.table.split == "train":
            return []
        content = self._calibration_content()
        with staged_files(folder) as staging:
            if self.tokens is not None:
                (staging / TOKENS_PICTURE).write_bytes(as_png(drawn(cosine_figure, self.tokens)))
            if content is not None:
                write_calibration(staging, content)
            figure = drawn(figures.reliability_diagrams, self.calibration)
            (staging / RELIABILITY_PICTURE).write_bytes(as_png(figure))
            if not self.table.multi_label:
                matrix = confusions(self.labelled)
                order = confused_order(matrix, MOST_CLASSES)
                picture = drawn(
                    figures.confusion_picture, matrix[np.ix_(order, order)], [self.names[index] for index in order]
                )
                (staging / CONFUSION_PICTURE).write_bytes(as_png(picture))
            pictures = {path.name: file_digest(path) for path in sorted(staging.glob("*.png"))}
            text = json.dumps({**self._inspection(), "pictures": pictures}, indent=2)
            (staging / INSPECTION_FILE).write_text(text + "\n", encoding="utf-8")
            written = [folder / path.name for path in sorted(staging.iterdir())]
        render_again_if_ours(folder)
        return written

    def _inspection(self) -> dict[str, Any]:
        """Return the facts of this report that a card shows."""
        rows = class_rows(self.labelled)
        return {
            "weights": weights_digest(self.arguments.model),
            "data": last_part(self.arguments.data),
            "split": self.table.split,
            "images": len(self.labelled),
            "per_class": {
                row.name: {"precision": row.precision, "recall": row.recall, "f1": row.f1, "images": row.images}
                for row in rows
            },
            "expected_calibration_error": {
                name: {"before": one.before.error, "after": None if one.after is None else one.after.error}
                for name, one in self.calibration.items()
            },
            "shown_classes": min(len(rows), MOST_CLASSES),
            **({} if self.tokens is None else {"tokens": _token_facts(self.tokens)}),
        }


def _token_facts(tokens: TokenLayers) -> dict[str, Any]:
    first, last = tokens.cosine[0], tokens.cosine[-1]
    return {"images": tokens.images, "learned": tokens.learned_cosine, "first_layer": first, "last_layer": last}


def _write_csv(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    with open(file, "w", newline="", encoding="utf-8", errors="surrogateescape") as content:
        csv.writer(content).writerows(rows)
    return file


def _pair_rows(pairs: Sequence[Pair], files: Sequence[str], splits: Sequence[str]) -> list[list[str]]:
    head = ["similarity", "first", "first_split", "second", "second_split"]
    return [
        head,
        *(
            [repr(pair.similarity), files[pair.first], splits[pair.first], files[pair.second], splits[pair.second]]
            for pair in pairs
        ),
    ]
