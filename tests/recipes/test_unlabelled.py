"""Training with unlabelled images from the command line and from Python: exactness, counts, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import hf_deit as package
from hf_deit.data.augmentation import Augmentation
from hf_deit.data.views import ViewDataset
from hf_deit.errors import UserError
from hf_deit.losses import UNLABELLED
from hf_deit.recipes.data import load_run_data
from hf_deit.recipes.reading import load_recipe
from hf_deit.recipes.validate import validate
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny
from tests.helpers.runs import FACTORY, QUIET, STUDENT, TEACHER_LABELS, hf_deit, refused, results, write_splits

TEACHER = ("--teacher", FACTORY, "--teacher_labels", *TEACHER_LABELS)
TRAINING = (
    *STUDENT,
    "--distillation_type",
    "soft",
    "--distillation_alpha",
    0.5,
    "--mixup_alpha",
    0.8,
    "--save_strategy",
    "no",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def more(tmp_path_factory, data):
    """Folder of 20 images without labels, of one validation image under another name, and of one training image."""
    folder = tmp_path_factory.mktemp("more") / "more"
    for number, pixels in enumerate(tiny.pixels_of(20, seed=5)):
        path = folder / ("deep/er" if number % 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    shutil.copy(next((data / "validation" / "bee").iterdir()), folder / "deep" / "renamed.jpg")
    shutil.copy(next((data / "train" / "bee").iterdir()), folder / "also.png")
    return folder


def words(data, output_dir, *fields, batch=8):
    fixed = ("--max_steps", 8, "--per_device_train_batch_size", batch, *QUIET, *TRAINING)
    return ("train", "--data", data, "--output_dir", output_dir, *fixed, *fields)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def live(tmp_path_factory, data, more):
    folder = tmp_path_factory.mktemp("live") / "out"
    assert hf_deit(*words(data, folder, "--unlabelled", more, *TEACHER)) == 0
    return folder


# ---- exactness ----


def test_cached_outputs_workers_and_the_python_function_give_the_same_weights(tmp_path, data, more, live):
    cache = ("--unlabelled", more, *TEACHER)
    fields = words(data, tmp_path / "unused", *cache)[1:]
    assert hf_deit("cache-teacher", "--out", tmp_path / "cache", *fields) == 0
    stored = ("--unlabelled", more, "--teacher_cache", tmp_path / "cache", "--dataloader_num_workers", 2)
    assert hf_deit(*words(data, tmp_path / "cached", *stored)) == 0
    assert same(weights(live), weights(tmp_path / "cached"))
    settings = yaml.safe_load((live / "recipe.yaml").read_text())
    assert Path(settings["unlabelled"]) == more
    package.train(output_dir=tmp_path / "python", recipe=live / "recipe.yaml")
    assert same(weights(live), weights(tmp_path / "python"))


def test_a_cache_serves_other_batch_sizes_and_shares(tmp_path, data, more):
    """The outputs of a cache that was built for another batch are those of the live teacher in the run's own batches."""
    some = tmp_path / "some"  # of three images of each class, so that an epoch shows all of them
    for path in [path for name in ("bee", "cat", "dog") for path in sorted((data / "train" / name).iterdir())[:3]]:
        (some / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / "train" / path.parent.name)
    shutil.copytree(data / "validation", some / "validation")
    wider = ("--unlabelled_share", 0.34)  # more views of the labelled images than the run shows
    fields = words(some, tmp_path / "unused", "--unlabelled", more, *TEACHER, *wider, batch=12)[1:]
    assert hf_deit("cache-teacher", "--out", tmp_path / "cache", *fields) == 0
    other = ("--unlabelled", more)
    found = []
    for name, teacher in (("live", TEACHER), ("cached", ("--teacher_cache", tmp_path / "cache"))):
        run = words(some, tmp_path / name, *other, *teacher, "--num_views", 1)
        assert hf_deit(*run) == 0
        found.append(weights(tmp_path / name))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-5)


def test_a_cache_of_other_unlabelled_images_is_refused_by_name(tmp_path, capsys, data, more):
    fields = words(data, tmp_path / "unused", *TEACHER, "--max_steps", 3)[1:]
    assert hf_deit("cache-teacher", "--out", tmp_path / "without", *fields) == 0
    assert hf_deit("cache-teacher", "--out", tmp_path / "with", *fields, "--unlabelled", more) == 0
    for cache, unlabelled in (("without", ("--unlabelled", more)), ("with", ())):
        message = refused(
            capsys, *words(data, tmp_path / cache / "x", "--teacher_cache", tmp_path / cache, *unlabelled)
        )
        assert "unlabelled" in message
    with_part = json.loads((tmp_path / "with" / "manifest.json").read_text())["views"]["data"]
    without = json.loads((tmp_path / "without" / "manifest.json").read_text())["views"]["data"]
    assert set(with_part) - set(without) == {"unlabelled"}
    assert with_part["unlabelled"].keys() == {"fingerprint", "images", "labelled_pass_epochs"}


