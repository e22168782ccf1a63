"""Export of a model to a file that runs without this package: ONNX, or a program of `torch.export`.

The input of the file is a batch of any size of normalised `pixel_values`, with the image size of the model. Its
metadata contain the class names, the image size, the mean and std, and the complete image processor. Each file is
tested before it gets its final name: it is run with images and batch sizes other than those of the export, and an error
is raised if it computes different logits. Weights with the names of timm are written in convert.py.
"""

import contextlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import check_place, staged_files
from ..losses import ProblemType
from ..sizes import as_pair
from .convert import folder_of, json_beside, load_checkpoint
from .loading import load_model, load_processor
from .pixel_rules import pixel_rules, processor_fields

logger = logging.getLogger(__name__)

OPSET = 18
HEADS = ("logits", "cls_logits", "distillation_logits")
# Largest allowed difference of a logit, as a share of the largest logit, or of 1 if all logits are smaller.
TOLERANCES = {None: 1e-4, "int8": 0.05, "int8-dynamic": 0.25}
_EXPORTED_BATCH = 3
_CHECKED_BATCHES = (1, 2, 5)
# An .onnx file is a protobuf, which is limited to 2 GiB. Some of it is left for the graph.
_LARGEST_FILE = 2**31 - 2**24
_BLOCK = 64
_FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Exported:
    """Result of an export: the written files, and how much their logits differ from those of the model.

    Args:
        difference: Largest difference of a logit, over all heads and all checked images.
        largest_logit: Largest logit of the model on these images, for comparison.
        files: The file, and for ONNX models above 2 GB also the file of the weights.
        eight_bits: Share of the weights that a quantised file stores in 8 bits, from 0 to 1. None if the file is not
            quantised.
    """

    difference: float
    largest_logit: float
    files: list[Path]
    eight_bits: float | None = None


