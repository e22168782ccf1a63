"""calibration.json beside a model: temperatures by which its logits are divided, so that probabilities match how often they are right.

inspection/calibration.py fits the temperatures on validation images (temperature scaling: Guo et al., arXiv:1706.04599), and
predict.py applies them.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..hub.inspection_files import CALIBRATION_FILE
from ..models.loading import full_name
from ..models.weights_digest import file_of, weights_digest


def read_temperatures(name_or_path: str, heads: Sequence[str]) -> dict[str, float]:
    """Read the temperatures of a model.

    Args:
        name_or_path: Folder or Hub name of the model.
        heads: Its heads, if it has two: "cls" and "distillation".

    Returns:
        The temperature of the prediction, under the name "", and those of the heads.

    Raises:
        UserError: The model has no calibration.json, the file is invalid, or it was made for other weights.
    """
    name = name_or_path if Path(name_or_path).exists() else full_name(name_or_path)
    file = file_of(name, CALIBRATION_FILE)
    if file is None:
        raise UserError(
            f"calibrated: {name_or_path} has no {CALIBRATION_FILE}. Make it with hf-deit report {name_or_path} --data DATA --out DIR, "
            "where DATA has labelled validation images, or leave out calibrated."
        )
    content = _content(file)
    if content["weights"] != weights_digest(name):
        raise UserError(
            f"calibrated: {file} was made for other weights than those that are now in {name_or_path}. Make it again with "
            f"hf-deit report {name_or_path} --data DATA --out DIR."
        )
    temperatures = content["temperatures"]
    missing = [name for name in ("prediction", *heads) if name not in temperatures]
    if missing:
        raise UserError(
            f"{file} has no temperature of {', '.join(missing)}. Make it again with hf-deit report {name_or_path}."
        )
    return {"": temperatures["prediction"], **{head: temperatures[head] for head in heads}}


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        values = {str(name): float(value) for name, value in content["temperatures"].items()}
        if not all(math.isfinite(value) and value > 0 for value in values.values()):
            raise ValueError(f"temperatures must be above 0, and it has {values}")
        return {"weights": content["weights"], "temperatures": values}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{file} is invalid ({type(error).__name__}: {error}). Make it again with hf-deit report."
        ) from error
