"""Official and timm names of a DeiT's or ViT's parameters to ours; a pure function of a state dict.

`attn.qkv` stacks the query's rows, then the key's, then the value's.
"""

from collections.abc import Mapping

import torch

from .errors import UserError

# Beginning or part of an official name → ours.
_NAMES = (
    ("blocks.", "layers."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.o_proj."),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("pos_embed", "embeddings.position_embeddings"),
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
)


class ConversionError(UserError):
    """Weights that are not those of a DeiT or ViT; the message names the first that is unknown."""


def from_timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the official code's and timm's parameters.

    Args:
        weights: A state dict with the names of `deit_tiny_patch16_224` or `deit_tiny_distilled_patch16_224`.

    Returns:
        The state dict of `ViTForImageClassification`, or with a `dist_token` of `DeiTForImageClassificationWithTeacher`.

    Raises:
        ConversionError: There is no class token, so it is another kind of model.
    """
    if "cls_token" not in weights:
        first = ", ".join(list(weights)[:3])
        raise ConversionError(f"Not the weights of a DeiT or ViT: there is no 'cls_token' (the first names: {first}).")
    distilled = "dist_token" in weights
    prefix, head = ("deit.", "cls_classifier.") if distilled else ("vit.", "classifier.")
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if name.startswith("head."):
            renamed[head + name.removeprefix("head.")] = weight
            continue
        if name.startswith("head_dist."):
            renamed["distillation_classifier." + name.removeprefix("head_dist.")] = weight
            continue
        own = f"layer{name}" if name.startswith("norm.") else name
        for old, new in _NAMES:
            own = own.replace(old, new)
        if ".attn.qkv." in own:
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                renamed[prefix + own.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            renamed[prefix + own] = weight
    return renamed
