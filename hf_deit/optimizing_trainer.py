"""`OptimizingTrainer`: builds the optimizer and the schedule of the recipe; everything else is the Trainer's.

All values of `optim` work as in the stock Trainer. What is computed is in optim.py.

Paper: Touvron et al., arXiv:2012.12877, Table 9.
"""

import copy
import logging
from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType

from .averaging_trainer import AveragingTrainer
from .optim import (
    REFERENCE_BATCH,
    OptimizerError,
    cosine_rates,
    decay_parameter_names,
    optimizer_class,
    parse_optim_args,
    peak_learning_rate,
    split_by_depth,
)
from .publishing_trainer import PublishingTrainer
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


def _peak(args: DistillationTrainingArguments) -> float:
    return peak_learning_rate(args.learning_rate, args.global_batch_size, args.scale_learning_rate)


class OptimizingTrainer(PublishingTrainer, AveragingTrainer):
    """Adds the paper's weight decay, learning rates and schedule to the Trainer; arguments as there."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay as in the paper, see optim.py."""
        return decay_parameter_names(model, self.args.distillation_token_decay)

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: DistillationTrainingArguments, model: nn.Module | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As the Trainer's, with the scaled learning rate, or `optimizer_class` with `optim_args`.

        Raises:
            OptimizerError: `optimizer_class` or `optim_args` cannot be read.
        """
        if args.optimizer_class is not None:
            return optimizer_class(args.optimizer_class), {"lr": _peak(args), **parse_optim_args(args.optim_args)}
        scaled = copy.copy(args)  # the arguments keep what was given: they are saved, and compared on resume
        scaled.learning_rate = _peak(args)
        return Trainer.get_optimizer_cls_and_kwargs(scaled, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Builds the stock Trainer's optimizer, then gives each layer its learning rate.

        Raises:
            OptimizerError: The optimizer does not take its arguments, or the layers cannot be told apart.
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
            raise OptimizerError(
                f"{args.optimizer_class} does not take optim_args={args.optim_args!r}: {error}. See its documentation."
            ) from error
        if args.layer_decay != 1:
            split_by_depth(self.optimizer, self.model if model is None else model, args.layer_decay)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """A "cosine" starts at `warmup_learning_rate` and ends at `min_learning_rate`; the others are the Trainer's."""
        args = self.args
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
