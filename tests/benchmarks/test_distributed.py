"""What sharding costs: shares turn by turn, their median against what is allowed."""

import json

import pytest
from small_runs import in_a_process

from benchmarks.distributed import cost, page

HEAD = {"device": "a machine", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-02T00:00"}
RESULT = {"header": HEAD, "strategy": "fsdp", "processes": 1, "layers": 6, "width": 384, "context": 256, "batch": 8}
RESULT |= {"dtype": "float32"}
SHARDED = """
from torch.distributed.tensor import DTensor
from benchmarks import distributed
def measure(trainers, *_):
    for name, trainer in trainers.items():
        print(name, {isinstance(p, DTensor) for p in trainer.model.parameters()})
    return {name: [1.0] for name in trainers}
distributed.measure = measure
distributed.main()
"""


def test_the_page_has_medians_and_the_cost_turn_by_turn():
    """By hand: turns of 2 against 1.9, 2.1 and 2.2 seconds cost -5, 5 and 10 percent."""
    text = page(RESULT | {"seconds": {"plain": [2.0, 2.0, 2.0], "fsdp": [1.9, 2.1, 2.2]}})
    assert "| plain | 2000.00 | 2000.00 | 2000.00 |" in text
    assert "| fsdp | 2100.00 | 1900.00 | 2200.00 |" in text
    assert "costs +5.0 % of a plain step (median of 3 turns, from -5.0 % to +10.0 %; allowed are 5 %)" in text


def test_without_a_plain_trainer_there_is_no_cost():
    assert "costs" not in page(RESULT | {"seconds": {"fsdp": [1.0]}})
    assert cost([2.0, 4.0], [3.0, 4.0]) == [0.5, 0.0]


@pytest.mark.slow
def test_the_command_measures_both(tmp_path):
    words = ["--layers", 1, "--width", 24, "--batch", 2, "--turns", 2, "--steps", 1, "--out", tmp_path]
    done = in_a_process("-m", "benchmarks.distributed", *words)
    assert done.returncode in (0, 1), done.stderr  # 1: so small a step costs more than is allowed
    seconds = json.loads((tmp_path / "DISTRIBUTED.json").read_text())["seconds"]
    assert {name: len(each) for name, each in seconds.items()} == {"plain": 2, "fsdp": 2}
    assert (tmp_path / "DISTRIBUTED.md").read_text() in done.stdout


@pytest.mark.slow
def test_the_trainer_beside_the_plain_one_is_sharded(tmp_path):
    """Else plain steps would stand beside plain steps."""
    done = in_a_process("-c", SHARDED, "--layers", 1, "--width", 24, "--batch", 2, "--out", tmp_path)
    assert done.stdout.startswith("plain {False}\nfsdp {True}\n"), done.stderr
