"""Maps of tokens: against NumPy, on a task in which one patch decides, for each kind of model; and the numbers per layer."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_deit.models import attention_maps
from hf_deit.models.attention_maps import (
    LAST_LAYER,
    METHODS,
    RELEVANCE,
    ROLLOUT,
    attention_distance,
    black_and_white,
    check_model,
    learned_cosine,
    overlay,
    overlay_difference,
    seen_image,
    token_maps,
    token_names,
    token_statistics,
)
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from tests.helpers import tiny


def shaken(two_heads=True, **changes):
    """Return a student whose heads and tokens differ enough for a test to notice a wrong one."""
    model = tiny.student(two_heads, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(count=3, height=16, width=16, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def eager(model, pixels):
    """Return the attention weights of a copy with eager attention, and its outputs, with gradients."""
    copy = type(model)(model.config.__class__.from_dict(model.config.to_dict()))
    copy.load_state_dict(model.state_dict())
    copy = copy.to(model.dtype).eval()
    copy.set_attn_implementation("eager")
    output = copy(pixel_values=pixels, output_attentions=True)
    return output.attentions, output


def shares(rows, prefix, grid):
    patches = rows[..., prefix:]
    return (patches / patches.sum(-1, keepdims=True)).reshape(*rows.shape[:-1], *grid)


@pytest.mark.parametrize(
    ("two_heads", "size", "patch"),
    [(True, (16, 16), (8, 8)), (False, (16, 16), (8, 8)), (True, (16, 24), (8, 4)), (False, (24, 8), (4, 8))],
)
def test_rollout_and_the_last_layer_are_those_of_numpy(two_heads, size, patch):
    model = shaken(two_heads, image_size=size, patch_size=patch)
    pixels = images(3, *size)
    found = token_maps(model, pixels, (ROLLOUT, LAST_LAYER)).maps
    grid, prefix = (size[0] // patch[0], size[1] // patch[1]), 1 + two_heads
    weights = [layer.detach().double().numpy() for layer in eager(model, pixels)[0]]
    for number in range(len(pixels)):
        flow = np.eye(weights[0].shape[-1])
        for layer in weights:
            mixed = layer[number].mean(axis=0) + np.eye(len(flow))
            flow = mixed / mixed.sum(axis=-1, keepdims=True) @ flow
        assert np.allclose(flow.sum(axis=-1), 1)
        assert np.allclose(found[ROLLOUT][number], shares(flow[:prefix], prefix, grid), atol=1e-6)
        last = weights[-1][number].mean(axis=0)[:prefix]
        assert np.allclose(found[LAST_LAYER][number], shares(last, prefix, grid), atol=1e-6)


@pytest.mark.parametrize("two_heads", [True, False])
def test_relevance_is_that_of_numpy_with_the_gradients_of_the_head_that_reads_the_token(two_heads):
    model, pixels, classes = shaken(two_heads), images(), [3, 1]
    found = token_maps(model, pixels, (RELEVANCE,), classes).maps[RELEVANCE]
    assert found.shape == (3, 2, 1 + two_heads, 2, 2)
    for place, label in enumerate(classes):
        for token in range(1 + two_heads):
            weights, output = eager(model, pixels)
            heads = [output.cls_logits, output.distillation_logits] if two_heads else [output.logits]
            for layer in weights:
                layer.retain_grad()
            heads[token][:, label].sum().backward()
            for number in range(len(pixels)):
                total = np.eye(weights[0].shape[-1])
                for layer in weights:
                    positive = (layer.grad[number] * layer[number].detach()).double().numpy().clip(min=0)
                    total = total + positive.mean(axis=0) @ total
                expected = shares(total[token], 1 + two_heads, (2, 2))
                assert np.allclose(found[number, place, token], expected, atol=1e-5)


def test_all_rows_of_rollout_sum_to_1_including_the_tokens():
    weights = torch.rand(2, 3, 2, 7, 7)
    weights = weights / weights.sum(-1, keepdim=True)
    rows = attention_maps.rollout(list(weights.transpose(0, 1)), 7)
    assert torch.allclose(rows.sum(-1), torch.ones(2, 7))


def marked_images(count, seed, side=32, patch=8):
    """Return images of noise with a blue patch, their class (1 if a red patch marks them), and the place of the red patch."""
    generator = torch.Generator().manual_seed(seed)
    columns = side // patch
    pixels = 0.3 * torch.randn(count, 3, side, side, generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    places = torch.stack([torch.randperm(columns**2, generator=generator)[:2] for _ in range(count)])
    for image, (mark, distraction), label in zip(pixels, places.tolist(), labels.tolist(), strict=True):
        for place, colour in ((distraction, (-1.0, -1.0, 2.0)), *([(mark, (2.0, -1.0, -1.0))] if label else [])):
            row, column = (patch * position for position in divmod(place, columns))
            image[:, row : row + patch, column : column + patch] = torch.tensor(colour)[:, None, None]
    return pixels, labels, places[:, 0]


@pytest.fixture(scope="module", params=[True, False], ids=["two heads", "one head"])
def of_one_patch(request):
    """Return a student that was trained to find a mark: one patch decides."""
    torch.manual_seed(0)
    model = tiny.student(request.param, names=("plain", "marked"), image_size=32).train()
    pixels, labels, _ = marked_images(512, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(80):
        batch = slice(32 * step % 512, 32 * step % 512 + 32)
        model(pixel_values=pixels[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_relevance_points_at_the_patch_that_decides(of_one_patch):
    pixels, labels, places = marked_images(128, seed=2)
    found = token_maps(of_one_patch, pixels, (RELEVANCE,), [1])
    assert (found.logits.argmax(-1) == labels).float().mean() > 0.95
    for token in range(len(token_names(of_one_patch))):
        best = found.maps[RELEVANCE][:, 0, token].flatten(1).argmax(-1)
        assert (best == places)[labels == 1].float().mean() > 0.9


def test_the_predicted_class_is_explained_by_default(of_one_patch):
    pixels, _, _ = marked_images(8, seed=3)
    found = token_maps(of_one_patch, pixels, (RELEVANCE,))
    assert torch.equal(found.classes[:, 0], found.logits.argmax(-1))
    both = token_maps(of_one_patch, pixels, (RELEVANCE,), [0, 1]).maps[RELEVANCE]
    for number, label in enumerate(found.classes[:, 0].tolist()):
        assert torch.allclose(both[number, label], found.maps[RELEVANCE][number, 0], atol=1e-6)


@pytest.mark.parametrize("two_heads", [True, False])
def test_a_batch_has_the_maps_and_numbers_of_its_images(two_heads):
    model, pixels = shaken(two_heads), images(4)
    together, statistics = token_maps(model, pixels, METHODS, [0, 2]), token_statistics(model, pixels)
    for number in range(4):
        alone = token_maps(model, pixels[number : number + 1], METHODS, [0, 2])
        for method in METHODS:
            assert torch.allclose(alone.maps[method][0], together.maps[method][number], atol=1e-5)
        own = token_statistics(model, pixels[number : number + 1])
        assert torch.allclose(own.distances[0], statistics.distances[number], atol=1e-4)


@pytest.mark.parametrize("two_heads", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_left_as_it_was(two_heads, frozen):
    model = tiny.student(two_heads, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5).requires_grad_(
        not frozen
    )
    model.train()
    model.base_model.layers[0].eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pixels = images()
    first = token_maps(model, pixels, METHODS)
    token_statistics(model, pixels)
    assert model.training and not model.base_model.layers[0].training and model.base_model.layers[1].training
    assert model.config._attn_implementation == "sdpa"
    assert all(weight.grad is None and weight.requires_grad is not frozen for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert pixels.grad is None and not pixels.requires_grad
    again = token_maps(model, pixels, METHODS)  # without dropout, although the model is in training mode
    assert all(torch.equal(first.maps[name], again.maps[name]) for name in METHODS)


def test_the_model_is_left_as_it_was_when_it_fails():
    model = tiny.student().train()
    with pytest.raises(ValueError, match="24×24"):
        token_maps(model, images(1, 24, 24))
    assert model.training and model.config._attn_implementation == "sdpa"


def test_maps_can_be_computed_without_gradients_of_the_caller():
    model, pixels = shaken(), images()
    expected = token_maps(model, pixels, (RELEVANCE,)).maps[RELEVANCE]
    with torch.no_grad():
        assert torch.equal(token_maps(model, pixels, (RELEVANCE,)).maps[RELEVANCE], expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("two_heads", [True, False])
def test_a_model_in_bfloat16_has_nearly_the_maps_of_float32(two_heads):
    model, pixels = tiny.student(two_heads), images()
    expected = token_maps(model, pixels, METHODS, [1])
    found = token_maps(model.to(torch.bfloat16), pixels, METHODS, [1])
    for method in METHODS:
        assert found.maps[method].dtype == torch.float32
        assert torch.allclose(found.maps[method].sum((-1, -2)), torch.tensor(1.0), atol=1e-5)
        assert torch.allclose(found.maps[method], expected.maps[method], atol=0.02)
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("own", "stock"),
    [
        (DeiTForImageClassificationWithTeacher, transformers.DeiTForImageClassificationWithTeacher),
        (ViTForImageClassification, transformers.ViTForImageClassification),
    ],
)
def test_stock_classes_with_the_same_weights_have_the_same_maps_and_numbers(own, stock, tmp_path):
    model = shaken(own is DeiTForImageClassificationWithTeacher)
    model.save_pretrained(tmp_path)
    other = stock.from_pretrained(tmp_path).eval()
    pixels = images()
    ours, theirs = token_maps(model, pixels, METHODS, [0, 3]), token_maps(other, pixels, METHODS, [0, 3])
    for method in METHODS:
        assert torch.allclose(ours.maps[method], theirs.maps[method], atol=1e-5)
    ours, theirs = token_statistics(model, pixels), token_statistics(other, pixels)
    assert torch.allclose(ours.distances, theirs.distances, atol=1e-4)
    if ours.cosines is not None:
        assert torch.allclose(ours.cosines, theirs.cosines, atol=1e-5)
        assert learned_cosine(other) == pytest.approx(learned_cosine(model))


def test_a_deit_with_one_head_has_maps_of_its_class_token_only():
    config = transformers.DeiTConfig(**{
        name: getattr(tiny.student().config, name)
        for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    })  # fmt: skip
    model = transformers.DeiTForImageClassification(config).eval()
    found = token_maps(model, images(), METHODS)
    assert [tuple(found.maps[name].shape) for name in METHODS] == [(3, 1, 2, 2), (3, 1, 2, 2), (3, 1, 1, 2, 2)]
    assert token_statistics(model, images()).cosines is None


def test_relevance_is_0_where_nothing_speaks_for_the_class():
    model = tiny.student()
    torch.nn.init.zeros_(model.cls_classifier.weight)
    found = token_maps(model, images(), (RELEVANCE,), [0]).maps[RELEVANCE]
    assert (found[:, :, 0] == 0).all() and torch.allclose(found[:, :, 1].sum((-1, -2)), torch.tensor(1.0))


@pytest.mark.parametrize("name", ["swin", "convnext", "resnet"])
def test_other_architectures_are_refused_with_what_is_allowed(name):
    config = transformers.AutoConfig.for_model(name)
    with pytest.raises(ValueError, match=f"'{name}'.*deit and vit"):
        check_model(config, "AnyForImageClassification")


def test_a_backbone_and_a_model_without_classes_are_refused():
    config = tiny.student().config
    with pytest.raises(ValueError, match="DeiTModel"):
        check_model(config, "DeiTModel")
    config = transformers.ViTConfig(num_labels=0)
    with pytest.raises(ValueError, match="num_labels=0"):
        check_model(config, "ViTForImageClassification")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'gradcam'"):
        token_maps(tiny.student(), images(), ("gradcam",))


# ---- numbers per layer ----


def test_the_cosines_are_those_of_the_two_tokens_in_each_hidden_state():
    model, pixels = shaken(), images()
    found = token_statistics(model, pixels)
    with torch.no_grad():
        output = model.deit(pixel_values=pixels, output_hidden_states=True)
    states = [state.double().numpy() for state in (*output.hidden_states, output.last_hidden_state)]
    assert found.cosines.shape == (3, len(states)) == (3, 4)
    for place, state in enumerate(states):
        one, other = state[:, 0], state[:, 1]
        expected = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
        assert np.allclose(found.cosines[:, place], expected, atol=1e-5)
    assert len(set(found.cosines[:, 0].tolist())) == 1  # the embeddings of tokens do not depend on the image
    one, other = (
        getattr(model.deit.embeddings, name).detach().double().numpy().ravel()
        for name in ("cls_token", "distillation_token")
    )
    assert learned_cosine(model) == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_attention_distance_is_the_weighted_mean_of_distances_in_pixels():
    generator = np.random.default_rng(0)
    weights = generator.random((2, 3, 8, 8))
    weights /= weights.sum(-1, keepdims=True)
    centres = [(5 * row, 7 * column) for row in range(2) for column in range(3)]
    expected = np.zeros((2, 3))
    for query, (y, x) in enumerate(centres):
        for key, (v, u) in enumerate(centres):
            among = weights[:, :, 2 + query, 2:].sum(-1)
            expected += weights[:, :, 2 + query, 2 + key] / among * np.hypot(y - v, x - u) / len(centres)
    assert np.allclose(attention_distance(torch.from_numpy(weights), (2, 3), (5, 7)), expected)


def test_a_patch_that_reads_itself_has_the_distance_0_and_its_neighbour_the_side_of_a_patch():
    itself = torch.eye(5)[None, None]  # one token and 1 × 4 patches
    assert attention_distance(itself, (1, 4), (8, 6)).tolist() == [[0.0]]
    shifted = torch.eye(4).roll(1, 0)
    shifted[0] = torch.eye(4)[1]
    neighbour = torch.block_diag(torch.ones(1, 1), shifted)[None, None]
    assert attention_distance(neighbour, (1, 4), (8, 6)).tolist() == [[6.0]]


# ---- pictures ----


def test_the_module_needs_only_torch_numpy_and_pillow():
    tree = ast.parse(Path(attention_maps.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in imports
    }
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in imports)
    assert names - set(sys.stdlib_module_names) == {"numpy", "torch", "PIL"}


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (40, 24)])
def test_the_seen_image_is_the_crop_of_the_processor(size):
    processor = DeiTImageProcessor.for_image_size(size)
    photo = Image.fromarray(tiny.pixels_of(1)[0]).resize((90, 70))
    pixels = processor(photo, return_tensors="pt")["pixel_values"][0]
    seen = np.asarray(seen_image(pixels, *black_and_white(processor, *size)), dtype=int)
    plain = processor(photo, return_tensors="pt", do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert seen.shape == (*size, 3) and np.abs(seen - plain.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_the_brightest_part_of_an_overlay_is_the_patch_with_the_highest_value():
    values = np.full((4, 6), 0.01)
    values[3, 1] = 0.8
    picture = np.asarray(overlay(Image.new("RGB", (48, 32), (90, 90, 90)), values, 0.01, 0.8), dtype=float).sum(-1)
    assert picture.shape == (256, 384)
    blocks = picture.reshape(4, 64, 6, 64).mean(axis=(1, 3))
    assert np.unravel_index(blocks.argmax(), blocks.shape) == (3, 1)


def test_a_difference_is_orange_where_the_distillation_token_reads_more_blue_where_less_and_else_grey():
    difference = np.zeros((2, 3))
    difference[0, 0], difference[1, 2] = 0.1, -0.1
    picture = np.asarray(overlay_difference(Image.new("RGB", (30, 20), (90, 90, 90)), difference, 0.1), dtype=int)
    orange, blue, grey = picture[5, 5], picture[-5, -5], picture[5, -5]
    assert orange[0] > 200 > orange[2] and blue[2] > 200 > blue[0] and np.ptp(grey) <= 2
    assert np.ptp(np.asarray(overlay_difference(Image.new("RGB", (30, 20)), np.zeros((2, 3)), 0.0)), axis=-1).max() == 0
