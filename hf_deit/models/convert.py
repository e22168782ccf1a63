"""Conversion of checkpoints of any origin into models and folders for transformers, and export of files for timm.

Files are read in weights.py, names and shapes are interpreted in timm_names.py, and class names are read in
label_names.py. Students are changed for other image sizes in fine_tuning.py.

Paper: Touvron et al., arXiv:2012.12877 (the released files and their evaluation protocol).
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
from .image_processing_deit import DEFAULT_CROP_RATIO, DeiTImageProcessor, published_fields
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
# Naming scheme of torch.hub and of the official release: the digits are the beginning of the SHA-256.
_HASHED_NAME = re.compile(r"-[0-9a-f]{8}\.pth$")
# Files to download from the Hub: no pickles and no code.
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
    """Load a DeiT or ViT of any origin as a student of this package.

    Args:
        source: A `.pth` or `.safetensors` of the official code or of timm, a folder of transformers 4 or 5 or of timm,
            an index of shards, a Hub name, or a short name (`deit-tiny-distilled`). If the folder of the weights has no
            configuration of transformers, the architecture is inferred from the shapes of the weights.
        weights: Weights to read from a training checkpoint: "model" or "model_ema". None reads "model" if both exist.
        image_size: Image size in pixels, one number or (height, width). It is needed if the file does not contain it
            and the images are not square.
        num_attention_heads: Number of attention heads, if the file does not contain it. None uses the published number
            for the published widths.
        labels: File of class names (see `label_names.read_label_names`). None uses the names in the configuration; if
            it has none, the classes are called LABEL_n.
        partial: True loads the weights that fit, initialises missing weights randomly, ignores unknown ones, and logs
            both. False raises an error if weights do not fit.
        dtype: Data type of the parameters of the model. None uses that of the file.

    Raises:
        UserError: The weights are not those of a DeiT or ViT, or weights are missing, unknown or of another shape.
        UserError: The file does not exist, is damaged, or would run code.
        UserError: The file of class names cannot be read or has another number of names.
        UserError: `image_size` is neither a positive number of pixels nor a pair of them.
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
            f"{source} is a DeiTForImageClassification: it has a distillation token, but only one head, on the class "
            "token. This package, timm and the official code have no such model. Load it with transformers, or use "
            "hf-deit predict, or hf-deit export with --format onnx or torch."
        )
    config = _config(path, own, image_size, num_attention_heads, labels, partial)
    model_class = DeiTForImageClassificationWithTeacher if isinstance(config, DeiTConfig) else ViTForImageClassification
    with torch.device("meta"):
        problems = check_weights(own, model_class(config), timm)
    wrong = describe_problems(problems)
    if wrong and not partial:
        raise UserError(
            f"{source} does not fit {_described(config)}: {wrong}. Fix the file, or load only the weights that fit: "
            "partial=True (hf-deit convert --partial)."
        )
    model = model_class(config).to(dtype or next(iter(own.values())).dtype).eval()
    if wrong:
        own = _fitting(own, model, source)
        logger.warning("Only a part of %s is loaded. Missing weights are initialised randomly. %s.", source, wrong)
    try:
        model.load_state_dict(own, strict=not partial)
    except ValueError as error:  # LayerScale without gamma, see state_dicts.py
        raise UserError(f"{source}: {error}") from error
    logger.info("%s: %s.", source, _described(config))
    return model


