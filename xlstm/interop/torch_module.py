"""A layer or a model as a `torch.nn.Module` that runs xlstm's forward and backward passes.

In eager mode, the passes are an autograd function, `LayerFunction`. Higher derivatives,
forward-mode AD and transforms of `torch.func` run another, `Derivative`. Tracers such as
`torch.compile`, `torch.export`, `torch.jit.trace` and `make_fx` see the operators `xlstm::forward`
and `xlstm::backward`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI
from torch.autograd import forward_ad

from xlstm.arrays import checks, foreign
from xlstm.arrays.namespace import Array, Params
from xlstm.arrays.tangents import jvp
from xlstm.arrays.tensor_views import has_tangent, to_tensor, views_of_tensors
from xlstm.interop.bridge import Bridge
from xlstm.models import model_files

Tensor = Any  # of PyTorch
Tensors = Sequence[Any]  # None in place of missing ones
Dims = Sequence[int | None]  # for each tensor, the axis that `vmap` maps over
Options = Sequence[Any]  # the values of `OPTIONS`, None for missing ones
OPTIONS = (
    "lengths",
    "seed",
    "resets",
    "cu_seqlens",
)  # of a layer's `forward`, in the order of operators
LARGEST_SEED = 2**63 - 1
# saved values of forward passes, and layers whose classes files do not support, by number
_saved_passes: dict[int, Any] = {}
_unfiled: weakref.WeakValueDictionary[str, Bridge] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
# a tensor of another class, such as FakeTensor, may lack values
PLAIN = {torch.Tensor, torch.nn.Parameter}
OF_A_CPU = torch.float32, torch.float64  # dtypes of parameters on a CPU
KEYS = torch._C.DispatchKey
TRANSFORMS = torch._C._functorch.TransformType
# One of these is active while a tracer of PyTorch sees only operators, or inside a transform of
# torch.func.
TRACERS = (
    torch._C.DispatchKeySet(KEYS.Python)
    .add(KEYS.PreDispatch)
    .add(KEYS.FuncTorchDynamicLayerFrontMode)
    .raw_repr()
)


def _handle(saved: Any) -> Tensor:
    """Return a number by which `_saved` finds the saved values of a forward pass, or 0 if there are
    none.

    Autograd saves the number as a tensor. The saved values live as long as the tensor's memory,
    which autograd frees when it is no longer needed.
    """
    if saved is None:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    number = next(_numbers)
    handle = np.array(number)
    _saved_passes[number] = saved
    weakref.finalize(handle, _saved_passes.pop, number)
    return torch.from_numpy(handle)


def _saved(where: str, handle: Tensor) -> Any:
    """Return the saved values of a forward pass.

    Raises
    ------
    RuntimeError
        The values are gone: a hook has replaced the tensor by a copy of its number.
    """
    saved = _saved_passes.get(int(handle))
    if saved is None:
        raise RuntimeError(
            f"{where}: backward has only a copy of what forward saved, expected the same tensors"
        )
    return saved


def _forward(
    bridge: Bridge,
    x: Tensor,
    params: Tensors,
    state: Tensors,
    options: Options,
    keep: bool,
) -> tuple[tuple[Tensor, ...], Any]:
    """Return y and the final state, and the values that `_backward` needs besides the tensors."""
    named = _named(bridge, options)
    take, give, context = views_of_tensors(bridge.name, x)
    with context:
        x = take(x)
        start = [take(a) for a in state]
        arrays = _arrays(params, take)
        outputs, saved = bridge.forward(arrays, x, start, keep=keep, **named)
        tensors = tuple([give(a) for a in outputs])
    # array options may be overwritten before a backward pass through the backward pass
    return tensors, (_addresses(params), copy.deepcopy(options), arrays, saved) if keep else None


def _named(bridge: Bridge, options: Options) -> dict[str, Any]:
    """Return the options of a layer's `forward` by name.

    Raises
    ------
    TypeError
        An option is a tensor on "meta", which has no values.
    """
    named = dict(zip(OPTIONS, options, strict=True))
    for name, value in named.items():
        if getattr(value, "is_meta", False):
            raise TypeError(
                f"{bridge.name}: {name} is on meta, expected values on the device of x or a CPU"
            )
    seed = named["seed"]
    return {**named, "seed": None if seed is None else int(seed), "train": seed is not None}


def _backward(
    bridge: Bridge, handle: Tensor, x: Tensor, params: Tensors, state: Tensors, douts: Tensors
) -> tuple[Tensors, Tensor | None]:
    """Return gradients with respect to the parameters, a given initial state, and x."""
    take, give, context = views_of_tensors(bridge.name, x)
    addresses, options, arrays, saved = _saved(bridge.name, handle)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or has_tangent(douts):
        dx, *grads = _differentiable(bridge, options, x, params, state, douts)
        return grads[: len(params) + len(state)], dx
    with context:
        # the saved values have views of memory that FSDP2 has freed since
        if addresses != _addresses(params):
            arrays = _arrays(params, take)
            start = list(map(take, state))
            named = _named(bridge, options)
            _, saved = bridge.forward(arrays, take(x), start, keep=True, **named)
        dy, *dend = [None if d is None else take(d) for d in douts]
        grads, dx, dstart = bridge.backward(arrays, saved, dy, dend)
        if state:
            grads = [*grads, *dstart]
        return [give(d) for d in grads], None if dx is None else give(dx)


def _arrays(params: Tensors, take: Callable[[Tensor], Array]) -> list[Array]:
    """Return views of parameters that let PyTorch free the memory between the passes, as FSDP2
    does.
    """
    return [
        np.from_dlpack(p.detach()) if p.is_cpu and p.dtype in OF_A_CPU else take(p) for p in params
    ]


def _addresses(params: Tensors) -> list[int]:
    return [p.data_ptr() for p in params]


def _is_traced(tensors: Iterable[Tensor]) -> bool:
    """Return whether a call must be xlstm's operator.

    That is so if PyTorch records operators, or if tensors have no values.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or bool(torch._C._dispatch_tls_local_include_set().raw_repr() & TRACERS)
        or not PLAIN.issuperset(map(type, tensors))
        or all(a.is_meta for a in tensors)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_transformed() -> bool:
    """Return whether vmap, grad or jvp of torch.func is active."""
    transform = torch._C._functorch.peek_interpreter_stack()
    return transform is not None and transform.key() != TRANSFORMS.Functionalize


