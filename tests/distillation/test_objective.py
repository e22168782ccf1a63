"""Tests of the training objective without a Trainer: pixels, teacher outputs, and the formulas of the losses."""

import pytest
import torch
from torch.nn import functional as F

from hf_deit.data.batch_ops import Mixing, draw_mixes
from hf_deit.data.pixel_pipeline import PixelPipeline
from hf_deit.data.sampling import pair_generator
from hf_deit.distillation.cache import RecordFormat
from hf_deit.distillation.objective import DistillationObjective, live_teacher_logits
from hf_deit.distillation.teacher import Teacher
from hf_deit.models.pixel_rules import PixelRules

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NUM_LABELS = 4


def views(seed=0, size=16, count=4):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def logits(seed, count=4):
    return torch.randn(count, NUM_LABELS, generator=torch.Generator().manual_seed(seed))


def objective_of(**fields):
    fields = {
        "image_size": (16, 16),
        "pixels": PixelPipeline(PixelRules(MEAN, STD)),
        "num_labels": NUM_LABELS,
        **fields,
    }
    return DistillationObjective(**fields)


def mean_color(pixels):
    """Return logits that depend only on the mean of each channel: a teacher that is a function."""
    return F.pad(pixels.mean(dim=(2, 3)), (0, NUM_LABELS - 3))


def teacher_of(**fields):
    return Teacher(mean_color, image_mean=(0.0,) * 3, image_std=(1.0,) * 3, **fields)


def by_hand(pixels):
    channels = [torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD)]
    return (pixels - channels[0]) / channels[1]


# ---- prepare ----


def test_a_view_of_bytes_is_normalised_for_the_student_and_left_in_the_unit_range_for_the_teacher():
    batch = {"pixel_values": views(), "labels": torch.tensor([0, 1, 2, 3])}
    prepared = objective_of().prepare(batch)
    torch.testing.assert_close(prepared.student_pixels, by_hand(batch["pixel_values"].float() / 255))
    torch.testing.assert_close(prepared.teacher_pixels, batch["pixel_values"].float() / 255)
    assert torch.equal(prepared.labels, batch["labels"])


def test_floats_of_the_students_size_are_used_as_they_are_and_unnormalised_for_the_teacher():
    unit = views().float() / 255
    batch = {"pixel_values": by_hand(unit)}
    prepared = objective_of().prepare(batch)
    assert prepared.student_pixels is batch["pixel_values"]
    torch.testing.assert_close(prepared.teacher_pixels, unit, atol=1e-6, rtol=0)


def test_a_larger_view_is_resized_for_the_student_but_not_for_the_teacher():
    batch = {"pixel_values": views(size=24)}
    prepared = objective_of().prepare(batch)
    assert prepared.student_pixels.shape == (4, 3, 16, 16) and prepared.teacher_pixels.shape == (4, 3, 24, 24)


def test_the_teacher_sees_its_own_view_if_the_batch_has_one():
    batch = {"pixel_values": views(), "teacher_pixel_values": views(seed=1, size=24)}
    prepared = objective_of().prepare(batch)
    torch.testing.assert_close(prepared.student_pixels, by_hand(batch["pixel_values"].float() / 255))
    torch.testing.assert_close(prepared.teacher_pixels, batch["teacher_pixel_values"].float() / 255)


def test_partners_are_mixed_alike_for_student_teacher_and_labels():
    mixes = torch.tensor([[0.75, 0.0, 0.0, 0.0, 0.0]]).repeat(4, 1)  # mixup of 3 : 1
    batch = {"pixel_values": views(), "mixes": mixes, "labels": torch.tensor([0, 1, 2, 3])}
    prepared = objective_of().prepare(batch)
    unit = batch["pixel_values"].float() / 255
    mixed = 0.75 * unit + 0.25 * unit[[1, 0, 3, 2]]
    torch.testing.assert_close(prepared.teacher_pixels, mixed)
    torch.testing.assert_close(prepared.student_pixels, by_hand(mixed))
    one_hot = F.one_hot(batch["labels"], NUM_LABELS).float()
    torch.testing.assert_close(prepared.labels, 0.75 * one_hot + 0.25 * one_hot[[1, 0, 3, 2]])


def test_only_requested_pixels_are_prepared_and_the_batch_is_not_changed():
    batch = {"pixel_values": views(), "labels": torch.arange(4), "head_mask": torch.ones(2)}
    before = dict(batch)
    assert objective_of().prepare(batch, for_teacher=False).teacher_pixels is None
    assert objective_of().prepare(batch, for_student=False).student_pixels is None
    assert objective_of().other_inputs(batch).keys() == {"head_mask"}
    assert batch.keys() == before.keys() and all(batch[name] is before[name] for name in before)


def test_the_cache_builder_gets_the_same_logits_as_the_trainer():
    generators = [pair_generator(0, 0, pair) for pair in range(2)]
    mixing = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)
    batch = {"pixel_values": views(size=24), "mixes": draw_mixes(mixing, generators, 24, 24)}
    trainers = objective_of(teacher=teacher_of(image_size=20))
    shown = trainers.teacher_outputs(batch, trainers.prepare(batch).teacher_pixels)["teacher_logits"]
    builders = DistillationObjective(num_labels=NUM_LABELS, teacher=teacher_of(image_size=20))
    assert torch.equal(live_teacher_logits(builders, batch), shown)


# ---- the teacher's outputs ----


