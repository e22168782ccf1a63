"""What the class token and the distillation token of a DeiT or ViT read: maps over the patches, and numbers per layer.

`token_maps` computes the maps of images: the attention of the last layer, attention rollout, and the relevance of the patches
for a class. `token_statistics` computes the cosine of both tokens and the mean attention distance of each layer. `overlay` and
`overlay_difference` draw a map over the pixels that the model saw.

This module needs only torch, numpy and Pillow: hub/space.py copies it into a Space, which has no hf_deit. Which images and
classes are meant, and the pictures with several maps, are the subject of inspection/.

Attention rollout: Abnar and Zuidema, arXiv:2005.00928. Relevance: Chefer, Gur and Wolf, arXiv:2103.15679, section 3.1, the rule
for self-attention. Mean attention distance: Dosovitskiy et al., arXiv:2010.11929, appendix D.7.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LAST_LAYER, ROLLOUT, RELEVANCE = METHODS = ("last_layer", "rollout", "relevance")
MODEL_TYPES = ("deit", "vit")
# Number of tokens that a head reads, for each class of models.
_HEADS = {"DeiTForImageClassificationWithTeacher": 2, "DeiTForImageClassification": 1, "ViTForImageClassification": 1}
TOKENS = ("class token", "distillation token")

SIDE = 384  # longer side of a drawn map, in pixels
# Colours of a map, from low (dark) over red to high (pale yellow). The lightness increases steadily, so that the order of the colours
# is seen without distinguishing hues.
RAMP = np.array([(20, 10, 60), (170, 30, 90), (250, 140, 20), (255, 250, 180)], dtype=np.float32)
# Colours of a difference: where the distillation token reads more (orange), and where the class token reads more (blue).
MORE_DISTILLATION, MORE_CLASS = np.array([(255, 150, 0), (0, 110, 255)], dtype=np.float32)

# Differences below this share of the highest value do not get the full colour: tokens that read the same should look the same.
LEAST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class TokenMaps:
    """Maps of a batch of images. Each map sums to 1; a map of relevance is 0 everywhere if no patch speaks for the class.

    Args:
        logits: `(batch, num_labels)`, the logits of the prediction.
        token_logits: `(batch, tokens, num_labels)`, the logits of the head that reads each token.
        classes: `(batch, classes)`, the classes that the relevance explains.
        maps: By method: `(batch, tokens, rows, columns)` for `last_layer` and `rollout`, and
            `(batch, classes, tokens, rows, columns)` for `relevance`.
    """

    logits: Tensor
    token_logits: Tensor
    classes: Tensor
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class TokenStatistics:
    """Numbers of a batch of images, layer by layer.

    Args:
        cosines: `(batch, layers + 2)`, the cosine of class token and distillation token in the embeddings (with the position
            embeddings), after each layer, and after the final norm. None for a model with one token.
        distances: `(batch, layers, heads)`, the mean attention distance in pixels.
    """

    cosines: Tensor | None
    distances: Tensor


# ---- models ----


def check_model(config: Any, class_name: str) -> None:
    """Check that a model is a classifier whose heads read tokens: a DeiT or a ViT of transformers or of hf_deit.

    Args:
        config: Configuration of the model.
        class_name: Name of the class of the model.

    Raises:
        ValueError: The model has another architecture, or no classes.
    """
    if config.model_type not in MODEL_TYPES or class_name not in _HEADS:
        raise ValueError(
            f"The model has model_type={config.model_type!r} and the class {class_name}. Maps of tokens are computed for the "
            f"model types {' and '.join(MODEL_TYPES)}, with one of the classes {', '.join(_HEADS)}."
        )
    if config.num_labels < 1:
        raise ValueError("The model has num_labels=0, and so no head whose prediction could be explained.")


def token_names(model: Any) -> tuple[str, ...]:
    """Return the names of the tokens that the heads of a model read, in the order in which they precede the patches."""
    return TOKENS[: _HEADS[type(model).__name__]]


def patch_grid(model: Any, pixel_values: Tensor) -> tuple[int, int]:
    """Return the number of rows and columns of patches in images `(batch, channels, height, width)`."""
    height, width = patch_size(model)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


def patch_size(model: Any) -> tuple[int, int]:
    """Return the height and width of a patch in pixels."""
    size = model.config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)


def covered_pixels(model: Any, pixel_values: Tensor) -> Tensor:
    """Return the pixels `(…, height, width)` that patches cover, over which maps lie.

    A stock model whose patches do not divide the image ignores the last rows and columns.
    """
    sides, grid = patch_size(model), patch_grid(model, pixel_values)
    return pixel_values[..., : grid[0] * sides[0], : grid[1] * sides[1]]


@contextlib.contextmanager
def _eager_evaluation(model: Any) -> Iterator[None]:
    """Let a model compute in evaluation mode with eager attention, which alone returns weights; restore both at the end."""
    modules = list(model.modules())
    training = [module.training for module in modules]
    configs = list({id(module.config): module.config for module in modules if hasattr(module, "config")}.values())
    chosen = [config._attn_implementation for config in configs]
    try:
        model.eval()
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, chosen, strict=True):
            config._attn_implementation = implementation
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


# ---- maps ----


def token_maps(
    model: Any,
    pixel_values: Tensor,
    methods: Sequence[str] = (ROLLOUT, RELEVANCE),
    classes: Sequence[int] | None = None,
) -> TokenMaps:
    """Compute the maps of images. The model is not changed: neither its mode nor its attention implementation nor gradients.

    The relevance of a class is computed for each token from the logit of the head that reads this token.

    Args:
        model: A model that `check_model` accepts.
        pixel_values: `(batch, channels, height, width)`, as the image processor of the model makes them.
        methods: Some of `METHODS`.
        classes: Indices of the classes whose relevance is computed. Default: the predicted class of each image.

    Raises:
        ValueError: A method is unknown.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"The method {unknown[0]!r} is unknown. The methods are {', '.join(METHODS)}.")
    tokens, grid = len(token_names(model)), patch_grid(model, pixel_values)
    explains = RELEVANCE in methods
    pixels = pixel_values.detach().to(model.device).requires_grad_(explains)
    with _eager_evaluation(model), torch.set_grad_enabled(explains):
        output = model(pixel_values=pixels, output_attentions=True)
        heads = [output.logits] if tokens == 1 else [output.cls_logits, output.distillation_logits]
        token_logits = torch.stack(heads, dim=1)
        if classes is None:
            chosen = output.logits.detach().argmax(dim=-1, keepdim=True)
        else:
            chosen = torch.tensor([list(classes)] * len(pixels), device=pixels.device)
        relevance = _relevance(output.attentions, token_logits, chosen) if explains else None
    weights = [_normalised(layer.detach().float()) for layer in output.attentions]
    flows = {
        LAST_LAYER: lambda: weights[-1].mean(dim=1)[:, :tokens],
        ROLLOUT: lambda: rollout(weights, tokens),
        RELEVANCE: lambda: relevance,
    }
    maps = {method: _over_patches(flows[method](), grid) for method in dict.fromkeys(methods)}
    return TokenMaps(output.logits.detach(), token_logits.detach(), chosen, maps)


