"""From weights to a student that can go on learning: other image sizes, a distillation token, some parts frozen.

Each function gives a new model or changes which parameters learn; nothing is trained here, and nothing is read from disk.

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
    """Resamples the patch positions to another grid (bicubic), with their mean norm kept.

    Args:
        positions: `(1, num_tokens + rows · columns, hidden_size)`; the tokens' positions come first and stay.
        num_tokens: Tokens before the patches.
        old: Rows and columns of patches.
        new: Rows and columns wanted.

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
    """Gives the model for images of another size, square or not, its positions interpolated.

    Args:
        model: One of this package's students.
        image_size: `(height, width)` in pixels, multiples of the patch.
        **fields: Other fields of the configuration that change no weight (`drop_path_rate`).

    Raises:
        ValueError: The size is not a multiple of the patch, or a field is out of range.
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
    """Gives a plain student a distillation token with a position and a head.

    Both heads start as the plain one's. The token starts as a copy of the class token and its position: both heads are equal at
    first, but the other tokens attend to two class tokens. Or it is initialised randomly (normal, std 0.02, no position of its own): that
    disturbs the class head less, but the distillation head answers at random. README says what was measured of the two.

    Args:
        model: The plain student.
        initialization: "copy" or "new".

    Raises:
        ValueError: An unknown initialisation.
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
    """Keeps the running statistics of frozen batch norms, which training mode would move: they are weights too."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(weight.requires_grad for weight in own):
            module.register_forward_pre_hook(_evaluate_always)


def set_trainable(model: nn.Module, part: str) -> int:
    """Freezes what is not to learn.

    Args:
        model: The student, of any family.
        part: "all"; "attention": the attention layers, the tokens and the heads; "head": the heads only.

    Returns:
        The number of parameters that learn.

    Raises:
        UserError: An unknown part, or the model has none such by name.
    """
    if part not in TRAINABLE:
        raise UserError(f"trainable={part!r}: choose one of {', '.join(TRAINABLE)}.")
    if part != "all":
        heads = {name for name, _ in model.named_parameters() if _HEAD.search(name)}
        attention = {name for name, _ in model.named_parameters() if _ATTENTION.search(name)}
        if not heads or (part == "attention" and not attention):
            raise UserError(
                f"trainable={part!r}: {type(model).__name__} has no parameters named like {'a head' if not heads else 'attention'}. "
                "Use trainable='all'."
            )
        for name, parameter in model.named_parameters():
            tokens = name.rpartition(".")[2] in _TOKENS
            learns = name in heads or (part == "attention" and (name in attention or tokens))
            parameter.requires_grad_(learns)
        _freeze_statistics(model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