def _is_differentiated(tensors: Iterable[Tensor]) -> bool:
    """Return whether a transform of torch.func is active, or a tensor is dual."""
    return _is_transformed() or has_tangent(tensors)


def _refuse(where: str) -> None:
    raise RuntimeError(
        f"{where}: forward-mode AD, transforms of torch.func, is_grads_batched, vectorize and"
        " derivatives of derivatives are not possible in what PyTorch traces or compiles, expected"
        " the module in eager mode"
    )


class Derivative(torch.autograd.Function):  # type: ignore[misc]
    """The gradient of S, or its derivatives in directions, which are tensors too.

    S is the sum of the products of y and the final state with their cotangents. Its gradient with
    respect to x, the parameters and the initial state is the backward pass. Its gradient with
    respect to the cotangents is the forward pass. All these variables together are a point. Without
    cotangents in the point, the results are those of the forward pass alone.

    Derivatives commute: the gradient of the product of a gradient with a cotangent v is the
    derivative of the gradient in the direction v. So derivatives of every order have this form
    again, and dual numbers compute them with the unchanged forward and backward passes.

    A call takes the layer's bridge, its options, the point, and each direction.
    """

    @staticmethod
    def forward(bridge: Bridge, *inputs: Any, **per_sequence: bool) -> tuple[Any, ...]:
        """Return an array for each variable of the point."""
        options, tensors = _apart(inputs)
        if _is_traced([a for a in tensors if a is not None]):
            _refuse(bridge.name)
        named = _named(bridge, options)
        take, give, context = views_of_tensors(bridge.name, tensors[0])
        names = len(bridge.names)

        def gradient(x: Array, *rest: Any) -> list[Any]:
            params = rest[:names]
            state = rest[names : bridge.inputs - 1]
            dy, *dend = douts = rest[bridge.inputs - 1 :]
            keep = any(d is not None for d in douts)
            outputs, saved = bridge.forward(params, x, state, keep=keep, **named)
            if not keep:
                return [*[None] * bridge.inputs, *outputs]
            grads, dx, start = bridge.backward(params, saved, dy, dend, **per_sequence)
            return [dx, *grads, *start, *outputs]

        with context:
            arrays = [None if a is None else take(a) for a in tensors]
            point, *directions = _points(bridge, arrays)
            results = functools.reduce(_along, directions, gradient)(*point)
            # a result may share memory with a direction
            return tuple([None if a is None else give(a).clone() for a in results])

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Any) -> None:
        """Save all tensors."""
        ctx.bridge, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Return gradients with respect to the point and the directions."""
        if all(d is None for d in cotangents):
            return (None,) * len(ctx.needs_input_grad)
        inputs = ctx.bridge.inputs
        options, tensors = _apart(ctx.saved_tensors)
        points = _points(ctx.bridge, tensors)
        point, *directions = points
        if _is_forward(ctx.bridge, point):
            point = [*point[:inputs], *cotangents[inputs:]]
        else:
            directions.append(cotangents)
        grads = [None] * (1 + len(OPTIONS))
        for k, own in enumerate(points):
            parts = _derivative(ctx.bridge, options, point, directions, without=k)
            grads += [None if a is None else d for a, d in zip(own, parts, strict=True)]
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Return tangents of the results."""
        levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
        if levels.count(TRANSFORMS.Jvp) > 1:
            raise RuntimeError(
                f"{ctx.bridge.name}: forward-mode AD within forward-mode AD is not possible, as"
                " PyTorch loses such tangents of a custom function; expected reverse mode in one of"
                " them, as by torch.func.grad or jacrev"
            )
        options, tensors = _apart(ctx.saved_tensors)
        point, *directions = _points(ctx.bridge, tensors)
        _, changes = _apart(tangents[1:])
        with forward_ad._set_fwd_grad_enabled(False):  # these are dual tensors
            terms = [
                _derivative(ctx.bridge, options, point, [*directions, change], without=k)
                for k, change in enumerate(_points(ctx.bridge, changes))
            ]
            return tuple([None if d[0] is None else sum(d) for d in zip(*terms, strict=True)])

    @staticmethod
    def vmap(info: Any, dims: Any, bridge: Bridge, *tensors: Any) -> Any:
        """Run on one element of the batches after another, or on all at once if they are sequences
        for the same parameters.
        """
        _, *dims = dims
        if _are_sequences(bridge, dims, tensors):
            return _at_once(bridge, info.batch_size, dims, tensors)
        columns = [
            itertools.repeat(a) if dim is None else a.unbind(dim)
            for a, dim in zip(tensors, dims, strict=True)
        ]
        calls = [Derivative.apply(bridge, *own) for own in zip(*columns, strict=False)]
        results = [None if a[0] is None else torch.stack(a) for a in zip(*calls, strict=True)]
        return tuple(results), 0