def _normalised(weights: Tensor) -> Tensor:
    """Return attention weights whose rows sum to 1 in float32 too; those of a model in bfloat16 are off by up to 1 %."""
    return weights / weights.sum(dim=-1, keepdim=True)


def rollout(attentions: Sequence[Tensor], tokens: int) -> Tensor:
    """Compute attention rollout: the product of all layers, each averaged over its heads and then with the identity.

    Args:
        attentions: Attention weights of each layer, `(batch, heads, n, n)`; row i is the attention of token i.
        tokens: Number of tokens whose rows are returned.

    Returns:
        `(batch, tokens, n)`. Each row sums to 1.
    """
    return _first_rows([(layer.mean(dim=1) + torch.eye(layer.shape[-1]).to(layer)) / 2 for layer in attentions], tokens)


def relevance_of(attentions: Sequence[Tensor], gradients: Sequence[Tensor], tokens: int) -> Tensor:
    """Compute the relevance R of all tokens: R ← R + E[(∇A ⊙ A)⁺] · R for each layer, from the identity.

    Args:
        attentions: Attention weights A of each layer, `(batch, heads, n, n)`.
        gradients: Gradients ∇A of a logit, of the same shapes. E is the mean over the heads.
        tokens: Number of tokens whose rows are returned.

    Returns:
        `(batch, tokens, n)`.
    """
    steps = []
    for layer, gradient in zip(attentions, gradients, strict=True):
        positive = (gradient.float() * layer.float()).clamp_min(0).mean(dim=1)
        steps.append(positive + torch.eye(positive.shape[-1]).to(positive))
    return _first_rows(steps, tokens)


