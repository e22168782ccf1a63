"""Prediction of the most probable classes of images by a saved model, as `hf-deit predict` does it.

It starts faster than a pipeline of transformers, because it imports no data sets, metrics or trainer.
tests/test_import_graph.py checks these imports, and benchmarks/bench_startup.py measures the time.
"""

from collections.abc import Sequence

import torch

from ..data.images import read_image
from ..errors import UserError
from ..losses import ProblemType
from ..models.loading import load_model, load_processor


@torch.no_grad()
def predict(name_or_path: str, images: Sequence[str], top_k: int = 5) -> list[list[tuple[str, float]]]:
    """Return the `top_k` most probable class names of each image, with their probabilities.

    For a multi-label model, the probability of each class is its own sigmoid; above 0.5 the image has the class.

    Args:
        name_or_path: Folder or Hub name of the model, as for `load_model`.
        images: Paths of image files.
        top_k: Number of classes per image, at least 1. If the model has fewer classes, all of them are returned.

    Raises:
        UserError: `top_k` is below 1, or the model cannot be read.
        DataError: An image cannot be read; the message names it.
    """
    if top_k < 1:
        raise UserError(f"top_k={top_k}: it must be at least 1.")
    model, processor = load_model(name_or_path).eval(), load_processor(name_or_path)
    multi_label = model.config.problem_type == ProblemType.MULTI_LABEL
    predictions = []
    for number, file in enumerate(images):
        image = read_image(file, f"Image {number} of the images given")
        logits = model(pixel_values=processor(image, return_tensors="pt")["pixel_values"]).logits[0].float()
        probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
        best = probabilities.topk(min(top_k, len(probabilities)))
        names = [model.config.id2label[label] for label in best.indices.tolist()]
        predictions.append(list(zip(names, best.values.tolist(), strict=True)))
    return predictions
