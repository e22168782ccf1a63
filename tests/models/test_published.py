"""Tests of the short names of published checkpoints."""

import pytest
import torch

from hf_deit import load_checkpoint
from hf_deit.errors import TeacherError, UserError
from hf_deit.models.loading import load_model, published_name
from hf_deit.recipes import build
from hf_deit.recipes.arguments import ModelArguments, TeacherArguments


@pytest.mark.parametrize(
    ("short", "full"),
    [
        # The eight that the paper's authors put on the Hub.
        ("deit-tiny-distilled", "facebook/deit-tiny-distilled-patch16-224"),
        ("deit-small-distilled", "facebook/deit-small-distilled-patch16-224"),
        ("deit-base-distilled", "facebook/deit-base-distilled-patch16-224"),
        ("deit-base-distilled-384", "facebook/deit-base-distilled-patch16-384"),
        ("deit-tiny", "facebook/deit-tiny-patch16-224"),
        ("deit-small", "facebook/deit-small-patch16-224"),
        ("deit-base", "facebook/deit-base-patch16-224"),
        ("deit-base-384", "facebook/deit-base-patch16-384"),
        # names of the official code
        ("deit_tiny_distilled_patch16_224", "facebook/deit-tiny-distilled-patch16-224"),
        ("deit_base_patch16_384", "facebook/deit-base-patch16-384"),
        # the teacher of the paper, also under its name in the official code
        ("regnet-y-160", "facebook/regnet-y-160"),
        ("regnety_160", "facebook/regnet-y-160"),
        # names that are not short names are unchanged
        ("regnet-y-16", "regnet-y-16"),
        ("facebook/deit-tiny-patch16-224", "facebook/deit-tiny-patch16-224"),
        ("deit-tiny-384", "deit-tiny-384"),
        ("deit-huge", "deit-huge"),
        ("my-deit-tiny", "my-deit-tiny"),
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
    ],
)
def test_a_short_name_becomes_the_full_name_on_the_hub(short, full):
    assert published_name(short) == full


def test_an_existing_folder_takes_precedence_over_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit-tiny").mkdir()
    assert published_name("deit-tiny") == "deit-tiny"


@pytest.fixture
def cached_hub(tmp_path, monkeypatch, tiny_student):
    """Make a cache of the Hub with one tiny model under a published name, and return the model."""
    name = "facebook/deit-tiny-distilled-patch16-224"
    repo = tmp_path / f"models--{name.replace('/', '--')}"
    model = tiny_student("distilled")
    model.save_pretrained(repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    for module in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(module, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return model


def test_a_student_starts_from_a_short_name(cached_hub):
    student = build.build_student(ModelArguments(model="deit-tiny-distilled"), ["ant", "bee", "cat"])
    assert torch.equal(student.deit.embeddings.cls_token, cached_hub.deit.embeddings.cls_token)


def test_a_checkpoint_is_loaded_by_a_short_name(cached_hub):
    model = load_checkpoint("deit-tiny-distilled")
    assert torch.equal(model.deit.embeddings.cls_token, cached_hub.deit.embeddings.cls_token)


def test_a_teacher_is_loaded_by_a_short_name(cached_hub):
    teacher = build.build_teacher(TeacherArguments(teacher="deit-tiny-distilled"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.image_mean, teacher.image_std))
    with torch.no_grad():
        expected = cached_hub((pixels - mean) / std).logits
    assert torch.allclose(teacher(pixels), expected, atol=1e-5)


def test_a_short_name_of_a_teacher_is_requested_from_the_hub_under_its_full_name(cached_hub):
    with pytest.raises(TeacherError, match="facebook/regnet-y-160"):
        build.build_teacher(TeacherArguments(teacher="regnet-y-160"))


def test_a_file_in_place_of_a_folder_raises_an_error_that_names_the_command(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"0")
    with pytest.raises(UserError, match=r"w\.pth .*hf-deit convert"):
        load_model(str(tmp_path / "w.pth"))
