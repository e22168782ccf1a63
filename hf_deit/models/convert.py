"""Checkpoints of any origin as models of this package and folders for transformers, and back to a file for timm.

Files are read in weights.py, names and shapes are understood in timm_names.py, classes are named by
label_names.py. What a student is made into for other images or classes is in fine_tuning.py.

Paper: Touvron et al., arXiv:2012.12877 (the released files and the protocol that evaluates them).
"""

import copy
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file

from ..errors import UserError
from ..files import check_place, new_folder, staged_files, staged_folder, write_json
from ..sizes import as_pair
from .configuration_deit import DeiTConfig, ViTConfig, check_size
from .image_processing_deit import DEFAULT_CROP_RATIO, DeiTImageProcessor
from .label_names import class_names, label_fields, read_label_names
from .loading import WHOLE_FILES, no_safetensors, published_name, refuse_adapters
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from .timm_names import (
    check_weights,
    describe_problems,
    head_name,
    infer_architecture,
    own_names,
    to_timm_names,
    with_class_position,
)
from .weights import FOLDER_FILES, read_weights

logger = logging.getLogger(__name__)

Student = DeiTForImageClassificationWithTeacher | ViTForImageClassification
_PROCESSOR_FILE = "preprocessor_config.json"
# As torch.hub and the official release name files.
_HASHED_NAME = re.compile(r"-[0-9a-f]{8}\.pth$")
# From the Hub: no pickle and no code.
_DOWNLOADED = ("config.json", _PROCESSOR_FILE, "model*.safetensors", "model.safetensors.index.json")


def load_checkpoint(
    source: str | Path,
    *,
    weights: str | None = None,
    image_size: int | Sequence[int] | None = None,
    num_attention_heads: int | None = None,
    labels: str | Path | None = None,
    partial: bool = False,
    dtype: torch.dtype | None = torch.float32,
) -> Student:
    """Loads a DeiT or ViT of any origin as a student of this package.

    Args:
        source: Official or timm `.pth` or `.safetensors`; a folder of transformers 4 or 5 or of timm; an index of shards;
            a Hub name or a short one (`deit-tiny-distilled`). Without a configuration beside it the architecture is read
            off the shapes.
        weights: Of a training checkpoint "model" or "model_ema"; None: "model" where there are both.
        image_size: Pixels, a number or (height, width), where the file does not tell them; None: a square image.
        num_attention_heads: Where the file does not tell them; None: 64 values a head in the published widths.
        labels: File of class names, see `label_names.read_label_names`; None: the configuration's, or for 1,000 classes
            ImageNet-1k's where an installed package brings them, else LABEL_n.
        partial: Load what fits, and initialise or leave out the rest, which is logged; False refuses.
        dtype: Of the model's parameters; None: as in the file.

    Raises:
        UserError: They are no weights of a DeiT or ViT, or names are missing, unknown or of another shape.
        UserError: The file is none, damaged, or would run code.
        UserError: The file of class names is none or of another length.
        UserError: `image_size` is no number of pixels and no pair of them.
    """
    if image_size is not None:
        check_size("image_size", image_size)
    path = _local_path(source)
    refuse_adapters(path)
    found = read_weights(path, weights)
    timm = "cls_token" in found
    own = with_class_position(own_names(found), image_size)
    if "deit.embeddings.distillation_token" in own and "classifier.weight" in own and not partial:
        raise UserError(
            f"{source} is a DeiTForImageClassification: a distillation token, and one head on the class token alone. No student "
            "here and no model of timm or of the official code is of that kind; transformers loads it, and so do predict "
            "and export to onnx or torch."
        )
    config = _config(path, own, image_size, num_attention_heads, labels, partial)
    model_class = DeiTForImageClassificationWithTeacher if isinstance(config, DeiTConfig) else ViTForImageClassification
    with torch.device("meta"):
        problems = check_weights(own, model_class(config), timm)
    wrong = describe_problems(problems)
    if wrong and not partial:
        raise UserError(
            f"{source} does not fit {_described(config)}: {wrong}. Mend the file, or convert what fits: partial (hf-deit convert --partial)."
        )
    model = model_class(config).to(dtype or next(iter(own.values())).dtype).eval()
    if wrong:
        own = _fitting(own, model, source)
        logger.warning("%s is loaded in part; what is missing is initialised randomly. %s.", source, wrong)
    try:
        model.load_state_dict(own, strict=not partial)
    except ValueError as error:  # of LayerScale without gamma, see state_dicts.py
        raise UserError(f"{source}: {error}") from error
    logger.info("%s: %s.", source, _described(config))
    return model


