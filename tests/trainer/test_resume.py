"""Atomic saving and exact resuming: killed and resumed runs are compared with uninterrupted ones."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, ConvNextForImageClassification, TrainerCallback
from transformers import DeiTForImageClassificationWithTeacher as StockDistilled
from transformers import ViTConfig as StockViTConfig
from transformers import ViTForImageClassification as StockViT

from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import ResumeError
from hf_deit.files import STAGING_PREFIX
from hf_deit.trainer.checkpoints import RUN_FILE, checkpoints, newest_checkpoint
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import SCRIPTS
from tests.helpers.processes import run_python
from tests.helpers.tiny import (
    NAMES,
    SIZE,
    arguments,
    conv_teacher,
    evaluation_data,
    student,
    training_data,
)

SAVE_MOMENTS = ("optimizer", "before-rename", "after-rename", "rotation")


# ---- killed runs ----


def random_kills():
    """Return five steps from 3 to 14, each with a moment in the step, and one save; the choice is always the same."""
    generator = random.Random(14)
    steps = generator.sample(range(3, 15), 5)
    return [(step, generator.choice(("middle", "end"))) for step in steps] + [(8, "optimizer")]


KILLS = random_kills()
# Each moment and each number of data workers occurs, but not each pair of them.
WORKERS = dict(zip(KILLS, (0, 2, 2, 0, 2, 0), strict=True))


def resume_plan(folder):
    """Return all runs of this file that need a process of their own, see helpers/resume_runs.py."""
    plan = []

    def add(name, of=None, **run):
        plan.append({"name": name, "folder": str(folder / (of or name)), **run})

    def add_killed(name, kill, resumed=None, **run):
        add(name, kill=kill, **run)
        add(f"{name}, resumed", of=name, **{"resume": True, **run, **(resumed or {})})

    for workers in (0, 2):
        add(f"uninterrupted, {workers} workers", workers=workers)
    often = {"changes": {"save_steps": 2}}
    for kill, workers in WORKERS.items():
        add_killed(str(kill), kill, workers=workers, **often)
    for moment in SAVE_MOMENTS[1:]:
        add_killed(moment, (8, moment), workers=2 if moment == "before-rename" else 0, **often)
    add_killed("final", (0, "final"), {"save_first": False}, save_first=True, **often)
    add("twice", kill=(7, "middle"))
    add("twice again", of="twice", kill=(11, "end"), resume=True, workers=2)
    add("twice, resumed", of="twice", resume=True)
    for model in ("one-head", "layer-scale", "stock"):
        add(f"uninterrupted {model}", model=model)
        add_killed(model, (9, "end"), model=model)
    averaging = {"changes": {"ema_epochs": 1.5}}
    counting = {"changes": {"ema_epochs": 1.5, "counted_weights": "ema"}}
    add("uninterrupted averaging", **averaging)
    add("uninterrupted stock averaging", model="stock", **averaging)
    add("uninterrupted counting", **counting)
    for moment, step in (("middle", 10), ("end", 10), ("optimizer", 12)):
        add_killed(f"averaging, {moment}", (step, moment), **averaging)
    add_killed("stock averaging", (9, "end"), model="stock", **averaging)
    add_killed("counting", (9, "end"), **counting)
    paper = {
        "augmentation": {"auto_augment": "randaugment", "erasing_probability": 0.25, "color_jitter": 0.3},
        "changes": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeated_augmentation": 3, "label_smoothing_factor": 0.1},
    }
    add("uninterrupted paper", **paper)
    add_killed("paper", (9, "end"), {"workers": 2}, **paper)
    unlabelled = {"unlabelled": True, "changes": {"mixup_alpha": 0.8}}
    add("uninterrupted unlabelled", **unlabelled)
    add_killed("unlabelled", (9, "end"), {"workers": 2}, **unlabelled)
    for model in ("two-heads", "one-head"):
        add(f"uninterrupted plain {model}", model=model, trainer="plain")
        add_killed(f"plain {model}", (9, "end"), model=model, trainer="plain")
    add_killed("without hook", (9, "end"), {"without_hook": True})
    add_killed("plain without hook", (9, "end"), {"without_hook": True}, model="two-heads", trainer="plain")
    add_killed(
        "other cadence",
        (9, "end"),
        {"changes": {"logging_steps": 3, "save_steps": 2, "save_total_limit": 5}, "workers": 1},
    )
    add_killed(
        "other batch", (9, "end"), {"changes": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}}
    )
    return plan


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "plan.json").write_text(json.dumps(resume_plan(folder)))
    done = run_python(SCRIPTS / "resume_runs.py", folder / "plan.json", folder / "results.json", timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


def assert_same_end(runs, name, uninterrupted):
    assert runs[uninterrupted]["status"] == 0
    assert "error" not in runs[uninterrupted]
    assert runs[name]["status"] == -9
    resumed = runs[f"{name}, resumed"]
    assert resumed.get("error") is None
    assert resumed["sha"] == runs[uninterrupted]["sha"]
    assert resumed["sha"] is not None
    assert not resumed["leftovers"]


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(runs, kill):
    assert_same_end(runs, str(kill), "uninterrupted, 0 workers")


def test_a_run_with_augmentation_mixing_and_repeats_of_the_paper_resumes_exactly(runs):
    assert_same_end(runs, "paper", "uninterrupted paper")
    assert runs["uninterrupted paper"]["sha"] != runs["uninterrupted, 0 workers"]["sha"]


def test_a_run_with_unlabelled_images_resumes_exactly_with_another_number_of_workers(runs):
    assert_same_end(runs, "unlabelled", "uninterrupted unlabelled")
    assert runs["uninterrupted unlabelled"]["sha"] != runs["uninterrupted, 0 workers"]["sha"]


def test_runs_are_killed_in_the_middle_and_at_the_end_of_an_epoch():
    newest = {(step - 1) // 2 * 2 for step, moment in KILLS}
    assert 10 in newest  # the end of an epoch
    assert newest & {2, 4, 6, 8, 12}


def test_workers_do_not_change_a_run(runs):
    assert runs["uninterrupted, 0 workers"]["losses"] == runs["uninterrupted, 2 workers"]["losses"]
    assert runs["uninterrupted, 0 workers"]["sha"] == runs["uninterrupted, 2 workers"]["sha"]


def test_a_resumed_run_logs_the_losses_of_an_uninterrupted_run(runs):
    uninterrupted = runs["uninterrupted, 0 workers"]["losses"]
    assert len(set(uninterrupted.values())) == len(uninterrupted) == 14
    assert runs[f"{KILLS[0]}, resumed"]["losses"] == uninterrupted


@pytest.mark.parametrize("moment", SAVE_MOMENTS)
def test_a_kill_during_a_save_leaves_complete_checkpoints_and_its_leftovers_are_removed(runs, moment):
    name = moment if moment != "optimizer" else str(KILLS[-1])
    killed = runs[name]
    if moment in ("after-rename", "rotation"):
        assert "checkpoint-8" in killed["checkpoints"]
    else:
        assert "checkpoint-8" not in killed["checkpoints"]
        assert killed["leftovers"] == [f"{STAGING_PREFIX}checkpoint"]
    assert "checkpoint-6" in killed["checkpoints"]
    assert_same_end(runs, name, "uninterrupted, 0 workers")


def test_a_kill_in_the_final_save_leaves_the_previous_model(runs):
    assert runs["final"]["status"] == -9
    assert runs["final"]["sha"] is not None
    assert runs["final"]["sha"] != runs["uninterrupted, 0 workers"]["sha"]
    assert [name[: len(STAGING_PREFIX) + 5] for name in runs["final"]["leftovers"]] == [f"{STAGING_PREFIX}save-"]
    assert runs["final"]["checkpoints"] == ["checkpoint-12", "checkpoint-14"]
    assert_same_end(runs, "final", "uninterrupted, 0 workers")  # the resumed run has no step left to train


@pytest.mark.parametrize(
    ("name", "uninterrupted"),
    [
        ("averaging, middle", "uninterrupted averaging"),
        ("averaging, end", "uninterrupted averaging"),
        ("averaging, optimizer", "uninterrupted averaging"),
        ("stock averaging", "uninterrupted stock averaging"),
        ("counting", "uninterrupted counting"),
    ],
)
def test_raw_and_averaged_weights_of_a_resumed_run_equal_those_of_an_uninterrupted_one(runs, name, uninterrupted):
    assert_same_end(runs, name, uninterrupted)
    assert runs[f"{name}, resumed"]["averaged"] == runs[uninterrupted]["averaged"]
    assert runs[uninterrupted]["averaged"] is not None


def test_averaging_does_not_change_the_raw_weights_and_counted_averages_are_the_result(runs):
    assert runs["uninterrupted averaging"]["sha"] == runs["uninterrupted, 0 workers"]["sha"]
    assert runs["uninterrupted averaging"]["averaged"] != runs["uninterrupted averaging"]["sha"]
    assert runs["uninterrupted counting"]["averaged"] == runs["uninterrupted averaging"]["averaged"]
    assert runs["uninterrupted counting"]["sha"] == runs["uninterrupted averaging"]["averaged"]


def test_a_run_may_be_killed_twice(runs):
    assert runs["twice again"]["status"] == -9
    assert_same_end(runs, "twice", "uninterrupted, 0 workers")


@pytest.mark.parametrize("model", ["one-head", "layer-scale", "stock"])
def test_other_students_resume_exactly(runs, model):
    assert_same_end(runs, model, f"uninterrupted {model}")


@pytest.mark.parametrize("model", ["two-heads", "one-head"])
def test_the_plain_trainer_of_transformers_resumes_our_models_exactly(runs, model):
    assert_same_end(runs, f"plain {model}", f"uninterrupted plain {model}")


def test_without_the_renaming_hook_the_plain_trainer_ends_with_other_weights_and_ours_refuses(runs):
    """The hook is needed because parameters have other names in files than in memory (transformers #48805)."""
    plain = runs["plain without hook, resumed"]
    assert plain.get("error") is None
    assert plain["sha"] != runs["uninterrupted plain two-heads"]["sha"]
    error = runs["without hook, resumed"]["error"]
    assert error.startswith("ResumeError: ")
    assert "missing" in error and "unknown" in error


def test_changed_logging_saving_and_workers_do_not_change_the_weights(runs):
    assert_same_end(runs, "other cadence", "uninterrupted, 0 workers")
    assert list(runs["other cadence, resumed"]["losses"])[-2:] == ["9", "12"]
    assert runs["other cadence, resumed"]["checkpoints"] == [f"checkpoint-{step}" for step in (10, 12, 14, 4, 8)]


def test_a_resumed_run_may_divide_the_same_global_batch_differently(runs):
    resumed, uninterrupted = runs["other batch, resumed"], runs["uninterrupted, 0 workers"]
    assert resumed.get("error") is None
    assert resumed["losses"].keys() == uninterrupted["losses"].keys()
    # Drop path draws random numbers per batch, so only the images are the same, and the losses are similar.
    assert list(resumed["losses"].values())[-1] == pytest.approx(list(uninterrupted["losses"].values())[-1], rel=0.3)


# ---- saved files ----

TOKEN = "hf_" + "SecretSecretSecret" * 2


def trainer_of(folder, model=None, teacher=None, data=None, **changes):
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **changes}
    if fields["save_strategy"] == "no":
        del fields["save_steps"]
    return DistillationTrainer(
        model or student(),
        teacher or conv_teacher(),
        arguments(folder, **fields),
        train_dataset=data or training_data(64),
    )


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def is_pickle(path):
    """Return whether a file is a pickle, by its name or first bytes (protocol 2 and later, or a zip of torch.save)."""
    start = path.read_bytes()[:2]
    return path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt") or start[:1] == b"\x80" or start == b"PK"


