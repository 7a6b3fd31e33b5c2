"""The record of `bench.gpu` as a short table: the card, times beside other libraries and limits,
goals, parts, and the last lines of parts that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench import barriers, limits
from bench.cudnn import CAPTURED, EAGER
from bench.mlstm import KERNELS
from bench.rows import OURS, OURS_CAPTURED, PRECISIONS, agrees
from xlstm.engines.cuda.tiling import Device

Record = Mapping[str, Any]
PARTS = ("cudnn", "mlstm", "language")  # the parts whose rows the table has
LEGEND = (
    "peer: cuDNN, or the quickest of the published mLSTM kernels. graph: the column before in a"
    " CUDA graph. ratio: the better of ours / the better of the peer's. device: between events,"
    " beyond it a call's overhead. limit: an estimate from data sheets; measured: the same with the"
    " latency of barriers and the speed of memory as measured here. A language model has the times"
    " of a step of training, and of a token."
)


class Line(NamedTuple):
    """A case, in milliseconds; None where there is no number."""

    name: str
    layer: str
    precision: str
    train: bool
    xlstm: float
    graph: float | None  # the same captured
    device: float
    peer: float | None
    captured: float | None  # of the peer
    limit: float | None
    measured: float | None  # the limit with measured barriers and memory
    path: str
    remark: str  # what is wrong or missing

    @property
    def overhead(self) -> float:
        return self.xlstm - self.device

    @property
    def ratio(self) -> float | None:
        """The better of our times to the better of the peer's."""
        peers = [t for t in (self.peer, self.captured) if t is not None]
        return self.best / min(peers) if peers else None

    @property
    def best(self) -> float:
        return self.xlstm if self.graph is None else min(self.xlstm, self.graph)

    @property
    def over_limit(self) -> float | None:
        return None if self.limit is None else self.best / self.limit


class Goal(NamedTuple):
    """A goal of cases with forward and backward: the number to keep small, the first bound and the
    last.
    """

    name: str
    layers: tuple[str, ...]
    precisions: tuple[str, ...]
    value: Callable[[Line], float | None]
    first: float
    then: float


LOOPS = ("lstm", "gru")
EVERY = tuple(PRECISIONS)
GOALS = (
    Goal("TF32, bf16 / cuDNN", LOOPS, ("TF32", "bf16"), lambda line: line.ratio, 0.5, 0.33),
    Goal("fp16 / cuDNN", LOOPS, ("fp16",), lambda line: line.ratio, 1.1, 0.85),
    Goal("time / limit", LOOPS, EVERY, lambda line: line.over_limit, 2.0, 1.5),
    Goal("overhead, ms", LOOPS, EVERY, lambda line: line.overhead, 0.1, 0.1),
    Goal("mLSTM / kernels", ("mlstm",), EVERY, lambda line: line.ratio, 1.1, 0.85),
)


def rows(record: Record) -> list[Record]:
    """Return the rows of all parts of the record."""
    return [row for part in PARTS for row in (record.get(part) or {}).get("rows", [])]


def lines(record: Record) -> list[Line]:
    """The cases that were measured."""
    return [_line(row, record) for row in rows(record) if "seconds" in row]


def _line(row: Record, record: Record) -> Line:
    case = row["case"]
    seconds = row["seconds"]
    walls = {name: times["wall"] * 1e3 for name, times in seconds.items()}
    card = record.get("barriers")
    remarks = [
        f"no {name}" for name in row["missing"] if name in (CAPTURED, OURS_CAPTURED, *KERNELS)
    ]
    if not row.get("peer by cuDNN", True):
        remarks.append("PyTorch without cuDNN")
    if not agrees(row):
        remarks.append(f"RESULTS DIFFER by {row['difference']:.1e}")
    if "tokens a second" in row:
        remarks.append(f"{row['tokens a second']:,.0f} tokens/s")
    return Line(
        row["name"],
        case["layer"],
        case["precision"],
        case["train"],
        walls[OURS],
        walls.get(OURS_CAPTURED),
        seconds[OURS]["device"] * 1e3,
        min((walls[name] for name in (EAGER, *KERNELS) if name in walls), default=None),
        walls.get(CAPTURED),
        _limit(row, record, {}),
        _limit(row, record, card) if card else None,
        row.get("choice", {}).get("path", ""),
        ", ".join(remarks),
    )


