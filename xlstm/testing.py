"""`gradcheck`: compare the backward pass of any pair of functions with finite differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xlstm.arrays import checks, compiled
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Array
from xlstm.arrays.random import generator
from xlstm.arrays.trees import leaves_by_path, mapped, replaced

__all__ = ["GradientError", "gradcheck"]

Host = np.ndarray[Any, Any]
# The weights of f(x + k step v) / step in the fourth-order central difference.
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
TINY = float(np.finfo(np.float64).tiny)
ROUNDING = 10 * float(np.finfo(np.float64).eps)  # a few roundings on the way to an output


class GradientError(AssertionError):
    """A backward pass disagrees with finite differences; the message names input and output."""


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    inputs: tuple[Any, ...],
    *,
    directions: int = 2,
    step: float = 1e-4,
    tolerance: float = 1e-7,
    seed: int = 0,
    order: int = 1,
) -> float:
    """Compare a backward pass with finite differences in random directions.

    Take outputs y = f(x), a random cotangent w (an upstream gradient) and a random direction v. The
    derivative of <w, f(x)> along v must equal <dx, v>. The check runs for each input by itself,
    with one output at a time and with all outputs together, so that no error hides behind a larger
    gradient.

    Parameters
    ----------
    forward : callable
        `forward(*inputs) -> (outputs, saved)`. `outputs` is an array or a nesting of tuples, lists
        and dicts of arrays.
    backward : callable
        `backward(saved, doutputs) -> dinputs`: the gradients of <outputs, doutputs>, nested like
        `inputs`.
    inputs : tuple
        Arguments of `forward`: float64 arrays of any backend, or nestings of them. An argument of
        None has no gradient.
    directions : int
        The number of random directions for each input; every output is checked in each direction.
    step : float
        The step of the fourth-order central difference. If the difference disagrees, the check also
        tries ten times, a tenth and a hundredth of the step. An error of the difference itself, or
        of a kink within its reach, vanishes with a smaller step, and rounding in ill-conditioned
        outputs with a larger one.
    tolerance : float
        The largest relative error allowed. Errors are relative to the largest of the two
        derivatives and `|dx| |v| / sqrt(n)`, the typical size of a derivative in a random
        direction. The check does not count the effect of ten roundings of each output on the finite
        difference as an error. If this effect exceeds `tolerance` times the largest gradient, the
        gradient cannot be checked, and `gradcheck` raises.
    seed : int
        The seed of the cotangents and directions.
    order : {1, 2}
        With 2, the derivative of `backward` is checked as well: `xlstm.jvp` of the gradients of
        <outputs, w> must agree with their finite differences, and be symmetric as a Hessian is.

    Returns
    -------
    float
        The largest relative error found.

    Raises
    ------
    GradientError
        An error is above `tolerance`, a gradient is not finite, or its shape or nesting differs
        from its input.
    TypeError
        An input is not float64, or an argument has the wrong type.
    ValueError
        There are no inputs, a number is out of its range, or `order` is neither 1 nor 2.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> error = xlstm.gradcheck(lambda x: (np.sin(x), x), lambda x, dy: (dy * np.cos(x),), (np.arange(3.0),))
    >>> error < 1e-7
    True
    """
    rng = generator(seed, where="gradcheck")
    directions = checks.count("gradcheck", "directions", directions)
    step = checks.above_0("gradcheck", "step", step)
    tolerance = checks.above_0("gradcheck", "tolerance", tolerance)
    forward = checks.function("gradcheck", "forward", forward)
    backward = checks.function("gradcheck", "backward", backward)
    order = checks.whole(1, 2)("gradcheck", "order", order)
    inputs = checks.instance((tuple, list), "a tuple of arrays")("gradcheck", "inputs", inputs)
    leaves = leaves_by_path(inputs)
    if not leaves:
        raise ValueError("gradcheck: there are no inputs to check")
    for name, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not str(dtype).endswith("float64") or not hasattr(leaf, "shape"):
            raise TypeError(f"gradcheck: input {name} is {dtype}, expected a float64 array")
    both: Any = forward(*inputs)
    if not isinstance(both, tuple) or len(both) != 2:
        raise TypeError(
            f"gradcheck: forward gave {checks.shown(both)}, expected a tuple (outputs, saved)"
        )
    outputs, saved = both
    results = leaves_by_path(outputs)
    for name, leaf in results.items():
        if not np.all(np.isfinite(to_numpy(leaf))):
            raise GradientError(f"output {name} is not finite")
    worst = 0.0
    for _ in range(directions):
        along = {name: rng.standard_normal(tuple(x.shape)) for name, x in leaves.items()}
        # one forward pass serves all outputs
        moved = functools.cache(functools.partial(_moved, forward, inputs, along))
        for names in [*([name] for name in results if len(results) > 1), list(results)]:
            w = {
                name: rng.standard_normal(tuple(y.shape)) * (name in names)
                for name, y in results.items()
            }
            cotangent = replaced(outputs, {name: like(w[name], y) for name, y in results.items()})
            dinputs = _gradients(backward(saved, cotangent), leaves)
            exact = {name: float(np.sum(dinputs[name] * v)) for name, v in along.items()}
            difference = functools.partial(_difference, moved, {n: w[n] for n in names})
            scales = {}
            for name, v in along.items():
                sizes = float(np.linalg.norm(dinputs[name]) * np.linalg.norm(v))
                typical = sizes / max(1.0, v.size**0.5)
                scales[name] = max(abs(exact[name]), abs(difference(name, step)[0]), typical, TINY)
            most_noise = tolerance * max(scales.values())
            for name in along:
                pair = f"gradient of output {', '.join(names)} with respect to input {name}"
                numeric, noise = difference(name, step)
                if noise > most_noise > tolerance * TINY and any(exact.values()):
                    raise GradientError(
                        f"{pair}: cannot be checked, it drowns in the rounding of the outputs"
                    )
                error = max(abs(exact[name] - numeric) - noise, 0.0) / scales[name]
                # An error of the difference, or of a kink within its reach, vanishes with a smaller
                # step, and rounding in ill-conditioned outputs with a larger one; a wrong gradient
                # does not.
                for other in (10 * step, step / 10, step / 100):
                    if error <= tolerance:
                        break
                    again, noise = difference(name, other)
                    if noise > most_noise:
                        break
                    error = min(error, max(abs(exact[name] - again) - noise, 0.0) / scales[name])
                if not error <= tolerance:  # NaN is not
                    raise GradientError(
                        f"{pair}: backward gives {exact[name]:.12g}, finite differences"
                        f" {numeric:.12g}, relative error {error:.2g} > {tolerance:.2g}"
                    )
                worst = max(worst, error)
    if order == 2:
        options: dict[str, Any] = {
            "directions": directions,
            "step": step,
            "tolerance": tolerance,
            "seed": seed,
        }
        w = mapped(outputs, lambda _, y: like(rng.standard_normal(tuple(y.shape)), y))
        try:
            error = gradcheck(*_second_order(forward, backward, w), inputs, **options)
        except GradientError as problem:
            raise GradientError(
                f"second derivative, of inputs' gradients as outputs: {problem}"
            ) from None
        worst = max(worst, error)
    return worst


def _second_order(
    forward: Callable[..., tuple[Any, Any]], backward: Callable[[Any, Any], Any], w: Any
) -> tuple[Callable[..., tuple[Any, Any]], Callable[[Any, Any], Any]]:
    """Return the gradients of <outputs, w> as a forward pass, and its backward pass.

    A Hessian is symmetric, so its product with a direction also serves as its product with a
    cotangent.
    """

    def gradients(*inputs: Any) -> Any:
        return backward(forward(*inputs)[1], w)

    def backward_of_gradients(inputs: Any, v: Any) -> Any:
        return compiled.module("jvp.tangents").jvp(gradients, inputs, v)[1]

    return lambda *inputs: (gradients(*inputs), inputs), backward_of_gradients


def _moved(
    forward: Callable[..., tuple[Any, Any]],
    inputs: tuple[Any, ...],
    along: Mapping[str, Any],
    name: str,
    step: float,
) -> list[dict[str, Host]]:
    """Return the outputs at the points of the stencil, with one input moved along its direction."""
    x = leaves_by_path(inputs)[name]
    points = [replaced(inputs, {name: x + like(k * step * along[name], x)}) for k in STENCIL]
    return [
        {n: to_numpy(y) for n, y in leaves_by_path(forward(*point)[0]).items()} for point in points
    ]


def _difference(
    moved: Callable[[str, float], list[dict[str, Host]]],
    cotangents: Mapping[str, Host],
    name: str,
    step: float,
) -> tuple[float, float]:
    """Return the derivative of <outputs, cotangents> along the direction of an input.

    The second value is its error from rounding.
    """
    numeric = 0.0
    noise = 0.0
    for weight, y in zip(STENCIL.values(), moved(name, step), strict=True):
        terms = [w * y[n] for n, w in cotangents.items()]
        numeric += weight / step * sum(float(np.sum(term)) for term in terms)
        noise += ROUNDING * abs(weight) / step * sum(float(np.sum(np.abs(term))) for term in terms)
    return numeric, noise


def _gradients(dinputs: Any, leaves: dict[str, Array]) -> dict[str, Host]:
    """Return the gradients on the host once their nesting, shapes and values are checked."""
    gradients = {name: to_numpy(leaf) for name, leaf in leaves_by_path(dinputs).items()}
    if set(gradients) != set(leaves):
        raise GradientError(
            f"backward returns gradients {sorted(gradients)}, expected {sorted(leaves)}"
        )
    for name, gradient in gradients.items():
        if gradient.shape != tuple(leaves[name].shape):
            raise GradientError(
                f"gradient of {name} has shape {gradient.shape}, expected"
                f" {tuple(leaves[name].shape)}"
            )
        if not np.all(np.isfinite(gradient)):
            raise GradientError(f"gradient of {name} is not finite")
    return gradients
