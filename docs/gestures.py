"""Draw the picture of on-a-device.md: a recording, and the answers of the C program to it.

python docs/gestures.py

It runs the page's blocks, compiles the program for this computer with cc, and compares its answers
with the detector's. It writes docs/_static/gestures.png.
"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pictures  # beside this file
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = {"circle": "#c8553d", "shake": "#31507a", "lift": "#4b8b5a", "rest": "0.6"}
SHOWN = 81  # the first held-out recording that has all three gestures


def names_of_the_page():
    """Return the names that the page defines up to its program."""
    text = (HERE / "on-a-device.md").read_text(encoding="utf-8")
    program, _, _ = text.partition("\n## An Arduino sketch")
    names = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", program, re.DOTALL | re.MULTILINE)), names)
    return names


def compiled(to_c, detector, weights):
    """Return a function of a recording (samples, 3) that runs the C program over it."""
    name = f"gesture_{weights}"
    to_c(detector, path=f"{name}.c", name=name, weights=weights)
    command = ["cc", "-std=c99", "-O2", "-shared", "-fPIC", f"{name}.c", "-o", f"{name}.so", "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(os.path.abspath(f"{name}.so"))

    def run(x):
        state = np.empty(2 * detector.hidden_size, np.float32)
        y = np.empty((len(x), len(detector.classes_)), np.float32)
        library[f"{name}_init"](state.ctypes.data_as(ctypes.c_void_p))
        for sample, row in zip(np.ascontiguousarray(x, np.float32), y, strict=True):
            pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (state, sample, row)]
            library[f"{name}_step"](*pointers)
        return y

    return run


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = names_of_the_page()
        detector, X, y = page["detector"], page["X"], page["y"]
        runs = {name: compiled(page["to_c"], detector, name) for name in ("float32", "int8")}
        os.chdir(HERE)
    truth = y[80:]
    reference = detector.predict_proba(X[80:])
    right = np.mean(detector.classes_[reference.argmax(-1)] == truth)
    sys.stdout.write(f"NumPy: {right:.4f} of the samples\n")
    for name, run in runs.items():
        answers = np.stack([run(x) for x in X[80:]])
        labels = detector.classes_[answers.argmax(-1)]
        sys.stdout.write(
            f"C, {name}: {np.mean(labels == truth):.4f} of the samples, largest difference"
            f" {np.abs(answers - reference).max():.1e}, same labels"
            f" {np.mean(answers.argmax(-1) == reference.argmax(-1)):.4f}\n"
        )
    draw(X[SHOWN], y[SHOWN], runs["int8"](X[SHOWN]), detector.classes_, page)


def draw(x, labels, answers, classes, page):
    """Draw a recording above, and the probabilities of the program below."""
    seconds = np.arange(len(x)) / page["RATE"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axis, style in zip(range(3), ("-", "--", ":"), strict=True):
        above.plot(seconds, x[:, axis], style, color="0.2", linewidth=1, label="xyz"[axis])
    for label, column in zip(classes, answers.T, strict=True):
        dashed = ":" if label == "rest" else "-"
        below.plot(seconds, column, dashed, color=COLOURS[label], label=label)
    edges = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        first, last = (np.array([start, end]) - page["DELAY"]) / page["RATE"]
        above.axvspan(first, last, color=COLOURS[labels[start]], alpha=0.25, linewidth=0)
        above.annotate(labels[start], ((first + last) / 2, 2.2), ha="center")
    above.set(ylabel="acceleration (g)", ylim=(-1.2, 2.6))
    below.set(xlabel="seconds", ylabel="probability")
    for axes in (above, below):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    pictures.save(figure, "gestures.png", 64)


if __name__ == "__main__":
    main()
