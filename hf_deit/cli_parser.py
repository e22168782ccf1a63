"""The parser of `hf-deit`: commands, their options and help. What they do is in cli.py and behind it.

Imports nothing heavy: the fields of a recipe are looked up only when their help is asked for.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
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


def _add_evaluate(commands: Any) -> None:
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


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="NAME", help="one of `hf-deit recipes`")
    parser.add_argument("--config", metavar="FILE", help="in its place: a YAML of fields (base: NAME takes a recipe's)")


def _add_show(commands: Any) -> None:
    show = commands.add_parser(
        "show-augmentations",
        help="a contact sheet: images under many views, as training will see them",
        epilog="Every field of a recipe can be given too, as for train: --auto_augment randaugment --view_size 128 …",
        allow_abbrev=False,
    )
    show.add_argument("data", metavar="DATA", help="as for train; its training images are shown")
    show.add_argument("--out", required=True, metavar="FILE", help="the sheet, for example sheet.png")
    _add_recipe_options(show)
    show.add_argument("--images", type=int, default=8, help="rows (default: %(default)s)")
    show.add_argument("--views", type=int, default=8, help="views of each image (default: %(default)s)")


def _add_cache_commands(commands: Any) -> None:
    cache = commands.add_parser(
        "cache-teacher",
        help="store a teacher's answers to the views of a recipe, for trainings without it",
        epilog="Every field of a recipe can be given too, as for train. The same command again goes on after a kill or a full "
        "disk; with more --views it adds to the cache.",
        allow_abbrev=False,
    )
    _add_recipe_options(cache)
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

    merge = commands.add_parser("merge-teacher-caches", help="bring parts of one teacher cache together")
    merge.add_argument("out", metavar="DIR", help="the whole; new, or one to add to")
    merge.add_argument("parts", nargs="+", metavar="PART", help="folders that cache-teacher made")


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="search fields of a recipe by validation accuracy (extra: sweep)",
        description="Search fields of a recipe with optuna: the learning rate, augmentation and, with a teacher, how it is listened "
        "to; or those of --space. The same command again goes on after a kill; with more --trials it adds some.",
        epilog="Every field of a recipe can be given too, as for train, and is then not searched. The teacher is asked once for each "
        "distinct set of views (crop_scale × auto_augment × mixup_alpha: 12 by default), epochs × images times: a small --num_views, "
        "and few choices of augmentation, make that cheap.",
        allow_abbrev=False,
    )
    _add_recipe_options(sweep)
    add = sweep.add_argument
    add("--data", required=True, help="as for train; its validation images decide")
    add("--teacher", help="as for train (default: none, and nothing of one is searched)")
    add("--out", required=True, metavar="DIR", help="report, best.yaml and all else; new, or of this sweep")
    add(
        "--space", metavar="FILE", help="YAML in place of the default space: field: [choices] or {low, high, log: true}"
    )
    add("--trials", type=int, default=20, help="finished or cut short (default: %(default)s)")
    add("--epochs", type=int, help="of a trial (default: the recipe's)")
    add("--jobs", type=int, default=1, help="trials at a time, which share the cores (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the search; trainings keep the recipe's (default: %(default)s)")


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
        help="class names: one a line, or JSON (default: the source's, else LABEL_n)",
    )
    add("--image_mean", type=float, nargs="+", help="of each channel (default: the source's, else ImageNet's)")
    add("--image_std", type=float, nargs="+", help="likewise")
    add("--crop_ratio", type=float, help="crop over shorter edge (default: the source's, else 0.875; DeiT III: 1)")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16", "file"), help="(default: %(default)s)")
    add("--keep_layer_scale", action="store_true", help="to train on here; plain transformers then loads it wrongly")
    add("--partial", action="store_true", help="take what fits; the rest starts anew or is left out")

    export = commands.add_parser(
        "export",
        help="a model → a file for other programs: ONNX, torch.export, timm's or the official names",
        epilog="The largest difference of a logit is measured and printed; a file that is too far off is not written.",
    )
    export.add_argument("model", metavar="MODEL", help="folder, Hub name or file")
    export.add_argument("out", metavar="OUT", help="new file: .onnx, .pt2, or for names .safetensors or .pth")
    export.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "timm", "official"),
        help="onnx: for onnxruntime and others; torch: a program of torch.export; timm, official: names of parameters, which "
        "differ in LayerScale's",
    )
    export.add_argument(
        "--quantize",
        choices=("int8", "int8-dynamic"),
        help="of onnx, for onnxruntime. int8: weights in 8 bits; int8-dynamic: activations too, faster and less exact",
    )


def _add_publishing(commands: Any) -> None:
    card = commands.add_parser("card", help="render a model's card (README.md) again from the files beside it")
    card.add_argument("model", help="folder of the model")
    card.add_argument(
        "--license",
        metavar="ID",
        help="the Hub's identifier, such as apache-2.0 (default: as it says now; unknown takes it back)",
    )
    card.add_argument("--base_model", metavar="NAME", help="Hub name of the weights it began with (default: likewise)")
    card.add_argument("--dataset", metavar="NAME", help="Hub name of the data (default: likewise)")
    card.add_argument("--data_license", metavar="TEXT", help="licence of the data (default: likewise)")
    card.add_argument("--base_model_license", metavar="TEXT", help="licence of those weights (default: likewise)")

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

    space = commands.add_parser(
        "space", help="a folder to push as a Gradio Space: every head's classes, and where it looks"
    )
    space.add_argument("model", metavar="MODEL", help="folder of a model, which is copied; or a Hub name")
    space.add_argument("out", metavar="OUT", help="new or empty folder")
    space.add_argument("--license", metavar="ID", help="the Hub's identifier, such as apache-2.0 (default: unknown)")
    space.add_argument("--title", help="of the Space (default: the model's name)")


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

    train = commands.add_parser(
        "train",
        help="train a student from a recipe",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a student: hf-deit train --recipe NAME | --config recipe.yaml [--field value …]",
        allow_abbrev=False,
    )
    train.add_argument("-h", "--help", nargs=0, action=_TrainHelp, help="this text")
    train.add_argument("--help-all", action="store_true", help="every field of TrainingArguments too")
    _add_recipe_options(train)

    recipes = commands.add_parser("recipes", help="list the recipes of the package, or print one")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="print this one, whole (default: list them)")

    teacher = commands.add_parser(
        "train-teacher", help="make a teacher: a linear head on a frozen network, or fine-tune it"
    )
    _add_teacher_fields(teacher)

    _add_evaluate(commands)
    _add_cache_commands(commands)
    _add_sweep(commands)

    _add_show(commands)
    predict = commands.add_parser(
        "predict", help="the most probable classes of images (several an image: above 50 %% it has it)"
    )
    predict.add_argument("model", help="folder or Hub name")
    predict.add_argument("images", nargs="+", help="image files")
    predict.add_argument("--top_k", type=int, default=5, help="classes shown (default: %(default)s)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    _add_conversions(commands)
    _add_publishing(commands)
    return parser
