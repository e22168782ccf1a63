"""Tests of the networks: compared with their formulas in float64, stock transformers, and recorded logits."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from hf_deit import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTForImageClassificationWithTeacherOutput,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
)
from hf_deit.models.modeling_deit import DeiTDropPath, DeiTLayerScale
from hf_deit.models.timm_names import from_timm_names

KINDS = pytest.mark.parametrize("kind", ["distilled", "plain"])
STOCK = {
    "distilled": transformers.DeiTForImageClassificationWithTeacher,
    "plain": transformers.ViTForImageClassification,
}
TOKENS = {"distilled": 2, "plain": 1}

INDICES = torch.tensor([2, 0])
SOFT = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]])
MULTI_HOT = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
NUMBERS = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -1.0]])


def images(*size, batch=2, channels=3, seed=1):
    height, width = size or (32, 32)
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def stock_of(kind, model):
    """Return the stock model with the weights of a model, in evaluation mode."""
    config_class = {"distilled": transformers.DeiTConfig, "plain": transformers.ViTConfig}[kind]
    stock = STOCK[kind](config_class.from_dict(model.config.to_dict()))
    stock.load_state_dict(model.state_dict())
    return stock.eval()


def heads_of(kind, model):
    return [model.cls_classifier, model.distillation_classifier] if kind == "distilled" else [model.classifier]


def assert_near(left, right, atol=1e-5):
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------- the formulas, in float64


def naive_hidden(model, pixel_values):
    """Compute the last hidden state by arXiv:2010.11929 eq. 1-4, arXiv:2012.12877 section 4, arXiv:2103.17239 eq. 3."""
    weights = {name: tensor.double() for name, tensor in model.base_model.state_dict().items()}
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size

    def linear(tokens, name):
        return tokens @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(tokens, name):
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(tokens, name):
        batch, count, _ = tokens.shape
        mixed = torch.zeros(batch, count, width, dtype=torch.double)
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            query, key, value = (linear(tokens, f"{name}.{part}_proj")[..., own] for part in "qkv")
            scores = (query @ key.transpose(1, 2) / math.sqrt(width / heads)).exp()
            mixed[..., own] = scores / scores.sum(-1, keepdim=True) @ value
        return linear(mixed, f"{name}.o_proj")

    def mlp(tokens, name):
        inner = linear(tokens, f"{name}.fc1")
        return linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), f"{name}.fc2")

    height, width_of_patch = weights["embeddings.patch_embeddings.projection.weight"].shape[2:]
    kernel = weights["embeddings.patch_embeddings.projection.weight"].flatten(1)
    patches = [
        pixel_values[:, :, top : top + height, left : left + width_of_patch].double().flatten(1) @ kernel.T
        for top in range(0, pixel_values.shape[2], height)
        for left in range(0, pixel_values.shape[3], width_of_patch)
    ]
    tokens = torch.stack(patches, dim=1) + weights["embeddings.patch_embeddings.projection.bias"]
    for token in ("distillation_token", "cls_token"):
        if f"embeddings.{token}" in weights:
            tokens = torch.cat([weights[f"embeddings.{token}"].expand(len(tokens), 1, width), tokens], dim=1)
    tokens = tokens + weights["embeddings.position_embeddings"]
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}."
        gamma1, gamma2 = (weights.get(f"{stem}layer_scale{part}.lambda1", 1.0) for part in (1, 2))
        tokens = tokens + gamma1 * attention(norm(tokens, f"{stem}layernorm_before"), f"{stem}attention")
        tokens = tokens + gamma2 * mlp(norm(tokens, f"{stem}layernorm_after"), f"{stem}mlp")
    return norm(tokens, "layernorm")


@KINDS
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layer_scale_init_value": 0.5},
        {"qkv_bias": False},
        {"num_attention_heads": 4, "num_hidden_layers": 3, "num_channels": 1},
        {"image_size": (32, 48), "patch_size": (8, 16), "num_channels": 5},
    ],
    ids=str,
)
def test_the_forward_pass_equals_the_formulas(tiny_student, kind, fields):
    model = tiny_student(kind, **fields).double()
    height, width = fields.get("image_size", (32, 32))
    pixel_values = images(height, width, channels=fields.get("num_channels", 3))
    with torch.no_grad():
        expected = naive_hidden(model, pixel_values)
        assert_near(model.base_model(pixel_values).last_hidden_state, expected, atol=1e-10)
        outputs = model(pixel_values)
        by_head = [head(expected[:, token]) for token, head in enumerate(heads_of(kind, model))]
    assert_near(outputs.logits, sum(by_head) / len(by_head), atol=1e-10)
    if kind == "distilled":
        assert_near(outputs.cls_logits, by_head[0], atol=1e-10)
        assert_near(outputs.distillation_logits, by_head[1], atol=1e-10)
    assert outputs.logits.std() > 0.1  # constant logits would prove nothing


def test_real_imagenet_weights_give_the_recorded_logits(shared_data):
    folder = shared_data / "vit_tiny_imagenet"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    weights = torch.load(folder / "vit_tiny_patch16_224.pth", weights_only=True)["model"]
    golden = np.load(folder / "golden.npz")
    model = ViTForImageClassification(ViTConfig.from_preset("tiny", num_labels=1000)).eval()
    model.load_state_dict(from_timm_names(weights), strict=True)
    with torch.no_grad():
        pixel_values = torch.from_numpy(golden["pixel_values"])
        logits = model(pixel_values).logits
        cls_hidden = model.vit(pixel_values).last_hidden_state[:, 0]
    np.testing.assert_allclose(logits.numpy(), golden["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(cls_hidden.numpy(), golden["cls_hidden"], rtol=0, atol=1e-4)
    assert logits.argmax(-1).tolist() == [630, 610]  # a slip-on shoe and a T-shirt


# --------------------------------------------------------------------------------------------- shapes and named outputs


def test_the_distilled_student_returns_the_logits_of_both_heads_and_their_mean(tiny_student):
    outputs = tiny_student("distilled")(images(batch=5))
    assert isinstance(outputs, DeiTForImageClassificationWithTeacherOutput)
    assert list(outputs) == ["logits", "cls_logits", "distillation_logits"]
    assert {tuple(outputs[name].shape) for name in outputs} == {(5, 3)}
    assert_near(outputs.logits, (outputs.cls_logits + outputs.distillation_logits) / 2, atol=1e-6)
    assert (outputs.cls_logits - outputs.distillation_logits).abs().max() > 0.1


def test_the_plain_student_returns_only_logits(tiny_student):
    outputs = tiny_student("plain")(images(batch=5))
    assert list(outputs) == ["logits"]
    assert outputs.logits.shape == (5, 3)


@KINDS
def test_with_labels_the_loss_is_the_first_output(tiny_student, kind):
    model = tiny_student(kind)
    assert next(iter(model(images(), labels=INDICES))) == "loss"
    named = model(images(), labels=INDICES)
    as_tuple = model(images(), labels=INDICES, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(named) == (4 if kind == "distilled" else 2)
    for given, value in zip(as_tuple, named.values(), strict=True):
        assert torch.equal(given, value)


@KINDS
def test_the_backbone_returns_all_tokens_and_pools_on_request(tiny_config, tiny_student, kind):
    backbone = tiny_student(kind).base_model
    outputs = backbone(images())
    assert outputs.last_hidden_state.shape == (2, TOKENS[kind] + 16, 32)
    assert outputs.pooler_output is None
    config = tiny_config({"distilled": DeiTConfig, "plain": ViTConfig}[kind])
    pooling = type(backbone)(config, add_pooling_layer=True).eval()
    outputs = pooling(images())
    expected = torch.tanh(pooling.pooler.dense(outputs.last_hidden_state[:, 0]))
    assert_near(outputs.pooler_output, expected, atol=1e-6)


def test_the_public_backbone_is_that_of_the_distilled_student(tiny_student):
    assert isinstance(tiny_student("distilled").deit, DeiTModel)


@KINDS
def test_with_num_labels_0_the_model_returns_the_hidden_states_of_its_tokens(tiny_student, kind):
    model = tiny_student(kind, num_labels=0)
    assert all(isinstance(head, nn.Identity) for head in heads_of(kind, model))
    with torch.no_grad():
        tokens = model.base_model(images()).last_hidden_state
        logits = model(images()).logits
    assert_near(logits, tokens[:, : TOKENS[kind]].mean(dim=1), atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- losses


def naive_loss(logits, labels, problem):
    """Compute the mean loss over the batch by the formulas, one number at a time."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        if problem == "indices":
            total += log_sum - row[label]
        elif problem == "soft":
            total += sum(share * (log_sum - value) for share, value in zip(label, row, strict=True))
        elif problem == "multi_label_classification":
            total += sum(
                math.log(1 + math.exp(-value)) if present else math.log(1 + math.exp(value))
                for present, value in zip(label, row, strict=True)
            ) / len(row)
        elif problem == "regression":
            label = label if isinstance(label, list) else [label]
            total += sum((value - number) ** 2 for number, value in zip(label, row, strict=True)) / len(row)
    return total / len(labels)


