"""What every way to run a recurrence has in common: packing, the passes forward and backward, what they keep."""
