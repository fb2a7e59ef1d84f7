"""The section [tokenizer]."""

import pytest

from minillm.tokenizer.config import TokenizerConfig


@pytest.mark.parametrize(
    "changed",
    [
        {"vocab_size": 0},
        {"threads": 0},
        {"max_training_bytes": 0},
        {"vocab_size": 99_999_999_999},
        {"threads": 1025},
        {"character_coverage": 0.9},
        {"character_coverage": 1.1},
    ],
    ids=str,
)
def test_out_of_range(changed):
    """A setting that means nothing is named."""
    with pytest.raises(ValueError, match=next(iter(changed))):
        TokenizerConfig(**changed)
