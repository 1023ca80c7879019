"""`raygpt serve` under load and after deaths: bursts, replicas that die, clients of every kind, a real teacher."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import psutil
import pytest

from raygpt.config.settings import load_config
from tests.conftest import save_byte_model
from tests.drills.program import Program, raygpt
from tests.serve.served import on_ray
from tests.serve.test_protocol import likeliest
from tests.serve.toy_engine import make

ROOT = Path(__file__).resolve().parents[2]


def processes(title: str, below: int | None = None) -> dict[int, psutil.Process]:
    """Processes whose title begins so, of this test's own cluster or below another process."""
    found = {}
    for process in psutil.Process(below).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found[process.pid] = process
        except psutil.Error:
            continue
    return found


def replicas() -> dict[int, psutil.Process]:
    return processes("ray::ServeReplica:raygpt")


def started_by(program: Program) -> list[psutil.Process]:
    """Every process below it but Ray's two agents, which outlive their parent by a minute (see Program.kill)."""
    found = []
    for process in psutil.Process(program.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "Agent" not in process.name():
                found.append(process)
    return found


def until(true: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


async def patient(session: aiohttp.ClientSession, url: str, body: dict[str, Any], met: Counter[int]) -> dict[str, Any]:
    """The answer, asked for again after 429, 500 and 503 as the server says, and later every time, as OpenAI's client
    does: 2,000 clients who all come back within the second keep the proxy busy with refusals."""
    for again in itertools.count():
        try:
            async with session.post(f"{url}/v1/completions", json={"model": "toy", **body}) as reply:
                met[reply.status] += 1
                if reply.status == 200:
                    return dict(await reply.json())
                assert reply.status in (429, 500, 503), await reply.text()
                after = float(reply.headers.get("Retry-After", 1))
        except aiohttp.ClientConnectionError:
            met[0] += 1
            after = 1
        await asyncio.sleep(after * min(2**again, 8) * random.uniform(0.5, 1))  # not all at once again


def ask_all(url: str, prompts: list[str], tokens: int) -> tuple[list[str], Counter[int]]:
    """(the greedy answers, all asked for at once; how often each status was met)."""
    met: Counter[int] = Counter()

    async def all_at_once() -> list[dict[str, Any]]:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(240)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            body = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            return await asyncio.gather(*(patient(session, url, {**body, "prompt": p}, met) for p in prompts))

    return [one["choices"][0]["text"] for one in asyncio.run(all_at_once())], met


def test_a_burst_of_2000_requests_restarts_nothing_and_loses_nothing(ray_cluster: str) -> None:
    with on_ray(partial(make, seconds=0.002), serve__max_concurrent="256") as url:
        before = replicas()
        prompts = [f"prompt {index}" for index in range(2000)]
        answers, met = ask_all(url, prompts, 5)
        expected = {last: likeliest(str(last), 5) for last in range(10)}
        assert [one.rstrip() for one in answers] == [expected[index % 10].rstrip() for index in range(2000)]
        assert met[200] == 2000 and met[429] > 0 and not met[500] and not met[0]
        time.sleep(5)  # two health checks more
        assert set(replicas()) == set(before) and len(before) == 1
        assert httpx.get(f"{url}/health").json()["active"] == 0


def test_a_replica_that_dies_is_replaced_and_no_prompt_is_lost(ray_cluster: str) -> None:
    with on_ray(partial(make, seconds=0.01), teacher__replicas="2") as url:
        first = replicas()
        assert len(first) == 2
        prompts = [f"prompt {index}" for index in range(400)]

        async def disturbed() -> tuple[list[dict[str, Any]], Counter[int]]:
            met: Counter[int] = Counter()
            connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(240)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                body = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
                asked = [asyncio.create_task(patient(session, url, {**body, "prompt": p}, met)) for p in prompts]
                await asyncio.sleep(0.5)
                # the engine of one dies of a prompt
                async with session.post(
                    f"{url}/v1/completions", json={"model": "toy", "prompt": "DIE", "max_tokens": 9}
                ) as reply:
                    assert reply.status == 503 and reply.headers["Retry-After"]
                while len(set(replicas()) - set(first)) < 1:
                    await asyncio.sleep(0.2)
                # and the kernel ends the other
                (left,) = set(replicas()) & set(first)
                os.kill(left, signal.SIGKILL)
                return await asyncio.gather(*asked), met

        answers, met = asyncio.run(disturbed())
        expected = [likeliest(prompt, 20) for prompt in prompts]
        assert [one["choices"][0]["text"].strip() for one in answers] == [one.strip() for one in expected]
        assert met[200] == len(prompts)
        until(lambda: len(set(replicas()) - set(first)) == 2 and len(replicas()) == 2, 60)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        assert client.completions.create(model="toy", prompt="hi", max_tokens=5, temperature=0).choices[0].text


def test_clients_of_every_kind_do_not_disturb_the_well_mannered_ones(ray_cluster: str) -> None:
    crowd(seconds=20)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_so_it_is_for_ten_minutes(ray_cluster: str) -> None:
    crowd(seconds=600)


def crowd(seconds: float) -> None:
    """Eight clients are served without a failure and memory stays, whatever the others do."""
    with on_ray(partial(make, seconds=0.002), serve__max_body_mb="1") as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(1000)]
        body = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True})
        lines = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        kinds: Counter[str] = Counter()

        async def well(session: aiohttp.ClientSession, end: float) -> None:
            expected = likeliest("hi", 10)
            while time.monotonic() < end:
                asked = {"model": "toy", "prompt": "hi", "max_tokens": 10, "temperature": 0}
                async with session.post(f"{url}/v1/completions", json=asked) as reply:
                    assert reply.status == 200, await reply.text()
                    assert (await reply.json())["choices"][0]["text"] == expected
                kinds["served"] += 1

        async def vanishing(end: float) -> None:
            while time.monotonic() < end:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write((head + body).encode())
                await reader.read(600)
                writer.transport.abort()
                kinds["vanished"] += 1
                await asyncio.sleep(0.05)

        async def dawdling(end: float) -> None:
            while time.monotonic() < end:
                reader, writer = await asyncio.open_connection(host, int(port), limit=256)
                writer.write(head.encode())
                for letter in body.encode():
                    writer.write(bytes([letter]))
                    await asyncio.sleep(0.01)
                for _ in range(20):
                    await reader.read(16)
                    await asyncio.sleep(0.05)
                writer.transport.abort()
                kinds["dawdled"] += 1

        async def pouring(session: aiohttp.ClientSession, end: float) -> None:
            header = {"Content-Type": "application/json"}
            while time.monotonic() < end:
                for data, status in ((b"x" * 10_000_000, 413), (b"{{{", 400), (b'{"model": "toy"}', 400)):
                    try:
                        async with session.post(f"{url}/v1/completions", data=data, headers=header) as reply:
                            assert reply.status == status, await reply.text()
                    except aiohttp.ClientConnectionError:  # cut off within ten megabytes
                        assert status == 413
                    kinds[f"refused {status}"] += 1
                await asyncio.sleep(0.3)

        async def everybody(for_seconds: float) -> None:
            end = time.monotonic() + for_seconds
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
                others = [vanishing(end) for _ in range(4)] + [dawdling(end) for _ in range(10)]
                others += [pouring(session, end) for _ in range(2)]
                await asyncio.gather(*(well(session, end) for _ in range(8)), *others)

        asyncio.run(everybody(5))  # pools and buffers have their size after this
        served = {**replicas(), **processes("ray::ProxyActor")}
        assert len(served) == 2, "a replica and a proxy"
        before = {pid: process.memory_info().rss for pid, process in served.items()}
        asyncio.run(everybody(seconds))
        grown = {pid: process.memory_info().rss - before[pid] for pid, process in served.items()}
        print(dict(kinds), {pid: f"{size / 1e6:.0f} MB more" for pid, size in grown.items()})
        assert set(replicas()) < set(served), "the replica was replaced"
        assert max(grown.values()) < 100e6, grown
        until(lambda: httpx.get(f"{url}/health").json()["active"] == 0, 10)
        assert all(kinds[kind] for kind in ("vanished", "dawdled", "refused 413", "refused 400"))
        assert kinds["served"] > 5 * seconds
        for connection in idle:
            connection.close()


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that takes no time to load: what is looked at here is how a server comes up and goes."""
    return save_byte_model(tmp_path_factory.mktemp("model") / "tiny", seq_len=64, n_layer=1, n_head=2, n_embd=16)


@pytest.mark.parametrize(
    ("moment", "terminal"),
    [
        pytest.param("Ray cluster", False, id="sigterm-before-the-model-is-loaded", marks=pytest.mark.long),
        pytest.param("Try: curl", True, id="ctrl-c-in-a-terminal"),
    ],
)
def test_a_server_that_is_asked_to_stop_leaves_nothing_running(model: str, moment: str, terminal: bool) -> None:
    """A job's SIGTERM, a terminal's Ctrl-C, once it serves and before."""
    words = ("serve", "--serve.port=0", "--teacher.use_gpu=false", f"--teacher.model={model}")
    program = Program(*words, terminal=terminal)
    program.wait_for(moment, 180)
    if not terminal:  # Serve comes up, the replica is still to be made
        until(lambda: processes("ray::ServeController", program.pid), 60)
    started = started_by(program)
    if terminal:
        found = re.search(r"model (\S+) at (http://\S+)/v1", program.output)
        assert found is not None
        client = openai.OpenAI(base_url=f"{found[2]}/v1", api_key="none")
        assert client.completions.create(model=found[1], prompt="hi", max_tokens=5).choices[0].finish_reason
        program.press_ctrl_c()
    else:
        program.signal(signal.SIGTERM)
    assert program.finish(60) == 0, program.output
    assert "Stopped: nothing is left running." in program.output and "Traceback" not in program.output
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive, [process.pid for process in alive]


def test_a_model_that_cannot_be_loaded_is_one_sentence(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (str(tmp_path), str(tmp_path / "absent.gguf")):
        printed = raygpt("serve", "--serve.port=0", f"--teacher.model={model}", status=2)
        assert "Traceback" not in printed
        assert len([line for line in printed.splitlines() if line.startswith("raygpt: ")]) == 1, printed


def test_the_shipped_vllm_teachers_fit_rays_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the class that ray.serve.llm validates with; the package around it cannot be imported without vLLM."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    from raygpt.serve.deployment import Replicas
    from raygpt.serve.vllm import HIGH_THROUGHPUT, llm_config_kwargs

    for name in ("teacher-llama-405b", "teacher-llama-8b", "teacher-smollm2-1.7b"):
        config = load_config("serve", str(ROOT / "jobs" / "configs" / f"{name}.yaml"), environ={})
        teacher = config.teacher
        assert teacher.model is not None
        kwargs = llm_config_kwargs(
            teacher.model,
            name=name,
            arguments=teacher.vllm,
            replicas=Replicas(*teacher.replica_range, slots=teacher.max_sequences),
            max_concurrent=config.serve.max_concurrent,
            max_model_len=teacher.max_model_len,
            precision=teacher.precision,
            environment=HIGH_THROUGHPUT,
        )
        made = LLMConfig(**kwargs)
        assert made.model_id == name and made.engine_kwargs["max_num_seqs"] == teacher.max_sequences
    with pytest.raises(ValueError, match="Unsupported accelerator"):
        LLMConfig(**{**kwargs, "accelerator_type": "GTX-285"})
    assert "vllm" not in sys.modules
