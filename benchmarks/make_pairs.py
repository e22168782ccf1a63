"""Multi-label photographs from single-label ones: two photographs side by side, labelled with the classes of both.

Each training photograph is in one pair, each validation photograph in two. The result is a folder of tables for
`--label_column tags --label_separator ";"`. docs/results.md shows what a teacher with a sigmoid per class is worth on it.

python benchmarks/make_pairs.py ../shared/data/clothing10 pairs
"""

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageOps

from hf_deit.data.loading import load_splits
from hf_deit.data.sources import Source

SIZE = 160  # height and width of a pair, in pixels


def write_pairs(source: Source, split: str, folder: Path, step: int) -> int:
    """Write the pairs of a split, and return their number.

    Args:
        source: Photographs with one class each.
        split: Name of the table and of the folder of its images.
        folder: Folder of the tables.
        step: Number of photographs between two pairs: 2 uses each photograph once, 1 uses it in two pairs.
    """
    order = list(range(len(source)))
    random.Random(0).shuffle(order)
    (folder / split).mkdir(parents=True)
    rows = []
    for start in range(0, len(order) - step + 1, step):
        members = order[start], order[(start + 1) % len(order)]
        pair = Image.new("RGB", (SIZE, SIZE))
        for place, member in enumerate(members):
            half = ImageOps.fit(source.image(member), (SIZE // 2, SIZE))  # centre crop
            pair.paste(half, (place * SIZE // 2, 0))
        pair.save(folder / split / f"{start:05}.png")
        classes = sorted({source.class_names[source.labels[member]] for member in members})
        rows.append((f"{split}/{start:05}.png", ";".join(classes)))
    with (folder / f"{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "tags"), *rows])
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="photographs with one class each and a validation split, as for hf-deit train")
    parser.add_argument("out", type=Path, help="new folder of the pairs")
    options = parser.parse_args()
    train, validation = load_splits(options.data)
    counts = [write_pairs(train, "train", options.out, 2), write_pairs(validation, "validation", options.out, 1)]
    print(f"{counts[0]} training pairs and {counts[1]} validation pairs in {options.out}")


if __name__ == "__main__":
    main()
