"""How many cores a process may use, from files as Linux has them, and how many threads it has."""

import math
import os
import sys

import pytest
import threadpoolctl

import xlstm
from xlstm.arrays import cores


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # the smallest quota on the way up counts
        (
            "0::/a/b",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "cpu.max": "400000 100000"},
            1.5,
        ),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "150000 100000\n"}, 0.5),
        ("0::/", {"cpu.max": "200000 50000"}, 4.0),  # a container sees its own cgroup as the root
        ("0::/../../outside", {"cpu.max": "300000 100000"}, 3.0),
        # the folder of that name is not mounted
        ("0::/docker/1234", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/a", {"a/cpu.max": "max 100000"}, math.inf),
        ("0::/a", {}, math.inf),
        ("0::/a", {"a/cpu.max": "nonsense"}, math.inf),
        ("0::/a", {"a/cpu.max": "100000 0"}, math.inf),
    ],
)
def test_quotas(tmp_path, membership, files, expected):
    write(tmp_path / "membership", membership + "\n")
    for name, text in files.items():
        write(tmp_path / "cgroups" / name, text)
    assert cores.quota(tmp_path / "cgroups", tmp_path / "membership") == expected


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cores.quota(tmp_path, tmp_path / "missing") == math.inf


@pytest.mark.parametrize(
    ("quota", "expected"), [(0.3, 1), (1.5, 2), (2.0, 2), (math.inf, 8), (100.0, 8)]
)
def test_the_smaller_of_affinity_and_quota_counts(monkeypatch, quota, expected):
    monkeypatch.setattr(cores, "_affinity", lambda: 8)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.usable() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_affinity_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cores.usable() <= len(before)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no such number before 3.13")
def test_the_number_given_to_python_counts(monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1)
    assert cores.usable() == 1


@pytest.fixture
def unset(monkeypatch):
    """No variable says how many threads there are."""
    for name in (cores.VARIABLE, cores.COMMON):
        monkeypatch.delenv(name, raising=False)


def test_the_number_of_threads_is_the_variables_or_that_of_cores(monkeypatch, unset):
    monkeypatch.setattr(cores, "usable", lambda: 64)
    assert cores.threads() == 64
    for name in (cores.COMMON, cores.VARIABLE):  # the second one decides where both are set
        for right, number in {"3": 3, "1024": 1024, "007": 7}.items():
            monkeypatch.setenv(name, right)
            assert cores.threads() == number
    monkeypatch.setenv(cores.VARIABLE, "")
    monkeypatch.setenv(cores.COMMON, " 4, 3")  # threads, and threads within each of them
    assert cores.threads() == 4


def test_ranks_share_the_cores_and_threads_of_blas(monkeypatch, unset):
    monkeypatch.setattr(cores, "usable", lambda: 7)
    monkeypatch.setattr(cores, "_ranks", 1)
    with cores.one_thread():  # so that afterwards BLAS has what it had
        cores.share(3)
        assert cores.threads() == 2
        # another test may have loaded more libraries since
        blas = cores._controller().select(user_api="blas")
        blas.limit(limits=7)
        cores.share(2)
        assert [library.num_threads for library in blas.lib_controllers] == [3] * len(blas)
        cores.share(9)
        assert cores.threads() == 1


def test_a_wrong_number_for_all_programs_is_refused_by_its_name(monkeypatch, unset):
    for wrong in ("0", "two", ",2", "2000,1"):
        monkeypatch.setenv(cores.COMMON, wrong)
        with pytest.raises(ValueError, match=f"^OMP_NUM_THREADS: '{wrong}'"):
            cores.threads()


WRONG = (
    "0",
    "00",
    "-1",
    "+1",
    "two",
    "1.5",
    "1_0",
    " 2",
    "\N{SUPERSCRIPT TWO}",
    "1025",
    "1" + 20 * "0",
    5000 * "9",
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_number_of_threads_is_refused_by_every_call(monkeypatch, wrong, rng):
    """However small the layer is; only a step of a recurrent layer, which has one thread, does not
    look at it.
    """
    pytest.importorskip("numba")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    layer = xlstm.LSTM(3, 2)
    x = rng.standard_normal((2, 1, 3))
    params = layer.init(0, "numpy", "float64")
    monkeypatch.setenv(cores.VARIABLE, wrong)
    for call in (cores.threads, lambda: layer.forward(params, x)):
        with pytest.raises(
            ValueError,
            match=r"^XLSTM_NUM_THREADS: .{,100} is not a number of threads, expected 1 to",
        ):
            call()


def test_blas_has_one_thread_and_afterwards_what_it_had():
    def counts():
        return [
            lib.num_threads
            for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        ]

    before = counts()
    assert before
    with cores.one_thread():
        assert counts() == [1] * len(before)
    assert counts() == before
