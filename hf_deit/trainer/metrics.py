"""Metrics: what is kept of each image, and what is made of it at the end.

Logits are reduced batch by batch to a few numbers an image, so that an evaluation of ImageNet with three heads and a
teacher keeps megabytes and not hundreds of them. Accuracies are the `evaluate.Metric`s of accuracy.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import NonFiniteLossError
from ..losses import ProblemType, teacher_decisions

TOP_K = 5


def average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    """The mean precision over the images that have the class, each at its own rank; equal scores share a rank.

    Args:
        present: 1 where an image has the class, `(images,)`; at least one.
        scores: The larger, the more probable, `(images,)`.
    """
    order = np.argsort(-scores, kind="stable")
    hits, scores = np.cumsum(present[order].astype(np.int64)), scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each group of equal scores
    found = np.diff(hits[last], prepend=0)
    return float(np.sum(found * hits[last] / (last + 1)) / hits[-1])


def reduce_multi_label_batch(heads: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Keeps the labels and scores of images with several classes.

    Args:
        heads: As `reduce_batch`.
        labels: Zeros and ones `(batch, num_labels)`.

    Returns:
        `present` and the logits of each head (`score`, `cls_score`, …), each `(batch, num_labels)`.
    """
    return {"present": labels} | {name.replace("logits", "score"): logits.float() for name, logits in heads.items()}


def reduce_batch(heads: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Keeps of each image with one class what the metrics need.

    Args:
        heads: `logits` and where they exist `cls_logits`, `distillation_logits`, `teacher_logits`, each
            `(batch, num_labels)`; the teacher's answers may be stored ones (losses.py).
        labels: Class indices `(batch,)`, or soft labels `(batch, num_labels)`, of which the largest counts.

    Returns:
        `label`, the predicted index of each head (`prediction`, `cls_prediction`, …) and for more than 5 classes
        `top5`, 1 where the label is among the 5 largest; each `(batch,)`.
    """
    labels = labels.argmax(dim=-1) if labels.ndim == 2 else labels
    kept = {"label": labels}
    for name in ("logits", "cls_logits", "distillation_logits"):
        if name in heads:
            kept[name.replace("logits", "prediction")] = heads[name].argmax(dim=-1)
    if (said := teacher_decisions(heads)) is not None:
        kept["teacher_prediction"] = said
    if heads["logits"].shape[-1] > TOP_K:
        kept["top5"] = (heads["logits"].topk(TOP_K, dim=-1).indices == labels[:, None]).any(dim=-1).to(torch.uint8)
    return kept


def summarize(kept: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Makes the metrics of what `reduce_batch` or `reduce_multi_label_batch` kept of all images.

    Returns:
        Of images with several classes `mean_average_precision`, a mean over the classes that occur, of the fused logits and
        of each head, and `chance_mean_average_precision`, what scores without knowledge have: the mean share of the images
        that have a class. Of images with one class `majority_accuracy`, the share of the most frequent class, and
        `accuracy` (fused top-1), `balanced_accuracy`, `cls_accuracy`, `distillation_accuracy`, `teacher_accuracy`,
        `teacher_agreement`, `top5_accuracy` as far as there is something to compute them from.
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
    for name, scores in kept.items():
        if name.endswith("score"):
            values = [average_precision(present[:, label], scores[:, label]) for label in occurring]
            summary[name.removesuffix("score") + "mean_average_precision"] = float(np.mean(values))
    return summary


def per_class(kept: Mapping[str, np.ndarray], class_names: list[str]) -> dict[str, dict[str, float | int | None]]:
    """Gives a figure and the number of `images` of each class by name.

    The figure is `accuracy`, or `average_precision` where images have several classes; None for a class without images.
    """
    rows: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(class_names):
        if "present" in kept:
            members = kept["present"][:, index] > 0
            figure = average_precision(members, kept["score"][:, index]) if members.any() else None
            rows[name] = {"average_precision": figure, "images": int(members.sum())}
            continue
        members = kept["label"] == index
        hits = kept["prediction"][members] == index
        rows[name] = {"accuracy": float(hits.mean()) if members.any() else None, "images": int(members.sum())}
    return rows


def to_arrays(batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Joins what was kept of the batches to one array a name."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in batches[0]}


class RunningTerms:
    """Adds up per-image terms of the training steps since the last reading.

    Args:
        device: Of the tensors to come.
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
        """Adds one batch, without waiting for the device.

        Args:
            terms: `(batch,)` for each name, the same names every time; the first is the loss.
            step: Number of the optimizer step.
            learning_rate: Of that step.
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
        """Looks for a non-finite loss in any process; call it in all of them.

        Raises:
            NonFiniteLossError: There was one since the last reading.
        """
        if self._sums is None:
            return
        record = torch.cat([self._bad_step.float()[None], self._bad_terms])
        for step, *terms in accelerator.gather(record[None]).tolist():
            if step >= 0:
                values = ", ".join(f"{name} {value:g}" for name, value in zip(self._names, terms, strict=True))
                rate = self._learning_rates.get(int(step), float("nan"))
                raise NonFiniteLossError(
                    f"The loss is not finite at step {int(step)}: {values}; learning rate {rate:g}. No checkpoint was written "
                    "since. Start a new run from the last one (--model CHECKPOINT, new output_dir) with a lower learning_rate, longer warmup_steps or max_grad_norm=1.0; "
                    "with fp16 use bf16."
                )

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Gives the mean of each term over all images of all processes since the last reading, and starts again from zero."""
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
    ProblemType.MULTI_LABEL: tuple(f"{head}mean_average_precision" for head in _HEADS),
    ProblemType.REGRESSION: (),
}


def metric_names(problem_type: str) -> list[str]:
    """Gives the names of the metrics of an evaluation, losses included; a student with one head has fewer."""
    return [*_METRICS[problem_type], *(f"{head}loss" for head in _HEADS)]
