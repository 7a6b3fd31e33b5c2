"""A layer or a model as a `torch.nn.Module`, whose forward and backward passes are ours.

In eager mode they are one function of PyTorch's autograd. All that traces, such as `torch.compile`,
`torch.export`, `torch.jit.trace` and `make_fx`, sees the operators `xlstm::forward` and
`xlstm::backward`.
"""

from __future__ import annotations

import functools
import itertools
import json
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from xlstm.arrays import checks, foreign
from xlstm.arrays.namespace import Array, Params
from xlstm.arrays.tensor_views import to_tensor, views_of_tensors
from xlstm.interop.bridge import Bridge
from xlstm.models import model_files

Tensor = Any  # of PyTorch
LARGEST_SEED = 2**63 - 1
# what forward passes have saved, and layers of classes that files do not know, each by its number
_saved_passes: weakref.WeakValueDictionary[int, SavedHandle] = weakref.WeakValueDictionary()
_unfiled: weakref.WeakValueDictionary[str, Bridge] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
# a tensor of another class, such as FakeTensor, may have no values
PLAIN = {torch.Tensor, torch.nn.Parameter}
OF_A_CPU = torch.float32, torch.float64  # dtypes of parameters there
KEYS = torch._C.DispatchKey
# One of these is on while a tracer of PyTorch sees operators alone, or inside a transform of
# torch.func.
TRACERS = functools.reduce(
    lambda mask, key: mask | torch._C.DispatchKeySet(key).raw_repr(),
    (KEYS.Python, KEYS.PreDispatch, KEYS.FuncTorchDynamicLayerFrontMode),
    0,
)


class SavedHandle(np.ndarray[Any, Any]):
    """A whole number in memory of its own, which has what a forward pass saved.

    Autograd saves the number as a tensor. Its memory lives as long as autograd needs it, and so
    does what was saved.
    """

    saved: Any


def _handle(saved: Any) -> Tensor:
    """Return a number by which `_saved` finds what a forward pass saved, 0 where it saved
    nothing.
    """
    if saved is None:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    number = next(_numbers)
    handle = np.array(number).view(SavedHandle)
    handle.saved = saved
    _saved_passes[number] = handle
    return torch.from_numpy(handle)


def _saved(where: str, handle: Tensor) -> Any:
    """Return what a forward pass saved.

    Raises
    ------
    RuntimeError
        It is gone: a hook has put a copy of the number in the place of the tensor.
    """
    original = _saved_passes.get(int(handle))
    if original is None:
        raise RuntimeError(
            f"{where}: backward has only a copy of what forward saved, expected the same tensors"
        )
    return original.saved


def _forward(
    bridge: Bridge,
    x: Tensor,
    params: Sequence[Tensor],
    state: Sequence[Tensor],
    lengths: Any,
    seed: Any,
    keep: bool,
) -> tuple[tuple[Tensor, ...], Any]:
    """Return y and the final state, and what `_backward` needs beside the tensors."""
    if torch.is_tensor(lengths) and lengths.is_meta:
        raise TypeError(
            f"{bridge.name}: lengths is on meta, expected whole numbers on the device of x or a CPU"
        )
    options = {
        "lengths": lengths,
        "seed": None if seed is None else int(seed),
        "train": seed is not None,
    }
    take, give, context = views_of_tensors(bridge.name, x)
    with context:
        x = take(x)
        start = [take(a) for a in state]
        arrays = _arrays(params, take)
        outputs, saved = bridge.forward(arrays, x, start, keep=keep, **options)
        tensors = tuple([give(a) for a in outputs])
    return tensors, (_addresses(params), options, arrays, saved) if keep else None


def _backward(
    bridge: Bridge,
    handle: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    state: Sequence[Tensor],
    douts: Any,
) -> tuple[list[Tensor], Tensor | None]:
    """Return gradients of the parameters and of an initial state that was given, and that of x."""
    take, give, context = views_of_tensors(bridge.name, x)
    with context:
        addresses, options, arrays, saved = _saved(bridge.name, handle)
        # what was kept has views of memory that FSDP2 has freed since
        if addresses != _addresses(params):
            arrays = _arrays(params, take)
            _, saved = bridge.forward(arrays, take(x), list(map(take, state)), keep=True, **options)
        dy, *dend = [None if d is None else take(d) for d in douts]
        grads, dx, start = bridge.backward(arrays, saved, dy, dend)
        if state:
            grads = [*grads, *start]
        return [give(d) for d in grads], None if dx is None else give(dx)


