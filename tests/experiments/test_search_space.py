"""Search spaces, the fields that they suggest, and the report against numbers computed by hand."""

import optuna
import pytest
import yaml

from hf_deit.errors import RecipeError
from hf_deit.experiments.search_space import (
    Parameter,
    asks_teacher,
    check_space,
    combinations,
    default_space,
    own_fields,
    own_values,
    read_space,
    suggest_fields,
)
from hf_deit.experiments.sweep import TrialRecord, best_of, render_report, standard_error
from hf_deit.recipes.reading import load_recipe, read_fields, recipe_path

FIELDS = read_fields(recipe_path("clothing10_64"))


def recipe(**fields):
    return load_recipe({**FIELDS, "distillation_type": "none", **fields}, [])


def own(own_type="none", **fields):
    return own_fields({**FIELDS, **fields}, [], own_type)


def drawn(space, own_type="none", count=40, **fields):
    """Return the fields that a random search suggests."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest_fields(study.ask(), space, own(own_type, **fields)) for _ in range(count)]


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "space.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


# ---- the default space ----


def test_the_default_space_suggests_valid_recipes_and_only_fields_that_have_an_effect():
    kinds = set()
    for fields in drawn(default_space(recipe(), has_teacher=True, fixed=[])):
        loaded = load_recipe({**FIELDS, **fields}, [])
        kind = loaded.training.distillation_type
        assert ("distillation_tau" in fields) == (kind == "soft")
        assert ("distillation_alpha" in fields) == (kind != "none")
        assert 1.25e-4 <= loaded.training.learning_rate <= 2e-3  # from a quarter to four times that of the recipe
        assert loaded.augmentation.crop_scale in ((0.25, 1.0), (0.08, 1.0))
        kinds.add((kind, loaded.augmentation.auto_augment, loaded.training.mixup_alpha))
    assert {kind[0] for kind in kinds} == {"none", "soft", "hard"}
    assert {kind[1:] for kind in kinds} == {(a, m) for a in ("none", "randaugment", "trivialaugment") for m in (0, 0.8)}


def test_fields_of_a_missing_teacher_and_given_fields_are_not_searched():
    space = default_space(recipe(), has_teacher=False, fixed=["mixup_alpha"])
    assert [parameter.name for parameter in space] == ["learning_rate", "crop_scale", "auto_augment"]
    assert not asks_teacher(space, own("none")) and asks_teacher(space, own("soft"))
    assert asks_teacher(space, own("none", guidance="similarity"))
    assert asks_teacher(default_space(recipe(), True, []), own("none"))
    assert asks_teacher([Parameter("guidance", ("none", "features"))], own("none"))


def test_a_trial_of_the_default_space_always_learns_from_unlabelled_images():
    types = {fields["distillation_type"] for fields in drawn(default_space(recipe(unlabelled="x"), True, []))}
    assert types == {"soft", "hard"}
    guided = default_space(recipe(unlabelled="x", guidance="features"), True, [])
    assert {fields["distillation_type"] for fields in drawn(guided)} == {"none", "soft", "hard"}


def test_the_values_of_the_recipe_are_tried_if_they_are_in_the_space():
    space = default_space(recipe(), has_teacher=True, fixed=[])
    usual = own_values(space, load_recipe({**FIELDS, "teacher": "t"}, []).to_dict())
    study = optuna.create_study()
    study.enqueue_trial(usual)
    fields = suggest_fields(study.ask(), space, own("none"))
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


def test_a_space_is_read_with_lists_integers_and_logarithms(written):
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
        ({}, ["space.yaml", "{}"]),
        ("{", ["space.yaml", "line 1"]),
        ("mixup_alpha: [0.1]\nmixup_alpha: [0.2]\n", ["space.yaml", "'mixup_alpha'"]),
        ("mixup_alpha: [2026-11-27]", ["mixup_alpha=[datetime.date(2026, 11, 27)]"]),
        ("mixup_alpha: &a [*a]", ["mixup_alpha=[[...]]"]),
        ({"mixup_alpha": [0, 0.0]}, ["mixup_alpha=[0, 0.0]"]),
        ({"mixup_alpha": [{"low": 0}]}, ["mixup_alpha=[{'low': 0}]"]),
        ({"report_to": ["none", "all"]}, ["report_to", "the sweep sets it"]),
        ({"auto_augment": {"low": 0, "high": 1}}, ["auto_augment={'high': 1, 'low': 0}"]),
        ({"learning_rate": {"low": 1e-2, "high": 1e-3}}, ["learning_rate={'high': 0.001, 'low': 0.01}"]),
        ({"learning_rate": {"low": 0, "high": 1e-3, "log": True}}, ["'low': 0", "'log': True"]),
        ({"learning_rate": {"low": "little", "high": 1e-3}}, ["learning_rate", "low='little'", "high=0.001"]),
        ({"learning_rate": 1e-3}, ["learning_rate=0.001"]),
        ({"learning_rate": []}, ["learning_rate=[]"]),
        ({"mixup_alpha": [0.1, 0.1]}, ["mixup_alpha=[0.1, 0.1]"]),
        ({"num_hidden_layers": {"low": 2.5, "high": 4}}, ["num_hidden_layers={'high': 4, 'low': 2.5}"]),
        ({"seed": [0, 1]}, ["seed cannot be searched"]),
        ({"num_train_epochs": [1, 2]}, ["num_train_epochs", "--epochs"]),
        ({"unlabelled": ["a", "b"]}, ["unlabelled", "the same for all trials"]),
        ({"train_split": ["a", "b"]}, ["train_split", "the same for all trials"]),
        ({"save_steps": [1, 2]}, ["save_steps", "the sweep sets"]),
        ({"data_seed": [1, 2]}, ["data_seed", "seed"]),
        ({"do_train": [True]}, ["do_train", "script"]),
        ({"weight_decay": [0.1]}, ["--weight_decay"]),
    ],
    ids=str,
)
def test_an_invalid_space_raises_an_error_that_names_field_and_value(written, content, named):
    with pytest.raises(RecipeError) as refused:
        read_space(written(content), FIELDS, ["weight_decay"])
    assert [text for text in named if text not in str(refused.value)] == []


TYPES, GUIDANCE = Parameter("distillation_type", ("none", "soft")), Parameter("guidance", ("none", "features"))
TAU, WEIGHT = Parameter("distillation_tau", low=1, high=5), Parameter("guidance_weight", (3.0, 40.0))


@pytest.mark.parametrize(
    ("space", "fields", "has_teacher", "named"),
    [
        ([TYPES], {}, False, ["distillation_type is 'none' or 'soft'", "--teacher"]),
        ([Parameter("learning_rate", (1e-3,))], {"own_type": "hard"}, False, ["is 'hard'", "--teacher"]),
        ([GUIDANCE], {}, False, ["guidance is 'none' or 'features'", "--teacher"]),
        (
            [Parameter("learning_rate", (1e-3,))],
            {"guidance": "features"},
            False,
            ["guidance is 'features'", "--teacher"],
        ),
        ([TAU], {}, True, ["distillation_tau", "distillation_type='soft'", "is 'none'"]),
        ([TAU], {"own_type": "hard"}, True, ["distillation_tau", "distillation_type='soft'", "is 'hard'"]),
        ([TAU, GUIDANCE], {}, True, ["distillation_tau", "distillation_type is 'none'"]),
        ([WEIGHT], {}, True, ["guidance_weight", "guidance is 'none'"]),
        ([WEIGHT, TYPES, TAU], {}, True, ["guidance_weight", "guidance is 'none'"]),
        ([Parameter("guidance_student_layers", (["-1"], None))], {}, True, ["guidance_student_layers"]),
        (
            [Parameter("unlabelled_share", (0.3, 0.5))],
            {"own_type": "hard"},
            True,
            ["unlabelled_share", "unlabelled is None"],
        ),
        ([TYPES], {"unlabelled": "x"}, True, ["unlabelled='x'", "distillation_type is 'none' or 'soft'"]),
        ([TYPES, GUIDANCE], {"unlabelled": "x"}, True, ["unlabelled='x'", "guidance is 'none' or 'features'"]),
        ([Parameter("learning_rate", (1e-3,))], {"unlabelled": "x"}, False, ["unlabelled='x'", "--teacher"]),
        (
            [Parameter("randaugment_magnitude", (5, 9)), Parameter("auto_augment", ("none", "trivialaugment"))],
            {},
            False,
            ["randaugment_magnitude", "auto_augment is 'none' or 'trivialaugment'"],
        ),
        (
            [Parameter("warmup_steps", (0.1, 0))],
            {"lr_scheduler_type": "constant"},
            False,
            ["warmup_steps", "'constant'"],
        ),
        ([Parameter("teacher_image_size", (64, 96))], {}, True, ["teacher_image_size", "guidance is 'none'"]),
    ],
)
def test_a_space_that_does_not_fit_the_teacher_or_the_other_fields_is_refused(space, fields, has_teacher, named):
    with pytest.raises(RecipeError) as refused:
        check_space(space, own(**fields), has_teacher)
    assert [text for text in named if text not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("space", "fields"),
    [
        ([TYPES, TAU], {}),
        ([TAU, TYPES], {}),
        ([WEIGHT, GUIDANCE], {}),
        ([WEIGHT, GUIDANCE, TYPES, TAU], {}),
        ([Parameter("unlabelled_share", (0.3, 0.5)), TYPES], {"unlabelled": "x", "guidance": "features"}),
        ([Parameter("unlabelled_share", (0.3, 0.5))], {"unlabelled": "x", "own_type": "hard"}),
        ([Parameter("mix_probability", (0.5, 1.0)), Parameter("mixup_alpha", low=0.0, high=1.0)], {}),
    ],
)
def test_a_space_whose_fields_have_an_effect_in_some_trial_is_accepted(space, fields):
    check_space(space, own(**fields), has_teacher=True)


def test_a_field_gets_a_value_only_in_trials_in_which_it_has_an_effect():
    # The fields that decide come last in the space.
    space = [WEIGHT, TAU, Parameter("distillation_alpha", low=0.1, high=0.9), GUIDANCE, TYPES]
    space += [Parameter("mix_switch_probability", (0.1, 0.9)), Parameter("cutmix_alpha", (0.0, 1.0))]
    space += [Parameter("teacher_dtype", ("float32", "bfloat16"))]
    kinds = set()
    for fields in drawn(space, mixup_alpha=0.8, count=60):
        kinds.add((fields["distillation_type"], fields["guidance"]))
        assert ("guidance_weight" in fields) == (fields["guidance"] != "none")
        assert (
            ("distillation_tau" in fields)
            == ("distillation_alpha" in fields)
            == (fields["distillation_type"] == "soft")
        )
        assert ("mix_switch_probability" in fields) == (fields["cutmix_alpha"] > 0)
        assert ("teacher_dtype" in fields) == ((fields["distillation_type"], fields["guidance"]) != ("none", "none"))
    assert len(kinds) == 4


def test_all_checked_values_of_a_field_are_combined_with_those_it_depends_on():
    found = [fields.values for fields in combinations(["guidance_weight"], [WEIGHT, GUIDANCE, TYPES], own())]
    assert {"guidance": "none"} in found and len(found) == 3
    assert {fields["guidance_weight"] for fields in found if "guidance_weight" in fields} == {3.0, 40.0}


@pytest.mark.parametrize(
    "content", [{"learning_rat": [1e-3]}, {"distillation_alpha": {"low": 0.5, "high": 1.5}}, {"auto_augment": [["x"]]}]
)
def test_a_choice_that_a_recipe_does_not_accept_is_refused_before_the_first_trial(written, content):
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


def test_the_best_trial_is_the_first_finished_trial_with_the_highest_accuracy():
    assert best_of(TRIALS).number == 2
    assert best_of(TRIALS[1:2]) is None


def test_the_report_is_the_one_computed_by_hand():
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
    report = render_report("T", TRIALS[3:4], ["learning_rate"], {}, 400)
    assert "1 trials: 1 diverged." in report and "No trial finished" in report and "Best:" not in report
