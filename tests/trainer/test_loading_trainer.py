"""Loaders of a trainer: complete evaluations, complete pairs, and cached teacher outputs for named evaluation sets."""

import pytest

from hf_deit.errors import TeacherCacheError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny
from tests.helpers.caches import build, tiny_teacher, trainer_of

MIXED = {"distillation_type": "none", "mixup_alpha": 0.8, "per_device_eval_batch_size": 8}


def rows_of(count):
    """Return a list of rows, which does not take view keys."""
    images = tiny.evaluation_data(count)
    return [images[index] for index in range(count)]


@pytest.mark.parametrize("count", [21, None], ids=["trained", "evaluated only"])
def test_mixing_data_without_view_keys_keeps_every_image_in_the_evaluation(tmp_path, count):
    train = None if count is None else rows_of(count)
    args = tiny.arguments(tmp_path, **MIXED)
    trainer = DistillationTrainer(
        tiny.student(), None, args, train_dataset=train, eval_dataset=tiny.evaluation_data(22)
    )
    if train is not None:
        sizes = [len(batch["labels"]) for batch in trainer.get_train_dataloader()]
        assert sizes == [8, 8]  # the last five images cannot all be paired
        trainer.train()
    trainer.keep_rows = True
    trainer.evaluate()
    assert len(trainer.rows["loss"]) == 22  # 22 = 8 + 8 + 6
    assert args.dataloader_drop_last is False


@pytest.mark.parametrize("workers", [0, 1])
def test_named_validation_sets_get_their_cached_outputs(tmp_path, workers):
    cache = build(tmp_path / "cache", "dense")
    fields = {"distillation_type": "soft", "dataloader_num_workers": workers}
    fields["dataloader_persistent_workers"] = bool(workers)
    sets = {"a": tiny.evaluation_data(), "b": tiny.evaluation_data(9)}
    cached = trainer_of(tmp_path / "cached", cache=cache, evaluation=sets, **fields).evaluate()
    live = trainer_of(tmp_path / "live", tiny_teacher(), evaluation=sets, **fields).evaluate()
    for name in ("teacher_accuracy", "teacher_agreement", "loss", "distillation_loss"):
        assert cached[f"eval_a_{name}"] == live[f"eval_a_{name}"]
    assert "eval_b_teacher_accuracy" not in cached
    assert cached["eval_b_accuracy"] == live["eval_b_accuracy"]


def test_predicting_the_caches_images_reports_teacher_metrics(tmp_path):
    cached = trainer_of(tmp_path / "cached", cache=build(tmp_path / "cache")).predict(tiny.evaluation_data()).metrics
    live = trainer_of(tmp_path / "live", tiny_teacher()).predict(tiny.evaluation_data()).metrics
    for name in ("test_teacher_accuracy", "test_loss"):
        assert cached[name] == live[name]


def test_named_validation_sets_are_refused_if_none_is_the_caches(tmp_path):
    cache = build(tmp_path / "cache")
    with pytest.raises(TeacherCacheError, match=r"validation\.images.*22.*9"):
        trainer_of(tmp_path / "run", cache=cache, evaluation={"a": tiny.evaluation_data(9)})


def test_validation_sets_without_cached_outputs_are_named_in_a_warning(tmp_path, caplog):
    sets = {"a": tiny.evaluation_data(), "b": tiny.evaluation_data(9)}
    trainer_of(tmp_path / "run", cache=build(tmp_path / "cache"), evaluation=sets)
    (warning,) = [record.getMessage() for record in caplog.records if str(tmp_path / "cache") in record.getMessage()]
    assert "'b'" in warning
    assert "'a'" not in warning
