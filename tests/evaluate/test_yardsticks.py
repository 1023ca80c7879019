"""Unigram and bigram entropy against tables small enough to count by hand, and against plain loops."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from raygpt.evaluate import yardsticks
from raygpt.evaluate.yardsticks import bigram_entropy, unigram_entropy


def test_unigram_entropy_of_a_hand_counted_table() -> None:
    # training: a a b; validation predicts b a c (the first token has nothing before it); three tokens known
    train, val = np.array([0, 0, 1]), np.array([2, 1, 0, 2])
    # p(a) = 3/6, p(b) = 2/6, p(c) = 1/6 with one added to each count
    assert unigram_entropy(train, val, 3) == pytest.approx(-(math.log(2 / 6) + math.log(3 / 6) + math.log(1 / 6)) / 3)


def test_bigram_entropy_of_a_hand_counted_table() -> None:
    # too short to hold a tenth out: the weight is 1. Pairs of the training tokens: ab ba ab; p(a)=3/7 p(b)=3/7 p(c)=1/7
    train, val = np.array([0, 1, 0, 1]), np.array([0, 1, 2, 0])
    expected = [
        (2 + 1 * 3 / 7) / (2 + 1),  # b after a: seen twice, a has a follower twice
        (0 + 1 * 1 / 7) / (1 + 1),  # c after b: never seen, b has a follower once (the last b has none)
        (0 + 1 * 3 / 7) / (0 + 1),  # a after c: nothing known of c, the unigram decides
    ]
    assert bigram_entropy(train, val, 3) == pytest.approx(-sum(math.log(p) for p in expected) / 3)


def test_a_uniform_corpus_scores_the_logarithm_of_its_vocabulary() -> None:
    random = np.random.default_rng(0)
    train, val = random.integers(0, 50, 200_000), random.integers(0, 50, 50_000)
    assert unigram_entropy(train, val, 50) == pytest.approx(math.log(50), abs=2e-3)
    assert bigram_entropy(train, val, 50) == pytest.approx(math.log(50), abs=1e-2)


def test_a_first_order_chain_is_predicted_by_bigrams_and_not_by_unigrams() -> None:
    # from each token to one of two others, equally likely: log 2 given the token before, log 20 without
    random = np.random.default_rng(1)
    tokens = np.cumsum(random.integers(0, 2, 300_000) * 7 + 3) % 20
    train, val = tokens[:250_000], tokens[250_000:]
    assert bigram_entropy(train, val, 20) == pytest.approx(math.log(2), abs=2e-3)
    assert unigram_entropy(train, val, 20) == pytest.approx(math.log(20), abs=1e-2)


@pytest.fixture(scope="module")
def shakespeare(shared_data) -> tuple[np.ndarray, np.ndarray]:
    text = np.frombuffer((shared_data / "shakespeare" / "input.txt").read_bytes(), dtype=np.uint8)
    cut = len(text) * 9 // 10
    return text[:cut].astype(np.uint16), text[cut:].astype(np.uint16)


def test_entropies_of_real_text_equal_a_loop_over_its_pairs(shakespeare: tuple[np.ndarray, np.ndarray]) -> None:
    train, val = (part[:20_000] for part in shakespeare)
    singles, pairs = Counter(train.tolist()), Counter(zip(train.tolist(), train[1:].tolist()))
    before = Counter(train[:-1].tolist())

    def unigram(b: int) -> float:
        return (singles[b] + 1) / (len(train) + 257)

    def loss(weight: float) -> float:
        total = 0.0
        for a, b in zip(val.tolist(), val[1:].tolist()):
            total -= math.log((pairs[a, b] + weight * unigram(b)) / (before[a] + weight))
        return total / (len(val) - 1)

    assert unigram_entropy(train, val, 257) == pytest.approx(
        -sum(math.log(unigram(b)) for b in val[1:].tolist()) / (len(val) - 1), rel=1e-12
    )
    ours = bigram_entropy(train, val, 257)
    assert any(loss(weight) == pytest.approx(ours, rel=1e-9) for weight in yardsticks.WEIGHTS)
    # chosen on the training tokens alone, the weight is nearly the best there is for the validation tokens
    assert ours < min(loss(weight) for weight in yardsticks.WEIGHTS[::4]) + 0.1


def test_a_bigram_knows_more_than_a_unigram_about_real_text(shakespeare: tuple[np.ndarray, np.ndarray]) -> None:
    figures = yardsticks.yardsticks(*shakespeare, 257)
    assert list(figures) == ["unigram entropy", "bigram entropy"]
    # letters of English: about 4.8 bits each alone, about 3.5 given the one before (in nats here)
    assert 2.3 < figures["bigram entropy"] < 2.6 < 3.2 < figures["unigram entropy"] < 3.5


def test_large_vocabularies_give_what_small_tables_give(
    monkeypatch: pytest.MonkeyPatch, shakespeare: tuple[np.ndarray, np.ndarray]
) -> None:
    train, val = shakespeare[0][:60_000], shakespeare[1][:9_000]
    dense = yardsticks.yardsticks(train, val, 257)
    monkeypatch.setattr(yardsticks, "DENSE_PAIRS", 0)
    monkeypatch.setattr(yardsticks, "CHUNK", 997)  # many pieces, their borders inside pairs
    assert yardsticks.yardsticks(train, val, 257) == pytest.approx(dense, rel=1e-12)


def test_validation_tokens_are_never_counted() -> None:
    random = np.random.default_rng(2)
    train = random.integers(0, 10, 5_000)
    val = np.full(1_000, 99)
    assert unigram_entropy(train, val, 100) == pytest.approx(math.log(5_100)), "an unseen token has count 0 + 1"


def test_the_whole_gpt2_vocabulary_fits_in_memory() -> None:
    random = np.random.default_rng(3)
    train = random.zipf(1.2, 300_000).clip(max=50_257) - 1
    figures = yardsticks.yardsticks(train.astype(np.uint16), train[:20_000].astype(np.uint16), 50_257)
    assert all(0 < figure < math.log(50_257) for figure in figures.values())


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 and 2 are needed"):
        unigram_entropy(np.array([1, 2]), np.array([1]), 3)
