"""Upload of a model to the Hub: configuration, weights, image processor, card and its figures, recipe, results, training log and
calibration.

A report and the lists beside it hold photographs, or their names, and are never uploaded.

The files are selected by name, so that optimizer states, pickles, training arguments (which may contain a token),
checkpoints and the teacher are never uploaded by accident. Configuration, recipe, results and card are rewritten
without paths of the author's machine; the folder itself is not changed. trainer/hub_mixin.py, which pushes during
training, uses this module.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..errors import PublishError, UserError
from ..models.image_processing_deit import published_fields
from ..models.loading import WHOLE_FILES, load_model, refuse_adapters
from .facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, TOKEN, public_recipe, read_facts, without_machine
from .inspection_files import CALIBRATION_FILE
from .model_card import CARD_FILE, is_rendered, read_metadata, render_card

PROCESSOR_FILE = "preprocessor_config.json"
_WEIGHTS, _INDEX = WHOLE_FILES
_REVISION = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w-])?(?:/[A-Za-z0-9](?:[\w.-]*[\w-])?)*", re.ASCII)


def check_names(repo: str, branch: str | None = None, tag: str | None = None) -> None:
    """Check the name of a repository, a branch and a tag before anything is sent.

    Raises:
        PublishError: A name is invalid.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is not a valid name of a repository. Give owner/name. {error}") from error
    for kind, name in (("branch", branch), ("tag", tag)):
        if name is not None and (not _REVISION.fullmatch(name) or ".." in name or name.endswith(".lock")):
            raise PublishError(
                f"{name!r} is not a valid name of a {kind}. It consists of letters, digits and the characters "
                "- _ . /, and begins and ends with a letter, a digit or _, as in v1.0."
            )


# ---- the files ----


def published_files(folder: str | Path, repo: str) -> list[CommitOperationAdd]:
    """List the files of a model's folder that are uploaded, with the content that is published.

    Args:
        folder: A folder with config.json, image processor and safetensors weights, such as the output_dir of
            `hf-deit train`.
        repo: The name by which the code block of the card loads the model. A card written by hand is uploaded
            unchanged.

    Raises:
        PublishError: The folder contains no model, its weights are damaged or contain LayerScale, a text contains a
            token of the Hub, or config.json, recipe.yaml or results.json is invalid.
    """
    folder = Path(folder)
    _check_folder(folder)
    facts = read_facts(folder)
    config = {name: value for name, value in facts.config.items() if name != "_name_or_path"}
    contents: dict[str, bytes | Path] = {"config.json": _json(config)}
    contents |= {path.name: path for path in _weight_files(folder)}
    card = folder / CARD_FILE
    if card.is_file() and not is_rendered(card):
        contents[CARD_FILE] = card.read_bytes()
    else:
        contents[CARD_FILE] = str(render_card(facts, repo.split("/")[-1], repo, read_metadata(card))).encode()
    contents[PROCESSOR_FILE] = _processor(folder / PROCESSOR_FILE)
    if facts.recipe:
        recipe = yaml.safe_dump(public_recipe(facts.recipe), sort_keys=True, allow_unicode=True)
        contents[RECIPE_FILE] = recipe.encode()
    if facts.results:
        contents[RESULTS_FILE] = _json(without_machine(facts.results))
    if (folder / LOG_FILE).is_file():
        contents[LOG_FILE] = folder / LOG_FILE
    contents |= {name: folder / name for name in facts.pictures}
    if facts.inspection and (folder / CALIBRATION_FILE).is_file():
        contents[CALIBRATION_FILE] = folder / CALIBRATION_FILE
    for name, content in contents.items():
        _refuse_token(name, content)
    return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise PublishError(
            f"{folder} is a file. Give the folder of a saved model; hf-deit convert {folder} FOLDER makes such a "
            "folder from a file of weights."
        )
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"No model in {folder}: config.json is missing. Give a folder with config.json and weights, such as the "
            "output_dir of hf-deit train."
        )
    if not (folder / PROCESSOR_FILE).is_file():
        raise PublishError(
            f"{folder} has no {PROCESSOR_FILE}, which is required to prepare images for the model. Save the image "
            f'processor beside the weights: processor.save_pretrained("{folder}").'
        )


