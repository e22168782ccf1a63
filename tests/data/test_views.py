"""Views and batches: the same pixels in any process, and the substitutes of broken images."""

import hashlib
import json
import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.batch_ops import normalize, to_unit_range
from hf_deit.data.loading import load_splits
from hf_deit.data.sampling import ViewKey, ViewSampler, view_generator
from hf_deit.data.sources import Source
from hf_deit.data.views import EvaluationDataset, ViewDataset, collate
from hf_deit.errors import DataError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers.images import cut_off, dataset_of, folder_of, picture, saved, views_of, with_validation
from tests.helpers.processes import run_python

# Views


def test_the_description_contains_images_classes_augmentation_and_seed(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    description = ViewDataset(train, Augmentation((8, 12)), seed=5).describe()
    assert description["fingerprint"] == train.fingerprint
    assert description["images"] == 5
    assert description["classes"] == ["cat", "dog"]
    assert description["seed"] == 5
    assert description["augmentation"]["view_size"] == (8, 12)
    assert description["augmentation"]["flip_probability"] == 0.5
    json.dumps(description)


def test_a_view_is_the_augmented_image_with_the_random_generator_of_its_key(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    dataset = ViewDataset(train, Augmentation((8, 12)), seed=5)
    for key in ViewSampler(5, 4, seed=5):
        row = dataset[key]
        expected = Augmentation((8, 12))(picture([0, 1, 2, 1000, 1001][key.index]), view_generator(5, key))
        assert row["pixel_values"].dtype == torch.uint8
        np.testing.assert_array_equal(row["pixel_values"].permute(1, 2, 0), expected)
        assert row["labels"] == [0, 0, 0, 1, 1][key.index]
    assert (len(dataset), dataset.view_size, dataset.class_names) == (5, (8, 12), ("cat", "dog"))
    assert dataset.takes_view_keys


@pytest.mark.parametrize("key", [0, np.int64(1), (0, 0, 0, 0), None, slice(2)])
def test_a_key_that_is_not_a_view_key_is_refused_with_a_remedy(tmp_path, key):
    train, _ = load_splits(str(with_validation(tmp_path)))
    with pytest.raises(TypeError, match="ViewSampler.*ViewKey"):
        views_of(train)[key]


def test_views_differ_by_epoch_view_and_seed(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    views = [views_of(train, seed=seed)[ViewKey(epoch, 0, view, 0)] for seed, epoch, view in np.ndindex(2, 2, 2)]
    assert len({view["pixel_values"].numpy().tobytes() for view in views}) == 8


def digest_of(dataset, keys):
    return hashlib.sha256(b"".join(dataset[key]["pixel_values"].numpy().tobytes() for key in keys)).hexdigest()


def test_batches_are_the_same_with_and_without_workers(tmp_path):
    train, _ = load_splits(str(folder_of(tmp_path, {"cat": 10, "dog": 10})))
    dataset = views_of(train)
    sampler = ViewSampler(len(dataset), 4, seed=0)
    plain, parallel = (
        list(DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(plain) == len(parallel) == 4
    for ours, theirs in zip(plain, parallel, strict=True):
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert torch.equal(ours["labels"], theirs["labels"])


def test_another_process_gives_the_same_pixels_for_the_same_keys(tmp_path):
    folder = tmp_path / "images"
    folder_of(folder, {"cat": 4, "dog": 4})
    dataset = views_of(load_splits(str(folder))[0], seed=7)
    keys = list(ViewSampler(len(dataset), 2, seed=7))
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps((dataset, keys)))
    program = (
        "import hashlib, pickle, random, sys; random.seed(1)\n"
        "dataset, keys = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pixels = b''.join(dataset[key]['pixel_values'].numpy().tobytes() for key in keys)\n"
        "print(hashlib.sha256(pixels).hexdigest())"
    )
    process = run_python(program, tmp_path / "dataset.pickle")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == digest_of(dataset, keys)


@pytest.mark.parametrize("kind", ["folder", "data set"])
def test_data_sets_survive_pickling(tmp_path, kind):
    if kind == "folder":
        train, validation = load_splits(str(with_validation(tmp_path)))
    else:
        train, validation = load_splits(saved(dataset_of([0, 1] * 4), tmp_path / "set"))
    views, evaluation = pickle.loads(pickle.dumps((views_of(train), EvaluationDataset(validation, (8, 8)))))
    keys = [ViewKey(2, index, 0, 0) for index in range(len(train))]
    assert digest_of(views, keys) == digest_of(views_of(train), keys)
    assert views.describe() == views_of(train).describe()
    assert torch.equal(evaluation[0]["pixel_values"], EvaluationDataset(validation, (8, 8))[0]["pixel_values"])


# Broken images


def with_broken(source, *indices):
    """Truncate the images at these indices after their headers, and return the source."""
    for index in indices:
        file = Path(source.items[index])
        file.write_bytes(cut_off(file.read_bytes()))
    return source


def test_the_next_readable_image_of_the_class_replaces_a_broken_one_under_its_key(tmp_path):
    train, _ = load_splits(str(folder_of(tmp_path, {"cat": 6, "dog": 6})), validation_share=0.2)
    assert list(train.labels) == [0] * 5 + [1] * 5
    readable = [train.image(index) for index in range(10)]
    dataset = views_of(with_broken(train, 2, 3, 9))
    for index, substitute in {0: 0, 2: 4, 3: 4, 4: 4, 8: 8, 9: 5}.items():
        for epoch in (0, 1):
            key = ViewKey(epoch, index, 0, 7)
            row = dataset[key]
            expected = Augmentation((8, 8))(readable[substitute], view_generator(0, key))
            np.testing.assert_array_equal(row["pixel_values"].permute(1, 2, 0), expected)
            assert row["labels"] == train.labels[index]
    assert dataset.broken.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 1]


def test_a_substitute_does_not_depend_on_the_order_of_reading(tmp_path):
    train, _ = load_splits(str(folder_of(tmp_path, {"cat": 8, "dog": 8})))
    with_broken(train, 1, 2, 9)
    keys = [ViewKey(0, index, 0, 0) for index in range(len(train))]
    forwards, backwards = views_of(train), views_of(train)
    ahead = {key: forwards[key]["pixel_values"] for key in keys}
    back = {key: backwards[key]["pixel_values"] for key in reversed(keys)}
    assert all(torch.equal(ahead[key], back[key]) for key in keys)


def test_a_broken_training_image_is_logged_once_and_counted_across_workers(tmp_path, capfd):
    train, _ = load_splits(str(folder_of(tmp_path, {"cat": 8, "dog": 8})))
    dataset = views_of(with_broken(train, 3))
    logger = logging.getLogger("hf_deit.data")
    handler = logging.StreamHandler(sys.stderr)  # caplog does not see the log of worker processes
    logger.addHandler(handler)
    try:
        for epoch in range(3):
            keys = [ViewKey(epoch, index, 0, 0) for index in range(len(train))]
            for _ in DataLoader(dataset, sampler=keys, batch_size=2, num_workers=2, collate_fn=collate):
                pass
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr().err.count(train.items[3]) == 1
    assert dataset.broken.nonzero().flatten().tolist() == [3]


def test_a_class_without_readable_images_is_refused_by_name(tmp_path):
    train, _ = load_splits(str(folder_of(tmp_path, {"cat": 3, "dog": 3})))
    dataset = views_of(with_broken(train, 0, 1))
    with pytest.raises(DataError, match="class 'cat'"):
        dataset[ViewKey(0, 0, 0, 0)]


def test_a_substitute_in_multi_label_data_has_its_own_labels(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    rows = [(1, 0), (1, 1), (0, 1)]
    source = Source(paths, rows, ("a", "b"), "", "the set", "multi_label_classification")
    row = views_of(with_broken(source, 0))[ViewKey(0, 0, 0, 0)]
    assert row["labels"] == (1, 1)
    expected = Augmentation((8, 8))(picture(1), view_generator(0, ViewKey(0, 0, 0, 0)))
    np.testing.assert_array_equal(row["pixel_values"].permute(1, 2, 0), expected)


# Evaluation


@pytest.mark.parametrize(("image_size", "crop_ratio"), [((16, 16), 0.875), ((32, 24), 0.875), ((16, 16), 1.0)])
def test_evaluation_pixels_equal_those_of_the_saved_processor(tmp_path, image_size, crop_ratio):
    train, _ = load_splits(str(with_validation(tmp_path)))
    dataset = EvaluationDataset(train, image_size, crop_ratio)
    processor = DeiTImageProcessor.for_image_size(image_size, crop_ratio)
    assert len(dataset) == 5
    for index in range(5):
        row = dataset[index]
        assert row["pixel_values"].dtype == torch.uint8
        assert row["labels"] == train.labels[index]
        unit = to_unit_range(row["pixel_values"][None], processor.image_mean, processor.image_std)
        ours = normalize(unit, processor.image_mean, processor.image_std)[0]
        stock = processor(train.image(index), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


def test_the_teacher_has_its_own_pixels_only_if_its_size_differs(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    assert set(EvaluationDataset(train, (16, 16))[0]) == {"pixel_values", "labels"}
    assert set(EvaluationDataset(train, (16, 16), view_size=(16, 16))[0]) == {"pixel_values", "labels"}
    row = EvaluationDataset(train, (16, 16), view_size=(32, 24))[0]
    assert row["pixel_values"].shape == (3, 16, 16)
    teacher = EvaluationDataset(train, (32, 24))[0]["pixel_values"]
    assert torch.equal(row["teacher_pixel_values"], teacher)


def test_a_saved_processor_computes_only_the_pixels_of_the_student(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    processor = DeiTImageProcessor.for_image_size((16, 24), 0.9)
    dataset = EvaluationDataset(train, processor=processor)
    for index in range(len(train)):
        row = dataset[index]
        assert set(row) == {"pixel_values", "labels"}
        assert row["labels"] == train.labels[index]
        assert torch.equal(row["pixel_values"], processor(train.image(index), return_tensors="pt")["pixel_values"][0])
    with_teacher = EvaluationDataset(train, processor=processor, view_size=(32, 24))[0]
    assert torch.equal(with_teacher["pixel_values"], dataset[0]["pixel_values"])
    assert torch.equal(with_teacher["teacher_pixel_values"], EvaluationDataset(train, (32, 24))[0]["pixel_values"])


def test_an_evaluation_takes_either_a_size_or_a_processor(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path)))
    with pytest.raises(DataError, match="image_size or processor.*neither"):
        EvaluationDataset(train)
    with pytest.raises(DataError, match="image_size or processor.*both"):
        EvaluationDataset(train, (16, 16), processor=DeiTImageProcessor.for_image_size((16, 16)))


# Batches


def test_rows_become_a_batch_with_either_name_of_the_labels():
    for name in ("label", "labels"):
        rows = [{"pixel_values": torch.full((3, 2, 2), i, dtype=torch.uint8), name: i, "note": "x"} for i in range(3)]
        batch = collate(rows)
        assert set(batch) == {"pixel_values", "labels"}
        assert batch["pixel_values"].dtype == torch.uint8
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2]
        assert batch["labels"].dtype == torch.long
        assert batch["labels"].tolist() == [0, 1, 2]


def test_numpy_arrays_numbers_lists_and_soft_labels_are_accepted():
    rows = [
        {"pixel_values": np.zeros((3, 2, 2), dtype=np.float32), "label": np.int64(4)},
        {"pixel_values": np.ones((3, 2, 2), dtype=np.float32), "label": np.int64(5)},
    ]
    batch = collate(rows)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].mean(dim=(1, 2, 3)).tolist() == [0, 1]
    assert batch["labels"].tolist() == [4, 5]
    pixels = torch.zeros(3, 2, 2)
    assert collate([{"pixel_values": pixels, "labels": [0.25, 0.75]}] * 2)["labels"].tolist() == [[0.25, 0.75]] * 2
    assert collate([{"pixel_values": [[[1.0]]]}])["pixel_values"].shape == (1, 1, 1, 1)


def test_the_pixels_of_the_teacher_are_stacked():
    row = {"pixel_values": torch.zeros(3, 2, 2), "teacher_pixel_values": torch.zeros(3, 4, 4), "labels": 0}
    assert collate([row, row])["teacher_pixel_values"].shape == (2, 3, 4, 4)


def test_rows_without_labels_give_a_batch_without_labels():
    assert set(collate([{"pixel_values": torch.zeros(3, 2, 2)}])) == {"pixel_values"}


def test_rows_without_pixels_are_refused_with_their_columns_and_a_remedy():
    with pytest.raises(KeyError, match="image, labels.*pixel_values.*with_transform"):
        collate([{"image": picture(), "label": 1}])
