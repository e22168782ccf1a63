"""Benchmarks of teacher caches: time per epoch, speed of building, rounding, files, and accuracy.

There are five parts, and each prints a table. The figures are written to benchmarks/results/bench_teacher_cache.json,
and the plot of the part "time" is written to the same folder.

- time: seconds per epoch without a teacher, with the live teacher, with a hard cache and with a cache of K logits.
  These arms take turns after each epoch, with the same images, mixing and loader. The teachers are efficientnet_lite0
  and a network of the size of RegNetY-16GF with random weights.
- building: views per second while a cache is built, compared with the teacher alone on batches that are already loaded.
- rounding: the share of records that differ if the teacher computes them in batches of another size.
- files: a hard cache of ImageNet for 300 epochs (0.77 GB, random records): time to open it, random reads, memory.
- accuracy: students of the recipe clothing10_64 with the live teacher, exact caches, top-K caches, and fewer epochs of
  views than epochs.

python benchmarks/bench_teacher_cache.py time building rounding files --data ../shared/data/clothing10 --images 128
python benchmarks/bench_teacher_cache.py accuracy --data ../shared/data/clothing10 --teacher teacher --epochs 20 --fields --learning_rate 1e-3 --distillation_alpha 0.5
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import RegNetConfig, RegNetForImageClassification

from hf_deit.cli.common import print_table
from hf_deit.data.augmentation import Augmentation
from hf_deit.data.batch_ops import Mixing
from hf_deit.data.loading import load_splits
from hf_deit.data.sources import Source
from hf_deit.data.views import ViewDataset
from hf_deit.distillation.cache import (
    FORMAT,
    FORMAT_VERSION,
    OUTPUTS,
    VALIDATION,
    RecordFormat,
    TeacherCache,
    epoch_name,
)
from hf_deit.distillation.cache_builder import build_teacher_cache
from hf_deit.distillation.cache_writer import CacheWriter
from hf_deit.distillation.factories import FACTORY_NORMALIZATION, efficientnet_lite0, replace_classifier
from hf_deit.distillation.objective import view_outputs
from hf_deit.distillation.teacher import Teacher
from hf_deit.distillation.view_schedule import ViewSchedule
from hf_deit.models.configuration_deit import DeiTConfig
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher
from hf_deit.recipes.cache_teacher import cache_teacher
from hf_deit.recipes.reading import load_recipe, recipe_path
from hf_deit.recipes.train import train
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments

RESULTS = Path(__file__).parent / "results" / "bench_teacher_cache.json"
RECIPE = recipe_path("clothing10_64")
LITE0 = "hf_deit.networks:efficientnet_lite0"
IMAGENET = {"images": 1_281_167, "classes": 1000, "epochs": 300}
MIXING = Mixing(0.8, 1.0)


def light_teacher(names: tuple[str, ...]) -> Teacher:
    network = efficientnet_lite0()
    replace_classifier(network, len(names))
    mean, std = FACTORY_NORMALIZATION[LITE0]
    return Teacher(network, image_mean=mean, image_std=std, id2label=dict(enumerate(names)))


def heavy_teacher(names: tuple[str, ...]) -> Teacher:
    """Return a teacher of the shape of RegNetY-16GF (84 M parameters).

    Its weights are random, which does not change the time.
    """
    config = RegNetConfig(
        depths=[2, 4, 11, 1],
        hidden_sizes=[224, 448, 1232, 3024],
        groups_width=112,
        layer_type="y",
        num_labels=len(names),
    )
    return Teacher(RegNetForImageClassification(config), id2label=dict(enumerate(names)))


TEACHERS: dict[str, Callable] = {"efficientnet_lite0": light_teacher, "RegNetY-16GF-sized": heavy_teacher}


def some(source: Source, count: int) -> Source:
    """Return `count` images, spread evenly over the source and therefore over its classes."""
    count = min(count, len(source))
    return source.subset([index * len(source) // count for index in range(count)], f"{count} of {source.name}")


def views_of(options: argparse.Namespace, size: int, batch: int) -> ViewSchedule:
    source = some(load_splits(options.data)[0], options.images)
    data = ViewDataset(source, Augmentation((size, size), auto_augment="randaugment", erasing_probability=0.25), 0)
    return ViewSchedule(data, MIXING, batch, batch, workers=options.workers)


def trainer_of(options: argparse.Namespace, views: ViewSchedule, kind: str, **teacher: Any) -> DistillationTrainer:
    data = views.dataset
    names = dict(enumerate(data.class_names))
    config = DeiTConfig.from_preset(options.preset, image_size=data.view_size[0], id2label=names)
    torch.manual_seed(0)
    args = DistillationTrainingArguments(
        str(options.work / "unused"),
        distillation_type=kind,
        distillation_tau=3.0,
        mixup_alpha=MIXING.mixup_alpha,
        cutmix_alpha=MIXING.cutmix_alpha,
        num_views=1,
        max_steps=10**6,
        warmup_steps=0,
        per_device_train_batch_size=views.batch_size,
        dataloader_num_workers=views.workers,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        eval_strategy="no",
        save_strategy="no",
    )
    student = DeiTForImageClassificationWithTeacher(config)
    trainer = DistillationTrainer(student, args=args, train_dataset=data, **teacher)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def epoch_seconds(trainer: DistillationTrainer) -> float:
    """Run one epoch of training steps as the Trainer does, without logging and saving, and return its seconds."""
    model = trainer.model.to(trainer.args.device).train()
    start = time.perf_counter()
    for inputs in trainer.get_train_dataloader():
        trainer.training_step(model, inputs)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ready_teacher(title: str, views: ViewSchedule, device: torch.device | str = "cpu") -> Teacher:
    torch.manual_seed(1)
    names = views.dataset.class_names
    teacher = TEACHERS[title](names)
    teacher.to(device)
    teacher.align(list(names), len(names), views.dataset.view_size)
    return teacher


def measure_building(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the views per second of building a cache, and of the teacher alone on batches that are already loaded.

    The two take turns after each epoch.
    """
    views = views_of(options, options.size, options.batch)
    device = DistillationTrainingArguments(str(options.work / "unused"), report_to="none").device
    rows = [["building", "views/s", "bare teacher, views/s", "share, median", "min – max"]]
    found = {}
    for title in TEACHERS:
        teacher = ready_teacher(title, views, device)
        ready = list(views.loader(0, views.batches(0)))
        seconds: list[tuple[float, float]] = []
        for epoch in range(options.repeats + 1):
            start = time.perf_counter()
            record_format = RecordFormat("hard", len(views.dataset.class_names))
            build_teacher_cache(options.work / f"building-{title}", teacher, views, record_format, range(epoch + 1))
            middle = time.perf_counter()
            for _ in view_outputs(teacher, ready):
                pass
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append((middle - start, time.perf_counter() - middle))
        seconds = seconds[1:]  # the first epoch is warm-up
        building, bare = (views.records / statistics.median(times) for times in zip(*seconds, strict=True))
        shares = [bare_seconds / building_seconds for building_seconds, bare_seconds in seconds]
        rows.append([title, f"{building:.1f}", f"{bare:.1f}", f"{statistics.median(shares):.2f}"])
        rows[-1].append(f"{min(shares):.2f} – {max(shares):.2f}")
        found[title] = {"seconds_building_and_bare": seconds, "views": views.records}
    print_table(rows)
    return found


