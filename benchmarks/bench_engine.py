"""Continuous batching beside static batching with a real pretrained model, and tokens per second by sequences.

    python benchmarks/bench_engine.py --threads 2

The model is SmolLM2-135M-Instruct in fp32 (tests/teacher_model.py fetches it). Answers are 16 to 256 tokens long, drawn
once, most of them short as in real use; the end token is ignored so that every run makes the same tokens. Static:
groups of as many requests as there are slots, each waiting for its longest answer, with the same engine and passes.
Both arms run in one process, one after the other; their ratio is the figure, tokens per second are the machine's of the
moment (`load_average` before and after: the ratio of seconds counts only where they are alike, that of steps always,
since a step of 8 slots is the same pass in both). Writes engine.json beside this script (--out).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

import torch
from provenance import provenance

from raygpt.serve.batching import BatchingEngine
from raygpt.serve.coders import HuggingFaceCoder
from raygpt.serve.hf_network import HuggingFaceNetwork, load_model
from raygpt.serve.load import make_decoder
from raygpt.serve.requests import Request, Sampling
from tests import teacher_model

SLOTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "engine.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = str(teacher_model.fetch())
    model = load_model(spec, torch.float32, torch.device("cpu"))
    network, coder = HuggingFaceNetwork(model), HuggingFaceCoder(spec, model)
    prompt = coder.encode_chat([{"role": "user", "content": "Explain how rain forms."}])
    rng = random.Random(0)
    lengths = [min(256, max(16, int(rng.lognormvariate(4.0, 0.9)))) for _ in range(options.requests)]

    def engine(slots: int) -> BatchingEngine:
        return BatchingEngine("bench", make_decoder(network, slots, 512), coder, threads=options.threads)

    async def answer(to: BatchingEngine, tokens: int) -> None:
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
        async for _ in to.generate(Request(tuple(prompt), sampling)):
            pass

    async def together(to: BatchingEngine, tokens: list[int]) -> None:
        await asyncio.gather(*(answer(to, count) for count in tokens))

    async def in_groups(to: BatchingEngine, tokens: list[int]) -> None:
        for first in range(0, len(tokens), SLOTS):
            await together(to, tokens[first : first + SLOTS])

    found: dict[str, Any] = {**provenance("torch", "transformers"), "threads": options.threads}
    arms = {}
    for name, way in (("continuous", together), ("static", in_groups)):
        subject = engine(SLOTS)
        asyncio.run(together(subject, [4] * SLOTS))
        before, start, load = subject.stats(), time.perf_counter(), os.getloadavg()[0]
        asyncio.run(way(subject, lengths))
        seconds = time.perf_counter() - start
        steps = subject.stats().steps - before.steps
        subject.close()
        arms[name] = {
            "seconds": round(seconds, 1),
            "tokens_per_second": round(sum(lengths) / seconds, 1),
            "steps": steps,
            "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        print(name, arms[name], flush=True)
    found["mixed_lengths"] = {
        "slots": SLOTS,
        "requests": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        **arms,
        "ratio_seconds": round(arms["static"]["seconds"] / arms["continuous"]["seconds"], 2),
        "ratio_steps": round(arms["static"]["steps"] / arms["continuous"]["steps"], 2),
    }
    found["by_sequences"] = {}
    for slots in (1, 4, 8, 16):
        subject = engine(slots)
        asyncio.run(together(subject, [4] * slots))
        start = time.perf_counter()
        asyncio.run(together(subject, [32] * slots))
        found["by_sequences"][str(slots)] = round(32 * slots / (time.perf_counter() - start), 1)
        subject.close()
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
