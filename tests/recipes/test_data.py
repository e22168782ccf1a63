"""Runs on tables, streams and folders with unreadable images: what they train on, report and refuse."""

import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageClassification

from hf_deit import DeiTConfig
from hf_deit.data.loading import load_splits, load_validation
from hf_deit.data.streams import NOT_PROMISED
from hf_deit.data.tables import Columns
from hf_deit.recipes.data import load_run_data, view_size_of
from hf_deit.recipes.evaluate import evaluate
from hf_deit.recipes.reading import load_recipe
from hf_deit.recipes.train import build_trainer
from tests.helpers import tiny
from tests.helpers.runs import (
    NAMES,
    QUIET,
    STUDENT,
    by_hand,
    hf_deit,
    predict,
    refused,
    results,
    train,
    write_images,
    write_splits,
)

pytestmark = pytest.mark.usefixtures("own_cache")

PLAIN = (*STUDENT, "--distillation_type", "none", "--eval_strategy", "no", "--save_strategy", "no")
TAGS = {"bee": ("flies", "small"), "cat": ("furry",), "dog": ("furry", "large")}


@pytest.fixture
def data(tmp_path):
    return write_splits(tmp_path / "data")


def write_tables(data, folder, row, head):
    """Write one CSV file per split of the images in `data`, with paths relative to the folder of the tables."""
    folder.mkdir()
    for split in ("train", "validation"):
        files = sorted((data / split).rglob("*.png"))
        rows = [",".join(map(str, (f"../{file.relative_to(data.parent)}", *row(file.parent.name)))) for file in files]
        (folder / f"{split}.csv").write_text("\n".join([head, *rows]))
    return folder


def by_kind(data, folder):
    return write_tables(data, folder, lambda name: (name,), "picture,kind")


