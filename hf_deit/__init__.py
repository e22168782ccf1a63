"""Data-efficient image transformers (DeiT) for Hugging Face.

The public names are imported on first use, so that `import hf_deit` itself is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "DeiTConfig": "models.configuration_deit",
    "ViTConfig": "models.configuration_deit",
    "DeiTForImageClassificationWithTeacher": "models.modeling_deit",
    "DeiTForImageClassificationWithTeacherOutput": "models.modeling_deit",
    "DeiTModel": "models.modeling_deit",
    "ViTForImageClassification": "models.modeling_deit",
    "register_auto_classes": "models.modeling_deit",
    "DeiTImageProcessor": "models.image_processing_deit",
    "Augmentation": "data.augmentation",
    "EvaluationDataset": "data.views",
    "ViewDataset": "data.views",
    "convert": "models.convert",
    "load_checkpoint": "models.convert",
    "load_splits": "data.loading",
    "Teacher": "distillation.teacher",
    "cache_teacher": "recipes.api",
    "card": "recipes.api",
    "evaluate": "recipes.api",
    "predict": "recipes.api",
    "explain": "inspection.explain",
    "explain_layers": "inspection.token_layers",
    "propose_recipe": "recipes.advice",
    "report": "inspection.api",
    "benchmark": "inspection.benchmark",
    "train": "inspection.api",
    "train_teacher": "recipes.api",
    "DistillationTrainer": "trainer.trainer",
    "DistillationTrainingArguments": "trainer.training_args",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from .data.augmentation import Augmentation
    from .data.loading import load_splits
    from .data.views import EvaluationDataset, ViewDataset
    from .distillation.teacher import Teacher
    from .inspection.api import report, train
    from .inspection.benchmark import benchmark
    from .inspection.explain import explain
    from .inspection.token_layers import explain_layers
    from .models.configuration_deit import DeiTConfig, ViTConfig
    from .models.convert import convert, load_checkpoint
    from .models.image_processing_deit import DeiTImageProcessor
    from .models.modeling_deit import (
        DeiTForImageClassificationWithTeacher,
        DeiTForImageClassificationWithTeacherOutput,
        DeiTModel,
        ViTForImageClassification,
        register_auto_classes,
    )
    from .recipes.advice import propose_recipe
    from .recipes.api import cache_teacher, card, evaluate, predict, train_teacher
    from .trainer.trainer import DistillationTrainer
    from .trainer.training_args import DistillationTrainingArguments


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
