"""Names of classes from a file, and the labels of an evaluation: names, numbers, and names that occur twice."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import hf_deit as package
from hf_deit.data.loading import load_splits
from hf_deit.errors import UserError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.label_names import read_class_names
from hf_deit.recipes.arguments import Recipe
from hf_deit.recipes.cache_teacher import cache_folder
from hf_deit.recipes.class_names import with_class_names
from hf_deit.recipes.evaluate import evaluate
from tests.helpers.runs import NAMES, STUDENT, hf_deit, refused, train, write_images, write_splits

IDS = ("n02206856", "n02121620", "n02084071")  # of NAMES


def model_folder(path, names, problem_type=None, bias=None):
    """Save a model with random weights. `bias` decides which class it predicts."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=8, num_labels=len(names), problem_type=problem_type, **shape)
    config.id2label = dict(enumerate(names))
    model = ViTForImageClassification(config)
    if bias is not None:
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor(bias))
    model.save_pretrained(path)
    DeiTImageProcessor.for_image_size(16, crop_ratio=1.0).save_pretrained(path)
    return str(path)


def table(folder, labels, name="table.jsonl"):
    files = sorted(write_images(folder / "images").rglob("*.png"))
    rows = [{"image": str(file.relative_to(folder)), "label": labels[file.parent.name]} for file in files]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def ids_folder(path):
    write_splits(path)
    for split in ("train", "validation"):
        for name, key in zip(NAMES, IDS, strict=True):
            (path / split / name).rename(path / split / key)
    return path


def images(result):
    return {name: row["images"] for name, row in result["per_class"].items()}


def unnamed(count):
    return [f"LABEL_{index}" for index in range(count)]


NUMBERS = {"bee": 2, "cat": 0, "dog": 3}


@pytest.mark.parametrize("names", [unnamed(4), ["ant", "bee", "cat", "dog"]])
def test_whole_numbers_are_the_indices_of_a_model(tmp_path, caplog, names):
    model = model_folder(tmp_path / "model", names, bias=[0.0, 0.0, 0.0, 60.0])
    result = evaluate(model, table(tmp_path, NUMBERS))
    assert images(result) == dict(zip(names, (8, 0, 8, 8), strict=True))
    assert result["per_class"][names[3]]["accuracy"] == 1.0
    assert "indices of the model" in caplog.text


def test_lists_of_zeros_and_ones_have_the_order_of_the_models_classes(tmp_path):
    names = ["hat", "dress", "pants"]
    model = model_folder(tmp_path / "model", names, "multi_label_classification")
    rows = {"bee": [1, 0, 0], "cat": [0, 1, 1], "dog": [0, 1, 0]}
    assert images(evaluate(model, table(tmp_path, rows))) == {"hat": 8, "dress": 16, "pants": 8}


def test_a_constant_class_is_reported_by_an_evaluation(tmp_path, caplog):
    model = model_folder(tmp_path / "model", ["hat", "dress"], "multi_label_classification")
    evaluate(model, table(tmp_path, {"bee": [1, 1], "cat": [1, 0], "dog": [1, 0]}))
    assert "All 24 images" in caplog.text and "'hat'" in caplog.text and "'dress'" not in caplog.text


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({"bee": 1, "cat": 2, "dog": 4}, "0 to 3"),
        ({"bee": "x", "cat": "LABEL_1", "dog": "LABEL_2"}, "'x'"),
        ({"bee": 0, "cat": -1, "dog": 1}, "-1"),
    ],
)
def test_labels_that_are_no_classes_of_the_model_are_refused(tmp_path, labels, named):
    with pytest.raises(UserError, match=named):
        evaluate(model_folder(tmp_path / "model", unnamed(4)), table(tmp_path, labels))


def test_a_list_of_names_names_the_classes_of_a_model_without_names(tmp_path):
    model = model_folder(tmp_path / "model", unnamed(3), bias=[0.0, 60.0, 0.0])
    (tmp_path / "names.txt").write_text("dog\ncat\nbee\n")
    data = write_images(tmp_path / "data")
    result = package.evaluate(model, data, class_names=tmp_path / "names.txt")
    assert list(result.per_class) == ["dog", "cat", "bee"]
    assert result.per_class["cat"] == {"accuracy": 1.0, "images": 8}


