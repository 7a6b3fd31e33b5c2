"""Processes that train together: the protocol of a group, MPI with NCCL, and a watchdog."""
