"""Reports: every number equals scikit-learn's on the exported table, for data of many kinds; nothing is loaded from outside."""

import csv
import html.parser
import json
import re

import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn import metrics

import hf_deit as package
from hf_deit.errors import DataError, RecipeError, UserError
from hf_deit.inspection import duplicates, measures
from hf_deit.inspection import report as report_module
from hf_deit.inspection.page_text import prose
from tests.helpers import tiny
from tests.helpers.runs import (
    FACTORY,
    NAMES,
    STUDENT,
    TEACHER_LABELS,
    hf_deit,
    refused,
    saved_student,
    train,
    write_images,
    write_splits,
)

NO_TRAIN = ("--train_images", "0")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    write_splits(room / "data")
    write_images(room / "data" / "validation", per_class=12, seed=7)
    # One photograph is in both splits, and one training image has a wrong label.
    Image.open(next((room / "data/validation/cat").iterdir())).save(room / "data/train/cat/again.png")
    saved_student(room / "model")
    (room / "teacher").mkdir()
    saved_student(room / "teacher", two_heads=False, seed=3)
    return room


@pytest.fixture(scope="module")
def made(room):
    assert (
        hf_deit("report", room / "model", "--data", room / "data", "--teacher", room / "teacher", "--out", room / "out")
        == 0
    )
    return room / "out"


