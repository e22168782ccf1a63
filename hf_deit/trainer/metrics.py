"""Metrics: the values that are kept of each image during an evaluation, and the metrics computed from them at its end.

The logits of each batch are reduced to a few numbers per image. An evaluation of ImageNet with three heads and a
teacher therefore keeps a few megabytes instead of hundreds. The accuracies are the `evaluate.Metric`s of accuracy.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import NonFiniteLossError
from ..losses import ProblemType, teacher_decisions

TOP_K = 5
MULTI_LABEL_METRICS = (
    "mean_average_precision",
    *(f"{measure}_{average}" for measure in ("f1", "precision", "recall") for average in ("macro", "micro")),
)


def average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    """Return the average precision of one class.

    This is the mean, over the images that have the class, of the precision at the rank of the image. Images with equal
    scores share a rank.

    Args:
        present: 1 for each image that has the class, else 0, `(images,)`. At least one image must have it.
        scores: Scores of the class, larger for images that more probably have it, `(images,)`.
    """
    order = np.argsort(-scores, kind="stable")
    hits, scores = np.cumsum(present[order].astype(np.int64)), scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each group of equal scores
    found = np.diff(hits[last], prepend=0)
    return float(np.sum(found * hits[last] / (last + 1)) / hits[-1])


def reduce_multi_label_batch(heads: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return the values of a multi-label batch that the metrics need: labels, scores and the teacher's decisions.

    Args:
        heads: As for `reduce_batch`.
        labels: Zeros and ones `(batch, num_labels)`.

    Returns:
        `present`, the logits of each head and of the teacher (`score`, `cls_score`, …, `teacher_score`) and, if the teacher
        outputs are decisions without logits, `teacher_decision`; each `(batch, num_labels)`.
    """
    names = ("logits", "cls_logits", "distillation_logits", "teacher_logits")
    kept = {"present": labels} | {
        name.replace("logits", "score"): heads[name].float() for name in names if name in heads
    }
    decisions = teacher_decisions(heads, ProblemType.MULTI_LABEL)
    if decisions is not None and "teacher_score" not in kept:
        kept["teacher_decision"] = decisions.to(torch.uint8)
    return kept


def teacher_agreement(heads: Mapping[str, Tensor], problem_type: str) -> Tensor | None:
    """Return how far the student's predictions agree with the teacher's decisions.

    Args:
        heads: As for `reduce_batch`.
        problem_type: Problem type of the labels.

    Returns:
        For each image `(batch,)` in float32: 1 if both predict the same class, else 0; for multi-label data, the share of
        the classes for which both decide alike. None if there are no teacher outputs.
    """
    decisions = teacher_decisions(heads, problem_type)
    if decisions is None:
        return None
    if problem_type == ProblemType.MULTI_LABEL:
        return ((heads["logits"] > 0) == decisions).float().mean(dim=-1)
    return (heads["logits"].argmax(dim=-1) == decisions).float()


