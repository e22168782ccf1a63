"""Combinations of student, teacher and arguments; any image classifier of transformers can be a student."""

import json
import logging
import re

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TrainingArguments,
)
from transformers import DeiTConfig as StockDeiTConfig
from transformers import DeiTForImageClassificationWithTeacher as StockDistilled
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViT

from hf_deit.errors import RecipeError
from hf_deit.trainer.student import distillation_target, inspect_student
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import (
    NAMES,
    SIZE,
    arguments,
    conv_teacher,
    evaluation_data,
    logged,
    student,
    training_data,
)

CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


class Network(nn.Module):
    """Student without a configuration that returns a dictionary with logits of a given shape."""

    def __init__(self, shape=(len(NAMES),)):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.linear = nn.Linear(48, torch.Size(shape).numel())
        self.shape = shape

    def forward(self, pixel_values):
        return {"logits": self.linear(self.pool(pixel_values).flatten(1)).reshape(-1, *self.shape)}


class Failing(Network):
    def forward(self, pixel_values):
        raise RuntimeError("no such thing")


class Bare(Network):
    def forward(self, pixel_values):
        return super().forward(pixel_values)["logits"]


def stock_vit(**changes):
    torch.manual_seed(0)
    fields = {"image_size": SIZE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, **CLASSES, **changes}
    return StockViT(StockViTConfig(num_attention_heads=2, intermediate_size=64, **fields))


def stock_distilled():
    torch.manual_seed(0)
    fields = {"image_size": SIZE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, **CLASSES}
    return StockDistilled(StockDeiTConfig(num_attention_heads=2, intermediate_size=64, **fields))


def swin():
    torch.manual_seed(0)
    shape = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
    return SwinForImageClassification(SwinConfig(image_size=SIZE, patch_size=4, **shape, **CLASSES))


def convnext():
    torch.manual_seed(0)
    config = ConvNextConfig(image_size=SIZE, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, **CLASSES)
    return ConvNextForImageClassification(config)


def network():
    torch.manual_seed(0)
    return Network()


# ---- facts about a student ----


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (student(), ((16, 16), 4, True, list(NAMES), "single_label_classification")),
        (student(two_heads=False), ((16, 16), 4, False, list(NAMES), "single_label_classification")),
        (student(image_size=(16, 24)), ((16, 24), 4, True, list(NAMES), "single_label_classification")),
        (student(names=("LABEL_0", "LABEL_1")), ((16, 16), 2, True, None, "single_label_classification")),
        (student(names=("age",)), ((16, 16), 1, True, ["age"], "regression")),
        (
            student(problem_type="multi_label_classification"),
            ((16, 16), 4, True, list(NAMES), "multi_label_classification"),
        ),
        (Network(), (None, 4, False, None, "single_label_classification")),
    ],
    ids=["two-heads", "one-head", "oblong", "LABEL_n", "regression", "multi-label", "module"],
)
def test_inspecting_finds_size_classes_heads_and_problem_type(model, expected):
    model.train()
    info = inspect_student(model)
    assert (info.image_size, info.num_labels, info.two_heads, info.class_names, info.problem_type) == expected
    assert model.training


def test_inspecting_changes_neither_weights_nor_random_generator():
    model = student(drop_path_rate=0.5, hidden_dropout_prob=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    inspect_student(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence:UserWarning"
)  # torch, when a tensor is indexed with "logits"
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Failing(), "pixel_values .* RuntimeError: no such thing"),
        (Bare(), "Bare.*'logits'"),
        (Network(shape=(4, 2, 2)), r"logits.*\(1, 4, 2, 2\).*\(batch, num_labels\)"),
    ],
    ids=["fails", "bare-tensor", "maps"],
)
def test_a_student_that_is_not_a_classifier_is_refused(tmp_path, model, message):
    with pytest.raises(RecipeError, match=message):
        DistillationTrainer(model, None, arguments(tmp_path, distillation_type="none"))


