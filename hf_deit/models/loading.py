"""Functions that load models and image processors from a folder or the Hub, with helpful errors.

Models and teachers for a recipe are built in recipes/build.py. Weights of other origins are converted in convert.py.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from ..errors import UserError, listed
from ..hub_access import check_hub_name, without_network
from .image_processing_deit import DeiTImageProcessor, is_own_processor
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification

logger = logging.getLogger(__name__)

# Keyword arguments for every call of an auto class: code of a model's own is never run.
NO_CODE = {"trust_remote_code": False}
ADAPTER_FILE = "adapter_config.json"
WHOLE_FILES = ("model.safetensors", "model.safetensors.index.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def refuse_adapters(folder: str | Path) -> None:
    """Raise an error if a folder contains peft adapters, which are not a complete model.

    Raises:
        UserError: The folder contains adapters.
    """
    if (Path(folder) / ADAPTER_FILE).is_file():
        raise UserError(
            f"{folder} holds adapters (LoRA), not a complete model. Merge them first into the student that they were "
            "trained "
            f'on: peft.PeftModel.from_pretrained(student, "{folder}").merge_and_unload().save_pretrained("merged"). '
            'Then save the image processor in the same folder: processor.save_pretrained("merged").'
        )


def refuse_pickles_of_the_hub(name: str) -> None:
    """Raise an error if a model on the Hub has no safetensors.

    This check must come before transformers loads the model: transformers would ask a service of the Hub to convert the
    pickles.

    Raises:
        UserError: The model on the Hub has no safetensors.
        OSError: The Hub cannot be reached, or has no model of this name.
    """
    from transformers.utils import cached_file

    if Path(name).exists():
        return
    if all(cached_file(name, file, _raise_exceptions_for_missing_entries=False) is None for file in WHOLE_FILES):
        raise no_safetensors(name)


def no_safetensors(name: str) -> UserError:
    """Return the error for a model on the Hub that has no safetensors."""
    return UserError(
        f"{name} on the Hub holds no model.safetensors, and pickles (.bin, .pth) are not taken from the network. If "
        f"you trust this model, run `hf download {name} --local-dir FOLDER` and give FOLDER."
    )


@contextlib.contextmanager
def hub_access(name_or_path: str | Path) -> Iterator[None]:
    """Fail at once for a path or name that does not exist, and read only what is cached if the Hub cannot be reached.

    Raises:
        UserError: The path does not exist, or the Hub has no model of that name.
    """
    here = Path(name_or_path).exists()
    reachable = here or check_hub_name(str(name_or_path), "model")
    with contextlib.nullcontext() if reachable else without_network():
        yield


def load_config(name_or_path: str, **fields: Any) -> Any:
    """Load a configuration.

    Args:
        name_or_path: Folder or full Hub name.
        **fields: Values that replace those in the file.

    Raises:
        UserError: There is no such configuration, it is invalid, or it requires code of its own.
    """
    from transformers import AutoConfig

    refuse_adapters(name_or_path)
    try:
        with hub_access(name_or_path):
            return AutoConfig.from_pretrained(name_or_path, **NO_CODE, **fields)
    except Exception as error:  # a broken config.json fails in as many ways as there are fields
        raise _explained(name_or_path, error) from error


def load_pretrained(
    model_class: Any, name_or_path: str, needs_head: bool = True, with_weights: bool = True, **kwargs: Any
) -> Any:
    """Load a model with a given class.

    Args:
        model_class: Class with a method `from_pretrained`.
        name_or_path: Folder or full Hub name.
        needs_head: True raises an error if weights are missing, for example those of the classifier in the folder of a
            backbone; the predictions would be random. False initialises missing weights randomly.
        with_weights: False reads only the configuration and leaves the weights of the model arbitrary. This is enough
            to check that the parts of a recipe fit together (recipes/validate.py).
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        UserError: There is no such model, it requires code of its own, it has only pickles on the Hub, weights are
            missing, or its class names are invalid.
    """
    if not with_weights:
        return _without_weights(model_class, name_or_path, needs_head, **kwargs)
    load_config(name_or_path)  # so that a wrong name is reported as such, not as missing weights
    try:
        refuse_pickles_of_the_hub(name_or_path)
        safe = {} if Path(name_or_path).exists() else {"use_safetensors": True}
        with hub_access(name_or_path), _loading_silently(with_report=needs_head):
            model, info = model_class.from_pretrained(
                name_or_path, output_loading_info=True, **NO_CODE, **safe, **kwargs
            )
    except Exception as error:  # transformers, torch and the network raise many classes of errors
        raise _explained(name_or_path, error) from error
    missing = sorted(info["missing_keys"])
    if needs_head and missing:
        raise UserError(
            f"{name_or_path} is not a complete {type(model).__name__}: it holds no {listed(missing, str)}. Its "
            "predictions would be random. Train it first (hf-deit train --model), or give the folder of a trained "
            "classifier."
        )
    if needs_head:
        _check_class_names(name_or_path, model.config)
    else:
        _warn_of_other_weights(name_or_path, model, info)
    return model


@contextlib.contextmanager
def _loading_silently(with_report: bool) -> Iterator[None]:
    """Load weights without the progress bar of transformers.

    Args:
        with_report: Whether to show its table of weights that do not fit. It lists the heads of other classes too.
    """

    def is_not_report(record: logging.LogRecord) -> bool:
        return with_report or "LOAD REPORT" not in record.getMessage()

    reporting = logging.getLogger("transformers.modeling_utils")
    reporting.addFilter(is_not_report)
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        reporting.removeFilter(is_not_report)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def _warn_of_other_weights(name_or_path: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Warn of weights below the heads that the files do not hold, hold in another shape, or hold for another model."""
    prefix = f"{model.base_model_prefix}."
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]]
    problems = {
        "are missing and were initialised randomly": info["missing_keys"],
        "have another shape and were initialised randomly": mismatched,
        "are in its files but not in the model, and were left out": info["unexpected_keys"],
    }
    for problem, names in problems.items():
        below = sorted(name for name in names if name.startswith(prefix))
        if below:
            logger.warning(
                "%s: %d weights of the %s %s: %s.",
                name_or_path,
                len(below),
                type(model).__name__,
                problem,
                listed(below, str),
            )


