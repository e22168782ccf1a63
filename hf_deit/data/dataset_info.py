"""Properties of any data set that are known without reading an image.

The data sets of this package have the attributes that `inspect_dataset` reads. A user's own data set may have them as
well. If an attribute is missing, the property is None or False, and training works without the features that need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import has_length

from ..losses import ProblemType
from .labels import has_label
from .sampling import BatchShares


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a data set.

    Args:
        images: Number of images. None for a stream.
        labels: Label of each image: a class index or, for multi-label data, zeros and ones `(classes,)`. None if they
            are not known before the images are read.
        class_names: Name of each class, in index order.
        problem_type: Problem type, such as single-label or multi-label.
        view_size: `(height, width)` of a view, in pixels.
        seed: Seed of the random generators of the views.
        takes_view_keys: Whether the data set is indexed by the view keys of sampling.py. If so, the trainer creates the
            sampler that yields them.
        makes_view_keys: Whether the rows of a stream contain view keys.
        unlabelled_images: Number of images without a label. None if it is not known before the images are read.
        extra_unlabelled: Number of images, the last ones, that are a set of unlabelled images beside the others.
        unlabelled_share: Share of each global batch that these images have. None if there are none.
    """

    images: int | None = None
    labels: Sequence[Any] | None = None
    class_names: tuple[str, ...] | None = None
    problem_type: ProblemType | None = None
    view_size: tuple[int, int] | None = None
    seed: int | None = None
    takes_view_keys: bool = False
    makes_view_keys: bool = False
    unlabelled_images: int | None = None
    extra_unlabelled: int = 0
    unlabelled_share: float | None = None

    @property
    def labelled(self) -> Sequence[Any] | None:
        """Labels of the images that have one. None if the labels are not known before the images are read."""
        if self.labels is None or all(map(has_label, self.labels)):
            return self.labels
        return [label for label in self.labels if has_label(label)]

    def batch_shares(self, global_batch_size: int) -> BatchShares | None:
        """Return the shares of labelled and unlabelled images in a batch; None if there is no set of unlabelled images.

        Args:
            global_batch_size: Number of images per optimizer step, over all processes and accumulation steps.

        Raises:
            ValueError: As in `BatchShares`.
        """
        if not self.extra_unlabelled or not self.takes_view_keys:
            return None
        labelled = self.images - self.extra_unlabelled
        return BatchShares(labelled, self.extra_unlabelled, global_batch_size, self.unlabelled_share)

    @property
    def sampler_fields(self) -> dict[str, Any]:
        """The arguments of `sampling.ViewSampler` that describe the unlabelled images; empty if there are none."""
        if not self.extra_unlabelled:
            return {}
        return {"unlabelled": self.extra_unlabelled, "unlabelled_share": self.unlabelled_share}


def inspect_dataset(dataset: Any) -> DatasetInfo:
    """Return the properties of a data set without reading a row. Reading a row might draw random numbers.

    Args:
        dataset: Any data set, or None.

    Raises:
        ValueError: The `problem_type` of the data set is unknown.
    """
    problem_type = getattr(dataset, "problem_type", None)
    # Other libraries use the name `labels` for other things, so it is used only if the data set also has a problem type.
    own = problem_type is not None
    share = getattr(dataset, "unlabelled_share", None) if own else None
    return DatasetInfo(
        images=len(dataset) if has_length(dataset) else None,
        labels=getattr(dataset, "labels", None) if own else None,
        class_names=tuple(getattr(dataset, "class_names", None) or ()) or None,
        problem_type=None if problem_type is None else ProblemType(problem_type),
        view_size=getattr(dataset, "view_size", None),
        seed=getattr(dataset, "seed", None),
        takes_view_keys=bool(getattr(dataset, "takes_view_keys", False)),
        makes_view_keys=bool(getattr(dataset, "makes_view_keys", False)),
        unlabelled_images=getattr(dataset, "unlabelled_images", None) if own else None,
        extra_unlabelled=0 if share is None else len(dataset.unlabelled),
        unlabelled_share=share,
    )


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """Return the properties of the data that must be the same when a run is resumed.

    Args:
        dataset: Any data set. If it has a method `describe`, the result of that method is returned. Otherwise the
            result contains the number of images and, for a `datasets` data set, the fingerprint.
    """
    if hasattr(dataset, "describe"):
        return dataset.describe()
    return {"fingerprint": getattr(dataset, "_fingerprint", None), "images": inspect_dataset(dataset).images}
