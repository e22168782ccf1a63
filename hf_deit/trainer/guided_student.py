"""The student's side of spatial guidance: the layers that are guided, and the projections of their features.

What is compared is defined in distillation/guidance.py, the formulas are in losses.py. The projections are trained with
the student: they are in the optimizer, in gradient clipping and in checkpoints, but never in the student itself, its
`state_dict` or a saved model (see `ResumableTrainer.auxiliary`).
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distillation.guidance import Guidance, LayerReader, MapShape, counted_from_end, default_layer
from ..errors import RecipeError, UserError
from .student import StudentInfo
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


class GuidedStudent:
    """The layers of a student that are guided, found by running it once on a black image.

    Args:
        model: The student.
        layers: Names or indices of layers, see `LayerReader`. Default: the last one with a grid of patches, which is
            the last hidden state (before the final norm) of a ViT.
        image_size: `(height, width)` of the student's images, in pixels.

    Raises:
        RecipeError: A layer does not exist, has no grid of patches, or nothing before it is trained.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None, image_size: tuple[int, int]):
        self.owner = f"the student ({type(model).__name__})"
        parameter = next(model.parameters())
        pixels = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
        was_training = model.training
        model.eval()
        try:
            maps = self._probe(model, layers, pixels)
        except RecipeError:
            raise
        except UserError as error:
            raise RecipeError(str(error)) from error
        finally:
            model.train(was_training)
        self.shapes = tuple(MapShape.of(values) for values in maps)
        for layer, values in zip(self.layers, maps, strict=True):
            if not values.requires_grad:
                raise RecipeError(
                    f"guidance_student_layers={layer}: no weight before this layer of {self.owner} is trained, so guidance "
                    "would teach nothing. Choose a later layer, train more weights (trainable), or leave guidance out."
                )

    def _probe(self, model: nn.Module, layers: Sequence[str] | None, pixels: Tensor) -> list[Tensor]:
        if layers is None:
            with torch.no_grad():
                found = default_layer(
                    model, lambda images, **kwargs: model(pixel_values=images, **kwargs), pixels, like=None
                )
            if found is None:
                raise RecipeError(
                    f"guidance needs a student with a grid of patches, but no layer of {self.owner} gives one. Use a ViT, "
                    "a DeiT or a convolutional network, name a layer (guidance_student_layers), or leave guidance out."
                )
            layers = [found]
        self.reader = LayerReader(model, layers, owner=self.owner, field="guidance_student_layers")
        with torch.enable_grad(), self.reader.recording():
            outputs = model(pixel_values=pixels, **self.reader.arguments)
        indexed = self.reader.indexed(outputs)
        self.layers = [counted_from_end(layer, indexed) for layer in self.reader.layers]
        return self.reader.maps(outputs, pixels)

    def describe(self) -> dict[str, Any]:
        """Return the layers and the shapes of their maps, for the description of a run."""
        return {
            "layers": self.layers,
            "channels": [shape.channels for shape in self.shapes],
            "grids": [list(shape.grid) for shape in self.shapes],
        }


def guided_student(
    model: nn.Module, args: DistillationTrainingArguments, student: StudentInfo, view_size: Any
) -> GuidedStudent:
    """Return the guided layers of a student for the fields of a run.

    Args:
        model: The student.
        args: Arguments of the run, with a guidance.
        student: Facts about the student.
        view_size: `(height, width)` of the views, which are the student's images if its size is not fixed.

    Raises:
        RecipeError: As in `GuidedStudent`.
    """
    return GuidedStudent(model, args.guidance_student_layers, student.image_size or view_size or (224, 224))


def projections_of(shapes: Sequence[tuple[int, int]], seed: int) -> nn.ModuleList:
    """Return newly initialised linear projections of the student's features, one for each pair of layers.

    The global random generator is not used, so that everything else is random as without guidance.

    Args:
        shapes: Channels of the student and of the teacher for each pair.
        seed: Seed of the initial weights, which are uniform in ±1/√channels as in PyTorch. Biases are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    projections = nn.ModuleList()
    for inputs, outputs in shapes:
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        bound = 1 / math.sqrt(inputs)
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.zero_()
        projections.append(linear)
    return projections


def log_guidance(guidance: Guidance, guided: GuidedStudent) -> None:
    """Log which layer of the student learns from which layer of the teacher."""
    pairs = zip(guided.layers, guided.shapes, guidance.describe()["layers"], guidance.teacher.shapes, strict=True)
    for own, shape, layer, theirs in pairs:
        logger.info(
            "Guidance (%s): layer %s of the student, %s, learns from layer %s of the teacher, %s.",
            guidance.kind,
            own,
            shape,
            layer,
            theirs,
        )


def guidance_facts(guidance: Guidance, weight: float, guided: GuidedStudent) -> dict[str, Any]:
    """Return the kind, weight, layers and grids of a guidance, for results.json and the model card."""
    teacher = guidance.describe()
    return {
        "kind": guidance.kind,
        "weight": weight,
        "student_layers": guided.layers,
        "student_grids": [list(shape.grid) for shape in guided.shapes],
        "teacher_layers": teacher["layers"],
        "teacher_grids": teacher["teacher_grids"],
        "teacher_channels": teacher["channels"],
    }