def _local_path(source: str | Path) -> Path:
    """The file or folder itself, or the folder that a Hub name was downloaded to."""
    name = str(source)
    if Path(name).exists() or isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return Path(name)
    if Path(name).suffix in (".pth", ".pt", ".bin", ".safetensors", ".json"):
        return Path(name)
    try:
        folder = Path(snapshot_download(published_name(name), allow_patterns=list(_DOWNLOADED)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no file or folder here, and {published_name(name)!r} cannot be had from the Hub: {error}"
        ) from error
    # Another program may have put a pickle into the same snapshot.
    if not any((folder / file).is_file() for file in WHOLE_FILES):
        raise no_safetensors(published_name(name))
    return folder


def folder_of(path: Path) -> Path | None:
    """The folder that `path` is or whose weights it is; None for a file by itself."""
    if path.is_file():
        return path.parent if path.name in FOLDER_FILES else None
    return path


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """Gives the content of a JSON file in the folder that `path` is or whose weights it is; empty if there is none.

    Raises:
        UserError: It cannot be read.
    """
    folder = folder_of(path)
    if folder is None or not (folder / name).is_file():
        return {}
    file = folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is not readable JSON ({error}): correct it, or give the weights without it."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold fields and values, but holds a {type(content).__name__}: correct it.")
    return content


def _config(
    path: Path,
    weights: dict[str, torch.Tensor],
    image_size: Any,
    num_attention_heads: int | None,
    labels: str | Path | None,
    partial: bool,
) -> DeiTConfig | ViTConfig:
    """The configuration beside the weights, or one read off their shapes."""
    distilled = "deit.embeddings.distillation_token" in weights
    config_class = DeiTConfig if distilled else ViTConfig
    given = {"image_size": image_size, "num_attention_heads": num_attention_heads}
    if isinstance(image_size, Sequence):
        given["image_size"] = tuple(image_size) if image_size[0] != image_size[1] else image_size[0]
    stored = json_beside(path, "config.json")
    # timm's config.json has no model_type; its weights tell the same.
    if "model_type" not in stored:
        fields = infer_architecture(weights, **given) | _classes(weights, distilled, labels, partial)
        return _built(config_class, fields, path)
    if stored["model_type"] != config_class.model_type:
        raise UserError(
            f"{path}: by its config.json it is a {stored['model_type']!r}, by its weights a {config_class.model_type!r} "
            f"({'with' if distilled else 'without'} a distillation token). Only deit and vit are converted."
        )
    fields = {name: value for name, value in given.items() if value is not None}
    config = _built(config_class.from_dict, stored | fields, path)
    if labels is None and class_names(config.id2label) is not None:
        return config
    return _built(config_class.from_dict, stored | fields | label_fields(config.num_labels, labels), path)


def _built(build: Callable[..., Any], fields: dict[str, Any], path: Path) -> DeiTConfig | ViTConfig:
    try:
        return build(**fields) if isinstance(build, type) else build(fields)
    except Exception as error:  # a broken config.json fails in as many ways as there are fields
        raise UserError(f"{path}: its configuration describes no model: {error}") from error


def _classes(
    weights: dict[str, torch.Tensor], distilled: bool, labels: str | Path | None, partial: bool
) -> dict[str, Any]:
    """Number and names of the classes, off the class head."""
    head = weights.get(head_name(distilled))
    if head is not None:
        num_labels = head.shape[0]
    elif partial and labels is not None:
        num_labels = len(read_label_names(labels))
    else:
        raise UserError(
            "The weights have no class head, so nothing tells how many classes there are. Give a file of class names "
            "(labels) and partial: then a new head is made."
        )
    return {"num_labels": num_labels} | label_fields(num_labels, labels)


def _described(config: DeiTConfig | ViTConfig) -> str:
    """The architecture in words."""
    kind = "a distilled student" if isinstance(config, DeiTConfig) else "a plain student"
    (height, width), (high, wide) = as_pair(config.image_size), as_pair(config.patch_size)
    scale = ", LayerScale" if config.layer_scale_init_value is not None else ""
    return (
        f"{kind} of {config.num_hidden_layers} layers × {config.hidden_size} wide, {config.num_attention_heads} heads, "
        f"patches of {high}×{wide}, images of {height}×{width}, {config.num_labels} classes{scale}"
    )


def _fitting(weights: dict[str, torch.Tensor], model: Student, source: str | Path) -> dict[str, torch.Tensor]:
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    fitting = {name: weight for name, weight in weights.items() if shapes.get(name) == weight.shape}
    if not fitting:
        raise UserError(f"{source}: not one of its {len(weights)} tensors fits, so there is nothing to load.")
    return fitting


