"""Names on the Hub: paths are no names, and a machine without a network answers at once."""

import socket
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from hf_deit.data.loading import load_splits
from hf_deit.errors import DataError, UserError
from hf_deit.hub_access import check_hub_name, looks_like_path
from hf_deit.models.loading import load_config


@pytest.mark.parametrize("name", ["/data", "./data", "../data", "~/data", "a/b/c", "my data", "data.csv", "a/", "a\\b"])
def test_a_path_is_no_name_on_the_hub(name):
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["mnist", "uoft-cs/cifar10", "timm/vit_tiny_patch16_224.augreg_in21k", "a/b-1.5"])
def test_names_on_the_hub_are_no_paths(name):
    assert not looks_like_path(name)


def test_without_a_network_a_missing_name_is_refused_at_once(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.monotonic()
    with pytest.raises(DataError, match="nobody/no-such-data"):
        load_splits("nobody/no-such-data")
    with pytest.raises(UserError, match="nobody/no-such-model"):
        load_config("nobody/no-such-model")
    assert time.monotonic() - start < 10  # datasets and transformers would wait for 25 s each
    assert constants.HF_HUB_OFFLINE is False


def test_a_repository_that_the_hub_does_not_have_is_refused(monkeypatch):
    def missing(*_, **__):
        raise huggingface_hub.errors.RepositoryNotFoundError("404", response=Response())

    class Response:
        headers = {}
        request = None
        status_code = 404

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", missing)
    with pytest.raises(DataError, match="nobody/none"):
        check_hub_name("nobody/none", "dataset", None, DataError)
