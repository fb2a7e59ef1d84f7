"""The page on Muon's steps: both optimisers move the same matrices to the same place, and medians are medians."""

from benchmarks.muon import OURS, THEIRS, Steps, measure, page

HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "date": "2026-01-02T00:00", "commit": "abc"}


def test_both_take_the_same_step():
    """Products of the smallest recipe in bfloat16 differ by its rounding, 2^-8, and no more."""
    ours, theirs = measure("shakespeare-char-small-best", rounds=3)
    assert (ours.name, theirs.name) == (OURS, THEIRS) and len(ours.seconds) == len(theirs.seconds) == 3
    assert ours.matrices == theirs.matrices == 4 * 6  # q, k, v, output, up, down of four layers
    assert ours.difference < 2**-8


def test_the_page_has_medians():
    """Of 1, 2 and 30 ms the median is 2, of 5, 4 and 6 it is 5."""
    made = {"recipe": "a", "matrices": 3, "elements": 1000, "difference": 1e-3}
    measured = [
        Steps(**made, name=OURS, seconds=(0.001, 0.030, 0.002)),
        Steps(**made, name=THEIRS, seconds=(0.005, 0.004, 0.006)),
    ]
    assert "| a | 3 | 1,000 | 2.0 | 5.0 | 1.0e-03 |" in page(measured, HEAD).splitlines()
