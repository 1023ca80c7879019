"""An endpoint's scores are the model's own, through raygpt's server on a real socket; faults and refusals are clear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from raygpt.data.tokenizer import byte_tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.scoring import endpoint as endpoint_module
from raygpt.scoring.endpoint import PROBE, EndpointScorer
from raygpt.scoring.likelihood import ModelScorer
from raygpt.scoring.perplexity import Texts, measure
from raygpt.scoring.questions import Question
from raygpt.scoring.rolling import ModelRows, Windows
from raygpt.serve.batching import BatchingEngine
from raygpt.serve.coders import OwnCoder
from raygpt.serve.hf_network import HuggingFaceNetwork
from raygpt.serve.load import make_decoder
from raygpt.serve.own_network import OwnNetwork
from tests.scoring.scripted_endpoint import Script, cost, scripted
from tests.scoring.small import CONTEXT, as_language_model, tiny_gpt, tiny_llama
from tests.serve.served import served

QUESTIONS = [
    Question("0", "A cat sat ", ("on it", "by", "é"), "whole"),
    Question("1", "Dogs", (" bark", " are"), "apart"),
    Question("2", "x", ("y",), "whole"),
]
LONG = Question("3", "A context of more tokens than the model reads at once", (" goes", " on and on"), "whole")


@pytest.fixture(scope="module", params=["gpt", "llama"])
def model(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str]]:
    """(a model, the URL where it is served)."""
    if request.param == "gpt":
        subject: Any = tiny_gpt()
        network: Any = OwnNetwork(subject)
    else:
        net = tiny_llama()
        subject, network = as_language_model(net), HuggingFaceNetwork(net)
    coder = OwnCoder(byte_tokenizer(), "tiny")
    engine = BatchingEngine("tiny", make_decoder(network, 4, None), coder, threads=1)
    with served(engine) as url:
        yield subject, f"{url}/v1"
    engine.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "backoff", lambda attempt: 0.01)


def same(found: Any, wanted: Any) -> None:
    for some, others in zip(found, wanted, strict=True):
        assert [one.tokens for one in some] == [one.tokens for one in others]
        assert [one.greedy for one in some] == [one.greedy for one in others]
        np.testing.assert_allclose([one.logprob for one in some], [one.logprob for one in others], atol=1e-4)


@pytest.mark.parametrize("by", ["token ids", "text"])
def test_the_scores_are_the_models_own(model: tuple[Any, str], by: str) -> None:
    subject, url = model
    scorer = EndpointScorer(url, tokenizer=byte_tokenizer() if by == "token ids" else None)
    assert scorer.name == "tiny" and scorer.context == CONTEXT
    same(scorer.ask(QUESTIONS), ModelScorer("it", subject, byte_tokenizer()).ask(QUESTIONS))


def test_a_long_context_is_cut_by_tokens_and_refused_as_text(model: tuple[Any, str]) -> None:
    subject, url = model
    own = ModelScorer("it", subject, byte_tokenizer())
    own.context = CONTEXT - 1  # the endpoint reads the last token, which a model of this process does not
    same(EndpointScorer(url, tokenizer=byte_tokenizer()).ask([LONG]), own.ask([LONG]))
    with pytest.raises(UserError, match=r"refuses a prompt \(.*context.*\): shorten it"):
        EndpointScorer(url).ask([LONG])


def test_long_texts_cost_what_they_cost_the_model(model: tuple[Any, str]) -> None:
    subject, url = model
    texts = Texts("two", ("A first text that is longer than the context of it.", "é"), (11, 1), (51, 2), False)
    for windows in (Windows.of("rolling", CONTEXT - 1), Windows.of("strided", CONTEXT, 8)):
        options: dict[str, Any] = dict(model="tiny", protocol="p", bos_id=256)
        theirs, records = measure(
            EndpointScorer(url, tokenizer=byte_tokenizer()), byte_tokenizer(), texts, windows, **options
        )
        ours, own_records = measure(ModelRows(subject), byte_tokenizer(), texts, windows, **options)
        assert [one["nats"] for one in records] == pytest.approx([one["nats"] for one in own_records], abs=1e-4)
        assert theirs.token.units == ours.token.units == sum(one["tokens"] for one in own_records)
    with pytest.raises(UserError, match="ask for a context of 31 at most"):
        windows = Windows.of("rolling", CONTEXT)
        measure(EndpointScorer(url, tokenizer=byte_tokenizer()), byte_tokenizer(), texts, windows, **options)
    with pytest.raises(UserError, match="long texts are cut by tokens: give the model's tokenizer"):
        measure(EndpointScorer(url), byte_tokenizer(), texts, windows, **options)


def by_hand(context: str, continuation: str) -> float:
    data = (context + continuation).encode()
    start = len(context.encode())
    return -sum(cost(data[n - 1], data[n]) for n in range(start, len(data)))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), None], ids=["token ids", "text"])
@pytest.mark.parametrize("settings", [{}, {"needs_new_token": True}, {"takes_ids": False}], ids=str)
def test_endpoints_of_every_kind_are_scored(settings: dict[str, Any], tokenizer: Any) -> None:
    with scripted(Script(**settings)) as url:
        scorer = EndpointScorer(url, tokenizer=tokenizer)
        found = scorer.ask(QUESTIONS[:1])
    assert scorer.context == 64 - bool(settings.get("needs_new_token"))
    assert [one.logprob for one in found[0]] == pytest.approx(
        [by_hand("A cat sat", " " + c) for c in ("on it", "by", "é")]
    )
    assert [one.tokens for one in found[0]] == [6, 3, 3]


def test_faults_on_the_way_are_asked_again() -> None:
    script = Script()
    with scripted(script) as url:
        scorer = EndpointScorer(url, concurrency=3)
        script.answers += [(500, {}), (429, {}), (503, {}), (200, b"no JSON"), (200, {"choices": []}), (502, b"bad")]
        found = scorer.ask(QUESTIONS[:1])
    assert found[0][0].logprob == pytest.approx(by_hand("A cat sat", " on it"))
    with scripted(Script(answers=[(500, {"error": {"message": "broken"}})] * 9)) as url:
        with pytest.raises(UserError, match="has not answered in 4 tries .*500: broken"):
            EndpointScorer(url, retries=3)


@pytest.mark.parametrize(
    "settings", [{"logprobs": False}, {"echo": False}, {"alternatives": False}], ids=lambda one: next(iter(one))
)
def test_an_endpoint_without_log_probabilities_is_told_before_more_is_asked(settings: dict[str, bool]) -> None:
    script = Script(**settings)  # type: ignore[arg-type]
    with (
        scripted(script) as url,
        pytest.raises(UserError, match=f"{url} gives no log-probabilities of a prompt .*vLLM"),
    ):
        EndpointScorer(url)
    assert [body["prompt"] for body in script.asked] == [PROBE]


def test_an_endpoint_that_refuses_log_probabilities_is_told() -> None:
    script = Script(answers=[(400, {"error": {"message": "logprobs are not supported"}})] * 2)
    with scripted(script) as url, pytest.raises(UserError, match="it answers: logprobs are not supported"):
        EndpointScorer(url)
    assert len(script.asked) == 2


def test_another_tokenizer_than_the_models_is_refused() -> None:
    with scripted(Script()) as url, pytest.raises(UserError, match="reads other tokens than tokenizer bpe-300 writes"):
        EndpointScorer(url, tokenizer=train_tokenizer(iter([PROBE] * 50), 300))


def test_the_key_comes_from_a_variable_and_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(key="sesame")
    monkeypatch.setenv("THE_KEY", "sesame")
    with scripted(script) as url:
        scorer = EndpointScorer(url, api_key_env="THE_KEY")
        scorer.ask(QUESTIONS[2:])
        assert set(script.keys) == {"Bearer sesame"}
        script.answers.append((400, {"error": {"message": "no such prompt for sesame"}}))
        with pytest.raises(UserError) as told:
            scorer.ask(QUESTIONS[2:])
        assert "sesame" not in str(told.value)
        monkeypatch.setenv("THE_KEY", "wrong key")
        with pytest.raises(UserError, match="refuses the key") as told:
            EndpointScorer(url, api_key_env="THE_KEY")
        assert "wrong key" not in str(told.value)
        with pytest.raises(UserError, match="wants a key"):
            EndpointScorer(url)
    with pytest.raises(UserError, match="variable NO_KEY.* is not set"):
        EndpointScorer(url, api_key_env="NO_KEY")


def test_an_endpoint_that_is_not_there_or_has_another_model_is_told() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1 does not say which models it has .*start it"):
        EndpointScorer("http://127.0.0.1:9/v1")
    with scripted(Script(max_model_len=None)) as url:
        with pytest.raises(UserError, match="has bigram, not other"):
            EndpointScorer(url, "other")
        with pytest.raises(UserError, match="does not say how long its context is"):
            EndpointScorer(url)
        assert EndpointScorer(url, context=20).context == 20
