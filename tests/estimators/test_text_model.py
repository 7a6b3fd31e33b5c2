"""TextModel: what it learns and writes, its files, and what it refuses."""

import math

import pytest

from xlstm.estimators import TextModel

VERSE = "to be or not to be, that is the question:\n" * 40
QUICK = {
    "hidden_size": 24,
    "embedding_size": 8,
    "steps": 60,
    "batch_size": 4,
    "length": 20,
    "backend": "numpy",
}
FAST = {**QUICK, "hidden_size": 8, "steps": 3}


@pytest.fixture(scope="module")
def fitted():
    return TextModel(**{**QUICK, "learning_rate": 0.01, "steps": 120}).fit(VERSE)


def test_a_verse_is_learnt(fitted):
    assert fitted.held_out_ < 0.5
    assert fitted.perplexity(VERSE) == pytest.approx(math.exp(fitted.nats(VERSE)))
    assert fitted.score(VERSE) == -fitted.nats(VERSE)
    assert fitted.generate("to be or n", 20, temperature=0.0) == "to be or not to be, that is th"
    assert fitted.vocab_size_ == len(set(VERSE))
    pieces = list(fitted.stream("that", 30, seed=3))
    assert len(pieces) > 5
    assert "that" + "".join(pieces) == fitted.generate("that", 30, seed=3)
    assert fitted.generate("that", 30, seed=4) != fitted.generate("that", 30, seed=3)


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_files(tmp_path, tokens):
    text = VERSE + "über naïve Ω 🦉" * 3 + VERSE
    options = {**FAST, "tokens": tokens, "document_end": "\n"}
    # which follow each other
    model = TextModel(**options).fit([text[:500], text[500:]])
    assert model.held_out_ == TextModel(**options).fit(text).held_out_
    model.save(tmp_path / "m")
    again = TextModel.load(tmp_path / "m", "numpy")
    assert (again.tokens, again.nats(text)) == (tokens, model.nats(text))
    assert again.generate("Ω 🦉", 9, seed=1) == model.generate("Ω 🦉", 9, seed=1)
    again.set_params(batch_size=1, length=200)  # each line is read from the initial state
    assert again.nats(VERSE[:127]) == pytest.approx(again.nats(VERSE[:43]), rel=1e-6)


def test_a_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted(set(VERSE.replace(",", " ,").replace(":", " :").split()))
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: k for k, w in enumerate([*words, "?"])}, "?")
    )
    made.add_special_tokens(["<|end|>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = tmp_path / "tokenizer.json"
    made.save(str(file))
    for end in ("hamlet", "to be"):
        with pytest.raises(ValueError, match=f"document_end is '{end}', expected one of the 12"):
            TextModel(**FAST, tokens=file, document_end=end).fit(VERSE)
    with pytest.warns(UserWarning, match=r"'<\|end\|>', token 11, which the text does not have"):
        model = TextModel(**FAST, tokens=file, document_end="<|end|>").fit(VERSE + "<|end|>")
    assert model.vocab_size_ == len(words) + 2
    model.save(tmp_path / "model.safetensors")
    file.unlink()  # the vocabulary is in the model's file
    assert TextModel.load(tmp_path / "model.safetensors", "numpy").nats(VERSE) == model.nats(VERSE)


def test_a_warm_start_needs_the_same_sizes_and_tokens():
    model = TextModel(**FAST, warm_start=True).fit(VERSE)
    for change, text, words in (
        ({}, VERSE + "é", "'é' is not one of the"),
        ({"cell": "gru"}, VERSE, "warm_start goes on from LSTM"),
        (
            {"cell": "lstm", "tokens": "bytes"},
            VERSE,
            "tokens is 'bytes', expected those of before, 'characters'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            model.set_params(**change).fit(text)


@pytest.mark.parametrize(
    ("change", "X", "words"),
    [
        (
            {},
            "abc",
            r"TextModel: the text has 3 tokens, 3 without those held out, expected 81 or more",
        ),
        ({"dropout": 2.0}, VERSE, "dropout is 2.0"),
        ({"document_end": 1.5}, VERSE, "document_end is 1.5, expected .*, from 0 to 15"),
        (
            {"tokens": "bytes"},
            ["a", VERSE + "\ud800"],
            r"'\\ud800' in position 1681: surrogates not allowed",
        ),
    ],
)
def test_what_is_refused(change, X, words):
    with pytest.raises(ValueError, match=words):
        TextModel(**FAST | change).fit(X)


def test_a_prompt_of_an_unknown_character_is_refused(fitted):
    with pytest.raises(ValueError, match="'É' is not one of the"):
        fitted.generate("É", 3)
