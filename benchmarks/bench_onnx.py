"""A trained model in torch and in onnxruntime, with and without 8-bit quantisation: predictions, file size and speed.

All validation images are run through each of the four models, and the correct predictions are counted. Then the models
take turns on batches of one image and of 32 images, with one thread each. Times are given as ratios of medians to
torch, because the load of the machine changes the times of all models.

python benchmarks/bench_onnx.py MODEL_FOLDER DATA [--rounds 15] [--json benchmarks/results/bench_onnx.json]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from hf_deit.data.loading import load_validation
from hf_deit.files import write_json
from hf_deit.models.export import export_onnx
from hf_deit.models.loading import load_model, load_processor

KINDS = {"onnxruntime float32": None, "onnxruntime int8": "int8", "onnxruntime int8-dynamic": "int8-dynamic"}


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run
    return lambda pixels: run(["logits"], {"pixel_values": pixels})[0]


def logits_of(run: Callable, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([run(pixels[start : start + 32]) for start in range(0, len(pixels), 32)])


def times(runs: dict[str, Callable], pixels: np.ndarray, batch: int, rounds: int) -> dict[str, float]:
    """Return the median seconds per batch for each model.

    In every round the models take turns. The first two rounds are warm-up and are not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        images = pixels[(number * batch) % (len(pixels) - batch) :][:batch]
        for name, run in runs.items():
            begin = time.perf_counter()
            run(images)
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[2:]) for name, values in taken.items()}


def measure(model_folder: str, data: str, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model, processor, source = load_model(model_folder).eval(), load_processor(model_folder), load_validation(data)
    pixels = np.concatenate(
        [processor(source.image(row), return_tensors="np")["pixel_values"] for row in range(len(source))]
    )
    labels = np.array(source.labels)

    @torch.inference_mode()
    def in_torch(batch: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(batch)).logits.numpy()

    with tempfile.TemporaryDirectory() as folder:
        sizes = {"torch float32": (Path(model_folder) / "model.safetensors").stat().st_size}
        runs: dict[str, Callable] = {"torch float32": in_torch}
        for name, quantize in KINDS.items():
            path = Path(folder) / f"{quantize}.onnx"
            export_onnx(model_folder, path, quantize)
            sizes[name], runs[name] = path.stat().st_size, session(path)
        logits = {name: logits_of(run, pixels) for name, run in runs.items()}
        ones, many = times(runs, pixels, 1, 8 * rounds), times(runs, pixels, 32, rounds)
    expected = logits["torch float32"]
    rows = {
        name: {
            "correct": int((found.argmax(1) == labels).sum()),
            "same_top1": int((found.argmax(1) == expected.argmax(1)).sum()),
            "largest_difference": float(abs(found - expected).max()),
            "bytes": sizes[name],
            "time_batch_1": ones[name] / ones["torch float32"],
            "time_batch_32": many[name] / many["torch float32"],
        }
        for name, found in logits.items()
    }
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    return {"images": len(labels), "largest_logit": float(abs(expected).max()), "rows": rows, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an image classifier")
    parser.add_argument("data", help="as for hf-deit train; its validation images are used")
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="rounds with 32 images; there are eight times as many with one image (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file to which the figures are also written")
    options = parser.parse_args()
    result = measure(options.model, options.data, options.rounds)
    print("| | top-1 | same class as torch | largest difference of a logit | MB | time, 1 image | time, 32 images |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    count = result["images"]
    for name, row in result["rows"].items():
        print(
            f"| {name} | {100 * row['correct'] / count:.1f} % ({row['correct']}) | {row['same_top1']} of {count} | "
            f"{row['largest_difference']:.2g} | {row['bytes'] / 1e6:.1f} | {row['time_batch_1']:.2f} | "
            f"{row['time_batch_32']:.2f} |"
        )
    if options.json is not None:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
