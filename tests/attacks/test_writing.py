"""Threads and processes that write the same files at the same time, and are killed while they do:
nothing is mixed.
"""

import multiprocessing
import os
import random
import signal
import time

import numpy as np

from tests.attacks.bounds import examples
from xlstm import checkpoint
from xlstm.data import writing

SIZE = 20_000


def save_for_ever(folder, number, started):
    """Write a model, and two files that belong together, over and over; each is of one number
    only.
    """
    checkpoint.save(folder / "m", {"a": np.full(SIZE, number)}, "test", {"number": number})
    started.set()
    while True:
        checkpoint.save(folder / "m", {"a": np.full(SIZE, number)}, "test", {"number": number})
        with writing.foreach(folder / "weights", folder / "index") as temporaries:
            for temporary in temporaries:
                temporary.write_text(str(number) * 1000)


def check_model(folder):
    arrays, config = checkpoint.load(folder / "m", "test")
    assert np.all(arrays["a"] == config["number"])


def test_processes_that_are_killed_leave_whole_files(tmp_path):
    context = multiprocessing.get_context("spawn")
    rng = random.Random(0)
    for _ in range(examples(1)):
        started = [context.Event() for _ in range(3)]
        writers = [
            context.Process(target=save_for_ever, args=(tmp_path, k, started[k])) for k in range(3)
        ]
        for writer in writers:
            writer.start()
        assert all(event.wait(600) for event in started)
        for writer in writers:
            for _ in range(20):
                check_model(tmp_path)
            time.sleep(0.02 * rng.random())
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        check_model(tmp_path)
        for path in tmp_path.glob(".xlstm-*.tmp"):  # nobody can remove them after SIGKILL
            path.unlink()
        assert set(os.listdir(tmp_path)) <= {"m", "weights", "index"}
