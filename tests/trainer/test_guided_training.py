"""Training with spatial guidance: exactness, checkpoints, what is saved, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DeiTForImageClassificationWithTeacher as StockDeiT
from transformers import ResNetConfig, ResNetForImageClassification, TrainerCallback
from transformers import ViTForImageClassification as StockViT

from hf_deit.data.batch_ops import Mixing
from hf_deit.distillation import cache_builder
from hf_deit.distillation.cache import GUIDANCE, RecordFormat, TeacherCache
from hf_deit.distillation.cached_teacher import verify_teacher_cache
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import NonFiniteLossError, RecipeError, ResumeError, TeacherCacheError, TeacherError, UserError
from hf_deit.hub.model_card import render_card
from hf_deit.hub.publishing import published_files
from hf_deit.trainer.checkpoints import AUXILIARY_FILE
from hf_deit.trainer.guided_student import projections_of
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.caches import build, flip, tiny_teacher, tiny_views
from tests.helpers.tiny import NAMES, SIZE, arguments, evaluation_data, logged, student, training_data

MIXED = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def vit_teacher(two_heads=False, **shape):
    torch.manual_seed(3)
    shape = {"hidden_size": 48, "num_attention_heads": 3, "initializer_range": 0.3, **shape}
    return tiny_teacher(network=student(two_heads, **shape))


def resnet(**fields):
    torch.manual_seed(4)
    fields = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", **fields}
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    return ResNetForImageClassification(ResNetConfig(**fields, **labels))


TEACHERS = {
    "vit": vit_teacher,
    "finer vit": lambda: vit_teacher(two_heads=True, patch_size=4),
    "resnet": lambda: tiny_teacher(network=resnet()),
    "network": tiny_teacher,
}


def trainer_of(folder, teacher=None, cache=None, model=None, data=None, verified=0, callbacks=None, **changes):
    fields = {"max_steps": 7, "learning_rate": 2e-3, "guidance": "features", "distillation_type": "none", **changes}
    torch.manual_seed(0)
    return DistillationTrainer(
        model or student(False, initializer_range=0.2, drop_path_rate=0.1),
        teacher,
        arguments(folder, **fields),
        train_dataset=data or training_data(43),
        eval_dataset=evaluation_data(),
        teacher_cache=cache,
        verify_teacher_cache=verified,
        callbacks=callbacks,
    )


def build_guided(folder, trainer, epochs=2, kind="dense", **options):
    """Build the cache of the views and of the guidance of a trainer with a live teacher."""
    record_format = RecordFormat(kind, len(NAMES), extra_arrays=trainer.guidance.arrays)
    views = tiny_views(
        training_data(43), trainer.args.train_batch_size, trainer.args.global_batch_size, trainer.args.mixing
    )
    return build(folder, record_format, epochs, trainer.teacher, views=views, guidance=trainer.guidance, **options)


def train(trainer):
    torch.manual_seed(0)  # for the drop path
    trainer.train()


def weights(trainer):
    own = {} if trainer.auxiliary is None else trainer.auxiliary.state_dict()
    return {**trainer.model.state_dict(), **{f"projection.{name}": value for name, value in own.items()}}


def assert_equal_weights(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def losses(trainer):
    return logged(trainer, "loss"), logged(trainer, "guidance_loss")


# ---- exactness ----


@pytest.mark.parametrize(
    ("teacher", "two_heads", "changes"),
    [
        ("vit", False, {}),
        ("vit", True, {"distillation_type": "soft", "guidance": "similarity", **MIXED}),
        ("finer vit", True, {"distillation_type": "hard", **MIXED, "repeated_augmentation": 3}),
        ("resnet", False, {"distillation_type": "soft", "bf16": True}),
        ("network", False, {"guidance": "similarity", "dataloader_num_workers": 2}),
        ("vit", False, {"guidance_student_layers": ["1", "-1"], "guidance_teacher_layers": ["vit.layers.0", "2"]}),
    ],
    ids=["features", "soft similarity", "finer teacher", "resnet in bf16", "similarity with workers", "two layers"],
)
def test_training_with_cached_features_equals_training_with_the_live_teacher(tmp_path, teacher, two_heads, changes):
    model = student(two_heads, initializer_range=0.2, drop_path_rate=0.1)
    live = trainer_of(tmp_path / "live", TEACHERS[teacher](), model=model, **changes)
    if changes.get("repeated_augmentation"):
        views = tiny_views(mixing=Mixing(0.8, 1.0), repeats=3)
        record_format = RecordFormat("dense", len(NAMES), extra_arrays=live.guidance.arrays)
        cache = build(tmp_path / "cache", record_format, 2, live.teacher, views=views, guidance=live.guidance)
    else:
        cache = build_guided(tmp_path / "cache", live)
    cached = trainer_of(tmp_path / "cached", cache=cache, model=copy_of(live.model), **changes)
    assert cached.teacher is None
    for trainer in (live, cached):
        train(trainer)
    assert len(losses(live)[1]) == 7 and losses(live) == losses(cached)
    assert_equal_weights(live, cached)
    description = [trainer.run_description() for trainer in (live, cached)]
    assert description[0]["teacher"] == description[1]["teacher"]
    assert description[0]["guidance"] == description[1]["guidance"]


def copy_of(model):
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def test_the_loss_is_the_other_terms_plus_the_weighted_guidance_of_every_image(tmp_path):
    trainer = trainer_of(tmp_path, vit_teacher(), guidance_weight=3.5, distillation_type="soft", max_steps=3)
    trainer.train()
    for entry in trainer.state.log_history[:3]:
        expected = 0.9 * entry["cls_loss"] + 0.1 * entry["distillation_loss"] + 3.5 * entry["guidance_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    evaluation = trainer.evaluate()
    assert "eval_guidance_loss" not in evaluation
    expected = 0.9 * evaluation["eval_cls_loss"] + 0.1 * evaluation["eval_distillation_loss"]
    assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_callback_may_change_the_weight_during_a_run(tmp_path):
    class Off(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            args.guidance_weight = 2.0 if state.global_step else 1.0

    trainer = trainer_of(tmp_path, vit_teacher(), callbacks=[Off()], max_steps=2)
    trainer.train()
    for entry, weight in zip(trainer.state.log_history, (1.0, 2.0), strict=False):
        assert entry["loss"] == pytest.approx(entry["cls_loss"] + weight * entry["guidance_loss"], rel=1e-5)


def test_the_guidance_loss_is_that_of_the_formula_on_the_features_of_the_same_mixed_view(tmp_path):
    trainer = trainer_of(tmp_path, vit_teacher(), **MIXED)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    prepared = trainer.objective.prepare(batch)
    model.config.drop_path_rate = 0.0
    torch.manual_seed(1)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    torch.manual_seed(1)
    own = model(pixel_values=prepared.student_pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    teacher = trainer.teacher
    seen = teacher.pixels(prepared.teacher_pixels, teacher.image_size)
    theirs = teacher.model(pixel_values=seen, output_hidden_states=True).hidden_states[-1][:, 1:].half().float()
    (projection,) = trainer.auxiliary
    pair = [nn.functional.layer_norm(values, (48,)) for values in (projection(own), theirs)]
    expected = nn.functional.smooth_l1_loss(*pair)
    plain = trainer.objective.terms({"logits": outputs["logits"]}, {}, prepared.labels)["loss"].mean()
    torch.testing.assert_close(loss, plain + 40 * expected)


def test_guidance_changes_neither_the_initial_weights_nor_the_random_numbers_of_a_run(tmp_path):
    states = []
    for changes in ({}, {"guidance": "none"}):
        trainer = trainer_of(tmp_path, vit_teacher(), **changes)
        states.append((trainer.model.state_dict(), torch.random.get_rng_state()))
    assert all(torch.equal(states[0][0][name], states[1][0][name]) for name in states[0][0])
    assert torch.equal(states[0][1], states[1][1])
    one, same, other = (projections_of([(8, 5), (8, 5)], seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(one["0.weight"], same["0.weight"]) and not torch.equal(one["0.weight"], other["0.weight"])
    assert not torch.equal(one["0.weight"], one["1.weight"])
    assert one["0.weight"].abs().max() <= 8**-0.5 and one["0.bias"].eq(0).all()


def test_a_run_without_guidance_uses_a_cache_with_features_and_does_not_read_them(tmp_path):
    guided = trainer_of(tmp_path / "guided", vit_teacher())
    with_features = build_guided(tmp_path / "with", guided)
    without = build(tmp_path / "without", "dense", teacher=vit_teacher())
    flip(tmp_path / "with" / "epoch-00000.features_0.npy", 300)
    changes = {"guidance": "none", "distillation_type": "soft"}
    trainers = [
        trainer_of(tmp_path / "run", cache=cache, **changes)
        for cache in (tmp_path / "with", with_features, tmp_path / "without", without)
    ]
    for trainer in trainers:
        train(trainer)
        assert_equal_weights(trainer, trainers[0])
    with pytest.raises(TeacherCacheError, match=r"features_0.npy"):
        trainer_of(tmp_path / "run", cache=tmp_path / "with")


# ---- checkpoints ----


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


SAVING = {
    "save_strategy": "steps",
    "save_steps": 3,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "ema_epochs": 1.0,
    "layer_decay": 0.8,
}


def test_a_run_that_was_killed_resumes_with_the_same_projection_and_optimizer_live_and_cached(tmp_path):
    whole = trainer_of(tmp_path / "whole", vit_teacher(), **SAVING)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "killed", vit_teacher(), callbacks=[Stop()], **SAVING).train()
    cache = build_guided(tmp_path / "cache", whole)
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    for name, teacher in (("killed", {"teacher": vit_teacher()}), ("copy", {"cache": cache})):
        resumed = trainer_of(tmp_path / name, **teacher, **SAVING)
        resumed.train(resume_from_checkpoint=True)
        assert_equal_weights(resumed, whole)
        assert logged(resumed, "grad_norm") == logged(whole, "grad_norm")
    saved = [load_file(tmp_path / name / "checkpoint-7" / AUXILIARY_FILE) for name in ("whole", "killed")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert not (tmp_path / "whole" / "checkpoint-7" / "ema" / AUXILIARY_FILE).exists()


@pytest.mark.parametrize("damage", ["missing", "torn", "shape", "name"])
def test_a_checkpoint_whose_projection_is_missing_or_differs_is_refused(tmp_path, damage):
    fields = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, vit_teacher(), callbacks=[Stop()], **fields).train()
    file = tmp_path / "checkpoint-3" / AUXILIARY_FILE
    content = load_file(file)
    if damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "shape":
        save_file({**content, "0.bias": torch.zeros(3)}, file)
    else:
        save_file({"1.weight": content["0.weight"], "0.bias": content["0.bias"]}, file)
    with pytest.raises(ResumeError, match=AUXILIARY_FILE):
        trainer_of(tmp_path, vit_teacher(), **fields).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"guidance_weight": 41.0}, "recipe.guidance_weight"),
        ({"guidance": "none"}, "recipe.guidance"),
        ({"guidance": "similarity"}, "recipe.guidance"),
        ({"guidance_student_layers": ["-2"]}, "guidance.student.layers"),
        ({"guidance_teacher_layers": ["-2"]}, "guidance.teacher.layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_with_another_guidance_is_refused_by_its_field(tmp_path, changes, field):
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer_of(tmp_path, vit_teacher(), **fields).train()
    with pytest.raises(ResumeError, match=field):
        trainer_of(tmp_path, vit_teacher(), **fields, **changes).train(resume_from_checkpoint=True)
    older = json.loads((tmp_path / "checkpoint-2" / "hf_deit_run.json").read_text())
    for name in [name for name in older["recipe"] if name.startswith("guidance")]:
        del older["recipe"][name]  # a checkpoint of an earlier version
    (tmp_path / "checkpoint-2" / "hf_deit_run.json").write_text(json.dumps(older))
    with pytest.raises(ResumeError, match=r"recipe\.guidance: 'none'"):
        trainer_of(tmp_path, vit_teacher(), **fields).train(resume_from_checkpoint=True)


# ---- the projection ----


def test_the_projection_is_optimized_like_a_head_and_clipped_with_the_student(tmp_path):
    trainer = trainer_of(tmp_path, vit_teacher(), layer_decay=0.5, weight_decay=0.1, max_grad_norm=1e-3, max_steps=1)
    optimizer = trainer.create_optimizer()
    (projection,) = trainer.auxiliary
    groups = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    head = trainer.model.classifier
    for own, expected in ((projection.weight, head.weight), (projection.bias, head.bias)):
        for name in ("lr", "weight_decay"):
            assert groups[id(own)][name] == groups[id(expected)][name]
    assert groups[id(projection.weight)]["weight_decay"] == 0.1 and groups[id(projection.bias)]["weight_decay"] == 0
    found = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.extend(value.grad.norm() for value in (*model.parameters(), *projection.parameters()))

        def on_step_end(self, args, state, control, **kwargs):
            found.append(projection.weight.grad)

    trainer.add_callback(Norm())
    trainer.train()
    assert found.pop() is None  # reset as the gradients of the model
    assert torch.stack(found).norm() == pytest.approx(1e-3, rel=1e-3)
    assert logged(trainer, "grad_norm")[0] > 0.1


def test_a_projection_that_is_not_finite_is_never_saved(tmp_path):
    trainer = trainer_of(tmp_path, vit_teacher(), max_steps=1)
    trainer.train()
    with torch.no_grad():
        trainer.auxiliary[0].bias[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"auxiliary\.0\.bias"):
        trainer.save_model()


@pytest.mark.parametrize("two_heads", [True, False])
def test_the_saved_student_has_the_keys_of_stock_transformers_and_no_file_holds_a_projection(tmp_path, two_heads):
    model = student(two_heads)
    trainer = trainer_of(tmp_path, vit_teacher(), model=model, save_strategy="steps", save_steps=7, save_total_limit=1)
    trainer.train()
    trainer.save_model()
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert AUXILIARY_FILE not in files
    assert (tmp_path / "checkpoint-7" / AUXILIARY_FILE).is_file()
    _, info = (StockDeiT if two_heads else StockViT).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for folder in (tmp_path, tmp_path / "checkpoint-7"):
        published = {file.path_in_repo for file in published_files(folder, "owner/name")}
        assert "model.safetensors" in published and AUXILIARY_FILE not in published
    card = str(render_card(trainer.summary(), "guided"))
    assert "weight 40: layer `-1` of the student learns from layer `-1` of the teacher (2×2 patches)" in card
    assert ("without a teacher" in card) is False and "without the logits of a teacher" in card
    facts = trainer.summary().run
    assert facts["parameters"] == facts["learning_parameters"] == sum(value.numel() for value in model.parameters())
    assert facts["guidance"]["kind"] == "features" and facts["guidance"]["teacher_layers"] == ["-1"]
    sizes = [len(load_file(path / "model.safetensors")) for path in (tmp_path, tmp_path / "checkpoint-7")]
    assert sizes == [len(model.state_dict())] * 2


# ---- students and teachers ----


@pytest.mark.parametrize("kind", ["features", "similarity"])
def test_a_convolutional_student_learns_from_a_vit_and_from_a_convolutional_teacher(tmp_path, kind):
    for teacher in (vit_teacher(), TEACHERS["resnet"]()):
        fields = {"guidance": kind, "guidance_weight": 1.0, "max_steps": 12}
        data = training_data(8, crop_scale=(1.0, 1.0))
        trainer = trainer_of(tmp_path, teacher, model=resnet(downsample_in_first_stage=True), data=data, **fields)
        trainer.train()
        first, *_, last = losses(trainer)[1]
        assert 0 < last < first


def test_a_student_whose_guided_layers_are_not_trained_is_refused(tmp_path):
    model = student(False)
    model.vit.requires_grad_(False)
    with pytest.raises(RecipeError, match="guidance_student_layers=-1"):
        trainer_of(tmp_path, vit_teacher(), model=model)


class Flat(nn.Module):
    """Student without a grid of patches."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, len(NAMES))

    def forward(self, pixel_values):
        return {"logits": self.linear(pixel_values.mean(dim=(2, 3)))}


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": Flat()}, RecipeError, "grid of patches"),
        ({"guidance_student_layers": ["vit.nothing"]}, RecipeError, "vit.nothing"),
        ({"guidance_student_layers": ["classifier"]}, RecipeError, "guidance_student_layers=classifier"),
        ({"guidance_teacher_layers": ["9"]}, UserError, "guidance_teacher_layers=9"),
        ({"teacher": lambda pixels: torch.zeros(len(pixels), 4)}, TeacherError, "feature_maps"),
        ({"teacher": None}, RecipeError, "guidance='features' needs a teacher"),
    ],
    ids=["student", "unknown layer", "layer without a grid", "index", "function", "no teacher"],
)
def test_what_cannot_be_guided_is_refused_before_the_first_step(tmp_path, changes, error, named):
    teacher = changes.pop("teacher", "vit")
    with pytest.raises(error, match=named):
        trainer_of(tmp_path, vit_teacher() if teacher == "vit" else teacher, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"guidance": "pixels"}, "guidance='pixels'"),
        ({"guidance_weight": 0}, "guidance_weight=0"),
        ({"guidance_weight": float("inf")}, "guidance_weight=inf"),
        ({"guidance_student_layers": []}, r"guidance_student_layers=\[\]"),
        ({"guidance_teacher_layers": ["-1", ""]}, "guidance_teacher_layers"),
        ({"guidance_teacher_layers": [torch.relu]}, "feature_maps"),
        ({"guidance_student_layers": [1.5]}, r"guidance_student_layers=\[1.5\]"),
        ({"guidance_teacher_layers": ["-1", "-2"]}, "as many layers"),
        ({"guidance_teacher_layers": "-1", "guidance_student_layers": [1, 2]}, "as many layers"),
    ],
)
def test_values_of_the_fields_that_are_not_allowed_are_refused(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        arguments(tmp_path, **{"guidance": "features", **changes})


def test_an_optimizer_of_the_caller_is_refused_where_a_projection_must_be_trained(tmp_path):
    model = student(False)
    given = (torch.optim.SGD(model.parameters(), 0.1), None)
    fields = {"train_dataset": training_data(16), "optimizers": given}
    with pytest.raises(RecipeError, match="optimizer of your own"):
        DistillationTrainer(model, vit_teacher(), arguments(tmp_path, guidance="features"), **fields)
    DistillationTrainer(model, vit_teacher(), arguments(tmp_path, guidance="similarity"), **fields).train()


def test_features_that_float16_cannot_hold_stop_a_live_run_and_the_build_of_a_cache(tmp_path):
    network = student(False)
    with torch.no_grad():
        network.vit.embeddings.position_embeddings += 1e5
    trainer = trainer_of(tmp_path, tiny_teacher(network=network))
    with pytest.raises(TeacherError, match="features_0"):
        trainer.train()
    with pytest.raises((TeacherError, TeacherCacheError), match="features_0"):
        build_guided(tmp_path / "cache", trainer)


# ---- the cache ----


def test_a_cache_states_what_it_holds_and_other_guidance_is_refused_by_its_field(tmp_path):
    live = trainer_of(tmp_path, vit_teacher())
    cache = build_guided(tmp_path / "cache", live)
    assert cache.manifest[GUIDANCE] == {
        "layers": ["-1"],
        "indexed": 3,
        "channels": [48],
        "teacher_grids": [[2, 2]],
        "grids": [[2, 2]],
        "records": ["features"],
    }
    assert cache.record_format.bytes_per_view == 4 * 4 + 2 * 2 * 48 * 2
    for changes, field in (
        ({"guidance": "similarity"}, "guidance.records"),
        ({"guidance_teacher_layers": ["-2"]}, "guidance.layers"),
        ({"guidance_student_layers": ["-1", "-2"]}, "guidance.layers"),
        ({"model": resnet(downsample_in_first_stage=True, hidden_sizes=[8, 8], depths=[1, 1])}, None),
    ):
        if field is not None:
            with pytest.raises(TeacherCacheError, match=field):
                trainer_of(tmp_path, cache=cache, **changes)
    assert trainer_of(tmp_path, cache=cache, guidance_teacher_layers=["2"]).guidance == live.guidance
    finer = student(False, patch_size=4)  # the grid of the teacher is coarser, so the same record serves
    assert trainer_of(tmp_path, cache=cache, model=finer).guidance.student[0].grid == (4, 4)
    without = build(tmp_path / "without", "dense", teacher=vit_teacher())
    assert GUIDANCE not in without.manifest and "extra_arrays" not in without.manifest["layout"]
    with pytest.raises(TeacherCacheError, match=r"guidance: none in the cache, 'features' now"):
        trainer_of(tmp_path, cache=without)


def test_verification_covers_the_features(tmp_path):
    live = trainer_of(tmp_path, vit_teacher())
    cache = build_guided(tmp_path / "cache", live)
    found = verify_teacher_cache(cache, live.teacher, tiny_views(), 20, seed=0, guidance=live.guidance)
    assert found.records == 20 and found.same_decision == found.equal == 1
    trainer_of(tmp_path, vit_teacher(), cache=cache, verified=8)

    class Shifted(TeacherCache):
        def outputs(self, epoch, positions):
            outputs = super().outputs(epoch, positions)
            return {name: values * 1.1 if "features" in name else values for name, values in outputs.items()}

    found = verify_teacher_cache(Shifted(cache.folder), live.teacher, tiny_views(), 20, seed=0, guidance=live.guidance)
    assert found.same_decision == 1 and found.equal == 0 and found.logits_difference == 0
    features = found.features["features_0"]
    # The stored features are 1.1 times those of now, which are further away by 0.1 / 1.1 of the stored length.
    assert features.same == 0 and features.difference == pytest.approx(0.1 / 1.1, abs=2e-3)
    assert verify_teacher_cache(Shifted(cache.folder), live.teacher, tiny_views(), 20, seed=0).equal == 1


def test_a_refused_verification_names_what_differs_and_by_how_much(tmp_path, monkeypatch):
    fields = {"guidance_student_layers": ["-1", "-2"], "guidance_teacher_layers": ["-1", "-2"]}
    live = trainer_of(tmp_path, vit_teacher(), **fields)
    cache = build_guided(tmp_path / "cache", live)
    read = TeacherCache.outputs

    def refused(array):
        def outputs(self, epoch, positions):
            found = read(self, epoch, positions)
            return {name: values * 1.1 if name == f"teacher_{array}" else values for name, values in found.items()}

        with monkeypatch.context() as patched, pytest.raises(TeacherCacheError) as error:
            patched.setattr(TeacherCache, "outputs", outputs)
            trainer_of(tmp_path, vit_teacher(), cache=cache, verified=20, **fields)
        return str(error.value)

    message = refused("features_1")
    layer = live.guidance.teacher.layers[1]
    assert f"layer {layer} (features_1), by up to 9.1 %" in message and "20 of them" in message
    assert "features_0" not in message and "predicted class" not in message

    def negated(self, epoch, positions):
        found = read(self, epoch, positions)
        return {name: -values if name == "teacher_logits" else values for name, values in found.items()}

    with monkeypatch.context() as patched, pytest.raises(TeacherCacheError) as error:
        patched.setattr(TeacherCache, "outputs", negated)
        trainer_of(tmp_path, vit_teacher(), cache=cache, verified=20, **fields)
    assert "the predicted class, whose logits differ by up to " in str(error.value)
    assert "features_" not in str(error.value)


def test_a_killed_build_resumes_and_has_the_same_files(tmp_path, monkeypatch):
    live = trainer_of(tmp_path, vit_teacher())
    whole = build_guided(tmp_path / "whole", live, part_records=8)
    view_outputs, seen = cache_builder.view_outputs, []

    def dying(*args, **kwargs):
        for outputs in view_outputs(*args, **kwargs):
            seen.append(outputs)
            if len(seen) == 6:
                raise KeyboardInterrupt
            yield outputs

    monkeypatch.setattr(cache_builder, "view_outputs", dying)
    with pytest.raises(KeyboardInterrupt):
        build_guided(tmp_path / "killed", live, part_records=8)
    build_guided(tmp_path / "killed", live, part_records=8)
    files = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == files
    assert "epoch-00001.features_0.npy" in files and "validation.features_0.npy" not in files


def test_a_build_that_the_disk_cannot_hold_is_refused_with_both_sizes(tmp_path, monkeypatch):
    live = trainer_of(tmp_path, vit_teacher())
    usage = shutil._ntuple_diskusage(10**9, 10**9, 5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(TeacherCacheError, match=r"400 bytes each need 0\.03 MB.* has 0\.01 MB free"):
        build_guided(tmp_path / "cache", live, validation=None)


def test_teachers_of_a_cache_that_are_functions_are_verified_by_their_feature_maps(tmp_path):
    def logits(images):
        return torch.nn.functional.pad(images.mean(dim=(2, 3)), (0, 1))

    def colours(images):
        return torch.nn.functional.avg_pool2d(images, 4)

    def teacher():
        made = Teacher(logits, id2label=dict(enumerate(NAMES)), feature_maps=[colours])
        made.align(list(NAMES), len(NAMES), (SIZE, SIZE))
        return made

    live = trainer_of(tmp_path / "live", teacher())
    cache = build_guided(tmp_path / "cache", live)
    assert "colours" in cache.manifest[GUIDANCE]["layers"][0]
    cached = trainer_of(tmp_path / "cached", teacher(), cache=cache, verified=4)
    for trainer in (live, cached):
        train(trainer)
    assert_equal_weights(live, cached)


def test_a_layer_that_no_gradient_reaches_in_training_is_refused(tmp_path):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    inside = {"guidance_student_layers": ["vit.layers.1.attention"], "max_steps": 1}
    with pytest.raises(RecipeError, match=r"guidance_student_layers='vit.layers.1.attention'.*use_reentrant"):
        train(trainer_of(tmp_path / "inside", vit_teacher(), **inside, **reentrant))
    train(trainer_of(tmp_path / "without", vit_teacher(), **inside))
    train(trainer_of(tmp_path / "block", vit_teacher(), max_steps=1, **reentrant))
