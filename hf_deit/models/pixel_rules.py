"""What an image processor of transformers or timm does to the pixels of a view, read from its fields.

`PixelRules` holds the result: an equivalent mean and standard deviation for pixels in [0, 1], the channel order, the
filter and the size. The rescale factor, its offset and a second normalisation (EfficientNet) are scalings too, so they
are part of this mean and standard deviation. `data/pixel_pipeline.py` applies the rules to a batch, and compares them
with the processor itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import UserError
from .image_processing_deit import DeiTImageProcessor

# Pillow's numbers of its filters, which is how a processor holds its `resample`.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
DEFAULT_FILTER = "bicubic"
# Filter of a processor whose `resample` is None.
_UNSET_FILTER = "bilinear"
# Field of a timm checkpoint's config.json, which has the pixels' settings in place of a preprocessor_config.json.
TIMM_FIELD = "pretrained_cfg"
_TIMM_SIZE = (3, 224, 224)
_EXPRESSED = {
    "do_resize",
    "size",
    "default_to_square",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
    "do_flip_channel_order",
}
# Fields that change nothing about the pixels of an upright RGB view.
_WITHOUT_EFFECT = {
    "do_convert_rgb",
    "do_reduce_labels",
    "reduce_labels",
    "data_format",
    "input_data_format",
    "device",
    "return_tensors",
    "disable_grouping",
    "image_seq_length",
    "pad_size",
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "model_input_names",
    "num_channels",
}
# The class of a processor without one of its own: it does what its fields state.
_ANY_CLASS = ""


@dataclass(frozen=True)
class PixelRules:
    """How the pixels of a view become the input of a model.

    Args:
        image_mean: Mean of each channel, for pixels in [0, 1].
        image_std: Standard deviation of each channel, likewise.
        channel_order: "rgb" or "bgr", the order in which the model takes the channels. Mean and standard deviation are
            those of the red, green and blue channel, in this order, in both cases.
        resample: Name of the filter that resizes a view, one of `FILTERS`.
        size: `(height, width)` of the input in pixels; None: any.
        as_pillow: Whether a view is resized as Pillow resizes an 8-bit image: one axis after the other, and each pass
            rounded to 8 bits. Processors do this; a teacher without a processor is resized in one pass of floats.
        keeps_aspect: Whether the shorter side of a view becomes `min(size)` and the longer side follows, because
            nothing is cropped.
        beyond: Names of fields whose effect these rules do not express.
    """

    image_mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    channel_order: str = "rgb"
    resample: str = DEFAULT_FILTER
    size: tuple[int, int] | None = None
    as_pillow: bool = False
    keeps_aspect: bool = False
    beyond: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channel_order not in ("rgb", "bgr"):
            raise UserError(f"channel_order={self.channel_order!r}: choose rgb or bgr.")
        if self.resample not in FILTERS.values():
            raise UserError(f"resample={self.resample!r}: choose one of {', '.join(FILTERS.values())}.")
        mean, std = (_numbers(name, getattr(self, name)) for name in ("image_mean", "image_std"))
        if min(std) <= 0:
            raise UserError(f"image_std={list(std)}: each number must be above 0.")
        if len(mean) != len(std):
            raise UserError(
                f"image_mean={list(mean)} and image_std={list(std)}: give as many numbers for one as for the other."
            )
        object.__setattr__(self, "image_mean", mean)
        object.__setattr__(self, "image_std", std)

    def input_size(self, view_size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return the `(height, width)` that a view of `view_size` is resized to; None if it is not resized."""
        if self.size is None or not self.keeps_aspect or view_size is None:
            return self.size
        short, long = sorted(view_size)
        sides = min(self.size), int(min(self.size) * long / short)
        return sides if view_size[0] <= view_size[1] else sides[::-1]


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Return a finite number for each channel; a single one counts for each of three.

    Raises:
        UserError: They are not numbers, or not finite.
    """
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values] * 3
    if not numbers or not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        raise UserError(f"{name}={values!r}: give a finite number for each channel.")
    return tuple(numbers)


def processor_fields(processor: Any) -> dict[str, Any]:
    """Return the fields of a loaded image processor that it uses, with the defaults of its class.

    Fields that its class does not know are left out, because it ignores them.

    Args:
        processor: An image processor of transformers, or any object with its attributes.
    """
    timm = getattr(processor, "data_config", None)
    if isinstance(timm, Mapping):
        return {TIMM_FIELD: dict(timm)}
    names = getattr(processor, "_valid_kwargs_names", None)
    if names is None:
        names = {*_EXPRESSED, "do_pad", "pad_size"}
        if hasattr(processor, "to_dict"):
            names |= {name for name in processor.to_dict() if not name.startswith("_")}
    fields = {name: getattr(processor, name) for name in names if hasattr(processor, name)}
    return {**fields, "image_processor_type": type(processor).__name__}


def pixel_rules(fields: Mapping[str, Any]) -> PixelRules:
    """Return the rules that the fields of an image processor state.

    Args:
        fields: From `processor_fields`, or a preprocessor_config.json (or a timm checkpoint's config.json) alone, whose
            missing fields have the usual defaults: pixels in [0, 1], ImageNet's mean and standard deviation, bicubic.

    Raises:
        UserError: A field has an impossible value.
    """
    if isinstance(fields.get(TIMM_FIELD), Mapping):
        fields = _timm_fields(fields[TIMM_FIELD])
    kind = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or _ANY_CLASS)
    mean, std = _affine(fields, kind)
    resample, beyond = _filter_of(fields)
    beyond += _not_expressed(fields)
    size, keeps_aspect = _size_of(fields, kind)
    return PixelRules(
        image_mean=mean,
        image_std=std,
        channel_order="bgr" if fields.get("do_flip_channel_order") else "rgb",
        resample=resample,
        size=size,
        as_pillow=True,
        keeps_aspect=keeps_aspect,
        beyond=tuple(beyond),
    )


def _timm_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `pretrained_cfg` of timm in the fields of an image processor; its defaults are timm's."""
    _, height, width = config.get("input_size") or _TIMM_SIZE
    return {
        "size": {"height": height, "width": width},
        "resample": config.get("interpolation") or DEFAULT_FILTER,
        "image_mean": config.get("mean") or IMAGENET_DEFAULT_MEAN,
        "image_std": config.get("std") or IMAGENET_DEFAULT_STD,
        "do_center_crop": False,
    }


def _affine(fields: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std that, on pixels in [0, 1], have the effect of rescaling and normalisations."""
    scale, offset = 255.0, 0.0
    if fields.get("do_rescale", True):
        factor = fields.get("rescale_factor")
        scale = 255 * (1 / 255 if factor is None else _number("rescale_factor", factor))
        offset = 1.0 if fields.get("rescale_offset") else 0.0
    own_std = _numbers("image_std", _given(fields, "image_std", IMAGENET_DEFAULT_STD))
    mean, std = (0.0,) * len(own_std), (1.0,) * len(own_std)
    # MobileViT's class never normalises, whatever its fields state.
    if fields.get("do_normalize", True) and not kind.startswith("MobileViT"):
        mean, std = _numbers("image_mean", _given(fields, "image_mean", IMAGENET_DEFAULT_MEAN)), own_std
    if fields.get("include_top"):
        std = tuple(first * second for first, second in zip(std, own_std, strict=True))
    if math.isclose(scale, 1, rel_tol=1e-9) and not offset:
        return mean, std  # to the last bit what the file states
    return tuple((offset + value) / scale for value in mean), tuple(value / scale for value in std)


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    value = fields.get(name)
    return default if value is None or (isinstance(value, Sequence) and not value) else value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise UserError(f"{name}={value!r}: it must be a finite number above 0.")
    return float(value)


def _filter_of(fields: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the name of the filter, and the field's name if there is no such filter."""
    if "resample" not in fields:
        return DEFAULT_FILTER, []
    value = fields["resample"]
    value = getattr(value, "value", value)  # an enumeration of Pillow or torchvision
    if value is None:
        return _UNSET_FILTER, []
    if isinstance(value, str):
        name = "nearest" if value == "nearest-exact" else value
    else:
        name = FILTERS.get(value, "")
    return (name, []) if name in FILTERS.values() else (DEFAULT_FILTER, ["resample"])


def _not_expressed(fields: Mapping[str, Any]) -> list[str]:
    """Return the names of fields that are set and that are unknown here."""
    unknown = [
        name
        for name, value in fields.items()
        if name not in _EXPRESSED | _WITHOUT_EFFECT and name != "do_pad" and not name.startswith("_") and _is_set(value)
    ]
    # Padding to the largest image of a batch does nothing, because all views have one size.
    if fields.get("do_pad") and fields.get("pad_size"):
        unknown.append("do_pad")
    return unknown


def _is_set(value: Any) -> bool:
    return bool(value) if isinstance(value, int | float | str | Mapping | Sequence) else value is not None


def _size_of(fields: Mapping[str, Any], kind: str) -> tuple[tuple[int, int] | None, bool]:
    """Return the input size, and whether it is that of a square view only."""
    if fields.get("do_center_crop", fields.get("crop_size") is not None) and fields.get("crop_size") is not None:
        return _sides("crop_size", fields["crop_size"])[0], False
    if not fields.get("do_resize", True) or fields.get("size") is None:
        return None, False
    size, keeps_aspect = _sides("size", fields["size"])
    # ConvNeXt's class crops or squashes to a square by itself.
    return size, keeps_aspect and not kind.startswith("ConvNext")


def _sides(name: str, size: Any) -> tuple[tuple[int, int] | None, bool]:
    """Return the `(height, width)` of a `size` as processors hold it, and whether it is a shorter side."""
    if isinstance(size, int):
        return (size, size), False
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        return (size[0], size[1]), False
    try:
        sides = {key: value for key, value in dict(size).items() if value is not None}
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}={size!r} of the image processor: give height and width, or shortest_edge.") from error
    if {"height", "width"} <= sides.keys():
        return (sides["height"], sides["width"]), False
    if "shortest_edge" in sides:
        return (sides["shortest_edge"],) * 2, True
    if {"max_height", "max_width"} <= sides.keys():
        return (sides["max_height"], sides["max_width"]), False
    if "longest_edge" in sides:
        return (sides["longest_edge"],) * 2, False
    return None, False


class OwnProcessor(NamedTuple):
    """The image processor that a model's files describe.

    Attributes:
        fields: Its fields; empty if the model has none.
        processor: The processor itself; None if its class cannot be loaded here.
        reason: Why it cannot be loaded.
    """

    fields: dict[str, Any]
    processor: Any = None
    reason: str = ""


def read_processor(name_or_path: str | Path) -> OwnProcessor:
    """Read the image processor of a model, and load it if its class can be loaded here.

    Args:
        name_or_path: Folder or full Hub name of the model.

    Raises:
        UserError: The processor needs code of its own.
    """
    fields = _stored_fields(str(name_or_path))
    if not fields:
        return OwnProcessor({})
    try:
        processor = _loaded(str(name_or_path), fields)
    except Exception as error:  # a missing package or a field of the wrong kind: every class fails in its own way
        if "AutoImageProcessor" in (fields.get("auto_map") or {}):
            raise UserError(
                f"{name_or_path}: auto_map in preprocessor_config.json names code of its own for the image "
                "processor, which is never run here. Give a model whose image processor is a class of transformers."
            ) from error
        return OwnProcessor(fields, None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
    return OwnProcessor(processor_fields(processor), processor)


def _stored_fields(name_or_path: str) -> dict[str, Any]:
    """Return preprocessor_config.json, else the settings in a timm checkpoint's config.json, else nothing."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(name_or_path)[0]
    except OSError as error:
        if isinstance(error.__context__, ValueError):  # the file exists, and is not JSON
            raise UserError(
                f"The image processor of {name_or_path} cannot be read: {error} Repair the file."
            ) from error
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path, image_processor_filename="config.json")
    except OSError:
        return {}
    return {TIMM_FIELD: config[TIMM_FIELD]} if isinstance(config.get(TIMM_FIELD), Mapping) else {}


def _loaded(name_or_path: str, fields: Mapping[str, Any]) -> Any:
    """Load an image processor, also where its class for torchvision cannot be imported and that for Pillow can."""
    import transformers

    kind = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "")
    if kind.startswith("DeiT"):
        return DeiTImageProcessor.from_pretrained(name_or_path)
    try:
        return transformers.AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except ImportError:
        kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
        pillow_class = getattr(transformers, f"{kind}Pil", None)
        if pillow_class is None:
            raise
        return pillow_class.from_pretrained(name_or_path)
