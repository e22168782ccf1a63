"""Labels of tables: multi-hot lists, texts that look like numbers, missing labels, and files with two labels."""

import json
import pickle
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_deit.data.loading import load_splits, load_stream, load_validation
from hf_deit.data.tables import Columns, TableReader
from hf_deit.errors import DataError
from tests.helpers.images import saved
from tests.helpers.tables import lines, paths, table, write

datasets.disable_progress_bars()

KIND = Columns(labels=("kind",))
ROWS = [(1, 0, 0), (0, 1, 1), (0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (1, 1, 1), (0, 0, 0), (0, 1, 1)]

pytestmark = pytest.mark.usefixtures("own_cache")


def json_lines(folder, labels, name="table.jsonl"):
    rows = [json.dumps({"file": path, "kind": label}) for path, label in zip(paths(), labels, strict=True)]
    return write(folder / name, "\n".join(rows))


def parquet(folder, labels, kind):
    pq.write_table(pa.table({"file": paths(), "kind": pa.array(labels, kind)}), folder / "table.parquet")
    return str(folder / "table.parquet")


def saved_set(folder, labels, feature):
    features = datasets.Features({"file": datasets.Image(), "kind": feature})
    rows = {"file": [str(folder / path) for path in paths()], "kind": labels}
    return saved(datasets.Dataset.from_dict(rows, features=features), folder / "set")


def reader(labels, feature=None, columns=("kind",), **options):
    features = None if feature is None else datasets.Features({"file": datasets.Value("string"), "kind": feature})
    rows = {"file": [f"{number}.png" for number in range(len(labels))], "kind": labels}
    return TableReader(
        datasets.Dataset.from_dict(rows, features=features), Columns("file", columns, **options), "the table"
    )


def refusal(labels, feature=None, **options):
    with pytest.raises(DataError) as caught:
        found = reader(labels, feature, **options)
        found.labels()
    return str(caught.value)


# Lists of zeros and ones


MULTI_HOT = {
    "whole numbers in JSON lines": lambda folder: json_lines(folder, ROWS),
    "truth values in JSON lines": lambda folder: json_lines(folder, [[flag == 1 for flag in row] for row in ROWS]),
    "fractions in JSON lines": lambda folder: json_lines(folder, [[float(flag) for flag in row] for row in ROWS]),
    "a mapping of names": lambda folder: json_lines(folder, [dict(zip("012", row, strict=True)) for row in ROWS]),
    "lists of float32 in parquet": lambda folder: parquet(folder, ROWS, pa.list_(pa.float32())),
    "lists of a fixed size in parquet": lambda folder: parquet(folder, ROWS, pa.list_(pa.uint8(), 3)),
    "large lists in parquet": lambda folder: parquet(folder, ROWS, pa.large_list(pa.int8())),
    "a sequence of datasets": lambda folder: saved_set(folder, ROWS, datasets.Sequence(datasets.Value("int64"), 3)),
    "an array of datasets": lambda folder: saved_set(
        folder, [[row] for row in ROWS], datasets.Array2D((1, 3), "float32")
    ),
    "texts in a list": lambda folder: json_lines(folder, [list(map(str, row)) for row in ROWS]),
    "lists of Python in CSV": lambda folder: table(folder, [f'"{list(row)}"' for row in ROWS]),
    "zeros and ones with spaces in CSV": lambda folder: table(folder, [" ".join(map(str, row)) for row in ROWS]),
    "lists of NumPy in CSV": lambda folder: table(folder, [str(np.array(row, float)) for row in ROWS]),
}


@pytest.mark.parametrize("make", MULTI_HOT.values(), ids=MULTI_HOT)
def test_lists_of_zeros_and_ones_are_multi_hot_labels(photos, make):
    source = load_validation(make(photos), columns=KIND)
    assert source.problem_type == "multi_label_classification"
    assert list(source.labels) == ROWS
    assert source.class_names == ("0", "1", "2")


def test_lists_of_class_labels_that_hold_only_the_first_two_are_indices():
    found = reader([[0, 1], [1, 0]], datasets.Sequence(datasets.ClassLabel(names=list("abcde"))))
    assert found.labels() == [(1, 1, 0, 0, 0)] * 2


@pytest.mark.parametrize("text", ["['polar bear' 'cat']", "['polar bear', 'cat']", '["cat", "polar bear"]'])
def test_lists_of_names_that_were_written_as_text_are_lists_of_names(text):
    found = reader([text, "['cat']"])
    assert (found.class_names, found.labels()) == (("cat", "polar bear"), [(1, 1), (1, 0)])


def test_separated_zeros_and_ones_are_multi_hot_labels():
    found = reader([" ".join(map(str, row)) for row in ROWS], separator=" ")
    assert found.labels() == ROWS
    assert found.class_names == ("0", "1", "2")


def test_the_names_of_a_sequence_of_classes_name_its_zeros_and_ones():
    for names, expected in ((["dress", "hat", "pants"], ("dress", "hat", "pants")), (["no", "yes"], ("0", "1", "2"))):
        found = reader(ROWS, datasets.Sequence(datasets.ClassLabel(names=names), 3))
        assert (found.class_names, found.labels()) == (expected, ROWS)


def test_several_columns_of_fractions_are_flags(photos):
    rows = {"file": paths(), **{name: [float(row[place]) for row in ROWS] for place, name in enumerate("abc")}}
    datasets.Dataset.from_dict(rows).to_parquet(str(photos / "t.parquet"))
    source = load_validation(str(photos / "t.parquet"), columns=Columns(labels=("a", "b", "c")))
    assert list(source.labels) == ROWS


def test_the_validation_split_of_multi_hot_lists_is_read_as_the_training_split(photos):
    json_lines(photos, ROWS, "train.jsonl")
    json_lines(photos, [(0, 1, 0)] * 10, "validation.jsonl")
    train, validation = load_splits(str(photos), columns=KIND)
    assert (train.class_names, set(validation.labels)) == (("0", "1", "2"), {(0, 1, 0)})


@pytest.mark.parametrize(
    ("rows", "classes", "labels"),
    [
        ([[0, 1], [1], [0], []], ("0", "1"), [(1, 1), (0, 1), (1, 0), (0, 0)]),
        ([[3, 10], [10], [7, 3, 10]], ("3", "7", "10"), [(1, 0, 1), (0, 0, 1), (1, 1, 1)]),
        ([["b", "a"], ["b"], ["b", "b"]], ("a", "b"), [(1, 1), (0, 1), (0, 1)]),
    ],
)
def test_lists_of_classes_stay_lists_of_classes(rows, classes, labels):
    found = reader(rows)
    assert (found.class_names, found.labels()) == (classes, labels)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([[0, 1, 0], [0, 1], [1, 1, 0]], ["'kind'", "3 in row 0", "2 in row 1"]),
        ([[0, 1, 0], [0, 2, 0], [1, 1, 0]], ["'kind'", "row 0"]),
        ([[0.0, 1.0], [0.7, 0.3]], ["'kind'", "0.3", "0.7"]),
        ([[0], [1], [0]], ["'kind'", "0 or 1"]),
        ([[1.0, float("nan")], [1.0, 0.0]], ["'kind'", "nan"]),
        ([[-1, 1, 1], [1, -1, -1]], ["-1", "row 0"]),
    ],
)
def test_lists_that_are_neither_classes_nor_zeros_and_ones_are_refused(rows, parts):
    message = refusal(rows)
    assert all(part in message for part in parts), message


