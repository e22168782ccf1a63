"""Published checkpoints by short names: `deit-tiny-distilled` → `facebook/deit-tiny-distilled-patch16-224`.

Pure functions of a string; loading is in building.py, teacher.py and checkpoint_loading.py.

Paper: Touvron et al., arXiv:2012.12877, Table 1 (the sizes that were published, on the Hub by their authors) and section 5
(its teacher, a RegNetY-16GF).
"""

import re
from pathlib import Path

_SHORT_NAME = re.compile(r"deit-(tiny|small|base)(-distilled)?(?:-patch16)?(?:-(224|384))?")
# The paper's teacher; `regnety_160` is the official code's name.
_TEACHERS = {"regnet-y-160": "facebook/regnet-y-160", "regnety-160": "facebook/regnet-y-160"}


def published_name(name_or_path: str) -> str:
    """Gives the Hub name of a published DeiT or of its teacher for a short one; anything else comes back as it was.

    Args:
        name_or_path: For example `deit-small`, `deit-base-distilled-384`, `regnet-y-160`, or the official code's
            `deit_tiny_distilled_patch16_224`. A folder or file of that name goes first.
    """
    return name_or_path if Path(name_or_path).exists() else full_name(name_or_path)


def full_name(name: str) -> str:
    """As `published_name`, whatever lies in the folder one is in."""
    short = str(name).lower().replace("_", "-")
    match = _SHORT_NAME.fullmatch(short)
    if match is None:
        return _TEACHERS.get(short, name)
    size, distilled, pixels = match.groups()
    if pixels == "384" and size != "base":
        return name  # only the base model was published at 384
    return f"facebook/deit-{size}{distilled or ''}-patch16-{pixels or 224}"
