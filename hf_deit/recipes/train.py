"""What the commands do: train a student from a recipe, evaluate a model, predict images.

Functions return plain dictionaries and write files; printing is the command line's business.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import set_seed

from ..data.views import EvaluationDataset
from ..distillation.teacher import Teacher
from ..errors import PublishError, RecipeError, UserError
from ..files import staged_files, write_json
from ..hub.facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, describe_run, read_facts
from ..hub.model_card import write_card
from ..models.configuration_deit import as_pair
from ..models.fine_tuning import set_trainable
from ..trainer.checkpoints import check_same_run, checkpoints, newest_checkpoint
from ..trainer.trainer import DistillationTrainer
from ..trainer.validation import Problems
from .arguments import Recipe, TeacherArguments, as_size
from .build import build_augmentation, build_processor, build_student, build_teacher, choose_attention
from .data import RunData, load_run_data

logger = logging.getLogger(__name__)


def build_trainer(recipe: Recipe, data: RunData | None = None, teacher: Teacher | None = None) -> DistillationTrainer:
    """Builds everything a recipe names, and checks it together, before the first step; `data` and `teacher` if they are loaded."""
    args = recipe.training
    set_seed(args.seed)
    data = data if data is not None else load_run_data(recipe)
    distils = args.distillation_type != "none" and args.distillation_target in (None, "token")
    problems, student = Problems(), None
    with problems.gathered():
        student = build_student(recipe.model, data.train.class_names, distils, data.train.problem_type)
        choose_attention(student, args)
        count = set_trainable(student, recipe.model.trainable)
        logger.info("%s of %s parameters learn.", f"{count:,}", f"{student.num_parameters():,}")
    with problems.gathered():
        teacher = teacher if teacher is not None else _teacher_of(recipe.teacher)
    image_size = as_pair(
        getattr(getattr(student, "config", None), "image_size", None)
        or as_size("image_size", recipe.model.image_size)
        or 224
    )
    view_size = as_size("view_size", recipe.data.view_size) or image_size
    with problems.gathered():
        augmentation = build_augmentation(recipe.augmentation, view_size)
    with problems.gathered():
        processor = build_processor(recipe.model.model, image_size, recipe.data.evaluation_crop_ratio)
    problems.raise_all()
    try:
        return DistillationTrainer(
            student,
            teacher,
            args,
            train_dataset=data.training_set(augmentation, args.seed, args.global_batch_size),
            eval_dataset=EvaluationDataset(data.validation, image_size, recipe.data.evaluation_crop_ratio, view_size),
            processing_class=processor,
            teacher_cache=recipe.teacher.teacher_cache,
            verify_teacher_cache=recipe.teacher.verify_teacher_cache,
        )
    except UserError:
        raise
    except ValueError as error:  # the Trainer's own word on an argument
        raise RecipeError(str(error)) from error


def check_recipe(recipe: Recipe, data: RunData, teacher: Teacher | None = None) -> None:
    """Builds the trainer of a recipe and lets it go: what a training would refuse before its first step is refused now.

    Args:
        recipe: To be trained some time; its output_dir is not touched.
        data: Its data.
        teacher: Its teacher, if it is loaded already.

    Raises:
        UserError: A field has a value that cannot be, or two are at odds.
    """
    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # what is built is no news yet
    place = recipe.training.output_dir
    try:
        with tempfile.TemporaryDirectory() as recipe.training.output_dir:
            build_trainer(recipe, data, teacher)
    finally:
        recipe.training.output_dir = place
        logging.disable(level)


def _teacher_of(arguments: TeacherArguments) -> Teacher | None:
    """Builds the teacher; where its stored answers are used and it is only to be compared, it may be gone."""
    try:
        return build_teacher(arguments)
    except RecipeError:
        raise
    except UserError as error:
        if arguments.teacher_cache is None or arguments.verify_teacher_cache:
            raise
        logger.warning(
            "%s\nIts stored answers in %s are used, and its fingerprint is not compared with theirs.",
            *(error, arguments.teacher_cache),
        )
        return None


def train(recipe: Recipe, prepare: Callable[[DistillationTrainer], None] | None = None) -> dict[str, Any] | None:
    """Trains a student and saves it, its processor, the recipe and the results in `output_dir`.

    Args:
        recipe: Of the run.
        prepare: Gets the trainer before its first step, to add callbacks.

    Returns:
        The validation metrics of the saved weights, and `broken_images`, how many there were by what was done; None in
        processes other than the first.

    Raises:
        UserError: Something given is not allowed.
        NonFiniteLossError: Training diverged.
    """
    output_dir = Path(recipe.training.output_dir)
    if not recipe.run.resume and (checkpoints(output_dir) or any(output_dir.glob("model.safetensors*"))):
        raise RecipeError(
            f"{output_dir} holds an earlier run. Add --resume to go on from its checkpoints, or choose another --output_dir."
        )
    data = load_run_data(recipe)
    trainer = build_trainer(recipe, data)
    if prepare is not None:
        prepare(trainer)
    logger.info("Recipe, defaults included:\n%s", yaml.safe_dump(recipe.to_dict(), sort_keys=True))
    if recipe.run.resume:
        check_same_run(newest_checkpoint(output_dir), trainer.run_description())
    if trainer.is_world_process_zero():
        with staged_files(output_dir) as folder:
            (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=True))
    trained = trainer.train(resume_from_checkpoint=True if recipe.run.resume else None)
    trainer.save_model(_internal_call=True)  # published once results and card are there
    metrics: dict[str, Any] = trainer.evaluate()
    metrics["broken_images"] = data.broken_images(trainer.train_dataset, trainer.accelerator)
    if trainer.is_world_process_zero():
        _write_results(trainer, output_dir, metrics | trained.metrics)
    if recipe.training.push_to_hub:
        trainer.push_to_hub()
    return metrics if trainer.is_world_process_zero() else None


def _write_results(trainer: DistillationTrainer, output_dir: Path, metrics: dict[str, Any]) -> None:
    """Writes what came out of a run beside its weights: the figures, the log, and the card made of them."""
    speed = ("train_runtime", "train_samples_per_second")
    results = {name: value for name, value in metrics.items() if name.startswith("eval_") or name in speed}
    results |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    results |= {"broken_images": metrics["broken_images"], "run": describe_run(trainer)}
    write_json(output_dir / RESULTS_FILE, results)
    write_json(output_dir / LOG_FILE, trainer.state.log_history)
    try:
        write_card(output_dir, read_facts(output_dir), output_dir.resolve().name)
    except PublishError as error:
        logger.warning("No card was rendered: %s", error)
