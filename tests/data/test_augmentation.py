"""Augmentation of one image: boxes, pixels compared with direct calls of Pillow, and reproducibility in any process."""

import dataclasses
import hashlib
import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from hf_deit.data import transforms
from hf_deit.data.augmentation import AUTO_AUGMENTS, Augmentation, erasing_box, random_resized_crop_box
from hf_deit.data.sampling import ViewKey, view_generator
from hf_deit.errors import RecipeError
from tests.helpers.processes import run_python
from tests.helpers.tiny import training_data

SCALE, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 10_000
# Kolmogorov-Smirnov distance that 10,000 correct draws exceed with a probability of 1/1,000. The seeds are fixed.
DISTANCE = 1.95 / math.sqrt(DRAWS)


def random_rgb(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def boxes(width, height, count, scale=SCALE, aspect=ASPECT):
    return np.array([random_resized_crop_box(width, height, scale, aspect, random.Random(i)) for i in range(count)])


def distance(values, distribution):
    """Return the Kolmogorov-Smirnov distance of values from a distribution function."""
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
def test_every_box_is_within_the_image_and_not_empty(size):
    width, height = size
    left, upper, right, lower = boxes(width, height, 2000).T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= width).all()
    assert (lower <= height).all()
    assert (right - left >= 1).all()
    assert (lower - upper >= 1).all()


def test_share_and_aspect_of_the_boxes_follow_the_definition():
    """The share s and the log aspect u are uniform. In a square image, a box fits if s ≤ exp(-|u|)."""
    side, limit = 20_000, math.log(4 / 3)
    left, upper, right, lower = boxes(side, side, DRAWS).T
    widths, heights = (right - left) / side, (lower - upper) / side
    share, log_aspect = widths * heights, np.log(widths / heights)
    assert (np.abs(log_aspect) <= limit + 1e-3).all()
    assert share.min() >= 0.08 - 1e-3
    # Marginal densities of the boxes that fit: of s, integrated over u, and of u, integrated over s.
    share_distribution = distribution_from_density(lambda s: np.minimum(limit, -np.log(s)), 0.08, 1.0)
    aspect_distribution = distribution_from_density(lambda u: np.exp(-np.abs(u)) - 0.08, -limit, limit)
    assert distance(share, share_distribution) < DISTANCE
    assert distance(log_aspect, aspect_distribution) < DISTANCE
    # The test is sensitive enough: the distribution without rejected boxes differs.
    assert distance(share, lambda s: (s - 0.08) / 0.92) > DISTANCE


def test_share_and_log_aspect_are_uniform_if_every_box_fits():
    side = 20_000
    left, upper, right, lower = boxes(side, side, DRAWS, scale=(0.1, 0.5), aspect=(0.5, 2.0)).T
    widths, heights = (right - left) / side, (lower - upper) / side
    assert distance(widths * heights, lambda s: np.clip((s - 0.1) / 0.4, 0, 1)) < DISTANCE
    log_aspect, limit = np.log(widths / heights), math.log(2)
    assert distance(log_aspect, lambda u: np.clip((u + limit) / (2 * limit), 0, 1)) < DISTANCE


def test_the_position_of_a_box_is_uniform():
    width, height = 30_000, 20_000
    left, upper, right, lower = boxes(width, height, DRAWS).T
    for offset, room in ((left, width - (right - left)), (upper, height - (lower - upper))):
        assert distance((offset / np.maximum(room, 1))[room > 1000], lambda u: u) < DISTANCE * 1.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # The largest central box of aspect 4/3 or 3/4, computed by hand.
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


def test_an_image_that_no_box_fits_gives_its_largest_central_box_with_an_allowed_aspect():
    for seed in range(20):
        # A share above 99.9 % with half the image's aspect never fits.
        box = random_resized_crop_box(100, 100, (0.999, 1.0), (0.5, 0.51), random.Random(seed))
        assert box == (24, 0, 75, 100)
        # The aspect of the image itself is allowed, so the box is the entire image.
        assert random_resized_crop_box(100, 99, (1.0, 1.0), (0.5, 2.0), random.Random(seed)) == (0, 0, 100, 99)


def test_a_box_whose_side_rounds_to_zero_has_a_side_of_one_pixel():
    assert random_resized_crop_box(1000, 1, SCALE, (0.1, 0.3), random.Random(0)) == (499, 0, 500, 1)
    assert random_resized_crop_box(1, 1000, SCALE, (4.0, 8.0), random.Random(0)) == (0, 499, 1, 500)


