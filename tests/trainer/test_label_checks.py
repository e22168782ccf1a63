"""Tests of the checks of labels in batches, and of weights for images that are not RGB."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import DataError, UserError
from hf_deit.losses import ProblemType
from hf_deit.trainer.label_checks import check_labels
from hf_deit.trainer.student import inspect_student
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import SIZE, arguments, student

SINGLE, MULTI = ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL


def rows(labels):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, SIZE, SIZE, generator=generator), "labels": label} for label in labels]


def trainer_of(folder, labels, problem_type=None, **changes):
    args = arguments(folder, distillation_type="none", **changes)
    data = rows(labels)
    return DistillationTrainer(student(problem_type=problem_type), None, args, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize(
    ("labels", "problem_type", "parts"),
    [
        ([0, 1, 2, 3, 4, 7, 4, 0], None, ["4, 7", "num_labels=4", "0 to 3"]),
        ([0, 1, -1, -100, 0, 0, 0, 0], None, ["-100, -1", "without a label"]),
        ([0.0, 1.0] * 4, None, ["(8,)", "class indices"]),
        ([[0, 1, 0, 1]] * 8, None, ["(8, 4)", "multi_label_classification"]),
        ([torch.tensor([0.5, 0.5, 0.0])] * 8, None, ["(8, 3)", "4 classes"]),
        ([0, 3] * 4, MULTI, ["(8,)", "(batch, 4)"]),
        ([[0, 1, 0]] * 8, MULTI, ["(8, 3)", "num_labels=4"]),
        ([[0, 1, 0, 2]] * 8, MULTI, ["range", "2"]),
    ],
)
@pytest.mark.parametrize("evaluates", [False, True])
def test_labels_that_do_not_fit_the_student_are_refused_at_the_first_batch(
    tmp_path, labels, problem_type, parts, evaluates
):
    trainer = trainer_of(tmp_path, labels, problem_type)
    with pytest.raises(DataError) as caught:
        trainer.evaluate() if evaluates else trainer.train()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert trainer.state.global_step == 0


def test_a_worker_names_a_label_out_of_range_too(tmp_path):
    with pytest.raises(DataError, match="range in a batch: 9"):
        trainer_of(tmp_path, [9] * 8, dataloader_num_workers=1).train()


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (torch.tensor([0, 3]), SINGLE),
        (torch.tensor([0, 3], dtype=torch.uint8), SINGLE),
        (torch.rand(2, 4), SINGLE),
        (torch.tensor([[0, 1, 1, 0]]), MULTI),
        (torch.tensor([[False, True, True, False]]), MULTI),
        (torch.tensor([[0.1, 0.9, 1.0, 0.0]]), MULTI),
        (torch.tensor([-3.5]), ProblemType.REGRESSION),
    ],
)
def test_labels_that_fit_are_accepted(labels, problem_type):
    check_labels(labels, 4, problem_type)


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_other_images_than_rgb_are_refused_by_their_number_of_channels(channels):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, num_channels=channels, **shape))
    for use in (inspect_student, Teacher):
        with pytest.raises(UserError, match=f"num_channels={channels}"):
            use(model)
