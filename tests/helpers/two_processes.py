"""Script that trains in every process of a distributed launch and saves the results.

`run_distributed` of `tests/helpers/processes.py` starts it with the path of a folder. For comparison,
`tests/trainer/test_distributed.py` also calls `measure` in a single process.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_deit.errors import NonFiniteLossError, ResumeError
from hf_deit.inspection import report as report_module
from hf_deit.inspection.after_training import report_after_training
from hf_deit.recipes.arguments import Recipe
from hf_deit.recipes.train import train
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.runs import write_splits
from tests.helpers.tiny import (
    FirstGradients,
    arguments,
    conv_teacher,
    evaluation_data,
    logged,
    partly_labelled_data,
    student,
    training_data,
)

GLOBAL_BATCH = 8
STEPS = 10  # 8 steps are an epoch
RUNS = {
    "hard": ({"distillation_type": "hard"}, True),
    "soft": ({"distillation_type": "soft"}, True),
    "one-head": ({"distillation_type": "soft", "distillation_target": "class"}, False),
    "none": ({"distillation_type": "none"}, True),
    "mixed": ({"distillation_type": "soft", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeated_augmentation": 3}, True),
    "accumulated": ({"distillation_type": "soft", "gradient_accumulation_steps": 2}, True),
    # The projection is not part of the model, so it is averaged by another way than the gradients of the model.
    "guided": (
        {
            "distillation_type": "none",
            "guidance": "features",
            "guidance_weight": 1.0,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 1.0,
        },
        False,
    ),
    "unlabelled": ({"distillation_type": "soft", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "unlabelled": True}, True),
}
# None of these numbers is a multiple of the 8 images that two processes with batches of 4 evaluate at once.
EVALUATION_SIZES = (11, 9, 3, 1)


class Counted(torch.nn.Module):
    """Teacher that counts the images that it sees in this process."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.images = 0

    def forward(self, pixels):
        self.images += len(pixels)
        return self.network(pixels)


def trainer_of(folder, changes, two_heads=True, model=None, callbacks=()):
    world = int(os.environ.get("WORLD_SIZE", 1))
    batch = GLOBAL_BATCH // world // changes.get("gradient_accumulation_steps", 1)
    changes = dict(changes)
    data = partly_labelled_data(18, 46) if changes.pop("unlabelled", False) else training_data(64)
    fields = {"max_steps": STEPS, "per_device_train_batch_size": batch, "per_device_eval_batch_size": 4, **changes}
    return DistillationTrainer(
        model or student(two_heads, initializer_range=0.2),
        Counted(conv_teacher()),
        arguments(folder, **fields),
        train_dataset=data,
        callbacks=list(callbacks),
    )


def measure(folder, name):
    """Train and evaluate. Return losses, metrics, predictions and the gradients of the first update."""
    changes, two_heads = RUNS[name]
    callback = FirstGradients()
    trainer = trainer_of(folder / name, changes, two_heads, callbacks=[callback])
    counted = trainer.teacher.model
    counted.images = 0
    trainer.train()
    teacher = {"images": counted.images, "pid": os.getpid(), "fingerprint": trainer.teacher.fingerprint()}
    evaluations = {count: trainer.evaluate(evaluation_data(count)) for count in EVALUATION_SIZES}
    names = ("loss", "cls_loss", "distillation_loss", "teacher_agreement", "guidance_loss", "grad_norm")
    terms = {term: values for term in names[: 6 if name == "guided" else 4] if (values := logged(trainer, term))}
    predictions = trainer.predict(evaluation_data(11)).predictions
    return {
        "terms": terms,
        "evaluations": evaluations,
        "teacher": teacher,
        "predictions": torch.from_numpy(predictions),
        "gradients": callback.gradients,
        "projection": {} if trainer.auxiliary is None else trainer.auxiliary.state_dict(),
    }


class Stop(TrainerCallback):
    """Callback that ends a run early, as a kill between two steps would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def sha_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resume(folder):
    """Return the SHA-256 of the weights of an uninterrupted and of a resumed run, and the message of a refused resume.

    The result is None if transformers cannot load the optimizer in several processes on the CPU. This is the case in
    version 5.17, which maps the optimizer to "cpu:0".
    """
    changes = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    shas = []
    for name, interrupted in (("whole", False), ("resumed", True)):

        def build(callbacks=(), name=name):
            model = student(drop_path_rate=0.3, seed=1)
            return trainer_of(folder / name, changes, model=model, callbacks=callbacks)

        if interrupted:
            with contextlib.suppress(KeyboardInterrupt):
                build([Stop()]).train()
        trainer = build()
        try:
            trainer.train(resume_from_checkpoint=interrupted)
        except RuntimeError as error:
            if "tagged with cpu:0" not in str(error):
                raise
            return None
        trainer.save_model()
        torch.distributed.barrier()
        shas.append(sha_of(folder / name / "model.safetensors"))
    try:
        trainer_of(folder / "resumed", {**changes, "learning_rate": 1e-3}).train(resume_from_checkpoint=True)
    except ResumeError as error:
        return shas, str(error)
    return shas, None


def diverge(folder, rank):
    """Make the loss of only one process not finite, and return the error message of this process, or None."""
    trainer = trainer_of(folder, {"max_steps": 6, "save_strategy": "steps", "save_steps": 2})
    calls = []

    def spoil(module, inputs, output):
        calls.append(None)
        if rank == 1 and len(calls) == 3:
            output["cls_logits"] = output["cls_logits"] * math.nan
        return output

    trainer.model.register_forward_hook(spoil)
    try:
        trainer.train()
    except NonFiniteLossError as error:
        return str(error)
    return None


def report(folder, rank):
    """Train a recipe whose report fails. Return what this process did for the report, and whether it has metrics."""
    made = []

    def fail(arguments):
        made.append((Path(arguments.model) / "model.safetensors").is_file())
        time.sleep(0.5)
        raise RuntimeError("no luck")

    report_module.make_report = fail
    if rank == 0:
        write_splits(folder / "data")
    torch.distributed.barrier()
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 16}
    fields |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no"}
    fields |= {"data": folder / "data", "output_dir": folder / "out", "per_device_train_batch_size": 4}
    recipe = Recipe.from_fields(
        {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    )
    metrics = train(recipe, finish=report_after_training)
    return {"made": made, "has_metrics": metrics is not None}


def main(folder):
    rank = int(os.environ["RANK"])
    results = {name: measure(folder, name) for name in RUNS}
    results["resume"] = resume(folder)
    results["diverge"] = diverge(folder / "diverge", rank)
    results["report"] = report(folder / "report", rank)
    torch.save(results, folder / f"rank{rank}.pt")
    if rank == 0:
        (folder / "summary.json").write_text(json.dumps({"world_size": torch.distributed.get_world_size()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
