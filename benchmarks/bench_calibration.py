"""Measure the expected calibration error of models before and after temperature scaling, on images that the models were not trained on.

    python benchmarks/bench_calibration.py DATA=MODEL DATA=MODEL …

The error after the scaling is cross-fitted: no image is judged by a temperature that was fitted on it.
"""

import sys

from hf_deit.data.loading import load_splits
from hf_deit.inspection.calibration import calibrate
from hf_deit.inspection.table import predict_source
from hf_deit.recipes.predict import Predictor


def main() -> None:
    for pair in sys.argv[1:]:
        data, _, model = pair.partition("=")
        validation = load_splits(data)[1]
        predictor = Predictor(model)
        assert list(validation.class_names) == predictor.class_names
        table = predict_source(predictor, validation, predictor.class_names, batch_size=64)
        accuracy = (table.predicted() == table.labels).mean()
        for name, one in calibrate(table).items():
            print(
                f"{model} {name}: {len(table)} images, top-1 {100 * accuracy:.1f} %, ECE {100 * one.before.error:.1f} % → "
                f"{100 * one.after.error:.1f} %, temperature {one.temperature:.2f}"
            )


if __name__ == "__main__":
    main()
