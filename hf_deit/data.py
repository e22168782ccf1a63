"""From rows to uint8 views, from views to batches.

`ViewDataset` turns a key of sampling.py into one augmented view of a source's image, `EvaluationDataset` an index into the
evaluation protocol's pixels. Images stay 8-bit until they are on the device: the trainer normalises them, for the student
and for the teacher each in its own way. Where images come from is in sources.py.
"""

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from .augmentation import Augmentation
from .image_processing_deit import evaluation_view
from .mixing import Mixing, draw_mixes
from .sampling import ViewKey, pair_generator, view_generator
from .sources import Source


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, height, width) uint8


class ViewDataset(torch.utils.data.Dataset):
    """Training images by view key: `dataset[key]` is that view, in any process and at any time.

    Args:
        source: The images.
        augmentation: What makes a view.
        seed: Of the run.
    """

    # The trainer then brings the sampler that yields keys.
    takes_view_keys = True

    def __init__(self, source: Source, augmentation: Augmentation, seed: int):
        self.source = source
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in index order."""
        return self.source.class_names

    @property
    def view_size(self) -> tuple[int, int]:
        """`(height, width)` of a view, in pixels."""
        return self.augmentation.view_size

    def describe(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before it."""
        return {
            "fingerprint": self.source.fingerprint,
            "images": len(self.source),
            "classes": list(self.class_names),
            "augmentation": asdict(self.augmentation),
            "seed": self.seed,
        }

    def __getitem__(self, key: ViewKey) -> dict[str, Any]:
        """Gives `pixel_values` `(3, height, width)` uint8, `labels`, the class index, and the `view_key` itself.

        Raises:
            TypeError: `key` is no ViewKey: an index alone would give the same view in every epoch.
            DataError: The image cannot be read.
        """
        if not isinstance(key, ViewKey):
            raise TypeError(
                f"ViewDataset takes keys of hf_deit.sampling.ViewSampler and got {key!r}. DistillationTrainer brings the "
                "sampler; to look at one view use dataset[ViewKey(epoch=0, index=…, view=0, position=0)]."
            )
        view = self.augmentation(self.source.image(key.index), view_generator(self.seed, key))
        return {"pixel_values": _to_tensor(view), "labels": self.source.labels[key.index], "view_key": key}


class EvaluationDataset(torch.utils.data.Dataset):
    """Images by index, as the saved image processor will show them to the student.

    Args:
        source: The images.
        image_size: `(height, width)` of the student, in pixels.
        crop_ratio: Share of the resized image the centre crop keeps.
        view_size: `(height, width)` for the teacher where it sees another size than the student.
    """

    def __init__(
        self,
        source: Source,
        image_size: tuple[int, int],
        crop_ratio: float = 0.875,
        view_size: tuple[int, int] | None = None,
    ):
        self.source = source
        self.image_size = image_size
        self.crop_ratio = crop_ratio
        self.view_size = None if view_size == image_size else view_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gives `pixel_values` uint8, `labels`, and `teacher_pixel_values` uint8 if the teacher's size differs."""
        image = self.source.image(index)
        item = {
            "pixel_values": _to_tensor(evaluation_view(image, self.image_size, self.crop_ratio)),
            "labels": self.source.labels[index],
        }
        if self.view_size is not None:
            item["teacher_pixel_values"] = _to_tensor(evaluation_view(image, self.view_size, self.crop_ratio))
        return item


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks rows to a batch; takes `label` for `labels`, numbers, lists, arrays and tensors.

    Raises:
        KeyError: A row has no `pixel_values`.
    """
    rows = [{("labels" if name == "label" else name): value for name, value in row.items()} for row in rows]
    if "pixel_values" not in rows[0]:
        raise KeyError(
            f"The training rows have {', '.join(rows[0])} and no 'pixel_values': give the data set a transform that makes "
            "them (dataset.with_transform), or a data collator of your own."
        )
    wanted = [name for name in rows[0] if name in ("pixel_values", "teacher_pixel_values", "labels")]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in wanted}


class MixingCollator:
    """Adds to a batch what its partners share: `mixes` `(batch, 5)`, see mixing.py.

    It is drawn from the keys of the rows; without keys from the global generator of `random`, which torch seeds in every
    worker. Pixels and labels are mixed by the trainer, on the device. Batches must be even.

    Args:
        collator: Makes the batch of the rows.
        mixing: How to mix.
        seed: Of the run.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], mixing: Mixing, seed: int):
        self.collator = collator
        self.mixing = mixing
        self.seed = seed

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collator(rows)
        keys = [row.get("view_key") for row in rows[::2]] if isinstance(rows[0], dict) else [None]
        if None in keys:
            generators = [random.Random(random.getrandbits(64)) for _ in rows[::2]]
        else:
            generators = [pair_generator(self.seed, key.epoch, key.position // 2) for key in keys]
        batch["mixes"] = draw_mixes(self.mixing, generators, *batch["pixel_values"].shape[-2:])
        return batch
