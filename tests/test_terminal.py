"""Output survives any terminal: one without our characters, one that is gone, one that says nothing of its width."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygpt.terminal import Hardy, width

ROOT = Path(__file__).resolve().parents[1]


def raygpt(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "raygpt.cli", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_ascii_terminal_gets_other_characters() -> None:
    out, err = raygpt("evaluate", "--help", PYTHONIOENCODING="ascii", COLUMNS="no").communicate(timeout=60)
    assert out.startswith(b"raygpt evaluate") and not err and out.isascii()
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("süß …", file=Hardy(stream))
    stream.flush()
    assert stream.buffer.getvalue() == b"s?? ?\n"  # type: ignore[attr-defined]


def test_a_reader_that_left_ends_nothing() -> None:
    """As `raygpt … | head -1`: the program goes on and ends as it would have."""
    read, write = os.pipe()
    stream = Hardy(os.fdopen(write, "w", buffering=1))
    os.close(read)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    stream.close()
    process = raygpt("evaluate", "--help")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 0 and not process.stderr.read()


@pytest.mark.parametrize(("columns", "found"), [("", 100), ("0", 100), ("wide", 100), ("-3", 100), ("72", 72)])
def test_a_width_is_a_number_or_nothing(columns: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width() == found


def test_a_full_disk_and_a_terminal_that_was_hung_up_end_nothing() -> None:
    full = Hardy(open("/dev/full", "w", buffering=1))  # noqa: SIM115
    for _ in range(2):
        print("a line", file=full, flush=True)
    master, slave = os.openpty()
    gone = Hardy(os.fdopen(slave, "w", buffering=1))
    os.close(master)
    for _ in range(2):
        print("a line", file=gone, flush=True)