def test_a_list_that_numpy_shortened_is_refused():
    assert "..." in refusal(["[0 1 ... 1 0]", "[1 0 ... 1 0]"])


def test_a_multi_hot_list_of_another_length_is_refused_in_a_stream(photos):
    json_lines(photos, ROWS, "train.jsonl")
    json_lines(photos, [(0, 1)] * 10, "validation.jsonl")
    with pytest.raises(DataError, match="2 zeros and ones for 3 classes"):
        load_stream(str(photos), KIND)


def test_a_class_of_every_image_is_refused_for_training_only(photos):
    constant = json_lines(photos, [(1, flags[1], flags[2]) for flags in ROWS])
    with pytest.raises(DataError, match="'0'.*cannot be learned"):
        load_splits(constant, columns=KIND)
    assert len(load_validation(constant, columns=KIND)) == 10


# Texts and numbers


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["001", "002"], ("001", "002")),
        (["1e5", "2e5"], ("1e5", "2e5")),
        (["1.10", "1.2"], ("1.10", "1.2")),
        (["true", "false"], ("false", "true")),
        (["0x1F", "7"], ("0x1F", "7")),
        (["+1", "-1"], ("+1", "-1")),
        (["1_000", "5"], ("1_000", "5")),
        (["nan", "inf"], ("inf", "nan")),
        (["10", "9"], ("9", "10")),
        (["12345678901234567890", "9"], ("9", "12345678901234567890")),
        ([" 2", "10"], ("2", "10")),
        (["[cat]", "[dog]"], ("[cat]", "[dog]")),
    ],
)
def test_texts_of_a_csv_file_stay_texts_and_whole_numbers_are_sorted(photos, values, classes):
    source = load_validation(table(photos, values * 5), columns=KIND)
    assert source.class_names == classes
    assert [source.class_names[label] for label in source.labels] == [value.strip() for value in values] * 5
    assert source.problem_type == "single_label_classification"