class _Heads(nn.Module):
    """Wrapper of a model whose only input is `pixel_values` and whose output is a dictionary of logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        outputs = self.model(pixel_values=pixel_values)
        return {name: outputs[name] for name in HEADS if name in outputs}


def export_onnx(source: str | Path, out: str | Path, quantize: str | None = None) -> Exported:
    """Write an .onnx file (opset 18, any batch size), and compare it in onnxruntime with the model in PyTorch.

    Args:
        source: Folder or Hub name of any image classifier of transformers, or a file that `load_checkpoint` accepts.
        out: New `.onnx` file. It contains the weights, unless these have 2 GB or more; they are then in a second file
            with the name of `out` and `.data`.
        quantize: None keeps float32. "int8" stores the weights in 8 bits, in blocks of 64 (for onnxruntime only).
            "int8-dynamic" stores the weights in 8 bits per channel and also quantises the activations at run time. This
            is faster and less exact. The patch projection is always in float32, and with "int8" so are the heads.

    Raises:
        UserError: `out` already exists or does not end in .onnx, a package is missing, or the file computes different
            logits.
        UserError: There is no such model, or it cannot be exported or quantised.
    """
    out = _new_file(out, ".onnx")
    if quantize not in TOLERANCES:
        raise UserError(f"quantize={quantize!r}: choose int8 or int8-dynamic, or leave quantize out for float32.")
    _require_onnx()
    heads, pixels, metadata = _loaded(source)
    size = sum(weight.numel() * weight.element_size() for weight in heads.state_dict().values())
    external_data = size >= _LARGEST_FILE
    if external_data:
        logger.info(
            "The weights have %.1f GB and do not fit into an .onnx file. They are written to %s.data.",
            size / 1e9,
            out.name,
        )
    program = _onnx_program(heads, pixels, source)
    program.model.metadata_props.update(metadata)
    share = None
    with staged_files(out.absolute().parent) as folder:
        path = folder / out.name
        program.save(path, external_data=external_data)
        if quantize is not None:
            with _quietly():
                share = _quantize(path, quantize, external_data)
            if not share:
                raise UserError(
                    f"--quantize {quantize}: only matrix products with weights are quantised, and {source} has none "
                    "(it may be a convolutional network). The file would be that in float32. Leave out --quantize."
                )
        result = _compared(heads, onnx_runner(path), pixels, TOLERANCES[quantize], source)
        files = sorted(file.name for file in folder.iterdir())
    return Exported(*result, [out.parent / name for name in files], share)


def _onnx_program(heads: "_Heads", pixels: Callable[[int], Tensor], source: Any) -> Any:
    names = list(heads(pixels(1)))
    try:
        with _quietly():
            return torch.onnx.export(
                heads,
                (pixels(_EXPORTED_BATCH),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=names,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except Exception as error:  # the exporter raises many classes of errors
        raise UserError(
            f"torch.onnx cannot export {source} with a variable batch size: {_first_line(error)}. Export it with "
            "torch.export instead (an output file that ends in .pt2)."
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def export_program(source: str | Path, out: str | Path) -> Exported:
    """Write a `.pt2` file (any batch size), and compare it with the model.

    `torch.export.load` reads the file without this package and without transformers.

    Args:
        source: See `export_onnx`.
        out: New `.pt2` file. Its metadata are in the extra file metadata.json.

    Raises:
        UserError: `out` already exists or does not end in .pt2, the model cannot be traced, or the file computes
            different logits.
        UserError: There is no such model.
    """
    out = _new_file(out, ".pt2")
    heads, pixels, metadata = _loaded(source)
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(
            heads, (pixels(_EXPORTED_BATCH),), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
        )
    except Exception as error:  # torch.export raises many classes of errors
        raise UserError(f"torch.export cannot trace {source} with a variable batch size: {error}") from error
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
        raise UserError(f"{out}: the file name must end in {suffix}. Give such a name.")
    if out.exists() or out.with_name(f"{out.name}.data").exists():
        raise UserError(f"{out} or {out.name}.data already exists. Give a new name.")
    check_place(out, UserError)
    return out


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX export needs three packages ({error}). Install them: pip install onnx onnxscript onnxruntime."
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the many log messages and warnings of the exporters, which do not concern the user."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _loaded(source: str | Path) -> tuple[_Heads, Callable[[int], Tensor], dict[str, str]]:
    """Return the model in float32, a function that makes a batch of images for it, and the metadata of its file."""
    path = Path(source)
    # A file of weights, or a folder of timm, whose config.json has no model_type.
    stored = json_beside(path, "config.json") if path.is_dir() else {}
    foreign = path.is_file() or (bool(stored) and "model_type" not in stored)
    model = load_checkpoint(source) if foreign else load_model(str(source), dtype=torch.float32)
    try:
        folder = folder_of(path)
        processor = None if folder is None else load_processor(str(source if folder == path else folder))
    except UserError:
        processor = None
    if processor is None:
        logger.warning(
            "%s has no image processor, so the file does not state the mean and std. Most models use those of "
            "ImageNet.",
            source,
        )
    config, channels = model.config, getattr(model.config, "num_channels", 3)
    size = image_size_of(config, processor)
    metadata = {
        "class_names": [config.id2label[index] for index in range(config.num_labels)],
        "problem_type": str(ProblemType(config.problem_type or ProblemType.SINGLE_LABEL)),
        "image_size": list(size),
    }
    if processor is not None:
        metadata |= _pixel_facts(processor, source)
        metadata["preprocessor"] = json.loads(processor.to_json_string())
    mean, std = (torch.tensor(metadata.get(name, 0.5)).reshape(-1, 1, 1) for name in ("image_mean", "image_std"))
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise UserError(
            f"{source} takes images of {channels} channel(s), but its image processor has a mean of {len(mean)} and a "
            f"std of {len(std)} numbers. In preprocessor_config.json, give image_mean and image_std one number for "
            "each channel."
        )

    def pixels(batch: int) -> Tensor:
        return (_images(batch, channels, size) - mean) / std

    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    heads = _Heads(model.eval()).requires_grad_(False)
    try:
        logits = heads(pixels(1))
    except Exception as error:  # the model may be of any family and raise any error
        raise UserError(
            f"{source} ({type(model).__name__}) cannot be run on images of {size}: {_first_line(error)}"
        ) from error
    if "logits" not in logits:
        raise UserError(f"{source} ({type(model).__name__}) returns no logits. Give an image classifier.")
    return heads, pixels, text


def _pixel_facts(processor: Any, source: Any) -> dict[str, Any]:
    """Return mean, std and, if it is not RGB, channel order of the input, for pixels in [0, 1]."""
    rules = pixel_rules(processor_fields(processor))
    if rules.beyond:
        logger.warning(
            "The image processor of %s has the field(s) %s, which a mean and a std do not express: the file has "
            "none of them, and the processor itself as preprocessor.",
            source,
            ", ".join(rules.beyond),
        )
        return {}
    facts: dict[str, Any] = {"image_mean": rules.image_mean, "image_std": rules.image_std}
    return facts if rules.channel_order == "rgb" else {**facts, "channel_order": rules.channel_order}


def image_size_of(config: Any, processor: Any) -> tuple[int, int]:
    """Return `(height, width)` of the images of a model: from its configuration, its image processor or None, or 224 pixels."""
    return as_pair(getattr(config, "image_size", None) or _processed_size(processor) or 224)


def _processed_size(processor: Any) -> Any:
    """Return the size of the images that a processor returns, for a model that accepts any size, or None."""
    for name in ("crop_size", "size"):
        size = getattr(processor, name, None)
        size = dict(size) if size else {}
        if "height" in size and "width" in size:
            return size["height"], size["width"]
        if "shortest_edge" in size:
            return size["shortest_edge"]
    return None


def _images(batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Return random images with values in [0, 1], with coarse and fine structure as in photographs.

    The images are always the same for the same batch size.
    """
    generator = torch.Generator().manual_seed(batch)
    image = torch.zeros(batch, channels, *size)
    for cells in (2, 5, 12, 32):
        noise = torch.randn(batch, channels, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, size, mode="bicubic", align_corners=False) / cells**0.5
    return torch.sigmoid(image)


