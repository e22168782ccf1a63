"""Tiny students, teachers, images and arguments: 2 layers of width 32, for images of 16 × 16 pixels.

Everything follows from fixed seeds. The tests and the scripts that they start import this module, so that both use
identical models and data.
"""

import gc
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import TrainerCallback

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.sources import Source
from hf_deit.data.views import EvaluationDataset, ViewDataset
from hf_deit.errors import DataError
from hf_deit.models.configuration_deit import DeiTConfig, ViTConfig
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from hf_deit.trainer.training_args import DistillationTrainingArguments

# Every `train()` runs the garbage collector, which takes half a second for the objects of transformers. These objects
# are never deleted, so the collector may ignore them.
gc.freeze()

SIZE = 16
NAMES = ("ant", "bee", "cat", "dog")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def student(two_heads=True, seed=0, names=NAMES, **changes):
    """Return a tiny distilled student, or a plain student without `two_heads`."""
    torch.manual_seed(seed)
    fields = {
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        **changes,
    }
    if two_heads:
        return DeiTForImageClassificationWithTeacher(DeiTConfig(**fields))
    return ViTForImageClassification(ViTConfig(**fields))


class ConvTeacher(nn.Module):
    """Convolutional teacher for images of any size, with a batch norm whose statistics training mode would change."""

    def __init__(self, num_labels=len(NAMES)):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Linear(8 * 16, num_labels)

    def forward(self, pixels):
        return self.classifier(self.pool(self.norm(self.conv(pixels)).relu()).flatten(1))


def conv_teacher(num_labels=len(NAMES), seed=1):
    torch.manual_seed(seed)
    network = ConvTeacher(num_labels)
    network.norm.running_mean.uniform_(-0.1, 0.1)
    network.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(network.classifier.weight, std=0.5)
    return network


def conv_network():
    """Return a fixed network. This is a network factory: it has no arguments."""
    return conv_teacher()


def no_network():
    """Return an object that is not a network, which a network factory must not do."""
    return [1, 2, 3]


def pixels_of(count, seed=0, num_labels=len(NAMES), size=20):
    """Return noisy images `(count, size, size, 3)` in uint8. Image i shows the pattern of class i mod `num_labels`."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).integers(40, 216, (num_labels, 4, 4, 3)).repeat(5, 1).repeat(5, 2)
    patterns = patterns[:, :size, :size]
    noise = generator.normal(0, 40, (count, size, size, 3))
    return (patterns[np.arange(count) % num_labels] + noise).clip(0, 255).astype(np.uint8)


def source(count, seed=0, names=NAMES, fingerprint=None):
    """Return a source of images that are embedded PNG files, not files on the disk."""
    items = []
    for pixels in pixels_of(count, seed, len(names)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        items.append({"bytes": file.getvalue(), "path": None})
    labels = [index % len(names) for index in range(count)]
    return Source(items, labels, tuple(names), fingerprint or f"{count}-{seed}", "tiny")


def training_data(count=64, seed=0, view_size=(SIZE, SIZE), names=NAMES, **changes):
    return ViewDataset(source(count, seed, names), Augmentation(view_size, **{"crop_scale": (0.5, 1.0), **changes}), 0)


def partly_labelled_data(count=18, unlabelled=30, share=0.5, missing=2, seed=0, **changes):
    """Return views of `count` images, the last `missing` of which have no label, and of `unlabelled` images beside them."""
    own, others = source(count, seed), source(unlabelled, seed + 3)
    own = replace(own, labels=[*own.labels[: count - missing], *[-100] * missing])
    others = replace(others, labels=[-100] * unlabelled, class_names=())
    augmentation = Augmentation((SIZE, SIZE), **{"crop_scale": (0.5, 1.0), **changes})
    return ViewDataset(own, augmentation, 0, unlabelled=others, unlabelled_share=share)


def evaluation_data(count=22, names=NAMES, **changes):
    return EvaluationDataset(source(count, 7, names), (SIZE, SIZE), **changes)


def arguments(output_dir: Path, **changes):
    """Return arguments for a training on the CPU that prints nothing and neither saves nor evaluates."""
    fields = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 2,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        **changes,
    }
    if fields["logging_strategy"] != "steps" and "logging_steps" not in changes:
        del fields["logging_steps"]  # it would have no effect, which is refused
    return DistillationTrainingArguments(**fields)


class FirstGradients(TrainerCallback):
    """Callback that stores the gradients of the first update."""

    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients is None:
            self.gradients = {
                name.removeprefix("module."): parameter.grad.detach().clone()
                for name, parameter in model.named_parameters()
            }


def logged(trainer, name):
    """Return the values that the trainer logged under `name`, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class RefusingSGD(torch.optim.SGD):
    """Optimizer that fails at its first step, which no check of the recipe can foresee."""

    def step(self, closure=None):
        raise DataError("RefusingSGD takes no step")
