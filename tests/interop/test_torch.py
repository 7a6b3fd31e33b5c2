"""Weights from and to PyTorch, and through them: forward and every gradient equal PyTorch's."""

import dataclasses
import itertools

import numpy as np
import pytest
import safetensors.numpy

import xlstm
from tests.conftest import later
from tests.interop.bits import same_bits
from xlstm.interop.torch import from_torch, to_torch

torch = later("torch")

D = 3
H = 5
T = 7
B = 4
LENGTHS = [3, 7, 1, 5]
KINDS = [
    ("lstm", {}),
    ("lstm", {"proj_size": 2}),
    ("gru", {}),
    ("rnn", {}),
    ("rnn", {"nonlinearity": "relu"}),
]
CONFIGURATIONS = [
    (kind, {"num_layers": layers, "bidirectional": both, "bias": bias, **more})
    for (kind, more), layers, both, bias in itertools.product(
        KINDS, (1, 3), (False, True), (True, False)
    )
]


def module_of(kind, options, batch_first=False):
    torch.manual_seed(0)
    return getattr(torch.nn, kind.upper())(
        D, H, dtype=torch.float64, batch_first=batch_first, **options
    )


def ours_of(kind, options, weights, batch_first=False):
    return from_torch(
        weights, kind, batch_first=batch_first, activation=options.get("nonlinearity", "tanh")
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "packed"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch first"])
@pytest.mark.parametrize(("kind", "options"), CONFIGURATIONS, ids=str)
def test_forward_and_gradients_are_pytorchs(rng, kind, options, batch_first, lengths):
    """Outputs, final states, and gradients with respect to weights, input and initial states, for
    random cotangents of all.
    """
    module = module_of(kind, options, batch_first)
    layer, params = ours_of(kind, options, module.state_dict(), batch_first)
    L = layer.num_layers * len(layer.directions)
    x = rng.standard_normal((B, T, D) if batch_first else (T, B, D))
    state = [rng.standard_normal((L, B, n)) for n in layer.state_sizes]

    tx, *tstate = (torch.tensor(a, requires_grad=True) for a in (x, *state))
    start = tuple(tstate) if kind == "lstm" else tstate[0]
    rnn = torch.nn.utils.rnn
    packed = tx
    if lengths is not None:
        packed = rnn.pack_padded_sequence(
            tx, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False
        )
    ty, tend = module(packed, start)
    if lengths is not None:
        ty, _ = rnn.pad_packed_sequence(ty, batch_first=batch_first, total_length=T)
    outputs = (ty, *tend) if kind == "lstm" else (ty, tend)
    cotangents = [rng.standard_normal(tuple(a.shape)) for a in outputs]
    torch.autograd.backward(outputs, [torch.tensor(c) for c in cotangents])

    y, end, saved = layer.forward(params, x, tuple(state), lengths=lengths)
    grads, dx, dstart = layer.backward(params, saved, cotangents[0], tuple(cotangents[1:]))
    _, expected = ours_of(
        kind, options, {n: p.grad for n, p in module.named_parameters()}, batch_first
    )
    pairs = {
        "y": (y, ty),
        "dx": (dx, tx.grad),
        **{f"d{n}": (grads[n], torch.tensor(g)) for n, g in expected.items()},
    }
    for k, (found, theirs) in enumerate(
        zip((*end, *dstart), (*outputs[1:], *(s.grad for s in tstate)), strict=True)
    ):
        pairs[f"state {k}"] = (found, theirs)
    for name, (found, theirs) in pairs.items():
        np.testing.assert_allclose(
            found, theirs.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=name
        )


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), CONFIGURATIONS, ids=str)
def test_there_and_back_are_the_same_bits(tmp_path, kind, options, dtype):
    """From a module, its weights and a file, into a module and into a file. A module also gives
    the options that its weights do not show.
    """
    module = module_of(kind, {**options, "dropout": 0.25}, True).to(getattr(torch, dtype))
    theirs = {n: p.detach().numpy() for n, p in module.named_parameters()}
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(
        {f"encoder.{n}": p for n, p in theirs.items()} | {"other": np.zeros(2)}, path
    )
    from_file = from_torch(
        path, kind, prefix="encoder.", activation=options.get("nonlinearity", "tanh")
    )
    whole = torch.nn.ModuleDict({"tied": module, "encoder": module})
    from_modules = (
        from_torch(module),
        from_torch(torch.jit.script(module)),
        from_torch(whole, prefix="encoder."),
    )
    dropout = 0.25 if options["num_layers"] > 1 else 0.0
    expected = dataclasses.replace(from_file[0], batch_first=True, dropout=dropout)
    assert [layer for layer, _ in from_modules] == [expected] * 3
    for layer, params in (ours_of(kind, options, theirs), from_file, *from_modules):
        back = to_torch(layer, params)
        same_bits(back, theirs)
        module.load_state_dict({n: torch.tensor(p) for n, p in back.items()})


