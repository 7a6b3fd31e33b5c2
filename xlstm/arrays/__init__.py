"""Which library and device hold the numbers; checks of arguments; products, and functions fused into one kernel."""
