"""What `hf-deit train` does: train a student from a recipe.

Functions return plain dictionaries and write files; printing is the command line's business.
"""

import copy
import dataclasses
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
from ..hub.facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, read_facts
from ..hub.model_card import write_card
from ..models.configuration_deit import as_pair
from ..models.fine_tuning import set_trainable
from ..trainer.checkpoints import check_same_run, checkpoints, newest_checkpoint
from ..trainer.trainer import DistillationTrainer
from ..trainer.validation import Problems
from .arguments import Recipe, TeacherArguments
from .build import build_processor, build_student, build_teacher, choose_attention
from .data import RunData, load_run_data

logger = logging.getLogger(__name__)


def build_trainer(recipe: Recipe, data: RunData | None = None, concurrent_trainings: int = 1) -> DistillationTrainer:
    """Build everything that a recipe names, and check it together before the first step.

    Args:
        recipe: Recipe of the run.
        data: Its data, if they are loaded already.
        concurrent_trainings: Number of trainings that share the memory of this machine, this one included.
    """
    args = copy.copy(recipe.training)  # the trainer changes its arguments
    set_seed(args.seed)
    data = data if data is not None else load_run_data(recipe)
    distils = args.distillation_type != "none" and args.distillation_target in (None, "token")
    problems, student, teacher = Problems(), None, None
    with problems.gathered():
        student = build_student(recipe.model, data.train.class_names, distils, data.train.problem_type)
        choose_attention(student, args)
        count = set_trainable(student, recipe.model.trainable)
        logger.info("%s of %s parameters learn.", f"{count:,}", f"{student.num_parameters():,}")
    with problems.gathered():
        teacher = _teacher_of(recipe.teacher)
    image_size = as_pair(
        getattr(getattr(student, "config", None), "image_size", None) or recipe.model.image_size or 224
    )
    augmentation = dataclasses.replace(recipe.augmentation, view_size=recipe.augmentation.view_size or image_size)
    with problems.gathered():
        processor = build_processor(recipe.model.model, image_size, recipe.data.evaluation_crop_ratio)
    problems.raise_all()
    training_set = data.training_set(
        augmentation,
        seed=args.seed,
        step_size=args.global_batch_size,
        concurrent_trainings=concurrent_trainings,
    )
    try:
        return DistillationTrainer(
            student,
            teacher,
            args,
            train_dataset=training_set,
            eval_dataset=EvaluationDataset(
                data.validation, image_size, recipe.data.evaluation_crop_ratio, augmentation.view_size
            ),
            processing_class=processor,
            teacher_cache=recipe.teacher.teacher_cache,
            verify_teacher_cache=recipe.teacher.verify_teacher_cache,
        )
    except UserError:
        raise
    except ValueError as error:  # the Trainer's own word on an argument
        raise RecipeError(str(error)) from error


def check_recipe(recipe: Recipe, data: RunData) -> None:
    """Builds the trainer of a recipe and lets it go: what a training would refuse before its first step is refused now.

    Args:
        recipe: To be trained some time; its output_dir is not touched.
        data: Its data.

    Raises:
        UserError: A field has a value that cannot be, or two are at odds.
    """
    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # what is built is no news yet
    try:
        with tempfile.TemporaryDirectory() as output_dir:
            build_trainer(recipe.replace(output_dir=output_dir), data)
    finally:
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


def train(
    recipe: Recipe, prepare: Callable[[DistillationTrainer], None] | None = None, concurrent_trainings: int = 1
) -> dict[str, Any] | None:
    """Trains a student and saves it, its processor, the recipe and the results in `output_dir`.

    Args:
        recipe: Of the run.
        prepare: Gets the trainer before its first step, to add callbacks.
        concurrent_trainings: Number of trainings that share the memory of this machine, this one included.

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
    trainer = build_trainer(recipe, data, concurrent_trainings)
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
    """Write results.json, the log and the model card into the folder of the weights."""
    speed = ("train_runtime", "train_samples_per_second")
    results = {name: value for name, value in metrics.items() if name.startswith("eval_") or name in speed}
    results |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    results |= {"broken_images": metrics["broken_images"], "run": trainer.summary().run}
    write_json(output_dir / RESULTS_FILE, results)
    write_json(output_dir / LOG_FILE, trainer.state.log_history)
    try:
        write_card(output_dir, read_facts(output_dir), output_dir.resolve().name)
    except PublishError as error:
        logger.warning("No model card was written: %s", error)
