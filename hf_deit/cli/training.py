"""Commands that train and evaluate, show augmentations, and build and merge teacher caches."""

import argparse
import contextlib
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UserError
from .common import (
    _add_recipe_options,
    add_data_of_run,
    add_fields,
    add_teacher_details,
    field_help,
    load_given,
    metric_rows,
    print_table,
)

# Shown by `hf-deit train --help`; every other field of TrainingArguments works too (`--help-all`).
_COMMON_TRAINING_FIELDS = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "label_smoothing_factor",
    "max_grad_norm",
    "seed",
    "bf16",
    "dataloader_num_workers",
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "logging_steps",
    "push_to_hub",
    "hub_model_id",
    "torch_compile",
    "distillation_type",
    "distillation_target",
    "distillation_alpha",
    "distillation_tau",
    "distillation_reduction",
    "guidance",
    "guidance_weight",
    "guidance_student_layers",
    "guidance_teacher_layers",
    "base_loss",
    "class_weights",
    "class_weights_power",
    "early_stopping_patience",
    "early_stopping_threshold",
    "num_views",
    "distillation_token_decay",
    "repeated_augmentation",
    "scale_learning_rate",
    "warmup_learning_rate",
    "min_learning_rate",
    "layer_decay",
    "optimizer_class",
    "optim_args",
    "ema_epochs",
    "counted_weights",
    "mixup_alpha",
    "cutmix_alpha",
    "mix_probability",
    "mix_switch_probability",
)


def _field_lines(group: type, names: Sequence[str] | None = None) -> str:
    entries = [entry for entry in dataclasses.fields(group) if names is None or entry.name in names]
    return "\n".join(
        textwrap.fill(field_help(entry), 100, initial_indent=f"  --{entry.name}".ljust(36), subsequent_indent=" " * 36)
        for entry in entries
    )


def _train_help() -> str:
    from ..recipes.arguments import GROUPS
    from ..trainer.training_args import DistillationTrainingArguments

    parts = [f"{group.__doc__.splitlines()[0]}\n{_field_lines(group)}" for group in GROUPS.values()]
    parts.append(
        "Optimisation and distillation.\n" + _field_lines(DistillationTrainingArguments, _COMMON_TRAINING_FIELDS)
    )
    parts.append("Every other field of transformers.TrainingArguments can be given too: hf-deit train --help-all")
    return "\n\n".join(parts)


