"""The table of predictions: heads, teacher and embeddings, compared with plain transformers and with `evaluate`."""

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

import hf_deit as package
from hf_deit.data.loading import load_splits
from hf_deit.errors import RecipeError, TeacherError, UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers import tiny
from tests.helpers.runs import FACTORY, NAMES, STUDENT, TEACHER_LABELS, by_hand, hf_deit, refused, train, write_splits

PREFIXES = {"": "logits", "cls_": "cls_logits", "distillation_": "distillation_logits"}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    student = tiny.student(names=NAMES)
    for head in (student.cls_classifier, student.distillation_classifier):
        nn.init.normal_(head.weight, std=0.5)
    student.save_pretrained(room / "model")
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(room / "model")
    order = ("dog", "ant", "cat", "bee")  # of another order, and one class more
    teacher = tiny.student(False, seed=4, names=order)
    nn.init.normal_(teacher.classifier.weight, std=0.5)
    teacher.save_pretrained(room / "teacher")
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(room / "teacher")
    return room


@pytest.fixture(scope="module")
def validation(room):
    return load_splits(str(room / "data"))[1]


@pytest.fixture(scope="module")
def table(room):
    return package.predict(
        room / "model", room / "data", split="val", as_dataset=True, teacher=room / "teacher", embeddings=True
    )


def columns(prefix):
    return [f"{prefix}p_{name}" for name in NAMES]


def test_each_head_has_the_probabilities_of_plain_transformers(room, validation, table):
    _, _, heads = by_hand(room / "model", validation)
    rows = table.to_pandas()
    assert list(rows["file"]) == list(validation.items)
    for prefix, name in PREFIXES.items():
        assert rows[columns(prefix)].to_numpy() == pytest.approx(heads[name].softmax(-1).numpy(), abs=1e-5)


def test_the_teacher_has_the_probabilities_of_its_own_model_in_the_order_of_the_student(room, validation, table):
    teacher = AutoModelForImageClassification.from_pretrained(room / "teacher").eval()
    processor = DeiTImageProcessor.from_pretrained(room / "teacher")
    order = [teacher.config.label2id[name] for name in NAMES]
    rows = table.to_pandas()[columns("teacher_")].to_numpy()
    with torch.no_grad():
        for number, row in enumerate(rows):
            pixels = processor(validation.image(number), return_tensors="pt")["pixel_values"]
            expected = teacher(pixels).logits[0, order].softmax(-1).numpy()
            assert row == pytest.approx(expected, abs=1e-4)


def test_the_accuracy_of_the_teacher_is_that_of_evaluate(tmp_path, room):
    teacher = ("--teacher", FACTORY, "--teacher_labels", *TEACHER_LABELS)
    assert train(room / "data", tmp_path / "out", *STUDENT, *teacher, "--view_size", 24) == 0
    rows = package.predict(tmp_path / "out", room / "data", split="val", as_dataset=True, teacher=FACTORY).to_pandas()
    predicted = np.array(NAMES)[rows[columns("teacher_")].to_numpy().argmax(1)]
    metrics = package.evaluate(tmp_path / "out", room / "data", teacher=FACTORY).metrics
    assert (predicted == rows["label"]).mean() == pytest.approx(metrics["teacher_accuracy"])
    assert (predicted == rows["prediction"]).mean() == pytest.approx(metrics["teacher_agreement"])


@pytest.mark.parametrize("two_heads", [True, False])
def test_the_embedding_is_the_class_token_of_plain_transformers(tmp_path, room, validation, two_heads):
    tiny.student(two_heads, names=NAMES).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    rows = package.predict(tmp_path, validation.items, as_dataset=True, embeddings=True)
    assert str(rows.features["embedding"].feature.dtype) == "float16"
    pixels, _, _ = by_hand(tmp_path, validation)
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        tokens = getattr(model, "deit" if two_heads else "vit")(pixels).last_hidden_state[:, 0]
    assert np.array(rows["embedding"], dtype=np.float32) == pytest.approx(tokens.numpy(), abs=2e-3)


def test_a_convolutional_network_has_the_features_before_its_classifier(tmp_path, validation):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    rows = package.predict(tmp_path, validation.items[:3], as_dataset=True, embeddings=True)
    assert {len(row) for row in rows["embedding"]} == {16}


def test_the_data_set_has_the_rows_of_the_parquet_file(room, table, tmp_path):
    given = ("predict", room / "model", room / "data", "--split", "val", "--teacher", room / "teacher", "--embeddings")
    assert hf_deit(*given, "--parquet", tmp_path / "a.parquet", "--csv", tmp_path / "a.csv") == 0
    written = pandas.read_parquet(tmp_path / "a.parquet")
    assert list(written) == table.column_names
    assert [list(row) for row in written["embedding"]] == [list(row) for row in table["embedding"]]
    without = written.drop(columns="embedding")
    assert without.equals(table.to_pandas().drop(columns="embedding"))
    assert list(pandas.read_csv(tmp_path / "a.csv")) == list(without)


def test_a_data_set_can_be_filtered_and_outlives_the_first_one(room):
    def right():
        rows = package.predict(room / "model", room / "data", split="val", as_dataset=True)
        return rows.filter(lambda row: row["label"] == row["prediction"])

    rows = right().sort("score")
    assert all(row["label"] == row["prediction"] for row in rows)


def test_options_that_would_have_no_effect_are_refused(room, tmp_path, capsys):
    image = next((room / "data" / "validation" / "cat").iterdir())
    assert "embeddings" in refused(capsys, "predict", room / "model", image, "--embeddings")
    assert "embeddings" in refused(capsys, "predict", room / "model", image, "--embeddings", "--csv", tmp_path / "x")
    assert "teacher_view_size" in refused(capsys, "predict", room / "model", image, "--teacher_view_size", 24)
    for fields in ({"teacher": room / "teacher"}, {"embeddings": True}, {"teacher_view_size": 24}):
        with pytest.raises(RecipeError, match=next(iter(fields))):
            package.predict(room / "model", image, **fields)


def test_a_teacher_that_does_not_know_a_class_is_refused(room, tmp_path):
    tiny.student(False, names=("ant", "bee", "cat")).save_pretrained(tmp_path)
    DeiTImageProcessor.for_image_size(tiny.SIZE).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="dog"):
        package.predict(room / "model", room / "data", split="val", teacher=tmp_path, as_dataset=True)


def test_an_unreadable_image_of_a_data_set_raises_or_is_logged(room, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"no image")
    image = next((room / "data" / "validation" / "cat").iterdir())
    with pytest.raises(UserError, match="broken.png"):
        package.predict(room / "model", [image, tmp_path / "broken.png"], as_dataset=True)
    rows = package.predict(room / "model", [image, tmp_path / "broken.png"], as_dataset=True, broken_images="skip")
    assert rows["file"][:] == [str(image)] and "broken.png" in caplog.text
    with pytest.raises(UserError, match="broken.png"):
        package.predict(room / "model", tmp_path / "broken.png", as_dataset=True, broken_images="skip")
