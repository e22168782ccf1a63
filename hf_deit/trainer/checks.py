"""Checks of arguments, student and data against each other, which run before the first training step.

Each check yields a message that says how to fix the problem. The trainer collects these messages and the errors of
student and teacher, and raises them as one error. Checks that need nothing but the arguments are in training_args.py,
and checks of an entire recipe are in recipes/validate.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..data.dataset_info import DatasetInfo, inspect_dataset
from ..data.sampling import check_repeats
from ..errors import DataError, UserError, listed
from ..losses import GUIDED_BY_SIMILARITY, ProblemType
from ..models.label_names import normal_forms
from ..sizes import as_pair
from .class_weights import weight_problems
from .ema import horizon_problems
from .fields import KEYED_FIELDS, changed_fields_of, needs_best_metric, shown
from .metrics import TOP_K, metric_names
from .optim import layer_depths, optimizer_class, parse_optim_args
from .student import StudentInfo
from .training_args import DistillationTrainingArguments


def training_problems(
    args: DistillationTrainingArguments, model: nn.Module, student: StudentInfo, dataset: Dataset, updates: int | None
) -> Iterator[str]:
    """Yield the problems that prevent training this student on this data set with these arguments.

    Args:
        args: Arguments of the run.
        model: The student.
        student: Facts about the student, as `inspect_student` returns them.
        dataset: The training data.
        updates: Number of optimizer steps of the entire training; None if unknown.
    """
    yield from _loss_problems(args, student, dataset)
    yield from _data_problems(args, student, dataset)
    yield from _weight_problems(args, model)
    yield from _schedule_problems(args, model, updates)
    per_epoch = args.updates_per_epoch(dataset) or updates
    if per_epoch:
        yield from horizon_problems(args.ema_epochs, per_epoch)


def set_best_metric(args: DistillationTrainingArguments, problem_type: str, sets: Sequence[str] = ()) -> None:
    """Set `metric_for_best_model` to the default for this problem type, if the run needs it and the user gave none.

    If evaluation sets have names, a metric of averaged weights has `ema_` after the name of its set.

    Args:
        args: Arguments of the run.
        problem_type: Problem type of the student's labels.
        sets: Names of the evaluation sets, if they have names.
    """
    given = args.metric_for_best_model
    if given is not None and args.counted_weights == "ema":
        name = given.removeprefix("eval_").removeprefix("ema_")
        for own in sets:
            if name.startswith(f"{own}_"):
                args.metric_for_best_model = f"{own}_ema_{name.removeprefix(f'{own}_').removeprefix('ema_')}"
    if given is not None or not needs_best_metric(args):
        return
    name = {ProblemType.SINGLE_LABEL: "accuracy", ProblemType.MULTI_LABEL: "mean_average_precision"}.get(
        problem_type, "loss"
    )
    args.metric_for_best_model = f"ema_{name}" if args.counted_weights == "ema" else name
    if args.greater_is_better is None:
        args.greater_is_better = not name.endswith("loss")


def metric_problems(
    args: DistillationTrainingArguments, student: StudentInfo, own_metrics: bool = False, sets: Sequence[str] = ()
) -> Iterator[str]:
    """Yield a problem if `metric_for_best_model` is not a metric of an evaluation.

    Args:
        args: Arguments of the run.
        student: Facts about the student.
        own_metrics: Whether a `compute_metrics` function adds other metrics. Their names are not known.
        sets: Names of the evaluation sets, if they have names.
    """
    if args.metric_for_best_model is None:
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    if sets and not any(name.startswith(f"{own}_") for own in sets) and own_metrics:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r}: the evaluation sets have names "
            f"({listed(sets)}), so the name of a metric begins with that of its set. Choose one of them, such as "
            f"{next(iter(sets))}_{name}."
        )
    if own_metrics:
        return
    known = metric_names(student.problem_type)
    known += [f"ema_{metric}" for metric in known] if args.ema_epochs else []
    of_sets = [f"{own}_{metric}" for own in sets for metric in known] if sets else known
    if "top5" in name and name in of_sets and student.num_labels <= TOP_K:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r} with {student.num_labels} classes: top-5 accuracy "
            f"needs at least {TOP_K + 1} classes. Use metric_for_best_model='accuracy'."
        )
    elif name not in of_sets and sets:
        first = next(iter(sets))
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r}: an evaluation gives no such metric. The evaluation "
            f"sets have names ({listed(sets)}), so the name of a metric begins with that of its set. Choose one of "
            f"{', '.join(f'{first}_{metric}' for metric in known)}, or the same of another set."
        )
    elif name not in of_sets:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r}: an evaluation of this student gives no such "
            f"metric. Choose one of {', '.join(known)}."
        )


def _loss_problems(args: DistillationTrainingArguments, student: StudentInfo, dataset: Dataset) -> Iterator[str]:
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(args, name) and student.problem_type == ProblemType.REGRESSION:
            yield (
                f"{name}={getattr(args, name)} mixes the classes of two images, but the student's problem_type is "
                f"'regression'. Set {name}=0."
            )
    if student.problem_type == ProblemType.REGRESSION and args.label_smoothing_factor:
        yield (
            f"label_smoothing_factor={args.label_smoothing_factor} smooths class probabilities, but the student's "
            "problem_type is 'regression'. Set label_smoothing_factor=0."
        )
    if student.problem_type == ProblemType.REGRESSION and args.base_loss != "cross_entropy":
        yield f"base_loss={args.base_loss!r} with problem_type 'regression', whose loss is the squared error. Leave it out."
    if args.class_weights == "none":
        return
    yield from weight_problems(args.class_weights, student.class_names, student.num_labels)
    if student.problem_type == ProblemType.REGRESSION:
        yield (
            f"class_weights={args.class_weights!r} needs classes, but the student's problem_type is "
            f"{str(student.problem_type)!r}. Set class_weights='none'."
        )
    elif args.class_weights == "balanced" and inspect_dataset(dataset).labels is None:
        yield (
            f"class_weights={args.class_weights!r} needs the labels of all images before training, but the training "
            f"data ({type(dataset).__name__}) do not provide them. Use a ViewDataset, give the weights as a mapping, or "
            "set class_weights='none'."
        )


def odd_batch_problems(args: DistillationTrainingArguments) -> Iterator[str]:
    """Yield a message if batches are odd and images are paired, by mixing or by repeated views."""
    if args.train_batch_size % 2 and args.mixing.is_on:
        yield (
            f"per_device_train_batch_size={args.per_device_train_batch_size} is odd, but images are mixed in pairs "
            f"(mixup_alpha={args.mixup_alpha}, cutmix_alpha={args.cutmix_alpha}). Use an even number, or set both "
            "to 0."
        )
    elif args.global_batch_size % 2 and args.repeated_augmentation > 1:
        yield (
            f"per_device_train_batch_size={args.per_device_train_batch_size} makes {args.global_batch_size} images "
            f"per step, an odd number, but the views of repeated_augmentation={args.repeated_augmentation} come in "
            "pairs. Use an even number, or repeated_augmentation=1."
        )


def _data_problems(args: DistillationTrainingArguments, student: StudentInfo, dataset: Any) -> Iterator[str]:
    info = inspect_dataset(dataset)
    classes = (ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL)
    if info.problem_type in classes and student.problem_type in classes and info.problem_type != student.problem_type:
        yield (
            f"The training data have problem_type={str(info.problem_type)!r}, but the student has "
            f"{str(student.problem_type)!r}. Build the student with problem_type={str(info.problem_type)!r} in its "
            "configuration, or give other data."
        )
    keyed = info.takes_view_keys
    if keyed and info.images is not None and info.images < 2:
        yield (
            f"The training data have {info.images} image(s), but images are paired, so at least 2 are needed. Give "
            "more images, or use a smaller validation_share."
        )
    yield from odd_batch_problems(args)
    yield from _sampling_problems(args, dataset, keyed)
    if not keyed:
        if args.repeated_augmentation > 1:
            yield (
                f"repeated_augmentation={args.repeated_augmentation} needs a data set that is indexed by view keys, "
                f"but {type(dataset).__name__} is not. Use a ViewDataset, or set repeated_augmentation=1."
            )
        batch = args.train_batch_size * args.world_size
        if args.mixing.is_on and info.images is not None and info.images < batch:
            largest = info.images // args.world_size // 2 * 2
            yield (
                f"The training data have {info.images} images, fewer than a batch of {batch} images. With mixup or "
                "CutMix, an incomplete batch is left out, so the student would not be trained at all. "
                + (
                    f"Use a per_device_train_batch_size of at most {largest}."
                    if largest
                    else f"Give at least {2 * args.world_size} images (2 per process), or use fewer processes."
                )
            )
        return
    yield from _class_problems(student, info)


def unlabelled_problems(args: DistillationTrainingArguments, dataset: Any, learns: bool) -> Iterator[str]:
    """Yield the problems of training images without labels.

    Args:
        args: Arguments of the run.
        dataset: The training data.
        learns: Whether the student learns something from an image without a label.
    """
    info = inspect_dataset(dataset)
    if info.unlabelled_images and not learns:
        field = "unlabelled: " if info.extra_unlabelled else ""
        yield (
            f"{field}{info.unlabelled_images} training image(s) have no label, and with "
            f"distillation_type={args.distillation_type!r}, distillation_alpha={args.distillation_alpha} the student learns "
            "nothing from them. Give a teacher or a teacher cache, and a distillation_alpha above 0 or guidance; or leave these "
            "images out."
        )
    if info.extra_unlabelled and info.takes_view_keys:
        for check, value in (
            (info.batch_shares, args.global_batch_size),
            (check_repeats, args.repeated_augmentation),
        ):
            try:
                check(value)
            except ValueError as error:
                yield str(error)


def _class_problems(student: StudentInfo, info: DatasetInfo) -> Iterator[str]:
    """Yield messages about the classes of data that state them."""
    if student.problem_type == ProblemType.REGRESSION or info.class_names is None:
        return
    names = [name.strip() for name in info.class_names]
    if len(names) != student.num_labels:
        yield (
            f"The training data have {len(names)} classes ({listed(names)}), but the student has {student.num_labels} "
            f"outputs. Build the student with num_labels={len(names)}."
        )
    elif student.class_names is not None and normal_forms(student.class_names) != normal_forms(names):
        yield (
            f"The classes of the data are {listed(names)}, but those of the student are {listed(student.class_names)} (a "
            "teacher is aligned to these): labels would be taken for other classes. Build the student with the class names "
            "of the data, in the same order, as id2label."
        )


def _sampling_problems(args: DistillationTrainingArguments, dataset: Any, keyed: bool) -> Iterator[str]:
    """Yield the fields of a sampler or loader that have no effect on this kind of data set."""
    name = type(dataset).__name__
    if not keyed:
        if args.num_views is not None:
            yield (
                f"num_views={args.num_views} needs a data set that is indexed by view keys, but {name} is not. Use a "
                "ViewDataset, or leave out num_views."
            )
        return
    for field, value in changed_fields_of(args).items():
        if field in KEYED_FIELDS:
            yield f"{field}={shown(value)} with {name}: {KEYED_FIELDS[field]}"


def _weight_problems(args: DistillationTrainingArguments, model: nn.Module) -> Iterator[str]:
    halves = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)
    }
    if halves:
        yield (
            f"The student's weights are {', '.join(sorted(halves))}: small updates would be rounded away. Load the "
            "student with dtype=torch.float32, and set bf16=True to compute in bfloat16."
        )
    if args.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        yield (
            "fp16=True on a device that supports bfloat16: float16 overflows where bfloat16 does not. Set bf16=True "
            "and fp16=False."
        )
    config = getattr(model, "config", None)
    image_size, patch_size = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image_size is not None and patch_size is not None:
        sides, patch = as_pair(image_size), as_pair(patch_size)
        if any(side % step for side, step in zip(sides, patch, strict=True)):
            nearest = tuple(max(1, round(side / step)) * step for side, step in zip(sides, patch, strict=True))
            yield (
                f"The student's image_size {sides[0]}×{sides[1]} is not a multiple of its patch_size "
                f"{patch[0]}×{patch[1]}: pixels at the edge would be cut off. Use image_size {nearest[0]}×{nearest[1]}."
            )


def _schedule_problems(args: DistillationTrainingArguments, model: nn.Module, updates: int | None) -> Iterator[str]:
    # A share of one step rounds up to that step. This is allowed: a run of one step cannot have a shorter warm-up.
    rounds_up_to_one = updates == 1 and args.warmup_steps < 1
    if updates is not None and not rounds_up_to_one and args.get_warmup_steps(updates) >= updates:
        yield (
            f"warmup_steps={args.warmup_steps} with {updates} updates in all: the warm-up would fill the entire "
            "training. Use fewer warmup_steps (a value below 1 is a share of the training, for example 0.05), or train "
            "longer."
        )
    if args.neftune_noise_alpha is not None and not _has_token_embeddings(model):
        yield (
            f"neftune_noise_alpha={args.neftune_noise_alpha} adds noise to embeddings of shape (batch, patches, width), "
            f"which {type(model).__name__} does not have. Leave it out."
        )
    if getattr(args, "activation_checkpointing", args.gradient_checkpointing) and not getattr(
        model, "supports_gradient_checkpointing", False
    ):
        yield (
            f"activation_checkpointing=True: {type(model).__name__} does not support it. Leave it out, or lower "
            "per_device_train_batch_size and raise gradient_accumulation_steps."
        )
    if not args.distillation_token_decay and not any(
        "distillation_token" in name for name, _ in model.named_parameters()
    ):
        yield (f"distillation_token_decay=False: {type(model).__name__} has no distillation token. Leave it out.")
    for check in (
        lambda: args.layer_decay == 1 or layer_depths(model),
        lambda: args.optimizer_class is None or optimizer_class(args.optimizer_class),
        lambda: args.optimizer_class is None or parse_optim_args(args.optim_args),
    ):
        try:
            check()
        except UserError as error:
            yield str(error)


def _has_token_embeddings(model: nn.Module) -> bool:
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    return embeddings is not None and isinstance(getattr(model.config, "patch_size", None), int | tuple | list)


def evaluation_problems(
    args: DistillationTrainingArguments, has_evaluation_set: bool, own_metrics: bool
) -> Iterator[str]:
    """Yield the fields that need an evaluation, or a `compute_metrics` function, where there is none.

    Args:
        args: Arguments of the run, after `settled`.
        has_evaluation_set: Whether there is an evaluation set.
        own_metrics: Whether the user passed `compute_metrics`.
    """
    if not has_evaluation_set:
        for field, default in (
            ("eval_strategy", "no"),
            ("eval_on_start", False),
            ("load_best_model_at_end", False),
            ("early_stopping_patience", None),
            ("metric_for_best_model", None),
        ):
            value = getattr(args, field)
            if value != default:
                yield (
                    f"{field}={shown(value)} needs an evaluation set, and none was given. Pass "
                    "eval_dataset, or leave it out."
                )
        for field, value in (("save_strategy", "best"), ("lr_scheduler_type", "reduce_lr_on_plateau")):
            if getattr(args, field) == value:
                yield f"{field}={value!r} needs an evaluation set, and none was given. Pass eval_dataset."
    elif args.metric_for_best_model is not None and args.eval_strategy == "no":
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r} with eval_strategy='no': no checkpoint would be "
            "compared by it. Set eval_strategy='epoch' or 'steps'."
        )
    if not own_metrics:
        for field, default in (("include_for_metrics", []), ("batch_eval_metrics", False)):
            if getattr(args, field) != default:
                yield (
                    f"{field}={getattr(args, field)!r} has an effect only with a compute_metrics function. Pass one, or "
                    "leave it out."
                )


# Largest absolute value that normalised pixels can have: 1 / the smallest standard deviation in use.
_LARGEST_NORMALISED = 16.0


PIXEL_RANGES = ("unit", "normalized")


def pixel_range_of(dataset: Any) -> str | None:
    """Return the `pixel_range` that a data set, or the data set that it wraps, states for its floats; None if it does not.

    Raises:
        DataError: The value is unknown.
    """
    while dataset is not None:
        stated = getattr(dataset, "pixel_range", None)
        if stated is not None:
            if stated not in PIXEL_RANGES:
                raise DataError(
                    f"pixel_range={stated!r} of {type(dataset).__name__}: choose 'unit' (floats in [0, 1]) or 'normalized' "
                    "(floats normalised as the image processor does)."
                )
            return stated
        dataset = getattr(dataset, "dataset", None)  # of a Subset, for example
    return None


def is_ambiguous_range(pixels: torch.Tensor) -> bool:
    """Return whether floating-point pixels can be pixels in [0, 1] that are not normalised yet."""
    return bool(pixels.is_floating_point() and pixels.min() >= 0 and pixels.max() <= 1)


def pixel_range_problems(pixels: torch.Tensor, mean: Any, std: Any) -> Iterator[str]:
    """Yield a problem if the first batch of a data set that states no `pixel_range` can be read in two ways.

    Args:
        pixels: `pixel_values` of a batch, `(batch, channels, height, width)`.
        mean: Mean per channel with which normalised pixels were normalised.
        std: Standard deviation per channel.
    """
    if not pixels.is_floating_point():
        return
    lowest, highest = float(pixels.min()), float(pixels.max())
    remedy = (
        "State the range: set the attribute pixel_range of the data set to 'unit' or 'normalized'. Or give uint8 "
        "pixels, which can be read in one way only."
    )
    if highest > _LARGEST_NORMALISED:
        yield (
            f"pixel_values are floats from {lowest:.4g} to {highest:.4g}: normalised pixels cannot be that large. If they "
            "are in [0, 255], give them as uint8."
        )
    elif is_ambiguous_range(pixels):
        yield (
            f"pixel_values are floats from {lowest:.4g} to {highest:.4g}. They can be pixels in [0, 1] that are not "
            f"normalised yet, or pixels that were normalised with mean {_listed(mean)} and std {_listed(std)}: student, "
            f"teacher and saved image processor would see different images. {remedy}"
        )


def _listed(values: Any) -> str:
    return ", ".join(f"{float(value):g}" for value in (values if hasattr(values, "__iter__") else [values]))


def publishing_problems(model: nn.Module, processing_class: Any) -> Iterator[str]:
    """Yield the problems that would prevent publishing the trained model; checked before its repository is created."""
    if hasattr(model, "peft_config"):
        yield (
            "push_to_hub=True with adapters (LoRA): adapters alone are not a model that can be published. Train with "
            'push_to_hub=False. Then run student.merge_and_unload().save_pretrained("merged"), '
            'trainer.processing_class.save_pretrained("merged") and hf-deit push merged OWNER/NAME.'
        )
    if processing_class is None:  # only if the student has no image_size: for others the trainer makes one
        yield (
            "push_to_hub=True without an image processor, which users of the published model need to prepare images. "
            "Pass processing_class=DeiTImageProcessor.for_image_size(…)."
        )


# Fields that only the optimizer reads which the trainer creates.
_OPTIMIZER_FIELDS = (
    "layer_decay",
    "scale_learning_rate",
    "optimizer_class",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "distillation_token_decay",
)


def trainer_problems(
    args: DistillationTrainingArguments, brings_optimizer: bool, shards_parameters: bool
) -> Iterator[str]:
    """Yield the problems between the arguments and the way in which the trainer is used.

    Args:
        args: Arguments of the run.
        brings_optimizer: Whether the caller passed an optimizer, or an optimizer class with arguments.
        shards_parameters: Whether FSDP or DeepSpeed is used.
    """
    names = (*_OPTIMIZER_FIELDS, *(() if args.lr_scheduler_type == "cosine" else ("learning_rate",)))
    changed = changed_fields_of(args)
    changed = [f"{name}={getattr(args, name)!r}" for name in names if name in changed]
    if brings_optimizer and changed:
        yield (
            f"{', '.join(changed)} with an optimizer of your own: these fields are for the optimizer that the trainer "
            "creates. Leave out the optimizer, or leave these fields at their defaults."
        )
    if args.ema_epochs and shards_parameters:
        yield (
            f"ema_epochs={args.ema_epochs} with FSDP or DeepSpeed: weights cannot be averaged where a process holds "
            "only a part of each. Set ema_epochs=0, or use plain data parallelism (DDP)."
        )


def guidance_problems(
    args: DistillationTrainingArguments, brings_optimizer: bool, shards_parameters: bool
) -> Iterator[str]:
    """Yield the problems between guidance and the way in which the trainer is used.

    Args:
        args: Arguments of the run.
        brings_optimizer: Whether the caller passed an optimizer, which cannot hold the projections of the guidance.
        shards_parameters: Whether FSDP or DeepSpeed is used.
    """
    if args.guidance == "none":
        return
    if args.guidance not in GUIDED_BY_SIMILARITY and brings_optimizer:
        yield (
            f"guidance={args.guidance!r} with an optimizer of your own: the projections of the guidance must be trained "
            "too, and the trainer creates them. Leave out the optimizer (optimizer_class takes any class), or use "
            "guidance='similarity', which has no projections."
        )
    if args.n_gpu > 1:
        yield (
            f"guidance={args.guidance!r} with {args.n_gpu} GPUs in one process: start one process for each GPU "
            "(accelerate launch, or torchrun)."
        )
    if shards_parameters:
        yield (
            f"guidance={args.guidance!r} with FSDP or DeepSpeed: features and projections are not sharded. Use plain "
            "data parallelism (DDP), or set guidance='none'."
        )
