"""Tests of fine-tuning: image sizes, the distillation token and frozen parts, compared with naive computations."""

import json

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinForImageClassification
from transformers import ViTForImageClassification as StockViT

from hf_deit.errors import ResumeError, UserError
from hf_deit.models.fine_tuning import distilled_from_plain, resize_positions, set_trainable, with_image_size
from hf_deit.recipes.arguments import ModelArguments
from hf_deit.recipes.build import build_student
from tests.helpers.tiny import arguments, conv_teacher, training_data
from tests.helpers.tiny import student as tiny

KINDS = pytest.mark.parametrize("kind", ["distilled", "plain"])
NAMES = ("ant", "bee", "cat")


def logits_of(model, height, width, **kwargs):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(torch.randn(2, 3, height, width, generator=generator), **kwargs).logits


# ---- positions ----


@KINDS
def test_with_its_own_image_size_a_model_is_unchanged(tiny_student, kind):
    model = tiny_student(kind)
    assert torch.equal(logits_of(with_image_size(model, (32, 32)), 32, 32), logits_of(model, 32, 32))


@KINDS
@pytest.mark.parametrize("size", [(64, 64), (16, 40), (24, 32)])
def test_positions_are_interpolated_bicubically_and_keep_their_mean_norm(tiny_student, kind, size):
    model = tiny_student(kind)
    tokens = 2 if kind == "distilled" else 1
    old = model.base_model.embeddings.position_embeddings.detach()
    resized = with_image_size(model, size)
    new = resized.base_model.embeddings.position_embeddings.detach()
    assert torch.equal(new[:, :tokens], old[:, :tokens])
    grid = old[0, tokens:].T.reshape(1, 32, 4, 4)
    naive = torch.nn.functional.interpolate(grid, size=(size[0] // 8, size[1] // 8), mode="bicubic")[0].flatten(1).T
    patches = new[0, tokens:]
    # The directions are those of the bicubic interpolation, and the mean length is that of the old positions.
    torch.testing.assert_close(
        torch.nn.functional.normalize(patches, dim=-1), torch.nn.functional.normalize(naive, dim=-1), atol=1e-5, rtol=0
    )
    assert patches.norm(dim=-1).mean().item() == pytest.approx(old[0, tokens:].norm(dim=-1).mean().item(), rel=1e-5)
    assert logits_of(resized, *size).shape == (2, 3)
    others = {name: weight for name, weight in resized.state_dict().items() if "position" not in name}
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in others.items())


def test_constant_positions_stay_constant_at_any_grid():
    positions = torch.full((1, 1 + 12, 8), 0.5)
    resized = resize_positions(positions, 1, (3, 4), (7, 5))
    torch.testing.assert_close(resized, torch.full((1, 1 + 35, 8), 0.5))


def test_a_resized_model_saves_and_loads_in_stock_transformers(tiny_student, tmp_path):
    model = with_image_size(tiny_student("plain"), (48, 32))
    model.save_pretrained(tmp_path)
    stock = StockViT.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(stock, 48, 32), logits_of(model, 48, 32), atol=1e-5, rtol=0)


def test_layer_scale_and_drop_path_survive_a_change_of_size(tiny_student):
    model = tiny_student("distilled", layer_scale_init_value=1e-2)
    resized = with_image_size(model, (64, 64), drop_path_rate=0.2)
    assert resized.config.drop_path_rate == 0.2
    gammas = {name: weight for name, weight in model.state_dict().items() if "layer_scale" in name}
    assert gammas
    assert all(torch.equal(resized.state_dict()[name], gamma) for name, gamma in gammas.items())


def test_an_image_size_that_is_not_a_multiple_of_the_patch_size_is_refused(tiny_student):
    with pytest.raises(ValueError, match=r"patch_size=8.*image_size=\(30, 32\)"):
        with_image_size(tiny_student("plain"), (30, 32))


# ---- a distillation token ----


