"""Embeddings of TiRex, and the transformer of scikit-learn that makes them."""

import numpy as np
import pytest

from tests.conftest import DATA, make_backend
from tests.tirex import tokens
from xlstm.arrays.convert import to_numpy
from xlstm.estimators import TiRexFeatures
from xlstm.models import TiRex, TiRex2

MODEL = TiRex(4, 2, 2, patch_size=2, quantiles=(0.2, 0.5), input_ff_size=3, context=12)
SIZES = {
    "patch_size": 2,
    "quantiles": (0.5,),
    "input_ff_size": 3,
    "output_ff_size": 5,
    "context": 12,
    "horizon": 4,
}
SECOND = TiRex2(4, [("mlstm", 2, 2), ("slstm", 1, 1)], arcsinh=False, binary=False, **SIZES)

OPTIONS = {"checkpoint": (MODEL, MODEL.init(0, "numpy", "float64"))}


def by_hand(model, params, be, row):
    """The embedding of one series, step by step."""
    window = np.concatenate((np.full(max(0, 12 - len(row)), np.nan), row[-12:]))
    scaled = (window - np.nanmean(window)) / np.nanstd(window)
    levels, _ = model.hidden(params, be.asarray(tokens(scaled[None], 2)))
    n = min(6, -(-len(row) // 2))
    blocks = []
    for level in levels[1:]:
        mean = to_numpy(level)[0, -n:].mean(axis=0)
        blocks.append(mean / np.sqrt(np.sum(mean**2)))
    return blocks


def normal(features):
    return (features - features.mean()) / np.sqrt(features.var() + 1e-5)


@pytest.mark.parametrize("model", [MODEL, SECOND], ids=["TiRex", "TiRex2"])
def test_embeddings_are_the_published_ones_by_hand(be, rng, model):
    """For series of all lengths, with values missing at the beginning and inside."""
    params = model.init(0, be)
    rows = [rng.standard_normal(n) for n in (2, 3, 7, 12, 30)]
    rows[3][:5] = np.nan
    rows[4][-3] = np.nan
    found = model.embed(params, rows, batch_size=3)
    assert found.shape == (5, 8)
    for row, one in zip(rows, found, strict=True):
        np.testing.assert_allclose(
            one, normal(np.concatenate(by_hand(model, params, be, row))), rtol=1e-9, atol=1e-9
        )
    np.testing.assert_allclose(model.embed(params, rows[2]), found[2], rtol=1e-9, atol=1e-9)


def test_variates_lie_side_by_side_within_a_block(rng):
    be = make_backend("numpy")
    params = MODEL.init(0, be)
    x = rng.standard_normal((2, 3, 9))
    found = MODEL.embed(params, x)
    each = [[by_hand(MODEL, params, be, row) for row in one] for one in x]
    expected = [
        normal(np.concatenate([each[s][v][k] for k in range(2) for v in range(3)]))
        for s in range(2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(
        ValueError, match=r"TiRex.embed: series have \[1, 3\] variates, expected one number"
    ):
        MODEL.embed(params, [x[0], x[0, 0]])


def test_the_transformer_follows_scikit_learn(rng):
    """Within a pipeline, cloned, and with names; it loads a checkpoint."""
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    t = np.arange(40)
    y = np.arange(30) % 2
    X = np.sin(t / (2 + 4 * y[:, None]) + rng.uniform(0, 6, (30, 1)))
    pipeline = make_pipeline(
        clone(TiRexFeatures(DATA / "tirex1" / "a", "numpy")), LogisticRegression()
    )
    assert pipeline.fit(X[:20], y[:20]).score(X[20:], y[20:]) > 0.8
    features = clone(TiRexFeatures(**OPTIONS))
    names = features.fit(X).get_feature_names_out()
    assert len(set(names)) == features.transform(X).shape[1] == 8
    assert (names[0], names[-1]) == ("block0_unit0", "block1_unit3")
    several = TiRexFeatures(**OPTIONS).fit(X.reshape(15, 2, 40))
    assert several.get_feature_names_out()[5] == "block0_variate1_unit1"


def test_a_table_has_a_row_for_each_series(rng):
    """As tables that scikit-learn takes have, in which a missing number is a missing value."""
    pandas = pytest.importorskip("pandas")
    X = rng.standard_normal((4, 9))
    X[1, 3] = np.nan
    features = TiRexFeatures(**OPTIONS)
    found = features.fit(pandas.DataFrame(X)).transform(pandas.DataFrame(X))
    np.testing.assert_array_equal(found, features.fit_transform(X))
    with pytest.raises(TypeError, match="TiRexFeatures: column 'a' holds String, expected numbers"):
        features.fit(pandas.DataFrame({"a": ["x", "y"]}))


def test_what_is_refused():
    for call, shape, words in (
        (TiRexFeatures(**OPTIONS).transform, (2, 9), "not fitted yet"),
        (
            TiRexFeatures(**OPTIONS).fit(np.zeros((2, 9))).transform,
            (2, 2, 9),
            "series have 2 variates, expected 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"TiRexFeatures: .*{words}"):
            call(np.zeros(shape))
