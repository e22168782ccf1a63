"""`ResumableTrainer`: the Hugging Face Trainer with atomic saves, exact resume and averaged weights (EMA).

This class guarantees three things that the stock Trainer does not: a run that is killed while saving leaves no broken
newest checkpoint; a model saved for others contains no pickle and no token; and a resumed run restores every weight and
is refused if it is not the same run. The class does not depend on a teacher.

In a checkpoint, `model.safetensors` always holds the trained (raw) weights. The folder `ema/` beside it holds the
averaged model, which `from_pretrained` can load from there. `counted_weights` decides which of the two are the result
of the run. Checkpoint folders and the comparison of runs are in checkpoints.py, the average itself is in ema.py.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints

from ..data.dataset_info import describe_dataset, inspect_dataset
from ..errors import NonFiniteLossError, RecipeError, ResumeError
from ..files import STAGING_PREFIX, publish_folder, staged_files, write_json
from .auxiliary import GradientReset, average_gradients, load_auxiliary, save_auxiliary, trained_together
from .checkpoints import (
    EMA_FOLDER,
    RUN_FILE,
    check_complete,
    check_same_run,
    newest_checkpoint,
    remove_staging,
    saved_run,
    saved_state,
)
from .ema import AveragedWeights, AveragingCallback
from .fields import default_of, names_without_effect
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "training_args.json"
# Arguments that do not change what is trained (but, for example, where files are saved, how often, or how fast): a
# resumed run may change them. A name that ends in an underscore matches all names that begin with it.
_FREE_ARGUMENTS = (
    "output_dir",
    "logging_",
    "log_",
    "save_",
    "eval_",
    "dataloader_",
    "report_to",
    "run_name",
    "project",
    "trackio_",
    "hub_",
    "push_to_hub",
    "disable_tqdm",
    "resume_from_checkpoint",
    "do_",
    "load_best_model_at_end",
    "use_cache",
    "metric_for_best_model",
    "greater_is_better",
    "ignore_data_skip",
    "local_rank",
    "ddp_",
    "debug",
    "include_",
    "restore_callback_states_from_checkpoint",
    "prediction_loss_only",
    "batch_eval_metrics",
    "skip_memory_metrics",
    "bf16_full_eval",
    "fp16_full_eval",
    "torch_empty_cache_steps",
    "enable_jit_checkpoint",
    "accelerator_config",
    "label_names",
    "per_device_eval_batch_size",
    "counted_weights",
    "early_stopping_",
    # Only their product with the number of processes, the global batch size, is compared.
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


class _PresentCadence(TrainerCallback):
    """Callback that sets the logging, saving and evaluation intervals to those of the present arguments.

    Without it, a resumed run would use the intervals in the saved trainer state.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that counts on where the resumed run stopped counting, and stops again if it had stopped."""

    # Whether the present evaluation is one of the schedule: not that of eval_on_start, and none after the training.
    counts = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        # Of a new run these are the states of its own callbacks, in which the counter is 0.
        count = _early_stopping_count(state.stateful_callbacks)
        self.early_stopping_patience_counter = count if state.global_step else 0
        self.early_stopping_patience = args.early_stopping_patience  # restored callbacks have those of the checkpoint
        self.early_stopping_threshold = args.early_stopping_threshold
        self._stop_if_due(args, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        if not self.counts or name not in metrics:  # those of another evaluation set do not have it
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)
        self._stop_if_due(args, control)

    def _stop_if_due(self, args: Any, control: Any) -> None:
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
            logger.info(
                "Early stopping: %s did not get better in %d evaluations in a row (early_stopping_patience=%d).",
                args.metric_for_best_model,
                self.early_stopping_patience_counter,
                self.early_stopping_patience,
            )


def _early_stopping_count(stateful_callbacks: Any) -> int:
    saved = (stateful_callbacks or {}).get(EarlyStopping.__name__) or {}
    saved = saved[0] if isinstance(saved, list) else saved
    return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)


class ResumableTrainer(Trainer):
    """Trainer with atomic saves without pickles, with checked and exact resuming, and with averaged weights (EMA).

    Args:
        *args: As for `transformers.Trainer`.
        **kwargs: As for `transformers.Trainer`. `args` must be `DistillationTrainingArguments`.

    Raises:
        RecipeError: `args` is not `DistillationTrainingArguments`.
    """

    _writes_checkpoint = False
    # The averaged weights during a training with `ema_epochs`. At its end this is None again, and the model holds the
    # weights that `counted_weights` selects.
    average: AveragedWeights | None = None
    # Module that is trained together with the model: in the optimizer, in gradient clipping and in checkpoints, but
    # never in a saved model. Each process holds all of it. It must be set before the training.
    auxiliary: nn.Module | None = None
    _extends = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, DistillationTrainingArguments):
            raise RecipeError(f"args is {type(self.args).__name__}, but must be DistillationTrainingArguments.")
        # The times that this run was resumed into a longer schedule; see `train`.
        self.extensions: list[dict[str, Any]] = []
        self.add_callback(_PresentCadence)
        if self.args.early_stopping_patience is not None:
            threshold = self.args.early_stopping_threshold
            self.add_callback(EarlyStopping(self.args.early_stopping_patience, threshold))
        if self.args.ema_epochs:
            self.add_callback(AveragingCallback(self))
        self.add_callback(GradientReset(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, extend: bool = False, **kwargs: Any
    ) -> TrainOutput:
        """Train the model, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: Folder of a checkpoint; True: the newest complete checkpoint in `output_dir`.
            *args: As for `Trainer.train`.
            extend: Whether the resumed run may have a greater length (`num_train_epochs` or `max_steps`) than the run
                that wrote the checkpoint. From the checkpoint on, the learning rate follows the schedule of the new
                length. The steps before followed the old one, so the result is not that of an uninterrupted run;
                `extensions` and every later checkpoint record it.
            **kwargs: As for `Trainer.train`.

        Raises:
            ResumeError: `output_dir` holds no complete checkpoint, or the checkpoint belongs to a run with other data,
                recipe or model, or it does not restore all weights.
        """
        self.average = None  # created when training starts, or restored from the checkpoint
        self.extensions, self._extends = [], False
        output_dir = Path(self.args.output_dir)
        if self.args.should_save:
            remove_staging(output_dir)
        if resume_from_checkpoint is True or (extend and not resume_from_checkpoint):
            resume_from_checkpoint = str(newest_checkpoint(output_dir))
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            self.check_resumable(checkpoint, extend=extend)
            self.extensions = saved_run(checkpoint).get("extensions", [])
            if extend:
                self._note_extension(checkpoint)
            logger.info("Resuming from %s.", resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def check_resumable(self, checkpoint: Path, *, extend: bool = False, with_teacher: bool = True) -> None:
        """Check that this run can be resumed from a checkpoint.

        Args:
            checkpoint: Folder of the checkpoint.
            extend: As in `train`.
            with_teacher: Whether to compare a live teacher, which needs its weights.

        Raises:
            ResumeError: The checkpoint belongs to another run, or a part of it is missing or does not fit, or the new
                length is not greater.
        """
        description = self.run_description() if with_teacher else self.run_description(with_teacher=False)
        defaults = {entry.name: default_of(entry) for entry in dataclasses.fields(self.args)}
        keyed = inspect_dataset(self.train_dataset).takes_view_keys
        unused = names_without_effect(self.args, saved_run(checkpoint).get("recipe", {}), keyed=keyed)
        check_same_run(checkpoint, description, extend=extend, defaults=defaults, unused=unused)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_complete(checkpoint)
        if self.args.ema_epochs and not (checkpoint / EMA_FOLDER).is_dir():
            raise ResumeError(
                f"ema_epochs={self.args.ema_epochs}, but {checkpoint} holds no averaged weights ({EMA_FOLDER}/). Resume "
                "with ema_epochs=0, or start a new run from the checkpoint (--model CHECKPOINT, new output_dir)."
            )
        if self.auxiliary is not None:
            load_auxiliary(checkpoint, self.auxiliary, check_only=True)
        if not extend:
            return
        state = saved_state(checkpoint)
        steps, planned = state.get("max_steps"), self.args.planned_updates(self.train_dataset)
        if steps is not None and planned is not None and planned < steps:
            raise ResumeError(
                f"--extend: the run of {checkpoint} has {steps} optimizer steps, and max_steps or num_train_epochs now "
                f"gives {planned}. Give a greater length."
            )
        patience, count = self.args.early_stopping_patience, _early_stopping_count(state.get("stateful_callbacks"))
        if patience is not None and count >= patience and planned != steps:
            raise ResumeError(
                f"--extend: the run of {checkpoint} was stopped by early stopping ({count} evaluations without a better "
                f"metric, early_stopping_patience={patience}), so it would stop again at once. Raise "
                "early_stopping_patience, or leave it out."
            )
        if self.lr_scheduler is not None and not self._created_lr_scheduler:
            raise ResumeError(
                "--extend with a schedule of your own, whose length is not known. Leave out the schedule, and set "
                "lr_scheduler_type."
            )

    def _note_extension(self, checkpoint: Path) -> None:
        """Record that the resumed run is longer than the run that wrote the checkpoint."""
        state, planned = saved_state(checkpoint), self.args.planned_updates(self.train_dataset)
        steps = state.get("max_steps")
        if planned is None or steps is None or planned <= steps:
            return  # an extended run that is resumed
        self._extends = True
        self.extensions = [
            *self.extensions,
            {"at_step": state["global_step"], "from_steps": steps, "to_steps": planned},
        ]
        logger.warning(
            "The run is extended from %d to %d optimizer steps. From step %d on, the learning rate follows the schedule of "
            "%d steps; the steps before followed the shorter one. The result is not that of an uninterrupted run of %d "
            "steps; results.json and the model card record this.",
            steps,
            planned,
            state["global_step"],
            planned,
            planned,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore optimizer and schedule. In an extended run, set the learning rate of the new length at this step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._extends and isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            schedule = self.lr_scheduler
            factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
            rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates

    def run_description(self, with_teacher: bool = True) -> dict[str, Any]:
        """Return the model, recipe and data of this run, which are written into checkpoints and compared on resume.

        Args:
            with_teacher: Not used here; a subclass describes its teacher.
        """
        recipe = {
            name: value
            for name, value in json.loads(self.args.to_json_string()).items()
            if not any(name == free or (free.endswith("_") and name.startswith(free)) for free in _FREE_ARGUMENTS)
        }
        recipe["global_batch_size"] = self.args.global_batch_size
        frozen = sum(not parameter.requires_grad for parameter in self.model.parameters())
        model = {"class": type(self.model).__name__, "frozen_parameters": frozen}
        if hasattr(self.model, "config"):
            unrelated = ("transformers_version", "architectures", "dtype", "_name_or_path")
            model |= {name: value for name, value in self.model.config.to_dict().items() if name not in unrelated}
        description = {"model": model, "recipe": recipe, "data": describe_dataset(self.train_dataset)}
        return description | ({"extensions": self.extensions} if self.extensions else {})

    @property
    def ending(self) -> dict[str, Any]:
        """Facts of a finished run whose weights are not simply those after its last planned step; usually empty.

        `stopped_early`: that early stopping ended it (`at_step`, `planned_steps`, `patience`, `metric`). `best_checkpoint`:
        the checkpoint whose weights were chosen by `load_best_model_at_end` (`step`, `epoch`, `metric`, `value`).
        """
        args, state, facts = self.args, self.state, {}
        if self.is_in_train or not state.global_step:
            return facts
        metric = (args.metric_for_best_model or "").removeprefix("eval_")
        counts = [
            callback.early_stopping_patience_counter
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStopping)
        ]
        patience = args.early_stopping_patience
        if patience is not None and max(counts, default=0) >= patience and state.global_step < state.max_steps:
            facts["stopped_early"] = {
                "at_step": state.global_step,
                "planned_steps": state.max_steps,
                "patience": patience,
                "metric": metric,
            }
        if args.load_best_model_at_end and state.best_model_checkpoint is not None and state.best_global_step:
            step = state.best_global_step
            epochs = [entry["epoch"] for entry in state.log_history if entry.get("step") == step and "epoch" in entry]
            facts["best_checkpoint"] = {
                "step": step,
                "epoch": epochs[-1] if epochs else None,
                "metric": metric,
                "value": state.best_metric,
            }
        return facts

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            # The run was resumed after its last step, or after early stopping. The stock loop would train one more step.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _evaluate(self, *args: Any, skip_scheduler: bool = False, **kwargs: Any) -> dict[str, float]:
        """Evaluate during a training. Early stopping counts this unless it is that of `eval_on_start`."""
        stopping = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStopping)]
        for callback in stopping:
            callback.counts = not skip_scheduler
        try:
            return super()._evaluate(*args, skip_scheduler=skip_scheduler, **kwargs)
        finally:
            for callback in stopping:
                callback.counts = False

    # ---- weights that are trained beside the model ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as the stock Trainer does, for the model and the auxiliary module."""
        return super().create_optimizer(self._trained(model))

    def _trained(self, model: nn.Module | None = None) -> nn.Module | None:
        """Return the module whose parameters are trained: the model, joined with the auxiliary module if there is one."""
        return (
            model
            if self.auxiliary is None
            else trained_together(self.model if model is None else model, self.auxiliary)
        )

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients of a batch. Those of the auxiliary module are averaged over all processes."""
        loss = super().training_step(*args, **kwargs)
        if self.auxiliary is not None and self.accelerator.sync_gradients:
            average_gradients(self.auxiliary)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        if self.auxiliary is None:
            return super()._clip_grad_norm(model)
        return self._joint_norm(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> torch.Tensor | float:
        if self.auxiliary is not None and grad_norm is None:
            grad_norm = self._joint_norm(model, float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _joint_norm(self, model: nn.Module, largest: float) -> torch.Tensor:
        """Clip the gradients of model and auxiliary module to a common norm, and return the norm before."""
        return self.accelerator.clip_grad_norm_([*model.parameters(), *self.auxiliary.parameters()], largest)

    # ---- averaged weights ----

    @property
    def _ema_counts(self) -> bool:
        return self.args.ema_epochs > 0 and self.args.counted_weights == "ema"

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the Trainer does; during a training with EMA, also evaluate the averaged weights.

        The metrics of the averaged weights are added as `ema_accuracy`, `ema_loss`, …. The arguments are those of
        `Trainer.evaluation_loop`.
        """
        output = self._evaluate_weights(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.average is not None:
            with self.average.applied():
                averaged = self._evaluate_weights(*args, metric_key_prefix=f"{metric_key_prefix}_ema", **kwargs)
            output.metrics.update(
                {name: value for name, value in averaged.metrics.items() if "preparation_time" not in name}
            )
        return output

    def _evaluate_weights(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the weights that the model holds now. The arguments are those of `evaluation_loop`."""
        return super().evaluation_loop(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._ema_counts and self.average is not None:
            self.average.copy_to_model()
            logger.info("The model now holds the averaged weights (counted_weights=ema).")
        self.average = None
        return super()._finalize_training(*args, **kwargs)

    # ---- checkpoints ----

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, f"{STAGING_PREFIX}checkpoint") if self._writes_checkpoint else run_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the Trainer write the checkpoint into a staging folder, and rename the folder when it is complete."""
        run_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        best_model_checkpoint = self._best_checkpoint(run_dir, name)
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False
            self.state.best_model_checkpoint = best_model_checkpoint  # the Trainer looked for it in the staging folder
        self.accelerator.wait_for_everyone()  # every process writes the state of its own random generators
        if self.args.should_save:
            staging = run_dir / f"{STAGING_PREFIX}checkpoint" / name
            self.state.save_to_json(str(staging / "trainer_state.json"))
            write_json(staging / RUN_FILE, self.run_description())
            if self.auxiliary is not None and not self.args.save_only_model:
                save_auxiliary(staging, self.auxiliary)
            publish_folder(staging, run_dir / name)
            shutil.rmtree(staging.parent)  # and no other: a model card may be written beside it now
            rotate_checkpoints(str(run_dir), self.args.save_total_limit, best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.args.hub_strategy == "every_save":
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def _best_checkpoint(self, run_dir: Path, present: str) -> str | None:
        """Return the best checkpoint; `present` is the name of the checkpoint that is being written."""
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best.name == present or best.exists()):
            return str(best)
        return self.state.best_model_checkpoint

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model for others: atomically, without pickles, and with LayerScale folded.

        Args:
            output_dir: Folder to save into. Default: `args.output_dir`.
            _internal_call: As for `Trainer.save_model`.

        Raises:
            NonFiniteLossError: A weight is not finite. Nothing was written.
        """
        self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _check_weights(self) -> None:
        trained = self.model if self.auxiliary is None else self._trained()
        broken = [name for name, weight in trained.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise NonFiniteLossError(
                f"After step {self.state.global_step} (learning rate {self._get_learning_rate():g}) {len(broken)} "
                f"weight tensor(s) contain NaN or infinity, the first of them {broken[0]!r}. The model was not saved. "
                "Start a new run from the last checkpoint (--model CHECKPOINT, new output_dir) with one or more of: a "
                "lower learning_rate, more warmup_steps, max_grad_norm=1.0. If you use fp16, use bf16 instead."
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing. The stock method would upload pickles; `_save_checkpoint` pushes the model instead."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the model, the image processor and the arguments.

        A checkpoint gets the raw weights and, in its folder `ema/`, the averaged model. Any other folder gets only the
        weights that `counted_weights` selects, with LayerScale folded, so that others can load them.
        """
        if not self.args.should_save:
            return
        target = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self._writes_checkpoint:
            self._save_into(target, state_dict, fold=False)
            if self.average is not None:
                with self.average.applied():
                    self._save_into(target / EMA_FOLDER, None, fold=False)
            return
        counted = self._ema_counts and self.average is not None
        with self.average.applied() if counted else contextlib.nullcontext(), staged_files(target) as staging:
            self._save_into(staging, state_dict, fold=True)

    def _save_into(self, folder: Path, state_dict: dict | None, fold: bool) -> None:
        token, self.args.hub_token = self.args.hub_token, None  # the stock method pickles the arguments with the token
        try:
            super()._save(str(folder), state_dict)
        finally:
            self.args.hub_token = token
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        write_json(folder / ARGUMENTS_FILE, json.loads(self.args.to_json_string()))
        model = self.accelerator.unwrap_model(self.model)
        if fold and getattr(model, "has_layer_scale", False):
            model.save_pretrained(str(folder), state_dict=state_dict, fold_layer_scale=True)

    # ---- restoring ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.args.ema_epochs:
            folder = Path(resume_from_checkpoint) / EMA_FOLDER
            self._load_weights(str(folder), model)
            self.average = AveragedWeights(self.model)
        self._load_weights(resume_from_checkpoint, model)
        if self.auxiliary is not None:
            load_auxiliary(Path(resume_from_checkpoint), self.auxiliary)

    def _load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        if not self._restore_by_from_pretrained(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self._ema_counts:
            self.state.best_model_checkpoint = str(Path(best) / EMA_FOLDER)
        try:
            if not self._restore_by_from_pretrained(self.state.best_model_checkpoint):
                super()._load_best_model()
        finally:
            self.state.best_model_checkpoint = best

    def _restore_by_from_pretrained(self, checkpoint: str) -> bool:
        """Restore a stock student with `from_pretrained`, if that is needed.

        The parameters of stock students can have other names in files than in memory (transformers #48805), and the
        Trainer would not restore them. The classes of this package rename the parameters in `load_state_dict`; the
        Trainer restores them, and also runs with sharded parameters or adapters.

        Returns:
            Whether the model was restored.
        """
        model = self.model
        renames = getattr(model, "renames_hub_keys", False)
        stock = isinstance(model, PreTrainedModel) and not renames
        if not stock or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        if not (Path(checkpoint) / "model.safetensors").is_file():
            return False
        restored = type(model).from_pretrained(checkpoint, config=model.config)
        model.load_state_dict(restored.state_dict())
        return True

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise an error if weights were not restored: it would be another run. The stock Trainer only warns."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        if missing or load_result.unexpected_keys:
            raise ResumeError(
                f"The checkpoint does not restore the model: {len(missing)} weights are missing (such as "
                f"{sorted(missing)[:3]}), and {len(load_result.unexpected_keys)} weights are unknown (such as "
                f"{sorted(load_result.unexpected_keys)[:3]}). The checkpoint belongs to another model, or was written "
                "by another version. Resume with the model and the versions that wrote it."
            )
