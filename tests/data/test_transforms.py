"""Pixels of the operations compared with NumPy and Pillow, and draws of the policies with their definitions."""

import math
import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from hf_deit.data import transforms
from hf_deit.data.transforms import RANDAUGMENT, THREE_AUGMENT, TRIVIALAUGMENT

DRAWS = 10_000
GREY = (124, 116, 104)
SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def picture(height=40, width=56, seed=0):
    """Return an image of smoothly varying colours with noise. No channel is flat, and its values cover a wide range."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 200, width)[None, :, None] * np.array([1.0, 0.7, 0.5]) + np.arange(height)[:, None, None]
    return Image.fromarray(np.clip(ramp + rng.normal(0, 15, (height, width, 3)), 0, 255).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


def near(share, expected, count=DRAWS, deviations=4.5):
    """Return whether a share of `count` draws is within `deviations` standard deviations of a probability."""
    return abs(share - expected) <= deviations * math.sqrt(expected * (1 - expected) / count)


def distance(values, distribution):
    """Return the Kolmogorov-Smirnov distance as a multiple of the one exceeded with a probability of 1/1,000."""
    values = np.sort(np.asarray(values))
    steps, expected = np.arange(len(values) + 1) / len(values), distribution(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max()) * math.sqrt(len(values)) / 1.95


def uniform(low, high):
    return lambda values: np.clip((values - low) / (high - low), 0, 1)


# Operations


def test_invert_is_255_minus_each_value():
    np.testing.assert_array_equal(pixels(transforms.invert(picture())), 255 - pixels(picture()))


@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_highest_bits(bits):
    step = 2 ** (8 - bits)
    np.testing.assert_array_equal(pixels(transforms.posterize(picture(), bits)), pixels(picture()) // step * step)


@pytest.mark.parametrize("threshold", [0, 26, 128, 255, 256])
def test_solarize_inverts_the_values_from_the_threshold_on(threshold):
    before = pixels(picture())
    expected = np.where(before >= threshold, 255 - before, before)
    np.testing.assert_array_equal(pixels(transforms.solarize(picture(), threshold)), expected)


@pytest.mark.parametrize("added", [0, 55, 110])
def test_solarize_add_brightens_the_values_below_128(added):
    before = pixels(picture())
    assert (before < 128).any()
    assert (before >= 128).any()
    expected = np.where(before < 128, np.minimum(before + added, 255), before)
    np.testing.assert_array_equal(pixels(transforms.solarize_add(picture(), added)), expected)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.9])
def test_the_colour_operations_extrapolate_from_a_plain_copy(factor):
    """Each is `plain + factor · (image - plain)`, rounded and clipped. Each operation has its own plain copy."""
    image, before = picture(), pixels(picture())
    luma = pixels(image.convert("L"))[..., None]
    smooth = pixels(image.filter(ImageFilter.SMOOTH))
    plain = {"brightness": 0, "color": luma, "contrast": int(luma.mean() + 0.5), "sharpness": smooth}
    for name, copy in plain.items():
        after = pixels(getattr(transforms, name)(image, factor))
        expected = np.clip(copy + factor * (before - copy), 0, 255)
        assert np.abs(after - expected).max() <= 1, name  # Pillow truncates the fraction


@pytest.mark.parametrize(
    ("name", "number", "pillow"),
    [
        ("identity", 0, lambda image: image),
        ("autocontrast", 0, ImageOps.autocontrast),
        ("equalize", 0, ImageOps.equalize),
        ("grayscale", 0, lambda image: Image.merge("RGB", [image.convert("L")] * 3)),
        ("color", 0.37, lambda image: ImageEnhance.Color(image).enhance(0.37)),
        ("contrast", 1.7, lambda image: ImageEnhance.Contrast(image).enhance(1.7)),
        ("brightness", 1.7, lambda image: ImageEnhance.Brightness(image).enhance(1.7)),
        ("sharpness", 0.3, lambda image: ImageEnhance.Sharpness(image).enhance(0.3)),
        ("gaussian_blur", 1.3, lambda image: image.filter(ImageFilter.GaussianBlur(1.3))),
        ("rotate", -27.0, lambda image: image.rotate(-27.0, resample=Image.BICUBIC, fillcolor=GREY)),
    ],
)
def test_an_operation_equals_a_direct_call_of_pillow(name, number, pillow):
    np.testing.assert_array_equal(getattr(transforms, name)(picture(), number), pillow(picture()))


@pytest.mark.parametrize("number", [7, -7])
@pytest.mark.parametrize(("name", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_a_translation_by_whole_pixels_moves_the_image_and_fills_with_the_mean(name, axis, number):
    after, expected = pixels(getattr(transforms, name)(picture(), number)), np.roll(pixels(picture()), -number, axis)
    np.moveaxis(expected, axis, 0)[slice(-number, None) if number > 0 else slice(0, -number)] = GREY
    np.testing.assert_array_equal(after, expected)


def test_a_translation_by_a_share_uses_the_side_along_which_it_moves():
    image = picture(height=40, width=60)
    for share in (0.1, -0.4):
        by_x, by_y = transforms.translate_x_by_share(image, share), transforms.translate_y_by_share(image, share)
        np.testing.assert_array_equal(by_x, transforms.translate_x(image, 60 * share))
        np.testing.assert_array_equal(by_y, transforms.translate_y(image, 40 * share))


@pytest.mark.parametrize(("name", "axis"), [("shear_x", 0), ("shear_y", 1)])
def test_a_shear_moves_each_line_by_its_distance_from_the_first(name, axis):
    image = picture(height=41, width=61)
    before, after = (np.moveaxis(pixels(one), axis, 0) for one in (image, getattr(transforms, name)(image, 0.2)))
    for line in range(2, 40, 5):  # the offset at the centre of the line, (line + 0.5) · 0.2, is 0.5, 1.5, …
        offset = (line + 0.5) * 0.2
        left, share = int(offset), offset - int(offset)
        inner = slice(3, len(before[line]) - 12)
        shifted = np.roll(before[line], -left, 0), np.roll(before[line], -left - 1, 0)
        # In noise, cubic interpolation differs slightly from the mean of the two neighbours.
        mean = (1 - share) * shifted[0] + share * shifted[1]
        assert np.corrcoef(mean[inner].ravel(), after[line][inner].ravel())[0, 1] > 0.95
        assert np.abs(mean[inner] - after[line][inner]).mean() < 4
    assert (after[-1, -5:] == GREY).all()


@pytest.mark.parametrize("operations", [RANDAUGMENT, TRIVIALAUGMENT, THREE_AUGMENT])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (32, 48)])
def test_every_operation_accepts_and_keeps_every_size_and_does_not_change_its_input(operations, size):
    image = picture(*size)
    before = pixels(image)
    for name in operations:
        for strength in (0.0, 1.0):
            step = operations[name].apply(image, operations[name].argument(strength, random.Random(0)))
            assert (step.mode, step.size) == ("RGB", image.size), name
    np.testing.assert_array_equal(pixels(image), before)


# Ranges


@pytest.mark.parametrize("magnitude", [0.0, 2.4, 5.0, 8.73, 9.0, 9.51, 10.0])
def test_the_arguments_of_randaugment_are_those_of_the_increasing_op_set(magnitude):
    """Compare with a naive definition of `rand-m9-mstd0.5-inc1`. Operations with a sign have two possible arguments."""
    m = magnitude
    enhanced = {1 + m / 10 * 0.9, max(0.1, 1 - m / 10 * 0.9)}
    expected = {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), {0}),
        "Rotate": {m * 3, -m * 3},
        "Posterize": {4 - int(m / 10 * 4)},
        "Solarize": {256 - int(m / 10 * 256)},
        "SolarizeAdd": {int(m / 10 * 110)},
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhanced),
        **dict.fromkeys(("ShearX", "ShearY"), {m / 10 * 0.3, -m / 10 * 0.3}),
        **dict.fromkeys(("TranslateX", "TranslateY"), {m / 10 * 0.45, -m / 10 * 0.45}),
    }
    assert list(RANDAUGMENT) == list(expected)
    assert_arguments(RANDAUGMENT, m / 10, expected)


@pytest.mark.parametrize("level", range(0, 31, 3))
def test_the_arguments_of_trivialaugment_are_those_of_the_wide_space(level):
    enhanced = {0.01 + 1.99 * level / 30}
    degrees, shift = int(135 * level / 30), int(32 * level / 30)
    expected = {
        **dict.fromkeys(("Identity", "AutoContrast", "Equalize"), {0}),
        "Rotate": {degrees, -degrees},
        "Solarize": {256 - int(256 * level / 30)},
        "Posterize": {8 - int(6 * level / 30)},
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhanced),
        **dict.fromkeys(("ShearX", "ShearY"), {0.99 * level / 30, -0.99 * level / 30}),
        **dict.fromkeys(("TranslateX", "TranslateY"), {shift, -shift}),
    }
    assert len(TRIVIALAUGMENT) == 14
    assert_arguments(TRIVIALAUGMENT, level / 30, expected)


def assert_arguments(operations, strength, expected):
    assert set(operations) == set(expected)
    for name, operation in operations.items():
        drawn = sorted({operation.argument(strength, random.Random(seed)) for seed in range(20)})
        np.testing.assert_allclose(drawn, sorted(expected[name]), rtol=0, atol=1e-9, err_msg=name)


def test_each_name_in_a_policy_denotes_its_operation():
    """Compare pixels: for example, the operation called Invert inverts the image."""
    image = picture()
    named = {
        "Identity": "identity",
        "AutoContrast": "autocontrast",
        "SolarizeAdd": "solarize_add",
        "ShearX": "shear_x",
        "ShearY": "shear_y",
        "GaussianBlur": "gaussian_blur",
    }
    for operations in (RANDAUGMENT, TRIVIALAUGMENT, THREE_AUGMENT):
        for name, operation in operations.items():
            number = operation.argument(0.7, random.Random(1))
            if name.startswith("Translate"):
                shift = number * (image.width if name.endswith("X") else image.height)
                shift = number if operations is TRIVIALAUGMENT else shift
                matrix = (1, 0, shift, 0, 1, 0) if name.endswith("X") else (1, 0, 0, 0, 1, shift)
                expected = image.transform(image.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=GREY)
            else:
                expected = getattr(transforms, named.get(name, name.lower()))(image, number)
            np.testing.assert_array_equal(operation.apply(image, number), expected, err_msg=name)


# Policies


def randaugment(count=DRAWS, magnitude=9.0, std=0.5, probability=0.5, num_ops=2):
    return [transforms.draw_randaugment(random.Random(i), magnitude, std, probability, num_ops) for i in range(count)]


def test_two_operations_are_chosen_and_each_is_applied_half_of_the_time():
    counts = Counter(len(steps) for steps in randaugment())
    for number, expected in {0: 0.25, 1: 0.5, 2: 0.25}.items():
        assert near(counts[number] / DRAWS, expected)
    rate = sum(len(steps) for steps in randaugment(probability=0.2, num_ops=3)) / (3 * DRAWS)
    assert near(rate, 0.2, 3 * DRAWS)


def test_the_operations_are_chosen_evenly_and_with_replacement():
    drawn = [[step.name for step in steps] for steps in randaugment(probability=1.0)]
    for place in (0, 1):
        counts = Counter(names[place] for names in drawn)
        assert [name for name in RANDAUGMENT if not near(counts[name] / DRAWS, 1 / 15)] == []
    assert near(np.mean([one == other for one, other in drawn]), 1 / 15)


def test_magnitudes_are_normal_around_nine_clipped_at_ten_with_equally_frequent_signs():
    steps = [step for row in randaugment(count=20_000, probability=1.0) for step in row if step.name == "ShearX"]
    magnitudes = np.abs([step.argument for step in steps]) / 0.3 * 10
    inside = magnitudes[magnitudes < 10 - 1e-9]
    clipped = 0.5 * math.erfc(2 / math.sqrt(2))  # two standard deviations above the mean
    assert near(1 - len(inside) / len(magnitudes), clipped, len(magnitudes))
    normal = torch.distributions.Normal(9.0, 0.5)
    assert distance(inside, lambda m: normal.cdf(torch.tensor(m)).numpy() / (1 - clipped)) < 1
    assert distance(inside, lambda m: torch.distributions.Normal(9.0, 0.6).cdf(torch.tensor(m)).numpy()) > 1
    assert near(np.mean([step.argument > 0 for step in steps]), 0.5, len(steps))


@pytest.mark.parametrize(("magnitude", "degrees"), [(0.0, 0.0), (4.0, 12.0), (10.0, 30.0)])
def test_with_a_standard_deviation_of_zero_every_magnitude_is_the_given_one(magnitude, degrees):
    steps = [step for row in randaugment(500, magnitude, 0.0, 1.0) for step in row if step.name == "Rotate"]
    assert len(steps) > 20
    np.testing.assert_allclose([abs(step.argument) for step in steps], degrees, atol=1e-9)


def test_magnitudes_are_clipped_at_both_ends():
    magnitudes = [
        abs(step.argument) / 3 for row in randaugment(2000, 5.0, 10.0, 1.0) for step in row if step.name == "Rotate"
    ]
    assert min(magnitudes) == 0
    assert max(magnitudes) == pytest.approx(10)


def test_trivialaugment_draws_one_of_fourteen_operations_at_one_of_31_strengths_evenly():
    drawn = [transforms.draw_trivialaugment(random.Random(seed)) for seed in range(DRAWS)]
    assert {len(steps) for steps in drawn} == {1}
    counts = Counter(steps[0].name for steps in drawn)
    assert [name for name in TRIVIALAUGMENT if not near(counts[name] / DRAWS, 1 / 14)] == []
    enhanced = [
        steps[0].argument for steps in drawn if steps[0].name in ("Color", "Contrast", "Brightness", "Sharpness")
    ]
    levels = (np.array(enhanced) - 0.01) / 1.99 * 30
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    bins = Counter(np.rint(levels).astype(int).tolist())
    assert set(bins) == set(range(31))
    assert [level for level in range(31) if not near(bins[level] / len(levels), 1 / 31, len(levels))] == []
    signs = [steps[0].argument > 0 for steps in drawn if steps[0].name in SIGNED and steps[0].argument]
    assert near(np.mean(signs), 0.5, len(signs))


def test_three_augment_draws_one_of_three_and_a_radius_from_a_tenth_to_two():
    drawn = [transforms.draw_three_augment(random.Random(seed)) for seed in range(DRAWS)]
    assert {len(steps) for steps in drawn} == {1}
    counts = Counter(steps[0].name for steps in drawn)
    assert set(counts) == {"Grayscale", "Solarize", "GaussianBlur"}
    assert all(near(count / DRAWS, 1 / 3) for count in counts.values())
    assert {steps[0].argument for steps in drawn if steps[0].name == "Solarize"} == {128}
    assert distance([s[0].argument for s in drawn if s[0].name == "GaussianBlur"], uniform(0.1, 2.0)) < 1


def test_colour_jitter_draws_three_factors_within_its_range_in_any_order():
    drawn = [transforms.draw_color_jitter(random.Random(seed), 0.3) for seed in range(DRAWS)]
    orders = Counter(tuple(step.name for step in steps) for steps in drawn)
    assert set(orders) == set(permutations(("Brightness", "Contrast", "Color")))
    assert all(near(count / DRAWS, 1 / 6) for count in orders.values())
    factors = {name: [step.argument for steps in drawn for step in steps if step.name == name] for name, *_ in orders}
    for name in ("Brightness", "Contrast", "Color"):
        assert distance(factors[name], uniform(0.7, 1.3)) < 1
    assert abs(np.corrcoef(factors["Brightness"], factors["Color"])[0, 1]) < 0.05


def test_steps_are_applied_in_order():
    image = picture()
    steps = [transforms.Step("a", transforms.posterize, 2), transforms.Step("b", transforms.invert, 0)]
    expected = 255 - pixels(image) // 64 * 64
    np.testing.assert_array_equal(pixels(transforms.apply_steps(image, steps)), expected)
    assert transforms.apply_steps(image, []) is image


def test_drawn_steps_are_those_of_the_first_release():
    """They must never change, because the outputs in teacher caches were computed from these pixels."""
    drawn = [(step.name, round(step.argument, 6)) for steps in randaugment(4, probability=1.0) for step in steps]
    assert drawn == [
        ("TranslateX", 0.40999),
        ("Color", 1.801769),
        ("Invert", 0.0),
        ("Equalize", 0.0),
        ("TranslateX", 0.413884),
        ("ShearX", 0.272198),
        ("Rotate", -29.278651),
        ("Brightness", 0.116816),
    ]
    jitter = [(step.name, round(step.argument, 6)) for step in transforms.draw_color_jitter(random.Random(0), 0.3)]
    assert jitter == [("Brightness", 0.724291), ("Color", 1.279279), ("Contrast", 0.991557)]


# Noise


def test_noise_is_a_normal_distribution_per_channel_after_imagenets_normalisation():
    values = transforms.normal_noise(300, 400, 5).reshape(-1, 3)
    assert values.dtype == np.uint8
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        normal = torch.distributions.Normal(255 * mean, 255 * std)
        shares = np.bincount(values[:, channel], minlength=256) / len(values)
        below = normal.cdf(torch.arange(255, dtype=torch.float64) + 0.5).numpy()
        expected = np.diff(np.concatenate([[0], below, [1]]))  # values below 0 and above 255 are clipped to 0 and 255
        assert np.abs(np.cumsum(shares) - np.cumsum(expected)).max() < 1.95 / math.sqrt(len(values))
        assert near(shares[0], expected[0], len(values))
    assert abs(np.corrcoef(values.T)[np.triu_indices(3, 1)]).max() < 0.015  # channels are independent


def test_noise_is_philox_raw_output_mapped_by_the_normal_quantiles():
    """Compute the values from the definition: 16 bits per value, lowest bits first, torch's quantile function."""
    raw = np.random.Philox(key=2**100 + 7).random_raw(9)
    draws = [(int(word) >> shift) & 0xFFFF for word in raw for shift in (0, 16, 32, 48)][:33]
    quantiles = torch.special.ndtri((torch.tensor(draws, dtype=torch.float64) + 0.5) / 65536).reshape(1, 11, 3)
    levels = 255 * (torch.tensor([0.485, 0.456, 0.406]) + torch.tensor([0.229, 0.224, 0.225]) * quantiles)
    expected = levels.round().clip(0, 255).to(torch.uint8).numpy()
    np.testing.assert_array_equal(transforms.normal_noise(1, 11, 2**100 + 7), expected)


def test_noise_is_a_function_of_its_seed():
    np.testing.assert_array_equal(transforms.normal_noise(5, 7, 3), transforms.normal_noise(5, 7, 3))
    assert (transforms.normal_noise(5, 7, 3) != transforms.normal_noise(5, 7, 4)).mean() > 0.9
    assert transforms.normal_noise(1, 1, 0).shape == (1, 1, 3)
