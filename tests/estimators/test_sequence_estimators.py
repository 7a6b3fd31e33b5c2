"""The classifier and the regressor of sequences: scikit-learn's checks and tools, what they take,
what they refuse.
"""

import pickle

import numpy as np
import pytest

from tests.conftest import later
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.random import generator
from xlstm.estimators import NotFittedError, SequenceClassifier, SequenceRegressor
from xlstm.models.sequence import CELLS

later("sklearn")

QUICK = {"cell": "gru", "hidden_size": 16, "backend": "numpy"}
SMALL = {**QUICK, "hidden_size": 8, "dtype": "float64"}
FAST = {**QUICK, "hidden_size": 4, "epochs": 3}
X3 = np.ones((4, 3, 2))
Y3 = [0, 1, 0, 1]
# Batches and the part that is held out are drawn for so many sequences: with a weight of two a
# sequence counts twice in a batch, while one that is there twice comes in two of them.
NOT_EQUIVALENT = {
    "check_sample_weight_equivalence_on_dense_data": (
        "stochastic gradient descent: batches are drawn for N sequences"
    ),
    "check_sample_weight_equivalence_on_sparse_data": (
        "stochastic gradient descent: batches are drawn for N sequences"
    ),
}


@pytest.mark.parametrize(
    "estimator",
    # In float32 BLAS rounds a sequence differently by its place in a batch; checks compare to 1e-7.
    [
        SequenceClassifier(**SMALL, epochs=10, learning_rate=0.1),
        SequenceRegressor(**SMALL, epochs=30, learning_rate=0.05),
        SequenceRegressor(**SMALL, epochs=30, learning_rate=0.05, missing="indicator"),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks(estimator):
    """All checks of `check_estimator` pass but those that are declared with their reasons."""
    from sklearn.utils.estimator_checks import check_estimator

    found = check_estimator(
        estimator, expected_failed_checks=NOT_EQUIVALENT, on_fail=None, on_skip=None
    )
    assert len(found) > 50
    assert {
        each["check_name"]: each["exception"] for each in found if each["status"] == "failed"
    } == {}


def ragged(rng, N=60, D=2):
    """Sequences of unequal length, and whether their mean is positive."""
    X = [rng.normal(loc=rng.choice([-1, 1]), size=(int(n), D)) for n in rng.integers(1, 8, N)]
    return X, np.array(["up" if x.mean() > 0 else "down" for x in X])


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns(interpreted, cell, rng):
    X, y = ragged(rng)
    settings = {
        **QUICK,
        "cell": cell,
        "epochs": 30,
        "options": {"num_heads": 2} if cell == "xlstm" else None,
    }
    assert SequenceClassifier(**settings).fit(X, y).score(X, y) > 0.85
    means = [x.mean() for x in X]
    assert SequenceRegressor(**settings).fit(X, means).score(X, means) > 0.5


def test_scores_are_those_of_scikit_learn(rng):
    from sklearn.metrics import accuracy_score, r2_score

    X, y = ragged(rng)
    weights = rng.random(60)
    numbers = np.array([x.sum() for x in X])
    for kind, truth, score in (
        (SequenceClassifier, y, accuracy_score),
        (SequenceRegressor, numbers, r2_score),
    ):
        fitted = kind(**FAST).fit(X, truth)
        for given in (None, weights):
            expected = score(truth, fitted.predict(X), sample_weight=given)
            assert fitted.score(X, truth, given) == pytest.approx(expected)


def test_not_fitted_is_the_error_of_both_libraries():
    from sklearn.exceptions import NotFittedError as Theirs

    for error in (Theirs, NotFittedError):
        with pytest.raises(error) as caught:
            SequenceRegressor().predict(np.ones((1, 2)))
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), error)


