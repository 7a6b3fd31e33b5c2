"""How the time of an LSTM, forward + backward, grows with T, B and H, and whether there is a cliff between sizes.

    python -m bench.growth [--json FILE] [--plot PICTURE]

Results are JSON lines, in bench/results/growth-<machine>.json by default; a file of that name is replaced.
A unit is one multiplication of the matrix products. The goals: the time per unit of a size is at most 1.3 times that of
either neighbour at B = 1, 3, 17, 33 and where H is no multiple of the vector; and it never grows by more than 1.3 from
a size of T or B to a larger one, so that time is linear. Least times are compared, since noise only adds to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xlstm
from bench import run
from bench.__main__ import name_of_machine
from bench.cases import Case, ours
from bench.report import number, table
from xlstm.cli import bench
from xlstm.cli.bench import Timing, interleave

GOAL = 1.3
T = [16, 32, 64, 128, 256, 512, 1024]
B = [1, 2, 3, 4, 8, 12, 16, 17, 32, 33, 64, 128, 256]
H = [48, 50, 64, 100, 112, 127, 128, 129, 144]
ODD = {"B": (1, 3, 17, 33), "H": (50, 100, 127, 129)}  # sizes that are compared with both neighbours


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one size alone, in its order."""

    name: str
    letter: str
    cases: list[Case]

    @property
    def sizes(self) -> list[int]:
        """The size in which the cases differ."""
        return [getattr(case, self.letter) for case in self.cases]


def sweeps() -> list[Sweep]:
    """Return all sweeps."""
    return [
        Sweep("T (B = 16, D = H = 128)", "T", [Case("lstm", t, 16, 128, 128) for t in T]),
        Sweep("B (T = 64, D = H = 128)", "B", [Case("lstm", 64, b, 128, 128) for b in B]),
        *(Sweep(f"D = H (T = 64, B = {b})", "H", [Case("lstm", 64, b, h, h) for h in H]) for b in (1, 16)),
    ]


def unit(case: Case, timing: Timing) -> float:
    """Return picoseconds for each multiplication of the products."""
    size = bench.Size(case.T, case.B, case.D, case.H)
    return timing.best * 1e12 / (bench.Case(case.layer, size).operations / 2)


def rows(sweep: Sweep, units: Sequence[float]) -> list[list[str]]:
    """Return for each size the ratios of its time per unit to those of its neighbours and between them, and a verdict.

    Between the neighbours the time per unit is interpolated, linear in logarithms: where it falls steeply anyway, as
    from one sequence to two, that ratio is near 1, and a cliff is still one.
    """
    found, sizes = [], sweep.sizes
    for k, size in enumerate(sizes):
        before, after = (units[k] / units[i] if 0 <= i < len(units) else None for i in (k - 1, k + 1))
        between = None
        if before and after:
            share = math.log(size / sizes[k - 1]) / math.log(sizes[k + 1] / sizes[k - 1])
            between = before ** (1 - share) * after**share
        judged = size in ODD.get(sweep.letter, ())
        found.append([number(ratio) for ratio in (before, after, between)])
        found[-1].append(verdict(max(before or 0, after or 0)) if judged else "")
    return found


def growth(units: Sequence[float]) -> float:
    """Return the largest ratio of the time per unit of a size to that of a smaller one."""
    return max(later / before for k, before in enumerate(units) for later in units[k:])


def verdict(ratio: float) -> str:
    """Return whether a ratio is within the goal."""
    return "pass" if ratio <= GOAL else "miss"


def show(sweep: Sweep, timings: Mapping[str, Timing]) -> None:
    """Print the table of a sweep."""
    units = [unit(case, timings[str(case)]) for case in sweep.cases]
    body = [
        [str(size), f"{timings[str(case)].best * 1e3:.3f}", f"{one:.1f}", *row]
        for size, case, one, row in zip(sweep.sizes, sweep.cases, units, rows(sweep, units), strict=True)
    ]
    head = [sweep.name, "ms", "ps a unit", "/ size before", "/ size after", "/ between them", f"both at most {GOAL}"]
    print(table(head, body))
    if sweep.letter != "H":
        most = growth(units)
        print(f"time per unit grows by {most:.2f} at most, goal {GOAL}: {verdict(most)}\n", flush=True)


def plot(found: Sequence[tuple[Sweep, Mapping[str, Timing]]], path: Path) -> None:
    """Draw time over T and over B beside lines of linear growth, and the time per unit over H."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = dict(zip("TBH", figure.subplots(1, 3), strict=True))
    for sweep, timings in found:
        axes, sizes = panels[sweep.letter], sweep.sizes
        best = [timings[str(case)] for case in sweep.cases]
        if sweep.letter == "H":
            units = [unit(case, t) for case, t in zip(sweep.cases, best, strict=True)]
            axes.plot(sizes, units, "o-", markersize=4, linewidth=1.2, label=f"B = {sweep.cases[0].B}")
            continue
        ms = [t.best * 1e3 for t in best]
        axes.plot(sizes, ms, "o", markersize=4, label="measured")
        least = min(one / size for one, size in zip(ms, sizes, strict=True))
        linear = [least * size for size in sizes]
        axes.plot(sizes, linear, color="0.6", linewidth=1, label=f"linear, at the least time per {sweep.letter}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes if sweep.letter == "T" else [1, 2, 4, 8, 16, 32, 64, 128, 256])
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_title(f"over {sweep.name}", loc="left", fontsize=9)
    panels["T"].set_xlabel("T, steps")
    panels["B"].set_xlabel("B, sequences")
    panels["H"].set_xlabel("D = H, units")
    panels["H"].set_title("over D = H (T = 64)", loc="left", fontsize=9)
    panels["H"].set_ylabel("time of a multiplication, ps")
    panels["H"].set_ylim(bottom=0)
    for letter in "TB":
        panels[letter].set_ylabel("time, forward + backward, ms")
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--plot", type=Path, default=Path("bench/results/growth.png"))
    options = parser.parse_args()
    if options.json is None:  # a file of its own, which holds the last run
        options.json = Path("bench/results") / f"growth-{name_of_machine()}.json"
        options.json.unlink(missing_ok=True)
    run.start("growth")
    backend = xlstm.backend("numpy", dtype="float32")
    found = []
    for sweep in sweeps():
        timings = interleave({str(case): ours(case, backend) for case in sweep.cases}, options.rounds)
        for case in sweep.cases:
            mine = {"xlstm": timings[str(case)]}
            run.finish(f"growth with {sweep.letter}", str(case), mine, options.json, case=asdict(case))
        print()
        show(sweep, timings)
        found.append((sweep, timings))
    plot(found, options.plot)
    print(f"results: {options.json}, {options.plot}")


if __name__ == "__main__":
    main()
