"""Training step, evaluation and end of training, compared with written-out formulas and numbers computed by hand."""

import copy
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViT

from hf_deit.errors import NonFiniteLossError
from hf_deit.files import STAGING_PREFIX
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import (
    MEAN,
    NAMES,
    SIZE,
    STD,
    FirstGradients,
    arguments,
    conv_teacher,
    evaluation_data,
    logged,
    pixels_of,
    student,
    training_data,
)

SEVEN = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def unit_to_double(unit):
    """Return normalised pixels in float64 from pixels in [0, 1]."""
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(np.asarray(unit, dtype=np.float64)) - mean) / std


def views_of(trainer, batches=1):
    """Return pixels in [0, 1] and labels of the first batches, read from the data set with the keys of the sampler."""
    count = batches * trainer.args.train_batch_size
    rows = [trainer.train_dataset[key] for key in list(trainer._get_train_sampler())[:count]]
    return np.stack([row["pixel_values"].numpy() for row in rows]) / 255, torch.tensor([row["labels"] for row in rows])


# ---- the loss, written out ----


def log_softmax(logits):
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def cross_entropy(logits, labels, smoothing=0.0):
    target = torch.full_like(logits, smoothing / logits.shape[-1])
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(target * log_softmax(logits)).sum(dim=-1)


def binary_cross_entropy(logits, labels):
    probability = 1 / (1 + (-logits).exp())
    present = torch.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return -(present * probability.log() + (1 - present) * (1 - probability).log()).mean(dim=-1)


def divergence(student_logits, teacher_logits, tau):
    p, q = log_softmax(teacher_logits / tau), log_softmax(student_logits / tau)
    return tau**2 * (p.exp() * (p - q)).sum(dim=-1)


CASES = {
    "none": ({"distillation_type": "none"}, True),
    "none-one-head": ({"distillation_type": "none"}, False),
    "soft": ({"distillation_type": "soft"}, True),
    "soft-one-head": ({"distillation_type": "soft", "distillation_target": "class"}, False),
    "hard": ({"distillation_type": "hard"}, True),
    "hard-one-head": ({"distillation_type": "hard", "distillation_target": "class"}, False),
    "soft-own-alpha-and-tau": ({"distillation_type": "soft", "distillation_alpha": 0.7, "distillation_tau": 1.5}, True),
    "soft-official": ({"distillation_type": "soft", "distillation_reduction": "official"}, True),
    "hard-smoothed": ({"distillation_type": "hard", "label_smoothing_factor": 0.1}, True),
    "hard-one-head-smoothed": ({"distillation_type": "hard", "label_smoothing_factor": 0.1}, False),
    "soft-binary": ({"distillation_type": "soft", "base_loss": "binary_cross_entropy"}, True),
    "none-binary": ({"distillation_type": "none", "base_loss": "binary_cross_entropy"}, True),
}


def terms_by_hand(output, teacher_logits, labels, two_heads, changes):
    """Compute equations 2 and 3 of the paper with every default written out, and the agreement with the teacher."""
    smoothing = changes.get("label_smoothing_factor", 0.0)

    def label_loss(logits):
        if changes.get("base_loss") == "binary_cross_entropy":
            return binary_cross_entropy(logits, labels)
        return cross_entropy(logits, labels, smoothing)

    mode = changes["distillation_type"]
    cls_head = output.cls_logits if two_heads else output.logits
    distillation_head = output.distillation_logits if two_heads else output.logits
    cls_loss = label_loss(cls_head)
    if mode == "none":
        distillation_loss = label_loss(distillation_head) if two_heads else None
        loss = (cls_loss + distillation_loss) / 2 if two_heads else cls_loss
        return {"loss": loss, "cls_loss": cls_loss, "distillation_loss": distillation_loss}
    alpha = changes.get("distillation_alpha", {"soft": 0.1, "hard": 0.5}[mode])
    if mode == "soft":
        distillation_loss = divergence(distillation_head, teacher_logits, changes.get("distillation_tau", 3.0))
        if changes.get("distillation_reduction") == "official":
            distillation_loss = distillation_loss / len(NAMES)
    else:
        distillation_loss = cross_entropy(distillation_head, teacher_logits.argmax(dim=-1))
    agreement = (output.logits.argmax(dim=-1) == teacher_logits.argmax(dim=-1)).double()
    return {
        "loss": (1 - alpha) * cls_loss + alpha * distillation_loss,
        "cls_loss": cls_loss,
        "distillation_loss": distillation_loss,
        "teacher_agreement": agreement,
    }


