"""Images without labels: where they are found, which of them are validation images, and what replaces broken ones."""

import datasets
import numpy as np
import pytest

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.loading import KEEP, LEAVE_OUT, load_splits, load_stream, load_validation
from hf_deit.data.sampling import ViewKey, ViewSampler
from hf_deit.data.sources import Source
from hf_deit.data.tables import Columns
from hf_deit.data.unlabelled import duplicates, load_unlabelled
from hf_deit.data.views import ViewDataset
from hf_deit.errors import DataError
from tests.helpers.images import dataset_of, folder_of, picture, saved, with_validation
from tests.helpers.tables import KINDS, lines, paths, table, write

KIND = Columns(labels=("kind",))
UNLABELLED = -100


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(paths()):
        picture(number).save(tmp_path / path)
    return tmp_path


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


# ---- where they are found ----


def test_images_of_a_folder_are_found_in_any_nesting_and_folder_names_are_no_classes(tmp_path):
    for seed, name in enumerate(("top.png", "cat/1.png", "a/b/c/2.jpg", "train/dog/3.png", "no extension")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path, format="PNG")
    write(tmp_path / "notes.txt", "text")
    (tmp_path / ".hidden").mkdir()
    picture(9).save(tmp_path / ".hidden" / "x.png")
    found = load_unlabelled(str(tmp_path))
    assert sorted(item.removeprefix(f"{tmp_path}/") for item in found.items) == [
        "a/b/c/2.jpg",
        "cat/1.png",
        "no extension",
        "top.png",
        "train/dog/3.png",
    ]
    assert found.labels == [UNLABELLED] * 5
    assert found.class_names == ()


def test_broken_files_are_left_out_or_raised(tmp_path):
    save(tmp_path / "1.png", 1)
    write(tmp_path / "2.png", "not an image")
    found = load_unlabelled(str(tmp_path))
    assert (len(found), len(found.left_out)) == (1, 1)
    with pytest.raises(DataError, match="2.png"):
        load_unlabelled(str(tmp_path), broken_images="raise")


def test_the_labels_of_a_table_are_ignored(photos):
    found = load_unlabelled(table(photos, ["", "-1", *KINDS[2:]]))
    assert (len(found), set(found.labels)) == (10, {UNLABELLED})
    only_paths = write(photos / "only.csv", lines(("picture", "size"), *((path, 3) for path in paths())))
    assert len(load_unlabelled(only_paths, "picture")) == 10
    assert len(load_unlabelled(table(photos, KINDS), "no such column")) == 10


@pytest.mark.parametrize("split", [None, "unlabeled", "all", "train", "other"])
def test_a_saved_data_set_gives_the_split_that_is_named(tmp_path, split):
    parts = {name: dataset_of([0, 1] * size) for name, size in (("train", 1), ("unlabeled", 2), ("test", 3))}
    parts["unlabeled"] = parts["unlabeled"].remove_columns("kind")
    path = saved(datasets.DatasetDict(parts), tmp_path / "set")
    if split == "other":
        with pytest.raises(DataError, match="unlabelled_split='other'"):
            load_unlabelled(path, split=split)
        return
    assert len(load_unlabelled(path, split=split)) == {None: 4, "unlabeled": 4, "all": 12, "train": 2}[split]


def test_data_without_images_are_refused_by_name(tmp_path, photos):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    write(tmp_path / "empty" / "deep" / "a.txt", "text")
    for data in ("empty", "photos/0.png", "missing"):
        with pytest.raises(DataError, match=data):
            load_unlabelled(str(tmp_path / data))
    with pytest.raises(DataError, match="unlabelled_split='train'"):
        load_unlabelled(str(photos / "photos"), split="train")


# ---- the same images ----


