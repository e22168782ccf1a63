"""Every recipe of the package, as it stands but for its size: two steps on tiny images, and what its header promises."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from scripts import tiny

import hf_deit
from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTImageProcessor
from hf_deit.recipe import load_recipe
from hf_deit.runs import train

RECIPES = sorted((Path(hf_deit.__file__).parent / "recipes").glob("*.yaml"))
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
# Only what is too large for a test: the student, the pixels, the batch, the workers, the length of the run.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
    "view_size": 32,
    "per_device_train_batch_size": 12,
    "per_device_eval_batch_size": 12,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "max_steps": 2,
    "warmup_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 36, 0), ("validation", 12, 1)):
        for number, pixels in enumerate(tiny.pixels_of(count, seed, len(NAMES))):
            path = folder / split / NAMES[number % len(NAMES)] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((40, 36)).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A trained distilled student of 24 px, to fine-tune at 32."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {
        name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    config = DeiTConfig(image_size=24, patch_size=8, id2label=dict(enumerate(NAMES)), **sizes)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    DeiTImageProcessor.for_image_size(24).save_pretrained(folder)
    return folder


def conv_network():
    return tiny.conv_teacher(len(NAMES))


def small_run(path, data, weights, out):
    """The recipe's run in small: whatever is not in SMALL is the recipe's own."""
    small = {**SMALL, "data": data, "output_dir": out}
    if "student" not in yaml.safe_load(path.read_text()):  # it starts from weights, which bring their shape
        shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        small = {name: value for name, value in small.items() if name not in shape} | {"model": weights}
    if load_recipe(path, ["--output_dir", str(out)]).training.distillation_type != "none":
        small["teacher"] = f"{__name__}:conv_network"
    return load_recipe(path, [text for name, value in small.items() for text in (f"--{name}", str(value))])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_recipe_run_and_save_a_model(path, data, weights, tmp_path):
    if "pytorch_optimizer" in path.read_text():
        pytest.importorskip("pytorch_optimizer", reason="the extra hf_deit[optim] is not installed")
    metrics = train(small_run(path, data, weights, tmp_path / "out"))
    assert 0 <= metrics["eval_accuracy"] <= 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["steps"] == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_size"] == 32
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    changed = {*SMALL, "data", "output_dir", "model", "teacher"}
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in changed:
            assert saved[name] == (
                [value] if isinstance(saved[name], list) and not isinstance(value, list) else value
            ), name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_where_it_is_from_and_how_it_is_launched(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"--config hf_deit/recipes/{path.name}" in header
    assert "arXiv:" in header or "README" in header


@pytest.mark.parametrize(
    ("name", "processes", "global_batch"),
    [("deit_tiny_hard_300ep", 8, 1024), ("deit_base_384_finetune", 8, 512), ("deit3_small_800ep", 8, 2048)],
)
def test_the_launch_commands_give_the_papers_batch(name, processes, global_batch):
    path = next(path for path in RECIPES if path.stem == name)
    args = load_recipe(path, ["--output_dir", "out"]).training
    assert f"--num_processes {processes}" in path.read_text()
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * processes == global_batch
