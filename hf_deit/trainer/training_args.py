"""`DistillationTrainingArguments`: `TrainingArguments` with the fields of distillation.

Every field is documented in its `metadata["help"]`. This module checks the fields as far as this is possible without a
model. Checks that need the student, the teacher or the data are in student.py and checks.py, and run before the first
step. If the paper (arXiv:2012.12877, Table 9) gives a value, it is the default, unless the help says otherwise.
"""

import copy
import logging
import math
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..data.batch_ops import Mixing
from ..data.dataset_info import inspect_dataset
from ..distillation.view_schedule import ViewSchedule
from ..errors import UserError, numbered
from ..losses import (
    BASE_LOSSES,
    DEFAULT_ALPHA,
    DISTILLATION_REDUCTIONS,
    DISTILLATION_TARGETS,
    DISTILLATION_TYPES,
    GUIDANCE_KINDS,
)
from .class_weights import read_class_weights
from .environment import FP16_REMEDY, device_problems
from .fields import accelerator_problems, changed_fields_of, condition_problems, refused_problems, shown

logger = logging.getLogger(__name__)

# These strategies upload entire checkpoints. The optimizer state in a checkpoint is a pickle, and pickles are not
# published.
_REFUSED_HUB_STRATEGIES = ("checkpoint", "all_checkpoints")
COUNTED_WEIGHTS = ("raw", "ema")
# Names of fields that may have no effect in the arguments that are being created; see `tolerating`.
_TOLERATED: ContextVar[frozenset[str]] = ContextVar("tolerated", default=frozenset())
# Fields whose default depends on the teacher and the evaluation set, and the value that they have until then.
_SETTLED = {"distillation_type": "hard", "eval_strategy": "epoch"}


