"""The model card: README.md of a saved model, with results, data, recipe and licences.

hub/facts.py collects the facts, and hub/model_card.md.jinja holds the text and the layout. This module computes the
values of the template from the facts, and the metadata for the Hub. A card never contains paths of the author's machine
or tokens. hub/publishing.py uploads cards.
"""

import functools
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import PublishError
from ..files import check_place, staged_files
from ..losses import ProblemType
from ..models.loading import full_name
from .facts import UNKNOWN, CardMetadata, RunSummary, is_path, is_repo_name, last_part, read_facts, without_machine

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# A card with this line was rendered by this package and may be replaced when it is rendered again. The line must not
# change, because cards in users' folders contain it.
MARKER = "Rendered by hf_deit from the files beside it. Delete this line to keep what you change."

# The prefix of a head's metrics, and the name of the head in tables and in the metadata for the Hub.
_HEADS = {"": "prediction", "cls_": "class head", "distillation_": "distillation head"}
# For each metric in results.json: its name, the Hub's metric type (None: not in model-index), and whether it is a
# share, which is shown in percent.
_METRICS = {
    "accuracy": ("top-1 accuracy", "accuracy", True),
    "top5_accuracy": ("top-5 accuracy", "top5_accuracy", True),
    "balanced_accuracy": ("balanced accuracy", "balanced_accuracy", True),
    "mean_average_precision": ("mean average precision", "mean_average_precision", True),
    "f1_macro": ("F1, mean over the classes", "f1", True),
    "f1_micro": ("F1, all decisions together", "f1", True),
    "precision_macro": ("precision, mean over the classes", "precision", True),
    "precision_micro": ("precision, all decisions together", "precision", True),
    "recall_macro": ("recall, mean over the classes", "recall", True),
    "recall_micro": ("recall, all decisions together", "recall", True),
    "loss": ("loss", None, False),
}
_REFERENCES = (
    "majority_accuracy",
    "chance_mean_average_precision",
    "teacher_accuracy",
    "teacher_mean_average_precision",
    "teacher_f1_macro",
    "teacher_agreement",
)
_MOST_CLASSES = 200
# owner/name, or a name alone. A factory contains a colon, and a deeper path contains more slashes.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".parquet": "parquet"}


def hub_name(text: str | None) -> str | None:
    """Return a field of a recipe as a name on the Hub; None if it is a path, a factory or missing.

    A recipe stores existing files of the author's machine as absolute paths, so a relative name is a name on the Hub.
    """
    if text is None or is_path(text) or Path(text).suffix in _TABLES or not _HUB_NAME.fullmatch(text):
        return None
    return full_name(text) if is_repo_name(full_name(text)) else None


# ---- text in Markdown ----


def _escape(value: Any) -> str:
    """Return a value as the text of one table cell, with its Markdown characters escaped."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> str:
    """Return a value in code style, for one table cell."""
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "\\|") + "`"


@functools.cache
def _template() -> jinja2.Template:
    """Load the template, once per process because compiling it takes longer than a card.

    A value that is not passed to it raises an error instead of becoming an empty text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": _escape, "code": _code}
    return environment.get_template(TEMPLATE.name)


# ---- values of the template ----


def _origin(text: str | None) -> dict[str, str] | None:
    """Return the `kind` ("hub", "factory" or "local") and the `name` of a model or data set that a recipe names."""
    if text is None:
        return None
    if (name := hub_name(text)) is not None:
        return {"kind": "hub", "name": name}
    return {"kind": "factory" if ":" in text else "local", "name": last_part(text)}


def _class_names(config: dict[str, Any]) -> list[str]:
    names = config.get("id2label") or {}
    return [names[index] for index in sorted(names, key=int)]


def _metric(summary: RunSummary, name: str) -> float | None:
    value = summary.results.get(f"eval_{name}")
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _measured_heads(summary: RunSummary) -> list[str]:
    return [head for head in _HEADS if any(_metric(summary, head + name) is not None for name in _METRICS)]


