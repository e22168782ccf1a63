"""The last layer is computed for the tokens of the heads only, unless something reads the patches."""

import pytest
import torch

from hf_deit import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Teacher,
    ViTConfig,
    ViTForImageClassification,
)

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
PIXELS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(kind: str, attention: str = "sdpa", **fields):
    torch.manual_seed(0)
    if kind == "plain":
        model = ViTForImageClassification(ViTConfig(**SHAPE, **fields))
    else:
        model = DeiTForImageClassificationWithTeacher(DeiTConfig(**SHAPE, **fields))
    model.set_attn_implementation(attention)
    return model, getattr(model, model.base_model_prefix)


def tokens_of_last_layer(model, backbone, **kwargs) -> int:
    """Return the number of tokens of the final norm's output, read without a hook."""
    seen = []
    original = backbone.layernorm.forward
    backbone.layernorm.forward = lambda states: seen.append(states.shape[1]) or original(states)
    try:
        model(PIXELS, **kwargs)
    finally:
        del backbone.layernorm.forward
    return seen[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["plain", "distilled"])
def test_logits_and_gradients_are_those_of_the_complete_last_layer(kind, attention):
    model, backbone = build(kind, attention, drop_path_rate=0.3)
    model.train()
    results = []
    for complete in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        output = model(PIXELS, labels=torch.arange(6) % 5, output_hidden_states=complete)
        output.loss.backward()
        results.append((output.logits, [parameter.grad for parameter in model.parameters()]))
    (logits, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "tokens"), [("plain", 1), ("distilled", 2)])
def test_patches_of_the_last_layer_are_left_out_where_nothing_reads_them(kind, tokens):
    model, backbone = build(kind)
    patches = 16
    assert tokens_of_last_layer(model.eval(), backbone) == tokens
    assert tokens_of_last_layer(model, backbone, output_hidden_states=True) == tokens + patches
    # transformers keeps its hooks after a request; they must not make later calls slow.
    assert tokens_of_last_layer(model, backbone) == tokens
    assert tokens_of_last_layer(model.train(), backbone) == tokens
    assert backbone(PIXELS).last_hidden_state.shape[1] == tokens + patches


@pytest.mark.parametrize(
    "name", ["", "layernorm", "layers.2", "layers.2.mlp.fc1", "layers.2.attention", "layers.2.layernorm_after"]
)
def test_a_hook_on_the_last_layer_sees_all_tokens(name):
    model, backbone = build("plain")
    expected = model(PIXELS).logits
    handle = backbone.get_submodule(name).register_forward_hook(lambda module, inputs, output: None)
    assert tokens_of_last_layer(model, backbone) == 17
    torch.testing.assert_close(model(PIXELS).logits, expected, atol=1e-6, rtol=0)
    handle.remove()
    assert tokens_of_last_layer(model, backbone) == 1


def test_a_backward_hook_on_the_last_layer_sees_all_tokens():
    model, backbone = build("plain")
    handle = backbone.layers[2].register_full_backward_hook(lambda module, gradients, outputs: None)
    assert tokens_of_last_layer(model, backbone) == 17
    handle.remove()
    assert tokens_of_last_layer(model, backbone) == 1


def test_another_module_in_the_place_of_the_last_layer_is_called_with_the_states_alone():
    model, backbone = build("plain")
    expected = model(PIXELS, output_hidden_states=True).hidden_states[2]
    backbone.layers[2] = torch.nn.Identity()
    model.classifier = torch.nn.Identity()
    torch.testing.assert_close(model(PIXELS).logits, backbone.layernorm(expected)[:, 0], atol=1e-6, rtol=0)


def test_a_hook_on_an_earlier_layer_or_on_the_head_does_not_need_the_patches_of_the_last_layer():
    model, backbone = build("plain")
    shapes = []
    backbone.layers[1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1]))
    model.classifier.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    assert tokens_of_last_layer(model, backbone) == 1
    assert shapes == [17, (6, 32)]


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_keeps_its_random_numbers(field):
    model, backbone = build("plain", **{field: 0.2})
    assert tokens_of_last_layer(model.train(), backbone) == 17
    assert tokens_of_last_layer(model.eval(), backbone) == 1


def test_a_configuration_that_requests_hidden_states_gets_all_of_them():
    model, _ = build("plain")
    model.config.output_hidden_states = True
    assert [states.shape[1] for states in model(PIXELS).hidden_states] == [17] * 4


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model, _ = build("distilled")
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(PIXELS, labels=torch.arange(6) % 5).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def test_the_computation_of_a_layer_grows_with_the_number_of_its_queries():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for layers in (1, 2):
        model, _ = build("plain", "eager")  # the counter does not know the attention of sdpa on a CPU
        model.vit.layers = model.vit.layers[:layers]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(PIXELS[:1])
        counts.append(counter.get_total_flops())
    width, hidden, tokens = 32, 64, 17
    complete = 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    last = 2 * (2 * tokens * width * width + 2 * width * width + 2 * width * hidden) + 4 * tokens * width
    assert counts[1] - counts[0] == complete
    assert counts[0] == last + 2 * 16 * 3 * 64 * width + 2 * width * 5


def test_the_logits_of_a_teacher_do_not_depend_on_whether_its_features_are_read():
    model, backbone = build("plain")
    Teacher(model, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert tokens_of_last_layer(model, backbone) == 17
    assert torch.equal(model(PIXELS).logits, model(PIXELS, output_hidden_states=True).logits)
