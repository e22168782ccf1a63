"""A frozen teacher of any origin: its pixels, its size, its classes.

The teacher sees exactly the view that the student sees, in its own normalisation and, if it has one, its own size, both made on
the device. Its logits come back in the student's class order. It is never part of the student's checkpoint, state dict or
optimizer: it is no submodule of anything, it is moved to the device once and runs in an autocast of its own.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data.batch_ops import normalize, resize
from ..errors import TeacherError, UserError
from ..models.label_names import class_names
from ..models.loading import load_pretrained, published_name, refuse_adapters
from ..models.weights import load_weights
from ..sizes import as_pair
from .factories import FACTORY_NORMALIZATION, build_network, logits_of, replace_classifier

logger = logging.getLogger(__name__)

# Written beside the weights of a teacher that is no transformers model.
TEACHER_FILE = "teacher.json"
WEIGHTS_FILE = "model.safetensors"


class Teacher:
    """Wraps a model or a function that maps normalised pixels to logits.

    Args:
        model: A transformers model, any `nn.Module`, or a callable; takes `(batch, 3, height, width)`.
        image_mean: Mean of each channel for pixels in [0, 1]; default: ImageNet's.
        image_std: Standard deviation likewise.
        image_size: Pixels the teacher wants, a number or (height, width); None: it takes the student's view as it is. A
            transformers model with a fixed `config.image_size` brings that.
        id2label: Name of each class; default: the model's `config.id2label`.
        dtype: Of the autocast the teacher runs in, for example `torch.bfloat16`; None or float32: none.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        image_size: int | tuple[int, int] | None = None,
        id2label: Mapping[int, str] | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not callable(model):
            raise TeacherError(f"The teacher is {type(model).__name__}: give a model or a function of pixels.")
        config = getattr(model, "config", None)
        image_size = image_size if image_size is not None else getattr(config, "image_size", None)
        self.model = model
        self.image_mean = tuple(IMAGENET_DEFAULT_MEAN if image_mean is None else image_mean)
        self.image_std = tuple(IMAGENET_DEFAULT_STD if image_std is None else image_std)
        self.image_size = None if image_size is None else as_pair(image_size)
        self.class_names = class_names(id2label if id2label is not None else getattr(config, "id2label", None))
        self.dtype = dtype
        self.device = torch.device("cpu")
        self._order: Tensor | None = None
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
            # Convolutions are several times faster in this layout on CPU and tensor cores; the values are the same.
            model.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, needs_head: bool = True, with_weights: bool = True, **kwargs: Any
    ) -> "Teacher":
        """Loads a teacher with its own mean, standard deviation, size and class names.

        Args:
            name_or_path: A folder `hf-deit train-teacher` saved, or a folder or Hub name that
                `AutoModelForImageClassification` loads; also a short one (`regnet-y-160`, see models/loading.py).
            needs_head: Refuse weights without a classifier; False for a network that gets one (train_teacher.py).
            with_weights: Read the weights; False: as `models.loading.load_pretrained`.
            **kwargs: As the constructor's, in place of what the files say.

        Raises:
            TeacherError: Nothing there that classifies images.
        """
        name_or_path = published_name(name_or_path)
        path = Path(name_or_path)
        refuse_adapters(path)
        if (path / TEACHER_FILE).is_file():
            return cls._from_teacher_file(path, with_weights, **kwargs)
        if path.is_dir() and not (path / "config.json").is_file():
            raise TeacherError(f"{path} holds neither config.json nor {TEACHER_FILE}: it is no model folder.")
        from transformers import AutoModelForImageClassification
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            model = load_pretrained(
                AutoModelForImageClassification, str(name_or_path), needs_head, with_weights, dtype=torch.float32
            )
        except UserError as error:
            raise TeacherError(
                f"No teacher at {str(name_or_path)!r}: {error}\nGive the folder of a model, a Hub name, or "
                "package.module:factory."
            ) from error
        try:
            # Only the dictionary: the processor's class may need torchvision, which is not needed here.
            processor, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        except OSError:
            logger.warning("Teacher %s has no image processor: ImageNet's mean and std are assumed.", name_or_path)
            processor = {}
        settings = {name: processor[name] for name in ("image_mean", "image_std") if processor.get(name)}
        settings["image_size"] = _processor_size(processor)
        return cls(model, **{**settings, **kwargs})

    @classmethod
    def from_factory(cls, factory: str, weights: str | Path | None = None, **kwargs: Any) -> "Teacher":
        """Builds a teacher by a function of an installed package.

        Args:
            factory: `package.module:factory`, see factories.py.
            weights: A `.safetensors` or `.pth` to load into it.
            **kwargs: As the constructor's.

        Raises:
            ValueError: There is no such factory, or the weights do not fit.
        """
        network = build_network(factory)
        mean, std = FACTORY_NORMALIZATION.get(factory, (None, None))
        kwargs = {
            "image_mean": mean,
            "image_std": std,
            **{name: value for name, value in kwargs.items() if value is not None},
        }
        if weights is not None:
            load_weights(network, weights)
        return cls(network, **kwargs)

    @classmethod
    def _from_teacher_file(cls, path: Path, with_weights: bool, **kwargs: Any) -> "Teacher":
        try:
            saved = json.loads((path / TEACHER_FILE).read_text(encoding="utf-8"))
            factory, classes = saved["factory"], len(saved["class_names"])
            settings = {name: saved[name] for name in ("image_mean", "image_std", "image_size")}
        except (ValueError, KeyError, TypeError) as error:
            raise TeacherError(
                f"{path / TEACHER_FILE} is broken ({type(error).__name__}: {error}): make the teacher again by "
                "hf-deit train-teacher."
            ) from error
        network = build_network(factory)
        replace_classifier(network, classes)
        if with_weights:
            load_weights(network, path / WEIGHTS_FILE)
        elif not (path / WEIGHTS_FILE).is_file():
            raise TeacherError(f"{path} holds {TEACHER_FILE}, but no {WEIGHTS_FILE} beside it.")
        settings["id2label"] = dict(enumerate(saved["class_names"]))
        return cls(network, **{**settings, **kwargs})

    def to(self, device: torch.device | str) -> "Teacher":
        """Moves the teacher; called once by the trainer."""
        self.device = torch.device(device)
        if isinstance(self.model, nn.Module):
            self.model.to(self.device)
        return self

    def align(self, student_names: list[str] | None, num_labels: int, view_size: tuple[int, int]) -> None:
        """Finds the teacher's class for each of the student's, and tries the teacher on one black view.

        With names on both sides each class of the student is looked up by name: a teacher with more classes is sliced, one
        in another order is permuted. Without names the order must be taken on trust, for equal counts only.

        Args:
            student_names: The student's class names in index order; None if it has none.
            num_labels: Number of the student's classes.
            view_size: `(height, width)` of the views the teacher will see.

        Raises:
            TeacherError: The classes cannot be brought together, or the teacher fails on a view of that size.
        """
        count = self.try_on(view_size)
        if self.class_names is None or student_names is None:
            if count != num_labels:
                raise TeacherError(
                    f"The teacher has {count} classes ({_listed(self.class_names)}), the student {num_labels} "
                    f"({_listed(student_names)}), and one of them has no class names to go by. Give both id2label, or a "
                    "teacher with the student's classes."
                )
            logger.warning(
                "Class names are missing (teacher: %s; student: %s): the %d classes are taken to be in the same order.",
                _listed(self.class_names),
                _listed(student_names),
                count,
            )
            return
        if student_names == self.class_names:
            return  # even with a name twice (ImageNet's "crane"): the order is beyond doubt
        counts = [Counter(names) for names in (student_names, self.class_names)]
        ambiguous = sorted({name for name in student_names if max(count[name] for count in counts) > 1})
        missing = [name for name in student_names if name not in self.class_names]
        if missing or ambiguous:
            problem = (
                f"does not know {_listed(missing)}"
                if missing
                else f"or the student has {_listed(ambiguous)} several times"
            )
            raise TeacherError(
                f"The teacher {problem}.\n  student's classes: {_listed(student_names)}\n  teacher's classes: "
                f"{_listed(self.class_names)}\nUse a teacher of the same classes (hf-deit train-teacher makes one), or give "
                "it id2label with the student's names."
            )
        indices = [self.class_names.index(name) for name in student_names]
        self._order = torch.tensor(indices, device=self.device)

    def try_on(self, view_size: tuple[int, int]) -> int:
        """Runs the teacher on one black view and gives its number of classes.

        Raises:
            TeacherError: It fails, or returns something else than `(batch, classes)`.
        """
        self._order = None  # in its own order
        try:
            logits = self(torch.zeros(1, 3, *view_size, device=self.device))
        except Exception as error:  # any model may stand here: whatever it raises belongs to this one cause
            raise TeacherError(
                f"The teacher ({type(self.model).__name__}) fails on a view of {view_size[0]}×{view_size[1]} pixels, resized "
                f"to {self.image_size or 'nothing else'}: {type(error).__name__}: {error}. Set image_size to what it takes."
            ) from error
        if logits.ndim != 2:
            raise TeacherError(
                f"The teacher returns a shape {tuple(logits.shape)} for one image: it must give (batch, classes)."
            )
        count = logits.shape[-1]
        if self.class_names is not None and len(self.class_names) != count:
            raise TeacherError(
                f"The teacher gives {count} logits and has {len(self.class_names)} class names: correct id2label."
            )
        return count

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Gives the teacher's logits for a view.

        Args:
            pixels: `(batch, 3, height, width)` in [0, 1], on the teacher's device.

        Returns:
            `(batch, num_labels)` float32, in the student's class order after `align`.
        """
        if self.image_size is not None:
            pixels = resize(pixels, self.image_size)
        pixels = normalize(pixels, self.image_mean, self.image_std).contiguous(memory_format=torch.channels_last)
        autocast = self.dtype not in (None, torch.float32)
        # The trainer's own autocast is around this call: switched off, or to the teacher's type.
        with torch.autocast(pixels.device.type, dtype=self.dtype if autocast else torch.bfloat16, enabled=autocast):
            logits = logits_of(self.model(pixels.to(self._weight_dtype()))).float()
        return logits if self._order is None else logits[:, self._order]

    def _weight_dtype(self) -> torch.dtype:
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)

    def fingerprint(self) -> str:
        """Changes when the weights, the pixels the teacher sees or its class names change; a function only by its name."""
        settings = [self.image_mean, self.image_std, self.image_size, self.class_names, str(self.dtype)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        if isinstance(self.model, nn.Module):
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(getattr(self.model, "__qualname__", type(self.model).__qualname__).encode())
        return digest.hexdigest()


def _processor_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    for name in ("crop_size", "size"):
        if name == "crop_size" and not processor.get("do_center_crop", True):
            continue
        size = processor.get(name)
        if isinstance(size, int):
            return size, size
        if isinstance(size, Mapping) and "height" in size:
            return size["height"], size["width"]
        if isinstance(size, Mapping) and "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
    return None


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "no names"
    shown = ", ".join(map(repr, names[:20]))
    return shown if len(names) <= 20 else f"{shown}, … ({len(names)} in all)"
