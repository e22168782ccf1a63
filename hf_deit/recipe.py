"""One YAML of plain fields, and what is built from it: student, teacher, data, arguments.

A recipe is the fields of the dataclasses here and of `DistillationTrainingArguments` in one flat file; a field on the
command line wins over the file. The file itself is read by recipe_files.py; what is done with it all is in runs.py.
"""

import argparse
import dataclasses
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .augmentation import AUTO_AUGMENTS, Augmentation
from .fine_tuning import TRAINABLE
from .recipe_files import RecipeError, read_fields
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The student."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder, Hub name or short name (deit-tiny) of weights to start from. Default: from scratch."
        },
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "distilled (class and distillation token, two heads) or plain (one of each). Default: distilled from "
            "scratch; weights as they are, but plain ones get a distillation token if there is a teacher."
        },
    )
    trainable: str = field(
        default="all",
        metadata={"help": "What learns: all, attention (with tokens and heads), or head.", "choices": list(TRAINABLE)},
    )
    preset: str | None = field(default=None, metadata={"help": "tiny, small or base of the paper."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels the student sees: one number, or height and width. Default: 224."}
    )
    patch_size: int = field(default=16, metadata={"help": "Side of a patch in pixels."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width; instead of, or on top of, a preset."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads; must divide hidden_size."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the MLP. Default: 4 × hidden_size."}
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth of the last layer, in [0, 1). Default: 0, or the weights' own."},
    )
    layer_scale_init_value: float | None = field(default=None, metadata={"help": "LayerScale; default: none."})


@dataclass
class DataArguments:
    """The images."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder (train/CLASS/…, validation/CLASS/…, or CLASS/…), table (.csv, .tsv, .jsonl, .parquet), folder of "
            "tables (train.csv, validation.csv), saved datasets folder, or Hub name."
        },
    )
    validation_share: float = field(
        default=0.1, metadata={"help": "Share split off for validation where there is no validation split."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of paths (from the table's folder) or images. Default: found by type."}
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of classes; or several of 0 and 1, a class each (multi-label). Default: found by type."
        },
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "Between the classes of an image in one column (multi-label), for example ';'."}
    )
    broken_images: str = field(
        default="skip",
        metadata={"help": "Images that cannot be read: skip (left out or replaced, reported and counted) or raise."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training images one after the other instead of by index; needs max_steps."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Undecoded images a stream holds in memory to be shuffled."}
    )
    view_size: list[int] | None = field(
        default=None,
        metadata={"help": "Pixels of the augmented view teacher and student look at. Default: image_size."},
    )
    evaluation_crop_ratio: float = field(
        default=0.875, metadata={"help": "Share of the resized image the centre crop keeps at evaluation."}
    )


@dataclass
class AugmentationArguments:
    """What happens to a training image; `hf-deit show-augmentations` shows it."""

    crop_scale: list[float] = field(
        default_factory=lambda: list(Augmentation.crop_scale),
        metadata={"help": "Smallest and largest share of the area a crop covers."},
    )
    crop_aspect: list[float] = field(
        default_factory=lambda: list(Augmentation.crop_aspect),
        metadata={"help": "Smallest and largest width / height of a crop."},
    )
    flip_probability: float = field(
        default=Augmentation.flip_probability, metadata={"help": "Of mirroring left and right."}
    )
    auto_augment: str = field(
        default=Augmentation.auto_augment,
        metadata={"help": f"Policy: {', '.join(AUTO_AUGMENTS)}. The paper's: randaugment."},
    )
    randaugment_magnitude: float = field(
        default=Augmentation.randaugment_magnitude, metadata={"help": "Mean magnitude, 0 to 10."}
    )
    randaugment_magnitude_std: float = field(
        default=Augmentation.randaugment_magnitude_std, metadata={"help": "Standard deviation of the magnitude."}
    )
    randaugment_probability: float = field(
        default=Augmentation.randaugment_probability, metadata={"help": "Of carrying out each operation chosen."}
    )
    randaugment_num_ops: int = field(
        default=Augmentation.randaugment_num_ops, metadata={"help": "Operations chosen for a view."}
    )
    color_jitter: float = field(
        default=Augmentation.color_jitter,
        metadata={"help": "Brightness, contrast and saturation are scaled by 1 ± this, 0 to 1 (DeiT III: 0.3)."},
    )
    erasing_probability: float = field(
        default=Augmentation.erasing_probability,
        metadata={"help": "Of filling one box of the view with noise. The paper's: 0.25."},
    )


@dataclass
class TeacherArguments:
    """The teacher."""

    teacher: str | None = field(
        default=None,
        metadata={"help": "Folder (hf-deit train-teacher makes one), Hub name, or package.module:factory."},
    )
    teacher_weights: str | None = field(default=None, metadata={"help": "Weights for a factory (.safetensors, .pth)."})
    teacher_image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean per channel. Default: its own."}
    )
    teacher_image_std: list[float] | None = field(default=None, metadata={"help": "Std per channel. Default: its own."})
    teacher_image_size: list[int] | None = field(default=None, metadata={"help": "Pixels it wants. Default: its own."})
    teacher_labels: list[str] | None = field(default=None, metadata={"help": "Its class names in index order."})
    teacher_dtype: str = field(
        default="float32", metadata={"help": "Autocast of the teacher: float32, bfloat16 or float16."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the teacher's stored answers (hf-deit cache-teacher); no teacher is needed then."},
    )
    verify_teacher_cache: int = field(
        default=0, metadata={"help": "Number of stored answers that the teacher, given too, is asked again."}
    )

    def __post_init__(self) -> None:
        for name in ("teacher", "teacher_weights", "teacher_cache"):
            if getattr(self, name) == "":  # of a shell's unset variable: not given
                setattr(self, name, None)


@dataclass
class RunArguments:
    """The run."""

    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest complete checkpoint in output_dir (--resume)."}
    )


# Not in a saved recipe: a secret, and what is set by the machine (a recipe of a CPU run must not bind a GPU).
_NOT_SAVED = ("hub_token", "use_cpu")
GROUPS = (
    ModelArguments,
    DataArguments,
    AugmentationArguments,
    TeacherArguments,
    RunArguments,
    DistillationTrainingArguments,
)


@dataclass
class Recipe:
    """The parsed fields, by group."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    teacher: TeacherArguments
    run: RunArguments
    training: DistillationTrainingArguments

    def to_dict(self) -> dict[str, Any]:
        """Gives every field with its value, defaults included; tokens are left out."""
        fields: dict[str, Any] = {}
        for group in (self.model, self.data, self.augmentation, self.teacher):
            fields |= dataclasses.asdict(group)
        for name in ("data", "model", "teacher", "teacher_weights", "teacher_cache"):
            path = None if fields[name] is None else Path(fields[name]).expanduser()
            if path is not None and path.exists():
                fields[name] = str(path.resolve())  # the recipe is read again from another folder
        names = {entry.name for entry in dataclasses.fields(DistillationTrainingArguments) if entry.init}
        training = self.training.to_dict()
        fields |= {name: training[name] for name in sorted(names & set(training)) if name not in _NOT_SAVED}
        return fields


class _Parser(HfArgumentParser):
    """Raises where argparse would exit, so that one place decides what a user sees."""

    def error(self, message: str) -> typing.NoReturn:
        raise RecipeError(f"{message}. `hf-deit train --help` and --help-all list the fields.")


def recipe_parser() -> HfArgumentParser:
    """The parser of all fields; its help is long, the command line shows a short one."""
    return _Parser(GROUPS, prog="hf-deit train", add_help=False, allow_abbrev=False, argument_default=None)


def given_names(overrides: Sequence[str]) -> list[str]:
    """The names of the fields among command-line words: `["--seed", "1", "--bf16=true"]` → `["seed", "bf16"]`."""
    return [word.removeprefix("--").partition("=")[0] for word in overrides if word.startswith("--")]


def load_recipe(config: str | Path | Mapping[str, Any] | None, overrides: list[str]) -> Recipe:
    """Reads a recipe.

    Args:
        config: A YAML file of fields, which may name a `base` (recipe_files.py); or the fields; None: defaults.
        overrides: Command-line fields (`["--learning_rate", "1e-3"]`), which win over the file.

    Raises:
        RecipeError: The file is unreadable, a field is unknown, or a value is not allowed.
    """
    parser = recipe_parser()
    given_fields = config is None or isinstance(config, Mapping)
    fields = dict(config or {}) if given_fields else read_fields(Path(config))
    known: dict[str, argparse.Action] = {}
    for action in parser._actions:
        known.setdefault(action.dest, action)  # a flag that is true by default has a second action, --no_…
    unknown = sorted(str(name) for name in fields if name not in known)
    if unknown:
        raise RecipeError(
            f"{'The recipe' if given_fields else config} has unknown field(s) {', '.join(unknown)}.{_nearest(unknown[0], known)}"
        )
    hints = {name: hint for group in GROUPS for name, hint in typing.get_type_hints(group).items()}
    parser.set_defaults(**{name: _to_type(known[name], hints[name], value) for name, value in fields.items()})
    given = {*fields, *given_names(overrides)}
    if not given & {"distillation_type", "teacher", "teacher_cache"}:
        logger.warning("Neither a teacher nor a distillation_type is given: the student learns from the labels alone.")
        parser.set_defaults(distillation_type="none")
    try:
        *groups, rest = parser.parse_args_into_dataclasses(
            args=overrides, look_for_args_file=False, return_remaining_strings=True
        )
    except RecipeError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error
    if rest:
        raise RecipeError(f"Unknown field {rest[0]}.{_nearest(rest[0].lstrip('-'), known)}")
    return Recipe(*groups)


def _nearest(name: str, known: dict[str, argparse.Action]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else " `hf-deit train --help` and --help-all list the fields."


def _to_type(action: argparse.Action, hint: Any, value: Any) -> Any:
    """Brings a YAML value to its field's type as argparse would bring its text: 1e-4 is a text in YAML."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    allowed = {type(None): value is None, dict: isinstance(value, dict), list: isinstance(value, list)}
    for kind, given in allowed.items():
        if given and kind not in origins:
            what = "no value" if value is None else f"{value!r}"
            raise RecipeError(f"{action.dest}: {what} is not allowed; it takes {_described(origins)}.")
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, list):
        return [_scalar(action, item) for item in value]
    return [_scalar(action, value)] if action.nargs in ("+", "*") else _scalar(action, value)


def _described(origins: set[Any]) -> str:
    names = {
        list: "a list",
        dict: "a mapping",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return " or ".join(sorted(names[kind] for kind in origins if kind in names)) or "one of its choices"


def _scalar(action: argparse.Action, value: Any) -> Any:
    if value is None or isinstance(value, list | dict):
        raise RecipeError(f"{action.dest}: {value!r} is not allowed as an entry of a list.")
    if action.type is None:
        return value
    try:
        converted = action.type(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise RecipeError(f"{action.dest}: {value!r} is not allowed ({error}).") from error
    if action.choices is not None and converted not in action.choices:
        raise RecipeError(
            f"{action.dest}: {value!r} is not allowed; choose from {', '.join(map(str, action.choices))}."
        )
    return converted


def as_size(name: str, values: list[int] | None) -> tuple[int, int] | None:
    """Gives `(height, width)` for one number or two.

    Raises:
        RecipeError: There are more than two, or none.
    """
    if values is None:
        return None
    if len(values) not in (1, 2) or min(values) < 1:
        raise RecipeError(f"{name}={values}: give one number of pixels, or height and width.")
    return values[0], values[-1]


def build_augmentation(arguments: AugmentationArguments, view_size: tuple[int, int]) -> Augmentation:
    """Builds what makes a view of an image.

    Args:
        arguments: Of the recipe.
        view_size: `(height, width)` of the view, in pixels.

    Raises:
        RecipeError: A field is not within its limits.
    """
    fields = dataclasses.asdict(arguments)
    for name in ("crop_scale", "crop_aspect"):
        if len(fields[name]) != 2:
            raise RecipeError(f"{name}={fields[name]}: it takes two numbers, smallest and largest.")
        fields[name] = tuple(fields[name])
    try:
        return Augmentation(view_size=view_size, **fields)
    except ValueError as error:
        raise RecipeError(str(error)) from error
