"""Pointwise functions compiled by Numba, where that is installed: one loop over all units.

NumPy makes a pass over memory for every operation; the loop here makes one for all of them, in vector
registers and without the interpreter. What it computes is traced (`tracing.py`), so no formula stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from xlstm.engines.numba.jit import load, name_of
from xlstm.tracing.symbols import Symbols, trace

# Operations as Python expressions. In maximum and minimum what is not a number stays, as in NumPy.
FORMS = {
    **{"add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "negative": "-{}"},
    **{"less": "{} < {}", "less_equal": "{} <= {}", "and": "{} & {}", "where": "{1} if {0} else {2}"},
    "maximum": "{0} if ({0} > {1}) | ({0} != {0}) else {1}",
    "minimum": "{0} if ({0} < {1}) | ({0} != {0}) else {1}",
    **{"number": "F({!r})", "tanh": "tanh({})", "exp": "exp({})", "abs": "abs({})"},
    **{name: f"F(math.{name}({{}}))" for name in ("expm1", "log", "log1p", "sqrt")},
}
# A loop with a function of libm makes no vectors, and without them libm's exp is quicker, too.
LIBM = ("expm1", "log", "log1p")
SCALAR = FORMS | {"exp": "F(math.exp({}))"}
# Integer of the same size, bits of the mantissa, bias of the exponent, an x whose tanh is 1, the x between which exp(x)
# is neither 0 nor infinite, ln 2 in two parts, and terms of the series of exp(r) - 1 for |r| <= ln(2)/2.
FLOATS = {
    "float32": ("int32", 23, 127, 10.0, -104.0, 89.0, 0.693359375, -2.12194440e-4, 7),
    "float64": ("int64", 52, 1023, 20.0, -746.0, 710.0, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 13),
}
# What all kernels of a dtype share.
BASE = """
import functools
import math

import numpy as np

from xlstm.engines.numba.codecache import cached

F, I, U = np.{dtype}, np.{integer}, np.uintp  # an unsigned index never counts from the end
compiled = functools.partial(cached, nogil=True, fastmath={{"contract", "nsz"}}, error_model="numpy")


@compiled
def tanh(x):
    # e / (e + 2) with e = exp(2x) - 1 = 2^k p(r) + (2^k - 1) and 2x = k ln 2 + r. libm's makes no vectors.
    a = F({limit}) if x > F({limit}) else x
    a = F(-{limit}) if a < F(-{limit}) else a
    a = a + a
    w = a * F({log2e!r}) + F({magic!r})  # leaves k in the last bits
    k = w - F({magic!r})
    r = (a - k * F({high!r})) - k * F({low!r})
    p = {series}
    s = I((F(w).view(I) + I({bias})) << I({mantissa})).view(F)
    e = s * p + (s - F(1))
    return e / (e + F(2))


@compiled
def exp(x):
    # 2^k (1 + p(r)) with x = k ln 2 + r; 2^k is a product of two powers, as exp(x) has more exponents than one has.
    a = F({highest}) if x > F({highest}) else x
    a = F({lowest}) if a < F({lowest}) else a
    w = a * F({log2e!r}) + F({magic!r})  # leaves k in the last bits
    k = w - F({magic!r})
    r = (a - k * F({high!r})) - k * F({low!r})
    p = {series}
    n = I(I(F(w).view(I) - F({magic!r}).view(I)) + I(2 * {bias}))
    m = I(n >> I(1))
    return (p + F(1)) * I(m << I({mantissa})).view(F) * I(I(n - m) << I({mantissa})).view(F)


{more}
"""
SOURCE = """
from {base} import *


@compiled
def step(j, t, first, last, {names}):
    for unit in range(U(first), U(last)):
        {body}


{around}
"""


class Kernel:
    """A function compiled on first use.

    `step(j, t, first, last, *arrays)` computes the units from `first` to `last` of a time step; `names` are those of
    its arrays.
    """

    def __init__(
        self,
        dtype: str,
        function: Callable[..., Mapping[str, Symbols]],
        inputs: Mapping[str, int | None],
        loads: Mapping[str, str],
        stores: Mapping[str, str],
        around: str,
        more: str = "",
        numbers: Collection[str] = (),
    ) -> None:
        """Trace a function of arrays with a last axis of units, and an axis of time where they are named here.

        `loads` and `stores` have the index in time of such arrays: j, t, or made of them. `around` is the text of
        functions that call step, {names} its arrays; `more` that of functions which all kernels share. Inputs that are
        `numbers` are scalars, the same for all units; Python's floats are given for them.
        """
        lines, outputs = trace(function, inputs)
        forms = SCALAR if any(line.op in LIBM for line in lines) else FORMS
        self.names = [*inputs, *(name for name in outputs if name not in inputs)]
        body = []
        for to, row, op, args in lines:
            if op == "input" and args[0] in numbers:
                body.append(f"{to} = F({args[0]})")
            elif op == "input":
                body.append(f"{to} = {args[0]}{_index(loads.get(args[0]), args[1])}")
            elif op == "store":
                body.append(f"{to}{_index(stores.get(to), row)} = {args[0]}")
            else:
                body.append(f"{to} = {forms[op].format(*args)}")
        self._base = _base(dtype, more)
        names, rest = (", ".join(name for name in self.names if name not in left) for left in ((), ("zx", "zh")))
        self._source = SOURCE.format(
            base=name_of(self._base),
            names=names,
            body="\n        ".join(body),
            around=around.format(names=names, rest=rest),
        )

    def __getattr__(self, name: str) -> Any:
        """A function of the source, compiled when it is called first."""
        load(self._base)
        return getattr(load(self._source), name)


def _base(dtype: str, more: str) -> str:
    integer, mantissa, bias, limit, lowest, highest, high, low, terms = FLOATS[dtype]
    series = f"F({1 / math.factorial(terms)!r})"
    for n in range(terms - 1, 0, -1):
        series = f"F({1 / math.factorial(n)!r}) + r * ({series})"
    return BASE.format(
        **{"dtype": dtype, "integer": integer, "mantissa": mantissa, "bias": bias, "limit": limit, "high": high},
        **{"low": low, "lowest": lowest, "highest": highest, "log2e": 1 / math.log(2), "magic": 1.5 * 2.0**mantissa},
        series=f"r * ({series})",
        more=more,
    )


def _index(step: str | None, row: int | None) -> str:
    return f"[{', '.join(str(part) for part in (step, row, 'unit') if part is not None)}]"
