"""A layer as a `torch.nn.Module`: gradients, and all that programs of PyTorch do with a module."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import gc
import io
import os

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.registry import EVERY, input_of, numbered, run
from xlstm.interop.bridge import Bridge
from xlstm.interop.torch import module
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import Linear
from xlstm.models import SequenceModel

torch = later("torch")
T = 4
B = 3
D = 2
H = 4
LAYERS = {
    "lstm": xlstm.LSTM(D, H, 2, bidirectional=True, batch_first=True),
    "slstm": xlstm.sLSTM(D, H, num_heads=2),
    "mlstm": xlstm.mLSTM(D, H, num_heads=2),
    "model": SequenceModel(xlstm.GRU(D, H), 2, last=True),
    "linear": Linear(D, H),
}


@pytest.fixture(autouse=True)
def nothing_stays():
    """All that forward kept is gone when the graph is."""
    from xlstm.interop import torch_module

    torch.manual_seed(0)
    yield
    if torch_module._saved_passes:  # by a cycle, as one of an error that was caught
        gc.collect()
    assert not torch_module._saved_passes


def inputs(layer, dtype="float64", grad=True):
    """Return x and the arrays of an initial state."""
    found = [torch.randn(T, B, layer.input_size)]
    found += [torch.rand(shape) for shape in Bridge("test", layer).shapes(found[0])[1:]]
    return [a.to(getattr(torch, dtype)).requires_grad_(grad) for a in found]


def flat(result):
    """Return the tensors of nested tuples."""
    return [a for part in result for a in flat(part)] if isinstance(result, tuple) else [result]


def called(net, x, state=(), **options):
    """Call a module with the arrays of a state, and return y and the arrays of the final state."""
    if state:
        options["state"] = Bridge("test", net.layer).state(state)
    return flat(net(x, **options))


def gradients(net, x, *state):
    """Return gradients of a sum of squares by the parameters, x and the state."""
    found = called(net, x, state)
    return torch.autograd.grad(sum(a.square().sum() for a in found), [*net.parameters(), x, *state])


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_values_and_gradients_are_ours(layer, rng):
    """From an initial state and with resets, bit for bit; on the device "meta" there are tensors
    of the same shapes.
    """
    numpy = xlstm.backend("numpy", dtype="float64")
    bridge = Bridge("test", layer)
    params = layer.init(0, numpy)
    x = input_of(layer, numpy, rng)
    state = [rng.random(shape) for shape in bridge.shapes(x)[1:]]
    cuts = {"resets": rng.random(x.shape[:2]) < 0.5} if bridge.has_state else {}
    ours = run(layer, params, x, bridge.state(state), train=False, keep=True, **cuts)
    net = module(layer, params).eval()
    x, *state = (torch.tensor(a, requires_grad=a.dtype == np.float64) for a in (x, *state))
    found = called(net, x, state, **cuts)
    wanted = [*map(net.get_parameter, params), *(a for a in (x, *state) if a.requires_grad)]
    slopes = torch.autograd.grad(sum(a.square().sum() for a in found) / 2, wanted)
    names = ["y", *(f"end {k}" for k in range(len(state))), *(f"d{name}" for name in params)]
    names += [*(["dx"] if "dx" in ours else []), *(f"dstart {k}" for k in range(len(state)))]
    for name, theirs in zip(names, (*found, *slopes), strict=True):
        np.testing.assert_array_equal(theirs.detach(), ours[name], err_msg=name)
    shapes = [a.shape for a in called(net.to("meta"), x.to("meta"), [a.to("meta") for a in state])]
    assert shapes == [a.shape for a in found]


def test_our_passes_run_on_shared_memory():
    layer = LAYERS["lstm"]
    params = layer.init(seed=3, backend="numpy")
    net = module(layer, params)
    x = inputs(layer, "float32", grad=False)[0]
    net(x)[0].sum().backward()
    before = params["1.reverse.b"].copy()
    torch.optim.SGD(net.parameters(), 0.1).step()  # in place, in the memory that our functions read
    assert not np.array_equal(params["1.reverse.b"], before)
    np.testing.assert_array_equal(net(x)[0].detach(), layer(params, x.numpy())[0])
    for name, array in net.arrays().items():
        assert np.shares_memory(array, params[name])
    net.double()
    assert np.shares_memory(net.arrays()["0.Wx"], net.state_dict()["0.Wx"].numpy())
    np.testing.assert_array_equal(
        net(x.double())[0].detach(), layer(net.arrays(), x.double().numpy())[0]
    )


def test_copies_and_files_of_modules():
    net = module(LAYERS["mlstm"])
    x, *state = inputs(LAYERS["mlstm"], "float32")
    expected = gradients(net, x, *state)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for one in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert all(map(torch.equal, gradients(one, x, *state), expected))
        with torch.no_grad():
            next(one.parameters()).add_(1.0)
        assert not torch.equal(next(one.parameters()), next(net.parameters()))


def test_what_forward_keeps_dies_with_the_graph():
    from xlstm.interop import torch_module

    net = module(LAYERS["slstm"])
    x, *state = inputs(LAYERS["slstm"], "float32")
    with torch.no_grad():
        assert not called(net, x, state)[0].requires_grad
    assert not torch_module._saved_passes
    y = called(net, x, state)[0]
    assert len(torch_module._saved_passes) == 1
    once, twice = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    y.sum().backward()
    assert not torch_module._saved_passes  # although y and its graph are still there
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)[0]
    assert not torch_module._saved_passes
    y.sum().backward()
    y = net(x)[0]
    y.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_memory_of_parameters_may_move_between_the_passes():
    """As FSDP2 moves it, which frees what it has gathered after forward, and gathers it again
    before backward.
    """
    net = module(LAYERS["model"]).double()
    x, *state = inputs(LAYERS["model"])
    expected = gradients(net, x, *state)
    found = called(net, x, state)
    others = []
    for p in net.parameters():
        values = p.detach().clone()
        storage = p.untyped_storage()
        size = storage.nbytes()
        address = storage.data_ptr()
        with torch.autograd._unsafe_preserve_version_counter(p), torch.no_grad():
            while storage.data_ptr() == address:
                storage.resize_(0)
                others.append(torch.full_like(values, torch.nan))  # in the memory that is free now
                storage.resize_(size)
            p.copy_(values)
    loss = sum(a.square().sum() for a in found)
    assert all(
        map(torch.equal, torch.autograd.grad(loss, [*net.parameters(), x, *state]), expected)
    )


def test_autocast_runs_in_the_dtype_of_the_parameters():
    net = module(LAYERS["lstm"])
    x, *state = inputs(LAYERS["lstm"], "float32")
    expected = called(net, x, state)
    low = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = called(net, x, [state[0].double(), state[1]])
        called(net, low)[0].sum().backward()
    assert all(map(torch.equal, found, expected))
    assert low.grad.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("LSTM: .*float16 on a CPU", lambda net, x: net.half()(x.half())),
        ("LSTM: .* on meta", lambda net, x: net(x.to("meta"))),
        (r"LSTM: .*torch.sparse_coo", lambda net, x: net(x.detach().to_sparse())),
        ("LSTM: lengths is on meta", lambda net, x: net(x, lengths=torch.zeros(B, device="meta"))),
        ("LSTM: a part of state is None", lambda net, x: net(x, (x, None))),
        (
            "LSTM: x requires grad, .*xlstm.interop.torch.module",
            lambda net, x: net.layer(net.arrays(), x),
        ),
        (
            "module: parameter 0.Wx.*byte order",
            lambda net, x: module(net.layer, swapped(net.arrays())),
        ),
    ],
)
def test_refused_by_name(words, call):
    net = module(LAYERS["lstm"])
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"^{words}"):
        call(net, inputs(net.layer, "float32")[0])


def swapped(params):
    """Parameters in the other byte order."""
    return {name: p.astype(">f4") for name, p in params.items()}


@pytest.mark.parametrize("name", ["forward", "training", "half.W", "layer", "_spec"])
def test_names_of_attributes_are_refused(name):
    layer = type(
        "Own", (Linear,), {"weights": {name: ({"D": D}, lambda rng, shape: np.zeros(shape))}}
    )(D, H)
    with pytest.raises(
        ValueError, match=f"^module: parameter {name}: attribute .* already exists, expected a name"
    ):
        module(layer)


def test_immutable_arrays_are_copied():
    layer = LAYERS["linear"]
    params = {name: np.broadcast_to(p, p.shape) for name, p in layer.init(backend="numpy").items()}
    net = module(layer, params)
    with torch.no_grad():
        net.W.add_(1.0)
    np.testing.assert_array_equal(net.W.detach(), params["W"] + 1)


def test_meta():
    layer = xlstm.LSTM(D, H, 2, dropout=0.5)
    with torch.device("meta"):
        net = module(layer)
        x = torch.ones(T, B, D, requires_grad=True)
    net(x)[0].sum().backward()
    assert all(a.grad.is_meta for a in (x, *net.parameters()))
    loaded = module(layer)
    y = []
    net.load_state_dict(loaded.state_dict(), assign=True)
    for one, place in ((net, "meta"), (loaded, "cpu")):
        torch.manual_seed(1)  # of dropout
        with torch.device(place):
            y.append(one(torch.ones(T, B, D, device="cpu"))[0])
    assert torch.equal(*y)


def alike(scale):
    """Return a layer whose class and options look like those of any other scale."""

    class Own(Linear):
        def apply(self, xp, p, x):
            y, kept = super().apply(xp, p, x)
            return y * scale, kept

    return Own(D, H)


def test_layers_that_look_alike():
    nets = [module(alike(scale)) for scale in (1.0, 10.0)]
    nets.append(copy.deepcopy(nets[0]))
    x = torch.ones(B, D)
    torch.compiler.reset()
    for net in nets:
        assert torch.equal(torch.compile(net, backend="eager")(x), net(x))
        program = torch.export.export(net, (x,)).module()
        assert torch.equal(program(x), net(x))
    del net, nets
    torch.compiler.reset()
    gc.collect()
    with pytest.raises(ValueError, match=r"^xlstm::forward: .* is gone or of another process"):
        program(x)


@pytest.mark.parametrize("kind", [xlstm.LSTM, Linear])
def test_layers_that_are_gone_take_no_memory(kind):
    """As in a search over sizes: traced modules leave a bounded number of layers."""
    from xlstm.interop import torch_module

    before = len(torch_module._unfiled)
    x = torch.zeros((T, B, D) if kind is xlstm.LSTM else (B, D))
    for size in range(1, 201):
        made = module(kind(D, size))
        torch_module.forward_op(made._spec, list(made.parameters()), x, [], None, None, False)
    del made
    gc.collect()
    assert len(torch_module._unfiled) == before
    found = torch_module._filed.cache_info()
    assert found.currsize <= found.maxsize <= 64


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_traces_call_the_operator(grad):
    net = module(LAYERS["slstm"])
    x, *_ = inputs(LAYERS["slstm"], "float32", grad=grad)
    with torch.set_grad_enabled(grad):
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(net, (torch.ones_like(x),)), file)
        file.seek(0)
        found = flat(torch.jit.load(file)(x))
        expected = flat(net(x))
    assert all(map(torch.equal, found, expected))
    if grad:
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y, *_ in (found, expected)))


@pytest.mark.parametrize(
    "layer", [xlstm.LSTM(D, H, 2, dropout=0.5, bidirectional=True), LAYERS["linear"]], ids=str
)
def test_compiled(layer):
    """In one graph, also a module of a layer that has never run."""
    net = module(dataclasses.replace(layer))  # without what a layer has cached
    x, *state = inputs(layer, "float32")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, *state: tuple(called(net, x, state)), backend="aot_eager", fullgraph=True
    )
    for given in ((x, *state), (x,)):
        torch.manual_seed(1)  # of dropout
        found = compiled(*given)
        found = torch.autograd.grad(
            sum(a.square().sum() for a in found), [*net.parameters(), *given]
        )
        torch.manual_seed(1)
        expected = gradients(net, *given)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "options",
    [{"lengths": [3]}, {"resets": [[False], [True]] * 2}, {"cu_seqlens": [0, 1, 3, 4]}],
)
def test_compiled_with_options(options):
    net = module(LAYERS["slstm"])
    x = torch.randn(T, 1, D, requires_grad=True)
    tensors = {name: torch.tensor(values) for name, values in options.items()}
    found = torch.compile(net, backend="aot_eager")(x, **tensors)[0]
    expected = net(x, **options)[0]
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)))


@pytest.mark.parametrize("layer", [LAYERS["lstm"], Embedding(7, 3)])
def test_exported(layer):
    net = module(layer)
    x = torch.randn(3, 5, D) if layer == LAYERS["lstm"] else torch.randint(7, (3, 5))
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(net, (x,), dynamic_shapes={"x": sizes})
    file = io.BytesIO()
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets[0] is torch.ops.xlstm.forward.default
    assert not any("aten" in str(target) for target in targets)
    torch.export.save(program, file)
    file.seek(0)
    x = torch.cat([x, x], 1)
    for one in (program, torch.export.load(file)):
        assert all(map(torch.equal, flat(one.module()(x)), flat(net(x))))


def rank(number, folder, x):
    """Keep the gradients of one step in one of two processes, each with half of the batch, and end
    the process.
    """
    patience = datetime.timedelta(minutes=10)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", patience, world_size=2, rank=number
    )
    net = module(LAYERS["slstm"], seed=number)
    sharded = module(LAYERS["slstm"])
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    torch.distributed.fsdp.fully_shard(sharded, mesh=mesh, reshard_after_forward=True)
    net = torch.nn.parallel.DistributedDataParallel(net)
    for name, one in (("ddp", net), ("fsdp", sharded)):
        one(x[:, number::2])[0].square().sum().backward()
        grads = [p.grad if name == "ddp" else p.grad.full_tensor() for p in one.parameters()]
        torch.save(grads, folder / f"{name}{number}.pt")
    torch.distributed.destroy_process_group()
    # PyTorch leaves threads of gloo running, which at times abort a process whose Python shuts down
    os._exit(0)


@pytest.mark.usefixtures("interpreted")  # the other processes need not load Numba
def test_data_parallel(tmp_path):
    net = module(LAYERS["slstm"], seed=0)
    x = torch.randn(T, 4, D)
    assert torch.equal(torch.nn.DataParallel(net)(x)[0], net(x)[0])
    torch.multiprocessing.spawn(rank, (tmp_path, x), nprocs=2)
    net(x)[0].square().sum().backward()
    for file in ("ddp0.pt", "ddp1.pt", "fsdp0.pt", "fsdp1.pt"):
        for g, p in zip(torch.load(tmp_path / file), net.parameters(), strict=True):
            torch.testing.assert_close(g, p.grad / 2)


def test_parametrizations():
    net = module(LAYERS["mlstm"])
    x, *state = inputs(LAYERS["mlstm"], "float32")
    with torch.no_grad():
        next(net.parameters()).add_(1.0)  # no row is zero, which has no direction
    y = called(net, x, state)[0]
    torch.nn.utils.parametrizations.weight_norm(net.get_submodule("0"), "Wx")
    torch.testing.assert_close(called(net, x, state)[0], y)
    assert {"0.b", "0.parametrizations.Wx.original0"} < {name for name, _ in net.named_parameters()}
    assert all(g.any() for g in gradients(net, x, *state))
