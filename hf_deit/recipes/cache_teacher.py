"""Builders of teacher caches: the cache of one recipe (`hf-deit cache-teacher`), and caches shared by runs of an experiment.

distillation/cache_builder.py runs the teacher. A training (train.py) uses the cache that its recipe names as `teacher_cache`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data.views import EvaluationDataset
from ..distillation.cache import RecordFormat, TeacherCache, finished_epochs
from ..distillation.cache_builder import build_teacher_cache
from ..distillation.cache_writer import check_cache_folder
from ..distillation.guidance import Guidance
from ..distillation.teacher import Teacher
from ..distillation.view_schedule import describe_views
from ..errors import RecipeError, TeacherCacheError
from ..fingerprints import short_digest_of
from ..hub.facts import without_machine
from ..losses import ProblemType
from ..trainer.checks import odd_batch_problems, unlabelled_problems
from ..trainer.guided_student import guided_student
from ..trainer.student import inspect_student
from ..trainer.training_args import DistillationTrainingArguments
from .arguments import Recipe
from .build import build_teacher, student_of
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
    """Build the teacher cache of a recipe, resume its build, or extend it.

    Args:
        recipe: Recipe of the training: its data, augmentation, mixing, seed, batch size, teacher and temperature are used, and
            with guidance also its student, whose patches decide what is stored.
        out: Folder of the cache.
        epochs: Number of epochs of views. Default: up to the last one that the training shows.
        first: Number of the first epoch of views; above 0 to build a part that is merged later.
        kind: "hard" (decisions) or "soft" (logits). Default: the distillation_type of the recipe; soft if it is none and
            the recipe has guidance.
        top_k: Number of largest logits to keep, with the log-sum-exp of the others at distillation_tau; only for kind "soft".
            Default: all logits. It is refused for multi-label data.
        dtype: Data type of cached logits, "float32" or "float16".

    Returns:
        `TeacherCache.summary`; for a part whose folder lacks the epochs before `first`, `{"first": …, "view_epochs": …}`; None
        in processes other than the first.

    Raises:
        UserError: An argument or a field is not allowed, or the folder holds a different cache.
    """
    args = recipe.training
    _check_numbers(args, epochs, first)
    check_cache_folder(out)
    data, view_size = load_run_data(recipe), view_size_of(recipe)
    augmentation = dataclasses.replace(recipe.augmentation, view_size=view_size)
    dataset = data.training_set(augmentation, args.seed, args.global_batch_size)
    describe_views(dataset, args.mixing)  # raises an error for a stream before the teacher is loaded
    for message in unlabelled_problems(args, dataset, learns=True):
        raise RecipeError(message)
    schedule = args.view_schedule(dataset, args.dataloader_num_workers)
    wanted = _epochs(schedule.epochs_shown, epochs, first)
    teacher = build_teacher(recipe.teacher)
    if teacher is None:
        raise RecipeError("The recipe names no teacher whose outputs can be cached: give --teacher.")
    names = [name.strip() for name in dataset.class_names]
    record_format = _record_format(
        args, len(dataset.class_names), kind, top_k=top_k, dtype=dtype, problem_type=dataset.problem_type
    )
    teacher.check_problem_type(dataset.problem_type)
    teacher.to(args.device).align(names, len(names), view_size)
    guidance = _guidance(recipe, teacher, dataset, view_size)
    if guidance is not None:
        record_format = dataclasses.replace(record_format, extra_arrays=guidance.arrays)
    build_teacher_cache(
        out,
        teacher,
        schedule,
        record_format,
        wanted,
        validation=EvaluationDataset(data.validation, view_size, recipe.data.evaluation_crop_ratio),
        share=(args.process_index, args.world_size),
        teacher_name=_published_teacher_name(recipe.teacher.teacher),
        guidance=guidance,
        disable_tqdm=args.disable_tqdm,
    )
    if args.world_size > 1:
        PartialState().wait_for_everyone()
    if args.process_index:
        return None
    is_part = first > 0 and not set(range(first)) <= set(finished_epochs(Path(out)))
    return {"first": first, "view_epochs": len(wanted)} if is_part else TeacherCache(out).summary()


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the summary of a cache as rows of a table: names in words, and rounded figures."""
    shown = {name: value for name, value in summary.items() if value is not None}
    rows = []
    if "kind" in shown:
        of_logits = f"{shown.pop('dtype', '')} (soft)"
        rows.append(
            {
                "hard": "classes (hard)",
                "dense": f"all logits, {of_logits}",
                "top_k": f"the {shown.pop('top_k', None)} largest logits, for τ = {shown.pop('tau', None)}, {of_logits}",
            }[shown.pop("kind")]
        )
        rows = [("teacher outputs", rows[0])]
    if "extra_arrays" in shown:
        rows += [
            ("guidance", f"{array['name']}, {' × '.join(map(str, array['shape']))}, {array['dtype']}")
            for array in shown.pop("extra_arrays")
        ]
    titles = {"first": "first epoch of views", "num_labels": "classes", "view_epochs": "epochs of views"}
    titles |= {"teacher_accuracy": "top-1 accuracy, teacher", "teacher_f1_micro": "F1, micro, teacher"}
    for name, value in shown.items():
        title = titles.get(name) or name.replace("_", " ")
        share = isinstance(value, float) and name.startswith("teacher_")
        rows.append(
            (title, f"{100 * value:.2f} %" if share else f"{value:,}" if isinstance(value, int) else str(value))
        )
    return rows


