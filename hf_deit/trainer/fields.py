"""Use of every field of `TrainingArguments`: which function reads it, on what it depends, or why it is refused.

No field is accepted and then ignored: a value that can have no effect is refused, with its replacement.
`STOCK_FIELDS` is also the source of the table in docs/fields.md, and a test compares it with the code that it names. The
fields of this package are in it only where they depend on another field (`CONDITIONS`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

EFFECT, HARDWARE, REFUSED = "effect", "other hardware", "refused"


@dataclasses.dataclass(frozen=True)
class FieldUse:
    """Use of one field of `TrainingArguments`.

    Args:
        kind: `EFFECT`; `HARDWARE`: it has an effect only on an accelerator, or with several processes or machines;
            `REFUSED`: every value except the default is refused.
        text: Function that reads the field, or for a refused field the reason and the replacement.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition without which a value that is not the default has no effect, and is refused.

    Args:
        names: Fields that depend on the condition.
        text: The condition, as the end of a sentence: "it has an effect only with …".
        remedy: How to fix it.
        holds: Function of the arguments (before `TrainingArguments.__post_init__`) that tests the condition.
    """

    names: tuple[str, ...]
    text: str
    remedy: str
    holds: Callable[[Any], bool]


def _read_by(*functions: str) -> FieldUse:
    return FieldUse(EFFECT, ", ".join(functions))


def _hardware(*functions: str) -> FieldUse:
    return FieldUse(HARDWARE, ", ".join(functions))


def _refused(reason: str) -> FieldUse:
    return FieldUse(REFUSED, reason)


_LOOP, _FLOW = "Trainer._inner_training_loop", "DefaultFlowCallback"
_LOADER = "Trainer._get_dataloader"
_OWN_SCRIPT = "only a Python script of your own can read it, so it would have no effect here. "

STOCK_FIELDS: dict[str, FieldUse] = {
    "output_dir": _read_by("ResumableTrainer.train"),
    # length, batch, optimizer and schedule
    "per_device_train_batch_size": _read_by("TrainingArguments.train_batch_size"),
    "num_train_epochs": _read_by("Trainer.set_initial_training_values"),
    "max_steps": _read_by("Trainer.set_initial_training_values"),
    "learning_rate": _read_by("scheduled_trainer._peak"),
    "lr_scheduler_type": _read_by("DistillationTrainer.create_scheduler"),
    "lr_scheduler_kwargs": _read_by("DistillationTrainer.create_scheduler"),
    "warmup_steps": _read_by("TrainingArguments.get_warmup_steps"),
    "optim": _read_by("Trainer.get_optimizer_cls_and_kwargs"),
    "optim_args": _read_by("DistillationTrainer.get_optimizer_cls_and_kwargs"),
    "weight_decay": _read_by("Trainer.create_optimizer"),
    "adam_beta1": _read_by("Trainer.get_optimizer_cls_and_kwargs"),
    "adam_beta2": _read_by("Trainer.get_optimizer_cls_and_kwargs"),
    "adam_epsilon": _read_by("Trainer.get_optimizer_cls_and_kwargs"),
    "optim_target_modules": _read_by("trainer_optimizer._setup_low_rank_optimizer"),
    "gradient_accumulation_steps": _read_by("Trainer._run_epoch"),
    "max_grad_norm": _read_by("Trainer._clip_grad_norm"),
    "label_smoothing_factor": _read_by("DistillationTrainer.objective"),
    "average_tokens_across_devices": _refused("the loss is a mean over images, not over tokens. Leave it out."),
    # precision, memory and compilation
    "bf16": _read_by("TrainingArguments.__post_init__"),
    "fp16": _hardware("TrainingArguments.__post_init__"),
    "bf16_full_eval": _refused(
        "it would round the weights themselves, so the metrics would not be those of the saved weights. Use bf16=True, "
        "which also evaluates in bfloat16."
    ),
    "fp16_full_eval": _refused(
        "it would round the weights themselves, so the metrics would not be those of the saved weights. Use bf16=True, "
        "which also evaluates in bfloat16."
    ),
    "tf32": _hardware("TrainingArguments.__post_init__"),
    "activation_checkpointing": _read_by("Trainer.train"),
    "activation_checkpointing_kwargs": _read_by("Trainer.train"),
    "gradient_checkpointing": _read_by("TrainingArguments.__post_init__"),
    "gradient_checkpointing_kwargs": _read_by("TrainingArguments.__post_init__"),
    "torch_compile": _read_by("TrainingArguments.__post_init__"),
    "torch_compile_backend": _read_by("Trainer._build_accelerator_args"),
    "torch_compile_mode": _read_by("Trainer._build_accelerator_args"),
    "use_liger_kernel": _refused(
        "Liger has kernels for language models, and none for image classifiers. Use torch_compile=True."
    ),
    "liger_kernel_config": _refused(
        "Liger has kernels for language models, and none for image classifiers. Use torch_compile=True."
    ),
    "use_cache": _refused("only models that generate text have a cache of keys and values. Leave it out."),
    "neftune_noise_alpha": _read_by("Trainer.__init__"),
    "torch_empty_cache_steps": _hardware("Trainer.training_step"),
    "auto_find_batch_size": _refused(
        "another batch size is another training. If memory is short, lower per_device_train_batch_size and raise "
        "gradient_accumulation_steps by the same factor."
    ),
    # logging and trackers
    "logging_strategy": _read_by(f"{_FLOW}.on_step_end"),
    "logging_steps": _read_by("TrainerState.compute_steps"),
    "logging_first_step": _read_by(f"{_FLOW}.on_step_end"),
    "log_on_each_node": _hardware("TrainingArguments.should_log"),
    "logging_nan_inf_filter": _refused(
        "a loss that is not finite stops the training and is never hidden. Leave it out."
    ),
    "include_num_input_tokens_seen": _refused("images have no tokens to count: it would count pixels. Leave it out."),
    "log_level": _read_by("TrainingArguments.get_process_log_level"),
    "log_level_replica": _hardware("TrainingArguments.get_process_log_level"),
    "disable_tqdm": _read_by("Trainer.__init__"),
    "report_to": _read_by("Trainer.__init__"),
    "run_name": _read_by("WandbCallback.setup"),
    "project": _read_by("TrackioCallback.setup"),
    "trackio_space_id": _read_by("TrackioCallback.setup"),
    "trackio_bucket_id": _read_by("TrackioCallback.setup"),
    "trackio_static_space_id": _read_by("TrackioCallback.on_push_begin"),
    # evaluation
    "eval_strategy": _read_by(f"{_FLOW}.on_step_end"),
    "eval_steps": _read_by("TrainerState.compute_steps"),
    "eval_delay": _read_by(f"{_FLOW}.on_step_end"),
    "per_device_eval_batch_size": _read_by("TrainingArguments.eval_batch_size"),
    "prediction_loss_only": _read_by("Trainer.evaluation_loop"),
    "eval_on_start": _read_by(_LOOP),
    "eval_do_concat_batches": _read_by("Trainer.evaluation_loop"),
    "eval_use_gather_object": _hardware("Trainer.create_accelerator_and_postprocess"),
    "eval_accumulation_steps": _read_by("Trainer.evaluation_loop"),
    "include_for_metrics": _read_by("Trainer.evaluation_loop"),
    "batch_eval_metrics": _read_by("Trainer.evaluation_loop"),
    # checkpoints
    "save_only_model": _read_by("Trainer._save_checkpoint"),
    "save_strategy": _read_by(f"{_FLOW}.on_step_end"),
    "save_steps": _read_by("TrainerState.compute_steps"),
    "save_on_each_node": _hardware("TrainingArguments.should_save"),
    "save_total_limit": _read_by("ResumableTrainer._save_checkpoint"),
    "enable_jit_checkpoint": _refused(
        "it would write into the folder of an unfinished checkpoint. Checkpoints are complete at any moment here: use "
        "save_strategy='steps' with a small save_steps, and resume."
    ),
    "load_best_model_at_end": _read_by("Trainer._finalize_training"),
    "metric_for_best_model": _read_by("Trainer._determine_best_metric"),
    "greater_is_better": _read_by("Trainer._determine_best_metric"),
    "ignore_data_skip": _read_by("Trainer._run_epoch"),
    "restore_callback_states_from_checkpoint": _read_by("Trainer._load_callback_state"),
    # Hub
    "push_to_hub": _read_by("ResumableTrainer._save_checkpoint"),
    "hub_token": _read_by("HubMixin.push_to_hub"),
    "hub_private_repo": _read_by("Trainer.init_hf_repo"),
    "hub_model_id": _read_by("HubMixin.create_model_card"),
    "hub_strategy": _read_by("ResumableTrainer._save_checkpoint"),
    "hub_always_push": _refused("every push waits for the one before it, so none is left out. Leave it out."),
    "hub_revision": _read_by("HubMixin.push_to_hub"),
    # randomness and devices
    "full_determinism": _read_by("Trainer.__init__"),
    "seed": _read_by("Trainer.__init__"),
    "data_seed": _read_by("Trainer.create_accelerator_and_postprocess"),
    "use_cpu": _read_by("TrainingArguments.__post_init__"),
    "accelerator_config": _read_by("Trainer.create_accelerator_and_postprocess"),
    "parallelism_config": _refused("students are trained with data parallelism only. Leave it out."),
    # loaders
    "dataloader_drop_last": _read_by(_LOADER),
    "dataloader_num_workers": _read_by(_LOADER),
    "dataloader_pin_memory": _hardware(_LOADER),
    "dataloader_persistent_workers": _read_by(_LOADER),
    "dataloader_prefetch_factor": _read_by(_LOADER),
    "dataloader_multiprocessing_context": _read_by(_LOADER),
    "dataloader_in_order": _refused(
        "batches in the order in which workers finish would make every run another one. Leave it out."
    ),
    "remove_unused_columns": _refused(
        "images are decoded when they are accessed, and mixing and cached teacher outputs need columns that the student "
        "does not take. Leave it out."
    ),
    "label_names": _refused("the labels are the column 'labels' or 'label'. Rename the column of the data."),
    "train_sampling_strategy": _read_by("Trainer._get_train_sampler"),
    "length_column_name": _refused("images have no length to group them by. Leave it out."),
    # several processes
    "ddp_find_unused_parameters": _hardware("Trainer._build_accelerator_args"),
    "ddp_bucket_cap_mb": _hardware("Trainer._build_accelerator_args"),
    "ddp_broadcast_buffers": _hardware("Trainer._build_accelerator_args"),
    "ddp_static_graph": _hardware("Trainer._build_accelerator_args"),
    "ddp_backend": _hardware("TrainingArguments._setup_devices"),
    "ddp_timeout": _hardware("TrainingArguments.ddp_timeout_delta"),
    "fsdp": _hardware("TrainingArguments._process_fsdp_args"),
    "fsdp_config": _hardware("TrainingArguments._process_fsdp_args"),
    "deepspeed": _hardware("TrainingArguments.__post_init__"),
    "debug": _read_by("Trainer.train"),
    "skip_memory_metrics": _read_by("Trainer.__init__"),
    # read by scripts
    "do_train": FieldUse(
        REFUSED, _OWN_SCRIPT + "`hf-deit train` always trains. To evaluate a model, use `hf-deit evaluate`."
    ),
    "do_eval": FieldUse(REFUSED, _OWN_SCRIPT + "Use eval_strategy (no, steps or epoch), or `hf-deit evaluate`."),
    "do_predict": FieldUse(REFUSED, _OWN_SCRIPT + "Use `hf-deit predict`."),
    "resume_from_checkpoint": FieldUse(
        REFUSED,
        _OWN_SCRIPT + "Use --resume, which resumes from the newest checkpoint in output_dir, or give the checkpoint as "
        "--model to start a new run from its weights.",
    ),
    "local_rank": FieldUse(REFUSED, _OWN_SCRIPT + "Start several processes with `accelerate launch` or torchrun."),
}
# Fields that the commands refuse whatever their value is, because only a script of the user can read them.
SCRIPT_FIELDS = tuple(name for name, use in STOCK_FIELDS.items() if use.text.startswith(_OWN_SCRIPT))
# Fields that have an effect in Python only: no command can make use of them.
PYTHON_FIELDS = {
    "prediction_loss_only": "a command needs no predictions of an evaluation. Leave it out.",
    "eval_do_concat_batches": "a command needs no predictions of an evaluation. Leave it out.",
    "eval_use_gather_object": "the labels and predictions of image classifiers are tensors. Leave it out.",
    "eval_accumulation_steps": "a command keeps no predictions of an evaluation. Leave it out.",
    "include_for_metrics": "it is for your own compute_metrics. Leave it out.",
    "batch_eval_metrics": "it is for your own compute_metrics. Leave it out.",
    "train_sampling_strategy": "the views determine the order of the images, by the seed. Leave it out.",
    "data_seed": "the views and their order depend on seed alone. Set seed.",
    "ignore_data_skip": "a resumed run would see images twice. Leave it out: skipping reads no image.",
    "dataloader_drop_last": "an epoch has no incomplete step, and an evaluation needs every image. Leave it out.",
}
# Fields that have no effect on data with view keys, and why; their defaults are allowed.
KEYED_FIELDS = {
    "train_sampling_strategy": "the seed determines the order of view keys. Leave it out.",
    "data_seed": "the seed of the data set determines the order of its view keys. Leave it out.",
    "ignore_data_skip": "a resumed run would see views twice. Leave it out: skipping reads no image.",
    "dataloader_drop_last": "an epoch of view keys has no incomplete step. Leave it out.",
}
# Schedules that lower the learning rate when `metric_for_best_model` does not get better. They have no warm-up.
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
# Fields of a push, which have an effect without push_to_hub only where a script calls `trainer.push_to_hub()`.
PUSH_FIELDS = ("hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy")


def needs_best_metric(args: Any) -> bool:
    """Return whether the run compares its evaluations by `metric_for_best_model`."""
    return bool(
        args.load_best_model_at_end
        or args.save_strategy == "best"
        or args.lr_scheduler_type in METRIC_SCHEDULES
        or args.early_stopping_patience is not None
    )


def _tracks(args: Any, *names: str) -> bool:
    trackers = [args.report_to] if isinstance(args.report_to, str) or args.report_to is None else args.report_to
    return any(tracker not in (None, "none") and (not names or tracker in (*names, "all")) for tracker in trackers)


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        ("eval_steps",),
        "eval_strategy='steps'",
        "Set eval_strategy='steps'.",
        lambda args: args.eval_strategy == "steps",
    ),
    Condition(
        ("eval_delay",),
        "evaluations",
        "Set eval_strategy='epoch' or 'steps'.",
        lambda args: args.eval_strategy != "no",
    ),
    Condition(
        ("save_steps",),
        "save_strategy='steps'",
        "Set save_strategy='steps'.",
        lambda args: args.save_strategy == "steps",
    ),
    Condition(
        ("save_only_model", "save_total_limit"),
        "checkpoints",
        "Set save_strategy='epoch' or 'steps'.",
        lambda args: args.save_strategy != "no",
    ),
    Condition(
        ("logging_steps",),
        "logging_strategy='steps'",
        "Set logging_strategy='steps'.",
        # Without eval_steps, it is the number of steps between evaluations too.
        lambda args: "steps" in (args.logging_strategy, args.eval_strategy),
    ),
    Condition(
        ("greater_is_better",),
        "metric_for_best_model",
        "Set metric_for_best_model.",
        lambda args: args.metric_for_best_model is not None or needs_best_metric(args),
    ),
    Condition(("run_name",), "a tracker", "Set report_to.", _tracks),
    Condition(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "the tracker trackio",
        "Set report_to='trackio'.",
        lambda args: _tracks(args, "trackio"),
    ),
    Condition(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        "activation_checkpointing",
        "Set activation_checkpointing=True.",
        lambda args: getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing,
    ),
    Condition(
        ("dataloader_multiprocessing_context",),
        "workers",
        "Set dataloader_num_workers.",
        lambda args: bool(args.dataloader_num_workers),
    ),
    Condition(
        ("torch_compile_mode",),
        "torch_compile_backend='inductor'",
        "Leave out one of them.",
        lambda args: args.torch_compile_backend in (None, "inductor"),
    ),
    Condition(
        ("lr_scheduler_kwargs",),
        "a schedule that takes arguments",
        "Leave it out, or choose another lr_scheduler_type.",
        lambda args: args.lr_scheduler_type not in ("constant", "constant_with_warmup"),
    ),
    Condition(
        ("warmup_steps",),
        "a schedule with a warm-up",
        "Use lr_scheduler_type='constant_with_warmup' instead of 'constant', or set warmup_steps=0.",
        lambda args: not args.warmup_steps or args.lr_scheduler_type not in ("constant", *METRIC_SCHEDULES),
    ),
    Condition(
        ("warmup_learning_rate",),
        "lr_scheduler_type='cosine' and a warm-up",
        "Leave it out, or set lr_scheduler_type='cosine' and warmup_steps.",
        lambda args: args.lr_scheduler_type == "cosine" and args.warmup_steps,
    ),
    Condition(
        ("min_learning_rate",),
        "lr_scheduler_type='cosine'",
        "Leave it out, or set lr_scheduler_type='cosine'.",
        lambda args: args.lr_scheduler_type == "cosine",
    ),
    Condition(
        ("optim_target_modules",),
        "a GaLore or APOLLO optimizer",
        "Leave it out, or set optim='galore_adamw', for example.",
        lambda args: str(getattr(args.optim, "value", args.optim)).startswith(("galore", "apollo")),
    ),
    Condition(
        ("optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
        "an optimizer of optim, but optimizer_class is given",
        "Give the arguments of the optimizer as optim_args, or leave out optimizer_class.",
        lambda args: args.optimizer_class is None,
    ),
    Condition(
        ("distillation_target", "distillation_alpha"),
        "distillation",
        "Leave it out, or set distillation_type='hard' or 'soft'.",
        lambda args: args.distillation_type != "none",
    ),
    Condition(
        ("distillation_tau", "distillation_reduction"),
        "distillation_type='soft'",
        "Leave it out, or set distillation_type='soft'.",
        lambda args: args.distillation_type == "soft",
    ),
    Condition(
        ("guidance_weight", "guidance_student_layers", "guidance_teacher_layers"),
        "guidance",
        "Leave it out, or set guidance='features' or 'similarity'.",
        lambda args: args.guidance != "none",
    ),
    Condition(
        ("mix_probability",),
        "mixup or CutMix",
        "Set mixup_alpha or cutmix_alpha.",
        lambda args: args.mixup_alpha or args.cutmix_alpha,
    ),
    Condition(
        ("mix_switch_probability",),
        "both mixup and CutMix",
        "Set mixup_alpha and cutmix_alpha.",
        lambda args: args.mixup_alpha and args.cutmix_alpha,
    ),
    Condition(
        ("class_weights_power",),
        "class weights",
        "Set class_weights.",
        lambda args: args.class_weights not in ("none", None),
    ),
    Condition(
        ("early_stopping_threshold",),
        "early_stopping_patience",
        "Set early_stopping_patience.",
        lambda args: args.early_stopping_patience is not None,
    ),
    Condition(
        ("fsdp_config",),
        "fsdp",
        "Leave it out, or set fsdp.",
        lambda args: args.fsdp or (isinstance(args.fsdp_config, dict) and not any(args.fsdp_config.values())),
    ),
)


# Fields of `accelerator_config` that agree with complete global batches of view keys, and with gathered evaluations.
_ACCELERATOR_FIELDS = ("non_blocking", "use_configured_state")


def accelerator_problems(config: Any) -> Iterator[str]:
    """Yield the fields of `accelerator_config` that would change batches or gradients behind the trainer's back.

    Args:
        config: `AcceleratorConfig` of transformers.
    """
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if entry.name not in _ACCELERATOR_FIELDS and value != default_of(entry):
            yield (
                f"accelerator_config: {entry.name}={value!r} would change how batches are divided. Leave it out; of this "
                f"field {' and '.join(_ACCELERATOR_FIELDS)} can be set."
            )


def default_of(entry: dataclasses.Field) -> Any:
    """Return the default of a dataclass field."""
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def changed_fields_of(args: Any) -> dict[str, Any]:
    """Return the fields of a dataclass whose value is not the default, by name."""
    values = {entry.name: (getattr(args, entry.name), default_of(entry)) for entry in dataclasses.fields(args)}
    return {name: value for name, (value, default) in values.items() if value != default}


def refused_problems(args: Any) -> Iterator[str]:
    """Yield a problem for every field that is refused unless it has its default.

    Args:
        args: `DistillationTrainingArguments`.
    """
    for name, value in changed_fields_of(args).items():
        use = STOCK_FIELDS.get(name)
        if use is not None and use.kind == REFUSED and name not in SCRIPT_FIELDS and not _says_the_default(name, value):
            yield f"{name}={shown(value)}: {use.text}"


def condition_problems(
    args: Any, changed: Mapping[str, Any], conditions: Iterable[Condition] = CONDITIONS
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the fields that have no effect because a condition does not hold, with a message.

    Args:
        args: Object whose attributes are the fields, before `TrainingArguments.__post_init__`.
        changed: Fields whose value is not the default, by name.
        conditions: Conditions to test.
    """
    changed = {name: value for name, value in changed.items() if value is not None}
    if not changed.get("distillation_alpha"):
        changed.pop("distillation_alpha", None)  # 0 is also what is filled in without distillation
    for condition in conditions:
        names = tuple(name for name in condition.names if name in changed)
        if names and not condition.holds(args):
            given = ", ".join(f"{name}={shown(changed[name])}" for name in names)
            yield names, f"{given} has an effect only with {condition.text}. {condition.remedy}"


def names_without_effect(args: Any, recipe: Mapping[str, Any], *, keyed: bool) -> set[str]:
    """Return the fields of a saved recipe whose values had no effect: earlier versions accepted them.

    Args:
        args: Present arguments, which give the fields that the saved recipe does not have.
        recipe: Fields of the saved recipe.
        keyed: Whether the training data take view keys.
    """
    defaults = {entry.name: default_of(entry) for entry in dataclasses.fields(args)}
    changed = {name: value for name, value in recipe.items() if name in defaults and value != defaults[name]}
    saved = SimpleNamespace(**{**vars(args), **recipe})
    names = {name for unused, _ in condition_problems(saved, changed) for name in unused}
    names |= {name for name in changed if name in STOCK_FIELDS and STOCK_FIELDS[name].kind == REFUSED}
    return names | (set(KEYED_FIELDS) if keyed else set())


def _says_the_default(name: str, value: Any) -> bool:
    """Return whether a value means the same as the default of the field."""
    return (name, value) in (("include_num_input_tokens_seen", False), ("liger_kernel_config", {}))


def shown(value: Any) -> str:
    """Return a value as a message shows it: a member of an enum by its value."""
    return repr(getattr(value, "value", value))
