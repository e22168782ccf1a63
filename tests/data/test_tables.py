"""Sources from tables: columns of images and labels, single-label and multi-label data, and all formats of tables."""

import json
import os

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_deit.data.loading import load_splits, load_validation
from hf_deit.data.sources import without_unreadable
from hf_deit.data.tables import Columns
from hf_deit.errors import DataError
from tests.helpers.images import picture, pixels_of, saved
from tests.helpers.tables import (
    KINDS,
    as_csv,
    as_parquet_of_images,
    as_parquet_of_structures,
    lines,
    paths,
    table,
    write,
)

datasets.disable_progress_bars()

KIND = Columns(labels=("kind",))


pytestmark = pytest.mark.usefixtures("own_cache")


def as_tsv(folder):
    return write(folder / "table.tsv", lines(("file", "kind"), *zip(paths(), KINDS, strict=True), separator="\t"))


def as_json_lines(folder):
    rows = [json.dumps({"file": path, "kind": kind}) for path, kind in zip(paths(), KINDS, strict=True)]
    return write(folder / "table.jsonl", "\n".join(rows))


def as_parquet_of_bytes(folder):
    content = [(folder / path).read_bytes() for path in paths()]
    datasets.Dataset.from_dict({"file": content, "kind": KINDS}).to_parquet(folder / "table.parquet")
    return str(folder / "table.parquet")


def as_saved_data_set(folder):
    features = datasets.Features({"file": datasets.Image(), "kind": datasets.Value("string")})
    rows = {"file": [str(folder / path) for path in paths()], "kind": KINDS}
    return saved(datasets.Dataset.from_dict(rows, features=features), folder / "set")


@pytest.mark.parametrize(
    "make",
    [
        as_csv,
        as_tsv,
        as_json_lines,
        as_parquet_of_structures,
        as_parquet_of_bytes,
        as_parquet_of_images,
        as_saved_data_set,
    ],
)
def test_every_format_of_table_has_the_same_images_and_labels(photos, make):
    source = load_validation(make(photos), columns=Columns("file", ("kind",)))
    assert source.class_names == ("cat", "dog", "eel")
    assert [source.class_names[label] for label in source.labels] == KINDS
    assert source.problem_type == "single_label_classification"
    for number, pixels in enumerate(pixels_of(source)):
        np.testing.assert_array_equal(pixels, np.asarray(picture(number)))


@pytest.mark.parametrize("make", [as_csv, as_parquet_of_structures])
def test_a_single_table_is_split_by_class_as_determined_by_the_seed(photos, make):
    columns = Columns(labels=("kind",))
    train, validation = load_splits(make(photos), 0.4, 3, columns)
    everything = load_validation(make(photos), columns=columns)
    assert [list(source.labels).count(label) for source in (train, validation) for label in range(3)] == [
        2,
        2,
        2,
        2,
        1,
        1,
    ]
    held_out = [pixels.tobytes() for pixels in pixels_of(validation)]
    rest = [pixels.tobytes() for pixels in pixels_of(train)]
    assert sorted(held_out + rest) == sorted(pixels.tobytes() for pixels in pixels_of(everything))
    again = load_validation(make(photos), 0.4, 3, columns)
    assert [pixels.tobytes() for pixels in pixels_of(again)] == held_out


def test_a_folder_of_tables_has_a_split_per_table_and_the_classes_of_the_training_table(photos):
    write(photos / "train.csv", lines(("file", "label"), *zip(paths()[:6], KINDS[:6], strict=True)))
    write(photos / "validation.csv", lines(("file", "label"), ("photos/6.png", "eel"), ("photos/8.png", "cat")))
    train, validation = load_splits(str(photos))
    assert (len(train), list(validation.labels)) == (6, [2, 0])
    assert validation.class_names == train.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(pixels_of(validation)[1], np.asarray(picture(8)))


def test_a_class_that_only_the_validation_table_has_is_refused_by_name(photos):
    write(photos / "train.csv", lines(("file", "label"), *zip(paths()[:6], KINDS[:6], strict=True)))
    write(photos / "validation.csv", lines(("file", "label"), ("photos/6.png", "emu")))
    assert_refused(photos, "'emu'", "validation")


def test_numeric_classes_are_sorted_as_numbers(photos):
    values = [10, 2, 10, 2, 33, 33, 10, 2, 2, 10]
    source = load_validation(table(photos, values), columns=Columns(labels=("kind",)))
    assert source.class_names == ("2", "10", "33")
    assert [int(source.class_names[label]) for label in source.labels] == values


def test_a_class_may_have_a_name_that_pandas_reads_as_missing(photos):
    source = load_validation(table(photos, ["NA", "None"] * 5), columns=Columns(labels=("kind",)))
    assert source.class_names == ("NA", "None")
    assert list(source.labels) == [0, 1] * 5


# Multi-label data

TAGS = [["red"], ["red", "wide"], [], ["wide", "old"], ["old"], ["red"], ["wide"], ["old", "red", "wide"], [], ["red"]]
TAG_ROWS = [tuple(int(name in tags) for name in ("old", "red", "wide")) for tags in TAGS]


