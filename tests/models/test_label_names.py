"""Tests of class names: files of them, and the classes of data among those of a model."""

import json
import logging

import pytest

from hf_deit.errors import UserError
from hf_deit.models.label_names import (
    class_names,
    label_fields,
    match_classes,
    read_class_names,
    read_label_names,
    unique_names,
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "ant\nbee, honey\n cat \n\n"),
        ("names.txt", "\ufeffant\r\nbee, honey\r\ncat"),
        ("names.json", json.dumps(["ant", "bee, honey", "cat"])),
        ("names.json", json.dumps({"2": "cat", "0": "ant", "1": "bee, honey"})),
        ("names.json", json.dumps({"cat": 2, "ant": 0, "bee, honey": 1})),  # as Keras and label2id write it
        ("names.csv", 'ant\n"bee, honey"\ncat\n'),
        ("names.csv", 'index,name\n0,ant\n1,"bee, honey"\n2,cat\n'),
        ("names.csv", "name;id\ncat;2\nbee, honey;1\nant;0\n"),
        ("names.tsv", "0\tant\n1\tbee, honey\n2\tcat\n"),
        ("names.yaml", "- ant\n- bee, honey\n- cat\n"),
        ("names.yml", "0: ant\n1: bee, honey\n2: cat\n"),
        ("names.txt", "0: ant\n1: bee, honey\n2: cat\n"),
        ("data.yaml", "nc: 3\nnames: [ant, 'bee, honey', cat]\n"),
        ("data.yml", "path: photos\nnames:\n  0: ant\n  1: bee, honey\n  2: cat\n"),
        ("config.json", json.dumps({"id2label": {"0": "ant", "1": "bee, honey", "2": "cat"}})),
    ],
)
def test_names_are_read_in_index_order(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_label_names(tmp_path / name) == ["ant", "bee, honey", "cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a.txt"),
        ("a.txt", "ant\n\ncat", "class 1 has no name"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"0": "ant", "2": "cat"}', "0 to 1"),
        ("a.json", '{"ant": 1}', "a.json.*0 to 0"),
        ("a.json", '{"n01": "ant"}', "n01.*0 to 0"),
        ("a.json", '{"a": "ant", "a": "bee"}', "'ant'.*'bee'.*'a'"),
        ("a.csv", "0,ant\n1,bee,honey", "row 2.*3.*row 1.*2"),
        ("a.yaml", "a: [1", "a.yaml"),
        ("a.json", "[1, 2]", "class 0 has no name"),
        ("a.json", "3", "a.json"),
    ],
)
def test_a_file_without_a_name_for_each_class_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_names(tmp_path / name)


def test_a_missing_file_and_a_file_with_too_few_names_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"names\.txt.*No such file"):
        read_label_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("ant\nbee")
    with pytest.raises(UserError, match="2 classes.*3"):
        label_fields(3, tmp_path / "names.txt")


def test_without_a_file_the_classes_have_no_names_and_a_warning_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert label_fields(1000, None) == {}
    assert "LABEL_0 to LABEL_999" in caplog.text and "labels" in caplog.text


def test_repeated_names_keep_their_indices(tmp_path):
    (tmp_path / "names.txt").write_text("crane\nbee\ncrane")  # ImageNet has two cranes
    fields = label_fields(3, tmp_path / "names.txt")
    assert fields["id2label"] == {0: "crane", 1: "bee", 2: "crane"} and fields["label2id"] == {"crane": 0, "bee": 1}


# Names of folders, numbers and ids


