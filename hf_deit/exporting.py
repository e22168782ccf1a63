"""A model as a file that runs without this package: ONNX, or a program of `torch.export`.

The file takes normalised `pixel_values` of the model's own size in batches of any length, and says in its metadata what a
user needs beside it: classes, image size, mean and std, the whole image processor. Each file is run before it gets its
name, on images and batch sizes other than the export's, and refused if it computes other logits. Weights under other
programs' names are the business of checkpoint_loading.py.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .building import load_model, load_processor
from .checkpoint_loading import load_checkpoint
from .checkpointing import staged_files
from .configuration_deit import as_pair
from .errors import UserError
from .recipe import RecipeError

logger = logging.getLogger(__name__)

OPSET = 18
HEADS = ("logits", "cls_logits", "distillation_logits")
# Largest difference of a logit that is allowed, as a share of the largest logit (of 1 where all are smaller).
TOLERANCES = {None: 1e-4, "int8": 0.05, "int8-dynamic": 0.25}
_EXPORTED_BATCH = 3
_CHECKED_BATCHES = (1, 2, 5)
# A protobuf, which an .onnx file is, ends at 2 GiB; some room is left for the graph.
_LARGEST_FILE = 2**31 - 2**24
_BLOCK = 64


class ExportError(UserError):
    """A model that cannot be exported as asked, or a file that computes something else; nothing was left behind."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the model.

    Args:
        difference: Largest difference of a logit, of all heads, over all checked images.
        largest_logit: Of the model on those images, for comparison.
        files: The file, and for ONNX above 2 GB the file of its weights.
    """

    difference: float
    largest_logit: float
    files: list[Path]


class _Heads(nn.Module):
    """The model as a function of pixels alone, with a dictionary of logits as its answer."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        outputs = self.model(pixel_values=pixel_values)
        return {name: outputs[name] for name in HEADS if name in outputs}


