"""Evaluation of a saved model on labelled images, as `hf-deit evaluate` does it."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.labels import constant_classes
from ..data.layouts import Selection
from ..data.loading import LEAVE_OUT, is_image_folder, load_validation
from ..data.sources import Source, without_unreadable
from ..data.tables import Columns
from ..data.views import EvaluationDataset
from ..errors import RecipeError, listed
from ..hub.facts import RECIPE_FILE
from ..losses import ProblemType
from ..models.label_names import match_classes, normal_forms, read_class_names, unique_names
from ..models.loading import load_model, load_processor
from ..sizes import as_pair
from ..trainer.checkpoints import EMA_FOLDER
from ..trainer.trainer import DistillationTrainer
from ..trainer.training_args import DistillationTrainingArguments
from .arguments import Recipe, TeacherArguments
from .build import build_teacher
from .class_names import with_class_names
from .data import columns_of, selection_of
from .reading import load_recipe

logger = logging.getLogger(__name__)


def relabel(
    source: Source, names: Sequence[str], problem_type: ProblemType, shown: Sequence[str] | None = None
) -> tuple[Source, list[list[int]]]:
    """Return a source whose labels follow the class order of a model. Classes are matched by name or, if numbers, by index.

    Args:
        source: The images and their labels.
        names: Class names of the model, in index order.
        problem_type: Problem type of the model.
        shown: Class names of the result. Default: `names`.

    Returns:
        The source; and groups of indices of the model that have the same name as one class of the data, so that each index of
        a group is right.

    Raises:
        RecipeError: The data have a class that the model does not know, or another problem type than the model.
    """
    if problem_type != source.problem_type:
        raise RecipeError(
            f"The problem type of the model is {problem_type}, but that of the labels of {source.name} is "
            f"{source.problem_type}: give the label_column (and label_separator) that the model was trained on."
        )
    shown = tuple(names if shown is None else shown)
    several = problem_type is ProblemType.MULTI_LABEL
    match = match_classes(
        source.class_names, names, lambda problem: RecipeError(f"{source.name} has {problem}."), multi_label=several
    )
    if match.by_index:
        pairs = [f"{name} → {shown[index]}" for name, index in zip(source.class_names, match.indices, strict=True)]
        logger.warning("The labels of %s are taken as class indices of the model: %s.", source.name, listed(pairs, str))
    if match.indices == list(range(len(names))):
        return replace(source, class_names=shown), match.same
    if several:
        column_of = {label: column for column, label in enumerate(match.indices)}
        labels: list[Any] = [
            tuple(row[column_of[label]] if label in column_of else 0 for label in range(len(names)))
            for row in source.labels
        ]
    else:
        labels = [match.indices[label] for label in source.labels]
    return replace(source, labels=labels, class_names=shown), match.same


def _named_and_relabelled(
    source: Source, model: PreTrainedModel, problem_type: ProblemType, file: str | Path | None
) -> tuple[Source, list[list[int]]]:
    """Return `relabel` of a source, with the class names of a file for the data and, if it has none, for the model."""
    own = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    if file is None:
        return relabel(source, own, problem_type)
    names = read_class_names(file)
    shown = names.names_of_model(own)
    model.config.id2label = dict(enumerate(shown))
    found = set(normal_forms(source.class_names))
    is_keyed = bool(found & names.by_key.keys())
    # The data may have the model's own names or its indices, or names that the file gives to the model only.
    if not is_keyed or found & set(normal_forms(own)):
        with contextlib.suppress(RecipeError):
            return relabel(source, own, problem_type, shown)
    if not is_keyed:
        with contextlib.suppress(RecipeError):
            return relabel(source, shown, problem_type)
    return relabel(with_class_names(source, names), shown, problem_type)


def _merge_same_names(model: PreTrainedModel, groups: Sequence[Sequence[int]]) -> None:
    """Make a model count several classes of one name as the first of them, with the sum of their probabilities."""

    def merge(module: Any, inputs: Any, outputs: Any) -> Any:
        for name in ("logits", "cls_logits", "distillation_logits"):
            if outputs.get(name) is not None:
                logits = outputs[name].clone()
                for group in groups:
                    logits[:, group[0]] = logits[:, list(group)].logsumexp(dim=-1)
                    logits[:, list(group[1:])] = torch.finfo(logits.dtype).min
                outputs[name] = logits
        return outputs

    model.register_forward_hook(merge)


def evaluate(
    name_or_path: str,
    data: str,
    teacher: str | None = None,
    teacher_view_size: int | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    columns: Columns | None = None,
    split: str | None = None,
    selection: Selection | None = None,
    class_names: str | Path | None = None,
    teacher_problem_type: str | None = None,
    prepare: Callable[[DistillationTrainer], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model on one split of `data`.

    The default is the validation split or, if there is none, a labelled test split. If the data have neither, all images are
    used. The exception are data that the model was trained on, according to its own recipe.yaml: then only the images that its run
    split off for validation are used. Images without a label are left out, and their number is logged.

    Args:
        name_or_path: Folder or Hub name of the model.
        data: Data as in `load_splits`.
        teacher: Folder, Hub name or factory of a teacher. If it is given, its accuracy and the agreement with it are
            measured too. If it is the teacher of the model's own recipe.yaml, the other `teacher_` fields there (weights, mean,
            std, size, labels, dtype) are used too.
        teacher_view_size: Side in pixels of the view that the teacher gets. Default: the `view_size` of the model's own recipe.yaml;
            without a recipe, the pixels that the model gets.
        batch_size: Number of images per batch.
        bf16: Compute in bfloat16 (autocast).
        columns: Columns of a table. Default: those of the model's own recipe.yaml.
        split: Split to evaluate: train, validation, test, or the name of a split in the data.
        selection: Configuration, split column and names of splits in the data. Default: those of the model's own recipe.yaml if it
            was trained on these data.
        class_names: File that names the classes of the data and, if it has no names, of the model; see `read_class_names`.
            Default: that of the model's own recipe.yaml, if it exists.
        teacher_problem_type: Problem type of the teacher. Default: that of its own files.
        prepare: Function that is called with the trainer before the evaluation, to add callbacks.

    Returns:
        `split`, the split that was evaluated ("all" for all images of data without splits); `metrics` by name; `loss_on`,
        what the losses were computed on (see `_use_own_loss`); `per_class` with
        the `accuracy` (multi-label: `average_precision`, `f1`, `precision` and `recall`) and the number of `images` of each
        class; `broken_images`, the number of unreadable images, by the stage at which they were left out.

    Raises:
        UserError: The model, the data or the teacher cannot be loaded, or they do not match.
    """
    if teacher_view_size is not None and teacher is None:
        raise RecipeError(f"teacher_view_size={teacher_view_size} without a teacher: give --teacher, or leave it out.")
    from ..trainer.metrics import per_class

    model, processor = load_model(name_or_path), load_processor(name_or_path)
    if batch_size < 1:
        raise RecipeError(f"batch_size={batch_size}: it must be at least 1.")
    own = _recipe_of(name_or_path)
    teacher_fields = _teacher_arguments(own, teacher, teacher_problem_type)
    found = _images_to_evaluate(own, data, columns=columns, split=split, selection=selection)
    logger.info("Evaluating %d images of the split %r of %s.", len(found), found.split_name, data)
    validation = without_unreadable(found)
    problem_type = ProblemType(model.config.problem_type or ProblemType.SINGLE_LABEL)
    if teacher_view_size is not None and teacher_view_size < 1:
        raise RecipeError(f"teacher_view_size={teacher_view_size}: give a number of pixels, at least 1.")
    source, same = _named_and_relabelled(
        validation, model, problem_type, _own_class_names(own) if class_names is None else class_names
    )
    names = unique_names(source.class_names)
    if same:
        logger.warning(
            "Several classes of the model have the name of one class of the data: %s. Each of them counts as right.",
            listed((f"{source.class_names[group[0]]} ({' and '.join(map(str, group))})" for group in same), str),
        )
        _merge_same_names(model, same)
    _report_constant_classes(source)
    dataset = EvaluationDataset(
        source,
        processor=processor,
        **({} if teacher is None else _teacher_view(own, teacher_view_size)),
    )
    with tempfile.TemporaryDirectory() as unused:
        args = DistillationTrainingArguments(
            unused, distillation_type="none", per_device_eval_batch_size=batch_size, bf16=bf16, report_to="none"
        )
        loaded_teacher = build_teacher(teacher_fields)
        loss_on = _use_own_loss(args, None if same else own, has_teacher=teacher is not None)
        trainer = DistillationTrainer(model, loaded_teacher, args, eval_dataset=dataset, processing_class=processor)
        trainer.keep_rows = True
        if prepare is not None:
            prepare(trainer)
        metrics = trainer.evaluate()
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    broken = {"left_out_at_scan": len(found.left_out), "left_out_of_validation": len(found) - len(validation)}
    return {
        "split": found.split_name,
        "metrics": metrics,
        "loss_on": loss_on,
        "per_class": per_class(trainer.rows, names),
        "broken_images": broken,
    }


