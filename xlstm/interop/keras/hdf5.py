"""Keras' files, HDF5 alone or in a zip, opened so that a hostile one does no harm.

Nothing is unpickled or unpacked to disk, links are not followed, and what a file declares is held against
what it holds before memory is taken.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import LARGEST
from xlstm.arrays.namespace import Params
from xlstm.data import reading

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
SMALL, RATIO = 2**26, 20  # bytes from which on a compressed entry may be so many times its stored size
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take memory before they give a byte
DEEPEST = 16  # groups in groups
MOST = 4096  # groups and arrays, each of which HDF5 takes its time to open
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def library() -> Any:
    """h5py, or an error that says how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Keras files need h5py, which is not installed; pip install 'xlstm-xp[keras]'") from error
    return h5py


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The `tree` of a .weights.h5 or .keras file, and of the latter its configuration.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        It is neither, is damaged, or declares more than it holds.
    """
    h5py = library()
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a .keras or .weights.h5 file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    config, source = _unzipped(path) if zipfile.is_zipfile(path) else (None, path)
    size = _scanned(path, source)
    try:
        # A buffer is opened as it is: reading it through Python, h5py cannot count a size beyond 2^63.
        file = h5py.File(h5py.h5f.open_file_image(source.getvalue()) if isinstance(source, io.BytesIO) else source, "r")
    except (OSError, RuntimeError) as error:  # h5py 3.11 has the latter
        raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
    with file:
        found = tree(file)
        declared = _declared(found)  # of all together, since several can be said to lie at the same place
        if declared > size:
            raise ValueError(f"{path}: its arrays declare {declared} bytes, the file has {size}")
        yield found, config


def _unzipped(path: Path) -> tuple[Any, io.BytesIO]:
    try:
        with zipfile.ZipFile(path) as archive:
            config, weights = (_entry(path, archive, name) for name in (CONFIG, WEIGHTS))
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable .keras file ({error})") from error
    return reading.from_json(f"{path}: {CONFIG}", config), io.BytesIO(weights)


def _entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of an entry, no more than it declares."""
    count = archive.namelist().count(name)
    if count != 1:
        raise ValueError(f"{path}: {name} is there {count} times, expected once")
    info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise ValueError(f"{path}: {name} is encrypted")
    if info.compress_type not in METHODS:
        raise ValueError(f"{path}: {name} is compressed by method {info.compress_type}, expected 0 or 8 (deflate)")
    declared, stored = info.file_size, info.compress_size
    if declared > (reading.JSON_BYTES if name == CONFIG else max(SMALL, RATIO * stored)):
        raise ValueError(f"{path}: {name} declares {declared} bytes but holds {stored}, which is out of proportion")
    with archive.open(info) as entry:
        return entry.read(declared)  # read() would unpack all there is before it cuts


def _scanned(path: Path, source: Path | io.BytesIO) -> int:
    """Size of an HDF5 file in which no list of free space loops, since HDF5 would follow it for ever."""
    with contextlib.ExitStack() as stack:
        blob: Any = b""
        if isinstance(source, io.BytesIO):
            blob = source.getvalue()
        elif source.stat().st_size:
            file = stack.enter_context(open(source, "rb"))
            blob = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        size, steps, at = len(blob), 0, -1
        widths = blob[13:15] if blob[8:9] < b"\2" else blob[9:11]  # of numbers, by the version of the beginning
        if blob[:8] != SIGNATURE or widths != b"\x08\x08":
            raise ValueError(f"{path}: not a readable HDF5 file, it does not begin as Keras' do")
        while (at := blob.find(b"HEAP", at + 1)) >= 0 and at + 32 <= size:
            length, free, start = struct.unpack_from("<QQQ", blob, at + 8)
            while free != 1 and free < length and start + free + 16 <= size:  # 1 ends the list
                free, steps = struct.unpack_from("<Q", blob, start + free)[0], steps + 1
                if steps > size // 16:  # more than there is room for
                    raise ValueError(f"{path}: not a readable HDF5 file, its lists of free space loop")
        return size


def tree(group: Any, seen: set[int] | None = None) -> dict[str, Any]:
    """Groups as dicts, and what is in them: groups, and datasets that are not read yet.

    Raises
    ------
    ValueError
        There is a link to another place or file, something under several names, or too much or too deep a nesting.
    """
    h5py = library()
    if group.name.count("/") > DEEPEST:
        raise ValueError(f"{group.name}: groups are nested more than {DEEPEST} deep")
    found: dict[str, Any] = {}
    seen = set() if seen is None else seen
    try:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{group.name}/{name}: is a {type(link).__name__}, which is not followed")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise ValueError(f"{item.name}: is there under several names, expected one")
            seen.add(address)
            if len(seen) > MOST:
                raise ValueError(f"{group.name}: there are more than {MOST} groups and arrays")
            found[name] = tree(item, seen) if isinstance(item, h5py.Group) else item
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{group.name}: is not readable ({error})") from error
    return found


def array(where: str, dataset: Any) -> np.ndarray[Any, Any]:
    """A dataset of floating-point numbers; float16 becomes float32.

    It has to lie in one piece, as Keras writes it: pieces may be compressed, and unpack to any size.
    """
    h5py = library()
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{where}: is a {type(dataset).__name__}, expected an array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{where}: its data lie elsewhere, expected them in the file")
    try:
        dtype = dataset.dtype
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: has a dtype that NumPy lacks, expected float32 or float64 ({error})") from error
    if dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{where}: has dtype {dtype}, expected float32 or float64")
    shape = dataset.shape
    if shape is None or not 1 <= len(shape) <= 2:
        raise ValueError(f"{where}: has shape {shape}, expected one axis or two")
    if not all(1 <= n <= LARGEST for n in shape):
        raise ValueError(f"{where}: has shape {shape}, expected sizes from 1 to {LARGEST}")
    if dataset.chunks is not None:
        raise ValueError(f"{where}: is chunked or compressed, expected it in one piece, as Keras writes it")
    if not dataset.id.get_storage_size():
        raise ValueError(f"{where}: declares {math.prod(shape) * dtype.itemsize} bytes, the file holds none of them")
    try:
        values: np.ndarray[Any, Any] = dataset[()]
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{where}: is not readable ({error})") from error
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{where}: is not finite")
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _declared(tree: dict[str, Any]) -> int:
    """Bytes of all arrays, as the file declares them."""
    h5py, total = library(), 0
    for item in tree.values():
        if isinstance(item, dict):
            total += _declared(item)
        elif isinstance(item, h5py.Dataset):
            total += math.prod(item.shape or (0,)) * item.id.get_type().get_size()
    return total


def written(tree: dict[str, Any]) -> bytes:
    """An HDF5 file of nested groups (dicts) and arrays."""
    h5py, room = library(), io.BytesIO()

    def fill(group: Any, tree: Params) -> None:
        for name, item in tree.items():
            if isinstance(item, dict):
                fill(group.create_group(name), item)
            else:
                group.create_dataset(name, data=item)

    with h5py.File(room, "w") as file:
        fill(file, tree)
    return room.getvalue()