IDS = ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("name", "text", "classes", "renamed"),
    [
        ("a.json", json.dumps({"n01440764": "tench", "n01443537": "goldfish"}), IDS, ("tench", "goldfish")),
        ("a.yaml", "n01443537: goldfish\nn01440764: tench\n", IDS, ("tench", "goldfish")),
        ("a.csv", "wnid,name\nn01440764,tench\nn01443537,goldfish", IDS, ("tench", "goldfish")),
        ("a.csv", "goldfish,n01443537\ntench,n01440764", IDS, ("tench", "goldfish")),
        ("a.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish", IDS, ("tench, Tinca tinca", "goldfish")),
        ("a.json", json.dumps({"0": [IDS[0], "tench"], "1": [IDS[1], "goldfish"]}), IDS[1:], ("goldfish",)),
        ("a.json", json.dumps({"0": [IDS[0], "tench"], "1": [IDS[1], "goldfish"]}), ["1", "0"], ("goldfish", "tench")),
        ("a.yaml", "001: cat\n002: dog\n", ["001", "002"], ("cat", "dog")),
        ("a.json", json.dumps({"1": "cat", "2": "dog"}), ["1", "2"], ("cat", "dog")),
        ("a.txt", "cat\ndog\neel", ["0", "2"], ("cat", "eel")),
        ("a.txt", "\n".join("abcdefghij"), ["1", "10", *"23456789"], tuple("ajbcdefghi")),  # folders numbered from 1
        ("a.txt", "cat\ndog", ["001", "002"], ("cat", "dog")),
        ("a.txt", "cat\ndog\neel", ["dog", "cat"], ("dog", "cat")),  # names already
        ("a.json", json.dumps({"caf\u00e9": "bar"}), ["cafe\u0301"], ("bar",)),
    ],
)
def test_a_file_names_folders_numbers_and_ids(tmp_path, name, text, classes, renamed):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name).rename(classes) == renamed


@pytest.mark.parametrize(
    ("text", "classes", "multi_label"),
    [
        ("cat\ndog", ["0", "2"], False),
        ("cat\ndog", ["a", "b", "c"], False),
        ("cat\ndog", ["cat", "b"], False),
        ("cat\ndog\neel", ["0", "1"], True),
        ("n01440764 tench", IDS, False),
    ],
)
def test_a_class_without_a_name_in_the_file_is_refused(tmp_path, text, classes, multi_label):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match="class_names=.*a.txt"):
        read_class_names(tmp_path / "a.txt").rename(classes, multi_label)


def test_a_message_lists_at_most_ten_classes(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"name{number}" for number in range(1000)))
    with pytest.raises(UserError) as caught:
        read_class_names(tmp_path / "a.txt").rename([f"folder{number}" for number in range(500)])
    text = str(caught.value)
    assert text.count("'name") == text.count("'folder") == 10
    assert "1000 in all" in text and "500 in all" in text


def test_two_classes_of_one_name_are_kept_and_reported(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("a,crane\nb,hat\nc,crane")
    assert read_class_names(tmp_path / "a.csv").rename(["a", "b", "c"]) == ("crane", "hat", "crane")
    assert "'crane'" in caplog.text


# Classes of data and of a model


def matched(classes, names, **options):
    return match_classes(classes, names, ValueError, **options)


def test_classes_are_found_by_name_before_they_are_taken_as_indices():
    assert matched(["eel", "cat"], ["cat", "dog", "eel"]).indices == [2, 0]
    assert matched(["cafe\u0301"], ["caf\u00e9", "tea"]).indices == [0]
    assert matched(["2", "1"], ["1", "2", "3"]).indices == [1, 0]  # names that are numbers
    by_index = matched(["2", "0"], ["cat", "dog", "eel"])
    assert (by_index.indices, by_index.by_index) == ([2, 0], True)
    assert matched(["0", "1", "2"], ["a", "b", "c"], multi_label=True).indices == [0, 1, 2]


@pytest.mark.parametrize(
    ("classes", "names", "multi_label", "named"),
    [
        (["3"], ["cat", "dog", "eel"], False, "0 to 2"),
        (["0", "1"], ["1", "2", "3"], False, "'0'"),
        (["01"], ["cat", "dog"], False, "'01'"),
        (["0", "1"], ["cat", "dog", "eel"], True, "one for each class"),
        (["emu"], ["cat", "dog"], False, "'emu'"),
        (["a", "a"], ["a", "b", "a"], False, "'a'"),
        (["a", "b"], ["a", "b", "a"], True, "'a'"),
    ],
)
def test_classes_that_are_neither_names_nor_indices_are_refused(classes, names, multi_label, named):
    with pytest.raises(ValueError, match=named):
        matched(classes, names, multi_label=multi_label)


def test_a_name_that_a_model_has_twice_is_counted_by_index():
    names = ["crane", "hat", "crane"]
    assert matched(names, names).indices == [0, 1, 2]
    assert matched(["0", "2"], names).indices == [0, 2]
    either = matched(["crane", "hat"], names)
    assert (either.indices, either.same) == ([0, 1], [[0, 2]])
    assert unique_names(names) == ["crane (0)", "hat", "crane (2)"]


def test_names_may_be_given_as_a_list():
    assert class_names(["cat", " dog"]) == ["cat", "dog"]
    assert class_names(["LABEL_0", "LABEL_1"]) is None
