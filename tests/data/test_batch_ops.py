"""Mixup and cutmix: pixels compared with loops over single pixels, distributions of the draws, and use in a run."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from hf_deit.data.batch_ops import MIX_COLUMNS, Mixing, draw_mixes, mix_labels, mix_pixels, own_share
from hf_deit.data.sampling import ViewSampler, pair_generator
from hf_deit.errors import RecipeError
from hf_deit.losses import base_loss
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.processes import run_python
from tests.helpers.tiny import SIZE, arguments, conv_teacher, student, training_data

BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)


def drawn(mixing, count, height=24, width=16):
    return [mixing.draw(random.Random(seed), height, width) for seed in range(count)]


def mix_by_hand(images, mixes):
    """Mix pixel by pixel in float64. Return the mixed images and the share of each image itself."""
    count, channels, height, width = images.shape
    mixed, shares = np.zeros(images.shape), np.zeros(count)
    for row in range(count):
        share, top, bottom, left, right = mixes[row]
        for y in range(height):
            for x in range(width):
                boxed = round(top * height) <= y < round(bottom * height) and (
                    round(left * width) <= x < round(right * width)
                )
                own = 0.0 if boxed else share
                shares[row] += own / (height * width)
                for channel in range(channels):
                    partner = images[row ^ 1, channel, y, x]
                    mixed[row, channel, y, x] = own * images[row, channel, y, x] + (1 - own) * partner
    return mixed, shares


@pytest.mark.parametrize("mixing", [Mixing(mixup_alpha=0.8), Mixing(cutmix_alpha=1.0), BOTH, Mixing(0.8, 1.0, 0.5)])
def test_pixels_and_labels_equal_those_of_a_loop_over_pixels(mixing):
    generator = np.random.default_rng(0)
    images, labels = generator.random((8, 3, 12, 10)), generator.integers(0, 5, 8)
    mixes = draw_mixes(mixing, [random.Random(seed) for seed in range(4)], 12, 10)
    expected, shares = mix_by_hand(images, mixes.double().numpy())
    pixels = mix_pixels(torch.from_numpy(images).float(), mixes)
    torch.testing.assert_close(pixels.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    soft = mix_labels(torch.from_numpy(labels), mixes, 5, (12, 10))
    one_hot = np.eye(5)[labels]
    by_hand = one_hot * shares[:, None] + one_hot[np.arange(8) ^ 1] * (1 - shares[:, None])
    torch.testing.assert_close(soft.double(), torch.from_numpy(by_hand), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (224, 224), (7, 31), (1, 1)])
def test_a_box_covers_exactly_the_drawn_pixels_at_any_size(size):
    for mix in drawn(Mixing(cutmix_alpha=1.0), 50, *size):
        _, top, bottom, left, right = mix
        rows, columns = round(bottom * size[0]) - round(top * size[0]), round(right * size[1]) - round(left * size[1])
        share = own_share(torch.tensor([mix]), *size).item()
        assert share == pytest.approx(1 - rows * columns / (size[0] * size[1]), abs=1e-5)


def test_partners_share_one_draw_and_their_labels_add_up():
    mixes = draw_mixes(BOTH, [random.Random(seed) for seed in range(20)], 16, 16)
    assert mixes.shape == (40, len(MIX_COLUMNS))
    assert torch.equal(mixes[::2], mixes[1::2])
    assert len(mixes.unique(dim=0)) == 20
    soft = mix_labels(torch.arange(40) % 4, mixes, 4, (16, 16))
    torch.testing.assert_close(soft.sum(-1), torch.ones(40))


def test_multi_hot_labels_are_mixed_without_one_hot_encoding():
    labels = torch.tensor([[1, 1, 0], [0, 1, 0]])
    soft = mix_labels(labels, torch.tensor([[0.75, 0, 0, 0, 0]] * 2), 3, (4, 4))
    torch.testing.assert_close(soft, torch.tensor([[0.75, 1, 0], [0.25, 1, 0]]))


def test_smoothing_after_mixing_equals_smoothing_before():
    logits, labels = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 5
    mixes = draw_mixes(Mixing(mixup_alpha=0.8), [random.Random(seed) for seed in range(4)], 8, 8)
    smooth = torch.full((8, 5), 0.1 / 5, dtype=torch.float64)
    smooth[torch.arange(8), labels] += 0.9
    share = mixes[:, :1].double()
    target = smooth * share + smooth[torch.arange(8) ^ 1] * (1 - share)
    by_hand = -(target * logits.log_softmax(-1)).sum(-1)
    soft = mix_labels(labels, mixes, 5, (8, 8))
    torch.testing.assert_close(base_loss(logits, soft, label_smoothing=0.1), by_hand, atol=1e-6, rtol=0)


# ---- random draws ----


def test_mixup_shares_are_beta_distributed():
    shares = [mix[0] for mix in drawn(Mixing(mixup_alpha=0.8), 10_000)]
    assert stats.kstest(shares, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_cutmix_boxes_have_the_drawn_area_and_uniform_centres_before_clipping():
    """The sides of a box that no border clips are √(1 - λ) of the image's sides, with λ uniform."""
    height, width = 240, 160
    boxes = np.array(drawn(Mixing(cutmix_alpha=1.0), 10_000, height, width))
    tops, bottoms, lefts, rights = (boxes[:, 1:] * [height, height, width, width]).round().T
    whole = (tops > 0) & (bottoms < height) & (lefts > 0) & (rights < width)
    np.testing.assert_allclose((bottoms - tops)[whole] / height, (rights - lefts)[whole] / width, atol=2 / width)
    # Many boxes are clipped, so the heights of all boxes are compared with those of a naive implementation.
    centres = np.where(tops > 0, tops + 0, np.nan)
    assert np.isfinite(centres).mean() > 0.4
    generator = random.Random(0)
    naive = []
    for _ in range(10_000):
        side = math.sqrt(1 - generator.random())
        box, centre = int(height * side), generator.randrange(height)
        naive.append(min(centre - box // 2 + box, height) - max(centre - box // 2, 0))
    assert stats.ks_2samp(bottoms - tops, naive).pvalue > 1e-3


def test_cutmix_replaces_mixup_and_pairs_are_mixed_with_the_given_probabilities():
    mixes = np.array(drawn(Mixing(0.8, 1.0, probability=0.6, switch_probability=0.3), 10_000))
    boxed, unmixed = mixes[:, 2] > mixes[:, 1], (mixes[:, 0] == 1) & (mixes[:, 2] == mixes[:, 1])
    assert unmixed.mean() == pytest.approx(0.4, abs=0.02)
    # About 0.2 % of the boxes are empty because of rounding.
    assert boxed.mean() == pytest.approx(0.6 * 0.3, abs=0.02)
    assert {tuple(mix) for mix in drawn(Mixing(), 10)} == {(1.0, 0.0, 0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    "fields",
    [{"mixup_alpha": -0.1}, {"cutmix_alpha": math.inf}, {"probability": 1.5}, {"switch_probability": -0.5}],
)
def test_values_that_are_not_allowed_are_refused_by_name(fields):
    (name, value), *_ = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Mixing(**fields)


# ---- in a run ----


def batches(tmp_path, batch_size=8, workers=0, epochs=2, repeats=1, **fields):
    """Return `{(epoch, index, view): (view, student's pixels, soft label)}` of a run's training batches, in float32."""
    args = arguments(
        tmp_path,
        per_device_train_batch_size=batch_size,
        dataloader_num_workers=workers,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        repeated_augmentation=repeats,
        **fields,
    )
    data = training_data(32, view_size=(24, 24))
    trainer = DistillationTrainer(student(), conv_teacher(), args, train_dataset=data)
    loader, found = trainer.get_train_dataloader(), {}
    for epoch in range(epochs):
        sampler = ViewSampler(len(data), batch_size, data.seed, repeats=repeats)
        sampler.set_epoch(epoch)
        loader.set_epoch(epoch)
        keys = iter(sampler)
        for batch in loader:
            pixels, view, labels, _ = trainer.objective.prepare(batch)
            for row in range(len(labels)):
                found[next(keys)[:3]] = (view[row], pixels[row], labels[row])
    return found


@pytest.mark.parametrize(("batch_size", "workers"), [(32, 0), (8, 2), (32, 2)])
def test_mixed_views_are_bit_identical_for_any_batch_size_and_number_of_workers(tmp_path, batch_size, workers):
    expected = batches(tmp_path / "a")
    found = batches(tmp_path / "b", batch_size, workers)
    assert found.keys() == expected.keys()
    assert len(found) == 64
    for key, tensors in expected.items():
        for one, other in zip(tensors, found[key], strict=True):
            assert torch.equal(one, other), key
    soft = torch.stack([label for *_, label in expected.values()])
    assert (soft.max(-1).values < 0.999).float().mean() > 0.5


def test_mixed_views_are_bit_identical_in_another_process(tmp_path):
    script = (
        "import sys, torch; from pathlib import Path; import tests.data.test_batch_ops as here;"
        "torch.save(here.batches(Path(sys.argv[1]), batch_size=16), sys.argv[1] + '/found.pt')"
    )
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    expected, found = batches(tmp_path / "a"), torch.load(tmp_path / "found.pt", weights_only=False)
    assert all(
        torch.equal(one, other) for key in expected for one, other in zip(expected[key], found[tuple(key)], strict=True)
    )


def test_a_pair_is_drawn_from_seed_epoch_and_position(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=8, mixup_alpha=0.8, cutmix_alpha=1.0)
    data = training_data(32)
    trainer = DistillationTrainer(student(), conv_teacher(), args, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    keys = list(ViewSampler(32, 8, data.seed))[:8]
    for row, key in enumerate(keys):
        height, width = batch["pixel_values"].shape[-2:]
        expected = BOTH.draw(pair_generator(data.seed, key.epoch, key.position // 2), height, width)
        torch.testing.assert_close(batch["mixes"][row], torch.tensor(expected))


def test_the_teacher_sees_the_mixed_view_and_the_loss_uses_the_mixed_labels(tmp_path):
    """Compute one step by hand: the view in [0, 1] is mixed pixel by pixel and shown to student and teacher."""
    seen = []

    class RecordingTeacher(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = conv_teacher()

        def forward(self, pixels):
            seen.append(pixels)
            return self.network(pixels)

    args = arguments(tmp_path, per_device_train_batch_size=8, mixup_alpha=0.8, cutmix_alpha=1.0)
    model = student().eval()
    trainer = DistillationTrainer(model, RecordingTeacher(), args, train_dataset=training_data(32, view_size=(24, 24)))
    batch = next(iter(trainer.get_train_dataloader()))
    loss, heads = trainer.compute_loss(model, batch, return_outputs=True)
    unit = batch["pixel_values"].double().numpy() / 255
    mixed, shares = mix_by_hand(unit, batch["mixes"].double().numpy())
    mean, std = (np.array(values)[:, None, None] for values in (trainer.teacher.image_mean, trainer.teacher.image_std))
    torch.testing.assert_close(seen[-1].double(), torch.from_numpy((mixed - mean) / std), atol=1e-4, rtol=0)
    one_hot = np.eye(4)[batch["labels"].numpy()]
    soft = torch.from_numpy(one_hot * shares[:, None] + one_hot[np.arange(8) ^ 1] * (1 - shares[:, None]))
    cls = -(soft * heads["cls_logits"].double().log_softmax(-1)).sum(-1)
    hard = torch.nn.functional.cross_entropy(
        heads["distillation_logits"].double(), heads["teacher_logits"].argmax(-1), reduction="none"
    )
    assert loss.item() == pytest.approx((0.5 * cls + 0.5 * hard).mean().item(), abs=1e-5)


def test_evaluation_is_not_mixed_and_does_not_depend_on_mixing(tmp_path):
    data = training_data(32)
    rows = [{key: data[sampled][key] for key in ("pixel_values", "labels")} for sampled in list(ViewSampler(32, 8, 0))]
    metrics = [
        DistillationTrainer(student(), conv_teacher(), arguments(tmp_path, **fields), eval_dataset=rows).evaluate()
        for fields in ({}, {"mixup_alpha": 0.8})
    ]
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"]


class Rows(torch.utils.data.Dataset):
    """Data set of a user without view keys and with an odd number of images."""

    def __len__(self):
        return 13

    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, SIZE, SIZE), index, dtype=torch.uint8), "label": index % 4}


def test_a_users_own_data_is_mixed_and_an_incomplete_last_batch_is_left_out(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4, mixup_alpha=0.8, max_steps=8)
    trainer = DistillationTrainer(student(), conv_teacher(), args, train_dataset=Rows())
    sizes = [(len(batch["labels"]), len(batch["mixes"])) for batch in trainer.get_train_dataloader()]
    assert sizes == [(4, 4), (4, 4), (4, 4)]
    trainer.train()
    assert trainer.state.global_step == 8


def test_a_regression_is_not_mixed(tmp_path):
    model = student(two_heads=False, names=("value",), problem_type="regression")
    with pytest.raises(RecipeError, match="mixup_alpha"):
        DistillationTrainer(
            model, None, arguments(tmp_path, mixup_alpha=0.8, distillation_type="none"), train_dataset=Rows()
        )


def test_all_views_of_an_image_are_in_an_epoch_and_the_log_has_the_steps_per_epoch(tmp_path, caplog):
    caplog.set_level("INFO", logger="hf_deit")
    fields = {"repeated_augmentation": 3, "num_train_epochs": 2, "max_steps": -1}
    args = arguments(tmp_path, per_device_train_batch_size=12, **fields)
    trainer = DistillationTrainer(student(), conv_teacher(), args, train_dataset=training_data(36))
    indices = [key.index for key in trainer._get_train_sampler()]
    assert sorted(Counter(indices).values()) == [3] * 12
    trainer.train()
    assert trainer.state.global_step == 6
    assert "3 optimizer steps" in caplog.text
    assert "3 views" in caplog.text
