"""Pixels of image processors of transformers: those computed here against those of the processors themselves."""

import logging

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from hf_deit.data.batch_ops import resize_as_pillow
from hf_deit.data.pixel_pipeline import PixelPipeline, compare_pixels, evaluation_processor
from hf_deit.errors import UserError
from hf_deit.models.pixel_rules import PixelRules, pixel_rules


def square(side):
    return {"height": side, "width": side}


# Class, fields that are not its defaults, fields of the call that give the entire view its input size, and that size.
CASES = {
    "ViT": ("ViT", {"size": {"height": 24, "width": 20}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}, {}, (24, 20)),
    "ViT without normalisation": ("ViT", {"size": square(24), "do_normalize": False, "resample": 0}, {}, (24, 24)),
    "DeiT": (
        "DeiT",
        {"size": square(36), "crop_size": square(24), "resample": 1, "image_std": [0.2, 0.3, 0.4]},
        {"size": square(24)},
        (24, 24),
    ),
    "BEiT": (
        "Beit",
        {
            "size": square(36),
            "crop_size": square(28),
            "do_center_crop": True,
            "resample": 5,
            "rescale_factor": 1 / 127.5,
        },
        {"size": square(28)},
        (28, 28),
    ),
    "ConvNeXt": (
        "ConvNext",
        {"size": {"shortest_edge": 24}, "crop_pct": 0.7, "resample": 2},
        {"crop_pct": 1.0},
        (24, 24),
    ),
    "ConvNeXt of ResNet, warped": ("ConvNext", {"size": {"shortest_edge": 384}, "do_rescale": False}, {}, (384, 384)),
    "EfficientNet": (
        "EfficientNet",
        {"size": square(24), "rescale_offset": True, "rescale_factor": 1 / 127.5, "image_std": [0.4, 0.5, 0.6]},
        {},
        (24, 24),
    ),
    "EfficientNet, second normalisation alone": (
        "EfficientNet",
        {"size": square(24), "do_normalize": False, "include_top": True, "image_std": [0.2, 0.3, 0.4]},
        {},
        (24, 24),
    ),
    "EfficientNet without it": (
        "EfficientNet",
        {"size": square(24), "include_top": False, "resample": 4},
        {},
        (24, 24),
    ),
    "MobileViT": (
        "MobileViT",
        {"size": {"shortest_edge": 36}, "crop_size": square(24)},
        {"size": square(24)},
        (24, 24),
    ),
    "MobileViT that is told to normalise, and does not": (
        "MobileViT",
        {"size": square(24), "do_center_crop": False, "do_normalize": True, "do_flip_channel_order": False},
        {},
        (24, 24),
    ),
    "MobileNetV2": ("MobileNetV2", {"size": {"shortest_edge": 28}, "do_center_crop": False}, {}, (28, 35)),
    "LeViT": ("Levit", {"size": {"shortest_edge": 28}, "do_center_crop": False}, {}, (32, 40)),
    "Swin's ViT, pixels from 0 to 255": (
        "ViT",
        {"size": square(24), "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [50.0, 60.0, 70.0]},
        {},
        (24, 24),
    ),
    "SigLIP": ("Siglip", {"size": square(24), "resample": 2, "image_mean": 0.4, "image_std": 0.3}, {}, (24, 24)),
    "CLIP": (
        "CLIP",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 20}},
        {"size": {"height": 24, "width": 20}},
        (24, 20),
    ),
    "DINOv2's Bit": ("Bit", {"size": {"shortest_edge": 28}, "do_center_crop": False, "resample": 1}, {}, (28, 35)),
    "PoolFormer": ("PoolFormer", {"size": square(28), "do_center_crop": False, "crop_pct": 0.7}, {}, (40, 50)),
    "PVT": ("Pvt", {"size": square(24), "do_rescale": False, "do_normalize": False}, {}, (24, 24)),
    "Perceiver": ("Perceiver", {"size": square(24), "crop_size": square(40)}, {}, (24, 24)),
    "SegFormer": ("Segformer", {"size": square(24), "do_reduce_labels": True}, {}, (24, 24)),
}
# What the processor itself has to compute.
BY_PROCESSOR = {
    "padding": ("ViT", {"size": square(20), "do_pad": True, "pad_size": square(24)}, {}, (24, 24)),
    "a multiple of 32": ("TextNet", {"size": {"shortest_edge": 40}}, {}, (64, 64)),
    "a multiple of 16 that keeps the aspect": (
        "DPT",
        {"size": square(40), "ensure_multiple_of": 16, "keep_aspect_ratio": True},
        {},
        (32, 32),
    ),
}


def processor_of(kind, fields):
    for suffix in ("Pil", ""):
        if hasattr(hf, f"{kind}ImageProcessor{suffix}"):
            return getattr(hf, f"{kind}ImageProcessor{suffix}")(**fields)
    raise AssertionError(kind)


