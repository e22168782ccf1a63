"""Tests of teachers: pixels compared with NumPy and Pillow, origins, classes, and that teachers stay frozen."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import TeacherError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.label_names import class_names
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import (
    MEAN,
    NAMES,
    SIZE,
    STD,
    ConvTeacher,
    arguments,
    conv_network,
    conv_teacher,
    evaluation_data,
    student,
    training_data,
)

LABELS = torch.tensor([0, 1, 2])


class Recorder(nn.Module):
    """Teacher that records its pixels and the modes in which it runs. Its logits do not matter."""

    def __init__(self, num_labels=len(NAMES)):
        super().__init__()
        self.linear = nn.Linear(3, num_labels)
        self.seen, self.modes, self.dtypes = [], [], []

    def forward(self, pixels):
        self.seen.append(pixels)
        self.modes.append((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        logits = self.linear(pixels.mean(dim=(2, 3)))
        self.dtypes.append(logits.dtype)
        return logits


class SizedNet(nn.Module):
    """Teacher that takes only images of 12 × 12 pixels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 12 * 12, len(NAMES))

    def forward(self, pixels):
        return self.linear(pixels.flatten(1))


def fixed_logits(rows):
    """Return a teacher function that always returns the logits `rows`, `(batch, classes)`."""
    return lambda pixels: torch.tensor(rows, dtype=torch.float32)[: len(pixels)]


def random_batch(size=SIZE, count=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return pixels, torch.from_numpy(pixels)


def normalized(unit, mean, std):
    """Return normalised pixels, computed in NumPy in float64."""
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return (unit - mean) / std


def pillow_resized(unit, height, width):
    """Return pixels that Pillow resized as floats, channel by channel, with antialiased bicubic interpolation."""
    return np.array(
        [
            [
                np.asarray(
                    Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
                )
                for channel in image
            ]
            for image in unit
        ]
    ).clip(0, 1)


def pillow_resized_in_8_bits(unit, height, width):
    """Bicubic as an image processor resizes."""
    images = (unit * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized]).transpose(0, 3, 1, 2) / 255


def trainer_of(tmp_path, teacher, model=None, **changes):
    fields = {
        name: changes.pop(name) for name in ("processing_class", "train_dataset", "eval_dataset") if name in changes
    }
    return DistillationTrainer(model or student(), teacher, arguments(tmp_path, **changes), **fields)


# ---- the pixels a teacher sees ----


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("teacher_size", [None, 24, (10, 12)], ids=["same", "larger", "oblong"])
def test_the_teacher_sees_the_students_view_in_its_own_size_and_normalisation(tmp_path, kind, teacher_size):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    recorder = Recorder()
    trainer = trainer_of(tmp_path, Teacher(recorder, mean, std, teacher_size))
    pixels, batch = random_batch()
    unit = pixels / 255
    if kind == "float":
        batch = torch.from_numpy(normalized(unit, MEAN, STD)).float()
    recorder.seen.clear()
    trainer.compute_loss(trainer.model, {"pixel_values": batch, "labels": LABELS})

    if teacher_size is not None:
        unit = pillow_resized(unit, *((teacher_size, teacher_size) if isinstance(teacher_size, int) else teacher_size))
    (seen,) = recorder.seen
    np.testing.assert_allclose(seen.numpy(), normalized(unit, mean, std), atol=2e-5)


@pytest.mark.parametrize(
    ("mean", "std", "normalizes"), [((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), True), ((0.5,) * 3, (0.5,) * 3, False)]
)
def test_float_pixels_are_unnormalised_with_the_mean_and_std_of_the_processor(tmp_path, mean, std, normalizes):
    recorder = Recorder()
    processor = DeiTImageProcessor.for_image_size(SIZE, image_mean=mean, image_std=std, do_normalize=normalizes)
    trainer = trainer_of(tmp_path, Teacher(recorder), processing_class=processor)
    pixels, _ = random_batch()
    unit = pixels / 255
    recorder.seen.clear()
    batch = torch.from_numpy(normalized(unit, mean, std) if normalizes else unit).float()
    trainer.compute_loss(trainer.model, {"pixel_values": batch, "labels": LABELS})
    np.testing.assert_allclose(recorder.seen[0].numpy(), normalized(unit, MEAN, STD), atol=2e-5)


