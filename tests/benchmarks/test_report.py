"""The report, made from a stored result: what it says, and what it does not say of a row that is wrong."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import compare, figures, parts, report

STORED = Path(__file__).with_name("small_result.json")


@pytest.fixture
def result():
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_a_signal_while_a_file_is_written_leaves_nothing_beside_it(monkeypatch, tmp_path):
    def stop(*a):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        report.write_whole(tmp_path / "a.md", "text")
    assert not list(tmp_path.iterdir())


def line_of(page, heading, provider):
    """Return the cells of one provider, or contender, in the first table below one heading."""
    lines = page.split(f"### {heading}\n")[1].split("###")[0].split("The ladder")[0].splitlines()
    (line,) = [x for x in lines if x.startswith(f"| {provider} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_and_plots_are_made(result, tmp_path):
    report.write_json(result, tmp_path, "r")
    report.write_page(result, tmp_path, "r")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.md"]  # while the run goes on
    report.write_page_with_plots(result, tmp_path, "r")
    plots = [f"r-{name}.png" for name in ("ladder", "recipes", "roofline", "scaling", "speedup")]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*plots, "r.json", "r.md"]
    page = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert page.startswith("# AMD EPYC")
    headings = (
        "Correctness",
        "Ceilings",
        "Ops",
        "Training recipes",
        "Scaling",
        "Launch tables",
        "What the compilers say",
    )
    assert [x.removeprefix("## ") for x in page.splitlines() if x.startswith("## ")] == list(headings)
    assert all(f"![{name}]({name})" in page for name in plots)
    assert "41 of 80 tests passed, of each test function the 3 cases" in page
    assert "- gelu, tiny: no time left in the budget" in page
    assert "test_relu.py::test_x[one]" in page


def test_page_says_where_the_time_of_a_step_goes(result):
    kernels = [[f"kernel_{i}", 2, 0.001 * (30 - i)] for i in range(30)]
    rows = parts.rows_of(result, "recipes")
    assert "torch.profiler" not in report.page(result)
    result["sections"]["recipes"]["rows"] = [{**rows[0], "kernels": kernels}, *rows[1:]]
    lines = report.page(result).split("from torch.profiler: 465 ms in 30 kinds of kernel.")[1].splitlines()
    named = [line for line in lines if line.startswith("| `")]
    assert len(named) == parts.MOST_KERNELS + 1
    assert named[0] == "| `kernel_0` | 2 | 30 ms | 6 % |" and named[-1] == "| `all others` | 20 | 55 ms | 12 % |"
    result["sections"]["recipes"]["rows"][0]["idle"] = 0.002
    assert "30 kinds of kernel, and 2 ms in which the GPU computes nothing." in report.page(result)


def test_wrong_rows_have_no_speedup(result):
    page = report.page(result)
    wrong = line_of(page, "relu, tiny, forward", "F.relu")
    assert wrong[6] == "" and "**wrong**" in wrong[8] and "(7.50)" in wrong[5]
    assert line_of(page, "relu, tiny, forward+backward", "F.relu")[6] != ""
    assert line_of(page, "attention_full, tiny, forward", "SDPA math")[6] == ""  # not finite
    flash = line_of(page, "attention_full, tiny, forward", "SDPA flash")
    assert flash[6] != "" and flash[7] == "4 MB"
    assert "bits differ on repeat" in flash[8] and "not captured" in flash[8]


def test_a_provider_stands_beside_a_copy_of_as_many_bytes(result):
    rows = parts.rows_of(result, "ops")
    relu = next(r for r in rows if r["provider"] == "torch" and r["op"] == "relu" and r["direction"] == "forward")
    beside = {**relu, "provider": "copy", "seconds": relu["seconds"] * 0.75, "error_share": None}
    result["sections"]["ops"]["rows"] = [*rows, beside]
    page = report.page(result)
    assert line_of(page, "relu, tiny, forward", "torch")[4] == "75 %"
    copied = line_of(page, "relu, tiny, forward", "copy")
    assert copied[4] == "100 %" and copied[5] == "not checked" and copied[6] == ""
    assert line_of(page, "relu, tiny, forward+backward", "torch")[4] == ""
    beside["method"] = "another"
    assert line_of(report.page(result), "relu, tiny, forward", "torch")[4] == ""


def test_page_is_made_of_what_there_is(result):
    """A run may be stopped anywhere: a section that found nothing costs its own part of the page."""
    result["sections"]["recipes"] = {"defect": "ValueError: no"}
    page = report.page(result)
    assert "Nothing was found: no 'rows'" in page and "A defect ended this section: ValueError: no." in page
    assert "## Launch tables" in page


def test_recipes_stand_beside_the_fastest_right_peer(result):
    page = report.page(result)
    ours = line_of(page, "tiny", "minillm")
    assert ours[1] == "38,400 ± 2.5 %"  # 768 tokens in 20 ms
    assert ours[7] == "2.50"  # the float32 peer's step takes 50 ms; the faster peer is wrong
    assert ours[3] == "" and ours[4] == f"{100 * 4e9 / 0.02 / 94984532905:.0f} %"  # MFU of no data sheet, of this run's
    wrong = line_of(page, "tiny", "transformers, bfloat16, GPT2LMHeadModel")
    assert wrong[7] == "" and "**wrong**: a loss of 8.4" in wrong[9]
    filed = line_of(page, "tiny", "minillm, as in the file")
    assert filed[7] == "" and filed[9] == "fp32, B=12, 4 micro-batches"
    assert line_of(page, "tiny", "minillm, compiled")[1] == "not run"


def test_mfu_is_printed_against_both_peaks(result):
    result["sections"]["recipes"]["data_sheet"] = 1e12
    result["sections"]["ceilings"]["of"]["matrix bf16"] = {"rate": 8e11, "what": ""}
    (row, *_) = parts.rows_of(result, "recipes")
    row["dtype"] = "bf16"
    ours = line_of(report.page(result), "tiny", "minillm")
    assert (ours[3], ours[4]) == ("20 %", "25 %")  # 4 GFLOP in 20 ms


def test_ladder_has_its_prediction_beside_the_outcome(result):
    rungs = report.page(result).split("| rung |")[1].split("\n\n")[0].splitlines()
    naive, norm, ours = ([cell.strip() for cell in line.strip("|").split("|")] for line in rungs[2:])
    copy, products = (result["sections"]["ceilings"]["of"][n]["rate"] for n in ("copy", "matrix fp32"))
    steps = [1e3 * (b / copy + 3.9e9 / products) for b in (3e8, 1.3e8, 3e7)]
    assert [rung[1] for rung in (naive, norm, ours)] == [f"{ms:.4g} ms" for ms in steps]
    assert (naive[2], norm[2]) == ("", f"{steps[0] / steps[1]:.2f} times")
    assert (norm[4], ours[4]) == ("1.50 times", "2.00 times")


def remarks_of(result):
    lines = report.page(result).split("| rung |")[1].split("\n\n")[0].splitlines()[2:]
    return [line.strip("|").split("|")[-1].strip() for line in lines]


def test_a_rung_says_that_its_rows_at_once_are_not_those_of_the_rung_before(result):
    """What more rows at once gain is not the named op's; without such a change nothing is said."""
    assert not any("rows" in remark for remark in remarks_of(result))
    rungs = {r["contender"]: r for r in parts.rows_of(result, "recipes")}
    rungs["naive"]["micro_batches"] = rungs["+ norm"]["micro_batches"] = 4
    rungs["minillm"]["micro_batches"] = 1
    assert remarks_of(result) == ["", "", "12 rows at once, 3 before"]
    del rungs["+ norm"]["sizes"], rungs["+ norm"]["seconds"]  # its process ended before it said anything
    rungs["+ norm"]["reason"] = "killed"
    assert remarks_of(result) == ["", "killed", "12 rows at once, 3 before"]


def test_suggested_entries_are_those_of_the_table_with_all_changes(result):
    code = report.page(result).split("```python")[1].split("```")[0]
    assert code.splitlines()[1:] == [
        "# kernels/minillm_kernels/attention/configs.py",
        '"forward": _row((128, 128, 8, 3), (128, 64, 4, 3)),  # sm_90, forward',
    ]


def test_scaling_leaves_out_what_is_wrong(result):
    text = report.page(result).split("### attention_causal over S, forward")[1]
    assert (
        "| S=64 | 16.78 GFLOP/s (18 %) | 33.55 GFLOP/s (35 %) |" in text
    )  # 2 products of 2 * 32 * 4 * 64 * 64 * 32 / 2
    (long,) = [x for x in text.splitlines() if x.startswith("| S=128")]
    assert long.strip("|").split("|")[2].strip() == ""


def test_nothing_is_fast_beside_a_wrong_baseline(result):
    rows = parts.rows_of(result)
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


def test_speedup_of_one_visit_is_over_the_first_visit_of_the_baseline():
    """Later visits see the machine at another speed: here at half of it."""
    case = {"op": "relu", "shape": "tiny", "dtype": "fp32", "direction": "forward", "status": "measured"}
    case |= {"error_share": 0.1}
    base = {**case, "provider": "torch", "seconds": 4.0, "visits": [2.0, 4.0, 4.0]}
    again = {**case, "provider": "naive", "seconds": 8.0, "visits": [4.0, 8.0, 8.0]}
    once = {**case, "provider": "torch.compile", "seconds": 1.0}
    assert [figures.speedup(row, [base, again, once]) for row in (base, again, once)] == [1.0, 0.5, 2.0]


def test_who_was_timed_in_another_way_has_no_speedup():
    """A graph has no launches: beside calls that have them it would be fast whatever it computes."""
    case = {"op": "relu", "shape": "tiny", "dtype": "bf16", "direction": "forward", "status": "measured"}
    case |= {"error_share": 0.1, "method": "graph"}
    base = {**case, "provider": "torch", "seconds": 4.0}
    alike, other = {**case, "provider": "fused", "seconds": 2.0}, {**case, "provider": "Liger", "seconds": 2.0}
    other["method"] = "events"
    assert [figures.speedup(row, [base, alike, other]) for row in (alike, other)] == [2.0, None]


def test_a_peer_is_one_of_the_same_recipe():
    ours = {"recipe": "a", "peer": "", "status": "measured", "as_filed": False, "tokens": 10, "seconds": 1.0}
    peer, stranger = {**ours, "peer": "GPT2", "seconds": 2.0}, {**ours, "peer": "Bert", "recipe": "b", "seconds": 0.1}
    assert figures.beside_peer(ours, [ours, stranger, peer]) == 2.0
    assert figures.beside_peer(ours, [ours, stranger]) is None


def test_spread_is_the_distance_of_the_quartiles_around_their_median():
    assert figures.spread({"seconds": 2.0, "low": 1.9, "high": 2.4}) == pytest.approx(0.25)


def test_status_tells_of_failures(result):
    assert report.status(result) == 1  # a test failed
    result["sections"]["correctness"]["files"]["test_relu.py"]["failed"] = 0
    assert report.status(result) == 0  # peers are wrong, which is not this project's defect
    result["sections"]["recipes"]["rows"][0]["status"] = "wrong"
    assert report.status(result) == 1
    result["sections"]["recipes"]["rows"][0]["status"] = "measured"
    result["sections"]["scaling"]["defect"] = "ValueError: no"
    assert report.status(result) == 1
    del result["sections"]["scaling"]["defect"]
    for row in parts.rows_of(result):
        row["status"] = "wrong" if row["provider"] == "torch" else row["status"]
    assert report.status(result) == 1


