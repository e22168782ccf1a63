"""The page of a model on the Hub, rendered from what was really run.

What is known comes from facts.py, its words and rows from py, the layout is model_card.md.jinja, the metadata
are huggingface_hub's. What is unknown says so, nothing is invented, and neither paths of the author's machine nor tokens
get in. Uploading is in publishing.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import PublishError
from ..files import check_place, staged_files
from ..losses import ProblemType
from ..models.loading import full_name
from .facts import UNKNOWN, RunFacts, Statements, is_path, is_repo_name, last_part, read_facts, without_machine

_HEADS = {"": "prediction", "cls_": "class head", "distillation_": "distillation head"}
# Name in results.json: words, the Hub's metric type (None: not for model-index), whether it is a share of the images.
_MEASURES = {
    "accuracy": ("top-1 accuracy", "accuracy", True),
    "top5_accuracy": ("top-5 accuracy", "top5_accuracy", True),
    "balanced_accuracy": ("balanced accuracy", "balanced_accuracy", True),
    "mean_average_precision": ("mean average precision", "mean_average_precision", True),
    "loss": ("loss", None, False),
}
# owner/name, or a name alone; a factory has a colon, a deeper path more bars.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".parquet": "parquet"}
_TRAINING_ROWS = {
    "distillation": "distillation_type",
    "α, weight of the distillation term": "distillation_alpha",
    "τ, temperature": "distillation_tau",
    "epochs": "num_train_epochs",
    "batch size a process": "per_device_train_batch_size",
    "accumulation steps": "gradient_accumulation_steps",
    "peak learning rate": "learning_rate",
    "schedule": "lr_scheduler_type",
    "warm-up (steps, or share)": "warmup_steps",
    "layer-wise decay": "layer_decay",
    "optimizer": "optim",
    "weight decay": "weight_decay",
    "label smoothing": "label_smoothing_factor",
    "drop path": "drop_path_rate",
    "what learns": "trainable",
    "crop scale": "crop_scale",
    "augmentation policy": "auto_augment",
    "random erasing": "erasing_probability",
    "mixup, α": "mixup_alpha",
    "cutmix, α": "cutmix_alpha",
    "views of an image in a batch": "repeated_augmentation",
    "averaged weights, horizon in epochs": "ema_epochs",
    "weights that count": "counted_weights",
    "bf16": "bf16",
    "seed": "seed",
}


def hub_name(text: str | None) -> str | None:
    """Gives a field of a recipe if it is a name on the Hub; a path, a factory or nothing gives None.

    A recipe holds what exists on the author's machine as an absolute path, so that a relative name is the Hub's.
    """
    if text is None or is_path(text) or Path(text).suffix in _TABLES or not _HUB_NAME.fullmatch(text):
        return None
    return full_name(text) if is_repo_name(full_name(text)) else None


def plain(value: Any) -> str:
    """A value as one cell of a table: no line break, no bar, no markup of its own."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "`", "*", "_", "<", ">", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text


def _code(value: Any) -> str:
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "\\|") + "`"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _source(text: str | None, missing: str) -> str:
    """Where something came from, in words that mean something to others."""
    if text is None:
        return missing
    if hub_name(text) is not None:
        return _code(hub_name(text)) + " on the Hub"
    return _code(last_part(text)) + (" (Python factory)" if ":" in text else " (local, not published with this model)")


def tags(recipe: dict[str, Any]) -> list[str]:
    """Tags of the Hub."""
    distilled = recipe.get("distillation_type") in ("soft", "hard")
    return ["vision", "image-classification", "hf_deit", *(["knowledge-distillation"] if distilled else [])]


def _is_distilled(facts: RunFacts) -> bool:
    return facts.config.get("model_type") == "deit"


def _class_names(facts: RunFacts) -> list[str]:
    names = facts.config.get("id2label") or {}
    return [names[index] for index in sorted(names, key=int)]


def class_list(facts: RunFacts, most: int = 50) -> str:
    """The names of the classes, at most `most` of them."""
    names = _class_names(facts)
    rest = f" … ({len(names):,} in all; `config.json` has them)" if len(names) > most else ""
    return ", ".join(map(plain, names[:most])) + rest if names else UNKNOWN


def _several(facts: RunFacts) -> bool:
    return facts.config.get("problem_type") == ProblemType.MULTI_LABEL


def _size(value: Any) -> str:
    if value is None:
        return UNKNOWN
    height, width = value if isinstance(value, list) else (value, value)
    return f"{height} × {width} pixels"


def summary(facts: RunFacts, recipe: dict[str, Any]) -> str:
    """What it is and how it learned, in a sentence."""
    what = "several classes an image" if _several(facts) else "one class an image"
    count = len(_class_names(facts))
    words = {
        "soft": "learned from labels and from a teacher's distribution (soft distillation)",
        "hard": "learned from labels and from a teacher's decisions (hard distillation)",
        "none": "learned from labels, without a teacher",
    }
    how = words.get(recipe.get("distillation_type"), "how it learned is unknown")
    return f"An image classifier for {count:,} classes, {what}; {how}."