LABELS = {
    "indices": (INDICES, None),
    "indices, explicit": (INDICES, "single_label_classification"),
    "soft": (SOFT, None),
    "soft, explicit": (SOFT, "single_label_classification"),
    "multi-label": (MULTI_HOT, "multi_label_classification"),
    "multi-label, integers": (MULTI_HOT.long(), "multi_label_classification"),
    "regression": (NUMBERS, "regression"),
}
EVERY_LABEL = pytest.mark.parametrize(("labels", "problem_type"), list(LABELS.values()), ids=list(LABELS))


@KINDS
@EVERY_LABEL
def test_the_loss_is_the_mean_of_the_heads_losses(tiny_student, kind, labels, problem_type):
    model = tiny_student(kind, problem_type=problem_type)
    with torch.no_grad():
        outputs = model(images(), labels=labels)
    problem = problem_type
    if problem_type in (None, "single_label_classification"):
        problem = "soft" if labels.is_floating_point() else "indices"
    heads = [outputs.cls_logits, outputs.distillation_logits] if kind == "distilled" else [outputs.logits]
    by_head = [naive_loss(logits, labels, problem) for logits in heads]
    assert outputs.loss.item() == pytest.approx(sum(by_head) / len(by_head), rel=1e-5)
    if kind == "distilled":  # the mean of the losses is not the loss of the mean
        assert abs(outputs.loss.item() - naive_loss(outputs.logits, labels, problem)) > 1e-3


