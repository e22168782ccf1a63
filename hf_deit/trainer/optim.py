"""What the optimizer is given: which parameters decay, how fast each layer learns, and the schedule's figures.

Pure functions of a model, an optimizer and numbers; when an optimizer is built, and by which arguments, is the business of
trainer.py. The cosine itself is transformers' own (`cosine_warmup_with_min_lr`).

Paper: arXiv:2012.12877, Table 9 (weight decay 0.05, learning rate 5e-4 × batch / 512, 5 warm-up epochs), and the official
code's `no_weight_decay`, warm-up from 1e-6 and cosine to 1e-5. Layer-wise decay: BEiT, arXiv:2106.08254, section 3.
"""

import ast
import importlib
import re
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError

_NEVER = ("cls_token", "position_embeddings")
# The paper's learning rate is one for 512 images at a time.
REFERENCE_BATCH = 512
# What numbered layers are called by transformers and timm; within a stage the layers have numbers of their own.
_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)(?=\.)")
_MAX_NESTING = 2


def decay_parameter_names(model: nn.Module, distillation_token_decay: bool = True) -> list[str]:
    """Gives the names of the parameters that weight decay applies to.

    None on biases (a Swin's table of relative position biases among them), norms and LayerScale (all of them vectors), the
    class token and the positions.

    Args:
        model: The student.
        distillation_token_decay: As the official code does; False treats it as the class token.
    """
    never = _NEVER if distillation_token_decay else (*_NEVER, "distillation_token")
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.rpartition(".")[2] not in never and "bias" not in name.rpartition(".")[2]
    ]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Gives the depth of each parameter by name: 0 before the layers, i + 1 in layer i, L + 1 behind the last of L.

    Before and behind is where the model registers them: embeddings and tokens first, final norm and heads last. Where
    layers are numbered within stages (Swin, ConvNeXt, ResNet) they are counted through; what stands between two of them
    goes with the former.

    Raises:
        RecipeError: The model has no numbered layers.
    """
    names = [name for name, _ in model.named_parameters()]
    keys = {name: tuple(map(int, _NUMBERED.findall(name)[:_MAX_NESTING])) for name in names}
    stages = {key[:1] for key in keys.values() if len(key) > 1}
    layers = list(dict.fromkeys(key for key in keys.values() if key and key not in stages))
    if not layers:
        raise RecipeError(
            f"layer_decay needs numbered layers, and {type(model).__name__} has no parameter named like 'layers.0.…', "
            "'blocks.0.…' or 'stages.0.…': leave layer_decay at 1.0."
        )
    depth_of = {layer: index + 1 for index, layer in enumerate(layers)}
    depths, seen = {}, 0
    for name in names:
        seen = max(seen, depth_of.get(keys[name], 0))
        behind = seen == len(layers) and not keys[name]
        depths[name] = seen + 1 if behind else depth_of.get(keys[name], seen)
    return depths


def split_by_depth(optimizer: torch.optim.Optimizer, model: nn.Module, layer_decay: float) -> None:
    """Splits the groups of a new optimizer so that depth d of L layers learns at lr × layer_decay**(L + 1 - d).

    The groups behind the layers come first: the first group's learning rate is the one that is logged.

    Args:
        optimizer: With a learning rate in each group, and no schedule yet; changed in place.
        model: What it trains.
        layer_decay: Factor > 0 from one layer to the one before it; 1 leaves all alike.

    Raises:
        RecipeError: The model has no numbered layers, or the optimizer other parameters or no learning rate.
    """
    by_name = layer_depths(model)
    depth_of = {id(parameter): by_name[name] for name, parameter in model.named_parameters()}
    last = max(by_name.values())
    rows = []
    for group in optimizer.param_groups:
        if group.get("lr") is None or any(id(parameter) not in depth_of for parameter in group["params"]):
            raise RecipeError(
                f"layer_decay={layer_decay} with {type(optimizer).__name__}, which sets learning rates of its own or holds "
                "other tensors than the model's parameters: leave layer_decay at 1.0, or use optim='adamw_torch_fused'."
            )
        members: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(depth_of[id(parameter)], []).append(parameter)
        # A group without parameters stays: the Trainer always makes two.
        for depth, parameters in (members or {last: []}).items():
            rate = group["lr"] * layer_decay ** (last - depth)
            rows.append((depth, {**group, "params": parameters, "lr": rate}))
    optimizer.param_groups[:] = [group for _, group in sorted(rows, key=lambda row: -row[0])]


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Imports an optimizer class by `package.module:Class`.

    Raises:
        RecipeError: There is no such class, or it is no `torch.optim.Optimizer`.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"optimizer_class={name!r} ({type(error).__name__}: {error}): give package.module:Class of something installed, "
            "such as torch.optim:SGD, or pytorch_optimizer:Lamb after pip install 'hf-deit[optim]'."
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError(f"optimizer_class={name!r} is no torch.optim.Optimizer: give package.module:Class of one.")
    return found


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """Reads `name=value, name=value`; values are Python's literals (numbers, True, None, tuples), or else strings.

    Raises:
        RecipeError: A part is no `name=value`.
    """
    # A comma inside brackets belongs to a tuple such as betas=(0.9, 0.95).
    parts = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text or "") if part.strip()]
    arguments: dict[str, Any] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and value):
            raise RecipeError(f"optim_args={text!r}: {part!r} is no name=value. Write betas=(0.9, 0.95), eps=1e-6.")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def peak_learning_rate(learning_rate: float, global_batch_size: int, scale: bool) -> float:
    """Gives learning_rate × global batch / 512 if it is to be scaled, else the learning rate."""
    return learning_rate * global_batch_size / REFERENCE_BATCH if scale else learning_rate


def cosine_rates(peak: float, warmup_learning_rate: float, min_learning_rate: float) -> dict[str, float]:
    """Gives first and last learning rate as shares in [0, 1] of the peak: what `cosine_warmup_with_min_lr` takes."""
    if peak <= 0:
        return {"warmup_lr_rate": 1.0, "min_lr_rate": 1.0}
    return {
        "warmup_lr_rate": min(1.0, warmup_learning_rate / peak),
        "min_lr_rate": min(1.0, min_learning_rate / peak),
    }