def test_arrays_are_copies():
    """Further training of either side changes nothing on the other."""
    module = module_of("lstm", {"proj_size": 2})
    theirs = {name: a.numpy() for name, a in module.state_dict().items()}
    layer, params = from_torch(theirs, "lstm")
    for there, here in itertools.product(
        [*theirs.values(), *to_torch(layer, params).values()], params.values()
    ):
        assert not np.shares_memory(there, here)


def weights(**changes):
    """The state dict of an LSTM of two layers as PyTorch has it, with other arrays or, for None,
    without one.
    """
    found = {}
    for layer, size in enumerate((D, H)):
        shapes = {
            "weight_ih": (4 * H, size),
            "weight_hh": (4 * H, H),
            "bias_ih": (4 * H,),
            "bias_hh": (4 * H,),
        }
        found |= {f"{name}_l{layer}": np.zeros(shape) for name, shape in shapes.items()}
    return {n: a for n, a in (found | changes).items() if a is not None}


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (weights(), "rnn", "weight_hh_l0 has shape"),
        (weights(bias_hh_l0=None), "lstm", "bias_hh_l0 is missing"),
        (weights(weight_ih_l3=np.zeros((20, 5))), "lstm", "weight_ih_l2 is missing"),
        (weights(weight_zz_l0=np.zeros(2)), "lstm", "weight_zz_l0 is unknown"),
        (
            weights(weight_ih_l1=np.zeros((20, 4))),
            "lstm",
            r"weight_ih_l1 .*expected \(4H, directions\*P\)",
        ),
    ],
)
def test_misfits_are_named(given, kind, words):
    with pytest.raises(ValueError, match=words):
        from_torch(given, kind)


def test_other_modules_are_named():
    net = torch.nn.Sequential(torch.nn.LSTM(D, H))
    for prefix, found in (("", "0.bias_hh_l0"), ("rnn.", "nothing")):
        with pytest.raises(ValueError, match=f"{prefix}weight_ih_l0 is missing, found {found}"):
            from_torch(net, prefix=prefix)
    weights = torch.nn.ParameterDict(torch.nn.GRU(D, H).state_dict())  # as traced modules are
    with pytest.raises(
        TypeError, match="a ParameterDict does not show batch_first, expected a torch"
    ):
        from_torch(weights)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt"])
def test_files_of_torch(tmp_path, suffix):
    """State dicts by themselves and in a checkpoint."""
    state = module_of("lstm", {}).state_dict()
    path = tmp_path / f"module.{suffix}"
    expected = from_torch(state, "lstm")[1]
    lightning = {"state_dict": {"m." + n: a for n, a in state.items()}, "epoch": 3}
    for content, prefix in ((state, ""), (lightning, "m.")):
        torch.save(content, path)
        same_bits(from_torch(path, prefix=prefix)[1], expected)


def test_parameters_on_another_backend(be):
    layer = xlstm.RNN(2, 3)
    expected = to_torch(layer, layer.init(0, "numpy", "float64"))
    for name, array in to_torch(layer, layer.init(0, be)).items():
        assert array.tobytes() == expected[name].tobytes()
