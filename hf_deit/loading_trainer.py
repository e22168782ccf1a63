"""`LoadingTrainer`: what the Trainer's loaders give: views in their order, partners' mixes, stored answers.

The order is made in sampling.py, views and mixes in data.py, answers looked up in cached_answers.py; what is learned from a
batch is in trainer.py.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset, Sampler

from .cached_answers import CachedAnswers, CachedSampler
from .data import MixingCollator
from .mixing import Mixing
from .optimizing_trainer import OptimizingTrainer
from .sampling import ViewSampler

logger = logging.getLogger(__name__)


class LoadingTrainer(OptimizingTrainer):
    """Adds keyed views, mixing and stored answers to the Trainer's loaders; arguments as there."""

    # Set by the trainer above: how partners are mixed, the stored answers, the head that learns from a teacher.
    mixing: Mixing
    cached: CachedAnswers | None
    distillation_target: str | None

    def _say_if_not_keyed(self, dataset: Dataset | None) -> None:
        # A stream makes keys itself, and says what it does not promise.
        keyed = getattr(dataset, "takes_view_keys", False) or getattr(dataset, "makes_view_keys", False)
        if dataset is not None and not keyed:
            logger.warning(
                "The training data (%s) do not take view keys: augmentation is drawn from the global generator, so a resumed "
                "run is not exactly the uninterrupted one, and pixels depend on workers. ViewDataset makes both exact.",
                type(dataset).__name__,
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not getattr(dataset, "takes_view_keys", False):
            return super()._get_train_sampler(dataset)
        learns = self.cached is not None and self.distillation_target is not None
        sampler = ViewSampler if not learns else functools.partial(CachedSampler, self.cached.cache)
        return sampler(
            size=len(dataset),
            global_batch_size=self.args.global_batch_size,
            seed=dataset.seed,
            num_views=self.cached.num_views if learns else self.args.num_views,
            repeats=self.args.repeated_augmentation,
        )

    def _log_epoch(self) -> None:
        if getattr(self.train_dataset, "takes_view_keys", False):
            sampler = self._get_train_sampler()
            views = (
                f"{self.args.repeated_augmentation} views of an image, " if self.args.repeated_augmentation > 1 else ""
            )
            logger.info(
                "An epoch is %d optimizer steps of %d images (%s%d images in the data).",
                sampler.num_batches,
                sampler.global_batch_size,
                views,
                len(self.train_dataset),
            )

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's; partners' mixes are drawn, and stored answers looked up, with the training batches only."""
        self._keep_views()
        collator = self.data_collator
        if self.mixing.is_on:
            collator = MixingCollator(collator, self.mixing, getattr(self.train_dataset, "seed", self.args.seed))
        if self.cached is not None and self.distillation_target is not None:
            collator = self.cached.training_collator(collator)
        with self._collating(collator), self._pairing():
            return super().get_train_dataloader()

    def _keep_views(self) -> None:
        """Where views come again, and the data set can keep them."""
        if self.args.num_views is None or not hasattr(self.train_dataset, "keep_views"):
            return
        sampler = self._get_train_sampler()
        steps = self.args.max_steps if self.args.max_steps > 0 else self.args.num_train_epochs * sampler.num_batches
        if steps > self.args.num_views * sampler.num_batches:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine, by torchrun
            self.train_dataset.keep_views(self.args.num_views, sampler.views_per_image, processes)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """As the Trainer's; stored answers to the validation images are looked up with them."""
        named = isinstance(eval_dataset, str)
        dataset = self.eval_dataset[eval_dataset] if named else eval_dataset
        dataset = self.eval_dataset if dataset is None else dataset
        if self.cached is None or dataset is None:
            return super().get_eval_dataloader(eval_dataset)
        dataset, collator = self.cached.evaluation(dataset, self.data_collator)
        with self._collating(collator):
            if not named:
                return super().get_eval_dataloader(dataset)
            # By its name: persistent workers of several sets are told apart by it.
            plain, self.eval_dataset = self.eval_dataset, {**self.eval_dataset, eval_dataset: dataset}
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.eval_dataset = plain

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As the Trainer's; stored answers are looked up where these are the cache's validation images."""
        if self.cached is None:
            return super().get_test_dataloader(test_dataset)
        dataset, collator = self.cached.evaluation(test_dataset, self.data_collator)
        with self._collating(collator):
            return super().get_test_dataloader(dataset)

    @contextlib.contextmanager
    def _pairing(self) -> Iterator[None]:
        """Leaves out a last batch that could not be paired, of the training data alone: the loader of an evaluation is whole."""
        given = self.args.dataloader_drop_last
        if not getattr(self.train_dataset, "takes_view_keys", False):
            self.args.dataloader_drop_last = given or self.mixing.is_on
        try:
            yield
        finally:
            self.args.dataloader_drop_last = given

    @contextlib.contextmanager
    def _collating(self, collator: Callable) -> Iterator[None]:
        plain, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.data_collator = plain
