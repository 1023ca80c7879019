"""What Ray Serve and HTTP cost: an engine through `raygpt serve` beside the same engine called directly.

    python benchmarks/bench_serve.py                   both parts, to benchmarks/serve.json
    python benchmarks/bench_serve.py --only model      SmolLM2-135M, with and without streaming
    python benchmarks/bench_serve.py --only http       an engine that costs nothing, for the stack's own limit

model: greedy answers of --tokens tokens to --answers prompts, --concurrency at a time. The direct engine and the served
one take turns, --rounds times each, so that what else the machine does hits both; the ratio is of the sums of seconds.
Both have as many torch threads. The load comes from a process beside the server, as a user's would.

http: requests for one token to the toy engine of the tests, through uvicorn alone and through Ray Serve with its
settings as they come, with those for throughput (`RAY_SERVE_THROUGHPUT_OPTIMIZED`, its direct ingress off), and behind
HAProxy. With HAProxy replicas listen on all interfaces of the machine, an answer that nobody waits for any more is
written to its end unless it is streamed, and stopping takes 30 s: `raygpt serve` leaves it off for its own engines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp

from benchmarks.provenance import provenance
from raygpt.serve.requests import Engine, Request, Sampling
from tests import teacher_model

WORDS = ["the sea", "a small town", "bread", "the moon", "an old clock", "winter", "rivers", "a letter", "trains"]
THROUGHPUT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
HAPROXY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}


def prompts(count: int) -> list[str]:
    return [f"Here is a story about {WORDS[index % len(WORDS)]}, number {index}." for index in range(count)]


@contextmanager
def server(kind: str, env: dict[str, str], **settings: Any) -> Iterator[str]:
    """`raygpt serve` (or uvicorn) in a process of its own: its base URL."""
    command = [sys.executable, "-u", __file__, "--server", kind, *(f"--set={k}={v}" for k, v in settings.items())]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT), "TOY_SECONDS": "0", **env}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None
    try:
        for line in program.stdout:
            print("   ", line.rstrip(), flush=True)
            if line.startswith("Ready"):
                break
        else:
            raise RuntimeError("the server did not start")
        yield line.rpartition(" at ")[2].strip().removesuffix("/v1")
    finally:
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=120)


def run_server(kind: str, settings: dict[str, str]) -> None:
    from tests.serve import toy_engine

    if kind == "uvicorn":
        import uvicorn

        from raygpt.serve.app import AppSettings, build_app
        from raygpt.serve.launch import choose_port

        port = choose_port("127.0.0.1", 0)
        print(f"Ready: at http://127.0.0.1:{port}", flush=True)
        app = build_app(toy_engine.make(), AppSettings(max_concurrent=4096))
        uvicorn.run(app, port=port, log_level="critical")
        return
    from raygpt.config.settings import load_config
    from raygpt.jobs import serve

    config = load_config("serve", None, {"serve.port": "0", **settings}, {})
    serve.serve(config, toy_engine.make if kind == "toy" else serve._engine_maker(config))


# --- a model ------------------------------------------------------------------------------------------------------


async def ask_engine(engine: Engine, texts: list[str], tokens: int, concurrency: int) -> list[str]:
    gate, answers = asyncio.Semaphore(concurrency), [""] * len(texts)

    async def one(index: int) -> None:
        async with gate:
            sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
            async for delta in engine.generate(Request(tuple(engine.encode(texts[index])), sampling)):
                answers[index] += delta.text

    await asyncio.gather(*(one(index) for index in range(len(texts))))
    return answers


async def ask_server(url: str, model: str, texts: list[str], tokens: int, concurrency: int, stream: bool) -> list[str]:
    gate, answers = asyncio.Semaphore(concurrency), [""] * len(texts)
    timeout, connector = aiohttp.ClientTimeout(600), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(index: int) -> None:
            body = {"model": model, "prompt": texts[index], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            async with gate, session.post(f"{url}/v1/completions", json={**body, "stream": stream}) as reply:
                assert reply.status == 200, await reply.text()
                if not stream:
                    answers[index] = (await reply.json())["choices"][0]["text"]
                    return
                async for line in reply.content:
                    if line.startswith(b"data: {"):
                        answers[index] += json.loads(line[6:])["choices"][0]["text"]

        await asyncio.gather(*(one(index) for index in range(len(texts))))
    return answers


def timed(work: Any) -> tuple[float, list[str]]:
    began = time.perf_counter()
    answers = asyncio.run(work)
    return time.perf_counter() - began, answers


def measure_model(chosen: argparse.Namespace) -> dict[str, Any]:
    from raygpt.serve.load import load_engine

    model, threads = str(teacher_model.fetch()), os.cpu_count() or 1
    slots = chosen.concurrency
    settings = {"teacher.model": model, "teacher.max_sequences": slots, "teacher.max_model_len": 512}
    engine = load_engine("transformers", model, max_sequences=slots, max_model_len=512, threads=threads)
    texts = prompts(chosen.answers)
    seconds: dict[str, list[float]] = {"direct": [], "serve": [], "serve, streamed": []}
    with server("model", {}, **settings, **{"teacher.cpus_per_replica": threads}) as url:
        ways = {
            "direct": lambda: ask_engine(engine, texts, chosen.tokens, slots),
            "serve": lambda: ask_server(url, engine.name, texts, chosen.tokens, slots, False),
            "serve, streamed": lambda: ask_server(url, engine.name, texts, chosen.tokens, slots, True),
        }
        timed(ask_engine(engine, texts[:slots], 4, slots))
        timed(ask_server(url, engine.name, texts[:slots], 4, slots, False))
        for turn in range(chosen.rounds):
            said = {}
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                took, said[way] = timed(ways[way]())
                seconds[way].append(round(took, 3))
            assert said["direct"] == said["serve"] == said["serve, streamed"], "the answers differ"
            print("   ", {way: took[-1] for way, took in seconds.items()}, flush=True)
    engine.close()
    made = chosen.answers * chosen.tokens * chosen.rounds
    total = {way: sum(took) for way, took in seconds.items()}
    return {
        "model": engine.name,
        "concurrency": slots,
        "answers": chosen.answers,
        "tokens_each": chosen.tokens,
        "threads": threads,
        "seconds": seconds,
        "tokens_per_second": {way: round(made / took, 1) for way, took in total.items()},
        "of_direct": {way: round(total["direct"] / took, 3) for way, took in total.items() if way != "direct"},
        "answers_equal": True,
    }


# --- HTTP alone ---------------------------------------------------------------------------------------------------


async def load(url: str, requests: int, concurrency: int, stream: bool, tokens: int) -> float:
    """Requests per second."""
    texts = prompts(requests)
    began = time.perf_counter()
    await ask_server(url, "toy", texts, tokens, concurrency, stream)
    return requests / (time.perf_counter() - began)


def measure_http(chosen: argparse.Namespace) -> dict[str, Any]:
    ways = {
        "uvicorn alone": ("uvicorn", {}),
        "Ray Serve": ("toy", {}),
        "Ray Serve, for throughput": ("toy", THROUGHPUT),
        "Ray Serve, HAProxy": ("toy", HAPROXY),
    }
    found: dict[str, Any] = {}
    for name, (kind, env) in ways.items():
        settings = {} if kind == "uvicorn" else {"serve.max_concurrent": 4096, "teacher.max_sequences": 64}
        with server(kind, env, **settings) as url:
            asyncio.run(load(url, 200, 32, False, 1))
            found[name] = {
                "requests_per_second": round(asyncio.run(load(url, chosen.requests, 32, False, 1))),
                "streamed_answers_of_16_tokens_per_second": round(
                    asyncio.run(load(url, chosen.requests // 4, 32, True, 16))
                ),
            }
            print("   ", name, found[name], flush=True)
    return {"concurrency": 32, **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["model", "http"])
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.server:
        run_server(chosen.server, dict(one.split("=", 1) for one in chosen.set))
        return
    file = ROOT / "benchmarks" / "serve.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result |= provenance("ray", "torch", "transformers", "uvicorn")
    for name, measure in {"model": measure_model, "http": measure_http}.items():
        if chosen.only in (None, name):
            print(name, flush=True)
            result[name] = {**measure(chosen), "load_average": os.getloadavg()[0]}
            file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
