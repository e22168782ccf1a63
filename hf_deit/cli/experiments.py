"""Commands that run many trainings."""

import argparse
from pathlib import Path
from typing import Any

from .common import _add_recipe_options, _recipe_file


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


def _sweep(options: argparse.Namespace, fields: list[str]) -> None:
    from ..experiments.sweep import plan_sweep, run_sweep
    from ..recipes.recipe import read_fields

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
