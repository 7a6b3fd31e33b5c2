"""Sound files of every kind that the library reads, but for those of estimators, and the same
damaged.
"""

import io
import json
import pickle
import re
import zipfile

import yaml
from safetensors.numpy import load as from_bytes
from safetensors.numpy import load_file

import xlstm
from xlstm import checkpoint
from xlstm.cli import export_import
from xlstm.data import text
from xlstm.interop import nxai, tirex
from xlstm.interop.keras import from_keras
from xlstm.models import TiRex, TiRex2, model_files
from xlstm.models.sequence import SequenceModel

WEIGHTS = "model.safetensors"
KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage"}
MARK = "@hostile@"  # in a structure: the hostile value of the number that follows
HOSTILE = [
    *(
        "null",
        "true",
        "false",
        "NaN",
        "Infinity",
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "1e-320",
        "1e30",
        "1e308",
        "1e400",
    ),
    *(
        "1000000",
        "20000000",
        "1000000000",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "-1e400",
    ),
    "1" + "0" * 400,
    *(
        '""',
        '"x"',
        '"12:30:00"',
        '"\\ud800"',
        f'"{"x" * 100_000}"',
        "[]",
        "{}",
        "[[]]",
        "[null]",
        '{"a": 1, "a": 2}',
    ),
    *(
        "[" * 2000 + "]" * 2000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        f"[{'0,' * 20_000}0]",
        f"[{'{},' * 20_000}0]",
    ),
]
# The function that reads the files of each kind from their folder.
READERS = {
    "model": lambda at: model_files.load(at / "m", "numpy"),
    "torch": lambda at: export_import.import_(at / WEIGHTS, name="recurrent."),
    "weights.h5": lambda at: from_keras(at / "m.weights.h5"),
    "keras": lambda at: from_keras(at / "m.keras"),
    "nxai": lambda at: nxai.load(at, backend="numpy"),
    **dict.fromkeys(("tirex", "tirex2 pickled"), lambda at: tirex.load(at, backend="numpy")),
    "tokenizer": lambda at: text.codec(at).decode([*text.codec(at).encode("a b c"), 0, 1]),
}


def sound(folder):
    """Files of every kind, made in an empty folder."""
    at = {name: folder / name for name in READERS}
    for path in at.values():
        path.mkdir()
    head = SequenceModel(xlstm.LSTM(2, 3, 2, dropout=0.1), 2)
    model_files.save(at["model"] / "m", head, head.init(backend="numpy"))
    export_import.export(at["model"] / "m", "torch", at["torch"] / WEIGHTS)
    export_import.export(at["model"] / "m", "keras", at["weights.h5"] / "m.weights.h5")
    h5 = (at["weights.h5"] / "m.weights.h5").read_bytes()
    (at["keras"] / "m.keras").write_bytes(zipped(_keras_config(), h5))
    large = xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(8, 1, 2, chunk_size=64, ffn_size=64), 7)
    nxai.save(at["nxai"], large, large.init(backend="numpy"))
    (at["nxai"] / "config.yaml").unlink()
    options = {"patch_size": 2, "input_ff_size": 3, "context": 8, "quantiles": (0.1, 0.5)}
    first = TiRex(4, 1, 2, **options)
    tirex.save(at["tirex"], first, first.init(backend="numpy"))
    second = TiRex2(4, [("slstm", 2, 2), ("mlstm", 2, 2)], output_ff_size=4, horizon=4, **options)
    tirex.save(folder / "second", second, second.init(backend="numpy"))
    arrays = load_file(folder / "second" / WEIGHTS)
    copies = {name.replace("fwd", "rev"): a for name, a in arrays.items()}
    (at["tirex2 pickled"] / "model.ckpt").write_bytes(checkpoint_of_torch(arrays | copies))
    config = json.loads((folder / "second" / "config.json").read_text())
    (at["tirex2 pickled"] / "model-config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (at["tokenizer"] / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return {
        name: {file.name: file.read_bytes() for file in path.iterdir()} for name, path in at.items()
    }


def damaged(content, rng):
    """The same files, one of them damaged."""
    name = rng.choice(sorted(content))
    edits = [flipped, flipped]
    if name.endswith((".json", ".yaml")):
        edits.append(_json)
    elif name.endswith(".keras"):
        edits += [_archive, _archive]
    elif name.endswith(".ckpt"):
        edits += [_pickled, _pickled, _pickled]
    elif not name.endswith(".h5"):
        edits += [_header, _header]
    return {**content, name: rng.choice(edits)(content[name], rng)}


def write(content, folder):
    """Write files to a folder in place of what is there: their bytes."""
    for path in folder.iterdir():
        path.unlink()
    for name, blob in content.items():
        (folder / name).write_bytes(blob)
    return sum(map(len, content.values()))


def safetensors(header, data=b""):
    """A safetensors file of a header, or of its text."""
    text = header if isinstance(header, bytes) else dumped(header)
    return len(text).to_bytes(8, "little") + text + data


def sealed(blob):
    """A model file whose description was edited, with the digest of what it says now, where it can
    be read.
    """
    try:
        header, data = opened(blob)
        text = header["__metadata__"]["xlstm"]
        about = json.loads(text)
        digest = checkpoint.digest(about["kind"], about["config"], from_bytes(blob))
        header["__metadata__"]["xlstm"] = re.sub(
            '"digest": "[0-9a-f]*"', f'"digest": "{digest}"', text
        )
    except Exception:  # it is refused for another reason
        return blob
    return safetensors(header, data)


def opened(blob):
    """The header and the data of a safetensors file."""
    size = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + size]), blob[8 + size :]


