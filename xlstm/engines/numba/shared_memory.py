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


@intrinsic
def at4(context, address):  # type: ignore[no-untyped-def]
    """Return the address of a float32 as a pointer."""
    return _pointer(types.float32, ir.FloatType())


@intrinsic
def at8(context, address):  # type: ignore[no-untyped-def]
    """Return the address of a float64 as a pointer."""
    return _pointer(types.float64, ir.DoubleType())


@intrinsic
def at_integer(context, address):  # type: ignore[no-untyped-def]
    """Return the address of an int64 as a pointer."""
    return _pointer(types.int64, ir.IntType(64))


@intrinsic
def address_of(context, array):  # type: ignore[no-untyped-def]
    """Return the address of the first number of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


def _pointer(number: Any, real: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], real.as_pointer())

    return types.CPointer(number)(types.int64), generate


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
    return types.void(), _call("sched_yield" if hasattr(os, "sched_yield") else "")


@intrinsic
def acquire(context, lock):  # type: ignore[no-untyped-def]
    """Take a lock of Python's by its address, without the interpreter; sleep until it is free."""
    return types.void(types.int64), _call("PyThread_acquire_lock", 1)


@intrinsic
def release(context, lock):  # type: ignore[no-untyped-def]
    """Release a lock of Python's by its address, whichever thread has it."""
    return types.void(types.int64), _call("PyThread_release_lock")


def _call(name: str, *flags: int) -> Any:
    """Return what generates a call of a C function, if it has a name, with addresses and then flags."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = [builder.inttoptr(address, cgutils.voidptr_t) for address in arguments]
        given += [ir.Constant(ir.IntType(32), flag) for flag in flags]
        kind = ir.FunctionType(ir.IntType(32), [value.type for value in given])
        if name:
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return generate
