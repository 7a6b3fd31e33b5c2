"""Guard pages around every array of compiled functions: reading or writing past one ends the
process.

`python -m tests.engines.numba.guards 32-float32` runs layers, products and chunks of an mLSTM for
vectors of so many bytes in this way and compares their results with the reference. A process of its
own does so, since a violation is a SIGSEGV. Each array that a compiled function is given, and each
that it makes itself, lies once flush with the end of its pages and once with their beginning; the
pages behind and before them may not be touched. The rest of its pages is filled with NaN: numbers
that are read there reach a result, and numbers that are written there are seen afterwards. Memory
without contents is filled with NaN as well.

Tasks of several threads run one after the other, so that one copy of an array serves each call. The
first of them does all the work that threads share.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import itertools
import mmap
import sys
import types
from array import array as integers
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.ma  # it reads the name of np.empty, which gives poison later
import pytest

PAGE = mmap.PAGESIZE
POISON = 0xFF  # in every byte it makes a NaN of a float, and -1 of an integer
FLUSH = ("end", "start")
DATA = 3  # the word of Numba's MemInfo that has the address of an array


class Block(NamedTuple):
    """Some bytes at an offset of pages, beside which no other may be touched."""

    memory: mmap.mmap
    pages: int
    size: int
    offset: int

    @property
    def address(self) -> int:
        """The address of the first byte."""
        return self._all().ctypes.data + self.offset

    def _all(self) -> Any:
        return np.frombuffer(self.memory, np.uint8, self.pages * PAGE, PAGE)

    def poison(self) -> None:
        """Fill the pages with poison."""
        self._all()[:] = POISON

    def array(self, like: Any) -> Any:
        """Return the array here that has the shape and dtype of another one."""
        return np.frombuffer(self.memory, like.dtype, like.size, PAGE + self.offset).reshape(
            like.shape
        )

    def intact(self) -> bool:
        """Whether the pages before and after the bytes have nothing but poison."""
        found = self._all()
        return bool(
            (found[: self.offset] == POISON).all()
            and (found[self.offset + self.size :] == POISON).all()
        )


class Guards:
    """Blocks of memory, which are flush with the end or the start of their pages."""

    def __init__(self) -> None:
        self.flush = "end"
        self._free: dict[int, list[mmap.mmap]] = {}

    def take(self, size: int) -> Block:
        """Return room for so many bytes, which are poison."""
        pages = max(1, -(-size // PAGE))
        free = self._free.setdefault(pages, [])
        memory = free.pop() if free else _fenced(pages)
        found = Block(memory, pages, size, pages * PAGE - size if self.flush == "end" else 0)
        found.poison()
        return found

    def give(self, block: Block, who: str) -> None:
        """Take room back, which must have been written to alone."""
        assert block.intact(), f"{who} wrote next to an array of {block.size} bytes"
        self._free[block.pages].append(block.memory)


def _fenced(pages: int) -> mmap.mmap:
    """Return pages, and one before and one after them that may not be touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + (pages + 1) * PAGE):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory


