"""No product or decomposition is used from here but those of the main namespace."""

from cupy import matmul, matrix_transpose, outer, tensordot  # noqa: F401


def lstsq(*args: object) -> None:
    raise NotImplementedError("the stand-in has no lstsq")
