"""What does not go together in a training, found before the first step and reported together.

Each check yields a message with the remedy. The trainer collects them, together with what student and teacher refuse
themselves, and raises them in one error. Arguments alone are checked by training_args.py, whole recipes by
recipes/validate.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..data.dataset_info import inspect_dataset
from ..errors import UserError
from ..losses import ProblemType
from ..sizes import as_pair
from .ema import horizon_problems
from .metrics import TOP_K, metric_names
from .optim import layer_depths, optimizer_class, parse_optim_args
from .student import StudentInfo
from .training_args import DistillationTrainingArguments


def training_problems(
    args: DistillationTrainingArguments, model: nn.Module, student: StudentInfo, dataset: Dataset, updates: int | None
) -> Iterator[str]:
    """Gives what stands against training: student, data and arguments.

    Args:
        args: Of the run.
        model: The student.
        student: Facts about it.
        dataset: The training data.
        updates: Number of optimizer steps; None if unknown.
    """
    yield from _loss_problems(args, student, dataset)
    yield from _data_problems(args, student, dataset)
    yield from _weight_problems(args, model)
    yield from _schedule_problems(args, model, updates)
    per_epoch = args.updates_per_epoch(dataset) or updates
    if per_epoch:
        yield from horizon_problems(args.ema_epochs, per_epoch)


def set_best_metric(args: DistillationTrainingArguments, problem_type: str) -> None:
    """Names the metric that decides which model is best, where it is needed and none is named."""
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
    """Gives what is wrong with the name of the metric for the best model, where no `compute_metrics` adds others."""
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    known = metric_names(student.problem_type)
    known += [f"ema_{metric}" for metric in known] if args.ema_epochs else []
    if name not in known:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r}: an evaluation of this student gives no such metric. Choose "
            f"one of {', '.join(known)}."
        )


def _loss_problems(args: DistillationTrainingArguments, student: StudentInfo, dataset: Dataset) -> Iterator[str]:
    single = student.problem_type == ProblemType.SINGLE_LABEL
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(args, name) and student.problem_type == ProblemType.REGRESSION:
            yield (
                f"{name}={getattr(args, name)} mixes classes, and the student's problem_type is 'regression': set {name}=0."
            )
    if "top5" in (args.metric_for_best_model or "") and student.num_labels <= TOP_K:
        yield (
            f"metric_for_best_model={args.metric_for_best_model!r} with {student.num_labels} classes: top-5 needs at least "
            f"{TOP_K + 1}. Use metric_for_best_model='accuracy'."
        )
    if args.class_weights == "none":
        return
    if not single:
        yield (
            f"class_weights={args.class_weights!r} needs one class an image, and the student's problem_type is "
            f"{student.problem_type!r}: set class_weights='none'."
        )
    elif inspect_dataset(dataset).labels is None:
        yield (
            f"class_weights={args.class_weights!r} needs the labels of all images beforehand, and the training data "
            f"({type(dataset).__name__}) do not tell them: use a ViewDataset, or set class_weights='none'."
        )


def _data_problems(args: DistillationTrainingArguments, student: StudentInfo, dataset: Any) -> Iterator[str]:
    info = inspect_dataset(dataset)
    keyed = info.takes_view_keys
    if keyed and info.images is not None and info.images < 2:
        yield (
            f"The training data have {info.images} image(s), and at least 2 are needed: images are paired. Give more images, or a "
            "smaller validation_share."
        )
    if args.train_batch_size % 2 and (keyed or args.mixing.is_on):
        yield (
            f"per_device_train_batch_size={args.per_device_train_batch_size} is odd: images are paired, so use an even one."
        )
    if not keyed:
        if args.repeated_augmentation > 1:
            yield (
                f"repeated_augmentation={args.repeated_augmentation} needs data that take view keys, and "
                f"{type(dataset).__name__} does not: use a ViewDataset, or set it to 1."
            )
        batch = args.train_batch_size * args.world_size
        if args.mixing.is_on and info.images is not None and info.images < batch:
            yield (
                f"The data have {info.images} images and a batch {batch}: mixing leaves out an incomplete batch, so nothing would "
                f"be learned. Use per_device_train_batch_size of at most {info.images // args.world_size // 2 * 2}."
            )
        return
    if student.problem_type != ProblemType.SINGLE_LABEL or info.class_names is None:
        return
    count = len(info.class_names)
    if count == student.num_labels and student.class_names not in (
        None,
        [name.strip() for name in info.class_names],
    ):
        yield (
            f"The data's classes are {', '.join(info.class_names[:20])}, the student's (and so the teacher's answers) "
            f"{', '.join(student.class_names[:20])}: labels would be taken for other classes. Build the student with the "
            "data's names as id2label, in their order."
        )
    if count != student.num_labels:
        yield (
            f"The data have {count} classes ({', '.join(info.class_names[:20])}), the student {student.num_labels} "
            f"outputs: build it with num_labels={count}."
        )


def _weight_problems(args: DistillationTrainingArguments, model: nn.Module) -> Iterator[str]:
    halves = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)
    }
    if halves:
        yield (
            f"The student's weights are {', '.join(sorted(halves))}: small updates would be rounded away. Load it with "
            "dtype=torch.float32, and set bf16=True to compute in bfloat16."
        )
    if args.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        yield "fp16=True on a device that has bfloat16: fp16 overflows where bf16 does not. Set bf16=True and fp16=False."
    config = getattr(model, "config", None)
    image_size, patch_size = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image_size is not None and patch_size is not None:
        sides, patch = as_pair(image_size), as_pair(patch_size)
        if any(side % step for side, step in zip(sides, patch, strict=True)):
            nearest = tuple(max(1, round(side / step)) * step for side, step in zip(sides, patch, strict=True))
            yield (
                f"The student's image_size {sides[0]}×{sides[1]} is no multiple of its patch_size {patch[0]}×{patch[1]}: "
                f"pixels at the edge would be cut off. Use image_size {nearest[0]}×{nearest[1]}."
            )


def _schedule_problems(args: DistillationTrainingArguments, model: nn.Module, updates: int | None) -> Iterator[str]:
    share_of_one = updates == 1 and args.warmup_steps < 1  # it rounds up to the only update there is
    if updates is not None and not share_of_one and args.get_warmup_steps(updates) >= updates:
        yield (
            f"warmup_steps={args.warmup_steps} with {updates} updates in all: the learning rate would never reach its peak. "
            "Use fewer warmup_steps (0.05 is a share of the training), or train longer."
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
    """Yield what prevents publishing the model at the end (`push_to_hub`), before there is a repository."""
    if hasattr(model, "peft_config"):
        yield (
            "push_to_hub=True with adapters (LoRA), which are no model by themselves: train with push_to_hub=False, then "
            'student.merge_and_unload().save_pretrained("merged"), trainer.processing_class.save_pretrained("merged"), and '
            "hf-deit push merged OWNER/NAME."
        )
    if processing_class is None:  # of a student without image_size; the others have one made
        yield (
            "push_to_hub=True without an image processor, without which others cannot give the model an image: pass "
            "processing_class=DeiTImageProcessor.for_image_size(…)."
        )


def trainer_problems(
    args: DistillationTrainingArguments, brings_optimizer: bool, shards_parameters: bool
) -> Iterator[str]:
    """Gives what stands against the way the Trainer was called.

    Args:
        args: Of the run.
        brings_optimizer: The caller passed an optimizer, or its class with arguments.
        shards_parameters: FSDP or DeepSpeed.
    """
    given = {"layer_decay": 1.0, "scale_learning_rate": False, "optimizer_class": None}
    given = [f"{name}={getattr(args, name)!r}" for name, default in given.items() if getattr(args, name) != default]
    if brings_optimizer and given:
        yield (
            f"{', '.join(given)} with an optimizer of your own, which brings its own learning rates: leave out one of them."
        )
    if args.ema_epochs and shards_parameters:
        yield (
            f"ema_epochs={args.ema_epochs} with FSDP or DeepSpeed, which hold a part of each weight: set ema_epochs=0, or train "
            "with plain data parallelism."
        )
