"""The command line: parses, calls, prints."""

import sys


def main() -> None:
    """Run the command `xlstm`."""
    try:
        from xlstm.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"error: {error.name} is not installed; pip install 'xlstm-xp[cli]' brings the command"
            " line\n"
        )
        raise SystemExit(2) from None
    app.main()
