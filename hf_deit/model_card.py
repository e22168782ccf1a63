"""The page of a model on the Hub, rendered from what was really run.

What is known comes from run_facts.py, its words and rows from card_rows.py, the layout is model_card.md.jinja, the metadata
are huggingface_hub's. What is unknown says so, nothing is invented, and neither paths of the author's machine nor tokens
get in. Uploading is in publishing.py.
"""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from . import card_rows
from .card_rows import hub_name
from .checkpointing import staged_files
from .places import check_place
from .run_facts import CardError, RunFacts, without_machine
from .statements import UNKNOWN, Statements

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_MORE = "[More Information Needed]"
# By this line a card is known as rendered, and may be rendered again over itself.
MARKER = "Rendered by hf_deit from the files beside it. Delete this line to keep what you change."


def render_card(facts: RunFacts, title: str, location: str = ".", statements: Statements | None = None) -> ModelCard:
    """Renders a card.

    Args:
        facts: Of the run.
        title: Name of the model.
        location: What the code block loads: a Hub name, or "." for the folder the card lies in.
        statements: Of the author.
    """
    recipe = without_machine(facts.recipe)
    known = Statements(base_model=hub_name(recipe.get("model")), dataset=hub_name(recipe.get("data")))
    stated = (statements or Statements()).or_else(known).without_withdrawn()
    metadata = ModelCardData(
        **stated.metadata(),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=card_rows.tags(recipe),
        model_name=title,
        eval_results=card_rows.eval_results(facts, recipe, stated) or None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        marker=MARKER,
        title=card_rows.plain(title),
        location=location,
        summary=card_rows.summary(facts, recipe),
        overview=card_rows.overview(facts, recipe, stated),
        evaluated_on=card_rows.evaluated_on(facts, recipe, stated),
        heads=card_rows.head_titles(facts),
        results=card_rows.result_rows(facts),
        remarks=card_rows.remarks(facts),
        data=card_rows.data_rows(facts, recipe, stated),
        class_counts=card_rows.class_counts(facts),
        class_names=card_rows.class_list(facts),
        training=card_rows.training_rows(facts, recipe),
        has_recipe=bool(facts.recipe),
        environment=card_rows.environment_rows(facts),
        limits=card_rows.limits(facts),
    )


def write_card(
    folder: str | Path, facts: RunFacts, title: str, statements: Statements | None = None, location: str = "."
) -> Path:
    """Renders a card into a folder, at once; what the author stated in the card that lies there is kept.

    Raises:
        CardError: A README.md of somebody else lies there; it is left as it is.
    """
    path = Path(folder) / CARD_FILE
    check_place(path, CardError)
    stated = (statements or Statements()).or_else(statements_of(path))
    card = render_card(facts, title, location, stated)
    with staged_files(Path(folder)) as staging:
        card.save(staging / CARD_FILE)
    return path


def is_rendered(path: Path) -> bool:
    """Whether a card was rendered here and not changed by hand."""
    return path.is_file() and MARKER in path.read_text(encoding="utf-8", errors="replace")


def _is_placeholder(path: Path) -> bool:
    """Whether it is what peft writes beside adapters, with nothing filled in."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return "library_name: peft" in text and "# Model Card for Model ID" in text and _MORE in text


def statements_of(path: Path) -> Statements:
    """Reads what the author stated in a rendered card; nothing where there is none.

    Raises:
        CardError: It was not rendered, or was changed by hand.
    """
    if not path.is_file() or _is_placeholder(path):
        return Statements()
    if not is_rendered(path):
        raise CardError(
            f"{path} was not rendered by hf_deit (or was changed by hand): move it away to have it rendered."
        )
    data = ModelCard.load(path, ignore_metadata_errors=True).data
    datasets = data.get("datasets") or [None]
    license = data.get("license")
    return Statements(
        None if license == UNKNOWN else license,
        data.get("base_model"),
        datasets[0],
        data.get("data_license"),
        data.get("base_model_license"),
    )
