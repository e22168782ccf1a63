"""Tasks in worker processes: a failure does not affect the other tasks, and no worker outlives its parent."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_deit.errors import UserError
from hf_deit.experiments.workers import Task, alone_in, rest_of_tasks, run_tasks, use_share_of_cores
from tests.helpers import environment
from tests.helpers.worker_tasks import fail, give, kill_oneself, refuse

ROOT = Path(__file__).resolve().parents[2]
# A program that works in a folder (`alone_in`) until it is killed.
HOLDER = "import sys, time, pathlib, hf_deit.experiments.workers as w\nwith w.alone_in(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
# A program whose worker writes its process id and sleeps for a minute.
PARENT = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background passes on an ignored signal
import sys, pathlib, tests.helpers.worker_tasks as here, hf_deit.experiments.workers as w
if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    w.run_tasks([w.Task("a", here.sleep, (folder / "pid",), folder / "log")], 1, print)
"""


def is_alive(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_failed_task_is_reported_and_the_other_tasks_finish(tmp_path, capfd):
    log = tmp_path / "logs" / "log"
    tasks = [
        Task("bad", refuse, ("this cannot be",), log),
        Task("behind bad", give, (0,), log, after="bad"),
        Task("good", give, (1,), log),
        Task("behind good", give, (2,), log, after="good"),
    ]
    seen, watched = [], []
    with pytest.raises(UserError) as refused:
        run_tasks(tasks, 1, lambda task, result: seen.append((task.name, result)), lambda: watched.append(len(seen)))
    assert watched[-1] == 3
    assert [(name, str(result)) for name, result in seen] == [
        ("bad", "this cannot be"),
        ("good", "1"),
        ("behind good", "2"),
    ]
    message = str(refused.value)
    assert "1 failed" in message and "bad: this cannot be" in message and str(log) in message
    text = log.read_text()
    assert "printed 1" in text and "printed by another program" in text and "DataError: this cannot be" in text
    assert capfd.readouterr() == ("", "")  # the output of tasks goes only to their logs


@pytest.fixture
def whole_machine():
    """Restore the number of threads of this process after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_process_uses_its_share_of_the_cores(whole_machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    torch.set_num_threads(16)
    use_share_of_cores(3)
    assert torch.get_num_threads() == 2
    use_share_of_cores(16)
    assert torch.get_num_threads() == 1
    use_share_of_cores(2)  # OMP_NUM_THREADS may allow fewer
    assert torch.get_num_threads() == 1


def test_a_bug_and_a_killed_process_raise_errors_that_name_the_task(tmp_path):
    with pytest.raises(RuntimeError, match="one failed") as raised:
        run_tasks([Task("one", fail, (), tmp_path / "log")], 1, lambda *unused: None)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserError, match="two"):
        run_tasks([Task("two", kill_oneself, (), tmp_path / "log")], 1, lambda *unused: None)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_worker_ends_with_the_process_that_started_it(tmp_path, sign):
    program = tmp_path / "program.py"
    program.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, program, tmp_path], env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    wait_until((tmp_path / "pid").exists)
    wait_until(lambda: (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert is_alive(worker)
    parent.send_signal(sign)  # to this one process, not to its group
    assert parent.wait(timeout=20) != 0
    wait_until(lambda: not is_alive(worker), seconds=20)


def test_only_one_process_works_in_a_folder_and_the_lock_of_a_killed_process_is_released(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=re.escape(str(tmp_path))), alone_in(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with alone_in(tmp_path):
        pass


def test_the_time_left_is_estimated_from_the_finished_tasks():
    assert rest_of_tasks([10.0, 20.0], 4, 2) == ", about 30 s left"
    assert rest_of_tasks([600.0], 3, 2) == ", about 15 min left"
    assert rest_of_tasks([3600.0], 3, 1) == ", about 3 h 00 min left"
    assert rest_of_tasks([10.0], 1, 8) == ", about 10 s left"  # one task uses only one of the eight processes
    assert rest_of_tasks([], 3, 1) == rest_of_tasks([5.0], 0, 1) == ""
