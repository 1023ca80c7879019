"""How many questions a second `raygpt generate` asks, beside what aiohttp alone reaches there, and the memory it takes.

    python benchmarks/bench_client.py [--prompts 100000]

A fast endpoint in a process of its own answers at once with some 40 tokens. Arms by turns in one run: a loop of bare
aiohttp that sends one ready-made body and reads the reply (the HTTP stack's own limit on this machine); the loop that
asks with all that it does (keys, health, limits, journal). Then the whole job with many prompts, its memory looked at
while it asks, from the first 10 % on. Writes benchmarks/client.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
import psutil

from benchmarks.provenance import provenance
from raygpt.distill.client import Asking, Client
from raygpt.distill.generation import Generation, scan_prompts
from raygpt.distill.limits import Spend, TokenPrice
from raygpt.distill.prompts import Prompts, open_prompts, questions
from raygpt.distill.templates import load_template
from raygpt.storage import locate
from tests.distill.endpoint import EndpointProcess, Orders

CONCURRENCY = 64
TEXT = "Explain in a few plain sentences why the sea is salty and rivers are not, for a reader of twelve years. "


async def bare(url: str, requests: int) -> float:
    """Requests a second of aiohttp alone."""
    body = json.dumps({"model": "teacher", "max_tokens": 64, "temperature": 0, "prompt": TEXT}).encode()
    left = requests
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                async with session.post(f"{url}/completions", data=body) as reply:
                    await reply.read()

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return requests / (time.perf_counter() - began)


def write_prompts(path: Path, count: int) -> None:
    with open(path, "w") as file:
        for n in range(count):
            file.write(json.dumps({"id": n, "prompt": f"{TEXT}Number {n}."}) + "\n")


def ours(url: str, count: int, watch: threading.Event | None = None) -> dict[str, float]:
    """Questions a second of the asking, and seconds of what stands before and after it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "p.jsonl", count)
        began = time.perf_counter()
        prompts = open_prompts([str(folder / "p.jsonl")], Prompts((), load_template("prompt"), "g", max_new_tokens=64))
        out = locate(str(folder / "out"))
        generation = Generation("g", lambda: questions(prompts), out, {}, folder / "q", 64)
        scan_prompts(prompts, generation, folder / "ids")
        generation.settle()
        settled = time.perf_counter()
        if watch is not None:
            watch.set()
        asking = Asking("teacher", (url,), 64, 0.0, 1.0, concurrency=CONCURRENCY)
        spend = Spend(TokenPrice(1.0, 1.0))
        tally, _ = generation.ask(lambda: Client(asking, None), spend, concurrency=CONCURRENCY)
        asked = time.perf_counter()
        if watch is not None:
            watch.clear()
        totals = generation.finish()
        assert totals["answered"] == tally.answered == count
        return {
            "per_second": count / (asked - settled),
            "settle_seconds": settled - began,
            "finish_seconds": time.perf_counter() - asked,
        }


def memory_over(url: str, count: int) -> dict[str, float]:
    """Resident memory of this process in MB while it asks `count` questions, by tenths."""
    asking, ended, seen = threading.Event(), threading.Event(), []

    def look() -> None:
        process = psutil.Process()
        while not ended.wait(0.1):
            if asking.is_set():
                seen.append(process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    figures = ours(url, count, asking)
    ended.set()
    watcher.join()
    tenth = len(seen) // 10
    tenths = [max(seen[n * tenth : (n + 1) * tenth]) for n in range(10)]
    return {**figures, "rss_mb_by_tenths": tenths, "growth_mb_after_first_tenth": tenths[-1] - tenths[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--short", type=int, default=10_000, help="questions of each arm's turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    arms: dict[str, list[float]] = {"bare": [], "ours": []}
    with EndpointProcess(Orders(answer_words=40)) as endpoint:
        for _ in range(options.turns):
            arms["bare"].append(asyncio.run(bare(endpoint.url, options.short)))
            arms["ours"].append(ours(endpoint.url, options.short)["per_second"])
        memory = memory_over(endpoint.url, options.prompts)
    middle = {name: statistics.median(values) for name, values in arms.items()}
    result = {
        **provenance("aiohttp"),
        "concurrency": CONCURRENCY,
        "requests_per_second": arms,
        "median": middle,
        "share_of_bare": middle["ours"] / middle["bare"],
        "prompts": options.prompts,
        "whole": memory,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "client.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
