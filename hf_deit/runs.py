"""What the commands do: train a student from a recipe, evaluate a model, predict images.

Functions return plain dictionaries and write files; printing is the command line's business.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import set_seed

from .averaging_trainer import EMA_FOLDER
from .building import build_processor, build_student, build_teacher, choose_attention, load_model, load_processor
from .checkpointing import check_same_run, checkpoints, newest_checkpoint, staged_files, write_json
from .checks import Problems
from .configuration_deit import as_pair
from .data import EvaluationDataset
from .errors import UserError
from .fine_tuning import set_trainable
from .model_card import Statements, write_card
from .recipe import Recipe, RecipeError, TeacherArguments, as_size, build_augmentation, load_recipe
from .run_data import ProcessedDataset, RunData, columns_of, load_run_data, relabel
from .run_facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, CardError, describe_run, read_facts
from .sources import Source, is_image_folder, load_validation, without_unreadable
from .tables import Columns
from .teacher import Teacher
from .trainer import DistillationTrainer
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


def build_trainer(recipe: Recipe, data: RunData | None = None) -> DistillationTrainer:
    """Builds everything a recipe names, and checks it together, before the first step; `data` if they are loaded."""
    args = recipe.training
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
    place = recipe.training.output_dir
    try:
        with tempfile.TemporaryDirectory() as recipe.training.output_dir:
            build_trainer(recipe, data)
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
    except CardError as error:
        logger.warning("No card was rendered: %s", error)


def render_model_card(folder: str, statements: Statements | None = None) -> Path:
    """Renders the card of a saved model again, from the files in its folder.

    Args:
        folder: Of the model.
        statements: What only the author can say; what the card that lies there says is kept.

    Returns:
        The path of the card.

    Raises:
        CardError: There is no model, or a README.md that was written by hand.
    """
    return write_card(folder, read_facts(folder), Path(folder).resolve().name, statements)


def evaluate(
    name_or_path: str,
    data: str,
    teacher: str | None = None,
    teacher_view_size: int | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    columns: Columns | None = None,
) -> dict[str, Any]:
    """Evaluates a saved model on the validation images of `data`.

    Of data without a validation split all images are used; unless the model's own recipe.yaml says that it was trained on
    them, then those it had split off.

    Args:
        name_or_path: Of the model.
        data: As `load_splits`.
        teacher: As `Teacher.from_pretrained`; adds its accuracy and the agreement. If it is the one of the model's own
            recipe.yaml, the other `teacher_` fields there (weights, mean, std, size, labels, dtype) hold too.
        teacher_view_size: Side in pixels of the view the teacher sees; default: the model's pixels.
        batch_size: Images at a time.
        bf16: Autocast.
        columns: Of a table; default: those of the model's own recipe.yaml.

    Returns:
        `metrics` by name; `per_class` with `accuracy` (`average_precision` where images have several classes) and `images`
        of each class; `broken_images`, how many were left out because they cannot be read.

    Raises:
        UserError: Model, data or teacher do not exist or do not go together.
    """
    from .metrics import per_class

    model, processor = load_model(name_or_path), load_processor(name_or_path)
    if batch_size < 1:
        raise RecipeError(f"batch_size={batch_size}: at least 1.")
    own = _recipe_of(name_or_path)
    found = load_validation(data, *_split_of(own, data), columns or _columns_of(own, data))
    validation = without_unreadable(found)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    problem_type = model.config.problem_type or "single_label_classification"
    if teacher_view_size is not None and teacher_view_size < 1:
        raise RecipeError(f"teacher_view_size={teacher_view_size}: a number of pixels, at least 1.")
    view_size = as_pair(teacher_view_size) if teacher is not None and teacher_view_size is not None else None
    dataset = ProcessedDataset(relabel(validation, names, problem_type), processor, view_size)
    with tempfile.TemporaryDirectory() as unused:
        args = DistillationTrainingArguments(
            unused, distillation_type="none", per_device_eval_batch_size=batch_size, bf16=bf16, report_to="none"
        )
        asked = build_teacher(_teacher_arguments(own, teacher))
        trainer = DistillationTrainer(model, asked, args, eval_dataset=dataset, processing_class=processor)
        trainer.keep_rows = True
        metrics = trainer.evaluate()
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    broken = {"left_out_at_scan": len(found.left_out), "left_out_of_validation": len(found) - len(validation)}
    return {"metrics": metrics, "per_class": per_class(trainer.rows, names), "broken_images": broken}


def _recipe_of(name_or_path: str) -> Recipe | None:
    """The recipe a model here was trained by; None if there is none, or none that can be read."""
    folder = Path(name_or_path)
    if folder.name == EMA_FOLDER and folder.parent.name.startswith("checkpoint-"):
        folder = folder.parent
    file = (folder.parent if folder.name.startswith("checkpoint-") else folder) / RECIPE_FILE
    if not file.is_file():
        return None
    try:
        return load_recipe(file, [])
    except RecipeError as error:
        logger.warning("%s cannot be read (%s): images it was trained on may be among those evaluated.", file, error)
        return None


def _same_path(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return False
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _split_of(own: Recipe | None, data: str) -> tuple[float | None, int]:
    """The share and the seed with which a model's own run split the data; (None, 0) if it was not trained on them."""
    if own is None or not _same_path(own.data.data, data):
        return None, 0
    return own.data.validation_share, own.training.seed


def _columns_of(own: Recipe | None, data: str) -> Columns | None:
    """The columns a model's own run read; other tables are taken to have them too."""
    return None if own is None or is_image_folder(data) else columns_of(own.data)


def _teacher_arguments(own: Recipe | None, teacher: str | None) -> TeacherArguments:
    """The fields of a teacher: the model's own run's if it is the teacher of that run."""
    if own is not None and _same_path(own.teacher.teacher, teacher):
        return own.teacher
    return TeacherArguments(teacher=teacher)


@torch.no_grad()
def predict(name_or_path: str, images: Sequence[str], top_k: int = 5) -> list[list[tuple[str, float]]]:
    """Gives the `top_k` most probable class names of each image, with their probabilities.

    Of a model for several classes an image these are sigmoids, each class by itself: above 0.5 the image has the class.

    Raises:
        UserError: The model or an image cannot be read.
    """
    if top_k < 1:
        raise RecipeError(f"top_k={top_k}: at least 1.")
    model, processor = load_model(name_or_path).eval(), load_processor(name_or_path)
    source = Source(list(images), [0] * len(images), ("",), "", "the images given")
    answers = []
    for index in range(len(images)):
        pixels = processor(source.image(index), return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=pixels).logits[0].float()
        several = model.config.problem_type == "multi_label_classification"
        probabilities = logits.sigmoid() if several else logits.softmax(dim=-1)
        best = probabilities.topk(min(top_k, len(probabilities)))
        answers.append(
            [(model.config.id2label[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        )
    return answers
