"""Sound files of every kind that the library reads, and the same damaged."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import load as from_bytes
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

import xlstm
from xlstm.cli import export_import
from xlstm.data import pickles, pytorch, text
from xlstm.estimators import SequenceClassifier, TextModel
from xlstm.estimators import forecaster as estimators
from xlstm.interop import nxai, tirex
from xlstm.interop.keras import from_keras
from xlstm.models import TiRex, TiRex2, model_files
from xlstm.training import checkpoint

Content = dict[str, bytes]  # files of a folder by their names
WEIGHTS = "model.safetensors"
MARK = "@hostile@"  # in a structure: the hostile value of the number that follows
HOSTILE = [
    *("null", "true", "false", "NaN", "Infinity", "0", "-1", "1", "2", "0.5", "1e-320", "1e30", "1e308", "1e400"),
    *("1000000", "20000000", "1000000000", "4294967296", "9223372036854775807", "9223372036854775808", "-1e400"),
    "1" + "0" * 400,
    *('""', '"x"', '"12:30:00"', '"\\ud800"', f'"{"x" * 100_000}"', "[]", "{}", "[[]]", "[null]", '{"a": 1, "a": 2}'),
    *("[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, f"[{'0,' * 20_000}0]", f"[{'{},' * 20_000}0]"),
]


class Kind(NamedTuple):
    """Files of a kind, and what reads them from their folder."""

    content: Content
    read: Callable[[Path], Any]


def sound(folder: Path) -> dict[str, Kind]:
    """Files of every kind, made in an empty folder."""
    lstm = xlstm.LSTM(2, 3, 2, dropout=0.1)
    head = model_files.SequenceModel(lstm, 2)
    stack = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, [1], 2, eps=1e-6), 7)
    large = xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(8, 1, 2, chunk_size=64, ffn_size=64), 7)
    for name, model in (("model", head), ("language", stack)):
        model_files.save(folder / name, model, model.init(backend="numpy"))
    forecaster = estimators.Forecaster(estimators.Settings(hidden_size=3, window=4, epochs=1), "numpy")
    forecaster.fit(np.sin(np.arange(60.0))).save(folder / "forecaster")
    labels = SequenceClassifier(hidden_size=3, epochs=1, backend="numpy").fit(np.eye(4), [*"abab"])
    labels.save(folder / "classifier", {"label": "kind"})
    words = TextModel(hidden_size=3, embedding_size=2, batch_size=1, length=4, steps=1, backend="numpy")
    words.fit("to be or not").save(folder / "text")
    export_import.export_file(folder / "model", "torch", folder / "torch.safetensors")
    export_import.export_file(folder / "model", "keras", folder / "keras.weights.h5")
    for name, model in (("json", large), ("yaml", stack)):
        nxai.save(folder / name, model, model.init(backend="numpy"))
    config, weights = (folder / "json" / name for name in ("config.json", "model.safetensors"))
    h5 = (folder / "keras.weights.h5").read_bytes()

    first = TiRex(4, 1, 2, patch_size=2, quantiles=(0.1, 0.5), input_ff_size=3, context=8)
    recipe = [("slstm", 2, 2), ("mlstm", 2, 2)]
    second = TiRex2(4, recipe, patch_size=2, quantiles=(0.5,), input_ff_size=3, output_ff_size=4, context=8, horizon=4)
    for name, forecaster_model in (("first", first), ("first.ckpt", first), ("second", second)):
        tirex.save(folder / name, forecaster_model, forecaster_model.init(backend="numpy"))
    arrays = load_file(folder / "second" / "model.safetensors")
    pytorch.save(folder / "second.ckpt", {}, arrays | {n.replace("fwd", "rev"): a for n, a in arrays.items()})
    second_config = (folder / "second" / "config.json").read_bytes()

    def forecast(content: Content) -> Kind:
        return Kind(content, lambda at: tirex.load(at, backend="numpy"))

    def single(name: str, read: Callable[[Path], Any]) -> Kind:
        return Kind({name: (folder / name).read_bytes()}, lambda at: read(at / name))

    def published(content: Content) -> Kind:
        return Kind(content, lambda at: nxai.load(at, backend="numpy"))

    return {
        "model": single("model", lambda path: model_files.load(path, "numpy")),
        "language": single("language", lambda path: export_import.language(path, "numpy")),
        "forecaster": single("forecaster", lambda path: estimators.Forecaster.load(path, "numpy")),
        "classifier": single("classifier", lambda path: SequenceClassifier.load(path, "numpy")),
        "text": single("text", lambda path: TextModel.load(path, "numpy")),
        "torch": single("torch.safetensors", lambda path: export_import.import_file(path, name="recurrent.")),
        "weights.h5": single("keras.weights.h5", from_keras),
        "keras": Kind({"m.keras": zipped(_keras_config(), h5)}, lambda at: from_keras(at / "m.keras")),
        "nxai": published({"config.json": config.read_bytes(), "model.safetensors": weights.read_bytes()}),
        "yaml": published(
            {
                "config.yaml": _yaml(json.loads((folder / "yaml" / "config.json").read_text())).encode(),
                "model.safetensors": (folder / "yaml" / "model.safetensors").read_bytes(),
            }
        ),
        "shards": published({"config.json": config.read_bytes(), **_sharded(weights)}),
        "tirex": forecast({name: (folder / "first" / name).read_bytes() for name in ("config.json", WEIGHTS)}),
        "tirex2": forecast({"config.json": second_config, WEIGHTS: (folder / "second" / WEIGHTS).read_bytes()}),
        "tirex.ckpt": forecast({"model.ckpt": (folder / "first.ckpt").read_bytes()}),
        "tirex2.ckpt": forecast(
            {
                "model-config.yaml": _yaml(json.loads(second_config)).encode(),
                "model.ckpt": (folder / "second.ckpt").read_bytes(),
            }
        ),
        "tokenizer": Kind({"tokenizer.json": json.dumps(tokenizer()).encode()}, _tokenized),
    }


def damaged(content: Content, rng: random.Random) -> Content:
    """The same files, one of them damaged."""
    name = rng.choice(list(content))
    blob = content[name]
    edits = [_bytes, _bytes]
    if name.endswith((".json", ".yaml")):
        edits.append(_json if name.endswith(".json") or rng.random() < 0.5 else _lines)
    elif name.endswith(".keras"):
        edits += [_archive, _archive]
    elif name.endswith(".ckpt"):
        edits += [_pickled, _pickled, _pickled]
    elif not name.endswith(".h5"):
        edits += [_header, _description]
    return {**content, name: rng.choice(edits)(blob, rng)}


def write(content: Content, folder: Path) -> int:
    """Write files to a folder in place of what is there: their bytes."""
    for path in folder.iterdir():
        path.unlink()
    for name, blob in content.items():
        (folder / name).write_bytes(blob)
    return sum(map(len, content.values()))


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of a header, or of its text."""
    text = header if isinstance(header, bytes) else dumped(header)
    return len(text).to_bytes(8, "little") + text + data


