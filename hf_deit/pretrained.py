"""Folders and names of the Hub → classes of transformers, by tensors and JSON alone.

Code that a repository brings is never run: transformers would ask on the terminal, and take a `y` out of a pipe. Of the Hub no
pickle is downloaded. Which class it is to be is the business of building.py and teacher.py; files of other programs are
checkpoint_loading.py's.
"""

from pathlib import Path
from typing import Any

from .errors import UserError

# For every call of an Auto class.
NO_CODE = {"trust_remote_code": False}
ADAPTER_FILE = "adapter_config.json"
WHOLE_FILES = ("model.safetensors", "model.safetensors.index.json")


class LoadingError(UserError):
    """A folder or a name of the Hub that no model can be taken from; the message says why and how to mend it."""


def refuse_adapters(folder: str | Path) -> None:
    """Refuses a folder of peft adapters, which are a part of a model.

    Raises:
        LoadingError: It is one.
    """
    if (Path(folder) / ADAPTER_FILE).is_file():
        raise LoadingError(
            f"{folder} holds adapters (LoRA) and no whole model: merge them first, with the student they were trained on: "
            f'peft.PeftModel.from_pretrained(student, "{folder}").merge_and_unload().save_pretrained("merged"), and save the '
            'image processor beside it: processor.save_pretrained("merged").'
        )


def refuse_pickles_of_the_hub(name: str) -> None:
    """Refuses a name of the Hub without safetensors. Asked before transformers, which would have them converted elsewhere.

    Raises:
        LoadingError: There are none.
        OSError: The Hub was not reached, or does not know the name.
    """
    from transformers.utils import cached_file

    if Path(name).exists():
        return
    if all(cached_file(name, file, _raise_exceptions_for_missing_entries=False) is None for file in WHOLE_FILES):
        raise no_safetensors(name)


def no_safetensors(name: str) -> LoadingError:
    """The error of a name of the Hub without safetensors."""
    return LoadingError(
        f"{name} on the Hub holds no model.safetensors, and pickles (.bin, .pth) are not taken from the network. If you trust "
        f"it: hf download {name} --local-dir FOLDER, then give FOLDER."
    )


def load_config(name_or_path: str) -> Any:
    """Loads a configuration.

    Raises:
        LoadingError: There is none, or it needs code of its own.
    """
    from transformers import AutoConfig

    refuse_adapters(name_or_path)
    try:
        return AutoConfig.from_pretrained(name_or_path, **NO_CODE)
    except Exception as error:  # a broken config.json fails in as many ways as there are fields
        raise _explained(name_or_path, error) from error


def load_pretrained(model_class: Any, name_or_path: str, needs_head: bool = True, **kwargs: Any) -> Any:
    """Loads a model by one of its classes.

    Args:
        model_class: With `from_pretrained`.
        name_or_path: Folder or full Hub name.
        needs_head: Refuse weights that are not all there, as a backbone's without classifier: used as they are, they
            would answer at random. False: what is missing starts anew.
        **kwargs: Of `from_pretrained`.

    Raises:
        LoadingError: There is no such model, it needs code of its own, is a pickle on the Hub, or is not whole.
    """
    refuse_adapters(name_or_path)
    try:
        refuse_pickles_of_the_hub(name_or_path)
        safe = {} if Path(name_or_path).exists() else {"use_safetensors": True}
        model, info = model_class.from_pretrained(name_or_path, output_loading_info=True, **NO_CODE, **safe, **kwargs)
    except Exception as error:  # transformers, torch and the connection have many classes of their own
        raise _explained(name_or_path, error) from error
    missing = sorted(info["missing_keys"])
    if needs_head and missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise LoadingError(
            f"{name_or_path} is not whole: it holds no {', '.join(missing[:4])}{more} for {type(model).__name__}, which would "
            "answer at random. Train it first (hf-deit train --model), or give the folder of a trained classifier."
        )
    names = getattr(model.config, "id2label", None)
    if needs_head and names and set(names) != set(range(len(names))):
        raise LoadingError(
            f"{name_or_path}: id2label in its config.json must name the classes 0 to {len(names) - 1}, and is "
            f"{str(names)[:200]}: mend it."
        )
    return model


def _explained(name_or_path: str, error: Exception) -> LoadingError:
    if isinstance(error, LoadingError):
        return error
    if "trust_remote_code" in str(error):
        return LoadingError(
            f"{name_or_path} wants code of its own to be run (auto_map in its config.json), which is never done here: give a "
            "model whose class is transformers' own."
        )
    if "ignore_mismatched_sizes" in str(error):
        return LoadingError(
            f"{name_or_path}: its weights are of other shapes than its config.json says (number of classes, sizes; the table "
            "above names them): mend config.json."
        )
    kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
    return LoadingError(f"No model at {str(name_or_path)!r}: {kind}{error}")
