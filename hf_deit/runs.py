"""What the commands do: train a student from a recipe, evaluate a model, predict images.

Functions return plain dictionaries and write files; printing is the command line's business.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel, set_seed
from transformers.image_processing_base import ImageProcessingMixin

from .augmentation import Augmentation
from .averaging_trainer import EMA_FOLDER
from .checkpointing import check_same_run, checkpoints, newest_checkpoint, staged_files, write_json
from .configuration_deit import DeiTConfig, ViTConfig, as_pair
from .data import EvaluationDataset, ViewDataset
from .errors import UserError
from .image_processing_deit import DeiTImageProcessor
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from .recipe import ModelArguments, Recipe, RecipeError, TeacherArguments, as_size, load_recipe
from .sources import Source, load_splits, load_validation
from .teacher import Teacher, class_names
from .trainer import DistillationTrainer
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
RECIPE_FILE = "recipe.yaml"
_OWN_CLASSES = {
    ("deit", "DeiTForImageClassificationWithTeacher"): DeiTForImageClassificationWithTeacher,
    ("vit", "ViTForImageClassification"): ViTForImageClassification,
}


def load_model(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Loads an image classifier: this package's trainable class where it has one, else the stock class.

    Raises:
        RecipeError: There is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path)
        key = (config.model_type, (config.architectures or [""])[0])
        return _OWN_CLASSES.get(key, AutoModelForImageClassification).from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"No model at {name_or_path!r}: {error}") from error


def build_student(arguments: ModelArguments, names: Sequence[str]) -> PreTrainedModel:
    """Builds the student of a recipe for the classes of the data.

    Raises:
        RecipeError: Fields are unknown, impossible or at odds.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if arguments.model is not None:
        return _student_from_weights(arguments, labels)
    if arguments.student not in ("distilled", "plain"):
        raise RecipeError(f"student={arguments.student!r}: choose distilled (two heads) or plain (one head).")
    fields = {
        "image_size": as_size("image_size", arguments.image_size) or (224, 224),
        "patch_size": arguments.patch_size,
        "drop_path_rate": arguments.drop_path_rate,
        "layer_scale_init_value": arguments.layer_scale_init_value,
        **labels,
    }
    if fields["image_size"][0] == fields["image_size"][1]:
        fields["image_size"] = fields["image_size"][0]
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields |= {name: getattr(arguments, name) for name in shape if getattr(arguments, name) is not None}
    if "hidden_size" in fields:
        fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    elif arguments.preset is None:
        raise RecipeError(
            "The student's size is missing: give preset (tiny, small, base), or hidden_size and the others."
        )
    config_class = DeiTConfig if arguments.student == "distilled" else ViTConfig
    try:
        config = config_class.from_preset(arguments.preset, **fields) if arguments.preset else config_class(**fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    model_class = (
        DeiTForImageClassificationWithTeacher if arguments.student == "distilled" else ViTForImageClassification
    )
    return model_class(config)


# Fields that describe a student from scratch; weights bring their own.
_SCRATCH_FIELDS = (
    *(
        "student",
        "preset",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ),
    *("drop_path_rate", "layer_scale_init_value"),
)
_HEADS = ("cls_classifier", "distillation_classifier", "classifier")


def _student_from_weights(arguments: ModelArguments, labels: dict[str, Any]) -> PreTrainedModel:
    model = load_model(arguments.model, **labels, ignore_mismatched_sizes=True, dtype=torch.float32)
    given = [name for name in _SCRATCH_FIELDS if getattr(arguments, name) != getattr(ModelArguments(), name)]
    if given:
        raise RecipeError(
            f"{', '.join(given)} shape a student from scratch, and model={arguments.model!r} brings its own."
        )
    before = class_names(AutoConfig.from_pretrained(arguments.model).id2label)
    if before is not None and before != list(labels["id2label"].values()):
        logger.info("The classes are others than those of %s: the heads start anew.", arguments.model)
        for name in _HEADS:
            if isinstance(getattr(model, name, None), torch.nn.Linear):
                torch.nn.init.trunc_normal_(getattr(model, name).weight, std=0.02)
                torch.nn.init.zeros_(getattr(model, name).bias)
    wanted, own = as_size("image_size", arguments.image_size), getattr(model.config, "image_size", None)
    if wanted is not None and own is not None and wanted != as_pair(own):
        raise RecipeError(
            f"image_size={arguments.image_size} and the weights of {arguments.model} are for {own}: leave image_size out."
        )
    return model


def build_teacher(arguments: TeacherArguments) -> Teacher | None:
    """Builds the teacher of a recipe; None if it names none.

    Raises:
        TeacherError: It cannot be loaded.
        RecipeError: A field is impossible.
    """
    if arguments.teacher is None:
        return None
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.teacher_dtype not in dtypes:
        raise RecipeError(f"teacher_dtype={arguments.teacher_dtype!r}: choose one of {', '.join(dtypes)}.")
    settings = {
        "image_mean": arguments.teacher_image_mean,
        "image_std": arguments.teacher_image_std,
        "image_size": as_size("teacher_image_size", arguments.teacher_image_size),
        "id2label": None if arguments.teacher_labels is None else dict(enumerate(arguments.teacher_labels)),
        "dtype": dtypes[arguments.teacher_dtype],
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if ":" in arguments.teacher and not Path(arguments.teacher).exists():
        return Teacher.from_factory(arguments.teacher, arguments.teacher_weights, **settings)
    if arguments.teacher_weights is not None:
        raise RecipeError("teacher_weights goes with a factory (package.module:factory); a folder brings its own.")
    return Teacher.from_pretrained(arguments.teacher, **settings)


def build_trainer(recipe: Recipe) -> DistillationTrainer:
    """Builds everything a recipe names, and checks it together, before the first step."""
    args = recipe.training
    if recipe.data.data is None:
        raise RecipeError("The recipe names no data: give --data FOLDER or a Hub name.")
    set_seed(args.seed)
    train, validation = load_splits(recipe.data.data, recipe.data.validation_share, args.seed)
    student = build_student(recipe.model, train.class_names)
    image_size = as_pair(
        getattr(student.config, "image_size", None) or as_size("image_size", recipe.model.image_size) or 224
    )
    view_size = as_size("view_size", recipe.data.view_size) or image_size
    if len(recipe.data.crop_scale) != 2 or len(recipe.data.crop_aspect) != 2:
        raise RecipeError("crop_scale and crop_aspect take two numbers each, smallest and largest.")
    try:
        augmentation = Augmentation(
            view_size=view_size,
            crop_scale=tuple(recipe.data.crop_scale),
            crop_aspect=tuple(recipe.data.crop_aspect),
            flip_probability=recipe.data.flip_probability,
        )
        processor = DeiTImageProcessor.for_image_size(image_size, recipe.data.evaluation_crop_ratio)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    try:
        return DistillationTrainer(
            student,
            build_teacher(recipe.teacher),
            args,
            train_dataset=ViewDataset(train, augmentation, args.seed),
            eval_dataset=EvaluationDataset(validation, image_size, recipe.data.evaluation_crop_ratio, view_size),
            processing_class=processor,
        )
    except UserError:
        raise
    except ValueError as error:  # the Trainer's own word on an argument
        raise RecipeError(str(error)) from error


def train(recipe: Recipe) -> dict[str, float] | None:
    """Trains a student and saves it, its processor, the recipe and the results in `output_dir`.

    Returns:
        The validation metrics of the saved weights; None in processes other than the first.

    Raises:
        UserError: Something given is not allowed.
        NonFiniteLossError: Training diverged.
    """
    output_dir = Path(recipe.training.output_dir)
    if not recipe.run.resume and (checkpoints(output_dir) or any(output_dir.glob("model.safetensors*"))):
        raise RecipeError(
            f"{output_dir} holds an earlier run. Add --resume to go on from its checkpoints, or choose another --output_dir."
        )
    trainer = build_trainer(recipe)
    logger.info("Recipe, defaults included:\n%s", yaml.safe_dump(recipe.to_dict(), sort_keys=True))
    if recipe.run.resume:
        check_same_run(newest_checkpoint(output_dir), trainer.run_description())
    if trainer.is_world_process_zero():
        with staged_files(output_dir) as folder:
            (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=True))
    trainer.train(resume_from_checkpoint=True if recipe.run.resume else None)
    trainer.save_model()
    metrics = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return None
    results = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    write_json(
        output_dir / RESULTS_FILE, {**results, "steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    )
    return metrics


class _ProcessedDataset(torch.utils.data.Dataset):
    """A source through a saved image processor: exactly the pixels a user of the model will have."""

    def __init__(self, source: Source, processor: Any):
        self.source = source
        self.processor = processor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.processor(self.source.image(index), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.source.labels[index]}


def load_processor(name_or_path: str) -> Any:
    """Loads the image processor of a model.

    Raises:
        RecipeError: It has none, or one that needs torchvision where that is not installed.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        if settings.get("image_processor_type", settings.get("feature_extractor_type", "")).startswith("DeiT"):
            return DeiTImageProcessor.from_pretrained(name_or_path)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError, ImportError, ModuleNotFoundError) as error:
        raise RecipeError(f"No usable image processor at {name_or_path!r}: {error}") from error


def evaluate(
    name_or_path: str,
    data: str,
    teacher: str | None = None,
    teacher_view_size: int | None = None,
    batch_size: int = 64,
    bf16: bool = False,
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

    Returns:
        `metrics` by name, and `per_class` with `accuracy` and `images` of each class.

    Raises:
        UserError: Model, data or teacher do not exist or do not go together.
    """
    from .metrics import per_class_accuracy

    model, processor = load_model(name_or_path), load_processor(name_or_path)
    if batch_size < 1:
        raise RecipeError(f"batch_size={batch_size}: at least 1.")
    validation = load_validation(data, *_split_of(name_or_path, data))
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if tuple(names) != validation.class_names:
        validation = _relabel(validation, names)
    dataset: Any = _ProcessedDataset(validation, processor)
    if teacher is not None and teacher_view_size is not None:
        dataset = _WithTeacherView(dataset, as_pair(teacher_view_size))
    with tempfile.TemporaryDirectory() as unused:
        args = DistillationTrainingArguments(
            unused, distillation_type="none", per_device_eval_batch_size=batch_size, bf16=bf16, report_to="none"
        )
        asked = build_teacher(_teacher_arguments(name_or_path, teacher))
        trainer = DistillationTrainer(model, asked, args, eval_dataset=dataset, processing_class=processor)
        trainer.keep_rows = True
        metrics = trainer.evaluate()
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {"metrics": metrics, "per_class": per_class_accuracy(trainer.rows, names)}


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


def _split_of(name_or_path: str, data: str) -> tuple[float | None, int]:
    """The share and the seed with which a model's own run split the data; (None, 0) if it was not trained on them."""
    recipe = _recipe_of(name_or_path)
    if recipe is None or not _same_path(recipe.data.data, data):
        return None, 0
    return recipe.data.validation_share, recipe.training.seed


def _teacher_arguments(name_or_path: str, teacher: str | None) -> TeacherArguments:
    """The fields of a teacher: the model's own run's if it is the teacher of that run."""
    recipe = _recipe_of(name_or_path) if teacher is not None else None
    if recipe is not None and _same_path(recipe.teacher.teacher, teacher):
        return recipe.teacher
    return TeacherArguments(teacher=teacher)


class _WithTeacherView(torch.utils.data.Dataset):
    def __init__(self, dataset: _ProcessedDataset, view_size: tuple[int, int]):
        self.dataset = dataset
        self.views = EvaluationDataset(dataset.source, view_size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "teacher_pixel_values": self.views[index]["pixel_values"]}


def _relabel(source: Source, names: list[str]) -> Source:
    """Brings the labels of a source to a model's class order, by name."""
    from dataclasses import replace

    unknown = sorted(set(source.class_names) - set(names))
    if unknown:
        raise RecipeError(
            f"The data have class(es) {', '.join(map(repr, unknown))} that the model does not know; it knows "
            f"{', '.join(map(repr, names[:20]))}{' …' if len(names) > 20 else ''}."
        )
    order = [names.index(name) for name in source.class_names]
    return replace(source, labels=[order[label] for label in source.labels], class_names=tuple(names))


@torch.no_grad()
def predict(name_or_path: str, images: Sequence[str], top_k: int = 5) -> list[list[tuple[str, float]]]:
    """Gives the `top_k` most probable class names of each image, with their probabilities.

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
        probabilities = model(pixel_values=pixels).logits[0].float().softmax(dim=-1)
        best = probabilities.topk(min(top_k, len(probabilities)))
        answers.append(
            [(model.config.id2label[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        )
    return answers
