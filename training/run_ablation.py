"""Runs an ablation: named variants × seeds of a recipe, from teacher caches, resumable; one Markdown table and a plot.

python training/run_ablation.py training/ablations/table3.yaml --data ../shared/data/clothing10 --teacher teacher --jobs 2
python training/run_ablation.py training/ablations/table3.yaml --report      # the table again, from the results that are there
"""

import argparse
import importlib.util
import logging
import statistics
import sys
from pathlib import Path

from hf_deit.errors import RecipeError, UserError, own_message
from hf_deit.experiments.ablation import Ablation, figures, markdown, read_ablation, read_results
from hf_deit.experiments.run_ablation import Place, do_ablation, plan_ablation
from hf_deit.files import check_folder, staged_files


def plot(ablation: Ablation, results: dict, path: Path) -> None:
    """One bar a row with a dot a seed; rows without a figure are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # A dollar sign would begin a formula.
    rows = [
        (row.title.replace("$", r"\$"), shown.values)
        for row, shown in zip(ablation.rows, figures(ablation, results), strict=True)
    ]
    rows = [(title, list(values.values())) for title, values in rows if values]
    figure, axes = pyplot.subplots(figsize=(7.5, 0.42 * len(rows) + 1.2))
    axes.barh([title for title, _ in rows], [statistics.fmean(values) for _, values in rows], color="#88aacc")
    for height, (_, values) in enumerate(rows):
        axes.plot(values, [height] * len(values), "o", color="#223355", markersize=4)
    lowest = min(min(values) for _, values in rows)
    axes.set_xlim(left=max(0.0, lowest - 5))
    axes.invert_yaxis()
    axes.set_xlabel("top-1 on the validation images, % (bar: mean, dot: a seed)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(ablation: Ablation, results_folder: Path, name: str) -> None:
    """Writes table and plot beside the results, and prints the table."""
    check_folder(results_folder, RecipeError)
    results = read_results(results_folder, ablation)
    if not results:
        raise RecipeError(f"{results_folder} holds no result of {ablation.title!r}: run it first (--data, --teacher).")
    table = markdown(ablation, results)
    files = [f"{name}.md"]
    with staged_files(results_folder) as folder:
        (folder / files[0]).write_text(table, encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is not None and any(row.values for row in figures(ablation, results)):
            files.append(f"{name}.png")
            plot(ablation, results, folder / files[1])
    print(f"\n{ablation.title}\n\n{table}\nWritten to {results_folder}: {', '.join(files)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("definition", type=Path, help="YAML of variants, see training/ablations/")
    parser.add_argument("--data", help="as for hf-deit train")
    parser.add_argument("--teacher", help="likewise; its answers are stored once and shared by the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the results, a small JSON a run (default: results/ beside the definition)",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("ablation_work"), help="caches, unfinished runs, logs (default: %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="run nothing: table and plot of what is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    results = options.results or options.definition.parent / "results"
    try:
        ablation = read_ablation(options.definition)
        if not options.report:
            if options.data is None:
                parser.error("--data is needed to run something; --report makes the table of what is there")
            if options.jobs < 1:
                parser.error(f"--jobs {options.jobs}: at least 1")
            place = Place(options.data, options.teacher, results, options.work, options.jobs)
            plan = plan_ablation(ablation, place)
            print(
                f"{len(plan.runs)} runs to do, {plan.finished} finished, {len(plan.caches)} caches to look after; "
                f"what they print: {options.work / 'logs'}",
                flush=True,
            )
            if plan.runs:
                do_ablation(plan, place, lambda line: print(line, flush=True))
        report(ablation, results, options.definition.stem)
    except UserError as error:
        print(f"run_ablation: {own_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
