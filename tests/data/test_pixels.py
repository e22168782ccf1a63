"""Normalising and its inverse, and resizing compared with Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_deit.data.batch_ops import normalize, resize, to_unit_range

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_uint8(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_eight_bit_pixels_are_divided_by_255_independent_of_mean_and_std():
    pixels = random_uint8(2, 3, 5, 7)
    expected = torch.from_numpy(np.asarray(pixels, dtype=np.float64) / 255).float()
    for mean, std in ((MEAN, STD), ((0.0,) * 3, (1.0,) * 3)):
        unit = to_unit_range(pixels, mean, std)
        assert unit.dtype == torch.float32
        torch.testing.assert_close(unit, expected)


def test_normalising_follows_the_formula_for_each_channel():
    unit = to_unit_range(random_uint8(2, 3, 5, 7), MEAN, STD)
    expected = (unit.numpy().transpose(0, 2, 3, 1).astype(np.float64) - MEAN) / STD
    np.testing.assert_allclose(normalize(unit, MEAN, STD), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_normalised_floats_are_converted_back_to_the_eight_bit_pixels():
    pixels = random_uint8(2, 3, 5, 7)
    unit = to_unit_range(pixels, MEAN, STD)
    back = to_unit_range(normalize(unit, MEAN, STD), MEAN, STD)
    torch.testing.assert_close(back, unit, rtol=0, atol=1e-6)
    assert torch.equal((back * 255).round().to(torch.uint8), pixels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_floats_of_any_precision_become_single_precision(dtype, tolerance):
    unit = to_unit_range(random_uint8(2, 3, 5, 7), MEAN, STD)
    back = to_unit_range(normalize(unit, MEAN, STD).to(dtype), MEAN, STD)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, unit, rtol=0, atol=tolerance)


def test_one_mean_and_std_apply_to_every_channel():
    unit = to_unit_range(random_uint8(2, 3, 5, 7), 0.5, 0.5)
    torch.testing.assert_close(normalize(unit, 0.5, 0.25), normalize(unit, [0.5] * 3, [0.25] * 3))
    torch.testing.assert_close(to_unit_range(normalize(unit, 0.5, 0.25), 0.5, 0.25), unit)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_has_its_own_mean_and_std(channels):
    unit = to_unit_range(random_uint8(2, channels, 3, 3), 0.0, 1.0)
    mean, std = [0.1 * (channel + 1) for channel in range(channels)], [0.5 + channel for channel in range(channels)]
    for channel in range(channels):
        expected = (unit[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(normalize(unit, mean, std)[:, channel], expected)


def test_the_input_is_not_changed():
    pixels = normalize(to_unit_range(random_uint8(2, 3, 8, 8), MEAN, STD), MEAN, STD)
    before = pixels.clone()
    resize(normalize(to_unit_range(pixels, MEAN, STD), MEAN, STD), (4, 4))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (100, 90), (7, 5), (64, 32)])
def test_resizing_is_pillows_bicubic_up_to_rounding(size):
    """Pillow rounds (and clips) to 8 bits after each of its two passes; the greys here are too few to be clipped."""
    pixels = 80 + random_uint8(2, 3, 64, 48, seed=3) // 3
    resized = resize(pixels.float() / 255, size)
    assert resized.shape == (2, 3, *size)
    for image, ours in zip(pixels, resized, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        difference = np.abs(ours.permute(1, 2, 0).numpy() * 255 - np.asarray(pillow, dtype=np.float64))
        assert difference.max() < 1.6
        assert difference.mean() < 0.4


def test_resizing_stays_in_range_where_bicubic_overshoots():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    resized = resize(edge, (32, 32))
    assert resized.min() == 0
    assert resized.max() == 1
    raw = torch.nn.functional.interpolate(edge, size=(32, 32), mode="bicubic", antialias=True)
    assert raw.max() > 1.01, "without an overshoot, this test would prove nothing"


@pytest.mark.parametrize("size", [(8, 6), [8, 6], torch.Size([8, 6])])
def test_resizing_to_the_same_size_changes_nothing(size):
    pixels = torch.rand(2, 3, 8, 6)
    assert resize(pixels, size) is pixels


def test_a_flat_image_stays_flat():
    torch.testing.assert_close(resize(torch.full((1, 3, 9, 7), 0.3), (20, 4)), torch.full((1, 3, 20, 4), 0.3))
