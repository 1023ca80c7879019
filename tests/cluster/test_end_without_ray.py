"""cluster/end_without_ray.sh: a machine whose Ray is gone for good ends itself, and one restart does not end it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "end_without_ray.sh"


@pytest.mark.parametrize(
    ("raylet", "looks"),
    [
        ("1111 000", 7),  # ran, and is gone
        ("10 10 1 000", 8),  # started anew in time, twice
        ("000", 3),  # never came up
    ],
)
def test_it_ends_the_machine_after_that_many_minutes_on_end(raylet: str, looks: int, tmp_path: Path) -> None:
    """`raylet` has a 1 for every minute in which one runs; minutes pass at once."""
    log = tmp_path / "log"
    (tmp_path / "minutes").write_text(raylet.replace(" ", ""))
    for name, body in {
        "sleep": f'echo sleep "$1" >>{log}',
        "sudo": f'echo sudo "$@" >>{log}',
        "flock": "exit 0",
        "pgrep": f'read -r m <{tmp_path}/minutes; echo "${{m:1}}" >{tmp_path}/minutes; [ "${{m:0:1}}" = 1 ]',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), "3"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert log.read_text().splitlines() == ["sleep 60"] * looks + ["sudo shutdown -h now"]