def images_to_evaluate(
    name_or_path: str,
    data: str,
    columns: Columns | None = None,
    split: str | None = None,
    selection: Selection | None = None,
) -> Source:
    """Find the images of `data` on which a saved model is evaluated; see `evaluate` for the arguments and errors."""
    return _images_to_evaluate(_recipe_of(name_or_path), data, columns=columns, split=split, selection=selection)


def _images_to_evaluate(
    own: Recipe | None, data: str, *, columns: Columns | None, split: str | None, selection: Selection | None
) -> Source:
    share, seed = _split_of(own, data)
    return load_validation(
        data,
        share,
        seed,
        _columns_of(own, data) if columns in (None, Columns()) else columns,
        selection=_selection_of(own, data) if selection in (None, Selection()) else selection,
        split=split,
        unlabelled_rows=LEAVE_OUT,
    )


def _report_constant_classes(source: Source) -> None:
    if source.problem_type is ProblemType.MULTI_LABEL and (
        constant := constant_classes(source.labels, source.class_names)
    ):
        logger.warning(
            "All %d images of %s have the class(es) %s: their average precision is 100 %% for every model.",
            len(source),
            source.name,
            listed(constant),
        )


def _own_class_names(own: Recipe | None) -> str | None:
    """Return the file of class names of the model's own run. None if it named none, or if the file no longer exists."""
    file = None if own is None else own.data.class_names
    if file is not None and not Path(file).is_file():
        logger.warning("class_names=%r of the model's own recipe does not exist. The names of the data are used.", file)
        return None
    return file


