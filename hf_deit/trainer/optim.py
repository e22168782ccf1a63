"""Settings of the optimizer: parameters with weight decay, learning rate of each layer, and rates of the schedule.

The functions depend only on a model, an optimizer and numbers. trainer.py decides when an optimizer is built and with
which arguments. The cosine schedule itself is `cosine_warmup_with_min_lr` of transformers.

Paper: arXiv:2012.12877, Table 9 (weight decay 0.05, learning rate 5e-4 × batch / 512, 5 warm-up epochs). From the
official code: `no_weight_decay`, warm-up from 1e-6, and cosine to 1e-5. Layer-wise learning-rate decay: BEiT,
arXiv:2106.08254, section 3.
"""

import ast
import copy
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError

_NEVER = ("cls_token", "position_embeddings")
# Batch size for which the paper gives its learning rate.
REFERENCE_BATCH = 512
# Names of numbered layers in transformers and timm. The layers of a stage are numbered again from 0, so a name can have
# two numbers.
_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)(?=\.)")
_MAX_NESTING = 2


def decay_parameter_names(model: nn.Module, distillation_token_decay: bool = True) -> list[str]:
    """Return the names of the parameters that weight decay applies to.

    Weight decay does not apply to vectors (norms, LayerScale, most biases), to other biases (such as the table of
    relative position biases of a Swin), to the class token, or to the position embeddings.

    Args:
        model: The student.
        distillation_token_decay: Whether weight decay applies to the distillation token, as in the official code. If
            False, the distillation token is treated as the class token.
    """
    never = _NEVER if distillation_token_decay else (*_NEVER, "distillation_token")
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.rpartition(".")[2] not in never and "bias" not in name.rpartition(".")[2]
    ]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter by name.

    In a model with L layers, the depth is 0 before the first layer, i + 1 in layer i, and L + 1 after the last layer.
    "Before" and "after" refer to the order in which the model registers its parameters: embeddings and tokens come
    first, the final norm and the heads last. If layers are numbered within stages (Swin, ConvNeXt, ResNet), they are
    counted through all stages. A parameter between two layers has the depth of the layer before it.

    Raises:
        RecipeError: The model has no numbered layers.
    """
    names = [name for name, _ in model.named_parameters()]
    keys = {name: tuple(map(int, _NUMBERED.findall(name)[:_MAX_NESTING])) for name in names}
    stages = {key[:1] for key in keys.values() if len(key) > 1}
    layers = list(dict.fromkeys(key for key in keys.values() if key and key not in stages))
    if not layers:
        raise RecipeError(
            f"layer_decay needs numbered layers, but {type(model).__name__} has no parameter with a name such as "
            "'layers.0.…', 'blocks.0.…' or 'stages.0.…'. Leave layer_decay at 1.0."
        )
    depth_of = {layer: index + 1 for index, layer in enumerate(layers)}
    depths, seen = {}, 0
    for name in names:
        seen = max(seen, depth_of.get(keys[name], 0))
        behind = seen == len(layers) and not keys[name]
        depths[name] = seen + 1 if behind else depth_of.get(keys[name], seen)
    return depths


def split_by_depth(optimizer: torch.optim.Optimizer, model: nn.Module, layer_decay: float) -> None:
    """Split the parameter groups of a new optimizer by depth: depth d of L layers gets lr × layer_decay**(L + 1 - d).

    The deepest groups come first, because the Trainer logs the learning rate of the first group.

    Args:
        optimizer: Optimizer with a learning rate in each group, to which no schedule is attached yet. It is changed in
            place.
        model: The model that the optimizer trains.
        layer_decay: Factor > 0 between the learning rates of a layer and of the next layer; 1: all layers have the
            same.

    Raises:
        RecipeError: The model has no numbered layers, the optimizer holds tensors that are not parameters of the model,
            or one of its groups has no learning rate.
    """
    by_name = layer_depths(model)
    depth_of = {id(parameter): by_name[name] for name, parameter in model.named_parameters()}
    last = max(by_name.values())
    rows = []
    for group in optimizer.param_groups:
        problem = None
        if group.get("lr") is None:
            problem = "a group of its parameters has no learning rate"
        elif any(id(parameter) not in depth_of for parameter in group["params"]):
            problem = "it holds tensors that are not parameters of the model"
        if problem is not None:
            raise RecipeError(
                f"layer_decay={layer_decay} cannot be used with the optimizer {type(optimizer).__name__}, because {problem}. "
                "Leave layer_decay at 1.0, or use optim='adamw_torch_fused'."
            )
        members: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(depth_of[id(parameter)], []).append(parameter)
        # Keep a group without parameters: the Trainer always makes two groups.
        for depth, parameters in (members or {last: []}).items():
            rate = group["lr"] * layer_decay ** (last - depth)
            rows.append((depth, {**group, "params": parameters, "lr": rate}))
    optimizer.param_groups[:] = [group for _, group in sorted(rows, key=lambda row: -row[0])]


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Import the optimizer class that is named by `package.module:Class`.

    Raises:
        RecipeError: The class cannot be imported, or is not a subclass of `torch.optim.Optimizer`.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"optimizer_class={name!r} cannot be imported ({type(error).__name__}: {error}). Give package.module:Class "
            "of an installed package, such as torch.optim:SGD, or pytorch_optimizer:Lamb after pip install "
            "pytorch_optimizer."
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError(
            f"optimizer_class={name!r} is not a torch.optim.Optimizer. Give package.module:Class of an optimizer."
        )
    return found


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """Parse `name=value, name=value` into a dictionary.

    Values are Python literals (numbers, True, None, tuples); any other value is taken as a string.

    Raises:
        RecipeError: A part of the text does not have the form `name=value`.
    """
    # A comma inside brackets belongs to a tuple such as betas=(0.9, 0.95).
    parts = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text or "") if part.strip()]
    arguments: dict[str, Any] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and value):
            raise RecipeError(
                f"optim_args={text!r}: {part!r} does not have the form name=value. Write, for example, betas=(0.9, "
                "0.95), eps=1e-6."
            )
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


_ADAM_FIELDS = ("adam_beta1", "adam_beta2", "adam_epsilon")
# Arguments of an optimizer that have a field of their own, which decides.
_OWN_FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
# Optimizers that are created for each parameter, or change the model when they are created: they are not tried here.
_NOT_TRIED = ("galore", "apollo", "lomo", "adalomo")


def optimizer_problems(args: Any, build: Callable[[Any], tuple[Any, dict[str, Any]]]) -> Iterator[str]:
    """Yield what is wrong with the fields of the optimizer: a missing package, or a value that it does not use.

    The class and the arguments of the optimizer are compared with those without the value.

    Args:
        args: Training arguments.
        build: Function that returns the class of the optimizer and its arguments for training arguments.
    """
    name = str(getattr(args.optim, "value", args.optim))
    try:
        given = parse_optim_args(args.optim_args)
    except RecipeError:
        return  # reported with optimizer_class, or below
    for key in _OWN_FIELDS.keys() & given.keys():
        yield f"optim_args={args.optim_args!r}: {key} has a field of its own. Set {_OWN_FIELDS[key]} instead."
    if args.optimizer_class is not None or name.startswith(_NOT_TRIED):
        return
    try:
        built = build(args)
    except _BUILD_ERRORS as error:
        yield f"optim={name!r}, optim_args={args.optim_args!r}: the optimizer cannot be created. {error}"
        return
    defaults = {entry.name: entry.default for entry in dataclasses.fields(args)}
    for field in _ADAM_FIELDS:
        if getattr(args, field) != defaults[field] and build(_changed(args, field, defaults[field])) == built:
            yield f"{field}={getattr(args, field)}: optim={name!r} does not use it. Leave it out."
    for key, value in given.items():
        rest = ",".join(f"{other}={given[other]}" for other in given if other != key)
        if key not in _OWN_FIELDS and all(
            _builds_the_same(build, _changed(args, "optim_args", text), built)
            for text in (rest or None, f"{rest},{key}={value}1".lstrip(","))
        ):
            yield (
                f"optim_args={args.optim_args!r}: optim={name!r} does not use {key}. Leave it out, or give the class with "
                "optimizer_class, whose arguments optim_args then are."
            )


_BUILD_ERRORS = (ImportError, ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError)


def _changed(args: Any, name: str, value: Any) -> Any:
    changed = copy.copy(args)
    setattr(changed, name, value)
    return changed


def _builds_the_same(build: Callable[[Any], Any], args: Any, built: Any) -> bool:
    try:
        return build(args) == built
    except _BUILD_ERRORS:
        return False  # the value was read


def peak_learning_rate(learning_rate: float, global_batch_size: int, scale: bool) -> float:
    """Return learning_rate × global_batch_size / 512 if `scale` is True, else the learning rate itself."""
    return learning_rate * global_batch_size / REFERENCE_BATCH if scale else learning_rate


def cosine_rates(peak: float, warmup_learning_rate: float, min_learning_rate: float) -> dict[str, float]:
    """Return the first and the last learning rate as shares in [0, 1] of the peak, for `cosine_warmup_with_min_lr`."""
    if peak <= 0:
        return {"warmup_lr_rate": 1.0, "min_lr_rate": 1.0}
    return {
        "warmup_lr_rate": min(1.0, warmup_learning_rate / peak),
        "min_lr_rate": min(1.0, min_learning_rate / peak),
    }
