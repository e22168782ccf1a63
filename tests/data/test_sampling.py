"""View keys, permutations and partners: golden values, brute force over complete epochs, and sharding by accelerate.

The golden values must never change: teacher caches and resumed runs rely on them.
"""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from accelerate.state import AcceleratorState
from torch.utils.data import BatchSampler, DataLoader, Dataset

from hf_deit.data.sampling import ViewKey, ViewSampler, pair_generator, permutation, view_generator
from tests.helpers.processes import run_python

# (size of the data set, global batch, repeats): with and without an incomplete last batch, odd sizes, sizes below the
# batch.
SHAPES = [
    (2, 2, 1),
    (3, 2, 1),
    (8, 4, 1),
    (9, 4, 1),
    (11, 4, 1),
    (40, 10, 1),
    (47, 10, 1),
    (47, 10, 3),
    (64, 8, 3),
    (64, 12, 4),
    (5, 16, 1),
    (3, 16, 1),
    (2, 16, 1),
    (7, 8, 1),
    (15, 16, 1),
    (5, 16, 3),
    (9, 16, 3),
    (30, 16, 9),
]


def keys_of(size, batch, seed=0, epoch=0, **kwargs):
    sampler = ViewSampler(size, batch, seed, **kwargs)
    sampler.set_epoch(epoch)
    return list(sampler)


def pairs_of(keys):
    return list(zip(keys[::2], keys[1::2], strict=True))


def batches_of(keys, batch):
    return [keys[start : start + batch] for start in range(0, len(keys), batch)]


# Golden values


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 0, 8), [7, 4, 3, 0, 1, 6, 5, 2]),
        ((7, 3, 11), [10, 2, 5, 4, 0, 7, 6, 8, 1, 9, 3]),
        ((123456789, 299, 10), [4, 0, 5, 9, 3, 1, 7, 8, 6, 2]),
        ((0, 0, 8, "order"), [6, 2, 7, 4, 1, 5, 0, 3]),
        ((0, 0, 8, "split"), [2, 4, 5, 3, 0, 1, 7, 6]),
        ((0, 0, 1), [0]),
        ((0, 0, 0), []),
    ],
)
def test_permutations_are_those_of_the_first_release(arguments, expected):
    order = permutation(*arguments)
    assert order.dtype == np.int64
    assert order.tolist() == expected


def test_view_generators_are_those_of_the_first_release():
    first, second = (
        view_generator(0, ViewKey(0, 0, 0, 0)),
        view_generator(7, ViewKey(epoch=3, index=1281166, view=2, position=99)),
    )
    assert [first.random() for _ in range(3)] == [0.5387994866769675, 0.3195266995458448, 0.2898389933013642]
    assert [second.random() for _ in range(3)] == [0.32925103372374087, 0.021271376869830605, 0.23962031441373055]
    assert [first.randint(0, 10**6), second.randint(0, 10**6)] == [797223, 874707]


def test_pair_generators_are_those_of_the_first_release():
    generator = pair_generator(7, 3, 5)
    assert [generator.random() for _ in range(3)] == [0.20035712046305154, 0.5436420005265924, 0.9952442155732459]


def test_an_epochs_keys_are_those_of_the_first_release():
    expected = [(7, 6), (3, 7), (6, 0), (8, 1), (4, 4), (1, 5), (0, 2), (5, 3)]
    assert keys_of(9, 4, seed=5) == [ViewKey(0, index, 0, position) for index, position in expected]
    small = [(0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 3)]
    assert keys_of(3, 4, seed=5, repeats=3) == [ViewKey(0, *rest) for rest in small]


def test_keys_and_draws_are_the_same_in_another_process_with_another_hash_seed():
    program = (
        "import json; from hf_deit.data.sampling import *\n"
        "s = ViewSampler(47, 10, seed=3, num_views=4, repeats=3); s.set_epoch(6); keys = list(s)\n"
        "print(json.dumps([keys, [view_generator(3, k).random() for k in keys], permutation(3, 6, 50).tolist()]))"
    )
    process = run_python(program)
    assert process.returncode == 0, process.stderr
    keys = keys_of(47, 10, seed=3, epoch=6, num_views=4, repeats=3)
    expected = [keys, [view_generator(3, key).random() for key in keys], permutation(3, 6, 50).tolist()]
    assert json.loads(process.stdout) == json.loads(json.dumps(expected))


def test_global_generators_are_neither_read_nor_advanced():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    keys, draws = keys_of(20, 4), view_generator(0, ViewKey(0, 1, 0, 0)).random()
    assert states() == before
    random.random(), np.random.random(), torch.rand(1)
    assert (keys_of(20, 4), view_generator(0, ViewKey(0, 1, 0, 0)).random()) == (keys, draws)


