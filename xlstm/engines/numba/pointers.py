"""Addresses of numbers and pointers to them, for compiled code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