def sealed(blob: bytes) -> bytes:
    """A model file whose description was edited, with the digest of what it says now, where it can be read."""
    try:
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        text = header["__metadata__"]["xlstm"]
        about = json.loads(text)
        digest = checkpoint.digest(about["kind"], about["config"], from_bytes(blob))
        header["__metadata__"]["xlstm"] = re.sub('"digest": "[0-9a-f]*"', f'"digest": "{digest}"', text)
    except Exception:  # it is refused for another reason
        return blob
    return safetensors(header, blob[8 + size :])


def dumped(structure: Any) -> bytes:
    """JSON, with hostile values in the places that are marked."""
    return re.sub(rf'"{MARK}(\d+)"', lambda mark: HOSTILE[int(mark[1])], json.dumps(structure)).encode()


def tokenizer(**changes: Any) -> dict[str, Any]:
    """A tokenizer of words."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    usual: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    usual |= {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFC"}]}}
    usual |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}
    return {**usual, **changes}


def _tokenized(folder: Path) -> str:
    codec = text.codec(folder)
    return codec.decode([*codec.encode("a b c"), 0, 1])


def _bytes(blob: bytes, rng: random.Random) -> bytes:
    """Cut, with other bytes, in another order, with more or with fewer."""
    start = rng.randrange(len(blob))
    if rng.random() < 0.5:  # where headers are
        start %= 512
    end = min(len(blob), start + rng.choice((1, 4, 8, 64, 1000)))
    part = blob[start:end]
    number, width = (
        rng.choice((0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(blob))),
        rng.choice((2, 4, 8)),
    )
    field = start - start % width
    other = rng.randrange(len(blob))
    same = len(part)
    return rng.choice(
        (
            lambda: blob[:start],
            lambda: blob[:field] + (number % 256**width).to_bytes(width, "little") + blob[field + width :],
            lambda: blob[:field] + (number % 256**width).to_bytes(width, "little") + blob[field + width :],
            lambda: blob[:start] + bytes(b ^ (1 << rng.randrange(8)) for b in part[:1]) + blob[start + 1 :],
            lambda: blob[:start] + rng.randbytes(same) + blob[end:],
            lambda: blob[:start] + rng.choice((b"\0", b"\xff", b"9", b"[")) * same + blob[end:],
            lambda: blob[:start] + blob[other : other + same] + blob[end:],
            lambda: blob[:start] + part + blob[start:],
            lambda: blob[:start] + blob[end:],
            lambda: blob[:start] + rng.randbytes(rng.choice((1, 8, 4096))) + blob[start:],
        )
    )()


def _json(blob: bytes, rng: random.Random) -> bytes:
    """JSON, or YAML as JSON, of a damaged structure."""
    return dumped(_edited(yaml.safe_load(blob), rng))


def _edited(structure: Any, rng: random.Random) -> Any:
    """A structure with a value, or two, replaced by hostile ones, left out, or moved."""
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(structure))
        if not places:
            break
        container, key = rng.choice(places)
        action = rng.random()
        if action < 0.8:
            container[key] = f"{MARK}{rng.randrange(len(HOSTILE))}"
        elif action < 0.9:
            del container[key]
        else:
            container[key] = json.loads(json.dumps(structure))
    return structure


def _places(structure: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a structure, as its container and its key."""
    keys = (
        structure.keys()
        if isinstance(structure, dict)
        else range(len(structure))
        if isinstance(structure, list)
        else ()
    )
    for key in list(keys):
        yield structure, key
        yield from _places(structure[key])


