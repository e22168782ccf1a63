"""A picture goes in; out come the classes of every head, and where the tokens that the heads read look.

Plain transformers, torch, numpy and Pillow compute; gradio shows it. Nothing of hf_deit is needed here.
Rollout: Abnar and Zuidema, arXiv:2005.00928.
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
# No code that the model brings, and no pickle.
SAFE = {"trust_remote_code": False, "use_safetensors": True}

TOP = 5
SIDE = 384  # pixels a map is shown with
LAST, ROLLOUT = "last layer", "rollout of all layers"
# What looks away is dark, what is looked at goes from red to pale yellow.
RAMP = np.array([(20, 10, 60), (170, 30, 90), (250, 140, 20), (255, 250, 180)], dtype=np.float32)


def load(name: str = MODEL) -> tuple[Any, Any]:
    """Loads model and image processor: from the folder of that name beside this file if there is one, else from the Hub."""
    folder = Path(__file__).parent / name
    where = str(folder) if folder.is_dir() else name
    # Only this implementation gives its attention away.
    model, info = AutoModelForImageClassification.from_pretrained(
        where, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **SAFE
    )
    if info["missing_keys"]:
        raise ValueError(f"{name} is no trained classifier: it holds no {', '.join(sorted(info['missing_keys']))}.")
    if model.config.model_type not in ("deit", "vit"):
        raise ValueError(
            f"{name} is a {model.config.model_type}: the maps are those of the tokens of a DeiT or ViT (deit, vit)."
        )
    return model.eval(), AutoImageProcessor.from_pretrained(where, trust_remote_code=False)


def head_names(model: Any) -> list[str]:
    """Names the heads whose classes are shown."""
    two = type(model).__name__ == "DeiTForImageClassificationWithTeacher"
    return ["Both heads", "Class head", "Distillation head"] if two else ["Prediction"]


def token_names(model: Any) -> list[str]:
    """Names the tokens that a head reads, in their order before the patches."""
    return ["Class token", "Distillation token"][: max(1, len(head_names(model)) - 1)]


def patch_attention(
    attentions: Sequence[torch.Tensor], tokens: int, prefix: int, grid: tuple[int, int], how: str = LAST
) -> np.ndarray:
    """Gives where tokens look: the share of their attention that each patch gets.

    Args:
        attentions: Of each layer, `(1, heads, tokens, tokens)`; row i says where token i looks.
        tokens: How many of the first tokens are wanted.
        prefix: How many tokens stand before the patches.
        grid: Rows and columns of patches.
        how: LAST, the mean of the last layer's heads; or ROLLOUT, the product of all layers, each half its input.

    Returns:
        `(tokens, rows, columns)`; each map sums to 1.
    """
    looks = [layer[0].double().mean(dim=0) for layer in attentions]
    if how == ROLLOUT:
        flow = torch.eye(len(looks[0]), dtype=torch.float64)
        for layer in looks:
            flow = (layer + torch.eye(len(layer), dtype=torch.float64)) / 2 @ flow
    else:
        flow = looks[-1]
    maps = flow[:tokens, prefix:]
    maps = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return maps.reshape(tokens, *grid).numpy()


def seen_pixels(pixel_values: torch.Tensor, processor: Any) -> Image.Image:
    """Gives the picture that the model sees, its normalisation undone."""
    mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
    pixels = (pixel_values[0] * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """Lays a map over the picture that the model saw, from its least looked-at patch (dark) to its most (bright)."""
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
    """Asks the model about one picture.

    Returns:
        The TOP classes of each head with their probabilities (of a model for several classes an image: each class by
        itself); the map of each token; the picture as the model saw it.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    output = model(pixel_values=pixel_values, output_attentions=True)
    heads = [output.logits]
    if len(head_names(model)) == 3:
        heads += [output.cls_logits, output.distillation_logits]
    several = model.config.problem_type == "multi_label_classification"
    answers = []
    for logits in heads:
        shares = logits[0].sigmoid() if several else logits[0].softmax(dim=-1)
        best = shares.topk(min(TOP, len(shares)))
        # By number as well where two classes have one name (ImageNet's "crane").
        answers.append(_named(model.config.id2label, best.indices.tolist(), best.values.tolist()))
    patch = model.config.patch_size
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    height, width = pixel_values.shape[-2:]
    prefix = 2 if model.config.model_type == "deit" else 1
    maps = patch_attention(output.attentions, len(token_names(model)), prefix, (height // high, width // wide), how=how)
    return answers, list(maps), seen_pixels(pixel_values, processor)


def _named(names: dict[int, str], indices: list[int], shares: list[float]) -> dict[str, float]:
    twice = {names[index] for index in indices if sum(names[other] == names[index] for other in indices) > 1}
    return {
        f"{names[index]} ({index})" if names[index] in twice else names[index]: share
        for index, share in zip(indices, shares, strict=True)
    }


def build_demo(model: Any, processor: Any, title: str = TITLE) -> Any:
    """Builds the page."""
    import gradio

    heads, tokens = head_names(model), token_names(model)

    def answer(image: Image.Image | None, how: str) -> list[Any]:
        if image is None:
            return [None] * (len(heads) + len(tokens) + 1)
        answers, maps, seen = predict(model, processor, image, how)
        shown = seen.resize([round(side * SIDE / max(seen.size)) for side in seen.size], Image.Resampling.BICUBIC)
        return [*answers, shown, *(overlay(seen, attention) for attention in maps)]

    with gradio.Blocks(title=title) as demo:
        gradio.Markdown(f"# {title}\nDrop an image: what each head says, and where the tokens they read look.")
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
                    gradio.Markdown(f"**{name}**")  # a label would lie over the picture
                    pictures.append(gradio.Image(label=name, show_label=False, interactive=False, height=SIDE))
        gradio.Markdown("Each map goes from its own least (dark) to its own most looked-at patch (bright).")
        for event in (image.change, how.change, start.click):
            event(answer, [image, how], [*labels, *pictures])
    return demo


if __name__ == "__main__":
    build_demo(*load()).launch()
