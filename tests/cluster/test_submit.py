"""`raygpt submit`: what is refused before anything is sent, what is sent, and what of a log and its end is shown.

A whole job on a real Ray head is in tests/drills/test_ray_jobs.py.
"""

from __future__ import annotations

import json
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from aiohttp import web

from raygpt.cli import main
from raygpt.config.words import split_rest
from raygpt.errors import UserError
from tests.cluster.job_server import closed, serving, silent

ROOT = Path(__file__).resolve().parents[2]
PLACE = "--run.storage=s3://bucket/runs"
TRAIN = ["pretrain", "--data.train=s3://b/t", "--train.max_steps=5", PLACE]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small working directory, and the current one."""
    folder = tmp_path / "checkout"
    (folder / "jobs" / "configs").mkdir(parents=True)
    (folder / "jobs" / "pretrain.py").write_text("print('hello')\n")
    (folder / "jobs" / "configs" / "a.yaml").write_text("train: {max_steps: 5}\ndata: {train: 's3://b/t'}\n")
    monkeypatch.chdir(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("raygpt: ") and error.count("\n") == 1, error
    return error


def test_the_job_s_options_are_its_own_and_submit_s_stand_anywhere() -> None:
    words = ["--submit.address", "http://h:1", "--dry-run", "pretrain", "--config", "x.yaml", "--submit.wait=false"]
    words += ["--dry_run", "--", "plain", "--submit.env", "[A]", "--a.b=c"]
    own, passed = split_rest(words, ("dry_run",), ("submit",))
    assert own == [*words[:3], "--submit.wait=false", "--submit.env", "[A]"]
    assert passed == ["pretrain", "--config", "x.yaml", "--dry_run", "--", "plain", "--a.b=c"]
    assert split_rest(["--", "report", "-h"], (), ("submit",)) == (["-h"], ["report"])


def test_the_printed_command_is_a_real_one_and_shows_no_value(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", secret := "a key$HOME")
    monkeypatch.setenv("RAYGPT_OPTIM__LR", "1e-3")
    words = ["--config", "jobs/configs/a.yaml", PLACE, "--run.name=a b_ü", "--train.log_every=3"]
    address = "--submit.address=http://me:hidden@head:8265/"
    assert main(["submit", "--dry_run", address, "--submit.env=[WANDB_API_KEY]", "pretrain", *words]) == 0
    size, command = capsys.readouterr().out.splitlines()
    assert size == "Upload: 2 files, 0.0 MB from ."
    assert "key$HOME" not in command and "hidden" not in command
    # the shell is the judge of what it means
    shell = f"ray() {{ printf '%s\\0' \"$@\"; }}; {command}"
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    environment = told.pop(told.index("--runtime-env-json") + 1)
    assert told == [
        *("job", "submit", "--address", "http://***@head:8265", "--submission-id", "pretrain-a-b_-1"),
        *("--working-dir", ".", "--runtime-env-json", "--", "python", "jobs/pretrain.py", *words),
    ]
    assert json.loads(environment) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120", "RAYGPT_OPTIM__LR": "1e-3", "WANDB_API_KEY": secret}
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "raygpt submit needs a job: raygpt submit pretrain --config"),
        (["pretrian"], "'pretrian' is no job that a cluster could run (jobs: "),
        (["submit", *TRAIN], "'submit' is no job that a cluster could run"),
        ([*TRAIN[:-1]], "run.storage=runs would lie in the job's upload, which Ray deletes: set it to an s3:// URI"),
        (["prepare", "--prepare.sources=[a]", "--prepare.output=tokens"], "prepare.output=tokens would lie in"),
        ([*TRAIN, "--trian.x=3"], "trian.x (--trian.x) is no setting"),
        (["pretrain", PLACE, "--data.train=x"], "train.max_steps is not set"),
        (["pretrain", "--config=none.yaml", PLACE], "--config none.yaml does not exist"),
        (["pretrain", "--config=../outside.yaml", PLACE], "--config ../outside.yaml is not among what is uploaded"),
        (["--submit.env=[NOT_SET_HERE]", *TRAIN], "submit.env names NOT_SET_HERE, which is not set here"),
        (["--submit.env=[A=secret]", *TRAIN], "takes names of environment variables alone"),
        (["--submit.working_dir=nowhere", *TRAIN], "submit.working_dir=nowhere is no folder"),
        (["--submit.address=ray://h:10001", *TRAIN], "submit.address=ray://h:10001 is not the address of a job server"),
        (["--submit.address=head", *TRAIN], "submit.address=head is not the address of a job server"),
        (["--submit.max_upload_mb=0.2", *TRAIN], "would be 0.3 MB (largest: data/ 0.2 MB, big.bin 0.1 MB, jobs/ 0.0"),
    ],
)
def test_mistakes_come_out_before_anything_is_sent(
    words: list[str], says: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout.parent / "outside.yaml").write_text("train: {max_steps: 5}\ndata: {train: 's3://b/t'}\n")
    (checkout / "data").mkdir()
    (checkout / "data" / "t.bin").write_bytes(bytes(200_000))
    (checkout / "big.bin").write_bytes(bytes(100_000))
    error = refused(capsys, *words)
    assert says in error and "secret" not in error


async def _answers(request: web.Request) -> web.StreamResponse:
    kind = request.path.split("/")[1]
    if kind == "none":
        return web.Response(text="<html>a web page</html>")
    if kind == "old":
        raise web.HTTPNotFound
    return web.Response(status=401 if kind == "without" else 403, text="no")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none", "answers, but is no Ray job server"),
        ("old", "answers, but is no Ray job server"),
        ("without", "asks for a token: set RAY_AUTH_MODE=token and copy the head's ~/.ray/auth_token"),
        ("wrong", "refuses this token: copy the head's ~/.ray/auth_token"),
    ],
)
def test_who_is_no_job_server_or_wants_another_token(
    path: str, says: str, checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(_answers) as url:
        # what Ray's client would listen to instead of the address that it is given
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", closed())
        assert says in refused(capsys, f"--submit.address={url}/{path}", *TRAIN)


def test_nobody_there_or_nobody_who_speaks_is_told_in_time(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raygpt.cluster import job_server

    assert job_server.CONNECT_SECONDS + job_server.ANSWER_SECONDS < 20
    monkeypatch.setattr(job_server.Client, "answer_seconds", 0.5)
    with silent() as url:
        for address in (closed(), url, "http://no-such-host.invalid:8265"):
            began = time.monotonic()
            assert f"no job server answers at {address}: check" in refused(
                capsys, f"--submit.address={address}", *TRAIN
            )
            assert time.monotonic() - began < 15


def test_the_upload_is_what_ray_packs(checkout: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    from raygpt.cluster.upload import survey

    for name in (".git/x", ".venv/lib/x", "runs/a/b", "keep/runs/c", "deep/skip.me", "a.log", "pkg/__pycache__/x"):
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (checkout / ".gitignore").write_text("*.log\n")
    (checkout / ".rayignore").write_text("/runs/\n")
    (checkout / "deep" / ".rayignore").write_text("skip.me\n")
    packed = checkout.parent / "p.zip"
    create_package(str(checkout), packed, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(packed) as archive:
        files = {item.filename: item.file_size for item in archive.infolist() if not item.is_dir()}
    assert survey(checkout).files == files
    assert "keep/runs/c" in files and not {"runs/a/b", "a.log", "deep/skip.me", ".git/x"} & set(files)


def test_this_checkout_is_a_small_upload_with_all_that_jobs_read() -> None:
    from raygpt.cluster.upload import survey

    upload = survey(ROOT)
    needed = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "jobs").rglob("*") if path.suffix in (".py", ".yaml")
    ]
    needed += [path.relative_to(ROOT).as_posix() for path in (ROOT / "raygpt").rglob("*.py")]
    assert set(needed) <= set(upload.files) and upload.bytes < 5e6
    assert not [
        name for name in upload.files if name.startswith(("tests/", "docs/", ".cache/", ".mypy_cache/", "runs/"))
    ]


def test_a_log_s_lines_are_whole_and_quiet() -> None:
    from raygpt.cluster.job_server import Lines

    out: list[str] = []
    lines = Lines(out.append)
    text = (
        "2026-11-27 14:10:55,391\tINFO job_manager.py:581 -- Runtime env is setting up.\nstep 1/9\n"
        "[2026-11-27 14:11:45,268 E 1 2] core_worker.cc:2465: Actor with class name: 'W' and ID: 'x' has constructor "
        "arguments in the object store. See https://github.com/ray-project/ray/issues/53727 for more details.\n"
        "  0%|   |\r 50%|#  |\r100%|###|\r\n\nError: core_worker\nlast"
    )
    for start in range(0, len(text), 7):
        lines.add(text[start : start + 7])
    lines.close()
    assert "".join(out) == "step 1/9\n100%|###|\n\nError: core_worker\nlast\n"


@pytest.mark.parametrize(
    ("status", "code", "message", "exit_status", "words"),
    [
        ("SUCCEEDED", 0, None, 0, ""),
        ("FAILED", 2, "its log", 2, "ended with status 2"),
        ("FAILED", -9, "its log", 137, "ended with status -9"),
        ("FAILED", None, "Failed to set up\nthe environment", 1, "failed: Failed to set up the environment"),
        ("STOPPED", None, None, 143, "was stopped"),
    ],
)
def test_a_broken_connection_is_made_anew_and_the_exit_status_is_the_job_s(
    status: str, code: int | None, message: str | None, exit_status: int, words: str
) -> None:
    from raygpt.cluster.job_server import follow, reach

    log = "".join(f"step {k}\n" for k in range(100))
    calls: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/version":
            return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
        if request.path.endswith("/logs/tail"):
            calls.append("log")
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            if len(calls) == 1:
                await socket.send_str(log[:321])
                assert request.transport is not None
                request.transport.abort()
            else:
                for start in range(0, len(log), 250):
                    await socket.send_str(log[start : start + 250])
            return socket
        ended = len(calls) > 1
        facts = {"type": "SUBMISSION", "entrypoint": "x", "status": status if ended else "RUNNING"}
        return web.json_response({**facts, "message": message, "driver_exit_code": code if ended else None})

    out: list[str] = []
    with serving(answer) as url:
        end = follow(reach(url), "a-1", out.append)
    assert "".join(out) == log and len(calls) == 2
    assert (end.status, end.words) == (exit_status, words)


def test_a_cluster_that_is_gone_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    from raygpt.cluster import job_server

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    monkeypatch.setattr(job_server, "AWAY_SECONDS", 1.0)
    with serving(answer) as url:
        client = job_server.reach(url)
    with pytest.raises(UserError, match="the cluster has not answered for 1 s .*submitting again goes on where"):
        job_server.follow(client, "a-1", print)
