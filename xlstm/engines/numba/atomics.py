"""Operations of threads that share memory, for compiled code."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def count_up(context, counts, index):  # type: ignore[no-untyped-def]
    """Add 1 to counts[index] in one operation that no other thread comes between; return the number before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), one, "acq_rel")

    return types.int64(counts, types.int64), generate


@intrinsic
def count_of(context, counts, index):  # type: ignore[no-untyped-def]
    """Return counts[index]; whatever other threads wrote before they added to it can be read afterwards."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(counts, types.int64), generate


@intrinsic
def put(context, counts, index, value):  # type: ignore[no-untyped-def]
    """Set counts[index]; whatever this thread wrote before can be read by those that see the new number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store_atomic(arguments[2], builder.gep(data, [arguments[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(counts, types.int64, types.int64), generate


@intrinsic
def swap(context, counts, index, old, new):  # type: ignore[no-untyped-def]
    """Set counts[index] to a number where it is `old`, in one operation, and return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        found = builder.cmpxchg(place, arguments[2], arguments[3], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(counts, types.int64, types.int64, types.int64), generate


@intrinsic
def let_others_run(context):  # type: ignore[no-untyped-def]
    """Give the core to another thread that waits for one, where the system has such a call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate
