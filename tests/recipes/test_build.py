"""Students, teachers and trainers built from the fields of a recipe. Students from weights: tests/models/test_fine_tuning.py."""

import json

import pytest
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from hf_deit.errors import RecipeError
from hf_deit.recipes.arguments import ModelArguments, TeacherArguments
from hf_deit.recipes.build import build_student, build_teacher, choose_attention
from hf_deit.recipes.reading import load_recipe
from hf_deit.recipes.train import build_trainer
from tests.helpers import tiny


@pytest.fixture
def arguments(tmp_path):
    return lambda bf16: tiny.arguments(tmp_path, bf16=bf16)


@pytest.mark.parametrize(
    ("bf16", "size", "given", "chosen"),
    [
        (True, 16, "sdpa", "eager"),
        (True, (256, 64), "sdpa", "eager"),  # 32 × 8 patches
        (True, (256, 72), "sdpa", "sdpa"),  # 288 tokens
        (False, 16, "sdpa", "sdpa"),
        (True, 16, "flex_attention", "flex_attention"),
    ],
)
def test_few_tokens_in_bf16_on_a_cpu_get_plain_attention(arguments, tmp_path, bf16, size, given, chosen):
    student = tiny.student(image_size=size)
    student.set_attn_implementation(given)
    choose_attention(student, arguments(bf16))
    assert student.config._attn_implementation == chosen
    student.save_pretrained(tmp_path / "saved")
    assert not [name for name in json.loads((tmp_path / "saved/config.json").read_text()) if "attn" in name]


def test_a_student_without_attention_is_not_changed(arguments):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    student = ResNetForImageClassification(config)
    before = student.config._attn_implementation
    choose_attention(student, arguments(True))
    assert student.config._attn_implementation == before


@pytest.fixture
def fields(tmp_path):
    """Fields of a small training."""
    for split in ("train", "validation"):
        for name in ("ant", "bee"):
            for number in range(4):
                file = tmp_path / "data" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(file)
    places = {"data": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    student = {"preset": "tiny", "num_hidden_layers": 1, "image_size": 32}
    return {**places, **student, "distillation_type": "none", "report_to": "none", "per_device_train_batch_size": 2}


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "eager"), (False, "sdpa")])
def test_a_trainer_built_from_a_recipe_has_the_fastest_attention(fields, bf16, chosen):
    trainer = build_trainer(load_recipe({**fields, "bf16": bf16}, []))
    assert trainer.model.config._attn_implementation == chosen


def test_a_trainer_does_not_change_the_recipe_it_is_built_from(fields):
    recipe = load_recipe({**fields, "load_best_model_at_end": True, "view_size": [24, 40]}, [])
    before = recipe.to_dict()
    trainer = build_trainer(recipe)
    assert trainer.args.metric_for_best_model == "accuracy"
    assert trainer.train_dataset.view_size == (24, 40)
    assert recipe.to_dict() == before
    assert before["metric_for_best_model"] is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"student": "half"}, ["student='half'", "distilled", "plain"]),
        ({"preset": None}, ["preset", "hidden_size"]),
        ({"hidden_size": 32, "num_attention_heads": 5, "preset": None}, ["num_attention_heads=5"]),
    ],
)
def test_an_invalid_student_is_refused_with_field_and_value(given, named):
    arguments = ModelArguments(**{"preset": "tiny", "num_hidden_layers": 1, **given})
    with pytest.raises(RecipeError) as refused:
        build_student(arguments, ["ant", "bee"])
    assert [text for text in named if text not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"teacher_weights": "w.pth"}, ["teacher_weights='w.pth'", "package.module:factory"]),
        ({"teacher": "a/b", "teacher_weights": "w.pth"}, ["teacher_weights='w.pth'", "teacher='a/b'"]),
        ({"teacher": "a/b", "teacher_dtype": "int8"}, ["teacher_dtype='int8'", "bfloat16"]),
    ],
)
def test_an_invalid_teacher_is_refused_with_field_and_value(given, named):
    with pytest.raises(RecipeError) as refused:
        build_teacher(TeacherArguments(**given))
    assert [text for text in named if text not in str(refused.value)] == []


@pytest.mark.parametrize(("size", "saved"), [(None, 224), (32, 32), ((32, 48), (32, 48))])
def test_a_student_from_scratch_has_the_size_of_the_recipe(size, saved):
    student = build_student(ModelArguments(preset="tiny", num_hidden_layers=1, image_size=size), ["ant", "bee"])
    assert student.config.image_size == saved
