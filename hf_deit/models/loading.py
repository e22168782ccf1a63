"""Loads models and image processors from a folder or the Hub, with errors a user can act on.

What is built for a recipe is in recipes/build.py; weights of other origins become a model in convert.py.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.initialization import no_init_weights

from ..errors import UserError
from .image_processing_deit import DeiTImageProcessor
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification

logger = logging.getLogger(__name__)

# For every call of an Auto class.
NO_CODE = {"trust_remote_code": False}
ADAPTER_FILE = "adapter_config.json"
WHOLE_FILES = ("model.safetensors", "model.safetensors.index.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def refuse_adapters(folder: str | Path) -> None:
    """Refuses a folder of peft adapters, which are a part of a model.

    Raises:
        UserError: It is one.
    """
    if (Path(folder) / ADAPTER_FILE).is_file():
        raise UserError(
            f"{folder} holds adapters (LoRA) and no whole model: merge them first, with the student they were trained on: "
            f'peft.PeftModel.from_pretrained(student, "{folder}").merge_and_unload().save_pretrained("merged"), and save the '
            'image processor beside it: processor.save_pretrained("merged").'
        )


def refuse_pickles_of_the_hub(name: str) -> None:
    """Refuses a name of the Hub without safetensors. Asked before transformers, which would have them converted elsewhere.

    Raises:
        UserError: There are none.
        OSError: The Hub was not reached, or does not know the name.
    """
    from transformers.utils import cached_file

    if Path(name).exists():
        return
    if all(cached_file(name, file, _raise_exceptions_for_missing_entries=False) is None for file in WHOLE_FILES):
        raise no_safetensors(name)


def no_safetensors(name: str) -> UserError:
    """The error of a name of the Hub without safetensors."""
    return UserError(
        f"{name} on the Hub holds no model.safetensors, and pickles (.bin, .pth) are not taken from the network. If you trust "
        f"it: hf download {name} --local-dir FOLDER, then give FOLDER."
    )


def load_config(name_or_path: str, **fields: Any) -> Any:
    """Load a configuration.

    Args:
        name_or_path: Folder or full Hub name.
        **fields: Take the place of what the file says.

    Raises:
        UserError: There is none, or it needs code of its own.
    """
    from transformers import AutoConfig

    refuse_adapters(name_or_path)
    try:
        return AutoConfig.from_pretrained(name_or_path, **NO_CODE, **fields)
    except Exception as error:  # a broken config.json fails in as many ways as there are fields
        raise _explained(name_or_path, error) from error


def load_pretrained(
    model_class: Any, name_or_path: str, needs_head: bool = True, with_weights: bool = True, **kwargs: Any
) -> Any:
    """Load a model by one of its classes.

    Args:
        model_class: With `from_pretrained`.
        name_or_path: Folder or full Hub name.
        needs_head: Refuse weights that are not all there, as a backbone's without classifier: used as they are, they
            would answer at random. False: what is missing is initialised randomly.
        with_weights: Read the weights. False: only the configuration is read, and the model's weights are arbitrary, which
            serves to check what goes together (recipes/validate.py).
        **kwargs: Of `from_pretrained`.

    Raises:
        UserError: There is no such model, it needs code of its own, is a pickle on the Hub, or is not whole.
    """
    if not with_weights:
        return _without_weights(model_class, name_or_path, needs_head, **kwargs)
    load_config(name_or_path)  # a name that does not exist has a clearer error than missing weights
    try:
        refuse_pickles_of_the_hub(name_or_path)
        safe = {} if Path(name_or_path).exists() else {"use_safetensors": True}
        model, info = model_class.from_pretrained(name_or_path, output_loading_info=True, **NO_CODE, **safe, **kwargs)
    except Exception as error:  # transformers, torch and the connection have many classes of their own
        raise _explained(name_or_path, error) from error
    missing = sorted(info["missing_keys"])
    if needs_head and missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise UserError(
            f"{name_or_path} is not whole: it holds no {', '.join(missing[:4])}{more} for {type(model).__name__}, which would "
            "answer at random. Train it first (hf-deit train --model), or give the folder of a trained classifier."
        )
    if needs_head:
        _check_class_names(name_or_path, model.config)
    return model


def _check_class_names(name_or_path: str, config: Any) -> None:
    names = getattr(config, "id2label", None)
    if names and set(names) != set(range(len(names))):
        raise UserError(
            f"{name_or_path}: id2label in its config.json must name the classes 0 to {len(names) - 1}, and is "
            f"{str(names)[:200]}. Correct it."
        )


def _without_weights(
    model_class: Any,
    name_or_path: str,
    needs_head: bool,
    ignore_mismatched_sizes: bool = False,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Any:
    """Build a model from its configuration; its weights are whatever lies in memory."""
    config = load_config(name_or_path, **fields)
    folder = Path(name_or_path)
    if folder.is_dir() and not any(file.is_file() for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise UserError(f"No model at {str(name_or_path)!r}: there is a config.json, but no file of weights beside it.")
    if needs_head:
        _check_class_names(name_or_path, config)
    build = getattr(model_class, "from_config", None) or model_class._from_config
    try:
        with no_init_weights():
            return build(config, dtype=dtype)
    except Exception as error:
        raise _explained(name_or_path, error) from error


def _explained(name_or_path: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if "trust_remote_code" in str(error):
        return UserError(
            f"{name_or_path} wants code of its own to be run (auto_map in its config.json), which is never done here: give a "
            "model whose class is transformers' own."
        )
    if "ignore_mismatched_sizes" in str(error):
        return UserError(
            f"{name_or_path}: its weights are of other shapes than its config.json says (number of classes, sizes; the table "
            "above names them): correct config.json."
        )
    kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
    return UserError(f"No model at {str(name_or_path)!r}: {kind}{error}")


_SHORT_NAME = re.compile(r"deit-(tiny|small|base)(-distilled)?(?:-patch16)?(?:-(224|384))?")
# The paper's teacher; `regnety_160` is the official code's name.
_TEACHERS = {"regnet-y-160": "facebook/regnet-y-160", "regnety-160": "facebook/regnet-y-160"}


def published_name(name_or_path: str) -> str:
    """Gives the Hub name of a published DeiT or of its teacher for a short one; anything else comes back as it was.

    Args:
        name_or_path: For example `deit-small`, `deit-base-distilled-384`, `regnet-y-160`, or the official code's
            `deit_tiny_distilled_patch16_224`. A folder or file of that name goes first.
    """
    return name_or_path if Path(name_or_path).exists() else full_name(name_or_path)


def full_name(name: str) -> str:
    """As `published_name`, whatever lies in the folder one is in."""
    short = str(name).lower().replace("_", "-")
    match = _SHORT_NAME.fullmatch(short)
    if match is None:
        return _TEACHERS.get(short, name)
    size, distilled, pixels = match.groups()
    if pixels == "384" and size != "base":
        return name  # only the base model was published at 384
    return f"facebook/deit-{size}{distilled or ''}-patch16-{pixels or 224}"


_OWN_CLASSES = {
    ("deit", "DeiTForImageClassificationWithTeacher"): DeiTForImageClassificationWithTeacher,
    ("vit", "ViTForImageClassification"): ViTForImageClassification,
}


def load_model(name_or_path: str, needs_head: bool = True, **kwargs: Any) -> PreTrainedModel:
    """Loads an image classifier: this package's trainable class where it has one, else the stock class.

    Args:
        name_or_path: Folder or Hub name, also a short one of a published DeiT (`deit-tiny-distilled`).
        needs_head: Refuse weights that are not all there; False: what is missing is initialised randomly.
        **kwargs: Of `load_pretrained`.

    Raises:
        UserError: There is no such model, or none that is whole.
    """
    _refuse_file(name_or_path)
    name_or_path = published_name(name_or_path)
    config = load_config(name_or_path)
    key = (config.model_type, (config.architectures or [""])[0])
    model_class = _OWN_CLASSES.get(key, AutoModelForImageClassification)
    return load_pretrained(model_class, name_or_path, needs_head, **kwargs)


def _refuse_file(name_or_path: str) -> None:
    if Path(name_or_path).is_file():
        raise UserError(
            f"{name_or_path} is a file, but a model is a folder. Make one of it: hf-deit convert {name_or_path} FOLDER."
        )


def normalization(model: str | None) -> dict[str, list[float]]:
    """Mean and std of the pixels that weights were trained with; nothing (ImageNet's) from scratch."""
    if model is None:
        return {}
    try:
        processor = load_processor(model)
    except UserError:
        logger.warning("%s has no image processor: ImageNet's mean and std are taken.", model)
        return {}
    return {
        name: list(getattr(processor, name)) for name in ("image_mean", "image_std") if getattr(processor, name, None)
    }


def load_processor(name_or_path: str) -> Any:
    """Loads the image processor of a model.

    Raises:
        UserError: It has none, or one that needs torchvision where that is not installed.
    """
    _refuse_file(name_or_path)
    name_or_path = published_name(name_or_path)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        if settings.get("image_processor_type", settings.get("feature_extractor_type", "")).startswith("DeiT"):
            return DeiTImageProcessor.from_pretrained(name_or_path)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(name_or_path, **NO_CODE)
    except (OSError, ValueError, ImportError, ModuleNotFoundError) as error:
        raise UserError(f"No usable image processor at {name_or_path!r}: {error}") from error
