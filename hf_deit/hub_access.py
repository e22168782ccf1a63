"""Names on the Hub: whether a text can be one, and whether the Hub answers, so that a wrong name fails in seconds.

transformers and datasets repeat a request that finds no network for half a minute. `check_hub_name` asks once, and
`without_network` lets them read what is cached.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import PurePath

from .errors import UserError

# Extensions of files. Other suffixes, as in "timm/vit_tiny.augreg_in21k", are parts of a name.
_FILE_EXTENSIONS = frozenset(
    [
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".ndjson",
        ".parquet",
        ".arrow",
        ".xlsx",
        ".xls",
        ".txt",
        ".yaml",
        ".yml",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".7z",
        ".rar",
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".heic",
        ".npy",
        ".npz",
        ".h5",
        ".pth",
        ".pt",
        ".bin",
        ".ckpt",
        ".safetensors",
        ".onnx",
    ]
)
_SECONDS = 5.0


def looks_like_path(name: str) -> bool:
    """Return whether a text names a place on this machine and cannot be a name on the Hub.

    A name on the Hub is `name` or `owner/name` in letters, digits, `-`, `_` and `.`. A text that begins with `/`, `./`,
    `../` or `~`, contains a space, a backslash or more than one slash, or ends as a file does is a path.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.startswith((".", "~", "/")) or name.endswith("/") or os.path.isabs(name):
        return True
    if PurePath(name).suffix.lower() in _FILE_EXTENSIONS:
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def check_hub_name(name: str, repo_type: str, revision: str | None = None, error: type[UserError] = UserError) -> bool:
    """Check that a name can be on the Hub, and ask the Hub for it once.

    Args:
        name: Name that is not the path of an existing file or folder.
        repo_type: "model" or "dataset".
        revision: Branch, tag or commit. None for the main branch.
        error: Class of the error.

    Returns:
        Whether the Hub can be reached. If it cannot, only what is cached can be loaded, see `without_network`.

    Raises:
        UserError: The text is a path that does not exist, or the Hub does not have the name or the revision.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = "data" if repo_type == "dataset" else "model"
    if looks_like_path(name):
        raise error(f"No {what} at {name!r}: the path does not exist. Check the path.")
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=_SECONDS)
    except RevisionNotFoundError as cause:
        raise error(
            f"The {repo_type} {name!r} on the Hub has no revision {revision!r}: give a branch, a tag or a commit that exists."
        ) from cause
    except RepositoryNotFoundError as cause:
        raise error(
            f"No {what} at {name!r}: it is neither a path here nor a {repo_type} on the Hub that you can read. Check the "
            "name, or log in (hf auth login) if it is private."
        ) from cause
    except HfHubHTTPError:  # the Hub answers, and the following requests have a clearer error
        return True
    except Exception:  # no network; the class of the error depends on the HTTP library
        return False
    return True


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Let transformers and datasets read only what is cached, without requests that are repeated for half a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
