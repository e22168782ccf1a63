"""Tests of the files in training/: the configurations for accelerate and the Slurm script."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from hf_deit.recipes.reading import load_recipe, recipe_names, recipe_parser, recipe_path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "training" / "accelerate"
SBATCH = ROOT / "training" / "slurm" / "train.sbatch"


def environment(**more):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **fixed, **more}


@pytest.mark.parametrize(
    ("name", "kind", "processes", "launcher"),
    [
        ("cpu", "MULTI_GPU", 2, "multi_gpu"),
        ("single_gpu", "NO", 1, None),
        ("ddp", "MULTI_GPU", 8, "multi_gpu"),
        ("fsdp", "FSDP", 8, "use_fsdp"),
    ],
)
def test_accelerate_reads_each_configuration_and_launches_accordingly(name, kind, processes, launcher):
    path = str(CONFIGS / f"{name}.yaml")
    config = load_config_from_file(path)  # accelerate raises an error for unknown keys
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (kind, processes, "no")
    words = ["--config_file", path, "training/run_distillation.py", "--recipe", "x"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert [way for way in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(args, way)] == [launcher] * (
        launcher is not None
    )
    assert args.use_cpu is (name == "cpu")
    if name == "fsdp":  # the keys of FSDP are options of the launcher
        options = {action.dest for action in launch_command_parser()._actions}
        assert set(config.fsdp_config) <= options


def test_each_configuration_for_accelerate_contains_its_own_command():
    assert {path.name for path in CONFIGS.iterdir()} == {"cpu.yaml", "single_gpu.yaml", "ddp.yaml", "fsdp.yaml"}
    for path in CONFIGS.iterdir():
        assert f"--config_file training/accelerate/{path.name} training/run_distillation.py" in path.read_text()


def test_without_an_accelerator_use_cpu_is_set_but_not_saved_in_the_recipe():
    # Without use_cpu, each of several processes would train on its own. A launch by hand (17 s) reports "processes": 2.
    recipe = load_recipe(None, ["--distillation_type", "none"])
    assert recipe.training.use_cpu is not torch.accelerator.is_available()
    assert "use_cpu" not in recipe.to_dict()


def test_all_recipes_and_fields_in_the_docs_exist():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    start, rest = text.split("## All recipes")
    named = set(re.findall(r"`((?:deit|clothing|finetune|from)\w+)`", start))
    assert len(named) >= 15 and named <= set(recipe_names())
    worth = rest.split("## What each field is worth in the paper")[1].split("## Every field")[0]
    rows = re.findall(r"^\| (`.*?) \|", worth, re.MULTILINE)
    fields = {name for row in rows for name in re.findall(r"`([a-z]\w+)`", row)}
    assert len(fields) > 30
    known = {action.dest for action in recipe_parser()._actions}
    known |= {"activation_checkpointing"}  # from transformers 5.23 on; the row also states the earlier name
    assert fields - known == set()


# ---- Slurm ----


@pytest.fixture
def cluster(tmp_path):
    """Return an environment that replaces the commands of Slurm and `accelerate`.

    `srun` runs its command for two machines, one after the other, and `accelerate` records its arguments.
    """
    programs = {
        "scontrol": 'echo "node7"; echo "node8"',
        "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        "accelerate": 'printf "%s\\n" "$@" "" >> "$WORDS"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    return environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", WORDS=str(tmp_path / "words"), **slurm)


def submitted(cluster, *words):
    return subprocess.run(["bash", str(SBATCH), *words], env=cluster, cwd=ROOT, capture_output=True, text=True)


def test_the_slurm_script_has_no_syntax_errors():
    done = subprocess.run(["bash", "-n", str(SBATCH)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_slurm_script_launches_one_training_on_all_machines(cluster):
    text = SBATCH.read_text()
    example = re.search(r"sbatch training/slurm/train.sbatch (--recipe .*)", text)[1].split()
    done = submitted(cluster, *example, "--output_dir", "a folder")
    assert done.returncode == 0, done.stderr
    launches = [block.split("\n") for block in Path(cluster["WORDS"]).read_text().strip("\n").split("\n\n")]
    assert len(launches) == 2
    for rank, words in enumerate(launches):
        assert words[0] == "launch"
        args = launch_command_parser().parse_args(words[1:])
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, rank)
        assert (args.main_process_ip, args.main_process_port) == ("node7", 24711)
        assert (ROOT / args.config_file).is_file() and (ROOT / args.training_script).is_file()
        assert args.training_script_args[:2] == example[:2] == ["--recipe", "deit_base_hard_300ep"]
        recipe = load_recipe(recipe_path(example[1]), args.training_script_args[2:])
        assert recipe.training.output_dir == "a folder"
        # The batch size per process in the header of the script gives the global batch size of the paper.
        per_process = int(re.search(r"--per_device_train_batch_size (\d+)", text)[1])
        assert per_process * args.num_processes == 1024


def test_the_slurm_script_does_not_start_without_fields_or_outside_slurm(cluster):
    assert "Give the fields" in submitted(cluster).stderr
    del cluster["SLURM_GPUS_ON_NODE"]
    done = submitted(cluster, "--recipe", "x")
    assert done.returncode != 0 and "not under Slurm" in done.stderr
    assert not Path(cluster["WORDS"]).exists()
