"""Facts of a run that a model card shows: `RunSummary`, which a trainer reports or which is read from a folder.

A fact that was not recorded is left out and never guessed. Paths of the author's machine mean nothing to others, so
they are shortened to their last part. `CardMetadata` holds what only the author knows, such as a licence. The text of
the card is in hub/model_card.md.jinja.
"""

import json
import platform
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.dataset_info import inspect_dataset
from ..errors import PublishError
from ..models.loading import refuse_adapters
from .inspection_files import published_pictures, read_inspection

RESULTS_FILE = "results.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "training_log.json"
_PACKAGES = ("hf_deit", "transformers", "torch", "accelerate", "datasets", "pillow", "numpy")
# Fields of a recipe that hold names and separators, which may look like paths ("/m/0k4j", "/").
_NO_PATHS = ("teacher_labels", "label_column", "label_separator", "image_column")
# A token of the Hub, anywhere in a text.
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class RunSummary:
    """Facts about a model and about the run that trained it, as plain Python values.

    Args:
        config: The content of the model's config.json.
        recipe: Every field of the recipe; empty if there is no recipe.
        results: The content of results.json: metrics (`eval_…`), `steps`, `epochs` and `run`; empty if there are no
            results.
        inspection: What a report found out about these weights, see inspection_files.py; empty if there is no report.
        pictures: Names of the figures of this report that are beside the model.
    """

    config: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    inspection: dict[str, Any] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    @property
    def run(self) -> dict[str, Any]:
        """The facts that `describe_run` recorded; empty if none were recorded."""
        return self.results.get("run", {})


# ---- texts that are published ----


def is_path(text: str) -> bool:
    """Return whether a text is a path on a machine: absolute, or relative with a leading `.` or `~`."""
    parts = (PurePosixPath(text), PureWindowsPath(text))
    return any(path.is_absolute() for path in parts) or text.startswith((".", "~"))


