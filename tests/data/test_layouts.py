"""Layouts and splits: names of splits, tables beside folders, split columns, links, and files that are left out."""

import csv
import json
import os
import shutil

import datasets
import pytest
from PIL import Image

from hf_deit.data.layouts import Selection, split_names, split_of
from hf_deit.data.loading import load_splits, load_stream, load_validation
from hf_deit.data.tables import Columns
from hf_deit.errors import DataError
from tests.helpers.images import dataset_of, folder_of, picture, saved, with_validation

datasets.disable_progress_bars()
pytestmark = pytest.mark.usefixtures("own_cache")

CLASSES = {"cat": 3, "dog": 3}


def classes_of(source):
    """Return file name and class name of each image."""
    pairs = zip(source.items, source.labels, strict=True)
    return {os.path.relpath(item, os.path.dirname(os.path.dirname(item))): source.class_names[i] for item, i in pairs}


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    else:
        records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        if path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, records)))
        else:
            datasets.Dataset.from_list(records).to_parquet(str(path))
    return str(path)


def refused(data, *parts, **options):
    with pytest.raises(DataError) as error:
        load_splits(str(data), **options)
    for part in parts:
        assert part in str(error.value), str(error.value)


# Names of splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "TRAIN", "Training", "seg_train", "train_set", "trainSet", "train2017")
        ),
        *(
            (name, "train")
            for name in ("images_train", "Train-Images", "training data", "train-00000-of-00002", "trainval")
        ),
        *((name, "validation") for name in ("val", "Valid", "validation_set", "DEV", "eval", "val2017", "imgs-val")),
        *((name, "test") for name in ("Testing", "test_images", "seg_test", "TestSet", "test-dev", "PublicTest")),
        *(
            (name, None)
            for name in ("invalid", "training_shoes", "bullet train", "contest", "strain", "developer", "0")
        ),
        *((name, None) for name in ("trainer", "latest", "value", "images", "test_train")),
    ],
)
def test_split_names_are_recognised_in_any_case_and_among_common_words(name, split):
    assert split_of(name) == split


def test_names_with_one_common_word_are_splits_and_names_of_classes_are_not():
    assert split_names(["pets_train", "pets_test"]) == {"pets_train": "train", "pets_test": "test"}
    assert split_names(["training_shoes", "testing_kits"]) == split_names(["cat", "dog"]) == {}
    with pytest.raises(DataError, match="'cat_train'"):
        split_names(["cat_train", "cat_test", "dog_train", "dog_test"])


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Training", "Testing"),
        ("train", "Validation"),
        ("train", "test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "DEV"),
        ("pets_train", "pets_val"),
        ("photos/train_set", "photos/test_set"),
    ],
)
def test_folders_of_splits_are_read_as_splits(tmp_path, train, validation):
    folder_of(tmp_path / train, CLASSES)
    folder_of(tmp_path / validation, {"cat": 1, "dog": 2})
    found = load_splits(str(tmp_path))
    assert [source.class_names for source in found] == [("cat", "dog")] * 2
    assert [len(source) for source in found] == [6, 3]


def test_splits_inside_class_folders_are_read_as_splits(tmp_path):
    for name in ("cat", "dog"):
        folder_of(tmp_path / name, {"Train": 3, "Test": 1})
    train, validation = load_splits(str(tmp_path))
    assert (train.class_names, len(train), len(validation)) == (("cat", "dog"), 6, 2)
    assert list(train.labels) == [0, 0, 0, 1, 1, 1]
    assert validation.split_name == "test"


@pytest.mark.parametrize("name", ["train", "test", "valid", "Test_Images"])
def test_a_folder_that_may_be_a_split_or_a_class_is_refused_with_both_readings(tmp_path, name):
    folder_of(tmp_path, {"bus": 2, "car": 2, name: 2})
    refused(tmp_path, repr(name) if name != "train" else "/train", "'bus', 'car'", "train_split")
    train, _ = load_splits(str(tmp_path), 0.5, selection=Selection(train_split="."))
    assert set(train.class_names) == {"bus", "car", name}