class Compiled:
    """Compiled functions whose arrays lie between guard pages."""

    def __init__(self) -> None:
        self.guards = Guards()
        self.calls: Counter[str] = Counter()  # of each function
        self.made = 0  # arrays that compiled functions made
        self.table: Any = None  # that the arrays of a step were entered last
        self.entered: list[Any] = []
        self.write: Any = None
        self._inside: list[Block] = []

    def allocate(self) -> None:
        """Let compiled functions make arrays between guard pages: those that are linked from now
        on.
        """
        from llvmlite import binding
        from numba.core.registry import cpu_target
        from numba.core.runtime import _nrt_python, rtsys

        rtsys.initialize(cpu_target.target_context)
        for context in (cpu_target.typing_context, cpu_target.target_context):
            context.refresh()  # while np.empty is the one that Numba and SciPy know
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
        usual = kind(_nrt_python.c_helpers["MemInfo_alloc_aligned"])

        def instead(size: int, align: int) -> int:
            found = usual(size, align)
            self._inside.append(self.guards.take(size))
            self.made += 1
            ctypes.c_void_p.from_address(
                found + DATA * ctypes.sizeof(ctypes.c_void_p)
            ).value = self._inside[-1].address
            return found

        self._kept = usual, kind(instead)  # as long as code calls it
        address = ctypes.cast(self._kept[1], ctypes.c_void_p).value
        binding.add_symbol("NRT_MemInfo_alloc_aligned", address)
        _nrt_python.c_helpers["MemInfo_alloc_aligned"] = address  # for what links kept code

    def functions(self, made: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `jit.functions` or `jit.shared` makes, with functions that are guarded."""
        from numba.core.dispatcher import Dispatcher

        with EMPTY:
            found = vars(made(*arguments))
        guarded = {
            name: functools.partial(self.call, name, value)
            for name, value in found.items()
            if isinstance(value, Dispatcher)
        }
        return types.SimpleNamespace(**{**found, **guarded})

    def enter(self, function: Callable[..., Any], arrays: list[Any], rows: Any) -> Any:
        """Return the table of the arrays of a step, and keep these: a call with the table takes one
        of copies.
        """
        self.table = function(arrays, rows)
        self.entered = arrays
        self.write = lambda copies: function(copies, rows)
        return self.table

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function with copies of its arrays, and copy them back; the same array is the same
        copy.
        """
        copies: dict[tuple[int, int], tuple[Any, Block]] = {}

        def copied(argument: Any) -> Any:
            if isinstance(argument, tuple):
                return tuple(copied(one) for one in argument)
            if not isinstance(argument, np.ndarray):
                return argument
            if argument is self.table:
                return self.write([copied(array) for array in self.entered])
            assert argument.flags.c_contiguous, (
                f"{name}: {argument.shape} with strides {argument.strides}"
            )
            key = (argument.ctypes.data, argument.nbytes)
            if key not in copies:
                copies[key] = argument, self.guards.take(argument.nbytes)
                copies[key][1].array(argument)[...] = argument
            return copies[key][1].array(argument)

        given = [copied(argument) for argument in arguments]
        spans = sorted((at, at + size) for at, size in copies if size)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), (
            f"{name}: arrays overlap"
        )
        with EMPTY:
            result = function(*given)
        self.calls[name] += 1
        for argument, block in copies.values():
            argument[...] = block.array(argument)
            self.guards.give(block, name)
        for block in self.drain():
            self.guards.give(block, name)
        return result

    def drain(self) -> list[Block]:
        """Return the arrays that compiled functions have made, which are nobody's any more."""
        found = self._inside[:]
        self._inside[:] = []
        return found


