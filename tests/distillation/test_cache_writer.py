"""Tests of cache writing: builds that are killed, run out of disk space, are resumed or extended; damaged caches."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_deit.distillation import cache_writer
from hf_deit.distillation.cache import TeacherCache, finished_epochs
from hf_deit.distillation.cache_builder import build_teacher_cache
from hf_deit.distillation.cache_writer import merge_caches
from hf_deit.errors import TeacherCacheError
from tests.helpers import SCRIPTS, tiny
from tests.helpers.caches import RECORD_FORMATS, build, flip, tiny_teacher, tiny_views
from tests.helpers.processes import run_python

RECORD_FILES = {"epoch-00000.npy", "epoch-00001.npy", "validation.npy"}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the results of 20 builds that were killed at random moments, and of one build that was not killed."""
    folder = tmp_path_factory.mktemp("killed")
    moments = sorted(random.Random(5).sample(range(1, 160), 20))
    done = run_python(SCRIPTS / "build_caches.py", folder, folder / "results.json", *moments)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["whole"]["count"] >= max(moments)  # so every moment is within a build
    return results


def test_a_build_killed_at_any_moment_ends_with_the_same_bytes(killed):
    whole = killed["whole"]["files"]
    assert set(whole) >= RECORD_FILES
    others = {moment: result for moment, result in killed.items() if moment != "whole"}
    assert len(others) == 20
    assert {tuple(result["statuses"]) for result in others.values()} == {(-9, 0)}
    # This includes the manifest and the sidecars. No unfinished file is left.
    assert {moment: result["files"] for moment, result in others.items() if result["files"] != whole} == {}


def test_a_killed_build_computes_no_more_than_a_part_again(killed):
    part, black_view = 16, 1
    images_seen = killed["whole"]["asked"]
    again = {moment: result["asked"] - images_seen for moment, result in killed.items() if moment != "whole"}
    assert max(again.values()) <= part + black_view
    assert max(again.values()) > black_view  # some builds were killed within a part


def test_finished_records_do_not_depend_on_parts_batches_or_processes(tmp_path):
    build(tmp_path / "one", "hard")
    build(tmp_path / "two", "hard", part_records=1)
    views = tiny_views(batch_size=4, global_batch_size=20, workers=2)
    for rank in range(2):
        build_teacher_cache(
            tmp_path / "three",
            tiny_teacher(),
            views,
            RECORD_FORMATS["hard"],
            range(2),
            validation=tiny.evaluation_data(),
            share=(rank, 2),
        )
    one = files_of(tmp_path / "one")
    assert files_of(tmp_path / "two") == one
    assert files_of(tmp_path / "three") == one


def test_a_file_that_cannot_be_written_is_reported_with_its_cause(tmp_path):
    (tmp_path / "cache" / "_incomplete-manifest.json").mkdir(parents=True)
    with pytest.raises(TeacherCacheError, match=r"--out .*cache.*\(Is a directory\)"):
        build(tmp_path / "cache")


def test_extending_a_cache_does_not_change_its_files(tmp_path):
    build(tmp_path / "cache", epochs=1)
    before = files_of(tmp_path / "cache")
    assert build(tmp_path / "cache", epochs=3).epochs == 3
    after = files_of(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    build(tmp_path / "whole", epochs=3)
    assert after == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"teacher": tiny_teacher(seed=2)}, "teacher.fingerprint"),
        ({"kind": "dense"}, "layout.kind: 'hard' in the cache, 'dense' now"),
        ({"validation": None}, "validation.crop_ratio"),
        ({"views": tiny_views(tiny.training_data(44))}, "views.data.images: 43 in the cache, 44 now"),
        ({"views": tiny_views(repeats=2)}, "views.records: 42 in the cache, 84 now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_of_another_cache_is_neither_extended_nor_merged(tmp_path, other, named):
    build(tmp_path / "cache", epochs=1)
    with pytest.raises(TeacherCacheError) as extended:
        build(tmp_path / "cache", **{"epochs": 2, **other})
    assert named in str(extended.value)
    build(tmp_path / "other", **{"epochs": 2, **other})
    with pytest.raises(TeacherCacheError) as merged:
        merge_caches(tmp_path / "cache", [tmp_path / "other"])
    message = (
        str(merged.value).replace(f"in {tmp_path / 'cache'}", "in the cache").replace(f"in {tmp_path / 'other'}", "now")
    )
    assert named in message
    assert finished_epochs(tmp_path / "cache") == [0]


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TeacherCacheError, match=rf"--out {tmp_path} is not empty"):
        build(tmp_path)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


