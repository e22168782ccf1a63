"""What is built as a recipe says: here the kind of attention. Students: test_fine_tuning.py, test_recipe.py."""

import json

import pytest
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from hf_deit.recipes.build import choose_attention
from hf_deit.recipes.recipe import load_recipe
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


def test_a_student_without_attention_is_left_alone(arguments):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    student = ResNetForImageClassification(config)
    before = student.config._attn_implementation
    choose_attention(student, arguments(True))
    assert student.config._attn_implementation == before


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "eager"), (False, "sdpa")])
def test_a_training_by_recipe_chooses(tmp_path, bf16, chosen):
    for split in ("train", "validation"):
        for name in ("ant", "bee"):
            for number in range(4):
                file = tmp_path / "data" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(file)
    fields = {"data": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "distillation_type": "none"}
    fields |= {"preset": "tiny", "num_hidden_layers": 1, "image_size": 32, "bf16": bf16, "report_to": "none"}
    trainer = build_trainer(load_recipe({**fields, "per_device_train_batch_size": 2}, []))
    assert trainer.model.config._attn_implementation == chosen
