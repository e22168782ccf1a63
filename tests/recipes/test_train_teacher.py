"""Training of a teacher from a network, compared with the same network built by hand from the saved files."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification

from hf_deit.data.batch_ops import normalize
from hf_deit.data.loading import load_splits
from hf_deit.distillation.factories import FACTORY_NORMALIZATION
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.recipes.train_teacher import TeacherTrainingArguments, train_teacher
from tests.helpers import tiny
from tests.helpers.runs import (
    FACTORY,
    NAMES,
    accuracy,
    by_hand,
    hf_deit,
    refused,
    resnet_folder,
    swin_folder,
    write_splits,
)

SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def validation(data):
    return load_splits(str(data))[1]


def arguments(data, output_dir, **changes):
    fields = {"network": FACTORY, "image_size": SIZE, "batch_size": 8, "crop_scale": [0.6, 1.0], **changes}
    return TeacherTrainingArguments(data=str(data), output_dir=str(output_dir), **fields)


@pytest.fixture(scope="module")
def linear(tmp_path_factory, data):
    """Folder and metrics of a teacher with a linear head on frozen features."""
    folder = tmp_path_factory.mktemp("linear")
    return folder, train_teacher(arguments(data, folder))


def network_of(folder):
    """Return the saved network, built without the loader of the package."""
    network = tiny.conv_network()
    network.classifier = nn.Linear(network.classifier.in_features, len(NAMES))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def pixels_of(source, size=SIZE):
    """Return the pixels of all images in [0, 1], and the labels."""
    processor = DeiTImageProcessor.for_image_size(size, do_normalize=False)
    images = [source.image(index) for index in range(len(source))]
    return processor(images, return_tensors="pt")["pixel_values"], torch.tensor(source.labels)


# ---- a head on frozen features ----


def test_a_linear_head_learns_the_classes(linear):
    _, metrics = linear
    assert metrics["accuracy"] > 0.8
    # All classes have the same number of images.
    assert metrics["balanced_accuracy"] == pytest.approx(metrics["accuracy"])


def test_only_the_last_layer_is_changed(linear):
    weights, before = load_file(linear[0] / "model.safetensors"), tiny.conv_network().state_dict()
    assert weights.keys() == before.keys()
    for name, tensor in before.items():
        if name.startswith("classifier"):
            assert weights[name].shape[0] == len(NAMES)
        else:
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)


def test_the_saved_teacher_gives_the_logits_of_its_network(linear, validation):
    folder, metrics = linear
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "teacher.json"}
    pixels, labels = pixels_of(validation)
    with torch.no_grad():
        logits = network_of(folder)(normalize(pixels, tiny.MEAN, tiny.STD))
    teacher = Teacher.from_pretrained(folder)
    torch.testing.assert_close(teacher(pixels), logits, rtol=1e-5, atol=1e-5)
    assert metrics["accuracy"] == pytest.approx(accuracy(logits, labels))
    assert metrics["cls_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)


def test_the_saved_teacher_has_its_classes_normalisation_and_size(linear):
    teacher = Teacher.from_pretrained(linear[0])
    assert teacher.class_names == list(NAMES)
    assert (teacher.image_mean, teacher.image_std) == (pytest.approx(tiny.MEAN), pytest.approx(tiny.STD))
    assert teacher.image_size == (SIZE, SIZE)
    assert json.loads((linear[0] / "teacher.json").read_text())["factory"] == FACTORY


def test_a_factory_with_another_normalisation_is_trained_and_saved_with_it(tmp_path, monkeypatch, data, validation):
    half = (0.5, 0.5, 0.5)
    monkeypatch.setitem(FACTORY_NORMALIZATION, FACTORY, (half, half))
    metrics = train_teacher(arguments(data, tmp_path, views=1))
    teacher = Teacher.from_pretrained(tmp_path)
    assert (teacher.image_mean, teacher.image_std) == (half, half)
    pixels, labels = pixels_of(validation)
    with torch.no_grad():
        logits = network_of(tmp_path)(2 * pixels - 1)
    assert metrics["cls_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)


def test_the_head_is_at_the_minimum_of_a_penalised_softmax_regression(tmp_path, data):
    """The gradient of loss + 0.002 |w|² over standardised features of one view of each image is nearly 0."""
    recorded = []
    build, forward = tiny.ConvTeacher.forward, nn.Linear.forward

    def watching(module, inputs):
        recorded.append(inputs.detach().clone())
        return forward(module, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", watching)
        train_teacher(arguments(data, tmp_path, views=1, batch_size=24))
    assert tiny.ConvTeacher.forward is build
    features = next(one for one in recorded if one.shape == (24, 128))
    standard = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    head = network_of(tmp_path).classifier
    weight = (head.weight * features.std(0).clamp(min=1e-6)).detach().requires_grad_()
    bias = (head.bias + head.weight @ features.mean(0)).detach().requires_grad_()
    logits = standard @ weight.T + bias
    labels = labels_of(logits)
    loss = nn.functional.cross_entropy(logits, labels) + 2e-3 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(gradient.abs().max() for gradient in gradients) < 1e-3
    assert weight.abs().max() > 0.01


def labels_of(logits):
    """Return the labels of images that a head classifies without errors; each class must have 8 images."""
    labels = logits.argmax(-1)
    assert torch.bincount(labels).tolist() == [8, 8, 8]
    return labels


def test_the_seed_determines_the_teacher(tmp_path, data, linear):
    train_teacher(arguments(data, tmp_path / "again"))
    train_teacher(arguments(data, tmp_path / "other", seed=1))
    weights = [load_file(path / "model.safetensors") for path in (linear[0], tmp_path / "again", tmp_path / "other")]
    same, again, other = (one["classifier.weight"] for one in weights)
    torch.testing.assert_close(again, same, rtol=0, atol=0)
    assert not torch.allclose(other, same)


# ---- fine-tuning of all weights ----


def test_fine_tuning_starts_from_the_linear_head_and_trains_the_entire_network(tmp_path, data, validation, linear):
    metrics = train_teacher(arguments(data, tmp_path, mode="finetune", epochs=2, learning_rate=1e-3))
    weights, before = load_file(tmp_path / "model.safetensors"), load_file(linear[0] / "model.safetensors")
    for name in ("conv.weight", "norm.running_mean", "classifier.weight"):
        assert not torch.equal(weights[name], before[name])
    # The head is a few small steps away from the linear head, so it did not start from a random one.
    assert (weights["classifier.weight"] - before["classifier.weight"]).abs().max() < 0.02
    assert metrics["accuracy"] > 0.8
    pixels, labels = pixels_of(validation)
    teacher = Teacher.from_pretrained(tmp_path)
    logits = teacher(pixels)
    assert metrics["accuracy"] == pytest.approx(accuracy(logits, labels))
    assert metrics["cls_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "teacher.json"}


# ---- networks of transformers ----


@pytest.mark.parametrize("mode", ["linear", "finetune"])
def test_a_transformers_network_is_saved_as_a_folder_that_transformers_loads(tmp_path, data, validation, mode):
    source = resnet_folder(tmp_path / "resnet")
    half = [0.5, 0.5, 0.5]
    DeiTImageProcessor.for_image_size(64, image_mean=half, image_std=half).save_pretrained(source)
    fields = {"network": str(source), "mode": mode, "image_size": 32, **({"epochs": 1} if mode == "finetune" else {})}
    metrics = train_teacher(arguments(data, tmp_path / "out", **fields))
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.num_labels == 3
    assert model.config.label2id == {name: index for index, name in enumerate(NAMES)}
    processor = DeiTImageProcessor.from_pretrained(folder)
    assert (list(processor.image_mean), list(processor.image_std)) == (half, half)

    pixels, labels, heads = by_hand(folder, validation)
    assert pixels.shape[-2:] == (32, 32)
    assert metrics["accuracy"] == pytest.approx(accuracy(heads["logits"], labels))
    loss = nn.functional.cross_entropy(heads["logits"], labels)
    assert metrics["cls_loss"] == pytest.approx(loss.item(), abs=1e-4)
    teacher = Teacher.from_pretrained(folder)
    assert (teacher.class_names, teacher.image_size) == (list(NAMES), (32, 32))
    torch.testing.assert_close(teacher(pixels / 2 + 0.5), heads["logits"], rtol=1e-4, atol=1e-4)


def test_the_metrics_are_measured_at_the_image_size_of_the_teacher(tmp_path, data, validation):
    """A Swin accepts any size: its configuration states 16 pixels, and the teacher is trained for 32."""
    fields = {"network": str(swin_folder(tmp_path / "swin")), "image_size": 32}
    metrics = train_teacher(arguments(data, tmp_path / "out", **fields))
    pixels, labels = pixels_of(validation, 32)
    logits = Teacher.from_pretrained(tmp_path / "out")(pixels)
    assert metrics["cls_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)


# ---- refused ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "deep"}, ["mode='deep'", "linear", "finetune"]),
        ({"network": "no/where/at/all"}, ["no/where/at/all"]),
        ({"network": "no.where:at_all"}, ["no.where:at_all", "package.module:factory"]),
        ({"network": "tests.helpers.tiny:no_network"}, ["tests.helpers.tiny:no_network", "torch.nn.Module"]),
        ({"network": "torch.nn:Identity"}, ["(1, 3, 16, 16)", "(batch, classes)"]),
        ({"network": "torch.nn:Flatten"}, ["Flatten", "linear layer"]),
        ({"network": "EMPTY"}, ["config.json"]),
        ({"network": "SWIN", "image_size": 1}, ["1"]),
        ({"image_size": 0}, ["image_size=0"]),
        ({"views": 0}, ["views=0"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"mode": "finetune", "epochs": 0}, ["epochs=0"]),
        ({"mode": "finetune", "learning_rate": -1.0}, ["learning_rate=-1.0"]),
        ({"crop_scale": [0.9, 0.1]}, ["crop_scale=(0.9, 0.1)"]),
        ({"validation_share": 1.0}, ["validation_share=1.0"]),
    ],
    ids=str,
)
def test_an_invalid_argument_is_refused_with_its_name_before_a_file_is_written(tmp_path, data, changes, named):
    if changes.get("network") == "EMPTY":
        (tmp_path / "empty").mkdir()
        changes = {"network": str(tmp_path / "empty")}
    if changes.get("network") == "SWIN":
        changes = {**changes, "network": str(swin_folder(tmp_path / "swin"))}
    with pytest.raises(UserError) as refusal:
        train_teacher(arguments(data, tmp_path / "out", **changes))
    assert [text for text in named if text not in str(refusal.value)] == []
    assert not (tmp_path / "out").exists()


def test_a_linear_head_can_be_fitted_with_an_odd_batch_size(tmp_path, data):
    assert train_teacher(arguments(data, tmp_path, batch_size=7, views=1))["accuracy"] > 0.8


# ---- the command ----


def test_the_command_trains_and_prints_how_to_use_the_teacher(tmp_path, capsys, data, linear):
    folder, metrics = linear
    fields = ("--network", FACTORY, "--image_size", SIZE, "--batch_size", 8, "--crop_scale", 0.6, 1.0)
    assert hf_deit("train-teacher", "--data", data, "--output_dir", tmp_path, *fields) == 0
    printed = capsys.readouterr().out
    assert f"hf-deit train --teacher {tmp_path}" in printed
    assert f"{100 * metrics['accuracy']:.2f} %" in printed
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_command_passes_every_option_on(monkeypatch):
    given = []
    monkeypatch.setattr(
        "hf_deit.recipes.train_teacher.train_teacher",
        lambda one, prepare: given.append(one) or {"accuracy": 1.0},
    )
    wanted = TeacherTrainingArguments(
        data="d",
        network="n",
        output_dir="o",
        data_config="small",
        data_revision="v2",
        split_column="part",
        train_split="most",
        validation_split="rest",
        image_column="photo",
        label_column=["kind", "size"],
        label_separator=";",
        class_names="names.txt",
        mode="finetune",
        image_size=32,
        views=2,
        epochs=3,
        learning_rate=0.5,
        batch_size=6,
        crop_scale=[0.5, 0.75],
        validation_share=0.25,
        bf16=True,
        seed=9,
    )
    options = []
    for name, value in dataclasses.asdict(wanted).items():
        options += [f"--{name}", *([] if value is True else value if isinstance(value, list) else [value])]
    assert hf_deit("train-teacher", *options) == 0
    assert given == [wanted]


def test_the_command_names_an_invalid_network(tmp_path, capsys, data):
    message = refused(
        capsys, "train-teacher", "--data", data, "--network", "no.where:x", "--output_dir", tmp_path / "o"
    )
    assert "no.where:x" in message