def _lines(blob: bytes, rng: random.Random) -> bytes:
    """YAML with hostile lines."""
    lines = blob.decode().splitlines()
    name = lines[rng.randrange(len(lines))].split(":")[0]
    values = (
        "12:30:00",
        "0o17",
        "0x1F",
        "1_000",
        "*a",
        "&a [*a]",
        "!!python/name:os.system",
        "!!int 3",
        "yes",
        "|",
        "? x",
        "{",
        ".inf",
    )
    lines[rng.randrange(len(lines))] = f"{name}: {rng.choice((*values, *HOSTILE))}"
    return "\n".join(lines).encode()


def _header(blob: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(blob[:8], "little")
    return sealed(safetensors(_edited(json.loads(blob[8 : 8 + size]), rng), blob[8 + size :]))


def _description(blob: bytes, rng: random.Random) -> bytes:
    """A model file with another description."""
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    about = header.get("__metadata__", {})
    if "xlstm" in about:
        about["xlstm"] = dumped(_edited(json.loads(about["xlstm"]), rng)).decode()
    return sealed(safetensors(header, blob[8 + size :]))


def _archive(blob: bytes, rng: random.Random) -> bytes:
    """A .keras file with a damaged entry in a sound archive."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        config, weights = (archive.read(name) for name in ("config.json", "model.weights.h5"))
    return zipped(_json(config, rng), weights) if rng.random() < 0.7 else zipped(config, _bytes(weights, rng))


def _pickled(blob: bytes, rng: random.Random) -> bytes:
    """A checkpoint of PyTorch with a damaged pickle, or storages of another size, in a sound archive."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    name = "data.pkl" if rng.random() < 0.8 else rng.choice(list(entries))
    edits = [_bytes] if name != "data.pkl" else [_bytes, _opcodes, _opcodes, _opcodes]
    for _ in range(rng.choice((1, 1, 2))):
        if entries[name]:
            entries[name] = rng.choice(edits)(entries[name], rng)
    return zipped_entries(entries, rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))