def measure_time(options: argparse.Namespace) -> dict[str, Any]:
    views = views_of(options, options.size, options.batch)
    names = views.dataset.class_names
    top_k = min(10, len(names) - 1)
    arms = {"no teacher": trainer_of(options, views, "none")}
    for title in TEACHERS:
        teacher = ready_teacher(title, views, arms["no teacher"].args.device)
        folders = {kind: options.work / f"{kind}-{title}" for kind in ("hard", "soft")}
        formats = {
            "hard": RecordFormat("hard", len(names)),
            "soft": RecordFormat("top_k", len(names), "float16", top_k, 3.0),
        }
        for kind, folder in folders.items():
            build_teacher_cache(folder, teacher, views, formats[kind], range(1))
        arms[f"live, {title}"] = trainer_of(options, views, "hard", teacher=teacher)
        arms[f"hard cache, {title}"] = trainer_of(options, views, "hard", teacher_cache=folders["hard"])
        arms[f"top-{top_k} cache, {title}"] = trainer_of(options, views, "soft", teacher_cache=folders["soft"])
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for trainer in arms.values():
        epoch_seconds(trainer)  # warm-up, not counted
    for _ in range(options.repeats):
        for name, trainer in arms.items():
            seconds[name].append(epoch_seconds(trainer))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{options.preset} student at {options.size} px, {len(views.dataset)} images, batch {options.batch}")
    rows = [["epoch", "median s", "min – max", "× no teacher"]]
    for name, values in seconds.items():
        ratio = medians[name] / medians["no teacher"]
        rows.append([name, f"{medians[name]:.2f}", f"{min(values):.2f} – {max(values):.2f}", f"{ratio:.3f}"])
    print_table(rows)
    plot(medians, RESULTS.with_name("bench_teacher_cache.png"))
    return {"seconds": seconds, "student": options.preset, "size": options.size}