def test_a_table_and_a_folder_of_the_same_images_train_the_same_student(tmp_path, data):
    tables = by_kind(data, tmp_path / "tables")
    columns = ("--image_column", "picture", "--label_column", "kind")
    assert train(data, tmp_path / "one", *PLAIN) == 0
    assert train(tables, tmp_path / "two", *PLAIN, *columns) == 0
    one, two = (AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert two.config.id2label == dict(enumerate(NAMES))
    assert all(torch.equal(weight, two.state_dict()[name]) for name, weight in one.state_dict().items())
    assert results(tmp_path / "one")["eval_accuracy"] == results(tmp_path / "two")["eval_accuracy"]
    assert results(tmp_path / "two")["eval_majority_accuracy"] == pytest.approx(1 / 3)
    again = evaluate(str(tmp_path / "two"), str(tables))  # uses the columns of the model's own recipe
    assert again["metrics"]["accuracy"] == results(tmp_path / "two")["eval_accuracy"]


def test_a_model_is_evaluated_on_the_rows_that_its_run_split_off(tmp_path, data):
    tables = by_kind(data, tmp_path / "tables")
    table = tables / "train.csv"
    fields = ("--image_column", "picture", "--label_column", "kind", "--validation_share", "0.25")
    assert train(table, tmp_path / "out", *PLAIN, *fields) == 0
    _, held_out = load_splits(str(table), 0.25, 42, Columns("picture", ("kind",)))
    assert len(held_out) == 6
    images = {name: row["images"] for name, row in evaluate(str(tmp_path / "out"), str(table))["per_class"].items()}
    assert images == {"bee": 2, "cat": 2, "dog": 2}


def test_multi_label_data_are_trained_on_evaluated_and_predicted(tmp_path, capsys, data):
    metrics = pytest.importorskip("sklearn.metrics")
    tables = write_tables(data, tmp_path / "tables", lambda name: (";".join(TAGS[name]),), "picture,tags")
    columns = ("--image_column", "picture", "--label_column", "tags", "--label_separator", ";")
    assert train(tables, tmp_path / "out", *PLAIN, *columns) == 0
    assert "mean average precision, chance" in capsys.readouterr().out
    source = load_validation(str(tables), columns=Columns("picture", ("tags",), ";"))
    names = ("flies", "furry", "large", "small")
    assert source.class_names == names
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "multi_label_classification"
    truth = np.array([[name in TAGS[file.split("/")[-2]] for name in names] for file in source.items])
    plain = load_validation(str(tables), columns=Columns("picture", ("tags",)))
    assert plain.problem_type == "single_label_classification"  # without the separator, the text is one class
    _, _, heads = by_hand(tmp_path / "out", replace(source, labels=[0] * len(source)), names)
    expected = {
        "mean_average_precision": metrics.average_precision_score(truth, heads["logits"]),
        "cls_mean_average_precision": metrics.average_precision_score(truth, heads["cls_logits"]),
        "chance_mean_average_precision": truth.mean(),
    }
    written = results(tmp_path / "out")
    again = evaluate(str(tmp_path / "out"), str(tables))
    for name, value in expected.items():
        assert written[f"eval_{name}"] == pytest.approx(value, abs=1e-6)
        assert again["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert again["per_class"]["furry"]["images"] == 10
    assert hf_deit("evaluate", tmp_path / "out", "--data", tables) == 0
    assert "average precision" in capsys.readouterr().out
    predicted = dict(predict(str(tmp_path / "out"), [source.items[0]])[0])
    assert [predicted[name] for name in names] == pytest.approx(heads["logits"][0].sigmoid().tolist(), abs=1e-5)
    assert list(predicted.values()) == sorted(predicted.values(), reverse=True)
    message = refused(capsys, "evaluate", tmp_path / "out", "--data", data)
    assert "multi_label_classification" in message
    assert "label_column" in message


def test_several_label_columns_are_multi_label_data(tmp_path, data):
    names = ("flies", "furry", "large", "small")
    head = ",".join(("picture", *names))
    tables = write_tables(data, tmp_path / "tables", lambda name: [int(tag in TAGS[name]) for tag in names], head)
    assert train(tables, tmp_path / "out", *PLAIN, "--image_column", "picture", "--label_column", *names) == 0
    assert results(tmp_path / "out")["eval_chance_mean_average_precision"] == pytest.approx(5 / 12)


def tagged(data, folder):
    """Write tables of multi-label data with the classes of each image in one column, and return it with its options."""
    tables = write_tables(data, folder, lambda name: (";".join(TAGS[name]),), "picture,tags")
    return tables, ("--image_column", "picture", "--label_column", "tags", "--label_separator", ";")


def test_a_multi_label_teacher_is_trained_and_teaches_live_and_from_a_cache(tmp_path, capsys, data):
    tables, columns = tagged(data, tmp_path / "tables")
    teacher, cache = tmp_path / "teacher", tmp_path / "cache"
    network = ("--network", "tests.helpers.tiny:conv_network", "--image_size", 16)
    assert hf_deit("train-teacher", "--data", tables, *columns, *network, "--output_dir", teacher) == 0
    assert "F1, macro  " in capsys.readouterr().out
    saved = json.loads((teacher / "teacher.json").read_text())
    assert saved["problem_type"] == "multi_label_classification"
    assert saved["class_names"] == ["flies", "furry", "large", "small"]
    soft = (*STUDENT, *columns, "--distillation_type", "soft", "--save_strategy", "no")
    assert hf_deit("cache-teacher", "--data", tables, "--out", cache, "--teacher", teacher, *soft) == 0
    assert "F1, micro, teacher" in capsys.readouterr().out
    assert train(tables, tmp_path / "live", *soft, "--teacher", teacher) == 0
    assert train(tables, tmp_path / "cached", *soft, "--teacher_cache", cache) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("live", "cached"))
    assert one == two
    metrics = results(tmp_path / "live")
    assert metrics["eval_teacher_mean_average_precision"] > metrics["eval_chance_mean_average_precision"]
    shown = {name for name in metrics if name.startswith("eval_") and not name.endswith("_per_second")}
    assert {name: metrics[name] for name in shown - {"eval_runtime"}} == {
        name: results(tmp_path / "cached")[name] for name in shown - {"eval_runtime"}
    }
    card = (tmp_path / "cached" / "README.md").read_text()
    assert "F1, mean over the classes" in card and "The teacher's mean average precision" in card
    assert hf_deit("evaluate", tmp_path / "live", "--data", tables, "--teacher", teacher) == 0
    assert "recall" in capsys.readouterr().out


def test_a_teacher_of_multi_label_data_without_a_problem_type_is_refused_and_the_option_states_it(
    tmp_path, capsys, data
):
    tables, columns = tagged(data, tmp_path / "tables")
    names = ("--teacher_labels", "flies", "furry", "large", "small")
    factory = ("--teacher", "tests.helpers.tiny:conv_network", *names)
    fields = (*STUDENT, *columns, "--save_strategy", "no", *factory)
    stated = ("--teacher_problem_type", "multi_label_classification")
    for command in (("train", "--output_dir"), ("cache-teacher", "--out")):
        message = refused(capsys, command[0], "--data", tables, command[1], tmp_path / "refused", *fields)
        assert " ".join(stated) in message
        assert not (tmp_path / "refused").exists()
    cache = ("cache-teacher", "--data", tables, *fields, *stated)
    message = refused(capsys, *cache, "--out", tmp_path / "top", "--kind", "soft", "--top_k", 2)
    assert "top_k=2" in message and "--kind soft" in message
    assert hf_deit(*cache, "--out", tmp_path / "cache") == 0  # hard by default
    assert train(tables, tmp_path / "out", *fields, *stated, "--teacher_cache", tmp_path / "cache") == 0


def test_a_teacher_learns_from_a_single_label_table(tmp_path, data):
    tables = by_kind(data, tmp_path / "tables")
    fields = ("--network", "tests.helpers.tiny:conv_network", "--image_size", 16, "--output_dir", tmp_path / "teacher")
    columns = ("--image_column", "picture", "--label_column", "kind")
    assert hf_deit("train-teacher", "--data", tables, *fields, *columns) == 0
    assert train(data, tmp_path / "out", *STUDENT, "--teacher", tmp_path / "teacher", "--save_strategy", "no") == 0
    assert "eval_teacher_accuracy" in results(tmp_path / "out")


# ---- unreadable images ----


def cut_off(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def test_unreadable_and_unusual_files_are_handled_counted_and_reported(tmp_path, capsys, caplog):
    data = write_splits(tmp_path / "data")
    odd = data / "train" / "cat"
    Image.new("CMYK", (30, 30), (9, 99, 0, 0)).save(odd / "ink.jpg")
    Image.new("RGB", (1, 1)).save(odd / "dot.png")
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(odd / "deep.png")
    Image.new("L", (6000, 4200)).save(odd / "huge.png")  # 25.2 megapixels
    (odd / "text.jpg").write_text("not an image")
    (data / "validation" / "dog" / "empty.jpg").write_bytes(b"")
    for broken in (data / "train" / "bee" / "00.png", data / "validation" / "bee" / "00.png"):
        Image.fromarray(tiny.pixels_of(1, 3, 3)[0]).resize((200, 200)).save(broken)
        cut_off(broken)
    with caplog.at_level("INFO"):
        fields = (*PLAIN, "--max_steps", 8, "--per_device_train_batch_size", 8)
        arguments = ("--data", data, "--output_dir", tmp_path / "out", *QUIET, *fields)
        assert hf_deit("train", *arguments) == 0
    printed = capsys.readouterr().out
    counts = {"left_out_at_scan": 2, "left_out_of_validation": 1, "replaced_in_training": 1}
    assert results(tmp_path / "out")["broken_images"] == counts
    for name, count in counts.items():
        (line,) = [
            line for line in printed.splitlines() if line.startswith(f"unreadable images, {name.replace('_', ' ')}")
        ]
        assert line.split()[-1] == str(count)
    logged = "\n".join(caplog.messages)
    for file in ("text.jpg", "empty.jpg", "train/bee/00.png", "validation/bee/00.png"):
        lines = [line for line in logged.splitlines() if file in line]
        assert len(lines) == 1, (file, lines)
    for kind in (
        "CMYK images, converted",
        "I;16 images, converted",
        "a side under 8 pixels",
        "more than 25 megapixels",
    ):
        assert kind in logged
    shown = evaluate(str(tmp_path / "out"), str(data))
    assert shown["broken_images"] == {"left_out_at_scan": 1, "left_out_of_validation": 1}
    assert sum(row["images"] for row in shown["per_class"].values()) == 14


def test_unreadable_images_are_refused_if_the_recipe_specifies_raise(tmp_path, capsys, data):
    (data / "train" / "bee" / "00.png").write_text("no image")
    fields = ("--data", data, "--output_dir", tmp_path / "out", *QUIET, *PLAIN, "--broken_images")
    assert "00.png" in refused(capsys, "train", *fields, "raise")
    assert "skip, raise" in refused(capsys, "train", *fields, "ignore")


# ---- streams ----


def parquet(data, folder):
    folder.mkdir()
    for split in ("train", "validation"):
        files = sorted((data / split).rglob("*.png"))
        rows = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "label": [file.parent.name for file in files],
        }
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def test_a_stream_is_trained_on_with_a_warning_about_its_limits(tmp_path, data, caplog):
    tables = parquet(data, tmp_path / "tables")
    assert train(tables, tmp_path / "out", *PLAIN, "--streaming", "true", "--shuffle_buffer", 5) == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(NAMES))
    written = results(tmp_path / "out")
    assert written["steps"] == 2
    assert written["broken_images"]["left_out_of_stream"] == 0
    assert caplog.messages.count(NOT_PROMISED) == 1
    for promise in ("resumed", "several views", "number of workers", "teacher outputs"):
        assert promise in NOT_PROMISED
    assert evaluate(str(tmp_path / "out"), str(tables))["metrics"]["accuracy"] == written["eval_accuracy"]