class _TrainHelp(argparse.Action):
    """Action that prints the help of `train`. Building it imports torch, so it is built only when it is requested."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        parser.epilog = "Fields of the recipe (in the YAML, or as --field value):\n\n" + _train_help()
        parser.print_help()
        parser.exit()


def _add_teacher_fields(parser: argparse.ArgumentParser) -> None:
    from ..recipes.teacher_arguments import TeacherTrainingArguments

    add_fields(parser, TeacherTrainingArguments)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="evaluate a model: every head, every class, and the teacher if one is given"
    )
    evaluate.add_argument("model", help="folder or Hub name of the model")
    evaluate.add_argument("--data", required=True, help="data, as for train")
    evaluate.add_argument(
        "--split",
        help="split to evaluate: train, validation, test, or the name of a split in the data (default: validation, or test if "
        "there is no validation split)",
    )
    evaluate.add_argument("--teacher", help="folder, Hub name or package.module:factory of a teacher")
    add_teacher_details(evaluate)
    add_data_of_run(evaluate)
    evaluate.add_argument("--batch_size", type=int, default=64, help="images per batch (default: %(default)s)")
    evaluate.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    evaluate.add_argument("--json", metavar="FILE", help="also write the result as JSON to this file")


def _add_show(commands: Any) -> None:
    show = commands.add_parser(
        "show-augmentations",
        help="draw a contact sheet: many views of several images, as they are used in training",
        epilog="Every field of a recipe can also be given, as for train: --auto_augment randaugment --view_size 128 …",
        allow_abbrev=False,
    )
    show.add_argument("data", metavar="DATA", help="data, as for train; training images are shown")
    show.add_argument("--out", required=True, metavar="FILE", help="image file of the sheet, for example sheet.png")
    _add_recipe_options(show)
    show.add_argument("--images", type=int, default=8, help="number of images, one per row (default: %(default)s)")
    show.add_argument("--views", type=int, default=8, help="number of views per image (default: %(default)s)")


def _add_cache_commands(commands: Any) -> None:
    cache = commands.add_parser(
        "cache-teacher",
        help="store the teacher outputs for the views of a recipe, to train without the teacher",
        epilog="Every field of a recipe can also be given, as for train. Run the same command again to resume after a "
        "kill or a full disk; with more --views it extends the cache.",
        allow_abbrev=False,
    )
    _add_recipe_options(cache)
    cache.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the cache; new, or a cache to resume or extend"
    )
    cache.add_argument(
        "--views",
        "--epochs",
        type=int,
        dest="views",
        help="number of epochs of views (default: all that the training uses)",
    )
    cache.add_argument(
        "--first_view", type=int, default=0, help="first epoch of views, to build a part of a cache (default: 0)"
    )
    cache.add_argument(
        "--kind",
        choices=("hard", "soft"),
        help="hard: class indices; soft: logits (default: distillation_type, or soft for guidance without logits)",
    )
    cache.add_argument(
        "--top_k", type=int, help="keep the K largest logits and the log-sum-exp of the rest (default: all logits)"
    )
    cache.add_argument(
        "--answer_dtype",
        default="float32",
        choices=("float32", "float16"),
        help="data type of the stored logits (default: %(default)s)",
    )

    merge = commands.add_parser("merge-teacher-caches", help="merge parts of one teacher cache")
    merge.add_argument("out", metavar="DIR", help="folder of the merged cache; new, or a cache to add to")
    merge.add_argument("parts", nargs="+", metavar="PART", help="folders of parts that cache-teacher wrote")


def _train(options: argparse.Namespace, fields: list[str]) -> None:
    from ..inspection.after_training import report_after_training
    from ..recipes.advice import warn_of_defaults
    from ..recipes.reading import recipe_parser
    from ..recipes.train import train
    from .console import TrainingConsole, messages

    if options.help_all:
        recipe_parser().print_help()
        return
    with messages(options.quiet) as console, TrainingConsole(console, options.quiet) as shown:
        loaded = load_given(options, fields)

        def prepare(trainer: Any) -> None:
            shown.attach(trainer)
            if options.recipe is None and options.config is None:
                warn_of_defaults(loaded, trainer)

        report: list[Path | None] = []
        try:
            metrics = train(loaded, prepare=prepare, finish=lambda recipe: report.append(report_after_training(recipe)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_continue(Path(loaded.training.output_dir))) from None
    if metrics is not None:
        print()
        print_table(metric_rows(metrics, metrics["split"]))
        print(
            f"\nSaved in {loaded.training.output_dir}: model, image processor, recipe, results and card. Load the "
            "model anywhere with"
        )
        print(f'  AutoModelForImageClassification.from_pretrained("{loaded.training.output_dir}")')
        if any(report):
            print(f"Report, with photographs of your data: {report[0]}")


def _how_to_continue(output_dir: Path) -> str:
    from ..trainer.checkpoints import checkpoints

    found = checkpoints(output_dir)
    if not found:
        return f"No checkpoint was saved in {output_dir}. Run the same command again to start from the beginning."
    return f"Add --resume to the same command to continue from {found[-1]}."


def _add_recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="list the recipes of the package, print one, or propose one for your data",
        epilog="With --for, the fields of a training that describe the data can also be given, as for train: "
        "--label_column tags, --teacher_weights FILE, …",
        allow_abbrev=False,
    )
    recipes.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="print this recipe, including the fields of its base (default: list the recipes)",
    )
    _add_advice_options(recipes)


def _add_advice_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--for", metavar="DATA", action="append", help="propose a recipe for this data, with the reason and the command"
    )
    add("--model", help="with --for: folder, Hub name or short name of weights to start from")
    add("--teacher", help="with --for: folder, Hub name or package.module:factory of a teacher")
    add(
        "--unlabelled",
        metavar="DATA",
        help="with --for: folder, table, saved data set or Hub name of images without labels",
    )


def _propose(words: Sequence[str]) -> None:
    """Print the proposal for the words of the command line after `hf-deit recipes`."""
    from ..recipes.advice import propose
    from ..recipes.reading import parsed_words

    # The parser of the command would take the value of a field for NAME.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_advice_options(parser)
    options, fields = parser.parse_known_args(words)
    data = getattr(options, "for")
    if len(data) > 1 or "--data" in fields or (fields and not fields[0].startswith("--")):
        given = [*(f"--for {one}" for one in data), *fields[:2]]
        raise UserError(
            f"{' '.join(given)}: give one data set with --for DATA. The name of a recipe and --data cannot be given with it."
        )
    named = {"data": data[0], "model": options.model, "teacher": options.teacher, "unlabelled": options.unlabelled}
    given = {name: value for name, value in named.items() if value is not None}
    print(propose({**given, **parsed_words(fields)}, check_teacher=True))


def _recipes(options: argparse.Namespace, fields: list[str]) -> None:
    from ..recipes.reading import listed_recipes, whole_text

    if getattr(options, "for") is not None:
        _propose(options.given[1:])
        return
    idle = [word for word in fields if word.startswith("-")]
    idle += [f"--{name}" for name in ("model", "teacher", "unlabelled") if getattr(options, name) is not None]
    if idle or fields:
        raise UserError(f"{(idle or fields)[0]} has an effect only with --for: hf-deit recipes --for DATA.")
    if options.name is not None:
        print(whole_text(options.name), end="")
        return
    rows = [(name, accuracy, description) for name, description, accuracy in listed_recipes()]
    width = max(len(name) for name, _, _ in rows)
    for name, accuracy, description in [("recipe", "paper", "description"), *rows]:
        print(f"{name.ljust(width)}  {accuracy.rjust(6)}  {description}")
    print(
        "\nhf-deit recipes NAME prints a recipe with its launch command; hf-deit train --recipe NAME … trains with it."
        "\nhf-deit recipes --for DATA proposes a recipe for your images."
    )
    print("paper: the top-1 accuracy that the paper reports; it was not measured here.")


def _train_teacher(options: argparse.Namespace, fields: list[str]) -> None:
    from ..recipes.teacher_arguments import TeacherTrainingArguments
    from ..recipes.train_teacher import train_teacher
    from .console import TrainingConsole, messages

    names = [entry.name for entry in dataclasses.fields(TeacherTrainingArguments)]
    arguments = TeacherTrainingArguments(**{name: getattr(options, name) for name in names})
    with messages(options.quiet) as console, TrainingConsole(console, options.quiet) as shown:
        metrics = train_teacher(arguments, prepare=shown.attach)
    print()
    print_table(metric_rows(metrics))
    print(f"\nThe teacher is saved in {arguments.output_dir}. Use it: hf-deit train --teacher {arguments.output_dir} …")


def _evaluate(options: argparse.Namespace, fields: list[str]) -> None:
    from ..recipes.data import columns_of, selection_of
    from ..recipes.evaluate import evaluate
    from .console import TrainingConsole, messages

    if options.json is not None and not Path(options.json).absolute().parent.is_dir():
        raise UserError(f"--json {options.json} is in a folder that does not exist. Create the folder first.")
    with messages(options.quiet) as console, TrainingConsole(console, options.quiet) as shown:
        result = evaluate(
            options.model,
            options.data,
            options.teacher,
            options.teacher_view_size,
            options.batch_size,
            options.bf16,
            columns=columns_of(options),
            split=options.split,
            selection=selection_of(options),
            class_names=options.class_names,
            teacher_problem_type=options.teacher_problem_type,
            prepare=shown.attach,
        )
    metrics = result["metrics"] | {"broken_images": result["broken_images"]}
    print_table(metric_rows(metrics, result["split"], result["loss_on"]))
    print()
    print_table(_per_class_rows(result["per_class"]))
    if options.json is not None:
        from ..files import write_json

        write_json(Path(options.json), result)
        print(f"\nWritten to {options.json}")


_PER_CLASS_TITLES = {"accuracy": "top-1", "f1": "F1"}


def _per_class_rows(per_class: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table with the metrics and the number of images of each class."""
    names = [name for name in next(iter(per_class.values())) if name != "images"]
    titles = [_PER_CLASS_TITLES.get(name, name.replace("_", " ")) for name in names]
    rows = [["class", *titles, "images"]]
    for label, row in per_class.items():
        figures = ["–" if row[name] is None else f"{100 * row[name]:.1f} %" for name in names]
        rows.append([label, *figures, str(row["images"])])
    return rows