def plot(medians: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(medians) + 1), layout="constrained")
    bars = axes.barh(list(medians), list(medians.values()), color="#4477aa")
    axes.bar_label(bars, fmt="%.1f s", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds per epoch (median)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.16)
    figure.savefig(path, dpi=120)


def measure_rounding(options: argparse.Namespace) -> dict[str, Any]:
    rows = [["batch size", "decisions that differ", "records that differ (fp32)", "largest |difference|"]]
    found: dict[str, Any] = {}
    logits = {}
    for batch in (64, 32, 8, 2):
        views = views_of(options, 64, batch)
        names = views.dataset.class_names
        torch.manual_seed(1)
        teacher = light_teacher(names)
        teacher.align(list(names), len(names), (64, 64))
        build_teacher_cache(
            options.work / f"rounding-{batch}", teacher, views, RecordFormat("dense", len(names)), range(1)
        )
        cache = TeacherCache(options.work / f"rounding-{batch}")
        logits[batch] = cache.outputs(0, range(cache.records_per_epoch))["teacher_logits"]
        first, now = logits[64], logits[batch]
        decisions = (first.argmax(1) != now.argmax(1)).float().mean().item()
        records = (first != now).any(1).float().mean().item()
        largest = (first - now).abs().max().item()
        rows.append([str(batch), f"{100 * decisions:.3f} %", f"{100 * records:.1f} %", f"{largest:.1e}"])
        found[str(batch)] = {"decisions": decisions, "records": records, "largest": largest}
    print(f"\nrecords of efficientnet_lite0 at 64 px, compared with those of batch size 64 ({len(logits[64])} views)")
    print_table(rows)
    return found


