"""Weights of the classes in the loss on the labels: read from a mapping or a file, or computed from the labels.

losses.py defines what a weight does, and `losses.balanced_weights` the formula of `class_weights="balanced"`.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError, listed
from ..files import parsed_yaml
from ..losses import balanced_weights
from ..models.label_names import normal_form

CLASS_WEIGHTS = ("none", "balanced")


def read_class_weights(given: Any) -> str | dict[str, float]:
    """Return the value of `class_weights` as "none", "balanced" or a mapping from class name to weight.

    Args:
        given: One of these; or JSON of a mapping; or the path of a file (.json, .yaml, .yml, .csv or .tsv).

    Raises:
        RecipeError: The file cannot be read, or a weight is not a number that is finite and not negative.
    """
    if given is None or (isinstance(given, str) and given in CLASS_WEIGHTS):
        return given or "none"
    if isinstance(given, Mapping):
        return _checked(given, "class_weights")
    if not isinstance(given, str):
        raise RecipeError(
            f"class_weights={given!r}: choose one of none, balanced, or give a mapping from class name to weight, or a "
            "file of one."
        )
    if given.lstrip().startswith("{"):
        try:
            return _checked(json.loads(given), "class_weights")
        except json.JSONDecodeError as error:
            raise RecipeError(f"class_weights={given!r} is not valid JSON: {error}.") from error
    return _from_file(Path(given).expanduser())


def _from_file(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise RecipeError(
            f"class_weights={str(path)!r}: choose one of none, balanced, or give an existing file (.json, .yaml, .csv) or a "
            "mapping from class name to weight."
        )
    if path.suffix.lower() in (".json", ".yaml", ".yml"):  # JSON is YAML
        return _checked(parsed_yaml(path, RecipeError), str(path))
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise RecipeError(f"class_weights={str(path)!r}: give a file that ends in .json, .yaml, .csv or .tsv.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    if rows and len(rows[0]) == 2 and _number(rows[0][1]) is None:
        rows = rows[1:]  # names of the columns
    weights: dict[str, Any] = {}
    for row in rows:
        if len(row) != 2:
            raise RecipeError(f"{path}: the line {delimiter.join(row)!r} must hold a class and a weight.")
        if row[0].strip() in weights:
            raise RecipeError(f"{path}: the class {row[0].strip()!r} has two weights. Keep one of them.")
        weights[row[0].strip()] = row[1]
    return _checked(weights, str(path))


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _checked(weights: Any, where: str) -> dict[str, float]:
    if not isinstance(weights, Mapping) or not weights:
        raise RecipeError(
            f"{where} must hold a mapping from class name to weight, for example {{'cat': 2.0, 'dog': 1.0}}."
        )
    weights = {normal_form(str(name).strip()): weight for name, weight in weights.items()}
    numbers = {name: _number(weight) for name, weight in weights.items()}
    for name, number in numbers.items():
        if number is None or not 0 <= number < math.inf:
            raise RecipeError(
                f"{where}: the weight of {name!r} is {weights[name]!r}. Give a number that is finite and not negative."
            )
    if not any(numbers.values()):
        raise RecipeError(f"{where}: all weights are 0, so the student would learn nothing from the labels.")
    return numbers


def weight_problems(
    weights: str | Mapping[str, float], class_names: Sequence[str] | None, num_labels: int
) -> Iterator[str]:
    """Yield the differences between the classes of a mapping of weights and those of the student.

    Args:
        weights: Value of `class_weights`, as `read_class_weights` returns it.
        class_names: Class names of the student, in index order; None if it has none. Its indices are the names then.
        num_labels: Number of classes.
    """
    if isinstance(weights, str):
        return
    names = _names(class_names, num_labels)
    missing = [name for name in dict.fromkeys(names) if name not in weights]
    unknown = [name for name in weights if name not in names]
    if missing:
        yield (
            f"class_weights has no weight for {len(missing)} of {len(names)} classes: {listed(missing)}. Give every "
            "class a weight."
        )
    if unknown:
        close = get_close_matches(unknown[0], names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" The classes are {listed(names)}."
        yield f"class_weights names {listed(unknown)}, which is not a class of the student.{hint}"


def weights_of(
    weights: str | Mapping[str, float],
    *,
    class_names: Sequence[str] | None,
    num_labels: int,
    labels: Sequence[int] | Sequence[Sequence[int]] | None,
    power: float = 1.0,
) -> Tensor | None:
    """Return the weight of each class in the loss on the labels, `(num_labels,)` float32.

    Args:
        weights: Value of `class_weights`, as `read_class_weights` returns it.
        class_names: As in `weight_problems`.
        num_labels: Number of classes.
        labels: Class index of each training image, or zeros and ones `(images, num_labels)` for multi-label data; None
            if they are not known.
        power: Power in [0, 1] to which the weights are raised. Softened balanced weights of single-label data are scaled
            so that the mean weight of the training images is 1, as it is without softening.

    Returns:
        The weights; None if all classes have the same weight, or if balanced weights are requested without labels.
    """
    if isinstance(weights, Mapping):
        given = torch.tensor([weights[name] for name in _names(class_names, num_labels)])
        return torch.where(given > 0, given**power, 0.0)
    if weights == "none" or labels is None:
        return None
    balanced = balanced_weights(labels, num_labels)
    if power == 1:
        return balanced
    softened = torch.where(balanced > 0, balanced**power, 0.0)
    indices = torch.as_tensor(labels, dtype=torch.long)
    return softened if indices.ndim == 2 else softened / softened[indices].mean()


def _names(class_names: Sequence[str] | None, num_labels: int) -> list[str]:
    return (
        [normal_form(name.strip()) for name in class_names]
        if class_names is not None
        else [str(i) for i in range(num_labels)]
    )
