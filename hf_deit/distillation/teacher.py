"""The frozen teacher: loading it, preparing its pixels, and aligning its classes with those of the student.

The teacher sees exactly the view that the student sees, with the pixels that its own image processor would make of it
(`data/pixel_pipeline.py`): filter, size, channel order, rescaling and normalisation. It returns logits in the
student's class order. The teacher is not a submodule of the student, so it is never part of the student's checkpoint,
state dict or optimizer. It is moved to the device once and has its own autocast.
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
from transformers import PreTrainedModel

from ..data.pixel_pipeline import PixelPipeline
from ..errors import TeacherError, UserError, listed
from ..losses import ProblemType
from ..models.label_names import class_names, normal_forms
from ..models.loading import load_pretrained, published_name, refuse_adapters, refuse_other_channels
from ..models.pixel_rules import OwnProcessor, PixelRules, read_processor
from ..models.weights import load_weights
from ..sizes import as_pair
from .factories import FACTORY_NORMALIZATION, build_network, logits_of, replace_classifier
from .guidance import Layer, LayerReader, MapShape, TeacherLayers, counted_from_end, default_layer

logger = logging.getLogger(__name__)

# File next to the weights of a teacher that is not a transformers model.
TEACHER_FILE = "teacher.json"
WEIGHTS_FILE = "model.safetensors"


class Teacher:
    """Frozen model or function that maps a view to logits in the student's class order.

    Args:
        model: A transformers model, another `nn.Module`, or a callable. It takes normalised pixels
            `(batch, 3, height, width)` and returns logits (see `factories.logits_of`).
        image_mean: Mean of each channel for pixels in [0, 1]. Default: that of the image processor, else ImageNet's.
        image_std: Standard deviation of each channel for pixels in [0, 1]. Default: that of the image processor, else
            ImageNet's.
        image_size: Size to which the view is resized for the teacher, in pixels: one number or (height, width).
            Default: that of the image processor, else the model's `config.image_size`, if it has one. Otherwise the
            view is not resized.
        id2label: Name of each class: a mapping from index to name, or the names in index order. Default: the model's
            `config.id2label`.
        dtype: Type of the autocast in which the teacher runs, for example `torch.bfloat16`. None or float32: no
            autocast.
        image_processor: Image processor of transformers or timm, or its fields. The teacher sees the pixels that it
            would make of a view. Default: the processor that was saved with a transformers model.
        problem_type: What the logits were trained for: "single_label_classification" (one softmax over the classes) or
            "multi_label_classification" (one sigmoid per class). Default: the model's `config.problem_type`. If neither
            states it, it is unknown, and the teacher is taken for a single-label one.
        feature_maps: For guidance by a teacher whose layers have no names: a function, or several, each of which maps
            the teacher's normalised pixels to a feature map `(batch, channels, height, width)` or to tokens
            `(batch, tokens, channels)`. Default: the layers of the model.

    Raises:
        TeacherError: If `model` is not callable, `id2label` does not name the classes 0, 1, 2, …, or the problem type
            is unknown.
        UserError: If a field of the image processor, the mean or the standard deviation is impossible.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        image_size: int | tuple[int, int] | None = None,
        id2label: Mapping[int, str] | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        image_processor: Any = None,
        problem_type: str | None = None,
        feature_maps: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]] | None = None,
    ):
        if not callable(model):
            raise TeacherError(
                f"The teacher is of type {type(model).__name__}: give a model, or a function that maps pixels to "
                "logits."
            )
        refuse_other_channels(model, f"The teacher ({type(model).__name__})")
        config = getattr(model, "config", None)
        normalization = {"image_mean": image_mean, "image_std": image_std}
        normalization = {name: values for name, values in normalization.items() if values is not None}
        if image_processor is None and not normalization:
            image_processor = _saved_processor(model)
        self.model = model
        self.pixels = _pipeline(image_processor).with_normalization(**normalization)
        if len(self.image_mean) not in (1, 3):
            raise TeacherError(
                f"The teacher's image_mean={list(self.image_mean)} has {len(self.image_mean)} numbers, and views "
                "have 3 channels: give a teacher of colour images."
            )
        self._sized_by_processor = image_size is None and self.pixels.input_size() is not None
        if image_size is None:
            image_size = self.pixels.input_size() or getattr(config, "image_size", None)
        self.image_size = None if image_size is None else as_pair(image_size)
        self._view_size: tuple[int, int] | None = None
        self.class_names = class_names(getattr(config, "id2label", None) if id2label is None else _by_index(id2label))
        self.dtype = dtype
        self.problem_type = _problem_type(
            problem_type if problem_type is not None else getattr(config, "problem_type", None)
        )
        self.device = torch.device("cpu")
        self._order: Tensor | None = None
        self._has_weights = True
        self.feature_maps = _functions(feature_maps)
        self._reader: LayerReader | None = None
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
            # The logits of a teacher must not depend, not even by rounding, on whether its features are read too.
            for module in model.modules():
                if hasattr(module, "always_reads_patches"):
                    module.always_reads_patches = True
            # On CPUs and tensor cores, convolutions are several times faster in this memory layout. The values are the
            # same.
            model.to(memory_format=torch.channels_last)

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of each channel, for pixels in [0, 1]."""
        return self.pixels.rules.image_mean

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, for pixels in [0, 1]."""
        return self.pixels.rules.image_std

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, needs_head: bool = True, with_weights: bool = True, **kwargs: Any
    ) -> "Teacher":
        """Load a teacher with its own pixels, size and class names.

        Args:
            name_or_path: A folder that `hf-deit train-teacher` saved, or a folder or Hub name that
                `AutoModelForImageClassification` loads. Short names such as `regnet-y-160` are allowed too, see
                `models/loading.py`.
            needs_head: Whether to refuse weights without a classifier. Set it to False for a network that gets a new
                classifier (`train_teacher.py`).
            with_weights: Whether to read the weights. If False, the weights are arbitrary, as in
                `models.loading.load_pretrained`.
            **kwargs: Arguments of the constructor, which override the values in the files.

        Raises:
            TeacherError: If the folder or name has no image classifier that can be loaded, or a file is missing or
                broken.
            UserError: If the folder holds an adapter instead of a model, the factory in `teacher.json` cannot be used,
                the weights for its network are missing or do not fit, or its image processor does something that is not
                supported.
        """
        name_or_path = published_name(name_or_path)
        path = Path(name_or_path)
        refuse_adapters(path)
        if (path / TEACHER_FILE).is_file():
            return cls._from_teacher_file(path, with_weights, **kwargs)
        if path.is_dir() and not (path / "config.json").is_file():
            raise TeacherError(
                f"{path} holds neither config.json nor {TEACHER_FILE}, so it is not the folder of a model: give the "
                "folder of a model, a Hub name, or package.module:factory."
            )
        from transformers import AutoModelForImageClassification

        try:
            model = load_pretrained(
                AutoModelForImageClassification, str(name_or_path), needs_head, with_weights, dtype=torch.float32
            )
        except UserError as error:
            raise TeacherError(
                f"No teacher at {str(name_or_path)!r}: {error}\nGive the folder of a model, a Hub name, or "
                "package.module:factory."
            ) from error
        own = kwargs.pop("image_processor", None)
        if own is None:
            own = read_processor(name_or_path)
            if not own.fields:
                logger.warning("Teacher %s has no image processor: ImageNet's mean and std are assumed.", name_or_path)
        teacher = cls(model, image_processor=own, **kwargs)
        teacher._has_weights = with_weights
        return teacher

    @classmethod
    def from_factory(cls, factory: str, weights: str | Path | None = None, **kwargs: Any) -> "Teacher":
        """Build a teacher with a factory of an installed package.

        Args:
            factory: `package.module:factory`, see `factories.py`.
            weights: A `.safetensors` or `.pth` file to load into the network.
            **kwargs: Arguments of the constructor. None means the default of the factory.

        Raises:
            UserError: If the factory cannot be used, or the weights are missing or do not fit the network.
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
        missing = [name for name in ("image_mean", "image_std") if kwargs[name] is None]
        if missing and kwargs.get("image_processor") is None:
            logger.warning(
                "Teacher %s: no %s is given, and ImageNet's is assumed. If the network was trained with another one, set %s.",
                factory,
                " and no ".join(missing),
                " and ".join(f"teacher_{name}" for name in missing),
            )
        return cls(network, **kwargs)

    @classmethod
    def _from_teacher_file(cls, path: Path, with_weights: bool, **kwargs: Any) -> "Teacher":
        try:
            saved = json.loads((path / TEACHER_FILE).read_text(encoding="utf-8"))
            factory, classes = saved["factory"], len(saved["class_names"])
            settings = {name: saved[name] for name in ("image_mean", "image_std", "image_size")}
            settings["problem_type"] = saved.get("problem_type")
        except (ValueError, KeyError, TypeError) as error:
            raise TeacherError(
                f"{path / TEACHER_FILE} is broken ({type(error).__name__}: {error}): train the teacher again with "
                "hf-deit train-teacher."
            ) from error
        network = build_network(factory)
        replace_classifier(network, classes)
        if with_weights:
            load_weights(network, path / WEIGHTS_FILE)
        elif not (path / WEIGHTS_FILE).is_file():
            raise TeacherError(
                f"{path} holds {TEACHER_FILE}, but {WEIGHTS_FILE} is missing: copy the complete folder of the teacher."
            )
        settings["id2label"] = dict(enumerate(saved["class_names"]))
        teacher = cls(network, **{**settings, **kwargs})
        teacher._has_weights = with_weights
        return teacher

    def to(self, device: torch.device | str) -> "Teacher":
        """Move the teacher to a device and return it. The trainer calls this once."""
        self.device = torch.device(device)
        if isinstance(self.model, nn.Module):
            self.model.to(self.device)
        return self

    def align(self, student_names: list[str] | None, num_labels: int, view_size: tuple[int, int]) -> None:
        """Find the teacher's class for each class of the student, and run the teacher on one black view.

        If both have class names, each class of the student is looked up by name. The teacher may have more classes or
        another order; its logits are then selected and reordered. If one of them has no class names, both must have the
        same number of classes, and the same order is assumed.

        Args:
            student_names: The student's class names in index order. None if it has none.
            num_labels: Number of the student's classes.
            view_size: `(height, width)` of the views that the teacher will see.

        Raises:
            TeacherError: If the classes cannot be aligned, or the teacher fails on a view of this size.
        """
        count = self.try_on(view_size)
        if self.class_names is None or student_names is None:
            if count != num_labels:
                raise TeacherError(
                    f"The teacher has {count} classes ({_listed(self.class_names)}), the student {num_labels} "
                    f"({_listed(student_names)}), and they cannot be matched, because at least one of the two has no "
                    "class names. Give id2label for both, or use a teacher with the student's classes."
                )
            logger.warning(
                "Class names are missing (teacher: %s; student: %s): the %d classes are taken to be in the same order.",
                _listed(self.class_names),
                _listed(student_names),
                count,
            )
            return
        student_names, teacher_names = normal_forms(student_names), normal_forms(self.class_names)
        if student_names == teacher_names:
            return  # the order is unambiguous even if a name occurs twice, such as ImageNet's "crane"
        counts = [Counter(names) for names in (student_names, teacher_names)]
        ambiguous = sorted({name for name in student_names if max(count[name] for count in counts) > 1})
        missing = [name for name in student_names if name not in teacher_names]
        if missing or ambiguous:
            problem = (
                f"does not know {_listed(missing)}"
                if missing
                else f"or the student has {_listed(ambiguous)} several times"
            )
            raise TeacherError(
                f"The teacher {problem}.\n  student's classes: {_listed(student_names)}\n  teacher's classes: "
                f"{_listed(self.class_names)}\nUse a teacher with the same classes (hf-deit train-teacher trains "
                "one), or give the teacher an id2label with the student's class names."
            )
        indices = [teacher_names.index(name) for name in student_names]
        self._order = torch.tensor(indices, device=self.device)

    def check_problem_type(self, problem_type: str) -> None:
        """Check that the teacher's logits have the meaning that the student's labels need.

        Args:
            problem_type: Problem type of the student's labels.

        Raises:
            TeacherError: If the student is multi-label and the teacher has no sigmoid per class, or does not state it;
                or if the student is single-label and the teacher is not.
        """
        own = self.problem_type
        if own == problem_type or (own is None and problem_type == ProblemType.SINGLE_LABEL):
            return
        kinds = {
            ProblemType.MULTI_LABEL: "a teacher with one sigmoid per class",
            ProblemType.SINGLE_LABEL: "a teacher with one softmax over the classes",
        }
        states = "states no problem_type" if own is None else f"has problem_type={str(own)!r}"
        raise TeacherError(
            f"The teacher ({type(self.model).__name__}) {states}, but the student's labels have the problem_type "
            f"{str(problem_type)!r}, which needs {kinds.get(problem_type, 'a teacher of the same problem_type')}. Train "
            f"one on these data (hf-deit train-teacher). If the logits of this teacher do have this meaning, state it: "
            f"Teacher(…, problem_type={str(problem_type)!r}), or --teacher_problem_type {problem_type}."
        )

    def try_on(self, view_size: tuple[int, int]) -> int:
        """Run the teacher on one black view and return its number of classes.

        Args:
            view_size: `(height, width)` of the view.

        Raises:
            TeacherError: If the teacher fails, its logits are not finite or not of the shape `(batch, classes)`, or
                their number differs from that of its class names.
        """
        self._order = None  # the teacher's own class order
        self._view_size = tuple(view_size)
        self.image_size = self._size_for(self._view_size)
        try:
            logits = self(torch.zeros(1, 3, *view_size, device=self.device))
        except UserError:  # it names its cause
            raise
        except Exception as error:  # the teacher may be any model, which may raise any exception
            size = f"resized to {self.image_size}" if self.image_size else "not resized"
            raise TeacherError(
                f"The teacher ({type(self.model).__name__}) fails on a view of {view_size[0]}×{view_size[1]} pixels, "
                f"{size}: {type(error).__name__}: {error}. Set image_size to the size that the teacher requires."
            ) from error
        if logits.ndim != 2:
            raise TeacherError(
                f"The teacher returns logits of shape {tuple(logits.shape)} for one image, but the shape must be "
                "(batch, classes): give a model or function that returns one logit per class for each image."
            )
        count = logits.shape[-1]
        if count > 1 and (logits >= 0).all() and torch.allclose(logits.sum(dim=-1), torch.ones(len(logits)).to(logits)):
            logger.warning(
                "The outputs of the teacher (%s) look like probabilities, because they sum to 1, but they are used as logits: "
                "soft distillation would learn from nearly uniform probabilities. Return the values before softmax, or "
                "their logarithm.",
                type(self.model).__name__,
            )
        if self.class_names is not None and len(self.class_names) != count:
            raise TeacherError(
                f"The teacher returns {count} logits per image, but its id2label has {len(self.class_names)} class "
                "names: give an id2label with one name per logit."
            )
        return count

    def _size_for(self, view_size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return the size to which views of this size are resized, which may depend on it (`shortest_edge`)."""
        if not self._sized_by_processor or self.image_size is None or view_size is None:
            return self.image_size
        return self.pixels.input_size(view_size)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute the teacher's logits for a batch of views.

        Args:
            pixels: Views `(batch, 3, height, width)` with values in [0, 1], on the teacher's device.

        Returns:
            Logits `(batch, num_labels)` in float32. After `align` they are in the student's class order.
        """
        with self._own_autocast(pixels.device):
            return self._logits(self.model(self._input(pixels)))

    def _input(self, pixels: Tensor) -> Tensor:
        """Return the pixels as the network takes them."""
        pixels = self.pixels(pixels, self.image_size).contiguous(memory_format=torch.channels_last)
        return pixels.to(self._weight_dtype())

    def _own_autocast(self, device: torch.device) -> torch.autocast:
        """Return the autocast of the teacher. It replaces that of the trainer, in which the teacher is called."""
        autocast = self.dtype not in (None, torch.float32)
        return torch.autocast(device.type, dtype=self.dtype if autocast else torch.bfloat16, enabled=autocast)

    def _logits(self, outputs: Any) -> Tensor:
        logits = logits_of(outputs).float()
        logits = logits if self._order is None else logits[:, self._order]
        self._check_finite(logits)
        return logits

    # ---- features for guidance ----

    @property
    def view_size(self) -> tuple[int, int] | None:
        """`(height, width)` of the views that the teacher was aligned with; None before `align`."""
        return self._view_size

    @torch.no_grad()
    def logits_and_maps(self, pixels: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[Tensor]]:
        """Compute the teacher's logits and the feature maps of some layers in one forward pass.

        Args:
            pixels: As for calling the teacher.
            layers: Layers as `find_layers` returns them.

        Returns:
            The logits, as calling the teacher returns them, and the map `(batch, channels, height, width)` of each
            layer in float32.

        Raises:
            TeacherError: If logits or features are not finite.
            UserError: If a layer does not exist or gives no feature map.
        """
        reader = self._reader_of(layers)
        with self._own_autocast(pixels.device), reader.recording():
            pixels = self._input(pixels)
            outputs = self.model(pixels, **reader.arguments)
            maps = [values.float() for values in reader.maps(outputs, pixels)]
            return self._logits(outputs), maps

    def _reader_of(self, layers: Sequence[Layer]) -> LayerReader:
        layers = list(layers)
        if self._reader is None or self._reader.layers != layers:
            self._reader = LayerReader(
                self.model,
                layers,
                owner=f"the teacher ({type(self.model).__name__})",
                field="guidance_teacher_layers",
            )
        return self._reader

    @torch.no_grad()
    def find_layers(
        self, layers: Sequence[Layer] | None, grids: Sequence[tuple[int, int]], view_size: tuple[int, int]
    ) -> TeacherLayers:
        """Find the layers that guide a student, and the shapes of their maps, by running the teacher on a black view.

        Args:
            layers: Layers of the teacher. Default: `feature_maps`, if the teacher has them; else, for each layer of the
                student, the last one whose grid of patches is about as fine as that of the student (or finer), or the
                last one if no layer is.
            grids: Grid `(height, width)` of the patches of each layer of the student.
            view_size: `(height, width)` of the views, in pixels.

        Raises:
            TeacherError: If the teacher is a function without `feature_maps`, or has no layer with a grid of patches; or
                the numbers of layers of teacher and student differ.
            UserError: If a layer does not exist or gives no feature map.
        """
        views = torch.zeros(1, 3, *view_size, device=self.device)
        with self._own_autocast(views.device):
            pixels = self._input(views)
            if layers is None and self.feature_maps:
                layers = self.feature_maps
            if layers is None:
                layers = [default_layer(self.model, self.model, pixels, grid) for grid in grids]
            if None in layers or not (isinstance(self.model, nn.Module) or all(map(callable, layers))):
                raise TeacherError(
                    f"guidance needs the features of the teacher, but the teacher ({type(self.model).__name__}) has no "
                    "layer with a grid of patches that can be read. Give a teacher that is a network and name its "
                    "layers (guidance_teacher_layers), give Teacher(…, feature_maps=function), or leave guidance out."
                )
            if len(layers) != len(grids):
                raise TeacherError(
                    f"The teacher has {len(layers)} layer(s) for guidance (feature_maps, guidance_teacher_layers), and the "
                    f"student {len(grids)} (guidance_student_layers): give as many of both, because they are compared pair "
                    "by pair."
                )
            reader = self._reader_of(layers)
            with reader.recording():
                outputs = self.model(pixels, **reader.arguments)
            indexed = reader.indexed(outputs)
            shapes = tuple(MapShape.of(values) for values in reader.maps(outputs, pixels))
        named = (layer if callable(layer) else counted_from_end(layer, indexed) for layer in reader.layers)
        return TeacherLayers(tuple(named), shapes, indexed)

    def _check_finite(self, logits: Tensor) -> None:
        """Raise an error for logits that nothing can be learned from: their largest would be the first class."""
        if not self._has_weights:  # they are arbitrary (recipes/validate.py)
            return
        finite = torch.isfinite(logits)
        if bool(finite.all()):
            return
        dtype = self._weight_dtype() if self.dtype in (None, torch.float32) else self.dtype
        name = str(dtype).removeprefix("torch.")
        weights = self.model.named_parameters() if isinstance(self.model, nn.Module) else ()
        broken = next((name for name, weight in weights if not torch.isfinite(weight).all()), None)
        if broken is not None:
            remedy = f"its weight {broken!r} is not finite. Use weights that are not damaged."
        elif dtype == torch.float16:
            remedy = "its values exceed the range of float16. Use bfloat16 or float32 (teacher_dtype)."
        elif dtype == torch.bfloat16:
            remedy = "use float32 (teacher_dtype)."
        else:
            remedy = "its weights are finite. Check the model, and the mean and std of its image processor."
        images = int((~finite.reshape(len(logits), -1).all(dim=-1)).sum())
        raise TeacherError(
            f"The teacher ({type(self.model).__name__}) computes logits that are not finite (NaN or infinite) in "
            f"{name}, for {images} of {len(logits)} images: {remedy}"
        )

    def _weight_dtype(self) -> torch.dtype:
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)

    def fingerprint(self, view_size: tuple[int, int] | None = None) -> str:
        """Return a digest of the weights, the settings of the pixels, the class names and the dtype.

        For a function, the digest depends on its name instead of weights.

        Args:
            view_size: `(height, width)` of the views. Default: those that the teacher was aligned with, if it was. The
                filter of the image processor counts only if views of this size are resized.
        """
        view_size = self._view_size if view_size is None else tuple(view_size)
        size = self._size_for(view_size)
        settings = [self.image_mean, self.image_std, size, self.class_names, str(self.dtype)]
        pixels = self.pixels.describe(size, view_size)
        if pixels:  # fingerprints of earlier versions have no such entry
            settings.append(pixels)
        digest = hashlib.sha256(json.dumps(settings).encode())
        if isinstance(self.model, nn.Module):
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(getattr(self.model, "__qualname__", type(self.model).__qualname__).encode())
        return digest.hexdigest()


def _saved_processor(model: Any) -> OwnProcessor | None:
    """Return the image processor from where a transformers model was loaded; None if there is none."""
    if not isinstance(model, PreTrainedModel):
        return None
    own = read_processor(model.name_or_path) if model.name_or_path else OwnProcessor({})
    if own.fields:
        return own
    logger.warning(
        "The teacher is a %s without an image processor: ImageNet's mean and std are assumed. If it has others, "
        "give Teacher(model, image_processor=...), or its folder.",
        type(model).__name__,
    )
    return None


def _functions(feature_maps: Any) -> list[Callable[[Tensor], Tensor]]:
    functions = [feature_maps] if callable(feature_maps) else list(feature_maps or ())
    if not all(map(callable, functions)):
        raise TeacherError(
            f"feature_maps={feature_maps!r}: give a function of the teacher's pixels that returns a feature map, or a "
            "list of such functions."
        )
    return functions


def _pipeline(image_processor: Any) -> PixelPipeline:
    if image_processor is None or (isinstance(image_processor, OwnProcessor) and not image_processor.fields):
        return PixelPipeline(PixelRules())
    return PixelPipeline.from_processor(image_processor, "The teacher's")


def _by_index(id2label: Any) -> dict[int, str]:
    """Return class names by their index, from a mapping or from a sequence in this order."""
    names = id2label
    if isinstance(names, Sequence) and not isinstance(names, str):
        names = dict(enumerate(names))
    try:
        names = {int(index): name for index, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if set(names) != set(range(len(names))) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise TeacherError(
            f"id2label={str(id2label)[:200]}: give a mapping of the indices 0, 1, 2, … to class names, or a list of "
            "the names in this order."
        )
    return names


def _problem_type(text: str | None) -> ProblemType | None:
    try:
        return None if text is None else ProblemType(text)
    except ValueError as error:
        raise TeacherError(f"The teacher has an unknown problem_type. {error}") from error


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "no names"
    return listed(names)
