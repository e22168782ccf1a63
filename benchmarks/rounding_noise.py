"""Differences between pairs of runs that differ only in rounding.

They are the noise that a difference between two single runs must exceed to be meaningful. The arguments are two folders
of results of `hf-deit ablation`. Files with the same name are compared; they are runs with the same fields, seed, data
and teacher.

python benchmarks/rounding_noise.py training/ablations/results_sdpa training/ablations/results
"""

import argparse
import json
import statistics
from pathlib import Path


def accuracy(file: Path) -> float | None:
    """Return the accuracy of a run in percent, or None if the run diverged."""
    metrics = json.loads(file.read_text())["metrics"]
    return None if metrics is None else 100 * metrics["eval_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2)
    one, other = parser.parse_args().folders
    names = sorted({file.name for file in one.glob("*.json")} & {file.name for file in other.glob("*.json")})
    pairs = [(accuracy(one / name), accuracy(other / name)) for name in names]
    differences = [second - first for first, second in pairs if first is not None and second is not None]
    if len(differences) < 2:
        raise SystemExit(
            f"{one} and {other} have {len(differences)} pair(s) of results with the same name of which neither run "
            "diverged: at least 2 pairs are needed."
        )
    spread = statistics.stdev(differences)
    print(
        f"{len(differences)} pairs of runs: differences of {min(differences):+.1f} to {max(differences):+.1f} points, "
        f"mean {statistics.mean(differences):+.2f}"
    )
    print(f"standard deviation of the differences: {spread:.2f}, so that of a single run is {spread / 2**0.5:.2f}")


if __name__ == "__main__":
    main()
