"""Which images the inputs of a prediction mean, which label each has, and what is said of inputs that cannot be used."""

import io
import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from hf_deit.data.tables import Columns
from hf_deit.errors import UserError
from hf_deit.recipes.inputs import Failure, InputImage, find_inputs, names_on
from tests.helpers.runs import NAMES, write_images, write_splits


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images of each class in the folder `photos` of the working folder."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", per_class=2)
    return tmp_path / "photos"


def found(*inputs, names=NAMES, **changes):
    """Labels by file name, and reasons by input."""
    images, failures = {}, {}
    for image in find_inputs(inputs, names, **changes):
        if isinstance(image, Failure):
            failures[image.file] = image.reason
        else:
            assert isinstance(image, InputImage) and image.file not in images
            images[image.file] = image.label
    return images, failures


IN_FOLDERS = {f"photos/{name}/{number:02}.png": name for number, name in enumerate(2 * NAMES)}


# ---- files, folders, patterns ----


@pytest.mark.parametrize(
    "given", ["photos", "photos/", "photos/*/*.png", "photos/*", "photos/**", "phot[o]s", "./photos/../photos"]
)
def test_a_folder_and_a_pattern_mean_the_images_in_them_with_their_folders_as_labels(photos, given):
    images, failures = found(given)
    assert {os.path.normpath(file): label for file, label in images.items()} == IN_FOLDERS and not failures


def test_files_keep_their_order_and_may_be_given_twice(photos):
    files = ["photos/dog/05.png", "photos/bee/00.png", "photos/dog/05.png"]
    assert [image.file for image in find_inputs(files, NAMES)] == files


def test_an_image_that_is_found_again_is_answered_once(photos):
    again = ("photos/bee", "photos/bee/00.png", "./photos/b*/00.png", str(photos / "bee"), "photos")
    assert found(*again) == (IN_FOLDERS, {})
    assert found("photos/dog/05.png", "photos") == (IN_FOLDERS, {})


def test_one_bad_file_of_a_pattern_does_not_stop_the_others(photos):
    (photos / "bee" / "empty.csv").write_text("")
    (photos / "bee" / "folder").mkdir()
    images, failures = found("photos/bee/*")
    assert sorted(images) == ["photos/bee/00.png", "photos/bee/03.png"]
    assert failures.keys() == {"photos/bee/empty.csv", "photos/bee/folder"}


def test_a_path_that_exists_is_no_pattern(photos):
    (photos / "[ab]*").mkdir()
    shutil.copy(photos / "bee" / "00.png", photos / "[ab]*" / "a?.png")
    assert found("photos/[ab]*") == ({"photos/[ab]*/a?.png": None}, {})
    assert found("photos/[ab]*/a?.png") == ({"photos/[ab]*/a?.png": None}, {})


def test_files_are_recognised_by_extension_or_content_and_the_others_are_counted(photos, caplog):
    image = (photos / "bee" / "00.png").read_bytes()
    for name in ("none", "upper.PNG", "odd.jpg_large", ".hidden.png", ".git/logo.png", "deep/er/x.jpeg"):
        (photos / "bee" / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / "bee" / name).write_bytes(image)
    for name in ("notes.txt", "more.txt", "photo.heic", "LICENSE", "report.pdf"):
        (photos / "bee" / name).write_text("no image")
    images, failures = found("photos")
    added = ("none", "upper.PNG", "odd.jpg_large", "deep/er/x.jpeg")
    assert images == IN_FOLDERS | {f"photos/bee/{name}": "bee" for name in added} and not failures
    (message,) = caplog.messages
    assert "6 files" in message
    assert [
        kind for kind in ("2 .txt", "1 .heic", "1 .pdf", "1 without extension", "1 hidden") if kind not in message
    ] == []


def test_links_are_followed_and_a_loop_ends(photos):
    (photos / "elsewhere").mkdir()
    shutil.move(photos / "dog", photos / "elsewhere" / "dogs")
    (photos / "dog").symlink_to("elsewhere/dogs")
    (photos / "dog" / "up").symlink_to("../..")
    (photos / "bee" / "gone.png").symlink_to("nowhere.png")
    images, _ = found("photos")
    assert images == IN_FOLDERS | {"photos/bee/gone.png": "bee"}  # that it is missing is found when it is read


def test_the_outermost_folder_that_is_a_class_is_the_label_in_any_normal_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_images(tmp_path / "x" / decomposed / "dog", ("inside",), per_class=1)
    write_images(tmp_path / "x" / "unknown", ("inside",), per_class=1)
    labels, _ = found("x", names=("dog", composed))
    assert list(labels.values()) == [composed, None]
    assert set(found(f"x/{decomposed}", names=("dog", composed))[0].values()) == {"dog"}
    assert set(found(f"x/{decomposed}/dog", names=(composed, "dog"))[0].values()) == {"dog"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("photos/nix.png", "no such file"),
        ("photos/*.gif", "pattern"),
        ("", "empty"),
        ("nobody/nowhere", "--split"),
        ("empty", "no images"),
        ("texts", "2 .txt"),
        ("dangling.png", "links to"),
    ],
)
def test_an_input_without_images_does_not_stop_the_others(photos, tmp_path, given, named):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("no image")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    images, failures = found("photos/bee", given, "photos/dog")
    assert len(images) == 4 and failures.keys() == {given or "''"} and named in next(iter(failures.values()))


