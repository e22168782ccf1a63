"""`hf-deit …`: parse (cli_parser.py), call, print. What the commands do is in runs.py, teacher_training.py, cache_runs.py and others.

Exit codes: 0 done; 1 training failed (the loss diverged); 2 something given is not allowed, or a file cannot be read or written; 130 interrupted.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cli_parser import build_parser


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells; the first row is the head, the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


_METRIC_TITLES = {
    "accuracy": "top-1, fused",
    "cls_accuracy": "top-1, class head",
    "distillation_accuracy": "top-1, distillation head",
    "top5_accuracy": "top-5, fused",
    "balanced_accuracy": "balanced accuracy, fused",
    "teacher_accuracy": "top-1, teacher",
    "teacher_agreement": "agreement with the teacher",
    "majority_accuracy": "most frequent class",
    "mean_average_precision": "mean average precision, fused",
    "cls_mean_average_precision": "mean average precision, class head",
    "distillation_mean_average_precision": "mean average precision, distillation head",
    "chance_mean_average_precision": "mean average precision, chance",
}


def metric_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The rows of the final table: the metrics that exist, in percent, the losses, and the numbers of broken images."""
    metrics = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    rows = [["validation", ""]]
    rows += [[title, f"{100 * metrics[name]:.2f} %"] for name, title in _METRIC_TITLES.items() if name in metrics]
    rows += [[name.replace("_", " "), f"{metrics[name]:.4f}"] for name in sorted(metrics) if name.endswith("loss")]
    broken = metrics.get("broken_images", {})
    rows += [[f"broken images, {name.replace('_', ' ')}", str(count)] for name, count in broken.items()]
    return rows


def _recipe_file(options: argparse.Namespace) -> str | Path | None:
    """The file that --recipe or --config names; None: neither is given."""
    from .recipe_files import RecipeError, recipe_path

    if options.recipe is None:
        return options.config
    if options.config is not None:
        raise RecipeError(
            f"--recipe {options.recipe} and --config {options.config}: give one of them; a file that says "
            f"base: {options.recipe} takes that recipe's fields."
        )
    return recipe_path(options.recipe)


def _train(options: argparse.Namespace, fields: list[str]) -> None:
    from . import recipe, runs

    if options.help_all:
        recipe.recipe_parser().print_help()
        return
    loaded = recipe.load_recipe(_recipe_file(options), fields)
    metrics = runs.train(loaded)
    if metrics is not None:
        print()
        print_table(metric_rows(metrics))
        print(
            f"\nSaved in {loaded.training.output_dir}: model, image processor, recipe, results, card. Load it anywhere with"
        )
        print(f'  AutoModelForImageClassification.from_pretrained("{loaded.training.output_dir}")')


def _recipes(options: argparse.Namespace, fields: list[str]) -> None:
    from .recipe_files import listed_recipes, whole_text

    if options.name is not None:
        print(whole_text(options.name), end="")
        return
    rows = [(name, accuracy, what) for name, what, accuracy in listed_recipes()]
    width = max(len(name) for name, _, _ in rows)
    for name, accuracy, what in [("recipe", "paper", "what"), *rows]:
        print(f"{name.ljust(width)}  {accuracy.rjust(6)}  {what}")
    print("\nhf-deit recipes NAME prints one, with its launch command; hf-deit train --recipe NAME … trains by it.")
    print("paper: the top-1 accuracy the paper reports, not measured here.")


def _train_teacher(options: argparse.Namespace, fields: list[str]) -> None:
    from .teacher_training import TeacherTrainingArguments, train_teacher

    names = [entry.name for entry in dataclasses.fields(TeacherTrainingArguments)]
    arguments = TeacherTrainingArguments(**{name: getattr(options, name) for name in names})
    metrics = train_teacher(arguments)
    print()
    print_table(metric_rows(metrics))
    print(f"\nSaved in {arguments.output_dir}. Use it with: hf-deit train --teacher {arguments.output_dir} …")