def test_a_larger_view_is_resized_for_the_student_but_not_for_the_teacher(tmp_path):
    recorder, model = Recorder(), student()
    data = training_data(8, view_size=(40, 40))
    seen_by_student = []
    trainer = trainer_of(tmp_path, Teacher(recorder), model, train_dataset=data, max_steps=1)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen_by_student.append(kwargs["pixel_values"]), with_kwargs=True
    )
    recorder.seen.clear()
    trainer.train()

    keys = list(trainer._get_train_sampler())
    assert len(keys) == 8
    unit = np.stack([data[key]["pixel_values"].numpy() for key in keys]) / 255
    np.testing.assert_allclose(recorder.seen[0].numpy(), normalized(unit, MEAN, STD), atol=2e-5)
    resized = pillow_resized(unit, SIZE, SIZE)
    np.testing.assert_allclose(seen_by_student[0].numpy(), normalized(resized, MEAN, STD), atol=2e-5)


def test_a_larger_evaluation_view_reaches_the_teacher(tmp_path):
    recorder = Recorder()
    data = evaluation_data(5, view_size=(40, 40))
    trainer = trainer_of(tmp_path, Teacher(recorder), eval_dataset=data)
    recorder.seen.clear()
    trainer.evaluate()
    unit = np.stack([data[index]["teacher_pixel_values"].numpy() for index in range(5)]) / 255
    assert unit.shape == (5, 3, 40, 40)
    np.testing.assert_allclose(recorder.seen[0].numpy(), normalized(unit, MEAN, STD), atol=2e-5)


@pytest.mark.parametrize(
    ("trainer_bf16", "teacher_dtype", "expected"),
    [
        (True, None, torch.float32),
        (True, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
        (True, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_dtype_of_the_teacher_does_not_depend_on_the_trainer(tmp_path, trainer_bf16, teacher_dtype, expected):
    recorder, model = Recorder(), student()
    students_types = []
    model.deit.layers[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: students_types.append(output.dtype) if module.training else None
    )
    data = training_data(8)
    trainer = trainer_of(tmp_path, Teacher(recorder, dtype=teacher_dtype), model, train_dataset=data, bf16=trainer_bf16)
    recorder.dtypes.clear()
    trainer.train()
    assert set(recorder.dtypes) == {expected}
    assert set(students_types) == {torch.bfloat16 if trainer_bf16 else torch.float32}


def test_half_precision_weights_work_and_logits_are_float32():
    network = ConvTeacher().to(torch.bfloat16)
    logits = Teacher(network)(torch.rand(2, 3, SIZE, SIZE))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, len(NAMES))


# ---- frozen ----


def test_the_teacher_runs_without_gradients_and_not_in_inference_mode(tmp_path):
    recorder = Recorder()
    data = training_data(8)
    trainer = trainer_of(tmp_path, recorder, train_dataset=data, eval_dataset=data and evaluation_data(3))
    recorder.modes.clear()
    trainer.train()
    trainer.evaluate()
    assert len(recorder.modes) == 3
    assert set(recorder.modes) == {(False, False, False)}  # (training, gradients, inference mode)
    logits = trainer.teacher(torch.rand(2, 3, SIZE, SIZE))
    assert not logits.requires_grad
    assert not logits.is_inference()  # the KL divergence saves its target for the backward pass


def test_training_does_not_change_any_tensor_of_the_teacher(tmp_path):
    network = conv_teacher().train()
    before = copy.deepcopy(network.state_dict())
    trainer = trainer_of(
        tmp_path, network, train_dataset=training_data(16), max_steps=3, distillation_type="soft", learning_rate=0.1
    )
    trainer.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_teacher_is_in_no_state_dict_optimizer_or_file(tmp_path):
    model, network = student(), conv_teacher()
    names = set(model.state_dict())
    trainer = trainer_of(tmp_path, network, model, train_dataset=training_data(16), save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()

    assert set(trainer.model.state_dict()) == names
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters()}
    assert len(load_file(tmp_path / "model.safetensors")) == len(names)
    weights = [layer.weight.detach().numpy().tobytes() for layer in (network.conv, network.classifier)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"optimizer.pt", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not any(tensor in content for tensor in weights), path


# ---- origins of teachers ----


def logits_by_hand(network, unit, mean, std):
    with torch.no_grad():
        output = network.eval()(torch.from_numpy(normalized(unit, mean, std)).float())
    return (output if isinstance(output, torch.Tensor) else output.logits).numpy()


def resnet(names=NAMES):
    torch.manual_seed(3)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(names))
    )
    return ResNetForImageClassification(config)


def regnet(names=NAMES):
    torch.manual_seed(4)
    config = RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8, id2label=dict(enumerate(names))
    )
    return RegNetForImageClassification(config)


def convnext(names=NAMES):
    torch.manual_seed(5)
    config = ConvNextConfig(
        image_size=24, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, id2label=dict(enumerate(names))
    )
    return ConvNextForImageClassification(config)


def test_a_teacher_instance_a_module_and_a_function_have_the_same_logits(tmp_path):
    network = conv_teacher()
    pixels, batch = random_batch()
    expected = logits_by_hand(network, pixels / 255, MEAN, STD)
    for number, given in enumerate((Teacher(network), network, lambda pixels: network(pixels))):
        trainer = trainer_of(tmp_path / str(number), given)
        np.testing.assert_allclose(trainer.teacher(batch / 255).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tensor", "dictionary", "tuple", "output"])
def test_a_teacher_may_return_any_kind_of_model_output(kind):
    logits = torch.rand(2, 4)
    output = resnet()(torch.rand(2, 3, SIZE, SIZE))
    outputs = {"tensor": logits, "dictionary": {"logits": logits}, "tuple": (logits, 7), "output": output}
    expected = output.logits if kind == "output" else logits
    assert torch.equal(Teacher(lambda pixels: outputs[kind])(torch.rand(2, 3, SIZE, SIZE)), expected.detach())


@pytest.mark.parametrize("given", [7, "no/where"], ids=["number", "path"])
def test_an_invalid_teacher_is_refused(tmp_path, given):
    with pytest.raises(TeacherError, match=r"of type int|no/where"):
        trainer_of(tmp_path, given)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 24, "width": 28}}, (24, 28)),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True}, (24, 24)),
        ({"size": {"shortest_edge": 24}, "crop_size": {"height": 9, "width": 9}, "do_center_crop": False}, (24, 24)),
        ({"size": 24}, (24, 24)),
        ({"do_resize": False}, None),
    ],
    ids=["squash", "crop", "crop-off", "number", "none"],
)
@pytest.mark.parametrize("make", [resnet, regnet])
def test_mean_std_size_and_classes_are_read_from_a_folder_of_transformers(tmp_path, make, processor, size):
    network, mean, std = make(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    network.save_pretrained(tmp_path)
    content = {
        "image_mean": mean,
        "image_std": std,
        "image_processor_type": "ViTImageProcessor",
        "resample": 3,
        **processor,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))

    teacher = Teacher.from_pretrained(tmp_path)
    assert (teacher.image_mean, teacher.image_std, teacher.image_size) == (mean, std, size)
    assert teacher.class_names == list(NAMES)
    unit = random_batch()[0] / 255
    expected = logits_by_hand(network, pillow_resized_in_8_bits(unit, *size) if size else unit, mean, std)
    np.testing.assert_allclose(teacher(torch.from_numpy(unit).float()).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_path_is_loaded_by_the_trainer_and_arguments_override_the_files(tmp_path):
    resnet().save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.1, 0.1], "size": 24}')
    trainer = trainer_of(tmp_path, str(tmp_path / "teacher"))
    assert trainer.teacher.image_mean == (0.1, 0.1, 0.1)
    assert trainer.teacher.image_size == (24, 24)
    teacher = Teacher.from_pretrained(tmp_path / "teacher", image_mean=(0.2, 0.2, 0.2), image_size=20)
    assert teacher.image_mean == (0.2, 0.2, 0.2)
    assert teacher.image_size == (20, 20)


