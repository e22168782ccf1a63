"""Time of an epoch with cached guidance, compared with an epoch without a teacher.

A plain student of 4 layers × 128 at 64 px (patch 8, 64 patches) trains on random images whose views are kept in memory,
in batches of 64, in bf16. The teacher is a ViT of 2 layers × 192 with random weights and the same patches: a view has 64
× 192 float16 features (24.6 KB) in the cache. The arms take turns after each epoch: without a teacher, with cached
logits, with cached features, with both, and with cached similarities. The result of an arm is the median over the
rounds of its time divided by the time without a teacher in the same round. The same ratio of the processor times depends
less on the load of the machine than that of the elapsed times.

python benchmarks/bench_guidance.py [--images 1024] [--rounds 7] [--json benchmarks/results/bench_guidance.json]
"""

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.sources import Source
from hf_deit.data.views import ViewDataset
from hf_deit.distillation.cache import RecordFormat
from hf_deit.distillation.cache_builder import build_teacher_cache
from hf_deit.distillation.teacher import Teacher
from hf_deit.files import write_json
from hf_deit.models.configuration_deit import ViTConfig
from hf_deit.models.modeling_deit import ViTForImageClassification
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments

NAMES = tuple(f"class {index}" for index in range(10))
BATCH, SIZE = 64, 64
ARMS = {
    "no teacher": {"distillation_type": "none"},
    "logits": {"distillation_type": "soft"},
    "features": {"distillation_type": "none", "guidance": "features"},
    "logits and features": {"distillation_type": "soft", "guidance": "features"},
    "similarity": {"distillation_type": "none", "guidance": "similarity"},
}


def vit(width: int, layers: int) -> ViTForImageClassification:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    config = ViTConfig(
        **shape, intermediate_size=4 * width, image_size=SIZE, patch_size=8, id2label=dict(enumerate(NAMES))
    )
    model = ViTForImageClassification(config)
    model.set_attn_implementation("eager")  # as the recipes do for bf16 on a CPU
    return model


def views_of(images: int) -> ViewDataset:
    generator, items = np.random.default_rng(0), []
    for pixels in generator.integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        items.append({"bytes": file.getvalue(), "path": None})
    labels = [index % len(NAMES) for index in range(images)]
    return ViewDataset(Source(items, labels, NAMES, f"random {images}", "random images"), Augmentation((SIZE, SIZE)), 0)


def trainer_of(folder: Path, data: ViewDataset, fields: dict[str, Any], **teacher: Any) -> DistillationTrainer:
    torch.manual_seed(0)
    args = DistillationTrainingArguments(
        str(folder / "unused"),
        **fields,
        num_views=1,
        max_steps=10**6,
        warmup_steps=0,
        max_grad_norm=1.0,
        per_device_train_batch_size=BATCH,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
    )
    trainer = DistillationTrainer(vit(128, 4), args=args, train_dataset=data, **teacher)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def epoch_seconds(trainer: DistillationTrainer) -> tuple[float, float]:
    """Run one epoch of training steps as the Trainer does, without logging and saving.

    Returns:
        Its elapsed time and its processor time, in seconds.
    """
    model = trainer.model.to(trainer.args.device).train()
    start, processor = time.perf_counter(), time.process_time()
    for inputs in trainer.get_train_dataloader():
        trainer.training_step(model, inputs)
        trainer._clip_grad_norm(model)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


def build(folder: Path, data: ViewDataset, fields: dict[str, Any]) -> tuple[Path | None, int]:
    """Build the cache of an arm, and return its folder and its bytes per view; None and 0 without a teacher."""
    if fields == ARMS["no teacher"]:
        return None, 0
    teacher = Teacher(vit(192, 2), image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    live = trainer_of(folder, data, fields, teacher=teacher)
    arrays = () if live.guidance is None else live.guidance.arrays
    record_format = RecordFormat("dense", len(NAMES), extra_arrays=arrays)
    cache, schedule = folder / "-".join(map(str, fields.values())), live.args.view_schedule(data)
    build_teacher_cache(cache, teacher, schedule, record_format, range(1), guidance=live.guidance, disable_tqdm=True)
    return cache, record_format.bytes_per_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images per epoch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="measured epochs of each arm (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, trainers, sizes = views_of(options.images), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fields in ARMS.items():
            cache, sizes[name] = build(Path(folder), data, fields)
            trainers[name] = trainer_of(Path(folder), data, fields, teacher_cache=cache)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
        for _ in range(options.rounds + 1):  # the views are rendered in the first round, which is left out
            for name, trainer in trainers.items():
                taken[name].append(epoch_seconds(trainer))
    rows = {}
    print("| arm | bytes per view | seconds per epoch | / no teacher, elapsed | / no teacher, processor |")
    print("|---|---:|---:|---:|---:|")
    for name, found in taken.items():
        seconds, plain = np.array(found[1:]), np.array(taken["no teacher"][1:])
        elapsed, processor = np.median(seconds / plain, axis=0).tolist()
        rows[name] = {"bytes_per_view": sizes[name], "elapsed": elapsed, "processor": processor}
        rows[name] |= {"seconds": seconds[:, 0].tolist(), "processor_seconds": seconds[:, 1].tolist()}
        median = np.median(seconds[:, 0])
        print(f"| {name} | {sizes[name]:,} | {median:.2f} | {elapsed:.3f} | {processor:.3f} |")
    if options.json is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu, 1 thread"
        write_json(options.json, {"torch": torch.__version__, "device": device, "images": options.images, "arms": rows})


if __name__ == "__main__":
    main()
