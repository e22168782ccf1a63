"""Metadata that the author of a card states: it must have a valid form and contain no path and no token."""

import pytest
from huggingface_hub import SpaceCard

from hf_deit.cli import main
from hf_deit.errors import PublishError
from hf_deit.hub.facts import CardMetadata
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from tests.helpers import tiny

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize("text", ["apache-2.0", "mit", "cc-by-nc-4.0", "other", "unknown", "bigscience-openrail-m"])
def test_identifiers_of_the_hub_are_licences(text):
    assert CardMetadata(license=text).license == text


@pytest.mark.parametrize(
    "text", ["Apache 2.0", "MIT", "", "mit\nmodel-index: x", "/home/me/LICENSE", "-mit", "mit-", TOKEN]
)
def test_an_invalid_licence_identifier_is_refused(text):
    with pytest.raises(PublishError, match="license") as raised:
        CardMetadata(license=text)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("field", ["base_model", "dataset"])
@pytest.mark.parametrize(
    "text", ["/home/me/photos", "./photos", "a/b/c", "C:\\me\\x", "~/x", "two words", "a\nb", f"me/{TOKEN}"]
)
def test_a_path_or_a_token_is_refused_as_a_name_on_the_hub(field, text):
    with pytest.raises(PublishError, match=field) as raised:
        CardMetadata(**{field: text})
    assert TOKEN not in str(raised.value)
    assert CardMetadata(**{field: "facebook/deit-tiny-patch16-224"})


@pytest.mark.parametrize("field", ["data_license", "base_model_license"])
@pytest.mark.parametrize(
    "text", ["see /home/me/LICENSE", "C:\\me\\LICENSE", "../LICENSE", f"CC0 {TOKEN}", "CC0\n1.0", " "]
)
def test_the_text_of_a_licence_must_be_one_line_without_path_and_token(field, text):
    with pytest.raises(PublishError, match=field):
        CardMetadata(**{field: text})
    assert CardMetadata(**{field: "CC BY / CC0 1.0, https://example.org/licence"})


def test_the_commands_refuse_invalid_metadata_before_anything_is_written(tmp_path, capsys):
    folder = tmp_path / "model"
    tiny.student().save_pretrained(folder)
    DeiTImageProcessor.for_image_size((16, 16)).save_pretrained(folder)
    for wrong in (["--license", "My Licence"], ["--dataset", "/home/me/photos"], ["--data_license", TOKEN]):
        assert main(["card", str(folder), *wrong]) == 2
    assert not (folder / "README.md").exists()
    for wrong in (["--license", "My Licence"], ["--title", "two\nlines"], ["--title", TOKEN]):
        assert main(["space", str(folder), str(tmp_path / "space"), *wrong]) == 2
    messages = capsys.readouterr().err
    assert messages.count("license='My Licence'") == 2 and TOKEN not in messages
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert main(["space", str(folder), str(tmp_path / "space"), "--license", "mit"]) == 0
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.license == "mit"