class Empty:
    """np.empty and np.empty_like with poison, but for what happens in its context: Numba knows the
    usual ones alone.
    """

    def __init__(self) -> None:
        self._usual = {name: getattr(np, name) for name in ("empty", "empty_like")}

    def poisoned(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Return the array of the usual function, with poison."""
        found = self._usual[name](*arguments, **options)
        found.reshape(-1, order="A").view(np.uint8)[:] = POISON
        return found

    def __enter__(self) -> None:
        for name, function in self._usual.items():
            setattr(np, name, function)

    def __exit__(self, *_: object) -> None:
        self.begin()

    def begin(self) -> None:
        """Let NumPy's functions give poison from now on."""
        for name in self._usual:
            setattr(np, name, functools.partial(self.poisoned, name))


EMPTY = Empty()


# The layers of a process, by its vectors. Tests of lengths of vectors and of chunks share their
# code.
KINDS = {
    "32-float32": {"GRU": {}, "minGRU": {}},
    "64-float32": {"LSTM": {}},
    "16-float64": {"sLSTM": {}, "RNN": {"recurrent_bias": True}},
}
# D, H, heads of an sLSTM, T, B, and whether lengths differ. H is less and more than vectors, tiles
# and pieces of a loop have; 680 rows are more than one block of those over which gradients of
# weights are summed.
SIZES = (
    (1, 1, 1, 5, 13, False),
    (3, 5, 5, 40, 17, False),
    (50, 33, 3, 6, 1, True),
    (17, 50, 2, 7, 3, True),
    (5, 127, 1, 4, 17, True),
    (33, 129, 3, 3, 13, True),
)
# M, K and N of products: rows of every tile and less, columns of slivers, and more of K than is
# multiplied at once.
PRODUCTS = (
    *((1, 1, 1), (3, 40, 2), (13, 17, 33), (32, 65, 64), (64, 32, 65), (12, 300, 35)),
    *((50, 600, 3), (8, 16, 31), (11, 20, 40), (5, 9, 70), (3, 33, 70), (7, 5, 130)),
)
# The same of products with few rows, which fill their slivers, and with one: one block of K, and
# two.
FEW_ROWS = ((1, 41, 70), (2, 20, 70), (31, 6, 70), (32, 41, 33), (63, 1100, 129))
CHUNKS = ((5, 1, 1), (21, 3, 17), (40, 33, 65))  # T, K and V of an mLSTM
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CHUNKED = ("32-float32", "64-float32", "16-float64")
PLANS = ((None, 1), ("parts", 2), ("shared", 2))


def run_case(
    compiled: Compiled, rng: np.random.Generator, layer: Any, dtype: str, case: Any
) -> None:
    """Run training, inference and a step in every plan, once with arrays at the end of pages, once
    at their start.
    """
    from tests import registry
    from tests.conftest import force, make_backend
    from xlstm.engines import engine

    T, B, ragged = case
    params, x, state = registry.inputs_of(layer, make_backend("numpy", dtype), rng, T, B, scale=0.3)
    # the normaliser of an sLSTM
    state = tuple(abs(s) + 1 if k == 2 else s for k, s in enumerate(state))
    lengths = [T, *rng.integers(0, T + 1, B - 1)] if ragged else None

    def results(name: str) -> dict[str, Any]:
        with engine.use(name):
            y, end, _ = layer.forward(params, x, state, lengths=lengths, train=False)
            start = tuple(s[:, :1] for s in state)
            y1, after = layer.step(params, x[0, :1], start)
            # A wide layer would make much of a rounding in many steps.
            steps = 60 if layer.hidden_size < 64 else 8
            alone, last = layer(params, np.resize(x[:, :1], (steps, 1, x.shape[2])), start)
            others = {"inference": y, "step": y1, "alone": alone} | {
                f"{k}": s for k, s in enumerate((*end, *after, *last))
            }
            return registry.run(layer, params, x, state, lengths) | others

    expected = results("array_api")
    for (plan, count), flush in itertools.product(PLANS, FLUSH):
        compiled.guards.flush = flush
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XLSTM_NUM_THREADS", "1")
            if plan:
                force(plan, patch, count)
            registry.agree(results("numba"), expected, TOLERANCE[dtype], registry.largest, 1.0)


def run_products(compiled: Compiled, rng: np.random.Generator, dtype: str) -> None:
    """Multiply matrices in all ways: the left factor or its transposed, with right ones by rows or
    by columns.
    """
    from tests import registry
    from xlstm.engines.numba import jit, packed_products

    guarded = compiled.functions(jit.shared, dtype)
    for (M, K, N), compiled.guards.flush in itertools.product((*PRODUCTS, *FEW_ROWS), FLUSH):
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, N)))
        by_columns = np.asfortranarray(b)
        transposed = np.ascontiguousarray(a.T).T
        pairs = [(a, b), (a, by_columns), (transposed, b), (transposed, b[:, :1])]
        for (left, right), found in zip(
            pairs, packed_products.products(guarded, pairs), strict=True
        ):
            registry.agree(
                {(M, K, N): found},
                {(M, K, N): left @ right},
                TOLERANCE[dtype],
                registry.largest,
                1.0,
            )