@pytest.mark.parametrize("case", CASES)
def test_one_step_has_the_loss_terms_and_gradients_of_the_formulas(tmp_path, case):
    changes, two_heads = CASES[case]
    model, network, callback = student(two_heads, initializer_range=0.5), conv_teacher(), FirstGradients()
    double, double_network = copy.deepcopy(model).double(), copy.deepcopy(network).double().eval()
    args = arguments(tmp_path, max_steps=1, **changes)
    teacher = None if changes["distillation_type"] == "none" else network
    trainer = DistillationTrainer(model, teacher, args, train_dataset=training_data(8), callbacks=[callback])
    unit, labels = views_of(trainer)
    trainer.train()

    pixels = unit_to_double(unit)
    terms = terms_by_hand(double(pixels), double_network(pixels).detach(), labels, two_heads, changes)
    for name in ("loss", "cls_loss", "distillation_loss", "teacher_agreement"):
        expected = [] if terms.get(name) is None else [pytest.approx(terms[name].mean().item(), rel=1e-5)]
        assert logged(trainer, name) == expected, name
    terms["loss"].mean().backward()
    scale = max(parameter.grad.abs().max().item() for parameter in double.parameters())
    for name, parameter in double.named_parameters():
        found = callback.gradients[name].double()
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_a_batch_without_labels_is_refused(tmp_path):
    trainer = DistillationTrainer(student(), conv_teacher(), arguments(tmp_path))
    with pytest.raises(ValueError, match="pixel_values.*'labels'"):
        trainer.compute_loss(trainer.model, {"pixel_values": torch.zeros(1, 3, SIZE, SIZE)})


def run_of(tmp_path, mode="soft", two_heads=True, data=None, **changes):
    callback = FirstGradients()
    trainer = DistillationTrainer(
        student(two_heads),
        conv_teacher(),
        arguments(tmp_path, distillation_type=mode, **changes),
        train_dataset=data or training_data(64),
        eval_dataset=evaluation_data(22),
        callbacks=[callback],
    )
    trainer.train()
    return trainer, callback.gradients


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_accumulating_four_batches_of_eight_equals_one_batch_of_thirty_two(tmp_path, mode):
    single, gradients = run_of(tmp_path / "1", mode, per_device_train_batch_size=32, max_steps=20)
    parts, accumulated = run_of(
        tmp_path / "4", mode, per_device_train_batch_size=8, gradient_accumulation_steps=4, max_steps=20
    )
    for name in ("loss", "cls_loss", "distillation_loss", "teacher_agreement"):
        assert len(logged(parts, name)) == 20
        np.testing.assert_allclose(logged(parts, name), logged(single, name), rtol=0, atol=1e-5)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("two_heads", [True, False])
def test_bf16_learns_like_fp32(tmp_path, two_heads):
    data = training_data(64, crop_scale=(0.8, 1.0), flip_probability=0.0)
    changes = {"two_heads": two_heads, "data": data, "max_steps": 100, "learning_rate": 2e-3, "logging_steps": 10}
    full, _ = run_of(tmp_path / "fp32", **changes)
    half, _ = run_of(tmp_path / "bf16", **changes, bf16=True)
    losses, half_losses = logged(full, "loss"), logged(half, "loss")
    assert losses[-1] < 0.7 * losses[0]  # otherwise nothing was learned
    assert half_losses != losses
    assert half_losses[-1] == pytest.approx(losses[-1], rel=0.05)
    assert half.evaluate()["eval_loss"] == pytest.approx(full.evaluate()["eval_loss"], rel=0.05)