def test_a_mapping_names_folders_in_training_evaluation_and_cache_alike(tmp_path, capsys):
    data, file = ids_folder(tmp_path / "data"), tmp_path / "names.json"
    file.write_text(json.dumps(dict(zip(IDS, NAMES, strict=True))))
    teacher = model_folder(tmp_path / "teacher", NAMES)
    fields = ("--class_names", file, "--teacher", teacher, "--distillation_type", "hard", *STUDENT)
    assert train(data, tmp_path / "out", *fields) == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    # The classes keep the order of the folders.
    assert list(model.config.id2label.values()) == [NAMES[IDS.index(key)] for key in sorted(IDS)]
    assert hf_deit("evaluate", tmp_path / "out", "--data", data) == 0  # with the file of its own recipe
    assert hf_deit("evaluate", teacher, "--data", data, "--class_names", file) == 0
    assert "'n02084071'" in refused(capsys, "evaluate", teacher, "--data", data)
    cache = ("cache-teacher", "--data", data, "--out", tmp_path / "cache", "--output_dir", "unused", "--max_steps", 2)
    assert hf_deit(*cache, "--per_device_train_batch_size", 8, *fields) == 0
    file.write_text(json.dumps({IDS[0]: "bee"}))
    message = refused(capsys, "evaluate", teacher, "--data", data, "--class_names", file)
    assert "class_names" in message and "'n02084071'" in message


def test_a_model_with_ids_for_names_is_shown_with_the_names_of_the_file(tmp_path):
    data = ids_folder(tmp_path / "data")
    (tmp_path / "names.csv").write_text("\n".join(map(",".join, zip(IDS, NAMES, strict=True))))
    model = model_folder(tmp_path / "model", IDS)
    assert images(evaluate(model, str(data), class_names=tmp_path / "names.csv")) == dict.fromkeys(NAMES, 5)


def test_a_missing_file_of_class_names_is_refused_before_training(tmp_path, capsys):
    data = write_splits(tmp_path / "data")
    message = refused(
        capsys,
        "train",
        "--data",
        data,
        "--output_dir",
        tmp_path / "out",
        "--class_names",
        tmp_path / "no.txt",
        *STUDENT,
    )
    assert "no.txt" in message


def test_renamed_classes_have_another_fingerprint_and_the_same_order(tmp_path):
    source = load_splits(str(write_splits(tmp_path / "data")))[0]
    (tmp_path / "a.csv").write_text("bee,Biene\ncat,Katze\ndog,Hund\n")
    renamed = with_class_names(source, read_class_names(tmp_path / "a.csv"))
    assert renamed.class_names == ("Biene", "Katze", "Hund")
    assert renamed.labels == source.labels and renamed.fingerprint != source.fingerprint
    assert with_class_names(source, None) is source


def test_a_recipe_without_class_names_keeps_the_cache_folder_of_earlier_versions(tmp_path):
    recipe = Recipe.from_fields({"data": "data", "output_dir": str(tmp_path), "image_size": 16})
    named = recipe.replace(class_names="names.txt")
    assert cache_folder(tmp_path, recipe, "t") != cache_folder(tmp_path, named, "t")
    assert cache_folder(tmp_path, recipe, "t").name == "d011e910519d"


# Names that a model has twice


def crane_model(tmp_path):
    return model_folder(tmp_path / "model", ["cat", "bee", "cat"], bias=[0.0, 0.0, 60.0])


def test_each_class_of_one_name_is_right_if_the_data_have_the_name_only(tmp_path, capsys, caplog):
    model, data = crane_model(tmp_path), write_images(tmp_path / "data")
    shutil.rmtree(data / "dog")
    result = evaluate(model, str(data))
    assert result["metrics"]["accuracy"] == 0.5
    assert result["per_class"] == {
        "cat (0)": {"accuracy": 1.0, "images": 8},
        "bee": {"accuracy": 0.0, "images": 8},
        "cat (2)": {"accuracy": None, "images": 0},
    }
    assert "cat (0 and 2)" in caplog.text


def test_indices_distinguish_classes_of_one_name(tmp_path):
    result = evaluate(crane_model(tmp_path), table(tmp_path, {"bee": 1, "cat": 0, "dog": 2}))
    assert [row["accuracy"] for row in result["per_class"].values()] == [0.0, 0.0, 1.0]
    assert list(result["per_class"]) == ["cat (0)", "bee", "cat (2)"]


def test_names_in_another_normal_form_are_the_same_classes(tmp_path):
    data = write_images(tmp_path / "data")
    (data / "bee").rename(data / "be\u0301e")
    model = model_folder(tmp_path / "model", ["dog", "b\u00e9e", "cat"])
    assert images(evaluate(model, str(data))) == {"dog": 8, "b\u00e9e": 8, "cat": 8}