def last_part(path: str) -> str:
    """Return the name of a file or folder, from a POSIX or a Windows path."""
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def without_machine(value: Any) -> Any:
    """Return a copy of plain values for publication. A path becomes `./name`, a token of the Hub `(removed)`."""
    if isinstance(value, dict):
        return {name: without_machine(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return f"./{last_part(value)}" if is_path(value) else TOKEN.sub("(removed)", value)


def public_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe for publication, without tokens and paths.

    It runs in a folder that contains the data and model folders that it names.
    """
    names = {name: recipe[name] for name in _NO_PATHS if name in recipe}
    public = without_machine({name: value for name, value in recipe.items() if not name.endswith("token")}) | names
    return public | ({"output_dir": "./out"} if "output_dir" in public else {})


# ---- the facts a trainer reports ----


def describe_run(
    *,
    model: torch.nn.Module,
    train_dataset: Any,
    eval_dataset: Any,
    teacher: dict[str, Any] | None,
    teacher_outputs: dict[str, Any] | None,
    device: torch.device,
    processes: int,
) -> dict[str, Any]:
    """Return the facts of a run that none of its other files hold, as plain values: the field `run` of results.json.

    Args:
        model: The student, without wrappers.
        train_dataset: The training data, or None.
        eval_dataset: The validation data, a dict of several data sets, or None.
        teacher: The teacher's `class` and `parameters`, and `name` if it is known; None if there is no teacher.
        teacher_outputs: Description of the teacher cache, stored as the field `stored_answers`; None if no cache is
            used.
        device: The device of this process.
        processes: Number of processes.

    Returns:
        `train_images`, `validation_images`, `classes` (`{name: {"train": images, "validation": images}}`, for
        single-label data), `parameters`, `learning_parameters`, `teacher`, `stored_answers`, `device`, `processes`,
        `versions`. An unknown value is None. `train_images` counts the images with labels; if there are others,
        `unlabelled_images` is their number. If the validation images are those of another split, `validation_split` is its
        name, such as "test".
    """
    sets = {"train": train_dataset, "validation": eval_dataset}
    return {
        **{
            f"{name}_images": None if isinstance(data, dict) else inspect_dataset(data).images
            for name, data in sets.items()
        },
        **_unlabelled(train_dataset),
        **_other_split(eval_dataset),
        "classes": _class_counts(sets),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "learning_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "teacher": teacher,
        "stored_answers": teacher_outputs,  # results.json has this name in all versions
        "device": _device_name(device),
        "processes": processes,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _unlabelled(dataset: Any) -> dict[str, int]:
    info = inspect_dataset(dataset)
    if not info.unlabelled_images:
        return {}
    labelled = None if info.images is None else info.images - info.unlabelled_images
    return {"train_images": labelled, "unlabelled_images": info.unlabelled_images}


def _other_split(dataset: Any) -> dict[str, str]:
    name = getattr(getattr(dataset, "source", None), "split_name", "")
    return {"validation_split": name} if name not in ("", "validation") else {}


def describe_teacher(network: Any) -> dict[str, Any]:
    """Return the class of a teacher's network and its number of parameters (None if it has no parameters)."""
    weights = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return {"class": type(network).__name__, "parameters": sum(weight.numel() for weight in weights) or None}


def latest_metrics(
    log_history: Sequence[dict[str, Any]], *, step: int, best_step: int | None = None, ema_counts: bool = False
) -> dict[str, Any]:
    """Return the metrics (`eval_…`) of the weights that a trainer holds; empty if these weights were never evaluated.

    Args:
        log_history: The log of the trainer's state.
        step: Optimizer steps so far.
        best_step: The step of the best weights, if the trainer has loaded them.
        ema_counts: Whether the averaged weights are the result of the run. Their metrics then replace those of the raw
            weights.
    """
    evaluations = [entry for entry in log_history if any(name.startswith("eval_") for name in entry)]
    # If one step was evaluated twice, the second evaluation is that of the best weights after the training.
    evaluated_again = len(evaluations) > 1 and evaluations[-1]["step"] == evaluations[-2]["step"]
    held = best_step if best_step and not evaluated_again else step
    entry = next((entry for entry in reversed(evaluations) if entry["step"] == held), {})
    metrics = {name: value for name, value in entry.items() if name.startswith("eval_")}
    averaged = {"eval_" + name[9:]: value for name, value in metrics.items() if name.startswith("eval_ema_")}
    return averaged if ema_counts and averaged else metrics


def _class_counts(sets: dict[str, Any]) -> dict[str, dict[str, int]] | None:
    counts: dict[str, dict[str, int]] = {}
    for split, data in sets.items():
        info = inspect_dataset(data)
        if info.labels is None or any(not isinstance(label, int) for label in info.labels):
            return None  # a stream, a data set of the user's own class, or multi-label data
        images = Counter(info.labels)
        for index, name in enumerate(info.class_names or ()):
            counts.setdefault(name, {})[split] = images[index]
    return counts or None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type} ({platform.machine()}{threads})"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # such as hf_deit itself, if it is used from a checkout
            continue
    return found


# ---- the facts in a folder ----


def with_files(summary: RunSummary, folder: str | Path) -> RunSummary:
    """Return the summary of a trainer, completed with recipe.yaml and results.json from its folder.

    results.json may contain facts that the trainer does not have, such as times. It is used only if it was written at
    the same step.

    Raises:
        PublishError: recipe.yaml or results.json is invalid.
    """
    folder = Path(folder)
    written = _read(folder / RESULTS_FILE)
    same_step = written.get("steps") == summary.results["steps"]
    return replace(
        summary,
        recipe=_read(folder / RECIPE_FILE) or summary.recipe,
        results=summary.results | (written if same_step else {}),
        inspection=read_inspection(folder),
        pictures=published_pictures(folder),
    )


def read_facts(folder: str | Path) -> RunSummary:
    """Read the facts of a saved model: config.json, and recipe.yaml and results.json if they exist.

    Raises:
        PublishError: The folder contains no model, or one of the files is invalid.
    """
    folder = Path(folder)
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"No model in {folder}: config.json is missing. Give the folder of a saved model, such as the output_dir "
            "of hf-deit train. In this folder, recipe.yaml and results.json are optional."
        )
    recipe = _read(folder / RECIPE_FILE) or _read(folder / "training_args.json")
    config = _read(folder / "config.json")
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or not all(index.isdecimal() for index in names):
        raise PublishError(
            f"{folder / 'config.json'}: id2label={str(names)[:200]} is invalid. It must map class numbers to names, "
            'such as {"0": "cat", "1": "dog"}.'
        )
    results = _read(folder / RESULTS_FILE)
    return RunSummary(config, recipe, results, read_inspection(folder), published_pictures(folder))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise PublishError(f"{path} is invalid: {error}. Fix the file, or rename it to leave it out.") from error
    if not isinstance(content, dict):
        raise PublishError(
            f"{path} contains a {type(content).__name__} instead of fields and their values. Fix the file, or rename "
            "it to leave it out."
        )
    return content


