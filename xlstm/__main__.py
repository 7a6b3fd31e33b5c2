"""python -m xlstm: the command line."""

from xlstm.cli import main

main()
