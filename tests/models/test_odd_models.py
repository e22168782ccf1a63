"""Regression tests of unusual configurations and models.

Each of these inputs was once accepted silently, or raised an error that did not name the cause.
"""

import importlib.metadata
import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

import hf_deit
from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTModel, ViTConfig
from tests.conftest import TINY


def test_a_folded_backbone_can_be_loaded(tmp_path):
    DeiTModel(DeiTConfig(**TINY, layer_scale_init_value=0.5)).save_pretrained(tmp_path, fold_layer_scale=True)
    assert json.loads((tmp_path / "config.json").read_text())["layer_scale_init_value"] is None
    DeiTModel.from_pretrained(tmp_path)


def test_a_backbone_with_a_pooler_can_be_folded():
    DeiTModel(DeiTConfig(**TINY, layer_scale_init_value=0.5), add_pooling_layer=True).folded()


def test_a_backbone_is_published_under_the_stock_name(tmp_path, monkeypatch):
    seen = {}

    def upload(self, folder, *args, **kwargs):
        from pathlib import Path

        seen.update(json.loads((Path(folder) / "config.json").read_text()))

    from types import SimpleNamespace

    import transformers.modeling_utils as mu

    def repo(*a, **k):
        return SimpleNamespace(repo_id="a/b")

    monkeypatch.setattr(DeiTModel, "_upload_modified_files", upload)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.create_repo", repo)
    monkeypatch.setattr(mu, "create_repo", repo, raising=False)
    monkeypatch.setattr("transformers.utils.hub.create_repo", repo, raising=False)
    monkeypatch.setattr(mu, "create_and_tag_model_card", lambda *a, **k: SimpleNamespace(save=lambda *a: None))
    DeiTModel(DeiTConfig(**TINY)).save_pretrained(tmp_path, push_to_hub=True, repo_id="a/b")
    assert seen["architectures"] == ["DeiTModel"]


@pytest.mark.parametrize("name", ["hidden_act", "pooler_act"])
def test_an_unknown_activation_raises_an_error_that_names_the_field(name):
    with pytest.raises(ValueError, match=name):
        DeiTConfig(**TINY, **{name: "nonsense"})


@pytest.mark.parametrize("config_class", [DeiTConfig, ViTConfig])
@pytest.mark.parametrize("num_labels", [-1, "3", 2.5])
def test_an_invalid_number_of_labels_raises_an_error_that_names_the_field(config_class, num_labels):
    with pytest.raises(ValueError, match="num_labels"):
        config_class(**{**TINY, "num_labels": num_labels})


def test_an_unknown_problem_type_raises():
    # transformers 5.17 checks this field itself and raises its own error.
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="problem_type"):
        DeiTConfig(**TINY, problem_type="multilabel")


def test_gamma_in_a_file_is_not_ignored_silently(tmp_path):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, layer_scale_init_value=0.5)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layer_scale"):
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, layer_scale_init_value=None)


@pytest.mark.parametrize("config_class", [DeiTConfig, ViTConfig])
def test_after_registration_the_auto_class_accepts_our_configurations(config_class, monkeypatch):
    mapping = transformers.AutoModelForImageClassification._model_mapping
    monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))  # for this test only
    hf_deit.register_auto_classes()
    model = transformers.AutoModelForImageClassification.from_config(config_class(**TINY, drop_path_rate=0.1))
    assert type(model).__module__ == "hf_deit.models.modeling_deit"


def test_the_configuration_of_a_loaded_model_equals_the_file(tmp_path):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY)).save_pretrained(tmp_path)
    assert DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path).config == DeiTConfig.from_pretrained(
        tmp_path
    )


def test_one_image_without_a_batch_dimension_raises_an_error_with_a_fix():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*pixel_values\[None\]"):
        DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY))(torch.rand(3, 32, 32))


def test_labels_for_a_model_without_heads_raise_an_error():
    with pytest.raises(ValueError, match="num_labels=0"):
        DeiTForImageClassificationWithTeacher(DeiTConfig(**{**TINY, "num_labels": 0}))(
            torch.rand(2, 3, 32, 32), labels=torch.tensor([0, 1])
        )


def test_infinite_values_of_gamma_eps_and_initializer_range_raise_an_error():
    for field in ("layer_scale_init_value", "layer_norm_eps", "initializer_range"):
        with pytest.raises(ValueError, match=field):
            DeiTConfig(**TINY, **{field: float("inf")})


def test_a_state_dict_with_names_in_files_can_be_folded(tmp_path):
    from safetensors.torch import load_file

    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, layer_scale_init_value=0.5))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, state_dict=load_file(tmp_path / "model.safetensors"), fold_layer_scale=True)


def test_an_image_smaller_than_a_patch_raises_an_error_with_both_sizes():
    with pytest.raises(ValueError, match="4×32.*8×8"):
        DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY))(
            torch.rand(2, 3, 4, 32), interpolate_pos_encoding=True
        )


def test_the_version_is_that_of_the_installed_package():
    assert hf_deit.__version__ == importlib.metadata.version("hf_deit")
