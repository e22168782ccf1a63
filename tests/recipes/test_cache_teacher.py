"""`hf-deit cache-teacher`, and trainings that use its caches, on the command line."""

import hashlib
import json

import pytest
from safetensors.torch import load_file

from hf_deit.distillation.cache import finished_epochs
from hf_deit.recipes.cache_teacher import _published_teacher_name, cache_folder
from hf_deit.recipes.reading import load_recipe
from tests.helpers.runs import FACTORY, QUIET, STUDENT, TEACHER_LABELS, hf_deit, refused, results, write_splits

TEACHER = ("--teacher", FACTORY, "--teacher_labels", *TEACHER_LABELS)
# 24 images in batches of 10: 2 steps per epoch, and 4 images remain.
RUN = (*STUDENT, *QUIET, "--num_train_epochs", 2, "--per_device_train_batch_size", 10, "--save_strategy", "no")
MIXED = ("--mixup_alpha", 0.8, "--cutmix_alpha", 1, "--auto_augment", "randaugment", "--repeated_augmentation", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


def cache(data, out, *fields):
    return hf_deit("cache-teacher", "--data", data, "--out", out, *TEACHER, *RUN, *fields)


def train(data, out, *fields):
    return hf_deit("train", "--data", data, "--output_dir", out, *RUN, *fields)


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_training_with_a_cache_equals_one_with_its_teacher(data, tmp_path, capsys, kind):
    fields = ("--distillation_type", kind, *MIXED)
    assert cache(data, tmp_path / "cache", *fields) == 0
    printed = capsys.readouterr().out
    assert "hf-deit train --teacher_cache" in printed
    assert ("bytes per view", {"hard": "2", "soft": "12"}[kind]) in [
        tuple(row.rsplit(None, 1)) for row in printed.splitlines() if " " in row
    ]
    assert train(data, tmp_path / "cached", "--teacher_cache", tmp_path / "cache", *fields) == 0
    assert train(data, tmp_path / "live", *TEACHER, *fields) == 0
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")
    ours, theirs = results(tmp_path / "cached"), results(tmp_path / "live")
    for name in ("eval_teacher_accuracy", "eval_teacher_agreement", "eval_loss"):
        assert ours[name] == theirs[name]
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["teacher_accuracy"] == theirs["eval_teacher_accuracy"]


def test_more_views_extend_a_cache_and_parts_are_merged(data, tmp_path, capsys):
    assert cache(data, tmp_path / "whole", "--views", 1) == 0
    assert cache(data, tmp_path / "whole", "--epochs", 3) == 0
    assert cache(data, tmp_path / "a", "--views", 1) == 0
    assert cache(data, tmp_path / "b", "--views", 2, "--first_view", 1) == 0
    assert "merge-teacher-caches" in capsys.readouterr().out
    assert hf_deit("merge-teacher-caches", tmp_path / "all", tmp_path / "b", tmp_path / "a") == 0
    assert "0, 1, 2" in capsys.readouterr().out
    content = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == content


def test_verifying_on_the_command_line_requires_the_teacher_too(data, tmp_path, capsys, caplog):
    assert cache(data, tmp_path / "cache") == 0
    verified = ("--teacher_cache", tmp_path / "cache", "--verify_teacher_cache", 8)
    caplog.set_level("INFO")
    assert train(data, tmp_path / "out", *verified, *TEACHER) == 0
    assert [line for line in caplog.messages if "verified" in line and "8 " in line and "100.00 %" in line]
    message = refused(capsys, "train", "--data", data, "--output_dir", tmp_path / "no", *RUN, *verified)
    assert "verify_teacher_cache=8" in message


def test_the_card_of_a_run_with_a_cache_names_the_teacher_as_that_of_a_live_run_does(data, tmp_path):
    top = ("--kind", "soft", "--top_k", 2, "--distillation_tau", 2)
    assert cache(data, tmp_path / "cache", *top, "--distillation_type", "soft") == 0
    fields = ("--distillation_type", "soft", "--distillation_tau", 2)
    assert train(data, tmp_path / "cached", "--teacher_cache", tmp_path / "cache", *fields) == 0
    assert train(data, tmp_path / "live", *TEACHER, *fields) == 0
    ours, theirs = (results(tmp_path / name)["run"] for name in ("cached", "live"))
    assert {**ours["teacher"], "name": None} == {**theirs["teacher"], "name": None}
    assert ours["teacher"]["name"] == FACTORY
    assert ours["stored_answers"] == {"kind": "top_k", "top_k": 2, "tau": 2.0, "dtype": "float32", "view_epochs": 2}
    assert theirs["stored_answers"] is None
    pages = [(tmp_path / name / "README.md").read_text().splitlines() for name in ("cached", "live")]
    ours, theirs = ([row for row in page if row.startswith("| teacher |")] for page in pages)
    assert ours == theirs
    cached, live = ([row for row in page if row.startswith("| teacher outputs |")] for page in pages)
    assert live == [] and len(cached) == 1
    for value in ("2 largest logits", "float32", "τ = 2.0", "2 epochs of views"):
        assert value in cached[0]


def test_a_cache_without_teacher_facts_is_read_and_extended(data, tmp_path):
    assert cache(data, tmp_path / "cache", "--views", 1) == 0
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    del manifest["teacher_facts"], manifest["checksum"]
    manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    assert cache(data, tmp_path / "cache", "--views", 2) == 0
    assert train(data, tmp_path / "out", "--teacher_cache", tmp_path / "cache") == 0
    described = results(tmp_path / "out")["run"]["teacher"]
    assert described == {"name": None, "class": "ConvTeacher", "parameters": None}


@pytest.mark.parametrize("teacher", ["folder", "empty"])
def test_a_missing_teacher_is_not_needed_with_its_cache(data, tmp_path, capsys, caplog, teacher):
    assert cache(data, tmp_path / "cache") == 0
    given = ("--teacher", tmp_path / "gone" if teacher == "folder" else "", "--teacher_cache", tmp_path / "cache")
    assert train(data, tmp_path / "out", *given) == 0
    warned = any("gone" in line and "fingerprint" in line for line in caplog.messages)
    assert warned == (teacher == "folder")
    assert len(weights(tmp_path / "out")) > 0
    verified = ("train", "--data", data, "--output_dir", tmp_path / "no", *RUN, *given, "--verify_teacher_cache", 4)
    assert {"folder": "gone", "empty": "verify_teacher_cache=4"}[teacher] in refused(capsys, *verified)
    assert "distillation_type='hard'" in refused(
        capsys, "train", "--data", data, "--output_dir", tmp_path / "no", *RUN, "--teacher", "", "--teacher_cache", ""
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--seed", 1], ["views.data.seed: 42 in the cache, 1 now"]),
        (["--image_size", 24], ["views.data.augmentation.view_size", "[16, 16]", "[24, 24]"]),
        (["--evaluation_crop_ratio", 0.9], ["validation.crop_ratio: 0.875 in the cache, 0.9 now"]),
        (["--flip_probability", 0.1], ["views.data.augmentation.flip_probability: 0.5 in the cache, 0.1 now"]),
        (["--broken_images", "raise"], ["views.data.broken_images"]),
        (["--teacher", FACTORY, "--teacher_labels", "bee", "cat", "dog", "ant"], ["teacher.fingerprint"]),
        (["--distillation_type", "soft"], ["kind='hard'"]),
    ],
    ids=lambda value: value[0],
)
def test_a_changed_field_of_the_recipe_is_refused_with_its_name(data, tmp_path, capsys, fields, named):
    assert cache(data, tmp_path / "cache", "--views", 1) == 0
    command = ("train", "--data", data, "--output_dir", tmp_path / "out", *RUN, "--teacher_cache", tmp_path / "cache")
    message = refused(capsys, *command, *fields)
    assert [text for text in named if text not in message] == []


