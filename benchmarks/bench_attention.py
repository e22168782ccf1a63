"""Time of a training step on the CPU with PyTorch's fused attention (sdpa) and with plain attention (eager).

`choose_attention` is based on these figures. A step is the forward and backward pass of a distilled student, without an
optimizer. The two kinds of attention take turns on one thread. The result is the ratio of the median times,
eager / sdpa, which depends less on the load of the machine than the times. A ratio below 1 means that plain attention
is faster.

python benchmarks/bench_attention.py [--rounds 9] [--json benchmarks/results/bench_attention.json]
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher
from hf_deit.files import write_json

SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
# Name: (fields, batch size)
STUDENTS = {
    "4 × 128, 64 px / 16": ({**SMALL, "image_size": 64, "patch_size": 16}, 64),
    "4 × 128, 64 px / 8": ({**SMALL, "image_size": 64, "patch_size": 8}, 64),
    "DeiT-Ti, 96 px / 16": ({"preset": "tiny", "image_size": 96}, 32),
    "DeiT-Ti, 224 px / 16": ({"preset": "tiny", "image_size": 224}, 8),
    "DeiT-Ti, 384 px / 16": ({"preset": "tiny", "image_size": 384}, 4),
}


def step(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, bf16: bool) -> float:
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = model(pixel_values=pixels)
    (cross_entropy(outputs.cls_logits.float(), labels) + outputs.distillation_logits.float().square().mean()).backward()
    model.zero_grad()
    return time.perf_counter() - begin


def measure(fields: dict, batch: int, bf16: bool, rounds: int) -> dict[str, float]:
    fields = {**fields, "num_labels": 10}
    preset = fields.pop("preset", None)
    torch.manual_seed(0)
    model = DeiTForImageClassificationWithTeacher(
        DeiTConfig.from_preset(preset, **fields) if preset else DeiTConfig(**fields)
    ).train()
    pixels = torch.randn(batch, 3, fields["image_size"], fields["image_size"])
    labels = torch.arange(batch) % 10
    taken: dict[str, list[float]] = {"sdpa": [], "eager": []}
    for _ in range(rounds + 2):
        for kind, seconds in taken.items():
            model.set_attn_implementation(kind)
            seconds.append(step(model, pixels, labels, bf16))
    medians = {kind: statistics.median(seconds[2:]) for kind, seconds in taken.items()}
    return {**medians, "eager / sdpa": medians["eager"] / medians["sdpa"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print("| student | tokens | bf16: eager / sdpa | float32: eager / sdpa |\n|---|---:|---:|---:|")
    for name, (fields, batch) in STUDENTS.items():
        found = {
            precision: measure(fields, batch, bf16, arguments.rounds)
            for precision, bf16 in (("bf16", True), ("float32", False))
        }
        tokens = (fields["image_size"] // fields.get("patch_size", 16)) ** 2 + 2
        results[name] = {"batch": batch, "tokens": tokens, **found}
        ratios = " | ".join(f"{found[precision]['eager / sdpa']:.2f}" for precision in ("bf16", "float32"))
        print(f"| {name} | {tokens} | {ratios} |", flush=True)
    if arguments.json is not None:
        write_json(arguments.json, {"torch": torch.__version__, "students": results})


if __name__ == "__main__":
    main()
