"""The data of a run: what the data fields of a recipe become, as a whole; broken images counted.

Sources are made in sources.py, streams in streams.py, views in views.py; train.py brings student, teacher and trainer to them.
"""

import logging
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch

from ..data.augmentation import Augmentation
from ..data.loading import is_image_folder, load_splits, load_stream
from ..data.sources import Source, without_unreadable
from ..data.streams import NOT_PROMISED, ViewStream
from ..data.tables import Columns, TableReader
from ..data.views import ViewDataset
from ..errors import DataError, RecipeError, UserError
from ..fingerprints import short_digest_of
from ..losses import SINGLE_LABEL
from ..models.configuration_deit import as_pair
from ..models.loading import load_config
from .arguments import DataArguments, Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Training and validation images of a run, readable ones only as far as that can be known before.

    Args:
        train: The training images, or the reader of a stream of them.
        validation: The validation images, each decoded once.
        arguments: The fields they were made of.
        left_out_at_scan: Number of images whose beginnings were none.
        left_out_of_validation: Number of validation images that could not be decoded.
    """

    train: Source | TableReader
    validation: Source
    arguments: DataArguments
    left_out_at_scan: int
    left_out_of_validation: int

    @property
    def name(self) -> str:
        """What the images, labels and their order are known by: it changes with those of training and of validation."""
        return short_digest_of([self.train.fingerprint, self.validation.fingerprint])

    def check_one_class_an_image(self, error: type[UserError]) -> None:
        """Refuses data that accuracies cannot be compared on.

        Args:
            error: What to raise.

        Raises:
            UserError: An image has several classes.
        """
        if self.train.problem_type != SINGLE_LABEL:
            raise error(
                f"{self.train.name} has several classes an image: what is compared here are accuracies, of one class each."
            )

    def training_set(self, augmentation: Augmentation, seed: int, step_size: int) -> ViewDataset | ViewStream:
        """Gives the training images as views.

        Args:
            augmentation: What makes a view.
            seed: Of the run.
            step_size: Images of one optimizer step over all processes and accumulation steps; a stream comes in whole steps.

        Raises:
            DataError: A stream is known to have fewer rows than a step.
        """
        policy = self.arguments.broken_images
        if isinstance(self.train, Source):
            return ViewDataset(self.train, augmentation, seed, policy)
        if self.train.row_count is not None and self.train.row_count < step_size:
            raise DataError(
                f"{self.train.name} has {self.train.row_count} row(s) and an optimizer step takes {step_size} (per-device batch "
                "× processes × gradient accumulation steps): use a smaller per_device_train_batch_size or "
                "gradient_accumulation_steps, or leave streaming out."
            )
        return ViewStream(self.train, augmentation, seed, self.arguments.shuffle_buffer, step_size, policy)

    def broken_images(self, training_set: ViewDataset | ViewStream, accelerator: Any) -> dict[str, int]:
        """Gives the number of broken images by what was done with them; call it in all processes.

        Args:
            training_set: As it was trained on.
            accelerator: Of the trainer; each process has met other images.
        """
        counts = {"left_out_at_scan": self.left_out_at_scan, "left_out_of_validation": self.left_out_of_validation}
        if isinstance(training_set, ViewDataset):
            met = accelerator.gather(training_set.broken[None].to(accelerator.device))
            return counts | {"replaced_in_training": int(met.amax(dim=0).sum())}
        met = accelerator.gather(torch.tensor([training_set.broken_count], device=accelerator.device))
        return counts | {"left_out_of_stream": int(met.sum())}


def columns_of(arguments: DataArguments | Namespace) -> Columns:
    """Gives the columns that the fields of a recipe, or of a command line, name.

    Raises:
        DataError: They do not go together.
    """
    return Columns(arguments.image_column, tuple(arguments.label_column or ()), arguments.label_separator)


def load_run_data(recipe: Recipe) -> RunData:
    """Loads the data of a recipe and checks what can be checked before the first step.

    Raises:
        RecipeError: No data are named, or streaming does not go with the other fields.
        DataError: The data are not what they should be.
    """
    arguments, seed = recipe.data, recipe.training.seed
    if arguments.data is None:
        raise RecipeError("The recipe names no data: give --data FOLDER, a table or a Hub name.")
    columns, policy = columns_of(arguments), arguments.broken_images
    if arguments.streaming:
        _check_streaming(recipe)
        train, validation = load_stream(arguments.data, columns, policy)
        logger.warning(NOT_PROMISED)
    else:
        train, validation = load_splits(arguments.data, arguments.validation_share, seed, columns, policy)
    at_scan = len(validation.left_out) + (len(train.left_out) if isinstance(train, Source) else 0)
    readable = without_unreadable(validation, policy)
    return RunData(train, readable, arguments, at_scan, len(validation) - len(readable))


def _check_streaming(recipe: Recipe) -> None:
    arguments = recipe.data
    if is_image_folder(arguments.data):
        raise RecipeError(
            f"streaming: {arguments.data} is a folder of class folders, which is read image by image anyway: leave "
            "streaming out."
        )
    if recipe.run.resume:
        raise RecipeError(
            "--resume with streaming: where a stream stood is not kept. Leave streaming out, or start anew."
        )
    if recipe.training.repeated_augmentation != 1:
        raise RecipeError(
            f"repeated_augmentation={recipe.training.repeated_augmentation} with streaming: a stream gives each image once. Set "
            "it to 1, or leave streaming out."
        )
    if recipe.training.max_steps < 1:
        raise RecipeError("The length of a stream is not known: give max_steps, the number of optimizer steps.")
    if arguments.shuffle_buffer < 1:
        raise RecipeError(f"shuffle_buffer={arguments.shuffle_buffer}: at least 1; 1 keeps the order of the data.")


def view_size_of(recipe: Recipe) -> tuple[int, int]:
    """Gives the `(height, width)` of a recipe's views in pixels: view_size, or the student's, or 224.

    Raises:
        UserError: The weights that the student starts from do not exist.
    """
    given = recipe.augmentation.view_size or recipe.model.image_size
    if given is not None or recipe.model.model is None:
        return given or (224, 224)
    config = load_config(recipe.model.model)
    return as_pair(getattr(config, "image_size", None) or 224)
