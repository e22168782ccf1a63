"""New processes that start at once, because torch and transformers are already imported in them.

The imports take several seconds. So a server imports them once per run of pytest (the "forkserver" of multiprocessing),
and each process is a fork of this server. A process has imported nothing of this package, nor of the tests, and has
another hash seed than the tests. Tests of imports, and tests of variables that are read at the import of a library, start
an interpreter of their own instead.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import types
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.helpers import environment

HASH_SEED = "4711"
_PRELOADED = [
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.deit.modeling_deit",
    "transformers.models.vit.modeling_vit",
    "transformers.pipelines",
    "transformers.trainer",
    "datasets",
    "evaluate",
    "pytest",  # the main module, which multiprocessing imports in each process
]


def forkserver_context():
    """Return the context of multiprocessing whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = dict(os.environ)
    os.environ.update(environment(PYTHONHASHSEED=HASH_SEED))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


@contextlib.contextmanager
def prepared_workers():
    """Let the worker processes of the package, which it spawns, be forks of the server."""
    original = multiprocessing.get_context
    with mock.patch.object(
        multiprocessing,
        "get_context",
        lambda method=None: forkserver_context() if method == "spawn" else original(method),
    ):
        yield


def _run(program, arguments, variables, cwd, files):
    multiprocessing.set_start_method(None, force=True)  # as in an interpreter of its own, not the server again
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR), descriptor)
    sys.stdin = os.fdopen(0)
    sys.argv = ["-c", *arguments]
    if cwd is not None:
        os.chdir(cwd)
    if isinstance(program, Path):
        sys.argv[0] = str(program)
        runpy.run_path(str(program), run_name="__main__")
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<program>", "exec"), vars(main))


class Running:
    """A process that has been started.

    Args:
        program: Python code, or the path of a script.
        arguments: Its words in `sys.argv`.
        env: Variables of the environment; None for those of `tests.helpers.environment`.
        cwd: Working directory.
        stdin: Text of the standard input.
    """

    def __init__(self, program, *arguments, env=None, cwd=None, stdin=""):
        self._folder = tempfile.TemporaryDirectory()
        files = [Path(self._folder.name) / name for name in ("stdin", "stdout", "stderr")]
        for file in files:
            file.touch()
        files[0].write_text(stdin)
        self._outputs = files[1:]
        words = [str(word) for word in arguments]
        self._process = forkserver_context().Process(
            target=_run, args=(program, words, env or environment(), cwd, files)
        )
        self._process.start()

    def end(self, timeout=120):
        """Wait for the end, and return a `subprocess.CompletedProcess`. A process that takes longer is killed."""
        self._process.join(timeout)
        try:
            if self._process.exitcode is None:
                raise subprocess.TimeoutExpired("python", timeout, *[file.read_text() for file in self._outputs])
            return subprocess.CompletedProcess(
                "python", self._process.exitcode, *[file.read_text() for file in self._outputs]
            )
        finally:
            self.kill()

    def kill(self):
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


def run_python(program, *arguments, timeout=120, **options):
    """Run Python code, or a script, in a new process, and return a `subprocess.CompletedProcess`."""
    return Running(program, *arguments, **options).end(timeout)


def run_distributed(script, *arguments, timeout=200):
    """Run a script in two processes, as `torch.distributed.run --nproc-per-node 2` does, and return both results."""
    from torch.distributed import TCPStore

    # The store of the launcher, at a free port. The processes find it by the variables that the launcher sets.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks = [
        Running(script, *arguments, env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank))) for rank in (0, 1)
    ]
    try:
        return [rank.end(timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