def _first_rows(steps: Sequence[Tensor], tokens: int) -> Tensor:
    """Return the first rows of the product of all steps, the last step on the left, without computing the other rows."""
    rows = steps[-1][:, :tokens]
    for step in reversed(steps[:-1]):
        rows = rows @ step
    return rows


def _relevance(attentions: Sequence[Tensor], token_logits: Tensor, classes: Tensor) -> Tensor:
    """Return the relevance for each class of the row of each token, `(batch, classes, tokens, n)`."""
    weights = [layer.detach() for layer in attentions]
    count = token_logits.shape[1]
    rows = []
    for label in classes.T:
        of_class = []
        for token in range(count):
            # The images of a batch do not influence each other, so the gradient of the sum is that of each image.
            logit = token_logits[:, token].gather(1, label[:, None]).sum()
            gradients = torch.autograd.grad(logit, attentions, retain_graph=True)
            of_class.append(relevance_of(weights, gradients, count)[:, token])
        rows.append(torch.stack(of_class, dim=1))
    return torch.stack(rows, dim=1)


def _over_patches(flow: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the shares of the patches, `(..., rows, columns)`, of rows `(..., n)`. The last tokens are the patches."""
    patches = flow[..., flow.shape[-1] - grid[0] * grid[1] :].double()
    total = patches.sum(dim=-1, keepdim=True)
    shares = torch.where(total > 0, patches / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    return shares.unflatten(-1, grid).float().cpu()


# ---- numbers per layer ----


@torch.no_grad()
def token_statistics(model: Any, pixel_values: Tensor) -> TokenStatistics:
    """Compute the cosine of both tokens and the mean attention distance in each layer. The model is not changed.

    Args:
        model: A model that `check_model` accepts.
        pixel_values: `(batch, channels, height, width)`.
    """
    with _eager_evaluation(model):
        output = model.base_model(
            pixel_values=pixel_values.to(model.device), output_attentions=True, output_hidden_states=True
        )
    grid, size = patch_grid(model, pixel_values), patch_size(model)
    distances = torch.stack([attention_distance(layer, grid, size) for layer in output.attentions], dim=1)
    cosines = None
    if len(token_names(model)) == 2:
        states = [*output.hidden_states, output.last_hidden_state]
        pairs = [state[:, :2].double() for state in states]
        cosines = torch.stack([torch.cosine_similarity(pair[:, 0], pair[:, 1], dim=-1) for pair in pairs], dim=1).cpu()
    return TokenStatistics(cosines, distances.cpu())


def learned_cosine(model: Any) -> float | None:
    """Return the cosine of the learned class and distillation tokens, before positions are added; None for one token."""
    if len(token_names(model)) == 1:
        return None
    embeddings = model.base_model.embeddings
    pair = [token.detach().double().flatten() for token in (embeddings.cls_token, embeddings.distillation_token)]
    return float(torch.cosine_similarity(*pair, dim=0))


def patch_distances(grid: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Return the distance of the centres of each pair of patches in pixels, `(patches, patches)`, patches row by row."""
    rows, columns = (torch.arange(count) * side for count, side in zip(grid, sides, strict=True))
    places = torch.cartesian_prod(rows, columns).double()
    return torch.cdist(places, places)


def attention_distance(weights: Tensor, grid: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Compute the mean distance between a patch and the patches that it reads, weighted by its attention to them.

    The attention between patches and the leading tokens is left out: tokens have no place in the image.

    Args:
        weights: Attention weights, `(batch, heads, n, n)`.
        grid: Number of rows and columns of patches.
        sides: Height and width of a patch in pixels.

    Returns:
        `(batch, heads)`, the mean over the patches, in pixels.
    """
    start = weights.shape[-1] - grid[0] * grid[1]
    between = _normalised(weights[..., start:, start:].double())
    return (between * patch_distances(grid, sides).to(between)).sum(dim=-1).mean(dim=-1)


# ---- pictures ----


def black_and_white(processor: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the values `(channels,)` that an image processor gives to black and to white pixels."""
    return tuple(
        processor(Image.new("RGB", (width, height), shade), return_tensors="pt")["pixel_values"][0].mean((1, 2))
        for shade in ("black", "white")
    )


def seen_image(pixel_values: Tensor, black: Tensor, white: Tensor) -> Image.Image:
    """Return the image that the model sees, with rescaling and normalisation undone, whatever they are.

    Args:
        pixel_values: `(channels, height, width)` of one image.
        black: Values of black, and `white` those of white, as `black_and_white` returns them.
        white: Values of white.
    """
    pixels = (pixel_values - black.view(-1, 1, 1)) / (white - black).view(-1, 1, 1)
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def overlay(image: Image.Image, values: np.ndarray, low: float, high: float, side: int = SIDE) -> Image.Image:
    """Draw a map over the image that the model saw.

    Args:
        image: The image that the model saw.
        values: Map of the patches, `(rows, columns)`.
        low: Value of the darkest colour.
        high: Value of the brightest colour.
        side: Longer side of the picture in pixels.
    """
    level = _enlarged((values - low) / max(high - low, 1e-12), image, side).clip(0, 1)
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(level, steps, RAMP[:, channel]) for channel in range(3)], axis=-1)
    return _picture(0.5 * _grey(image, side) + 0.5 * colour)


