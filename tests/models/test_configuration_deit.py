"""Tests of the configurations: official defaults, validation of all fields, presets, and saving and loading."""

import copy
import json
import math

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

import hf_deit.models.modeling_deit as modeling
from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification
from hf_deit.models.configuration_deit import patch_grid, validate_config
from hf_deit.sizes import as_pair

CONFIGS = pytest.mark.parametrize("config_class", [DeiTConfig, ViTConfig])
HEADS = {DeiTConfig: DeiTForImageClassificationWithTeacher, ViTConfig: ViTForImageClassification}
STOCK = {DeiTConfig: transformers.DeiTConfig, ViTConfig: transformers.ViTConfig}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}

# Invalid values of fields, and parts of the message: the field and value, what is allowed, and valid values.
WRONG = [
    ({"hidden_size": 0}, ["hidden_size=0", "at least 1"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers=0", "at least 1"]),
    ({"num_attention_heads": 0}, ["num_attention_heads=0", "at least 1"]),
    ({"intermediate_size": -1}, ["intermediate_size=-1", "at least 1"]),
    ({"num_channels": 0}, ["num_channels=0", "at least 1"]),
    ({"num_attention_heads": 3}, ["num_attention_heads=3", "hidden_size=32", "2 or 4"]),
    ({"image_size": 0}, ["image_size=0", "image_size=224"]),
    ({"image_size": -8}, ["image_size=-8", "image_size=224"]),
    ({"image_size": (32, 0)}, ["image_size=(32, 0)", "(height, width)"]),
    ({"patch_size": 0}, ["patch_size=0", "patch_size=16"]),
    ({"patch_size": 5}, ["patch_size=5", "image_size=32", "height", "30 or 35"]),
    ({"image_size": (32, 36)}, ["patch_size=8", "image_size=(32, 36)", "width", "32 or 40"]),
    ({"patch_size": 64}, ["patch_size=64", "image_size=32", "height", "64 or 128"]),
    ({"patch_size": (8, 5)}, ["patch_size=(8, 5)", "width", "30 or 35"]),
    ({"drop_path_rate": 1.0}, ["drop_path_rate=1.0", "[0, 1)"]),
    ({"drop_path_rate": -0.1}, ["drop_path_rate=-0.1", "[0, 1)"]),
    ({"drop_path_rate": math.nan}, ["drop_path_rate=nan", "[0, 1)"]),
    ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob=1.5", "[0, 1)"]),
    ({"attention_probs_dropout_prob": -1.0}, ["attention_probs_dropout_prob=-1.0", "[0, 1)"]),
    ({"layer_norm_eps": 0.0}, ["layer_norm_eps=0.0", "above 0", "1e-6"]),
    ({"initializer_range": 0.0}, ["initializer_range=0.0", "above 0", "0.02"]),
    ({"layer_scale_init_value": 0.0}, ["layer_scale_init_value=0.0", "above 0", "None"]),
    ({"layer_scale_init_value": -1e-4}, ["layer_scale_init_value=-0.0001", "above 0"]),
]

WRONG_TYPES = [
    {"hidden_size": "32"},
    {"hidden_size": 32.0},
    {"num_attention_heads": 2.0},
    {"image_size": "32"},
    {"image_size": (32, 32.0)},
    {"image_size": (32, 32, 32)},
    {"image_size": True},
    {"patch_size": (8,)},
    {"qkv_bias": "yes"},
    {"layer_norm_eps": "1e-6"},
    {"drop_path_rate": "0.1"},
    {"drop_path_rate": True},
    {"drop_path_rate": None},
    {"layer_scale_init_value": "1e-4"},
    {"hidden_act": 3},
]


def ids(cases):
    return [str(case[0] if isinstance(case, tuple) else case) for case in cases]


@CONFIGS
def test_defaults_are_the_official_ones(config_class):
    config = config_class()
    assert config.layer_norm_eps == 1e-6  # stock transformers has 1e-12
    assert config.qkv_bias is True
    assert config.hidden_act == "gelu"
    assert config.initializer_range == 0.02
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.0, 0.0)
    assert (config.image_size, config.patch_size, config.num_channels) == (224, 16, 3)
    assert (config.drop_path_rate, config.layer_scale_init_value) == (0.0, None)


@CONFIGS
def test_all_other_defaults_are_those_of_stock_transformers(config_class):
    ours, stock = config_class().to_dict(), STOCK[config_class]().to_dict()
    assert {key for key in ours if ours[key] != stock.get(key, "absent")} == {
        "layer_norm_eps",
        "drop_path_rate",
        "layer_scale_init_value",
    }
    assert stock.keys() <= ours.keys()


def test_model_types_are_those_of_stock_transformers():
    assert DeiTConfig.model_type == DeiTConfig().to_dict()["model_type"] == "deit"
    assert ViTConfig.model_type == ViTConfig().to_dict()["model_type"] == "vit"


@CONFIGS
@pytest.mark.parametrize(("fields", "parts"), WRONG, ids=ids(WRONG))
def test_an_invalid_field_raises_an_error_that_names_valid_values(tiny_config, config_class, fields, parts):
    with pytest.raises(ValueError) as error:
        tiny_config(config_class, **fields)
    for words in parts:
        assert words in str(error.value)


@CONFIGS
@pytest.mark.parametrize("fields", WRONG_TYPES, ids=ids(WRONG_TYPES))
def test_a_field_of_the_wrong_type_raises_an_error_that_names_it(tiny_config, config_class, fields):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        tiny_config(config_class, **fields)


@CONFIGS
def test_a_rate_may_be_an_integer(tiny_config, config_class):
    config = tiny_config(config_class, drop_path_rate=0, layer_scale_init_value=1)
    assert (config.drop_path_rate, config.layer_scale_init_value) == (0, 1)


@pytest.mark.parametrize("fields", [fields for fields, _ in WRONG], ids=ids(WRONG))
@pytest.mark.parametrize(
    ("config_class", "model_name"),
    [
        (DeiTConfig, "DeiTForImageClassificationWithTeacher"),
        (DeiTConfig, "DeiTModel"),
        (ViTConfig, "ViTForImageClassification"),
        (ViTConfig, "HfViTModel"),
    ],
)
def test_a_field_that_is_set_later_is_checked_when_the_model_is_built(tiny_config, config_class, model_name, fields):
    config = tiny_config(config_class)
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=next(iter(fields))):
        getattr(modeling, model_name)(config)