def test_weights_of_classes_are_those_of_scikit_learn(rng):
    from sklearn.utils.class_weight import compute_sample_weight

    X = rng.normal(size=(120, 3, 1))
    y = rng.choice([*"aab"], 120)
    weights = rng.random(120)
    for given, whole in (
        ("balanced", "balanced"),
        ({"a": 2, "b": 0.25},) * 2,
        ({"b": 3.0}, {"a": 1, "b": 3.0}),
    ):
        found = SequenceClassifier(**FAST, class_weight=given).fit(X, y, weights)
        expected = SequenceClassifier(**FAST).fit(X, y, weights * compute_sample_weight(whole, y))
        np.testing.assert_allclose(found.trained_.losses, expected.trained_.losses, rtol=1e-6)
    several = rng.random((120, 2)) < 0.2
    steps = rng.random((120, 3)) < 0.2
    # each label, or the class of each step
    for truth, columns in (several, several.T), (steps, [steps.reshape(-1)]):
        *_, made = SequenceClassifier(class_weight="balanced")._targets(
            truth, None, [3] * 120, False
        )
        factors = np.stack([compute_sample_weight("balanced", one) for one in columns], axis=-1)
        np.testing.assert_allclose(np.reshape(made, factors.shape), factors)


def test_labels_of_steps(rng, tmp_path):
    """Labels follow their steps in arrays and in lists; steps of weight 0, and those past an end,
    do not count.
    """
    X = [rng.normal(size=(int(n), 2)) for n in rng.integers(1, 9, 150)]
    y = [x[:, 0].cumsum() > 0 for x in X]
    weights = [(rng.random(len(x)) < 0.7).astype(float) for x in X]
    wrong = [np.where(up ^ (w == 0), "up", "down") for up, w in zip(y, weights, strict=True)]
    classifier = SequenceClassifier(**{**QUICK, "hidden_size": 24, "epochs": 60}).fit(
        X, wrong, weights
    )
    found, shares = (
        np.concatenate(rows) for rows in (classifier.predict(X), classifier.predict_proba(X))
    )
    assert (classifier.target_kind_, shares.shape) == ("step", (len(found), 2))
    assert np.mean((found == "up") == np.concatenate(y)) > 0.9
    hits = found == np.concatenate(wrong)
    assert classifier.score(X, wrong) == pytest.approx(np.mean(hits))
    assert classifier.score(X, wrong, weights) == pytest.approx(
        np.average(hits, weights=np.concatenate(weights))
    )
    classifier.save(tmp_path / "m")
    again = SequenceClassifier.load(tmp_path / "m", "numpy")
    same = np.stack([x for x in X if len(x) == 6])
    assert again.predict(same).shape == same.shape[:2]
    np.testing.assert_allclose(again.predict_proba(same), again.predict_proba([*same]))
    table = rng.normal(size=(40, 5))
    of_steps = SequenceClassifier(**FAST).fit([*table], [[*row] for row in table > 0])
    assert [one.shape for one in of_steps.predict([*table[:2]])] == [(5,)] * 2
    assert SequenceClassifier(**FAST).fit(table, table > 0).predict(table).shape == (40, 5)


def test_several_labels(rng):
    """In arrays and in tables."""
    pd = pytest.importorskip("pandas")
    X = rng.normal(size=(150, 6, 2))
    y = np.stack([X[:, :, 0].sum(axis=1) > 0, X[:, -1, 1] > 0, X[:, 0, 0] > 5], axis=1).astype(int)
    classifier = SequenceClassifier(**QUICK | {"epochs": 40}).fit(X, pd.DataFrame(y))
    found = classifier.predict(X)
    shares = classifier.predict_proba(X)
    assert (found.shape, found.dtype, classifier.classes_.tolist()) == (y.shape, "int64", [0, 1, 2])
    np.testing.assert_array_equal(found, shares > 0.5)
    for given in (y, pd.DataFrame(y)):
        assert classifier.score(X, given) == pytest.approx(np.mean(np.all(found == y, axis=1)))
    assert np.mean(found == y) > 0.9
    with pytest.raises(ValueError, match=r"y has shape \(150, 2\), expected that of y in fit"):
        classifier.score(X, y[:, :2])
    # as many labels as there are steps
    alike = SequenceClassifier(**FAST, every_step=False).fit(X[:, :3], y)
    assert (alike.target_kind_, alike.predict(X[:, :3]).shape) == ("multilabel", (150, 3))


