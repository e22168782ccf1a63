"""Preparation of a trained student for fine-tuning: another image size, a distillation token, frozen parts.

Each function returns a new model or changes which parameters are trainable. Training is in trainer/, and models are
loaded in loading.py.

Papers: arXiv:2012.12877, section 5.1 (positions at another resolution, a teacher while fine-tuning); Touvron et al.,
"Three things everyone should know about Vision Transformers", arXiv:2203.09795, section 4 (attention only).
"""

import copy
import re

import torch
from torch import nn

from ..errors import UserError
from .configuration_deit import DeiTConfig
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification

TRAINABLE = ("all", "attention", "head")
TOKEN_INITIALIZATIONS = ("copy", "new")
Student = DeiTForImageClassificationWithTeacher | ViTForImageClassification
_HEAD = re.compile(r"(^|\.)(\w*classifier|head|heads|fc)(\.|$)")
_ATTENTION = re.compile(r"(^|\.)(attention|attn|self_attn|self_attention)(\.|$)")
_TOKENS = ("cls_token", "distillation_token")


def _embeddings(model: Student) -> nn.Module:
    return model.base_model.embeddings


def resize_positions(
    positions: torch.Tensor, num_tokens: int, old: tuple[int, int], new: tuple[int, int]
) -> torch.Tensor:
    """Interpolate the position embeddings of the patches to another grid (bicubic), and keep their mean norm.

    Args:
        positions: `(1, num_tokens + rows · columns, hidden_size)`. The embeddings of the tokens come first and are not
            changed.
        num_tokens: Number of tokens before the patches.
        old: Current numbers of patch rows and columns.
        new: New numbers of patch rows and columns.

    Returns:
        `(1, num_tokens + new rows · new columns, hidden_size)`.
    """
    if old == new:
        return positions
    tokens, patches = positions.tensor_split([num_tokens], dim=1)
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, hidden_size, rows, columns)
    grid = nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    resized = grid.flatten(2).transpose(1, 2)
    resized = resized * (patches.norm(dim=-1).mean() / resized.norm(dim=-1).mean())
    return torch.cat([tokens, resized], dim=1)


def with_image_size(model: Student, image_size: tuple[int, int], **fields: float) -> Student:
    """Return a copy of the model for images of another size, with interpolated position embeddings.

    Args:
        model: A student of this package.
        image_size: `(height, width)` in pixels, square or not, as multiples of the patch size.
        **fields: Other fields of the configuration that do not change the weights (such as `drop_path_rate`).

    Raises:
        ValueError: The image size is not a multiple of the patch size, or a field is out of range.
    """
    height, width = image_size
    config = type(model.config).from_dict(
        {**model.config.to_dict(), "image_size": height if height == width else (height, width), **fields}
    )
    resized = type(model)(config)
    weights = model.state_dict()
    name = f"{model.base_model_prefix}.embeddings.position_embeddings"
    embeddings = _embeddings(model)
    weights[name] = resize_positions(
        embeddings.position_embeddings.detach(), embeddings.num_tokens, embeddings.grid, _embeddings(resized).grid
    )
    resized.load_state_dict(weights)
    return resized.train(model.training)


@torch.no_grad()
def distilled_from_plain(
    model: ViTForImageClassification, initialization: str = "copy"
) -> DeiTForImageClassificationWithTeacher:
    """Return a distilled student with the weights of a plain student.

    The distilled student has an additional token with a position embedding, and two heads. Both heads start as copies
    of the head of the plain student. There are two ways to initialise the distillation token:

    - "copy": a copy of the class token and its position embedding. Both heads give equal logits at first, but all
      tokens now attend to two class tokens.
    - "new": a random token (truncated normal, std `initializer_range`, 0.02 by default) with a position embedding of
      zeros. This changes the logits of the class head less, but the distillation head predicts at chance at first.

    Args:
        model: The plain student.
        initialization: "copy" or "new".

    Raises:
        ValueError: The initialisation is unknown.
    """
    if initialization not in TOKEN_INITIALIZATIONS:
        raise ValueError(f"initialization={initialization!r}: choose one of {', '.join(TOKEN_INITIALIZATIONS)}.")
    fields = {**model.config.to_dict(), "model_type": "deit"}
    fields.pop("architectures", None)
    distilled = DeiTForImageClassificationWithTeacher(DeiTConfig.from_dict(fields))
    plain, own = model.state_dict(), distilled.state_dict()
    old, new = f"{model.base_model_prefix}.", f"{distilled.base_model_prefix}."
    weights = {new + name.removeprefix(old): weight for name, weight in plain.items() if name.startswith(old)}
    cls_token, positions = weights[f"{new}embeddings.cls_token"], weights[f"{new}embeddings.position_embeddings"]
    copied = initialization == "copy"
    token = cls_token if copied else own[f"{new}embeddings.distillation_token"]
    position = positions[:, :1] if copied else torch.zeros_like(positions[:, :1])
    weights[f"{new}embeddings.distillation_token"] = token
    weights[f"{new}embeddings.position_embeddings"] = torch.cat([positions[:, :1], position, positions[:, 1:]], dim=1)
    for head in ("cls_classifier", "distillation_classifier"):
        weights |= {
            name.replace("classifier", head, 1): w for name, w in plain.items() if name.startswith("classifier")
        }
    distilled.load_state_dict({name: copy.deepcopy(weight) for name, weight in weights.items()})
    return distilled.train(model.training)


def _evaluate_always(module: nn.Module, inputs: tuple) -> None:
    module.training = False


def _freeze_statistics(model: nn.Module) -> None:
    """Keep frozen batch norms in evaluation mode, because training mode would change their running statistics."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(weight.requires_grad for weight in own):
            module.register_forward_pre_hook(_evaluate_always)


def set_trainable(model: nn.Module, part: str) -> int:
    """Freeze all parameters of a model outside the given part.

    Args:
        model: A student of any family.
        part: "all" freezes nothing. "attention" trains the attention layers, the tokens and the heads. "head" trains
            only the heads.

    Returns:
        The number of trainable parameters.

    Raises:
        UserError: The part is unknown, or no parameter of the model has the name of such a part.
    """
    if part not in TRAINABLE:
        raise UserError(f"trainable={part!r}: choose one of {', '.join(TRAINABLE)}.")
    if part != "all":
        heads = {name for name, _ in model.named_parameters() if _HEAD.search(name)}
        attention = {name for name, _ in model.named_parameters() if _ATTENTION.search(name)}
        if not heads or (part == "attention" and not attention):
            raise UserError(
                f"trainable={part!r}: {type(model).__name__} has no parameters whose names show that they belong to "
                f"{'a head' if not heads else 'an attention layer'}. Use trainable='all'."
            )
        for name, parameter in model.named_parameters():
            tokens = name.rpartition(".")[2] in _TOKENS
            learns = name in heads or (part == "attention" and (name in attention or tokens))
            parameter.requires_grad_(learns)
        _freeze_statistics(model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
