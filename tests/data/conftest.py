"""What tests of tables and streams share."""

import pytest

from tests.helpers.images import picture


@pytest.fixture
def photos(tmp_path):
    """Ten pictures in a folder beside the table."""
    (tmp_path / "photos").mkdir()
    for number in range(10):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path