@pytest.mark.parametrize("part", [slice(None, 12), slice(12, None)], ids=["held out", "rest"])
def test_weights_that_are_zero_in_a_part(rng, part):
    """Where a part has no weight, nothing is held out."""
    X = rng.normal(size=(120, 3))
    weights = np.ones(120)
    weights[generator(0, stream=3, where="").permutation(120)[part]] = 0
    regressor = SequenceRegressor(**FAST).fit(X, X.sum(axis=1), weights)
    assert regressor.trained_.validations == []
    assert SequenceRegressor(**FAST).fit(X, X.sum(axis=1)).trained_.validations != []


def test_tables(rng):
    table = pytest.importorskip("polars")
    X = rng.normal(size=(40, 4))
    y = table.Series(["a", "b"] * 20)
    frame = table.DataFrame(dict(zip("pqrs", X.T, strict=True)))
    classifier = SequenceClassifier(**FAST).fit(frame, y)
    assert list(classifier.feature_names_in_) == list("pqrs")
    plain = SequenceClassifier(**FAST).fit(X, np.array(["a", "b"] * 20))
    np.testing.assert_array_equal(classifier.predict_proba(frame), plain.predict_proba(X))


def test_arrays_of_another_library_stay_there(rng):
    torch = pytest.importorskip("torch")
    X = torch.tensor(rng.normal(size=(20, 4, 2)))
    y = torch.arange(20) % 2
    options = {**FAST, "backend": None}
    classifier = SequenceClassifier(**options).fit(X, y)
    assert all(type(p) is torch.Tensor for p in classifier.params_.values())
    assert type(classifier.predict_proba(X)) is torch.Tensor
    found = SequenceRegressor(**options).fit(X, y).predict(X)
    assert type(found) is torch.Tensor
    plain = SequenceRegressor(**FAST).fit(to_numpy(X), to_numpy(y))
    np.testing.assert_allclose(to_numpy(found), plain.predict(to_numpy(X)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "width", "y", "words"),
    [
        ({}, 2, np.ones((40, 2)), "y has 2 targets, expected those of before, 1"),
        ({}, 1, np.ones(40), "X has 1 features, but SequenceRegressor is expecting 2"),
        ({"cell": "lstm"}, 2, np.ones(40), "warm_start goes on from GRU"),
    ],
)
def test_a_warm_start_needs_the_same_sizes(change, width, y, words):
    X = np.ones((40, 5, 2))
    made = SequenceRegressor(**FAST, warm_start=True).fit(X, np.ones(40)).set_params(**change)
    with pytest.raises(ValueError, match=words):
        made.fit(X[..., :width], y)


def test_a_warm_start_needs_the_same_classes():
    made = SequenceClassifier(**FAST, warm_start=True).fit(X3, Y3)
    with pytest.raises(ValueError, match="expected those of before"):
        made.fit(X3, [*"abab"])


