"""Commands that run many trainings: sweeps and ablations."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .common import _add_recipe_options, _recipe_file


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="search fields of a recipe for the best validation accuracy (requires the extra sweep)",
        description="Search fields of a recipe with optuna: by default the learning rate, the augmentation and, with a "
        "teacher, how the teacher is used; with --space, the fields that it names. The same command resumes a sweep "
        "that was killed; with more --trials it extends the sweep.",
        epilog="Every field of a recipe can also be given, as for train; it is then not searched. The teacher outputs "
        "are computed once for each distinct set of views (crop_scale × auto_augment × mixup_alpha: 12 sets by "
        "default), with epochs × images outputs per set. A small --num_views and few choices of augmentation reduce "
        "this cost. With one job, the same --seed gives the same trials.",
        allow_abbrev=False,
    )
    _add_recipe_options(sweep)
    add = sweep.add_argument
    add("--data", required=True, help="data, as for train; trials are compared on the validation images")
    add("--teacher", help="teacher, as for train (default: no teacher, and only distillation_type none)")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the report, best.yaml and all other files; new, or of the same sweep",
    )
    add(
        "--space",
        metavar="FILE",
        help="YAML file of the fields to search, instead of the default ones; each is `field: [choices]` or "
        "`field: {low, high, log: true}`",
    )
    add("--trials", type=int, default=20, help="number of trials that finish or are pruned (default: %(default)s)")
    add("--epochs", type=int, help="epochs per trial (default: those of the recipe)")
    add(
        "--jobs",
        type=int,
        default=1,
        help="number of processes, which share the trials and the CPU cores (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="seed of the search; the trainings keep the seed of the recipe (default: %(default)s)",
    )


def _sweep(options: argparse.Namespace, fields: list[str]) -> None:
    from ..experiments.sweep import plan_sweep, run_sweep
    from ..recipes.reading import read_fields

    file = _recipe_file(options)
    given = {"data": options.data, "teacher": options.teacher, "num_train_epochs": options.epochs}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    sweep = plan_sweep(
        {} if file is None else read_fields(Path(file)),
        [*fields, *words],
        options.out,
        space=options.space,
        trials=options.trials,
        jobs=options.jobs,
        seed=options.seed,
    )
    report = run_sweep(sweep, _print_now)
    print("\n" + (Path(options.out) / "report.md").read_text(encoding="utf-8"))
    if report["best"] is not None:
        best = Path(options.out) / "best.yaml"
        print(f"Train with the best fields: hf-deit train --config {best} --data {options.data} …")


def _add_ablation(commands: Any) -> None:
    ablation = commands.add_parser(
        "ablation",
        help="compare variants of a recipe over several seeds, in a table",
        description="Train named variants of a recipe with several seeds, and write a Markdown table and a plot of the "
        "results. The teacher outputs are computed once and shared by the runs. The same command resumes an ablation "
        "that was killed, and does not repeat runs that have a result.",
        allow_abbrev=False,
    )
    add = ablation.add_argument
    add(
        "definition",
        type=Path,
        metavar="DEFINITION",
        help="YAML file that defines the variants; examples are in training/ablations/",
    )
    add("--data", help="data, as for train; required unless --report is given")
    add("--teacher", help="teacher, as for train; required if a variant distils")
    add("--seeds", type=int, nargs="+", metavar="N", help="train only these seeds of the definition (default: all)")
    add(
        "--jobs",
        type=int,
        default=1,
        help="number of runs at a time, which share the CPU cores (default: %(default)s)",
    )
    add(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the results, one small JSON file per run (default: results/ beside the definition)",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path("ablation_work"),
        help="folder of the teacher caches, the unfinished runs and the logs (default: %(default)s)",
    )
    add(
        "--report",
        action="store_true",
        help="train nothing, and write the table and the plot of the results that exist",
    )


def _ablation(options: argparse.Namespace, fields: Sequence[str]) -> None:
    from ..experiments.ablation import read_ablation, write_report

    ablation = read_ablation(options.definition)
    results, known = options.results or options.definition.parent / "results", None
    if not options.report:
        from ..experiments.run_ablation import Place, do_ablation, plan_ablation

        if options.data is None:
            raise RecipeError(
                "--data is missing. Give --data to train the variants, or --report for the table of the results that "
                "exist."
            )
        if options.jobs < 1:
            raise RecipeError(f"--jobs {options.jobs} is invalid. It must be at least 1.")
        place = Place(options.data, options.teacher, results, options.work, options.jobs)
        plan = plan_ablation(ablation, place, options.seeds)
        known = plan.files
        _print_now(
            f"{len(plan.runs)} runs to do, {plan.finished} finished, {len(plan.caches)} teacher caches to build or "
            f"check; logs: {options.work / 'logs'}"
        )
        if plan.runs:
            do_ablation(plan, place, _print_now)
    table, files = write_report(ablation, results, options.definition.stem, known)
    print(f"\n{ablation.title}\n\n{table}\nWritten to {results}: {', '.join(files)}")


def _print_now(line: str) -> None:
    print(line, flush=True)