def overview(facts: RunFacts, recipe: dict[str, Any], stated: Statements) -> list[tuple[str, str]]:
    """The model: rows of name and value."""
    heads = "class and distillation token, two heads (their mean is the prediction)" if _is_distilled(facts) else "one"
    base = _code(stated.base_model) + " on the Hub" if stated.base_model else _source(recipe.get("model"), "")
    config = facts.config
    return [
        ("architecture", _code((config.get("architectures") or [UNKNOWN])[0])),
        ("heads", heads),
        ("layers × width, heads of attention", _shape(config)),
        ("parameters", _number(facts.run.get("parameters"))),
        ("image size", _size(config.get("image_size"))),
        ("base model", base or ("none, from scratch" if "model" in recipe else UNKNOWN)),
        *(
            [("licence of the base model", plain(stated.base_model_license or f"{UNKNOWN}: not stated"))]
            if base
            else []
        ),
        ("licence", plain(stated.license) if stated.license else f"{UNKNOWN}: the author has stated none"),
    ]


def _shape(config: dict[str, Any]) -> str:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    if any(not isinstance(config.get(name), int) for name in names):
        return UNKNOWN
    layers, width, heads = (config[name] for name in names)
    return f"{layers} × {width}, {heads}"


def _metric(facts: RunFacts, name: str) -> float | None:
    value = facts.results.get(f"eval_{name}")
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _heads(facts: RunFacts) -> list[str]:
    return [prefix for prefix in _HEADS if any(_metric(facts, prefix + name) is not None for name in _MEASURES)]


def head_titles(facts: RunFacts) -> list[str]:
    """The heads that were measured: the columns of the results."""
    return [_HEADS[prefix] for prefix in _heads(facts)]


def result_rows(facts: RunFacts) -> list[list[str]]:
    """A row for each measure: its words, then a figure for each head."""
    rows = []
    for name, (words, _, share) in _MEASURES.items():
        values = [_metric(facts, prefix + name) for prefix in _heads(facts)]
        shown = ["–" if value is None else _percent(value) if share else f"{value:.4f}" for value in values]
        if any(value is not None for value in values):
            rows.append([words, *shown])
    return rows


def eval_results(facts: RunFacts, recipe: dict[str, Any], stated: Statements) -> list[EvalResult]:
    """The shares of every head; a mean loss is no metric to be compared with another model's."""
    data = recipe.get("data")
    loader = _TABLES.get(Path(data).suffix, "imagefolder") if data else UNKNOWN
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=stated.dataset or loader,
            dataset_name=stated.dataset or (last_part(data) if data else UNKNOWN),
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{words}, {_HEADS[prefix]}",
            metric_value=_metric(facts, prefix + name),
        )
        for prefix in _heads(facts)
        for name, (words, kind, _) in _MEASURES.items()
        if kind is not None and _metric(facts, prefix + name) is not None
    ]


def evaluated_on(facts: RunFacts, recipe: dict[str, Any], stated: Statements) -> str:
    """Which images the figures are of, and how many."""
    images = facts.run.get("validation_images")
    data = stated.dataset or recipe.get("data")
    where = f" of {_code(last_part(data))}" if data else ""
    return f"the {'' if images is None else f'{images:,} '}validation images{where}" + (
        "" if images is not None else " (their number is unknown)"
    )


def remarks(facts: RunFacts) -> list[str]:
    """What puts the figures into proportion."""
    lines = []
    images, top1 = facts.run.get("validation_images"), _metric(facts, "accuracy")
    if images and top1 is not None:
        error = math.sqrt(top1 * (1 - top1) / images)
        lines.append(
            f"Standard error of the top-1 accuracy, from the number of images alone: {100 * error:.1f} points."
        )
    fixed = {
        "majority_accuracy": "Always answering the most frequent class gives {} top-1.",
        "chance_mean_average_precision": "Chance has a mean average precision of {}.",
        "teacher_accuracy": "The teacher's top-1 accuracy on the same images is {}.",
        "teacher_agreement": "Prediction and teacher agree on {} of the images.",
    }
    lines += [
        text.format(_percent(value)) for name, text in fixed.items() if (value := _metric(facts, name)) is not None
    ]
    lines.append("One run with one seed; the spread between seeds is unknown.")
    return lines


def data_rows(facts: RunFacts, recipe: dict[str, Any], stated: Statements) -> list[tuple[str, str]]:
    """The data: rows of name and value."""
    broken = facts.results.get("broken_images")
    said = (
        UNKNOWN if broken is None else ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in broken.items())
    )
    name = _code(stated.dataset) + " on the Hub" if stated.dataset else _source(recipe.get("data"), UNKNOWN)
    return [
        ("data", name),
        ("training images", _number(facts.run.get("train_images"))),
        ("validation images", _number(facts.run.get("validation_images"))),
        ("test images", "none: no figure here is of a test set"),
        ("images that could not be read", said),
        ("licence of the data", plain(stated.data_license or f"{UNKNOWN}: not recorded")),
    ]


