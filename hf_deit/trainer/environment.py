"""Packages and devices that training arguments need: what is missing is named before a training begins.

transformers and accelerate find some of these problems only at the first step, or not at all: fp16 on a CPU is accepted
by them, and changes nothing.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

FP16_REMEDY = "float16 needs a GPU. Use bf16=True, which CPUs can compute with too."
# Packages of the trackers of transformers. One of the alternatives is enough.
_TRACKER_PACKAGES = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
_PIP_NAMES = {"azureml": "azureml-core", "comet_ml": "comet-ml"}


def is_installed(package: str) -> bool:
    """Return whether a top-level package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def local_processes() -> int:
    """Return the number of processes of the run on this machine, which torchrun sets; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def missing_packages(packages: Mapping[str, str]) -> list[str]:
    """Return the packages that are not installed.

    Args:
        packages: Name of each package for pip, by the name of the module that is imported.
    """
    return [package for module, package in packages.items() if not is_installed(module)]


def require_packages(what: str, packages: Mapping[str, str]) -> None:
    """Check that packages are installed.

    Args:
        what: What needs them, as the beginning of a sentence.
        packages: As for `missing_packages`.

    Raises:
        UserError: A package is missing. The message has the command that installs it, which is the same for an installed
            hf_deit and for a checkout.
    """
    missing = missing_packages(packages)
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}, not installed here: {install_command(missing)}")


def install_command(packages: Sequence[str]) -> str:
    """Return the command that installs packages from PyPI. It does not name hf_deit, which may be a checkout."""
    return f"pip install {' '.join(packages)}"


def package_problems(args: Any) -> Iterator[str]:
    """Yield the packages that are missing for the trackers in `report_to`, and unknown trackers.

    Args:
        args: Training arguments.
    """
    trackers = args.report_to if isinstance(args.report_to, list | tuple) else [args.report_to]
    for tracker in trackers:
        if tracker in (None, "none", "all"):
            continue
        if tracker not in _known_trackers():
            yield f"report_to={tracker!r}: choose among none, all, {', '.join(sorted(_known_trackers()))}."
            continue
        packages = _TRACKER_PACKAGES.get(tracker, ())
        if packages and not any(map(is_installed, packages)):
            name = _PIP_NAMES.get(packages[0], packages[0])
            yield (
                f"report_to={tracker!r}: the package {name} is not installed. Run `pip install {name}`, or set "
                "report_to='none'."
            )


def _known_trackers() -> set[str]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return set(INTEGRATION_TO_CALLBACK)


def device_problems(args: Any) -> Iterator[str]:
    """Yield the fields that need a device or DeepSpeed where the machine does not have it, or where it is turned off.

    Args:
        args: Training arguments, before `TrainingArguments.__post_init__`.
    """
    if args.fp16 and (args.use_cpu or not torch.accelerator.is_available()):
        yield f"fp16=True on a CPU: {FP16_REMEDY}"
    if args.tf32 and (args.use_cpu or not torch.cuda.is_available()):
        yield "tf32=True without a CUDA GPU: TF32 is a number format of NVIDIA GPUs. Leave it out."
    if args.deepspeed:
        if not is_installed("deepspeed"):
            yield (
                f"deepspeed={args.deepspeed!r}: the package deepspeed is not installed. Run `pip install deepspeed`, or "
                "leave deepspeed out: a student fits one GPU."
            )
        elif (
            isinstance(args.deepspeed, str)
            and not args.deepspeed.startswith("{")
            and not Path(args.deepspeed).is_file()
        ):
            yield f"deepspeed={args.deepspeed!r}: there is no such file. Give the path of a DeepSpeed configuration."


def compile_problems(args: Any) -> Iterator[str]:
    """Yield what is missing for `torch_compile`.

    Args:
        args: Training arguments.
    """
    if not args.torch_compile:
        return
    from accelerate.utils import DynamoBackend

    backend = args.torch_compile_backend
    known = {member.value.lower() for member in DynamoBackend} - {"no"}
    if backend not in known:
        yield f"torch_compile_backend={backend!r}: choose one of {', '.join(sorted(known))}."
    elif backend not in torch.compiler.list_backends(exclude_tags=()):
        yield (
            f"torch_compile_backend={backend!r}: PyTorch {torch.__version__} does not have this backend here, because a "
            "package for it is missing. Install the package, or use 'inductor'."
        )
    elif backend == "inductor" and (missing := _missing_compiler(args.device)):
        yield (
            f"torch_compile=True with the backend inductor needs {missing}, which is not installed. Install it, or leave "
            "out torch_compile."
        )


def _missing_compiler(device: torch.device) -> str | None:
    if device.type != "cpu":
        return None if is_installed("triton") else "the package triton"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:  # not a public name: another version of PyTorch may have moved it
        return None
    try:
        get_cpp_compiler()
    except Exception:  # InvalidCxxCompiler, which is not public either
        return "a C++ compiler (such as g++)"
    return None
