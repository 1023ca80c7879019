"""The engine beside transformers' own generation and plain passes: tiny models of several kinds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import tests.model.toy_architecture  # noqa: F401 - registers the family
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.serve.batching import BatchingEngine
from raygpt.serve.coders import OwnCoder
from raygpt.serve.decoder import Network, SlotDecoder, WindowDecoder
from raygpt.serve.hf_network import HuggingFaceNetwork, _context
from raygpt.serve.load import load_engine, make_decoder
from raygpt.serve.own_network import OwnNetwork
from raygpt.serve.requests import Delta, EngineDied, Request, Sampling
from raygpt.serve.sampling import draw, generator
from tests.conftest import save_byte_model

VOCAB = 257
SHAPE = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def foreign(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=700, n_embd=48, n_layer=2, n_head=4))
    elif kind == "gpt_neox":
        config = GPTNeoXConfig(**SHAPE, intermediate_size=96, max_position_embeddings=700)
        model = GPTNeoXForCausalLM(config)
    else:
        config = LlamaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=96, max_position_embeddings=700)
        model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger than at the start, or every answer is one token over and over
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.eval()


def own() -> GPT:
    torch.manual_seed(2)
    model = GPT(GPTConfig(VOCAB, 700, 2, 4, 48))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.eval()


NETWORKS = {
    "gpt2": lambda: HuggingFaceNetwork(foreign("gpt2")),
    "llama": lambda: HuggingFaceNetwork(foreign("llama")),
    "gpt_neox": lambda: HuggingFaceNetwork(foreign("gpt_neox")),
    "raygpt": lambda: OwnNetwork(own()),
}


def make(network: Network, slots: int = 4, capacity: int | None = None) -> BatchingEngine:
    coder = OwnCoder(byte_tokenizer(), "tiny")
    return BatchingEngine("tiny", make_decoder(network, slots, capacity), coder, threads=1)


@pytest.fixture(scope="module", params=list(NETWORKS))
def engine(request: pytest.FixtureRequest) -> Iterator[BatchingEngine]:
    subject = make(NETWORKS[request.param]())
    yield subject
    subject.close()


@pytest.fixture(scope="module")
def llama() -> Iterator[BatchingEngine]:
    subject = make(NETWORKS["llama"]())
    yield subject
    subject.close()


async def collect(engine: BatchingEngine, request: Request) -> list[Delta]:
    return [piece async for piece in engine.generate(request)]


def ask(engine: BatchingEngine, requests: list[Request], at_once: int) -> list[list[Delta]]:
    async def run() -> list[list[Delta]]:
        gate = asyncio.Semaphore(at_once)

        async def one(request: Request) -> list[Delta]:
            async with gate:
                return await collect(engine, request)

        return await asyncio.gather(*(one(request) for request in requests))

    return asyncio.run(run())


def prompts(count: int) -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(5)
    lengths = [1, 3, 20, 130, 300, 7, 64, 128]
    return [tuple(torch.randint(0, 256, (lengths[i % len(lengths)],), generator=random).tolist()) for i in range(count)]


def greedy(prompt: tuple[int, ...], tokens: int = 12) -> Request:
    return Request(prompt, Sampling(max_tokens=tokens, temperature=0, top_logprobs=3, ignore_eos=True))


def tokens_of(pieces: list[Delta]) -> list[int]:
    return [entry.token for piece in pieces for entry in piece.logprobs]


def plain_logits(engine: BatchingEngine, ids: list[int]) -> torch.Tensor:
    network = engine._decoder.network
    with torch.inference_mode():
        return network.logits(torch.tensor([ids]), None, len(ids))[0].float()


def test_all_kinds_keep_a_cache(engine: BatchingEngine) -> None:
    assert isinstance(engine._decoder, SlotDecoder), engine._decoder.network.without_cache
    assert engine.stats().extra["cache_bytes"] == sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*engine._decoder._cache._keys, *engine._decoder._cache._values)
    )


def test_greedy_tokens_and_log_probabilities_are_those_of_plain_passes(engine: BatchingEngine) -> None:
    asked = [greedy(prompt) for prompt in prompts(8)]
    for request, pieces in zip(asked, ask(engine, asked, 8)):
        ids = list(request.prompt)
        for entry in (entry for piece in pieces for entry in piece.logprobs):
            truth = plain_logits(engine, ids)[-1].log_softmax(dim=0)
            assert entry.token == int(truth.argmax())
            assert entry.logprob == pytest.approx(float(truth[entry.token]), abs=1e-4)
            assert [worth for _, _, worth in entry.top] == pytest.approx(truth.topk(3).values.tolist(), abs=1e-4)
            ids.append(entry.token)
        assert pieces[-1].finish == "length" and sum(piece.tokens for piece in pieces) == 12


def test_greedy_tokens_are_those_of_transformers_generate() -> None:
    model = foreign("llama")
    subject = make(HuggingFaceNetwork(model))
    try:
        asked = [greedy(prompt, 20) for prompt in prompts(4)]
        found = [tokens_of(pieces) for pieces in ask(subject, asked, 4)]
    finally:
        subject.close()
    model.set_attn_implementation("eager")
    for request, tokens in zip(asked, found):
        ids = torch.tensor([request.prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
                               eos_token_id=None, pad_token_id=0)  # fmt: skip
        assert whole[0, ids.size(1) :].tolist() == tokens


def test_answers_are_the_same_to_the_bit_whoever_shares_the_batch(engine: BatchingEngine) -> None:
    asked = [greedy(prompt, 4 + i % 9) for i, prompt in enumerate(prompts(40))]
    alone = ask(engine, asked, 1)
    assert ask(engine, asked, 8) == alone
    assert ask(engine, asked[::-1], 40)[::-1] == alone


def test_a_prompts_own_log_probabilities_and_none_of_padding(engine: BatchingEngine) -> None:
    asked = [Request(prompt, Sampling(max_tokens=0, top_logprobs=2), score_prompt=True) for prompt in prompts(5)]
    for request, pieces in zip(asked, ask(engine, asked, 5)):
        scored = [entry for piece in pieces for entry in piece.prompt_logprobs]
        assert [entry.token for entry in scored] == list(request.prompt) and scored[0].logprob is None
        truth = plain_logits(engine, list(request.prompt)).log_softmax(dim=1)
        for place, entry in enumerate(scored[1:], 1):
            assert entry.logprob == pytest.approx(float(truth[place - 1, entry.token]), abs=1e-4)
        assert pieces[-1].finish == "length" and sum(piece.tokens for piece in pieces) == 0


def test_a_prompt_as_long_as_the_context_is_scored_beside_others(llama: BatchingEngine) -> None:
    longest = Request((5,) * llama.max_model_len, Sampling(max_tokens=0), score_prompt=True)
    asked = [greedy((1, 2), 40), longest, greedy((3,), 40)]
    assert ask(llama, asked, 3)[0] == ask(llama, asked[:1], 1)[0]
    assert len(ask(llama, [longest], 1)[0][0].prompt_logprobs) == llama.max_model_len


def test_a_seed_decides_an_answer_whoever_shares_the_batch(llama: BatchingEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.3, top_p=0.9, top_k=50, seed=7, top_logprobs=0)
    request = Request(prompts(3)[2], sampling)
    alone = ask(llama, [request], 1)[0]
    others = [Request(prompt, Sampling(max_tokens=12)) for prompt in prompts(6)]
    assert ask(llama, [*others, request, request], 8)[-2:] == [alone, alone]
    another = Request(request.prompt, Sampling(max_tokens=12, temperature=1.3, seed=8, top_logprobs=0))
    assert tokens_of(ask(llama, [another], 1)[0]) != tokens_of(alone)


def test_end_token_ends_and_is_no_text() -> None:
    network = OwnNetwork(own())
    subject = make(network)
    try:
        subject._coder.eos_ids = frozenset({tokens_of(ask(subject, [greedy((65, 66))], 1)[0])[2]})
        pieces = ask(subject, [Request((65, 66), Sampling(max_tokens=12, temperature=0, top_logprobs=0))], 1)[0]
        assert pieces[-1].finish == "stop" and len(tokens_of(pieces)) <= 3 and pieces[-1].text == ""
    finally:
        subject.close()


def test_closing_the_iterator_frees_the_slot(llama: BatchingEngine) -> None:
    async def leave() -> None:
        stream = llama.generate(greedy((1, 2, 3), 600))
        await anext(stream)
        await stream.aclose()
        for _ in range(200):
            if llama.stats().active == 0:
                return
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert llama.stats().active == 0


def test_a_dead_engine_tells_all_who_wait() -> None:
    subject = make(NETWORKS["raygpt"](), slots=1)

    def fail(*_: object) -> None:
        raise RuntimeError("the GPU fell off the bus")

    subject._decoder.step = fail  # type: ignore[method-assign]

    async def run() -> list[Any]:
        return await asyncio.gather(*(collect(subject, greedy((1,))) for _ in range(3)), return_exceptions=True)

    assert all(isinstance(error, EngineDied) for error in asyncio.run(run()))
    with pytest.raises(EngineDied, match="fell off the bus"):
        subject.check()
    with pytest.raises(EngineDied):
        asyncio.run(collect(subject, greedy((1,))))


def test_closing_tells_those_who_wait() -> None:
    subject = make(NETWORKS["raygpt"](), slots=1)

    async def run() -> list[Any]:
        waiting = asyncio.gather(*(collect(subject, greedy((1,), 600)) for _ in range(3)), return_exceptions=True)
        await asyncio.sleep(0.05)
        threading.Thread(target=subject.close).start()
        return await waiting

    assert any(isinstance(error, EngineDied) for error in asyncio.run(run()))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(()), "no tokens"),
        (Request((VOCAB,)), "token 257"),
        (Request((1,), Sampling(max_tokens=0)), "max_tokens is 0"),
        (Request((1,) * 690, Sampling(max_tokens=11)), "teacher.max_model_len"),
        (Request((1,), Sampling(temperature=-1)), "temperature"),
        (Request((1,), Sampling(top_p=0)), "top_p"),
        (Request((1,), Sampling(top_k=0)), "top_k"),
    ],
)
def test_what_cannot_be_answered_is_refused(llama: BatchingEngine, request_: Request, says: str) -> None:
    with pytest.raises(UserError, match=says):
        asyncio.run(collect(llama, request_))


def test_a_family_without_a_cache_is_served() -> None:
    family = registry.named("toy")
    config = family.config({"vocab_size": VOCAB, "seq_len": 64, "n_embd": 16})
    torch.manual_seed(0)
    subject = make(OwnNetwork(family.build(config)))
    try:
        assert isinstance(subject._decoder, WindowDecoder)
        asked = [greedy((3, 4), 5), greedy((9,), 5)]
        together = ask(subject, asked, 2)
        assert together == ask(subject, asked, 1)
        ids = [3, 4]
        for token in tokens_of(together[0]):
            assert token == int(plain_logits(subject, ids)[-1].argmax())
            ids.append(token)
    finally:
        subject.close()


def test_what_does_not_fit_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["raygpt"]()
    with pytest.raises(UserError, match="teacher.max_model_len is 701"):
        make_decoder(network, 1, 701)
    with pytest.raises(UserError, match=r"teacher.max_sequences=10000000 x teacher.max_model_len=700"):
        make_decoder(network, 10_000_000, None)


def test_engine_raygpt_serves_a_folder(tmp_path: Path) -> None:
    folder = save_byte_model(tmp_path / "model", seq_len=64, n_layer=1, n_head=2, n_embd=16)
    subject = load_engine("raygpt", folder, max_sequences=2, threads=1)
    try:
        assert subject.name == "model" and subject.max_model_len == 64
        pieces = ask(subject, [greedy(tuple(subject.encode("ab")), 5)], 1)[0]
        assert sum(piece.tokens for piece in pieces) == 5
        with pytest.raises(UserError, match="chat template"):
            subject.encode_chat([{"role": "user", "content": "hello"}])
    finally:
        subject.close()


def test_a_foreign_model_whose_cache_cannot_be_shared_is_served_without() -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)).eval()
    network = HuggingFaceNetwork(model)
    subject = make(network, 2, 64)
    try:
        assert isinstance(subject._decoder, WindowDecoder) and network.without_cache
        ids = [3, 4, 5]
        for token in tokens_of(ask(subject, [greedy((3, 4, 5), 4)], 1)[0]):
            assert token == int(plain_logits(subject, ids)[-1].argmax())
            ids.append(token)
    finally:
        subject.close()


@pytest.mark.parametrize(
    ("config", "context", "why"),
    [
        (GPTNeoConfig(attention_types=[[["global", "local"], 1]], num_layers=2, window_size=256), 256, "local layers"),
        (
            SimpleNamespace(
                max_position_embeddings=131_072,
                rope_scaling={"rope_type": "longrope", "original_max_position_embeddings": 4_096},
            ),
            4_096,
            "rotations",
        ),
    ],
)
def test_what_reaches_back_in_another_way_later_on_is_served_up_to_there(config: Any, context: int, why: str) -> None:
    found, reason = _context(config)
    assert found == context and why in reason


def test_seeds_below_zero_and_next_to_no_temperature() -> None:
    first, second = (generator(Sampling(seed=seed)).random() for seed in (1, -1))
    assert first != second
    logits = torch.tensor([0.0, 3.0, float("-inf")])
    assert draw(logits, Sampling(temperature=1e-300), generator(Sampling(seed=0))) == 1


def test_a_sliding_window_is_the_longest_sequence() -> None:
    config = MistralConfig(**SHAPE, num_key_value_heads=2, intermediate_size=96, sliding_window=64)
    network = HuggingFaceNetwork(MistralForCausalLM(config).eval())
    assert make_decoder(network, 1, None).capacity == 64
    with pytest.raises(UserError, match="sliding window"):
        make_decoder(network, 1, 65)


def test_logits_that_are_not_finite_end_one_answer_and_not_the_engine() -> None:
    network = OwnNetwork(own())
    with torch.no_grad():
        network._model.wte.weight[7] = float("nan")
        network._model.lm_head.weight = torch.nn.Parameter(network._model.lm_head.weight.nan_to_num())
    subject = make(network, 2)
    try:
        with pytest.raises(UserError, match="not finite"):
            ask(subject, [greedy((7,))], 1)
        for _ in range(3):  # the slot it had is used again
            assert len(tokens_of(ask(subject, [greedy((1, 2, 3))], 1)[0])) == 12
    finally:
        subject.close()
