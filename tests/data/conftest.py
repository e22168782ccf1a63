"""Fixtures for the tests of tables and streams."""

import pytest

from tests.helpers.images import picture


@pytest.fixture
def photos(tmp_path):
    """Folder with ten pictures in its subfolder `photos`."""
    (tmp_path / "photos").mkdir()
    for number in range(10):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path
