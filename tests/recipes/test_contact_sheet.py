"""Contact sheets: their pixels, what is refused before the data are read, and a file that is always complete."""

import os

import numpy as np
import pytest
from PIL import Image

from hf_deit.cli import main
from hf_deit.data.augmentation import Augmentation
from hf_deit.data.loading import load_splits
from hf_deit.data.sampling import ViewKey, view_generator
from hf_deit.data.sources import Source
from hf_deit.data.tables import Columns
from hf_deit.errors import UserError
from hf_deit.recipes import contact_sheet
from hf_deit.recipes.contact_sheet import GAP, draw_sheet, save_image, show_augmentations
from hf_deit.recipes.reading import load_recipe


def picture(seed, height=30, width=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of two classes with six pictures each, of which one per class is split off for validation."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for image in range(6):
            picture(10 * number + image).save(root / name / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def source(folder):
    return load_splits(str(folder))[0]


def recipe_for(folder, *fields):
    return load_recipe(None, ["--data", str(folder), "--image_size", "16", *map(str, fields)])


def cell(sheet, row, column, height, width):
    upper, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
    return np.asarray(sheet)[upper : upper + height, left : left + width]


def test_each_row_shows_the_views_of_the_first_epochs_of_a_training(source):
    augmentation = Augmentation((20, 24), auto_augment="trivialaugment", erasing_probability=0.5)
    sheet = draw_sheet(source, [1, 7, 4], augmentation, seed=3, views=4)
    assert sheet.size == (GAP + 5 * (24 + GAP), GAP + 3 * (20 + GAP))
    for row, index in enumerate((1, 7, 4)):
        for epoch in range(4):
            key = ViewKey(epoch, index, 0, 12345)  # the position in the epoch does not matter
            view = augmentation(source.image(index), view_generator(3, key))
            np.testing.assert_array_equal(cell(sheet, row, 1 + epoch, 20, 24), view)


def test_the_first_column_shows_the_original_image_fitted_into_its_cell(source):
    sheet = draw_sheet(source, [2], Augmentation((30, 40)), seed=0, views=1)
    np.testing.assert_array_equal(cell(sheet, 0, 0, 30, 40), source.image(2))  # the image has the size of the cell
    sheet = draw_sheet(source, [2], Augmentation((20, 20)), seed=0, views=1)
    fitted = np.full((20, 20, 3), 255, dtype=np.uint8)
    fitted[2:17] = source.image(2).resize(
        (20, 15), Image.Resampling.BICUBIC
    )  # 40 × 30 pixels in a cell of 20 × 20: white above and below
    np.testing.assert_array_equal(cell(sheet, 0, 0, 20, 20), fitted)


def test_between_the_cells_the_sheet_is_white(source):
    sheet = np.array(draw_sheet(source, [0, 1], Augmentation((16, 16)), seed=0, views=2))
    for row in range(2):
        for column in range(3):
            upper, left = GAP + row * (16 + GAP), GAP + column * (16 + GAP)
            assert (sheet[upper : upper + 16, left : left + 16] != 255).any()
            sheet[upper : upper + 16, left : left + 16] = 255
    assert (sheet == 255).all()


def test_the_rows_are_spread_evenly_over_the_training_images(folder, source, tmp_path):
    assert len(source) == 10
    assert show_augmentations(recipe_for(folder), tmp_path / "a.png", images=5, views=1) == [0, 2, 4, 6, 8]
    assert show_augmentations(recipe_for(folder), tmp_path / "b.png", images=99, views=1) == list(range(10))


def test_the_sheet_uses_the_fields_and_the_seed_of_the_recipe(folder, source, tmp_path):
    fields = ("--seed", 5, "--view_size", 12, 18, "--auto_augment", "three_augment", "--color_jitter", 0.3)
    show_augmentations(recipe_for(folder, *fields), tmp_path / "sheet.png", images=3, views=2)
    split = load_splits(str(folder), seed=5)[0]
    augmentation = Augmentation((12, 18), auto_augment="three_augment", color_jitter=0.3)
    expected = draw_sheet(split, [0, 3, 6], augmentation, seed=5, views=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        np.testing.assert_array_equal(sheet, expected)


@pytest.mark.parametrize(
    ("fields", "side"),
    [((), 224), (("--image_size", "32"), 32), (("--image_size", "32", "--view_size", "48"), 48)],
)
def test_without_a_view_size_the_views_have_the_image_size_of_the_student(folder, tmp_path, fields, side):
    recipe = load_recipe(None, ["--data", str(folder), *fields])
    show_augmentations(recipe, tmp_path / "sheet.png", images=1, views=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * side + 3 * GAP, side + 2 * GAP)


def test_the_default_size_is_that_of_the_weights(folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit", "image_size": 40, "patch_size": 8}')
    recipe = load_recipe(None, ["--data", str(folder), "--model", str(tmp_path / "model")])
    show_augmentations(recipe, tmp_path / "sheet.png", images=1, views=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 40 + 3 * GAP, 40 + 2 * GAP)


# The file


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "sheet.png"
    save_image(picture(0), target)
    before = target.read_bytes()

    def half(self, path, *unused, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(UserError, match=r"sheet\.png.*no space left"):
        save_image(picture(1), target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    target, seen = tmp_path / "sheet.png", []
    target.write_bytes(b"old")
    replace = os.replace

    def watched(old, new):
        seen.append((target.read_bytes(), Image.open(old).size))
        replace(old, new)

    monkeypatch.setattr(contact_sheet.os, "replace", watched)
    save_image(picture(1), target)
    assert seen == [(b"old", (40, 30))]  # the new file is complete while the old one exists
    with Image.open(target) as written:
        np.testing.assert_array_equal(written, picture(1))


# Refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/where/sheet.png", r"no/where/sheet\.png.*does not exist"),
        ("sheet", r"sheet .*\.png"),
        ("sheet.txt", r"\.txt .*\.png"),
        ("sheet.xyz", r"\.xyz .*\.png"),
        (".", "folder"),
    ],
)
def test_an_invalid_file_is_refused_before_the_data_are_read(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        show_augmentations(recipe_for("no/such/data"), tmp_path / name)


@pytest.mark.parametrize("field", ["images", "views"])
def test_fewer_than_one_row_or_column_is_refused(folder, tmp_path, field):
    with pytest.raises(UserError, match=f"{field}=0"):
        show_augmentations(recipe_for(folder), tmp_path / "sheet.png", **{field: 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("--auto_augment", "foo"), "auto_augment='foo'.*three_augment"),
        (("--crop_scale", 0.5), "crop_scale=.*two numbers"),
        (("--view_size", 0), "view_size"),
    ],
)
def test_an_invalid_field_is_refused_with_its_name(folder, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        show_augmentations(recipe_for(folder, *fields), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_weights_are_not_read_if_the_recipe_states_a_size(folder, tmp_path):
    recipe = recipe_for(folder, "--model", "no/where", "--image_size", 8)
    show_augmentations(recipe, tmp_path / "sheet.png", images=1, views=1)
    assert (tmp_path / "sheet.png").is_file()


def test_missing_weights_are_refused(folder, tmp_path):
    recipe = load_recipe(None, ["--data", str(folder), "--model", "no/where"])
    with pytest.raises(UserError, match="no/where"):
        show_augmentations(recipe, tmp_path / "sheet.png")


# The command


def test_the_command_accepts_a_recipe_and_fields_that_override_it(folder, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(
        "view_size: 20\nauto_augment: randaugment\nerasing_probability: 0.5\nseed: 2\n"
    )
    out = tmp_path / "sheet.png"
    command = ["show-augmentations", str(folder), "--out", str(out), "--config", str(tmp_path / "recipe.yaml")]
    assert main([*command, "--images", "2", "--views", "3", "--view_size", "16", "--erasing_probability", "1"]) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed and "0, 5" in printed
    augmentation = Augmentation((16, 16), auto_augment="randaugment", erasing_probability=1.0)
    expected = draw_sheet(load_splits(str(folder), seed=2)[0], [0, 5], augmentation, seed=2, views=3)
    with Image.open(out) as sheet:
        np.testing.assert_array_equal(sheet, expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--foo", "1"], "--foo"),
        (["--erasing_probability", "2"], "erasing_probability=2.0"),
        (["--images", "0"], "images=0"),
        (["--config", "no/where.yaml"], "no/where.yaml"),
    ],
)
def test_the_command_names_what_is_wrong_and_exits_with_code_2(folder, tmp_path, capsys, options, named):
    assert main(["show-augmentations", str(folder), "--out", str(tmp_path / "sheet.png"), *options]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    source = Source([str(tmp_path / "gone.png")], [0], ("cat",), "", "the images")
    with pytest.raises(UserError, match=r"gone\.png"):
        draw_sheet(source, [0], Augmentation((8, 8)), seed=0, views=1)


# The data are read as for a training


def table_of(folder, rows, name="table.csv"):
    (folder / name).write_text("\n".join(["photo,sort,other", *(",".join(map(str, row)) for row in rows)]))
    return folder / name


def test_the_sheet_reads_the_columns_the_recipe_names(tmp_path):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    path = table_of(tmp_path, [(f"{number}.png", "cat;wet" if number % 2 else "dog", "x") for number in range(6)])
    fields = ("--image_column", "photo", "--label_column", "sort")
    split = load_splits(str(path), columns=Columns("photo", ("sort",)), seed=42)[0]
    assert show_augmentations(recipe_for(path, *fields), tmp_path / "a.png", views=1) == list(range(len(split)))
    with Image.open(tmp_path / "a.png") as sheet:
        np.testing.assert_array_equal(sheet, draw_sheet(split, range(len(split)), Augmentation((16, 16)), 42, 1))
    both = load_splits(str(path), columns=Columns("photo", ("sort",), ";"), seed=42)[0]
    show_augmentations(recipe_for(path, *fields, "--label_separator", ";"), tmp_path / "b.png", views=1)
    with Image.open(tmp_path / "b.png") as sheet:
        np.testing.assert_array_equal(sheet, draw_sheet(both, range(len(both)), Augmentation((16, 16)), 42, 1))


def test_an_image_that_cannot_be_decoded_is_replaced_or_raises_as_the_recipe_specifies(tmp_path, caplog):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        (tmp_path / "data" / "validation" / name).mkdir(parents=True)
        for number in range(3):
            picture(number).save(tmp_path / "data" / "train" / name / f"{number}.png")
        picture(9).save(tmp_path / "data" / "validation" / name / "9.png")
    broken = tmp_path / "data" / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    recipe = recipe_for(tmp_path / "data")
    assert show_augmentations(recipe, tmp_path / "sheet.png", images=2, views=1) == [1, 3]
    assert "cat/0.png" in caplog.text
    assert show_augmentations(recipe, tmp_path / "sheet.png", images=99, views=1) == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"cat/0\.png"):
        show_augmentations(recipe_for(tmp_path / "data", "--broken_images", "raise"), tmp_path / "other.png")


@pytest.mark.parametrize("count", [1, 4])
def test_a_sheet_of_one_class_or_of_one_image_can_be_drawn(tmp_path, count):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for number in range(count):
        picture(number).save(tmp_path / "data" / "cat" / f"{number}.png")
    shown = show_augmentations(recipe_for(tmp_path / "data"), tmp_path / "sheet.png", images=9, views=1)
    assert shown == list(range(max(count - 1, 1)))  # one of four is split off for validation


def test_an_image_of_one_row_of_pixels_is_visible_in_its_cell(tmp_path):
    Image.new("RGB", (40_000, 1), (200, 0, 0)).save(tmp_path / "line.png")
    source = Source([str(tmp_path / "line.png")], [0], ("cat",), "", "the images")
    shown = cell(draw_sheet(source, [0], Augmentation((16, 16)), seed=0, views=1), 0, 0, 16, 16)
    assert ((shown == (200, 0, 0)).all(axis=-1).sum(axis=1) == 16).sum() == 1


def test_a_sheet_that_is_too_large_is_refused_with_its_size(source):
    with pytest.raises(UserError, match="×40 pixels.*view_size"):
        draw_sheet(source, [0], Augmentation((32, 32)), seed=0, views=100_000_000)


def test_a_recipe_field_before_data_is_refused_but_an_option_is_not(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "sheet.png")]
    assert main(["show-augmentations", "--view_size", "20", "24", str(folder), *out]) == 2
    message = capsys.readouterr().err
    assert [text for text in ("--view_size", "before DATA", "'20'", "DATA --out FILE") if text not in message] == []
    assert main(["show-augmentations", "--images", "2", *out, "--view_size=20", str(folder), "--flip", "0"]) in (
        0,
        2,
    )
    assert "before DATA" not in capsys.readouterr().err
