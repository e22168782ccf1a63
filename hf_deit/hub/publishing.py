"""What of a model's folder goes to the Hub, and the upload: weights, processor, card, recipe, results; nothing else.

The files are listed by name, so that optimizer states, pickles, arguments (which may hold a token), checkpoints and the
teacher cannot get in by accident. Recipe and card are written for others: without paths of the author's machine. Nothing in
the folder is changed. What the Trainer pushes while it trains goes through here too (hub_mixin.py).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..errors import PublishError, UserError
from ..models.loading import WHOLE_FILES, load_model, refuse_adapters
from .facts import LOG_FILE, RECIPE_FILE, RESULTS_FILE, TOKEN, public_recipe, read_facts, without_machine
from .model_card import CARD_FILE, is_rendered, render_card, statements_of

T = TypeVar("T")
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS, _INDEX = WHOLE_FILES
_REVISION = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w-])?(?:/[A-Za-z0-9](?:[\w.-]*[\w-])?)*", re.ASCII)


@dataclass(frozen=True)
class PublishedFile:
    """A file as it goes up.

    Args:
        name: In the repository.
        content: Its bytes, or the local file that holds them.
    """

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def check_names(repo: str, branch: str | None = None, tag: str | None = None) -> None:
    """Checks the name of a repository, a branch and a tag before anything is sent.

    Raises:
        PublishError: One is not allowed.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is no name of a repository: give owner/name. {error}") from error
    for what, name in (("branch", branch), ("tag", tag)):
        if name is not None and (not _REVISION.fullmatch(name) or ".." in name or name.endswith(".lock")):
            raise PublishError(
                f"{name!r} is no name of a {what}: letters, digits, -, _, . and / between them, such as v1.0."
            )


def published_files(folder: str | Path, repo: str) -> list[PublishedFile]:
    """Lists what of a model's folder goes up, with its content for others.

    Args:
        folder: With config.json, image processor and safetensors weights, such as the output_dir of `hf-deit train`.
        repo: The card's code block loads the model by this name. A card written by hand goes up as it is.

    Raises:
        PublishError: There is no model, its weights are broken or hold LayerScale, or a text holds a token of the Hub.
        PublishError: config.json, recipe.yaml or results.json cannot be read.
    """
    folder = Path(folder)
    _check_folder(folder)
    facts = read_facts(folder)
    config = {name: value for name, value in facts.config.items() if name != "_name_or_path"}
    files = [PublishedFile("config.json", _json(config))]
    files += [PublishedFile(path.name, path) for path in _weights(folder)]
    card = folder / CARD_FILE
    if card.is_file() and not is_rendered(card):
        content = card.read_bytes()
    else:
        content = str(render_card(facts, repo.split("/")[-1], repo, statements_of(card))).encode()
    files.append(PublishedFile(CARD_FILE, content))
    files.append(PublishedFile(_PROCESSOR, folder / _PROCESSOR))
    if facts.recipe:
        recipe = yaml.safe_dump(public_recipe(facts.recipe), sort_keys=True, allow_unicode=True)
        files.append(PublishedFile(RECIPE_FILE, recipe.encode()))
    if facts.results:
        files.append(PublishedFile(RESULTS_FILE, _json(without_machine(facts.results))))
    if (folder / LOG_FILE).is_file():
        files.append(PublishedFile(LOG_FILE, folder / LOG_FILE))
    for file in files:
        _refuse_token(file)
    return files


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise PublishError(
            f"{folder} is a file, and a folder is published: make one with hf-deit convert {folder} FOLDER."
        )
    refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"No model in {folder}: give a folder with config.json and weights, such as the output_dir of hf-deit train."
        )
    if not (folder / _PROCESSOR).is_file():
        raise PublishError(
            f"{folder} holds no {_PROCESSOR}, without which others cannot give the model an image: save the image processor "
            f'beside the weights, processor.save_pretrained("{folder}").'
        )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _refuse_token(file: PublishedFile) -> None:
    if file.name.endswith(".safetensors"):
        return
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    if TOKEN.search(content.decode(errors="replace")):
        raise PublishError(
            f"{file.name} holds what looks like a token of the Hub (hf_…): take it out, then push again."
        )