@pytest.mark.parametrize("standardize", [True, False])
def test_missing_numbers(rng, tmp_path, standardize):
    """By hand: the last value, before the first the mean of those that are there, and a column that
    says so; the last feature is nowhere there.
    """
    X = np.where(rng.random((60, 5, 3)) < 0.3, np.nan, rng.normal(3, 2, (60, 5, 3)))
    X[0, :, 0] = [np.nan, 4, np.nan, np.nan, 5]
    X[..., 2] = np.nan
    options = {**FAST, "standardize": standardize, "missing": "indicator"}
    y = np.arange(60) % 2
    classifier = SequenceClassifier(**options, warm_start=True).fit(X, y)
    first = X[..., :1][~np.isnan(X[..., :1])]
    mean, std = (first.mean(), first.std()) if standardize else (0, 1)
    filled = classifier.prepared(X)[0]
    np.testing.assert_allclose(filled[:, 0], (np.array([first.mean(), 4, 4, 4, 5]) - mean) / std)
    np.testing.assert_array_equal(filled[:, 2:], np.column_stack(([0] * 5, np.isnan(X[0]))))
    classifier.save(tmp_path / "m")
    again = SequenceClassifier.load(tmp_path / "m", "numpy")
    np.testing.assert_array_equal(again.predict_proba([*X]), classifier.predict_proba(X))
    whole = np.nan_to_num(X)
    classifier.fit(whole, y).predict(X)
    table = SequenceRegressor(**options).fit(whole[..., 0], y)
    np.testing.assert_allclose(table.prepared(X[..., 0])[0][:, 1], np.isnan(X[0, :, 0]))
    pd = pytest.importorskip("pandas")
    nullable = pd.DataFrame(X[..., 0]).convert_dtypes()
    assert nullable[0][0] is pd.NA
    np.testing.assert_array_equal(table.predict(nullable), table.predict(X[..., 0]))
    with pytest.raises(ValueError, match="X contains infinity"):
        table.predict(X[..., 0] * np.inf)
    with pytest.raises(ValueError, match="missing is 'indicator', expected 'refuse'"):
        table._for_export(False)


def test_files_of_regressors_and_tables(rng, tmp_path):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(rng.normal(size=(50, 4)), columns=[*"abcd"])
    y = np.stack([X.sum(axis=1), 100 + 10 * X["d"]], axis=1)
    made = SequenceRegressor(**QUICK | {"epochs": 60}).fit(X, y)
    assert made.score(X, y) > 0.8
    made.save(tmp_path / "m")
    again = SequenceRegressor.load(tmp_path / "m", "numpy")
    found = again.predict(X)
    assert found.tobytes() == made.predict(X).tobytes()
    assert found.shape == y.shape
    with pytest.raises(ValueError, match="feature names should match"):
        again.predict(X.rename(columns={"a": "z"}))


@pytest.mark.parametrize("labels", [[0, 1], [True, False], [0.0, 2.0], ["a", "b"]], ids=str)
def test_labels_of_files(rng, tmp_path, labels):
    made = SequenceClassifier(**FAST).fit(rng.normal(size=(20, 3)), labels * 10)
    made.save(tmp_path / "m")
    found = SequenceClassifier.load(tmp_path / "m", "numpy").classes_
    assert (found.tolist(), found.dtype.kind) == (sorted(labels), made.classes_.dtype.kind)


def test_labels_that_no_file_holds(rng, tmp_path):
    dates = np.array(["2024-01-01", "2024-01-02"] * 10, dtype="datetime64[D]")
    with pytest.raises(ValueError, match="classes_ holds"):
        SequenceClassifier(**FAST).fit(rng.normal(size=(20, 3)), dates).save(tmp_path / "m")


# The checks of scikit-learn refuse NaN, empty data, continuous labels and another number of
# features; tests/attacks/test_arguments.py has parameters that are wrong by themselves.
@pytest.mark.parametrize(
    ("change", "X", "y", "words"),
    [
        ({}, [*X3[:3], np.ones((2, 3))], Y3, r"X\[3\] has shape \(2, 3\) and X\[0\] \(3, 2\)"),
        (
            {},
            [*X3[:3], np.full((2, 2), np.nan)],
            Y3,
            r"X\[3\] contains NaN at \[0, 0\],.*'indicator'",
        ),
        ({}, [*X3[:3], X3[3] * -1e200], Y3, r"X\[3\] has 1e\+200 or its negative"),
        ({}, X3, [[0, 1, 0], [0, 1], [0] * 3, [1] * 3], r"y\[1\] has 2 labels, expected 3"),
        (
            {"every_step": True},
            X3,
            [*"abab"],
            r"y\[0\] is the label 'a', expected a list of labels",
        ),
        ({}, X3, [[0, 1, 0], 1] * 2, r"y\[1\] is the label 1, expected a list of labels"),
        ({}, X3, [[0, 1, None]] * 4, r"y contains NaN or None: y flattened\[2\] is None"),
        ({}, X3, ["a", 1, "b", "a"], r"y\[1\] is 1 and y\[0\] 'a'"),
        ({"dropout": 2.0}, X3, Y3, "dropout is 2.0"),
        ({"class_weight": {0: 1, 2: 1}}, X3, Y3, r"class_weight has the labels \[0, 2\]"),
    ],
)
def test_what_is_refused(change, X, y, words):
    with pytest.raises((TypeError, ValueError), match=words):
        SequenceClassifier(**FAST | change).fit(X, y)


