"""Sources from folders and saved data sets: images found, images left out, fingerprints and errors."""

import io
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_deit.data import images
from hf_deit.data.augmentation import Augmentation
from hf_deit.data.loading import load_splits, load_validation
from hf_deit.data.sampling import ViewKey, view_generator
from hf_deit.data.sources import Source, without_unreadable
from hf_deit.data.views import EvaluationDataset, ViewDataset
from hf_deit.errors import DataError
from tests.helpers.images import (
    cut_off,
    dataset_of,
    folder_of,
    picture,
    pixels_of,
    saved,
    views_of,
    with_validation,
    write_class,
)

datasets.disable_progress_bars()


def names_of(source):
    """Return class folder and file name of each image."""
    return [str(Path(item).relative_to(Path(item).parents[1])) for item in source.items]


# Folders


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
def test_a_folder_with_train_and_validation_is_not_split_again(tmp_path, name):
    train, validation = load_splits(str(with_validation(tmp_path, name)))
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert names_of(train) == ["cat/00.png", "cat/01.png", "cat/02.png", "dog/00.png", "dog/01.png"]
    assert list(train.labels) == [0, 0, 0, 1, 1]
    assert names_of(validation) == ["cat/00.png", "dog/00.png", "dog/01.png"]
    assert list(validation.labels) == [0, 1, 1]
    assert (len(train), len(validation)) == (5, 3)


def test_images_have_the_pixels_of_their_files(tmp_path):
    folder_of(tmp_path / "train", {"cat": 3, "dog": 2})
    folder_of(tmp_path / "val", {"cat": 1, "dog": 1})
    train, _ = load_splits(str(tmp_path))
    for ours, seed in zip(pixels_of(train), [0, 1, 2, 1000, 1001], strict=True):
        np.testing.assert_array_equal(ours, picture(seed))


def test_a_train_folder_alone_is_split(tmp_path):
    folder_of(tmp_path / "train", {"cat": 10, "dog": 10})
    train, validation = load_splits(str(tmp_path), validation_share=0.2)
    assert (len(train), len(validation)) == (16, 4)


def test_a_validation_folder_may_lack_a_class(tmp_path):
    folder_of(tmp_path / "train", {"cat": 2, "dog": 2, "eel": 2})
    folder_of(tmp_path / "val", {"eel": 1, "cat": 1})
    _, validation = load_splits(str(tmp_path))
    assert validation.class_names == ("cat", "dog", "eel")
    assert list(validation.labels) == [0, 2]


def test_class_folders_are_split_by_class_reproducibly_and_without_overlap(tmp_path):
    folder_of(tmp_path, {"cat": 30, "dog": 10, "eel": 2})
    train, validation = load_splits(str(tmp_path), validation_share=0.2, seed=3)
    assert Counter(validation.labels) == {0: 6, 1: 2, 2: 1}, "0.2 of each class, at least one"
    assert Counter(train.labels) == {0: 24, 1: 8, 2: 1}
    assert not set(train.items) & set(validation.items)
    assert len({*train.items, *validation.items}) == 42
    for source in (train, validation):
        assert [source.class_names[label] for label in source.labels] == [n.split("/")[0] for n in names_of(source)]
    again = load_splits(str(tmp_path), validation_share=0.2, seed=3)
    assert (train, validation) == again
    _, other = load_splits(str(tmp_path), validation_share=0.2, seed=4)
    assert names_of(other) != names_of(validation)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.49])
def test_every_class_has_an_image_on_both_sides_of_a_split(tmp_path, share):
    folder_of(tmp_path, {"cat": 2, "dog": 3})
    train, validation = load_splits(str(tmp_path), validation_share=share)
    assert set(train.labels) == set(validation.labels) == {0, 1}


def test_classes_are_sorted_by_name_and_hidden_folders_are_ignored(tmp_path):
    folder_of(tmp_path, {"b": 2, "a": 2, "B": 2, ".cache": 2, "__MACOSX": 2})
    train, _ = load_splits(str(tmp_path))
    assert train.class_names == ("B", "a", "b")


