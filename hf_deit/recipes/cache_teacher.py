"""What `hf-deit cache-teacher` does: the teacher, data and views of a recipe, and a cache built of them.

The loop is in cache_builder.py; a training by the cache needs no more than the recipe's `teacher_cache` (train.py).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.views import EvaluationDataset
from ..distillation.cache import RecordFormat, TeacherCache, finished_epochs
from ..distillation.cache_builder import build_teacher_cache
from ..distillation.cache_writer import check_folder
from ..distillation.view_schedule import describe_views
from ..errors import RecipeError, TeacherCacheError
from ..fingerprints import short_digest_of
from ..hub.facts import without_machine
from ..trainer.training_args import DistillationTrainingArguments
from .arguments import Recipe
from .build import build_teacher
from .data import load_run_data, view_size_of


def cache_teacher(
    recipe: Recipe,
    out: str | Path,
    epochs: int | None = None,
    first: int = 0,
    kind: str | None = None,
    top_k: int | None = None,
    dtype: str = "float32",
) -> dict[str, Any] | None:
    """Builds a recipe's teacher cache, goes on with it, or extends it.

    Args:
        recipe: Of the training: data, augmentation, mixing, seed, batch size, teacher, temperature.
        out: The folder.
        epochs: Number of epochs of views. Default: to the last one that the training shows.
        first: The first of them; above 0 for a part that is merged later.
        kind: "hard" or "soft". Default: the recipe's distillation_type.
        top_k: Of soft answers keep the K largest logits and the log-sum-exp of the rest at distillation_tau. Default: all.
        dtype: Of stored logits, "float32" or "float16".

    Returns:
        `TeacherCache.summary`, or for a part whose folder lacks the epochs before `first` `{"first": …, "view_epochs": …}`;
        None in processes other than the first.

    Raises:
        UserError: Something given is not allowed, or the folder holds another cache.
    """
    args = recipe.training
    _check_numbers(args, epochs, first)
    check_folder(out)
    data, view_size = load_run_data(recipe), view_size_of(recipe)
    augmentation = replace(recipe.augmentation, view_size=view_size)
    dataset = data.training_set(augmentation, args.seed, args.global_batch_size)
    describe_views(dataset, args.mixing)  # refuses a stream before a teacher is loaded
    views = args.view_schedule(dataset, args.dataloader_num_workers)
    wanted = _wanted(views.epochs_shown, epochs, first)
    teacher = build_teacher(recipe.teacher)
    if teacher is None:
        raise RecipeError("The recipe names no teacher whose answers could be stored: give --teacher.")
    names = [name.strip() for name in dataset.class_names]
    teacher.to(args.device).align(names, len(names), view_size)
    record_format = _record_format(args, len(names), kind, top_k, dtype)
    validation = EvaluationDataset(data.validation, view_size, recipe.data.evaluation_crop_ratio)
    share = (args.process_index, args.world_size)
    name = without_machine(recipe.teacher.teacher)
    build_teacher_cache(out, teacher, views, record_format, wanted, validation, share=share, teacher_name=name)
    if args.world_size > 1:
        PartialState().wait_for_everyone()
    if args.process_index:
        return None
    is_part = first > 0 and not set(range(first)) <= set(finished_epochs(Path(out)))
    return {"first": first, "view_epochs": len(wanted)} if is_part else TeacherCache(out).summary()


def _wanted(shown: int, epochs: int | None, first: int) -> range:
    """The epochs of views that are asked for, of those that the training shows."""
    if epochs is None and first >= shown:
        raise RecipeError(
            f"first_view={first}: the training shows epochs of views 0 to {shown - 1}. Choose one of them, or say with --views "
            "how many more are wanted."
        )
    return range(first, shown if epochs is None else first + epochs)


def _check_numbers(args: DistillationTrainingArguments, epochs: int | None, first: int) -> None:
    if args.train_batch_size % 2:
        raise RecipeError(
            f"per_device_train_batch_size={args.per_device_train_batch_size} is odd: images are paired, so use an even one."
        )
    if (epochs is not None and epochs < 1) or first < 0:
        raise RecipeError(f"views={epochs}, first_view={first}: at least 1 epoch of views, the first at least 0.")


def _record_format(
    args: DistillationTrainingArguments, num_labels: int, kind: str | None, top_k: int | None, dtype: str
) -> RecordFormat:
    kind = kind if kind is not None else args.distillation_type
    if kind not in ("hard", "soft"):
        raise RecipeError(f"kind={kind!r}: choose hard (decisions) or soft (logits); the recipe's type is the default.")
    if kind == "hard":
        if top_k is not None or dtype != "float32":
            raise TeacherCacheError(
                f"top_k={top_k}, dtype={dtype!r} with hard answers, which are class indices: give --kind soft, or leave them out."
            )
        return RecordFormat("hard", num_labels)
    if top_k is None:
        return RecordFormat("dense", num_labels, dtype)
    return RecordFormat("top_k", num_labels, dtype, top_k, args.distillation_tau)


# What the teacher's answers depend on; everything else may differ between runs that share a cache.
_VIEW_FIELDS = (
    *("view_size", "crop_scale", "crop_aspect", "flip_probability", "auto_augment", "randaugment_magnitude"),
    *("randaugment_magnitude_std", "randaugment_probability", "randaugment_num_ops", "color_jitter"),
    *("erasing_probability", "mixup_alpha", "cutmix_alpha", "mix_probability", "mix_switch_probability"),
    *("repeated_augmentation", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("num_views", "num_train_epochs", "max_steps", "validation_share", "evaluation_crop_ratio", "broken_images"),
    *("image_column", "label_column", "label_separator", "teacher_image_mean", "teacher_image_std"),
    *("teacher_image_size", "teacher_labels", "teacher_dtype"),
)


def cache_folder(caches: Path, recipe: Recipe, teacher: str) -> Path:
    """Gives the folder of the views of a recipe.

    Args:
        caches: Where all of them lie.
        recipe: Of the training.
        teacher: Its fingerprint.
    """
    fields = recipe.to_dict()
    told = {name: fields[name] for name in _VIEW_FIELDS}
    told["view_size"] = view_size_of(recipe)
    if told["num_views"]:  # the views come again: how long the training is does not matter
        told["num_train_epochs"] = told["max_steps"] = None
    return caches / short_digest_of([told, fields["data"], teacher])


def length_of(recipe: Recipe) -> tuple[float, float]:
    """Orders recipes of one set of views: the longest asks for the most of them."""
    return max(recipe.training.max_steps, 0), recipe.training.num_train_epochs


def build_shared_cache(recipe: Recipe, folder: Path) -> None:
    """Builds a cache that serves every kind, tau and alpha, goes on with one, or adds the views that it lacks."""

    cache_teacher(recipe, folder, kind="soft")
