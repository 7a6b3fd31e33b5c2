"""The last words of a build in which notebooks failed: the error of the cell of each."""

from __future__ import annotations

import re
import sys
from typing import Any

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def end(app: Any, error: Exception | None) -> None:
    """Fail unless every notebook ran to its end."""
    for page, about in sorted(getattr(app.env, "nb_metadata", {}).items()):  # by myst_nb
        run = about.get("exec_data")
        if run and not run["succeeded"]:
            # behind calls of nbclient
            told = COLOURS.sub("", run["traceback"]).partition("nbclient.exceptions.")[2]
            sys.stderr.write(f"\n{page} failed: {told.strip()}\n")
            app.statuscode = 1


def setup(app: Any) -> dict[str, bool]:
    # after all others, which may warn of what is missing then
    app.connect("build-finished", end, priority=1000)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