def test_a_changed_data_folder_is_refused_with_the_field_that_differs(tmp_path, capsys):
    data = write_splits(tmp_path / "data")
    assert cache(data, tmp_path / "cache", "--views", 1) == 0
    command = ("train", "--data", data, "--output_dir", tmp_path / "out", *RUN, "--teacher_cache", tmp_path / "cache")
    image = next((data / "train" / "cat").iterdir())
    added = image.with_name("added.png")
    added.write_bytes(image.read_bytes())
    message = refused(capsys, *command)
    assert "views.data.images: 24 in the cache, 25 now" in message
    added.unlink()
    image.rename(image.with_name("zz.png"))  # the order changes: the file is now the last of its class
    assert "views.data.fingerprint" in refused(capsys, *command)
    (data / "train" / "cat" / "zz.png").rename(image)
    assert hf_deit(*command, "--max_steps", 1) == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--top_k", 2], ["top_k=2", "kind='hard'"]),
        (["--kind", "soft", "--top_k", 3], ["top_k=3", "3 classes"]),
        (["--distillation_type", "none"], ["kind='none'"]),
        (["--views", 0], ["views=0"]),
        (["--streaming", "true", "--max_steps", 2], ["streaming"]),
        (["--teacher", "no.where:at_all"], ["no.where:at_all"]),
    ],
    ids=lambda value: " ".join(map(str, value[:2])),
)
def test_fields_that_cannot_be_cached_are_refused_with_their_names(data, tmp_path, capsys, fields, named):
    command = ("cache-teacher", "--data", data, "--out", tmp_path / "cache", *TEACHER, *RUN)
    message = refused(capsys, *command, *fields)
    assert [text for text in named if text not in message] == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("a_file", "a_file"),
        ("a_file/below/it", "a_file"),
        ("x" * 300, "File name too long"),
        ("", "empty"),
    ],
    ids=["file", "below a file", "long", "empty"],
)
def test_an_out_that_cannot_be_written_is_refused_before_teacher_and_images(tmp_path, capsys, out, named):
    (tmp_path / "a_file").write_text("mine")
    out = tmp_path / out if out else out
    gone = ("--data", tmp_path / "no_images", "--teacher", "no.where:at_all")
    message = refused(capsys, "cache-teacher", *gone, "--out", out, *RUN)
    assert named in message
    assert "--out" in message
    assert (tmp_path / "a_file").read_text() == "mine"