def _limit(row: Record, record: Record, card: Record) -> float | None:
    """Return the milliseconds of the limit of a row with what was measured of the card; None
    without.
    """
    if not isinstance(record.get("device"), Mapping):
        return None
    device = Device(**record["device"])
    case = row["case"]
    layer = case["layer"]
    B = case["B"]
    T = case["T"]
    size = 4 if PRECISIONS[case["precision"]] == "float32" else 2
    H = case["H" if layer in LOOPS else "D"] if layer != "mlstm" else 1
    # microseconds of the barriers that the limit of H units is about, the largest of which counts
    waits = card.get(limits.way(H, device))
    wait = waits[max(waits, key=int)] * 1e-6 if waits else None
    rates = limits.rates(device, case["precision"], H, wait, card.get("copied"))
    if rates is None:
        return None
    if layer in LOOPS:
        passes = limits.recurrent(layer, T, B, H)
    elif layer == "mlstm":
        passes = limits.mlstm(B, case["N"], T, case["K"], case["V"], size)
    elif case["train"]:
        passes = limits.language(row["weights"], B * T, T * row["loops"])
    else:
        passes = (limits.token(row["weights"], B, size),)
    return sum(map(rates.seconds, passes if case["train"] else passes[:1])) * 1e3


def table(some: list[Line]) -> list[str]:
    """Return the lines of cases that were not forced to a path."""
    head = ("xlstm", "graph", "device", "peer", "graph", "ratio", "limit", "/ limit", "measured")
    width = 38
    text_lines = [f"{'ms':{width}s}" + "".join(f"{name:>9s}" for name in head) + "  path"]
    for line in some:
        numbers = [line.xlstm, line.graph, line.device, line.peer, line.captured]
        numbers += [line.ratio, line.limit, line.over_limit, line.measured]
        cells = "".join(f"{_number(n):>9s}" for n in numbers)
        text_lines.append(
            f"{line.name:{width}s}{cells}  {line.path}{f'  ({line.remark})' if line.remark else ''}"
        )
    return text_lines


def goals(some: list[Line]) -> list[str]:
    """Return each goal: how many cases keep to it, whether it is met, and the worst case."""
    text_lines = [f"{'goal, forward + backward':26s}{'first':>26s}{'then':>26s}   worst"]
    for goal in GOALS:
        values = [
            (value, line)
            for line in some
            if line.train
            and line.layer in goal.layers
            and line.precision in goal.precisions
            and (value := goal.value(line)) is not None
        ]
        if not values:
            text_lines.append(f"{goal.name:26s}{'not measured':>26s}{'not measured':>26s}")
            continue
        cells = []
        for bound in (goal.first, goal.then):
            within = sum(value <= bound and "DIFFER" not in line.remark for value, line in values)
            verdict = "met" if within == len(values) else "missed"
            cells.append(f"{f'<= {bound:g}: {within} of {len(values)}, {verdict}':>26s}")
        worst, line = max(values, key=lambda pair: pair[0])
        text_lines.append(f"{goal.name:26s}{''.join(cells)}   {worst:.3g} at {line.name}")
    return text_lines


def paths(record: Record) -> list[str]:
    """Return times by each path, of the cases that were forced to paths."""
    text_lines = []
    for row in rows(record):
        if not row["case"].get("forced") or "seconds" not in row:
            continue
        times = {
            name: t["wall"] * 1e3 for name, t in row["seconds"].items() if name.startswith(OURS)
        }
        path = f"{row['choice']['path']} (chosen)"
        cells = [f"{name.removeprefix(OURS).strip() or path} {t:.3g}" for name, t in times.items()]
        text_lines.append(f"{row['name']:48s} {', '.join(cells)}")
    return text_lines


def parts(record: Record) -> list[str]:
    """Return which parts were run, and how they went."""
    text_lines = [f"{'part':12s} {'seconds':>8s}  result"]
    for part in record.get("parts", []):
        said = f": {part['said']}" if part["said"] else ""
        text_lines.append(f"{part['name']:12s} {part['seconds']:8.1f}  {part['result']}{said}")
    return text_lines


def text(record: Record) -> str:
    """Return the whole table."""
    some = lines(record)
    plain = [line for line in some if "each path" not in line.name]
    blocks = [[record.get("card", "")]]
    if record.get("barriers"):
        blocks.append(barriers.table(record["barriers"]))
    if plain:
        blocks.append([*table(plain), LEGEND])
    blocks.append(goals(plain))
    if by_path := paths(record):
        blocks.append(["forward + backward by each path, ms", *by_path])
    remarks = [f"failed: {row['name']}: {row['error']}" for row in rows(record) if "error" in row]
    reasons = {
        f"without {peer}: {reason}"
        for row in rows(record)
        for peer, reason in row["missing"].items()
        if peer in (CAPTURED, OURS_CAPTURED, *KERNELS)
    }
    left_out = [name for part in PARTS for name in (record.get(part) or {}).get("left out", [])]
    if left_out:
        remarks.append(f"not measured for want of time: {'; '.join(left_out)}")
    blocks.append([*remarks, *sorted(reasons)])
    blocks.append(parts(record))
    failed = [part for part in record.get("parts", []) if part["tail"]]
    blocks += [[f"{part['name']}, its last lines:", *part["tail"]] for part in failed]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
