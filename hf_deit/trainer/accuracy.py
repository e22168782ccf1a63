"""Accuracies as `evaluate.Metric`s. They are defined here, so none is downloaded.

`evaluate` imports pandas, SciPy and more, so that metrics.py imports this module only when it computes a metric.
"""

import datasets
import evaluate
import numpy as np

_CITATION = (
    "@article{touvron2020deit, title={Training data-efficient image transformers & distillation through attention}}"
)


def _features(reference: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=f"Predicted class indices against {reference}.",
        citation=_CITATION,
        inputs_description="predictions, references: class indices (images,).",
        features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
    )


class TopOneAccuracy(evaluate.Metric):
    """`accuracy`, the share of right answers, and `balanced_accuracy`, its mean over the classes that occur."""

    def _info(self) -> evaluate.MetricInfo:
        return _features("labels")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references
        per_class = [hits[references == label].mean() for label in np.unique(references)]
        return {"accuracy": float(hits.mean()), "balanced_accuracy": float(np.mean(per_class))}


class TeacherAgreement(evaluate.Metric):
    """`teacher_agreement`, the share of images where the student's answer is the teacher's."""

    def _info(self) -> evaluate.MetricInfo:
        return _features("the teacher's answers")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"teacher_agreement": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