@KINDS
@pytest.mark.parametrize("problem_type", [None, "regression"])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_single_output_is_a_regression(tiny_student, kind, problem_type, shape):
    model = tiny_student(kind, num_labels=1, problem_type=problem_type)
    labels = torch.tensor([0.7, -1.3]).reshape(shape)
    with torch.no_grad():
        outputs = model(images(), labels=labels)
    heads = [outputs.cls_logits, outputs.distillation_logits] if kind == "distilled" else [outputs.logits]
    expected = sum(naive_loss(logits, labels, "regression") for logits in heads) / len(heads)
    assert outputs.logits.shape == (2, 1)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


@KINDS
@EVERY_LABEL
def test_labels_never_change_the_configuration(tiny_student, tmp_path, kind, labels, problem_type):
    model = tiny_student(kind, problem_type=problem_type)
    model.save_pretrained(tmp_path / "before")
    before = model.config.to_dict()
    model(images(), labels=labels).loss.backward()
    assert model.config.to_dict() == before
    assert model.config.problem_type == problem_type
    model.save_pretrained(tmp_path / "after")
    first, second = (json.loads((tmp_path / when / "config.json").read_text()) for when in ("before", "after"))
    assert first == second


@KINDS
def test_the_same_labels_give_another_loss_for_each_problem_type(tiny_student, kind):
    losses = {
        problem_type: tiny_student(kind, problem_type=problem_type)(images(), labels=MULTI_HOT).loss.item()
        for problem_type in (None, "multi_label_classification", "regression")
    }
    assert len({round(loss, 3) for loss in losses.values()}) == 3


WRONG_LABELS = {
    "another batch": (torch.tensor([0, 1, 2]), None, ["(3,)", "(2, 3)"]),
    "floats for indices": (torch.tensor([0.0, 1.0]), None, ["(2,)", "torch.float32", "integers"]),
    "a column of indices": (torch.tensor([[0], [1]]), None, ["(2, 1)", "(batch,)"]),
    "integers for soft labels": (MULTI_HOT.long(), None, ["torch.int64", "floats", "multi_label_classification"]),
    "soft labels of other classes": (torch.rand(2, 4), None, ["(2, 4)", "(batch, num_labels)"]),
    "indices for multi-label": (
        INDICES,
        "multi_label_classification",
        ["multi_label_classification", "(2, 3)", "(2,)"],
    ),
    "one number for three": (torch.rand(2), "regression", ["regression", "(2, 3)", "(2,)"]),
    "transposed": (torch.rand(3, 2), "regression", ["regression", "(2, 3)", "(3, 2)"]),
}


