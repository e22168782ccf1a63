"""One view of one image: boxes against the definition of the crop, pixels against Pillow called directly."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from hf_deit.augmentation import Augmentation, random_resized_crop_box

SCALE, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 10_000
# Kolmogorov's distance that 10,000 right draws exceed once in 1,000 times; the seeds are fixed.
DISTANCE = 1.95 / math.sqrt(DRAWS)


def random_rgb(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def boxes(width, height, count, scale=SCALE, aspect=ASPECT):
    return np.array([random_resized_crop_box(width, height, scale, aspect, random.Random(i)) for i in range(count)])


def distance(values, distribution):
    """Kolmogorov's distance of values from a distribution function."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = distribution(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def distribution_from_density(density, low, high):
    grid = np.linspace(low, high, 20_001)
    weights = density((grid[1:] + grid[:-1]) / 2)
    cumulated = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    return lambda values: np.interp(values, grid, cumulated)


# Boxes


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5), (300, 200), (4, 1000), (1000, 4)])
def test_every_box_is_a_box_within_the_image(size):
    width, height = size
    left, upper, right, lower = boxes(width, height, 2000).T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= width).all()
    assert (lower <= height).all()
    assert (right - left >= 1).all()
    assert (lower - upper >= 1).all()


def test_share_and_aspect_of_the_boxes_follow_the_definition():
    """For a square image, the share s uniform and the log aspect u uniform, of those boxes that fit: s ≤ exp(-|u|)."""
    side, limit = 20_000, math.log(4 / 3)
    left, upper, right, lower = boxes(side, side, DRAWS).T
    widths, heights = (right - left) / side, (lower - upper) / side
    share, log_aspect = widths * heights, np.log(widths / heights)
    assert (np.abs(log_aspect) <= limit + 1e-3).all()
    assert share.min() >= 0.08 - 1e-3
    # The densities of what fits: over u for a given share, over shares for a given u.
    share_distribution = distribution_from_density(lambda s: np.minimum(limit, -np.log(s)), 0.08, 1.0)
    aspect_distribution = distribution_from_density(lambda u: np.exp(-np.abs(u)) - 0.08, -limit, limit)
    assert distance(share, share_distribution) < DISTANCE
    assert distance(log_aspect, aspect_distribution) < DISTANCE
    # The yardstick is fine enough to tell the refused boxes from the accepted ones.
    assert distance(share, lambda s: (s - 0.08) / 0.92) > DISTANCE


def test_where_every_box_fits_share_and_aspect_are_plainly_uniform():
    side = 20_000
    left, upper, right, lower = boxes(side, side, DRAWS, scale=(0.1, 0.5), aspect=(0.5, 2.0)).T
    widths, heights = (right - left) / side, (lower - upper) / side
    assert distance(widths * heights, lambda s: np.clip((s - 0.1) / 0.4, 0, 1)) < DISTANCE
    log_aspect, limit = np.log(widths / heights), math.log(2)
    assert distance(log_aspect, lambda u: np.clip((u + limit) / (2 * limit), 0, 1)) < DISTANCE


def test_a_box_is_anywhere_with_equal_chance():
    width, height = 30_000, 20_000
    left, upper, right, lower = boxes(width, height, DRAWS).T
    for offset, room in ((left, width - (right - left)), (upper, height - (lower - upper))):
        assert distance((offset / np.maximum(room, 1))[room > 1000], lambda u: u) < DISTANCE * 1.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The largest central box of aspect 4/3 or 3/4, worked out by hand.
        ((1000, 10), (493, 0, 506, 10)),
        ((10, 1000), (0, 493, 10, 506)),
        ((4000, 30), (1980, 0, 2020, 30)),
        ((30, 4000), (0, 1980, 30, 2020)),
        ((1000, 1), (499, 0, 500, 1)),
        ((1, 1000), (0, 499, 1, 500)),
    ],
)
def test_an_extremely_long_image_gives_its_largest_central_box(size, expected):
    for seed in range(20):
        assert random_resized_crop_box(*size, SCALE, ASPECT, random.Random(seed)) == expected


def test_an_image_that_no_box_fits_gives_its_largest_central_box_of_an_allowed_aspect():
    for seed in range(20):
        # A share above 99.9 % with half the image's aspect never fits.
        box = random_resized_crop_box(100, 100, (0.999, 1.0), (0.5, 0.51), random.Random(seed))
        assert box == (24, 0, 75, 100)
        # Its own aspect is allowed: all of it.
        assert random_resized_crop_box(100, 99, (1.0, 1.0), (0.5, 2.0), random.Random(seed)) == (0, 0, 100, 99)


def test_even_an_aspect_that_rounds_to_nothing_gives_a_box_of_one_pixel():
    assert random_resized_crop_box(1000, 1, SCALE, (0.1, 0.3), random.Random(0)) == (499, 0, 500, 1)
    assert random_resized_crop_box(1, 1000, SCALE, (4.0, 8.0), random.Random(0)) == (0, 499, 1, 500)


def test_ten_boxes_are_tried():
    """As torchvision does; a box that does not fit takes two numbers, its share and its aspect."""
    generator, twenty_numbers_on = random.Random(0), random.Random(0)
    random_resized_crop_box(1000, 10, SCALE, ASPECT, generator)
    for _ in range(20):
        twenty_numbers_on.random()
    assert generator.random() == twenty_numbers_on.random()


