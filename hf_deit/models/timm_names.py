"""Conversion of parameter names between timm, the official code and this package, and architectures from weights.

All functions are pure functions of state dicts. Files are read in weights.py; models and folders are made in
convert.py. `attn.qkv` contains the rows of the query, then those of the key, then those of the value. The gamma of
LayerScale is called `gamma_1` in the official code and `ls1.gamma` in timm. The position embeddings of DeiT III have no
row for the class token. Here they get a row of zeros, which does not change the logits, and the export removes it
again.

Papers: Touvron et al., arXiv:2012.12877; DeiT III: arXiv:2204.07118.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError, listed
from ..sizes import as_pair
from .state_dicts import rename_hub_key

# Name in timm → name in this package. The names of the heads depend on the kind of student, and are in `_own_name`.
_OUTER = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_INNER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_OFFICIAL_GAMMAS = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
_QKV = ("q_proj", "k_proj", "v_proj")
_POSITIONS = "embeddings.position_embeddings"
# Width → number of attention heads, which shapes do not show: Ti, S and B of the paper; M, L and H of DeiT III.
_HEADS_OF_WIDTH = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}
# The names in a file determine how many layers are built, so a malicious file must not make this number huge.
_MOST_LAYERS = 1000


def _split(name: str) -> tuple[str, str, str]:
    """Split `blocks.3.norm1.weight` into ("3", "norm1", ".weight"). Outside the blocks, the number is ""."""
    match = re.fullmatch(r"(?:(?:blocks|layers)\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    return match[1] or "", match[2], match[3] or ""


def _own_name(name: str, distilled: bool) -> str:
    """Return the name in this package for a name in timm other than qkv. Unknown names are returned unchanged."""
    number, stem, ending = _split(name)
    if number == "":
        heads = (
            {"head": "cls_classifier", "head_dist": "distillation_classifier"} if distilled else {"head": "classifier"}
        )
        if stem in heads:
            return heads[stem] + ending
        own = _OUTER.get(stem)
        return name if own is None else ("deit." if distilled else "vit.") + own + ending
    own = _INNER.get(_OFFICIAL_GAMMAS.get(stem, stem))
    return name if own is None else f"{'deit' if distilled else 'vit'}.layers.{number}.{own}{ending}"


def from_timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the parameters of the official code or of timm.

    Args:
        weights: A state dict with the names of `deit_tiny_patch16_224` or `deit_tiny_distilled_patch16_224`.

    Returns:
        The state dict of `DeiTForImageClassificationWithTeacher` if there is a `dist_token`, or else of
        `ViTForImageClassification`. Names that the model does not have are kept unchanged.

    Raises:
        UserError: The weights have no class token, so they are of another kind of model, or two names mean the same
            parameter.
    """
    if "cls_token" not in weights:
        first = listed(weights, str)
        raise UserError(
            f"The weights are not those of a DeiT or ViT: they have no 'cls_token'. The first names are: {first}."
        )
    distilled = "dist_token" in weights
    pairs: list[tuple[str, torch.Tensor]] = []
    for name, weight in weights.items():
        number, stem, ending = _split(name)
        if stem == "attn.qkv" and number and weight.shape[0] % 3 == 0:
            layer = f"{'deit' if distilled else 'vit'}.layers.{number}.attention."
            pairs += [(f"{layer}{part}{ending}", rows) for part, rows in zip(_QKV, weight.chunk(3), strict=True)]
        else:
            pairs.append((_own_name(name, distilled), weight))
    renamed = dict(pairs)
    if len(renamed) != len(pairs):
        own = [name for name, _ in pairs]
        twice = sorted({name for name in own if own.count(name) > 1})
        raise UserError(
            f"The weights contain a parameter twice, under two names: {listed(twice, str)}. Give a file with one of them."
        )
    return renamed


