"""Training and evaluation on the command line, compared with stock transformers on the same pixels."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
)

from hf_deit.data.loading import load_splits
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from hf_deit.recipes.evaluate import evaluate
from tests.helpers import tiny
from tests.helpers.runs import (
    FACTORY,
    NAMES,
    QUIET,
    SHAPE,
    STUDENT,
    TEACHER_LABELS,
    TWO_STEPS,
    accuracy,
    by_hand,
    hf_deit,
    predict,
    refused,
    resnet_folder,
    results,
    swin_folder,
    train,
    write_images,
    write_splits,
)

OUTPUT_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "results.json",
    "training_args.json",
    "training_log.json",
}

SEEN = []


class WatchingTeacher(tiny.ConvTeacher):
    """Teacher that records the sizes of the batches that it gets."""

    def forward(self, pixels):
        SEEN.append((len(pixels), *pixels.shape[-2:]))
        return super().forward(pixels)


def watching_network():
    return WatchingTeacher(len(NAMES))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def validation(data):
    return load_splits(str(data))[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("teacher")
    assert (
        hf_deit("train-teacher", "--data", data, "--network", FACTORY, "--image_size", 16, "--output_dir", folder) == 0
    )
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory, data, teacher):
    """Folder of a distilled student that has learned the data, and of its checkpoints."""
    folder = tmp_path_factory.mktemp("learned") / "out"
    fields = ("--max_steps", 40, "--learning_rate", 3e-3, "--crop_scale", 0.6, 1.0, "--flip_probability", 0)
    saves = ("--save_strategy", "steps", "--save_steps", 20, "--eval_strategy", "no")
    assert train(data, folder, *STUDENT, *fields, *saves, "--teacher", teacher) == 0
    return folder


# ---- training ----


@pytest.mark.parametrize("kind", ["none", "soft", "hard"])
@pytest.mark.parametrize("student", ["distilled", "plain"])
def test_a_student_is_trained_and_saved_and_its_results_are_printed(
    tmp_path, capsys, data, validation, teacher, student, kind
):
    fields = ["--student", student, "--distillation_type", kind, *STUDENT]
    fields += [] if kind == "none" else ["--teacher", teacher]
    assert train(data, tmp_path / "out", *fields) == 0
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {*OUTPUT_FILES, "checkpoint-2"}
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bee", "1": "cat", "2": "dog"}
    assert config["label2id"] == {"bee": 0, "cat": 1, "dog": 2}
    assert config["model_type"] == {"distilled": "deit", "plain": "vit"}[student]

    pixels, labels, heads = by_hand(folder, validation)
    with torch.no_grad():
        ours = load_model(str(folder)).eval()(pixel_values=pixels)
    for name, logits in heads.items():
        torch.testing.assert_close(ours[name], logits, rtol=1e-5, atol=1e-5)
    measured = results(folder)
    assert measured["steps"] == 2
    assert measured["epochs"] == pytest.approx(2 / 3)
    assert measured["eval_accuracy"] == pytest.approx(accuracy(heads["logits"], labels))

    table = capsys.readouterr().out
    shown = {
        "top-1 accuracy  ": True,
        "balanced accuracy": True,
        "top-1 accuracy, class head": student == "distilled",
        "top-1 accuracy, distillation head": student == "distilled",
        "top-1 accuracy, teacher": kind != "none",
        "agreement with the teacher": kind != "none",
        "top-5 accuracy": False,
    }
    assert {title: title in table for title in shown} == shown
    assert f"{100 * measured['eval_accuracy']:.2f} %" in table
    assert f'from_pretrained("{folder}")' in table


def test_a_student_learns_from_labels_and_teacher(learned):
    measured = results(learned)
    assert measured["eval_accuracy"] > 0.8
    assert measured["eval_teacher_agreement"] > 0.8
    assert measured["eval_loss"] < 0.6 < np.log(len(NAMES))


def test_without_distillation_a_teacher_runs_only_in_the_evaluation(tmp_path, data):
    SEEN.clear()
    fields = ("--distillation_type", "none", "--teacher", f"{__name__}:watching_network", "--eval_strategy", "no")
    assert train(data, tmp_path, *STUDENT, *fields, "--per_device_eval_batch_size", 15) == 0
    assert set(SEEN) == {(1, 16, 16), (15, 16, 16)}  # the check on one image, and the evaluation
    assert "eval_teacher_accuracy" in results(tmp_path)


def test_a_larger_view_reaches_the_teacher_in_training_and_evaluation(tmp_path, data):
    SEEN.clear()
    fields = ("--view_size", 24, 32, "--teacher", f"{__name__}:watching_network", "--per_device_eval_batch_size", 15)
    assert train(data, tmp_path, *STUDENT, *fields) == 0
    assert set(SEEN) == {(1, 24, 32), (8, 24, 32), (15, 24, 32)}
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 16
    assert DeiTImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 16


def test_an_oblong_student_is_trained_and_saved_with_its_processor(tmp_path, data, validation, teacher):
    assert train(data, tmp_path, *SHAPE, "--image_size", 16, 24, "--teacher", teacher) == 0
    pixels, labels, heads = by_hand(tmp_path, validation)
    assert pixels.shape == (15, 3, 16, 24)
    assert results(tmp_path)["eval_accuracy"] == pytest.approx(accuracy(heads["logits"], labels))
    assert predict(str(tmp_path), [validation.items[0]])[0][0][1] == pytest.approx(
        heads["logits"][0].softmax(-1).max().item(), abs=1e-5
    )


def test_the_saved_processor_crops_as_the_evaluation_does(tmp_path, data, validation, learned):
    fields = ("--model", learned, "--learning_rate", 0, "--distillation_type", "none", "--evaluation_crop_ratio", 0.5)
    assert train(data, tmp_path, *fields) == 0
    assert DeiTImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 32
    _, labels, heads = by_hand(tmp_path, validation)
    loss = F.cross_entropy(heads["cls_logits"], labels).item()
    assert results(tmp_path)["eval_cls_loss"] == pytest.approx(loss, abs=1e-5)
    assert results(learned)["eval_cls_loss"] != pytest.approx(loss, abs=0.01)


def test_a_share_of_a_folder_without_splits_is_used_for_validation(tmp_path):
    SEEN.clear()
    folder = write_images(tmp_path / "data")
    fields = ("--teacher", f"{__name__}:watching_network", "--validation_share", 0.25)
    assert train(folder, tmp_path / "out", *STUDENT, *fields, "--max_steps", 4) == 0
    # The check of the recipe and the trainer each run the teacher on one black view. 6 of 24 images are for validation; the other
    # 18 are two complete batches per epoch.
    assert [*2 * [(1, 16, 16)], *2 * [(8, 16, 16), (8, 16, 16), (6, 16, 16)], (6, 16, 16)] == SEEN


# ---- teachers ----


def test_a_factory_with_weights_and_labels_teaches_by_class_name(tmp_path, data, validation, teacher):
    """The teacher has one more class, in another order. The expected logits are computed from its network."""
    network = tiny.conv_teacher().eval()
    learned = load_file(teacher / "model.safetensors")
    with torch.no_grad():
        for kind in ("weight", "bias"):
            rows = torch.stack(
                [learned[f"classifier.{kind}"][NAMES.index(n) if n in NAMES else 0] for n in TEACHER_LABELS]
            )
            getattr(network.classifier, kind).copy_(rows)
        network.classifier.bias[TEACHER_LABELS.index("ant")] += 10  # larger than all other logits
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    fields = ("--teacher", FACTORY, "--teacher_weights", tmp_path / "weights.safetensors")
    fields += ("--teacher_labels", *TEACHER_LABELS, "--teacher_image_mean", 0.5, 0.45, 0.4)
    fields += ("--teacher_image_std", 0.2, 0.25, 0.3, "--distillation_type", "soft")
    assert train(data, tmp_path / "out", *STUDENT, *fields) == 0

    pixels, labels, heads = by_hand(tmp_path / "out", validation)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (tiny.MEAN, tiny.STD))
    own_mean, own_std = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.5, 0.45, 0.4), (0.2, 0.25, 0.3)))
    with torch.no_grad():
        teacher_logits = network((pixels * std + mean - own_mean) / own_std)
    teacher_logits = teacher_logits[:, [TEACHER_LABELS.index(name) for name in NAMES]]
    measured = results(tmp_path / "out")
    assert measured["eval_teacher_accuracy"] == pytest.approx(accuracy(teacher_logits, labels))
    assert measured["eval_teacher_accuracy"] > 0.8
    assert measured["eval_teacher_agreement"] == pytest.approx(accuracy(heads["logits"], teacher_logits.argmax(-1)))
    at_3 = [(logits / 3).log_softmax(-1) for logits in (heads["distillation_logits"], teacher_logits)]
    loss = 9 * F.kl_div(*at_3, log_target=True, reduction="batchmean")
    assert measured["eval_distillation_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_a_student_learns_from_a_teacher_in_bfloat16(tmp_path, data, teacher):
    assert train(data, tmp_path, *STUDENT, "--teacher", teacher, "--teacher_dtype", "bfloat16") == 0
    assert results(tmp_path)["eval_teacher_accuracy"] > 0.8


# ---- students from weights ----


def test_a_student_is_fine_tuned_on_other_classes(tmp_path, learned):
    """With a learning rate of 0, the backbone must be exactly that of the folder."""
    names = ("ant", "bee", "cow", "elk")
    data = write_splits(tmp_path / "data", names)
    fields = ("--model", learned, "--distillation_type", "none", "--learning_rate", 0)
    assert train(data, tmp_path / "out", *fields) == 0
    before = AutoModelForImageClassification.from_pretrained(learned)
    after = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert [after.config.id2label[index] for index in range(4)] == list(names)
    assert after.config.label2id == {name: index for index, name in enumerate(names)}
    backbone = {name: tensor for name, tensor in before.state_dict().items() if "classifier" not in name}
    assert backbone
    for name, tensor in backbone.items():
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=0, atol=0)
    assert after.cls_classifier.weight.shape == after.distillation_classifier.weight.shape == (4, 32)
    assert by_hand(tmp_path / "out", load_splits(str(data))[1], names)[0].shape == (20, 3, 16, 16)


def test_a_student_starts_from_a_folder_of_the_same_classes(tmp_path, data, learned):
    fields = ("--model", learned, "--distillation_type", "none", "--learning_rate", 0, "--max_steps", 1)
    assert train(data, tmp_path, *fields, "--eval_strategy", "no", "--save_strategy", "no") == 0
    assert results(tmp_path)["eval_accuracy"] == results(learned)["eval_accuracy"]


def test_fine_tuning_on_as_many_other_classes_initialises_the_heads_again(tmp_path, learned):
    write_splits(tmp_path / "data", names=("pear", "plum", "quince"))
    fields = ("--model", learned, "--distillation_type", "none", "--learning_rate", 0, *TWO_STEPS)
    assert train(tmp_path / "data", tmp_path / "out", *fields) == 0
    before, after = (AutoModelForImageClassification.from_pretrained(path) for path in (learned, tmp_path / "out"))
    assert not torch.equal(before.cls_classifier.weight, after.cls_classifier.weight)
    assert not torch.equal(before.distillation_classifier.weight, after.distillation_classifier.weight)
    torch.testing.assert_close(before.deit.layers[0].mlp.fc1.weight, after.deit.layers[0].mlp.fc1.weight)


def test_fields_of_the_shape_are_refused_with_weights(tmp_path, capsys, data, learned):
    fields = ("--model", learned, "--preset", "tiny", "--distillation_type", "none", *TWO_STEPS)
    message = refused(capsys, "train", "--data", data, "--output_dir", tmp_path / "out", *fields)
    assert "preset" in message


def test_a_run_without_checkpoints_is_not_overwritten(tmp_path, capsys, data):
    fields = ("--distillation_type", "none", "--save_strategy", "no", *TWO_STEPS, *STUDENT)
    assert train(data, tmp_path / "out", *fields) == 0
    message = refused(capsys, "train", "--data", data, "--output_dir", tmp_path / "out", *fields)
    assert f"output_dir={str(tmp_path / 'out')!r}" in message


@pytest.mark.parametrize(("make", "size"), [(swin_folder, []), (resnet_folder, ["--image_size", 16])])
def test_a_stock_student_is_distilled(tmp_path, data, validation, teacher, make, size):
    source = make(tmp_path / "stock")
    assert train(data, tmp_path / "out", "--model", source, "--teacher", teacher, *size) == 0
    pixels, labels, heads = by_hand(tmp_path / "out", validation)
    assert pixels.shape[-2:] == (16, 16)
    measured = results(tmp_path / "out")
    assert measured["eval_accuracy"] == pytest.approx(accuracy(heads["logits"], labels))
    assert measured["eval_cls_loss"] == pytest.approx(F.cross_entropy(heads["logits"], labels).item(), abs=1e-4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*OUTPUT_FILES, "checkpoint-2"}


# ---- second runs and resuming ----


def test_a_second_run_into_the_same_folder_is_refused_with_a_hint(capsys, data, learned):
    before = (learned / "model.safetensors").read_bytes()
    message = refused(capsys, "train", "--data", data, "--output_dir", learned, *QUIET, *STUDENT)
    assert all(text in message for text in (str(learned), "--resume", "resume=True", "output_dir"))
    assert (learned / "model.safetensors").read_bytes() == before


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, data, teacher):
    fields = (*STUDENT, "--teacher", teacher, "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2)
    assert train(data, tmp_path / "whole", *fields) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    assert train(data, tmp_path / "resumed", *fields, "--resume") == 0
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in resumed.iterdir()} == {*OUTPUT_FILES, "checkpoint-2", "checkpoint-4"}
    for name, value in results(whole).items():
        if not name.endswith(("runtime", "per_second")):
            assert results(resumed)[name] == value


RESUMABLE = ("--max_steps", 40, "--save_strategy", "steps", "--save_steps", 20, "--eval_strategy", "no")
RESUMABLE += ("--learning_rate", 3e-3, "--crop_scale", 0.6, 1.0, "--flip_probability", 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--learning_rate", 1e-3), ["recipe.learning_rate", "0.003", "0.001"]),
        (("--crop_scale", 0.5, 1.0), ["data.augmentation.crop_scale", "0.6", "0.5"]),
        (("--drop_path_rate", 0.5), ["model.drop_path_rate", "0.0", "0.5"]),
        (("--num_hidden_layers", 3), ["model.num_hidden_layers", "2", "3"]),
        (("--teacher_image_size", 24), ["teacher.fingerprint"]),
        (("--distillation_type", "soft"), ["recipe.distillation_type", "'hard'", "'soft'"]),
        (("--seed", 1), ["recipe.seed", "42", "1"]),
    ],
)
def test_resuming_another_run_is_refused_by_the_field_that_differs(capsys, data, teacher, learned, changes, named):
    fields = (*TWO_STEPS, *STUDENT, *RESUMABLE, "--teacher", teacher, *changes)
    before = {path.name: path.read_bytes() for path in learned.iterdir() if path.is_file()}
    message = refused(capsys, "train", "--data", data, "--output_dir", learned, *QUIET, *fields, "--resume")
    assert [text for text in (*named, "another run") if text not in message] == []
    assert {path.name: path.read_bytes() for path in learned.iterdir() if path.is_file()} == before


def test_resuming_with_other_data_is_refused_by_name(tmp_path, capsys, data, teacher, learned):
    other = shutil.copytree(data, tmp_path / "data")
    (other / "train" / "bee" / "00.png").unlink()
    fields = (*TWO_STEPS, *STUDENT, *RESUMABLE, "--teacher", teacher)
    message = refused(capsys, "train", "--data", other, "--output_dir", learned, *QUIET, *fields, "--resume")
    assert "data.fingerprint" in message
    assert "data.images: 24 in the checkpoint, 23 now" in message


def test_resuming_without_a_checkpoint_is_refused(tmp_path, capsys, data):
    fields = (*TWO_STEPS, *STUDENT, "--distillation_type", "none", "--resume")
    message = refused(capsys, "train", "--data", data, "--output_dir", tmp_path / "out", *QUIET, *fields)
    assert str(tmp_path / "out") in message and "checkpoint" in message
    assert not list((tmp_path / "out").glob("*"))


# ---- evaluation ----


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not valid JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_an_evaluation_equals_that_of_plain_transformers(tmp_path, capsys, data, validation, teacher, learned):
    command = ("evaluate", learned, "--data", data, "--teacher", teacher, "--batch_size", 4)
    assert hf_deit(*command, "--json", tmp_path / "e.json") == 0
    printed = capsys.readouterr().out
    written = strict_json(tmp_path / "e.json")
    pixels, labels, heads = by_hand(learned, validation)
    network = tiny.conv_teacher(num_labels=len(NAMES)).eval()
    network.load_state_dict(load_file(teacher / "model.safetensors"))
    with torch.no_grad():
        teacher_logits = network(pixels)
    metrics = written["metrics"]
    hits = heads["logits"].argmax(-1) == labels
    expected = {
        "accuracy": accuracy(heads["logits"], labels),
        "balanced_accuracy": np.mean([hits[labels == label].double().mean() for label in range(3)]),
        "cls_accuracy": accuracy(heads["cls_logits"], labels),
        "distillation_accuracy": accuracy(heads["distillation_logits"], labels),
        "teacher_accuracy": accuracy(teacher_logits, labels),
        "teacher_agreement": accuracy(heads["logits"], teacher_logits.argmax(-1)),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["cls_loss"] == pytest.approx(F.cross_entropy(heads["cls_logits"], labels).item(), abs=1e-5)
    assert written["per_class"] == {
        name: {"accuracy": pytest.approx(hits[labels == label].double().mean().item()), "images": 5}
        for label, name in enumerate(NAMES)
    }
    for name in ("accuracy", "cls_accuracy", "distillation_accuracy", "teacher_accuracy", "teacher_agreement"):
        assert f"{100 * metrics[name]:.2f} %" in printed
    for name, row in written["per_class"].items():
        assert [line.split() for line in printed.splitlines() if line.startswith(name)] == [
            [name, f"{100 * row['accuracy']:.1f}", "%", "5"]
        ]
    # The training measured the same metrics at its end.
    assert metrics["accuracy"] == results(learned)["eval_accuracy"]
    assert metrics["teacher_agreement"] == results(learned)["eval_teacher_agreement"]


def test_an_evaluation_writes_no_files(tmp_path, monkeypatch, data, learned):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in learned.iterdir())
    assert hf_deit("evaluate", learned, "--data", data) == 0
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in learned.iterdir()) == before


def test_an_evaluation_in_bfloat16_is_nearly_the_same(data, learned):
    exact, half = evaluate(str(learned), str(data)), evaluate(str(learned), str(data), bf16=True)
    assert half["metrics"]["cls_loss"] != exact["metrics"]["cls_loss"]
    assert half["metrics"]["cls_loss"] == pytest.approx(exact["metrics"]["cls_loss"], rel=0.05)


def test_the_teacher_gets_the_given_view_size_in_an_evaluation(data, learned):
    SEEN.clear()
    evaluate(str(learned), str(data), f"{__name__}:watching_network", teacher_view_size=28)
    assert SEEN[-1] == (15, 28, 28)


def test_the_teacher_of_the_models_own_recipe_keeps_its_fields_in_an_evaluation(tmp_path, data, learned):
    teacher = f"{__name__}:watching_network"
    for name, size in (("own", 20), ("other", 16)):
        shutil.copytree(learned, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*"))
        used = teacher if name == "own" else "somewhere:else"
        (tmp_path / name / "recipe.yaml").write_text(f"teacher: {used}\nteacher_image_size: 20\n")
        SEEN.clear()
        evaluate(str(tmp_path / name), str(data), teacher)
        assert SEEN[-1] == (15, size, size)


def renamed(folder, target, names):
    """Copy a saved model and give its classes other names."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_classes_are_matched_by_name_if_the_model_has_another_order(tmp_path, data, validation, learned):
    names = ("dog", "bee", "cat")
    model = renamed(learned, tmp_path / "model", names)
    _, labels, heads = by_hand(model, validation, names)
    result = evaluate(str(model), str(data))
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy(heads["logits"], labels))
    assert result["metrics"]["accuracy"] < 0.5 < results(learned)["eval_accuracy"]
    assert list(result["per_class"]) == list(names)


def test_data_may_have_some_of_the_models_classes(tmp_path, capsys, learned):
    """The data have only bees and dogs: labels 0 and 1 of the data, 0 and 2 of the model."""
    data = write_splits(tmp_path / "data")
    for split in ("train", "validation"):
        shutil.rmtree(data / split / "cat")
    _, labels, heads = by_hand(learned, load_splits(str(data))[1])
    assert set(labels.tolist()) == {0, 2}
    assert hf_deit("evaluate", learned, "--data", data, "--json", tmp_path / "e.json") == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    written = strict_json(tmp_path / "e.json")
    assert written["metrics"]["accuracy"] == pytest.approx(accuracy(heads["logits"], labels))
    assert {name: row["images"] for name, row in written["per_class"].items()} == {"bee": 5, "cat": 0, "dog": 5}


def test_a_class_that_the_model_does_not_know_is_refused_with_its_name(tmp_path, capsys, learned):
    data = write_splits(tmp_path / "data", ("bee", "cat", "elk"))
    message = refused(capsys, "evaluate", learned, "--data", data)
    assert "'elk'" in message
    assert "'bee', 'cat', 'dog'" in message


def test_all_images_of_a_folder_without_splits_are_evaluated(tmp_path, learned):
    folder = write_images(tmp_path / "data")
    result = evaluate(str(learned), str(folder))
    assert {name: row["images"] for name, row in result["per_class"].items()} == {"bee": 8, "cat": 8, "dog": 8}