def test_a_copied_token_makes_both_heads_equal(tiny_student):
    model = distilled_from_plain(tiny_student("plain"), "copy")
    with torch.no_grad():
        output = model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(output.cls_logits, output.distillation_logits)


def test_a_copied_token_equals_a_second_class_token_in_the_plain_model(tiny_student):
    """Compare with the layers of the plain model, run on a sequence with two class tokens."""
    plain = tiny_student("plain")
    distilled = distilled_from_plain(plain, "copy")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden = plain.vit.embeddings(pixels)
        hidden = torch.cat([hidden[:, :1], hidden], dim=1)
        for layer in plain.vit.layers:
            hidden = layer(hidden)
        expected = plain.classifier(plain.vit.layernorm(hidden)[:, 0])
        torch.testing.assert_close(distilled(pixels).logits, expected, atol=1e-5, rtol=0)


def test_a_new_token_keeps_all_old_weights_and_has_a_position_of_zeros(tiny_student):
    plain = tiny_student("plain")
    distilled = distilled_from_plain(plain, "new")
    own, old = distilled.state_dict(), plain.state_dict()
    assert own["deit.embeddings.position_embeddings"][:, 1].abs().max() == 0
    assert torch.equal(
        own["deit.embeddings.position_embeddings"][:, 2:], old["vit.embeddings.position_embeddings"][:, 1:]
    )
    assert 0.005 < own["deit.embeddings.distillation_token"].std() < 0.04
    for name, weight in old.items():
        if name.startswith("vit.") and "position" not in name:
            assert torch.equal(own["deit." + name[4:]], weight)
    for head in ("cls_classifier", "distillation_classifier"):
        assert torch.equal(own[f"{head}.weight"], old["classifier.weight"])
    own["cls_classifier.weight"].add_(1)
    assert not torch.equal(own["cls_classifier.weight"], old["classifier.weight"])  # a copy, not the same memory
    assert distilled.config.id2label == plain.config.id2label
    assert distilled.config.model_type == "deit"


def test_an_unknown_initialization_is_refused(tiny_student):
    with pytest.raises(ValueError, match="initialization='zero'.*copy, new"):
        distilled_from_plain(tiny_student("plain"), "zero")


# ---- trainable parts ----


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_head_trains_only_the_heads(tiny_student):
    model = tiny_student("distilled")
    count = set_trainable(model, "head")
    assert learning(model) == {
        f"{head}_classifier.{part}" for head in ("cls", "distillation") for part in ("weight", "bias")
    }
    assert count == 2 * (32 * 3 + 3)


def test_attention_freezes_the_mlps_norms_and_patch_embeddings(tiny_student):
    model = tiny_student("distilled")
    set_trainable(model, "attention")
    projections = {
        f"deit.layers.{i}.attention.{p}_proj.{w}" for i in (0, 1) for p in "qkvo" for w in ("weight", "bias")
    }
    heads = {f"{head}_classifier.{part}" for head in ("cls", "distillation") for part in ("weight", "bias")}
    tokens = {f"deit.embeddings.{token}_token" for token in ("cls", "distillation")}
    assert learning(model) == projections | heads | tokens


def test_students_of_other_families_are_frozen_by_the_names_of_their_parameters():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    model = SwinForImageClassification(config)
    set_trainable(model, "attention")
    assert all("attention" in name or name.startswith("classifier") for name in learning(model))
    assert any("attention" in name for name in learning(model))
    with pytest.raises(UserError, match="trainable='head'.*Sequential.*trainable='all'"):
        set_trainable(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), "head")


