"""One corpus for the tests of this folder: Python's own prose."""

import pytest
from ralign.recipes.real.corpus import Corpus, build_corpus


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return build_corpus(packages=())
