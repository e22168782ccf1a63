"""The teacher's opinion on single images, from a cache that was made for a training.

A cache holds the teacher's outputs for views. A validation image has one, which an evaluation shows. A training image has many, which are
augmented and may be mixed with a partner: its opinion is the mean of the teacher's probabilities over the views that show it (nearly)
alone. cache.py has the file format; recipes/cached_prediction_teacher.py finds the images of the cache in data.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.batch_ops import Mixing
from ..data.sampling import BatchShares, keys_at, pair_generator
from ..errors import TeacherCacheError
from ..models.label_names import match_classes
from .cache import TeacherCache

# A view counts if the image itself has at least this share of its pixels.
OWN_SHARE = 0.9
_RECORDS_AT_ONCE = 4096


def open_cache(folder: str) -> TeacherCache:
    """Open a cache whose outputs are probabilities of all classes.

    Raises:
        TeacherCacheError: The folder is not a cache, is damaged, or holds no logits of all classes.
    """
    cache = TeacherCache(folder, arrays=())
    stored = cache.record_format
    if stored.kind != "dense":
        held = "the predicted classes" if stored.kind == "hard" else f"the {stored.top_k} largest logits"
        raise TeacherCacheError(
            f"teacher_cache={folder!r} holds {held} of each view (kind {stored.kind!r}), from which the probabilities of all classes do "
            "not follow. Give the teacher itself (teacher), or a cache of all logits (hf-deit cache-teacher --kind soft without --top_k)."
        )
    return cache


class CachedOpinions:
    """Opinions of the teacher of a cache on training and validation images, by their index in the cached data.

    Args:
        cache: Cache of all logits, see `open_cache`.
        class_names: Classes in whose order the opinions are, which the cache must know.
        problem_type: Problem type of these classes.
        shares: Labelled and unlabelled images of the cached training, if a share of each batch was unlabelled.

    Raises:
        TeacherCacheError: The cache does not know a class, or has another problem type.
    """

    def __init__(
        self, cache: TeacherCache, class_names: Sequence[str], problem_type: str, shares: BatchShares | None = None
    ):
        self.cache, self.shares = cache, shares
        self.multi_label = cache.record_format.is_multi_label
        stored = cache.record_format.problem_type
        if str(stored) != str(problem_type):
            raise TeacherCacheError(
                f"teacher_cache={str(cache.folder)!r} holds outputs for other labels:\n  problem_type: {str(stored)!r} in the cache, "
                f"{str(problem_type)!r} in the model\nGive a cache of the data of the model."
            )
        self._columns = self._find_columns(class_names)
        self._means: tuple[np.ndarray, np.ndarray] | None = None

    def _find_columns(self, class_names: Sequence[str]) -> list[int]:
        def refuse(problem: str) -> TeacherCacheError:
            return TeacherCacheError(
                f"teacher_cache={str(self.cache.folder)!r} has other classes than the model:\n  classes: {known} in the cache, "
                f"{list(class_names)} in the model\nGive a cache whose classes include those of the model."
            )

        known = [name.strip() for name in self.cache.manifest["views"]["data"]["classes"]]
        match = match_classes([name.strip() for name in class_names], known, refuse)
        if match.by_index or match.same:
            raise refuse("")
        return match.indices

    def of_validation(self, index: int) -> Tensor:
        """Return the teacher's logits for a validation image, `(num_labels,)`, as the evaluation of the training has them."""
        return self.cache.validation_outputs([index])["teacher_logits"][0, self._columns]

    def of_training(self, index: int) -> tuple[Tensor, int]:
        """Return logits whose probabilities are the mean over the views of a training image, `(num_labels,)`, and the number of views.

        The number is 0 if no view shows the image alone; the logits are then not defined.
        """
        sums, counts = self._training_means()
        count = int(counts[index])
        mean = torch.from_numpy(sums[index] / max(count, 1))
        return (mean.log() - torch.log1p(-mean) if self.multi_label else mean.log()), count

    @property
    def training_views(self) -> np.ndarray:
        """Number of views of each training image that count, `(images,)`."""
        return self._training_means()[1]

    def _training_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of the probabilities of each training image over its views, and the number of these views."""
        if self._means is None:
            views = self.cache.manifest["views"]
            images = views["data"]["images"] + views["data"].get("unlabelled", {}).get("images", 0)
            sums, counts = np.zeros((images, len(self._columns))), np.zeros(images, dtype=np.int64)
            for epoch in range(self.cache.epochs):
                for positions, indices in self._views_of_epoch(epoch, images):
                    logits = self.cache.outputs(epoch, positions)["teacher_logits"][:, self._columns].double()
                    probabilities = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
                    np.add.at(sums, indices, probabilities.numpy())
                    np.add.at(counts, indices, 1)
            self._means = sums, counts
        return self._means

    def _views_of_epoch(self, epoch: int, images: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield positions of views that count, and the indices of their images."""
        views = self.cache.manifest["views"]
        seed, size = views["data"]["seed"], views["data"]["augmentation"]["view_size"]
        mixing = Mixing(**views["mixing"])
        positions = [
            2 * pair + partner
            for pair in range(self.cache.records_per_epoch // 2)
            if not mixing.is_on or _own_share(mixing.draw(pair_generator(seed, epoch, pair), *size)) >= OWN_SHARE
            for partner in (0, 1)
        ]
        keys = keys_at(seed, images, epoch, positions, self.shares)
        for start in range(0, len(positions), _RECORDS_AT_ONCE):
            part = slice(start, start + _RECORDS_AT_ONCE)
            yield positions[part], [key.index for key in keys[part]]


def _own_share(mix: Sequence[float]) -> float:
    """Return the share of an image itself after mixing, from the values of `MIX_COLUMNS`."""
    share, top, bottom, left, right = mix
    return share * (1 - (bottom - top) * (right - left))
