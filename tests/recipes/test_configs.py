"""Every recipe of the package, at a reduced size: the launch command of its header trains two steps on tiny images."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image

import hf_deit
from hf_deit import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)
from hf_deit.cli import main
from hf_deit.cli.commands import build_parser
from hf_deit.cli.common import _recipe_file
from hf_deit.recipes.reading import header, launch_commands, listed_recipes, load_recipe, read_fields
from tests.helpers import tiny

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((Path(hf_deit.__file__).parent / "recipes" / "configs").glob("*.yaml"))
# Preset, student, distillation type and target, epochs and global batch of every recipe whose accuracy a paper reports,
# written by hand a second time.
PAPERS = {
    **{f"deit_{size}_plain_300ep": (size, "plain", "none", None, 300, 1024) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_soft_300ep": (size, "plain", "soft", "class", 300, 1024) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_hard_300ep": (size, "distilled", "hard", None, 300, 1024) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_hard_1000ep": (size, "distilled", "hard", None, 1000, 1024) for size in ("tiny", "small", "base")},
    "deit_base_384_finetune": (None, None, "hard", None, 30, 512),
    "deit_base_plain_384_finetune": (None, None, "none", None, 30, 512),
    **{f"deit_base_{data}": (None, None, "none", None, 1000, 768) for data in ("cifar10", "cifar100", "flowers")},
    "deit3_small_800ep": ("small", "plain", "none", None, 800, 2048),
    "deit3_base_800ep": ("base", "plain", "none", None, 800, 2048),
    "deit3_base_224_finetune": (None, None, "none", None, 20, 512),
}
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
# Only fields that are too large for a test: the student, the pixels, the batch, the workers, the length of the run.
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
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
PATHS = ("data", "model", "teacher", "output_dir")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 36, 0), ("validation", 12, 1)):
        for number, pixels in enumerate(tiny.pixels_of(count, seed, len(NAMES))):
            path = folder / split / NAMES[number % len(NAMES)] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((40, 36)).save(path)
    (folder / "table").mkdir()
    for split in ("train", "validation"):  # the columns of CIFAR-100
        rows = [f"../{path.relative_to(folder)},{path.parent.name},all" for path in sorted(folder.glob(f"{split}/*/*"))]
        (folder / "table" / f"{split}.csv").write_text("\n".join(["img,fine_label,coarse_label", *rows]))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of a distilled and a plain student of 24 px, to fine-tune at 32 px."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {name: SMALL[name] for name in SHAPE if name != "patch_size"}
    for kind, config_class, model_class in (
        ("distilled", DeiTConfig, DeiTForImageClassificationWithTeacher),
        ("plain", ViTConfig, ViTForImageClassification),
    ):
        config = config_class(image_size=24, patch_size=8, id2label=dict(enumerate(NAMES)), **sizes)
        model_class(config).save_pretrained(folder / kind)
        DeiTImageProcessor.for_image_size(24).save_pretrained(folder / kind)
    return folder


def conv_network():
    return tiny.conv_teacher(len(NAMES))


def commands(path):
    """Return the training commands of a header as arguments of `hf-deit`, each with its number of processes."""
    found = []
    for line in launch_commands(path.read_text()):
        words = shlex.split(line)
        processes = 1
        if words[:2] == ["accelerate", "launch"]:
            launch = launch_command_parser().parse_args(words[2:])
            assert (launch.module, launch.training_script) == (True, "hf_deit.cli")
            words, processes = ["hf-deit", *launch.training_script_args], launch.num_processes
        assert words[0] == "hf-deit"
        if words[1] == "train":
            found.append((words[1:], processes))
    return found


def recipe_of(words):
    """Return the recipe of a training command, read as the command line reads it."""
    options, fields = build_parser().parse_known_args(words)
    return load_recipe(_recipe_file(options), fields)


def shrunk(words, path, data, weights, out):
    """Return the command of a header with other sizes and paths. All fields that are not in SMALL are those of the recipe."""
    small = {**SMALL, "data": data, "output_dir": out}
    recipe = recipe_of(words)
    if recipe.model.model is not None:  # the weights have their own shape
        small = {name: value for name, value in small.items() if name not in SHAPE}
        small["model"] = weights / ("plain" if recipe.training.distillation_type == "none" else "distilled")
    if recipe.data.label_column is not None:  # folders have no columns
        small |= {"data": data / "table", "image_column": "img"}
    if not recipe.training.warmup_steps:
        del small["warmup_steps"]  # a constant learning rate has no warm-up
    if recipe.teacher.teacher is not None:
        small["teacher"] = f"{__name__}:conv_network"
    return [*words, *(text for name, value in small.items() for text in (f"--{name}", str(value)))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_of_every_header_trains_two_steps_and_saves_a_model(
    path, data, weights, tmp_path, monkeypatch, capsys
):
    if "pytorch_optimizer" in json.dumps(read_fields(path)):
        pytest.importorskip("pytorch_optimizer", reason="the extra hf_deit[optim] is not installed")
    monkeypatch.chdir(ROOT)  # the commands are for the root of the repository
    words, _ = commands(path)[0]
    assert main(shrunk(words, path, data, weights, tmp_path / "out")) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["steps"] == 2
    assert 0 <= results["eval_accuracy"] <= 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_size"] == 32
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert "base" not in saved
    changed = {*SMALL, *PATHS}
    for name, value in read_fields(path).items():
        if name not in changed:
            assert saved[name] == (
                [value] if isinstance(saved[name], list) and not isinstance(value, list) else value
            ), name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_header_names_a_source_and_a_valid_launch_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    assert any(source in "".join(header(text)) for source in ("arXiv:", "github.com/", "docs/results.md"))
    assert commands(path)
    for words, _ in commands(path):  # each command loads this file, and all of its fields and values are valid
        options, fields = build_parser().parse_known_args(words)
        assert Path(_recipe_file(options)).resolve() == path.resolve()
        load_recipe(_recipe_file(options), fields)


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_of_a_paper_has_the_settings_and_the_batch_of_the_paper(name):
    path = next(path for path in RECIPES if path.stem == name)
    ((words, processes),) = commands(path)
    recipe = recipe_of(words)
    args = recipe.training
    preset, student, kind, target, epochs, global_batch = PAPERS[name]
    assert (recipe.model.preset, recipe.model.student) == (preset, student)
    assert (args.distillation_type, args.distillation_target) == (kind, target)
    assert args.distillation_alpha == {"none": 0.0, "soft": 0.1, "hard": 0.5}[kind]
    assert args.num_train_epochs == epochs
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * processes == global_batch
    assert (recipe.teacher.teacher is None) == (kind == "none")
    assert (recipe.model.model is None) == (preset is not None)
    if "300ep" in name or "1000ep" in name or "cifar" in name or "800ep" in name:
        assert args.warmup_steps * epochs == pytest.approx(5, abs=0.01)  # epochs of warm-up
    if args.scale_learning_rate:
        assert args.learning_rate * global_batch / 512 == pytest.approx(1e-3)


def test_every_recipe_except_the_small_ones_is_of_a_paper():
    assert {path.stem for path in RECIPES} - set(PAPERS) == {"clothing10_64", "finetune_96", "from_scratch_64"}


# Accuracies in Tables 3, 5 and 7 of the DeiT paper, and of the DeiT III models.
ACCURACIES = {
    **{f"deit_{size}_plain_300ep": top for size, top in (("tiny", 72.2), ("small", 79.8), ("base", 81.8))},
    **{f"deit_{size}_soft_300ep": top for size, top in (("tiny", 72.2), ("small", 79.8), ("base", 81.8))},
    **{f"deit_{size}_hard_300ep": top for size, top in (("tiny", 74.5), ("small", 81.2), ("base", 83.4))},
    **{f"deit_{size}_hard_1000ep": top for size, top in (("tiny", 76.6), ("small", 82.6), ("base", 84.2))},
    "deit_base_384_finetune": 84.5,
    "deit_base_plain_384_finetune": 83.1,
    "deit_base_cifar10": 99.1,
    "deit_base_cifar100": 90.8,
    "deit_base_flowers": 98.4,
    "deit3_small_800ep": 81.4,
    "deit3_base_800ep": 83.8,
    "deit3_base_224_finetune": 83.8,
}


def test_the_list_shows_the_accuracies_of_the_papers_and_no_others():
    listed = {name: accuracy for name, _, accuracy in listed_recipes()}
    assert listed == {path.stem: f"{ACCURACIES[path.stem]} %" if path.stem in ACCURACIES else "–" for path in RECIPES}
    for path in RECIPES:
        if path.stem in ACCURACIES:
            assert "not re-measured here" in path.read_text()


def test_the_wheel_contains_the_recipes_and_only_the_package():
    # hatchling includes the entire folder of a package, except files that git ignores.
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["hf_deit"]}
    assert RECIPES and all(path.is_relative_to(ROOT / "hf_deit") for path in RECIPES)
    assert not [line for line in (ROOT / ".gitignore").read_text().splitlines() if "yaml" in line or "recipes" in line]
