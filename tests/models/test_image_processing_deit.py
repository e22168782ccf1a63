"""Tests of the image processor: the official protocol, saved files, and images of many modes and orientations.

The pixels are compared with plain Pillow and with stock transformers in a process without this package.
"""

import io
import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from hf_deit.models.image_processing_deit import (
    DeiTImageProcessor,
    evaluation_view,
    is_own_processor,
    published_fields,
    upright_rgb,
)
from hf_deit.models.loading import load_processor
from tests.helpers.processes import run_python

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Image sizes (height, width): very small, very oblong, odd, exactly 256 × 256, and ordinary.
SIZES = [(5, 3), (1, 1), (10, 400), (400, 10), (255, 257), (256, 256), (101, 97), (333, 500), (500, 375)]

# EXIF orientation → NumPy function that makes a stored image upright. They follow the table of rows and columns in the
# EXIF standard ("6: the 0th row is the visual right-hand side, the 0th column the visual top").
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_rgb(height, width, seed=0):
    return Image.fromarray(random_pixels(height, width, 3, seed=seed))


def reopened(image, file_format, **options):
    """Save an image in a file format and open it again."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def with_orientation(image, orientation, file_format="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return reopened(image, file_format, exif=exif)


def stock_rgb(image):
    """Convert an image to RGB with the stock processor, with all other steps switched off."""
    off = {f"do_{step}": False for step in ("resize", "center_crop", "rescale", "normalize")}
    pixels = DeiTImageProcessorPil(do_convert_rgb=True, **off)(image)["pixel_values"][0]
    return np.moveaxis(pixels, 0, -1)


def plain_pillow(image, shortest_edge, height, width):
    """Apply the official protocol (Resize, CenterCrop, ToTensor and Normalize of torchvision) with Pillow and NumPy."""
    size = [int(shortest_edge * side / min(image.size)) for side in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height))) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


def images_of_many_modes():
    """Return upright 8-bit images of many modes, by name."""
    palette = random_rgb(300, 280, seed=1).quantize(64)
    transparent_palette = reopened(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    two_colours = Image.fromarray(random_pixels(40, 30, 1, seed=9) % 2 * np.uint8([10, 20, 30]))
    return {
        "rgb": random_rgb(270, 301, seed=2),
        "small_rgb": random_rgb(7, 19, seed=3),
        "grey": Image.fromarray(random_pixels(300, 260, seed=4)),
        "palette": palette,
        "transparent_palette": transparent_palette,
        "transparent_colour": reopened(two_colours, "PNG", transparency=(10, 20, 30)),
        "rgba": Image.fromarray(random_pixels(260, 290, 4, seed=5)),
        "grey_alpha": Image.merge("LA", [Image.fromarray(random_pixels(64, 80, seed=seed)) for seed in (6, 7)]),
        "cmyk": Image.merge("CMYK", [Image.fromarray(random_pixels(90, 70, seed=seed)) for seed in (1, 2, 3, 4)]),
        "one_bit": Image.fromarray(random_pixels(280, 270, seed=8)).convert("1"),
    }


# The protocol


@pytest.mark.parametrize("size", SIZES)
def test_defaults_are_the_official_protocol(size):
    image = random_rgb(*size)
    pixels = DeiTImageProcessor()(image)["pixel_values"][0]
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, plain_pillow(image, 256, 224, 224), atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "crop_ratio", "shortest_edge", "crop"),
    [
        (384, 0.875, 438, (384, 384)),
        (32, 1.0, 32, (32, 32)),
        (64, 0.9, 71, (64, 64)),
        ((48, 80), 0.875, 91, (48, 80)),
        ([81, 49], 0.5, 162, (81, 49)),
    ],
)
def test_every_image_size_and_crop_ratio_gives_the_pixels_of_plain_pillow(image_size, crop_ratio, shortest_edge, crop):
    processor = DeiTImageProcessor.for_image_size(image_size, crop_ratio)
    for size in [(5, 3), (10, 100), (155, 203)]:
        image = random_rgb(*size)
        pixels = processor(image)["pixel_values"][0]
        np.testing.assert_allclose(pixels, plain_pillow(image, shortest_edge, *crop), atol=1e-6)


def test_the_shorter_edge_equals_that_of_the_official_code_for_every_image_size():
    # facebookresearch/deit datasets.py: size = int((256 / 224) * args.input_size)
    for image_size in range(1, 1025):
        processor = DeiTImageProcessor.for_image_size(image_size)
        assert processor.size["shortest_edge"] == int((256 / 224) * image_size)


def test_for_image_size_accepts_other_arguments_of_the_processor():
    processor = DeiTImageProcessor.for_image_size(32, image_mean=[0.5] * 3, image_std=[0.25] * 3, do_resize=False)
    assert processor.image_mean == (0.5, 0.5, 0.5)
    white = Image.new("RGB", (32, 32), "white")
    np.testing.assert_allclose(processor(white)["pixel_values"][0], 2.0)


@pytest.mark.parametrize("image_size", [224, 17, (96, 160), (65, 33)])
@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 1.0])
def test_evaluation_view_is_bit_equal_to_the_processor(image_size, crop_ratio):
    processor = DeiTImageProcessor.for_image_size(image_size, crop_ratio)
    for size in [*SIZES, (37, 20), (64, 31)]:
        image = random_rgb(*size)
        view = evaluation_view(image, image_size, crop_ratio)
        pixels = np.asarray(view)
        assert view.mode == "RGB"
        assert pixels.dtype == np.uint8
        assert pixels.shape[:2] == (image_size if isinstance(image_size, tuple) else (image_size, image_size))
        scaled = (pixels * (1 / 255)).astype(np.float32)
        normalised = (scaled - np.float32(MEAN)) / np.float32(STD)
        np.testing.assert_array_equal(processor(image)["pixel_values"][0], normalised.transpose(2, 0, 1))


def test_evaluation_view_reads_odd_images_like_the_processor():
    processor = DeiTImageProcessor.for_image_size(48, do_rescale=False, do_normalize=False)
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (60, 90), dtype=np.uint16))
    turned = with_orientation(random_rgb(60, 90), 6)
    for image in [*images_of_many_modes().values(), deep, turned]:
        view = np.moveaxis(np.asarray(evaluation_view(image, 48)), -1, 0)
        np.testing.assert_array_equal(processor(image)["pixel_values"][0], view)


# Saved files

READ_WITHOUT_US = """
import sys
import numpy as np
import transformers
from PIL import Image
from transformers.utils import is_torchvision_available

