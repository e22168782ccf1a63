"""Learning from the mean of the teacher's outputs over the cached views of an image (`average_views`)."""

import logging
import re

import pytest
import torch

from hf_deit.data.sampling import keys_at
from hf_deit.distillation.cache import RecordFormat
from hf_deit.errors import UserError
from tests.helpers import tiny
from tests.helpers.caches import build, tiny_teacher, trainer_of

SOFT = {"distillation_type": "soft", "distillation_tau": 1.0}
SAVED = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 9}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cache") / "cache", "dense", epochs=3)


def collated(trainer, epoch):
    """Return the rows of an epoch of views, and their batch as the data workers make it."""
    sampler = trainer.args.view_schedule(trainer.train_dataset).sampler(epoch)
    keys = list(sampler)[:16]
    rows = [trainer.train_dataset[key] | {"view_key": key} for key in keys]
    collator = trainer.cached.training_collator(lambda rows: {})
    return keys, collator(rows)["teacher_logits"]


@pytest.mark.parametrize("num_views", [2, 3])
def test_the_outputs_are_the_mean_over_the_views_that_the_run_shows(tmp_path, cache, num_views):
    fields = {**SOFT, "num_views": num_views, "max_steps": 60}
    averaged = trainer_of(tmp_path / "averaged", cache=cache, average_views=True, **fields)
    single = trainer_of(tmp_path / "single", cache=cache, **fields)
    sums, counts = {}, {}
    schedule = single.args.view_schedule(single.train_dataset)
    for epoch in range(num_views):
        keys, logits = [], []
        for batch in schedule.batches(epoch):
            by_position = {key.position: key for key in _keys(single, epoch, batch)}
            keys += [by_position[position] for position in batch]
            logits.append(cache.outputs(epoch, batch)["teacher_logits"])
        for key, row in zip(keys, torch.cat(logits).double().softmax(-1), strict=True):
            sums[key.index] = sums.get(key.index, 0) + row
            counts[key.index] = counts.get(key.index, 0) + 1
    for epoch in (0, 1):
        keys, logits = collated(averaged, epoch)
        _, own = collated(single, epoch)
        expected = torch.stack([sums[key.index] / counts[key.index] for key in keys])
        torch.testing.assert_close(logits.double().softmax(-1), expected, atol=1e-6, rtol=0)
        assert not torch.allclose(logits.softmax(-1), own.softmax(-1), atol=1e-3)
    assert max(counts.values()) == num_views


def _keys(trainer, epoch, positions):
    dataset = trainer.train_dataset
    return keys_at(dataset.seed, len(dataset), epoch, positions)


def test_a_resumed_run_and_workers_give_the_same_weights(tmp_path, cache):
    whole = trainer_of(tmp_path / "run", cache=cache, average_views=True, **SOFT, **SAVED)
    whole.train()
    resumed = trainer_of(tmp_path / "run", cache=cache, average_views=True, **SOFT, **SAVED, dataloader_num_workers=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_run_that_did_not_average_is_not_continued_by_one_that_does(tmp_path, cache):
    trainer_of(tmp_path / "run", cache=cache, **SOFT, **SAVED).train()
    other = trainer_of(tmp_path / "run", cache=cache, average_views=True, **SOFT, **SAVED)
    with pytest.raises(UserError, match="average_views"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_certain_outputs_stay_finite(tmp_path):
    class Certain(torch.nn.Module):
        def forward(self, pixels):
            return torch.tensor([[500.0, -500.0, -500.0, -500.0]]).repeat(len(pixels), 1) + 0 * pixels.mean()

    folder = tmp_path / "cache"
    build(folder, "dense", teacher=tiny_teacher(network=Certain()))
    trainer = trainer_of(tmp_path / "run", cache=folder, average_views=True, **SOFT)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(tiny.logged(trainer, "distillation_loss"))))


def test_the_log_names_the_number_of_views(tmp_path, cache, caplog):
    with caplog.at_level(logging.INFO, logger="hf_deit"):
        trainer_of(tmp_path, cache=cache, average_views=True, **SOFT, num_views=3, max_steps=60)
    assert re.search(r"over \d to 3 views of each image", caplog.text)


@pytest.mark.parametrize("kind", ["hard", RecordFormat("top_k", 3, top_k=2, tau=1.0)], ids=["hard", "top_k"])
def test_a_cache_without_all_logits_is_refused(tmp_path, kind):
    build(tmp_path / "cache", kind)
    fields = {"distillation_type": "hard"} if kind == "hard" else SOFT
    with pytest.raises(UserError, match="average_views=True.*all logits"):
        trainer_of(tmp_path / "run", cache=tmp_path / "cache", average_views=True, **fields)


def test_a_live_teacher_and_mixed_images_are_refused(tmp_path, cache):
    with pytest.raises(UserError, match="average_views=True needs a teacher cache"):
        trainer_of(tmp_path / "live", tiny_teacher(), average_views=True, **SOFT)
    with pytest.raises(ValueError, match=r"average_views=True with mixup_alpha=0\.8"):
        tiny.arguments(tmp_path / "mixed", average_views=True, mixup_alpha=0.8, **SOFT)