def _arrays(params: Sequence[Tensor], take: Callable[[Tensor], Array]) -> list[Array]:
    """Return views of parameters that let PyTorch free their memory between the passes, as FSDP2
    does.
    """
    return [
        np.from_dlpack(p.detach()) if p.is_cpu and p.dtype in OF_A_CPU else take(p) for p in params
    ]


def _addresses(params: Sequence[Tensor]) -> list[int]:
    return [p.data_ptr() for p in params]


def _is_traced(tensors: Iterable[Tensor]) -> bool:
    """Tell whether PyTorch records operators, or tensors have no values, so that a call has to be
    our operator.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._dispatch_tls_local_include_set().raw_repr() & TRACERS:
        return True
    return not PLAIN.issuperset(map(type, tensors)) or all(a.is_meta for a in tensors)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_transformed() -> bool:
    """Tell whether vmap, grad or jvp of torch.func is on."""
    transform = torch._C._functorch.peek_interpreter_stack()
    return (
        transform is not None and transform.key() != torch._C._functorch.TransformType.Functionalize
    )


def _refuse_transforms(where: str, tensors: Iterable[Tensor]) -> None:
    """Raise RuntimeError inside a transform that our passes do not have; a tangent would be lost
    without a word.
    """
    has_tangents = forward_ad._current_level >= 0
    if _is_transformed() or (
        has_tangents and any(forward_ad.unpack_dual(a).tangent is not None for a in tensors)
    ):
        raise RuntimeError(
            f"{where}: forward-mode AD (dual tensors) and vmap, grad and jvp of torch.func are not"
            " possible, as backward is written by hand; expected plain tensors, and their backward"
        )


def _refuse(where: str) -> None:
    raise RuntimeError(
        f"{where}: gradients of gradients are not possible, as backward is written by hand; "
        "expected a backward pass without create_graph"
    )


class LayerFunction(torch.autograd.Function):  # type: ignore[misc]
    """The passes of a layer in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, bridge: Bridge, lengths: Any, seed: Any, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return y and the final state; tensors are the parameters and the initial state."""
        count = len(bridge.names)
        outputs, saved = _forward(bridge, x, tensors[:count], tensors[count:], lengths, seed, True)
        ctx.bridge = bridge
        ctx.set_materialize_grads(False)
        # Autograd raises where one of these was changed in place before backward.
        ctx.save_for_backward(_handle(saved), x, *tensors, *outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return gradients of x, of the parameters and of the initial state, and None for what is
        no tensor.
        """
        bridge = ctx.bridge
        inputs = len(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            _refuse(bridge.name)
        handle, x, *tensors = ctx.saved_tensors
        if all(d is None for d in douts):
            return (None,) * inputs
        count = len(bridge.names)
        params = tensors[:count]
        state = tensors[count : inputs - 4]
        grads, dx = _backward(bridge, handle, x, params, state, douts)
        return None, None, None, dx, *grads


def _bridge(spec: str) -> Bridge:
    """Return the bridge of a layer from what `spec_of` says of it.

    Raises
    ------
    ValueError
        The layer is of a class that files do not know, and it is gone or another process has it.
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
    """Return a layer as text, which an operator takes: its configuration, where files know its
    class, else a name that holds as long as the bridge exists.
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
    " keep)"
)
BACKWARD = "(str spec, Tensor[] params, Tensor x, Tensor[] state, Tensor handle, Tensor[] douts)"


@torch.library.custom_op("xlstm::forward", mutates_args=(), schema=f"{FORWARD} -> Tensor[]")  # type: ignore[untyped-decorator]
def forward_op(
    spec: str, params: list[Tensor], x: Tensor, state: list[Tensor], *options: Any
) -> list[Tensor]:
    """Return y, the final state and the handle of what was kept."""
    bridge = _bridge(spec)
    _refuse_transforms(bridge.name, (x, *params, *state))
    outputs, saved = _forward(bridge, x, params, state, *options)
    return [*(a.contiguous() for a in outputs), _handle(saved)]


