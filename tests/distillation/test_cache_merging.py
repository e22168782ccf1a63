"""Tests of merging: caches that were built in several folders are compared before anything is written."""

import shutil

import pytest

from hf_deit.distillation.cache import TeacherCache, finished_epochs
from hf_deit.distillation.cache_builder import build_teacher_cache
from hf_deit.distillation.cache_writer import merge_caches
from hf_deit.errors import TeacherCacheError
from tests.helpers import tiny
from tests.helpers.caches import RECORD_FORMATS, build, flip, tiny_teacher, tiny_views


def part_of(folder, epochs, teacher=None):
    build_teacher_cache(
        folder,
        teacher or tiny_teacher(),
        tiny_views(),
        RECORD_FORMATS["hard"],
        epochs,
        validation=tiny.evaluation_data(),
    )


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_of_several_machines_are_merged_to_the_complete_cache(tmp_path):
    part_of(tmp_path / "first", [0, 2])
    part_of(tmp_path / "second", [1, 2])
    with pytest.raises(TeacherCacheError, match="epoch of views 0.*merge-teacher-caches"):
        part_of(tmp_path / "third", [1])
        TeacherCache(tmp_path / "third")
    assert merge_caches(tmp_path / "all", [tmp_path / "first", tmp_path / "second"]) == [0, 1, 2]
    build(tmp_path / "whole", epochs=3)
    assert files_of(tmp_path / "all") == files_of(tmp_path / "whole")


def test_a_damaged_part_is_not_merged(tmp_path):
    part_of(tmp_path / "first", [0])
    part_of(tmp_path / "second", [1])
    flip(tmp_path / "second" / "epoch-00001.npy", 140)
    with pytest.raises(TeacherCacheError, match="epoch-00001.npy is damaged"):
        merge_caches(tmp_path / "all", [tmp_path / "first", tmp_path / "second"])
    assert finished_epochs(tmp_path / "all") == [0]
    assert not list((tmp_path / "all").glob("*epoch-00001*.npy"))


@pytest.mark.parametrize("damage", ["content", "length", "sidecar"])
def test_a_file_that_is_damaged_in_one_part_is_taken_from_another(tmp_path, damage):
    part_of(tmp_path / "first", [0, 1])
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    file = tmp_path / "first" / "epoch-00001.npy"
    if damage == "length":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        flip(file if damage == "content" else file.with_suffix(".json"), 140)
    assert merge_caches(tmp_path / "all", [tmp_path / "first", tmp_path / "second"]) == [0, 1]
    assert files_of(tmp_path / "all") == files_of(tmp_path / "second")


@pytest.mark.parametrize("is_damaged", [False, True], ids=["complete", "damaged"])
def test_an_unfinished_epoch_is_replaced_only_by_an_undamaged_copy(tmp_path, is_damaged):
    folder, whole = tmp_path / "folder", tmp_path / "whole"
    part_of(folder, [0])
    part_of(whole, [0, 1])
    unfinished = [folder / f"_incomplete-epoch-00001.{ending}" for ending in ("npy", "progress.json")]
    for path in unfinished:
        path.write_bytes(b"unfinished")
    if is_damaged:
        flip(whole / "epoch-00001.npy", 140)
        with pytest.raises(TeacherCacheError, match="epoch-00001.npy"):
            merge_caches(folder, [whole])
        assert [path.read_bytes() for path in unfinished] == [b"unfinished"] * 2
        assert finished_epochs(folder) == [0]
    else:
        assert merge_caches(folder, [whole]) == [0, 1]
        assert files_of(folder) == files_of(whole)


def test_a_part_of_another_cache_is_refused_before_anything_is_written(tmp_path):
    part_of(tmp_path / "first", [0])
    part_of(tmp_path / "second", [1], teacher=tiny_teacher(seed=2))
    with pytest.raises(TeacherCacheError) as error:
        merge_caches(tmp_path / "all", [tmp_path / "first", tmp_path / "second"])
    assert "teacher.fingerprint" in str(error.value)
    assert f"in {tmp_path / 'first'}, " in str(error.value)
    assert f"in {tmp_path / 'second'}" in str(error.value)
    assert not (tmp_path / "all").exists()


def test_missing_epochs_are_named_when_merging_and_when_reading(tmp_path, capsys, caplog):
    from hf_deit.cli import main

    part_of(tmp_path / "first", [0, 2])
    part_of(tmp_path / "second", [4])
    assert main(["merge-teacher-caches", str(tmp_path / "all"), str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "1, 3 are missing" in printed and "only the first 1." in printed
    assert TeacherCache(tmp_path / "all").epochs == 1
    assert "lacks epoch(s) of views 1, 3: only the first 1 of its 3 complete epochs" in caplog.text