def test_fields_that_a_stream_does_not_support_are_refused(tmp_path, capsys, data):
    tables = parquet(data, tmp_path / "tables")
    fields = ("--output_dir", tmp_path / "out", *QUIET, *PLAIN, "--streaming", "true")
    steps = ("--max_steps", 2)
    assert "max_steps" in refused(capsys, "train", "--data", tables, *fields)
    message = refused(capsys, "train", "--data", tables, *fields, *steps, "--resume")
    assert "--resume" in message and "streaming" in message
    message = refused(capsys, "train", "--data", data, *fields, *steps)
    assert "streaming" in message and str(data) in message
    twice = ("--repeated_augmentation", 2)
    assert "repeated_augmentation=2" in refused(capsys, "train", "--data", tables, *fields, *steps, *twice)
    assert "shuffle_buffer=0" in refused(capsys, "train", "--data", tables, *fields, *steps, "--shuffle_buffer", 0)
    (tables / "validation.parquet").unlink()
    message = refused(capsys, "train", "--data", tables, *fields, *steps)
    assert str(tables) in message and "validation" in message


def test_a_run_with_an_unreadable_image_is_resumed_exactly(tmp_path):
    data = write_images(tmp_path / "data")
    broken = data / "bee" / "00.png"
    Image.fromarray(tiny.pixels_of(1, 3, 3)[0]).resize((200, 200)).save(broken)
    cut_off(broken)
    fields = (*STUDENT, "--distillation_type", "none", "--max_steps", 6, "--per_device_train_batch_size", 8)
    fields += ("--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", 3, "--validation_share", 0.2)
    arguments = ("train", "--data", data, "--output_dir", tmp_path / "out", *QUIET, *fields)
    assert hf_deit(*arguments) == 0
    whole = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    for file in ("model.safetensors", "results.json"):
        (tmp_path / "out" / file).unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    assert hf_deit(*arguments, "--resume") == 0
    resumed = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_the_data_set_knows_the_number_of_concurrent_trainings(tmp_path, data):
    words = ("--data", data, "--output_dir", tmp_path / "out", *QUIET, *PLAIN)
    recipe = load_recipe(None, [str(word) for word in words])
    assert build_trainer(recipe, concurrent_trainings=3).train_dataset.concurrent_trainings == 3
    assert build_trainer(recipe).train_dataset.concurrent_trainings == 1


