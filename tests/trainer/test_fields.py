"""Every field of `TrainingArguments` and of ours has an effect, or is refused by name."""

import dataclasses
import inspect
import re

import pytest
import transformers
from packaging.version import Version
from torch import nn
from transformers import TrainingArguments, trainer_callback, trainer_optimizer
from transformers.integrations import integration_utils

from hf_deit.errors import RecipeError
from hf_deit.trainer import environment, fields, hub_mixin, resumable_trainer, scheduled_trainer, trainer
from hf_deit.trainer.fields import CONDITIONS, EFFECT, HARDWARE, REFUSED, SCRIPT_FIELDS, STOCK_FIELDS
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers.tiny import arguments, conv_teacher, evaluation_data, student, training_data

STOCK = {entry.name: entry for entry in dataclasses.fields(TrainingArguments)}
DEFAULTS = {entry.name: fields.default_of(entry) for entry in dataclasses.fields(DistillationTrainingArguments)}
MODULES = (trainer, resumable_trainer, hub_mixin, transformers.trainer, transformers.training_args)
MODULES += (trainer_callback, integration_utils)
# A value that is not the default, where the type of the field does not tell one.
OTHER = {
    "use_cache": True,
    "parallelism_config": object(),
    "label_names": ["class"],
    "liger_kernel_config": {"rope": True},
}


def other_value(name):
    default = DEFAULTS[name]
    if name in OTHER:
        return OTHER[name]
    return not default if isinstance(default, bool) else "other" if isinstance(default, str) or default is None else 7


def function_of(path):
    owner, _, name = path.partition(".")
    module = {"trainer_optimizer": trainer_optimizer, "scheduled_trainer": scheduled_trainer}.get(owner)
    if module is None:
        module = next(getattr(module, owner) for module in MODULES if hasattr(module, owner))
    found = getattr(module, name)
    return inspect.getsource(getattr(found, "fget", None) or getattr(found, "func", found))


def test_the_use_of_every_field_of_training_arguments_is_known():
    assert sorted(STOCK.keys() - STOCK_FIELDS.keys()) == []
    assert {use.kind for use in STOCK_FIELDS.values()} == {EFFECT, HARDWARE, REFUSED}
    if Version(transformers.__version__) >= Version("5.24"):
        assert sorted(STOCK_FIELDS.keys() - STOCK.keys()) == []


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="names functions of transformers 5.24")
def test_a_field_with_an_effect_is_read_by_the_function_that_the_table_names():
    wrong = [
        f"{name}: {use.text}"
        for name, use in STOCK_FIELDS.items()
        if use.kind != REFUSED
        # The state reads logging_steps, eval_steps and save_steps by a name that it builds.
        and not any(word in function_of(use.text) for word in (f".{name}", f'"{name}"'))
        and not (use.text == "TrainerState.compute_steps" and '"{step_kind}_steps"' in function_of(use.text))
    ]
    assert wrong == ["output_dir: ResumableTrainer.train"] * (
        ".output_dir" not in function_of("ResumableTrainer.train")
    )


@pytest.mark.parametrize(
    "name", [name for name, use in STOCK_FIELDS.items() if use.kind == REFUSED and name not in SCRIPT_FIELDS]
)
def test_a_refused_field_is_refused_with_its_value_and_a_replacement(tmp_path, name):
    if name not in STOCK:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    value = other_value(name)
    with pytest.raises(ValueError, match=f"{name}=") as caught:
        arguments(tmp_path, **{name: value})
    assert STOCK_FIELDS[name].text in str(caught.value)
    assert "things do not work" not in str(caught.value)
    arguments(tmp_path, **{name: DEFAULTS[name]})


