"""The recipe of a model for readers: its main values in words, and the fields that differ from their defaults."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from ..hub.facts import public_recipe
from ..recipes.arguments import defaults

_AUGMENTATIONS = (
    "crop_scale",
    "flip_probability",
    "auto_augment",
    "color_jitter",
    "mixup_alpha",
    "cutmix_alpha",
    "erasing_probability",
    "repeated_augmentation",
)
_LOSSES = ("distillation_type", "distillation_alpha", "distillation_tau", "guidance", "guidance_weight")
# Fields that the main rows show, and fields that say nothing about the model.
_SHOWN = {
    *_AUGMENTATIONS,
    *_LOSSES,
    *("model", "student", "teacher", "teacher_cache", "num_train_epochs", "max_steps", "learning_rate"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "image_size", "patch_size"),
    *("accelerator_config", "do_eval", "disable_tqdm", "output_dir"),
}


def main_rows(recipe: Mapping[str, Any]) -> list[list[str]]:
    """Return titles and values of what matters most in a recipe; what it does not state is left out."""
    fields = public_recipe(dict(recipe))
    rows = []
    if "model" in fields or "student" in fields:
        start = fields.get("model") or fields.get("student")
        rows.append(["student started from", "random weights" if start is None else str(start)])
    if "teacher" in fields or "teacher_cache" in fields:
        names = [str(fields[name]) for name in ("teacher", "teacher_cache") if fields.get(name) is not None]
        rows.append(["teacher", " and its cache ".join(names) or "none"])
    steps = fields.get("max_steps")
    if isinstance(steps, int) and steps > 0:
        rows.append(["length", f"{steps:,} optimizer steps"])
    elif "num_train_epochs" in fields:
        rows.append(["epochs", _text(fields["num_train_epochs"])])
    if "learning_rate" in fields:
        rows.append(["learning rate", _text(fields["learning_rate"])])
    if "per_device_train_batch_size" in fields:
        accumulated = fields.get("gradient_accumulation_steps") or 1
        more = "" if accumulated == 1 else f", gradients of {accumulated} batches together"
        rows.append(["batch size per process", f"{_text(fields['per_device_train_batch_size'])} images{more}"])
    for name, title in (("image_size", "image size"), ("patch_size", "patch size")):
        if fields.get(name) is not None:
            rows.append([title, f"{_text(fields[name])} pixels"])
    for title, names in (("augmentation", _AUGMENTATIONS), ("loss", _used_losses(fields))):
        values = [f"{name}: {_text(fields[name])}" for name in names if name in fields]
        if values:
            rows.append([title, ", ".join(values)])
    return rows


def _used_losses(fields: Mapping[str, Any]) -> list[str]:
    unused = {"guidance_weight"} if fields.get("guidance") in (None, "none") else set()
    if fields.get("distillation_type") == "none":
        unused |= {"distillation_alpha", "distillation_tau"}
    elif fields.get("distillation_type") == "hard":
        unused |= {"distillation_tau"}
    return [name for name in _LOSSES if name not in unused]


def changed_rows(recipe: Mapping[str, Any]) -> list[list[str]]:
    """Return the name, the value and the default of every field that differs from its default, without those of `main_rows`."""
    usual, public = defaults(), public_recipe(dict(recipe))
    return [
        [name, _text(public[name]), _text(usual[name])]
        for name, value in sorted(recipe.items())
        if name in usual and name in public and name not in _SHOWN and _differ(value, usual[name])
    ]


def _differ(value: Any, usual: Any) -> bool:
    """Return whether a value differs from the default; None, False and empty values are alike."""
    off = (None, False, "", [], "none")
    value, usual = _plain(value), _plain(usual)
    return value != usual and not (type(value) is not int and value in off and usual in off)


def _plain(value: Any) -> Any:
    """Return a value in the form in which two equal ones compare equal: a square size is one number."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        values = [_plain(one) for one in value]
        return values[0] if values and all(one == values[0] for one in values) else values
    return value


def _text(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, list):
        return " to ".join(map(_text, value)) if len(value) == 2 else ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
