"""The command `hf-deit explain`."""

import argparse
import sys
from typing import Any

from ..errors import UserError
from .common import input_names, quick_imports

_DESCRIPTION = """\
Show what the class token and the distillation token read.

  hf-deit explain MODEL IMAGE… --out DIR           maps over images: one row per image, in DIR/maps-001.png …
  hf-deit explain MODEL --data DATA --layers --out DIR
                                                   numbers per layer over a data set, in DIR/layers.png and layers.json

Images are given as for predict: files, folders, 'PATTERNS', tables, data sets, or - for names on standard input.
MODEL is a DeiT or ViT classifier."""
_OF_IMAGES = {"classes": "--classes", "method": "--method"}
_OF_LAYERS = {"label_column": "--label_column", "label_separator": "--label_separator"}


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="maps of what the class and distillation tokens read, and numbers per layer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("model", help="folder or Hub name of the model")
    images = explain.add_argument("images", nargs="+", help="images, folders, patterns, tables, data sets, or -")
    images.required = False  # with "*", argparse accepts no images after an option
    explain.add_argument("--out", required=True, metavar="DIR", help="new or empty folder for the pictures")
    explain.add_argument(
        "--method",
        nargs="+",
        metavar="METHOD",
        help="rollout, relevance and last_layer, one or several (default: rollout relevance)",
    )
    explain.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="names or indices of the classes that the relevance explains, side by side (default: the predicted class)",
    )
    explain.add_argument("--layers", action="store_true", help="numbers per layer over --data, instead of maps")
    explain.add_argument("--data", help="data for --layers, as for evaluate")
    explain.add_argument(
        "--split",
        help="split of the folders and data sets; with --layers as for evaluate (default: validation, or test if there is none)",
    )
    explain.add_argument("--image_column", help="column of images in tables and data sets")
    explain.add_argument("--label_column", nargs="+", help="label columns of a table, with --layers")
    explain.add_argument("--label_separator", help="text between the labels of a cell of a table, with --layers")
    explain.add_argument(
        "--batch_size", type=int, help="number of images at a time (default: 4 for maps, 16 with --layers)"
    )


def _explain(options: argparse.Namespace, fields: list[str]) -> None:
    """Explain images or, with --layers, measure layers."""
    if not options.layers:
        if options.data is not None:
            raise UserError(
                f"--data {options.data} is for --layers. Add --layers for numbers per layer; for maps, give the images after "
                "the model instead."
            )
        _refuse(options, _OF_LAYERS, "is for --layers")
        if not options.images:
            taken = [name for name in _OF_IMAGES if getattr(options, name) is not None]
            hint = f" Put the images before {_OF_IMAGES[taken[0]]}, which takes all words after it." if taken else ""
            raise UserError(
                f"No images are given: name at least one after the model, or give --layers --data DATA.{hint}"
            )
        _explain_images(options)
        return
    _refuse(options, _OF_IMAGES, "is for maps of images, not for --layers")
    if options.images:
        raise UserError(f"--layers takes its images from --data, and {options.images[0]} is given too. Leave it out.")
    if options.data is None:
        raise UserError("--layers needs data: --data DATA, as for evaluate.")
    _explain_layers(options)


def _refuse(options: argparse.Namespace, names: dict[str, str], reason: str) -> None:
    for name, option in names.items():
        if getattr(options, name) is not None:
            raise UserError(f"{option} {getattr(options, name)}: this option {reason}. Leave it out.")


def _explain_images(options: argparse.Namespace) -> None:
    with quick_imports():
        from ..data.tables import Columns
        from ..inspection.explain import BATCH_SIZE, DEFAULT_METHODS, Explainer, check_batch_size
        from ..inspection.explain_files import check_out, map_files
        from ..recipes.inputs import Failure, find_inputs
        from ..recipes.predict import failed, shown

    target = check_out(options.out)
    batch_size = BATCH_SIZE if options.batch_size is None else options.batch_size
    check_batch_size(batch_size)
    inputs = input_names(options.images)
    explainer = Explainer(options.model, options.method or DEFAULT_METHODS, options.classes)
    found = find_inputs(inputs, explainer.class_names, options.split, Columns(options.image_column, ()))
    failures, count = [], 0
    with map_files(target) as add:
        for explanation in explainer.explanations(found, batch_size):
            if isinstance(explanation, Failure):
                failures.append(explanation)
                continue
            count += 1
            add(explanation)
            print(f"{shown(explanation.image)}: {explanation.prediction} {100 * explanation.score:.1f} %", flush=True)
        if not count:
            raise failed(failures, count, missing="maps", done="explained")  # nothing is written
    print(f"Written to {options.out}: the maps of {count} image(s)")
    if failures:
        sys.stdout.flush()
        raise failed(failures, count, missing="maps", done="explained")


def _explain_layers(options: argparse.Namespace) -> None:
    with quick_imports():
        from ..inspection.explain_files import check_out, write_layers
        from ..inspection.token_layers import BATCH_SIZE, explain_layers
        from ..recipes.data import columns_of

    target = check_out(options.out)
    layers = explain_layers(
        options.model,
        options.data,
        split=options.split,
        columns=columns_of(options),
        batch_size=BATCH_SIZE if options.batch_size is None else options.batch_size,
        progress=not options.quiet,
    )
    write_layers(target, layers)
    _print_layers(layers)
    print(f"Written to {options.out}: layers.png, layers.json ({layers.images} images, {layers.split})")


def _print_layers(layers: Any) -> None:
    from .common import print_table

    two = layers.cosine is not None
    rows = [["layer", *(["cosine", "std"] if two else []), "attention distance"]]
    if two:
        rows.append(["learned tokens", f"{layers.learned_cosine:.4f}", "", ""])
        rows.append(["with positions", f"{layers.embeddings_cosine:.4f}", "", ""])
    for index, heads in enumerate(layers.attention_distance):
        cosine = [f"{layers.cosine[index]:.4f}", f"{layers.cosine_std[index]:.4f}"] if two else []
        rows.append([str(index + 1), *cosine, f"{sum(heads) / len(heads):.1f} px"])
    if two:
        rows.append(["final norm", *(f"{value:.4f}" for value in layers.final_cosine), ""])
    print_table(rows)
    if two:
        paper = layers.paper
        print(
            f"For comparison, the paper: {paper.learned} (learned tokens), {paper.last_layer} (last layer); {paper.source}."
        )