@pytest.mark.parametrize("part", ["", "checkpoint-2", "checkpoint-2/ema"])
def test_a_model_is_evaluated_on_the_images_that_its_own_run_split_off(tmp_path, part):
    folder = write_images(tmp_path / "data")
    fields = ("--validation_share", 0.25, "--seed", 3, "--distillation_type", "none")
    averaging = ("--ema_epochs", 1, "--counted_weights", "ema") if part.endswith("ema") else ()
    assert train(folder, tmp_path / "out", *STUDENT, *fields, *averaging) == 0
    result = evaluate(str(tmp_path / "out" / part), str(folder))
    assert {name: row["images"] for name, row in result["per_class"].items()} == {"bee": 2, "cat": 2, "dog": 2}
    assert result["metrics"]["cls_loss"] == pytest.approx(results(tmp_path / "out")["eval_cls_loss"], abs=1e-5)


def test_a_relative_path_of_the_training_data_is_recognised_from_another_folder(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert train("data", tmp_path / "out", *STUDENT, "--distillation_type", "none", "--validation_share", 0.25) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = evaluate(str(tmp_path / "out"), str(folder))
    assert {name: row["images"] for name, row in result["per_class"].items()} == {"bee": 2, "cat": 2, "dog": 2}


def test_a_recipe_written_by_hand_for_a_model_has_the_default_fields(tmp_path, learned):
    folder = write_images(tmp_path / "data", per_class=10)
    model = renamed(learned, tmp_path / "model", NAMES)
    (model / "recipe.yaml").write_text(f"data: {folder}\n")
    result = evaluate(str(model), str(folder))
    assert {name: row["images"] for name, row in result["per_class"].items()} == {"bee": 1, "cat": 1, "dog": 1}


def test_a_model_without_class_names_is_refused(tmp_path, capsys, data, learned):
    model = renamed(learned, tmp_path / "model", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert "'LABEL_0'" in refused(capsys, "evaluate", model, "--data", data)
