"""Accuracies of papers in paper_figures.yaml: their recipes exist, and their models have the size that the papers state."""

from pathlib import Path

import torch
import yaml

import hf_deit
from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification
from hf_deit.recipes.reading import load_recipe, recipe_path

FIGURES = yaml.safe_load((Path(hf_deit.__file__).parent / "recipes" / "paper_figures.yaml").read_text(encoding="utf-8"))
# Number of parameters of the papers' architectures with 1,000 classes, and ImageNet top-1 accuracies of the papers.
KNOWN = {
    "deit_tiny_hard_300ep": (5_910_800, [74.5, 73.9, 74.6, 72.2]),
    "deit_base_384_finetune": (87_630_032, [84.5, 84.2, 84.4]),
    "deit3_small_800ep": (22_050_664, [81.4]),
}


def test_every_entry_is_of_a_recipe_and_every_accuracy_has_a_source():
    assert FIGURES.keys() == KNOWN.keys()
    for name, entry in FIGURES.items():
        assert recipe_path(name).is_file()
        assert [figure["top1"] for figure in entry["figures"]] == KNOWN[name][1]
        assert all(figure["source"] for figure in entry["figures"])


def test_the_models_of_the_recipes_have_as_many_parameters_as_in_the_papers():
    for name, entry in FIGURES.items():
        fields = load_recipe(recipe_path(name), ["--output_dir", "out"]).model
        distilled = entry.get("student", fields.student) != "plain"
        config_class = DeiTConfig if distilled else ViTConfig
        size = fields.image_size[0] if fields.image_size else 224
        config = config_class.from_preset(entry.get("preset", fields.preset), image_size=size, num_labels=1000)
        with torch.device("meta"):
            model = (DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)(config)
        # LayerScale is folded into the published weights, so its parameters are not counted.
        assert model.num_parameters() == KNOWN[name][0]
