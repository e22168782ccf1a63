"""The fields of a recipe, as dataclasses by subject; each field is documented here once.

Training arguments are in trainer/training_args.py; files and the command line are read in recipe.py.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.augmentation import AUTO_AUGMENTS, Augmentation
from ..errors import RecipeError
from ..models.fine_tuning import TRAINABLE
from ..trainer.training_args import DistillationTrainingArguments


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
