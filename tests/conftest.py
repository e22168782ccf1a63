"""What several test modules share: tiny configurations and students, and the shared data."""

import gc
import os
from pathlib import Path

# One thread a process, before torch is loaded: the models are tiny, the suite runs in two processes at once, and the
# processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests never ask the network: a wrong name or path would wait for a Hub that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

import hf_deit

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}
STUDENTS = {
    "distilled": ("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
    "plain": ("ViTConfig", "ViTForImageClassification"),
}


@pytest.fixture(scope="module", autouse=True)
def _freeze_objects():
    """Keep the garbage collector, which every training runs, from examining all objects of earlier modules again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_report_after_training(request, monkeypatch):
    """Trainings of the tests end without a report, which takes a second; tests/inspection tests it."""
    if "inspection" not in request.node.path.parts:
        for module in ("after_training", "api"):
            monkeypatch.setattr(f"hf_deit.inspection.{module}.report_after_training", lambda recipe: None)


@pytest.fixture(scope="session")
def tiny_config():
    """Makes a configuration of 2 layers × 32 wide, ours or stock: `tiny_config(DeiTConfig, num_channels=1)`."""
    return lambda config_class, **fields: config_class(**{**TINY, **fields})


@pytest.fixture(scope="session")
def tiny_student(tiny_config):
    """Makes a tiny "distilled" or "plain" student in evaluation mode: `tiny_student("plain", drop_path_rate=0.1)`.

    Its weights are drawn wide, so that logits are of order 1 and a wrong weight shows in them; `seed=None` keeps the
    model's own initialisation.
    """

    def build(kind, seed=0, **fields):
        config_name, model_name = STUDENTS[kind]
        model = getattr(hf_deit, model_name)(tiny_config(getattr(hf_deit, config_name), **fields)).eval()
        if seed is not None:
            draw_widely(model, seed)
        return model

    return build


@torch.no_grad()
def draw_widely(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        around = 1.0 if "layernorm" in name and name.endswith("weight") or "lambda1" in name else 0.0
        parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of shared data beside the checkout, which only some machines have."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no shared data at {folder}")
    return folder


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` makes of tables goes to a folder of the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