# For each condition: fields without it, and the fields that fulfil it.
CASES = {
    "eval_steps": ({"eval_steps": 5, "eval_strategy": "epoch"}, {"eval_strategy": "steps"}),
    "eval_delay": ({"eval_delay": 2, "eval_strategy": "no"}, {"eval_strategy": "epoch"}),
    "save_steps": ({"save_steps": 5, "save_strategy": "epoch"}, {"save_strategy": "steps"}),
    "save_only_model": ({"save_only_model": True, "save_strategy": "no"}, {"save_strategy": "epoch"}),
    "save_total_limit": ({"save_total_limit": 7, "save_strategy": "no"}, {"save_strategy": "epoch"}),
    "logging_steps": ({"logging_steps": 5, "logging_strategy": "epoch"}, {"logging_strategy": "steps"}),
    "greater_is_better": ({"greater_is_better": True}, {"metric_for_best_model": "accuracy"}),
    "run_name": ({"run_name": "one"}, {"report_to": "wandb"}),
    "project": ({"project": "mine", "report_to": "wandb"}, {"report_to": ["wandb", "trackio"]}),
    "gradient_checkpointing_kwargs": (
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True},
    ),
    "dataloader_multiprocessing_context": (
        {"dataloader_multiprocessing_context": "spawn"},
        {"dataloader_num_workers": 1},
    ),
    "torch_compile_mode": (
        {"torch_compile_mode": "max-autotune", "torch_compile_backend": "eager"},
        {"torch_compile_backend": "inductor"},
    ),
    "lr_scheduler_kwargs": ({"lr_scheduler_kwargs": {"power": 2}}, {"lr_scheduler_type": "polynomial"}),
    "warmup_steps": ({"warmup_steps": 2}, {"lr_scheduler_type": "constant_with_warmup"}),
    "warmup_learning_rate": (
        {"warmup_learning_rate": 1e-5, "lr_scheduler_type": "cosine"},
        {"warmup_steps": 0.1},
    ),
    "min_learning_rate": ({"min_learning_rate": 1e-4, "lr_scheduler_type": "linear"}, {"lr_scheduler_type": "cosine"}),
    "optim_target_modules": ({"optim_target_modules": ["layer"]}, {"optim": "galore_adamw"}),
    "guidance_weight": ({"guidance_weight": 2.0}, {"guidance": "features"}),
    "guidance_student_layers": ({"guidance_student_layers": ["-2"]}, {"guidance": "similarity"}),
    "guidance_teacher_layers": ({"guidance_teacher_layers": "-2"}, {"guidance": "features"}),
    "adam_beta1": ({"adam_beta1": 0.8, "optimizer_class": "torch.optim:SGD"}, {"optimizer_class": None}),
    "optim": ({"optim": "sgd", "optimizer_class": "torch.optim:SGD"}, {"optimizer_class": None}),
    "distillation_target": (
        {"distillation_target": "token", "distillation_type": "none"},
        {"distillation_type": "hard"},
    ),
    "distillation_alpha": ({"distillation_alpha": 0.3, "distillation_type": "none"}, {"distillation_type": "hard"}),
    "distillation_tau": ({"distillation_tau": 2.0, "distillation_type": "hard"}, {"distillation_type": "soft"}),
    "distillation_reduction": (
        {"distillation_reduction": "official", "distillation_type": "none"},
        {"distillation_type": "soft"},
    ),
    "mix_probability": ({"mix_probability": 0.5}, {"cutmix_alpha": 1.0}),
    "mix_switch_probability": (
        {"mix_switch_probability": 0.3, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.8},
    ),
    "class_weights_power": ({"class_weights_power": 0.5}, {"class_weights": "balanced"}),
    "early_stopping_threshold": (
        {"early_stopping_threshold": 0.1, "eval_strategy": "epoch"},
        {"early_stopping_patience": 2},
    ),
    "fsdp_config": ({"fsdp_config": {"min_num_params": 5}}, None),  # fsdp itself needs several processes
}


@pytest.mark.parametrize("name", CASES)
def test_a_field_that_depends_on_another_is_refused_without_it(tmp_path, name):
    changes, remedy = CASES[name]
    with pytest.raises(ValueError, match=f"{name}=.* has an effect only with"):
        arguments(tmp_path, **changes)
    if remedy is not None:
        arguments(tmp_path, **changes | remedy)


