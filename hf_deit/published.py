"""Published DeiT checkpoints by short names: `deit-tiny-distilled` → `facebook/deit-tiny-distilled-patch16-224`.

A pure function of a string; loading is in building.py and checkpoint_loading.py.

Paper: Touvron et al., arXiv:2012.12877, Table 1 (the sizes that were published, on the Hub by their authors).
"""

import re
from pathlib import Path

_SHORT_NAME = re.compile(r"deit-(tiny|small|base)(-distilled)?(?:-patch16)?(?:-(224|384))?")


def published_name(name_or_path: str) -> str:
    """Gives the Hub name of a published DeiT for a short one; anything else comes back as it was.

    Args:
        name_or_path: For example `deit-small`, `deit-base-distilled-384`, or the official code's
            `deit_tiny_distilled_patch16_224`. A folder or file of that name goes first.
    """
    match = _SHORT_NAME.fullmatch(str(name_or_path).lower().replace("_", "-"))
    if match is None or Path(name_or_path).exists():
        return name_or_path
    size, distilled, pixels = match.groups()
    if pixels == "384" and size != "base":
        return name_or_path  # only the base model was published at 384
    return f"facebook/deit-{size}{distilled or ''}-patch16-{pixels or 224}"
