"""Instructions that Numba cannot make from Python, written with llvmlite, on which Numba depends.

Three kinds are needed. The innermost loop of a matrix product holds a tile of the result in
registers, since LLVM does not vectorise such a loop by itself. Functions are called by address. And
threads that share an array need pointers to its numbers, and operations that all threads see in one
order (sequentially consistent).
"""

# llvmlite has no types.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import functools
import os
import platform
from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xlstm.arrays import checks

VARIABLE = "XLSTM_VECTOR_BYTES"
BYTES = ("16", "32", "64")
ORDER = "seq_cst"
# Rows of a tile, and the vectors of each row: as many as registers hold, and enough sums that no
# sum waits for the last one. AVX-512 and NEON have 32 registers, AVX2 has 16. Tiles of fewer rows
# than 12 are for batches of few sequences.
WIDE = ((1, 8), (2, 8), (4, 4), (8, 2), (12, 2))
NARROW = ((1, 8), (2, 4), (4, 2), (6, 2))


class VectorShape(NamedTuple):
    """The vectors of a processor."""

    lanes: int  # numbers in a vector
    tiles: tuple[tuple[int, int], ...]  # rows of each tile, and the vectors of a row


@functools.cache
def shape(dtype: str) -> VectorShape:
    """Return the vectors of this processor for a dtype, or those that XLSTM_VECTOR_BYTES sets,
    which is read once.

    Raises
    ------
    ValueError
        XLSTM_VECTOR_BYTES is not 16, 32 or 64.
    """
    asked = checks.variable(VARIABLE, BYTES)
    features = binding.get_host_cpu_features()
    if asked:
        size = int(asked)
    elif features.get("avx512f"):
        size = 64
    else:
        size = 32 if features.get("avx2") and features.get("fma") else 16
    registers = WIDE if size == 64 or platform.machine().lower() in ("aarch64", "arm64") else NARROW
    return VectorShape(size // (4 if dtype == "float32" else 8), registers)


def tiles(dtype: str, shape: VectorShape) -> dict[str, Any]:
    """Return the names that `products.py` needs for the vectors of a processor."""
    most = shape.tiles[-1][0]
    names: dict[str, Any] = {
        "copy_turned": turner(shape.lanes),
        "MOST": most,
        "COLUMNS": 2 * shape.lanes,
        "LANES": shape.lanes,
    }
    for rows, vectors in shape.tiles:
        names[f"tile{rows}"] = tile(dtype, shape.lanes, rows, vectors)
        names[f"SLIVERS{rows}"] = vectors // 2
    names["tile"] = names[f"tile{most}"]
    names.setdefault("tile8", names["tile"])  # fewer than MOST rows are left, here fewer than 8
    return names


def tile(dtype: str, lanes: int, rows: int, vectors: int) -> Any:
    """Return a function for compiled code that computes a tile of a matrix product.

    The function is `tile(a, (at, row, pace, count), b, (q, ahead), out, (place, line, gate, width,
    per), add)`. For each row i and column j of the slivers q, q + 1, ... of b, it sets this number,
    or adds to it if `add` is true:

        out[place + g * gate + i * line + j] = sum over k of a[at + i * row + k * pace] * b[sliver,
        k, column]

    A sliver has two vectors of columns. `per` slivers make the `width` columns of a gate g, and the
    last of them may be partly empty. All indices count numbers from the first one of an array. If a
    tile goes beyond the last row, `count`, or beyond the last sliver of b, it repeats the last one,
    so that all tiles have one size. Meanwhile it prefetches half as many numbers as a sliver of b
    has, from `ahead` numbers past the start of this sliver.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    lanes, rows, vectors : int
        The tile has `rows` rows of `vectors` vectors of `lanes` numbers; `vectors` is even.
    """

    @intrinsic
    def compute(context, a, a_place, b, b_place, out, out_place, add):
        four, two, five = (types.UniTuple(types.int64, count) for count in (4, 2, 5))
        signature = types.void(a, four, b, two, out, five, types.boolean)
        return signature, functools.partial(_generate, dtype, lanes, rows, vectors)

    return compute


def turner(count: int) -> Any:
    """Return a function for compiled code that transposes `count` rows of `count` numbers, where
    `count` is a power of two.

    The function is `turn(a, at, lead, out, place, line)`: out[place + k line + j] = a[at + j lead +
    k].
    """

    @intrinsic
    def turn(context, a, at, lead, out, place, line):
        n = types.int64
        return types.void(a, n, n, out, n, n), functools.partial(_generate_turn, count)

    return turn


def _generate_turn(count, context, builder, signature, arguments):
    """Write the instructions of `turner`: each round shuffles pairs of rows whose numbers differ in
    one bit.
    """
    _, at, lead, _, place, line = arguments
    (source, size), (target, _) = (
        _numbers(context, builder, signature, arguments, k) for k in (0, 3)
    )
    vector = ir.VectorType(source.type.pointee, count)

    def pointer(data, start, far, k):
        index = builder.add(start, builder.mul(far, _number(k)))
        return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

    rows = [builder.load(pointer(source, at, lead, k)) for k in range(count)]
    for row in rows:
        row.align = size
    half = count // 2
    places = ir.VectorType(ir.IntType(32), count)
    halves = [[first + k // 2 + k % 2 * count for k in range(count)] for first in (0, half)]
    for _ in range(count.bit_length() - 1):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [
            builder.shuffle_vector(x, y, ir.Constant(places, order))
            for x, y in pairs
            for order in halves
        ]
    for k, row in enumerate(rows):
        builder.store(row, pointer(target, place, line, k)).align = size
    return context.get_dummy_value()


def _numbers(context, builder, signature, arguments, k):
    """Return the pointer to the numbers of the array in argument k, and the bytes of a number."""
    data = context.make_array(signature.args[k])(context, builder, arguments[k]).data
    return data, data.type.pointee.get_abi_alignment(context.target_data)


def _generate(dtype, lanes, rows, vectors, context, builder, signature, arguments):
    """Write the instructions of `tile`."""
    (at, row, pace, count), (q, ahead), (place, line, gate, width, per) = (
        cgutils.unpack_tuple(builder, arguments[k]) for k in (1, 3, 5)
    )
    vector = ir.VectorType(ir.FloatType() if dtype == "float32" else ir.DoubleType(), lanes)
    (a, _), (b, _), (out, _) = (
        _numbers(context, builder, signature, arguments, k) for k in (0, 2, 4)
    )
    shape_of_b = context.make_array(signature.args[2])(context, builder, arguments[2]).shape
    slivers, K, _ = cgutils.unpack_tuple(builder, shape_of_b, 3)
    sliver = _number(2 * lanes)
    times = builder.mul

    def least(x, y):
        return builder.select(builder.icmp_signed("<", x, y), x, y)

    # Where the rows of a and of the result begin, and the slivers of b and of the result.
    last = builder.sub(count, _number(1))
    own = [least(_number(i), last) for i in range(rows)]
    # Opaque: else LLVM computes each address from the one before, which takes units from the
    # arithmetic.
    inputs = [_opaque(builder, builder.gep(a, [builder.add(at, times(i, row))])) for i in own]
    lines = [builder.add(place, times(i, line)) for i in own]
    weights = []
    columns = []
    rests = []  # number of columns from the first one of a sliver on
    for j in range(vectors // 2):
        index = least(builder.add(q, _number(j)), builder.sub(slivers, _number(1)))
        weights.append(builder.gep(b, [times(times(index, K), sliver)]))
        g = builder.sdiv(index, per)
        first = times(builder.sub(index, times(g, per)), sliver)
        columns.append(builder.add(times(g, gate), first))
        rests.append(builder.sub(width, first))

    def pointer(i, v):
        index = builder.add(builder.add(lines[i], columns[v // 2]), _number(v % 2 * lanes))
        return builder.bitcast(builder.gep(out, [index]), vector.as_pointer())

    sums = _sums(builder, vector, K, inputs, pace, weights, ahead)
    whole = ir.Constant(ir.IntType(1), 1)
    for rest in rests:
        whole = builder.and_(whole, builder.icmp_signed(">=", rest, sliver))
    with builder.if_else(whole, likely=True) as branches:
        for full, branch in zip((True, False), branches, strict=True):
            with branch:
                masks = [
                    None if full else _mask(builder, rests[v // 2], v % 2 * lanes, lanes)
                    for v in range(vectors)
                ]
                _write(builder, arguments[6], sums, pointer, masks)
    return context.get_dummy_value()


def _sums(builder, vector, K, inputs, pace, weights, ahead):
    """Write the loop over k; return where the sums of each row are, one place per vector."""
    lanes = vector.count
    size = _size(vector)
    zero = ir.Constant(vector, [0.0] * lanes)
    # LLVM keeps them in registers
    sums = [[cgutils.alloca_once(builder, vector) for _ in range(2 * len(weights))] for _ in inputs]
    for row in sums:
        for room in row:
            builder.store(zero, room)
    # it becomes two instructions if the processor lacks this one
    fma = _intrinsic(builder, f"fmuladd.v{lanes}f{8 * size}", vector, vector, vector, vector)
    i32 = ir.IntType(32)
    byte = ir.IntType(8).as_pointer()
    fetch = _intrinsic(builder, "prefetch.p0i8", ir.VoidType(), byte, i32, i32, i32)
    with cgutils.for_range(builder, K, intp=ir.IntType(64)) as loop:
        if len(weights) == 1:
            far = builder.add(builder.mul(loop.index, _number(lanes)), ahead)
            spot = builder.bitcast(builder.gep(weights[0], [far]), byte)
            builder.call(fetch, [spot, *(ir.Constant(i32, x) for x in (0, 2, 1))])
        near = builder.mul(loop.index, _number(2 * lanes))
        values = []
        for v in range(2 * len(weights)):
            spot = builder.gep(weights[v // 2], [builder.add(near, _number(v % 2 * lanes))])
            values.append(builder.load(builder.bitcast(spot, vector.as_pointer())))
            values[-1].align = size
        for first, row in zip(inputs, sums, strict=True):
            number = builder.load(builder.gep(first, [builder.mul(loop.index, pace)]))
            factor = _splat(builder, number, vector)
            for value, room in zip(values, row, strict=True):
                builder.store(builder.call(fma, [factor, value, builder.load(room)]), room)
    return sums


def _write(builder, add, sums, pointer, masks):
    """Write the sums of a tile to the places of `pointer`, or add them to the numbers there.

    A mask says which numbers of a vector exist; it is None if all do.
    """
    rooms = [
        (room, pointer(i, v), masks[v]) for i, row in enumerate(sums) for v, room in enumerate(row)
    ]
    vector = rooms[0][0].type.pointee
    size = _size(vector)
    align = ir.Constant(ir.IntType(32), size)
    name = f"v{vector.count}f{8 * size}.p0v{vector.count}f{8 * size}"
    types_of = vector.as_pointer(), align.type, ir.VectorType(ir.IntType(1), vector.count)
    with builder.if_then(add):
        for room, spot, mask in rooms:
            if mask is None:
                there = builder.load(spot)
                there.align = size
            else:
                load = _intrinsic(builder, f"masked.load.{name}", vector, *types_of, vector)
                zero = ir.Constant(vector, [0.0] * vector.count)
                there = builder.call(load, [spot, align, mask, zero])
            builder.store(builder.fadd(builder.load(room), there), room)
    for room, spot, mask in rooms:
        if mask is None:
            builder.store(builder.load(room), spot).align = size
        else:
            store = _intrinsic(builder, f"masked.store.{name}", ir.VoidType(), vector, *types_of)
            builder.call(store, [builder.load(room), spot, align, mask])


def _mask(builder, rest, start, lanes):
    """Return which numbers of a vector exist, if `rest` numbers of a row are left from `start`
    on.
    """
    places = ir.VectorType(ir.IntType(32), lanes)
    rest = builder.trunc(builder.sub(rest, _number(start)), places.element)
    every = ir.Constant(places, list(range(lanes)))
    return builder.icmp_signed("<", every, _splat(builder, rest, places))


def _number(value):
    return ir.Constant(ir.IntType(64), value)


def _size(vector):
    """Return the bytes of a number of a vector."""
    return 4 if vector.element == ir.FloatType() else 8


def _intrinsic(builder, kind, returns, *inputs):
    """Return an intrinsic function of LLVM."""
    function = ir.FunctionType(returns, inputs)
    return cgutils.get_or_insert_function(builder.module, function, f"llvm.{kind}")


def address(function: Any, signature: Any) -> int:
    """Return the address of the code of a compiled function for arguments of these types; keep the
    function alive.
    """
    function.compile(signature)
    compiled = function.overloads[signature.args]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def product_type(dtype: str) -> Any:
    """Return the types of the arguments of `products.product`."""
    flat, packed = (types.Array(getattr(types, dtype), axes, "C") for axes in (1, 3))
    two, four = (types.UniTuple(types.int64, count) for count in (2, 4))
    return types.void(flat, four, packed, two, flat, four, types.boolean)


@intrinsic
def call_product(context, where, a, rows, b, slivers, out, to, add):
    """Call `products.product` by its address.

    If callers used its name, Numba would compile it again in each of them, which takes a second
    each time.
    """
    return _call_by_address(product_type(str(a.dtype)))


def step_type() -> Any:
    """Return the types of the arguments of a step that takes addresses, `loops.call_step`."""
    table = types.Array(types.int64, 2, "C")
    numbers = types.Array(types.float64, 1, "C")
    return types.void(*[types.int64] * 8, table, numbers)


@intrinsic
def call_step(context, where, zx, h, new_h, carry, new_carry, saved, first, last, table, numbers):
    """Call the step of a cell by its address, so that the loops around it are compiled once for all
    cells.
    """
    return _call_by_address(step_type())


@intrinsic
def call_part(context, where, arguments, first, last):
    """Call a function from `team.py`, which takes the address of its arguments; return 1 if it
    failed.
    """
    return _call_by_address(types.void(*[types.int64] * 3), types.int64)


def _call_by_address(signature, failed=types.void):
    """Return an intrinsic's results: it calls the function at its first argument with all other
    arguments.

    With an integer type for `failed`, the intrinsic returns whether the function raised an error.
    """

    def generate(context, builder, _, arguments):
        kind = context.call_conv.get_function_type(signature.return_type, signature.args)
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        convention = context.call_conv
        status, _ = convention.call_function(
            builder, function, signature.return_type, signature.args, arguments[1:]
        )
        if failed is types.void:
            return context.get_dummy_value()
        return builder.zext(status.is_error, context.get_value_type(failed))

    return failed(types.int64, *signature.args), generate


def _splat(builder, value, vector):
    """Return a vector with one value in every lane."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, nothing, everywhere)


def _opaque(builder, value):
    """Return a value in a form that hides from LLVM how it was computed."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def pointer_to(number: Any, real: Any) -> Any:
    """Return a function that returns the address of a number as a pointer."""

    @intrinsic
    def pointer(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], real.as_pointer())

        return types.CPointer(number)(types.int64), generate

    return pointer


at4 = pointer_to(types.float32, ir.FloatType())
at8 = pointer_to(types.float64, ir.DoubleType())
at_integer = pointer_to(types.int64, ir.IntType(64))


@intrinsic
def count_up(context, counts, index):
    """Add 1 to counts[index] in one atomic operation, and return the number before."""
    return types.int64(counts, types.int64), _at(
        lambda builder, place: builder.atomic_rmw("add", place, _number(1), ORDER)
    )


@intrinsic
def count_of(context, counts, index):
    """Return counts[index]; everything that other threads wrote before they set it can be read
    afterwards.
    """
    return types.int64(counts, types.int64), _at(
        lambda builder, place: builder.load_atomic(place, ORDER, 8)
    )


@intrinsic
def put(context, counts, index, value):
    """Set counts[index]; threads that see the new number can read everything that this thread wrote
    before.
    """
    signature = types.void(counts, types.int64, types.int64)
    return signature, _at(
        lambda builder, place, value: builder.store_atomic(value, place, ORDER, 8)
    )


@intrinsic
def swap(context, counts, index, old, new):
    """Set counts[index] to `new` if it is `old`, in one atomic operation, and return whether it
    was.
    """
    signature = types.boolean(counts, types.int64, types.int64, types.int64)
    return signature, _at(
        lambda builder, *places: builder.extract_value(builder.cmpxchg(*places, ORDER, ORDER), 1)
    )


def _at(operate):
    """Return a generator of code for an operation on a place of an array, and on numbers."""

    def generate(context, builder, signature, arguments):
        data, _ = _numbers(context, builder, signature, arguments, 0)
        result = operate(builder, builder.gep(data, [arguments[1]]), *arguments[2:])
        return context.get_dummy_value() if signature.return_type is types.void else result

    return generate


@intrinsic
def let_others_run(context):
    """Give the core to another thread that waits for one, if the system has such a call."""

    def generate(context, builder, signature, arguments):
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


INTRINSICS = {name: value for name, value in globals().items() if type(value) is type(put)}
