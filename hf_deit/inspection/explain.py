"""Maps of what the tokens of a saved model read in images, as `hf-deit explain` computes them.

models/attention_maps.py computes the maps, recipes/inputs.py finds the images, and map_sheets.py draws them. The numbers per layer
are the subject of token_layers.py. No data set, metric or trainer is imported here.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UserError, listed
from ..models.attention_maps import (
    METHODS,
    RELEVANCE,
    ROLLOUT,
    TokenMaps,
    black_and_white,
    check_model,
    covered_pixels,
    seen_image,
    token_maps,
    token_names,
)
from ..models.label_names import class_indices, normal_form
from ..models.loading import load_config, published_name
from ..recipes.inputs import Failure, InputImage, find_inputs
from ..recipes.predict import Predictor, failed, unusable_size

if TYPE_CHECKING:
    from ..recipes.api import StrPath

# Relevance keeps all activations of a batch, 0.2 GB per image for a ViT-Base at 224 pixels.
BATCH_SIZE = 4
DEFAULT_METHODS = (ROLLOUT, RELEVANCE)
_MAX_THREADS = 8


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of one image. The values of a map are shares: they sum to 1.

    `tokens` counts the tokens that heads read: 2 for a distilled student (class token, distillation token), 1 for all other models.
    `rows` and `columns` are those of the grid of patches.

    Args:
        image: Name of the image.
        label: Its label as text, with `;` between several; None if it is not known.
        pixels: `(height, width, 3)` uint8, the image as the model sees it: resized and cropped by its image processor. The maps lie
            over these pixels.
        tokens: Names of the tokens.
        prediction: The most probable class.
        score: Its probability.
        classes: Names of the classes that the relevance explains.
        scores: `(classes,)` float32, their probabilities.
        token_scores: `(tokens, classes)` float32, the same by the head that reads each token.
        last_layer: `(tokens, rows, columns)` float32, the attention of the last layer; None if it was not requested.
        rollout: `(tokens, rows, columns)` float32, attention rollout; None if it was not requested.
        relevance: `(classes, tokens, rows, columns)` float32; None if it was not requested. A map is 0 everywhere if no patch speaks
            for the class.
    """

    image: str
    label: str | None
    pixels: np.ndarray
    tokens: tuple[str, ...]
    prediction: str
    score: float
    classes: tuple[str, ...]
    scores: np.ndarray
    token_scores: np.ndarray
    last_layer: np.ndarray | None = None
    rollout: np.ndarray | None = None
    relevance: np.ndarray | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={found.shape}" for name in METHODS if (found := getattr(self, name)) is not None]
        return f"Explanation({self.image!r}, {self.prediction!r} {100 * self.score:.1f} %, {', '.join(shapes)})"


class Explanations(list):
    """List of `Explanation`, in the order of the images.

    `failures` is the reason for each image or input without maps, by its name. It is empty unless `broken_images="skip"` was given.
    """

    failures: Mapping[str, str] = MappingProxyType({})


