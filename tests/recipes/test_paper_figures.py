"""The figures of the papers that are kept as data: of recipes that exist, and of models of the size the papers give."""

from pathlib import Path

import torch
import yaml

import hf_deit
from hf_deit import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification
from hf_deit.recipes.reading import load_recipe, recipe_path

FIGURES = yaml.safe_load((Path(hf_deit.__file__).parent / "recipes" / "paper_figures.yaml").read_text(encoding="utf-8"))
# Parameters by the papers' architectures with 1,000 classes, and ImageNet top-1 as design notes of the papers have them.
KNOWN = {
    "deit_tiny_hard_300ep": (5_910_800, [74.5, 73.9, 74.6, 72.2]),
    "deit_base_384_finetune": (87_630_032, [84.5, 84.2, 84.4]),
    "deit3_small_800ep": (22_050_664, [81.4]),
}


def test_the_figures_of_the_papers_belong_to_recipes_and_have_a_source():
    assert FIGURES.keys() == KNOWN.keys()
    for name, entry in FIGURES.items():
        assert recipe_path(name).is_file()
        assert [figure["top1"] for figure in entry["figures"]] == KNOWN[name][1]
        assert all(figure["source"] for figure in entry["figures"])


def test_the_models_of_these_recipes_have_the_size_of_the_papers_models():
    for name, entry in FIGURES.items():
        fields = load_recipe(recipe_path(name), ["--output_dir", "out"]).model
        distilled = entry.get("student", fields.student) != "plain"
        config_class = DeiTConfig if distilled else ViTConfig
        size = fields.image_size[0] if fields.image_size else 224
        config = config_class.from_preset(entry.get("preset", fields.preset), image_size=size, num_labels=1000)
        with torch.device("meta"):
            model = (DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)(config)
        # LayerScale is folded into the published weights, so it does not count here.
        assert model.num_parameters() == KNOWN[name][0]
