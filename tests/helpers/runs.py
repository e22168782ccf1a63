"""Commands that run in this process, small image folders for them, and independent computations of their results."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time

import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

import hf_deit as package
from hf_deit.cli import main
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers import tiny
from tests.helpers.processes import forkserver_context

# Three of the four classes of `tiny.conv_network`.
NAMES = ("bee", "cat", "dog")


def saved_student(folder, names=NAMES, two_heads=True, **changes):
    """Save a student whose probabilities differ from image to image."""
    student = tiny.student(two_heads, names=names, **changes)
    for name in ("cls_classifier", "distillation_classifier", "classifier"):
        if hasattr(student, name):
            torch.nn.init.normal_(getattr(student, name).weight, std=0.5)
    student.save_pretrained(folder)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(folder)
    return folder


TEACHER_LABELS = ("dog", "ant", "bee", "cat")


FACTORY = "tests.helpers.tiny:conv_network"


QUIET = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--report", "false")


SHAPE = ("--hidden_size", 32, "--num_hidden_layers", 2, "--num_attention_heads", 2, "--patch_size", 8)


STUDENT = (*SHAPE, "--image_size", 16)


TWO_STEPS = ("--max_steps", 2, "--per_device_train_batch_size", 8)


def write_images(folder, names=NAMES, per_class=8, seed=0):
    """Write one folder per class with images of 20 to 40 pixels, whose classes can be learned."""
    for number, pixels in enumerate(tiny.pixels_of(per_class * len(names), seed, len(names))):
        path = folder / names[number % len(names)] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((20 + 7 * number % 21, 20 + 5 * number % 21)).save(path)
    return folder


def write_splits(folder, names=NAMES):
    write_images(folder / "train", names)
    write_images(folder / "validation", names, per_class=5, seed=7)
    return folder


def hf_deit(*arguments):
    return main([str(argument) for argument in arguments])


def _start(words):
    os.setsid()  # a process group with its workers, which can be killed together
    multiprocessing.set_start_method(None, force=True)  # data workers are forks of this process
    original = multiprocessing.get_context
    # Worker processes too: spawned ones would import torch and transformers again.
    multiprocessing.get_context = lambda method=None: original("fork" if method == "spawn" else method)
    sys.exit(hf_deit(*words))


def kill_when(condition, *words, seconds=150):
    """Run a command in another process, and kill it and its workers with SIGKILL as soon as a condition holds.

    See helpers/processes.py for the process, which need not import torch and transformers again.
    """
    process = forkserver_context().Process(target=_start, args=(words,))
    process.start()
    end = time.monotonic() + seconds
    try:
        while process.is_alive() and time.monotonic() < end and not condition():
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode == -signal.SIGKILL, "the command ended before it was killed"


def train(data, output_dir, *fields):
    return hf_deit("train", "--data", data, "--output_dir", output_dir, *QUIET, *TWO_STEPS, *fields)


def refused(capsys, *arguments):
    """Check that a command fails with exit code 2 and without a traceback, and return the printed message."""
    capsys.readouterr()
    assert hf_deit(*arguments) == 2
    message = capsys.readouterr().err
    assert f"hf-deit {arguments[0]}: " in message
    assert "Traceback" not in message
    return message


def results(folder):
    return json.loads((folder / "results.json").read_text())


@torch.no_grad()
def by_hand(folder, source, names=NAMES):
    """Compute the pixels, labels and logits of a saved model with stock transformers, one image at a time."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("transformers.")
    processor = DeiTImageProcessor.from_pretrained(folder)
    index = {name: number for number, name in model.config.id2label.items()}
    labels = torch.tensor([index[source.class_names[label]] for label in source.labels])
    pixels = [
        processor(source.image(number), return_tensors="pt")["pixel_values"] for number in range(len(source.labels))
    ]
    rows = [model(pixel_values=one) for one in pixels]
    heads = {name: torch.cat([row[name] for row in rows]) for name in rows[0] if name.endswith("logits")}
    assert tuple(model.config.id2label[number] for number in range(len(names))) == tuple(names)
    return torch.cat(pixels), labels, heads


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).double().mean().item()


def swin_folder(path):
    torch.manual_seed(0)
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    SwinForImageClassification(config).save_pretrained(path)
    return path


def resnet_folder(path):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(path)
    return path


def predict(model, images, top_k=5):
    """Return the pairs of class name and probability of each image, as `hf_deit.predict` returns them."""
    return [list(prediction) for prediction in package.predict(model, images, top_k=top_k)]
