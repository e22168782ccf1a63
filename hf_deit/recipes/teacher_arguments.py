"""Options of `hf-deit train-teacher`. This module imports nothing heavy, so that `--help` is fast."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .arguments import DataArguments

_DATA_FIELDS = {entry.name: entry for entry in dataclasses.fields(DataArguments)}


def _of_data(name: str) -> Any:
    """Return the field of that name of a recipe, where it is documented, with its default."""
    return field(default=_DATA_FIELDS[name].default, metadata=_DATA_FIELDS[name].metadata)


@dataclass(frozen=True)
class TeacherTrainingArguments:
    """Arguments of `train_teacher`."""

    data: str = field(
        metadata={"help": "Folder (train/CLASS/…, validation/CLASS/…), table or data set, as for hf-deit train."}
    )
    network: str = field(
        metadata={
            "help": "Pretrained network: package.module:factory, or folder or Hub name of a transformers classifier."
        }
    )
    output_dir: str = field(metadata={"help": "Folder in which the teacher is saved."})
    data_config: str | None = _of_data("data_config")
    data_revision: str | None = _of_data("data_revision")
    split_column: str | None = _of_data("split_column")
    train_split: str | None = _of_data("train_split")
    validation_split: str | None = _of_data("validation_split")
    image_column: str | None = _of_data("image_column")
    label_column: list[str] | None = _of_data("label_column")
    label_separator: str | None = _of_data("label_separator")
    class_names: str | None = _of_data("class_names")
    mode: str = field(
        default="linear",
        metadata={
            "help": "linear: fit a head on frozen features; finetune: train all weights afterwards.",
            "choices": ["linear", "finetune"],
        },
    )
    image_size: int = field(default=224, metadata={"help": "Side in pixels of the images that the teacher takes."})
    views: int = field(default=3, metadata={"help": "Number of augmented views per image that the head is fitted on."})
    epochs: int = field(default=5, metadata={"help": "Number of epochs in which all weights are trained (finetune)."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (finetune)."})
    batch_size: int = field(default=64, metadata={"help": "Number of images per batch."})
    crop_scale: tuple[float, float] = field(
        default=(0.25, 1.0), metadata={"help": "Smallest and largest share of the image area that a crop covers."}
    )
    validation_share: float = _of_data("validation_share")
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 (autocast)."})
    seed: int = field(default=0, metadata={"help": "Seed of the validation split, the views and the training."})

    def __post_init__(self) -> None:
        if isinstance(self.label_column, str):  # one column, as a person writes it in Python
            object.__setattr__(self, "label_column", [self.label_column])
