"""A model as a file that runs without this package: ONNX, or a program of `torch.export`.

The file takes normalised `pixel_values` of the model's own size in batches of any length, and says in its metadata what a
user needs beside it: classes, image size, mean and std, the whole image processor. Each file is run before it gets its
name, on images and batch sizes other than the export's, and refused if it computes other logits. Weights under other
programs' names are the business of convert.py.
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
_FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the model.

    Args:
        difference: Largest difference of a logit, of all heads, over all checked images.
        largest_logit: Of the model on those images, for comparison.
        files: The file, and for ONNX above 2 GB the file of its weights.
        eight_bits: Share of the weights that a quantised file holds in 8 bits, 0 to 1; None: it is not quantised.
    """

    difference: float
    largest_logit: float
    files: list[Path]
    eight_bits: float | None = None


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
        UserError: `out` is there already or no .onnx, an extra is missing, or the file computes something else.
        UserError: There is no such model.
    """
    out = _new_file(out, ".onnx")
    if quantize not in TOLERANCES:
        raise UserError(f"quantize={quantize!r}: choose int8 or int8-dynamic, or leave it out for float32.")
    _require_onnx()
    heads, pixels, metadata = _loaded(source)
    size = sum(weight.numel() * weight.element_size() for weight in heads.state_dict().values())
    beside = size >= _LARGEST_FILE
    if beside:
        logger.info(
            "%.1f GB of weights do not fit an .onnx file: they are beside it, in %s.data.", size / 1e9, out.name
        )
    program = _onnx_program(heads, pixels, source)
    program.model.metadata_props.update(metadata)
    share = None
    with staged_files(out.absolute().parent) as folder:
        path = folder / out.name
        program.save(path, external_data=beside)
        if quantize is not None:
            with _quietly():
                share = _quantize(path, quantize, beside)
            if not share:
                raise UserError(
                    f"--quantize {quantize}: {source} has no products of matrices with weights, which are what is "
                    "quantised (a network of convolutions?), so it would be the float32 file. Leave it out."
                )
        result = _compared(heads, _onnx_runner(path), pixels, TOLERANCES[quantize], source)
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
    except Exception as error:  # what the exporter cannot trace or translate it says in many classes of its own
        raise UserError(f"torch.onnx cannot export {source} for any batch: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def export_program(source: str | Path, out: str | Path) -> Exported:
    """Writes a `.pt2` (any batch), which `torch.export.load` reads without this package and transformers, and compares it.

    Args:
        source: As for `export_onnx`.
        out: New file, `.pt2`. Its metadata are in the extra file metadata.json.

    Raises:
        UserError: `out` is there already or no .pt2, the model cannot be traced, or the file computes something else.
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
        raise UserError(f"torch.export cannot trace {source} for any batch: {error}") from error
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
        raise UserError(f"{out}: write a {suffix}.")
    if out.exists() or out.with_name(f"{out.name}.data").exists():
        raise UserError(f"{out} (or {out.name}.data) is there already: give a new name, or remove it first.")
    check_place(out, UserError)
    return out


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
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


def _loaded(source: str | Path) -> tuple[_Heads, Callable[[int], Tensor], dict[str, str]]:
    """The model in float32, what makes images for it, and the metadata of its file."""
    path = Path(source)
    # Bare weights, or timm's folder, whose config.json has no model_type.
    stored = json_beside(path, "config.json") if path.is_dir() else {}
    foreign = path.is_file() or (bool(stored) and "model_type" not in stored)
    model = load_checkpoint(source) if foreign else load_model(str(source), dtype=torch.float32)
    try:
        folder = folder_of(path)
        processor = None if folder is None else load_processor(str(source if folder == path else folder))
    except UserError:
        processor = None
    if processor is None:
        logger.warning("%s has no image processor: the file names no mean and std. ImageNet's are usual.", source)
    config, channels = model.config, getattr(model.config, "num_channels", 3)
    size = getattr(config, "image_size", None) or _processed_size(processor) or 224
    metadata = {
        "class_names": [config.id2label[index] for index in range(config.num_labels)],
        "problem_type": str(ProblemType(config.problem_type or ProblemType.SINGLE_LABEL)),
        "image_size": list(as_pair(size)),
    }
    if processor is not None:
        names = ("image_mean", "image_std")
        metadata |= {name: getattr(processor, name) for name in names if getattr(processor, name, None)}
        metadata["preprocessor"] = json.loads(processor.to_json_string())
    mean, std = (torch.tensor(metadata.get(name, 0.5)).reshape(-1, 1, 1) for name in ("image_mean", "image_std"))
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise UserError(
            f"{source} takes images of {channels} channel(s), and its image processor has a mean of {len(mean)} and a std of "
            f"{len(std)} numbers: give image_mean and image_std in preprocessor_config.json one a channel."
        )

    def pixels(batch: int) -> Tensor:
        return (_images(batch, channels, as_pair(size)) - mean) / std

    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    heads = _Heads(model.eval()).requires_grad_(False)
    try:
        answers = heads(pixels(1))
    except Exception as error:  # any family may stand here
        raise UserError(
            f"{source} ({type(model).__name__}) cannot be run on images of {as_pair(size)}: {_first_line(error)}"
        ) from error
    if "logits" not in answers:
        raise UserError(f"{source} ({type(model).__name__}) gives no logits: it is no image classifier.")
    return heads, pixels, text


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


def _quantize(path: Path, kind: str, beside: bool) -> float:
    """Replaces a float32 file by one with weights in 8 bits, and gives their share of all weights."""
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
            whole,
            whole.with_name(f"quantized-{path.name}"),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=beside,
        )
        model = onnx.load(whole.with_name(f"quantized-{path.name}"))
    before = onnx.load(whole, load_external_data=False)
    properties = {entry.key: entry.value for entry in before.metadata_props}
    weights = sum(math.prod(weight.dims) for weight in before.graph.initializer if weight.data_type == _FLOAT)
    for file in path.parent.iterdir():
        file.unlink()
    onnx.helper.set_model_props(model, properties | {"quantization": kind})
    data = {"save_as_external_data": True, "location": f"{path.name}.data"} if beside else {}
    onnx.save(model, path, **data)
    return _in_eight_bits(model.graph) / weights


def _in_eight_bits(graph: Any) -> int:
    """How many weights stand in 8 bits at the products of matrices."""
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    blocks = [node for node in graph.node if node.op_type == "MatMulNBits"]
    shapes = [{entry.name: entry.i for entry in node.attribute} for node in blocks]
    whole = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    return sum(shape["K"] * shape["N"] for shape in shapes) + sum(sizes.get(name, 0) for name in whole)


def _onnx_runner(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of failure
        raise UserError(f"onnxruntime does not take the file: {error}") from error
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
            raise UserError(
                f"The file made of {source} does not run with a batch of {batch}: {error}. Nothing was written."
            ) from error
        for name, logits in expected.items():
            gap = (found[name] - logits).abs()
            # A comparison with nan is false: not finite must not look like no difference.
            difference = max(difference, gap.max().item() if torch.isfinite(gap).all() else float("inf"))
            largest = max(largest, logits.abs().max().item())
    allowed = tolerance * max(1.0, largest)
    if not difference <= allowed:
        raise UserError(
            f"The file made of {source} computes other logits: the largest difference is {difference:.3g}, allowed are "
            f"{allowed:.3g} (largest logit {largest:.3g}). Nothing was written; export it without quantisation, or in "
            "another format."
        )
    return difference, largest