def test_the_token_is_in_no_file_and_the_published_folder_holds_no_pickle(tmp_path):
    trainer = trainer_of(tmp_path, hub_token=TOKEN, hub_model_id="someone/something")
    trainer.train()
    trainer.save_model()
    trainer.save_model(tmp_path / "elsewhere")
    trainer.save_state()
    assert trainer.args.hub_token == TOKEN  # still needed for pushing
    files = files_under(tmp_path)
    assert {name for name in files if "/" not in name} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "trainer_state.json",
        "training_args.json",
    }
    for step in (2, 4):
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {
            Path(name).name for name in files if name.startswith(f"checkpoint-{step}/")
        }
    for name in files:
        content = (tmp_path / name).read_bytes()
        assert TOKEN.encode() not in content, name
        assert not name.endswith("training_args.bin")
        assert name.startswith("checkpoint-") or not is_pickle(tmp_path / name), name
    assert is_pickle(tmp_path / "checkpoint-2" / "optimizer.pt")  # so the check above can detect a pickle


def test_the_token_is_not_in_the_temporary_pickle_of_the_arguments(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, hub_token=TOKEN, max_steps=2)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # as if the run were killed before
    trainer.save_model()
    assert "training_args.bin" in files_under(tmp_path)
    assert not any(TOKEN.encode() in (tmp_path / name).read_bytes() for name in files_under(tmp_path))