def flags(folder):
    rows = [(path, *row) for path, row in zip(paths(), TAG_ROWS, strict=True)]
    return write(folder / "tags.csv", lines(("file", "old", "red", "wide"), *rows))


def separated(folder):
    return table(folder, [" ; ".join(tags) for tags in TAGS], head="tags")


def listed(folder):
    rows = [json.dumps({"file": path, "tags": tags}) for path, tags in zip(paths(), TAGS, strict=True)]
    return write(folder / "tags.jsonl", "\n".join(rows))


def listed_class_labels(folder):
    label = datasets.ClassLabel(names=["old", "red", "wide"])
    features = datasets.Features({"file": datasets.Image(), "tags": datasets.Sequence(label)})
    columns = {"file": [str(folder / path) for path in paths()]}
    columns["tags"] = [[label.str2int(tag) for tag in tags] for tags in TAGS]
    return saved(datasets.Dataset.from_dict(columns, features=features), folder / "set")


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (flags, Columns(labels=("old", "red", "wide"))),
        (separated, Columns(labels=("tags",), separator=";")),
        (listed, Columns(labels=("tags",))),
        (listed_class_labels, Columns(labels=("tags",))),
    ],
)
def test_multi_label_classes_become_rows_of_zeros_and_ones(photos, make, columns):
    source = load_validation(make(photos), columns=columns)
    assert source.class_names == ("old", "red", "wide")
    assert list(source.labels) == TAG_ROWS
    assert source.problem_type == "multi_label_classification"
    train, validation = load_splits(make(photos), 0.2, 0, columns)
    assert (len(train), len(validation)) == (8, 2)
    assert validation.problem_type == "multi_label_classification"


# Fingerprints and broken images


def test_the_fingerprint_of_a_table_changes_only_with_labels_and_images(photos):
    columns = Columns(labels=("kind",))
    first = load_validation(as_csv(photos), columns=columns).fingerprint
    assert load_validation(as_csv(photos), columns=columns).fingerprint == first
    other_labels = load_validation(table(photos, KINDS[::-1], "other.csv"), columns=columns).fingerprint
    picture(99).save(photos / "photos" / "3.png")
    other_image = load_validation(as_csv(photos), columns=columns).fingerprint
    assert len({first, other_labels, other_image}) == 3


@pytest.mark.parametrize("make", [as_csv, as_parquet_of_structures, as_parquet_of_bytes])
def test_a_row_with_an_unreadable_image_is_left_out_with_its_label(photos, make, caplog):
    (photos / "photos" / "3.png").write_text("no image")
    path, columns = make(photos), Columns(labels=("kind",))
    source = load_validation(path, columns=columns)
    assert [source.class_names[label] for label in source.labels] == KINDS[:3] + KINDS[4:]
    np.testing.assert_array_equal(pixels_of(source)[3], np.asarray(picture(4)))
    assert len(source.left_out) == 1
    assert "1 of 10 images" in caplog.text
    with pytest.raises(DataError, match="1 file"):
        load_validation(path, columns=columns, broken_images="raise")


def test_a_row_whose_file_is_missing_is_left_out(photos):
    (photos / "photos" / "3.png").unlink()
    source = load_validation(as_csv(photos), columns=Columns(labels=("kind",)))
    assert len(source) == 9
    assert "3.png" in source.left_out[0]


# Errors


def assert_refused(data, *parts, columns=None):
    with pytest.raises(DataError) as error:
        load_splits(str(data), columns=columns)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_a_missing_column_is_refused_with_the_existing_columns(photos):
    path = as_csv(photos)
    assert_refused(path, "'sort'", "label_column", "file: Value ", "kind: Value ", columns=Columns(labels=("sort",)))
    assert_refused(path, "'photo'", "image_column", "file: Value", columns=Columns("photo", ("kind",)))
    assert_refused(path, "ClassLabel", "label_column", "kind: Value")


def test_paths_relative_to_another_folder_are_refused_with_the_right_folder(photos):
    (photos / "elsewhere").mkdir()
    path = table(photos / "elsewhere", KINDS)
    assert_refused(path, "10 files", str(photos / "elsewhere"), columns=Columns(labels=("kind",)))


@pytest.mark.parametrize("content", ["", "file,kind\n"])
def test_a_table_without_rows_is_refused(photos, content):
    assert_refused(write(photos / "table.csv", content), "table.csv", columns=Columns(labels=("kind",)))


def test_a_row_without_a_label_is_refused_with_its_number(photos):
    for column in (["cat", "dog", "", *KINDS[3:]], [0, 1, "", 1, 0, 0, 0, 1, 1, 1]):
        assert_refused(table(photos, column), "without a label", "row 2", columns=Columns(labels=("kind",)))


def test_numbers_with_a_fraction_are_refused_as_classes(photos):
    assert_refused(table(photos, [0.5, 1.5] * 5), "'kind'", "float64", columns=Columns(labels=("kind",)))


def test_a_column_of_mixed_types_is_refused(photos):
    rows = [json.dumps({"file": path, "kind": kind}) for path, kind in zip(paths(), [1, "cat"] * 5, strict=True)]
    assert_refused(write(photos / "table.jsonl", "\n".join(rows)), "'kind'", columns=Columns(labels=("kind",)))


