"""`KeyedTrainer`: samplers and loaders of view keys, mixed partners and cached teacher outputs.

A data set that takes no view keys has the loaders of the stock Trainer. data/sampling.py draws the keys, data/views.py
computes the views, and distillation/cached_teacher.py looks up the cached outputs.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.dataset_info import inspect_dataset
from ..data.sampling import ViewSampler
from ..data.views import MixingCollator, ViewDataset
from ..distillation.cached_teacher import CachedSampler, CachedTeacher
from .environment import local_processes
from .label_checks import LabelChecker
from .scheduled_trainer import ScheduledTrainer

logger = logging.getLogger(__name__)


class KeyedTrainer(ScheduledTrainer):
    """Trainer whose training loader yields complete global batches of views, and cached teacher outputs with them.

    Args:
        *args: As for `ScheduledTrainer`.
        **kwargs: As for `ScheduledTrainer`.
    """

    # Cached teacher outputs, which are added to the batches of the images that have some. None: there is no cache.
    cached: CachedTeacher | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mixing = self.args.mixing

    @property
    def _learns_from_cache(self) -> bool:
        """Whether the training learns from cached teacher outputs, which otherwise serve evaluations only."""
        return self.cached is not None

    @property
    def _learns_from_unlabelled(self) -> bool:
        """Whether the student learns something from an image without a label."""
        return self._learns_from_cache

    def _warn_if_not_keyed(self, dataset: Dataset | None) -> None:
        # A stream makes its own view keys, and logs its own warnings.
        info = inspect_dataset(dataset)
        if dataset is not None and not (info.takes_view_keys or info.makes_view_keys):
            logger.warning(
                "The training data (%s) do not take view keys, so their augmentation uses the global random generator: "
                "a resumed run is not exactly equal to an uninterrupted one, and the pixels depend on the number of "
                "workers. With a ViewDataset, both are exact.",
                type(dataset).__name__,
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not inspect_dataset(dataset).takes_view_keys:
            return super()._get_train_sampler(dataset)
        learns = self._learns_from_cache
        sampler = ViewSampler if not learns else functools.partial(CachedSampler, self.cached.cache)
        return sampler(
            size=len(dataset),
            global_batch_size=self.args.global_batch_size,
            seed=dataset.seed,
            num_views=self.cached.num_views if learns else self.args.num_views,
            repeats=self.args.repeated_augmentation,
            **inspect_dataset(dataset).sampler_fields,
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of images in an epoch, from which the Trainer computes the images per second."""
        info = inspect_dataset(self.train_dataset)
        if info.extra_unlabelled and getattr(dataloader, "dataset", None) is self.train_dataset:
            return len(self._get_train_sampler())  # the labelled images repeat
        return super().num_examples(dataloader)

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of optimizer steps of an epoch; None if the training data take no view keys."""
        keyed = inspect_dataset(self.train_dataset).takes_view_keys
        return self._get_train_sampler().num_batches if keyed else None

    def _log_epoch(self) -> None:
        info = inspect_dataset(self.train_dataset)
        if info.takes_view_keys and info.extra_unlabelled:
            shares = self._get_train_sampler().shares
            logger.info(
                "An epoch is %d optimizer steps of %d images (%d labelled, %d unlabelled), one pass over the %d unlabelled "
                "images: it shows %.2g views of each of the %d other images.",
                shares.num_batches,
                shares.global_batch_size,
                shares.global_batch_size - 2 * shares.unlabelled_pairs,
                2 * shares.unlabelled_pairs,
                shares.unlabelled,
                2 * shares.labelled_pairs_per_epoch / shares.labelled,
                shares.labelled,
            )
        elif info.takes_view_keys:
            sampler = self._get_train_sampler()
            views = (
                f"{self.args.repeated_augmentation} views per image, " if self.args.repeated_augmentation > 1 else ""
            )
            logger.info(
                "An epoch is %d optimizer steps of %d images (%s%d images in the data).",
                sampler.num_batches,
                sampler.global_batch_size,
                views,
                len(self.train_dataset),
            )
        own = (info.unlabelled_images or 0) - info.extra_unlabelled
        if own:
            logger.info("%d training images have no label: the student learns them from the teacher alone.", own)

    def get_train_dataloader(self) -> DataLoader:
        """Return the Trainer's loader of the training data; mixing and cached outputs are added to its batches."""
        self._keep_views()
        collator = self.data_collator
        if isinstance(collator, LabelChecker):
            collator = dataclasses.replace(collator, allows_unlabelled=self._learns_from_unlabelled)
        if self.mixing.is_on:
            seed = inspect_dataset(self.train_dataset).seed
            collator = MixingCollator(collator, self.mixing, self.args.seed if seed is None else seed)
        if self._learns_from_cache:
            collator = self.cached.training_collator(collator)
        with self._collating(collator), self._pairing():
            return super().get_train_dataloader()

    def _keep_views(self) -> None:
        """Tell the data set to keep its views in memory, if it can and the training shows views more than once."""
        if self.args.num_views is None or not isinstance(self.train_dataset, ViewDataset):
            return
        sampler = self._get_train_sampler()
        steps = self.args.max_steps if self.args.max_steps > 0 else self.args.num_train_epochs * sampler.num_batches
        if steps > self.args.num_views * sampler.num_batches:
            self.train_dataset.keep_views(self.args.num_views, sampler.views_per_image, local_processes())

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return the Trainer's loader of an evaluation set; cached outputs for its images are added to the batches."""
        named = isinstance(eval_dataset, str)
        dataset = self.eval_dataset[eval_dataset] if named else eval_dataset
        dataset = self.eval_dataset if dataset is None else dataset
        if self.cached is None or dataset is None:
            return super().get_eval_dataloader(eval_dataset)
        dataset, collator = self.cached.evaluation(dataset, self.data_collator)
        with self._collating(collator):
            if not named:
                return super().get_eval_dataloader(dataset)
            # Pass the name on: the Trainer distinguishes the persistent workers of several sets by it.
            plain, self.eval_dataset = self.eval_dataset, {**self.eval_dataset, eval_dataset: dataset}
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.eval_dataset = plain

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the Trainer's loader of test data, with cached outputs if these are the cache's validation images."""
        if self.cached is None:
            return super().get_test_dataloader(test_dataset)
        dataset, collator = self.cached.evaluation(test_dataset, self.data_collator)
        with self._collating(collator):
            return super().get_test_dataloader(dataset)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """Return the Trainer's loader. `dataloader_drop_last` is for training: an evaluation counts every image."""
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = given and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = given

    @contextlib.contextmanager
    def _pairing(self) -> Iterator[None]:
        """Make the training loader drop an incomplete last batch if its images could not be paired for mixing.

        Only the training loader is made in this context, so the loader of an evaluation still yields all images.
        """
        given = self.args.dataloader_drop_last
        if not inspect_dataset(self.train_dataset).takes_view_keys:
            self.args.dataloader_drop_last = given or self.mixing.is_on
        try:
            yield
        finally:
            self.args.dataloader_drop_last = given

    @contextlib.contextmanager
    def _collating(self, collator: Callable) -> Iterator[None]:
        """Use another collator for the loader that is made in this context."""
        plain, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.data_collator = plain