@CONFIGS
def test_a_field_set_later_to_a_wrong_type_raises_at_once(tiny_config, config_class):
    config = tiny_config(config_class)
    with pytest.raises(StrictDataclassFieldValidationError, match="drop_path_rate"):
        config.drop_path_rate = "a lot"


@pytest.mark.parametrize("stock_class", [transformers.DeiTConfig, transformers.ViTConfig])
def test_a_stock_configuration_is_validated_without_the_fields_of_this_package(tiny_config, stock_class):
    validate_config(tiny_config(stock_class))
    unchecked = tiny_config(stock_class, num_attention_heads=3)  # stock transformers accepts this
    with pytest.raises(ValueError, match="num_attention_heads=3"):
        validate_config(unchecked)


# Exact parameter counts of the models that the official code builds. Table 1 of the paper rounds them (5, 22, 86
# million).
@pytest.mark.parametrize(
    ("config_class", "preset", "parameters"),
    [
        (DeiTConfig, "tiny", 5_910_800),
        (DeiTConfig, "small", 22_436_432),
        (DeiTConfig, "base", 87_338_192),
        (ViTConfig, "tiny", 5_717_416),
        (ViTConfig, "small", 22_050_664),
        (ViTConfig, "base", 86_567_656),
    ],
)
def test_a_preset_has_the_papers_number_of_parameters(config_class, preset, parameters):
    config = config_class.from_preset(preset, num_labels=1000)
    with torch.device("meta"):
        model = HEADS[config_class](config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    # The values in Table 1 of the paper.
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == {
        "tiny": (192, 3, 12),
        "small": (384, 6, 12),
        "base": (768, 12, 12),
    }[preset]


@CONFIGS
def test_a_preset_takes_overrides_and_keeps_the_rest(config_class):
    config = config_class.from_preset("tiny", image_size=64, patch_size=8, num_labels=10, num_attention_heads=6)
    assert (config.image_size, config.patch_size, config.num_labels, config.num_attention_heads) == (64, 8, 10, 6)
    assert (config.hidden_size, config.intermediate_size) == (192, 768)
    assert config_class.from_preset("tiny").num_attention_heads == 3


@CONFIGS
def test_an_unknown_preset_raises_an_error_that_lists_the_presets(config_class):
    with pytest.raises(ValueError, match=r"'huge'.*tiny, small, base"):
        config_class.from_preset("huge")


FIELDS = [
    {},
    {"image_size": (32, 48), "patch_size": (8, 16)},
    {"image_size": [32, 48]},
    {"drop_path_rate": 0.1, "layer_scale_init_value": 1e-4},
    {"num_labels": 7},
    {"num_labels": 0},
    {**NAMES, "problem_type": "multi_label_classification"},
]


@CONFIGS
@pytest.mark.parametrize("fields", FIELDS, ids=ids(FIELDS))
def test_a_configuration_equals_itself_after_saving_and_loading_it_as_json(tiny_config, config_class, tmp_path, fields):
    config = tiny_config(config_class, **fields)
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    loaded = {
        "save_pretrained": config_class.from_pretrained(tmp_path),
        "every field": config_class.from_json_file(tmp_path / "all.json"),
        "string": config_class.from_dict(json.loads(config.to_json_string())),
        "copy": copy.deepcopy(config),
    }
    for method, copied in loaded.items():
        assert copied == config, method
        assert copied.to_dict() == config.to_dict(), method
        assert type(copied.image_size) is type(config.image_size), method
        assert copied.id2label == config.id2label and copied.num_labels == config.num_labels, method


@CONFIGS
def test_a_pair_given_as_a_list_is_the_same_as_a_tuple(tiny_config, config_class):
    config = tiny_config(config_class, image_size=[32, 48], patch_size=[8, 16])
    assert (config.image_size, config.patch_size) == ((32, 48), (8, 16))
    assert config == tiny_config(config_class, image_size=(32, 48), patch_size=(8, 16))


@CONFIGS
@pytest.mark.parametrize(
    "fields", [{"drop_path_rate": 0.1}, {"layer_scale_init_value": 1e-4}, {"num_labels": 4}, {"image_size": (32, 48)}]
)
def test_configurations_that_differ_in_a_field_are_not_equal(tiny_config, config_class, fields):
    assert tiny_config(config_class) == tiny_config(config_class)
    assert tiny_config(config_class, **fields) != tiny_config(config_class)


def test_configurations_of_the_two_students_are_not_equal(tiny_config):
    assert tiny_config(DeiTConfig) != tiny_config(ViTConfig)
    assert tiny_config(DeiTConfig) != "deit"


@CONFIGS
def test_stock_transformers_reads_the_file_and_keeps_the_fields_of_this_package(tiny_config, config_class, tmp_path):
    config = tiny_config(config_class, drop_path_rate=0.1, layer_scale_init_value=1e-4, image_size=(32, 48), **NAMES)
    config.save_pretrained(tmp_path)
    stock = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(stock) is STOCK[config_class]
    assert (stock.drop_path_rate, stock.layer_scale_init_value, stock.layer_norm_eps) == (0.1, 1e-4, 1e-6)
    stock.save_pretrained(tmp_path / "by_stock")
    assert config_class.from_pretrained(tmp_path / "by_stock") == config


def test_a_size_is_a_pair_of_height_and_width(tiny_config):
    assert as_pair(224) == (224, 224)
    assert as_pair((96, 160)) == as_pair([96, 160]) == (96, 160)
    assert patch_grid(tiny_config(DeiTConfig)) == (4, 4)
    assert patch_grid(tiny_config(DeiTConfig, image_size=(32, 64), patch_size=(8, 32))) == (4, 2)
