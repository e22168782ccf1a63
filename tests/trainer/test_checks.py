"""Checks before the first step: impossible combinations are refused, each with a fix, and all in one error."""

import pytest
import torch
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViT

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.views import ViewDataset
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import Problems, RecipeError, TeacherError, UserError
from hf_deit.trainer.checks import training_problems
from hf_deit.trainer.student import inspect_student
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import NAMES, SIZE, arguments, conv_teacher, evaluation_data, source, student, training_data

SIX = tuple("abcdef")
LINEAR = {"lr_scheduler_type": "linear"}


def trainer_of(folder, model=None, data=None, teacher=None, optimizers=(None, None), **changes):
    args = arguments(folder, **{"distillation_type": "none", "num_train_epochs": 1, **changes})
    return DistillationTrainer(
        model or student(),
        teacher,
        args,
        train_dataset=data or training_data(32),
        eval_dataset=evaluation_data() if args.metric_for_best_model else None,
        optimizers=optimizers,
    )


def later_fields(args, **fields):
    """Return the arguments with fields that are set without the checks of the constructor."""
    for name, value in fields.items():
        setattr(args, name, value)
    return args


def stock_student(**changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return StockViT(StockViTConfig(**{"image_size": SIZE, "patch_size": 8, "num_labels": 4, **shape, **changes}))


def refused(folder, **given):
    with pytest.raises(UserError) as caught:
        trainer_of(folder, **given)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"class_weights": "balanced", "data": [{"pixel_values": torch.zeros(3, SIZE, SIZE), "labels": 0}] * 8},
            ["class_weights='balanced'", "(list)", "ViewDataset"],
        ),
        (
            {"metric_for_best_model": "top5_accuracy", "eval_strategy": "epoch"},
            ["metric_for_best_model='top5_accuracy'", "4 classes", "6 classes", "'accuracy'"],
        ),
        ({"per_device_train_batch_size": 7, "mixup_alpha": 0.8}, ["per_device_train_batch_size=7", "even"]),
        ({"max_steps": 3, "warmup_steps": 3, **LINEAR}, ["warmup_steps=3", "3 updates", "0.05"]),
        ({"max_steps": -1, "warmup_steps": 9, **LINEAR}, ["warmup_steps=9", "4 updates"]),
        ({"optimizer_class": "nowhere:Lamb"}, ["optimizer_class='nowhere:Lamb'", "package.module:Class"]),
        ({"optimizer_class": "torch.optim:SGD", "optim_args": "momentum"}, ["optim_args='momentum'", "name=value"]),
    ],
)
def test_arguments_that_do_not_fit_student_or_data_are_refused_with_a_fix(tmp_path, changes, words):
    error = refused(tmp_path, **changes)
    assert isinstance(error, RecipeError)
    assert "things do not work" not in str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "metric_for_best_model": "top5_accuracy",
            "eval_strategy": "epoch",
            "model": student(names=SIX),
            "data": training_data(32, names=SIX),
        },
        {"max_steps": 3, "warmup_steps": 2, **LINEAR},
        {"max_steps": -1, "warmup_steps": 3, **LINEAR},
        {"max_steps": 1, "warmup_steps": 0.05, **LINEAR},
        {"class_weights": "balanced"},
        {"layer_decay": 0.75, "scale_learning_rate": True},
        {"optimizer_class": "torch.optim:SGD", "optim_args": "momentum=0.9"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_values_at_the_limits_pass(tmp_path, changes):
    trainer_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("problem", "field"),
    [
        ("regression", "mixup_alpha"),
        ("regression", "cutmix_alpha"),
        ("regression", "class_weights"),
    ],
)
def test_mixing_and_class_weights_are_refused_for_numbers(tmp_path, problem, field):
    value = "balanced" if field == "class_weights" else 0.8
    args = later_fields(arguments(tmp_path, distillation_type="none"), **{field: value})
    model = student(problem_type=problem)
    with pytest.raises(RecipeError, match=rf"(?i){field}=.*{problem}.*set {field}=('none'|0)") as caught:
        DistillationTrainer(model, None, args, train_dataset=training_data(32))
    assert "things do not work" not in str(caught.value)
    setattr(args, field, "none" if field == "class_weights" else 0)
    DistillationTrainer(model, None, args, train_dataset=training_data(32))


