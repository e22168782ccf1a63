"""Definitions of ablations, the keys under which results are found, and the table against numbers computed by hand."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from hf_deit.errors import RecipeError
from hf_deit.experiments.ablation import (
    Ablation,
    Row,
    Run,
    check_origin,
    figures,
    gain,
    markdown,
    read_ablation,
    read_results,
    result_file,
    spread,
    write_report,
)
from hf_deit.recipes.reading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = sorted((ROOT / "training" / "ablations").glob("*.yaml"))
RESULTS = ROOT / "training" / "ablations" / "results"
RESULTS_PAGE = ROOT / "docs" / "results.md"
DEFINITION = {
    "title": "Tiny",
    "recipe": "clothing10_64",
    "fields": {"num_train_epochs": 2},
    "seeds": [0, 1],
    "variants": {"plain": {"student": "plain", "distillation_type": "none"}, "hard": {"distillation_type": "hard"}},
    "rows": [{"title": "alone", "variant": "plain", "paper": 72.2}, {"title": "taught", "variant": "hard"}],
}


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**DEFINITION, **changes}, sort_keys=False))
        return path

    return write


# ---- what is shipped ----


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_a_recipe_accepts_every_field_of_a_shipped_definition(path):
    ablation = read_ablation(path)
    fields = {"data": "x", "teacher": "y", "output_dir": "z", "report_to": "none"}
    for run in ablation.runs():
        recipe = load_recipe({**run.fields, **fields}, [])
        assert recipe.training.seed == run.fields["seed"]
        assert recipe.training.distillation_type == run.fields["distillation_type"]
    assert len({run.key for run in ablation.runs()}) == len(ablation.seeds) * len(ablation.variants)
    assert path.name in path.read_text().split("title:")[0], "the header gives its command"


def test_there_are_shipped_definitions():
    assert [path.stem for path in DEFINITIONS if path.stem == "table3"] == ["table3"]


def test_keys_do_not_change_or_committed_results_are_lost():
    # The keys of the first committed results. If they change, the results have to be computed again.
    keys = {
        (run.variant, run.fields["seed"]): run.key for run in read_ablation(DEFINITIONS[0].with_stem("table3")).runs()
    }
    assert len(keys) == 15
    pinned = {("plain", 0): "978933c9fd9f", ("hard token", 0): "04b4fc7e5323", ("soft token", 2): "7bb6ea703123"}
    assert {name: keys[name] for name in pinned} == pinned


def test_an_empty_variant_has_the_fields_that_are_common_to_all_variants(written):
    ablation = read_ablation(written(variants={"plain": None, "hard": {"distillation_type": "hard"}}))
    assert ablation.run("plain", 1).fields == {**ablation.fields, "seed": 1}


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_the_committed_results_give_the_committed_table_and_a_plot(path, tmp_path):
    ablation, folder = read_ablation(path), results_of(path)
    if not (folder / f"{path.stem}.md").exists():
        assert not read_results(folder, ablation)
        return
    for run in ablation.runs():
        for file in folder.glob(f"{run.key}-*.json"):
            shutil.copyfile(file, tmp_path / file.name)
    table, files = write_report(ablation, tmp_path, path.stem)
    assert (tmp_path / f"{path.stem}.md").read_bytes() == (folder / f"{path.stem}.md").read_bytes()
    assert table.encode() == (tmp_path / f"{path.stem}.md").read_bytes()
    assert all((tmp_path / name).stat().st_size for name in files)


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_the_table_in_the_documentation_is_that_of_the_committed_results(path):
    text = RESULTS_PAGE.read_text(encoding="utf-8")
    ablation, tables = read_ablation(path), tables_of(text, path.stem)
    results = read_results(results_of(path), ablation)
    assert len(tables) == bool(results), (
        f"there must be one table between <!-- {path.stem} --> marks if there are results"
    )
    for table in tables:
        assert table == markdown(ablation, results).strip()


def results_of(path):
    """Return the folder of the results of a definition: that of settings chosen on training images, or the usual one."""
    folders = (RESULTS.with_name(name) for name in ("results_select", "results_cnn"))
    return next((folder for folder in folders if (folder / f"{path.stem}.md").exists()), RESULTS)


def tables_of(text, name):
    return [found.strip() for found in re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)]


def test_tables_are_found_between_their_marks():
    assert tables_of("a\n<!-- x -->\n| 1.0 |\n<!-- /x -->\n<!-- y -->\n2\n<!-- /y -->", "x") == ["| 1.0 |"]
    assert tables_of("no marks", "x") == []


def test_every_committed_result_belongs_to_a_shipped_definition():
    known = {run.key for path in DEFINITIONS for run in read_ablation(path).runs()}
    assert {path.name for path in RESULTS.glob("*.json") if path.name.partition("-")[0] not in known} == set()
    known_tables = {path.stem for path in DEFINITIONS}
    assert {path.name for path in RESULTS.glob("*.md") if path.stem not in known_tables} == set()


def test_every_mark_in_the_documentation_names_a_shipped_definition():
    text = RESULTS_PAGE.read_text(encoding="utf-8")
    marked = set(re.findall(r"<!-- /?(\w+) -->", text))
    assert marked <= {path.stem for path in DEFINITIONS}


# ---- keys ----


def key(**fields):
    return Run("v", {"seed": 0, "learning_rate": 1e-3, **fields}).key


def test_fields_about_files_do_not_change_the_key_of_a_run():
    assert key(data="a", teacher="b", output_dir="c", save_steps=7, logging_steps=3) == key(data="x")
    assert Run("one name", {"seed": 0}).key == Run("another", {"seed": 0}).key


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"learning_rate": 2e-3}, {"num_train_epochs": 5}, {"distillation_tau": 2.0}]
)
def test_a_field_that_decides_what_is_trained_changes_the_key_of_a_run(changed):
    assert key(**changed) != key()


def test_fields_of_a_teacher_do_not_change_the_key_of_a_run_without_one():
    alone = {"distillation_type": "none"}
    fields = {"distillation_tau": 2.0, "distillation_alpha": 0.3, "teacher_dtype": "bfloat16", "teacher_labels": ["a"]}
    assert key(**alone, **fields) == key(**alone)
    assert key(distillation_type="soft", **fields) != key(distillation_type="soft")


def test_the_file_of_a_run_without_a_teacher_does_not_depend_on_the_teacher(tmp_path):
    alone, taught = Run("a", {"seed": 0, "distillation_type": "none"}), Run("b", {"seed": 0})
    assert result_file(tmp_path, alone, "data", "one") == result_file(tmp_path, alone, "data", "two")
    assert result_file(tmp_path, taught, "data", "one") != result_file(tmp_path, taught, "data", "two")
    assert result_file(tmp_path, alone, "data", None) != result_file(tmp_path, alone, "others", None)


def test_the_key_says_whether_there_are_unlabelled_images_and_the_file_which(tmp_path):
    assert key() != key(unlabelled="here")
    assert key(unlabelled="here") == key(unlabelled="there")
    one, moved = Run("a", {"seed": 0, "unlabelled": "here"}), Run("a", {"seed": 0, "unlabelled": "there"})
    assert result_file(tmp_path, one, "d", "t", "digest") == result_file(tmp_path, moved, "d", "t", "digest")
    assert result_file(tmp_path, one, "d", "t", "digest") != result_file(tmp_path, one, "d", "t", "another")


def test_a_run_without_unlabelled_images_has_the_file_of_earlier_versions(tmp_path):
    run = Run("a", {"seed": 0, "learning_rate": 1e-3})
    digest = hashlib.sha256(json.dumps(dict(run.fields), sort_keys=True).encode()).hexdigest()
    assert run.key == digest[:12]
    origin = hashlib.sha256(json.dumps(["data", "teacher"]).encode()).hexdigest()[:12]
    assert result_file(tmp_path, run, "data", "teacher").name == f"{digest[:12]}-{origin}.json"


def test_runs_are_ordered_by_seed(written):
    runs = read_ablation(written()).runs()
    assert [(run.fields["seed"], run.variant) for run in runs] == [(0, "plain"), (0, "hard"), (1, "plain"), (1, "hard")]
    fields = runs[
        1
    ].fields  # fields of the definition override those of the recipe, and fields of the variant override both
    assert (fields["image_size"], fields["num_train_epochs"], fields["distillation_type"]) == (64, 2, "hard")


# ---- the table ----


def result(**metrics):
    return {"metrics": {f"eval_{name}": value for name, value in metrics.items()}}


DIVERGED = {"metrics": None}


def ablation(*rows, seeds=(0, 1, 2)):
    variants = {row.variant: {} for row in rows}
    return Ablation("T", {}, seeds, variants, rows, "clothing10_64")


def test_the_table_is_the_one_computed_by_hand():
    rows = (
        Row("alone", "plain", paper=72.2),
        Row("taught", "hard", paper=74.5),
        Row("its class head", "hard", "cls_accuracy"),
    )
    results = {
        "plain": {0: result(accuracy=0.50), 1: result(accuracy=0.54), 2: result(accuracy=0.58)},
        "hard": {0: result(accuracy=0.56, cls_accuracy=0.5), 2: result(accuracy=0.60, cls_accuracy=0.63)},
    }
    # plain: mean 54, sd 4. hard: mean 58, sd √8 = 2.83; gains 6 and 2: mean 4, standard error (4/√2)/√2 = 2.
    # class head: 50 and 63: mean 56.5, sd 9.19; gains 0 and 5: mean 2.5, standard error 2.5.
    assert markdown(ablation(*rows), results).splitlines() == [
        "|  | top-1, % | seeds | gain over alone | paper, % | paper's gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| alone | 54.0 ± 4.0 | 3 |  | 72.2 |  |",
        "| taught | 58.0 ± 2.8 | 2 | +4.0 ± 2.0 | 74.5 | +2.3 |",
        "| its class head | 56.5 ± 9.2 | 2 | +2.5 ± 2.5 |  |  |",
    ]


def test_a_diverged_run_is_counted_and_left_out_of_the_mean():
    rows = (Row("a", "a"), Row("b", "b"), Row("c", "c"))
    results = {
        "a": {0: result(accuracy=0.5), 1: DIVERGED},
        "b": {0: DIVERGED, 1: result(accuracy=0.7)},
        "c": {0: DIVERGED, 1: DIVERGED},
    }
    assert markdown(ablation(*rows), results).splitlines()[2:] == [
        "| a | 50.0 | 1, 1 diverged |  |",
        "| b | 70.0 | 1, 1 diverged | – |",  # no seed in common
        "| c | – | 0, 2 diverged | – |",
    ]
    assert figures(ablation(*rows), results)[2].values == {}


def test_a_row_without_results_is_shown_with_0_seeds():
    rows = (Row("a", "a"), Row("b", "b"))
    assert markdown(ablation(*rows), {"a": {0: result(accuracy=0.5)}}).splitlines()[3] == "| b | – | 0 | – |"


def test_a_metric_that_runs_do_not_have_raises():
    rows = (Row("a", "a"), Row("b", "a", "distillation_accuracy"))
    with pytest.raises(RecipeError, match="'b'.*'distillation_accuracy'.* accuracy"):
        markdown(ablation(*rows), {"a": {0: result(accuracy=0.5)}})


def test_one_value_has_no_spread():
    assert (spread([]), spread([51.25]), spread([50, 51])) == ("–", "51.2", "50.5 ± 0.7")
    assert (gain([]), gain([-0.5]), gain([1, 2])) == ("–", "-0.5", "+1.5 ± 0.5")


# ---- results ----


def save(folder, run, content, data="data", teacher="teacher", unlabelled=None):
    file = result_file(folder, run, data, teacher, unlabelled)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_results_are_found_by_variant_and_seed(written, tmp_path):
    definition = read_ablation(written())
    for run in definition.runs()[:3]:
        save(tmp_path, run, {**result(accuracy=0.1), "variant": run.variant})
    found = read_results(tmp_path, definition)
    assert {name: sorted(runs) for name, runs in found.items()} == {"plain": [0, 1], "hard": [0]}
    assert read_results(tmp_path / "nowhere", definition) == {}


@pytest.mark.parametrize("second", [0, 2], ids=["the same run", "another seed"])
def test_results_of_two_data_sets_raise(written, tmp_path, second):
    definition = read_ablation(written())
    runs = definition.runs()
    one = save(tmp_path, runs[0], result(accuracy=0.1))
    other = save(tmp_path, runs[second], result(accuracy=0.1), data="others")
    with pytest.raises(RecipeError, match="--results") as refused:
        read_results(tmp_path, definition)
    assert one.name in str(refused.value) and other.name in str(refused.value)
    check_origin(tmp_path, runs[3], result_file(tmp_path, runs[3], "data", "teacher"))  # this run has no result yet
    with pytest.raises(RecipeError, match=f"{one.name}|{other.name}"):
        check_origin(tmp_path, runs[0], result_file(tmp_path, runs[0], "third", "teacher"))


UNLABELLED = {"few": {"unlabelled": "few"}, "many": {"unlabelled": "many"}, "none": {}}
UNLABELLED_ROWS = [{"title": name, "variant": name} for name in UNLABELLED]


def test_variants_that_differ_only_in_their_unlabelled_images_have_their_own_results(written, tmp_path):
    definition = read_ablation(written(variants=UNLABELLED, rows=UNLABELLED_ROWS))
    accuracies = {"few": 0.25, "many": 0.5, "none": 0.125}
    for run in definition.runs():
        content = {**result(accuracy=accuracies[run.variant]), "fields": dict(run.fields)}
        save(tmp_path, run, content, unlabelled=run.unlabelled and f"digest of {run.unlabelled}")
    found = read_results(tmp_path, definition)
    assert {name: runs[0]["metrics"]["eval_accuracy"] for name, runs in found.items()} == accuracies
    for run in definition.runs()[:3]:
        digest = run.unlabelled and f"digest of {run.unlabelled}"
        check_origin(tmp_path, run, result_file(tmp_path, run, "data", "teacher", digest))


def test_a_folder_of_unlabelled_images_that_moved_has_the_same_results_and_a_changed_one_is_refused(written, tmp_path):
    variants, rows = {"many": {"unlabelled": "here"}}, [{"title": "many", "variant": "many"}]
    run = read_ablation(written(variants=variants, rows=rows)).runs()[0]
    file = save(tmp_path, run, {**result(accuracy=0.5), "fields": dict(run.fields)}, unlabelled="one")
    moved = read_ablation(written(variants={"many": {"unlabelled": "there"}}, rows=rows))
    assert read_results(tmp_path, moved)["many"][0]["metrics"]["eval_accuracy"] == 0.5
    check_origin(tmp_path, moved.runs()[0], file)
    with pytest.raises(RecipeError, match=file.name):
        check_origin(tmp_path, run, result_file(tmp_path, run, "data", "teacher", "another"))
    save(tmp_path, run, {**result(accuracy=0.5), "fields": dict(run.fields)}, unlabelled="another")
    with pytest.raises(RecipeError, match=file.name):
        read_results(tmp_path, moved)


def test_a_known_file_is_used_although_the_definition_names_another_folder(written, tmp_path):
    run = read_ablation(written(variants=UNLABELLED, rows=UNLABELLED_ROWS)).run("many", 0)
    file = save(tmp_path, run, {**result(accuracy=0.5), "fields": dict(run.fields)}, unlabelled="one")
    moved = {**UNLABELLED, "many": {"unlabelled": "there"}}
    definition = read_ablation(written(variants=moved, rows=UNLABELLED_ROWS))
    assert read_results(tmp_path, definition) == {}
    assert set(read_results(tmp_path, definition, {("many", 0): file})) == {"many"}


@pytest.mark.parametrize(
    "content",
    [
        '{"metrics": {"eval_acc',
        "[]",
        "{}",
        '{"metrics": 3}',
        '{"metrics": {"eval_accuracy": "0.5"}}',
        '{"metrics": {}}',
        '{"metrics": {"eval_accuracy": NaN}}',
    ],
)
def test_a_damaged_result_raises_an_error_that_names_its_file(written, tmp_path, content):
    definition = read_ablation(written())
    file = save(tmp_path, definition.runs()[0], content)
    with pytest.raises(RecipeError, match="--results") as refused:
        read_results(tmp_path, definition)
    assert str(file) in str(refused.value)


# ---- definitions that are refused ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rows": [{"title": "a", "variant": "pla in"}]}, ["'a'", "'pla in'", "plain, hard"]),
        ({"rows": [{"title": "a", "variant": "plain"}] * 2}, ["'a'", "title"]),
        ({"rows": [{"title": "a", "variant": "plain"}]}, ["'hard'"]),
        ({"rows": [{"title": "a", "variant": "plain", "colour": 1}]}, ["colour"]),
        ({"rows": [{"title": "a", "variant": "plain", "paper": "72,2"}]}, ["'72,2'", "paper"]),
        ({"rows": [{"title": "a", "variant": "plain", "paper": True}]}, ["True", "paper"]),
        ({"rows": [{"title": "a", "variant": ["plain"]}]}, ["['plain']"]),
        ({"rows": [{"title": 1, "variant": "plain"}]}, ["title"]),
        ({"rows": ["a"]}, ["row 'a'"]),
        ({"rows": {"title": "a"}}, ["rows={'title': 'a'}"]),
        ({"rows": None}, ["rows=None"]),
        ({"variants": {}}, ["variants={}"]),
        ({"variants": {"a": "plain"}}, ["variants: a", "'plain'"]),
        ({"variants": {"a": {"seed": 3}}}, ["variants: a", "seed"]),
        ({"fields": [1]}, ["fields=[1]"]),
        ({"fields": 0}, ["fields=0"]),
        ({"fields": {"seed": 3}}, ["fields gives seed"]),
        ({"seeds": []}, ["seeds=[]"]),
        ({"seeds": [0, "1"]}, ["seeds=[0, '1']"]),
        ({"seeds": [0, 0]}, ["seeds=[0, 0]"]),
        ({"seeds": [0, -1]}, ["seeds=[0, -1]"]),
        ({"seeds": [2**32]}, ["seeds=[4294967296]"]),
        ({"recipe": 3}, ["recipe=3"]),
        ({"extra": 3}, ["extra"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_definition_raises_an_error_that_names_field_and_value(written, changes, named):
    path = written(**changes)
    with pytest.raises(RecipeError) as refused:
        read_ablation(path)
    assert [text for text in [str(path), *named] if text not in str(refused.value)] == []


def test_a_definition_that_is_missing_or_not_a_yaml_mapping_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    with pytest.raises(RecipeError, match="x.yaml"):
        read_ablation(path)
    for text in ("{", "- 1", ""):
        path.write_text(text)
        with pytest.raises(RecipeError, match="x.yaml"):
            read_ablation(path)


def test_a_key_that_is_given_twice_is_refused(written):
    path = written()
    path.write_text(path.read_text() + "title: another\n")
    with pytest.raises(RecipeError, match="'title'"):
        read_ablation(path)


def test_a_recipe_of_the_user_is_read_from_the_folder_of_the_definition(written):
    path = written(recipe="mine.yaml")
    (path.parent / "mine.yaml").write_text("learning_rate: 1.0e-7\nhidden_size: 8\n")
    fields = read_ablation(path).runs()[0].fields
    assert fields["learning_rate"] == 1e-7 and fields["hidden_size"] == 8 and "num_views" not in fields


def test_an_unknown_recipe_is_refused_and_the_nearest_name_is_suggested(written):
    with pytest.raises(RecipeError, match="clothing10_64"):
        read_ablation(written(recipe="clothing_64"))


@pytest.mark.parametrize("name", ["data", "teacher", "teacher_cache", "output_dir", "resume"])
def test_fields_of_the_command_line_are_refused_in_a_definition(written, name):
    own = {"student": "plain", "distillation_type": "none", name: "x"}
    for changes in ({"fields": {name: "x"}}, {"variants": {**DEFINITION["variants"], "plain": own}}):
        with pytest.raises(RecipeError, match=f"gives {name}"):
            read_ablation(written(**changes))


def test_an_invalid_date_is_refused(written):
    path = written()
    path.write_text(path.read_text().replace("title: ", "title: 2026-13-45 # ", 1))
    with pytest.raises(RecipeError, match=r"tiny\.yaml.*month"):
        read_ablation(path)


def test_a_title_with_a_bar_or_a_line_break_does_not_break_the_table():
    assert "| a \\| b c |" in markdown(ablation(Row("a | b\nc", "plain")), {})


def test_distillation_type_none_of_a_variant_ends_the_guidance_of_the_recipe(written):
    variants = {
        "plain": {"distillation_type": "none"},
        "patches": {"distillation_type": "none", "guidance": "features"},
        "both": {"distillation_type": "soft"},
    }
    rows = [{"title": name, "variant": name} for name in variants]
    ablation = read_ablation(written(recipe="from_scratch_64", variants=variants, rows=rows))
    runs = {name: ablation.run(name, 0) for name in variants}
    assert [runs[name].fields["guidance"] for name in variants] == ["none", "features", "features"]
    assert [runs[name].distils for name in variants] == [False, True, True]
    # The same for the fields of all variants.
    ended = read_ablation(written(recipe="from_scratch_64", fields={"distillation_type": "none"}))
    assert ended.fields["guidance"] == "none"
    # Guidance that the definition itself gives stays: such a variant learns from labels and patches.
    fields = {"guidance": "similarity"}
    kept = read_ablation(written(recipe="from_scratch_64", fields=fields, variants=variants, rows=rows))
    assert kept.run("plain", 0).fields["guidance"] == "similarity"