def test_the_final_save_folds_layer_scale_and_checkpoints_keep_it(tmp_path):
    model = student(layer_scale_init_value=0.5)
    trainer = trainer_of(tmp_path, model, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    for folder, unfolded in ((tmp_path / "checkpoint-4", True), (tmp_path, False)):
        names = load_file(folder / "model.safetensors").keys()
        assert any("layer_scale" in name for name in names) == unfolded
        assert (json.loads((folder / "config.json").read_text())["layer_scale_init_value"] is not None) == unfolded
    stock = StockDistilled.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected, logits = model.eval()(pixels), stock(pixels)
    torch.testing.assert_close(logits.cls_logits, expected.cls_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.distillation_logits, expected.distillation_logits, rtol=1e-5, atol=1e-5)
    assert model.deit.layers[0].layer_scale1.lambda1.requires_grad  # the student in memory is unchanged


class Torn(Exception):
    """Error in the middle of a save."""


@pytest.mark.parametrize("method", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_an_error_while_saving_leaves_the_previous_checkpoint_and_its_leftovers_are_removed(
    tmp_path, method, monkeypatch
):
    trainer = trainer_of(tmp_path)
    save = getattr(trainer, method)

    def torn(output_dir):
        if trainer.state.global_step == 4:
            (Path(output_dir) / "optimizer.pt").write_bytes(b"torn")
            raise Torn
        return save(output_dir)

    monkeypatch.setattr(trainer, method, torn)
    with pytest.raises(Torn):
        trainer.train()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    assert list(tmp_path.glob(f"{STAGING_PREFIX}*"))

    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


def test_an_error_in_the_final_save_leaves_the_previous_model(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, save_strategy="no")
    trainer.save_model()
    before = {name: (tmp_path / name).read_bytes() for name in files_under(tmp_path)}
    trainer.train()

    def torn(folder):
        raise Torn

    monkeypatch.setattr(trainer.processing_class, "save_pretrained", torn)
    with pytest.raises(Torn):
        trainer.save_model()
    assert {name: (tmp_path / name).read_bytes() for name in files_under(tmp_path)} == before
    assert trainer.args.hub_token is None


def test_leftovers_of_a_killed_run_are_removed_before_training(tmp_path):
    for name in ("checkpoint/checkpoint-2", "old-checkpoint-4", "save"):
        (tmp_path / f"{STAGING_PREFIX}{name}").mkdir(parents=True)
        (tmp_path / f"{STAGING_PREFIX}{name}" / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoint-4").mkdir()  # the new one is in place, so the old one can be removed
    (tmp_path / f"{STAGING_PREFIX}run.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    trainer_of(tmp_path, save_strategy="no").train()
    assert files_under(tmp_path) == {"notes.txt"}


def test_a_checkpoint_that_was_being_replaced_is_restored(tmp_path):
    trainer_of(tmp_path, max_steps=3, save_steps=3).train()
    (tmp_path / "checkpoint-3").rename(
        tmp_path / f"{STAGING_PREFIX}old-checkpoint-3"
    )  # as after a kill between the two renames
    trainer = trainer_of(tmp_path, max_steps=3, save_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


def test_save_total_limit_is_respected(tmp_path):
    trainer_of(tmp_path, max_steps=7, save_steps=1, save_total_limit=3).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6", "checkpoint-7"]


def test_a_new_run_in_a_used_folder_keeps_its_own_checkpoints(tmp_path):
    trainer_of(tmp_path, max_steps=6, save_steps=6).train()
    os.utime(tmp_path / "checkpoint-6", (1e9, 1e9))  # long ago
    trainer = trainer_of(tmp_path, save_total_limit=1, learning_rate=1e-4)
    trainer.train()
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    trainer_of(tmp_path, max_steps=2).train()
    before = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    trainer = trainer_of(tmp_path, max_steps=2, learning_rate=1e-2)
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() != before
    assert files_under(tmp_path / "checkpoint-2") >= {"model.safetensors", "trainer_state.json", RUN_FILE}
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


# ---- restored weights ----


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(4)
        self.linear = torch.nn.Linear(48, len(NAMES))

    def forward(self, pixel_values):
        return {"logits": self.linear(self.pool(pixel_values).flatten(1))}


def student_of(kind, seed):
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    if kind == "stock-vit":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return StockViT(StockViTConfig(image_size=SIZE, patch_size=8, **names, **shape))
    if kind == "stock-distilled":
        return StockDistilled(student(seed=seed).config)
    if kind == "convnext":
        config = ConvNextConfig(image_size=SIZE, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, **names)
        return ConvNextForImageClassification(config)
    if kind == "module":
        return Network()
    scale = {"layer_scale_init_value": 0.1} if kind == "layer-scale" else {}
    return student(kind != "one-head", seed, **scale)


KINDS = ["two-heads", "one-head", "layer-scale", "stock-vit", "stock-distilled", "convnext", "module"]


class Restored(TrainerCallback):
    """Callback that keeps the weights with which training begins."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_restores_every_weight_of_any_student(tmp_path, kind):
    first = trainer_of(tmp_path, student_of(kind, 0), learning_rate=1e-2, max_steps=3, save_steps=3)
    first.train()
    second = trainer_of(tmp_path, student_of(kind, 1), learning_rate=1e-2, max_steps=3, save_steps=3)
    before = {name: tensor.clone() for name, tensor in second.model.state_dict().items()}
    restored = Restored()
    second.add_callback(restored)
    second.train(resume_from_checkpoint=True)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(restored.weights[name], tensor), name
    assert any(not torch.equal(before[name], tensor) for name, tensor in restored.weights.items())


def test_resuming_a_finished_run_trains_no_further_step(tmp_path):
    first = trainer_of(tmp_path, max_steps=3, save_steps=3)  # in the middle of an epoch
    first.train()
    second = trainer_of(tmp_path, student(seed=1), max_steps=3, save_steps=3)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 3
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    second.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "checkpoint-3/model.safetensors").read_bytes()


@pytest.mark.parametrize("case", ["missing", "unknown"])
def test_a_checkpoint_that_does_not_restore_the_model_is_refused(tmp_path, case):
    trainer_of(tmp_path, max_steps=3).train()
    file = tmp_path / "checkpoint-3" / "model.safetensors"
    weights = load_file(file)
    if case == "missing":
        del weights["deit.encoder.layer.1.intermediate.dense.weight"]
    else:
        weights["deit.encoder.layer.2.intermediate.dense.weight"] = torch.zeros(2)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ResumeError, match=r"1 weights \w+ missing" if case == "missing" else r"1 weights \w+ unknown"):
        trainer_of(tmp_path, max_steps=3).train(resume_from_checkpoint=True)


def test_an_incomplete_newest_checkpoint_is_ignored(tmp_path):
    trainer_of(tmp_path).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    trainer = trainer_of(tmp_path, max_steps=4)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert (tmp_path / "checkpoint-4" / "trainer_state.json").is_file()


@pytest.mark.parametrize("content", ["nothing", "empty", "incomplete"])
def test_without_a_complete_checkpoint_resuming_is_refused_with_the_folder(tmp_path, content):
    folder = tmp_path / "run"
    if content != "nothing":
        folder.mkdir()
    if content == "incomplete":
        (folder / "checkpoint-2").mkdir()
        (folder / "checkpoint-2" / "config.json").write_text("{}")
    with pytest.raises(ResumeError, match="(?i)no complete checkpoint in .*run"):
        trainer_of(folder).train(resume_from_checkpoint=True)


# ---- another run is refused ----


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    trainer_of(folder, max_steps=4, save_steps=2, save_total_limit=5).train()
    return folder


def other_teacher():
    network = conv_teacher()
    network.classifier.weight.data[0, 0] += 1e-3
    return network


def one_image_fewer():
    return training_data(63)


def another_image():
    return training_data(64, seed=1)


def another_seed():
    data = training_data(64)
    data.seed = 5
    return data


CHANGED = {
    "images": ({"data": one_image_fewer}, {}, "data.images: 64 in the checkpoint, 63 now"),
    "fingerprint": ({"data": another_image}, {}, "data.fingerprint: '64-0' in the checkpoint, '64-1' now"),
    "crop": (
        {"data": lambda: training_data(64, crop_scale=(0.2, 1.0))},
        {},
        "data.augmentation.crop_scale: [0.5, 1.0] in the checkpoint, [0.2, 1.0] now",
    ),
    "view-size": ({"data": lambda: training_data(64, view_size=(20, 20))}, {}, "data.augmentation.view_size"),
    "data-seed": ({"data": another_seed}, {}, "data.seed: 0 in the checkpoint, 5 now"),
    "drop-path": (
        {"model": lambda: student(drop_path_rate=0.1)},
        {},
        "model.drop_path_rate: 0.0 in the checkpoint, 0.1",
    ),
    "depth": ({"model": lambda: student(num_hidden_layers=3)}, {}, "model.num_hidden_layers: 2 in the checkpoint, 3"),
    "heads": (
        {"model": lambda: student(two_heads=False)},
        {},
        "model.class: 'DeiTForImageClassificationWithTeacher' in the checkpoint, 'ViTForImageClassification' now",
    ),
    "layer-scale": (
        {"model": lambda: student(layer_scale_init_value=0.1)},
        {},
        "model.layer_scale_init_value: nothing",
    ),
    "teacher-weight": ({"teacher": other_teacher}, {}, "teacher.fingerprint"),
    "teacher-pixels": ({"teacher": lambda: Teacher(conv_teacher(), image_size=24)}, {}, "teacher.fingerprint"),
    "learning-rate": ({}, {"learning_rate": 1e-3}, "recipe.learning_rate: 0.0005 in the checkpoint, 0.001 now"),
    "weight-decay": ({}, {"weight_decay": 0.1}, "recipe.weight_decay: 0.05 in the checkpoint, 0.1 now"),
    "schedule": (
        {},
        {"lr_scheduler_type": "cosine"},
        "recipe.lr_scheduler_type: 'constant' in the checkpoint, 'cosine'",
    ),
    "warm-up": ({}, {"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"}, "recipe.warmup_steps"),
    "length": ({}, {"max_steps": 6}, "recipe.max_steps: 4 in the checkpoint, 6 now"),
    "mode": ({}, {"distillation_type": "soft"}, "recipe.distillation_type: 'hard' in the checkpoint, 'soft' now"),
    "alpha": ({}, {"distillation_alpha": 0.3}, "recipe.distillation_alpha: 0.5 in the checkpoint, 0.3 now"),
    "views": ({}, {"num_views": 2}, "recipe.num_views: nothing in the checkpoint, 2 now"),
    "smoothing": ({}, {"label_smoothing_factor": 0.1}, "recipe.label_smoothing_factor"),
    "base-loss": ({}, {"base_loss": "binary_cross_entropy"}, "recipe.base_loss"),
    "precision": ({}, {"bf16": True}, "recipe.bf16: False in the checkpoint, True now"),
    "run-seed": ({}, {"seed": 7}, "recipe.seed: 42 in the checkpoint, 7 now"),
    "batch": ({}, {"per_device_train_batch_size": 4}, "recipe.global_batch_size: 8 in the checkpoint, 4 now"),
    "accumulation": ({}, {"gradient_accumulation_steps": 2}, "recipe.global_batch_size: 8 in the checkpoint, 16 now"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_resuming_another_run_is_refused_and_the_differing_field_is_named(earlier_run, tmp_path, case):
    made, changes, message = CHANGED[case]
    trainer = trainer_of(tmp_path, **{name: make() for name, make in made.items()}, **changes)
    with pytest.raises(ResumeError) as caught:
        trainer.train(resume_from_checkpoint=str(earlier_run / "checkpoint-2"))
    assert message in str(caught.value)
    assert str(earlier_run / "checkpoint-2") in str(caught.value)
    assert "output_dir" in str(caught.value)
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"logging_strategy": "epoch"},
        {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9},
        {"save_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"hub_token": TOKEN, "hub_model_id": "someone/something"},
        {"load_best_model_at_end": True, "save_strategy": "no"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_arguments_that_do_not_change_what_is_trained_may_change(earlier_run, tmp_path, changes):
    args = arguments(tmp_path, **{"max_steps": 4, **changes})
    trainer = DistillationTrainer(
        student(seed=3), conv_teacher(), args, train_dataset=training_data(64), eval_dataset=evaluation_data(4)
    )
    trainer.train(resume_from_checkpoint=str(earlier_run / "checkpoint-2"))
    assert trainer.state.global_step == 4
    # Without drop path, the weights depend only on the images of the last two steps, which are the same.
    weights = load_file(earlier_run / "checkpoint-4" / "model.safetensors")
    trainer.save_model(tmp_path / "final")
    for name, tensor in load_file(tmp_path / "final" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-5)


def test_a_users_data_set_of_another_length_is_refused(tmp_path):
    rows = [{"pixel_values": torch.randn(3, SIZE, SIZE), "label": index % 4} for index in range(17)]
    trainer_of(tmp_path, data=rows[:16], max_steps=2).train()
    with pytest.raises(ResumeError, match="data.images.*16.*17"):
        trainer_of(tmp_path, data=rows, max_steps=2).train(resume_from_checkpoint=True)


def test_without_distillation_the_teacher_may_change(tmp_path):
    trainer_of(tmp_path, distillation_type="none", max_steps=2).train()
    trainer = trainer_of(tmp_path, teacher=other_teacher(), distillation_type="none", max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
