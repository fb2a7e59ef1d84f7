"""The section of training recipes: contenders in processes of their own, in turns, and what came of each.

On a GPU all processes of a recipe are started at once and compile beside each other; on a CPU one after the other. Then
nobody but the one whose turn it is computes: round by round each takes its steps, forwards and backwards through the
list, so that a drifting clock meets all alike.

Read next: `../figures.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from benchmarks.child import Child
from benchmarks.context import Context, Part
from benchmarks.timing import Times
from benchmarks.training.recipes import recipes
from benchmarks.training.registration import Contender, Recipe
from minillm.training.throughput import data_sheet_rate

TURN = {"cuda": 0.3, "cpu": 0.5}  # seconds that a turn lasts at least
ROUNDS = {"cuda": (9, 5), "cpu": (7, 3)}  # without --quick, and with it
FEWEST_ROUNDS = 3
READY_SHARE = 0.7  # of a recipe's time, after which nobody is waited for any longer
PATIENCE = 200.0  # seconds of silence; a large model compiles for more than a minute
QUICK_RECIPES, QUICK_CONTENDERS = 1, 3  # with --quick
PROFILED = 8.0  # seconds that are kept for a profile, which has to start; on a GPU the first contender's


@dataclass
class Seat:
    """One contender at work: its process, what it said of itself, and the seconds of a step in each of its turns."""

    contender: Contender
    child: Child
    built: Part = field(default_factory=dict)
    warm: Part = field(default_factory=dict)
    profile: Part = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    loss: float = float("nan")
    took: float = 0.0  # seconds of its last turn
    reason: str = ""  # why it is out

    def ask(self, order: Part, until: float) -> Part | None:
        """Give an order, unless it is empty, and return what comes of it; None: the contender is out."""
        if order:
            self.child.tell(order)
        line = self.child.line(until)
        if line is None:
            self.reason = self.child.reason or "the process ended without a word"
        elif "failed" in line:
            self.reason = line["failed"]
        return None if self.reason else line

    def has(self, name: str, order: Part, until: float) -> bool:
        """Ask for a line of that name and keep it; return whether the contender is still in."""
        line = self.ask(order, until)
        if line is not None:
            setattr(self, name, line[name])
        return line is not None


Start = Callable[[Recipe, Contender, str], Child]


def start(recipe: Recipe, contender: Contender, kind: str) -> Child:
    """Start the process of a contender; on a GPU, which has a ladder, it counts the work of what is not compiled."""
    words = [recipe.name, contender.name]
    count = recipe.ladder and not contender.compiled and not contender.peer
    return Child("benchmarks.training.stepper", [*words, *["--count"] * bool(count)], patience=PATIENCE)


def training(context: Context, start: Start = start) -> Iterator[Part]:
    """Measure the recipes of this kind of device until the budget is over; what does not fit is listed."""
    chosen = [r for r in recipes().values() if r.kind == context.kind][: QUICK_RECIPES if context.quick else None]
    ends = time.monotonic() + context.budget
    rows: list[Part] = []
    facts = {"data_sheet": data_sheet(context.kind), "ladders": {r.name: [c.name for c in r.ladder] for r in chosen}}
    takers = {r.name: tuple(dict.fromkeys((*r.contenders, *r.ladder))) for r in chosen}
    if context.quick:
        takers = {r.name: r.contenders[:QUICK_CONTENDERS] for r in chosen}
    for number, recipe in enumerate(chosen):
        # Starting and compiling takes as long for few contenders as for many: recipes share alike what is left.
        waiting = sum(r is recipe or not r.in_spare_time for r in chosen[number:])
        until = time.monotonic() + (ends - time.monotonic()) / waiting
        rows += measure(recipe, takers[recipe.name], context, until, start)
        yield {"rows": list(rows), **facts}


def measure(
    recipe: Recipe, contenders: Sequence[Contender], context: Context, until: float, start: Start
) -> list[Part]:
    """Return a row for each contender of a recipe, measured or not."""
    now = time.monotonic()
    ready = now + READY_SHARE * (until - now)  # who is not ready by then is out, so that the others have their turns
    seats: list[Seat] = []
    with ExitStack() as stack:
        if context.kind == "cuda":
            seats = [Seat(c, stack.enter_context(start(recipe, c, context.kind))) for c in contenders]
            for seat in seats:
                if seat.has("built", {}, ready) and seat.contender.compiled:
                    seat.child.tell({"warm": True})  # compiles on other cores than those that follow
            eager = [s for s in seats if s.built and not s.contender.compiled]
            for seat in (s for s in eager if not s.contender.peer):
                seat.has("warm", {"warm": True}, ready)
            for seat in (s for s in seats if s.built and s.contender.compiled):
                seat.has("warm", {}, ready)
            for seat in (s for s in eager if s.contender.peer):  # whose memory is more than the others leave
                seat.has("warm", {"warm": True}, ready)
        else:
            for contender in contenders:
                if time.monotonic() > ready:
                    break
                seat = Seat(contender, stack.enter_context(start(recipe, contender, context.kind)))
                seats.append(seat)
                if seat.has("built", {}, ready):
                    seat.has("warm", {"warm": True}, ready)
        profiled = context.kind == "cuda"
        take_turns([s for s in seats if s.warm], context, until - PROFILED * profiled)
        if profiled and seats[0].samples and not seats[0].reason:
            seats[0].has("profile", {"profile": True}, until)
    rows = [row_of(recipe, seat) for seat in seats]
    late = contenders[len(seats) :]
    rows += [named(recipe, c) | {"status": "not run", "reason": "no time left in the budget"} for c in late]
    for row in rows:
        context.say(f"{recipe.name}, {row['contender']}: {row.get('reason') or 'measured'}")
    return rows


def take_turns(seats: Sequence[Seat], context: Context, until: float) -> None:
    """Let the contenders take turns, until there were enough rounds or the time is over.

    Where it would be over before all had enough turns to count, the last contenders leave after the first round.
    """
    for number in range(ROUNDS[context.kind][context.quick]):
        for seat in seats if number % 2 == 0 else seats[::-1]:
            began = time.monotonic()
            if not seat.reason and (line := seat.ask({"seconds": TURN[context.kind]}, until)) is not None:
                seat.samples.append(line["turn"]["seconds"])
                seat.loss = line["turn"]["loss"]
                seat.took = time.monotonic() - began
        present = [seat for seat in seats if not seat.reason]
        if number == 0:
            while len(present) > 1 and time.monotonic() + (FEWEST_ROUNDS - 1) * sum(s.took for s in present) > until:
                present.pop().reason = "no time left in the budget"
        if time.monotonic() + sum(seat.took for seat in present) > until:  # the next round would not end in time
            break


def named(recipe: Recipe, contender: Contender) -> Part:
    """Return the part of a row that says whose it is."""
    return {
        "recipe": recipe.name,
        "contender": contender.name,
        "peer": recipe.peer if contender.peer else "",
        "as_filed": contender.as_filed,
    }


def row_of(recipe: Recipe, seat: Seat) -> Part:
    """Return what came of a contender."""
    about = seat.built
    row: Part = {
        **named(recipe, seat.contender),
        **{k: about[k] for k in about if k != "seconds"},
        **{k: seat.warm[k] for k in ("peak_bytes", "work", "to_first_step") if k in seat.warm},
        **seat.profile,
    }
    if len(seat.samples) < FEWEST_ROUNDS:
        return row | {"status": "not run", "reason": seat.reason or "no time left in the budget"}
    times = Times(tuple(seat.samples), "clock")
    low, high = times.quartiles
    row |= {"status": "measured", "seconds": times.median, "low": low, "high": high, "rounds": len(seat.samples)}
    row |= {"loss": seat.warm["loss"], "last_loss": seat.loss}
    if wrong := what_is_wrong(row, seat):
        row |= {"status": "wrong", "reason": wrong}
    elif seat.reason:
        row["note"] = f"after {len(seat.samples)} rounds: {seat.reason}"
    return row


def what_is_wrong(row: Part, seat: Seat) -> str:
    """Return why a contender did not train the recipe's model, in words; nothing where it did.

    Random tokens have a loss of log V, and so has a model that knows nothing yet; a gradient that is not there, or is
    not finite, would be quick to compute.
    """
    if row["parameters"] != row["parameters_of_ours"]:
        return f"{row['parameters']:,} parameters, where this project's model has {row['parameters_of_ours']:,}"
    expected = row["loss_expected"]
    for name in ("loss", "last_loss"):
        if not abs(row[name] - expected) <= row["loss_margin"] * expected:
            return f"a loss of {row[name]:.4g}, where random tokens have {expected:.4g}"
    if not 0 < seat.warm["norm"] < float("inf"):
        return f"a gradient of norm {seat.warm['norm']:.3g}"
    return ""


def data_sheet(kind: str) -> float | None:
    """Return the data sheet's rate of dense bfloat16 products of the GPU by its name; None where it is not listed."""
    return data_sheet_rate(torch.cuda.get_device_name()) if kind == "cuda" else None
