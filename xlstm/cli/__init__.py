"""The command line: parses, calls, prints."""


def main() -> None:
    """Run the command `xlstm`."""
    from xlstm.cli import app

    app.main()
