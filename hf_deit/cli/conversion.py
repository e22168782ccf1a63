"""Commands that convert weights and export models."""

import argparse
from typing import Any

from .common import quick_imports


def _add_conversions(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="convert official, timm or older weights into a folder that plain transformers loads"
    )
    add = convert.add_argument
    add("source", metavar="SOURCE", help=".pth or .safetensors file, folder or Hub name")
    add("out", metavar="OUT", help="new folder")
    add(
        "--weights",
        choices=("model", "model_ema"),
        help="weights of a training checkpoint that are converted (default: model)",
    )
    add(
        "--image_size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="image size, or HEIGHT WIDTH (default: square, computed from the shapes of the weights)",
    )
    add(
        "--num_attention_heads",
        type=int,
        help="number of attention heads (default: 64 values per head, for published widths)",
    )
    add(
        "--labels",
        metavar="FILE",
        help="file of class names, one per line or JSON (default: the source's, else LABEL_n)",
    )
    add("--image_mean", type=float, nargs="+", help="mean of each channel (default: the source's, else ImageNet's)")
    add(
        "--image_std",
        type=float,
        nargs="+",
        help="standard deviation of each channel (default: the source's, else ImageNet's)",
    )
    add(
        "--crop_ratio",
        type=float,
        help="evaluation crop divided by the shorter edge (default: the source's, else 0.875; DeiT III: 1)",
    )
    add(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16", "file"),
        help="data type of the weights; file keeps that of the source (default: %(default)s)",
    )
    add(
        "--keep_layer_scale",
        action="store_true",
        help="keep LayerScale for training with hf_deit; plain transformers then loads the model wrongly",
    )
    add(
        "--partial",
        action="store_true",
        help="take the weights that fit; initialise missing ones randomly and leave out the others",
    )

    export = commands.add_parser(
        "export",
        help="export a model for other programs: ONNX, torch.export, or weights with timm's or the official names",
        epilog="The exported file is compared with the model. The largest difference of a logit is printed; if it is "
        "too large, no file is written.",
    )
    export.add_argument("model", metavar="MODEL", help="folder, Hub name or file")
    export.add_argument(
        "out", metavar="OUT", help="new file: .onnx, .pt2, or (for timm and official) .safetensors or .pth"
    )
    export.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "timm", "official"),
        help="onnx: for onnxruntime and others; torch: a program of torch.export; timm, official: weights with the "
        "parameter names of timm or of the official code, which differ in the names of LayerScale",
    )
    export.add_argument(
        "--quantize",
        choices=("int8", "int8-dynamic"),
        help="quantise an ONNX file for onnxruntime. int8: weights in 8 bits; int8-dynamic: also activations, which is "
        "faster and less exact",
    )


def _convert(options: argparse.Namespace, fields: list[str]) -> None:
    with quick_imports():
        import torch

        from ..models.convert import convert
        from ..sizes import as_size

    names = ("weights", "num_attention_heads", "labels", "partial", "image_mean", "image_std", "crop_ratio")
    model = convert(
        options.source,
        options.out,
        **{name: getattr(options, name) for name in names},
        keep_layer_scale=options.keep_layer_scale,
        image_size=as_size("image_size", options.image_size),
        dtype=None if options.dtype == "file" else getattr(torch, options.dtype),
    )
    print(f"{model.num_parameters():,} parameters in {options.out}. Load it anywhere with")
    print(f'  AutoModelForImageClassification.from_pretrained("{options.out}")')


def _export(options: argparse.Namespace, fields: list[str]) -> None:
    if options.quantize is not None and options.format != "onnx":
        from ..errors import UserError

        raise UserError(
            f"--quantize {options.quantize} requires --format onnx, and --format {options.format} is given. Leave "
            "--quantize out, or choose --format onnx."
        )
    if options.format in ("timm", "official"):
        from ..models.convert import export_timm

        difference = export_timm(options.model, options.out, official=options.format == "official")
        print(
            f"Written to {options.out}. After reading the file back, the largest difference of a logit is "
            f"{difference:.3g}."
        )
        return
    from ..models.export import export_onnx, export_program

    if options.format == "onnx":
        written = export_onnx(options.model, options.out, options.quantize)
    else:
        written = export_program(options.model, options.out)
    if written.eight_bits is not None:
        print(f"{100 * written.eight_bits:.1f} % of the weights are in 8 bits, the others in float32.")
    size = sum(file.stat().st_size for file in written.files) / 1e6
    print(
        f"Written to {' and '.join(map(str, written.files))} ({size:.1f} MB). On batches of 1, 2 and 5 images, the "
        f"largest difference of a logit is {written.difference:.3g} (largest logit {written.largest_logit:.3g})."
    )
