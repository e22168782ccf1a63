"""Averaged weights (EMA): their values, logs and files, and the choice of raw or averaged weights as the result."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DeiTForImageClassificationWithTeacher as StockDistilled
from transformers import TrainerCallback

from hf_deit.errors import RecipeError, ResumeError, UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher
from hf_deit.trainer.checks import set_best_metric, trainer_problems
from hf_deit.trainer.ema import AveragedWeights, decay_of_horizon
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import SIZE, arguments, conv_teacher, evaluation_data, logged, student, training_data


class WeightsOfUpdates(TrainerCallback):
    """Callback that keeps the parameters at the start and after each update."""

    def __init__(self):
        self.rows = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.keep(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.keep(model)

    def keep(self, model):
        self.rows.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})


def naive_average(rows, decay):
    """Return the average of the parameters over all updates, in float64."""
    average = {name: value.double() for name, value in rows[0].items()}
    for t, row in enumerate(rows[1:]):
        share = min(decay, (1 + t) / (10 + t))
        average = {name: share * average[name] + (1 - share) * row[name].double() for name in row}
    return average


def trainer_of(folder, model=None, **changes):
    fields = {
        "ema_epochs": 0.5,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 6,
        "save_steps": 6,
        "distillation_type": "soft",
        **changes,
    }
    return DistillationTrainer(
        model or student(),
        conv_teacher() if fields["distillation_type"] != "none" else None,
        arguments(folder, **fields),
        train_dataset=training_data(32),
        eval_dataset=evaluation_data(),
    )


def saved_weights(model, folder):
    """Return the parameters saved in a folder, by their names in memory; `from_pretrained` loads the folder."""
    loaded = type(model).from_pretrained(folder)
    return dict(loaded.named_parameters())


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# ---- the average ----


def test_the_decay_follows_from_the_horizon():
    assert decay_of_horizon(1000) == pytest.approx(0.999)
    assert decay_of_horizon(0.25) == 0.0  # a horizon below one update gives the raw weights


def test_averages_equal_those_of_a_naive_loop_in_float64():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = AveragedWeights(model)
    rows = [{name: value.detach().clone() for name, value in model.named_parameters()}]
    for t in range(60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        rows.append({name: value.detach().clone() for name, value in model.named_parameters()})
        average.update(0.8, t)
    average.copy_to_model()
    for name, value in naive_average(rows, 0.8).items():
        torch.testing.assert_close(model.get_parameter(name).double(), value, rtol=1e-5, atol=1e-6)


def test_half_precision_parameters_are_averaged_in_float32():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = AveragedWeights(model)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(200):  # each update is too small to change a bfloat16 near 1
        average.update(1 - 1e-3, 10**6)
    average.copy_to_model()
    assert model.weight.item() == pytest.approx(2 - 0.999**200, rel=1e-2)


def test_parameters_are_restored_bit_for_bit_and_buffers_are_not_averaged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = AveragedWeights(model)
    with torch.no_grad():
        model[0].weight.mul_(1.7)
        model[1].running_mean.fill_(3.0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the middle"), average.applied():
        assert not torch.equal(model[0].weight, own["0.weight"])
        assert torch.equal(model[1].running_mean, own["1.running_mean"])
        raise RuntimeError("in the middle")
    assert_equal(dict(model.state_dict()), own)


# ---- a run ----


def test_checkpoints_hold_the_raw_weights_and_in_ema_the_average_of_all_updates(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    weights = WeightsOfUpdates()
    trainer.add_callback(weights)
    trainer.train()
    assert len(weights.rows) == 13
    decay = 1 - 1 / (0.5 * 4)  # 32 images, 8 per update
    for step in (6, 12):
        raw = saved_weights(trainer.model, tmp_path / f"checkpoint-{step}")
        assert_equal(raw, weights.rows[step])
        averaged = saved_weights(trainer.model, tmp_path / f"checkpoint-{step}" / "ema")
        for name, value in naive_average(weights.rows[: step + 1], decay).items():
            torch.testing.assert_close(averaged[name].double(), value, rtol=1e-5, atol=1e-6)
        assert differ(raw, averaged)


def test_evaluating_and_saving_the_average_does_not_change_the_training(tmp_path):
    with_average, without = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", ema_epochs=0)
    for trainer in (with_average, without):
        trainer.train()
    assert logged(with_average, "loss") == logged(without, "loss")
    assert_equal(dict(with_average.model.named_parameters()), dict(without.model.named_parameters()))
    assert logged(with_average, "eval_accuracy") == logged(without, "eval_accuracy")
    assert not logged(without, "eval_ema_accuracy")
    assert not (tmp_path / "b" / "checkpoint-6" / "ema").exists()


def test_metrics_of_raw_and_averaged_weights_are_in_one_log_entry_and_match_the_saved_models(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in entries] == [6, 12]
    for entry in entries:
        for prefix, folder in (("eval", ""), ("eval_ema", "ema")):
            model = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{entry['step']}" / folder)
            found = trainer_of(tmp_path / "evaluation", model, ema_epochs=0).evaluate()
            for name in ("accuracy", "cls_accuracy", "distillation_accuracy", "teacher_agreement"):
                assert entry[f"{prefix}_{name}"] == found[f"eval_{name}"]
            assert entry[f"{prefix}_loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
        assert entry["eval_loss"] != entry["eval_ema_loss"]


def test_stock_transformers_loads_the_averaged_model_from_its_folder(tmp_path):
    trainer_of(tmp_path).train()
    folder = tmp_path / "checkpoint-12" / "ema"
    ours, stock = DeiTForImageClassificationWithTeacher.from_pretrained(folder), StockDistilled.from_pretrained(folder)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(pixels).logits, ours.eval()(pixels).logits)
    assert (
        DeiTImageProcessor.from_pretrained(folder).crop_size
        == DeiTImageProcessor.for_image_size((SIZE, SIZE)).crop_size
    )
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


# ---- raw or averaged weights as the result ----


@pytest.mark.parametrize(("counted", "folder"), [("raw", ""), ("ema", "ema")])
def test_the_final_save_and_the_model_hold_the_counted_weights(tmp_path, caplog, counted, folder):
    trainer = trainer_of(tmp_path, counted_weights=counted)
    with caplog.at_level(logging.INFO, "hf_deit"):
        trainer.train()
    trainer.save_model()
    expected = saved_weights(trainer.model, tmp_path / "checkpoint-12" / folder)
    assert_equal(saved_weights(trainer.model, tmp_path), expected)
    assert_equal(dict(trainer.model.named_parameters()), expected)
    assert f"The {'averaged' if counted == 'ema' else 'raw'} weights" in caplog.text
    metrics = trainer.evaluate()
    last = [entry for entry in trainer.state.log_history if "eval_ema_accuracy" in entry][-1]
    assert metrics["eval_accuracy"] == last["eval_ema_accuracy" if counted == "ema" else "eval_accuracy"]


@pytest.mark.parametrize(("counted", "folder"), [("raw", ""), ("ema", "ema")])
def test_the_best_model_is_chosen_by_and_holds_the_counted_weights(tmp_path, counted, folder):
    # With this high learning rate the raw weights get worse, so the best checkpoint is not the last one and differs
    # between raw and averaged weights.
    trainer = trainer_of(
        tmp_path,
        counted_weights=counted,
        load_best_model_at_end=True,
        metric_for_best_model="loss" if counted == "raw" else "ema_loss",
        eval_steps=2,
        save_steps=2,
        learning_rate=5e-2,
        save_total_limit=None,
    )
    trainer.train()
    name = "eval_loss" if counted == "raw" else "eval_ema_loss"
    losses = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
    best = min(losses, key=losses.get)
    assert best != 12  # otherwise the last weights would pass this test
    assert trainer.state.best_global_step == best
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    expected = saved_weights(trainer.model, tmp_path / f"checkpoint-{best}" / folder)
    assert_equal(dict(trainer.model.named_parameters()), expected)


def test_the_default_metric_is_that_of_the_counted_weights(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    args = arguments(tmp_path, load_best_model_at_end=True, ema_epochs=1, counted_weights="ema", **steps)
    set_best_metric(args, "single_label_classification")
    assert (args.metric_for_best_model, args.greater_is_better) == ("ema_accuracy", True)
    args = arguments(tmp_path, load_best_model_at_end=True, ema_epochs=1, **steps)
    set_best_metric(args, "single_label_classification")
    assert args.metric_for_best_model == "accuracy"
    named = {"metric_for_best_model": "eval_cls_loss", "counted_weights": "ema", "ema_epochs": 1}
    args = arguments(tmp_path, load_best_model_at_end=True, **named, **steps)
    assert (args.metric_for_best_model, args.greater_is_better) == ("ema_cls_loss", False)


class SaveNow(TrainerCallback):
    """Callback that saves the model for others in the middle of a run."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            self.trainer.save_model(self.folder)


