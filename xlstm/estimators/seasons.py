"""Find the seasons of a series, the numbers of steps after which it repeats, by its changes."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values

LENGTHS = (4, 7, 12, 24, 48, 52)  # steps: quarters, days, months, hours, half hours and weeks
# The longer season beside a shorter one: a week of hours or of half hours, and a year of days.
LONGER = {24: 168, 48: 336, 7: 365}
SHARE = 0.1  # least share of the variance of changes that a season surely explains
CERTAIN = 2.0  # a season stands this many standard deviations of noise above 0
SOME = 0.5  # the same for a longer season, about which validation errors decide
MORE = 0.05  # least share of the shorter season's residual variance that the longer one explains
LEAST = 2.0  # least number of seasons in a series
LEAST_LONGER = 1.5  # the same for the longer of two: the first half then occurs twice
SMOOTH = 52  # least steps of a season that is also looked for in means over a thirteenth of it
OUTLIER = 6.0  # median absolute deviations at which a change is cut
SEASONAL = 0.2  # least autocorrelation of a season of any length
NEAR = 0.9  # a shorter season wins if it explains at least this share of the best
SHORTEST = 4  # steps of the shortest season of any length
LONGEST = 100_000  # steps of the longest season; it has as many states


def listed(season: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the seasons of the parameter as a tuple, the shorter one first; 0 means none."""
    seasons = season if isinstance(season, tuple) else (season,)
    return tuple(sorted({m for m in seasons if m > 1}))


def parameter(seasons: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return seasons in the form of the parameter: 0 for none, one number, or a tuple of two."""
    return seasons if len(seasons) > 1 else sum(seasons)


def check(where: str, name: str, value: Any) -> int | tuple[int, ...]:
    """Check the parameter `season`: steps of one season, 0 for none, or two seasons."""
    kinds = (Integral, list, tuple)
    checks.instance(kinds, "'auto', a whole number, or two whole numbers")(where, name, value)
    if isinstance(value, list | tuple):
        period = checks.whole(2, LONGEST)
        seasons = checks.several(where, name, value, "two whole numbers", period, 2)
        return parameter(listed(tuple(seasons)))
    steps: int = checks.whole(0, LONGEST)(where, name, value)
    return steps


def of_array(name: str, array: Values) -> tuple[int, ...]:
    """Return the seasons from their array in a file; raise ValueError unless there are at most two,
    the shorter one first.
    """
    steps = array.tolist()
    are_whole = all(m.is_integer() and 2 <= m <= LONGEST for m in steps)
    if len(steps) > 2 or not are_whole or steps != sorted(set(steps)):
        raise ValueError(
            f"{name} has seasons of {checks.shown(steps)} steps, expected at most two rising whole"
            f" numbers from 2 to {LONGEST}"
        )
    return tuple(map(int, steps))


def find(values: Values) -> tuple[int, ...]:
    """Return the steps of the seasons of values (N,), the shorter one first: none, one or two.

    The first season explains the changes best. If it is as long as a day or a week, a second one is
    looked for.
    """
    N = len(values)
    smooth = autocorrelated(values)
    lengths = {m for m in (*LENGTHS, smooth) if m and LEAST * m <= N}
    shares = {m: _share(values, m) for m in sorted(lengths)}
    best = max(shares.values(), default=0.0)
    if best < SHARE:
        year = LONGER[7]
        if LEAST * year <= N and _share(values, year) > SHARE:
            return (year,)
        # a smooth season has small changes beside those of noise
        return (smooth,) if smooth in LENGTHS else ()
    first = next(m for m, share in shares.items() if share >= NEAR * best)
    longer = LONGER.get(first)
    if longer is None or LEAST_LONGER * longer > N:
        return (first,)
    changes = np.diff(values)
    left = 1 - _explained(changes, first, SOME)
    more = 1 - (1 - _explained(changes, longer, SOME)) / max(left, 1e-12)
    return (first, longer) if more > MORE else (first,)


def autocorrelated(values: Values) -> int:
    """Return the steps of a season of values (N,), or 0 if there is none.

    It is the first peak of the autocorrelation that is nearly as high as the highest, up to a third
    of the length. The line through the series is subtracted first.
    """
    N = len(values)
    if N < 3 * SHORTEST:
        return 0
    time = np.arange(N) - (N - 1) / 2
    unit = float(np.max(np.abs(values))) or 1.0  # squares of large values would overflow
    scaled = values / unit
    left = scaled - np.mean(scaled)
    left -= time * (time @ left) / (time @ time)
    if left @ left < 1e-24 * N:
        return 0
    power = np.abs(np.fft.rfft(left, 2 * N)) ** 2
    lags = np.arange(min(N // 3, LONGEST) + 1)
    correlation = np.fft.irfft(power)[: len(lags)] / (left @ left) * (N / (N - lags))
    below = np.flatnonzero(correlation < 0)
    if below.size == 0:  # the series does not swing
        return 0
    peaks = 1 + np.flatnonzero(
        (correlation[1:-1] >= correlation[:-2]) & (correlation[1:-1] > correlation[2:])
    )
    peaks = peaks[(peaks >= SHORTEST) & (peaks > below[0])]
    heights = correlation[peaks]
    best = np.max(heights, initial=0.0)
    return 0 if best < SEASONAL else int(peaks[heights >= NEAR * best][0])


def _share(values: Values, m: int) -> float:
    """Return the share of the variance of changes that a season of m steps explains.

    For a long season, changes of means count, too, since they have less noise.
    """
    share = _explained(np.diff(values), m)
    if m >= SMOOTH:
        width = m // 13
        blocks = values[len(values) % width :].reshape(-1, width)
        share = max(share, _explained(np.diff(np.mean(blocks, axis=1)), 13))
    return share


def _explained(changes: Values, m: int, certain: float = CERTAIN) -> float:
    """Return the share of the variance of changes that their means at each place in a season of m
    steps explain, minus `certain` standard deviations.
    """
    middle = np.median(changes)
    far = OUTLIER * np.median(np.abs(changes - middle))
    changes = np.clip(changes, middle - far, middle + far) if far > 0 else changes
    place = np.arange(len(changes)) % m
    N = len(changes)
    means = np.bincount(place, changes) / np.bincount(place)
    total = np.sum((changes - np.mean(changes)) ** 2)
    if total <= 1e-24 * np.sum(changes**2):
        return 0.0
    left = np.sum((changes - means[place]) ** 2)
    degrees = max(N - m, 1)
    deviation = np.sqrt(2 * (m - 1) / ((N - 1) * degrees))
    return float(1 - left / total * (N - 1) / degrees - certain * deviation)