# Permutations and generators


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_permutation_holds_every_number_once(size):
    assert sorted(permutation(3, 5, size).tolist()) == list(range(size))


def test_permutations_differ_by_seed_epoch_and_purpose():
    orders = [
        permutation(*arguments).tolist()
        for arguments in [(0, 0, 50), (1, 0, 50), (0, 1, 50), (1, 1, 50), (0, 0, 50, "order")]
    ]
    # The last two collide if seed and epoch are joined without a separator.
    orders += [permutation(1, 11, 50).tolist(), permutation(11, 1, 50).tolist()]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_permutations_are_uniform():
    """Chi-squared test over 6,000 epochs: each of 24 orders is equally likely (23 degrees of freedom, 99.99 %: 56)."""
    counts = Counter(tuple(permutation(0, epoch, 4).tolist()) for epoch in range(6000))
    assert len(counts) == 24
    assert sum((count - 250) ** 2 / 250 for count in counts.values()) < 56


def test_draws_of_views_are_uniform_and_neighbouring_keys_are_uncorrelated():
    """Kolmogorov-Smirnov distance over 5,000 images (99.9 %: 1.95/√n), and correlation of each draw with the next."""
    draws = np.array([view_generator(0, ViewKey(0, index, 0, 0)).random() for index in range(5000)])
    assert np.abs(np.sort(draws) - (np.arange(5000) + 0.5) / 5000).max() < 1.95 / np.sqrt(5000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(5000)


def test_a_view_depends_on_seed_epoch_index_and_view():
    arguments = [(0, (0, 0, 0)), (1, (0, 0, 0)), (0, (1, 0, 0)), (0, (0, 1, 0)), (0, (0, 0, 1)), (0, (1, 1, 1))]
    # Numbers that collide if their digits are joined without a separator.
    arguments += [(0, (1, 11, 0)), (0, (11, 1, 0)), (1, (1, 1, 1)), (11, (1, 1, 0))]
    draws = {view_generator(seed, ViewKey(*key, position=0)).random() for seed, key in arguments}
    assert len(draws) == len(arguments)


def test_a_view_does_not_depend_on_its_position():
    assert {view_generator(3, ViewKey(1, 2, 0, position)).random() for position in range(10)} == {
        view_generator(3, ViewKey(1, 2, 0, 0)).random()
    }


def test_the_generator_of_a_pair_differs_from_those_of_its_views():
    assert pair_generator(0, 1, 2).random() != view_generator(0, ViewKey(1, 2, 0, 0)).random()
    assert len({pair_generator(*numbers).random() for numbers in np.ndindex(3, 3, 3)}) == 27


# A complete epoch


@pytest.mark.parametrize(("size", "batch", "repeats"), SHAPES)
def test_an_epoch_has_complete_global_batches_and_the_length_of_the_sampler(size, batch, repeats):
    sampler = ViewSampler(size, batch, seed=0, repeats=repeats)
    keys = list(sampler)
    assert len(keys) == len(sampler) == max(size // batch, 1) * batch
    assert all(0 <= key.index < size and key.epoch == 0 for key in keys)
    assert len({(key.index, key.view) for key in keys}) == len(keys), "no view occurs twice"
    assert len({key.position for key in keys}) == len(keys), "no position occurs twice"


@pytest.mark.parametrize(("size", "batch", "repeats"), SHAPES)
def test_partners_are_neighbours_in_the_list_and_by_position(size, batch, repeats):
    for first, second in pairs_of(keys_of(size, batch, repeats=repeats)):
        assert first.position % 2 == 0
        assert second.position == first.position ^ 1
        assert second.view == first.view


@pytest.mark.parametrize(("size", "batch", "repeats"), SHAPES)
def test_two_views_of_one_image_are_never_partners(size, batch, repeats):
    for epoch in range(5):
        for first, second in pairs_of(keys_of(size, batch, epoch=epoch, repeats=repeats)):
            assert first.index != second.index


@pytest.mark.parametrize(("size", "batch", "repeats"), SHAPES)
def test_all_views_of_an_image_are_in_one_global_batch(size, batch, repeats):
    homes = {}
    for number, keys in enumerate(batches_of(keys_of(size, batch, repeats=repeats), batch)):
        for key in keys:
            assert homes.setdefault(key.index, number) == number


@pytest.mark.parametrize(("size", "batch", "repeats"), SHAPES)
def test_views_of_an_image_are_counted_from_zero(size, batch, repeats):
    views = {}
    for key in keys_of(size, batch, repeats=repeats):
        views.setdefault(key.index, []).append(key.view)
    assert all(sorted(seen) == list(range(len(seen))) for seen in views.values())


def test_without_repeats_every_image_of_the_complete_batches_occurs_once():
    keys = keys_of(47, 10)
    assert Counter(key.index for key in keys).most_common(1)[0][1] == 1
    assert len(keys) == 40
    assert {key.view for key in keys} == {0}


def test_with_repeats_one_in_that_many_images_is_chosen_and_repeated():
    counts = Counter(key.index for key in keys_of(90, 18, repeats=3))
    assert set(counts.values()) == {3}
    assert len(counts) == 30
    # 10 pairs of views per batch, and 3 views per pair of images: 3 + 3 + 3 + 1.
    counts = Counter(key.index for key in keys_of(100, 20, repeats=3))
    assert Counter(counts.values()) == {3: 5 * 6, 1: 5 * 2}


def test_a_data_set_smaller_than_the_batch_has_an_even_number_of_views_per_image():
    keys = keys_of(5, 16)
    counts = Counter(key.index for key in keys)
    assert len(keys) == 16
    assert len(counts) == 4, "the image without a partner is left out"
    assert set(counts.values()) == {4}
    assert set(Counter(key.index for key in keys_of(6, 16)).values()) == {2, 3}


def test_the_image_without_a_partner_differs_from_epoch_to_epoch():
    left_out = {(set(range(9)) - {key.index for key in keys_of(9, 8, epoch=epoch)}).pop() for epoch in range(60)}
    assert left_out == set(range(9))


def test_epochs_differ_in_order_and_partners():
    first, second = keys_of(40, 10, epoch=0), keys_of(40, 10, epoch=1)
    assert {key.epoch for key in first} == {0}
    assert {key.epoch for key in second} == {1}
    assert [key.index for key in first] != [key.index for key in second]
    partners = [{frozenset((a.index, b.index)) for a, b in pairs_of(keys)} for keys in (first, second)]
    assert len(partners[0] & partners[1]) < 10


def test_the_same_sampler_gives_the_same_epoch_twice():
    sampler = ViewSampler(40, 10, seed=0)
    assert list(sampler) == list(sampler) == list(ViewSampler(40, 10, seed=0))


# Partners do not depend on how images are batched


def test_partners_do_not_depend_on_batch_size_and_repeats():
    table = {}
    for batch, repeats in [(2, 1), (4, 1), (10, 1), (46, 1), (60, 1), (10, 2), (24, 3), (46, 5), (200, 4)]:
        for first, second in pairs_of(keys_of(47, batch, seed=1, epoch=2, repeats=repeats)):
            for key, partner in ((first, second), (second, first)):
                # The position and the partner of each view of an image.
                known = table.setdefault((key.index, key.view), (key.position, partner.index))
                assert known == (key.position, partner.index)
    assert {view for _, view in table} >= {0, 1, 2, 3}
    # The partner of an image is the same for all its views.
    assert len({(index, partner) for (index, _), (_, partner) in table.items()}) == 46


def test_the_order_of_the_pairs_does_not_depend_on_the_batch_size():
    longest = keys_of(48, 2)
    for batch in (4, 6, 16, 20, 48):
        keys = keys_of(48, batch)
        assert keys == longest[: len(keys)]


# Views that are shown again (num_views)


def partner_table(keys):
    return {(a, b) for a, b in pairs_of(keys)}


@pytest.mark.parametrize("repeats", [1, 4])
def test_cycled_epochs_have_the_same_views_and_partners_in_another_order_of_pairs(repeats):
    size, batch = (48, 8) if repeats == 1 else (4, 16)
    first, again = (keys_of(size, batch, epoch=epoch, num_views=3, repeats=repeats) for epoch in (1, 4))
    assert {key.epoch for key in again} == {1}
    assert partner_table(first) == partner_table(again)
    assert first != again


def test_partners_stay_the_same_when_other_images_are_dropped_at_the_end_of_the_epoch():
    tables = [partner_table(keys_of(47, 10, epoch=epoch, num_views=2)) for epoch in range(0, 20, 2)]
    all_pairs = set().union(*tables)
    assert len(all_pairs) == 23
    assert any(table != tables[0] for table in tables)


def test_epochs_within_a_cycle_are_distinct_and_equal_those_of_a_run_without_num_views():
    cycled = [keys_of(48, 8, epoch=epoch, num_views=3) for epoch in range(3)]
    assert cycled == [keys_of(48, 8, epoch=epoch) for epoch in range(3)]
    assert [keys[0].epoch for keys in cycled] == [0, 1, 2]
    draws = [{view_generator(0, key).random() for key in keys} for keys in cycled]
    assert not draws[0] & draws[1]


def test_with_num_views_1_every_epoch_has_the_same_views():
    tables = [partner_table(keys_of(48, 8, epoch=epoch, num_views=1)) for epoch in range(4)]
    assert tables.count(tables[0]) == 4


# The sampler in the Trainer and in accelerate


def test_set_epoch_does_not_change_an_epoch_that_has_begun():
    sampler = ViewSampler(48, 8, seed=0, num_views=5)
    keys = iter(sampler)
    started = [next(keys) for _ in range(10)]
    sampler.set_epoch(1)
    assert started + list(keys) == keys_of(48, 8, epoch=0, num_views=5)
    assert list(sampler) == keys_of(48, 8, epoch=1, num_views=5)


class Keys(Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, key):
        return key


def loader_of(sampler, batch):
    return DataLoader(Keys(), batch_size=batch, sampler=sampler, collate_fn=list)


@pytest.mark.parametrize(("size", "batch", "repeats"), [(64, 8, 1), (77, 8, 1), (77, 8, 3), (5, 8, 1), (100, 4, 2)])
def test_two_processes_together_have_the_batches_of_one_and_no_pair_is_split(size, batch, repeats):
    """Shards of accelerate for two processes with `batch` images per process."""
    sampler = ViewSampler(size, 2 * batch, seed=0, repeats=repeats)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, batch, drop_last=False), num_processes=2, process_index=index))
        for index in range(2)
    ]
    assert len(shards[0]) == len(shards[1]) == len(sampler) // (2 * batch)
    for step, whole in enumerate(batches_of(list(sampler), 2 * batch)):
        assert shards[0][step] + shards[1][step] == whole
    for keys in shards[0] + shards[1]:
        assert all(second.position == first.position ^ 1 for first, second in pairs_of(keys))


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_a_global_batch_does_not_depend_on_processes_and_accumulation(processes, accumulation):
    per_device = 16 // processes // accumulation
    sampler = ViewSampler(70, 16, seed=0, repeats=3)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, per_device, drop_last=False), processes, index))
        for index in range(processes)
    ]
    for step, whole in enumerate(batches_of(list(sampler), 16)):
        steps = range(step * accumulation, (step + 1) * accumulation)
        together = [key for number in steps for shard in shards for key in shard[number]]
        assert together == whole


