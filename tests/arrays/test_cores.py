"""How many cores a process may use, from files as Linux has them."""

import math
import os
import sys

import pytest

from xlstm.arrays import cores


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # the smallest quota on the way up counts
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "cpu.max": "400000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "150000 100000\n"}, 0.5),
        ("0::/", {"cpu.max": "200000 50000"}, 4.0),  # a container sees its own cgroup as the root
        ("0::/../../outside", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/docker/1234", {"cpu.max": "200000 100000"}, 2.0),  # the folder of that name is not mounted
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


@pytest.mark.parametrize(("quota", "expected"), [(0.3, 1), (1.5, 2), (2.0, 2), (math.inf, 8), (100.0, 8)])
def test_the_smaller_of_affinity_and_quota_counts(monkeypatch, quota, expected):
    monkeypatch.setattr(cores, "_affinity", lambda: 8)
    monkeypatch.setattr(cores, "_own_quota", lambda: quota)
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
