"""Which parameters decay: told by module type, independently of their names."""

import pytest
from torch import nn
from transformers import SwinConfig, SwinForImageClassification
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViTForImageClassification

from hf_deit.configuration_deit import DeiTConfig, ViTConfig
from hf_deit.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from hf_deit.optim import decay_parameter_names

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
}


def matrices(model):
    """The weights of the linear and convolution layers."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("layer_scale", [None, 1e-4])
def test_in_the_distilled_student_the_matrices_and_the_distillation_token_decay(layer_scale):
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, layer_scale_init_value=layer_scale))
    decayed = decay_parameter_names(model)
    assert set(decayed) == matrices(model) | {"deit.embeddings.distillation_token"}
    assert len(decayed) == len(set(decayed))


def test_the_distillation_token_can_be_left_out():
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY))
    assert set(decay_parameter_names(model, distillation_token_decay=False)) == matrices(model)


@pytest.mark.parametrize("distillation_token_decay", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 1e-4])
def test_in_the_plain_student_the_matrices_decay(distillation_token_decay, layer_scale):
    model = ViTForImageClassification(ViTConfig(**TINY, layer_scale_init_value=layer_scale))
    assert set(decay_parameter_names(model, distillation_token_decay)) == matrices(model)


def test_in_a_stock_vit_the_matrices_decay():
    model = StockViTForImageClassification(StockViTConfig(**TINY))
    assert set(decay_parameter_names(model)) == matrices(model)


def test_in_a_stock_swin_the_matrices_decay_and_no_vector_norm_or_position():
    config = SwinConfig(
        image_size=16,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
        use_absolute_embeddings=True,
    )
    model = SwinForImageClassification(config)
    parameters = dict(model.named_parameters())
    assert any(name.endswith("position_embeddings") for name in parameters)
    decayed = {name for name in decay_parameter_names(model) if "relative_position" not in name}
    assert decayed == matrices(model)


def test_in_any_torch_network_vectors_do_not_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.PReLU(2))
    assert set(decay_parameter_names(network)) == {"0.weight", "3.weight"}
