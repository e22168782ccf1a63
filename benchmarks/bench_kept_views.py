"""What it saves to keep views that come again in memory: seconds an epoch of making them, and of having them.

One training without a teacher with as many views as half its epochs: in the first half each is made, in the second all come
from memory. The first epoch, which warms up, and the first from memory are left out.

python benchmarks/bench_kept_views.py --data ../shared/data/clothing10 [--epochs 8] [--json benchmarks/results/bench_kept_views.json] [--patch_size 16 …]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_deit.files import write_json
from hf_deit.recipes.reading import load_recipe, read_fields, recipe_path
from hf_deit.recipes.train import build_trainer


class Clock(TrainerCallback):
    """Notes how long each epoch took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *unused: Any, **also_unused: Any) -> None:
        self.begin = time.perf_counter()

    def on_epoch_end(self, *unused: Any, **also_unused: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begin)


def measure(data: str, recipe: str, epochs: int, changes: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        fields = {**read_fields(recipe_path(recipe)), "data": data, "output_dir": folder, "report_to": "none"}
        fields |= {"student": "plain", "distillation_type": "none", "eval_strategy": "no", "save_strategy": "no"}
        fields |= {"num_train_epochs": 2 * epochs, "num_views": epochs, "disable_tqdm": True}
        trainer, clock = build_trainer(load_recipe(fields, changes)), Clock()
        trainer.add_callback(clock)
        trainer.train()
        if trainer.train_dataset._kept is None:
            raise SystemExit(
                "The views do not fit into half of the free memory or into 4 GB, so there is nothing to compare: use fewer --epochs."
            )
    made, kept = clock.seconds[1:epochs], clock.seconds[epochs + 1 :]
    ratio = statistics.median(kept) / statistics.median(made)
    return {"made": made, "kept": kept, "kept / made": ratio, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="clothing10_64")
    parser.add_argument("--epochs", type=int, default=8, help="of each half")
    parser.add_argument("--json", type=Path)
    arguments, changes = parser.parse_known_args()
    torch.set_num_threads(1)
    result = measure(arguments.data, arguments.recipe, arguments.epochs, changes)
    for name in ("made", "kept"):
        print(
            f"{name}: {statistics.median(result[name]):.2f} s an epoch ({min(result[name]):.2f}-{max(result[name]):.2f})"
        )
    print(f"kept / made: {result['kept / made']:.2f}")
    if arguments.json is not None:
        write_json(arguments.json, {"fields": changes, **result})


if __name__ == "__main__":
    main()
