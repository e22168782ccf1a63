"""Peak memory of a model on a CPU, measured in a process of its own.

The process loads its libraries, runs a tiny model once, and notes its resident memory. Then it loads the model and runs batches of
each size. The peak memory of a size is the largest resident memory while its batches run, minus the noted one: weights, activations
and what the libraries keep. On Linux the kernel's peak (VmHWM) is reset before each size. Elsewhere it is the peak of the process
until then (`ru_maxrss`), which includes the loading of the weights. Memory on a GPU is measured in benchmark.py.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BATCHES = 2
# The new process finds the package and its libraries where this one found them.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(sys.argv[2])"


@dataclass(frozen=True)
class MemoryTask:
    """What a process measures.

    Args:
        source: Fields of the `ModelSource`.
        backend: One of `BACKENDS`.
        dtype: Name of the data type.
        batch_sizes: Numbers of images per batch, in ascending order.
        image_size: `(height, width)` of an image in pixels.
        threads: Number of threads.
        onnx_file: The exported file, for the backend "onnx".
    """

    source: dict[str, Any]
    backend: str
    dtype: str
    batch_sizes: tuple[int, ...]
    image_size: tuple[int, int]
    threads: int
    onnx_file: str | None = None


def cpu_peaks(task: MemoryTask) -> tuple[dict[int, int], str | None]:
    """Measure the peak memory of a model in a new process.

    Args:
        task: What is measured.

    Returns:
        Bytes by batch size, and the reason why the others have none; None if all were measured.
    """
    command = [sys.executable, "-c", _PROGRAM.format(module=__name__), json.dumps(sys.path), json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    peaks = {entry["batch_size"]: entry["bytes"] for entry in found}
    if len(peaks) == len(task.batch_sizes):
        return peaks, None
    if done.returncode < 0:
        return (
            peaks,
            f"the process that measures memory was ended by signal {-done.returncode}; is there enough memory?",
        )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return peaks, lines[-1] if lines else f"the process that measures memory ended with exit code {done.returncode}"


def main(text: str) -> None:
    """Measure a `MemoryTask`, given as JSON, and write a line of JSON per batch size to standard output."""
    given = json.loads(text)
    task = MemoryTask(**{**given, "image_size": tuple(given["image_size"])})
    import torch

    from .benchmark_timing import COMPILED, many_compiled_models

    torch.set_num_threads(task.threads)
    several = many_compiled_models() if task.backend == COMPILED else contextlib.nullcontext()
    with torch.inference_mode(), several:
        for entry in _peaks(task):
            sys.stdout.write(json.dumps(entry) + "\n")
            sys.stdout.flush()


def _peaks(task: MemoryTask) -> Iterator[dict[str, int]]:
    _load_libraries(task)
    before = _resident()
    runner = _runner(task)
    for batch in task.batch_sizes:
        run = runner(batch)
        run()  # compiles, and fills the buffers that later batches use again
        _reset_peak()
        for _ in range(_BATCHES):
            run()
        yield {"batch_size": batch, "bytes": _peak() - before}


def _load_libraries(task: MemoryTask) -> None:
    """Run a tiny model, so that what libraries need once does not count as memory of the model."""
    import torch

    from ..models.configuration_deit import DeiTConfig
    from ..models.modeling_deit import DeiTForImageClassificationWithTeacher
    from .benchmark_timing import COMPILED, ONNX, compiled_runner, eager_runner

    if task.backend == ONNX:
        import onnxruntime  # noqa: F401
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tiny = DeiTForImageClassificationWithTeacher(DeiTConfig(**fields, image_size=32)).eval()
    dtype = getattr(torch, task.dtype)
    build = compiled_runner if task.backend == COMPILED else eager_runner
    build(tiny.to(dtype), torch.zeros(1, 3, 32, 32, dtype=dtype))()


def _runner(task: MemoryTask) -> Callable[[int], Callable[[], Any]]:
    """Return a function that returns, for a batch size, a function that runs a batch."""
    import torch

    from .benchmark_models import ModelSource, random_pixels
    from .benchmark_timing import COMPILED, ONNX, compiled_runner, eager_runner

    if task.backend == ONNX:
        from ..models.export import onnx_runner
        from ..models.loading import load_config

        source = ModelSource(**task.source)
        channels = 3 if source.path is None else getattr(load_config(source.path), "num_channels", 3)
        session = onnx_runner(Path(task.onnx_file), task.threads)
        return lambda batch: lambda: session(torch.zeros(batch, channels, *task.image_size))
    model = ModelSource(**task.source).load().to(getattr(torch, task.dtype))
    build = compiled_runner if task.backend == COMPILED else eager_runner
    return lambda batch: build(model, random_pixels(model, task.image_size, batch).to(model.dtype))


def _status(name: str) -> int | None:
    """Return a line of `/proc/self/status` in bytes; None where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), flags=re.M)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _resident() -> int:
    found = _status("VmRSS")
    return _peak() if found is None else found


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present resident memory
    except OSError:
        return


def _peak() -> int:
    found = _status("VmHWM")
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