def _apart(inputs: Sequence[Any]) -> tuple[Options, Sequence[Any]]:
    """Return the options among the inputs of a `Derivative`, and the tensors after them."""
    count = len(OPTIONS)
    return inputs[:count], inputs[count:]


def _points(bridge: Bridge, tensors: Tensors) -> list[Tensors]:
    """Return the point, and each direction."""
    size = bridge.inputs + 1 + len(bridge.leaves)
    return [tensors[k : k + size] for k in range(0, len(tensors), size)]


def _along(function: Callable[..., Any], direction: Tensors) -> Callable[..., Any]:
    return lambda *point: jvp(function, point, direction)[1]


def _derivative(
    bridge: Bridge, options: Options, point: Tensors, directions: Sequence[Tensors], without: int
) -> Any:
    """Return a derivative in all directions except one; directions are numbered from 1."""
    others = [d for k, direction in enumerate(directions, 1) if k != without for d in direction]
    return Derivative.apply(bridge, *options, *point, *others)


def _are_sequences(bridge: Bridge, dims: Dims, tensors: Tensors) -> bool:
    """Return whether batches of `vmap` are sequences for the same parameters.

    This is for the forward pass, or for a backward pass that is not differentiated.
    """
    _, (x, *others) = _apart(dims)
    (_, seed, _, cu_seqlens), tensors = _apart(tensors)
    point, *directions = _points(bridge, tensors)
    own = [a for a in tensors if a is not None]
    return (
        bridge.has_state
        and seed is None  # masks would differ
        and cu_seqlens is None  # it is for one sequence
        and x is not None
        and not directions
        and all(d is None for d in others[: len(bridge.names)])
        and (
            _is_forward(bridge, point)
            or not (_is_differentiated(own) or any(a.requires_grad for a in own))
        )
    )


