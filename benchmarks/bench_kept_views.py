"""Time saved by keeping views in memory that are shown again: seconds per epoch with rendered and with kept views.

One training run without a teacher has half as many epochs of views as epochs. In the first half of the run all views
are rendered; in the second half all come from memory. The first epoch of each half is left out of the results.

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
    """Callback that records the time of each epoch."""

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
                f"The views of --epochs {epochs} need more memory than is allowed (half of the free memory, at most "
                "4 GB), so none were kept: use fewer --epochs."
            )
    made, kept = clock.seconds[1:epochs], clock.seconds[epochs + 1 :]
    ratio = statistics.median(kept) / statistics.median(made)
    return {"made": made, "kept": kept, "kept / made": ratio, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="clothing10_64")
    parser.add_argument("--epochs", type=int, default=8, help="epochs in each half of the run (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    arguments, changes = parser.parse_known_args()
    torch.set_num_threads(1)
    result = measure(arguments.data, arguments.recipe, arguments.epochs, changes)
    for name in ("made", "kept"):
        print(
            f"{name}: {statistics.median(result[name]):.2f} s per epoch "
            f"({min(result[name]):.2f}-{max(result[name]):.2f})"
        )
    print(f"kept / made: {result['kept / made']:.2f}")
    if arguments.json is not None:
        write_json(arguments.json, {"fields": changes, **result})


if __name__ == "__main__":
    main()