def trained(folder, batch, accumulation, **data):
    callback = tiny.FirstGradients()
    changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "mixup_alpha": 0.8}
    trainer = DistillationTrainer(
        tiny.student(),
        tiny.conv_teacher(),
        tiny.arguments(folder, distillation_type="soft", distillation_alpha=0.4, **changes),
        train_dataset=tiny.partly_labelled_data(**data),
        callbacks=[callback],
    )
    trainer.train()
    return callback.gradients, trainer


def test_accumulation_does_not_change_the_gradient(tmp_path):
    one, trainer = trained(tmp_path / "1", 8, 1, share=0.25)
    for batch, steps in ((4, 2), (2, 4)):
        parts, _ = trained(tmp_path / str(batch), batch, steps, share=0.25)
        for name, gradient in one.items():
            torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-3


def test_the_logged_loss_is_the_formula_on_the_exact_batch(tmp_path):
    _, trainer = trained(tmp_path, 8, 1)
    entry = next(entry for entry in trainer.state.log_history if "cls_loss" in entry)
    assert entry["loss"] == pytest.approx(0.6 * entry["cls_loss"] + 0.4 * entry["distillation_loss"], rel=1e-4)


# ---- counts and messages ----


def test_images_are_counted_and_validation_images_are_left_out(live, data, more):
    found = results(live)
    assert found["unlabelled"] == {"images": 21, "also_labelled": 1, "left_out_validation_images": 1}
    assert (found["run"]["train_images"], found["run"]["unlabelled_images"]) == (24, 21)
    card = (live / "README.md").read_text()
    assert "| training images without labels | 21, learned from the teacher alone; 1 more were left out" in card


def test_the_log_states_the_steps_of_an_epoch(tmp_path, data, more, caplog):
    caplog.set_level("INFO")
    assert hf_deit(*words(data, tmp_path, "--unlabelled", more, *TEACHER, "--max_steps", 1)) == 0
    assert "5 optimizer steps of 8 images (4 labelled, 4 unlabelled)" in caplog.text


def test_without_the_option_nothing_mentions_it(tmp_path, data):
    assert hf_deit(*words(data, tmp_path, *TEACHER, "--max_steps", 1)) == 0
    assert "unlabelled" not in json.dumps(results(tmp_path))
    assert "without labels" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (("--distillation_type", "none", "--distillation_alpha", 0), "learns nothing"),
        ((*TEACHER, "--distillation_alpha", 0), "distillation_alpha=0.0"),
        ((*TEACHER, "--unlabelled_share", 1), "unlabelled_share=1.0"),
        ((*TEACHER, "--unlabelled_share", 0.01), "unlabelled_share=0.01"),
        ((*TEACHER, "--repeated_augmentation", 3), "repeated_augmentation=3"),
        ((*TEACHER, "--per_device_train_batch_size", 64), "only 21 are given"),
        ((*TEACHER, "--per_device_train_batch_size", 2), "at least 4"),
        ((*TEACHER, "--per_device_train_batch_size", 7, "--mixup_alpha", 0), "even"),
        ((*TEACHER, "--unlabelled_split", "train"), "unlabelled_split='train'"),
        ((*TEACHER, "--streaming", "true"), "stream"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(tmp_path, capsys, data, more, fields, part):
    message = refused(capsys, *words(data, tmp_path / "out", "--unlabelled", more, *fields))
    assert part in message
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_fields_of_unlabelled_images_without_them_and_missing_folders_are_refused(tmp_path, capsys, data):
    for fields, part in (
        (("--unlabelled_share", 0.25), "unlabelled_share=0.25"),
        (("--unlabelled_split", "all"), "unlabelled_split='all'"),
        (("--unlabelled", tmp_path / "nowhere"), "nowhere"),
    ):
        assert part in refused(capsys, *words(data, tmp_path / "out", *TEACHER, *fields))


def test_only_validation_images_as_unlabelled_ones_are_refused(tmp_path, data):
    recipe = load_recipe({"data": str(data), "unlabelled": str(data / "validation"), "output_dir": str(tmp_path)}, [])
    with pytest.raises(UserError, match="15 images of .* are validation images"):
        load_run_data(recipe)


def test_the_whole_data_folder_can_be_given_and_its_validation_images_are_left_out(tmp_path, data):
    recipe = load_recipe({"data": str(data), "unlabelled": str(data), "output_dir": str(tmp_path)}, [])
    found = load_run_data(recipe)
    assert len(found.unlabelled) == 24
    assert found.comparison == {"validation_images": 15, "labelled_images": 24}


# ---- rows without a label ----


@pytest.fixture(scope="module")
def partly(tmp_path_factory, data):
    """Table of the training images, a third of which have no label, and of the validation images."""
    folder = tmp_path_factory.mktemp("partly")
    for split in ("train", "validation"):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("file_name", "label"))
            for number, path in enumerate(sorted((data / split).glob("*/*.png"))):
                rows.writerow((path, "" if split == "train" and number % 3 == 0 else path.parent.name))
    return folder


