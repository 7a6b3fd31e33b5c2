"""The window of a series that the network sees, and its patches as tokens."""

from __future__ import annotations

import numpy as np

from xlstm.data.host import Values


def last(row: Values, width: int, ahead: int = 0) -> Values:
    """Return the last values of a row (N,) that missing ones follow, (width,); those before its beginning are missing.

    Parameters
    ----------
    row : array (N,)
    width : int
    ahead : int
        How many missing values follow the row. They are in the window.

    Returns
    -------
    array (width,)
        NaN is a missing value.
    """
    found = np.full(width, np.nan)
    seen = row[max(0, len(row) + ahead - width) :]
    end = max(0, width - ahead)
    found[end - len(seen) : end] = seen
    return found


def whole_patches(rows: Values, patch_size: int) -> Values:
    """Return rows (R, N) with missing values before them that make their length a multiple of `patch_size`."""
    more = -rows.shape[1] % patch_size
    return np.pad(rows, ((0, 0), (more, 0)), constant_values=np.nan) if more else rows


def tokens(scaled: Values, patch_size: int) -> Values:
    """Return the tokens of scaled rows.

    Parameters
    ----------
    scaled : array (R, T P)
        NaN is a missing value.
    patch_size : int
        Number P of values in a patch.

    Returns
    -------
    array (R, T, 2P)
        The values of each patch with 0 for missing ones, then 1 for each value that is there and 0 for the others.
    """
    patches = scaled.reshape(len(scaled), -1, patch_size)
    there = ~np.isnan(patches)
    return np.concatenate((np.where(there, patches, 0.0), there), axis=2)


def leading(row: Values, patch_size: int, most: int) -> int:
    """Return how many patches without a value a row (N,) begins with, but no more than `most`."""
    there = np.flatnonzero(~np.isnan(row))
    return min(int(there[0]) // patch_size, most) if len(there) else most
