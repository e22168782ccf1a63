"""The cached teacher beside a saved model: the opinions of a teacher cache that was made for a training, for images of the same data.

The records of a cache belong to the images of one data set, in its order. The data set is therefore read as the training read it, its
fingerprint is compared with that of the cache, and images are found in it by their path or, if they are embedded, by their content.
distillation/cached_opinions.py says what the opinion on an image is.
"""

import glob
import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..data.images import has_image_extension
from ..data.layouts import Selection, is_table
from ..data.sampling import BatchShares
from ..data.sources import Source
from ..data.tables import Columns
from ..distillation.cached_opinions import OWN_SHARE, CachedOpinions, open_cache
from ..distillation.teacher import Teacher
from ..errors import RecipeError, TeacherCacheError, UserError
from ..losses import ProblemType
from ..models.label_names import class_names
from .arguments import DataArguments
from .data import RunData, load_data, view_size_of
from .inputs import Failure, InputImage
from .own_recipe import recipe_of, same_path
from .prediction_teacher import PredictionTeacher

logger = logging.getLogger(__name__)

# Of a data set: what an index means.
TRAIN, VALIDATION = "training", "validation"


@dataclass(frozen=True)
class Opinion:
    """The opinion of a cached teacher on one image.

    Args:
        logits: Logits whose probabilities are the opinion, `(num_labels,)`.
        views: Number of cached views of which it is the mean.
    """

    logits: Tensor
    views: int


