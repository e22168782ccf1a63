"""Runs a plan of trainings, each in a forked child of its own that may be killed; transformers is imported once.

Usage: `python resume_runs.py PLAN.json RESULTS.json`. The plan is a list of runs (see `train`), done in order. The results
hold for each run by name its exit status (-9: killed), what lies in its folder, the SHA-256 of the final weights and of
the last averaged ones, and of those that came to an end the logged losses or the error.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig
from transformers import ViTForImageClassification as StockViT

from hf_deit import files
from hf_deit.models import modeling_deit
from hf_deit.trainer import resumable_trainer
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import (
    NAMES,
    SIZE,
    arguments,
    conv_teacher,
    pixels_of,
    student,
    training_data,
)

STEPS = 14

# A kill is no power cut: without it the many saves here need not wait for the disk.
files._sync = lambda folder: None


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(TrainerCallback):
    """Kills the process in the middle of a step (between two batches) or at its end, before it is saved."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_substep_end(self, args, state, control, **kwargs):
        if self.moment == "middle" and state.global_step + 1 == self.step:
            die()

    def on_step_end(self, args, state, control, **kwargs):
        if self.moment == "end" and state.global_step == self.step:
            die()


def kill_in_save(step, moment):
    """Has the process killed at a moment of the save at a step, or ("final") in the middle of the last save."""
    trainer_class, replace = resumable_trainer.ResumableTrainer, os.replace
    save_optimizer = trainer_class._save_optimizer_and_scheduler
    publish, rotate = resumable_trainer.publish_folder, resumable_trainer.rotate_checkpoints
    saved = []

    def torn_optimizer(trainer, output_dir):
        saved.append(trainer.state.global_step)
        if moment == "optimizer" and saved[-1] == step:
            (Path(output_dir) / "optimizer.pt").write_bytes(b"torn")
            die()
        save_optimizer(trainer, output_dir)

    def torn_publishing(staging, target):
        if moment == "before-rename" and saved[-1] == step:
            die()
        publish(staging, target)
        if moment == "after-rename" and saved[-1] == step:
            die()

    def torn_rotation(folder, *args, **kwargs):
        if moment == "rotation" and saved[-1] == step:
            oldest = min(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            (oldest / "model.safetensors").unlink()
            die()
        rotate(folder, *args, **kwargs)

    def torn_replacing(source, target):
        if moment == "final" and saved and Path(source).parent.name.startswith(f"{files.STAGING_PREFIX}save-"):
            die()
        replace(source, target)

    trainer_class._save_optimizer_and_scheduler = torn_optimizer
    resumable_trainer.publish_folder, resumable_trainer.rotate_checkpoints = torn_publishing, torn_rotation
    os.replace = torn_replacing


def model_of(kind):
    if kind == "stock":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        # Stock has no drop path: dropout draws from the generator in its place.
        config = ViTConfig(
            image_size=SIZE, patch_size=8, hidden_dropout_prob=0.1, id2label=dict(enumerate(NAMES)), **shape
        )
        return StockViT(config)
    scale = {"layer_scale_init_value": 0.1} if kind == "layer-scale" else {}
    return student(kind != "one-head", drop_path_rate=0.1, **scale)


def distillation_trainer(run):
    changes = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "distillation_type": "soft",
        "dataloader_num_workers": run.get("workers", 0),
        **run.get("changes", {}),
    }
    # 43 images: 5 steps of 8 an epoch and a tail; checkpoints in the middle of epochs and, at step 10, at the end of one.
    args = arguments(Path(run["folder"]), **changes)
    return DistillationTrainer(
        model_of(run.get("model")), conv_teacher(), args, train_dataset=training_data(43, **run.get("augmentation", {}))
    )


def plain_trainer(run):
    """The Trainer of transformers itself, with this package's model and its own loss."""
    pixels = pixels_of(43)[:, :SIZE, :SIZE].transpose(0, 3, 1, 2).astype("float32") / 128 - 1
    rows = [{"pixel_values": image, "labels": index % len(NAMES)} for index, image in enumerate(pixels)]
    args = TrainingArguments(
        run["folder"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_steps=2,
        save_total_limit=2,
        learning_rate=2e-3,
        logging_steps=1,
    )
    return Trainer(model_of(run.get("model")), args, train_dataset=rows)


def train(run):
    """Does one run of the plan.

    Args:
        run: `folder` (the output_dir); optional `trainer` ("plain" for transformers' own), `model`, `workers`, `changes` (of
            the arguments), `augmentation` (its fields), `resume`, `without_hook` (take the renaming of weights away), `save_first` (the untrained model),
            `copy` (a folder to start from) and `kill`: a pair of step and "middle", "end" or a moment of its save.
    """
    if run.get("without_hook"):
        modeling_deit.rename_hub_keys = lambda *args: None
    trainer = plain_trainer(run) if run.get("trainer") == "plain" else distillation_trainer(run)
    if run.get("save_first"):
        trainer.save_model()
    if "kill" in run:
        step, moment = run["kill"]
        if moment in ("middle", "end"):
            trainer.add_callback(Kill(step, moment))
        else:
            kill_in_save(step, moment)
    trainer.train(resume_from_checkpoint=run.get("resume", False))
    trainer.save_model()
    return {"losses": {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}}


def child(run, report):
    os.setsid()
    with open(f"{run['folder']}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        result = train(run)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    report.write_text(json.dumps(result))
    os._exit(0)


def sha_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def main(plan_file, results_file):
    results = {}
    report = Path(results_file).with_suffix(".one")
    for run in json.loads(Path(plan_file).read_text()):
        report.unlink(missing_ok=True)
        if "copy" in run:
            shutil.copytree(run["copy"], run["folder"])
        pid = os.fork()
        if pid == 0:
            child(run, report)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # data workers of a killed run
        folder = Path(run["folder"])
        results[run["name"]] = {
            "status": os.waitstatus_to_exitcode(status),
            "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
            "leftovers": sorted(path.name for path in folder.glob(f"{files.STAGING_PREFIX}*")),
            "sha": sha_of(folder / "model.safetensors"),
            "averaged": sha_of(folder / f"checkpoint-{STEPS}" / "ema" / "model.safetensors"),
            **(json.loads(report.read_text()) if report.exists() else {}),
        }
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
