"""Evaluation of a saved model on labelled images, as `hf-deit evaluate` does it."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.labels import constant_classes, has_label
from ..data.layouts import Selection
from ..data.loading import LEAVE_OUT, load_validation
from ..data.sources import Source, without_unreadable
from ..data.tables import Columns
from ..data.views import EvaluationDataset
from ..errors import RecipeError, listed
from ..losses import UNLABELLED, ProblemType
from ..models.label_names import match_classes, normal_forms, read_class_names, unique_names
from ..models.loading import load_model, load_processor
from ..trainer.trainer import DistillationTrainer
from ..trainer.training_args import DistillationTrainingArguments
from .arguments import Recipe
from .build import build_teacher
from .class_names import with_class_names
from .own_recipe import (
    class_names_file,
    columns_of_run,
    recipe_of,
    selection_of_run,
    split_of_run,
    teacher_arguments,
    teacher_view,
)

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
            if has_label(row)
            else (UNLABELLED,) * len(names)
            for row in source.labels
        ]
    else:
        labels = [match.indices[label] if has_label(label) else UNLABELLED for label in source.labels]
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


def _matched(
    source: Source, model: PreTrainedModel, own: Recipe | None, class_names: str | Path | None
) -> tuple[Source, list[list[int]]]:
    """Return `relabel` of a source. The default of `class_names` is the file of the model's own run."""
    problem_type = ProblemType(model.config.problem_type or ProblemType.SINGLE_LABEL)
    names = class_names_file(own) if class_names is None else class_names
    return _named_and_relabelled(source, model, problem_type, names)


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


@dataclass(frozen=True)
class EvaluationImages:
    """The images on which a saved model is evaluated, with the class names and the class order of the model.

    Args:
        source: The images that can be read, and their labels.
        same: Groups of indices of the model that have the same name as one class of the data, see `relabel`.
        own: The recipe that the model was trained by, if it is known.
        broken_images: Number of unreadable images, by the stage at which they were left out.
    """

    source: Source
    same: list[list[int]]
    own: Recipe | None
    broken_images: dict[str, int]


def evaluation_images(
    model: PreTrainedModel,
    name_or_path: str,
    data: str,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    selection: Selection | None = None,
    class_names: str | Path | None = None,
    unlabelled_rows: str = LEAVE_OUT,
) -> EvaluationImages:
    """Find the images of one split of `data`, as `evaluate` does, and match their classes with those of the model.

    Args:
        model: The loaded model. If `class_names` names its classes, its configuration gets these names. If it has several classes of
            one name, it gets a hook that adds their probabilities.
        name_or_path: Folder or Hub name of the model.
        data: As for `evaluate`.
        columns: As for `evaluate`.
        split: As for `evaluate`.
        selection: As for `evaluate`.
        class_names: As for `evaluate`.
        unlabelled_rows: What to do with images without a label, as in `load_validation`.

    Raises:
        UserError: The data cannot be loaded, or their classes are not those of the model.
    """
    own = recipe_of(name_or_path)
    found = images_to_evaluate(
        own, data, columns=columns, split=split, selection=selection, unlabelled_rows=unlabelled_rows
    )
    logger.info("Evaluating %d images of the split %r of %s.", len(found), found.split_name, data)
    validation = without_unreadable(found)
    source, same = _matched(validation, model, own, class_names)
    if same:
        logger.warning(
            "Several classes of the model have the name of one class of the data: %s. Each of them counts as right.",
            listed((f"{source.class_names[group[0]]} ({' and '.join(map(str, group))})" for group in same), str),
        )
        _merge_same_names(model, same)
    broken = {"left_out_at_scan": len(found.left_out), "left_out_of_validation": len(found) - len(validation)}
    return EvaluationImages(source, same, own, broken)


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
    # Also the teacher's fields are checked before the images are read.
    teacher_fields = teacher_arguments(recipe_of(name_or_path), teacher, teacher_problem_type)
    if teacher_view_size is not None and teacher_view_size < 1:
        raise RecipeError(f"teacher_view_size={teacher_view_size}: give a number of pixels, at least 1.")
    images = evaluation_images(
        model, name_or_path, data, columns=columns, split=split, selection=selection, class_names=class_names
    )
    source, own = images.source, images.own
    _report_constant_classes(source)
    dataset = EvaluationDataset(
        source,
        processor=processor,
        **({} if teacher is None else teacher_view(own, teacher_view_size)),
    )
    with tempfile.TemporaryDirectory() as unused:
        args = DistillationTrainingArguments(
            unused, distillation_type="none", per_device_eval_batch_size=batch_size, bf16=bf16, report_to="none"
        )
        loaded_teacher = build_teacher(teacher_fields)
        loss_on = _use_own_loss(args, None if images.same else own, has_teacher=teacher is not None)
        trainer = DistillationTrainer(model, loaded_teacher, args, eval_dataset=dataset, processing_class=processor)
        trainer.keep_rows = True
        if prepare is not None:
            prepare(trainer)
        metrics = trainer.evaluate()
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        "split": source.split_name,
        "metrics": metrics,
        "loss_on": loss_on,
        "per_class": per_class(trainer.rows, unique_names(source.class_names)),
        "broken_images": images.broken_images,
    }


def check_evaluation(
    name_or_path: str,
    data: str,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    selection: Selection | None = None,
    class_names: str | Path | None = None,
) -> None:
    """Check that a model can be evaluated on data, without reading its weights or decoding images.

    Args:
        name_or_path: Folder or Hub name of the model.
        data: As for `evaluate`.
        columns: As for `evaluate`.
        split: As for `evaluate`.
        selection: As for `evaluate`.
        class_names: As for `evaluate`.

    Raises:
        UserError: The model or its image processor is missing, the data cannot be loaded, or their classes are not those of the model.
    """
    model, own = load_model(name_or_path, with_weights=False), recipe_of(name_or_path)
    load_processor(name_or_path)
    found = images_to_evaluate(own, data, columns=columns, split=split, selection=selection)
    _matched(found, model, own, class_names)


def images_to_evaluate(
    own: Recipe | None,
    data: str,
    columns: Columns | None = None,
    split: str | None = None,
    selection: Selection | None = None,
    unlabelled_rows: str = LEAVE_OUT,
) -> Source:
    """Find the images of `data` on which a saved model is evaluated.

    Args:
        own: Recipe that the model was trained by, see `recipe_of`.
        data: As for `evaluate`.
        columns: As for `evaluate`.
        split: As for `evaluate`.
        selection: As for `evaluate`.
        unlabelled_rows: What to do with images without a label, as in `load_validation`.

    Raises:
        UserError: The data cannot be loaded.
    """
    share, seed = split_of_run(own, data)
    return load_validation(
        data,
        share,
        seed,
        columns_of_run(own, data) if columns in (None, Columns()) else columns,
        selection=selection_of_run(own, data) if selection in (None, Selection()) else selection,
        split=split,
        unlabelled_rows=unlabelled_rows,
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