def test_every_condition_has_a_case():
    covered = CASES.keys() | {
        # These have the condition of a field of CASES, or are missing in the oldest transformers.
        "activation_checkpointing_kwargs",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "adam_beta2",
        "adam_epsilon",
    }
    assert {name for condition in CONDITIONS for name in condition.names} == covered


def trainer_of(folder, model=None, eval_dataset=None, train_dataset=None, **changes):
    args = arguments(folder, **{"distillation_type": "none", **changes})
    data = training_data(16) if train_dataset is None else train_dataset
    return DistillationTrainer(model or student(), None, args, train_dataset=data, eval_dataset=eval_dataset)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data_seed": 3}, "data_seed=3"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential'"),
        ({"ignore_data_skip": True}, "ignore_data_skip=True"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True"),
        ({"include_for_metrics": ["loss"]}, "compute_metrics"),
        ({"batch_eval_metrics": True}, "compute_metrics"),
        ({"adam_beta1": 0.8, "optim": "sgd"}, "adam_beta1=0.8"),
        ({"optim_args": "eps=1e-3"}, "does not use eps"),
        ({"optim": "sgd", "optim_args": "momentum=0.9,nesterow=true"}, "does not use nesterow"),
        ({"optim": "sgd", "optim_args": "momentum=0.9,weight_decay=0.1"}, "Set weight_decay"),
        ({"optimizer_class": "torch.optim:SGD", "optim_args": "lr=0.1"}, "Set learning_rate"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": ["clearml", "dvclive"]}, "clearml"),
        ({"report_to": "wandbb"}, "'wandbb'"),
        ({"torch_compile_backend": "inductr"}, "torch_compile_backend='inductr'"),
        ({"eval_strategy": "steps"}, "eval_strategy='steps' needs an evaluation set"),
        ({"eval_strategy": "epoch", "early_stopping_patience": 2}, "early_stopping_patience=2 needs an evaluation set"),
        ({"eval_on_start": True}, "eval_on_start=True needs an evaluation set"),
        ({"save_strategy": "best"}, "save_strategy='best' needs an evaluation set"),
        ({"model": lambda: student(two_heads=False), "distillation_token_decay": False}, "distillation_token_decay"),
        (
            {"model": lambda: student(problem_type="regression"), "label_smoothing_factor": 0.1},
            "label_smoothing_factor",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_a_field_that_this_trainer_cannot_use_is_refused_before_the_first_step(tmp_path, monkeypatch, changes, word):
    monkeypatch.setattr(environment, "is_installed", lambda package: False)
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    with pytest.raises(RecipeError) as caught:
        trainer_of(tmp_path, **changes)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "optim_args", ["momentum=0.9", "momentum=0.0,dampening=0.1", "momentum=0.9, nesterov=true"], ids=str
)
def test_arguments_that_the_optimizer_reads_pass(tmp_path, optim_args):
    built = trainer_of(tmp_path, optim="sgd", optim_args=optim_args).create_optimizer()
    assert built.defaults["momentum"] == float(optim_args.split(",")[0].split("=")[1])


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, pixel_values):
        return {"logits": self.layer(pixel_values.mean((2, 3)))}


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"neftune_noise_alpha": 5.0}], ids=str)
def test_features_that_the_student_does_not_have_are_refused_by_name(tmp_path, changes):
    trainer_of(tmp_path, **changes)
    with pytest.raises(RecipeError, match="checkpointing|neftune_noise_alpha"):
        trainer_of(tmp_path, model=Unsupported(), **changes)


def test_fp16_on_a_cpu_is_refused_and_bf16_is_proposed(tmp_path):
    with pytest.raises(ValueError, match="fp16=True on a CPU.*bf16=True"):
        arguments(tmp_path, fp16=True)
    assert arguments(tmp_path, bf16=True).bf16