def test_a_folder_without_processor_gets_the_normalisation_of_imagenet_and_a_warning(tmp_path, caplog):
    convnext().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        teacher = Teacher.from_pretrained(tmp_path)
    assert "no image processor" in caplog.text
    assert (teacher.image_mean, teacher.image_std) == (tuple(MEAN), tuple(STD))
    assert teacher.image_size == (24, 24)  # its config.image_size


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(TeacherError, match=r"neither config\.json nor teacher\.json"):
        Teacher.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "broken").mkdir()
    for text in ("{", "[]", '{"factory": "a:b"}'):
        (tmp_path / "broken" / "teacher.json").write_text(text)
        with pytest.raises(TeacherError, match=r"teacher\.json is broken"):
            Teacher.from_pretrained(tmp_path / "broken")
    with pytest.raises(TeacherError, match="No teacher at"):
        Teacher.from_pretrained(tmp_path)


def write_teacher_folder(folder, network, **changes):
    content = {
        "factory": "tests.helpers.tiny:conv_network",
        "class_names": list(NAMES),
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "image_size": [24, 20],
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "teacher.json").write_text(json.dumps(content))
    save_file(network.state_dict(), folder / "model.safetensors")


@pytest.mark.parametrize("names", [NAMES, ("ant", "bee", "cat", "dog", "eel", "fox")], ids=["4", "6"])
def test_a_teacher_of_a_folder_with_teacher_json_is_built_by_its_factory(tmp_path, names):
    network = conv_teacher(len(names), seed=8)
    write_teacher_folder(tmp_path, network, class_names=list(names))
    teacher = Teacher.from_pretrained(tmp_path)
    assert teacher.class_names == list(names)
    assert (teacher.image_mean, teacher.image_std, teacher.image_size) == (
        (0.5, 0.4, 0.3),
        (0.2, 0.3, 0.4),
        (24, 20),
    )
    unit = random_batch()[0] / 255
    expected = logits_by_hand(network, pillow_resized(unit, 24, 20), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(teacher(torch.from_numpy(unit).float()).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "wrapped.pth"])
