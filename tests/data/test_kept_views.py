"""Views that are kept in memory: they are computed once, and they equal views that are computed again."""

import pickle

import pytest
import torch

from hf_deit.data import views
from hf_deit.data.augmentation import Augmentation
from hf_deit.data.sampling import ViewKey, ViewSampler
from hf_deit.data.views import ViewDataset, collate
from hf_deit.errors import DataError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny


@pytest.fixture
def computed(monkeypatch):
    """Indices of the images for which this process computed a view, in order."""
    keys = []
    plain = ViewDataset._readable

    def readable(self, index):
        keys.append(index)
        return plain(self, index)

    monkeypatch.setattr(ViewDataset, "_readable", readable)
    return keys


def same_rows(one, other):
    assert one.keys() == other.keys()
    return torch.equal(one["pixel_values"], other["pixel_values"]) and one["labels"] == other["labels"]


def test_kept_views_are_computed_once_and_equal_views_computed_again(computed):
    plain, keeping = tiny.training_data(), tiny.training_data()
    keeping.keep_views(2, 2)
    keys = [ViewKey(epoch, index, view, 0) for epoch in range(2) for index in range(len(plain)) for view in range(2)]
    first = [keeping[key] for key in keys]
    computed.clear()
    second = [keeping[key] for key in keys]
    assert computed == []
    for key, one, other in zip(keys, first, second, strict=True):
        assert same_rows(one, other)
        assert same_rows(plain[key], other)
        assert other["view_key"] == key
    second[0]["pixel_values"].zero_()  # a returned view is a copy
    assert same_rows(keeping[keys[0]], first[0])


def test_forked_workers_share_kept_views(computed):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    sampler = ViewSampler(len(dataset), global_batch_size=4, seed=0, num_views=1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    batches = list(loader)
    assert computed == []  # the workers computed the views
    for key, row in zip(sampler, (row for batch in batches for row in batch["pixel_values"]), strict=True):
        assert torch.equal(dataset[key]["pixel_values"], row)
    assert computed == []


def test_a_worker_that_is_not_forked_computes_its_own_views(computed):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    key = ViewKey(0, 3, 0, 0)
    row = dataset[key]
    computed.clear()
    assert same_rows(pickle.loads(pickle.dumps(dataset))[key], row)
    assert computed == [3]


def test_a_substitute_of_a_broken_image_is_not_kept(computed):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    dataset.broken[3] = 1
    key = ViewKey(0, 3, 0, 0)
    first, count = dataset[key], len(computed)
    assert same_rows(dataset[key], first)
    assert len(computed) == 2 * count


# Ten views of 57 × 58 pixels take 99,190 bytes.
BYTES = 10 * (1 + 3 * 57 * 58)


def keeps_ten_views(processes=1, **fields):
    data = ViewDataset(tiny.source(10), Augmentation((57, 58)), 0, **fields)
    data.keep_views(1, 1, processes)
    return data._kept is not None


def test_views_take_at_most_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(views, "free_memory", lambda: 2 * BYTES)
    assert keeps_ten_views()
    monkeypatch.setattr(views, "free_memory", lambda: 2 * BYTES - 1)
    assert not keeps_ten_views()


def test_views_that_do_not_fit_are_logged_with_their_size_and_the_allowed_size(monkeypatch, caplog):
    monkeypatch.setattr(views, "free_memory", lambda: 3_000_000_000)
    with caplog.at_level("INFO"):
        assert views.memory_for_views(1_500_000_000, 1000, 10_000_000, 1, (224, 224)) is None
    assert "1000 views" in caplog.text and "1505290.0 GB" in caplog.text and "1.5 GB" in caplog.text


def test_views_take_at_most_the_memory_limit_even_if_the_free_memory_is_unknown(monkeypatch):
    for free in (None, 100 * BYTES):
        monkeypatch.setattr(views, "free_memory", lambda free=free: free)
        assert keeps_ten_views()
        assert keeps_ten_views(memory_limit=BYTES)
        assert not keeps_ten_views(memory_limit=BYTES - 1)
    assert not keeps_ten_views(memory_limit=0)


def test_a_negative_memory_limit_and_zero_concurrent_trainings_are_refused():
    for field, value in (("memory_limit", -1), ("concurrent_trainings", 0)):
        with pytest.raises(DataError, match=f"{field}={value}"):
            keeps_ten_views(**{field: value})


def test_free_memory_is_what_the_system_reports_as_available(monkeypatch, tmp_path):
    file = tmp_path / "meminfo"
    monkeypatch.setattr(views, "_MEMORY_FILE", file)
    assert views.free_memory() is None  # not Linux
    file.write_text("MemTotal:       16000 kB\nMemFree:          100 kB\nMemAvailable:    8000 kB\n")
    assert views.free_memory() == 8000 * 1024
    file.write_text("MemTotal:       16000 kB\n")  # a Linux kernel from before 2014
    assert views.free_memory() is None


@pytest.mark.parametrize(
    ("fields", "keeps"),
    [
        ({"num_views": 1}, True),
        ({"num_views": 1, "max_steps": 20}, True),
        ({"num_views": 3}, False),
        ({}, False),
    ],
)
def test_a_training_computes_each_view_once_and_learns_the_same(tmp_path, monkeypatch, computed, fields, keeps):
    def trained(folder):
        schedule = {"max_steps": -1, "num_train_epochs": 3, **fields}
        args = tiny.arguments(folder, distillation_type="none", **schedule)
        trainer = DistillationTrainer(tiny.student(), None, args, train_dataset=tiny.training_data())
        computed.clear()
        trainer.train()
        return trainer.model

    model, images = trained(tmp_path / "keeping"), len(tiny.training_data())
    assert (len(computed) == images) == keeps
    monkeypatch.setattr("hf_deit.data.views.memory_for_views", lambda *unused: None)
    other = trained(tmp_path / "not")
    assert len(computed) > images
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("repeats", [1, 3])
def test_all_views_of_a_data_set_smaller_than_the_batch_are_kept(tmp_path, computed, repeats):
    fields = {"num_views": 1, "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 64}
    args = tiny.arguments(tmp_path, distillation_type="none", repeated_augmentation=repeats, **fields)
    DistillationTrainer(tiny.student(), None, args, train_dataset=tiny.training_data(12)).train()
    # 3 epochs of 64 views of 12 images: 5 or 6 views per image. Which images have 6 views depends on the epoch.
    assert 64 <= len(computed) <= 72


def test_processes_and_trainings_at_the_same_time_share_the_memory(monkeypatch):
    for free, limit in ((2 * 6 * BYTES, 100 * BYTES), (100 * BYTES, 6 * BYTES)):
        monkeypatch.setattr(views, "free_memory", lambda free=free: free)
        assert keeps_ten_views(processes=6, memory_limit=limit)
        assert not keeps_ten_views(processes=7, memory_limit=limit)
        assert keeps_ten_views(concurrent_trainings=6, memory_limit=limit)
        assert not keeps_ten_views(concurrent_trainings=7, memory_limit=limit)
        assert keeps_ten_views(processes=2, concurrent_trainings=3, memory_limit=limit)
        assert not keeps_ten_views(processes=2, concurrent_trainings=4, memory_limit=limit)
