"""`DistillationTrainingArguments`: `TrainingArguments` plus what distillation needs.

Fields are checked here as far as they can be without a model; what depends on student, teacher and data is checked by the
trainer before the first step. Defaults are the paper's (arXiv:2012.12877, Table 9) where the paper has them.
"""

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .losses import BASE_LOSSES, DEFAULT_ALPHA, DISTILLATION_REDUCTIONS, DISTILLATION_TARGETS, DISTILLATION_TYPES
from .mixing import Mixing

# Strategies that upload whole checkpoints: optimizer state is a pickle, and pickles are not published.
_REFUSED_HUB_STRATEGIES = ("checkpoint", "all_checkpoints")


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Arguments of `DistillationTrainer`; all of `TrainingArguments` and those below.

    Args:
        distillation_type: "hard" (the teacher's decision is the label), "soft" (KL at temperature τ) or "none".
        distillation_target: "token": the distillation head learns from the teacher; "class": the only head learns from
            labels and teacher together. Default: token for a student with two heads, class for one head.
        distillation_alpha: Weight α in [0, 1] of the teacher's term in every mode. Default: 0.1 soft, 0.5 hard.
        distillation_tau: Softmax temperature τ > 0 of soft distillation.
        distillation_reduction: "image": KL of each image; "official": divided by the number of classes as well.
        base_loss: "cross_entropy" (with `label_smoothing_factor`) or "binary_cross_entropy".
        num_views: Number of epochs with distinct views; afterwards they come again. Default: every epoch is distinct.
        repeated_augmentation: Views of an image in an epoch, all in one batch (paper: 3); an epoch keeps its number of
            views, so about one image in so many is taken.
        mixup_alpha: λ ~ Beta(α, α) of mixup; 0: none (paper: 0.8). Partners are neighbours in the batch, see mixing.py.
        cutmix_alpha: The same of cutmix; 0: none (paper: 1.0).
        mix_probability: Of a pair being mixed.
        mix_switch_probability: Of cutmix in place of mixup, where both are on.
        distillation_token_decay: Weight decay on the distillation token, as the official code.

    Raises:
        ValueError: A value is not allowed.
    """

    distillation_type: str = field(
        default="hard", metadata={"help": "What the teacher's answer is used as.", "choices": list(DISTILLATION_TYPES)}
    )
    distillation_target: str | None = field(
        default=None,
        metadata={
            "help": "token: the distillation head learns from the teacher; class: the only head learns from both."
        },
    )
    distillation_alpha: float | None = field(
        default=None, metadata={"help": "Weight of the teacher's term in [0, 1]. Default: 0.1 soft, 0.5 hard."}
    )
    distillation_tau: float = field(default=3.0, metadata={"help": "Softmax temperature of soft distillation."})
    distillation_reduction: str = field(
        default="image", metadata={"help": "KL per image, or divided by the classes as the official code (official)."}
    )
    base_loss: str = field(
        default="cross_entropy", metadata={"help": "Loss on the labels.", "choices": list(BASE_LOSSES)}
    )
    num_views: int | None = field(default=None, metadata={"help": "Epochs with distinct views. Default: all of them."})
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Views of an image in an epoch, all in one batch (paper: 3)."}
    )
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta(α, α) of mixup; 0: none (paper: 0.8)."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "Beta(α, α) of cutmix; 0: none (paper: 1.0)."})
    mix_probability: float = field(default=1.0, metadata={"help": "Of a pair of images being mixed."})
    mix_switch_probability: float = field(default=0.5, metadata={"help": "Of cutmix in place of mixup, with both on."})
    distillation_token_decay: bool = field(default=True, metadata={"help": "Weight decay on the distillation token."})

    # The paper's optimisation, and what a multi-head model needs of the Trainer.
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Not on biases, norms, class token and positions."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 a share of the training."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; the paper clips nothing (0)."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch, best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept (the best one always is)."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Left False: images are made on access."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Left False: it hides a diverged loss."})

    def __post_init__(self) -> None:
        self._check_choice("distillation_type", DISTILLATION_TYPES)
        self._check_choice("distillation_target", (None, *DISTILLATION_TARGETS))
        self._check_choice("distillation_reduction", DISTILLATION_REDUCTIONS)
        self._check_choice("base_loss", BASE_LOSSES)
        if self.distillation_alpha is None:
            self.distillation_alpha = DEFAULT_ALPHA[self.distillation_type]
        if not 0 <= self.distillation_alpha <= 1:
            raise ValueError(
                f"distillation_alpha={self.distillation_alpha}: a weight in [0, 1] (paper: 0.1 soft, 0.5 hard)."
            )
        if not 0 < self.distillation_tau < math.inf:
            raise ValueError(f"distillation_tau={self.distillation_tau}: it must be above 0 and finite (paper: 3.0).")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor}: a share in [0, 1) (paper: 0.1).")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1.")
        if not self.learning_rate >= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: it must not be negative (paper: 5e-4).")
        if self.num_views is not None and self.num_views < 1:
            raise ValueError(
                f"num_views={self.num_views}: it must be at least 1, or left out for distinct views always."
            )
        if self.repeated_augmentation < 1:
            raise ValueError(f"repeated_augmentation={self.repeated_augmentation}: it must be at least 1 (paper: 3).")
        Mixing(self.mixup_alpha, self.cutmix_alpha, self.mix_probability, self.mix_switch_probability)
        if self.base_loss == "binary_cross_entropy" and self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} with base_loss='binary_cross_entropy': every smoothed "
                "label would count as present. Set one of them to its default."
            )
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # the Trainer allows bf16 on a CPU, where it is fast too, only if the CPU is asked for
        super().__post_init__()
        if self.push_to_hub and self.hub_strategy in _REFUSED_HUB_STRATEGIES:
            raise ValueError(
                f"hub_strategy={self.hub_strategy.value!r} would upload optimizer state, which is a pickle. Use 'every_save' "
                "or 'end'; checkpoints stay on disk."
            )

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in allowed:
            choices = ", ".join(str(choice) for choice in allowed if choice is not None)
            raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {choices}.")
