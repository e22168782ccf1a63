"""How the tokens of a model change from layer to layer over a data set, as `hf-deit explain --layers` computes it.

For each layer: the cosine of class token and distillation token (Touvron et al., arXiv:2012.12877, section 4), and the mean
attention distance of each head (Dosovitskiy et al., arXiv:2010.11929, appendix D.7). models/attention_maps.py computes both for a
batch; layer_figures.py draws them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.layouts import Selection
from ..data.sources import Source, without_unreadable
from ..data.tables import Columns
from ..errors import UserError
from ..models.attention_maps import (
    TokenStatistics,
    attention_distance,
    learned_cosine,
    patch_grid,
    patch_size,
    token_names,
    token_statistics,
)
from ..models.loading import load_model, load_processor, refuse_other_channels
from ..recipes.evaluate import images_to_evaluate
from ..recipes.own_recipe import recipe_of
from ..recipes.predict import unusable_size
from .explain import check_batch_size, refuse_loaded, refuse_other_models

if TYPE_CHECKING:
    from ..recipes.api import StrPath

BATCH_SIZE = 16
_MAX_THREADS = 8


@dataclass(frozen=True)
class PaperCosines:
    """Cosines of class token and distillation token that the paper reports for ImageNet. They are not measured here.

    Args:
        learned: Of the learned tokens.
        last_layer: After the last layer.
        source: Where the paper states them.
    """

    learned: float = 0.06
    last_layer: float = 0.93
    source: str = "Touvron et al., arXiv:2012.12877, section 4 (ImageNet)"


@dataclass(frozen=True)
class TokenLayers:
    """Numbers of a model, layer by layer: means over the images, and standard deviations between images.

    Args:
        model: The model, as it was given.
        data: The data, as they were given.
        split: The split that was used; "all" for all images of data without splits.
        images: Number of images.
        image_size: `(height, width)` of the pixels that the model sees.
        patch_size: `(height, width)` of a patch in pixels.
        tokens: Names of the tokens that heads read.
        learned_cosine: Cosine of the learned class token and distillation token, without positions. This and the following four are
            None for a model with one token.
        embeddings_cosine: The same with position embeddings, the input of the first layer.
        cosine: Mean cosine after each layer.
        cosine_std: Its standard deviation.
        final_cosine: `(mean, standard deviation)` after the final norm, which the heads read.
        attention_distance: `(layers, heads)`, the mean attention distance in pixels.
        attention_distance_std: Its standard deviation.
        uniform_distance: Attention distance in pixels of a head that reads all patches alike.
        paper: The cosines of the paper, for comparison.
    """

    model: str
    data: str
    split: str
    images: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    tokens: tuple[str, ...]
    learned_cosine: float | None
    embeddings_cosine: float | None
    cosine: list[float] | None
    cosine_std: list[float] | None
    final_cosine: tuple[float, float] | None
    attention_distance: list[list[float]]
    attention_distance_std: list[list[float]]
    uniform_distance: float
    paper: PaperCosines = field(default_factory=PaperCosines)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `layers.json`."""
        return asdict(self)

    def __repr__(self) -> str:
        last = "" if self.cosine is None else f", cosine {self.learned_cosine:.2f} → {self.cosine[-1]:.2f}"
        return f"TokenLayers({self.model!r}, {self.images} images, {len(self.attention_distance)} layers{last})"


