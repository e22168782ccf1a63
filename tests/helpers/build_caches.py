"""Script that builds a tiny cache many times in child processes, which are killed at different moments.

Usage: `python build_caches.py FOLDER RESULTS.json MOMENT…`. A moment is a number N: the child process is killed with
SIGKILL at the Nth call that writes to the disk (write, fsync, replace, unlink, fallocate) or runs the teacher. After
each kill, another child process completes the cache. For each moment, the results contain the exit status, the total
number of images that the teacher has seen, and the SHA-256 of all files at the end. The entry "whole" is a build that
is not killed.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from hf_deit.distillation import cache_writer
from tests.helpers.caches import build, tiny_teacher, tiny_views
from tests.helpers.tiny import conv_teacher

PART_RECORDS = 16
OPTIONS = {"epochs": 2, "part_records": PART_RECORDS}


class Moments:
    """Counter of calls that kills the process at a chosen call."""

    def __init__(self, moment):
        self.moment, self.count = moment, 0

    def pass_by(self):
        self.count += 1
        if self.count == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)


class RecordingTeacher(torch.nn.Module):
    """Teacher that appends the number of images of each batch to a file, which remains when the process is killed."""

    def __init__(self, moments, record):
        super().__init__()
        self.network, self.moments, self.record = conv_teacher(), moments, record

    def forward(self, pixels):
        self.moments.pass_by()
        with self.record.open("a") as file:
            file.write(f"{len(pixels)}\n")
        return self.network(pixels)


def watch(moments):
    """Count every call that writes to the disk, once before and once after the call."""
    for name in ("fsync", "replace", "unlink", "posix_fallocate"):
        original = getattr(os, name)

        def passing(*arguments, original=original, **options):
            moments.pass_by()
            result = original(*arguments, **options)
            moments.pass_by()
            return result

        setattr(os, name, passing)
    write = cache_writer._write_entries

    def interrupted(path, start, places, entries):
        write(path, start, places[: len(places) // 2], entries[: len(places) // 2])
        moments.pass_by()
        write(path, start, places, entries)

    cache_writer._write_entries = interrupted


def child(folder, record, moment):
    moments = Moments(moment)
    watch(moments)
    teacher = tiny_teacher(network=RecordingTeacher(moments, record))
    build(folder, "dense", teacher=teacher, views=tiny_views(), **OPTIONS)
    record.with_suffix(".count").write_text(str(moments.count))
    os._exit(0)


def run(folder, record, moment):
    pid = os.fork()
    if pid == 0:
        try:
            child(folder, record, moment)
        finally:
            os._exit(3)  # reached only if the build raised an error
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files_of(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(folder, results_file, *moments):
    folder = Path(folder)
    record = folder / "asked"
    results = {}
    for moment in [0, *map(int, moments)]:
        cache = folder / f"cache-{moment}"
        record.write_text("")
        statuses = [run(cache, record, moment)] if moment == 0 else [run(cache, record, moment), run(cache, record, 0)]
        results[moment or "whole"] = {
            "statuses": statuses,
            "asked": sum(map(int, record.read_text().split())),
            "count": int(record.with_suffix(".count").read_text()),
            "files": files_of(cache),
        }
        shutil.rmtree(cache)
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