# ---- counts and messages ----


def test_every_image_left_out_at_the_scan_is_counted(tmp_path, data):
    files = sorted((data / "train").rglob("*.png"))
    content = [b"no image" if number % 2 else file.read_bytes() for number, file in enumerate(files)]
    kinds = [file.parent.name for file in files]
    rows = {"image": content, "label": kinds}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "images.parquet")
    recipe = load_recipe(None, ["--data", str(tmp_path / "images.parquet"), "--validation_share", "0.3"])
    assert load_run_data(recipe).left_out_at_scan == len(files) // 2 == 12
    lines = [f"{file},{file.parent.name}" for file in files]
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *lines, *["gone.png,bee"] * 6]))
    assert load_run_data(load_recipe(None, ["--data", str(tmp_path / "table.csv")])).left_out_at_scan == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_in_training_causes_one_message_with_and_without_workers(tmp_path, capsys, workers):
    data = write_splits(tmp_path / "data")
    for file in (data / "train" / "bee").iterdir():
        Image.fromarray(tiny.pixels_of(1, 3, 3)[0]).resize((200, 200)).save(file)
        cut_off(file)
    fields = (*PLAIN, "--max_steps", 6, "--per_device_train_batch_size", 4, "--dataloader_num_workers", workers)
    arguments = ("--data", data, "--output_dir", tmp_path / "out", *QUIET, *fields, "--broken_images", "raise")
    message = refused(capsys, "train", *arguments)
    (line,) = [line for line in message.splitlines() if line.startswith("hf-deit train: ")]
    assert line.startswith("hf-deit train: Image ")
    assert f"({data / 'train' / 'bee'}" in line and "Traceback" not in line