def to_timm_names(model: nn.Module, official: bool = False) -> dict[str, torch.Tensor]:
    """Return the weights of a student under the names of timm. The values are unchanged.

    Args:
        model: `DeiTForImageClassificationWithTeacher` or `ViTForImageClassification`, of this package or of
            stock transformers.
        official: Use the name `gamma_1` of the official code for LayerScale, instead of the name `ls1.gamma` of timm.

    Raises:
        UserError: The model is of another class, or has parameters that the model of timm does not have.
    """
    weights = model.state_dict()
    distilled = "deit.embeddings.distillation_token" in weights
    prefix = "deit." if distilled else "vit."
    if f"{prefix}embeddings.cls_token" not in weights:
        raise UserError(
            f"{type(model).__name__} cannot be written with the names of timm. Give a "
            "DeiTForImageClassificationWithTeacher or a ViTForImageClassification."
        )
    renamed = {}
    unknown = []
    for name, weight in weights.items():
        if name.endswith(tuple(f"{part}{ending}" for part in _QKV[1:] for ending in (".weight", ".bias"))):
            continue  # added together with the query
        own = timm_name(name, official)
        if own is None:
            unknown.append(name)
        elif ".attn.qkv" in own:
            renamed[own] = torch.cat([weights[name.replace("q_proj", part)] for part in _QKV])
        else:
            renamed[own] = weight
    if unknown:
        raise UserError(f"The model of timm does not have these parameters: {listed(unknown, str)}.")
    if any("gamma" in name for name in renamed) and not distilled and not renamed["pos_embed"][:, 0].any():
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:].contiguous()
    return renamed