def _opcodes(blob: bytes, rng: random.Random) -> bytes:
    """A pickle with an opcode, whole or with its argument, replaced, left out, repeated, or with others before it."""
    try:
        places = [place for _, _, place in pickletools.genops(blob)]
    except ValueError:  # damaged already
        return _bytes(blob, rng)
    k = rng.randrange(len(places))
    start, end = places[k], places[k + 1] if k + 1 < len(places) else len(blob)
    own, code = blob[start:end], rng.choice(pickletools.opcodes).code.encode("latin-1")
    number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, "little")
    call = b"cos\nsystem\nX\x04\0\0\0true\x85R"
    large = b"\x8a\x0a" + rng.randbytes(10)
    return rng.choice(
        (
            lambda: blob[:start] + code + own[1:] + blob[end:],
            lambda: blob[:start] + code + blob[end:],
            lambda: blob[:start] + code + number + blob[end:],
            lambda: blob[:start] + own[:1] + number + blob[end:],
            lambda: blob[:start] + large + blob[end:],
            lambda: blob[:start] + rng.choice((b"]", b"}", b")", b"N", b"(")) + blob[end:],
            lambda: blob[:start] + call + blob[start:],
            lambda: blob[:start] + own + blob[start:],
            lambda: blob[:start] + blob[end:],
        )
    )()


def zipped(config: bytes, weights: bytes) -> bytes:
    """A .keras file."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)
    return room.getvalue()


def torch_file(content: Any, entries: Content, method: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint of PyTorch: a pickle, and other entries of the zip."""
    return zipped_entries({"data.pkl": pickles.dumps(content), **entries}, method)


def zipped_entries(entries: Content, method: int) -> bytes:
    """A zip as PyTorch writes it."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", method) as archive:
        for name, blob in entries.items():
            archive.writestr(f"archive/{name}", blob)
    return room.getvalue()


def _keras_config() -> bytes:
    """The kinds of the layers that `export_file` writes for the model above."""

    def layer(name: str, base: str, **config: Any) -> dict[str, Any]:
        return {"class_name": base, "config": {"name": name, **config}}

    options = {"go_backwards": False, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    layers = [layer("in", "InputLayer"), *(layer(n, "LSTM", units=3, **options) for n in ("lstm", "lstm_1"))]
    return json.dumps(layer("m", "Sequential", layers=[*layers, layer("dense", "Dense", units=2)])).encode()


def _sharded(whole: Path) -> Content:
    """A checkpoint as two files and an index."""
    arrays = load_file(whole)
    parts = {f"model-{k}.safetensors": dict(list(arrays.items())[k::2]) for k in range(2)}
    index = {name: file for file, some in parts.items() for name in some}
    return {
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        **{file: to_bytes(some) for file, some in parts.items()},
    }


def _yaml(structure: Any, indent: str = "") -> str:
    """Block style, as configurations are written."""
    lines = []
    for name, value in structure.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:\n{_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}")
    return "\n".join(lines)