def test_a_student_that_is_not_a_module_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="student is str"):
        DistillationTrainer("facebook/deit", None, arguments(tmp_path, distillation_type="none"))


# ---- combinations ----


def multi_label(two_heads=True):
    return student(two_heads, problem_type="multi_label_classification")


IMPOSSIBLE = {
    "hard-without-teacher": (
        student,
        None,
        {"distillation_type": "hard"},
        "distillation_type='hard'",
        "distillation_type='none'",
    ),
    "soft-without-teacher": (student, None, {"distillation_type": "soft"}, "distillation_type='soft'", "teacher"),
    "token-with-one-head": (
        lambda: student(two_heads=False),
        conv_teacher,
        {"distillation_target": "token"},
        "distillation_target='token'",
        "distillation_target='class'",
    ),
    "token-with-stock-vit": (
        stock_vit,
        conv_teacher,
        {"distillation_target": "token"},
        "distillation_target='token'",
        "DeiTForImageClassificationWithTeacher",
    ),
    "class-with-two-heads": (
        student,
        conv_teacher,
        {"distillation_target": "class"},
        "distillation_target='class'",
        "distillation_target='token'",
    ),
    "multi-label-official-reduction": (
        lambda: multi_label(two_heads=False),
        conv_teacher,
        {"distillation_type": "soft", "distillation_reduction": "official"},
        "'multi_label_classification'",
        "Leave out distillation_reduction",
    ),
    "multi-label-student-single-label-data": (
        multi_label,
        None,
        {"distillation_type": "none"},
        "problem_type='single_label_classification'",
        "Build the student with problem_type='single_label_classification'",
    ),
    "regression": (
        lambda: student(problem_type="regression"),
        conv_teacher,
        {},
        "'regression'",
        "distillation_type='none'",
    ),
    "one-output": (
        lambda: student(names=("age",)),
        lambda: conv_teacher(1),
        {},
        "'regression'",
        "distillation_type='none'",
    ),
    "odd-batch": (
        student,
        conv_teacher,
        {"per_device_train_batch_size": 5, "mixup_alpha": 0.8},
        "per_device_train_batch_size=5",
        "even",
    ),
    "odd-batch-of-repeated-views": (
        student,
        conv_teacher,
        {"per_device_train_batch_size": 3, "repeated_augmentation": 2},
        "per_device_train_batch_size=3",
        "repeated_augmentation=2",
    ),
    "odd-batch-even-global-batch": (
        student,
        conv_teacher,
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "cutmix_alpha": 1.0},
        "per_device_train_batch_size=1",
        "even",
    ),
    "classes-of-the-data": (
        lambda: student(names=NAMES[:3]),
        lambda: conv_teacher(3),
        {},
        "4 classes ('ant', 'bee', 'cat', 'dog')",
        "num_labels=4",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_combinations_are_refused_before_the_first_step_with_a_fix(tmp_path, case):
    model, teacher, changes, problem, remedy = IMPOSSIBLE[case]
    args = arguments(tmp_path, **changes)
    with pytest.raises(RecipeError, match=re.escape(remedy)) as caught:
        DistillationTrainer(model(), teacher and teacher(), args, train_dataset=training_data(8))
    assert problem in str(caught.value)


def test_plain_training_arguments_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="args is TrainingArguments.*DistillationTrainingArguments"):
        DistillationTrainer(student(), conv_teacher(), TrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize(
    ("mode", "target", "two_heads", "expected"),
    [
        ("hard", None, True, "token"),
        ("soft", "token", True, "token"),
        ("hard", None, False, "class"),
        ("soft", "class", False, "class"),
        ("none", None, True, None),
    ],
)
def test_the_default_target_depends_on_the_heads(tmp_path, mode, target, two_heads, expected):
    args = arguments(tmp_path, distillation_type=mode, distillation_target=target)
    info = inspect_student(student(two_heads))
    assert distillation_target(args, info, has_teacher=mode != "none") == expected


# ---- any classifier can be trained ----


@pytest.mark.parametrize("make", [stock_vit, stock_distilled, swin, convnext, network], ids=lambda make: make.__name__)
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_classifier_of_another_library_learns_and_never_gets_labels(tmp_path, make, mode):
    model = make()
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, set(kwargs))), with_kwargs=True)
    target = {} if make is stock_distilled else {"distillation_target": "class"}
    args = arguments(
        tmp_path, distillation_type=mode, distillation_alpha=0.2, max_steps=30, learning_rate=3e-3, **target
    )
    data = training_data(32, crop_scale=(0.9, 1.0), flip_probability=0.0)
    trainer = DistillationTrainer(model, conv_teacher(), args, train_dataset=data, eval_dataset=evaluation_data(10))
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.predict(evaluation_data(4))
    trainer.save_model()

    losses = logged(trainer, "loss")
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert 0 <= metrics["eval_teacher_agreement"] <= 1
    assert len(calls) >= 30
    assert all(kwargs == {"pixel_values"} and not args for args, kwargs in calls)
    assert (tmp_path / "model.safetensors").is_file()
    if hasattr(model, "config"):
        assert model.config.problem_type == problem_type
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved.get("problem_type") == problem_type
        reloaded = type(model).from_pretrained(tmp_path).eval()
        pixels = torch.rand(2, 3, SIZE, SIZE)
        with torch.no_grad():
            assert torch.equal(reloaded(pixels).logits, model.eval()(pixels).logits)


