"""The process that the commands of a test are copies of."""

import pytest


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """`Forks` for the whole session."""
    for package in ("transformers", "soundfile"):
        pytest.importorskip(package)
    from forks import Forks

    with Forks(tmp_path_factory.mktemp("forks")) as found:
        yield found
