"""A setting of the objective that means nothing says so in one line."""

from __future__ import annotations

from typing import Any

import pytest

from minillm.config import build
from minillm.errors import InputError
from minillm.objectives.config import ObjectiveConfig


@pytest.mark.parametrize(
    "choices, text",
    [
        ({"rate": 0.0}, "objective.rate must be above 0 and at most 1, got 0.0"),
        ({"rate": 1.5}, "objective.rate must be above 0 and at most 1, got 1.5"),
        ({"rate": float("nan")}, "objective.rate must be above 0 and at most 1, got nan"),
        ({"mask_share": 0.8, "random_share": 0.3}, "objective.mask_share (0.8) and random_share (0.3) must not be"),
        ({"mask_share": -0.1}, "objective.mask_share (-0.1) and random_share (0.1) must not be negative"),
        ({"label_smoothing": 1.0}, "objective.label_smoothing must be in [0, 1), got 1.0"),
        ({"z_loss": -1.0}, "objective.z_loss must be 0 or above, got -1.0"),
        ({"z_loss": float("inf")}, "objective.z_loss must be 0 or above, got inf"),
        ({"masking": "words"}, "objective.masking takes one of token, whole_word, span, got 'words'"),
        ({"mask_rate": 0.2}, "unknown key objective.mask_rate in the configuration; did you mean"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(choices: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        build(ObjectiveConfig, choices, prefix="objective.")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_that_sum_to_one_but_for_rounding_are_fine() -> None:
    ObjectiveConfig(mask_share=0.7, random_share=0.1 + 0.2)
