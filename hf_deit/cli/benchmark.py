"""The command `hf-deit benchmark`."""

import argparse
from collections.abc import Sequence
from typing import Any

from .common import add_data_of_run

_DESCRIPTION = """\
Time models side by side: images per second, latency, parameters, GFLOPs, peak memory, and with --data their accuracy.

  hf-deit benchmark MODEL… --data DATA --out DIR   trained models: speed and accuracy measured here
  hf-deit benchmark --published --out DIR          architectures of the paper: speed measured here, accuracy the paper's

DIR gets benchmark.md, benchmark.json, and the figure as benchmark.png and benchmark.svg. A configuration that cannot be run has a
row that states the reason."""


def _add_benchmark(commands: Any) -> None:
    benchmark = commands.add_parser(
        "benchmark",
        help="accuracy against throughput: models timed side by side, also the published architectures",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = benchmark.add_argument
    models = add("models", metavar="MODEL", nargs="+", help="folders or Hub names of image classifiers")
    models.required = False  # with "*", argparse accepts no models after an option
    models.default = []
    add("--out", required=True, metavar="DIR", help="new or empty folder for the results")
    add(
        "--published",
        nargs="*",
        metavar="SIZE",
        help="also time architectures of the paper, plain and distilled, with random weights: tiny, small, base and base_384 "
        "(without sizes: tiny small base). Give models before this option",
    )
    add("--batch_sizes", nargs="+", type=int, metavar="N", help="images per batch (default: 1 32)")
    add("--dtypes", nargs="+", metavar="DTYPE", help="float32, bfloat16, float16, one or several (default: float32)")
    add(
        "--backends",
        nargs="+",
        metavar="BACKEND",
        help="eager (PyTorch), compiled (torch.compile), onnx (onnxruntime), one or several; the figure shows the first (default: all)",
    )
    add("--rounds", type=int, help="rounds; every configuration takes its turn in each (default: 7)")
    add("--threads", type=int, help="threads on the CPU (default: as PyTorch chooses)")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add(
        "--no_memory",
        action="store_true",
        help="do not measure peak memory, which starts a process per model and backend on a CPU",
    )
    add("--data", help="data for the accuracy, as for evaluate")
    add("--split", help="split of --data, as for evaluate")
    add_data_of_run(benchmark)


def _benchmark(options: argparse.Namespace, fields: list[str]) -> None:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from ..inspection.benchmark import Benchmark, BenchmarkSettings
    from ..inspection.benchmark_files import check_out, write_benchmark
    from ..inspection.benchmark_models import DEFAULT_PUBLISHED
    from ..recipes.data import columns_of, selection_of
    from .console import messages

    target = check_out(options.out)
    names = ("batch_sizes", "dtypes", "backends", "rounds", "threads", "device", "data", "split", "class_names")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.published is not None:
        given["published"] = options.published or DEFAULT_PUBLISHED
    settings = BenchmarkSettings(
        models=options.models,
        memory=not options.no_memory,
        columns=columns_of(options),
        selection=selection_of(options),
        **given,
    )
    with messages(options.quiet) as console:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TaskProgressColumn(), TimeElapsedColumn())
        hidden = options.quiet or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=None)

            def show(done: int, steps: int, text: str) -> None:
                progress.update(task, completed=done, total=steps, description=text)

            result = Benchmark(settings, show).run()
    _print(result)  # first, so that a full disk does not cost the numbers
    write_benchmark(target, result)
    print(f"Written to {options.out}: benchmark.md, benchmark.json, benchmark.png, benchmark.svg")


def _print(result: Any) -> None:
    from ..inspection import benchmark_files as files

    for title, models in ((files.SAVED_TITLE, result.saved), (files.PUBLISHED_TITLE, result.published)):
        if models:
            head = (*files.MODEL_HEAD, files.accuracy_head(models))
            _print_table(title, head, [files.model_cells(model) for model in models], left=2)
    _print_table("Speed", files.ROW_HEAD, [files.row_cells(row) for row in result.rows], left=3)
    if result.token_costs:
        rows = [files.cost_cells(cost) for cost in result.token_costs]
        _print_table("What the distillation token costs", files.COST_HEAD, rows, left=4)
    for line in files.problem_lines(result):
        print(line)


def _print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Print a table to standard output; a pipe gets plain text, with one line per row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 240
    console.print(table)
