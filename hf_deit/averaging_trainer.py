"""`AveragingTrainer`: keeps averaged weights beside the trained ones, and evaluates, saves and restores both.

`model.safetensors` of a checkpoint always holds the trained (raw) weights, and the folder `ema/` beside it the averaged
model, which `from_pretrained` loads by itself. `counted_weights` says which of the two are the run's result. The average
itself is in ema.py.
"""

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .atomic_trainer import AtomicTrainer
from .checkpointing import ResumeError
from .ema import AveragedWeights, decay_of_horizon
from .errors import UserError

logger = logging.getLogger(__name__)

EMA_FOLDER = "ema"


class AveragingError(UserError):
    """Averaged weights that would average nothing."""


class _Averaging(TrainerCallback):
    """Has the average begin with the training and follow every update."""

    def __init__(self, trainer: "AveragingTrainer"):
        self.trainer = trainer
        self.decay = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if self.trainer.average is None:
            self.trainer.average = AveragedWeights(self.trainer.model)
        try:
            updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # a stream: accelerate's loaders have the method, but no answer
            updates = state.max_steps
            logger.warning("The data have no length: for ema_epochs all %d updates count as one epoch.", updates)
        horizon = args.ema_epochs * updates
        if horizon < 2:
            raise AveragingError(
                f"ema_epochs={args.ema_epochs} × {updates} updates an epoch is a horizon of {horizon:g} updates: the average would "
                f"be the last weights. Use at least {2 / updates:.2g} (a tenth of all epochs, for example), or 0 for none."
            )
        self.decay = decay_of_horizon(horizon)
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


class AveragingTrainer(AtomicTrainer):
    """Adds averaged weights to `AtomicTrainer`; arguments as there.

    While it trains, `average` holds the averaged weights. At the end the model holds those that count, and there is no
    average any more: what is evaluated, saved and published then is one and the same.
    """

    average: AveragedWeights | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.ema_epochs:
            self.add_callback(_Averaging(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `AtomicTrainer.train`; the average starts anew, or where the checkpoint left it."""
        self.average = None
        return super().train(*args, **kwargs)

    @property
    def _ema_counts(self) -> bool:
        return self.args.ema_epochs > 0 and self.args.counted_weights == "ema"

    def _evaluation_with_average(self, output: EvalLoopOutput, evaluate: Any) -> EvalLoopOutput:
        """Adds the metrics of the averaged weights to those of the raw ones; `evaluate` gives them."""
        if self.average is not None:
            with self.average.applied():
                averaged = evaluate()
            output.metrics.update(
                {name: value for name, value in averaged.metrics.items() if "preparation_time" not in name}
            )
        return output

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._ema_counts and self.average is not None:
            self.average.copy_to_model()
            logger.info("The model now holds the averaged weights (counted_weights=ema).")
        self.average = None
        return super()._finalize_training(*args, **kwargs)

    # ---- files ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves both into a checkpoint, and for others those that count."""
        if self._writes_checkpoint:
            super()._save(output_dir, state_dict)
            if self.average is not None and self.args.should_save:
                with self.average.applied():
                    self._save_into(Path(output_dir) / EMA_FOLDER, None, fold=False)
            return
        counted = self._ema_counts and self.average is not None
        with self.average.applied() if counted else contextlib.nullcontext():
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.args.ema_epochs:
            folder = Path(resume_from_checkpoint) / EMA_FOLDER
            if not folder.is_dir():
                raise ResumeError(
                    f"ema_epochs={self.args.ema_epochs} and {resume_from_checkpoint} holds no averaged weights ({EMA_FOLDER}/): "
                    "resume with ema_epochs=0, or start a new run from it (--model CHECKPOINT, new output_dir)."
                )
            super()._load_from_checkpoint(str(folder), model)
            self.average = AveragedWeights(self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._ema_counts:
            super()._load_best_model()
            return
        best = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = str(Path(best) / EMA_FOLDER)
        try:
            super()._load_best_model()
        finally:
            self.state.best_model_checkpoint = best
