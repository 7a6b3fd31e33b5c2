"""Export of layers, models and estimators as C: one file without a library, and its header.

A step of the network runs on arrays that record operations (`arrays`). The operations are grouped
into loops (`kernels`), written as C (`writer`), and assembled with constants (`program`).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import writing
from xlstm.data.writing import AnyPath
from xlstm.interop.c import arrays
from xlstm.interop.c.arrays import Array, Weight
from xlstm.interop.c.program import CProgram, Facts, Program
from xlstm.interop.c.writer import Lines, indented
from xlstm.interop.common import one_direction
from xlstm.interop.recurrences import OneStep, run_by
from xlstm.layers.module import Forward, Module
from xlstm.layers.sequence import SequenceLayer, State
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SequenceModel

LAYER = checks.instance(Module, "a layer or a model")
KINDS = ("sequence classifier", "sequence regressor", "text model")  # of exported estimators
WEIGHTS = ("float32", "int8")
STEP = """\
/* Take a step. x has {inputs}, and y gets {capital}_OUTPUTS numbers:
   {outputs}. x and y must not overlap. */
void {name}_step({arguments});"""
RUN = """\
/* Run over a whole sequence, of which steps beyond {capital}_STEPS are left out. For each step x has
   {inputs}, one step after the other. {when} y gets {capital}_OUTPUTS numbers:
   {outputs}. x and y must not overlap. */
