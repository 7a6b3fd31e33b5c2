"""Helpers that tests of several modules of data use."""

import numpy as np


def equal(one, other):
    """Compare batches, bit for bit."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.fresh == right.fresh
        for a, b in zip(entries(left), entries(right), strict=True):
            assert (a is None) == (b is None)
            assert a is None or (
                np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)
            )


def entries(batch):
    return [*batch._replace(options=None), *(batch.options or {}).values()]
