"""Tests of imports: the order of the wings, no cycles, a fast `import hf_deit`, and no need for optional packages."""

import ast
import graphlib
import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import hf_deit

PACKAGE = Path(hf_deit.__file__).parent
# From the lowest to the highest: a module may import modules of its own wing and of the wings before it.
WINGS = ["root", "models", "data", "hub", "distillation", "trainer", "recipes", "inspection", "experiments", "cli"]
ROOT_MODULES = {"errors", "files", "fingerprints", "hub_access", "losses", "sizes"}
# Modules that only import names from a wing. They are kept because files of users contain their names.
FORWARDING = {"networks"}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): (path, ast.parse(path.read_text(encoding="utf-8")))
    for path in sorted(PACKAGE.rglob("*.py"))
    if "space_template" not in path.parts  # a separate program, which must not import the package
}
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
OPTIONAL = ["torchvision", "timm", "sklearn", "matplotlib", "onnx", "onnxscript", "onnxruntime", "peft"]


def wing_of(name):
    """Return the wing of a module: "data" for `hf_deit.data.views`, and "root" for `hf_deit.losses`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else "root"


def imported_modules(name):
    """Return the modules of this package that a module imports, including imports inside functions."""
    path, tree = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in FILES else module)
    return {module for module in found if module.split(".")[0] == "hf_deit"}


def in_a_new_process(program, *arguments):
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_module_imports_only_its_own_wing_and_lower_ones():
    assert {name.split(".")[1] for name in FILES if name.count(".") == 1} == {*WINGS[1:], *ROOT_MODULES, *FORWARDING}
    upward = [
        f"{name} imports {module}"
        for name in FILES
        if name != "hf_deit" and name.removeprefix("hf_deit.") not in FORWARDING
        for module in imported_modules(name)
        if module == "hf_deit" or WINGS.index(wing_of(module)) > WINGS.index(wing_of(name))
    ]
    assert upward == []


def test_there_are_no_import_cycles():
    # Imports inside functions are included. The root is left out: its imports are for type checkers, and no module
    # imports it.
    graph = {name: imported_modules(name) - {name} for name in FILES if name != "hf_deit"}
    assert any(graph.values())
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle


def test_all_names_in_relative_imports_exist():
    # A wrong import inside a function would fail only when the function is called.
    missing = []
    for name, (path, tree) in FILES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                neighbour = importlib.import_module("." * node.level + (node.module or ""), package)
                missing += [f"{name}: {alias.name}" for alias in node.names if not hasattr(neighbour, alias.name)]
    assert missing == []


def test_only_the_command_line_prints():
    printing = {
        wing_of(name)
        for name, (_, tree) in FILES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"cli"}


def test_names_in_files_of_users_can_still_be_imported():
    from hf_deit.cli import main
    from hf_deit.distillation.factories import build_network

    assert callable(main)
    network = build_network("hf_deit.networks:efficientnet_lite0")  # in the teacher.json of saved teachers
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008


def test_public_names_can_be_imported_from_the_root():
    for name in PUBLIC:
        assert name in hf_deit.__all__
        assert name in dir(hf_deit)
        assert getattr(hf_deit, name).__module__.startswith("hf_deit.")


def test_all_names_of_the_root_exist_and_an_unknown_name_raises_an_error():
    for name in hf_deit.__all__:
        getattr(hf_deit, name)
    with pytest.raises(AttributeError, match="hf_deit.*'DeitConfig'"):
        hf_deit.DeitConfig  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    imported = {
        alias.name
        for node in ast.walk(FILES["hf_deit"][1])
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imported == set(hf_deit.__all__)


def test_importing_the_root_imports_no_large_packages():
    program = "import sys, hf_deit; print(*sys.modules)"
    loaded = {module.split(".")[0] for module in in_a_new_process(program)}
    assert "hf_deit" in loaded
    assert not loaded & set(HEAVY)


# Large packages, and the trainer, which short commands must not import.
SLOW = ("datasets", "evaluate", "peft", "sklearn", "pandas", "pyarrow", "torchvision", "hf_deit.trainer.trainer")
SHORT_COMMANDS = f"""
import contextlib, sys
# If these two are installed, transformers imports them with every model. Here, they cannot be imported.
sys.modules.update(scipy=None, accelerate=None)
import hf_deit
from hf_deit.cli import main

def loaded():
    return {{name for name in {SLOW} if name in sys.modules}}

folder, out = sys.argv[1:]
found = dict()
with contextlib.redirect_stdout(sys.stderr):
    with contextlib.suppress(SystemExit):
        main(["--help"])
    found["help"] = loaded() | ({{"torch", "transformers", "numpy"}} & set(sys.modules))
    assert main(["convert", folder, out + "/model"]) == 0
    found["convert"] = loaded()
    from PIL import Image
    Image.new("RGB", (20, 20)).save(out + "/image.png")
    assert main(["predict", out + "/model", out + "/image.png"]) == 0
    found["predict"] = loaded()
    for name in ("DeiTImageProcessor", "DeiTModel", "ViTForImageClassification", "register_auto_classes"):
        getattr(hf_deit, name)
    found["models"] = loaded()
for when, names in found.items():
    print(when, *sorted(names))
"""


@pytest.mark.skipif(
    Version(version("transformers")) < Version("5.18"),
    reason="transformers 5.17 imports scikit-learn, SciPy and pandas with every model where they are installed",
)
def test_short_commands_and_models_do_not_import_metrics_data_sets_or_the_trainer(tmp_path):
    folder = PACKAGE.parent / "tests" / "fixtures" / "published" / "distilled"
    assert in_a_new_process(SHORT_COMMANDS, folder, tmp_path) == ["help", "convert", "predict", "models"]


@pytest.fixture(scope="module")
def without_optional_packages():
    """Return what a process without the optional packages prints: whether evaluate is imported, and the public names."""
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        "import hf_deit, hf_deit.recipes.train, hf_deit.trainer.metrics as metrics, numpy as np\n"
        "names = [name for name in hf_deit.__all__ if getattr(hf_deit, name)]\n"
        "print('evaluate' in sys.modules)\n"
        "metrics.summarize({'label': np.array([0]), 'prediction': np.array([0])})\n"
        "print('evaluate' in sys.modules)\n"
        "print(*names)\n"
    )
    return in_a_new_process(program)


def test_the_trainer_imports_evaluate_only_when_a_metric_is_computed(without_optional_packages):
    assert without_optional_packages[:2] == ["False", "True"]


def test_all_public_names_can_be_imported_without_the_optional_packages(without_optional_packages):
    assert set(without_optional_packages[2:]) == set(hf_deit.__all__)