def _guidance(recipe: Recipe, teacher: Teacher, dataset: Any, view_size: tuple[int, int]) -> Guidance | None:
    """Return what is stored for the guidance of a recipe; None if it has none. The student's weights are not read."""
    args = recipe.training
    if args.guidance == "none":
        return None
    state = torch.get_rng_state()
    student = student_of(recipe, dataset.class_names, dataset.problem_type, with_weights=False)
    torch.set_rng_state(state)
    guided = guided_student(student, args, inspect_student(student, view_size), view_size)
    layers = teacher.find_layers(args.guidance_teacher_layers, [shape.grid for shape in guided.shapes], view_size)
    return Guidance(args.guidance, guided.shapes, layers)


def _epochs(shown: int, epochs: int | None, first: int) -> range:
    """Return the epochs of views to build, given the number of epochs of views that the training shows."""
    if epochs is None and first >= shown:
        raise RecipeError(
            f"first_view={first}: the training shows epochs of views 0 to {shown - 1}. Choose one of them, or give the "
            "number of epochs of views to build with --views."
        )
    return range(first, shown if epochs is None else first + epochs)


def _check_numbers(args: DistillationTrainingArguments, epochs: int | None, first: int) -> None:
    for message in odd_batch_problems(args):
        raise RecipeError(message)
    if (epochs is not None and epochs < 1) or first < 0:
        raise RecipeError(f"views={epochs}, first_view={first}: views must be at least 1, and first_view at least 0.")


def _record_format(
    args: DistillationTrainingArguments,
    num_labels: int,
    kind: str | None,
    *,
    top_k: int | None,
    dtype: str,
    problem_type: ProblemType,
) -> RecordFormat:
    if kind is None:
        kind = "soft" if args.distillation_type == "none" and args.guidance != "none" else args.distillation_type
    if kind not in ("hard", "soft"):
        raise RecipeError(
            f"kind={kind!r}: choose hard (classes) or soft (logits). The default is the distillation_type of the recipe."
        )
    if kind == "hard":
        if top_k is not None or dtype != "float32":
            raise TeacherCacheError(
                f"top_k={top_k}, dtype={dtype!r} with kind='hard', which stores class indices and no logits: give --kind "
                "soft, or leave out top_k and dtype."
            )
        return RecordFormat("hard", num_labels, problem_type=problem_type)
    if top_k is None:
        return RecordFormat("dense", num_labels, dtype, problem_type=problem_type)
    return RecordFormat("top_k", num_labels, dtype, top_k, args.distillation_tau, problem_type=problem_type)


def cache_folder(caches: Path, recipe: Recipe, teacher: str) -> Path:
    """Return the folder of the cache that runs with the same views and teacher share.

    The name of the folder is a digest of everything in the recipe that the cached outputs depend on. The data are not read.

    Args:
        caches: Folder that holds all caches.
        recipe: Recipe of a training.
        teacher: Fingerprint of the teacher that the recipe names.
    """
    return caches / short_digest_of(_describe_outputs(recipe, teacher))


# Fields of the data that a description holds only if they are given.
_LATER_DATA_FIELDS = (
    "class_names",
    "data_config",
    "data_revision",
    "split_column",
    "train_split",
    "validation_split",
    "unlabelled",
    "unlabelled_split",
)


def _describe_outputs(recipe: Recipe, teacher: str) -> dict[str, Any]:
    args = recipe.training
    data, settings = dataclasses.asdict(recipe.data), dataclasses.asdict(recipe.teacher)
    del data["views_memory"]
    for name in _LATER_DATA_FIELDS:  # caches of earlier versions are described without them
        if data[name] is None:
            del data[name]
    if recipe.data.unlabelled is None:
        del data["unlabelled_share"]
    else:
        data["unlabelled"] = recipe.to_dict()["unlabelled"]
    # The fingerprint identifies the teacher; its outputs do not depend on its problem type.
    for name in ("teacher", "teacher_weights", "teacher_cache", "verify_teacher_cache", "teacher_problem_type"):
        del settings[name]
    # With num_views the views repeat, and the length of the training does not matter.
    length = None if args.num_views else {"epochs": args.num_train_epochs, "max_steps": args.max_steps}
    return {
        "data": {**data, "data": recipe.to_dict()["data"]},  # with its path resolved
        "augmentation": dataclasses.replace(recipe.augmentation, view_size=view_size_of(recipe)).describe(),
        "mixing": args.mixing.describe(),
        "seed": args.seed,
        "repeats": args.repeated_augmentation,
        # The rounding of the teacher depends on its batch size.
        "batch_size": args.train_batch_size,
        "global_batch_size": args.global_batch_size,
        "num_views": args.num_views,
        "length": length,
        "teacher": {**settings, "fingerprint": teacher},
        **_describe_guidance(recipe),
    }


def _describe_guidance(recipe: Recipe) -> dict[str, Any]:
    """Return what the records for guidance depend on in a recipe; empty if it has no guidance."""
    args, model = recipe.training, recipe.model
    if args.guidance == "none":
        return {}
    layers = {name: getattr(args, name) for name in ("guidance_student_layers", "guidance_teacher_layers")}
    # The grid of the student's patches.
    grid = {"model": recipe.to_dict()["model"], "image_size": model.image_size, "patch_size": model.patch_size}
    return {"guidance": {"kind": args.guidance, **layers, **grid}}


def length_of(recipe: Recipe) -> tuple[float, float]:
    """Return a sort key for recipes that share a cache: the longest training shows the most epochs of views."""
    return max(recipe.training.max_steps, 0), recipe.training.num_train_epochs


def build_shared_cache(recipe: Recipe, folder: Path) -> None:
    """Build, resume or extend a cache of all logits, which trainings of every kind, tau and alpha can use."""
    cache_teacher(recipe, folder, kind="soft")


def _published_teacher_name(name: str) -> str:
    """Return the name of a teacher for reports and cards. A folder of this machine becomes `./name`, never a Hub name."""
    path = Path(name).expanduser()
    return without_machine(str(path.resolve()) if path.exists() else name)
