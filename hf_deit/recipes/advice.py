"""Advice on recipes: propose a recipe of the package for some data, with the reason (`hf-deit recipes --for DATA`).

`RULES` is the table of all rules. docs/recipes.md justifies each of them. The data are listed and a few headers are read; no
image is decoded. reading.py reads recipes; train.py trains with them.
"""

import contextlib
import dataclasses
import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..data.images import shorter_edges
from ..data.loading import list_training
from ..data.sampling import BatchShares
from ..data.sources import Source
from ..data.unlabelled import count_unlabelled
from ..errors import RecipeError
from ..hub.facts import RECIPE_FILE
from ..losses import ProblemType
from ..models.label_names import read_class_names
from ..models.loading import load_config
from ..sizes import as_pair, as_size
from ..trainer.checkpoints import newest_checkpoint
from ..trainer.trainer import DistillationTrainer
from .arguments import (
    UNLABELLED_SHARE,
    DataArguments,
    ModelArguments,
    Recipe,
    TeacherArguments,
    check_names,
    field_entries,
    typed_value,
)
from .build import build_teacher
from .class_names import with_class_names
from .data import columns_of, selection_of
from .reading import (
    AUTO,
    launch_commands,
    load_recipe,
    parsed_words,
    proposal_in,
    read_fields,
    recipe_names,
    recipe_path,
    stated_cost,
)
from .teacher_arguments import TeacherTrainingArguments

logger = logging.getLogger(__name__)

# From this number of training images on, the recipes of the paper are proposed, which has 1.28 million. Nothing was measured
# between the 3,068 images of docs/results.md and that number.
MANY_IMAGES = 100_000
# Below this number, the reason states that so few images were not measured.
FEW_IMAGES = 1_000
# Ratio of the largest to the smallest class from which class weights are mentioned.
IMBALANCE = 10
# Number of images whose headers are read for the median of the shorter edges.
SAMPLED_IMAGES = 500
# The names of the fields of unlabelled images begin with this text.
_UNLABELLED = "unlabelled"
# Learning rate of the student of a guided recipe that is trained without guidance (docs/results.md, choice of settings).
_RATE_WITHOUT_GUIDANCE = 5e-4
# Folders in proposed commands.
_TEACHER_FOLDER, _CACHE_FOLDER = "teacher", "cache"


@dataclass(frozen=True)
class Situation:
    """Everything that the rules look at.

    Args:
        images: Number of labelled training images.
        unlabelled: Number of images without labels.
        class_names: Names of the classes.
        counts: Number of training images of each class.
        multi_label: Whether an image may have several classes.
        edge: Median of the shorter edges of the sampled images in pixels, or None if no header was read.
        weights: Whether weights to start from are given.
        teacher: Whether a teacher or a teacher cache is given.
        beside: Number of those images without labels that are beside the training images (`unlabelled`), and of which each
            batch has a share.
    """

    images: int
    unlabelled: int
    class_names: Sequence[str]
    counts: Sequence[int]
    multi_label: bool
    edge: int | None
    weights: bool
    teacher: bool
    beside: int = 0

    @property
    def imbalance(self) -> float:
        """Ratio of the number of images of the largest class to that of the smallest."""
        return max(self.counts) / max(min(self.counts), 1)

    def __str__(self) -> str:
        kind = "classes, of which an image may have several" if self.multi_label else "classes"
        edge = "unknown" if self.edge is None else f"{self.edge} px"
        return (
            f"{self.images:,} labelled training images of {len(self.class_names)} {kind} "
            f"(largest class: {max(self.counts):,} images, smallest: {min(self.counts):,}), "
            f"{f'{self.unlabelled:,}' if self.unlabelled else 'no'} images without labels. "
            f"Median of the shorter edges: {edge}. Weights to start from: {_given(self.weights)}; "
            f"teacher: {_given(self.teacher)}."
        )


def _given(is_given: bool) -> str:
    return "given" if is_given else "none"