def convert(
    source: str | Path,
    out: str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    crop_ratio: float | None = None,
    keep_layer_scale: bool = False,
    **loading: Any,
) -> Student:
    """Writes a folder that plain transformers loads, with its image processor.

    Args:
        source: See `load_checkpoint`.
        out: Folder, new or empty; it appears whole or not at all.
        image_mean: Of each channel, for pixels in [0, 1]; None: the source's where it tells them, else ImageNet's.
        image_std: Standard deviation likewise.
        crop_ratio: Crop over shorter edge, above 0 up to 1; None: the source's, else 0.875.
        keep_layer_scale: Keep gamma, to go on training here; False multiplies it into the weights, because stock
            transformers has none and would compute another function.
        **loading: Further arguments of `load_checkpoint`.

    Returns:
        The model, as loaded.

    Raises:
        UserError: As `load_checkpoint`, or `out` is there already, or mean, std or crop ratio are impossible.
    """
    target = new_folder(out, UserError)
    path = _local_path(source)
    model = load_checkpoint(path, **loading)
    write_processor = _processor_writer(path, model, image_mean, image_std, crop_ratio)
    if model.has_layer_scale and not keep_layer_scale:
        logger.info("LayerScale is folded into the weights, so that plain transformers computes the same logits.")
    with staged_folder(target) as staging:
        model.save_pretrained(staging, fold_layer_scale=not keep_layer_scale)
        write_processor(staging)
    return model


def _processor_writer(
    path: Path, model: Student, mean: Any, std: Any, crop_ratio: float | None
) -> Callable[[Path], Any]:
    """What writes the image processor into a folder: the source's own file, else the evaluation protocol."""
    given = {name: list(value) for name, value in (("image_mean", mean), ("image_std", std)) if value is not None}
    for name, values in given.items():
        right = len(values) == model.config.num_channels and all(map(math.isfinite, values))
        if not right or (name == "image_std" and min(values) <= 0):
            raise UserError(
                f"{name}={values}: give {model.config.num_channels} finite numbers, one a channel"
                f"{', above 0' if name == 'image_std' else ''}."
            )
    stored = json_beside(path, _PROCESSOR_FILE)
    if stored and crop_ratio is None:
        # The file as it is: another class's protocol must stay its own, and that class may not be loadable here.
        return lambda folder: write_json(folder / _PROCESSOR_FILE, stored | given)
    timm = json_beside(path, "config.json").get("pretrained_cfg") or {}
    known = {
        "image_mean": stored.get("image_mean", timm.get("mean")),
        "image_std": stored.get("image_std", timm.get("std")),
    }
    settings = {name: value for name, value in known.items() if value is not None} | given
    if not settings:
        logger.info(
            "ImageNet's mean and std are taken, as DeiT's are; other weights want theirs (image_mean, image_std)."
        )
    ratio = crop_ratio if crop_ratio is not None else timm.get("crop_pct", DEFAULT_CROP_RATIO)
    try:
        processor = DeiTImageProcessor.for_image_size(model.config.image_size, ratio, **settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    return processor.save_pretrained


def export_timm(source: str | Path, out: str | Path, official: bool = False) -> float:
    """Writes a model's weights under timm's names, reads them back and compares.

    Args:
        source: See `load_checkpoint`.
        out: New file: `.safetensors`, as timm's, or `.pth`, as the official code's (`{"model": …}`).
        official: LayerScale as `gamma_1`, not `ls1.gamma`.

    Returns:
        The largest difference of a logit between the model and the file read back, on a drawn image; 0 is expected.

    Raises:
        UserError: As `load_checkpoint`, or `out` is there already, of another suffix, or named by a hash.
    """
    out = Path(out)
    if out.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{out}: write a .safetensors or a .pth.")
    if _HASHED_NAME.search(out.name):
        raise UserError(
            f"{out}: eight digits after the last dash say how a file's SHA-256 begins, and are checked where it is read. "
            "Give a name without them."
        )
    if out.exists():
        raise UserError(f"{out} is there already: give a new name, or remove it first.")
    check_place(out, UserError)
    model = load_checkpoint(source, dtype=None)
    if not model.has_layer_scale:
        logger.info(
            "%s has no LayerScale, so the file has none: what convert folded into the weights is not taken out again "
            "(convert with --keep_layer_scale for the exact bits of such a file).",
            source,
        )
    weights = to_timm_names(model, official)
    with staged_files(out.absolute().parent) as folder:
        file = folder / out.name
        if out.suffix == ".pth":
            torch.save({"model": weights}, file)
        else:
            save_file(weights, file, metadata={"format": "pt"})
        back = copy.deepcopy(model)
        back.load_state_dict(with_class_position(own_names(read_weights(file)), model.config.image_size))
        return _largest_difference(model, back)


@torch.no_grad()
def _largest_difference(model: Student, other: Student) -> float:
    generator = torch.Generator().manual_seed(0)
    size = (1, model.config.num_channels, *as_pair(model.config.image_size))
    # Half precision has no convolution on some CPUs; the comparison is of values, which float32 holds exactly.
    pixels = torch.randn(size, generator=generator)
    return (model.float()(pixels).logits - other.float()(pixels).logits).abs().max().item()