def test_rows_without_a_label_are_learned_from_the_teacher_and_refused_without_one(tmp_path, capsys, partly):
    assert hf_deit(*words(partly, tmp_path / "out", *TEACHER, "--class_weights", "balanced")) == 0
    assert results(tmp_path / "out")["unlabelled"] == {"images": 8, "left_out_validation_images": 0}
    none = ("--distillation_type", "none", "--distillation_alpha", 0)
    message = refused(capsys, *words(partly, tmp_path / "none", *none))
    assert "8 training image(s) have no label" in message
    assert "teacher" in message


def test_rows_and_a_folder_of_unlabelled_images_can_be_used_together(tmp_path, partly, more):
    assert hf_deit(*words(partly, tmp_path / "out", *TEACHER, "--unlabelled", more)) == 0
    found = results(tmp_path / "out")
    assert (found["run"]["train_images"], found["run"]["unlabelled_images"]) == (16, 29)


def test_a_row_without_a_label_that_is_a_validation_image_is_left_out(tmp_path, data):
    rows = [(path, path.parent.name) for path in sorted((data / "train").glob("*/*.png"))]
    rows += [(path, "") for path, _ in rows]  # every file once more, without a label
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *rows])
    fields = {"data": str(tmp_path / "t.csv"), "validation_share": 0.25, "output_dir": str(tmp_path / "out")}
    found = load_run_data(load_recipe(fields, []))
    assert found.comparison["validation_images"] == len(found.validation) == 6
    assert not {str(item) for item in found.train.items} & {str(item) for item in found.validation.items}
    assert len(found.train) == 2 * (24 - 6)


def test_the_speed_counts_every_image_of_an_epoch(tmp_path, data, more):
    run = ("--unlabelled", more, *TEACHER, "--max_steps", -1, "--num_train_epochs", 2)
    assert hf_deit(*words(data, tmp_path, *run)) == 0
    found = results(tmp_path)
    assert found["steps"] == 10
    assert found["train_samples_per_second"] * found["train_runtime"] == pytest.approx(80, rel=0.01)


def test_a_stream_with_rows_without_a_label_trains_with_a_teacher_only(tmp_path, capsys, partly):
    stream = ("--streaming", "true", "--max_steps", 2)
    assert hf_deit(*words(partly, tmp_path / "out", *TEACHER, *stream)) == 0
    none = ("--distillation_type", "none", "--distillation_alpha", 0)
    assert "8 training image(s) have no label" in refused(capsys, *words(partly, tmp_path / "none", *none, *stream))


def test_a_teacher_is_trained_on_the_labelled_rows_and_an_evaluation_counts_them(tmp_path, caplog, partly, live):
    teacher = ("--network", FACTORY, "--image_size", 16, "--output_dir", tmp_path / "teacher")
    assert hf_deit("train-teacher", "--data", partly, *teacher) == 0
    assert "8 of 24 images have no label and are left out" in caplog.text
    caplog.clear()
    found = package.evaluate(live, partly / "train.csv")
    assert sum(row["images"] for row in found.per_class.values()) == 16
    assert "8 of 24" in caplog.text


def test_the_labels_of_a_python_data_set_may_be_missing_in_training_with_a_teacher_only(tmp_path):
    own = tiny.source(16)
    own.labels[3] = own.labels[8] = UNLABELLED
    dataset = ViewDataset(own, Augmentation((16, 16)), 0)
    args = {"distillation_type": "soft", "max_steps": 2}
    DistillationTrainer(
        tiny.student(), tiny.conv_teacher(), tiny.arguments(tmp_path, **args), train_dataset=dataset
    ).train()
    with pytest.raises(UserError, match="2 training image"):
        DistillationTrainer(
            tiny.student(), args=tiny.arguments(tmp_path, distillation_type="none"), train_dataset=dataset
        )
    rows = [
        {"pixel_values": torch.zeros(3, 16, 16, dtype=torch.uint8), "labels": label} for label in (0, UNLABELLED) * 8
    ]
    DistillationTrainer(
        tiny.student(), tiny.conv_teacher(), tiny.arguments(tmp_path, **args), train_dataset=rows
    ).train()
    for dataset, label in ((rows, "-100"), ([{**rows[0], "labels": -1}] * 16, "-1")):
        teacher = None if dataset is rows else tiny.conv_teacher()
        changes = {"distillation_type": "none" if teacher is None else "soft"}
        trainer = DistillationTrainer(
            tiny.student(), teacher, tiny.arguments(tmp_path, **changes), train_dataset=dataset
        )
        with pytest.raises(UserError, match=label):
            trainer.train()
    with pytest.raises(UserError, match="validation images always need labels"):
        DistillationTrainer(
            tiny.student(), tiny.conv_teacher(), tiny.arguments(tmp_path, **args), eval_dataset=rows
        ).evaluate()