@dataclass(frozen=True)
class Rule:
    """A rule: when it applies, and what it proposes.

    Args:
        applies: Whether the rule applies to a situation.
        recipes: Pattern of the names of the recipes, of which one is chosen by its size.
        reason: Reason of the proposal.
        reason_of_teacher: What is added to the reason if a teacher is given.
    """

    applies: Callable[[Situation], bool]
    recipes: str
    reason: str
    reason_of_teacher: str = ""


# The first rule that applies is used. The figures are those of docs/results.md and of the paper (arXiv:2012.12877, Table 3).
RULES = (
    Rule(
        lambda case: case.weights,
        "finetune_*",
        "Published weights help more than anything else: on 3,068 photographs, a fine-tuned ViT-Tiny has 89.7 ± 0.8 %, and "
        "the best student from scratch 82.1 ± 0.8 %.",
        "A teacher that was trained on the same photographs gained nothing beside such weights (89.4 ± 0.8 %).",
    ),
    Rule(
        lambda case: case.images >= MANY_IMAGES and case.teacher,
        "deit_tiny_hard_300ep",
        "There are enough images for the paper's training from scratch. On ImageNet-1k (1.28 million images), DeiT-Ti has "
        "72.2 % without a teacher and 74.5 % with a CNN as teacher; deit_small_hard_300ep is the next size (81.2 %).",
    ),
    Rule(
        lambda case: case.images >= MANY_IMAGES,
        "deit_tiny_plain_300ep",
        "There are enough images for the paper's training from scratch. On ImageNet-1k (1.28 million images), DeiT-Ti has "
        "72.2 % without a teacher and 74.5 % with a CNN as teacher; deit_small_plain_300ep is the next size (79.8 %).",
    ),
    Rule(
        lambda case: True,
        "from_scratch_*",
        "Without published weights, a small student at a small image size with a teacher is the best setting tried: on 3,068 photographs "
        "it has 61.4 ± 0.6 % from the labels alone and 82.1 ± 0.8 % with a teacher of 90.6 %. Published weights (--model) help most: "
        "89.7 ± 0.8 % there.",
    ),
)


@dataclass(frozen=True)
class Proposal:
    """A recipe that is proposed for some data. `print(proposal)` shows all of it.

    Args:
        recipe: Name of the recipe.
        fields: Fields to set besides those of the recipe and those that were given.
        reason: Reason of the proposal, in two or three sentences.
        cost: What the recipe costs, from its header; None if the header does not state it.
        hints: Further advice, one sentence or two each.
        preparation: Commands to run before `command`, in order.
        command: Command that trains by the proposal.
        situation: Description of the data, the weights and the teacher.
    """

    recipe: str
    fields: Mapping[str, Any]
    reason: str
    cost: str | None
    hints: Sequence[str]
    preparation: Sequence[str]
    command: str
    situation: str

    def __str__(self) -> str:
        lines = [self.situation, "", f"Recipe: {self.recipe}", f"Reason: {self.reason}"]
        lines += [f"Cost: {self.cost}"] if self.cost else []
        lines += [f"Hint: {hint}" for hint in self.hints]
        title = "Commands, one after the other:" if self.preparation else "Command:"
        return "\n".join([*lines, "", title, *(f"  {command}" for command in (*self.preparation, self.command))])


def propose_recipe(
    data: Any,
    *,
    model: Any = None,
    teacher: Any = None,
    unlabelled: Any = None,
    **fields: Any,
) -> Proposal:
    """Propose a recipe of the package for some data, as `hf-deit recipes --for DATA` does. Nothing is trained or written.

    The images are listed, and the headers of at most 500 of them are read. `train(..., recipe="auto")` follows the proposal.

    Args:
        data: Folder, table, saved data set or Hub name of the images.
        model: Folder or Hub name of weights to start from.
        teacher: Folder, Hub name or `package.module:factory` of a teacher.
        unlabelled: Folder, table, saved data set or Hub name of images without labels.
        **fields: Further fields of a training that describe the data, the weights or the teacher, such as
            `label_column="tags"`.

    Raises:
        UserError: The data, the weights or the teacher do not exist or do not match, or a field is unknown or invalid.
    """
    named = {"data": data, "model": model, "teacher": teacher, "unlabelled": unlabelled}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None}
    return propose({**fields, **given}, check_teacher=True)