def _evaluate(options: argparse.Namespace, fields: list[str]) -> None:
    from .errors import UserError
    from .run_data import columns_of
    from .runs import evaluate
    from .tables import Columns

    if options.json is not None and not Path(options.json).absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: its folder does not exist.")
    columns = columns_of(options)
    result = evaluate(
        *(options.model, options.data, options.teacher, options.teacher_view_size, options.batch_size, options.bf16),
        columns=columns if columns != Columns() else None,
    )
    print_table(metric_rows(result["metrics"] | {"broken_images": result["broken_images"]}))
    print()
    figures = [(name, *row.values()) for name, row in result["per_class"].items()]
    rows = [[name, "–" if figure is None else f"{100 * figure:.1f} %", str(images)] for name, figure, images in figures]
    several = "mean_average_precision" in result["metrics"]
    print_table([["class", "average precision" if several else "top-1", "images"], *rows])
    if options.json is not None:
        from .checkpointing import write_json

        write_json(Path(options.json), result)
        print(f"\nWritten to {options.json}")


def _predict(options: argparse.Namespace, fields: list[str]) -> None:
    from .runs import predict

    answers = predict(options.model, options.images, options.top_k)
    if options.json:
        print(
            json.dumps(
                [{"image": image, "predictions": answer} for image, answer in zip(options.images, answers, strict=True)]
            )
        )
        return
    for image, answer in zip(options.images, answers, strict=True):
        print(f"{image}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in answer))


def _show_augmentations(options: argparse.Namespace, fields: list[str]) -> None:
    from .contact_sheet import show_augmentations
    from .errors import UserError
    from .recipe import load_recipe

    # argparse does not know the fields of a recipe, and takes the value of one before DATA for DATA.
    before = options.given[: options.given.index(options.data)]
    misread = [name for name in fields if name.startswith("--") and "=" not in name and name in before]
    if misread:
        raise UserError(
            f"{misread[0]} stands before DATA, which was read as {options.data!r}: fields of a recipe come after it, "
            "hf-deit show-augmentations DATA --out FILE --field value."
        )
    recipe = load_recipe(_recipe_file(options), [*fields, "--data", options.data])
    rows = show_augmentations(recipe, options.out, options.images, options.views)
    print(
        f"Written to {options.out}: training images {', '.join(map(str, rows))} from the top, {options.views} views each."
    )


def _cache_teacher(options: argparse.Namespace, fields: list[str]) -> None:
    from .cache_runs import cache_teacher
    from .recipe import RecipeError, given_names, load_recipe

    wrong = sorted(set(given_names(fields)) & {"teacher_cache", "verify_teacher_cache"})
    if wrong:
        raise RecipeError(
            f"--{wrong[0]} is a training's: cache-teacher asks the teacher itself, and stores under --out. Leave it out."
        )
    recipe = load_recipe(_recipe_file(options), fields)
    names = {"epochs": "views", "first": "first_view", "kind": "kind", "top_k": "top_k", "dtype": "answer_dtype"}
    summary = cache_teacher(recipe, options.out, **{name: getattr(options, option) for name, option in names.items()})
    if summary is None:
        return
    print()
    rows = [[name.replace("_", " "), str(value)] for name, value in summary.items() if value is not None]
    print_table([["teacher cache", ""], *rows])
    if "first" in summary:
        print(f"\nA part, in {options.out}: hf-deit merge-teacher-caches WHOLE {options.out} …")
    else:
        print(f"\nUse it, without the teacher, with: hf-deit train --teacher_cache {options.out} …")


def _sweep(options: argparse.Namespace, fields: list[str]) -> None:
    from .recipe_files import read_fields
    from .sweep_runs import plan_sweep, run_sweep

    file = _recipe_file(options)
    given = {"data": options.data, "teacher": options.teacher, "num_train_epochs": options.epochs}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    sizes = (options.trials, options.jobs, options.seed)
    sweep = plan_sweep(
        {} if file is None else read_fields(Path(file)), [*fields, *words], options.out, options.space, *sizes
    )
    report = run_sweep(sweep, lambda line: print(line, flush=True))
    print("\n" + (Path(options.out) / "report.md").read_text(encoding="utf-8"))
    if report["best"] is not None:
        print(f"Train by it: hf-deit train --config {Path(options.out) / 'best.yaml'} --data {options.data} …")


def _merge_teacher_caches(options: argparse.Namespace, fields: list[str]) -> None:
    from .cache_merging import merge_caches
    from .teacher_cache import missing_epochs

    epochs = merge_caches(options.out, options.parts)
    print(f"{options.out} holds {len(epochs)} epoch(s) of views: {', '.join(map(str, epochs))}.")
    missing = missing_epochs(epochs)
    if missing:
        print(
            f"Epoch(s) {', '.join(map(str, missing))} are missing: a training by it sees the first {missing[0]} only. Build "
            "them with cache-teacher --first_view, and merge again."
        )


def _card(options: argparse.Namespace, fields: list[str]) -> None:
    from .model_card import Statements
    from .runs import render_model_card

    names = ("license", "base_model", "dataset", "data_license", "base_model_license")
    statements = Statements(**{name: getattr(options, name) for name in names})
    print(f"Written to {render_model_card(options.model, statements)}")


def _space(options: argparse.Namespace, fields: list[str]) -> None:
    from .space_template import make_space

    files = make_space(options.model, options.out, options.license, options.title)
    print(f"Written to {options.out}: {', '.join(files)}")
    print("Its README.md says how to try it here (in an environment with gradio) and how to push it.")


def _push(options: argparse.Namespace, fields: list[str]) -> None:
    from .publishing import push

    files, address = push(options.model, options.repo, options.private, options.branch, options.tag, options.dry_run)
    print_table([["file", "bytes"], *([file.name, f"{file.size:,}"] for file in files)])
    total = sum(file.size for file in files)
    done = f"Pushed to {address}" if address else f"Dry run: nothing was sent to {options.repo}"
    print(f"\n{done}: {len(files)} files, {total:,} bytes.")


def _demo(options: argparse.Namespace, fields: list[str]) -> None:
    from .demo import DemoArguments, run_demo

    result = run_demo(DemoArguments(output_dir=options.output_dir, seed=options.seed))
    print()
    print_table(result["table"])
    print("\n" + result["story"])


def _convert(options: argparse.Namespace, fields: list[str]) -> None:
    import torch

    from .checkpoint_loading import convert
    from .recipe import as_size

    names = ("weights", "num_attention_heads", "labels", "partial", "image_mean", "image_std", "crop_ratio")
    model = convert(
        *(options.source, options.out),
        **{name: getattr(options, name) for name in names},
        keep_layer_scale=options.keep_layer_scale,
        image_size=as_size("image_size", options.image_size),
        dtype=None if options.dtype == "file" else getattr(torch, options.dtype),
    )
    print(f"{model.num_parameters():,} parameters in {options.out}. Load it anywhere with")
    print(f'  AutoModelForImageClassification.from_pretrained("{options.out}")')


def _export(options: argparse.Namespace, fields: list[str]) -> None:
    if options.quantize is not None and options.format != "onnx":
        from .errors import UserError

        raise UserError(f"--quantize {options.quantize} is of --format onnx, not of {options.format}: leave it out.")
    if options.format in ("timm", "official"):
        from .checkpoint_loading import export_timm

        difference = export_timm(options.model, options.out, official=options.format == "official")
        print(f"Written to {options.out}; read back, its largest difference of a logit is {difference:.3g}.")
        return
    from .exporting import export_onnx, export_program

    if options.format == "onnx":
        written = export_onnx(options.model, options.out, options.quantize)
    else:
        written = export_program(options.model, options.out)
    if written.eight_bits is not None:
        print(f"{100 * written.eight_bits:.1f} % of the weights are in 8 bits, the others in float32.")
    size = sum(file.stat().st_size for file in written.files) / 1e6
    print(
        f"Written to {' and '.join(map(str, written.files))} ({size:.1f} MB); run with batches of 1, 2 and 5, its largest "
        f"difference of a logit is {written.difference:.3g} (largest logit {written.largest_logit:.3g})."
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "demo": _demo,
    "train": _train,
    "recipes": _recipes,
    "train-teacher": _train_teacher,
    "evaluate": _evaluate,
    "cache-teacher": _cache_teacher,
    "merge-teacher-caches": _merge_teacher_caches,
    "sweep": _sweep,
    "show-augmentations": _show_augmentations,
    "predict": _predict,
    "convert": _convert,
    "export": _export,
    "card": _card,
    "push": _push,
    "space": _space,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code.
    """
    parser = build_parser()
    options, fields = parser.parse_known_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    if fields and options.command not in ("train", "show-augmentations", "cache-teacher", "sweep"):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    from .errors import UserError, own_message

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from .terms import NonFiniteLossError

    try:
        COMMANDS[options.command](options, fields)
    except UserError as error:
        print(f"hf-deit {options.command}: {own_message(error)}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"hf-deit {options.command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no room, no permission, a place that is none: nothing of ours to trace
        logging.debug("Where it happened:", exc_info=True)
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        what = f"{' → '.join(places)}: {error.strerror}" if places else str(error) or type(error).__name__
        print(f"hf-deit {options.command}: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