def _check_class_names(name_or_path: str, config: Any) -> None:
    names = getattr(config, "id2label", None)
    if names and set(names) != set(range(len(names))):
        raise UserError(
            f"{name_or_path}: id2label in its config.json must name the classes 0 to {len(names) - 1}, but it is "
            f"{str(names)[:200]}. Correct config.json."
        )


def _without_weights(
    model_class: Any,
    name_or_path: str,
    needs_head: bool,
    ignore_mismatched_sizes: bool = False,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Any:
    """Build a model from its configuration, with uninitialised weights."""
    config = load_config(name_or_path, **fields)
    folder = Path(name_or_path)
    if folder.is_dir() and not any(file.is_file() for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise UserError(f"No model at {str(name_or_path)!r}: the folder has a config.json, but no file of weights.")
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
            f"{name_or_path} requires code of its own (auto_map in its config.json), which hf_deit never runs. Give a "
            "model whose class is part of transformers."
        )
    if "ignore_mismatched_sizes" in str(error):
        return UserError(
            f"{name_or_path}: the shapes of its weights differ from those in its config.json (number of classes, "
            "sizes). The table above names the weights. Correct config.json."
        )
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return UserError(f"No model at {str(name_or_path)!r}: {kind}{error}")


_SHORT_NAME = re.compile(r"deit-(tiny|small|base)(-distilled)?(?:-patch16)?(?:-(224|384))?")
# The teacher of the paper. The official code calls it `regnety_160`.
_TEACHERS = {"regnet-y-160": "facebook/regnet-y-160", "regnety-160": "facebook/regnet-y-160"}


def published_name(name_or_path: str) -> str:
    """Return the full Hub name for the short name of a published DeiT or of its teacher; keep any other name unchanged.

    Args:
        name_or_path: For example `deit-small`, `deit-base-distilled-384`, `regnet-y-160`, or a name of the official
            code, such as `deit_tiny_distilled_patch16_224`. If a file or folder of this name exists, the name is kept.
    """
    return name_or_path if Path(name_or_path).exists() else full_name(name_or_path)


def full_name(name: str) -> str:
    """Return the full Hub name as `published_name` does, even if a file or folder of this name exists."""
    short = str(name).lower().replace("_", "-")
    match = _SHORT_NAME.fullmatch(short)
    if match is None:
        return _TEACHERS.get(short, name)
    size, distilled, pixels = match.groups()
    if pixels == "384" and size != "base":
        return name  # only the base models were published for 384 pixels
    return f"facebook/deit-{size}{distilled or ''}-patch16-{pixels or 224}"


_OWN_CLASSES = {
    ("deit", "DeiTForImageClassificationWithTeacher"): DeiTForImageClassificationWithTeacher,
    ("vit", "ViTForImageClassification"): ViTForImageClassification,
}


def load_model(name_or_path: str, needs_head: bool = True, **kwargs: Any) -> PreTrainedModel:
    """Load an image classifier, with the trainable class of this package if it has one, or else with the stock class.

    Args:
        name_or_path: Folder or Hub name, or the short name of a published DeiT (`deit-tiny-distilled`).
        needs_head: True raises an error if weights are missing. False initialises missing weights randomly.
        **kwargs: Further arguments of `load_pretrained`.

    Raises:
        UserError: `name_or_path` is a file, or `load_pretrained` cannot load the model.
    """
    _refuse_file(name_or_path)
    name_or_path = published_name(name_or_path)
    config = load_config(name_or_path)
    key = (config.model_type, (config.architectures or [""])[0])
    model_class = _OWN_CLASSES.get(key, AutoModelForImageClassification)
    return load_pretrained(model_class, name_or_path, needs_head, **kwargs)


def refuse_other_channels(model: Any, what: str) -> None:
    """Refuse a model that does not take colour images. Images are always converted to RGB.

    Args:
        model: A model. It is accepted if it has no configuration with the number of channels.
        what: Name of the model in the message.

    Raises:
        UserError: Its configuration has another `num_channels` than 3.
    """
    channels = getattr(getattr(model, "config", None), "num_channels", None)
    if isinstance(channels, int) and channels != 3:
        raise UserError(
            f"{what} has num_channels={channels}, but images are read as RGB, with 3 channels. Use a model with "
            "num_channels=3."
        )


def _refuse_file(name_or_path: str) -> None:
    if Path(name_or_path).is_file():
        raise UserError(
            f"{name_or_path} is a file, but a model is a folder. Convert it: hf-deit convert {name_or_path} FOLDER."
        )


def load_processor(name_or_path: str) -> Any:
    """Load the image processor of a model.

    Raises:
        UserError: The model has no image processor, or its image processor requires torchvision, which is not
            installed.
    """
    _refuse_file(name_or_path)
    name_or_path = published_name(name_or_path)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        if is_own_processor(settings):
            return DeiTImageProcessor.from_pretrained(name_or_path)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(name_or_path, **NO_CODE)
    except (OSError, ValueError, ImportError, ModuleNotFoundError) as error:
        raise UserError(f"No usable image processor at {name_or_path!r}: {error}") from error
