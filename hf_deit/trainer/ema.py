"""Averaged weights: an exponential moving average of a model's parameters, updated on the device.

What is averaged and when is said here; evaluating, saving and restoring it is the business of resumable_trainer.py.

Paper: arXiv:2012.12877, Table 8 (EMA 0.99996, 81.9 against 81.8 without). The horizon is given in epochs, since a
decay that suits a million updates averages next to nothing into a run of a thousand.
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
    """Gives the decay per update 1 - 1/updates, in [0, 1), of an average over about that many updates."""
    return max(0.0, 1.0 - 1.0 / updates)


def horizon_problems(ema_epochs: float, updates: int) -> Iterator[str]:
    """Yield what is wrong with a horizon of so many epochs, each of `updates` optimizer steps."""
    horizon = ema_epochs * updates
    if ema_epochs and horizon < 2:
        yield (
            f"ema_epochs={ema_epochs} with {updates} optimizer steps per epoch is a horizon of {horizon:g} steps, so the average "
            f"would be the last weights. Use at least {2 / updates:.2g}, for example a tenth of all epochs, or 0 for no average."
        )


class AveragedWeights:
    """Averages of all parameters of a model, in float32 (float64 for float64 parameters).

    Buffers are not averaged: whoever applies the averages finds the model's own beside them.

    Args:
        model: Whose parameters are averaged; its present ones are the start.
    """

    def __init__(self, model: nn.Module):
        self._parameters = list(model.parameters())
        self._averages = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in self._parameters
        ]

    @torch.no_grad()
    def update(self, decay: float, done: int) -> None:
        """Moves the averages towards the parameters, without waiting for the device.

        Args:
            decay: In [0, 1), once warmed up.
            done: Updates of the weights before this one, t: the decay is at most (1 + t) / (10 + t), so that the random
                start is soon forgotten.
        """
        decay = min(decay, (1 + done) / (10 + done))
        targets = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(self._parameters, self._averages, strict=True)
        ]
        torch._foreach_lerp_(self._averages, targets, 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside, and its own parameters again afterwards, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            self._copy(own)

    def copy_to_model(self) -> None:
        """Leaves the averages in the model."""
        self._copy(self._averages)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


class AveragingCallback(TrainerCallback):
    """Starts the average with the training, and updates it after every optimizer step.

    Args:
        trainer: Its `average` is set and updated; it must outlive this callback, which holds no reference of its own.
    """

    def __init__(self, trainer: Any):
        self.trainer = weakref.proxy(trainer)
        self.decay = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if self.trainer.average is None:
            self.trainer.average = AveragedWeights(self.trainer.model)
        try:
            updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # a stream: accelerate's loaders have the method, but no answer
            updates = state.max_steps
            logger.warning("The data have no length: for ema_epochs all %d updates count as one epoch.", updates)
        for problem in horizon_problems(args.ema_epochs, updates):
            raise RecipeError(problem)
        self.decay = decay_of_horizon(args.ema_epochs * updates)
        logger.info(
            "Averaged weights: ema_epochs=%g × %d updates an epoch, decay %g an update. The %s weights count for the best "
            "model and the final save (counted_weights).",
            args.ema_epochs,
            updates,
            self.decay,
            "averaged" if args.counted_weights == "ema" else "raw",
        )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.average.update(self.decay, state.global_step)  # the step is counted after this