def test_training_changes_the_heads_and_not_the_frozen_weights(tmp_path):
    from hf_deit.trainer.trainer import DistillationTrainer

    model = tiny(drop_path_rate=0.0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    set_trainable(model, "head")
    DistillationTrainer(
        model, conv_teacher(), arguments(tmp_path, max_steps=3), train_dataset=training_data(32)
    ).train()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {f"{head}_classifier.{part}" for head in ("cls", "distillation") for part in ("weight", "bias")}


# ---- recipes ----


@pytest.fixture
def plain_folder(tiny_student, tmp_path):
    tiny_student(
        "plain", id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}
    ).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "distils", "expected"),
    [
        ({}, True, "DeiTForImageClassificationWithTeacher"),
        ({}, False, "ViTForImageClassification"),
        ({"student": "distilled"}, False, "DeiTForImageClassificationWithTeacher"),
        ({"student": "plain"}, True, "ViTForImageClassification"),
    ],
)
def test_plain_weights_get_a_distillation_token_with_a_teacher_or_on_request(plain_folder, fields, distils, expected):
    student = build_student(ModelArguments(model=plain_folder, **fields), NAMES, distils)
    assert type(student).__name__ == expected


def test_a_recipe_changes_image_size_drop_path_and_classes_together(plain_folder):
    names = ("one", "two", "three", "four", "five")
    student = build_student(ModelArguments(model=plain_folder, image_size=[48, 80], drop_path_rate=0.1), names, True)
    assert student.config.image_size == (48, 80)
    assert student.config.drop_path_rate == 0.1
    assert logits_of(student, 48, 80).shape == (2, 5)
    assert student.config.id2label == dict(enumerate(names))


def test_a_student_with_two_heads_cannot_become_a_plain_student(tiny_student, tmp_path):
    tiny_student("distilled").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="student=.?plain"):
        build_student(ModelArguments(model=str(tmp_path), student="plain"), NAMES)


def test_the_shape_of_weights_cannot_be_changed(plain_folder):
    with pytest.raises(UserError, match="hidden_size"):
        build_student(ModelArguments(model=plain_folder, hidden_size=64), NAMES)
    with pytest.raises(UserError, match="50"):
        build_student(ModelArguments(model=plain_folder, image_size=[50]), NAMES)


def test_weights_keep_the_mean_and_std_they_were_trained_with(tiny_student, tmp_path):
    from hf_deit.models.image_processing_deit import DeiTImageProcessor
    from hf_deit.recipes.build import build_processor

    imagenet = build_processor(None, (32, 32), 0.875)
    tiny_student("plain").save_pretrained(tmp_path)
    assert build_processor(str(tmp_path), (32, 32), 0.875).to_dict() == imagenet.to_dict()
    DeiTImageProcessor.for_image_size(32, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_std"] == [0.25] * 3
    built = build_processor(str(tmp_path), (48, 32), 0.75)
    assert (built.image_mean, built.image_std) == ((0.5,) * 3, (0.25,) * 3)
    assert (dict(built.size), dict(built.crop_size)) == ({"shortest_edge": 64}, {"height": 48, "width": 32})


def test_frozen_batch_norms_keep_their_running_statistics_in_training(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    set_trainable(model, "head")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    pixels = torch.randn(4, 3, 32, 32)
    model.train()
    in_training = model(pixels).logits
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    torch.testing.assert_close(in_training, model.eval()(pixels).logits)


def test_the_same_classes_in_another_order_keep_their_logits(plain_folder, tiny_student):
    own = build_student(ModelArguments(model=plain_folder), NAMES).eval()
    reordered = build_student(ModelArguments(model=plain_folder), NAMES[::-1]).eval()
    assert reordered.config.id2label == dict(enumerate(NAMES[::-1]))
    torch.testing.assert_close(logits_of(reordered, 32, 32), logits_of(own, 32, 32).flip(-1))


def test_a_run_cannot_resume_with_other_frozen_parts(tmp_path):
    from hf_deit.trainer.trainer import DistillationTrainer

    def trainer(part):
        model = tiny(drop_path_rate=0.0)
        set_trainable(model, part)
        args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        return DistillationTrainer(model, conv_teacher(), args, train_dataset=training_data(32))

    trainer("head").train()
    with pytest.raises(ResumeError, match="frozen_parameters"):
        trainer("attention").train(resume_from_checkpoint=True)
