"""Tests of locks: two processes that build the same file, and systems without `fcntl`."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest

from hf_deit.distillation import cache_writer
from hf_deit.distillation.cache_writer import CacheWriter
from hf_deit.errors import TeacherCacheError
from tests.helpers.processes import run_python

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
# Holds a lock of the operating system, without filelock.
HOLDER = (
    "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
    "print('held', flush=True); time.sleep(60)"
)
# Builds a cache in a process that cannot import `fcntl`, and kills itself after the third part if "kill" is an
# argument.
WITHOUT_FCNTL = """
import os, signal, sys
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
    del sys.modules[name]  # to be imported again
sys.modules["fcntl"] = None
import warnings
warnings.simplefilter("ignore")  # filelock warns of the missing module
import filelock
assert filelock.FileLock is filelock.SoftFileLock
from tests.distillation.test_cache_locks import BATCHES, NAME, outputs_of, writer_of

def interrupted(batches):
    for number, records in enumerate(outputs_of(batches)):
        if number == 6 and "kill" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        yield records

print(writer_of(sys.argv[1]).fill(NAME, BATCHES, interrupted))
"""


@pytest.fixture(autouse=True)
def short_lock_timeout(monkeypatch):
    monkeypatch.setattr(cache_writer, "LOCK_TIMEOUT_SECONDS", 0.3)


def outputs_of(batches, wait=None):
    for batch in batches:
        if wait is not None:
            wait()
        yield {"outputs": np.asarray(batch, dtype="<u2") + 500}


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


def assert_complete(folder):
    assert np.load(folder / f"{NAME}.npy").tolist() == list(range(500, 540))
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}.json", f"{NAME}.npy", "manifest.json"]


def test_a_second_builder_of_an_epoch_is_refused_and_changes_nothing(tmp_path):
    folder = tmp_path / "cache"
    writer = writer_of(folder)
    pid = os.fork()
    if pid == 0:  # the forked child uses only NumPy, not torch
        try:
            writer.fill(NAME, BATCHES, lambda batches: outputs_of(batches, lambda: time.sleep(0.2)))
            os._exit(0)
        finally:
            os._exit(3)
    deadline = time.monotonic() + 10
    while not list(folder.glob("*.progress.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(TeacherCacheError, match=rf"{NAME} of .*cache"):
        writer_of(folder).fill(NAME, BATCHES, outputs_of)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_complete(folder)


def test_the_lock_of_a_killed_builder_does_not_block_and_is_removed(tmp_path):
    folder = tmp_path / "cache"
    writer = writer_of(folder)
    with holder(folder / f"_incomplete-{NAME}.lock") as process:
        with pytest.raises(TeacherCacheError, match=rf"{NAME} of .*cache"):
            writer.fill(NAME, BATCHES, outputs_of)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (folder / f"_incomplete-{NAME}.lock").exists()
        assert writer.fill(NAME, BATCHES, outputs_of) == 40
    assert_complete(folder)


def test_a_builder_waits_for_a_lock_that_workers_of_a_killed_build_still_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "LOCK_TIMEOUT_SECONDS", 20.0)
    folder = tmp_path / "cache"
    writer = writer_of(folder)
    with holder(folder / f"_incomplete-{NAME}.lock") as process:
        timer = threading.Timer(0.5, process.kill)
        timer.start()
        assert writer.fill(NAME, BATCHES, outputs_of) == 40
        timer.join()
    assert_complete(folder)


def test_two_writers_share_the_manifest_and_both_add_facts_to_it(tmp_path):
    one, two = writer_of(tmp_path / "cache"), writer_of(tmp_path / "cache")
    one.add_to_manifest(teacher_accuracy=0.5)
    two.add_to_manifest(other=1)
    assert (two.manifest["teacher_accuracy"], two.manifest["other"]) == (0.5, 1)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["manifest.json"]


def test_without_fcntl_a_killed_build_resumes_to_the_same_bytes(tmp_path):
    def run(folder, *words):
        return run_python(WITHOUT_FCNTL, folder, *words)

    killed = run(tmp_path / "cache", "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run(tmp_path / "cache")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == ["16"]  # 24 of the 40 records were already stored
    assert_complete(tmp_path / "cache")


def test_without_fcntl_a_second_builder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    writer = writer_of(tmp_path / "cache")
    path = tmp_path / "cache" / f"_incomplete-{NAME}.lock"
    command = "import filelock, sys, time; lock = filelock.SoftFileLock(sys.argv[1]); lock.acquire(); print('held', flush=True)"
    command += "; time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", command, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TeacherCacheError, match=rf"{NAME} of .*cache"):
            writer.fill(NAME, BATCHES, outputs_of)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_soft_file_lock_is_used_on_a_file_system_without_locks(tmp_path, monkeypatch):
    class Refusing(filelock.FileLock):
        def acquire(self, *arguments, **options):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock, "FileLock", Refusing)
    assert writer_of(tmp_path / "cache").fill(NAME, BATCHES, outputs_of) == 40
    assert_complete(tmp_path / "cache")
