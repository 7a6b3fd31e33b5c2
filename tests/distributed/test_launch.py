"""`xlstm train --ranks`: one command on several processes, of which rank 0 alone prints, and how it
ends.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.commands import CLASSES, SERIES, TEXT, write_files
from tests.conftest import ROOT
from tests.distributed.launcher import needed, runs, until
from tests.distributed.test_group import SOON
from xlstm.cli import launch

LONG = [*TEXT, "--steps", 100_000, "--ranks", 2]
# The command line, in which rank 1 does something once training has begun, and ranks warn.
PROGRAM = """
import os, pathlib, signal, sys, threading, time, warnings
from xlstm.cli import main
from xlstm.estimators import TextModel
rank = os.environ.get("PMI_RANK")
if rank:
    pathlib.Path(f"pid-{{rank}}").write_text(str(os.getpid()))
fit = TextModel.fit
def warned(*args, **options):
    for word in ("all ranks", f"rank {{rank}}"):
        warnings.warn(f"of {{word}}")
    return fit(*args, **options)
TextModel.fit = warned
def later():
    while not pathlib.Path("xlstm-text/history.jsonl").exists():
        time.sleep(0.01)
    pathlib.Path("begun").touch()
    {does}
if rank == "1":
    threading.Thread(target=later, daemon=True).start()
{first}
sys.argv[0] = "xlstm"
main()
"""


def start(folder, *words, does="pass", first=""):
    command = [sys.executable, "-c", PROGRAM.format(does=does, first=first), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLSTM_COMPILE": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def end(process, folder):
    """Wait for the end; return the status, both outputs, and how many seconds the ranks went on
    after it began.
    """
    out, err = process.communicate(timeout=500)
    ranks = [int(path.read_text()) for path in folder.glob("pid-*")]
    until(lambda: not any(map(runs, ranks)))
    mark = folder / "begun"
    return (
        process.returncode,
        out,
        err,
        time.time() - mark.stat().st_mtime if mark.exists() else None,
    )


def begun(process, folder):
    """Wait until rank 1 has begun."""
    until(lambda: (folder / "begun").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()


@pytest.fixture(autouse=True)
def files(tmp_path):
    write_files(tmp_path)


@needed
@pytest.mark.parametrize("words", [TEXT, CLASSES, SERIES], ids=lambda words: words[1])
def test_a_command_on_two_ranks(run, tmp_path, words):
    """It prints one document of JSON, and writes the files of one process."""
    expected = json.loads(run(*words, "--json", "-o", "one").stdout)
    status, out, err, _ = end(
        start(tmp_path, *words, "--json", "-o", "two", "--ranks", 2), tmp_path
    )
    assert status == 0, err
    found = json.loads(out)
    assert found.keys() == expected.keys()
    assert {path.name for path in Path("two").iterdir()} == {
        path.name for path in Path("one").iterdir()
    }
    one, two = (next(Path(name).glob("step-*")).name for name in ("one", "two"))
    assert one == two
    a, b = (load_file(f"{name}/model.safetensors") for name in ("one", "two"))
    for name, array in a.items():
        np.testing.assert_allclose(b[name], array, rtol=2e-3, atol=2e-4)
    if words is TEXT:
        warned = [line for line in err.splitlines() if "warning" in line]
        assert warned == [
            "warning: of all ranks",
            "warning: of rank 0",
            "rank 1: warning: of rank 1",
        ]
    else:
        assert err == ""


@needed
def test_what_is_wrong_is_said_once(tmp_path):
    status, out, err, _ = end(start(tmp_path, *TEXT[:2], "missing.txt", "--ranks", 3), tmp_path)
    host = re.escape(socket.gethostname())
    assert (status, out) == (1, "")
    said = (
        rf"xlstm: rank [012] of 3 \(host {host}\) failed, the job ends: FileNotFoundError: \[Errno"
        r" 2\] No such file.*\n"
    )
    assert re.fullmatch(said, err)  # the first of those that find it out


@needed
@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os._exit(0)", "ended early, with exit code 0"),
    ],
    ids=["killed", "crashes", "leaves"],
)
def test_a_rank_that_is_gone(tmp_path, does, message):
    """It is named, whichever rank mpiexec names: that kills the other ranks, too."""
    status, out, err, seconds = end(start(tmp_path, *LONG, does=does), tmp_path)
    assert (status, out) == (1, "")
    *others, last = err.splitlines()
    assert last == f"xlstm: rank 1 of 2 (host {socket.gethostname()}) {message}, the job ends"
    assert all(line.startswith(("warning: ", "rank 1: warning: ")) for line in others)
    assert seconds < SOON


@pytest.mark.parametrize(
    ("code", "ended", "last"),
    [
        (9, "1 137\n0 137\n", "rank 1 of 3 (host {}) was killed by SIGKILL, the job ends"),
        (
            0,
            "2 0\n0 200\n1 137\n",
            "rank 0 of 3 (host {}) ended early, with exit code 200, the job ends",
        ),
        (-9, "2 0\n", "mpiexec ended by SIGKILL, and so did the job"),
        (7, "", "mpiexec ended with exit code 7, and so did the job"),
    ],
)
def test_the_first_rank_that_is_gone_is_named_in_the_last_line(code, ended, last, capsys):
    """Rank 2 has come to its end; words of mpiexec stand before ours, and only if no rank is gone."""
    job = launch._Job(3, 0)
    job.note(2, 17, 0)
    assert job.verdict() is None
    job.explain(code, "of mpiexec\n", ended)
    words = "of mpiexec\n" * ("mpiexec" in last)
    assert capsys.readouterr().err == f"{words}xlstm: {last.format(socket.gethostname())}\n"


@needed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_stops_all_ranks_and_the_run_goes_on_with_another_number_of_them(tmp_path, number):
    process = start(tmp_path, *LONG)
    begun(process, tmp_path)
    process.send_signal(number)
    status, out, err, seconds = end(process, tmp_path)
    killed = number == signal.SIGKILL  # then nobody passes it on, and ranks end with their launcher
    assert (status, out) == (-number if killed else 128 + number, "")
    (line,) = [line for line in err.splitlines() if "warning" not in line]
    assert line.startswith("interrupted" if number == signal.SIGINT else "terminated")
    assert "go on with: xlstm train text a.txt" in line
    assert seconds < SOON
    done = len((tmp_path / "xlstm-text/history.jsonl").read_text().splitlines())
    status, out, err, _ = end(
        start(tmp_path, *TEXT, "--steps", done + 5, "--resume", "--ranks", 3), tmp_path
    )
    assert status == 0, err
    assert out.startswith(f"trained: {done + 5} batches in ")


# Rank 1 does not come to the start of MPI, where rank 0 waits for it.
STUCK = """
from xlstm.arrays import optional_imports
def stuck():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    pathlib.Path("begun").touch()
    time.sleep(600)
if rank == "1":
    optional_imports.mpi = stuck
"""


@needed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ranks_start_ends_them(tmp_path, number):
    process = start(tmp_path, *LONG, first=STUCK)
    begun(process, tmp_path)
    process.send_signal(number)
    assert end(process, tmp_path)[:3] == (128 + number, "", "")
