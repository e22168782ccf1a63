"""Training of a student from a recipe, as `hf-deit train` does it.

The functions write files and return plain dictionaries; the modules in cli/ print them.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..distillation.teacher import Teacher
from ..errors import PublishError
from ..files import staged_files, write_json
from ..hub.facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, read_facts
from ..hub.model_card import write_card
from ..trainer.checkpoints import newest_checkpoint
from ..trainer.trainer import DistillationTrainer
from .arguments import Recipe
from .build import build_trainer
from .overview import as_text, overview
from .reading import proposal_line
from .validate import load_validated

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    prepare: Callable[[DistillationTrainer], None] | None = None,
    concurrent_trainings: int = 1,
    teacher: Teacher | None = None,
    finish: Callable[[Recipe], Any] | None = None,
) -> dict[str, Any] | None:
    """Train a student and save it, its image processor, the recipe and the results in `output_dir`.

    Args:
        recipe: Recipe of the run.
        prepare: Function that is called with the trainer before its first step, to add callbacks.
        concurrent_trainings: Number of trainings that share the memory of this machine, this one included.
        teacher: Teacher of the recipe, if it is already loaded.
        finish: Function that is called in the first process when model, results and card are saved, and before they are published.

    Returns:
        The validation metrics of the saved weights; `split`, the split of the validation images; and `broken_images`, the
        number of unreadable images by how they were handled. None in processes other than the first.

    Raises:
        UserError: The recipe cannot be trained, or its run cannot be resumed.
        NonFiniteLossError: The training diverged.
    """
    output_dir = Path(recipe.training.output_dir)
    data = load_validated(recipe, teacher)
    trainer = build_trainer(recipe, data, teacher, concurrent_trainings=concurrent_trainings)
    if prepare is not None:
        prepare(trainer)
    if trainer.is_world_process_zero():
        logger.info("%s", as_text(overview(recipe, data, trainer)))
    if recipe.run.continues:  # again, now with the teacher's weights
        trainer.check_resumable(newest_checkpoint(output_dir), extend=recipe.run.extend)
    if trainer.is_world_process_zero():
        with staged_files(output_dir) as folder:
            (folder / RECIPE_FILE).write_text(_recipe_text(recipe), encoding="utf-8")
    try:
        trained = trainer.train(resume_from_checkpoint=recipe.run.continues or None, extend=recipe.run.extend)
    except KeyboardInterrupt:
        logger.info("Interrupted at step %d.", trainer.state.global_step)
        raise
    trainer.save_model(_internal_call=True)  # published below, when results and card are written
    metrics: dict[str, Any] = trainer.evaluate()
    metrics["split"] = data.validation.split_name
    metrics["broken_images"] = data.broken_images(trainer.train_dataset, trainer.accelerator)
    unlabelled = data.unlabelled_counts(trainer.train_dataset)
    if trainer.is_world_process_zero():
        _write_results(trainer, recipe, metrics | trained.metrics, unlabelled)
        if finish is not None:
            finish(recipe)
    if recipe.training.push_to_hub:
        trainer.push_to_hub()
    return metrics if trainer.is_world_process_zero() else None


def _recipe_text(recipe: Recipe) -> str:
    """Return the text of the saved recipe. If the recipe was proposed for the data, its first line states this."""
    line = "" if recipe.proposal is None else proposal_line(recipe.proposal)
    return line + yaml.safe_dump(recipe.to_dict(), sort_keys=True)


def _write_results(
    trainer: DistillationTrainer, recipe: Recipe, metrics: dict[str, Any], unlabelled: dict[str, int] | None
) -> None:
    """Write results.json, the log and the model card into the folder of the weights."""
    output_dir = Path(recipe.training.output_dir)
    speed = ("train_runtime", "train_samples_per_second")
    results = {name: value for name, value in metrics.items() if name.startswith("eval_") or name in speed}
    results |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    results |= {"broken_images": metrics["broken_images"], "run": trainer.summary().run}
    if unlabelled is not None:
        results["unlabelled"] = unlabelled
    if trainer.extensions:
        results["extensions"] = trainer.extensions
    results |= trainer.ending
    if recipe.proposal is not None:
        results["proposal"] = dict(recipe.proposal)
    write_json(output_dir / RESULTS_FILE, results)
    write_json(output_dir / LOG_FILE, trainer.state.log_history)
    try:
        write_card(output_dir, read_facts(output_dir), output_dir.resolve().name)
    except PublishError as error:
        logger.warning("No model card was written: %s", error)