def test_cached_outputs_in_a_batch_have_priority_over_a_live_teacher():
    cached = {"teacher_labels": torch.tensor([3, 2, 1, 0])}
    batch = {"pixel_values": views(), **cached}
    objective = objective_of(teacher=teacher_of())
    assert not objective.needs_live_teacher(batch)
    assert objective.teacher_outputs(batch, None).keys() == cached.keys()
    assert objective.needs_live_teacher({"pixel_values": views()})
    live = objective.teacher_outputs({"pixel_values": views()}, views().float() / 255)
    torch.testing.assert_close(live["teacher_logits"], mean_color(views().float() / 255))


def test_without_a_teacher_there_are_no_outputs():
    objective = objective_of()
    assert not objective.needs_live_teacher({"pixel_values": views()})
    assert objective.teacher_outputs({"pixel_values": views()}, None) == {}


# ---- the terms ----

LABELS = torch.tensor([0, 1, 2, 3])
TWO_HEADS = {"logits": logits(0), "cls_logits": logits(1), "distillation_logits": logits(2)}


def test_two_heads_learn_one_from_the_labels_and_one_from_the_teacher():
    teacher, alpha, tau = logits(3), 0.3, 2.0
    objective = objective_of(learns_from_teacher=True, alpha=alpha, tau=tau, label_smoothing=0.1)
    terms = objective.terms(TWO_HEADS, {"teacher_logits": teacher}, LABELS)
    cls = F.cross_entropy(TWO_HEADS["cls_logits"], LABELS, label_smoothing=0.1, reduction="none")
    target, student = ((x / tau).softmax(-1) for x in (teacher, TWO_HEADS["distillation_logits"]))
    soft = tau**2 * (target * (target.log() - student.log())).sum(-1)
    torch.testing.assert_close(terms["cls_loss"], cls)
    torch.testing.assert_close(terms["distillation_loss"], soft)
    torch.testing.assert_close(terms["loss"], (1 - alpha) * cls + alpha * soft)


def test_hard_distillation_is_the_same_with_live_and_cached_decisions():
    teacher = logits(3)
    objective = objective_of(learns_from_teacher=True, distillation_type="hard", alpha=0.5)
    live = objective.terms({"logits": logits(0)}, {"teacher_logits": teacher}, LABELS)
    cached = objective.terms({"logits": logits(0)}, {"teacher_labels": teacher.argmax(-1)}, LABELS)
    torch.testing.assert_close(
        live["distillation_loss"], F.cross_entropy(logits(0), teacher.argmax(-1), reduction="none")
    )
    assert all(torch.equal(live[name], cached[name]) for name in live)


def test_a_top_k_cache_that_leaves_out_one_class_has_the_loss_of_all_logits():
    # Only one class is left out, so its probability is known for student and teacher, and the loss is that of all
    # logits.
    teacher, tau = logits(3), 2.0
    layout = RecordFormat("top_k", NUM_LABELS, top_k=NUM_LABELS - 1, tau=tau)
    objective = objective_of(learns_from_teacher=True, alpha=1.0, tau=tau)
    cached = objective.terms({"logits": logits(0)}, layout.decode(layout.encode(teacher)), LABELS)
    live = objective.terms({"logits": logits(0)}, {"teacher_logits": teacher}, LABELS)
    torch.testing.assert_close(cached["loss"], live["loss"])


def test_without_a_teacher_both_heads_learn_from_the_labels():
    terms = objective_of().terms(TWO_HEADS, {}, LABELS)
    losses = [
        F.cross_entropy(TWO_HEADS[name], LABELS, reduction="none") for name in ("cls_logits", "distillation_logits")
    ]
    torch.testing.assert_close(terms["loss"], sum(losses) / 2)


def test_images_without_cached_outputs_are_scored_on_their_labels_alone():
    terms = objective_of(learns_from_teacher=True, alpha=0.5).terms(TWO_HEADS, {}, LABELS)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(TWO_HEADS["cls_logits"], LABELS, reduction="none"))
    assert "distillation_loss" not in terms


def test_class_weights_and_binary_cross_entropy_are_applied():
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    terms = objective_of(class_weights=weights).terms({"logits": logits(0)}, {}, LABELS)
    torch.testing.assert_close(terms["loss"], weights * F.cross_entropy(logits(0), LABELS, reduction="none"))
    binary = objective_of(label_loss="binary_cross_entropy").terms({"logits": logits(0)}, {}, LABELS)
    one_hot = F.one_hot(LABELS, NUM_LABELS).float()
    expected = F.binary_cross_entropy_with_logits(logits(0), one_hot, reduction="none").mean(-1)
    torch.testing.assert_close(binary["loss"], expected)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_problem_types_have_the_same_loss_as_in_transformers(problem_type):
    labels = torch.rand(4, NUM_LABELS, generator=torch.Generator().manual_seed(5)).round()
    terms = objective_of(problem_type=problem_type).terms({"logits": logits(0)}, {}, labels)
    loss = F.binary_cross_entropy_with_logits if problem_type.startswith("multi") else F.mse_loss
    torch.testing.assert_close(terms["loss"], loss(logits(0), labels, reduction="none").mean(-1))


def test_each_term_has_one_float32_value_per_image():
    half = {name: value.bfloat16() for name, value in TWO_HEADS.items()}
    terms = objective_of(learns_from_teacher=True, alpha=0.5).terms(half, {"teacher_logits": logits(3)}, LABELS)
    assert terms.keys() == {"loss", "cls_loss", "distillation_loss"}
    assert all(term.shape == (4,) and term.dtype == torch.float32 for term in terms.values())
