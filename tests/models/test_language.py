"""Language models: their first embeddings, generation, sampling, tokens, the command line."""

import numpy as np
import pytest
from typer.testing import CliRunner

import xlstm
from tests.conftest import DATA, make_backend
from tests.registry import STACK, TABLE, numbered, params_of
from xlstm.arrays.convert import to_numpy
from xlstm.cli import app as cli
from xlstm.data import text
from xlstm.models import language
from xlstm.models.language import Sampler

MODELS = [model for model in TABLE if isinstance(model, xlstm.xLSTMLanguageModel)]


@pytest.mark.parametrize(
    ("backbone", "std"),
    [
        (xlstm.LSTM(64, 64), 1.0),
        (xlstm.sLSTM(64, 64), (2 / (5 * 64)) ** 0.5),
        (xlstm.xLSTMStack(64, 1, [0], post_norm=False), (2 / (5 * 64)) ** 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_initial_embeddings(backbone, std):
    """Normal: as PyTorch's where no norm follows, else small, as is a tied head."""
    tied = isinstance(backbone, xlstm.sLSTM)
    W = (
        xlstm.xLSTMLanguageModel(backbone, 100, tied=tied).init(0, "numpy", "float64")[
            "embedding.W"
        ]
        / std
    )
    assert abs(W.mean()) < 0.05
    assert abs(W.std() - 1) < 0.03
    assert abs(np.mean(W**4) - 3) < 0.3  # of a normal variable


@pytest.mark.parametrize("model", **numbered(MODELS))
def test_steps_and_generation_are_the_whole_sequence(be, rng, model):
    """Greedy tokens are the likeliest ones after the whole text so far."""
    params = params_of(model, be, rng)
    prompt = rng.integers(0, 7, (2, 3))
    tokens, state = model.generate(params, prompt, 6)
    assert tokens.shape == (2, 9)
    np.testing.assert_array_equal(tokens[:, :3], prompt)
    order = (lambda a: a) if model.batch_first else np.transpose
    logits, _, _ = model.forward(params, be.asarray(order(tokens)), train=False)
    logits = to_numpy(logits) if model.batch_first else to_numpy(logits).swapaxes(0, 1)
    np.testing.assert_array_equal(np.argmax(logits, axis=-1)[:, 2:8], tokens[:, 3:])
    more, _ = model.generate(params, tokens[:, -1:], 4, state=state)
    longer, _ = model.generate(params, prompt, 10)
    np.testing.assert_array_equal(more[:, 1:], longer[:, 9:])


def test_generation_is_seeded_and_stops(rng):
    model = MODELS[0]
    params = params_of(model, make_backend("numpy"), rng)
    prompt = [[1, 2], [3, 3]]
    one, two, other = (
        model.generate(params, prompt, 40, temperature=1.0, seed=s)[0] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert np.any(one != other)
    stopped, _ = model.generate(params, prompt, 40, temperature=1.0, seed=1, stop=int(one[0, 5]))
    first = int(np.argmax(stopped[0, 2:] == one[0, 5])) + 2
    assert np.all(stopped[0, first:] == one[0, 5])


def test_long_prompts_are_read_in_pieces(monkeypatch, rng):
    model = MODELS[0]
    params = params_of(model, make_backend("numpy"), rng)
    prompt = rng.integers(0, 7, (2, 11))
    expected, _ = model.generate(params, prompt, 5)
    monkeypatch.setattr(language, "PROMPT", 4)
    found, _ = model.generate(params, prompt, 5)
    np.testing.assert_array_equal(found, expected)


def test_tokens_of_any_kind(be, rng):
    """Narrow ones too."""
    model = xlstm.xLSTMLanguageModel(xlstm.mLSTM(2, 4), 300)
    params = model.init(0, be)
    tokens = rng.integers(0, 250, (2, 5))
    results = []
    for dtype in ("int64", "uint8", "int32"):
        logits, _, saved = model.forward(params, be.asarray(tokens.astype(dtype), dtype))
        results.append(
            (to_numpy(logits), to_numpy(model.backward(params, saved, logits)[0]["embedding.W"]))
        )
    for logits, grad in results[1:]:
        np.testing.assert_array_equal(logits, results[0][0])
        np.testing.assert_allclose(grad, results[0][1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("token", [-1, 7])
def test_tokens_beyond_the_vocabulary_are_refused(token):
    """They would be other rows of the embedding."""
    model = MODELS[0]
    tokens = np.array([[1, token]])
    params = model.init(0, "numpy")
    with pytest.raises(ValueError, match="tokens"):
        model(params, tokens)
    with pytest.raises(ValueError, match="the prompt has"):
        model.generate(params, tokens, 3)


def test_sampling():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    for options, expected in (
        ((1.0, None, None), np.exp(logits)),
        ((1.0, 2, None), [[0.625, 0.375, 0, 0]]),
        ((1.0, None, 0.6), [[0.625, 0.375, 0, 0]]),
        ((1.0, None, 0.1), [[1, 0, 0, 0]]),
        ((0.5, None, None), np.exp(2 * logits) / np.exp(2 * logits).sum()),
    ):
        np.testing.assert_allclose(
            Sampler(*options, 0).probabilities(logits), expected, rtol=1e-12, atol=1e-12
        )
    sampler = Sampler(1.0, None, None, 3)
    drawn = np.concatenate([sampler.draw(np.repeat(logits, 100, axis=0)) for _ in range(200)])
    np.testing.assert_allclose(np.bincount(drawn) / drawn.size, np.exp(logits[0]), atol=0.01)
    cold = Sampler(1e-310, None, None, 0)
    np.testing.assert_array_equal(cold.draw(np.array([[1.0, 5.0, 2.0]])), [1])
    with pytest.raises(FloatingPointError, match="a logit is not finite"):
        sampler.draw(np.array([[0.0, np.nan]]))


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_command(tmp_path):
    with np.load(DATA / "nxai" / "large_io.npz") as file:
        golden = dict(file)
    prompt = " ".join(map(str, golden["prompt"][0]))
    found = call(
        "generate", DATA / "nxai" / "large.safetensors", "--prompt", prompt, "--max-tokens", 12
    )
    assert found.exit_code == 0, found.output
    assert found.output.split() == [*prompt.split(), *map(str, golden["greedy"][0])]
    model = xlstm.xLSTMLanguageModel(STACK, 256)
    xlstm.models.save(tmp_path / "bytes.safetensors", model, model.init(0, "numpy"))
    arguments = (
        "generate",
        tmp_path / "bytes.safetensors",
        "--prompt",
        "äb",
        "--bytes",
        "--temperature",
        1,
    )
    first = call(*arguments)
    again = call(*arguments)
    assert first.exit_code == 0
    assert first.output.startswith("äb")
    assert first.output == again.output


def test_text_needs_a_tokenizer():
    found = call("generate", DATA / "nxai" / "large.safetensors", "--prompt", "some text")
    assert found.exit_code == 2
    assert "there is no tokenizer.json beside the model" in found.output


def test_text_comes_in_whole_characters():
    stream = text.TextStream(text.Bytes())
    shown = [stream.push(token) for token in "aäü".encode()]
    assert shown == ["a", "", "ä", "", "ü"]
    assert stream.rest() == ""
    assert stream.push(0xC3) == ""
    assert stream.rest() == "\ufffd"
