"""hf_deit: data-efficient image transformers (DeiT) for Hugging Face. Public names, imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "DeiTConfig": "configuration_deit",
    "ViTConfig": "configuration_deit",
    "DeiTForImageClassificationWithTeacher": "modeling_deit",
    "DeiTForImageClassificationWithTeacherOutput": "modeling_deit",
    "DeiTModel": "modeling_deit",
    "ViTForImageClassification": "modeling_deit",
    "register_auto_classes": "modeling_deit",
    "DeiTImageProcessor": "image_processing_deit",
    "Augmentation": "augmentation",
    "EvaluationDataset": "data",
    "ViewDataset": "data",
    "convert": "checkpoint_loading",
    "load_checkpoint": "checkpoint_loading",
    "load_splits": "sources",
    "Teacher": "teacher",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "training_args",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .checkpoint_loading import convert, load_checkpoint
    from .configuration_deit import DeiTConfig, ViTConfig
    from .data import EvaluationDataset, ViewDataset
    from .image_processing_deit import DeiTImageProcessor
    from .modeling_deit import (
        DeiTForImageClassificationWithTeacher,
        DeiTForImageClassificationWithTeacherOutput,
        DeiTModel,
        ViTForImageClassification,
        register_auto_classes,
    )
    from .sources import load_splits
    from .teacher import Teacher
    from .trainer import DistillationTrainer
    from .training_args import DistillationTrainingArguments


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("hf_deit")
        except PackageNotFoundError as error:
            raise AttributeError("hf_deit is not installed, so it has no version") from error
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_deit' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