def test_names_on_standard_input_are_lines_or_end_with_null_bytes():
    assert names_on(io.BytesIO(b"a b.png\r\n\n\xff.png\n- x\n")) == ["a b.png", os.fsdecode(b"\xff.png"), "- x"]
    assert names_on(io.BytesIO(b"two\nlines.png\0b.png\0")) == ["two\nlines.png", "b.png"]
    assert names_on(io.BytesIO(b"")) == []


# ---- splits ----


def test_a_split_of_a_folder_is_found_as_people_name_it(tmp_path):
    write_splits(tmp_path)
    assert len(found(str(tmp_path))[0]) == 24 + 15
    for name in ("validation", "Validation", "val", "dev"):
        images, failures = found(str(tmp_path), split=name)
        assert len(images) == 15 and set(images.values()) == set(NAMES) and not failures
    images, failures = found(str(tmp_path), split="test")
    assert not images and "'test'" in failures[str(tmp_path)] and "train, validation" in failures[str(tmp_path)]


def test_a_split_of_image_files_alone_is_refused(photos):
    with pytest.raises(UserError, match="split='test'"):
        list(find_inputs(["photos/bee/00.png"], NAMES, split="test"))


# ---- tables and data sets ----


def column_of_images(photos):
    files = sorted(str(path) for path in photos.rglob("*.png"))
    names = ("dog", "cat", "bee")  # in another order than the model's
    labels = [names.index(file.split("/")[-2]) for file in files]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    cells = [{"bytes": Path(file).read_bytes(), "path": file[-6:]} for file in files]
    return datasets.Dataset.from_dict({"picture": cells, "kind": labels}, features=features)


@pytest.mark.parametrize("layout", ["saved", "splits", "parquet"])
def test_a_data_set_gives_embedded_images_and_the_names_of_its_labels(photos, tmp_path, layout):
    dataset, target, split = column_of_images(photos), str(tmp_path / "target"), None
    if layout == "saved":
        dataset.save_to_disk(target)
    elif layout == "splits":
        parts, split = {"validation": dataset, "test": dataset.select([0])}, "val"
        datasets.DatasetDict(parts).save_to_disk(target)
        images, failures = found(target)
        assert not images and "test" in failures[target] and "--split" in failures[target]
    else:
        target += ".parquet"
        dataset.to_parquet(target)
    rows = list(find_inputs([target], NAMES, split=split))
    assert sorted(row.label for row in rows) == sorted(2 * NAMES)
    assert len({row.file for row in rows}) == 6
    for row in rows:
        assert row.item["bytes"] == (photos / row.label / row.file[-6:]).read_bytes()


CELLS = {
    "texts": (["bee", "walrus", "-1", ""], ["bee", "walrus", None, None]),
    "indices": ([0, 2, -1, 7], ["bee", "dog", None, "7"]),
    "multi-hot": ([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], ["bee;dog", "", "cat", "bee;cat;dog"]),
    "lists of names": ([["dog", "bee"], [], ["x"], ["cat"]], ["dog;bee", "", "x", "cat"]),
    "with gaps": ([0.0, None, 2.0, 1.0], ["bee", None, "dog", "cat"]),
    "numbers as texts": (["001", "1", "2", "3"], ["001", "1", "2", "3"]),
}


@pytest.mark.parametrize("kind", CELLS)
def test_labels_of_tables_become_text(photos, kind):
    cells, labels = CELLS[kind]
    rows = [{"file_name": f"bee/0{number}.png", "label": cell} for number, cell in enumerate(cells)]
    (photos / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images, failures = found("photos/table.jsonl")
    assert list(images.values()) == labels and not failures
    assert list(images)[0] == "photos/bee/00.png"  # from the folder of the table


def test_a_table_needs_no_labels_and_takes_columns_by_name(photos):
    (photos / "plain.csv").write_text("path,width\nbee/00.png,3\nbee/03.png,3\n")
    assert found("photos/plain.csv") == ({"photos/bee/00.png": None, "photos/bee/03.png": None}, {})
    (photos / "wide.tsv").write_text("seen\tother\tbee\tdog\nbee/00.png\tx\t1\t1\nbee/03.png\ty\t0\t1\n")
    _, failures = found("photos/wide.tsv")
    assert "seen, other, bee, dog" in failures["photos/wide.tsv"]
    images, failures = found("photos/wide.tsv", columns=Columns("seen", ("bee", "dog")))
    assert list(images.values()) == ["bee;dog", "dog"] and not failures
    for columns in (Columns("nix"), Columns("seen", ("nix",))):
        assert "'nix'" in found("photos/wide.tsv", columns=columns)[1]["photos/wide.tsv"]


def test_a_table_that_cannot_be_read_does_not_stop_the_others(photos):
    (photos / "empty.csv").write_text("")
    (photos / "broken.parquet").write_bytes(b"PAR1 no more")
    images, failures = found("photos/empty.csv", "photos/broken.parquet", "photos/bee")
    assert len(images) == 2 and failures.keys() == {"photos/empty.csv", "photos/broken.parquet"}


def test_a_link_to_a_folder_above_adds_no_image(photos):
    (photos / "bee" / "up").symlink_to("../..")
    images, _ = found("photos/bee")
    assert images == {name: label for name, label in IN_FOLDERS.items() if "/bee/" in name}


def test_whole_numbers_in_a_csv_file_are_indices(photos):
    rows = [f"bee/0{number}.png,{cell}" for number, cell in enumerate(("0", "2", "-1", "7"))]
    (photos / "table.csv").write_text("\n".join(["file_name,label", *rows]))
    assert list(found("photos/table.csv")[0].values()) == ["bee", "dog", None, "7"]