def test_a_teacher_learns_from_a_table_with_a_row_without_an_image(tmp_path, data):
    files = sorted((data / "train").rglob("*.png"))
    rows = [{"image": str(file), "label": file.parent.name} for file in files] + [{"image": None, "label": "bee"}]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = ("--network", "tests.helpers.tiny:conv_network", "--image_size", 16, "--output_dir", tmp_path / "teacher")
    assert hf_deit("train-teacher", "--data", tmp_path / "table.jsonl", *fields) == 0


def test_views_have_the_size_of_weights_given_by_their_short_name(monkeypatch):
    requested = []

    def from_pretrained(name, **options):
        requested.append(name)
        return DeiTConfig(image_size=48, patch_size=8)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    recipe = load_recipe(None, ["--output_dir", "out", "--model", "deit-tiny-distilled"])
    assert view_size_of(recipe) == (48, 48)
    assert requested == ["facebook/deit-tiny-distilled-patch16-224"]


def test_a_labelled_test_split_is_used_and_named_in_training_and_evaluation(tmp_path, data, capsys):
    (data / "train").rename(data / "Training")
    (data / "validation").rename(data / "Testing")
    assert train(data, tmp_path / "out", *PLAIN) == 0
    printed = capsys.readouterr().out
    assert any(line.split() == ["test"] for line in printed.splitlines())
    assert results(tmp_path / "out")["run"]["validation_split"] == "test"
    scored = evaluate(str(tmp_path / "out"), str(data))
    assert scored["split"] == "test"
    assert scored["metrics"]["accuracy"] == results(tmp_path / "out")["eval_accuracy"]
    trained_on = evaluate(str(tmp_path / "out"), str(data), split="Training")
    assert trained_on["split"] == "train"
    images = sum(row["images"] for row in trained_on["per_class"].values())
    assert images == results(tmp_path / "out")["run"]["train_images"]
    assert hf_deit("evaluate", tmp_path / "out", "--data", data, "--split", "train") == 0
    assert any(line.split() == ["train"] for line in capsys.readouterr().out.splitlines())
    assert "'validation'" in refused(capsys, "evaluate", tmp_path / "out", "--data", data, "--split", "validation")


def test_names_of_splits_reach_training_and_evaluation_from_the_command_line(tmp_path, data):
    (data / "train").rename(data / "most")
    (data / "validation").rename(data / "rest")
    names = ("--train_split", "most", "--validation_split", "rest")
    assert train(data, tmp_path / "out", *PLAIN, *names) == 0
    scored = evaluate(str(tmp_path / "out"), str(data))  # uses the names of the model's own recipe
    assert scored["split"] == "validation"
    assert scored["metrics"]["accuracy"] == results(tmp_path / "out")["eval_accuracy"]
