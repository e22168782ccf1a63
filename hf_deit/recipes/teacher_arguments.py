"""Options of `hf-deit train-teacher`. This module imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass, field


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
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a data set on the Hub. Default: its default configuration."}
    )
    data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub. Default: the main branch."}
    )
    split_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of a table that names the split of each row. Default: found by usual names; none: no column."
        },
    )
    train_split: str | None = field(
        default=None, metadata={"help": "Name of the training split in the data. Default: found by usual names."}
    )
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of the validation split in the data. Default: found by usual names; none: split off validation_share."
        },
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of a table that holds images or their paths. Default: found by type."}
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of a table that holds the classes; or several columns of 0 and 1, one per class (multi-label). "
            "Default: found by type."
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
        metadata={"help": "File that names the classes, as for hf-deit train. Default: the names of the data."},
    )
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
    validation_share: float = field(
        default=0.1,
        metadata={"help": "Share of the images to split off for validation if the data has no validation split."},
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 (autocast)."})
    seed: int = field(default=0, metadata={"help": "Seed of the validation split, the views and the training."})

    def __post_init__(self) -> None:
        if isinstance(self.label_column, str):  # one column, as a person writes it in Python
            object.__setattr__(self, "label_column", [self.label_column])
