"""Probably wrong labels of multi-label data: planted ones come first, and the scores are those of the published rule."""

import numpy as np
import pytest

from hf_deit.inspection.mislabelled import class_suspects, csv_rows, image_scores, ranked
from hf_deit.inspection.table import ImageTable

NAMES = ["bee", "cat", "dog", "emu", "fox"]


def planted(images=200, faults=20, seed=0):
    """Return true labels, labels with faults, and the places of the faults `(image, class)`."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, (images, len(NAMES)))
    rows = generator.choice(images, faults, replace=False)
    places = {(int(row), int(generator.integers(len(NAMES)))) for row in rows}
    given = truth.copy()
    for place in places:
        given[place] = 1 - given[place]
    return truth, given, places


def opinions(truth, seed, noise):
    """Return the probabilities of a model that is right about most labels, and unsure of some."""
    generator = np.random.default_rng(seed)
    logits = np.where(truth == 1, 2.0, -2.0) + generator.normal(0, noise, truth.shape)
    return 1 / (1 + np.exp(-logits))


def table_of(labels, **probabilities):
    files = [f"{number}.png" for number in range(len(labels))]
    return ImageTable(NAMES, "train", files, files, np.asarray(labels), probabilities)


def found_in_first(suspects, places):
    return len({(one.index, one.label) for one in suspects[: len(places)]} & places)


def test_planted_wrong_labels_come_first_and_more_of_them_with_a_teacher():
    truth, given, places = planted()
    student, teacher = opinions(truth, 1, 1.2), opinions(truth, 2, 1.2)
    alone = class_suspects(table_of(given, prediction=student))
    both = class_suspects(table_of(given, prediction=student, teacher=teacher))
    assert found_in_first(alone, places) >= 12
    assert found_in_first(both, places) >= max(17, found_in_first(alone, places))
    top = [one for one in both if (one.index, one.label) in places]
    assert all(one.present == bool(given[one.index, one.label]) for one in top)
    assert sum(one.both_sure for one in top) > len(top) / 2


def test_the_score_of_an_image_is_the_moving_average_from_the_best_label_to_the_worst():
    confidences = np.random.default_rng(3).random((40, 6))
    for row, score in zip(confidences, image_scores(confidences), strict=True):
        expected = None
        for value in sorted(row, reverse=True):
            expected = value if expected is None else 0.8 * value + 0.2 * expected
        assert score == pytest.approx(expected)
    one_class = np.array([[0.3], [0.9]])
    assert image_scores(one_class).tolist() == [0.3, 0.9]


def test_each_suspect_states_what_both_models_say_about_its_label():
    labels = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [-1] * 5, [0, 0, 1, 0, 0]]
    student = np.array([[0.9, 0.8, 0.1, 0.1, 0.1], [0.2, 0.9, 0.1, 0.1, 0.1], [0.9] * 5, [0.1, 0.1, 0.9, 0.1, 0.1]])
    teacher = np.array([[0.9, 0.7, 0.1, 0.1, 0.1], [0.6, 0.9, 0.1, 0.1, 0.1], [0.9] * 5, [0.1, 0.1, 0.8, 0.1, 0.1]])
    found = class_suspects(table_of(labels, prediction=student, teacher=teacher))
    assert [(one.index, NAMES[one.label], one.present, one.both_sure) for one in found] == [
        (0, "cat", False, True),
        (1, "bee", True, False),
    ]
    assert [one.score for one in found] == pytest.approx([0.25, 0.4])
    rows = csv_rows(ranked({"train": found}), NAMES, multi_label=True)
    assert [row[:6] for row in rows[1:]] == [
        ["1", "0.png", "train", "cat", "absent", "present"],
        ["2", "1.png", "train", "bee", "present", "absent"],
    ]
    assert [float(value) for value in rows[1][9:]] == [0.8, 0.7]


def test_models_that_were_not_trained_on_an_image_replace_the_student():
    labels, student = [[1, 0, 0, 0, 0]], np.array([[0.9, 0.1, 0.1, 0.1, 0.1]])
    table = table_of(labels, prediction=student)
    assert class_suspects(table) == []
    (one,) = class_suspects(table, {"0.png": np.array([0.9, 0.95, 0.1, 0.1, 0.1])})
    assert (one.label, one.student, one.teacher, one.both_sure) == (1, 0.95, None, False)


def test_data_with_certain_and_right_labels_have_no_suspects():
    truth, _, _ = planted(images=10, faults=2)
    assert class_suspects(table_of(truth, prediction=np.clip(truth, 0.0, 1.0))) == []
    assert csv_rows([], NAMES, multi_label=True)[1:] == []
