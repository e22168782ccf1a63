"""Applies the pixel rules of an image processor to views in [0, 1], on their device.

A teacher sees the entire view, resized to its input size; the crop of its processor is for files and not for views. The
rules are read in `models/pixel_rules.py`. Before the first view they are compared with the processor itself. Where they
differ, or where a field has an effect that they do not express, the processor computes the pixels, which is slower.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..models.image_processing_deit import DeiTImageProcessor
from ..models.pixel_rules import DEFAULT_FILTER, TIMM_FIELD, OwnProcessor, PixelRules, pixel_rules, processor_fields
from .batch_ops import normalize, resize, resize_as_pillow, to_unit_range

logger = logging.getLogger(__name__)

# Largest difference from the processor's own pixels: without resizing, as a share of a standard deviation; after
# resizing the mean and the maximum over a view, in levels of 8 bits (of 255).
PIXEL_TOLERANCE = 1e-3
RESIZED_MEAN, RESIZED_MAXIMUM = 1.0, 8.0
# Colours with channels that differ, and with both ends of the range.
_COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 64), (10, 200, 90), (37, 150, 255), (128, 127, 1))
_LARGE_VIEW = 512
_COLOUR_SIDE = 32


@dataclass(frozen=True)
class PixelPipeline:
    """The way from a view in [0, 1] to the input of a model.

    Args:
        rules: What happens to the pixels.
        processor: The image processor that the rules are from; None if there is none, or its class cannot be loaded.
        by_processor: Whether the processor itself computes the pixels, from views that are rounded to 8 bits.
    """

    rules: PixelRules
    processor: Any = None
    by_processor: bool = False

    @classmethod
    def from_processor(cls, own: OwnProcessor | Any, whose: str) -> "PixelPipeline":
        """Return the pipeline of an image processor, compared with the processor itself.

        Args:
            own: From `models.pixel_rules.read_processor`; a loaded processor; or its fields.
            whose: Whose processor it is, such as "The teacher's", for messages.

        Raises:
            UserError: A field has an impossible value, or an effect that is not possible here.
        """
        if isinstance(own, Mapping):
            own = OwnProcessor(dict(own), None, "only its fields were given")
        elif not isinstance(own, OwnProcessor):
            own = OwnProcessor(processor_fields(own), own)
        rules, kind = pixel_rules(own.fields), type(own.processor).__name__
        if own.processor is None:
            kind = own.fields.get("image_processor_type") or own.fields.get("feature_extractor_type") or TIMM_FIELD
            if rules.beyond:
                raise UserError(
                    f"{whose} image processor ({kind}) has {_shown(rules.beyond, own.fields)}, which is not "
                    f"supported, and the processor itself cannot be used ({own.reason}). Remove the field from "
                    "preprocessor_config.json if it has no effect, or install what the processor needs."
                )
            logger.warning(
                "%s image processor (%s) cannot be loaded (%s): its fields are used, and the pixels are not "
                "compared with its own.",
                whose,
                kind,
                own.reason,
            )
            return cls(rules)
        difference = _shown(rules.beyond, own.fields)
        if not difference and callable(own.processor):
            difference = compare_pixels(rules, own.processor)
        pipeline = cls(rules, own.processor, by_processor=bool(difference))
        if difference:
            pipeline._check_processor(whose)
            logger.warning(
                "%s image processor (%s) does more to the pixels than its usual fields state (%s): the processor "
                "itself computes the pixels of every view, on the CPU, which is slower.",
                whose,
                kind,
                difference,
            )
        return pipeline

    def input_size(self, view_size: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Return the `(height, width)` that views become; None if they keep their size.

        Args:
            view_size: `(height, width)` of the views in pixels; None if it is not known yet, for that of a square view.
        """
        if self.rules.size is None or self.processor is None:
            return self.rules.input_size(view_size)
        try:
            blank = Image.new("RGB", (view_size or (_LARGE_VIEW, _LARGE_VIEW))[::-1])
            return tuple(_pixel_values(self.processor, [blank]).shape[-2:])
        except Exception:  # a processor that fails on a view, which compare_pixels has reported
            return self.rules.input_size(view_size)

    def with_normalization(self, **changes: Any) -> "PixelPipeline":
        """Return a pipeline with another `image_mean` or `image_std`.

        Raises:
            UserError: The processor itself computes the pixels.
        """
        if self.by_processor and changes:
            raise UserError(
                f"{', '.join(changes)} together with a {type(self.processor).__name__}, which computes the pixels "
                "itself: leave it out, or change the processor."
            )
        return replace(self, rules=replace(self.rules, **changes))

    def __call__(self, pixels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the input of the model.

        Args:
            pixels: `(batch, 3, height, width)` in [0, 1].
            size: `(height, width)` of the input in pixels; None: that of the view.
        """
        rules = self.rules
        if self.by_processor:
            return self._from_processor(pixels, size or tuple(pixels.shape[-2:]))
        if size is not None and tuple(pixels.shape[-2:]) != tuple(size):
            pixels = resize_as_pillow(pixels, size, rules.resample) if rules.as_pillow else resize(pixels, size)
        pixels = normalize(pixels, rules.image_mean, rules.image_std)
        return pixels.flip(1) if rules.channel_order == "bgr" else pixels

    def undo(self, pixels: Tensor) -> Tensor:
        """Return the values in [0, 1] of pixels `(batch, channels, height, width)`: of uint8, or of what the processor
        made.

        Raises:
            UserError: The processor does more than a scaling of each channel.
        """
        if self.by_processor and pixels.dtype != torch.uint8:
            raise UserError(
                f"The pixels that a {type(self.processor).__name__} made cannot be turned back into an image: give "
                "the teacher views of its own (teacher_view_size), or 8-bit views."
            )
        if pixels.dtype != torch.uint8 and self.rules.channel_order == "bgr":
            pixels = pixels.flip(1)
        return to_unit_range(pixels, self.rules.image_mean, self.rules.image_std)

    def describe(self, size: tuple[int, int] | None, view_size: tuple[int, int] | None) -> dict[str, Any]:
        """Return what distinguishes the pixels from those of a mean, a standard deviation and a size alone.

        It is empty for the usual case, so that fingerprints of earlier versions stay valid. The filter is in it only if
        views of `view_size` are resized to `size`, or may be, because `view_size` is None.
        """
        rules = self.rules
        if self.by_processor:
            fields = {name: str(value) for name, value in processor_fields(self.processor).items()}
            return {"processor": dict(sorted(fields.items()))}
        found: dict[str, Any] = {} if rules.channel_order == "rgb" else {"channel_order": rules.channel_order}
        if size is None or view_size == size:
            return found
        if rules.resample != DEFAULT_FILTER or (rules.as_pillow and view_size is not None):
            found["resample"] = f"{rules.resample}, {'two rounded passes' if rules.as_pillow else 'one pass'}"
        return found

    # ---- the processor itself ----

    def _check_processor(self, whose: str) -> None:
        size = self.input_size((_COLOUR_SIDE, _COLOUR_SIDE)) or (_COLOUR_SIDE, _COLOUR_SIDE)
        kind = type(self.processor).__name__
        try:
            pixels = self._from_processor(torch.zeros(2, 3, _COLOUR_SIDE, _COLOUR_SIDE), size)
        except Exception as error:  # every class fails in its own way
            raise UserError(
                f"{whose} image processor ({kind}) cannot be used on views: {error} Its fields that are not "
                f"supported: {', '.join(self.rules.beyond) or 'none by name'}. Give a model with another image "
                "processor."
            ) from error
        if tuple(pixels.shape) != (2, 3, *size):
            raise UserError(
                f"{whose} image processor ({kind}) makes pixel_values of shape {tuple(pixels.shape)} of 2 views, "
                f"and a teacher takes (batch, 3, height, width) here, {(2, 3, *size)}. Fields: "
                f"{', '.join(self.rules.beyond) or 'the usual ones'}."
            )

    def _from_processor(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        images = pixels.float().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        made = whole_views(self.processor, [Image.fromarray(image) for image in images], size)
        if made is None:
            raise UserError(
                f"a view of {tuple(pixels.shape[-2:])} pixels cannot be resized to {size} by it without a crop "
                "(size, do_center_crop)."
            )
        return made.to(pixels.device, torch.float32)


# For pixels that no image processor changes; one number serves any number of channels.
UNCHANGED = PixelPipeline(PixelRules(image_mean=(0.0,), image_std=(1.0,)))


def _shown(names: tuple[str, ...], fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={fields.get(name)!r}"[:80] for name in names)


def _pixel_values(processor: Any, images: list[Image.Image], **kwargs: Any) -> Tensor:
    return torch.as_tensor(processor(images, return_tensors="pt", **kwargs)["pixel_values"])


def evaluation_processor(pipeline: PixelPipeline, image_size: int | tuple[int, int], crop_ratio: float) -> Any:
    """Return an image processor of the evaluation protocol (shorter edge, centre crop) that keeps the pixel rules of
    weights.

    It is a `DeiTImageProcessor` with an equivalent mean and standard deviation. For weights that take blue first, it is
    a processor of their own class.

    Args:
        pipeline: Of the weights' own image processor.
        image_size: Size of the input in pixels: one number or `(height, width)`.
        crop_ratio: Share of the resized image that the centre crop keeps.

    Raises:
        UserError: The processor does more than a scaling of each channel.
        ValueError: The size or the ratio is out of range.
    """
    rules, own = pipeline.rules, pipeline.processor
    mean, std = list(rules.image_mean), list(rules.image_std)
    plain = DeiTImageProcessor.for_image_size(image_size, crop_ratio, image_mean=mean, image_std=std)
    if pipeline.by_processor or (rules.channel_order == "bgr" and own is None):
        fields = ", ".join(rules.beyond) or ("do_flip_channel_order" if own is None else "fields without a name here")
        raise UserError(
            "The image processor of the weights does something that a student cannot be trained with here: "
            f"{fields}. Use weights with another image processor, or change preprocessor_config.json if the field "
            "has no effect."
        )
    if rules.channel_order == "rgb":
        return plain
    fields = {name: value for name, value in own.to_dict().items() if not name.endswith("_type")}
    changed = {name: getattr(plain, name) for name in ("size", "crop_size", "resample", "do_convert_rgb")}
    return type(own)(**{**fields, **changed, "do_resize": True, "do_center_crop": True})


def whole_views(processor: Any, images: list[Image.Image], size: tuple[int, int]) -> Tensor | None:
    """Return what a processor makes of entire images: its own crop is switched off.

    Args:
        processor: An image processor of transformers or timm.
        images: Images of one size.
        size: `(height, width)` that they become, in pixels.

    Returns:
        `(batch, channels, height, width)`; None if the processor cannot be brought to resize without cropping.
    """
    height, width = size
    timm = getattr(processor, "data_config", None)
    if isinstance(timm, Mapping):
        config = {**timm, "input_size": (3, height, width), "crop_pct": 1.0, "crop_mode": "squash"}
        return _pixel_values(type(processor)(config), images)
    known = set(getattr(processor, "_valid_kwargs_names", ("do_resize", "do_center_crop")))
    whole = {name: value for name, value in (("do_center_crop", False), ("crop_pct", 1.0)) if name in known}
    resized = {**whole, "do_resize": True, **({"do_pad": False} if "do_pad" in known else {})}
    ways = [whole, {**resized, "size": {"height": height, "width": width}}]
    if height == width and images[0].height == images[0].width:  # ConvNeXt's class takes nothing else
        ways.append({**resized, "size": {"shortest_edge": height}})
    for fields in ways:
        try:
            pixels = _pixel_values(processor, images, **fields)
        except Exception:  # this class takes other fields
            continue
        if tuple(pixels.shape[-2:]) == (height, width):
            return pixels
    return None


def compare_pixels(rules: PixelRules, processor: Any) -> str:
    """Compare rules with the processor that they are from, on plain colours and on a resized picture.

    Args:
        rules: From the fields of the processor.
        processor: The processor itself.

    Returns:
        What differs by more than the tolerance; "" if nothing does, or if the processor cannot be run, which is logged.
    """
    kind = type(processor).__name__
    try:
        images = [Image.new("RGB", (_COLOUR_SIDE, _COLOUR_SIDE), colour) for colour in _COLOURS]
        own = _pixel_values(processor, images)
    except Exception as error:  # every class fails in its own way
        logger.warning("The pixels could not be compared with those of %s itself, which fails: %s", kind, error)
        return ""
    if own.ndim != 4 or own.shape[:2] != (len(_COLOURS), 3):
        return f"pixel_values of shape {tuple(own.shape)}"
    pipeline = PixelPipeline(rules)
    colours = torch.tensor(_COLOURS, dtype=torch.float32)[:, :, None, None] / 255
    middle = own[:, :, own.shape[2] // 2, own.shape[3] // 2].float()
    expected = pipeline(colours)[:, :, 0, 0]
    gap = (middle - expected).abs().max().item()
    if not gap <= PIXEL_TOLERANCE * max(1.0, expected.abs().max().item()):
        return f"a plain colour differs by {gap:.3g} of a standard deviation"
    return _compare_resizing(pipeline, processor)


def _compare_resizing(pipeline: PixelPipeline, processor: Any) -> str:
    size = pipeline.rules.size
    if size is None:
        return ""
    view = _picture(tuple(side * 5 // 4 + 1 for side in size))
    own = whole_views(processor, [Image.fromarray(view)], size)
    if own is None:
        logger.warning("%s resizes in a way that could not be compared.", type(processor).__name__)
        return ""
    ours = pipeline(torch.from_numpy(view).permute(2, 0, 1)[None].float() / 255, size)
    levels = (pipeline.undo(own.float()) - pipeline.undo(ours)).abs() * 255
    mean, most = levels.mean().item(), levels.max().item()
    if mean <= RESIZED_MEAN and most <= RESIZED_MAXIMUM:
        return ""
    return (
        f"a resized view differs by {mean:.3g} of 255 levels in the mean and by {most:.3g} at most, "
        f"resample={pipeline.rules.resample!r}"
    )


def _picture(size: tuple[int, int]) -> np.ndarray:
    """Return a picture `(height, width, 3)` uint8 with edges at many distances and with smooth parts."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    blocks = np.random.default_rng(0).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    picture = blocks.repeat(5, 0).repeat(5, 1)[:height, :width]
    smooth = 127 + 120 * np.stack([np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + columns) / 11)], axis=-1)
    return np.where((rows < height // 2)[..., None], picture, smooth).astype(np.uint8)
