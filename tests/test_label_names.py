"""Class names from files and from installed packages; none is invented."""

import json
import logging
import sys
import types

import pytest

from hf_deit.label_names import LabelNamesError, imagenet_names, label_fields, read_label_names


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
        ("a.json", "{", "no file of class names"),
        ("a.json", '{"0": "ant", "2": "cat"}', "indices are not 0 to 1"),
        ("a.json", '{"ant": 0}', "no file of class names"),
        ("a.json", "[1, 2]", "class 0 has no name"),
        ("a.json", "3", "no file of class names"),
    ],
)
def test_a_file_without_a_name_for_each_class_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelNamesError, match=message):
        read_label_names(tmp_path / name)


def test_a_file_that_is_not_there_or_for_other_classes_is_refused(tmp_path):
    with pytest.raises(LabelNamesError, match="one name a line"):
        read_label_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("ant\nbee")
    with pytest.raises(LabelNamesError, match="names 2 classes and the weights have 3"):
        label_fields(3, tmp_path / "names.txt")


def stub_timm(monkeypatch, names):
    # The one call of timm's that is used, as its documentation describes it.
    info = types.SimpleNamespace(label_descriptions=lambda: names)
    module = types.SimpleNamespace(ImageNetInfo=lambda subset: info if subset == "imagenet-1k" else None)
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(data=module))
    monkeypatch.setitem(sys.modules, "timm.data", module)


def test_a_thousand_classes_are_named_by_a_package_that_brings_the_names(monkeypatch):
    names = [f"animal {index}" for index in range(999)] + ["animal 7"]
    stub_timm(monkeypatch, names)
    assert imagenet_names() == (names, "timm")
    fields = label_fields(1000, None)
    assert fields["id2label"] == dict(enumerate(names))
    assert fields["label2id"]["animal 7"] == 7 and len(fields["label2id"]) == 999  # ImageNet has two cranes
    assert label_fields(10, None) == {}


def test_a_package_with_another_number_of_names_is_not_believed(monkeypatch):
    stub_timm(monkeypatch, ["ant"])
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert imagenet_names() is None


def test_without_such_a_package_the_classes_stay_numbers_and_it_is_said(monkeypatch, caplog):
    for package in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
    with caplog.at_level(logging.WARNING):
        assert label_fields(1000, None) == {}
    assert "stay LABEL_0 to LABEL_999" in caplog.text and "timm or torchvision" in caplog.text
