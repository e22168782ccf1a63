"""`ResumableTrainer`: the Hugging Face Trainer with atomic saves, exact resume and averaged weights (EMA).

The stock Trainer does not promise three things: that a kill while saving leaves no broken newest checkpoint; that what is saved
for others holds no pickle and no token; that a resumed run restores every weight and is the run it claims to be. This class
does, and it knows nothing of teachers.

`model.safetensors` of a checkpoint always holds the trained (raw) weights, and the folder `ema/` beside it the averaged model,
which `from_pretrained` loads by itself. `counted_weights` decides which of the two are the run's result. Folders and
comparisons are in checkpoints.py, the average itself is in ema.py.
"""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints

from ..data.dataset_info import describe_dataset
from ..errors import NonFiniteLossError, RecipeError, ResumeError
from ..files import STAGING_PREFIX, publish_folder, staged_files, write_json
from .checkpoints import EMA_FOLDER, RUN_FILE, check_same_run, newest_checkpoint, remove_staging
from .ema import AveragedWeights, AveragingCallback
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "training_args.json"
# Arguments that say where, how often and how fast, and not what is trained: a resumed run may change them. A name that ends
# in an underscore stands for all that begin with it.
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
    # Together these make the global batch, which is compared.
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


class _PresentCadence(TrainerCallback):
    """Logs, saves and evaluates as often as the arguments say now, where a resumed state still holds what they said."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class ResumableTrainer(Trainer):
    """Add atomic saves without pickles, checked and exact resuming, and averaged weights to `transformers.Trainer`.

    The arguments are those of `transformers.Trainer`, with `DistillationTrainingArguments` as `args`.
    """

    _writes_checkpoint = False
    # Averaged weights while the trainer trains with `ema_epochs`; at the end the model holds the weights that count.
    average: AveragedWeights | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, DistillationTrainingArguments):
            raise RecipeError(f"args is {type(self.args).__name__}: give DistillationTrainingArguments.")
        self.add_callback(_PresentCadence)
        if self.args.ema_epochs:
            self.add_callback(AveragingCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains; True resumes from the newest complete checkpoint in `output_dir`.

        Raises:
            ResumeError: There is none, or it belongs to a run with other data, recipe or model.
        """
        self.average = None  # it begins again, or is restored from the checkpoint
        output_dir = Path(self.args.output_dir)
        if self.args.should_save:
            remove_staging(output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_checkpoint(output_dir))
        if resume_from_checkpoint:
            check_same_run(Path(resume_from_checkpoint), self.run_description())
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def run_description(self) -> dict[str, Any]:
        """Model, recipe and data of this run; written into checkpoints, compared on resume."""
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
        return {"model": model, "recipe": recipe, "data": describe_dataset(self.train_dataset)}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # resumed at its end: the stock loop would take one step more
            return
        super()._run_epoch(*args, **kwargs)

    # ---- averaged weights ----

    @property
    def _ema_counts(self) -> bool:
        return self.args.ema_epochs > 0 and self.args.counted_weights == "ema"

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's. While averaged weights are kept, their metrics follow as `ema_accuracy`, `ema_loss`, …"""
        output = self._evaluate_weights(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.average is not None:
            with self.average.applied():
                averaged = self._evaluate_weights(*args, metric_key_prefix=f"{metric_key_prefix}_ema", **kwargs)
            output.metrics.update(
                {name: value for name, value in averaged.metrics.items() if "preparation_time" not in name}
            )
        return output

    def _evaluate_weights(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the weights that the model holds now; arguments as `evaluation_loop`."""
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
        """Has the Trainer write into a folder aside, and renames it when it is finished."""
        run_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        best_model_checkpoint = self._best_checkpoint(run_dir, name)
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False
            self.state.best_model_checkpoint = best_model_checkpoint  # the Trainer looked for it in the folder aside
        self.accelerator.wait_for_everyone()  # every process writes its own generator's state
        if self.args.should_save:
            staging = run_dir / f"{STAGING_PREFIX}checkpoint" / name
            self.state.save_to_json(str(staging / "trainer_state.json"))
            write_json(staging / RUN_FILE, self.run_description())
            publish_folder(staging, run_dir / name)
            shutil.rmtree(staging.parent)  # and nothing else: somebody may be writing a card beside it
            rotate_checkpoints(str(run_dir), self.args.save_total_limit, best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.args.hub_strategy == "every_save":
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def _best_checkpoint(self, run_dir: Path, present: str) -> str | None:
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best.name == present or best.exists()):
            return str(best)
        return self.state.best_model_checkpoint

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model for others: atomically, without pickles, LayerScale folded.

        Raises:
            NonFiniteLossError: A weight is not finite; nothing was written.
        """
        self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _check_weights(self) -> None:
        broken = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise NonFiniteLossError(
                f"After step {self.state.global_step} (learning rate {self._get_learning_rate():g}) {len(broken)} weight "
                f"tensors are not finite, the first {broken[0]!r}. They were not saved. Start a new run from the last one (--model CHECKPOINT, new output_dir) "
                "with a lower learning_rate, longer warmup_steps or max_grad_norm=1.0; with fp16 use bf16."
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the stock method uploads pickles; `_save_checkpoint` pushes the model by itself."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save model, processor and arguments.

        A checkpoint holds the raw weights, and the averaged ones in a folder beside them. Elsewhere only the weights that
        count are saved, with LayerScale folded, so that others can load them.
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
        token, self.args.hub_token = self.args.hub_token, None  # the stock method pickles the arguments, token included
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
            if not folder.is_dir():
                raise ResumeError(
                    f"ema_epochs={self.args.ema_epochs}, but {resume_from_checkpoint} holds no averaged weights ({EMA_FOLDER}/): "
                    "resume with ema_epochs=0, or start a new run from it (--model CHECKPOINT, new output_dir)."
                )
            self._load_weights(str(folder), model)
            self.average = AveragedWeights(self.model)
        self._load_weights(resume_from_checkpoint, model)

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
        """Restores a stock student, whose parameters have other names in files (transformers #48805); True if it did.

        This package's classes rename in `load_state_dict` and take the Trainer's way, as do sharded and adapter runs.
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
        """Where the stock Trainer only warns: weights that were not restored make it another run."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        if missing or load_result.unexpected_keys:
            raise ResumeError(
                f"The checkpoint does not restore the model: {len(missing)} weights are missing (such as "
                f"{sorted(missing)[:3]}), {len(load_result.unexpected_keys)} unknown (such as "
                f"{sorted(load_result.unexpected_keys)[:3]}). It is of another model or was written by another version."
            )