def test_a_factory_takes_weights_from_a_file(tmp_path, suffix):
    network = conv_teacher(seed=8)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"model": network.state_dict()} if "wrapped" in suffix else network.state_dict(), path)
    teacher = Teacher.from_factory("tests.helpers.tiny:conv_network", path, image_size=SIZE)
    pixels = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(teacher(pixels), Teacher(network)(pixels))
    assert not torch.equal(teacher(pixels), Teacher(conv_network())(pixels))


@pytest.mark.parametrize(
    ("factory", "weights", "message"),
    [
        ("tests.helpers.tiny:nothing", None, r"No network factory 'tests\.helpers\.tiny:nothing'"),
        ("no_such_package:network", None, "No network factory"),
        ("tests.helpers.tiny", None, "No network factory"),
        ("tests.helpers.tiny:no_network", None, "returned list"),
        ("tests.helpers.tiny:conv_network", "missing.pth", "No weights at"),
        ("tests.helpers.tiny:conv_network", "other.safetensors", "does not fit ConvTeacher"),
    ],
)
def test_a_factory_or_weights_that_cannot_be_used_are_named(tmp_path, factory, weights, message):
    save_file(conv_teacher(9).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        Teacher.from_factory(factory, weights and tmp_path / weights)


# ---- classes ----


def aligned(teacher_names, student_names, count=None):
    """Return the aligned logits of a teacher whose own logits are 0, 10, 20, …"""
    count = count if count is not None else len(teacher_names)
    logits = [[10.0 * index for index in range(count)]]
    names = None if teacher_names is None else dict(enumerate(teacher_names))
    teacher = Teacher(fixed_logits(logits), id2label=names)
    teacher.align(student_names and list(student_names), len(student_names or NAMES), (SIZE, SIZE))
    return teacher(torch.zeros(1, 3, SIZE, SIZE))[0].tolist()


def test_a_teacher_with_more_classes_is_sliced():
    assert aligned(["eel", "ant", "fox", "bee", "cat", "dog"], NAMES) == [10, 30, 40, 50]


def test_a_teacher_in_another_order_is_permuted():
    assert aligned(["dog", "cat", "ant", "bee"], NAMES) == [20, 30, 10, 0]


def test_the_same_classes_in_the_same_order_stay_as_they_are(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        assert aligned(NAMES, NAMES) == [0, 10, 20, 30]
        assert aligned([" ant", "bee ", "cat", "dog"], NAMES) == [0, 10, 20, 30]  # spaces around a name are ignored
    assert not caplog.records


@pytest.mark.parametrize(
    ("teacher_names", "student_names"),
    [(None, NAMES), (["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"], NAMES), (["dog", "cat", "bee", "ant"], None)],
    ids=["teacher-none", "teacher-LABEL_n", "student-none"],
)
def test_without_names_classes_are_aligned_by_order_with_a_warning_if_the_counts_are_equal(
    caplog, teacher_names, student_names
):
    names = class_names(None if teacher_names is None else dict(enumerate(teacher_names)))
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        assert aligned(names, student_names, count=4) == [0, 10, 20, 30]
    assert "same order" in caplog.text


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("nameless", ["teacher", "student"])
def test_without_names_different_counts_are_refused_with_both_lists(count, nameless):
    named = [f"class {index}" for index in range(count)]
    with pytest.raises(TeacherError, match=rf"{count} classes .*student 4 ") as caught:
        aligned(None if nameless == "teacher" else named, NAMES if nameless == "teacher" else None, count)
    assert "no names" in str(caught.value)
    assert ("'ant', 'bee', 'cat', 'dog'" if nameless == "teacher" else "'class 0', 'class 1'") in str(caught.value)


@pytest.mark.parametrize(
    "teacher_names",
    [["ant", "bee", "cat"], ["ant", "bee", "cat", "cow"], ["Ant", "bee", "cat", "dog"], ["eel", "fox", "gnu", "hen"]],
    ids=["subset", "one-other", "capital", "disjoint"],
)
def test_a_teacher_that_lacks_a_class_is_refused_with_both_lists(teacher_names):
    with pytest.raises(TeacherError) as caught:
        aligned(teacher_names, NAMES)
    message = str(caught.value)
    missing = next(name for name in NAMES if name not in teacher_names)
    assert f"does not know '{missing}'" in message
    for names in (NAMES, teacher_names):
        assert ", ".join(map(repr, names)) in message
    assert "hf-deit train-teacher" in message


def test_two_teacher_classes_of_one_name_are_refused_where_the_student_has_that_class():
    with pytest.raises(TeacherError, match="'bee' several times"):
        aligned(["ant", "bee", "cat", "dog", "bee"], NAMES)
    # ImageNet has two classes named "crane". They do not matter for a student without this class.
    assert aligned(["crane", "ant", "bee", "cat", "dog", "crane"], NAMES) == [10, 20, 30, 40]


def test_two_student_classes_of_one_name_are_refused():
    with pytest.raises(TeacherError, match="'bee' several times"):
        aligned(NAMES, ["ant", "bee", "bee", "cat"])


def test_equal_lists_are_aligned_by_order_even_if_a_name_occurs_twice():
    cranes = ["ant", "crane", "crane", "dog"]  # as in the usual class names of ImageNet
    assert aligned(cranes, cranes) == [0, 10, 20, 30]


def test_different_numbers_of_names_and_logits_are_refused():
    with pytest.raises(TeacherError, match="5 logits.*id2label has 4 class names"):
        aligned(NAMES, NAMES, count=5)


def test_the_trainer_aligns_by_the_students_id2label(tmp_path):
    order = ["dog", "eel", "cat", "ant", "bee"]
    network = conv_teacher(5)
    trainer = trainer_of(tmp_path, Teacher(network, id2label=dict(enumerate(order))))
    pixels, batch = random_batch()
    expected = logits_by_hand(network, pixels / 255, MEAN, STD)[:, [3, 4, 2, 0]]
    np.testing.assert_allclose(trainer.teacher(batch / 255).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_id2label_of_json_with_string_keys_is_in_index_order():
    many = {str(index): f"class {index}" for index in range(12)}
    assert class_names(many) == [f"class {index}" for index in range(12)]


# ---- teachers that fail ----


def test_a_teacher_that_fails_on_the_view_size_is_refused_before_training(tmp_path):
    with pytest.raises(TeacherError, match=r"SizedNet\) fails on a view of 16×16 .*Set image_size") as caught:
        trainer_of(tmp_path, SizedNet())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TeacherError, match="fails on a view of 40×40"):
        trainer_of(tmp_path, SizedNet(), train_dataset=training_data(8, view_size=(40, 40)))
    assert trainer_of(tmp_path, Teacher(SizedNet(), image_size=12)).teacher.image_size == (12, 12)


def test_logits_of_another_shape_are_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"shape \(1, 4, 1, 1\)"):
        trainer_of(tmp_path, lambda pixels: torch.zeros(len(pixels), 4, 1, 1))


# ---- fingerprint ----


def test_the_fingerprint_changes_with_weights_pixels_and_names_only():
    def fingerprint(network=None, **changes):
        return Teacher(network or conv_teacher(), **changes).fingerprint()

    one_weight, statistics = conv_teacher(), conv_teacher()
    with torch.no_grad():
        one_weight.classifier.weight[1, 7] += 1e-4
        statistics.norm.running_var[2] += 1e-4
    base = fingerprint()
    assert fingerprint() == base
    variants = [
        fingerprint(one_weight),
        fingerprint(statistics),
        fingerprint(image_mean=(0.5, 0.5, 0.5)),
        fingerprint(image_std=(0.5, 0.5, 0.5)),
        fingerprint(image_size=24),
        fingerprint(id2label=dict(enumerate(NAMES))),
        fingerprint(dtype=torch.bfloat16),
    ]
    assert len({base, *variants}) == 1 + len(variants)


def test_a_factory_without_mean_and_std_gets_those_of_imagenet_with_a_warning(caplog):
    Teacher.from_factory("tests.helpers.tiny:conv_network", image_std=(0.5, 0.5, 0.5))
    assert "no image_mean" in caplog.text and "no image_std" not in caplog.text


@pytest.mark.parametrize(("function", "warns"), [(torch.softmax, True), (torch.log_softmax, False)])
def test_a_teacher_that_returns_probabilities_is_named_in_a_warning(function, warns, caplog):
    network = conv_network()
    teacher = Teacher(lambda pixels: function(network(pixels), dim=-1), image_size=SIZE)
    teacher.try_on((SIZE, SIZE))
    assert ("probabilities" in caplog.text) == warns