@KINDS
@pytest.mark.parametrize(("labels", "problem_type", "parts"), list(WRONG_LABELS.values()), ids=list(WRONG_LABELS))
def test_labels_of_an_invalid_shape_raise_an_error_with_both_shapes(tiny_student, kind, labels, problem_type, parts):
    model = tiny_student(kind, problem_type=problem_type)
    with pytest.raises(ValueError) as error:
        model(images(), labels=labels)
    for words in parts:
        assert words in str(error.value)


# ------------------------------------------------------------------------------------------- attention and hidden
# states


@KINDS
def test_hidden_states_and_attentions_equal_those_of_stock_transformers(tiny_student, kind):
    model = tiny_student(kind)
    stock = stock_of(kind, model)
    for each in (model, stock):
        each.set_attn_implementation("eager")
    with torch.no_grad():
        ours = model(images(), output_hidden_states=True, output_attentions=True)
        theirs = stock(images(), output_hidden_states=True, output_attentions=True)
    count = TOKENS[kind] + 16
    assert [state.shape for state in ours.hidden_states] == [(2, count, 32)] * 3
    assert [weights.shape for weights in ours.attentions] == [(2, 2, count, count)] * 2
    for mine, stocks in zip(
        ours.hidden_states + ours.attentions, theirs.hidden_states + theirs.attentions, strict=True
    ):
        assert_near(mine, stocks)
    for weights in ours.attentions:
        assert_near(weights.sum(-1), torch.ones(2, 2, count))


@KINDS
def test_hidden_states_start_with_the_embeddings_and_end_before_the_norm(tiny_student, kind):
    model = tiny_student(kind)
    with torch.no_grad():
        states = model(images(), output_hidden_states=True).hidden_states
        assert_near(states[0], model.base_model.embeddings(images()))
        assert_near(model.base_model.layernorm(states[-1]), model.base_model(images()).last_hidden_state)


@KINDS
def test_hidden_states_are_returned_only_on_request_of_the_caller_or_the_configuration(tiny_student, kind):
    model = tiny_student(kind)
    assert model(images()).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(images()).hidden_states) == 3


@KINDS
def test_eager_and_sdpa_attention_agree(tiny_student, kind):
    model = tiny_student(kind)
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits[implementation] = model(images()).logits
    assert_near(logits["eager"], logits["sdpa"])


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="flex attention on CPU needs a C++ compiler"
)
def test_flex_attention_agrees_without_gradients(tiny_student):
    model = tiny_student("distilled")
    with torch.no_grad():
        expected = model(images()).logits
        model.set_attn_implementation("flex_attention")
        assert_near(model(images()).logits, expected)


@KINDS
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_only_in_training(tiny_student, kind, implementation, field):
    model, plain = tiny_student(kind, **{field: 0.5}), tiny_student(kind)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = plain(images()).logits
        assert_near(model(images()).logits, expected)
        assert (model.train()(images()).logits - expected).abs().max() > 0.01


# ----------------------------------------------------------------------------------------------------------- image
# sizes


@KINDS
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 48), (24, 24), (40, 64), (44, 52)])
def test_interpolated_positions_equal_those_of_stock_transformers(tiny_student, kind, size):
    model = tiny_student(kind)
    stock = stock_of(kind, model)
    with torch.no_grad():
        ours = model(images(*size), interpolate_pos_encoding=True).logits
        assert_near(ours, stock(images(*size), interpolate_pos_encoding=True).logits)


@KINDS
def test_positions_of_a_wide_model_are_interpolated_along_rows_and_columns(tiny_student, kind):
    model = tiny_student(kind, image_size=(32, 48))
    embeddings, tokens = model.base_model.embeddings, TOKENS[kind]
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    with torch.no_grad():
        embeddings.position_embeddings[0, tokens:, 0] = rows.flatten()
        embeddings.position_embeddings[0, tokens:, 1] = columns.flatten()
        doubled = embeddings.interpolate_pos_encoding(64, 96)
        assert doubled.shape == (1, tokens + 8 * 12, 32)
        assert torch.equal(doubled[:, :tokens], embeddings.position_embeddings[:, :tokens])
        # By the pixel centres, the new row r is the old row (r + 0.5) / 2 - 0.5. Away from the edges, bicubic
        # interpolation of a linear function is nearly linear.
        inner = doubled[0, tokens:, :2].reshape(8, 12, 2)[2:-2, 2:-2]
        assert_near(inner[..., 0], ((torch.arange(2.0, 6) + 0.5) / 2 - 0.5)[:, None].expand(4, 8), atol=0.1)
        assert_near(inner[..., 1], ((torch.arange(2.0, 10) + 0.5) / 2 - 0.5)[None].expand(4, 8), atol=0.1)
        # The forward pass uses the interpolated positions: a model with these positions gives the same logits.
        large = tiny_student(kind, image_size=(64, 96))
        state_dict = {**model.state_dict(), f"{model.base_model_prefix}.embeddings.position_embeddings": doubled}
        large.load_state_dict(state_dict)
        pixel_values = images(64, 96)
        assert_near(model(pixel_values, interpolate_pos_encoding=True).logits, large(pixel_values).logits)


