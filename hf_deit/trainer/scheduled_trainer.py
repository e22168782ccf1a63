"""`ScheduledTrainer`: the optimizer and the schedule of the learning rate.

The rates themselves, the groups by depth and the parameters without weight decay are computed in optim.py. The class does
not depend on a teacher.
"""

import copy
import logging
from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..errors import RecipeError
from .fields import METRIC_SCHEDULES
from .optim import (
    REFERENCE_BATCH,
    cosine_rates,
    decay_parameter_names,
    optimizer_class,
    parse_optim_args,
    peak_learning_rate,
    split_by_depth,
)
from .resumable_trainer import ResumableTrainer
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


def _peak(args: DistillationTrainingArguments) -> float:
    return peak_learning_rate(args.learning_rate, args.global_batch_size, args.scale_learning_rate)


class ScheduledTrainer(ResumableTrainer):
    """Trainer with layer decay, any optimizer class, and schedules that start and end at given learning rates.

    Args:
        *args: As for `ResumableTrainer`.
        **kwargs: As for `ResumableTrainer`.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay, as in the paper (see optim.py)."""
        return decay_parameter_names(model, self.args.distillation_token_decay)

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: DistillationTrainingArguments, model: nn.Module | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the optimizer class and its arguments.

        These are `optimizer_class` with `optim_args` if given, else those that the Trainer chooses. In both cases the
        learning rate is scaled if `scale_learning_rate` is set.

        Raises:
            RecipeError: `optimizer_class` cannot be imported, or `optim_args` does not have the form `name=value, …`.
        """
        if args.optimizer_class is not None:
            return optimizer_class(args.optimizer_class), {"lr": _peak(args), **parse_optim_args(args.optim_args)}
        scaled = copy.copy(args)  # `args` itself stays as given: it is saved, and compared on resume
        scaled.learning_rate = _peak(args)
        return Trainer.get_optimizer_cls_and_kwargs(scaled, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as the stock Trainer does, then set the learning rate of each layer (`layer_decay`).

        An optimizer that the caller passed is used without changes.

        Raises:
            RecipeError: `optimizer_class` does not take the arguments in `optim_args`, or `layer_decay` is impossible
                with this model or optimizer.
        """
        if self.optimizer is not None:
            return super().create_optimizer(model)
        args = self.args
        if args.scale_learning_rate:
            logger.info(
                "Peak learning rate: %g × %d images / %d = %g.",
                args.learning_rate,
                args.global_batch_size,
                REFERENCE_BATCH,
                _peak(args),
            )
        try:
            super().create_optimizer(model)
        except TypeError as error:
            if args.optimizer_class is None:
                raise
            raise RecipeError(
                f"{args.optimizer_class} does not take optim_args={args.optim_args!r}: {error}. Correct optim_args; "
                "the documentation of the class lists its arguments."
            ) from error
        if args.layer_decay != 1:
            split_by_depth(self.optimizer, self._trained(self.model if model is None else model), args.layer_decay)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of the learning rate.

        A "cosine" schedule starts at `warmup_learning_rate` and ends at `min_learning_rate`. All other schedules are
        those of the Trainer. Those that follow a metric know whether a greater value of it is better.
        """
        args = self.args
        if self.lr_scheduler is None and args.lr_scheduler_type in METRIC_SCHEDULES:
            # PyTorch's default, "min", is for a loss: the rate would be lowered while the accuracy grows.
            mode = {"mode": "max" if args.greater_is_better else "min"}
            self.lr_scheduler = get_scheduler(
                args.lr_scheduler_type,
                optimizer=self.optimizer if optimizer is None else optimizer,
                scheduler_specific_kwargs={**mode, **(args.lr_scheduler_kwargs or {})},
            )
            self._created_lr_scheduler = True
            return self.lr_scheduler
        if self.lr_scheduler is not None or args.lr_scheduler_type != SchedulerType.COSINE:
            return super().create_scheduler(num_training_steps, optimizer)
        rates = cosine_rates(_peak(args), args.warmup_learning_rate, args.min_learning_rate)
        self.lr_scheduler = get_scheduler(
            SchedulerType.COSINE_WARMUP_WITH_MIN_LR,
            optimizer=self.optimizer if optimizer is None else optimizer,
            num_warmup_steps=args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs={**rates, **(args.lr_scheduler_kwargs or {})},
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler
