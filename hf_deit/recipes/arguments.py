"""Dataclasses of the fields of a recipe, grouped by subject, and the `Recipe` that holds them.

Every field is documented only in its `metadata["help"]`. The fields of the augmentation are in data/augmentation.py, those of
the training in trainer/training_args.py. reading.py reads YAML files and the command line. This module imports PyTorch and
transformers only when a recipe is created, so that help texts are shown without delay.
"""

import copy
import dataclasses
import functools
import os
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.augmentation import Augmentation
from ..errors import RecipeError, listed, numbered
from ..sizes import as_size

if TYPE_CHECKING:
    from ..trainer.training_args import DistillationTrainingArguments


# Default share of unlabelled images in each batch.
UNLABELLED_SHARE = 0.5


def _normalize(group: Any, name: str, value: Any) -> None:
    object.__setattr__(group, name, value)  # __post_init__ of a frozen dataclass cannot assign attributes


def _expanded(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)


# Fields that name a file, a folder or a model and can be left out.
_OPTIONAL_PATHS = ("model", "class_names", "unlabelled", "teacher", "teacher_weights", "teacher_cache")
_MEANS_NOTHING = ("none", "null")


def _check_not_none(group: Any) -> None:
    """Check that no field names the model, the file or the folder "none", which people give for "no teacher".

    Raises:
        RecipeError: A field does, and there is no file or folder of this name.
    """
    for name in _OPTIONAL_PATHS:
        value = getattr(group, name, None)
        if value is None or str(value).strip().casefold() not in _MEANS_NOTHING or os.path.exists(value):
            continue
        labels = " To learn from the labels alone although the recipe names a teacher, set distillation_type=none and "
        labels += "guidance=none."
        raise RecipeError(
            f"{name}={value!r} is taken for a name, and no file or folder has this name. If you want none, leave "
            f"{name} out." + labels * name.startswith("teacher")
        )


def _full_name(name: str | None) -> str | None:
    """Return the full Hub name for a short name. A local path of that name takes precedence; `~` is expanded."""
    if name is None:
        return None
    from ..models.loading import published_name

    return published_name(os.path.expanduser(name))


@dataclass(frozen=True)
class ModelArguments:
    """Fields of the student."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder, Hub name or short name (deit-tiny) of weights to start from. Default: from scratch."
        },
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "distilled (class and distillation token, two heads) or plain (class token, one head). Default from "
            "scratch: distilled. Default with weights: the kind of the weights, but plain weights get a distillation token if "
            "there is a teacher."
        },
    )
    trainable: str = field(
        default="all",
        metadata={
            "help": "Weights that are trained: all, attention (attention layers, tokens and heads), or head.",
            "choices": ["all", "attention", "head"],
        },
    )
    preset: str | None = field(
        default=None, metadata={"help": "Size of the student as in the paper: tiny, small or base."}
    )
    image_size: tuple[int, int] | None = field(
        default=None,
        metadata={
            "help": "Image size of the student in pixels: one number, or height and width. Default: 224, or that of the weights."
        },
    )
    patch_size: int = field(default=16, metadata={"help": "Side of a patch in pixels."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the student, instead of a preset or to override that of a preset."}
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers."})
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Number of attention heads; must divide hidden_size."}
    )
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the MLP. Default: 4 × hidden_size."}
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={
            "help": "Stochastic depth rate of the last layer, in [0, 1). Default: 0, or the rate of the weights."
        },
    )
    layer_scale_init_value: float | None = field(
        default=None, metadata={"help": "Initial value of LayerScale. Default: no LayerScale."}
    )

    def __post_init__(self) -> None:
        _check_not_none(self)
        _normalize(self, "model", _full_name(self.model))
        _normalize(self, "image_size", as_size("image_size", self.image_size))


@dataclass(frozen=True)
class DataArguments:
    """Fields of the images."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder (train/CLASS/…, validation/CLASS/…, or CLASS/…), folder of images with a table (metadata.csv), table "
            "(.csv, .tsv, .jsonl, .parquet), folder of tables (train.csv, validation.csv), saved datasets folder, or Hub name."
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a data set on the Hub. Default: its default configuration."}
    )
    data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub. Default: the main branch."}
    )
    split_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of a table that names the split of each row. Default: found by usual names (split, subset, is_valid, "
            "…); none: no column."
        },
    )
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of the training split in the data: of a folder, table or split, or a value of split_column. Default: "
            "found by usual names. '.': all folders in the folder are classes."
        },
    )
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of the validation split, likewise. Default: found by usual names, or the test split if there is no other. "
            "none: split off validation_share."
        },
    )
    validation_share: float = field(
        default=0.1,
        metadata={"help": "Share of the images to split off for validation if the data has no validation split."},
    )
    image_column: str | None = field(
        default=None,
        metadata={"help": "Column of images, or of paths relative to the folder of the table. Default: found by type."},
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of classes; or several columns of 0 and 1, one per class (multi-label). Default: found by type."
        },
    )
    label_separator: str | None = field(
        default=None,
        metadata={
            "help": "Separator between several classes of an image in one column (multi-label), for example ';'."
        },
    )
    class_names: str | None = field(
        default=None,
        metadata={
            "help": "File that names the classes: one name per line in index order, or a CSV, JSON or YAML file that maps folders, "
            "numbers or ids such as n01440764 to names. Default: the names of the data."
        },
    )
    broken_images: str = field(
        default="skip",
        metadata={
            "help": "Handling of unreadable images: skip (leave out or replace, report and count them) or raise (an error)."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training images one after the other instead of by index; requires max_steps."},
    )
    views_memory: float = field(
        default=4.0,
        metadata={
            "help": "Maximum memory in gigabytes for keeping views that repeat (num_views), for all trainings of an experiment "
            "together; never more than half of the free memory. Lower it in a small container or batch job; 0 keeps no views."
        },
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Number of undecoded images that a stream holds in memory for shuffling."}
    )
    evaluation_crop_ratio: float = field(
        default=0.875, metadata={"help": "Share of the resized image that the centre crop keeps at evaluation."}
    )
    unlabelled: str | None = field(
        default=None,
        metadata={
            "help": "Further training images without labels, which the student learns from the teacher: folder (images in any nesting; the "
            "names of folders are ignored), table, saved datasets folder, or Hub name. Requires a teacher or a teacher cache."
        },
    )
    unlabelled_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of the unlabelled images in a data set or folder of tables, or all. Default: unlabelled "
            "(unlabeled, unsupervised), else train, else the only split."
        },
    )
    unlabelled_share: float = field(
        default=UNLABELLED_SHARE,
        metadata={
            "help": "Share in (0, 1) of each batch that is taken from unlabelled, rounded to whole pairs. An epoch is one pass "
            "over the unlabelled images; the labelled ones repeat within it with new views."
        },
    )

    def __post_init__(self) -> None:
        _check_not_none(self)
        _normalize(self, "data", _expanded(self.data))
        _normalize(self, "unlabelled", _expanded(self.unlabelled or None))
        if not 0 < self.unlabelled_share < 1:
            raise RecipeError(
                f"unlabelled_share={self.unlabelled_share}: it must be between 0 and 1 (exclusive), for example 0.5."
            )
        _normalize(self, "class_names", _expanded(self.class_names))
        if not 0 <= self.views_memory < float("inf"):
            raise RecipeError(f"views_memory={self.views_memory}: give a number of gigabytes, at least 0.")