def _is_forward(bridge: Bridge, point: Tensors) -> bool:
    """Return whether the point has no cotangents."""
    return all(d is None for d in point[bridge.inputs :])


def _at_once(bridge: Bridge, count: int, dims: Dims, tensors: Tensors) -> tuple[Tensors, Dims]:
    """Run on the sequences of all batches as a single batch."""
    states = [len(leaf.before) for leaf in bridge.leaves]
    y = [*bridge.layer.output_dims(0, 0)].index("B")
    x = 0 if bridge.layer.batch_first else 1
    axes = [x, *[None for _ in bridge.names], *states, y, *states]
    joined = []
    for array, dim, axis in zip(tensors, dims, [0, None, x, None, *axes], strict=True):
        if array is not None and axis is not None:
            array = array.expand(count, *array.shape) if dim is None else array.movedim(dim, 0)
            array = array.movedim(0, axis).flatten(axis, axis + 1)
        joined.append(array)
    if _is_forward(bridge, _apart(tensors)[1]):
        results = Derivative.apply(bridge, *joined)
    else:
        results = Derivative.forward(bridge, *joined, per_sequence=True)
    parts = []
    for array, axis in zip(results, axes, strict=True):
        if array is not None:
            array = array.unflatten(axis or 0, (count, -1))
            array = array.sum(1) if axis is None else array
        parts.append(array)
    return tuple(parts), tuple([axis or 0 for axis in axes])


def _as_tensors(options: Options) -> list[Tensor | None]:
    return [
        a if a is None or torch.is_tensor(a) else torch.as_tensor(a, device="cpu") for a in options
    ]


def _differentiable(
    bridge: Bridge,
    options: Options,
    x: Tensor,
    params: Tensors,
    state: Tensors,
    douts: Tensors = (),
) -> Tensors:
    """Return the result of a `Derivative`; a state and cotangents may be missing."""
    missing = [None] * len(bridge.leaves)
    point = x, *params, *(state or missing), *(douts or [None, *missing])
    return Derivative.apply(bridge, *_as_tensors(options), *point)  # type: ignore[no-any-return]


