"""Worker processes that run long tasks.

A task that fails does not affect the others. The output of a task goes to its log file. A worker process ends as soon
as the process that started it ends, even if that one is killed, so that the same command can be started again at once.
experiments/run_ablation.py and experiments/sweep.py define the tasks.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..recipes.durations import time_left

_LOCK_FILE = ".lock"


@dataclass(frozen=True, eq=False)
class Task:
    """A function call in another process.

    Args:
        name: Unique name of the task, for messages.
        function: A function at the top level of a module.
        arguments: The arguments of the function, which must be picklable.
        log: File to which the output is appended.
        after: Name of a task that must succeed first; None if there is no such task.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path
    after: str | None = None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created if it is missing.

    The lock is released when the process ends, even if it is killed.

    Raises:
        UserError: Another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"Another process works in {folder}. Wait until it has ended, or give another folder."
        ) from error


def use_share_of_cores(jobs: int) -> None:
    """Limit the threads of torch to this process's share of the CPU cores when `jobs` processes run at a time."""
    import torch

    torch.set_num_threads(min(max(1, (os.cpu_count() or 1) // jobs), torch.get_num_threads()))


def rest_of_tasks(seconds: Sequence[float], left: int, jobs: int) -> str:
    """Return the end of a line that states the expected time for `left` tasks, given the `seconds` of finished ones; "" if unknown."""
    if not seconds or left <= 0:
        return ""
    return f", {time_left(sum(seconds) / len(seconds) * left / min(jobs, left))}"


def log_to(file: Path) -> None:
    """Append all output of this process to a file.

    The file descriptors are replaced, so that the output of progress bars and of C code is included.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def run_tasks(
    tasks: Sequence[Task], jobs: int, ended: Callable[[Task, Any], None], watch: Callable[[], None] | None = None
) -> None:
    """Run tasks in order, each after the task that its `after` names.

    A task whose `after` failed is not run.

    Args:
        tasks: The tasks.
        jobs: Number of processes.
        ended: Called for each task that has ended, with the task and its result or its exception.
        watch: Called about once a second while tasks run.

    Raises:
        UserError: Tasks failed for reasons that a user can fix (the other tasks have ended), or a process was killed.
        RuntimeError: A task failed for another reason, which is the cause of this error; the other tasks have ended.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        failed = _run_all(pool, tasks, jobs, ended, watch)
    except BaseException:
        # After Ctrl-C, or after an error in `ended`, the results of the running tasks are not needed.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for task, error in failed.items():
        if not isinstance(error, UserError | OSError):
            raise RuntimeError(f"{task.name} failed (log: {task.log}).") from error
    if failed:
        lines = "\n".join(f"{task.name}: {error} (log: {task.log})" for task, error in failed.items())
        raise UserError(f"{len(failed)} failed; the results of the others are kept:\n{lines}")


def _run_all(
    pool: ProcessPoolExecutor,
    tasks: Sequence[Task],
    jobs: int,
    ended: Callable[[Task, Any], None],
    watch: Callable[[], None] | None,
) -> dict[Task, Exception]:
    waiting, running = list(tasks), dict[Future, Task]()
    names, done, failed = {task.name for task in tasks}, set[str](), dict[Task, Exception]()
    while waiting or running:
        lost = {task.name for task in failed}
        # A task whose predecessor failed is dropped without a report: the error of the predecessor is reported.
        waiting = [task for task in waiting if task.after not in lost]
        ready = [task for task in waiting if task.after not in names or task.after in done]
        # Submit no more tasks than can start now: a task in the queue of the pool cannot be cancelled.
        for task in ready[: jobs - len(running)]:
            waiting.remove(task)
            running[pool.submit(_call, task)] = task
        if not running:
            break
        for future in wait_for(running, None if watch is None else 1, FIRST_COMPLETED).done:
            task = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"The process of {task.name}, or one that ran at the same time, was killed from outside, usually "
                    "because there was too little memory. Use fewer jobs or smaller batches; the same command resumes "
                    f"(log: {task.log})."
                ) from error
            except Exception as error:
                failed[task] = result = error
            else:
                done.add(task.name)
            ended(task, result)
        if watch is not None:
            watch()
    return failed


def _begin_worker() -> None:
    """Prepare a worker process: it leaves Ctrl-C to its parent, ends with its parent, and logs to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(task: Task) -> Any:
    log_to(task.log)
    try:
        return task.function(*task.arguments)
    except Exception:
        logging.getLogger(__name__).exception("%s failed:", task.name)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