@dataclass(frozen=True)
class TeacherArguments:
    """Fields of the teacher."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Folder (hf-deit train-teacher makes one), Hub name, short name (regnet-y-160), or "
            "package.module:factory."
        },
    )
    teacher_weights: str | None = field(
        default=None, metadata={"help": "Weights file for a factory (.safetensors, .pth)."}
    )
    teacher_image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Mean per channel that normalises the teacher's input. Default: the teacher's own."},
    )
    teacher_image_std: list[float] | None = field(
        default=None,
        metadata={
            "help": "Standard deviation per channel that normalises the teacher's input. Default: the teacher's own."
        },
    )
    teacher_image_size: tuple[int, int] | None = field(
        default=None,
        metadata={
            "help": "Image size of the teacher in pixels: one number, or height and width. Default: the teacher's own."
        },
    )
    teacher_labels: list[str] | None = field(
        default=None, metadata={"help": "Class names of the teacher, in index order."}
    )
    teacher_dtype: str = field(
        default="float32",
        metadata={"help": "Data type of the teacher's forward pass (autocast): float32, bfloat16 or float16."},
    )
    teacher_problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What the teacher's logits were trained for: single_label_classification (one softmax over the classes) "
            "or multi_label_classification (one sigmoid per class). Multi-label data need the second. Default: that of the "
            "teacher's own files.",
            "choices": ["single_label_classification", "multi_label_classification"],
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a teacher cache, made by hf-deit cache-teacher. With a cache, no teacher is needed."
        },
    )
    verify_teacher_cache: int = field(
        default=0,
        metadata={"help": "Number of cached teacher outputs to compute again and compare; requires the teacher."},
    )

    def __post_init__(self) -> None:
        _check_not_none(self)
        for name in ("teacher", "teacher_weights", "teacher_cache"):
            # A shell script passes an unset variable as "", which counts as a field that is not given.
            _normalize(self, name, _expanded(getattr(self, name) or None))
        _normalize(self, "teacher", _full_name(self.teacher))
        _normalize(self, "teacher_image_size", as_size("teacher_image_size", self.teacher_image_size))


@dataclass(frozen=True)
class RunArguments:
    """Fields of the run."""

    resume: bool = field(
        default=False, metadata={"help": "Resume from the newest complete checkpoint in output_dir (--resume)."}
    )
    extend: bool = field(
        default=False,
        metadata={
            "help": "Resume into a longer schedule (--extend with a greater num_train_epochs or max_steps). From the "
            "newest checkpoint on, the learning rate follows the schedule of the new length."
        },
    )

    report: bool = field(
        default=True,
        metadata={
            "help": "Whether to look at the trained model and write a report about it into output_dir/report, within about two minutes "
            "(needs the extra report). It holds photographs and is never uploaded."
        },
    )

    @property
    def continues(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self.resume or self.extend


# Dataclasses of fields by attribute of `Recipe`. `field_groups` adds that of the training, whose module imports PyTorch.
GROUPS = {
    "model": ModelArguments,
    "data": DataArguments,
    "augmentation": Augmentation,
    "teacher": TeacherArguments,
    "run": RunArguments,
}
# Fields left out of a saved recipe: a secret, and a choice of the machine (the recipe of a CPU run must also run on a GPU).
_NOT_SAVED = ("hub_token", "use_cpu")
# What transformers raises for values of training arguments, and for packages and files that are missing.
_VALUE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
_SIZES = ("image_size", "view_size", "teacher_image_size")
_PATHS = ("data", "unlabelled", "class_names", "model", "teacher", "teacher_weights", "teacher_cache")


def field_groups() -> dict[str, type]:
    """Return all dataclasses of fields by attribute of `Recipe`."""
    from ..trainer.training_args import DistillationTrainingArguments

    return {**GROUPS, "training": DistillationTrainingArguments}


@functools.cache
def field_entries() -> Mapping[str, tuple[dataclasses.Field, Any]]:
    """Return every field of a recipe with its type hint, by name."""
    return types.MappingProxyType(
        {
            entry.name: (entry, hints[entry.name])
            for group in field_groups().values()
            for hints in [typing.get_type_hints(group)]
            for entry in _fields_of(group)
        }
    )


def defaults() -> dict[str, Any]:
    """Return the default of every field by name."""
    from ..trainer.fields import default_of

    return {name: default_of(entry) for name, (entry, _) in field_entries().items()}


def _fields_of(group: type) -> Iterator[dataclasses.Field]:
    return (entry for entry in dataclasses.fields(group) if entry.init)


@dataclass(frozen=True)
class Recipe:
    """All fields of a training, by group. A recipe is immutable; `replace` returns a changed copy.

    Args:
        model: Fields of the student.
        data: Fields of the images.
        augmentation: Augmentation of training images; a `view_size` of None means the student's image size.
        teacher: Fields of the teacher.
        run: Fields of the run.
        training: Fields of optimisation and distillation. A trainer gets a copy of them.
        given: Values that were given, by field name; all other fields have their defaults.
        proposal: If the recipe was proposed for the data (advice.py), its name (`recipe`) and the `reason`; else None.
    """

    model: ModelArguments
    data: DataArguments
    augmentation: Augmentation
    teacher: TeacherArguments
    run: RunArguments
    training: "DistillationTrainingArguments"
    given: Mapping[str, Any] = field(repr=False)
    proposal: Mapping[str, str] | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], tolerated: Collection[str] = ()) -> "Recipe":
        """Return a recipe with the given fields, of any group; all other fields have their defaults.

        The default of distillation_type is "none" if neither a teacher nor a teacher cache is given.

        Args:
            fields: Fields by name.
            tolerated: Names of fields that may have no effect (see unused_fields.py).

        Raises:
            RecipeError: A field is unknown, or a value is not allowed. The message names all problems that are found together.
        """
        check_names(fields)
        values, problems = {}, []
        for name, value in fields.items():
            entry, hint = field_entries()[name]
            try:
                values[name] = typed_value(name, value, hint, entry.metadata.get("choices"))
            except RecipeError as error:
                problems.append(str(error))
        _raise_all(problems)
        given = copy.deepcopy(values)  # TrainingArguments may modify mappings that it is given
        if values.get("distillation_type") is None:
            # An empty teacher (an unset variable of a script) is not the same as none: it is refused later.
            values["distillation_type"] = "hard" if values.keys() & {"teacher", "teacher_cache"} else "none"
        made = {}
        for attribute, group in field_groups().items():
            try:
                names = [entry.name for entry in _fields_of(group)]
                own = {name: values[name] for name in names if name in values}
                made[attribute] = group.tolerating(tolerated, **own) if attribute == "training" else group(**own)
            except OSError as error:
                problems.append(f"{error.filename}: {error.strerror}")
            except _VALUE_ERRORS as error:
                problems.append(str(error) or type(error).__name__)
        _raise_all(problems)
        return cls(**made, given=given)

    def replace(self, **changes: Any) -> "Recipe":
        """Return a copy with other values of some fields, of any group. Defaults that depend on them are chosen again.

        A field that has no effect in the copy, because another one was changed, keeps its value.

        Raises:
            RecipeError: As in `from_fields`.
        """
        fields = {**self.given, **changes}
        return dataclasses.replace(Recipe.from_fields(fields, tolerated=fields), proposal=self.proposal)

    def changed(self) -> dict[str, Any]:
        """Return those of the fields of `to_dict` that were given with another value than their default."""
        usual = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults().items()}
        return {name: value for name, value in self.to_dict().items() if name in self.given and value != usual[name]}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and their values in the form of YAML, defaults included.

        The fields of `run`, access tokens and `use_cpu` are left out.
        """
        fields: dict[str, Any] = {}
        for group in (self.model, self.data, self.augmentation, self.teacher):
            fields |= dataclasses.asdict(group)
        for name in _SIZES:  # digests contain these values, in which a square is a list of one number
            size = fields[name]
            fields[name] = size[:1] if size and size[0] == size[1] else size
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        for name in _PATHS:
            if fields[name] is not None and Path(fields[name]).exists():
                # The saved recipe may be read from another working folder.
                fields[name] = str(Path(fields[name]).resolve())
        training = self.training.to_dict()
        names = {entry.name for entry in _fields_of(type(self.training))} & training.keys()
        fields |= {name: training[name] for name in sorted(names) if name not in _NOT_SAVED}
        if "dataloader_num_workers" not in self.given:  # a command may have set it for this machine
            fields["dataloader_num_workers"] = 0
        return fields