def _show_augmentations(options: argparse.Namespace, fields: list[str]) -> None:
    from ..recipes.contact_sheet import show_augmentations

    # argparse does not know the fields of a recipe. If one of them precedes DATA, argparse takes its value for DATA.
    before = options.given[: options.given.index(options.data)]
    misread = [name for name in fields if name.startswith("--") and "=" not in name and name in before]
    if misread:
        raise UserError(
            f"{misread[0]} stands before DATA, which was read as {options.data!r}. Give the fields of a recipe after "
            "DATA: hf-deit show-augmentations DATA --out FILE --field value."
        )
    recipe = load_given(options, [*fields, "--data", options.data])
    rows = show_augmentations(recipe, options.out, options.images, options.views)
    print(
        f"Written to {options.out}: training images {', '.join(map(str, rows))} from the top, {options.views} views "
        "each."
    )


def _cache_teacher(options: argparse.Namespace, fields: list[str]) -> None:
    from ..recipes.cache_teacher import cache_teacher, summary_rows
    from ..recipes.reading import given_names
    from .console import messages

    wrong = sorted(set(given_names(fields)) & {"teacher_cache", "verify_teacher_cache"})
    if wrong:
        raise RecipeError(
            f"--{wrong[0]} is a field for training. cache-teacher runs the teacher itself and writes its outputs to "
            f"--out. Leave --{wrong[0]} out."
        )
    recipe = load_given(options, fields)
    names = {"epochs": "views", "first": "first_view", "kind": "kind", "top_k": "top_k", "dtype": "answer_dtype"}
    with messages(options.quiet):
        summary = cache_teacher(
            recipe, options.out, **{name: getattr(options, option) for name, option in names.items()}
        )
    if summary is None:
        return
    print()
    print_table([["teacher cache", ""], *summary_rows(summary)])
    if "first" in summary:
        print(
            f"\nA part of a cache is in {options.out}. Merge parts: hf-deit merge-teacher-caches MERGED {options.out} …"
        )
    else:
        print(f"\nTrain with the cache, without the teacher: hf-deit train --teacher_cache {options.out} …")


