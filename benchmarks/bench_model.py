"""Time of a forward pass and of a training step, against stock transformers and, where it is installed, timm.

All models of a row have the same shape, batch and number of threads, and take turns. The result is the median over the rounds of
the ratio of their times, rival / ours: above 1, this package is faster. A training step is forward, cross-entropy, backward and
AdamW. The stock student with two heads cannot be trained, so its row has the forward pass only. Attention is that of each library's
default; a recipe of this package changes ours for bf16 on a CPU (`choose_attention`), and so does this benchmark.

python benchmarks/bench_model.py [--rounds 15] [--threads 1] [--json benchmarks/results/bench_model.json]
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch.nn.functional import cross_entropy

from hf_deit import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DistillationTrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from hf_deit.files import write_json
from hf_deit.recipes.build import choose_attention

SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
# Name: (shape, batch of the forward pass, batch of the training step)
SHAPES = {
    "4 × 128, 64 px / 8": ({**SMALL, "image_size": 64, "patch_size": 8}, 64, 64),
    "DeiT-Ti, 96 px / 16": ({**TINY, "image_size": 96, "patch_size": 16}, 32, 32),
    "DeiT-Ti, 224 px / 16": ({**TINY, "image_size": 224, "patch_size": 16}, 16, 8),
}
NUM_LABELS = 10


def rivals(
    shape: dict, distilled: bool, bf16: bool, training: bool
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return functions from pixels to logits, by library. They hold the model in the attribute `model`."""
    fields = {**shape, "num_labels": NUM_LABELS}
    if distilled:
        ours = DeiTForImageClassificationWithTeacher(DeiTConfig(**fields))
        stock = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**fields))
    else:
        ours, stock = (
            ViTForImageClassification(ViTConfig(**fields)),
            transformers.ViTForImageClassification(transformers.ViTConfig(**fields)),
        )
    if training:
        choose_attention(ours, DistillationTrainingArguments("unused", bf16=bf16, use_cpu=True, report_to="none"))
    found = {"ours": ours, "transformers": stock}
    if importlib.util.find_spec("timm") is not None:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        kind = VisionTransformerDistilled if distilled else VisionTransformer
        found["timm"] = kind(
            img_size=shape["image_size"],
            patch_size=shape["patch_size"],
            embed_dim=shape["hidden_size"],
            depth=shape["num_hidden_layers"],
            num_heads=shape["num_attention_heads"],
            mlp_ratio=shape["intermediate_size"] / shape["hidden_size"],
            num_classes=NUM_LABELS,
        )

    def logits_of(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(pixels)
            output = getattr(output, "logits", output)
            return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output

        call.model = model
        return call

    return {name: logits_of(model.train(training)) for name, model in found.items()}


def times(calls: dict[str, Callable], pixels: torch.Tensor, training: bool, rounds: int) -> dict[str, list[float]]:
    labels = torch.arange(len(pixels)) % NUM_LABELS
    optimizers = {name: torch.optim.AdamW(call.model.parameters(), lr=1e-4) for name, call in calls.items()}

    def run(name: str) -> None:
        if not training:
            with torch.inference_mode():
                calls[name](pixels)
            return
        cross_entropy(calls[name](pixels).float(), labels).backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name in calls:
            begin = time.perf_counter()
            run(name)
            if number >= 2:  # the first rounds warm up
                taken[name].append(time.perf_counter() - begin)
    return taken


def measure(case: SimpleNamespace, rounds: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    shape, forward_batch, step_batch = SHAPES[case.shape]
    calls = rivals(shape, case.distilled, case.bf16, case.training)
    if case.distilled and case.training:
        del calls["transformers"]  # its forward pass takes no labels and its heads are averaged
    batch = step_batch if case.training else forward_batch
    pixels = torch.randn(batch, 3, shape["image_size"], shape["image_size"])
    taken = times(calls, pixels, case.training, rounds)
    ours = taken.pop("ours")
    result = {"ours": {"images per second": batch / statistics.median(ours)}}
    for name, seconds in taken.items():
        ratios = [rival / own for rival, own in zip(seconds, ours, strict=True)]
        result[name] = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    print("| model | pass | dtype | ours, images/s | transformers / ours | timm / ours |\n|---|---|---|---:|---:|---:|")
    for shape in SHAPES:
        for distilled in (False, True):
            for training in (False, True):
                for bf16 in (False, True):
                    case = SimpleNamespace(shape=shape, distilled=distilled, training=training, bf16=bf16)
                    found = measure(case, arguments.rounds)
                    results.append({**vars(case), **found})
                    cells = [
                        f"{row['ratio']:.2f} ({row['lowest']:.2f}–{row['highest']:.2f})"
                        if (row := found.get(name))
                        else "–"
                        for name in ("transformers", "timm")
                    ]
                    print(
                        f"| {shape}, {'two heads' if distilled else 'one head'} | {'training step' if training else 'forward'} | "
                        f"{'bf16' if bf16 else 'float32'} | {found['ours']['images per second']:.0f} | {' | '.join(cells)} |",
                        flush=True,
                    )
    if arguments.json is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(arguments.json, {**versions, "threads": arguments.threads, "rows": results})


if __name__ == "__main__":
    main()