class CachedPredictionTeacher:
    """Cached teacher that is asked about the images that a saved model predicts, in the place of a `PredictionTeacher`.

    Args:
        model: Folder or Hub name of the model. If its own recipe is known, its data and their split are looked at first.
        cache: Folder of the cache, see `open_cache`.
        inputs: Data that may be those of the cache: the inputs of a prediction, or the data of a report.
        columns: Columns of a table. None: as in the training of the model if it was trained on the data, else found by type and name.
        selection: Configuration and names of splits; None likewise.
        names_file: File of class names; None likewise.

    Raises:
        TeacherCacheError: The cache holds no logits of all classes, or none of the data are those of the cache.
    """

    counts_views = True

    def __init__(
        self,
        model: str | Path,
        cache: str,
        inputs: Iterable[Any],
        *,
        columns: Columns | None = None,
        selection: Selection | None = None,
        names_file: str | None = None,
    ):
        self.folder, self.cache = cache, open_cache(cache)
        self._own = recipe_of(str(model))
        self._given = {
            **({} if columns in (None, Columns()) else _column_fields(columns)),
            **({} if selection in (None, Selection()) else _selection_fields(selection)),
            **({} if names_file is None else {"class_names": names_file}),
        }
        self._places, self._matched, self._shares = self._find(inputs)
        self._opinions: CachedOpinions | None = None
        self._lock = threading.Lock()

    def prepare(self, model: PreTrainedModel, processor: Any, device: torch.device) -> None:
        """Match the classes of the cache with those of the model.

        Raises:
            TeacherCacheError: They do not match.
        """
        config = model.config
        names = class_names(config.id2label) or [str(config.id2label[index]) for index in range(config.num_labels)]
        problem_type = ProblemType(config.problem_type or ProblemType.SINGLE_LABEL)
        self._opinions = CachedOpinions(self.cache, names, problem_type, self._shares)
        if VALIDATION in self._matched:
            self.cache.check_validation_file()

    def view(self, image: Image.Image, given: InputImage) -> Opinion | Failure:
        """Return the opinion on an image.

        Raises:
            TeacherCacheError: The image is not one of the data of the cache, or no view of the cache shows a training image alone.
        """
        place = self._places.get(_key(given.item))
        if place is None:
            raise TeacherCacheError(
                f"teacher_cache={self.folder!r} holds no outputs for {given.file}: its {' and '.join(self._matched)} images are those of "
                f"{self._matched[next(iter(self._matched))]}. Give these images, or the teacher itself (teacher)."
            )
        kind, index = place
        with self._lock:
            if kind == VALIDATION:
                return Opinion(self._opinions.of_validation(index), 1)
            if not self._opinions.training_views.any():
                raise TeacherCacheError(self.why_no_training_views)
            logits, views = self._opinions.of_training(index)
        if not views:
            return Failure(
                given.file, f"has no opinion of the teacher: no view in teacher_cache={self.folder!r} shows it alone"
            )
        return Opinion(logits, views)

    def logits(self, pixels: Tensor, views: Sequence[Opinion]) -> Tensor:
        """Return the logits of opinions, `(batch, num_labels)`. The pixels are not looked at."""
        return torch.stack([one.logits for one in views])

    def known(self, items: Sequence[Any]) -> list[int]:
        """Return the places of the items that are images of the cache with an opinion."""
        found = [self._places.get(_key(items[number])) for number in range(len(items))]
        with self._lock:
            return [number for number, place in enumerate(found) if place is not None and self._has_opinion(*place)]

    def _has_opinion(self, kind: str, index: int) -> bool:
        return kind == VALIDATION or bool(self._opinions.training_views[index])

    @property
    def why_no_training_views(self) -> str:
        """Why the cache has no opinion on training images, as a sentence."""
        mixing = self.cache.manifest["views"]["mixing"]
        fields = ", ".join(f"{name}={mixing[name]}" for name in ("mixup_alpha", "cutmix_alpha"))
        return (
            f"teacher_cache={self.folder!r} holds no view that shows a training image alone: all are mixed ({fields}). Give the teacher "
            "itself (teacher), or a cache without mixing."
        )

    def describe(self) -> str:
        """Return what the opinions are, as sentences."""
        name = self.cache.describe()["teacher"]["name"]
        return (
            f"The opinions of the teacher{f' {name}' if name else ''} are from its cache, and it was not run. For a validation image it is "
            "the output for the view that an evaluation shows. For a training image it is the mean of the probabilities over the cached "
            f"views, which are augmented; views in which a partner has more than {100 * (1 - OWN_SHARE):.0f} % of the pixels do not count."
        )

    # ---- the data of the cache ----

    def _find(self, inputs: Iterable[Any]) -> tuple[dict[str, tuple[str, int]], dict[str, str], BatchShares | None]:
        """Find the images of the cache.

        Returns:
            Kind and index of each image, by its key; the data by kind; and the shares of a training with unlabelled images.
        """
        views, validation = self.cache.manifest["views"]["data"], self.cache.manifest["validation"]
        tried: list[str] = []
        candidates = [self._own.data.data] if self._own is not None and self._own.data.data is not None else []
        candidates += [os.fspath(given) for given in inputs if isinstance(given, str | os.PathLike)]
        for data in dict.fromkeys(candidates):
            if not _may_be_data(data):
                continue
            try:
                found = self._load(data, views["seed"])
            except UserError as error:
                tried.append(f"  {data}: {error}")
                continue
            train, rest = found.train, found.unlabelled
            places: dict[str, tuple[str, int]] = {}
            matched: dict[str, str] = {}
            if validation is not None and validation["fingerprint"] == found.validation.fingerprint:
                matched[VALIDATION] = data
            shares = None
            unlabelled = None if rest is None else rest.fingerprint
            same_rest = views.get("unlabelled", {}).get("fingerprint") == unlabelled
            if isinstance(train, Source) and views["fingerprint"] == train.fingerprint and same_rest:
                matched[TRAIN] = data
                shares = self._shares_of(found)
                _add(places, TRAIN, train.items)
                if rest is not None:
                    _add(places, TRAIN, rest.items, len(train))
            if VALIDATION in matched:  # later, so that an image of both is a validation image
                _add(places, VALIDATION, found.validation.items)
            if matched:
                self._log(matched)
                return places, matched, shares
            tried.append(
                f"  {data}: data.fingerprint: {views['fingerprint'][:12]}… in the cache, {train.fingerprint[:12]}… now; "
                f"validation.fingerprint: {'none' if validation is None else validation['fingerprint'][:12] + '…'} in the cache, "
                f"{found.validation.fingerprint[:12]}… now"
            )
        raise TeacherCacheError(
            f"teacher_cache={self.folder!r} was made for other data:\n"
            + "\n".join(tried or ["  no data are given"])
            + "\nIts outputs belong "
            "to the images of one data set. Give the data, the split and the class names of the cache, or the teacher itself (teacher)."
        )

    def _load(self, data: str, seed: int) -> RunData:
        own = self._own
        arguments = own.data if own is not None and same_path(own.data.data, data) else DataArguments()
        return load_data(replace(arguments, data=data, streaming=False, **self._given), seed)

    def _shares_of(self, found: RunData) -> BatchShares | None:
        """Return the shares of the model's own training if its views are those of the cache; None without unlabelled images."""
        if found.unlabelled is None or self._own is None:
            return None
        args = self._own.training
        augmentation = replace(self._own.augmentation, view_size=view_size_of(self._own))
        dataset = found.training_set(augmentation, args.seed, args.global_batch_size)
        schedule = args.view_schedule(dataset)
        self.cache.check("views", schedule.describe())
        return schedule.sampler(0).shares

    def _log(self, matched: dict[str, str]) -> None:
        for kind in (TRAIN, VALIDATION):
            if kind not in matched:
                data = next(iter(matched.values()))
                logger.info("The teacher cache %s holds no outputs for the %s images of %s.", self.folder, kind, data)
        logger.info("%s", self.describe())


