"""Peak memory of an LSTM forward + backward, not counting weights, input and libraries, each in a
process of its own.

python -m bench.memory [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict, replace

from bench import cases, peers, run
from bench.cases import LARGE, Case
from bench.peak import peak_memory
from bench.peers import MissingError
from xlstm.cli.bench import SIZES


def prepare(peer: str, case: Case):
    """The call, after a small one."""
    build = cases.ours if peer == "xlstm" else peers.torch_call
    build(replace(case, T=2, D=4, H=4))()
    return build(case)


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("peak memory")
    for shape in (*SIZES[2:], LARGE):
        case = Case("lstm", *shape)
        results = {"xlstm": peak_memory(prepare, "xlstm", case)}
        missing = {}
        try:
            results["torch"] = peak_memory(prepare, "torch", case)
        except MissingError as reason:
            missing["torch"] = str(reason)
        if results["xlstm"] is None:
            print("this system does not say how much memory a process took at most: not measured")
            return
        run.record(
            "peak memory",
            str(case),
            results,
            options.json,
            missing=missing,
            case=asdict(case),
            unit="bytes",
        )


if __name__ == "__main__":
    main()
