"""Training on several processes and machines: the processes that `mpiexec` started, as a group."""

from typing import Any

from xlstm import __version__
from xlstm.arrays.ranks import mpi
from xlstm.arrays.ranks.groups import Group, OtherRankError
from xlstm.data.shards import Shard

__all__ = ["Group", "OtherRankError", "Shard", "group"]


def group(comm: Any = None) -> Group:
    """Return the processes that a launcher such as mpiexec or srun started, or those of a
    communicator; a process without a launcher is alone.

    mpi4py is imported where a launcher started more than one process, or where the program has
    imported it before. Each rank makes the GPU of its number on the machine the current one. An
    error that nobody catches on a rank ends the job from here on, and so does a rank that does not
    come where others wait for it: because its program has ended, or within the seconds of the
    environment variable XLSTM_GROUP_TIMEOUT (600; 0 means for ever).

    All ranks of the job make the first call together, also where each of them has a communicator of
    a few: they divide the cores and the GPUs of each machine among all ranks on it.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        A communicator of processes of this job, whose ranks make this call together; without it the
        group has all processes.

    Returns
    -------
    Group
        The same one at each call with the same communicator.

    Raises
    ------
    BackendError
        mpi4py or an MPI is missing, the launcher is that of another MPI or of none, MPI was started
        without MPI_THREAD_MULTIPLE, `comm` has processes of another job, or versions of xlstm
        differ between ranks.
    TypeError
        `comm` is no intracommunicator of mpi4py, or it is COMM_NULL or freed.
    ValueError
        XLSTM_GROUP_TIMEOUT is no number of seconds.

    Examples
    --------
    >>> from xlstm import distributed
    >>> distributed.group().size
    1
    >>> distributed.group().tell("a word")
    ['a word']
    """
    return mpi.group(__version__, comm)