def propose(fields: Mapping[str, Any], *, check_teacher: bool = False) -> Proposal:
    """Propose a recipe for the data, the weights and the teacher that fields of a training name.

    Args:
        fields: Fields of a training by name.
        check_teacher: Whether to check that the teacher exists and knows the classes. A training checks it itself.

    Raises:
        UserError: As in `propose_recipe`.
    """
    given = _typed(fields)
    if given.get("data") is None:
        raise RecipeError(
            "A recipe is proposed for data, but data is not given: set it to a folder, a table or a name on the Hub."
        )
    if given.get("streaming"):
        raise RecipeError(
            "streaming=True: a recipe is proposed by the number of images and of classes, which is unknown for a stream. "
            "Name a recipe (`hf-deit recipes` lists them), or set streaming: false."
        )
    data, weights = _group(DataArguments, given), _group(ModelArguments, given).model
    patch = None if weights is None else _patch_size(weights)
    teacher = build_teacher(_group(TeacherArguments, given), with_weights=False) if check_teacher else None
    source, held_out = list_training(data.data, columns_of(data), data.broken_images, selection_of(data))
    source = with_class_names(source, None if data.class_names is None else read_class_names(data.class_names))
    if teacher is not None:
        teacher.check_problem_type(source.problem_type)
        teacher.align(list(source.class_names), len(source.class_names), (224, 224))
    case = _situation(source, given, 1.0 if held_out else 1 - data.validation_share)
    return _proposal(case, given, patch)


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the types that they have in a recipe, without those that are None."""
    fields = {name: value for name, value in fields.items() if value is not None}
    check_names(fields)
    typed = {}
    for name, value in fields.items():
        entry, hint = field_entries()[name]
        typed[name] = typed_value(name, value, hint, entry.metadata.get("choices"))
    return typed


def _group(group: type, fields: Mapping[str, Any]) -> Any:
    names = [entry.name for entry in dataclasses.fields(group)]
    return group(**{name: fields[name] for name in names if name in fields})


def _patch_size(weights: str) -> int:
    """Return the side of a patch of the weights to start from.

    Raises:
        UserError: The weights cannot be found, or they are neither those of a ViT nor those of a DeiT.
    """
    config = load_config(weights)
    if config.model_type not in ("vit", "deit"):
        raise RecipeError(
            f"model={weights!r} is of the family {config.model_type!r}, and the recipes of the package are for ViT and DeiT. "
            "Train it without a recipe and with fields of your own, or give the weights of a ViT or DeiT."
        )
    return as_pair(config.patch_size)[0]


def _situation(source: Source, given: Mapping[str, Any], share: float) -> Situation:
    """Return what the rules look at.

    Args:
        source: Training images, validation images that are split off from them included.
        given: Fields that were given.
        share: Share of the images that is used for training.
    """
    multi_label = source.problem_type == ProblemType.MULTI_LABEL
    labels = np.asarray(source.labelled_part().labels)
    missing = len(source) - len(labels)
    counts = labels.sum(axis=0) if multi_label else np.bincount(labels, minlength=len(source.class_names))
    edges, more = shorter_edges(source.items, SAMPLED_IMAGES), given.get("unlabelled")
    beside = 0 if more is None else count_unlabelled(more, given.get("unlabelled_split"))
    return Situation(
        images=round(share * len(labels)),
        unlabelled=missing + beside,
        class_names=source.class_names,
        counts=[round(share * int(count)) for count in counts],
        multi_label=multi_label,
        edge=round(median(edges)) if edges else None,
        weights=given.get("model") is not None,
        teacher=_is_taught(given),
        beside=beside,
    )


def _has_teacher(given: Mapping[str, Any]) -> bool:
    return bool(given.get("teacher") or given.get("teacher_cache"))


def _is_guided(given: Mapping[str, Any]) -> bool:
    return given.get("guidance", "none") != "none"


def _is_taught(given: Mapping[str, Any]) -> bool:
    """Return whether a student learns from a teacher: from its logits, or from its patches."""
    return _has_teacher(given) and (given.get("distillation_type") != "none" or _is_guided(given))


def _proposal(case: Situation, given: Mapping[str, Any], patch: int | None = None) -> Proposal:
    rule = next(rule for rule in RULES if rule.applies(case))
    name = _recipe_of_size(rule.recipes, case.edge)
    own, text = read_fields(recipe_path(name)), recipe_path(name).read_text(encoding="utf-8")
    fields = {name: value for name, value in _fitting(own, case, patch, given).items() if name not in given}
    sentences = [rule.reason] + [rule.reason_of_teacher] * (case.teacher and bool(rule.reason_of_teacher))
    if case.unlabelled:
        sentences.append(
            "A teacher's outputs for images without labels gain most: 11.1 ± 0.7 points with labels for half of the images."
        )
    if case.images < FEW_IMAGES:
        sentences.append(f"{case.images} images are fewer than were measured, so expect less.")
    preparation, command = _commands(name, own, given, fields, needs_teacher=case.unlabelled > 0)
    return Proposal(
        name, fields, " ".join(sentences), stated_cost(text), _hints(case, given), preparation, command, str(case)
    )


def _recipe_of_size(pattern: str, edge: int | None) -> str:
    """Return the recipe whose views are as large as possible but no larger than the images; else that of the smallest views.

    Args:
        pattern: Pattern of the names of the recipes.
        edge: Median of the shorter edges of the images in pixels, or None if it is unknown.
    """
    sizes = {}
    for name in recipe_names():
        if fnmatch(name, pattern):
            fields = read_fields(recipe_path(name))
            sizes[name] = max(as_size("view_size", fields.get("view_size", fields.get("image_size"))) or (0,))
    fitting = {name: size for name, size in sizes.items() if edge is not None and size <= edge}
    return max(fitting, key=fitting.get) if fitting else min(sizes, key=sizes.get)


def _fitting(own: Mapping[str, Any], case: Situation, patch: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that have to be changed for the data, the weights and the teacher."""
    fields: dict[str, Any] = {}
    if not case.teacher and own.get("distillation_type") != "none":
        fields["distillation_type"] = "none"
    if not case.teacher and own.get("guidance", "none") != "none":
        fields |= {"guidance": "none", "learning_rate": _RATE_WITHOUT_GUIDANCE}
    size, batch = own.get("image_size"), own.get("per_device_train_batch_size")
    if patch is not None and size is not None and size % patch:
        fields["image_size"] = max(round(size / patch), 1) * patch
    if batch is not None:
        steps = {**own, **given}.get("gradient_accumulation_steps", 1)
        fitting = _fitting_batch(batch, steps, case, given.get("unlabelled_share", UNLABELLED_SHARE))
        fields |= {"per_device_train_batch_size": fitting} if fitting != batch else {}
    return fields


