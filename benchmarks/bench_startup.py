"""Time of short commands and imports, compared with plain transformers for the same work.

Each command or import is a separate process, and its total time is measured. The processes take turns, each once per
round, so that the load of the machine slows all of them equally. The figures are medians of the wall-clock seconds, and
medians of the ratio of each pair in a round. The ratio of the processor times depends less on what else is running. The
first round fills the file cache and is not counted.

python benchmarks/bench_startup.py IMAGE MODEL_FOLDER [MODEL_FOLDER …] [--rounds 9] [--json benchmarks/results/bench_startup.json]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_deit.cli.common import print_table
from hf_deit.files import write_json

PIPELINE = "from transformers import pipeline; print(pipeline('image-classification', model={model!r})({image!r}))"
COMMAND = ("-m", "hf_deit.cli")


def processes(image: str, models: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the arguments of `python` for each process.

    The process "NAME (transformers)" is the one with which NAME is compared.
    """
    found: dict[str, tuple[str, ...]] = {
        "python": ("-c", ""),
        "hf-deit --help": (*COMMAND, "--help"),
        "import": ("-c", "import hf_deit"),
        "import (transformers)": ("-c", "import transformers"),
        "import of a model class": ("-c", "from hf_deit import ViTForImageClassification"),
        "import of a model class (transformers)": ("-c", "from transformers import ViTForImageClassification"),
    }
    for model in models:
        name = f"predict, {Path(model).name}"
        found[name] = (*COMMAND, "predict", model, image)
        found[f"{name} (transformers)"] = ("-c", PIPELINE.format(model=model, image=image))
    return found


def seconds_of(arguments: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Run `python` with the arguments, and return its wall-clock seconds and processor seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    elapsed, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compared(own: list[float], other: list[float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"median": statistics.median(own), "rounds": own}
    if other is not None:
        row |= {"transformers_median": statistics.median(other), "transformers_rounds": other}
        row["ratio"] = statistics.median(one / two for one, two in zip(own, other, strict=True))
    return row


def measure(image: str, models: list[str], rounds: int) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    runs = processes(image, models)
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, arguments in runs.items():
            elapsed, used = seconds_of(arguments, environment)
            if number > 0:
                clock[name].append(elapsed)
                processor[name].append(used)
    rows = {
        name: {
            "clock": compared(clock[name], clock.get(f"{name} (transformers)")),
            "processor": compared(processor[name], processor.get(f"{name} (transformers)")),
        }
        for name in runs
        if not name.endswith(" (transformers)")
    }
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    return {"rounds": rounds, "rows": rows, "versions": versions, "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="image file")
    parser.add_argument("models", nargs="+", help="folders of image classifiers with their image processors")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to which the figures are also written")
    options = parser.parse_args()
    result = measure(options.image, options.models, options.rounds)
    table = [["process", "hf_deit, s", "transformers, s", "ratio", "ratio of processor time"]]
    for name, row in result["rows"].items():
        clock, processor = row["clock"], row["processor"]
        pair = [f"{clock['transformers_median']:.2f}" if "ratio" in clock else ""]
        pair += [f"{figures['ratio']:.2f}" if "ratio" in figures else "" for figures in (clock, processor)]
        table.append([name, f"{clock['median']:.2f}", *pair])
    print_table(table)
    if options.json is not None:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
