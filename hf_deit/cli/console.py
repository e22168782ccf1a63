"""What a person reads while a command runs: messages, a progress bar, and one line per evaluation.

On a terminal there is one progress bar, and messages are printed above it. In a pipe or a file there is no bar: a line
states the time from time to time. Everything here goes to standard error; results go to standard output. The
dictionaries of figures that the Trainer logs go to the trackers (`--report_to`) and to the log file of the run.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging as transformers_logging

from ..recipes.durations import duration, time_left

# Messages of transformers that concern nobody.
_NOISE = ("mtime may not be reliable",)
# Metrics of the line of an evaluation and their short titles, in order.
_EVALUATION = {
    "accuracy": "top-1",
    "cls_accuracy": "class head",
    "distillation_accuracy": "distillation head",
    "mean_average_precision": "mAP",
    "cls_mean_average_precision": "class head",
    "distillation_mean_average_precision": "distillation head",
    "teacher_accuracy": "teacher",
    "teacher_mean_average_precision": "teacher",
    "teacher_agreement": "agreement",
}
# Loss terms in the progress bar and their short titles, in order. A narrow terminal has no room for them.
_TERMS = {"cls_loss": "labels", "distillation_loss": "teacher", "guidance_loss": "patches"}
# A first estimate of the time needs this many steps and seconds.
_ESTIMATE_STEPS, _ESTIMATE_SECONDS = 10, 3.0
_SECONDS_BETWEEN_LINES = 15.0


class _WithoutNoise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in _NOISE)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self.console.print(self.format(record), style=style, markup=False, emoji=False)


@contextlib.contextmanager
def messages(quiet: bool = False) -> Iterator[Console]:
    """Print log messages through a console, so that they never cut through its progress bar.

    The progress bars of transformers for loading and saving weights are switched off meanwhile.

    Args:
        quiet: Print warnings and errors only.

    Yields:
        The console.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    handler = _ConsoleHandler(console)
    handler.addFilter(_WithoutNoise())
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    root = logging.getLogger()
    replaced = [other for other in root.handlers if getattr(other, "stream", None) is sys.stderr]
    for other in replaced:
        root.removeHandler(other)
    root.addHandler(handler)
    level = root.level
    root.setLevel(min(level, handler.level))
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield console
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for other in replaced:
            root.addHandler(other)
        transformers_logging.disable_propagation()
        transformers_logging.enable_default_handler()
        if shows_bars:
            transformers_logging.enable_progress_bar()


class TrainingConsole(TrainerCallback):
    """Callback that shows the progress of a training, in place of the Trainer's progress bar and dictionaries.

    Args:
        console: Console of the command.
        quiet: Show nothing.
        title: Title of the progress bar.
    """

    def __init__(self, console: Console, quiet: bool = False, title: str = "training"):
        self.console, self.quiet, self.title = console, quiet, title
        self.progress: Progress | None = None
        self._started, self._first_step, self._images, self._best = 0.0, 0, 0, None
        self._trained, self._last_line = False, 0.0

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to a trainer, in place of those that print."""
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        trainer.add_callback(self)

    def __enter__(self) -> "TrainingConsole":
        return self

    def __exit__(self, *unused: Any) -> None:
        """Remove the bar, also after an error."""
        self.close()

    # ---- what the Trainer calls ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress bar."""
        if self.quiet or not state.is_world_process_zero:
            return
        self._started, self._first_step = time.monotonic(), state.global_step
        self._images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if args.disable_tqdm or not self.console.is_terminal:
            return
        self.progress = self._bar(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, or print a line from time to time."""
        if not self._started:
            return
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=state.global_step)
            return
        now, done = time.monotonic(), state.global_step - self._first_step
        # The first line estimates the time. Then a line appears after each tenth of the expected time.
        pause = max(_SECONDS_BETWEEN_LINES, 0.1 * (now - self._started + self._left(state)))
        first = not self._last_line and done >= _ESTIMATE_STEPS and now - self._started >= _ESTIMATE_SECONDS
        if (first or (self._last_line and now - self._last_line >= pause)) and state.global_step < state.max_steps:
            self._last_line = now
            left = time_left(self._left(state))
            self._say(f"step {state.global_step:,} of {state.max_steps:,}, {self._rate(state)}, {left}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the latest losses beside the bar."""
        if self.progress is None or not logs or "loss" not in logs:
            return
        figures = [f"loss {logs['loss']:.3g}"]
        if "teacher_agreement" in logs:
            figures.append(f"agreement {100 * logs['teacher_agreement']:.0f} %")
        figures.append(self._rate(state))
        terms = [f"{title} {logs[name]:.3g}" for name, title in _TERMS.items() if name in logs]
        figures += terms if len(terms) > 1 else []
        self.progress.update(self.progress.task_ids[0], figures=" · ".join(figures))

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show that an evaluation runs."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], description="evaluating")
        elif self._shows_evaluation(args) and eval_dataloader is not None:
            self.progress = self._bar("evaluating", total=len(eval_dataloader), completed=0)
        if self.progress is not None and not self._started:
            self.progress.advance(self.progress.task_ids[0])

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Print one line."""
        if self.progress is not None and not self._started:
            self.close()
        elif self.progress is not None:
            self.progress.update(self.progress.task_ids[0], description=self.title)
        if self._started and not self._trained and metrics:
            self._say(self._evaluation_line(state, metrics))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar, and print how long the training took."""
        if not self._started:
            return
        self.close()
        self._trained = True
        seconds = time.monotonic() - self._started
        self._say(f"trained {state.global_step - self._first_step:,} steps in {duration(seconds)}, {self._rate(state)}")

    def _bar(self, title: str, total: int, completed: int) -> Progress:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
            transient=True,
        )
        progress.add_task(title, total=total, completed=completed, figures="")
        progress.start()
        return progress

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _shows_evaluation(self, args: Any) -> bool:
        return not (self._started or self.quiet or args.disable_tqdm) and self.console.is_terminal

    # ---- texts ----

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _per_step(self, state: Any) -> float:
        return (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)

    def _rate(self, state: Any) -> str:
        return f"{self._images / max(1e-9, self._per_step(state)):,.0f} images/s"

    def _left(self, state: Any) -> float:
        return self._per_step(state) * (state.max_steps - state.global_step)

    def _evaluation_line(self, state: Any, metrics: Mapping[str, Any]) -> str:
        figures = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        parts = [
            f"{title} {100 * figures[name]:.1f} %"
            for name, title in _EVALUATION.items()
            if isinstance(figures.get(name), float)
        ]
        parts += [f"loss {figures['loss']:.3f}"] if "loss" in figures else []
        measure = next((name for name in ("accuracy", "mean_average_precision") if name in figures), None)
        if measure is not None and (self._best is None or figures[measure] > self._best):
            if self._best is not None:
                parts.append("best so far")
            self._best = figures[measure]
        return f"epoch {state.epoch or 0:.4g}: " + ", ".join(parts)