def _quantize(path: Path, kind: str, external_data: bool) -> float:
    """Replace a float32 file by one with weights in 8 bits, and return the share of these weights among all weights."""
    import onnx

    original = path.with_name(f"float-{path.name}")
    os.replace(path, original)  # the file of the weights, if any, keeps the name that the .onnx file refers to
    if kind == "int8":
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        settings = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, bits=8)
        quantizer = MatMulNBitsQuantizer(onnx.load(original), algo_config=settings)
        quantizer.process()
        model = quantizer.model.model
    else:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # reduce_range uses only 7 bits of the weights: on processors without VNNI, the sum of two 8-bit products can
        # saturate.
        quantize_dynamic(
            original,
            original.with_name(f"quantized-{path.name}"),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=external_data,
        )
        model = onnx.load(original.with_name(f"quantized-{path.name}"))
    before = onnx.load(original, load_external_data=False)
    properties = {entry.key: entry.value for entry in before.metadata_props}
    weights = sum(math.prod(weight.dims) for weight in before.graph.initializer if weight.data_type == _FLOAT)
    for file in path.parent.iterdir():
        file.unlink()
    onnx.helper.set_model_props(model, properties | {"quantization": kind})
    data = {"save_as_external_data": True, "location": f"{path.name}.data"} if external_data else {}
    onnx.save(model, path, **data)
    return _in_eight_bits(model.graph) / weights


def _in_eight_bits(graph: Any) -> int:
    """Return the number of weights of matrix products that are stored in 8 bits."""
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    blocks = [node for node in graph.node if node.op_type == "MatMulNBits"]
    shapes = [{entry.name: entry.i for entry in node.attribute} for node in blocks]
    names = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    return sum(shape["K"] * shape["N"] for shape in shapes) + sum(sizes.get(name, 0) for name in names)


def onnx_runner(path: Path, threads: int | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function that runs an exported file in onnxruntime on the CPU: normalised pixels to logits by head.

    Args:
        path: The `.onnx` file.
        threads: Number of threads. Default: that of onnxruntime.

    Raises:
        UserError: onnxruntime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Otherwise its threads wait actively for the next batch, and take the processor from other models meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a different class for each kind of failure
        raise UserError(f"onnxruntime cannot load the exported file: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {"pixel_values": pixels.numpy()})
        return {name: torch.from_numpy(np.asarray(output)) for name, output in zip(names, outputs, strict=True)}

    return run


@torch.no_grad()
def _compared(
    heads: _Heads, run: Callable, pixels: Callable[[int], Tensor], tolerance: float, source: Any
) -> tuple[float, float]:
    """Return the largest difference of a logit and the largest logit, over batches of several sizes."""
    difference = largest = 0.0
    for batch in _CHECKED_BATCHES:
        images = pixels(batch)
        expected = heads(images)
        try:
            found = run(images)
        except Exception as error:  # any class of the runtimes, most often because the batch size is fixed
            raise UserError(
                f"The file exported from {source} does not run with a batch of {batch}: {error}. Nothing was written."
            ) from error
        for name, logits in expected.items():
            gap = (found[name] - logits).abs()
            # Any comparison with nan is false, so a logit that is not finite must count as an infinite difference.
            difference = max(difference, gap.max().item() if torch.isfinite(gap).all() else float("inf"))
            largest = max(largest, logits.abs().max().item())
    allowed = tolerance * max(1.0, largest)
    if not difference <= allowed:
        raise UserError(
            f"The file exported from {source} computes different logits: the largest difference is {difference:.3g}, "
            f"and at most {allowed:.3g} is allowed (the largest logit is {largest:.3g}). Nothing was written. Export "
            "it without quantisation, or in another format."
        )
    return difference, largest
