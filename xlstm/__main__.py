"""python -m xlstm: the command line."""

from xlstm.cli import main

if __name__ == "__main__":  # and not in a process that measures memory
    main()