@contextlib.contextmanager
def largest_file(size):
    """Limit the size of files, so that the same calls fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def counted_teacher():
    teacher, seen = tiny_teacher(), []
    teacher.model.register_forward_hook(lambda model, pixels, logits: seen.append(len(logits)))
    return teacher, seen


def test_without_space_for_an_epoch_the_error_is_clear_and_complete_epochs_can_be_used(tmp_path):
    wide = tiny_views(tiny.training_data(300))
    folder = tmp_path / "cache"
    build(folder, "dense", epochs=1, views=wide)  # 4.9 KiB per epoch
    before = files_of(folder)
    teacher, seen = counted_teacher()
    with largest_file(4000), pytest.raises(TeacherCacheError) as error:
        build(folder, "dense", epochs=2, views=wide, teacher=teacher)
    assert [text for text in (str(folder), "num_views=1", "same command again") if text not in str(error.value)] == []
    assert seen == []  # the space is reserved before the teacher runs
    assert files_of(folder) == before
    assert TeacherCache(folder).epochs == 1
    build(folder, "dense", epochs=2, views=wide, teacher=teacher)
    build(tmp_path / "whole", "dense", epochs=2, views=wide)
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("reserves", [True, False], ids=["preallocated", "sparse"])
def test_a_disk_that_fills_up_within_an_epoch_costs_no_more_than_a_part(tmp_path, monkeypatch, reserves):
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")
    write, left = cache_writer._write_entries, [6]  # the validation is written in 2 parts, then 4 of the epoch

    def filling(path, start, places, entries):
        left[0] -= 1
        if left[0] < 0:
            write(path, start, places[:3], entries[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, start, places, entries)

    folder = tmp_path / "cache"
    with monkeypatch.context() as context:
        context.setattr(cache_writer, "_write_entries", filling)
        with pytest.raises(TeacherCacheError, match=f"{folder}.*same command again"):
            build(folder, "dense", epochs=1, views=tiny_views(tiny.training_data(300)), part_records=16)
    teacher, seen = counted_teacher()
    build(folder, "dense", epochs=1, views=tiny_views(tiny.training_data(300)), teacher=teacher, part_records=16)
    assert sum(seen) == 300 - 4 * 16
    build(tmp_path / "whole", "dense", epochs=1, views=tiny_views(tiny.training_data(300)))
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_progress_of_other_batches_is_not_continued(tmp_path):
    folder, wide = tmp_path / "cache", tiny_views(tiny.training_data(300))
    interrupted(folder, wide)
    teacher, seen = counted_teacher()
    build(folder, "dense", epochs=1, views=replace(wide, batch_size=4), teacher=teacher)
    assert sum(seen) == 300
    build(tmp_path / "whole", "dense", epochs=1, views=replace(wide, batch_size=4))
    # Only this file is compared, because the validation was built in other batches, in which results may be rounded
    # differently.
    assert files_of(folder)["epoch-00000.npy"] == files_of(tmp_path / "whole")["epoch-00000.npy"]
    assert files_of(folder).keys() == files_of(tmp_path / "whole").keys()


@pytest.mark.parametrize("damage", ["cut off", "header", "gone", "progress"])
def test_unfinished_files_that_are_damaged_are_computed_again(tmp_path, damage):
    folder, wide = tmp_path / "cache", tiny_views(tiny.training_data(300))
    interrupted(folder, wide)
    path = folder / "_incomplete-epoch-00000.npy"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        flip(path if damage == "header" else folder / "_incomplete-epoch-00000.progress.json", 20)
    teacher, seen = counted_teacher()
    build(folder, "dense", epochs=1, views=wide, teacher=teacher)
    assert sum(seen) == 300
    build(tmp_path / "whole", "dense", epochs=1, views=wide)
    assert files_of(folder) == files_of(tmp_path / "whole")


def interrupted(folder, views):
    """Leave a build that has stored the validation and 32 views of the first epoch."""
    network = tiny.conv_teacher()
    seen = []

    def forward(module, pixels):
        seen.append(len(pixels[0]))
        if sum(seen) > 1 + 22 + 32:
            raise KeyboardInterrupt

    network.register_forward_pre_hook(forward)
    with pytest.raises(KeyboardInterrupt):
        build(folder, "dense", epochs=1, views=views, teacher=tiny_teacher(network=network), part_records=16)
    assert json.loads((folder / "_incomplete-epoch-00000.progress.json").read_text())["batches"] == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "cache"
    build(folder, "dense")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def test_one_flipped_bit_anywhere_is_refused_with_the_name_of_the_file(copy):
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 3, len(content) // 2, len(content) - 2):
            flip(path, place)
            with pytest.raises(TeacherCacheError) as error:
                TeacherCache(copy)
            assert str(path) in str(error.value), (path, place)
            path.write_bytes(content)
    assert TeacherCache(copy).epochs == 2


@pytest.mark.parametrize("name", ["epoch-00001.npy", "validation.npy", "epoch-00000.json", "manifest.json"])
def test_a_file_cut_off_is_refused_by_name(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] if name.endswith("npy") else path.read_bytes()[:-7])
    with pytest.raises(TeacherCacheError) as error:
        TeacherCache(copy)
    assert str(path) in str(error.value)


def test_swapped_manifests_and_swapped_epochs_are_refused(copy, tmp_path):
    build(tmp_path / "other", "dense", teacher=tiny_teacher(seed=2))
    manifest = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes((tmp_path / "other" / "manifest.json").read_bytes())
    with pytest.raises(TeacherCacheError, match="epoch-00000.npy is from another epoch.* another cache"):
        TeacherCache(copy)
    (copy / "manifest.json").write_bytes(manifest)
    first, second = (copy / f"epoch-0000{number}.npy" for number in range(2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(TeacherCacheError, match="epoch-00000.npy is damaged"):
        TeacherCache(copy)


def test_epochs_swapped_together_with_their_sidecars_are_refused(copy):
    for ending in ("npy", "json"):
        first, second = (copy / f"epoch-0000{number}.{ending}" for number in range(2))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    with pytest.raises(TeacherCacheError, match="epoch-00000"):
        TeacherCache(copy)


def test_a_cache_without_its_first_epoch_is_refused_and_can_be_completed(copy):
    before = files_of(copy)
    (copy / "epoch-00000.json").unlink()
    with pytest.raises(TeacherCacheError, match="no complete epoch"):
        TeacherCache(copy)
    build(copy, "dense")
    assert files_of(copy) == before


def test_no_cache_and_another_version_are_refused(tmp_path, copy, monkeypatch):
    with pytest.raises(TeacherCacheError, match=r"nowhere.*cache-teacher"):
        TeacherCache(tmp_path / "nowhere")
    monkeypatch.setattr("hf_deit.distillation.cache.FORMAT_VERSION", 2)
    with pytest.raises(TeacherCacheError, match="version 1.* version 2"):
        TeacherCache(copy)


def test_a_large_cache_is_checked_when_it_is_first_read(copy, monkeypatch):
    monkeypatch.setattr("hf_deit.distillation.cache.CHECKED_AT_ONCE", 100)
    flip(copy / "epoch-00001.npy", 300)
    cache = TeacherCache(copy)
    assert np.isfinite(cache.outputs(0, [3, 1])["teacher_logits"].numpy()).all()
    with pytest.raises(TeacherCacheError, match="epoch-00001.npy is damaged"):
        cache.outputs(1, [0])