def _processor(file: Path) -> bytes | Path:
    """Return the file of the image processor, rewritten if only transformers 5 reads it, as one of version 0.1.0."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        published = published_fields(fields)
    except (ValueError, AttributeError) as error:
        raise PublishError(
            f"{file} is invalid ({error}). Save the image processor again beside the weights."
        ) from error
    return file if published == fields else _json(published)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _refuse_token(name: str, content: bytes | Path) -> None:
    if name.endswith((".safetensors", ".png")):
        return
    text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
    if TOKEN.search(text):
        raise PublishError(
            f"{name} contains a token of the Hub (hf_…). Remove the token from the file, then push again."
        )


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files, after opening each: one file, or shards and their index."""
    paths, index = [folder / _WEIGHTS], folder / _INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise PublishError(f"{index} is not a valid index of weight files. Save the model again.") from error
        outside = [
            name
            for name in shards
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors")
        ]
        if outside:
            raise PublishError(
                f"{index} names {outside}, which are not safetensors files in this folder. Save the model again."
            )
        paths = [folder / name for name in shards]
    for path in paths:
        _check_weights(path)
    return [*paths, *([index] if index.is_file() else [])]


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise PublishError(
            f"No weights at {path}. Only safetensors files are published, which save_model and save_pretrained write. "
            "A .bin or .pth file is a pickle; convert it with hf-deit convert."
        )
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise PublishError(f"{path} is broken: {error}. Save the model again.") from error
    scales = [name for name in names if name.endswith(".lambda1") or ".layer_scale" in name]
    if scales:
        raise PublishError(
            f"{path} contains LayerScale ({len(scales)} tensors, the first is {scales[0]!r}). transformers would "
            "ignore these tensors without a warning and compute another function. Push the output_dir of the run "
            "instead of a checkpoint, or fold LayerScale into the other weights: load the model, then call "
            "model.save_pretrained(OTHER_FOLDER, fold_layer_scale=True)."
        )


# ---- the upload ----


def push(
    folder: str | Path,
    repo: str,
    private: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> tuple[list[CommitOperationAdd], str | None]:
    """Publish a saved model in one commit. A push that failed can be repeated; the folder is not changed.

    Args:
        folder: The folder of the model, see `published_files`.
        repo: owner/name, or a name in the account of the login. A missing repository is created.
        private: Whether to create a private repository. An existing public repository is refused.
        branch: The branch to push to; a missing one is created. Default: main.
        tag: A new tag for the commit.
        dry_run: Whether only to list the files. Nothing is sent, and no login is needed.
        api: Client of the Hub. Default: one with the login of `hf auth login`.

    Returns:
        The files, and the address of the commit (None for a dry run).

    Raises:
        PublishError: The model or a name is invalid, or the upload failed.
        UserError: The model is incomplete, such as a backbone without a classifier.
    """
    check_names(repo, branch, tag)
    files = published_files(folder, repo)
    load_model(str(folder))  # raises an error if the model is incomplete
    if dry_run:
        return files, None
    api = api if api is not None else HfApi()
    with explain_failures(repo, folder):
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(name).private:
            raise PublishError(
                f"{name} already exists and is public. Make it private on the Hub first, or push without --private."
            )
        if tag is not None and tag in [known.name for known in api.list_repo_refs(name).tags]:
            raise PublishError(f"{name} already has the tag {tag!r}. Choose another tag. No file was uploaded.")
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        commit = api.create_commit(name, files, commit_message="Push by hf_deit", revision=branch)
        if tag is not None:
            api.create_tag(name, tag=tag, revision=commit.oid)
        return files, commit.commit_url


@contextlib.contextmanager
def explain_failures(repo: str, folder: str | Path) -> Iterator[None]:
    """Turn a failure of the Hub or of the connection into an error that explains the failure and what to do.

    Args:
        repo: The repository to which the code in the `with` block uploads.
        folder: The folder of the model.

    Raises:
        PublishError: The code in the block failed.
    """
    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise PublishError(
            f"A push to {repo} requires a login. Run hf auth login with a token that has write access."
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # A failed upload in a thread is raised as a RuntimeError whose cause is the error of the Hub or of the
        # connection.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = TOKEN.sub("(removed)", str(cause))
        raise PublishError(f"{_meaning(cause, repo)} Nothing in {folder} was changed.\n{reason}") from error


def _meaning(error: BaseException, repo: str) -> str:
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        meanings = {
            401: f"The Hub does not accept the token for {repo}. Run hf auth login with a token that has write access.",
            403: f"The token has no write access to {repo}. Use a token with write access, or another owner.",
            404: f"{repo} does not exist, or the token has no access to it. Check owner and name, and the token.",
            409: f"{repo} already has a branch, tag or repository of this name. Choose another name.",
        }
        failed = f"The Hub reported an error ({status or 'no response'}) during the push to {repo}. Push again later."
        return meanings.get(status, failed)
    if isinstance(error, ValueError):
        return f"The Hub does not accept the files for {repo}; the reason is below."
    return (
        f"The Hub could not be reached for the push to {repo} ({type(error).__name__}). Push again when the connection "
        "works."
    )
