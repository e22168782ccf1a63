"""Distillation of multi-label students: live and cached teachers, records in each format, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.batch_ops import Mixing
from hf_deit.data.sources import Source
from hf_deit.data.views import EvaluationDataset, ViewDataset
from hf_deit.distillation.cache import RecordFormat, TeacherCache
from hf_deit.distillation.cache_writer import merge_caches
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import RecipeError, TeacherCacheError, TeacherError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.caches import RECORD_FORMATS, build, tiny_teacher, tiny_views, trainer_of
from tests.helpers.tiny import NAMES, SIZE, arguments, conv_teacher, logged, source, student

MULTI = "multi_label_classification"
FORMATS = {
    "hard": RecordFormat("hard", 4, problem_type=MULTI),
    "dense": RecordFormat("dense", 4, problem_type=MULTI),
    "half": RecordFormat("dense", 4, dtype="float16", problem_type=MULTI),
}


def multi_source(count, seed=0):
    """Images of class i mod 4 that also have the next class if i is even."""
    plain = source(count, seed)
    rows = [[0, 0, 0, 0] for _ in range(count)]
    for index, label in enumerate(plain.labels):
        rows[index][label] = 1
        if index % 2 == 0:
            rows[index][(label + 1) % 4] = 1
    return Source(plain.items, list(map(tuple, rows)), NAMES, f"multi-{count}-{seed}", "multi", MULTI)


def multi_data(count=43):
    return ViewDataset(multi_source(count), Augmentation((SIZE, SIZE), crop_scale=(0.5, 1.0)), 0)


def multi_evaluation():
    return EvaluationDataset(multi_source(22, 7), (SIZE, SIZE))


def multi_teacher(network=None, order=NAMES):
    teacher = Teacher(network or conv_teacher(), id2label=dict(enumerate(order)), problem_type=MULTI)
    teacher.align(list(NAMES), 4, (SIZE, SIZE))
    return teacher


def multi_student(two_heads=True):
    return student(two_heads, problem_type=MULTI, initializer_range=0.2)


def multi_build(folder, kind, **options):
    views = options.pop("views", None) or tiny_views(multi_data())
    teacher = options.pop("teacher", None) or multi_teacher()
    return build(folder, FORMATS[kind], views=views, teacher=teacher, validation=multi_evaluation(), **options)


def multi_trainer(folder, teacher=None, two_heads=True, **changes):
    fields = {"data": multi_data(), "evaluation": multi_evaluation(), "model": multi_student(two_heads), **changes}
    return trainer_of(folder, teacher, **fields)


def trained(trainer):
    """Return the weights, the logged losses and the metrics of a training."""
    trainer.train()
    metrics = {name: value for name, value in trainer.evaluate().items() if "_per_second" not in name}
    metrics.pop("eval_runtime")
    return dict(trainer.model.state_dict()), [logged(trainer, "loss"), logged(trainer, "teacher_agreement")], metrics


# ---- live and cached ----

RUNS = {
    "soft-token": ("dense", True, {"distillation_type": "soft", "distillation_tau": 2.0}),
    "soft-class-mixed": (
        "dense",
        False,
        {"distillation_type": "soft", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing_factor": 0.1},
    ),
    "hard-token": ("hard", True, {"class_weights": "balanced"}),
    "hard-class-from-logits": ("dense", False, {"base_loss": "binary_cross_entropy", "mixup_alpha": 0.8}),
}


@pytest.mark.parametrize("case", RUNS)
def test_cached_and_live_multi_label_teachers_train_equal_students_bit_for_bit(tmp_path, case):
    kind, two_heads, fields = RUNS[case]
    mixing = Mixing(fields.get("mixup_alpha", 0.0), fields.get("cutmix_alpha", 0.0))
    cache = multi_build(tmp_path / "cache", kind, views=tiny_views(multi_data(), mixing=mixing))
    live = trained(multi_trainer(tmp_path / "live", multi_teacher(), two_heads, **fields))
    cached = trained(multi_trainer(tmp_path / "cached", None, two_heads, cache=cache, **fields))
    assert live[0].keys() == cached[0].keys()
    assert all(torch.equal(weight, cached[0][name]) for name, weight in live[0].items())
    assert live[1] == cached[1] and len(live[1][1]) == 10
    # Decisions have no order, so their cache gives no mean average precision of the teacher.
    absent = {"eval_teacher_mean_average_precision"} if kind == "hard" else set()
    assert {name: value for name, value in live[2].items() if name not in absent} == cached[2]
    assert {"eval_f1_macro", "eval_recall_micro", "eval_teacher_f1_macro", "eval_teacher_agreement"} <= live[2].keys()


@pytest.mark.parametrize("kind", ["features", "similarity"])
def test_guidance_trains_the_same_multi_label_student_live_and_from_a_cache_of_decisions(tmp_path, kind):
    fields = {"guidance": kind, "distillation_type": "hard", "mixup_alpha": 0.8}
    live = multi_trainer(tmp_path / "live", multi_teacher(), **fields)
    record_format = replace(FORMATS["hard"], extra_arrays=live.guidance.arrays)
    views = tiny_views(multi_data(), mixing=Mixing(0.8, 0.0))
    options = {"teacher": live.teacher, "validation": multi_evaluation(), "guidance": live.guidance}
    cached = multi_trainer(
        tmp_path / "run", cache=build(tmp_path / "cache", record_format, views=views, **options), **fields
    )
    (weights, losses, _), (own_weights, own_losses, _) = trained(live), trained(cached)
    assert losses == own_losses and logged(live, "guidance_loss") == logged(cached, "guidance_loss")
    assert all(torch.equal(weight, own_weights[name]) for name, weight in weights.items())


@pytest.mark.parametrize("distillation_type", ["soft", "hard"])
@pytest.mark.parametrize("two_heads", [True, False])
def test_the_loss_of_a_step_equals_the_formula_written_for_each_class(tmp_path, distillation_type, two_heads):
    fields = {"distillation_type": distillation_type, "distillation_alpha": 0.3}
    fields |= {"distillation_tau": 2.0} if distillation_type == "soft" else {}
    trainer = multi_trainer(tmp_path, multi_teacher(), two_heads, class_weights="balanced", **fields)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"].double()
    loss, outputs = trainer.compute_loss(trainer.model.eval(), dict(batch), return_outputs=True)
    outputs = {name: values.detach().double() for name, values in outputs.items()}
    rows = np.array(multi_data().labels)
    weights = (len(rows) - rows.sum(axis=0)) / rows.sum(axis=0)

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    total = 0.0
    for image in range(len(labels)):
        for c in range(4):
            cls = outputs["cls_logits" if two_heads else "logits"][image, c].item()
            dist = outputs["distillation_logits" if two_heads else "logits"][image, c].item()
            teacher, y = outputs["teacher_logits"][image, c].item(), labels[image, c].item()
            base = -weights[c] * y * math.log(sigmoid(cls)) - (1 - y) * math.log(1 - sigmoid(cls))
            if distillation_type == "soft":
                p, q = sigmoid(teacher / 2), sigmoid(dist / 2)
                distillation = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
            else:
                distillation = -math.log(sigmoid(dist) if sigmoid(teacher) > 0.5 else 1 - sigmoid(dist))
            total += 0.7 * base + 0.3 * distillation
    assert loss.item() == pytest.approx(total / len(labels) / 4, rel=1e-4)


def test_a_student_learns_the_sigmoids_of_its_teacher_without_labels(tmp_path):
    fields = {"distillation_type": "soft", "distillation_alpha": 1.0, "distillation_tau": 1.0, "max_steps": 40}
    trainer = multi_trainer(tmp_path, multi_teacher(), two_heads=False, learning_rate=5e-3, **fields)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_distillation_loss"] < 0.5 * before["eval_distillation_loss"]
    assert after["eval_teacher_agreement"] > before["eval_teacher_agreement"]


def test_labels_are_smoothed_and_nothing_says_that_they_are_not(tmp_path, recwarn):
    fields = {"distillation_type": "none", "label_smoothing_factor": 0.2}
    objective = multi_trainer(tmp_path, None, two_heads=False, **fields).objective
    assert not [warning for warning in recwarn if "smoothing" in str(warning.message)]
    logits, labels = torch.tensor([[2.0, -1.0, 0.5, 3.0]]), torch.tensor([[1.0, 0, 0, 1]])
    smooth = torch.tensor([[0.9, 0.1, 0.1, 0.9]])
    expected = -(smooth * logits.sigmoid().log() + (1 - smooth) * (-logits).sigmoid().log()).mean(dim=1)
    torch.testing.assert_close(objective.terms({"logits": logits}, {}, labels)["loss"], expected)


def test_own_class_weights_multiply_the_terms_of_the_classes_that_are_present(tmp_path):
    objective = multi_trainer(tmp_path, None, two_heads=False, distillation_type="none").objective
    objective.class_weights = torch.tensor([3.0, 1.0, 1.0, 1.0])
    heads, labels = {"logits": torch.zeros(2, 4)}, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    loss = objective.terms(heads, {}, labels)["loss"] / math.log(2)
    torch.testing.assert_close(loss, torch.tensor([6 / 4, 1.0]))


# ---- records ----


@pytest.mark.parametrize("num_labels", [1, 4, 8, 9, 17])
def test_records_hold_the_logits_or_one_bit_per_class(num_labels):
    logits = torch.randn(5, num_labels, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 0.0
    hard = RecordFormat("hard", num_labels, problem_type=MULTI)
    assert hard.bytes_per_view == math.ceil(num_labels / 8)
    decoded = hard.decode(hard.encode(logits))["teacher_labels"]
    assert decoded.dtype == torch.bool and torch.equal(decoded, logits > 0)
    dense = RecordFormat("dense", num_labels, problem_type=MULTI)
    assert torch.equal(dense.decode(dense.encode(logits))["teacher_logits"], logits)
    for record_format in (hard, dense):
        fields = json.loads(json.dumps(record_format.describe()))
        assert fields["problem_type"] == MULTI
        assert RecordFormat.from_manifest(fields) == record_format
    assert "problem_type" not in RECORD_FORMATS["hard"].describe()  # as in the files of earlier versions


def test_top_k_records_and_other_problem_types_are_refused_with_the_remedy():
    with pytest.raises(TeacherCacheError, match=rf"top_k=2.*{MULTI}.*--kind soft"):
        RecordFormat("top_k", 4, top_k=2, tau=3.0, problem_type=MULTI)
    with pytest.raises(TeacherCacheError, match="problem_type='regression'"):
        RecordFormat("dense", 4, problem_type="regression")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cache_states_the_f1_of_its_teacher_and_merging_keeps_it(tmp_path, kind):
    cache = multi_build(tmp_path / "cache", kind, epochs=1)
    predicted = cache.validation_outputs(range(22))
    predicted = predicted.get("teacher_logits", predicted.get("teacher_labels")).numpy() > 0
    present = np.array(multi_evaluation().labels) > 0
    hits = sum(p and t for p, t in zip(predicted.ravel(), present.ravel(), strict=True))
    expected = 2 * hits / (predicted.sum() + present.sum())
    assert cache.summary()["teacher_f1_micro"] == pytest.approx(expected)
    assert cache.summary()["teacher_accuracy"] is None
    merge_caches(tmp_path / "merged", [tmp_path / "cache"])
    assert TeacherCache(tmp_path / "merged").summary()["teacher_f1_micro"] == pytest.approx(expected)


def test_a_cache_is_verified_with_its_teacher_class_by_class(tmp_path):
    cache = multi_build(tmp_path / "cache", "hard")
    multi_trainer(tmp_path / "run", multi_teacher(), cache=cache, verified=40)
    cache.manifest["teacher"]["fingerprint"] = multi_teacher(conv_teacher(seed=5)).fingerprint()
    with pytest.raises(TeacherCacheError, match="verify_teacher_cache"):
        multi_trainer(tmp_path / "other", multi_teacher(conv_teacher(seed=5)), cache=cache, verified=40)


def test_logits_of_a_teacher_with_another_class_order_are_stored_in_that_of_the_data(tmp_path):
    turned = multi_teacher(order=[NAMES[index] for index in (2, 0, 3, 1)])
    one, other = (
        multi_build(tmp_path / name, "dense", teacher=teacher, epochs=1).outputs(0, range(42))["teacher_logits"]
        for name, teacher in (("plain", multi_teacher()), ("turned", turned))
    )
    torch.testing.assert_close(other[:, [2, 0, 3, 1]], one)


# ---- what is refused ----


class Config:
    """Configuration of a network: only its problem type."""

    def __init__(self, problem_type):
        self.problem_type = problem_type


def configured(problem_type):
    network = conv_teacher()
    network.config = Config(problem_type)
    return network


def function(pixels):
    return torch.zeros(len(pixels), 4)


@pytest.mark.parametrize(
    ("teacher", "stated"),
    [
        (conv_teacher, "states no problem_type"),
        (lambda: function, "states no problem_type"),
        (lambda: configured("single_label_classification"), "problem_type='single_label_classification'"),
        (lambda: configured("regression"), "problem_type='regression'"),
        (lambda: Teacher(configured(MULTI), problem_type="single_label_classification"), "'single_label_class"),
    ],
    ids=["module", "function", "softmax", "regression", "stated"],
)
@pytest.mark.parametrize("fields", [{}, {"distillation_type": "soft"}, {"distillation_type": "none"}], ids=str)
def test_a_teacher_that_does_not_state_sigmoid_outputs_is_refused_with_the_way_to_state_them(
    tmp_path, teacher, stated, fields
):
    with pytest.raises(TeacherError, match=stated) as caught:
        multi_trainer(tmp_path, teacher(), **fields)
    assert f"--teacher_problem_type {MULTI}" in str(caught.value)
    assert f"Teacher(…, problem_type='{MULTI}')" in str(caught.value)


@pytest.mark.parametrize("make", [lambda: configured(MULTI), lambda: Teacher(function, problem_type=MULTI)])
def test_a_teacher_states_sigmoid_outputs_in_its_configuration_or_as_an_argument(tmp_path, make):
    multi_trainer(tmp_path, make())


def test_a_sigmoid_teacher_of_a_single_label_student_is_refused_unless_it_is_stated_otherwise(tmp_path):
    with pytest.raises(TeacherError, match=rf"problem_type='{MULTI}'.*single_label_classification"):
        trainer_of(tmp_path, configured(MULTI))
    trainer_of(tmp_path, Teacher(configured(MULTI), problem_type="single_label_classification"))


def test_an_unknown_problem_type_of_a_teacher_is_refused():
    with pytest.raises(TeacherError, match="problem_type='sigmoid'.*multi_label_classification"):
        Teacher(conv_teacher(), problem_type="sigmoid")


def test_the_problem_type_does_not_change_the_fingerprint():
    assert Teacher(conv_teacher()).fingerprint() == Teacher(conv_teacher(), problem_type=MULTI).fingerprint()


@pytest.mark.parametrize("distillation_type", ["hard", "soft", "none"])
def test_regression_with_a_teacher_is_refused(tmp_path, distillation_type):
    model, teacher = student(problem_type="regression"), conv_teacher()
    with pytest.raises(RecipeError, match="'regression'.*distillation_type='none'"):
        DistillationTrainer(model, teacher, arguments(tmp_path, distillation_type=distillation_type))


def test_a_cache_of_the_other_problem_type_is_refused_by_name(tmp_path):
    single = build(tmp_path / "single", "dense", epochs=1)
    multi = multi_build(tmp_path / "multi", "dense", epochs=1)
    with pytest.raises(TeacherCacheError, match=f"problem_type: 'single_label_classification' in the cache, '{MULTI}'"):
        multi_trainer(tmp_path / "a", cache=single)
    with pytest.raises(TeacherCacheError, match=f"problem_type: '{MULTI}' in the cache, 'single_label_classification'"):
        trainer_of(tmp_path / "b", cache=multi)


def test_a_cache_is_not_built_with_a_softmax_teacher_or_a_record_format_for_other_data(tmp_path):
    fields = {"views": tiny_views(multi_data()), "validation": None}
    with pytest.raises(TeacherError, match="states no problem_type"):
        build(tmp_path / "a", FORMATS["dense"], teacher=tiny_teacher(), **fields)
    with pytest.raises(TeacherCacheError, match=f"problem_type='{MULTI}'.*'single_label_classification'"):
        build(tmp_path / "b", "dense", teacher=multi_teacher(), **fields)
    assert not any(tmp_path.iterdir())


def test_soft_distillation_from_a_cache_of_decisions_is_refused(tmp_path):
    cache = multi_build(tmp_path / "cache", "hard", epochs=1)
    with pytest.raises(TeacherCacheError, match="kind='hard'.*distillation_type='soft'"):
        multi_trainer(tmp_path / "run", cache=cache, distillation_type="soft")


def test_a_student_whose_classes_are_in_another_order_than_the_data_is_refused(tmp_path):
    model = student(names=NAMES[::-1], problem_type=MULTI)
    with pytest.raises(RecipeError, match="ant.*bee.*cat.*dog.*dog.*cat.*bee.*ant"):
        multi_trainer(tmp_path, None, model=model, distillation_type="none")


@pytest.mark.parametrize("metric", ["f1_macro", "recall_micro", "teacher_agreement"])
def test_multi_label_metrics_choose_the_best_checkpoint(tmp_path, metric):
    fields = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 5}
    trainer = multi_trainer(tmp_path, multi_teacher(), metric_for_best_model=metric, save_steps=5, **fields)
    assert trainer.args.greater_is_better