def _metric_rows(summary: RunSummary) -> list[dict[str, Any]]:
    heads = _measured_heads(summary)
    rows = [
        {"name": words, "is_share": is_share, "values": [_metric(summary, head + name) for head in heads]}
        for name, (words, _, is_share) in _METRICS.items()
    ]
    return [row for row in rows if any(value is not None for value in row["values"])]


def _standard_error(summary: RunSummary) -> float | None:
    """Return the binomial standard error of the top-1 accuracy."""
    images, top1 = summary.run.get("validation_images"), _metric(summary, "accuracy")
    return math.sqrt(top1 * (1 - top1) / images) if images and top1 is not None else None


def _class_counts(summary: RunSummary) -> list[dict[str, Any]]:
    """Return the name and the numbers of images of each class; empty if they are unknown or too many for a card."""
    counts = summary.run.get("classes") or {}
    if len(counts) > _MOST_CLASSES:
        return []
    order = [name for name in _class_names(summary.config) if name in counts]
    names = order if len(order) == len(counts) else sorted(counts)
    return [{"name": name, "train": None, "validation": None, **counts[name]} for name in names]


def _class_figures(summary: RunSummary) -> list[dict[str, Any]]:
    """Return the precision, recall and F1 of each class from a report; empty if there is none, or the classes are too many for a card."""
    figures = summary.inspection.get("per_class") or {}
    return [] if len(figures) > _MOST_CLASSES else [{"name": name, **row} for name, row in figures.items()]


def _eval_results(summary: RunSummary, data: str | None, metadata: CardMetadata) -> list[EvalResult]:
    """Return the metrics of all heads for the Hub. The loss is left out: it cannot be compared between models."""
    loader = _TABLES.get(Path(data).suffix, "imagefolder") if data else UNKNOWN
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=metadata.dataset or loader,
            dataset_name=metadata.dataset or (last_part(data) if data else UNKNOWN),
            dataset_split=summary.run.get("validation_split", "validation"),
            metric_type=kind,
            metric_name=f"{words}, {_HEADS[head]}",
            metric_value=_metric(summary, head + name),
        )
        for head in _measured_heads(summary)
        for name, (words, kind, _) in _METRICS.items()
        if kind is not None and _metric(summary, head + name) is not None
    ]


def _card_data(summary: RunSummary, recipe: dict[str, Any], metadata: CardMetadata, title: str) -> ModelCardData:
    distilled = recipe.get("distillation_type") in ("soft", "hard") or recipe.get("guidance", "none") != "none"
    return ModelCardData(
        **metadata.hub_fields(),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "image-classification", "hf_deit", *(["knowledge-distillation"] if distilled else [])],
        model_name=title,
        eval_results=_eval_results(summary, recipe.get("data"), metadata) or None,
    )


