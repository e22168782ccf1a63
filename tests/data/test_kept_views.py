"""Views that come again are made once, and are what they would have been."""

import pickle

import psutil
import pytest
import torch

from hf_deit.data import views
from hf_deit.data.sampling import ViewKey, ViewSampler
from hf_deit.data.views import ViewDataset, collate, memory_for_views, share_memory
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny


@pytest.fixture
def made(monkeypatch):
    """The indices of the images that views were made of, in order; by this process."""
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


def test_kept_views_are_those_made_anew_and_are_made_once(made):
    plain, keeping = tiny.training_data(), tiny.training_data()
    keeping.keep_views(2, 2)
    keys = [ViewKey(epoch, index, view, 0) for epoch in range(2) for index in range(len(plain)) for view in range(2)]
    first = [keeping[key] for key in keys]
    made.clear()
    second = [keeping[key] for key in keys]
    assert made == []
    for key, one, other in zip(keys, first, second, strict=True):
        assert same_rows(one, other)
        assert same_rows(plain[key], other)
        assert other["view_key"] == key
    second[0]["pixel_values"].zero_()  # what is given is the caller's own
    assert same_rows(keeping[keys[0]], first[0])


def test_forked_workers_share_what_they_keep(made):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    sampler = ViewSampler(len(dataset), global_batch_size=4, seed=0, num_views=1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    batches = list(loader)
    assert made == []  # by workers
    for key, row in zip(sampler, (row for batch in batches for row in batch["pixel_values"]), strict=True):
        assert torch.equal(dataset[key]["pixel_values"], row)
    assert made == []


def test_a_worker_that_is_not_forked_makes_its_own_views(made):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    key = ViewKey(0, 3, 0, 0)
    row = dataset[key]
    made.clear()
    assert same_rows(pickle.loads(pickle.dumps(dataset))[key], row)
    assert made == [3]


def test_a_substitute_of_a_broken_image_is_not_kept(made):
    dataset = tiny.training_data()
    dataset.keep_views(1, 1)
    dataset.broken[3] = 1
    key = ViewKey(0, 3, 0, 0)
    first, count = dataset[key], len(made)
    assert same_rows(dataset[key], first)
    assert len(made) == 2 * count


def test_views_that_do_not_fit_into_memory_are_not_kept(caplog):
    with caplog.at_level("INFO"):
        assert memory_for_views(1000, 10_000_000, 1, (224, 224)) is None
    assert "1000 views of each image would take 1505290.0 GB" in caplog.text


def test_the_limit_of_a_container_or_batch_job_counts(monkeypatch, tmp_path):
    plain = psutil.virtual_memory().available
    monkeypatch.setattr(views, "_CGROUPS", tmp_path)
    monkeypatch.setattr(views, "_OWN_CGROUP", tmp_path / "own")
    assert views.free_memory() > plain / 2  # no cgroups here
    (tmp_path / "own").write_text("1:name=systemd:/other\n0::/batch/job\n")
    assert views.free_memory() > plain / 2
    (tmp_path / "batch" / "job").mkdir(parents=True)
    for folder, limit, used in (("", "max", "7"), ("batch", "900000", "100000"), ("batch/job", "max", "50")):
        (tmp_path / folder / "memory.max").write_text(limit + "\n")
        (tmp_path / folder / "memory.current").write_text(used + "\n")
    assert views.free_memory() == 800_000
    # Files that were read count as used, and would make room.
    (tmp_path / "batch" / "memory.stat").write_text("anon 70000\ninactive_file 25000\nactive_file 3\n")
    assert views.free_memory() == 825_000
    (tmp_path / "batch" / "memory.stat").write_text("broken")
    (tmp_path / "batch" / "memory.max").write_text("300000")
    assert memory_for_views(1, 10, 1, (58, 57)) is not None  # 99,190 of 100,000 bytes
    assert memory_for_views(1, 10, 1, (58, 58)) is None
    (tmp_path / "batch" / "memory.current").write_text("900001")
    assert views.free_memory() == 0


@pytest.mark.parametrize(
    ("fields", "keeps"),
    [
        ({"num_views": 1}, True),
        ({"num_views": 1, "max_steps": 20}, True),
        ({"num_views": 3}, False),
        ({}, False),
    ],
)
def test_a_training_makes_each_of_its_views_once_and_learns_the_same(tmp_path, monkeypatch, made, fields, keeps):
    def trained(folder):
        schedule = {"max_steps": -1, "num_train_epochs": 3, **fields}
        args = tiny.arguments(folder, distillation_type="none", **schedule)
        trainer = DistillationTrainer(tiny.student(), None, args, train_dataset=tiny.training_data())
        made.clear()
        trainer.train()
        return trainer.model

    model, images = trained(tmp_path / "keeping"), len(tiny.training_data())
    assert (len(made) == images) == keeps
    monkeypatch.setattr("hf_deit.data.views.memory_for_views", lambda *shape: None)
    other = trained(tmp_path / "not")
    assert len(made) > images
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_set_smaller_than_the_batch_has_all_its_views_kept(tmp_path, made, repeats):
    fields = {"num_views": 1, "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 64}
    args = tiny.arguments(tmp_path, distillation_type="none", repeated_augmentation=repeats, **fields)
    DistillationTrainer(tiny.student(), None, args, train_dataset=tiny.training_data(12)).train()
    # Of 12 images 5 or 6 views each, in three epochs of 64; which have 6 depends on the epoch.
    assert 64 <= len(made) <= 72


def test_processes_share_the_memory(monkeypatch):
    monkeypatch.setattr(views, "free_memory", lambda: 2 * 100_000)
    assert memory_for_views(1, 10, 1, (57, 58)) is not None
    assert memory_for_views(1, 10, 1, (57, 58), processes=2) is None


def test_trainings_beside_each_other_share_the_memory(monkeypatch):
    monkeypatch.setattr(views, "free_memory", lambda: 2 * 100_000)
    monkeypatch.setattr(views, "_trainings", 1)
    assert memory_for_views(1, 10, 1, (57, 58)) is not None
    share_memory(2)
    assert memory_for_views(1, 10, 1, (57, 58)) is None
