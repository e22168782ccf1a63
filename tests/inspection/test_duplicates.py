"""Near-duplicates: changed copies of a photograph are found, and other photographs of the same kind are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hf_deit.inspection.duplicates import find_pairs, grey_images, groups_of, similarity_of


def photograph(seed, size=(160, 200)):
    """Return an object with a pattern of its own on a white ground, as in a shop."""
    generator = np.random.default_rng(seed)
    pattern = Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    shape = Image.new("L", size, 0)
    shape.paste(255, (30, 40, 130, 170))
    picture = Image.new("RGB", size, (245, 245, 245))
    picture.paste(pattern, mask=shape.filter(ImageFilter.GaussianBlur(3)))
    return picture


def as_item(image, quality=95):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return {"bytes": file.getvalue(), "path": None}


CHANGES = {
    "equal": lambda image: as_item(image),
    "jpeg60": lambda image: as_item(image, 60),
    "half": lambda image: as_item(image.resize((80, 100), Image.Resampling.BICUBIC)),
    "crop": lambda image: as_item(image.crop((9, 4, 9 + 144, 4 + 180))),
    "darker": lambda image: as_item(image.point(lambda value: value * 0.8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_no_other_photograph(change):
    originals = [photograph(seed) for seed in range(12)]
    items = [*map(as_item, originals), *(CHANGES[change](originals[index]) for index in (3, 7))]
    pairs = find_pairs(grey_images(items))
    assert sorted((pair.first, pair.second) for pair in pairs) == [(3, 12), (7, 13)]


def test_flat_and_unreadable_images_are_no_duplicates():
    white = as_item(Image.new("RGB", (50, 50), "white"))
    items = [white, as_item(Image.new("RGB", (50, 50), "black")), white, {"bytes": b"no image", "path": None}]
    assert find_pairs(grey_images(items)) == []
    assert find_pairs(grey_images([])) == []


def test_the_similarity_does_not_depend_on_the_order():
    one, other = grey_images([as_item(photograph(1)), CHANGES["crop"](photograph(1))])
    assert similarity_of(one, other) == similarity_of(other, one) > 0.92
    assert similarity_of(*grey_images([as_item(photograph(1)), as_item(photograph(2))])) is None


def test_three_copies_are_one_group():
    items = [as_item(photograph(1)), as_item(photograph(2)), as_item(photograph(1), 60), CHANGES["half"](photograph(1))]
    assert groups_of(find_pairs(grey_images(items))) == [[0, 2, 3]]
