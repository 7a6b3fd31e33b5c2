"""Shows the record of `bench.gpu` as a short table: barriers, times beside cuDNN's and the limits, goals, parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench import limits
from bench.cudnn import CAPTURED, EAGER, OURS, agrees

Record = Mapping[str, Any]
LEGEND = (
    "ratio: xlstm / the better of cuDNN's two. device: between events, beyond it a call's overhead. limit: an estimate "
    "from data sheets, for an H100 or H200 alone; measured: the same with the latency of barriers measured here."
)


class Line(NamedTuple):
    """A case, in milliseconds; None where there is no number."""

    name: str
    layer: str
    precision: str
    train: bool
    xlstm: float
    device: float
    eager: float | None
    captured: float | None
    limit: float | None
    measured: float | None  # the limit with measured barriers
    path: str
    remark: str  # what is wrong or missing

    @property
    def overhead(self) -> float:
        return self.xlstm - self.device

    @property
    def ratio(self) -> float | None:
        """To the better of cuDNN's times."""
        peers = [t for t in (self.eager, self.captured) if t is not None]
        return self.xlstm / min(peers) if peers else None

    @property
    def over_limit(self) -> float | None:
        return None if self.limit is None else self.xlstm / self.limit


class Goal(NamedTuple):
    """A goal of cases with forward and backward: the number to keep small, the first bound and the last."""

    name: str
    precisions: tuple[str, ...]
    value: Callable[[Line], float | None]
    first: float
    then: float


GOALS = (
    Goal("TF32, bf16 / cuDNN", ("TF32", "bf16"), lambda line: line.ratio, 0.5, 0.33),
    Goal("fp16 / cuDNN", ("fp16",), lambda line: line.ratio, 1.1, 0.85),
    Goal("time / limit", ("fp32", "TF32", "fp16", "bf16"), lambda line: line.over_limit, 2.0, 1.5),
    Goal("overhead, ms", ("fp32", "TF32", "fp16", "bf16"), lambda line: line.overhead, 0.1, 0.1),
)


def lines(record: Record) -> list[Line]:
    """The cases that were measured."""
    rows = (record.get("cudnn") or {}).get("rows", [])
    return [_line(row, record.get("card", ""), record.get("barriers")) for row in rows if "seconds" in row]


def _line(row: Record, card: str, barriers: Record | None) -> Line:
    case, seconds = row["case"], row["seconds"]
    shape = case["layer"], case["T"], case["B"], case["H"]

    def wall(name: str) -> float | None:
        return seconds[name]["wall"] * 1e3 if name in seconds else None

    estimate = limits.estimate(card, case["precision"], *shape)
    sync = barrier(barriers, case["H"])
    measured = None if sync is None else limits.estimate(card, case["precision"], *shape, sync)
    remarks = [f"no {name}" for name in row["missing"] if name == CAPTURED]
    if not row["peer by cuDNN"]:
        remarks.append("PyTorch without cuDNN")
    if not agrees(row):
        remarks.append(f"RESULTS DIFFER by {row['difference']:.1e}")
    return Line(
        row["name"],
        case["layer"],
        case["precision"],
        case["train"],
        seconds[OURS]["wall"] * 1e3,
        seconds[OURS]["device"] * 1e3,
        wall(EAGER),
        wall(CAPTURED),
        None if estimate is None else estimate.of(case["train"]) * 1e3,
        None if measured is None else measured.of(case["train"]) * 1e3,
        row["choice"]["path"],
        ", ".join(remarks),
    )


def barrier(barriers: Record | None, H: int) -> float | None:
    """Seconds of the barrier that the limit of H units is about, the largest one measured; None without."""
    found = (barriers or {}).get(limits.way(H))
    return found[max(found, key=int)] * 1e-6 if found else None


def table(some: list[Line]) -> list[str]:
    """Return the lines of cases that were not forced to a path."""
    head = ("xlstm", "device", "cuDNN", "captured", "ratio", "limit", "/ limit", "measured")
    width = 38
    found = [f"{'ms':{width}s}" + "".join(f"{name:>9s}" for name in head) + "  path"]
    for line in some:
        numbers = [line.xlstm, line.device, line.eager, line.captured, line.ratio, line.limit, line.over_limit]
        cells = "".join(f"{_number(n):>9s}" for n in (*numbers, line.measured))
        found.append(f"{line.name:{width}s}{cells}  {line.path}{f'  ({line.remark})' if line.remark else ''}")
    return found


def goals(some: list[Line]) -> list[str]:
    """Each goal: how many cases keep to it, whether it is met, and the worst."""
    found = [f"{'goal, forward + backward':26s}{'first':>26s}{'then':>26s}   worst"]
    for goal in GOALS:
        values = [
            (value, line)
            for line in some
            if line.train and line.precision in goal.precisions and (value := goal.value(line)) is not None
        ]
        if not values:
            found.append(f"{goal.name:26s}{'not measured':>26s}{'not measured':>26s}")
            continue
        cells = []
        for bound in (goal.first, goal.then):
            kept = sum(value <= bound and "DIFFER" not in line.remark for value, line in values)
            verdict = "met" if kept == len(values) else "missed"
            cells.append(f"{f'<= {bound:g}: {kept} of {len(values)}, {verdict}':>26s}")
        worst, line = max(values, key=lambda pair: pair[0])
        found.append(f"{goal.name:26s}{''.join(cells)}   {worst:.3g} at {line.name}")
    return found


def paths(record: Record) -> list[str]:
    """Times by each path, of the cases measured so."""
    found = []
    for row in (record.get("cudnn") or {}).get("rows", []):
        if not row["case"]["forced"] or "seconds" not in row:
            continue
        times = {name: t["wall"] * 1e3 for name, t in row["seconds"].items() if name.startswith(OURS)}
        chosen = f"{row['choice']['path']} (chosen)"
        cells = [f"{name.removeprefix(OURS).strip() or chosen} {t:.3g}" for name, t in times.items()]
        found.append(f"{row['name']:48s} {', '.join(cells)}")
    return found


def parts(record: Record) -> list[str]:
    """Return which parts were run, and how they went."""
    found = [f"{'part':12s} {'seconds':>8s}  result"]
    for part in record["parts"]:
        said = f": {part['said']}" if part["said"] else ""
        found.append(f"{part['name']:12s} {part['seconds']:8.1f}  {part['result']}{said}")
    return found


def text(record: Record) -> str:
    """All of it."""
    from bench.barriers import table as barriers

    cudnn, some = record.get("cudnn") or {}, lines(record)
    plain = [line for line in some if "each path" not in line.name]
    blocks = [[record.get("card", "")]]
    if record.get("barriers"):
        blocks.append(barriers(record["barriers"]))
    if plain:
        blocks.append([*table(plain), LEGEND])
    blocks.append(goals(plain))
    if by_path := paths(record):
        blocks.append(["forward + backward by each path, ms", *by_path])
    failed = [f"failed: {row['name']}: {row['error']}" for row in cudnn.get("rows", []) if "error" in row]
    if cudnn.get("left out"):
        failed.append(f"not measured for want of time: {'; '.join(cudnn['left out'])}")
    blocks.append(failed)
    blocks.append(parts(record))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
