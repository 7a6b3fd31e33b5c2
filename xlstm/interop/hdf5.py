"""Files of Keras, HDF5 alone or in a zip, opened so that a hostile file does no harm.

Nothing is unpickled or unpacked to disk, and links are not followed. The sizes that a file declares
are compared with its own size before memory is allocated.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm import checkpoint
from xlstm.data import reading
from xlstm.interop.common import Host, package

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
DEEPEST = 16  # levels of groups
MOST = 4096  # groups and arrays; HDF5 needs some time to open each
BEGINNING = b"\x89HDF\r\n\x1a\n"
# h5py's errors; h5py 3.11 raises RuntimeError where others raise OSError
DAMAGED = (OSError, RuntimeError, KeyError)


def library() -> Any:
    """Import h5py."""
    return package(
        "h5py", "Keras files need h5py, which is not installed; pip install 'xlstm-xp[keras]'"
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield a file's datasets by path, and the configuration of a .keras file or None.

    It raises OSError if the file does not exist. It raises ValueError if the file is neither a
    .weights.h5 nor a .keras file, is damaged, or declares more than it holds.
    """
    h5py = library()
    config, blob = (
        _unzipped(path) if zipfile.is_zipfile(reading.regular(path)) else (None, path.read_bytes())
    )
    try:
        _check_lists(blob)
        # h5py.File of an io.BytesIO would raise OverflowError for a size beyond 2^63.
        file = h5py.File(h5py.h5f.open_file_image(blob), "r")
    except (*DAMAGED, ValueError) as error:
        raise ValueError(f"not a readable HDF5 file ({error})") from error
    with file:
        yield _datasets(file, len(blob)), config


def _unzipped(path: Path) -> tuple[Any, bytes]:
    """Return the configuration and the HDF5 file in a .keras file."""
    try:
        with zipfile.ZipFile(path) as archive:
            config, weights = (_entry(archive, name) for name in (CONFIG, WEIGHTS))
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"not a readable .keras file ({error})") from error
    return reading.from_json(CONFIG, config), weights


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of an entry, which must lie uncompressed in the file."""
    count = archive.namelist().count(name)
    if count != 1:
        raise ValueError(f"{name} is there {count} times, expected once")
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{name} is compressed, which Keras' are not")
    return archive.read(info)


def _check_lists(blob: bytes) -> None:
    """Raise ValueError if a free-space list in an HDF5 file loops; HDF5 would follow it forever."""
    size = len(blob)
    steps = 0
    at = -1
    # bytes of a number; the version decides its place
    widths = blob[13:15] if blob[8:9] < b"\2" else blob[9:11]
    if blob[:8] != BEGINNING or widths != b"\x08\x08":
        raise ValueError("it does not begin as Keras' do")
    while (at := blob.find(b"HEAP", at + 1)) >= 0 and at + 32 <= size:
        length, free, start = struct.unpack_from("<QQQ", blob, at + 8)
        while free != 1 and free < length and start + free + 16 <= size:  # 1 ends the list
            free = struct.unpack_from("<Q", blob, start + free)[0]
            steps = steps + 1
            if steps > size // 16:  # more than the file has room for
                raise ValueError("its lists of free space loop")


def _datasets(file: Any, most: int) -> dict[str, Any]:
    """Return the arrays of a file by path, without reading them or following links.

    It raises ValueError if there are too many items or groups are nested too deep, or if arrays
    declare more than `most` bytes.
    """
    datasets: dict[str, Any] = {}
    count = declared = 0

    def visit(name: str, item: Any) -> None:
        nonlocal count, declared
        count += 1
        if count > MOST or name.count("/") > DEEPEST:
            raise ValueError(
                f"there are more than {MOST} groups and arrays, or more than {DEEPEST} levels"
            )
        if isinstance(item, library().Dataset):
            declared += math.prod(item.shape or (0,)) * item.id.get_type().get_size()
            datasets[name] = item

    try:
        file.visititems(visit)
    except DAMAGED as error:
        raise ValueError(f"not a readable HDF5 file ({error})") from error
    # The bound is for all arrays together, since several may claim the same place.
    if declared > most:
        raise ValueError(f"its arrays declare {declared} bytes, the file has {most}")
    return datasets


def array(where: str, dataset: Any) -> Host:
    """Read a dataset of floating-point numbers; float16 becomes float32.

    The dataset must be contiguous, as Keras writes it: chunks may be compressed, and could unpack
    to any size.
    """
    try:
        layout = dataset.id.get_create_plist()
        dtype = dataset.dtype
        if dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"has dtype {dtype}, expected float32 or float64")
        in_one_piece = (
            layout.get_layout() == library().h5d.CONTIGUOUS and dataset.id.get_storage_size()
        )
        if not in_one_piece or layout.get_external_count():
            raise ValueError("does not lie in one piece in the file, as Keras writes it")
        values: Host = dataset[()]
    except (*DAMAGED, TypeError, ValueError) as error:  # TypeError for a dtype that NumPy lacks
        raise ValueError(f"{where}: {error}") from error
    checkpoint.finite(where, {"array": values})
    return values.astype(np.float32) if values.dtype == np.float16 else values


def written(groups: dict[str, list[Host]]) -> bytes:
    """Return an HDF5 file of arrays by group path; within a group, arrays are numbered."""
    buffer = io.BytesIO()
    with library().File(buffer, "w") as file:
        for path, arrays in groups.items():
            group = file.require_group(path)
            for k, values in enumerate(arrays):
                group.create_dataset(str(k), data=values)
    return buffer.getvalue()