def _local_path(source: str | Path) -> Path:
    """Return the path of a file or folder. A model on the Hub is downloaded, and the path of its folder is returned."""
    name = str(source)
    if Path(name).exists() or isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return Path(name)
    if Path(name).suffix in (".pth", ".pt", ".bin", ".safetensors", ".json"):
        return Path(name)
    try:
        folder = Path(snapshot_download(published_name(name), allow_patterns=list(_DOWNLOADED)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is not a file or folder, and {published_name(name)!r} cannot be downloaded from the Hub: {error}"
        ) from error
    # Another program may have downloaded a pickle into the same snapshot, which must not be read.
    if not any((folder / file).is_file() for file in WHOLE_FILES):
        raise no_safetensors(published_name(name))
    return folder


def folder_of(path: Path) -> Path | None:
    """Return the folder of a model for its path or for the path of its weights, or None for any other file."""
    if path.is_file():
        return path.parent if path.name in FOLDER_FILES else None
    return path


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """Return the content of the JSON file `name` in the folder of a model (see `folder_of`).

    The dictionary is empty if there is no such folder or file.

    Raises:
        UserError: The file cannot be read or does not contain a JSON object.
    """
    folder = folder_of(path)
    if folder is None or not (folder / name).is_file():
        return {}
    file = folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is not readable JSON ({error}). Correct it, or give a copy of the weights in another folder."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain a JSON object, but it contains a {type(content).__name__}. Correct it.")
    return content