class Explainer:
    """A saved model whose maps can be computed.

    Args:
        name_or_path: Folder or Hub name of the model, as for `load_model`.
        methods: Some of `METHODS`.
        classes: Names or indices of the classes whose relevance is computed. Default: the predicted class of each image.

    Raises:
        UserError: The model cannot be read or has no maps of tokens, or a method or class is unknown, or classes are given without the
            relevance.
    """

    def __init__(
        self,
        name_or_path: str,
        methods: Sequence[str] = DEFAULT_METHODS,
        classes: Sequence[str | int] | None = None,
    ):
        self.methods = checked_methods(methods, classes)
        refuse_other_models(name_or_path)
        self.predictor = Predictor(name_or_path)
        refuse_loaded(self.predictor.model)
        self.class_names: list[str] = self.predictor.class_names
        self.classes = None if classes is None else chosen_classes(classes, self.class_names)
        self.tokens = token_names(self.predictor.model)
        self._shades: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def explanations(
        self, inputs: Iterable[InputImage | Failure], batch_size: int = BATCH_SIZE
    ) -> Iterator[Explanation | Failure]:
        """Yield an `Explanation` for each image that can be read, in order, and a `Failure` for each other input.

        Args:
            inputs: The images, as `find_inputs` yields them.
            batch_size: Number of images at a time, at least 1. It changes the maps in the last digits only.

        Raises:
            UserError: `batch_size` is below 1, or the model cannot use the size of the images.
        """
        check_batch_size(batch_size)
        return self._explanations(iter(inputs), batch_size)

    def _explanations(self, inputs: Iterator[InputImage | Failure], batch_size: int) -> Iterator[Explanation | Failure]:
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _MAX_THREADS)) as threads:
            while batch := list(islice(inputs, batch_size)):
                read = list(threads.map(self.predictor.pixels, batch))
                found = iter(self._maps([pixels for pixels in read if not isinstance(pixels, Failure)]))
                for image, pixels in zip(batch, read, strict=True):
                    if isinstance(image, Failure) or isinstance(pixels, Failure):
                        yield pixels
                    else:
                        yield self._explanation(image, pixels, *next(found))

    def _maps(self, tensors: Sequence[Tensor]) -> Iterator[tuple[TokenMaps, int]]:
        """Yield the maps of a batch and the number of the image in it, for each image."""
        same_size = len({pixels.shape for pixels in tensors}) == 1
        for batch in [torch.cat(list(tensors))] if same_size else tensors:
            try:
                maps = token_maps(self.predictor.model, batch, self.methods, self.classes)
            except ValueError as error:  # of models that take images of one size
                raise unusable_size(batch, error) from error
            yield from ((maps, number) for number in range(len(batch)))

    def _explanation(self, image: InputImage, pixels: Tensor, maps: TokenMaps, number: int) -> Explanation | Failure:
        if not maps.token_logits[number].isfinite().all():
            return Failure(image.file, "has no maps: the outputs of the model are not finite")
        chosen = maps.classes[number]
        scores = self._probabilities(maps.logits[number])
        best = int(scores.argmax())
        return Explanation(
            image=image.file,
            label=image.label,
            pixels=np.array(
                seen_image(covered_pixels(self.predictor.model, pixels[0]), *self._black_and_white(pixels))
            ),
            tokens=self.tokens,
            prediction=self.class_names[best],
            score=float(scores[best]),
            classes=tuple(self.class_names[index] for index in chosen.tolist()),
            scores=scores[chosen].numpy(),
            token_scores=self._probabilities(maps.token_logits[number])[:, chosen].numpy(),
            **{method: found[number].numpy() for method, found in maps.maps.items()},
        )

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float().cpu()
        return logits.sigmoid() if self.predictor.multi_label else logits.softmax(dim=-1)

    def _black_and_white(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        size = tuple(pixels.shape[-2:])
        if size not in self._shades:
            self._shades[size] = black_and_white(self.predictor.processor, *size)
        return self._shades[size]


# ---- checks ----


def refuse_other_models(name_or_path: str) -> None:
    """Refuse a model without maps of tokens, by its configuration, before its weights are read.

    Raises:
        UserError: The model has another architecture, no classes, or cannot be read.
    """
    config = load_config(published_name(name_or_path))
    architecture = (config.architectures or [None])[0]
    if architecture is not None:
        _refuse(config, architecture)


def refuse_loaded(model: Any) -> None:
    """Refuse a loaded model without maps of tokens.

    Raises:
        UserError: As `refuse_other_models`.
    """
    _refuse(model.config, type(model).__name__)


def _refuse(config: Any, class_name: str) -> None:
    try:
        check_model(config, class_name)
    except ValueError as error:
        raise UserError(f"{error} Choose a DeiT or ViT classifier, such as a student of hf-deit train.") from error


def check_batch_size(batch_size: int) -> None:
    """Check a number of images at a time.

    Raises:
        UserError: It is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: it must be at least 1.")


def checked_methods(methods: Sequence[str], classes: Sequence[str | int] | None) -> tuple[str, ...]:
    """Return the methods without repetitions, in the order of `METHODS`.

    Raises:
        UserError: There is no method, a method is unknown, or classes are given without the relevance.
    """
    given = [methods] if isinstance(methods, str) else list(methods)
    unknown = [method for method in given if method not in METHODS]
    if unknown or not given:
        raise UserError(f"method={unknown[0] if unknown else given!r}: choose one or several of {', '.join(METHODS)}.")
    if classes is not None and RELEVANCE not in given:
        raise UserError(
            f"classes={listed(classes, str)} with method={' '.join(given)}: only the relevance is computed for a class. Add "
            f"{RELEVANCE} to the methods, or leave the classes out."
        )
    return tuple(method for method in METHODS if method in given)


def chosen_classes(classes: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """Return the indices of classes that are given by name or by index.

    Args:
        classes: Names or indices, each once. A name that is a number is the name, if the model has a class of that name.
        names: Class names of the model, in index order.

    Raises:
        UserError: A class is unknown, is given twice, or has a name that several classes share; or there is none.
    """
    given = [classes] if isinstance(classes, str | int) else list(classes)
    known = [normal_form(str(name)) for name in names]
    indices = [_class_index(entry, known, names) for entry in given]
    if not indices or len(set(indices)) < len(indices):
        raise UserError(f"classes={listed(given, str) or 'nothing'}: give one or several classes, each of them once.")
    return indices


def _class_index(entry: str | int, known: Sequence[str], names: Sequence[str]) -> int:
    name = normal_form(str(entry))
    same = [index for index, other in enumerate(known) if other == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(
            f"classes: several classes of the model are named {entry!r}. Give one of the indices {listed(same)}."
        )
    numbers = class_indices([name])
    if numbers is not None and numbers[0] < len(names):
        return numbers[0]
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"classes: the model has no class {entry!r}.{hint} Its classes are {listed(names)}; an index from 0 to "
        f"{len(names) - 1} works too."
    )


# ---- Python ----


def explain(
    model: "StrPath",
    images: "StrPath | Iterable[StrPath]",
    *,
    method: str | Sequence[str] = DEFAULT_METHODS,
    classes: str | int | Sequence[str | int] | None = None,
    split: str | None = None,
    image_column: str | None = None,
    batch_size: int = BATCH_SIZE,
    broken_images: str = "raise",
) -> Explanations:
    """Compute what the tokens of a model read in images, as `hf-deit explain` does.

    Args:
        model: Folder or Hub name of a DeiT or ViT.
        images: One or several inputs, as for `predict`: image files, folders, patterns, tables, and data sets.
        method: One or several of "rollout" (attention rollout), "relevance" (of the patches for a class) and "last_layer" (the
            attention of the last layer).
        classes: Names or indices of the classes that the relevance explains. Default: the predicted class of each image.
        split: Split of the folders and data sets, as for `predict`.
        image_column: Column of the images of a table or data set, as for `predict`.
        batch_size: Number of images at a time.
        broken_images: What to do with an image or input that cannot be read. "raise": raise an error. "skip": return the others, and
            the reasons in `failures`.

    Raises:
        UserError: The model cannot be read or has no maps of tokens, or a value is invalid.
        DataError: An image or input cannot be read and `broken_images` is "raise", or none can be read.
    """
    from ..data.images import check_policy
    from ..data.tables import Columns

    check_policy(broken_images)
    check_batch_size(batch_size)
    methods = [method] if isinstance(method, str) else list(method)
    wanted = [classes] if isinstance(classes, str | int) else classes
    given = [images] if isinstance(images, str | os.PathLike) else list(images)
    explainer = Explainer(os.fspath(model), methods, wanted)
    found = find_inputs(map(os.fspath, given), explainer.class_names, split, Columns(image_column, ()))
    explanations, failures = Explanations(), []
    for entry in explainer.explanations(found, batch_size):
        if not isinstance(entry, Failure):
            explanations.append(entry)
            continue
        failures.append(entry)
        if broken_images == "raise":
            raise DataError(
                f'{str(entry).removesuffix(".")}. Give broken_images="skip" for the maps of the other images.'
            )
    if failures and not explanations:
        raise failed(failures, 0, missing="maps", done="explained")
    explanations.failures = {failure.file: failure.reason for failure in failures}
    return explanations
