"""Builds one tiny cache many times in forked children, each killed at another call that touches the disk or the teacher.

Usage: `python build_caches.py FOLDER RESULTS.json MOMENT…`. A moment is a number: the child is killed with SIGKILL at that
many calls of write, fsync, replace, unlink, fallocate or teacher. After each kill the cache is built to its end in a further
child. The results hold for each moment the exit status, the number of images that the teacher saw in all, and the SHA-256 of
every file that is there in the end; "whole" is the build that nobody killed.
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
    """Counts calls, and kills the process at the one that was chosen."""

    def __init__(self, moment):
        self.moment, self.count = moment, 0

    def pass_by(self):
        self.count += 1
        if self.count == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)


class Asked(torch.nn.Module):
    """Writes down how many images it sees, so that the number outlives the process."""

    def __init__(self, moments, record):
        super().__init__()
        self.network, self.moments, self.record = conv_teacher(), moments, record

    def forward(self, pixels):
        self.moments.pass_by()
        with self.record.open("a") as file:
            file.write(f"{len(pixels)}\n")
        return self.network(pixels)


def watch(moments):
    """Count every call that touches the disk, before and after."""
    for name in ("fsync", "replace", "unlink", "posix_fallocate"):
        original = getattr(os, name)

        def passing(*arguments, original=original, **options):
            moments.pass_by()
            result = original(*arguments, **options)
            moments.pass_by()
            return result

        setattr(os, name, passing)
    write = cache_writer._write_entries

    def torn(path, start, places, entries):
        write(path, start, places[: len(places) // 2], entries[: len(places) // 2])
        moments.pass_by()
        write(path, start, places, entries)

    cache_writer._write_entries = torn


def child(folder, record, moment):
    moments = Moments(moment)
    watch(moments)
    build(folder, "dense", teacher=tiny_teacher(network=Asked(moments, record)), views=tiny_views(), **OPTIONS)
    record.with_suffix(".count").write_text(str(moments.count))
    os._exit(0)


def run(folder, record, moment):
    pid = os.fork()
    if pid == 0:
        try:
            child(folder, record, moment)
        finally:
            os._exit(3)  # an error in between
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