def _layers(layers: Any) -> list[str] | None:
    """Return the layers of a field as a list of texts."""
    if layers is None:
        return None
    layers = list(layers) if isinstance(layers, list | tuple) else [layers]
    return [str(layer).strip() if isinstance(layer, str | int) else layer for layer in layers]


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Arguments of `DistillationTrainer`: those of `TrainingArguments`, some with other defaults, and the fields below.

    `hf-deit train --help` lists the fields with their documentation.

    Raises:
        ValueError: One or more values are not allowed. The message names all of them.
    """

    distillation_type: str | None = field(
        default=None,
        metadata={
            "help": "How the student learns from the teacher: hard (the class that the teacher predicts is the label), "
            "soft (KL divergence from the teacher's distribution at temperature τ) or none. Default: hard with a "
            "teacher or a teacher cache, else none.",
            "choices": list(DISTILLATION_TYPES),
        },
    )
    distillation_target: str | None = field(
        default=None,
        metadata={
            "help": "Head that learns from the teacher: token (the distillation head) or class (the only head, which "
            "learns from labels and teacher together). Default: token for a student with two heads, class for a "
            "student with one head."
        },
    )
    distillation_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight α in [0, 1] of the loss on the teacher outputs; the loss on the labels has the weight 1 - "
            "α. Default: 0.1 for soft, 0.5 for hard."
        },
    )
    distillation_tau: float = field(
        default=3.0, metadata={"help": "Softmax temperature τ of soft distillation, above 0."}
    )
    distillation_reduction: str = field(
        default="image",
        metadata={
            "help": "Reduction of the soft distillation loss: image (the KL divergence of each image) or official (the "
            "same divided by the number of classes, as in the official code). For single-label data; the losses of "
            "multi-label data are always a mean over the classes."
        },
    )
    guidance: str = field(
        default="none",
        metadata={
            "help": "Spatial guidance, besides or instead of the logits: none, features (the patches of the student learn "
            "the features of the teacher's patches, through a projection that is not saved with the model) or similarity "
            "(they learn how similar the teacher's patches are to each other). Needs a teacher, or a teacher cache that was "
            "built with it. Also works with distillation_type none.",
            "choices": list(GUIDANCE_KINDS),
        },
    )
    guidance_weight: float = field(
        default=40.0, metadata={"help": "Weight of the guidance loss, which is added to the loss; above 0."}
    )
    guidance_student_layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers of the student that are guided: indices of hidden states (-1: the last one, before the final "
            "norm) or names of modules. Default: the last one with a grid of patches."
        },
    )
    guidance_teacher_layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers of the teacher that guide those of the student, pair by pair: indices of hidden states or of "
            "timm's feature_info, or names of modules. Default: the last one whose grid of patches is about as fine as "
            "that of the student."
        },
    )
    base_loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Loss on the labels: cross_entropy or binary_cross_entropy. label_smoothing_factor can be used "
            "with cross_entropy only. For multi-label data, both are the cross-entropy of each class; with "
            "binary_cross_entropy, all classes of a mixed image count as present.",
            "choices": list(BASE_LOSSES),
        },
    )
    num_views: int | None = field(
        default=None,
        metadata={
            "help": "Number of epochs with distinct views; after them, the views repeat. Default: every epoch has its "
            "own views."
        },
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={
            "help": "Number of views per image in an epoch, all in one batch (paper: 3). The number of views per epoch "
            "stays the same, so an epoch contains fewer images."
        },
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "α of mixup, with λ ~ Beta(α, α); 0 turns mixup off (paper: 0.8). Neighbouring images in a batch "
            "are mixed."
        },
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "α of CutMix, with λ ~ Beta(α, α); 0 turns CutMix off (paper: 1.0)."}
    )
    mix_probability: float = field(default=1.0, metadata={"help": "Probability that a pair of images is mixed."})
    mix_switch_probability: float = field(
        default=0.5, metadata={"help": "Probability of CutMix instead of mixup, if both are on."}
    )
    distillation_token_decay: bool = field(
        default=True, metadata={"help": "Apply weight decay to the distillation token, as in the official code."}
    )
    class_weights: dict[str, float] | str | None = field(
        default="none",
        metadata={
            "help": "Weights of the classes in the loss: none (all equal), balanced, your own as a mapping from class "
            "name to weight, or a file of such a mapping (.json, .yaml, or .csv with a class and a weight per line). "
            "With balanced, each image has the weight n / (C · count), where count is the number of training images of "
            "its class, n the number of all training images and C the number of classes. For multi-label data, a weight "
            "counts for the presence of its class; balanced is (n - count) / count."
        },
    )
    class_weights_power: float = field(
        default=1.0,
        metadata={
            "help": "Power in [0, 1] that softens class_weights: each weight w becomes w ** power (0.5: its square "
            "root). Balanced weights of single-label data are then scaled so that an image has the weight 1 on "
            "average."
        },
    )
    scale_learning_rate: bool = field(
        default=False,
        metadata={"help": "Scale the peak learning rate to learning_rate × global batch size / 512, as in the paper."},
    )
    warmup_learning_rate: float = field(
        default=1e-6,
        metadata={"help": "Learning rate at the start of the warm-up of a cosine schedule; limited to the peak."},
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate at the end of a cosine schedule; limited to the peak."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor in (0, 1] between the learning rates of a layer and of the next layer, for fine-tuning "
            "(0.65 to 0.9). The embeddings have the lowest learning rate, the heads the full one. 1 turns it off."
        },
    )
    optimizer_class: str | None = field(
        default=None,
        metadata={
            "help": "Optimizer class to use instead of optim, as package.module:Class (for example "
            "pytorch_optimizer:Lamb). "
            'optim_args are its arguments (for example "betas=(0.9, 0.95)").'
        },
    )
    ema_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Number of epochs over which weights are averaged (the horizon of the EMA); 0 turns averaging off."
        },
    )
    counted_weights: str = field(
        default="raw",
        metadata={
            "help": "Weights that are the result of the run: raw or ema (averaged). They are used for the best model, "
            "for the final save and for publishing. With ema, metric_for_best_model is a metric of the averaged "
            "weights.",
            "choices": list(COUNTED_WEIGHTS),
        },
    )

    # Fields of `TrainingArguments` with other defaults: those of the paper, and those that this trainer needs.
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(
        default=0.05,
        metadata={
            "help": "Weight decay. It does not apply to biases, norms, the class token and the position embeddings."
        },
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule of the learning rate after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05,
        metadata={"help": "Number of optimizer steps of warm-up; a value below 1 is a share of the training."},
    )
    max_grad_norm: float = field(
        default=0.0,
        metadata={"help": "Norm to which larger gradients are clipped; 0 turns clipping off, as in the paper."},
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={"help": "When to evaluate: no, steps or epoch. Default: epoch with an evaluation set, else no."},
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep. The best checkpoint is always kept."}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "Metric that decides which checkpoint is best. Default: accuracy for single-label data, "
            "mean_average_precision for multi-label data (f1_macro and others are possible), loss for regression."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Number of evaluations in a row without a better metric_for_best_model after which the training "
            "stops; a resumed run continues to count. Default: no early stopping."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "Amount by which metric_for_best_model must exceed the best value to count as better."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Leave it False: True would remove the columns from which images are decoded on access."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave it False: True would hide that the loss has diverged."}
    )

    def __post_init__(self) -> None:
        # Fields that `settled` decides, when it is known whether there are a teacher and an evaluation set.
        given = {name: getattr(self, name) for name in _SETTLED}
        self._open_fields = tuple(name for name, value in given.items() if value is None)
        for name in self._open_fields:
            setattr(self, name, _SETTLED[name])
        self._open_alpha = self.distillation_alpha is None
        if self._open_alpha:
            self.distillation_alpha = DEFAULT_ALPHA.get(self.distillation_type, 0.0)
        self.guidance_student_layers = _layers(self.guidance_student_layers)
        self.guidance_teacher_layers = _layers(self.guidance_teacher_layers)
        problems = []
        try:
            self.class_weights = read_class_weights(self.class_weights)
        except UserError as error:
            problems.append(str(error))
        problems += [
            *self._choice_problems(),
            *self._loss_problems(),
            *self._guidance_problems(),
            *self._number_problems(),
            *self._length_problems(),
            *self._result_problems(),
            *device_problems(self),
            *refused_problems(self),
        ]
        if not problems:
            unused = condition_problems(self, changed_fields_of(self))
            problems += [problem for names, problem in unused if not _TOLERATED.get().issuperset(names)]
        if problems:
            raise ValueError(numbered(problems))
        if self.metric_for_best_model is not None and self.counted_weights == "ema":
            name = self.metric_for_best_model.removeprefix("eval_")
            self.metric_for_best_model = name if name.startswith("ema_") else f"ema_{name}"
        if not torch.accelerator.is_available():
            # The Trainer allows bf16 on a CPU only with use_cpu. Also, without use_cpu, accelerate treats each of
            # several CPU processes as the only one: each would train alone, and all would write into the same folder.
            self.use_cpu = True
        metric, greater = self.metric_for_best_model, self.greater_is_better
        try:
            super().__post_init__()
        except ValueError as error:
            if self.ddp_backend is None or "process group" not in str(error):
                raise
            raise ValueError(
                f"ddp_backend={self.ddp_backend!r}: this run has one process only. Start several with `accelerate launch` or "
                "torchrun, or leave it out."
            ) from error
        problems += accelerator_problems(self.accelerator_config)
        if problems:
            raise ValueError(numbered(problems))
        if self.use_cpu and self.mixed_precision == "fp16":  # set by `accelerate launch --mixed_precision fp16`
            raise ValueError("mixed_precision=fp16 on a CPU: " + FP16_REMEDY)
        if metric is None:  # undo the Trainer's default (the loss); `checks.set_best_metric` sets ours
            self.metric_for_best_model, self.greater_is_better = None, greater

    @classmethod
    def tolerating(cls, names: Collection[str], **fields: Any) -> "DistillationTrainingArguments":
        """Return arguments in which some fields may have no effect, because another field was overridden.

        This allows a recipe with a teacher to be run without one: its `distillation_tau` then has no effect.

        Args:
            names: Names of these fields.
            **fields: Arguments of the constructor.

        Raises:
            ValueError: As the constructor.
        """
        token = _TOLERATED.set(frozenset(names))
        try:
            return cls(**fields)
        finally:
            _TOLERATED.reset(token)

    def settled(self, *, has_teacher: bool, has_evaluation_set: bool) -> "DistillationTrainingArguments":
        """Return arguments with the defaults that depend on what the trainer was given.

        The values that the user gave are not changed, nor are these arguments: another trainer may use them with a
        teacher.

        Args:
            has_teacher: Whether there is a teacher or a teacher cache.
            has_evaluation_set: Whether there is an evaluation set.
        """
        settled, still_open = copy.copy(self), self._open_fields
        if "distillation_type" in still_open and not has_teacher and not self.distillation_target:
            logger.warning(
                "Neither a teacher nor a distillation_type is given: the student learns from the labels alone."
            )
            settled.distillation_type = "none"
            if self._open_alpha:
                settled.distillation_alpha = DEFAULT_ALPHA["none"]
        if "eval_strategy" in still_open and not has_evaluation_set:
            settled.eval_strategy, settled.do_eval = IntervalStrategy.NO, False
        return self if settled.__dict__ == self.__dict__ else settled

    @property
    def global_batch_size(self) -> int:
        """Number of images in an optimizer step, over all processes and accumulation steps."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    @property
    def mixing(self) -> Mixing:
        """Settings of mixup and CutMix.

        Raises:
            ValueError: A value is not allowed.
        """
        return Mixing(self.mixup_alpha, self.cutmix_alpha, self.mix_probability, self.mix_switch_probability)

    def planned_updates(self, dataset: Any) -> int | None:
        """Return the number of optimizer steps of a training on `dataset`; None if the data set has no length."""
        if self.max_steps > 0:
            return self.max_steps
        updates = self.updates_per_epoch(dataset)
        return None if updates is None else math.ceil(updates * self.num_train_epochs)

    def updates_per_epoch(self, dataset: Any) -> int | None:
        """Return the number of optimizer steps of an epoch on `dataset`; None if the data set has no length."""
        info = inspect_dataset(dataset)
        if info.images is None:
            return None
        try:
            shares = info.batch_shares(self.global_batch_size)
        except ValueError:  # reported by the checks of the trainer
            return None
        if shares is not None:
            return shares.num_batches
        batches = info.images / self.global_batch_size
        # With view keys or mixing, the incomplete last step of an epoch is dropped; the stock sampler trains on it.
        return max(1, math.floor(batches) if info.takes_view_keys or self.mixing.is_on else math.ceil(batches))

    def view_schedule(self, dataset: Any, workers: int = 0) -> ViewSchedule:
        """Return the views that a training on `dataset` shows its teacher, and their order.

        Args:
            dataset: A `ViewDataset`.
            workers: Number of data worker processes that render the views outside a training.
        """
        return ViewSchedule(
            dataset,
            self.mixing,
            batch_size=self.train_batch_size,
            global_batch_size=self.global_batch_size,
            repeats=self.repeated_augmentation,
            workers=workers,
            num_views=self.num_views,
            updates=self.planned_updates(dataset),
        )

    def _choice_problems(self) -> Iterator[str]:
        for name, allowed in (
            ("distillation_type", DISTILLATION_TYPES),
            ("distillation_target", (None, *DISTILLATION_TARGETS)),
            ("distillation_reduction", DISTILLATION_REDUCTIONS),
            ("base_loss", BASE_LOSSES),
            ("guidance", GUIDANCE_KINDS),
            ("counted_weights", COUNTED_WEIGHTS),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(str(choice) for choice in allowed if choice is not None)
                yield f"{name}={getattr(self, name)!r} is unknown: choose one of {choices}."

    def _loss_problems(self) -> Iterator[str]:
        if not 0 <= self.distillation_alpha <= 1:
            yield f"distillation_alpha={self.distillation_alpha}: it must be in [0, 1] (paper: soft 0.1, hard 0.5)."
        if not 0 < self.distillation_tau < math.inf:
            yield f"distillation_tau={self.distillation_tau}: it must be above 0 and finite (paper: 3.0)."
        if not 0 <= self.label_smoothing_factor < 1:
            yield f"label_smoothing_factor={self.label_smoothing_factor}: it must be in [0, 1) (paper: 0.1)."
        elif self.base_loss == "binary_cross_entropy" and self.label_smoothing_factor:
            yield (
                f"label_smoothing_factor={self.label_smoothing_factor} with base_loss='binary_cross_entropy': "
                "smoothing makes all labels larger than 0, and this loss counts each such class as present. Set "
                "label_smoothing_factor=0, or base_loss='cross_entropy'."
            )

    def _guidance_problems(self) -> Iterator[str]:
        if not 0 < self.guidance_weight < math.inf:
            yield (
                f"guidance_weight={self.guidance_weight}: it must be above 0 and finite. Without guidance, set "
                "guidance='none'."
            )
        given = {name: getattr(self, name) for name in ("guidance_student_layers", "guidance_teacher_layers")}
        for name, layers in given.items():
            if layers is not None and not all(isinstance(layer, str) for layer in layers):
                yield (
                    f"{name}={layers}: give indices or names of modules. A function that computes features is given to the "
                    "teacher: Teacher(…, feature_maps=function)."
                )
            elif layers is not None and not (layers and all(layers)):
                yield f"{name}={layers}: give at least one layer, and no empty name, or leave it out."
        # By default, there is one layer of the student, and one of the teacher for each layer of the student.
        student, teacher = (None if layers is None else len(layers) for layers in given.values())
        if teacher is not None and teacher != (student or 1):
            yield (
                f"guidance_teacher_layers={given['guidance_teacher_layers']} and guidance_student_layers="
                f"{given['guidance_student_layers']}: give as many layers of the teacher as of the student, because they "
                "are compared pair by pair."
            )

    def _number_problems(self) -> Iterator[str]:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: it must be at least 1."
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: it must be in [0, 1)."
        for name in ("adam_epsilon", "weight_decay", "max_grad_norm", "eval_delay", "early_stopping_threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name)}: it must be finite and not negative."
        if not 0 <= self.class_weights_power <= 1:
            yield (
                f"class_weights_power={self.class_weights_power}: it must be in [0, 1]; 1 leaves the weights as they "
                "are, and 0 makes them equal."
            )
        for name, usual in (
            ("learning_rate", "5e-4"),
            ("warmup_learning_rate", "1e-6"),
            ("min_learning_rate", "1e-5"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name)}: it must be finite and not negative (paper: {usual})."
        if not 0 < self.layer_decay <= 1:
            yield f"layer_decay={self.layer_decay}: it must be in (0, 1]; 1 gives all layers the same learning rate."
        if self.dataloader_num_workers < 0:
            yield f"dataloader_num_workers={self.dataloader_num_workers}: it must be at least 0 (0: no processes)."
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            yield (
                "dataloader_persistent_workers=True with dataloader_num_workers=0: there are no workers to keep. Set "
                "dataloader_num_workers to at least 1, or dataloader_persistent_workers=False."
            )
        if not 0 <= self.seed < 2**32:
            yield f"seed={self.seed}: it must be an integer from 0 to 2**32 - 1."
        if self.num_views is not None and self.num_views < 1:
            yield f"num_views={self.num_views}: it must be at least 1. Leave it out to give every epoch its own views."
        if self.repeated_augmentation < 1:
            yield f"repeated_augmentation={self.repeated_augmentation}: it must be at least 1 (paper: 3)."
        try:
            _ = self.mixing
        except ValueError as error:
            yield str(error)

    def _length_problems(self) -> Iterator[str]:
        if self.max_steps == 0 or self.max_steps < -1:
            yield f"max_steps={self.max_steps}: it must be at least 1. Leave it out to train for num_train_epochs."
        if self.max_steps < 1 and not 0 < self.num_train_epochs < math.inf:
            yield (
                f"num_train_epochs={self.num_train_epochs}: it must be above 0 and finite. To set the length in "
                "optimizer steps, give max_steps."
            )
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            yield (
                f"warmup_steps={self.warmup_steps}: give a whole number of optimizer steps, or a share of the training "
                "below 1."
            )
        for name in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(self, name)
            if steps is not None and not 0 < steps < math.inf:
                yield f"{name}={steps}: it must be above 0; a value below 1 is a share of the training."

    def _result_problems(self) -> Iterator[str]:
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                yield (
                    f"early_stopping_patience={self.early_stopping_patience}: it must be at least 1. Leave it out to "
                    "train for the whole length."
                )
            if self.eval_strategy == "no":
                yield (
                    f"early_stopping_patience={self.early_stopping_patience} with eval_strategy='no': it counts "
                    "evaluations. Set eval_strategy='epoch' or 'steps'."
                )
        if not 0 <= self.ema_epochs < math.inf:
            yield f"ema_epochs={self.ema_epochs}: it must be a finite number of epochs, or 0 to turn averaging off."
        elif self.counted_weights == "ema" and not self.ema_epochs:
            yield (
                "counted_weights='ema' with ema_epochs=0: no weights are averaged. Set ema_epochs (for example to a "
                "tenth of all epochs), or counted_weights='raw'."
            )
        if self.push_to_hub and self.hub_strategy in _REFUSED_HUB_STRATEGIES:
            yield (
                f"hub_strategy={shown(self.hub_strategy)} would upload the optimizer state, which is a pickle. Use 'every_save' or "
                "'end': checkpoints then stay on disk."
            )
