"""Processes that answer requests; one has the published packages, whose import name may be this
project's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from xlstm.arrays import cores


class Worker:
    """A process that answers requests, JSON lines."""

    def __init__(self, command: list[str], folder: str | Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """Return the answer to a request of the worker's."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.process.args} ended at {request}; see above")
        return json.loads(line)

    def end(self) -> None:
        """Let the process end."""
        self.process.communicate()


class Theirs(Worker):
    """A process that runs a worker, a file of this folder, with the place of the packages and the
    number of threads.
    """

    def __init__(self, worker: str, peer: Path, folder: str | Path) -> None:
        """Start the process in a folder that has nothing of ours."""
        program = str(Path(__file__).with_name(worker))
        command = [sys.executable, program, str(peer), str(cores.threads())]
        super().__init__(command, folder, {**os.environ, "PYTHONPATH": ""})
