"""What every engine has in common: packing, and the passes forward and backward over one layer and direction."""