def _config(
    path: Path,
    weights: dict[str, torch.Tensor],
    image_size: Any,
    num_attention_heads: int | None,
    labels: str | Path | None,
    partial: bool,
) -> DeiTConfig | ViTConfig:
    """Return the configuration in the folder of the weights, or one inferred from the shapes of the weights."""
    distilled = "deit.embeddings.distillation_token" in weights
    config_class = DeiTConfig if distilled else ViTConfig
    given = {"image_size": image_size, "num_attention_heads": num_attention_heads}
    if isinstance(image_size, Sequence):
        given["image_size"] = tuple(image_size) if image_size[0] != image_size[1] else image_size[0]
    stored = json_beside(path, "config.json")
    # The config.json of timm has no model_type, so the architecture is inferred from the weights.
    if "model_type" not in stored:
        fields = infer_architecture(weights, **given) | _classes(weights, distilled, labels, partial)
        return _built(config_class, fields, path)
    if stored["model_type"] != config_class.model_type:
        raise UserError(
            f"{path}: its config.json has the model_type {stored['model_type']!r}, but its weights are those of a "
            f"{config_class.model_type!r} ({'with' if distilled else 'without'} a distillation token). Only models of "
            "the types deit and vit can be converted."
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
        raise UserError(f"{path}: its configuration is invalid: {error}") from error


def _classes(
    weights: dict[str, torch.Tensor], distilled: bool, labels: str | Path | None, partial: bool
) -> dict[str, Any]:
    """Return the fields for the number and names of the classes, from the class head."""
    head = weights.get(head_name(distilled))
    if head is not None:
        num_labels = head.shape[0]
    elif partial and labels is not None:
        num_labels = len(read_label_names(labels))
    else:
        raise UserError(
            "The weights have no class head, so the number of classes is unknown. Give a file of class names (labels) "
            "and partial=True; a new head is then initialised."
        )
    return {"num_labels": num_labels} | label_fields(num_labels, labels)


def _described(config: DeiTConfig | ViTConfig) -> str:
    """Return a description of the architecture, for messages."""
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
        raise UserError(f"{source}: none of its {len(weights)} tensors fits the model, so there is nothing to load.")
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
    """Convert a checkpoint into a folder that transformers loads without this package, with its image processor.

    Args:
        source: See `load_checkpoint`.
        out: New or empty folder. It is written completely or not at all.
        image_mean: Mean of each channel, for pixels in [0, 1]. None uses the mean of the source, or that of ImageNet if
            the source has none.
        image_std: Standard deviation of each channel, with the same default as `image_mean`.
        crop_ratio: Crop size divided by the shorter edge, above 0 and at most 1. None uses the ratio of the source, or
            0.875 if the source has none.
        keep_layer_scale: True keeps the gamma of LayerScale, to continue training with this package. False multiplies
            it into the weights, because stock transformers has no LayerScale and would compute different logits.
        **loading: Further arguments of `load_checkpoint`.

    Returns:
        The model, as loaded.

    Raises:
        UserError: The checkpoint cannot be loaded (see `load_checkpoint`), `out` is not a new or empty folder, or the
            mean, std or crop ratio is invalid.
    """
    target = new_folder(out, UserError)
    path = _local_path(source)
    model = load_checkpoint(path, **loading)
    write_processor = _processor_writer(path, model, image_mean, image_std, crop_ratio)
    if model.has_layer_scale and not keep_layer_scale:
        logger.info("LayerScale is folded into the weights, so that stock transformers computes the same logits.")
    with staged_folder(target) as staging:
        model.save_pretrained(staging, fold_layer_scale=not keep_layer_scale)
        write_processor(staging)
    return model


def _processor_writer(
    path: Path, model: Student, mean: Any, std: Any, crop_ratio: float | None
) -> Callable[[Path], Any]:
    """Return a function that writes the image processor into a folder.

    The image processor is that of the source, or the official evaluation protocol if the source has none.
    """
    given = {name: list(value) for name, value in (("image_mean", mean), ("image_std", std)) if value is not None}
    for name, values in given.items():
        right = len(values) == model.config.num_channels and all(map(math.isfinite, values))
        if not right or (name == "image_std" and min(values) <= 0):
            raise UserError(
                f"{name}={values}: give {model.config.num_channels} finite numbers, one for each channel"
                f"{', above 0' if name == 'image_std' else ''}."
            )
    stored = json_beside(path, _PROCESSOR_FILE)
    if stored and crop_ratio is None:
        # The processor may be of another class, which may not be loadable here: its fields are copied as they are.
        try:
            fields = published_fields(stored | given)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        return lambda folder: write_json(folder / _PROCESSOR_FILE, fields)
    timm = json_beside(path, "config.json").get("pretrained_cfg") or {}
    known = {
        "image_mean": stored.get("image_mean", timm.get("mean")),
        "image_std": stored.get("image_std", timm.get("std")),
    }
    settings = {name: value for name, value in known.items() if value is not None} | given
    if not settings:
        logger.info(
            "The mean and std of ImageNet are used, as for DeiT. If the weights were trained with other values, give "
            "them (image_mean, image_std)."
        )
    ratio = crop_ratio if crop_ratio is not None else timm.get("crop_pct", DEFAULT_CROP_RATIO)
    try:
        processor = DeiTImageProcessor.for_image_size(model.config.image_size, ratio, **settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    return processor.save_pretrained


def export_timm(source: str | Path, out: str | Path, official: bool = False) -> float:
    """Write the weights of a model under the names of timm, read them again, and compare the logits.

    Args:
        source: See `load_checkpoint`.
        out: New file. A `.safetensors` has the format of timm, a `.pth` that of the official code (`{"model": …}`).
        official: Use the name `gamma_1` of the official code for LayerScale, instead of the name `ls1.gamma` of timm.

    Returns:
        The largest difference of a logit between the model and the written file, on a random image. It should be 0.

    Raises:
        UserError: The model cannot be loaded (see `load_checkpoint`), `out` already exists or has another suffix, or
            its name ends with eight hexadecimal digits, which would be read as a hash.
    """
    out = Path(out)
    if out.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{out}: the file name must end in .safetensors or .pth. Give such a name.")
    if _HASHED_NAME.search(out.name):
        raise UserError(
            f"{out}: eight hexadecimal digits after the last dash would state the beginning of the SHA-256, which is "
            "checked when the file is read. Give a name without them."
        )
    if out.exists():
        raise UserError(f"{out} already exists. Give a new name.")
    check_place(out, UserError)
    model = load_checkpoint(source, dtype=None)
    if not model.has_layer_scale:
        logger.info(
            "%s has no LayerScale, so the file has none either. If hf-deit convert folded LayerScale into the weights, "
            "the export does not undo this. For an exact copy of such a file, convert it with --keep_layer_scale.",
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
    # Some CPUs have no convolution in half precision. float32 represents the values of both models exactly.
    pixels = torch.randn(size, generator=generator)
    return (model.float()(pixels).logits - other.float()(pixels).logits).abs().max().item()
