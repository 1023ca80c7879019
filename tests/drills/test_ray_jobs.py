"""`ray job submit` runs the same program as the command line, and `ray job stop` ends it as Ctrl-C does."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from raygpt.parallel import checkpoint
from raygpt.storage import locate
from tests.drills.program import ROOT

pytestmark = pytest.mark.timeout(600)

RAY = str(Path(sys.executable).with_name("ray"))
# three seconds, Ray's default between SIGTERM and SIGKILL, are too few to save a large model
RUNTIME = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "excludes": [".venv/", ".cache/", "runs/", ".git/"]}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own: other clusters of this machine are left alone."""
    temp = Path("/tmp") / f"rj{os.getpid()}"  # short: sockets live below it
    dashboard = free_port()
    # with a token, as the clusters of cluster/ have it
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": ""}
    del env["RAY_ADDRESS"]
    process = subprocess.Popen(
        [RAY, "start", "--head", f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--temp-dir={temp}"]
        + [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        + ["--node-ip-address=127.0.0.1", "--num-cpus=4", "--object-store-memory=400000000", "--block"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    end = time.monotonic() + 60
    while not _answers(address):
        assert time.monotonic() < end, "the Ray head did not come up"
        time.sleep(0.2)
    yield address
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    for child in children:
        if child.is_running():
            child.kill()
    process.kill()
    process.wait()


def _answers(head: dict[str, str]) -> bool:
    try:
        return httpx.get(f"{head['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=_token(head), timeout=5).is_success
    except httpx.HTTPError:
        return False


def _token(head: dict[str, str]) -> dict[str, str]:
    token = head.get("RAY_AUTH_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def submit(head: dict[str, str], identifier: str, *words: str) -> None:
    command = [RAY, "job", "submit", "--no-wait", "--submission-id", identifier, "--working-dir", str(ROOT)]
    command += ["--runtime-env-json", RUNTIME, "--", sys.executable, "jobs/pretrain.py", *words]
    done = subprocess.run(command, env=head, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def about(head: dict[str, str], identifier: str, what: str) -> str:
    """The job's `logs` or `status`, from where the `ray job` commands have it, each of which takes two seconds of a
    core to start."""
    where = f"{head['RAY_API_SERVER_ADDRESS']}/api/jobs/{identifier}" + ("/logs" if what == "logs" else "")
    return str(httpx.get(where, headers=_token(head), timeout=30).raise_for_status().json()[what])


def wait(head: dict[str, str], identifier: str, text: str, of: str = "logs", timeout: float = 300) -> str:
    end = time.monotonic() + timeout
    while text not in (output := about(head, identifier, of)):
        assert time.monotonic() < end, output[-4000:]
        time.sleep(0.2)
    return output


def options(storage: Path, name: str, steps: int) -> list[str]:
    text = storage / "text.jsonl"
    if not text.exists():
        text.write_text("".join(f'{{"text": "sentence number {k} of a small corpus"}}\n' for k in range(2000)))
    return [
        "--config=jobs/configs/shakespeare-bytes.yaml",
        f"--data.train={text}",
        f"--run.storage={storage}",
        f"--run.name={name}",
        f"--train.max_steps={steps}",
        "--scale.cpus_per_worker=1",
        "--train.log_every=1",
        "--track.wandb=off",
        "--prepare.val_split=documents",
    ]


def raygpt_submit(head: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`raygpt submit` of this checkout, as on a laptop: its arguments, then the job's."""
    command = [sys.executable, "-m", "raygpt.cli", "submit", f"--submit.python={sys.executable}", *words]
    address = f"--submit.address={head['RAY_API_SERVER_ADDRESS']}"
    env = {**head, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command[:4], address, *command[4:]], env=env, cwd=ROOT, capture_output=True, text=True)


def test_a_submitted_job_trains_finishes_and_may_be_submitted_again(head: dict[str, str], tmp_path: Path) -> None:
    done = raygpt_submit(head, "pretrain", *options(tmp_path, "whole", 12))
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    assert " --submission-id pretrain-whole-1 " in output and "Ray cluster at" in output
    steps = [line.split()[1] for line in output.splitlines() if line.startswith("step ")]
    assert steps == [f"{step}/12" for step in range(1, 13)] and "Finished 12 steps" in output
    assert "\r" not in output and " INFO " not in output + done.stderr and "core_worker" not in output
    assert head["RAY_AUTH_TOKEN"] not in output + done.stderr
    launch = json.loads((tmp_path / "whole" / "launch.json").read_text())
    named = ["submit", "start", "connect", "machines", "environment check", "data", "workers", "first step"]
    assert [phase["name"] for phase in launch["phases"]] == named and all(f"  {name}  " in output for name in named)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["launch_seconds"] == pytest.approx(launch["seconds"], abs=0.01)
    # the same again goes on where the run is; a shorter run than there is data for is the job's own mistake
    words = options(tmp_path, "whole", 12)
    again = raygpt_submit(head, "--submit.wait=false", "pretrain", *words)
    assert again.returncode == 0 and "Submitted pretrain-whole-2." in again.stdout
    assert "is complete at step 12" in wait(head, "pretrain-whole-2", "is complete at step 12")
    wrong = raygpt_submit(head, "pretrain", *words, "--data.train=/nowhere/at/all.jsonl")
    assert (
        wrong.returncode == 2 and "raygpt: " in wrong.stdout and "pretrain-whole-3 ended with status 2" in wrong.stdout
    )
    for token, says in (("x" * 64, "refuses this token"), (None, "asks for a token: set RAY_AUTH_MODE=token")):
        mode = {"RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        refused = raygpt_submit({**head, **mode}, "pretrain", *words)
        assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1


def test_ray_job_stop_saves_a_checkpoint_and_says_how_to_go_on(head: dict[str, str], tmp_path: Path) -> None:
    submit(head, "halted", *options(tmp_path, "r", 100_000))
    wait(head, "halted", "step 20/100000")
    subprocess.run([RAY, "job", "stop", "--no-wait", "halted"], env=head, check=True, capture_output=True)
    output = wait(head, "halted", "To go on:")
    assert "checkpoint saved in" in output
    newest = checkpoint.complete_checkpoints(locate(tmp_path / "r"))[0]
    assert checkpoint.verify(newest) is None and (checkpoint.step_of(newest.name) or 0) >= 20
    wait(head, "halted", "STOPPED", "status")