def test_a_flag_that_is_neither_zero_nor_one_is_refused_with_its_row(photos):
    rows = [(path, 1, 2 if path == "photos/4.png" else 0) for path in paths()]
    path = write(photos / "tags.csv", lines(("file", "a", "b"), *rows))
    assert_refused(path, "Row 4", "'2'", "'b'", "0 or 1", columns=Columns(labels=("a", "b")))


def test_a_separator_for_several_columns_is_refused():
    with pytest.raises(DataError, match="label_separator=';'"):
        Columns(labels=("a", "b"), separator=";")


def test_columns_for_a_folder_of_class_folders_are_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    assert_refused(tmp_path, str(tmp_path), "image_column", "label_column", columns=Columns(labels=("kind",)))


# Missing images, duplicates and similar class names


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_row_without_a_path_is_left_out_and_reported_with_its_number(photos, kind):
    files = [path if number not in (2, 7) else None for number, path in enumerate(paths())]
    if kind == "csv":
        path = write(
            photos / "table.csv", lines(("file", "kind"), *zip([file or "" for file in files], KINDS, strict=True))
        )
    elif kind == "jsonl":
        rows = [json.dumps({"file": file, "kind": label}) for file, label in zip(files, KINDS, strict=True)]
        path = write(photos / "table.jsonl", "\n".join(rows))
    else:
        path = str(photos / "table.parquet")
        datasets.Dataset.from_dict({"file": files, "kind": KINDS}).to_parquet(path)
    source = load_validation(path, columns=Columns(labels=("kind",)))
    assert [source.class_names[label] for label in source.labels] == [*KINDS[:2], *KINDS[3:7], *KINDS[8:]]
    assert [text.split(":")[0] for text in source.left_out] == ["no image in row 2", "no image in row 7"]
    with pytest.raises(DataError, match="row 2"):
        load_validation(path, columns=Columns(labels=("kind",)), broken_images="raise")


def test_an_embedded_image_is_named_by_its_row_of_the_table_in_every_subset(photos):
    content = [(photos / path).read_bytes() for path in paths()]
    content = [data[:-400] if number in (3, 8) else data for number, data in enumerate(content)]
    datasets.Dataset.from_dict({"file": content, "kind": KINDS}).to_parquet(str(photos / "table.parquet"))
    source = load_validation(str(photos / "table.parquet"), columns=Columns(labels=("kind",)))
    part = source.subset([9, 8, 0], "a part").subset([1, 0], "a smaller part")
    assert source.left_out == ()  # the headers are valid
    (reason,) = without_unreadable(part).left_out
    assert reason.startswith("embedded in row 8: ")


def test_paths_of_windows_are_refused(photos):
    rows = [(path.replace("/", "\\"), kind) for path, kind in zip(paths(), KINDS, strict=True)]
    path = write(photos / "table.csv", lines(("file", "kind"), *rows))
    assert_refused(path, "10 files", "photos\\0.png", "backslashes", columns=KIND)


def test_an_empty_validation_table_is_refused_by_its_name(photos):
    table(photos, KINDS, "train.csv")
    empty = write(photos / "validation.csv", "")
    with pytest.raises(DataError) as error:
        load_splits(str(photos), columns=KIND)
    assert f"{empty} (the split 'validation')" in str(error.value)
    assert "same columns" not in str(error.value)


def test_classes_that_differ_only_in_case_or_spaces_are_kept_with_one_warning(photos, caplog):
    path = table(photos, ["dress", "DRESS", "dress ", "coat", "hat"] * 2)
    train, _ = load_splits(path, columns=KIND)
    assert set(train.class_names) == {"dress", "DRESS", "dress ", "coat", "hat"}
    (warning,) = [message for message in caplog.messages if "upper and lower case" in message]
    assert "3 classes" in warning
    assert all(name in warning for name in ("'dress'", "'DRESS'", "'dress '"))
    assert "coat" not in warning


@pytest.mark.parametrize("split", [True, False])
def test_files_in_training_and_validation_are_counted_in_one_warning(photos, caplog, split):
    if split:  # a single table in which each row occurs five times
        table_path = write(photos / "table.csv", lines(("file", "kind"), *list(zip(paths(), KINDS, strict=True)) * 5))
    else:
        table(photos, KINDS, "train.csv")
        extra = [("photos/../photos/4.png", KINDS[4]), ("photos/5.png", KINDS[5]), ("new.png", KINDS[0])]
        picture(77).save(photos / "new.png")
        write(photos / "validation.csv", lines(("file", "kind"), *extra))
        table_path = photos
    train, validation = load_splits(str(table_path), columns=KIND)
    real = {os.path.realpath(item) for item in train.items}
    shared = sum(os.path.realpath(item) in real for item in validation.items)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{shared} of {len(validation)} validation images")
    assert shared == 2 if not split else shared > 0


def test_without_shared_files_there_is_no_warning(photos, caplog):
    load_splits(table(photos, KINDS), columns=KIND)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
