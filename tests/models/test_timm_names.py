"""Tests of the conversion of parameter names, compared with a naive model, and of inferred architectures."""

import pytest
import torch

from hf_deit.errors import UserError
from hf_deit.models.timm_names import (
    check_weights,
    describe_problems,
    from_timm_names,
    infer_architecture,
    own_names,
    timm_name,
    to_timm_names,
    with_class_position,
)
from tests.helpers.timm_weights import HEADS, naive_logits, timm_weights


def student_of(weights, tiny_student, **fields):
    """Build a student of this package from the shapes of weights, and load the weights."""
    own = with_class_position(own_names(weights), fields.pop("image_size", None))
    kind = "distilled" if "dist_token" in weights else "plain"
    shape = infer_architecture(own, num_attention_heads=HEADS, **fields)
    model = tiny_student(kind, **shape)
    model.load_state_dict(own, strict=True)
    return model


ORIGINS = {
    "plain": {},
    "distilled": {"distilled": True},
    "DeiT III, official": {"gamma": "official", "class_position": False},
    "DeiT III, timm": {"gamma": "timm", "class_position": False},
    "LayerScale with a class position": {"gamma": "timm"},
}
ORIGIN = pytest.mark.parametrize("how", ORIGINS.values(), ids=ORIGINS)


@ORIGIN
def test_converted_weights_give_the_logits_of_the_official_model(tiny_student, how):
    weights = timm_weights(**how)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = naive_logits(weights, pixels)
    with torch.no_grad():
        logits = student_of(weights, tiny_student).double()(pixels.double()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert expected.std() > 0.1


@ORIGIN
def test_converting_back_gives_the_same_names_and_bits(tiny_student, how):
    weights = timm_weights(**how)
    back = to_timm_names(student_of(weights, tiny_student), official=how.get("gamma") == "official")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_architecture_is_inferred_from_the_shapes():
    weights = own_names(timm_weights(distilled=True, layers=3))
    assert infer_architecture(weights, num_attention_heads=4) == {
        "hidden_size": 32,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 32,
        "qkv_bias": True,
        "layer_scale_init_value": None,
    }


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12)])
def test_published_widths_have_the_number_of_heads_in_the_paper(width, heads):
    # Only names and shapes matter, so these weights contain only the tensors that are read.
    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": torch.empty(width, 3, 16, 16, device="meta"),
        "vit.embeddings.position_embeddings": torch.empty(1, 577, width, device="meta"),
        "vit.layers.0.mlp.fc1.weight": torch.empty(4 * width, width, device="meta"),
    }
    fields = infer_architecture(weights)
    assert (fields["num_attention_heads"], fields["image_size"], fields["qkv_bias"]) == (heads, 384, False)


def test_heads_of_another_width_must_be_given():
    weights = own_names(timm_weights())
    with pytest.raises(UserError, match="hidden_size=32.*Give num_attention_heads"):
        infer_architecture(weights)
    with pytest.raises(UserError, match="num_attention_heads=5.*hidden_size=32"):
        infer_architecture(weights, num_attention_heads=5)


@pytest.mark.parametrize("class_position", [True, False])
def test_an_oblong_image_size_must_be_given(class_position):
    weights = own_names(timm_weights(rows=(2, 6), class_position=class_position))
    with pytest.raises(UserError, match="positions of 1[12] .*image_size"):
        infer_architecture(with_class_position(weights), num_attention_heads=2)
    sized = with_class_position(weights, (16, 48))
    assert infer_architecture(sized, (16, 48), 2)["image_size"] == (16, 48)
    with pytest.raises(UserError, match=r"image_size=\(16, 24\).*2×3.*12"):
        infer_architecture(sized, (16, 24), 2)


def test_weights_of_another_kind_are_refused():
    with pytest.raises(UserError, match="'cls_token'.*conv1.weight"):
        own_names({"conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="patch_embed.proj.weight"):
        infer_architecture(own_names({"cls_token": torch.zeros(1, 1, 4)}))
    with pytest.raises(UserError, match="twice.*layer_scale1.lambda1"):
        from_timm_names(timm_weights(gamma="timm") | timm_weights(gamma="official"))
    with pytest.raises(UserError, match="Linear .*ViTForImageClassification"):
        to_timm_names(torch.nn.Linear(2, 2))


def test_a_huge_layer_number_in_a_file_is_refused():
    weights = own_names(timm_weights() | {"blocks.999999999.norm1.bias": torch.zeros(32)})
    with pytest.raises(UserError, match="layer 999999999"):
        infer_architecture(weights, num_attention_heads=2)


def test_problems_are_listed_under_the_names_in_the_file(tiny_student):
    weights = timm_weights(distilled=True)
    del weights["blocks.1.attn.qkv.weight"], weights["head_dist.bias"]
    weights["blocks.0.attn.q_norm.weight"] = torch.ones(16)
    weights["norm.bias"] = torch.ones(31)
    problems = check_weights(from_timm_names(weights), tiny_student("distilled"), timm=True)
    assert problems == {
        "missing": ["blocks.1.attn.qkv.weight", "head_dist.bias"],
        "unknown": ["blocks.0.attn.q_norm.weight"],
        "misshapen": ["norm.bias (31,) instead of (32,)"],
    }
    text = describe_problems(problems | {"unknown": [f"name{n}" for n in range(20)]})
    assert "20 unknown: name0" in text and text.count("name") == 10 and "20 in all" in text


@pytest.mark.parametrize("kind", ["distilled", "plain"])
def test_every_parameter_of_a_student_has_a_name_in_timm(tiny_student, kind):
    model = tiny_student(kind, layer_scale_init_value=0.1)
    assert None not in {timm_name(name) for name in model.state_dict()}
    assert timm_name("vit.pooler.dense.weight") is None
