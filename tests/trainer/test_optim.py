"""Weight decay (checked by module type, independently of parameter names), learning rates of layers, and schedule."""

import logging
import math

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TrainerCallback,
)
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViTForImageClassification

from hf_deit.errors import RecipeError
from hf_deit.models.configuration_deit import DeiTConfig, ViTConfig
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from hf_deit.trainer.optim import (
    cosine_rates,
    decay_parameter_names,
    layer_depths,
    optimizer_class,
    parse_optim_args,
    split_by_depth,
)
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers.tiny import FirstGradients, arguments, logged, student, training_data

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
}


def matrices(model):
    """Return the names of the weights of all linear and convolution layers."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("layer_scale", [None, 1e-4])
def test_weight_decay_of_the_distilled_student_applies_to_matrices_and_distillation_token(layer_scale):
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, layer_scale_init_value=layer_scale))
    decayed = decay_parameter_names(model)
    assert set(decayed) == matrices(model) | {"deit.embeddings.distillation_token"}
    assert len(decayed) == len(set(decayed))


def test_weight_decay_can_exclude_the_distillation_token():
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY))
    assert set(decay_parameter_names(model, distillation_token_decay=False)) == matrices(model)


@pytest.mark.parametrize("distillation_token_decay", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 1e-4])
def test_weight_decay_of_the_plain_student_applies_to_matrices(distillation_token_decay, layer_scale):
    model = ViTForImageClassification(ViTConfig(**TINY, layer_scale_init_value=layer_scale))
    assert set(decay_parameter_names(model, distillation_token_decay)) == matrices(model)


def test_weight_decay_of_a_stock_vit_applies_to_matrices():
    model = StockViTForImageClassification(StockViTConfig(**TINY))
    assert set(decay_parameter_names(model)) == matrices(model)


def test_weight_decay_of_a_stock_swin_applies_to_matrices():
    config = SwinConfig(
        image_size=16,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
        use_absolute_embeddings=True,
    )
    model = SwinForImageClassification(config)
    parameters = dict(model.named_parameters())
    assert any(name.endswith("position_embeddings") for name in parameters)
    decayed = {name for name in decay_parameter_names(model) if "relative_position" not in name}
    assert decayed == matrices(model)


def test_weight_decay_of_any_torch_network_excludes_vectors():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.PReLU(2))
    assert set(decay_parameter_names(network)) == {"0.weight", "3.weight"}


# ---- layer-wise learning-rate decay ----


def swin():
    return SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=2)
    )


def convnext():
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2))


def depths_of(depths, *parts):
    """Return the depths of all parameters whose names contain one of `parts`."""
    return {depth for name, depth in depths.items() if any(part in name for part in parts)}


@pytest.mark.parametrize(
    "model",
    [
        DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY)),
        ViTForImageClassification(ViTConfig(**TINY)),
        StockViTForImageClassification(StockViTConfig(**TINY)),
    ],
    ids=["distilled", "plain", "stock"],
)
def test_depth_is_0_for_embeddings_i_plus_1_for_layer_i_and_largest_for_norm_and_heads(model):
    depths = layer_depths(model)
    assert depths.keys() == dict(model.named_parameters()).keys()
    assert depths_of(depths, ".embeddings.") == {0}
    assert depths_of(depths, ".layers.0.", ".layer.0.") == {1}
    assert depths_of(depths, ".layers.1.", ".layer.1.") == {2}
    assert depths_of(depths, "classifier", "deit.layernorm", "vit.layernorm") == {3}


def test_layers_are_counted_through_all_stages_and_parameters_between_have_the_depth_before_them():
    depths = layer_depths(swin())
    assert depths_of(depths, "embeddings") == {0}
    assert [depths_of(depths, f"layers.{stage}.blocks.{block}.") for stage, block in ((0, 0), (0, 1), (1, 0))] == [
        {1},
        {2},
        {3},
    ]
    assert depths_of(depths, "layers.0.downsample") == {2}
    assert depths_of(depths, "swin.layernorm", "classifier") == {4}
    depths = layer_depths(convnext())
    assert [depths_of(depths, f"stages.{stage}.layers.{layer}.") for stage, layer in ((0, 0), (1, 0), (1, 1))] == [
        {1},
        {2},
        {3},
    ]
    assert depths_of(depths, "stages.1.downsampling") == {1}
    assert depths_of(depths, "embeddings") == {0}
    assert depths_of(depths, "classifier") == {4}


def test_a_network_without_numbered_layers_is_refused():
    with pytest.raises(RecipeError, match="layer_decay.*Sequential.*1.0"):
        layer_depths(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch", "sgd", "adagrad", "rmsprop"])
def test_each_parameter_has_the_learning_rate_of_its_layer_and_its_usual_weight_decay(tmp_path, name):
    trainer = trainer_of(tmp_path, optim=name, layer_decay=0.5, learning_rate=0.8, weight_decay=0.05)
    optimizer = trainer.create_optimizer()
    rows = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    names = dict(trainer.model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    decayed = matrices(trainer.model) | {"deit.embeddings.distillation_token"}
    for name, parameter in names.items():
        power = {"embeddings": 3, ".0.": 2, ".1.": 1}
        expected = next((0.8 * 0.5 ** power[part] for part in power if part in name), 0.8)
        assert rows[id(parameter)] == (pytest.approx(expected), 0.05 if name in decayed else 0.0), name
    assert optimizer.param_groups[0]["lr"] == 0.8  # the Trainer logs the rate of the first group


def test_without_layer_decay_the_optimizer_is_that_of_the_stock_trainer(tmp_path):
    optimizer = trainer_of(tmp_path, adam_beta2=0.95).create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["weight_decay"], group["fused"], group["betas"]) for group in optimizer.param_groups] == [
        (0.05, True, (0.9, 0.95)),
        (0.0, True, (0.9, 0.95)),
    ]


def test_layer_decay_is_refused_for_an_optimizer_of_other_tensors():
    model = student()
    with pytest.raises(RecipeError, match="layer_decay=0.5.*SGD.*1.0"):
        split_by_depth(torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1), model, 0.5)


# ---- other optimizers ----


def test_an_optimizer_class_is_built_with_the_parameter_groups_and_optim_args(tmp_path):
    changes = {"optimizer_class": "torch.optim:RAdam", "optim_args": "betas=(0.5, 0.75), eps=1e-3, foreach=False"}
    optimizer = trainer_of(tmp_path, **changes).create_optimizer()
    assert type(optimizer) is torch.optim.RAdam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["foreach"]) == (5e-4, (0.5, 0.75), 1e-3, False)


def test_lamb_of_the_optim_extra_trains(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    trainer = trainer_of(tmp_path, optimizer_class="pytorch_optimizer:Lamb", layer_decay=0.75, learning_rate=1e-2)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "Lamb"
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:Lamb", r"optimizer_class='no_such_package:Lamb'.*pip install pytorch_optimizer"),
        ("torch.optim:Lamp", "Lamp.*package.module:Class"),
        ("SGD", "'SGD'.*package.module:Class"),
        ("torch.nn:Linear", "optimizer_class='torch.nn:Linear'.*torch.optim.Optimizer"),
    ],
)
def test_a_name_that_is_not_an_optimizer_class_is_refused(name, message):
    with pytest.raises(RecipeError, match=message):
        optimizer_class(name)


def test_optimizer_arguments_are_parsed_as_python_literals():
    text = "betas=(0.9, 0.98), eps=1e-6,foreach=None, mode=fast, parts=[1, 2]"
    assert parse_optim_args(text) == {
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "foreach": None,
        "mode": "fast",
        "parts": [1, 2],
    }
    assert parse_optim_args(None) == parse_optim_args("") == {}
    for wrong in ("eps", "=3", "a b=1"):
        with pytest.raises(RecipeError, match=f"optim_args='{wrong}'.*name=value"):
            parse_optim_args(wrong)


def test_arguments_that_the_optimizer_class_does_not_take_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, optimizer_class="torch.optim:SGD", optim_args="speed=3")
    with pytest.raises(RecipeError, match="torch.optim:SGD.*optim_args='speed=3'"):
        trainer.create_optimizer()


# ---- the schedule ----


class Rates(TrainerCallback):
    """Callback that keeps the learning rate of each group at every update."""

    def __init__(self):
        self.rows = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rows.append([group["lr"] for group in optimizer.param_groups])


def trainer_of(folder, model=None, **changes):
    return DistillationTrainer(
        model or student(),
        None,
        arguments(folder, distillation_type="none", **changes),
        train_dataset=training_data(32),
    )


def rates_of(folder, **changes):
    trainer = trainer_of(folder, lr_scheduler_type="cosine", **changes)
    rates = Rates()
    trainer.add_callback(rates)
    trainer.train()
    return rates.rows, logged(trainer, "learning_rate")


def naive_cosine(step, steps, warmup, peak, first, last):
    first, last = min(first, peak), min(last, peak)
    if step < warmup:
        return first + (peak - first) * step / max(1, warmup - 1)
    turned = math.pi * (step - warmup + 1) / (steps - warmup)
    return last + (peak - last) * (1 + math.cos(turned)) / 2


@pytest.mark.parametrize(
    ("warmup", "peak", "first", "last"),
    [
        (4, 5e-4, 1e-6, 1e-5),
        (0, 5e-4, 1e-6, 1e-5),
        (1, 5e-4, 1e-6, 1e-5),
        (3, 5e-6, 1e-6, 1e-5),  # a peak below the last rate: constant after the warm-up, never above the peak
        (3, 5e-4, 1e-3, 1e-3),
    ],
)
def test_a_cosine_schedule_has_the_expected_rate_at_every_update(tmp_path, warmup, peak, first, last):
    rows, shown = rates_of(
        tmp_path,
        max_steps=10,
        warmup_steps=warmup,
        learning_rate=peak,
        warmup_learning_rate=first,
        min_learning_rate=last,
    )
    expected = [naive_cosine(step, 10, warmup, peak, first, last) for step in range(10)]
    assert [row[0] for row in rows] == pytest.approx(expected, rel=1e-9)
    assert [row[1] for row in rows] == pytest.approx(expected, rel=1e-9)
    assert shown == pytest.approx(expected, rel=1e-9)
    assert rows[-1][0] == pytest.approx(min(last, peak))


def test_layer_decay_multiplies_every_update_of_the_schedule(tmp_path):
    rows, _ = rates_of(tmp_path, max_steps=6, warmup_steps=2, learning_rate=1e-3, layer_decay=0.5)
    for step, row in enumerate(rows):
        full = naive_cosine(step, 6, 2, 1e-3, 1e-6, 1e-5)
        assert sorted(set(row), reverse=True) == pytest.approx([full * 0.5**power for power in range(4)])


def test_the_schedule_advances_per_update_and_not_per_batch(tmp_path):
    rows, _ = rates_of(
        tmp_path, max_steps=4, learning_rate=1e-3, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert [row[0] for row in rows] == pytest.approx([naive_cosine(step, 4, 0, 1e-3, 1e-6, 1e-5) for step in range(4)])


def test_the_learning_rate_is_scaled_by_the_global_batch_size_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_deit"):
        rows, _ = rates_of(
            tmp_path,
            max_steps=1,
            learning_rate=0.512,
            scale_learning_rate=True,
            warmup_learning_rate=1.0,
            warmup_steps=0.5,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
    assert rows[0][0] == pytest.approx(
        0.512 * 8 / 512
    )  # the first update is the warm-up, whose rate is limited to the peak
    assert "0.512 × 8" in caplog.text
    assert "0.008" in caplog.text


def test_scaling_does_not_change_the_arguments_so_a_second_trainer_does_not_scale_twice(tmp_path):
    args = arguments(tmp_path, distillation_type="none", learning_rate=1.0, scale_learning_rate=True)
    for _ in range(2):
        trainer = DistillationTrainer(student(), None, args, train_dataset=training_data(32))
        assert trainer.create_optimizer().param_groups[0]["lr"] == 8 / 512
    assert args.learning_rate == 1.0


def test_a_learning_rate_of_zero_has_a_schedule():
    assert cosine_rates(0.0, 1e-6, 1e-5) == {"warmup_lr_rate": 1.0, "min_lr_rate": 1.0}


def test_other_schedules_are_those_of_transformers(tmp_path):
    trainer = trainer_of(tmp_path, lr_scheduler_type="linear", max_steps=4, learning_rate=1.0)
    trainer.create_optimizer_and_scheduler(4)
    seen = []
    for _ in range(4):
        seen.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert seen == [1.0, 0.75, 0.5, 0.25]


# ---- gradient checkpointing ----


@pytest.mark.parametrize("two_heads", [True, False])
def test_gradient_checkpointing_changes_neither_losses_nor_gradients(tmp_path, two_heads):
    fields = DistillationTrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    seen = []
    for checkpointing in (False, True):
        first = FirstGradients()
        model = student(two_heads, drop_path_rate=0.2)  # recomputed layers must draw the same random numbers
        trainer = trainer_of(tmp_path, model, max_steps=3, learning_rate=1e-2, **{name: checkpointing})
        trainer.add_callback(first)
        trainer.train()
        assert getattr(model, f"is_{name}") == checkpointing
        seen.append((logged(trainer, "loss"), first.gradients))
    (plain_losses, plain), (losses, gradients) = seen
    assert losses == plain_losses
    assert all(torch.equal(plain[name], gradients[name]) for name in plain)
