"""Losses of long texts: equal to float64 loops written here, for both families, whatever the batch."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.data.tokenizer import byte_tokenizer
from raygpt.errors import UserError
from raygpt.scoring import wikitext as wikitext_module
from raygpt.scoring.rolling import WINDOWS, ModelRows, Windows, text_losses
from tests.scoring.small import CONTEXT, VOCAB, as_language_model, tiny_gpt, tiny_llama, wikitext_part

EOT = 256


@pytest.fixture
def wikitext(shared_data: Path, tmp_path: Path) -> Path:
    return wikitext_part(shared_data, tmp_path)


@pytest.fixture(scope="module", params=["gpt", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_gpt() if request.param == "gpt" else as_language_model(tiny_llama())


@pytest.fixture(scope="module")
def exact(model: Any) -> Any:
    return copy.deepcopy(model).double()


def predictions(model: Any, row: np.ndarray) -> list[float]:
    """Nats of every token of a row but its first, by a model in float64."""
    with torch.no_grad():
        logits = model(torch.tensor(row[None, :-1].astype(np.int64)))[0]
    return (-logits.log_softmax(-1)[range(len(row) - 1), row[1:].astype(np.int64)]).tolist()


def read(path: Path, protocol: Any) -> list[np.ndarray]:
    texts = wikitext_module.texts(*wikitext_module.read(str(path)), protocol)
    return byte_tokenizer().encode_batch(texts.texts)


def test_without_overlap_every_token_is_predicted_once(model: Any, exact: Any, wikitext: Path) -> None:
    texts = read(wikitext, "lm_eval")
    found = text_losses(ModelRows(model), texts, Windows.of("disjoint", CONTEXT), bos_id=EOT)
    for text, surprisals, predicted in zip(texts, found.surprisals, found.predicted):
        whole = np.concatenate([[EOT], text])
        wanted = [
            nats
            for start in range(0, len(text), CONTEXT)
            for nats in predictions(exact, whole[start : start + CONTEXT + 1])
        ]
        assert predicted.all() and len(wanted) == len(text)
        np.testing.assert_allclose(surprisals, wanted, atol=2e-4)


@pytest.mark.parametrize("stride", [8, 13, CONTEXT])
def test_strided_windows_are_those_of_hugging_faces_example(
    model: Any, exact: Any, wikitext: Path, stride: int
) -> None:
    text = read(wikitext, "huggingface")[0][:700]
    wanted: dict[int, float] = {}
    before = 0
    for begin in range(0, len(text), stride):  # the loop of transformers' documentation
        end = min(begin + CONTEXT, len(text))
        aims = list(range(max(before, begin + 1), end))  # what shifting the labels leaves of the target tokens
        costs = predictions(exact, text[begin:end]) if end - begin > 1 else []
        for place in aims:
            assert place not in wanted
            wanted[place] = costs[place - begin - 1]
        before = end
        if end == len(text):
            break
    found = text_losses(ModelRows(model), [text], Windows.of("strided", CONTEXT, stride), bos_id=None)
    assert np.flatnonzero(found.predicted[0]).tolist() == sorted(wanted)
    np.testing.assert_allclose(found.surprisals[0][found.predicted[0]], [wanted[n] for n in sorted(wanted)], atol=2e-4)
    assert found.tokens[0] == len(wanted)
    assert len(text) - len(wanted) == (1 if stride < CONTEXT else math.ceil(len(text) / CONTEXT))


def test_transformers_own_loss_in_its_example_gives_the_perplexity(wikitext: Path) -> None:
    (text,) = read(wikitext, "huggingface")
    text, stride = text[:700], 16
    net = tiny_llama()
    ids = torch.tensor(text.astype(np.int64))[None]
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(text), stride):
        end = min(begin + CONTEXT, len(text))
        targets = ids[:, begin:end].clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = net(ids[:, begin:end], labels=targets).loss
        real = int((targets[:, 1:] != -100).sum())
        total, count, before = total + float(loss) * real, count + real, end
        if end == len(text):
            break
    found = text_losses(ModelRows(as_language_model(net)), [text], Windows.of("strided", CONTEXT, stride), bos_id=None)
    assert count == found.tokens.sum()
    assert found.nats.sum() / count == pytest.approx(total / count, rel=1e-6)


def test_rolling_windows_are_those_of_lm_evaluation_harness(model: Any, exact: Any, wikitext: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    for text in [*read(wikitext, "lm_eval"), np.arange(1, dtype=np.uint16), np.arange(CONTEXT + 1, dtype=np.uint16)]:
        wanted: list[float] = []
        for pair in utils.get_rolling_token_windows(text.tolist(), EOT, CONTEXT, 1):
            context, aims = utils.make_disjoint_window(pair)
            wanted += predictions(exact, np.array([*context, *aims]))[len(context) - 1 :]
        found = text_losses(ModelRows(model), [text], Windows.of("rolling", CONTEXT), bos_id=EOT)
        np.testing.assert_allclose(found.surprisals[0], wanted, atol=2e-4)


@pytest.mark.parametrize("cut", WINDOWS)
def test_windows_predict_every_token_at_most_once_and_never_the_first(cut: Any) -> None:
    for context, stride, length in itertools.product((2, 3, 8), (1, 2, 3, 8), range(30)):
        if stride > context or (cut != "strided" and stride != context):
            continue
        ways = Windows.of(cut, context, stride)
        places = [place for window in ways.over(length) for place in range(window.first, window.end)]
        assert len(places) == len(set(places)) and places == sorted(places) and 0 not in places
        assert all(0 <= window.begin < window.first < window.end <= length for window in ways.over(length))
        assert all(window.end - window.begin <= ways.row for window in ways.over(length))
        if cut != "strided" or stride < context:
            assert places == list(range(1, length))


def test_the_batch_changes_nothing(model: Any) -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 256, length) for length in (1, 5, 32, 33, 100, 0, 64)]
    ways = Windows.of("rolling", CONTEXT)
    one = text_losses(ModelRows(model, batch_tokens=1), texts, ways, bos_id=EOT)
    many = text_losses(ModelRows(model, batch_tokens=10_000), texts, ways, bos_id=EOT)
    for some, others in zip(one.surprisals, many.surprisals):
        np.testing.assert_allclose(some, others, atol=1e-4)
    assert many.tokens.tolist() == [len(text) for text in texts]


def test_what_cannot_be_read_is_refused(model: Any) -> None:
    rows = ModelRows(model)
    with pytest.raises(UserError, match="more than the model's 32: ask for 32 at most"):
        text_losses(rows, [np.arange(4)], Windows.of("rolling", CONTEXT + 1), bos_id=EOT)
    with pytest.raises(UserError, match=f"token {VOCAB} but the model knows only {VOCAB}"):
        text_losses(rows, [np.array([VOCAB, 1])], Windows.of("rolling", CONTEXT), bos_id=EOT)
    damaged = copy.deepcopy(model)
    next(damaged.parameters()).data.fill_(math.nan)
    with pytest.raises(UserError, match=r"gives no number \(nan\)"):
        text_losses(ModelRows(damaged), [np.arange(4)], Windows.of("rolling", CONTEXT), bos_id=EOT)
    with pytest.raises(UserError, match="stride of 40 with a context of 32 leaves tokens out"):
        Windows.of("strided", CONTEXT, 40)
    with pytest.raises(UserError, match="stride is for strided windows"):
        Windows.of("rolling", CONTEXT, 8)
