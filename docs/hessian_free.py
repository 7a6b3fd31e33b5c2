"""Draw the picture of second_derivatives.md: Hessian-free steps beside Adam on the adding problem.

python docs/hessian_free.py [SECONDS]

It runs the blocks of the page that define both methods, and trains on seeds that played no part in
the choice of constants. It writes docs/_static/hessian_free.png. SECONDS is the CPU time of each
method and seed.
"""

import re
import statistics
import sys
from pathlib import Path

import pictures  # beside this file
from matplotlib.figure import Figure

HERE = Path(__file__).parent
SEEDS = (1, 2, 3, 4)
COLOURS = {"Hessian-free": "#c8553d", "Adam": "#31507a"}
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)


def defined_on_the_page():
    """Return the names that the page defines up to `train`."""
    text = (HERE / "second_derivatives.md").read_text(encoding="utf-8")
    program, _, _ = text.partition('\nfor method in ("Hessian-free"')
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", f"{program}\n```", re.DOTALL | re.MULTILINE)
    exec("\n".join(blocks), names)
    return names


def main():
    train = defined_on_the_page()["train"]
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 25.0
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, colour in COLOURS.items():
        runs = [train(method, seed, seconds) for seed in SEEDS]
        for rows in runs:
            label = method if rows is runs[0] else None
            axes.plot(*zip(*rows, strict=True), color=colour, linewidth=1, alpha=0.8, label=label)
        steps = [len(rows) * (50 if method == "Adam" else 1) for rows in runs]
        ends = [rows[-1][1] for rows in runs]
        sys.stdout.write(f"{method}: {steps} steps, errors at the end {ends}\n")
        for level in LEVELS:
            first = [next((s for s, e in rows if e < level), float("inf")) for rows in runs]
            sys.stdout.write(f"  below {level:g} after {statistics.median(first):.1f} s: {first}\n")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="seconds of a processor",
        ylabel="mean squared error, new sequences",
    )
    axes.legend(frameon=False)
    pictures.save(figure, "hessian_free.png", 32)


if __name__ == "__main__":
    main()
