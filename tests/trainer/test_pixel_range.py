"""Floats that may not be normalised: refused at the first batch, unless the data set states their range."""

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import DataError
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import MEAN, NAMES, SIZE, STD, arguments, student

COLOUR = torch.tensor([0.8, 0.2, 0.1])


class Rows(list):
    """Data set with attributes."""


def rows(pixels, count=8, **attributes):
    made = Rows({"pixel_values": pixels, "labels": index % 4} for index in range(count))
    made.__dict__.update(attributes)
    return made


def constant(values):
    return values[:, None, None].expand(3, SIZE, SIZE).contiguous()


class Network(nn.Module):
    """Teacher that keeps the first pixel that it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.seen = None

    def forward(self, pixels):
        self.seen = pixels[0, :, 0, 0].clone()
        return self.layer(pixels.mean((2, 3)))


def trainer_of(folder, data, network=None, evaluation=None, **given):
    teacher = Teacher(network, [0.0] * 3, [1.0] * 3, id2label=dict(enumerate(NAMES))) if network else None
    changes = {} if teacher else {"distillation_type": "none"}
    args = arguments(folder, max_steps=1, per_device_train_batch_size=4, **changes)
    return DistillationTrainer(student(), teacher, args, train_dataset=data, eval_dataset=evaluation, **given)


NORMALISED = (COLOUR - torch.tensor(MEAN)) / torch.tensor(STD)


@pytest.mark.parametrize(
    ("pixels", "stated"),
    [
        ((COLOUR * 255).round().to(torch.uint8), None),
        (NORMALISED, None),
        (NORMALISED, "normalized"),
        (COLOUR, "unit"),
    ],
    ids=["uint8", "floats with negative values", "normalized", "unit"],
)
def test_teacher_and_student_see_the_same_image_in_every_form(tmp_path, pixels, stated):
    network, seen = Network(), []
    trainer = trainer_of(tmp_path, rows(constant(pixels), pixel_range=stated), network)
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["pixel_values"][0, :, 0, 0].clone()), with_kwargs=True
    )
    trainer.train()
    torch.testing.assert_close(network.seen, COLOUR, atol=2e-3, rtol=0)
    torch.testing.assert_close(seen[-1], NORMALISED, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("pixels", "given"),
    [
        (COLOUR, {"network": Network()}),
        (COLOUR.double(), {"network": Network()}),
        (COLOUR, {"processing_class": DeiTImageProcessor.for_image_size(SIZE)}),
        (COLOUR * 255, {}),
        (COLOUR * 255, {"network": Network()}),
    ],
    ids=["teacher", "float64", "own processor", "0 to 255", "0 to 255 with a teacher"],
)
def test_floats_that_can_be_read_in_two_ways_are_refused_at_the_first_batch(tmp_path, pixels, given):
    trainer = trainer_of(tmp_path, rows(constant(pixels)), **given)
    with pytest.raises(DataError, match="pixel_values.*uint8"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_without_a_teacher_and_a_processor_the_saved_processor_agrees_with_the_training(tmp_path, caplog):
    trainer = trainer_of(tmp_path, rows(constant(COLOUR)))
    trainer.train()
    assert "pixel_range" in caplog.text
    trainer.save_model()
    processor = DeiTImageProcessor.from_pretrained(tmp_path)
    image = (constant(COLOUR) * 255).round().to(torch.uint8)
    made = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(made[:, 8, 8], COLOUR, atol=2e-3, rtol=0)


def test_the_first_batch_of_an_evaluation_is_checked_too(tmp_path):
    trainer = trainer_of(tmp_path, rows(constant(NORMALISED)), Network(), evaluation=rows(constant(COLOUR)))
    trainer.train()
    with pytest.raises(DataError, match="pixel_range"):
        trainer.evaluate()
    trainer.evaluate(Subset(rows(constant(COLOUR), pixel_range="unit"), range(4)))
    torch.testing.assert_close(trainer.teacher.model.seen, COLOUR, atol=2e-3, rtol=0)


def test_a_processor_that_does_not_normalise_has_one_reading(tmp_path):
    processor = DeiTImageProcessor.for_image_size(SIZE, do_normalize=False)
    trainer_of(tmp_path, rows(constant(COLOUR)), Network(), processing_class=processor).train()


def test_an_unknown_range_is_refused(tmp_path):
    with pytest.raises(DataError, match="pixel_range='bytes'"):
        trainer_of(tmp_path, rows(constant(COLOUR), pixel_range="bytes"), Network()).train()