def dumped(structure):
    """JSON, with hostile values in the places that are marked."""
    return re.sub(
        rf'"{MARK}(\d+)"', lambda mark: HOSTILE[int(mark[1])], json.dumps(structure)
    ).encode()


def tokenizer(**changes):
    """A tokenizer of words."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    usual = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    usual |= {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFC"}]}
    }
    usual |= {
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return {**usual, **changes}


def flipped(blob, rng):
    """Cut, with other bytes, in another order, with more or with fewer."""
    start = rng.randrange(len(blob)) % rng.choice((512, len(blob)))  # headers are at the beginning
    end = min(len(blob), start + rng.choice((1, 4, 8, 64, 1000)))
    other = rng.randrange(len(blob))
    width = rng.choice((2, 4, 8))
    number = (
        rng.choice((0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(blob)))
        % 256**width
    )
    field = start - start % width
    before, part, behind = blob[:start], blob[start:end], blob[end:]
    numbered = blob[:field] + number.to_bytes(width, "little") + blob[field + width :]
    bit = bytes(b ^ 1 << rng.randrange(8) for b in part[:1])
    middles = (
        rng.randbytes(len(part)),
        rng.choice((b"\0", b"\xff", b"9", b"[")) * len(part),
        part + part,
        b"",
    )
    middles += (
        bit + part[1:],
        blob[other : other + len(part)],
        rng.randbytes(rng.choice((1, 8, 4096))) + part,
    )
    return rng.choice(
        (before, numbered, numbered, *(before + middle + behind for middle in middles))
    )


def _json(blob, rng):
    """JSON, or YAML as JSON, of a damaged structure."""
    return dumped(_edited(yaml.safe_load(blob), rng))


def _edited(structure, rng):
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


def _places(structure):
    """Every value in a structure, as its container and its key."""
    if isinstance(structure, dict | list):
        for key in list(structure) if isinstance(structure, dict) else range(len(structure)):
            yield structure, key
            yield from _places(structure[key])


def _header(blob, rng):
    """A safetensors file with another header, or with another description of a model in it."""
    header, data = opened(blob)
    about = header.get("__metadata__", {})
    if "xlstm" in about and rng.random() < 0.5:
        about["xlstm"] = dumped(_edited(json.loads(about["xlstm"]), rng)).decode()
    else:
        header = _edited(header, rng)
    return sealed(safetensors(header, data))


def _archive(blob, rng):
    """A .keras file with a damaged entry in a sound archive."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        config, weights = (archive.read(name) for name in ("config.json", "model.weights.h5"))
    return (
        zipped(_json(config, rng), weights)
        if rng.random() < 0.7
        else zipped(config, flipped(weights, rng))
    )


def _pickled(blob, rng):
    """A checkpoint of PyTorch with a damaged pickle, or storages of another size, in a sound
    archive.
    """
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    name = "data.pkl" if rng.random() < 0.8 else rng.choice(list(entries))
    if entries[name]:
        entries[name] = flipped(entries[name], rng)
    return zipped_entries(entries, rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))


def zipped(config, weights):
    """A .keras file."""
    return zipped_entries(
        {"config.json": config, "model.weights.h5": weights}, zipfile.ZIP_STORED, ""
    )


def torch_file(pickled, entries, method=zipfile.ZIP_STORED):
    """A checkpoint of PyTorch: a pickle, and other entries of the zip."""
    return zipped_entries({"data.pkl": pickled, **entries}, method)


def checkpoint_of_torch(arrays, content=None):
    """A checkpoint of PyTorch with plain values, and arrays that each have a storage."""
    tensors = {}
    for k, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        tensors[name] = tensor(
            array.shape, strides, 0, storage(KINDS[str(array.dtype)], str(k), array.size)
        )
    pickled = state(tensors, content)
    return torch_file(
        pickled, {f"data/{k}": array.tobytes() for k, array in enumerate(arrays.values())}
    )


def opcodes(value):
    """A plain value as a part of a pickle: its pickle without the opcodes that begin and end
    one.
    """
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    """The name of a class or a function as a part of a pickle."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def storage(kind="FloatStorage", name="0", numel=6, module="torch"):
    """The part of a pickle that stands for a storage."""
    identity = (
        opcodes("storage") + named(module, kind) + b"".join(map(opcodes, (name, "cpu", numel)))
    )
    return b"(" + identity + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, where=None):
    """The part of a pickle that stands for a tensor."""
    view = b"".join(map(opcodes, (offset, shape, strides, False, None)))
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + (where or storage()) + view + b"tR"


def state(tensors, content=None):
    """The pickle of a checkpoint of plain values, whose entry `state_dict` has the tensors."""
    items = b"".join(opcodes(name) + tensor for name, tensor in tensors.items())
    return opcodes(content or {}) + opcodes("state_dict") + b"}(" + items + b"us."


def zipped_entries(entries, method, folder="archive/"):
    """A zip as PyTorch writes it."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", method) as archive:
        for name, blob in entries.items():
            archive.writestr(f"{folder}{name}", blob)
    return room.getvalue()


def _keras_config():
    """The kinds of the layers that `export` writes for the model above."""
    options = {
        "go_backwards": False,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
    }
    layers = [
        ("in", "InputLayer", {}),
        *((name, "LSTM", options) for name in ("lstm", "lstm_1")),
        ("out", "Dense", {}),
    ]
    about = [
        {"class_name": base, "config": {"name": name, **config}} for name, base, config in layers
    ]
    return json.dumps(
        {"class_name": "Sequential", "config": {"name": "m", "layers": about}}
    ).encode()