def test_ten_boxes_are_tried():
    """This is as in torchvision. A box that does not fit takes two random numbers, its share and its aspect."""
    generator, twenty_numbers_on = random.Random(0), random.Random(0)
    random_resized_crop_box(1000, 10, SCALE, ASPECT, generator)
    for _ in range(20):
        twenty_numbers_on.random()
    assert generator.random() == twenty_numbers_on.random()


def test_boxes_are_those_of_the_first_release():
    """They must never change, because the outputs in teacher caches were computed from these pixels."""
    drawn = [random_resized_crop_box(500, 375, SCALE, ASPECT, random.Random(seed)) for seed in range(4)]
    assert drawn == [(53, 0, 485, 372), (32, 65, 248, 242), (1, 0, 483, 373), (189, 121, 429, 355)]


def test_a_box_with_the_area_and_the_aspect_of_the_image_is_the_entire_image():
    assert random_resized_crop_box(64, 48, (1.0, 1.0), (4 / 3, 4 / 3), random.Random(0)) == (0, 0, 64, 48)


# Boxes to erase


def erasing_boxes(width, height, count=DRAWS):
    return [erasing_box(width, height, random.Random(seed)) for seed in range(count)]


def test_share_aspect_and_position_of_the_erased_boxes_follow_the_definition():
    """The share s is uniform in [0.02, 1/3], the log aspect u is uniform. A box fits a square if s < exp(-|u|)."""
    side, limit = 20_000, math.log(1 / 0.3)
    left, upper, right, lower = np.array(erasing_boxes(side, side)).T
    widths, heights = (right - left) / side, (lower - upper) / side
    share, log_aspect = widths * heights, np.log(widths / heights)
    assert 0.02 - 1e-3 < share.min() < 0.021
    assert 0.332 < share.max() < 1 / 3 + 1e-3
    share_distribution = distribution_from_density(lambda s: np.minimum(limit, -np.log(s)), 0.02, 1 / 3)
    aspect_distribution = distribution_from_density(
        lambda u: np.minimum(np.exp(-np.abs(u)), 1 / 3) - 0.02, -limit, limit
    )
    assert distance(share, share_distribution) < DISTANCE
    assert distance(log_aspect, aspect_distribution) < DISTANCE
    for offset, room in ((left, side - (right - left)), (upper, side - (lower - upper))):
        assert distance(offset / room, lambda u: u) < DISTANCE


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (30, 20), (9, 200)])
def test_an_erased_box_is_within_the_view_and_smaller_on_both_sides(size):
    boxes = [box for box in erasing_boxes(*size, count=2000) if box is not None]
    assert boxes
    left, upper, right, lower = np.array(boxes).T
    assert min(left.min(), upper.min()) == 0
    assert (right.max(), lower.max()) == size
    assert (right - left >= 1).all()
    assert (lower - upper >= 1).all()
    assert (right - left < size[0]).all()
    assert (lower - upper < size[1]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_a_view_too_small_for_a_box_is_not_changed_after_ten_tries(size):
    generator, twenty_numbers_on = random.Random(0), random.Random(0)
    assert erasing_box(*size, generator) is None
    for _ in range(20):
        twenty_numbers_on.random()
    assert generator.random() == twenty_numbers_on.random()
    view = Augmentation(size[::-1], erasing_probability=1.0)(random_rgb(9, 9), random.Random(0))
    np.testing.assert_array_equal(view, Augmentation(size[::-1])(random_rgb(9, 9), random.Random(0)))


# Views


def crop_and_flip(image, box, flip, size):
    height, width = size
    view = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view


@pytest.mark.parametrize("size", [(224, 224), (48, 80), (32, 32)])
def test_a_view_equals_pillows_crop_and_flip(size):
    image, flips = random_rgb(375, 500), []
    for seed in range(12):
        replay = random.Random(seed)
        box = random_resized_crop_box(500, 375, SCALE, ASPECT, replay)
        flips.append(replay.random() < 0.5)
        view = Augmentation(size)(image, random.Random(seed))
        assert (view.mode, view.size) == ("RGB", size[::-1])
        np.testing.assert_array_equal(view, crop_and_flip(image, box, flips[-1], size))
    assert set(flips) == {True, False}


def test_reducing_gap_changes_a_view_only_slightly():
    """The mean difference from bicubic resizing without reducing_gap is below 2 of 255 grey levels."""
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
    # Four standard deviations of a share of 2,000 draws.
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


def test_computing_a_view_does_not_change_the_global_generators():
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


# Automatic augmentation, colour jitter, erasing

ALL_ON = {
    "auto_augment": "randaugment",
    "randaugment_probability": 1.0,
    "color_jitter": 0.3,
    "erasing_probability": 1.0,
}


def replayed(image, size, seed, draw):
    """Crop and flip with Pillow, then apply the steps that `draw` draws. Return the view and the random generator."""
    generator = random.Random(seed)
    box = random_resized_crop_box(*image.size, SCALE, ASPECT, generator)
    view = crop_and_flip(image, box, generator.random() < 0.5, size)
    return transforms.apply_steps(view, draw(generator)), generator


POLICIES = {
    "none": lambda generator: [],
    "randaugment": lambda generator: transforms.draw_randaugment(generator, 9.0, 0.5, 0.5, 2),
    "trivialaugment": transforms.draw_trivialaugment,
    "three_augment": transforms.draw_three_augment,
}


@pytest.mark.parametrize("name", AUTO_AUGMENTS)
def test_a_policy_follows_crop_and_flip_and_does_not_change_them(name):
    image, changed = random_rgb(60, 80), 0
    for seed in range(20):
        view = np.asarray(Augmentation((24, 32), auto_augment=name)(image, random.Random(seed)))
        np.testing.assert_array_equal(view, replayed(image, (24, 32), seed, POLICIES[name])[0])
        changed += not np.array_equal(view, Augmentation((24, 32))(image, random.Random(seed)))
    assert (changed > 10) == (name != "none")


def test_the_fields_of_randaugment_are_used():
    fields = {"magnitude": 3.0, "magnitude_std": 2.0, "probability": 0.9, "num_ops": 4}
    augmentation = Augmentation(
        (4, 4), auto_augment="randaugment", **{f"randaugment_{n}": v for n, v in fields.items()}
    )
    for seed in range(20):
        expected = transforms.draw_randaugment(random.Random(seed), **fields)
        assert augmentation.draw_steps(random.Random(seed)) == expected


def test_colour_jitter_follows_the_policy():
    image, augmentation = random_rgb(60, 80), Augmentation((24, 32), auto_augment="three_augment", color_jitter=0.4)

    def draw(generator):
        return transforms.draw_three_augment(generator) + transforms.draw_color_jitter(generator, 0.4)

    for seed in range(10):
        view = augmentation(image, random.Random(seed))
        np.testing.assert_array_equal(view, replayed(image, (24, 32), seed, draw)[0])


def test_erasing_is_last_and_only_fills_one_box_with_noise():
    image, size = random_rgb(60, 80), (48, 64)
    augmentation = Augmentation(size, auto_augment="trivialaugment", erasing_probability=1.0)
    for seed in range(10):
        before, generator = replayed(image, size, seed, transforms.draw_trivialaugment)
        assert generator.random() < 1.0  # the draw that decides whether to erase
        left, upper, right, lower = erasing_box(64, 48, generator)
        expected = np.array(before)
        noise = transforms.normal_noise(lower - upper, right - left, generator.getrandbits(128))
        expected[upper:lower, left:right] = noise
        np.testing.assert_array_equal(augmentation(image, random.Random(seed)), expected)
        assert not np.array_equal(before, expected)


@pytest.mark.parametrize("probability", [0.25, 0.7])
def test_views_are_erased_with_the_given_probability(probability):
    image = Image.new("RGB", (8, 8), (7, 7, 7))
    augmentation = Augmentation((16, 16), erasing_probability=probability)
    erased = [bool((np.asarray(augmentation(image, random.Random(seed))) != 7).any()) for seed in range(4000)]
    # Four standard deviations of a share of 4,000 draws.
    assert abs(np.mean(erased) - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_the_new_fields_change_nothing_by_default():
    """Neither the pixels nor the random numbers that are drawn change."""
    image = random_rgb(60, 80)
    for seed in range(10):
        generator = random.Random(seed)
        view = Augmentation((24, 32))(image, generator)
        expected, expected_generator = replayed(image, (24, 32), seed, POLICIES["none"])
        np.testing.assert_array_equal(view, expected)
        assert generator.random() == expected_generator.random()


@pytest.mark.parametrize("name", AUTO_AUGMENTS)
def test_augmenting_changes_neither_the_image_nor_the_global_generators(name):
    image = random_rgb(32, 32)
    pixels, before = (
        np.array(image),
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    )
    fields = {**ALL_ON, "auto_augment": name, "crop_scale": (1.0, 1.0), "flip_probability": 0.0}
    for seed in range(30):
        Augmentation((32, 32), **fields)(image, random.Random(seed))
    np.testing.assert_array_equal(image, pixels)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def replay_digests(policies, keys):
    """Return the digest of each view with all operations on, computed only from (seed, epoch, index, view)."""
    pixels = (np.arange(60 * 80 * 3) * 2654435761 // 65536 % 256).astype(np.uint8).reshape(60, 80, 3)
    return {
        f"{name} {key}": hashlib.sha256(
            Augmentation((48, 64), **{**ALL_ON, "auto_augment": name})(
                Image.fromarray(pixels), view_generator(11, ViewKey(*key, position=0))
            ).tobytes()
        ).hexdigest()
        for name in policies
        for key in keys
    }


def test_any_view_is_bit_identical_in_another_process_in_any_order():
    policies = [name for name in AUTO_AUGMENTS if name != "none"]
    keys = [(epoch, index, view) for epoch in (0, 3) for index in (5, 70) for view in (0, 1, 2)]
    here = replay_digests(policies, keys)
    assert len(set(here.values())) == len(here) == 36  # all views differ
    program = (
        "import json, random; import numpy as np; random.seed(1); np.random.seed(1)\n"
        "from tests.data.test_augmentation import replay_digests\n"
        f"print(json.dumps(replay_digests({policies[::-1]}, {keys[::-1]})))"
    )
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


def test_lists_of_numbers_become_tuples_and_cannot_be_changed():
    augmentation = Augmentation([8, 12], crop_scale=[0.5, 1.0], crop_aspect=[1, 2])
    assert augmentation == Augmentation((8, 12), crop_scale=(0.5, 1.0), crop_aspect=(1, 2))
    assert (augmentation.view_size, augmentation.crop_scale) == ((8, 12), (0.5, 1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        augmentation.crop_scale = (0.1, 1.0)


def test_without_a_view_size_no_view_is_computed():
    augmentation = Augmentation(flip_probability=0.0)
    with pytest.raises(RecipeError, match="view_size"):
        augmentation(random_rgb(8, 8), random.Random(0))
    with pytest.raises(RecipeError, match="view_size"):
        training_data(view_size=None)
    complete = dataclasses.replace(augmentation, view_size=(4, 4))
    assert complete(random_rgb(8, 8), random.Random(0)).size == (4, 4)


def test_every_field_is_in_the_description_of_a_run():
    described = dataclasses.asdict(Augmentation((8, 8), **ALL_ON))
    assert {name: described[name] for name in ALL_ON} == ALL_ON
    assert set(described) == {entry.name for entry in dataclasses.fields(Augmentation)}


# Errors


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("crop_scale", (0.0, 1.0), "0 < smallest <= largest <= 1"),
        ("crop_scale", (-0.1, 0.5), "0 < smallest <= largest <= 1"),
        ("crop_scale", (0.5, 0.4), "0 < smallest <= largest <= 1"),
        ("crop_scale", (0.5, 1.1), "0 < smallest <= largest <= 1"),
        ("crop_scale", (float("nan"), 1.0), "0 < smallest <= largest <= 1"),
        ("crop_scale", (0.5,), "two numbers"),
        ("crop_aspect", (0.5, 1.0, 2.0), "two numbers"),
        ("crop_aspect", (0.0, 1.0), "0 < smallest <= largest"),
        ("crop_aspect", (2.0, 1.0), "0 < smallest <= largest"),
        ("flip_probability", -0.1, "in \\[0, 1\\]"),
        ("flip_probability", 1.5, "in \\[0, 1\\]"),
        ("flip_probability", float("nan"), "in \\[0, 1\\]"),
        ("randaugment_magnitude", 10.5, "in \\[0, 10\\]"),
        ("randaugment_magnitude", -1.0, "in \\[0, 10\\]"),
        ("randaugment_magnitude_std", -0.5, "in \\[0, 10\\]"),
        ("randaugment_magnitude_std", float("inf"), "in \\[0, 10\\]"),
        ("randaugment_probability", 1.1, "in \\[0, 1\\]"),
        ("randaugment_num_ops", 0, "at least 1"),
        ("color_jitter", 1.5, "in \\[0, 1\\]"),
        ("erasing_probability", -0.1, "in \\[0, 1\\]"),
        ("erasing_probability", float("nan"), "in \\[0, 1\\]"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_allowed_range(name, value, allowed):
    with pytest.raises(ValueError, match=allowed) as error:
        Augmentation((32, 32), **{name: value})
    assert f"{name}={value}" in str(error.value)


def test_the_limits_of_the_ranges_are_allowed():
    augmentation = Augmentation((4, 4), crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip_probability=0)
    image = random_rgb(4, 4)
    np.testing.assert_array_equal(augmentation(image, random.Random(0)), image)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    known = "none, randaugment, trivialaugment, three_augment"
    with pytest.raises(ValueError, match=f"auto_augment='autoaugment'.*{known}"):
        Augmentation((4, 4), auto_augment="autoaugment")
