"""Processes of one start agree on a word, whatever those of an earlier start left in the store that torchrun keeps."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from minillm.errors import InputError
from minillm.training.launch import agreed

SOON = timedelta(seconds=10)


def start(store, size):
    """Return the words of the processes of a start, which are threads here, by rank."""
    words: dict[int, str] = {}

    def join(rank: int) -> None:
        words[rank] = agreed(store, rank, size, SOON)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return words


@pytest.mark.parametrize("size", [1, 2, 5])
def test_processes_of_a_start_have_one_word_and_those_of_the_next_one_another(size):
    store = HashStore()
    first, second = start(store, size), start(store, size)
    assert list(sorted(first)) == list(sorted(second)) == list(range(size))
    assert len(set(first.values())) == len(set(second.values())) == 1
    assert first[0] != second[0]


def test_a_start_that_was_cut_short_is_no_hindrance():
    """Of an earlier start rank 1 has come and gone, and rank 0 never came."""
    store = HashStore()
    store.set("minillm/hello/1", "a number of a process that is gone")
    words = start(store, 2)
    assert words[0] == words[1]


def test_who_does_not_come_is_named():
    with pytest.raises(InputError, match="for rank 1, which has not come"):
        agreed(HashStore(), 0, 2, timedelta(seconds=0.2))
    with pytest.raises(InputError, match="for rank 0, which has not come"):
        agreed(HashStore(), 1, 2, timedelta(seconds=0.2))
