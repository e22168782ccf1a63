"""Accuracy metrics as `evaluate.Metric`s. They are defined here so that no metric has to be downloaded.

Importing `evaluate` also imports pandas, SciPy and other packages. metrics.py therefore imports this module only when
it computes a metric.
"""

import datasets
import evaluate
import numpy as np

_CITATION = (
    "@article{touvron2020deit, title={Training data-efficient image transformers & distillation through attention}}"
)


def _features(reference: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=f"Predicted class indices compared with {reference}.",
        citation=_CITATION,
        inputs_description="predictions, references: class indices (images,).",
        features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
    )


class TopOneAccuracy(evaluate.Metric):
    """Metric with two values: `accuracy` and `balanced_accuracy`.

    `accuracy` is the share of correct predictions. `balanced_accuracy` is the mean of the accuracies of the classes;
    classes that do not occur in the references are left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _features("labels")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references
        per_class = [hits[references == label].mean() for label in np.unique(references)]
        return {"accuracy": float(hits.mean()), "balanced_accuracy": float(np.mean(per_class))}


class TeacherAgreement(evaluate.Metric):
    """Metric with `teacher_agreement`, the share of images for which student and teacher predict the same class."""

    def _info(self) -> evaluate.MetricInfo:
        return _features("the classes that the teacher predicts")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"teacher_agreement": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