@pytest.mark.parametrize(
    ("y", "weights", "words"),
    [
        (Y3, [1, 2, 3, -1], "sample_weight has -1"),
        (Y3, [0] * 4, "sample_weight has"),
        ([[1], [2, 3]] * 2, None, "expected an array .its entries differ in shape"),
        ([1, 2, 3, 10**200], None, r"y has 1e\+200"),
    ],
)
def test_targets_and_weights_that_are_refused(y, weights, words):
    with pytest.raises(ValueError, match=words):
        SequenceRegressor(**FAST).fit(X3, y, weights)


def test_values_far_from_those_of_fit_are_refused(rng):
    X = rng.normal(size=(20, 3))
    regressor = SequenceRegressor(**FAST).fit(X, X[:, 0])
    assert np.all(np.isfinite(regressor.predict(X * 1e15)))
    with pytest.raises(
        ValueError, match=r"X\[0\] is .* from the mean once scaled, whose .* overflows; .*float32"
    ):
        regressor.predict(X * 1e30)
    wide = SequenceRegressor(**FAST, dtype="float64").fit(X, X[:, 0])
    assert np.all(np.isfinite(wide.predict(X * 1e30)))


def test_another_width_is_refused():
    sequences = SequenceRegressor(**FAST).fit(X3, Y3)
    table = SequenceRegressor(**FAST).fit(np.ones((4, 5)), Y3)
    for regressor, X, words in (
        (sequences, [np.ones((2, 3))], "SequenceRegressor is expecting 2 features as input"),
        (sequences, X3[0], "X is a table .* with T = 2 columns, expected a list of sequences"),
        (table, X3, r"sequences \(T, D\) with D = 2, expected a table \(N, T\) with T = 5"),
    ):
        with pytest.raises(ValueError, match=words):
            regressor.predict(X)


@pytest.mark.parametrize("holder", ["lists", "numpy", "pandas", "polars"])
def test_holders_of_ragged_data(rng, holder):
    """They hold sequences also where those to predict happen to be of one length."""
    from sklearn.model_selection import cross_val_score

    X, y = ragged(rng, D=1)
    X = [x[:, 0] for x in X]
    if holder == "lists":
        held = [x.tolist() for x in X]
    elif holder == "numpy":
        held = np.empty(60, dtype=object)
        held[:] = X
    else:
        held = pytest.importorskip(holder).Series(X)
    classifier = SequenceClassifier(**FAST | {"backend": None}).fit(held, y)
    found = classifier.predict_proba(held)
    np.testing.assert_array_equal(found, SequenceClassifier(**FAST).fit(X, y).predict_proba(X))
    np.testing.assert_allclose(classifier.predict_proba(held[3:4]), found[3:4], rtol=1e-5)
    same = [k for k in range(60) if len(X[k]) == 3]
    np.testing.assert_allclose(
        classifier.predict_proba([held[k] for k in same]), found[same], rtol=1e-5, atol=1e-6
    )
    assert np.all(np.isfinite(cross_val_score(SequenceClassifier(**FAST), held, y, cv=2)))
