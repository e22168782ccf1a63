"""Tests of training with cached outputs, compared with the same training with the live teacher."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hf_deit import fingerprints
from hf_deit.data.batch_ops import Mixing
from hf_deit.data.sources import Source
from hf_deit.data.streams import ViewStream
from hf_deit.distillation.cache import RecordFormat, TeacherCache
from hf_deit.distillation.cached_teacher import CachedTeacher
from hf_deit.errors import TeacherCacheError
from tests.helpers import SCRIPTS, cached_processes, tiny
from tests.helpers.caches import build, tiny_teacher, tiny_views, trainer_of
from tests.helpers.processes import run_distributed

TERMS = ("loss", "cls_loss", "distillation_loss", "teacher_agreement")
MIXED = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeated_augmentation": 3}


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same_training(trainer, live):
    trainer.train()
    live.train()
    for name in TERMS:
        assert tiny.logged(trainer, name) == tiny.logged(live, name)
    ours, theirs = weights(trainer), weights(live)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hard", {"distillation_type": "hard"}),
        ("dense", {"distillation_type": "hard"}),
        ("dense", {"distillation_type": "soft", "distillation_tau": 1.5}),
        ("dense", {"distillation_type": "soft", "distillation_reduction": "official", **MIXED}),
        ("hard", {"distillation_type": "hard", **MIXED, "dataloader_num_workers": 2}),
        ("hard", {"distillation_type": "hard", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    ],
    ids=["hard", "hard of dense", "soft", "mixed soft", "mixed hard with workers", "accumulated"],
)
def test_training_with_cached_outputs_equals_training_with_the_live_teacher(tmp_path, kind, changes):
    mixing = Mixing(0.8, 1.0) if "mixup_alpha" in changes else Mixing()
    batch = changes.get("per_device_train_batch_size", 8)
    views = tiny_views(batch_size=batch, mixing=mixing, repeats=changes.get("repeated_augmentation", 1))
    build(tmp_path / "cache", kind, views=views)
    cached = trainer_of(tmp_path / "cached", cache=tmp_path / "cache", **changes)
    assert cached.teacher is None
    assert_same_training(cached, trainer_of(tmp_path / "live", tiny_teacher(), **changes))


def test_one_head_learns_from_cached_outputs_as_from_the_live_teacher(tmp_path):
    cache = build(tmp_path / "cache", "dense")
    changes = {"two_heads": False, "distillation_type": "soft"}
    cached = trainer_of(tmp_path / "cached", cache=cache, **changes)
    assert_same_training(cached, trainer_of(tmp_path / "live", tiny_teacher(), **changes))


def test_top_k_outputs_that_leave_one_class_out_train_as_all_logits(tmp_path):
    record_format = RecordFormat("top_k", len(tiny.NAMES), top_k=len(tiny.NAMES) - 1, tau=3.0)
    cached = trainer_of(tmp_path / "cached", cache=build(tmp_path / "cache", record_format), distillation_type="soft")
    live = trainer_of(tmp_path / "live", tiny_teacher(), distillation_type="soft")
    cached.train()
    live.train()
    for name in TERMS:
        np.testing.assert_allclose(tiny.logged(cached, name), tiny.logged(live, name), atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "dense", "top_k"])
def test_an_evaluation_reports_teacher_metrics_without_a_live_teacher(tmp_path, kind):
    # The students are not trained, so they are equal for every kind of cache.
    cached = trainer_of(tmp_path / "cached", cache=build(tmp_path / "cache", kind)).evaluate()
    live = trainer_of(tmp_path / "live", tiny_teacher()).evaluate()
    for name in ("teacher_accuracy", "teacher_agreement", "accuracy", "loss", "distillation_loss"):
        assert cached[f"eval_{name}"] == live[f"eval_{name}"]


def test_a_cache_serves_another_batch_size(tmp_path):
    cache = build(tmp_path / "cache", "dense", views=tiny_views(batch_size=4, global_batch_size=4))
    changes = {"distillation_type": "soft", "per_device_train_batch_size": 20, "max_steps": 4}
    cached = trainer_of(tmp_path / "cached", cache=cache, **changes)
    live = trainer_of(tmp_path / "live", tiny_teacher(), **changes)
    cached.train()
    live.train()
    assert len(tiny.logged(live, "loss")) == 4
    np.testing.assert_allclose(tiny.logged(cached, "loss"), tiny.logged(live, "loss"), atol=1e-4)


def test_a_student_of_another_size_uses_the_same_cache(tmp_path):
    build(tmp_path / "cache", "dense")
    changes = {"distillation_type": "soft", "distillation_alpha": 0.7, "distillation_tau": 5.0}

    def trainer(folder, **teacher):
        model = tiny.student(image_size=8, hidden_size=16, intermediate_size=32)
        evaluation = tiny.EvaluationDataset(tiny.source(22, 7), (8, 8), view_size=(tiny.SIZE, tiny.SIZE))
        built = trainer_of(folder, model=model, **teacher, **changes)
        built.eval_dataset = evaluation
        return built

    cached, live = (
        trainer(tmp_path / "cached", cache=tmp_path / "cache"),
        trainer(tmp_path / "live", teacher=tiny_teacher()),
    )
    assert_same_training(cached, live)
    ours, theirs = cached.evaluate(), live.evaluate()
    assert ours["eval_teacher_agreement"] == theirs["eval_teacher_agreement"]
    assert ours["eval_distillation_loss"] == pytest.approx(theirs["eval_distillation_loss"], abs=1e-6)


def test_fewer_stored_views_than_epochs_repeat_with_a_warning(tmp_path, caplog):
    cache = build(tmp_path / "cache", epochs=2)
    with caplog.at_level(logging.WARNING):
        cached = trainer_of(tmp_path / "cached", cache=cache, max_steps=20)
    assert "2 epoch(s) of views, but the run has 4 epochs" in caplog.text
    live = trainer_of(tmp_path / "live", tiny_teacher(), max_steps=20, num_views=2)
    cached.train()
    live.train()
    # Epochs 2 and 3 show the views in other batches, in which the outputs of the live teacher may be rounded
    # differently.
    np.testing.assert_allclose(tiny.logged(cached, "loss"), tiny.logged(live, "loss"), atol=1e-4)
    assert cached.run_description()["recipe"]["num_views"] == 2


def test_a_live_run_is_resumed_with_a_cache_of_the_same_teacher_and_not_with_another(tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 9}
    whole = trainer_of(tmp_path / "run", tiny_teacher(), **saves)
    whole.train()
    middle = str(tmp_path / "run" / "checkpoint-4")
    same, other = build(tmp_path / "same"), build(tmp_path / "other", teacher=tiny_teacher(seed=2))
    with pytest.raises(ValueError, match="teacher.fingerprint"):
        trainer_of(tmp_path / "run", cache=other, **saves).train(resume_from_checkpoint=middle)
    top = build(tmp_path / "top", "top_k")
    with pytest.raises(
        ValueError, match=r"teacher.stored.top_k: nothing in the checkpoint, 2 now\n(.|\n)*another teacher than"
    ):
        trainer_of(tmp_path / "run", cache=top, **saves).train(resume_from_checkpoint=middle)
    resumed = trainer_of(tmp_path / "run", cache=same, **saves)
    resumed.train(resume_from_checkpoint=middle)
    assert resumed.state.global_step == 10
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Counting(nn.Module):
    """Teacher that counts the images it sees."""

    def __init__(self):
        super().__init__()
        self.network, self.images = tiny.conv_teacher(), 0

    def forward(self, pixels):
        self.images += len(pixels)
        return self.network(pixels)


def test_verifying_runs_the_same_teacher_and_reports(tmp_path, caplog):
    network = Counting()
    cache = build(tmp_path / "cache", "dense", teacher=tiny_teacher(network=network))
    network.images = 0
    with caplog.at_level(logging.INFO):
        trainer = trainer_of(tmp_path / "run", tiny_teacher(network=network), cache, verified=20)
    assert "20 stored outputs verified: for 100.00 %" in caplog.text
    assert 20 <= network.images <= 24  # includes two alignments with one black view each
    assert trainer.teacher is None


def test_verifying_finds_changed_images_with_the_same_fingerprint(tmp_path):
    build(tmp_path / "cache")
    changed = tiny.ViewDataset(tiny.source(43, seed=5, fingerprint="43-0"), tiny.training_data(43).augmentation, seed=0)
    with pytest.raises(TeacherCacheError, match=r"verify_teacher_cache: of 84 .*the predicted class"):
        # These are all records, so the result does not depend on the draw.
        trainer_of(tmp_path / "run", tiny_teacher(), tmp_path / "cache", data=changed, verified=84)


class Drifting(nn.Module):
    """Teacher whose logits for the first images of each batch can be negated without changing its weights."""

    def __init__(self):
        super().__init__()
        self.network, self.turned = tiny.conv_teacher(), 0

    def forward(self, pixels):
        turned = torch.arange(len(pixels)) < self.turned
        logits = self.network(pixels)
        return torch.where(turned[:, None], -logits, logits)


@pytest.fixture
def drifting(tmp_path):
    """Return a teacher that now predicts another class for one in eight images, and a cache of its earlier outputs."""
    teacher = tiny_teacher(network=Drifting())
    views = tiny_views(tiny.training_data(64))
    cache = build(tmp_path / "cache", teacher=teacher, views=views, epochs=1)
    teacher.model.turned = 1
    return teacher, CachedTeacher(cache, replace(views, updates=8), None, "hard", 3.0)


def test_verifying_refuses_more_differences_than_chance_explains_and_warns_of_fewer(drifting, caplog):
    teacher, cached = drifting
    assert cached.check_teacher(teacher, 8).same_decision == 7 / 8  # one difference among eight may be due to rounding
    assert "of 8 stored outputs" in caplog.text and "the predicted class, for 1 of them" in caplog.text
    with pytest.raises(TeacherCacheError, match=r"of 64 .*the predicted class, for 8 of them"):
        cached.check_teacher(teacher, 64)


def test_only_the_first_process_verifies(drifting):
    teacher, cached = drifting
    views = replace(tiny_views(tiny.training_data(64)), updates=8)
    second = CachedTeacher(cached.cache, views, None, "hard", 3.0, is_main_process=False)
    assert second.check_teacher(teacher, 64) is None


def test_verifying_without_views_is_refused(drifting):
    teacher, cached = drifting
    without = CachedTeacher(cached.cache, None, None, "hard", 3.0)
    with pytest.raises(TeacherCacheError, match="verify_teacher_cache=5 .*distillation_type='none'"):
        without.check_teacher(teacher, 5)
    assert without.check_teacher(teacher, 0) is None


@pytest.mark.parametrize("persistent", [False, True])
def test_a_file_of_a_large_cache_is_read_for_its_digest_once_a_run(tmp_path, monkeypatch, persistent):
    monkeypatch.setattr("hf_deit.distillation.cache.CHECKED_AT_ONCE", 100)
    digest, record = fingerprints.file_digest, tmp_path / "read"

    def counted(path):  # called in several processes
        with record.open("a") as file:
            file.write(f"{path.name}\n")
        return digest(path)

    cache = build(tmp_path / "cache")
    monkeypatch.setattr("hf_deit.distillation.cache.file_digest", counted)
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": persistent}
    # 20 steps are 4 epochs. The cache has 2 epochs of views.
    trainer = trainer_of(tmp_path / "run", cache=tmp_path / "cache", max_steps=20, **workers)
    assert not record.exists()
    trainer.train()
    trainer.evaluate()
    trainer.evaluate()
    assert sorted(record.read_text().split()) == ["epoch-00000.npy", "epoch-00001.npy", "validation.npy"]
    assert cache.epochs == 2


def fields_of(**changes):
    fields = {"crop_scale": (0.5, 1.0), **changes}
    return tiny.training_data(43, **fields)


def with_source(**changes):
    plain = tiny.source(43)
    fields = {"items": plain.items, "labels": plain.labels, "class_names": plain.class_names, "fingerprint": "43-0"}
    return tiny.ViewDataset(Source(**{**fields, "name": "tiny", **changes}), fields_of().augmentation, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup_alpha": 0.8}, ["views.mixing.mixup_alpha", "0.0 in the cache", "0.8 now"]),
        ({"data": fields_of(crop_scale=(0.25, 1.0))}, ["views.data.augmentation.crop_scale", "[0.5, 1.0]", "0.25"]),
        ({"data": fields_of(erasing_probability=0.25)}, ["views.data.augmentation.erasing_probability", "0.25 now"]),
        ({"data": fields_of(view_size=(24, 24))}, ["views.data.augmentation.view_size", "[16, 16]", "[24, 24]"]),
        (
            {"data": tiny.training_data(44)},
            ["views.data.images", "43 in the cache", "44 now", "views.data.fingerprint"],
        ),
        ({"data": with_source(fingerprint="reordered")}, ["views.data.fingerprint", "'43-0'", "'reordered'"]),
        ({"distillation_type": "soft"}, ["kind='hard'", "distillation_type='soft'", "--kind soft"]),
        ({"num_views": 3, "max_steps": 30}, ["num_views=3", "2 epoch(s)", "--views 3"]),
        (
            {"repeated_augmentation": 2},
            ["42 views per epoch", "84", "repeated_augmentation=2", "set repeated_augmentation=1"],
        ),
        ({"teacher": tiny_teacher(seed=2)}, ["teacher.fingerprint", "another teacher"]),
        ({"verified": 5}, ["verify_teacher_cache=5", "teacher"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[0],
)
def test_a_cache_that_does_not_fit_the_run_is_refused_with_the_differing_field(tmp_path, changes, named):
    build(tmp_path / "cache")
    with pytest.raises(ValueError) as error:
        trainer_of(tmp_path / "run", cache=tmp_path / "cache", **changes)
    assert [text for text in named if text not in str(error.value)] == []


@pytest.mark.parametrize(
    ("built", "needed", "advised"),
    [
        (tiny_views(), {"repeats": 3}, {"repeats": 1}),
        (tiny_views(repeats=2), {"repeats": 4}, {"repeats": 2}),
        (tiny_views(), {"global_batch_size": 64}, {"global_batch_size": 42}),
        (tiny_views(), {"global_batch_size": 64, "repeats": 3}, {"global_batch_size": 42, "repeats": 1}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "cache",
)
def test_the_advice_of_a_cache_with_too_few_views_per_epoch_works(tmp_path, built, needed, advised):
    cache = build(tmp_path / "cache", views=built, epochs=1, validation=None)
    fields = {"updates": 5, **needed}
    with pytest.raises(TeacherCacheError) as refused:
        CachedTeacher(cache, tiny_views(**fields), None, "hard", 3.0)
    message = str(refused.value)
    for name, text in (("repeats", "set repeated_augmentation={}"), ("global_batch_size", "at most {} images")):
        assert (text.format(advised.get(name)) in message) == (name in advised)
    CachedTeacher(cache, tiny_views(**fields | advised), None, "hard", 3.0)


@pytest.mark.parametrize(("batch", "share"), [(8, 0.25), (12, 0.3), (16, 0.5), (48, 0.05)])
def test_the_advice_of_a_cache_with_unlabelled_images_works(tmp_path, batch, share):
    def views(share, batch):
        return tiny_views(tiny.partly_labelled_data(8, 40, share, missing=0), 8, batch, updates=5)

    cache = build(tmp_path / "cache", views=views(0.75, 8), epochs=1, validation=None)
    with pytest.raises(TeacherCacheError, match=f"unlabelled_share={share}") as refused:
        CachedTeacher(cache, views(share, batch), None, "hard", 3.0)
    assert "repeated_augmentation" not in str(refused.value)
    (advised,) = re.findall(r"set unlabelled_share=([\d.]+),", str(refused.value))
    assert float(advised) > share
    CachedTeacher(cache, views(float(advised), batch), None, "hard", 3.0)


def test_without_a_share_that_works_only_another_cache_is_advised(tmp_path):
    def views(share, batch):
        return tiny_views(tiny.partly_labelled_data(8, 40, share, missing=0), 4, batch, updates=5)

    cache = build(tmp_path / "cache", views=views(0.75, 8), epochs=1, validation=None)
    with pytest.raises(TeacherCacheError, match="cache-teacher") as refused:
        CachedTeacher(cache, views(0.5, 4), None, "hard", 3.0)
    assert "set " not in str(refused.value)


def test_another_seed_of_the_views_is_refused(tmp_path):
    build(tmp_path / "cache")
    data = tiny.training_data(43)
    data.seed = 3
    with pytest.raises(TeacherCacheError, match=r"views.data.seed: 0 in the cache, 3 now"):
        trainer_of(tmp_path / "run", cache=tmp_path / "cache", data=data)


def test_a_top_k_cache_is_refused_for_another_temperature(tmp_path):
    build(tmp_path / "cache", "top_k")
    with pytest.raises(TeacherCacheError, match=r"tau=3.0, but distillation_tau=2.0"):
        trainer_of(tmp_path / "run", cache=tmp_path / "cache", distillation_type="soft", distillation_tau=2.0)


def test_other_validation_images_are_refused(tmp_path):
    cache = build(tmp_path / "cache", validation=tiny.evaluation_data(21))
    with pytest.raises(TeacherCacheError, match=r"validation.images: 21 in the cache, 22 now"):
        trainer_of(tmp_path / "run", cache=cache)


def test_images_without_cached_outputs_are_evaluated_on_their_labels_alone(tmp_path):
    trainer = trainer_of(tmp_path / "run", cache=build(tmp_path / "cache"))
    metrics = trainer.evaluate(tiny.evaluation_data(9))
    assert "eval_teacher_accuracy" not in metrics
    assert metrics["eval_loss"] == metrics["eval_cls_loss"]
    assert len(trainer.predict(tiny.evaluation_data(9)).predictions) == 9


def test_a_stream_is_refused(tmp_path):
    build(tmp_path / "cache")
    stream = ViewStream.__new__(ViewStream)
    stream.augmentation, stream.broken_images = tiny.training_data(4).augmentation, "skip"
    stream.reader, stream.seed = type("Reader", (), {"class_names": tiny.NAMES, "name": "stream"}), 0
    with pytest.raises(TeacherCacheError, match=r"ViewStream.*streaming: false"):
        trainer_of(tmp_path / "run", cache=tmp_path / "cache", data=stream)


def test_two_processes_build_a_cache_and_train_with_it_as_one_process_does_with_the_live_teacher(tmp_path):
    for done in run_distributed(SCRIPTS / "cached_processes.py", tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "losses.json").read_text())
    live = trainer_of(tmp_path / "live", tiny_teacher(), **cached_processes.CHANGES)
    live.train()
    for name, values in cached_processes.terms_of(live).items():
        assert len(values) == 20
        np.testing.assert_allclose(found[name], values, atol=1e-4)
    assert found["evaluation"]["eval_teacher_accuracy"] == live.evaluate()["eval_teacher_accuracy"]
    # Each process built two of the four epochs of views. A single process computes the same records.
    views = tiny_views(mixing=live.mixing)
    alone = build(tmp_path / "alone", "dense", epochs=4, views=views)
    both = TeacherCache(tmp_path / "cache")
    assert both.epochs == 4
    for epoch in range(4):
        ours, theirs = (cache.outputs(epoch, range(42))["teacher_logits"] for cache in (both, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