@KINDS
@pytest.mark.parametrize(
    "fields", [{"image_size": (32, 48)}, {"image_size": (48, 32), "patch_size": (16, 8)}, {"num_channels": 1}], ids=str
)
def test_other_image_shapes_give_the_logits_of_stock_transformers(tiny_student, kind, fields):
    model = tiny_student(kind, **fields)
    pixel_values = images(*fields.get("image_size", (32, 32)), channels=fields.get("num_channels", 3))
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert_near(logits, stock_of(kind, model)(pixel_values).logits)
        assert_near(model(pixel_values, interpolate_pos_encoding=True).logits, logits)


@KINDS
@pytest.mark.parametrize("size", [(40, 32), (32, 40), (64, 64), (16, 16)])
def test_an_image_of_another_size_raises_an_error_with_both_sizes(tiny_student, kind, size):
    with pytest.raises(ValueError) as error:
        tiny_student(kind)(images(*size))
    for words in (f"{size[0]}×{size[1]}", "32×32", "interpolate_pos_encoding=True"):
        assert words in str(error.value)


@KINDS
def test_an_image_with_height_and_width_exchanged_raises_an_error(tiny_student, kind):
    with pytest.raises(ValueError, match="48×32 pixels.*32×48"):
        tiny_student(kind, image_size=(32, 48))(images(48, 32))


@KINDS
@pytest.mark.parametrize("interpolate", [False, True])
def test_another_number_of_channels_raises_an_error_with_both_numbers(tiny_student, kind, interpolate):
    with pytest.raises(ValueError) as error:
        tiny_student(kind)(images(channels=1), interpolate_pos_encoding=interpolate)
    for words in ("1 channels", "(2, 1, 32, 32)", "takes 3", "num_channels=1"):
        assert words in str(error.value)


# -------------------------------------------------------------------------------------------- drop path and LayerScale


@KINDS
@pytest.mark.parametrize(("layers", "expected"), [(5, [0.0, 0.1, 0.2, 0.3, 0.4]), (2, [0.0, 0.4]), (1, [0.0])])
def test_the_drop_path_grows_linearly_over_the_depth(tiny_student, kind, layers, expected):
    model = tiny_student(kind, num_hidden_layers=layers, drop_path_rate=0.4)
    rates = [layer.drop_path.drop_prob for layer in model.base_model.layers]
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("drop_prob", [0.1, 0.5, 0.8])
def test_drop_path_drops_the_branch_of_entire_images_and_scales_that_of_the_others(drop_prob):
    torch.manual_seed(0)
    batch = 4000
    branch = torch.rand(batch, 3, 5) + 1.0
    ratio = DeiTDropPath(drop_prob).train()(branch) / branch
    first = ratio[:, :1, :1]
    assert_near(ratio, first.expand_as(ratio))  # the same value for all tokens and channels of an image
    kept = first.flatten() != 0
    assert_near(first.flatten()[kept], torch.full((int(kept.sum()),), 1 / (1 - drop_prob)))
    four_sigma = 4 * math.sqrt(drop_prob * (1 - drop_prob) / batch)
    assert abs(kept.float().mean().item() - (1 - drop_prob)) < four_sigma


