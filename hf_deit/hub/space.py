"""Write the folder of a Gradio Space: an app that shows the predictions of a model and what its tokens read.

The app is hub/space_template/app.py, in which the name of the model and the title are filled in, with a copy of
models/attention_maps.py beside it; it does not need hf_deit. For a model in a local folder, the model's files are copied
beside the app. The user uploads the folder to the Hub; this module does not.
"""

import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, SpaceCard
from huggingface_hub.utils import filter_repo_objects

from ..errors import PublishError
from ..files import new_folder, staged_folder
from ..models import attention_maps
from ..models.loading import load_model, published_name, refuse_adapters
from .facts import check_license, check_line, is_repo_name, read_facts
from .publishing import PROCESSOR_FILE, published_files

TEMPLATE = Path(__file__).with_name("space_template")
MODEL_FOLDER = "model"
_MODEL, _TITLE = "__MODEL__", "__TITLE__"
_LOADED_FILES = ("config.json", PROCESSOR_FILE, "*.safetensors", "*.safetensors.index.json")


def make_space(model: str, out: str | Path, license: str | None = None, title: str | None = None) -> list[str]:
    """Write the folder of a Space, completely or not at all.

    Args:
        model: The folder of a saved DeiT or ViT, whose files are copied; or a name or short name on the Hub, from which
            the app loads the model.
        out: A new or empty folder.
        license: Licence identifier of the Hub. Default: unknown.
        title: Title of the Space. Default: the name of the model.

    Returns:
        The paths of the files, relative to `out`.

    Raises:
        PublishError: The model does not exist or cannot be published, `out` is neither new nor empty, or `license` or
            `title` is invalid.
        UserError: The model is incomplete.
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
            path = staging / MODEL_FOLDER / file.path_in_repo
            path.parent.mkdir(exist_ok=True)
            with file.as_file() as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _hub_name(model: str) -> str:
    name = published_name(model)
    if not is_repo_name(model) or not is_repo_name(name) or name.count("/") != 1:
        raise PublishError(f"No model at {model!r}. Give the folder of a saved model, or owner/name on the Hub.")
    return name


def _model_files(folder: Path) -> list[CommitOperationAdd]:
    """Return the files of a saved model that the app loads: weights, configuration and image processor."""
    if not folder.is_dir():
        raise PublishError(
            f"{folder} is a file. Give the folder of a saved model; hf-deit convert {folder} FOLDER makes such a "
            "folder from a file of weights."
        )
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"{folder} has no config.json. Give the folder of a saved model, such as the output_dir of hf-deit train."
        )
    config = read_facts(folder).config
    if config.get("model_type") not in attention_maps.MODEL_TYPES:
        raise PublishError(
            f"{folder} has model_type={config.get('model_type')!r}. The app shows the attention of tokens, which works "
            f"only for {' and '.join(attention_maps.MODEL_TYPES)} models."
        )
    if config.get("num_channels", 3) != 3:
        raise PublishError(
            f"{folder} has num_channels={config['num_channels']}. The app works only for colour images with 3 channels."
        )
    files = published_files(folder, f"local/{MODEL_FOLDER}")
    load_model(str(folder))  # raises an error if the model is incomplete
    return list(filter_repo_objects(files, allow_patterns=list(_LOADED_FILES), key=lambda file: file.path_in_repo))


def _write_template(folder: Path, name: str, title: str, license: str | None, hub_name: str | None) -> None:
    app = (TEMPLATE / "app.py").read_text(encoding="utf-8").replace(_MODEL, name)
    app = app.replace(f'"{_TITLE}"', json.dumps(title, ensure_ascii=False))
    (folder / "app.py").write_text(app, encoding="utf-8")
    shutil.copyfile(TEMPLATE / "requirements.txt", folder / "requirements.txt")
    shutil.copyfile(attention_maps.__file__, folder / "attention_maps.py")
    card = SpaceCard((TEMPLATE / "README.md").read_text(encoding="utf-8"))
    card.text = card.text.replace(_TITLE, title)
    card.data.title = title
    if license is not None:
        card.data.license = license
    if hub_name is not None:
        card.data.models = [hub_name]
    card.save(folder / "README.md")
