"""LAMBADA beside lm-evaluation-harness itself on the same file, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from raygpt.data.tokenizer import Tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.scoring import lambada
from raygpt.scoring.likelihood import ModelScorer
from raygpt.scoring.questions import Question, Scored
from tests.scoring.harness import harness
from tests.scoring.small import CONTEXT, as_language_model, tiny_llama

PASSAGES = (
    'He looked for his hat. "Where," he said, "is my hat',
    "a b",
    "Two  spaces stand before the last  word",
    "The lamp went out and nobody in the whole of the house could find another, however long they looked for a lamp",
    "\u201cI know,\u201d she said, and knew",
)


def write(path: Path, texts: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def taught(net: Any, tokenizer: Tokenizer) -> str:
    """A passage whose last word is the model's first choice, made so by its output matrix."""
    context = "There was a"
    ids = tokenizer.encode(context).astype(int).tolist()
    word = tokenizer.encode(context + " lamp").tolist()[len(ids) :]
    with torch.no_grad():
        for place in range(len(word)):
            hidden = net.model(torch.tensor([ids + word[:place]])).last_hidden_state[0, -1]
            net.lm_head.weight[word[place]] = hidden
    return context + " lamp"


def test_accuracy_and_perplexity_are_lm_evaluation_harness_own(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(PASSAGES * 20), 320)
    net = tiny_llama(tokenizer.vocab_size)
    passages = [*PASSAGES, taught(net, tokenizer)]
    rows = write(tmp_path / "lambada.jsonl", passages)
    items = lambada.read_items(str(rows))
    scorer = ModelScorer("tiny", as_language_model(net), tokenizer)
    judged = [lambada.judge(item, "lm_eval", found) for item, found in zip(items, scorer.ask(lambada.questions(items)))]
    ours = lambada.summarise(judged)
    theirs = harness("lambada/lambada_openai", rows, net, tokenizer, CONTEXT)
    assert ours["items"] == len(passages) and 0 < ours["acc"] < 1
    assert ours["acc"] == theirs["acc,none"]
    assert ours["perplexity"] == pytest.approx(theirs["perplexity,none"], rel=1e-5)
    assert any(len(tokenizer.encode(passage)) > CONTEXT for passage in passages)


def test_a_passage_is_cut_at_its_last_space(tmp_path: Path) -> None:
    rows = write(tmp_path / "some.jsonl", list(PASSAGES))
    items = lambada.read_items(str(rows), limit=3)
    assert [item.word for item in items] == ["hat", "b", "word"]
    assert lambada.questions(items)[2] == Question("2", "Two  spaces stand before the last ", (" word",), "whole")


def test_figures_of_three_passages_by_hand() -> None:
    items = [lambada.Item(str(n), "", "a", "b") for n in range(3)]
    scores = [Scored(-1.0, 1, True), Scored(-2.0, 2, False), Scored(-3.0, 1, False)]
    judged = [lambada.judge(item, "lm_eval", (score,)) for item, score in zip(items, scores)]
    found = lambada.summarise(judged)
    assert found["acc"] == pytest.approx(1 / 3) and found["perplexity"] == pytest.approx(math.exp(2))
    assert found["acc_stderr"] == pytest.approx(1 / 3)
    assert found["log_perplexity_stderr"] == pytest.approx(1 / math.sqrt(3))
    assert judged[1].record() == {"id": "1", "protocol": "lm_eval", "acc": 0, "logprob": -2.0, "tokens": 2}


def test_rows_that_are_no_passages_are_named(tmp_path: Path) -> None:
    rows = write(tmp_path / "bad.jsonl", ["alone", "good one", "ends in a space ", 3, " x"])
    with pytest.raises(UserError, match="line 1 has no context.*line 3 has no word.*line 4 has no text and 1 more"):
        lambada.read_items(str(rows))
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="has no items|no documents|is empty"):
        lambada.read_items(str(tmp_path / "none.jsonl"))
