"""Tests of renaming, compared with stock transformers, and of folding, compared with the explicit product."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher
from hf_deit.models.state_dicts import fold_layer_scale, rename_hub_key, rename_hub_keys, require_layer_scale

STOCK = [
    "DeiTForImageClassificationWithTeacher",
    "DeiTForImageClassification",
    "DeiTModel",
    "ViTForImageClassification",
]


def stock_model(tiny_config, name):
    config = tiny_config(transformers.DeiTConfig if name.startswith("DeiT") else transformers.ViTConfig)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize("name", STOCK)
def test_every_name_in_a_stock_file_becomes_the_name_in_memory(tiny_config, tmp_path, name):
    model = stock_model(tiny_config, name)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number)  # identifies the tensor
    model.save_pretrained(tmp_path)
    in_file = {tensor.flatten()[0].item(): key for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    in_memory = {tensor.flatten()[0].item(): key for key, tensor in model.state_dict().items()}
    assert in_file.keys() == in_memory.keys()
    assert in_file != in_memory  # some names change
    assert {number: rename_hub_key(key) for number, key in in_file.items()} == in_memory


@pytest.mark.parametrize("name", STOCK)
def test_current_names_are_unchanged(tiny_config, name):
    for key in stock_model(tiny_config, name).state_dict():
        assert rename_hub_key(key) == key


def backbone(**config):
    module = nn.Module()
    module.config = transformers.DeiTConfig(**config)
    return module


def test_only_names_with_the_prefix_are_renamed_in_place():
    old = "encoder.layer.0.attention.attention.query.weight"
    weights = {f"student.{old}": torch.zeros(1), f"teacher.{old}": torch.ones(1), "student.other": torch.ones(2)}
    tensors = dict(weights)
    assert rename_hub_keys(backbone(), weights, "student.") is None
    assert weights.keys() == {"student.layers.0.attention.q_proj.weight", f"teacher.{old}", "student.other"}
    assert weights["student.layers.0.attention.q_proj.weight"] is tensors[f"student.{old}"]


def test_layer_numbers_of_two_digits_are_kept():
    assert rename_hub_key("encoder.layer.11.output.dense.bias") == "layers.11.mlp.fc2.bias"
    assert rename_hub_key("vit.encoder.layer.10.attention.output.dense.bias") == "vit.layers.10.attention.o_proj.bias"


@pytest.mark.parametrize("gamma", ["layer_scale1.lambda1", "layer_scale2.lambda1"])
def test_a_single_missing_gamma_is_found(tiny_config, gamma):
    model = DeiTForImageClassificationWithTeacher(tiny_config(DeiTConfig, layer_scale_init_value=0.5))
    weights = model.state_dict()
    del weights[f"deit.layers.1.{gamma}"]
    with pytest.raises(ValueError, match=f"1 of its parameters.*'deit.layers.1.{gamma}'"):
        rename_hub_keys(model.deit, weights, "deit.")


def test_missing_gammas_are_counted_and_the_first_is_named():
    require_layer_scale([])
    require_layer_scale(iter(()))
    with pytest.raises(ValueError) as error:
        require_layer_scale(name for name in ("first.lambda1", "second.lambda1"))
    for words in ("2 of its parameters", "'first.lambda1'", "layer_scale_init_value=None"):
        assert words in str(error.value)


def layer_with_gammas():
    torch.manual_seed(0)
    shapes = {"attention.o_proj": (4, 4), "mlp.fc2": (4, 6)}
    weights = {}
    for projection, (out_features, in_features) in shapes.items():
        weights[f"vit.layers.0.{projection}.weight"] = torch.randn(out_features, in_features)
        weights[f"vit.layers.0.{projection}.bias"] = torch.randn(out_features)
    weights["vit.layers.0.mlp.fc1.weight"] = torch.randn(6, 4)
    weights["vit.layers.0.layer_scale1.lambda1"] = torch.rand(4) + 0.5
    weights["vit.layers.0.layer_scale2.lambda1"] = torch.rand(4) + 0.5
    return weights


def test_folding_multiplies_gamma_into_the_projection():
    weights = layer_with_gammas()
    folded = fold_layer_scale(weights)
    for gamma, projection, width in (("layer_scale1", "attention.o_proj", 4), ("layer_scale2", "mlp.fc2", 6)):
        tokens = torch.randn(7, width)
        stem = f"vit.layers.0.{projection}"
        scaled = (tokens @ weights[f"{stem}.weight"].T + weights[f"{stem}.bias"]) * weights[
            f"vit.layers.0.{gamma}.lambda1"
        ]
        torch.testing.assert_close(tokens @ folded[f"{stem}.weight"].T + folded[f"{stem}.bias"], scaled)
    assert folded.keys() == {key for key in weights if "lambda1" not in key}
    assert folded["vit.layers.0.mlp.fc1.weight"] is weights["vit.layers.0.mlp.fc1.weight"]


def test_folding_does_not_modify_the_given_state_dict():
    weights = layer_with_gammas()
    before = copy.deepcopy(weights)
    fold_layer_scale(weights)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_folding_a_model_without_layer_scale_changes_nothing(tiny_config):
    weights = DeiTForImageClassificationWithTeacher(tiny_config(DeiTConfig)).state_dict()
    folded = fold_layer_scale(weights)
    assert folded.keys() == weights.keys()
    assert all(folded[key] is weights[key] for key in weights)
