"""Spaces: their files, invalid models, and the results of their app against a plain softmax and NumPy."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import SpaceCard
from packaging.version import Version
from PIL import Image

from hf_deit import explain
from hf_deit.cli import main
from hf_deit.errors import PublishError
from hf_deit.hub.space import TEMPLATE, make_space
from hf_deit.models import attention_maps
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.models.loading import load_model
from tests.helpers import tiny

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


def save_model(folder, two_heads, **changes):
    model = tiny.student(two_heads, names=NAMES, **changes)
    with torch.no_grad():  # the heads must differ enough for the tests to notice a wrong head
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    model.save_pretrained(folder)
    DeiTImageProcessor.for_image_size(changes.get("image_size", tiny.SIZE)).save_pretrained(folder)
    return folder


def imported(path):
    if Version(transformers.__version__) < Version("5.18") and importlib.util.find_spec("torchvision") is None:
        pytest.skip(
            "a Space requires transformers 5.18 (requirements.txt): 5.17 has no AutoImageProcessor without torchvision"
        )
    spec = importlib.util.spec_from_file_location(f"app_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as `python app.py` does
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        copied = sys.modules.pop("attention_maps")
    assert copied.__file__ == str(path.parent / "attention_maps.py")
    return module


@pytest.fixture(scope="module", params=[True, False], ids=["two heads", "one head"])
def space(request, tmp_path_factory):
    """Return the folder of a model with the other files of a run, its Space, and the app of that Space."""
    folder = save_model(tmp_path_factory.mktemp("run") / "insects", request.param)
    for name in ("optimizer.pt", "training_args.bin", "recipe.yaml", "results.json", "README.md"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("mine")
    out = folder.parent / "space"
    assert main(["space", str(folder), str(out), "--license", "mit", "--title", 'Six "insects"']) == 0
    return folder, out, imported(out / "app.py")


def as_file(image, folder):
    image.save(folder / "photo.png")
    return folder / "photo.png"


def photo(seed=0):
    return Image.fromarray(tiny.pixels_of(1, seed)[0])


def test_only_the_files_of_a_local_model_that_the_app_loads_are_copied(space):
    folder, out, _ = space
    files = sorted(
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    model = ["model/config.json", "model/model.safetensors", "model/preprocessor_config.json"]
    assert files == ["README.md", "app.py", "attention_maps.py", *model, "requirements.txt"]
    assert (out / "attention_maps.py").read_bytes() == Path(attention_maps.__file__).read_bytes()
    assert (out / "model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_yaml_header_has_the_fields_of_the_hub(space):
    _, out, app = space
    data = SpaceCard.load(out / "README.md", ignore_metadata_errors=False).data
    assert (data.title, data.sdk, data.app_file, data.license) == ('Six "insects"', "gradio", "app.py", "mit")
    assert data.models is None and data.get("sdk_version") and app.TITLE == 'Six "insects"'


def test_the_probabilities_of_every_head_are_the_softmax_of_its_logits(space):
    folder, _, app = space
    model, processor = app.load()
    predictions, *_ = app.predict(model, processor, photo())
    pixels = DeiTImageProcessor.from_pretrained(folder)(photo(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = load_model(str(folder)).eval()(pixel_values=pixels)
    logits = [output.logits]
    if "cls_logits" in output:
        logits += [output.cls_logits, output.distillation_logits]
    assert len(predictions) == len(app.head_names(model)) == len(logits)
    for prediction, head in zip(predictions, logits, strict=True):
        exponents = np.exp(head[0].numpy().astype(np.float64))
        probabilities = dict(zip(NAMES, exponents / exponents.sum(), strict=True))
        assert list(prediction) == sorted(probabilities, key=probabilities.get, reverse=True)[:5]
        assert prediction == pytest.approx({name: probabilities[name] for name in prediction}, abs=1e-5)


@pytest.mark.parametrize("way", attention_maps.METHODS)
def test_every_token_has_the_map_of_the_package_and_the_image_is_the_one_the_model_sees(space, way):
    folder, _, app = space
    model, processor = app.load()
    _, maps, seen, label = app.predict(model, processor, photo(), way)
    assert len(maps) == len(app.token_names(model)) == (2 if model.config.model_type == "deit" else 1)
    found = explain(folder, [as_file(photo(), folder.parent)], method=way)[0]
    expected = getattr(found, way)
    assert np.allclose(maps, expected[0] if way == "relevance" else expected, atol=1e-5)
    assert NAMES[label] == found.prediction and np.array_equal(np.asarray(seen), found.pixels)


def test_the_relevance_of_a_chosen_class_is_shown(space):
    folder, _, app = space
    model, processor = app.load()
    _, maps, _, label = app.predict(model, processor, photo(), label=5)
    expected = explain(folder, [as_file(photo(), folder.parent)], classes="fox")[0].relevance[0]
    assert label == 5 and np.allclose(maps, expected, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}],
)
def test_the_image_that_the_model_sees_is_shown_whatever_the_processor_does(fields):
    processor = DeiTImageProcessor.for_image_size(24, 1.0, **fields)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    seen = attention_maps.seen_image(pixels, *attention_maps.black_and_white(processor, 24, 24))
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(image)).max() <= 1


def test_the_app_does_not_import_this_package_and_imports_gradio_only_to_build_the_page():
    tree = ast.parse((TEMPLATE / "app.py").read_text())
    packages = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert packages - set(sys.stdlib_module_names) == {"numpy", "torch", "PIL", "transformers", "attention_maps"}


def test_a_model_of_oblong_images_has_oblong_maps_and_grey_images_are_converted_to_rgb(tmp_path):
    folder = save_model(tmp_path / "oblong", True, image_size=(16, 32))
    make_space(str(folder), tmp_path / "space")
    app = imported(tmp_path / "space" / "app.py")
    model, processor = app.load()
    predictions, maps, seen, _ = app.predict(model, processor, photo().convert("L"))
    assert maps.shape == (2, 2, 4) and seen.size == (32, 16)
    assert len(predictions) == 3


def test_the_map_of_a_model_with_oblong_patches_has_their_rows_and_columns(tmp_path):
    folder = save_model(tmp_path / "patches", False, image_size=(16, 32), patch_size=(8, 16))
    make_space(str(folder), tmp_path / "space")
    app = imported(tmp_path / "space" / "app.py")
    model, processor = app.load()
    _, maps, *_ = app.predict(model, processor, photo())
    assert maps.shape == (1, 2, 2)


def test_two_classes_with_the_same_name_are_both_shown(space):
    _, _, app = space
    model, processor = app.load()
    model.config.id2label = dict(enumerate(("ant", "bee", "crane", "dog", "crane", "fox")))
    predictions, *_ = app.predict(model, processor, photo())
    assert app.class_names(model) == ["ant", "bee", "crane (2)", "dog", "crane (4)", "fox"]
    assert len(predictions[0]) == 5 and {"crane (2)", "crane (4)"} & set(predictions[0])


def test_a_model_on_the_hub_is_named_in_the_app_and_not_copied(tmp_path):
    files = make_space("deit-tiny-distilled", tmp_path / "space")
    assert files == ["README.md", "app.py", "attention_maps.py", "requirements.txt"]
    data = SpaceCard.load(tmp_path / "space" / "README.md").data
    name = "facebook/deit-tiny-distilled-patch16-224"
    assert (data.models, data.license, data.title) == ([name], "unknown", name.split("/")[1])
    assert f'MODEL = "{name}"' in (tmp_path / "space" / "app.py").read_text()


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert main(["space", "deit-tiny", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(PublishError, match=re.escape(str(tmp_path / "notes"))):
        make_space("deit-tiny", tmp_path / "notes")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), r"preprocessor_config\.json"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "swin"})), "'swin'"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "vit", "num_channels": 1})),
            "num_channels=1",
        ),
    ],
)
def test_a_folder_without_a_suitable_model_is_refused_and_nothing_is_written(tmp_path, spoil, named):
    folder = save_model(tmp_path / "model", True)
    spoil(folder)
    with pytest.raises(PublishError, match=named):
        make_space(str(folder), tmp_path / "space")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["no_such_folder", "./missing/folder", "a/b/c", "two words/x"])
def test_a_model_that_is_neither_a_folder_nor_a_name_on_the_hub_is_refused(tmp_path, name):
    with pytest.raises(PublishError, match=re.escape(repr(name))):
        make_space(name, tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_the_page_shows_every_head_and_every_map(space):
    pytest.importorskip("gradio", reason="gradio is not installed, so the page cannot be built; its content is tested")
    _, _, app = space
    model, processor = app.load()
    shown = [block.label for block in app.build_demo(model, processor).blocks.values() if getattr(block, "label", None)]
    for name in (*app.head_names(model), *app.token_names(model), "What the model sees"):
        assert name in shown
