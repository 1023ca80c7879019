"""once.sh and first_contact.py do what they say where nothing but torch and numpy is installed, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.once import Part, run
from tests.test_layers import BLOCKER

ROOT = Path(__file__).resolve().parents[2]


def once(out: Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "RAYGPT_ONCE_TOY": "1", "OUT": str(out), "PYTHON": sys.executable, **more}
    return subprocess.run(
        [str(ROOT / "tests" / "gpu" / "once.sh")],
        env={**environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(600)
def test_one_command_answers_everything_on_a_bare_machine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = once(out, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {result["part"]: result["status"] for result in json.loads((out / "once.json").read_text())}
    assert statuses.pop("xl-16gb") == "left out: deepspeed is not installed"
    assert set(statuses.values()) == {"done"} and len(statuses) == 3
    cases = json.loads((out / "first-contact.json").read_text())["cases"]
    assert len(cases) == 10 and all(case["passed"] for case in cases)
    measured = json.loads((out / "bf16-compile-pieces-ddp.json").read_text())
    assert measured["compile"] and measured["process_group"] and measured["loss_tokens"] == 16
    ladder = json.loads((out / "ladder.json").read_text())
    assert [row["name"] for row in ladder["rows"]][:3] == ["fp32", "tf32", "bf16"] and ladder["provenance"]["date"]
    text = (out / "summary.md").read_text()
    assert "| fused loss |" in text
    assert text.strip() in done.stdout
    assert f"| {measured['tokens_per_second']:,.0f} |" in text and "xl-16gb | left out" in text


def test_without_time_nothing_is_begun_and_the_summary_says_so(tmp_path: Path) -> None:
    done = once(tmp_path / "out", tmp_path, RAYGPT_ONCE_SECONDS="1")
    assert done.returncode == 0 and done.stdout.count("no time left |") == 3


def test_a_part_that_hangs_or_fails_ends_and_leaves_its_log(tmp_path: Path) -> None:
    code = "import sys, time; print('so far', flush=True); time.sleep(float(sys.argv[1])); sys.exit('broken')"
    hanging = run(Part("hangs", ["-c", code, "600"], 3), tmp_path, 100)
    assert hanging["status"] == "stopped after 3 s" and hanging["seconds"] < 60
    assert (tmp_path / "hangs.log").read_text() == "so far\n"
    assert run(Part("fails", ["-c", code, "0"], 60), tmp_path, 100)["status"] == "failed with status 1"
    assert "broken" in (tmp_path / "fails.log").read_text()
