"""Pure functions of state dicts: the Hub's old parameter names to today's, and LayerScale folded away.

`save_pretrained` writes the names transformers 4 used (`encoder.layer.0.attention.attention.query`), in memory they are
`layers.0.attention.q_proj`. `from_pretrained` converts; a raw `load_state_dict`, as `Trainer` does on resume, does not,
and with `strict=False` it would silently keep every encoder weight as it was. `rename_hub_keys` prevents that.
"""

import re
from collections.abc import Iterable, MutableMapping

import torch
from torch import nn

# Old name (regular expression) → today's, in this order: the attention's `output.dense` before the MLP's.
_RENAMED = (
    (r"encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"attention\.attention\.query\.", "attention.q_proj."),
    (r"attention\.attention\.key\.", "attention.k_proj."),
    (r"attention\.attention\.value\.", "attention.v_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(layers\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
)
# The projection whose output each gamma scales.
_SCALED_BY = {"layer_scale1.lambda1": "attention.o_proj", "layer_scale2.lambda1": "mlp.fc2"}


def rename_hub_key(key: str) -> str:
    """Gives today's name of a parameter for its old or its present name."""
    for old, new in _RENAMED:
        key = re.sub(old, new, key)
    return key


def rename_hub_keys(
    module: nn.Module, state_dict: MutableMapping[str, torch.Tensor], prefix: str, *unused: object
) -> None:
    """A `register_load_state_dict_pre_hook` for the backbone: renames old keys in place, and checks LayerScale.

    Raises:
        ValueError: The module has LayerScale and the state dict has a layer without its gamma.
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
    """Raises a ValueError if `missing`, the LayerScale parameters a file should hold and does not, is not empty."""
    missing = list(missing)
    if missing:
        raise ValueError(
            f"The configuration has LayerScale and the weights hold no gamma for it ({len(missing)} missing, the first "
            f"{missing[0]!r}): with a fresh gamma the model would compute another function. Load them with "
            "layer_scale_init_value=None (they are folded, or of a model without LayerScale), or take an unfolded checkpoint."
        )


def refuse_layer_scale(unexpected: Iterable[str]) -> None:
    """Raises a ValueError if `unexpected`, the LayerScale parameters a file holds and the model lacks, is not empty."""
    unexpected = list(unexpected)
    if unexpected:
        raise ValueError(
            f"The weights hold LayerScale's gamma ({len(unexpected)} tensors, the first {unexpected[0]!r}) and the configuration "
            "has none: without it the model would compute another function. Load them with the file's own "
            "layer_scale_init_value, or fold first: load, then save_pretrained(…, fold_layer_scale=True)."
        )


def fold_layer_scale(state_dict: MutableMapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiplies every gamma into the projection before it.

    Args:
        state_dict: Weights under today's names; left as they are.

    Returns:
        A new state dict without gammas, of a model that computes the same function.
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
