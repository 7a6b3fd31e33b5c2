"""Many fits at once, in workers of joblib and of Dask: bits as in one process, few threads, errors
as they are.
"""

import contextlib
import logging
import os
import signal

import numpy as np
import pytest

from tests.conftest import REQUIRED, later
from xlstm import training
from xlstm.arrays import cores
from xlstm.estimators import SequenceRegressor

later("sklearn")
joblib = later("joblib")
FAST = {"cell": "lstm", "hidden_size": 4, "epochs": 2, "backend": "numpy", "dtype": "float64"}
LARGE = {**FAST, "hidden_size": 64, "batch_size": 64, "dtype": "float32"}  # its loops have threads


@contextlib.contextmanager
def of_joblib():
    """Workers of joblib's own backend; gives the error of a killed worker, and a function that fits
    in one.
    """
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    get_reusable_executor().shutdown(wait=True)  # workers of others have their variables
    with joblib.parallel_config("loky", n_jobs=2):
        yield (
            TerminatedWorkerError,
            lambda one: joblib.Parallel()([joblib.delayed(one.fit)(*problem())]),
        )
    get_reusable_executor().shutdown(wait=True)


@contextlib.contextmanager
def of_dask():
    """Workers of Dask on this machine; of killed ones joblib does not hear, but Dask's own client
    does.
    """
    try:
        import dask
        import distributed
    except ImportError:
        if "dask" in REQUIRED:
            raise
        pytest.skip("dask[distributed] is not installed")

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        yield distributed.KilledWorker, lambda one: client.submit(one.fit, *problem()).result()


class Kill(training.Callback):
    """Kills the process that trains."""

    def step(self, now):
        os.kill(os.getpid(), signal.SIGKILL)


def fit_and_listen():
    """Fit in this process; return the number of threads, and what is logged about compiling."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("xlstm").addHandler(handler)
    logging.getLogger("xlstm").setLevel(logging.INFO)
    SequenceRegressor(**LARGE).fit(*problem())
    return cores.threads(), [line for line in lines if "compiling" in line]


def problem():
    X = np.random.default_rng(0).normal(size=(160, 24))
    return X, X.sum(axis=1)


@pytest.fixture(scope="module")
def alone():
    """A search in this process, whose bits are those of any number of threads."""
    return search()


def search(**options):
    from sklearn.model_selection import GridSearchCV

    return GridSearchCV(SequenceRegressor(**LARGE), {"seed": [0, 1]}, cv=2, **options).fit(
        *problem()
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [of_joblib, of_dask], ids=["joblib", "dask"])
def test_fits_in_workers(monkeypatch, workers, alone):
    """Compiled code comes from the cache, and no two workers share a core."""
    for name in (cores.VARIABLE, cores.COMMON, "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with workers() as (killed, fit):
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(fit_and_listen)() for _ in range(2))
        assert found == [(max(1, cores.usable() // 2), [])] * 2
        shared = search(n_jobs=2)
        with pytest.raises(ValueError, match=r"^SequenceRegressor: hidden_size is -1, expected"):
            fit(SequenceRegressor(**FAST | {"hidden_size": -1}))
        with pytest.raises(killed):
            fit(SequenceRegressor(**FAST, callbacks=[Kill()]))
    for name in ("split0_test_score", "split1_test_score"):
        assert shared.cv_results_[name].tolist() == alone.cv_results_[name].tolist()
    for name, p in alone.best_estimator_.params_.items():
        assert p.tobytes() == shared.best_estimator_.params_[name].tobytes()