folder, target, *files = sys.argv[1:]
version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if is_torchvision_available():
    from transformers import AutoImageProcessor
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
elif version < (5, 18):  # before 5.18, the auto class cannot be imported without torchvision
    from transformers import BitImageProcessorPil
    processor = BitImageProcessorPil.from_pretrained(folder)
else:
    from transformers import AutoImageProcessor
    processor = AutoImageProcessor.from_pretrained(folder)
assert type(processor).__module__.startswith("transformers."), type(processor)
assert not any(name.startswith("hf_deit") for name in sys.modules)
np.savez(target, *[processor(Image.open(file))["pixel_values"][0] for file in files])
"""


def test_a_saved_processor_gives_the_same_pixels_in_a_process_without_this_package(tmp_path):
    processor = DeiTImageProcessor.for_image_size((224, 192), 0.9)
    processor.save_pretrained(tmp_path / "model")
    images = images_of_many_modes()
    files = [str(tmp_path / f"{name}.{'tiff' if name == 'cmyk' else 'png'}") for name in images]
    for image, file in zip(images.values(), files, strict=True):
        image.save(file)

    done = run_python(READ_WITHOUT_US, tmp_path / "model", tmp_path / "stock.npz", *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    theirs = np.load(tmp_path / "stock.npz")
    for position, (name, file) in enumerate(zip(images, files, strict=True)):
        ours = processor(Image.open(file))["pixel_values"][0]
        assert ours.shape == (3, 224, 192)
        np.testing.assert_array_equal(ours, theirs[f"arr_{position}"], err_msg=name)


def test_a_saved_file_names_the_stock_class_and_contains_all_settings(tmp_path):
    DeiTImageProcessor.for_image_size(384).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    expected = {
        "image_processor_type": "BitImageProcessor",
        "hf_deit_image_processor": "DeiTImageProcessor",
        "size": {"shortest_edge": 438},
        "crop_size": {"height": 384, "width": 384},
        "resample": 3,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    assert saved == expected


def test_a_saved_file_is_loaded_with_its_values(tmp_path):
    processor = DeiTImageProcessor.for_image_size((96, 160), 0.8, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    reloaded = DeiTImageProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is DeiTImageProcessor
    assert reloaded.to_dict() == processor.to_dict()


def test_the_package_finds_its_own_class_again_in_new_and_old_files_and_leaves_other_classes(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # 16 bits, which a stock class shows as white
    deep, processor = Image.fromarray(values), DeiTImageProcessor.for_image_size(32, 0.9, image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    # As saved; as stock saves it again; as version 0.1.0 wrote it.
    stock = {**fields, "image_processor_type": "BitImageProcessorFast"}
    old = {name: value for name, value in fields.items() if name != "hf_deit_image_processor"}
    for written in (fields, stock, {**old, "image_processor_type": "DeiTImageProcessor"}):
        file.write_text(json.dumps(written))
        loaded = load_processor(str(tmp_path))
        assert type(loaded) is DeiTImageProcessor and loaded.to_dict() == processor.to_dict()
        np.testing.assert_array_equal(loaded(deep)["pixel_values"][0], processor(deep)["pixel_values"][0])
    others = (
        {**old, "image_processor_type": "BitImageProcessor"},
        {**fields, "image_processor_type": "ViTImageProcessor"},
    )
    assert not any(map(is_own_processor, (*others, {})))


def test_a_file_of_an_earlier_version_is_published_as_one_of_today_and_others_as_they_are(tmp_path):
    processor = DeiTImageProcessor.for_image_size((32, 48), 0.9, image_mean=[0.5, 0.4, 0.3])
    today = json.loads(processor.to_json_string())
    old = {name: value for name, value in today.items() if name != "hf_deit_image_processor"}
    assert published_fields(old | {"image_processor_type": "DeiTImageProcessor"}) == today
    for other in (today, today | {"note": 1}, old, {"image_processor_type": "ViTImageProcessor", "size": 3}, {}):
        assert published_fields(other) == other
    with pytest.raises(ValueError):
        published_fields({"image_processor_type": "DeiTImageProcessor", "size": "large"})


def test_a_squash_to_a_size_is_saved_as_a_squash(tmp_path):
    # The default of a bare number is another one in each stock class, so the file states height and width.
    DeiTImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["size"], saved["crop_size"]) == ({"height": 40, "width": 40}, {"height": 32, "width": 32})
    image = random_rgb(61, 83)
    ours = DeiTImageProcessor(size=40, crop_size=32)(image)["pixel_values"][0]
    np.testing.assert_array_equal(BitImageProcessorPil.from_pretrained(tmp_path)(image)["pixel_values"][0], ours)


def test_a_file_of_stock_transformers_is_loaded_with_its_values(tmp_path):
    stock = DeiTImageProcessorPil(
        size={"height": 48, "width": 40}, resample=2, do_center_crop=False, image_mean=[0.1, 0.2, 0.3], do_rescale=False
    )
    stock.save_pretrained(tmp_path)
    ours = DeiTImageProcessor.from_pretrained(tmp_path)
    own = {"image_processor_type": "BitImageProcessor", "hf_deit_image_processor": "DeiTImageProcessor"}
    assert ours.to_dict() == {**stock.to_dict(), "do_convert_rgb": True, **own}
    image = random_rgb(61, 83)
    np.testing.assert_array_equal(ours(image)["pixel_values"][0], stock(image)["pixel_values"][0])


def test_an_old_hub_file_with_plain_numbers_is_read_as_in_stock_transformers(tmp_path):
    # The keys of facebook/deit-base-distilled-patch16-224.
    old = {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "do_resize": True,
        "size": 256,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    ours, stock = (cls.from_pretrained(tmp_path) for cls in (DeiTImageProcessor, DeiTImageProcessorPil))
    image = random_rgb(120, 300)
    np.testing.assert_array_equal(ours(image)["pixel_values"][0], stock(image)["pixel_values"][0])


# Odd images


@pytest.mark.parametrize("name", images_of_many_modes())
def test_an_upright_8_bit_image_is_converted_to_rgb_as_in_stock_transformers(name):
    image = images_of_many_modes()[name]
    rgb = upright_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", image.size)
    np.testing.assert_array_equal(np.asarray(rgb), stock_rgb(image))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_levels_are_repeated_over_the_channels(mode):
    image = Image.fromarray(random_pixels(9, 14)).convert(mode)
    grey = np.asarray(image) * (1 if mode == "L" else 255)
    np.testing.assert_array_equal(np.asarray(upright_rgb(image)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa", "La"])
def test_transparent_pixels_become_white_or_lose_alpha_and_opaque_pixels_keep_their_colour(mode):
    colour, alpha = random_pixels(12, 12, 3), np.full((12, 12), 255, np.uint8)
    alpha[:, 6:] = 0
    image = Image.merge("RGBA", [*Image.fromarray(colour).split(), Image.fromarray(alpha)])
    if mode == "P":
        indices = Image.fromarray(random_pixels(12, 12) % 8)
        indices.putpalette(colour.reshape(-1)[:24].tolist())
        image = reopened(indices, "PNG", transparency=bytes([255, 0] * 4))
        alpha = np.where(np.asarray(indices) % 2, 0, 255)
        colour = colour.reshape(-1, 3)[np.asarray(indices)]
    elif mode in ("LA", "La"):
        grey = Image.fromarray(colour[..., 0])
        image = Image.merge("LA", [grey, Image.fromarray(alpha)])
        colour = np.stack([colour[..., 0]] * 3, axis=-1)
    if mode in ("La", "RGBa"):
        image = image.convert(mode)
    pixels = np.asarray(upright_rgb(image))
    assert pixels.shape == (12, 12, 3)
    np.testing.assert_array_equal(pixels[alpha == 255], colour[alpha == 255])
    hidden = pixels[alpha == 0]
    # Premultiplied transparent pixels have lost their colour and are black.
    shown = np.zeros_like(hidden) if mode in ("La", "RGBa") else colour[alpha == 0]
    assert (hidden == 255).all() or (hidden == shown).all()


def test_cmyk_jpeg_keeps_its_colours():
    rows, columns = np.mgrid[0:40, 0:56]
    colours = np.stack([rows * 5, columns * 4, 200 - rows * 3], axis=-1).astype(np.uint8)
    image = reopened(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=98)
    assert image.mode == "CMYK"
    pixels = np.asarray(upright_rgb(image)).astype(int)
    assert pixels.shape == (40, 56, 3)
    assert np.abs(pixels - colours).mean() < 3


def test_a_16_bit_png_is_scaled_and_does_not_become_white():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = reopened(Image.fromarray(values), "PNG")
    expected = [round(int(value) / 257) for value in values.reshape(-1)]
    pixels = np.asarray(upright_rgb(image))
    np.testing.assert_array_equal(pixels.reshape(-1, 3), np.stack([expected] * 3, axis=-1))
    processor = DeiTImageProcessor(do_rescale=False, do_normalize=False)
    assert 120 < processor(image)["pixel_values"][0].mean() < 135


@pytest.mark.parametrize("kind", ["I;16", "I;16L", "I;16B", "I", "PGM", "TIFF"])
def test_every_16_bit_mode_and_format_is_scaled(kind):
    values = np.random.default_rng(0).integers(0, 65536, (6, 11), dtype=np.uint16)
    if kind == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif kind in ("PGM", "TIFF"):
        image = reopened(Image.fromarray(values), {"PGM": "PPM"}.get(kind, kind))
    else:
        image = Image.frombytes(kind, (11, 6), values.astype(">u2" if kind == "I;16B" else "<u2").tobytes())
    np.testing.assert_array_equal(np.asarray(upright_rgb(image))[..., 1], np.round(values / 257))


def test_8_bit_values_in_a_wider_mode_are_unchanged():
    grey = random_pixels(6, 11)
    for mode in ("I", "F"):
        np.testing.assert_array_equal(np.asarray(upright_rgb(Image.fromarray(grey).convert(mode)))[..., 0], grey)


def test_float_fractions_are_scaled_to_255():
    fractions = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    pixels = np.asarray(upright_rgb(Image.fromarray(fractions)))
    np.testing.assert_array_equal(pixels[..., 2], np.round(fractions * 255))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone_once(orientation, file_format):
    stored = random_pixels(4, 7, 3)
    options = {"lossless": True} if file_format == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright_rgb(reopened(Image.fromarray(stored), file_format, exif=exif, **options))
    for converted in (image, upright_rgb(image), ImageOps.exif_transpose(image)):
        np.testing.assert_array_equal(np.asarray(converted), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_of_another_mode_is_made_upright_and_converted(orientation):
    values = np.random.default_rng(0).integers(0, 65536, (4, 7), dtype=np.uint16)
    pixels = np.asarray(upright_rgb(with_orientation(Image.fromarray(values), orientation)))
    np.testing.assert_array_equal(pixels[..., 0], UPRIGHT[orientation](np.round(values / 257)))

    palette = images_of_many_modes()["transparent_palette"]
    pixels = np.asarray(upright_rgb(with_orientation(palette, orientation)))
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](stock_rgb(palette)))


def test_the_processor_makes_a_turned_jpeg_upright():
    rows, columns = np.mgrid[0:60, 0:90]
    stored = np.stack([rows * 4, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    processor = DeiTImageProcessor.for_image_size(32, do_rescale=False, do_normalize=False)
    for orientation, upright in UPRIGHT.items():
        turned = processor(with_orientation(Image.fromarray(stored), orientation, "JPEG"))["pixel_values"][0]
        straight = processor(Image.fromarray(np.ascontiguousarray(upright(stored))))["pixel_values"][0]
        assert np.abs(turned.astype(int) - straight).mean() < 2


def test_an_image_with_damaged_exif_data_is_unchanged():
    stored = random_pixels(4, 7, 3)
    for damaged in (b"Exif\0\0garbage!!", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        image = reopened(Image.fromarray(stored), "PNG", exif=damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about some damaged EXIF blocks
            np.testing.assert_array_equal(np.asarray(upright_rgb(image)), stored)


def test_upright_rgb_image_is_not_copied():
    image = random_rgb(5, 4)
    assert upright_rgb(image) is image
    assert upright_rgb(with_orientation(image, 6)) is not image


# Inputs of the processor


def test_a_list_of_different_images_becomes_one_batch():
    images = [*images_of_many_modes().values(), with_orientation(random_rgb(40, 30), 8)]
    processor = DeiTImageProcessor.for_image_size(32)
    batch = processor(images, return_tensors="pt")["pixel_values"]
    assert batch.shape == (len(images), 3, 32, 32)
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row.numpy(), processor(image)["pixel_values"][0])


def test_a_file_name_gives_the_same_pixels_as_the_image(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    images_of_many_modes()["rgba"].save(tmp_path / "alpha.png")
    processor = DeiTImageProcessor.for_image_size(32)
    files = [tmp_path / "deep.png", tmp_path / "alpha.png"]
    by_name = processor([str(file) for file in files])["pixel_values"]
    for pixels, file in zip(by_name, files, strict=True):
        np.testing.assert_array_equal(pixels, processor(Image.open(file))["pixel_values"][0])


def test_arrays_and_tensors_are_processed_as_in_stock_transformers():
    torch = pytest.importorskip("torch")
    settings = {"size": {"shortest_edge": 36}, "crop_size": 32, "do_convert_rgb": True}
    ours = DeiTImageProcessor(**settings, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    stock = DeiTImageProcessorPil(**settings)
    array = random_pixels(40, 50, 3)
    for image in (array, torch.from_numpy(array).permute(2, 0, 1)):
        np.testing.assert_array_equal(ours(image)["pixel_values"][0], stock(image)["pixel_values"][0])


def test_without_conversion_the_image_keeps_its_mode_and_is_made_upright():
    stored = random_pixels(4, 7)
    steps = {f"do_{step}": False for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    pixels = DeiTImageProcessor(**steps)(with_orientation(Image.fromarray(stored), 6))["pixel_values"][0]
    np.testing.assert_array_equal(pixels, UPRIGHT[6](stored)[None])


# Errors


@pytest.mark.parametrize("image_size", [0, -224, 224.0, "224", True, (224,), (224, 0), (1, 2, 3), None])
def test_an_invalid_image_size_raises_an_error(image_size):
    with pytest.raises(ValueError, match=re.escape(f"image_size={image_size!r}")):
        DeiTImageProcessor.for_image_size(image_size)
    with pytest.raises(ValueError, match=re.escape(f"image_size={image_size!r}")):
        evaluation_view(random_rgb(4, 4), image_size)


@pytest.mark.parametrize("crop_ratio", [0, -0.5, 1.01, float("nan"), "0.9", None])
def test_an_invalid_crop_ratio_raises_an_error(crop_ratio):
    with pytest.raises(ValueError, match=re.escape(f"crop_ratio={crop_ratio!r}")):
        DeiTImageProcessor.for_image_size(224, crop_ratio)
    with pytest.raises(ValueError, match=re.escape(f"crop_ratio={crop_ratio!r}")):
        evaluation_view(random_rgb(4, 4), 224, crop_ratio)


def test_a_size_in_addition_to_image_size_raises_an_error():
    with pytest.raises(ValueError, match="crop_size and size.*image_size=224"):
        DeiTImageProcessor.for_image_size(224, size={"shortest_edge": 300}, crop_size=200)


@pytest.mark.parametrize("not_an_image", [np.zeros((4, 4, 3), np.uint8), "photo.jpg", None])
def test_upright_rgb_of_another_object_raises_an_error(not_an_image):
    with pytest.raises(TypeError, match=rf"PIL\.Image\.Image.*{type(not_an_image).__name__}"):
        upright_rgb(not_an_image)


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[-0.5, 0.5]]),
        np.float32([[0, 40000]]),
        np.float32([[0, np.nan]]),
        np.int32([[-1, 5]]),
        np.int32([[0, 70000]]),
    ],
)
def test_values_outside_the_known_ranges_raise_an_error(values):
    image = Image.fromarray(values)
    with pytest.raises(ValueError, match=f"mode {image.mode} .*{values.min():g} to {values.max():g}"):
        upright_rgb(image)
