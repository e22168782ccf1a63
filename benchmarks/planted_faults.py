"""Measure how many planted faults the inspection finds: wrong labels, and duplicates across splits.

    python benchmarks/planted_faults.py /work/shared/data/clothing10 --weights WEIGHTS --out DIR --steps plant duplicates
    python benchmarks/planted_faults.py /work/shared/data/clothing10 --weights WEIGHTS --out DIR --steps train rank
    python benchmarks/planted_faults.py /work/shared/data/clothing10 --weights WEIGHTS --out DIR --steps folds rank_folds

`plant` copies the data (train/CLASS, validation/CLASS) to DIR/data, moves some training images into the folder of another class, and
adds changed copies of validation images to the training images. `train` fine-tunes a teacher and a student on the planted data, so that
both have seen the wrong labels; `folds` does the same for each of five folds, so that no model has seen the images that it judges.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image

WRONG_LABELS, COPIES_PER_KIND, FOLDS = 30, 5, 5
KINDS = ("equal", "jpeg60", "half", "crop90")


def plant(data: Path, folder: Path, seed: int) -> None:
    """Copy the data into `folder`/data with wrong labels and duplicates, and list them in `folder`/planted.json."""
    target = folder / "data"
    shutil.copytree(data / "train", target / "train")
    shutil.copytree(data / "validation", target / "validation")
    classes = sorted(path.name for path in (target / "train").iterdir())
    draw = random.Random(seed)
    images = sorted((target / "train").rglob("*.*"))
    wrong = {}
    for path in draw.sample(images, WRONG_LABELS):
        label = draw.choice([name for name in classes if name != path.parent.name])
        moved = target / "train" / label / path.name
        path.rename(moved)
        wrong[str(moved.relative_to(target))] = path.parent.name
    copies = {}
    for number, path in enumerate(
        draw.sample(sorted((target / "validation").rglob("*.*")), COPIES_PER_KIND * len(KINDS))
    ):
        kind = KINDS[number % len(KINDS)]
        copy = target / "train" / path.parent.name / f"copy-{number:02}.jpg"
        _changed(path, copy, kind, draw)
        copies[str(copy.relative_to(target))] = {"of": str(path.relative_to(target)), "kind": kind}
    (folder / "planted.json").write_text(json.dumps({"wrong": wrong, "copies": copies}, indent=1))


def _changed(path: Path, copy: Path, kind: str, draw: random.Random) -> None:
    if kind == "equal":
        shutil.copy(path, copy)
        return
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if kind == "half":
        image = image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    if kind == "crop90":
        left, top = draw.randint(0, width // 10), draw.randint(0, height // 10)
        image = image.crop((left, top, left + 9 * width // 10, top + 9 * height // 10))
    image.save(copy, quality=60 if kind == "jpeg60" else 90)


def train(data: str, weights: Path, folder: Path, epochs: int) -> None:
    """Fine-tune a teacher, and a student that learns from it, on the same images."""
    import hf_deit

    common = {
        "data": data,
        "model": str(weights),
        "num_train_epochs": epochs,
        "report_to": "none",
        "disable_tqdm": True,
    }
    common |= {"eval_strategy": "no", "report": False, "layer_decay": 1.0, "drop_path_rate": 0.0, "learning_rate": 1e-4}
    for name, fields in (
        ("teacher", {"distillation_type": "none"}),
        ("student", {"teacher": str(folder / "teacher"), "distillation_alpha": 0.5}),
    ):
        if (folder / name / "results.json").is_file():
            continue
        started = time.monotonic()
        result = hf_deit.train(output_dir=folder / name, recipe="finetune_96", **{**common, **fields})
        print(f"{folder / name}: top-1 {100 * result.metrics['accuracy']:.1f} %, {time.monotonic() - started:.0f} s")


def write_folds(folder: Path) -> None:
    """Write a table of the training images of each fold, and one of its held-out images."""
    images = sorted((folder / "data" / "train").rglob("*.*"))
    random.Random(0).shuffle(images)
    for fold in range(FOLDS):
        held_out = set(images[fold::FOLDS])
        place = folder / f"fold{fold}"
        place.mkdir(exist_ok=True)
        for name, chosen in (("train", sorted(set(images) - held_out)), ("validation", sorted(held_out))):
            rows = [f"{path},{path.parent.name}" for path in chosen]
            (place / f"{name}.csv").write_text("\n".join(["image,label", *rows]) + "\n")


def count_duplicates(folder: Path) -> None:
    """Print how many planted duplicates are found, and the pairs that were not planted."""
    from hf_deit.inspection.duplicates import find_pairs, grey_images

    root = folder / "data"
    files = sorted(map(str, root.rglob("*.*")))
    place = {str(Path(file).relative_to(root)): index for index, file in enumerate(files)}
    copies = json.loads((folder / "planted.json").read_text())["copies"]
    planted = {tuple(sorted((place[copy], place[of["of"]]))): of["kind"] for copy, of in copies.items()}
    started = time.monotonic()
    pairs = find_pairs(grey_images(files))
    found = {(pair.first, pair.second): pair.similarity for pair in pairs}
    for kind in KINDS:
        own = [pair for pair, of_kind in planted.items() if of_kind == kind]
        print(f"duplicates, {kind}: {sum(pair in found for pair in own)} of {len(own)}")
    others = [pair for pair in found if pair not in planted]
    print(f"{len(files)} images, {time.monotonic() - started:.0f} s; pairs that were not planted: {len(others)}")
    for first, second in others:
        print(f"  {found[first, second]:.3f}  {files[first]}  {files[second]}")


def rank(folder: Path, folds: bool) -> None:
    """Print how many planted wrong labels are among the first 60 suspects, without and with the teacher."""
    from hf_deit.data.loading import load_splits
    from hf_deit.inspection.mislabelled import suspects
    from hf_deit.inspection.table import TEACHER

    train, _ = load_splits(str(folder / "data"))
    if folds:
        tables = []
        for fold in range(FOLDS):
            place = folder / f"fold{fold}"
            tables.append(_predicted(place, load_splits(str(place))[1]))
        found = [[one for table in tables for one in suspects(_changed_teacher(table, use))] for use in (False, True)]
    else:
        table = _predicted(folder, train)
        assert TEACHER in table.probabilities
        found = [suspects(_changed_teacher(table, use)) for use in (False, True)]
    wrong = json.loads((folder / "planted.json").read_text())["wrong"]
    paths = {str((folder / "data" / name).resolve()) for name in wrong}
    for use, ones in zip(("without the teacher", "with the teacher"), found, strict=True):
        ranked = sorted(ones, key=lambda one: one.score)
        hits = [str(Path(one.file).resolve()) in paths for one in ranked]
        print(
            f"wrong labels, {'5-fold' if folds else 'in-sample'}, {use}: {sum(hits[:30])} of {len(paths)} in the first 30, "
            f"{sum(hits[:60])} in the first 60, {sum(hits)} in all {len(ranked)} suspects"
        )


def _predicted(folder: Path, source: Any) -> Any:
    from hf_deit.inspection.table import predict_source
    from hf_deit.recipes.predict import Predictor
    from hf_deit.recipes.prediction_teacher import PredictionTeacher

    teacher = PredictionTeacher(folder / "student", str(folder / "teacher"))
    predictor = Predictor(str(folder / "student"), teacher=teacher)
    assert list(source.class_names) == predictor.class_names
    return predict_source(predictor, source, predictor.class_names, batch_size=64)


def _changed_teacher(table: Any, use: bool) -> Any:
    """Return the table with or without the teacher."""
    from dataclasses import replace

    kept = {name: values for name, values in table.probabilities.items() if use or name != "teacher"}
    return replace(table, probabilities=kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", default=["plant", "duplicates", "train", "rank"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    for step in options.steps:
        if step == "plant":
            plant(options.data, folder, options.seed)
        elif step == "train":
            train(str(folder / "data"), options.weights, folder, options.epochs)
        elif step == "duplicates":
            count_duplicates(folder)
        elif step in ("rank", "rank_folds"):
            rank(folder, folds=step == "rank_folds")
        elif step == "folds":
            write_folds(folder)
            for fold in range(FOLDS):
                place = folder / f"fold{fold}"
                train(str(place), options.weights, place, options.epochs)


if __name__ == "__main__":
    main()
