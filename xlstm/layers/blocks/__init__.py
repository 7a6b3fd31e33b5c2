"""The residual blocks of xLSTM, and stacks of them."""
