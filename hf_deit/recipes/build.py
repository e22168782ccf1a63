"""Builders of student, teacher, image processor and trainer from the fields of a recipe.

recipes/train.py runs the trainer that is built here, and recipes/validate.py checks a recipe without reading weights. How
loaded weights are changed (image size, distillation token) is in models/fine_tuning.py.
"""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from ..data.pixel_pipeline import PixelPipeline, evaluation_processor
from ..data.views import EvaluationDataset
from ..distillation.teacher import Teacher
from ..errors import Problems, RecipeError, UserError
from ..losses import ProblemType
from ..models.configuration_deit import DeiTConfig, ViTConfig
from ..models.fine_tuning import distilled_from_plain, set_trainable, with_image_size
from ..models.label_names import class_names, normal_forms
from ..models.loading import load_config, load_model, published_name
from ..models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from ..models.pixel_rules import PixelRules, read_processor
from ..sizes import as_pair
from ..trainer.trainer import DistillationTrainer
from .arguments import ModelArguments, Recipe, TeacherArguments
from .data import RunData, load_run_data

logger = logging.getLogger(__name__)


def build_student(
    arguments: ModelArguments,
    names: Sequence[str],
    distils: bool = False,
    problem_type: ProblemType = ProblemType.SINGLE_LABEL,
    with_weights: bool = True,
) -> PreTrainedModel:
    """Build the student of a recipe for the classes of the data.

    Args:
        arguments: Fields of the student: its shape, or the weights to start from.
        names: Class names, in index order.
        distils: Whether a distillation token, if the student has one, learns from a teacher. Plain weights then get such a
            token, unless `student` is "plain".
        problem_type: Whether an image has one class or several.
        with_weights: Whether to read the weights to start from. False works as in `models.loading.load_pretrained`.

    Raises:
        RecipeError: A field is not allowed, or fields contradict each other.
        UserError: The weights cannot be loaded.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    labels["problem_type"] = None if problem_type == ProblemType.SINGLE_LABEL else str(problem_type)
    if arguments.student not in (None, "distilled", "plain"):
        raise RecipeError(f"student={arguments.student!r}: choose distilled (two heads) or plain (one head).")
    if arguments.model is not None:
        return _student_from_weights(arguments, labels, distils, with_weights)
    return _student_from_scratch(arguments, labels)


def _student_from_scratch(arguments: ModelArguments, labels: dict[str, Any]) -> PreTrainedModel:
    """Build a student with random weights."""
    height, width = arguments.image_size or (224, 224)
    fields = {
        "image_size": height if height == width else (height, width),
        "patch_size": arguments.patch_size,
        "drop_path_rate": arguments.drop_path_rate or 0.0,
        "layer_scale_init_value": arguments.layer_scale_init_value,
        **labels,
    }
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields |= {name: getattr(arguments, name) for name in shape if getattr(arguments, name) is not None}
    if "hidden_size" in fields:
        fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    elif arguments.preset is None:
        raise RecipeError(
            "The student's size is missing: give preset (tiny, small, base), or hidden_size, num_hidden_layers and "
            "num_attention_heads."
        )
    plain = arguments.student == "plain"
    config_class = ViTConfig if plain else DeiTConfig
    try:
        config = config_class.from_preset(arguments.preset, **fields) if arguments.preset else config_class(**fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return (ViTForImageClassification if plain else DeiTForImageClassificationWithTeacher)(config)


# Largest number of patches for plain attention. It is still faster at 578 tokens (benchmarks/bench_attention.py), but its
# memory grows with the square of the number of tokens.
_FEW_PATCHES = 256


def choose_attention(student: PreTrainedModel, args: TrainingArguments) -> None:
    """Set the attention implementation that trains fastest, if it differs from the default of the model.

    In bf16 on a CPU, the backward pass of PyTorch's fused attention (sdpa) is several times slower than that of plain
    attention (eager) for the few tokens of an image. benchmarks/bench_attention.py measures it, and docs/results.md shows the
    results. Saved models do not record the choice.

    Args:
        student: Model to modify in place.
        args: Arguments of the training.
    """
    if not (args.bf16 and args.device.type == "cpu") or student.config._attn_implementation != "sdpa":
        return
    height, width = as_pair(getattr(student.config, "image_size", None) or 0)
    patch_height, patch_width = as_pair(getattr(student.config, "patch_size", None) or 1)
    if 0 < (height // patch_height) * (width // patch_width) <= _FEW_PATCHES:
        student.set_attn_implementation("eager")


# Fields of the shape of a student from scratch. They are not allowed with weights, which have their own shape.
_SCRATCH_FIELDS = (
    "preset",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_scale_init_value",
)
_HEADS = ("cls_classifier", "distillation_classifier", "classifier")


def _student_from_weights(
    arguments: ModelArguments, labels: dict[str, Any], distils: bool, with_weights: bool
) -> PreTrainedModel:
    """Load weights and change classes, kind of student, image size and drop path as the recipe specifies."""
    model = load_model(
        arguments.model,
        needs_head=False,
        with_weights=with_weights,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        **labels,
    )
    defaults = ModelArguments()
    given = [name for name in _SCRATCH_FIELDS if getattr(arguments, name) != getattr(defaults, name)]
    if given:
        raise RecipeError(
            f"{', '.join(given)} with model={arguments.model!r}: weights have their own shape. Leave out the field(s), or "
            "leave out model to train from scratch."
        )
    _match_heads(model, arguments.model, list(labels["id2label"].values()))
    if not isinstance(model, (DeiTForImageClassificationWithTeacher, ViTForImageClassification)):
        return _other_family(model, arguments)
    if isinstance(model, DeiTForImageClassificationWithTeacher) and arguments.student == "plain":
        raise RecipeError(
            f"student='plain' with model={arguments.model!r}, a distilled student with two heads: leave out the field "
            "student, or give the weights of a plain student, which has one head."
        )
    if isinstance(model, ViTForImageClassification) and (
        arguments.student == "distilled" or (distils and arguments.student is None)
    ):
        logger.info(
            "%s is a plain student: a distillation token, its position embedding and its head are added.",
            arguments.model,
        )
        model = distilled_from_plain(model)
    if arguments.image_size is None and arguments.drop_path_rate is None:
        return model
    size = arguments.image_size or as_pair(model.config.image_size)
    fields = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    try:
        return with_image_size(model, size, **fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _match_heads(model: PreTrainedModel, source: str, names: list[str]) -> None:
    """Permute the heads of loaded weights to the order of the classes, or initialise them again if the classes differ."""
    before, names = (
        normal_forms(class_names(load_config(source).id2label)),
        normal_forms(name.strip() for name in names),
    )
    if before is None or before == names:
        return
    if sorted(before) == sorted(names) and len(set(names)) == len(names):
        logger.info("The classes of %s are in another order: its heads are permuted.", source)
        _permute_heads(model, [before.index(name) for name in names])
        return
    logger.info("The classes differ from those of %s: the heads are initialised again.", source)
    for head in _heads(model):
        torch.nn.init.trunc_normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)


def _heads(model: PreTrainedModel) -> list[torch.nn.Linear]:
    heads = (getattr(model, name, None) for name in _HEADS)
    return [head for head in heads if isinstance(head, torch.nn.Linear)]


@torch.no_grad()
def _permute_heads(model: PreTrainedModel, order: list[int]) -> None:
    for head in _heads(model):
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())


def _other_family(model: PreTrainedModel, arguments: ModelArguments) -> PreTrainedModel:
    """Check the fields of a student that is neither DeiT nor ViT, and set its image size if it has no position embeddings."""
    wanted, own = arguments.image_size, getattr(model.config, "image_size", None)
    if wanted is not None and own is not None and wanted != as_pair(own):
        if any("position" in name for name, _ in model.named_parameters()):
            raise RecipeError(
                f"image_size={wanted} with model={arguments.model!r}, a {type(model).__name__} for images of {own} pixels: "
                "position embeddings can be interpolated for DeiT and ViT only. Leave out image_size."
            )
        model.config.image_size = wanted[0] if wanted[0] == wanted[1] else list(wanted)
    if arguments.student is not None or arguments.drop_path_rate is not None:
        raise RecipeError(
            f"student={arguments.student!r}, drop_path_rate={arguments.drop_path_rate!r} with model={arguments.model!r}, a "
            f"{type(model).__name__}: these fields are for DeiT and ViT only. Leave them out."
        )
    return model


def build_teacher(arguments: TeacherArguments, with_weights: bool = True) -> Teacher | None:
    """Build the teacher of a recipe; None if the recipe has none.

    Args:
        arguments: Fields of the teacher.
        with_weights: Whether to read the weights of the teacher. False works as in `models.loading.load_pretrained`, except
            that a factory is always called.

    Raises:
        TeacherError: The teacher cannot be loaded.
        RecipeError: A field is not allowed, or fields contradict each other.
    """
    if arguments.teacher is None:
        if arguments.teacher_weights is not None:
            raise RecipeError(
                f"teacher_weights={arguments.teacher_weights!r} without a teacher: also give the factory that loads them "
                "(--teacher package.module:factory)."
            )
        return None
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.teacher_dtype not in dtypes:
        raise RecipeError(f"teacher_dtype={arguments.teacher_dtype!r}: choose one of {', '.join(dtypes)}.")
    settings = {
        "image_mean": arguments.teacher_image_mean,
        "image_std": arguments.teacher_image_std,
        "image_size": arguments.teacher_image_size,
        "id2label": None if arguments.teacher_labels is None else dict(enumerate(arguments.teacher_labels)),
        "dtype": dtypes[arguments.teacher_dtype],
        "problem_type": arguments.teacher_problem_type,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if ":" in arguments.teacher and not Path(arguments.teacher).exists():
        weights = arguments.teacher_weights
        if weights is not None and not with_weights:
            if not Path(weights).is_file():
                raise UserError(f"No weights at {weights}.")
            weights = None
        return Teacher.from_factory(arguments.teacher, weights, **settings)
    if arguments.teacher_weights is not None:
        raise RecipeError(
            f"teacher_weights={arguments.teacher_weights!r} with teacher={arguments.teacher!r}: only a factory "
            "(package.module:factory) takes weights; a folder or Hub model has its own. Leave out teacher_weights."
        )
    return Teacher.from_pretrained(arguments.teacher, with_weights=with_weights, **settings)


def build_processor(model: str | None, image_size: tuple[int, int], crop_ratio: float) -> Any:
    """Build the evaluation processor of a student. If the student starts from weights, it keeps their pixel rules.

    Args:
        model: Folder or Hub name of the weights. None if the student is trained from scratch.
        image_size: `(height, width)` of the student's input, in pixels.
        crop_ratio: Share of the resized image that the centre crop keeps.

    Raises:
        RecipeError: The size or the ratio is out of range.
        UserError: The image processor of the weights does something that a student cannot be trained with here.
    """
    pixels = PixelPipeline(PixelRules())
    if model is not None:
        own = read_processor(published_name(model))
        if own.fields:
            pixels = PixelPipeline.from_processor(own, "The student's")
        else:
            logger.warning("%s has no image processor, so the mean and std of ImageNet are used.", model)
    try:
        return evaluation_processor(pixels, image_size, crop_ratio)
    except UserError:
        raise
    except ValueError as error:
        raise RecipeError(str(error)) from error


def build_trainer(
    recipe: Recipe,
    data: RunData | None = None,
    teacher: Teacher | None = None,
    *,
    with_weights: bool = True,
    concurrent_trainings: int = 1,
) -> DistillationTrainer:
    """Build the trainer of a recipe with its student, teacher and data, and check them together before the first step.

    Args:
        recipe: Recipe of the run.
        data: Data of the recipe, if they are already loaded.
        teacher: Teacher of the recipe, if it is already loaded.
        with_weights: Whether to read the weights of student and teacher. If False, the trainer serves only to check the
            recipe.
        concurrent_trainings: Number of trainings that share the memory of this machine, this one included.

    Raises:
        UserError: A part of the recipe cannot be used, or its parts contradict each other.
    """
    args = copy.copy(recipe.training)  # the trainer modifies its arguments
    set_seed(args.seed)
    data = data if data is not None else load_run_data(recipe)
    problems, student = Problems(), None
    with problems.gathered():
        student = student_of(recipe, data.train.class_names, data.train.problem_type, with_weights=with_weights)
    verified = recipe.teacher.verify_teacher_cache
    if teacher is None:
        with problems.gathered():
            teacher = teacher_of(recipe.teacher, with_weights=with_weights)
    image_size = image_size_of(recipe, student)
    augmentation = dataclasses.replace(recipe.augmentation, view_size=recipe.augmentation.view_size or image_size)
    with problems.gathered():
        processor = build_processor(recipe.model.model, image_size, recipe.data.evaluation_crop_ratio)
    if not with_weights and teacher is not None and recipe.teacher.teacher_cache is not None:
        # Only the classes are checked: comparing the teacher with the cache, and running it on some views, needs its weights.
        if student is not None:
            with problems.gathered():
                teacher.check_problem_type(data.train.problem_type)
                names = class_names(student.config.id2label)
                teacher.to(args.device).align(names, student.config.num_labels, augmentation.view_size)
        teacher, verified = None, 0
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
            verify_teacher_cache=verified,
        )
    except UserError:
        raise
    except ValueError as error:  # raised by transformers' Trainer for one of its arguments
        raise RecipeError(str(error)) from error


def student_of(
    recipe: Recipe, names: Sequence[str], problem_type: ProblemType, *, with_weights: bool = True
) -> PreTrainedModel:
    """Build the student of a recipe for training: set its attention implementation and freeze what is not trained.

    Args:
        recipe: Recipe of the run.
        names: Class names, in index order.
        problem_type: Whether an image has one class or several.
        with_weights: As in `build_student`.

    Raises:
        UserError: As in `build_student`, or `trainable` is unknown.
    """
    args = recipe.training
    distils = args.distillation_type != "none" and args.distillation_target in (None, "token")
    student = build_student(recipe.model, names, distils, problem_type, with_weights)
    choose_attention(student, args)
    count = set_trainable(student, recipe.model.trainable)
    if count != student.num_parameters():
        logger.info("%s of %s parameters are trained.", f"{count:,}", f"{student.num_parameters():,}")
    return student


def image_size_of(recipe: Recipe, student: PreTrainedModel | None) -> tuple[int, int]:
    """Return the `(height, width)` of a student's input in pixels: that of its configuration, else of the recipe, else 224."""
    config = getattr(student, "config", None)
    return as_pair(getattr(config, "image_size", None) or recipe.model.image_size or 224)


def teacher_of(arguments: TeacherArguments, *, with_weights: bool = True) -> Teacher | None:
    """Build the teacher of a recipe. With a teacher cache that is not verified, a teacher that cannot be loaded is skipped.

    Returns:
        The teacher; None if the recipe has none, or if it cannot be loaded and only its cached outputs are used.

    Raises:
        UserError: As in `build_teacher`.
    """
    try:
        return build_teacher(arguments, with_weights)
    except RecipeError:
        raise
    except UserError as error:
        if arguments.teacher_cache is None or arguments.verify_teacher_cache:
            raise
        logger.warning(
            "%s\nThe cached outputs in %s are used, without comparing the fingerprint of the teacher with that of the cache.",
            error,
            arguments.teacher_cache,
        )
        return None
