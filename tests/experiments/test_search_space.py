"""Search spaces, what they suggest, and the report against numbers worked out by hand."""

import optuna
import pytest
import yaml

from hf_deit.errors import RecipeError
from hf_deit.experiments.search_space import (
    Parameter,
    asks_teacher,
    check_space,
    default_space,
    own_values,
    read_space,
    suggest_fields,
)
from hf_deit.experiments.sweep import TrialRecord, best_of, render_report, standard_error
from hf_deit.recipes.reading import load_recipe, read_fields, recipe_path

FIELDS = read_fields(recipe_path("clothing10_64"))


def recipe(**fields):
    return load_recipe({**FIELDS, "distillation_type": "none", **fields}, [])


def drawn(space, own_type="none", count=40):
    """What a random search suggests."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest_fields(study.ask(), space, own_type) for _ in range(count)]


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "space.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


# ---- the default space ----


def test_all_that_the_default_space_suggests_is_a_recipe_and_only_fields_that_count_are_suggested():
    kinds = set()
    for fields in drawn(default_space(recipe(), has_teacher=True, fixed=[])):
        loaded = load_recipe({**FIELDS, **fields}, [])
        kind = loaded.training.distillation_type
        assert ("distillation_tau" in fields) == (kind == "soft")
        assert ("distillation_alpha" in fields) == (kind != "none")
        assert 1.25e-4 <= loaded.training.learning_rate <= 2e-3  # a quarter of the recipe's to four times
        assert loaded.augmentation.crop_scale in ((0.25, 1.0), (0.08, 1.0))
        kinds.add((kind, loaded.augmentation.auto_augment, loaded.training.mixup_alpha))
    assert {kind[0] for kind in kinds} == {"none", "soft", "hard"}
    assert {kind[1:] for kind in kinds} == {(a, m) for a in ("none", "randaugment", "trivialaugment") for m in (0, 0.8)}


def test_without_a_teacher_nothing_of_one_is_searched_and_fields_that_were_given_are_not():
    space = default_space(recipe(), has_teacher=False, fixed=["mixup_alpha"])
    assert [parameter.name for parameter in space] == ["learning_rate", "crop_scale", "auto_augment"]
    assert not asks_teacher(space, "none") and asks_teacher(space, "soft")
    assert asks_teacher(default_space(recipe(), True, []), "none")


def test_the_recipes_own_values_are_tried_where_the_space_has_them():
    space = default_space(recipe(), has_teacher=True, fixed=[])
    own = own_values(space, load_recipe({**FIELDS, "teacher": "t"}, []).to_dict())
    study = optuna.create_study()
    study.enqueue_trial(own)
    fields = suggest_fields(study.ask(), space, "none")
    assert fields == {
        "distillation_type": "soft",
        "distillation_tau": 1.0,
        "distillation_alpha": 0.9,
        "learning_rate": 5e-4,
        "crop_scale": [0.25, 1.0],
        "auto_augment": "none",
        "mixup_alpha": 0.0,
    }
    assert own_values([Parameter("mixup_alpha", (0.3, 0.4))], {"mixup_alpha": 0.0}) == {}


# ---- a space of the user's own ----


def test_a_space_is_read_with_lists_whole_numbers_and_logarithms(written):
    path = written(
        "num_hidden_layers: {low: 2, high: 4}\n"
        "learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "crop_scale: [[0.5, 1.0], [0.25, 1.0]]\n"
        "distillation_type: [none, soft]\n"
        "distillation_tau: {low: 1, high: 4}\n"
    )
    space = read_space(path, FIELDS, [])
    suggested = drawn(space)
    assert {fields["num_hidden_layers"] for fields in suggested} == {2, 3, 4}
    rates = [fields["learning_rate"] for fields in suggested]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and 10 <= sum(rate < 1e-3 for rate in rates) <= 30
    assert {tuple(fields["crop_scale"]) for fields in suggested} == {(0.5, 1.0), (0.25, 1.0)}
    taus = [fields["distillation_tau"] for fields in suggested if "distillation_tau" in fields]
    assert any(tau != round(tau) for tau in taus) and 0 < len(taus) < 40
    assert all(("distillation_tau" in fields) == (fields["distillation_type"] == "soft") for fields in suggested)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, ["must map fields"]),
        ("{", ["space.yaml", "not valid YAML"]),
        ("mixup_alpha: [0.1]\nmixup_alpha: [0.2]\n", ["'mixup_alpha'", "twice"]),
        ("mixup_alpha: [2026-11-27]", ["texts, numbers"]),
        ("mixup_alpha: &a [*a]", ["texts, numbers"]),
        ({"mixup_alpha": [0, 0.0]}, ["each choice once"]),
        ({"report_to": ["none", "all"]}, ["report_to cannot be searched"]),
        ({"auto_augment": {"low": 0, "high": 1}}, ["auto_augment", "as a list"]),
        ({"learning_rate": {"low": 1e-2, "high": 1e-3}}, ["learning_rate", "low must be below high"]),
        ({"learning_rate": {"low": 0, "high": 1e-3, "log": True}}, ["above 0 with log"]),
        ({"learning_rate": {"low": "little", "high": 1e-3}}, ["'little'", "two numbers"]),
        ({"learning_rate": 1e-3}, ["0.001", "a list of choices"]),
        ({"learning_rate": []}, ["a list of choices"]),
        ({"mixup_alpha": [0.1, 0.1]}, ["each choice once"]),
        ({"num_hidden_layers": {"low": 2.5, "high": 4}}, ["whole numbers"]),
        ({"seed": [0, 1]}, ["seed cannot be searched"]),
        ({"num_train_epochs": [1, 2]}, ["--epochs"]),
        ({"weight_decay": [0.1]}, ["--weight_decay is given too"]),
    ],
    ids=str,
)
def test_an_impossible_space_is_refused_by_name(written, content, named):
    with pytest.raises(RecipeError) as refused:
        read_space(written(content), FIELDS, ["weight_decay"])
    assert [text for text in named if text not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("space", "own_type", "has_teacher", "named"),
    [
        ([Parameter("distillation_type", ("none", "soft"))], "none", False, ["none or soft", "--teacher"]),
        ([Parameter("learning_rate", (1e-3,))], "hard", False, ["is hard", "--teacher"]),
        (
            [Parameter("distillation_tau", low=1, high=5)],
            "none",
            False,
            ["distillation_tau", "is none", "--teacher"],
        ),
        ([Parameter("distillation_tau", low=1, high=5)], "hard", True, ["distillation_tau", "is soft", "is hard"]),
    ],
)
def test_a_space_that_does_not_go_with_the_teacher_is_refused(space, own_type, has_teacher, named):
    with pytest.raises(RecipeError) as refused:
        check_space(space, own_type, has_teacher)
    assert [text for text in named if text not in str(refused.value)] == []
    check_space([Parameter("distillation_type", ("none", "soft")), *space], "none", True)


@pytest.mark.parametrize(
    "content", [{"learning_rat": [1e-3]}, {"distillation_alpha": {"low": 0.5, "high": 1.5}}, {"auto_augment": [["x"]]}]
)
def test_a_choice_that_is_no_recipe_is_refused_before_the_first_trial(written, content):
    with pytest.raises(RecipeError, match=next(iter(content))):
        read_space(written(content), FIELDS, [])


# ---- the report ----

TRIALS = [
    TrialRecord(0, "finished", 0.80, 5, {"learning_rate": 0.001, "auto_augment": "none"}),
    TrialRecord(1, "pruned", 0.85, 2, {"learning_rate": 0.0123456, "auto_augment": "randaugment"}),
    TrialRecord(2, "finished", 0.82, 5, {"learning_rate": 0.002}),
    TrialRecord(3, "diverged", None, 0, {"learning_rate": 1.0}),
    TrialRecord(4, "finished", 0.82, 5, {"learning_rate": 0.003}),
]


def test_the_best_is_the_first_of_those_trained_to_their_end():
    assert best_of(TRIALS).number == 2
    assert best_of(TRIALS[1:2]) is None


def test_the_report_is_the_one_worked_out_by_hand():
    lines = render_report("T", TRIALS, ["learning_rate", "auto_augment"], {"learning_rate": 0.75}, 400).splitlines()
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    # √(0.82 · 0.18 / 400) = 0.0192
    assert "5 trials: 3 finished, 1 pruned, 1 diverged." in lines
    assert any(line.startswith("Best: trial 2, 82.0 % (± 1.9 points, the standard error of 400 ") for line in lines)
    assert any("too high by selection" in line and "best of 5 trials" in line for line in lines)
    assert [line for line in lines if line.startswith("| ")] == [
        "| trial | accuracy, % | epochs | learning_rate | auto_augment |",
        "| 2 | 82.0 | 5 | 0.002 |  |",
        "| 4 | 82.0 | 5 | 0.003 |  |",
        "| 0 | 80.0 | 5 | 0.001 | none |",
        "| 1 | 85.0 (pruned) | 2 | 0.0123 | randaugment |",
        "| 3 | – (diverged) | 0 | 1 |  |",
    ]
    assert lines[-1] == "- learning_rate: 75 %"


def test_a_report_without_a_finished_trial_says_so():
    assert "there is no best one" in render_report("T", TRIALS[3:4], ["learning_rate"], {}, 400)
