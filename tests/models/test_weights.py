"""Tests of reading weights: supported files are read, others are refused, and no code in a file is run."""

import argparse
import hashlib
import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_deit.errors import UserError
from hf_deit.models.weights import read_weights

WEIGHTS = {"cls_token": torch.arange(4.0).reshape(1, 1, 4), "norm.weight": torch.ones(4)}
AVERAGED = {name: weight + 10 for name, weight in WEIGHTS.items()}


class Hostile:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def training_checkpoint(**more):
    """Return a training checkpoint with all entries that the official code saves."""
    options = argparse.Namespace(lr=5e-4, output_dir=pathlib.PosixPath("/tmp/run"), data=pathlib.PurePosixPath("a/b"))
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": WEIGHTS, "model_ema": AVERAGED, "optimizer": optimizer, "epoch": 7, "args": options, **more}


def saved(content, path):
    torch.save(content, path)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_training_checkpoint_with_namespace_and_paths_is_read(tmp_path):
    path = saved(training_checkpoint(), tmp_path / "checkpoint.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # plain torch refuses it
    assert_same(read_weights(path), WEIGHTS)


def test_the_averaged_weights_are_read_on_request(tmp_path):
    assert_same(read_weights(saved(training_checkpoint(), tmp_path / "c.pth"), "model_ema"), AVERAGED)
    assert_same(read_weights(saved({"state_dict_ema": AVERAGED, "state_dict": WEIGHTS}, tmp_path / "t.pth")), WEIGHTS)
    assert_same(read_weights(saved({"model_ema": AVERAGED}, tmp_path / "only.pth")), AVERAGED)
    both = saved({"state_dict": AVERAGED, "model": WEIGHTS}, tmp_path / "both.pth")
    assert_same(read_weights(both), WEIGHTS)  # the official name takes precedence


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_are_read_with_the_module_names_of_all_python_versions(tmp_path, module):
    # The pickle is edited by hand, because one version of Python writes only one of the two module names.
    path = tmp_path / "c.pth"
    torch.save({"model": WEIGHTS, "args": "PLACE"}, path)
    place = pickle.dumps("PLACE", protocol=2)[2:-1]  # without the protocol and the stop opcode
    posix = f"c{module}\nPosixPath\nX\x03\x00\x00\x00a/b\x85R".encode("latin-1")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    start = place[: place.index(b"PLACE") + 5]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            changed = content.replace(start, posix) if name.endswith("data.pkl") else content
            assert not name.endswith("data.pkl") or changed != content
            archive.writestr(name, changed)
    assert_same(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["model", "args", "inside the namespace"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, where, legacy):
    target = tmp_path / "made by the pickle"
    content = training_checkpoint()
    if where == "inside the namespace":
        content["args"].evil = Hostile(target)
    else:
        content[where] = Hostile(target)
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.pth .*\w+\.mkdir .*nothing was run"):
        read_weights(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # without the protection, the pickle does run


def test_classes_that_are_allowed_for_one_file_are_not_allowed_afterwards(tmp_path):
    path = saved(training_checkpoint(), tmp_path / "c.pth")
    read_weights(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    big = {"cls_token": torch.randn(1, 1, 4096)}
    torch.save(big, path) if suffix == "pth" else save_file(big, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"w\.{suffix} .*ownload it again"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (bytes(range(256)) * 8, "not a checkpoint"),
        (pickle.dumps([1, 2, 3]), "holds no weights|not a checkpoint"),
    ],
)
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content, message):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_archives_other_than_state_dicts_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", logits=np.zeros(3))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name, part in (("a.npz", "not a checkpoint"), ("script.pth", "not a checkpoint"), ("module.pth", "Linear")):
        with pytest.raises(UserError, match=rf"{name} .*{part}"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "which", "message"),
    [
        ({"epoch": 3, "args": 1}, None, "model or state_dict.*'epoch', 'args'"),
        ({"model": WEIGHTS, "epoch": 1}, "model_ema", "no weights under model_ema"),
        (WEIGHTS, "model_ema", "no model_ema"),
        (WEIGHTS, "best", "weights='best'.*model, model_ema"),
        ({}, None, "holds no weights"),
        (torch.zeros(2), None, "holds a Tensor"),
        ({"cls_token": torch.zeros(3, dtype=torch.int8)}, None, "cls_token"),
    ],
)
def test_a_file_without_the_requested_weights_is_refused(tmp_path, content, which, message):
    with pytest.raises(UserError, match=message):
        read_weights(saved(content, tmp_path / "w.pth"), which)


def test_a_path_without_one_file_of_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path)
    saved(WEIGHTS, tmp_path / "a.pth"), saved(WEIGHTS, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"2 files .*\(a\.pth, b\.pth\)"):
        read_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    wrapped = {prefix + name: weight for name, weight in WEIGHTS.items()}
    assert_same(read_weights(saved({"model": wrapped}, tmp_path / "w.pth")), WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_kept(tmp_path, dtype):
    weights = {name: weight.to(dtype) for name, weight in WEIGHTS.items()}
    save_file(weights, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert {weight.dtype for weight in found.values()} == {dtype}
    assert_same(found, weights)


def test_the_kind_of_file_is_recognised_by_its_content(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.pth")
    assert_same(read_weights(tmp_path / "w.pth"), WEIGHTS)


def write_shards(folder):
    names = list(WEIGHTS)
    for number, name in enumerate(names):
        save_file({name: WEIGHTS[name]}, folder / f"model-{number}.safetensors")
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index, weight_map


def test_shards_are_combined(tmp_path):
    index, _ = write_shards(tmp_path)
    assert_same(read_weights(tmp_path), WEIGHTS)
    assert_same(read_weights(index), WEIGHTS)


def test_invalid_shards_are_refused(tmp_path):
    index, weight_map = write_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {"cls_token": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match=r"'\.\./elsewhere\.safetensors'"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": weight_map | {"pos_embed": "model-0.safetensors"}}))
    with pytest.raises(UserError, match="names: pos_embed"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": weight_map | {"pos_embed": "model-9.safetensors"}}))
    with pytest.raises(UserError, match="model-9"):
        read_weights(index)
    index.write_text("[1]")
    with pytest.raises(UserError, match=r"index\.json .*weight_map"):
        read_weights(index)


def test_the_hash_in_an_official_file_name_is_verified(tmp_path):
    path = saved(WEIGHTS, tmp_path / "w.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = tmp_path / f"deit_tiny_distilled_patch16_224-{digest[:8]}.pth"
    path.rename(good)
    assert_same(read_weights(good), WEIGHTS)
    wrong = tmp_path / "deit_tiny_distilled_patch16_224-b40b3cf7.pth"
    good.rename(wrong)
    with pytest.raises(UserError, match=f"SHA-256.*b40b3cf7.*{digest[:8]}"):
        read_weights(wrong)
    wrong.rename(tmp_path / "my_deit-20240101.pth")  # eight digits in another file name are not a hash
    assert_same(read_weights(tmp_path / "my_deit-20240101.pth"), WEIGHTS)
