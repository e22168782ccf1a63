"""Script that runs a plan of trainings, each in its own child process, which may be killed.

The child processes are forked, so that transformers is imported only once.

Usage: `python resume_runs.py PLAN.json RESULTS.json`. The plan is a list of runs (see `train`), which are done in
order. For each run, under its name, the results contain its exit status (-9: killed), the checkpoints and temporary
files in its folder, and the SHA-256 of the final weights and of the last averaged weights. For runs that were not
killed, they also contain the logged losses or the error.
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
    partly_labelled_data,
    pixels_of,
    student,
    training_data,
)

STEPS = 14

# A killed process, unlike a power cut, does not lose written data. So the many saves need not wait for the disk.
files._sync = lambda folder: None


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(TrainerCallback):
    """Callback that kills the process in the middle of a step (between two batches), or at its end before the save."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_substep_end(self, args, state, control, **kwargs):
        if self.moment == "middle" and state.global_step + 1 == self.step:
            die()

    def on_step_end(self, args, state, control, **kwargs):
        if self.moment == "end" and state.global_step == self.step:
            die()


def kill_in_save(step, moment):
    """Make the process kill itself at a moment of the save at a step, or ("final") in the middle of the last save."""
    trainer_class, replace = resumable_trainer.ResumableTrainer, os.replace
    save_optimizer = trainer_class._save_optimizer_and_scheduler
    publish, rotate = resumable_trainer.publish_folder, resumable_trainer.rotate_checkpoints
    saved = []

    def interrupted_optimizer(trainer, output_dir):
        saved.append(trainer.state.global_step)
        if moment == "optimizer" and saved[-1] == step:
            (Path(output_dir) / "optimizer.pt").write_bytes(b"torn")
            die()
        save_optimizer(trainer, output_dir)

    def interrupted_publishing(staging, target):
        if moment == "before-rename" and saved[-1] == step:
            die()
        publish(staging, target)
        if moment == "after-rename" and saved[-1] == step:
            die()

    def interrupted_rotation(folder, *args, **kwargs):
        if moment == "rotation" and saved[-1] == step:
            oldest = min(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            (oldest / "model.safetensors").unlink()
            die()
        rotate(folder, *args, **kwargs)

    def interrupted_replacing(source, target):
        if moment == "final" and saved and Path(source).parent.name.startswith(f"{files.STAGING_PREFIX}save-"):
            die()
        replace(source, target)

    trainer_class._save_optimizer_and_scheduler = interrupted_optimizer
    resumable_trainer.publish_folder, resumable_trainer.rotate_checkpoints = (
        interrupted_publishing,
        interrupted_rotation,
    )
    os.replace = interrupted_replacing


def model_of(kind):
    if kind == "stock":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        # The stock model has no drop path. Its dropout uses the random generator instead.
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
        "save_steps": 4,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "distillation_type": "soft",
        "dataloader_num_workers": run.get("workers", 0),
        **run.get("changes", {}),
    }
    # 43 images give 5 steps of 8 images per epoch, and 3 images are left over. Checkpoints are saved in the middle of
    # epochs and, in runs that save at every second step, at the end of an epoch.
    args = arguments(Path(run["folder"]), **changes)
    # With unlabelled images, 43 of them and half of each batch make an epoch of 10 steps.
    make = partly_labelled_data if run.get("unlabelled") else training_data
    counts = (11, 43) if run.get("unlabelled") else (43,)
    data = make(*counts, **run.get("augmentation", {}))
    return DistillationTrainer(model_of(run.get("model")), conv_teacher(), args, train_dataset=data)


def plain_trainer(run):
    """Return the Trainer of transformers, with a model of this package and the loss of the model."""
    pixels = pixels_of(43)[:, :SIZE, :SIZE].transpose(0, 3, 1, 2).astype("float32") / 128 - 1
    rows = [{"pixel_values": image, "labels": index % len(NAMES)} for index, image in enumerate(pixels)]
    args = TrainingArguments(
        run["folder"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_steps=4,
        save_total_limit=2,
        learning_rate=2e-3,
        logging_steps=1,
    )
    return Trainer(model_of(run.get("model")), args, train_dataset=rows)


def train(run):
    """Do one run of the plan, and return its losses.

    Args:
        run: Description of the run. `folder` is the output_dir. The following entries are optional: `trainer` ("plain"
            for the Trainer of transformers), `model`, `workers`, `changes` (of the training arguments), `augmentation`
            (its fields), `unlabelled` (images without labels beside the others), `resume`, `without_hook` (switches the renaming of weights off), `save_first` (saves the
            untrained model), `copy` (a folder to start from, see `main`), and `kill` (a pair of a step and "middle",
            "end" or a moment of the save).
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
