"""Memory for compiled code: pointers to numbers by their address, and operations of threads that share an array.

These are in one order for all threads (sequentially consistent).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ORDER = "seq_cst"


def pointer_to(number: Any, real: Any) -> Any:
    """Return a function that returns the address of a number as a pointer."""

    @intrinsic
    def pointer(context, address):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], real.as_pointer())

        return types.CPointer(number)(types.int64), generate

    return pointer


at4 = pointer_to(types.float32, ir.FloatType())
at8 = pointer_to(types.float64, ir.DoubleType())
at_integer = pointer_to(types.int64, ir.IntType(64))


@intrinsic
def count_up(context, counts, index):  # type: ignore[no-untyped-def]
    """Add 1 to counts[index] in one operation that no other thread comes between; return the number before."""
    one = ir.Constant(ir.IntType(64), 1)
    return types.int64(counts, types.int64), _at(lambda builder, place: builder.atomic_rmw("add", place, one, ORDER))


@intrinsic
def count_of(context, counts, index):  # type: ignore[no-untyped-def]
    """Return counts[index]; what others wrote before they set it can be read afterwards."""
    return types.int64(counts, types.int64), _at(lambda builder, place: builder.load_atomic(place, ORDER, 8))


@intrinsic
def put(context, counts, index, value):  # type: ignore[no-untyped-def]
    """Set counts[index]; whatever this thread wrote before can be read by those that see the new number."""
    signature = types.void(counts, types.int64, types.int64)
    return signature, _at(lambda builder, place, value: builder.store_atomic(value, place, ORDER, 8))


@intrinsic
def swap(context, counts, index, old, new):  # type: ignore[no-untyped-def]
    """Set counts[index] to a number where it is `old`, in one operation, and return whether it was."""
    signature = types.boolean(counts, types.int64, types.int64, types.int64)
    return signature, _at(lambda builder, *given: builder.extract_value(builder.cmpxchg(*given, ORDER, ORDER), 1))


def _at(operate: Callable[..., Any]) -> Any:
    """Return what generates an operation on a place of an array, and on numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        found = operate(builder, builder.gep(data, [arguments[1]]), *arguments[2:])
        return context.get_dummy_value() if signature.return_type is types.void else found

    return generate


@intrinsic
def let_others_run(context):  # type: ignore[no-untyped-def]
    """Give the core to another thread that waits for one, where the system has such a call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


INTRINSICS = {name: value for name, value in globals().items() if type(value) is type(put)}
