"""A folder to push as a Gradio Space: a model to try, with every head's classes and where its tokens look.

The app is hf_deit/space/app.py, plain transformers and gradio; only the model's name and title are put in. Of a local model the files
that `hf-deit push` would publish are copied beside it (publishing.py): weights, configuration, processor.
"""

import json
import shutil
from pathlib import Path

from huggingface_hub import SpaceCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import PublishError
from ..files import new_folder, staged_folder
from ..models.loading import load_model, published_name, refuse_adapters
from .facts import check_license, check_line, is_path, read_facts
from .publishing import PublishedFile, published_files

TEMPLATE = Path(__file__).with_name("space_template")
MODEL_FOLDER = "model"
_MODEL, _TITLE = "__MODEL__", "__TITLE__"
_FAMILIES = ("deit", "vit")
_PROCESSOR = "preprocessor_config.json"


def make_space(model: str, out: str | Path, license: str | None = None, title: str | None = None) -> list[str]:
    """Writes a Space, whole or not at all.

    Args:
        model: Folder of a saved DeiT or ViT, which is copied; or a name on the Hub, also a short one, which the app loads.
        out: New or empty folder.
        license: The Hub's identifier; default: unknown.
        title: Of the Space; default: the model's name.

    Returns:
        The files, by their path in `out`.

    Raises:
        PublishError: There is no such model, or `out` is in use.
        UserError: The model's files cannot be published, or license or title are not allowed.
    """
    if license is not None:
        check_license(license)
    if title is not None:
        check_line(title, "title")
    target = new_folder(out, PublishError)
    local = Path(model).expanduser()
    files = _model_files(local) if local.exists() else []
    name = MODEL_FOLDER if files else _hub_name(model)
    title = title or (local.resolve().name if files else name.split("/")[-1])
    with staged_folder(target) as staging:
        _write_template(staging, name, title, license, hub_name=None if files else name)
        for file in files:
            _write(staging / MODEL_FOLDER / file.name, file.content)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _hub_name(model: str) -> str:
    name = published_name(model)
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if is_path(model) or name.count("/") != 1:
        raise PublishError(f"No model at {model!r}: give the folder of a saved model, or owner/name on the Hub.")
    return name


def _model_files(folder: Path) -> list[PublishedFile]:
    """What of a saved model the app loads: no card, recipe, log, optimizer or pickle."""
    if not folder.is_dir():
        raise PublishError(
            f"{folder} is a file, and a folder is wanted: make one with hf-deit convert {folder} FOLDER."
        )
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(f"{folder} holds no config.json: give the folder of a saved model (--output_dir of a run).")
    family = read_facts(folder).config.get("model_type")
    if family not in _FAMILIES:
        raise PublishError(f"{folder} is a {family!r}: the app shows the tokens of {' and '.join(_FAMILIES)} only.")
    channels = read_facts(folder).config.get("num_channels", 3)
    if channels != 3:
        raise PublishError(f"{folder} takes images of {channels} channel(s): the app shows pictures in colour, of 3.")
    if not (folder / _PROCESSOR).is_file():
        raise PublishError(f"{folder} holds no {_PROCESSOR}: save the image processor beside the weights.")
    kept = ("config.json", _PROCESSOR)
    files = published_files(folder, f"local/{MODEL_FOLDER}")
    load_model(str(folder))  # whole, or refused
    return [file for file in files if _is_weights(file) or file.name in kept]


def _is_weights(file: PublishedFile) -> bool:
    return file.name.endswith((".safetensors", ".safetensors.index.json"))


def _write_template(folder: Path, name: str, title: str, license: str | None, hub_name: str | None) -> None:
    app = (TEMPLATE / "app.py").read_text(encoding="utf-8").replace(_MODEL, name)
    app = app.replace(f'"{_TITLE}"', json.dumps(title, ensure_ascii=False))
    _write(folder / "app.py", app.encode())
    shutil.copyfile(TEMPLATE / "requirements.txt", folder / "requirements.txt")
    card = SpaceCard((TEMPLATE / "README.md").read_text(encoding="utf-8"))
    card.text = card.text.replace(_TITLE, title)
    card.data.title = title
    if license is not None:
        card.data.license = license
    if hub_name is not None:
        card.data.models = [hub_name]
    _write(folder / "README.md", str(card).encode())


def _write(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
