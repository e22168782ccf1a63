"""`TeacherTrainingArguments`, the options of `hf-deit train-teacher`; imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TeacherTrainingArguments:
    """Arguments of `train_teacher`."""

    data: str = field(metadata={"help": "Folder (train/CLASS/…, validation/CLASS/…), table or data set, as for train."})
    network: str = field(
        metadata={"help": "package.module:factory, or folder or Hub name of a transformers classifier."}
    )
    output_dir: str = field(metadata={"help": "Folder in which the teacher is saved."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of a table: paths or images. Default: found by type."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of a table: classes. Default: found by type."}
    )
    mode: str = field(
        default="linear",
        metadata={
            "help": "linear: a head on frozen features; finetune: all weights afterwards.",
            "choices": ["linear", "finetune"],
        },
    )
    image_size: int = field(default=224, metadata={"help": "Side of the images that the teacher will see, in pixels."})
    views: int = field(default=3, metadata={"help": "Augmented views of each image that the head learns from."})
    epochs: int = field(default=5, metadata={"help": "Epochs over all weights (finetune)."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (finetune)."})
    batch_size: int = field(default=64, metadata={"help": "Images in a batch."})
    crop_scale: tuple[float, float] = field(
        default=(0.25, 1.0), metadata={"help": "Smallest and largest share of the area that a crop covers."}
    )
    validation_share: float = field(
        default=0.1, metadata={"help": "Share split off for validation where there is no validation split."}
    )
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    seed: int = field(default=0, metadata={"help": "Seed of views and head."})