@pytest.mark.parametrize("two_heads", [True, False])
def test_our_students_keep_their_problem_type_and_never_get_labels(tmp_path, two_heads):
    model = student(two_heads)
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(set(kwargs)), with_kwargs=True)
    data = training_data(16)
    trainer = DistillationTrainer(
        model, conv_teacher(), arguments(tmp_path), train_dataset=data, eval_dataset=evaluation_data(5)
    )
    trainer.train()
    trainer.evaluate()
    assert calls
    assert set.union(*calls) == {"pixel_values"}
    assert model.config.problem_type is None


class Rows(torch.utils.data.Dataset):
    """Data set of float pixels with labels of any kind."""

    def __init__(self, labels):
        self.labels = labels
        self.pixels = torch.randn(len(labels), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


@pytest.mark.parametrize("kind", ["multi-label", "regression", "one-output"])
@pytest.mark.parametrize("two_heads", [True, False])
def test_multi_label_and_regression_train_without_a_teacher(tmp_path, kind, two_heads):
    generator = torch.Generator().manual_seed(1)
    if kind == "multi-label":
        model = student(two_heads, problem_type="multi_label_classification")
        labels = (torch.rand(10, 4, generator=generator) > 0.5).float()
        elementwise = torch.nn.functional.binary_cross_entropy_with_logits
    else:
        model = student(two_heads, names=("age",) if kind == "one-output" else NAMES, problem_type="regression")
        labels = torch.rand(10, *(() if kind == "one-output" else (4,)), generator=generator)
        elementwise = torch.nn.functional.mse_loss
    data = Rows(labels)
    args = arguments(tmp_path, distillation_type="none", per_device_train_batch_size=10, max_steps=1)
    trainer = DistillationTrainer(model, None, args, train_dataset=data, eval_dataset=data)
    with torch.no_grad():
        output = model.eval()(data.pixels)
    heads = [output.cls_logits, output.distillation_logits] if two_heads else [output.logits]
    by_hand = sum(elementwise(head, labels.reshape(head.shape)) for head in heads) / len(heads)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand.item(), rel=1e-5)
    trainer.train()
    assert logged(trainer, "loss") == [pytest.approx(by_hand.item(), rel=1e-5)]


def test_a_student_without_class_names_is_trained_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        DistillationTrainer(
            student(names=("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")), conv_teacher(), arguments(tmp_path)
        )
    assert "names" in caplog.text
    assert "order" in caplog.text
