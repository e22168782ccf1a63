"""What a model card needs to know of a run: gathered from a trainer when it ends, read back from its folder later.

A fact that was not recorded is not there; it is never guessed. Where the author's files lie is no fact for others: paths are
shortened to their last part. How facts are worded is in model_card.py.
"""

import json
import platform
import re
from collections import Counter
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

RESULTS_FILE = "results.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "training_log.json"
_PACKAGES = ("hf_deit", "transformers", "torch", "accelerate", "datasets", "pillow", "numpy")
# Fields of a recipe that hold names and signs, which may look like paths ("/m/0k4j", "/").
_NO_PATHS = ("teacher_labels", "label_column", "label_separator", "image_column")
# A token of the Hub, wherever it got into a text.
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class RunFacts:
    """What is known of a model and of the run that made it.

    Args:
        config: The model's config.json.
        recipe: Every field of the recipe; empty if there is none.
        results: Metrics (`eval_…`), steps, epochs and `run` as results.json has them; empty if there are none.
    """

    config: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> dict[str, Any]:
        """What `describe_run` recorded; empty for a run that did not."""
        return self.results.get("run", {})


def is_path(text: str) -> bool:
    """Whether a text is a path on somebody's machine: absolute, or from the folder one is in (./, ../, ~)."""
    parts = (PurePosixPath(text), PureWindowsPath(text))
    return any(path.is_absolute() for path in parts) or text.startswith((".", "~"))


