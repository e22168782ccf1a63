"""`DistillationTrainingArguments`: `TrainingArguments` and the fields of distillation.

Every field is documented in its `metadata["help"]`. Fields are checked here as far as they can be without a model; what
depends on student, teacher and data is checked in validation.py before the first step. Defaults are the paper's
(arXiv:2012.12877, Table 9) where the paper has them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..data.batch_ops import Mixing
from ..data.dataset_info import inspect_dataset
from ..distillation.view_schedule import ViewSchedule
from ..errors import numbered
from ..losses import BASE_LOSSES, DEFAULT_ALPHA, DISTILLATION_REDUCTIONS, DISTILLATION_TARGETS, DISTILLATION_TYPES

# Strategies that upload whole checkpoints: optimizer state is a pickle, and pickles are not published.
_REFUSED_HUB_STRATEGIES = ("checkpoint", "all_checkpoints")
CLASS_WEIGHTS = ("none", "balanced")
COUNTED_WEIGHTS = ("raw", "ema")


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Arguments of `DistillationTrainer`: those of `TrainingArguments`, some with other defaults, and the fields below.

    `hf-deit train --help` lists the fields with their documentation.

    Raises:
        ValueError: Values are not allowed; the message names all of them.
    """

    distillation_type: str = field(
        default="hard",
        metadata={
            "help": "hard (the teacher's decision is the label), soft (KL divergence at temperature τ) or none.",
            "choices": list(DISTILLATION_TYPES),
        },
    )
    distillation_target: str | None = field(
        default=None,
        metadata={
            "help": "token: the distillation head learns from the teacher; class: the only head learns from labels and "
            "teacher together. Default: token for a student with two heads, class for one head."
        },
    )
    distillation_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight α in [0, 1] of the teacher's term in every mode. Default: 0.1 soft, 0.5 hard."},
    )
    distillation_tau: float = field(
        default=3.0, metadata={"help": "Softmax temperature τ of soft distillation, above 0."}
    )
    distillation_reduction: str = field(
        default="image",
        metadata={
            "help": "image: KL divergence of each image; official: divided by the number of classes too, as the official "
            "code does."
        },
    )
    base_loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Loss on the labels; label_smoothing_factor is for cross_entropy only.",
            "choices": list(BASE_LOSSES),
        },
    )
    num_views: int | None = field(
        default=None,
        metadata={"help": "Epochs with distinct views; afterwards the views repeat. Default: all epochs are distinct."},
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={
            "help": "Views of an image in an epoch, all in one batch (paper: 3). An epoch keeps its number of views, so it "
            "contains fewer images."
        },
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={"help": "Mixup with λ ~ Beta(α, α); 0 turns it off (paper: 0.8). Neighbours in a batch are mixed."},
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "CutMix with λ ~ Beta(α, α); 0 turns it off (paper: 1.0)."}
    )
    mix_probability: float = field(default=1.0, metadata={"help": "Probability that a pair of images is mixed."})
    mix_switch_probability: float = field(
        default=0.5, metadata={"help": "Probability of CutMix instead of mixup, where both are on."}
    )
    distillation_token_decay: bool = field(
        default=True, metadata={"help": "Weight decay on the distillation token, as in the official code."}
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "balanced: an image counts n / (C · count) in the loss, by the count of its class among the n training "
            "images of C classes.",
            "choices": list(CLASS_WEIGHTS),
        },
    )
    scale_learning_rate: bool = field(
        default=False, metadata={"help": "Peak learning rate = learning_rate × global batch / 512, as in the paper."}
    )
    warmup_learning_rate: float = field(
        default=1e-6, metadata={"help": "Learning rate at which the warm-up of a cosine begins; at most the peak."}
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate at which a cosine ends; at most the peak."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of a layer relative to the next one, in (0, 1], for fine-tuning (0.65 to 0.9). Embeddings "
            "learn slowest; heads have the full learning rate."
        },
    )
    optimizer_class: str | None = field(
        default=None,
        metadata={
            "help": "package.module:Class (pytorch_optimizer:Lamb) instead of optim; optim_args are its arguments "
            '("betas=(0.9, 0.95)").'
        },
    )
    ema_epochs: float = field(
        default=0.0, metadata={"help": "Horizon in epochs of averaged weights (EMA); 0 turns them off."}
    )
    counted_weights: str = field(
        default="raw",
        metadata={
            "help": "raw or ema: the weights that are the best model, the final save and what is published. With ema, "
            "metric_for_best_model is a metric of the averaged weights.",
            "choices": list(COUNTED_WEIGHTS),
        },
    )

    # The paper's optimisation, and what a model with several heads needs of the Trainer.
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay; biases, norms, class token and positions have none."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Optimizer steps of warm-up, or below 1 a share of the training."}
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Largest norm of the gradient; 0: no clipping, as in the paper."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch, best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints that are kept (the best one always is)."}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "Metric that decides which checkpoint is best. Default: accuracy; mean_average_precision for multi-label "
            "data; loss for regression."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave it False: images are decoded when they are accessed."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave it False: True hides that a loss has diverged."}
    )

    def __post_init__(self) -> None:
        if self.distillation_alpha is None:
            self.distillation_alpha = DEFAULT_ALPHA.get(self.distillation_type, 0.0)
        problems = [
            *self._choice_problems(),
            *self._loss_problems(),
            *self._number_problems(),
            *self._result_problems(),
        ]
        if problems:
            raise ValueError(numbered(problems))
        if self.metric_for_best_model is not None and self.counted_weights == "ema":
            name = self.metric_for_best_model.removeprefix("eval_")
            self.metric_for_best_model = name if name.startswith("ema_") else f"ema_{name}"
        if not torch.accelerator.is_available():
            # The Trainer allows bf16 on a CPU only with use_cpu. Without it, accelerate takes each of several CPU processes for
            # the only one: they would all train alone, into one folder.
            self.use_cpu = True
        metric, greater = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        if metric is None:  # the Trainer's default is the loss; see validation.set_best_metric
            self.metric_for_best_model, self.greater_is_better = None, greater

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
        """Return the number of optimizer steps of a training on `dataset`; None if the data have no length."""
        if self.max_steps > 0:
            return self.max_steps
        updates = self.updates_per_epoch(dataset)
        return None if updates is None else math.ceil(updates * self.num_train_epochs)

    def updates_per_epoch(self, dataset: Any) -> int | None:
        """Return the number of optimizer steps of an epoch on `dataset`; None if the data have no length."""
        info = inspect_dataset(dataset)
        if info.images is None:
            return None
        batches = info.images / self.global_batch_size
        # With view keys or mixing, the incomplete last step of an epoch is dropped; the stock sampler trains on it.
        return max(1, math.floor(batches) if info.takes_view_keys or self.mixing.is_on else math.ceil(batches))

    def view_schedule(self, dataset: Any, workers: int = 0) -> ViewSchedule:
        """Return the views that a training on `dataset` shows its teacher, and their order.

        Args:
            dataset: A `ViewDataset`.
            workers: Number of processes that make the pixels where the views are requested outside the training.
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
            ("class_weights", CLASS_WEIGHTS),
            ("counted_weights", COUNTED_WEIGHTS),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(str(choice) for choice in allowed if choice is not None)
                yield f"{name}={getattr(self, name)!r}: choose one of {choices}."

    def _loss_problems(self) -> Iterator[str]:
        if not 0 <= self.distillation_alpha <= 1:
            yield f"distillation_alpha={self.distillation_alpha}: a weight in [0, 1] (paper: 0.1 soft, 0.5 hard)."
        if not 0 < self.distillation_tau < math.inf:
            yield f"distillation_tau={self.distillation_tau}: it must be above 0 and finite (paper: 3.0)."
        if not 0 <= self.label_smoothing_factor < 1:
            yield f"label_smoothing_factor={self.label_smoothing_factor}: a share in [0, 1) (paper: 0.1)."
        elif self.base_loss == "binary_cross_entropy" and self.label_smoothing_factor:
            yield (
                f"label_smoothing_factor={self.label_smoothing_factor} with base_loss='binary_cross_entropy': every smoothed "
                "label would count as present. Set one of them to its default."
            )

    def _number_problems(self) -> Iterator[str]:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: it must be at least 1."
        for name, usual in (
            ("learning_rate", "5e-4"),
            ("warmup_learning_rate", "1e-6"),
            ("min_learning_rate", "1e-5"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name)}: it must be finite and not negative (paper: {usual})."
        if not 0 < self.layer_decay <= 1:
            yield f"layer_decay={self.layer_decay}: a factor in (0, 1]; 1 leaves all layers alike."
        if self.dataloader_num_workers < 0:
            yield f"dataloader_num_workers={self.dataloader_num_workers}: it must be 0 (no processes) or more."
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            yield "dataloader_persistent_workers=True with dataloader_num_workers=0: there are no workers to keep. Set one of them."
        if not 0 <= self.seed < 2**32:
            yield f"seed={self.seed}: a whole number from 0 to 2**32 - 1."
        if self.num_views is not None and self.num_views < 1:
            yield f"num_views={self.num_views}: it must be at least 1, or left out for distinct views always."
        if self.repeated_augmentation < 1:
            yield f"repeated_augmentation={self.repeated_augmentation}: it must be at least 1 (paper: 3)."
        try:
            _ = self.mixing
        except ValueError as error:
            yield str(error)

    def _result_problems(self) -> Iterator[str]:
        if not 0 <= self.ema_epochs < math.inf:
            yield f"ema_epochs={self.ema_epochs}: a number of epochs, or 0 for no averaged weights."
        elif self.counted_weights == "ema" and not self.ema_epochs:
            yield (
                "counted_weights='ema' with ema_epochs=0: there would be no averaged weights to count. Set ema_epochs (a "
                "tenth of the epochs, for example), or counted_weights='raw'."
            )
        if self.push_to_hub and self.hub_strategy in _REFUSED_HUB_STRATEGIES:
            strategy = getattr(self.hub_strategy, "value", self.hub_strategy)
            yield (
                f"hub_strategy={strategy!r} would upload optimizer state, which is a pickle. Use 'every_save' or 'end'; "
                "checkpoints stay on disk."
            )
