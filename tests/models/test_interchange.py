"""Tests that this package and stock transformers load the files of each other.

Stock transformers runs in a process that never imports this package.
"""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import hf_deit
from hf_deit.models.modeling_deit import HfDeiTModel, HfViTModel
from tests.helpers.processes import run_python

KINDS = pytest.mark.parametrize("kind", ["distilled", "plain"])
OURS = {"distilled": hf_deit.DeiTForImageClassificationWithTeacher, "plain": hf_deit.ViTForImageClassification}
CONFIG = {"distilled": hf_deit.DeiTConfig, "plain": hf_deit.ViTConfig}
STOCK = {
    "distilled": transformers.DeiTForImageClassificationWithTeacher,
    "plain": transformers.ViTForImageClassification,
}
BACKBONES = {"distilled": (HfDeiTModel, "DeiTModel"), "plain": (HfViTModel, "ViTModel")}

# Models that this package saves for stock transformers: fields of the student, and arguments of save_pretrained.
SAVED = {
    "without LayerScale": ({}, {}),
    "with LayerScale, folded": ({"layer_scale_init_value": 0.5}, {"fold_layer_scale": True}),
    "folded, today's names": (
        {"layer_scale_init_value": 0.5},
        {"fold_layer_scale": True, "save_original_format": False},
    ),
    "in many shards": ({}, {"max_shard_size": "20KB"}),
    "wide": ({"image_size": (32, 48), "num_channels": 1, "drop_path_rate": 0.1, "qkv_bias": False}, {}),
}

# Program that uses only stock transformers. It loads all models below sys.argv[1] ("heads/…", "backbones/…"), saves
# stock models to "by_stock/…" in both formats, and prints a report as a line of JSON. It saves the logits beside the
# weights.
STOCK_PROGRAM = """
import json, sys
from pathlib import Path
import torch
import transformers
from safetensors.torch import load_file, save_file

room, report = Path(sys.argv[1]), {}
for kind in ("heads", "backbones"):
    auto = transformers.AutoModelForImageClassification if kind == "heads" else transformers.AutoModel
    for folder in sorted((room / kind).iterdir()):
        model, info = auto.from_pretrained(folder, output_loading_info=True)
        with torch.no_grad():
            outputs = model.eval()(load_file(folder / "pixel_values.safetensors")["pixel_values"])
        names = ["logits", "cls_logits", "distillation_logits", "last_hidden_state"]
        save_file({key: outputs[key] for key in outputs if key in names}, folder / "outputs_of_stock.safetensors")
        report[f"{kind}/{folder.name}"] = {
            "class": type(model).__name__,
            "module": type(model).__module__,
            **{key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")},
        }
for name in ("DeiTForImageClassificationWithTeacher", "ViTForImageClassification"):
    config = transformers.AutoConfig.from_pretrained(room / "heads" / f"{name}, without LayerScale")
    config.layer_norm_eps = 1e-12  # the value in the files on the Hub
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        pixel_values = torch.randn(2, 3, 32, 32)
        outputs = model(pixel_values)
    for names, original in (("old", True), ("new", False)):
        folder = room / "by_stock" / f"{name}, {names} names"
        model.save_pretrained(folder, save_original_format=original)
        save_file({"pixel_values": pixel_values, **outputs}, folder / "outputs_of_stock.safetensors")
assert not any("hf_deit" in module for module in sys.modules)
print(json.dumps(report))
"""


def report_of(program, *arguments):
    """Run a program in a new process, and return the JSON in the last line that it printed."""
    done = run_python(program, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def images_for(model, batch=2):
    height, width = model.base_model.embeddings.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.config.num_channels, height, width, generator=generator)


def outputs_of(model):
    with torch.no_grad():
        return model.eval()(images_for(model))


def assert_near(left, right, atol=1e-5):
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


def weights_in(folder):
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


def save_with_pixels(model, folder, **how):
    model.save_pretrained(folder, **how)
    save_file({"pixel_values": images_for(model)}, folder / "pixel_values.safetensors")


@pytest.fixture(scope="module")
def stock(tiny_student, tmp_path_factory):
    """Return the folder, the saved models, and the report of the process that uses only stock transformers."""
    room = tmp_path_factory.mktemp("interchange")
    models = {}
    for kind, model_class in OURS.items():
        for case, (fields, how) in SAVED.items():
            name = f"heads/{model_class.__name__}, {case}"
            models[name] = tiny_student(kind, **fields)
            save_with_pixels(models[name], room / name, **how)
        name = f"backbones/{BACKBONES[kind][1]}"
        models[name] = tiny_student(kind).base_model
        save_with_pixels(models[name], room / name)
    return SimpleNamespace(room=room, models=models, report=report_of(STOCK_PROGRAM, room))


