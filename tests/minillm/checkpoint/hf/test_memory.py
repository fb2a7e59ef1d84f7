"""A checkpoint is copied once, straight from the mapped file into the parameters."""

from __future__ import annotations

import pytest

from benchmarks.loading import CONTENDERS, measure, page, save_gpt2

OURS = [name for name in CONTENDERS if name.startswith("minillm")]
HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-02T00:00"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2 small, 124 million parameters, as a Hugging Face folder and as a run."""
    place = tmp_path_factory.mktemp("gpt2")
    save_gpt2(place)
    return place


@pytest.mark.parametrize("name", OURS)
def test_loading_takes_no_more_memory_than_the_weights(gpt2, name) -> None:
    """Anonymous memory at its highest, above what stood before; GPT-2 is the family whose weights are transposed."""
    load = measure(name, gpt2)
    assert load.weights == 4 * 124_439_808
    assert 0.99 * load.weights < load.memory < 1.2 * load.weights
    row = next(line for line in page([load], HEAD).splitlines() if line.startswith(f"| {name}"))
    assert row == f"| {name} | {load.seconds:.2f} | {load.memory / load.weights:.2f} | 1 |"
