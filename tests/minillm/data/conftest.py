"""Token stores from lists of documents."""

import numpy as np
import pytest

from minillm.data.shards import TokenStore


@pytest.fixture(scope="session")
def store_of():
    """Return a function: documents as lists of tokens -> a TokenStore."""

    def make(documents):
        tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
        bounds = np.cumsum([0, *map(len, documents)])
        return TokenStore(tokens=tokens, bounds=bounds, num_bytes=len(tokens))

    return make
