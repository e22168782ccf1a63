"""Pure functions of state dicts: renaming old parameter names, and folding LayerScale into other weights.

`save_pretrained` writes the parameter names of transformers 4 (`encoder.layer.0.attention.attention.query`). In memory
the names are those of transformers 5 (`layers.0.attention.q_proj`). `from_pretrained` converts the names, but
`load_state_dict` does not. The `Trainer` calls `load_state_dict` with `strict=False` when it resumes, and would
silently leave every weight of the encoder unchanged. `rename_hub_keys` prevents this.
"""

import re
from collections.abc import Iterable, MutableMapping

import torch
from torch import nn

# Old name (regular expression) → current name. The order matters: `output.dense` of the attention precedes that of the
# MLP.
_RENAMED = (
    (r"encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"attention\.attention\.query\.", "attention.q_proj."),
    (r"attention\.attention\.key\.", "attention.k_proj."),
    (r"attention\.attention\.value\.", "attention.v_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(layers\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
)
# The projection whose output each gamma of LayerScale multiplies.
_SCALED_BY = {"layer_scale1.lambda1": "attention.o_proj", "layer_scale2.lambda1": "mlp.fc2"}


def rename_hub_key(key: str) -> str:
    """Return the current name of a parameter. A current name is returned unchanged."""
    for old, new in _RENAMED:
        key = re.sub(old, new, key)
    return key


def rename_hub_keys(
    module: nn.Module, state_dict: MutableMapping[str, torch.Tensor], prefix: str, *unused: object
) -> None:
    """Rename old keys of a state dict in place, and check that no gamma of LayerScale is missing.

    The backbone registers this function with `register_load_state_dict_pre_hook`.

    Raises:
        ValueError: The module has LayerScale, and the state dict contains a layer without its gamma.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        renamed = prefix + rename_hub_key(key[len(prefix) :])
        if renamed != key:
            state_dict[renamed] = state_dict.pop(key)
    if getattr(module.config, "layer_scale_init_value", None) is not None:
        expected = [
            key.replace(projection + ".weight", gamma)
            for key in state_dict
            for gamma, projection in _SCALED_BY.items()
            if key.startswith(prefix) and key.endswith(projection + ".weight")
        ]
        require_layer_scale(key for key in expected if key not in state_dict)


def require_layer_scale(missing: Iterable[str]) -> None:
    """Check that no LayerScale parameters are missing from the weights of a model with LayerScale.

    Raises:
        ValueError: `missing`, the names of the missing parameters, is not empty.
    """
    missing = list(missing)
    if missing:
        raise ValueError(
            f"The configuration has LayerScale (layer_scale_init_value), but {len(missing)} of its parameters are not in "
            f"the weights; the first is {missing[0]!r}. With new parameters, the model would compute different logits. "
            "If the weights belong to a model without LayerScale, or if its parameters were multiplied into the other "
            "weights (as in folders published by hf_deit), load them with layer_scale_init_value=None. Otherwise use a "
            "checkpoint that contains these parameters."
        )


def refuse_layer_scale(unexpected: Iterable[str]) -> None:
    """Check that the weights of a model without LayerScale contain no LayerScale parameters.

    Raises:
        ValueError: `unexpected`, the names of such parameters, is not empty.
    """
    unexpected = list(unexpected)
    if unexpected:
        raise ValueError(
            f"The weights contain the gamma of LayerScale ({len(unexpected)} tensors, the first is {unexpected[0]!r}), "
            "but the configuration has layer_scale_init_value=None. Without gamma, the model would compute different "
            "logits. Load the weights with the layer_scale_init_value of their own config.json. For a model without "
            "LayerScale, save the loaded model with save_pretrained(…, fold_layer_scale=True) first."
        )


def fold_layer_scale(state_dict: MutableMapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiply every gamma of LayerScale into the projection before it.

    Args:
        state_dict: Weights under their current names. The state dict and its tensors are not modified.

    Returns:
        A new state dict without gammas. A model with these weights computes the same logits.
    """
    folded = dict(state_dict)
    for key in state_dict:
        for gamma_name, projection in _SCALED_BY.items():
            if key.endswith(gamma_name):
                gamma = folded.pop(key)
                stem = key[: -len(gamma_name)] + projection
                folded[f"{stem}.weight"] = folded[f"{stem}.weight"] * gamma[:, None]
                folded[f"{stem}.bias"] = folded[f"{stem}.bias"] * gamma
    return folded
