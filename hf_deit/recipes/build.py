"""Student, teacher and image processor, built or loaded as the fields of a recipe say.

What is done with them is in train.py; what weights are made into is in fine_tuning.py.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from ..data.augmentation import Augmentation
from ..distillation.teacher import Teacher
from ..errors import RecipeError
from ..losses import ProblemType
from ..models.configuration_deit import DeiTConfig, ViTConfig, as_pair
from ..models.fine_tuning import distilled_from_plain, with_image_size
from ..models.image_processing_deit import DeiTImageProcessor
from ..models.label_names import class_names
from ..models.loading import load_config, load_model, normalization, published_name
from ..models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from .arguments import AugmentationArguments, ModelArguments, TeacherArguments, as_size

logger = logging.getLogger(__name__)


def build_augmentation(arguments: AugmentationArguments, view_size: tuple[int, int]) -> Augmentation:
    """Builds what makes a view of an image.

    Args:
        arguments: Of the recipe.
        view_size: `(height, width)` of the view, in pixels.

    Raises:
        RecipeError: A field is not within its limits.
    """
    fields = dataclasses.asdict(arguments)
    for name in ("crop_scale", "crop_aspect"):
        if len(fields[name]) != 2:
            raise RecipeError(f"{name}={fields[name]}: it takes two numbers, smallest and largest.")
        fields[name] = tuple(fields[name])
    try:
        return Augmentation(view_size=view_size, **fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def build_student(
    arguments: ModelArguments,
    names: Sequence[str],
    distils: bool = False,
    problem_type: ProblemType = ProblemType.SINGLE_LABEL,
) -> PreTrainedModel:
    """Builds the student of a recipe for the classes of the data.

    Args:
        arguments: From scratch, or from weights.
        names: Of the classes, in index order.
        distils: Whether a distillation token will have something to learn: then plain weights get one, unless
            `student` says otherwise.
        problem_type: Whether an image has one class or several.

    Raises:
        RecipeError: Fields are unknown, impossible or at odds.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    labels["problem_type"] = None if problem_type == ProblemType.SINGLE_LABEL else str(problem_type)
    if arguments.student not in (None, "distilled", "plain"):
        raise RecipeError(f"student={arguments.student!r}: choose distilled (two heads) or plain (one head).")
    if arguments.model is not None:
        return _student_from_weights(arguments, labels, distils)
    distilled = arguments.student != "plain"
    fields = {
        "image_size": as_size("image_size", arguments.image_size) or (224, 224),
        "patch_size": arguments.patch_size,
        "drop_path_rate": arguments.drop_path_rate or 0.0,
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
    config_class = DeiTConfig if distilled else ViTConfig
    try:
        config = config_class.from_preset(arguments.preset, **fields) if arguments.preset else config_class(**fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return (DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)(config)


# Plain attention is faster still at 578 tokens (benchmarks/bench_attention.py), but its weights take memory by their square.
_FEW_PATCHES = 256


def choose_attention(student: PreTrainedModel, args: TrainingArguments) -> None:
    """Sets the kind of attention that trains fastest, where that is not the model's own choice.

    In bf16 on a CPU the backward pass of PyTorch's fused attention (sdpa) is several times slower than the plain one for an
    image's few tokens (measured: README, by benchmarks/bench_attention.py). What is saved does not know of it.

    Args:
        student: Any model.
        args: Of the training.
    """
    if not (args.bf16 and args.device.type == "cpu") or student.config._attn_implementation != "sdpa":
        return
    height, width = as_pair(getattr(student.config, "image_size", None) or 0)
    tall, wide = as_pair(getattr(student.config, "patch_size", None) or 1)
    if 0 < (height // tall) * (width // wide) <= _FEW_PATCHES:
        student.set_attn_implementation("eager")


# Fields that describe a student from scratch; weights bring their own.
_SCRATCH_FIELDS = (
    *("preset", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "layer_scale_init_value"),
)
_HEADS = ("cls_classifier", "distillation_classifier", "classifier")


def _student_from_weights(arguments: ModelArguments, labels: dict[str, Any], distils: bool) -> PreTrainedModel:
    """Loads weights and makes them what the recipe asks for: classes, kind of student, image size, drop path."""
    model = load_model(arguments.model, needs_head=False, **labels, ignore_mismatched_sizes=True, dtype=torch.float32)
    given = [name for name in _SCRATCH_FIELDS if getattr(arguments, name) != getattr(ModelArguments(), name)]
    if given:
        raise RecipeError(
            f"{', '.join(given)} shape a student from scratch, and model={arguments.model!r} brings its own."
        )
    before = class_names(load_config(published_name(arguments.model)).id2label)
    names = list(labels["id2label"].values())
    if before is not None and sorted(before) == sorted(names) and before != names:
        logger.info("The classes of %s come in another order: its heads are permuted.", arguments.model)
        _permute_heads(model, [before.index(name) for name in names])
    elif before is not None and before != names:
        logger.info("The classes are others than those of %s: the heads start anew.", arguments.model)
        for head in _heads(model):
            torch.nn.init.trunc_normal_(head.weight, std=0.02)
            torch.nn.init.zeros_(head.bias)
    wanted = as_size("image_size", arguments.image_size)
    if not isinstance(model, (DeiTForImageClassificationWithTeacher, ViTForImageClassification)):
        return _other_family(model, arguments, wanted)
    if isinstance(model, DeiTForImageClassificationWithTeacher) and arguments.student == "plain":
        raise RecipeError(
            f"student=plain and {arguments.model} has two heads: leave student out, or start from plain weights."
        )
    if isinstance(model, ViTForImageClassification) and (
        arguments.student == "distilled" or (distils and arguments.student is None)
    ):
        logger.info("%s is a plain student: it gets a distillation token, a position and a head.", arguments.model)
        model = distilled_from_plain(model)
    if wanted is None and arguments.drop_path_rate is None:
        return model
    size = wanted or as_pair(model.config.image_size)
    fields = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    try:
        return with_image_size(model, size, **fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _heads(model: PreTrainedModel) -> list[torch.nn.Linear]:
    heads = (getattr(model, name, None) for name in _HEADS)
    return [head for head in heads if isinstance(head, torch.nn.Linear)]


@torch.no_grad()
def _permute_heads(model: PreTrainedModel, order: list[int]) -> None:
    for head in _heads(model):
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())


def _other_family(model: PreTrainedModel, arguments: ModelArguments, wanted: tuple[int, int] | None) -> PreTrainedModel:
    """A student of another family: it learns as it is."""
    own = getattr(model.config, "image_size", None)
    has_positions = any("position" in name for name, _ in model.named_parameters())
    if wanted is not None and own is not None and wanted != as_pair(own):
        if not has_positions:  # a convolutional network takes any size
            model.config.image_size = wanted[0] if wanted[0] == wanted[1] else list(wanted)
            return _other_family(model, arguments, None)
        raise RecipeError(
            f"image_size={arguments.image_size} and {type(model).__name__} of {arguments.model} is for {own}: positions are "
            "interpolated for DeiT and ViT only. Leave image_size out."
        )
    if arguments.student is not None or arguments.drop_path_rate is not None:
        raise RecipeError(
            f"student and drop_path_rate are of DeiT and ViT, and {arguments.model} is a {type(model).__name__}."
        )
    return model


def build_teacher(arguments: TeacherArguments) -> Teacher | None:
    """Builds the teacher of a recipe; None if it names none.

    Raises:
        TeacherError: It cannot be loaded.
        RecipeError: A field is impossible.
    """
    if arguments.teacher is None:
        if arguments.teacher_weights is not None:
            raise RecipeError(
                "teacher_weights without a teacher: name the factory that takes them (package.module:factory)."
            )
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


def build_processor(model: str | None, image_size: tuple[int, int], crop_ratio: float) -> DeiTImageProcessor:
    """Builds the evaluation processor of a student; from weights with the mean and std they were trained with.

    Args:
        model: Folder or Hub name of the weights; None from scratch.
        image_size: `(height, width)` of the student, in pixels.
        crop_ratio: Share of the resized image the centre crop keeps.

    Raises:
        RecipeError: The size or the ratio is out of range.
    """
    try:
        return DeiTImageProcessor.for_image_size(image_size, crop_ratio, **normalization(model))
    except ValueError as error:
        raise RecipeError(str(error)) from error