def test_an_odd_batch_size_is_refused_before_the_teacher_is_loaded(data, tmp_path, capsys):
    odd = ("--teacher", "no.where:at_all", "--per_device_train_batch_size", 5, "--mixup_alpha", 0.8)
    message = refused(capsys, "cache-teacher", "--data", data, "--out", tmp_path / "cache", *RUN, *odd)
    assert "per_device_train_batch_size=5" in message


def test_cache_fields_of_a_training_are_refused_when_a_cache_is_built(data, tmp_path, capsys):
    for field in ("--teacher_cache=x", "--verify_teacher_cache=3"):
        message = refused(capsys, "cache-teacher", "--data", data, "--out", tmp_path / "cache", *TEACHER, *RUN, field)
        assert field.split("=")[0] in message and "--out" in message


def test_first_view_without_views_builds_up_to_the_last_epoch_of_the_training(data, tmp_path, capsys):
    assert cache(data, tmp_path / "cache", "--first_view", 1) == 0
    assert finished_epochs(tmp_path / "cache") == [1]  # of 0 and 1
    assert "A part" in capsys.readouterr().out
    past = ("cache-teacher", "--data", data, "--out", tmp_path / "no", *TEACHER, *RUN, "--first_view", 2)
    message = refused(capsys, *past)
    assert "first_view=2" in message and "0 to 1" in message
    assert not (tmp_path / "no").exists()
    assert cache(data, tmp_path / "cache", "--views", 1) == 0
    capsys.readouterr()
    assert cache(data, tmp_path / "cache", "--first_view", 1, "--views", 2) == 0
    assert finished_epochs(tmp_path / "cache") == [0, 1, 2]
    assert "hf-deit train --teacher_cache" in capsys.readouterr().out  # the cache is complete, not a part


def test_a_baseline_with_another_seed_reports_the_teachers_accuracy_from_the_cache(data, tmp_path):
    assert cache(data, tmp_path / "cache", "--views", 1) == 0
    baseline = ("--distillation_type", "none", "--seed", 5)
    assert train(data, tmp_path / "cached", "--teacher_cache", tmp_path / "cache", *baseline) == 0
    assert train(data, tmp_path / "plain", *baseline) == 0
    assert weights(tmp_path / "cached") == weights(tmp_path / "plain")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert results(tmp_path / "cached")["eval_teacher_accuracy"] == manifest["teacher_accuracy"]


def test_a_broken_image_that_stops_a_build_leaves_no_unfinished_records(tmp_path, capsys):
    data = write_splits(tmp_path / "data")
    image = sorted((data / "train" / "cat").iterdir())[0]
    image.write_bytes(image.read_bytes()[:60])  # its header is still that of an image
    command = ("cache-teacher", "--data", data, "--out", tmp_path / "cache", *TEACHER, *RUN, "--broken_images", "raise")
    assert "cannot be read" in refused(capsys, *command)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "manifest.json",
        "validation.json",
        "validation.npy",
    ]


def test_the_folder_of_a_shared_cache_depends_on_what_its_outputs_depend_on_only(tmp_path):
    fields = {"data": str(tmp_path), "output_dir": str(tmp_path / "out"), "image_size": 16, "mixup_alpha": 0.0}

    def folder(teacher="fingerprint", **changes):
        return cache_folder(tmp_path, load_recipe({**fields, **changes}, []), teacher)

    others = {
        "data": str(tmp_path / "other"),
        "validation_share": 0.2,
        "evaluation_crop_ratio": 1.0,
        "broken_images": "raise",
        "label_column": ["label"],
        "view_size": [24, 24],
        "crop_scale": [0.5, 1.0],
        "erasing_probability": 0.1,
        "mixup_alpha": 0.8,
        "repeated_augmentation": 3,
        "per_device_train_batch_size": 4,
        "seed": 7,
        "num_views": 2,
        "num_train_epochs": 9,
        "teacher": "fingerprint of another",
        "teacher_image_size": [8, 8],
        "teacher_dtype": "bfloat16",
    }
    assert len({folder(), *(folder(**{name: value}) for name, value in others.items())}) == 1 + len(others)
    same = {
        "distillation_type": "soft",
        "distillation_tau": 2.0,
        "learning_rate": 0.1,
        "hidden_size": 48,
        "per_device_eval_batch_size": 3,
        "teacher_cache": "elsewhere",
        "mix_probability": 0.5,  # has no effect without mixup and cutmix
    }
    assert {folder(**{name: value}) for name, value in same.items()} == {folder()}
    assert folder(num_views=2, num_train_epochs=9) == folder(num_views=2)


def test_a_recipe_without_a_teacher_is_refused(data, tmp_path, capsys):
    message = refused(capsys, "cache-teacher", "--data", data, "--out", tmp_path / "cache", *RUN)
    assert "--teacher" in message


def test_a_folder_is_never_called_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    assert _published_teacher_name("teacher") == "./teacher"
    assert _published_teacher_name("owner/teacher") == "owner/teacher"
