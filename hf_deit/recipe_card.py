"""The page of a model that nobody trained here: a recipe, and what the paper reports of it, marked as the paper's.

The figures are in paper_figures.yaml, the layout is recipe_card.md.jinja, words and rows are card_rows.py's. The card of a
run is model_card.py's.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from . import card_rows
from .checkpointing import staged_files
from .configuration_deit import DeiTConfig, ViTConfig
from .model_card import MARKER, statements_of
from .modeling_deit import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from .places import check_place
from .recipe import load_recipe
from .recipe_files import recipe_names, recipe_path
from .run_facts import CardError, RunFacts
from .statements import Statements

FIGURES = Path(__file__).with_name("paper_figures.yaml")
TEMPLATE = Path(__file__).with_name("recipe_card.md.jinja")
_CLASSES = 1000


def is_recipe(path: str | Path) -> bool:
    """Whether a card of a recipe is meant, by its file or its name, not one of a model's folder."""
    return Path(path).suffix in (".yaml", ".yml") or _is_name(path)


def _is_name(path: str | Path) -> bool:
    return str(path) in recipe_names() and not Path(path).exists()


def _fields(path: str | Path) -> dict[str, Any]:
    return load_recipe(path, ["--output_dir", "out"]).to_dict()


def paper_figures(recipe: str | Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Gives what is recorded of a recipe's paper.

    Args:
        recipe: Its file.
        fields: What that file says, defaults included.

    Raises:
        CardError: Nothing is recorded, or it says something else than the package's recipe of that name.
    """
    known = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    name = Path(recipe).stem
    if name not in known:
        raise CardError(
            f"No paper's figures are recorded for {name!r}: there are some for {', '.join(sorted(known))}. "
            "The card of a model you trained is rendered from its folder: hf-deit card FOLDER."
        )
    own = _fields(recipe_path(name))
    other = [f"  {field}: {fields[field]!r}, and {own[field]!r} there" for field in own if fields[field] != own[field]]
    if other:
        rows = "\n".join(other)
        raise CardError(
            f"{recipe} is not the recipe {name} of the package, so the paper's figures are not of it:\n{rows}\nTrain by it and "
            f"render the card of the model (hf-deit card FOLDER), or give the recipe by its name: hf-deit card {name}."
        )
    return known[name]


def _described(fields: dict[str, Any], paper: dict[str, Any]) -> RunFacts:
    """Configuration and number of parameters of the model that a recipe would give; no weight is made."""
    student = paper.get("student", fields.get("student"))
    size = fields["image_size"][0] if fields.get("image_size") else 224
    plain = student == "plain"
    config_class, model_class = (
        (ViTConfig, ViTForImageClassification) if plain else (DeiTConfig, DeiTForImageClassificationWithTeacher)
    )
    config = config_class.from_preset(
        paper.get("preset", fields.get("preset")), image_size=size, patch_size=fields["patch_size"], num_labels=_CLASSES
    )
    with torch.device("meta"):
        model = model_class(config)
    described = config.to_dict() | {"architectures": [model_class.__name__]}
    return RunFacts(described, fields, {"run": {"parameters": model.num_parameters()}})


def render_recipe_card(path: str | Path, statements: Statements | None = None) -> ModelCard:
    """Renders the card of a recipe. Its metadata hold no result: none was measured, and no weights come with it.

    Raises:
        CardError: No paper's figures are recorded for it, or it is another recipe of that name.
        RecipeError: It cannot be read.
    """
    path = recipe_path(str(path)) if _is_name(path) else Path(path)
    fields = _fields(path)
    paper = paper_figures(path, fields)
    facts = _described(fields, paper)
    stated = (statements or Statements()).or_else(Statements(base_model=paper.get("base_model")))
    stated = stated.without_withdrawn()
    metadata = ModelCardData(
        **stated.metadata(),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=card_rows.tags(fields),
    )
    measured_only_of_runs = ("teacher", "optimizer steps", "parameters that learned", "time of the last launch")
    rows = [row for row in card_rows.training_rows(facts, fields) if row[0] not in measured_only_of_runs]
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        marker=MARKER,
        title=card_rows.plain(path.stem),
        recipe_file=path.name,
        overview=[*card_rows.overview(facts, fields, stated), *_stated_of_data(stated)],
        paper=paper["paper"],
        reporter=paper.get("reporter", "the paper"),
        figures=paper["figures"],
        teacher=paper["teacher"],
        training=rows,
    )


def _stated_of_data(stated: Statements) -> list[tuple[str, str]]:
    rows = {"data": stated.dataset, "licence of the data": stated.data_license}
    return [(name, card_rows.plain(text)) for name, text in rows.items() if text is not None]


def write_recipe_card(path: str | Path, out: str | Path | None, statements: Statements | None = None) -> Path:
    """Renders the card of a recipe into a file, at once; what was stated in the card that lies there is kept.

    Raises:
        CardError: No file is named, or one lies there that was not rendered.
    """
    if out is None:
        raise CardError(f"{path} is a recipe: name the card to write, hf-deit card {path} --out CARD.md.")
    target = Path(out)
    if target.is_dir():
        raise CardError(f"--out {out} is a folder: name a file, such as {target / (Path(path).stem + '.md')}.")
    check_place(target, CardError)
    card = render_recipe_card(path, (statements or Statements()).or_else(statements_of(target)))
    with staged_files(target.parent) as staging:
        card.save(staging / target.name)
    return target
