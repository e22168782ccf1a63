"""Official and timm names of a DeiT's or ViT's parameters to ours and back; its architecture, read off its shapes.

Pure functions of state dicts. Reading files is in weights.py, building models and folders in convert.py.
`attn.qkv` stacks the query's rows, then the key's, then the value's. LayerScale's gamma is `gamma_1` in the official
code and `ls1.gamma` in timm. DeiT III's positions have no row for the class token; ours get one of zeros, which adds
nothing, and lose it on the way back.

Papers: Touvron et al., arXiv:2012.12877; DeiT III: arXiv:2204.07118.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..sizes import as_pair
from .state_dicts import rename_hub_key

# timm's name of a module or parameter → ours; the class and distillation head depend on the kind of student.
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
# Heads cannot be read off shapes. Ti, S, B of the paper; M, L, H of DeiT III.
_HEADS_OF_WIDTH = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}
_LISTED = 8
# A name in a file decides how many layers are built, so a hostile one must not decide it alone.
_MOST_LAYERS = 1000


def _split(name: str) -> tuple[str, str, str]:
    """Splits `blocks.3.norm1.weight` into ("3", "norm1", ".weight"); outside the blocks the number is ""."""
    match = re.fullmatch(r"(?:(?:blocks|layers)\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    return match[1] or "", match[2], match[3] or ""


def _own_name(name: str, distilled: bool) -> str:
    """Our name for a timm name without qkv; unknown names come back as they are, to be listed later."""
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
    """Renames the official code's and timm's parameters.

    Args:
        weights: A state dict with the names of `deit_tiny_patch16_224` or `deit_tiny_distilled_patch16_224`.

    Returns:
        The state dict of `ViTForImageClassification`, or with a `dist_token` of `DeiTForImageClassificationWithTeacher`;
        names that neither model has are kept.

    Raises:
        UserError: There is no class token, so it is another kind of model; or two names mean one parameter.
    """
    if "cls_token" not in weights:
        first = ", ".join(list(weights)[:3])
        raise UserError(f"Not the weights of a DeiT or ViT: there is no 'cls_token' (the first names: {first}).")
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
        raise UserError(f"The weights name a parameter twice, in two manners: {_list(twice)}.")
    return renamed


def to_timm_names(model: nn.Module, official: bool = False) -> dict[str, torch.Tensor]:
    """Gives a student's weights under timm's names, bit for bit.

    Args:
        model: `DeiTForImageClassificationWithTeacher` or `ViTForImageClassification`, this package's or stock's.
        official: Name LayerScale as the official code does (`gamma_1`), not as timm does (`ls1.gamma`).

    Raises:
        UserError: The model is another, or has parameters that timm's has not.
    """
    weights = model.state_dict()
    distilled = "deit.embeddings.distillation_token" in weights
    prefix = "deit." if distilled else "vit."
    if f"{prefix}embeddings.cls_token" not in weights:
        raise UserError(
            f"A {type(model).__name__} has no names in timm: DeiTForImageClassificationWithTeacher and "
            "ViTForImageClassification have."
        )
    renamed = {}
    unknown = []
    for name, weight in weights.items():
        if name.endswith(tuple(f"{part}{ending}" for part in _QKV[1:] for ending in (".weight", ".bias"))):
            continue  # stacked with the query
        own = timm_name(name, official)
        if own is None:
            unknown.append(name)
        elif ".attn.qkv" in own:
            renamed[own] = torch.cat([weights[name.replace("q_proj", part)] for part in _QKV])
        else:
            renamed[own] = weight
    if unknown:
        raise UserError(f"timm's model has no such parameters: {_list(unknown)}.")
    if any("gamma" in name for name in renamed) and not distilled and not renamed["pos_embed"][:, 0].any():
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:].contiguous()
    return renamed


def timm_name(name: str, official: bool = False) -> str | None:
    """Gives timm's name for one of ours, None if it has none; query, key and value are all `attn.qkv`."""
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
    """Gives a state dict our names, from timm's or from those of transformers 4 and 5.

    The pooler that stock's ViT and DeiT may save is left out: no classifier uses it.

    Raises:
        UserError: They are of another kind of model.
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
        raise UserError("The weights hold a 'deit.' and a 'vit.' model: give a file with one of them.")
    return renamed


def with_class_position(weights: Mapping[str, torch.Tensor], image_size: Any = None) -> dict[str, torch.Tensor]:
    """Puts a row of zeros before positions that have none for the class token (DeiT III); else gives what it got.

    Args:
        weights: Under our names.
        image_size: Pixels, a number or (height, width); None: a square image.
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
    """Reads the fields of a configuration off the shapes of weights under our names.

    Args:
        weights: As `own_names` and `with_class_position` give them.
        image_size: Pixels, a number or (height, width); None: a square image, of the size the positions say.
        num_attention_heads: None: 64 values a head, for the published widths.

    Raises:
        UserError: A tensor that shows the architecture is missing or of an impossible shape, the positions are of
            no square image, or the heads of this width are not known.
    """
    prefix = "deit." if "deit.embeddings.distillation_token" in weights else "vit."
    hidden, channels, *patch = _shape(weights, f"{prefix}embeddings.patch_embeddings.projection.weight", 4)
    positions = _shape(weights, f"{prefix}{_POSITIONS}", 3)[1] - (2 if prefix == "deit." else 1)
    first = f"{prefix}layers.0."
    layers = {int(number) for number in re.findall(r"layers\.(\d+)\.", "\n".join(weights))}
    if max(layers, default=0) >= _MOST_LAYERS:
        raise UserError(f"The weights name a layer {max(layers)}: more than {_MOST_LAYERS} layers are not believed.")
    return {
        "hidden_size": hidden,
        "num_channels": channels,
        "num_hidden_layers": max(layers, default=-1) + 1,
        "intermediate_size": _shape(weights, f"{first}mlp.fc1.weight", 2)[0],
        "num_attention_heads": _heads(hidden, num_attention_heads),
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "image_size": _image_size(positions, patch, image_size),
        "qkv_bias": f"{first}attention.q_proj.bias" in weights,
        # Its value is where training began, which weights do not tell: DeiT III's.
        "layer_scale_init_value": 1e-4 if f"{first}layer_scale1.lambda1" in weights else None,
    }


