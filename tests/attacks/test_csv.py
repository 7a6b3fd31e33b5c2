"""Damaged and hostile CSV files: refused by name, in little time and memory, or read as what they
say.
"""

import random

import pytest

from tests.attacks import damage
from tests.attacks.bounds import examples, refusal
from xlstm.data.series import bundled, read_csv

SMALL = {
    "attoseconds": "time,v\n" + "".join(f"2024-01-01T00:00:00.{k:018d},{k}\n" for k in range(50)),
    "far years": "date,v\n0000-01-01,1\n9999-12-31,2\n",
    "a long gap": "time,v\n"
    + "".join(f"2001-0{m}-01T00:00:0{s},{s}\n" for m in (1, 8) for s in range(9)),
    "digits of other scripts": "date,v\n\u0662\u0660\u0660\u0661,1\n\u0662\u0660\u0660\u0662,2\n",
    "clocks": "time,v\n"
    + "".join(f"2024-10-27T00:{k:02d}:00+0{k % 2}:00,{k}\n" for k in range(50)),
    "far zones": "time,v\n0000-01-01T00:00+14:00,1\n9999-12-31T23:59-14:00,2\n",
}
LARGE = {
    "a million columns": lambda: (
        ",".join(map(str, range(10**6))) + "\n" + ",".join(["1"] * 10**6) + "\n"
    ),
    "one long line": lambda: "v" * 9_000_000,
    "one long cell": lambda: "date,v\n2001,1\n2002," + "9" * 8_000_000 + "\n",
    "nothing but commas": lambda: ("," * 500 + "\n") * 3_000,
    "nothing but line ends": lambda: "\n" * 1_000_000,
    "an open quote": lambda: 'date,v\n2001,"' + "1\n" * 1_000_000,
    "many rows": lambda: (
        "date,v\n" + "".join(f"{1000 + k},{k}\n" for k in range(9000)) + "x,1\n" * 100_000
    ),
    "many short rows": lambda: "a,b\n" + "1,2\n" * 300_000,
    "long numbers": lambda: "v\n" + ("1" * 100_000 + "\n") * 5,
    "many digits": lambda: "date,v\n" + ("1" * 100_000 + "q,1\n") * 20,
}

SEPARATORS = b',;\t|\n\r"-:TZ.eE09QW/ '


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_hostile_files(tmp_path, name):
    path = tmp_path / "data.csv"
    path.write_text(SMALL[name] if name in SMALL else LARGE[name](), encoding="utf-8")
    refusal(lambda: read_csv(path), path.stat().st_size)


def test_damaged_files(tmp_path):
    """Files of the package and of other kinds, with separators where there were none."""
    sound = [bundled("sunspots").read_bytes()[:3000], bundled("co2").read_bytes()[:3000]]
    sound += [text.encode() for text in SMALL.values()]
    path = tmp_path / "data.csv"
    for seed in range(examples(300)):
        draw = random.Random(seed)
        data = damage.flipped(draw.choice(sound), draw)
        at = draw.randrange(len(data) + 1)
        path.write_bytes(
            data[:at] + bytes(draw.choices(SEPARATORS, k=draw.randrange(9))) + data[at:]
        )
        refusal(lambda: read_csv(path), path.stat().st_size)
