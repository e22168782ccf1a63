"""Show the classes that every head of a model predicts, and what the tokens that the heads read see in the image.

The app needs transformers, torch, numpy, Pillow and gradio, and the file attention_maps.py beside it. It does not need hf_deit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_maps import (
    LAST_LAYER,
    RELEVANCE,
    ROLLOUT,
    SIDE,
    black_and_white,
    check_model,
    covered_pixels,
    draw_maps,
    enlarged,
    largest_difference,
    seen_image,
    token_maps,
    token_names,
)
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

MODEL = "__MODEL__"
TITLE = "__TITLE__"
# Never run code that comes with the model, and never load a pickle.
SAFE = {"trust_remote_code": False, "use_safetensors": True}

TOP = 5
WAYS = {"Relevance for a class": RELEVANCE, "Attention rollout": ROLLOUT, "Attention of the last layer": LAST_LAYER}
PREDICTED = "the predicted class"


def load(name: str = MODEL) -> tuple[Any, Any]:
    """Load the model and its image processor from the folder of this name beside this file, else from the Hub."""
    folder = Path(__file__).parent / name
    where = str(folder) if folder.is_dir() else name
    model, info = AutoModelForImageClassification.from_pretrained(
        where, dtype=torch.float32, output_loading_info=True, **SAFE
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{name} is not a trained classifier: the weights {', '.join(sorted(info['missing_keys']))} are missing."
        )
    check_model(model.config, type(model).__name__)
    return model.eval(), AutoImageProcessor.from_pretrained(where, trust_remote_code=False)


def head_names(model: Any) -> list[str]:
    """Return the names of the heads whose classes are shown."""
    return ["Both heads", "Class head", "Distillation head"] if len(token_names(model)) == 2 else ["Prediction"]


def picture_names(model: Any) -> list[str]:
    """Return the titles of the pictures: the image, the map of each token, and the difference of two maps."""
    names = [name.capitalize() for name in token_names(model)]
    return ["What the model sees", *names, *(["Difference"] if len(names) == 2 else [])]


def class_names(model: Any) -> list[str]:
    """Return the class names in index order. A name that several classes have (ImageNet's "crane") gets the class number."""
    names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def predict(
    model: Any, processor: Any, image: Image.Image, way: str = RELEVANCE, label: int | None = None
) -> tuple[list[dict[str, float]], np.ndarray, Image.Image, int]:
    """Predict the classes of one image.

    Args:
        model: The model.
        processor: Its image processor.
        image: The image.
        way: One of the methods of attention_maps.py.
        label: Index of the class that the relevance explains. Default: the predicted class.

    Returns:
        The TOP classes of each head with their probabilities (which are independent if the model is multi-label); the maps,
        `(tokens, rows, columns)`; the image that the model saw; and the index of the class that is explained.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    found = token_maps(model, pixel_values, [way], None if label is None else [label])
    heads = [found.logits[0]]
    if len(head_names(model)) == 3:
        heads += list(found.token_logits[0])
    multi_label = model.config.problem_type == "multi_label_classification"
    names, predictions = class_names(model), []
    for logits in heads:
        probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
        best = probabilities.topk(min(TOP, len(probabilities)))
        predictions.append({names[index]: float(probabilities[index]) for index in best.indices.tolist()})
    maps = found.maps[way][0]
    maps = maps[0] if way == RELEVANCE else maps
    seen = seen_image(covered_pixels(model, pixel_values[0]), *black_and_white(processor, *pixel_values.shape[-2:]))
    return predictions, maps.numpy(), seen, int(found.classes[0, 0])


def explained(maps: np.ndarray, way: str, name: str) -> str:
    """Return the sentence below the pictures."""
    shown = f"The relevance of each patch for **{name}**. " if way == RELEVANCE else ""
    if len(maps) == 1:
        return f"{shown}Dark is the lowest value of the map, pale yellow the highest."
    share = 100 * largest_difference(maps)
    amount = f"up to {share:.0f} %" if share >= 1 else "less than 1 %"
    return (
        f"{shown}Both maps share one scale: dark is the lowest value, pale yellow the highest. Difference: orange where the "
        f"distillation token reads more, blue where the class token reads more; here {amount} of the highest value."
    )


def build_demo(model: Any, processor: Any, title: str = TITLE) -> Any:
    """Build the page of the app."""
    import gradio

    heads, shown_names, names = head_names(model), picture_names(model), class_names(model)

    def update(image: Image.Image | None, way: str, name: str) -> list[Any]:
        if image is None:
            return [None] * (len(heads) + len(shown_names)) + [""]
        label = None if name == PREDICTED else names.index(name)
        predictions, maps, seen, chosen = predict(model, processor, image, WAYS[way], label)
        return [*predictions, enlarged(seen), *draw_maps(seen, maps), explained(maps, WAYS[way], names[chosen])]

    with gradio.Blocks(title=title) as demo:
        gradio.Markdown(
            f"# {title}\nDrop an image to see the classes that each head predicts, and what the tokens that the heads read see in it."
        )
        with gradio.Row():
            image = gradio.Image(type="pil", label="Image", height=SIDE)
            with gradio.Column():
                way = gradio.Radio(list(WAYS), value=next(iter(WAYS)), label="Maps")
                name = gradio.Dropdown([PREDICTED, *names], value=PREDICTED, label="Relevance for")
                start = gradio.Button("Classify", variant="primary")
        with gradio.Row():
            labels = [gradio.Label(label=head, num_top_classes=TOP) for head in heads]
        shown = []
        with gradio.Row():
            for title_of_picture in shown_names:
                with gradio.Column(min_width=200):
                    gradio.Markdown(f"**{title_of_picture}**")  # a label would cover the image
                    shown.append(gradio.Image(label=title_of_picture, show_label=False, interactive=False, height=SIDE))
        text = gradio.Markdown()
        way.change(lambda chosen: gradio.update(visible=WAYS[chosen] == RELEVANCE), way, name)
        for event in (image.change, way.change, name.change, start.click):
            event(update, [image, way, name], [*labels, *shown, text])
    return demo


if __name__ == "__main__":
    build_demo(*load()).launch()