def test_drop_path_is_off_in_evaluation_and_at_rate_zero():
    branch = images()
    assert torch.equal(DeiTDropPath(0.9).eval()(branch), branch)
    state = torch.get_rng_state()
    assert torch.equal(DeiTDropPath(0.0).train()(branch), branch)
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
def test_a_layer_whose_branches_are_dropped_is_skipped(tiny_student, kind):
    model = tiny_student(kind, drop_path_rate=0.5).train()
    model.base_model.layers[1].drop_path.drop_prob = 1 - 1e-12
    states = model(images(), output_hidden_states=True).hidden_states
    assert torch.equal(states[2], states[1])
    assert not torch.equal(states[1], states[0])  # the first layer is never dropped
    states = model.eval()(images(), output_hidden_states=True).hidden_states
    assert not torch.equal(states[2], states[1])


def test_each_branch_of_each_layer_is_dropped_independently(tiny_student):
    torch.manual_seed(0)
    model = tiny_student("distilled", num_hidden_layers=3, drop_path_rate=0.6).train()
    kept = []
    for layer in model.deit.layers[1:]:
        layer.drop_path.register_forward_hook(lambda *call: kept.append(call[2].flatten(1).any(dim=1)))
    model(images(batch=64))
    assert len(kept) == 4  # two layers with two branches each
    assert len({tuple(images_kept.tolist()) for images_kept in kept}) == 4


@KINDS
def test_drop_path_changes_nothing_in_evaluation(tiny_student, kind):
    with torch.no_grad():
        plain, dropping = tiny_student(kind), tiny_student(kind, drop_path_rate=0.9)
        assert torch.equal(plain(images()).logits, dropping(images()).logits)
        torch.manual_seed(0)
        assert not torch.equal(plain.train()(images(batch=8)).logits, dropping.train()(images(batch=8)).logits)


@KINDS
def test_layer_scale_with_gamma_1_gives_the_logits_of_the_model_without_it(tiny_student, kind):
    plain, scaled = tiny_student(kind), tiny_student(kind, seed=None, layer_scale_init_value=1)
    missing, unexpected = nn.Module.load_state_dict(
        scaled,
        {**plain.state_dict(), **{name: gamma for name, gamma in scaled.state_dict().items() if "layer_scale" in name}},
    )
    assert not missing and not unexpected
    with torch.no_grad():
        assert torch.equal(scaled(images()).logits, plain(images()).logits)


@KINDS
def test_layer_scale_has_one_gamma_per_channel_and_branch(tiny_student, kind):
    model = tiny_student(kind, seed=None, layer_scale_init_value=1e-4)
    gammas = {name: gamma for name, gamma in model.named_parameters() if "layer_scale" in name}
    assert len(gammas) == 2 * 2
    for gamma in gammas.values():
        assert torch.equal(gamma, torch.full((32,), 1e-4))
    assert not any(isinstance(module, DeiTLayerScale) for module in tiny_student(kind).modules())


# ------------------------------------------------------------------------------------------------------- initialisation


def assert_official(name, parameter):
    """Check a parameter against the official initialisation: `trunc_normal_(std=.02)` and the defaults of PyTorch.

    Mean and standard deviation must agree within five standard errors.
    """
    if name.endswith(("projection.weight", "projection.bias")):
        bound = 1 / math.sqrt(3 * 8 * 8)  # the default of nn.Conv2d: uniform within 1 / √fan_in
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.8 * bound
        spread = bound / math.sqrt(3)
    elif "layernorm" in name and name.endswith("weight"):
        assert torch.equal(parameter, torch.ones_like(parameter))
        return
    elif name.endswith("bias"):
        assert torch.equal(parameter, torch.zeros_like(parameter))
        return
    else:  # linear weights, the tokens and the positions
        spread = 0.02
        assert parameter.abs().max() < 6 * spread
        assert (parameter != 0).all()
    count = parameter.numel()
    assert abs(parameter.std().item() - spread) < 5 * spread / math.sqrt(2 * count)
    assert abs(parameter.mean().item()) < 5 * spread / math.sqrt(count)


@KINDS
def test_a_new_model_is_initialised_as_in_the_official_code(tiny_student, kind):
    torch.manual_seed(0)
    for name, parameter in tiny_student(kind, seed=None).named_parameters():
        assert_official(name, parameter.detach())


@KINDS
def test_the_initializer_range_is_used(tiny_student, kind):
    torch.manual_seed(0)
    model = tiny_student(kind, seed=None, initializer_range=0.1)
    for parameter in (model.base_model.layers[0].mlp.fc1.weight, model.base_model.embeddings.position_embeddings):
        assert parameter.std().item() == pytest.approx(0.1, rel=0.15)


