"""Training on several processes, GPUs or machines: the processes of a launcher as one group."""

from typing import Any

from xlstm.arrays.groups import Group, OtherRankError
from xlstm.arrays.ranks import mpi
from xlstm.core.version import __version__
from xlstm.data.shards import Shard

__all__ = ["Group", "OtherRankError", "Shard", "group"]


def group(comm: Any = None) -> Group:
    """Return the processes that a launcher such as mpiexec or srun started, as one group.

    A process without a launcher is a group of one. If you give a communicator, the group has its
    processes. The function imports mpi4py only if a launcher started more than one process, or if
    the program has imported mpi4py before. Each rank makes the GPU with its number on the machine
    (`Group.local_rank`) the current one.

    From this call on, the whole job ends in two cases:

    - A rank raises an error that nobody catches.
    - A rank does not arrive where others wait for it. Its program may have ended, or the others
      have waited for the seconds in the environment variable XLSTM_GROUP_TIMEOUT (600 by default; 0
      means for ever).

    All ranks of the job make the first call together, even if each has a communicator of only a few
    ranks: the call divides the cores and the GPUs of each machine among all its ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        A communicator of processes of this job, whose ranks make this call together. By default the
        group has all processes.

    Returns
    -------
    Group
        Calls with the same communicator return the same group.

    Raises
    ------
    BackendError
        mpi4py or an MPI is missing; the launcher belongs to another MPI or to none; MPI was started
        without MPI_THREAD_MULTIPLE; `comm` has processes of another job; or versions of xlstm
        differ between ranks.
    TypeError
        `comm` is not an intracommunicator of mpi4py, or it is COMM_NULL or freed.
    ValueError
        XLSTM_GROUP_TIMEOUT is not a number of seconds.

    Examples
    --------
    >>> from xlstm import distributed
    >>> distributed.group().size
    1
    >>> distributed.group().tell("a word")
    ['a word']
    """
    return mpi.group(__version__, comm)