def test_labels_are_read_alike_however_far_apart_numbers_and_names_are(photos):
    """`datasets` reads 10,000 rows at a time and would find whole numbers in the first of them."""
    rows = [("photos/0.png", "7")] * 10_000 + [("photos/1.png", "007")] * 2
    source = load_validation(write(photos / "t.csv", lines(("file", "kind"), *rows)), columns=KIND)
    assert source.class_names == ("007", "7")


@pytest.mark.parametrize("make", [table, json_lines])
@pytest.mark.parametrize("value", [-1, "-1", ""])
def test_minus_one_means_no_label_in_every_table(photos, make, value):
    if make is json_lines and value == "":
        value = None
    other = "a" if isinstance(value, str) else 3
    with pytest.raises(DataError, match=r"without a label .*row 4"):
        load_validation(make(photos, [other] * 4 + [value] + [other] * 5), columns=KIND)


def test_a_stream_of_numbers_refuses_minus_one_with_its_row(photos):
    table(photos, [1, 2] * 4 + [-1, 1], "train.csv")
    table(photos, [1, 2] * 5, "validation.csv")
    with pytest.raises(DataError, match="row 8"):
        load_stream(str(photos), KIND)


def test_spellings_of_one_unicode_name_are_one_class(photos):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    both = load_validation(table(photos, [composed, decomposed] * 5), columns=KIND)
    assert both.class_names == (composed,)
    one = load_validation(table(photos, [decomposed, "tea"] * 5, "one.csv"), columns=KIND)
    assert one.class_names == (decomposed, "tea")  # as it is written
    table(photos, [composed, "tea"] * 5, "train.csv")
    table(photos, [decomposed, "tea"] * 5, "validation.csv")
    train, validation = load_splits(str(photos), columns=KIND)
    assert train.class_names == validation.class_names == (composed, "tea")
    assert list(validation.labels) == [0, 1] * 5


def test_class_folders_that_differ_only_in_normal_form_are_refused(photos):
    for number, name in enumerate(("caf\u00e9", "cafe\u0301")):
        (photos / "set" / name).mkdir(parents=True)
        (photos / paths()[number]).rename(photos / "set" / name / "a.png")
    with pytest.raises(DataError, match="normal form"):
        load_splits(str(photos / "set"))


def test_folders_of_another_normal_form_are_the_same_class(photos):
    for split, names in (("train", ("caf\u00e9", "tea")), ("validation", ("cafe\u0301", "tea"))):
        for number, name in enumerate(names):
            (photos / "set" / split / name).mkdir(parents=True)
            shutil.copy(photos / paths()[number], photos / "set" / split / name / "a.png")
    train, validation = load_splits(str(photos / "set"))
    assert train.class_names == validation.class_names == ("caf\u00e9", "tea")
    assert list(validation.labels) == [0, 1]


# Files with two labels


@pytest.mark.parametrize("again", ["photos/1.png", "photos/../photos/1.png"])
def test_a_file_with_two_labels_is_reported_once(photos, caplog, again):
    rows = [*zip(paths(), ["a", "b"] * 5, strict=True), (again, "a"), ("photos/2.png", "a")]
    load_validation(write(photos / "t.csv", lines(("file", "kind"), *rows)), columns=KIND)
    (warning,) = [message for message in caplog.messages if "different labels" in message]
    assert warning.startswith("1 file(s)")
    assert "1.png ('b', 'a')" in warning and "2.png" not in warning


def test_a_reader_of_labels_is_sent_to_worker_processes():
    for labels, options in (
        (["a", "b"], {}),
        (ROWS, {}),
        (["a;b", "b"], {"separator": ";"}),
        (["[0, 1]", "[1, 1]"], {}),
    ):
        found = reader(labels, **options)
        again = pickle.loads(pickle.dumps(found._labels))
        row = {"kind": labels[0]}
        assert again.label(row, 0) == found.label(row, 0)


@pytest.mark.parametrize(
    "text",
    [
        '{"choices": ["hat", "coat"]}',
        "{'shoe', 'wide'}",
        '{"red": 1, "wide": 0}',
        "array(['hat'], dtype=object)",
        "[shoe, wide]",
    ],
)
def test_a_text_in_the_notation_of_a_list_or_mapping_is_not_a_class(text):
    assert text[:20] in refusal([text, "hat", "coat"])


def test_texts_that_may_mean_a_missing_label_are_classes_with_a_warning(caplog):
    assert reader(["nan", "hat", "null", "NA"]).class_names == ("NA", "hat", "nan", "null")
    assert "'nan', 'null'" in caplog.text
