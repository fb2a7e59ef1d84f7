"""The report, made from a stored result: what it says, and what it does not say of a row that is wrong."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import compare, figures, report

STORED = Path(__file__).with_name("small_result.json")


@pytest.fixture
def result():
    return json.loads(STORED.read_text(encoding="utf-8"))


def line_of(page, heading, provider):
    """Return the cells of one provider below one heading."""
    lines = page.split(f"### {heading}\n")[1].split("###")[0].splitlines()
    (line,) = [x for x in lines if x.startswith(f"| {provider} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_and_plots_are_made(result, tmp_path):
    report.write_json(result, tmp_path / "r.json")
    report.write_page(result, tmp_path, "r")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r-roofline.png", "r-speedup.png", "r.json", "r.md"]
    page = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert page.startswith("# AMD EPYC")
    for said in ("## Correctness", "## Ceilings", "## Ops", "## What the compilers say", "![r-roofline.png]"):
        assert said in page
    assert "- gelu, tiny: no time left in the budget" in page
    assert "test_relu.py::test_x[one]" in page


def test_wrong_rows_have_no_speedup(result):
    page = report.page(result)
    wrong = line_of(page, "relu, tiny, forward", "F.relu")
    assert wrong[5] == "" and "**wrong**" in wrong[7] and "(7.50)" in wrong[4]
    assert line_of(page, "relu, tiny, forward+backward", "F.relu")[5] != ""
    assert line_of(page, "attention_full, tiny, forward", "SDPA math")[5] == ""  # not finite
    flash = line_of(page, "attention_full, tiny, forward", "SDPA flash")
    assert flash[5] != "" and flash[6] == "4 MB"
    assert "bits differ on repeat" in flash[7] and "not captured" in flash[7]


def test_nothing_is_fast_beside_a_wrong_baseline(result):
    rows = report.rows_of(result)
    for row in rows:
        if row["provider"] == "torch":
            row["status"] = "wrong"
    assert all(figures.speedup(row, rows) is None for row in rows)


def test_share_of_the_ceiling_is_that_of_the_roofline():
    row = {"bytes": 100, "flops": 600, "unit": "matrix", "dtype": "bf16", "seconds": 12.0}
    ceilings = {"copy": {"rate": 25.0}, "matrix bf16": {"rate": 100.0}, "matrix fp32": {"rate": 1.0}}
    assert figures.bound(row, ceilings) == ("matrix bf16", 6.0)
    assert figures.share(row, ceilings) == 0.5
    assert figures.bound({**row, "unit": "vector"}, ceilings) == ("copy", 4.0)
    assert figures.share(row, {}) is None


def test_status_tells_of_failures(result):
    assert report.status(result) == 1  # a test failed
    result["sections"]["correctness"]["files"]["test_relu.py"]["failed"] = 0
    assert report.status(result) == 0  # a peer is wrong, which is not this project's defect
    for row in report.rows_of(result):
        row["status"] = "wrong" if row["provider"] == "torch" else row["status"]
    assert report.status(result) == 1


def test_comparison_tells_a_change_from_the_spread(result):
    later = copy.deepcopy(result)
    rows = [r for r in report.rows_of(later) if r["op"] == "relu" and r["provider"] == "torch"]
    for name in ("seconds", "low", "high"):
        rows[0][name] *= 2
    rows[0]["low"] = max(rows[0]["low"], 1.01 * rows[0]["high"] / 2)
    text = list(compare.compared(result, later))
    verdicts = [x for x in text if "| relu |" in x and "| torch |" in x]
    assert "slower" in verdicts[0] and "2.000" in verdicts[0]
    assert "within the spread" in verdicts[1]
    assert any("ceiling copy: +0.0 %" in x for x in text)


def test_comparison_of_devices_that_differ_says_so(result):
    other = copy.deepcopy(result)
    other["header"]["device"] = "NVIDIA H200"
    assert any("devices differ" in x for x in compare.compared(result, other))
    assert compare.main(STORED, STORED) == 0
