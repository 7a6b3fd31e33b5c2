"""The last words of a build in which notebooks failed: the error of the cell of each."""

from __future__ import annotations

import re
import sys

from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def end(app: Sphinx, error: Exception | None) -> None:
    """Fail unless every notebook ran to its end."""
    for page in sorted(app.env.found_docs):
        about = NbMetadataCollector.get_exec_data(app.env, page)
        if about and not about["succeeded"]:
            told = COLOURS.sub("", about["traceback"]).partition("nbclient.exceptions.")[2]  # behind calls of nbclient
            sys.stderr.write(f"\n{page} failed: {told.strip()}\n")
            app.statuscode = 1


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", end, priority=1000)  # after all others, which may warn of what is missing then
    return {"parallel_read_safe": True, "parallel_write_safe": True}
