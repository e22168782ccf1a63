"""Checks of arguments, student and data against each other, which run before the first training step.

Each check yields a message that says how to fix the problem. The trainer collects these messages and the errors of
student and teacher, and raises them as one error. Checks that need nothing but the arguments are in training_args.py,
and checks of an entire recipe are in recipes/validate.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..data.dataset_info import DatasetInfo, inspect_dataset
from ..errors import UserError, listed
from ..losses import ProblemType
from ..models.label_names import normal_forms
from ..sizes import as_pair
from .ema import horizon_problems
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


def set_best_metric(args: DistillationTrainingArguments, problem_type: str) -> None:
    """Set `metric_for_best_model` to the default for this problem type, if the run needs it and the user gave none."""
    needed = (
        args.load_best_model_at_end or args.save_strategy == "best" or args.lr_scheduler_type == "reduce_lr_on_plateau"
    )
    if args.metric_for_best_model is not None or not needed:
        return
    name = {ProblemType.SINGLE_LABEL: "accuracy", ProblemType.MULTI_LABEL: "mean_average_precision"}.get(
        problem_type, "loss"
    )
    args.metric_for_best_model = f"ema_{name}" if args.counted_weights == "ema" else name
    if args.greater_is_better is None:
        args.greater_is_better = not name.endswith("loss")


def metric_problems(args: DistillationTrainingArguments, student: StudentInfo) -> Iterator[str]:
    """Yield a problem if `metric_for_best_model` is not one of the trainer's own metrics.

    Call this only if no `compute_metrics` function adds other metrics.
    """
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    known = metric_names(student.problem_type)
    known += [f"ema_{metric}" for metric in known] if args.ema_epochs else []
    if name not in known:
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
    if "top5" in (args.metric_for_best_model or "") and student.num_labels <= TOP_K:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r} with {student.num_labels} classes: top-5 accuracy "
            f"needs at least {TOP_K + 1} classes. Use metric_for_best_model='accuracy'."
        )
    if args.class_weights == "none":
        return
    if student.problem_type == ProblemType.REGRESSION:
        yield (
            f"class_weights={args.class_weights!r} needs classes, but the student's problem_type is "
            f"{str(student.problem_type)!r}. Set class_weights='none'."
        )
    elif inspect_dataset(dataset).labels is None:
        yield (
            f"class_weights={args.class_weights!r} needs the labels of all images before training, but the training "
            f"data ({type(dataset).__name__}) do not provide them. Use a ViewDataset, or set class_weights='none'."
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
    if not keyed:
        if args.repeated_augmentation > 1:
            yield (
                f"repeated_augmentation={args.repeated_augmentation} needs a data set that is indexed by view keys, "
                f"but {type(dataset).__name__} is not. Use a ViewDataset, or set repeated_augmentation=1."
            )
        batch = args.train_batch_size * args.world_size
        if args.mixing.is_on and info.images is not None and info.images < batch:
            yield (
                f"The training data have {info.images} images, fewer than a batch of {batch} images. With mixup or "
                "CutMix, an incomplete batch is left out, so the student would not be trained at all. Use a "
                f"per_device_train_batch_size of at most {info.images // args.world_size // 2 * 2}."
            )
        return
    yield from _class_problems(student, info)


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
    for check in (
        lambda: args.layer_decay == 1 or layer_depths(model),
        lambda: args.optimizer_class is None or optimizer_class(args.optimizer_class),
        lambda: args.optimizer_class is None or parse_optim_args(args.optim_args),
    ):
        try:
            check()
        except UserError as error:
            yield str(error)


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


def trainer_problems(
    args: DistillationTrainingArguments, brings_optimizer: bool, shards_parameters: bool
) -> Iterator[str]:
    """Yield the problems between the arguments and the way in which the trainer is used.

    Args:
        args: Arguments of the run.
        brings_optimizer: Whether the caller passed an optimizer, or an optimizer class with arguments.
        shards_parameters: Whether FSDP or DeepSpeed is used.
    """
    defaults = {"layer_decay": 1.0, "scale_learning_rate": False, "optimizer_class": None}
    changed = [
        f"{name}={getattr(args, name)!r}" for name, default in defaults.items() if getattr(args, name) != default
    ]
    if brings_optimizer and changed:
        yield (
            f"{', '.join(changed)} with an optimizer of your own: that optimizer has its own learning rates. Leave out "
            "the optimizer, or leave these arguments at their defaults."
        )
    if args.ema_epochs and shards_parameters:
        yield (
            f"ema_epochs={args.ema_epochs} with FSDP or DeepSpeed: weights cannot be averaged where a process holds "
            "only a part of each. Set ema_epochs=0, or use plain data parallelism (DDP)."
        )