@KINDS
def test_weights_that_a_file_lacks_are_initialised_as_in_the_official_code(tiny_student, tmp_path, kind):
    model = tiny_student(kind)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "encoder.layer.1." in name}
    assert kept
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    loaded = type(model).from_pretrained(tmp_path)
    trained = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if "layers.1." in name:
            assert torch.equal(parameter, trained[name]), name
        else:
            assert_official(name, parameter.detach())


@KINDS
def test_heads_of_another_size_are_initialised_as_in_the_official_code(tiny_student, tmp_path, kind):
    model = tiny_student(kind)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = type(model).from_pretrained(tmp_path, num_labels=50, ignore_mismatched_sizes=True)
    for head in heads_of(kind, loaded):
        assert head.weight.shape == (50, 32)
        for name, parameter in head.named_parameters():
            assert_official(name, parameter.detach())
    assert torch.equal(loaded.base_model.layernorm.weight, model.base_model.layernorm.weight)


@KINDS
def test_every_parameter_gets_a_gradient(tiny_student, kind):
    model = tiny_student(kind, layer_scale_init_value=0.1).train()
    model(images(), labels=INDICES).loss.backward()
    for name, parameter in model.named_parameters():
        # The bias of the key shifts all scores of a query equally, and softmax does not depend on such a shift.
        if not name.endswith("k_proj.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# ------------------------------------------------------------------------------------------- ways of running the model


@KINDS
def test_gradient_checkpointing_computes_layers_twice_and_gives_the_same_gradients(tiny_student, kind):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = tiny_student(kind, drop_path_rate=0.5, hidden_dropout_prob=0.1).train()
        if checkpointing:
            # The name of the method from transformers 5.23 on, and the name before.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        calls.append([])
        model.base_model.layers[1].mlp.register_forward_hook(lambda *_, calls=calls[-1]: calls.append(1))
        torch.manual_seed(0)
        model(images(batch=4), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert [len(each) for each in calls] == [1, 2]
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient)


@KINDS
def test_a_model_in_bfloat16_runs_and_its_loss_is_in_float32(tiny_student, kind):
    torch.manual_seed(0)
    model = tiny_student(kind, seed=None, layer_scale_init_value=0.5)
    expected = model(images()).logits
    half = model.to(torch.bfloat16).train()
    outputs = half(images(), labels=SOFT)  # pixels in float32: the model casts them
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    assert (outputs.logits - expected).abs().max() < 0.02
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())


@KINDS
def test_the_model_compiles_to_one_graph_that_computes_the_same(tiny_student, kind):
    # This package is responsible for the single graph. The compiler (inductor, 20 s) is part of PyTorch and is not
    # tested here.
    torch._dynamo.reset()
    model = tiny_student(kind, layer_scale_init_value=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        outputs, expected = compiled(images()), model(images())
    assert list(outputs) == list(expected)
    for name in expected:
        assert_near(outputs[name], expected[name])
    torch._dynamo.reset()


@KINDS
def test_a_training_step_compiles_to_one_graph_with_the_same_gradients(tiny_student, kind):
    torch._dynamo.reset()
    gradients = []
    for compiling in (False, True):
        model = tiny_student(kind, drop_path_rate=0.5).train()
        step = torch.compile(model, fullgraph=True, backend="eager") if compiling else model
        torch.manual_seed(0)
        step(images(), labels=SOFT).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient)
    torch._dynamo.reset()


@KINDS
def test_an_exported_model_accepts_any_batch_size(tiny_student, kind):
    model = tiny_student(kind)
    program = torch.export.export(
        model, (), kwargs={"pixel_values": images()}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    for batch in (2, 5, 1):
        with torch.no_grad():
            expected = model(images(batch=batch))
            exported = program.module()(pixel_values=images(batch=batch))
        assert list(exported) == list(expected)
        for name in expected:
            assert_near(exported[name], expected[name])


@pytest.mark.parametrize("config_class", [transformers.DeiTConfig, transformers.ViTConfig])
def test_a_model_with_a_stock_configuration_can_be_trained(tiny_config, config_class):
    config = tiny_config(config_class)
    model_class = {"deit": DeiTForImageClassificationWithTeacher, "vit": ViTForImageClassification}[config.model_type]
    torch.manual_seed(0)
    model = model_class(config).train()
    assert all(layer.drop_path.drop_prob == 0.0 for layer in model.base_model.layers)
    assert not model.has_layer_scale
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(images(), labels=INDICES).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
