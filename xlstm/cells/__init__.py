"""The maths of one cell a file, forward beside backward."""
