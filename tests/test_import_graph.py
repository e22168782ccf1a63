"""Who imports whom: no cycle, leaves without a Trainer, a root that costs nothing, and every public name without extras."""

import ast
import graphlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_deit

PACKAGE = Path(hf_deit.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}

# They run the Trainer, or the command line; all the others are written against tensors, files and configurations.
TOP = {
    "atomic_trainer",
    "averaging_trainer",
    "loading_trainer",
    "optimizing_trainer",
    "publishing_trainer",
    "trainer",
    "cli",
}
LEAVES = [
    "ablation",
    "answers",
    "augmentation",
    "building",
    "cache_building",
    "cache_layout",
    "cache_locks",
    "cache_merging",
    "cache_writing",
    "cached_answers",
    "card_rows",
    "checkpoint_loading",
    "checkpointing",
    "checks",
    "cli_parser",
    "configuration_deit",
    "contact_sheet",
    "convert_checkpoint",
    "data",
    "data_checks",
    "ema",
    "errors",
    "exporting",
    "fine_tuning",
    "image_ops",
    "image_processing_deit",
    "images",
    "kept_views",
    "label_names",
    "losses",
    "metrics",
    "mixing",
    "model_card",
    "modeling_deit",
    "networks",
    "optim",
    "pixels",
    "places",
    "pretrained",
    "published",
    "publishing",
    "recipe_files",
    "run_data",
    "run_facts",
    "sampling",
    "shared_caches",
    "sources",
    "space_template",
    "state_dicts",
    "statements",
    "streams",
    "student",
    "sweep",
    "tables",
    "teacher",
    "teacher_cache",
    "terms",
    "training_args",
    "weights_files",
    "worker_processes",
]
PUBLIC = [
    "DeiTConfig",
    "DeiTForImageClassificationWithTeacher",
    "DeiTImageProcessor",
    "DeiTModel",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "Teacher",
    "ViTConfig",
    "ViTForImageClassification",
    "convert",
    "load_checkpoint",
    "register_auto_classes",
]
HEAVY = [
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "sklearn",
    "accelerate",
    "datasets",
    "evaluate",
    "numpy",
    "PIL",
    "optuna",
]
OPTIONAL = ["torchvision", "timm", "sklearn", "onnx", "onnxscript", "onnxruntime", "peft"]


def imports(tree):
    """Every import of a module, at its top and inside its functions, as dotted names from the root.

    `from .losses import base_loss` gives hf_deit.losses; `from . import recipe` hf_deit.recipe, if there is such a module,
    else the root itself: hf_deit.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"hf_deit.{node.module or ''}".rstrip(".") if node.level else node.module
            if module == "hf_deit":
                yield from (f"hf_deit.{alias.name}" if alias.name in MODULES else module for alias in node.names)
            else:
                yield module


def ours(name):
    """The modules of this package that the module `name` imports."""
    dotted = [module.split(".") for module in imports(MODULES[name])]
    return {parts[1] for parts in dotted if parts[0] == "hf_deit" and len(parts) > 1}


def reached_from(name):
    seen, waiting = set(), [name]
    while waiting:
        found = ours(waiting.pop()) - seen
        seen |= found
        waiting += [module for module in found if module in MODULES]
    return seen


def in_a_new_process(program):
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_module_imports_itself_by_way_of_others():
    # Imports inside functions count as well, those for type checkers in __init__ do not: nothing imports the root.
    graph = {name: ours(name) & MODULES.keys() for name in MODULES if name != "__init__"}
    assert any(graph.values())
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle


@pytest.mark.parametrize("name", list(MODULES))
def test_what_a_module_imports_from_its_neighbours_exists(name):
    # An import inside a function fails only when somebody calls it.
    assert ours(name) <= MODULES.keys()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            neighbour = importlib.import_module(f"hf_deit.{node.module}")
            assert not [alias.name for alias in node.names if not hasattr(neighbour, alias.name)]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_no_module_imports_the_root_or_what_a_person_launches(name):
    for module in imports(MODULES[name]):
        assert module != "hf_deit", f"{name} imports the package root"
        assert module.split(".")[0] not in {"training", "tests", "benchmarks"}


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_knows_nothing_of_the_trainer_and_the_command_line(name):
    assert not reached_from(name) & TOP


def test_only_the_command_line_prints():
    printing = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_at_the_root(name):
    assert name in hf_deit.__all__
    assert name in dir(hf_deit)
    assert getattr(hf_deit, name).__module__.startswith("hf_deit.")


def test_the_root_promises_what_its_modules_define():
    for name in hf_deit.__all__:
        getattr(hf_deit, name)
    with pytest.raises(AttributeError, match="no attribute 'DeitConfig'"):
        hf_deit.DeitConfig  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    seen = {
        alias.name
        for node in ast.walk(MODULES["__init__"])
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert seen == set(hf_deit.__all__)


def test_importing_the_root_imports_nothing_heavy():
    program = "import sys, hf_deit; print(*sys.modules)"
    loaded = {module.split(".")[0] for module in in_a_new_process(program)}
    assert "hf_deit" in loaded
    assert not loaded & set(HEAVY)


def test_every_public_name_can_be_had_without_the_optional_packages():
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        "import hf_deit\nprint(*[name for name in hf_deit.__all__ if getattr(hf_deit, name)])\n"
    )
    assert set(in_a_new_process(program)) == set(hf_deit.__all__)
