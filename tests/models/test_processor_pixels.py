"""The quick pixels of an image processor are those of the processor, bit for bit, or the processor itself computes them."""

import pickle

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_deit import DeiTImageProcessor
from hf_deit.models.processor_pixels import pixel_function

SIZES = ((500, 375), (375, 500), (100, 100), (37, 211), (20, 900), (224, 224), (257, 256))


def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def is_quick(function) -> bool:
    return type(function).__name__ == "_QuickPixels"


def assert_same_pixels(processor, function):
    for image in pictures():
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        found = function(image)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), image.size


@pytest.mark.parametrize(
    "processor",
    [
        DeiTImageProcessor(),
        DeiTImageProcessor.for_image_size(96),
        DeiTImageProcessor.for_image_size((48, 80), crop_ratio=1.0),
        DeiTImageProcessor(size=256, crop_size=300),
        DeiTImageProcessor(size={"shortest_edge": 100}),
        DeiTImageProcessor(resample=Image.Resampling.BILINEAR, image_mean=[0.5] * 3, image_std=[0.25] * 3),
        DeiTImageProcessor(do_normalize=False),
        DeiTImageProcessor(do_rescale=False),
        DeiTImageProcessor(do_resize=False),
        DeiTImageProcessor(do_center_crop=False),
    ],
    ids=["224", "96", "rectangle", "padded", "small", "mean", "unnormalised", "unscaled", "unresized", "uncropped"],
)
def test_pixels_of_our_processor(processor):
    function = pixel_function(processor)
    assert is_quick(function)
    assert_same_pixels(processor, function)


@pytest.mark.parametrize("name", ["ViT", "CLIP", "Bit", "EfficientNet", "Siglip"])
def test_pixels_of_processors_of_transformers(name):
    processor = getattr(transformers, f"{name}ImageProcessorPil")()
    function = pixel_function(processor)
    assert is_quick(function)
    assert_same_pixels(processor, function)


def test_a_processor_with_steps_of_its_own_computes_its_pixels():
    class Inverting(transformers.ViTImageProcessorPil):
        def resize(self, image, *args, **kwargs):
            return 255 - super().resize(image, *args, **kwargs)

    for processor in (
        Inverting(),
        transformers.ConvNextImageProcessorPil(),
        DeiTImageProcessor(do_convert_rgb=False),
        transformers.ViTImageProcessorPil(size={"longest_edge": 64}),
    ):
        function = pixel_function(processor)
        assert not is_quick(function)
        with pytest.MonkeyPatch.context() as patch:
            seen = []
            patch.setattr(
                type(processor),
                "__call__",
                lambda self, image, seen=seen, **k: seen.append(image) or {"pixel_values": [1]},
            )
            assert function("an image") == 1
            assert seen == ["an image"]


@pytest.mark.parametrize("processor", [DeiTImageProcessor.for_image_size(32), transformers.ConvNextImageProcessorPil()])
def test_a_worker_process_gets_the_function_by_pickle(processor):
    function = pickle.loads(pickle.dumps(pixel_function(processor)))
    assert_same_pixels(processor, function)
