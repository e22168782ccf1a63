"""Tests of class names that are read from files."""

import json
import logging

import pytest

from hf_deit.errors import UserError
from hf_deit.models.label_names import label_fields, read_label_names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "ant\nbee, honey\n cat \n\n"),
        ("names.txt", "\ufeffant\r\nbee, honey\r\ncat"),
        ("names.json", json.dumps(["ant", "bee, honey", "cat"])),
        ("names.json", json.dumps({"2": "cat", "0": "ant", "1": "bee, honey"})),
        ("config.json", json.dumps({"id2label": {"0": "ant", "1": "bee, honey", "2": "cat"}})),
    ],
)
def test_names_are_read_in_index_order(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_label_names(tmp_path / name) == ["ant", "bee, honey", "cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "class 0 has no name"),
        ("a.txt", "ant\n\ncat", "class 1 has no name"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"0": "ant", "2": "cat"}', "0 to 1"),
        ("a.json", '{"ant": 0}', "a.json"),
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
