"""Training of a teacher from a pretrained network: a linear head on its frozen features, or all weights fine-tuned.

`train` accepts the saved folder as its teacher. A transformers model is saved as a transformers folder, any other network as
`model.safetensors` with a `teacher.json` (factory, classes, normalisation, image size).
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from ..data.augmentation import Augmentation
from ..data.loading import LEAVE_OUT, load_splits
from ..data.pixel_pipeline import evaluation_processor
from ..data.sampling import ViewSampler
from ..data.sources import Source, without_unreadable
from ..data.views import EvaluationDataset, ViewDataset, collate
from ..distillation.factories import classifier_name, logits_of, replace_classifier
from ..distillation.objective import DistillationObjective, live_teacher_logits
from ..distillation.teacher import TEACHER_FILE, WEIGHTS_FILE, Teacher
from ..errors import UserError
from ..files import staged_files
from ..losses import ProblemType, supervised_loss
from ..models.image_processing_deit import DEFAULT_CROP_RATIO
from ..models.label_names import read_class_names
from ..trainer.trainer import DistillationTrainer
from ..trainer.training_args import DistillationTrainingArguments
from .class_names import with_class_names
from .data import columns_of, selection_of
from .teacher_arguments import TeacherTrainingArguments


def train_teacher(
    arguments: TeacherTrainingArguments, prepare: Callable[[DistillationTrainer], None] | None = None
) -> dict[str, float]:
    """Train a teacher and save it.

    Args:
        arguments: Settings of the training.
        prepare: Function that is called with the trainer before its first step, to add callbacks.

    Returns:
        The metrics on the validation images, among them `accuracy` and `balanced_accuracy`; for multi-label data
        `mean_average_precision` and `f1_macro`.

    Raises:
        UserError: The data, the network or an argument cannot be used.
    """
    _check(arguments)
    set_seed(arguments.seed)
    train, validation = load_splits(
        arguments.data,
        arguments.validation_share,
        arguments.seed,
        columns_of(arguments),
        selection=selection_of(arguments),
        unlabelled_rows=LEAVE_OUT,
    )
    names = None if arguments.class_names is None else read_class_names(arguments.class_names)
    train, validation = with_class_names(train, names), without_unreadable(with_class_names(validation, names))
    base = _base_network(arguments.network)
    network, class_names = base.model, train.class_names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base.image_size, base.class_names = None, None  # from here on it gets images of its new size, and new classes
    base.to(device).try_on((arguments.image_size, arguments.image_size))
    head = _fit_linear_head(arguments, base, train)
    with torch.no_grad():
        fresh = replace_classifier(network, len(class_names))
        fresh.load_state_dict(head.state_dict())
    if isinstance(network, PreTrainedModel):
        if hasattr(network.config, "image_size"):
            network.config.image_size = arguments.image_size  # try_on has shown that it accepts this size
        network.config.update(_labels_of(train))
    with tempfile.TemporaryDirectory() as unused:
        trainer = _finetuner(arguments, base, train, validation, unused)
        if prepare is not None:
            prepare(trainer)
        if arguments.mode == "finetune":
            network.requires_grad_(True)
            trainer.train()
        metrics = trainer.evaluate()
    _save(arguments, base, train)
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}


def _labels_of(source: Source) -> dict[str, Any]:
    """Return the fields of a configuration that describe the labels; single-label is the default of transformers."""
    names = source.class_names
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": None if source.problem_type == ProblemType.SINGLE_LABEL else str(source.problem_type),
    }


_DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(TeacherTrainingArguments)}


def _check(arguments: TeacherTrainingArguments) -> None:
    if arguments.mode not in ("linear", "finetune"):
        raise UserError(f"mode={arguments.mode!r}: choose linear or finetune.")
    for name in ("image_size", "views", "epochs", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name}={getattr(arguments, name)}: it must be at least 1.")
    unused = [name for name in ("epochs", "learning_rate") if getattr(arguments, name) != _DEFAULTS[name]]
    if arguments.mode == "linear" and unused:
        given = ", ".join(f"{name}={getattr(arguments, name)}" for name in unused)
        raise UserError(f"{given} with mode=linear, which trains no epochs: leave it out, or use --mode finetune.")
    if not arguments.learning_rate > 0:
        raise UserError(f"learning_rate={arguments.learning_rate}: it must be above 0.")
    if any((Path(arguments.output_dir) / name).exists() for name in (TEACHER_FILE, WEIGHTS_FILE)):
        raise UserError(f"output_dir={arguments.output_dir!r} already holds a model: choose another output_dir.")
    _augmentation(arguments)


def _augmentation(arguments: TeacherTrainingArguments) -> Augmentation:
    return Augmentation((arguments.image_size, arguments.image_size), crop_scale=arguments.crop_scale)


def _base_network(name: str) -> Teacher:
    if ":" in name and not Path(name).exists():
        return Teacher.from_factory(name)
    base = Teacher.from_pretrained(name, needs_head=False)
    if hasattr(base.model, "distillation_classifier"):
        raise UserError(
            f"network={name!r} has two heads, but a teacher gets one head here: fine-tune it with hf-deit train "
            "--model instead."
        )
    return base


def _batches(arguments: TeacherTrainingArguments, source: Source) -> Iterator[dict[str, Tensor]]:
    """Yield uint8 batches of `views` augmented views of every image."""
    dataset = ViewDataset(source, _augmentation(arguments), arguments.seed)
    sampler = ViewSampler(len(dataset), global_batch_size=2, seed=arguments.seed)
    for view in range(arguments.views):
        sampler.set_epoch(view)
        yield from torch.utils.data.DataLoader(dataset, arguments.batch_size, sampler=sampler, collate_fn=collate)


@torch.no_grad()
def _features(arguments: TeacherTrainingArguments, base: Teacher, source: Source) -> tuple[Tensor, Tensor]:
    """Return the input of the network's last linear layer for each view, `(views, features)`, and the labels."""
    base.dtype = torch.bfloat16 if arguments.bf16 else None
    objective = DistillationObjective(num_labels=len(source.class_names), teacher=base)
    features: list[Tensor] = []
    classifier = base.model.get_submodule(classifier_name(base.model))
    handle = classifier.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].float().cpu()))
    labels = []
    try:
        from tqdm.auto import tqdm

        total = -(-len(source) * arguments.views // arguments.batch_size)
        for batch in tqdm(_batches(arguments, source), desc="features", total=total, disable=None):
            live_teacher_logits(objective, batch)
            labels.append(batch["labels"])
    finally:
        handle.remove()
    return torch.cat(features), torch.cat(labels)


def _fit_linear_head(arguments: TeacherTrainingArguments, base: Teacher, source: Source) -> nn.Linear:
    """Fit a linear head on the standardised features: full-batch L-BFGS with a small L2 penalty.

    With one class per image, it is a softmax regression; for multi-label data, a logistic regression of each class.
    """
    features, labels = _features(arguments, base, source)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    standard = (features - mean) / std
    head = nn.Linear(features.shape[1], len(source.class_names))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = supervised_loss(head(standard), labels, source.problem_type).mean()
        loss = loss + L2_PENALTY * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():  # fold the standardisation into the head
        head.weight /= std
        head.bias -= head.weight @ mean
    return head


L2_PENALTY = 2e-3


class _Logits(nn.Module):
    """Wrapper that gives a network the outputs that the trainer expects, and a configuration of its labels alone.

    The image size in the configuration of the network may differ from the one used here.
    """

    def __init__(self, network: nn.Module, source: Source):
        super().__init__()
        self.network = network
        self.config = PreTrainedConfig(**_labels_of(source))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": logits_of(self.network(pixel_values))}


def _finetuner(
    arguments: TeacherTrainingArguments, base: Teacher, train: Source, validation: Source, work_dir: str
) -> DistillationTrainer:
    size = (arguments.image_size, arguments.image_size)
    args = DistillationTrainingArguments(
        output_dir=work_dir,
        distillation_type="none",
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        bf16=arguments.bf16,
        save_strategy="no",
        report_to="none",
        seed=arguments.seed,
    )
    return DistillationTrainer(
        _Logits(base.model, train),
        None,
        args,
        train_dataset=ViewDataset(train, _augmentation(arguments), arguments.seed),
        eval_dataset=EvaluationDataset(validation, size),
        processing_class=_processor(arguments, base),
    )


def _processor(arguments: TeacherTrainingArguments, base: Teacher) -> Any:
    return evaluation_processor(base.pixels, arguments.image_size, DEFAULT_CROP_RATIO)


def _save(arguments: TeacherTrainingArguments, base: Teacher, source: Source) -> None:
    with staged_files(Path(arguments.output_dir)) as folder:
        if isinstance(base.model, PreTrainedModel):
            base.model.save_pretrained(folder)
            _processor(arguments, base).save_pretrained(folder)
            return
        save_file(
            {name: tensor.contiguous() for name, tensor in base.model.state_dict().items()}, folder / WEIGHTS_FILE
        )
        description: dict[str, Any] = {
            "factory": arguments.network,
            "class_names": list(source.class_names),
            "image_mean": list(base.image_mean),
            "image_std": list(base.image_std),
            "image_size": arguments.image_size,
        }
        if source.problem_type != ProblemType.SINGLE_LABEL:
            description["problem_type"] = str(source.problem_type)
        (folder / TEACHER_FILE).write_text(json.dumps(description, indent=2) + "\n")
