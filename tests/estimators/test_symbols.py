"""Classifiers and regressors of symbols: texts, lists and tables, the vocabulary and what is not in
it, files, other tools; what is refused.
"""

from types import SimpleNamespace

import numpy as np
import pytest

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
    made.enable_truncation(3)  # which files keep
    return made


@pytest.mark.parametrize("tokens", [[3, 3], np.array([3, 3])], ids=["list", "array"])
def test_a_tokenizer_that_gives_plain_tokens(tmp_path, tokens):
    """No file holds it."""
    symbols = SimpleNamespace(encode=lambda text: tokens)
    made = SequenceClassifier(**FAST, symbols=symbols, epochs=1).fit(TEXTS, LABELS)
    assert made.vocabulary_ == {3: 1}
    with pytest.raises(TypeError, match=r"expected a tokenizer that has to_str\(\)"):
        made.save(tmp_path / "m")
    assert not [*tmp_path.iterdir()]


def numbers(rows):
    names = sorted({word for row in rows for word in row})
    return [[names.index(word) for word in row] for row in rows]


@pytest.mark.parametrize(
    ("symbols", "X"),
    [
        ("word", TEXTS),
        ("character", TEXTS),
        (tokenizer, TEXTS),
        (True, ROWS),
        (True, [np.array(row) for row in numbers(ROWS)]),
    ],
    ids=["words", "characters", "tokenizer", "lists", "numbers"],
)
def test_the_order_of_symbols_is_learnt(symbols, X, tmp_path):
    """No bag of words has it; files have the vocabulary and the tokenizer."""
    symbols = symbols() if callable(symbols) else symbols
    made = SequenceClassifier(**FAST, symbols=symbols, epochs=40).fit(X[:60], LABELS[:60])
    assert made.score(X[60:], LABELS[60:]) > 0.9
    made.save(tmp_path / "m")
    again = SequenceClassifier.load(tmp_path / "m", "numpy")
    np.testing.assert_array_equal(again.predict_proba(X), made.predict_proba(X))
    assert again.fit(X, LABELS).score(X, LABELS) > 0.9


def test_symbols_that_are_rare_or_new():
    """They have place 0, which is trained where a symbol occurs too rarely."""
    X = ["a b, b", "It's b\u2019s a"] * 3 + ["rare a"]
    y = [0, 1] * 3 + [0]
    made = SequenceClassifier(**FAST, symbols="word", epochs=2).fit(X, y)
    assert made.vocabulary_ == {"a": 1, "b": 2, ",": 3, "b\u2019s": 4, "it's": 5}
    assert np.any(made.params_["embedding.W"][0])
    words = "SequenceClassifier: symbols not in the vocabulary: 3 of 4, such as 'new', 'rare'"
    with pytest.warns(UserWarning, match=words):
        rows = made.prepared(["new NEW A", "rare"])
    assert [row.tolist() for row in rows] == [[0, 0, 1], [0]]
    assert not np.any(made.set_params(min_count=1).fit(X, y).params_["embedding.W"][0])


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
        ("words", TEXTS, "symbols is 'words', expected None"),
        ("word", "a text", "X is 'a text', expected a list"),
        ("word", ["a", None], r"X\[1\] is None, expected texts, none of them missing"),
        ("word", ["", "a", " "], r"no symbols in X\[0\], X\[2\], 2 of 3 sequences"),
        ("word", np.array([["a", "b"]] * 2), "symbols=True reads a table"),
        (str, ["a"], "symbols.encode gives b'a', expected whole numbers"),
        ("word", ["a", "b"], "as often as min_count, 2"),
        (True, ["a", "b"], r"X\[0\] is the text 'a', expected a list of symbols"),
        (True, np.array([["a b"]] * 2), r"X\[0\] is the text .*take texts apart"),
        (True, [[1, 1], ["a"]], r"X\[1\] has the symbol 'a' at 0, and X\[0\] begins with 1"),
        (True, [[2.0]], r"X\[0\] has the symbol 2.0 at 0; .* astype\(int\)"),
        (True, np.array([["2020"]], "M8[ns]"), r"X\[0\] has the symbol np.datetime64"),
        (True, np.array([[9]], "m8[ns]"), r"X\[0\] has the symbol np.timedelta64"),
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
    with pytest.raises(
        ValueError, match=r"tokens has 10 at .*, expected whole numbers from 0 to 9"
    ):
        made.model_(made.params_, np.array([[10]]))
    made.set_params(symbols="character")
    with pytest.raises(ValueError, match="symbols is 'character', but it is fitted with True"):
        made.predict(TEXTS)


def test_a_vocabulary_of_a_file_is_checked(tmp_path):
    made = SequenceClassifier(**FAST, symbols=True, epochs=1).fit(ROWS, LABELS)
    made.save(tmp_path / "m")
    twice = {"vocabulary": np.frombuffer(b'["a", "a"]', np.uint8)}
    rewrite(tmp_path / "m", made.KIND, "fitted", twice)
    with pytest.raises(ValueError, match=r"not a sound .*vocabulary is \['a', 'a'\]"):
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

    made = SequenceClassifier(**FAST, symbols="word", epochs=30)
    assert clone(made).get_params() == made.get_params()
    assert cross_val_score(made, TEXTS, LABELS, cv=2).mean() > 0.8
    assert get_tags(made).input_tags.string
    assert clone(SequenceClassifier(symbols=tokenizer())).symbols.encode("man").ids


def test_onnx():
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from xlstm.interop.onnx import to_onnx

    X = [row[:3] for row in ROWS]
    made = SequenceClassifier(**FAST, symbols=True, epochs=2).fit(X, LABELS)
    session = runtime.InferenceSession(to_onnx(made).SerializeToString())
    label, probabilities = session.run(None, {"tokens": np.stack(made.prepared(X))})
    np.testing.assert_array_equal(label, made.predict(X))
    np.testing.assert_allclose(probabilities, made.predict_proba(X), rtol=1e-4)


def test_symbols_in_an_array_of_another_library():
    torch = pytest.importorskip("torch")
    X = torch.arange(40).reshape(20, 2) % 5
    made = SequenceClassifier(**FAST | {"backend": None}, symbols=True, epochs=1).fit(
        X, [0, 1] * 10
    )
    shares = made.predict_proba(X)
    assert type(shares) is torch.Tensor
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
