"""The order of windows: a permutation for every key, the same for ever, and one that mixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.sampler import mix, permuted

KEYS = st.integers(0, 2**63 - 1)


@given(count=st.integers(1, 3000), key=KEYS)
def test_every_place_is_visited_once(count, key):
    """The image of 0 .. n-1 is 0 .. n-1: nothing twice, nothing left out."""
    assert np.array_equal(np.sort(permuted(np.arange(count), count, key)), np.arange(count))


@given(count=st.integers(1, 2**40), key=KEYS, data=st.data())
def test_a_place_is_known_without_the_others(count, key, data):
    """Some places by themselves, in any shape and order, go where they go among others; distinct ones stay distinct."""
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6, unique=True)))
    together = permuted(places, count, key)
    assert together.tolist() == [int(permuted(places[i : i + 1], count, key)[0]) for i in range(len(places))]
    assert len(set(together.tolist())) == len(places) and 0 <= together.min() and together.max() < count


def test_empty_and_shaped():
    """No places give no places, and a table gives a table."""
    assert permuted(np.empty(0, np.int64), 7, 1).shape == (0,)
    assert permuted(np.arange(6).reshape(2, 3), 6, 1).shape == (2, 3)


def test_the_order_is_pinned():
    """Runs of earlier versions resume exactly: the numbers never change."""
    assert permuted(np.arange(10), 10, key=mix(0, 0, 0)).tolist() == [4, 6, 0, 2, 1, 9, 5, 8, 3, 7]
    assert mix(1, 2, 3) == 7510213797696614745


@pytest.mark.parametrize("count", [1000, 1024, 1025])
def test_the_order_mixes(count):
    """Like a shuffle: neighbours do not stay neighbours, few places stay where they are, keys differ."""
    orders = np.array([permuted(np.arange(count), count, key) for key in range(20)])
    steps = np.abs(np.diff(orders, axis=1))
    assert 0.9 < steps.mean() / (count / 3) < 1.1  # mean distance of two random places: n / 3
    assert (orders == np.arange(count)).sum(axis=1).mean() < 3  # of a random permutation: 1
    halves = (orders[:, : count // 2] < count // 2).mean()
    assert abs(halves - 0.5) < 0.02
    assert len({tuple(order) for order in orders.tolist()}) == 20


@given(numbers=st.lists(st.integers(-(2**63), 2**64), min_size=1, max_size=4), place=st.integers(0, 3))
def test_mix_depends_on_every_number(numbers, place):
    """63 bits, the same for the same numbers, others when one of them changes."""
    place %= len(numbers)
    changed = [number + (i == place) for i, number in enumerate(numbers)]
    assert 0 <= mix(*numbers) < 2**63
    assert mix(*numbers) == mix(*numbers) != mix(*changed)