def test_deepspeed_without_its_package_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "is_installed", lambda package: False)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        arguments(tmp_path, deepspeed=str(tmp_path / "config.json"))
    monkeypatch.setattr(environment, "is_installed", lambda package: True)
    with pytest.raises(ValueError, match="no such file"):
        arguments(tmp_path, deepspeed=str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_train_epochs": -1, "max_steps": -1}, "num_train_epochs=-1"),
        ({"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"max_steps": -5}, "max_steps=-5"),
        ({"adam_beta2": 2}, "adam_beta2=2"),
        ({"adam_beta1": 1.0}, "adam_beta1=1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"mix_probability": 2.0, "mixup_alpha": 0.8}, "mix_probability=2.0"),
        ({"mix_switch_probability": -1, "mixup_alpha": 0.8, "cutmix_alpha": 1.0}, "mix_switch_probability=-1"),
        ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, "early_stopping_patience=0"),
        ({"early_stopping_patience": 1, "eval_strategy": "no"}, "eval_strategy='no'"),
        ({"class_weights_power": 2, "class_weights": "balanced"}, "class_weights_power=2"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_its_own_name_alone(tmp_path, changes, word):
    with pytest.raises(ValueError, match=re.escape(word)) as caught:
        arguments(tmp_path, **changes)
    assert "things do not work" not in str(caught.value)


def test_without_an_evaluation_set_and_a_teacher_the_defaults_train(tmp_path, caplog):
    args = DistillationTrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=8, save_strategy="no")
    built = DistillationTrainer(student(), args=args, train_dataset=training_data(16))
    assert (built.args.distillation_type, built.args.eval_strategy) == ("none", "no")
    assert "labels alone" in caplog.text
    built.train()
    assert built.state.global_step == 1
    # The same arguments, with a teacher and an evaluation set.
    second = DistillationTrainer(
        student(), conv_teacher(), args, train_dataset=training_data(16), eval_dataset=evaluation_data(4)
    )
    assert (second.args.distillation_type, second.args.eval_strategy) == ("hard", "epoch")


def test_a_distillation_that_was_asked_for_still_needs_a_teacher(tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), distillation_type="hard")
    with pytest.raises(RecipeError, match="distillation_type='hard'.*teacher"):
        DistillationTrainer(student(), args=args, train_dataset=training_data(16))


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "save_best", "early_stopping"])
def test_a_misspelt_metric_is_refused_wherever_it_is_needed(tmp_path, schedule):
    changes = {
        "reduce_lr_on_plateau": {"lr_scheduler_type": "reduce_lr_on_plateau"},
        "save_best": {"save_strategy": "best"},
        "early_stopping": {"early_stopping_patience": 1},
    }[schedule]
    with pytest.raises(RecipeError, match="metric_for_best_model='acuracy'"):
        trainer_of(
            tmp_path, eval_dataset=evaluation_data(4), eval_strategy="epoch", metric_for_best_model="acuracy", **changes
        )


def test_a_metric_of_the_users_own_may_be_called_top5(tmp_path):
    args = arguments(tmp_path, distillation_type="none", eval_strategy="epoch", metric_for_best_model="my_top5")
    DistillationTrainer(
        student(),
        args=args,
        train_dataset=training_data(16),
        eval_dataset=evaluation_data(4),
        compute_metrics=lambda prediction: {"my_top5": 1.0},
    )


@pytest.mark.parametrize(("metric", "mode"), [(None, "max"), ("loss", "min")])
def test_a_schedule_on_a_plateau_knows_which_metric_is_better(tmp_path, metric, mode):
    built = trainer_of(
        tmp_path,
        eval_dataset=evaluation_data(4),
        eval_strategy="epoch",
        metric_for_best_model=metric,
        lr_scheduler_type="reduce_lr_on_plateau",
    )
    built.create_optimizer()
    assert built.create_scheduler(2).mode == mode