def reduce_batch(heads: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return the values of a single-label batch that the metrics need, a few numbers per image.

    Args:
        heads: `logits` and, where they exist, `cls_logits`, `distillation_logits` and `teacher_logits`, each
            `(batch, num_labels)`. Cached teacher outputs may take the place of `teacher_logits`, under the names of
            `losses.TEACHER_OUTPUTS`.
        labels: Class indices `(batch,)`, or soft labels `(batch, num_labels)`, whose largest entry is used as the
            label.

    Returns:
        `label`, the predicted class index of each head (`prediction`, `cls_prediction`, …) and, for more than 5
        classes, `top5`, which is 1 if the label is among the 5 largest logits; each `(batch,)`.
    """
    labels = labels.argmax(dim=-1) if labels.ndim == 2 else labels
    kept = {"label": labels}
    for name in ("logits", "cls_logits", "distillation_logits"):
        if name in heads:
            kept[name.replace("logits", "prediction")] = heads[name].argmax(dim=-1)
    if (decisions := teacher_decisions(heads)) is not None:
        kept["teacher_prediction"] = decisions
    if heads["logits"].shape[-1] > TOP_K:
        kept["top5"] = (heads["logits"].topk(TOP_K, dim=-1).indices == labels[:, None]).any(dim=-1).to(torch.uint8)
    return kept


def summarize(kept: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute the metrics of an evaluation.

    Args:
        kept: The values that `reduce_batch` or `reduce_multi_label_batch` returned, joined over all images
            (`to_arrays`).

    Returns:
        For multi-label images, of the prediction and of each head: `mean_average_precision`, the mean over the classes
        that occur; and `f1`, `precision` and `recall` of the decisions (a class is present if its logit is above 0), each
        with `_macro` (mean over the classes that occur) and `_micro` (all images and classes counted together); 0 where
        nothing is predicted. With a teacher: the same of its outputs, as far as they are known (`teacher_f1_macro`, …), and
        `teacher_agreement`, the share of all images and classes for which both decide alike. Also
        `chance_mean_average_precision`, the mean average precision of scores without information, which is the mean over
        the classes that occur of the share of images that have the class. There are no metrics if no class occurs.

        For single-label images: `majority_accuracy`, the share of the most frequent class; `accuracy` (top-1) and
        `balanced_accuracy`; and those of `cls_accuracy`, `distillation_accuracy`, `teacher_accuracy`,
        `teacher_agreement` and `top5_accuracy` whose values were kept.
    """
    if "present" in kept:
        return _summarize_multi_label(kept)
    from .accuracy import TeacherAgreement, TopOneAccuracy

    labels = kept["label"]
    summary = TopOneAccuracy(keep_in_memory=True).compute(predictions=kept["prediction"], references=labels)
    for head in ("cls", "distillation", "teacher"):
        if f"{head}_prediction" in kept:
            result = TopOneAccuracy(keep_in_memory=True).compute(
                predictions=kept[f"{head}_prediction"], references=labels
            )
            summary[f"{head}_accuracy"] = result["accuracy"]
    if "teacher_prediction" in kept:
        agreement = TeacherAgreement(keep_in_memory=True)
        summary |= agreement.compute(predictions=kept["prediction"], references=kept["teacher_prediction"])
    if "top5" in kept:
        summary["top5_accuracy"] = float(np.mean(kept["top5"]))
    summary["majority_accuracy"] = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return summary


def _summarize_multi_label(kept: Mapping[str, np.ndarray]) -> dict[str, float]:
    present = kept["present"] > 0
    occurring = np.flatnonzero(present.any(axis=0))
    if not len(occurring):
        return {}
    summary = {"chance_mean_average_precision": float(present[:, occurring].mean())}
    decisions = {
        name.removesuffix("decision"): values > 0 for name, values in kept.items() if name.endswith("decision")
    }
    for name, scores in kept.items():
        if name.endswith("score"):
            head = name.removesuffix("score")
            values = [average_precision(present[:, label], scores[:, label]) for label in occurring]
            summary[f"{head}mean_average_precision"] = float(np.mean(values))
            decisions[head] = scores > 0
    for head, decided in decisions.items():
        for measure, value in decision_metrics(present, decided).items():
            summary[f"{head}{measure}_macro"] = float(np.mean(value[occurring]))
        for measure, value in decision_metrics(present.reshape(-1, 1), decided.reshape(-1, 1)).items():
            summary[f"{head}{measure}_micro"] = float(value[0])
    if "teacher_" in decisions:
        summary["teacher_agreement"] = float(np.mean(decisions[""] == decisions["teacher_"]))
    return summary


def decision_metrics(present: np.ndarray, decided: np.ndarray) -> dict[str, np.ndarray]:
    """Return F1, precision and recall of the decisions for each class.

    Args:
        present: Whether each image has each class, `(images, classes)` in bool.
        decided: Whether each image is decided to have each class, `(images, classes)` in bool.

    Returns:
        `f1`, `precision` and `recall`, each `(classes,)`. A value is 0 if its denominator is 0.
    """
    hits, found, true = (values.sum(axis=0, dtype=np.int64) for values in (present & decided, decided, present))
    return {
        "f1": 2 * hits / np.maximum(found + true, 1),
        "precision": hits / np.maximum(found, 1),
        "recall": hits / np.maximum(true, 1),
    }


def per_class(kept: Mapping[str, np.ndarray], class_names: list[str]) -> dict[str, dict[str, float | int | None]]:
    """Return metrics and the number of `images` for each class, by class name.

    The metric is `accuracy` for single-label images. For multi-label images, the metrics are `average_precision`, `f1`,
    `precision` and `recall`. They are None for a class without images.
    """
    rows: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(class_names):
        if "present" in kept:
            members = kept["present"][:, index] > 0
            scores = kept["score"][:, index]
            figures: dict[str, float | None] = dict.fromkeys(("average_precision", "f1", "precision", "recall"))
            if members.any():
                measures = decision_metrics(members[:, None], scores[:, None] > 0)
                figures = {"average_precision": average_precision(members, scores)}
                figures |= {measure: float(value[0]) for measure, value in measures.items()}
            rows[name] = {**figures, "images": int(members.sum())}
            continue
        members = kept["label"] == index
        hits = kept["prediction"][members] == index
        rows[name] = {"accuracy": float(hits.mean()) if members.any() else None, "images": int(members.sum())}
    return rows


def to_arrays(batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Concatenate the values kept of all batches into one array per name."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in batches[0]}


class RunningTerms:
    """Running sums of the per-image loss terms of all training steps since the last `read`.

    Args:
        device: Device of the terms.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._names: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self._sums: Tensor | None = None
        self._images = 0
        self._bad_step = torch.full((), -1, dtype=torch.long, device=self.device)
        self._bad_terms: Tensor | None = None
        self._learning_rates: dict[int, float] = {}

    def add(self, terms: dict[str, Tensor], step: int, learning_rate: float) -> None:
        """Add the terms of one batch, without waiting for the device.

        Args:
            terms: Values `(batch,)` by name. All batches must have the same names, and the first must be the loss.
            step: Number of the optimizer step.
            learning_rate: Learning rate of that step.
        """
        stacked = torch.stack([term.detach().float() for term in terms.values()])  # (terms, batch)
        sums = stacked.sum(dim=1)
        if self._sums is None:
            self._names = list(terms)
            self._sums, self._bad_terms = torch.zeros_like(sums), torch.zeros_like(sums)
        self._sums += sums
        self._images += stacked.shape[1]
        self._learning_rates[step] = learning_rate
        first_bad = ~torch.isfinite(sums[0]) & (self._bad_step < 0)
        self._bad_step = torch.where(first_bad, step, self._bad_step)
        self._bad_terms = torch.where(first_bad, sums / stacked.shape[1], self._bad_terms)

    def check(self, accelerator: Accelerator) -> None:
        """Check that the loss was finite in all processes since the last `read`. All processes must call this method.

        Raises:
            NonFiniteLossError: The loss of some process was not finite at some step since the last `read`.
        """
        if self._sums is None:
            return
        record = torch.cat([self._bad_step.float()[None], self._bad_terms])
        for step, *terms in accelerator.gather(record[None]).tolist():
            if step >= 0:
                values = ", ".join(f"{name} {value:g}" for name, value in zip(self._names, terms, strict=True))
                rate = self._learning_rates.get(int(step), float("nan"))
                raise NonFiniteLossError(
                    f"The loss is not finite at step {int(step)}: {values}; learning rate {rate:g}. No checkpoint was "
                    "written at or after that step. Start a new run from the last checkpoint (--model CHECKPOINT, new "
                    "output_dir) with one or more of: a lower learning_rate, more warmup_steps, max_grad_norm=1.0. If "
                    "you use fp16, use bf16 instead."
                )

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean of each term over the images of all processes since the last `read`, and reset the sums."""
        if self._sums is None:
            return {}
        totals = torch.cat([self._sums, self._sums.new_tensor([self._images])])
        totals = accelerator.gather(totals[None]).sum(dim=0)
        names = self._names
        self._clear()
        return dict(zip(names, (totals[:-1] / totals[-1]).tolist(), strict=True))


_HEADS = ("", "cls_", "distillation_")
_METRICS = {
    ProblemType.SINGLE_LABEL: (
        *(f"{head}accuracy" for head in (*_HEADS, "teacher_", "balanced_", "top5_", "majority_")),
        "teacher_agreement",
    ),
    ProblemType.MULTI_LABEL: (
        *(f"{head}{metric}" for metric in MULTI_LABEL_METRICS for head in (*_HEADS, "teacher_")),
        "teacher_agreement",
    ),
    ProblemType.REGRESSION: (),
}


def metric_names(problem_type: str) -> list[str]:
    """Return the names of all metrics and losses of an evaluation. A student with one head has only some of them."""
    return [*_METRICS[problem_type], *(f"{head}loss" for head in _HEADS)]
