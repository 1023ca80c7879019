"""Generation: cached and uncached agree token for token, and the sampler keeps what it says it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raygpt.errors import UserError
from raygpt.model.generate import choose, generate, stream
from raygpt.model.gpt import GPT, GPTConfig
from tests.model.reference import load_model, transformers_gpt2


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(2)
    model = GPT(GPTConfig(vocab_size=65, seq_len=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.randint(0, 65, (4, 5), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("prompt_length", [1, 5, 16, 20])
@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {}, {"temperature": 0.8, "top_k": 10}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.5}]
)
def test_cached_generation_equals_uncached_also_after_the_window_slides(
    model: GPT, prompt_length: int, settings: dict
) -> None:
    prompt = torch.randint(0, 65, (4, prompt_length), generator=torch.Generator().manual_seed(3))
    cached, uncached = (
        generate(model, prompt, 30, use_cache=use, generator=torch.Generator().manual_seed(9), **settings)
        for use in (True, False)
    )
    assert cached.shape == (4, prompt_length + 30)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :prompt_length], prompt)


def test_greedy_tokens_are_the_most_probable_after_each_prefix(model: GPT, prompts: torch.Tensor) -> None:
    model.eval()
    out = generate(model, prompts, 20, temperature=0)
    for end in range(5, 25):
        logits = model(out[:, max(0, end - 16) : end])
        assert torch.equal(logits[:, -1].argmax(-1), out[:, end])


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = transformers_gpt2(vocab_size=65, n_positions=32, n_layer=2, n_head=2, n_embd=32)
    theirs.save_pretrained(tmp_path)
    prompts = torch.randint(1, 65, (3, 4), generator=torch.Generator().manual_seed(4))
    expected = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert torch.equal(generate(load_model(tmp_path), prompts, 20, temperature=0, eot_id=0), expected)


def test_the_same_generator_gives_the_same_sample_and_another_seed_another(model: GPT, prompts: torch.Tensor) -> None:
    one, same, other = (
        generate(model, prompts, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_sampled_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(20_000, 4)
    drawn = choose(logits, temperature=0.5, generator=torch.Generator().manual_seed(0))
    expected = (logits[0] / 0.5).softmax(0)
    assert torch.allclose(torch.bincount(drawn.flatten(), minlength=4) / 20_000, expected, atol=0.01)


def test_top_k_and_top_p_keep_exactly_the_tokens_they_should() -> None:
    probs = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).expand(4000, 4)

    def kept(**settings: float) -> set[int]:
        return set(choose(probs.log(), generator=torch.Generator().manual_seed(0), **settings).flatten().tolist())  # type: ignore[arg-type]

    assert kept() == {0, 1, 2, 3}
    assert kept(top_k=2) == {1, 3}
    assert kept(top_p=0.7) == {1, 3}  # 0.5 is not yet 0.7, 0.8 is
    assert kept(top_p=0.9) == {1, 2, 3}
    assert kept(top_p=1e-6) == kept(top_k=1) == kept(temperature=0) == {1}
    assert kept(top_p=0.6, temperature=10.0) == {1, 2, 3}  # nearly flat: two tokens no longer make 0.6


def test_a_finished_row_stays_finished_and_all_finished_ends_early(model: GPT, prompts: torch.Tensor) -> None:
    free = generate(model, prompts, 12, temperature=0)
    eot = int(free[0, 7])  # row 0 says it third, if not earlier
    out = generate(model, prompts, 12, temperature=0, eot_id=eot)
    for row in range(4):
        said = (free[row, 5:] == eot).nonzero().flatten().tolist()
        end = 5 + said[0] + 1 if said else out.size(1)
        assert torch.equal(out[row, :end], free[row, :end])
        assert torch.all(out[row, end:] == eot)
    alone = generate(model, prompts[:1], 12, temperature=0, eot_id=eot)
    assert alone.size(1) <= 8 and int(alone[0, -1]) == eot


def test_a_stream_yields_the_columns_of_generate_and_puts_training_mode_back(model: GPT, prompts: torch.Tensor) -> None:
    model.train()
    columns = list(stream(model, prompts, 8, temperature=0))
    assert all(column.shape == (4, 1) for column in columns)
    assert torch.equal(torch.cat([prompts, *columns], dim=1), generate(model, prompts, 8, temperature=0))
    assert model.training
    half_way = stream(model, prompts, 8)
    next(half_way)
    half_way.close()
    assert model.training


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
    ],
)
def test_impossible_settings_are_named(model: GPT, prompts: torch.Tensor, settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate(model, prompts, 1, **settings)


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        generate(model, torch.zeros(1, 0, dtype=torch.int64), 1)
