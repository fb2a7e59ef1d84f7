"""A process that holds up the others is named, and no other one is."""

import threading
from dataclasses import replace

import pytest
from torch.distributed import HashStore

from minillm.training.watch import DONE, STAGES, Sign, Watch, culprits

COMPUTING, SUMMING = STAGES.index("computing"), STAGES.index("summing gradients")
SOON = 1.0  # seconds: the timeout of these watches


def signs(*places):
    """Return what processes at these places wrote, and what they wrote a second later, their threads alive."""
    before = [Sign(place, 5, f"process {rank} on m") for rank, place in enumerate(places)]
    return before, [replace(sign, beats=6) for sign in before]


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([(7, SUMMING), (7, COMPUTING), (7, SUMMING)], id="stage"),
        pytest.param([(7, 0), (6, SUMMING), (7, 0)], id="step"),
    ],
)
def test_the_one_that_is_behind_is_named(places):
    before, now = signs(*places)
    (named,) = culprits(before, now, rank=0, place=places[0])
    step, stage = places[1]
    assert named == f"rank 1 (process 1 on m) holds up the others, {STAGES[stage]} in step {step}"


def test_one_that_is_behind_and_goes_on_is_not_named():
    before, now = signs((7, SUMMING), (6, COMPUTING))
    now[1] = replace(now[1], place=(6, SUMMING))
    assert culprits(before, now, rank=0, place=(7, SUMMING)) == []


def test_nobody_is_named_where_all_are_at_one_place():
    assert culprits(*signs((7, COMPUTING), (7, COMPUTING)), rank=0, place=(7, COMPUTING)) == []


def test_a_silent_one_is_named_though_it_is_not_behind_and_the_one_that_waits_for_it_is_not():
    before, now = signs((7, SUMMING), (7, SUMMING), (7, COMPUTING))
    now[1] = before[1]
    (named,) = culprits(before, now, rank=0, place=(7, SUMMING))
    assert named == "rank 1 (process 1 on m) gives no sign of life since it was summing gradients in step 7"


def test_one_that_never_began_is_named():
    assert culprits([None, None], [None, None], rank=0, place=(0, 0)) == ["rank 1 has never begun"]


def test_one_that_ended_well_is_not_missed():
    before, now = signs((7, SUMMING), (6, COMPUTING))
    before[1] = now[1] = replace(now[1], beats=DONE)
    assert culprits(before, now, rank=0, place=(7, SUMMING)) == []


class Run:
    """Processes as threads of this one: their watches, and what those that ended said."""

    def __init__(self, size: int) -> None:
        self.said: dict[int, str] = {}
        self.ended = threading.Event()
        store = HashStore()
        self.watches = [
            Watch(store, rank=rank, size=size, timeout=SOON, end=lambda text, rank=rank: self.hear(rank, text))
            for rank in range(size)
        ]
        for watch in self.watches:
            watch.start()

    def hear(self, rank: int, text: str) -> None:
        self.said[rank] = text
        self.ended.set()


@pytest.fixture
def run():
    made = Run(2)
    yield made
    for watch in made.watches:
        watch.stop()


def test_a_process_ends_when_it_has_waited_long_enough(run):
    run.watches[0].at("summing gradients", 7)
    run.watches[1].at("preparing the batch", 7)
    assert not run.ended.wait(SOON / 2)
    assert run.ended.wait(10)
    assert run.said.keys() == {0}
    assert "rank 1 (process " in run.said[0] and "preparing the batch in step 7; rank 0 has waited 1 s" in run.said[0]


def test_no_process_ends_while_all_go_on(run):
    for step in range(8):
        for watch, stage in zip(run.watches, STAGES, strict=False):
            watch.at(stage, step)
        assert not run.ended.wait(SOON / 5)


def test_the_silent_are_told_from_the_living_when_a_collective_fails(run):
    run.watches[1]._stop.set()
    run.watches[1]._thread.join()
    (lost,) = run.watches[0].silent()
    assert lost.startswith("rank 1 (process ")
