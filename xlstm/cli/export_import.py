"""`xlstm export` and `xlstm import`: model files to and from the formats of other libraries, whole
files at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.cli.console import out
from xlstm.cli.sources import find_model, load_model
from xlstm.data import writing
from xlstm.data.pytorch import PICKLED
from xlstm.models import model_files

SUFFIXES = {"onnx": ".onnx", "torch": ".torch.safetensors", "keras": ".weights.h5", "c": ".c"}
C_OPTIONS = {"name": "model", "weights": "float32", "libm": True, "steps": None}  # and defaults


def export(
    model: Annotated[
        Path, Argument(help="Model file of train, import, an estimator's save or models.save.")
    ],
    to: Annotated[str, Option("--to", help="Format: onnx, torch, keras or c.")] = "onnx",
    output: Annotated[
        Path | None, Option("--output", "-o", help="File to write; by default beside the model.")
    ] = None,
    history: Annotated[
        int | None, Option(help="ONNX of a forecaster: values of a series that it reads.")
    ] = None,
    name: Annotated[str, Option(help="C: prefix of all names.")] = "model",
    weights: Annotated[
        str, Option(help="C: type of weights, float32, or int8 for matrices.")
    ] = "float32",
    libm: Annotated[bool, Option(help="C: use functions of math.h.")] = True,
    steps: Annotated[
        int | None, Option(help="C: steps of the longest sequence, if a layer reads in reverse.")
    ] = None,
) -> None:
    """Write a model for onnxruntime or as C for a device, with the scaling and labels of an
    estimator, or write its network for PyTorch or Keras.
    """
    checks.choice(SUFFIXES)("export", "--to", to)
    file, _, estimator, network, params = load_model("export", model)
    path = output or file.with_name(file.name.removesuffix(".safetensors") + SUFFIXES[to])
    _check_target(path, file)
    if history is not None and to != "onnx":
        raise ValueError(f"export: --history is {history}, expected --to onnx beside it, not {to}")
    options = {"name": name, "weights": weights, "libm": libm, "steps": steps}
    for option, value in options.items():
        if to != "c" and value != C_OPTIONS[option]:
            flag = "no-libm" if option == "libm" else option
            raise ValueError(f"export: --{flag} is for --to c, expected none beside --to {to}")
    if to == "c":
        _export_c(estimator or network, None if estimator else params, path, options)
    elif to == "onnx":
        from xlstm.interop.onnx import to_onnx

        to_onnx(estimator or network, None if estimator else params, path, history=history)
    elif to == "keras":
        from xlstm.interop.keras import to_keras

        to_keras(network, params, path)
    else:
        from safetensors.numpy import save

        from xlstm.interop.torch import to_torch

        tensors = to_torch(network, params)
        layer = getattr(network, "recurrent", network)
        about = {
            "format": "pt",
            "kind": type(layer).__name__.lower(),
            "batch_first": str(layer.batch_first),
            "dropout": str(layer.dropout),
        }
        if layer.activations:
            about["activation"] = layer.activations[0]
        writing.write(path, save(tensors, metadata=about))
    out.print(f"wrote: {path}")
    out.print(f"holds: {network}")


def _export_c(model: Any, params: Params | None, path: Path, options: dict[str, Any]) -> None:
    """Write C, and print the memory and operations that it needs on a device."""
    from xlstm.interop.c import to_c

    program = to_c(model, params, path, **options)
    out.print(f"wrote: {path.with_suffix('.h')}")
    out.print(f"flash: {program.weight_bytes:,} bytes of constants ({options['weights']})")
    if program.weight_error:
        out.print(f"rounding: {program.weight_error:.2%} of the weights, root mean square")
    out.print(
        f"RAM: {program.state_bytes:,} bytes of state, {program.stack_bytes:,} of local arrays"
    )
    out.print(f"operations: {program.operations:,} a step")


def import_(
    file: Annotated[
        Path,
        Argument(help=".onnx, .keras, .weights.h5, or .safetensors, .pt, .pth, .ckpt of PyTorch."),
    ],
    kind: Annotated[
        str | None, Option(help="lstm, gru or rnn; by default as the file says.")
    ] = None,
    name: Annotated[
        str, Option(help="Node, layer or prefix of names to read, if the file holds several.")
    ] = "",
    activation: Annotated[
        str | None, Option(help="Activation of a plain RNN, if its file does not say it.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="File to write; by default beside FILE.")
    ] = None,
) -> None:
    """Read an LSTM, GRU or RNN from a file of another library and write it as a model file."""
    file, _ = find_model("import", file, foreign=True)
    if file.suffix == ".onnx":
        from xlstm.interop.onnx import from_onnx

        layer, params = from_onnx(file, name or None)
    elif file.suffix in (".keras", ".h5"):
        from xlstm.interop.keras import from_keras

        layer, params = from_keras(file, kind, name=name or None, activations=activation)
    elif file.suffix in (".safetensors", *PICKLED):
        from xlstm.interop.torch import from_torch

        layer, params = from_torch(file, kind, activation=activation, prefix=name)
    else:
        expected = ".onnx, .keras, .h5, .safetensors, .pt, .pth or .ckpt"
        raise ValueError(f"{file}: suffix {file.suffix!r} is unknown, expected {expected}")
    if kind is not None and type(layer).__name__.lower() != kind:
        raise ValueError(f"{file}: holds an {type(layer).__name__}, expected {kind!r}")
    stem = file.name
    for ending in (*SUFFIXES.values(), file.suffix):
        stem = stem.removesuffix(ending)
    path = output or file.with_name(f"{stem}.model.safetensors")
    _check_target(path, file)
    model_files.save(path, layer, params)
    out.print(f"wrote: {path}")
    out.print(f"holds: {layer}")


def _check_target(path: Path, source: Path) -> None:
    """Raise ValueError if the file to write is the file that is read."""
    if path.exists() and path.samefile(source):
        raise ValueError(f"{path}: is the file that is read, expected another name to write to")
