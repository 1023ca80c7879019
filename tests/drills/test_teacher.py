"""The engine with a real pretrained model, in the test's process: `raygpt generate` has it on Ray Serve in
test_distillation.py."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from raygpt.serve.batching import BatchingEngine
from raygpt.serve.load import load_engine
from raygpt.serve.requests import Engine, Request, Sampling
from tests.serve.served import served

WORDS = ("river", "mountain", "story", "science", "history", "music", "food", "bread", "water", "energy", "light")


@pytest.fixture(scope="module")
def teacher(teacher_gguf: Path) -> Iterator[tuple[BatchingEngine, str]]:
    """(the engine, its base URL). Half a minute of a core goes into its loading, so there is one for all."""
    engine = load_engine("transformers", str(teacher_gguf), max_sequences=8, max_model_len=512, threads=1)
    with served(engine) as url:
        yield engine, url
    engine.close()


def test_the_harness_scores_as_the_model_itself(teacher: tuple[BatchingEngine, str], tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    engine, url = teacher
    tokenizer, model = engine._coder._tokenizer, engine._decoder.network._model  # type: ignore[attr-defined]
    tokenizer.save_pretrained(tmp_path)
    harness = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model=engine.name,
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        batch_size=2,
        max_length=512,
    )
    items = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " a bicycle"),
        ("Question: Is the sky blue?\nAnswer:", " yes"),
        ("A man is sitting on a roof. He", " starts pulling up roofing on a roof."),
    ]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(items)]
    scored = harness.loglikelihood(requests, disable_tqdm=True)
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")  # transformers' own, one text at a time and without a cache
    for (context, ending), (logprob, greedy) in zip(items, scored):
        whole = tokenizer(context + ending, add_special_tokens=False)["input_ids"]
        begun = tokenizer(context, add_special_tokens=False)["input_ids"]
        assert whole[: len(begun)] == begun
        with torch.inference_mode():
            scores = model(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
        at = range(len(begun), len(whole))
        assert logprob == pytest.approx(sum(float(scores[one - 1, whole[one]]) for one in at), abs=2e-3)
        assert greedy == all(int(scores[one - 1].argmax()) == whole[one] for one in at)
    model.set_attn_implementation(ours)
    assert scored[0][0] > scored[1][0]


def test_openais_client_talks_to_a_real_teacher(teacher: tuple[BatchingEngine, str]) -> None:
    engine, url = teacher
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked: dict[str, Any] = {
        "model": engine.name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    assert "Paris" in (whole.message.content or "")
    assert whole.logprobs is not None and whole.logprobs.content
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.message.content


@pytest.mark.long
def test_greedy_answers_of_a_real_model_are_the_same_whoever_shares_the_batch(
    teacher: tuple[BatchingEngine, str],
) -> None:
    engine, _ = teacher
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

    alone = asyncio.run(ask(list(range(40)), 1))
    assert asyncio.run(ask(list(range(40)), 8)) == alone
    shuffled = draw.sample(range(40), 40)
    assert asyncio.run(ask(shuffled, 40)) == alone

    question = engine.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    greedy = Request(tuple(question), Sampling(max_tokens=40, temperature=0))
    pieces = asyncio.run(collect(engine, greedy))
    assert "Paris" in "".join(piece.text for piece in pieces) and pieces[-1].finish == "stop"


async def collect(engine: Engine, request: Request) -> list:
    return [piece async for piece in engine.generate(request)]