def test_the_same_content_is_found_under_another_name_and_between_files_and_embedded_images(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        save(tmp_path / name, seed)
    content = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other name.jpg").write_bytes(content[0])
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    altered = bytearray(content[0])
    altered[-1] ^= 1
    (tmp_path / "same size.png").write_bytes(altered)
    validation = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    items = [str(tmp_path / name) for name in ("c.png", "deep/other name.jpg", "link.png", "same size.png", "missing")]
    items += [
        {"bytes": content[1], "path": None},
        {"bytes": None, "path": None},
        {"bytes": content[1] + b"x", "path": "x"},
    ]
    assert duplicates(items, validation) == [1, 2, 5]
    assert duplicates(validation, items) == [0, 1]
    assert duplicates([], validation) == duplicates(items, []) == []


# ---- rows without a label ----


@pytest.mark.parametrize("make", ["csv", "jsonl", "ClassLabel", "int64"])
def test_rows_without_a_label_are_kept_left_out_or_refused(photos, make):
    kinds = [*KINDS[:6], None, KINDS[7], None, KINDS[9]]
    if make == "csv":
        data = table(photos, ["" if kind is None else kind for kind in kinds])
    elif make == "jsonl":
        datasets.Dataset.from_dict({"file": paths(), "kind": kinds}).to_json(photos / "t.jsonl")
        data = str(photos / "t.jsonl")
    else:
        names = ("cat", "dog", "eel")
        numbers = [None if kind is None else names.index(kind) for kind in kinds]
        if make == "int64":
            numbers[6] = UNLABELLED
        feature = datasets.ClassLabel(names=list(names)) if make == "ClassLabel" else datasets.Value("int64")
        features = datasets.Features({"file": datasets.Image(), "kind": feature})
        rows = {"file": [str(photos / path) for path in paths()], "kind": numbers}
        data = saved(datasets.Dataset.from_dict(rows, features=features), photos / "set")
    options = {"validation_share": 0.3, "columns": KIND}
    kept, validation = load_splits(data, unlabelled_rows=KEEP, **options)
    assert len(kept.unlabelled_indices) == 2
    assert len(kept.class_names) == 3
    assert not validation.unlabelled_indices
    without, same = load_splits(data, unlabelled_rows=LEAVE_OUT, **options)
    assert len(without) == len(kept) - 2
    assert [kept.labels[index] for index in range(len(kept)) if index not in kept.unlabelled_indices] == without.labels
    assert (
        same.fingerprint == validation.fingerprint
    )  # a teacher trained on the labelled rows has not seen the student's validation images
    again = load_validation(data, 0.3, columns=KIND, unlabelled_rows=LEAVE_OUT)
    assert again.fingerprint == validation.fingerprint
    with pytest.raises(DataError, match="2 image.*row 6.*teacher"):
        load_splits(data, **options)
    assert len(load_validation(data, columns=KIND, unlabelled_rows=LEAVE_OUT)) == 8


def test_minus_one_stays_an_error_and_minus_100_is_a_class_among_numbers_with_signs(photos):
    with pytest.raises(DataError, match="row 4"):
        load_splits(table(photos, [*KINDS[:4], "-1", *KINDS[5:]]), columns=KIND, unlabelled_rows=KEEP)
    found, _ = load_splits(table(photos, [*KINDS[:4], "-100", *KINDS[5:]]), 0.3, columns=KIND, unlabelled_rows=KEEP)
    assert len(found.unlabelled_indices) == 1
    signs = load_validation(table(photos, ["+100", "-100"] * 5), columns=KIND)
    assert set(signs.class_names) == {"+100", "-100"}
    words = load_validation(table(photos, ["unlabelled", "cat"] * 5), columns=KIND)
    assert words.class_names == ("cat", "unlabelled")


@pytest.mark.parametrize("cells", [["", ""], [None, None]])
def test_a_row_of_empty_flags_has_no_label_and_a_partly_empty_one_is_a_mistake(photos, cells):
    rows = [[index % 2, index % 3 == 0] for index in range(10)]
    rows[4] = cells

    def data():
        columns = {
            name: [None if row[k] is None else str(int(row[k] or 0)) if row[k] != "" else "" for row in rows]
            for k, name in enumerate("ab")
        }
        datasets.Dataset.from_dict({"file": paths(), **columns}).to_parquet(photos / "t.parquet")
        return str(photos / "t.parquet")

    columns = Columns(labels=("a", "b"))
    found, _ = load_splits(data(), 0.3, columns=columns, unlabelled_rows=KEEP)
    assert [found.labels[index] for index in found.unlabelled_indices] == [(UNLABELLED, UNLABELLED)]
    rows[4] = ["1", cells[0]]
    with pytest.raises(DataError, match="row|Row 4"):
        load_splits(data(), 0.3, columns=columns, unlabelled_rows=KEEP)


def test_validation_images_need_labels(photos):
    table(photos, KINDS, "train.csv")
    table(photos, ["", *KINDS[1:]], "validation.csv")
    for load in (
        lambda: load_splits(str(photos), columns=KIND, unlabelled_rows=KEEP),
        lambda: load_stream(str(photos), KIND),
    ):
        with pytest.raises(DataError, match="Validation images always need labels"):
            load()


def test_a_table_without_any_label_is_refused(photos):
    for values in ([""] * 10, ["-100"] * 10):
        for rows in (KEEP, LEAVE_OUT):
            with pytest.raises(DataError, match="row 0"):
                load_splits(table(photos, values), columns=KIND, unlabelled_rows=rows)


def test_a_file_with_and_without_a_label_is_no_contradiction(photos, caplog):
    rows = [*zip(paths(), KINDS, strict=True), (paths()[0], "")]
    data = write(photos / "t.csv", lines(("file", "kind"), *rows))
    load_splits(data, 0.3, columns=KIND, unlabelled_rows=KEEP)
    assert "different labels" not in caplog.text


# ---- views ----


def views_of(labelled, unlabelled, **changes):
    return ViewDataset(labelled, Augmentation((8, 8)), 0, unlabelled=unlabelled, unlabelled_share=0.5, **changes)


def test_a_broken_image_is_replaced_by_the_next_one_of_its_kind(tmp_path):
    with_validation(tmp_path / "data")
    train, _ = load_splits(str(tmp_path / "data"))
    for number in range(3):
        save(tmp_path / "more" / f"{number}.png", 50 + number)
    more = load_unlabelled(str(tmp_path / "more"))
    dataset = views_of(train, more)
    whole = [np.asarray(dataset.image(index)) for index in range(len(dataset))]
    (tmp_path / "more" / "1.png").write_bytes((tmp_path / "more" / "1.png").read_bytes()[:60])
    (tmp_path / "data" / "train" / "dog" / "01.png").write_bytes(b"no image")
    broken, labelled_broken = len(train) + 1, train.items.index(str(tmp_path / "data" / "train" / "dog" / "01.png"))
    images = [dataset._readable(index)[0] for index in (broken, labelled_broken)]
    assert np.array_equal(np.asarray(images[0]), whole[broken + 1])
    assert np.array_equal(
        np.asarray(images[1]), whole[train.items.index(str(tmp_path / "data" / "train" / "dog" / "00.png"))]
    )
    assert dataset[ViewKey(0, broken, 0, 0)]["labels"] == UNLABELLED
    assert dataset.broken.tolist() == [int(index in (broken, labelled_broken)) for index in range(len(dataset))]


def test_if_no_unlabelled_image_can_be_read_no_labelled_one_takes_its_place(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path / "data")))
    nothing = Source([None] * 3, [UNLABELLED] * 3, (), "", "nothing")
    with pytest.raises(DataError, match="without a label of"):
        views_of(train, nothing)[ViewKey(0, len(train), 0, 0)]