def test_epochs_reach_the_sampler_and_keys_the_data_through_accelerates_loaders():
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        loaders = [
            prepare_data_loader(
                loader_of(ViewSampler(77, 16, seed=0), 8), num_processes=2, process_index=index, put_on_device=False
            )
            for index in range(2)
        ]
        for epoch in range(3):
            for loader in loaders:
                loader.set_epoch(epoch)
            first, second = (list(loader) for loader in loaders)
            together = [key for pair in zip(first, second, strict=True) for keys in pair for key in keys]
            assert together == keys_of(77, 16, epoch=epoch)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# Errors


@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_images_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size} image\(s\)"):
        ViewSampler(size, 2, seed=0)


@pytest.mark.parametrize(("batch", "repeats"), [(-2, 1), (0, 1), (1, 2), (3, 3), (255, 2)])
def test_a_batch_that_cannot_be_paired_is_refused_with_a_remedy(batch, repeats):
    with pytest.raises(ValueError, match=f"is {batch}\\..*per_device_train_batch_size"):
        ViewSampler(100, batch, seed=0, repeats=repeats)


@pytest.mark.parametrize(("size", "batch"), [(100, 1), (100, 3), (101, 7), (10, 9), (5, 5), (4, 7), (2, 5), (3, 1)])
def test_an_odd_batch_cuts_the_same_list_of_views(size, batch):
    keys = keys_of(size, batch)
    assert len(keys) == len(ViewSampler(size, batch, seed=0)) == max(size // 2 * 2 // batch, 1) * batch
    assert len(set(keys)) == len(keys)
    if size > batch:  # the views and their order are those of an even batch
        assert [key[1:] for key in keys] == [key[1:] for key in keys_of(size, 2)][: len(keys)]


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"repeats": -1}, {"num_views": 0}, {"num_views": -3}])
def test_counts_below_one_are_refused_with_their_values(counts):
    (name, value), *_ = counts.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ViewSampler(100, 10, seed=0, **counts)
