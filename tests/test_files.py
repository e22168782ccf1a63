"""Tests of output paths: invalid paths are refused before the work with exit code 2, and nothing is left behind."""

import os

import pytest
import torch

from hf_deit import files
from hf_deit.cli import main
from hf_deit.errors import UserError
from hf_deit.files import check_place, new_folder
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers import tiny
from tests.helpers.timm_weights import timm_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.student().save_pretrained(folder)
    DeiTImageProcessor.for_image_size((16, 16)).save_pretrained(folder)
    return folder


COMMANDS = {
    "convert": ["convert", "MODEL", "OUT"],
    "space": ["space", "MODEL", "OUT"],
    "onnx": ["export", "MODEL", "OUT.onnx", "--format", "onnx"],
    "torch": ["export", "MODEL", "OUT.pt2", "--format", "torch"],
    "timm": ["export", "MODEL", "OUT.pth", "--format", "timm"],
}


@pytest.mark.parametrize("name", list(COMMANDS))
@pytest.mark.parametrize("kind", ["below a file", "not writable"])
def test_an_output_path_that_cannot_be_created_is_refused(model, tmp_path, capsys, monkeypatch, name, kind):
    place = tmp_path / "place"
    if kind == "below a file":
        place.write_text("mine")
    else:
        place.mkdir()
        # The tests may run as root, who can write everywhere.
        monkeypatch.setattr(files.os, "access", lambda path, mode: path != place)
    out = str(place / "deep" / "out")
    assert main([word.replace("MODEL", str(model)).replace("OUT", out) for word in COMMANDS[name]]) == 2
    message = capsys.readouterr().err
    assert f"{place} is a file" in message if kind == "below a file" else f"{place} is not writable" in message
    assert [path.name for path in tmp_path.rglob("*")] == ["place"]


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    torch.save(timm_weights(), tmp_path / "w.pth")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(files.os.path, "ismount", lambda path: os.fspath(path) == os.fspath(tmp_path / "disk"))
    with pytest.raises(UserError, match="disk is a mount point"):
        new_folder(tmp_path / "disk")
    assert new_folder(tmp_path / "disk" / "in") == tmp_path / "disk" / "in"


def test_checking_a_path_creates_nothing(tmp_path):
    check_place(tmp_path / "a" / "b")
    new_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_system_ends_with_exit_code_2_and_names_the_path(model, tmp_path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr("hf_deit.models.convert.staged_folder", full)
    assert main(["convert", str(model), str(tmp_path / "out")]) == 2
    assert f"hf-deit convert: {tmp_path / 'out'}: No space left on device" in capsys.readouterr().err