def run_chunks(compiled: Compiled, rng: np.random.Generator, dtype: str) -> None:
    """Run an mLSTM in chunks, of which the last is not full, forward and backward, and without
    backward.
    """
    from tests import registry
    from xlstm.cells import mlstm
    from xlstm.engines.numba import chunks

    guards = compiled.guards
    for (T, K, V), guards.flush in itertools.product(CHUNKS, FLUSH):
        sizes = ((T, K), (T, K), (T, V), (T,), (T,), (K, V), (K,), (), (T, V), (K, V), (K,), ())
        values = [rng.standard_normal((2, 3, *size)).astype(dtype) for size in sizes]
        # h is a quotient: none is by about 0
        values[0], values[1], values[6] = (abs(values[n]) for n in (0, 1, 6))
        blocks = [guards.take(value.nbytes) for value in values]
        arrays = [block.array(value) for block, value in zip(blocks, values, strict=True)]
        for place, value in zip(arrays, values, strict=True):
            place[...] = value
        *outputs, saved = mlstm.chunkwise(np, *values[:8], chunk=16)
        expected = [*outputs, *outputs, *mlstm.chunkwise_bwd(np, *values[8:], saved)]
        with EMPTY, pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "SMALL", 0)
            inferred, _ = chunks.chunkwise(arrays[:8], 0.0, "sigmoid", 16, False)
            found, kept = chunks.chunkwise(arrays[:8], 0.0, "sigmoid", 16, True)
            grads = chunks.chunkwise_bwd(arrays[8], arrays[9:], kept, 0.0, "sigmoid")
        both = (dict(enumerate(arrays)) for arrays in ([*inferred, *found, *grads], expected))
        registry.agree(*both, TOLERANCE[dtype], registry.largest, 1.0)
        for block in (*blocks, *compiled.drain()):
            guards.give(block, "chunks")


def in_turn(calls: list[Any], work: int) -> None:
    """Do calls that threads would share in parts, of which two end within the numbers that stay
    together.
    """
    for n, function, given, _ in calls:
        for first, last in itertools.pairwise([0, n // 3, n * 2 // 3, n] if work else [0, n]):
            function(*given, first, last)


def one_by_one(guards: Guards, jobs: list[Any], size: int) -> None:
    """Do what threads would do together, the last first where arrays start with a page."""
    for function, pieces in jobs:
        for arguments, first, last in pieces if guards.flush == "end" else pieces[::-1]:
            given = (arguments.buffer_info()[0],) if isinstance(arguments, integers) else arguments
            function(*given, first, last)


def main(vectors: str) -> None:
    """Run all cases of a length and dtype; the last lines have the functions that were called, and
    the arrays made.
    """
    import xlstm
    from xlstm.engines.numba import chains, chunks, jit, numba_engine, packed_products

    faulthandler.enable()
    compiled = Compiled()
    compiled.allocate()
    jit.functions = functools.partial(compiled.functions, jit.functions)
    packed_products.share = chunks.share = in_turn
    numba_engine.address_table = functools.partial(compiled.enter, numba_engine.address_table)
    numba_engine.run_parallel = chains.run_parallel = functools.partial(one_by_one, compiled.guards)
    rng = np.random.default_rng(0)
    EMPTY.begin()
    _, dtype = vectors.split("-")
    for (kind, options), (D, H, heads, *case) in itertools.product(KINDS[vectors].items(), SIZES):
        layer = getattr(xlstm, kind)(
            D, H, **options, **({"num_heads": heads} if kind == "sLSTM" else {})
        )
        sys.stdout.write(f"{layer} {case}\n")
        sys.stdout.flush()  # read where the process ends
        run_case(compiled, rng, layer, dtype, case)
    run_products(compiled, rng, dtype)
    if vectors in CHUNKED:
        run_chunks(compiled, rng, dtype)
    sys.stdout.write(f"calls {' '.join(sorted(compiled.calls))}\nmade {compiled.made}\n")


if __name__ == "__main__":
    main(sys.argv[1])