def test_a_class_called_train_inside_a_split_is_a_class(tmp_path):
    for split in ("train", "val"):
        folder_of(tmp_path / split, {"bus": 2, "train": 2})
    assert load_splits(str(tmp_path))[1].class_names == ("bus", "train")


def test_several_folders_for_one_split_are_refused_and_a_field_chooses_one(tmp_path):
    for name, count in (("train", 3), ("test_a", 1), ("test_1", 2), ("eval_1", 1), ("eval_2", 2)):
        folder_of(tmp_path / name, {"cat": count, "dog": count})
    refused(tmp_path, "'eval_1', 'eval_2'", "validation_split")
    assert len(load_splits(str(tmp_path), selection=Selection(validation_split="eval_2"))[1]) == 4
    train, validation = load_splits(str(tmp_path), 0.34, selection=Selection(validation_split="none"))
    assert (len(train), len(validation)) == (4, 2)
    refused(tmp_path, "validation_split='late'", selection=Selection(validation_split="late"))


def test_an_earlier_name_of_a_split_wins_and_the_other_folders_are_named(tmp_path, caplog):
    with_validation(tmp_path, "val")
    folder_of(tmp_path, {"dev": 1, "Train": 1, "extras": 1})
    train, validation = load_splits(str(tmp_path))
    assert (len(train), len(validation)) == (5, 3)
    (message,) = [text for text in caplog.messages if "'extras'" in text]
    assert "'dev'" in message
    assert "'Train'" in message


def test_an_unlabelled_test_folder_is_not_used_for_validation(tmp_path):
    folder_of(tmp_path / "train", {"cat": 10, "dog": 10})
    folder_of(tmp_path / "test", {"unknown": 4})
    train, validation = load_splits(str(tmp_path))
    assert (len(train), len(validation)) == (18, 2)
    with pytest.raises(DataError, match="'test'"):
        load_validation(str(tmp_path), split="test")


# The split of an evaluation


def test_an_evaluation_names_its_split_and_takes_another(tmp_path):
    folder_of(tmp_path / "train", CLASSES)
    folder_of(tmp_path / "Testing", {"dog": 2})
    default = load_validation(str(tmp_path), validation_share=0.5)
    assert (default.split_name, len(default), default.class_names) == ("test", 2, ("cat", "dog"))
    assert load_validation(str(tmp_path), split="testing") == load_validation(str(tmp_path), split="Testing") == default
    assert load_validation(str(tmp_path), split="train").split_name == "train"
    with pytest.raises(DataError, match="'validation'"):
        load_validation(str(tmp_path), split="validation")


def test_an_evaluation_needs_no_training_split(tmp_path):
    folder_of(tmp_path / "test", CLASSES)
    source = load_validation(str(tmp_path))
    assert (source.split_name, len(source), source.class_names) == ("test", 6, ("cat", "dog"))
    refused(tmp_path, "train_split")


def test_an_evaluation_of_data_without_splits_is_of_the_share_or_of_all_images(tmp_path):
    folder_of(tmp_path, {"cat": 4, "dog": 4})
    found = [load_validation(str(tmp_path), share, split=split) for share, split in [(None, None), (0.25, None)]]
    assert [(source.split_name, len(source)) for source in found] == [("all", 8), ("validation", 2)]
    training = load_validation(str(tmp_path), 0.25, split="train")
    assert (training.split_name, len(training)) == ("train", 6)
    assert not {*training.items} & {*found[1].items}


