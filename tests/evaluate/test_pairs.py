"""Prompts from held-out text, and what of a sample stands in the training shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygpt.data.reader import TokenReader
from raygpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from raygpt.evaluate.pairs import PROMPT_TOKENS, choose_prompts, look_for_copies
from tests.jobs.conftest import write_shards

TEXTS = [
    f"{number} sailors went to sea in a leaky boat, and naïvely " + "they sang aloud " * 20 for number in range(30)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(TEXTS), 300)


def test_prompts_begin_a_document_and_end_at_a_word(tokenizer: Tokenizer) -> None:
    prompts = choose_prompts([*TEXTS, "too short"], tokenizer, 5, 60)
    assert [prompt.text for prompt in prompts] == [0, 6, 12, 18, 24]
    for prompt in prompts:
        text = TEXTS[prompt.text]
        assert prompt.prompt + prompt.rest == text
        assert prompt.rest[0] == " " and not prompt.prompt[-1].isspace()
        assert PROMPT_TOKENS // 2 <= len(tokenizer.encode(prompt.prompt)) <= PROMPT_TOKENS
    assert choose_prompts(["too short"] * 3, tokenizer, 5, 60) == []
    assert len(choose_prompts(TEXTS, load_tokenizer("bytes"), 2, 60)) == 2


def test_a_copied_passage_is_found_in_the_tokens_of_the_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    passage = "The quick brown fox jumped over nine lazy dogs near the old harbour wall."
    training = [*TEXTS, f"Once upon a time. {passage} The end.", *TEXTS]
    write_shards(tmp_path / "train", training, tokenizer)
    reader = TokenReader(tmp_path / "train")
    texts = {
        "base": ["Completely different words of no kind."],
        "tuned": [f"Someone said: {passage} Then again, why?"],
        "held_out": ["A quick brown dog."],
    }
    found = look_for_copies(reader, texts, 100, 16)
    copied = found.copied["tuned"][0]
    assert passage.split(maxsplit=1)[1].rstrip(".") in copied.text
    assert copied.longest >= 16 and copied.longest == len(tokenizer.encode(copied.text)) == copied.covered
    assert found.longest("tuned") > found.longest("held_out") >= found.longest("base") == 0
    assert found.covered("base") == 0 < found.covered("tuned") < 1
    assert found.training_tokens == reader.total_tokens
    cut = look_for_copies(reader, {"tuned": [f"{passage} and more"]}, 20, 16)
    assert cut.copied["tuned"][0].tokens == 20, "no more than the samples' length counts"
