"""The data of a run: the images that the data fields of a recipe describe, and the number of unreadable ones.

data/loading.py finds the images. build.py builds student, teacher and trainer for them.
"""

import logging
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data.augmentation import Augmentation
from ..data.layouts import Selection
from ..data.loading import KEEP, is_image_folder, load_splits, load_stream
from ..data.sources import Source, without_unreadable
from ..data.streams import NOT_PROMISED, ViewStream
from ..data.tables import Columns, TableReader
from ..data.unlabelled import duplicates, load_unlabelled
from ..data.views import ViewDataset
from ..errors import DataError, RecipeError, UserError
from ..fingerprints import short_digest_of
from ..losses import ProblemType
from ..models.label_names import read_class_names
from ..models.loading import load_config
from ..sizes import as_pair
from .arguments import DataArguments, Recipe
from .class_names import with_class_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Training and validation images of a run, without those that were found unreadable before the first step.

    Args:
        train: Training images, or the reader of a stream of training images.
        validation: Validation images, each of which was decoded once.
        arguments: Data fields of the recipe.
        left_out_at_scan: Number of images left out because their file is missing, or its header is not that of an image.
        left_out_of_validation: Number of validation images that cannot be decoded.
        unlabelled: Unlabelled images beside the training images, without those that are validation images. None if the
            recipe names none.
        comparison: What the comparison of images without labels with the other images found; None if there are none.
            `validation_images`: number of those that were left out because they are validation images.
            `labelled_images`: number of images of `unlabelled` that are labelled training images too, which are kept.
    """

    train: Source | TableReader
    validation: Source
    arguments: DataArguments
    left_out_at_scan: int
    left_out_of_validation: int
    unlabelled: Source | None = None
    comparison: dict[str, int] | None = None

    @property
    def name(self) -> str:
        """Short digest of the training and validation images, their labels and their order."""
        fingerprints = [self.train.fingerprint, self.validation.fingerprint]
        return short_digest_of(
            fingerprints if self.unlabelled is None else [*fingerprints, self.unlabelled.fingerprint]
        )

    def check_one_class_an_image(self, error: type[UserError]) -> None:
        """Check that every image has one class, so that accuracies can be compared.

        Args:
            error: Class of the error to raise.

        Raises:
            UserError: The data are multi-label: an image may have several classes.
        """
        if self.train.problem_type != ProblemType.SINGLE_LABEL:
            raise error(
                f"The problem type of {self.train.name} is {self.train.problem_type}, but accuracies are compared here: use "
                "data with one class per image."
            )

    def training_set(
        self, augmentation: Augmentation, seed: int, step_size: int, concurrent_trainings: int = 1
    ) -> ViewDataset | ViewStream:
        """Return the data set of augmented views of the training images.

        Args:
            augmentation: The augmentation that computes a view.
            seed: Seed of the run.
            step_size: Number of images per optimizer step over all processes and accumulation steps. A stream yields complete
                steps only.
            concurrent_trainings: Number of trainings that share the memory of this machine, this one included.

        Raises:
            DataError: A stream is known to have fewer rows than a step.
        """
        policy = self.arguments.broken_images
        if isinstance(self.train, Source):
            return ViewDataset(
                self.train,
                augmentation,
                seed,
                policy,
                concurrent_trainings=concurrent_trainings,
                memory_limit=int(self.arguments.views_memory * 1e9),
                unlabelled=self.unlabelled,
                unlabelled_share=None if self.unlabelled is None else self.arguments.unlabelled_share,
            )
        if self.train.row_count is not None and self.train.row_count < step_size:
            raise DataError(
                f"{self.train.name} has {self.train.row_count} row(s), but an optimizer step takes {step_size} (per-device batch "
                "× processes × gradient accumulation steps): use a smaller per_device_train_batch_size or "
                "gradient_accumulation_steps, or set streaming: false."
            )
        return ViewStream(self.train, augmentation, seed, self.arguments.shuffle_buffer, step_size, policy)

    def unlabelled_counts(self, training_set: ViewDataset | ViewStream) -> dict[str, int] | None:
        """Return the number of training images without labels, and what the comparison found; None if there are none."""
        images = training_set.unlabelled_images
        if not images and self.comparison is None:
            return None
        found = self.comparison or {}
        return {
            "images": images,
            **({} if self.unlabelled is None else {"also_labelled": found["labelled_images"]}),
            **({"left_out_validation_images": found["validation_images"]} if found else {}),
        }

    def broken_images(self, training_set: ViewDataset | ViewStream, accelerator: Any) -> dict[str, int]:
        """Return the number of unreadable images, by how they were handled. All processes must call this method.

        Args:
            training_set: Data set of the training.
            accelerator: Accelerator of the trainer, which gathers the counts of all processes.
        """
        counts = {"left_out_at_scan": self.left_out_at_scan, "left_out_of_validation": self.left_out_of_validation}
        if isinstance(training_set, ViewDataset):
            broken = accelerator.gather(training_set.broken[None].to(accelerator.device))
            return counts | {"replaced_in_training": int(broken.amax(dim=0).sum())}
        broken = accelerator.gather(torch.tensor([training_set.broken_count], device=accelerator.device))
        return counts | {"left_out_of_stream": int(broken.sum())}


def columns_of(arguments: DataArguments | Namespace) -> Columns:
    """Return the columns that the fields of a recipe, or the options of a command, name.

    Raises:
        DataError: The fields contradict each other.
    """
    return Columns(arguments.image_column, tuple(arguments.label_column or ()), arguments.label_separator)


def selection_of(arguments: DataArguments | Namespace) -> Selection:
    """Return the configuration, the split column and the names of splits that the fields specify."""
    return Selection(
        config=arguments.data_config,
        revision=arguments.data_revision,
        split_column=arguments.split_column,
        train_split=arguments.train_split,
        validation_split=arguments.validation_split,
    )


def load_run_data(recipe: Recipe) -> RunData:
    """Load the data of a recipe, and check them as far as possible before the first step.

    Raises:
        RecipeError: The recipe names no data, or streaming contradicts another field.
        DataError: The data cannot be used for training.
    """
    if recipe.data.data is None:
        raise RecipeError("The recipe names no data: set data to a folder, a table or a name on the Hub (--data).")
    if recipe.data.streaming:
        _check_streaming(recipe)
    return load_data(recipe.data, recipe.training.seed)


def load_data(arguments: DataArguments, seed: int) -> RunData:
    """Load the data that the data fields of a recipe describe.

    Args:
        arguments: Data fields, which name data.
        seed: Seed for splitting off the validation share.

    Raises:
        DataError: The data cannot be used for training.
    """
    columns, policy, selection = columns_of(arguments), arguments.broken_images, selection_of(arguments)
    if arguments.streaming:
        train, validation = load_stream(arguments.data, columns, policy, selection)
        logger.warning(NOT_PROMISED)
    else:
        # Whether the run can learn from images without labels is checked with its teacher, by the trainer.
        train, validation = load_splits(
            arguments.data, arguments.validation_share, seed, columns, policy, selection, unlabelled_rows=KEEP
        )
    names = None if arguments.class_names is None else read_class_names(arguments.class_names)
    train, validation = with_class_names(train, names), with_class_names(validation, names)
    at_scan = len(validation.left_out) + (len(train.left_out) if isinstance(train, Source) else 0)
    readable = without_unreadable(validation, policy)
    data = RunData(train, readable, arguments, at_scan, len(validation) - len(readable))
    return with_unlabelled(data, arguments)


def with_unlabelled(data: RunData, arguments: DataArguments) -> RunData:
    """Return the data of a run with other unlabelled images beside the training images.

    Args:
        data: Data of a run, without unlabelled images.
        arguments: Data fields of the recipe that names the unlabelled images, or none.

    Raises:
        DataError: The unlabelled images cannot be found or read, or all of them are validation images.
    """
    unlabelled, train, comparison = None, data.train, None
    if arguments.unlabelled is not None:
        unlabelled = load_unlabelled(
            arguments.unlabelled, arguments.image_column, arguments.unlabelled_split, arguments.broken_images
        )
    at_scan = data.left_out_at_scan + (0 if unlabelled is None else len(unlabelled.left_out))
    if isinstance(train, Source) and (unlabelled is not None or train.unlabelled_indices):
        train, unlabelled, comparison = _without_validation_images(train, data.validation, unlabelled)
    return replace(
        data,
        train=train,
        arguments=arguments,
        left_out_at_scan=at_scan,
        unlabelled=unlabelled,
        comparison=comparison,
    )


def without_unlabelled(data: RunData) -> RunData:
    """Return the data of a run without its unlabelled images beside the training images."""
    if data.unlabelled is None:
        return data
    at_scan = data.left_out_at_scan - len(data.unlabelled.left_out)
    return replace(data, unlabelled=None, left_out_at_scan=at_scan)


def _without_validation_images(
    train: Source, validation: Source, unlabelled: Source | None
) -> tuple[Source, Source | None, dict[str, int]]:
    """Leave out images without labels that are validation images.

    Args:
        train: Training images, of which some may have no label.
        validation: Validation images.
        unlabelled: Unlabelled images beside them, if there are any.

    Returns:
        The two sources without these images; and the numbers of images that were left out (`validation_images`) and of
        unlabelled images that are labelled training images too (`labelled_images`), which are kept.

    Raises:
        DataError: All unlabelled images are validation images.
    """
    rows = train.unlabelled_indices
    held_out = {rows[place] for place in duplicates(train.subset(rows, train.name).items, validation.items)}
    labelled = train.labelled_part()
    if held_out:
        train = train.subset([row for row in range(len(train)) if row not in held_out], train.name)
    found, both = len(held_out), 0
    if unlabelled is not None:
        shown = set(duplicates(unlabelled.items, validation.items))
        if len(shown) == len(unlabelled):
            raise DataError(
                f"All {len(unlabelled)} images of {unlabelled.name} are validation images, which a student must not see in "
                "training: give other images as unlabelled."
            )
        if shown:
            kept = [index for index in range(len(unlabelled)) if index not in shown]
            unlabelled = unlabelled.subset(kept, unlabelled.name)
        found += len(shown)
        both = len(duplicates(unlabelled.items, labelled.items))
        logger.info(
            "%s: %d images, %d of which are labelled training images too.", unlabelled.name, len(unlabelled), both
        )
    if found:
        logger.warning("%d image(s) without a label are validation images (same content) and are left out.", found)
    return train, unlabelled, {"validation_images": found, "labelled_images": both}


def _check_streaming(recipe: Recipe) -> None:
    arguments = recipe.data
    if arguments.unlabelled is not None:
        raise RecipeError(
            f"unlabelled={arguments.unlabelled!r} with streaming: the images of a stream have no index, so their share of a "
            "batch cannot be kept. Set streaming: false. Rows without a label in the stream itself can be used."
        )
    if is_image_folder(arguments.data):
        raise RecipeError(
            f"streaming: {arguments.data} is a folder of images, which cannot be streamed and is never loaded into "
            "memory. Set streaming: false."
        )
    if recipe.run.continues:
        raise RecipeError(
            "--resume or --extend with streaming: the position in a stream is not saved, so a streamed training cannot be resumed. Set "
            "streaming: false, or start a new run in another output_dir."
        )
    if recipe.training.repeated_augmentation != 1:
        raise RecipeError(
            f"repeated_augmentation={recipe.training.repeated_augmentation} with streaming: a stream yields each image once. Set "
            "it to 1, or set streaming: false."
        )
    if recipe.training.max_steps < 1:
        raise RecipeError(
            "streaming: the length of a stream is unknown. Set max_steps to the number of optimizer steps."
        )
    if arguments.shuffle_buffer < 1:
        raise RecipeError(
            f"shuffle_buffer={arguments.shuffle_buffer}: it must be at least 1, where 1 keeps the order of the data."
        )


def view_size_of(recipe: Recipe) -> tuple[int, int]:
    """Return the `(height, width)` of a recipe's views in pixels: view_size, else the student's image size, else 224.

    Raises:
        UserError: The configuration of the weights that the student starts from cannot be loaded.
    """
    given = recipe.augmentation.view_size or recipe.model.image_size
    if given is not None or recipe.model.model is None:
        return given or (224, 224)
    config = load_config(recipe.model.model)
    return as_pair(getattr(config, "image_size", None) or 224)
