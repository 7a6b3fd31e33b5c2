"""The seam to other processes that train the same model: what training needs of MPI, NCCL or a test double.

The processes of a group are its ranks. Each has its own columns of every batch, and all hold the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array

GROUP = checks.having("rank", "size", "sum", "tell", "share", expected="a group, as distributed.group() returns it")


class OtherRankError(RuntimeError):
    """Another rank could not go on, so this one stops, too; the message names that rank and its error."""


class Group(Protocol):
    """The processes that train together. All ranks call all but `abort` in the same order.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        The number of processes.
    local_rank : int
        The number of this process among those on its machine, from 0.
    """

    rank: int
    size: int
    local_rank: int

    def sum(self, a: Array) -> None:
        """Replace a contiguous array by the sum over all ranks, which has the same bits on each.

        The array is NumPy's, or CuPy's: then it is changed in the current stream, also while that is captured.
        """

    def tell(self, what: Any) -> list[Any]:
        """Return the small objects that the ranks tell, in the order of the ranks; each is pickled."""

    def share(self, arrays: Sequence[Array]) -> None:
        """Replace contiguous arrays by those of rank 0; they have the same shapes and dtypes on all ranks."""

    def sum_part(self, a: Array, out: Array) -> None:
        """Put this rank's part of the sum over all ranks of `a` (size * n,) into `out` (n,)."""

    def gather_parts(self, part: Array, out: Array) -> None:
        """Put the parts (n,) of all ranks side by side into `out` (size * n,)."""

    def abort(self, message: str) -> None:
        """End the job now, on all ranks; any rank may call this at any time."""

    def close(self) -> None:
        """Say that this rank needs the others no more; a process that ends without it ends the job."""


class Alone:
    """The group of a single process."""

    rank, size, local_rank = 0, 1, 0

    def sum(self, a: Array) -> None:
        """Leave the array as it is."""

    def tell(self, what: Any) -> list[Any]:
        """Return the object in a list."""
        return [what]

    def share(self, arrays: Sequence[Array]) -> None:
        """Leave the arrays as they are."""

    def sum_part(self, a: Array, out: Array) -> None:
        """Copy the array."""
        out[...] = a

    def gather_parts(self, part: Array, out: Array) -> None:
        """Copy the array."""
        out[...] = part

    def abort(self, message: str) -> None:
        """End the process with a message and status 1."""
        raise SystemExit(message)

    def close(self) -> None:
        """Do nothing: there is nobody to tell."""


def columns(B: int, group: Group) -> slice:
    """Return the columns of a batch of B sequences that a rank has: as many as the others, or one more or less."""
    return slice(B * group.rank // group.size, B * (group.rank + 1) // group.size)
