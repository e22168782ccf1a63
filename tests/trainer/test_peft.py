"""LoRA adapters of peft on a distilled student: trained with a teacher, saved, resumed, reloaded and merged."""

import copy

import peft
import pytest
import torch
import transformers
from PIL import Image

from hf_deit.cli import main
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import UserError
from hf_deit.hub.model_card import MARKER
from hf_deit.trainer.checkpoints import newest_checkpoint
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import arguments, conv_teacher, evaluation_data, logged, pixels_of, student, training_data

HEADS = ("logits", "cls_logits", "distillation_logits")


def with_adapters():
    torch.manual_seed(2)
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["cls_classifier", "distillation_classifier"],
    )
    return peft.get_peft_model(student(), config)


def trainer_of(model, folder, **changes):
    fields = {"distillation_type": "soft", "learning_rate": 1e-2, "max_steps": 6, **changes}
    return DistillationTrainer(
        model,
        conv_teacher(),
        arguments(folder, **fields),
        train_dataset=training_data(),
        eval_dataset=evaluation_data(),
    )


@torch.no_grad()
def logits_of(model):
    pixels = torch.from_numpy(pixels_of(5, seed=4, size=16)).permute(0, 3, 1, 2) / 255
    outputs = model.eval()(pixel_values=pixels)
    return torch.stack([outputs[name] for name in HEADS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the trainer of a run of 6 steps with a checkpoint after step 3, its initial weights, and its folder."""
    folder = tmp_path_factory.mktemp("lora")
    model = with_adapters()
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_of(model, folder, save_strategy="steps", save_steps=3, save_total_limit=2)
    trainer.train()
    trainer.save_model()
    return trainer, before, folder


def test_adapters_and_heads_are_trained_and_the_base_is_not(trained):
    trainer, before, _ = trained
    for name in ("loss", "cls_loss", "distillation_loss"):
        values = logged(trainer, name)
        assert len(values) == 6
        assert all(value > 0 for value in values)
    changed = {name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, before[name])}
    trainable = {name for name in before if "lora_" in name or "modules_to_save.default" in name}
    assert len(trainable) == 2 * 2 * 2 + 2 * 2
    assert changed == trainable
    assert trainer.evaluate()["eval_distillation_accuracy"] >= 0


def test_only_adapters_are_saved_and_they_load_on_a_new_base(trained):
    trainer, _, folder = trained
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    assert not list(folder.rglob("training_args.bin"))
    assert not torch.equal(logits_of(student()), logits_of(trainer.model))
    reloaded = peft.PeftModel.from_pretrained(student(), folder)
    # The weights are the same. Products with few rows round by where the weights lie in memory.
    torch.testing.assert_close(logits_of(reloaded), logits_of(trainer.model), rtol=0, atol=1e-6)
    weights = trainer.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in reloaded.state_dict().items())


def test_the_merged_model_is_loaded_by_stock_transformers(trained, tmp_path):
    _, _, folder = trained
    adapted = peft.PeftModel.from_pretrained(student(), folder)
    expected = logits_of(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    trained[0].processing_class.save_pretrained(tmp_path / "merged")  # as README.md describes
    picture = Image.fromarray(pixels_of(1)[0])
    assert len(transformers.pipeline("image-classification", model=str(tmp_path / "merged"))(picture)) == 4
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert type(stock) is transformers.DeiTForImageClassificationWithTeacher
    torch.testing.assert_close(logits_of(stock), expected, rtol=0, atol=1e-5)


def test_a_resumed_training_of_adapters_ends_with_the_same_weights(trained, tmp_path):
    uninterrupted, _, _ = trained
    stopped = trainer_of(with_adapters(), tmp_path, save_strategy="steps", save_steps=3)
    stopped.add_callback(_StopAfter(3))
    stopped.train()
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"
    resumed = trainer_of(with_adapters(), tmp_path, save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    for name, weight in uninterrupted.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_push_of_adapters_is_refused_before_a_repository_is_created(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError("the Hub was accessed")

    monkeypatch.setattr("transformers.trainer.hf_api", refuse)
    with pytest.raises(UserError, match="merge_and_unload"):
        trainer_of(with_adapters(), tmp_path, push_to_hub=True, hub_model_id="me/x")


@pytest.mark.parametrize(
    "command",
    [
        ["card", "FOLDER"],
        ["push", "FOLDER", "me/x", "--dry-run"],
        ["space", "FOLDER", "OUT"],
        ["predict", "FOLDER", "photo.jpg"],
        ["export", "FOLDER", "OUT.onnx", "--format", "onnx"],
        ["export", "FOLDER", "OUT.pth", "--format", "timm"],
        ["convert", "FOLDER", "OUT"],
    ],
    ids=lambda command: "-".join(command[:1] + command[3:]),
)
def test_a_folder_of_adapters_is_refused_with_instructions_to_merge_them(trained, tmp_path, capsys, command):
    folder = trained[2]
    command = [word.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path / "out")) for word in command]
    assert main(command) == 2
    assert "merge_and_unload" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_teacher_folder_with_adapters_is_refused(trained):
    with pytest.raises(UserError, match="merge_and_unload"):
        Teacher.from_pretrained(trained[2])


def test_the_placeholder_card_that_peft_writes_is_replaced(trained):
    trainer, _, folder = trained
    trainer.save_model()
    assert "Model Card for Model ID" in (folder / "README.md").read_text()
    trainer.create_model_card(license="mit")
    card = (folder / "README.md").read_text()
    assert MARKER in card and "Model ID" not in card and "license: mit" in card


class _StopAfter(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