@pytest.mark.parametrize(("counted", "folder"), [("raw", ""), ("ema", "ema")])
def test_a_model_saved_during_a_run_holds_the_counted_weights_with_layer_scale_folded(tmp_path, counted, folder):
    trainer = trainer_of(tmp_path, student(layer_scale_init_value=0.5), counted_weights=counted)
    saver = SaveNow()
    saver.trainer, saver.folder = trainer, str(tmp_path / "published")
    trainer.add_callback(saver)
    trainer.train()
    assert not [name for name in load_file(tmp_path / "published" / "model.safetensors") if "lambda" in name]
    stock = StockDistilled.from_pretrained(tmp_path / "published").eval()
    expected = type(trainer.model).from_pretrained(tmp_path / "checkpoint-6" / folder).eval()
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).logits, expected(pixels).logits, rtol=1e-4, atol=1e-5)


# ---- refused arguments ----


def test_counted_averages_need_ema_epochs(tmp_path):
    with pytest.raises(ValueError, match="counted_weights='ema'.*ema_epochs=0"):
        arguments(tmp_path, counted_weights="ema")
    with pytest.raises(ValueError, match="ema_epochs=-1"):
        arguments(tmp_path, ema_epochs=-1)


def test_sharded_parameters_are_refused(tmp_path):
    args = arguments(tmp_path, ema_epochs=1)
    assert not list(trainer_problems(args, brings_optimizer=False, shards_parameters=False))
    (problem,) = trainer_problems(args, brings_optimizer=False, shards_parameters=True)
    for part in ("ema_epochs=1", "FSDP", "DeepSpeed", "ema_epochs=0"):
        assert part in problem


def test_the_trainer_checks_whether_parameters_are_sharded(tmp_path, monkeypatch):
    create = DistillationTrainer.create_accelerator_and_postprocess

    def sharding(trainer):
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(DistillationTrainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(RecipeError, match="ema_epochs.*FSDP"):
        trainer_of(tmp_path)


def test_a_checkpoint_without_averages_is_refused_by_a_run_with_averages(tmp_path):
    trainer_of(tmp_path, ema_epochs=0).train()
    run_file = tmp_path / "checkpoint-6" / "hf_deit_run.json"
    run = json.loads(run_file.read_text())
    del run["recipe"]["ema_epochs"]  # as in a file of an older version: the comparison then passes
    run_file.write_text(json.dumps(run))
    with pytest.raises(ResumeError, match="ema_epochs=0.5.*checkpoint-6.*ema_epochs=0"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_horizon_that_averages_nothing_is_refused_before_the_first_step(tmp_path):
    args = arguments(tmp_path, ema_epochs=0.1)
    with pytest.raises(UserError, match="ema_epochs=0.1 .*8 .*at least 0.25"):
        DistillationTrainer(student(), conv_teacher(), args, train_dataset=training_data(64))