class LayerFunction(torch.autograd.Function):  # type: ignore[misc]
    """The autograd function of a layer's passes in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, bridge: Bridge, options: Options, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return y and the final state; tensors are the parameters and the initial state."""
        count = len(bridge.names)
        outputs, saved = _forward(bridge, x, tensors[:count], tensors[count:], options, True)
        ctx.bridge = bridge
        ctx.set_materialize_grads(False)
        # Autograd raises an error if one of these was changed in-place before backward.
        ctx.save_for_backward(_handle(saved), x, *tensors, *outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return gradients with respect to x, the parameters and the initial state, and None for
        non-tensors.
        """
        bridge = ctx.bridge
        inputs = len(ctx.needs_input_grad)
        handle, x, *tensors = ctx.saved_tensors
        if all(d is None for d in douts):
            return (None,) * inputs
        count = len(bridge.names)
        params = tensors[:count]
        state = tensors[count : inputs - 3]
        grads, dx = _backward(bridge, handle, x, params, state, douts)
        return None, None, dx, *grads


def _bridge(spec: str) -> Bridge:
    """Return the bridge of a layer from its text by `spec_of`.

    Raises
    ------
    ValueError
        Files do not support the layer's class, and the layer is gone or in another process.
    """
    return _unfiled.get(spec) or _filed(spec)


@functools.lru_cache(maxsize=64)
def _filed(spec: str) -> Bridge:
    if not spec.startswith("{"):
        raise ValueError(
            f"xlstm::forward: {spec} is gone or of another process, expected a layer that"
            " models.save takes, or its module to exist still"
        )
    return Bridge("xlstm::forward", model_files.from_config(json.loads(spec)))


def spec_of(bridge: Bridge) -> str:
    """Return a layer as text for an operator.

    The text is the layer's configuration if files support its class. Otherwise it is a name that is
    valid as long as the bridge exists.
    """
    try:
        return json.dumps(model_files.config_of("module", bridge.layer))
    except TypeError:
        # layers of two classes may have the same repr, and another process has other layers
        spec = f"{bridge.layer!r} {uuid.uuid4()}"
        _unfiled[spec] = bridge
        return spec


FORWARD = (
    "(str spec, Tensor[] params, Tensor x, Tensor[] state, Tensor? lengths, Tensor? seed, bool"
    " keep, Tensor? resets=None, Tensor? cu_seqlens=None) -> Tensor[]"
)
BACKWARD = (
    "(str spec, Tensor[] params, Tensor x, Tensor[] state, Tensor handle, Tensor[] douts)"
    " -> Tensor[]"
)


@torch.library.custom_op("xlstm::forward", mutates_args=(), schema=FORWARD)  # type: ignore[untyped-decorator]
def forward_op(
    spec: str,
    params: list[Tensor],
    x: Tensor,
    state: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    keep: bool,
    resets: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> list[Tensor]:
    """Return y, the final state and the handle of the saved values."""
    bridge = _bridge(spec)
    if _is_differentiated((x, *params, *state)):
        _refuse(bridge.name)
    options = lengths, seed, resets, cu_seqlens
    outputs, saved = _forward(bridge, x, params, state, options, keep)
    return [*(a.contiguous() for a in outputs), _handle(saved)]


@torch.library.custom_op("xlstm::backward", mutates_args=(), schema=BACKWARD)  # type: ignore[untyped-decorator]
def backward_op(
    spec: str,
    params: list[Tensor],
    x: Tensor,
    state: list[Tensor],
    handle: Tensor,
    douts: list[Tensor],
) -> list[Tensor]:
    """Return gradients with respect to the parameters, a given initial state, and x unless it holds
    tokens.
    """
    grads, dx = _backward(_bridge(spec), handle, x, params, state, douts)
    return [a.contiguous() for a in (*grads, dx) if a is not None]


@forward_op.register_fake  # type: ignore[untyped-decorator]
def _forward_fake(spec: str, params: list[Tensor], x: Tensor, *_: Any) -> list[Tensor]:
    bridge = _bridge(spec)
    first = params[0]
    y, *ends = bridge.shapes(x)
    dtypes = _dtypes(bridge, first)
    end = [first.new_empty(shape, dtype=dtype) for shape, dtype in zip(ends, dtypes, strict=True)]
    return [first.new_empty(y), *end, torch.empty((), dtype=torch.int64, device="cpu")]


@backward_op.register_fake  # type: ignore[untyped-decorator]
def _backward_fake(
    spec: str, params: list[Tensor], x: Tensor, state: list[Tensor], *_: Any
) -> list[Tensor]:
    inputs = [*params, *state, *([x] if x.is_floating_point() else [])]
    return [a.new_empty(a.shape) for a in inputs]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.spec, params, x, state, *_ = inputs
    ctx.sizes = len(params), len(params) + len(state)
    ctx.save_for_backward(output[-1], x, *params, *state)


def _differentiate(ctx: Any, douts: list[Tensor]) -> tuple[Any, ...]:
    handle, x, *tensors = ctx.saved_tensors
    params, inputs = ctx.sizes
    grads = backward_op(ctx.spec, tensors[:params], x, tensors[params:], handle, douts[:-1])
    dx = grads[inputs] if x.is_floating_point() else None
    # PyTorch leaves out options that have the default of the operator
    others = [None] * (len(ctx.needs_input_grad) - 4)
    return None, grads[:params], dx, grads[params:inputs], *others


@torch.library.impl("xlstm::forward", "FuncTorchDynamicLayerFrontMode")  # type: ignore[untyped-decorator]
def _forward_transformed(spec: str, params: list[Tensor], x: Tensor, *rest: Any) -> list[Tensor]:
    """Run inside a transform of torch.func, where an operator would lose tangents."""
    if not _is_transformed():
        return _functionalized(forward_op, (spec, params, x, *rest))
    state, lengths, seed, _, *cuts = rest
    # PyTorch leaves out options that have the default of the operator
    options = [lengths, seed, *cuts, None, None][: len(OPTIONS)]
    bridge = _bridge(spec)
    results = _differentiable(bridge, options, x, params, state)
    return [*results[bridge.inputs :], _handle(None)]


@torch.library.impl("xlstm::backward", "FuncTorchDynamicLayerFrontMode")  # type: ignore[untyped-decorator]
def _backward_transformed(spec: str, *inputs: Any) -> list[Tensor]:
    if _is_transformed():
        _refuse(_bridge(spec).name)
    return _functionalized(backward_op, (spec, *inputs))


def _functionalized(operator: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Run an operator inside `torch.func.functionalize`."""
    api = FunctorchFunctionalizeAPI(retrieve_current_functorch_interpreter())
    with api.redispatch_to_next():
        results = operator(*api.unwrap_tensors(inputs))
    return [*api.wrap_tensors(results)]


forward_op.register_autograd(_differentiate, setup_context=_remember)
torch.library.impl("xlstm::backward", "Batched")(lambda spec, *_: _refuse(_bridge(spec).name))
backward_op.register_autograd(lambda ctx, *_: _refuse("xlstm::backward"))


def _dtypes(bridge: Bridge, like: Tensor) -> list[torch.dtype]:
    """Return the dtype of each array of a state for parameters like `like`."""
    half = like.dtype.itemsize == 2
    return [torch.float32 if leaf.wide and half else like.dtype for leaf in bridge.leaves]


def run(
    bridge: Bridge,
    spec: str,
    x: Tensor,
    params: Tensors,
    state: Tensors,
    options: Options,
) -> Tensors:
    """Return y and the final state, with xlstm's backward pass for autograd.

    A seed among the options draws the masks of training.
    """
    tensors = (x, *params, *state)
    if _is_differentiated(tensors):
        if torch.compiler.is_compiling():
            _refuse(bridge.name)
        return _differentiable(bridge, options, x, params, state)[bridge.inputs :]
    # torch.jit.trace compares its trace with a second trace, made without gradients.
    keep = torch.is_grad_enabled() or torch.jit.is_tracing()
    keep = keep and any(a.requires_grad for a in tensors)
    if _is_traced(tensors):
        lengths, seed, *cuts = _as_tensors(options)
        return forward_op(spec, params, x, state, lengths, seed, keep, *cuts)[:-1]  # type: ignore[no-any-return]
    if keep:
        return LayerFunction.apply(bridge, options, x, *params, *state)  # type: ignore[no-any-return]
    return _forward(bridge, x, params, state, options, keep)[0]


def _drawn(layer: Any, seed: int) -> dict[str, Tensor]:
    """Return initial parameters on PyTorch's default device; on "meta" they have no values."""
    device = torch.get_default_device()
    if device.type == "meta":
        return {
            name: torch.empty(tuple(dims.values()), dtype=torch.float32)
            for name, dims in layer.shapes.items()
        }
    return {
        name: torch.from_numpy(p).to(device)
        for name, p in layer.init(seed, backend="numpy").items()
    }


def _parameter(array: Any) -> Tensor:
    tensor = array if torch.is_tensor(array) else to_tensor(array)
    if torch._C._functorch.is_gradtrackingtensor(tensor) or has_tangent([tensor]):
        raise TypeError(
            "a torch.nn.Parameter would lose its derivatives, expected torch.func.functional_call"
        )
    return torch.nn.Parameter(tensor)


class LayerModule(torch.nn.Module):  # type: ignore[misc]
    """A layer or a model with its parameters, as `xlstm.interop.torch.module` makes it.

    Attributes
    ----------
    layer : Module
    """

    def __init__(self, layer: Any, params: Params | None = None, seed: int = 0) -> None:
        super().__init__()
        self._bridge = Bridge("module", layer)
        self.layer = layer
        self._random = layer.random  # read here: torch.compile cannot trace how a layer finds it
        self._spec = spec_of(self._bridge)
        self._paths = [name.split(".") for name in self._bridge.names]
        params = _drawn(layer, seed) if params is None else params
        layer.check(params)
        for (*path, last), name in zip(self._paths, self._bridge.names, strict=True):
            owner: Any = self
            parameter = foreign.taken(f"module: parameter {name}", params[name], _parameter)
            try:
                for part in path:
                    if part not in owner._modules:
                        owner.add_module(part, torch.nn.Module())
                    owner = owner._modules[part]
                owner.register_parameter(last, parameter)
            except KeyError as error:
                expected = "expected a name that torch.nn.Module does not use"
                raise ValueError(
                    f"module: parameter {name}: {error.args[0]}, {expected}"
                ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state of a copy or a pickle, whose layer may be another object."""
        super().__setstate__(state)
        self._spec = spec_of(self._bridge)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        cu_seqlens: Any = None,
    ) -> Any:
        """Run the layer over a batch of sequences; see `xlstm.interop.torch.module`."""
        bridge = self._bridge
        params = self._tensors()
        if not torch.is_tensor(x):
            raise TypeError(f"{bridge.name}: x is {checks.shown(x)}, expected a PyTorch tensor")
        if not bridge.has_state and any(
            a is not None for a in (state, lengths, resets, cu_seqlens)
        ):
            raise TypeError(
                f"{bridge.name} has no state, expected neither state, lengths nor resets"
            )
        start: list[Tensor] = [] if state is None else bridge.flat(state)
        if any(a is None for a in start):
            raise TypeError(
                f"{bridge.name}: a part of state is None, expected all of its tensors, or None for"
                " state"
            )
        if (x.is_cpu or x.is_cuda) and torch.is_autocast_enabled(x.device.type):
            x = x.to(params[0].dtype) if x.is_floating_point() else x
            dtypes = _dtypes(bridge, params[0])
            start = [a.to(dtype) for a, dtype in zip(start, dtypes, strict=False)]
        seed = (
            torch.randint(LARGEST_SEED, (), device="cpu")
            if self.training and self._random
            else None
        )
        y, *end = run(bridge, self._spec, x, params, start, (lengths, seed, resets, cu_seqlens))
        return (y, bridge.state(end)) if bridge.has_state else y

    def arrays(self) -> Params:
        """Return the parameters under xlstm's names, as NumPy or CuPy arrays that share their
        memory.
        """
        params = self._tensors()
        return self._bridge.params(list(map(views_of_tensors("arrays", params[0]).take, params)))

    def extra_repr(self) -> str:
        """Return the layer as text."""
        return repr(self.layer)

    def _tensors(self) -> list[Tensor]:
        """Return the parameters as they are in the modules now.

        `getattr` of a module takes five times as long, but also finds computed parameters, as of
        `torch.nn.utils.parametrizations`.
        """
        tensors = []
        for *path, last in self._paths:
            owner: Any = self
            for part in path:
                owner = owner._modules[part]
            tensor = owner._parameters.get(last)
            tensors.append(getattr(owner, last) if tensor is None else tensor)
        return tensors
