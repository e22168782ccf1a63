"""Official and timm names to ours and back, against a naive model on timm's names; architecture and problems."""

import math

import pytest
import torch

from hf_deit.convert_checkpoint import (
    ConversionError,
    check_weights,
    describe_problems,
    from_timm_names,
    infer_architecture,
    own_names,
    timm_name,
    to_timm_names,
    with_class_position,
)

HEADS = 2


def timm_weights(distilled=False, gamma=None, class_position=True, layers=2, seed=0, rows=(4, 4)):
    """Drawn weights of the official code's model, 32 wide with patches of 8: every name spelled out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    tokens = 2 if distilled else 1
    positions = rows[0] * rows[1] + (tokens if class_position else 0)
    weights = {"cls_token": draw(1, 1, 32), "pos_embed": draw(1, positions, 32)}
    weights |= {"patch_embed.proj.weight": draw(32, 3, 8, 8), "patch_embed.proj.bias": draw(32)}
    for n in range(layers):
        shapes = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (64, 32), "mlp.fc2": (32, 64)}
        for norm in ("norm1", "norm2"):
            weights |= {f"blocks.{n}.{norm}.weight": 1 + draw(32), f"blocks.{n}.{norm}.bias": draw(32)}
        for name, shape in shapes.items():
            weights |= {f"blocks.{n}.{name}.weight": draw(*shape), f"blocks.{n}.{name}.bias": draw(shape[0])}
        for number in (1, 2) if gamma else ():
            name = f"gamma_{number}" if gamma == "official" else f"ls{number}.gamma"
            weights[f"blocks.{n}.{name}"] = 0.5 + draw(32)
    weights |= {"norm.weight": 1 + draw(32), "norm.bias": draw(32)}
    weights |= {"head.weight": draw(3, 32), "head.bias": draw(3)}
    if distilled:
        weights |= {"dist_token": draw(1, 1, 32), "head_dist.weight": draw(3, 32), "head_dist.bias": draw(3)}
    return weights


def naive_logits(weights, pixels):
    """The official model, from the paper and its parameters' names; the mean of the heads."""
    w = {name: weight.double() for name, weight in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    batch = pixels.shape[0]
    blocks = pixels.double().unfold(2, 8, 8).unfold(3, 8, 8)  # (batch, 3, rows, columns, 8, 8)
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    x = torch.einsum("bcrsij,dcij->brsd", blocks, kernel).reshape(batch, -1, 32) + bias
    tokens = [w[name].expand(batch, 1, 32) for name in ("cls_token", "dist_token") if name in w]
    if w["pos_embed"].shape[1] == x.shape[1]:  # DeiT III: positions for patches only
        x = torch.cat([*tokens, x + w["pos_embed"]], dim=1)
    else:
        x = torch.cat([*tokens, x], dim=1) + w["pos_embed"]
    for n in range(len([name for name in w if name.endswith("norm1.bias")])):
        block = f"blocks.{n}."
        gammas = [w.get(f"{block}gamma_{i}", w.get(f"{block}ls{i}.gamma", torch.ones(32).double())) for i in (1, 2)]
        q, k, v = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv").split(32, dim=-1)
        q, k, v = (part.reshape(batch, -1, HEADS, 16).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        x = x + gammas[0] * linear(mixed.transpose(1, 2).reshape(batch, -1, 32), f"{block}attn.proj")
        h = linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1")
        x = x + gammas[1] * linear(h * (1 + torch.erf(h / math.sqrt(2))) / 2, f"{block}mlp.fc2")
    x = norm(x, "norm")
    heads = [linear(x[:, i], name) for i, name in enumerate(("head", "head_dist")) if f"{name}.bias" in w]
    return sum(heads) / len(heads)


def student_of(weights, tiny_student, **fields):
    """A student of this package with the weights, built from their shapes."""
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
def test_converted_weights_compute_what_the_official_model_does(tiny_student, how):
    weights = timm_weights(**how)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = naive_logits(weights, pixels)
    with torch.no_grad():
        logits = student_of(weights, tiny_student).double()(pixels.double()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert expected.std() > 0.1


@ORIGIN
def test_there_and_back_gives_the_same_bits_under_the_same_names(tiny_student, how):
    weights = timm_weights(**how)
    back = to_timm_names(student_of(weights, tiny_student), official=how.get("gamma") == "official")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_architecture_is_read_off_the_shapes():
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
def test_published_widths_have_the_papers_heads(width, heads):
    # Only the shapes count, so one layer of nothing but what is read.
    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": torch.empty(width, 3, 16, 16, device="meta"),
        "vit.embeddings.position_embeddings": torch.empty(1, 577, width, device="meta"),
        "vit.layers.0.mlp.fc1.weight": torch.empty(4 * width, width, device="meta"),
    }
    fields = infer_architecture(weights)
    assert (fields["num_attention_heads"], fields["image_size"], fields["qkv_bias"]) == (heads, 384, False)


def test_heads_of_another_width_must_be_given():
    weights = own_names(timm_weights())
    with pytest.raises(ConversionError, match="hidden_size=32.*Give num_attention_heads"):
        infer_architecture(weights)
    with pytest.raises(ConversionError, match="num_attention_heads=5 does not divide"):
        infer_architecture(weights, num_attention_heads=5)


@pytest.mark.parametrize("class_position", [True, False])
def test_an_oblong_image_size_must_be_given(class_position):
    weights = own_names(timm_weights(rows=(2, 6), class_position=class_position))
    with pytest.raises(ConversionError, match="no square"):
        infer_architecture(with_class_position(weights), num_attention_heads=2)
    sized = with_class_position(weights, (16, 48))
    assert infer_architecture(sized, (16, 48), 2)["image_size"] == (16, 48)
    with pytest.raises(ConversionError, match="2×3 patches.*positions of 12"):
        infer_architecture(sized, (16, 24), 2)


def test_weights_of_another_kind_are_refused():
    with pytest.raises(ConversionError, match="no 'cls_token'.*conv1.weight"):
        own_names({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ConversionError, match="there is no .*patch_embed.proj.weight"):
        infer_architecture(own_names({"cls_token": torch.zeros(1, 1, 4)}))
    with pytest.raises(ConversionError, match="twice"):
        from_timm_names(timm_weights(gamma="timm") | timm_weights(gamma="official"))
    with pytest.raises(ConversionError, match="Linear has no names in timm"):
        to_timm_names(torch.nn.Linear(2, 2))


def test_a_hostile_layer_number_builds_nothing():
    weights = own_names(timm_weights() | {"blocks.999999999.norm1.bias": torch.zeros(32)})
    with pytest.raises(ConversionError, match="layer 999999999"):
        infer_architecture(weights, num_attention_heads=2)


def test_problems_are_listed_under_the_names_of_the_file(tiny_student):
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
    told = describe_problems(problems | {"unknown": [f"name{n}" for n in range(20)]})
    assert "20 unknown: name0" in told and told.count("name") == 8 and "and 12 more" in told


@pytest.mark.parametrize("kind", ["distilled", "plain"])
def test_every_parameter_of_a_student_has_a_name_in_timm(tiny_student, kind):
    model = tiny_student(kind, layer_scale_init_value=0.1)
    assert None not in {timm_name(name) for name in model.state_dict()}
    assert timm_name("vit.pooler.dense.weight") is None
