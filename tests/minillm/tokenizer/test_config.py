"""The section [tokenizer]."""

import pytest

from minillm.tokenizer.config import TokenizerConfig


@pytest.mark.parametrize(
    "changed",
    [
        {"vocab_size": 0},
        {"threads": 0},
        {"max_training_bytes": 0},
        {"character_coverage": 0.0},
        {"character_coverage": 1.1},
    ],
    ids=str,
)
def test_out_of_range(changed):
    """A setting that means nothing is named."""
    with pytest.raises(ValueError, match=next(iter(changed))):
        TokenizerConfig(**changed)