def _merge_teacher_caches(options: argparse.Namespace, fields: list[str]) -> None:
    from ..distillation.cache import missing_epochs
    from ..distillation.cache_writer import merge_caches

    epochs = merge_caches(options.out, options.parts)
    print(f"{options.out} holds {len(epochs)} epoch(s) of views: {', '.join(map(str, epochs))}.")
    missing = missing_epochs(epochs)
    if missing:
        print(
            f"Epoch(s) of views {', '.join(map(str, missing))} are missing. A training with this cache uses only the "
            f"first {missing[0]}. Build the missing ones with cache-teacher --first_view, and merge again."
        )


def _demo(options: argparse.Namespace, fields: list[str]) -> None:
    from ..experiments.demo import DemoArguments, run_demo
    from .console import TrainingConsole, messages

    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs} is invalid. It must be at least 1.")
    arguments = DemoArguments(
        output_dir=options.output_dir,
        seed=options.seed,
        epochs=options.epochs,
        teacher_epochs=min(options.epochs, DemoArguments.teacher_epochs),
    )
    with messages(options.quiet) as console, contextlib.ExitStack() as stack:

        def prepare(trainer: Any, title: str) -> None:
            stack.enter_context(TrainingConsole(console, options.quiet, title)).attach(trainer)

        result = run_demo(arguments, prepare)
    print()
    print_table(result["table"])
    print("\n" + result["story"])
    if result["report"] is not None:
        print(f"\nReport about this student: {result['report']}")
