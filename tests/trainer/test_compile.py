"""Training with `torch_compile`: losses equal those of an uncompiled run, and files contain no names of the compiler.

The backend is aot_eager: it captures the forward and the backward graph as inductor does, and needs no C++ compiler.
"""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from hf_deit.distillation.teacher import Teacher
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny


def trained(folder, **changes):
    fields = {"save_strategy": "steps", "save_steps": 2, "ema_epochs": 1, "learning_rate": 1e-3, **changes}
    args = tiny.arguments(folder, distillation_type="soft", **fields)
    teacher = Teacher(tiny.conv_teacher())
    trainer = DistillationTrainer(tiny.student(), teacher, args, train_dataset=tiny.training_data())
    trainer.train()
    trainer.save_model()
    return trainer


def weights_in(folder):
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_a_compiled_student_trains_and_saves_like_an_uncompiled_one(tmp_path):
    plain = trained(tmp_path / "plain")
    torch._dynamo.reset()
    counters.clear()
    compiled = trained(tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == 1  # the entire model in one graph
    assert len(tiny.logged(plain, "loss")) == 2
    for name in ("loss", "cls_loss", "distillation_loss"):
        assert tiny.logged(compiled, name) == pytest.approx(tiny.logged(plain, name), abs=1e-5)
    expected, found = weights_in(tmp_path / "plain"), weights_in(tmp_path / "compiled")
    assert list(found) == ["checkpoint-2/ema/model.safetensors", "checkpoint-2/model.safetensors", "model.safetensors"]
    for file, weights in expected.items():
        assert set(found[file]) == set(weights)
        assert not any("_orig_mod" in name for name in found[file])
        for name, weight in weights.items():
            torch.testing.assert_close(found[file][name], weight, atol=1e-4, rtol=0)