def test_kept_views_are_the_computed_ones_for_both_kinds(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path / "data")))
    folder_of(tmp_path / "more", {"x": 30})
    dataset = views_of(train, load_unlabelled(str(tmp_path / "more")))
    sampler = ViewSampler(len(dataset), 8, 0, num_views=2, unlabelled=30, unlabelled_share=0.5)
    keys = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys += list(sampler)
    computed = [dataset[key]["pixel_values"] for key in keys]
    dataset.keep_views(2, sampler.views_per_image)
    for _ in range(2):
        assert all((dataset[key]["pixel_values"] == view).all() for key, view in zip(keys, computed, strict=True))
    assert int(dataset._kept._known.sum()) == len(keys)


def test_the_description_names_unlabelled_images_only_if_there_are_any(tmp_path):
    train, _ = load_splits(str(with_validation(tmp_path / "data")))
    plain = ViewDataset(train, Augmentation((8, 8)), 0).describe()
    assert "unlabelled" not in plain
    described = views_of(train, train).describe()
    assert described.pop("unlabelled") == {"fingerprint": train.fingerprint, "images": len(train), "share": 0.5}
    assert described == plain
    with pytest.raises(DataError, match="unlabelled_share=None"):
        ViewDataset(train, Augmentation((8, 8)), 0, unlabelled=train)
