"""Classifiers and regressors of symbols: texts, lists and tables, the vocabulary and what is not in
it, files, other tools; what is refused.
"""

import re
import warnings

import numpy as np
import pytest

import xlstm
from tests.estimators.conftest import rewrite
from xlstm.estimators import SequenceClassifier, SequenceRegressor

FAST = {"cell": "gru", "hidden_size": 8, "embedding_size": 4, "backend": "numpy"}
WORDS = ["An", "old", "king", "spoke", "to", "his", "son"]
RNG = np.random.default_rng(0)
ROWS = [
    ["man", *RNG.permutation(WORDS)[: RNG.integers(2, 7)], "dog"][:: 1 - 2 * (k % 2)]
    for k in range(80)
]
LABELS = ["man first", "dog first"] * 40
TEXTS = [" ".join(row) for row in ROWS]


def tokenizer():
    """One that knows some words, and the letters of others."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=40))
    return made


def numbers(rows):
    names = sorted({word for row in rows for word in row})
    return [[names.index(word) for word in row] for row in rows]


@pytest.mark.parametrize(
    ("symbols", "X"),
    [
        ("word", TEXTS),
        ("word", np.array(TEXTS)),
        ("character", TEXTS),
        (tokenizer, TEXTS),
        (True, ROWS),
        (True, [np.array(row) for row in numbers(ROWS)]),
    ],
    ids=["words", "array", "characters", "tokenizer", "lists", "numbers"],
)
def test_the_order_of_symbols_is_learnt(symbols, X, tmp_path):
    """No bag of words has it; files have the vocabulary and the tokenizer."""
    symbols = symbols() if callable(symbols) else symbols
    made = SequenceClassifier(**FAST, symbols=symbols, epochs=40).fit(X[:60], LABELS[:60])
    assert made.score(X[60:], LABELS[60:]) > 0.9
    assert sorted(made.vocabulary_.values()) == [*range(1, 1 + len(made.vocabulary_))]
    assert made.params_["embedding.W"].shape == (1 + len(made.vocabulary_), 4)
    made.save(tmp_path / "m")
    again = SequenceClassifier.load(tmp_path / "m", "numpy")
    assert again.vocabulary_ == made.vocabulary_
    np.testing.assert_array_equal(again.predict_proba(X), made.predict_proba(X))
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    for other in (again, made):
        assert other.fit(X, LABELS).score(X, LABELS) > 0.9


def test_symbols_that_are_rare_or_new():
    """They have place 0, which is trained where a symbol occurs too rarely."""
    X = ["a b, b", "It's b\u2019s a"] * 3 + ["rare a"]
    y = [0, 1] * 3 + [0]
    made = SequenceClassifier(**FAST, symbols="word", epochs=2).fit(X, y)
    assert made.vocabulary_ == {"a": 1, "b": 2, ",": 3, "b\u2019s": 4, "it's": 5}
    assert np.any(made.params_["embedding.W"][0])
    words = "SequenceClassifier: 3 of 4 symbols are not in the vocabulary, such as 'new', 'rare'"
    with pytest.warns(UserWarning, match=words):
        rows = made.prepared(["new NEW A", "rare"])
    assert [row.tolist() for row in rows] == [[0, 0, 1], [0]]
    assert {row.dtype for row in rows} == {np.dtype("int64")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.predict(X)
    assert [warning.filename for warning in caught] == [__file__]
    every = made.set_params(min_count=1).fit(X, y)
    assert "rare" in every.vocabulary_
    assert not np.any(every.params_["embedding.W"][0])


def test_the_vocabulary_is_that_of_the_sequences_trained_with():
    X = [["all", f"only {k}", f"only {k}"] for k in range(200)]
    made = SequenceRegressor(**FAST, symbols=True, epochs=1).fit(X, np.arange(200.0))
    assert len(made.vocabulary_) == 1 + 180


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_tables(library):
    frames = pytest.importorskip(library)
    rows = [row[:3] for row in ROWS]
    table = frames.DataFrame(dict(zip("xyz", zip(*rows, strict=True), strict=True)))
    if library == "pandas":
        table = table.astype({"x": "category"})
    made = SequenceClassifier(**FAST, symbols=True, epochs=5).fit(table, LABELS)
    assert list(made.feature_names_in_) == [*"xyz"]
    plain = SequenceClassifier(**FAST, symbols=True, epochs=5).fit(rows, LABELS)
    np.testing.assert_array_equal(made.predict_proba(table), plain.predict_proba(rows))
    of_texts = SequenceClassifier(**FAST, symbols="word", epochs=1)
    for texts in (frames.Series(TEXTS), frames.DataFrame({"text": TEXTS})):
        assert of_texts.fit(texts, LABELS).predict(texts).shape == (80,)
    with pytest.raises(ValueError, match="is expecting 3 features"):
        made.predict(table[["x"]])


QUANTITIES = [[1, 2, 3], [4, 5]]


def test_numbers_are_quantities_unless_they_are_declared():
    made = SequenceClassifier(**FAST, epochs=1).fit(QUANTITIES, [0, 1])
    assert made.model_.symbols is None
    assert made.set_params(symbols=True, min_count=1).fit(QUANTITIES, [0, 1]).model_.symbols == 6


@pytest.mark.parametrize(
    ("symbols", "X", "words"),
    [
        (None, ["1", "2"], "X has the text '1', expected quantities; symbols="),
        (None, [["a", "b"], ["c"]], r"X\[0\] has the text 'a', expected quantities; symbols="),
        (None, np.array([["a"], [1]], object), "X has the text 'a'"),
        ("words", TEXTS, "symbols is 'words', expected None, 'word', 'character', True, or"),
        ("word", "a text", "X is 'a text', expected a list"),
        ("word", ["a", None], r"X\[1\] is None, expected a text"),
        ("word", ["a", " "], r"X\[1\] has no symbols"),
        ("word", np.array([["a", "b"]] * 2), "symbols=True reads a table"),
        ("word", [], "X is empty"),
        ("word", ["a", "b"], "as often as min_count, 2"),
        (True, ["a", "b"], r"X\[0\] is the text 'a', expected a list of symbols"),
        (True, [[1, 1], ["a"]], r"X\[1\] has the symbol 'a' at 0, and X\[0\] begins with 1"),
        (True, [[1.0, 1.0], [2.0]], "has the symbol 1.0 at 0"),
        (True, np.zeros((2, 3, 4), int), "expected a list of sequences"),
        (True, [np.zeros((2, 2), int)] * 2, r"X\[0\] has shape \(2, 2\), expected symbols \(T,\)"),
    ],
)
def test_what_is_refused(symbols, X, words):
    with pytest.raises((TypeError, ValueError), match=f"SequenceClassifier: .*{words}"):
        SequenceClassifier(**FAST, symbols=symbols).fit(X, [0, 1])


def test_a_fit_to_others_is_refused():
    made = SequenceClassifier(**FAST, symbols=True, epochs=1).fit(ROWS, LABELS)
    with pytest.raises(TypeError, match="symbols such as 1, expected those of fit, such as 'dog'"):
        made.predict([[1, 2]])
    with pytest.raises(ValueError, match="symbols is None, but it is fitted to symbols"):
        made.set_params(symbols=None, warm_start=True).fit(QUANTITIES, LABELS[:2])


@pytest.mark.parametrize("content", [b'["a", 1]', b'["a", "a"]', b"[]", b"[1.5]"])
def test_vocabularies_of_files_that_are_refused(content, tmp_path):
    made = SequenceClassifier(**FAST, symbols=True, epochs=1).fit(ROWS, LABELS)
    made.save(tmp_path / "m")
    rewrite(tmp_path / "m", made.KIND, "fitted", {"vocabulary": np.frombuffer(content, np.uint8)})
    with pytest.raises(ValueError, match=r"not a sound .*vocabulary is"):
        SequenceClassifier.load(tmp_path / "m")


def test_labels_of_symbols_and_numbers():
    """A tag of each word, and the length of a text."""
    tags = [["name" if word in ("man", "dog") else "other" for word in row] for row in ROWS]
    tagger = SequenceClassifier(**FAST, symbols=True, epochs=20, class_weight="balanced")
    assert tagger.fit(ROWS, tags).score(ROWS, tags) == 1
    lengths = [len(row) for row in ROWS]
    regressor = SequenceRegressor(**FAST, symbols="word", epochs=40).fit(TEXTS, lengths)
    assert regressor.score(TEXTS, lengths) > 0.5


def test_tools_of_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score
    from sklearn.utils import get_tags
    from sklearn.utils.estimator_checks import check_estimator

    made = SequenceClassifier(**FAST, symbols="word", epochs=30)
    assert clone(made).get_params() == made.get_params()
    assert cross_val_score(made, TEXTS, LABELS, cv=2).mean() > 0.8
    assert get_tags(made).input_tags.string
    assert clone(SequenceClassifier(symbols=tokenizer())).symbols.encode("man").ids
    with pytest.warns(UserWarning, match="Can't test estimator"):
        check_estimator(made)


def test_onnx():
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from xlstm.interop.onnx import to_onnx

    made = SequenceClassifier(**FAST, symbols="word", epochs=2).fit(TEXTS, LABELS)
    session = runtime.InferenceSession(to_onnx(made, lengths=True).SerializeToString())
    rows = made.prepared(TEXTS[:9])
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((9, max(lengths)), np.int64)
    for row, places in zip(tokens, rows, strict=True):
        row[: len(places)] = places
    label, probabilities = session.run(None, {"tokens": tokens, "lengths": lengths})
    np.testing.assert_array_equal(label, made.predict(TEXTS[:9]))
    np.testing.assert_allclose(probabilities, made.predict_proba(TEXTS[:9]), rtol=1e-4)
    assert re.search('"dog"', session.get_modelmeta().custom_metadata_map["vocabulary"])


def test_symbols_in_an_array_of_another_library():
    torch = pytest.importorskip("torch")
    X = torch.arange(40).reshape(20, 2) % 5
    made = SequenceClassifier(**FAST | {"backend": None}, symbols=True, epochs=1).fit(
        X, [0, 1] * 10
    )
    shares = made.predict_proba(X)
    assert type(shares) is torch.Tensor
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)


def test_dropout_of_embedded_symbols():
    """It is that of the layers, which have none between them where there is one."""
    of_dropout = SequenceClassifier(**FAST, symbols=True, dropout=0.2, epochs=1)
    model = of_dropout.fit(ROWS, LABELS).model_
    assert (model.embedding_dropout, model.recurrent) == (0.2, xlstm.GRU(4, 8))