def test_images_are_found_in_subfolders_by_extension_in_any_case(tmp_path):
    folder_of(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "of last year").mkdir()
    picture(9).save(tmp_path / "cat" / "of last year" / "A.JPEG")
    picture(9).save(tmp_path / "cat" / "b.WebP")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"no image")
    train, validation = load_splits(str(tmp_path))
    found = {Path(item).name for item in [*train.items, *validation.items]}
    assert found == {"00.png", "01.png", "A.JPEG", "b.WebP"}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "pets", {"cat": 2, "dog": 2})
    assert load_splits("~/pets")[0].class_names == ("cat", "dog")


# Data sets on disk


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "test"])
def test_the_columns_of_a_saved_dataset_dict_are_found_by_type(tmp_path, name):
    splits = {"train": dataset_of([0, 1, 1, 0], note=["a"] * 4), name: dataset_of([1, 0], note=["b"] * 2)}
    train, validation = load_splits(saved(datasets.DatasetDict(splits), tmp_path / "set"))
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert list(train.labels) == [0, 1, 1, 0]
    assert list(validation.labels) == [1, 0]
    for source in (train, validation):
        for seed, pixels in enumerate(pixels_of(source)):
            np.testing.assert_array_equal(pixels, picture(seed))


def test_validation_is_preferred_to_test(tmp_path):
    splits = {"train": dataset_of([0, 1]), "test": dataset_of([1, 1, 1]), "validation": dataset_of([0, 1, 0, 1])}
    _, validation = load_splits(saved(datasets.DatasetDict(splits), tmp_path / "set"))
    assert len(validation) == 4