# --------------------------------------------------------------------------------------------------- this package →
# stock


@KINDS
@pytest.mark.parametrize("case", list(SAVED))
def test_stock_transformers_loads_all_weights_and_computes_the_same_logits(stock, kind, case):
    name = f"heads/{OURS[kind].__name__}, {case}"
    found = stock.report[name]
    assert found["class"] == OURS[kind].__name__
    assert found["module"].startswith("transformers.models.")
    assert (found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"]) == ([], [], [])
    expected = outputs_of(stock.models[name])
    theirs = load_file(stock.room / name / "outputs_of_stock.safetensors")
    assert theirs.keys() == expected.keys()
    for key in expected:
        assert_near(theirs[key], expected[key])
    assert expected.logits.std() > 0.1  # constant logits would prove nothing


@KINDS
def test_without_folding_stock_transformers_would_compute_different_logits(tiny_student, kind):
    model = tiny_student(kind, layer_scale_init_value=0.5)
    ignoring = tiny_student(kind)
    ignoring.load_state_dict({name: value for name, value in model.state_dict().items() if "layer_scale" not in name})
    assert (outputs_of(model).logits - outputs_of(ignoring).logits).abs().max() > 0.01


@KINDS
def test_a_sharded_model_has_several_files_and_is_loaded_by_this_package(stock, kind):
    name = f"heads/{OURS[kind].__name__}, in many shards"
    assert len(list((stock.room / name).glob("model-*-of-*.safetensors"))) > 2
    loaded, info = OURS[kind].from_pretrained(stock.room / name, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(outputs_of(loaded).logits, outputs_of(stock.models[name]).logits)


@KINDS
def test_files_contain_the_parameter_names_of_the_hub(stock, kind):
    prefix = OURS[kind].base_model_prefix
    names = weights_in(stock.room / f"heads/{OURS[kind].__name__}, with LayerScale, folded").keys()
    assert f"{prefix}.encoder.layer.1.attention.attention.query.weight" in names
    assert not any("layer_scale" in name or ".q_proj" in name for name in names)
    # Stock transformers writes the same names.
    assert names == weights_in(stock.room / f"by_stock/{OURS[kind].__name__}, old names").keys()


@KINDS
def test_stock_transformers_loads_a_backbone_and_misses_only_its_pooler(stock, kind):
    ours, name = BACKBONES[kind]
    folder = stock.room / "backbones" / name
    assert config_in(folder)["architectures"] == [name]
    found = stock.report[f"backbones/{name}"]
    assert (found["class"], found["unexpected_keys"]) == (name, [])
    assert found["module"].startswith("transformers.models.")
    assert found["missing_keys"] == ["pooler.dense.bias", "pooler.dense.weight"]
    expected = outputs_of(stock.models[f"backbones/{name}"]).last_hidden_state
    assert_near(load_file(folder / "outputs_of_stock.safetensors")["last_hidden_state"], expected)
    again, info = ours.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(outputs_of(again).last_hidden_state, expected)


@KINDS
def test_a_student_loads_the_file_of_a_backbone_and_misses_only_its_heads(stock, kind):
    folder = stock.room / "backbones" / BACKBONES[kind][1]
    student, info = OURS[kind].from_pretrained(folder, num_labels=5, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == (
        {"cls_classifier", "distillation_classifier"} if kind == "distilled" else {"classifier"}
    )
    assert not info["unexpected_keys"]
    expected = outputs_of(stock.models[f"backbones/{BACKBONES[kind][1]}"]).last_hidden_state
    assert torch.equal(outputs_of(student.base_model).last_hidden_state, expected)


# --------------------------------------------------------------------------------------------------- stock → this
# package


@KINDS
@pytest.mark.parametrize("names", ["old", "new"])
def test_this_package_loads_all_weights_of_a_stock_file_and_computes_the_same_logits(stock, kind, names):
    folder = stock.room / f"by_stock/{OURS[kind].__name__}, {names} names"
    assert any("encoder.layer" in name for name in weights_in(folder)) == (names == "old")
    model, info = OURS[kind].from_pretrained(folder, output_loading_info=True)
    assert type(model) is OURS[kind] and type(model.config) is CONFIG[kind]
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.layer_norm_eps == 1e-12  # the value in the file, not the default of this package
    theirs = load_file(folder / "outputs_of_stock.safetensors")
    with torch.no_grad():
        ours = model.eval()(theirs.pop("pixel_values"))
    assert theirs.keys() == ours.keys()
    for key in ours:
        assert_near(ours[key], theirs[key])


@KINDS
@pytest.mark.parametrize("names", ["old", "new"])
def test_importing_this_package_does_not_change_the_stock_classes(stock, tmp_path, kind, names):
    written = stock.room / f"by_stock/{OURS[kind].__name__}, {names} names"
    alone = weights_in(written)
    model, info = STOCK[kind].from_pretrained(written, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.models.")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    fresh = STOCK[kind](model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(tmp_path, save_original_format=names == "old")
    here = weights_in(tmp_path)
    assert here.keys() == alone.keys()
    assert all(torch.equal(here[name], alone[name]) for name in alone)
    expected = load_file(written / "outputs_of_stock.safetensors")
    for each in (model, STOCK[kind].from_pretrained(tmp_path)):
        with torch.no_grad():
            assert_near(each.eval()(expected["pixel_values"]).logits, expected["logits"])


# -------------------------------------------------------------------------------------- load_state_dict with names in
# files


def models_with_files(tiny_student, kind, folder):
    for name, model in (
        ("heads", tiny_student(kind)),
        ("LayerScale", tiny_student(kind, layer_scale_init_value=0.5)),
        ("backbone", tiny_student(kind).base_model),
    ):
        model.save_pretrained(folder / name)
        yield model, weights_in(folder / name)


@KINDS
@pytest.mark.parametrize("strict", [True, False])
def test_load_state_dict_accepts_the_parameter_names_in_files(tiny_student, tmp_path, kind, strict):
    for model, weights in models_with_files(tiny_student, kind, tmp_path):
        assert any("encoder.layer" in name for name in weights)
        given = list(weights)
        fresh = type(model)(model.config)
        assert not torch.equal(outputs_of(fresh)[0], outputs_of(model)[0])
        missing, unexpected = fresh.load_state_dict(weights, strict=strict)
        assert not missing and not unexpected
        assert torch.equal(outputs_of(fresh)[0], outputs_of(model)[0])
        assert list(weights) == given  # the state dict of the caller is not modified


@KINDS
def test_load_state_dict_accepts_the_parameter_names_in_memory(tiny_student, kind):
    model = tiny_student(kind, layer_scale_init_value=0.5)
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(outputs_of(fresh).logits, outputs_of(model).logits)


@KINDS
def test_a_copy_of_a_model_loads_names_in_files_without_changing_the_original(tiny_student, tmp_path, kind):
    model = tiny_student(kind)
    model.save_pretrained(tmp_path)
    original = type(model)(model.config)
    before = outputs_of(original).logits
    twin = copy.deepcopy(original)
    twin.load_state_dict(weights_in(tmp_path), strict=True)
    assert torch.equal(outputs_of(twin).logits, outputs_of(model).logits)
    assert torch.equal(outputs_of(original).logits, before)


@KINDS
def test_load_state_dict_reports_missing_and_unexpected_weights(tiny_student, tmp_path, kind):
    model = tiny_student(kind)
    model.save_pretrained(tmp_path)
    weights = weights_in(tmp_path)
    prefix = model.base_model_prefix
    weights[f"{prefix}.encoder.layer.7.attention.attention.query.weight"] = torch.zeros(32, 32)
    del weights[f"{prefix}.encoder.layer.0.output.dense.bias"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == [f"{prefix}.layers.0.mlp.fc2.bias"]
    assert unexpected == [f"{prefix}.layers.7.attention.q_proj.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.0\.mlp\.fc2\.bias"):
        model.load_state_dict(weights, strict=True)


# ------------------------------------------------------------------------------------------------------------
# LayerScale


@KINDS
def test_an_unfolded_file_contains_gamma_and_is_loaded_exactly(tiny_student, tmp_path, kind):
    model = tiny_student(kind, layer_scale_init_value=0.5)
    model.save_pretrained(tmp_path)
    assert sum("lambda1" in name for name in weights_in(tmp_path)) == 4
    assert config_in(tmp_path)["layer_scale_init_value"] == 0.5
    loaded, info = OURS[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@KINDS
def test_folding_keeps_the_logits_and_does_not_change_the_model(tiny_student, tmp_path, kind):
    model = tiny_student(kind, layer_scale_init_value=0.5).train()
    config, weights = model.config.to_dict(), copy.deepcopy(model.state_dict())
    folded = model.folded()
    model.save_pretrained(tmp_path, fold_layer_scale=True)
    assert model.config.to_dict() == config
    assert model.training and folded.training
    assert not model.eval().folded().training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.add_(0)  # the tensors are not views of those of the model
    assert not {tensor.data_ptr() for tensor in folded.parameters()} & {
        tensor.data_ptr() for tensor in model.parameters()
    }
    assert not any("layer_scale" in name for name in folded.state_dict())
    assert_near(outputs_of(folded).logits, outputs_of(model).logits)


@KINDS
def test_a_folded_file_is_loaded_as_a_model_without_layer_scale(tiny_student, tmp_path, kind):
    names = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    model = tiny_student(kind, layer_scale_init_value=0.5, drop_path_rate=0.1, **names)
    model.save_pretrained(tmp_path, fold_layer_scale=True)
    loaded = OURS[kind].from_pretrained(tmp_path)
    assert loaded.config.layer_scale_init_value is None and not loaded.has_layer_scale
    assert (loaded.config.drop_path_rate, loaded.config.id2label) == (0.1, names["id2label"])
    assert_near(outputs_of(loaded).logits, outputs_of(model).logits)


@KINDS
def test_folding_uses_the_given_state_dict(tiny_student, tmp_path, kind):
    model, averaged = (tiny_student(kind, seed=seed, layer_scale_init_value=0.5) for seed in (0, 1))
    model.save_pretrained(tmp_path, fold_layer_scale=True, state_dict=averaged.state_dict())
    assert_near(outputs_of(OURS[kind].from_pretrained(tmp_path)).logits, outputs_of(averaged).logits)


@KINDS
def test_folding_a_model_without_layer_scale_saves_it_unchanged(tiny_student, tmp_path, kind):
    model = tiny_student(kind)
    model.save_pretrained(tmp_path, fold_layer_scale=True)
    assert torch.equal(outputs_of(OURS[kind].from_pretrained(tmp_path)).logits, outputs_of(model).logits)


@KINDS
def test_a_model_with_layer_scale_refuses_weights_without_gamma(tiny_student, tmp_path, kind):
    plain, scaled = tiny_student(kind), tiny_student(kind, layer_scale_init_value=0.5)
    plain.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"4 of its parameters.*layer_scale_init_value=None"):
        OURS[kind].from_pretrained(tmp_path, layer_scale_init_value=0.5)
    for weights in (plain.state_dict(), weights_in(tmp_path)):
        for strict in (True, False):
            with pytest.raises(ValueError, match=r"4 of its parameters.*layer_scale_init_value=None"):
                scaled.load_state_dict(weights, strict=strict)
    assert OURS[kind].from_pretrained(tmp_path, layer_scale_init_value=None).has_layer_scale is False


@KINDS
def test_a_state_dict_of_only_the_heads_needs_no_gamma(tiny_student, kind):
    model, other = (tiny_student(kind, seed=seed, layer_scale_init_value=0.5) for seed in (0, 1))
    heads = {name: tensor for name, tensor in other.state_dict().items() if "classifier" in name}
    model.load_state_dict(heads, strict=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in heads.items())


@KINDS
def test_an_unfolded_model_is_never_published(tiny_student, tmp_path, monkeypatch, kind):
    published = []
    monkeypatch.setattr(PreTrainedModel, "push_to_hub", lambda model, *where, **how: published.append(model))
    model = tiny_student(kind, layer_scale_init_value=0.5)
    with pytest.raises(ValueError, match="fold_layer_scale=True"):
        model.save_pretrained(tmp_path / "refused", push_to_hub=True)
    with pytest.raises(ValueError, match="fold_layer_scale=True"):
        model.push_to_hub("someone/something", fold_layer_scale=False)
    assert not published and not (tmp_path / "refused").exists()
    model.push_to_hub("someone/something")
    assert len(published) == 1 and not published[0].has_layer_scale
    assert_near(outputs_of(published[0]).logits, outputs_of(model).logits)
    plain = tiny_student(kind)
    plain.push_to_hub("someone/something")
    assert published[1] is plain


@KINDS
def test_saving_with_push_to_hub_and_folding_publishes_the_folded_model(tiny_student, tmp_path, monkeypatch, kind):
    saved = []
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda model, *where, **how: saved.append((model, how)))
    tiny_student(kind, layer_scale_init_value=0.5).save_pretrained(
        tmp_path, push_to_hub=True, fold_layer_scale=True, repo_id="someone/something"
    )
    [(model, how)] = saved
    assert not model.has_layer_scale
    assert how["push_to_hub"] is True and how["repo_id"] == "someone/something"


@KINDS
def test_half_precision_is_kept_in_files_and_when_folding(tiny_student, tmp_path, kind):
    model = tiny_student(kind, layer_scale_init_value=0.5).to(torch.bfloat16)
    model.save_pretrained(tmp_path, fold_layer_scale=True)
    assert {tensor.dtype for tensor in weights_in(tmp_path).values()} == {torch.bfloat16}
    assert OURS[kind].from_pretrained(tmp_path).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------- auto
# classes

# Program that reports which classes the auto class returns before and after registration, and whether they can be
# trained. The saved models are in sys.argv[1].
AUTO_PROGRAM = """
import json, sys
from pathlib import Path
import torch
import transformers
from transformers import AutoModelForImageClassification as Auto
import hf_deit.models.modeling_deit

room = Path(sys.argv[1])
tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 32, "patch_size": 8, "num_labels": 3}
transformers.DeiTForImageClassification(transformers.DeiTConfig(**tiny)).save_pretrained(room / "one_head")

def classes():
    found = {}
    for folder in ("distilled", "plain", "one_head", "stock_distilled"):
        model, info = Auto.from_pretrained(room / folder, output_loading_info=True)
        found[folder] = [type(model).__module__, type(model).__name__,
                         sorted(info["missing_keys"]), sorted(info["unexpected_keys"])]
    return found

before = classes()
hf_deit.register_auto_classes()
after = classes()
hf_deit.register_auto_classes()  # a second time changes nothing
again = classes()
trained = {}
for config in (transformers.DeiTConfig(**tiny, architectures=["DeiTForImageClassificationWithTeacher"]),
               transformers.ViTConfig(**tiny)):
    model = Auto.from_config(config).train()
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.backward()
    trained[config.model_type] = [type(model).__module__, all(
        parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())]
scaled = Auto.from_pretrained(room / "scaled").eval()
pixel_values = torch.load(room / "pixel_values.pt")
with torch.no_grad():
    logits = scaled(pixel_values).logits
scaled.save_pretrained(room / "scaled_again")
scaled.save_pretrained(room / "scaled_folded", fold_layer_scale=True)
backbone = type(transformers.AutoModel.from_pretrained(room / "distilled")).__module__
print(json.dumps({"before": before, "after": after, "again": again, "trained": trained, "logits": logits.tolist(),
                  "drop_path": scaled.deit.layers[1].drop_path.drop_prob, "backbone": backbone}))
"""


@pytest.fixture(scope="module")
def auto(tiny_student, tmp_path_factory):
    """Return the report of a new process on the auto class, before and after registration."""
    room = tmp_path_factory.mktemp("auto")
    for kind in OURS:
        tiny_student(kind).save_pretrained(room / kind)
    scaled = tiny_student("distilled", layer_scale_init_value=0.5, drop_path_rate=0.1)
    scaled.save_pretrained(room / "scaled")
    stock_config = transformers.DeiTConfig.from_dict(tiny_student("distilled").config.to_dict())
    transformers.DeiTForImageClassificationWithTeacher(stock_config).save_pretrained(room / "stock_distilled")
    torch.save(images_for(scaled), room / "pixel_values.pt")
    return SimpleNamespace(room=room, scaled=scaled, **report_of(AUTO_PROGRAM, room))


def test_importing_the_package_does_not_change_the_auto_classes(auto):
    assert all(module.startswith("transformers.") for module, *_ in auto.before.values())


def test_after_registration_the_auto_class_returns_our_classes_except_for_one_headed_deit(auto):
    ours = "hf_deit.models.modeling_deit"
    assert auto.after["distilled"] == [ours, "DeiTForImageClassificationWithTeacher", [], []]
    assert auto.after["stock_distilled"] == [ours, "DeiTForImageClassificationWithTeacher", [], []]
    assert auto.after["plain"] == [ours, "ViTForImageClassification", [], []]
    assert auto.after["one_head"] == [
        "transformers.models.deit.modeling_deit",
        "DeiTForImageClassification",
        [],
        [],
    ]
    assert auto.again == auto.after
    assert auto.backbone.startswith("transformers.")  # AutoModel is not changed


def test_after_registration_a_stock_configuration_gives_a_trainable_model(auto):
    assert auto.trained == {
        "deit": ["hf_deit.models.modeling_deit", True],
        "vit": ["hf_deit.models.modeling_deit", True],
    }


def test_a_registered_model_keeps_layer_scale_and_drop_path_and_folds(auto):
    expected = outputs_of(auto.scaled).logits
    assert_near(torch.tensor(auto.logits), expected)
    assert auto.drop_path == pytest.approx(0.1)
    for folder, scaled in (("scaled_again", True), ("scaled_folded", False)):
        loaded = OURS["distilled"].from_pretrained(auto.room / folder)
        assert loaded.has_layer_scale is scaled
        assert_near(outputs_of(loaded).logits, expected)
