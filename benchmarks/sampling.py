"""A plugin of pytest: the tests in an order whose beginning is a sample of all of them, and as many as are asked for.

    python -m pytest -p benchmarks.sampling --each 2 tests/kernels/test_gelu.py

Of each test function the cases come in an order in which every value of every parameter (a dtype, a shape, an option, a
backend) is met as early and as evenly as can be; then the first case of every function, the second of every function,
and so on. So whatever cuts the list, a number or a clock, leaves a little of everything, and the same on every machine.
`--share 2/3` takes the second of three processes' part of that list.

Read next: `correctness.py`, which runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Parameters = Mapping[str, str]  # of a case: parameter -> which of its values


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--each", type=int, default=0, help="cases of each test function; 0: all of them")
    parser.addoption("--share", default="1/1", help="which part of how many: tests are dealt out one by one")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Order the collected tests, keep the first `--each` of every function, and of those this process's share."""
    functions: dict[str, list[Any]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    ranked = [
        (rank, number, cases[place])
        for number, cases in enumerate(functions.values())
        for rank, place in enumerate(spread_out([parameters_of(case) for case in cases]))
    ]
    ranked.sort(key=lambda entry: entry[:2])
    each = config.getoption("--each") or len(items)
    first, step = (int(number) for number in config.getoption("--share").split("/"))
    kept = [item for rank, _, item in ranked if rank < each][first - 1 :: step]
    chosen = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = kept


def parameters_of(item: Any) -> Parameters:
    """Return which value each parameter of a test has, by its place among the values."""
    call = getattr(item, "callspec", None)
    return {} if call is None else {name: str(index) for name, index in call.indices.items()}


def spread_out(cases: Sequence[Parameters]) -> list[int]:
    """Return the places of cases in an order that takes next what is made of the values that were met least.

    >>> spread_out([{"dtype": d, "shape": s} for d in "ab" for s in "xy"])
    [0, 3, 1, 2]
    """
    met: Counter[tuple[str, str]] = Counter()
    left = dict(enumerate(cases))
    order: list[int] = []
    while left:
        place = min(left, key=lambda p: (sum(met[value] for value in left[p].items()), p))
        met.update(left.pop(place).items())
        order.append(place)
    return order