def resident_mib() -> float:
    """Return the resident memory of this process in MiB, including mapped files (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure_files(options: argparse.Namespace) -> dict[str, Any]:
    folder, images = options.work / "imagenet", IMAGENET["images"] // 2 * 2
    record_format = RecordFormat("hard", IMAGENET["classes"])
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": {"fingerprint": "random"},
        "layout": record_format.describe(),
        "views": {"records": images},
        "validation": None,
    }
    generator = np.random.default_rng(0)
    writer = CacheWriter(folder, manifest)
    place = [np.arange(images)]
    for epoch in range(IMAGENET["epochs"]):
        writer.fill(epoch_name(epoch), place, lambda _: [{OUTPUTS: generator.integers(0, 1000, images).astype("<u2")}])
    size = sum(path.stat().st_size for path in folder.iterdir())
    start = time.perf_counter()
    cache = TeacherCache(folder)
    opening = time.perf_counter() - start
    before = resident_mib()
    positions = generator.integers(0, images, (4000, 256))
    start = time.perf_counter()
    for number, batch in enumerate(positions):
        cache.outputs(number * IMAGENET["epochs"] // len(positions), batch)  # the epochs of views in order
    reading = positions.size / (time.perf_counter() - start)
    grown = resident_mib() - before
    found = {"bytes": size, "open_s": opening, "reads_per_s": reading, "memory_mib": grown}
    print("\nhard cache of ImageNet for 300 epochs")
    print_table(
        [
            ["files", ""],
            ["size", f"{size / 1e9:.3f} GB"],
            ["bytes per view", f"{size / images / IMAGENET['epochs']:.4f}"],
            ["time to open, with the check of every SHA-256", f"{opening:.2f} s"],
            ["random reads, batches of 256", f"{reading:,.0f} per second"],
            ["memory added by the reads (mapped pages)", f"{grown:.0f} MiB"],
        ]
    )
    shutil.rmtree(folder)
    return found


def derived_cache(dense: Path, out: Path, record_format: RecordFormat) -> Path:
    """Write a cache of another record format from a cache of all logits in float32, and return its folder.

    The result holds the same records as a cache that the teacher itself would build in this format.
    """
    source = TeacherCache(dense)
    stated = {name: source.manifest[name] for name in ("format", "version", "views")}
    stated |= {
        "teacher": {"fingerprint": source.manifest["teacher"]["fingerprint"]},
        "layout": record_format.describe(),
    }
    writer = CacheWriter(out, {**stated, "validation": source.manifest["validation"]})
    for epoch in range(source.epochs):
        logits = source.outputs(epoch, range(source.records_per_epoch))["teacher_logits"]
        writer.fill(epoch_name(epoch), [range(len(logits))], lambda _, logits=logits: [record_format.encode(logits)])
    logits = source.validation_outputs(range(source.manifest["validation"]["images"]))["teacher_logits"]
    writer.fill(VALIDATION, [range(len(logits))], lambda _: [record_format.encode(logits)])
    writer.add_to_manifest(teacher_accuracy=source.manifest["teacher_accuracy"])
    return out


def accuracy_run(fields: list[str], out: str) -> dict[str, Any]:
    """Train with one thread, and return the metrics of the run and the SHA-256 of its weights.

    It is called in a separate process.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    metrics = train(load_recipe(RECIPE, [*fields, "--output_dir", out]))
    seconds = time.perf_counter() - start
    digest = hashlib.sha256((Path(out) / "model.safetensors").read_bytes()).hexdigest()
    shutil.rmtree(out)
    names = ("eval_accuracy", "eval_loss", "eval_teacher_agreement")
    return {name: metrics[name] for name in names} | {"train_s": seconds, "weights": digest}


