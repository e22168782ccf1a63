"""Fields of a recipe that have no effect: refused where a person gave them, tolerated where an override made them so.

A recipe has up to three layers: its base, its own file, and what is given with the command (command line or keyword
arguments). A field is refused in the layer that gives it. A field of a lower layer may have no effect because a higher
layer overrides another one (`--distillation_type none` with a recipe that sets `distillation_tau`); that is logged.
"""

import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from ..errors import Problems, RecipeError
from ..trainer.fields import (
    CONDITIONS,
    PUSH_FIELDS,
    PYTHON_FIELDS,
    REFUSED,
    SCRIPT_FIELDS,
    STOCK_FIELDS,
    Condition,
    condition_problems,
    shown,
)
from .arguments import defaults, field_entries, typed_value

logger = logging.getLogger(__name__)

_OF_A_TEACHER = ("teacher_image_mean", "teacher_image_std", "teacher_image_size", "teacher_labels", "teacher_dtype")
_OF_RANDAUGMENT = (
    "randaugment_magnitude",
    "randaugment_magnitude_std",
    "randaugment_probability",
    "randaugment_num_ops",
)
# Conditions of the fields that a recipe adds to the training arguments, and of those that only a command can judge.
RECIPE_CONDITIONS = (
    Condition(
        _OF_A_TEACHER,
        "a teacher",
        "Give a teacher, or leave it out.",
        # The command that builds a cache and the training that uses it may have the same fields. A distillation without
        # a teacher is refused for that.
        lambda fields: bool(
            fields.teacher or fields.teacher_cache or fields.distillation_type != "none" or fields.guidance != "none"
        ),
    ),
    Condition(
        _OF_RANDAUGMENT,
        "auto_augment='randaugment'",
        "Set auto_augment='randaugment', or leave it out.",
        lambda fields: fields.auto_augment == "randaugment",
    ),
    Condition(
        ("shuffle_buffer",),
        "streaming",
        "Set streaming=True, or leave it out: other data are shuffled completely.",
        lambda fields: fields.streaming,
    ),
    Condition(
        ("unlabelled_split", "unlabelled_share"),
        "unlabelled",
        "Give unlabelled images, or leave it out.",
        lambda fields: bool(fields.unlabelled),
    ),
    Condition(
        ("num_views",),
        "data that are not streamed",
        "Set streaming=False, or leave it out.",
        lambda fields: not fields.streaming,
    ),
    Condition(
        ("restore_callback_states_from_checkpoint",),
        "--resume",
        "Resume a run, or leave it out.",
        lambda fields: fields.resume or fields.extend,
    ),
    Condition(PUSH_FIELDS, "push_to_hub", "Set push_to_hub=True, or leave it out.", lambda fields: fields.push_to_hub),
)


def is_saved(fields: Mapping[str, Any]) -> bool:
    """Return whether fields are those of a `recipe.yaml` that a run saved: it holds all fields, defaults included."""
    return fields.keys() >= set(SCRIPT_FIELDS)


def without_refused(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved recipe without those that are refused now: an earlier version accepted them."""
    refused = {name for name, use in STOCK_FIELDS.items() if use.kind == REFUSED and name not in SCRIPT_FIELDS}
    idle = (refused | PYTHON_FIELDS.keys()) & _changed(saved, _defaults(saved)).keys()
    if idle:
        logger.info("The saved recipe has fields without effect, which are left out: %s.", ", ".join(sorted(idle)))
    return {name: value for name, value in saved.items() if name not in idle}


def check_layers(base: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that every field that a person gave can have an effect.

    Args:
        base: Fields of the recipe's base.
        own: Fields of the recipe itself. Those of a saved recipe are not checked: it holds defaults, and values that had
            no effect.
        given: Fields given with the command.

    Raises:
        RecipeError: A field has no effect. The message names all of them.
    """
    problems = Problems()
    checked = ({} if is_saved(own) else dict(own)) | dict(given)
    problems.add(_command_problems(checked))
    merged = {**base, **own, **given}
    # A teacher is often given with the command, so a file alone is judged as if it had one.
    file = {"teacher": "any", **base, **own}
    of_file = {} if is_saved(own) else {name for names, _ in _unused(file) for name in names if name in own}
    idle: list[str] = []
    for names, message in _unused(merged):
        if any(name in given or (name in of_file and name not in base) for name in names):
            problems.add(iter([message]))
        elif not is_saved(own):
            idle += [name for name in names if name in base or name in own]
    problems.raise_all()
    if idle:
        logger.info("Fields of the recipe without effect in this run: %s.", ", ".join(sorted(set(idle))))


def condition_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields, defaults included, on which the conditions are tested.

    Args:
        fields: Fields of a recipe, in the types of YAML or of the command line.
    """
    usual = _defaults(fields)
    return usual | _changed(fields, usual)


def unmet_condition(name: str, values: Any) -> Condition | None:
    """Return the condition without which a field has no effect; None if the field has an effect.

    Args:
        name: Name of the field.
        values: Object whose attributes are the fields; see `condition_values`.
    """
    conditions = (condition for condition in (*CONDITIONS, *RECIPE_CONDITIONS) if name in condition.names)
    return next((condition for condition in conditions if not condition.holds(values)), None)


def _changed(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields whose value is valid and not the default, with the type of the field."""
    changed = {}
    for name, (_, hint) in field_entries().items():
        if name not in fields:
            continue
        try:
            value = typed_value(name, fields[name], hint)
        except RecipeError:
            continue  # reported when the recipe is created
        if value is not None and value != usual[name]:
            changed[name] = value
    return changed


def _defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    taught = "teacher" in fields or "teacher_cache" in fields
    # These defaults depend on other fields; see `Recipe.from_fields` and `DistillationTrainingArguments`.
    return defaults() | {"distillation_type": "hard" if taught else "none", "eval_strategy": "epoch"}


def _unused(fields: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    changed = _changed(fields, _defaults(fields))
    return condition_problems(SimpleNamespace(**condition_values(fields)), changed, (*CONDITIONS, *RECIPE_CONDITIONS))


def _command_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields that only a Python script can make use of."""
    for name in SCRIPT_FIELDS:
        if name in fields:
            yield f"{name}={shown(fields[name])}: {STOCK_FIELDS[name].text}"
    changed = _changed(fields, _defaults(fields))
    for name, reason in PYTHON_FIELDS.items():
        if name in changed:
            yield f"{name}={shown(changed[name])}: {reason}"