# Tables beside folders


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("folders", ["", "part0", "part0/deep"])
def test_an_image_folder_of_datasets_is_read_with_the_labels_of_its_metadata(tmp_path, kind, folders):
    for split, count in (("train", 4), ("test", 2)):
        place = tmp_path / split / folders
        place.mkdir(parents=True)
        for number in range(count):
            picture(number).save(place / f"{number}.png")
        rows = [(os.path.join(folders, f"{n}.png"), "ab"[n % 2]) for n in range(count)]
        write_rows(tmp_path / split / f"metadata.{kind}", ("file_name", "label"), *rows)
    train, validation = load_splits(str(tmp_path))
    assert (train.class_names, list(train.labels)) == (("a", "b"), [0, 1, 0, 1])
    assert (len(validation), validation.split_name) == (2, "test")


def test_metadata_files_in_folders_of_a_split_are_joined(tmp_path):
    for part in ("one", "two"):
        folder_of(tmp_path / "train", {part: 2})
        write_rows(tmp_path / "train" / part / "metadata.csv", ("file_name", "label"), ("00.png", "a"), ("01.png", "b"))
    train, validation = load_splits(str(tmp_path), 0.5)
    assert (train.class_names, len(train), len(validation)) == (("a", "b"), 2, 2)


def test_metadata_at_the_top_names_the_splits_by_its_paths(tmp_path):
    folder_of(tmp_path, {"Train": 4, "val": 2})
    rows = [(f"{split}/0{n}.png", "ab"[n % 2]) for split, count in (("Train", 4), ("val", 2)) for n in range(count)]
    write_rows(tmp_path / "metadata.csv", ("file_name", "label"), *rows)
    train, validation = load_splits(str(tmp_path))
    assert (len(train), len(validation), train.class_names) == (4, 2, ("a", "b"))


@pytest.mark.parametrize(
    "place", ["train.csv", "Train_labels.csv", "labels.csv", "train/metadata.csv", "train/list.csv"]
)
def test_a_table_that_gives_the_images_of_folders_other_classes_wins(tmp_path, place, caplog):
    folder_of(tmp_path / "train", {"part0": 2, "part1": 2})
    prefix = "" if "/" in place else "train/"
    rows = [(f"{prefix}part{p}/0{n}.png", "ab"[n]) for p in (0, 1) for n in (0, 1)]
    write_rows(tmp_path / place, ("image", "label"), *rows)
    train, _ = load_splits(str(tmp_path), 0.5)
    assert train.class_names == ("a", "b")
    assert any("'part0', 'part1'" in text and place in text for text in caplog.messages)


def test_a_table_that_agrees_with_the_class_folders_changes_nothing(tmp_path):
    with_validation(tmp_path)
    before = load_splits(str(tmp_path))
    rows = [
        (os.path.relpath(item, tmp_path), before[0].class_names[i])
        for item, i in zip(before[0].items, before[0].labels, strict=True)
    ]
    write_rows(tmp_path / "train.csv", ("image", "label"), *rows[::-1])
    assert load_splits(str(tmp_path)) == before


def test_a_table_that_lists_some_images_of_class_folders_is_refused(tmp_path):
    folder_of(tmp_path / "train", CLASSES)
    table = write_rows(
        tmp_path / "train.csv", ("image", "label"), ("train/cat/00.png", "cat"), ("train/dog/00.png", "dog")
    )
    refused(tmp_path, table, "2 images", "6")
    assert len(load_validation(table)) == 2


def test_a_table_without_labels_leaves_the_class_folders(tmp_path, caplog):
    with_validation(tmp_path)
    before = load_splits(str(tmp_path))
    write_rows(tmp_path / "train" / "metadata.csv", ("file_name", "text"), ("cat/00.png", "a cat"))
    assert load_splits(str(tmp_path)) == before
    assert any("metadata.csv" in text for text in caplog.messages)


def test_images_without_class_folders_and_table_are_refused(tmp_path):
    folder_of(tmp_path, {"train": 3, "val": 3})
    refused(tmp_path, str(tmp_path / "train"), "metadata.csv")