def overlay_difference(image: Image.Image, difference: np.ndarray, limit: float, side: int = SIDE) -> Image.Image:
    """Draw the difference of two maps over the image: orange where the distillation token reads more, blue where it reads less.

    Args:
        image: The image that the model saw.
        difference: Map of the distillation token minus that of the class token, `(rows, columns)`.
        limit: Size of a difference that has the full colour.
        side: Longer side of the picture in pixels.
    """
    level = _enlarged(difference / max(limit, 1e-12), image, side).clip(-1, 1)[..., None]
    colour = np.where(level > 0, MORE_DISTILLATION, MORE_CLASS)
    strength = 0.85 * np.abs(level)
    return _picture((1 - strength) * (0.6 * _grey(image, side) + 80) + strength * colour)


def draw_maps(image: Image.Image, maps: np.ndarray, side: int = SIDE) -> list[Image.Image]:
    """Draw the maps of all tokens on one common scale and, for two tokens, their difference.

    Args:
        image: The image that the model saw.
        maps: `(tokens, rows, columns)`.
        side: Longer side of the pictures in pixels.
    """
    low, high = float(maps.min()), float(maps.max())
    pictures = [overlay(image, values, low, high, side) for values in maps]
    if len(maps) == 2:
        limit = max(largest_difference(maps), LEAST_DIFFERENCE) * high
        pictures.append(overlay_difference(image, maps[1] - maps[0], limit, side))
    return pictures


def largest_difference(maps: np.ndarray) -> float:
    """Return the largest difference of the maps of two tokens, as a share of their highest value."""
    return float(np.abs(maps[1] - maps[0]).max() / max(float(maps.max()), 1e-12))


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Return the image with a longer side of `side` pixels, the size of its maps."""
    return image.resize(_size(image, side), Image.Resampling.BICUBIC)


def _size(image: Image.Image, side: int) -> tuple[int, int]:
    scale = side / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _enlarged(values: np.ndarray, image: Image.Image, side: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize(_size(image, side), Image.Resampling.BILINEAR))


def _grey(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(enlarged(image, side).convert("L"), dtype=np.float32)[..., None]


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
