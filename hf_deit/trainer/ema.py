"""Averaged weights: an exponential moving average of a model's parameters, updated on the device.

This module defines what is averaged and when. The averaged weights are evaluated, saved and restored by
resumable_trainer.py.

Paper: arXiv:2012.12877, Table 8 (decay 0.99996; accuracy 81.9 with EMA, 81.8 without). The user gives the horizon in
epochs instead of the decay, because a decay that suits a run of a million updates does not suit a run of a thousand.
"""

import contextlib
import logging
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import RecipeError

logger = logging.getLogger(__name__)


def decay_of_horizon(updates: float) -> float:
    """Return the decay per update, 1 - 1/updates in [0, 1), of an average over about this number of updates."""
    return max(0.0, 1.0 - 1.0 / updates)


def horizon_problems(ema_epochs: float, updates: int) -> Iterator[str]:
    """Yield a problem if a horizon of `ema_epochs` epochs with `updates` optimizer steps each is below two steps."""
    horizon = ema_epochs * updates
    if ema_epochs and horizon < 2:
        yield (
            f"ema_epochs={ema_epochs} with {updates} optimizer steps per epoch is a horizon of {horizon:g} steps, so "
            f"the average would hardly differ from the latest weights. Use ema_epochs of at least {2 / updates:.2g} "
            "(for example a tenth of all epochs), or 0 to turn averaging off."
        )


class AveragedWeights:
    """Moving averages of all parameters of a model, in float32 (float64 for float64 parameters).

    Buffers are not averaged: while the averages are applied, the model keeps its own buffers.

    Args:
        model: Model whose parameters are averaged. The averages start from its present parameters.
    """

    def __init__(self, model: nn.Module):
        self._parameters = list(model.parameters())
        self._averages = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in self._parameters
        ]

    @torch.no_grad()
    def update(self, decay: float, done: int) -> None:
        """Move the averages towards the present parameters, without waiting for the device.

        Args:
            decay: Decay in [0, 1).
            done: Number t of weight updates before this one. The decay is limited to (1 + t) / (10 + t), so that the
                first updates quickly replace the random initial weights.
        """
        decay = min(decay, (1 + done) / (10 + done))
        targets = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(self._parameters, self._averages, strict=True)
        ]
        torch._foreach_lerp_(self._averages, targets, 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Copy the averages into the model for this context, and then restore its own parameters bit for bit."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            self._copy(own)

    def copy_to_model(self) -> None:
        """Copy the averages into the model, where they stay."""
        self._copy(self._averages)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


class AveragingCallback(TrainerCallback):
    """Callback that creates the averages when training starts and updates them after every optimizer step.

    Args:
        trainer: Trainer whose attribute `average` is set and updated. The callback holds only a weak reference, so the
            trainer must outlive it.
    """

    def __init__(self, trainer: Any):
        self.trainer = weakref.proxy(trainer)
        self.decay = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if self.trainer.average is None:
            self.trainer.average = AveragedWeights(self.trainer.model)
        try:
            updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # a stream: accelerate's loaders define __len__, but it raises
            updates = state.max_steps
            logger.warning(
                "The training data have no length: for ema_epochs, all %d updates count as one epoch.", updates
            )
        for problem in horizon_problems(args.ema_epochs, updates):
            raise RecipeError(problem)
        self.decay = decay_of_horizon(args.ema_epochs * updates)
        logger.info(
            "Averaged weights (EMA): ema_epochs=%g × %d updates per epoch, decay %g per update. The %s weights count "
            "for the best model and the final save (counted_weights).",
            args.ema_epochs,
            updates,
            self.decay,
            "averaged" if args.counted_weights == "ema" else "raw",
        )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.average.update(self.decay, state.global_step)  # global_step is increased after this
