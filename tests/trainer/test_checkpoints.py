"""Checkpoint folders: complete or absent wherever a run is killed, found by number, and compared field by field."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from hf_deit.errors import ResumeError
from hf_deit.files import STAGING_PREFIX, publish_folder, staged_files, staged_folder, write_json
from hf_deit.fingerprints import changed_fields
from hf_deit.trainer.checkpoints import RUN_FILE, check_same_run, checkpoints, newest_checkpoint, remove_staging


class Killed(BaseException):
    """Stands for a kill. Like KeyboardInterrupt and SystemExit, it is not caught by `except Exception`."""


def write(folder, files):
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Path(folder)


def read(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in Path(folder).rglob("*") if path.is_file()}


def write_checkpoint(output_dir, name, weights="model.safetensors", state="{}"):
    files = {"trainer_state.json": state, **({weights: "weights"} if weights else {})}
    return write(output_dir / name, files)


def kill_at(monkeypatch, name, call):
    """Raise Killed in `os.<name>` from the given call on (counted from 1); earlier calls work."""
    original, calls = getattr(os, name), []

    def wrapped(*args, **kwargs):
        calls.append(args)
        if len(calls) >= call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, wrapped)


# ---- a folder appears completely or not at all ----


def test_a_finished_folder_is_renamed_to_its_target(tmp_path):
    staging = write(tmp_path / f"{STAGING_PREFIX}new", {"a": "1", "deep/er/b": "2"})
    publish_folder(staging, tmp_path / "checkpoint-1")
    assert read(tmp_path) == {"checkpoint-1/a": "1", "checkpoint-1/deep/er/b": "2"}
    assert os.listdir(tmp_path) == ["checkpoint-1"]


def test_an_existing_folder_is_replaced_and_none_of_its_files_remain(tmp_path):
    write(tmp_path / "checkpoint-1", {"a": "old", "only old": "old", "deep/b": "old"})
    staging = write(tmp_path / f"{STAGING_PREFIX}new", {"a": "new", "c": "new"})
    publish_folder(staging, tmp_path / "checkpoint-1")
    assert read(tmp_path) == {"checkpoint-1/a": "new", "checkpoint-1/c": "new"}
    assert os.listdir(tmp_path) == ["checkpoint-1"]


def test_leftovers_of_an_earlier_kill_do_not_prevent_publishing(tmp_path):
    write(tmp_path / f"{STAGING_PREFIX}old-checkpoint-1", {"a": "older"})
    write(tmp_path / "checkpoint-1", {"a": "old"})
    publish_folder(write(tmp_path / f"{STAGING_PREFIX}new", {"a": "new"}), tmp_path / "checkpoint-1")
    assert read(tmp_path) == {"checkpoint-1/a": "new"}


def test_all_files_are_synced_to_disk_before_the_folder_is_renamed(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("rename"))
    staging = write(tmp_path / f"{STAGING_PREFIX}new", {"a": "1", "b": "2", "deep/c": "3"})
    publish_folder(staging, tmp_path / "checkpoint-1")
    # Three files and two folders.
    assert events == ["sync"] * 5 + ["rename"]


@pytest.mark.parametrize(("call", "number"), [("fsync", 1), ("fsync", 3), ("replace", 1), ("replace", 2)])
@pytest.mark.parametrize("existed", [False, True])
def test_wherever_a_run_is_killed_a_checkpoint_is_complete_or_absent(tmp_path, monkeypatch, call, number, existed):
    write_checkpoint(tmp_path, "checkpoint-1")
    new = {"trainer_state.json": "new", "model.safetensors": "new", "optimizer.pt": "new"}
    old = dict.fromkeys(new, "old")
    if existed:
        write(tmp_path / "checkpoint-2", old)
    staging = write(tmp_path / f"{STAGING_PREFIX}checkpoint" / "checkpoint-2", new)
    with monkeypatch.context() as patch:
        kill_at(patch, call, number)
        with contextlib.suppress(Killed):
            publish_folder(staging, tmp_path / "checkpoint-2")
    for path in checkpoints(tmp_path):
        assert path.name == "checkpoint-1" or read(path) in (old, new)
    remove_staging(tmp_path)
    for path in checkpoints(tmp_path):
        assert path.name == "checkpoint-1" or read(path) in (old, new)
    assert newest_checkpoint(tmp_path)
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


def test_a_failure_before_the_rename_leaves_the_old_folder_unchanged(tmp_path, monkeypatch):
    write(tmp_path / "checkpoint-1", {"a": "old"})
    staging = write(tmp_path / f"{STAGING_PREFIX}new", {"a": "new"})

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish_folder(staging, tmp_path / "checkpoint-1")
    assert read(tmp_path / "checkpoint-1") == {"a": "old"}


# ---- files that are replaced together ----


def test_staged_files_replace_files_of_the_same_name_and_no_others(tmp_path):
    target = write(tmp_path / "model", {"config.json": "old", "model.safetensors": "old", "README.md": "kept"})
    with staged_files(target) as staging:
        assert os.listdir(staging) == []
        write(staging, {"config.json": "new", "model.safetensors": "new", "more.json": "new"})
        assert read(target)["config.json"] == "old"
    assert read(target) == {
        "config.json": "new",
        "model.safetensors": "new",
        "more.json": "new",
        "README.md": "kept",
    }
    assert not list(target.glob(f"{STAGING_PREFIX}*"))


def test_staged_files_create_a_missing_folder(tmp_path):
    with staged_files(tmp_path / "deep" / "er") as staging:
        write(staging, {"a": "1"})
    assert read(tmp_path / "deep" / "er") == {"a": "1"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Killed])
def test_an_exception_while_writing_leaves_the_old_files_unchanged(tmp_path, error):
    target = write(tmp_path / "model", {"config.json": "old", "model.safetensors": "old"})
    with pytest.raises(error), staged_files(target) as staging:
        write(staging, {"config.json": "half"})
        raise error
    assert read(target) == {"config.json": "old", "model.safetensors": "old"}
    assert sorted(os.listdir(target)) == ["config.json", "model.safetensors"]


def test_files_staged_by_a_killed_run_are_not_published_by_the_next(tmp_path):
    target = write(tmp_path / "model", {f"{STAGING_PREFIX}save-x/config.json": "half", "config.json": "old"})
    with staged_files(target) as staging:
        write(staging, {"model.safetensors": "new"})
    assert read(target)["config.json"] == "old"
    remove_staging(target)
    assert read(target) == {"config.json": "old", "model.safetensors": "new"}


def test_two_writers_into_one_folder_do_not_publish_each_others_files(tmp_path):
    with staged_files(tmp_path) as one, staged_files(tmp_path) as other:
        write(one, {"a": "one"})
        write(other, {"b": "other"})
        assert one != other
    assert read(tmp_path) == {"a": "one", "b": "other"}


def test_a_staged_folder_appears_completely_with_the_usual_permissions_and_several_can_stage_it(tmp_path):
    (tmp_path / "plain").mkdir()
    with staged_folder(tmp_path / "new") as one:
        with pytest.raises(RuntimeError), staged_folder(tmp_path / "new") as other:
            write(other, {"half": "x"})
            raise RuntimeError
        write(one, {"a": "1"})
        assert not (tmp_path / "new").exists()
    assert read(tmp_path / "new") == {"a": "1"}
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["new", "plain"]


def test_json_is_written_completely_and_readable(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"b": 1, "a": Path("x"), "c": {"d": None}})
    assert json.loads(path.read_text()) == {"a": "x", "b": 1, "c": {"d": None}}
    with monkeypatch.context() as patch:
        kill_at(patch, "replace", 1)
        with pytest.raises(Killed):
            write_json(path, {"b": 2})
    assert json.loads(path.read_text())["b"] == 1
    remove_staging(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"]


def test_only_unfinished_files_and_folders_are_removed(tmp_path):
    write(tmp_path, {"a": "1", "checkpoint-1/b": "2", f"notes{STAGING_PREFIX}x": "3"})
    write(tmp_path, {f"{STAGING_PREFIX}file": "x", f"{STAGING_PREFIX}checkpoint/checkpoint-2/c": "x"})
    remove_staging(tmp_path)
    assert read(tmp_path) == {"a": "1", "checkpoint-1/b": "2", f"notes{STAGING_PREFIX}x": "3"}
    remove_staging(tmp_path / "not there")


# ---- which checkpoint is the newest ----


def test_the_newest_is_the_one_with_the_largest_number(tmp_path):
    for number in (9, 10, 2, 100, 99):
        write_checkpoint(tmp_path, f"checkpoint-{number}")
    os.utime(tmp_path / "checkpoint-2")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 9, 10, 99, 100)]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"])
def test_single_file_sharded_and_adapter_checkpoints_are_complete(tmp_path, weights):
    write_checkpoint(tmp_path, "checkpoint-1", weights)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"


def test_incomplete_checkpoints_are_ignored(tmp_path):
    write_checkpoint(tmp_path, "checkpoint-1")
    write_checkpoint(tmp_path, "checkpoint-2", weights=None)
    write(tmp_path / "checkpoint-3", {"model.safetensors": "weights"})
    (tmp_path / "checkpoint-4").mkdir()
    write(tmp_path, {"checkpoint-5": "a file"})
    (tmp_path / "checkpoint-6" / "model.safetensors").mkdir(parents=True)
    write(tmp_path / "checkpoint-6", {"trainer_state.json": "{}"})
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-9-old",
        "my-checkpoint-9",
        "checkpoint-",
        "checkpoint--9",
        "checkpoint-9.5",
        "checkpoint-best",
        "Checkpoint-9",
        "checkpoint_9",
        f"{STAGING_PREFIX}checkpoint-9",
        f"{STAGING_PREFIX}old-checkpoint-9",
    ],
)
def test_folders_with_other_names_are_not_checkpoints(tmp_path, name):
    write_checkpoint(tmp_path, "checkpoint-1")
    write_checkpoint(tmp_path, name)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"


@pytest.mark.parametrize("folder", [".", "not there"])
def test_a_folder_without_checkpoints_is_named_in_the_error(tmp_path, folder):
    with pytest.raises(ResumeError, match="(?i)no complete checkpoint") as error:
        newest_checkpoint(tmp_path / folder)
    assert str(tmp_path / folder) in str(error.value)
    assert "resume" in str(error.value)


# ---- is it the same run ----


def run_of(**fields):
    run = {
        "model": {"hidden_size": 32, "id2label": {0: "cat", 1: "dog"}},
        "recipe": {"learning_rate": 5e-4, "lr_scheduler_type": "cosine"},
        "data": {"fingerprint": "abc", "classes": ["cat", "dog"], "augmentation": {"crop_scale": (0.08, 1.0)}},
        "teacher": {"fingerprint": None},
    }
    for path, value in fields.items():
        *parents, name = path.split("__")
        branch = run
        for parent in parents:
            branch = branch[parent]
        branch[name] = value
    return run


def test_a_run_equals_itself_and_its_written_description():
    assert changed_fields(run_of(), run_of()) == {}
    assert changed_fields(json.loads(json.dumps(run_of())), run_of()) == {}


@pytest.mark.parametrize(
    ("field", "value", "was"),
    [
        ("model.hidden_size", 64, 32),
        ("model.id2label.1", "cow", "dog"),
        ("recipe.learning_rate", 1e-3, 5e-4),
        ("data.fingerprint", "xyz", "abc"),
        ("data.classes", ["cat"], ["cat", "dog"]),
        ("data.augmentation.crop_scale", [0.5, 1.0], [0.08, 1.0]),
        ("teacher.fingerprint", "t", None),
    ],
)
def test_each_differing_field_is_returned_with_both_values(field, value, was):
    present = run_of()
    *parents, name = field.split(".")
    branch = present
    for parent in parents:
        branch = branch[parent]
    branch[int(name) if name.isdigit() else name] = value
    assert changed_fields(run_of(), present) == {field: (was, value)}
    assert changed_fields(present, run_of()) == {field: (value, was)}


def test_fields_that_one_side_lacks_are_ignored_in_the_recipe_and_compared_elsewhere():
    more = run_of(recipe__new_argument=3, model__new_field=4, data__seed=5, teacher__new=6)
    assert changed_fields(run_of(), more) == {
        "model.new_field": (None, 4),
        "data.seed": (None, 5),
        "teacher.new": (None, 6),
    }
    assert changed_fields(more, run_of()) == {
        "model.new_field": (4, None),
        "data.seed": (5, None),
        "teacher.new": (6, None),
    }


def test_all_differing_fields_are_returned():
    present = run_of(model__hidden_size=64, recipe__learning_rate=1.0, data__fingerprint="xyz")
    assert set(changed_fields(run_of(), present)) == {"model.hidden_size", "recipe.learning_rate", "data.fingerprint"}


def test_values_without_a_json_form_are_compared_as_text():
    assert changed_fields(run_of(recipe__path=Path("a")), run_of(recipe__path="a")) == {}
    assert changed_fields(run_of(recipe__path=Path("a")), run_of(recipe__path=Path("b"))) == {"recipe.path": ("a", "b")}


def test_the_same_run_may_resume(tmp_path):
    write_json(tmp_path / RUN_FILE, run_of())
    check_same_run(tmp_path, run_of())


def test_another_run_is_refused_with_each_differing_field_and_both_values(tmp_path):
    write_json(tmp_path / RUN_FILE, run_of())
    with pytest.raises(ResumeError) as error:
        check_same_run(tmp_path, run_of(recipe__learning_rate=0.25, teacher__fingerprint="xyz"))
    message = str(error.value)
    assert str(tmp_path) in message
    for part in ("recipe.learning_rate", "0.0005", "0.25", "teacher.fingerprint", "'xyz'", "output_dir"):
        assert part in message
    assert "hidden_size" not in message


def test_a_stock_checkpoint_without_a_run_file_is_not_checked(tmp_path):
    check_same_run(write_checkpoint(tmp_path, "checkpoint-1"), run_of())