def test_a_table_may_name_the_files_of_the_folder_beside_it(tmp_path):
    folder_of(tmp_path, {"train_images": 4})
    table = write_rows(tmp_path / "train.csv", ("image", "label"), *((f"0{n}.png", "ab"[n % 2]) for n in range(4)))
    assert len(load_validation(table)) == len(load_validation(str(tmp_path))) == 4


# Split columns


def split_table(folder, name, values, **options):
    folder_of(folder, {"all": len(values)})
    rows = [(f"all/{n:02}.png", "ab"[n // 2 % 2], value) for n, value in enumerate(values)]
    return write_rows(folder / options.get("file", "table.csv"), ("image", "label", name), *rows)


@pytest.mark.parametrize(
    ("name", "values", "sizes"),
    [
        ("split", ["train", "val", "test", "train"] * 2, (4, 2)),
        ("Usage", ["Training", "PublicTest", "Training", "PrivateTest"] * 2, (4, 4)),
        ("data_set", ["TRAIN", "TRAIN", "TRAIN", "Valid"] * 2, (6, 2)),
        ("is_valid", [False, True, False, False] * 2, (6, 2)),
        ("is_training_image", [1, 1, 0, 1] * 2, (6, 2)),
        ("my own name", ["train", "train", "dev", "train"] * 2, (6, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_splits_is_used(tmp_path, name, values, sizes, kind):
    table = split_table(tmp_path, name, values, file=f"table.{kind}")
    assert tuple(map(len, load_splits(table))) == sizes
    assert len(load_splits(table, 0.25, selection=Selection(split_column="none"))[0]) == 6


@pytest.mark.parametrize("value", ["unlabeled", "", "ignore"])
def test_other_values_in_a_column_of_splits_are_refused(tmp_path, value):
    table = split_table(tmp_path, "split", ["train", "val", "train", value] * 2)
    refused(table, "'split'", repr(value), "split_column")


def test_values_of_a_column_can_be_named(tmp_path):
    table = split_table(tmp_path, "fold", [0, 1, 0, 3] * 2)
    assert sum(map(len, load_splits(table, 0.25))) == 8
    fold = Selection(split_column="fold", validation_split="3")
    assert tuple(map(len, load_splits(table, selection=fold))) == (6, 2)
    assert tuple(map(len, load_splits(table, selection=Selection(None, None, "fold", "0", "3")))) == (4, 2)
    refused(table, "'4'", "fold", selection=Selection(split_column="fold", validation_split="4"))
    refused(table, "split_column='folds'", "'fold'", selection=Selection(split_column="folds"))


def test_a_column_of_splits_beside_tables_of_splits_is_used_or_refused(tmp_path):
    split_table(tmp_path, "split", ["train", "train", "train", "test"] * 2, file="train.csv")
    split_table(tmp_path / "more", "split", ["test"] * 4)
    shutil.copy(tmp_path / "more" / "table.csv", tmp_path / "test.csv")
    refused(tmp_path, "'split'", "test")


def test_the_labels_are_no_column_of_splits(tmp_path):
    table = split_table(tmp_path, "kind", ["train", "test"] * 4)
    train, _ = load_splits(table, 0.5, columns=Columns(labels=("kind",)))
    assert train.class_names == ("test", "train")


def test_a_stream_is_divided_by_a_column_of_splits(tmp_path):
    table = split_table(tmp_path, "split", ["train", "val", "train", "test"] * 2)
    reader, validation = load_stream(table)
    assert [os.path.basename(item) for item, _ in reader.rows()] == ["00.png", "02.png", "04.png", "06.png"]
    assert [os.path.basename(item) for item in validation.items] == ["01.png", "05.png"]


# Data sets


@pytest.mark.parametrize("names", [("Train", "Valid"), ("training", "eval"), ("train_split", "testing")])
def test_splits_of_data_sets_are_recognised(tmp_path, names):
    splits = datasets.DatasetDict(dict(zip(names, (dataset_of([0, 1, 1]), dataset_of([0, 1])), strict=True)))
    assert tuple(map(len, load_splits(saved(splits, tmp_path / "set")))) == (3, 2)


def test_a_split_of_any_name_can_be_chosen(tmp_path):
    splits = datasets.DatasetDict({"full": dataset_of([0, 1, 1]), "gold": dataset_of([0, 1])})
    path = saved(splits, tmp_path / "set")
    refused(path, "train_split")
    assert tuple(map(len, load_splits(path, selection=Selection(train_split="full", validation_split="gold")))) == (
        3,
        2,
    )


@pytest.mark.parametrize("field", ["config", "revision"])
def test_fields_of_the_hub_are_refused_for_files(tmp_path, field):
    refused(with_validation(tmp_path), f"data_{field}='x'", selection=Selection(**{field: "x"}))


@pytest.mark.parametrize(("field", "value"), [("config", "small"), ("revision", "v2")])
def test_configuration_and_revision_reach_the_hub(monkeypatch, field, value):
    given = {}

    def load_dataset(name, config=None, revision=None, streaming=False):
        given.update(name=name, config=config, revision=revision)
        return datasets.DatasetDict({"train": dataset_of([0, 1]), "test": dataset_of([0, 1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert tuple(map(len, load_splits("owner/pets", selection=Selection(**{field: value})))) == (2, 2)
    assert given == {"name": "owner/pets", "config": None, "revision": None, field: value}


# Separators and encodings of CSV files


def lines_of(folder, separator, names=("Kleid", "Rock")):
    folder_of(folder, {"all": 4})
    return "\n".join(
        separator.join(row) for row in [("image", "label"), *((f"all/0{n}.png", names[n % 2]) for n in range(4))]
    )


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_detected(tmp_path, separator):
    (tmp_path / "table.csv").write_text(lines_of(tmp_path, separator))
    assert load_validation(str(tmp_path / "table.csv")).class_names == ("Kleid", "Rock")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_western_encodings_are_detected(tmp_path, encoding):
    names = ("Mütze", "jupe plissée")
    (tmp_path / "table.csv").write_bytes(lines_of(tmp_path, ";", names).encode(encoding))
    assert load_validation(str(tmp_path / "table.csv")).class_names == tuple(sorted(names))


@pytest.mark.parametrize(
    ("encoding", "names"),
    [("cp1251", ("юбка", "шапка")), ("shift-jis", ("帽子", "服")), ("mac-roman", ("Mütze", "jupe plissée"))],
)
def test_an_encoding_that_is_uncertain_is_refused(tmp_path, encoding, names):
    (tmp_path / "table.csv").write_bytes(lines_of(tmp_path, ",", names).encode(encoding))
    refused(tmp_path / "table.csv", "table.csv", "UTF-8")


def test_two_possible_separators_are_refused_by_name(tmp_path):
    (tmp_path / "table.csv").write_text("image;label|x\nall/00.png;a|b\n")
    refused(tmp_path / "table.csv", "';'", "'|'")


# Paths, links, and files that are left out


def test_brackets_and_stars_in_a_path_are_not_patterns(tmp_path):
    folder = tmp_path / "photos [final] *"
    with_validation(folder / "data[1]")
    table = write_rows(
        folder / "t[0].csv", ("image", "label"), *((f"data[1]/train/{c}/00.png", c) for c in ("cat", "dog"))
    )
    assert len(load_validation(table)) == 2
    assert tuple(map(len, load_splits(str(folder / "data[1]")))) == (5, 3)


def test_links_are_followed_and_loops_and_broken_links_are_named(tmp_path, caplog):
    folder_of(tmp_path / "elsewhere", {"more": 2})
    folder_of(tmp_path / "data", CLASSES)
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "dog" / "loop").symlink_to(tmp_path / "data" / "dog", target_is_directory=True)
    (tmp_path / "data" / "itself").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data" / "dog" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    source = load_validation(str(tmp_path / "data"))
    assert (source.class_names, list(source.labels)) == (("cat", "dog"), [0] * 5 + [1] * 3)
    assert any("1 links" in text and "1 broken links" in text for text in caplog.messages)


def test_class_folders_that_begin_with_an_underscore_are_classes(tmp_path):
    folder_of(tmp_path / "train", {"_other": 2, "__": 2, "cat": 2})
    folder_of(tmp_path / "val", {"_other": 1, "__MACOSX": 1})
    train, validation = load_splits(str(tmp_path))
    assert train.class_names == ("__", "_other", "cat")
    assert [train.class_names[label] for label in validation.labels] == ["_other"]


def test_files_are_recognised_by_content_and_the_others_are_counted_by_kind(tmp_path, caplog):
    folder_of(tmp_path, {"cat": 4, "dog": 4})
    for old, new in (("00.png", "00.heic"), ("01.png", "01"), ("02.png", "02.dat")):
        (tmp_path / "cat" / old).rename(tmp_path / "cat" / new)
    (tmp_path / "cat" / "real.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "dog" / "notes").write_text("no image")
    (tmp_path / "dog" / "film.mp4").write_bytes(b"no image")
    picture(5).save(tmp_path / "dog" / "raw.nef", "TIFF")
    picture(6).save(tmp_path / "outside.png")
    source = load_validation(str(tmp_path))
    assert list(source.labels) == [0] * 4 + [1] * 4
    assert sorted(text.split(":")[0][-9:] for text in source.left_out) == ["real.heic", "g/raw.nef"][::-1]
    (message,) = [text for text in caplog.messages if "left out" in text]
    for kind in ("1 .heic", "1 files without an extension", "1 .mp4", "1 .nef", "outside.png"):
        assert kind in message
    refused(tmp_path, "2 image(s)", "real.heic", broken_images="raise")


@pytest.mark.parametrize(
    "name", ["/nowhere/pets", "./pets", "~/no such pets", "a/b/c", "my photos", "pets.csv", "owner/pets.zip"]
)
def test_a_path_that_does_not_exist_is_no_name_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    refused(name, repr(name))


# Cases in which two readings were once confused


def test_a_table_takes_the_files_of_the_folder_of_its_own_split(tmp_path):
    folder_of(tmp_path, {"train": 4, "test": 4})
    rows = [(f"0{number}.png", "ab"[number % 2]) for number in range(4)]
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.csv", ("image", "label"), *rows)
    train, validation = load_splits(str(tmp_path))
    assert {os.path.basename(os.path.dirname(item)) for item in train.items} == {"train"}
    assert {os.path.basename(os.path.dirname(item)) for item in validation.items} == {"test"}
    write_rows(tmp_path / "test.csv", ("image",), *((name,) for name, _ in rows))  # as in competitions
    assert tuple(map(len, load_splits(str(tmp_path), 0.5))) == (2, 2)


def test_a_table_beside_a_folder_of_images_may_have_a_column_of_splits(tmp_path):
    folder_of(tmp_path, {"images": 8})
    rows = [(f"0{n}.png", "ab"[n // 2 % 2], ("Train", "Test")[n % 2]) for n in range(8)]
    write_rows(tmp_path / "labels.csv", ("file", "label", "Set"), *rows)
    train, validation = load_splits(str(tmp_path))
    assert (len(train), len(validation), train.class_names) == (4, 4, ("a", "b"))


def test_a_folder_around_the_splits_may_have_a_readme(tmp_path):
    with_validation(tmp_path / "images")
    (tmp_path / "README.md").write_text("about")
    assert tuple(map(len, load_splits(str(tmp_path)))) == (5, 3)


def test_folders_of_detection_data_and_parts_of_a_data_set_are_no_classes(tmp_path):
    for name in ("images", "labels"):
        folder_of(tmp_path / "yolo" / name, {"train": 2, "val": 2})
    refused(tmp_path / "yolo", "'images', 'labels'")
    for name in ("fold1", "fold2"):
        folder_of(tmp_path / "folds" / name, CLASSES)
    refused(tmp_path / "folds", "'fold1', 'fold2'", "'cat', 'dog'")


def test_a_table_may_divide_the_images_of_class_folders(tmp_path):
    folder_of(tmp_path, {"cat": 4, "dog": 4})
    rows = [(f"{name}/0{n}.png", name, "val" if n == 3 else "train") for name in ("cat", "dog") for n in range(4)]
    write_rows(tmp_path / "labels.csv", ("path", "label", "split"), *rows)
    assert tuple(map(len, load_splits(str(tmp_path)))) == (6, 2)


def test_a_training_table_that_wins_names_the_folders_that_no_table_lists(tmp_path, caplog):
    folder_of(tmp_path / "train", {"part0": 4})
    folder_of(tmp_path / "val", {"part0": 2})
    write_rows(tmp_path / "train.csv", ("path", "label"), *((f"train/part0/0{n}.png", "ab"[n % 2]) for n in range(4)))
    assert sum(map(len, load_splits(str(tmp_path), 0.5))) == 4
    assert any("'val'" in text for text in caplog.messages)


def test_a_validation_folder_may_lie_among_the_class_folders_if_both_are_named(tmp_path):
    folder_of(tmp_path, {"bus": 3, "train": 3})
    folder_of(tmp_path / "later", {"bus": 1, "train": 1})
    train, validation = load_splits(str(tmp_path), selection=Selection(train_split=".", validation_split="later"))
    assert (train.class_names, len(train), len(validation)) == (("bus", "train"), 6, 2)


def test_a_training_table_beside_other_folders_of_splits_is_used(tmp_path):
    folder_of(tmp_path, {"images": 4})
    folder_of(tmp_path / "val", {"a": 1, "b": 1})
    write_rows(tmp_path / "train.csv", ("path", "label"), *((f"0{n}.png", "ab"[n % 2]) for n in range(4)))
    assert load_splits(str(tmp_path), 0.5)[0].class_names == ("a", "b")


# What a reader of the data must not take for something else


@pytest.mark.parametrize("target", ["..", "../..", "../../.."])
def test_a_link_to_any_folder_above_adds_no_image(tmp_path, target, caplog):
    root = with_validation(tmp_path / "far" / "photos")
    (root / "train" / "cat" / "up").symlink_to(target)
    train, validation = load_splits(str(root))
    assert (len(train), len(validation)) == (5, 3)
    assert "loops" in caplog.text


def test_folders_with_the_same_folders_in_them_are_classes_with_a_warning(tmp_path, caplog):
    for patient in ("ann", "bob"):
        folder_of(tmp_path / "d" / patient, {"benign": 2, "malignant": 2})
    train, _ = load_splits(str(tmp_path / "d"))
    assert train.class_names == ("ann", "bob")
    assert "'ann', 'bob'" in caplog.text and "'benign', 'malignant'" in caplog.text


def test_images_of_32_bits_are_named_in_a_warning(tmp_path, caplog):
    folder = folder_of(tmp_path / "d", CLASSES)
    for number, mode in enumerate(("I", "F")):
        Image.new(mode, (9, 9), 1).save(folder / "cat" / f"deep{number}.tif")
    load_splits(str(folder))
    assert all(f"mode {mode}" in caplog.text for mode in "IF")


@pytest.mark.parametrize(
    ("names", "hint"),
    [(["cat/00", "dog/00"], ".png"), (["https://host/a.png", "http://host/b.png"], "download")],
)
def test_files_that_do_not_exist_are_explained(tmp_path, names, hint):
    folder = folder_of(tmp_path / "d", CLASSES)
    rows = [["file", "label"], *([name, name[0]] for name in names)]
    table = write_rows(folder / "list.csv", *rows)
    refused(table, "list.csv", hint)