def head_name(distilled: bool) -> str:
    """Our name of the class head's weight, whose rows are the classes."""
    return "cls_classifier.weight" if distilled else "classifier.weight"


def _shape(weights: Mapping[str, torch.Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(
            f"Not the weights of a DeiT or ViT that is known here: there is no {name!r} ({timm_name(name)!r} in timm). The "
            f"first names: {', '.join(list(weights)[:3])}."
        )
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise UserError(f"{name} ({timm_name(name)} in timm) has the shape {shape}: it has {dimensions} dimensions.")
    return shape


def _heads(hidden: int, given: int | None) -> int:
    if given is None and hidden not in _HEADS_OF_WIDTH:
        raise UserError(
            f"hidden_size={hidden}: how many heads it has cannot be read off the weights, only for the published widths "
            f"{', '.join(map(str, _HEADS_OF_WIDTH))}. Give num_attention_heads."
        )
    heads = _HEADS_OF_WIDTH[hidden] if given is None else given
    if heads < 1 or hidden % heads:
        raise UserError(f"num_attention_heads={heads} does not divide hidden_size={hidden}: give one that does.")
    return heads


def _image_size(positions: int, patch: list[int], given: Any) -> Any:
    if given is not None:
        height, width = as_pair(given)
        if (height // patch[0]) * (width // patch[1]) != positions:
            raise UserError(
                f"image_size={given}: with patches of {patch[0]}×{patch[1]} pixels that is "
                f"{height // patch[0]}×{width // patch[1]} patches, and the weights have positions of {positions}. Give the "
                "size they were trained at; another size comes after the conversion (--image_size of hf-deit train)."
            )
        return height if height == width else (height, width)
    side = math.isqrt(max(positions, 0))
    if side < 1 or side * side != positions:
        raise UserError(
            f"The weights have positions of {positions} patches, which is no square: give image_size as height and width."
        )
    height, width = side * patch[0], side * patch[1]
    return height if height == width else (height, width)


def check_weights(weights: Mapping[str, torch.Tensor], model: nn.Module, timm: bool = False) -> dict[str, list[str]]:
    """Compares weights with the parameters of a model.

    Args:
        weights: Under our names.
        model: On any device, also "meta".
        timm: Tell parameters by timm's names, as the file has them.

    Returns:
        "missing", "unknown" and "misshapen" names, sorted; those of a wrong shape with both shapes.
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
    """One sentence a kind of problem, empty if there is none; long lists are cut off and counted."""
    return "; ".join(f"{len(names)} {kind}: {_list(names)}" for kind, names in problems.items() if names)


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