void {name}_run({arguments});"""
Formula = Callable[..., dict[str, Array]]  # formula(xp, run, x) of an estimator around its network


def to_c(
    layer: Any,
    params: Params | None = None,
    path: AnyPath | None = None,
    *,
    name: str = "model",
    weights: str = "float32",
    libm: bool = True,
    steps: int | None = None,
) -> CProgram:
    """Export a layer, a model or an estimator as C99 for a device, such as a microcontroller.

    The program computes `layer.step` in float32 for one sequence (B = 1). It uses no heap, no files
    and no global variables: its state is a struct that the caller owns. All its names begin with
    `name`, here "model":

    - `model_init(&state)` prepares for the first step of a sequence;
    - `model_step(&state, x, y)` takes a step: x holds `MODEL_INPUTS` numbers, or one symbol of
      int32_t, and y holds `MODEL_OUTPUTS` numbers;
    - `model_run(&state, x, steps, y)` replaces the step if a layer runs in reverse: x holds the
      steps of a whole sequence, and so does y unless the model predicts once, at the end;
    - `model_largest(y)` returns the index of the likeliest symbol of a language model, or of the
      likeliest label of a classifier, and `model_sample(y, temperature, &random)` draws a symbol;
    - `model_symbols` and `model_labels` hold the texts of these indices.

    The header defines all sizes. There is no dropout, and zoneout takes its expectation.

    Classifiers and regressors include their scaling, and a classifier returns probabilities. If an
    estimator predicts once, y after each step is the prediction for the steps so far. If it was
    fitted on tables, it takes their columns one after the other.

    Parameters
    ----------
    layer : Module or estimator
        A layer, a block, a stack or a model, also of a cell from `register_cell`; or a fitted
        `SequenceClassifier`, `SequenceRegressor` or `TextModel`.
    params : dict of str to array
        The parameters of a layer or model, on any backend; float64 is rounded to float32. Leave it
        out for an estimator, which has its own.
    path : path, optional
        The file to write, which ends in ".c"; the header is written beside it. Each file is written
        completely or not at all.
    name : str
        The prefix of all names of the program.
    weights : {"float32", "int8"}
        The type of the numbers in matrices. With "int8", each row is rounded to 255 levels and has
        a scale; the state and all sums stay float32.
    libm : bool
        Whether to call expf, logf and similar functions of math.h. Otherwise the program has its
        own, with errors up to 2.5 units in the last place. It always has its own tanh.
    steps : int, optional
        The largest number of steps of a sequence, for a layer that runs in reverse.

    Returns
    -------
    CProgram
        The texts of both files, and the memory and operations that they need.

    Raises
    ------
    ValueError
        An argument is out of range, or parameters are missing, surplus, misshapen or not finite. A
        layer runs in reverse and there are no `steps`. Or a cell of your own changes a part of an
        array, or uses a function of arrays that has no form in C.
    TypeError
        `layer` is neither a layer, nor a model, nor one of these estimators.
    OSError
        A file cannot be written.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.interop.c import to_c
    >>> lstm = xlstm.LSTM(8, 32)
    >>> program = to_c(lstm, lstm.init(backend="numpy"), name="gesture")
    >>> program.weight_bytes, program.state_bytes, program.operations
    (20992, 256, 11072)
    >>> "void gesture_step(gesture_state *state, const float *x, float *y);" in program.header
    True
    """
    _check_name(name)
    checks.choice(WEIGHTS)("to_c", "weights", weights)
    checks.flag("to_c", "libm", libm)
    checks.optional(checks.whole(1, 2**20))("to_c", "steps", steps)
    file = None if path is None else checks.path("to_c", "path", path)
    if file is not None and not re.fullmatch(r'[^"\\\n\r]+\.c', file.name):
        raise ValueError(
            f"to_c: path is {file}, expected a name that ends in .c, without quotes and backslashes"
        )
    program = Program(name, libm)
    metadata: dict[str, str] = {}
    signature: dict[str, Any] = {}
    formula: Formula | None = None
    if hasattr(layer, "_for_export") and not isinstance(layer, type):
        if params is not None:
            raise ValueError("to_c: params are for layers and models, an estimator has its own")
        if layer.KIND not in KINDS:
            raise ValueError(
                f"to_c: layer is a {type(layer).__name__}, expected a layer, a model, a"
                " SequenceClassifier, a SequenceRegressor or a TextModel"
            )
        if np.ndim(getattr(layer, "mean_", ())) == len("TD"):  # the mean of each step of a table
            layer = copy.copy(layer)
            layer.mean_, layer.std_ = program.of_step(mean=layer.mean_, std=layer.std_)
        metadata, signature, formula = layer._for_export(False)
        params = layer.params_
        layer = layer.model_
    network: Any = LAYER("to_c", "layer", layer)
    network.check({} if params is None else params)
    with np.errstate(over="ignore"):
        hosts = {key: np.asarray(to_numpy(a), np.float32) for key, a in (params or {}).items()}
    for key, host in hosts.items():
        if not np.isfinite(host).all():
            raise ValueError(f"to_c: parameter {key} has numbers that are not finite in float32")
    if (steps is None) is ("reverse." in getattr(network, "directions", ())):
        problem = "expected None, as the layer goes forward in time and takes a step at a time"
        if steps is None:
            problem = "expected the length of the longest sequence, as the layer goes in reverse"
        raise ValueError(f"to_c: steps is {steps}, {problem}")
    p = {key: Weight.of(key, host) for key, host in hosts.items()}
    shape = (1, 1) if network.symbols is not None else (1, 1, network.input_size)
    if signature:  # an estimator's; a row of a table has its steps side by side
        ((dims, _),) = signature.values()
        shape = (1, 1, *dims[2:])
    x = program.input(shape, is_token=network.symbols is not None)
    with run_by(OneStep(arrays)):
        write = _step if steps is None else functools.partial(_whole, steps=steps)
        run = write(program, network, p, x, formula or _alone)
    header = f"{name if file is None else file.stem}.h"
    facts = _facts(program, network, hosts, metadata, header, x, steps, weights, run)
    written = program.text(facts, weights == "int8")
    if file is not None:
        with writing.foreach(file.with_suffix(".h"), file) as temporary:
            for room, text in zip(temporary, (written.header, written.source), strict=True):
                room.write_bytes(text.encode())
    return written


def _check_name(name: str) -> None:
    """Raise ValueError unless a text can begin names in C."""
    checks.text("to_c", "name", name)
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(
            f"to_c: name is {checks.shown(name)}, expected a letter of ASCII, and then letters,"
            " digits and _"
        )


def _alone(xp: Any, run: Callable[[Array], Array], x: Array) -> dict[str, Array]:
    """Return the output of a model without an estimator around it."""
    return {"y": run(x)}


def _y(outputs: dict[str, Array]) -> Array:
    """Return the output of a program; for a classifier the probabilities of its labels."""
    return outputs["probabilities"] if "probabilities" in outputs else outputs["y"]


def _step(program: Program, network: Any, p: Params, x: Array, formula: Formula) -> Lines:
    """Write the function of a step."""
    through_time = isinstance(network, SequenceLayer)
    begin = program.state(network.states) if through_time else ()
    end: list[State] = []

    def run(x: Array) -> Array:
        if not through_time:
            return network.apply(arrays, p, x)[0]  # type: ignore[no-any-return]
        y: Array
        y, after = network.run_step(arrays, p, x[0], begin)
        end.append(after)
        return y if network.last else y[None]

    y = _y(formula(arrays, run, x))
    program.add("step", y, begin, end[0] if end else (), kind_of(x), is_first=True)
    return []


def _whole(
    program: Program, network: Any, p: Params, x: Array, formula: Formula, steps: int
) -> Lines:
    """Write functions of single steps, and return a function that runs a sequence in both
    directions.
    """
    is_model = isinstance(network, SequenceModel)
    layer = network.recurrent if is_model else network
    below = network.below("recurrent", p) if is_model else p
    width = layer.output_size
    P = width // len(layer.directions)
    forward = {
        (k, direction): one_direction(layer, below, k, direction)
        for k in range(layer.num_layers)
        for direction in layer.directions
    }
    begin = {
        key: program.state(one.states, f"_{key[0]}_{key[1]}".rstrip("_."))
        for key, (one, _) in forward.items()
    }
    network_input: list[Array] = []

    def run(x: Array) -> Array:
        of_parts = Forward(network, arrays, p)
        network_input.append(
            of_parts(network.before, x[0]) if is_model and network.before else x[0]
        )
        if not is_model:
            return program.input((1, 1, width))
        if not network.last:
            return of_parts("head", program.input((1, 1, width)))  # type: ignore[no-any-return]
        h = arrays.concat([begin[layer.num_layers - 1, name][0] for name in layer.directions])
        return of_parts("head", network._final(arrays, h, False))  # type: ignore[no-any-return]

    y = _y(formula(arrays, run, x))
    name = program.name
    most = f"{name.upper()}_STEPS"
    lines = [f"{name}_init(state);", f"steps = steps < {most} ? steps : {most};"]
    rows, inputs = "x", x.size
    if network_input[0].node is not x.node:
        rows, inputs = program.buffer("rows", steps * network_input[0].size), network_input[0].size
        program.add("input", network_input[0], (), (), kind_of(x), is_first=True)
        lines += _each(f"{name}_input(state, &x[{x.size} * t], &{rows}[{inputs} * t]);")
    for (k, direction), (one, weights) in forward.items():
        if direction == layer.directions[0]:
            source, D = rows, inputs
            is_end = k == layer.num_layers - 1 and not is_model
            rows = "y" if is_end else program.buffer(f"rows_{k}", steps * width)
            inputs = width
        at = program.input((1, D))
        out, end = one.run_step(arrays, weights, at, begin[k, direction])
        function = f"layer_{k}_{direction}".rstrip("_.")
        program.add(function, out, begin[k, direction], end)
        first = P * layer.directions.index(direction)
        place = f"{width} * t + {first}" if first else f"{width} * t"
        call = f"{name}_{function}(state, &{source}[{D} * t], &{rows}[{place}]);"
        lines += _each(call, bool(direction))
    if is_model:
        program.add("head", y, (), ())
        call = f"{name}_head(state, {rows}, y);"
        if not network.last:
            call = f"{name}_head(state, &{rows}[{width} * t], &y[{y.size} * t]);"
        lines += [call] if network.last else _each(call)
    head = f"void {name}_run({program.arguments(kind_of(x), 'steps')})"
    return [head, "{", *indented(lines), "}"]


def kind_of(x: Array) -> str:
    """Return the C type of symbols or numbers."""
    return "int32_t" if x.dtype == np.int64 else "float"


def _each(call: str, reverse: bool = False) -> Lines:
    """Return a loop over the steps of a sequence."""
    head = "for (int32_t t = 0; t < steps; t++) {"
    if reverse:
        head = "for (int32_t t = steps - 1; t >= 0; t--) {"
    return [head, *indented([call]), "}"]


def _facts(
    program: Program,
    network: Any,
    hosts: dict[str, Any],
    metadata: dict[str, str],
    header: str,
    x: Array,
    steps: int | None,
    weights: str,
    run: Lines,
) -> Facts:
    """Return the facts about the model that the files state."""
    digest = hashlib.sha256()
    for key, host in sorted(hosts.items()):
        digest.update(f"{key} {host.shape}".encode() + host.tobytes())
    about = [
        f"{program.name}: a {metadata.get('kind', 'network')}, written by xlstm",
        f"{network}".replace("*/", "* /"),
        f"weights: {weights}, of which SHA-256 is {digest.hexdigest()}",
    ]
    texts: dict[str, list[str]] = {}
    if "classes_" in metadata:
        texts["labels"] = [str(label) for label in json.loads(metadata["classes_"])]
    if metadata.get("codec_kind_") == '"characters"':
        texts["symbols"] = list(metadata["vocabulary"])
    elif "vocabulary" in metadata and "classes_" in metadata:  # index 0 is for all other symbols
        texts["symbols"] = ["", *map(str, json.loads(metadata["vocabulary"]))]
    y = program.functions[-1].stores[-1].value
    # in a layer with both directions, the last function computes only one direction's part
    sizes = {"INPUTS": x.size, "OUTPUTS": y.size if steps is None else network.output_size}
    choices = []
    if isinstance(network, xLSTMLanguageModel):
        choices = ["largest", "sample"]
    elif metadata.get("target_kind_") in ('"sequence"', '"step"') and "labels" in texts:
        choices = ["largest"]
    name = program.name
    capital = name.upper()
    inputs = f"{capital}_INPUTS numbers"
    if network.symbols is not None:
        sizes["SYMBOLS"] = network.symbols
        inputs = f"a symbol from 0 to {network.symbols - 1}, which nothing checks"
    outputs = "those of the network"
    if "labels" in texts:
        outputs = f"the probabilities of {name}_labels"
    elif choices:
        outputs = "scores before the softmax"
    elif metadata:
        outputs = "predictions in the units of the training data"
    if steps is not None:
        sizes["STEPS"] = steps
    text = STEP if steps is None else RUN
    main = text.format(
        name=name,
        capital=capital,
        inputs=inputs,
        outputs=outputs,
        when="After the last" if getattr(network, "last", False) else "For each step",
        arguments=program.arguments(kind_of(x), "steps" if steps else ""),
    )
    return Facts("\n   ".join(about), header, sizes, texts, main, choices, run)
