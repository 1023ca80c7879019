"""Every start of Ray ends in Ray or in a sentence, and soon."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from raygpt.cluster import container
from raygpt.cluster.starting import check_answers, check_shadows, check_start, usable_cpus
from raygpt.errors import UserError


def test_cpus_are_those_that_may_be_used() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cpus() <= len(before)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "?"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_counts(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container.cpus(tmp_path) == quota


def test_a_temp_folder_with_a_long_name_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert check_start() is None
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    assert check_start() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    if os.geteuid():
        with pytest.raises(UserError, match="RAY_TMPDIR=/proc is not writable"):
            check_start()


@pytest.mark.parametrize("name", ["tokenizers.py", "random.py", "torch/__init__.py"])
def test_a_module_that_shadows_a_library_is_named(name: str, tmp_path: Path) -> None:
    check_shadows(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"{name} would be imported in place of the library {Path(name).parts[0][:4]}"):
        check_shadows(tmp_path)


def test_the_checkout_shadows_nothing() -> None:
    check_shadows(Path(__file__).parents[2])


@pytest.mark.parametrize("setting", ["RAY_ADDRESS", "scale.address"])
def test_a_cluster_that_is_gone_is_told_in_seconds(setting: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster answers at {setting}={address} .Connection refused"):
        check_answers(address, setting)
    check_answers("auto", setting)
    assert time.monotonic() - began < 5


def test_something_else_at_the_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raygpt.cluster.starting.ANSWER_SECONDS", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"answers at scale.address={address} is no Ray cluster"):
            check_answers(address, "scale.address")
