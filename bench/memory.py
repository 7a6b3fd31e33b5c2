"""Peak memory of an LSTM forward + backward beyond weights, input and libraries, each in a process
of its own.

python -m bench.memory [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict, replace

from bench import cases, peers, run
from bench.cases import LARGE, SHAPES, Case
from bench.peak import peak_memory
from bench.peers import MissingError


def prepare(peer: str, case: Case):
    """The call, after a small one."""
    small = replace(case, T=2, D=4, H=4)
    if peer == "xlstm":
        cases.ours(small)()
        return cases.ours(case)
    peers.PEERS[peer](small)()
    return peers.PEERS[peer](case)


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("peak memory")
    for shape in (*SHAPES[2:], *LARGE):
        case = Case("lstm", *shape)
        results = {}
        missing = {}
        for peer in ("xlstm", "torch"):
            try:
                if peer != "xlstm":
                    peers.PEERS[peer](replace(case, T=2))
            except MissingError as reason:
                missing[peer] = str(reason)
                continue
            peak = peak_memory(prepare, peer, case)
            if peak is None:
                print(
                    "this system does not say how much memory a process took at most: not measured"
                )
                return
            results[peer] = peak
        about = {"missing": missing, "case": asdict(case)}
        run.record("peak memory", str(case), results, options.json, unit="bytes", **about)


if __name__ == "__main__":
    main()