# ---- metadata that only the author knows ----

UNKNOWN = "unknown"
# huggingface_hub has no list of licences. The identifiers on its website have this form.
_LICENSE = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_NAMES = ("base_model", "dataset")
_LICENCES = ("license", "data_license", "base_model_license")


def is_repo_name(text: str) -> bool:
    """Return whether a text is a valid name of a repository on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return not is_path(text)


def check_license(text: str) -> None:
    """Check the form of a licence identifier.

    Raises:
        PublishError: The Hub has no identifier of this form.
    """
    if not _LICENSE.fullmatch(text):
        raise PublishError(
            f"license={TOKEN.sub('(removed)', text)!r} is not a licence identifier of the Hub. An identifier has "
            "lower-case letters, digits, - and ., such as apache-2.0, mit, cc-by-nc-4.0 or other; use unknown to "
            "withdraw a licence."
        )


def check_line(text: str, name: str) -> None:
    """Check that a text for publication is one line and contains no token of the Hub.

    Raises:
        PublishError: The text has line breaks, is empty, or contains a token.
    """
    if TOKEN.search(text):
        raise PublishError(f"{name} contains a token of the Hub (hf_…). Give it without the token.")
    if not text.strip() or not text.isprintable():
        raise PublishError(f"{name}={text!r} is invalid. Give one line of text, without line breaks.")


def _names_a_path(text: str) -> bool:
    words = [word for word in text.split() if len(word) > 1]
    absolute = any(path(word).is_absolute() for path in (PurePosixPath, PureWindowsPath) for word in words)
    return absolute or any(word.startswith(("~/", "./", "../")) for word in words)


@dataclass(frozen=True)
class CardMetadata:
    """Metadata of a card that only the author knows; a value is None if it is not given.

    Args:
        license: Licence identifier of the Hub, such as "apache-2.0". In this and the other licence fields, "unknown"
            withdraws the licence of an earlier card.
        base_model: Hub name of the weights that training started from.
        dataset: Hub name of the data.
        data_license: Licence of the data, in words or as an identifier of the Hub.
        base_model_license: Licence of the weights that training started from, in words or as an identifier of the Hub.

    Raises:
        PublishError: A name or an identifier is invalid, or a text contains a path, a token or a line break.
    """

    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    data_license: str | None = None
    base_model_license: str | None = None

    def __post_init__(self) -> None:
        for name in (*_LICENCES, *_NAMES):
            text = getattr(self, name)
            if text is None:
                continue
            check_line(text, name)
            if name in _NAMES and not is_repo_name(text):
                raise PublishError(
                    f"{name}={text!r} is not a name on the Hub. Give owner/name; a local path means nothing to others."
                )
            if name in _LICENCES and _names_a_path(text):
                raise PublishError(
                    f"{name}={text!r} contains a path, which means nothing to others. Give the name of the licence."
                )
        if self.license is not None:
            check_license(self.license)

    def or_else(self, other: "CardMetadata") -> "CardMetadata":
        """Return these values, with missing values taken from `other`."""
        return CardMetadata(*(mine or theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def without_unknown(self) -> "CardMetadata":
        """Return these values without the licences that are "unknown"."""
        return replace(self, **{name: None for name in _LICENCES if getattr(self, name) == UNKNOWN})

    def hub_fields(self) -> dict[str, object]:
        """Return the fields of the card's YAML header.

        The Hub does not define `data_license` and `base_model_license`; they are kept for the next rendering of the
        card.
        """
        return {
            "license": self.license or UNKNOWN,
            "base_model": self.base_model,
            "datasets": None if self.dataset is None else [self.dataset],
            "data_license": self.data_license,
            "base_model_license": self.base_model_license,
        }
