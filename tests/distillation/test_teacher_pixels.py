"""Teachers and students whose image processors do more than mean, std and size: what the models are given."""

import importlib.util
import json
import logging

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from transformers import MobileViTConfig, MobileViTForImageClassification, ViTConfig, ViTForImageClassification

from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import RecipeError, UserError
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import NAMES, arguments, evaluation_data, student, training_data

LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


def vit(size=24):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(image_size=size, patch_size=8, **shape, **LABELS)).eval()


def mobilevit():
    torch.manual_seed(0)
    config = MobileViTConfig(
        image_size=32,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
        num_attention_heads=2,
        **LABELS,
    )
    return MobileViTForImageClassification(config).eval()


def class_of(kind):
    return getattr(hf, f"{kind}ImageProcessorPil", None) or getattr(hf, f"{kind}ImageProcessor")


def saved(folder, model, kind, **fields):
    model.save_pretrained(folder)
    processor = class_of(kind)(**fields)
    processor.save_pretrained(folder)
    return processor


def picture(height=24, width=24, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def unit(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def logits_of_stock(model, processor, image):
    with torch.no_grad():
        return model(torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])).logits


@pytest.mark.parametrize(
    ("make", "kind", "fields"),
    [
        (vit, "ViT", {"size": {"height": 24, "width": 24}, "do_normalize": False}),
        (vit, "ViT", {"size": {"height": 24, "width": 24}, "do_rescale": False, "image_mean": [99.0] * 3}),
        (
            vit,
            "EfficientNet",
            {"size": {"height": 24, "width": 24}, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        ),
        (mobilevit, "MobileViT", {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}),
        (vit, "ViT", {"size": {"height": 24, "width": 24}, "do_pad": True, "pad_size": {"height": 24, "width": 24}}),
    ],
    ids=["do_normalize", "do_rescale", "include_top", "bgr", "by the processor"],
)
def test_a_teacher_has_the_logits_of_plain_transformers(tmp_path, make, kind, fields):
    model = make()
    processor = saved(tmp_path, model, kind, **fields)
    teacher = Teacher.from_pretrained(tmp_path)
    teacher.align(list(NAMES), len(NAMES), (24, 24))
    expected = logits_of_stock(model, processor, picture())
    torch.testing.assert_close(teacher(unit(picture())), expected, rtol=1e-3, atol=1e-4)
    in_memory = Teacher(make(), image_processor=processor)
    torch.testing.assert_close(in_memory(unit(picture())), expected, rtol=1e-3, atol=1e-4)
    loaded = hf.AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(Teacher(loaded)(unit(picture())), expected, rtol=1e-3, atol=1e-4)


def test_a_model_without_a_processor_is_announced(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_deit"):
        Teacher(vit())
    assert "image_processor" in caplog.text


def test_an_oblong_view_keeps_its_aspect_if_nothing_is_cropped(tmp_path):
    model = hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
    )
    processor = saved(tmp_path, model.eval(), "Bit", size={"shortest_edge": 24}, do_center_crop=False)
    teacher = Teacher.from_pretrained(tmp_path)
    assert teacher.image_size == (24, 24)
    square = teacher.fingerprint((24, 24))
    teacher.align(list(NAMES), len(NAMES), (30, 40))
    assert teacher.image_size == (24, 32)
    assert teacher.fingerprint() != square == teacher.fingerprint((24, 24))
    image = picture(30, 40)
    torch.testing.assert_close(teacher(unit(image)), logits_of_stock(model, processor, image), rtol=1e-3, atol=1e-4)


def test_the_fingerprint_changes_with_the_pixels_and_only_with_them(tmp_path):
    def fingerprint(name, view=None, kind="ViT", **fields):
        saved(tmp_path / name, vit(), kind, **{"size": {"height": 24, "width": 24}, **fields})
        return Teacher.from_pretrained(tmp_path / name).fingerprint(view)

    as_before = Teacher(vit(), image_mean=[0.5] * 3, image_std=[0.5] * 3, image_size=24).fingerprint()
    assert fingerprint("bicubic", resample=3) == as_before
    assert fingerprint("bilinear, not resized", (24, 24), resample=2) == as_before
    others = [
        fingerprint("bilinear", (32, 32), resample=2),
        fingerprint("bicubic, resized", (32, 32), resample=3),
        fingerprint("unknown view", resample=2),
        fingerprint("plain", (24, 24), do_normalize=False),
        fingerprint("factor", (24, 24), rescale_factor=1 / 127.5),
        fingerprint("bgr", (24, 24), kind="MobileViT", do_center_crop=False),
        fingerprint("rgb", (24, 24), kind="MobileViT", do_center_crop=False, do_flip_channel_order=False, resample=2),
        fingerprint("padded", (24, 24), do_pad=True, pad_size={"height": 24, "width": 24}),
    ]
    assert others[0] == others[2]  # it may be resized
    assert others[3] == others[6]  # neither normalises
    assert len({as_before, *others}) == 1 + len(others) - 2


def test_fields_of_a_teacher_that_are_given_override_its_processor(tmp_path):
    saved(tmp_path, mobilevit(), "MobileViT", size={"shortest_edge": 24}, do_center_crop=False)
    teacher = Teacher.from_pretrained(tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3, image_size=32)
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    teacher(red)
    assert seen[0][0, :, 5, 5].tolist() == pytest.approx([-0.6, -0.4, 1.8])


@pytest.mark.parametrize("field", ["image_mean", "image_std"])
def test_a_mean_for_other_channels_is_refused(field):
    with pytest.raises(UserError, match=field):
        Teacher(vit(), **{field: [0.5] * 4})


@pytest.mark.skipif(
    not (importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")),
    reason="needs timm and torchvision",
)
@pytest.mark.parametrize(
    "config", [{"interpolation": "bilinear"}, {"crop_mode": "squash"}, {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}]
)
def test_a_timm_checkpoint_sees_what_transformers_gives_it(tmp_path, config):
    import timm

    name, sizes = "vit_tiny_patch16_224", {"img_size": 32, "depth": 2}
    network = timm.create_model(name, num_classes=4, **sizes)
    own = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        **config,
    }
    stored = {
        "architecture": name,
        "num_classes": 4,
        "label_names": list(NAMES),
        "model_args": sizes,
        "pretrained_cfg": own,
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    save_file(network.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    teacher = Teacher.from_pretrained(tmp_path)
    assert (teacher.image_size, teacher.image_mean) == ((32, 32), tuple(own["mean"]))
    teacher.pixels.processor.val_transforms.transforms[0].size = 32  # no crop, which is for files
    for image in (picture(32, 32), picture(40, 40).resize((80, 80)).resize((48, 48))):
        stock = teacher.pixels.processor(image, return_tensors="pt")["pixel_values"]
        assert (teacher.pixels(unit(image), (32, 32)) - stock).abs().max() < 3e-2


# ---- students that are not ours ----


@pytest.mark.parametrize(("make", "kind"), [(mobilevit, "MobileViT"), (vit, "EfficientNet")])
def test_8_bit_views_and_the_pixels_of_the_processor_train_a_student_alike(tmp_path, make, kind):
    size = {"height": 24, "width": 24}
    fields = {"do_center_crop": True} if kind == "MobileViT" else {}
    processor = class_of(kind)(size=size, crop_size=size, **fields)
    seen = []
    teacher = Teacher(lambda pixels: seen.append(pixels) or torch.zeros(len(pixels), 4), id2label=NAMES)
    model = make()
    trainer = DistillationTrainer(model, teacher, arguments(tmp_path), processing_class=processor)
    seen.clear()
    image, labels = picture(), torch.tensor([1])
    views = {"pixel_values": torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], "labels": labels}
    own = {"pixel_values": torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"]), "labels": labels}
    prepared = [trainer.objective.prepare(batch) for batch in (views, own)]
    torch.testing.assert_close(prepared[0].student_pixels, prepared[1].student_pixels, rtol=0, atol=1e-3)
    torch.testing.assert_close(prepared[0].teacher_pixels, prepared[1].teacher_pixels, rtol=0, atol=1e-4)
    torch.testing.assert_close(prepared[0].teacher_pixels, unit(image), rtol=0, atol=1e-4)


def test_a_processor_that_a_student_cannot_be_trained_with_is_refused_by_its_field(tmp_path):
    size = {"height": 16, "width": 16}
    processor = class_of("ViT")(size=size, do_pad=True, pad_size=size)
    with pytest.raises(RecipeError, match="do_pad"):
        DistillationTrainer(
            student(),
            None,
            arguments(tmp_path, distillation_type="none"),
            train_dataset=training_data(8),
            processing_class=processor,
        )
    # Its own pixels can be evaluated.
    trainer = DistillationTrainer(
        student(),
        None,
        arguments(tmp_path, distillation_type="none"),
        eval_dataset=evaluation_data(4),
        processing_class=class_of("ViT")(size=size),
    )
    assert trainer.evaluate()["eval_loss"] > 0
