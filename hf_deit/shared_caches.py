"""Teacher caches that several trainings share: one for every distinct set of views.

A set of views has a folder of its own, named by what changes pixels or their order; which fields these are stands here. The
caches themselves are cache_runs.py's business, which trainings there are that of ablation_runs.py and sweep_runs.py.
"""

from pathlib import Path

from .checkpointing import short_digest_of
from .recipe import Recipe
from .run_data import view_size_of

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
    from .cache_runs import cache_teacher

    cache_teacher(recipe, folder, kind="soft")
