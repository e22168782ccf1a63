"""Weights that are trained beside a model and are not part of it, such as the projections of guidance.

`ResumableTrainer.auxiliary` holds the module. This file has the steps that the stock Trainer does for its model only:
joining it with the model for the optimizer, averaging its gradients across processes, resetting them, and its file in a
checkpoint.
"""

import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..errors import ResumeError
from .checkpoints import AUXILIARY_FILE


def trained_together(model: nn.Module, auxiliary: nn.Module) -> nn.Module:
    """Return a module whose parameters are those of both; those of the model come first."""
    joined = nn.Module()
    joined.model, joined.auxiliary = model, auxiliary
    return joined


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Average the gradients over all processes, as `DistributedDataParallel` does for the model.

    A process whose batch did not use a parameter counts with a gradient of 0.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    processes = torch.distributed.get_world_size()
    if processes == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= processes


class GradientReset(TrainerCallback):
    """Callback that removes the gradients of the auxiliary module, where the Trainer removes those of its model.

    Args:
        trainer: Trainer whose attribute `auxiliary` is read. The callback holds only a weak reference.
    """

    def __init__(self, trainer: Any):
        self.trainer = weakref.proxy(trainer)

    def _reset(self) -> None:
        if self.trainer.auxiliary is not None:
            self.trainer.auxiliary.zero_grad()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reset()


def save_auxiliary(checkpoint: Path, module: nn.Module) -> None:
    """Write the weights of the auxiliary module into the folder of a checkpoint that is being written."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(weights, checkpoint / AUXILIARY_FILE, metadata={"format": "pt"})


def load_auxiliary(checkpoint: Path, module: nn.Module, *, check_only: bool = False) -> None:
    """Restore the weights of the auxiliary module from a checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
        module: The module, which is changed in place.
        check_only: Whether to check the file without changing the module.

    Raises:
        ResumeError: The file is missing or damaged, or holds other weights.
    """
    file, own = checkpoint / AUXILIARY_FILE, module.state_dict()
    if not own:
        return
    if not file.is_file():
        raise ResumeError(
            f"{checkpoint} holds no {AUXILIARY_FILE}, which has the weights that are trained beside the student (the "
            "projections of guidance): the resumed run would not be the run that it continues. Restore the complete "
            "checkpoint, or start a new run from its weights (--model CHECKPOINT, new output_dir)."
        )
    try:
        saved = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ResumeError(
            f"{file} is damaged ({error}). Restore the complete checkpoint, or resume from another."
        ) from error
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for weights in (saved, own)]
    if shapes[0] != shapes[1]:
        raise ResumeError(
            f"{file} holds weights of other shapes than this run trains beside the student: {shapes[0]} in the file, "
            f"{shapes[1]} now. Resume with the teacher, the student and the layers of the checkpoint."
        )
    if not check_only:
        module.load_state_dict(saved)
