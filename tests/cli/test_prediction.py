"""`hf-deit predict`: what is printed and written, the exit code, and which files are kept."""

import csv
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from torch import nn

from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.recipes.predict import Predictor
from tests.helpers import tiny
from tests.helpers.runs import NAMES, hf_deit, refused, write_splits


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "photos")
    student = tiny.student(names=NAMES)
    for head in (student.cls_classifier, student.distillation_classifier):
        nn.init.normal_(head.weight, std=0.5)
    student.save_pretrained(room / "model")
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(room / "model")
    return room


@pytest.fixture(autouse=True)
def in_room(room, monkeypatch):
    monkeypatch.chdir(room)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_parquet_and_json_hold_the_same_rows(tmp_path, capsys):
    assert hf_deit("predict", "model", "photos", "--split", "val", "--csv", tmp_path / "a.csv", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert hf_deit("predict", "model", "photos/validation", "--parquet", tmp_path / "a.parquet") == 0
    own = ["p_bee", "p_cat", "p_dog"]
    heads = [f"{head}_{name}" for head in ("cls", "distillation") for name in own]
    columns = ["file", "label", "prediction", "score", *own, *heads]
    written, table = read_csv(tmp_path / "a.csv"), pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert list(written[0]) == table.column_names == columns and len(written) == len(printed) == 15
    for ours, text, row in zip(table.to_pylist(), written, printed, strict=True):
        assert ours == {name: row[name] for name in columns}
        assert [ours[name] for name in columns[3:]] == [float(text[name]) for name in columns[3:]]
        assert [ours[name] for name in columns[:3]] == [text[name] for name in columns[:3]]
        probabilities = {name: ours[f"p_{name}"] for name in NAMES}
        assert ours["score"] == max(probabilities.values()) == probabilities[ours["prediction"]]
        assert ours["label"] == ours["file"].split("/")[-2]
        assert row["image"] == row["file"] and dict(row["predictions"]) == probabilities
    assert not list(tmp_path.glob("_*"))


def test_every_readable_image_is_answered_and_failures_come_last(tmp_path, capfd):
    content = Path("photos/train/bee/00.png").read_bytes()
    for name in ("a.png", "c.png", "e.png"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "d.png").write_bytes(b"no image")
    files = [tmp_path / f"{name}.png" for name in "abcdef"]
    assert hf_deit("predict", "model", *files, "--top_k", 1, "--batch_size", 2) == 2
    out, err = capfd.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == [str(files[index]) for index in (0, 2, 4)]
    lines = err.splitlines()[-4:]
    assert "3 of 6" in lines[0]
    assert [line.strip().split(":")[0] for line in lines[1:]] == [str(files[index]) for index in (1, 3, 5)]
    for word in ("remove", "delete", "Traceback"):
        assert word not in err.lower()
    # The same in a file: those that are answered, in order.
    assert hf_deit("predict", "model", tmp_path, "--csv", tmp_path / "out.csv") == 2
    assert [row["file"] for row in read_csv(tmp_path / "out.csv")] == [str(files[index]) for index in (0, 2, 4)]
    err = capfd.readouterr().err
    assert "2 of 5" in err and "left out" not in err  # the file that is being written is no file of the folder
    assert hf_deit("predict", "model", tmp_path / "b.png", "--json") == 2
    assert json.loads(capfd.readouterr().out) == []


def test_names_come_from_standard_input(capsys, monkeypatch):
    names = sorted(entry.path for entry in os.scandir("photos/validation/cat"))
    given = os.fsencode("\n".join(names[1:]))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    assert hf_deit("predict", "model", names[0], "-", "photos/validation/dog", "--top_k", 1) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[: len(names)]] == names


def test_no_name_on_standard_input_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\n\n")))
    assert "standard input" in refused(capsys, "predict", "model", "-")


@pytest.mark.parametrize("option", ["--csv", "--parquet"])
def test_a_file_of_predictions_replaces_nothing_but_earlier_predictions(tmp_path, capsys, option):
    target, image = tmp_path / "labels.csv", tmp_path / "photo.png"
    target.write_text("file,label\nx.png,bee\n")
    image.write_bytes(Path("photos/train/bee/00.png").read_bytes())
    kept = {path: path.read_bytes() for path in (target, image)}
    for file in (target, image, tmp_path, os.devnull):
        assert str(file) in refused(capsys, "predict", "model", "photos", option, file)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept

    target = tmp_path / "predictions"
    assert hf_deit("predict", "model", "photos/validation/cat", option, target) == 0
    before = target.read_bytes()
    refused(capsys, "predict", "model", target, option, target)  # it is an input
    refused(capsys, "predict", "model", tmp_path / "x.png", option, target)  # none is answered
    refused(capsys, "predict", "model2", "photos", option, target)  # there is no such model
    assert target.read_bytes() == before and len(list(tmp_path.iterdir())) == 3
    assert hf_deit("predict", "model", "photos/validation/dog", option, target) == 0
    assert target.read_bytes() != before


def test_two_files_of_one_name_and_bad_numbers_are_refused(tmp_path, capsys):
    given = ["predict", "model", "photos", "--csv", tmp_path / "x"]
    assert str(tmp_path / "x") in refused(capsys, *given, "--parquet", tmp_path / "x")
    assert "batch_size=0" in refused(capsys, *given, "--batch_size", 0)
    assert "top_k=0" in refused(capsys, *given, "--top_k", 0)
    assert "split='test'" in refused(capsys, "predict", "model", "photos/train/bee/00.png", "--split", "test")
    assert not list(tmp_path.iterdir())


def test_a_multi_label_model_predicts_all_classes_above_one_half(tmp_path):
    student = tiny.student(names=NAMES, problem_type="multi_label_classification")
    for head in (student.cls_classifier, student.distillation_classifier):
        head.weight.data.zero_()
        head.bias.data = nn.Parameter(head.bias.new_tensor([1.0, -1.0, 2.0]))
    student.save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    assert hf_deit("predict", tmp_path, "photos/validation/cat", "--csv", tmp_path / "out.csv") == 0
    for row in read_csv(tmp_path / "out.csv"):
        assert (row["label"], row["prediction"]) == ("cat", "dog;bee")
        assert [float(row[name]) for name in ("score", "p_bee", "p_cat", "p_dog")] == pytest.approx(
            [0.880797, 0.731059, 0.268941, 0.880797], abs=1e-6
        )


def test_classes_of_one_name_have_a_column_each(tmp_path):
    names = ("bee", "cat", "bee", "cat_1")
    tiny.student(names=names).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    columns = Predictor(str(tmp_path)).columns
    assert columns[4:8] == ["p_bee_0", "p_cat", "p_bee_2", "p_cat_1"]
    assert columns[8:12] == ["cls_p_bee_0", "cls_p_cat", "cls_p_bee_2", "cls_p_cat_1"]