def check_names(fields: Mapping[str, Any], where: str = "The recipe") -> None:
    """Check that every field exists.

    Args:
        fields: Fields by name.
        where: File or object that holds the fields, for the message.

    Raises:
        RecipeError: A field does not exist. The message names it and a similar field.
    """
    unknown = sorted(str(name) for name in fields if name not in field_entries())
    if unknown:
        raise RecipeError(f"{where} has unknown field(s) {listed(unknown)}.{similar_name(unknown[0])}")


# Usual names of other tools (timm, the official script, Keras, ultralytics) → the field.
OTHER_TOOLS = {
    "aa": "auto_augment",
    "alpha": "distillation_alpha",
    "amp": "bf16",
    "batch": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "clip_grad": "max_grad_norm",
    "cutmix": "cutmix_alpha",
    "data_dir": "data",
    "data_path": "data",
    "dataset": "data",
    "depth": "num_hidden_layers",
    "drop_path": "drop_path_rate",
    "embed_dim": "hidden_size",
    "epoch": "num_train_epochs",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "finetune": "model",
    "heads": "num_attention_heads",
    "img_size": "image_size",
    "input_size": "image_size",
    "iterations": "max_steps",
    "layers": "num_hidden_layers",
    "label_smoothing": "label_smoothing_factor",
    "lr": "learning_rate",
    "min_lr": "min_learning_rate",
    "mixup": "mixup_alpha",
    "mixup_prob": "mix_probability",
    "mixup_switch_prob": "mix_switch_probability",
    "model_ema": "ema_epochs",
    "momentum": "optim_args",
    "n_epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "num_workers": "dataloader_num_workers",
    "opt": "optim",
    "optimizer": "optim",
    "out": "output_dir",
    "output": "output_dir",
    "pretrained": "model",
    "repeated_aug": "repeated_augmentation",
    "reprob": "erasing_probability",
    "resolution": "image_size",
    "sched": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "smoothing": "label_smoothing_factor",
    "steps": "max_steps",
    "tau": "distillation_tau",
    "teacher_model": "teacher",
    "teacher_path": "teacher_weights",
    "temperature": "distillation_tau",
    "train_batch_size": "per_device_train_batch_size",
    "val_batch_size": "per_device_eval_batch_size",
    "warmup": "warmup_steps",
    "warmup_epochs": "warmup_steps",
    "warmup_lr": "warmup_learning_rate",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}


