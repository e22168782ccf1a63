"""Two builders of one file: real processes, of which one waits its turn or is refused."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from hf_deit.distillation.cache_writer import CacheWriter, _make_folder, held
from hf_deit.errors import TeacherCacheError

NAME = "epoch-00000"
BATCHES = [list(range(start, start + 4)) for start in range(0, 40, 4)]
MANIFEST = {
    "format": "hf_deit teacher cache",
    "version": 1,
    "teacher": {"fingerprint": "f"},
    "layout": {"kind": "hard", "num_labels": 1000},
    "views": {"records": 40},
    "validation": None,
}
# What holds a lock as this package does, without it.
HOLDER = (
    "import fcntl, os, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
    "print(os.getpid(), file=file, flush=True); print('held', flush=True); time.sleep(60)"
)


def ask(batches, wait=None):
    for batch in batches:
        if wait is not None:
            wait()
        yield np.asarray(batch, dtype="<u2") + 500


def writer_of(folder):
    return CacheWriter(folder, MANIFEST, part_records=8)


@contextlib.contextmanager
def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def assert_whole(folder):
    assert np.load(folder / f"{NAME}.npy").tolist() == list(range(500, 540))
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}.json", f"{NAME}.npy", "manifest.json"]


def test_a_second_builder_of_an_epoch_is_refused_with_the_firsts_pid_and_harms_nothing(tmp_path):
    folder = tmp_path / "cache"
    writer = writer_of(folder)
    pid = os.fork()
    if pid == 0:  # NumPy only: nothing of torch runs in the copy
        try:
            writer.fill(NAME, BATCHES, lambda batches: ask(batches, lambda: time.sleep(0.1)))
            os._exit(0)
        finally:
            os._exit(3)
    deadline = time.monotonic() + 10
    while not list(folder.glob("incomplete/*/*.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(TeacherCacheError, match=rf"process {pid} is writing {NAME} of .*cache now"):
        writer_of(folder).fill(NAME, BATCHES, ask)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_whole(folder)


def test_after_a_kill_the_lock_means_nothing_and_is_gone_in_the_end(tmp_path):
    folder = tmp_path / "cache"
    writer = writer_of(folder)
    with holder(folder / f"_incomplete-{NAME}.lock") as process:
        with pytest.raises(TeacherCacheError, match=f"process {process.pid} is writing"):
            writer.fill(NAME, BATCHES, ask)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (folder / f"_incomplete-{NAME}.lock").exists()
        assert writer.fill(NAME, BATCHES, ask) == 40
    assert_whole(folder)


def test_a_dead_builders_lock_that_its_workers_still_hold_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as process:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        path.write_text(f"{gone.pid}\n")
        timer = threading.Timer(0.5, process.kill)
        timer.start()
        with held(path, NAME):
            assert path.read_text() == f"{os.getpid()}\n"
        timer.join()
    assert not path.exists()


def test_who_begins_at_once_finds_the_manifest_of_the_first_and_notes_are_joined(tmp_path):
    one, two = writer_of(tmp_path / "cache"), writer_of(tmp_path / "cache")
    one.add_to_manifest(teacher_accuracy=0.5)
    two.add_to_manifest(other=1)
    assert (two.manifest["teacher_accuracy"], two.manifest["other"]) == (0.5, 1)


def test_a_folder_is_made_while_another_process_removes_the_empty_one_around_it(tmp_path):
    around, stop = tmp_path / "incomplete", threading.Event()

    def remove():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                around.rmdir()
            stop.wait(
                0.0002
            )  # else it takes the interpreter from the other thread just when there is a folder to remove

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for number in range(500):
            _make_folder(around / f"part-{number}")
            (around / f"part-{number}").rmdir()
    finally:
        stop.set()
        thread.join()
