"""`raygpt serve`: what is refused before anything starts, the shipped teachers, and one server on Ray Serve."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from raygpt.cli import main
from raygpt.config.serve import Serve
from raygpt.config.settings import load_config
from raygpt.config.teacher import Teacher
from raygpt.jobs import serve as job
from raygpt.serve.app import AppSettings
from raygpt.serve.deployment import Replicas
from raygpt.serve.launch import Listening, choose_port, model_name, ready_lines
from raygpt.serve.vllm import HIGH_THROUGHPUT, gpus_per_replica, llm_config_kwargs, set_environment
from tests.jobs.conftest import FinishedRun
from tests.serve import toy_engine
from tests.serve.served import on_ray, served

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
TEACHERS = sorted(CONFIGS.glob("teacher-*.yaml"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("raygpt: ") and printed.count("\n") == 1 and "Traceback" not in printed
    return printed


def test_mistakes_are_one_sentence_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = [f"--run.storage={tmp_path}", "--run.name=absent"]
    assert "has no checkpoint" in refused(capsys, *nothing)
    assert "pip install 'raygpt[llm]'" in refused(capsys, "--teacher.engine=vllm", "--teacher.model=org/model")
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    printed = refused(capsys, "--teacher.model=m", "--serve.api_key_env=ABSENT_KEY")
    assert "serve.api_key_env" in printed and "ABSENT_KEY, which is not set" in printed
    for key, says in ((" \n", "is not set"), ("s3cr\x00t", "no HTTP header can"), ("schlüssel", "no HTTP header can")):
        monkeypatch.setattr(Serve, "api_key", property(lambda _, key=key: key.strip() or None))
        printed = refused(capsys, "--teacher.model=m", "--serve.api_key_env=SOME_KEY")
        assert says in printed and (not key.strip() or key not in printed)
    monkeypatch.undo()
    assert "teacher.model" in refused(capsys, "--teacher.engine=vllm")
    endpoint = ["--teacher.engine=endpoint", "--teacher.endpoints=http://x/v1"]
    assert "is served already" in refused(capsys, *endpoint)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"serve.port={port} at serve.host=127.0.0.1 is in use" in refused(
            capsys, "--teacher.model=m", f"--serve.port={port}"
        )
    assert "cannot be used" in refused(capsys, "--teacher.model=m", "--serve.host=203.0.113.7")


def test_a_run_is_served_under_its_name_and_a_model_under_its_own(finished: FinishedRun) -> None:
    options = dict(one.lstrip("-").split("=") for one in finished.options)
    maker = job._engine_maker(load_config("serve", None, options, {}))
    assert maker.args == ("raygpt", str(finished.folder)) and maker.keywords["name"] == "tiny"
    config = load_config("serve", None, {"model.init_from": "somewhere/step_5", "teacher.max_sequences": "3"}, {})
    maker = job._engine_maker(config)
    assert maker.args == ("raygpt", "somewhere/step_5")
    assert maker.keywords["name"] is None and maker.keywords["max_sequences"] == 3
    config = load_config("serve", None, {"teacher.model": "org/model", "teacher.cpus_per_replica": "2"}, {})
    assert job._engine_maker(config).args == ("transformers", "org/model")
    assert job._engine_maker(config).keywords["threads"] == 2


def test_a_key_is_read_without_the_line_end_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    assert Serve(api_key_env="SOME_KEY").api_key == Teacher(api_key_env="SOME_KEY").api_key == "s3cret"


def test_no_proxy_hears_of_one_s_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, served(toy_engine.ToyEngine(), AppSettings()) as url:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert model_name(url, "s3cret", 5.0) == "toy"
        proxy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_free_port_is_found() -> None:
    port = choose_port("127.0.0.1", 0)
    assert port > 1023 and choose_port("127.0.0.1", port) == port


def test_what_is_said_when_it_is_ready() -> None:
    lines = ready_lines(Listening("127.0.0.1", 8000), "m", 1.25, page=True)
    assert lines[:2] == [
        "Ready after 1.2 s: model m at http://127.0.0.1:8000/v1",
        "Page: http://127.0.0.1:8000/",
    ]
    assert lines[2].startswith("Try: curl http://127.0.0.1:8000/v1/completions") and len(lines) == 3
    open_to_all = ready_lines(Listening("0.0.0.0", 80), "m", 1, page=False)
    assert "Warning: everybody" in open_to_all[-1] and "serve.api_key_env" in open_to_all[-1]
    kept = ready_lines(Listening("0.0.0.0", 80, "MY_KEY"), "m", 1, page=False)
    assert 'Authorization: Bearer $MY_KEY"' in kept[-1] and "Warning" not in kept[-1]


def test_replicas_follow_the_load_and_survive_a_burst() -> None:
    options = Replicas(1, 4, cpus=2, gpus=1, slots=8).options(max_concurrent=256)
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (1, 4, 8)
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 1}
    # every request is told something by the app itself, and a busy replica is not taken for a dead one
    assert options["max_ongoing_requests"] > 256 and options["max_queued_requests"] >= 2000
    assert options["health_check_timeout_s"] >= 60
    assert Replicas(2, 2).options(8)["num_replicas"] == 2


@pytest.mark.parametrize("path", TEACHERS, ids=lambda path: path.stem)
def test_each_teacher_that_is_shipped_loads(path: Path) -> None:
    config = load_config("serve", str(path), environ={})
    assert f"raygpt serve --config jobs/configs/{path.name}" in path.read_text()
    assert config.serve.host == "127.0.0.1" and config.teacher.model is not None


def test_vllm_gets_what_the_teacher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_config("serve", str(CONFIGS / "teacher-llama-405b.yaml"), environ={}).teacher
    assert teacher.model is not None and gpus_per_replica(teacher.vllm) == 8
    kwargs = llm_config_kwargs(
        teacher.model,
        name="llama",
        arguments=teacher.vllm,
        replicas=Replicas(1, 1, slots=teacher.max_sequences),
        max_concurrent=512,
        max_model_len=teacher.max_model_len,
        environment=HIGH_THROUGHPUT,
    )
    assert kwargs["model_loading_config"] == {"model_id": "llama", "model_source": teacher.model}
    assert kwargs["engine_kwargs"] == {
        "tensor_parallel_size": 8,
        "gpu_memory_utilization": 0.92,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "max_num_seqs": 128,
        "max_model_len": 8192,
        "dtype": "auto",
    }
    assert kwargs["accelerator_type"] == "H100" and kwargs["runtime_env"] == {"env_vars": HIGH_THROUGHPUT}
    assert kwargs["deployment_config"]["max_ongoing_requests"] > 512
    for name in HIGH_THROUGHPUT:
        monkeypatch.setenv(name, "")  # so that it is taken out again
        monkeypatch.delenv(name)
    # replicas behind HAProxy listen on every interface: not for a server of this machine alone
    assert list(set_environment(local=True)) == ["VLLM_USE_RAY_V2_EXECUTOR_BACKEND"]
    monkeypatch.setenv("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0")
    assert set_environment(local=False) == {**HIGH_THROUGHPUT, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}


@pytest.fixture(scope="module")
def url(ray_cluster: str) -> Iterator[str]:
    with on_ray(toy_engine.make) as url:
        yield url


def test_a_gpu_that_is_not_there_is_named(ray_cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "teacher.use_gpu=false" in refused(capsys, "--teacher.model=m", "--serve.port=0", "--teacher.use_gpu=true")
    printed = refused(capsys, "--teacher.model=m", "--serve.port=0", "--teacher.cpus_per_replica=64")
    assert "teacher.cpus_per_replica=64 is more than any node of the cluster has" in printed


def test_ray_serve_speaks_the_protocol(url: str) -> None:
    body = {"model": "toy", "prompt": "hi", "max_tokens": 8, "temperature": 0}
    whole = httpx.post(f"{url}/v1/completions", json=body).json()
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert len(lines) == 9 and lines[-1] == "data: [DONE]" and whole["usage"]["completion_tokens"] == 8
    refused = httpx.post(f"{url}/v1/completions", json={**body, "max_tokens": -1})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "max_tokens"
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "toy", "active": 0, "waiting": 0}
    assert "<title>toy" in httpx.get(url).text


def test_a_client_who_leaves_ray_serve_frees_its_place(url: str) -> None:
    body = {"model": "toy", "prompt": "x", "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert httpx.get(f"{url}/health").json()["active"] == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body, timeout=0.3)
    end = time.monotonic() + 3  # 400 tokens would take longer
    while httpx.get(f"{url}/health").json()["active"]:
        assert time.monotonic() < end
        time.sleep(0.05)