_LOSS_FIELDS = ("base_loss", "label_smoothing_factor")
_TEACHER_LOSS_FIELDS = (
    "distillation_type",
    "distillation_target",
    "distillation_alpha",
    "distillation_tau",
    "distillation_reduction",
)


def _use_own_loss(args: DistillationTrainingArguments, own: Recipe | None, has_teacher: bool) -> str:
    """Set the loss fields of the model's own recipe, so that the evaluation computes the loss of its training.

    Without a recipe, the loss is the cross-entropy on the labels; also if classes with the same name are merged.

    Returns:
        "labels and teacher", or "labels". "labels, without class_weights" if the recipe has `class_weights`, which need
        the training images.
    """
    if own is None:
        return "labels"
    learned = has_teacher and own.training.distillation_type != "none"
    for name in (*_LOSS_FIELDS, *(_TEACHER_LOSS_FIELDS if learned else ())):
        setattr(args, name, getattr(own.training, name))
    weights = "" if own.training.class_weights == "none" else ", without class_weights"
    return ("labels and teacher" if learned else "labels") + weights


def _teacher_view(own: Recipe | None, side: int | None) -> dict[str, Any]:
    """Return the arguments of `EvaluationDataset` for the view of the teacher; as in the model's own run by default."""
    given = {} if side is None else {"view_size": as_pair(side)}
    if own is None:
        return given
    return {"view_size": own.augmentation.view_size, "crop_ratio": own.data.evaluation_crop_ratio, **given}


def _recipe_of(name_or_path: str) -> Recipe | None:
    """Return the recipe that a model in a local folder was trained by; None if it is missing or cannot be read."""
    folder = Path(name_or_path)
    if folder.name == EMA_FOLDER and folder.parent.name.startswith("checkpoint-"):
        folder = folder.parent
    file = (folder.parent if folder.name.startswith("checkpoint-") else folder) / RECIPE_FILE
    if not file.is_file():
        return None
    try:
        return load_recipe(file, [])
    except RecipeError as error:
        logger.warning(
            "%s cannot be read (%s). The evaluation may therefore include images that the model was trained on.",
            file,
            error,
        )
        return None


def _same_path(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return False
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _split_of(own: Recipe | None, data: str) -> tuple[float | None, int]:
    """Return the share and seed with which the model's own run split the data; (None, 0) if it was not trained on them."""
    if own is None or not _same_path(own.data.data, data):
        return None, 0
    return own.data.validation_share, own.training.seed


def _columns_of(own: Recipe | None, data: str) -> Columns | None:
    """Return the table columns that the model's own run read, also for other tables; None without a recipe or table."""
    if own is None or (is_image_folder(data) and not _same_path(own.data.data, data)):
        return None
    return columns_of(own.data)


def _selection_of(own: Recipe | None, data: str) -> Selection | None:
    """Return the names of splits that the model's own run read; None if it was not trained on these data."""
    return selection_of(own.data) if own is not None and _same_path(own.data.data, data) else None


def _teacher_arguments(own: Recipe | None, teacher: str | None, problem_type: str | None) -> TeacherArguments:
    """Return the fields of a teacher: those of the model's own run if it is the teacher of that run."""
    given = TeacherArguments(teacher=teacher, teacher_problem_type=problem_type)
    if own is None or not _same_path(own.teacher.teacher, given.teacher):
        return given
    return own.teacher if problem_type is None else replace(own.teacher, teacher_problem_type=problem_type)