def test_a_saved_single_dataset_is_split_by_class(tmp_path):
    path = saved(dataset_of([0, 1] * 10), tmp_path / "set")
    train, validation = load_splits(path, validation_share=0.2, seed=1)
    assert Counter(train.labels) == {0: 8, 1: 8}
    assert Counter(validation.labels) == {0: 2, 1: 2}
    images = Counter(pixels.tobytes() for source in (train, validation) for pixels in pixels_of(source))
    assert images == Counter(np.asarray(picture(seed)).tobytes() for seed in range(20))
    again, _ = load_splits(path, validation_share=0.2, seed=1)
    assert list(again.labels) == list(train.labels)
    for ours, theirs in zip(pixels_of(train), pixels_of(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_split_image_keeps_its_label(tmp_path):
    labels = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1]
    label_of = {np.asarray(picture(seed)).tobytes(): label for seed, label in enumerate(labels)}
    for source in load_splits(saved(dataset_of(labels), tmp_path / "set"), validation_share=0.3):
        assert [label_of[pixels.tobytes()] for pixels in pixels_of(source)] == list(source.labels)


def test_images_embedded_as_bytes_and_images_by_path_are_read_alike(tmp_path):
    write_class(tmp_path, "files", 2)
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    column = [
        {"bytes": buffer.getvalue(), "path": None},
        {"bytes": None, "path": str(tmp_path / "files" / "00.png")},
        {"bytes": buffer.getvalue(), "path": "a name that is no file here.png"},
    ]
    source = Source(
        [*column, str(tmp_path / "files" / "00.png"), tmp_path / "files" / "00.png"], [0] * 5, ("a",), "", "x"
    )
    for pixels in pixels_of(source):
        np.testing.assert_array_equal(pixels, picture(0))


# Images for an evaluation


def test_an_evaluation_uses_the_validation_split(tmp_path):
    folder = str(with_validation(tmp_path))
    assert load_validation(folder) == load_validation(folder, validation_share=0.5) == load_splits(folder)[1]


@pytest.mark.parametrize(("share", "seed"), [(0.1, 0), (0.3, 0), (0.3, 5)])
def test_without_a_validation_split_an_evaluation_uses_the_validation_share_of_the_run(tmp_path, share, seed):
    folder = str(folder_of(tmp_path, {"cat": 10, "dog": 10}))
    assert load_validation(folder, share, seed) == load_splits(folder, share, seed)[1]


def test_without_a_validation_split_and_a_share_an_evaluation_uses_all_images(tmp_path):
    everything = load_validation(str(folder_of(tmp_path, {"cat": 2, "dog": 3})))
    assert names_of(everything) == ["cat/00.png", "cat/01.png", "dog/00.png", "dog/01.png", "dog/02.png"]


def test_an_evaluation_accepts_a_single_class(tmp_path):
    assert len(load_validation(str(folder_of(tmp_path, {"cat": 4})))) == 4


def test_an_empty_folder_is_refused_for_evaluation_as_for_training(tmp_path):
    with pytest.raises(DataError, match=tmp_path.name):
        load_validation(str(tmp_path))


# Odd images


def odd_images():
    """Return unusual images by name: the image, the options for saving it, and the expected upright RGB pixels."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    rgb = np.asarray(picture(1))
    in_three = np.repeat(grey[:, :, None], 3, axis=2)
    opaque = np.full((20, 24, 1), 255, dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = picture(2).quantize(16)
    cmyk = Image.merge("CMYK", [Image.fromarray(grey)] * 4)
    one_bit = Image.fromarray(grey).convert("1")
    return {
        "grey": (Image.fromarray(grey), {}, in_three),
        "grey of 16 bits": (Image.fromarray(grey.astype(np.uint16) * 257), {}, in_three),
        "one bit": (one_bit, {}, np.repeat(np.asarray(one_bit, dtype=np.uint8)[:, :, None] * 255, 3, axis=2)),
        "palette": (palette, {}, np.asarray(palette.convert("RGB"))),
        "opaque alpha": (Image.fromarray(np.concatenate([rgb, opaque], axis=2)), {}, rgb),
        "opaque grey with alpha": (
            Image.merge("LA", [Image.fromarray(grey), Image.new("L", (24, 20), 255)]),
            {},
            in_three,
        ),
        "four inks": (cmyk, {"format": "TIFF"}, np.asarray(cmyk.convert("RGB"))),
        "turned": (Image.fromarray(rgb), {"exif": turned}, np.rot90(rgb, -1)),
    }


@pytest.mark.parametrize("name", odd_images())
def test_images_of_unusual_modes_and_orientations_become_upright_rgb(tmp_path, name):
    image, options, expected = odd_images()[name]
    folder_of(tmp_path, {"cat": 1, "dog": 2})
    image.save(tmp_path / "cat" / "zz.png", **{"format": "PNG", **options})
    train, validation = load_splits(str(tmp_path), validation_share=0.5)
    source, index = next((s, i) for s in (train, validation) for i, n in enumerate(names_of(s)) if n == "cat/zz.png")
    ours = source.image(index)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(ours, expected)
    view = views_of(source)[ViewKey(0, index, 0, 0)]["pixel_values"]
    upright = Augmentation((8, 8))(Image.fromarray(expected), view_generator(0, ViewKey(0, index, 0, 0)))
    np.testing.assert_array_equal(view.permute(1, 2, 0), upright)
    assert EvaluationDataset(source, (16, 16))[index]["pixel_values"].shape == (3, 16, 16)


# Fingerprints


def fingerprint_of(path):
    return load_splits(str(path))[0].fingerprint


def test_the_fingerprint_of_an_unchanged_folder_does_not_change_with_its_location(tmp_path):
    first, second = with_validation(tmp_path / "a"), with_validation(tmp_path / "somewhere else")
    assert fingerprint_of(first) == fingerprint_of(first) == fingerprint_of(second)


def add_an_image(folder):
    picture(77).save(folder / "train" / "cat" / "77.png")


def remove_an_image(folder):
    (folder / "train" / "cat" / "02.png").unlink()


def resize_a_file(folder):
    picture(0, height=40).save(folder / "train" / "cat" / "00.png")


def give_another_label(folder):
    (folder / "train" / "cat" / "02.png").rename(folder / "train" / "dog" / "02.png")


def rename_an_image(folder):
    (folder / "train" / "cat" / "00.png").rename(folder / "train" / "cat" / "98.png")


def rename_a_class(folder):
    for split in ("train", "validation"):
        (folder / split / "dog").rename(folder / split / "cow")


@pytest.mark.parametrize(
    "change", [add_an_image, remove_an_image, resize_a_file, give_another_label, rename_an_image, rename_a_class]
)
def test_the_fingerprint_of_a_folder_changes_with_its_content(tmp_path, change):
    folder = with_validation(tmp_path)
    before = fingerprint_of(folder)
    change(folder)
    assert fingerprint_of(folder) != before


def test_the_fingerprint_of_a_split_changes_with_its_seed_and_share(tmp_path):
    folder_of(tmp_path, {"cat": 10, "dog": 10})
    splits = [load_splits(str(tmp_path), share, seed) for share, seed in [(0.2, 0), (0.2, 1), (0.4, 0)]]
    fingerprints = [source.fingerprint for pair in splits for source in pair]
    assert len(set(fingerprints)) == 6
    assert load_splits(str(tmp_path), 0.2, 0)[0].fingerprint == fingerprints[0]


def test_the_fingerprint_of_a_saved_data_set_changes_with_labels_order_and_images(tmp_path):
    path, one = tmp_path / "set", dataset_of([0, 1, 0, 1])
    others = [dataset_of([0, 1, 1, 0]), one.select([1, 0, 3, 2]), one.select([0, 1, 0, 1])]
    fingerprints = []
    for dataset in (one, *others, one):
        shutil.rmtree(path, ignore_errors=True)
        fingerprints.append(fingerprint_of(saved(dataset, path)))
    assert len(set(fingerprints)) == 4
    assert fingerprints[0] == fingerprints[-1] == fingerprint_of(saved(one, tmp_path / "somewhere else"))


# Errors


def assert_refused(data, *parts, **kwargs):
    with pytest.raises(DataError) as error:
        load_splits(str(data), **kwargs)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_an_empty_folder_is_refused_with_the_expected_layout(tmp_path):
    assert_refused(tmp_path, str(tmp_path), "cat/1.jpg")


def test_an_empty_train_folder_is_refused_by_name(tmp_path):
    (tmp_path / "train").mkdir()
    folder_of(tmp_path / "val", {"cat": 1, "dog": 1})
    assert_refused(tmp_path, str(tmp_path / "train"))


def test_folders_without_images_are_refused_with_the_names_of_the_folders(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("no image")
    assert_refused(tmp_path, str(tmp_path), ".jpg", "cat, dog")


def test_an_empty_validation_folder_is_refused_by_name(tmp_path):
    folder_of(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "val").mkdir()
    assert_refused(tmp_path, str(tmp_path / "val"))


def test_a_single_class_is_refused_by_name(tmp_path):
    folder_of(tmp_path, {"cat": 4})
    assert_refused(tmp_path, str(tmp_path), "one class ('cat')")


def test_a_class_without_training_images_is_refused_by_name(tmp_path):
    with_validation(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / "yak").mkdir()
    assert_refused(tmp_path, str(tmp_path / "train"), "'eel', 'yak'")


def test_a_class_that_only_validation_has_is_refused_by_name(tmp_path):
    with_validation(tmp_path)
    write_class(tmp_path / "validation", "Dog", 1)
    assert_refused(tmp_path, "'Dog'", str(tmp_path / "validation"), "'cat', 'dog'")


def test_a_class_of_one_image_cannot_be_split_and_is_named(tmp_path):
    folder_of(tmp_path, {"cat": 4, "dog": 1})
    assert_refused(tmp_path, str(tmp_path), "'dog'", "one image")


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"\xff\xd8\xff\xe0 and then nothing"])
def test_files_that_are_not_images_are_named_before_training(tmp_path, content):
    folder_of(tmp_path, {"cat": 3, "dog": 3})
    broken = [tmp_path / "cat" / "99.jpg", tmp_path / "dog" / "98.jpg"]
    for file in broken:
        file.write_bytes(content)
    assert_refused(tmp_path, "2 file(s)", *map(str, broken), "broken_images: skip", broken_images="raise")


def test_files_that_are_not_images_are_left_out_and_logged_once_with_their_paths(tmp_path, caplog):
    folder_of(tmp_path, {"cat": 10, "dog": 10})
    before, _ = load_splits(str(tmp_path), validation_share=0.2)
    broken = [tmp_path / "cat" / "00b.jpg", tmp_path / "dog" / "98.png"]
    for file in broken:
        file.write_text("no image")
    caplog.clear()
    train, validation = load_splits(str(tmp_path), validation_share=0.2)
    assert len(train) + len(validation) == 20
    assert not {*train.items, *validation.items} & set(map(str, broken))
    assert [source.class_names[label] for source in (train, validation) for label in source.labels] == [
        Path(item).parent.name for source in (train, validation) for item in source.items
    ]
    assert [text.split(":")[0] for text in train.left_out] == list(map(str, broken))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert all(warnings[0].count(f"{file}:") == 1 for file in broken)
    assert "2 of 22 images" in warnings[0]
    assert train.fingerprint != before.fingerprint, "the unreadable files must change the fingerprint"


def test_a_class_that_has_only_broken_files_is_refused_by_name(tmp_path):
    folder_of(tmp_path, {"cat": 3, "dog": 1})
    (tmp_path / "dog" / "00.png").write_bytes(b"")
    assert_refused(tmp_path, str(tmp_path), "'dog'")


def test_images_that_cannot_be_decoded_are_left_out_by_without_unreadable(tmp_path, caplog):
    source, _ = load_splits(str(folder_of(tmp_path, {"cat": 4, "dog": 4})), validation_share=0.3)
    file = Path(source.items[1])
    file.write_bytes(cut_off(file.read_bytes()))
    rest = without_unreadable(source)
    assert rest.items == [item for item in source.items if item != str(file)]
    assert list(rest.labels) == [0 if "cat" in item else 1 for item in rest.items]
    assert str(file) in caplog.text
    with pytest.raises(DataError, match=file.name):
        without_unreadable(source, "raise")


def test_all_images_broken_is_refused(tmp_path):
    source = Source([str(tmp_path / "none.png")], [0], ("cat",), "", "the set")
    with pytest.raises(DataError, match="1 images of the set"):
        without_unreadable(source)


def test_unusual_images_are_logged_with_their_treatment(tmp_path, caplog):
    folder_of(tmp_path, {"cat": 3, "dog": 3})
    Image.new("CMYK", (9, 9)).save(tmp_path / "cat" / "ink.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "dog" / "dot.png")
    with caplog.at_level("INFO"):
        load_splits(str(tmp_path))
    for kind, file in (("CMYK", "ink.jpg"), ("8 pixels", "dot.png")):
        assert [kind in line and file in line for line in caplog.messages].count(True) == 1


def test_an_unknown_policy_is_refused(tmp_path):
    assert_refused(tmp_path, "broken_images='ignore'", "skip, raise", broken_images="ignore")


def with_a_broken_chunk(content):
    """Give the second data chunk of a PNG an unknown type, which Pillow finds only when it decodes the image."""
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    return content[:second] + b"\0\0\0\0" + content[second + 4 :]


@pytest.mark.parametrize(
    ("extension", "damage"), [("jpg", cut_off), ("png", cut_off), ("bmp", cut_off), ("png", with_a_broken_chunk)]
)
def test_an_image_with_a_valid_header_and_a_broken_body_is_named_when_it_is_read(tmp_path, extension, damage):
    file = tmp_path / f"broken.{extension}"
    picture(0, 300, 300).save(file)
    file.write_bytes(damage(file.read_bytes()))
    Image.open(file).close()
    source = Source([str(file)], [0], ("cat", "dog"), "", "the set")
    for read in (
        lambda: source.image(0),
        lambda: ViewDataset(source, Augmentation((8, 8)), 0, "raise")[ViewKey(0, 0, 0, 0)],
        lambda: EvaluationDataset(source, (8, 8))[0],
    ):
        with pytest.raises(DataError) as error:
            read()
        assert f"Image 0 of the set ({file})" in str(error.value)


def test_an_embedded_image_that_is_broken_is_named_by_its_number(tmp_path):
    column = [{"bytes": b"no image", "path": None}, {"bytes": b"no image", "path": "cat.png"}]
    source = Source(column, [0, 1], ("cat", "dog"), "", "the set")
    with pytest.raises(DataError, match=r"Image 0 of the set \(embedded\)"):
        source.image(0)
    with pytest.raises(DataError, match=r"Image 1 of the set \(cat.png\)"):
        source.image(1)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    file = tmp_path / "images.zip"
    file.write_bytes(b"PK")
    assert_refused(file, str(file), ".csv, .tsv, .jsonl, .parquet")


def test_a_missing_path_or_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nowhere"), "nobody/no-such-data-set"):
        assert_refused(name, f"No data at {name!r}")


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_validation_share_out_of_range_is_refused(tmp_path, share):
    assert_refused(tmp_path, f"validation_share={share}", validation_share=share)


def test_a_data_set_without_class_labels_is_refused_with_its_columns(tmp_path):
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"picture": [picture()], "kind": [0]}, features=features)
    assert_refused(saved(dataset, tmp_path / "set"), "label_column", "picture: Image", "kind: Value")


def test_a_data_set_without_images_is_refused_with_its_columns(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a", "b"])})
    dataset = datasets.Dataset.from_dict({"text": ["x"], "kind": [0]}, features=features)
    assert_refused(saved(dataset, tmp_path / "set"), "image_column", "text: Value", "kind: ClassLabel")


def test_a_data_set_with_two_label_columns_is_refused_with_both(tmp_path):
    label = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"picture": datasets.Image(), "fine": label, "coarse": label})
    columns = {"picture": [picture()] * 2, "fine": [0, 1], "coarse": [0, 1]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    assert_refused(saved(dataset, tmp_path / "set"), "label_column", "(fine, coarse)")


def test_images_without_a_label_are_refused(tmp_path):
    assert_refused(saved(dataset_of([0, 1, -1]), tmp_path / "set"), "without a label", "row 2")


def test_a_dataset_dict_without_train_is_refused_with_its_splits(tmp_path):
    splits = datasets.DatasetDict({"test": dataset_of([0, 1]), "extra": dataset_of([0, 1])})
    assert_refused(saved(splits, tmp_path / "set"), "no split 'train'", "test, extra")


def test_a_class_that_a_data_set_lacks_in_training_is_refused_by_name(tmp_path):
    path = saved(dataset_of([0, 1, 0, 1], names=("cat", "dog", "eel")), tmp_path / "set")
    assert_refused(path, str(path), "'eel'")


def test_an_evenly_spaced_selection_of_many_images_is_scanned(monkeypatch):
    monkeypatch.setattr(images, "MAX_CHECKED_FILES", 10)
    for count in (9, 10, 11, 19, 20, 25):
        scanned = sorted(images.scan_images([f"missing/{number}.png" for number in range(count)]).broken)
        assert len(scanned) == min(count, 10)
        assert scanned[0] == 0
        assert set(np.diff(scanned)) <= {count // 10, -(-count // 10)} or count < 10


def test_the_parts_of_a_split_have_the_name_of_the_data_and_one_suffix():
    source = Source(["a", "b", "c", "d"], [0, 0, 1, 1], ("x", "y"), "f", "m.csv (train)")
    assert [part.name for part in source.split(0.5, seed=0)] == ["m.csv (train)", "m.csv (validation)"]