@pytest.mark.parametrize("name", ["repeats", "finite"])
def test_a_kernel_that_differs_on_repeat_or_is_not_finite_is_a_failure(result, name):
    """Of this project's kernels; what PyTorch's own do is not its defect."""
    result["sections"]["correctness"]["files"]["test_relu.py"]["failed"] = 0
    row = next(r for r in parts.rows_of(result) if r["provider"] == "torch" and r["status"] == "measured")
    row[name] = False
    assert report.status(result) == 0
    row["provider"] = "fused"
    assert report.status(result) == 1


def test_comparison_tells_a_change_from_the_spread(result):
    later = copy.deepcopy(result)
    rows = [r for r in parts.rows_of(later) if r["op"] == "relu" and r["provider"] == "torch"]
    for name in ("seconds", "low", "high"):
        rows[0][name] *= 2
    rows[0]["low"] = max(rows[0]["low"], 1.01 * rows[0]["high"] / 2)
    text = list(compare.compared(result, later))
    verdicts = [x for x in text if "| relu |" in x and "| torch |" in x]
    assert "slower" in verdicts[0] and "2.000" in verdicts[0]
    assert "within the spread" in verdicts[1]
    assert any("ceiling copy: +0.0 %" in x for x in text)
    timed = [x for x in text if x.startswith("| relu |") and x.split("|")[6].strip()]
    assert sum("within the spread" in x for x in timed) == len(timed) - 1
    times = sum("seconds" in row for row in parts.rows_of(result))
    assert f"{times - 1} of {times} times are within the spread." in text


def test_comparison_has_recipes_by_the_token(result):
    """A step of twice the tokens that takes twice the time is as fast."""
    later = copy.deepcopy(result)
    rows = {r["contender"]: r for r in parts.rows_of(later, "recipes")}
    for name in ("tokens", "seconds", "low", "high"):
        rows["minillm"][name] *= 2
    for name in ("seconds", "low", "high"):
        rows["naive"][name] *= 1.5
    rows["+ norm"]["status"] = "wrong"
    found = {x.split("|")[2].strip(): x for x in compare.compared(result, later) if x.startswith("| tiny |")}
    assert "1.000 | within the spread" in found["minillm"]
    assert "1.500 | slower" in found["naive"]
    assert "measured -> wrong" in found["+ norm"]


def test_comparison_of_devices_that_differ_says_so(result):
    other = copy.deepcopy(result)
    other["header"]["device"] = "NVIDIA H200"
    assert any("devices differ" in x for x in compare.compared(result, other))
    assert compare.main(STORED, STORED) == 0


def test_comparison_says_which_run_was_a_quick_one(result):
    quick = result | {"quick": True}
    first, second, *_ = compare.compared(result | {"quick": False}, quick)
    assert not first.endswith(", quick") and second.endswith(", quick")


def test_comparison_of_results_without_a_row_in_common_has_no_empty_table(result):
    other = copy.deepcopy(result)
    for row in parts.rows_of(other):
        row["shape"] = "another"
    text = list(compare.compared(result, other))
    assert "A and B have no row in common." in text
    assert not any("0 of 0" in line for line in text)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda r: r["header"].pop("date"), id="no-date"),
        pytest.param(lambda r: parts.rows_of(r)[0].pop("op"), id="row-without-op"),
        pytest.param(lambda r: [row.update(seconds=0) for row in parts.rows_of(r)], id="no-time-at-all"),
    ],
)
def test_comparison_with_a_damaged_result_is_one_line(result, tmp_path, capsys, damage):
    damage(result)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(result))
    assert compare.main(path, STORED) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(path) in said.err


def test_page_says_by_which_command_it_was_made(result):
    words = ["--only", "ops", "--ops", "gelu", "--skip", "SDPA math"]
    page = report.page(result | {"quick": True, "words": words})
    assert "Made by `python -m benchmarks --quick --only ops --ops gelu --skip 'SDPA math'`; do not edit." in page


def test_a_rate_below_one_gigabyte_a_second_is_not_0(result):
    row = next(r for r in parts.rows_of(result) if r["provider"] == "torch" and r["unit"] != "matrix")
    row["seconds"] = row["bytes"] / 0.4e9
    assert "0.4 GB/s" in report.page(result)
