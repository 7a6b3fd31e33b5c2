"""Parts shared by all engines: packing, and both passes over one layer and direction."""
