"""`DistillationTrainer`: the Hugging Face Trainer with a frozen teacher.

The trainer computes every loss itself and never passes labels to a student. It depends only on the outputs of the
student: `logits` and, for a student with two heads, `cls_logits` and `distillation_logits`. This module contains the
training step, the evaluation, and what resuming compares. The loaders are in keyed_trainer.py, the optimizer and the
schedule in scheduled_trainer.py, and the preparation of teacher and cache in teacher_setup.py. The losses are in losses.py, the
teacher in distillation/teacher.py, and the preparation of a batch and its loss terms in distillation/objective.py.

Paper: Touvron et al., arXiv:2012.12877.
"""

import copy
import dataclasses
import functools
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SaveStrategy, TrainOutput

from ..data.dataset_info import inspect_dataset
from ..data.pixel_pipeline import PixelPipeline
from ..data.views import collate
from ..distillation.cache import TeacherCache
from ..distillation.guidance import Guidance
from ..distillation.objective import DistillationObjective
from ..distillation.teacher import Teacher
from ..errors import DataError, Problems, RecipeError, listed
from ..hub.facts import RunSummary, describe_run, describe_teacher, latest_metrics
from ..losses import ProblemType
from .checks import (
    evaluation_problems,
    guidance_problems,
    is_ambiguous_range,
    metric_problems,
    pixel_range_of,
    pixel_range_problems,
    set_best_metric,
    trainer_problems,
    training_problems,
    unlabelled_problems,
)
from .class_weights import weights_of
from .environment import compile_problems, package_problems
from .guided_student import GuidedStudent, guidance_facts, guided_student, log_guidance, projections_of
from .hub_mixin import HubMixin
from .keyed_trainer import KeyedTrainer
from .label_checks import LabelChecker
from .metrics import (
    RunningTerms,
    reduce_batch,
    reduce_multi_label_batch,
    summarize,
    teacher_agreement,
    to_arrays,
)
from .optim import (
    optimizer_problems,
)
from .student import distillation_target, inspect_student
from .teacher_setup import default_processor, pixels_of, prepare_cache, prepare_teacher
from .training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


class _StepOutputs(NamedTuple):
    """Outputs of student and teacher for a batch, from which the loss is computed.

    Attributes:
        heads: Logits of the student's heads by name, each `(batch, num_labels)`.
        teacher_outputs: Teacher outputs as `DistillationObjective.teacher_outputs` returns them, empty if they are not
            needed.
        labels: The labels, mixed like the pixels.
        label_weights: The label weights, see `objective.PreparedBatch`.
        maps: Maps of the student's guided layers, each `(batch, channels, height, width)`. None if there are none.
    """

    heads: dict[str, Tensor]
    teacher_outputs: dict[str, Tensor]
    labels: Tensor | None
    label_weights: Tensor | None
    maps: list[Tensor] | None


def _check_types(model: Any, args: Any) -> None:
    if not isinstance(args, DistillationTrainingArguments):
        raise RecipeError(
            f"args is {type(args).__name__}, but DistillationTrainer needs DistillationTrainingArguments."
        )
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"The student is {type(model).__name__}, but must be a torch module. Give, for example, a transformers "
            "model."
        )