def _values(summary: RunSummary, recipe: dict[str, Any], metadata: CardMetadata) -> dict[str, Any]:
    """Return the values of the template that are computed from the facts of a run."""
    config, run, results = summary.config, summary.run, summary.results
    shape = [config.get(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")]
    size = config.get("image_size")
    data = metadata.dataset or recipe.get("data")
    return {
        "architecture": (config.get("architectures") or [None])[0],
        "two_heads": config.get("model_type") == "deit",
        "multi_label": config.get("problem_type") == ProblemType.MULTI_LABEL,
        "shape": shape if all(isinstance(value, int) for value in shape) else None,
        "image_size": size if size is None or isinstance(size, list) else [size, size],
        "class_names": _class_names(config),
        "transformers_version": config.get("transformers_version"),
        "base_model": _origin(metadata.base_model or recipe.get("model")),
        "data": _origin(data),
        "data_name": last_part(data) if data else None,
        "teacher": _origin(recipe.get("teacher") or (run.get("teacher") or {}).get("name")),
        "heads": [_HEADS[head] for head in _measured_heads(summary)],
        "metrics": _metric_rows(summary),
        "inspection": summary.inspection,
        "class_figures": _class_figures(summary),
        "pictures": summary.pictures,
        "has_decisions": _metric(summary, "f1_macro") is not None,
        "standard_error": _standard_error(summary),
        "references": {name: _metric(summary, name) for name in _REFERENCES},
        "extensions": summary.results.get("extensions", []),
        "stopped_early": summary.results.get("stopped_early"),
        "best_checkpoint": summary.results.get("best_checkpoint"),
        "class_counts": _class_counts(summary),
        "broken_images": results.get("broken_images"),
        "unlabelled": results.get("unlabelled") or {},
        "steps": results.get("steps"),
        "train_runtime": results.get("train_runtime"),
        "run": run,
        "recipe": recipe,
        "metadata": metadata,
    }


# ---- cards ----


def render_card(
    summary: RunSummary, title: str, location: str = ".", metadata: CardMetadata | None = None
) -> ModelCard:
    """Render a card.

    Args:
        summary: The facts of the run.
        title: The name of the model.
        location: What the code block of the card loads: a Hub name, or "." for the folder of the card.
        metadata: The metadata that the author states.
    """
    recipe = without_machine(summary.recipe)
    known = CardMetadata(base_model=hub_name(recipe.get("model")), dataset=hub_name(recipe.get("data")))
    metadata = (metadata or CardMetadata()).or_else(known).without_unknown()
    content = _template().render(
        card_data=_card_data(summary, recipe, metadata, title).to_yaml(),
        marker=MARKER,
        title=title,
        location=location,
        **_values(summary, recipe, metadata),
    )
    return ModelCard(content)


def write_card(
    folder: str | Path, summary: RunSummary, title: str, metadata: CardMetadata | None = None, location: str = "."
) -> Path:
    """Render a card into a folder, in one step.

    Where `metadata` has no value, the value of an earlier card in the folder is kept.

    Raises:
        PublishError: The folder has a README.md that was written or changed by hand. It is not changed.
    """
    path = Path(folder) / CARD_FILE
    check_place(path, PublishError)
    card = render_card(summary, title, location, (metadata or CardMetadata()).or_else(read_metadata(path)))
    with staged_files(Path(folder)) as staging:
        card.save(staging / CARD_FILE)
    return path


def is_rendered(path: Path) -> bool:
    """Return whether a card was rendered by this package and still contains the marker."""
    return path.is_file() and MARKER in path.read_text(encoding="utf-8", errors="replace")


def _is_placeholder(path: Path) -> bool:
    """Return whether a card is the empty template that peft writes beside adapters."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return all(
        part in text for part in ("library_name: peft", "# Model Card for Model ID", "[More Information Needed]")
    )


def read_metadata(path: Path) -> CardMetadata:
    """Read the metadata that the author stated in a rendered card; empty if there is no card.

    Raises:
        PublishError: The card was not rendered by this package, or its marker was deleted.
    """
    if not path.is_file() or _is_placeholder(path):
        return CardMetadata()
    if not is_rendered(path):
        raise PublishError(
            f"{path} was written or changed by hand, so it is not replaced. Rename it if you want a rendered card."
        )
    data = ModelCard.load(path, ignore_metadata_errors=True).data
    license = data.get("license")
    return CardMetadata(
        license=None if license == UNKNOWN else license,
        base_model=data.get("base_model"),
        dataset=(data.get("datasets") or [None])[0],
        data_license=data.get("data_license"),
        base_model_license=data.get("base_model_license"),
    )


def render_model_card(folder: str | Path, metadata: CardMetadata | None = None) -> Path:
    """Render the card of a saved model again, from the files in its folder.

    Args:
        folder: The folder of the model.
        metadata: The metadata that the author states. Where a value is None, that of the present card is kept.

    Returns:
        The path of the card.

    Raises:
        PublishError: The folder contains no model, or it contains a README.md that was written or changed by hand.
    """
    return write_card(folder, read_facts(folder), Path(folder).resolve().name, metadata)


def render_again_if_ours(folder: str | Path) -> Path | None:
    """Render the card of a saved model again if this package rendered it; None if there is no card, or a person wrote it."""
    return render_model_card(folder) if is_rendered(Path(folder) / CARD_FILE) else None
