"""Show the classes that every head of a model predicts, and the attention of the tokens that the heads read.

The app needs transformers, torch, numpy, Pillow and gradio. It does not need hf_deit.
Attention rollout: Abnar and Zuidema, arXiv:2005.00928.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

MODEL = "__MODEL__"
TITLE = "__TITLE__"
# Never run code that comes with the model, and never load a pickle.
SAFE = {"trust_remote_code": False, "use_safetensors": True}

TOP = 5
SIDE = 384  # longer side of a shown map, in pixels
LAST, ROLLOUT = "last layer", "rollout of all layers"
# Colours from low attention (dark) over red to high attention (pale yellow).
RAMP = np.array([(20, 10, 60), (170, 30, 90), (250, 140, 20), (255, 250, 180)], dtype=np.float32)


def load(name: str = MODEL) -> tuple[Any, Any]:
    """Load the model and its image processor from the folder of this name beside this file, else from the Hub."""
    folder = Path(__file__).parent / name
    where = str(folder) if folder.is_dir() else name
    # Only the eager implementation returns attention weights.
    model, info = AutoModelForImageClassification.from_pretrained(
        where, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **SAFE
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{name} is not a trained classifier: the weights {', '.join(sorted(info['missing_keys']))} are missing."
        )
    if model.config.model_type not in ("deit", "vit"):
        raise ValueError(
            f"{name} has model_type={model.config.model_type!r}. This app shows the attention of deit and vit models "
            "only."
        )
    return model.eval(), AutoImageProcessor.from_pretrained(where, trust_remote_code=False)


def head_names(model: Any) -> list[str]:
    """Return the names of the heads whose classes are shown."""
    two = type(model).__name__ == "DeiTForImageClassificationWithTeacher"
    return ["Both heads", "Class head", "Distillation head"] if two else ["Prediction"]


def token_names(model: Any) -> list[str]:
    """Return the names of the tokens that the heads read, in the order in which they precede the patches."""
    return ["Class token", "Distillation token"][: max(1, len(head_names(model)) - 1)]


def patch_attention(
    attentions: Sequence[torch.Tensor], tokens: int, prefix: int, grid: tuple[int, int], how: str = LAST
) -> np.ndarray:
    """Return the share of each leading token's attention that each patch receives.

    Args:
        attentions: The attention weights of each layer, `(1, heads, tokens, tokens)`; row i is the attention of token
            i.
        tokens: Number of leading tokens to return.
        prefix: Number of tokens before the patches.
        grid: Number of rows and columns of patches.
        how: LAST, the mean of the attention heads of the last layer; or ROLLOUT, the product of all layers, each
            averaged with the identity.

    Returns:
        `(tokens, rows, columns)`; each map sums to 1.
    """
    means = [layer[0].double().mean(dim=0) for layer in attentions]
    if how == ROLLOUT:
        flow = torch.eye(len(means[0]), dtype=torch.float64)
        for layer in means:
            flow = (layer + torch.eye(len(layer), dtype=torch.float64)) / 2 @ flow
    else:
        flow = means[-1]
    maps = flow[:tokens, prefix:]
    maps = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return maps.reshape(tokens, *grid).numpy()


def seen_pixels(pixel_values: torch.Tensor, processor: Any) -> Image.Image:
    """Return the image that the model sees, with rescaling and normalisation undone, whatever they are."""
    height, width = pixel_values.shape[-2:]
    black, white = (
        processor(Image.new("RGB", (width, height), shade), return_tensors="pt")["pixel_values"][0].mean((1, 2))
        for shade in ("black", "white")
    )
    pixels = (pixel_values[0] - black.view(-1, 1, 1)) / (white - black).view(-1, 1, 1)
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """Draw an attention map over the image that the model saw, from the lowest value (dark) to the highest (bright)."""
    scale = SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    level = (attention - attention.min()) / max(attention.max() - attention.min(), 1e-12)
    level = Image.fromarray(level.astype(np.float32))
    level = np.asarray(level.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(level, steps, RAMP[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.resize(size, Image.Resampling.BICUBIC).convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.5 * grey + 0.5 * colour).clip(0, 255).astype(np.uint8))


@torch.no_grad()
def predict(
    model: Any, processor: Any, image: Image.Image, how: str = LAST
) -> tuple[list[dict[str, float]], list[np.ndarray], Image.Image]:
    """Predict the classes of one image.

    Returns:
        The TOP classes of each head with their probabilities (which are independent if the model is multi-label), the
        attention map of each token, and the image that the model saw.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    output = model(pixel_values=pixel_values, output_attentions=True)
    heads = [output.logits]
    if len(head_names(model)) == 3:
        heads += [output.cls_logits, output.distillation_logits]
    multi_label = model.config.problem_type == "multi_label_classification"
    predictions = []
    for logits in heads:
        probabilities = logits[0].sigmoid() if multi_label else logits[0].softmax(dim=-1)
        best = probabilities.topk(min(TOP, len(probabilities)))
        predictions.append(_named(model.config.id2label, best.indices.tolist(), best.values.tolist()))
    patch = model.config.patch_size
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    height, width = pixel_values.shape[-2:]
    prefix = 2 if model.config.model_type == "deit" else 1
    maps = patch_attention(output.attentions, len(token_names(model)), prefix, (height // high, width // wide), how=how)
    return predictions, list(maps), seen_pixels(pixel_values, processor)


def _named(names: dict[int, str], indices: list[int], probabilities: list[float]) -> dict[str, float]:
    """Return probabilities by class name. A name that two classes have (ImageNet's "crane") gets the class number."""
    twice = {names[index] for index in indices if sum(names[other] == names[index] for other in indices) > 1}
    return {
        f"{names[index]} ({index})" if names[index] in twice else names[index]: probability
        for index, probability in zip(indices, probabilities, strict=True)
    }


def build_demo(model: Any, processor: Any, title: str = TITLE) -> Any:
    """Build the page of the app."""
    import gradio

    heads, tokens = head_names(model), token_names(model)

    def update(image: Image.Image | None, how: str) -> list[Any]:
        if image is None:
            return [None] * (len(heads) + len(tokens) + 1)
        predictions, maps, seen = predict(model, processor, image, how)
        shown = seen.resize([round(side * SIDE / max(seen.size)) for side in seen.size], Image.Resampling.BICUBIC)
        return [*predictions, shown, *(overlay(seen, attention) for attention in maps)]

    with gradio.Blocks(title=title) as demo:
        gradio.Markdown(
            f"# {title}\nDrop an image to see the classes that each head predicts, and the attention of the tokens "
            "that the heads read."
        )
        with gradio.Row():
            image = gradio.Image(type="pil", label="Image", height=SIDE)
            with gradio.Column():
                how = gradio.Radio([LAST, ROLLOUT], value=LAST, label="Attention")
                start = gradio.Button("Classify", variant="primary")
        with gradio.Row():
            labels = [gradio.Label(label=name, num_top_classes=TOP) for name in heads]
        pictures = []
        with gradio.Row():
            for name in ("What the model sees", *tokens):
                with gradio.Column(min_width=200):
                    gradio.Markdown(f"**{name}**")  # a label would cover the image
                    pictures.append(gradio.Image(label=name, show_label=False, interactive=False, height=SIDE))
        gradio.Markdown(
            "Each map is scaled to its own range, from the lowest attention (dark) to the highest (bright)."
        )
        for event in (image.change, how.change, start.click):
            event(update, [image, how], [*labels, *pictures])
    return demo


if __name__ == "__main__":
    build_demo(*load()).launch()