def _may_be_data(name: str) -> bool:
    """Return whether an input may be a data set, and not an image or a pattern."""
    path = Path(name).expanduser()
    if path.exists():
        return path.is_dir() or is_table(path)
    return not has_image_extension(path) and not glob.has_magic(name)


def _column_fields(columns: Columns) -> dict[str, Any]:
    return {
        "image_column": columns.image,
        "label_column": list(columns.labels) or None,
        "label_separator": columns.separator,
    }


def _selection_fields(selection: Selection) -> dict[str, Any]:
    return {
        "data_config": selection.config,
        "data_revision": selection.revision,
        "split_column": selection.split_column,
        "train_split": selection.train_split,
        "validation_split": selection.validation_split,
    }


def _add(places: dict[str, tuple[str, int]], kind: str, items: Sequence[Any], offset: int = 0) -> None:
    for index in range(len(items)):
        places[_key(items[index])] = (kind, offset + index)


def _key(item: Any) -> str:
    """Return the key of an image: the real path of a file, or the digest of the content of an embedded image."""
    content, path = (None, item) if isinstance(item, str | os.PathLike) else (item.get("bytes"), item.get("path"))
    if content is not None:
        return hashlib.sha256(content).hexdigest()
    return os.path.realpath(os.path.expanduser(path)) if path else ""


def check_teacher_fields(
    teacher: str | Teacher | None, teacher_cache: str | None, view_size: int | None, problem_type: str | None
) -> None:
    """Check that the fields of a teacher go together.

    Raises:
        RecipeError: Two teachers are given, or a field has no effect without a live teacher.
    """
    if teacher is not None and teacher_cache is not None:
        raise RecipeError(
            f"teacher={teacher!r} and teacher_cache={teacher_cache!r}: give one of them. The cache gives the cached opinions, the teacher "
            "new ones."
        )
    for name, value in (("teacher_view_size", view_size), ("teacher_problem_type", problem_type)):
        if value is not None and teacher is None:
            has = "with teacher_cache, whose outputs are fixed" if teacher_cache is not None else "without a teacher"
            raise RecipeError(f"{name}={value!r} {has}: give a teacher, or leave it out.")


def load_teacher(
    model: str,
    *,
    teacher: str | Teacher | None,
    teacher_cache: str | None,
    view_size: int | None,
    problem_type: str | None,
    inputs: Iterable[Any],
    columns: Columns | None = None,
    selection: Selection | None = None,
    names_file: str | None = None,
) -> PredictionTeacher | CachedPredictionTeacher | None:
    """Return the teacher or the cached teacher of a command that looks at a saved model; None if the command names none.

    Args:
        model: Folder or Hub name of the model.
        teacher: Folder, Hub name or factory of a teacher; or a loaded one.
        teacher_cache: Folder of a teacher cache.
        view_size: As for `PredictionTeacher`.
        problem_type: As for `PredictionTeacher`.
        inputs: As for `CachedPredictionTeacher`, like the arguments below.
        columns: Columns of a table.
        selection: Configuration and names of splits.
        names_file: File of class names.

    Raises:
        UserError: The fields contradict each other, or the teacher or the cache cannot be used.
    """
    check_teacher_fields(teacher, teacher_cache, view_size, problem_type)
    if teacher is not None:
        return PredictionTeacher(model, teacher, view_size, problem_type)
    if teacher_cache is None:
        return None
    return CachedPredictionTeacher(
        model, teacher_cache, inputs, columns=columns, selection=selection, names_file=names_file
    )
