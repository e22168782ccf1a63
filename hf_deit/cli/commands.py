"""Entry point of `hf-deit …`: parse the command line, run the command, and turn errors into messages and exit codes.

The commands are in the other files of this folder, each parser beside its handler.

Exit codes: 0 success; 1 the training diverged; 2 an argument or a file is invalid, a package is missing, or a file cannot
be read or written; 3 an unexpected error, with its traceback;
130 interrupted (Ctrl-C).
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

from ..errors import NonFiniteLossError, UserError
from .benchmark import _add_benchmark, _benchmark
from .common import _add_recipe_options
from .conversion import _add_conversions, _convert, _export
from .experiments import _ablation, _add_ablation, _add_sweep, _sweep
from .explanation import _add_explain, _explain
from .inspection import _add_report, _report
from .prediction import _add_predict, _predict
from .publishing import _add_publishing, _card, _push, _space
from .training import (
    _add_cache_commands,
    _add_evaluate,
    _add_recipes,
    _add_show,
    _add_teacher_fields,
    _cache_teacher,
    _demo,
    _evaluate,
    _merge_teacher_caches,
    _recipes,
    _show_augmentations,
    _train,
    _train_teacher,
    _TrainHelp,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. This imports no large packages such as torch, so that `--help` is fast."""
    parser = argparse.ArgumentParser(
        prog="hf-deit",
        description="Distil any image classifier into a DeiT that plain transformers loads.",
        epilog="Exit codes: 0 success, 1 the training diverged, 2 an argument or a file is invalid or a package is missing, "
        "3 an unexpected error, 130 interrupted (Ctrl-C).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="distil a small teacher into students on real digits, in minutes, without a download"
    )
    demo.add_argument(
        "--output_dir",
        default="hf_deit_demo",
        help="output folder; the best student is in its subfolder best (default: %(default)s)",
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="seed of the data split, the weights and the views (default: %(default)s)"
    )
    demo.add_argument(
        "--epochs",
        type=int,
        default=1000,
        help="epochs of the students over the labelled digits, of two steps each; 1 is a quick test in which the students "
        "learn nothing (default: %(default)s)",
    )

    train = commands.add_parser(
        "train",
        help="train a student from a recipe",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a student: hf-deit train --recipe NAME | --config recipe.yaml [--field value …]",
        allow_abbrev=False,
    )
    train.add_argument("-h", "--help", nargs=0, action=_TrainHelp, help="show this help and exit")
    train.add_argument("--help-all", action="store_true", help="also list every field of TrainingArguments, and exit")
    _add_recipe_options(train)

    _add_recipes(commands)

    teacher = commands.add_parser(
        "train-teacher", help="train a teacher: a linear head on a frozen network, or all weights (fine-tuning)"
    )
    _add_teacher_fields(teacher)

    _add_evaluate(commands)
    _add_cache_commands(commands)
    _add_sweep(commands)
    _add_ablation(commands)

    _add_show(commands)
    _add_predict(commands)
    _add_explain(commands)
    _add_report(commands)
    _add_benchmark(commands)
    _add_conversions(commands)
    _add_publishing(commands)
    for command in commands.choices.values():
        command.add_argument("--quiet", action="store_true", help="print warnings, errors and results only")
    return parser


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "demo": _demo,
    "train": _train,
    "recipes": _recipes,
    "train-teacher": _train_teacher,
    "evaluate": _evaluate,
    "cache-teacher": _cache_teacher,
    "merge-teacher-caches": _merge_teacher_caches,
    "sweep": _sweep,
    "ablation": _ablation,
    "show-augmentations": _show_augmentations,
    "predict": _predict,
    "explain": _explain,
    "report": _report,
    "benchmark": _benchmark,
    "convert": _convert,
    "export": _export,
    "card": _card,
    "push": _push,
    "space": _space,
}


_FLAG_VALUES = {"true": ["--bf16"], "false": []}


def _without_values(words: Sequence[str]) -> list[str]:
    """Return the words with `--bf16` for `--bf16 true`, and without `--bf16 false`, where it is an option and no field.

    `hf-deit train` takes fields, which can be given with a value. So that form works with the other commands too.
    """
    if not words or words[0] not in ("evaluate", "train-teacher"):
        return list(words)
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--bf16":
            found.append(word)
            continue
        following = value if equals else next(rest, None)
        flag = _FLAG_VALUES.get((following or "").lower())
        found += [word] if flag is None else flag
        if flag is None and not equals and following is not None:
            found.append(following)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `hf-deit`. Default: those of this process.

    Returns:
        The exit code.
    """
    parser = build_parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, fields = parser.parse_known_args(_without_values(given))
    options.given = given
    if fields and options.command not in ("train", "show-augmentations", "cache-teacher", "sweep", "recipes"):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    from ..errors import own_message

    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)

    try:
        COMMANDS[options.command](options, fields)
    except UserError as error:
        print(f"hf-deit {options.command}: {own_message(error)}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"hf-deit {options.command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # Such as a full disk, a missing permission or an invalid path: a traceback would not help the user.
        logging.debug("Traceback of the error:", exc_info=True)
        paths = [str(name) for name in (error.filename, error.filename2) if name is not None]
        message = f"{' → '.join(paths)}: {error.strerror}" if paths else str(error) or type(error).__name__
        print(f"hf-deit {options.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\nhf-deit {options.command}: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except Exception:  # a fault of the program: 1, Python's own exit code, would say that a training diverged
        traceback.print_exc()
        print(f"hf-deit {options.command}: an unexpected error; the traceback is above.", file=sys.stderr)
        return 3
    return 0