class Page(html.parser.HTMLParser):
    """The tables, ids, links and addresses of a page."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.ids, self.links, self.addresses, self.text = {}, [], [], [], []
        self._table, self._cell, self._caption = None, None, None
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        for name in ("src", "href"):
            if name in given:
                (self.links if given[name].startswith("#") else self.addresses).append(given[name])
        if tag == "table":
            self._table = []
        elif tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self._table[-1].append(self._cell.strip())
            self._cell = None
        elif tag == "table":
            self.tables[self._caption.strip()] = self._table

    def handle_data(self, data):
        self.text.append(data)
        if self._cell is not None:
            self._cell += data
        elif self._caption is not None and self._table == []:
            self._caption += data

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def figures(self):
        """Return the figures at the head of the page, by their title."""
        found = re.findall(r"<li[^>]*><b>([^<]*)</b>([^<]*)", self.html)
        return {title.strip(): value for value, title in found}


def percent(value, digits=1):
    return f"{100 * value:.{digits}f}\u00a0%"


def exported(folder):
    return pandas.read_parquet(folder / "predictions.parquet")


def probabilities_of(table, prefix="", names=NAMES):
    return table[[f"{prefix}p_{name}" for name in names]].to_numpy()


def test_every_figure_of_the_headline_is_that_of_scikit_learn_on_the_exported_table(made):
    table, figures = exported(made), Page(made / "report.html").figures()
    names = np.array(NAMES)
    labels = table["label"].to_numpy()
    predicted = {
        prefix: names[probabilities_of(table, prefix).argmax(1)] for prefix in ("", "cls_", "distillation_", "teacher_")
    }
    assert list(predicted[""]) == list(table["prediction"])
    assert figures["top-1 accuracy"] == percent(metrics.accuracy_score(labels, predicted[""]))
    assert figures["class head"] == percent(metrics.accuracy_score(labels, predicted["cls_"]))
    assert figures["distillation head"] == percent(metrics.accuracy_score(labels, predicted["distillation_"]))
    assert figures["teacher"] == percent(metrics.accuracy_score(labels, predicted["teacher_"]))
    assert figures["balanced accuracy"] == percent(metrics.balanced_accuracy_score(labels, predicted[""]))
    assert figures["most frequent class"] == percent(table["label"].value_counts().max() / len(table))
    page = Page(made / "report.html").words
    assert (
        f"agree on {percent(metrics.accuracy_score(predicted['teacher_'], predicted['']))}".replace("\u00a0", " ")
        in page
    )


def test_a_page_compares_student_and_teacher_on_the_same_images(made):
    table, figures = exported(made), Page(made / "report.html").figures()
    names, labels = np.array(NAMES), exported(made)["label"].to_numpy()
    right, teacher = (names[probabilities_of(table, prefix).argmax(1)] == labels for prefix in ("", "teacher_"))
    difference = 100 * (right.mean() - teacher.mean())
    shown = figures["student − teacher"].replace("\u2212", "-").removesuffix("\u00a0points")
    assert float(shown) == pytest.approx(difference, abs=0.051)
    low, high = measures.paired_interval(right, teacher)
    assert ("may be chance" in Page(made / "report.html").words) == (low <= 0 <= high)


def test_the_tables_of_classes_and_confusions_are_those_of_scikit_learn(made):
    table, page = exported(made), Page(made / "report.html")
    predicted = np.array(NAMES)[probabilities_of(table).argmax(1)]
    expected = metrics.classification_report(
        table["label"], predicted, labels=list(NAMES), output_dict=True, zero_division=np.nan
    )
    counts = pandas.Series(predicted).value_counts()
    rows = {row[0]: row[1:] for row in page.tables["Precision, recall and F1 of each class"][1:]}
    assert set(rows) == set(NAMES)
    for name, (precision, recall, f1, images, found) in rows.items():
        for shown, key in ((precision, "precision"), (recall, "recall"), (f1, "f1-score")):
            value = expected[name][key]
            assert shown == ("–" if np.isnan(value) else percent(value)), (name, key)
        assert (int(images), int(found)) == (expected[name]["support"], counts.get(name, 0))
    matrix = next(value for caption, value in page.tables.items() if caption.startswith("Colours"))
    order = matrix[0][1:]
    truth = metrics.confusion_matrix(table["label"], predicted, labels=order)
    assert [[int(cell or 0) for cell in row[1:]] for row in matrix[1:]] == truth.tolist()


def test_the_calibration_errors_and_thresholds_follow_from_the_exported_table(made):
    table, page = exported(made), Page(made / "report.html")
    labels = np.array([NAMES.index(name) for name in table["label"]])
    rows = {row[0]: row[1:] for row in page.tables["Expected calibration error"][1:]}
    for prefix, title in (("", "prediction"), ("cls_", "class head"), ("distillation_", "distillation head")):
        values = probabilities_of(table, prefix)
        confidence, correct = values.max(1), values.argmax(1) == labels
        error = 0.0
        for low in range(15):  # by its definition
            inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
            error += abs(correct[inside].mean() - confidence[inside].mean()) * inside.mean() if inside.any() else 0
        assert rows[title][0] == percent(error)
    values = probabilities_of(table)
    confidence, correct = values.max(1), values.argmax(1) == labels
    for threshold, answered, right, *_ in page.tables["What a threshold costs and gains"][1:]:
        kept = confidence >= float(threshold.split()[0]) / 100
        assert answered == percent(kept.mean())
        assert right == (percent(correct[kept].mean()) if kept.any() else "–")


def test_a_report_loads_nothing_and_its_links_lead_somewhere(made):
    page = Page(made / "report.html")
    assert all(address.startswith("data:") for address in page.addresses)
    assert len([address for address in page.addresses if address.startswith("data:image/jpeg")]) > 10
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.findall(r"@import|<script|<link(?! rel=\"icon\" href=\"data:)|<iframe|url\((?!#)", page.html)
    assert (made / "report.html").stat().st_size < 5e6


def test_a_report_names_the_image_that_is_in_both_splits(made, room):
    with open(made / "duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    across = [row for row in rows if {row["first_split"], row["second_split"]} == {"train", "validation"}]
    assert any(row["second"].endswith("again.png") or row["first"].endswith("again.png") for row in across)
    assert "again.png" in Page(made / "report.html").words


def test_the_list_of_suspects_is_ranked_and_can_be_saved_from_the_page(made, room):
    with open(made / "mislabelled.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and all(row["label"] != row["suggested"] for row in rows)
    assert {row["split"] for row in rows} == {"train", "validation"}
    table = exported(made).set_index("file")
    own = [row for row in rows if row["split"] == "validation"]
    for row in own:
        both = [table.loc[row["file"], f"{prefix}p_{row['label']}"] for prefix in ("", "teacher_")]
        assert float(row["score"]) == pytest.approx(np.mean(both), abs=1e-7)
    assert 'download="mislabelled.csv"' in (made / "report.html").read_text()


def test_a_report_is_replaced_but_no_other_file_of_its_name(made, room, tmp_path, capsys):
    (tmp_path / "report.html").write_text("<p>mine</p>")
    given = ("report", room / "model", "--data", room / "data", *NO_TRAIN, "--out")
    assert str(tmp_path / "report.html") in refused(capsys, *given, tmp_path)
    assert (tmp_path / "report.html").read_text() == "<p>mine</p>"
    assert hf_deit(*given, made) == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--train_images", "-1"), "train_images=-1"),
        (("--batch_size", "0"), "batch_size=0"),
        (("--teacher_view_size", "32"), "teacher_view_size=32"),
        (("--unlabelled", "--split", "val"), "unlabelled"),
        (("--split", "nowhere"), "'nowhere'"),
        (("--out_of_fold", "nowhere.csv"), "'nowhere.csv'"),
    ],
)
def test_arguments_without_sense_are_refused(room, tmp_path, capsys, changes, named):
    assert named in refused(
        capsys, "report", room / "model", "--data", room / "data", "--out", tmp_path / "x", *changes
    )
    assert not list(tmp_path.rglob("report.html"))


# ---- data of other kinds ----


def page_of(model, data, out, **options):
    result = package.report(model, data, out=out, **{"train_images": 0, **options})
    assert result.path == out / "report.html" and all(file.is_file() for file in result.files)
    return Page(result.path), result


def test_two_classes_and_one_head(tmp_path):
    names = NAMES[:2]
    write_images(tmp_path / "data", names, per_class=20)
    page, result = page_of(
        saved_student(tmp_path / "model", names, two_heads=False), tmp_path / "data", tmp_path / "out"
    )
    table = exported(tmp_path / "out")
    predicted = np.array(names)[probabilities_of(table, names=names).argmax(1)]
    assert result.headline["accuracy"] == metrics.accuracy_score(table["label"], predicted)
    assert "class head" not in page.figures() and "teacher" not in page.figures()
    assert "tokens" not in page.ids and not (tmp_path / "model" / "tokens.png").exists()
    assert "one head" in page.words


def test_a_thousand_classes_show_the_fifty_most_confused(tmp_path):
    names = [f"class {number:03}" for number in range(1000)]
    for number in range(60):
        folder = tmp_path / "data" / names[number * 16]
        folder.mkdir(parents=True)
        Image.fromarray(tiny.pixels_of(60, num_labels=4)[number]).save(folder / "a.png")
    page, result = page_of(saved_student(tmp_path / "model", names), tmp_path / "data", tmp_path / "out")
    assert len(page.tables["Precision, recall and F1 of each class"]) == 1001
    matrix = next(value for caption, value in page.tables.items() if caption.startswith("Colours"))
    assert len(matrix) == 51
    assert "Of 1,000 classes, the 50" in page.words
    assert result.path.stat().st_size < 5e6


def test_five_images_and_a_missing_class(tmp_path):
    write_images(tmp_path / "data", NAMES[:2], per_class=8)
    for path in sorted((tmp_path / "data").rglob("*.png"))[5:]:
        path.unlink()
    write_images(tmp_path / "data", ("dog",), per_class=1)
    page, result = page_of(saved_student(tmp_path / "model", (*NAMES, "emu")), tmp_path / "data", tmp_path / "out")
    rows = {row[0]: row for row in page.tables["Precision, recall and F1 of each class"][1:]}
    assert rows["emu"][2] == "–" and rows["emu"][4] == "0"
    assert "no temperature was fitted" in page.words.lower()
    assert not (tmp_path / "model" / "calibration.json").exists()
    assert result.headline["interval"][0] <= result.headline["accuracy"] <= result.headline["interval"][1]


def test_images_without_labels_are_shown_and_not_counted(tmp_path):
    write_images(tmp_path / "data", ("nothing",), per_class=6)
    page, result = page_of(saved_student(tmp_path / "model"), tmp_path / "data", tmp_path / "out", unlabelled=True)
    assert result.headline == {} and result.beside_the_model == []
    assert "not known how often the model is right" in page.words
    assert "unsure" in page.ids and "6 images of this split have no label" in page.words
    assert exported(tmp_path / "out")["label"].isna().all()
    with pytest.raises(UserError, match="unlabelled"):
        package.report(tmp_path / "model", tmp_path / "data", out=tmp_path / "y")


def test_a_table_with_some_labels_counts_the_labelled_images_only(tmp_path):
    write_images(tmp_path / "images", per_class=6)
    files = sorted((tmp_path / "images").rglob("*.png"))
    rows = [f"{path},{path.parent.name if number % 3 else ''}" for number, path in enumerate(files)]
    (tmp_path / "data.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    page, result = page_of(saved_student(tmp_path / "model"), tmp_path / "data.csv", tmp_path / "out")
    table = exported(tmp_path / "out")
    known = table[table["label"].notna()]
    assert len(known) == 12 and len(table) == 18
    assert result.headline["accuracy"] == metrics.accuracy_score(known["label"], known["prediction"])
    assert "6 of them have no label" in page.words


def test_multi_label_figures_are_those_of_scikit_learn(tmp_path):
    write_images(tmp_path / "images", per_class=14)
    files = sorted((tmp_path / "images").rglob("*.png"))
    present = np.random.default_rng(0).integers(0, 2, (len(files), 3))
    rows = [",".join([str(path), *map(str, flags)]) for path, flags in zip(files, present, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join([",".join(["image", *NAMES]), *rows]) + "\n")
    model = saved_student(tmp_path / "model", problem_type="multi_label_classification")
    page, result = page_of(model, tmp_path / "data.csv", tmp_path / "out", label_column=list(NAMES))
    table = exported(tmp_path / "out")
    values = probabilities_of(table)
    truth = np.array([[name in label.split(";") for name in NAMES] for label in table["label"]])
    assert page.figures()["mean average precision"] == percent(metrics.average_precision_score(truth, values))
    assert page.figures()["F1, macro"] == percent(metrics.f1_score(truth, values > 0.5, average="macro"))
    assert page.figures()["F1, micro"] == percent(metrics.f1_score(truth, values > 0.5, average="micro"))
    rows = {row[0]: row for row in page.tables["Figures of each class, the lowest average precision first"][1:]}
    for index, name in enumerate(NAMES):
        assert rows[name][1] == percent(metrics.average_precision_score(truth[:, index], values[:, index]))
        value = metrics.precision_score(truth[:, index], values[:, index] > 0.5, zero_division=np.nan)
        assert rows[name][2] == ("–" if np.isnan(value) else percent(value))
    with open(tmp_path / "out" / "mislabelled.csv", newline="") as file:
        suspects = list(csv.DictReader(file))
    by_file = table.set_index("file")
    for row in suspects:
        probability = by_file.loc[row["file"], f"p_{row['class']}"]
        has_class = row["class"] in by_file.loc[row["file"], "label"].split(";")
        assert row["label"] == ("present" if has_class else "absent") and row["teacher_p"] == ""
        assert float(row["score"]) == pytest.approx(probability if has_class else 1 - probability, abs=1e-7)
    # Without a teacher, the labels that the student gets wrong are the suspects.
    assert len(suspects) == np.sum((values > 0.5) != truth)
    assert result.suspects == len({row["file"] for row in suspects})
    assert "a class that is labelled and looks absent" in page.words and 'download="mislabelled.csv"' in page.html
    assert "confusion" not in page.ids and (tmp_path / "model" / "reliability.png").is_file()
    assert set(json.loads((model / "calibration.json").read_text())["thresholds"]) == set(NAMES)


def test_class_and_file_names_are_text_and_not_markup(tmp_path):
    names = ("<script>alert(1)</script>", "a & b", '"c"')
    rows = ["image,label"]
    for number, path in enumerate(sorted(write_images(tmp_path / "images", per_class=6).rglob("*.png"))):
        moved = path.rename(path.with_name(f"<b>{number}.png"))
        label = names[number % 3].replace('"', '""')
        rows.append(f'"{moved}","{label}"')
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    page, _ = page_of(
        saved_student(tmp_path / "model", names), tmp_path / "data.csv", tmp_path / "out", title="<i>t</i>"
    )
    assert "<script" not in page.html and "<b>0.png" not in page.html and "<i>" not in page.html
    assert "<script>alert(1)</script>" in page.words


def test_predictions_of_other_folds_replace_those_of_the_student(room, tmp_path):
    table = exported(room / "out") if (room / "out").exists() else None
    image = sorted((room / "data/train/bee").glob("*.png"))[0]
    (tmp_path / "folds.csv").write_text(f"file,label,p_bee,p_cat,p_dog\n{image},bee,0.0001,0.0001,0.9998\n")
    result = package.report(
        room / "model", room / "data", out=tmp_path / "out", out_of_fold=tmp_path / "folds.csv", train_images=100
    )
    with open(tmp_path / "out" / "mislabelled.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["file"], first["suggested"], float(first["score"])) == (str(image), "dog", 0.0001)
    assert result.suspects and (table is None or len(table))
    (tmp_path / "other.csv").write_text("file,p_bee,p_cat,p_dog\nnowhere.png,1,0,0\n")
    with pytest.raises(DataError, match="out_of_fold"):
        package.report(room / "model", room / "data", out=tmp_path / "z", out_of_fold=tmp_path / "other.csv")


def test_a_missing_package_is_named_with_what_installs_it(room, tmp_path, monkeypatch):
    packages = {"no_such_module": "no-such-package", "sklearn": "scikit-learn", "nor_this": "nor-this"}
    monkeypatch.setattr(report_module, "PACKAGES", packages)
    with pytest.raises(UserError, match=r"no-such-package and nor-this.*pip install no-such-package nor-this$"):
        package.report(room / "model", room / "data", out=tmp_path / "x")


def test_a_negative_number_of_training_images_is_refused_in_python(room, tmp_path):
    with pytest.raises(RecipeError, match="train_images=-3"):
        package.report(room / "model", room / "data", out=tmp_path / "x", train_images=-3)


# ---- after a training ----


def test_a_training_ends_with_a_report_which_is_not_published(tmp_path, room):
    teacher = ("--teacher", FACTORY, "--teacher_labels", *TEACHER_LABELS)
    assert train(room / "data", tmp_path / "out", *STUDENT, *teacher, "--report", "true") == 0
    page = Page(tmp_path / "out" / "report" / "report.html")
    assert "teacher" in page.figures() and "svg" in page.html
    from hf_deit.hub.publishing import published_files

    names = {file.path_in_repo for file in published_files(tmp_path / "out", "me/student")}
    assert {"confusion.png", "reliability.png", "tokens.png"} <= names
    assert not any("report" in name or name.endswith((".csv", ".html", ".parquet")) for name in names)
    card = (tmp_path / "out" / "README.md").read_text()
    layers = package.explain_layers(tmp_path / "out", room / "data")
    assert f"mean of 32 images: {layers.learned_cosine:.2f} for the learned tokens" in card and "](tokens.png)" in card
    measured = json.loads((tmp_path / "out" / "inspection.json").read_text())["tokens"]
    assert measured["learned"] == pytest.approx(layers.learned_cosine)
    assert measured["last_layer"] == pytest.approx(layers.cosine[-1], abs=0.05)  # over 32 of the 36 images
    assert "](confusion.png)" in card and "expected calibration error" in card.lower()
    assert "| bee |" in card
    # A figure that is not the one of the last report is not published.
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "tokens.png")
    names = {file.path_in_repo for file in published_files(tmp_path / "out", "me/student")}
    assert "tokens.png" not in names and "confusion.png" in names
    # Other weights: the figures are no longer those of the model.
    saved_student(tmp_path / "out")
    names = {file.path_in_repo for file in published_files(tmp_path / "out", "me/student")}
    assert not any(name.endswith(".png") or name == "calibration.json" for name in names)


def test_a_failing_report_leaves_the_exit_code_zero(tmp_path, room, monkeypatch, caplog):
    def fail(*unused, **named):
        raise RuntimeError("no luck")

    monkeypatch.setattr(report_module, "make_report", fail)
    assert train(room / "data", tmp_path / "out", *STUDENT, "--report", "true") == 0
    assert "no luck" in caplog.text and str(tmp_path / "out") in caplog.text
    assert (tmp_path / "out" / "model.safetensors").is_file()


# ---- the sentences of the page ----


def test_the_interval_of_a_paired_difference_is_that_of_newcombe():
    # Newcombe (1998), table II, method 10: 36 of 50 images right for both, 12 and 2 for one of the two.
    one = np.array([True] * 48 + [False] * 2)
    other = np.array([True] * 36 + [False] * 12 + [True] * 2)
    assert measures.paired_interval(one, other) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = measures.paired_interval(other, one)
    assert (low, high) == pytest.approx((-0.3404, -0.0569), abs=5e-5)
    # Two models that are right for the same images do not differ, and neither does a model from itself.
    low, high = measures.paired_interval(one, one)
    assert low <= 0 <= high and high - low < 0.2


def test_code_is_marked_and_short_words_with_hyphens_stay_together():
    text = str(prose("Run `hf-deit predict --csv a.csv` on <t-shirt>; `x & y`"))
    assert '<code><span class="nb">hf-deit</span> predict <span class="nb">--csv</span> a.csv</code>' in text
    assert '&lt;<span class="nb">t-shirt</span>&gt;' in text and "<code>x &amp; y</code>" in text


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, duplicates.BYTE_EQUAL),
        ({"compress_level": 1}, duplicates.SAVED_AGAIN),
        ({"resize": (12, 9)}, duplicates.RESIZED),
    ],
)
def test_the_kind_of_a_copy_is_named(tmp_path, change, kind):
    image = Image.fromarray(tiny.pixels_of(4, num_labels=4)[0])
    image.save(tmp_path / "a.png")
    copy = image.resize(change["resize"]) if "resize" in change else image
    copy.save(tmp_path / "b.png", **{name: value for name, value in change.items() if name != "resize"})
    assert duplicates.kind_of_copy(str(tmp_path / "a.png"), str(tmp_path / "b.png")) == kind
    contents = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in ("a.png", "b.png")]
    assert duplicates.kind_of_copy(*contents) == kind


def test_contradictory_labels_of_a_photograph_come_first(tmp_path):
    write_images(tmp_path / "data", per_class=8)
    image = sorted((tmp_path / "data/bee").iterdir())[0]
    (tmp_path / "data/cat/copy.png").write_bytes(image.read_bytes())
    page, result = page_of(saved_student(tmp_path / "model"), tmp_path / "data", tmp_path / "out")
    assert result.duplicates and "Contradictory labels" in page.words
    assert "two splits" not in page.words and "same bytes" in page.words