def _fitting_batch(batch: int, steps: int, case: Situation, share: float) -> int:
    """Return the largest batch size up to that of a recipe of which an epoch has at least one step.

    Args:
        batch: Batch size of the recipe.
        steps: Number of batches in an optimizer step.
        case: The numbers of images.
        share: Share of unlabelled images in a batch, if there are some beside the training images. The labelled images
            then repeat within an epoch, so their number does not limit the batch.
    """
    images = case.images + case.unlabelled - case.beside
    if not case.beside:
        return batch if images >= batch else max(images // 2 * 2, 1)  # mixing needs an even batch
    for size in range(batch, 1, -2):
        with contextlib.suppress(ValueError):  # no whole pairs of each kind, or more unlabelled images than there are
            BatchShares(images, case.beside, size * steps, share)
            return size
    return batch  # no batch size helps; the training says why


def _hints(case: Situation, given: Mapping[str, Any]) -> list[str]:
    hints = []
    if case.weights and case.images >= MANY_IMAGES:
        hints.append(
            "The recipe was measured on few images only. For weights that were trained on these very images, the paper has "
            "deit_base_384_finetune (with a teacher) and deit_base_plain_384_finetune."
        )
    if case.imbalance >= IMBALANCE and "class_weights" not in given:
        hints.append(
            f"The largest class has {case.imbalance:.0f} times as many images as the smallest. --class_weights balanced gives "
            "rare classes more weight; its effect was not measured here, so compare the balanced accuracy."
        )
    if case.unlabelled and not case.teacher:
        hints.append("Images without labels need a teacher. `hf-deit train-teacher` trains one on the labelled images.")
    if not case.weights and not case.unlabelled and case.images < MANY_IMAGES:
        hints.append(
            "If you have photographs of the same kind without labels, use them: with labels for half of the photographs, the "
            "outputs of a teacher on all of them gained 11.1 ± 0.7 points."
        )
    return hints


def _commands(
    name: str, own: Mapping[str, Any], given: Mapping[str, Any], proposed: Mapping[str, Any], *, needs_teacher: bool
) -> tuple[list[str], str]:
    """Return the commands that prepare a training by a recipe, and the command of the training.

    Args:
        name: Name of the recipe.
        own: Fields of the recipe.
        given: Fields that were given.
        proposed: Fields to set besides.
        needs_teacher: Whether a teacher is trained first if none is given.
    """
    launch = next(iter(launch_commands(recipe_path(name).read_text(encoding="utf-8"))), "hf-deit train")
    program, preparation, fields = launch.partition(" train ")[0], [], {**given, **proposed}
    if needs_teacher and not _is_taught(fields):
        if not _has_teacher(fields):
            preparation.append(_teacher_command(own, fields))
            fields["teacher"] = _TEACHER_FOLDER
        # With guidance, a given "none" stays: the student then learns from the patches of the teacher alone.
        if fields.get("distillation_type") == "none" and not ("distillation_type" in given and _is_guided(given)):
            del fields["distillation_type"]
        if "guidance" not in given and fields.pop("guidance", None) is not None and "learning_rate" not in given:
            del fields["learning_rate"]
    if {**own, **fields}.get("num_views") and _is_taught(fields) and "teacher_cache" not in fields:
        # The teacher runs once for each distinct view instead of in every epoch.
        preparation.append(f"hf-deit cache-teacher --recipe {name} {_words(fields)} --out {_CACHE_FOLDER}")
        fields = {field: value for field, value in fields.items() if field not in ("teacher", "teacher_weights")}
        fields["teacher_cache"] = _CACHE_FOLDER
    return (
        preparation,
        f"{program} train --recipe {name} {_words({**fields, 'output_dir': fields.get('output_dir', 'out')})}",
    )


def _teacher_command(own: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Return the command that trains a teacher on the labelled images: the given weights, or a CNN with its ImageNet weights."""
    about_data = {entry.name for entry in dataclasses.fields(DataArguments)}
    data = {name: value for name, value in fields.items() if name in about_data and not name.startswith(_UNLABELLED)}
    if "seed" in fields:  # it determines which images are split off for validation
        data["seed"] = fields["seed"]
    size = as_size("view_size", own.get("view_size", own.get("image_size")))[0]
    if "model" in fields:
        words = {"model": fields["model"], **data, "student": "plain", "distillation_type": "none"}
        return f"hf-deit train --recipe {_recipe_of_size('finetune_*', size)} {_words({**words, 'output_dir': _TEACHER_FOLDER})}"
    known = {entry.name for entry in dataclasses.fields(TeacherTrainingArguments)}
    words = {name: value for name, value in data.items() if name in known}
    words |= {"network": "hf_deit.networks:efficientnet_lite0", "image_size": size}
    return f"hf-deit train-teacher {_words({**words, 'output_dir': _TEACHER_FOLDER})} --bf16"


def _words(fields: Mapping[str, Any]) -> str:
    """Return fields as words of a command line."""
    words = []
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(str(one).lower() if isinstance(one, bool) else one for one in values)]
    return shlex.join(map(str, words))


# ---- trainings that follow a proposal ----


def load_proposed(overrides: Sequence[str], given: Mapping[str, Any] | None = None) -> Recipe:
    """Load the recipe that is proposed for the data of a command, and apply the fields that are given with the command.

    If the command resumes a run, its recipe is that of the run, and nothing is proposed.

    Args:
        overrides: As in `load_recipe`.
        given: As in `load_recipe`.

    Raises:
        UserError: As in `propose` and `load_recipe`; or a run is to be resumed, and its recipe is missing.
    """
    fields = parsed_words(overrides) | dict(given or {})
    check_names(fields)
    if any(_typed(fields).get(name) for name in ("resume", "extend")):
        return _recipe_of_run(fields, overrides, given)
    proposal = propose(fields)
    own = read_fields(recipe_path(proposal.recipe))
    recipe = load_recipe({**own, **proposal.fields}, overrides, given)
    if recipe.training.process_index == 0:
        logger.info("--recipe %s: the recipe is %s. %s", AUTO, proposal.recipe, proposal.reason)
        for hint in proposal.hints:
            logger.info("Hint: %s", hint)
    return dataclasses.replace(recipe, proposal={"recipe": proposal.recipe, "reason": proposal.reason})


def _recipe_of_run(fields: Mapping[str, Any], overrides: Sequence[str], given: Mapping[str, Any] | None) -> Recipe:
    """Load the recipe that a run saved when it was started."""
    if fields.get("output_dir") is None:
        raise RecipeError(f"--recipe {AUTO} with --resume or --extend: set output_dir to the folder of the run.")
    file = Path(fields["output_dir"]).expanduser() / RECIPE_FILE
    newest_checkpoint(file.parent)
    if not file.is_file():
        raise RecipeError(
            f"--recipe {AUTO} with --resume or --extend takes the recipe with which the run was started, and {file} does not "
            "exist. Name the recipe (--recipe NAME), or give its file (--config FILE)."
        )
    recipe = load_recipe(file, overrides, given)
    proposal = proposal_in(file.read_text(encoding="utf-8"))
    if recipe.training.process_index == 0:
        name = "" if proposal is None else f", {proposal['recipe']}"
        logger.info("--recipe %s: the run continues with its own recipe, %s%s.", AUTO, file, name)
    return dataclasses.replace(recipe, proposal=proposal)


# ---- trainings without a recipe ----

# Fields of a recipe whose defaults are a poor choice for most data, and the fields that a person sets instead.
_DECISIVE = {"image_size": ("image_size",), "num_train_epochs": ("num_train_epochs", "max_steps")}


def warn_of_defaults(recipe: Recipe, trainer: DistillationTrainer) -> None:
    """Log one line if a training without a recipe has defaults that are a poor choice for its data.

    Students from scratch are checked only: for published weights, no default is known to be poor.

    Args:
        recipe: Fields of the training.
        trainer: Trainer of the training, with its data.
    """
    source = getattr(trainer.train_dataset, "source", None)
    if recipe.model.model is not None or recipe.run.continues or not trainer.is_world_process_zero():
        return
    if not isinstance(source, Source):  # a stream
        return
    # The proposed size and length do not depend on further images without labels, which would have to be listed again.
    given = {name: value for name, value in recipe.given.items() if not name.startswith(_UNLABELLED)}
    proposal = _proposal(_situation(source, given, 1.0), given)
    proposed = {**read_fields(recipe_path(proposal.recipe)), **proposal.fields}
    present = {
        "image_size": recipe.model.image_size or (224, 224),
        "num_train_epochs": recipe.training.num_train_epochs,
    }
    poor = []
    for name, ways in _DECISIVE.items():
        value = as_size(name, proposed[name]) if name == "image_size" else proposed[name]
        if not recipe.given.keys() & set(ways) and value != present[name]:
            poor.append(f"{name} {_shown(present[name])} ({_shown(value)} in the recipe)")
    if poor:
        logger.warning(
            "For %s training images without published weights, the recipe %s is proposed, and these defaults are a poor choice: "
            '%s. Use --recipe auto to follow it (in Python recipe="auto"); `hf-deit recipes --for` gives the reason.',
            f"{len(source):,}",
            proposal.recipe,
            ", ".join(poor),
        )


def _shown(value: Any) -> str:
    return f"{value[0]} px" if isinstance(value, tuple) else f"{value:g}"
