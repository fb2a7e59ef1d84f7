"""One small tokenizer of each kind, trained on the project's own samples."""

from pathlib import Path

import pytest

from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

KINDS = ("bpe", "unigram", "byte", "char")


@pytest.fixture(scope="session")
def samples():
    """The texts of data/samples."""
    return [path.read_text() for path in sorted((Path(__file__).parents[3] / "data/samples").glob("*.txt"))]


@pytest.fixture(scope="session")
def trained(samples):
    """A tokenizer by its kind."""
    return {kind: train_tokenizer(TokenizerConfig(kind=kind, vocab_size=600), samples) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request, trained):
    """Each kind in turn."""
    return trained[request.param]
