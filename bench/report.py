"""Results as tables: ratios of median times, xlstm / peer, below 1 where xlstm is faster.

    python -m bench.report FILE [FILE ...] [--page docs/speed.md]

--page replaces everything between the two marks of that page.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from bench.options import parser_of

START = "<!-- bench -->\n"
END = "<!-- /bench -->\n"
ALONE = "xlstm, NumPy alone"
PRODUCTS = "its products alone"
Line = dict


def read(path: Path) -> list[Line]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_bench(lines: list[Line]) -> dict[str, list[Line]]:
    """Return the lines of each benchmark, by its name."""
    names = dict.fromkeys(line["bench"] for line in lines)
    return {name: [line for line in lines if line["bench"] == name] for name in names}


def ratio(line: Line, peer: str, mine: str = "xlstm") -> float | None:
    """Return the ratio of medians, or None where one is missing."""
    results = line["results"]
    return (
        results[mine]["median"] / results[peer]["median"] if {peer, mine} <= set(results) else None
    )


def about(lines: list[Line]) -> str:
    """Machine and versions, in words."""
    machine = lines[0]["machine"]
    packages = machine["packages"]
    names = [
        name
        for name in ("numpy", "numba", "torch", "jax", "keras", "onnxruntime")
        if name in packages
    ]
    variables = " ".join(f"{k}={v}" for k, v in machine["variables"].items()) or "none set"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"BLAS in {'; in '.join(machine['blas'])}; "
        f"Python {machine['python'].split()[0]}, "
        + ", ".join(f"{name} {packages[name]}" for name in names)
        + f"; variables of BLAS and xlstm: {variables}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def number(value: float | None) -> str:
    """Return a ratio as text, empty without one."""
    return "" if value is None else f"{value:.2f}"


def peers_of(lines: list[Line]) -> list[str]:
    """Return names of peers, the most frequent first."""
    names = [
        name for line in lines for name in line["results"] if name not in ("xlstm", ALONE, PRODUCTS)
    ]
    return sorted(dict.fromkeys(names), key=lambda name: -names.count(name))


def details(lines: list[Line]) -> str:
    """Return a table with a row for each case of one benchmark."""
    peers = peers_of(lines)
    scale, unit = (1e3, "ms") if lines[0]["unit"] == "seconds" else (1e-6, "MB")
    alone = bool(peers) and any(ALONE in line["results"] for line in lines)
    products = any(PRODUCTS in line["results"] for line in lines)
    head = [
        "" if "published" in lines[0]["bench"] else "T,B,D,H",
        f"xlstm, {unit}",
        *(f"/ {peer}" for peer in peers),
    ]
    head += [f"NumPy alone / {peers[0]}" for _ in range(alone)] + [f"/ {PRODUCTS}"] * products
    rows = []
    for line in lines:
        cells = [line["name"], f"{line['results']['xlstm']['median'] * scale:.3g}"]
        cells += [number(ratio(line, peer)) for peer in peers]
        cells += [number(ratio(line, peer, ALONE)) for peer in peers[:alone]]
        cells += [number(ratio(line, PRODUCTS))] * products
        rows.append(cells)
    return table(head, rows)


def summary(lines: list[Line]) -> str:
    """Return a table with a row for each group: geometric mean and worst of its ratios."""
    peers = peers_of(lines)
    compared = [*(("xlstm", peer) for peer in peers), *((ALONE, peer) for peer in peers[:1])]
    rows = []
    for name, some in by_bench(lines).items():
        cells = [f"{name} ({len(some)})" if len(some) > 1 else name]
        for mine, peer in compared:
            ratios = [r for line in some if (r := ratio(line, peer, mine)) is not None]
            mean = statistics.geometric_mean(ratios) if ratios else None
            cells.append(
                f"{mean:.2f} (at most {max(ratios):.2f})" if len(ratios) > 1 else number(mean)
            )
        rows.append(cells)
    return table(
        ["", *(f"{'NumPy alone ' if mine == ALONE else ''}/ {peer}" for mine, peer in compared)],
        rows,
    )


def text(lines: list[Line], paths: list[Path]) -> str:
    """Return the tables of docs/speed.md: LSTM case by case, the others summed up."""
    files = ", ".join(path.as_posix() for path in paths)
    lstm = by_bench(lines)["lstm forward + backward"]
    return (
        "LSTM forward + backward, median time of a call and its ratio to others' (below 1: xlstm"
        f" is faster):\n\n{details(lstm)}\n{published(lines)}Everything measured, geometric mean of"
        " the ratios and the worst of"
        f" them:\n\n{summary([line for line in lines if 'published' not in line['bench']])}\nThe"
        f" first table and this one were measured by `nox -s bench` ({files}): {about(lines)}.\n"
    )


def published(lines: list[Line]) -> str:
    """Return the table beside the published xLSTM packages, if they were timed."""
    some = by_bench(lines).get("published")
    if some is None:
        return ""
    return (
        "xLSTM forward + backward beside the published packages (`python -m bench.published`):"
        " mLSTM of B,heads,T,K, sLSTM of T,B,H,heads, and a training step of four blocks,"
        f" B,T,D:\n\n{details(some)}\nThis table was measured on {about(some)}.\n\n"
    )


def insert(page: Path, block: str) -> None:
    """Replace everything between the marks of a page; ValueError unless they are there once."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    page.write_text(f"{before}{START}{block}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="results, JSON lines")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    lines = [line for file in options.files for line in read(file)]
    print(f"{about(lines)}\n")
    for name, some in by_bench(lines).items():
        print(f"{name}\n\n{details(some)}")
    print(summary(lines))
    if options.page:
        insert(options.page, text(lines, options.files))


if __name__ == "__main__":
    main()