def timm_name(name: str, official: bool = False) -> str | None:
    """Return the name in timm for a name in this package, or None. The name of query, key and value is `attn.qkv`."""
    number, stem, ending = _split(name.removeprefix("deit.").removeprefix("vit."))
    if number == "":
        heads = {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist"}
        own = heads.get(stem) or {ours: theirs for theirs, ours in _OUTER.items()}.get(stem)
        return None if own is None else own + ending
    if stem.removeprefix("attention.") in _QKV:
        return f"blocks.{number}.attn.qkv{ending}"
    own = {ours: theirs for theirs, ours in _INNER.items()}.get(stem)
    if own is not None and official:
        own = {timm: gamma for gamma, timm in _OFFICIAL_GAMMAS.items()}.get(own, own)
    return None if own is None else f"blocks.{number}.{own}{ending}"


def own_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a state dict of timm, the official code or transformers 4 or 5 to the names of this package.

    The pooler that the ViT and DeiT of stock transformers may save is left out, because no classifier uses it.

    Raises:
        UserError: The weights are of another kind of model, or of two models.
    """
    if any(rename_hub_key(name).startswith("layers.") or name == "embeddings.cls_token" for name in weights):
        prefix = "deit." if "embeddings.distillation_token" in weights else "vit."  # a backbone alone
        weights = {prefix + name: weight for name, weight in weights.items()}
    if not any(name.startswith(("deit.", "vit.")) for name in weights):
        return from_timm_names(weights)
    renamed = {
        rename_hub_key(name): weight
        for name, weight in weights.items()
        if not name.startswith(("deit.pooler.", "vit.pooler."))
    }
    if len({name.split(".")[0] for name in renamed} & {"deit", "vit"}) > 1:
        raise UserError("The weights contain both a 'deit.' and a 'vit.' model. Give a file with one of them.")
    return renamed


def with_class_position(weights: Mapping[str, torch.Tensor], image_size: Any = None) -> dict[str, torch.Tensor]:
    """Add a row of zeros for the class token to position embeddings that have no such row (DeiT III).

    Other weights are returned unchanged, in a new dictionary.

    Args:
        weights: Weights under the names of this package.
        image_size: Image size in pixels, one number or (height, width). None means that the image is square.
    """
    weights = dict(weights)
    name = f"vit.{_POSITIONS}"
    positions, patch = weights.get(name), weights.get("vit.embeddings.patch_embeddings.projection.weight")
    if positions is None or patch is None or positions.ndim != 3 or patch.ndim != 4:
        return weights
    rows = positions.shape[1]
    if image_size is None:
        without = rows > 1 and math.isqrt(rows) ** 2 == rows
    else:
        (height, width), (high, wide) = as_pair(image_size), patch.shape[2:]
        without = rows == (height // high) * (width // wide)
    if without:
        weights[name] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return weights


def infer_architecture(
    weights: Mapping[str, torch.Tensor], image_size: Any = None, num_attention_heads: int | None = None
) -> dict[str, Any]:
    """Infer the fields of a configuration from the names and shapes of weights.

    Args:
        weights: Weights as `own_names` and `with_class_position` return them.
        image_size: Image size in pixels, one number or (height, width). None means a square image whose size follows
            from the number of position embeddings.
        num_attention_heads: Number of attention heads. None uses the published number for the published widths.

    Raises:
        UserError: A tensor that determines the architecture is missing or has an invalid shape, the position embeddings
            do not match the image size, or the number of heads is unknown for this width.
    """
    prefix = "deit." if "deit.embeddings.distillation_token" in weights else "vit."
    hidden, channels, *patch = _shape(weights, f"{prefix}embeddings.patch_embeddings.projection.weight", 4)
    positions = _shape(weights, f"{prefix}{_POSITIONS}", 3)[1] - (2 if prefix == "deit." else 1)
    first = f"{prefix}layers.0."
    layers = {int(number) for number in re.findall(r"layers\.(\d+)\.", "\n".join(weights))}
    if max(layers, default=0) >= _MOST_LAYERS:
        raise UserError(
            f"The weights contain a layer {max(layers)}, but at most {_MOST_LAYERS} layers are allowed. The file is "
            "damaged or of another kind of model."
        )
    return {
        "hidden_size": hidden,
        "num_channels": channels,
        "num_hidden_layers": max(layers, default=-1) + 1,
        "intermediate_size": _shape(weights, f"{first}mlp.fc1.weight", 2)[0],
        "num_attention_heads": _heads(hidden, num_attention_heads),
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "image_size": _image_size(positions, patch, image_size),
        "qkv_bias": f"{first}attention.q_proj.bias" in weights,
        # The weights do not contain the initial value of gamma, so it is set to that of DeiT III.
        "layer_scale_init_value": 1e-4 if f"{first}layer_scale1.lambda1" in weights else None,
    }


def head_name(distilled: bool) -> str:
    """Return the name of the weight of the class head. The rows of this weight are the classes."""
    return "cls_classifier.weight" if distilled else "classifier.weight"


def _shape(weights: Mapping[str, torch.Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(
            f"The weights are not those of a supported DeiT or ViT: they have no {name!r} ({timm_name(name)!r} in "
            f"timm). The first names are: {listed(weights, str)}."
        )
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise UserError(
            f"{name} ({timm_name(name)} in timm) has the shape {shape}, but it must have {dimensions} dimensions."
        )
    return shape


def _heads(hidden: int, given: int | None) -> int:
    if given is None and hidden not in _HEADS_OF_WIDTH:
        raise UserError(
            f"hidden_size={hidden}: the weights do not show the number of attention heads, and it is known only for "
            f"the published widths {', '.join(map(str, _HEADS_OF_WIDTH))}. Give num_attention_heads."
        )
    heads = _HEADS_OF_WIDTH[hidden] if given is None else given
    if heads < 1 or hidden % heads:
        raise UserError(
            f"num_attention_heads={heads} does not divide hidden_size={hidden}. Give a number of heads that divides it."
        )
    return heads


def _image_size(positions: int, patch: list[int], given: Any) -> Any:
    if given is not None:
        height, width = as_pair(given)
        if (height // patch[0]) * (width // patch[1]) != positions:
            raise UserError(
                f"image_size={given}: with patches of {patch[0]}×{patch[1]} pixels, this gives "
                f"{height // patch[0]}×{width // patch[1]} patches, but the weights have positions of {positions} "
                "patches. Give the size that the model was trained with. To change the size, convert first, then use "
                "--image_size of hf-deit train."
            )
        return height if height == width else (height, width)
    side = math.isqrt(max(positions, 0))
    if side < 1 or side * side != positions:
        raise UserError(
            f"The weights have positions of {positions} patches, which is not a square number. Give image_size as "
            "height and width."
        )
    height, width = side * patch[0], side * patch[1]
    return height if height == width else (height, width)


def check_weights(weights: Mapping[str, torch.Tensor], model: nn.Module, timm: bool = False) -> dict[str, list[str]]:
    """Compare weights with the parameters of a model.

    Args:
        weights: Weights under the names of this package.
        model: Model on any device, including "meta".
        timm: Report the parameters under the names of timm, for a file that uses these names.

    Returns:
        Sorted lists of names under "missing", "unknown" and "misshapen". A misshapen name is listed with both shapes.
    """

    def shown(name: str) -> str:
        return (timm_name(name) or name) if timm else name

    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    wrong = [name for name in expected.keys() & weights.keys() if tuple(weights[name].shape) != expected[name]]
    return {
        "missing": sorted({shown(name) for name in expected.keys() - weights.keys()}),
        "unknown": sorted({shown(name) for name in weights.keys() - expected.keys()}),
        "misshapen": sorted(
            f"{shown(name)} {tuple(weights[name].shape)} instead of {expected[name]}" for name in wrong
        ),
    }


def describe_problems(problems: Mapping[str, list[str]]) -> str:
    """Return the number and the names of each kind of problem, or an empty text. Long lists are shortened."""
    return "; ".join(f"{len(names)} {kind}: {listed(names, str)}" for kind, names in problems.items() if names)
