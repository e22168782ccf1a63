"""Regression tests of unusual inputs to all parts of the package.

Each of these inputs was once accepted silently, or ended in a traceback that did not name the cause.
"""

import argparse
import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import SwinConfig, SwinForImageClassification

from hf_deit import files, losses
from hf_deit.data import sources
from hf_deit.data.loading import load_splits
from hf_deit.distillation import factories
from hf_deit.errors import DataError
from hf_deit.fingerprints import changed_fields
from hf_deit.models.weights import load_weights
from hf_deit.trainer import checkpoints, optim


# checkpoints
@pytest.mark.parametrize("before", [None, {}])
def test_a_recipe_argument_that_becomes_a_mapping_is_reported_as_changed(before):
    saved = {"recipe": {"lr_scheduler_kwargs": before}}
    present = {"recipe": {"lr_scheduler_kwargs": {"num_cycles": 2}}}
    assert changed_fields(saved, present) == {"recipe.lr_scheduler_kwargs.num_cycles": (None, 2)}
    assert changed_fields(present, saved) == {"recipe.lr_scheduler_kwargs.num_cycles": (2, None)}


def test_the_previous_checkpoint_is_restored_if_the_run_was_killed_between_the_two_renames(tmp_path, monkeypatch):
    for folder in (tmp_path / "checkpoint-1", tmp_path / f"{checkpoints.STAGING_PREFIX}checkpoint" / "checkpoint-1"):
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / "model.safetensors").write_text("w")
    replace, calls = os.replace, []

    def killed_at_second_rename(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed_at_second_rename)
        files.publish_folder(
            tmp_path / f"{checkpoints.STAGING_PREFIX}checkpoint" / "checkpoint-1", tmp_path / "checkpoint-1"
        )
    checkpoints.remove_staging(tmp_path)
    assert checkpoints.newest_checkpoint(tmp_path).name == "checkpoint-1"


# data
def picture(seed=0, side=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def dataset_of(labels, names=("cat", "dog"), pictures=None):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    pictures = pictures or [picture(number) for number in range(len(labels))]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def saved(dataset, path):
    dataset.save_to_disk(str(path))
    return str(path)


def test_validation_with_other_class_names_or_another_order_is_refused(tmp_path):
    splits = {"train": dataset_of([0, 1]), "validation": dataset_of([0, 1], names=("dog", "cat"))}
    with pytest.raises(DataError):
        load_splits(saved(datasets.DatasetDict(splits), tmp_path / "set"))


def test_a_missing_label_is_refused(tmp_path):
    with pytest.raises(DataError):
        load_splits(saved(dataset_of([0, 1, None, 0, 1]), tmp_path / "set"))


def test_a_missing_image_is_named():
    source = sources.Source([None], [0], ("a", "b"), "", "the set")
    with pytest.raises(DataError, match="Image 0 of the set"):
        source.image(0)


def test_an_unlabelled_test_split_leaves_the_training_split_usable(tmp_path):
    splits = {"train": dataset_of([0, 1] * 3), "test": dataset_of([-1, -1])}
    train, validation = load_splits(saved(datasets.DatasetDict(splits), tmp_path / "set"))
    assert (len(train), len(validation)) == (4, 2)


@pytest.mark.parametrize("when", ["scan", "read"])
def test_an_image_too_large_for_pillow_is_named(tmp_path, monkeypatch, when):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "0.png")
    picture(0, 40).save(tmp_path / "a" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow raises an error above twice this number
    source = sources.Source([str(tmp_path / "a" / "large.png")], [0], ("a", "b"), "", "the set")
    with pytest.raises(DataError, match="large.png"):
        load_splits(str(tmp_path), broken_images="raise") if when == "scan" else source.image(0)


def test_an_image_whose_plugin_raises_a_runtime_error_is_named(tmp_path):
    """Use an AVIF file with a valid header and broken data, for which the plugin of Pillow raises a RuntimeError."""
    picture(0, 64).save(tmp_path / "x.avif")
    content = (tmp_path / "x.avif").read_bytes()
    start = content.index(b"mdat") + 4
    (tmp_path / "x.avif").write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(DataError, match="x.avif"):
        sources.Source([str(tmp_path / "x.avif")], [0], ("a", "b"), "", "the set").image(0)


def test_a_png_whose_text_chunk_is_too_large_is_named_when_the_folder_is_scanned(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("x", "y" * 2**21, zip=True)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "0.png")
    picture().save(tmp_path / "a" / "text.png", pnginfo=info)
    with pytest.raises(DataError, match="text.png"):
        load_splits(str(tmp_path), broken_images="raise")


def test_hidden_files_and_folders_within_a_class_are_ignored(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / ".ipynb_checkpoints").mkdir(parents=True)
        for number in range(2):
            picture(number).save(tmp_path / name / f"{number}.png")
        picture(0).save(tmp_path / name / ".ipynb_checkpoints" / "0-checkpoint.png")
    train, validation = load_splits(str(tmp_path))
    assert len(train) + len(validation) == 4


def test_a_macos_resource_file_does_not_stop_training(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            picture(number).save(tmp_path / name / f"{number}.png")
        (tmp_path / name / "._0.png").write_bytes(b"\0\5\x16\7")
    load_splits(str(tmp_path))


def test_the_fingerprint_changes_with_an_image_of_the_same_file_size(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            picture(number).save(tmp_path / name / f"{number}.bmp")
    before = load_splits(str(tmp_path))[0].fingerprint
    for number in range(2):
        picture(9).save(tmp_path / "a" / f"{number}.bmp")
    assert load_splits(str(tmp_path))[0].fingerprint != before


# losses
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("cross_entropy", torch.int32),
        ("cross_entropy", torch.int16),
        ("binary_cross_entropy", torch.int32),
        ("binary_cross_entropy", torch.uint8),
    ],
)
def test_class_indices_may_have_any_integer_type(dtype, kind):
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    torch.testing.assert_close(losses.base_loss(logits, labels.to(dtype), kind), losses.base_loss(logits, labels, kind))


@pytest.mark.parametrize("smoothing", [-0.1, 1.5])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing={smoothing}"):
        losses.base_loss(torch.randn(3, 4), torch.tensor([0, 3, 1]), label_smoothing=smoothing)


def test_an_unknown_problem_type_is_refused():
    with pytest.raises(ValueError, match="problem_type='multilabel'"):
        losses.supervised_loss(torch.randn(3, 4), torch.tensor([0, 3, 1]), "multilabel")


# network factories
@pytest.mark.parametrize("factory", ["hf_deit.networks:FACTORY_NORMALIZATION", "torch.nn:Linear", ".relative:x"])
def test_a_factory_that_cannot_be_called_without_arguments_is_refused_and_named(factory):
    with pytest.raises(ValueError, match=factory):
        factories.build_network(factory)


def test_official_checkpoints_that_contain_their_arguments_are_loaded(tmp_path):
    source, network = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"model": source.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")
    assert torch.equal(network.weight, source.weight)


def test_a_file_without_a_dictionary_is_refused_and_named(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth.*list"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pth")


def test_a_network_that_consists_only_of_its_classifier_is_refused():
    with pytest.raises(ValueError):
        factories.replace_classifier(nn.Linear(3, 4), 5)


# optimizers
def test_relative_position_biases_have_no_weight_decay():
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=2)
    decayed = optim.decay_parameter_names(SwinForImageClassification(config))
    assert not [name for name in decayed if "relative_position_bias" in name]
