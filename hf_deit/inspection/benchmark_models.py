"""Models of a benchmark: saved models, and the architectures of the paper with random weights; their size and arithmetic.

Accuracies of the paper: Touvron et al., arXiv:2012.12877, Table 3 (training of 300 epochs). benchmark.py measures the models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..errors import UserError
from ..models.configuration_deit import DeiTConfig, ViTConfig
from ..models.export import image_size_of
from ..models.image_processing_deit import DeiTImageProcessor
from ..models.loading import load_model, load_processor
from ..models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification

PLAIN, DISTILLED, OTHER = "plain", "distilled", "other"


@dataclass(frozen=True)
class PaperAccuracy:
    """Accuracy that the paper reports for an architecture on ImageNet. It is never measured here.

    Args:
        top1: Top-1 accuracy on the validation images of ImageNet, in percent.
        source: Where the paper states it.
    """

    top1: float
    source: str = "Touvron et al., arXiv:2012.12877, Table 3 (ImageNet, 300 epochs)"


@dataclass(frozen=True)
class _Published:
    name: str
    preset: str
    image_size: int
    top1: dict[str, float]


_ARCHITECTURES = {
    "tiny": _Published("DeiT-Ti", "tiny", 224, {PLAIN: 72.2, DISTILLED: 74.5}),
    "small": _Published("DeiT-S", "small", 224, {PLAIN: 79.8, DISTILLED: 81.2}),
    "base": _Published("DeiT-B", "base", 224, {PLAIN: 81.8, DISTILLED: 83.4}),
    "base_384": _Published("DeiT-B↑384", "base", 384, {PLAIN: 83.1, DISTILLED: 84.5}),
}
PUBLISHED = tuple(_ARCHITECTURES)
# The largest one needs three times the time of all others together, so it is measured by name only.
DEFAULT_PUBLISHED = PUBLISHED[:3]


@dataclass(frozen=True)
class ModelSource:
    """Where a model of a benchmark comes from.

    Args:
        name: Name in tables and figures.
        path: Folder or Hub name of a saved model; None for an architecture of the paper.
        published: One of `PUBLISHED`, for an architecture of the paper with random weights.
        kind: "plain" or "distilled", for an architecture of the paper.
    """

    name: str
    path: str | None = None
    published: str | None = None
    kind: str | None = None

    @property
    def paper(self) -> PaperAccuracy | None:
        """Return what the paper reports for the architecture; None for a saved model."""
        return None if self.published is None else PaperAccuracy(_ARCHITECTURES[self.published].top1[self.kind])

    def load(self) -> PreTrainedModel:
        """Load the model in float32, in evaluation mode.

        Raises:
            UserError: The saved model cannot be read.
        """
        if self.published is None:
            return load_model(self.path, dtype=torch.float32).eval()
        shape = _ARCHITECTURES[self.published]
        classes = (ViTConfig, ViTForImageClassification)
        if self.kind == DISTILLED:
            classes = (DeiTConfig, DeiTForImageClassificationWithTeacher)
        config = classes[0].from_preset(shape.preset, image_size=shape.image_size, num_labels=1000)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return classes[1](config).eval()

    def image_size(self, model: PreTrainedModel) -> tuple[int, int]:
        """Return `(height, width)` in pixels of the images that the model takes.

        Args:
            model: The loaded model.
        """
        try:
            processor = None if self.path is None else load_processor(self.path)
        except UserError:  # a model can be timed without its image processor
            processor = None
        return image_size_of(model.config, processor)

    def folder(self, model: PreTrainedModel, place: Path) -> str:
        """Return a folder or Hub name to export the model from. An architecture of the paper is saved in `place` first."""
        if self.path is not None:
            return self.path
        model.save_pretrained(place)
        DeiTImageProcessor.for_image_size(self.image_size(model)).save_pretrained(place)
        return str(place)


def saved_sources(paths: Sequence[str]) -> list[ModelSource]:
    """Return the sources of saved models. Models whose folders have one name, or that of an architecture of the paper, are named by
    their paths.

    Raises:
        UserError: A model is given twice.
    """
    places = [str(Path(path).resolve()) if Path(path).exists() else path for path in paths]
    twice = next((path for number, path in enumerate(paths) if places[number] in places[:number]), None)
    if twice is not None:
        raise UserError(f"The model {twice} is given twice. Give each model once.")
    short = [Path(path).resolve().name if Path(path).is_dir() else path for path in paths]
    taken = [
        source.name for source in published_sources(PUBLISHED)
    ] + short  # rows are told apart by the name of the model
    names = [place if taken.count(name) > 1 else name for place, name in zip(places, short, strict=True)]
    return [ModelSource(name, path) for name, path in zip(names, paths, strict=True)]


def published_sources(names: Sequence[str]) -> list[ModelSource]:
    """Return the sources of architectures of the paper, plain and distilled.

    Raises:
        UserError: A name is unknown or given twice.
    """
    unknown = [name for name in names if name not in PUBLISHED]
    if unknown or len(set(names)) < len(names):
        problem = f"{unknown[0]!r} is unknown" if unknown else "a name is given twice"
        raise UserError(f"published={' '.join(names)}: {problem}. Choose from {', '.join(PUBLISHED)}, each once.")
    return [
        ModelSource(_ARCHITECTURES[name].name + (" distilled" if kind == DISTILLED else ""), None, name, kind)
        for name in names
        for kind in (PLAIN, DISTILLED)
    ]


@dataclass(frozen=True)
class ModelFacts:
    """Size and arithmetic of a model.

    Args:
        kind: "distilled" (class token and distillation token), "plain" (class token), or "other".
        architecture: Name of its class.
        parameters: Number of parameters.
        gflops: Billions of floating-point operations of one image, where a multiply-add counts as 2.
        image_size: `(height, width)` of an image in pixels.
        classes: Number of classes.
        shape: Width, layers, heads, width of the MLP and patch size of a DeiT or ViT; None for other models.
    """

    kind: str
    architecture: str
    parameters: int
    gflops: float
    image_size: tuple[int, int]
    classes: int
    shape: tuple[Any, ...] | None


_KINDS = {"DeiTForImageClassificationWithTeacher": DISTILLED, "ViTForImageClassification": PLAIN}
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")


def facts_of(source: ModelSource, model: PreTrainedModel) -> ModelFacts:
    """Return the facts of a loaded model.

    Raises:
        UserError: The model cannot be run on images of its size.
    """
    size, architecture = source.image_size(model), type(model).__name__
    kind = _KINDS.get(architecture, OTHER)
    return ModelFacts(
        kind=kind,
        architecture=architecture,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=flops(model, random_pixels(model, size, 1)) / 1e9,
        image_size=size,
        classes=model.config.num_labels,
        shape=None if kind == OTHER else tuple(getattr(model.config, name) for name in _SHAPE),
    )


def random_pixels(model: PreTrainedModel, size: tuple[int, int], batch: int) -> torch.Tensor:
    """Return random pixels `(batch, channels, height, width)` for a model; always the same for one shape."""
    shape = (batch, getattr(model.config, "num_channels", 3), *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def flops(model: PreTrainedModel, pixels: torch.Tensor) -> int:
    """Return the floating-point operations of the matrix products, convolutions and attention of a forward pass.

    A multiply-add counts as 2. The counter of PyTorch does not know its fused attention on the CPU and would count it as 0, so
    attention is computed by matrix products here.

    Raises:
        UserError: The model cannot be run on these pixels.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try:
            model(pixel_values=pixels)
        except Exception as error:  # the model may be of any family and raise any error
            height, width = pixels.shape[-2:]
            raise UserError(
                f"{type(model).__name__} cannot be run on images of {height} × {width} pixels: {type(error).__name__}: {error}"
            ) from error
    return counter.get_total_flops()


def same_size(one: ModelFacts, other: ModelFacts) -> bool:
    """Return whether two models differ only in their tokens and heads: the same shape, image size and number of classes."""
    keys = [(facts.shape, facts.image_size, facts.classes) for facts in (one, other)]
    return one.shape is not None and keys[0] == keys[1]


def significant(value: float) -> str:
    """Return a number with three significant digits, without an exponent: `0.0123`, `1.23`, `12.3`, `1,230`."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