def photograph(height=48, width=60, seed=0):
    """A picture with a natural fall of frequencies and some sharp edges, `(height, width, 3)` uint8."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    spectrum = generator.normal(size=(3, height, width)) + 1j * generator.normal(size=(3, height, width))
    waves = np.fft.ifft2(spectrum * falling).real.transpose(1, 2, 0)
    picture = (128 + 60 * waves / waves.std()).clip(0, 255).astype(np.uint8)
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 3, 90)
    return picture


def unit(picture):
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def own_pixels(processor, picture, **fields):
    known = set(processor._valid_kwargs_names)
    fields = {name: value for name, value in {"do_center_crop": False, **fields}.items() if name in known}
    return torch.as_tensor(processor(Image.fromarray(picture), return_tensors="pt", **fields)["pixel_values"]).float()


@pytest.mark.parametrize("name", CASES)
def test_the_pixels_of_a_view_are_those_of_the_processor_itself(name, caplog):
    kind, fields, call, size = CASES[name]
    try:
        processor = processor_of(kind, fields)
    except ImportError as error:  # transformers 5.17 has some classes with torchvision only
        pytest.skip(str(error).strip().partition("\n")[0])
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        pipeline = PixelPipeline.from_processor(processor, "The teacher's")
    assert not pipeline.by_processor and not caplog.text

    picture = photograph()  # without resizing: to a thousandth of a standard deviation
    same = own_pixels(processor, picture, do_resize=False)
    assert (pipeline(unit(picture)) - same).abs().max() <= 1e-3 * max(1, same.abs().max() / 255)
    if name.startswith("ConvNeXt") or size[0] == size[1]:
        picture = photograph(50, 50)  # a class that crops by itself sees all of a square view only
    assert pipeline.input_size(picture.shape[:2]) == size
    own = own_pixels(processor, picture, **call)
    assert tuple(own.shape[-2:]) == size
    gap = (pipeline(unit(picture), size) - own).abs()
    assert gap.mean() <= 1e-2 and gap.max() <= 3e-2
    back = pipeline.undo(own)
    assert torch.allclose(pipeline(back), own, atol=1e-3)


@pytest.mark.parametrize("name", BY_PROCESSOR)
def test_what_cannot_be_expressed_is_computed_by_the_processor_itself_and_logged(name, caplog):
    kind, fields, call, size = BY_PROCESSOR[name]
    processor = processor_of(kind, fields)
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        pipeline = PixelPipeline.from_processor(processor, "The teacher's")
    assert pipeline.by_processor
    assert any(field in caplog.text for field in ("do_pad", "size_divisor", "ensure_multiple_of"))
    picture = photograph(50, 50)
    assert pipeline.input_size((50, 50)) == size
    assert torch.equal(pipeline(unit(picture), size), own_pixels(processor, picture, **call))
    with pytest.raises(UserError, match=type(processor).__name__):
        pipeline.undo(unit(picture))
    with pytest.raises(UserError, match="image_mean"):
        pipeline.with_normalization(image_mean=(0.5,) * 3)
    with pytest.raises(UserError):
        evaluation_processor(pipeline, 32, 0.875)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("Siglip2", {}, "max_num_patches"),
        ("Gemma3", {"do_pan_and_scan": True}, "do_pan_and_scan"),
        ("ImageGPT", {"clusters": [[0.0] * 3, [1.0] * 3], "do_color_quantize": True}, "clusters"),
    ],
)
def test_a_processor_that_makes_no_images_is_refused_by_its_fields(kind, fields, named):
    with pytest.raises(UserError, match=named):
        PixelPipeline.from_processor(processor_of(kind, fields), "The teacher's")


class Inverting(hf.ViTImageProcessorPil):
    """Does what none of its fields states."""

    def normalize(self, image, mean, std, **kwargs):
        return -super().normalize(image, mean, std, **kwargs)


class Blurring(hf.ViTImageProcessorPil):
    def resize(self, image, size, resample=None, **kwargs):
        return super().resize(super().resize(image, hf.image_utils.SizeDict(height=9, width=9)), size, resample)


@pytest.mark.parametrize("kind", [Inverting, Blurring])
def test_the_check_at_the_start_finds_what_no_field_states(kind, caplog):
    processor = kind(size=square(24))
    assert compare_pixels(pixel_rules({"size": 24, "image_mean": 0.5, "image_std": 0.5, "resample": 2}), processor)
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        pipeline = PixelPipeline.from_processor(processor, "The teacher's")
    assert kind.__name__ in caplog.text and "slower" in caplog.text
    picture = photograph()
    assert torch.equal(pipeline(unit(picture), (24, 24)), own_pixels(processor, picture))


@pytest.mark.parametrize(
    ("field", "value"),
    [("do_flip_channel_order", True), ("resample", 0), ("rescale_factor", 1 / 127.5), ("include_top", True)],
)
def test_the_check_finds_a_field_that_was_left_out(field, value):
    fields = {"size": square(24), "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "include_top": False}
    changed = {**fields, field: value}
    kind = "MobileViT" if field == "do_flip_channel_order" else "EfficientNet"
    known = {name: value for name, value in changed.items() if kind != "MobileViT" or name != "include_top"}
    processor = processor_of(kind, known | ({"do_center_crop": False} if kind == "MobileViT" else {}))
    rules = {**fields, "image_processor_type": kind}
    assert compare_pixels(pixel_rules({**changed, "image_processor_type": kind}), processor) == ""
    assert compare_pixels(pixel_rules(rules), processor)


def test_fields_without_a_class_are_used_and_unknown_ones_are_refused(caplog):
    fields = {
        "image_processor_type": "NoSuchImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": 24,
    }
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        pipeline = PixelPipeline.from_processor(fields, "The teacher's")
    assert "NoSuchImageProcessor" in caplog.text
    assert pipeline.rules.size == (24, 24)
    with pytest.raises(UserError, match="do_solarize=True"):
        PixelPipeline.from_processor({**fields, "do_solarize": True}, "The teacher's")


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
@pytest.mark.parametrize(
    ("before", "after"), [((40, 30), (24, 24)), ((24, 24), (50, 37)), ((87, 31), (19, 76)), ((9, 9), (1, 2))]
)
def test_every_filter_gives_pillows_own_pixels(resample, before, after):
    picture = photograph(*before)
    expected = Image.fromarray(picture).resize(after[::-1], Image.Resampling[resample.upper()])
    pixels = resize_as_pillow(unit(picture), after, resample)
    found = (pixels * 255).round().byte()[0].permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(found - np.asarray(expected))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001


def test_a_view_of_its_size_is_not_rounded_and_half_precision_changes_nothing():
    mixed = torch.rand(2, 3, 24, 24)
    assert torch.equal(resize_as_pillow(mixed, (24, 24), "bicubic"), mixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = resize_as_pillow(mixed, (16, 20), "lanczos")
    assert torch.equal(inside, resize_as_pillow(mixed, (16, 20), "lanczos"))


@pytest.mark.parametrize("kind", ["MobileViT", "EfficientNet", "ViT"])
def test_the_processor_of_a_student_keeps_the_pixel_rules_of_its_weights(kind, tmp_path):
    fields = {"EfficientNet": {"rescale_offset": True, "rescale_factor": 1 / 127.5}, "ViT": {"do_normalize": False}}
    pipeline = PixelPipeline.from_processor(processor_of(kind, fields.get(kind, {})), "The student's")
    built = evaluation_processor(pipeline, (32, 24), 0.8)
    built.save_pretrained(tmp_path)
    saved = type(built).from_pretrained(tmp_path)
    picture = photograph(90, 70)
    size = int(32 / 0.8)
    resized = Image.fromarray(picture).resize((size, size * 90 // 70), Image.Resampling.BICUBIC)
    left, top = (resized.width - 24) // 2, (resized.height - 32) // 2
    view = np.asarray(resized.crop((left, top, left + 24, top + 32)))
    own = saved(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(own), pipeline(unit(view)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std"),
        ({"image_mean": ["a", 1, 1]}, "image_mean"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean"),
        ({"image_mean": [0.5] * 2}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"size": "large"}, "size"),
    ],
)
def test_an_impossible_value_is_refused_by_its_field(fields, named):
    with pytest.raises(UserError, match=named):
        pixel_rules(fields)


@pytest.mark.parametrize("value", [9, "cubic", -1])
def test_an_unknown_filter_is_named_as_beyond_the_rules(value):
    assert pixel_rules({"resample": value}).beyond == ("resample",)


def test_plain_rules_are_to_the_last_bit_what_the_file_states():
    rules = pixel_rules(
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 0.00392156862745098}
    )
    assert (rules.image_mean, rules.image_std) == (PixelRules().image_mean, PixelRules().image_std)
    assert PixelPipeline(rules).describe((24, 24), (24, 24)) == {}


def test_timms_settings_are_read_with_timms_defaults():
    rules = pixel_rules(
        {"pretrained_cfg": {"input_size": [3, 64, 48], "mean": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 0.9}}
    )
    assert (rules.size, rules.image_mean, rules.resample) == ((64, 48), (0.5, 0.5, 0.5), "bilinear")
    assert rules.image_std == PixelRules().image_std
    assert pixel_rules({"pretrained_cfg": {"architecture": "x"}}).size == (224, 224)
