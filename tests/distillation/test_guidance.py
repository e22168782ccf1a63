"""Reading of feature maps from networks of several families, and the records that guidance compares."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_deit.distillation.guidance import (
    Guidance,
    LayerReader,
    MapShape,
    TeacherLayers,
    as_map,
    default_layer,
    resize_grid,
)
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import TeacherError, UserError
from tests.helpers.tiny import conv_teacher

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 4}


def stock(name, size=(32, 48)):
    torch.manual_seed(0)
    patches = {"image_size": size, "patch_size": 8}
    if name == "vit":
        return ViTForImageClassification(ViTConfig(**SHAPE, **patches)).eval()
    if name == "deit":
        return DeiTForImageClassificationWithTeacher(DeiTConfig(**SHAPE, **patches)).eval()
    if name == "registers":
        patches["image_size"] = size[0]  # this configuration takes one number; the positions are interpolated
        config = Dinov2WithRegistersConfig(**SHAPE, **patches, num_register_tokens=3)
        return Dinov2WithRegistersForImageClassification(config).eval()
    if name == "swin":
        stages = {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, "num_labels": 4}
        return SwinForImageClassification(SwinConfig(image_size=size, patch_size=4, **stages)).eval()
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "num_labels": 4}
    return ResNetForImageClassification(ResNetConfig(**stages, layer_type="basic")).eval()


def pixels(size=(32, 48), count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def teacher_of(network, **fields):
    teacher = Teacher(network, image_mean=(0.5,) * 3, image_std=(0.5,) * 3, id2label=list("abcd"), **fields)
    if getattr(getattr(network, "config", None), "image_size", None) is not None:
        teacher.image_size = None  # the views have the size of the teacher
    return teacher


# ---- maps of layers ----


@pytest.mark.parametrize(("name", "prefix"), [("vit", 1), ("deit", 2), ("registers", 4)])
def test_the_tokens_before_the_patches_are_left_out_and_the_patches_form_the_grid_of_a_view_that_is_not_square(
    name, prefix
):
    model = stock(name)
    outputs = model(pixels(), output_hidden_states=True)
    tokens = outputs.hidden_states[-1]
    assert tokens.shape[1] == prefix + 4 * 6
    found = as_map(tokens, model, (32, 48))
    assert found.shape == (2, 32, 4, 6)
    assert torch.equal(found[1, :, 2, 5], tokens[1, prefix + 2 * 6 + 5])


def test_the_last_hidden_state_of_a_vit_is_read_before_the_final_norm():
    model = stock("vit")
    reader = LayerReader(model, ["-1"], owner="the student", field="layers")
    with reader.recording():
        outputs = model(pixels(), **reader.arguments)
    (found,) = reader.maps(outputs, pixels())
    last = model.vit.layernorm(found.flatten(2).transpose(1, 2))
    expected = model.vit(pixels()).last_hidden_state[:, 1:]
    torch.testing.assert_close(last, expected)
    assert not torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [(49, (224, 224), (7, 7)), (50, (224, 224), (7, 7)), (51, (224, 224), (7, 7)), (8, (32, 64), (2, 4)),
     (11, (64, 32), (4, 2)), (6, (32, 48), (2, 3))],
)  # fmt: skip
def test_without_a_patch_size_the_grid_has_the_proportions_of_the_image(tokens, size, grid):
    assert as_map(torch.zeros(1, tokens, 5), SimpleNamespace(), size).shape == (1, 5, *grid)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3), (2, 18, 5)], ids=str)
def test_an_output_without_a_grid_is_no_map(shape):
    assert as_map(torch.zeros(shape), SimpleNamespace(), (10, 100)) is None
    assert as_map(torch.zeros(shape).long(), SimpleNamespace(), (10, 10)) is None


def test_maps_with_the_channels_last_are_recognised_by_what_the_network_states():
    values = torch.rand(2, 4, 6, 5)
    assert torch.equal(as_map(values, SimpleNamespace(output_fmt="NHWC"), (1, 1)), values.permute(0, 3, 1, 2))
    assert as_map((None, values), SimpleNamespace(), (1, 1)) is values
    assert as_map({"pooled": None, "last_hidden_state": values}, SimpleNamespace(), (1, 1)) is values


@pytest.mark.parametrize(
    ("name", "like", "layer", "shape"),
    [
        ("vit", (4, 6), "-1", MapShape(32, (4, 6))),
        ("deit", (1, 1), "-1", MapShape(32, (4, 6))),
        ("vit", (16, 24), "-1", MapShape(32, (4, 6))),  # no layer is as fine: the last one
        ("resnet", (2, 3), "-1", MapShape(24, (2, 3))),
        ("resnet", (4, 6), "-2", MapShape(16, (4, 6))),
        ("resnet", (5, 8), "-2", MapShape(16, (4, 6))),  # about as fine
        ("resnet", (8, 12), "-3", MapShape(8, (8, 12))),
        ("swin", (4, 6), "-1", MapShape(16, (4, 6))),
        ("swin", (8, 12), "-3", MapShape(8, (8, 12))),
    ],
)
def test_the_default_layer_is_the_last_one_that_is_about_as_fine_as_the_student(name, like, layer, shape):
    if name == "swin":
        like, layer, shape = (like, layer, shape) if like == (4, 6) else (like, None, shape)
    found = teacher_of(stock(name)).find_layers(None, [like], (32, 48))
    assert found.shapes == (shape,)
    assert layer is None or found.layers == (layer,)


def test_the_default_layer_of_another_network_is_an_outer_block_and_never_the_inside_of_one():
    class Block(nn.Module):
        def __init__(self, channels, stride):
            super().__init__()
            self.wide = nn.Conv2d(channels, 64, 1)
            self.narrow = nn.Conv2d(64, 2 * channels, 3, stride=stride, padding=1)

        def forward(self, images):
            return self.narrow(self.wide(images))

    network = nn.Sequential(
        nn.Sequential(Block(3, 2), Block(6, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    )
    # At 16 × 16, the last map of about 8 × 8 is that of the convolution "0.1.wide", inside the second block.
    assert default_layer(network, network, pixels((16, 16)), (8, 8)) == "0.0"
    assert default_layer(network, network, pixels((16, 16)), (4, 4)) == "0"
    assert default_layer(network, network, pixels((16, 16)), None) == "0"


@pytest.mark.parametrize(("layer", "shape"), [("-2", (2, 8, 8, 8)), ("0", (2, 4, 16, 16)), ("1", (2, 8, 8, 8))])
def test_an_index_of_a_timm_network_counts_its_feature_info(layer, shape):
    network = nn.Sequential()
    network.stem, network.body, network.tail = (nn.Conv2d(*args) for args in ((3, 4, 1), (4, 8, 2, 2), (8, 9, 2, 2)))
    network.feature_info = [{"module": name, "num_chs": 0} for name in ("stem", "body", "tail")]
    reader = LayerReader(network, [layer], owner="the teacher", field="layers")
    with reader.recording():
        outputs = network(pixels((16, 16)))
    assert reader.maps(outputs, pixels((16, 16)))[0].shape == shape
    assert reader.indexed(outputs) == 3
    with pytest.raises(UserError, match="3 layers"):
        LayerReader(network, ["3"], owner="the teacher", field="layers")


def test_logits_and_maps_come_from_one_forward_pass_and_leave_no_hooks_behind():
    network = conv_teacher()
    calls = []
    network.register_forward_pre_hook(lambda *unused: calls.append(None))
    teacher = teacher_of(network)
    logits, (found,) = teacher.logits_and_maps(pixels((16, 16)), ["norm"])
    assert len(calls) == 1
    assert torch.equal(logits, teacher(pixels((16, 16))))
    normalized = (pixels((16, 16)) - 0.5) / 0.5
    torch.testing.assert_close(found, network.norm(network.conv(normalized)))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (["nothing.here"], "nothing.here"),
        (["classifier"], r"\(1, 4\)"),
        (["-1"], "index"),
        ([""], "''"),
        (["conv", "norm.x"], "norm.x"),
    ],
    ids=["unknown", "logits", "index", "empty", "second"],
)
def test_layers_that_cannot_be_read_are_refused_by_name(layers, named):
    with pytest.raises(UserError, match=named) as caught:
        teacher_of(conv_teacher()).find_layers(layers, [(2, 2)] * len(layers), (16, 16))
    assert "guidance_teacher_layers" in str(caught.value)


@pytest.mark.parametrize("index", ["3", "-4", "99"])
def test_an_index_outside_the_hidden_states_is_refused_with_their_number(index):
    with pytest.raises(UserError, match="3 hidden states"):
        teacher_of(stock("vit")).find_layers([index], [(2, 2)], (32, 48))


def test_an_index_from_the_start_is_kept_as_one_from_the_end():
    teacher = teacher_of(stock("vit"))
    found = teacher.find_layers(["2", "1", "vit.layers.0"], [(4, 6)] * 3, (32, 48))
    assert found.layers == ("-1", "-2", "vit.layers.0")
    assert found.names(["1", "-1", "vit.layers.0"]) == ["-2", "-1", "vit.layers.0"]
    _, (last, middle, named) = teacher.logits_and_maps(pixels(), found.layers)
    assert torch.equal(middle, named)
    assert not torch.equal(last, middle)


def test_a_function_guides_only_with_feature_maps_of_its_own():
    def logits(images):
        return F.pad(images.mean(dim=(2, 3)), (0, 1))

    with pytest.raises(TeacherError, match="feature_maps"):
        teacher_of(logits).find_layers(None, [(2, 2)], (16, 16))

    def colours(images):
        return F.avg_pool2d(images, 4)

    teacher = teacher_of(logits, feature_maps=colours)
    found = teacher.find_layers(None, [(2, 2)], (16, 16))
    assert found.shapes == (MapShape(3, (4, 4)),)
    _, (maps,) = teacher.logits_and_maps(pixels((16, 16)), found.layers)
    torch.testing.assert_close(maps, F.avg_pool2d(pixels((16, 16)) * 2 - 1, 4))
    with pytest.raises(TeacherError, match="feature_maps"):
        teacher_of(logits, feature_maps=["conv"])
    with pytest.raises(TeacherError, match=r"2 layer.*feature_maps.*student 1"):
        teacher_of(logits, feature_maps=[colours, colours]).find_layers(None, [(2, 2)], (16, 16))


# ---- grids ----


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        ((4, 6), (4, 6), lambda maps: maps),
        ((4, 6), (8, 12), lambda maps: F.interpolate(maps, (8, 12), mode="bilinear", align_corners=False)),
        ((3, 5), (7, 5), lambda maps: F.interpolate(maps, (7, 5), mode="bilinear", align_corners=False)),
        ((8, 12), (4, 6), lambda maps: F.interpolate(maps, (4, 6), mode="area")),
        ((7, 7), (3, 2), lambda maps: F.interpolate(maps, (3, 2), mode="area")),
        ((8, 3), (4, 6), lambda maps: F.interpolate(F.interpolate(maps, (4, 3), mode="area"), (4, 6), mode="bilinear")),
    ],
    ids=["same", "finer", "finer in height", "coarser", "odd", "both"],
)
def test_grids_are_resized_as_interpolate_does(own, wanted, expected):
    maps = torch.rand(2, 3, *own)
    torch.testing.assert_close(resize_grid(maps, wanted), expected(maps))


# ---- records ----


def guidance_of(kind, student=(2, 2), channels=8, teacher=(2, 2), width=5):
    layers = TeacherLayers(("-1",), (MapShape(width, teacher),), 3)
    return Guidance(kind, (MapShape(channels, student),), layers)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "width", "array", "shape"),
    [
        ("features", (2, 3), (2, 3), 5, "features_0", (2, 3, 5)),
        ("features", (2, 3), (4, 6), 5, "features_0", (2, 3, 5)),  # the coarser grid is stored
        ("features", (4, 6), (2, 3), 5, "features_0", (2, 3, 5)),
        ("features", (4, 2), (2, 3), 5, "features_0", (2, 2, 5)),
        ("similarity", (2, 2), (2, 2), 5, "similarity_0", (4, 4)),
        ("similarity", (2, 3), (2, 3), 5, "features_0", (2, 3, 5)),  # smaller than 6 × 6 similarities
        ("similarity", (4, 4), (2, 2), 99, "features_0", (2, 2, 99)),  # similarities cannot be resized
        ("similarity", (2, 2), (7, 7), 5, "similarity_0", (4, 4)),
    ],
)
def test_the_smallest_record_that_serves_the_comparison_is_stored(kind, student, teacher, width, array, shape):
    guidance = guidance_of(kind, student=student, teacher=teacher, width=width)
    (stored,) = guidance.arrays
    assert (stored.name, stored.shape, stored.dtype) == (array, shape, "float16")
    records = guidance.records([torch.randn(3, width, *teacher)])
    assert records[array].shape == (3, *shape) and records[array].dtype == torch.float16
    projections = [nn.Linear(8, width)] if guidance.projection_shapes else []
    assert guidance.projection_shapes in ((), ((8, width),))
    outputs = {f"teacher_{name}": values for name, values in records.items()}
    losses = guidance.loss([torch.randn(3, 8, *student)], outputs, projections)
    assert losses.shape == (3,) and losses.dtype == torch.float32 and torch.isfinite(losses).all()


def test_the_loss_of_several_layers_is_the_mean_over_the_pairs():
    layers = TeacherLayers(("-1", "-2"), (MapShape(5, (2, 2)), MapShape(6, (4, 4))))
    pair = Guidance("features", (MapShape(8, (2, 2)), MapShape(3, (2, 2))), layers)
    maps = [torch.randn(3, 5, 2, 2), torch.randn(3, 6, 4, 4)]
    student, projections = [torch.randn(3, 8, 2, 2), torch.randn(3, 3, 2, 2)], [nn.Linear(8, 5), nn.Linear(3, 6)]
    found = pair.loss(student, {f"teacher_{name}": value for name, value in pair.records(maps).items()}, projections)
    alone = []
    for index in (0, 1):
        own = Guidance("features", (pair.student[index],), TeacherLayers(("x",), (layers.shapes[index],)))
        outputs = {f"teacher_{name}": value for name, value in own.records([maps[index]]).items()}
        alone.append(own.loss([student[index]], outputs, [projections[index]]))
    torch.testing.assert_close(found, (alone[0] + alone[1]) / 2)


def test_a_description_gives_back_the_layers():
    guidance = guidance_of("similarity")
    assert TeacherLayers.from_description(guidance.describe()) == guidance.teacher
    assert np.prod(guidance.arrays[0].shape) == 16
