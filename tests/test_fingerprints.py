"""Tests of the descriptions in files: a field that a later version adds must not make earlier files differ."""

import dataclasses

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.batch_ops import Mixing
from hf_deit.fingerprints import changed_fields, describe_fields


def test_a_field_of_a_later_version_is_described_only_if_it_differs_from_its_default():
    @dataclasses.dataclass(frozen=True)
    class Later(Augmentation):
        solarize: float = 0.0

    earlier, later, changed = Augmentation((8, 8)), Later((8, 8)), Later((8, 8), solarize=0.5)
    assert changed_fields({"views": earlier.describe()}, {"views": later.describe()}) == {}
    assert changed_fields({"views": earlier.describe()}, {"views": changed.describe()}) == {
        "views.solarize": (None, 0.5)
    }


def test_all_fields_of_the_first_version_are_always_described():
    assert Augmentation((8, 8)).describe() == dataclasses.asdict(Augmentation((8, 8)))
    assert Mixing(mixup_alpha=0.8).describe() == dataclasses.asdict(Mixing(mixup_alpha=0.8))
    assert Mixing(mixup_alpha=0.8, probability=0.0).describe() == dataclasses.asdict(Mixing())  # nothing is mixed


def test_described_fields_are_the_given_ones_and_those_that_differ_from_their_defaults():
    @dataclasses.dataclass
    class Settings:
        first: int = 1
        later: int = 2

    assert describe_fields(Settings(), always=("first",)) == {"first": 1}
    assert describe_fields(Settings(later=3), always=("first",)) == {"first": 1, "later": 3}