def test_boxes_are_those_of_the_first_release():
    """They must never change: stored teacher answers belong to these pixels."""
    drawn = [random_resized_crop_box(500, 375, SCALE, ASPECT, random.Random(seed)) for seed in range(4)]
    assert drawn == [(53, 0, 485, 372), (32, 65, 248, 242), (1, 0, 483, 373), (189, 121, 429, 355)]


def test_a_box_of_the_whole_area_and_the_images_aspect_is_the_whole_image():
    assert random_resized_crop_box(64, 48, (1.0, 1.0), (4 / 3, 4 / 3), random.Random(0)) == (0, 0, 64, 48)


# Views


def crop_and_flip(image, box, flip, size):
    height, width = size
    view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view


@pytest.mark.parametrize("size", [(224, 224), (48, 80), (32, 32)])
def test_a_view_is_what_pillow_makes_of_the_box_and_the_flip(size):
    image, flips = random_rgb(375, 500), []
    for seed in range(12):
        replay = random.Random(seed)
        box = random_resized_crop_box(500, 375, SCALE, ASPECT, replay)
        flips.append(replay.random() < 0.5)
        view = Augmentation(size)(image, random.Random(seed))
        assert (view.mode, view.size) == ("RGB", size[::-1])
        np.testing.assert_array_equal(view, crop_and_flip(image, box, flips[-1], size))
    assert set(flips) == {True, False}


def test_reducing_first_changes_a_view_by_little():
    """Against one bicubic pass over the whole box: the mean difference stays below 2 of 255 grey levels."""
    noise = random_rgb(60, 80).resize((1600, 1200), Image.Resampling.BICUBIC)
    for seed in range(5):
        replay = random.Random(seed)
        box = random_resized_crop_box(1600, 1200, SCALE, ASPECT, replay)
        plain = noise.resize((64, 64), Image.Resampling.BICUBIC, box=box)
        view = Augmentation((64, 64), flip_probability=0.0)(noise, random.Random(seed))
        assert np.abs(np.asarray(view, dtype=float) - np.asarray(plain, dtype=float)).mean() < 2


def test_a_flipped_view_is_the_mirror_of_the_view():
    image = random_rgb(90, 70)
    for seed in range(5):
        plain = Augmentation((32, 48), flip_probability=0.0)(image, random.Random(seed))
        flipped = Augmentation((32, 48), flip_probability=1.0)(image, random.Random(seed))
        np.testing.assert_array_equal(np.asarray(flipped), np.asarray(plain)[:, ::-1])


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_views_are_flipped_with_the_given_probability(probability):
    image = Image.fromarray(np.tile(np.arange(0, 240, 40, dtype=np.uint8)[None, :, None], (6, 1, 3)))
    augmentation = Augmentation((2, 2), crop_scale=(0.9, 1.0), flip_probability=probability)
    views = [np.asarray(augmentation(image, random.Random(seed)), dtype=int) for seed in range(2000)]
    flipped = np.mean([view[0, 0, 0] > view[0, 1, 0] for view in views])
    # Four standard deviations of a share of 2,000.
    assert abs(flipped - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000)


def test_a_view_is_a_function_of_its_generator_and_nothing_else():
    image, augmentation = random_rgb(90, 70), Augmentation((32, 32))
    pixels = np.asarray(image).copy()
    first = augmentation(image, random.Random(5))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    augmentation(image, random.Random(6))
    np.testing.assert_array_equal(augmentation(image, random.Random(5)), first)
    np.testing.assert_array_equal(Augmentation((32, 32))(image, random.Random(5)), first)
    assert not np.array_equal(augmentation(image, random.Random(6)), first)
    np.testing.assert_array_equal(image, pixels)


def test_making_a_view_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    Augmentation((8, 8))(random_rgb(20, 20), random.Random(0))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_an_image_of_a_single_row_column_or_pixel_gives_a_view(size):
    image = Image.new("RGB", size, (10, 20, 30))
    for seed in range(20):
        view = Augmentation((16, 24))(image, random.Random(seed))
        assert (np.asarray(view) == (10, 20, 30)).all()
        assert view.size == (24, 16)


# Errors


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("crop_scale", (0.0, 1.0), "0 < smallest <= largest <= 1"),
        ("crop_scale", (-0.1, 0.5), "0 < smallest <= largest <= 1"),
        ("crop_scale", (0.5, 0.4), "0 < smallest <= largest <= 1"),
        ("crop_scale", (0.5, 1.1), "0 < smallest <= largest <= 1"),
        ("crop_scale", (float("nan"), 1.0), "0 < smallest <= largest <= 1"),
        ("crop_aspect", (0.0, 1.0), "0 < smallest <= largest"),
        ("crop_aspect", (2.0, 1.0), "0 < smallest <= largest"),
        ("flip_probability", -0.1, "in \\[0, 1\\]"),
        ("flip_probability", 1.5, "in \\[0, 1\\]"),
        ("flip_probability", float("nan"), "in \\[0, 1\\]"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        Augmentation((32, 32), **{name: value})
    assert f"{name}={value}" in str(error.value)


def test_the_limits_themselves_are_allowed():
    augmentation = Augmentation((4, 4), crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip_probability=0)
    image = random_rgb(4, 4)
    np.testing.assert_array_equal(augmentation(image, random.Random(0)), image)
