"""Losses of spatial guidance, compared with loops over numbers in NumPy."""

import math

import numpy as np
import pytest
import torch

from hf_deit.losses import (
    GUIDANCE_KINDS,
    GUIDANCE_LOSSES,
    feature_guidance_loss,
    patch_similarities,
    similarity_guidance_loss,
)


def features(seed, shape=(3, 5, 7)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_features(student, teacher):
    losses = []
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        total = 0.0
        for one, other in zip(ours, theirs, strict=True):
            one, other = ((row - row.mean()) / math.sqrt(row.var() + 1e-5) for row in (one, other))
            for distance in np.abs(one - other):
                total += distance**2 / 2 if distance < 1 else distance - 0.5
        losses.append(total / ours.size)
    return losses


def naive_similarity(student, teacher, temperature=0.1):
    def shares(rows, patch):
        others = [other for other in range(len(rows)) if other != patch]
        lengths = [math.sqrt((row**2).sum()) for row in rows]
        scores = [(rows[patch] @ rows[other]) / lengths[patch] / lengths[other] / temperature for other in others]
        weights = [math.exp(score - max(scores)) for score in scores]
        return [weight / sum(weights) for weight in weights]

    losses = []
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        total = 0.0
        for patch in range(len(ours)):
            pairs = zip(shares(theirs, patch), shares(ours, patch), strict=True)
            total += sum(p * (math.log(p) - math.log(q)) for p, q in pairs)
        losses.append(total / len(ours))
    return losses


def similarity(student, teacher):
    return similarity_guidance_loss(patch_similarities(student), patch_similarities(teacher))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_feature_loss_is_the_smooth_l1_distance_of_normalised_patches(scale):
    student, teacher = features(0) * scale, features(1) + 2
    found = feature_guidance_loss(student, teacher)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), naive_features(student, teacher), rtol=1e-5)


def test_the_similarity_loss_is_the_divergence_over_the_other_patches_for_any_two_widths():
    student, teacher = features(0, (2, 5, 7)), features(1, (2, 5, 3))
    np.testing.assert_allclose(similarity(student, teacher).numpy(), naive_similarity(student, teacher), rtol=1e-4)


@pytest.mark.parametrize("loss", [feature_guidance_loss, similarity], ids=["features", "similarity"])
def test_equal_patches_have_no_loss_and_half_precision_is_computed_in_float32(loss):
    student = features(0)
    assert loss(student, 3 * student).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(student.bfloat16(), features(1))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, loss(student.bfloat16().float(), features(1)))


@pytest.mark.parametrize("loss", [feature_guidance_loss, similarity], ids=["features", "similarity"])
def test_gradients_are_those_of_finite_differences_and_finite_for_patches_of_zeros(loss):
    student = features(0, (2, 4, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, features(1, (2, 4, 3)).double()), student)
    zeros = torch.zeros(2, 4, 3, requires_grad=True)
    loss(zeros, features(1, (2, 4, 3))).sum().backward()
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (feature_guidance_loss, ((2, 5, 7), (2, 4, 7))),
        (feature_guidance_loss, ((2, 5, 7), (2, 5, 6))),
        (feature_guidance_loss, ((2, 5), (2, 5))),
        (similarity_guidance_loss, ((2, 5, 5), (2, 4, 4))),
        (similarity_guidance_loss, ((2, 1, 1), (2, 1, 1))),
    ],
    ids=["patches", "channels", "dimensions", "similarities", "one patch"],
)
def test_shapes_that_do_not_match_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="eatures|atches"):
        loss(*(torch.zeros(shape) for shape in shapes))


def test_every_kind_has_a_loss():
    assert set(GUIDANCE_KINDS) - {"none"} == set(GUIDANCE_LOSSES)
