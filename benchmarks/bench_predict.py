"""Speed of `hf-deit predict` against the image-classification pipeline of transformers, with the same model and photographs.

Both run as a process of their own, in turns. The rate after the start is 1000 / (time of 1,500 images - time of 500 images), so that
imports and loading count for nothing; the whole process of 500 images is compared too. The photographs are those of DATA, enlarged to
500 × 375 or 4032 × 3024 pixels and saved as JPEG of quality 90. The pipeline has batches of 16. `same` is the share of the 500 images
with the same most probable class.

python benchmarks/bench_predict.py MODEL DATA [--size 500 375] [--rounds 3] [--threads 1] [--options --bf16] [--json FILE]
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from hf_deit.files import write_json

PIPELINE = """
import csv, sys
from pathlib import Path
import torch
from transformers import pipeline
model, folder, out = sys.argv[1:4]
files = sorted(map(str, Path(folder).rglob("*.jpg")))
classify = pipeline("image-classification", model=model, device="cpu")
with open(out, "w", newline="") as file:
    rows = csv.writer(file)
    for name, found in zip(files, classify((name for name in files), batch_size=16, top_k=1)):
        rows.writerow([name, found[0]["label"]])
"""


def write_photographs(data: Path, folder: Path, size: tuple[int, int], count: int) -> None:
    """Write enlarged copies of the photographs of a folder; if there are fewer than `count`, some of them again as links."""
    sources = sorted(data.rglob("*.jpg"))[: min(count, 200)]
    written = []
    for number, source in enumerate(sources):
        with Image.open(source) as image:
            width, height = size if image.width >= image.height else size[::-1]
            copy = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        written.append(folder / f"{number:05d}.jpg")
        copy.save(written[-1], quality=90)
    for number, source in zip(range(len(written), count), itertools.cycle(written)):
        os.link(source, folder / f"{number:05d}.jpg")


def seconds(command: list[str], threads: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def classes(file: Path) -> dict[str, str]:
    with open(file, newline="") as content:
        rows = list(csv.reader(content))
    if rows[0][0] == "file":
        column = rows[0].index("prediction")
        return {Path(row[0]).name: row[column] for row in rows[1:]}
    return {Path(name).name: label for name, label in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375))
    parser.add_argument("--counts", type=int, nargs=2, default=(500, 1500))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of hf-deit predict")
    arguments = parser.parse_args()
    few, many = arguments.counts
    with tempfile.TemporaryDirectory() as place:
        folders = {count: Path(place) / str(count) for count in (few, many)}
        for count, folder in folders.items():
            folder.mkdir()
            write_photographs(arguments.data, folder, tuple(arguments.size), count)
        out = {name: Path(place) / f"{name}.csv" for name in ("ours", "pipeline")}

        def command(name: str, count: int) -> list[str]:
            if name == "pipeline":
                return [sys.executable, "-c", PIPELINE, arguments.model, str(folders[count]), str(out[name])]
            words = ["predict", arguments.model, str(folders[count]), "--csv", str(out[name]), *arguments.options]
            return [sys.executable, "-m", "hf_deit.cli", *words]

        taken: dict[str, dict[int, list[float]]] = {name: {few: [], many: []} for name in out}
        for _ in range(arguments.rounds):
            for count, name in itertools.product((many, few), out):
                taken[name][count].append(seconds(command(name, count), arguments.threads))
        found = {name: classes(file) for name, file in out.items()}
    same = sum(found["ours"][name] == label for name, label in found["pipeline"].items()) / len(found["pipeline"])
    rates = {
        name: [(many - few) / (long - short) for long, short in zip(times[many], times[few], strict=True)]
        for name, times in taken.items()
    }
    ratios = [ours / other for ours, other in zip(rates["ours"], rates["pipeline"], strict=True)]
    whole = [other / ours for ours, other in zip(taken["ours"][few], taken["pipeline"][few], strict=True)]
    for name, values in rates.items():
        print(
            f"{name}: {statistics.median(values):.1f} images/s after the start, {statistics.median(taken[name][few]):.1f} s for {few}"
        )
    for title, values in (("rate, ours / pipeline", ratios), (f"process of {few} images, pipeline / ours", whole)):
        print(f"{title}: {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})")
    print(f"same class: {100 * same:.1f} %")
    if arguments.json is not None:
        result = {
            "size": list(arguments.size),
            "threads": arguments.threads,
            "options": arguments.options,
            "counts": [few, many],
        }
        write_json(
            arguments.json, {**result, "seconds": taken, "rates": rates, "ratios": ratios, "whole": whole, "same": same}
        )


if __name__ == "__main__":
    main()