def test_images_with_one_class_may_be_mixed(tmp_path):
    args = later_fields(arguments(tmp_path, distillation_type="none"), mixup_alpha=0.8, cutmix_alpha=1.0)
    DistillationTrainer(student(), None, args, train_dataset=training_data(32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused_and_bf16_is_proposed(tmp_path, dtype):
    message = str(refused(tmp_path, model=stock_student().to(dtype)))
    assert str(dtype).removeprefix("torch.") in message
    assert "dtype=torch.float32" in message
    assert "bf16=True" in message


def test_an_evaluation_takes_half_precision_weights(tmp_path):
    model = stock_student().to(torch.bfloat16)
    DistillationTrainer(model, None, arguments(tmp_path, distillation_type="none"))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_fp16_is_refused_only_where_bf16_works(tmp_path, monkeypatch, has_bfloat16):
    args = later_fields(arguments(tmp_path, distillation_type="none"), fp16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    problems = list(training_problems(args, student(), inspect_student(student()), training_data(32), None))
    assert [("fp16=True" in problem, "bf16=True" in problem) for problem in problems] == [(True, True)] * has_bfloat16


@pytest.mark.parametrize(("size", "nearest"), [(20, "16×16"), ((16, 31), "16×32"), (28, "32×32")])
def test_an_image_size_that_is_not_a_multiple_of_the_patch_size_is_refused_with_the_nearest_multiple(
    tmp_path, size, nearest
):
    message = str(refused(tmp_path, model=stock_student(image_size=size)))
    assert "patch_size 8×8" in message
    assert f"image_size {nearest}" in message


def test_layer_decay_needs_numbered_layers(tmp_path):
    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Linear(3, len(NAMES))

        def forward(self, pixel_values):
            return {"logits": self.classifier(pixel_values.mean((2, 3)))}

    trainer_of(tmp_path, model=Student())
    message = str(refused(tmp_path, model=Student(), layer_decay=0.5))
    assert "layer_decay" in message
    assert "Student" in message


@pytest.mark.parametrize(
    "changes", [{"layer_decay": 0.5}, {"scale_learning_rate": True}, {"optimizer_class": "torch.optim:SGD"}], ids=str
)
def test_arguments_of_the_optimizer_are_refused_together_with_a_passed_optimizer(tmp_path, changes):
    model = student()
    own = (torch.optim.SGD(model.parameters(), 0.1), None)
    message = str(refused(tmp_path, model=model, optimizers=own, **changes))
    assert f"{next(iter(changes))}=" in message
    assert "optimizer of your own" in message
    trainer_of(tmp_path, model=model, optimizers=own)


def test_a_student_with_the_class_names_of_the_data_in_another_order_is_refused(tmp_path):
    message = str(refused(tmp_path, model=student(names=NAMES[::-1])))
    assert "'ant', 'bee', 'cat', 'dog'" in message
    assert "'dog', 'cat', 'bee', 'ant'" in message
    assert "id2label" in message


def test_the_teacher_of_a_student_without_class_names_is_aligned_to_the_data(tmp_path):
    network = conv_teacher()
    teacher = Teacher(network, id2label=dict(enumerate(NAMES[::-1])))
    trainer = trainer_of(tmp_path, model=stock_student(), teacher=teacher, distillation_type="soft")
    assert trainer.student.class_names is None
    pixels = torch.rand(2, 3, SIZE, SIZE)
    unnamed = Teacher(network)
    unnamed.align(None, 4, (SIZE, SIZE))
    torch.testing.assert_close(trainer.teacher(pixels), unnamed(pixels).flip(-1))
    strange = Teacher(conv_teacher(), id2label=dict(enumerate(SIX[:4])))
    error = refused(tmp_path, model=stock_student(), teacher=strange, distillation_type="soft")
    assert "'ant', 'bee', 'cat', 'dog'" in str(error)


# ---- several problems in one error ----


def test_all_problems_come_in_one_error(tmp_path):
    teacher = Teacher(conv_teacher(), id2label=dict(enumerate(("ant", "bee", "cat", "eel"))))
    error = refused(
        tmp_path,
        data=training_data(32, names=SIX),
        teacher=teacher,
        distillation_type="soft",
        distillation_target="class",
        per_device_train_batch_size=7,
        mixup_alpha=0.8,
        metric_for_best_model="top5",
        eval_strategy="epoch",
        max_steps=2,
        warmup_steps=2,
        **LINEAR,
        optimizer_class="nowhere:Lamb",
    )
    assert type(error) is RecipeError
    message = str(error)
    for words in (
        "7 things do not work",
        "distillation_target='class'",
        "'dog'",
        "num_labels=6",
        "per_device_train_batch_size=7",
        "metric_for_best_model='top5'",
        "warmup_steps=2",
        "nowhere:Lamb",
    ):
        assert words in message


def test_one_problem_keeps_its_own_type(tmp_path):
    teacher = Teacher(conv_teacher(), id2label=dict(enumerate(("ant", "bee", "cat", "eel"))))
    error = refused(tmp_path, teacher=teacher, distillation_type="soft")
    assert type(error) is TeacherError


def test_gathering_does_not_catch_other_errors_and_raises_nothing_without_problems():
    problems = Problems()
    with pytest.raises(KeyError), problems.gathered():
        raise KeyError("a mistake of the programmer")
    problems.raise_all()


# ---- values that the checks use ----


@pytest.mark.parametrize(("images", "epochs", "updates"), [(43, 1, 5), (43, 3, 15), (5, 2, 2), (40, 0.5, 3)])
def test_updates_are_counted_as_the_trainer_counts_them(tmp_path, images, epochs, updates):
    data = training_data(images)
    trainer = trainer_of(tmp_path, data=data, max_steps=-1, num_train_epochs=epochs)
    assert trainer.args.planned_updates(data) == updates
    trainer.train()
    assert trainer.state.max_steps == updates


def test_without_view_keys_the_incomplete_last_batch_counts(tmp_path):
    rows = [{"pixel_values": torch.zeros(3, SIZE, SIZE), "labels": 0}] * 13
    trainer = trainer_of(tmp_path, data=rows, max_steps=-1)
    trainer.train()
    assert trainer.args.planned_updates(rows) == trainer.state.max_steps == 2
    assert trainer.args.planned_updates(iter(rows)) is None


def test_balanced_class_weights_are_used_in_the_loss(tmp_path):
    images = source(12)
    images.labels[:] = [0] * 6 + [1] * 3 + [2] * 2 + [3]
    data = ViewDataset(images, Augmentation((SIZE, SIZE)), 0)
    weighted, plain = (trainer_of(tmp_path, data=data, class_weights=kind) for kind in ("balanced", "none"))
    labels = torch.tensor([0, 1, 2, 3])
    heads = {"logits": torch.randn(4, 4)}
    expected = torch.tensor([12 / (4 * count) for count in (6, 3, 2, 1)])
    ratio = weighted.objective.terms(heads, {}, labels)["loss"] / plain.objective.terms(heads, {}, labels)["loss"]
    torch.testing.assert_close(ratio, expected)


# ---- the metric for the best model ----

BY_STEPS = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (None, ("accuracy", True)),
        ("multi_label_classification", ("mean_average_precision", True)),
        ("regression", ("loss", False)),
    ],
)
def test_the_default_metric_for_the_best_model_follows_the_problem_type(tmp_path, problem, expected):
    args = arguments(tmp_path, distillation_type="none", load_best_model_at_end=True, **BY_STEPS)
    DistillationTrainer(student(problem_type=problem), None, args, eval_dataset=evaluation_data(8))
    assert (args.metric_for_best_model, args.greater_is_better) == expected


def test_a_misspelt_metric_is_refused_before_the_first_step_with_the_known_metrics(tmp_path):
    named = {"load_best_model_at_end": True, "metric_for_best_model": "accuraccy", **BY_STEPS}
    args = arguments(tmp_path, distillation_type="none", **named)
    with pytest.raises(RecipeError, match="'accuraccy'.*balanced_accuracy"):
        DistillationTrainer(student(), None, args, eval_dataset=evaluation_data(8))
    DistillationTrainer(student(), None, args, eval_dataset=evaluation_data(8), compute_metrics=lambda found: {})


class SixRows(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"pixel_values": torch.zeros(3, 16, 16), "labels": 0}


def test_fewer_images_than_a_mixed_batch_are_refused_with_a_batch_size_that_works(tmp_path):
    for batch, works in ((8, False), (6, True)):
        args = arguments(tmp_path, distillation_type="none", mixup_alpha=0.8, per_device_train_batch_size=batch)
        if works:
            DistillationTrainer(student(), None, args, train_dataset=SixRows()).train()
            continue
        with pytest.raises(RecipeError, match="6 images.*8 images.*per_device_train_batch_size of at most 6"):
            DistillationTrainer(student(), None, args, train_dataset=SixRows())


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_warm_up_share_that_rounds_up_to_the_entire_run_is_refused(tmp_path, share):
    assert "warmup_steps" in str(refused(tmp_path, warmup_steps=share, max_steps=6, **LINEAR))