def _weights(folder: Path) -> list[Path]:
    """The weights in one file or in shards; each is opened."""
    paths = [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise PublishError(f"{folder / _INDEX} is no index of weights: save the model again.") from error
        if any(
            not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors") for name in shards
        ):
            raise PublishError(f"{folder / _INDEX} names files that are no safetensors of this folder: {shards}.")
        paths = [folder / name for name in shards]
    for path in paths:
        _check_weights(path)
    return [*paths, *([folder / _INDEX] if (folder / _INDEX).is_file() else [])]


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise PublishError(
            f"No weights at {path}: only safetensors are published, as save_model and save_pretrained write them (a .bin or "
            ".pth is a pickle: convert it first)."
        )
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise PublishError(f"{path} is broken ({error}): save the model again.") from error
    gammas = [name for name in names if name.endswith(".lambda1") or ".layer_scale" in name]
    if gammas:
        raise PublishError(
            f"{path} holds LayerScale ({len(gammas)} tensors, the first {gammas[0]!r}), which stock transformers would ignore "
            "without a word and compute another function. Push the output_dir of the run instead of a checkpoint, or fold it: "
            "load the model, then model.save_pretrained(OTHER_FOLDER, fold_layer_scale=True)."
        )


def commit(
    api: HfApi,
    repo: str,
    files: list[PublishedFile],
    message: str,
    revision: str | None = None,
    token: str | None = None,
    run_as_future: bool = False,
) -> Any:
    """Sends files in one commit: all of them are there afterwards, or none.

    Returns:
        huggingface_hub's CommitInfo, or a future of one.
    """
    operations = [
        CommitOperationAdd(
            path_in_repo=file.name,
            path_or_fileobj=file.content if isinstance(file.content, bytes) else str(file.content),
        )
        for file in files
    ]
    return api.create_commit(
        repo, operations, commit_message=message, revision=revision, token=token, run_as_future=run_as_future
    )


def push(
    folder: str | Path,
    repo: str,
    private: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> tuple[list[PublishedFile], str | None]:
    """Publishes a saved model; can be repeated after a failure, and changes nothing in the folder.

    Args:
        folder: As `published_files`.
        repo: owner/name, or a name in one's own account; made if it is not there.
        private: Make it private; a public one that is there already is refused.
        branch: To push to, made if it is not there; default: main.
        tag: To set on the commit.
        dry_run: Only list; nothing is sent, and no login is needed.
        api: Of another server or with a token; default: the login of `hf auth login`.

    Returns:
        The files, and the address of the commit; None for a dry run.

    Raises:
        PublishError: The model or a name is not allowed, or the Hub did not take it.
        PublishError: As `published_files`.
        UserError: The weights are not whole, such as a backbone's without classifier.
    """
    check_names(repo, branch, tag)
    files = published_files(folder, repo)
    load_model(str(folder))  # whole, or refused
    if dry_run:
        return files, None
    api = api if api is not None else HfApi()

    def send() -> str:
        made = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(made).private:
            raise PublishError(
                f"{made} is there already and public: make it private on the Hub first, or leave --private out."
            )
        if tag is not None and tag in [known.name for known in api.list_repo_refs(made).tags]:
            raise PublishError(f"{made} has a tag {tag!r} already, so nothing was sent: choose another name.")
        if branch is not None:
            api.create_branch(made, branch=branch, exist_ok=True)
        done = commit(api, made, files, "Push by hf_deit", revision=branch)
        if tag is not None:
            api.create_tag(made, tag=tag, revision=done.oid)
        return done.commit_url

    return files, explained(send, repo, folder)


def explained(send: Callable[[], T], repo: str, folder: str | Path) -> T:
    """Calls `send`, and says of an error of the Hub or of the connection what it means and how to mend it.

    Raises:
        PublishError: It failed.
    """
    try:
        return send()
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise PublishError(f"Nobody is logged in to push to {repo}: hf auth login (a token that may write).") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # An upload that fails on a thread comes wrapped; what the Hub or the connection said is its cause.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if isinstance(cause, HfHubHTTPError):
            meaning = _meaning(getattr(cause.response, "status_code", None), repo)
        elif isinstance(cause, ValueError):
            meaning = f"The Hub does not take what was pushed to {repo}."
        else:
            meaning = (
                f"The Hub was not reached for {repo} ({type(cause).__name__}): push again once the connection is back."
            )
        raise PublishError(f"{meaning} Nothing in {folder} was changed.\n{_said(cause)}") from error


def _said(error: Exception) -> str:
    return TOKEN.sub("(removed)", str(error))


def _meaning(status: int | None, repo: str) -> str:
    meanings = {
        401: f"The Hub does not know the token for {repo}: hf auth login again, with one that may write.",
        403: f"The token may not write to {repo}: take one with write access, or another owner.",
        404: f"The Hub has no {repo}, or hides it from this token: check owner and name, and the token.",
        409: f"The Hub has something of that name at {repo} already (a tag?): choose another name.",
    }
    return meanings.get(status, f"The Hub failed ({status or 'no answer'}) while {repo} was pushed: push again later.")