def class_counts(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Rows of class, training and validation images; empty where they are not known, or too many."""
    counts = facts.run.get("classes") or {}
    if len(counts) > 200:
        return []
    order = [name for name in _class_names(facts) if name in counts]
    rows = [(name, counts[name]) for name in (order if len(order) == len(counts) else sorted(counts))]
    return [(plain(name), _number(images.get("train")), _number(images.get("validation"))) for name, images in rows]


def training_rows(facts: RunFacts, recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """How it was trained: rows of name and value."""
    seconds, teacher = facts.results.get("train_runtime"), facts.run.get("teacher")
    what = "" if not teacher else f", {plain(teacher['class'])} of {_number(teacher.get('parameters'))} parameters"
    named = recipe.get("teacher") or (teacher or {}).get("name")
    none = "none" if recipe.get("distillation_type") == "none" and not teacher else f"{UNKNOWN} by name"
    rows = [("teacher", _source(named, none) + what)] if recipe or teacher else []
    rows += [("its answers", _stored(facts.run["stored_answers"]))] if facts.run.get("stored_answers") else []
    unused = {"none": ("distillation_alpha", "distillation_tau"), "hard": ("distillation_tau",)}
    left_out = unused.get(recipe.get("distillation_type"), ())
    rows += [
        (words, _code(recipe[name]))
        for words, name in _TRAINING_ROWS.items()
        if recipe.get(name) is not None and name not in left_out
    ]
    return [
        *rows,
        ("optimizer steps", _number(facts.results.get("steps"))),
        ("parameters that learned", _number(facts.run.get("learning_parameters"))),
        ("time of the last launch", UNKNOWN if seconds is None else f"{seconds:,.0f} s"),
    ]


def _stored(answers: dict[str, Any]) -> str:
    """What a teacher cache held, in words."""
    what = {
        "hard": "decisions",
        "dense": f"all logits ({answers.get('dtype')})",
        "top_k": f"the {answers.get('top_k')} largest logits ({answers.get('dtype')}) and the rest at τ = {answers.get('tau')}",
    }
    return f"stored before the training: {what.get(answers['kind'], UNKNOWN)}, {_number(answers['view_epochs'])} epoch(s) of views"


def environment_rows(facts: RunFacts) -> list[tuple[str, str]]:
    """Where it was trained: rows of name and value."""
    versions = facts.run.get("versions") or {}
    if not versions and facts.config.get("transformers_version"):
        versions = {"transformers (that saved it)": facts.config["transformers_version"]}
    rows = [("device", plain(facts.run.get("device") or UNKNOWN)), ("processes", _number(facts.run.get("processes")))]
    rows += [(plain(package), plain(version)) for package, version in sorted(versions.items())]
    return rows if facts.run.get("versions") else [*rows, ("other versions", UNKNOWN)]


def limits(facts: RunFacts) -> list[str]:
    """What it is for and what it is not."""
    names = _class_names(facts)
    answer = (
        "each class is answered by itself, above 0.5 meaning that the image has it"
        if _several(facts)
        else "any image is answered with one of them, also one that shows none"
    )
    return [
        f"For images like those it was trained on, and its {len(names):,} classes only: {answer}.",
        f"It sees {_size(facts.config.get('image_size'))}; what is smaller than that shows is lost.",
        "The figures are of the validation images, which may have served to choose settings; other data were not tried.",
        "Nothing is recorded of whether it does worse for some groups of people, places or cameras.",
        "Nothing is recorded of a calibration of its scores: read them as an order, not as probabilities.",
    ]


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
        tags=tags(recipe),
        model_name=title,
        eval_results=eval_results(facts, recipe, stated) or None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        marker=MARKER,
        title=plain(title),
        location=location,
        summary=summary(facts, recipe),
        overview=overview(facts, recipe, stated),
        evaluated_on=evaluated_on(facts, recipe, stated),
        heads=head_titles(facts),
        results=result_rows(facts),
        remarks=remarks(facts),
        data=data_rows(facts, recipe, stated),
        class_counts=class_counts(facts),
        class_names=class_list(facts),
        training=training_rows(facts, recipe),
        has_recipe=bool(facts.recipe),
        environment=environment_rows(facts),
        limits=limits(facts),
    )


def write_card(
    folder: str | Path, facts: RunFacts, title: str, statements: Statements | None = None, location: str = "."
) -> Path:
    """Renders a card into a folder, at once; what the author stated in the card that lies there is kept.

    Raises:
        PublishError: A README.md of somebody else lies there; it is left as it is.
    """
    path = Path(folder) / CARD_FILE
    check_place(path, PublishError)
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
        PublishError: It was not rendered, or was changed by hand.
    """
    if not path.is_file() or _is_placeholder(path):
        return Statements()
    if not is_rendered(path):
        raise PublishError(
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


def render_model_card(folder: str, statements: Statements | None = None) -> Path:
    """Renders the card of a saved model again, from the files in its folder.

    Args:
        folder: Of the model.
        statements: What only the author can say; what the card that lies there says is kept.

    Returns:
        The path of the card.

    Raises:
        PublishError: There is no model, or a README.md that was written by hand.
    """
    return write_card(folder, read_facts(folder), Path(folder).resolve().name, statements)