def export_onnx(source: str | Path, out: str | Path, quantize: str | None = None) -> Exported:
    """Writes an .onnx file (opset 18, any batch) and compares it, in onnxruntime, with the model in torch.

    Args:
        source: Folder or Hub name of any image classifier of transformers, or a file as `load_checkpoint` takes it.
        out: New file, `.onnx`. Weights are inside, unless they come to 2 GB or more: then they are beside it, in `out`.data.
        quantize: None: float32. "int8": weights alone in 8 bits, in blocks of 64 (for onnxruntime only). "int8-dynamic":
            weights a channel and, as it runs, activations in 8 bits: faster and less exact. The patch projection stays
            float32 in both, and with "int8" the heads.

    Raises:
        ExportError: `out` is there already or no .onnx, an extra is missing, or the file computes something else.
        UserError: There is no such model.
    """
    out = _new_file(out, ".onnx")
    if quantize not in TOLERANCES:
        raise ExportError(f"quantize={quantize!r}: choose int8 or int8-dynamic, or leave it out for float32.")
    _require_onnx()
    heads, pixels, metadata = _loaded(source)
    size = sum(weight.numel() * weight.element_size() for weight in heads.state_dict().values())
    beside = size >= _LARGEST_FILE
    if beside:
        logger.info(
            "%.1f GB of weights do not fit an .onnx file: they are beside it, in %s.data.", size / 1e9, out.name
        )
    names = list(heads(pixels(1)))
    with _quietly():
        program = torch.onnx.export(
            heads,
            (pixels(_EXPORTED_BATCH),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    with staged_files(out.absolute().parent) as folder:
        path = folder / out.name
        program.save(path, external_data=beside)
        if quantize is not None:
            with _quietly():
                _quantize(path, quantize, beside)
        result = _compared(heads, _onnx_runner(path), pixels, TOLERANCES[quantize], source)
        files = sorted(file.name for file in folder.iterdir())
    return Exported(*result, [out.parent / name for name in files])


def export_program(source: str | Path, out: str | Path) -> Exported:
    """Writes a `.pt2` (any batch), which `torch.export.load` reads without this package and transformers, and compares it.

    Args:
        source: As for `export_onnx`.
        out: New file, `.pt2`. Its metadata are in the extra file metadata.json.

    Raises:
        ExportError: `out` is there already or no .pt2, the model cannot be traced, or the file computes something else.
        UserError: There is no such model.
    """
    out = _new_file(out, ".pt2")
    heads, pixels, metadata = _loaded(source)
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(
            heads, (pixels(_EXPORTED_BATCH),), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
        )
    except Exception as error:  # what torch cannot trace it says in many classes of its own
        raise ExportError(f"torch.export cannot trace {source} for any batch: {error}") from error
    with staged_files(out.absolute().parent) as folder:
        path = folder / out.name
        with _quietly():
            torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
            loaded = torch.export.load(path).module()
        result = _compared(heads, loaded, pixels, TOLERANCES[None], source)
    return Exported(*result, [out])


def _new_file(out: str | Path, suffix: str) -> Path:
    out = Path(out)
    if out.suffix != suffix:
        raise ExportError(f"{out}: write a {suffix}.")
    if out.exists() or out.with_name(f"{out.name}.data").exists():
        raise ExportError(f"{out} (or {out.name}.data) is there already: give a new name, or remove it first.")
    return out


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f'ONNX export needs onnx, onnxscript and onnxruntime ({error}): pip install "hf-deit[onnx]".'
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporters tell of every node, of packages that are not needed, and of their own old names."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# ---- what is exported ----


def _loaded(source: str | Path) -> tuple[_Heads, Callable[[int], Tensor], dict[str, str]]:
    """The model in float32, what makes images for it, and the metadata of its file."""
    path = Path(source)
    stored = path / "config.json"
    # Bare weights, or timm's folder, whose config.json has no model_type.
    foreign = path.is_file() or (
        stored.is_file() and "model_type" not in json.loads(stored.read_text(encoding="utf-8"))
    )
    model = load_checkpoint(source) if foreign else load_model(str(source), dtype=torch.float32)
    try:
        processor = load_processor(str(source))
    except RecipeError:
        logger.warning("%s has no image processor: the file names no mean and std. ImageNet's are usual.", source)
        processor = None
    config, channels = model.config, getattr(model.config, "num_channels", 3)
    size = getattr(config, "image_size", None) or _processed_size(processor) or 224
    metadata = {
        "class_names": [config.id2label[index] for index in range(config.num_labels)],
        "problem_type": config.problem_type or "single_label_classification",
        "image_size": list(as_pair(size)),
    }
    if processor is not None:
        names = ("image_mean", "image_std")
        metadata |= {name: getattr(processor, name) for name in names if getattr(processor, name, None)}
        metadata["preprocessor"] = json.loads(processor.to_json_string())
    mean, std = (torch.tensor(metadata.get(name, 0.5)).reshape(-1, 1, 1) for name in ("image_mean", "image_std"))

    def pixels(batch: int) -> Tensor:
        return (_images(batch, channels, as_pair(size)) - mean) / std

    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    return _Heads(model.eval()).requires_grad_(False), pixels, text


def _processed_size(processor: Any) -> Any:
    """The size that a processor gives its images, for a model that takes any."""
    for name in ("crop_size", "size"):
        size = getattr(processor, name, None)
        size = dict(size) if size else {}
        if "height" in size and "width" in size:
            return size["height"], size["width"]
        if "shortest_edge" in size:
            return size["shortest_edge"]
    return None


def _images(batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Drawn images with values in [0, 1] that have large shapes and fine grain, as photographs have; always the same."""
    generator = torch.Generator().manual_seed(batch)
    image = torch.zeros(batch, channels, *size)
    for cells in (2, 5, 12, 32):
        noise = torch.randn(batch, channels, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, size, mode="bicubic", align_corners=False) / cells**0.5
    return torch.sigmoid(image)


# ---- quantised, run, compared ----


def _quantize(path: Path, kind: str, beside: bool) -> None:
    """Replaces a float32 file by one with weights in 8 bits."""
    import onnx

    whole = path.with_name(f"float-{path.name}")
    os.replace(path, whole)  # its data, if beside it, keep the name that the file knows
    if kind == "int8":
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        settings = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, bits=8)
        quantizer = MatMulNBitsQuantizer(onnx.load(whole), algo_config=settings)
        quantizer.process()
        model = quantizer.model.model
    else:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # Seven bits of weights: on processors without VNNI the sum of two products of eight saturates.
        quantize_dynamic(
            *(whole, whole.with_name(f"quantized-{path.name}")),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=beside,
        )
        model = onnx.load(whole.with_name(f"quantized-{path.name}"))
    properties = {entry.key: entry.value for entry in onnx.load(whole, load_external_data=False).metadata_props}
    for file in path.parent.iterdir():
        file.unlink()
    onnx.helper.set_model_props(model, properties | {"quantization": kind})
    data = {"save_as_external_data": True, "location": f"{path.name}.data"} if beside else {}
    onnx.save(model, path, **data)


def _onnx_runner(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        raise ExportError(f"onnxruntime does not take the file: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor) -> dict[str, Tensor]:
        answers = session.run(names, {"pixel_values": pixels.numpy()})
        return {name: torch.from_numpy(np.asarray(answer)) for name, answer in zip(names, answers, strict=True)}

    return run


@torch.no_grad()
def _compared(
    heads: _Heads, run: Callable, pixels: Callable[[int], Tensor], tolerance: float, source: Any
) -> tuple[float, float]:
    """The largest difference of a logit and the largest logit, over batches of several sizes."""
    difference = largest = 0.0
    for batch in _CHECKED_BATCHES:
        images = pixels(batch)
        expected = heads(images)
        try:
            found = run(images)
        except Exception as error:  # the runtimes' own classes: a batch size that was baked in, above all
            raise ExportError(
                f"The file made of {source} does not run with a batch of {batch}: {error}. Nothing was written."
            ) from error
        for name, logits in expected.items():
            gap = (found[name] - logits).abs()
            # A comparison with nan is false: not finite must not look like no difference.
            difference = max(difference, gap.max().item() if torch.isfinite(gap).all() else float("inf"))
            largest = max(largest, logits.abs().max().item())
    allowed = tolerance * max(1.0, largest)
    if not difference <= allowed:
        raise ExportError(
            f"The file made of {source} computes other logits: the largest difference is {difference:.3g}, allowed are "
            f"{allowed:.3g} (largest logit {largest:.3g}). Nothing was written; export it without quantisation, or in "
            "another format."
        )
    return difference, largest
