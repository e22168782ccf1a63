"""Long tasks in processes of their own.

A task that fails leaves the others alone. What a task prints and logs goes to its log file. A worker process ends when the
process that started it ends, in whatever way, so that the same command can be started again at once. Which tasks there are is
decided in run_ablation.py and sweep.py.
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

_LOCK_FILE = ".lock"


@dataclass(frozen=True, eq=False)
class Task:
    """A call in another process.

    Args:
        name: Its unique name in messages.
        function: A function at the top level of a module.
        arguments: Its arguments, which can be pickled.
        log: File to which its output is appended.
        after: Name of a task that must succeed first; None if there is none.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path
    after: str | None = None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if need be. The lock of a killed process does not remain.

    Raises:
        UserError: Another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"Another process works in {folder}: wait until it has ended, or give another folder."
        ) from error


def use_share_of_cores(jobs: int) -> None:
    """Use only this process' share of the cores, if `jobs` processes run at a time."""
    import torch

    torch.set_num_threads(min(max(1, (os.cpu_count() or 1) // jobs), torch.get_num_threads()))


def time_left(seconds: Sequence[float], left: int, jobs: int) -> str:
    """Describe how long `left` tasks will take if they are like those that took `seconds`; "" if it is unknown."""
    if not seconds or left <= 0:
        return ""
    rest = sum(seconds) / len(seconds) * left / min(jobs, left)
    return f", about {rest / 60:.0f} min left" if rest >= 90 else f", about {rest:.0f} s left"


def log_to(file: Path) -> None:
    """Append all output of this process to a file: the descriptors, so that progress bars and C code are included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def run_tasks(
    tasks: Sequence[Task], jobs: int, ended: Callable[[Task, Any], None], watch: Callable[[], None] | None = None
) -> None:
    """Run tasks in their order, as far as `after` allows.

    Args:
        tasks: The tasks.
        jobs: Number of processes.
        ended: Called for each task that has ended, with its result or its exception.
        watch: Called about once a second while tasks run.

    Raises:
        UserError: Tasks failed for reasons that a user can fix, or a process was killed; the other tasks have ended.
        RuntimeError: A task failed for another reason, which is the cause of this error; the other tasks have ended.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        failed = _run_all(pool, tasks, jobs, ended, watch)
    except BaseException:
        # After Ctrl-C, or an error in `ended`, nobody waits for the trainings that still run.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for task, error in failed.items():
        if not isinstance(error, UserError | OSError):
            raise RuntimeError(f"{task.name} failed; its log: {task.log}") from error
    if failed:
        lines = "\n".join(f"{task.name}: {error} (log: {task.log})" for task, error in failed.items())
        raise UserError(f"{len(failed)} failed, the results of the others are kept:\n{lines}")


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
        waiting = [task for task in waiting if task.after not in lost]  # the error of the task before is enough
        ready = [task for task in waiting if task.after not in names or task.after in done]
        # No more than can begin: a task in the pool's own queue cannot be cancelled.
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
                    f"A process was killed from outside while it ran {task.name}, or beside it, usually because there was too little "
                    f"memory. Use fewer jobs or smaller batches; the same command resumes (log: {task.log})."
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
    """Leave Ctrl-C to the parent process, end with it, and log to stderr."""
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
