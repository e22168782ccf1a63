"""What the loaders of a trainer give: whole evaluations, whole pairs, stored answers by the data set's name."""

import pytest

from hf_deit.errors import TeacherCacheError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny
from tests.helpers.caches import build, tiny_teacher, trainer_of

MIXED = {"distillation_type": "none", "mixup_alpha": 0.8, "per_device_eval_batch_size": 8}


def rows_of(count):
    """Data that take no view keys."""
    images = tiny.evaluation_data(count)
    return [images[index] for index in range(count)]


@pytest.mark.parametrize("count", [21, None], ids=["trained", "evaluated only"])
def test_mixing_of_unkeyed_data_leaves_every_image_in_the_evaluation(tmp_path, count):
    train = None if count is None else rows_of(count)
    args = tiny.arguments(tmp_path, **MIXED)
    trainer = DistillationTrainer(
        tiny.student(), None, args, train_dataset=train, eval_dataset=tiny.evaluation_data(22)
    )
    if train is not None:
        sizes = [len(batch["labels"]) for batch in trainer.get_train_dataloader()]
        assert sizes == [8, 8]  # the last five cannot all be paired
        trainer.train()
    trainer.keep_rows = True
    trainer.evaluate()
    assert len(trainer.rows["loss"]) == 22  # 22 = 8 + 8 + 6
    assert args.dataloader_drop_last is False


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_sets_by_name_have_their_stored_answers(tmp_path, workers):
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


def test_a_prediction_of_the_caches_images_tells_of_the_teacher(tmp_path):
    cached = trainer_of(tmp_path / "cached", cache=build(tmp_path / "cache")).predict(tiny.evaluation_data()).metrics
    live = trainer_of(tmp_path / "live", tiny_teacher()).predict(tiny.evaluation_data()).metrics
    for name in ("test_teacher_accuracy", "test_loss"):
        assert cached[name] == live[name]


def test_validation_sets_by_name_of_which_none_is_the_caches_are_refused(tmp_path):
    cache = build(tmp_path / "cache")
    with pytest.raises(TeacherCacheError, match=r"validation.images: 22 in the cache, 9 now"):
        trainer_of(tmp_path / "run", cache=cache, evaluation={"a": tiny.evaluation_data(9)})


def test_validation_sets_without_answers_are_named_at_the_start(tmp_path, caplog):
    sets = {"a": tiny.evaluation_data(), "b": tiny.evaluation_data(9)}
    trainer_of(tmp_path / "run", cache=build(tmp_path / "cache"), evaluation=sets)
    assert "no outputs for the images of 'b'" in caplog.text
