"""`hf-deit …`: parse, call, print. What the commands do is in runs.py, teacher_training.py, cache_runs.py and others.

Exit codes: 0 done; 1 training failed (the loss diverged); 2 something given is not allowed; 130 interrupted.
"""

import argparse
import dataclasses
import json
import logging
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Shown by `hf-deit train --help`; every other field of TrainingArguments works too (`--help-all`).
_COMMON_TRAINING_FIELDS = (
    *("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "label_smoothing_factor", "max_grad_norm"),
    *("seed", "bf16", "dataloader_num_workers", "eval_strategy", "save_strategy", "save_total_limit"),
    *("load_best_model_at_end", "logging_steps", "push_to_hub", "hub_model_id", "torch_compile"),
    *("distillation_type", "distillation_target", "distillation_alpha", "distillation_tau", "distillation_reduction"),
    *("base_loss", "class_weights", "num_views", "distillation_token_decay", "repeated_augmentation"),
    *(
        "scale_learning_rate",
        "warmup_learning_rate",
        "min_learning_rate",
        "layer_decay",
        "optimizer_class",
        "optim_args",
    ),
    *("ema_epochs", "counted_weights"),
    *("mixup_alpha", "cutmix_alpha", "mix_probability", "mix_switch_probability"),
)


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


def _train(options: argparse.Namespace, fields: list[str]) -> None:
    from . import recipe, runs

    if options.help_all:
        recipe.recipe_parser().print_help()
        return
    loaded = recipe.load_recipe(options.config, fields)
    metrics = runs.train(loaded)
    if metrics is not None:
        print()
        print_table(metric_rows(metrics))
        print(
            f"\nSaved in {loaded.training.output_dir}: model, image processor, recipe, results, card. Load it anywhere with"
        )
        print(f'  AutoModelForImageClassification.from_pretrained("{loaded.training.output_dir}")')


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
    recipe = load_recipe(options.config, [*fields, "--data", options.data])
    rows = show_augmentations(recipe, options.out, options.images, options.views)
    print(
        f"Written to {options.out}: training images {', '.join(map(str, rows))} from the top, {options.views} views each."
    )


def _cache_teacher(options: argparse.Namespace, fields: list[str]) -> None:
    from .cache_runs import cache_teacher
    from .recipe import load_recipe

    recipe = load_recipe(options.config, fields)
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


def _merge_teacher_caches(options: argparse.Namespace, fields: list[str]) -> None:
    from .cache_writing import merge_caches

    epochs = merge_caches(options.out, options.parts)
    print(f"{options.out} holds {len(epochs)} epoch(s) of views: {', '.join(map(str, epochs))}.")


def _card(options: argparse.Namespace, fields: list[str]) -> None:
    from .model_card import Statements
    from .runs import render_model_card

    path = render_model_card(options.model, Statements(options.license, options.base_model, options.dataset))
    print(f"Written to {path}")


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
    from .checkpoint_loading import export_timm

    difference = export_timm(options.model, options.out, official=options.format == "official")
    print(f"Written to {options.out}; read back, its largest difference of a logit is {difference:.3g}.")


def _field_lines(group: type, names: Sequence[str] | None = None) -> str:
    entries = [entry for entry in dataclasses.fields(group) if names is None or entry.name in names]
    lines = []
    for entry in entries:
        text = entry.metadata.get("help") or ""
        text = text[0] if isinstance(text, (list, tuple)) else text
        if entry.default is not dataclasses.MISSING and entry.default is not None:
            text = f"{text.rstrip('.')} (default: {entry.default})."
        first = f"  --{entry.name}"
        lines.append(textwrap.fill(text, 100, initial_indent=first.ljust(36), subsequent_indent=" " * 36))
    return "\n".join(lines)


def _train_help() -> str:
    from .recipe import AugmentationArguments, DataArguments, ModelArguments, RunArguments, TeacherArguments
    from .training_args import DistillationTrainingArguments

    groups = [ModelArguments, DataArguments, AugmentationArguments, TeacherArguments, RunArguments]
    parts = [f"{group.__doc__}\n{_field_lines(group)}" for group in groups]
    parts.append(
        "Optimisation and distillation.\n" + _field_lines(DistillationTrainingArguments, _COMMON_TRAINING_FIELDS)
    )
    parts.append("Every other field of transformers.TrainingArguments works too: hf-deit train --help-all")
    return "\n\n".join(parts)


class _TrainHelp(argparse.Action):
    """Builds the long help only when it is asked for: it needs torch."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        parser.epilog = "Fields of the recipe (in the YAML, or as --field value):\n\n" + _train_help()
        parser.print_help()
        parser.exit()


def _add_teacher_fields(parser: argparse.ArgumentParser) -> None:
    """The fields of `TeacherTrainingArguments`, written out so that `--help` does not import torch."""
    add = parser.add_argument
    add("--data", required=True, help="folder (train/CLASS/…, validation/CLASS/…), table or datasets name")
    add("--network", required=True, help="package.module:factory, or folder or Hub name of a transformers classifier")
    add("--output_dir", required=True, help="where the teacher is saved")
    add("--image_column", help="of a table: paths or images (default: found by type)")
    add("--label_column", help="of a table: classes (default: found by type)")
    add("--mode", default="linear", choices=("linear", "finetune"), help="head on frozen features, or then all of it")
    add("--image_size", type=int, default=224, help="pixels the teacher will see (default: %(default)s)")
    add(
        "--views", type=int, default=3, help="augmented views of each image the head learns from (default: %(default)s)"
    )
    add("--epochs", type=int, default=5, help="finetune: epochs over all weights (default: %(default)s)")
    add("--learning_rate", type=float, default=1e-4, help="finetune: peak learning rate (default: %(default)s)")
    add("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    add("--crop_scale", type=float, nargs=2, default=[0.25, 1.0], help="share of the area a crop covers")
    add("--validation_share", type=float, default=0.1, help="split off where there is no validation split")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--seed", type=int, default=0, help="of views and head (default: %(default)s)")


def _add_cache_commands(commands: Any) -> None:
    cache = commands.add_parser(
        "cache-teacher",
        help="store a teacher's answers to the views of a recipe, for trainings without it",
        epilog="Every field of a recipe can be given too, as for train. The same command again goes on after a kill or a full "
        "disk; with more --views it adds to the cache.",
        allow_abbrev=False,
    )
    cache.add_argument("--config", help="YAML of fields, as for train")
    cache.add_argument("--out", required=True, metavar="DIR", help="the cache; new, or one to go on with")
    cache.add_argument(
        *("--views", "--epochs"), type=int, dest="views", help="epochs of views (default: those the training shows)"
    )
    cache.add_argument("--first_view", type=int, default=0, help="the first epoch of views, for a part (default: 0)")
    cache.add_argument("--kind", choices=("hard", "soft"), help="decisions or logits (default: distillation_type)")
    cache.add_argument("--top_k", type=int, help="keep the K largest logits and the rest's sum (default: all logits)")
    cache.add_argument(
        "--answer_dtype", default="float32", choices=("float32", "float16"), help="of logits (default: %(default)s)"
    )
    cache.set_defaults(run=_cache_teacher)

    merge = commands.add_parser("merge-teacher-caches", help="bring parts of one teacher cache together")
    merge.add_argument("out", metavar="DIR", help="the whole; new, or one to add to")
    merge.add_argument("parts", nargs="+", metavar="PART", help="folders that cache-teacher made")
    merge.set_defaults(run=_merge_teacher_caches)


def _add_conversions(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="official, timm or older weights → a folder that plain transformers loads"
    )
    add = convert.add_argument
    add("source", metavar="SOURCE", help=".pth, .safetensors, folder or Hub name")
    add("out", metavar="OUT", help="new folder")
    add("--weights", choices=("model", "model_ema"), help="of a training checkpoint (default: model)")
    add("--image_size", type=int, nargs="+", metavar="PIXELS", help="or HEIGHT WIDTH (default: square, by the shapes)")
    add("--num_attention_heads", type=int, help="(default: 64 values a head, for published widths)")
    add(
        "--labels",
        metavar="FILE",
        help="class names: one a line, or JSON (default: the source's, ImageNet's or LABEL_n)",
    )
    add("--image_mean", type=float, nargs="+", help="of each channel (default: the source's, else ImageNet's)")
    add("--image_std", type=float, nargs="+", help="likewise")
    add("--crop_ratio", type=float, help="crop over shorter edge (default: the source's, else 0.875; DeiT III: 1)")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16", "file"), help="(default: %(default)s)")
    add("--keep_layer_scale", action="store_true", help="to train on here; plain transformers then loads it wrongly")
    add("--partial", action="store_true", help="take what fits; the rest starts anew or is left out")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="a model → a file for other programs")
    export.add_argument("model", metavar="MODEL", help="folder, Hub name or file")
    export.add_argument("out", metavar="OUT", help="new file: .safetensors or .pth")
    export.add_argument(
        "--format", required=True, choices=("timm", "official"), help="names of parameters; they differ in LayerScale's"
    )
    export.set_defaults(run=_export)


def _add_publishing(commands: Any) -> None:
    card = commands.add_parser("card", help="render a model's card (README.md) again from the files beside it")
    card.add_argument("model", help="folder of the model")
    card.add_argument(
        "--license", metavar="ID", help="the Hub's identifier, such as apache-2.0 (default: as it says now)"
    )
    card.add_argument("--base_model", metavar="NAME", help="Hub name of the weights it began with (default: likewise)")
    card.add_argument("--dataset", metavar="NAME", help="Hub name of the data (default: likewise)")
    card.set_defaults(run=_card)

    push = commands.add_parser(
        "push",
        help="publish a model on the Hub: weights, processor, card, recipe, results; nothing else",
        epilog="The login is that of `hf auth login`. A push that failed can be repeated.",
    )
    push.add_argument("model", help="folder of the model")
    push.add_argument("repo", help="owner/name on the Hub; made if it is not there")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--branch", help="to push to; made if it is not there (default: main)")
    push.add_argument("--tag", help="to set on the commit, such as v1.0")
    push.add_argument("--dry-run", action="store_true", help="list what would go up, with sizes; send nothing")
    push.set_defaults(run=_push)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="hf-deit",
        description="Distil any image classifier into a DeiT that plain transformers loads.",
        epilog="Exit codes: 0 done, 1 training diverged, 2 something given is not allowed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the main job on embedded real digits, in minutes, without a network")
    demo.add_argument("--output_dir", default="hf_deit_demo", help="where the best student goes (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of data, weights and views (default: %(default)s)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        help="train a student from a recipe",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a student: hf-deit train --config recipe.yaml [--field value …]",
        allow_abbrev=False,
    )
    train.add_argument("-h", "--help", nargs=0, action=_TrainHelp, help="this text")
    train.add_argument("--help-all", action="store_true", help="every field of TrainingArguments too")
    train.add_argument("--config", help="YAML of fields")
    train.set_defaults(run=_train)

    teacher = commands.add_parser(
        "train-teacher", help="make a teacher: a linear head on a frozen network, or fine-tune it"
    )
    _add_teacher_fields(teacher)
    teacher.set_defaults(run=_train_teacher)

    evaluate = commands.add_parser("evaluate", help="evaluate a model: all heads, per class, the teacher if given")
    evaluate.add_argument("model", help="folder or Hub name")
    evaluate.add_argument("--data", required=True, help="as for train; its validation images are used")
    evaluate.add_argument("--teacher", help="folder, Hub name or package.module:factory")
    evaluate.add_argument(
        "--teacher_view_size", type=int, help="side of the view the teacher sees (default: the model's)"
    )
    evaluate.add_argument("--image_column", help="of a table (default: as the model was trained)")
    evaluate.add_argument("--label_column", nargs="+", help="of a table, one or several (default: likewise)")
    evaluate.add_argument("--label_separator", help="of a table (default: likewise)")
    evaluate.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    evaluate.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    evaluate.add_argument("--json", metavar="FILE", help="also write the result as JSON")
    evaluate.set_defaults(run=_evaluate)

    _add_cache_commands(commands)

    show = commands.add_parser(
        "show-augmentations",
        help="a contact sheet: images under many views, as training will see them",
        epilog="Every field of a recipe can be given too, as for train: --auto_augment randaugment --view_size 128 …",
        allow_abbrev=False,
    )
    show.add_argument("data", metavar="DATA", help="as for train; its training images are shown")
    show.add_argument("--out", required=True, metavar="FILE", help="the sheet, for example sheet.png")
    show.add_argument("--config", help="YAML of fields, as for train")
    show.add_argument("--images", type=int, default=8, help="rows (default: %(default)s)")
    show.add_argument("--views", type=int, default=8, help="views of each image (default: %(default)s)")
    show.set_defaults(run=_show_augmentations)

    predict = commands.add_parser(
        "predict", help="the most probable classes of images (several an image: above 50 %% it has it)"
    )
    predict.add_argument("model", help="folder or Hub name")
    predict.add_argument("images", nargs="+", help="image files")
    predict.add_argument("--top_k", type=int, default=5, help="classes shown (default: %(default)s)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.set_defaults(run=_predict)
    _add_conversions(commands)

    _add_publishing(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code.
    """
    parser = build_parser()
    options, fields = parser.parse_known_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    if fields and options.command not in ("train", "show-augmentations", "cache-teacher"):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    from .errors import UserError, own_message

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from .terms import NonFiniteLossError

    try:
        options.run(options, fields)
    except UserError as error:
        print(f"hf-deit {options.command}: {own_message(error)}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"hf-deit {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
