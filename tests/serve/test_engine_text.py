"""Text of answers and draws of tokens, each by itself."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
import torch

from raygpt.data.tokenizer import byte_tokenizer
from raygpt.model.generate import choose
from raygpt.serve.requests import Sampling
from raygpt.serve.sampling import draw, log_probabilities
from raygpt.serve.text_out import Detokenizer, StopTexts

WORDS = "Grüße, 東京 🙂 e\u0301 — done."


def test_only_whole_characters_come_out() -> None:
    coder = byte_tokenizer()
    out = Detokenizer(coder.decode, coder.encode("prompt ").tolist())
    pieces = [out.push(int(token)) for token in coder.encode(WORDS * 5)]
    assert "".join(pieces) + out.flush() == WORDS * 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_released_at_the_end() -> None:
    out = Detokenizer(byte_tokenizer().decode, [65])
    assert out.push("é".encode()[0]) == "" and out.flush() == "\ufffd"


def test_spaces_of_a_tokenizer_that_drops_a_texts_leading_one() -> None:
    vocabulary = ["<s>", "▁one", "▁two", "three", "▁"]

    def decode(ids: list[int]) -> str:  # as sentencepiece: the first space of a text is no part of it
        return "".join(vocabulary[i] for i in ids if i).replace("▁", " ").removeprefix(" ")

    ids = [1, 2, 3, 4, 2, 1] * 9
    out = Detokenizer(decode, [0, 1])
    assert "one" + "".join(out.push(token) for token in ids) + out.flush() == decode([0, 1, *ids])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_texts_are_found_wherever_the_pieces_are_cut(size: int) -> None:
    for text, stops in product(
        ("abcSTOPdef", "aSTOSTOPb", "nothing here", "ends in STO"), (("STOP",), ("OPd", "STOP"))
    ):
        stop, out, ended = StopTexts(stops), "", False
        for first in range(0, len(text), size):
            piece, ended = stop.push(text[first : first + size])
            out += piece
            if ended:
                break
        out += "" if ended else stop.flush()
        places = [text.find(s) for s in stops if s in text]
        assert ended == bool(places)
        if size == 1:  # with larger pieces the later of two overlapping stops may be whole first
            assert out == (text[: text.index("STOP")] if places else text)


def test_draws_follow_the_distribution_that_generation_draws_from() -> None:
    torch.manual_seed(0)
    logits = torch.randn(400) * 3
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=9), Sampling(top_p=0.8), Sampling(top_p=0.9999)):
        numbers = random.Random(1)
        mine = Counter(draw(logits, sampling, numbers) for _ in range(4000))
        rows = logits.expand(4000, -1)
        theirs = Counter(
            choose(rows, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)[:, 0].tolist()
        )
        distance = sum(abs(mine[token] - theirs[token]) for token in {*mine, *theirs}) / 8000
        assert distance < 0.1
    kept = logits.topk(9).indices.tolist()
    assert all(draw(logits, Sampling(top_k=9), numbers) in kept for _ in range(200))


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(3, 50)
    truth = logits.log_softmax(dim=1)
    for row, (value, top) in enumerate(log_probabilities(logits, [1, 2, 3], 4)):
        assert value == pytest.approx(float(truth[row, row + 1]), abs=1e-5)
        assert [token for token, _ in top] == truth[row].topk(4).indices.tolist()
