"""python -m xlstm: the command line."""

from xlstm.cli.app import main

main()