@torch.library.custom_op("xlstm::backward", mutates_args=(), schema=f"{BACKWARD} -> Tensor[]")  # type: ignore[untyped-decorator]
def backward_op(
    spec: str,
    params: list[Tensor],
    x: Tensor,
    state: list[Tensor],
    handle: Tensor,
    douts: list[Tensor],
) -> list[Tensor]:
    """Return gradients of the parameters, of an initial state that was given, and of x unless it
    has tokens.
    """
    grads, dx = _backward(_bridge(spec), handle, x, params, state, douts)
    return [a.contiguous() for a in ([*grads] if dx is None else [*grads, dx])]


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
    return None, grads[:params], dx, grads[params:inputs], None, None, None


forward_op.register_autograd(_differentiate, setup_context=_remember)
backward_op.register_autograd(lambda ctx, *_: _refuse("xlstm::backward"))


def _dtypes(bridge: Bridge, like: Tensor) -> list[torch.dtype]:
    """Return the dtype of each array of a state beside parameters."""
    half = like.dtype.itemsize == 2
    return [torch.float32 if leaf.wide and half else like.dtype for leaf in bridge.leaves]


def run(
    bridge: Bridge,
    spec: str,
    x: Tensor,
    params: Sequence[Tensor],
    state: Sequence[Tensor] = (),
    lengths: Any = None,
    seed: Tensor | None = None,
) -> Sequence[Tensor]:
    """Return y and the final state, to which autograd adds our backward pass; a seed draws the
    masks of training.
    """
    tensors = (x, *params, *state)
    _refuse_transforms(bridge.name, tensors)
    # torch.jit.trace compares its trace with a second one, which it makes without gradients.
    keep = torch.is_grad_enabled() or torch.jit.is_tracing()
    keep = keep and any(a.requires_grad for a in tensors)
    if _is_traced(tensors):
        if lengths is not None and not torch.is_tensor(lengths):
            lengths = torch.as_tensor(lengths, device="cpu")
        return forward_op(spec, params, x, state, lengths, seed, keep)[:-1]  # type: ignore[no-any-return]
    if keep:
        return LayerFunction.apply(bridge, lengths, seed, x, *params, *state)  # type: ignore[no-any-return]
    return _forward(bridge, x, params, state, lengths, seed, keep)[0]


def _drawn(layer: Any, seed: int) -> dict[str, Tensor]:
    """Return initial parameters on PyTorch's default device; those on meta have no values, and none
    are drawn.
    """
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
    return torch.nn.Parameter(array if torch.is_tensor(array) else to_tensor(array))


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
        self._spec = spec_of(self._bridge)
        self._paths = [(name.split(".")[:-1], name.split(".")[-1]) for name in self._bridge.names]
        params = _drawn(layer, seed) if params is None else params
        layer.check(params)
        for (path, last), name in zip(self._paths, self._bridge.names, strict=True):
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
        """Take the state of a copy or a pickle, whose layer may be another object."""
        super().__setstate__(state)
        self._spec = spec_of(self._bridge)

    def forward(self, x: Tensor, state: Any = None, lengths: Any = None) -> Any:
        """Run over a batch of sequences; see `xlstm.interop.torch.module`."""
        bridge = self._bridge
        params = self._tensors()
        if not torch.is_tensor(x):
            raise TypeError(f"{bridge.name}: x is {checks.shown(x)}, expected a PyTorch tensor")
        if not bridge.has_state and (state is not None or lengths is not None):
            raise TypeError(f"{bridge.name} has no state, expected neither state nor lengths")
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
            if self.training and bridge.layer.random
            else None
        )
        y, *end = run(bridge, self._spec, x, params, start, lengths, seed)
        return (y, bridge.state(end)) if bridge.has_state else y

    def arrays(self) -> Params:
        """Return the parameters by our names as NumPy or CuPy arrays that share their memory."""
        params = self._tensors()
        return self._bridge.params(list(map(views_of_tensors("arrays", params[0]).take, params)))

    def extra_repr(self) -> str:
        """Return the layer in words."""
        return repr(self.layer)

    def _tensors(self) -> list[Tensor]:
        """Return the parameters, looked up in the modules as they are now.

        `getattr` of a module takes five times as long, and finds those that are computed too, as by
        `torch.nn.utils.parametrizations`.
        """
        tensors = []
        for path, last in self._paths:
            owner: Any = self
            for part in path:
                owner = owner._modules[part]
            tensor = owner._parameters.get(last)
            tensors.append(getattr(owner, last) if tensor is None else tensor)
        return tensors
