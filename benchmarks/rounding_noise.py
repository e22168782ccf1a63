"""How far two runs are apart that differ in rounding alone: the noise that a comparison of single runs has to beat.

Two folders of results of `hf-deit ablation` with files of the same names, so of the same fields, seeds, data and teacher.

python benchmarks/rounding_noise.py training/ablations/results_sdpa training/ablations/results
"""

import argparse
import json
import statistics
from pathlib import Path


def accuracy(file: Path) -> float | None:
    """In percent; None of a run that diverged."""
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
            f"{one} and {other} have {len(differences)} result(s) of one name that ended well: at least 2 are needed."
        )
    spread = statistics.stdev(differences)
    print(
        f"{len(differences)} runs, done twice: {min(differences):+.1f} to {max(differences):+.1f} points, mean {statistics.mean(differences):+.2f}"
    )
    print(f"standard deviation of the differences {spread:.2f}, so of a run {spread / 2**0.5:.2f}")


if __name__ == "__main__":
    main()