def similar_name(name: str) -> str:
    """Return the end of a message about an unknown field: the field for it, or the command that lists all fields.

    The field is looked up among usual names of other tools first, and among similar names of fields then.
    """
    known_elsewhere = OTHER_TOOLS.get(name.lower().replace("-", "_"))
    if known_elsewhere is not None:
        return f" Did you mean {known_elsewhere}?"
    close = get_close_matches(name, field_entries(), n=1)
    return f" Did you mean {close[0]}?" if close else " `hf-deit train --help` and --help-all list the fields."


def _raise_all(problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError(numbered(problems))


# ---- types ----

# YAML 1.1 reads 1e-4 as text, because it has no dot.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


def typed_value(name: str, value: Any, hint: Any, choices: Sequence[Any] | None = None) -> Any:
    """Convert the value of a field, as read from YAML or the command line, to the type of the field.

    Text that spells a number becomes a number if the field accepts numbers but no text, because `1e-4` is text in YAML 1.1. A
    single value becomes a list if the field accepts only a list.

    Args:
        name: Name of the field, for the message.
        value: Value as read from YAML or the command line.
        hint: Type hint of the field.
        choices: Allowed values. None allows all values of the type.

    Raises:
        RecipeError: The value has another type, or is not among the choices.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if any(_is_enum(kind) for kind in kinds):  # `HubStrategy | str` accepts the strategies only
        kinds = tuple(kind for kind in kinds if kind is not str)
    for kind in sorted(kinds, key=lambda kind: _precedence(kind, value)):
        try:
            converted = _converted(value, kind)
        except (TypeError, ValueError):
            continue
        if choices is None or converted is None or converted in choices:
            return converted
    raise RecipeError(f"{name}={value!r}: {_allowed(kinds, choices)}.")


def _plain(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _precedence(kind: Any, value: Any) -> int:
    """Return the sort key of a type in a union: the value's own type is tried first, text and lists last."""
    if type(value) is _plain(kind):
        return 0
    return {str: 2, list: 3, tuple: 3}.get(_plain(kind), 1)


def _converted(value: Any, kind: Any) -> Any:
    plain = _plain(kind)
    if plain is Any:
        return value
    if plain in (list, tuple):
        (item_kind, *_) = typing.get_args(kind) or (Any,)
        items = list(value) if isinstance(value, list | tuple) else [value]
        return plain(_converted(item, item_kind) for item in items)
    if plain is types.NoneType or plain is dict:
        if not isinstance(value, plain):
            raise TypeError
        return _with_numbers(value) if plain is dict else None
    if value is None or isinstance(value, list | tuple | dict):
        raise TypeError
    if plain is bool:
        from transformers.hf_argparser import string_to_bool

        try:
            return string_to_bool(value if isinstance(value, bool) else str(value))
        except Exception as error:  # ArgumentTypeError of argparse
            raise ValueError from error
    if _is_enum(plain):
        return plain(value).value
    return plain(str(value))


def _with_numbers(value: Any) -> Any:
    """Return a mapping or list, whose values have no declared type, with text such as 1e-4 converted to numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _allowed(kinds: Sequence[Any], choices: Sequence[Any] | None) -> str:
    options = choices or [member.value for kind in kinds if _is_enum(kind) for member in kind]
    if options:
        return f"choose one of {', '.join(map(str, options))}"
    words = []
    for kind in kinds:
        if _plain(kind) in (list, tuple):
            (item, *_) = typing.get_args(kind) or (Any,)
            words.append(f"a list of {'whole numbers' if item is int else 'numbers' if item is float else 'text'}")
        elif _plain(kind) in _WORDS:
            words.append(_WORDS[_plain(kind)])
    return f"this field expects {' or '.join(words)}" + (", or can be left out" if types.NoneType in kinds else "")
