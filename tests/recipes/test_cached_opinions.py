"""The teacher's opinion from a training cache: that of the live teacher for validation images, the mean over views for training images."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import hf_deit as package
from hf_deit.data.batch_ops import Mixing, draw_mixes, own_share
from hf_deit.data.loading import load_splits
from hf_deit.data.sampling import ViewSampler, pair_generator
from hf_deit.errors import RecipeError, TeacherCacheError
from tests.helpers.runs import NAMES, STUDENT, hf_deit, refused, saved_student, train, write_images, write_splits

VIEWS, TRAIN_IMAGES = 3, 23
SHAPE = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
COLUMNS = [f"teacher_p_{name}" for name in NAMES]


def build(room, name, **fields):
    """Cache the outputs of the teacher for three epochs of views."""
    fields = {"views": VIEWS, "distillation_type": "soft", "per_device_train_batch_size": 8, **SHAPE, **fields}
    package.cache_teacher(
        data=room / "data", teacher=room / "teacher", out=room / name, use_cpu=True, disable_tqdm=True, **fields
    )
    return room / name


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    next((room / "data/train/dog").iterdir()).unlink()  # an odd number: in each epoch one image has no partner
    saved_student(room / "teacher", two_heads=False, names=("dog", "ant", "cat", "bee"), seed=4)
    saved_student(room / "model")
    build(room, "cache")
    return room


def table_of(room, cache, split="train", model="model", **fields):
    found = package.predict(
        room / model, room / "data", split=split, teacher_cache=room / cache, as_dataset=True, **fields
    )
    return found.to_pandas()


def means_by_hand(room, cache, mixing=None):
    """Return the mean probabilities of each training image in the order of the model's classes, and the numbers of views."""
    sums, counts = np.zeros((TRAIN_IMAGES, 3)), np.zeros(TRAIN_IMAGES, int)
    for epoch in range(VIEWS):
        logits = torch.from_numpy(np.load(room / cache / f"epoch-{epoch:05}.npy").astype(np.float64))
        seed = json.loads((room / cache / "manifest.json").read_text())["views"]["data"]["seed"]
        sampler = ViewSampler(TRAIN_IMAGES, 2, seed)
        sampler.set_epoch(epoch)
        for key in sampler:
            if mixing is not None:
                mixes = draw_mixes(mixing, [pair_generator(seed, epoch, key.position // 2)], 16, 16)
                if own_share(mixes, 16, 16)[0] < 0.9 - 1e-6:
                    continue
            sums[key.index] += logits[key.position].softmax(-1).numpy()
            counts[key.index] += 1
    return sums / np.maximum(counts, 1)[:, None], counts


def test_the_opinion_on_a_validation_image_is_that_of_the_live_teacher(room):
    assert train(room / "data", room / "trained", *STUDENT, "--teacher_cache", room / "cache") == 0
    cached = table_of(room, "cache", "val", model="trained")
    live = package.predict(room / "trained", room / "data", split="val", teacher=room / "teacher", as_dataset=True)
    assert cached[COLUMNS].to_numpy() == pytest.approx(live.to_pandas()[COLUMNS].to_numpy(), abs=1e-6)
    assert set(cached["teacher_views"]) == {1} and cached.columns[-1] == "teacher_views"
    rest = [name for name in cached if name not in COLUMNS and name != "teacher_views"]
    assert cached[rest].equals(live.to_pandas()[rest])


def test_the_opinion_on_a_training_image_is_the_mean_over_its_views(room):
    rows, (means, counts) = table_of(room, "cache"), means_by_hand(room, "cache")
    items = load_splits(str(room / "data"))[0].items
    places = [items.index(file) for file in rows["file"]]
    assert len(rows) == TRAIN_IMAGES and counts.sum() == VIEWS * (TRAIN_IMAGES - 1)
    assert rows[COLUMNS].to_numpy() == pytest.approx(means[places], abs=1e-6)
    assert list(rows["teacher_views"]) == list(counts[places])


def test_only_views_that_show_an_image_nearly_alone_count(room):
    mixing = Mixing(mixup_alpha=0.3, cutmix_alpha=1.0, probability=0.6)
    build(room, "mixed", mixup_alpha=0.3, cutmix_alpha=1.0, mix_probability=0.6)
    means, counts = means_by_hand(room, "mixed", mixing)
    assert 0 < counts.sum() < means_by_hand(room, "mixed")[1].sum()
    rows = table_of(room, "mixed", broken_images="skip")
    items = load_splits(str(room / "data"))[0].items
    places = [items.index(file) for file in rows["file"]]
    assert sorted(places) == np.flatnonzero(counts).tolist()
    assert rows[COLUMNS].to_numpy() == pytest.approx(means[places], abs=1e-6)


def test_a_cache_of_mixed_views_has_opinions_on_validation_images_only(room, tmp_path):
    build(room, "all_mixed", mixup_alpha=50.0)
    assert len(table_of(room, "all_mixed", "val")) == 15
    with pytest.raises(TeacherCacheError, match="mixup_alpha=50"):
        table_of(room, "all_mixed")
    given = ("report", room / "model", "--data", room / "data", "--out", tmp_path)
    assert hf_deit(*given, "--teacher_cache", room / "all_mixed") == 0
    page = (tmp_path / "report.html").read_text()
    accuracy = json.loads((room / "all_mixed" / "manifest.json").read_text())["teacher_accuracy"]
    assert f"<b>{100 * accuracy:.1f}\u00a0%</b>teacher" in page
    assert "The opinions of the teacher ./teacher are from its cache" in page
    assert "The teacher has no opinion on the training images" in page
    with open(tmp_path / "mislabelled.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["teacher_p_label"] == "" for row in rows if row["split"] == "train"} == {True}
    assert {row["teacher_p_label"] == "" for row in rows if row["split"] == "validation"} == {False}


def test_images_and_data_that_are_not_those_of_the_cache_are_refused(room, tmp_path, capsys):
    other = write_images(tmp_path / "other", per_class=3, seed=5)
    given = ("predict", room / "model", other, "--teacher_cache", room / "cache", "--csv", tmp_path / "x.csv")
    message = refused(capsys, *given)
    assert "teacher_cache" in message and "fingerprint" in message and str(other) in message
    # Data that match, and beside them an image that is not one of them.
    image = next((other / "cat").iterdir())
    with pytest.raises(TeacherCacheError, match=f"teacher_cache.*{image.name}"):
        package.predict(
            room / "model", [room / "data", image], teacher_cache=room / "cache", as_dataset=True, broken_images="skip"
        )
    shutil.copytree(room / "data", tmp_path / "data")
    next((tmp_path / "data/train/cat").iterdir()).unlink()
    shutil.rmtree(tmp_path / "data/validation/dog")
    with pytest.raises(TeacherCacheError, match="validation.fingerprint"):
        package.report(room / "model", tmp_path / "data", out=tmp_path / "out", teacher_cache=room / "cache")
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(("fields", "named"), [({"kind": "hard"}, "'hard'"), ({"top_k": 2}, "'top_k'")])
def test_a_cache_without_all_logits_is_refused(room, fields, named):
    cache = build(room, f"cache-{next(iter(fields))}", **fields)
    with pytest.raises(TeacherCacheError, match=f"teacher_cache=.*{named}"):
        table_of(room, cache.name, "val")


def test_fields_that_contradict_the_cache_are_refused(room, tmp_path, capsys):
    given = ("predict", room / "model", room / "data", "--split", "val", "--csv", tmp_path / "x.csv")
    assert "teacher=" in refused(capsys, *given, "--teacher", room / "teacher", "--teacher_cache", room / "cache")
    assert "teacher_view_size=24" in refused(
        capsys, *given, "--teacher_cache", room / "cache", "--teacher_view_size", 24
    )
    assert "manifest.json" in refused(capsys, *given, "--teacher_cache", tmp_path)
    with pytest.raises(RecipeError, match="as_dataset"):
        package.predict(room / "model", room / "data", teacher_cache=room / "cache")
    saved_student(tmp_path / "other", names=("bee", "cat", "emu"))
    with pytest.raises(TeacherCacheError, match="'emu'"):
        package.predict(tmp_path / "other", room / "data", split="val", teacher_cache=room / "cache", as_dataset=True)


def test_a_model_with_another_order_of_classes_gets_its_own_columns(room, tmp_path):
    saved_student(tmp_path, names=("dog", "bee"))
    rows = package.predict(
        tmp_path, room / "data", split="val", teacher_cache=room / "cache", as_dataset=True
    ).to_pandas()
    logits = torch.from_numpy(np.load(room / "cache" / "validation.npy").astype(np.float64))
    files = load_splits(str(room / "data"))[1].items
    expected = logits[[files.index(file) for file in rows["file"]]][:, [2, 0]].softmax(-1).numpy()
    assert rows[["teacher_p_dog", "teacher_p_bee"]].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_embedded_images_are_found_by_their_content(room, tmp_path):
    import pandas

    folder = tmp_path / "tables"
    folder.mkdir()
    for split in ("train", "validation"):
        files = sorted((room / "data" / split).rglob("*.png"))
        rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name} for file in files]
        pandas.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    fields = {**SHAPE, "views": 1, "distillation_type": "soft", "use_cpu": True, "disable_tqdm": True}
    package.cache_teacher(data=folder, teacher=room / "teacher", out=tmp_path / "cache", **fields)
    rows = package.predict(
        room / "model", folder, split="validation", teacher_cache=tmp_path / "cache", as_dataset=True
    ).to_pandas()
    logits = torch.from_numpy(np.load(tmp_path / "cache" / "validation.npy").astype(np.float64))
    assert rows[COLUMNS].to_numpy() == pytest.approx(logits.softmax(-1).numpy(), abs=1e-6)
