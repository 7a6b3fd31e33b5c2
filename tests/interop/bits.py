"""Bits of arrays, which other libraries' files have to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that there are the same arrays under the same names."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
