"""Commands that convert weights and export models."""

import argparse
from typing import Any

from .common import quick_imports


def _add_conversions(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="official, timm or older weights → a folder that plain transformers loads"
    )
    add = convert.add_argument
    add("source", metavar="SOURCE", help=".pth, .safetensors, folder or Hub name")
    add("out", metavar="OUT", help="new folder")
    add("--weights", choices=("model", "model_ema"), help="of a training checkpoint (default: model)")
    add("--image_size", type=int, nargs="+", metavar="PIXELS", help="or HEIGHT WIDTH (default: square, by the shapes)")
    add("--num_attention_heads", type=int, help="(default: 64 values a head, for published widths)")
    add(
        "--labels",
        metavar="FILE",
        help="class names: one a line, or JSON (default: the source's, else LABEL_n)",
    )
    add("--image_mean", type=float, nargs="+", help="of each channel (default: the source's, else ImageNet's)")
    add("--image_std", type=float, nargs="+", help="likewise")
    add("--crop_ratio", type=float, help="crop over shorter edge (default: the source's, else 0.875; DeiT III: 1)")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16", "file"), help="(default: %(default)s)")
    add("--keep_layer_scale", action="store_true", help="to train on here; plain transformers then loads it wrongly")
    add("--partial", action="store_true", help="take what fits; the rest is initialised randomly or left out")

    export = commands.add_parser(
        "export",
        help="a model → a file for other programs: ONNX, torch.export, timm's or the official names",
        epilog="The largest difference of a logit is measured and printed; a file that is too far off is not written.",
    )
    export.add_argument("model", metavar="MODEL", help="folder, Hub name or file")
    export.add_argument("out", metavar="OUT", help="new file: .onnx, .pt2, or for names .safetensors or .pth")
    export.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "timm", "official"),
        help="onnx: for onnxruntime and others; torch: a program of torch.export; timm, official: names of parameters, which "
        "differ in LayerScale's",
    )
    export.add_argument(
        "--quantize",
        choices=("int8", "int8-dynamic"),
        help="of onnx, for onnxruntime. int8: weights in 8 bits; int8-dynamic: activations too, faster and less exact",
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

        raise UserError(f"--quantize {options.quantize} is of --format onnx, not of {options.format}: leave it out.")
    if options.format in ("timm", "official"):
        from ..models.convert import export_timm

        difference = export_timm(options.model, options.out, official=options.format == "official")
        print(f"Written to {options.out}; read back, its largest difference of a logit is {difference:.3g}.")
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
        f"Written to {' and '.join(map(str, written.files))} ({size:.1f} MB); run with batches of 1, 2 and 5, its largest "
        f"difference of a logit is {written.difference:.3g} (largest logit {written.largest_logit:.3g})."
    )