class DistillationTrainer(HubMixin, KeyedTrainer):
    """Trainer that trains a student on labels and on the outputs of a teacher.

    Args:
        model: The student: a model of this package, or any module that returns `logits` (any
            `AutoModelForImageClassification`).
        teacher: A `Teacher`; a model, which is wrapped in a `Teacher`; a name or path for `Teacher.from_pretrained`; or
            None. With `distillation_type="none"` and no guidance, the teacher is run only in evaluations, for its
            accuracy and its agreement with the student.
        args: Arguments of the run. Default: `DistillationTrainingArguments(output_dir="trainer_output")`.
        data_collator: Function that makes a batch of a list of rows. Default: `data.views.collate`.
        train_dataset: A `ViewDataset`, whose views are drawn from keys: resuming is exact, and the number of workers
            does not change the pixels. Or any data set whose rows have `pixel_values` and `labels` or `label`: resuming
            is then not exact, and a warning is logged.
        eval_dataset: Validation data, or several data sets by name.
        processing_class: The image processor. Its mean and standard deviation are used to normalise uint8 pixels, and
            to undo the normalisation of float pixels for the teacher. Default: an image processor for the student's
            image size with the mean and standard deviation of ImageNet.
        teacher_cache: Cached teacher outputs, or their folder (`hf-deit cache-teacher`). A teacher is then not needed.
            If a teacher is given as well, it is compared with the cache and not used further.
        verify_teacher_cache: Number of cached outputs that are computed again with the teacher and compared. Needs
            `teacher`.
        **kwargs: As for `transformers.Trainer`.

    Raises:
        RecipeError: Student, teacher, data and arguments do not fit together; or there are several problems of these
            kinds.
        TeacherError: The classes of the teacher do not match those of the student, or the teacher fails on a view.
        TeacherCacheError: The cached outputs are damaged, or were made for other data or another teacher.
    """

    # False: the loss is a mean over the batch, which the Trainer must scale for gradient accumulation. transformers
    # 5.19 and later read this attribute; earlier versions read `model_accepts_loss_kwargs`, which is set below.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | nn.Module | Callable[[Tensor], Any] | str | os.PathLike | None = None,
        args: DistillationTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: Any = None,
        teacher_cache: TeacherCache | str | os.PathLike | None = None,
        verify_teacher_cache: int = 0,
        **kwargs: Any,
    ):
        args = args if args is not None else DistillationTrainingArguments(output_dir="trainer_output")
        _check_types(model, args)
        self.student = inspect_student(model, inspect_dataset(train_dataset).view_size)
        self.distillation_target = self.teacher = self.cached = None
        self.guided: GuidedStudent | None = None
        self.guidance: Guidance | None = None
        problems = Problems()
        has_teacher = teacher is not None or teacher_cache is not None
        if isinstance(eval_dataset, Mapping) and not eval_dataset:
            eval_dataset = None
        has_evaluation_set = eval_dataset is not None
        args = args.settled(has_teacher=has_teacher, has_evaluation_set=has_evaluation_set)
        with problems.gathered():
            self.distillation_target = distillation_target(args, self.student, has_teacher)
            if args.guidance != "none":
                view_size = inspect_dataset(train_dataset).view_size
                self.guided = guided_student(model, args, self.student, view_size)
        self._chose_processor = processing_class is None
        processing_class = processing_class if processing_class is not None else default_processor(self.student)
        self.pixels = pixels_of(processing_class, trains=train_dataset is not None)
        own_metrics = kwargs.get("compute_metrics") is not None
        problems.add(evaluation_problems(args, has_evaluation_set, own_metrics))
        missing = [*compile_problems(args), *package_problems(args)]
        problems.add(iter(missing))
        if problems.errors and not has_evaluation_set:
            # The stock Trainer would refuse one of these fields, and hide the other problems.
            args = copy.copy(args)
            args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
            args.save_strategy = SaveStrategy.NO
        if missing:
            args = copy.copy(args)
            args.report_to, args.torch_compile_backend = [], None
        sets = tuple(eval_dataset) if isinstance(eval_dataset, Mapping) else ()
        set_best_metric(args, self.student.problem_type, sets)
        problems.add(metric_problems(args, self.student, own_metrics, sets))
        with warnings.catch_warnings():
            # It is true of the Trainer's own loss only: `losses.supervised_loss` smooths multi-label labels.
            warnings.filterwarnings("ignore", message="Label smoothing is not compatible with multi-label")
            super().__init__(
                model=model,
                args=args,
                data_collator=LabelChecker(
                    data_collator if data_collator is not None else collate,
                    self.student.num_labels,
                    self.student.problem_type,
                ),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        self.model_accepts_loss_kwargs = False
        self.label_names = ["labels"]
        with problems.gathered():
            self.teacher = prepare_teacher(teacher, self.student, self.train_dataset, self.args.device)
        with problems.gathered():
            self.cached = prepare_cache(
                teacher_cache,
                verified=verify_teacher_cache,
                args=self.args,
                student=self.student,
                guided=self.guided,
                teacher=self.teacher,
                learns=self._learns_from_teacher,
                train_dataset=self.train_dataset,
                eval_dataset=self.eval_dataset,
            )
            if self.cached is not None:
                self.teacher = None  # the cached outputs replace it: free its memory
        with problems.gathered():
            self._prepare_guidance()
        self._running = RunningTerms(self.args.device)
        self._kept: list[dict[str, Tensor]] = []
        # If `keep_rows` is True, an evaluation stores its per-image values in `rows` (see `metrics.reduce_batch`).
        self.keep_rows = False
        self.rows: dict[str, np.ndarray] = {}
        # Parts whose first batch was checked for floats that may not be normalised, and the data set being evaluated.
        self._checked_ranges: set[str] = set()
        self._evaluated: Any = None
        brings_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        shards_parameters = self.is_fsdp_enabled or self.is_deepspeed_enabled
        problems.add(trainer_problems(args, brings_optimizer, shards_parameters))
        problems.add(guidance_problems(args, self.optimizer is not None, shards_parameters))
        if train_dataset is not None:
            updates = args.planned_updates(train_dataset)
            problems.add(training_problems(args, model, self.student, train_dataset, updates))
            problems.add(unlabelled_problems(args, train_dataset, self._learns_from_unlabelled))
            if not brings_optimizer:
                problems.add(optimizer_problems(args, lambda tried: self.get_optimizer_cls_and_kwargs(tried, model)))
        problems.raise_all()
        self._warn_if_not_keyed(train_dataset)

    # ---- before the first step ----

    def _prepare_guidance(self) -> None:
        """Find what guides the student, in the cache or by running the live teacher, and create the projections."""
        args, guided = self.args, self.guided
        if guided is None:
            return
        if self.cached is not None:
            self.guidance = self.cached.guidance
        elif self.teacher is not None and self.teacher.view_size is not None:  # it is aligned
            layers = self.teacher.find_layers(
                args.guidance_teacher_layers, [shape.grid for shape in guided.shapes], self.teacher.view_size
            )
            self.guidance = Guidance(args.guidance, guided.shapes, layers)
        if self.guidance is None:  # there is a problem, which is reported
            return
        projections = projections_of(self.guidance.projection_shapes, args.seed).to(args.device)
        self.auxiliary = projections if len(projections) else None
        log_guidance(self.guidance, guided)

    @property
    def _learns_from_teacher(self) -> bool:
        """Whether the training needs the teacher: for its logits, or for its features."""
        return self.distillation_target is not None or self.guided is not None

    @property
    def objective(self) -> DistillationObjective:
        """The objective for the present arguments and teacher, built on each access: a callback may change them."""
        args = self.args
        return DistillationObjective(
            num_labels=self.student.num_labels,
            problem_type=self.student.problem_type,
            teacher=self.teacher,
            learns_from_teacher=self.distillation_target is not None,
            distillation_type=args.distillation_type,
            alpha=args.distillation_alpha,
            tau=args.distillation_tau,
            reduction=args.distillation_reduction,
            label_loss=args.base_loss,
            label_smoothing=args.label_smoothing_factor,
            class_weights=self._class_weights,
            image_size=self.student.image_size,
            pixels=self.pixels,
            guidance=self.guidance,
            guidance_weight=args.guidance_weight,
            projections=() if self.auxiliary is None else self.auxiliary,
            allows_unlabelled=self._learns_from_unlabelled,
        )

    @property
    def _learns_from_unlabelled(self) -> bool:
        """Whether the student learns something from an image without a label: the teacher's logits, or its features."""
        learns_logits = self.distillation_target is not None and self.args.distillation_alpha > 0
        return learns_logits or self.args.guidance != "none"

    @property
    def _learns_from_cache(self) -> bool:
        """Whether the training learns from cached teacher outputs, which otherwise serve evaluations only."""
        return self.cached is not None and self._learns_from_teacher

    @functools.cached_property
    def _class_weights(self) -> Tensor | None:
        """Class weights `(num_labels,)` on the device; None if all are equal, or if there are no training labels."""
        weights = weights_of(
            self.args.class_weights,
            class_names=self.student.class_names,
            num_labels=self.student.num_labels,
            labels=inspect_dataset(self.train_dataset).labelled,
            power=self.args.class_weights_power,
        )
        return None if weights is None else weights.to(self.args.device)

    # ---- a step ----

    def _with_known_range(self, inputs: dict[str, Any], training: bool) -> dict[str, Any]:
        """Return a batch whose floating-point pixels are normalised with the student's mean and std.

        A data set states the range of its floats in the attribute `pixel_range`: "normalized", or "unit" for [0, 1].
        If it does not, the first batch is checked.

        Raises:
            DataError: The floats can be read in two ways.
        """
        pixels = inputs["pixel_values"]
        if not pixels.is_floating_point():
            return inputs
        part = "training" if training else "evaluation"
        stated = pixel_range_of(self.train_dataset if training else self._evaluated)
        if stated is None and part not in self._checked_ranges:
            self._checked_ranges.add(part)
            self._check_range(pixels)
        if stated != "unit":
            return inputs
        images = ("pixel_values", "teacher_pixel_values")
        normalized = {
            name: self.pixels(inputs[name]) for name in images if name in inputs and inputs[name].is_floating_point()
        }
        return {**inputs, **normalized}

    def _check_range(self, pixels: Tensor) -> None:
        rules = self.pixels.rules
        if set(rules.image_mean) == {0.0} and set(rules.image_std) == {1.0}:
            return  # the image processor does not normalise, so both readings are the same
        alone = self.teacher is None and not self._learns_from_cache
        if alone and self._chose_processor and is_ambiguous_range(pixels):
            # Only the student sees these pixels, so they are taken as they are; the processor is this trainer's own.
            logger.warning(
                "pixel_values are floats in [0, 1], and the data set states no pixel_range. The student sees them as they "
                "are, and the saved image processor does not normalise (do_normalize=False). For normalised pixels, pass "
                "uint8 images, or set the attribute pixel_range of the data set to 'unit' or 'normalized'."
            )
            if self.processing_class is not None:
                self.processing_class.do_normalize = False
            rules = dataclasses.replace(rules, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
            self.pixels = PixelPipeline(rules, self.processing_class)
            return
        for problem in pixel_range_problems(pixels, rules.image_mean, rules.image_std):
            raise DataError(problem)

    def _forward(
        self, model: nn.Module, inputs: dict[str, Any], needs_teacher: bool, guides: bool = False
    ) -> _StepOutputs:
        """Run the student and, if its outputs are needed and not cached, the teacher.

        Args:
            model: The student, which may be wrapped.
            inputs: The batch.
            needs_teacher: Whether the teacher outputs are needed.
            guides: Whether the features for the guidance are needed too.
        """
        inputs = self._with_known_range(inputs, model.training)
        objective = self.objective
        prepared = objective.prepare(inputs, for_teacher=needs_teacher and objective.needs_live_teacher(inputs))
        pixels, others = prepared.student_pixels, objective.other_inputs(inputs)
        maps = None
        if guides:
            reader = self.guided.reader
            with reader.recording():
                outputs = model(pixel_values=pixels, **{**others, **reader.arguments})
            maps = reader.maps(outputs, pixels)
            if not all(values.requires_grad for values in maps):  # a mode of training can differ from the first check
                raise RecipeError(
                    f"guidance_student_layers={listed(self.guided.layers)}: no gradient reaches a layer in training, so "
                    "guidance would teach nothing. With gradient_checkpointing, set gradient_checkpointing_kwargs="
                    "{'use_reentrant': False}, or choose a complete block of the student."
                )
        else:
            outputs = model(pixel_values=pixels, **others)
        heads = {name: outputs[name] for name in ("logits", "cls_logits", "distillation_logits") if name in outputs}
        teacher_outputs = {}
        if needs_teacher:
            teacher_outputs = objective.teacher_outputs(inputs, prepared.teacher_pixels, guides=guides)
        return _StepOutputs(heads, teacher_outputs, prepared.labels, prepared.label_weights, maps)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss on labels and teacher outputs (`losses.distillation_terms` defines what learns from what).

        Args:
            model: The student, which may be wrapped.
            inputs: A batch with `pixel_values` (a uint8 view, or floats that were normalised as the image processor
                does) and `labels`. It may also have `teacher_pixel_values`, if the teacher sees another size, and
                `mixes`, if partners are mixed.
            return_outputs: Whether to return the outputs as well.
            num_items_in_batch: Not used, because the loss is a mean over the batch.

        Returns:
            The loss or, with `return_outputs`, the loss and a dictionary of the heads' logits and the teacher outputs.

        Raises:
            ValueError: The batch has no labels.
        """
        if inputs.get("labels") is None:
            raise ValueError(
                f"The batch has only {', '.join(inputs)}, but the loss needs 'labels'. Add them to the rows of the "
                "data set."
            )
        guides = self.guidance is not None and model.training  # an evaluation reports the other terms
        step = self._forward(model, inputs, needs_teacher=self._learns_from_teacher, guides=guides)
        heads, teacher_outputs = step.heads, step.teacher_outputs
        terms = self.objective.terms(heads, teacher_outputs, step.labels, step.label_weights, step.maps)
        if model.training:
            logged = dict(terms)
            if (agreement := teacher_agreement(heads | teacher_outputs, self.student.problem_type)) is not None:
                logged["teacher_agreement"] = agreement
            self._running.add(logged, self.state.global_step + 1, self._learning_rate())
        loss = terms["loss"].mean()
        return (loss, heads | teacher_outputs) if return_outputs else loss

    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else 0.0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log `logs` and, if they contain `loss`, the loss terms since the last log.

        Every term, also `loss` itself, is logged as the mean over all images and not as a mean of step means.
        """
        if "loss" in logs:
            logs |= self._running.read(self.accelerator)
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._running.check(self.accelerator)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the student. `resume_from_checkpoint=True` resumes from the newest complete checkpoint in `output_dir`.

        Args:
            *args: As for `Trainer.train`.
            **kwargs: As for `Trainer.train`.

        Raises:
            ResumeError: `output_dir` holds no complete checkpoint, or the checkpoint belongs to a run with other data,
                recipe, teacher or model, or it does not restore all weights.
            NonFiniteLossError: The loss or a weight is not finite. No checkpoint was written after that step.
        """
        self._running = RunningTerms(self.args.device)
        self._checked_ranges.discard("training")
        self._log_epoch()
        return super().train(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._running.check(self.accelerator)
        return super()._finalize_training(*args, **kwargs)

    # ---- an evaluation ----

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, logits of the prediction and labels of a batch, and keep a few numbers per image for the metrics."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with self.compute_loss_context_manager():
            heads, teacher_outputs, *_ = self._forward(model, inputs, needs_teacher=labels is not None)
            if labels is None:
                return None, heads["logits"].detach(), None
            kept = self.objective.terms(heads, teacher_outputs, labels)
        loss = kept["loss"].mean()
        if self.student.problem_type == ProblemType.SINGLE_LABEL:
            kept |= reduce_batch(heads | teacher_outputs, labels)
        elif self.student.problem_type == ProblemType.MULTI_LABEL:
            kept |= reduce_multi_label_batch(heads | teacher_outputs, labels)
        # With several processes, the last batch is padded to divide evenly; gather_for_metrics drops the padding.
        self._kept.append(self.accelerator.gather_for_metrics(kept))
        return loss, None if prediction_loss_only else heads["logits"].detach(), labels

    def _evaluate_weights(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate the present weights, and add the metrics of all heads. Each loss is the mean over all images."""
        self._kept = []
        self._evaluated = getattr(dataloader, "dataset", None)
        self._checked_ranges.discard("evaluation")
        output = super()._evaluate_weights(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._kept:
            arrays = to_arrays(self._kept)
            metrics = {name: float(np.mean(arrays[name])) for name in arrays if name.endswith("loss")}
            if "prediction" in arrays or "present" in arrays:
                metrics |= summarize(arrays)
            if self.keep_rows:
                self.rows = arrays
            user_metrics = {name for name in output.metrics if name != f"{metric_key_prefix}_loss"}
            named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            output.metrics.update({name: value for name, value in named.items() if name not in user_metrics})
        self._kept = []
        return output

    # ---- what resuming compares ----

    def run_description(self, with_teacher: bool = True) -> dict[str, Any]:
        """Return the model, recipe, data and teacher of this run, to write into checkpoints and compare on resume.

        Args:
            with_teacher: Whether to include the fingerprint of a live teacher, which needs its weights.
        """
        names = ("size", "crop_size", "image_mean", "image_std")
        processor = {name: str(getattr(self.processing_class, name, None)) for name in names}
        processor |= self._special_pixels()
        description = {**super().run_description(), "processor": processor}
        if self._learns_from_cache:
            description["teacher"] = self.cached.fingerprint
        elif with_teacher:
            description["teacher"] = {"fingerprint": self._teacher_fingerprint}
        if self.guidance is not None:
            description["guidance"] = {"student": self.guided.describe(), "teacher": self.guidance.describe()}
        args = self.args
        if self.student.problem_type == ProblemType.MULTI_LABEL and (
            args.label_smoothing_factor or (args.base_loss == "binary_cross_entropy" and args.mixing.is_on)
        ):
            # Earlier versions ignored these fields for multi-label data; their runs are not those of this version.
            description["model"]["label_loss"] = "smoothed or counted as present"
        if self._learns_from_cache:
            # This can differ from `args.num_views`: cached views repeat if the cache has fewer epochs than the run.
            description["recipe"]["num_views"] = self.cached.num_views
        return description

    def _special_pixels(self) -> dict[str, str]:
        """Return the pixel rules that `image_mean` and `image_std` of the processor do not state, for descriptions."""
        rules, processor = self.pixels.rules, self.processing_class
        found = {} if rules.channel_order == "rgb" else {"channel_order": rules.channel_order}
        if getattr(processor, "do_normalize", True) is False:
            stated = ((0.0,) * 3, (1.0,) * 3)
        else:
            given = [getattr(processor, name, None) or () for name in ("image_mean", "image_std")]
            stated = tuple((values,) * 3 if isinstance(values, float) else tuple(values) for values in given)
        if all(stated) and stated != (rules.image_mean, rules.image_std):
            found["normalization"] = str((rules.image_mean, rules.image_std))
        return found

    @functools.cached_property
    def _teacher_fingerprint(self) -> str | None:
        # Computed once per run instead of at every save: the teacher is frozen, and its weights may be large and on a
        # device.
        return self.teacher.fingerprint() if self._learns_from_teacher else None

    # ---- what the model card shows ----

    def summary(self) -> RunSummary:
        """Return the present facts of this run: configuration, recipe, metrics, data, teacher and machine."""
        args, state, model = self.args, self.state, self.accelerator.unwrap_model(self.model)
        known = {"teacher": None, "outputs": None}
        if self.cached is not None:
            known = self.cached.cache.describe()
        elif self.teacher is not None:
            known["teacher"] = describe_teacher(self.teacher.model)
        run = describe_run(
            model=model,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            teacher=known["teacher"],
            teacher_outputs=known["outputs"],
            device=args.device,
            processes=args.world_size,
        )
        holds_best = args.load_best_model_at_end and not self.is_in_train  # it is loaded when training ends
        metrics = latest_metrics(
            state.log_history,
            step=state.global_step,
            best_step=state.best_global_step if holds_best else None,
            ema_counts=self._ema_counts,
        )
        guided = {}
        if self.guidance is not None:
            guided = {"guidance": guidance_facts(self.guidance, args.guidance_weight, self.guided)}
        config = getattr(model, "config", None)
        has_config = hasattr(config, "to_json_string")  # any torch module can be a student
        return RunSummary(
            config=json.loads(config.to_json_string(use_diff=False)) if has_config else {},
            recipe=json.loads(args.to_json_string()),
            results={
                **metrics,
                "steps": state.global_step,
                "epochs": state.epoch,
                "run": run | guided,
                **({"extensions": self.extensions} if self.extensions else {}),
                **self.ending,
            },
        )
