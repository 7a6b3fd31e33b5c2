"""Tables of pandas, Polars and PyArrow, for tests of what takes them."""

import numpy as np
import pytest

LIBRARIES = ["pandas", "polars", "pyarrow"]


def table(library, columns):
    module = pytest.importorskip(library)
    return module.table(columns) if library == "pyarrow" else module.DataFrame(columns)


def columns_of(found):
    """The columns of a table of any library."""
    if hasattr(found, "to_pylist"):
        return {name: np.array(found[name].to_pylist()) for name in found.column_names}
    return {str(name): np.array(found[name].to_list()) for name in found.columns}


def long_columns(x, order, rows=(50, 40)):
    """Two shops below each other, or in the order of their days."""
    day = [np.datetime64("2024-01-01") + np.arange(n) for n in rows]
    columns = {
        "shop": np.repeat(["north", "south"], rows),
        "day": np.concatenate(day).astype("datetime64[us]"),
        "sales": np.concatenate([x[:n, k] for k, n in enumerate(rows)]),
        "price": np.concatenate([np.cos(np.arange(n) + k) for k, n in enumerate(rows)]),
    }
    place = np.argsort(columns["day"], kind="stable") if order == "days" else np.arange(sum(rows))
    return {name: column[place] for name, column in columns.items()}
