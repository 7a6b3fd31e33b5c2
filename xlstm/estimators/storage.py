"""Forecasters in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.data import reading
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.estimators import intervals
from xlstm.estimators.linear_baseline import LinearBaseline
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.scaling import Scaling
from xlstm.estimators.settings import Settings
from xlstm.models.sequence import SequenceModel
from xlstm.training import checkpoint

KIND = "forecaster"
JUDGE = "judge."  # before the names of arrays of the network that has not seen the test part

AnyPath = str | os.PathLike[str]
Host = np.ndarray[Any, Any]


class Stored(NamedTuple):
    """The content of a file."""

    name: str
    judge: Predictor
    whole: Predictor
    adjustment: Values
    season: int
    calendar: bool
    roles: Roles
    names: list[str]


def save(path: AnyPath, judge: Predictor, whole: Predictor, adjustment: Values, about: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all; the arrays of both networks are there once if they are the same."""
    networks = {"": whole} | ({} if whole is judge else {JUDGE: judge})
    arrays: dict[str, Any] = {"adjustment": adjustment}
    lines = {}
    for prefix, one in networks.items():
        arrays |= {f"{prefix}{name}": array for name, array in one.params.items()}
        arrays |= {f"{prefix}linear_baseline": one.line.coefficients, f"{prefix}spread": one.spread}
        lines[prefix] = {"order": one.line.order, "ridge": one.line.ridge, "light": one.line.light}
    checkpoint.save(path, arrays, KIND, {**about, "scaling": asdict(judge.scaling), "linear_baselines": lines})


def load(path: AnyPath, backend: str | Backend | None, network: Callable[[Settings, Scaling], SequenceModel]) -> Stored:
    """Read a file that `save` wrote.

    Parameters
    ----------
    path : path
    backend : str, Backend or None
    network : callable
        Makes the network of settings and a scaling.

    Returns
    -------
    Stored

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is not a forecaster's.
    """
    arrays, config = checkpoint.load(path, KIND)
    try:
        name, dtype, lines = (config.get(key) for key in ("name", "dtype", "linear_baselines"))
        if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(lines, dict)):
            raise TypeError(f"name, dtype and linear_baselines are {checks.shown([name, dtype, lines])}")
        if not {""} <= set(lines) <= {"", JUDGE}:
            raise ValueError(f"linear_baselines are {checks.shown(sorted(lines))}, expected '' and {JUDGE!r}")
        season = checks.size_or_0("Forecaster", "season", config.get("season"))
        calendar = checks.flag("Forecaster", "calendar", config.get("calendar"))
        roles, names = _columns(config)
        settings = reading.made("settings", Settings, config.get("settings"))
        checks.size("settings", "window", settings.window)
        scaling = reading.made("scaling", Scaling, config.get("scaling"))
        home, model = backend_of(backend, dtype), network(settings, scaling)
        if len(names) not in (0, len(scaling.units[0])):
            raise ValueError(f"names are {checks.few(names)}, expected one for each of {len(scaling.units[0])} targets")
        H, C, P = settings.horizon, len(scaling.units[0]), len(intervals.pairs(settings.quantiles))
        adjustment = _taken(arrays, "adjustment", {"H": H, "C": C, "P": P})
        prefixes = [prefix for prefix in (JUDGE, "") if prefix in lines]
        parts = {prefix: _part(arrays, prefix, lines[prefix], settings, scaling) for prefix in prefixes}
        for _, _, params in parts.values():
            model.check(params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a sound forecaster ({type(error).__name__}: {error})") from error
    checkpoint.finite(path, {"adjustment": adjustment})
    made = {}
    for prefix, (line, spread, params) in parts.items():
        checkpoint.finite(path, {f"{prefix}linear_baseline": line.coefficients, f"{prefix}spread": spread})
        checkpoint.finite(path, {f"{prefix}{key}": array for key, array in params.items()}, dtype)
        params = {key: home.asarray(array) for key, array in params.items()}
        made[prefix] = Predictor(settings, home, scaling, line, spread, model, params)
    return Stored(name, made.get(JUDGE, made[""]), made[""], adjustment, season, calendar, roles, names)


def _columns(config: dict[str, Any]) -> tuple[Roles, list[str]]:
    """Return the roles of columns, and the names of targets, where it was fitted to a table."""
    roles = config.get("roles", {})
    if not isinstance(roles, dict):
        raise TypeError(f"roles are {checks.shown(roles)}, expected an object")
    names = checks.several("Forecaster", "names", config.get("names", []), "names of columns", checks.LARGEST)
    return Roles(**roles).checked("Forecaster"), [
        checks.text("Forecaster", f"names[{k}]", name) for k, name in enumerate(names)
    ]


def _part(
    arrays: dict[str, Host], prefix: str, about: Any, settings: Settings, scaling: Scaling
) -> tuple[LinearBaseline, Values, dict[str, Host]]:
    """Return the linear baseline, the spread and the weights of one network, and take them out of all arrays.

    The network whose names have a prefix comes first.
    """
    line = reading.made("linear_baselines", _Line, about)
    C, H = len(scaling.units[0]), settings.horizon
    K = line.order + len(scaling.static[0]) + len(scaling.future[0])
    coefficients = _taken(arrays, f"{prefix}linear_baseline", {"C": C, "H": H, "K": K})
    spread = _taken(arrays, f"{prefix}spread", {"H": H, "C": C})
    names = [name for name in arrays if name.startswith(prefix)]
    params = {name.removeprefix(prefix): arrays.pop(name) for name in names}
    return LinearBaseline(line.order, coefficients, line.ridge, line.light), spread, params


@dataclass(frozen=True)
class _Line:
    """The description of a linear baseline in a file."""

    order: int
    ridge: float
    light: float

    def __post_init__(self) -> None:
        kinds = {"order": checks.size, "ridge": checks.non_negative, "light": checks.non_negative}
        for name, kind in kinds.items():
            object.__setattr__(self, name, kind("linear_baselines", name, getattr(self, name)))


def _taken(arrays: dict[str, Host], name: str, shape: checks.Dims) -> Values:
    """Take an array of a given shape out of all arrays."""
    if name not in arrays:
        raise ValueError(f"parameter {name} is missing")
    found = arrays.pop(name)
    checks.shape("Forecaster", name, found, shape)
    if found.dtype != np.float64:
        raise TypeError(f"Forecaster: {name} has dtype {found.dtype}, expected float64")
    return found