class _Moments:
    """Mean and standard deviation of arrays, from sums. No array is kept.

    The sums are those of differences from the first array, so that nothing is lost when the deviations are small.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        """Add the rows of `(batch, …)`."""
        if not self.count:
            self._origin = values[0]
            self._sum = self._squares = np.zeros_like(values[0])
        differences = values - self._origin
        self.count += len(values)
        self._sum = self._sum + differences.sum(axis=0)
        self._squares = self._squares + (differences**2).sum(axis=0)

    def mean(self) -> np.ndarray:
        return self._origin + self._sum / self.count

    def std(self) -> np.ndarray:
        return np.sqrt(np.maximum(self._squares / self.count - (self._sum / self.count) ** 2, 0))


def explain_layers(
    model: "StrPath",
    data: "StrPath",
    *,
    split: str | None = None,
    columns: Columns | None = None,
    selection: Selection | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> TokenLayers:
    """Measure a model layer by layer over one split of `data`, as `hf-deit explain --layers` does.

    The images are those on which `evaluate` evaluates the model. They are read in batches, so that the memory does not grow with their
    number.

    Args:
        model: Folder or Hub name of a DeiT or ViT.
        data: Data as for `evaluate`.
        split: Split to use. Default: validation, or test if there is no validation split.
        columns: Columns of a table. Default: those of the model's own recipe.yaml.
        selection: Configuration, split column and names of splits in the data. Default: as for `evaluate`.
        batch_size: Number of images at a time. It changes the results in the last digits only.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        UserError: The model cannot be read or has no maps of tokens, the data cannot be loaded, or a value is invalid.
    """
    check_batch_size(batch_size)
    name, place = os.fspath(model), os.fspath(data)
    refuse_other_models(name)
    network, processor = load_model(name).eval(), load_processor(name)
    refuse_loaded(network)
    refuse_other_channels(network, f"The model {name}")
    found = images_to_evaluate(recipe_of(name), place, columns=columns, split=split, selection=selection)
    return measure_layers(
        network,
        processor,
        without_unreadable(found),
        names=(name, place, found.split_name),
        batch_size=batch_size,
        progress=progress,
    )


def measure_layers(
    network: PreTrainedModel,
    processor: Any,
    source: Source,
    *,
    names: tuple[str, str, str],
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> TokenLayers:
    """Measure a loaded model layer by layer over images.

    Args:
        network: A DeiT or ViT in evaluation mode, see `refuse_loaded`.
        processor: Its image processor.
        source: The images, which can all be read.
        names: Model, data and split as they are named in the result.
        batch_size: As for `explain_layers`.
        progress: As for `explain_layers`.

    Raises:
        UserError: There is no image, the images have several sizes, or the outputs of the model are not finite.
    """
    cosines, distances = _Moments(), _Moments()
    pixels = None
    for pixels in _batches(source, processor, batch_size, progress):
        statistics = _statistics(network, pixels)
        if statistics.cosines is not None:
            cosines.add(statistics.cosines.numpy())
        distances.add(statistics.distances.numpy())
    if pixels is None:
        raise UserError(f"data={names[1]!r}: the split {names[2]!r} has no images. Choose another split.")
    size, grid = patch_size(network), patch_grid(network, pixels)
    patches = grid[0] * grid[1]
    mean, std = (cosines.mean().tolist(), cosines.std().tolist()) if cosines.count else (None, None)
    return TokenLayers(
        model=names[0],
        data=names[1],
        split=names[2],
        images=len(source),
        image_size=tuple(pixels.shape[-2:]),
        patch_size=size,
        tokens=token_names(network),
        learned_cosine=learned_cosine(network),
        embeddings_cosine=mean and mean[0],
        cosine=mean and mean[1:-1],
        cosine_std=std and std[1:-1],
        final_cosine=mean and (mean[-1], std[-1]),
        attention_distance=distances.mean().tolist(),
        attention_distance_std=distances.std().tolist(),
        uniform_distance=float(attention_distance(torch.ones(1, 1, patches, patches), grid, size)),
    )


def _batches(source: Source, processor: Any, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
    """Yield pixel values `(batch, channels, height, width)`. The images are read in threads, one batch at a time."""
    from tqdm import tqdm

    def read(index: int) -> torch.Tensor:
        return processor(source.image(index), return_tensors="pt")["pixel_values"]

    starts = range(0, len(source), batch_size)
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS)) as threads:
        # None: the bar is shown on a terminal only.
        for start in tqdm(starts, unit=" batches", disable=None if progress else True, leave=False):
            rows = list(threads.map(read, range(start, min(start + batch_size, len(source)))))
            if len({row.shape for row in rows}) > 1:
                shapes = sorted({tuple(row.shape[-2:]) for row in rows})
                raise UserError(
                    f"The image processor of the model makes images of several sizes, such as {shapes[0]} and {shapes[-1]} "
                    "pixels (height, width). Numbers per layer need one size: correct size and crop_size in preprocessor_config.json."
                )
            yield torch.cat(rows)


def _statistics(model: Any, pixels: torch.Tensor) -> TokenStatistics:
    try:
        found = token_statistics(model, pixels)
    except ValueError as error:  # of models that take images of one size
        raise unusable_size(pixels, error) from error
    if not found.distances.isfinite().all():
        raise UserError("The outputs of the model are not finite: its weights are damaged, or its training diverged.")
    return found