def last_part(path: str) -> str:
    """Gives the name of a file or folder of either kind of system."""
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def without_machine(value: Any) -> Any:
    """Gives a copy of plain values for others: paths end as `./name`, tokens of the Hub as `(removed)`."""
    if isinstance(value, dict):
        return {name: without_machine(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return f"./{last_part(value)}" if is_path(value) else TOKEN.sub("(removed)", value)


def public_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Gives a recipe as others may read it: it runs once the folders it names are put beside it."""
    names = {name: recipe[name] for name in _NO_PATHS if name in recipe}
    public = without_machine({name: value for name, value in recipe.items() if not name.endswith("token")}) | names
    return public | ({"output_dir": "./out"} if "output_dir" in public else {})


def describe_run(trainer: Any) -> dict[str, Any]:
    """Gives what a run knows of itself and no other file of it says, in plain values.

    Args:
        trainer: A `DistillationTrainer`, or any Trainer.

    Returns:
        `train_images`, `validation_images`, `classes` (`{name: {"train": images, "validation": images}}`, where each image
        has one class), `parameters`, `learning_parameters`, `teacher`, `stored_answers` (of a teacher, if they were used),
        `device`, `processes`, `versions`. Each that is not known is None.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    sets = {"train": trainer.train_dataset, "validation": trainer.eval_dataset}
    return {
        **{
            f"{name}_images": None if isinstance(data, dict) else inspect_dataset(data).images
            for name, data in sets.items()
        },
        "classes": _class_counts(sets),
        "parameters": _count(model),
        "learning_parameters": _count(model, learning=True),
        **_describe_teacher(trainer),
        "device": _device_name(trainer.args.device),
        "processes": trainer.args.world_size,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _describe_teacher(trainer: Any) -> dict[str, Any]:
    cached = getattr(trainer, "cached", None)
    if cached is not None:
        told = cached.cache.told()
        return {"teacher": told["teacher"], "stored_answers": told["answers"]}
    teacher = getattr(getattr(trainer, "teacher", None), "model", None)
    known = None if teacher is None else {"class": type(teacher).__name__, "parameters": _count(teacher) or None}
    return {"teacher": known, "stored_answers": None}


def _count(model: Any, learning: bool = False) -> int:
    if not isinstance(model, torch.nn.Module):
        return 0
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not learning)


def _class_counts(sets: dict[str, Any]) -> dict[str, dict[str, int]] | None:
    counts: dict[str, dict[str, int]] = {}
    for split, data in sets.items():
        info = inspect_dataset(data)
        if info.labels is None or any(not isinstance(label, int) for label in info.labels):
            return None  # a stream, a user's own data, or several classes an image
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
        except PackageNotFoundError:  # used from a checkout
            continue
    return found


def measured_by(trainer: Any) -> dict[str, Any]:
    """Gives the last evaluation of a trainer as results.json has it; no metrics if it never evaluated what it holds now."""
    state = trainer.state
    logged = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
    held = {state.global_step}
    if trainer.args.load_best_model_at_end and state.best_global_step:
        held = {state.best_global_step} if len(logged) < 2 or logged[-1]["step"] != logged[-2]["step"] else held
    entry = next((entry for entry in reversed(logged) if entry["step"] in held), {})
    metrics = {name: value for name, value in entry.items() if name.startswith("eval_")}
    if getattr(trainer, "_ema_counts", False) and any(name.startswith("eval_ema_") for name in metrics):
        metrics = {"eval_" + name[9:]: value for name, value in metrics.items() if name.startswith("eval_ema_")}
    return metrics | {"steps": state.global_step, "epochs": state.epoch}


def facts_of_trainer(trainer: Any) -> RunFacts:
    """Gives the facts of a trainer as it stands, whether or not they are in files yet."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    folder = Path(trainer.args.output_dir)
    results = measured_by(trainer) | {"run": describe_run(trainer)}
    written = _read(folder / RESULTS_FILE)
    if written.get("steps") == trainer.state.global_step:
        results |= written  # it knows more: broken images, times
    recipe = _read(folder / RECIPE_FILE) or json.loads(trainer.args.to_json_string())
    return RunFacts(json.loads(model.config.to_json_string(use_diff=False)), recipe, json.loads(json.dumps(results)))


def read_facts(folder: str | Path) -> RunFacts:
    """Reads the facts of a saved model: config.json, and recipe.yaml and results.json where there are any.

    Raises:
        PublishError: There is no model, or a file of it cannot be read.
    """
    folder = Path(folder)
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"No model in {folder}: a card is rendered from a folder with config.json (and recipe.yaml, results.json), such as "
            "the output_dir of hf-deit train."
        )
    recipe = _read(folder / RECIPE_FILE) or _read(folder / "training_args.json")
    config = _read(folder / "config.json")
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or not all(index.isdecimal() for index in names):
        raise PublishError(
            f"{folder / 'config.json'}: id2label must be numbers and names, and is {str(names)[:200]}: mend it."
        )
    return RunFacts(config, recipe, _read(folder / RESULTS_FILE))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise PublishError(f"{path} cannot be read: {error}. Mend it, or move it away.") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path} must hold fields and values, and holds a {type(content).__name__}.")
    return content


UNKNOWN = "unknown"
# huggingface_hub knows no list of the licences; this is what the identifiers of its website are made of.
_LICENSE = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_NAMES = ("base_model", "dataset")
_LICENCES = ("license", "data_license", "base_model_license")


def is_repo_name(text: str) -> bool:
    """Whether a text can be a name on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return not is_path(text)


def check_license(text: str, what: str = "license") -> None:
    """Checks an identifier of a licence.

    Raises:
        PublishError: The Hub has none that looks like it.
    """
    if not _LICENSE.fullmatch(text):
        raise PublishError(
            f"{what}={TOKEN.sub('(removed)', text)!r} is no identifier of a licence on the Hub: it takes small letters, digits, "
            "- and ., such as apache-2.0, mit, cc-by-nc-4.0, other; unknown takes one back that was stated."
        )


def check_line(text: str, what: str) -> None:
    """Checks a text for others: one line, no token of the Hub.

    Raises:
        PublishError: It is not.
    """
    if TOKEN.search(text):
        raise PublishError(f"{what} holds what looks like a token of the Hub (hf_…): leave it out.")
    if not text.strip() or not text.isprintable():
        raise PublishError(f"{what}={text!r}: give one line of text, without line breaks.")


def _names_a_path(text: str) -> bool:
    words = [word for word in text.split() if len(word) > 1]
    absolute = any(path(word).is_absolute() for path in (PurePosixPath, PureWindowsPath) for word in words)
    return absolute or any(word.startswith(("~/", "./", "../")) for word in words)


@dataclass(frozen=True)
class Statements:
    """What only the author can say; None: not said.

    Args:
        license: The Hub's identifier, such as "apache-2.0"; "unknown" takes back what was stated before, as it does for
            the other licences.
        base_model: Hub name of the weights the run began with.
        dataset: Hub name of the data.
        data_license: Of the data, in words or as the Hub's identifier.
        base_model_license: Of the weights the run began with, likewise.

    Raises:
        PublishError: A text is no such name or identifier, or holds a path, a token or a line break.
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
                    f"{name}={text!r} is no name on the Hub: give owner/name; a path is nothing for others."
                )
            if name in _LICENCES and _names_a_path(text):
                raise PublishError(f"{name}={text!r} holds a path, which is nothing for others: name the licence.")
        if self.license is not None:
            check_license(self.license)

    def or_else(self, other: "Statements") -> "Statements":
        """Gives these, and where one is missing the other's."""
        return Statements(*(mine or theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def without_withdrawn(self) -> "Statements":
        """Gives these without the licences that are "unknown", which is as good as not said."""
        return replace(self, **{name: None for name in _LICENCES if getattr(self, name) == UNKNOWN})

    def metadata(self) -> dict[str, object]:
        """The fields of the Hub's metadata; also those that it has no field for, to be known when a card is rendered again."""
        return {
            "license": self.license or UNKNOWN,
            "base_model": self.base_model,
            "datasets": None if self.dataset is None else [self.dataset],
            "data_license": self.data_license,
            "base_model_license": self.base_model_license,
        }