def test_an_evaluation_before_training_uses_bf16_if_set(tmp_path):
    model, types = student(), []
    model.deit.layers[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    trainer = DistillationTrainer(
        model, conv_teacher(), arguments(tmp_path, bf16=True), eval_dataset=evaluation_data(3)
    )
    types.clear()
    trainer.evaluate()
    assert set(types) == {torch.bfloat16}


# ---- logged values ----


class FloatRows(torch.utils.data.Dataset):
    """Data set of a user: normalised float pixels, and labels named `label`."""

    def __init__(self, count, names=NAMES, labelled=True):
        unit = pixels_of(count, num_labels=len(names))[:, 2:18, 2:18].transpose(0, 3, 1, 2) / 255
        self.pixels = unit_to_double(unit).float()
        self.labels = (torch.arange(count) * 5 + 1) % len(names)
        self.labelled = labelled

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = {"label": int(self.labels[index])} if self.labelled else {}
        return {"pixel_values": self.pixels[index], **label}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_terms_are_means_over_images_for_any_batches(tmp_path, accumulation):
    rows = FloatRows(11)
    model, network = student(initializer_range=0.5), conv_teacher()
    args = arguments(
        tmp_path,
        learning_rate=0.0,
        weight_decay=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        max_steps=-1,
        num_train_epochs=2,
        logging_strategy="epoch",
    )
    trainer = DistillationTrainer(model, network, args, train_dataset=rows)
    trainer.train()
    with torch.no_grad():
        output, teacher_logits = model.eval()(rows.pixels), network(rows.pixels)
    terms = terms_by_hand(output, teacher_logits, rows.labels, True, {"distillation_type": "hard"})
    for name, values in terms.items():  # batches of 4, 4 and 3
        assert logged(trainer, name) == [pytest.approx(values.mean().item(), rel=1e-5)] * 2, name


def test_a_log_covers_the_steps_since_the_last_one(tmp_path):
    every, _ = run_of(tmp_path / "1", max_steps=7)
    rarely, _ = run_of(tmp_path / "3", max_steps=7, logging_steps=3)
    for name in ("loss", "cls_loss", "distillation_loss", "teacher_agreement"):
        values = logged(every, name)
        expected = [np.mean(values[:3]), np.mean(values[3:6])]
        np.testing.assert_allclose(logged(rarely, name), expected, rtol=1e-5)


# ---- evaluation ----


def eval_by_hand(model, network, pixels, labels, changes):
    with torch.no_grad():
        output, teacher_logits = model.eval()(pixels), network(pixels)
    two_heads = "cls_logits" in output
    terms = terms_by_hand(output, teacher_logits, labels, two_heads, changes)
    expected = {name: values.mean().item() for name, values in terms.items() if values is not None}
    predictions = output.logits.argmax(dim=-1)
    hits = (predictions == labels).double()
    expected["accuracy"] = hits.mean().item()
    expected["balanced_accuracy"] = np.mean([hits[labels == label].mean() for label in sorted(set(labels.tolist()))])
    expected["majority_accuracy"] = max((labels == label).double().mean().item() for label in set(labels.tolist()))
    for head in ("cls", "distillation") if two_heads else ():
        expected[f"{head}_accuracy"] = (output[f"{head}_logits"].argmax(dim=-1) == labels).double().mean().item()
    expected["teacher_accuracy"] = (teacher_logits.argmax(dim=-1) == labels).double().mean().item()
    expected["teacher_agreement"] = (teacher_logits.argmax(dim=-1) == predictions).double().mean().item()
    if output.logits.shape[-1] > 5:
        ranks = (output.logits > output.logits.gather(1, labels[:, None])).sum(dim=-1)
        expected["top5_accuracy"] = (ranks < 5).double().mean().item()
    return expected


@pytest.mark.parametrize(
    ("changes", "two_heads"),
    [
        ({"distillation_type": "hard"}, True),
        ({"distillation_type": "soft"}, True),
        ({"distillation_type": "soft"}, False),
        ({"distillation_type": "none"}, True),
        ({"distillation_type": "none"}, False),
    ],
)
def test_evaluation_with_a_partial_last_batch_has_exact_means_of_every_head(tmp_path, changes, two_heads):
    rows = FloatRows(23, SEVEN)
    model, network = student(two_heads, names=SEVEN, initializer_range=0.5), conv_teacher(7)
    args = arguments(tmp_path, per_device_eval_batch_size=5, **changes)
    metrics = DistillationTrainer(model, network, args, eval_dataset=rows).evaluate()
    expected = eval_by_hand(model, network, rows.pixels, rows.labels, changes)
    speed = {"epoch", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
    found = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    assert found.keys() - speed == expected.keys()
    assert 0 < expected["accuracy"] < expected["top5_accuracy"] < 1  # so the values differ
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_several_evaluation_sets_have_their_own_metrics(tmp_path):
    model, network = student(initializer_range=0.5), conv_teacher()
    sets = {"one": FloatRows(9), "two": FloatRows(14)}
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    metrics = DistillationTrainer(model, network, args, eval_dataset=sets).evaluate()
    for name, rows in sets.items():
        expected = eval_by_hand(model, network, rows.pixels, rows.labels, {"distillation_type": "hard"})
        for metric, value in expected.items():
            assert metrics[f"eval_{name}_{metric}"] == pytest.approx(value, rel=1e-5)


def test_compute_metrics_gets_the_fused_logits(tmp_path):
    rows, model, seen = FloatRows(11), student(initializer_range=0.5), []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"mine": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()), "accuracy": 7.0}

    trainer = DistillationTrainer(
        model, conv_teacher(), arguments(tmp_path), eval_dataset=rows, compute_metrics=compute_metrics
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        logits = model.eval()(rows.pixels).logits
    np.testing.assert_allclose(seen[0].predictions, logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(seen[0].label_ids, rows.labels.numpy())
    assert metrics["eval_mine"] == pytest.approx((logits.argmax(-1) == rows.labels).double().mean().item())
    assert metrics["eval_accuracy"] == 7.0  # metrics of the user take precedence
    assert "eval_cls_accuracy" in metrics


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("two_heads", [True, False])
def test_predict_returns_fused_logits_with_and_without_labels(tmp_path, labelled, two_heads):
    rows, model = FloatRows(11, labelled=labelled), student(two_heads, initializer_range=0.5)
    trainer = DistillationTrainer(model, conv_teacher(), arguments(tmp_path, per_device_eval_batch_size=4))
    prediction = trainer.predict(rows)
    with torch.no_grad():
        output = model.eval()(rows.pixels)
    expected = (output.cls_logits + output.distillation_logits) / 2 if two_heads else output.logits
    np.testing.assert_allclose(prediction.predictions, expected.numpy(), rtol=1e-4, atol=1e-5)
    if labelled:
        np.testing.assert_array_equal(prediction.label_ids, rows.labels.numpy())
        hits = (expected.argmax(-1) == rows.labels).double().mean().item()
        assert prediction.metrics["test_accuracy"] == pytest.approx(hits)
    else:
        assert prediction.label_ids is None
        assert not any("accuracy" in name or "loss" in name for name in prediction.metrics)


# ---- data sets of a user ----


def hub_rows(count=11):
    """Return a `datasets` data set of images with a transform on access, as in the examples of transformers."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    images = [Image.fromarray(pixels) for pixels in pixels_of(count)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [i % 4 for i in range(count)]}, features=features)
    processor = DeiTImageProcessor.for_image_size(SIZE)

    def transform(batch):
        return {"pixel_values": processor(batch["image"])["pixel_values"], "label": batch["label"]}

    return rows.with_transform(transform)


def trainer_warnings(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("hf_deit.trainer.") and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("make", [hub_rows, FloatRows], ids=["datasets", "torch"])
def test_a_users_data_set_trains_with_a_warning_that_resuming_is_not_exact(tmp_path, make, caplog):
    rows, model, network = make(11), student(), conv_teacher()
    args = arguments(tmp_path, per_device_train_batch_size=4, max_steps=4)
    trainer = DistillationTrainer(model, network, args, train_dataset=rows, eval_dataset=rows)
    (message,) = trainer_warnings(caplog)
    assert "view keys" in message
    assert "ViewDataset" in message
    trainer.train()
    assert len(logged(trainer, "loss")) == 4
    pixels = torch.stack([torch.as_tensor(rows[index]["pixel_values"]) for index in range(11)])
    labels = torch.tensor([rows[index]["label"] for index in range(11)])
    expected = eval_by_hand(model, network, pixels, labels, {"distillation_type": "hard"})
    metrics = trainer.evaluate()
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name


def test_float_pixels_of_the_students_size_are_passed_to_it_unchanged(tmp_path):
    rows, model, seen = FloatRows(4), student(), []
    trainer = DistillationTrainer(model, conv_teacher(), arguments(tmp_path), eval_dataset=rows)
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    trainer.evaluate()
    assert torch.equal(seen[0], rows.pixels)


def test_a_data_set_with_view_keys_logs_no_warning(tmp_path, caplog):
    DistillationTrainer(student(), conv_teacher(), arguments(tmp_path), train_dataset=training_data(8))
    assert not trainer_warnings(caplog)


def test_a_users_collator_may_pass_more_inputs_to_the_student(tmp_path):
    rows = [{"picture": FloatRows(8).pixels[index], "class": index % 4} for index in range(8)]
    model, seen = student(), []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)

    def collator(batch):
        return {
            "pixel_values": torch.stack([row["picture"] for row in batch]),
            "labels": torch.tensor([row["class"] for row in batch]),
            "interpolate_pos_encoding": True,
        }

    trainer = DistillationTrainer(
        model, conv_teacher(), arguments(tmp_path), data_collator=collator, train_dataset=rows, eval_dataset=rows
    )
    seen.clear()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert seen == [{"pixel_values", "interpolate_pos_encoding"}] * 3


def test_rows_without_pixel_values_are_refused_with_a_fix(tmp_path):
    rows = [{"image": 1, "label": 0}] * 4
    trainer = DistillationTrainer(student(), conv_teacher(), arguments(tmp_path), train_dataset=rows)
    with pytest.raises(KeyError, match="'pixel_values'.*with_transform"):
        trainer.train()


def test_soft_labels_are_accepted(tmp_path):
    model = student(initializer_range=0.5)
    trainer = DistillationTrainer(model, None, arguments(tmp_path, distillation_type="none"))
    pixels, labels = FloatRows(3).pixels, torch.tensor([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0.1, 0.2, 0.7]])
    loss = trainer.compute_loss(model.eval(), {"pixel_values": pixels, "labels": labels})
    output = model(pixels)
    by_hand = [-(labels * log_softmax(head)).sum(-1).mean() for head in (output.cls_logits, output.distillation_logits)]
    assert loss.item() == pytest.approx(sum(by_hand).item() / 2, rel=1e-5)
    assert model.config.problem_type is None


# ---- optimisation ----


@pytest.mark.parametrize("token_decays", [True, False])
@pytest.mark.parametrize("kind", ["two-heads", "one-head", "stock"])
def test_weight_decay_excludes_biases_norms_scales_class_token_and_positions(tmp_path, kind, token_decays):
    if kind == "stock":
        config = StockViTConfig(
            image_size=SIZE, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=4
        )
        model = StockViT(config)
    else:
        model = student(kind == "two-heads", layer_scale_init_value=0.1)
    args = arguments(tmp_path, distillation_type="none", distillation_token_decay=token_decays, weight_decay=0.07)
    trainer = DistillationTrainer(model, None, args)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays.keys() == set(names.values())
    excluded = ("bias", "layernorm", "lambda1", "cls_token", "position_embeddings")
    excluded += () if token_decays else ("distillation_token",)
    for name, decay in decays.items():
        assert decay == (0.0 if any(part in name for part in excluded) else 0.07), name
    assert ("deit.embeddings.distillation_token" in decays) == (kind == "two-heads")


# ---- a run that diverges ----


class Poisoned:
    """Forward hook that sets one logit of one image and head to a given value at one training step."""

    def __init__(self, step, value, head="cls_logits"):
        self.step, self.value, self.head, self.calls = step, value, head, 0

    def __call__(self, module, inputs, output):
        if module.training:
            self.calls += 1
            if self.calls == self.step:
                spoiled = output[self.head].clone()
                spoiled[2, 1] = self.value
                output[self.head] = spoiled
        return output


def diverging(tmp_path, step=5, value=math.nan, head="cls_logits", **changes):
    model = student()
    args = arguments(tmp_path, **{"max_steps": 10, "learning_rate": 1e-3, "lr_scheduler_type": "linear", **changes})
    trainer = DistillationTrainer(
        model, conv_teacher(), args, train_dataset=training_data(64), eval_dataset=evaluation_data(4)
    )
    model.register_forward_hook(Poisoned(step, value, head))
    return trainer


def checkpoint_names(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("logging_steps", [1, 10_000])
def test_a_non_finite_loss_stops_the_run_and_no_later_checkpoint_is_saved(tmp_path, value, logging_steps):
    trainer = diverging(tmp_path, value=value, logging_steps=logging_steps, save_strategy="steps", save_steps=2)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "at step 5" in message
    assert "learning rate 0.0006" in message  # linear from 1e-3 to 0 in 10 steps, of which 4 are done
    assert "cls_loss nan" in message or "cls_loss inf" in message
    assert "distillation_loss 1." in message
    assert "warmup_steps" in message
    assert checkpoint_names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


def test_a_diverged_run_without_logs_and_saves_raises_at_its_end(tmp_path):
    trainer = diverging(tmp_path, logging_steps=10_000)
    with pytest.raises(NonFiniteLossError, match="at step 5"):
        trainer.train()


def test_a_diverged_run_is_not_evaluated(tmp_path):
    trainer = diverging(tmp_path, head="distillation_logits", logging_steps=10_000, eval_strategy="steps", eval_steps=6)
    with pytest.raises(NonFiniteLossError, match=r"at step 5.*distillation_loss nan"):
        trainer.train()
    assert not logged(trainer, "eval_loss")


def test_with_accumulation_the_named_step_is_the_optimizer_step(tmp_path):
    trainer = diverging(tmp_path, step=7, gradient_accumulation_steps=2, logging_steps=10_000)
    with pytest.raises(NonFiniteLossError, match="at step 4"):
        trainer.train()


class BreakWeights(TrainerCallback):
    """Callback that sets one weight to NaN after a step whose loss was finite."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.deit.layers[1].mlp.fc1.weight.data[3, 4] = math.nan


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    args = arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    trainer = DistillationTrainer(
        student(), conv_teacher(), args, train_dataset=training_data(64), callbacks=[BreakWeights(4)]
    )
    with pytest.raises(NonFiniteLossError, match=r"step 4 .*1 weight.*layers\.1\.mlp\.fc1\.weight"):
        trainer.train()
    assert checkpoint_names(tmp_path) == ["checkpoint-2"]


def test_weights_that_are_not_finite_do_not_replace_a_saved_model(tmp_path):
    args = arguments(tmp_path, max_steps=2)
    trainer = DistillationTrainer(
        student(), conv_teacher(), args, train_dataset=training_data(16), callbacks=[BreakWeights(2)]
    )
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    trainer.train()
    with pytest.raises(NonFiniteLossError):
        trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before


# ---- the best model ----


def stock_vit():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return StockViT(StockViTConfig(image_size=SIZE, patch_size=8, id2label=dict(enumerate(NAMES)), **shape))


@pytest.mark.parametrize("kind", ["two-heads", "one-head", "layer-scale", "stock"])
@pytest.mark.parametrize("limit", [1, 3])
def test_the_weights_of_the_best_checkpoint_are_loaded_exactly(tmp_path, kind, limit):
    scores = iter([0.2, 0.9, 0.1, 0.3])
    scale = {"layer_scale_init_value": 0.1} if kind == "layer-scale" else {}
    model = stock_vit() if kind == "stock" else student(kind != "one-head", **scale)
    args = arguments(
        tmp_path,
        max_steps=8,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=limit,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer = DistillationTrainer(
        model,
        conv_teacher(),
        args,
        train_dataset=training_data(64),
        eval_dataset=evaluation_data(4),
        compute_metrics=lambda prediction: {"score": next(scores)},
    )
    trainer.train()

    best = tmp_path / "checkpoint-4"
    assert trainer.state.best_model_checkpoint == str(best)
    assert checkpoint_names(tmp_path) == (
        ["checkpoint-4"] if limit == 1 else ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    )
    weights, reloaded = model.state_dict(), type(model).from_pretrained(best).state_dict()
    assert weights.keys() == reloaded.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, reloaded[name]), name
    # Compare again independently of parameter names: the tensors must be those in the file.
    in_file = sorted(tensor.numpy().tobytes() for tensor in load_file(best / "model.safetensors").values())
    assert sorted(tensor.numpy().tobytes() for tensor in weights.values()) == in_file
    if limit == 3:
        last = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
        assert sorted(tensor.numpy().tobytes() for tensor in last.values()) != in_file


def test_save_strategy_best_saves_only_the_most_accurate_model_by_default(tmp_path):
    args = arguments(
        tmp_path,
        max_steps=12,
        learning_rate=2e-3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer = DistillationTrainer(
        student(), conv_teacher(), args, train_dataset=training_data(64), eval_dataset=evaluation_data(22)
    )
    trainer.train()
    accuracies = logged(trainer, "eval_accuracy")
    assert len(set(accuracies)) > 1
    assert trainer.state.best_metric == max(accuracies)
    assert checkpoint_names(tmp_path) == [f"checkpoint-{2 + 2 * int(np.argmax(accuracies))}"]
    assert trainer.evaluate()["eval_accuracy"] == max(accuracies)


def test_the_image_processor_is_saved_with_the_model(tmp_path):
    trainer = DistillationTrainer(student(), conv_teacher(), arguments(tmp_path))
    trainer.save_model()
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": SIZE, "width": SIZE}
    assert processor["image_mean"] == pytest.approx(list(MEAN))


def test_arguments_changed_during_training_take_effect(tmp_path):
    trainer = DistillationTrainer(
        student(), conv_teacher(), arguments(tmp_path, distillation_type="soft"), train_dataset=training_data(32)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    before = trainer.compute_loss(trainer.model, dict(batch)).item()
    trainer.args.distillation_alpha = 1.0
    after = trainer.compute_loss(trainer.model, dict(batch)).item()
    trainer.args.distillation_tau = 1.0
    assert len({before, after, trainer.compute_loss(trainer.model, dict(batch)).item()}) == 3
