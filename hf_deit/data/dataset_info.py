"""What is known about a data set of any kind without reading an image.

The data sets of this package have the attributes that `DatasetInfo` lists. A user's own data set may have them as well;
where it lacks them, they are None or False, and training works without the features that need them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import has_length

from ..losses import ProblemType


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set tells about itself.

    Args:
        images: Number of images; None for a stream.
        labels: Label of each image: a class index, or zeros and ones `(classes,)`. None if they are not known before the
            images are read.
        class_names: Name of each class, in index order.
        problem_type: Whether an image has one class or several.
        view_size: `(height, width)` of a view, in pixels.
        seed: Seed from which the views are drawn.
        takes_view_keys: Whether the data set is indexed by the view keys of sampling.py. The trainer then brings the
            sampler that yields them.
        makes_view_keys: Whether the rows of a stream carry view keys.
    """

    images: int | None = None
    labels: Sequence[Any] | None = None
    class_names: tuple[str, ...] | None = None
    problem_type: ProblemType | None = None
    view_size: tuple[int, int] | None = None
    seed: int | None = None
    takes_view_keys: bool = False
    makes_view_keys: bool = False


def inspect_dataset(dataset: Any) -> DatasetInfo:
    """Return what is known about a data set, without reading a row, which might draw random numbers.

    Args:
        dataset: Any data set, or None.

    Raises:
        ValueError: Its `problem_type` is unknown.
    """
    problem_type = getattr(dataset, "problem_type", None)
    return DatasetInfo(
        images=len(dataset) if has_length(dataset) else None,
        # Other libraries use the name `labels` for other things: it counts together with a problem type only.
        labels=None if problem_type is None else getattr(dataset, "labels", None),
        class_names=tuple(getattr(dataset, "class_names", None) or ()) or None,
        problem_type=None if problem_type is None else ProblemType(problem_type),
        view_size=getattr(dataset, "view_size", None),
        seed=getattr(dataset, "seed", None),
        takes_view_keys=bool(getattr(dataset, "takes_view_keys", False)),
        makes_view_keys=bool(getattr(dataset, "makes_view_keys", False)),
    )


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """Return what a resumed run must have in common with the run before it.

    Args:
        dataset: Any data set. One with a method `describe` describes itself; for a `datasets` data set the fingerprint
            counts.
    """
    if hasattr(dataset, "describe"):
        return dataset.describe()
    return {"fingerprint": getattr(dataset, "_fingerprint", None), "images": inspect_dataset(dataset).images}
