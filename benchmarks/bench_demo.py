"""Gain of the demo's students from a teacher, with paired seeds.

For each kind of student (no teacher; teacher on the labelled digits; teacher on all digits), the peak learning rate is
chosen from one grid, with the split of a seed that is not reported. Then, for each reported seed, a CNN teacher and
three students are trained. The students have the same size, initialisation seed and number of steps, and are evaluated
on the test digits. The results are written to benchmarks/results/bench_demo.json and quoted in docs/results.md.

python benchmarks/bench_demo.py --seeds 5
"""

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import transformers

from hf_deit.cli.common import print_table
from hf_deit.experiments.demo import (
    KINDS,
    DemoArguments,
    load_digits,
    single_threaded,
    train_digit_student,
    train_digit_teacher,
)

GRID = (2e-3, 4e-3)
TUNING_SEED = 1000


def choose_learning_rates(arguments: DemoArguments) -> dict[str, dict[float, float]]:
    """Return the accuracy on the tuning seed for each kind of student and each learning rate."""
    arguments = replace(arguments, seed=TUNING_SEED)
    data = load_digits(arguments)
    teacher = train_digit_teacher(arguments, data)
    grid: dict[str, dict[float, float]] = {}
    for kind in KINDS:
        grid[kind] = {}
        for rate in GRID:
            metrics, _ = train_digit_student(kind, arguments, data, teacher, rate, data.test)
            grid[kind][rate] = metrics["eval_accuracy"]
            print(f"tuning, {kind}, learning rate {rate:g}: {100 * metrics['eval_accuracy']:.2f} %", flush=True)
    return grid


@single_threaded()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "bench_demo.json"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    base = DemoArguments(output_dir="/tmp/bench_demo")
    grid = choose_learning_rates(base)
    rates = {kind: max(accuracies, key=accuracies.get) for kind, accuracies in grid.items()}
    runs = []
    for seed in range(options.seeds):
        arguments = replace(base, seed=seed)
        data = load_digits(arguments)
        teacher = train_digit_teacher(arguments, data)
        for kind in KINDS:
            metrics, _ = train_digit_student(kind, arguments, data, teacher, rates[kind], data.test)
            row = {
                name.removeprefix("eval_"): value
                for name, value in metrics.items()
                if "accuracy" in name or "agree" in name
            }
            runs.append({"seed": seed, "kind": kind, "learning_rate": rates[kind], **row})
            print(f"test, seed {seed}, {kind}: {100 * row['accuracy']:.2f} %", flush=True)
    result = {"grid": grid, "learning_rates": rates, "runs": runs, "arguments": base.__dict__}
    Path(options.output).parent.mkdir(exist_ok=True)
    Path(options.output).write_text(json.dumps(result, indent=1) + "\n")
    report(runs)


def report(runs: list[dict]) -> None:
    """Print the mean and the standard deviation for each kind of student, and the paired gain over no teacher."""
    by_kind = {kind: [run["accuracy"] for run in runs if run["kind"] == kind] for kind in KINDS}
    rows = [["student", "top-1, mean ± sd", "lowest", "gain, mean ± standard error"]]
    for kind, values in by_kind.items():
        gains = [100 * (value - plain) for value, plain in zip(values, by_kind["none"], strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else float("nan")
        gain = "–" if kind == "none" else f"{statistics.mean(gains):+.2f} ± {error:.2f}"
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        rows.append(
            [kind, f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}", f"{100 * min(values):.2f}", gain]
        )
    teacher = [run["teacher_accuracy"] for run in runs if run["kind"] == "none"]
    rows.append(["(CNN teacher)", f"{100 * statistics.mean(teacher):.2f}", f"{100 * min(teacher):.2f}", ""])
    print_table(rows)


if __name__ == "__main__":
    main()
