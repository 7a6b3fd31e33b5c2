"""Batches that are made ahead of time, in a thread."""

import itertools
import threading

import numpy as np
import pytest

from tests.data.conftest import equal
from xlstm.data import Batch, Prefetch


class Drawing:
    """Batches that take random numbers as they come, and the last one some more; `fail` is the
    batch that raises.
    """

    def __init__(self, count=5, fail=None):
        self.count = count
        self.fail = fail
        self.made = 0
        self.fourth = threading.Event()

    def __len__(self):
        return self.count

    def batches(self, rng=None):
        rng = np.random.default_rng(7) if rng is None else rng
        for k in range(self.count):
            if k == self.fail:
                raise OSError("the file is gone")
            self.made += 1
            if self.made == 4:
                self.fourth.set()
            yield Batch(rng.normal(size=(4, 2, 1)), np.full((2, 1), float(k)), None, True)
        rng.normal(size=3)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xlstm-prefetch")]


@pytest.mark.parametrize("ahead", [1, 20])
def test_prefetched_batches_are_those_of_the_data(ahead):
    data = Drawing()
    one = np.random.default_rng(3)
    two = np.random.default_rng(3)
    found = []
    inner = data.batches(one)
    for batch in Prefetch(data, ahead).batches(two):
        found.append((next(inner), batch))
        assert one.bit_generator.state == two.bit_generator.state
    assert next(inner, None) is None
    assert len(found) == len(Prefetch(data)) == 5
    equal(*zip(*found, strict=True))
    assert one.bit_generator.state == two.bit_generator.state
    equal(list(data.batches()), list(Prefetch(data, ahead).batches()))
    assert not threads()


def test_prefetching_is_some_batches_ahead_and_no_more():
    data = Drawing(20)
    batches = Prefetch(data, 3).batches()
    next(batches)
    assert data.fourth.wait(timeout=60)  # the first, and three more
    assert len(threads()) == 1
    batches.close()
    assert data.made == 4
    assert not threads()


def test_an_error_of_the_data_comes_after_the_batches_before_it():
    batches = Prefetch(Drawing(fail=3)).batches(np.random.default_rng(0))
    assert len(list(itertools.islice(batches, 3))) == 3
    with pytest.raises(OSError, match="the file is gone"):
        next(batches)
    assert not threads()
