"""Outputs of teachers that nothing can be learned from: not finite, without logits, or with names for other classes."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hf_deit.distillation.cache import OUTPUTS, RecordFormat
from hf_deit.distillation.cached_teacher import verify_teacher_cache
from hf_deit.distillation.factories import logits_of
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import TeacherCacheError, TeacherError
from tests.helpers.caches import RECORD_FORMATS, build, tiny_teacher, tiny_views, trainer_of
from tests.helpers.tiny import NAMES, SIZE, conv_teacher


class Breaking(nn.Module):
    """Gives `value` as one logit of each image that is not black: a check on a black image does not find it."""

    def __init__(self, value):
        super().__init__()
        self.network, self.value = conv_teacher(), value

    def forward(self, pixels):
        black = pixels.mean(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0] < -1.9
        logits = self.network(pixels)
        return torch.where(black | (torch.arange(logits.shape[1]) != 2), logits, torch.full_like(logits, self.value))


def names(**fields):
    return {"id2label": dict(enumerate(NAMES)), **fields}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_training_with_a_live_teacher_stops_at_logits_that_are_not_finite(tmp_path, kind, value):
    trainer = trainer_of(tmp_path, Teacher(Breaking(value), **names()), distillation_type=kind)
    with pytest.raises(TeacherError, match=r"Breaking.*float32"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_evaluation_stops_at_logits_that_are_not_finite(tmp_path):
    trainer = trainer_of(tmp_path, Teacher(Breaking(float("nan")), **names()), distillation_type="none")
    with pytest.raises(TeacherError, match="Breaking"):
        trainer.evaluate()


@pytest.mark.parametrize("kind", sorted(RECORD_FORMATS))
def test_a_cache_of_logits_that_are_not_finite_is_not_built(tmp_path, kind):
    teacher = Teacher(Breaking(float("nan")), **names())
    with pytest.raises(TeacherError, match="Breaking"):
        build(tmp_path / "cache", kind, teacher=teacher)
    cache = build(tmp_path / "other", kind)
    with pytest.raises(TeacherError, match="Breaking"):
        verify_teacher_cache(cache, teacher, tiny_views(), 8)


@pytest.mark.parametrize("kind", ["dense", "half", "top_k"])
@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_a_cache_of_an_earlier_version_with_values_that_are_not_finite_stops_the_run(
    tmp_path, monkeypatch, kind, distillation_type
):
    encode = RecordFormat.encode

    def unchecked(self, logits, **extra):
        records = encode(self, logits, **extra)
        values = records[OUTPUTS]["logits"] if self.kind == "top_k" else records[OUTPUTS]
        values[0, 1] = np.nan
        return records

    monkeypatch.setattr(RecordFormat, "encode", unchecked)
    cache = build(tmp_path / "cache", kind, teacher_name="overflowing")
    trainer = trainer_of(tmp_path / "run", cache=cache, distillation_type=distillation_type)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(TeacherCacheError, match="overflowing.*float(16|32)"):
            run()


@pytest.mark.parametrize(
    ("dtype", "weights", "named"),
    [
        (torch.float16, None, "float16.*bfloat16 or float32"),
        (None, torch.float16, "float16.*bfloat16 or float32"),
        (torch.bfloat16, None, "bfloat16.*float32"),
        (None, None, "float32.*mean and std"),
    ],
)
def test_the_type_and_the_remedy_are_named(dtype, weights, named):
    network = Breaking(float("inf"))
    teacher = Teacher(network if weights is None else network.to(weights), dtype=dtype)
    with pytest.raises(TeacherError, match=named):
        teacher(torch.rand(3, 3, SIZE, SIZE))


def test_a_network_that_overflows_in_half_precision_is_found_before_the_training():
    network = conv_teacher()
    with torch.no_grad():
        network.conv.weight.mul_(3e5)
    Teacher(network).align(list(NAMES), len(NAMES), (SIZE, SIZE))
    with pytest.raises(TeacherError, match="float16"):
        Teacher(network, dtype=torch.float16).align(list(NAMES), len(NAMES), (SIZE, SIZE))


def test_a_damaged_weight_is_named():
    network = conv_teacher()
    with torch.no_grad():
        network.classifier.weight[0, 0] = float("nan")
    with pytest.raises(TeacherError, match=r"classifier\.weight"):
        Teacher(network).try_on((SIZE, SIZE))


def test_classes_that_the_student_does_not_have_may_be_masked():
    rows = torch.tensor([[1.0, -float("inf"), 2.0, 3.0, 4.0]])
    teacher = Teacher(lambda pixels: rows.where(torch.tensor(teacher._order is not None), rows.nan_to_num(0)))
    teacher._order = torch.tensor([4, 0])
    assert teacher(torch.rand(1, 3, SIZE, SIZE)).tolist() == [[4.0, 1.0]]


# ---- outputs without logits ----


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ({"scores": torch.zeros(1, 4), "loss": None}, "scores, loss"),
        ({}, "nothing"),
        ({"logits": None}, "logits"),
        (BaseModelOutput(last_hidden_state=torch.zeros(1, 2, 3)), "last_hidden_state"),
        (("a", "b"), "tuple"),
        (None, "NoneType"),
        ([1.0, 2.0], "list"),
        (np.zeros((1, 4)), "ndarray"),
    ],
)
def test_an_output_without_logits_is_named_and_not_blamed_on_the_image_size(output, named):
    with pytest.raises(TeacherError, match=named):
        logits_of(output)
    with pytest.raises(TeacherError, match=named) as refused:
        Teacher(lambda pixels: output).try_on((SIZE, SIZE))
    assert "image_size" not in str(refused.value)


# ---- names of classes ----


@pytest.mark.parametrize(
    "given", [list(NAMES), NAMES, dict(enumerate(NAMES)), {str(i): n for i, n in enumerate(NAMES)}]
)
def test_class_names_are_taken_in_every_usual_form(given):
    assert Teacher(conv_teacher(), id2label=given).class_names == list(NAMES)
    assert tiny_teacher().class_names == list(NAMES)


@pytest.mark.parametrize(
    "given",
    ["ant", {"ant": 0, "bee": 1}, {1: "ant", 2: "bee"}, [0, 1], [], {0: None}, 4, [["ant"]], {0: "ant", 2: "bee"}],
)
def test_what_does_not_name_the_classes_is_refused(given):
    with pytest.raises(TeacherError, match="id2label"):
        Teacher(conv_teacher(), id2label=given)