def test_multi_label_data_train_with_unlabelled_images(tmp_path, data, more):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "a", "b"))
        for number, path in enumerate(sorted((data / "train").glob("*/*.png"))):
            rows.writerow((path, *(("", "") if number % 5 == 0 else (number % 2, int(number % 3 == 0)))))
    fields = (
        "--unlabelled",
        more,
        "--label_column",
        "a",
        "b",
        "--teacher",
        "tests.recipes.test_unlabelled:two_classes",
    )
    labels = ("--teacher_labels", "a", "b", "--teacher_problem_type", "multi_label_classification")
    assert hf_deit(*words(tmp_path / "t.csv", tmp_path / "out", *fields, *labels)) == 0
    assert results(tmp_path / "out")["run"]["unlabelled_images"] > 21


def two_classes():
    return tiny.conv_teacher(2)


# ---- resuming and sheets ----


def test_another_share_or_other_images_are_refused_on_resume(tmp_path, capsys, data, more):
    saving = ("--save_strategy", "steps", "--save_steps", 2, "--unlabelled", more, *TEACHER)
    run = words(data, tmp_path / "out", *saving)
    assert hf_deit(*run) == 0
    for change in (("--unlabelled_share", 0.25), ("--unlabelled", more / "deep")):
        assert "unlabelled" in refused(capsys, *run, *change, "--resume")


def test_a_contact_sheet_shows_unlabelled_images_in_its_last_rows_below_a_title(tmp_path, data, more, caplog):
    caplog.set_level("INFO")
    shown = ("--images", 4, "--views", 2, "--view_size", 16, "--unlabelled", more, "--unlabelled_share", 0.25)
    assert hf_deit("show-augmentations", data, "--out", tmp_path / "sheet.png", *shown) == 0
    assert "without a label are in row(s) 4 from the top" in caplog.text
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    # A row of pixels between the images is white, apart from the two titles. The width is that of the longer title.
    assert pixels.shape[1] >= 4 + 3 * 20
    white = (pixels == 255).all(axis=1)
    starts = [row for row in range(1, len(white)) if white[row - 1] and not white[row]]
    bands = [(start, start + int(np.argmax(white[start:]))) for start in starts]
    assert [end - start for start, end in bands].count(16) == 4 and len(bands) == 6  # rows of images, and two titles
    assert [end - start == 16 for start, end in bands] == [False, True, True, True, False, True]
    assert (pixels[:, -4:] == 255).all() and (pixels[:, :4] == 255).all()  # no title is cut off


def test_a_contact_sheet_of_one_unlabelled_image_has_one_title(tmp_path, data, more):
    shown = ("--images", 1, "--views", 1, "--view_size", 16, "--unlabelled", more)
    assert hf_deit("show-augmentations", data, "--out", tmp_path / "sheet.png", *shown) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 4 + 20 < sheet.height < 4 + 20 + 20 and sheet.width > 4 + 2 * 20


def test_validate_finds_the_problem_without_reading_weights(tmp_path, data, more):
    fields = {
        "data": str(data),
        "unlabelled": str(more),
        "output_dir": str(tmp_path),
        "image_size": 16,
        "patch_size": 8,
    }
    problems = validate(load_recipe({**fields, "hidden_size": 32, "num_attention_heads": 2}, []))
    assert any("learns nothing" in str(problem) for problem in problems)


def test_a_missing_teacher_is_the_only_problem_of_guidance_with_unlabelled_images(tmp_path, data, more):
    fields = {"data": str(data), "unlabelled": str(more), "output_dir": str(tmp_path / "out"), "teacher": str(tmp_path)}
    guided = {"distillation_type": "none", "guidance": "features"}
    shape = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 2}
    problems = validate(load_recipe({**fields, **guided, **shape}, []))
    assert [str(tmp_path) in str(problem) for problem in problems] == [True]
