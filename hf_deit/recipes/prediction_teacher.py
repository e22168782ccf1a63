"""The teacher beside a saved model: what it sees of an image, and its logits in the class order of the model.

The teacher sees the same view as in `hf-deit evaluate`: that of the model's own training, if its recipe is known, else the pixels
that the model gets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..data.views import view_tensor
from ..distillation.objective import DistillationObjective
from ..distillation.teacher import Teacher
from ..errors import RecipeError
from ..losses import ProblemType
from ..models.label_names import class_names
from ..sizes import as_pair
from ..trainer.teacher_setup import pixels_of
from .build import build_teacher
from .inputs import InputImage
from .own_recipe import recipe_of, teacher_arguments, teacher_view


class PredictionTeacher:
    """Teacher that is asked about the images that a saved model predicts.

    Args:
        model: Folder or Hub name of the model. If its own recipe is known and names the same teacher, the other `teacher_` fields of
            the recipe are used too.
        teacher: Folder, Hub name or factory of the teacher; or a loaded one.
        view_size: Side in pixels of the view of the teacher. Default: the `view_size` of the model's own recipe.
        problem_type: Problem type of the teacher. Default: that of its own files.

    Raises:
        UserError: The teacher cannot be loaded.
    """

    counts_views = False

    def __init__(
        self, model: str | Path, teacher: str | Teacher, view_size: int | None = None, problem_type: str | None = None
    ):
        if view_size is not None and view_size < 1:
            raise RecipeError(f"teacher_view_size={view_size}: give a number of pixels, at least 1.")
        own = recipe_of(str(model))
        self.teacher = (
            teacher if isinstance(teacher, Teacher) else build_teacher(teacher_arguments(own, teacher, problem_type))
        )
        given: dict[str, Any] = teacher_view(own, view_size)
        self._view_size, self._crop_ratio = given.get("view_size"), given.get("crop_ratio", 0.875)
        self._objective: DistillationObjective | None = None

    def prepare(self, model: PreTrainedModel, processor: Any, device: torch.device) -> None:
        """Match the teacher's classes with those of the model.

        Raises:
            TeacherError: They do not match, or the teacher cannot be run on its view.
        """
        config = model.config
        problem_type = ProblemType(config.problem_type or ProblemType.SINGLE_LABEL)
        self.teacher.check_problem_type(problem_type)
        own_size = getattr(config, "image_size", None)
        size = self._view_size or own_size or self.teacher.image_size or (224, 224)
        self.teacher.to(device).align(class_names(config.id2label), config.num_labels, as_pair(size))
        self._objective = DistillationObjective(
            num_labels=config.num_labels,
            problem_type=problem_type,
            teacher=self.teacher,
            pixels=pixels_of(processor, trains=False),
        )

    def view(self, image: Image.Image, given: InputImage) -> Tensor | None:
        """Return the view of an image for the teacher, `(1, 3, height, width)` in uint8; None if it gets the pixels of the model.

        Args:
            image: The image, upright.
            given: Its name, which a teacher that is run does not need.
        """
        if self._view_size is None:
            return None
        return view_tensor(image, as_pair(self._view_size), self._crop_ratio)[None]

    def logits(self, pixels: Tensor, views: Sequence[Tensor | None]) -> Tensor:
        """Return the teacher's logits `(batch, num_labels)` in the class order of the model.

        Args:
            pixels: The pixels of the model, `(batch, 3, height, width)`.
            views: The view of each image, or None for each.
        """
        batch = {"pixel_values": pixels}
        if views[0] is not None:
            batch["teacher_pixel_values"] = torch.cat(list(views)).to(pixels.device)
        prepared = self._objective.prepare(batch, for_student=False)
        return self._objective.teacher_outputs(batch, prepared.teacher_pixels)["teacher_logits"]