def accuracy_cache(fields: list[str], out: str) -> float:
    """Build the cache of all logits with one thread, and return the seconds it took.

    It is called in a separate process.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    cache_teacher(load_recipe(RECIPE, fields), out, kind="soft")
    return time.perf_counter() - start


def measure_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Train with the live teacher and with caches, two runs at a time, each in a process with one thread."""
    epochs, found = options.epochs, {"epochs": options.epochs, "fields": options.fields, "runs": {}}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for seed in range(options.seeds):
            common = ["--data", options.data, "--num_train_epochs", str(epochs), "--seed", str(seed), *options.fields]
            common += [
                "--eval_strategy",
                "no",
                "--save_strategy",
                "no",
                "--report_to",
                "none",
                "--disable_tqdm",
                "true",
            ]
            hard, live = ["--distillation_type", "hard"], ["--teacher", options.teacher]
            dense = options.work / f"dense-{seed}"
            building = pool.submit(accuracy_cache, [*common, *live], str(dense))
            runs = {"hard, live": pool.submit(accuracy_run, [*common, *hard, *live], str(options.work / "hard-live"))}
            found["build_s"] = building.result()
            labels = TeacherCache(dense).record_format.num_labels
            tau = load_recipe(RECIPE, common).training.distillation_tau
            half = derived_cache(dense, options.work / f"half-{seed}", RecordFormat("dense", labels, "float16"))
            tops = {
                k: derived_cache(
                    dense, options.work / f"top{k}-{seed}", RecordFormat("top_k", labels, "float32", k, tau)
                )
                for k in (1, 5)
            }
            cached = {
                "hard, cache": [*hard, "--teacher_cache", str(dense)],
                "soft, cache (all 10 logits, float32)": ["--teacher_cache", str(dense)],
                "soft, cache (all 10 logits, float16)": ["--teacher_cache", str(half)],
                **{f"soft, cache (top {k})": ["--teacher_cache", str(tops[k])] for k in tops},
                **{
                    f"soft, cache ({n} views)": ["--teacher_cache", str(dense), "--num_views", str(n)]
                    for n in (1, 5, 20)
                    if n < epochs
                },
            }
            for name, fields in cached.items():
                out = str(options.work / name.replace(" ", "_"))
                runs[name] = pool.submit(accuracy_run, [*common, *fields], out)
            runs["soft, live"] = pool.submit(accuracy_run, [*common, *live], str(options.work / "soft-live"))
            for name, run in runs.items():
                found["runs"].setdefault(name, []).append(run.result())
                print(f"seed {seed}, {name}: {100 * run.result()['eval_accuracy']:.2f} %", flush=True)
    return found | {"equal_weights": accuracy_table(found["runs"])}


def accuracy_table(found: dict[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """Print the table of the runs.

    Returns:
        For "hard" and "soft", whether the runs with the exact cache ended in the same weights as those with the live
        teacher.
    """
    rows = [["student", "top-1, mean", "by seed", "agreement", "train s"]]
    for name, runs in found.items():
        mean = {key: statistics.fmean(run[key] for run in runs) for key in runs[0] if key != "weights"}
        by_seed = " ".join(f"{100 * run['eval_accuracy']:.1f}" for run in runs)
        agreement = f"{100 * mean['eval_teacher_agreement']:.1f} %"
        rows.append([name, f"{100 * mean['eval_accuracy']:.2f} %", by_seed, agreement, f"{mean['train_s']:.0f}"])
    print()
    print_table(rows)
    weights = {name: [run["weights"] for run in runs] for name, runs in found.items()}
    pairs = {"hard": "hard, cache", "soft": "soft, cache (all 10 logits, float32)"}
    equal = {kind: weights[f"{kind}, live"] == weights[cached] for kind, cached in pairs.items()}
    print(f"final weights equal to those of the run with the live teacher, to the last bit: {equal}")
    return equal


PARTS = {
    "time": measure_time,
    "building": measure_building,
    "rounding": measure_rounding,
    "files": measure_files,
    "accuracy": measure_accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--data", help="folder of photographs, as for hf-deit train")
    parser.add_argument("--teacher", help="accuracy: folder that hf-deit train-teacher wrote")
    parser.add_argument("--preset", default="tiny", help="time: preset of the student (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=224, help="time, building: image size in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=64, help="time, building, rounding: number of images (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=32, help="time, building: batch size (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="number of data workers (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="time: train the student in bf16 autocast")
    parser.add_argument(
        "--repeats", type=int, default=5, help="time, building: measured epochs per arm (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=60, help="accuracy: epochs of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="accuracy: number of seeds (default: %(default)s)")
    parser.add_argument(
        "--fields",
        nargs=argparse.REMAINDER,
        default=[],
        help="accuracy: further fields of the recipe; must be the last option",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("/tmp/bench_teacher_cache"),
        help="working folder; its content is removed (default: %(default)s)",
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        results[part] = PARTS[part](options)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
