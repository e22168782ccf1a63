"""Titles of metrics in the tables of the command line and of Python results. Model cards have titles of their own."""

METRIC_TITLES = {
    "accuracy": "top-1 accuracy",
    "cls_accuracy": "top-1 accuracy, class head",
    "distillation_accuracy": "top-1 accuracy, distillation head",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "teacher_accuracy": "top-1 accuracy, teacher",
    "teacher_agreement": "agreement with the teacher",
    "majority_accuracy": "most frequent class",
    "mean_average_precision": "mean average precision",
    "cls_mean_average_precision": "mean average precision, class head",
    "distillation_mean_average_precision": "mean average precision, distillation head",
    "teacher_mean_average_precision": "mean average precision, teacher",
    "chance_mean_average_precision": "mean average precision, chance",
    **{
        f"{head}{measure}_{average}": f"{title}, {average}{of}"
        for measure, title in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
        for average in ("macro", "micro")
        for head, of in (
            ("", ""),
            ("cls_", ", class head"),
            ("distillation_", ", distillation head"),
            ("teacher_", ", teacher"),
        )
    },
}
