"""The order of an epoch with unlabelled images: shares of each batch, passes, turns, keys and partners."""

from collections import Counter

import pytest

from hf_deit.data.sampling import BatchShares, ViewKey, ViewSampler, keys_at


def epoch_of(labelled, unlabelled, batch=8, share=0.5, epoch=0, **kwargs):
    sampler = ViewSampler(labelled + unlabelled, batch, 3, unlabelled=unlabelled, unlabelled_share=share, **kwargs)
    sampler.set_epoch(epoch)
    return sampler, list(sampler)


SHAPES = [(6, 40, 8, 0.5), (7, 41, 8, 0.75), (40, 9, 4, 0.5), (2, 100, 12, 0.34), (101, 12, 12, 0.9)]


@pytest.mark.parametrize(("labelled", "unlabelled", "batch", "share"), SHAPES)
def test_each_global_batch_has_the_same_share_and_an_epoch_is_one_pass_over_the_unlabelled(
    labelled, unlabelled, batch, share
):
    sampler, keys = epoch_of(labelled, unlabelled, batch, share)
    assert len(keys) == len(sampler) == sampler.num_batches * batch
    expected = 2 * round(share * batch / 2)
    for start in range(0, len(keys), batch):
        assert sum(key.index >= labelled for key in keys[start : start + batch]) == expected
    shown = Counter(key.index for key in keys if key.index >= labelled)
    assert set(shown.values()) == {1}
    assert unlabelled - expected - 1 < len(shown) <= unlabelled


@pytest.mark.parametrize(("labelled", "unlabelled", "batch", "share"), SHAPES)
def test_keys_are_unique_and_partners_are_two_images_of_one_kind(labelled, unlabelled, batch, share):
    for epoch in range(3):
        _, keys = epoch_of(labelled, unlabelled, batch, share, epoch)
        assert len({(key.epoch, key.index, key.view) for key in keys}) == len(keys)
        assert len({key.position for key in keys}) == len(keys)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            assert second.position == first.position ^ 1 == first.position + 1
            assert first.index != second.index
            assert (first.index >= labelled) == (second.index >= labelled)


def test_labelled_images_repeat_evenly_with_new_views_and_new_partners():
    _, keys = epoch_of(6, 48)
    shown = Counter(key.index for key in keys if key.index < 6)
    assert set(shown.values()) == {8}
    partners = {
        frozenset((first.index, second.index))
        for first, second in zip(keys[::2], keys[1::2], strict=True)
        if first.index < 6
    }
    assert len(partners) > 3  # more than one set of partners


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "batch", "num_views"), [(40, 8, 8, None), (40, 8, 8, 1), (62, 12, 4, 2)]
)
def test_every_labelled_image_gets_its_turn_if_an_epoch_shows_only_some(labelled, unlabelled, batch, num_views):
    sampler, keys = epoch_of(labelled, unlabelled, batch, num_views=num_views)
    rounds = sampler.shares.rounds
    per_epoch = sum(key.index < labelled for key in keys)
    assert rounds == -(-labelled // per_epoch) > 2
    for first in (0, rounds):
        seen = set()
        for epoch in range(first, first + rounds):
            seen |= {key.index for key in epoch_of(labelled, unlabelled, batch, epoch=epoch, num_views=num_views)[1]}
        assert seen == set(range(labelled)) | {index for index in seen if index >= labelled}
    orders = [[key.index for key in epoch_of(labelled, unlabelled, batch, epoch=epoch)[1]] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_views_repeat_after_num_views_in_another_order():
    first, again, later = (epoch_of(7, 40, epoch=epoch, num_views=2)[1] for epoch in (0, 2, 1))
    assert {key for key in first if key.index >= 7} == {key for key in again if key.index >= 7}
    assert first != again
    assert not set(first) & set(later)


@pytest.mark.parametrize(("labelled", "unlabelled", "batch", "share"), SHAPES)
def test_a_position_alone_gives_the_key_whatever_the_batch_size_and_the_share(labelled, unlabelled, batch, share):
    for epoch in (0, 5):
        sampler, keys = epoch_of(labelled, unlabelled, batch, share, epoch)
        assert all(0 <= key.position < sampler.records for key in keys)
        assert keys_at(3, labelled + unlabelled, epoch, [key.position for key in keys], sampler.shares) == keys
    other = BatchShares(6, 40, 12, 0.34)
    _, keys = epoch_of(6, 40, 8, 0.5, 2)
    assert keys_at(3, 46, 2, [key.position for key in keys], other) == keys


PINNED = [ViewKey(1, 3, 0, 10), ViewKey(1, 0, 0, 11), ViewKey(1, 7, 0, 0), ViewKey(1, 12, 0, 1)]


def test_pinned_keys_do_not_change():
    """Stored teacher outputs depend on the keys, so a change of them is a change of the files' meaning."""
    _, keys = epoch_of(4, 10, batch=4, epoch=1)
    assert keys[:4] == PINNED


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "batch", "share", "part"),
    [
        (10, 20, 7, 0.5, "even"),
        (10, 20, 2, 0.5, "at least 4"),
        (10, 20, 8, 0.05, "at least one pair of each kind"),
        (10, 20, 8, 0.95, "at least one pair of each kind"),
        (1, 20, 8, 0.5, "at least 2"),
        (10, 1, 8, 0.5, "at least 2"),
        (10, 2, 8, 0.5, "only 2 are given"),
        (10, 20, 8, 1.0, "unlabelled_share=1.0"),
        (10, 20, 8, float("nan"), "unlabelled_share=nan"),
    ],
)
def test_a_batch_without_whole_pairs_of_each_kind_is_refused(labelled, unlabelled, batch, share, part):
    with pytest.raises(ValueError, match=part):
        epoch_of(labelled, unlabelled, batch, share)


def test_repeated_views_are_refused():
    with pytest.raises(ValueError, match="repeated_augmentation=3"):
        epoch_of(10, 20, repeats=3)
