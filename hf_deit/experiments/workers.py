"""Long tasks in processes of their own, some at a time: what fails leaves the others alone, and nobody works on unseen.

What a task prints and logs goes to its log file. A worker ends when the process that started it does, however that ended, so
that the same command given again finds nobody at its files. Which tasks there are is the business of run_ablation.py and
sweep.py.
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
        name: What it is called in messages; no two have one name.
        function: At the top of a module.
        arguments: Plain enough to be sent there.
        log: File that what it prints and logs is added to.
        after: Name of the task that must have ended well before; None: none.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path
    after: str | None = None


@contextlib.contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder; a process that was killed keeps nobody out.

    Args:
        folder: It; made if it is not there.
        wait: Whether to wait for another process to leave it.

    Raises:
        UserError: Another process is in it, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise UserError(f"Another process works in {folder}: wait for it, or give another folder.") from error
    try:
        yield
    finally:
        lock.release()


def threads_for(jobs: int) -> int:
    """The threads of each of so many processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def time_left(seconds: Sequence[float], left: int, jobs: int) -> str:
    """Says how long the tasks that are left will take, if they are like those that took `seconds`; "" if there are none."""
    if not seconds or not left:
        return ""
    rest = sum(seconds) / len(seconds) * left / min(jobs, left)
    return f", about {rest / 60:.0f} min left" if rest >= 90 else f", about {rest:.0f} s left"


def run_tasks(tasks: Sequence[Task], jobs: int, ended: Callable[[Task, Any], None]) -> None:
    """Does tasks, in their order as far as `after` allows.

    Args:
        tasks: To be done.
        jobs: At a time; they share the cores.
        ended: Gets each task that ended well with its result, and each that failed with its exception.

    Raises:
        UserError: Some failed by errors that a user can mend, or a process was killed from outside; the others have ended.
        RuntimeError: One failed by any other error, which is its cause; likewise.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(jobs,))
    try:
        failed = _run_all(pool, tasks, jobs, ended)
    except BaseException:
        # Ctrl-C, or what `ended` raised: a training under way would otherwise be waited for.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    _raise_failures(failed)


def _run_all(
    pool: ProcessPoolExecutor, tasks: Sequence[Task], jobs: int, ended: Callable[[Task, Any], None]
) -> dict[Task, Exception]:
    waiting, running = list(tasks), dict[Future, Task]()
    names, done, failed = {task.name for task in tasks}, set[str](), dict[Task, Exception]()
    while waiting or running:
        lost = {task.name for task in failed}
        waiting = [task for task in waiting if task.after not in lost]  # the message is that of what they needed
        ready = [task for task in waiting if task.after not in names or task.after in done]
        # No more than can begin: what stands in the pool's own queue cannot be called off.
        for task in ready[: jobs - len(running)]:
            waiting.remove(task)
            running[pool.submit(_call, task)] = task
        if not running:
            break
        for future in wait_for(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"A process was killed from outside while it was at {task.name}, or beside it: usually there was too little memory. "
                    f"Use fewer jobs or smaller batches; the same command goes on (its log: {task.log})."
                ) from error
            except Exception as error:
                failed[task] = result = error
            else:
                done.add(task.name)
            ended(task, result)
    return failed


def _raise_failures(failed: dict[Task, Exception]) -> None:
    for task, error in failed.items():
        if not isinstance(error, UserError | OSError):
            raise RuntimeError(f"{task.name} failed; its log: {task.log}") from error
    if failed:
        lines = "\n".join(f"{task.name}: {error} (log: {task.log})" for task, error in failed.items())
        raise UserError(f"{len(failed)} failed, what ended well is kept:\n{lines}")


def _begin_worker(jobs: int) -> None:
    """Ends with the parent, leaves Ctrl-C to it, and takes its share of the cores, or fewer by OMP_NUM_THREADS."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(min(threads_for(jobs), torch.get_num_threads()))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(task: Task) -> Any:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):  # the descriptors, so that progress bars and C code follow
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        return task.function(*task.arguments)
    except Exception:
        logging.getLogger(__name__).exception("%s failed:", task.name)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
