"""The engine with a real pretrained model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from raygpt.serve.load import load_engine
from raygpt.serve.requests import Engine, Request, Sampling

WORDS = ("river", "mountain", "story", "science", "history", "music", "food", "bread", "water", "energy", "light")


@pytest.mark.long
def test_greedy_answers_of_a_real_model_are_the_same_whoever_shares_the_batch(teacher_gguf: Path) -> None:
    engine = load_engine("transformers", str(teacher_gguf), max_sequences=8, max_model_len=512, threads=1)
    draw = random.Random(0)
    requests = []
    for number in range(40):
        content = "Write about " + " ".join(draw.choice(WORDS) for _ in range(draw.choice((2, 8, 150))))
        prompt = engine.encode_chat([{"role": "user", "content": content}])
        requests.append(Request(tuple(prompt), Sampling(max_tokens=2 + number % 7, temperature=0, top_logprobs=1)))

    async def ask(order: list[int], at_once: int) -> dict[int, list]:
        gate = asyncio.Semaphore(at_once)

        async def one(number: int) -> list:
            async with gate:
                return [piece async for piece in engine.generate(requests[number])]

        return dict(zip(order, await asyncio.gather(*(one(number) for number in order))))

    try:
        alone = asyncio.run(ask(list(range(40)), 1))
        assert asyncio.run(ask(list(range(40)), 8)) == alone
        shuffled = draw.sample(range(40), 40)
        assert asyncio.run(ask(shuffled, 40)) == alone

        question = engine.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
        greedy = Request(tuple(question), Sampling(max_tokens=40, temperature=0))
        pieces = asyncio.run(collect(engine, greedy))
        assert "Paris" in "".join(piece.text for piece in pieces) and pieces[-1].finish == "stop"
    finally:
        engine.close()


async def collect(engine: Engine, request: Request) -> list:
    return [piece async for piece in engine.generate(request)]
