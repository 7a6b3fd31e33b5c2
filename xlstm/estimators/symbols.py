"""Read texts, lists and tables as sequences of symbols, and number the symbols by a vocabulary."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading, text
from xlstm.data.frames import has_columns
from xlstm.data.host import Host
from xlstm.estimators import inputs
from xlstm.estimators.inputs import InputSequences

UNKNOWN = 0  # the place of symbols that are not in the vocabulary
TABLE = "embedding.W"
VOCABULARY = "vocabulary"
TOKENIZER = "tokenizer"
# words with their apostrophes, and every other character that is no space
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
READERS = {"word": lambda whole: WORD.findall(whole.lower()), "character": list}
EXPECTED = "None, 'word', 'character', True, or a tokenizer, as Tokenizer.from_file(path) gives it"


def choice(where: str, name: str, value: Any) -> Any:
    """Check the parameter `symbols` of an estimator."""
    is_way = value in READERS if isinstance(value, str) else hasattr(value, "encode")
    if value is None or value is True or is_way:
        return value
    raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected {EXPECTED}")


def sequences(where: str, X: Any, symbols: Any) -> InputSequences:
    """Return X as lists of symbols, either all text or all whole numbers.

    Parameters
    ----------
    where : str
        The caller, for errors.
    X : list or array (N,), or table or array (N, T)
        Texts. With `symbols=True`, sequences of symbols, or a table with a symbol for each step.
    symbols : "word", "character", True, or tokenizer

    Returns
    -------
    InputSequences
        Its rows are lists of str or of int.

    Raises
    ------
    TypeError, ValueError
        X has none of these forms, a sequence is empty, or a symbol is missing or of another kind.
    """
    is_list = isinstance(X, list | tuple)
    entries = X if is_list else inputs._host(where, "X", X)
    if not is_list and entries.ndim not in (1, 2):
        raise ValueError(
            f"{where}: X is {checks.shown(X)}, expected a list of sequences or of texts, or a table"
        )
    if len(entries) == 0:
        raise ValueError(
            f"{where}: X is empty, found 0 sample(s) while a minimum of 1 is required."
        )
    is_column = not is_list and entries.shape[1:] == (1,)
    if is_column and (symbols is not True or isinstance(entries[0, 0], str)):
        entries = entries[:, 0]  # a column of texts is a list of texts
    is_table = symbols is True and has_columns(X)
    rows = _listed(where, entries) if symbols is True else _read(where, entries, symbols)
    empty = [f"X[{k}]" for k, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(
            f"{where}: there are no symbols in {checks.few(empty)}, {len(empty)} of {len(rows)}"
            " sequences; expected one or more in each: leave out those without"
        )
    first = rows[0][0]
    kinds = {type(first)} & {str, int}
    for k, row in enumerate(rows):
        for t, symbol in enumerate(row):
            if type(symbol) not in kinds:
                begins = f", and X[0] begins with {checks.shown(first)}" if kinds else ""
                is_whole = isinstance(symbol, float) and symbol.is_integer()
                raise TypeError(
                    f"{where}: X[{k}] has the symbol {checks.shown(symbol)} at {t}{begins}; expected"
                    " all text or all whole numbers, none of them missing"
                    f"{'; astype(int) makes whole numbers of floats' if is_whole else ''}"
                )
    features = len(rows[0]) if is_table else 1
    return InputSequences(rows, is_table, features, inputs._names(X))


def _listed(where: str, entries: Any) -> list[list[Any]]:
    """Return sequences of symbols as lists."""
    rows = []
    for k, entry in enumerate(entries):
        if isinstance(entry, str):
            raise TypeError(
                f"{where}: X[{k}] is the text {checks.shown(entry)}, expected a list of symbols, as"
                " symbols is True; 'word' and 'character' take texts apart"
            )
        is_list = isinstance(entry, list | tuple)
        row = entry if is_list else inputs._host(where, f"X[{k}]", entry)
        if not is_list and row.ndim != 1:
            raise ValueError(f"{where}: X[{k}] has shape {row.shape}, expected symbols (T,)")
        # item() would turn dates into whole numbers
        rows.append(
            [s.item() if isinstance(s, np.generic) and s.dtype.kind not in "mM" else s for s in row]
        )
    return rows


def _read(where: str, entries: Any, symbols: Any) -> list[list[Any]]:
    """Return texts as lists of symbols."""
    if getattr(entries, "ndim", 1) == 2:
        raise ValueError(
            f"{where}: X has shape {entries.shape}, expected texts (N,) or a table of one column of"
            " text; symbols=True reads a table with a symbol for each step"
        )
    for k, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(
                f"{where}: X[{k}] is {checks.shown(entry)}, expected texts, none of them missing"
            )
    if isinstance(symbols, str):
        return [READERS[symbols](entry) for entry in entries]
    return [_tokens(where, symbols.encode(str(entry))) for entry in entries]


def _tokens(where: str, encoded: Any) -> Any:
    """Return the tokens of a text as a list of int; a tokenizer returns them as `ids`, or
    directly.
    """
    ids = np.asarray(getattr(encoded, "ids", encoded))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"{where}: symbols.encode gives {checks.shown(encoded)}, expected whole numbers, or ids"
        )
    return ids.tolist()


def learnt(where: str, rows: Sequence[Sequence[Any]], min_count: int) -> dict[Any, int]:
    """Return the places, from 1, of the symbols that occur at least `min_count` times, the most
    frequent first.

    Raises
    ------
    ValueError
        No symbol occurs that often.
    """
    counts = Counter(symbol for row in rows for symbol in row)
    frequent = [symbol for symbol in counts if counts[symbol] >= min_count]
    if not frequent:
        raise ValueError(
            f"{where}: no symbol of X occurs as often as min_count, {min_count}; with min_count=1"
            " the vocabulary has them all"
        )
    return placed(sorted(frequent, key=lambda symbol: (-counts[symbol], symbol)))


def placed(symbols: Sequence[Any]) -> dict[Any, int]:
    """Return the places of symbols by their order, from 1; place 0 is for unknown symbols."""
    return {symbol: place for place, symbol in enumerate(symbols, UNKNOWN + 1)}


def numbered(
    where: str,
    rows: Sequence[Sequence[Any]],
    vocabulary: Mapping[Any, int],
    symbols: Any,
    warn: bool,
) -> list[Host]:
    """Return the places of symbols, int64 (T_i,), and warn of unknown symbols.

    The warning has their number, and the text of some of them if the tokenizer has `id_to_token`.

    Raises
    ------
    TypeError
        Symbols are whole numbers and the vocabulary is text, or the other way round.
    """
    fitted = next(iter(vocabulary))
    if type(rows[0][0]) is not type(fitted):
        raise TypeError(
            f"{where}: X has symbols such as {checks.shown(rows[0][0])}, expected those of fit,"
            f" such as {checks.shown(fitted)}"
        )
    unknown = [symbol for row in rows for symbol in row if symbol not in vocabulary]
    if unknown and warn:
        as_text = getattr(symbols, "id_to_token", lambda symbol: symbol)
        examples = checks.few(checks.shown(as_text(symbol)) for symbol in dict.fromkeys(unknown))
        warnings.warn(
            f"{where}: symbols not in the vocabulary: {len(unknown)} of {sum(map(len, rows))}, such"
            f" as {examples}",
            stacklevel=6,
        )
    return [np.array([vocabulary.get(symbol, UNKNOWN) for symbol in row], np.int64) for row in rows]


def begun(params: Params, home: Backend) -> Params:
    """Return initial parameters whose embedding has a row of zeros, the mean of initial rows, for
    unknown symbols.

    The row stays zero if training has no unknown symbols.
    """
    table = np.array(to_numpy(params[TABLE]))
    table[UNKNOWN] = 0
    return params | {TABLE: home.asarray(table)}


def to_arrays(vocabulary: Mapping[Any, int], symbols: Any) -> dict[str, Host]:
    """Return the arrays of a vocabulary, and of the tokenizer if there is one, for a file.

    Raises
    ------
    TypeError
        The tokenizer has no `to_str`.
    """
    texts = {VOCABULARY: json.dumps([*vocabulary])}
    if not isinstance(symbols, str | bool):
        if not hasattr(symbols, "to_str"):
            raise TypeError(
                f"save: symbols is {checks.shown(symbols)}, expected a tokenizer that has to_str()"
            )
        texts[TOKENIZER] = symbols.to_str()
    return {name: np.frombuffer(whole.encode(), np.uint8) for name, whole in texts.items()}


def vocabulary_of(content: bytes) -> dict[Any, int]:
    """Return the vocabulary from its bytes in a file; raise ValueError or TypeError if they are not
    valid.
    """
    symbols = reading.from_json(VOCABULARY, content)
    symbols = checks.several("file", VOCABULARY, symbols, "text or whole numbers")
    vocabulary = placed(symbols)
    kinds = {*map(type, symbols)}
    if kinds not in ({str}, {int}) or len(vocabulary) != len(symbols):
        raise ValueError(
            f"{VOCABULARY} is {checks.shown(symbols)}, expected different symbols, all text or all"
            " whole numbers"
        )
    return vocabulary


def tokenizer_of(content: bytes) -> Any:
    """Return the tokenizer from its bytes in a file, with its own truncation and padding."""
    checked = text.Tokenizer(Path(TOKENIZER), content)._inner
    return type(checked).from_str(content.decode())
